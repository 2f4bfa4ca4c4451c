//! Sockets that are connected by another user, used here.
//!
//! The bus reads who a client is from the socket (SO_PEERCRED): the process that connected it. So a small program
//! runs as the user, connects whatever it is asked to and passes the descriptor back. It lives as long as the bus
//! of the stage does, for the service looks at the process behind a connection while that calls.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::process::{Process, readable_within};
use crate::tools::patience;

/// Standard input is a socket: a path a line comes in, a connected socket goes out, or the errno.
pub(super) const SCRIPT: &str = "import os,socket\n\
    control=socket.socket(fileno=os.dup(0))\n\
    for path in control.makefile('r'):\n\
    \x20 s=socket.socket(socket.AF_UNIX)\n\
    \x20 try:\n\
    \x20   s.connect(path.rstrip('\\n'))\n\
    \x20   socket.send_fds(control,[b'connected'],[s.fileno()])\n\
    \x20 except OSError as e: control.send(str(e).encode())\n\
    \x20 s.close()";

/// The program of one user.
pub(super) struct Connector {
    control: UnixStream,
    process: Process,
}

impl Connector {
    /// `command` is python3 as the user.
    pub(super) fn start(mut command: Command) -> Connector {
        let (control, theirs) = UnixStream::pair().expect("a socket pair");
        command.args(["-c", SCRIPT]).stdin(Stdio::from(OwnedFd::from(theirs)));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let process = Process::spawn_prepared(&mut command);
        let mut connector = Connector { control, process };
        // Once it answers it is the user's: what starts it changes its identity first.
        connector.connect("/nonexistent").expect_err("there is no such socket");
        connector
    }

    /// The process that the bus and the service see behind the connections (the program itself, or what it was
    /// started by when that waits for it).
    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(super) fn connect(&mut self, path: &str) -> Result<UnixStream, String> {
        let said = |error: std::io::Error| format!("{error}: {}", self.process.stderr().text());
        self.control.write_all(format!("{path}\n").as_bytes()).map_err(said)?;
        if !readable_within(&self.control, patience()) {
            return Err(format!("no answer: {}", self.process.stderr().text()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut data = [0; 512];
        let received = rustix::net::recvmsg(
            &self.control,
            &mut [IoSliceMut::new(&mut data)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = received.map_err(|error| said(error.into()))?.bytes;
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        match fds.flatten().next() {
            Some(fd) => Ok(UnixStream::from(fd)),
            None if count == 0 => {
                self.process.stderr().wait_end();
                Err(format!("it has ended: {}", self.process.stderr().text()))
            }
            None => Err(String::from_utf8_lossy(&data[..count]).into_owned()),
        }
    }
}
