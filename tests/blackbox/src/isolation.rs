//! A stage in a network namespace of its own: whatever a test does to interfaces there, nobody else sees,
//! and nobody else's changes are seen.

use std::fs::File;
use std::os::fd::AsFd;

use ipc_harness::{Unavailable, need_tool, or_skip, sh};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Stage, Way};

/// Runs a test on a thread of its own in a new network namespace, where `lo` is up. Everything that the thread
/// starts is in there too: the bus, the service, tools, clients.
pub fn isolated<T: Future<Output = ()>>(way: Way, config: &'static str, test: fn(Stage) -> T) {
    let inside = || {
        or_skip!(enter());
        let stage = or_skip!(Stage::with_config(way, config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(test(stage));
    };
    std::thread::scope(|scope| {
        // Named as the test's own thread is, after which skips are named.
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, inside);
        if let Err(panic) = thread.expect("a thread").join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn enter() -> Result<(), Unavailable> {
    for tool in ["unshare", "ip"] {
        need_tool(tool)?;
    }
    // The shell holds the namespace until this thread is in it.
    let mut holder = sh("exec unshare --net sh -c 'ip link set lo up && echo up; read end'");
    if holder.stdout().wait_for(|line| line == "up").is_err() {
        return Err(Unavailable("no network namespace can be made here; run the tests as root".into()));
    }
    let namespace =
        File::open(format!("/proc/{}/ns/net", holder.pid())).expect("the namespace of an own child");
    let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    entered.expect("entering the namespace of an own child");
    holder.close_stdin();
    Ok(())
}
