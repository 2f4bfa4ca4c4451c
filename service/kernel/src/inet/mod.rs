//! What network sockets need, beside their row in `mechanisms/inet.rs`.

pub mod address;
pub mod admission;
pub mod bind;
pub mod connect;
pub mod diag;
pub mod messages;
pub mod options;
pub mod state;
pub mod tcp;
pub mod udp;
