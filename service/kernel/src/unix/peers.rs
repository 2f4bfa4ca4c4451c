//! Unix sockets that this process must not talk to.
//!
//! Some services tell who speaks by the process at the other end: systemd and the journal by its
//! control group, a message bus by the socket itself. A process that acts for a user, but belongs
//! to a service, would speak for the service there. So a worker of the system bus forbids itself
//! these peers, once, when it starts ([`forbid`]); where nobody did, nothing is looked at.
//!
//! A peer is known by the name that it is bound to, which the kernel tells of a connected socket
//! whatever way led there, and by the path of the inode that was found, as a name may be relative
//! to another directory.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{
    Error, Kind, Result, fd,
    unix::name::{self, Name, Target},
};

static FORBIDDEN: OnceLock<Vec<Name>> = OnceLock::new();

/// Forbids peers, for the rest of the process's life: a path stands for itself and for everything
/// below it. Says false if it was done before; then the first ones stay.
pub fn forbid(peers: Vec<Name>) -> bool {
    FORBIDDEN.set(peers).is_ok()
}

/// Whether this process acts for a user but belongs to a service, so that there are such peers.
pub fn any() -> bool {
    FORBIDDEN.get().is_some()
}

/// Err(PermissionDenied) if the socket is connected to a forbidden peer.
pub fn check_connected(socket: impl AsFd) -> Result<()> {
    let Some(forbidden) = FORBIDDEN.get() else { return Ok(()) };
    match name::remote(socket) {
        Ok(Some(peer)) => refuse(forbidden, &peer),
        // Without a name, or not connected.
        Ok(None) | Err(Errno::NOTCONN) => Ok(()),
        // Whom it cannot be asked about is not talked to.
        Err(errno) => Err(Error::from_errno(errno, "see whom the socket is connected to")),
    }
}

/// The same for where a datagram is to go.
pub fn check_target(name: &Name, target: &Target) -> Result<()> {
    let Some(forbidden) = FORBIDDEN.get() else { return Ok(()) };
    refuse(forbidden, name)?;
    check_inode(forbidden, target.file.as_ref())?;
    match bound_name(&target.address) {
        Some(bound) => refuse(forbidden, &bound),
        None => Ok(()),
    }
}

/// The same for what was found at a path, before it is connected to.
pub fn check_found(target: &Target) -> Result<()> {
    match FORBIDDEN.get() {
        Some(forbidden) => check_inode(forbidden, target.file.as_ref()),
        None => Ok(()),
    }
}

fn check_inode(forbidden: &[Name], file: Option<&OwnedFd>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let path = fd::link(file)?;
    match Name::from_bytes(&path) {
        Some(path) => refuse(forbidden, &path),
        None => Ok(()),
    }
}

/// What a datagram socket is bound to, asked by connecting another one to it. None: it is of
/// another type, or takes messages from one peer only; then sending to it fails as well.
fn bound_name(address: &SocketAddrUnix) -> Option<Name> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    rustix::net::connect(&probe, address).ok()?;
    name::remote(&probe).ok()?
}

fn refuse(forbidden: &[Name], peer: &Name) -> Result<()> {
    if !forbidden.iter().any(|name| covers(name, peer)) {
        return Ok(());
    }
    Err(Error::new(
        Kind::PermissionDenied,
        format!(
            "{} is closed to this service: the process there tells its clients apart by their process, and would take \
             what you say for the service's; connect to it yourself",
            peer.describe()
        ),
    ))
}

fn covers(forbidden: &Name, peer: &Name) -> bool {
    match (forbidden, peer) {
        // By whole components: /run/dbus does not cover /run/dbus-2.
        (Name::Path(directory), Name::Path(path)) => Path::starts_with(path, directory),
        (Name::Abstract(one), Name::Abstract(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_covers_what_is_below_it() {
        let path = |text: &str| Name::Path(text.into());
        assert!(covers(&path("/run/systemd"), &path("/run/systemd/notify")));
        assert!(covers(&path("/run/dbus/system_bus_socket"), &path("/run/dbus/system_bus_socket")));
        assert!(!covers(&path("/run/systemd"), &path("/run/systemd-x/notify")));
        assert!(!covers(&path("/run/systemd"), &Name::Abstract(b"/run/systemd".to_vec())));
        assert!(covers(&Name::Abstract(b"bus".to_vec()), &Name::Abstract(b"bus".to_vec())));
        assert!(!covers(&Name::Abstract(b"bus".to_vec()), &Name::Abstract(b"bus2".to_vec())));
    }
}
