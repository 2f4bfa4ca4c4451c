//! The lines before the messages (D-Bus specification, "Authentication Protocol"), looked at before zbus does.
//!
//! zbus keeps any number of bytes of a line, and any number of descriptors, and panics at an empty line. Whoever a
//! service connects to could end it with that.

use std::io;

use crate::{bad, wire::FDS};

/// The most bytes of an authentication; libdbus allows 16 KiB.
const LONGEST: usize = 16 << 10;

#[derive(Debug, Default)]
pub struct Handshake {
    bytes: usize,
    fds: usize,
    place: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Beginning,
    Inside,
    /// A message has begun: zbus reads somewhat more than the lines.
    Behind,
}

impl Handshake {
    /// Looks at what was read. Err: it is no authentication that zbus should see.
    pub fn check(&mut self, bytes: &[u8], fds: usize) -> io::Result<()> {
        self.bytes += bytes.len();
        self.fds += fds;
        if self.bytes > LONGEST || self.fds > FDS {
            return Err(bad(format!(
                "an authentication of more than {LONGEST} bytes or {FDS} file descriptors"
            )));
        }
        for byte in bytes {
            self.place = match (self.place, byte) {
                // No line of a bus begins as a message does, with the byte order.
                (Place::Behind, _) | (Place::Beginning, b'l' | b'B') => Place::Behind,
                (Place::Beginning, b'\n') => {
                    return Err(bad("an empty line in the authentication".to_owned()));
                }
                (_, b'\n') => Place::Beginning,
                _ => Place::Inside,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_looked_at_and_messages_are_not() {
        let mut usual = Handshake::default();
        usual.check(b"OK 0123\r", 0).expect("half a line");
        usual.check(b"\nAGREE_UNIX_FD\r\nl\x02\n\n", 1).expect("lines, and a message");
        for empty in [&b"\n"[..], b"OK 0123\r\n\n"] {
            let error = Handshake::default().check(empty, 0).expect_err("refused");
            assert!(error.to_string().contains("empty line"), "{error}");
        }
        let mut endless = Handshake::default();
        endless.check(&vec![b'x'; LONGEST], 0).expect("it fits");
        endless.check(b"x", 0).expect_err("too long");
        Handshake::default().check(b"", FDS + 1).expect_err("too many");
    }
}
