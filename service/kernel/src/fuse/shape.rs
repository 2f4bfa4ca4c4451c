//! The shape of a mount.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    Attempt, Result,
    fuse::{
        file::{File, Published},
        requests::Upcall,
    },
};

/// A directory whose files are published.
pub trait Filesystem: Send + Sync {
    /// Empty: it is mounted nowhere.
    fn mount_point(&self) -> &Path;

    /// How long whoever reads or writes a file may wait.
    fn deadline(&self) -> Duration;

    /// Whether all endpoints are to be published in it.
    fn has_tree(&self) -> bool;

    /// Makes a file, and the directories in its name. `Exists` if there is one, except that content replaces content.
    /// Replacing may wait for programs that have the file mapped.
    fn publish(&self, name: &str, published: Published) -> Result<Arc<File>>;

    /// Removes a file, or a directory with all in it. Programs that have it open keep what they have.
    fn unpublish(&self, name: &str) -> Result<()>;

    /// Removes this very file, if it is still there.
    fn withdraw(&self, name: &str, file: &Arc<File>);

    /// What has come since the last call, at least one; else what to wait for. An error says why no more will come.
    fn next(&self) -> Result<Attempt<Vec<Upcall>>>;
}
