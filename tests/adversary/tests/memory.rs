//! Promise G1 for shared memory with names: alice and bob do everything twice, by a program of their own and through the
//! service, to POSIX objects and System V segments that are alike: both succeed, and leave the same behind, or both fail
//! with the same errno.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use ipc_adversary::wire::{Arg, dict};
use ipc_adversary::{Raw, Stage, assert_error, errno};
use ipc_harness::system::{ALICE, BOB, ROOT, SHARED, User};
use ipc_harness::{CallError, Process, or_skip, unique};

/// The same by the C library and system calls: a line "what name" in, "ok" or the errno's name out. A System V key is
/// made of the name.
const DIRECTLY: &str = r#"
import ctypes, errno, os, struct, sys, _posixshmem
os.umask(0)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
kept = []
def check(result):
    if result in (-1, 2**64 - 1): raise OSError(ctypes.get_errno(), '')
    return result
def key(name):
    k = 0x811c9dc5
    for byte in name.encode(): k = (k ^ byte) * 0x01000193 & 0xffffffff
    return ctypes.c_int(k | 1)
def shm(name, flags):
    kept.append(_posixshmem.shm_open('/' + name, flags, mode=0o600))
def make(name, mode=0o600): return check(libc.shmget(key(name), 4096, 0o3000 | mode))
def find(name): return check(libc.shmget(key(name), 0, 0))
def attach(name, flags): check(libc.shmat(find(name), None, flags))
def change(name, **new):
    state = ctypes.create_string_buffer(256)
    # By the table (SHM_STAT_ANY), as the mode may not let it be read.
    check(libc.shmctl(find(name) & 0x7fff, 15, state))
    for field, value in new.items(): struct.pack_into('I', state, {'uid': 4, 'gid': 8, 'mode': 20}[field], value)
    check(libc.shmctl(find(name), 1, state))
def furnish(name, uid, gid, mode):
    make(name); change(name, uid=int(uid), gid=int(gid), mode=int(mode, 8))
what = {
    'MakeObject': lambda n: shm(n, os.O_CREAT | os.O_EXCL | os.O_RDWR),
    'OpenObject': lambda n: shm(n, os.O_RDWR),
    'ReadObject': lambda n: shm(n, os.O_RDONLY),
    # Of shm_unlink(3), glibc renames EPERM to EACCES.
    'RemoveObject': lambda n: os.unlink('/dev/shm/' + n),
    'ChmodObject': lambda n: os.chmod('/dev/shm/' + n, 0o640),
    'MakeSegment': make,
    'OpenSegment': lambda n: attach(n, 0),
    'ReadSegment': lambda n: attach(n, 0o10000),
    'RemoveSegment': lambda n: check(libc.shmctl(find(n), 0, None)),
    'ChmodSegment': lambda n: change(n, mode=0o640),
    'furnish': furnish,
}
print('ready', flush=True)
for line in sys.stdin:
    name, *arguments = line.split()
    try: what[name](*arguments); print('ok', flush=True)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Make,
    Open,
    Read,
    Remove,
    Chmod,
}

/// An object of each kind, and what its name or key is.
const KINDS: [&str; 2] = ["Object", "Segment"];

fn address(kind: &str, name: &str) -> String {
    if kind == "Object" {
        return format!("posixshm:name=/{name}");
    }
    let key =
        name.bytes().fold(0x811c_9dc5u32, |key, byte| (key ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("sysvshm:key={:#x}", key | 1)
}

/// Through the service, with the outcome in the same words.
fn served(user: &mut Raw, does: Does, kind: &str, name: &str) -> String {
    let address = address(kind, name);
    let readable = format!("{address},access=read-only");
    let outcome = match does {
        Does::Make => user.try_make("Create", &format!("{address},size=4096")).map(drop),
        Does::Open => user.try_make("Attach", &address).map(drop),
        Does::Read => user.try_make("Attach", &readable).map(drop),
        Does::Remove => at(user, &readable, "Remove", &[]),
        Does::Chmod => at(user, &readable, "SetPermissions", &[dict(&[("mode", Arg::U32(0o640))])]),
    };
    outcome.map_or_else(|error| errno(&error), |()| "ok".to_owned())
}

fn at(user: &mut Raw, address: &str, member: &str, args: &[Arg]) -> Result<(), CallError> {
    let endpoint = user.try_make("Attach", address)?;
    let done = user.call(&endpoint, "Endpoint", member, args).map(drop);
    // Remove has closed it.
    let _closed = user.call(&endpoint, "Endpoint", "Close", &[]);
    done
}

/// What is there for everybody to try, and who owns it.
const FURNITURE: [(&str, (User, u32), u32); 6] = [
    ("bobs", (BOB, BOB.gid), 0o600),
    ("readable", (BOB, BOB.gid), 0o644),
    ("group", (BOB, SHARED), 0o660),
    ("group-readable", (BOB, SHARED), 0o640),
    ("world", (ROOT, 0), 0o666),
    ("alices", (ALICE, ALICE.gid), 0o600),
];

/// Objects with these marks in their names; they are removed at the end, however it ends.
struct Furniture {
    marks: Vec<String>,
    program: Process,
}

impl Furniture {
    fn new(stage: &Stage, marks: Vec<String>) -> Furniture {
        let program = stage.bus.python_as(&ROOT.into(), DIRECTLY, &[]);
        program.wait_for(|line| line == "ready");
        let mut furniture = Furniture { marks, program };
        for mark in &furniture.marks {
            for (name, (user, group), mode) in FURNITURE {
                let path = format!("/dev/shm/{mark}-{name}");
                fs::write(&path, [0; 4096]).expect("root may");
                std::os::unix::fs::chown(&path, Some(user.uid), Some(group)).expect("root may");
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("root may");
                let line = format!("furnish {mark}-{name} {} {group} {mode:o}\n", user.uid);
                furniture.program.write(line);
                furniture.program.wait_for(|line| line == "ok");
            }
        }
        furniture
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let all = FURNITURE.map(|(name, ..)| name).into_iter().chain(["new"]);
        self.marks.iter().flat_map(move |mark| all.clone().map(move |name| format!("{mark}-{name}")))
    }

    /// Owner, group and mode of everything that has this mark, by kind and name.
    fn inventory(&self, mark: &str) -> BTreeMap<String, String> {
        let segments = fs::read_to_string("/proc/sysvipc/shm").expect("System V IPC");
        let segments: BTreeMap<u32, String> = segments
            .lines()
            .skip(1)
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let key = words[0].parse::<i32>().expect("a key").cast_unsigned();
                (key, format!("{}:{} {}", words[7], words[8], words[2]))
            })
            .collect();
        let mut found = BTreeMap::new();
        for name in self.names().filter(|name| name.starts_with(mark)) {
            let short = name[mark.len()..].to_owned();
            if let Ok(metadata) = fs::metadata(format!("/dev/shm/{name}")) {
                let line = format!("{}:{} {:o}", metadata.uid(), metadata.gid(), metadata.mode());
                found.insert(format!("Object {short}"), line);
            }
            let key = address("Segment", &name);
            let key = u32::from_str_radix(key.rsplit("0x").next().expect("a key"), 16).expect("a key");
            if let Some(line) = segments.get(&key) {
                found.insert(format!("Segment {short}"), line.clone());
            }
        }
        found
    }
}

impl Drop for Furniture {
    fn drop(&mut self) {
        for name in self.names().collect::<Vec<_>>() {
            let _gone = fs::remove_file(format!("/dev/shm/{name}"));
            self.program.write(format!("RemoveSegment {name}\n"));
            self.program.wait_for(|line| line == "ok" || line.starts_with('E'));
        }
    }
}

#[test]
fn directly_and_through_the_service() {
    let stage = or_skip!(Stage::new());
    for (who, who_name) in [(ALICE, "alice"), (BOB, "bob")] {
        let marks = [unique("direct"), unique("served")];
        let furniture = Furniture::new(&stage, marks.to_vec());
        let mut rows = Vec::new();
        for kind in KINDS {
            for (name, (owner, _), mode) in FURNITURE {
                rows.extend([Does::Make, Does::Open, Does::Read].map(|does| (does, kind, name)));
                // The service removes and changes what it has attached, so it must be readable.
                if mode & 0o004 != 0 || owner.uid == who.uid {
                    rows.extend([Does::Chmod, Does::Remove].map(|does| (does, kind, name)));
                }
            }
            let missing =
                [Does::Open, Does::Read, Does::Remove, Does::Chmod, Does::Make, Does::Make, Does::Open];
            rows.extend(missing.map(|does| (does, kind, "new")));
        }
        let mut program = stage.bus.python_as(&who.into(), DIRECTLY, &[]);
        for (does, kind, name) in &rows {
            program.write(format!("{does:?}{kind} {}-{name}\n", marks[0]));
        }
        let said = program.finish().success();
        let directly: Vec<&str> = said.lines().skip(1).collect();
        assert_eq!(directly.len(), rows.len(), "{said}");
        let mut user = stage.raw(who);
        let mut differing = Vec::new();
        let mut outcomes = BTreeMap::<&str, u32>::new();
        for ((does, kind, name), directly) in rows.iter().zip(&directly) {
            let served = served(&mut user, *does, kind, &format!("{}-{name}", marks[1]));
            *outcomes.entry(directly).or_default() += 1;
            if served != *directly {
                differing.push(format!("{does:?} {kind} {name}: directly {directly}, served {served}"));
            }
        }
        println!("{who_name}: {} operations: {outcomes:?}", rows.len());
        assert!(differing.is_empty(), "{who_name}: {}", differing.join("\n"));
        for errno in ["ok", "EACCES", "EPERM", "ENOENT", "EEXIST"] {
            assert!(outcomes.contains_key(errno), "{who_name}: no case ends with {errno}");
        }
        assert_eq!(furniture.inventory(&marks[0]), furniture.inventory(&marks[1]), "{who_name}");
    }
}

/// What alice made and bob may read, he cannot write through any descriptor that the service hands him.
#[test]
fn read_only_means_read_only() {
    let stage = or_skip!(Stage::new());
    let furniture = Furniture::new(&stage, vec![unique("readonly")]);
    let mut alice = stage.alice();
    let name = format!("{}-readable", furniture.marks[0]);
    let memory =
        alice.try_make("Attach", &format!("posixshm:name=/{name},access=read-only")).expect("Attach");
    for (member, args) in [
        ("Write", vec![Arg::U64(0), Arg::Array("y".into(), vec![Arg::Byte(1)])]),
        ("Resize", vec![Arg::U64(1)]),
        ("PunchHole", vec![Arg::U64(0), Arg::U64(1)]),
        ("Allocate", vec![Arg::U64(0), Arg::U64(1)]),
    ] {
        let refused = alice.call(&memory, "Memory", member, &args).expect_err("she may only read it");
        assert_error(&refused, "PermissionDenied", &["for reading only"]);
    }
    let writing =
        alice.call(&memory, "Endpoint", "Open", &[dict(&[("access", Arg::Str("read-write".into()))])]);
    assert_error(&writing.expect_err("it is bob's"), "PermissionDenied", &["for reading only"]);
    assert_eq!(fs::metadata(format!("/dev/shm/{name}")).expect("it is there").len(), 4096);
}
