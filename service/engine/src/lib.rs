//! The engine: what is created, attached and relayed, by whom, for how long, and what happens.
//!
//! It sits between the kernel layer, whose operations never wait, and the bus layer, which only
//! translates. Here is all that takes time or has a limit: waits and their cancellation
//! ([`wait`]), lifetimes, quotas ([`limits`]), events with their numbers ([`events`]), relays
//! ([`relay`]). It knows tokio, and no bus.

pub mod client;
mod confinement;
pub mod declared;
pub mod endpoint;
pub mod engine;
pub mod events;
pub mod filesystem;
pub mod flag;
pub mod futex;
pub mod herald;
mod kept;
pub mod lease;
pub mod lifetime;
pub mod limits;
pub mod memory;
pub mod messages;
mod news;
pub mod options;
pub mod places;
mod process;
pub mod published;
pub mod pump;
pub mod range_watch;
pub mod relay;
pub mod since;
pub mod wait;
pub mod words;

pub use client::{Call, Client};
pub use endpoint::Endpoint;
pub use engine::{Engine, Object};
pub use limits::Limits;
pub use relay::Relay;
