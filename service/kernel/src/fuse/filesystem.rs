//! A mount as an endpoint: created, published into, and taken away again.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use rustix::io::Errno;

use crate::{
    Address, Attempt, Dict, Endpoint, Error, Kind, Opening, Parameters, Result, dict,
    error::Attempted,
    fuse::{
        announce::{self, Gone},
        file::{File, Published, Quota, lock},
        list,
        mount::{self, Mount},
        opened::Shared,
        requests::Upcall,
        serve::Server,
        tree::{Removed, Tree},
    },
    shape::{self, Shape},
};

pub struct Mounted {
    mount: Mount,
    shared: Arc<Shared>,
    notifier: Notifier,
    mode: u32,
    tree: bool,
    unmounted: OnceLock<()>,
}

pub fn create(parameters: &Parameters) -> Result<Opening> {
    let path = parameters.path("path")?;
    let (mode, size, files) = (parameters.mode(), parameters.size("size"), parameters.u32("files"));
    if mode & !0o777 != 0 {
        return Err(Error::invalid(format!(
            "the key \"mode\" must be permission bits without set-id bits, not {mode:04o}: the mount is nosuid"
        )));
    }
    let deadline = Duration::from_millis(u64::from(parameters.u32("deadline").unwrap_or(DEADLINE)));
    let tree = Tree::new(mode, files.unwrap_or(FILES));
    let shared = Arc::new(Shared::new(tree, Quota::new(size.unwrap_or(SIZE)), deadline));
    let (device, mount) = mount::mount(path.as_deref())?;
    if let Some(point) = mount.point() {
        let place = announce::Place {
            point: point.to_owned(),
            device: mount.device(),
            showing: announce::Showing::default(),
        };
        // The first time.
        _ = shared.place.set(Arc::new(place));
    }
    let attempt = || format!("serve {}", path.as_deref().unwrap_or(Path::new("a mount")).display());
    let session = Session::from_fd(Server(shared.clone()), device, SessionACL::Owner, Config::default())
        .attempted(attempt)?;
    let notifier = session.notifier();
    let ended = shared.clone();
    // fuser's own thread for the requests is beside it.
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || {
            let reason = match session.run() {
                Ok(()) => "it was unmounted".to_owned(),
                Err(error) => format!("its requests could not be served any more: {error}"),
            };
            ended.queue.end(&reason);
        })
        .attempted(attempt)?;
    Ok(Mounted { mount, shared, notifier, mode, tree: parameters.bool("tree"), unmounted: OnceLock::new() }
        .into())
}

/// Milliseconds that a request may wait for what somebody else has.
pub const DEADLINE: u32 = 5000;

/// Bytes that the files may hold.
pub const SIZE: u64 = 16 << 20;

pub const FILES: u32 = 1024;

impl Mounted {
    /// Names that are gone, for the kernel and for whoever watches.
    fn removed(&self, removed: &[Removed]) {
        for Removed { parent, ino, name, path, is_directory } in removed {
            // It may never have heard of it.
            let _ = self.notifier.delete(INodeNo(*parent), INodeNo(*ino), name.as_ref());
            if let Some(place) = self.shared.place.get() {
                announce::gone(place, path, Gone { ino: *ino, is_directory: *is_directory });
            }
        }
    }
}

impl Endpoint for Mounted {
    fn address(&self) -> Address {
        list::address(self.mount.point())
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Filesystem]
    }

    fn inspect(&self) -> Result<Dict> {
        let tree = lock(&self.shared.tree);
        let rows = tree.all().into_iter().map(|(name, file)| {
            let meta = *file.meta();
            dict! { "name" => name, "kind" => file.kind, "size" => file.size(), "mode" => u32::from(meta.mode) }
        });
        let published: Vec<Dict> = rows.collect();
        let (major, minor) = self.mount.device();
        Ok(dict! {
            "published" => published,
            "files" => tree.files(),
            "max-files" => tree.most_files(),
            "used" => self.shared.quota.used(),
            "size" => self.shared.quota.size,
            "opened" => self.shared.opened() as u64,
            "mode" => self.mode,
            "device" => format!("{major}:{minor}"),
            "state" => if self.shared.queue.ended() { "unmounted" } else { "served" },
        })
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        self.mount.open()
    }

    fn set_permissions(&self, _permissions: crate::mechanism::Permissions) -> Result<()> {
        Err(Error::not_supported("each file has its own permissions: chmod(1) it, or give mode to Create"))
    }

    /// Unmounts. Nothing of the mount point itself is removed.
    fn remove(&self) -> Result<()> {
        if self.unmounted.set(()).is_err() {
            return Err(Error::new(
                Kind::Gone,
                format!("{} was unmounted already", shape::Filesystem::mount_point(self).display()),
            ));
        }
        // Asked by the first one only: another one would see what the first one has ended, and keep it from detaching.
        if self.shared.queue.ended() {
            self.mount.has_gone();
        }
        // First: whoever unmounts may have to ask the file system, whose thread must not wait for anybody then.
        self.shared.queue.end("it was unmounted");
        self.mount.detach()
    }

    fn remove_by_default(&self) -> bool {
        true
    }

    /// For fusermount3.
    fn removal_may_wait(&self) -> bool {
        true
    }

    fn filesystem(&self) -> Option<&dyn shape::Filesystem> {
        Some(self)
    }
}

impl shape::Filesystem for Mounted {
    fn mount_point(&self) -> &Path {
        self.mount.point().unwrap_or(Path::new(""))
    }

    fn deadline(&self) -> Duration {
        self.shared.deadline
    }

    fn has_tree(&self) -> bool {
        self.tree
    }

    fn publish(&self, name: &str, published: Published) -> Result<Arc<File>> {
        let no_room = |errno: Errno| match errno {
            Errno::NOSPC => Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot publish {name:?}: the files of the mount hold {} of {} bytes that they may (size); \
                     Unpublish some, or give size=N to Create",
                    self.shared.quota.used(),
                    self.shared.quota.size
                ),
            ),
            errno => Error::from_errno(errno, format!("publish {name:?}")),
        };
        let known = lock(&self.shared.tree).file(name);
        if let (Some(file), Published::Held(data)) = (known, &published)
            && file.replace(data).map_err(no_room)?
        {
            // Pages of it may be mapped. The kernel may not know it, or be gone.
            let _ = self.notifier.inval_inode(INodeNo(file.ino), 0, 0);
            file.show();
            return Ok(file);
        }
        let changes_are_shown = !matches!(published, Published::Log { shown: false });
        let quota = self.shared.quota.clone();
        let mut tree = lock(&self.shared.tree);
        let known = tree.known(name);
        let file = tree.add(name, |ino| File::new(ino, self.mode, published, quota).map_err(no_room))?;
        drop(tree);
        if let Some(place) = self.shared.place.get() {
            if changes_are_shown {
                file.shown_at(place.clone(), name);
            }
            announce::new(place, name, known);
        }
        Ok(file)
    }

    fn unpublish(&self, name: &str) -> Result<()> {
        let removed = lock(&self.shared.tree).remove(name)?;
        self.removed(&removed);
        Ok(())
    }

    fn withdraw(&self, name: &str, file: &Arc<File>) {
        let mut tree = lock(&self.shared.tree);
        if tree.file(name).is_some_and(|known| Arc::ptr_eq(&known, file))
            && let Ok(removed) = tree.remove(name)
        {
            drop(tree);
            self.removed(&removed);
        }
    }

    fn next(&self) -> Result<Attempt<Vec<Upcall>>> {
        self.shared.queue.take()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.shared.queue.ended() && self.unmounted.get().is_none() {
            // By somebody else: what is mounted there now is not ours.
            self.mount.has_gone();
        }
        self.shared.queue.end("it was unmounted");
    }
}
