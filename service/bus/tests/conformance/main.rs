//! What every mechanism promises, checked for the one that this layer has: the suites are those of
//! ipc-kernel, file by file, with the fixtures of `dbus` ([`fixtures`]).

#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "the suites are another crate's")]

use std::sync::LazyLock;

use ipc_kernel::Descriptor;
use tokio::runtime::{Builder, Runtime};

#[path = "../../../kernel/tests/conformance/abilities.rs"]
mod abilities;
#[path = "../../../kernel/tests/conformance/driver.rs"]
mod driver;
mod fixtures;
#[path = "../../../kernel/tests/conformance/making.rs"]
#[expect(dead_code, reason = "most of it makes the kernel's objects")]
mod making;
#[path = "../../../kernel/tests/conformance/messages.rs"]
mod messages;
#[path = "../../../kernel/tests/conformance/register.rs"]
mod register;
#[path = "../../../kernel/tests/conformance/row.rs"]
#[expect(dead_code, reason = "what kernel objects have names, and this mechanism has none, is among it")]
mod row;
#[path = "../../../kernel/tests/conformance/suite.rs"]
mod suite;

pub use ipc_bus::MECHANISMS as REGISTER;

/// The kernel's own run over theirs.
pub fn rows() -> impl Iterator<Item = &'static Descriptor> {
    REGISTER.by_name("dbus").into_iter()
}

/// The runtime in which the engine opens endpoints.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

pub fn within<T>(check: impl FnOnce() -> T) -> T {
    let _inside = RUNTIME.enter();
    check()
}
