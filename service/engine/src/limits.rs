//! The limits of the service: one table that is the source of the configuration file's keys, of
//! the property `Limits` and of the reference page. Every refusal names the key and the value.

use ipc_kernel::{Dict, Error, Kind};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Unexpected},
};

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $field:ident ($key:literal) = $default:literal, $least:literal at most $max:literal;)*) => {
        /// The limits in force.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits {
            $($(#[doc = $doc])+ #[serde(rename = $key, deserialize_with = $least)] pub $field: u32,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Limits {
            /// Key, meaning, default and hard maximum of each.
            pub const TABLE: &[(&str, &str, u32, u32)] =
                &[$(($key, concat!($($doc),+), $default, $max)),*];

            /// The limits as `Limits` shows them.
            pub fn to_dict(&self) -> Dict {
                let mut dict = Dict::new();
                $(dict.insert($key.to_owned(), self.$field.into());)*
                dict
            }

            /// The first limit that is set beyond its hard maximum: key, value, maximum.
            pub fn beyond_maximum(&self) -> Option<(&'static str, u32, u32)> {
                $(if self.$field > $max {
                    return Some(($key, self.$field, $max));
                })*
                None
            }
        }
    };
}

limits! {
    /// Calls in flight of one connection.
    calls_per_connection("calls-per-connection") = 16, "positive" at most 64;
    /// Calls in flight in all.
    calls("calls") = 64, "positive" at most 256;
    /// Waits at once: calls that did not complete at once, and leases being waited for.
    waits("waits") = 32, "positive" at most 128;
    /// Endpoints, without watches.
    endpoints("endpoints") = 256, "any" at most 4096;
    /// Relays.
    relays("relays") = 64, "any" at most 1024;
    /// inotify watches.
    watches("watches") = 1024, "any" at most 16384;
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
    /// Events that are kept of each endpoint, for Since().
    events_kept("events-kept") = 1024, "positive" at most 16384;
    /// Milliseconds that a call waits that gives no timeout.
    default_wait_ms("default-wait-ms") = 20000, "positive" at most 300000;
    /// Milliseconds that a call may wait.
    max_wait_ms("max-wait-ms") = 300000, "positive" at most 3600000;
}

/// How a limit is read of which 0 means that nothing of the kind is allowed.
fn any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    u32::deserialize(deserializer)
}

/// How a limit is read that the service cannot work with at 0.
fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match any(deserializer)? {
        0 => Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"at least 1")),
        value => Ok(value),
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
