//! Process events of real processes, compared with what their parent sees.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
};

use ipc_kernel::{
    Dict, Kind, Result,
    netlink::{Event, Process, process_events::ProcessEvents},
};

use crate::{
    Heard, in_a_fresh_network,
    waiting::{self, as_nobody, refused},
};

/// None, visibly, where this user may not or this is a container.
fn open() -> Option<Heard<ProcessEvents>> {
    opened(ProcessEvents::open())
}

fn opened(result: Result<ProcessEvents>) -> Option<Heard<ProcessEvents>> {
    match result {
        Err(error) if [Kind::PermissionDenied, Kind::Unavailable].contains(&error.kind) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        result => Some(Heard::new(result.unwrap())),
    }
}

/// Starts a Python program and listens until it has ended, and the processes whose pids begin its
/// lines: what was told, and its words by line.
fn watched(source: &mut Heard<ProcessEvents>, program: &str) -> Option<(Vec<Process>, Vec<Vec<String>>)> {
    let child = python(program)?;
    let mut events = until_exit(source, child.id().cast_signed());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    for pid in lines.iter().map(|words| number(&words[0])) {
        // The parent may be told to have ended before its last child.
        if !events.iter().any(|process| (process.event, process.pid) == ("exit", pid)) {
            events.extend(until_exit(source, pid));
        }
    }
    Some((events, lines))
}

fn python(program: &str) -> Option<Child> {
    let program = format!("import os, sys, signal, resource\n{program}");
    match Command::new("python3").args(["-c", &program]).stdout(Stdio::piped()).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            eprintln!("SKIPPED: cannot start python3: {error}");
            None
        }
    }
}

/// The events until this process has ended.
fn until_exit(source: &mut Heard<ProcessEvents>, pid: i32) -> Vec<Process> {
    source.until("the end of a process", |event| {
        matches!(event, Event::Process(process) if process.event == "exit" && process.pid == pid && process.tid == pid)
    })
    .into_iter()
    .filter_map(|event| match event {
        Event::Process(process) => Some(process),
        Event::Overflow(_) => None,
        other => panic!("{other:?}"),
    })
    .collect()
}

fn integer(details: &Dict, key: &str) -> i128 {
    details.get(key).and_then(|value| value.integer()).unwrap_or_else(|| panic!("no {key} in {details:?}"))
}

fn number(word: &str) -> i32 {
    word.parse().unwrap()
}

#[test]
fn five_hundred_children_end_as_waitpid_says() {
    let Some(mut source) = open() else { return };
    let program = "
print(os.getpid())
for n in range(500):
    pid = os.fork()
    if pid == 0:
        os._exit(n * 7 % 256)
    print(pid, os.WEXITSTATUS(os.waitpid(pid, 0)[1]))";
    let Some((events, lines)) = watched(&mut source, program) else { return };
    let parent = number(&lines[0][0]);
    let children: BTreeMap<i32, i32> =
        lines[1..].iter().map(|words| (number(&words[0]), number(&words[1]))).collect();
    assert_eq!(children.len(), 500);
    let (mut forked, mut ended) = (Vec::new(), BTreeMap::new());
    for process in events {
        match process.event {
            "fork" if process.pid == parent => {
                assert_eq!(process.tid, parent);
                assert_eq!(process.details["child-pid"].integer(), process.details["child-tid"].integer());
                // What starts python3 may have had children of its own.
                let child = integer(&process.details, "child-pid") as i32;
                forked.extend(children.contains_key(&child).then_some(child));
            }
            "exit" if children.contains_key(&process.pid) => {
                assert_eq!(integer(&process.details, "signal"), 0);
                if let Some(told) = process.details.get("parent-pid") {
                    assert_eq!(told.integer(), Some(parent.into()));
                }
                ended.insert(process.pid, integer(&process.details, "code") as i32);
            }
            _ => {}
        }
    }
    assert_eq!(ended, children);
    assert_eq!(
        forked,
        lines[1..].iter().map(|words| number(&words[0])).collect::<Vec<_>>(),
        "in their order"
    );
}

#[test]
fn a_signal_and_a_core_dump_are_told_as_waitpid_tells_them() {
    let Some(mut source) = open() else { return };
    let directory = tempfile::tempdir().unwrap();
    let program = "
for number, core in (signal.SIGKILL, 0), (signal.SIGABRT, 0), (signal.SIGSEGV, resource.RLIM_INFINITY):
    pid = os.fork()
    if pid == 0:
        os.chdir('DIRECTORY')
        resource.setrlimit(resource.RLIMIT_CORE, (core, resource.RLIM_INFINITY))
        os.kill(os.getpid(), number)
        signal.pause()
    status = os.waitpid(pid, 0)[1]
    print(pid, os.WTERMSIG(status), int(os.WCOREDUMP(status)))";
    let program = program.replace("DIRECTORY", directory.path().to_str().unwrap());
    let Some((events, lines)) = watched(&mut source, &program) else { return };
    for words in &lines {
        let [pid, signal, core] = [0, 1, 2].map(|n| number(&words[n]));
        let of = |event| events.iter().find(|process| (process.event, process.pid) == (event, pid));
        let details = &of("exit").unwrap().details;
        assert_eq!((integer(details, "code"), integer(details, "signal")), (-1, signal.into()), "{words:?}");
        assert_eq!(format!("{:?}", details["core"]), format!("Bool({})", core == 1), "{words:?}");
        assert_eq!(of("coredump").is_some(), signal != libc::SIGKILL, "{words:?}");
    }
    if lines[2][2] == "0" {
        eprintln!("SKIPPED: core_pattern lets nobody leave a core dump here, so none was flagged");
    }
}

#[test]
fn what_a_process_makes_of_itself_is_told() {
    let Some(mut source) = open() else { return };
    let program = "
pid = os.fork()
if pid == 0:
    os.setsid()
    open('/proc/self/comm', 'w').write('ipc test')
    os.setresgid(65533, 65533, 65533)
    os.setresuid(65534, 65534, 65534)
    os._exit(0)
print(os.waitpid(pid, 0)[0])";
    let Some((events, lines)) = watched(&mut source, program) else { return };
    let child = number(&lines[0][0]);
    let events: Vec<_> = events.iter().filter(|process| process.pid == child).collect();
    let of = |event| events.iter().find(|process| process.event == event).map(|process| &process.details);
    assert!(of("sid").is_some_and(Dict::is_empty), "{events:?}");
    assert_eq!(format!("{:?}", of("comm").unwrap()["command"]), "Text(\"ipc test\")");
    if rustix::process::geteuid().is_root() {
        for (event, id) in [("gid", 65533), ("uid", 65534)] {
            let details = of(event).unwrap();
            assert_eq!((integer(details, "real-id"), integer(details, "effective-id")), (id, id), "{event}");
        }
    }
    let order: Vec<_> = events.iter().map(|process| process.event).collect();
    assert_eq!((order.first(), order.last()), (Some(&"sid"), Some(&"exit")), "{order:?}");
}

#[test]
fn a_program_is_told_by_name_and_its_tracer_too() {
    let Some(mut source) = open() else { return };
    let child = waiting::Child(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap());
    let pid = child.0.id().cast_signed();
    let is = |event: &Event, name| matches!(event, Event::Process(process) if process.event == name && process.pid == pid);
    let events = source.until("the exec", |event| is(event, "exec"));
    let Some(Event::Process(exec)) = events.last() else { panic!("{events:?}") };
    assert_eq!(format!("{:?}", exec.details), "{\"command\": Text(\"sleep\")}");
    let mut tracer =
        match Command::new("strace").args(["-qq", "-o", "/dev/null", "-p", &pid.to_string()]).spawn() {
            Ok(tracer) => waiting::Child(tracer),
            Err(error) => return eprintln!("SKIPPED: cannot start strace: {error}"),
        };
    let by = i128::from(tracer.0.id());
    let mut tracers = Vec::new();
    source.until("the tracer", |event| {
        let Event::Process(process) = event else { panic!("{event:?}") };
        let seized = is(event, "ptrace");
        tracers.extend(seized.then(|| integer(&process.details, "tracer-pid")));
        seized
    });
    assert_eq!(tracers, [by]);
    // Told to, it detaches and says so; a dead one would not.
    rustix::process::kill_process(rustix::process::Pid::from_child(&tracer.0), rustix::process::Signal::INT)
        .unwrap();
    tracer.0.wait().unwrap();
    source.until("the end of the tracer",
        |event| matches!(event, Event::Process(process) if process.event == "exit" && i128::from(process.pid) == by),
    );
}

#[test]
fn other_users_hear_it_since_linux_6_6() {
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    let mut parts = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0_u32));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let Some(result) = as_nobody(ProcessEvents::open) else { return };
    if version < (6, 6) {
        assert_eq!(refused(result).kind, Kind::PermissionDenied);
        return;
    }
    let Some(mut source) = opened(result) else { return };
    let mut child = Command::new("sh").args(["-c", "exit 9"]).spawn().unwrap();
    child.wait().unwrap();
    let events = until_exit(&mut source, child.id().cast_signed());
    assert_eq!(integer(&events.last().unwrap().details, "code"), 9);
}

#[test]
fn each_listener_hears_all_until_it_leaves() {
    let Some(mut staying) = open() else { return };
    let leaving = open().unwrap();
    drop(leaving);
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    until_exit(&mut staying, child.id().cast_signed());
}

#[test]
fn where_the_kernel_does_not_tell_that_is_said() {
    in_a_fresh_network(|| {
        let error = refused(ProcessEvents::open());
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
        assert!(error.text.contains("on the host"), "{error}");
    });
}

#[test]
fn lost_events_are_told_once_and_later_ones_too() {
    let Some(mut source) = open() else { return };
    let program = "
for n in range(2500):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)";
    let Some(mut child) = python(program) else { return };
    assert!(child.wait().unwrap().success());
    let is_loss = |event: &Event| matches!(event, Event::Overflow(source) if source == "process");
    let before = source.until("the loss", is_loss);
    assert!(before.len() > 1000, "only {} events before the loss", before.len());
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    until_exit(&mut source, child.id().cast_signed());
}
