//! System V message queues, sysvipc(7): what there is, and how it is found. Sending and receiving is
//! in [`message_queue`](crate::sysv::message_queue).

use std::os::fd::OwnedFd;

use libc::c_int;

use crate::{
    Ability, Lack, Descriptor, Dict, Opening, Parameter, Parameters, Result, Type, Value,
    listing::Listing,
    mechanism::{Adoption, Column, Permissions},
    shape::Shape,
    sysv::{
        self, Commands, Object,
        message_queue::{MessageQueue, row},
        queue::{self, Queue},
    },
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "sysvmq",
    schemes: &["sysvmq"],
    summary: "System V message queues: messages with a type, received in order or by type",
    shapes: &[Shape::Messages],
    create_parameters: &[
        sysv::NEW_KEY,
        sysv::PATH,
        sysv::PROJECT,
        MODE,
        Parameter::new(
            "qbytes",
            Type::Size { min: 1, max: i32::MAX as u64 },
            "Bytes that the queue may hold; without it kernel.msgmnb, over which only privileged processes may go",
        ),
    ],
    attach_parameters: &[sysv::KEY, sysv::PATH, sysv::PROJECT, sysv::ID],
    columns: &COLUMNS,
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt: |fd: OwnedFd| Ok(Adoption::Refused(fd)),
    list,
    limits,
    available: sysv::available::<Queue>,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Fd,
            "the kernel has no file descriptors of System V queues; a relay to a `pipe` and `Open` of that gives one",
        ),
    ],
    reference: include_str!("sysvmq.md"),
};

static COLUMNS: [Column; 20] = sysv::columns([
    Column { key: "qnum", kind: "t", summary: "Messages in the queue" },
    Column { key: "cbytes", kind: "t", summary: "Bytes in the queue" },
    Column { key: "qbytes", kind: "t", summary: "Bytes that it may hold; also the most messages" },
    Column { key: "lspid", kind: "u", summary: "Process that last sent; 0: none, or one that the service does not see" },
    Column { key: "lspid-command", kind: "s", summary: "Its command name; not there when it has ended" },
    Column { key: "lrpid", kind: "u", summary: "Process that last received" },
    Column { key: "lrpid-command", kind: "s", summary: "Its command name; not there when it has ended" },
    Column { key: "stime", kind: "t", summary: "Time of the last send, in microseconds since the epoch; 0: never" },
    Column { key: "rtime", kind: "t", summary: "Time of the last receive" },
    Column { key: "ctime", kind: "t", summary: "Time of creation or of the last change of permissions" },
    Column { key: "stale", kind: "b", summary: "It was used, and neither the last sender nor the last receiver lives" },
]);

fn create(parameters: &Parameters) -> Result<Opening> {
    let object = Object::create(parameters, queue::get)?;
    if let Some(qbytes) = parameters.size("qbytes") {
        let permissions = Permissions { qbytes: Some(qbytes), ..Permissions::default() };
        if let Err(error) = object.set_permissions(permissions) {
            // What cannot be made as it was asked for is not left behind.
            let _ = object.remove();
            return Err(error);
        }
    }
    Ok(MessageQueue::new(object)?.into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    Ok(MessageQueue::new(Object::attach(parameters, queue::get)?)?.into())
}

fn list() -> Result<Listing> {
    let (mut listing, mut commands) = (Listing::default(), Commands::default());
    for (id, state) in sysv::all::<Queue>()? {
        listing.push(row(id, &state, &mut commands));
    }
    Ok(listing)
}

fn limits() -> Dict {
    let mut limits = Dict::new();
    let number = |value: c_int| Value::U64(u64::try_from(value).unwrap_or(0));
    if let Ok(info) = queue::info(libc::IPC_INFO) {
        limits.insert("MSGMAX".into(), number(info.msgmax));
        limits.insert("MSGMNB".into(), number(info.msgmnb));
        limits.insert("MSGMNI".into(), number(info.msgmni));
    }
    if let Ok(used) = queue::info(libc::MSG_INFO) {
        limits.insert("queues".into(), number(used.msgpool));
        limits.insert("messages".into(), number(used.msgmap));
        limits.insert("bytes".into(), number(used.msgtql));
    }
    limits
}
