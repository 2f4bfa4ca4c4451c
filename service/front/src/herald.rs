//! The herald, as the front sees it: a worker that is nobody's. The spawner starts it as the front's own
//! user; it serves one interface to everybody, and what it says without being asked is for everybody.
//!
//! It is there as long as the front is, and ends with it: a new front starts another one, whose numbers
//! begin anew. Nothing is lost by that but the wishes to hear of processes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ipc_spawner::protocol::{HERALD, Request};
use tokio::{sync::watch, time::timeout};
use zbus::message::Message;

use crate::{life::End, router::Router, worker::Worker};

/// What it serves, and where.
pub const PATH: &str = "/org/example/IPC/netlink";
pub const INTERFACE: &str = "org.example.IPC.Netlink";

/// The first and the longest pause before it is started again after it could not be.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

pub fn new() -> Arc<Worker> {
    Worker::new(HERALD.to_owned(), rustix::process::getuid().as_raw())
}

/// Whether this call is for it, whoever calls.
pub fn is_for(call: &Message) -> bool {
    let header = call.header();
    header.interface().is_some_and(|interface| *interface == INTERFACE)
        && header.path().is_some_and(|path| *path == PATH)
}

/// Until the service ends, or the bus does.
pub async fn keep(herald: Arc<Worker>, router: Arc<Router>) {
    // One that a former front left behind has seen the end of its control socket, unless it hangs.
    let _none = router.spawner.ask(Request::Kill { name: HERALD.to_owned() }, None).await;
    herald.state().awake = true;
    herald.run(router, None).await;
}

/// Between one life and the next.
pub struct Rest {
    pause: Duration,
}

impl Rest {
    pub fn new() -> Self {
        Self { pause: PAUSES.0 }
    }

    /// Waits until it is worth to start it again, or somebody calls. Whether the service has ended.
    pub async fn is_over(&mut self, herald: &Worker, end: &End, told: &mut watch::Receiver<bool>) -> bool {
        if !matches!(end, End::NotStarted(_) | End::Unready(_)) {
            self.pause = PAUSES.0;
        } else if !herald.state().has_calls() {
            let woken = async {
                tokio::select! {
                    () = herald.news.notified() => {}
                    // Fails only without a router.
                    _ = told.wait_for(|stopping| *stopping) => {}
                }
            };
            // Whether or not somebody called meanwhile.
            let _woken = timeout(self.pause, woken).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
        *told.borrow()
    }
}

/// How many signals of the herald the bus is given: so many a second, and as many at once.
pub struct Rate {
    a_second: u32,
    /// When those so far would have been over, had they come one by one.
    over: Instant,
}

impl Rate {
    pub fn new(a_second: u32) -> Self {
        Self { a_second, over: Instant::now() }
    }

    /// Counts one, unless there are too many.
    pub fn admits(&mut self, now: Instant) -> bool {
        let over = self.over.max(now);
        let Some(each) = Duration::from_secs(1).checked_div(self.a_second) else { return false };
        let fits = over + each <= now + Duration::from_secs(1);
        if fits {
            self.over = over + each;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_interface_on_its_node_is_for_it() {
        let call = |path: &str, interface: Option<&str>| {
            let call = Message::method_call(path, "Links");
            let call = interface.into_iter().fold(call, |call, name| call.interface(name));
            call.build(&()).expect("valid")
        };
        assert!(is_for(&call(PATH, Some(INTERFACE))));
        for (path, interface) in [
            (PATH, None),
            (PATH, Some("org.freedesktop.DBus.Properties")),
            (PATH, Some("org.example.IPC.Mechanism")),
            ("/org/example/IPC/netlink/1", Some(INTERFACE)),
            ("/org/example/IPC", Some(INTERFACE)),
        ] {
            assert!(!is_for(&call(path, interface)), "{path} {interface:?}");
        }
    }

    #[test]
    fn a_second_has_so_many_signals() {
        let mut rate = Rate::new(10);
        let now = Instant::now();
        assert_eq!((0..30).filter(|_| rate.admits(now)).count(), 10);
        assert_eq!((0..30).filter(|_| rate.admits(now + Duration::from_millis(500))).count(), 5);
        assert_eq!((0..30).filter(|_| rate.admits(now + Duration::from_secs(60))).count(), 10);
        assert!(!Rate::new(0).admits(now));
    }
}
