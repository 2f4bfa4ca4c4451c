//! Errors that carry a meaning, what was attempted, the errno and what would help.
//!
//! A mechanism file turns errnos into meanings right under the system call, following the list
//! in the man page ([`Error::from_errno`] has the errnos that mean the same everywhere). The bus
//! layer gives each [`Kind`] its name on the wire; nothing else names errors.

use std::fmt;

use rustix::io::Errno;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means to the caller. On the wire: `org.example.IPC.Error.<Kind>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A parameter is unknown, missing, given twice, of the wrong type or out of range.
    InvalidArgument,
    /// The address does not follow the grammar.
    InvalidAddress,
    /// No mechanism has this name.
    NoSuchMechanism,
    /// No endpoint or relay has this object path.
    NoSuchEndpoint,
    /// Create found something of this name: Create never opens what exists.
    Exists,
    /// Attach found nothing of this name: Attach never creates.
    NotFound,
    /// The kernel refuses the caller.
    PermissionDenied,
    /// The caller is confined: what it names may be something else outside of its confinement.
    Confined,
    /// The mechanism, the kernel or this version of it does not offer this.
    NotSupported,
    /// It would have to wait, and the caller did not want to; or it is in use.
    Busy,
    /// It did not happen in time.
    Timeout,
    /// A limit of the service or of the kernel is reached; the text names it and its value.
    LimitExceeded,
    /// The payload is larger than what one call or one message may carry.
    TooLarge,
    /// This end was closed or shut down, or the peer has gone.
    Closed,
    /// The kernel object was removed under the endpoint.
    Gone,
    /// Events were lost.
    Overflow,
    /// The machine does not offer this now; the text says what to do.
    Unavailable,
    /// The wait was given up: the endpoint was closed or the service stops.
    Cancelled,
    /// An errno with no better name; on the wire `org.example.IPC.Error.Errno.<NAME>`.
    Errno(Errno),
}

/// A failed operation: `what` was attempted and on what, why it failed, what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub text: String,
}

impl Error {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, text)
    }

    pub fn not_supported(text: impl Into<String>) -> Self {
        Self::new(Kind::NotSupported, text)
    }

    /// The errnos that mean the same for every call. `attempt` reads "open the FIFO /tmp/x".
    pub fn from_errno(errno: Errno, attempt: impl fmt::Display) -> Self {
        let kind = match errno {
            Errno::EXIST => Kind::Exists,
            Errno::NOENT => Kind::NotFound,
            Errno::ACCESS | Errno::PERM => Kind::PermissionDenied,
            Errno::OPNOTSUPP | Errno::NOSYS => Kind::NotSupported,
            Errno::AGAIN | Errno::BUSY => Kind::Busy,
            Errno::TIMEDOUT => Kind::Timeout,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC | Errno::DQUOT => Kind::LimitExceeded,
            Errno::TOOMANYREFS => Kind::LimitExceeded,
            Errno::MSGSIZE | Errno::TOOBIG => Kind::TooLarge,
            Errno::PIPE | Errno::CONNRESET | Errno::SHUTDOWN => Kind::Closed,
            Errno::IDRM => Kind::Gone,
            Errno::INVAL => Kind::InvalidArgument,
            other => Kind::Errno(other),
        };
        let help = match errno {
            Errno::MFILE => "; the process is at its limit of open files (RLIMIT_NOFILE)",
            Errno::NFILE => "; the machine is at its limit of open files (fs.file-max)",
            Errno::TOOMANYREFS => "; too many file descriptors are in flight (RLIMIT_NOFILE)",
            Errno::NOSPC => "; the file system is full",
            _ => "",
        };
        Self::new(kind, format!("cannot {attempt}: {}{help}", describe(errno)))
    }

    /// Adds what would help.
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.text.push_str("; ");
        self.text.push_str(&help.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// The system's words for an errno, with its name: "No such file or directory (ENOENT)".
pub fn describe(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("{text} ({})", name(errno))
}

/// The errno of an I/O error of the standard library or of a crate that uses it.
pub fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The errno in an answer of the kernel's, where it is a negative number; EIO for what no errno is.
pub fn errno_in(code: i32) -> Errno {
    match code.checked_neg() {
        Some(number @ 1..4096) => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

/// The errno of the call to the C library that failed just now.
pub fn last_errno() -> Errno {
    errno_of(&std::io::Error::last_os_error())
}

/// `?`-friendly: gives a system call's errno its meaning. `attempt` is only evaluated on failure.
pub trait Attempted<T> {
    fn attempted<D: fmt::Display>(self, attempt: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Attempted<T> for std::result::Result<T, Errno> {
    fn attempted<D: fmt::Display>(self, attempt: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::from_errno(errno, attempt()))
    }
}

impl<T> Attempted<T> for std::io::Result<T> {
    fn attempted<D: fmt::Display>(self, attempt: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::from_errno(errno_of(&error), attempt()))
    }
}

/// The errno's name, as in errno(3). Linux has a fixed set; the names are the same everywhere.
pub fn name(errno: Errno) -> &'static str {
    macro_rules! names {
        ($($name:ident)*) => {
            match errno.raw_os_error() {
                $(libc::$name => stringify!($name),)*
                _ => "EUNKNOWN",
            }
        };
    }
    names! {
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT
        ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG
        ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY
        ELOOP ENOMSG EIDRM ENOSTR ENODATA ETIME ENOSR ENOLINK EPROTO EBADMSG EOVERFLOW EILSEQ
        EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT
        ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN
        ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN
        ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE
        EDQUOT ECANCELED EOWNERDEAD ENOTRECOVERABLE ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED
        ENOMEDIUM EMEDIUMTYPE EREMOTEIO
    }
}
