//! Device events: real ones of the kernel, udev's as udev writes them, and forged ones of both.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, IoSlice},
    mem::MaybeUninit,
    process::{Command, Stdio},
};

use ipc_kernel::netlink::{
    Device, Event,
    uevent::{Sender, Uevents},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, UCred,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
    },
    process::{Gid, Pid, Uid},
};

use crate::{
    Heard, in_a_fresh_network, is_heard, output, send,
    waiting::{Child, as_nobody},
};

/// The properties of an event that the test itself asks for, so that it knows it again.
fn synthetic(argument: &str) -> (String, String) {
    let uuid = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed";
    (format!("change {uuid} TEST={argument}"), format!("SYNTH_ARG_TEST={argument}"))
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ipc{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn device(source: &mut Heard<Uevents>, what: &str, wanted: impl Fn(&Device) -> bool) -> Device {
    let events = source.until(what, |event| matches!(event, Event::Device(device) if wanted(device)));
    match events.last() {
        Some(Event::Device(device)) => device.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_is_told_as_udevadm_tells_it() {
    let mut monitor = match Command::new("udevadm")
        .args(["monitor", "--kernel", "--property"])
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(monitor) => Child(monitor),
        Err(error) => return eprintln!("SKIPPED: cannot start udevadm: {error}"),
    };
    let mut lines = BufReader::new(monitor.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    // It listens when it has said so.
    assert!(lines.any(|line| line.starts_with("KERNEL - ")));
    let mut source = Heard::new(Uevents::open(Sender::Kernel).unwrap());
    for path in ["/sys/devices/virtual/mem/null", "/sys/class/net/lo"] {
        let (change, property) = synthetic(&unique());
        if let Err(error) = fs::write(format!("{path}/uevent"), change) {
            return eprintln!("SKIPPED: {path}/uevent cannot be written: {error}");
        }
        let (key, value) = property.split_once('=').unwrap();
        let told =
            device(&mut source, path, |device| device.properties.get(key).is_some_and(|it| it == value));
        assert_eq!((told.source, &*told.action), ("kernel", "change"));
        assert!(told.devpath.starts_with("/devices/virtual/"), "{told:?}");
        assert_eq!(format!("/sys{}", told.devpath), fs::canonicalize(path).unwrap().to_str().unwrap());
        // Its events are paragraphs; the one with our property.
        let properties = loop {
            let paragraph =
                lines.by_ref().skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
            let properties: BTreeMap<_, _> = paragraph
                .filter_map(|line| {
                    line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
                })
                .collect();
            if properties.get(key).is_some_and(|it| it == value) {
                break properties;
            }
        };
        assert_eq!(told.subsystem, properties["SUBSYSTEM"]);
        // udevadm makes a path of the device node.
        let mut expected = told.properties;
        if let Some(node) = expected.get_mut("DEVNAME") {
            node.insert_str(0, "/dev/");
        }
        assert_eq!(properties, expected);
    }
}

#[test]
fn interfaces_come_are_renamed_and_go() {
    in_a_fresh_network(|| {
        let mut source = Heard::new(Uevents::open(Sender::Kernel).unwrap());
        let ip = |arguments: &[&str]| output("ip", arguments).is_some();
        if !ip(&["link", "add", "name", "veth-a", "type", "veth", "peer", "name", "veth-b"]) {
            return;
        }
        // The peer is made first.
        for name in ["veth-b", "veth-a"] {
            let mut events = source.until(name,
                |event| matches!(event, Event::Device(device) if device.subsystem == "net" && device.devpath.ends_with(name)),
            );
            let Some(Event::Device(device)) = events.pop() else { panic!("{events:?}") };
            assert_eq!((&*device.action, &*device.properties["INTERFACE"]), ("add", name));
            let index = output("ip", &["-o", "link", "show", name]).unwrap();
            assert!(index.starts_with(&format!("{}: ", device.properties["IFINDEX"])), "{index}");
        }
        assert!(ip(&["link", "set", "veth-a", "name", "veth-c"]));
        let moved = device(&mut source, "the new name", |device| device.action == "move");
        assert_eq!(moved.devpath, "/devices/virtual/net/veth-c");
        assert_eq!(moved.properties["DEVPATH_OLD"], "/devices/virtual/net/veth-a");
        assert!(ip(&["link", "del", "veth-c"]));
        for _ in 0..2 {
            let gone = device(&mut source, "the end", |device| {
                device.action == "remove" && device.subsystem == "net"
            });
            assert!(["veth-b", "veth-c"].contains(&&*gone.properties["INTERFACE"]), "{gone:?}");
        }
    });
}

fn properties(name: &str) -> Vec<u8> {
    format!("ACTION=add\0DEVPATH=/devices/virtual/net/{name}\0SUBSYSTEM=net\0SEQNUM=1\0TAGS=:systemd:\0")
        .into()
}

/// As udev sends it: magic in network byte order, header size, offset and length, four hashes.
fn from_udev(name: &str) -> Vec<u8> {
    let properties = properties(name);
    let words = [40, 40, properties.len() as u32, 0, 0, 0, 0].map(u32::to_ne_bytes);
    [&b"libudev\0"[..], &0xfeed_cafe_u32.to_be_bytes(), words.as_flattened(), &properties].concat()
}

/// As the kernel sends it.
fn from_kernel(name: &str) -> Vec<u8> {
    [format!("add@/devices/virtual/net/{name}\0").into_bytes(), properties(name)].concat()
}

/// Sends to udev's group, as root claiming to be another user.
fn send_as(uid: u32, message: &[u8]) {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(KOBJECT_UEVENT)).unwrap();
    let uid = Uid::from_raw(uid);
    let who = UCred { pid: Pid::from_raw(std::process::id().cast_signed()).unwrap(), uid, gid: Gid::ROOT };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(who)));
    let group = SocketAddrNetlink::new(0, 2);
    let message = [IoSlice::new(message)];
    rustix::net::sendmsg_addr(&socket, &group, &message, &mut control, SendFlags::empty()).unwrap();
}

fn names(events: &[Event]) -> Vec<&str> {
    events
        .iter()
        .map(|event| match event {
            Event::Device(device) => device.devpath.rsplit('/').next().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn what_udev_says_is_told_and_what_others_say_is_not() {
    in_a_fresh_network(|| {
        let mut source = Heard::new(Uevents::open(Sender::Udev).unwrap());
        let mut wrong_magic = from_udev("magic");
        wrong_magic[8..12].reverse();
        for forged in
            [&wrong_magic, &from_kernel("kernel"), &from_udev("cut")[..60].to_vec(), &vec![0; 40 << 10]]
        {
            assert!(is_heard(KOBJECT_UEVENT, 2, forged).unwrap(), "by those who do not look");
        }
        send_as(65534, &from_udev("nobody"));
        let refused = as_nobody(|| send(KOBJECT_UEVENT, 2, &from_udev("nobody")));
        assert!(refused.is_none_or(|refused| refused == Err(Errno::PERM)));
        send_as(0, &from_udev("udev0"));
        send(KOBJECT_UEVENT, 2, &from_udev("udev1")).unwrap();
        let mut lost = 0;
        let told = source.until("udev's", |event| match event {
            Event::Overflow(source) => {
                assert_eq!(source, "udev");
                lost += 1;
                false
            }
            Event::Device(device) => device.devpath.ends_with("udev1"),
            _ => panic!("{event:?}"),
        });
        let devices: Vec<_> = told.into_iter().filter(|event| matches!(event, Event::Device(_))).collect();
        assert_eq!(names(&devices), ["udev0", "udev1"]);
        let Some(Event::Device(device)) = devices.first() else { panic!("{devices:?}") };
        assert_eq!((device.source, &*device.action, &*device.subsystem), ("udev", "add", "net"));
        assert_eq!(device.properties["TAGS"], ":systemd:");
        assert!(lost <= 1, "what was too long is told as lost, once");
    });
}

#[test]
fn the_kernel_s_words_from_anybody_else_are_dropped() {
    in_a_fresh_network(|| {
        let mut source = Heard::new(Uevents::open(Sender::Kernel).unwrap());
        for forged in [from_kernel("forged"), from_udev("forged"), vec![0; 40 << 10]] {
            assert!(is_heard(KOBJECT_UEVENT, 1, &forged).unwrap(), "by those who do not look");
        }
        let refused = as_nobody(|| send(KOBJECT_UEVENT, 1, &from_kernel("forged")));
        assert!(refused.is_none_or(|refused| refused == Err(Errno::PERM)));
        if output("ip", &["link", "add", "name", "real", "type", "veth", "peer", "name", "peer"]).is_none() {
            return;
        }
        let told = source.until(
            "the real one",
            |event| matches!(event, Event::Device(device) if device.subsystem == "net"),
        );
        assert_eq!(names(&told[..1]), ["peer"], "which is made first");
    });
}
