//! The buses start, answer to both command-line clients, and leave nothing behind.

use std::path::Path;

use ipc_harness::{Bus, Busctl, Gdbus, busctl, busctl_monitor, gdbus, gdbus_monitor, on_each_bus, or_skip};

const DRIVER: &str = "org.freedesktop.DBus";
const DRIVER_PATH: &str = "/org/freedesktop/DBus";

fn both(bus: &Bus) -> (Busctl, Gdbus) {
    (busctl(bus).to(DRIVER), gdbus(bus).to(DRIVER))
}

fn answers_to_both_tools(bus: Bus) {
    let (busctl, gdbus) = both(&bus);
    let names = busctl.call(DRIVER_PATH, DRIVER, "ListNames", "", &[]).expect("ListNames by busctl");
    assert!(names.starts_with("as ") && names.contains("\"org.freedesktop.DBus\""), "{names}");
    let names = gdbus.call(DRIVER_PATH, DRIVER, "ListNames", &[]).expect("ListNames by gdbus");
    assert!(names.starts_with("(['") && names.contains("'org.freedesktop.DBus'"), "{names}");
    let names = busctl.call_json(DRIVER_PATH, DRIVER, "ListNames", "", &[]).expect("ListNames as JSON");
    assert!(names[0].as_array().is_some_and(|names| names.iter().any(|name| name == DRIVER)), "{names:?}");
}

fn errors_have_their_names(bus: Bus) {
    let (busctl, gdbus) = both(&bus);
    let by_busctl =
        busctl.call(DRIVER_PATH, DRIVER, "GetNameOwner", "s", &["org.x.Y"]).expect_err("no owner");
    let by_gdbus = gdbus.call(DRIVER_PATH, DRIVER, "GetNameOwner", &["org.x.Y"]).expect_err("no owner");
    assert_eq!(by_busctl.name, "org.freedesktop.DBus.Error.NameHasNoOwner", "{by_busctl:?}");
    assert!(!by_busctl.text.is_empty());
    assert_eq!(by_busctl, by_gdbus);
    let refused =
        busctl.call(DRIVER_PATH, DRIVER, "GetNameOwner", "u", &["zz"]).expect_err("zz is no number");
    assert!(refused.name.is_empty() && refused.text.contains("zz"), "{refused:?}");
}

fn the_caller_is_who_it_is(bus: Bus) {
    let uid = rustix::process::geteuid().as_raw();
    let call = "GetConnectionUnixUser";
    let told = busctl(&bus).to(DRIVER).call(DRIVER_PATH, DRIVER, call, "s", &[DRIVER]);
    assert_eq!(told.expect("the uid of the bus"), format!("u {uid}"));
}

fn monitors_see_what_follows_them(bus: Bus) {
    let (busctl, gdbus) = both(&bus);
    let messages = busctl_monitor(&busctl, &[]);
    let signals = gdbus_monitor(&gdbus);
    let name = "org.example.Seen";
    let owned = busctl.call(DRIVER_PATH, DRIVER, "RequestName", "su", &[name, "0"]).expect("RequestName");
    assert_eq!(owned, "u 1");
    signals.wait_for_all(&["org.freedesktop.DBus.NameOwnerChanged", name]);
    messages.wait_for_all(&["\"member\":\"RequestName\"", name]);
    let missing = signals.lines().wait_within(std::time::Duration::ZERO, |lines| {
        lines.iter().any(|line| line.contains("NeverSent")).then_some(())
    });
    assert!(missing.is_err_and(|missing| !missing.ended));
}

fn nothing_is_left(bus: Bus) {
    let (pid, address) = (bus.pid(), bus.address().to_owned());
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    drop(bus);
    let directory =
        Path::new(address.strip_prefix("unix:path=").expect("a path")).parent().expect("a directory");
    assert!(!directory.exists());
    for pid in children.split_whitespace().chain([pid.to_string().as_str()]) {
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} is left");
    }
}

fn a_policy_of_its_own_holds(bus: Bus) {
    let policy = r#"<policy context="default"><allow user="*"/><allow send_destination="*"/>
        <allow receive_sender="*"/><deny own="*"/></policy>"#;
    let bus = or_skip!(Bus::with_policy(bus.kind(), policy));
    let owned = busctl(&bus).to(DRIVER).call(DRIVER_PATH, DRIVER, "RequestName", "su", &["org.x.Y", "0"]);
    assert_eq!(owned.expect_err("denied").name, "org.freedesktop.DBus.Error.AccessDenied");
}

on_each_bus!(
    answers_to_both_tools,
    errors_have_their_names,
    the_caller_is_who_it_is,
    monitors_see_what_follows_them,
    nothing_is_left,
    a_policy_of_its_own_holds,
);
