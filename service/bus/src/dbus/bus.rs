//! Which bus: the session's, the system's, or one by its address.
//!
//! A worker of the system bus has the identity of its user, but belongs to the service: on the system
//! bus it would be taken for it. There is no session in it either. What it may reach, it reaches by
//! address, and the kernel layer refuses the sockets that are closed to it (`unix/peers.rs`).

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    str::FromStr,
};

use ipc_kernel::{
    Error, Kind, Result,
    address::unescape,
    unix::{client, name::Name, peers},
};
use zbus::{
    Address,
    address::{Transport, transport::UnixSocket},
};

/// A bus as it was asked for.
#[derive(Debug, Clone)]
pub struct Bus {
    /// `session`, `system` or the address.
    pub label: String,
    socket: Name,
}

impl Bus {
    pub fn find(label: &str) -> Result<Self> {
        let socket = match label {
            "session" | "system" if peers::any() => {
                return Err(Error::new(
                    Kind::PermissionDenied,
                    format!(
                        "bus={label} is closed here: a process of the service would be taken for the service there. \
                         bus=unix:path=… with the address of a bus of your own works, and so does everything with the \
                         service on your session bus"
                    ),
                ));
            }
            "session" => Address::session().ok().and_then(|address| socket(&address)),
            "system" => Address::system().ok().and_then(|address| socket(&address)),
            addresses => {
                let parsed = addresses.split(';').filter_map(|address| Address::from_str(address).ok());
                parsed.into_iter().find_map(|address| socket(&address))
            }
        };
        let socket = socket.ok_or_else(|| match label {
            "session" | "system" => Error::new(
                Kind::Unavailable,
                format!(
                    "the address of the {label} bus (DBUS_{}_BUS_ADDRESS) is none of a unix socket; give bus=unix:path=…",
                    label.to_uppercase()
                ),
            ),
            other => Error::invalid(format!(
                "the key \"bus\" must be session, system, or the address of a bus as unix:path=… or unix:abstract=…, \
                 with %2c for a comma in it, not {other:?}"
            )),
        })?;
        Ok(Self { label: label.to_owned(), socket })
    }

    /// Connects; what is said first is up to the caller.
    pub fn connect(&self) -> Result<OwnedFd> {
        client::connect(&self.socket)
            .map_err(|error| error.help(format!("that is where bus={} is", self.label)))
    }
}

/// Other transports run programs, or cannot say who is there. zbus leaves values as they are written, with `%62` for a
/// `b` (D-Bus specification, "Server Addresses").
fn socket(address: &Address) -> Option<Name> {
    let Transport::Unix(unix) = address.transport() else { return None };
    let plain = |value: &OsStr| unescape("", value.to_str()?).ok();
    match unix.path() {
        UnixSocket::File(path) => {
            plain(path.as_os_str()).map(|path| Name::Path(OsString::from_vec(path).into()))
        }
        UnixSocket::Abstract(name) => plain(name).map(Name::Abstract),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        for (label, name) in [
            ("unix:path=/tmp/a%2cb", Name::Path("/tmp/a,b".into())),
            (
                "unix:abstract=/tmp/%62us,guid=0123456789abcdef0123456789abcdef",
                Name::Abstract(b"/tmp/bus".to_vec()),
            ),
            ("tcp:host=x,port=1;unix:path=/%25", Name::Path("/%".into())),
        ] {
            assert_eq!(Bus::find(label).expect("an address").socket, name, "{label}");
        }
        for label in ["unix:path=/tmp/%6", "unix:path=/tmp/%zz", "unix:path=", "unix:tmpdir=/tmp"] {
            Bus::find(label).expect_err(label);
        }
    }
}
