//! System V sets and unnamed POSIX semaphores, with the C library (called from Python), ipcs and lsipc as the others.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::{
    Bus, Process, Service, busctl, gdbus, need_tool, object_path, on_each_bus, or_skip, patience, unique,
    watchdog,
};
use zbus::{OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

/// Number of the semaphore, operation, flags.
type Operation = (u16, i16, u16);

/// A key that nobody has. Its set is removed at the end, whoever made it.
struct Key(String);

impl Key {
    fn new() -> Key {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) & 0xfff;
        Key(format!("0x{:x}", 0x6000_0000 | (std::process::id() & 0xffff) << 12 | number))
    }

    fn address(&self) -> String {
        format!("sysvsem:key={}", self.0)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let _gone = Command::new("ipcrm").args(["-S", &self.0]).stderr(Stdio::null()).status();
    }
}

/// The set of the key, made by this program if a count is given. Lines "op number,operation …", "values", "waiters
/// number", "set number value" and "remove".
const SETS: &str = r#"
import ctypes, errno, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
key = ctypes.c_int(int(sys.argv[1], 16)).value
count = int(sys.argv[2])
id = libc.semget(key, count, 0o3666 if count else 0)
def say(result, text='ok'):
    print(errno.errorcode[ctypes.get_errno()] if result == -1 else text, flush=True)
say(id, 'ready')
for line in sys.stdin:
    word, *rest = line.split()
    if word == 'op':
        operations = [tuple(int(n) for n in operation.split(',')) for operation in rest]
        packed = b''.join(struct.pack('HhH', n, operation, 0) for n, operation in operations)
        say(libc.semop(id, packed, ctypes.c_size_t(len(operations))), 'did ' + ' '.join(rest))
    elif word == 'values':
        buffer = ctypes.create_string_buffer(1024)
        say(libc.semctl(id, 0, 13, buffer), ' '.join(map(str, struct.unpack_from('3H', buffer))))
    elif word == 'waiters': print(libc.semctl(id, int(rest[0]), 14), flush=True)
    elif word == 'set': say(libc.semctl(id, int(rest[0]), 16, int(rest[1])))
    elif word == 'remove': say(libc.semctl(id, 0, 0))
"#;

struct Peer {
    process: Process,
    answers: usize,
}

impl Peer {
    fn start(stage: &Stage, script: &str, arguments: &[&str]) -> Peer {
        let process = stage.python(script, arguments);
        process.wait_for(|line| line == "ready");
        Peer { process, answers: 1 }
    }

    fn tell(&mut self, line: &str) {
        self.process.write(format!("{line}\n"));
    }

    fn answer(&mut self) -> String {
        let (nth, lines) = (self.answers, self.process.stdout());
        self.answers += 1;
        lines.wait_until(|lines| lines.get(nth).cloned()).expect("an answer")
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }
}

async fn values(client: &Client, set: &str) -> Vec<i32> {
    let values = client.property(set, "Semaphore", "Values").await.expect("Values");
    values.try_into().expect("an array of numbers")
}

async fn state(client: &Client, endpoint: &str) -> BTreeMap<String, OwnedVariant> {
    client.call(endpoint, "Endpoint", "Inspect", &()).await.expect("Inspect")
}

fn numbers(value: &OwnedVariant) -> Vec<u32> {
    value.clone().try_into().expect("an array of numbers")
}

async fn operate(
    client: &Client,
    set: &str,
    operations: &[Operation],
    timeout: u32,
) -> Result<(), ipc_harness::CallError> {
    client.call(set, "Semaphore", "Operate", &(operations, timeout)).await
}

/// Until so many threads wait for it to grow; each question is a call.
async fn waits(client: &Client, set: &str, count: u32) {
    let counted =
        async { while numbers(&state(client, set).await["waiters"]).iter().sum::<u32>() != count {} };
    watchdog(patience(), counted).await;
}

/// Proves: sysvsem create, attach, read, write, wait
async fn sets_are_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let (ours, theirs) = (Key::new(), Key::new());
    let set = client.create(&format!("{},values=1+0+5,mode=660,remove-on-close", ours.address())).await;
    let mut process = Peer::start(&stage, SETS, &[&ours.0, "0"]);
    assert_eq!(process.ask("values"), "1 0 5");
    assert_eq!(process.ask("op 0,-1 1,2"), "did 0,-1 1,2");
    assert_eq!(values(&client, &set).await, [0, 2, 5]);
    operate(&client, &set, &[(1, -2, 0), (2, -5, 0), (0, 1, 0)], 0).await.expect("Operate");
    assert_eq!(process.ask("values"), "1 0 0");

    // Either waits for the other.
    let waiting = {
        let (client, set) = (client.clone(), set.clone());
        tokio::spawn(async move { operate(&client, &set, &[(0, -1, 0), (1, -3, 0)], DEFAULT).await })
    };
    waits(&client, &set, 1).await;
    assert_eq!(process.ask("waiters 1"), "1", "the kernel counts it");
    assert_eq!(process.ask("op 1,4"), "did 1,4");
    watchdog(patience(), waiting).await.expect("a task").expect("Operate");
    assert_eq!(values(&client, &set).await, [0, 1, 0]);
    process.tell("op 0,-2 1,0");
    waits(&client, &set, 1).await;
    client.call::<(), _>(&set, "Semaphore", "Post", &(2u32,)).await.expect("Post");
    operate(&client, &set, &[(1, -1, 0)], 0).await.expect("Operate");
    assert_eq!(process.answer(), "did 0,-2 1,0");
    client.call::<(), _>(&set, "Semaphore", "SetValues", &(vec![7i32, 8, 9],)).await.expect("SetValues");
    assert_eq!(process.ask("values"), "7 8 9");
    assert_eq!(process.ask("set 2 1"), "ok");
    let third = client.attach(&format!("{},number=2", ours.address())).await;
    assert_eq!(client.number(&third, "Semaphore", "Value").await, 1);
    assert!(client.call::<bool, _>(&third, "Semaphore", "TryWait", &()).await.expect("TryWait"));
    assert!(!client.call::<bool, _>(&third, "Semaphore", "TryWait", &()).await.expect("TryWait"));

    // A set that a program made, and removes while we wait.
    let mut maker = Peer::start(&stage, SETS, &[&theirs.0, "3"]);
    assert_eq!(maker.ask("op 0,2 1,1"), "did 0,2 1,1");
    let set = client.attach(&theirs.address()).await;
    assert_eq!(values(&client, &set).await, [2, 1, 0]);
    let pids = numbers(&state(&client, &set).await["pids"]);
    assert_eq!(pids, [maker.process.pid() as u32, maker.process.pid() as u32, 0]);
    let waiting = {
        let (client, set) = (client.clone(), set.clone());
        tokio::spawn(async move { operate(&client, &set, &[(2, -1, 0)], DEFAULT).await })
    };
    waits(&client, &set, 1).await;
    assert_eq!(maker.ask("remove"), "ok");
    let gone = error(watchdog(patience(), waiting).await.expect("a task"));
    assert_error(&gone, "Gone", &["removed"]);
    assert_error(&error(operate(&client, &set, &[(2, 1, 0)], 0).await), "Gone", &["removed"]);
}

async fn what_sets_refuse(stage: Stage) {
    let client = stage.client().await;
    let key = Key::new();
    let set = client.create(&format!("{},values=1+0,remove-on-close", key.address())).await;
    let refused: [(&[Operation], u32, &str, &[&str]); 9] = [
        (&[(0, -2, 0)], 0, "Busy", &["timeout_ms other than 0"]),
        (&[(0, -2, 0)], 50, "Timeout", &["within 50 ms"]),
        (&[(0, -1, 0), (1, -1, 2048)], 50, "Busy", &["IPC_NOWAIT"]),
        (&[(0, -1, 4096)], 0, "NotSupported", &["SEM_UNDO", "AcquireSet"]),
        (&[(0, -1, 7)], 0, "InvalidArgument", &["flags", "2048"]),
        (&[(2, 1, 0)], 0, "InvalidArgument", &["EFBIG", "set of 2"]),
        (&[(0, 32767, 0)], 0, "LimitExceeded", &["32767 (SEMVMX, ERANGE)"]),
        (&[(1, 0, 0); 501], 0, "TooLarge", &["E2BIG", "500 (SEMOPM"]),
        (&[], 0, "InvalidArgument", &["at least one"]),
    ];
    for (operations, timeout, name, phrases) in refused {
        assert_error(&error(operate(&client, &set, operations, timeout).await), name, phrases);
    }
    for (address, name, phrases) in [
        (format!("{},count=2", key.address()), "Exists", &["EEXIST", "key=random"][..]),
        ("sysvsem:".into(), "InvalidArgument", &["\"key\" is missing", "ftok(3)"]),
        ("sysvsem:key=0".into(), "InvalidArgument", &["key=private"]),
        ("sysvsem:key=private,count=0".into(), "InvalidArgument", &["\"count\"", "from 1"]),
        ("sysvsem:key=private,count=1000000".into(), "LimitExceeded", &["SEMMSL"]),
        ("sysvsem:key=private,values=1+2,count=3".into(), "InvalidArgument", &["2 values"]),
        ("sysvsem:key=private,values=32768".into(), "InvalidArgument", &["\"values\"", "32767"]),
        ("sysvsem:key=private,number=1".into(), "InvalidArgument", &["\"number\"", "1 semaphores"]),
        ("sysvsem:key=private,mode=1777".into(), "InvalidArgument", &["0777"]),
    ] {
        let refusal = error(client.try_create(&address, Options::new()).await);
        assert_error(&refusal, name, phrases);
    }
    let missing = Key::new();
    for (address, name, phrases) in [
        (missing.address(), "NotFound", &["ENOENT"][..]),
        ("sysvsem:id=2147483647".into(), "NotFound", &["2147483647"]),
        (format!("{},count=3", key.address()), "InvalidArgument", &["fewer than 3"]),
        (format!("{},id=1", key.address()), "InvalidArgument", &["not both"]),
    ] {
        let refusal = error(client.try_attach(&address, Options::new()).await);
        assert_error(&refusal, name, phrases);
    }
    let set_values = |values: Vec<i32>| {
        let (client, set) = (client.clone(), set.clone());
        async move { error(client.call::<(), _>(&set, "Semaphore", "SetValues", &(values,)).await) }
    };
    assert_error(&set_values(vec![1]).await, "InvalidArgument", &["2 semaphores"]);
    assert_error(&set_values(vec![1, -1]).await, "LimitExceeded", &["SEMVMX"]);
    assert_error(&error(client.open(&set, Options::new()).await), "NotSupported", &["no file"]);
    let count = options([("count", 2u32.into())]);
    let refusal = error(client.call::<zbus::OwnedFd, _>(&set, "Semaphore", "Acquire", &(0u32, count)).await);
    assert_error(&refusal, "Busy", &["acquire"]);
    assert_eq!(values(&client, &set).await, [1, 0], "nothing of it was done");
    // With the option instead of the address.
    let typed = options([("values", Variant::from(vec![3i32, 4])), ("mode", 0o640u32.into())]);
    let private = client.create_with("sysvsem:key=private,remove-on-close", typed).await;
    assert_eq!(values(&client, &private).await, [3, 4]);
    let address = client.address(&private).await;
    client.close(&private).await;
    assert_error(
        &error(client.try_attach(&address, Options::new()).await),
        "NotFound",
        &["no semaphore set"],
    );
}

async fn acquire_set(client: &Client, set: &str, operations: &[Operation]) -> OwnedFd {
    let lease: zbus::OwnedFd =
        client.call(set, "Semaphore", "AcquireSet", &(operations, DEFAULT)).await.expect("AcquireSet");
    lease.into()
}

async fn leases_of_sets(stage: Stage) {
    let client = stage.client().await;
    let key = Key::new();
    let set = client.create(&format!("{},values=3+0+1,remove-on-close", key.address())).await;
    let lease = acquire_set(&client, &set, &[(0, -2, 0), (1, 4, 0)]).await;
    assert_eq!(values(&client, &set).await, [1, 4, 1]);
    let mut command = Command::new("tail");
    command.args(["-f", "/dev/null"]).stdin(Stdio::from(lease));
    let mut holder = command.spawn().expect("tail");
    drop(command);
    // Somebody waits for what that process has; it crashes.
    let waiting = {
        let (client, set) = (client.clone(), set.clone());
        tokio::spawn(async move { acquire_set(&client, &set, &[(0, -3, 0), (2, -1, 0)]).await })
    };
    waits(&client, &set, 1).await;
    holder.kill().and_then(|()| holder.wait().map(drop)).expect("killing it");
    let lease = watchdog(patience(), waiting).await.expect("a task");
    assert_eq!(values(&client, &set).await, [0, 0, 0]);
    drop(lease);
    client.used("leases", 0).await;
    assert_eq!(values(&client, &set).await, [3, 0, 1]);

    // One unit, on the lifetime of a connection.
    let other = stage.client().await;
    let options = options([("lifetime", "client".into()), ("number", 2u32.into())]);
    let _lease: zbus::OwnedFd =
        other.call(&set, "Semaphore", "Acquire", &(DEFAULT, options)).await.expect("Acquire");
    assert_eq!(values(&client, &set).await, [3, 0, 0]);
    assert_eq!(client.usage("leases").await, 1);
    other.connection.close().await.expect("closing");
    client.used("leases", 0).await;
    assert_eq!(values(&client, &set).await, [3, 0, 1]);
}

/// The rows of other programs and of /proc are ours.
///
/// Proves: sysvsem list
async fn lists_of_sets(stage: Stage) {
    or_skip!(need_tool("ipcs"));
    or_skip!(need_tool("lsipc"));
    let client = stage.client().await;
    let key = Key::new();
    let set = client.create(&format!("{},values=3+1,mode=640,remove-on-close", key.address())).await;
    operate(&client, &set, &[(1, -1, 0)], 0).await.expect("Operate");
    let rows = client.list("sysvsem").await;
    let address = key.address();
    let row = rows.iter().find(|row| String::try_from(row["address"].clone()).is_ok_and(|it| it == address));
    let row = row.expect("our own is listed");
    let number = |key: &str| match &*row[key] {
        Variant::U32(number) => u64::from(*number),
        Variant::I32(number) => u64::try_from(*number).expect("no number of these is negative"),
        Variant::U64(number) => *number,
        other => panic!("{key} is {other:?}"),
    };
    let id = number("id");
    // key semid perms nsems uid gid cuid cgid otime ctime
    let table = std::fs::read_to_string("/proc/sysvipc/sem").expect("proc(5)");
    let line =
        table.lines().find(|line| line.split_whitespace().nth(1) == Some(&id.to_string())).expect("its line");
    let theirs: Vec<u64> =
        line.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect();
    let ours = [
        id,
        640,
        number("count"),
        number("owner"),
        number("group"),
        number("creator-uid"),
        number("creator-gid"),
        number("operated") / 1_000_000,
        number("changed") / 1_000_000,
    ];
    assert_eq!((theirs, number("mode")), (ours.to_vec(), 0o640));
    // semnum value ncount zcount pid
    let said = stage.sh(&format!("ipcs -s -i {id}")).finish().success();
    let table: Vec<Vec<u32>> = said
        .lines()
        .filter_map(|line| line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<_>>>())
        .filter(|row| row.len() == 5)
        .collect();
    let values: Vec<i32> = row["values"].clone().try_into().expect("values");
    let [waiters, zero, pids] = ["waiters", "zero-waiters", "pids"].map(|key| numbers(&row[key]));
    let ours: Vec<Vec<u32>> =
        (0..2).map(|n| vec![n as u32, values[n] as u32, waiters[n], zero[n], pids[n]]).collect();
    assert_eq!(table, ours, "{said}");
    // Every set that is there before and after: tests beside this one make and remove theirs.
    let ids =
        |said: String| -> Vec<u64> { said.lines().filter_map(|line| line.trim().parse().ok()).collect() };
    let lsipc = || ids(stage.sh("lsipc -s -r --noheadings -o ID").finish().success());
    let (before, rows, after) = (lsipc(), client.list("sysvsem").await, lsipc());
    let listed: Vec<u64> =
        rows.iter().map(|row| i32::try_from(row["id"].clone()).expect("an id") as u64).collect();
    let missing: Vec<_> = before.iter().filter(|id| after.contains(id) && !listed.contains(id)).collect();
    assert!(missing.is_empty() && listed.contains(&id), "List() lacks {missing:?}");
}

/// A `sem_t` at an offset in POSIX shared memory that a program maps.
const UNNAMED: &str = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(os.open('/dev/shm' + sys.argv[1], os.O_RDWR), 8192)
sem = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + int(sys.argv[2]))
print('ready', flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    print(word, getattr(libc, 'sem_' + word)(sem, *map(int, rest)), flush=True)
"#;

/// Proves: posixsem attach, read, write, wait
async fn unnamed_semaphores_are_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("pool"));
    client.create(&format!("posixshm:name={name},size=8192,remove-on-close")).await;
    let ours = client.create(&format!("posixsem:shm={name},offset=4096,value=0")).await;
    let mut process = Peer::start(&stage, UNNAMED, &[&name, "4096"]);
    process.tell("wait");
    client.call::<(), _>(&ours, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    assert_eq!(process.answer(), "wait 0");
    let waiting = {
        let (client, ours) = (client.clone(), ours.clone());
        tokio::spawn(async move { client.call::<(), _>(&ours, "Semaphore", "Wait", &(DEFAULT,)).await })
    };
    assert_eq!(process.ask("post"), "post 0");
    watchdog(patience(), waiting).await.expect("a task").expect("Wait");

    let mut other = Peer::start(&stage, UNNAMED, &[&name, "64"]);
    let place = format!("posixsem:shm={name},offset=64");
    let missing = error(client.try_attach(&place, Options::new()).await);
    assert_error(&missing, "NotFound", &["no semaphore", "sem_init(3)"]);
    assert_eq!(other.ask("init 1 5"), "init 0");
    let theirs = client.attach(&place).await;
    assert_eq!(client.number(&theirs, "Semaphore", "Value").await, 5);
    assert_error(&error(client.try_create(&place, Options::new()).await), "Exists", &["Attach uses it"]);
    let lease: zbus::OwnedFd =
        client.call(&theirs, "Semaphore", "Acquire", &(0u32, Options::new())).await.expect("Acquire");
    assert_eq!(client.number(&theirs, "Semaphore", "Value").await, 4);
    drop(lease);
    client.used("leases", 0).await;
    assert_eq!(client.number(&theirs, "Semaphore", "Value").await, 5);

    // Taken by a program that dies: stale, until somebody posts.
    client.call::<(), _>(&theirs, "Endpoint", "Remove", &()).await.expect("Remove");
    let taken = client.create(&format!("{place},value=1")).await;
    assert_eq!(other.ask("wait"), "wait 0");
    let stale = async || bool::try_from(state(&client, &taken).await["stale"].clone()).expect("a boolean");
    assert!(!stale().await, "its holder lives");
    other.process.kill();
    process.process.kill();
    assert!(stale().await);
    client.call::<(), _>(&taken, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    assert!(!stale().await);
}

everywhere!(sets_are_shared, what_sets_refuse, leases_of_sets, lists_of_sets, unnamed_semaphores_are_shared,);

/// By the tools: gdbus takes a lease and gives it back when it ends.
fn by_gdbus_and_busctl(bus: Bus) {
    const SEMAPHORE: &str = "org.example.IPC.Semaphore";
    let service = Service::on(&bus);
    let (busctl, gdbus) = (busctl(&service), gdbus(&service));
    let key = Key::new();
    let address = format!("{},values=2+1,remove-on-close", key.address());
    let set = object_path(&busctl.manager("Create", "sa{sv}", &[&address, "0"]).expect("Create"));
    let arguments = ["2", "0", "-2", "0", "1", "-1", "0", "1000"];
    busctl.call(&set, SEMAPHORE, "Operate", "a(qnq)u", &arguments).expect("Operate");
    assert_eq!(busctl.property(&set, SEMAPHORE, "Values").as_deref(), Ok("ai 2 0 0"));
    busctl.call(&set, SEMAPHORE, "SetValues", "ai", &["2", "2", "1"]).expect("SetValues");
    let lease =
        gdbus.call(&set, SEMAPHORE, "AcquireSet", &["[(0,-2,0),(1,-1,0)]", "1000"]).expect("AcquireSet");
    assert!(lease.contains("handle"), "{lease}");
    // gdbus has ended, and with it the lease: all of it can be taken at once.
    let again = ["2", "0", "-2", "0", "1", "-1", "0", "10000"];
    busctl.call(&set, SEMAPHORE, "Operate", "a(qnq)u", &again).expect("Operate");
    busctl.call(&set, SEMAPHORE, "Post", "u", &["1"]).expect("Post");
    assert_eq!(busctl.property(&set, SEMAPHORE, "Value").as_deref(), Ok("i 1"));
    gdbus.call(&set, SEMAPHORE, "Acquire", &["1000", "{'count': <uint32 1>}"]).expect("Acquire");
    busctl.call(&set, SEMAPHORE, "Wait", "u", &["10000"]).expect("given back");
}

mod tools {
    use super::*;

    on_each_bus!(by_gdbus_and_busctl);
}
