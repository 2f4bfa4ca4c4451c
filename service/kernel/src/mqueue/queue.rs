//! A message queue that is open: the endpoint, and its messages.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{event::PollFlags, fs::OFlags, io::Errno};

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Fd, Kind, Parameters, Result, Value, dict,
    error::Attempted,
    fd::{self, poll_now},
    mechanism::Permissions,
    mqueue::{
        calls::{self, Access, Name, PRIORITIES},
        list::{self, look_up},
    },
    named_file::{self, Identity},
    proc, shape,
    shape::{Message, Messages, Outgoing, Shape},
};

/// What is known of a queue's name.
#[derive(Debug)]
pub enum Found {
    /// By it mq_open(3) found, or would have found, this queue.
    Named(Name),
    /// It was adopted, and its mode lets the caller not look up whether the name is in this IPC
    /// namespace.
    Unknown(Name),
    /// It was adopted and is not in this IPC namespace, or not by any name any more.
    Nameless,
}

impl Found {
    /// The name of an adopted queue, looked up.
    pub fn by_descriptor(fd: &OwnedFd) -> Result<Self> {
        let link = fd::link(fd)?;
        let last = link.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        if is_removed(fd)? {
            return Ok(Self::Nameless);
        }
        let Ok(name) = Name::check(&link[last..]) else { return Ok(Self::Nameless) };
        Ok(match look_up(&name) {
            Ok(Some(there)) if calls::identity(&there) == calls::identity(fd) => Self::Named(name),
            Ok(None) => Self::Unknown(name),
            Ok(Some(_)) | Err(_) => Self::Nameless,
        })
    }
}

fn is_removed(fd: impl AsFd) -> Result<bool> {
    Ok(fd::stat(fd)?.st_nlink == 0)
}

/// Whose the open description is, with its O_NONBLOCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Description {
    Own,
    Shared,
}

pub struct Queue {
    fd: Fd,
    found: Found,
    identity: Identity,
    access: Access,
    /// The largest message, which never changes.
    size: u64,
    description: Description,
}

impl Queue {
    pub fn new(
        fd: OwnedFd,
        found: Found,
        access: Access,
        size: u64,
        description: Description,
    ) -> Result<Self> {
        let identity = calls::identity(&fd).attempted(|| "examine the queue")?;
        Ok(Self { fd: fd.into(), found, identity, access, size, description })
    }

    fn label(&self) -> String {
        self.address().to_string()
    }

    /// It was opened without the right to do this.
    fn lacks(&self, what: &str, needed: Access) -> Error {
        Error::new(
            Kind::PermissionDenied,
            format!(
                "cannot {what} {}: it is open with access={} (EBADF); attach with access={}",
                self.label(),
                self.access.word(),
                needed.word()
            ),
        )
    }
}

impl Endpoint for Queue {
    fn address(&self) -> Address {
        match &self.found {
            Found::Named(name) | Found::Unknown(name) => list::address(name),
            Found::Nameless => Address::new("posixmq").with("inode", self.identity.inode.to_string()),
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Messages]
    }

    fn inspect(&self) -> Result<Dict> {
        let stat = fd::stat(&self.fd)?;
        let mut state = named_file::inspect(&stat);
        state.extend(list::describe(calls::attributes(&self.fd).attempted(|| "examine the queue")?));
        state.extend(calls::status(&self.fd).map(list::describe_status).unwrap_or_default());
        state.extend(dict! {
            "access" => self.access.word(),
            "description" => match self.description {
                Description::Own => "own",
                Description::Shared => "shared",
            },
            "removed" => stat.st_nlink == 0,
        });
        let link = fd::link(&self.fd)?;
        let last = link.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let name = &link[last..];
        let name = if stat.st_nlink == 0 { name.strip_suffix(proc::DELETED).unwrap_or(name) } else { name };
        let holders = list::holders(&HashSet::from([name])).remove(&self.identity).unwrap_or_default();
        state.insert("holders".into(), proc::holders(&holders.iter().collect::<Vec<_>>()).into());
        state.insert("name".into(), Value::text_or_bytes(name));
        Ok(state)
    }

    fn open(&self, options: &Parameters) -> Result<OwnedFd> {
        let access = options.text("access").map_or(Ok(self.access), str::parse)?;
        match fd::reopen(&self.fd, access.flags()) {
            // The giver of the descriptor gets his own description back.
            Err(Errno::ACCESS) if self.description == Description::Shared && self.access.covers(access) => {
                fd::duplicate(&self.fd)
            }
            Err(Errno::ACCESS) => Err(Error::from_errno(
                Errno::ACCESS,
                format!("open {} for the caller with access={}", self.label(), access.word()),
            )
            .help("the mode of the queue does not allow it; the owner may change that (SetPermissions)")),
            other => other.attempted(|| format!("open {} for the caller", self.label())),
        }
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        named_file::set_permissions(&self.fd, permissions)
    }

    fn remove(&self) -> Result<()> {
        let attempt = || format!("remove {}", self.label());
        if is_removed(&self.fd)? {
            let successor = match &self.found {
                Found::Named(name) => !matches!(look_up(name), Err(Errno::NOENT)),
                _ => false,
            };
            let what = if successor { "; another queue has taken it, and it is left alone" } else { "" };
            let text = format!("cannot {}: the name was removed already{what}", attempt());
            return Err(Error::new(Kind::Gone, text));
        }
        match &self.found {
            // Between the look and the unlink there is a gap that no system call closes.
            Found::Named(name) => match calls::unlink(name) {
                Err(Errno::NOENT) => {
                    Err(Error::new(Kind::Gone, format!("cannot {}: the name was removed already", attempt())))
                }
                Err(errno @ (Errno::PERM | Errno::ACCESS)) => Err(Error::from_errno(errno, attempt())
                    .help("only the owner of a queue may remove it (mq_unlink(3))")),
                other => other.attempted(attempt),
            },
            Found::Unknown(_) => Err(Error::new(
                Kind::PermissionDenied,
                format!(
                    "cannot {}: its mode does not let the caller find out whether this name means this queue (EACCES)",
                    attempt()
                ),
            )),
            Found::Nameless => Err(Error::not_supported(format!(
                "cannot {}: it has no name in the IPC namespace of the service (ipc_namespaces(7))",
                attempt()
            ))),
        }
    }

    fn messages(&self) -> Option<&dyn Messages> {
        Some(self)
    }
}

/// The attribute `priority`, 0 where it is not given.
fn priority(attributes: &Dict) -> Result<u32> {
    if let Some(key) = attributes.keys().find(|key| *key != "priority") {
        return Err(Error::invalid(format!(
            "messages of a POSIX queue have no attribute {key:?}; they have priority"
        )));
    }
    let Some(given) = attributes.get("priority") else { return Ok(0) };
    given.integer().and_then(|number| u32::try_from(number).ok()).filter(|number| *number < PRIORITIES).ok_or_else(|| {
        Error::invalid(format!(
            "the attribute \"priority\" must be a whole number from 0 to {} (D-Bus type u), the highest is received \
             first (mq_send(3): EINVAL)",
            PRIORITIES - 1
        ))
    })
}

impl Messages for Queue {
    fn send(&self, message: Outgoing<'_>) -> Result<Attempt<()>> {
        if !message.fds.is_empty() {
            return Err(Error::not_supported("message queues carry no file descriptors; use a unix socket"));
        }
        let priority = priority(message.attributes)?;
        match calls::send(&self.fd, message.data, priority) {
            Ok(()) => Ok(Attempt::Done(())),
            Err(Errno::AGAIN) => Ok(shape::writable(&self.fd)),
            Err(Errno::BADF) => Err(self.lacks("send to", Access::Write)),
            Err(Errno::MSGSIZE) => Err(Error::new(
                Kind::TooLarge,
                format!(
                    "cannot send to {}: the message has {} bytes, and the largest that the queue takes {} (EMSGSIZE); \
                     that is its key size, given when it was created",
                    self.label(),
                    message.data.len(),
                    self.size
                ),
            )),
            Err(errno) => Err(Error::from_errno(errno, format!("send to {}", self.label()))),
        }
    }

    fn receive(&self, selector: &Dict) -> Result<Attempt<Message>> {
        if let Some(key) = selector.keys().next() {
            return Err(Error::invalid(format!(
                "POSIX queues have no selector {key:?}: the message of the highest priority comes first, the oldest \
                 of them; System V queues (sysvmq) select by type"
            )));
        }
        // The kernel takes no smaller buffer, however small the message is.
        let mut data = vec![0; usize::try_from(self.size).unwrap_or(usize::MAX)];
        match calls::receive(&self.fd, &mut data) {
            Ok((length, priority)) => {
                data.truncate(length);
                data.shrink_to_fit();
                let attributes = dict! { "priority" => priority };
                Ok(Attempt::Done(Message { data, attributes, fds: Vec::new() }))
            }
            Err(Errno::AGAIN) => Ok(shape::readable(&self.fd)),
            Err(Errno::BADF) => Err(self.lacks("receive from", Access::Read)),
            Err(errno) => Err(Error::from_errno(errno, format!("receive from {}", self.label()))),
        }
    }

    fn peek(&self, _selector: &Dict) -> Result<Attempt<Message>> {
        Err(Error::not_supported(
            "the kernel cannot peek at a POSIX message queue; Depth says how many messages wait, and a message that \
             was received can be sent again with its priority, but comes behind the others of that priority then",
        ))
    }

    fn put_back(&self, message: &Message) -> bool {
        let Ok(priority) = priority(&message.attributes) else { return false };
        match calls::send(&self.fd, &message.data, priority) {
            // It was opened to receive only.
            Err(Errno::BADF) => fd::reopen(&self.fd, Access::Write.flags() | OFlags::NONBLOCK)
                .and_then(|writer| calls::send(&writer, &message.data, priority))
                .is_ok(),
            sent => sent.is_ok(),
        }
    }

    fn check_attributes(&self, attributes: &Dict) -> Result<()> {
        priority(attributes).map(drop)
    }

    fn arrival(&self) -> Result<Attempt<()>> {
        if !self.access.reads() {
            return Err(self.lacks("wait for a message in", Access::Read));
        }
        match poll_now(&self.fd, PollFlags::IN)?.is_empty() {
            true => Ok(shape::readable(&self.fd)),
            false => Ok(Attempt::Done(())),
        }
    }

    fn max_message_size(&self) -> u64 {
        self.size
    }

    fn depth(&self) -> Option<u64> {
        calls::attributes(&self.fd).ok().map(|attributes| attributes.messages)
    }
}
