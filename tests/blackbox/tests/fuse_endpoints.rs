//! Published endpoints: queues read with cat and written with echo, values as text, events that tail follows.

use std::fs;
use std::time::{Duration, Instant};

use ipc_blackbox::{Options, Stage, Way, error, everywhere, mounted, options};
use ipc_harness::{Process, or_skip, unique};
use rustix::process::Signal;
use zbus::ObjectPath;

/// Waits until the service waits for a file on behalf of a reader: he has been told of.
async fn wait_read(inbox: &ipc_blackbox::Inbox, mount: &str, count: usize) {
    inbox.signals(mount, "Read", count).await;
}

async fn a_queue_is_read_with_cat_and_written_with_echo(stage: Stage) {
    let mount = or_skip!(mounted(&stage, ",deadline=500").await);
    let client = &mount.client;
    let queue =
        client.create(&format!("posixmq:name=/{},depth=10,size=100,remove-on-close=true", unique("q"))).await;
    mount.publish_endpoint("jobs", &queue).await;
    assert_eq!(mount.sh("echo one > jobs; echo two > jobs; printf three > jobs; stat -c %s jobs"), "0\n");
    assert_eq!(client.number(&queue, "Messages", "Depth").await, 3, "one message a write");
    assert_eq!(
        mount.sh("dd if=jobs bs=100 count=1 status=none"),
        "one\n",
        "one message a read, and only that one is taken"
    );
    assert_eq!(mount.sh("cat jobs"), "two\nthree", "all that are there, then the end");
    // Nothing comes: an error by the deadline.
    let started = Instant::now();
    let late = mount.script("cat jobs").finish();
    assert!(late.stderr.contains("Input/output error"), "{}", late.stderr);
    assert!(started.elapsed() >= Duration::from_millis(500));
    // The first read waits, the next one does not.
    let inbox = client.inbox().await;
    let reader = mount.script("cat jobs");
    wait_read(&inbox, &mount.path, 1).await;
    client.reply(&queue, "Messages", "SendText", &("four", Options::new(), 0u32)).await.expect("SendText");
    assert_eq!(reader.finish().success(), "four");
    let long = mount.script("head -c 101 /dev/zero > jobs").finish();
    assert!(long.stderr.contains("Message too long"), "{}", long.stderr);
    // What a small buffer leaves over comes with the next read.
    mount.sh("printf 'a long message' > jobs");
    assert_eq!(mount.sh("dd if=jobs bs=2 count=7 status=none"), "a long message");
    let script = "
f = os.open('jobs', os.O_RDWR | os.O_NONBLOCK)
for i in range(10): os.write(f, b'%d' % i)
try: os.write(f, b'x')
except OSError as e: print(os.strerror(e.errno))
print(b''.join(os.read(f, 100) for i in range(10)).decode())
try: os.read(f, 100)
except OSError as e: print(os.strerror(e.errno))
try: os.lseek(f, 0, os.SEEK_SET)
except OSError as e: print(os.strerror(e.errno))
";
    let busy = "Resource temporarily unavailable";
    let said = mount.python(script, &[]).finish().success();
    assert_eq!(said, format!("{busy}\n0123456789\n{busy}\nIllegal seek\n"));
    // A queue that is closed takes its file along.
    client.close(&queue).await;
    assert_eq!(mount.sh("while [ -e jobs ]; do :; done; ls"), "");
}

async fn a_queue_can_be_polled(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("jobs", &queue).await;
    let script = "
import select
f = os.open('jobs', os.O_RDONLY | os.O_NONBLOCK)
assert select.select([f], [], [], 0) == ([], [], [])
print('waiting', flush=True)
for i in range(3):
    select.select([f], [], [])
    print(os.read(f, 100).decode(), flush=True)
";
    let poller = mount.python(script, &[]);
    poller.wait_for(|line| line == "waiting");
    for text in ["one", "two", "three"] {
        mount.sh(&format!("printf {text} > jobs"));
        poller.wait_for(|line| line == text);
    }
    poller.finish().success();
}

/// Each message goes to one reader, also when one of them is killed while it waits.
async fn no_message_is_lost_with_a_reader(stage: Stage) {
    let mount = or_skip!(mounted(&stage, ",deadline=60000").await);
    let client = &mount.client;
    let inbox = client.inbox().await;
    let queue = client.create("pipe:packet=true").await;
    mount.publish_endpoint("jobs", &queue).await;
    let mut killed = mount.script("exec cat jobs");
    wait_read(&inbox, &mount.path, 1).await;
    killed.signal(Signal::KILL);
    // Nobody reads it, and it does not matter whether the kernel has let the process go yet.
    client.reply(&queue, "Messages", "SendText", &("kept", Options::new(), 0u32)).await.expect("SendText");
    killed.wait();
    assert_eq!(mount.sh("cat jobs"), "kept");
    let readers: Vec<Process> =
        (0..20).map(|_| mount.script("dd if=jobs bs=100 count=1 status=none")).collect();
    wait_read(&inbox, &mount.path, 22).await;
    for number in 0..20 {
        let text = format!("{number:02}");
        client
            .reply(&queue, "Messages", "SendText", &(text, Options::new(), 1000u32))
            .await
            .expect("SendText");
    }
    let mut got: Vec<String> = readers.into_iter().map(|reader| reader.finish().success()).collect();
    got.sort();
    assert_eq!(got, (0..20).map(|number| format!("{number:02}")).collect::<Vec<_>>());
}

async fn a_stream_is_a_file(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    let client = &mount.client;
    let pipe = client.create("pipe:").await;
    mount.publish_endpoint("s/pipe", &pipe).await;
    assert_eq!(mount.sh("echo one > s/pipe; echo two >> s/pipe; cat s/pipe"), "one\ntwo\n");
    let inbox = client.inbox().await;
    let line = mount.script("read -r line < s/pipe; echo \"got $line\"");
    wait_read(&inbox, &mount.path, 1).await;
    client.write(&pipe, b"from the bus\n", 1000).await.expect("Write");
    assert_eq!(line.finish().success(), "got from the bus\n");
    client.write(&pipe, b"end", 1000).await.expect("Write");
    client.reply(&pipe, "Stream", "Shutdown", &("write",)).await.expect("Shutdown");
    assert_eq!(mount.sh("cat s/pipe; cat s/pipe"), "end", "and end of stream, without waiting");
    let closed = mount.script("env echo x > s/pipe").finish();
    assert!(closed.stderr.contains("Broken pipe"), "{}", closed.stderr);
}

async fn memory_is_its_bytes(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    let client = &mount.client;
    let memory = client.create("mmap:size=8192").await;
    mount.publish_endpoint("memory", &memory).await;
    client.reply(&memory, "Memory", "WriteText", &(0u64, "shared")).await.expect("WriteText");
    assert_eq!(mount.sh("head -c 6 memory; stat -c ' %s' memory; cat memory | wc -c"), "shared 8192\n8192\n");
    mount.sh("printf PATCH | dd of=memory bs=1 seek=4096 conv=notrunc status=none");
    let text: String = client.call(&memory, "Memory", "ReadText", &(4096u64, 5u64)).await.expect("ReadText");
    assert_eq!(text, "PATCH");
    mount.sh("head -c 8192 /dev/zero > memory");
    let full = mount.script("head -c 8193 /dev/zero > memory").finish();
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    let refused = mount.script("truncate -s 100 memory").finish();
    assert!(refused.stderr.contains("not permitted"), "{}", refused.stderr);
    client.reply(&memory, "Memory", "WriteText", &(8000u64, "mapped")).await.expect("WriteText");
    let script = "
import mmap
f = os.open('memory', os.O_RDONLY)
try: print(mmap.mmap(f, 8192, prot=mmap.PROT_READ)[8000:8006].decode())
except OSError as e: print(os.strerror(e.errno))
";
    let said = mount.python(script, &[]).finish().success();
    // Since Linux 6.6.
    assert!(said == "mapped\n" || said == "No such device\n", "{said}");
}

async fn values_are_text(stage: Stage) {
    let mount = or_skip!(mounted(&stage, ",deadline=300").await);
    let client = &mount.client;
    let semaphore =
        client.create(&format!("posixsem:name=/{},value=2,remove-on-close=true", unique("s"))).await;
    mount.publish_endpoint("semaphore", &semaphore).await;
    assert_eq!(
        mount.sh("cat semaphore; echo +3 > semaphore; cat semaphore; echo -4 > semaphore; cat semaphore"),
        "2\n5\n1\n"
    );
    let late = mount.script("env echo -2 > semaphore").finish();
    assert!(late.stderr.contains("Input/output error"), "{}", late.stderr);
    assert_eq!(mount.sh("cat semaphore"), "1\n", "all or nothing");
    for (written, why) in [("7", "not supported"), ("x", "Invalid argument"), ("+", "Invalid argument")] {
        let refused = mount.script(&format!("env echo {written} > semaphore")).finish();
        assert!(refused.stderr.contains(why), "{written}: {}", refused.stderr);
    }
    let set = client.create("sysvsem:key=private,count=3,remove-on-close=true").await;
    mount.publish_endpoint("set", &set).await;
    assert_eq!(mount.sh("echo 3 0 1 > set; cat set"), "3 0 1\n");
    let futex = client.create("futex:").await;
    mount.publish_endpoint("counter", &futex).await;
    let (waiter, waited_for) = (client.clone(), futex.clone());
    let wait = tokio::spawn(async move {
        waiter.call::<String, _>(&waited_for, "Futex", "Wait", &(0u32, 20_000u32)).await
    });
    assert_eq!(
        mount.sh(
            "cat counter; echo +5 > counter; echo -1 > counter; cat counter; echo 7 > counter; cat counter"
        ),
        "0\n4\n7\n"
    );
    let outcome = wait.await.expect("the task").expect("Wait");
    assert!(["woken", "changed"].contains(&outcome.as_str()), "{outcome}");
}

async fn tail_follows_events(stage: Stage) {
    let mount = or_skip!(mounted(&stage, "").await);
    let client = &mount.client;
    let watched = stage.temp_dir();
    let watch = client.create(&format!("inotify:path={}", watched.path().display())).await;
    mount.publish_endpoint("changes", &watch).await;
    let tail = mount.script("exec tail -f -s 0.05 -n +1 changes");
    fs::write(watched.path().join("a b"), "x").expect("a file");
    let line = tail.wait_for(|line| line.contains("CREATE"));
    let (time, rest) = line.split_once(' ').expect("a time");
    assert!(time.contains('.') && rest.ends_with("/a\\040b"), "{line}");
    fs::rename(watched.path().join("a b"), watched.path().join("c")).expect("renamed");
    let line = tail.wait_for(|line| line.contains("from="));
    assert!(line.contains("/c ") && line.ends_with("/a\\040b"), "{line}");
    assert!(mount.sh("grep -c . changes; stat -c %a changes").ends_with("\n400\n"));
    let refused = mount.script("echo x >> changes").finish();
    assert!(!refused.status.success());
    let mut child = ipc_harness::sh("exec sleep 1000");
    let process = client.attach(&format!("signal:pid={}", child.pid())).await;
    mount.publish_endpoint("process", &process).await;
    let poll = "
import select
f = os.open('process', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
print('empty', os.read(f, 100), poll.poll(0), flush=True)
poll.poll()
print(os.read(f, 1000).decode(), end='', flush=True)
";
    let poller = mount.python(poll, &[]);
    poller.wait_for(|line| line == "empty b'' []");
    child.kill();
    poller.wait_for(|line| line.contains("EXITED"));
    let mailbox = client.create("signal:number=SIGUSR1").await;
    mount.publish_endpoint("mailbox", &mailbox).await;
    let pid = client.number(&mailbox, "Mailbox", "Pid").await;
    let follower = mount.script("exec tail -f -s 0.05 -n +1 mailbox");
    mount.sh(&format!("kill -s USR1 {pid}"));
    let line = follower.wait_for(|line| line.contains("SIGUSR1"));
    assert!(line.contains(" pid=") && line.ends_with("code=0"), "{line}");
}

async fn a_tree_has_every_endpoint(stage: Stage) {
    let client = stage.client().await;
    let before = client.create("pipe:").await;
    let mount = or_skip!(mounted(&stage, ",tree=true").await);
    let name = |path: &str| path.strip_prefix("/org/example/IPC/").expect("a path").to_owned();
    let after = client.create("mmap:size=100").await;
    assert_eq!(mount.sh("find . -type f | sort"), format!("./{}\n./{}\n", name(&after), name(&before)));
    assert_eq!(mount.sh(&format!("echo x > {0}; cat {0}", name(&before))), "x\n");
    client.close(&before).await;
    client.close(&after).await;
    assert_eq!(mount.sh("while [ -n \"$(ls)\" ]; do :; done; find ."), ".\n");
}

everywhere!(
    a_queue_is_read_with_cat_and_written_with_echo,
    a_queue_can_be_polled,
    no_message_is_lost_with_a_reader,
    a_stream_is_a_file,
    memory_is_its_bytes,
    values_are_text,
    tail_follows_events,
    a_tree_has_every_endpoint,
);

/// Readers that wait hear of every end: of the endpoint, of its publisher, of the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_is_gone() {
    let mut stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, ",deadline=60000").await);
    let inbox = mount.client.inbox().await;
    let publisher = stage.client().await;
    let pipe = async |lifetime| publisher.create_with("pipe:", options([("lifetime", lifetime)])).await;
    let (closed, left) = (pipe("service".into()).await, pipe("client".into()).await);
    let kept = pipe("service".into()).await;
    for (name, endpoint) in [("closed", &closed), ("left", &left), ("kept", &kept)] {
        mount.publish_endpoint(name, endpoint).await;
    }
    let readers: Vec<Process> =
        ["closed", "left", "kept"].map(|name| mount.script(&format!("cat {name}"))).into();
    wait_read(&inbox, &mount.path, 3).await;
    let [one, two, three] = readers.try_into().unwrap_or_else(|_| panic!("three readers"));
    publisher.close(&closed).await;
    let failed = |reader: Process| {
        let finished = reader.finish();
        assert!(!finished.status.success(), "{}", finished.text());
        finished.stderr
    };
    assert!(failed(one).contains("Input/output error"));
    publisher.connection.close().await.expect("leaving the bus");
    assert!(failed(two).contains("Input/output error"));
    stage.service.kill();
    failed(three);
    // The mount is stale; a service of the same user takes it away.
    let _next = ipc_harness::Launch::private().start();
    assert_eq!(fs::read_dir(&mount.directory).expect("an empty directory").count(), 0);
}

/// A file of the mount whose content comes out of another file of the mount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_reads_itself_does_not_stop() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, ",deadline=1000").await);
    mount.publish_text("a", "round and round").await;
    let memory = mount.client.attach(&format!("mmap:path={}/a", mount.directory.display())).await;
    mount.publish_endpoint("b", &memory).await;
    let again = mount.client.attach(&format!("mmap:path={}/b", mount.directory.display())).await;
    mount.publish_endpoint("c", &again).await;
    assert_eq!(mount.sh("cat b; cat c"), "round and roundround and round");
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("q", &queue).await;
    let relayed = ObjectPath::try_from(mount.path.as_str()).expect("a path");
    let sink = ObjectPath::try_from(queue.as_str()).expect("a path");
    let refused = mount.client.reply(ipc_harness::PATH, "", "Relay", &(sink, relayed, Options::new())).await;
    let refused = error(refused);
    assert!(refused.is("NotSupported") && refused.text.contains("PublishEndpoint"), "{refused}");
}
