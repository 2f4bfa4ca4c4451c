//! The socket to a message bus: one odd message does not end it.
//!
//! To zbus a message that it cannot read is the end of the connection. But a bus passes on what it
//! cannot know the meaning of, such as a header field of a later version of the protocol, as the
//! specification asks; and dbus-broker does so. Anybody could end a service with that. So those that
//! zbus does not read are left out. Who sent one gets no answer: what cannot be read says neither whose
//! nor which call it is.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr},
    },
    sync::Arc,
};

use zbus::{
    Address,
    address::{Transport, transport::UnixSocket},
    connection::socket::{Socket, Split},
};

use crate::{
    Discard,
    reader::{Reader, Unreadable},
    wire::{Wire, Writer},
};

/// The longest message of the specification.
const LONGEST: usize = 128 << 20;

/// A socket to a bus, not authenticated yet: zbus does that.
pub struct BusSocket {
    wire: Wire,
    discard: Discard,
}

impl BusSocket {
    /// `discard`: where the descriptors go of what is left out. None: it is no address of a Unix socket.
    pub fn connect(address: &Address, discard: Discard) -> io::Result<Option<Self>> {
        let Transport::Unix(unix) = address.transport() else { return Ok(None) };
        let name = match unix.path() {
            UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
            UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(OsStr::as_bytes(name))?,
            _ => return Ok(None),
        };
        let socket = std::os::unix::net::UnixStream::connect_addr(&name)?;
        Self::over(socket.into(), discard).map(Some)
    }

    /// On a socket that is connected to a bus.
    pub fn over(socket: OwnedFd, discard: Discard) -> io::Result<Self> {
        Ok(Self { wire: Wire::new(socket)?, discard })
    }
}

impl std::fmt::Debug for BusSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusSocket").field("wire", &self.wire).finish_non_exhaustive()
    }
}

impl Socket for BusSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let wire = Arc::new(self.wire);
        let writer = Writer(wire.clone());
        Split::new(Reader::new(wire, LONGEST, Unreadable::IsLeftOut, self.discard, None), writer)
    }
}
