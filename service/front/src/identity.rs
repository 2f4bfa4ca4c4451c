//! Who is calling: what the bus vouches for, and whether the caller is confined.
//!
//! Always asked for with the unique name that the bus wrote into the message's header, never by a
//! well-known name, and never guessed: what the bus does not say is a refusal. The process id decides
//! nothing; it only leads to the process that is examined where the bus gives no pidfd. That may be
//! another one by then, so what it is can confine, and choose among the groups that the bus vouches for;
//! and if it is another user's, it says nothing: then the caller is confined.

use std::{os::fd::OwnedFd, time::Duration};

use ipc_spawner::protocol::{Confinement, GROUPS_MAX, Identity, Refusal as SpawnerRefusal, Reply, Request};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use zbus::{Error, fdo};

use crate::{bus::Bus, refusals::Refusal, spawner::Spawner};

/// Of a process that cannot be looked at.
const UNKNOWN: Confinement = Confinement(Confinement::UNKNOWN);

/// How long the bus may take to say who is calling; it takes less than a millisecond.
const ANSWER: Duration = Duration::from_secs(10);

/// The uid of who has none here (65534 in a user namespace that does not map it).
const NOBODY: u32 = 65534;

/// The passwd(5) file: which of a user's groups is the primary one.
const PASSWD: &str = "/etc/passwd";

/// A caller who has been identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub identity: Identity,
    /// The name of the worker that is this caller.
    pub worker: String,
}

/// Why there is no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// He has left the bus: nobody waits for an answer.
    Gone,
    /// He will not be served, however often he asks.
    Refused(Refusal),
    /// It cannot be found out now.
    Unavailable(Refusal),
}

pub async fn identify(bus: &Bus, spawner: &Spawner, name: &str) -> Result<Caller, Unknown> {
    let credentials = match in_time(bus.credentials(name)).await? {
        Ok(credentials) => credentials,
        Err(Error::FDO(error)) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => {
            return Err(Unknown::Gone);
        }
        Err(error) => return Err(refused(format!("the message bus does not say who is calling: {error}"))),
    };
    let uid = credentials.unix_user_id();
    let groups = credentials.unix_group_ids().cloned();
    let label = credentials.linux_security_label().cloned().unwrap_or_default();
    let (uid, groups) = check(uid, groups)?;
    let pid = credentials.process_id();
    let pidfd = match credentials.into_process_fd() {
        Some(pidfd) => Some(pidfd.into()),
        None => open_process(bus, name, pid).await?,
    };
    let (confinement, effective) = match pidfd {
        Some(pidfd) => examine(spawner, uid, pidfd).await?,
        None => (UNKNOWN, None),
    };
    let gid = effective
        .filter(|gid| groups.contains(gid))
        .unwrap_or_else(|| usual_group(uid, &groups, &std::fs::read_to_string(PASSWD).unwrap_or_default()));
    let identity = Identity { uid, gid, groups, confinement };
    let worker = worker_name(&identity, &label);
    Ok(Caller { identity, worker })
}

/// The user and the groups, sorted, without repetition; or why he is not served.
fn check(uid: Option<u32>, groups: Option<Vec<u32>>) -> Result<(u32, Vec<u32>), Unknown> {
    let Some(uid) = uid else { return Err(refused("the message bus does not say which user is calling")) };
    if uid == NOBODY || uid == u32::MAX {
        return Err(refused(format!("uid {uid} stands for nobody in particular; call as a user")));
    }
    let Some(mut groups) = groups else {
        return Err(refused("the message bus does not say which groups the caller is in"));
    };
    groups.sort_unstable();
    groups.dedup();
    if groups.is_empty() || groups.contains(&u32::MAX) {
        return Err(refused("the message bus gives no valid list of the caller's groups"));
    }
    if groups.len() > GROUPS_MAX {
        let text = format!("the caller is in {} groups; at most {GROUPS_MAX} are supported", groups.len());
        return Err(refused(text));
    }
    Ok((uid, groups))
}

/// What the bus answers, if it does: a caller waits for it, and somebody who waits for ever holds a place.
async fn in_time<T>(question: impl Future<Output = zbus::Result<T>>) -> Result<zbus::Result<T>, Unknown> {
    timeout(ANSWER, question).await.map_err(|_| {
        let text =
            format!("the message bus did not say within {} s who is calling; try again", ANSWER.as_secs());
        Unknown::Unavailable(Refusal::unavailable(text))
    })
}

fn refused(text: impl Into<String>) -> Unknown {
    Unknown::Refused(Refusal::permission(text))
}

/// The process behind a connection, as well as a process id can tell: it is opened while the
/// connection is still there. (A connection that was inherited from a process that has ended is that
/// process's, and its id may be another's by now.)
async fn open_process(bus: &Bus, name: &str, pid: Option<u32>) -> Result<Option<OwnedFd>, Unknown> {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match in_time(bus.has_owner(name)).await? {
        Ok(true) => Ok(pidfd),
        Ok(false) => Err(Unknown::Gone),
        Err(error) => Err(refused(format!("the message bus does not say who is calling: {error}"))),
    }
}

/// Its confinement, and its effective group, if it is this user's.
async fn examine(spawner: &Spawner, uid: u32, pidfd: OwnedFd) -> Result<(Confinement, Option<u32>), Unknown> {
    match spawner.ask(Request::Examine { uid }, Some(pidfd)).await {
        Ok((Reply::Examined { confinement, gid }, _)) => Ok((confinement, gid)),
        Ok((Reply::Refused(SpawnerRefusal::Errno(_)), _)) => Ok((UNKNOWN, None)),
        Ok(_) | Err(_) => Err(Unknown::Unavailable(no_spawner())),
    }
}

pub fn no_spawner() -> Refusal {
    Refusal::unavailable(
        "the process that starts a worker for each caller does not run; try again, or see the journal of ipcd-spawner",
    )
}

/// The bus names the groups but not which is the primary one, to which what the worker makes will
/// belong. Where the process does not tell either (it is that of now, and may be another's): that of
/// passwd(5) if it is among them, else the one that is numbered as the user is, else the first. It is
/// one of the caller's groups in every case.
fn usual_group(uid: u32, groups: &[u32], passwd: &str) -> u32 {
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (id, gid) = (fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then(|| gid.parse().ok()).flatten()
    });
    let candidates = entry.into_iter().chain([uid]);
    // There is a first one: a list without any was refused.
    candidates.into_iter().find(|gid| groups.contains(gid)).or(groups.first().copied()).unwrap_or(uid)
}

/// `w-<uid>-<32 hexadecimal digits>`: the same for the same identity only.
pub fn worker_name(identity: &Identity, label: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"org.example.IPC worker 1\0");
    let count = u32::try_from(identity.groups.len()).unwrap_or(u32::MAX);
    for number in [identity.uid, identity.gid, identity.confinement.0, count] {
        hash.update(number.to_le_bytes());
    }
    let mut groups = identity.groups.clone();
    groups.sort_unstable();
    for group in groups {
        hash.update(group.to_le_bytes());
    }
    hash.update(label);
    let hex: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("w-{}-{hex}", identity.uid)
}

/// The user of the worker of this name; None: it is not the name of a worker.
pub fn user_of(worker: &str) -> Option<u32> {
    let (uid, hash) = worker.strip_prefix("w-")?.split_once('-')?;
    let hash = hash.len() == 32 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hash.then(|| uid.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { uid: 1000, gid: 100, groups: vec![4, 27, 100], confinement: Confinement(0) }
    }

    #[test]
    fn the_name_tells_identities_apart() {
        let name = worker_name(&identity(), b"unconfined\0");
        assert_eq!(user_of(&name), Some(1000));
        let other_order = Identity { groups: vec![100, 4, 27], ..identity() };
        assert_eq!(worker_name(&other_order, b"unconfined\0"), name);
        let others = [
            (Identity { uid: 1001, ..identity() }, &b"unconfined\0"[..]),
            (Identity { gid: 4, ..identity() }, b"unconfined\0"),
            (Identity { groups: vec![4, 100], ..identity() }, b"unconfined\0"),
            (Identity { groups: vec![4, 27, 100, 101], ..identity() }, b"unconfined\0"),
            (Identity { confinement: Confinement(Confinement::MOUNT), ..identity() }, b"unconfined\0"),
            (identity(), b"firefox\0"),
            (identity(), b""),
        ];
        for (identity, label) in others {
            assert_ne!(worker_name(&identity, label), name, "{identity:?} {label:?}");
        }
        // A group does not pass for a part of the label, nor the other way round.
        let with = Identity { groups: vec![4, 27], ..identity() };
        assert_ne!(worker_name(&with, &100u32.to_le_bytes()), worker_name(&identity(), b""));
    }

    #[test]
    fn names_of_workers_are_recognised() {
        assert_eq!(user_of("w-0-0123456789abcdef0123456789abcdef"), Some(0));
        for wrong in [
            "",
            "w-",
            "w-1",
            "w-x-0123456789abcdef0123456789abcdef",
            "w-1-0123",
            "v-1-0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(user_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_the_bus_does_not_say_is_refused() {
        let text = |result: Result<_, Unknown>| match result {
            Err(Unknown::Refused(refusal)) => {
                assert_eq!(refusal.name, "PermissionDenied");
                refusal.text
            }
            other => panic!("{other:?}"),
        };
        assert!(text(check(None, Some(vec![1]))).contains("which user"));
        assert!(text(check(Some(1), None)).contains("which groups"));
        assert!(text(check(Some(1), Some(vec![]))).contains("groups"));
        assert!(text(check(Some(NOBODY), Some(vec![1]))).contains("65534"));
        assert!(text(check(Some(u32::MAX), Some(vec![1]))).contains("nobody"));
        assert!(text(check(Some(1), Some((0..1025).collect()))).contains("1024"));
        assert_eq!(check(Some(1), Some(vec![7, 3, 7])), Ok((1, vec![3, 7])));
    }

    #[test]
    fn the_usual_group_is_one_of_the_callers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:/bin/sh\n";
        assert_eq!(usual_group(1000, &[4, 100, 1000], passwd), 100);
        assert_eq!(usual_group(1000, &[4, 1000], passwd), 1000);
        assert_eq!(usual_group(1000, &[4, 27], passwd), 4);
        assert_eq!(usual_group(1001, &[4, 1001], passwd), 1001);
    }
}
