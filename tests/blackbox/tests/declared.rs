//! Endpoints and relays that files declare: made at the start, kept there, changed with the files.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
};

use ipc_blackbox::{Client, options};
use ipc_harness::{Launch, PATH, Process, Service, TempDir, connect, patience, temp_dir, unique, watchdog};
use rustix::process::Signal;
use zbus::{OwnedVariant, Variant};

/// A directory of declarations, and files beside it.
struct Place {
    dir: TempDir,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    state: String,
    why: String,
    object: String,
}

impl Place {
    fn new() -> Place {
        let dir = temp_dir();
        fs::create_dir(dir.path().join("relays.d")).expect("a directory");
        Place { dir }
    }

    fn relays(&self) -> PathBuf {
        self.dir.path().join("relays.d")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a path of text").to_owned()
    }

    /// As editors do: another file is put in the place of the old one.
    fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).expect("a file");
        fs::rename(new, self.relays().join(name)).expect("rename");
    }

    fn start(&self) -> Service {
        Launch::private().argument("--relays").argument(self.relays()).start()
    }
}

async fn client(service: &Service) -> Client {
    Client::of_bus(connect(service).await)
}

async fn rows(client: &Client) -> BTreeMap<String, Row> {
    let rows = client.property(PATH, "", "Declared").await.expect("the property Declared");
    let rows: Vec<BTreeMap<String, OwnedVariant>> = rows.try_into().expect("dictionaries");
    let text = |row: &BTreeMap<String, OwnedVariant>, key: &str| match &*row[key] {
        Variant::Str(text) => text.to_string(),
        other => panic!("{key} is {other:?}"),
    };
    let row = |row: &BTreeMap<String, OwnedVariant>| {
        let key = format!("{} {}", text(row, "file"), text(row, "name"));
        (key, Row { state: text(row, "state"), why: text(row, "why"), object: text(row, "object") })
    };
    rows.iter().map(row).collect()
}

/// Until what is declared is as the test wants it. Each question is a call, so there is nothing to sleep for.
async fn until(
    client: &Client,
    mut wanted: impl FnMut(&BTreeMap<String, Row>) -> bool,
) -> BTreeMap<String, Row> {
    let looking = async {
        loop {
            let rows = rows(client).await;
            if wanted(&rows) {
                return rows;
            }
        }
    };
    watchdog(patience(), looking).await
}

async fn becomes(client: &Client, key: &str, state: &str) -> Row {
    let rows = until(client, |rows| rows.get(key).is_some_and(|row| row.state == state)).await;
    rows[key].clone()
}

async fn exists(client: &Client, path: &str) -> bool {
    client.property(path, "org.freedesktop.DBus.Introspectable", "x").await.expect_err("no such property");
    client
        .call::<String, _>(path, "org.freedesktop.DBus.Introspectable", "Introspect", &())
        .await
        .is_ok_and(|text| text.contains("org.example.IPC.Endpoint") || text.contains("org.example.IPC.Relay"))
}

async fn text_of(client: &Client, path: &str, interface: &str, name: &str) -> String {
    let value = client.property(path, interface, name).await.expect("a property");
    value.try_into().expect("a text")
}

fn spool(place: &Place, queue: &str) -> String {
    format!(
        "[endpoint.jobs]\ncreate = \"posixmq:name=/{queue}\"\nmode = \"0660\"\ndepth = 5\nremove-on-close = true\n\n\
         [relay.spool]\nsource = {{ create = \"fifo:path={}\", hold = true, mode = 0o600 }}\nsink = \"jobs\"\n\
         framing = \"line\"\n",
        place.path("spool")
    )
}

fn write_into(fifo: &str, text: &str) {
    let mut fifo = OpenOptions::new().write(true).open(fifo).expect("the FIFO");
    fifo.write_all(text.as_bytes()).expect("writing into the FIFO");
}

async fn receives(client: &Client, queue: &str, texts: &[&str]) {
    for text in texts {
        let (data, _) = client.receive(queue, 10_000).await.expect("Receive");
        assert_eq!(String::from_utf8_lossy(&data), *text);
    }
}

#[tokio::test]
async fn what_is_declared_is_there() {
    let (place, queue) = (Place::new(), unique("declared"));
    place.write("spool.toml", &spool(&place, &queue));
    place.write("README", "no declaration");
    let mut service = place.start();
    let client = client(&service).await;
    let relay = becomes(&client, "spool.toml relay.spool", "running").await;
    let jobs = becomes(&client, "spool.toml endpoint.jobs", "running").await;
    let names = rows(&client).await.into_keys().collect::<Vec<_>>();
    assert_eq!(
        names,
        ["endpoint.jobs", "relay.spool", "relay.spool.source"].map(|it| format!("spool.toml {it}"))
    );
    assert_eq!(text_of(&client, &jobs.object, "Endpoint", "Creator").await, "relays.d/spool.toml");
    assert_eq!((client.usage("endpoints").await, client.usage("relays").await), (2, 1));
    write_into(&place.path("spool"), "one\ntwo\n");
    receives(&client, &jobs.object, &["one", "two"]).await;
    assert_eq!(text_of(&client, &relay.object, "Relay", "State").await, "running");

    // Whoever uses the service may end what is declared; it stays so until it is asked for.
    client.run(&relay.object, "Relay", "Stop").await;
    let stopped = becomes(&client, "spool.toml relay.spool", "stopped").await;
    assert!(stopped.why.contains("client") && stopped.object.is_empty(), "{stopped:?}");
    client.close(&jobs.object).await;
    becomes(&client, "spool.toml endpoint.jobs", "stopped").await;
    service.signal(Signal::HUP);
    let again = becomes(&client, "spool.toml relay.spool", "running").await;
    assert_ne!(again.object, relay.object);

    // A crash leaves the FIFO behind; the next start takes it.
    service.kill();
    drop(client);
    let service = place.start();
    let client = self::client(&service).await;
    becomes(&client, "spool.toml relay.spool", "running").await;
    let jobs = becomes(&client, "spool.toml endpoint.jobs", "running").await;
    write_into(&place.path("spool"), "three\n");
    receives(&client, &jobs.object, &["three"]).await;
}

#[tokio::test]
async fn only_what_has_changed_is_made_anew() {
    let (place, queue) = (Place::new(), unique("declared"));
    let pipes = "[endpoint.a]\ncreate = \"pipe:\"\n[endpoint.b]\ncreate = \"pipe:\"\n[relay.r]\nsource = \"a\"\nsink = \"b\"\n";
    place.write("pipes.toml", pipes);
    place.write("spool.toml", &spool(&place, &queue));
    let service = place.start();
    let client = client(&service).await;
    becomes(&client, "spool.toml relay.spool", "running").await;
    becomes(&client, "pipes.toml relay.r", "running").await;
    let before = rows(&client).await;

    place.write("pipes.toml", &format!("# better\n{pipes}shutdown = false\n"));
    let key = "pipes.toml relay.r";
    let changed =
        until(&client, |rows| rows.get(key).is_some_and(|row| row.state == "running" && row != &before[key]))
            .await;
    let others = |rows: &BTreeMap<String, Row>| {
        let mut others = rows.clone();
        others.remove(key);
        others
    };
    assert_eq!(others(&changed), others(&before));
    assert!(!exists(&client, &before[key].object).await);

    // An end with other options: the relay on it is made anew with it.
    place.write("pipes.toml", &pipes.replacen("pipe:", "pipe:capacity=4096", 1));
    let end = "pipes.toml endpoint.a";
    let rows = until(&client, |rows| {
        let differs = |key: &str| {
            let old = &changed[key].object;
            rows.get(key).is_some_and(|row| row.state == "running" && &row.object != old)
        };
        differs(key) && differs(end)
    })
    .await;
    assert_eq!(rows["pipes.toml endpoint.b"], before["pipes.toml endpoint.b"]);

    // A file that cannot be used is told of, and what it said before goes on.
    place
        .write("pipes.toml", "[endpoint.a]\ncreate = \"pipe:\"\n\n[relay.r]\nsource = \"a\"\nsink = \"c\"\n");
    let invalid = becomes(&client, "pipes.toml ", "invalid").await;
    let place_of_error = format!("{}:6: ", place.relays().join("pipes.toml").display());
    assert!(invalid.why.starts_with(&place_of_error) && invalid.why.contains("[endpoint.c]"), "{invalid:?}");
    assert!(service.log().contains(&place_of_error), "{}", service.log());
    let mut still = self::rows(&client).await;
    still.remove("pipes.toml ");
    assert_eq!(still, rows);

    fs::remove_file(place.relays().join("pipes.toml")).expect("removing the file");
    let left = until(&client, |rows| rows.len() == 3).await;
    assert!(left.keys().all(|key| key.starts_with("spool.toml")), "{left:?}");
    assert!(!exists(&client, &before["pipes.toml endpoint.b"].object).await);
    assert!(exists(&client, &before["spool.toml endpoint.jobs"].object).await);
    client.used("endpoints", 2).await;
}

#[tokio::test]
async fn what_is_not_there_yet_is_tried_again() {
    let place = Place::new();
    fs::remove_dir(place.relays()).expect("an empty directory");
    let service = place.start();
    let client = client(&service).await;
    assert!(rows(&client).await.is_empty());
    // The directory itself comes late, and the file a moment after it.
    fs::create_dir(place.relays()).expect("a directory");
    let fifo = place.path("late");
    place.write(
        "late.toml",
        &format!("[relay.r]\nsource = \"fifo:path={fifo}\"\nsink = {{ create = \"pipe:\" }}\n"),
    );
    let source = becomes(&client, "late.toml relay.r.source", "retrying").await;
    assert!(source.why.contains(&fifo), "{source:?}");
    let relay = becomes(&client, "late.toml relay.r", "waiting").await;
    assert!(relay.why.contains("relay.r.source"), "{relay:?}");
    assert!(service.log().contains(&fifo), "{}", service.log());
    let made = Process::spawn(Command::new("mkfifo").arg(&fifo)).finish();
    made.success();
    becomes(&client, "late.toml relay.r.source", "running").await;
    until(&client, |rows| rows["late.toml relay.r"].state == "running").await;
}

#[tokio::test]
async fn what_fails_is_started_again() {
    let place = Place::new();
    let socket = place.path("socket");
    let listener = UnixListener::bind(&socket).expect("a listening socket");
    let text = format!(
        "[endpoint.p]\ncreate = \"pipe:\"\n[relay.r]\nsource = \"p\"\nsink = \"unix:path={socket}\"\n"
    );
    place.write("r.toml", &text);
    let service = place.start();
    let client = client(&service).await;
    becomes(&client, "r.toml relay.r", "running").await;
    let pipe = becomes(&client, "r.toml endpoint.p", "running").await.object;
    for text in ["one", "two", "three"] {
        // The next one is written when nobody listens to the last connection any more.
        client.write(&pipe, text.as_bytes(), 10_000).await.expect("Write");
        let mut got = [0; 16];
        let (mut connection, _) = listener.accept().expect("a connection");
        let count = connection.read(&mut got).expect("what was written");
        assert_eq!(std::str::from_utf8(&got[..count]), Ok(text));
    }
    assert_eq!(becomes(&client, "r.toml endpoint.p", "running").await.object, pipe);
}

#[tokio::test]
async fn an_end_is_an_end_unless_told_otherwise() {
    let place = Place::new();
    fs::write(place.path("data"), "once").expect("a file");
    let relay = |name: &str, restart: &str| {
        format!(
            "[endpoint.{name}]\ncreate = \"pipe:\"\n[relay.{name}]\nsource = {{ attach = \"fifo:path={}\" }}\n\
             sink = \"{name}\"\nshutdown = false\n{restart}\n",
            place.path(name)
        )
    };
    for name in ["once", "always"] {
        Process::spawn(Command::new("mkfifo").arg(place.path(name))).finish().success();
    }
    place.write("r.toml", &(relay("once", "") + &relay("always", "restart = \"always\"")));
    let service = place.start();
    let client = client(&service).await;
    for name in ["once", "always"] {
        let pipe = becomes(&client, &format!("r.toml endpoint.{name}"), "running").await.object;
        becomes(&client, &format!("r.toml relay.{name}"), "running").await;
        write_into(&place.path(name), name);
        assert_eq!(client.read_text(&pipe, 100, 10_000).await.as_deref(), Ok(name));
    }
    let once = becomes(&client, "r.toml relay.once", "finished").await;
    assert_eq!(once.why, "end of stream");
    let pipe = becomes(&client, "r.toml endpoint.always", "running").await.object;
    write_into(&place.path("always"), "again");
    assert_eq!(client.read_text(&pipe, 100, 10_000).await.as_deref(), Ok("again"));
}

/// The options that bound a relay are keys like all others; an end that was asked for is no failure.
#[tokio::test]
async fn what_is_bounded_finishes() {
    let place = Place::new();
    let bounds =
        "count = 2\non-error = \"skip\"\nrate-messages = 1000\nrate-bytes = 1_000_000\nidle-ms = 600_000\n";
    place.write(
        "s.toml",
        &(spool(&place, &unique("bounded")).replace("depth = 5", "depth = 5\nsize = 8") + bounds),
    );
    let service = place.start();
    let client = client(&service).await;
    let queue = becomes(&client, "s.toml endpoint.jobs", "running").await.object;
    becomes(&client, "s.toml relay.spool", "running").await;
    write_into(&place.path("spool"), "more than eight\none\ntwo\nthree\n");
    receives(&client, &queue, &["one", "two"]).await;
    let finished = becomes(&client, "s.toml relay.spool", "finished").await;
    assert_eq!(finished.why, "count=2 is reached");
}

/// All errors of all files, each with its line.
#[test]
fn the_files_are_checked() {
    let program = program();
    let place = Place::new();
    let check = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("XDG_CONFIG_HOME", place.path(""));
        Process::spawn(&mut command).finish()
    };
    let relays = place.path("relays.d");
    place.write("good.toml", "[endpoint.e]\ncreate = \"fifo:path=/x\"\nmode = 0o640\ncapacity = \"64K\"\n");
    let good = check(&["--relays", &relays, "--check-relays"]).success();
    assert!(good.contains("valid: 1 files, 1 endpoints"), "{good}");
    let cases: &[(&str, usize, &str)] = &[
        ("[endpoint.e]\ncreate = pipe\n", 2, "quoted"),
        ("[endpoint.e]\ncreate = \"nope:\"\n", 2, "no mechanism \"nope\""),
        ("[endpoint.e]\ncreate = \"pipe\"\n", 2, "no ':'"),
        ("[endpoint.e]\n\nmode = 1\n", 1, "create = \"ADDRESS\" or attach"),
        ("[endpoint.e]\ncreate = \"pipe:\"\ndepth = 1\n", 3, "pipe has no key \"depth\""),
        ("[endpoint.e]\ncreate = \"pipe:\"\ncapacity = true\n", 3, "\"capacity\" must be a number of bytes"),
        ("[endpoint.e]\ncreate = \"pipe:capacity=4096\"\ncapacity = 4096\n", 3, "given twice"),
        ("[endpoint.e]\ncreate = \"fifo:path=/x\"\nmode = 640\n", 3, "0o640"),
        ("[endpoint.e]\ncreate = \"fifo:\"\n", 2, "\"path\" is missing"),
        ("[endpoint.e]\ncreate = \"pipe:\"\nlifetime = \"client\"\n", 3, "leave lifetime out"),
        ("[endpoint.e]\ncreate = \"pipe:\"\ncapacity = 1979-05-27\n", 3, "datetime"),
        ("[endpoint.\"e e\"]\ncreate = \"pipe:\"\n", 1, "letters"),
        ("[endpoint]\ne = 1\n", 2, "must be a table"),
        ("\n[relais.r]\n", 2, "[relay.NAME]"),
        ("[relay.r]\nsource = \"pipe:\"\n", 1, "no sink"),
        ("[relay.r]\nsource = \"e\"\nsink = 3\n", 2, "no [endpoint.e]"),
        ("[relay.r]\nsource = \"e\"\nsink = 3\n", 3, "name of an endpoint, an address"),
        ("[relay.r]\nframing = \"lines\"\n", 2, "none, line, length, fixed"),
        ("[relay.r]\nframing = \"fixed\"\n", 1, "record-size"),
        ("[relay.r]\non-error = \"ignore\"\n", 2, "stop, skip"),
        ("[relay.r]\ncount = 0\n", 2, "\"count\" must be"),
        ("[relay.r]\ntee = \"e\"\n", 2, "tee must be an array"),
        ("[relay.r]\ntee = [\n  \"pipe:\",\n  \"e\",\n]\n", 4, "no [endpoint.e]"),
        ("[relay.r]\ntee = [\n  3,\n]\n", 3, "an element of tee must be the name of an endpoint"),
        ("[relay.r]\nreconnect = 1\n", 2, "\"reconnect\" must be true or false"),
        ("[relay.r]\nretries = 3\n", 1, "\"retries\" belongs to reconnect=true"),
        ("[relay.r]\nrestart = true\n", 2, "on-failure"),
    ];
    for (text, line, phrase) in cases {
        place.write("bad.toml", text);
        let done = check(&["--relays", &relays, "--check-relays"]);
        assert_eq!(done.status.code(), Some(1), "{text:?}");
        let bad = Path::new(&relays).join("bad.toml");
        let start = format!("{}:{line}: ", bad.display());
        let told = done.stderr.lines().any(|said| said.starts_with(&start) && said.contains(phrase));
        assert!(told, "{text:?} must say {start}…{phrase}:\n{}", done.stderr);
    }
    // Several at once, in the user's own directory.
    fs::create_dir(place.path("ipcd")).expect("a directory");
    fs::rename(&relays, place.path("ipcd/relays.d")).expect("rename");
    let text = "[endpoint.e]\ncreate = \"pipe:\"\na = 1\nb = 2\n[relay.r]\nsource = \"e\"\nsink = \"f\"\n";
    fs::write(place.path("ipcd/relays.d/bad.toml"), text).expect("a file");
    let done = check(&["--check-relays"]);
    for line in ["bad.toml:3: ", "bad.toml:4: ", "bad.toml:7: ", "3 errors"] {
        assert!(done.stderr.contains(line), "{line} is not in {}", done.stderr);
    }
    let system = check(&["--bus", "system", "--relays", &relays]);
    assert!(!system.status.success() && system.stderr.contains("ipcd-relays@.service"), "{}", system.stderr);
}

fn program() -> PathBuf {
    let service = Service::private();
    fs::read_link(format!("/proc/{}/exe", service.pid())).expect("the program")
}

/// A declared relay that connects again is the same relay; what makes it anew is not needed.
#[tokio::test]
async fn a_relay_that_connects_again() {
    let place = Place::new();
    let socket = place.path("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let text = format!(
        "[relay.out]\nsource = {{ create = \"fifo:path={}\", hold = true }}\nsink = \"unix:path={socket}\"\n\
         reconnect = true\nretry-ms = 5\nretry-max-ms = 40\n",
        place.path("in")
    );
    place.write("out.toml", &text);
    let service = place.start();
    let client = client(&service).await;
    let relay = becomes(&client, "out.toml relay.out", "running").await;
    let (mut first, _) = listener.accept().expect("a connection");
    write_into(&place.path("in"), "first\n");
    first.read_exact(&mut [0; 6]).expect("what was written");
    drop((first, listener));
    let state = async |wanted: &str| {
        let asking = async { while text_of(&client, &relay.object, "Relay", "State").await != wanted {} };
        watchdog(patience(), asking).await
    };
    state("reconnecting").await;
    write_into(&place.path("in"), "held\n");
    fs::remove_file(&socket).expect("the path that was left");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let (mut second, _) = listener.accept().expect("a connection");
    let mut held = [0; 5];
    second.read_exact(&mut held).expect("what was held");
    assert_eq!(&held, b"held\n");
    state("running").await;
    assert_eq!(becomes(&client, "out.toml relay.out", "running").await, relay);
}

/// What is beyond a limit waits for room, and says which limit.
#[tokio::test]
async fn limits_count() {
    let place = Place::new();
    let pipe = |name: &str| format!("[endpoint.{name}]\ncreate = \"pipe:\"\n");
    place.write("a.toml", &pipe("a"));
    let launch = Launch::private().config("[limits]\nendpoints = 1\n");
    let service = launch.argument("--relays").argument(place.relays()).start();
    let client = client(&service).await;
    becomes(&client, "a.toml endpoint.a", "running").await;
    place.write("b.toml", &pipe("b"));
    let beyond = becomes(&client, "b.toml endpoint.b", "retrying").await;
    assert!(beyond.why.contains("endpoints") && beyond.why.contains('1'), "{beyond:?}");
    let refused = client.try_create("pipe:", options([])).await.expect_err("beyond the limit");
    assert!(refused.is("LimitExceeded"), "{refused}");
    fs::remove_file(place.relays().join("a.toml")).expect("removing the file");
    becomes(&client, "b.toml endpoint.b", "running").await;
}
