//! The steps that fixtures are made of, and what is left to clean up.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ipc_kernel::{Endpoint, mechanism::Adoption};

use crate::{driver, suite};

pub type Shared = Arc<dyn Endpoint>;

/// Two ends: what goes into `writer` comes out of `reader`. They may be one endpoint.
pub struct Ends {
    pub reader: Shared,
    pub writer: Shared,
}

impl Ends {
    pub fn one(endpoint: Box<dyn Endpoint>) -> Self {
        let reader = Shared::from(endpoint);
        Self { writer: reader.clone(), reader }
    }

    pub fn two(reader: Box<dyn Endpoint>, writer: Box<dyn Endpoint>) -> Self {
        Self { reader: reader.into(), writer: writer.into() }
    }

    pub fn are_one(&self) -> bool {
        Arc::ptr_eq(&self.reader, &self.writer)
    }
}

/// What a check leaves behind, removed when it ends.
pub struct Scratch {
    directory: tempfile::TempDir,
    cleanups: Vec<Box<dyn FnOnce()>>,
}

impl Scratch {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ipc-conformance-").tempdir();
        Self { directory: directory.expect("a directory for temporary files"), cleanups: Vec::new() }
    }

    /// A path that nothing has.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(name())
    }

    /// Does something when the check ends.
    pub fn finally(&mut self, cleanup: impl FnOnce() + 'static) {
        self.cleanups.push(Box::new(cleanup));
    }

    /// A process that runs until the check ends, killed and reaped then.
    pub fn sleeper(&mut self) -> u32 {
        let mut child = std::process::Command::new("sleep").arg("3600").spawn().expect("sleep");
        let pid = child.id();
        self.finally(move || {
            let _ = child.kill();
            let _ = child.wait();
        });
        pid
    }

    /// Removes what has this address for Attach, if it is still there.
    pub fn remove_later(&mut self, address: String) {
        self.finally(move || {
            if let Ok(endpoint) = suite::attach(&address) {
                let _ = endpoint.remove();
            }
        });
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.cleanups.drain(..).for_each(|cleanup| cleanup());
    }
}

/// A name that no other test and no other run has.
pub fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ipc-conformance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A System V key that no other test has: random, so that no other program has it either.
pub fn key() -> u32 {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("random bytes");
    u32::from_ne_bytes(bytes).max(1)
}

pub fn created(address: &str) -> Box<dyn Endpoint> {
    suite::create(address).unwrap_or_else(|error| panic!("cannot create {address}: {error}"))
}

pub fn attached(address: &str) -> Box<dyn Endpoint> {
    suite::attach(address).unwrap_or_else(|error| panic!("cannot attach {address}: {error}"))
}

/// The two ends of a connection: listens, connects and accepts.
pub fn connection(listen: &str) -> Ends {
    let listener = created(listen);
    let client = attached(&listener.address().to_string());
    let accept = || listener.listener().expect("it listens").accept();
    let server = driver::finish("accepting the fixture's connection", accept).expect("accept");
    Ends::two(server, client)
}

/// An fd as an endpoint of this mechanism.
pub fn adopted(mechanism: &str, fd: OwnedFd) -> Box<dyn Endpoint> {
    let descriptor = crate::REGISTER.by_name(mechanism).expect("the mechanism is registered");
    match (descriptor.adopt)(fd).expect("adopting") {
        Adoption::Taken(endpoint) => endpoint,
        Adoption::Refused(_) => panic!("{mechanism} does not take its own fd"),
    }
}

/// A FIFO whose reader has opened it, so that writing does not wait for one.
pub fn fifo(scratch: &mut Scratch, options: &str) -> Ends {
    let reader = created(&format!("fifo:path={}{options}", scratch.path().display()));
    let writer = attached(&reader.address().to_string());
    let stream = reader.stream().expect("a FIFO is a stream");
    driver::must_wait("reading a FIFO without writer", stream.read(1));
    Ends::two(reader, writer)
}

/// The address for Create of a unix socket that nothing has.
pub fn unix(scratch: &mut Scratch, options: &str) -> String {
    format!("unix:path={}{options}", scratch.path().display())
}

/// Two sockets that are connected to each other.
pub fn pair(address: &str) -> Ends {
    let one = created(address);
    let peer = suite::open("unix", &*one, "end=peer").expect("the other end of the pair");
    Ends::two(adopted("unix", peer), one)
}

/// A socket that is bound and one that is connected to it.
pub fn receiver_and_sender(address: &str) -> Ends {
    let receiver = created(address);
    let sender = attached(&receiver.address().to_string());
    Ends::two(receiver, sender)
}
