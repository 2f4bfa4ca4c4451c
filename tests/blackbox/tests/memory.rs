//! Shared memory with names, System V segments, typed words and watches on ranges, with Python, ipcs and lsipc as the
//! others.

use std::collections::{BTreeMap, BTreeSet};

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{CallError, need_tool, or_skip, unique};
use zbus::message::Message;
use zbus::wire::StructureBuilder;
use zbus::{ObjectPath, OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

type Row = BTreeMap<String, OwnedVariant>;

fn number(value: &OwnedVariant) -> i64 {
    match &**value {
        Variant::Bool(b) => (*b).into(),
        Variant::I32(n) => (*n).into(),
        Variant::U32(n) => (*n).into(),
        Variant::U64(n) => i64::try_from(*n).expect("a number"),
        other => panic!("{other:?} is no number"),
    }
}

fn text(value: &OwnedVariant) -> String {
    String::try_from(value.clone()).expect("a text")
}

async fn load(client: &Client, memory: &str, offset: u64, kind: &str) -> Result<OwnedVariant, CallError> {
    client.call(memory, "Memory", "Load", &(offset, kind)).await
}

async fn store(client: &Client, memory: &str, offset: u64, value: Variant<'_>) -> Result<(), CallError> {
    client.call(memory, "Memory", "Store", &(offset, value)).await
}

async fn read(client: &Client, memory: &str, offset: u64, length: u64) -> Result<Vec<u8>, CallError> {
    client.call(memory, "Memory", "Read", &(offset, length)).await
}

async fn write(client: &Client, memory: &str, offset: u64, data: &[u8]) {
    client.call::<(), _>(memory, "Memory", "Write", &(offset, data)).await.expect("Write");
}

async fn inspect(client: &Client, path: &str) -> Row {
    client.call(path, "Endpoint", "Inspect", &()).await.expect("Inspect")
}

/// `("f32", <1.5>)`
fn named(kind: &'static str, value: Variant<'static>) -> Variant<'static> {
    let named = StructureBuilder::new().add_field(kind).append_field(Variant::Variant(Box::new(value)));
    Variant::Structure(named.build().expect("a structure"))
}

async fn words_that_dbus_has_no_type_for(stage: Stage) {
    let client = stage.client().await;
    let memory = client.create("mmap:size=64").await;
    store(&client, &memory, 1, named("i8", (-5i32).into())).await.expect("Store");
    assert_eq!(*load(&client, &memory, 1, "i8").await.expect("Load"), Variant::I16(-5));
    assert_eq!(*load(&client, &memory, 1, "u8").await.expect("Load"), Variant::U8(251));
    store(&client, &memory, 4, named("f32", 1.5f64.into())).await.expect("Store");
    assert_eq!(*load(&client, &memory, 4, "f32").await.expect("Load"), Variant::F64(1.5));
    assert_eq!(read(&client, &memory, 4, 4).await.expect("Read"), 1.5f32.to_ne_bytes());
    // Names also spare scripts the choice of a D-Bus type.
    store(&client, &memory, 8, named("u16", 7i32.into())).await.expect("Store");
    assert_eq!(*load(&client, &memory, 8, "q").await.expect("Load"), Variant::U16(7));

    let add = (4u64, named("f32", 2i32.into()));
    let before: OwnedVariant = client.call(&memory, "Memory", "FetchAdd", &add).await.expect("FetchAdd");
    assert_eq!(*before, Variant::F64(1.5));
    let exchange = (4u64, named("f32", 3.5f64.into()), named("f32", 0.25f64.into()));
    let (done, found): (bool, OwnedVariant) =
        client.call(&memory, "Memory", "CompareExchange", &exchange).await.expect("CompareExchange");
    assert_eq!((done, &*found), (true, &Variant::F64(3.5)));

    for (wrong, phrase) in [
        (named("i8", 128i32.into()), "does not fit into a word of the type i8"),
        (named("u64", (-1i32).into()), "does not fit"),
        (named("f32", 1e300f64.into()), "does not fit"),
        (named("u8", 1.0f64.into()), "does not fit"),
        (named("u7", 1i32.into()), "u7"),
        ("text".into(), "y q u t n i x d"),
        (Variant::Structure(StructureBuilder::new().add_field(1u32).build().expect("one")), "must be (sv)"),
    ] {
        assert_error(&error(store(&client, &memory, 0, wrong).await), "InvalidArgument", &[phrase]);
    }
    let mixed = (0u64, named("f32", 0i32.into()), Variant::U32(1));
    let mixed = client.call::<(bool, OwnedVariant), _>(&memory, "Memory", "CompareExchange", &mixed).await;
    assert_error(&error(mixed), "InvalidArgument", &["same type"]);
}

/// Opens an object, adds one to its first word, says so, and waits.
const POSIX: &str = "import _posixshmem,mmap,os,sys\n\
    if sys.argv[2]=='make':\n\
    \x20 f=_posixshmem.shm_open(sys.argv[1],os.O_RDWR|os.O_CREAT|os.O_EXCL,mode=0o640); os.ftruncate(f,8192)\n\
    else: f=_posixshmem.shm_open(sys.argv[1],os.O_RDWR,mode=0)\n\
    m=mmap.mmap(f,0); os.close(f)\n\
    m[0:4]=(int.from_bytes(m[0:4],sys.byteorder)+1).to_bytes(4,sys.byteorder)\n\
    print('mapped',os.getpid(),len(m)); sys.stdin.readline()\n\
    if sys.argv[2]=='make': _posixshmem.shm_unlink(sys.argv[1])";

/// Proves: posixshm create, attach, list, read, write, fd
async fn posix_objects(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = format!("/{}", unique("posixshm"));
    let memory = client.create(&format!("posixshm:name={name},size=8192,mode=640,remove-on-close")).await;
    let again = error(client.try_create(&format!("posixshm:name={name},size=1"), Options::new()).await);
    assert_error(&again, "Exists", &[&name[1..], "EEXIST"]);
    store(&client, &memory, 0, Variant::U32(41)).await.expect("Store");
    let process = stage.python(POSIX, &[&name, "use"]);
    let said = process.wait_for(|line| line.starts_with("mapped"));
    assert_eq!(*load(&client, &memory, 0, "u32").await.expect("Load"), Variant::U32(42));

    // What ls shows is what List shows, with who has it mapped.
    let files = || -> BTreeSet<String> {
        let names = std::fs::read_dir("/dev/shm").expect("/dev/shm").flatten();
        let regular = names.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
        let names = regular.filter_map(|file| file.file_name().into_string().ok());
        names.filter(|name| !name.starts_with("sem.")).map(|name| format!("/{name}")).collect()
    };
    let (before, rows, after) = (files(), client.list("posixshm").await, files());
    let names: BTreeSet<String> = rows.iter().map(|row| text(&row["name"])).collect();
    let missing: Vec<_> = before.intersection(&after).filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "List() lacks {missing:?}");
    let row = rows.iter().find(|row| text(&row["name"]) == name).expect("our own");
    assert_eq!((number(&row["size"]), number(&row["mode"]), number(&row["stale"])), (8192, 0o640, 0));
    let pid = said.split(' ').nth(1).expect("a pid");
    assert!(format!("{:?}", row["holders"]).contains(&format!("U32({pid})")), "{:?}", row["holders"]);
    drop(process);

    client.call::<(), _>(&memory, "Memory", "Resize", &(16384u64,)).await.expect("Resize");
    let sealed = error(client.call::<(), _>(&memory, "Memory", "Seal", &(vec!["grow"],)).await);
    assert_error(&sealed, "NotSupported", &["only memfds can be sealed"]);
    let fd = client.open(&memory, options([("access", "read-only".into())])).await.expect("Open");
    assert!(rustix::io::pwrite(&fd, b"x", 0).is_err(), "opened for reading only");
    let adopted = client.try_adopt(&fd).await.expect("Adopt");
    assert_eq!(client.address(&adopted).await, format!("posixshm:name={name},access=read-only"));
    client.close(&memory).await;
    let gone = error(client.try_attach(&format!("posixshm:name={name}"), Options::new()).await);
    assert_error(&gone, "NotFound", &["ENOENT"]);

    let theirs = format!("/{}", unique("posixshm"));
    let mut process = stage.python(POSIX, &[&theirs, "make"]);
    process.wait_for(|line| line.starts_with("mapped"));
    let memory = client.attach(&format!("posixshm:name={theirs},offset=4096,length=64")).await;
    write(&client, &memory, 0, b"to a range").await;
    let outside = error(read(&client, &memory, 60, 5).await);
    assert_error(&outside, "InvalidArgument", &["64 bytes"]);
    let file = std::fs::File::options().write(true).open(format!("/dev/shm{theirs}"));
    file.expect("root may, and so may its owner").set_len(4100).expect("shorter");
    assert_error(&error(read(&client, &memory, 0, 10).await), "Gone", &["truncated"]);
    process.write("end\n");
    process.finish().success();
}

/// Attaches a segment, adds one to its first word, says so, and waits; with "make", creates and removes it.
const SYSV: &str = "import ctypes,os,sys\n\
    c=ctypes.CDLL(None,use_errno=True); c.shmat.restype=ctypes.c_void_p\n\
    i=c.shmget(int(sys.argv[1],0),8192,0o3640 if sys.argv[2]=='make' else 0)\n\
    if i<0: sys.exit(os.strerror(ctypes.get_errno()))\n\
    m=(ctypes.c_uint32*2048).from_address(c.shmat(i,None,0)); m[0]+=1\n\
    print('attached',os.getpid(),i); sys.stdin.readline()\n\
    if sys.argv[2]=='make': c.shmctl(i,0,None)";

/// Proves: sysvshm create, attach, read, write, fd, relay, remove
async fn segments(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let memory = client.create("sysvshm:key=random,size=8192,mode=640,remove-on-close").await;
    let address = client.address(&memory).await;
    let key = address.strip_prefix("sysvshm:key=").expect("a key");
    let again = error(client.try_create(&format!("{address},size=1"), Options::new()).await);
    assert_error(&again, "Exists", &[key, "EEXIST"]);
    store(&client, &memory, 0, Variant::U32(41)).await.expect("Store");
    let process = stage.python(SYSV, &[key, "use"]);
    let said = process.wait_for(|line| line.starts_with("attached"));
    assert_eq!(*load(&client, &memory, 0, "u32").await.expect("Load"), Variant::U32(42));
    let words: Vec<_> = said.split(' ').collect();
    let state = inspect(&client, &memory).await;
    assert_eq!(number(&state["id"]).to_string(), words[2]);
    assert_eq!(number(&state["attached"]), 1, "the service keeps nothing attached");
    assert!(format!("{:?}", state["holders"]).contains(&format!("U32({})", words[1])), "{state:?}");

    for (method, phrase) in [("Resize", "size that it was created with"), ("Seal", "cannot be sealed")] {
        let refused = match method {
            "Resize" => client.call::<(), _>(&memory, "Memory", method, &(1u64,)).await,
            _ => client.call::<(), _>(&memory, "Memory", method, &(vec!["grow"],)).await,
        };
        assert_error(&error(refused), "NotSupported", &[phrase]);
    }
    // Its memory through a relay, with or without a descriptor of it.
    write(&client, &memory, 8, b"through a relay").await;
    let pipe = client.create("pipe:").await;
    let relay = client.relay(&memory, &pipe, Options::new()).await;
    let data = client.read(&pipe, 8192, DEFAULT).await.expect("what was relayed");
    assert_eq!(&data[8..23], b"through a relay");
    let _finished = client.call::<(), _>(&relay, "Relay", "Stop", &()).await;
    match client.open(&memory, Options::new()).await {
        Ok(fd) => {
            let mut word = [0; 4];
            assert_eq!(rustix::io::pread(&fd, &mut word, 0).expect("reading"), 4);
            assert_eq!(u32::from_ne_bytes(word), 42);
            assert!(rustix::io::pwrite(&fd, b"x", 0).is_err(), "for reading only, unless asked for");
        }
        Err(refused) => {
            assert_error(&refused, "PermissionDenied", &["CAP_CHECKPOINT_RESTORE", "EPERM", "relay"]);
            let fifo = client.create("pipe:").await;
            let into = error(client.try_relay(&fifo, &memory, Options::new()).await);
            assert_error(&into, "NotSupported", &["use Write"]);
        }
    }
    assert_eq!(stage.way == Way::System, client.open(&memory, Options::new()).await.is_err());

    // Removed, it lives as long as the program has it attached.
    client.run(&memory, "Endpoint", "Remove").await;
    let by_id = client.attach(&format!("sysvshm:id={}", words[2])).await;
    assert_eq!(number(&inspect(&client, &by_id).await["marked"]), 1);
    assert_eq!(*load(&client, &by_id, 0, "u32").await.expect("Load"), Variant::U32(42));
    drop(process);
    assert_error(&error(load(&client, &by_id, 0, "u32").await), "Gone", &["removed"]);
    let gone = error(client.try_attach(&address, Options::new()).await);
    assert_error(&gone, "NotFound", &["ENOENT"]);

    let theirs = format!("0x{:x}", 0x5000_0000u32 | std::process::id() << 4 & 0x0fff_ffff | stage.way as u32);
    let mut process = stage.python(SYSV, &[&theirs, "make"]);
    process.wait_for(|line| line.starts_with("attached"));
    let memory = client.attach(&format!("sysvshm:key={theirs},access=read-only")).await;
    assert_eq!(read(&client, &memory, 0, 4).await.expect("Read"), 1u32.to_ne_bytes());
    assert_error(
        &error(store(&client, &memory, 0, Variant::U32(0)).await),
        "PermissionDenied",
        &["read-write"],
    );
    process.write("end\n");
    process.finish().success();
    assert_error(&error(read(&client, &memory, 0, 4).await), "Gone", &["removed"]);
}

/// Proves: sysvshm list
async fn lists_of_segments(stage: Stage) {
    or_skip!(need_tool("ipcs"));
    or_skip!(need_tool("lsipc"));
    let client = stage.client().await;
    let memory = client.create("sysvshm:key=private,size=12345,remove-on-close").await;
    let id = number(&inspect(&client, &memory).await["id"]);
    // The number of the first column that is one; ipcs says the key first.
    let ids = |command: &str| -> BTreeSet<i64> {
        let said = stage.sh(command).finish().success();
        said.lines().filter_map(|line| line.split_whitespace().find_map(|word| word.parse().ok())).collect()
    };
    let commands =
        ["ipcs -m", "lsipc -m --noheadings -o ID", "tail -n +2 /proc/sysvipc/shm | awk '{print $2}'"];
    for command in commands {
        let before = ids(command);
        let rows = client.list("sysvshm").await;
        let after = ids(command);
        let ours: BTreeSet<i64> = rows.iter().map(|row| number(&row["id"])).collect();
        let missing: Vec<_> = before.intersection(&after).filter(|id| !ours.contains(id)).collect();
        assert!(missing.is_empty() && before.contains(&id), "{command}: List() lacks {missing:?}");
        let row = rows.iter().find(|row| number(&row["id"]) == id).expect("our own");
        assert_eq!((number(&row["size"]), number(&row["attached"]), number(&row["stale"])), (12345, 0, 0));
    }
}

type Changed = (u64, u32, u64, u64);

fn changed(message: &Message) -> Changed {
    message.body().deserialize().expect("Changed")
}

async fn watch(
    client: &Client,
    memory: &str,
    range: (u64, u64),
    options: Options<'_>,
) -> Result<u32, CallError> {
    client.call(memory, "Memory", "WatchRange", &(range.0, range.1, options)).await
}

/// Proves: mmap event
async fn watched_ranges(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let memory = client.create("mmap:size=8192").await;
    let first = watch(&client, &memory, (100, 1000), options([("interval-ms", 10u32.into())]))
        .await
        .expect("a watch");
    // A store of another process, which no kernel tells of.
    let fd = client.open(&memory, Options::new()).await.expect("Open");
    rustix::io::pwrite(&fd, b"xy", 500).expect("writing");
    assert_eq!(changed(&inbox.signal(&memory, "Changed").await), (1, first, 500, 2));
    write(&client, &memory, 99, b"a").await;
    write(&client, &memory, 1100, b"b").await;
    write(&client, &memory, 1099, b"c").await;
    assert_eq!(
        changed(&inbox.signals(&memory, "Changed", 2).await[1]),
        (2, first, 1099, 1),
        "what is within the range"
    );

    // Driven by a semaphore: one unit for each look.
    let semaphore =
        client.create(&format!("posixsem:name=/{},value=0,remove-on-close", unique("watch"))).await;
    let with =
        |path: &str| options([("with", ObjectPath::try_from(path.to_owned()).expect("a path").into())]);
    let second = watch(&client, &memory, (4096, 16), with(&semaphore)).await.expect("a watch");
    assert_ne!(first, second);
    write(&client, &memory, 4098, b"1234").await;
    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 3).await[2]), (3, second, 4098, 4));
    client.used("watches", 2).await;

    client.call::<(), _>(&memory, "Memory", "UnwatchRange", &(first,)).await.expect("UnwatchRange");
    let again = error(client.call::<(), _>(&memory, "Memory", "UnwatchRange", &(first,)).await);
    assert_error(&again, "NotFound", &[&format!("no watch {first}")]);
    client.used("watches", 1).await;
    write(&client, &memory, 100, b"not watched any more").await;
    write(&client, &memory, 4096, b"!").await;
    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 4).await[3]), (4, second, 4096, 1));

    type Kept = (u64, u64, u32, u64, u64);
    let (kept, lost): (Vec<Kept>, u64) =
        client.call(&memory, "Memory", "Since", &(2u64,)).await.expect("Since");
    let kept: Vec<_> =
        kept.into_iter().map(|(seq, _, watch, offset, length)| (seq, watch, offset, length)).collect();
    assert_eq!((kept, lost), (vec![(3, second, 4098, 4), (4, second, 4096, 1)], 0));

    // Driven by a futex: woken, or changed.
    let futex = client.create("futex:").await;
    let third = watch(&client, &memory, (8000, 8), with(&futex)).await.expect("a watch");
    write(&client, &memory, 8001, b"1").await;
    client.call::<(), _>(&futex, "Futex", "Store", &(1u32,)).await.expect("Store");
    client.call::<u32, _>(&futex, "Futex", "Wake", &(1u32,)).await.expect("Wake");
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 5).await[4]), (5, third, 8001, 1));
    client.close(&futex).await;
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 6).await[5]), (6, third, 8000, 0));

    // A range that can no longer be read has changed as a whole; and without its driver a watch ends.
    client.call::<(), _>(&memory, "Memory", "Resize", &(100u64,)).await.expect("Resize");
    client.call::<(), _>(&semaphore, "Semaphore", "Post", &(1u32,)).await.expect("Post");
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 7).await[6]), (7, second, 4096, 16));
    client.close(&semaphore).await;
    assert_eq!(changed(&inbox.signals(&memory, "Changed", 8).await[7]), (8, second, 4096, 0));
    client.used("watches", 0).await;
}

async fn watches_end(stage: Stage) {
    let client = stage.client().await;
    let memory = client.create("mmap:size=4096").await;
    let other = stage.client().await;
    watch(&other, &memory, (0, 10), Options::new()).await.expect("a watch");
    watch(&client, &memory, (0, 20), Options::new()).await.expect("a watch");
    client.used("watches", 2).await;
    // zbus closes a connection when its last clone is dropped; gracefully, it is told so.
    other.connection.close().await.expect("leaving");
    client.used("watches", 1).await;
    client.close(&memory).await;
    client.used("watches", 0).await;
}

async fn watches_have_limits(stage: Stage) {
    let client = stage.client().await;
    let memory = client.create("mmap:size=1M").await;
    let pipe = client.create("pipe:").await;
    let path =
        |path: &str| options([("with", ObjectPath::try_from(path.to_owned()).expect("a path").into())]);
    for (range, given, name, phrase) in [
        ((0, 0), Options::new(), "InvalidArgument", "at least 1 byte"),
        ((1 << 20, 1), Options::new(), "InvalidArgument", "1048576 bytes"),
        ((u64::MAX, 2), Options::new(), "InvalidArgument", "18446744073709551615"),
        ((0, 5000), Options::new(), "TooLarge", "4096 (payload)"),
        ((0, 1), options([("interval-ms", 9u32.into())]), "InvalidArgument", "from 10"),
        ((0, 1), options([("interval", 9u32.into())]), "InvalidArgument", "interval-ms"),
        ((0, 1), path(&pipe), "InvalidArgument", "must be a semaphore or a futex"),
        ((0, 1), path("/org/example/IPC/pipe/999"), "NoSuchEndpoint", "999"),
        ((0, 1), options([("with", 1u32.into())]), "InvalidArgument", "object path"),
    ] {
        assert_error(&error(watch(&client, &memory, range, given).await), name, &[phrase]);
    }
    let no_memory = error(watch(&client, &pipe, (0, 1), Options::new()).await);
    assert!(no_memory.name.contains("Unknown"), "{no_memory}");
    let most = watch(&client, &memory, (0, 4000), Options::new()).await.expect("a watch");
    let more = error(watch(&client, &memory, (0, 97), Options::new()).await);
    assert_error(&more, "LimitExceeded", &["4000 bytes", "the limit payload is 4096"]);
    watch(&client, &memory, (0, 96), Options::new()).await.expect("what there is room for");
    let third = error(watch(&client, &memory, (0, 1), Options::new()).await);
    assert_error(&third, "LimitExceeded", &["the limit watches is 2"]);
    client.call::<(), _>(&memory, "Memory", "UnwatchRange", &(most,)).await.expect("UnwatchRange");
    client.used("watches", 1).await;
    watch(&client, &memory, (0, 4000), Options::new()).await.expect("there is room again");
}

everywhere!(
    words_that_dbus_has_no_type_for,
    posix_objects,
    segments,
    lists_of_segments,
    watched_ranges,
    watches_end,
);

mod limited {
    use super::*;

    everywhere!(config = "[limits]\npayload = 4096\nwatches = 2\n"; watches_have_limits);
}
