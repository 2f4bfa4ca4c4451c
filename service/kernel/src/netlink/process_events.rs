//! What processes do: the proc connector (NETLINK_CONNECTOR, linux/cn_proc.h). Since Linux 6.6 it
//! tells every user; before, only root.
//!
//! It speaks while somebody listens, and then every fork and exit on the machine costs a message. So
//! a [`ProcessEvents`] is opened when somebody asks, says LISTEN, and IGNORE when it is dropped: the
//! kernel counts listeners, and a socket that is closed without a word stays counted.
//!
//! The kernel ignores listeners in other pid or user namespaces than the first without a word, too.
//! But it acknowledges all others before send(2) returns; [`ProcessEvents::open`] looks for that.
//!
//! The sequence numbers in the messages count per CPU and start anywhere: they show no loss that
//! ENOBUFS does not show.

use neli::consts::nl::NlmF;
use rustix::{io::Errno, net::netlink::CONNECTOR};

use crate::{
    Attempt, Dict, Error, Kind, Result, dict,
    error::Attempted,
    netlink::{
        Event, Process, Source,
        listener::{BATCH, Datagram, Listener, Trust},
        wire::{self, u16_at, u32_at},
    },
    proc,
    shape::Exit,
};

const WHAT: &str = "process events";

/// The name in `Overflow`.
pub const SOURCE: &str = "process";

/// `struct cn_msg`, linux/connector.h: index, value, sequence number, acknowledgement, length, flags.
const CONNECTOR_HEADER: usize = 20;

/// `struct proc_event` up to its union: what, CPU, time in nanoseconds.
const EVENT_HEADER: usize = 16;

/// Every process of the machine; pids are those of the first pid namespace.
#[derive(Debug)]
pub struct ProcessEvents {
    socket: Listener,
    /// Came before the acknowledgement, for another listener's sake.
    early: Vec<Event>,
}

impl ProcessEvents {
    /// Errors: `PermissionDenied` for others than root before Linux 6.6; `Unavailable` in a
    /// container, where the kernel does not tell.
    pub fn open() -> Result<Self> {
        let attempt = || format!("listen to {WHAT}");
        let socket = Listener::open(CONNECTOR, Trust::Kernel, WHAT)?;
        socket.join(libc::CN_IDX_PROC).attempted(attempt)?;
        // From here on IGNORE is said, whatever happens.
        let mut events = Self { socket, early: Vec::new() };
        match events.say(libc::PROC_CN_MCAST_LISTEN) {
            // The connector is in the first network namespace.
            Err(Errno::CONNREFUSED) => Err(not_here()),
            said => said.attempted(attempt),
        }?;
        events.acknowledged()?;
        Ok(events)
    }

    /// Takes what has come until the acknowledgement was among it.
    fn acknowledged(&mut self) -> Result<()> {
        let mut answer = None;
        let mut lost = false;
        // The buffer holds some thousand messages, and it is younger than this call.
        for _ in 0..64 {
            let mut idle = true;
            lost |= self.socket.drain(|datagram| {
                idle = false;
                match decode(datagram) {
                    Some(Told::Acknowledged(errno)) => answer = Some(errno),
                    Some(Told::Event(event)) => self.early.push(Event::Process(event)),
                    None => {}
                }
            })?;
            if answer.is_some() || idle {
                break;
            }
        }
        if lost {
            self.early.push(Event::Overflow(SOURCE.into()));
        }
        match answer {
            Some(0) => Ok(()),
            Some(errno) => Err(Errno::from_raw_os_error(errno)).attempted(|| format!("listen to {WHAT}")),
            // Lost among too many events; whether it is heard will show.
            None if lost => Ok(()),
            None => Err(not_here()),
        }
    }

    /// Tells the kernel `operation` (`enum proc_cn_mcast_op`). Without the filter that Linux 6.6 takes
    /// behind it: everything is wanted, and acknowledgements are told to those who want everything.
    fn say(&self, operation: u32) -> rustix::io::Result<()> {
        self.socket.ask(&request(operation).ok_or(Errno::INVAL)?)
    }
}

impl Drop for ProcessEvents {
    fn drop(&mut self) {
        // Nothing is left to do where the kernel does not listen.
        let _ = self.say(libc::PROC_CN_MCAST_IGNORE);
    }
}

impl Source for ProcessEvents {
    fn next(&mut self) -> Result<Attempt<Vec<Event>>> {
        let early = self.early.len().min(BATCH);
        let mut events: Vec<_> = self.early.drain(..early).collect();
        if !events.is_empty() {
            return Ok(Attempt::Done(events));
        }
        let lost = self.socket.drain(|datagram| {
            if let Some(Told::Event(process)) = decode(datagram) {
                events.push(Event::Process(process));
            }
        })?;
        if lost {
            events.push(Event::Overflow(SOURCE.into()));
        }
        Ok(self.socket.told(events))
    }
}

fn not_here() -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "cannot listen to {WHAT}: the kernel tells them only in the first pid, user and network \
             namespace, and not in a container; run the service on the host"
        ),
    )
}

/// None if neli could not write it, which it can.
fn request(operation: u32) -> Option<Vec<u8>> {
    // The length, and behind it the flags.
    let length = [size_of::<u32>() as u16, 0];
    let header = [libc::CN_IDX_PROC, libc::CN_VAL_PROC, 0, 0].map(u32::to_ne_bytes);
    let length = length.map(u16::to_ne_bytes);
    let message = [header.as_flattened(), length.as_flattened(), &operation.to_ne_bytes()].concat();
    wire::request(libc::NLMSG_DONE as u16, NlmF::empty(), 0, &message).ok()
}

/// What a message of the connector says.
#[derive(Debug)]
enum Told {
    /// To whom that was is not said: every listener hears it. An errno, or 0.
    Acknowledged(i32),
    Event(Process),
}

/// None for other events than are known here, and for damaged ones.
fn decode(datagram: Datagram<'_>) -> Option<Told> {
    if datagram.group != libc::CN_IDX_PROC {
        return None;
    }
    let messages = wire::messages(datagram.data)?;
    let [message] = messages.as_slice() else { return None };
    let payload = message.payload;
    if (u32_at(payload, 0)?, u32_at(payload, 4)?) != (libc::CN_IDX_PROC, libc::CN_VAL_PROC) {
        return None;
    }
    let length = usize::from(u16_at(payload, 16)?);
    event(payload.get(CONNECTOR_HEADER..CONNECTOR_HEADER.checked_add(length)?)?)
}

/// The words of the union, in their order in linux/cn_proc.h. What the kernel calls pid is a thread,
/// and its tgid the process.
///
/// An exit is told after the parent was woken: what that one does next may be told before, and when
/// it has reaped the child already, the child has no parent any more.
fn event(event: &[u8]) -> Option<Told> {
    let word = |n: usize| u32_at(event, EVENT_HEADER + n * 4);
    let pid = |n: usize| word(n).map(u32::cast_signed);
    let what = u32_at(event, 0)?;
    let (name, mut details): (_, Dict) = match what {
        libc::PROC_EVENT_NONE => return Some(Told::Acknowledged(pid(0)?)),
        libc::PROC_EVENT_FORK => ("fork", dict! { "child-tid" => pid(2)?, "child-pid" => pid(3)? }),
        libc::PROC_EVENT_EXEC => ("exec", Dict::new()),
        libc::PROC_EVENT_UID => ("uid", dict! { "real-id" => word(2)?, "effective-id" => word(3)? }),
        libc::PROC_EVENT_GID => ("gid", dict! { "real-id" => word(2)?, "effective-id" => word(3)? }),
        libc::PROC_EVENT_SID => ("sid", Dict::new()),
        libc::PROC_EVENT_PTRACE => ("ptrace", dict! { "tracer-tid" => pid(2)?, "tracer-pid" => pid(3)? }),
        libc::PROC_EVENT_COMM => {
            let name = event.get(EVENT_HEADER + 8..EVENT_HEADER + 24)?;
            ("comm", dict! { "command" => wire::text(name) })
        }
        libc::PROC_EVENT_COREDUMP => ("coredump", parent(pid(3)?)),
        libc::PROC_EVENT_EXIT => {
            let exit = Exit::from_status(pid(2)?);
            let mut how = dict! { "code" => exit.code, "signal" => exit.signal, "core" => exit.core };
            how.extend(parent(pid(5)?));
            ("exit", how)
        }
        _later => return None,
    };
    let (tid, pid) = (pid(0)?, pid(1)?);
    if what == libc::PROC_EVENT_EXEC {
        // Not in the message. /proc has it while the process is there; by now it may be a later one.
        let command = u32::try_from(pid).map(proc::command).unwrap_or_default();
        if !command.is_empty() {
            details.insert("command".into(), command.into());
        }
    }
    Some(Told::Event(Process { event: name, pid, tid, details }))
}

fn parent(pid: i32) -> Dict {
    if pid == 0 {
        Dict::new()
    } else {
        dict! { "parent-pid" => pid }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::{Value, netlink::wire::damage};

    /// A message as the kernel sends it: all of them are as long as the longest.
    fn message(what: u32, union: &[u32]) -> Vec<u8> {
        let mut words = vec![0; 6];
        words[..union.len()].copy_from_slice(union);
        let event = [&[what, 1, 2, 3], &*words].concat();
        let length = event.len() as u32 * 4;
        let connector = [libc::CN_IDX_PROC, libc::CN_VAL_PROC, 7, 0, length];
        let header = [16 + 20 + length, libc::NLMSG_DONE.cast_unsigned(), 7, 0];
        let all: Vec<u32> = [&header[..], &connector, &event].concat();
        all.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn told(data: &[u8]) -> Option<Told> {
        decode(Datagram { data, group: libc::CN_IDX_PROC })
    }

    #[track_caller]
    fn says(message: &[u8], event: &str, pid: i32, tid: i32, details: &Dict) {
        let Some(Told::Event(process)) = told(message) else { panic!("no event") };
        assert_eq!((process.event, process.pid, process.tid), (event, pid, tid));
        assert_eq!(format!("{:?}", process.details), format!("{details:?}"));
    }

    #[test]
    fn every_event_has_its_details() {
        // No process has these pids: above the kernel's limit.
        let (tid, pid) = (0x7000_0002_u32, 0x7000_0001_u32);
        let (t, p) = (tid.cast_signed(), pid.cast_signed());
        let of = |what, rest: [u32; 4]| message(what, &[&[tid, pid][..], &rest].concat());
        says(
            &of(libc::PROC_EVENT_FORK, [12, 11, 0, 0]),
            "fork",
            p,
            t,
            &dict! { "child-tid" => 12, "child-pid" => 11 },
        );
        says(&of(libc::PROC_EVENT_EXEC, [0; 4]), "exec", p, t, &dict! {});
        let ids = dict! { "real-id" => 1000_u32, "effective-id" => 0_u32 };
        says(&of(libc::PROC_EVENT_UID, [1000, 0, 0, 0]), "uid", p, t, &ids);
        says(&of(libc::PROC_EVENT_GID, [1000, 0, 0, 0]), "gid", p, t, &ids);
        says(&of(libc::PROC_EVENT_SID, [0; 4]), "sid", p, t, &dict! {});
        let tracer = dict! { "tracer-tid" => 12, "tracer-pid" => 11 };
        says(&of(libc::PROC_EVENT_PTRACE, [12, 11, 0, 0]), "ptrace", p, t, &tracer);
        let name = [*b"work", *b"er\0x", *b"yyyy", *b"zzzz"].map(u32::from_ne_bytes);
        says(&of(libc::PROC_EVENT_COMM, name), "comm", p, t, &dict! { "command" => "worker" });
        let parent = dict! { "parent-pid" => 11 };
        says(&of(libc::PROC_EVENT_COREDUMP, [12, 11, 0, 0]), "coredump", p, t, &parent);
    }

    #[test]
    fn an_exit_is_told_as_waitpid_tells_it() {
        for (status, code, signal, core) in
            [(0, 0, 0, false), (3 << 8, 3, 0, false), (9, -1, 9, false), (0x80 | 6, -1, 6, true)]
        {
            let message = message(libc::PROC_EVENT_EXIT, &[2, 1, status, 17, 12, 11]);
            let exit = dict! { "code" => code, "signal" => signal, "core" => core, "parent-pid" => 11 };
            says(&message, "exit", 1, 2, &exit);
        }
        let reaped = dict! { "code" => 0, "signal" => 0, "core" => false };
        says(&message(libc::PROC_EVENT_EXIT, &[2, 1, 0, 17, 0, 0]), "exit", 1, 2, &reaped);
    }

    #[test]
    fn other_messages_are_not_told() {
        assert!(matches!(told(&message(libc::PROC_EVENT_NONE, &[13])), Some(Told::Acknowledged(13))));
        assert!(told(&message(0x400, &[1, 1])).is_none(), "an event of a later kernel");
        let good = message(libc::PROC_EVENT_SID, &[1, 1]);
        for group in [0, 2] {
            assert!(decode(Datagram { data: &good, group }).is_none(), "group {group}");
        }
        let mut other = good.clone();
        other[16] = 2;
        assert!(told(&other).is_none(), "another connector");
        assert!(told(&[&good[..], &good].concat()).is_none(), "two in one");
        for cut in damage::cut(&good) {
            assert!(told(cut).is_none(), "{} bytes", cut.len());
        }
    }

    #[test]
    fn the_request_is_as_the_kernel_reads_it() {
        let bytes = request(libc::PROC_CN_MCAST_LISTEN).unwrap();
        let messages = wire::messages(&bytes).unwrap();
        let words: Vec<_> = messages[0].payload.chunks(4).filter_map(|word| u32_at(word, 0)).collect();
        assert_eq!((messages.len(), messages[0].kind), (1, 3));
        assert_eq!(words, [libc::CN_IDX_PROC, libc::CN_VAL_PROC, 0, 0, 4, libc::PROC_CN_MCAST_LISTEN]);
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            message in prop::sample::select(vec![
                message(libc::PROC_EVENT_FORK, &[1, 1, 2, 2]),
                message(libc::PROC_EVENT_COMM, &[1, 1, 2, 2]),
                message(libc::PROC_EVENT_EXIT, &[1, 1, 2, 2, 3, 3]),
            ])
            .prop_flat_map(damage::damaged)
        ) {
            if let Some(Told::Event(process)) = told(&message) {
                for value in process.details.values() {
                    prop_assert!(matches!(value, Value::I32(_) | Value::U32(_) | Value::Bool(_) | Value::Text(_)));
                }
            }
        }
    }
}
