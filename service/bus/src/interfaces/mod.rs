//! One file an interface. Each method does the same in the same order: parse, check, act, reply;
//! what the act changes is announced by `announcer.rs`, after the reply.

use std::sync::Arc;

use ipc_engine::Endpoint;

use crate::face::Face;

pub mod endpoint;
pub mod filesystem;
pub mod futex;
pub mod introspectable;
pub mod listener;
pub mod mailbox;
pub mod manager;
pub mod mechanism;
pub mod memory;
pub mod messages;
pub mod netlink;
pub mod object_manager;
pub mod process;
pub mod relay;
pub mod semaphore;
pub mod stream;
pub mod watch;

/// Defines the struct behind an endpoint's interface.
macro_rules! served {
    ($name:ident) => {
        pub struct $name {
            face: std::sync::Arc<crate::face::Face>,
            endpoint: std::sync::Arc<ipc_engine::Endpoint>,
        }

        impl crate::interfaces::Served for $name {
            fn new(
                face: &std::sync::Arc<crate::face::Face>,
                endpoint: &std::sync::Arc<ipc_engine::Endpoint>,
            ) -> Self {
                Self { face: face.clone(), endpoint: endpoint.clone() }
            }
        }
    };
}
pub(crate) use served;

/// An interface of an endpoint.
pub trait Served: zbus::object_server::Interface + Sized {
    fn new(face: &Arc<Face>, endpoint: &Arc<Endpoint>) -> Self;
}
