//! What the front sees to by itself. A worker refuses much of the same later, so here it stands still, or says what
//! it should: then it is the front's doing.

use ipc_adversary::wire::{Outgoing, bytes, text};
use ipc_adversary::{DRIVER, DRIVER_PATH, Raw, Stage, assert_error, entry, error, number, outcome};
use ipc_harness::system::{ALICE, BOB, CAROL, ROOT, User};
use ipc_harness::{PATH, Signal, or_skip, patience};
use rustix::process::{Pid, kill_process};

/// A worker that does nothing until this is dropped.
struct Still(Pid);

impl Still {
    fn new(stage: &Stage) -> Still {
        Still::of(stage, ALICE)
    }

    fn of(stage: &Stage, user: User) -> Still {
        let worker = Pid::from_raw(stage.worker_of(user)).expect("a pid");
        kill_process(worker, Signal::STOP).expect("root may");
        Still(worker)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // It may have been ended as stuck.
        let _gone = kill_process(self.0, Signal::CONT);
    }
}

/// Longer than any test here: nobody is ended as stuck.
const PATIENT: &str = "stuck-after-ms = 60000\n";

#[test]
fn a_large_call_stops_at_the_front() {
    let stage = or_skip!(Stage::with_config(&format!("[front]\n{PATIENT}")));
    let mut alice = stage.alice();
    alice.create("pipe:");
    let _still = Still::new(&stage);
    let large = Raw::message(PATH, "", "Create", &[bytes(&vec![0; 2 << 20])]);
    assert_error(&error(alice.ask(large, &[])), "TooLarge", &["payload", "1048576"]);
}

/// Sends calls that nobody answers, and then counts the refusals, all of which name this limit.
fn refusals(connections: &mut [Raw], calls: usize, key: &str) -> usize {
    for raw in connections.iter_mut() {
        for _ in 0..calls {
            raw.send(Raw::message(PATH, "", "Describe", &[text("pipe")]));
        }
    }
    let mut refused = 0;
    for raw in connections {
        // What the bus answers after them, the front has answered before.
        raw.driver("GetNameOwner", &[text(ipc_harness::NAME)]).expect("an owner");
        while let Some(refusal) = raw.error_within(std::time::Duration::from_secs(1)) {
            assert_error(&refusal, "LimitExceeded", &[key]);
            refused += 1;
        }
    }
    refused
}

#[test]
fn calls_of_a_connection_stop_at_the_front() {
    let stage = or_skip!(Stage::with_config(&format!("[front]\n{PATIENT}")));
    let mut connections = [stage.alice()];
    connections[0].create("pipe:");
    let _still = Still::new(&stage);
    assert_eq!(refusals(&mut connections, 20, "calls-per-connection is 16"), 4);
}

#[test]
fn calls_of_a_user_stop_at_the_front() {
    let stage = or_skip!(Stage::with_config(&format!("[front]\ncalls-per-user = 30\n{PATIENT}")));
    let mut connections = [stage.alice(), stage.alice(), stage.alice()];
    // Whose they are is known before they are many.
    connections.iter_mut().for_each(|raw| drop(raw.create("pipe:")));
    let _still = Still::new(&stage);
    assert_eq!(refusals(&mut connections, 12, "calls-per-user is 30"), 6);
}

/// Who comes late finds a place, though less than he might have had.
#[test]
fn the_last_places_are_shared() {
    let stage = or_skip!(Stage::with_config(&format!("[front]\ncalls = 40\ncalls-per-user = 30\n{PATIENT}")));
    let (mut alices, mut bobs) = ([stage.alice(), stage.alice()], [stage.bob()]);
    alices.iter_mut().chain(&mut bobs).for_each(|raw| drop(raw.create("pipe:")));
    let _still = (Still::new(&stage), Still::of(&stage, BOB));
    // Alone she may have all that a user may.
    assert_eq!(refusals(&mut alices, 15, ""), 0);
    // He may have half of the ten that are left.
    assert_eq!(
        refusals(&mut bobs, 12, "calls is 40; more than half of it is in use, and this user's share is 5"),
        7
    );
    stage.raw(CAROL).ping().expect("there is a place for carol");
}

/// What the bus holds for a client that does not read stays small, for the bus reads nothing more from the service
/// when it is much.
#[test]
fn signals_that_are_not_read_stay_in_the_worker() {
    let stage = or_skip!(Stage::new());
    let (mut deaf, mut writer, mut root) = (stage.alice(), stage.alice(), stage.raw(ROOT));
    let pipe = deaf.create("pipe:deliver");
    for _ in 0..300 {
        writer.write(&pipe, &"x".repeat(16_000)).expect("Write");
    }
    let interface = "org.freedesktop.DBus.Debug.Stats";
    let ask =
        Outgoing::call(DRIVER, DRIVER_PATH, interface, "GetConnectionStats", &[text(deaf.name.clone())]);
    let serial = root.send(ask);
    let stats = outcome(root.reply_within(serial, patience()).expect("an answer")).expect("root may ask");
    let Some(held) = entry(&stats.args()[0], "OutgoingBytes") else { panic!("{stats:?}") };
    let held = number(&held);
    println!("of 4.8 MB that a client does not read, the bus holds {held} bytes");
    assert!(held < 1 << 20, "the bus holds {held} bytes");
    deaf.ping().expect("who reads again is served again");
}
