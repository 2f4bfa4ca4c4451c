//! Semaphores between users: what the kernel lets one do with the sets of another, and what is left of a holder that
//! is killed in the critical section, or of a service that is.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipc_adversary::wire::{Arg, no_options};
use ipc_adversary::{Raw, Stage, assert_error, error};
use ipc_harness::system::{ALICE, BOB, ROOT, SHARED};
use ipc_harness::{CallError, Process, Signal, or_skip, patience, unique};
use rustix::process::{Pid, kill_process};

/// semget(2), semop(2), semctl(2) by the C library: a line "what key" in, "ok" or the errno's name out.
const SETS: &str = r#"
import ctypes, errno, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result == -1: raise OSError(ctypes.get_errno(), '')
    return result
def find(key): return check(libc.semget(key, 0, 0))
def make(key, mode=0o600): return check(libc.semget(key, 2, 0o3000 | mode))
def operate(key, *operations):
    packed = b''.join(struct.pack('HhH', *operation) for operation in operations)
    check(libc.semop(find(key), packed, ctypes.c_size_t(len(operations))))
def control(key, number, command, *argument): return check(libc.semctl(find(key), number, command, *argument))
def state(key):
    buffer = ctypes.create_string_buffer(256); control(key, 0, 2, buffer); return buffer
def change(key, mode=None, uid=None, gid=None):
    # struct ipc_perm: key, uid, gid, cuid, cgid, mode; IPC_STAT by the table, as the mode may not let it be read.
    buffer = ctypes.create_string_buffer(256)
    check(libc.semctl(find(key) & 0x7fff, 0, 20, buffer))
    for at, value in ((4, uid), (8, gid), (20, mode)):
        if value is not None: struct.pack_into('I', buffer, at, value)
    control(key, 0, 1, buffer)
what = {
    'make': make,
    'find': find,
    'take': lambda k: operate(k, (0, -1, 2048)),
    'add': lambda k: operate(k, (1, 1, 2048)),
    'both': lambda k: operate(k, (0, -1, 2048), (1, 1, 2048)),
    'zero': lambda k: operate(k, (1, 0, 2048)),
    'read': lambda k: control(k, 0, 12),
    'read-all': lambda k: control(k, 0, 13, ctypes.create_string_buffer(16)),
    'set': lambda k: control(k, 1, 16, 3),
    'set-all': lambda k: control(k, 0, 17, struct.pack('HH', 5, 0)),
    'chmod': lambda k: change(k, mode=0o640),
    'remove': lambda k: control(k, 0, 0),
}
print('ready', flush=True)
for line in sys.stdin:
    name, key, *more = line.split()
    key = ctypes.c_int(int(key, 16)).value
    try:
        if name == 'furnish':
            uid, gid, mode = int(more[0]), int(more[1]), int(more[2], 8)
            make(key); control(key, 0, 17, struct.pack('HH', 4, 0)); operate(key, (0, 1, 0))
            change(key, mode, uid, gid)
        elif name == 'values':
            buffer = ctypes.create_string_buffer(16); control(key, 0, 13, buffer)
            print(*struct.unpack_from('HH', buffer), flush=True)
            continue
        else:
            what[name](key)
        print('ok', flush=True)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)
"#;

const DOES: [&str; 12] =
    ["find", "zero", "read", "read-all", "take", "add", "both", "set", "set-all", "chmod", "make", "remove"];

/// A key that nobody has; its set is removed at the end.
struct Key(u32);

impl Key {
    fn new() -> Key {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) & 0xfff;
        Key(0x5000_0000 | (std::process::id() & 0xffff) << 12 | number)
    }

    fn address(&self) -> String {
        format!("sysvsem:key=0x{:x}", self.0)
    }

    /// Its line in /proc/sysvipc/sem: mode, size, owner, group; None: there is no such set.
    fn state(&self) -> Option<Vec<String>> {
        let table = fs::read_to_string("/proc/sysvipc/sem").expect("proc(5)");
        let key = self.0.cast_signed().to_string();
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(&key))?;
        Some(line.split_whitespace().skip(2).take(4).map(str::to_owned).collect())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if self.state().is_some() {
            let _done = Command::new("ipcrm").args(["-S", &format!("0x{:x}", self.0)]).status();
        }
    }
}

/// The errno that an error's text names: "Permission denied (EACCES)".
fn errno(error: &CallError) -> String {
    let mut words = error.text.split(|c: char| !c.is_ascii_alphanumeric());
    let is_errno = |word: &&str| {
        word.len() > 3 && word.starts_with('E') && word.bytes().all(|byte| byte.is_ascii_uppercase())
    };
    words.rfind(is_errno).map_or_else(|| format!("no errno in {error}"), str::to_owned)
}

/// The same through the service.
fn served(client: &mut Raw, does: &str, key: &Key) -> String {
    match try_served(client, does, key) {
        Ok(()) => "ok".to_owned(),
        // TryWait says it without an error.
        Err(error) if error.text == "not taken" => "EAGAIN".to_owned(),
        Err(error) => errno(&error),
    }
}

fn try_served(client: &mut Raw, does: &str, key: &Key) -> Result<(), CallError> {
    if does == "make" {
        return client.try_make("Create", &format!("{},count=2", key.address())).map(drop);
    }
    let set = client.try_make("Attach", &key.address())?;
    let operate = |client: &mut Raw, operations: &[(u16, i16)]| {
        let operations = operations.iter().map(|(number, operation)| {
            Arg::Struct(vec![Arg::U16(*number), Arg::I16(*operation), Arg::U16(2048)])
        });
        let args = [Arg::Array("(qnq)".into(), operations.collect()), Arg::U32(0)];
        client.call(&set, "Semaphore", "Operate", &args).map(drop)
    };
    let property = |client: &mut Raw, name: &str| {
        let args = [Arg::Str("org.example.IPC.Semaphore".into()), Arg::Str(name.into())];
        client.call(&set, "org.freedesktop.DBus.Properties", "Get", &args).map(drop)
    };
    let done = match does {
        "find" => Ok(()),
        "take" => match client.call(&set, "Semaphore", "TryWait", &[])?.args()[..] {
            [Arg::Bool(true)] => Ok(()),
            _ => Err(CallError { name: String::new(), text: "not taken".into() }),
        },
        "add" => operate(client, &[(1, 1)]),
        "both" => operate(client, &[(0, -1), (1, 1)]),
        "zero" => operate(client, &[(1, 0)]),
        "read" => property(client, "Value"),
        "read-all" => property(client, "Values"),
        "set" => {
            let other = client.try_make("Attach", &format!("{},number=1", key.address()))?;
            client.call(&other, "Semaphore", "SetValue", &[Arg::I32(3)]).map(drop)
        }
        "set-all" => {
            let values = Arg::Array("i".into(), vec![Arg::I32(5), Arg::I32(0)]);
            client.call(&set, "Semaphore", "SetValues", &[values]).map(drop)
        }
        "chmod" => {
            let args = [ipc_adversary::wire::dict(&[("mode", Arg::U32(0o640))])];
            client.call(&set, "Endpoint", "SetPermissions", &args).map(drop)
        }
        "remove" => client.call(&set, "Endpoint", "Remove", &[]).map(drop),
        other => panic!("{other}"),
    };
    let _closed = client.call(&set, "Endpoint", "Close", &[]);
    done
}

fn ask(program: &mut Process, asked: &mut usize, line: &str) -> String {
    program.write(format!("{line}\n"));
    *asked += 1;
    let count = *asked;
    let answer = program.stdout().wait_until(|lines| (lines.len() > count).then(|| lines[count].clone()));
    answer.unwrap_or_else(|_| panic!("no answer to {line:?}: {}", program.stderr().text()))
}

/// Promise G1 for sets: whatever a user achieves through the service, he could have achieved himself.
#[test]
fn sets_directly_and_through_the_service() {
    let stage = or_skip!(Stage::new());
    let furnisher = stage.bus.python_as(&ROOT.into(), SETS, &[]);
    furnisher.wait_for(|line| line == "ready");
    let (mut furnisher, mut furnished) = (furnisher, 0);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for user in [ALICE, BOB] {
        let program = stage.bus.python_as(&user.into(), SETS, &[]);
        program.wait_for(|line| line == "ready");
        let (mut program, mut asked) = (program, 0);
        let mut client = stage.raw(user);
        let mut differing = Vec::new();
        for (owner, group, mode) in [
            (ALICE.uid, ALICE.gid, 0o600),
            (ALICE.uid, ALICE.gid, 0o400),
            (ALICE.uid, ALICE.gid, 0o000),
            (ALICE.uid, ALICE.gid, 0o644),
            (BOB.uid, BOB.gid, 0o606),
            (BOB.uid, SHARED, 0o660),
            (BOB.uid, SHARED, 0o640),
            (BOB.uid, SHARED, 0o606),
            (ROOT.uid, 0, 0o600),
            (ROOT.uid, 0, 0o666),
            (ROOT.uid, 0, 0o622),
        ] {
            let keys = [Key::new(), Key::new()];
            for key in &keys {
                let line = format!("furnish 0x{:x} {owner} {group} {mode:o}", key.0);
                assert_eq!(ask(&mut furnisher, &mut furnished, &line), "ok");
            }
            let what = format!("{} of {owner}:{group} {mode:o} by {}", keys[0].address(), user.uid);
            for does in DOES {
                let directly = ask(&mut program, &mut asked, &format!("{does} 0x{:x}", keys[0].0));
                let served = served(&mut client, does, &keys[1]);
                if served != directly {
                    differing.push(format!("{does} {what}: directly {directly}, served {served}"));
                }
                if keys[0].state() != keys[1].state() {
                    let states = keys.each_ref().map(Key::state);
                    differing.push(format!("after {does} {what}: {states:?}"));
                }
                if keys[0].state().is_some() {
                    let values = keys
                        .each_ref()
                        .map(|key| ask(&mut furnisher, &mut furnished, &format!("values 0x{:x}", key.0)));
                    if values[0] != values[1] {
                        differing.push(format!("after {does} {what}: values {values:?}"));
                    }
                }
                *seen.entry(directly).or_default() += 1;
            }
        }
        // What is not there, and what is new.
        let keys = [Key::new(), Key::new()];
        for does in ["find", "take", "remove", "make", "make", "take", "set-all", "take", "remove", "find"] {
            let directly = ask(&mut program, &mut asked, &format!("{does} 0x{:x}", keys[0].0));
            let served = served(&mut client, does, &keys[1]);
            if served != directly || keys[0].state() != keys[1].state() {
                let states = keys.each_ref().map(Key::state);
                differing.push(format!("{does} a new set: directly {directly}, served {served}; {states:?}"));
            }
            *seen.entry(directly).or_default() += 1;
        }
        assert!(differing.is_empty(), "{} differences:\n{}", differing.len(), differing.join("\n"));
    }
    println!("{seen:?}");
    for outcome in ["ok", "EACCES", "EPERM", "ENOENT", "EEXIST", "EAGAIN"] {
        assert!(seen.contains_key(outcome), "no case ends with {outcome}: {seen:?}");
    }
}

/// Waits for the semaphore, says so and gives it back, for each line.
const WAITER: &str = r#"
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1].startswith('/'):
    libc.sem_open.restype = ctypes.c_void_p
    sem = ctypes.c_void_p(libc.sem_open(sys.argv[1].encode(), 0))
    take, give = lambda: libc.sem_wait(sem), lambda: libc.sem_post(sem)
else:
    set = libc.semget(ctypes.c_int(int(sys.argv[1], 16)), 0, 0)
    operate = lambda n: libc.semop(set, struct.pack('HhH', 0, n, 0), ctypes.c_size_t(1))
    take, give = lambda: operate(-1), lambda: operate(1)
print('ready', flush=True)
for line in sys.stdin:
    assert take() == 0
    # Given back before it is told, so that the next holder finds it.
    assert give() == 0
    print('taken', flush=True)
"#;

/// Takes a lease, and gives it to a process of its own, the only one that has it.
fn holder(client: &mut Raw, semaphore: &str) -> std::process::Child {
    let args = [Arg::U32(20_000), no_options()];
    let mut reply = client.call(semaphore, "Semaphore", "Acquire", &args).expect("Acquire");
    let lease: OwnedFd = reply.fds.pop().expect("a lease");
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::from(lease)).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("sleep")
}

fn percentile(times: &mut [Duration], per_thousand: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_thousand / 1000).min(times.len() - 1)]
}

/// A holder killed in the critical section, a thousand times: who waits gets it each time, and nothing is left.
#[test]
fn a_thousand_holders_are_killed() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let key = Key::new();
    let name = format!("/{}", unique("killed"));
    let posix = alice.create(&format!("posixsem:name={name},value=1,remove-on-close"));
    let set = alice.create(&format!("{},values=1,remove-on-close", key.address()));
    for (semaphore, argument) in [(posix, name), (set, format!("0x{:x}", key.0))] {
        let waiter = stage.bus.python_as(&ALICE.into(), WAITER, &[&argument]);
        waiter.wait_for(|line| line == "ready");
        let mut waiter = waiter;
        let mut times = Vec::new();
        for round in 1..=1000 {
            let mut child = holder(&mut alice, &semaphore);
            waiter.write("\n");
            if round % 100 == 1 {
                let waits = |alice: &mut Raw| {
                    let state = alice.call(&semaphore, "Endpoint", "Inspect", &[]).expect("Inspect");
                    let waiters = ipc_adversary::entry(&state.args()[0], "waiters").expect("waiters");
                    // One number, or one for each of a set.
                    match waiters {
                        Arg::Variant(inner) => match *inner {
                            Arg::Array(_, each) => each.iter().map(ipc_adversary::number).sum::<u64>(),
                            one => ipc_adversary::number(&one),
                        },
                        other => panic!("{other:?} is no variant"),
                    }
                };
                stage.until("somebody waits", || waits(&mut alice) == 1);
                assert_eq!(waiter.stdout().lines().len(), round, "nobody gets it from one who lives");
            }
            let start = Instant::now();
            child.kill().expect("our own child");
            let released = waiter.stdout().wait_until(|lines| (lines.len() > round).then_some(()));
            released.unwrap_or_else(|_| panic!("round {round}: the lease was not given back"));
            times.push(start.elapsed());
            child.wait().expect("our own child");
        }
        stage.until("no lease is left", || alice.usage("leases") == 0);
        let args = [Arg::Str("org.example.IPC.Semaphore".into()), Arg::Str("Value".into())];
        let value =
            alice.call(&semaphore, "org.freedesktop.DBus.Properties", "Get", &args).expect("the value");
        assert_eq!(value.args(), [Arg::Variant(Box::new(Arg::I32(1)))]);
        let (half, most) = (percentile(&mut times, 500), percentile(&mut times, 990));
        println!(
            "{argument}: from the kill to the waiter's line p50 {half:?}, p99 {most:?}, longest {:?}",
            times[999]
        );
        alice.close(&semaphore);
    }
}

/// The service of the holder is killed: the kernel undoes what a lease of a set has done. Nobody can for a POSIX
/// semaphore, which is stale then, and posted by who repairs it.
#[test]
fn the_service_of_a_holder_is_killed() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let key = Key::new();
    let name = unique("crash");
    let posix = format!("posixsem:name=/{name}");
    let set = alice.create(&format!("{},values=3+0", key.address()));
    let named = alice.create(&format!("{posix},value=1"));
    let operations = [(0u16, -2i16), (1, 4)]
        .map(|(number, operation)| Arg::Struct(vec![Arg::U16(number), Arg::I16(operation), Arg::U16(0)]));
    let args = [Arg::Array("(qnq)".into(), operations.to_vec()), Arg::U32(0)];
    let _lease = alice.call(&set, "Semaphore", "AcquireSet", &args).expect("AcquireSet");
    let _other = alice.call(&named, "Semaphore", "Acquire", &[Arg::U32(0), no_options()]).expect("Acquire");
    let worker = stage.worker_of(ALICE);
    kill_process(Pid::from_raw(worker).expect("a pid"), Signal::KILL).expect("root may");
    alice.signal("Lost");
    // Another worker, which knows nothing of the lease.
    let set = alice.attach(&key.address());
    let args = [Arg::Str("org.example.IPC.Semaphore".into()), Arg::Str("Values".into())];
    let values = alice.call(&set, "org.freedesktop.DBus.Properties", "Get", &args).expect("the values");
    let expected = Arg::Array("i".into(), vec![Arg::I32(3), Arg::I32(0)]);
    assert_eq!(values.args(), [Arg::Variant(Box::new(expected))]);

    let named = alice.attach(&posix);
    let is_stale = |alice: &mut Raw| {
        let state = alice.call(&named, "Endpoint", "Inspect", &[]).expect("Inspect").args();
        match ipc_adversary::entry(&state[0], "stale") {
            Some(Arg::Variant(stale)) => *stale == Arg::Bool(true),
            other => panic!("{other:?} is no variant"),
        }
    };
    assert!(is_stale(&mut alice));
    let busy = error(alice.call(&named, "Semaphore", "Wait", &[Arg::U32(0)]));
    assert_error(&busy, "Busy", &["without waiting"]);
    alice.call(&named, "Semaphore", "Post", &[Arg::U32(1)]).expect("Post");
    assert!(!is_stale(&mut alice));
    for endpoint in [set, named] {
        alice.call(&endpoint, "Endpoint", "Remove", &[]).expect("Remove");
    }
}

/// Files that look like semaphores, or almost, and one that stops to be one while somebody waits.
#[test]
fn fakes_and_truncation() {
    let stage = or_skip!(Stage::new());
    let mut alice = stage.alice();
    let name = unique("fake");
    let path = format!("/dev/shm/sem.{name}");
    let file = fs::File::create_new(&path).expect("/dev/shm");
    std::os::unix::fs::chown(&path, Some(ALICE.uid), Some(ALICE.gid)).expect("root may");
    for (content, phrase) in [
        (vec![128; 31], "31 bytes and not 32"),
        (vec![128; 33], "33 bytes and not 32"),
        (vec![0; 32], "not the mark"),
        (Vec::new(), "0 bytes"),
    ] {
        file.set_len(0).expect("truncating");
        file.write_all_at(&content, 0).expect("writing");
        let refusal = alice.refused("Attach", &format!("posixsem:name=/{name}"));
        assert_error(&refusal, "InvalidArgument", &[phrase]);
    }
    let mut semaphore = vec![0; 32];
    semaphore[8] = 128;
    file.set_len(0).expect("truncating");
    file.write_all_at(&semaphore, 0).expect("writing");
    let endpoint = alice.attach(&format!("posixsem:name=/{name}"));
    let waiting = alice.send(Raw::message(&endpoint, "Semaphore", "Wait", &[Arg::U32(1000)]));
    let mut other = stage.alice();
    stage.until("it waits", || other.usage("waits") == 1);
    file.set_len(0).expect("truncating");
    // The kernel wakes nobody for that; the wait ends with its time, or with the next look.
    let reply = alice.reply_within(waiting, patience()).expect("every call ends");
    let ended = error(ipc_adversary::outcome(reply));
    assert!(ended.is("Gone") || ended.is("Timeout"), "{ended}");
    assert_error(&error(alice.call(&endpoint, "Semaphore", "Post", &[Arg::U32(1)])), "Gone", &["truncated"]);
    alice.ping().expect("the service goes on");
    fs::remove_file(&path).expect("removing it");
}
