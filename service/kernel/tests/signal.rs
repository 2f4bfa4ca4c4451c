//! Processes and mailboxes against the kernel: numbers that are used again, ends that only a parent
//! may ask for, other users, older kernels, full queues.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use ipc_kernel::{
    Address, Attempt, Endpoint, Kind, Readiness, Value,
    mechanism::Adoption,
    mechanisms::signal::DESCRIPTOR,
    shape::{Exit, Received},
    signal::names::name,
};

mod waiting;
use waiting::*;

fn attached(pid: u32) -> Box<dyn Endpoint> {
    attach(&DESCRIPTOR, &Address::new("signal").with("pid", pid.to_string())).unwrap()
}

/// Create, which says first that it has to wait for the mailbox's process.
fn mailbox(numbers: &str) -> Box<dyn Endpoint> {
    let address = Address::new("signal").with("numbers", numbers);
    let parameters =
        ipc_kernel::Parameters::check(DESCRIPTOR.create_parameters, &[], &address, &ipc_kernel::Dict::new());
    let ipc_kernel::Opening::Pending(mut pending) = (DESCRIPTOR.create)(&parameters.unwrap()).unwrap() else {
        panic!("it cannot be ready at once");
    };
    finish(&mut pending).unwrap()
}

fn exit_of(endpoint: &dyn Endpoint) -> Exit {
    finish(|| endpoint.process().unwrap().exit()).unwrap()
}

fn sleeper() -> Child {
    Child(Command::new("sleep").arg("600").spawn().unwrap())
}

/// Signals between threads of this test binary would interrupt nothing that matters.
fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call without pointers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// The kernel is made to use the number of a process that was reaped for the next one: a signal to
/// the first hits nobody, its address finds nobody, and its exit code is still its own.
#[test]
fn a_number_that_is_used_again_is_another_process() {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    for _attempt in 0..200 {
        let mut first =
            Command::new("sh").args(["-c", "read x; exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = first.id();
        let endpoint = attached(pid);
        let address = endpoint.address();
        drop(first.stdin.take());
        first.wait().unwrap();
        if let Err(error) = fs::write(LAST, (pid - 1).to_string()) {
            eprintln!("SKIPPED: {LAST} cannot be written: {error}");
            return;
        }
        let second = sleeper();
        if second.0.id() != pid {
            // Somebody else was faster.
            continue;
        }
        let process = endpoint.process().unwrap();
        let gone = refused(process.send(libc::SIGKILL, 0));
        assert_eq!(gone.kind, Kind::Gone, "{gone}");
        assert!(!process.alive());
        assert_eq!(exit_of(&*endpoint), Exit { code: 7, signal: 0, core: false });
        assert!(matches!(endpoint.inspect().unwrap()["state"], Value::Text(ref state) if state == "reaped"));
        let other = refused(attach(&DESCRIPTOR, &address));
        assert_eq!(other.kind, Kind::NotFound, "{other}");
        assert!(other.text.contains("the one that is meant has ended"), "{other}");
        // By its inode alone, too: two processes can start in the same tick.
        let inode = address.pairs.iter().find(|(key, _)| key == "inode").and_then(|(_, value)| value.clone());
        let by_inode = Address::new("signal").with("pid", pid.to_string()).with("inode", inode.unwrap());
        assert_eq!(refused(attach(&DESCRIPTOR, &by_inode)).kind, Kind::NotFound);
        let now = attached(pid);
        assert!(now.process().unwrap().alive(), "the second one was not hit");
        return;
    }
    panic!("the kernel never gave the same number again");
}

/// A child of this process that ends as another user, so that it may not be looked into, and waits
/// to be reaped.
fn foreign_zombie(code: &str) -> Option<(std::process::Child, u32)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root starts processes of another user");
        return None;
    }
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read x; exit {code}")]).stdin(Stdio::piped()).uid(12_345);
    let child = command.spawn().unwrap();
    let pid = child.id();
    Some((child, pid))
}

/// Of a zombie of another user nobody is told the code but its parent; once that has asked, all
/// are who held a pidfd.
#[test]
fn the_code_of_another_users_process_comes_when_it_is_reaped() {
    let Some((mut child, pid)) = foreign_zombie("3") else { return };
    let (known, waited) = as_nobody(|| {
        let endpoint = attached(pid);
        let process = endpoint.process().unwrap();
        assert_eq!(refused(process.send(libc::SIGTERM, 0)).kind, Kind::PermissionDenied);
        assert_eq!(refused(process.send(0, 0)).kind, Kind::PermissionDenied);
        drop(child.stdin.take());
        let Readiness::Readable(fd) = must_wait(process.exit()) else { panic!("it runs") };
        assert!(wait(Readiness::Readable(fd), PATIENCE));
        let waited = matches!(process.exit().unwrap(), Attempt::Wait(Readiness::HungUp(_)));
        assert!(!process.alive(), "it has ended, though nobody may say how");
        // The parent asks, here on another thread than the one that may.
        std::thread::scope(|scope| scope.spawn(|| child.wait().unwrap()).join().unwrap());
        (exit_of(&*endpoint), waited)
    })
    .unwrap();
    assert_eq!(known, Exit { code: 3, signal: 0, core: false });
    assert!(waited, "a zombie's code is not another user's to know");
}

/// PIDFD_GET_INFO fails as on a kernel without it (ENOTTY), for the calling thread and for good.
fn mask_exit_info() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let enotty = libc::SECCOMP_RET_ERRNO | libc::ENOTTY.cast_unsigned();
    let mut steps = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 4, libc::SYS_ioctl as u32),
        // The request, without its size.
        step(LOAD, 0, 0, if cfg!(target_endian = "little") { 24 } else { 28 }),
        step(AND, 0, 0, 0xffff),
        step(EQUAL, 0, 1, 0xff0b),
        step(RETURN, 0, 0, enotty),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program is as long as it says, and lives through the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Before Linux 6.13: the code of an own zombie is known all the same, of a reaped process it is not, and that
/// is said.
#[test]
fn without_the_kernels_exit_information() {
    std::thread::spawn(|| {
        mask_exit_info();
        let run = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
            let endpoint = attached(child.id());
            (child, endpoint)
        };
        let (mut zombie, endpoint) = run("read x; exit 5");
        drop(zombie.stdin.take());
        assert_eq!(exit_of(&*endpoint), Exit { code: 5, signal: 0, core: false });
        zombie.wait().unwrap();
        assert_eq!(exit_of(&*endpoint).code, 5, "kept");

        let (mut reaped, endpoint) = run("read x; exit 5");
        drop(reaped.stdin.take());
        reaped.wait().unwrap();
        assert_eq!(exit_of(&*endpoint), Exit::UNKNOWN);
        let state = endpoint.inspect().unwrap();
        assert!(
            matches!(&state["exit-unknown"], Value::Text(why) if why.contains("Linux 6.15")),
            "{state:?}"
        );
    })
    .join()
    .unwrap();
}

#[test]
fn every_signal_that_ends_is_told_apart() {
    for signal in 1..=64 {
        // Those that by default do not end a process, and those that stop it.
        if [17, 18, 19, 20, 21, 22, 23, 28].contains(&signal) {
            continue;
        }
        let child = sleeper();
        let endpoint = attached(child.0.id());
        // A shell starts what is in the background with SIGINT and SIGQUIT ignored.
        let ignored = endpoint.inspect().unwrap().remove("ignored");
        if matches!(ignored, Some(Value::Texts(names)) if names.contains(&name(signal))) {
            eprintln!("SKIPPED: this test was started with {} ignored", name(signal));
            continue;
        }
        endpoint.process().unwrap().send(signal, signal).unwrap();
        let exit = exit_of(&*endpoint);
        assert_eq!((exit.code, exit.signal), (-1, signal));
    }
}

#[test]
fn a_pidfd_is_adopted_and_nothing_else() {
    let child = sleeper();
    let endpoint = attached(child.0.id());
    let pidfd = endpoint.open(&options(&DESCRIPTOR, "").unwrap()).unwrap();
    match (DESCRIPTOR.adopt)(pidfd.try_clone().unwrap()).unwrap() {
        Adoption::Taken(again) => assert_eq!(again.address(), endpoint.address()),
        Adoption::Refused(_) => panic!("it is a pidfd"),
    }
    drop(child);
    let adopted = (DESCRIPTOR.adopt)(pidfd).map(drop);
    assert_eq!(refused(adopted).kind, Kind::Gone);
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    let own: OwnedFd = own.unwrap();
    let adopted = (DESCRIPTOR.adopt)(own.as_fd().try_clone_to_owned().unwrap()).map(drop);
    assert!(refused(adopted).text.contains("the service itself"));
}

/// A mailbox that is not read fills its pipe, then the kernel's queue; then the sender is told, and
/// what was accepted arrives in order.
#[test]
fn a_mailbox_that_nobody_reads_loses_nothing() {
    let endpoint = mailbox("SIGRTMIN+1");
    let mailbox = endpoint.mailbox().unwrap();
    let target = attached(mailbox.pid().cast_unsigned());
    let process = target.process().unwrap();
    let signal = libc::SIGRTMIN() + 1;
    // So that the queue is full before the machine is; other processes of the user count as well.
    let queued = |key: &str| match target.inspect().unwrap()[key] {
        Value::U64(number) => number,
        ref other => panic!("{other:?}"),
    };
    let limit =
        libc::rlimit { rlim_cur: queued("queued-signals") + 64, rlim_max: queued("max-queued-signals") };
    // SAFETY: the structure is initialised; the former limit is not asked for.
    let set = unsafe { libc::prlimit(mailbox.pid(), libc::RLIMIT_SIGPENDING, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let mut sent = 0;
    let full = loop {
        match process.send(signal, sent) {
            Ok(()) => sent += 1,
            // It may have to catch up with the pipe, which holds many more than the queue.
            Err(error) if sent < 2000 => assert_eq!(error.kind, Kind::LimitExceeded, "{error}"),
            Err(error) => break error,
        }
        assert!(sent < 1_000_000, "no end");
    };
    assert_eq!(full.kind, Kind::LimitExceeded, "{full}");
    assert!(full.text.contains("RLIMIT_SIGPENDING") && full.text.contains("EAGAIN"), "{full}");
    let mut values = Vec::new();
    while values.len() < sent as usize {
        values.extend(finish(|| mailbox.next()).unwrap().into_iter().map(|received| received.value));
    }
    assert_eq!(values, (0..sent).collect::<Vec<_>>());
}

/// The C library's own signals, too.
#[test]
fn signals_of_the_c_library_are_received() {
    let endpoint = mailbox("32/33");
    let mailbox = endpoint.mailbox().unwrap();
    for number in [32, 33] {
        kill(mailbox.pid(), number);
        let received = finish(|| mailbox.next()).unwrap();
        assert!(matches!(received[..], [Received { number: found, .. }] if found == number), "{received:?}");
    }
}

/// Nobody but its user, and root, signals a mailbox.
#[test]
fn other_users_do_not_reach_a_mailbox() {
    let endpoint = mailbox("all");
    let mailbox = endpoint.mailbox().unwrap();
    let pid = mailbox.pid();
    let errno = as_nobody(|| {
        let endpoint = attached(pid.cast_unsigned());
        refused(endpoint.process().unwrap().send(libc::SIGUSR1, 0)).text
    });
    if let Some(text) = errno {
        assert!(text.contains("EPERM"), "{text}");
    }
    must_wait(mailbox.next());
}
