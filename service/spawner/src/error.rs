//! Why the spawner cannot do its work, and what would help.

use std::{fmt, io};

#[derive(Debug)]
pub enum Error {
    /// Not started as root.
    NotRoot,
    /// There are threads already, so fork(2) is not safe any more.
    Threads,
    /// The environment is not empty.
    Environment,
    /// /etc/passwd has no such user.
    NoSuchUser(String),
    /// The front may not run as this user.
    UnfitUser(String),
    /// The front said that starting it again is of no use.
    FrontGaveUp,
    /// A variable or an argument that carries one is not as it must be.
    Carried(String),
    /// seccomp(2) refused the filter.
    Sandbox(seccompiler::Error),
    /// A system call failed: what was attempted, and why it failed.
    System(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot => f.write_str(
                "only root can start processes with other users' identities: start ipcd as root (with \
                 systemd: systemctl start ipcd), or serve the session bus (--bus session)",
            ),
            Self::Threads => f.write_str("the spawner must start before any thread does"),
            Self::Environment => f.write_str(
                "the environment must be empty, for every user can read that of his worker: call \
                 with_empty_environment first",
            ),
            Self::NoSuchUser(user) => {
                write!(f, "there is no user {user:?} in /etc/passwd: create it (useradd --system {user})")
            }
            Self::UnfitUser(user) => write!(
                f,
                "the front must not run as {user:?}: name a user of its own, neither root nor nobody, with \
                 a group of its own"
            ),
            Self::FrontGaveUp => f.write_str("the front ended for good; its last message says why"),
            Self::Carried(text) => write!(f, "{text}"),
            Self::Sandbox(error) => {
                write!(f, "entering the sandbox (the kernel needs CONFIG_SECCOMP_FILTER): {error}")
            }
            Self::System(attempt, error) => write!(f, "{attempt}: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(_, error) => Some(error),
            Self::Sandbox(error) => Some(error),
            _ => None,
        }
    }
}

/// `.attempting("open /dev/null")` on the results of system calls.
pub(crate) trait Attempting<T> {
    fn attempting(self, attempt: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Attempting<T> for Result<T, E> {
    fn attempting(self, attempt: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::System(attempt, error.into()))
    }
}
