//! Objects with names: as they are made, with new permissions, and gone.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, mounted, mountinfo, options};
use ipc_harness::{or_skip, unique};

use crate::id_of;

/// Where the kernel shows an object to everybody.
enum Outside {
    File(PathBuf),
    /// A line of this table in /proc/sysvipc, sysvipc(7).
    SystemV(&'static str, i64),
    /// Only through a descriptor.
    Queue,
}

struct Object {
    endpoint: String,
    address: String,
    outside: Outside,
}

impl Object {
    /// Its permission bits; none where it is no more.
    async fn mode(&self, client: &Client) -> Option<u32> {
        match &self.outside {
            Outside::File(path) => Some(path.symlink_metadata().ok()?.permissions().mode() & 0o7777),
            Outside::SystemV(table, id) => {
                // key id perms …
                let text = std::fs::read_to_string(format!("/proc/sysvipc/{table}")).expect("sysvipc(7)");
                let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                let line = lines.into_iter().find(|words| words[1] == id.to_string())?;
                // Of a segment the two flags above the bits are shown, too.
                Some(u32::from_str_radix(line[2], 8).expect("octal digits") & 0o777)
            }
            Outside::Queue => {
                let found = client.try_attach(&self.address, Options::new()).await.ok()?;
                let fd = client.open(&found, options([("access", "read".into())])).await.expect("Open");
                client.close(&found).await;
                Some(rustix::fs::fstat(&fd).expect("fstat").st_mode & 0o7777)
            }
        }
    }
}

/// One object of each kind that has permissions or a name of its own, made with permissions that a umask would change.
async fn objects(client: &Client, dir: &std::path::Path) -> Vec<Object> {
    let name = unique("objects");
    let at = |file: &str| (format!("path={}", dir.join(file).display()), Outside::File(dir.join(file)));
    let shared = |file: String| Outside::File(PathBuf::from("/dev/shm").join(file));
    let (fifo, socket, file) = (at("fifo"), at("socket"), at("file"));
    let mut objects = Vec::new();
    for (address, outside) in [
        (format!("fifo:{}", fifo.0), fifo.1),
        (format!("unix:{}", socket.0), socket.1),
        (format!("mmap:{},size=4096", file.0), file.1),
        (format!("posixshm:name=/{name},size=4096"), shared(name.clone())),
        (format!("posixsem:name=/{name}"), shared(format!("sem.{name}"))),
        (format!("posixmq:name=/{name}"), Outside::Queue),
        ("sysvmq:key=random".into(), Outside::SystemV("msg", 0)),
        ("sysvshm:key=random,size=4096".into(), Outside::SystemV("shm", 0)),
        ("sysvsem:key=random".into(), Outside::SystemV("sem", 0)),
    ] {
        let endpoint = client.create(&format!("{address},mode=0622,remove-on-close")).await;
        let outside = match outside {
            // The kernel chooses the id.
            Outside::SystemV(table, _) => Outside::SystemV(table, id_of(client, &endpoint).await),
            known => known,
        };
        objects.push(Object { address: client.address(&endpoint).await, endpoint, outside });
    }
    objects
}

/// Exact when they are made, whatever the umask, and changed by SetPermissions.
///
/// Proves: fifo create, permissions
/// Proves: unix create, permissions
/// Proves: mmap create, permissions
/// Proves: posixshm create, permissions
/// Proves: posixsem create, permissions
/// Proves: posixmq create, attach, permissions
/// Proves: sysvmq create, permissions
/// Proves: sysvshm create, permissions
/// Proves: sysvsem create, permissions
async fn permissions_are_exact_and_change(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    for object in objects(&client, dir.path()).await {
        assert_eq!(object.mode(&client).await, Some(0o622), "{}", object.address);
        let mode = options([("mode", 0o604u32.into())]);
        let changed = client.call::<(), _>(&object.endpoint, "Endpoint", "SetPermissions", &(mode,)).await;
        changed.unwrap_or_else(|error| panic!("SetPermissions of {}: {error}", object.address));
        assert_eq!(object.mode(&client).await, Some(0o604), "{}", object.address);
    }
}

/// Remove takes the kernel's object, or its name, and the endpoint.
///
/// Proves: fifo remove
/// Proves: unix remove
/// Proves: mmap remove
/// Proves: posixshm remove
/// Proves: posixsem remove
/// Proves: posixmq remove
/// Proves: sysvmq remove
/// Proves: sysvshm remove
/// Proves: sysvsem remove
async fn what_is_removed_is_gone(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    for object in objects(&client, dir.path()).await {
        assert!(object.mode(&client).await.is_some(), "{} is there", object.address);
        client.run(&object.endpoint, "Endpoint", "Remove").await;
        assert_eq!(object.mode(&client).await, None, "{} is still there", object.address);
        let missing = error(client.try_attach(&object.address, Options::new()).await);
        assert_error(&missing, "NotFound", &[]);
        let gone = error(client.property(&object.endpoint, "Endpoint", "Address").await);
        assert_eq!(gone.name, "org.freedesktop.DBus.Error.UnknownObject", "{}", object.address);
    }
    client.used("endpoints", 0).await;
}

/// Published files have the mode that is asked for, and go with the mount.
///
/// Proves: fuse create, permissions, remove
async fn a_mount_has_a_mode_and_is_removed(stage: Stage) {
    let mount = or_skip!(mounted(&stage, ",mode=0640").await);
    mount.publish_text("file", "text").await;
    let file = mount.directory.join("file");
    let mode = || file.metadata().expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o640);
    mount.sh("chmod 604 file");
    assert_eq!(mode(), 0o604);
    assert_eq!(mountinfo(&mount.directory).len(), 1);
    mount.client.run(&mount.path, "Endpoint", "Remove").await;
    assert_eq!(mountinfo(&mount.directory), [""; 0]);
    assert!(!file.exists());
}

everywhere!(permissions_are_exact_and_change, what_is_removed_is_gone, a_mount_has_a_mode_and_is_removed);
