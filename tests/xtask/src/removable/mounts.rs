//! The checks of FUSE mounts that can be taken out, in the words of [`table`](super::table).

use super::table::{
    Check,
    Test::{Adversary, Spawner},
    check, edit,
};

const MOUNT: &str = "service/kernel/src/fuse/mount.rs";
const SPAWNER: &str = "service/spawner/src/spawner.rs";
const MOUNTER: &str = "service/spawner/src/mounter.rs";

const OWNER: super::Test = Adversary("mounts", "c14_a_mount_is_for_its_owner_only");
const POINT: super::Test = Adversary("mounts", "c14_a_mount_point_is_the_callers_and_empty");
const LIMITS: super::Test = Adversary("mounts", "d13_mounts_and_what_they_hold_are_limited");
const OPTIONS: super::Test = Adversary("mounts", "c14_hostile_options_on_the_system_bus");
const NAMESPACE: super::Test = Spawner("a_mounter_is_its_user_in_a_namespace_of_his");
const SHORT: super::Test = Spawner("a_mounter_does_not_stay");

pub const CHECKS: &[Check] = &[
    check(
        "a mount is for its owner only",
        OWNER,
        &[edit(
            MOUNT,
            r#"fsconfig_set_flag(&context, "default_permissions")?;"#,
            r#"fsconfig_set_flag(&context, "default_permissions")?; fsconfig_set_flag(&context, "allow_other")?;"#,
        )],
    ),
    check(
        "no set-id program works in a mount",
        OWNER,
        &[edit(
            MOUNT,
            "MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV",
            "MountAttrFlags::MOUNT_ATTR_NODEV",
        )],
    ),
    check(
        "no device works in a mount",
        OWNER,
        &[edit(
            MOUNT,
            "MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV",
            "MountAttrFlags::MOUNT_ATTR_NOSUID",
        )],
    ),
    check(
        "a mount point is the caller's",
        POINT,
        &[edit(MOUNT, "if found.stx_uid != caller {", "if false {")],
    ),
    check(
        "a mount point is empty",
        POINT,
        &[edit(MOUNT, "match strange {", "match strange.filter(|_| false) {")],
    ),
    check(
        "a published file answers in time",
        Adversary("mounts", "c6_a_file_that_has_nothing_answers_in_time"),
        &[edit(
            "service/engine/src/published/mod.rs",
            "Patience::Until(self.end, self.deadline)",
            "Patience::Until(self.end + Duration::from_secs(3600), self.deadline)",
        )],
    ),
    check(
        "a caller has few mounts",
        LIMITS,
        &[edit("service/engine/src/places.rs", "mounts.take(self.limits.mounts,", "mounts.take(u32::MAX,")],
    ),
    check(
        "a mount holds few bytes",
        LIMITS,
        &[edit(
            "service/kernel/src/fuse/file.rs",
            "(after <= before || used <= self.size)",
            "(after <= before || used <= u64::MAX)",
        )],
    ),
    check(
        "a mount has few files",
        LIMITS,
        &[edit("service/kernel/src/fuse/tree.rs", "if self.files >= self.most_files {", "if false {")],
    ),
    check(
        "published files have no set-id bits",
        OPTIONS,
        &[edit("service/kernel/src/fuse/filesystem.rs", "if mode & !0o777 != 0 {", "if false {")],
    ),
    check(
        "who is confined gets no mount",
        OPTIONS,
        &[edit("service/kernel/src/mechanisms/fuse.rs", "anonymous: |_| false,", "anonymous: |_| true,")],
    ),
    check(
        "no mounter is started for the confined",
        Spawner("a_mounter_is_not_for_everybody"),
        &[edit(SPAWNER, " || !identity.confinement.is_none()", "")],
    ),
    check(
        "a worker has few mounts made",
        Adversary("mounts", "c14_a_worker_that_wants_mounts"),
        &[edit(
            "service/front/src/mounts.rs",
            "lock(&router.mounts).start(self.user(), &router.limits, Instant::now())?;",
            "",
        )],
    ),
    check(
        "a worker has one mounter at a time",
        SHORT,
        &[edit(SPAWNER, "worker.until.is_some() && worker.name == name", "worker.until.is_none() && false")],
    ),
    check(
        "a mounter that stays is killed",
        SHORT,
        &[edit(
            SPAWNER,
            "mounter.until.is_some_and(|until| until <= now)",
            "mounter.until.is_some_and(|_| false)",
        )],
    ),
    check(
        "a mounter may mount and nothing else",
        NAMESPACE,
        &[edit(MOUNTER, "set_capabilities(None, sets)", "Ok::<(), Errno>(())")],
    ),
    check(
        "a mounter opens no file as root",
        NAMESPACE,
        &[edit(MOUNTER, "set_file_user(identity.uid)?;", "let _ = set_file_user;")],
    ),
    check(
        "a mounter's sandbox is a smaller one",
        NAMESPACE,
        &[edit(
            "service/spawner/src/sandbox/mod.rs",
            "Self::Mounter => &calls::MOUNTER,",
            "Self::Mounter => &calls::WORKER,",
        )],
    ),
];
