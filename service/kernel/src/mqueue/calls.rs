//! The calls of mq_overview(7), none of which waits.
//!
//! A message queue descriptor is a file descriptor on Linux, and everything that has
//! no call here (poll, fstat, fchmod, re-opening) is done with it as with any other.
//!
//! O_NONBLOCK belongs to the open description, which another process may share and change. So
//! sending and receiving never rely on it: they give a deadline that has passed already.

use std::{
    ffi::{CString, c_uint},
    fmt,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    str::FromStr,
};

use rustix::{
    event::EventfdFlags,
    fs::{FileType, OFlags},
    io::Errno,
};

use crate::{Error, Result, error::errno_of, fd::retry, named_file::Identity};

/// linux/magic.h: the mqueue file system.
const MQUEUE_MAGIC: u64 = 0x1980_0202;

/// The longest name, without its slash.
pub const NAME_MAX: usize = 255;

/// Priorities are below this; linux/limits.h, mq_overview(7).
pub const PRIORITIES: u32 = 32768;

/// The most messages that any queue holds and the largest that any takes, for privileged
/// processes too (HARD_MSGMAX and HARD_MSGSIZEMAX, mq_overview(7)).
pub const DEPTH_MAX: u32 = 65536;
pub const SIZE_MAX: u64 = 16 * 1024 * 1024;

/// A name that mq_open(3) takes, with its slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(CString);

impl Name {
    /// The kernel's rules, with the errno that it would answer.
    pub fn check(given: &[u8]) -> Result<Self> {
        let invalid = |why: &str| {
            Err(Error::invalid(format!(
                "the queue name {:?} {why}; it must be a slash and 1 to {NAME_MAX} bytes without further \
                 slashes (mq_overview(7))",
                String::from_utf8_lossy(given)
            )))
        };
        match given.strip_prefix(b"/") {
            None => invalid("does not begin with '/' (EINVAL)"),
            Some(b"") => invalid("is empty after the '/' (ENOENT)"),
            Some(b"." | b"..") => invalid("is that of a directory (EACCES)"),
            Some(name) if name.len() >= libc::PATH_MAX as usize => invalid("is too long (ENAMETOOLONG)"),
            Some(name) if name.contains(&b'/') => invalid("has a second '/' (EACCES)"),
            Some(name) if name.len() > NAME_MAX => invalid("is too long (ENAMETOOLONG)"),
            Some(_) => match CString::new(given) {
                Ok(name) => Ok(Self(name)),
                Err(_) => invalid("has a zero byte"),
            },
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string_lossy())
    }
}

/// What a queue is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    Read,
    Write,
}

impl Access {
    pub const WORDS: &[&str] = &["read-write", "read", "write"];

    /// The most first: for when the one that opens takes what he gets.
    pub const ALL: &[Self] = &[Self::ReadWrite, Self::Read, Self::Write];

    pub fn from_directions(reads: bool, writes: bool) -> Option<Self> {
        match (reads, writes) {
            (true, true) => Some(Self::ReadWrite),
            (true, false) => Some(Self::Read),
            (false, true) => Some(Self::Write),
            (false, false) => None,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    pub fn flags(self) -> OFlags {
        match self {
            Self::ReadWrite => OFlags::RDWR,
            Self::Read => OFlags::RDONLY,
            Self::Write => OFlags::WRONLY,
        }
    }

    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether it includes all that the other one may.
    pub fn covers(self, other: Self) -> bool {
        self == Self::ReadWrite || self == other
    }
}

impl FromStr for Access {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|access| access.word() == text).ok_or_else(|| {
            Error::invalid(format!("the access must be one of {}, not {text:?}", Self::WORDS.join(", ")))
        })
    }
}

/// mq_getattr(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The most messages that it holds.
    pub depth: u64,
    /// The largest message, in bytes.
    pub size: u64,
    /// The messages that wait.
    pub messages: u64,
}

/// Opens a queue that exists.
pub fn open(name: &Name, access: Access) -> rustix::io::Result<OwnedFd> {
    let flags = access.flags() | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // SAFETY: the name is a C string that lives during the call; without O_CREAT there are no
    // further arguments.
    owned(unsafe { libc::mq_open(name.0.as_ptr(), flags.bits().cast_signed()) })
}

/// Makes a queue; the umask takes bits from `mode`. Without depth and size the kernel has defaults.
pub fn create(
    name: &Name,
    access: Access,
    mode: u32,
    attributes: Option<(u32, u64)>,
) -> rustix::io::Result<OwnedFd> {
    let flags = access.flags() | OFlags::CREATE | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let attributes = match attributes {
        None => None,
        Some((depth, size)) => {
            // SAFETY: an mq_attr of zeroes is a valid value: all its fields are numbers.
            let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
            attributes.mq_maxmsg = depth.into();
            attributes.mq_msgsize = size.try_into().map_err(|_| Errno::INVAL)?;
            Some(attributes)
        }
    };
    let pointer = attributes.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the name is a C string and the attributes are null or a valid mq_attr, both of which
    // live during the call; the variadic arguments are those of mq_open(3) with O_CREAT.
    owned(unsafe { libc::mq_open(name.0.as_ptr(), flags.bits().cast_signed(), mode as c_uint, pointer) })
}

fn owned(number: libc::mqd_t) -> rustix::io::Result<OwnedFd> {
    if number < 0 {
        return Err(errno_of(&std::io::Error::last_os_error()));
    }
    // SAFETY: mq_open(3) has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub fn unlink(name: &Name) -> rustix::io::Result<()> {
    // SAFETY: the name is a C string that lives during the call.
    done(unsafe { libc::mq_unlink(name.0.as_ptr()) }.into()).map(drop)
}

/// Whether the kernel has message queues at all.
pub fn exist() -> bool {
    // SAFETY: the kernel looks at the descriptor first, finds that it is none, and touches nothing.
    let answer = unsafe { libc::mq_getattr(-1, std::ptr::null_mut()) };
    done(answer.into()) != Err(Errno::NOSYS)
}

/// The answer of a call that is negative when it failed.
fn done(answer: i64) -> rustix::io::Result<usize> {
    usize::try_from(answer).map_err(|_| errno_of(&std::io::Error::last_os_error()))
}

/// Whether an fd is a message queue; a directory of them is none.
pub fn is_queue(fd: impl AsFd) -> rustix::io::Result<bool> {
    let magic = rustix::fs::fstatfs(&fd)?.f_type as u64;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    Ok(magic == MQUEUE_MAGIC && kind == FileType::RegularFile)
}

/// Whether an mqueue file system is mounted there.
pub fn is_mounted(path: &std::path::Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|system| system.f_type as u64 == MQUEUE_MAGIC)
}

pub fn attributes(fd: impl AsFd) -> rustix::io::Result<Attributes> {
    // SAFETY: an mq_attr of zeroes is a valid value: all its fields are numbers.
    let mut told: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open during the call, and `told` is there to be written.
    done(unsafe { libc::mq_getattr(fd.as_fd().as_raw_fd(), &raw mut told) }.into())?;
    // The kernel has no negative ones. Their type differs between machines.
    let number = |value| u64::try_from(i128::from(value)).unwrap_or(0);
    Ok(Attributes {
        depth: number(told.mq_maxmsg),
        size: number(told.mq_msgsize),
        messages: number(told.mq_curmsgs),
    })
}

/// A moment that has passed: who gives it does not wait (mq_send(3)).
static AT_ONCE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };

/// EAGAIN: there is no room.
pub fn send(fd: impl AsFd, data: &[u8], priority: u32) -> rustix::io::Result<()> {
    at_once(|| {
        let (fd, data) = (fd.as_fd().as_raw_fd(), data);
        // SAFETY: the descriptor is open during the call, the data are readable for their length,
        // and so is the time.
        unsafe { libc::mq_timedsend(fd, data.as_ptr().cast(), data.len(), priority, &raw const AT_ONCE) }
            .into()
    })
    .map(drop)
}

/// The length and priority of a message; EAGAIN: there is none. The buffer must be at least as
/// large as the queue's largest message.
pub fn receive(fd: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<(usize, u32)> {
    let mut priority: c_uint = 0;
    let length = at_once(|| {
        let (fd, pointer, length) = (fd.as_fd().as_raw_fd(), buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the descriptor is open during the call, the buffer is writable for its length,
        // and so is the priority; the time is readable.
        unsafe {
            libc::mq_timedreceive(fd, pointer.cast(), length, &raw mut priority, &raw const AT_ONCE) as i64
        }
    })?;
    Ok((length, priority))
}

fn at_once(mut call: impl FnMut() -> i64) -> rustix::io::Result<usize> {
    match retry(|| done(call())) {
        // The description waits (no O_NONBLOCK), and the time for that was over.
        Err(Errno::TIMEDOUT) => Err(Errno::AGAIN),
        other => other,
    }
}

/// Whom the kernel tells of the next message in an empty queue (mq_notify(3)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// `signal`, `none` or `thread`.
    pub how: &'static str,
    /// The number, where it is `signal`.
    pub signal: u32,
    pub pid: u32,
}

/// What only reading the descriptor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The bytes of all messages that wait.
    pub bytes: u64,
    pub notification: Option<Notification>,
}

/// `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260`, mq_overview(7). None where the descriptor may only write.
pub fn status(fd: impl AsFd) -> Option<Status> {
    let mut text = [0; 128];
    let length = retry(|| rustix::io::pread(&fd, &mut text, 0)).ok()?;
    parse_status(std::str::from_utf8(&text[..length]).ok()?)
}

fn parse_status(text: &str) -> Option<Status> {
    let field = |key: &str| -> Option<u64> {
        let mut fields = text.split_ascii_whitespace().filter_map(|field| field.split_once(':'));
        fields.find(|(name, _)| *name == key)?.1.parse().ok()
    };
    let pid = u32::try_from(field("NOTIFY_PID")?).ok()?;
    // asm-generic/siginfo.h; 0 without any registration, too.
    let how = match i32::try_from(field("NOTIFY")?).ok()? {
        libc::SIGEV_NONE => "none",
        libc::SIGEV_THREAD => "thread",
        _ => "signal",
    };
    let signal = u32::try_from(field("SIGNO")?).ok()?;
    let notification = (pid != 0).then_some(Notification { how, signal, pid });
    Some(Status { bytes: field("QSIZE")?, notification })
}

/// What queue an fd is.
pub fn identity(fd: impl AsFd) -> rustix::io::Result<Identity> {
    Ok(Identity::from(&rustix::fs::fstat(fd)?))
}

/// Whether the process could open another file at this moment: what tells the two meanings of
/// EMFILE apart.
pub fn may_open_another() -> bool {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    !matches!(rustix::event::eventfd(0, flags), Err(Errno::MFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_queue_says() {
        let text = "QSIZE:129        NOTIFY:2     SIGNO:0     NOTIFY_PID:8260  \n";
        let thread = Notification { how: "thread", signal: 0, pid: 8260 };
        assert_eq!(parse_status(text), Some(Status { bytes: 129, notification: Some(thread) }));
        let text = "QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(parse_status(text), Some(Status { bytes: 0, notification: None }));
        let text = "QSIZE:1 NOTIFY:0 SIGNO:10 NOTIFY_PID:7";
        let signal = Notification { how: "signal", signal: 10, pid: 7 };
        assert_eq!(parse_status(text).unwrap().notification, Some(signal));
        assert_eq!(parse_status(""), None);
        assert_eq!(parse_status("QSIZE:x NOTIFY:0 SIGNO:0 NOTIFY_PID:0"), None);
    }

    #[test]
    fn names() {
        assert!(Name::check(b"/x").is_ok());
        assert!(Name::check(b"/x\xff \n").is_ok());
        assert!(Name::check(&[b"/", &[b'x'; 255][..]].concat()).is_ok());
        let long = [b"/", &[b'x'; 256][..]].concat();
        for (name, why) in [
            (&b"x"[..], "EINVAL"),
            (b"", "EINVAL"),
            (b"/", "ENOENT"),
            (b"//", "EACCES"),
            (b"/..", "EACCES"),
            (b"/a/b", "EACCES"),
            (b"/a\0b", "zero byte"),
            (&long, "ENAMETOOLONG"),
        ] {
            let error = Name::check(name).unwrap_err();
            assert!(error.text.contains(why), "{error}");
        }
    }
}
