//! Mappings of memory that somebody else may truncate.
//!
//! Touching a page beyond the end of its file raises SIGBUS. Every access to a [`Mapping`] goes
//! through a handler that marks the mapping as lost and puts zeros in its place, so that the access
//! returns and the caller gets `Gone`. (libwayland guards its shared buffers in the same way.) A
//! lost mapping stays lost: whoever owns it drops it and makes another. Accesses are single machine
//! words: whole ranges of files are read and written with pread(2) and pwrite(2), which need no
//! mapping; `mapped.rs` copies them word by word where there is no file.

use std::{
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::{
        Once,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
            compiler_fence, fence,
        },
    },
};

use rustix::mm::{MapFlags, ProtFlags};

use crate::{Error, Kind, Result, error::Attempted};

/// How many mappings can be guarded at once.
pub const MAX_MAPPINGS: usize = 4096;

/// A shared, writable or read-only mapping of a part of a file, or of a System V segment.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    slot: usize,
    writable: bool,
}

// SAFETY: the mapping is plain shared memory that is only touched with atomic operations.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset`, which must be a multiple of the page size. Of a file of
    /// huge pages (hugetlbfs), `length` must be one as well, or it cannot be unmapped.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, length: usize, writable: bool) -> Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, fd, offset)
        }
        .attempted(|| format!("map {length} bytes of shared memory"))?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| Error::new(Kind::Errno(rustix::io::Errno::NOMEM), "mapped at null"))?;
        // SAFETY: mapped just above, and nothing else refers to it.
        unsafe { Self::guard(start, length, writable) }.inspect_err(|_| {
            // SAFETY: as above.
            let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), length) };
        })
    }

    /// Guards what was mapped in another way. Refused, it stays mapped.
    ///
    /// # Safety
    ///
    /// The range is a shared mapping from its first to its last page that nothing else refers to;
    /// it is unmapped when the `Mapping` is dropped.
    pub(crate) unsafe fn guard(start: NonNull<u8>, length: usize, writable: bool) -> Result<Self> {
        install();
        let Some(slot) = claim(start.as_ptr(), length) else {
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "the service holds {MAX_MAPPINGS} mappings of shared memory, its limit; close some endpoints"
                ),
            ));
        };
        Ok(Self { start, length, slot, writable })
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether a page was found missing.
    pub fn lost(&self) -> bool {
        SLOTS[self.slot].lost.load(Ordering::Acquire)
    }

    /// The address of a word, for futex(2); valid as long as the mapping is.
    pub fn address(&self, offset: usize, width: usize) -> Result<*mut u8> {
        let address = self.range(offset, width)?;
        if !offset.is_multiple_of(width) {
            return Err(Error::invalid(format!(
                "offset {offset} is not aligned: a word of {width} bytes needs a multiple of {width}"
            )));
        }
        Ok(address)
    }

    /// The address of a range of bytes; valid as long as the mapping is.
    pub(crate) fn range(&self, offset: usize, length: usize) -> Result<*mut u8> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.length) {
            return Err(Error::invalid(format!(
                "offset {offset} with {length} bytes lies outside the memory of {} bytes",
                self.length
            )));
        }
        // SAFETY: the offset lies within the mapping, or at its end.
        Ok(unsafe { self.start.as_ptr().add(offset) })
    }

    /// Runs one access to an aligned word and turns a page that is missing into `Gone`.
    pub fn access<T>(&self, offset: usize, width: usize, with: impl FnOnce(*mut u8) -> T) -> Result<T> {
        let value = with(self.address(offset, width)?);
        self.must_be_whole()?;
        Ok(value)
    }

    /// After an access: whether it found its pages.
    pub(crate) fn must_be_whole(&self) -> Result<()> {
        // The handler runs within the access, which relaxed operations would not be bound to precede.
        compiler_fence(Ordering::SeqCst);
        if self.lost() {
            return Err(Error::new(
                Kind::Gone,
                "the memory was truncated by another process while it was in use",
            ));
        }
        Ok(())
    }

    pub fn writable(&self) -> bool {
        self.writable
    }
}

/// Atomic operations on a word of 1, 2, 4 or 8 bytes, on its bits.
macro_rules! by_width {
    ($width:expr, $pointer:expr, |$atomic:ident, $kind:ident| $body:expr) => {
        match $width {
            1 => {
                // SAFETY: the pointer is valid and aligned for the mapping's life, and the memory is
                // only touched atomically.
                let $atomic = unsafe { AtomicU8::from_ptr($pointer) };
                type $kind = u8;
                u64::from($body)
            }
            2 => {
                // SAFETY: as above.
                let $atomic = unsafe { AtomicU16::from_ptr($pointer.cast()) };
                type $kind = u16;
                u64::from($body)
            }
            4 => {
                // SAFETY: as above.
                let $atomic = unsafe { AtomicU32::from_ptr($pointer.cast()) };
                type $kind = u32;
                u64::from($body)
            }
            _ => {
                // SAFETY: as above; widths are 1, 2, 4 or 8.
                let $atomic = unsafe { AtomicU64::from_ptr($pointer.cast()) };
                type $kind = u64;
                $body
            }
        }
    };
}

impl Mapping {
    pub fn load(&self, offset: usize, width: usize) -> Result<u64> {
        self.access(offset, width, |pointer| {
            // Of the orderings, only a relaxed load is promised to work on read-only memory
            // (std::sync::atomic); the fences order it like the others.
            fence(Ordering::SeqCst);
            let bits = by_width!(width, pointer, |atomic, Word| {
                let value: Word = atomic.load(Ordering::Relaxed);
                value
            });
            fence(Ordering::SeqCst);
            bits
        })
    }

    /// Stores and returns what was there.
    pub fn swap(&self, offset: usize, width: usize, bits: u64) -> Result<u64> {
        self.must_be_writable()?;
        self.access(offset, width, |pointer| {
            by_width!(width, pointer, |atomic, Word| atomic.swap(bits as Word, Ordering::SeqCst))
        })
    }

    /// Whether it was exchanged, and what was there.
    pub fn compare_exchange(
        &self,
        offset: usize,
        width: usize,
        expected: u64,
        desired: u64,
    ) -> Result<(bool, u64)> {
        self.must_be_writable()?;
        let mut exchanged = false;
        let found = self.access(offset, width, |pointer| {
            by_width!(width, pointer, |atomic, Word| {
                match atomic.compare_exchange(
                    expected as Word,
                    desired as Word,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                ) {
                    Ok(found) => {
                        exchanged = true;
                        found
                    }
                    Err(found) => found,
                }
            })
        })?;
        Ok((exchanged, found))
    }

    /// Adds, wrapping around, and returns what was there.
    pub fn fetch_add(&self, offset: usize, width: usize, bits: u64) -> Result<u64> {
        self.must_be_writable()?;
        self.access(offset, width, |pointer| {
            by_width!(width, pointer, |atomic, Word| atomic.fetch_add(bits as Word, Ordering::SeqCst))
        })
    }

    pub(crate) fn must_be_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(Kind::PermissionDenied, "the memory was opened read-only"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let slot = &SLOTS[self.slot];
        slot.length.store(0, Ordering::Release);
        // SAFETY: this mapping's own range; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        slot.lost.store(false, Ordering::Release);
        slot.start.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// What the signal handler may read: fixed memory, atomics only.
struct Slot {
    start: AtomicPtr<u8>,
    length: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAX_MAPPINGS] = [const {
    Slot {
        start: AtomicPtr::new(std::ptr::null_mut()),
        length: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_MAPPINGS];

fn claim(start: *mut u8, length: usize) -> Option<usize> {
    let slot = SLOTS.iter().position(|slot| {
        slot.start.compare_exchange(std::ptr::null_mut(), start, Ordering::AcqRel, Ordering::Acquire).is_ok()
    })?;
    SLOTS[slot].length.store(length, Ordering::Release);
    Some(slot)
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the handler is async-signal-safe (atomics and one mmap(2) only), and the action
        // is fully initialised: zeroed, then its two fields set.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Up to zero means that a process sent it (sigaction(2)); then there is no address.
    if code > 0 && SLOTS.iter().any(|slot| slot.replace_if_within(address)) {
        return;
    }
    // Not ours: die as one would without a handler, of the same access or of this raise.
    // SAFETY: signal(2) with the default action and raise(3) are async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        if code <= 0 {
            libc::raise(libc::SIGBUS);
        }
    }
}

impl Slot {
    /// Async-signal-safe. If the address lies within the slot's mapping, marks that as lost and
    /// replaces it, so that the access can be repeated.
    fn replace_if_within(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        let length = self.length.load(Ordering::Acquire);
        // The mapping that the address lies in is in use and cannot change its slot meanwhile;
        // other slots can, and then the start that belongs to the length is another one.
        if self.start.load(Ordering::Acquire) != start {
            return false;
        }
        // The last page belongs to the mapping to its end; the smallest page has 4096 bytes.
        let end = (start as usize).saturating_add(length.next_multiple_of(4096));
        if length == 0 || !(start as usize..end).contains(&address) {
            return false;
        }
        self.lost.store(true, Ordering::Release);
        // All of it, because a single page cannot be cut out of a mapping of huge pages; but one
        // page where the kernel's accounting refuses so much (vm.overcommit_memory=2).
        let page = address & !4095;
        zeros(start as usize, length) || zeros(page, 4096)
    }
}

/// Maps private zeros over a range of a mapping of our own that was lost.
fn zeros(start: usize, length: usize) -> bool {
    // SAFETY: replaces pages of a guarded mapping, which lives until the access that faulted has
    // returned; nothing else lies in them.
    let mapped = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
