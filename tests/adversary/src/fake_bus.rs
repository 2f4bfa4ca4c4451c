//! A bus that lies: enough of a message bus for the service to start on it, and credentials as the test wants them.
//!
//! It answers the driver's calls itself, hands a call of a made-up client to the service, and keeps what the
//! service answers. Whatever the service asks about its callers is written down.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipc_harness::{CallError, NAME, TempDir, patience, temp_dir};

use crate::incoming::Incoming;
use crate::raw::{self, DRIVER, Raw, outcome};
use crate::wire::{self, Arg, Outgoing, no_options, text};

/// What GetConnectionCredentials answers.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// This dictionary.
    Are(Arg),
    /// An error of this name.
    Fail(&'static str),
    /// This dictionary, in a reply that comes from another client.
    Forged(Arg),
    /// A reply that is no dictionary.
    Garbage,
    /// Nothing, ever.
    Silence,
}

/// A running fake. Its thread ends with the test's process.
pub struct FakeBus {
    shared: Arc<Shared>,
    address: String,
    _dir: TempDir,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    service: Option<UnixStream>,
    credentials: Credentials,
    /// Whom the service asked for: method and name.
    asked: Vec<(String, String)>,
    answers: VecDeque<Incoming>,
    serial: u32,
}

/// The service's own unique name.
const SERVICE: &str = ":1.1";
/// A client who answers for the bus. A real one lets nobody do that.
const FORGER: &str = ":1.66";
pub const GUID: &str = "0123456789abcdef0123456789abcdef";

impl FakeBus {
    pub fn start() -> FakeBus {
        let dir = temp_dir();
        let socket = dir.path().join("bus");
        let listener = UnixListener::bind(&socket).expect("a socket in an own directory");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("an own socket");
        let state = State {
            service: None,
            credentials: Credentials::Silence,
            asked: Vec::new(),
            answers: VecDeque::new(),
            serial: 1000,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                thread::spawn(move || serve(&shared, stream));
            }
        });
        FakeBus { shared, address: format!("unix:path={}", socket.display()), _dir: dir }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on.
    pub fn set_credentials(&self, credentials: Credentials) {
        self.shared.lock().credentials = credentials;
    }

    /// What the service asked about its callers: method and name.
    pub fn asked(&self) -> Vec<(String, String)> {
        self.shared.lock().asked.clone()
    }

    /// A call of the manager by the client of this name, and its answer; None if none comes.
    pub fn call(
        &self,
        sender: &str,
        verb: &str,
        address: &str,
        bound: Duration,
    ) -> Option<Result<Incoming, CallError>> {
        let call = Raw::message("/org/example/IPC", "", verb, &[text(address), no_options()]);
        let serial = self.send(sender, call, &[]);
        self.answer(sender, serial, bound)
    }

    /// A call by the client of this name, with these descriptors; its serial.
    pub fn send(&self, sender: &str, call: Outgoing, fds: &[BorrowedFd<'_>]) -> u32 {
        let mut state = self.shared.lock();
        state.serial += 1;
        let mut call = call.with(wire::SENDER, text(sender));
        call.serial = state.serial;
        state.send(&call, fds);
        call.serial
    }

    /// The answer to a call of this client; None if none comes.
    pub fn answer(&self, sender: &str, serial: u32, bound: Duration) -> Option<Result<Incoming, CallError>> {
        let mut state = self.shared.lock();
        let deadline = Instant::now() + bound;
        loop {
            let is_it = |answer: &Incoming| {
                answer.number(wire::REPLY_SERIAL) == serial && answer.field(wire::DESTINATION) == sender
            };
            if let Some(at) = state.answers.iter().position(is_it) {
                return state.answers.remove(at).map(outcome);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self, message: &Outgoing, fds: &[BorrowedFd<'_>]) {
        let service = self.service.as_mut().expect("the service is connected");
        raw::send(service, &message.encode(), fds).expect("the service reads");
    }

    fn answer(&mut self, call: &Incoming) {
        let member = call.field(wire::MEMBER).to_owned();
        let about = match call.args().first() {
            Some(Arg::Str(name)) => name.clone(),
            _ => String::new(),
        };
        let mut reply = match (member.as_str(), &self.credentials) {
            ("GetConnectionCredentials", credentials) => match credentials {
                Credentials::Are(dict) | Credentials::Forged(dict) => {
                    Outgoing::reply(SERVICE, call.serial, std::slice::from_ref(dict))
                }
                Credentials::Fail(name) => Outgoing::error(SERVICE, call.serial, name, "the bus says so"),
                Credentials::Garbage => Outgoing::reply(SERVICE, call.serial, &[Arg::U32(0)]),
                Credentials::Silence => Outgoing::reply("", 0, &[]),
            },
            // Who falls back to this is caught: it says that everybody is root.
            ("GetConnectionUnixUser" | "GetConnectionUnixProcessID", _) => {
                Outgoing::reply(SERVICE, call.serial, &[Arg::U32(0)])
            }
            ("GetNameOwner", _) if about == NAME => Outgoing::reply(SERVICE, call.serial, &[text(SERVICE)]),
            _ => honest(SERVICE, call),
        };
        let forged =
            member == "GetConnectionCredentials" && matches!(self.credentials, Credentials::Forged(_));
        let sender = if forged { FORGER } else { DRIVER };
        if member.starts_with("GetConnection") {
            self.asked.push((member, about));
        }
        if call.flags & wire::NO_REPLY == 0 && reply.fields.contains(&(wire::DESTINATION, text(SERVICE))) {
            self.serial += 1;
            reply.serial = self.serial;
            self.send(&reply.with(wire::SENDER, text(sender)), &[]);
        }
    }
}

fn serve(shared: &Shared, mut stream: UnixStream) {
    if authenticate(&mut stream).is_err() {
        return;
    }
    shared.lock().service = Some(stream.try_clone().expect("a copy"));
    let mut raw = Raw::of(stream);
    while let Some(message) = raw.next(patience() * 4) {
        let mut state = shared.lock();
        match message.kind {
            wire::CALL if message.field(wire::DESTINATION) == DRIVER => state.answer(&message),
            wire::RETURN | wire::ERROR => state.answers.push_back(message),
            _ => {}
        }
        shared.changed.notify_all();
    }
}

/// What a bus answers to whom it calls by this name. Whatever name is asked for has an owner, `:1.9`.
pub fn honest(name: &str, call: &Incoming) -> Outgoing {
    let reply = |args: &[Arg]| Outgoing::reply(name, call.serial, args);
    match call.field(wire::MEMBER) {
        "Hello" => reply(&[text(name)]),
        "RequestName" | "ReleaseName" => reply(&[Arg::U32(1)]),
        "AddMatch" | "RemoveMatch" => reply(&[]),
        "GetId" => reply(&[text(GUID)]),
        "NameHasOwner" => reply(&[Arg::Bool(true)]),
        "GetNameOwner" => match call.args().first() {
            Some(Arg::Str(asked)) if asked.starts_with(':') => reply(&[text(asked.clone())]),
            Some(Arg::Str(asked)) if asked == NAME => {
                Outgoing::error(name, call.serial, "org.freedesktop.DBus.Error.NameHasNoOwner", "nobody")
            }
            _ => reply(&[text(":1.9")]),
        },
        _ => {
            let error = "org.freedesktop.DBus.Error.UnknownMethod";
            Outgoing::error(name, call.serial, error, "this bus does not know it")
        }
    }
}

/// The server's side of the authentication: everybody is who he says.
pub fn authenticate(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte[0] == 0 && line.is_empty() {
            continue;
        }
        line.push(byte[0]);
        if !line.ends_with(b"\r\n") {
            continue;
        }
        let said = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        line.clear();
        let answer = match said.split(' ').next().unwrap_or_default() {
            "BEGIN" => return Ok(()),
            "AUTH" if said == "AUTH EXTERNAL" => "DATA".to_owned(),
            "AUTH" | "DATA" => format!("OK {GUID}"),
            "NEGOTIATE_UNIX_FD" => "AGREE_UNIX_FD".to_owned(),
            _ => "ERROR".to_owned(),
        };
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}
