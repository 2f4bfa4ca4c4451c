//! What the tests of the engine share.

use std::time::Duration;

use ipc_engine::{Call, Engine};
use ipc_kernel::{Error, Kind};

/// Far longer than anything here takes; a test that reaches it has hung.
pub const WATCHDOG: Duration = Duration::from_secs(30);

pub fn call(engine: &Engine, client: &str) -> Call {
    engine.admit(engine.clients.get(client)).unwrap()
}

pub fn kind<T>(result: Result<T, Error>) -> Kind {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(error) => error.kind,
    }
}
