//! Somebody who says that he is a message bus: what the mechanism `dbus` connects to, as its caller tells it to.
//!
//! A test says how a connection begins, and what is answered to which message; everything else is answered as a bus
//! would.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use ipc_harness::{CallError, patience};

use crate::fake_bus::{authenticate, honest};
use crate::incoming::Incoming;
use crate::raw::{self, DRIVER, Raw};
use crate::stage::entry;
use crate::wire::{self, Arg, Outgoing, bytes, no_options, text};

/// What the service is called on this bus.
pub const SERVICE: &str = ":1.1";

/// What is said instead of what a bus says.
#[derive(Clone)]
pub enum Lie {
    /// These bytes, with so many descriptors.
    Bytes(Vec<u8>, usize),
    /// This message, from this sender.
    Says(&'static str, Outgoing),
    /// Nothing.
    Silence,
    /// Nothing any more, nor is anything read.
    Deaf,
    /// The connection ends.
    End,
}

type Lies = dyn Fn(&Incoming) -> Option<Vec<Lie>> + Send + Sync;

/// Its threads end with the test's process.
pub struct Liar {
    address: String,
}

impl Liar {
    /// On this socket; whoever connects is told what the function returns, and None is honest.
    pub fn start(socket: &str, lies: impl Fn(&Incoming) -> Option<Vec<Lie>> + Send + Sync + 'static) -> Liar {
        let lies: Arc<Lies> = Arc::new(lies);
        Liar::accept(socket, move |mut stream| {
            if authenticate(&mut stream).is_ok() {
                converse(stream, &*lies);
            }
        })
    }

    /// One that says this, whatever it is asked, and nothing more; it listens until it is left.
    pub fn saying(socket: &str, words: Vec<u8>, again: usize) -> Liar {
        Liar::accept(socket, move |mut stream| {
            for _ in 0..again {
                if stream.write_all(&words).is_err() {
                    return;
                }
            }
            // Until the other side has gone.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    }

    /// One that lies when it is called, by anything that is meant for no bus.
    pub fn answering(socket: &str, lie: impl Fn(&Incoming) -> Vec<Lie> + Send + Sync + 'static) -> Liar {
        Liar::start(socket, move |message| {
            (message.kind == wire::CALL && message.field(wire::DESTINATION) != DRIVER).then(|| lie(message))
        })
    }

    fn accept(socket: &str, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Liar {
        let listener = UnixListener::bind(socket).expect("a socket in an own directory");
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).expect("an own socket");
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        Liar { address: format!("unix:path={socket}") }
    }

    /// For the key `bus`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A method of the only other client that it knows of, with more keys behind a comma.
    pub fn method(&self, more: &str) -> String {
        format!("dbus:bus={},name=org.test.X,path=/x,interface=org.test.X,member=M{more}", self.address)
    }
}

fn converse(mut stream: UnixStream, lies: &Lies) {
    let mut heard = Raw::of(stream.try_clone().expect("a copy"));
    let null = std::fs::File::open("/dev/null").expect("it is there");
    let mut serial = 1000;
    while let Some(message) = heard.next(patience() * 4) {
        let to_bus = message.kind == wire::CALL && message.field(wire::DESTINATION) == DRIVER;
        let said = lies(&message).unwrap_or_else(|| match to_bus {
            true => vec![Lie::Says(DRIVER, honest(SERVICE, &message))],
            false => Vec::new(),
        });
        for lie in said {
            let (bytes, fds) = match lie {
                Lie::Bytes(bytes, fds) => (bytes, fds),
                Lie::Says(sender, mut words) => {
                    serial += 1;
                    words.serial = serial;
                    (words.with(wire::SENDER, text(sender)).encode(), 0)
                }
                Lie::Silence => continue,
                Lie::Deaf => loop {
                    thread::park();
                },
                Lie::End => return,
            };
            // Whoever is lied to may have had enough.
            if raw::send(&mut stream, &bytes, &vec![null.as_fd(); fds]).is_err() {
                return;
            }
        }
    }
}

/// Sends a message to an endpoint.
pub fn send(raw: &mut Raw, endpoint: &str, data: &[u8]) -> Result<Incoming, CallError> {
    raw.call(endpoint, "Messages", "Send", &[bytes(data), no_options(), Arg::U32(5000)])
}

/// What is received from one: its text, and the error that it is.
#[track_caller]
pub fn receive(raw: &mut Raw, endpoint: &str) -> (String, String) {
    let received = raw.call(endpoint, "Messages", "ReceiveText", &[no_options(), Arg::U32(20_000)]);
    let args = received.expect("ReceiveText").args();
    let error = match entry(&args[1], "error") {
        Some(Arg::Variant(error)) => *error,
        _ => text(""),
    };
    match (&args[0], error) {
        (Arg::Str(data), Arg::Str(error)) => (data.clone(), error),
        other => panic!("{other:?} is no message"),
    }
}
