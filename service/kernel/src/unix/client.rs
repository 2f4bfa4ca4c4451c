//! A connected stream socket, for whoever speaks a protocol on it by himself.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::{
    name::{Name, Target},
    peers,
};
use crate::{Error, Kind, Result, error::Attempted, fd::retry};

/// Connects without waiting; a forbidden peer ([`peers`]) is refused.
pub fn connect(name: &Name) -> Result<OwnedFd> {
    let target = Target::find(name)?;
    peers::check_found(&target)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .attempted(|| "create a unix socket")?;
    let attempt = || format!("connect to {}", name.describe());
    match retry(|| rustix::net::connect(&socket, &target.address)) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED) => {
            return Err(Error::new(
                Kind::NotFound,
                format!("cannot {}: nobody listens there (ECONNREFUSED)", attempt()),
            ));
        }
        Err(errno) => return Err(Error::from_errno(errno, attempt())),
    }
    peers::check_connected(&socket)?;
    Ok(socket)
}
