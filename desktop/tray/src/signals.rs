//! The service's signals, as far as the tray understands them.

use std::collections::HashMap;

use zbus::{Message, OwnedObjectPath, OwnedVariant};

type Details = HashMap<String, OwnedVariant>;

/// Interfaces with their properties, as ObjectManager tells them.
pub type Interfaces = HashMap<String, Details>;

#[derive(Debug)]
pub enum Signal {
    LinkChanged {
        seq: u64,
        index: i32,
        name: String,
        state: String,
    },
    LinkRemoved {
        seq: u64,
        index: i32,
    },
    AddressAdded {
        seq: u64,
        index: i32,
        name: String,
        address: String,
    },
    AddressRemoved {
        seq: u64,
        index: i32,
        address: String,
    },
    /// Of a device, as the kernel tells it.
    Device {
        action: String,
        path: String,
        subsystem: String,
    },
    /// What is known has to be asked for again.
    Overflow,
    /// A file below a watched folder.
    File {
        watch: String,
        events: Vec<String>,
        path: String,
    },
    /// A process has ended, of this endpoint.
    Exited {
        process: String,
        code: i32,
        signal: i32,
        core: bool,
    },
    Added {
        path: String,
        interfaces: Interfaces,
    },
    Removed {
        path: String,
    },
    RelayState {
        path: String,
        state: String,
    },
    RelayFinished {
        path: String,
        reason: String,
        bytes: u64,
    },
    /// The process that held the caller's objects has ended.
    Lost,
}

impl Signal {
    /// None: it is none of these.
    pub fn parse(message: &Message) -> Option<Self> {
        let header = message.header();
        let path = header.path()?.to_string();
        let interface = header.interface()?.to_string();
        let member = header.member()?.to_string();
        let body = message.body();
        let interface = interface.strip_prefix("org.example.IPC.").unwrap_or(&interface);
        Some(match (interface, member.as_str()) {
            ("Netlink", "LinkChanged") => {
                let (seq, index, name, state, _) =
                    body.deserialize::<(u64, i32, String, String, Details)>().ok()?;
                Self::LinkChanged { seq, index, name, state }
            }
            ("Netlink", "LinkRemoved") => {
                let (seq, index, _, _) = body.deserialize::<(u64, i32, String, Details)>().ok()?;
                Self::LinkRemoved { seq, index }
            }
            ("Netlink", "AddressAdded") => {
                let (seq, index, name, address, prefix, _) =
                    body.deserialize::<(u64, i32, String, String, u8, Details)>().ok()?;
                Self::AddressAdded { seq, index, name, address: written(&address, prefix) }
            }
            ("Netlink", "AddressRemoved") => {
                let (seq, index, _, address, prefix, _) =
                    body.deserialize::<(u64, i32, String, String, u8, Details)>().ok()?;
                Self::AddressRemoved { seq, index, address: written(&address, prefix) }
            }
            ("Netlink", "DeviceEvent") => {
                let (_, action, path, subsystem, source, _) = body
                    .deserialize::<(u64, String, String, String, String, HashMap<String, String>)>()
                    .ok()?;
                // udev tells the same once more.
                (source == "kernel").then_some(Self::Device { action, path, subsystem })?
            }
            ("Netlink", "Overflow") => Self::Overflow,
            ("Watch", "Changed") => {
                let (_, events, file, _, _) =
                    body.deserialize::<(u64, Vec<String>, String, String, Details)>().ok()?;
                Self::File { watch: path, events, path: file }
            }
            ("Process", "Exited") => {
                let (code, signal, core) = body.deserialize().ok()?;
                Self::Exited { process: path, code, signal, core }
            }
            ("Relay", "Finished") => {
                let (reason, bytes, _) = body.deserialize::<(String, u64, u64)>().ok()?;
                Self::RelayFinished { path, reason, bytes }
            }
            ("org.example.IPC", "Lost") => Self::Lost,
            ("org.freedesktop.DBus.ObjectManager", "InterfacesAdded") => {
                let (path, interfaces) = body.deserialize::<(OwnedObjectPath, Interfaces)>().ok()?;
                Self::Added { path: path.to_string(), interfaces }
            }
            ("org.freedesktop.DBus.ObjectManager", "InterfacesRemoved") => {
                let (path, _) = body.deserialize::<(OwnedObjectPath, Vec<String>)>().ok()?;
                Self::Removed { path: path.to_string() }
            }
            ("org.freedesktop.DBus.Properties", "PropertiesChanged") => {
                let (_, mut changed, _) = body.deserialize::<(String, Details, Vec<String>)>().ok()?;
                let state = changed.remove("State")?;
                Self::RelayState { path, state: state.try_into().ok()? }
            }
            _ => return None,
        })
    }
}

/// An address as ip(8) writes it.
pub fn written(address: &str, prefix: u8) -> String {
    format!("{address}/{prefix}")
}
