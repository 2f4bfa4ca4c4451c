//! Mailboxes: what kill(1), sigqueue(3) and the service itself send to them, and their ends.

use std::process::Command;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::system::ALICE;
use ipc_harness::{SystemBus, gdbus, or_skip, patience, wait_gone};
use zbus::message::Message;

/// number, name, pid, uid, value, code
type Received = (u64, i32, String, i32, u32, i32, i32);
type Kept = (u64, u64, i32, String, i32, u32, i32, i32);

/// Sends to a process, by lines "signal value"; value `-` is kill(2), else sigqueue(3).
const SENDER: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
print('pid', os.getpid(), os.getuid(), flush=True)
for line in sys.stdin:
    signal, value = line.split()
    try:
        if value == '-': os.kill(pid, int(signal))
        elif libc.sigqueue(pid, int(signal), ctypes.c_void_p(int(value))): raise OSError(ctypes.get_errno(), '')
        print('sent', flush=True)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)
"#;

fn read(message: &Message) -> Received {
    message.body().deserialize().expect("Received")
}

async fn pid_of(client: &Client, mailbox: &str) -> i32 {
    i32::try_from(client.number(mailbox, "Mailbox", "Pid").await).expect("a pid")
}

fn kill(stage: &Stage, signal: &str, pid: i32) {
    stage.sh(&format!("kill -s {signal} {pid}")).finish().success();
}

/// Proves: signal create, read, event
async fn all_signals_arrive(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let mailbox = client.create("signal:numbers=all").await;
    let pid = pid_of(&client, &mailbox).await;
    let names = client.property(&mailbox, "Mailbox", "Numbers").await.expect("Numbers");
    let names: Vec<String> = names.try_into().expect("texts");
    assert_eq!(names.len(), 62, "all but SIGKILL and SIGSTOP: {names:?}");
    let mut sender = stage.python(SENDER, &[&pid.to_string()]);
    let all: Vec<i32> = (1..=64).filter(|number| ![9, 19].contains(number)).collect();
    for (before, number) in all.iter().enumerate() {
        let value = if number % 2 == 0 { "-".to_owned() } else { (number * 1000).to_string() };
        sender.write(format!("{number} {value}\n"));
        // One by one: SIGCONT and the signals that stop a process undo each other while they wait.
        inbox.signals(&mailbox, "Received", before + 1).await;
    }
    let arrived = inbox.signals(&mailbox, "Received", all.len()).await;
    let said = sender.wait_for(|line| line.starts_with("pid "));
    let said: Vec<i64> = said.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
    let mut arrived: Vec<Received> = arrived.iter().map(read).collect();
    let sequence: Vec<u64> = arrived.iter().map(|received| received.0).collect();
    assert_eq!(sequence, (1..=62).collect::<Vec<u64>>(), "numbered without holes");
    arrived.sort_by_key(|received| received.1);
    for ((number, name), (_, got, got_name, sender, uid, value, code)) in all.iter().zip(&names).zip(&arrived)
    {
        let (expected_value, expected_code) = if number % 2 == 0 { (0, 0) } else { (number * 1000, -1) };
        assert_eq!((got, got_name, value, code), (number, name, &expected_value, &expected_code));
        assert_eq!((i64::from(*sender), i64::from(*uid)), (said[0], said[1]), "the sender");
    }
    let (kept, lost): (Vec<Kept>, u64) =
        client.call(&mailbox, "Mailbox", "Since", &(60u64,)).await.expect("Since");
    assert_eq!((kept.len(), lost), (2, 0));
}

/// Real-time signals: each with its value, none missing, in the order in which they were sent.
async fn values_arrive_in_order(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let mailbox = client.create_with("signal:", options([("number", vec!["SIGRTMIN+3"].into())])).await;
    let pid = pid_of(&client, &mailbox).await;
    // Through the service, to the mailbox as to any other process.
    let process = client.attach(&format!("signal:pid={pid}")).await;
    for value in [i32::MIN, -1, 0, 1, i32::MAX] {
        client.reply(&process, "Process", "Send", &("SIGRTMIN+3", value)).await.expect("Send");
    }
    let arrived = inbox.signals(&mailbox, "Received", 5).await;
    let values: Vec<i32> = arrived.iter().map(|message| read(message).5).collect();
    assert_eq!(values, [i32::MIN, -1, 0, 1, i32::MAX]);
    let count = 1000;
    let mut sender = stage.python(SENDER, &[&pid.to_string()]);
    for value in 0..count {
        sender.write(format!("37 {value}\n"));
    }
    let arrived = inbox.signals(&mailbox, "Received", 5 + count as usize).await;
    let values: Vec<i32> = arrived[5..].iter().map(|message| read(message).5).collect();
    assert_eq!(values, (0..count).collect::<Vec<_>>());
}

async fn only_what_was_asked_for_counts(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let mailbox = client.create("signal:numbers=SIGUSR1/SIGRTMIN").await;
    let pid = pid_of(&client, &mailbox).await;
    // All others but those that cannot be ignored, and SIGTERM.
    let mut sender = stage.python(SENDER, &[&pid.to_string()]);
    let others: Vec<i32> = (1..=64).filter(|number| ![9, 10, 15, 19, 34].contains(number)).collect();
    for number in &others {
        sender.write(format!("{number} -\n"));
    }
    sender.write("10 -\n");
    let arrived = inbox.signal(&mailbox, "Received").await;
    assert_eq!(read(&arrived).2, "SIGUSR1", "the first that was asked for");
    // Stopped, it receives nothing; continued, all that is queued.
    kill(&stage, "STOP", pid);
    let state = format!("/proc/{pid}/stat");
    let stopped = || std::fs::read_to_string(&state).is_ok_and(|text| text.contains(") T "));
    ipc_harness::watchdog(patience(), async {
        while !stopped() {
            tokio::task::yield_now().await
        }
    })
    .await;
    sender.write("34 1\n34 2\n34 3\n10 -\n10 -\n");
    let all_sent = |lines: &[String]| {
        (lines.iter().filter(|line| *line == "sent").count() == others.len() + 6).then_some(())
    };
    sender.stdout().wait_until(all_sent).expect("all sent");
    kill(&stage, "CONT", pid);
    let arrived = inbox.signals(&mailbox, "Received", 5).await;
    let told: Vec<(i32, i32)> =
        arrived.iter().skip(1).map(read).map(|received| (received.1, received.5)).collect();
    // In the order of their numbers; the standard one was sent twice and waited once.
    assert_eq!(told, [(10, 0), (34, 1), (34, 2), (34, 3)]);
    // SIGTERM ends it.
    kill(&stage, "TERM", pid);
    let reason: String = inbox.signal(&mailbox, "Closed").await.body().deserialize().expect("a reason");
    assert!(reason.contains("was ended by SIGTERM") && reason.contains(&pid.to_string()), "{reason}");
    assert!(wait_gone(pid), "it was reaped");
}

async fn its_end_is_told(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let mailbox = client.create("signal:number=SIGTERM").await;
    let pid = pid_of(&client, &mailbox).await;
    kill(&stage, "TERM", pid);
    assert_eq!(read(&inbox.signal(&mailbox, "Received").await).2, "SIGTERM", "it was asked for");
    kill(&stage, "KILL", pid);
    let reason: String = inbox.signal(&mailbox, "Closed").await.body().deserialize().expect("a reason");
    assert!(reason.contains("was ended by SIGKILL"), "{reason}");
    assert!(wait_gone(pid), "it was reaped");
    // Closed, it goes, stopped or not.
    let mailbox = client.create("signal:number=SIGUSR1").await;
    let pid = pid_of(&client, &mailbox).await;
    kill(&stage, "STOP", pid);
    client.close(&mailbox).await;
    assert!(wait_gone(pid), "it ends with its endpoint");
}

async fn what_is_no_mailbox(stage: Stage) {
    let client = stage.client().await;
    for (address, phrase) in [
        ("signal:", "numbers="),
        ("signal:number=SIGKILL", "can catch"),
        ("signal:numbers=SIGUSR1/SIGSTOP", "SIGSTOP"),
        ("signal:numbers=SIGUSR1+SIGUSR2", "joined with '/'"),
        ("signal:numbers=", "SIGRTMIN+3"),
        ("signal:number=0", "from 1 to 64"),
        ("signal:pid=4711", "no key \"pid\""),
    ] {
        assert_error(&error(client.try_create(address, Options::new()).await), "InvalidArgument", &[phrase]);
    }
    let mailbox = client.create("signal:number=10,lifetime=client").await;
    let address = client.address(&mailbox).await;
    let process = client.attach(&address).await;
    assert_eq!(client.number(&process, "Process", "Pid").await, i64::from(pid_of(&client, &mailbox).await));
    let command = client.property(&process, "Process", "Command").await.expect("Command");
    assert_eq!(String::try_from(command).expect("a text"), "ipcd-mailbox");
    let pipe = client.create("pipe:").await;
    let refused = client.try_relay(&mailbox, &pipe, Options::new()).await;
    assert_error(&error(refused), "NotSupported", &["comes as signals"]);
    assert!(error(client.reply(&mailbox, "Endpoint", "Remove", &()).await).is("NotSupported"));
}

async fn mailboxes_are_limited(stage: Stage) {
    let client = stage.client().await;
    let first = client.create("signal:number=10").await;
    client.create("signal:number=10").await;
    let refused = client.try_create("signal:number=10", Options::new()).await;
    assert_error(&error(refused), "LimitExceeded", &["mailboxes is 2"]);
    client.close(&first).await;
    client.used("mailboxes", 1).await;
    client.create("signal:number=10").await;
}

/// The processes that are locked down as the service is, and hold nothing of it.
async fn it_holds_nothing(stage: Stage) {
    let client = stage.client().await;
    let memory = client.create("mmap:size=4096").await;
    let stored = client.reply(&memory, "Memory", "Store", &(0u64, zbus::Variant::from(1u32))).await;
    stored.expect("a mapped word");
    let mailbox = client.create("signal:number=10").await;
    let pid = pid_of(&client, &mailbox).await;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let Ok(maps) = read("maps") else {
        return eprintln!("SKIPPED: only root looks into other users' processes");
    };
    let shared: Vec<&str> =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.ends_with('s'))).collect();
    assert!(shared.is_empty(), "shared mappings: {shared:?}");
    assert!(!maps.contains("[heap]"), "{maps}");
    let mut fds: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    fds.sort_unstable();
    assert_eq!(fds, [0, 1, 2, 3, 4], "the standard ones, its pipe, its signalfd");
    let status = read("status").expect("its status");
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("Name"), "ipcd-mailbox");
    assert_eq!(field("SigCgt").trim_start_matches('0'), "", "no handler is left");
    if stage.way == Way::System {
        assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2".into(), "1".into()));
        assert_eq!(field("CapEff").trim_start_matches('0'), "");
        let uid = field("Uid");
        assert!(uid.split_whitespace().all(|uid| uid != "0"), "{uid}");
    }
    let rollup = read("smaps_rollup").unwrap_or_default();
    let dirty = rollup.lines().find(|line| line.starts_with("Private_Dirty")).unwrap_or_default();
    println!("{dirty}");
}

everywhere!(
    all_signals_arrive,
    values_arrive_in_order,
    only_what_was_asked_for_counts,
    its_end_is_told,
    what_is_no_mailbox,
    it_holds_nothing,
);

mod limited {
    use super::mailboxes_are_limited;
    ipc_blackbox::everywhere!(config = "[limits]\nmailboxes = 2\n"; mailboxes_are_limited);
}

/// Two hundred come and go: no process is left, ended or not, and no descriptor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_them() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let service = stage.service.pid();
    let names = |directory: String| {
        let entries = std::fs::read_dir(directory).expect("the service's /proc").flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let descriptors = || names(format!("/proc/{service}/fd")).len();
    // Zombies are among them.
    let children = || {
        let threads = names(format!("/proc/{service}/task")).into_iter();
        let lists =
            threads.map(|thread| std::fs::read_to_string(thread.join("children")).unwrap_or_default());
        lists.map(|list| list.split_whitespace().count()).sum::<usize>()
    };
    // What is made once stays: the first is not counted.
    let mailbox = client.create("signal:number=10").await;
    assert_eq!(children(), 1);
    client.close(&mailbox).await;
    client.used("mailboxes", 0).await;
    let before = descriptors();
    for _ in 0..200 {
        let mailbox = client.create("signal:number=10").await;
        client.close(&mailbox).await;
    }
    let none_left = async {
        while children() > 0 || descriptors() > before {
            tokio::task::yield_now().await;
        }
    };
    ipc_harness::watchdog(patience(), none_left).await;
}

/// kill -9 on the service: a mailbox does not outlive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_the_service() {
    let mut stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let mut pids = Vec::new();
    for _ in 0..8 {
        let mailbox = client.create("signal:numbers=all").await;
        pids.push(pid_of(&client, &mailbox).await);
    }
    stage.service.kill();
    for pid in pids {
        assert!(wait_gone(pid), "{pid}");
    }
}

/// And on the caller's worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_the_worker() {
    let stage = or_skip!(Stage::new(Way::System));
    let client = stage.client().await;
    let mailbox = client.create("signal:numbers=all").await;
    let pid = pid_of(&client, &mailbox).await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let worker = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent").trim();
    let killed = Command::new("kill").args(["-9", worker]).status().expect("kill(1)");
    assert!(killed.success());
    assert!(wait_gone(pid), "{pid}");
}

/// The sandbox's list has all that mailboxes and processes need: here a call that is missing ends the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandbox_allows_what_is_needed() {
    let system = or_skip!(SystemBus::dbus_daemon());
    let service = system.launch().argument("--sandbox-kills").start();
    let client = Client::of_system_bus(system.connect_as(&ALICE.into()).await);
    let inbox = client.inbox().await;
    let mailbox = client.create("signal:numbers=all").await;
    let pid = pid_of(&client, &mailbox).await;
    let process = client.attach(&format!("signal:pid={pid}")).await;
    client.reply(&process, "Process", "Send", &("SIGSYS", 5)).await.expect("Send");
    assert_eq!(read(&inbox.signal(&mailbox, "Received").await).5, 5);
    for path in [&process, &mailbox] {
        client.reply(path, "Endpoint", "Inspect", &()).await.expect("Inspect");
    }
    assert!(!client.list("signal").await.is_empty());
    client.close(&mailbox).await;
    let ended: (i32, i32) =
        client.call(&process, "Process", "WaitExit", &(10_000u32,)).await.expect("WaitExit");
    assert_eq!(ended, (-1, 9));
    assert!(!service.log().contains("does not allow"), "{}", service.log());
}

/// A receiver that is refreshed by exactly one signal with a value, as gdbus shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_gdbus() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let bus = gdbus(&stage);
    let made = bus.manager("Create", &["'signal:number=SIGRTMIN+3'", "{}"]).expect("Create");
    let mailbox = ipc_harness::object_path(&made);
    let client = stage.client().await;
    let pid = pid_of(&client, &mailbox).await;
    let made = bus.manager("Attach", &[&format!("'signal:pid={pid}'"), "{}"]).expect("Attach");
    let process = ipc_harness::object_path(&made);
    let monitor = ipc_harness::gdbus_monitor(&bus);
    bus.call(&process, "org.example.IPC.Process", "Send", &["'SIGRTMIN+3'", "42"]).expect("Send");
    let service = stage.service.pid();
    let line = monitor.wait_for(|line| line.contains("Mailbox.Received"));
    assert!(
        line.contains(&format!("(uint64 1, 37, 'SIGRTMIN+3', {service}, uint32 "))
            && line.contains(", 42, -1)"),
        "{line}"
    );
}
