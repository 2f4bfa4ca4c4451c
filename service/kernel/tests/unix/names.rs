//! Names: permissions, long paths, what exists already, stale sockets, removal.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
        net::{UnixDatagram, UnixListener},
    },
    path::PathBuf,
};

use ipc_kernel::mechanism::Permissions;

use super::*;

#[test]
fn the_mode_is_exact_whatever_the_umask() {
    let directory = directory();
    for (number, mode) in [0o600, 0o666, 0o777, 0o000, 0o1240].into_iter().enumerate() {
        for kind in ["stream", "dgram", "seqpacket"] {
            let name = format!("{kind}{number}");
            let address = at(directory.path(), &name, &format!(",mode={mode:o},type={kind}"));
            let endpoint = create(&address).expect(&address);
            let found = fs::metadata(directory.path().join(&name)).expect("the path");
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{address}");
            assert_eq!(number_of(&*endpoint, "mode"), i128::from(mode));
        }
    }
    let endpoint = create(&at(directory.path(), "default", "")).expect("create");
    assert_eq!(number_of(&*endpoint, "mode"), 0o600);
}

fn number_of(endpoint: &dyn Endpoint, key: &str) -> i128 {
    number(&endpoint.inspect().expect("inspect"), key)
}

#[test]
fn paths_of_any_length_are_bound_and_found() {
    let directory = directory();
    let deep = directory.path().join("d".repeat(120));
    fs::create_dir(&deep).expect("a deep directory");
    for name in ["short".to_owned(), "n".repeat(255)] {
        for kind in ["stream", "dgram", "seqpacket"] {
            let address = at(&deep, &name, &format!(",type={kind}"));
            let endpoint = create(&address).expect(&address);
            assert_eq!(
                text(&endpoint.inspect().expect("inspect"), "path"),
                deep.join(&name).to_str().expect("UTF-8")
            );
            let client = attach(&address).expect(&address);
            match kind {
                "dgram" => {
                    send(&*client, b"hello").expect("send");
                    assert_eq!(receive(&*endpoint).expect("receive").data, b"hello");
                }
                "seqpacket" => {
                    send(&*client, b"hello").expect("send");
                    assert_eq!(receive(&*accept(&*endpoint)).expect("receive").data, b"hello");
                }
                _ => drop(accept(&*endpoint)),
            }
            endpoint.remove().expect("remove");
            assert_eq!(fs::read_dir(&deep).expect("list").count(), 0, "something is left");
        }
    }
    let address = at(&deep, &"n".repeat(256), "");
    refused(create(&address), Kind::InvalidArgument, "ENAMETOOLONG");
    let taken = create(&at(&deep, &"n".repeat(255), "")).expect("create");
    refused(create(&at(&deep, &"n".repeat(255), "")), Kind::Exists, "a socket is there already");
    assert_eq!(fs::read_dir(&deep).expect("list").count(), 1, "the short name is left");
    drop(taken);
}

#[test]
fn create_never_opens_what_exists() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), "precious").expect("write");
    symlink(path("nowhere"), path("link")).expect("symlink");
    let _listener = UnixListener::bind(path("socket")).expect("bind");
    for more in ["", ",replace-stale=true"] {
        for (name, what) in [("file", "a regular file"), ("link", "a symbolic link"), ("socket", "a socket")]
        {
            refused(create(&at(directory.path(), name, more)), Kind::Exists, what);
        }
    }
    assert!(!path("nowhere").exists(), "the symbolic link was followed");
    assert_eq!(fs::read(path("file")).expect("read"), b"precious");
    refused(create(&at(directory.path(), "no/where", "")), Kind::NotFound, "directory must exist");
    refused(create(&at(directory.path(), "file/x", "")), Kind::InvalidArgument, "ENOTDIR");
    refused(create(&at(directory.path(), "x/", "")), Kind::NotFound, "");
}

#[test]
fn only_a_socket_that_nobody_serves_is_replaced() {
    let directory = directory();
    let path = directory.path().join("s");
    let address = at(directory.path(), "s", ",replace-stale=true");
    drop(UnixListener::bind(&path).expect("bind"));
    refused(create(&at(directory.path(), "s", "")), Kind::Exists, "replace-stale=true");
    let endpoint = create(&address).expect("replace");
    assert!(attach(&at(directory.path(), "s", "")).is_ok());
    refused(create(&address), Kind::Exists, "a socket is there already");
    // Nor is anybody disturbed by the question: the only connection is the one made above.
    drop(accept(&*endpoint));
    assert!(matches!(endpoint.listener().expect("listener").accept(), Ok(Attempt::Wait(_))));
    drop(endpoint);

    // Left by us, then replaced by another type; and a live datagram socket stays.
    let replaced = create(&format!("{address},type=dgram")).expect("replace by a datagram socket");
    refused(create(&address), Kind::Exists, "a socket is there already");
    drop(replaced);
    fs::remove_file(&path).expect("remove");
    let other = UnixDatagram::bind(&path).expect("bind");
    refused(create(&address), Kind::Exists, "a socket is there already");
    drop(other);
}

#[test]
fn removal_and_permissions_touch_only_our_own_socket() {
    let directory = directory();
    let path = directory.path().join("s");
    let endpoint = create(&at(directory.path(), "s", "")).expect("create");
    assert!(endpoint.remove_by_default());
    endpoint.set_permissions(Permissions { mode: Some(0o640), ..Default::default() }).expect("chmod");
    assert_eq!(fs::metadata(&path).expect("the path").permissions().mode() & 0o7777, 0o640);

    let moved = directory.path().join("moved");
    fs::rename(&path, &moved).expect("rename");
    fs::write(&path, "somebody else's").expect("write");
    endpoint.set_permissions(Permissions { mode: Some(0o604), ..Default::default() }).expect("chmod");
    assert_eq!(fs::metadata(&moved).expect("the socket").permissions().mode() & 0o7777, 0o604);
    refused(endpoint.remove(), Kind::Gone, "a regular file");
    assert!(path.exists());

    fs::remove_file(&path).expect("remove");
    refused(endpoint.remove(), Kind::Gone, "not there any more");
    fs::rename(&moved, &path).expect("rename");
    let client = attach(&at(directory.path(), "s", "")).expect("attach");
    assert!(!client.remove_by_default());
    client.remove().expect("remove through the connection");
    assert!(!path.exists());
    refused(
        endpoint.set_permissions(Permissions { mode: Some(0o600), ..Default::default() }),
        Kind::Gone,
        "was removed",
    );
}

#[test]
fn abstract_names_belong_to_the_network_namespace() {
    let name = unique();
    let endpoint = create(&format!("unix:abstract={name}")).expect("create");
    assert_eq!(endpoint.address().to_string(), format!("unix:abstract={name}"));
    assert!(!endpoint.remove_by_default());
    refused(create(&format!("unix:abstract={name}")), Kind::Exists, "EADDRINUSE");
    refused(endpoint.remove(), Kind::NotSupported, "only a unix socket with a path");
    refused(
        endpoint.set_permissions(Permissions { mode: Some(0o600), ..Default::default() }),
        Kind::NotSupported,
        "an abstract name has",
    );
    attach(&endpoint.address().to_string()).expect("attach");
    drop(endpoint);
    refused(attach(&format!("unix:abstract={name}")), Kind::NotFound, "nobody listens");

    let automatic = create("unix:autobind,type=seqpacket").expect("autobind");
    let address = automatic.address().to_string();
    let digits = address.strip_prefix("unix:abstract=").and_then(|rest| rest.strip_suffix(",type=seqpacket"));
    assert!(digits.is_some_and(|digits| digits.len() == 5), "{address}");
    attach(&address).expect("attach to the automatic name");
}

#[test]
fn a_wrong_wish_is_named() {
    let directory = directory();
    let here = |more: &str| at(directory.path(), "s", more);
    let too_long = format!("unix:abstract={}", "x".repeat(108));
    for (address, phrase) in [
        ("unix:", "exactly one of the keys"),
        ("unix:pair,autobind", "exactly one of the keys"),
        (&here(",abstract=x"), "exactly one of the keys"),
        ("unix:pair,mode=0600", "are for a \"path\""),
        ("unix:abstract=x,replace-stale=true", "are for a \"path\""),
        ("unix:path=relative", "absolute path"),
        ("unix:abstract=", "1 to 107 bytes"),
        (&too_long, "1 to 107 bytes, not 108"),
        (&here(",type=raw"), "stream, dgram, seqpacket"),
        (&here(",mode=9"), "octal"),
        (&here(",backlog=-1"), "whole number from 0"),
        (&here(",sndbuf=0"), "number of bytes from 1"),
        (&here(",port=1"), "has no key \"port\""),
    ] {
        refused(create(address), Kind::InvalidArgument, phrase);
    }
    for (address, phrase) in [
        ("unix:", "exactly one of the keys"),
        ("unix:pair", "has no key \"pair\""),
        (&here(",mode=0600"), "has no key \"mode\""),
        (&here(",timeout=300001"), "from 0 to 300000"),
    ] {
        refused(attach(address), Kind::InvalidArgument, phrase);
    }
    refused(create(&here(",sndbuf=1000M")), Kind::LimitExceeded, "net.core.wmem_max");
    refused(create(&here(",rcvbuf=1000M")), Kind::LimitExceeded, "net.core.rmem_max");
    assert!(!PathBuf::from(directory.path()).join("s").exists(), "a failed Create left its path behind");
}

#[test]
fn attach_says_what_is_wrong_with_the_name() {
    let directory = directory();
    let here = |name: &str, more: &str| at(directory.path(), name, more);
    refused(attach(&here("s", "")), Kind::NotFound, "ENOENT");
    fs::write(directory.path().join("file"), "").expect("write");
    refused(attach(&here("file", "")), Kind::InvalidArgument, "is not a socket but a regular file");
    refused(attach(&at(directory.path(), "", "")), Kind::InvalidArgument, "not a socket but a directory");
    drop(UnixListener::bind(directory.path().join("stale")).expect("bind"));
    refused(attach(&here("stale", "")), Kind::NotFound, "nobody listens there");

    let packets = create(&here("packets", ",type=seqpacket")).expect("create");
    refused(attach(&here("packets", "")), Kind::InvalidArgument, "say type=seqpacket");
    let name = unique();
    let datagrams = create(&format!("unix:abstract={name},type=dgram")).expect("create");
    refused(attach(&format!("unix:abstract={name}")), Kind::NotFound, "say type=dgram");
    // Every type has abstract names of its own.
    create(&format!("unix:abstract={name}")).expect("the same name for a stream");
    drop((packets, datagrams));

    // A symbolic link is followed to the socket, as connect(2) does.
    let _listener = UnixListener::bind(directory.path().join("real")).expect("bind");
    symlink("real", directory.path().join("link")).expect("symlink");
    attach(&here("link", "")).expect("attach through the link");

    // Two sockets that talk to each other only.
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    let (first, second) = (UnixDatagram::bind(&a).expect("bind"), UnixDatagram::bind(&b).expect("bind"));
    first.connect(&b).expect("connect");
    refused(attach(&here("a", ",type=dgram")), Kind::PermissionDenied, "connected to another socket");
    drop(second);
}

#[test]
fn the_kernel_decides_who_may_connect() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let address = at(directory.path(), "s", "");
    let endpoint = create(&address).expect("create");
    let in_directory = directory.path().join("other");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            // SAFETY: a plain system call with numbers; it changes this thread only, which ends
            // with the scope.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(result, 0, "setresuid");
            refused(attach(&address), Kind::PermissionDenied, "write permission");
            let address = Address::new("unix").with("path", in_directory.as_os_str().as_bytes()).to_string();
            refused(create(&address), Kind::PermissionDenied, "EACCES");
            refused(endpoint.remove(), Kind::PermissionDenied, "remove");
        });
        other.join().expect("the other user");
    });
}
