//! Shared memory that is a file to the kernel: memfds, regular files, POSIX shared memory.
//!
//! Ranges are read and written with pread(2) and pwrite(2), which no peer can turn into a fault by
//! truncating the file. Only the atomic words need the memory itself: each operation maps the one
//! page that holds the word, guarded ([`Mapping`]), and unmaps it again. That costs microseconds,
//! holds no address space, and leaves no mapping behind that would keep a peer from sealing the
//! memory (F_SEAL_WRITE is EBUSY while anybody maps it).

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{FallocateFlags, OFlags, SealFlags},
    io::Errno,
    process::{Resource, getrlimit},
};

use crate::{
    Dict, Error, Fd, Kind, Result, dict,
    error::{Attempted, name},
    fd::{self, retry},
    guard::Mapping,
    mechanism::{End, EndKind},
    proc,
    shape::{Memory, Word},
};

/// The seals by their names (fcntl(2), "File Sealing").
const SEALS: [(&str, SealFlags); 6] = [
    ("shrink", SealFlags::SHRINK),
    ("grow", SealFlags::GROW),
    ("write", SealFlags::WRITE),
    ("future-write", SealFlags::FUTURE_WRITE),
    ("exec", SealFlags::EXEC),
    ("seal", SealFlags::SEAL),
];

/// The words of [`SEALS`], for tables of parameters.
pub const SEAL_NAMES: &[&str] = &["shrink", "grow", "write", "future-write", "exec", "seal"];

/// The part of a file that an endpoint shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// `None`: to the end of the file, wherever that is at the moment.
    pub length: Option<u64>,
}

impl Window {
    pub fn is_whole(self) -> bool {
        self == Self::default()
    }
}

/// A file used as memory.
#[derive(Debug)]
pub struct SharedFile {
    fd: Fd,
    writable: bool,
    window: Window,
    /// Whether growing allocates, so that later stores cannot run out of space (SIGBUS).
    reserve: bool,
    /// The unit in which the kernel maps it.
    page: u64,
    /// On tmpfs or hugetlbfs, as memfds are: no disk is waited for.
    in_memory: bool,
    /// Huge pages have no write(2), and sizes in whole pages only.
    huge: bool,
}

impl SharedFile {
    /// Takes a regular file that is open for reading, or for reading and writing. The description
    /// must be the service's own: O_APPEND or O_DIRECT would change what pwrite(2) does.
    pub fn new(file: OwnedFd, window: Window, reserve: bool) -> Result<Self> {
        let (_, writable) = fd::access(&file)?;
        let system = rustix::fs::fstatfs(&file).attempted(|| "examine the file system of the memory")?;
        let huge = system.f_type as u64 == libc::HUGETLBFS_MAGIC as u64;
        let page = if huge { system.f_bsize as u64 } else { rustix::param::page_size() as u64 };
        let in_memory = huge || system.f_type as u64 == libc::TMPFS_MAGIC as u64;
        let memory = Self { fd: file.into(), writable, window, reserve, page, huge, in_memory };
        let size = memory.file_size()?;
        let end = window.offset.checked_add(window.length.unwrap_or(0));
        if end.is_none_or(|end| end > size) {
            return Err(Error::invalid(format!(
                "the range of {} bytes from offset {} does not lie within the file, which has {size} bytes",
                window.length.unwrap_or(0),
                window.offset
            )));
        }
        Ok(memory)
    }

    pub fn fd(&self) -> &Fd {
        &self.fd
    }

    pub fn window(&self) -> Window {
        self.window
    }

    /// Whether it was opened for writing; a seal may forbid it all the same.
    pub fn opened_for_writing(&self) -> bool {
        self.writable
    }

    fn file_size(&self) -> Result<u64> {
        Ok(u64::try_from(fd::stat(&self.fd)?.st_size).unwrap_or(0))
    }

    /// Where a range of the window lies in the file, if it is all there at this moment.
    fn locate(&self, offset: u64, length: u64, verb: &str) -> Result<u64> {
        let size = self.size()?;
        let end = offset.checked_add(length);
        if end.is_some_and(|end| end <= size) {
            // Cannot overflow: the end lies within the file.
            return Ok(self.window.offset + offset);
        }
        let attempt = format!("cannot {verb} {length} bytes at offset {offset}");
        Err(match (end, self.window.length) {
            (Some(end), Some(window)) if end <= window => Error::new(
                Kind::Gone,
                format!("{attempt}: another process truncated the file; of the range {size} bytes are left"),
            ),
            _ => Error::invalid(format!("{attempt}: the memory has {size} bytes")),
        })
    }

    fn must_be_writable(&self) -> Result<()> {
        if !self.writable {
            return Err(read_only("write to it"));
        }
        let sealed = self.seal_flags() & (SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        if !sealed.is_empty() {
            return Err(Error::new(
                Kind::PermissionDenied,
                format!("the memory is sealed against writing ({})", names(sealed).join(", ")),
            ));
        }
        Ok(())
    }

    /// None where the file system has no seals.
    fn seal_flags(&self) -> SealFlags {
        rustix::fs::fcntl_get_seals(&self.fd).unwrap_or(SealFlags::empty())
    }

    /// Runs `with` on the mapped word and its offset in the mapping.
    fn word<T>(
        &self,
        offset: u64,
        word: Word,
        write: bool,
        with: impl FnOnce(&Mapping, usize) -> Result<T>,
    ) -> Result<T> {
        let width = word.width();
        if write {
            self.must_be_writable()?;
        }
        let at = self.locate(offset, width as u64, "access a word of")?;
        if !at.is_multiple_of(width as u64) {
            return Err(Error::invalid(format!(
                "offset {offset} is not aligned: a word of {width} bytes needs a multiple of {width} in the file, \
                 and this is byte {at}"
            )));
        }
        with(&self.map_page(at, write)?, (at % self.page) as usize)
    }

    /// Maps the page that holds a byte of the file.
    fn map_page(&self, at: u64, write: bool) -> Result<Mapping> {
        let start = at - at % self.page;
        Mapping::new(self.fd.as_fd(), start, self.page as usize, write).map_err(|error| {
            if self.huge { error.help("are huge pages free? See vm.nr_hugepages") } else { error }
        })
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, length: u64, verb: &str) -> Result<()> {
        let at = self.locate(offset, length, verb)?;
        if length == 0 {
            return Ok(());
        }
        let attempt = || format!("{verb} {length} bytes at offset {offset}");
        retry(|| rustix::fs::fallocate(&self.fd, flags, at, length)).map_err(|errno| match errno {
            Errno::OPNOTSUPP | Errno::NOSYS => Error::not_supported(format!(
                "cannot {}: the file system has no such operation (fallocate(2))",
                attempt()
            )),
            errno => Error::from_errno(errno, attempt()),
        })
    }

    /// A description of the caller's own, so that his flags and ours are independent.
    pub fn open(&self, read_only: bool) -> Result<OwnedFd> {
        if !read_only && !self.writable {
            return Err(Error::new(
                Kind::PermissionDenied,
                "cannot hand this memory out for writing: it is open for reading only; ask for access=read-only",
            ));
        }
        let flags = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        fd::reopen(&self.fd, flags | OFlags::NOCTTY).attempted(|| "open the memory for the caller")
    }

    /// What is common to `Inspect()` of all memory that is a file.
    pub fn inspect(&self) -> Result<Dict> {
        let stat = fd::stat(&self.fd)?;
        let mut state = crate::named_file::inspect(&stat);
        state.extend(dict! {
            "size" => self.size()?,
            "file-size" => u64::try_from(stat.st_size).unwrap_or(0),
            // stat(2) counts in units of 512 bytes.
            "allocated" => u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            "page-size" => self.page,
            "huge-pages" => self.huge,
            "read-only" => self.read_only(),
            "seals" => self.seals(),
            "holders" => proc::file_holders(&self.fd)?,
        });
        Ok(state)
    }
}

impl Memory for SharedFile {
    fn may_block(&self) -> bool {
        !self.in_memory
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let at = self.locate(offset, length as u64, "read")?;
        let mut data = Vec::new();
        data.try_reserve_exact(length).map_err(|_| {
            Error::new(Kind::TooLarge, format!("{length} bytes are more than the service has memory for"))
        })?;
        data.resize(length, 0);
        let mut done = 0;
        while done < length {
            match retry(|| rustix::io::pread(&self.fd, &mut data[done..], at + done as u64))
                .attempted(|| format!("read {length} bytes at offset {offset}"))?
            {
                0 => {
                    return Err(Error::new(
                        Kind::Gone,
                        format!(
                            "cannot read {length} bytes at offset {offset}: another process truncated the memory \
                             meanwhile; it has {} bytes now",
                            self.size()?
                        ),
                    ));
                }
                read => done += read,
            }
        }
        Ok(data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.must_be_writable()?;
        let at = self.locate(offset, data.len() as u64, "write")?;
        let mut done = 0;
        while done < data.len() {
            let here = at + done as u64;
            done += if self.huge {
                let within = here % self.page;
                let part = (data.len() - done).min((self.page - within) as usize);
                self.map_page(here, true)?.write_bytes(within as usize, &data[done..done + part])?;
                part
            } else {
                retry(|| rustix::io::pwrite(&self.fd, &data[done..], here))
                    .attempted(|| format!("write {} bytes at offset {offset}", data.len()))?
            };
        }
        Ok(())
    }

    fn load(&self, offset: u64, kind: Word) -> Result<Word> {
        self.word(offset, kind, false, |map, at| map.load_word(at, kind))
    }

    fn store(&self, offset: u64, value: Word) -> Result<()> {
        self.word(offset, value, true, |map, at| map.store_word(at, value))
    }

    fn compare_exchange(&self, offset: u64, expected: Word, desired: Word) -> Result<(bool, Word)> {
        self.word(offset, expected, true, |map, at| map.compare_exchange_word(at, expected, desired))
    }

    fn fetch_add(&self, offset: u64, value: Word) -> Result<Word> {
        self.word(offset, value, true, |map, at| map.fetch_add_word(at, value))
    }

    fn resize(&self, size: u64) -> Result<()> {
        if !self.window.is_whole() {
            return Err(Error::invalid(
                "this endpoint shows a range of a file; attach without offset and length to resize the file",
            ));
        }
        if !self.writable {
            return Err(read_only("resize it"));
        }
        resize(&self.fd, size, self.reserve, self.huge.then_some(self.page))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        if !self.writable {
            return Err(read_only("allocate it"));
        }
        // Where a peer cuts it off at this moment, it must not become longer again.
        self.fallocate(FallocateFlags::KEEP_SIZE, offset, length, "allocate")
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.must_be_writable()?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(flags, offset, length, "punch a hole of")
    }

    fn seal(&self, seals: &[String]) -> Result<()> {
        add_seals(&self.fd, seals)
    }

    /// fdatasync(2) also writes what was stored through mappings: they share the page cache.
    fn sync(&self) -> Result<()> {
        retry(|| rustix::fs::fdatasync(&self.fd)).attempted(|| "write the memory to its file")
    }

    fn size(&self) -> Result<u64> {
        let rest = self.file_size()?.saturating_sub(self.window.offset);
        Ok(self.window.length.map_or(rest, |length| length.min(rest)))
    }

    fn seals(&self) -> Vec<String> {
        names(self.seal_flags())
    }

    fn read_only(&self) -> bool {
        self.must_be_writable().is_err()
    }

    fn source(&self) -> Result<End> {
        let fd = self.open(true)?.into();
        Ok(End { fd, kind: EndKind::File { offset: self.window.offset, length: self.size()? } })
    }

    fn sink(&self) -> Result<End> {
        self.must_be_writable()?;
        if self.huge {
            return Err(Error::not_supported("a relay cannot write into huge pages: they have no write(2)"));
        }
        let fd = self.open(false)?.into();
        Ok(End { fd, kind: EndKind::File { offset: self.window.offset, length: self.size()? } })
    }
}

fn read_only(attempt: &str) -> Error {
    Error::new(
        Kind::PermissionDenied,
        format!("this memory is open for reading only; to {attempt}, attach it with access=read-write"),
    )
}

/// Sets the size of a memory file. With `reserve`, what is new is allocated where the file system
/// can. `huge` is the page size of hugetlbfs.
pub fn resize(file: impl AsFd, size: u64, reserve: bool, huge: Option<u64>) -> Result<()> {
    let attempt = || format!("resize the memory to {size} bytes");
    let now = u64::try_from(fd::stat(&file)?.st_size).unwrap_or(0);
    // Beyond it the kernel does not only refuse, it sends SIGXFSZ (setrlimit(2)).
    if let Some(limit) = getrlimit(Resource::Fsize).current.filter(|limit| size > *limit && size > now) {
        return Err(Error::new(
            Kind::LimitExceeded,
            format!("cannot {}: files may have at most {limit} bytes (RLIMIT_FSIZE)", attempt()),
        ));
    }
    if reserve && size > now {
        match retry(|| rustix::fs::fallocate(&file, FallocateFlags::empty(), now, size - now)) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(refused_size(&file, errno, size, now, huge, attempt())),
        }
    }
    retry(|| rustix::fs::ftruncate(&file, size))
        .map_err(|errno| refused_size(&file, errno, size, now, huge, attempt()))
}

/// The errnos of ftruncate(2) and fallocate(2).
fn refused_size(
    file: impl AsFd,
    errno: Errno,
    size: u64,
    now: u64,
    huge: Option<u64>,
    attempt: String,
) -> Error {
    let seals = rustix::fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    match errno {
        Errno::PERM if size < now && seals.contains(SealFlags::SHRINK) => Error::new(
            Kind::PermissionDenied,
            format!("cannot {attempt}: it has {now} bytes and is sealed against shrinking (F_SEAL_SHRINK)"),
        ),
        Errno::PERM if size > now && seals.contains(SealFlags::GROW) => Error::new(
            Kind::PermissionDenied,
            format!("cannot {attempt}: it has {now} bytes and is sealed against growing (F_SEAL_GROW)"),
        ),
        Errno::INVAL if huge.is_some() => Error::invalid(format!(
            "cannot {attempt}: memory of huge pages has a multiple of {} bytes",
            huge.unwrap_or(0)
        )),
        Errno::FBIG | Errno::INVAL => Error::new(
            Kind::TooLarge,
            format!("cannot {attempt}: larger than a file of this file system can be ({})", name(errno)),
        ),
        errno => Error::from_errno(errno, attempt),
    }
}

/// Adds seals by their names.
pub fn add_seals(file: impl AsFd, seals: &[String]) -> Result<()> {
    let mut flags = SealFlags::empty();
    for seal in seals {
        let (_, flag) = SEALS.iter().find(|(name, _)| name == seal).ok_or_else(|| {
            Error::invalid(format!("there is no seal {seal:?}; the seals are {}", SEAL_NAMES.join(", ")))
        })?;
        flags |= *flag;
    }
    let attempt = format!("add the seals {}", seals.join(", "));
    rustix::fs::fcntl_add_seals(&file, flags).map_err(|errno| {
        let present = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        // A file of tmpfs(5) with a name has a seal from its birth that lets no other be added.
        let named = rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_nlink > 0);
        match errno {
            Errno::INVAL | Errno::PERM if errno == Errno::INVAL || named => Error::not_supported(format!(
                "cannot {attempt}: only memfds can be sealed, and this is another kind of file, or the kernel \
                 does not know the seal"
            )),
            Errno::PERM if present.contains(SealFlags::SEAL) => Error::new(
                Kind::PermissionDenied,
                format!("cannot {attempt}: the memory is sealed against further seals (F_SEAL_SEAL)"),
            ),
            Errno::BUSY => Error::new(
                Kind::Busy,
                format!("cannot {attempt}: some process has a writable mapping of the memory (EBUSY)"),
            ),
            Errno::PERM => Error::new(
                Kind::PermissionDenied,
                format!("cannot {attempt}: the file is open for reading only (EPERM)"),
            ),
            errno => Error::from_errno(errno, attempt),
        }
    })
}

/// The names of a set of seals.
pub fn names(seals: SealFlags) -> Vec<String> {
    SEALS.iter().filter(|(_, flag)| seals.contains(*flag)).map(|(name, _)| (*name).to_owned()).collect()
}
