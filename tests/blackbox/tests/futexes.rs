//! Futexes: words shared with programs that call futex(2), and what the service says about them.

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::{need_tool, or_skip, unique};

const DEFAULT: u32 = u32::MAX;

/// Sleeps on the word at byte 64 of a new object in /dev/shm, or wakes whoever does.
const PROGRAM: &str = "import ctypes,mmap,os,sys,threading\n\
    libc=ctypes.CDLL(None,use_errno=True)\n\
    fd=os.open('/dev/shm/'+sys.argv[1],os.O_RDWR|os.O_CREAT|os.O_EXCL,0o600)\n\
    os.ftruncate(fd,4096)\n\
    memory=mmap.mmap(fd,4096)\n\
    word=ctypes.c_uint32.from_buffer(memory,64)\n\
    number={'x86_64':202,'aarch64':98,'riscv64':98}[os.uname().machine]\n\
    call=lambda op,n: libc.syscall(number,ctypes.byref(word),op,n,None,None,0)\n\
    print('mapped',flush=True)\n\
    for line in sys.stdin:\n\
    \x20 words=line.split()\n\
    \x20 if words[0]=='wait': print('wait',call(0,int(words[1])),flush=True)\n\
    \x20 elif words[0]=='value': print('value',word.value,flush=True)\n\
    \x20 elif words[0]=='unlink': os.unlink('/dev/shm/'+sys.argv[1])\n\
    \x20 else:\n\
    \x20   while call(1,1)!=1: pass\n\
    \x20   print('woke',flush=True)\n";

async fn wake_one(client: &Client, futex: &str) {
    // Until it is there: nobody knows when a waiter sleeps.
    while client.call::<u32, _>(futex, "Futex", "Wake", &(1u32,)).await.expect("Wake") == 0 {}
}

/// Proves: futex attach, read, write, wait
async fn futexes_are_shared(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let name = unique("futex");
    let mut process = stage.python(PROGRAM, &[&name]);
    process.wait_for(|line| line == "mapped");
    let futex = client.attach(&format!("futex:name=/{name},offset=64")).await;
    assert_eq!(client.address(&futex).await, format!("futex:name=/{name},offset=64"));
    client.call::<(), _>(&futex, "Futex", "Store", &(7u32,)).await.expect("Store");
    process.write("value\n");
    process.wait_for(|line| line == "value 7");
    process.write("wait 7\n");
    wake_one(&client, &futex).await;
    process.wait_for(|line| line == "wait 0");
    process.write("wake\n");
    let outcome: String = client.call(&futex, "Futex", "Wait", &(7u32, DEFAULT)).await.expect("Wait");
    assert_eq!(outcome, "woken");
    process.wait_for(|line| line == "woke");
    process.write("wake\n");
    let body = (7u32, 1u32 << 31, DEFAULT);
    let outcome: String = client.call(&futex, "Futex", "WaitBitset", &body).await.expect("WaitBitset");
    assert_eq!(outcome, "woken");
    assert_eq!(client.number(&futex, "Futex", "Value").await, 7);
    process.write("unlink\n");
    process.finish().success();
}

/// Proves: futex create, read, write
async fn operations_and_their_errors(stage: Stage) {
    let client = stage.client().await;
    let futex = client.create("futex:value=4294967295").await;
    let other = client.attach(&client.address(&futex).await).await;
    let before: u32 = client.call(&other, "Futex", "FetchAdd", &(6u32,)).await.expect("FetchAdd");
    assert_eq!(before, u32::MAX);
    let exchanged: (bool, u32) =
        client.call(&futex, "Futex", "CompareExchange", &(4u32, 9u32)).await.expect("CompareExchange");
    assert_eq!(exchanged, (false, 5));
    let loaded: u32 = client.call(&futex, "Futex", "Load", &()).await.expect("Load");
    assert_eq!(loaded, 5);
    let outcome: String = client.call(&futex, "Futex", "Wait", &(4u32, 0u32)).await.expect("Wait");
    assert_eq!(outcome, "changed", "another value does not wait");
    let wait =
        async |timeout: u32| error(client.call::<String, _>(&futex, "Futex", "Wait", &(5u32, timeout)).await);
    assert_error(&wait(0).await, "Busy", &["without waiting"]);
    assert_error(&wait(30).await, "Timeout", &["within 30 ms"]);
    let bits = (5u32, 0u32, 0u32);
    let none = error(client.call::<String, _>(&futex, "Futex", "WaitBitset", &bits).await);
    assert_error(&none, "InvalidArgument", &["at least one bit"]);
    let none = error(client.call::<u32, _>(&futex, "Futex", "Wake", &(0u32,)).await);
    assert_error(&none, "InvalidArgument", &["at least 1"]);

    // Two wait for one futex; one is woken, the other moved to the next futex and woken there.
    let target = client.create("futex:").await;
    let path = zbus::ObjectPath::try_from(target.as_str()).expect("a path");
    let requeue = async |wake: u32, move_on: u32, expected: u32| {
        let body = (wake, move_on, &path, expected);
        client.call::<(u32, u32), _>(&futex, "Futex", "Requeue", &body).await
    };
    assert_error(&error(requeue(1, 1, 4).await), "Busy", &["is 5, not 4"]);
    let waiting = async || client.call::<String, _>(&futex, "Futex", "Wait", &(5u32, DEFAULT)).await;
    let moving = async {
        let mut both = (0, 0);
        while both != (1, 1) {
            let one = requeue(1 - both.0, both.0, 5).await.expect("Requeue");
            both = (both.0 + one.0, both.1 + one.1);
        }
        wake_one(&client, &target).await;
    };
    let (one, two, ()) = tokio::join!(waiting(), waiting(), moving);
    assert_eq!([one.expect("woken"), two.expect("moved")], ["woken", "woken"]);

    let free = error(client.call::<u32, _>(&target, "Futex", "Repair", &()).await);
    assert_error(&free, "InvalidArgument", &["names no owner"]);
    for address in ["futex:", "futex:inode=1,shmid=1"] {
        let none = error(client.try_attach(address, Options::new()).await);
        assert_error(&none, "InvalidArgument", &["where is the futex?", "shmid"]);
    }
    let odd = format!("{},offset=2", client.address(&futex).await);
    assert_error(
        &error(client.try_attach(&odd, Options::new()).await),
        "InvalidArgument",
        &["multiple of 4"],
    );
    client.used("waits", 0).await;
}

/// Proves: futex event
async fn wake_ups_as_signals(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let futex = client.create_with("futex:value=3", options([("notify", true.into())])).await;
    wake_one(&client, &futex).await;
    let woken: (u64, u32) = inbox.signal(&futex, "Woken").await.body().deserialize().expect("Woken");
    assert_eq!(woken, (1, 3));
    client.call::<(), _>(&futex, "Futex", "Store", &(4u32,)).await.expect("Store");
    wake_one(&client, &futex).await;
    let woken = inbox.signals(&futex, "Woken", 2).await;
    let (_, value): (u64, u32) = woken[1].body().deserialize().expect("Woken");
    assert_eq!(value, 4);
    let (kept, lost): (Vec<(u64, u64, u32)>, u64) =
        client.call(&futex, "Futex", "Since", &(0u64,)).await.expect("Since");
    assert_eq!((kept[0].0, kept[0].2, lost), (1, 3, 0));
    assert_eq!((kept[1].0, kept[1].2), (2, 4));
}

everywhere!(futexes_are_shared, operations_and_their_errors, wake_ups_as_signals);
