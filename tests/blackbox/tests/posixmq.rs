//! POSIX message queues, with a program beside the service that calls the C library's mq_open, mq_timedsend,
//! mq_timedreceive and mq_notify.

use std::collections::BTreeMap;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::system::ROOT;
use ipc_harness::{
    Bus, NAME, Process, Service, TempDir, Unavailable, busctl, need_tool, or_skip, sh, unique,
};
use zbus::{OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

/// A line in, a line out: `send PRIORITY TEXT`, `receive`, `wait` (blocks in a thread), `notify`.
const PROGRAM: &str = r#"
import ctypes, errno, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
if not hasattr(libc, 'mq_open'): libc = ctypes.CDLL('librt.so.1', use_errno=True)
class Attributes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ('flags', 'depth', 'size', 'messages', 'a', 'b', 'c', 'd')]
class Time(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('ns', ctypes.c_long)]
libc.mq_timedreceive.restype = ctypes.c_ssize_t
lock = threading.Lock()
def say(*words):
    with lock: print(*words, flush=True)
def failed(): return errno.errorcode[ctypes.get_errno()]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def notified():
    while True: signal.sigwait([signal.SIGUSR1]); say('notified')
threading.Thread(target=notified, daemon=True).start()
name = sys.argv[1].encode()
if len(sys.argv) > 2: queue = libc.mq_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, ctypes.byref(Attributes(0, 3, 64, 0)))
else: queue = libc.mq_open(name, os.O_RDWR)
say('open' if queue >= 0 else failed())
def receive(word, when):
    buffer, priority = ctypes.create_string_buffer(64), ctypes.c_uint()
    got = libc.mq_timedreceive(queue, buffer, 64, ctypes.byref(priority), when)
    say(word, priority.value, buffer.raw[:got].decode()) if got >= 0 else say(failed())
for line in sys.stdin:
    verb, *rest = line.rstrip('\n').split(' ', 2)
    if verb == 'send':
        data = rest[1].encode()
        say('sent' if libc.mq_timedsend(queue, data, len(data), int(rest[0]), ctypes.byref(Time(0, 0))) == 0 else failed())
    elif verb == 'receive': receive('got', ctypes.byref(Time(0, 0)))
    elif verb == 'wait': say('waiting'); threading.Thread(target=receive, args=('woken', None), daemon=True).start()
    elif verb == 'remove': say('removed' if libc.mq_unlink(name) == 0 else failed())
    elif verb == 'notify':
        event = (ctypes.c_char * 64)(); ctypes.c_int.from_buffer(event, 8).value = signal.SIGUSR1
        say('asked' if libc.mq_notify(queue, event) == 0 else failed())
"#;

/// The program, asked one thing after the other.
struct Peer {
    process: Process,
    lines: usize,
}

impl Peer {
    fn start(stage: &Stage, arguments: &[&str]) -> Peer {
        let mut peer = Peer { process: stage.python(PROGRAM, arguments), lines: 0 };
        assert_eq!(peer.line(), "open");
        peer
    }

    /// The next line that it says.
    #[track_caller]
    fn line(&mut self) -> String {
        let at = self.lines;
        self.lines += 1;
        let said = self.process.stdout().wait_until(|lines| lines.get(at).map(|line| line.to_string()));
        said.unwrap_or_else(|_| panic!("it says no more: {}", self.process.stderr().text()))
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.process.write(format!("{line}\n"));
        self.line()
    }
}

fn address(name: &str) -> String {
    format!("posixmq:name={name},depth=3,size=64,remove-on-close")
}

fn urgent(priority: u32) -> Options<'static> {
    options([("priority", priority.into())])
}

async fn receive(client: &Client, path: &str) -> (String, u32) {
    let (data, attributes) = client.receive(path, 10_000).await.expect("Receive");
    let priority = u32::try_from(attributes["priority"].clone()).expect("a number");
    (String::from_utf8(data).expect("text"), priority)
}

/// What one makes the other finds, and neither can tell the other from its own kind.
///
/// Proves: posixmq create, read, write, fd, remove
async fn messages_are_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("shared"));
    let queue = client.create(&address(&name)).await;
    let mut program = Peer::start(&stage, &[&name]);
    assert_eq!(program.ask("receive"), "ETIMEDOUT");
    for (text, priority) in [("low", 0), ("first", 7), ("top", 32767)] {
        client.send(&queue, text.as_bytes(), urgent(priority)).await.expect("Send");
    }
    assert_eq!(program.ask("send 0 full"), "ETIMEDOUT");
    assert_eq!(client.number(&queue, "Messages", "Depth").await, 3);
    assert_eq!(client.number(&queue, "Messages", "MaxMessageSize").await, 64);
    assert_eq!(program.ask("receive"), "got 32767 top");
    assert_eq!(program.ask("send 7 second"), "sent");
    for expected in [("first", 7), ("second", 7), ("low", 0)] {
        assert_eq!(receive(&client, &queue).await, (expected.0.to_owned(), expected.1));
    }
    assert_eq!(program.ask("wait"), "waiting");
    client.send(&queue, b"wake", Options::new()).await.expect("Send");
    assert_eq!(program.line(), "woken 0 wake");

    // A descriptor of it, there and back again.
    let fd = client.open(&queue, options([("access", "read".into())])).await.expect("Open");
    let reader = client.try_adopt(&fd).await.expect("Adopt");
    assert!(reader.contains("/posixmq/"), "{reader}");
    assert_eq!(client.address(&reader).await, format!("posixmq:name={name}"));
    assert_eq!(program.ask("send 1 through"), "sent");
    assert_eq!(receive(&client, &reader).await, ("through".into(), 1));
    let denied = error(client.send(&reader, b"x", Options::new()).await);
    assert_error(&denied, "PermissionDenied", &["access=read", "access=write"]);

    let theirs = format!("/{}", unique("theirs"));
    let mut program = Peer::start(&stage, &[&theirs, "create"]);
    let exists = error(client.try_create(&address(&theirs), Options::new()).await);
    assert_error(&exists, "Exists", &["Attach opens"]);
    let queue = client.create(&format!("{},or-attach", address(&theirs))).await;
    client.send(&queue, b"found", urgent(2)).await.expect("Send");
    assert_eq!(program.ask("receive"), "got 2 found");
    client.run(&queue, "Endpoint", "Remove").await;
    let gone = error(client.try_attach(&format!("posixmq:name={theirs}"), Options::new()).await);
    assert_error(&gone, "NotFound", &[&theirs, "ENOENT"]);
}

/// `Ready` takes nothing, not the message and not the one notification that a queue has; `deliver` takes.
///
/// Proves: posixmq event
async fn news_of_messages(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let name = format!("/{}", unique("news"));
    let queue = client.create(&format!("{},notify", address(&name))).await;
    let mut program = Peer::start(&stage, &[&name]);
    for round in 1..=2 {
        assert_eq!(program.ask("notify"), "asked");
        client.send(&queue, b"news", urgent(3)).await.expect("Send");
        assert_eq!(program.line(), "notified", "round {round}");
        inbox.signals(&queue, "Ready", round).await;
        assert_eq!(client.number(&queue, "Messages", "Depth").await, 1);
        assert_eq!(program.ask("receive"), "got 3 news");
        // The service looks now and then whether somebody else has taken it; a Receive makes it look at once.
        client.send(&queue, b"between", Options::new()).await.expect("Send");
        assert_eq!(receive(&client, &queue).await.0, "between");
    }
    client.close(&queue).await;

    let queue = client.create(&format!("{},deliver", address(&name))).await;
    let mut program = Peer::start(&stage, &[&name]);
    assert_eq!(program.ask("send 5 by signal"), "sent");
    let received = inbox.signal(&queue, "Received").await;
    let (seq, data, attributes): (u64, Vec<u8>, BTreeMap<String, OwnedVariant>) =
        received.body().deserialize().expect("Received");
    assert_eq!((seq, data.as_slice(), &*attributes["priority"]), (1, &b"by signal"[..], &Variant::U32(5)));
}

/// Proves: posixmq wait
async fn waits_end(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("waits"));
    let queue = client.create(&address(&name)).await;
    let mut program = Peer::start(&stage, &[&name]);
    assert_error(&error(client.receive(&queue, 0).await), "Busy", &["without waiting"]);
    assert_error(&error(client.receive(&queue, 50).await), "Timeout", &["within 50 ms"]);
    let waiting = tokio::spawn({
        let (client, queue) = (client.clone(), queue.clone());
        async move { receive(&client, &queue).await }
    });
    client.used("waits", 1).await;
    assert_eq!(program.ask("send 4 at last"), "sent");
    assert_eq!(waiting.await.expect("a task"), ("at last".into(), 4));

    for _ in 0..3 {
        client.send(&queue, b"x", Options::new()).await.expect("Send");
    }
    let send = |timeout: u32| {
        let (client, queue) = (client.clone(), queue.clone());
        async move { client.call::<(), _>(&queue, "Messages", "Send", &(&b"y"[..], urgent(9), timeout)).await }
    };
    assert_error(&error(send(0).await), "Busy", &[]);
    assert_error(&error(send(50).await), "Timeout", &["within 50 ms"]);
    let waiting = tokio::spawn(send(DEFAULT));
    client.used("waits", 1).await;
    assert_eq!(program.ask("receive"), "got 0 x");
    waiting.await.expect("a task").expect("there is room");
    assert_eq!(program.ask("receive"), "got 9 y");
    client.used("waits", 0).await;

    // Who waits when it is closed is told; what others have open stays.
    for _ in 0..2 {
        receive(&client, &queue).await;
    }
    let waiting = tokio::spawn({
        let (client, queue) = (client.clone(), queue.clone());
        async move { client.receive(&queue, DEFAULT).await }
    });
    client.used("waits", 1).await;
    client.close(&queue).await;
    assert_error(&error(waiting.await.expect("a task")), "Cancelled", &[]);
    assert_eq!(program.ask("send 1 alone"), "sent");
}

async fn what_is_refused(stage: Stage) {
    let client = stage.client().await;
    let name = format!("/{}", unique("refused"));
    let queue = client.create(&address(&name)).await;
    let large = error(client.send(&queue, &[0; 65], Options::new()).await);
    assert_error(&large, "TooLarge", &["65 bytes", "takes 64", "EMSGSIZE"]);
    let beyond = error(client.send(&queue, b"x", urgent(32768)).await);
    assert_error(&beyond, "InvalidArgument", &["\"priority\"", "32767"]);
    let typed = error(client.send(&queue, b"x", options([("type", 1u32.into())])).await);
    assert_error(&typed, "InvalidArgument", &["\"type\"", "priority"]);
    let selector = (options([("type", 1u32.into())]), 0u32);
    type Message = (Vec<u8>, BTreeMap<String, OwnedVariant>);
    let selected = error(client.call::<Message, _>(&queue, "Messages", "Receive", &selector).await);
    assert_error(&selected, "InvalidArgument", &["no selector", "sysvmq"]);
    let peeked = error(client.call::<Message, _>(&queue, "Messages", "Peek", &(Options::new(), 0u32)).await);
    assert_error(&peeked, "NotSupported", &["cannot peek", "Depth"]);
    let long = "n".repeat(256);
    for (address, name, phrases) in [
        (format!("posixmq:name=/{long}"), "InvalidArgument", ["ENAMETOOLONG", "255"]),
        ("posixmq:name=/a/b".into(), "InvalidArgument", ["second '/'", "EACCES"]),
        ("posixmq:name=jobs".into(), "InvalidArgument", ["does not begin", "EINVAL"]),
        ("posixmq:name=/a%00b".into(), "InvalidArgument", ["name", "must be"]),
        (format!("posixmq:name=/{name}x,depth=0"), "InvalidArgument", ["\"depth\"", "1 to 65536"]),
        (format!("posixmq:name=/{name}x,size=17M"), "InvalidArgument", ["\"size\"", "16777216"]),
    ] {
        assert_error(&error(client.try_create(&address, Options::new()).await), name, &phrases);
    }
    let mode = options([("mode", 0o640u32.into())]);
    client.call::<(), _>(&queue, "Endpoint", "SetPermissions", &(mode,)).await.expect("SetPermissions");
    let state: BTreeMap<String, OwnedVariant> =
        client.call(&queue, "Endpoint", "Inspect", &()).await.expect("Inspect");
    assert_eq!((&*state["mode"], &*state["depth"]), (&Variant::U32(0o640), &Variant::U64(3)));
    assert_eq!(client.number(&queue, "Messages", "Depth").await, 0, "nothing of it has arrived");
    if stage.system.is_some() {
        // An ordinary user, and the limits that he has on every machine.
        let over =
            error(client.try_create(&format!("posixmq:name=/{},size=1M", unique("x")), Options::new()).await);
        assert_error(&over, "InvalidArgument", &["EINVAL", "fs.mqueue.msgsize_max, now "]);
    }
}

/// The mqueue file system where the service sees it, for as long as this lives.
struct Mounted<'a> {
    stage: &'a Stage,
    directory: TempDir,
}

impl Mounted<'_> {
    fn new(stage: &Stage) -> Result<Mounted<'_>, Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable("only root can mount".into()));
        }
        let mounted = Mounted { stage, directory: stage.temp_dir() };
        mounted.run("mount -t mqueue none").success();
        Ok(mounted)
    }

    fn run(&self, command: &str) -> ipc_harness::Finished {
        let script = format!("{command} '{}'", self.directory.path().display());
        match &self.stage.system {
            Some(system) => system.sh_as(&ROOT.into(), &script).finish(),
            None => sh(&script).finish(),
        }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.run("umount --lazy");
    }
}

/// Where no mqueue file system is mounted, `List` says how to; where one is, it is found.
///
/// Proves: posixmq list
async fn the_list(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("list"));
    let queue = client.create(&format!("{},mode=0640", address(&name))).await;
    let node = format!("{}/posixmq", ipc_harness::PATH);
    type Rows = Vec<BTreeMap<String, OwnedVariant>>;
    // Another test, or the machine, may have one mounted.
    if let Err(refused) = client.call::<Rows, _>(&node, "Mechanism", "List", &(Options::new(),)).await {
        let help = "mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue";
        assert_error(&refused, "Unavailable", &["not mounted", help, "Create and Attach work"]);
    }
    let _mounted = or_skip!(Mounted::new(&stage));
    let program = Peer::start(&stage, &[&name]);
    client.send(&queue, b"four", Options::new()).await.expect("Send");
    let filter = options([("name", name.as_str().into())]);
    let rows: Rows = client.call(&node, "Mechanism", "List", &(filter,)).await.expect("List");
    let [row] = &rows[..] else { panic!("one row, not {rows:?}") };
    for (key, value) in [("depth", 3), ("size", 64), ("messages", 1), ("bytes", 4)] {
        assert_eq!(&*row[key], &Variant::U64(value), "{key}");
    }
    assert_eq!((&*row["mode"], &*row["stale"]), (&Variant::U32(0o640), &Variant::Bool(false)));
    let holders = format!("{:?}", row["holders"]);
    assert!(
        holders.contains(&format!("U32({})", program.process.pid())) && holders.contains("python"),
        "{holders}"
    );
    // One that a program has made.
    let theirs = format!("/{}", unique("theirs"));
    let mut maker = Peer::start(&stage, &[&theirs, "create"]);
    let filter = || options([("name", theirs.as_str().into())]);
    let rows: Rows = client.call(&node, "Mechanism", "List", &(filter(),)).await.expect("List");
    let [row] = &rows[..] else { panic!("one row, not {rows:?}") };
    assert_eq!((&*row["mode"], &*row["messages"]), (&Variant::U32(0o600), &Variant::U64(0)));
    assert_eq!(*row["address"], Variant::from(format!("posixmq:name={theirs}")));
    assert_eq!(maker.ask("remove"), "removed");
    let rows: Rows = client.call(&node, "Mechanism", "List", &(filter(),)).await.expect("List");
    assert!(rows.is_empty(), "{rows:?}");
    let limits = client.property(&node, "Mechanism", "Limits").await.expect("Limits");
    let limits: BTreeMap<String, OwnedVariant> = limits.try_into().expect("a dictionary");
    for key in ["fs.mqueue.queues_max", "fs.mqueue.msg_max", "RLIMIT_MSGQUEUE", "queues", "msgqueue-used"] {
        assert!(limits.contains_key(key), "{key}: {limits:?}");
    }
}

everywhere!(messages_are_shared, news_of_messages, waits_end, what_is_refused, the_list);

/// A message that was taken and could not be delivered is the queue's again when its endpoint ends, by Close or with
/// the service.
///
/// Proves: posixmq attach
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_goes_back() {
    or_skip!(need_tool("python3"));
    let mut stage = or_skip!(Stage::new(Way::DbusDaemon));
    let client = stage.client().await;
    let name = format!("/{}", unique("kept"));
    // The program's own, and removed by it.
    let mut program = Peer::start(&stage, &[&name, "create"]);
    for end in ["Close", "service"] {
        let queue = client.attach(&format!("posixmq:name={name}")).await;
        client.send(&queue, b"no\0text", urgent(6)).await.expect("Send");
        type Text = (String, BTreeMap<String, OwnedVariant>);
        let body = (Options::new(), 1000u32);
        let refused = client.call::<Text, _>(&queue, "Messages", "ReceiveText", &body).await;
        assert_error(&error(refused), "InvalidArgument", &["kept", "use Receive"]);
        assert_eq!(program.ask("receive"), "ETIMEDOUT", "it is with the endpoint");
        match end {
            "Close" => client.close(&queue).await,
            _ => assert!(stage.service.terminate().success()),
        }
        assert_eq!(program.ask("wait"), "waiting");
        assert_eq!(program.line(), "woken 6 no\0text", "{end}");
    }
    assert_eq!(program.ask("remove"), "removed");
}

/// What a shell does with busctl.
#[test]
fn by_busctl() {
    let bus = or_skip!(Bus::dbus_daemon());
    let service = Service::on(&bus);
    let busctl = busctl(&service);
    let name = format!("/{}", unique("shell"));
    let queue = busctl.manager("Create", "sa{sv}", &[&address(&name), "0"]).expect("Create");
    let queue = ipc_harness::object_path(&queue);
    let messages = format!("{NAME}.Messages");
    for (text, priority) in [("later", "1"), ("now", "9")] {
        let words = [text, "1", "priority", "u", priority, "1000"];
        busctl.call(&queue, &messages, "SendText", "sa{sv}u", &words).expect("SendText");
    }
    let received = busctl.call(&queue, &messages, "ReceiveText", "a{sv}u", &["0", "1000"]);
    assert_eq!(received.expect("ReceiveText").trim(), r#"sa{sv} "now" 1 "priority" u 9"#);
    assert_eq!(busctl.property(&queue, &messages, "Depth").expect("Depth").trim(), "t 1");
    let empty = error(busctl.call(&queue, &messages, "Receive", "a{sv}u", &["1", "type", "u", "1", "0"]));
    assert_error(&empty, "InvalidArgument", &["no selector"]);
}
