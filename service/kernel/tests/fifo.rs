//! FIFOs against other programs: the shell, cat, socat.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod waiting;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use ipc_kernel::{
    Address, Attempt, Dict, Endpoint, Kind, Readiness, Value,
    mechanism::{Adoption, Permissions},
    mechanisms::fifo::DESCRIPTOR,
    shape::{Direction, Stream},
};
use waiting::{
    Child, Directory, as_nobody, attach, create, finish, must_wait, options, refused, until, wait,
};

fn address(path: &Path) -> Address {
    Address::new("fifo").with("path", path.as_os_str().as_bytes())
}

fn stream(endpoint: &dyn Endpoint) -> &dyn Stream {
    endpoint.stream().unwrap()
}

fn read(endpoint: &dyn Endpoint) -> Vec<u8> {
    finish(|| stream(endpoint).read(4096)).unwrap()
}

/// All bytes up to the next end of stream.
fn read_session(endpoint: &dyn Endpoint) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let data = read(endpoint);
        if data.is_empty() {
            return all;
        }
        all.extend(data);
    }
}

fn shell(script: &str, path: &Path) -> Child {
    Child(Command::new("sh").args(["-c", script, "sh"]).arg(path).stdout(Stdio::piped()).spawn().unwrap())
}

fn output(mut child: Child) -> Vec<u8> {
    let mut data = Vec::new();
    child.0.stdout.take().unwrap().read_to_end(&mut data).unwrap();
    assert!(child.0.wait().unwrap().success());
    data
}

/// The process sleeps in open(2), waiting for the other side of a FIFO.
fn blocked_in_open(child: &Child) -> bool {
    let syscall = fs::read_to_string(format!("/proc/{}/syscall", child.0.id())).unwrap_or_default();
    syscall.split(' ').next().and_then(|number| number.parse().ok()) == Some(libc::SYS_openat)
}

#[test]
fn the_mode_is_exact_whatever_the_umask() {
    let directory = Directory::new();
    for mode in [0o600, 0o666, 0o200, 0o7777, 0] {
        let path = directory.unique("mode");
        create(&DESCRIPTOR, &address(&path).with("mode", format!("{mode:o}"))).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_fifo());
        assert_eq!(metadata.mode() & 0o7777, mode, "{mode:o}");
    }
}

#[test]
fn every_bad_input_is_refused_with_a_reason() {
    let directory = Directory::new();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink(at("file"), at("to-file")).unwrap();
    symlink(at("missing"), at("dangling")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    create(&DESCRIPTOR, &address(&at("fifo"))).unwrap();
    let errno = |errno| Kind::Errno(errno);
    use rustix::io::Errno;
    let long = "x".repeat(256);
    for (path, kind, phrase) in [
        (at("fifo"), Kind::Exists, "Attach opens what exists"),
        (at("dangling"), Kind::Exists, "EEXIST"),
        (at("file"), Kind::Exists, "EEXIST"),
        (at("fifo/"), Kind::InvalidArgument, "not in '/'"),
        ("relative".into(), Kind::InvalidArgument, "absolute path"),
        (at("missing/fifo"), Kind::NotFound, "ENOENT"),
        (at("file/fifo"), errno(Errno::NOTDIR), "ENOTDIR"),
        (at("loop/fifo"), errno(Errno::LOOP), "ELOOP"),
        (at(&long), errno(Errno::NAMETOOLONG), "ENAMETOOLONG"),
        ("/proc/fifo".into(), Kind::NotFound, "/proc/fifo"),
    ] {
        let error = refused(create(&DESCRIPTOR, &address(&path)));
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.text.contains(phrase), "{error}");
    }
    assert!(!at("missing").exists(), "Create followed a dangling link");
    for (path, kind, phrase) in [
        (at("missing"), Kind::NotFound, "ENOENT"),
        (at("dangling"), Kind::NotFound, "ENOENT"),
        (at("loop"), errno(Errno::LOOP), "ELOOP"),
        (at("file"), Kind::InvalidArgument, "not a FIFO but a regular file"),
        (at("to-file"), Kind::InvalidArgument, "not a FIFO but a regular file"),
        (at("socket"), Kind::InvalidArgument, "not a FIFO but a socket"),
        (directory.path().into(), Kind::InvalidArgument, "not a FIFO but a directory"),
        ("/dev/null".into(), Kind::InvalidArgument, "not a FIFO but a character device"),
        ("relative".into(), Kind::InvalidArgument, "absolute path"),
    ] {
        let error = refused(attach(&DESCRIPTOR, &address(&path)));
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.text.contains(phrase), "{error}");
    }
    for (text, phrase) in [
        ("fifo:", "\"path\" is missing"),
        ("fifo:path=/tmp/x,mode=9", "octal"),
        ("fifo:path=/tmp/x,hold=perhaps", "true or false"),
        ("fifo:path=/tmp/x,capacity=1", "bytes from 4096"),
        ("fifo:path=/tmp/x,depth=1", "no key \"depth\""),
    ] {
        let error = refused(create(&DESCRIPTOR, &Address::parse(text).unwrap()));
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.text.contains(phrase), "{error}");
    }
    let error = refused(options(&DESCRIPTOR, "end=middle"));
    assert!(error.text.contains("one of read, write"), "{error}");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let directory = Directory::new();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = directory.unique("large");
    let address = address(&path).with("capacity", "2G");
    if let Some(error) = as_nobody(|| refused(create(&DESCRIPTOR, &address))) {
        assert_eq!(error.kind, Kind::LimitExceeded);
        assert!(error.text.contains("fs.pipe-max-size, now"), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn the_kernel_decides_who_may() {
    let directory = Directory::new();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let [closed, write_only] = ["closed", "write-only"].map(|name| directory.unique(name));
    let _owner = create(&DESCRIPTOR, &address(&closed)).unwrap();
    let reader = create(&DESCRIPTOR, &address(&write_only).with("mode", "622")).unwrap();
    must_wait(stream(&*reader).read(1));
    as_nobody(|| {
        let error = refused(create(&DESCRIPTOR, &address(&directory.unique("mine"))));
        assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
        let error = refused(attach(&DESCRIPTOR, &address(&closed)));
        assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
        assert!(error.text.contains("read or write"), "{error}");
        let writer = attach(&DESCRIPTOR, &address(&write_only)).unwrap();
        assert_eq!(finish(|| stream(&*writer).write(b"in")).unwrap(), 2);
        let error = refused(stream(&*writer).read(1));
        assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
        let error = refused(attach(&DESCRIPTOR, &address(&write_only).with("hold", "true")));
        assert!(error.text.contains("right to read and to write"), "{error}");
        let mode = Permissions { mode: Some(0o666), ..Default::default() };
        assert_eq!(refused(writer.set_permissions(mode)).kind, Kind::PermissionDenied);
        assert_eq!(refused(writer.remove()).kind, Kind::PermissionDenied);
    });
}

#[test]
fn end_of_stream_comes_once_and_the_next_writer_is_waited_for() {
    let directory = Directory::new();
    let path = directory.unique("sessions");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    for round in 0..3 {
        must_wait(stream(&*endpoint).read(10));
        let writer = shell(&format!("echo round {round} > \"$1\""), &path);
        assert_eq!(read_session(&*endpoint), format!("round {round}\n").as_bytes());
        output(writer);
    }
    let readiness = must_wait(stream(&*endpoint).read(10));
    assert!(matches!(readiness, Readiness::Readable(_)));
    assert!(!wait(readiness, std::time::Duration::ZERO), "a hung-up end would wake its waiter for ever");
}

#[test]
fn a_writer_between_end_of_stream_and_the_next_read_is_not_lost() {
    let directory = Directory::new();
    let path = directory.unique("between");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    must_wait(stream(&*endpoint).read(10));
    for text in ["first", "second"] {
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
    }
    // Both have come and gone before anybody looked: to the kernel one stream.
    assert_eq!(read_session(&*endpoint), b"firstsecond");
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"third").unwrap();
    assert_eq!(read_session(&*endpoint), b"third");
    must_wait(stream(&*endpoint).read(10));
}

#[test]
fn a_write_waits_for_a_reader_and_tells_once_that_it_has_gone() {
    let directory = Directory::new();
    let path = directory.unique("readers");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    assert!(matches!(must_wait(stream(&*endpoint).write(b"x")), Readiness::After(_)));
    for _ in 0..2 {
        let reader = shell("exec head -c 5 \"$1\"", &path);
        assert_eq!(finish(|| stream(&*endpoint).write(b"hello")).unwrap(), 5);
        assert_eq!(output(reader), b"hello");
        let error = refused(finish(|| stream(&*endpoint).write(b"lost")));
        assert_eq!(error.kind, Kind::Closed);
        assert!(error.text.contains("no process has it open for reading"), "{error}");
        must_wait(stream(&*endpoint).write(b"x"));
    }
}

#[test]
fn socat_is_answered_at_both_sides() {
    let directory = Directory::new();
    let path = directory.unique("socat");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    let reader = shell("exec socat -u \"OPEN:$1\" -", &path);
    let mut sent = 0;
    let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let writer = std::thread::spawn({
        let data = data.clone();
        move || {
            while sent < data.len() {
                sent += finish(|| stream(&*endpoint).write(&data[sent..])).unwrap();
            }
            stream(&*endpoint).shutdown(Direction::Write).unwrap();
            endpoint
        }
    });
    assert_eq!(output(reader), data);
    let endpoint = writer.join().unwrap();
    let error = refused(stream(&*endpoint).write(b"x"));
    assert_eq!((error.kind, error.text.contains("shut down")), (Kind::Closed, true));

    let writer = shell("printf from-socat | socat -u - \"OPEN:$1,wronly\"", &path);
    assert_eq!(read_session(&*endpoint), b"from-socat");
    output(writer);
    stream(&*endpoint).shutdown(Direction::Read).unwrap();
    assert_eq!(refused(stream(&*endpoint).read(1)).kind, Kind::Closed);
}

#[test]
fn held_open_there_is_no_end_of_stream_and_no_wait_for_readers() {
    let directory = Directory::new();
    let path = directory.unique("held");
    let held = create(&DESCRIPTOR, &address(&path).with("hold", "true").with("capacity", "4096")).unwrap();
    let reader = attach(&DESCRIPTOR, &address(&path)).unwrap();
    for text in ["one", "two"] {
        output(shell(&format!("printf {text} > \"$1\""), &path));
        assert_eq!(read(&*reader), text.as_bytes());
        must_wait(stream(&*reader).read(10));
    }
    // Without a reader, up to the capacity.
    assert_eq!(finish(|| stream(&*held).write(&[7; 4096])).unwrap(), 4096);
    assert!(matches!(must_wait(stream(&*held).write(b"x")), Readiness::Writable(_)));
    let state = held.inspect().unwrap();
    assert!(state["capacity"].same(&Value::U64(4096)) && state["queued"].same(&Value::U64(4096)));
    assert!(state["hold"].same(&Value::Bool(true)));
    assert_eq!(read(&*held), [7; 4096]);
    // What held it was the last writer.
    stream(&*held).shutdown(Direction::Write).unwrap();
    assert_eq!(read(&*reader), b"");
    assert_eq!(read(&*held), b"");
    must_wait(stream(&*held).read(1));

    let other = attach(&DESCRIPTOR, &address(&path).with("hold", "true")).unwrap();
    stream(&*other).shutdown(Direction::Read).unwrap();
    assert_eq!(finish(|| stream(&*other).write(b"still")).unwrap(), 5);
    assert_eq!(read(&*reader), b"still");
}

#[test]
fn an_endpoint_means_the_inode_not_the_path() {
    let directory = Directory::new();
    let [path, moved, link] = ["path", "moved", "link"].map(|name| directory.unique(name));
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    symlink(&path, &link).unwrap();
    let other = attach(&DESCRIPTOR, &address(&link)).unwrap();
    assert_eq!(other.address(), address(&path), "the link is resolved");
    fs::rename(&path, &moved).unwrap();
    fs::write(&path, "decoy").unwrap();
    must_wait(stream(&*endpoint).read(10));
    assert_eq!(finish(|| stream(&*other).write(b"same")).unwrap(), 4);
    assert_eq!(read(&*endpoint), b"same");

    let mode = Permissions { mode: Some(0o640), ..Default::default() };
    endpoint.set_permissions(mode).unwrap();
    assert_eq!(fs::metadata(&moved).unwrap().mode() & 0o7777, 0o640);
    let error = refused(endpoint.remove());
    assert_eq!((error.kind, error.text.contains("something else")), (Kind::Gone, true), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"decoy");
    fs::rename(&moved, &path).unwrap();
    endpoint.remove().unwrap();
    let error = refused(other.remove());
    assert_eq!((error.kind, error.text.contains("nothing has this path")), (Kind::Gone, true), "{error}");
    assert!(endpoint.inspect().unwrap()["removed"].same(&Value::Bool(true)));
    // Removed, but still the FIFO between those who have it.
    assert_eq!(finish(|| stream(&*other).write(b"on")).unwrap(), 2);
    assert_eq!(read(&*endpoint), b"on");
}

#[test]
fn an_opened_end_is_the_callers_own_and_blocks() {
    let directory = Directory::new();
    let path = directory.unique("open");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    let error = refused(endpoint.open(&options(&DESCRIPTOR, "end=write").unwrap()));
    assert_eq!(error.kind, Kind::Busy);
    assert!(error.text.contains("no process has it open for reading") && error.text.contains("hold=true"));
    let reader = endpoint.open(&options(&DESCRIPTOR, "end=read").unwrap()).unwrap();
    let writer = endpoint.open(&options(&DESCRIPTOR, "end=write").unwrap()).unwrap();
    for end in [&reader, &writer] {
        let flags = rustix::fs::fcntl_getfl(end).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
    let (mut reader, mut writer) = (fs::File::from(reader), fs::File::from(writer));
    writer.write_all(b"direct").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "direct");
}

#[test]
fn looking_lets_no_waiting_writer_in() {
    let directory = Directory::new();
    let path = directory.unique("look");
    let endpoint = create(&DESCRIPTOR, &address(&path)).unwrap();
    let writer = shell("printf patient > \"$1\"", &path);
    until("the shell waits in open(2)", || blocked_in_open(&writer));
    let state = endpoint.inspect().unwrap();
    assert!(!state.contains_key("queued") && state["read-end"].same(&Value::Text("closed".into())));
    DESCRIPTOR.objects().unwrap();
    assert!(blocked_in_open(&writer));
    assert_eq!(read_session(&*endpoint), b"patient");
    output(writer);
}

#[test]
fn a_relays_source_waits_for_a_writer_and_its_sink_for_a_reader() {
    let directory = Directory::new();
    let [from, to] = ["from", "to"].map(|name| directory.unique(name));
    let source = create(&DESCRIPTOR, &address(&from)).unwrap();
    let sink = create(&DESCRIPTOR, &address(&to)).unwrap();
    must_wait(stream(&*source).source());
    must_wait(stream(&*sink).sink());
    for _ in 0..2 {
        let mut reader = shell("exec cat \"$1\"", &to);
        let writer = shell("printf relayed > \"$1\"", &from);
        let input = finish(|| stream(&*source).source()).unwrap();
        let output_end = finish(|| stream(&*sink).sink()).unwrap();
        let flags = rustix::pipe::SpliceFlags::NONBLOCK;
        let mut moved = 0;
        loop {
            match rustix::pipe::splice(&input.fd, None, &output_end.fd, None, 4096, flags) {
                Ok(0) => break,
                Ok(length) => moved += length,
                Err(rustix::io::Errno::AGAIN) => {
                    wait(Readiness::Readable(input.fd.clone()), waiting::PATIENCE);
                }
                Err(errno) => panic!("{errno}"),
            }
        }
        assert_eq!(moved, 7);
        drop((input, output_end));
        output(writer);
        // The hung-up reading end is renewed, and the stale writing end noticed.
        must_wait(stream(&*source).source());
        let Attempt::Done(_) = stream(&*sink).sink().unwrap() else { panic!("cat reads on") };
        reader.0.kill().unwrap();
        reader.0.wait().unwrap();
        must_wait(stream(&*sink).sink());
    }
}

#[test]
fn the_list_shows_who_holds_what() {
    let directory = Directory::new();
    let path = directory.unique("listed");
    let endpoint = create(&DESCRIPTOR, &address(&path).with("mode", "640")).unwrap();
    let row = |path: &Path| {
        let rows = DESCRIPTOR.objects().unwrap();
        rows.into_iter().find(|row| row["path"].same(&Value::text_or_bytes(path.as_os_str().as_bytes())))
    };
    let unused = row(&path).unwrap();
    assert!(!unused.contains_key("queued"), "nobody reads it, so nobody may look");
    let Value::Dicts(holders) = &unused["holders"] else { panic!("{unused:?}") };
    assert!(holders.len() == 1 && holders[0]["access"].same(&Value::Text("path".into())));
    let mut cat = shell("exec cat \"$1\"", &path);
    finish(|| stream(&*endpoint).write(b"seen")).unwrap();
    let mut seen = [0; 4];
    cat.0.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    let found = row(&path).unwrap();
    assert!(found["mode"].same(&Value::U32(0o640)));
    assert!(found["address"].same(&Value::Text(address(&path).to_string())));
    assert!(found["queued"].same(&Value::U64(0)) && found["capacity"].same(&Value::U64(65536)));
    let Value::Dicts(holders) = &found["holders"] else { panic!("{found:?}") };
    let has = |pid: u32, key: &str, value: &str| {
        let of = |holder: &&Dict| holder["pid"].same(&Value::U32(pid));
        holders.iter().filter(of).any(|holder| holder[key].same(&Value::Text(value.into())))
    };
    assert!(has(cat.0.id(), "command", "cat") && has(cat.0.id(), "access", "read"));
    assert!(has(std::process::id(), "access", "write"));
    for key in found.keys() {
        assert!(DESCRIPTOR.columns.iter().any(|column| column.key == key), "{key} is not described");
    }
    endpoint.remove().unwrap();
    assert!(row(&path).is_none(), "a removed path has no address");
}

#[test]
fn an_adopted_fd_keeps_its_direction() {
    let directory = Directory::new();
    let path = directory.unique("adopted");
    let endpoint = create(&DESCRIPTOR, &address(&path).with("hold", "true")).unwrap();
    let read_end = endpoint.open(&options(&DESCRIPTOR, "end=read").unwrap()).unwrap();
    let Adoption::Taken(adopted) = (DESCRIPTOR.adopt)(read_end).unwrap() else { panic!("refused") };
    assert_eq!(adopted.address(), address(&path));
    finish(|| stream(&*endpoint).write(b"here")).unwrap();
    assert_eq!(read(&*adopted), b"here");
    assert_eq!(refused(stream(&*adopted).write(b"x")).kind, Kind::Closed);
    for other in [fs::File::open("/dev/null").unwrap().into(), rustix::pipe::pipe().unwrap().0] {
        assert!(matches!((DESCRIPTOR.adopt)(other).unwrap(), Adoption::Refused(_)));
    }
}
