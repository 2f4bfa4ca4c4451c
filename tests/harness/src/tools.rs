//! Small things that every test needs: unique names, temporary directories, how long to wait, and the other
//! programs of the machine.

use std::env;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;

/// Something that this machine lacks, and why: the reason of a skip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// How long anything here waits before it gives up: 30 seconds, or `IPC_PATIENCE` seconds for a slow machine.
pub fn patience() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let seconds = env::var("IPC_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
        Duration::from_secs(seconds)
    })
}

/// A name that nothing else on the machine uses: prefix, process, counter and a random part, of the characters
/// `[a-z0-9-]` after the prefix. Fit for files, abstract sockets, POSIX names.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The standard library seeds every RandomState differently, and randomly once per thread.
    let random = RandomState::new().build_hasher().finish() as u32;
    format!("{prefix}-{}-{count}-{random:08x}", std::process::id())
}

/// A directory of its own, removed on drop, which other users may look into (mode 0755). Its path is short enough
/// for sockets (108 bytes) as long as `TMPDIR` is.
pub fn temp_dir() -> TempDir {
    let dir =
        tempfile::Builder::new().prefix("ipc-").tempdir().expect("no temporary directory could be made");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
        .expect("the mode of an own directory could not be set");
    dir
}

/// Where `PATH` has this program.
fn find_tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Whether `PATH` has this program.
pub fn has_tool(name: &str) -> bool {
    find_tool(name).is_some()
}

/// The same as a reason to skip.
pub fn need_tool(name: &str) -> Result<(), Unavailable> {
    match find_tool(name) {
        Some(_) => Ok(()),
        None => Err(Unavailable(format!("{name} is not installed"))),
    }
}

/// The target directory of the build that this test program belongs to: cargo marks it.
pub(crate) fn target_directory() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).map(PathBuf::from)
}

/// `socat ARGUMENTS`, with its input and output in the hands of the test.
pub fn socat(arguments: &[&str]) -> Process {
    Process::spawn_group(Command::new("socat").args(arguments))
}

/// `python3 -c SCRIPT ARGUMENTS` (from `sys.argv[1]` on), unbuffered; its standard input is free.
pub fn python(script: &str, arguments: &[&str]) -> Process {
    Process::spawn_group(Command::new("python3").args(["-u", "-c", script]).args(arguments))
}

/// `sh -ec SCRIPT`: the shell ends at the first command that fails.
pub fn sh(script: &str) -> Process {
    Process::spawn_group(Command::new("sh").args(["-ec", script]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_names_differ() {
        let names: std::collections::HashSet<_> = (0..1000).map(|_| unique("x")).collect();
        assert_eq!(names.len(), 1000);
    }

    #[test]
    fn tools_are_found_or_named() {
        assert!(has_tool("sh"));
        assert_eq!(need_tool("no-such-tool"), Err(Unavailable("no-such-tool is not installed".into())));
    }
}
