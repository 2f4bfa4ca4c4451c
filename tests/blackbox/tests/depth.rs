//! How many bytes wait in a stream: what the kernel says through a descriptor of one's own, and what was given back.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, integer, options};
use ipc_harness::{Bus, PATH, Service, busctl, need_tool, object_path, or_skip, patience, unique, watchdog};
use rustix::io::ioctl_fionread;
use zbus::{OwnedObjectPath, OwnedVariant};

type Properties = BTreeMap<String, OwnedVariant>;

async fn depth(client: &Client, stream: &str) -> i64 {
    client.number(stream, "Stream", "Depth").await
}

async fn all(client: &Client, stream: &str) -> Properties {
    let interface = "org.example.IPC.Stream";
    let all = client.call(stream, "org.freedesktop.DBus.Properties", "GetAll", &(interface,)).await;
    all.unwrap_or_else(|error| panic!("GetAll of {stream}: {error}"))
}

/// Until another process has written so much. Each question is a call, so there is nothing to sleep for.
async fn reaches(client: &Client, stream: &str, bytes: i64) {
    watchdog(patience(), async { while depth(client, stream).await != bytes {} }).await;
}

/// That it is what a descriptor of the same kernel object says, before and after parts of it were read.
async fn as_the_kernel_says(client: &Client, stream: &str, fd: &OwnedFd, bytes: i64) {
    reaches(client, stream, bytes).await;
    assert_eq!(ioctl_fionread(fd).expect("FIONREAD"), bytes as u64);
    let shown = all(client, stream).await;
    assert_eq!(integer(&shown["Depth"]), bytes, "GetAll says the same");
    client.read(stream, 3, 0).await.expect("Read");
    assert_eq!(depth(client, stream).await, bytes - 3);
    assert_eq!(ioctl_fionread(fd).expect("FIONREAD"), bytes as u64 - 3);
    let mut rest = vec![0; bytes as usize];
    let read = rustix::io::read(fd, &mut rest).expect("reading");
    assert_eq!(
        (read as i64, depth(client, stream).await),
        (bytes - 3, 0),
        "what others read is gone here, too"
    );
}

async fn of_a_pipe(stage: Stage) {
    let client = stage.client().await;
    let pipe = client.create("pipe:").await;
    assert_eq!(depth(&client, &pipe).await, 0);
    let reader = client
        .open(&pipe, options([("end", "read".into()), ("keep", true.into())]))
        .await
        .expect("the reading end");
    let writer = client.open(&pipe, options([("end", "write".into())])).await.expect("the writing end");
    rustix::io::write(&writer, &[7; 1000]).expect("writing");
    as_the_kernel_says(&client, &pipe, &reader, 1000).await;

    // Text that cannot be given out was taken from the kernel, and still waits here.
    client.write(&pipe, b"\xffkept", 1000).await.expect("Write");
    assert_error(&error(client.read_text(&pipe, 100, 1000).await), "InvalidArgument", &["kept"]);
    assert_eq!((ioctl_fionread(&reader).expect("FIONREAD"), depth(&client, &pipe).await), (0, 5));
    client.write(&pipe, b" and more", 1000).await.expect("Write");
    assert_eq!((ioctl_fionread(&reader).expect("FIONREAD"), depth(&client, &pipe).await), (9, 14));
    assert_eq!(client.read(&pipe, 2, 0).await.expect("Read"), b"\xffk");
    assert_eq!(depth(&client, &pipe).await, 12);

    // Who gives both ends away does not know any more what is in it, and GetAll says the rest.
    let given = client.create("pipe:").await;
    let _ends = [
        client.open(&given, options([("end", "read".into())])).await.expect("the reading end"),
        client.open(&given, options([("end", "write".into())])).await.expect("the writing end"),
    ];
    let unknown = error(client.property(&given, "Stream", "Depth").await);
    assert_error(&unknown, "Closed", &["no end of this pipe"]);
    assert!(!all(&client, &given).await.contains_key("Depth"));
}

async fn of_a_fifo(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("fifo").display().to_string();
    let fifo = client.create(&format!("fifo:path={path}")).await;
    let unknown = error(client.property(&fifo, "Stream", "Depth").await);
    assert_error(&unknown, "NotSupported", &["holds no end of this FIFO", "hold=true"]);
    assert!(!all(&client, &fifo).await.contains_key("Depth"), "GetAll says what there is");
    type Objects = HashMap<OwnedObjectPath, BTreeMap<String, Properties>>;
    let manager = "org.freedesktop.DBus.ObjectManager";
    let objects: Objects = client.call(PATH, manager, "GetManagedObjects", &()).await.expect("all objects");
    let shown =
        &objects[&OwnedObjectPath::try_from(fifo.as_str()).expect("a path")]["org.example.IPC.Stream"];
    assert!(!shown.contains_key("Depth"));

    // The first Read is a reader: from then on it is known.
    assert_error(&error(client.read(&fifo, 1, 0).await), "Busy", &[]);
    let mut writer = stage.sh(&format!("printf 'twelve bytes' > {path}"));
    assert!(writer.wait().success());
    let reader = client.open(&fifo, options([("end", "read".into())])).await.expect("the reading end");
    as_the_kernel_says(&client, &fifo, &reader, 12).await;

    let held = client.try_attach(&format!("fifo:path={path},hold"), Options::new()).await.expect("Attach");
    assert_eq!(depth(&client, &held).await, 0, "who holds it open knows at once");
}

async fn of_a_unix_socket(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = dir.path().join("socket").display().to_string();
    let listener = client.create(&format!("unix:path={path}")).await;
    // Nothing can be read from a socket that listens: it is no stream.
    assert!(client.property(&listener, "Stream", "Depth").await.is_err());
    let mut writer = stage.socat(&["-", &format!("UNIX-CONNECT:{path}")]);
    writer.write([b'x'; 500]);
    accepted(&client, &listener, 500).await;
}

async fn of_a_tcp_connection(stage: Stage) {
    or_skip!(need_tool("socat"));
    let client = stage.client().await;
    let listener = client.create("tcp:host=127.0.0.1,port=0").await;
    assert!(client.property(&listener, "Stream", "Depth").await.is_err());
    let address = client.address(&listener).await;
    let port = address.split("port=").nth(1).expect("a port").split(',').next().expect("a port").to_owned();
    let mut writer = stage.socat(&["-", &format!("TCP:127.0.0.1:{port}")]);
    writer.write([b'x'; 500]);
    accepted(&client, &listener, 500).await;
}

async fn accepted(client: &Client, listener: &str, bytes: i64) {
    let made: OwnedObjectPath =
        client.call(listener, "Listener", "Accept", &(10_000u32,)).await.expect("a connection");
    let fd = client.open(made.as_str(), Options::new()).await.expect("the socket");
    as_the_kernel_says(client, made.as_str(), &fd, bytes).await;
}

/// What a relay has taken and cannot pass on is the source's again, and counts there.
async fn what_a_relay_gives_back(stage: Stage) {
    let client = stage.client().await;
    let (source, sink) = (client.create("pipe:").await, client.create("pipe:capacity=4096").await);
    let total = 50_000i64;
    client.write(&source, &vec![1; total as usize], 1000).await.expect("Write");
    let relay = client.relay(&source, &sink, Options::new()).await;
    reaches(&client, &sink, 4096).await;
    client.run(&relay, "Relay", "Stop").await;
    client.used("relays", 0).await;
    assert_eq!(depth(&client, &source).await + depth(&client, &sink).await, total);
}

everywhere!(of_a_pipe, of_a_fifo, of_a_unix_socket, of_a_tcp_connection, what_a_relay_gives_back);

/// What a shell sees: the number, and that no signal tells of it.
#[test]
fn by_busctl() {
    let bus = or_skip!(Bus::dbus_daemon());
    or_skip!(need_tool("busctl"));
    let service = Service::on(&bus);
    let busctl = busctl(&service);
    let stream = "org.example.IPC.Stream";
    let pipe = object_path(&busctl.manager("Create", "sa{sv}", &["pipe:", "0"]).expect("Create"));
    busctl.call(&pipe, stream, "WriteText", "su", &["four", "1000"]).expect("WriteText");
    assert_eq!(busctl.property(&pipe, stream, "Depth").as_deref(), Ok("t 4"));
    let shown = busctl.introspect(&pipe).expect("introspect");
    let line = shown.lines().find(|line| line.starts_with(".Depth")).expect("a property");
    assert!(line.contains(" 4 ") && !line.contains("emits-change"), "{line}");

    let dir = ipc_harness::temp_dir();
    let address = format!("fifo:path={}", dir.path().join(unique("fifo")).display());
    let fifo = object_path(&busctl.manager("Create", "sa{sv}", &[&address, "0"]).expect("Create"));
    assert!(busctl.introspect(&fifo).expect("a property that fails hides no other").contains(".ReadText"));
}
