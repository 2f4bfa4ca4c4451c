//! The option `tee` for streams, against tee(1) and with independent readers; and in files of relays.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::{
    Launch, PATH, Process, TempDir, connect, need_tool, or_skip, patience, temp_dir, unique, watchdog,
};
use zbus::{ObjectPath, OwnedVariant, Variant};

const DEFAULT: u32 = u32::MAX;

/// A directory for the programs of the stage's user.
fn directory(stage: &Stage) -> TempDir {
    let dir = stage.temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("an own directory");
    dir
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// `tee` with these further sinks.
fn tee<'a, const N: usize>(sinks: &'a [String], more: [(&'a str, Variant<'a>); N]) -> Options<'a> {
    let paths: Vec<_> =
        sinks.iter().map(|sink| ObjectPath::try_from(sink.as_str()).expect("an object path")).collect();
    let mut given = options(more);
    given.insert("tee", paths.into());
    given
}

/// A FIFO of the service's, and cat(1), which reads it into a file.
async fn fifo(stage: &Stage, client: &Client, dir: &TempDir, name: &str) -> (String, Process) {
    let sink = client.create(&format!("fifo:path={}", path(dir, name))).await;
    let reader = stage.sh(&format!("exec cat {} > {}", path(dir, name), path(dir, &format!("{name}.out"))));
    (sink, reader)
}

async fn method(client: &Client, relay: &str) -> String {
    let mut state: BTreeMap<String, OwnedVariant> =
        client.call(relay, "Relay", "Inspect", &()).await.expect("Inspect");
    state.remove("method").and_then(|method| method.try_into().ok()).expect("a text")
}

/// The same bytes as tee(1) writes, in three FIFOs and in two FIFOs and a socket.
async fn all_have_what_tee_gives_them(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = directory(&stage);
    let lines: String = (0..60_000).map(|number| format!("{}\n", number * 7919)).collect();
    let size = lines.len() as u64;
    let mut coreutils = stage.sh(&format!("cd {}; tee A B > C", dir.path().display()));
    coreutils.write(&lines);
    coreutils.finish().success();
    for (socket, expected) in [(false, "splice and tee"), (true, "read and write")] {
        let source = client.create("pipe:").await;
        let (one, mut first) = fifo(&stage, &client, &dir, "one").await;
        let (two, mut second) = fifo(&stage, &client, &dir, "two").await;
        let (three, mut third) = if socket {
            let place = path(&dir, "socket");
            let socat = stage.socat(&[
                "-d",
                "-d",
                "-u",
                &format!("UNIX-LISTEN:{place},mode=0666"),
                &format!("CREATE:{}", path(&dir, "three.out")),
            ]);
            socat.stderr().wait_for(|line| line.contains("listening on")).expect("socat listens");
            (client.attach(&format!("unix:path={place}")).await, socat)
        } else {
            fifo(&stage, &client, &dir, "three").await
        };
        let further = [two.clone(), three.clone()];
        let relay = client.relay(&source, &one, tee(&further, [("bytes", size.into())])).await;
        let mut shown = "none yet".to_owned();
        while shown == "none yet" {
            shown = method(&client, &relay).await;
        }
        assert_eq!(shown, expected);
        for piece in lines.as_bytes().chunks(50_000) {
            assert_eq!(client.write(&source, piece, DEFAULT).await.expect("Write"), piece.len() as u64);
        }
        let finished = inbox.signal(&relay, "Finished").await;
        let told: (String, u64, u64) = finished.body().deserialize().expect("reason, bytes, messages");
        assert_eq!(told, (format!("bytes={size} is reached"), size, 0));
        for sink in [&one, &two, &three] {
            client.close(sink).await;
        }
        for reader in [&mut first, &mut second, &mut third] {
            assert!(reader.wait().success());
        }
        for (ours, theirs) in [("one.out", "A"), ("two.out", "B"), ("three.out", "C")] {
            let [ours, theirs] = [ours, theirs].map(|name| fs::read(path(&dir, name)).expect("a file"));
            assert!(ours == theirs, "socket={socket}: {} bytes and {}", ours.len(), theirs.len());
        }
        for name in ["one", "two", "three"] {
            _ = fs::remove_file(path(&dir, name));
        }
    }
}

/// Messages as lines in two streams; a reader that is killed ends the relay, which says whose it was.
async fn lines_go_into_both_until_one_is_gone(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = directory(&stage);
    let queue = format!("posixmq:name=/{},depth=9,size=64,remove-on-close=true", unique("tee"));
    let source = client.create(&queue).await;
    let (one, _first) = fifo(&stage, &client, &dir, "one").await;
    let two = client.create("unix:pair=true").await;
    let far = client.open(&two, options([("end", "peer".into())])).await.expect("Open");
    let relay =
        client.relay(&source, &one, tee(std::slice::from_ref(&two), [("framing", "line".into())])).await;
    for message in ["one", "two"] {
        client.send(&source, message.as_bytes(), options([])).await.expect("Send");
    }
    let mut read = [0; 8];
    std::io::Read::read_exact(&mut fs::File::from(far.try_clone().expect("a duplicate")), &mut read)
        .expect("both lines");
    assert_eq!(&read, b"one\ntwo\n");
    while fs::read(path(&dir, "one.out")).unwrap_or_default() != b"one\ntwo\n" {
        client.property(&relay, "Relay", "State").await.expect("it runs");
    }
    // Nobody reads there any more; another one would hold the file descriptor that came in the answer.
    rustix::net::shutdown(&far, rustix::net::Shutdown::Both).expect("shutdown");
    client.send(&source, b"three", options([])).await.expect("Send");
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, _, messages): (String, u64, u64) = finished.body().deserialize().expect("as usual");
    let address = client.address(&two).await;
    assert!(reason.contains(&address) && messages == 2, "{reason}, {messages}");
}

async fn what_cannot_be(stage: Stage) {
    let client = stage.client().await;
    let (source, one, two) =
        (client.create("pipe:").await, client.create("pipe:").await, client.create("pipe:").await);
    let queue = format!("posixmq:name=/{},depth=9,size=64,remove-on-close=true", unique("tee"));
    let queue = client.create(&queue).await;
    let cases = [
        (&one, tee(std::slice::from_ref(&one), []), "InvalidArgument", "is a sink of the relay already"),
        (&one, tee(std::slice::from_ref(&source), []), "InvalidArgument", "would come back"),
        (
            &one,
            tee(std::slice::from_ref(&queue), []),
            "InvalidArgument",
            "the first sink is a stream of bytes",
        ),
        (
            &queue,
            tee(std::slice::from_ref(&one), [("framing", "line".into())]),
            "InvalidArgument",
            "the first sink takes messages",
        ),
        (
            &one,
            tee(std::slice::from_ref(&two), [("count", 3u64.into())]),
            "InvalidArgument",
            "\"bytes\" counts",
        ),
        (&one, tee(std::slice::from_ref(&two), [("both", true.into())]), "InvalidArgument", "one direction"),
    ];
    for (sink, given, name, phrase) in cases {
        assert_error(&error(client.try_relay(&source, sink, given).await), name, &[phrase]);
    }
}

/// A file of relays names further sinks as it names the sink.
#[tokio::test]
async fn a_file_names_further_sinks() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("relays.d")).expect("a directory");
    let place = |name: &str| path(&dir, name);
    let text = format!(
        "[endpoint.log]\ncreate = \"fifo:path={}\"\n\n[relay.all]\nsource = {{ create = \"fifo:path={}\", hold = true }}\n\
         sink = {{ create = \"fifo:path={}\" }}\ntee = [\n  \"log\",\n  {{ create = \"fifo:path={}\" }},\n]\n",
        place("log"),
        place("in"),
        place("one"),
        place("two")
    );
    fs::write(dir.path().join("relays.d/all.toml"), text).expect("a file");
    let service = Launch::private().argument("--relays").argument(dir.path().join("relays.d")).start();
    let client = Client::of_bus(connect(&service).await);
    let relay = running(&client, "relay.all").await;
    let names = ["one", "log", "two"];
    let _readers = names.map(|name| {
        ipc_harness::sh(&format!("exec cat {} > {}", place(name), place(&format!("{name}.out"))))
    });
    let written = ipc_harness::sh(&format!("echo hello > {}", place("in"))).finish();
    written.success();
    let arrives = async {
        while client.number(&relay, "Relay", "Bytes").await < 6 {}
        for name in names {
            while fs::read(place(&format!("{name}.out"))).unwrap_or_default() != b"hello\n" {
                client.property(&relay, "Relay", "State").await.expect("it runs");
            }
        }
    };
    watchdog(patience(), arrives).await;
    assert_eq!(method(&client, &relay).await, "splice and tee");
    assert!(Path::new(&place("two")).exists());
    running(&client, "relay.all.tee.2").await;
}

/// The path of what a file declares, once it runs.
async fn running(client: &Client, name: &str) -> String {
    let looking = async {
        loop {
            let rows = client.property(PATH, "", "Declared").await.expect("the property Declared");
            let rows: Vec<BTreeMap<String, OwnedVariant>> = rows.try_into().expect("dictionaries");
            let has = |row: &BTreeMap<String, OwnedVariant>, key: &str, text: &str| matches!(&*row[key], Variant::Str(found) if found.as_str() == text);
            let found = rows.into_iter().find(|row| has(row, "name", name) && has(row, "state", "running"));
            if let Some(Variant::Str(object)) = found.as_ref().map(|row| &*row["object"]) {
                return object.to_string();
            }
        }
    };
    watchdog(patience(), looking).await
}

everywhere!(all_have_what_tee_gives_them, lines_go_into_both_until_one_is_gone, what_cannot_be);
