//! What the front and the spawner say to each other: datagrams of one fixed size each way, over a
//! SOCK_SEQPACKET socket, one request at a time, each with exactly one reply.
//!
//! Numbers are in native byte order: both ends are the same program on the same machine. A datagram
//! of another size, another version or with a number out of range is refused as a whole.

/// Changes with every change of the layout: after an upgrade an old spawner and a new front do not
/// misunderstand each other.
pub const VERSION: u32 = 4;

/// The most supplementary groups of a worker; a caller in more is refused.
pub const GROUPS_MAX: usize = 1024;

/// The longest name of a worker (it is also an FDNAME= of sd_notify(3), which takes 255).
pub const NAME_MAX: usize = 128;

/// The name of the herald, which is no worker's.
pub const HERALD: &str = "herald";

/// Version, kind, uid, gid, confinement, count of groups, length of the name, the name, the groups.
pub const REQUEST_SIZE: usize = 7 * 4 + NAME_MAX + GROUPS_MAX * 4;

/// Version, kind, value, and a pid or a gid.
pub const REPLY_SIZE: usize = 4 * 4;

/// No group has this number: it means "leave it as it is" in setgid(2) and its like.
const NO_GID: u32 = u32::MAX;

/// Why a caller gets a worker that touches nothing by a path, a key or a pid: bits, so that the
/// refusal can say which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Confinement(pub u32);

impl Confinement {
    pub const MOUNT: u32 = 1;
    pub const PID: u32 = 1 << 1;
    pub const IPC: u32 = 1 << 2;
    pub const NETWORK: u32 = 1 << 3;
    pub const USER: u32 = 1 << 4;
    /// A seccomp filter is on.
    pub const SECCOMP: u32 = 1 << 5;
    /// A security label other than that of the service's own kind.
    pub const LABEL: u32 = 1 << 6;
    /// The process could not be looked at: it has gone, it is another user's by now, or the bus did not
    /// tell which it is.
    pub const UNKNOWN: u32 = 1 << 7;
    const ALL: u32 = (1 << 8) - 1;

    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The reasons, for an error's text.
    pub fn reasons(self) -> String {
        const NAMES: &[(u32, &str)] = &[
            (Confinement::MOUNT, "mount namespace or root directory"),
            (Confinement::PID, "pid namespace"),
            (Confinement::IPC, "ipc namespace"),
            (Confinement::NETWORK, "network namespace"),
            (Confinement::USER, "user namespace"),
            (Confinement::SECCOMP, "seccomp filter"),
            (Confinement::LABEL, "security label"),
            (Confinement::UNKNOWN, "process that cannot be examined"),
        ];
        let names = NAMES.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| *name);
        names.collect::<Vec<_>>().join(", ")
    }
}

/// Everything that the kernel and the service tell callers apart by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, sorted, without repetition.
    pub groups: Vec<u32>,
    pub confinement: Confinement,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Is this process, of a caller with this uid, confined? Comes with its pidfd.
    Examine { uid: u32 },
    /// Start a worker. The reply comes with the front's end of its control socket.
    Start { name: String, identity: Identity },
    /// Start the herald, as the front's own user. The reply is that to Start.
    Herald,
    /// End the worker of this name, and its mounter, with SIGKILL.
    Kill { name: String },
    /// Start a mounter for the worker of this name: it makes a detached FUSE mount as its user could, and
    /// ends. The reply is that to Start; on the socket comes the mount, for the worker.
    Mount { name: String, identity: Identity },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// With the process's effective group, to which what it makes belongs; None: it is not known.
    Examined {
        confinement: Confinement,
        gid: Option<u32>,
    },
    Started {
        pid: u32,
    },
    Killed,
    Refused(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The request does not follow the protocol.
    Malformed,
    /// No worker is started for this identity: ids 65534 and -1, the front's own user. No mount is made for one
    /// that is confined.
    Identity,
    /// There is no worker of this name.
    NoSuchWorker,
    /// A system call failed with this errno; EAGAIN: there are too many workers, or processes; EBUSY: a
    /// mounter of this worker still runs.
    Errno(i32),
}

impl Request {
    pub fn encode(&self) -> [u8; REQUEST_SIZE] {
        let uid = if let Self::Examine { uid } = self { *uid } else { 0 };
        let user = Identity { uid, gid: 0, groups: Vec::new(), confinement: Confinement(0) };
        let (kind, name, identity) = match self {
            Self::Examine { .. } => (1, "", &user),
            Self::Start { name, identity } => (2, name.as_str(), identity),
            Self::Kill { name } => (3, name.as_str(), &user),
            Self::Herald => (4, "", &user),
            Self::Mount { name, identity } => (5, name.as_str(), identity),
        };
        let name = &name.as_bytes()[..name.len().min(NAME_MAX)];
        let groups = &identity.groups[..identity.groups.len().min(GROUPS_MAX)];
        let numbers = [
            VERSION,
            kind,
            identity.uid,
            identity.gid,
            identity.confinement.0,
            // Both are far below u32::MAX.
            groups.len() as u32,
            name.len() as u32,
        ];
        let mut bytes = [0; REQUEST_SIZE];
        put(&mut bytes, 0, &numbers);
        bytes[28..28 + name.len()].copy_from_slice(name);
        put(&mut bytes, 28 + NAME_MAX, groups);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() != REQUEST_SIZE || number(bytes, 0) != VERSION {
            return Err(Refusal::Malformed);
        }
        let (count, length) = (number(bytes, 5) as usize, number(bytes, 6) as usize);
        if count > GROUPS_MAX || length > NAME_MAX || number(bytes, 4) & !Confinement::ALL != 0 {
            return Err(Refusal::Malformed);
        }
        let name = std::str::from_utf8(&bytes[28..28 + length]).map_err(|_| Refusal::Malformed)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !name.bytes().all(plain) {
            return Err(Refusal::Malformed);
        }
        let name = name.to_owned();
        match number(bytes, 1) {
            1 => Ok(Self::Examine { uid: number(bytes, 2) }),
            kind @ (2 | 5) if !name.is_empty() => {
                let first = 7 + NAME_MAX / 4;
                let groups = (first..first + count).map(|index| number(bytes, index)).collect();
                let identity = Identity {
                    uid: number(bytes, 2),
                    gid: number(bytes, 3),
                    groups,
                    confinement: Confinement(number(bytes, 4)),
                };
                Ok(if kind == 2 { Self::Start { name, identity } } else { Self::Mount { name, identity } })
            }
            3 if !name.is_empty() => Ok(Self::Kill { name }),
            4 => Ok(Self::Herald),
            _ => Err(Refusal::Malformed),
        }
    }
}

impl Reply {
    pub fn encode(self) -> [u8; REPLY_SIZE] {
        let (kind, value, id) = match self {
            Self::Examined { confinement, gid } => (1, confinement.0, gid.unwrap_or(NO_GID)),
            Self::Started { pid } => (2, 0, pid),
            Self::Killed => (3, 0, 0),
            Self::Refused(Refusal::Malformed) => (4, 0, 0),
            Self::Refused(Refusal::Identity) => (5, 0, 0),
            Self::Refused(Refusal::NoSuchWorker) => (6, 0, 0),
            Self::Refused(Refusal::Errno(errno)) => (7, errno.cast_unsigned(), 0),
        };
        let mut bytes = [0; REPLY_SIZE];
        put(&mut bytes, 0, &[VERSION, kind, value, id]);
        bytes
    }

    /// None: it does not follow the protocol.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != REPLY_SIZE || number(bytes, 0) != VERSION {
            return None;
        }
        let (value, id) = (number(bytes, 2), number(bytes, 3));
        Some(match number(bytes, 1) {
            1 if value & !Confinement::ALL == 0 => {
                let gid = (id != NO_GID).then_some(id);
                Self::Examined { confinement: Confinement(value), gid }
            }
            2 => Self::Started { pid: id },
            3 => Self::Killed,
            4 => Self::Refused(Refusal::Malformed),
            5 => Self::Refused(Refusal::Identity),
            6 => Self::Refused(Refusal::NoSuchWorker),
            7 => Self::Refused(Refusal::Errno(value.cast_signed())),
            _ => return None,
        })
    }
}

fn put(bytes: &mut [u8], at: usize, numbers: &[u32]) {
    for (place, number) in bytes[at..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
}

/// The index-th number of a datagram whose size was checked.
fn number(bytes: &[u8], index: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[index * 4..index * 4 + 4]);
    u32::from_ne_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { uid: 1000, gid: 100, groups: vec![4, 100, 65_000], confinement: Confinement(3) }
    }

    #[test]
    fn requests_survive_the_way() {
        let start = Request::Start { name: "w-1000-abc".into(), identity: identity() };
        let kill = Request::Kill { name: "w-1000-abc".into() };
        let mount = Request::Mount { name: "w-1000-abc".into(), identity: identity() };
        for request in [Request::Examine { uid: 1000 }, start, kill, Request::Herald, mount] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn replies_survive_the_way() {
        let replies = [
            Reply::Examined { confinement: Confinement(5), gid: Some(100) },
            Reply::Examined { confinement: Confinement(0), gid: Some(0) },
            Reply::Examined { confinement: Confinement(Confinement::UNKNOWN), gid: None },
            Reply::Started { pid: 7 },
            Reply::Killed,
            Reply::Refused(Refusal::Malformed),
            Reply::Refused(Refusal::Identity),
            Reply::Refused(Refusal::NoSuchWorker),
            Reply::Refused(Refusal::Errno(11)),
        ];
        for reply in replies {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        // A reason that this end does not know could be any.
        let unknown = Reply::Examined { confinement: Confinement(1 << 8), gid: None };
        assert_eq!(Reply::decode(&unknown.encode()), None);
    }

    #[test]
    fn what_does_not_follow_the_protocol_is_refused() {
        let good = Request::Start { name: "w".into(), identity: identity() }.encode();
        let with = |index: usize, value: u32| {
            let mut bytes = good;
            put(&mut bytes, index * 4, &[value]);
            Request::decode(&bytes)
        };
        let malformed = Err(Refusal::Malformed);
        assert_eq!(Request::decode(&good[1..]), malformed);
        assert_eq!(with(0, VERSION + 1), malformed);
        assert_eq!(with(1, 9), malformed);
        assert_eq!(with(4, 1 << 31), malformed);
        assert_eq!(with(5, GROUPS_MAX as u32 + 1), malformed);
        assert_eq!(with(6, NAME_MAX as u32 + 1), malformed);
        assert_eq!(with(6, 0), malformed);
        assert_eq!(with(7, u32::from_ne_bytes(*b"../x")), malformed);
    }
}
