//! Published files before programs that know nothing of them: coreutils, editors, rsync, Python, and those that are
//! killed. The bus does not matter to any of them: the service's own private one will do.

mod contents;
mod coreutils;
mod edges;
mod editors;
mod kills;
mod readers;
mod refusals;
mod users;

use ipc_blackbox::{Mount, Stage, Way, mounted};
use ipc_harness::Unavailable;

/// A mount of a service on its own private bus; the stage lives as long as the service.
async fn live(settings: &str) -> Result<(Stage, Mount), Unavailable> {
    live_with("", settings).await
}

async fn live_with(config: &str, settings: &str) -> Result<(Stage, Mount), Unavailable> {
    let stage = Stage::with_config(Way::Private, config)?;
    let mount = mounted(&stage, settings).await?;
    Ok((stage, mount))
}

/// That a script fails in the mounted directory, and says why.
#[track_caller]
fn refused(mount: &Mount, script: &str, why: &str) {
    let finished = mount.script(script).finish();
    assert!(!finished.status.success(), "{script} must fail, but said {}", finished.text());
    assert!(finished.stderr.contains(why), "{script} must say {why:?}: {}", finished.stderr);
}
