//! Processes: signals that reach them, their ends with exit codes, also of those that are nobody's child here.

use ipc_blackbox::{Options, Stage, Way, assert_error, error, everywhere};
use ipc_harness::{Process, Signal, busctl, or_skip, unique};

const DEFAULT: u32 = u32::MAX;

/// A process that says what it receives: `blocked` signals are waited for, with their sender.
const RECEIVER: &str = r#"
import os, signal, sys
wanted = [int(word) for word in sys.argv[1:]]
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print('pid', os.getpid(), flush=True)
while True:
    info = signal.sigwaitinfo(wanted)
    print('got', info.si_signo, info.si_code, info.si_uid, flush=True)
"#;

/// Forks as many children as each line says, whose ends are spread over codes and signals; they wait until the next
/// line. Then it says how each ended, as waitpid(2) does.
const PARENT: &str = r#"
import os, signal, sys
number = 0
for line in sys.stdin:
    children, (read, write) = [], os.pipe()
    for _ in range(int(line)):
        number += 1
        pid = os.fork()
        if pid == 0:
            os.close(write); os.read(read, 1)
            if number % 3 == 0:
                end = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, 35, 64)[number // 3 % 5]
                os.kill(os.getpid(), end)
            os._exit(number % 256)
        children.append(pid)
    print(*children, flush=True)
    sys.stdin.readline()
    os.close(read); os.close(write)
    print(*(os.waitpid(pid, 0)[1] for pid in children), flush=True)
"#;

fn numbers(line: &str) -> Vec<i32> {
    line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

fn pid_of(process: &Process) -> i32 {
    numbers(process.wait_for(|line| line.starts_with("pid ")).trim_start_matches("pid "))[0]
}

/// The exit codes of `total` children that are strangers to the service, beside their parent's waitpid(2).
async fn compare_exits(stage: &Stage, total: usize, batch: usize) {
    let client = stage.client().await;
    let mut parent = stage.python(PARENT, &[]);
    let mut signalled = 0;
    for round in 0..total / batch {
        parent.write(format!("{batch}\n"));
        let line = |number: usize| {
            let lines = parent.stdout().wait_until(|lines| lines.get(number).cloned());
            numbers(&lines.expect("a line of the parent"))
        };
        let mut endpoints = Vec::new();
        for pid in line(2 * round) {
            endpoints.push(client.attach(&format!("signal:pid={pid}")).await);
        }
        parent.write("go\n");
        let lines = parent.stdout().wait_until(|lines| lines.get(2 * round + 1).cloned());
        for (endpoint, status) in endpoints.iter().zip(numbers(&lines.expect("a line of the parent"))) {
            let expected = if status & 0x7f == 0 { (status >> 8, 0) } else { (-1, status & 0x7f) };
            signalled += i32::from(expected.1 != 0);
            let ended: (i32, i32) =
                client.call(endpoint, "Process", "WaitExit", &(DEFAULT,)).await.expect("WaitExit");
            assert_eq!(ended, expected, "{endpoint}");
            client.close(endpoint).await;
        }
    }
    assert!(signalled as usize >= total / 4, "{signalled} of {total} were ended by signals");
    println!("{total} exits are those of waitpid, {signalled} of them by signals");
}

/// Proves: signal attach, wait
async fn exits_are_those_of_waitpid(stage: Stage) {
    compare_exits(&stage, 200, 50).await;
}

/// As many as come and go in a build, attached in batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_exits() {
    compare_exits(&or_skip!(Stage::new(Way::DbusDaemon)), 5000, 100).await;
}

/// Proves: signal attach, event
async fn an_end_is_a_signal_of_the_bus(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let mut sleeper = stage
        .python("import os,sys\nprint('pid',os.getpid(),flush=True)\nsys.stdin.read()\nos._exit(42)", &[]);
    let pid = pid_of(&sleeper);
    let process = client.attach(&format!("signal:pid={pid}")).await;
    assert_eq!(client.number(&process, "Process", "Pid").await, i64::from(pid));
    let alive = client.property(&process, "Process", "Alive").await.expect("Alive");
    assert!(bool::try_from(alive).expect("a truth value"));
    let busy = client.call::<(i32, i32), _>(&process, "Process", "WaitExit", &(0u32,)).await;
    assert!(error(busy).is("Busy"));
    let timeout = client.call::<(i32, i32), _>(&process, "Process", "WaitExit", &(20u32,)).await;
    assert!(error(timeout).is("Timeout"));
    sleeper.close_stdin();
    let exited = inbox.signal(&process, "Exited").await;
    assert_eq!(exited.body().deserialize::<(i32, i32, bool)>().expect("Exited"), (42, 0, false));
    inbox.signal(&process, "PropertiesChanged").await;
    sleeper.wait();
    // Told again, as long as the endpoint is there.
    let ended: (i32, i32) = client.call(&process, "Process", "WaitExit", &(0u32,)).await.expect("WaitExit");
    assert_eq!(ended, (42, 0));
    let gone = client.reply(&process, "Process", "Send", &("SIGTERM", 0)).await;
    assert_error(&error(gone), "Gone", &["has ended", "ESRCH"]);
    let address = client.address(&process).await;
    let gone = client.try_attach(&address, Options::new()).await;
    assert_error(&error(gone), "NotFound", &["no process"]);
}

/// Proves: signal attach, write
async fn every_signal_arrives(stage: Stage) {
    let client = stage.client().await;
    let all: Vec<i32> = (1..=64).filter(|number| ![9, 19, 32, 33].contains(number)).collect();
    let words: Vec<String> = all.iter().map(i32::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let receiver = stage.python(RECEIVER, &words);
    let pid = pid_of(&receiver);
    let process = client.attach(&format!("signal:pid={pid}")).await;
    for number in &all {
        client.reply(&process, "Process", "Send", &(number.to_string(), 7)).await.expect("Send");
        let got = receiver.wait_for(|line| line.starts_with(&format!("got {number} ")));
        // SI_QUEUE, and the user whose the process is.
        assert_eq!(numbers(got.trim_start_matches("got "))[1], -1, "{got}");
    }
    client.reply(&process, "Process", "Send", &("0", 0)).await.expect("the null signal");
    client.reply(&process, "Process", "Send", &("SIGSTOP", 0)).await.expect("SIGSTOP");
    let state = || async {
        let state: std::collections::BTreeMap<String, zbus::OwnedVariant> =
            client.call(&process, "Endpoint", "Inspect", &()).await.expect("Inspect");
        String::try_from(state["state"].clone()).expect("a text")
    };
    while state().await != "stopped" {}
    client.reply(&process, "Process", "Send", &("SIGCONT", 0)).await.expect("SIGCONT");
    receiver.wait_for(|line| line.starts_with("got 18 "));
    client.reply(&process, "Process", "Send", &("KILL", 0)).await.expect("SIGKILL");
    let ended: (i32, i32) =
        client.call(&process, "Process", "WaitExit", &(DEFAULT,)).await.expect("WaitExit");
    assert_eq!(ended, (-1, 9));
}

async fn terminate_asks_first(stage: Stage) {
    let client = stage.client().await;
    let start = |heeds: &str| {
        let script = format!(
            "import os,signal,time\n{heeds}\nprint('pid',os.getpid(),flush=True)\nwhile True: time.sleep(60)"
        );
        stage.python(&script, &[])
    };
    let polite = start("signal.signal(signal.SIGTERM, lambda *_: os._exit(7))");
    let stopped = start("signal.signal(signal.SIGTERM, lambda *_: os._exit(8))");
    let deaf = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)");
    pid_of(&stopped);
    stopped.signal(Signal::STOP);
    for (process, grace_ms, expected) in
        [(&polite, 10_000u32, (7, 0)), (&stopped, 10_000, (8, 0)), (&deaf, 50, (-1, 9)), (&deaf, 50, (-1, 9))]
    {
        let endpoint = client.try_attach(&format!("signal:pid={}", pid_of(process)), Options::new()).await;
        // A zombie until its parent, this test, asks for it.
        let endpoint = endpoint.expect("Attach");
        let ended: (i32, i32) =
            client.call(&endpoint, "Process", "Terminate", &(grace_ms,)).await.expect("Terminate");
        assert_eq!(ended, expected);
    }
    let handles = start("signal.signal(signal.SIGHUP, lambda *_: os._exit(9))");
    let endpoint = client.attach(&format!("signal:pid={}", pid_of(&handles))).await;
    for (signal, expected) in [("SIGUSR1", false), ("SIGHUP", true)] {
        let sent: bool =
            client.call(&endpoint, "Process", "SendIfHandled", &(signal, 0)).await.expect("SendIfHandled");
        assert_eq!(sent, expected, "{signal}");
    }
    let ended: (i32, i32) =
        client.call(&endpoint, "Process", "WaitExit", &(DEFAULT,)).await.expect("WaitExit");
    assert_eq!(ended, (9, 0));
    let at_once = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)");
    let endpoint = client.attach(&format!("signal:pid={}", pid_of(&at_once))).await;
    let too_long = client.call::<(i32, i32), _>(&endpoint, "Process", "Terminate", &(400_000u32,)).await;
    assert_error(&error(too_long), "InvalidArgument", &["max-wait-ms"]);
    let ended: (i32, i32) =
        client.call(&endpoint, "Process", "Terminate", &(0u32,)).await.expect("Terminate");
    assert_eq!(ended, (-1, 9));
}

/// A group, a thread, and a command name that is one process's.
async fn by_name_by_thread_and_as_a_group(stage: Stage) {
    let client = stage.client().await;
    let name = &unique("s").replace('-', "")[..];
    let name = &name[..name.len().min(12)];
    let named = |name: &str| {
        let script = format!(
            "open('/proc/self/comm','w').write({name:?})\nimport os,threading,time\n\
             t=threading.Thread(target=lambda: time.sleep(600),daemon=True); t.start()\n\
             print('pid',os.getpid(),t.native_id,flush=True)\ntime.sleep(600)"
        );
        stage.python(&script, &[])
    };
    let one = named(name);
    let said = numbers(one.wait_for(|line| line.starts_with("pid ")).trim_start_matches("pid "));
    let (pid, tid) = (said[0], said[1]);
    let look_alike = named(&format!("{name}x"));
    pid_of(&look_alike);
    let found = client.attach(&format!("signal:command={name}")).await;
    assert_eq!(client.number(&found, "Process", "Pid").await, i64::from(pid));
    let second = named(name);
    let second_pid = pid_of(&second);
    let ambiguous = client.try_attach(&format!("signal:command={name}"), Options::new()).await;
    let (first, other) = (format!("signal:pid={pid},start="), format!("signal:pid={second_pid},start="));
    assert_error(&error(ambiguous), "InvalidArgument", &["2 processes", &first, &other]);
    let missing = client.try_attach("signal:command=no-such-name", Options::new()).await;
    assert_error(&error(missing), "NotFound", &["no-such-name", "List()"]);
    let long = client.try_attach("signal:command=0123456789abcdef", Options::new()).await;
    assert_error(&error(long), "InvalidArgument", &["15 bytes"]);

    let thread = client.attach(&format!("signal:pid={pid},tid={tid}")).await;
    assert!(client.address(&thread).await.contains(&format!("tid={tid}")));
    client.reply(&thread, "Process", "Send", &("0", 0)).await.expect("the null signal to a thread");
    let is_thread = client.try_attach(&format!("signal:pid={tid}"), Options::new()).await;
    assert_error(&error(is_thread), "InvalidArgument", &[&format!("pid={pid},tid={tid}")]);

    // Each process of the harness leads a group; its child is in it.
    let family = stage.sh("sleep 600 & echo pid $$ $!; wait $!; echo ended");
    let said = numbers(family.wait_for(|line| line.starts_with("pid ")).trim_start_matches("pid "));
    let member = client.attach(&format!("signal:pid={}", said[1])).await;
    let no_leader = client.try_attach(&format!("signal:pid={},group=true", said[1]), Options::new()).await;
    assert_error(&error(no_leader), "InvalidArgument", &["does not lead", &format!("pid={}", said[0])]);
    let group = client.attach(&format!("signal:pid={},group=true", said[0])).await;
    client.reply(&group, "Process", "Send", &("SIGTERM", 0)).await.expect("Send to a group");
    for endpoint in [&group, &member] {
        let ended: (i32, i32) =
            client.call(endpoint, "Process", "WaitExit", &(DEFAULT,)).await.expect("WaitExit");
        assert_eq!(ended, (-1, 15));
    }
}

/// Proves: signal list, fd
async fn what_is_no_target(stage: Stage) {
    let client = stage.client().await;
    for (address, phrase) in [
        ("signal:pid=0".to_owned(), "from 2"),
        ("signal:pid=1".into(), "from 2"),
        ("signal:pid=-1".into(), "from 2"),
        ("signal:pid=4194305".into(), "4194304"),
        ("signal:".into(), "command=NAME"),
        ("signal:pid=2,tid=2,group=true".into(), "exclude"),
    ] {
        let refused = client.try_attach(&address, Options::new()).await;
        assert_error(&error(refused), "InvalidArgument", &[phrase]);
    }
    let absent = client.try_attach("signal:pid=4194304", Options::new()).await;
    assert_error(&error(absent), "NotFound", &["4194304", "ESRCH"]);
    // The service itself: where there are workers, its spawner is what the tests have started.
    let own = client.try_attach(&format!("signal:pid={}", stage.service.pid()), Options::new()).await;
    if stage.way != Way::System {
        assert_error(&error(own), "InvalidArgument", &["the service itself"]);
    }
    let sleeper = stage.python("import os,time\nprint('pid',os.getpid(),flush=True)\ntime.sleep(600)", &[]);
    let pid = pid_of(&sleeper);
    let process = client.attach(&format!("signal:pid={pid}")).await;
    for signal in ["", "65", "-9", "SIGNOTHING", "SIGRTMIN+99"] {
        let refused = client.reply(&process, "Process", "Send", &(signal, 0)).await;
        assert_error(&error(refused), "InvalidArgument", &["is no signal", "SIGRTMIN+3"]);
    }
    let sent: bool =
        client.call(&process, "Process", "SendIfHandled", &("SIGHUP", 0)).await.expect("SendIfHandled");
    assert!(!sent, "python3 does not catch it");
    let start = client.address(&process).await.replace("start=", "start=1");
    let other = client.try_attach(&start, Options::new()).await;
    assert_error(&error(other), "NotFound", &["the one that is meant has ended"]);
    let fd = client.open(&process, Options::new()).await.expect("the pidfd");
    if stage.way != Way::Peer {
        let adopted = client.try_adopt(&fd).await.expect("Adopt");
        assert_eq!(client.number(&adopted, "Process", "Pid").await, i64::from(pid));
    }
    let rows = client.list("signal").await;
    let row = rows.iter().find(|row| row["pid"] == zbus::OwnedVariant::from(pid.cast_unsigned()));
    let row = row.expect("a row for the process");
    assert_eq!(String::try_from(row["command"].clone()).expect("a text"), "python3");
}

/// A full queue: RLIMIT_SIGPENDING of the receiver.
async fn a_full_queue_is_a_limit(stage: Stage) {
    let client = stage.client().await;
    let script = "import os,resource,signal,time\nresource.setrlimit(resource.RLIMIT_SIGPENDING,(3,3))\n\
        signal.pthread_sigmask(signal.SIG_BLOCK,[40])\nprint('pid',os.getpid(),flush=True)\ntime.sleep(600)";
    let receiver = stage.python(script, &[]);
    let process = client.attach(&format!("signal:pid={}", pid_of(&receiver))).await;
    let mut sent = 0;
    let refused = loop {
        match client.reply(&process, "Process", "Send", &("40", sent)).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent <= 3, "{sent} signals wait where 3 may");
    };
    assert_error(&refused, "LimitExceeded", &["EAGAIN", "RLIMIT_SIGPENDING", "of 3 signals"]);
}

everywhere!(
    exits_are_those_of_waitpid,
    an_end_is_a_signal_of_the_bus,
    every_signal_arrives,
    terminate_asks_first,
    by_name_by_thread_and_as_a_group,
    what_is_no_target,
    a_full_queue_is_a_limit,
);

/// What a person types.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_busctl() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let bus = busctl(&stage);
    let mut sleeper = stage
        .python("import os,sys\nprint('pid',os.getpid(),flush=True)\nsys.stdin.read()\nos._exit(42)", &[]);
    let address = format!("signal:pid={}", pid_of(&sleeper));
    let process = bus.manager("Attach", "sa{sv}", &[&address, "0"]).expect("Attach");
    let process = ipc_harness::object_path(&process);
    sleeper.close_stdin();
    let ended = bus.call(&process, "org.example.IPC.Process", "WaitExit", "u", &["10000"]).expect("WaitExit");
    assert_eq!(ended.trim(), "ii 42 0");
}
