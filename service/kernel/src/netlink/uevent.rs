//! Devices that come, go and change: NETLINK_KOBJECT_UEVENT, netlink(7).
//!
//! The kernel sends to group 1 what it did: `add@/devices/…` and then one `KEY=VALUE` a property,
//! each with a NUL at its end. udev hears that, applies its rules, and sends what it knows then to
//! group 2, where the properties stand behind a header of its own (systemd's `libudev` reads it).
//! Whoever needs a device node with its name and rights waits for udev; where no udev runs, as in a
//! container, only the kernel speaks.
//!
//! A group 2 message is believed when it comes from a process of root: the kernel lets nobody else
//! send there, but root of a user namespace could, as root of a network namespace of its own.

use std::collections::BTreeMap;

use rustix::net::netlink::KOBJECT_UEVENT;

use crate::{
    Attempt, Result,
    error::Attempted,
    netlink::{
        Device, Event, Source,
        listener::{Datagram, Listener, Trust},
        wire::u32_at,
    },
};

/// Whose device events are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Kernel,
    Udev,
}

impl Sender {
    /// What [`Device::source`] says.
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Udev => "udev",
        }
    }

    fn group(self) -> u32 {
        match self {
            Self::Kernel => 1,
            Self::Udev => 2,
        }
    }

    /// The name in `Overflow`.
    pub fn source(self) -> &'static str {
        match self {
            Self::Kernel => "uevent",
            Self::Udev => "udev",
        }
    }
}

/// The device events of a sender, in the network namespace of the thread that opened it: network
/// interfaces are told in their own, all other devices only in those of the first user namespace.
#[derive(Debug)]
pub struct Uevents {
    socket: Listener,
    sender: Sender,
}

impl Uevents {
    pub fn open(sender: Sender) -> Result<Self> {
        let (trust, what) = match sender {
            Sender::Kernel => (Trust::Kernel, "the kernel's device events"),
            Sender::Udev => (Trust::Root, "udev's device events"),
        };
        let socket = Listener::open(KOBJECT_UEVENT, trust, what)?;
        socket.join(sender.group()).attempted(|| format!("listen to {what}"))?;
        Ok(Self { socket, sender })
    }
}

impl Source for Uevents {
    fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        let mut events = Vec::new();
        let lost = self.socket.drain(|datagram| {
            events.extend(decode(self.sender, datagram).map(Event::Device));
        })?;
        if lost {
            events.push(Event::Overflow(self.sender.source().into()));
        }
        Ok(self.socket.told(events))
    }
}

/// None for what is no device event of this sender, or a damaged one.
fn decode(sender: Sender, datagram: Datagram<'_>) -> Option<Device> {
    if datagram.group != sender.group() {
        return None;
    }
    match sender {
        Sender::Kernel => kernel(datagram.data),
        Sender::Udev => udev(datagram.data),
    }
}

fn kernel(message: &[u8]) -> Option<Device> {
    let end = message.iter().position(|byte| *byte == 0)?;
    let (first, rest) = message.split_at(end);
    let device = device(Sender::Kernel, &rest[1..])?;
    // The first line says the same as the properties ACTION and DEVPATH.
    let said = format!("{}@{}", device.action, device.devpath);
    (said == String::from_utf8_lossy(first)).then_some(device)
}

/// The header: "libudev\0", 0xfeedcafe in network byte order, the header's size, where the
/// properties are and how long (`unsigned int` each), then hashes for socket filters.
fn udev(message: &[u8]) -> Option<Device> {
    const HEADER: usize = 24;
    let magic = message.strip_prefix(b"libudev\0")?.strip_prefix(&0xfeed_cafe_u32.to_be_bytes())?;
    let offset = usize::try_from(u32_at(magic, 4)?).ok()?;
    let length = usize::try_from(u32_at(magic, 8)?).ok()?;
    if offset < HEADER {
        return None;
    }
    device(Sender::Udev, message.get(offset..offset.checked_add(length)?)?)
}

/// Bytes that are not UTF-8 are replaced, as D-Bus has no others.
fn device(sender: Sender, properties: &[u8]) -> Option<Device> {
    let properties = properties.strip_suffix(&[0])?;
    let properties = properties
        .split(|byte| *byte == 0)
        .map(|property| {
            let equals = property.iter().position(|byte| *byte == b'=').filter(|equals| *equals > 0)?;
            let key = String::from_utf8_lossy(&property[..equals]).into_owned();
            Some((key, String::from_utf8_lossy(&property[equals + 1..]).into_owned()))
        })
        .collect::<Option<BTreeMap<_, _>>>()?;
    // The kernel's last word: without it the rest is missing. udev keeps it.
    properties.get("SEQNUM")?;
    let device = Device {
        source: sender.name(),
        action: properties.get("ACTION")?.clone(),
        devpath: properties.get("DEVPATH")?.clone(),
        subsystem: properties.get("SUBSYSTEM")?.clone(),
        properties,
    };
    (!device.action.is_empty() && device.devpath.starts_with('/')).then_some(device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::wire::damage;

    const PROPERTIES: &[u8] = b"ACTION=change\0DEVPATH=/devices/virtual/mem/null\0SUBSYSTEM=mem\0\
        SYNTH_UUID=0\0MAJOR=1\0MINOR=3\0DEVNAME=null\0SEQNUM=1234\0";

    fn from_kernel() -> Vec<u8> {
        [b"change@/devices/virtual/mem/null\0", PROPERTIES].concat()
    }

    fn from_udev() -> Vec<u8> {
        let words = [40, 40, PROPERTIES.len() as u32, 1, 2, 3, 4].map(u32::to_ne_bytes);
        [&b"libudev\0"[..], &[0xfe, 0xed, 0xca, 0xfe], words.as_flattened(), PROPERTIES].concat()
    }

    fn told(sender: Sender, data: &[u8]) -> Option<Device> {
        decode(sender, Datagram { data, group: sender.group() })
    }

    fn good(sender: Sender) -> Vec<u8> {
        match sender {
            Sender::Kernel => from_kernel(),
            Sender::Udev => from_udev(),
        }
    }

    #[test]
    fn both_senders_say_the_same_of_a_device() {
        for sender in [Sender::Kernel, Sender::Udev] {
            let device = told(sender, &good(sender)).unwrap();
            assert_eq!(device.source, sender.name());
            assert_eq!((&*device.action, &*device.subsystem), ("change", "mem"));
            assert_eq!(device.devpath, "/devices/virtual/mem/null");
            assert_eq!(device.properties["DEVNAME"], "null");
            assert_eq!(device.properties.len(), 8);
        }
    }

    #[test]
    fn a_message_of_the_other_sender_is_none() {
        assert!(told(Sender::Kernel, &from_udev()).is_none());
        assert!(told(Sender::Udev, &from_kernel()).is_none());
        let data = &from_kernel();
        assert!(decode(Sender::Kernel, Datagram { data, group: 2 }).is_none());
        assert!(decode(Sender::Kernel, Datagram { data, group: 0 }).is_none(), "sent to this socket alone");
    }

    #[test]
    fn damaged_messages_are_not_told() {
        for sender in [Sender::Kernel, Sender::Udev] {
            for cut in damage::cut(&good(sender)) {
                assert!(told(sender, cut).is_none(), "{:?}", String::from_utf8_lossy(cut));
            }
        }
        for bad in [
            &b"change@/devices/virtual/mem/null\0"[..],
            b"change@/devices/virtual/mem/null\0\0",
            b"add@/a\0ACTION=add\0DEVPATH=/b\0SUBSYSTEM=mem\0SEQNUM=1\0",
            b"add@/a\0ACTION=remove\0DEVPATH=/a\0SUBSYSTEM=mem\0SEQNUM=1\0",
            b"add@/a\0ACTION=add\0DEVPATH=/a\0SEQNUM=1\0",
            b"add@/a\0ACTION=add\0DEVPATH=/a\0SUBSYSTEM=mem\0",
            b"add@/a\0ACTION=add\0DEVPATH=/a\0SUBSYSTEM=mem\0SEQNUM=1\0nonsense\0",
            b"add@/a\0ACTION=add\0DEVPATH=/a\0SUBSYSTEM=mem\0SEQNUM=1\0=nonsense\0",
            b"add@a\0ACTION=add\0DEVPATH=a\0SUBSYSTEM=mem\0SEQNUM=1\0",
            b"@/a\0ACTION=\0DEVPATH=/a\0SUBSYSTEM=mem\0SEQNUM=1\0",
        ] {
            assert!(told(Sender::Kernel, bad).is_none(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_udev_header_must_be_as_udev_writes_it() {
        let changed = |place: usize, with: u32| {
            let mut message = from_udev();
            message[place..place + 4].copy_from_slice(&with.to_ne_bytes());
            told(Sender::Udev, &message)
        };
        assert!(changed(8, 0xfeed_cafe_u32.swap_bytes().to_be()).is_none(), "the magic the wrong way round");
        for offset in [0, 23, 41, 4096, u32::MAX] {
            assert!(changed(16, offset).is_none(), "properties at {offset}");
        }
        for length in [0, 1, PROPERTIES.len() as u32 + 1, u32::MAX] {
            assert!(changed(20, length).is_none(), "properties of {length} bytes");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_replaced() {
        let message = b"add@/a\0ACTION=add\0DEVPATH=/a\0SUBSYSTEM=net\0INTERFACE=\xff\xfe0\0SEQNUM=1\0";
        assert_eq!(told(Sender::Kernel, message).unwrap().properties["INTERFACE"], "\u{fffd}\u{fffd}0");
    }

    proptest! {
        #[test]
        fn damage_never_panics(kernel in damage::damaged(from_kernel()), udev in damage::damaged(from_udev())) {
            for sender in [Sender::Kernel, Sender::Udev] {
                for message in [&kernel, &udev] {
                    if let Some(device) = told(sender, message) {
                        prop_assert!(device.devpath.starts_with('/') && !device.action.is_empty());
                    }
                }
            }
        }
    }
}
