//! The limits of the front: one table that is the source of the keys of section `[front]` of the
//! configuration file and of the reference page. Every refusal names the key and the value.
//!
//! They bound what one user can take from the others before a worker of his own is even asked: what
//! is in flight, what is queued, what he has been sent and does not read.

use ipc_limits::{any, limits, positive};

limits! {
    /// Calls in flight of one connection.
    calls_per_connection("calls-per-connection") = 16, "positive" at most 64;
    /// Calls in flight of one user.
    calls_per_user("calls-per-user") = 64, "positive" at most 256;
    /// Calls in flight of all users.
    calls("calls") = 1024, "positive" at most 4096;
    /// Bytes of payload of one call or reply.
    payload("payload") = 1048576, "positive" at most 4194304;
    /// Bytes of one user's calls that wait for his worker to read them.
    queued_bytes_per_user("queued-bytes-per-user") = 16777216, "positive" at most 67108864;
    /// Bytes of all calls that wait for a worker to read them.
    queued_bytes("queued-bytes") = 67108864, "positive" at most 268435456;
    /// File descriptors of one call.
    fds_per_call("fds-per-call") = 2, "any" at most 4;
    /// File descriptors of one reply.
    fds_per_reply("fds-per-reply") = 8, "any" at most 8;
    /// File descriptors of one user that are on their way.
    fds_per_user("fds-per-user") = 64, "any" at most 256;
    /// File descriptors of all users that are on their way.
    fds("fds") = 1024, "any" at most 4096;
    /// Workers in all.
    workers("workers") = 128, "positive" at most 512;
    /// Workers that are started for one user in a second; after a rest, four times as many at once. As many FUSE mounts are made, too.
    worker_starts("worker-starts") = 2, "positive" at most 16;
    /// Workers of one user that may end unexpectedly in a minute, before none is started for 60 s.
    worker_crashes("worker-crashes") = 5, "any" at most 60;
    /// Signals of netlink that go to everybody in a second, and as many at once; what is more is dropped.
    broadcasts("broadcasts") = 2048, "any" at most 65536;
    /// Bytes sent to a connection that it has not read, from which on only the latest signal of each object is kept for it.
    unread_bytes("unread-bytes") = 262144, "positive" at most 16777216;
    /// Bytes sent to a connection that it has not read, from which on its calls are refused.
    unread_bytes_refuse("unread-bytes-refuse") = 4194304, "positive" at most 67108864;
    /// Milliseconds without an answer after which a worker is asked whether it still runs, and after which it is ended if it does not say so.
    stuck_after_ms("stuck-after-ms") = 5000, "positive" at most 60000;
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
