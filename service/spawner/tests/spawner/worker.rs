//! What a worker is: seen from without (as root, in /proc), from within, and by its own user.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use ipc_spawner::protocol::{Confinement, Refusal, Reply, Request};
use rustix::process::{Pid, Signal};

use crate::forked::{become_user, exit, forked};
use crate::spawner::{
    Spawner, USER_ID, ask, await_readable, call, identity, is_closed, pidfd, readable, start,
};

const UID: u32 = 54_321;

pub fn is_the_caller_and_nothing_else() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    // One in more groups than fit into any buffer on the stack, one in none.
    let many: Vec<u32> = (100_000..101_024).collect();
    for groups in [&[4, 100, 65_000][..], &[], &many] {
        let mut wanted = identity(UID, 100, groups);
        wanted.confinement = Confinement(Confinement::NETWORK);
        let (pid, control) = start(&front, "w-54321-0", wanted.clone());
        let facts = ask(&control, "facts");
        let own: Vec<_> = facts.lines().collect();
        assert_eq!(own[0], format!("{wanted:?}"));
        let limits = ["variables 0", "files Some(1024) Some(4096)", "core Some(0)", "reopens true"];
        assert_eq!(own[1..], limits);

        let status = Status::of(pid);
        assert_eq!(status.field("Uid"), vec![UID.to_string(); 4]);
        assert_eq!(status.field("Gid"), ["100"; 4]);
        assert_eq!(status.field("Groups"), groups.iter().map(u32::to_string).collect::<Vec<_>>());
        status.assert_powerless();
        assert_eq!(status.field("Umask"), ["0077"]);
        assert_eq!(status.field("Name"), ["ipcd-worker"]);
        assert_eq!(status.field("Threads"), ["1"]);
        assert_eq!(status.field("SigBlk"), ["0000000000000000"]);
        assert_eq!(descriptors(pid)[..2], [(0, "/dev/null".into()), (1, "/dev/null".into())]);
        assert_eq!(descriptors(pid).iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(descriptors(pid)[3].1.starts_with("socket:"));
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
        assert_eq!(session(pid), pid.to_string());
    }
}

pub fn of_root_has_no_capability() {
    let spawner = Spawner::serve();
    let (pid, control) = start(&spawner.connect(), "w-0-0", identity(0, 0, &[0]));
    let status = Status::of(pid);
    assert_eq!(status.field("Uid"), ["0"; 4]);
    status.assert_powerless();
    // A file that root may not read without CAP_DAC_OVERRIDE: nobody's, and only nobody's.
    let directory = ipc_harness::temp_dir();
    let file = directory.path().join("nobody's");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(UID), Some(UID)).unwrap();
    let answer = ask(&control, &format!("open {}", file.display()));
    assert!(answer.contains("Permission denied"), "{answer}");
}

/// Run as the user, each in a fork: what a debugger, or a thief of descriptors, would do.
pub fn cannot_be_looked_into_by_its_user() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let (worker, _control) = start(&front, "w-54321-0", identity(UID, UID, &[UID]));
    // It takes another process of the same user to show that these attempts succeed elsewhere.
    let other = forked(|| {
        become_user(UID);
        // SAFETY: sets a flag. Changing ids has cleared it.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    });
    for (name, attempt) in ATTEMPTS {
        let as_user = |pid: i32| {
            forked(|| {
                become_user(UID);
                exit(attempt(pid).map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0))
            })
            .status()
        };
        assert_eq!(as_user(other.pid), 0, "{name} of an ordinary process");
        let errno = as_user(worker);
        assert!([libc::EPERM, libc::EACCES].contains(&errno), "{name} of a worker: errno {errno}");
    }
    let (root, _control) = start(&front, "w-0-0", identity(0, 0, &[0]));
    let info = fs::metadata(format!("/proc/{root}/mem")).unwrap();
    assert_eq!(info.uid(), 0);
}

pub type Attempt = (&'static str, fn(i32) -> io::Result<()>);

pub const ATTEMPTS: &[Attempt] = &[
    ("pidfd_getfd", |pid| {
        // SAFETY: makes a descriptor of one that is a pidfd.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd(pid).as_raw_fd(), 0, 0) };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("/proc/PID/mem", |pid| fs::File::open(format!("/proc/{pid}/mem")).map(drop)),
    ("/proc/PID/fd", |pid| fs::read_dir(format!("/proc/{pid}/fd")).map(drop)),
    ("PTRACE_SEIZE", |pid| {
        // SAFETY: no pointers; the tracer ends at once, which lets the other go.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        if seized < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
];

pub fn minds_no_harmless_signal() {
    let spawner = Spawner::serve();
    let (pid, control) = start(&spawner.connect(), "w", identity(UID, UID, &[]));
    let harmless = [1, 10, 12, 13, 14, 16, 20, 21, 22, 23, 24, 25, 26, 27, 29, 30].into_iter().chain(34..=64);
    for signal in harmless {
        // SAFETY: sends a signal to a process of our own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
    assert!(ask(&control, "facts").contains("variables 0"));
    // What is meant is heeded.
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert!(is_closed(&control));
}

pub fn starts_often() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    call(&front, &Request::Kill { name: "none".into() }, None);
    let before = descriptors(spawner.pid());
    let begun = std::time::Instant::now();
    for number in 0..500 {
        let (pid, control) = start(&front, "w", identity(UID + number, UID, &[]));
        let pidfd = pidfd(pid);
        drop(control);
        await_readable(pidfd);
    }
    println!("{:?} from a worker's start to its end", begun.elapsed() / 500);
    // Nothing is left of them.
    assert_eq!(call(&front, &Request::Kill { name: "none".into() }, None).0, NO_SUCH_WORKER);
    assert_eq!(call(&front, &Request::Kill { name: "w".into() }, None).0, NO_SUCH_WORKER);
    assert_eq!(descriptors(spawner.pid()), before);
}

const NO_SUCH_WORKER: Reply = Reply::Refused(Refusal::NoSuchWorker);

pub fn too_many_are_refused() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    let request =
        |number: u32| Request::Start { name: "w".into(), identity: identity(UID + number, UID, &[]) };
    let mut kept = Vec::new();
    let refusal = loop {
        match call(&front, &request(0), None) {
            (Reply::Started { .. }, control) => kept.push(control),
            (reply, _) => break reply,
        }
        assert!(kept.len() <= 256);
    };
    assert_eq!(refusal, Reply::Refused(Refusal::Errno(libc::EAGAIN)));
    assert_eq!(kept.len(), 256);
    assert_eq!(call(&front, &Request::Kill { name: "w".into() }, None).0, Reply::Killed);
    // They are forgotten as they end, and then there is room again.
    while !matches!(call(&front, &request(1), None), (Reply::Started { .. }, Some(_))) {}
}

pub fn nobody_is_refused() {
    let spawner = Spawner::serve();
    let front = spawner.connect();
    for refused in [
        // The front's own user.
        identity(USER_ID, 100, &[100]),
        identity(65_534, 100, &[100]),
        identity(u32::MAX, 100, &[100]),
        identity(UID, 65_534, &[100]),
        identity(UID, u32::MAX, &[100]),
        identity(UID, 100, &[100, 65_534]),
        identity(UID, 100, &[100, u32::MAX]),
    ] {
        let request = Request::Start { name: "w".into(), identity: refused };
        let (reply, control) = call(&front, &request, None);
        assert_eq!((reply, control.is_some()), (Reply::Refused(Refusal::Identity), false));
    }
    assert!(!readable(&front, std::time::Duration::ZERO));
}

/// In the worker: `open PATH`, `clone FLAGS` and the like, a system call that the sandbox knows about.
pub fn attempt(question: &str) -> String {
    let mut pidfd: libc::c_int = -1;
    let result = match question.split_once(' ') {
        Some(("open", path)) => fs::File::open(path).map(drop),
        Some(("write", path)) => fs::OpenOptions::new().write(true).open(path).map(drop),
        Some(("connect", path)) => std::os::unix::net::UnixStream::connect(path).map(drop),
        // SAFETY: signal 0 changes nothing.
        Some(("kill", pid)) => match unsafe { libc::kill(pid.parse().unwrap(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        },
        Some(("socket", family)) => {
            let family = family.parse().unwrap();
            // SAFETY: makes a socket of this process's own.
            match unsafe { libc::socket(family, libc::SOCK_DGRAM, 0) } {
                0.. => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
        // SAFETY: asks for nothing that changes the process.
        Some(("unshare", _)) => match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        },
        // SAFETY: without CLONE_VM the child has a copy of everything, and ends at once.
        Some(("clone", flags)) => match unsafe {
            libc::syscall(libc::SYS_clone, flags.parse::<libc::c_int>().unwrap(), 0, &raw mut pidfd, 0, 0)
        } {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            1.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        },
        Some(("run", program)) => Command::new(program).status().map(drop),
        None if question == "thread" => {
            std::thread::Builder::new().spawn(|| {}).map(|thread| thread.join().unwrap())
        }
        _ => Err(io::Error::other("no such question")),
    };
    result.map_or_else(|error| error.to_string(), |()| "done".to_owned())
}

/// /proc/PID/status.
pub struct Status(String);

impl Status {
    pub fn of(pid: i32) -> Self {
        Self(fs::read_to_string(format!("/proc/{pid}/status")).unwrap())
    }

    pub fn field(&self, name: &str) -> Vec<&str> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        value.split_whitespace().collect()
    }

    pub fn assert_powerless(&self) {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(self.field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(self.field("NoNewPrivs"), ["1"]);
    }
}

fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let link = fs::read_link(entry.path()).unwrap().display().to_string();
        (entry.file_name().to_str().unwrap().parse().unwrap(), link)
    };
    let mut all: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(entry).collect();
    all.sort();
    all
}

/// proc_pid_stat(5), counted after the name, which may contain anything.
fn session(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned()
}
