//! An empty environment: what the spawner starts with, for /proc/PID/environ of a worker is that of
//! the program's start, which a fork shares.
//!
//! So the program executes itself once more, without an environment; the few variables that mean
//! something to it become hidden arguments, `--carried NAME=VALUE`. The front, which needs them
//! where libraries look for them, puts them back.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use crate::Error;
use crate::error::Attempting;

/// All that is carried. LISTEN_PID is compared and left behind.
const NAMES: [&str; 5] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "DBUS_SYSTEM_BUS_ADDRESS", "JOURNAL_STREAM"];

const ARGUMENT: &str = "--carried";

/// The first descriptor of sd_listen_fds(3), and the most that FileDescriptorStoreMax= will be.
const LISTEN_FDS_START: RawFd = 3;
const LISTEN_FDS_MAX: RawFd = 4096;

/// Executes this program again with the same arguments and no environment, unless there is none;
/// `arguments` are all of `std::env::args_os()`. Returns in the program that has none.
pub fn with_empty_environment(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    if env::vars_os().next().is_none() {
        // The kernel names a process after the file executed, which is /proc/self/exe.
        return rustix::thread::set_name(c"ipcd").attempting("naming the process");
    }
    let mut arguments = arguments.into_iter();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| "ipcd".into()));
    command.args(arguments).args(Carried::from_environment().to_arguments()).env_clear();
    Err(Error::System("executing /proc/self/exe with an empty environment", command.exec()))
}

/// The variables that were in the environment of the program as it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried(Vec<(&'static str, OsString)>);

impl Carried {
    pub fn from_environment() -> Self {
        // Descriptors that were meant for a process before us are none of ours.
        let ours = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        let wanted = NAMES.into_iter().filter(|name| ours || !name.starts_with("LISTEN_"));
        Self(wanted.filter_map(|name| Some((name, env::var_os(name)?))).collect())
    }

    /// `--carried NAME=VALUE`, for each.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let assignment = |(name, value): &(&str, OsString)| {
            let mut text = OsString::from(*name);
            text.push("=");
            text.push(value);
            [ARGUMENT.into(), text]
        };
        self.0.iter().flat_map(assignment).collect()
    }

    /// From the values of all `--carried`.
    pub fn from_arguments(values: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let assignment = |text: OsString| {
            let bytes = text.as_bytes();
            let name = NAMES.into_iter().find(|name| {
                bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
            });
            let name = name.ok_or_else(|| {
                Error::Carried(format!("{ARGUMENT} takes NAME=VALUE of {}, not {text:?}", NAMES.join(", ")))
            })?;
            Ok((name, OsStr::from_bytes(&bytes[name.len() + 1..]).to_owned()))
        };
        values.into_iter().map(assignment).collect::<Result<_, _>>().map(Self)
    }

    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str())
    }

    /// Puts the variables back, for libraries that look there. Only in the front, before any thread.
    pub fn put_back(&self) -> Result<(), Error> {
        crate::process::single_threaded()?;
        for (name, value) in &self.0 {
            // SAFETY: there is no other thread that could read the environment meanwhile.
            unsafe { env::set_var(name, value) };
        }
        Ok(())
    }

    /// The descriptors of sd_listen_fds_with_names(3), once.
    pub fn take_listen_fds(&mut self) -> Result<Vec<(String, OwnedFd)>, Error> {
        let Some(count) = self.get("LISTEN_FDS") else { return Ok(Vec::new()) };
        let count = count.to_str().and_then(|text| text.parse().ok());
        let count: RawFd = count.filter(|count| (0..=LISTEN_FDS_MAX).contains(count)).ok_or_else(|| {
            Error::Carried(format!("LISTEN_FDS must be a number from 0 to {LISTEN_FDS_MAX}"))
        })?;
        let names = self.get("LISTEN_FDNAMES").unwrap_or_default().to_string_lossy().into_owned();
        let mut names = names.split(':');
        self.0.retain(|(name, _)| !name.starts_with("LISTEN_"));
        let take = |raw| {
            // SAFETY: looked at only; whether it is open is what the call finds out.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(|error| {
                let error = io::Error::from(error);
                Error::Carried(format!("LISTEN_FDS says that descriptor {raw} is open: {error}"))
            })?;
            // SAFETY: it is open, and whoever started us gave it to us; it is taken once, for the
            // variable is gone.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            Ok((names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned(), fd))
        };
        (LISTEN_FDS_START..LISTEN_FDS_START + count).map(take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_survive_as_arguments() {
        let value = OsStr::from_bytes(b"/run/x=y \xff").to_owned();
        let carried = Carried(vec![("NOTIFY_SOCKET", value), ("LISTEN_FDS", "2".into())]);
        let arguments = carried.to_arguments();
        assert!(arguments.iter().step_by(2).all(|argument| argument == ARGUMENT), "{arguments:?}");
        let values = arguments.into_iter().skip(1).step_by(2);
        assert_eq!(Carried::from_arguments(values).unwrap(), carried);
    }

    #[test]
    fn nothing_else_is_carried() {
        for text in ["LD_PRELOAD=/x.so", "NOTIFY_SOCKET", "NOTIFY_SOCKETS=/x", ""] {
            let error = Carried::from_arguments([text.into()]).unwrap_err().to_string();
            assert!(error.contains("NOTIFY_SOCKET, LISTEN_FDS"), "{error}");
        }
    }

    #[test]
    fn descriptors_that_are_not_there_are_named() {
        let mut carried = Carried(vec![("LISTEN_FDS", "9999".into())]);
        assert!(carried.take_listen_fds().unwrap_err().to_string().contains("0 to 4096"));
        assert_eq!(Carried::default().take_listen_fds().unwrap().len(), 0);
    }
}
