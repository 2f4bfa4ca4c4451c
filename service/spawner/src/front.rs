//! The front as a child of the spawner, where there is no systemd: who it is, and when it is
//! started again.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::WaitIdStatus;

use crate::error::Attempting;
use crate::identity::is_fit;
use crate::process::{Child, log};
use crate::protocol::{Confinement, Identity};
use crate::{Error, GIVE_UP};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A front that ran so long did not fail because it was started.
const HEALTHY: Duration = Duration::from_secs(60);

/// The identity of the front: the user as /etc/passwd has it, with its own group and no other.
pub fn identity_of(user: &str) -> Result<Identity, Error> {
    let users = fs::read_to_string("/etc/passwd").attempting("reading /etc/passwd")?;
    let (uid, gid) = find(&users, user).ok_or_else(|| Error::NoSuchUser(user.to_owned()))?;
    let identity = Identity { uid, gid, groups: vec![gid], confinement: Confinement(0) };
    if uid == 0 || gid == 0 || !is_fit(&identity) {
        return Err(Error::UnfitUser(user.to_owned()));
    }
    Ok(identity)
}

/// passwd(5).
fn find(users: &str, user: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next()? == user;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        named.then_some((uid, gid))
    })
}

/// What there is of the front's process.
pub enum Front {
    /// None of ours: systemd starts it.
    Foreign,
    Running {
        child: Child,
        since: Instant,
        /// How long to wait if it ends now.
        delay: Duration,
    },
    Waiting {
        until: Instant,
        delay: Duration,
    },
}

/// What follows from the end of a front.
pub enum Next {
    Restart(Front),
    /// It was told to end, and so is the spawner.
    End,
    GiveUp,
}

impl Front {
    /// To be started at once.
    pub fn due() -> Self {
        Self::Waiting { until: Instant::now(), delay: FIRST_DELAY }
    }

    pub fn running(child: Child, delay: Duration) -> Self {
        Self::Running { child, since: Instant::now(), delay }
    }

    /// The next attempt after a failed one.
    pub fn retry(delay: Duration) -> Self {
        Self::Waiting { until: Instant::now() + delay, delay: (delay * 2).min(LONGEST_DELAY) }
    }

    /// After the end of a front that ran since `since`.
    pub fn ended(status: &WaitIdStatus, since: Instant, delay: Duration) -> Next {
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => return Next::End,
            (Some(code), _) if code == i32::from(GIVE_UP) => return Next::GiveUp,
            (Some(code), _) => format!("exit status {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let delay = if since.elapsed() >= HEALTHY { FIRST_DELAY } else { delay };
        log(&format!("the front ended with {how}; it is started again in {} ms", delay.as_millis()));
        Next::Restart(Self::retry(delay))
    }

    /// How long until it is to be started.
    pub fn due_in(&self) -> Option<Duration> {
        match self {
            Self::Waiting { until, .. } => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nipcdx:x:7:8::/:\n\nipcd:x:990:991::/:\nipcd:x:0:0::/:\n";
        assert_eq!(find(users, "ipcd"), Some((990, 991)));
        assert_eq!(find(users, "ipc"), None);
        assert_eq!(find("ipcd:x:-1:0::/:", "ipcd"), None);
    }

    #[test]
    fn the_front_is_a_user_of_its_own() {
        assert!(matches!(identity_of("root"), Err(Error::UnfitUser(_))));
        assert!(matches!(identity_of("no such user"), Err(Error::NoSuchUser(_))));
    }

    #[test]
    fn delays_double_up_to_ten_seconds() {
        let mut front = Front::due();
        let mut delays = Vec::new();
        for _ in 0..9 {
            let Front::Waiting { delay, .. } = front else { panic!("it waits") };
            delays.push(delay.as_millis());
            front = Front::retry(delay);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }
}
