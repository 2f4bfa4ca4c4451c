//! Doing the waiting that the kernel layer leaves to its callers, with a watchdog.

use std::{
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Opening, Parameters, Readiness, Result, Value,
    blocked::Sent,
    mechanisms::inet::DESCRIPTOR,
    shape::{Message, Outgoing},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    thread::UnshareFlags,
};

const WATCHDOG: Duration = Duration::from_secs(20);

pub fn create(address: &str) -> Result<Box<dyn Endpoint>> {
    let address = Address::parse(address)?;
    let parameters = Parameters::check(DESCRIPTOR.create_parameters, &[], &address, &Dict::new())?;
    opened((DESCRIPTOR.create)(&parameters)?)
}

pub fn attach(address: &str) -> Result<Box<dyn Endpoint>> {
    let address = Address::parse(address)?;
    let parameters = Parameters::check(DESCRIPTOR.attach_parameters, &[], &address, &Dict::new())?;
    opened((DESCRIPTOR.attach)(&parameters)?)
}

fn opened(opening: Opening) -> Result<Box<dyn Endpoint>> {
    match opening {
        Opening::Done(endpoint) => Ok(endpoint),
        Opening::Pending(step) => wait(step),
    }
}

/// The error of something that must fail.
pub fn failure(result: Result<Box<dyn Endpoint>>, context: &str) -> Error {
    match result {
        Ok(endpoint) => panic!("{context} should fail, but gave {}", endpoint.address()),
        Err(error) => error,
    }
}

/// Attempts until it is done.
pub fn wait<T>(mut attempt: impl FnMut() -> Result<Attempt<T>>) -> Result<T> {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        match attempt()? {
            Attempt::Done(value) => return Ok(value),
            Attempt::Wait(readiness) => {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "nothing happened within {WATCHDOG:?}: {readiness:?}");
                sleep_until(&readiness, left);
            }
        }
    }
}

fn sleep_until(readiness: &Readiness, mut at_most: Duration) {
    let mut fds: Vec<(Fd, PollFlags)> = Vec::new();
    flatten(readiness, &mut fds, &mut at_most);
    let mut polled: Vec<_> = fds.iter().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
    let timeout =
        Timespec { tv_sec: at_most.as_secs().try_into().unwrap(), tv_nsec: at_most.subsec_nanos().into() };
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
}

fn flatten(readiness: &Readiness, fds: &mut Vec<(Fd, PollFlags)>, at_most: &mut Duration) {
    match readiness {
        Readiness::Readable(fd) => fds.push((fd.clone(), PollFlags::IN)),
        Readiness::Writable(fd) => fds.push((fd.clone(), PollFlags::OUT)),
        Readiness::After(time) => *at_most = (*at_most).min(*time),
        Readiness::Any(all) => all.iter().for_each(|one| flatten(one, fds, at_most)),
        other => panic!("inet does not wait for {other:?}"),
    }
}

pub fn number(dict: &Dict, key: &str) -> i128 {
    dict.get(key).and_then(Value::integer).unwrap_or_else(|| panic!("no number {key:?} in {dict:?}"))
}

pub fn text(dict: &Dict, key: &str) -> String {
    match dict.get(key) {
        Some(Value::Text(text)) => text.clone(),
        _ => panic!("no text {key:?} in {dict:?}"),
    }
}

pub fn dict_in<'a>(dict: &'a Dict, key: &str) -> &'a Dict {
    match dict.get(key) {
        Some(Value::Dict(inner)) => inner,
        _ => panic!("no dictionary {key:?} in {dict:?}"),
    }
}

/// The port of an endpoint's own side.
pub fn port(endpoint: &dyn Endpoint) -> u16 {
    number(&endpoint.inspect().unwrap(), "local-port").try_into().unwrap()
}

pub fn accept(endpoint: &dyn Endpoint) -> Result<Box<dyn Endpoint>> {
    wait(|| endpoint.listener().unwrap().accept())
}

/// Reads until there are this many bytes, or the end of the stream.
pub fn read(endpoint: &dyn Endpoint, length: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < length {
        let part = wait(|| endpoint.stream().unwrap().read(length - all.len()))?;
        if part.is_empty() {
            break;
        }
        all.extend(part);
    }
    Ok(all)
}

pub fn write(endpoint: &dyn Endpoint, data: &[u8]) -> Result<()> {
    let mut written = 0;
    while written < data.len() {
        written += wait(|| endpoint.stream().unwrap().write(&data[written..]))?;
    }
    Ok(())
}

pub fn send(endpoint: &dyn Endpoint, data: &[u8], to: Option<&str>) -> Result<()> {
    let mut attributes = Dict::new();
    if let Some(to) = to {
        attributes.insert("address".into(), to.into());
    }
    wait(|| {
        endpoint.messages().unwrap().send(Outgoing {
            data,
            attributes: &attributes,
            fds: &[],
            sent: &Sent::default(),
        })
    })
}

pub fn receive(endpoint: &dyn Endpoint) -> Result<Message> {
    wait(|| endpoint.messages().unwrap().receive(&Dict::new()))
}

/// A socket of the standard library that does not wait for ever.
pub fn udp(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(WATCHDOG)).unwrap();
    socket
}

pub fn has_ipv6() -> bool {
    let has = UdpSocket::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_ok();
    if !has {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
    }
    has
}

/// Runs `test` in a network of its own that `ip` set up with these commands, so that nothing of
/// it leaves the machine. Skips where the machine does not let us make one.
pub fn in_own_network(commands: &[&str], test: impl FnOnce() + Send + 'static) {
    let commands: Vec<String> = commands.iter().map(|command| (*command).to_owned()).collect();
    // A namespace is a thread's own, and its children's.
    let thread = std::thread::spawn(move || {
        // SAFETY: no CLONE_FILES and no CLONE_FS, so nothing that other threads rely on changes.
        let made = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        if let Err(errno) = made {
            eprintln!("SKIPPED: no network namespace: {errno}");
            return;
        }
        for command in &commands {
            let status = Command::new("ip").args(command.split(' ')).status();
            if !status.is_ok_and(|status| status.success()) {
                eprintln!("SKIPPED: `ip {command}` failed");
                return;
            }
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
