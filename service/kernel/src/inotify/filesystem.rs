//! Which file systems tell inotify all that happens on them.
//!
//! What other machines, a server or the kernel itself change is not seen there. A watch that would
//! miss most of what happens is refused, with what helps: looking again and again (`poll-ms`).

use crate::{Error, Fd, Result, proc};

/// Control groups are not among them: making and removing groups is seen, and the files that notify say so
/// by MODIFY (cgroups(7)).
const INCOMPLETE: &str = "9p afs autofs binfmt_misc bpf ceph cifs coda configfs debugfs devpts efivarfs fuse fuseblk \
                          gfs2 lustre ncpfs nfs nfs4 ocfs2 orangefs proc pstore resctrl rpc_pipefs securityfs selinuxfs \
                          smb3 smbfs sysfs tracefs unknown vboxsf virtiofs";

/// Where a watched inode is.
#[derive(Debug, Clone)]
pub struct Filesystem {
    /// Name of its type, as in /proc/self/mountinfo.
    pub kind: String,
    /// Whether all that happens there is seen.
    pub complete: bool,
}

impl Filesystem {
    pub fn of(fd: &Fd) -> Self {
        let kind = proc::filesystem(fd);
        let complete =
            !INCOMPLETE.split(' ').any(|incomplete| incomplete == kind) && !kind.starts_with("fuse.");
        Self { kind, complete }
    }

    /// Err if the changes there are not told, unless the caller says that a part of them is enough.
    pub fn demand_complete(&self, attempt: &str, a_part_is_enough: bool) -> Result<()> {
        if self.complete || a_part_is_enough {
            return Ok(());
        }
        Err(Error::not_supported(format!(
            "cannot {attempt}: it is on {}, where inotify does not see what a server, other machines or the kernel \
             change; give poll-ms=1000 to have it looked at every second instead, or partial=true if what local \
             processes change is enough",
            self.kind
        )))
    }
}
