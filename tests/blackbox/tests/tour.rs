//! The tour of the README, as a user pastes it: a FIFO, a socket that somebody serves, a relay between them,
//! by `busctl` and by `gdbus`.

use std::fs;
use std::path::{Path, PathBuf};

use ipc_harness::{
    Bus, NAME, PATH, Process, Service, TempDir, busctl, busctl_monitor, gdbus, gdbus_monitor, need_tool,
    object_path, on_each_bus, or_skip, sh, socat, temp_dir,
};

const SIZE: u64 = 1 << 20;

/// A directory with a file of random bytes, and a server on a socket that keeps what it gets.
struct Place {
    dir: TempDir,
    server: Process,
}

impl Place {
    fn new() -> Place {
        let dir = temp_dir();
        let file = |name: &str| dir.path().join(name).display().to_string();
        sh(&format!("head -c {SIZE} /dev/urandom >'{}'", file("in"))).finish().success();
        let listen = format!("UNIX-LISTEN:{}", file("socket"));
        let server = socat(&["-d", "-d", "-u", &listen, &format!("CREATE:{}", file("out"))]);
        server.stderr().wait_for(|line| line.contains("listening on")).expect("socat listens");
        Place { dir, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put_into(&self, fifo: &Path) {
        sh(&format!("cat '{}' >'{}'", self.file("in").display(), fifo.display())).finish().success();
    }

    /// The server ends with its connection, and has what was sent.
    fn has_all_arrived(self) -> TempDir {
        let Place { dir, server } = self;
        server.finish().success();
        let sum = |name| sh(&format!("sha256sum <'{}'", dir.path().join(name).display())).finish().success();
        assert_eq!(sum("out"), sum("in"));
        dir
    }
}

/// Proves: fifo create, relay
/// Proves: unix attach, relay
fn the_tour_by_busctl(bus: Bus) {
    or_skip!(need_tool("socat"));
    let service = Service::on(&bus);
    let busctl = busctl(&service);
    let place = Place::new();
    let (fifo, socket) = (place.file("bell"), place.file("socket"));
    let created = busctl.manager("Create", "sa{sv}", &[&format!("fifo:path={}", fifo.display()), "0"]);
    let source = object_path(&created.expect("Create"));
    assert!(source.starts_with(&format!("{PATH}/fifo/")), "{source}");
    let attached = busctl.manager("Attach", "sa{sv}", &[&format!("unix:path={}", socket.display()), "0"]);
    let sink = object_path(&attached.expect("Attach"));
    assert!(busctl.tree().expect("tree").contains(&source));

    let monitor = busctl_monitor(&busctl, &["--match=type='signal',member='Finished'"]);
    let relay = busctl.manager("Relay", "ooa{sv}", &[&source, &sink, "0"]);
    let relay = object_path(&relay.expect("Relay"));
    let state = busctl.property(&relay, &format!("{NAME}.Relay"), "Source").expect("Source");
    assert_eq!(state, format!("o \"{source}\""));

    place.put_into(&fifo);
    let finished = monitor.wait_for_all(&["\"member\":\"Finished\"", &relay]);
    assert!(finished.contains("\"end of stream\"") && finished.contains(&SIZE.to_string()), "{finished}");
    let _dir = place.has_all_arrived();

    // The relay is gone, the endpoints are not.
    assert!(!busctl.tree().expect("tree").contains(&relay));
    for endpoint in [&source, &sink] {
        assert_eq!(busctl.call(endpoint, &format!("{NAME}.Endpoint"), "Close", "", &[]).as_deref(), Ok(""));
    }
    assert!(fifo.exists(), "Close leaves the FIFO where it is");
}

/// Proves: fifo create, relay
fn the_tour_by_gdbus(bus: Bus) {
    or_skip!(need_tool("socat"));
    or_skip!(need_tool("gdbus"));
    let service = Service::on(&bus);
    let gdbus = gdbus(&service);
    let place = Place::new();
    let (fifo, socket) = (place.file("bell"), place.file("socket"));
    let made =
        gdbus.manager("Create", &[&format!("'fifo:path={}'", fifo.display()), "{'mode': <uint32 0o640>}"]);
    // GVariant's text format knows octal as C does.
    assert!(made.is_err());
    let made =
        gdbus.manager("Create", &[&format!("'fifo:path={}'", fifo.display()), "{'mode': <uint32 0640>}"]);
    let source = object_path(&made.expect("Create"));
    let mode = fs::metadata(&fifo).map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()));
    assert_eq!(mode.expect("the FIFO") & 0o7777, 0o640);
    let attached = gdbus.manager("Attach", &[&format!("'unix:path={}'", socket.display()), "{}"]);
    let sink = object_path(&attached.expect("Attach"));

    let monitor = gdbus_monitor(&gdbus);
    let relay = gdbus.manager("Relay", &[&format!("'{source}'"), &format!("'{sink}'"), "{}"]);
    let relay = object_path(&relay.expect("Relay"));
    place.put_into(&fifo);
    let finished = monitor.wait_for_all(&[&relay, "org.example.IPC.Relay.Finished"]);
    assert!(finished.contains(&format!("('end of stream', uint64 {SIZE}, uint64 0)")), "{finished}");
    let _dir = place.has_all_arrived();
}

on_each_bus!(the_tour_by_busctl, the_tour_by_gdbus);

/// What the service prints on a private bus can be pasted.
#[test]
fn the_welcome_of_the_private_bus_works() {
    let service = Service::private();
    let pasted = service.stdout().wait_for(|line| line.contains("ReadText")).expect("commands to paste");
    assert!(pasted.trim().starts_with("busctl --address="), "{pasted}");
    let printed = service.stdout().text();
    let commands: Vec<_> = printed
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("busctl") || line.starts_with("echo"))
        .collect();
    assert_eq!(commands.len(), 4, "{printed}");
    let said = sh(&commands.join("\n")).finish().success();
    assert!(said.contains("/org/example/IPC") && said.contains("hello from a shell"), "{said}");
}
