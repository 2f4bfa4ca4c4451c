//! What is wrong is refused with the right error name and a text that helps: addresses, options, names, descriptors.
//!
//! Each table row is an input, the error's name, and phrases that its text must have.

use std::fs;
use std::os::fd::OwnedFd;

use ipc_blackbox::{Client, Options, Stage, Way, assert_error, error, everywhere, options};
use ipc_harness::{
    Bus, CallError, Launch, PATH, Service, busctl, need_tool, or_skip, python, sh, skip, temp_dir, unique,
};
use zbus::Variant;

async fn refused(client: &Client, verb: &str, address: &str, given: Options<'_>) -> CallError {
    let made = client.call::<zbus::OwnedObjectPath, _>(PATH, "", verb, &(address, given)).await;
    match made {
        Err(error) => error,
        Ok(path) => panic!("{verb}({address}) made {path}"),
    }
}

type Row<'a> = (&'a str, String, &'a str, &'a [&'a str]);

async fn check(client: &Client, rows: &[Row<'_>]) {
    for (verb, address, name, phrases) in rows {
        let error = refused(client, verb, address, Options::new()).await;
        assert!(error.is(name), "{verb}({address}): expected {name}, got {error}");
        for phrase in *phrases {
            assert!(error.text.contains(phrase), "{verb}({address}): the text must say {phrase:?}: {error}");
        }
    }
    assert_eq!(client.usage("endpoints").await, 0, "what was refused leaves nothing");
}

async fn addresses(stage: Stage) {
    let client = stage.client().await;
    check(
        &client,
        &[
            ("Create", "carrier-pigeon:".into(), "NoSuchMechanism", &["carrier-pigeon", "pipe"]),
            ("Attach", "carrier-pigeon:path=/x".into(), "NoSuchMechanism", &["carrier-pigeon"]),
            ("Create", "pipe".into(), "InvalidAddress", &["no ':'", "fifo:path=/tmp/f"]),
            ("Create", "".into(), "InvalidAddress", &["no ':'"]),
            ("Create", ":path=/x".into(), "InvalidAddress", &["scheme"]),
            ("Create", "fifo:path=/a%2".into(), "InvalidAddress", &["two hexadecimal digits", "%25"]),
            ("Create", "fifo:path=/a%zz".into(), "InvalidAddress", &["two hexadecimal digits"]),
            ("Create", "fifo:=x".into(), "InvalidAddress", &["key is empty"]),
            ("Create", "fifo:path=/x,".into(), "InvalidAddress", &["key is empty"]),
            ("Create", "fifo:pa th=/x".into(), "InvalidAddress", &["\"pa th\""]),
            (
                "Create",
                format!("fifo:path=/{}", "x".repeat(70_000)),
                "InvalidAddress",
                &["70011 bytes", "at most"],
            ),
            ("Create", "fifo:path=/x,path=/y".into(), "InvalidArgument", &["\"path\"", "twice"]),
        ],
    )
    .await;
}

async fn keys(stage: Stage) {
    let client = stage.client().await;
    check(
        &client,
        &[
            ("Create", "pipe:colour=red".into(), "InvalidArgument", &["\"colour\"", "it has", "capacity"]),
            ("Create", "fifo:".into(), "InvalidArgument", &["\"path\" is missing", "Absolute path"]),
            ("Create", "mmap:".into(), "InvalidArgument", &["\"size\" is missing"]),
            ("Create", "posixsem:".into(), "InvalidArgument", &["\"name\" is missing"]),
            ("Create", "inotify:".into(), "InvalidArgument", &["\"path\" is missing"]),
            ("Create", "fifo:path=relative".into(), "InvalidArgument", &["absolute path", "relative"]),
            ("Create", "pipe:capacity=many".into(), "InvalidArgument", &["\"capacity\"", "number of bytes"]),
            ("Create", "pipe:packet=perhaps".into(), "InvalidArgument", &["\"packet\""]),
            ("Create", "mmap:size=1,mode=999".into(), "InvalidArgument", &["\"mode\"", "octal"]),
            (
                "Create",
                "pipe:lifetime=forever".into(),
                "InvalidArgument",
                &["service, client or pid:N", "forever"],
            ),
            ("Create", "pipe:lifetime=pid:0".into(), "InvalidArgument", &["pid:N"]),
            ("Create", "pipe:deliver,notify".into(), "InvalidArgument", &["deliver", "exclude"]),
            ("Create", "pipe:accept".into(), "InvalidArgument", &["\"accept\"", "listener"]),
            (
                "Create",
                "mmap:size=4096,deliver".into(),
                "InvalidArgument",
                &["\"deliver\"", "stream or messages"],
            ),
            ("Create", "pipe:notify".into(), "InvalidArgument", &["\"notify\"", "messages"]),
            ("Create", "unix:".into(), "InvalidArgument", &["path", "abstract"]),
            ("Create", "unix:pair,path=/x".into(), "InvalidArgument", &["pair"]),
            (
                "Create",
                "unix:pair,type=letter".into(),
                "InvalidArgument",
                &["\"type\"", "one of", "seqpacket"],
            ),
            ("Create", "tcp:port=70000".into(), "InvalidArgument", &["\"port\"", "65535"]),
            (
                "Create",
                "inotify:path=/tmp,events=create+weather".into(),
                "InvalidArgument",
                &["\"events\"", "moved-to"],
            ),
        ],
    )
    .await;
}

async fn types_in_options(stage: Stage) {
    let client = stage.client().await;
    let rows: Vec<(&str, Options<'_>, &[&str])> = vec![
        ("pipe:", options([("capacity", "x".into())]), &["\"capacity\"", "type t"]),
        ("pipe:", options([("packet", 1.5f64.into())]), &["\"packet\"", "given as d"]),
        ("pipe:", options([("deliver", "yes, please".into())]), &["\"deliver\""]),
        ("fifo:", options([("path", 7u32.into())]), &["\"path\"", "given as u"]),
        ("fifo:path=/x", options([("path", "/y".into())]), &["\"path\"", "twice", "options"]),
        ("fifo:path=/x", options([("mode", (-1i32).into())]), &["\"mode\""]),
        ("fifo:path=/x", options([("mode", 0o10000u32.into())]), &["\"mode\"", "7777"]),
        ("pipe:", options([("colour", "red".into())]), &["\"colour\""]),
        ("pipe:", options([("lifetime", Variant::from(("a", "b")))]), &["\"lifetime\"", "(ss)"]),
        ("pipe:or-attach", options([("or-attach", true.into())]), &["\"or-attach\"", "twice"]),
    ];
    for (address, given, phrases) in rows {
        assert_error(&refused(&client, "Create", address, given).await, "InvalidArgument", phrases);
    }
    assert_eq!(client.usage("endpoints").await, 0);
}

async fn names_that_are_too_long(stage: Stage) {
    let client = stage.client().await;
    let long = |bytes: usize| "n".repeat(bytes);
    check(
        &client,
        &[
            ("Create", format!("fifo:path=/{}", long(4096)), "InvalidArgument", &["PATH_MAX"]),
            ("Create", format!("fifo:path=/tmp/{}", long(256)), "Errno.ENAMETOOLONG", &["ENAMETOOLONG"]),
            ("Create", format!("unix:path=/tmp/{}", long(300)), "InvalidArgument", &["ENAMETOOLONG"]),
            ("Create", format!("unix:abstract={}", long(108)), "InvalidArgument", &["107"]),
            ("Attach", format!("unix:abstract={}", long(108)), "InvalidArgument", &["107"]),
            ("Create", format!("posixsem:name=/{}", long(252)), "InvalidArgument", &["251"]),
            ("Create", "posixsem:name=no-slash".into(), "InvalidArgument", &["slash"]),
            ("Create", "posixsem:name=/a/b".into(), "InvalidArgument", &["slash"]),
            ("Create", format!("mmap:size=1,name={}", long(250)), "InvalidArgument", &["249"]),
            ("Create", format!("posixshm:size=1,name=/{}", long(256)), "InvalidArgument", &["255"]),
            ("Attach", "posixshm:name=/a/b".into(), "InvalidArgument", &["second '/'"]),
            ("Create", "posixshm:size=1,name=/nul%00".into(), "InvalidArgument", &["NUL"]),
            ("Create", "sysvshm:size=0,key=1".into(), "InvalidArgument", &["from 1"]),
            ("Create", "sysvshm:size=1,key=0".into(), "InvalidArgument", &["key=private"]),
            ("Attach", "sysvshm:id=2147483647".into(), "NotFound", &["2147483647"]),
            ("Attach", "mmap:pid=1".into(), "InvalidArgument", &["\"address\""]),
        ],
    )
    .await;
}

async fn paths(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("file"), "x").expect("a file");
    let fifo = client.create(&format!("fifo:path={}", path("fifo"))).await;
    client.close(&fifo).await;
    let process = stage.python("import sys\nprint('up')\nsys.stdin.read()", &[]);
    process.wait_for(|line| line == "up");
    check(
        &client,
        &[
            ("Attach", format!("fifo:path={}", path("none")), "NotFound", &["none", "ENOENT"]),
            ("Create", format!("fifo:path={}", path("no/dir")), "NotFound", &["no/dir"]),
            ("Attach", format!("fifo:path={}", path("file")), "InvalidArgument", &["regular file"]),
            ("Create", format!("fifo:path={}", path("fifo")), "Exists", &["fifo", "Attach"]),
            ("Create", format!("unix:path={}", path("file")), "Exists", &["file"]),
            ("Create", format!("mmap:size=1,path={}", path("file")), "Exists", &["file"]),
            ("Attach", format!("unix:path={}", path("none")), "NotFound", &["none"]),
            (
                "Attach",
                format!("unix:path={}", path("file")),
                "InvalidArgument",
                &["not a socket", "regular file"],
            ),
            ("Attach", format!("mmap:path={}", path("none")), "NotFound", &["none"]),
            ("Attach", format!("mmap:path={}", path("fifo")), "InvalidArgument", &["FIFO"]),
            (
                "Attach",
                "posixsem:name=/no-such-semaphore-here".into(),
                "NotFound",
                &["no-such-semaphore-here"],
            ),
            ("Create", format!("inotify:path={}", path("none")), "NotFound", &["none"]),
            ("Create", format!("inotify:onlydir,path={}", path("file")), "Errno.ENOTDIR", &["file"]),
            ("Attach", "inotify:path=/tmp".into(), "NotSupported", &["Create"]),
            (
                "Attach",
                format!("unix:abstract={}", unique("nobody")),
                "NotFound",
                &["nobody listens", "ECONNREFUSED"],
            ),
            ("Attach", format!("pipe:pid={},fd=987654", process.pid()), "NotFound", &["987654"]),
            // What cannot be completed leaves everything as it was.
            ("Create", format!("fifo:path={},accept", path("new")), "InvalidArgument", &["\"accept\""]),
            (
                "Attach",
                format!("fifo:path={},accept,remove-on-close", path("fifo")),
                "InvalidArgument",
                &["\"accept\""],
            ),
            (
                "Attach",
                format!("fifo:path={},lifetime=pid:2147483647,remove-on-close", path("fifo")),
                "NotFound",
                &["2147483647"],
            ),
        ],
    )
    .await;
    let left = |name: &str| fs::symlink_metadata(path(name)).is_ok();
    assert_eq!(["new", "fifo", "file"].map(left), [false, true, true]);
}

async fn the_network(stage: Stage) {
    let client = stage.client().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    let address = format!("tcp:host=127.0.0.1,port={port}");
    let error = refused(&client, "Create", &address, Options::new()).await;
    assert_error(&error, "Exists", &[&port.to_string(), "EADDRINUSE"]);
    drop(taken);
    // ".invalid" never exists (RFC 6761); here there may be nobody to say so, which must not take for ever.
    let error = refused(&client, "Attach", "tcp:host=no-such-host.invalid,port=9", Options::new()).await;
    assert_error(&error, "NotFound", &["no-such-host.invalid"]);
    check(
        &client,
        &[
            ("Attach", "tcp:host=127.0.0.1".into(), "InvalidArgument", &["\"port\""]),
            (
                "Attach",
                "tcp:host=127.0.0.1,port=1".into(),
                "NotFound",
                &["127.0.0.1:1", "nobody listens", "ECONNREFUSED"],
            ),
            (
                "Create",
                "tcp:host=192.0.2.1,port=0".into(),
                "NotFound",
                &["192.0.2.1:0", "EADDRNOTAVAIL", "ip address"],
            ),
            ("Create", "udp:nodelay".into(), "InvalidArgument", &["\"nodelay\"", "tcp"]),
        ],
    )
    .await;
}

async fn descriptors_of_other_kinds(stage: Stage) {
    let client = stage.client().await;
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll");
    let directory = OwnedFd::from(fs::File::open("/tmp").expect("a directory"));
    for (fd, kind) in [(eventfd, "eventfd"), (epoll, "eventpoll"), (directory, "/tmp")] {
        assert_error(&error(client.try_adopt(fd).await), "NotSupported", &[kind, "are served"]);
    }
    assert_eq!(client.usage("endpoints").await, 0);
}

async fn endpoints_that_are_gone(stage: Stage) {
    let client = stage.client().await;
    let (pipe, other) = (client.create("pipe:").await, client.create("pipe:").await);
    client.close(&pipe).await;
    for path in
        [pipe.as_str(), "/org/example/IPC/pipe/0", "/org/example/IPC", "/", "/org/example/IPC/pipe/01"]
    {
        let error = error(client.try_relay(path, &other, Options::new()).await);
        assert_error(&error, "NoSuchEndpoint", &[path]);
    }
    let error = error(client.read(&pipe, 1, 0).await);
    assert_eq!(error.name, "org.freedesktop.DBus.Error.UnknownObject", "{error}");
    // The right number under another mechanism's node is another object.
    let elsewhere = other.replace("/pipe/", "/fifo/");
    let error = ipc_blackbox::error(client.try_relay(&elsewhere, &other, Options::new()).await);
    assert_error(&error, "NoSuchEndpoint", &[&elsewhere]);
    let error = ipc_blackbox::error(client.receive(&other, 0).await);
    assert_eq!(error.name, "org.freedesktop.DBus.Error.UnknownInterface", "{error}");
    let error = ipc_blackbox::error(client.call::<(), _>(&other, "Stream", "Frobnicate", &()).await);
    assert_eq!(error.name, "org.freedesktop.DBus.Error.UnknownMethod", "{error}");
}

everywhere!(
    addresses,
    keys,
    types_in_options,
    names_that_are_too_long,
    paths,
    the_network,
    descriptors_of_other_kinds,
    endpoints_that_are_gone,
);

/// What the kernel denies to the service's user is PermissionDenied, with the path.
#[test]
fn another_users_objects() {
    if !rustix::process::geteuid().is_root() {
        skip!("only root can run the service as another user");
    }
    or_skip!(need_tool("setpriv"));
    or_skip!(need_tool("python3"));
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let program = fs::read_link(format!("/proc/{}/exe", stage.service.pid())).expect("the service's program");
    drop(stage);
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let root_only = "umask 077; mkfifo fifo; mkdir dir; mkfifo dir/fifo; echo x >file";
    sh(&format!("cd '{}'; {root_only}", dir.path().display())).finish().success();
    let script = "#!/bin/sh\nchmod 777 \"$NOTIFY_SOCKET\"\nunset XDG_CONFIG_HOME; export HOME=/\nexec setpriv --reuid 65534 --regid 65534 --clear-groups";
    // By another process, as what is open for writing anywhere cannot be executed (ETXTBSY).
    let mut writer = sh(&format!("cat >'{0}'; chmod 755 '{0}'", path("ipcd")));
    writer.write(format!("{script} '{}' \"$@\"\n", program.display()));
    writer.finish().success();

    let bus = or_skip!(Bus::dbus_daemon());
    let service: Service = Launch::on(&bus).program(path("ipcd")).start();
    let busctl = busctl(&service);
    let name = unique("/blackbox");
    let semaphore = "import ctypes,sys\nlibc=ctypes.CDLL(None,use_errno=True)\nlibc.sem_open.restype=ctypes.c_void_p\n\
        s=libc.sem_open(sys.argv[1].encode(),0o100|0o200,0o600,1)\nprint('made' if s else ctypes.get_errno())\n\
        sys.stdin.read()\nlibc.sem_unlink(sys.argv[1].encode())";
    let semaphore = python(semaphore, &[&name]);
    semaphore.wait_for(|line| line == "made");
    for (verb, address) in [
        ("Attach", format!("fifo:path={}", path("dir/fifo"))),
        ("Create", format!("fifo:path={}", path("new"))),
        ("Create", format!("unix:path={}", path("new"))),
        ("Create", format!("mmap:size=1,path={}", path("new"))),
        ("Attach", format!("mmap:path={}", path("file"))),
        ("Create", format!("inotify:path={}", path("file"))),
        ("Attach", format!("posixsem:name={name}")),
    ] {
        let error = error(busctl.manager(verb, "sa{sv}", &[&address, "0"]));
        let (_, named) = address.rsplit_once(['=', '/']).expect("a name");
        assert_error(&error, "PermissionDenied", &[named]);
    }
    // Attach only looks at a FIFO; using it asks the kernel.
    let attached = busctl.manager("Attach", "sa{sv}", &[&format!("fifo:path={}", path("fifo")), "0"]);
    let denied = match attached {
        Err(error) => error,
        Ok(path) => {
            let path = ipc_harness::object_path(&path);
            error(busctl.call(&path, "org.example.IPC.Stream", "Read", "uu", &["1", "1000"]))
        }
    };
    assert_error(&denied, "PermissionDenied", &["fifo"]);
    semaphore.finish().success();
}
