//! What the tests of memory and semaphores share: endpoints by address, names that nobody else
//! uses, and a Python program as the other process.

#![allow(dead_code)] // Each test file uses some of it.

mod c;

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Error, Kind, Opening, Parameters, Readiness, Result, mechanisms,
};

pub fn create(address: &str) -> Result<Box<dyn Endpoint>> {
    let address = Address::parse(address)?;
    let row = mechanisms::by_scheme(&address.scheme)?;
    done((row.create)(&Parameters::check(row.create_parameters, &[], &address, &Dict::new())?)?)
}

pub fn attach(address: &str) -> Result<Box<dyn Endpoint>> {
    done(attaching(address)?)
}

pub fn attaching(address: &str) -> Result<Opening> {
    let address = Address::parse(address)?;
    let row = mechanisms::by_scheme(&address.scheme)?;
    (row.attach)(&Parameters::check(row.attach_parameters, &[], &address, &Dict::new())?)
}

pub fn done(opening: Opening) -> Result<Box<dyn Endpoint>> {
    let mut pending = match opening {
        Opening::Done(endpoint) => return Ok(endpoint),
        Opening::Pending(pending) => pending,
    };
    loop {
        match pending()? {
            Attempt::Done(endpoint) => return Ok(endpoint),
            Attempt::Wait(Readiness::After(pause)) => std::thread::sleep(pause),
            Attempt::Wait(other) => panic!("a semaphore set is looked at again and again, not {other:?}"),
        }
    }
}

/// The options of an `Open()`, as an address without a scheme: `access=read-only`.
pub fn options(mechanism: &str, text: &str) -> Parameters {
    let row = mechanisms::by_name(mechanism).unwrap();
    let address = Address::parse(&format!("{mechanism}:{text}")).unwrap();
    Parameters::check(row.open_parameters, &[], &address, &Dict::new()).unwrap()
}

/// Fails unless the error is of this kind and says this.
#[track_caller]
pub fn refused<T>(result: Result<T>, kind: Kind, phrase: &str) {
    match result {
        Ok(_) => panic!("accepted, where {kind:?} was expected: {phrase}"),
        Err(Error { kind: found, text }) => {
            assert_eq!(found, kind, "{text}");
            assert!(text.contains(phrase), "{text:?} does not say {phrase:?}");
        }
    }
}

/// The errno that an error's text names; else its kind.
pub fn errno(error: &Error) -> String {
    let mut words = error.text.split(|c: char| !c.is_ascii_alphanumeric());
    let is_errno = |word: &&str| {
        word.len() > 3
            && word.starts_with('E')
            && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    words.rfind(is_errno).map_or_else(|| format!("{:?}", error.kind), str::to_owned)
}

/// A name that no other test and no other process uses.
pub fn unique() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("ipc-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A path in /tmp that is unlinked at the end.
pub struct TemporaryPath(pub PathBuf);

impl TemporaryPath {
    pub fn new() -> Self {
        Self(std::env::temp_dir().join(unique()))
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Looks again until it is so; fails after ten seconds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "in ten seconds it did not come about that {what}");
        std::thread::yield_now();
    }
}

/// A Python process that says a line when it is ready and a line for each line that it is told.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the program; `None`, visibly, where there is no Python.
    pub fn start(program: &str, arguments: &[&str]) -> Option<Self> {
        let mut python = Command::new("python3");
        python.args(["-u", "-c", program]).args(arguments);
        match Self::run(python) {
            Ok(peer) => Some(peer),
            Err(error) => {
                eprintln!("SKIPPED: cannot start python3: {error}");
                None
            }
        }
    }

    /// Starts a command and waits for its first line.
    fn run(mut command: Command) -> std::io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, input, output };
        assert_eq!(peer.line(), "ready");
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }
}

impl Peer {
    /// Kills it; says which process it was.
    pub fn kill(self) -> u32 {
        self.pid()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
