//! The limits of the service: one table that is the source of the configuration file's keys, of
//! the property `Limits` and of the reference page. Every refusal names the key and the value.

use ipc_kernel::{Dict, Error, Kind};
use ipc_limits::{any, limits, positive};

limits! {
    /// Calls in flight of one connection.
    calls_per_connection("calls-per-connection") = 16, "positive" at most 16384;
    /// Calls in flight in all.
    calls("calls") = 64, "positive" at most 16384;
    /// Waits at once: calls that did not complete at once, and leases being waited for.
    waits("waits") = 32, "positive" at most 16384;
    /// Endpoints, without watches.
    endpoints("endpoints") = 256, "any" at most 4096;
    /// Relays.
    relays("relays") = 64, "any" at most 1024;
    /// inotify watches (each directory of a tree is one), and watches on ranges of memory.
    watches("watches") = 1024, "any" at most 16384;
    /// Mailboxes for signals, each of which is a process; they count as endpoints, too.
    mailboxes("mailboxes") = 32, "any" at most 256;
    /// FUSE mounts, each of which has two threads; they count as endpoints, too.
    mounts("mounts") = 8, "any" at most 64;
    /// Subscriptions, of endpoints and of the manager.
    subscriptions("subscriptions") = 128, "any" at most 512;
    /// Leases of semaphores that are held.
    leases("leases") = 128, "any" at most 1024;
    /// Private connections from Connect().
    connections("connections") = 16, "any" at most 64;
    /// Seconds without calls, endpoints, relays, subscriptions and private connections after which a worker on the system bus offers to end.
    idle_s("idle-s") = 30, "positive" at most 86400;
    /// Bytes of payload of one call, reply or message.
    payload("payload") = 1048576, "positive" at most 4194304;
    /// Bytes of one reply to List(); on the system bus no more than payload, but through Connect().
    list("list") = 25165824, "positive" at most 33554432;
    /// Bytes of payload of one signal.
    signal_payload("signal-payload") = 65536, "positive" at most 65536;
    /// File descriptors of one reply.
    fds_per_reply("fds-per-reply") = 4, "positive" at most 8;
    /// File descriptors of one call.
    fds_per_call("fds-per-call") = 2, "any" at most 4;
    /// Bytes that one direction of a relay may hold in the service's memory.
    relay_buffer("relay-buffer") = 262144, "positive" at most 1048576;
    /// Events that are kept of each endpoint and of netlink, for Since().
    events_kept("events-kept") = 1024, "positive" at most 16384;
    /// Milliseconds that a call waits that gives no timeout.
    default_wait_ms("default-wait-ms") = 20000, "positive" at most 300000;
    /// Milliseconds that a call may wait.
    max_wait_ms("max-wait-ms") = 300000, "positive" at most 3600000;
}

impl Limits {
    /// The limits as the property `Limits` shows them.
    pub fn to_dict(&self) -> Dict {
        self.values().map(|(key, value)| (key.to_owned(), value.into())).collect()
    }
}

/// The error for a limit that is reached.
pub fn exceeded(what: &str, key: &str, value: u32) -> Error {
    Error::new(
        Kind::LimitExceeded,
        format!(
            "{what}: the limit {key} is {value}; close what is not needed, or raise {key} in the service's configuration file"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        ipc_limits::check(Limits::TABLE);
        assert_eq!(Limits::default().beyond_maximum(), None);
    }
}
