//! Mappings of memory that somebody else may truncate.
//!
//! Touching a page beyond the end of its file raises SIGBUS. Every access to a [`Mapping`] goes
//! through a handler that marks the mapping as lost and puts zeros in its place, so that the access
//! returns and the caller gets `Gone`. (libwayland guards its shared buffers in the same way.) A
//! lost mapping stays lost: whoever owns it drops it and makes another. Accesses are single machine
//! words: whole ranges are read and written with pread(2) and pwrite(2), which need no mapping.

use std::{
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::{
        Once,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        },
    },
};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::{
    Error, Kind, Result,
    error::{self, Attempted},
};

/// How many mappings can be guarded at once.
pub const MAX_MAPPINGS: usize = 4096;

/// A shared, writable or read-only mapping of a part of a file, or of a System V segment.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    slot: usize,
    writable: bool,
    /// Made by shmat(2), to be undone by shmdt(2).
    segment: bool,
}

// SAFETY: the mapping is plain shared memory that is only touched with atomic operations.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset`, which must be a multiple of the page size. Of a file of
    /// huge pages (hugetlbfs), `length` must be one as well, or it cannot be unmapped.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, length: usize, writable: bool) -> Result<Self> {
        install();
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, fd, offset)
        }
        .attempted(|| format!("map {length} bytes of shared memory"))?;
        Self::guarded(start, length, writable, false)
    }

    /// Attaches the whole System V segment with this id, shmat(2). It counts as attached
    /// (`shm_nattch`) for as long as this lives.
    pub fn attach(shmid: i32, writable: bool) -> Result<Self> {
        install();
        let attempt = || format!("attach the System V segment with shmid {shmid}");
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { libc::shmat(shmid, std::ptr::null(), flags) };
        if start as isize == -1 {
            return Err(match error::last_errno() {
                // Without an address of ours, it can only be the id (shmat(2)).
                Errno::INVAL => {
                    Error::new(Kind::NotFound, format!("cannot {}: no segment has this id", attempt()))
                }
                errno => Error::from_errno(errno, attempt()),
            });
        }
        // The id stays that of this segment: it is attached.
        // SAFETY: a zeroed shmid_ds is a valid one to be filled in.
        let (asked, about) = unsafe {
            let mut about: libc::shmid_ds = std::mem::zeroed();
            (libc::shmctl(shmid, libc::IPC_STAT, &mut about), about)
        };
        if asked != 0 {
            let errno = error::last_errno();
            // SAFETY: attached just above, and nothing refers to it.
            unsafe { libc::shmdt(start) };
            return Err(Error::from_errno(errno, attempt()));
        }
        Self::guarded(start, about.shm_segsz, writable, true)
    }

    /// Puts a fresh mapping under guard.
    fn guarded(start: *mut libc::c_void, length: usize, writable: bool, segment: bool) -> Result<Self> {
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| Error::new(Kind::Errno(Errno::NOMEM), "mapped at null"))?;
        let Some(slot) = claim(start.as_ptr(), length) else {
            // SAFETY: mapped by the caller, and nothing refers to it.
            unsafe { unmap(start.as_ptr().cast(), length, segment) };
            return Err(Error::new(
                Kind::LimitExceeded,
                format!(
                    "the service holds {MAX_MAPPINGS} mappings of shared memory, its limit; close some endpoints"
                ),
            ));
        };
        Ok(Self { start, length, slot, writable, segment })
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
        // What took the place of a lost segment is no longer the segment's, and shmdt(2) would leave it.
        let segment = self.segment && !slot.lost.load(Ordering::Acquire);
        // SAFETY: this mapping's own range; nothing refers to it any more.
        unsafe { unmap(self.start.as_ptr().cast(), self.length, segment) };
        slot.lost.store(false, Ordering::Release);
        slot.start.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// Undoes mmap(2), or shmat(2) where it is a segment; neither can fail for a whole mapping.
///
/// # Safety
/// The range must be one mapping that nothing refers to any more.
unsafe fn unmap(start: *mut libc::c_void, length: usize, segment: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        if segment {
            libc::shmdt(start);
        } else {
            let _ = rustix::mm::munmap(start, length);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A private segment, removed at the end.
    struct Segment(i32);

    impl Segment {
        fn new(size: usize) -> Self {
            // SAFETY: a system call without pointers.
            let id = unsafe { libc::shmget(libc::IPC_PRIVATE, size, 0o600) };
            assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
            Self(id)
        }

        fn attached(&self) -> libc::shmatt_t {
            // SAFETY: a zeroed shmid_ds is a valid one to be filled in.
            unsafe {
                let mut about: libc::shmid_ds = std::mem::zeroed();
                assert_eq!(libc::shmctl(self.0, libc::IPC_STAT, &mut about), 0);
                about.shm_nattch
            }
        }
    }

    impl Drop for Segment {
        fn drop(&mut self) {
            // SAFETY: a system call that reads no memory for this command.
            unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }

    #[test]
    fn a_segment_is_attached_for_as_long_as_its_mapping_lives() {
        let segment = Segment::new(100);
        let (one, two) =
            (Mapping::attach(segment.0, true).unwrap(), Mapping::attach(segment.0, false).unwrap());
        assert_eq!((one.len(), segment.attached()), (100, 2));
        one.swap(96, 4, 7).unwrap();
        assert_eq!(two.load(96, 4).unwrap(), 7);
        assert_eq!(two.swap(96, 4, 8).unwrap_err().kind, Kind::PermissionDenied);
        assert_eq!(one.load(100, 4).unwrap_err().kind, Kind::InvalidArgument);
        drop((one, two));
        assert_eq!(segment.attached(), 0);
        assert_eq!(Mapping::attach(-1, true).unwrap_err().kind, Kind::NotFound);
    }
}
