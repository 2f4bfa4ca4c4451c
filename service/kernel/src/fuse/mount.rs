//! Mounting and unmounting: directly with the right to (CAP_SYS_ADMIN), else through fusermount3(1).
//!
//! Always nosuid and nodev, never allow_other: nobody but the caller, not even root, may look in. The mount point is
//! pinned by a descriptor before it is judged, and a direct mount goes onto that very directory. A mount carries the
//! number and start time of the process that serves it as its source, so that what a process left behind that was
//! killed is known for it.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, PidfdFlags},
};

use crate::{
    Attempt, Error, Fd, Kind, Result,
    error::Attempted,
    fd,
    fuse::{detached, file::lock, list},
    socket_messages::{self, Taking},
};

/// The subtype: /proc/self/mountinfo says `fuse.ipcd`.
pub const SUBTYPE: &str = "ipcd";

/// The program that mounts for users who may not.
pub const HELPER: &str = "fusermount3";

const DEVICE: &str = "/dev/fuse";

/// Where the kernel lets a mount's owner end it, if it is mounted (fuse(4), "Control filesystem").
const CONTROL: &str = "/sys/fs/fuse/connections";

/// A mount of this process.
#[derive(Debug)]
pub struct Mount {
    place: Place,
    /// Its device number, major and minor.
    device: (u32, u32),
    detached: AtomicBool,
}

#[derive(Debug)]
enum Place {
    On(PathBuf),
    /// Mounted nowhere: it is there for as long as this, or a duplicate of it, is open. None: it was detached.
    Nowhere(Mutex<Option<OwnedFd>>),
}

/// Whether this process may mount on a path at all, and what would help.
fn may_mount() -> Result<()> {
    if detached::only() {
        return Err(Error::not_supported(
            "cannot mount on a path: that takes a right that no worker of the system bus has, nor a program that it \
             could ask (no_new_privs); leave path out, and Open gives a mount that you can move there in a mount \
             namespace of yours; or run ipcd on your session bus (ipcd --bus session), where a mount is yours",
        ));
    }
    // Who may not even ask is in a sandbox.
    if rustix::thread::no_new_privs().unwrap_or(true) {
        return Err(Error::not_supported(
            "cannot mount: this process can gain no rights (no_new_privs); start ipcd outside of this sandbox",
        ));
    }
    Ok(())
}

/// Err says what is missing.
pub fn available() -> Result<()> {
    if rustix::fs::stat(DEVICE).is_err() {
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "{DEVICE} is missing; load the module fuse (modprobe fuse), or give the container the device"
            ),
        ));
    }
    Ok(())
}

/// Mounts on an empty directory of the caller's; without a path nowhere. Returns the device that the requests come from.
pub fn mount(path: Option<&Path>) -> Result<(OwnedFd, Mount)> {
    let Some(path) = path else { return nowhere() };
    may_mount()?;
    list::detach_stale();
    let attempt = || format!("mount a FUSE file system on {}", path.display());
    let directory =
        pin(path).map_err(|error| Error { text: format!("cannot {}: {error}", attempt()), ..error })?;
    let point = PathBuf::from(OsStr::from_bytes(&fd::link(&directory)?));
    let (device, root) = match direct(&directory) {
        Err(Errno::PERM | Errno::ACCESS) => {
            let device = by_helper(&point)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            (device, rustix::fs::open(&point, flags, Mode::empty()).attempted(attempt)?)
        }
        made => made.attempted(attempt)?,
    };
    let found = examined(&root).attempted(attempt)?;
    let number = (found.stx_dev_major, found.stx_dev_minor);
    Ok((device, Mount { place: Place::On(point), device: number, detached: AtomicBool::new(false) }))
}

fn nowhere() -> Result<(OwnedFd, Mount)> {
    let (device, root) = detached::made().ok_or_else(|| {
        Error::invalid("the key \"path\" is missing: an empty directory of the caller's; only the system bus makes mounts without one")
    })??;
    let found = examined(&root).attempted(|| "examine the mount")?;
    let number = (found.stx_dev_major, found.stx_dev_minor);
    detached::entered(number);
    let place = Place::Nowhere(Mutex::new(Some(root)));
    Ok((device, Mount { place, device: number, detached: AtomicBool::new(false) }))
}

/// The directory, held so that it stays the one that was looked at.
fn pin(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOTDIR | Errno::LOOP => Error::invalid("it must be a directory, and no symbolic link"),
        Errno::NOENT => Error::new(Kind::NotFound, "there is no such directory; make it first (mkdir)"),
        errno => Error::from_errno(errno, "open the directory"),
    })?;
    let found = examined(&directory).attempted(|| "examine the directory")?;
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(
            Kind::Exists,
            "something is mounted there already; take another directory, or unmount it first (fusermount3 -u)",
        ));
    }
    let caller = rustix::process::geteuid().as_raw();
    if found.stx_uid != caller {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("it must belong to the caller (uid {caller}), but belongs to uid {}", found.stx_uid),
        ));
    }
    let listed =
        fd::reopen(&directory, OFlags::RDONLY | OFlags::DIRECTORY).attempted(|| "list the directory")?;
    let mut entries = Dir::new(listed).attempted(|| "list the directory")?;
    let strange = entries.find(|entry| {
        entry.as_ref().map_or(true, |entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
    });
    match strange {
        None => Ok(directory),
        Some(_) => Err(Error::new(
            Kind::Busy,
            "it must be empty, as what is in it would be hidden; take a new directory",
        )),
    }
}

/// The new mount API, so that it is mounted on the directory that was pinned, wherever its path leads by now.
fn direct(directory: &OwnedFd) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let root = make(&device, &list::Server::own().to_string())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&root, "", directory, "", flags)?;
    Ok((device, root))
}

/// A mount that is mounted nowhere yet, of what the device will serve. Nobody but this user may use it.
pub fn make(device: &OwnedFd, source: &str) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for (key, value) in [
        ("source", source.to_owned()),
        ("subtype", SUBTYPE.to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", format!("{:o}", FileType::Directory.as_raw_mode())),
        ("user_id", uid.to_string()),
        ("group_id", gid.to_string()),
    ] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// fusermount3(1) mounts, judges the mount point again, and sends the device over a socket, its standard input.
fn by_helper(point: &Path) -> Result<OwnedFd> {
    let attempt = || format!("mount a FUSE file system on {}", point.display());
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .attempted(attempt)?;
    let options =
        format!("nosuid,nodev,default_permissions,subtype={SUBTYPE},fsname={}", list::Server::own());
    let output = Command::new(HELPER)
        .args(["-o", &options, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .output()
        .map_err(no_helper)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("cannot {}: {}", attempt(), said.trim().replace('\n', "; ")),
        ));
    }
    let socket = Fd::from(ours);
    match socket_messages::receive(&socket, Taking::Take, false)? {
        Attempt::Done(mut received) if received.fds.len() == 1 => Ok(received.fds.remove(0)),
        _ => Err(Error::new(Kind::Unavailable, format!("cannot {}: {HELPER} sent no device", attempt()))),
    }
}

fn no_helper(error: std::io::Error) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "{HELPER} cannot be run ({error}), and mounting without it takes CAP_SYS_ADMIN; install the package fuse3"
        ),
    )
}

impl Mount {
    /// Where it is mounted; None: nowhere.
    pub fn point(&self) -> Option<&Path> {
        match &self.place {
            Place::On(point) => Some(point),
            Place::Nowhere(_) => None,
        }
    }

    /// The device number of what is mounted.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// A descriptor of the mounted directory, to open files beneath.
    pub fn open(&self) -> Result<OwnedFd> {
        let attempt = || match self.point() {
            Some(point) => format!("open {}", point.display()),
            None => "open the mount".to_owned(),
        };
        let root = match &self.place {
            Place::On(point) => root_of(point, self.device),
            Place::Nowhere(root) => lock(root).as_ref().and_then(|root| root.try_clone().ok()),
        };
        root.map_or_else(
            || Err(Error::new(Kind::Gone, format!("cannot {}: it is not mounted any more", attempt()))),
            |root| fd::reopen(&root, OFlags::RDONLY | OFlags::DIRECTORY).attempted(attempt),
        )
    }

    /// Takes the mount out of the file system, wherever it is and whoever uses it (MNT_DETACH), and ends what goes on
    /// in it where the kernel's control file system is there to do that. Only the first time.
    pub fn detach(&self) -> Result<()> {
        if self.detached.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut done = Ok(());
        if let Place::Nowhere(root) = &self.place {
            drop(lock(root).take());
            detached::left(self.device);
        }
        for point in list::points(self.device) {
            if let Some(root) = root_of(&point, self.device) {
                done = done.and(unmount(&point, &root));
            }
        }
        // Not there in every container; then its users are answered by a thread until they close their files.
        let _ = std::fs::write(format!("{CONTROL}/{}/abort", self.device.1), "1");
        done
    }

    /// It was unmounted by somebody else.
    pub fn has_gone(&self) {
        self.detached.store(true, Ordering::Release);
    }
}

/// The root of what is mounted on a path, as O_PATH, if it has this device number. It is not kept open, as nobody
/// else could unmount it then.
pub fn root_of(point: &Path, device: (u32, u32)) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(point, flags, Mode::empty()).ok()?;
    let found = examined(&root).ok()?;
    let is = (found.stx_dev_major, found.stx_dev_minor) == device;
    (is && found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)).then_some(root)
}

/// Without asking whoever serves it: he may not answer.
fn examined(fd: &OwnedFd) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(fd, "", flags, StatxFlags::BASIC_STATS)
}

/// By the descriptor, as the path may lead elsewhere by now; else through the helper, which takes a path only.
fn unmount(point: &Path, root: &OwnedFd) -> Result<()> {
    match rustix::mount::unmount(fd::proc_path(root.as_fd()), UnmountFlags::DETACH) {
        // Somebody was faster.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(point),
        Err(errno) => Err(Error::from_errno(errno, format!("unmount {}", point.display()))),
    }
}

/// How long fusermount3 may take to unmount.
const UNMOUNTING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

impl Drop for Mount {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.detach();
    }
}

/// fusermount3 -u -z, which detaches lazily. It asks nobody but the kernel; one that does not end is killed.
fn unmount_by_helper(point: &Path) -> Result<()> {
    let mut command = Command::new(HELPER);
    command.args(["-u", "-z", "--"]).arg(point).stdin(Stdio::null()).stdout(Stdio::null());
    let mut helper = command.stderr(Stdio::piped()).spawn().map_err(no_helper)?;
    let pidfd = rustix::process::pidfd_open(Pid::from_child(&helper), PidfdFlags::empty())
        .attempted(|| "wait for fusermount3")?;
    while let Err(Errno::INTR) = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&UNMOUNTING)) {}
    // One that has ended is not there to be killed.
    let _ = helper.kill();
    let output = helper.wait_with_output().map_err(no_helper)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(
        Kind::Errno(Errno::INVAL),
        format!("cannot unmount {}: {}", point.display(), said.trim().replace('\n', "; ")),
    ))
}

/// Detaches what was left behind with this device number, as far as that can be done.
pub fn detach_left(point: &Path, device: (u32, u32)) {
    if let Some(root) = root_of(point, device) {
        // What cannot be unmounted is still listed, as stale.
        let _ = unmount(point, &root);
    }
}
