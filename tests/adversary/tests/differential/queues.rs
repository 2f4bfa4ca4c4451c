//! Message queues of everybody, made, looked at and removed by a program of root's.

use std::collections::BTreeMap;

use ipc_adversary::Raw;
use ipc_adversary::wire::{Arg, dict};
use ipc_harness::system::{ALICE, BOB, ROOT, SHARED, SystemBus, User};
use ipc_harness::{CallError, Process};

use super::{
    Does::{self, *},
    at,
};

/// With owner and mode.
pub const QUEUES: [(&str, (User, u32), u32); 10] = [
    ("own", (ALICE, ALICE.gid), 0o600),
    ("own-write", (ALICE, ALICE.gid), 0o200),
    ("own-none", (ALICE, ALICE.gid), 0o000),
    ("bobs", (BOB, BOB.gid), 0o600),
    ("bobs-readable", (BOB, BOB.gid), 0o644),
    ("bobs-writable", (BOB, BOB.gid), 0o622),
    ("group", (BOB, SHARED), 0o660),
    ("group-denied", (BOB, SHARED), 0o606),
    ("roots", (ROOT, 0), 0o600),
    ("world", (ROOT, 0), 0o666),
];

/// What is done to which queue, in this order.
pub fn cases() -> Vec<(Does, &'static str)> {
    let mut cases = Vec::new();
    for (name, ..) in QUEUES {
        cases.extend([ReadQueue, WriteQueue, OpenQueue, MakeQueue, ChmodQueue].map(|does| (does, name)));
        // To remove a queue through the service it has to be opened first.
        if !matches!(name, "own-none" | "own-write") {
            cases.push((RemoveQueue, name));
        }
    }
    let missing = [OpenQueue, RemoveQueue, MakeQueue, OpenQueue, ChmodQueue, RemoveQueue, OpenQueue];
    cases.extend(missing.map(|does| (does, "missing")));
    cases
}

/// What is done to a queue by system calls.
pub const DIRECTLY: &str = r#"
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), '')
    return result
def queue(name, flags): return check(libc.mq_open(b'/' + name.encode(), flags, 0o600, None))
what |= {
    'MakeQueue': lambda p: queue(p, os.O_CREAT | os.O_EXCL | os.O_RDWR),
    'ReadQueue': lambda p: queue(p, os.O_RDONLY),
    'WriteQueue': lambda p: queue(p, os.O_WRONLY),
    'OpenQueue': lambda p: queue(p, os.O_RDWR),
    'ChmodQueue': lambda p: os.fchmod(queue(p, os.O_RDWR), 0o640),
    'RemoveQueue': lambda p: check(libc.mq_unlink(b'/' + p.encode())),
}
"#;

pub fn through_the_service(alice: &mut Raw, does: Does, path: &str) -> Result<(), CallError> {
    match does {
        MakeQueue => {
            alice.try_make("Create", &format!("posixmq:name=/{path},remove-on-close=false")).map(drop)
        }
        ReadQueue => alice.try_make("Attach", &format!("posixmq:name=/{path},access=read")).map(drop),
        WriteQueue => alice.try_make("Attach", &format!("posixmq:name=/{path},access=write")).map(drop),
        OpenQueue => alice.try_make("Attach", &format!("posixmq:name=/{path}")).map(drop),
        ChmodQueue => {
            let args = [dict(&[("mode", Arg::U32(0o640))])];
            at(alice, &format!("posixmq:name=/{path}"), "Endpoint", "SetPermissions", &args)
        }
        RemoveQueue => at(alice, &format!("posixmq:name=/{path}"), "Endpoint", "Remove", &[]),
        other => panic!("{other:?} is not done to a queue"),
    }
}

/// A word, then name, uid, gid and mode of each queue. "look" prints them of those that are there.
const PROGRAM: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
if not hasattr(libc, 'mq_open'): libc = ctypes.CDLL('librt.so.1')
class Attributes(ctypes.Structure): _fields_ = [(name, ctypes.c_long) for name in 'fdsmabce']
verb, *words = sys.argv[1:]
for name, uid, gid, mode in zip(*[iter(words)] * 4):
    if verb == 'make':
        small = Attributes(0, 1, 16)
        queue = libc.mq_open(name.encode(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0, ctypes.byref(small))
        os.fchown(queue, int(uid), int(gid)); os.fchmod(queue, int(mode)); os.close(queue)
    elif verb == 'remove': libc.mq_unlink(name.encode())
    else:
        queue = libc.mq_open(name.encode(), os.O_RDONLY)
        if queue < 0: continue
        it = os.fstat(queue); print(name, it.st_uid, it.st_gid, oct(it.st_mode)); os.close(queue)
"#;

/// Two alike for each row, whose names begin with a mark; removed at the end, however it ends.
pub struct MessageQueues<'a> {
    bus: &'a SystemBus,
    marks: [String; 2],
}

impl<'a> MessageQueues<'a> {
    pub fn new(bus: &'a SystemBus, marks: [String; 2]) -> Self {
        let queues = Self { bus, marks };
        for mark in &queues.marks {
            queues.run("make", mark).finish().success();
        }
        queues
    }

    fn run(&self, verb: &str, mark: &str) -> Process {
        let mut words = vec![verb.to_owned()];
        for (name, (user, group), mode) in QUEUES {
            words.push(format!("/{mark}-{name}"));
            words.extend([user.uid, group, mode].map(|number| number.to_string()));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.bus.python_as(&ROOT.into(), PROGRAM, &words)
    }

    /// Owner, group and mode of those with this mark that are there.
    pub fn inventory(&self, mark: &str) -> BTreeMap<String, String> {
        let said = self.run("look", mark).finish().success();
        let line = |line: &str| {
            let line = line.replace(&format!("/{mark}-"), "");
            let (name, rest) = line.split_once(' ').expect("a name and numbers");
            (name.to_owned(), rest.to_owned())
        };
        said.lines().map(line).collect()
    }
}

impl Drop for MessageQueues<'_> {
    fn drop(&mut self) {
        for mark in &self.marks {
            self.run("remove", mark).finish();
        }
    }
}
