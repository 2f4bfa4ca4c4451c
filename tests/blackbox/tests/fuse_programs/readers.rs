//! Two hundred at once: of content, of one queue, of one stream; and the event logs that `tail -f` follows.

use ipc_blackbox::{Inbox, Options, Stage, Way, error, mounted};
use ipc_harness::{Process, or_skip};
use rustix::process::Signal;
use zbus::ObjectPath;

use crate::{live, refused};

/// Until so many readers wait in the service.
async fn reading(inbox: &Inbox, mount: &str, count: usize) {
    inbox.signals(mount, "Read", count).await;
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:04}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_goes_to_one_of_two_hundred_whoever_is_killed() {
    let (_stage, mount) = or_skip!(live(",deadline=60000").await);
    let client = &mount.client;
    let inbox = client.inbox().await;
    let queue = client.create("pipe:packet=true").await;
    mount.publish_endpoint("jobs", &queue).await;
    let mut killed: Vec<Process> = (0..30).map(|_| mount.script("exec cat jobs")).collect();
    let script = "for i in $(seq 200); do dd if=jobs bs=100 count=1 status=none & done; wait";
    let readers = mount.script(script);
    reading(&inbox, &mount.path, 230).await;
    for reader in &killed {
        reader.signal(Signal::KILL);
    }
    for text in numbered(200) {
        let text = format!("{text}\n");
        client
            .reply(&queue, "Messages", "SendText", &(text, Options::new(), 5000u32))
            .await
            .expect("SendText");
    }
    let said = readers.finish().success();
    let mut got: Vec<&str> = said.lines().collect();
    got.sort_unstable();
    assert_eq!(got, numbered(200));
    // Whoever was killed and woken took nothing, and those whom nothing has woken yet will not either.
    let left = ("left", Options::new(), 5000u32);
    client.reply(&queue, "Messages", "SendText", &left).await.expect("SendText");
    assert_eq!(mount.sh("dd if=jobs bs=100 count=1 status=none"), "left");
    client.close(&queue).await;
    killed.iter_mut().for_each(|reader| assert!(!reader.wait().success()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_a_stream_are_shared_out_among_two_hundred() {
    let (_stage, mount) = or_skip!(live(",deadline=60000").await);
    let client = &mount.client;
    let inbox = client.inbox().await;
    let pipe = client.create("pipe:").await;
    mount.publish_endpoint("bytes", &pipe).await;
    let mut killed: Vec<Process> = (0..30).map(|_| mount.script("exec head -c 5 bytes")).collect();
    let script = "for i in $(seq 200); do dd if=bytes bs=5 count=1 status=none & done; wait";
    let readers = mount.script(script);
    reading(&inbox, &mount.path, 230).await;
    for reader in &killed {
        reader.signal(Signal::KILL);
    }
    // Written at once, and taken in pieces that are as long as a record.
    let records: String = numbered(200).iter().map(|text| format!("{text}\n")).collect();
    client.write(&pipe, records.as_bytes(), 5000).await.expect("Write");
    let said = readers.finish().success();
    let mut got: Vec<&str> = said.lines().collect();
    got.sort_unstable();
    assert_eq!(got, numbered(200));
    client.reply(&pipe, "Stream", "Shutdown", &("write",)).await.expect("Shutdown");
    killed.iter_mut().for_each(|reader| assert!(!reader.wait().success()));
    assert_eq!(mount.sh("cat bytes"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_read_content_while_it_changes() {
    let (_stage, mount) = or_skip!(live("").await);
    let text = |number: usize| format!("{number:04}\n").repeat(4000);
    mount.publish_text("a", &text(0)).await;
    // In one read(2) each: all of it is of one publication.
    let script =
        "for i in $(seq 200); do dd if=a bs=20000 count=1 status=none | sort -u | tr '\\n' ' ' & done; wait";
    let readers = mount.script(script);
    for number in 1..100 {
        mount.publish_text("a", &text(number)).await;
    }
    let said = readers.finish().success();
    let all = numbered(100);
    let got: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(got.len(), 200, "{said}");
    assert!(got.iter().all(|got| all.iter().any(|one| one == got)), "{said}");
    assert_eq!(mount.sh("cat a"), text(99));
}

/// More than may wait are told so; those who wait are not harmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_that_wait_are_told_to_come_again() {
    let (_stage, mount) = or_skip!(live(",deadline=60000").await);
    let inbox = mount.client.inbox().await;
    let queue = mount.client.create("pipe:packet=true").await;
    mount.publish_endpoint("jobs", &queue).await;
    let script = "
import threading
def read():
    try: answer = os.read(os.open('jobs', os.O_RDONLY), 100).decode()
    except OSError as error: answer = os.strerror(error.errno)
    sys.stdout.write(answer + '\\n')
threads = [threading.Thread(target=read) for _ in range(300)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
    let readers = mount.python(script, &[]);
    reading(&inbox, &mount.path, 300).await;
    for text in numbered(256) {
        let sent = (text, Options::new(), 5000u32);
        mount.client.reply(&queue, "Messages", "SendText", &sent).await.expect("SendText");
    }
    let said = readers.finish().success();
    let (busy, got): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.contains("temporarily unavailable"));
    assert_eq!((busy.len(), got.len()), (44, 256), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_follows_a_log_beyond_what_is_kept() {
    let (_stage, mount) = or_skip!(live("").await);
    let mailbox = mount.client.create("signal:number=SIGRTMIN+3").await;
    mount.publish_endpoint("log", &mailbox).await;
    let pid = mount.client.number(&mailbox, "Mailbox", "Pid").await;
    let tail = mount.script("exec tail -f -s 0.01 -n +1 log");
    let poller = "
import select
f = os.open('log', os.O_RDONLY)
poll = select.poll()
poll.register(f, select.POLLIN)
count = 0
while count < 2000:
    poll.poll()
    count += os.read(f, 1 << 20).count(b'\\n')
print('all', flush=True)
";
    let poller = mount.python(poller, &[]);
    // About 60 bytes a line: more than the log keeps. Real-time signals queue, one does not replace another.
    let sender = "
import signal
for number in range(2000): os.kill(int(sys.argv[2]), signal.SIGRTMIN + 3)
";
    mount.python(sender, &[&pid.to_string()]).finish().success();
    poller.wait_for(|line| line == "all");
    let mut seen = 0;
    tail.wait_for(|line| {
        seen += usize::from(line.contains("SIGRTMIN+3"));
        seen == 2000
    });
    let kept = mount.sh("cat log | wc -c; stat -c %s log; head -n 1 log");
    let (sizes, first) = kept.trim().rsplit_once('\n').expect("three lines");
    let sizes: Vec<u64> = sizes.lines().map(|size| size.parse().expect("a size")).collect();
    assert!(sizes[0] <= 65_536 && sizes[1] > sizes[0], "{sizes:?}");
    assert!(first.contains("SIGRTMIN+3") && first.split(' ').count() > 3, "a whole line: {first}");
    refused(&mount, "env echo x >> log", "not permitted");
    refused(&mount, "truncate -s 0 log", "not permitted");
}

/// Links that come and go, in a network namespace of the service's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_follows_what_happens_to_links() {
    let stage = or_skip!(Stage::in_own_network(Way::Private, ""));
    let mount = or_skip!(mounted(&stage, "").await);
    mount.publish_endpoint("network", "/org/example/IPC/netlink").await;
    let tail = mount.script("exec tail -f -s 0.05 -n +1 network");
    tail.wait_for(|line| line.ends_with(" Overflow restart"));
    stage.service.ip("link add one type veth peer name two");
    let line = tail.wait_for(|line| line.contains("LinkChanged") && line.contains(" one "));
    let words: Vec<&str> = line.split(' ').collect();
    assert!(words.len() == 5 && words[0].contains('.') && words[2].parse::<u32>().is_ok(), "{line}");
    assert_eq!((words[1], words[3], words[4]), ("LinkChanged", "one", "down"), "{line}");
    stage.service.ip("address add 192.0.2.1/24 dev one");
    tail.wait_for(|line| line.contains("AddressAdded") && line.ends_with(" one 192.0.2.1 24"));
    stage.service.ip("link set one up");
    stage.service.ip("link set two up");
    tail.wait_for(|line| line.contains("LinkChanged") && line.ends_with(" one up"));
    stage.service.ip("link delete one");
    tail.wait_for(|line| line.contains("LinkRemoved") && line.ends_with(" one"));
    assert!(mount.sh("grep -c LinkChanged network; stat -c %a network").ends_with("\n400\n"));
    let again = ("network", ObjectPath::try_from("/org/example/IPC/netlink").expect("a path"));
    let again = mount.client.reply(&mount.path, "Filesystem", "PublishEndpoint", &again).await;
    ipc_blackbox::assert_error(&error(again), "Exists", &["Unpublish it first"]);
    mount.unpublish("network").await;
    assert_eq!(mount.sh("ls"), "");
}
