//! A4. The process id that the bus tells is of the moment when the connection was made: its process may have gone,
//! and another one may have its number. It decides nothing but whether the caller is confined.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use ipc_adversary::wire::{Arg, dict};
use ipc_adversary::{Credentials, FakeBus, error, status};
use ipc_harness::system::{ALICE, BOB, Identity, ROOT};
use ipc_harness::{Process, SystemBus, Unavailable, or_skip, patience};

/// For tests that start many workers of one user, which is not what they are about.
const MANY_STARTS: &str = "[front]\nworker-starts = 16\n";

/// That alice's connection was made by this process.
fn of_alice(pid: i32) -> Credentials {
    Credentials::Are(dict(&[
        ("UnixUserID", Arg::U32(ALICE.uid)),
        ("UnixGroupIDs", Arg::Array("u".into(), vec![Arg::U32(ALICE.gid)])),
        ("ProcessID", Arg::U32(pid.cast_unsigned())),
    ]))
}

/// The processes of others, and one that has gone: alice is served by a worker that is confined.
#[test]
fn a4_the_pid_of_another_tells_nothing() {
    let bus = or_skip!(SystemBus::dbus_daemon());
    let fake = FakeBus::start();
    let service = bus.launch_at(fake.address()).config(MANY_STARTS).start();
    let dir = bus.dir_of(ALICE);
    let mut gone = bus.sh_as(&BOB.into(), "exit 0");
    gone.wait();
    let others = [bus.connector_pid(&BOB.into()), bus.pid(), service.pid(), gone.pid()];
    for (number, pid) in others.into_iter().enumerate() {
        fake.set_credentials(of_alice(pid));
        let path = dir.path().join(format!("fifo-{number}"));
        let address = format!("fifo:path={}", path.display());
        let answer = fake.call(&format!(":1.{}", number + 10), "Create", &address, patience());
        let refusal = error(answer.expect("an answer"));
        assert!(refusal.is("Confined"), "{refusal}");
        assert!(!path.exists());
    }
    // Her own process is looked at.
    fake.set_credentials(of_alice(bus.connector_pid(&ALICE.into())));
    create(&fake, ":1.20", dir.path()).expect("she may");
}

/// Makes a FIFO there, as who is called so; its owner and group.
fn create(fake: &FakeBus, sender: &str, dir: &Path) -> Result<(u32, u32), String> {
    let path = dir.join(sender);
    let answer = fake.call(sender, "Create", &format!("fifo:path={}", path.display()), patience());
    match answer.expect("an answer") {
        Ok(_) => {
            let made = fs::metadata(&path).expect("it was made");
            Ok((made.uid(), made.gid()))
        }
        Err(refusal) => Err(refusal.name),
    }
}

/// Starts a process with this number, which is free: the kernel gives the one behind ns_last_pid to the next process
/// of the namespace (proc_sys_kernel(5)), if nobody is faster.
fn recycle(pid: i32, start: impl Fn() -> Process) -> Result<Process, Unavailable> {
    let last = "/proc/sys/kernel/ns_last_pid";
    let started = Instant::now();
    while started.elapsed() < patience() {
        fs::write(last, (pid - 1).to_string()).map_err(|error| Unavailable(format!("{last}: {error}")))?;
        let process = start();
        if process.pid() == pid {
            return Ok(running(process));
        }
    }
    Err(Unavailable(format!("pid {pid} was not to be had within {:?}", patience())))
}

/// A program of this user's that stays until it is told to end.
fn program(bus: &SystemBus, who: &Identity) -> Process {
    Process::spawn(&mut bus.command_as(who, "/bin/cat"))
}

/// Once it is what it is going to be.
fn running(mut program: Process) -> Process {
    program.write("running\n");
    program.wait_for(|line| line == "running");
    program
}

/// The number of alice's process, which has ended, is given to processes of others: none of them is taken for her.
#[test]
fn a4_a_recycled_pid_gives_nobody_more() {
    let bus = or_skip!(SystemBus::dbus_daemon());
    let fake = FakeBus::start();
    let service = bus.launch_at(fake.address()).config(MANY_STARTS).start();
    let dir = bus.dir_of(ALICE);
    let dir = dir.path();
    let apart = |who: &Identity| who.clone().within(&["unshare", "--net"]);
    let (alice, bob, root) = (Identity::from(ALICE), Identity::from(BOB), Identity::from(ROOT));
    let hers = Ok((ALICE.uid, ALICE.gid));
    let confined = Err("org.example.IPC.Error.Confined".to_owned());
    let cases = [
        ("bob", bob.clone(), &confined),
        ("root", root, &confined),
        ("bob elsewhere", apart(&bob), &confined),
        ("alice elsewhere", apart(&alice), &confined),
        // Nobody can tell; she gets what is hers.
        ("alice", alice.clone(), &hers),
    ];
    for (number, (what, who, expected)) in cases.into_iter().enumerate() {
        let mut first = running(program(&bus, &alice));
        let pid = first.pid();
        fake.set_credentials(of_alice(pid));
        let (known, unknown) = (format!(":1.{number}0"), format!(":1.{number}1"));
        assert_eq!(create(&fake, &known, dir), hers, "{what}; {}", service.log());
        first.kill();
        let second = or_skip!(recycle(pid, || program(&bus, &who)));
        assert_eq!(status(pid, "PPid"), Some(std::process::id().to_string()), "{what} is not there");
        assert_eq!(create(&fake, &unknown, dir), *expected, "{what}; {}", service.log());
        // Who was known before stays who he is.
        fs::remove_file(dir.join(&known)).expect("it was made");
        assert_eq!(create(&fake, &known, dir), hers, "{what}; {}", service.log());
        drop(second);
    }
}
