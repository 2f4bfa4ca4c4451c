//! System V queues: of everybody, with all modes.

use ipc_adversary::wire::{Arg, dict, no_options};
use ipc_adversary::{Raw, Stage};
use ipc_harness::CallError;
use ipc_harness::system::{ALICE, BOB, ROOT, SHARED, User};

use crate::{Does, Does::*, at};

/// What is done to a queue by system calls.
pub const DIRECTLY: &str = r#"
def sysv_queue(key): return check(libc.msgget(ctypes.c_int(int(key, 16)), 0))
def message(): return ctypes.create_string_buffer(b'\x01' + bytes(7) + b'x' + bytes(100))
def receive(key, flags):
    try: check(libc.msgrcv(sysv_queue(key), message(), 100, ctypes.c_long(0), 0o4000 | flags))
    except OSError as e:
        if e.errno != errno.ENOMSG: raise
def change(key, mode, qbytes):
    # struct msqid_ds: owner and group behind the key, the mode, and behind times and counts qbytes.
    ds = bytearray(120)
    ds[4:12] = os.getuid().to_bytes(4, 'little') + os.getgid().to_bytes(4, 'little')
    ds[20:22] = mode.to_bytes(2, 'little'); ds[88:96] = qbytes.to_bytes(8, 'little')
    check(libc.msgctl(sysv_queue(key), 1, ctypes.create_string_buffer(bytes(ds))))
what |= {
    'MakeSysvQueue': lambda k: check(libc.msgget(ctypes.c_int(int(k, 16)), 0o3600)),
    'FindQueue': sysv_queue,
    'SendToQueue': lambda k: check(libc.msgsnd(sysv_queue(k), message(), 1, 0o4000)),
    'ReceiveFromQueue': lambda k: receive(k, 0),
    'PeekAtQueue': lambda k: receive(k, 0o40000),
    'ChmodSysvQueue': lambda k: change(k, 0o640, 16384),
    'RaiseQueue': lambda k: change(k, 0o600, 1 << 24),
    'RemoveSysvQueue': lambda k: check(libc.msgctl(sysv_queue(k), 0, None)),
}
"#;

pub fn through_the_service(alice: &mut Raw, does: Does, key: &str) -> Result<(), CallError> {
    match does {
        MakeSysvQueue => alice.try_make("Create", &queue(key)).map(drop),
        FindQueue => alice.try_make("Attach", &queue(key)).map(drop),
        SendToQueue => {
            let bytes = Arg::Array("y".into(), vec![Arg::Byte(1)]);
            at(alice, &queue(key), "Messages", "Send", &[bytes, no_options(), Arg::U32(0)])
        }
        ReceiveFromQueue => at(alice, &queue(key), "Messages", "Receive", &[no_options(), Arg::U32(0)]),
        PeekAtQueue => at(alice, &queue(key), "Messages", "Peek", &[no_options(), Arg::U32(0)]),
        ChmodSysvQueue => {
            let args = [dict(&[("mode", Arg::U32(0o640))])];
            at(alice, &queue(key), "Endpoint", "SetPermissions", &args)
        }
        RaiseQueue => {
            let args = [dict(&[("qbytes", Arg::U32(1 << 24))])];
            at(alice, &queue(key), "Endpoint", "SetPermissions", &args)
        }
        RemoveSysvQueue => at(alice, &queue(key), "Endpoint", "Remove", &[]),
        other => panic!("{other:?} is not done to a queue"),
    }
}

fn queue(key: &str) -> String {
    format!("sysvmq:key={key}")
}

/// SysvQueues of everybody, by their keys: one for each who does it.
pub fn cases(stage: &Stage, queues: &mut SysvQueues) -> Vec<(Does, [String; 2])> {
    let mut cases = Vec::new();
    for (owner, group, mode) in [
        (BOB, BOB.gid, 0o600),
        (BOB, BOB.gid, 0o644),
        (BOB, BOB.gid, 0o622),
        (BOB, SHARED, 0o660),
        (BOB, SHARED, 0o606),
        (ROOT, 0, 0o666),
        (ALICE, ALICE.gid, 0o600),
        (ALICE, ALICE.gid, 0o400),
        (ALICE, ALICE.gid, 0o000),
    ] {
        let keys = [0, 1].map(|_| queues.make(stage, owner, group, mode));
        for does in [
            FindQueue,
            SendToQueue,
            ReceiveFromQueue,
            PeekAtQueue,
            MakeSysvQueue,
            RaiseQueue,
            ChmodSysvQueue,
            RemoveSysvQueue,
        ] {
            cases.push((does, keys.clone()));
        }
    }
    let keys = [0, 1].map(|_| queues.free());
    cases.extend(
        [FindQueue, MakeSysvQueue, SendToQueue, RemoveSysvQueue, RemoveSysvQueue]
            .map(|does| (does, keys.clone())),
    );
    cases
}

/// The keys of queues that are to be removed at the end, however it ends.
#[derive(Default)]
pub struct SysvQueues(Vec<String>);

impl SysvQueues {
    /// A key that nobody has: random, as other programs have theirs.
    fn free(&mut self) -> String {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("random bytes");
        self.0.push(format!("{:#x}", u32::from_ne_bytes(bytes).max(1)));
        self.0.last().expect("just pushed").clone()
    }

    fn make(&mut self, stage: &Stage, owner: User, group: u32, mode: u32) -> String {
        let key = self.free();
        // Its maker keeps rights, so each makes his own; the owner then gives it to the group.
        let script = "import ctypes,os,sys\nc=ctypes.CDLL(None)\nq=c.msgget(ctypes.c_int(int(sys.argv[1],16)),0o3600)\n\
            d=bytearray(120)\nd[4:12]=os.getuid().to_bytes(4,'little')+int(sys.argv[2]).to_bytes(4,'little')\n\
            d[20:22]=int(sys.argv[3]).to_bytes(2,'little'); d[88:96]=(16384).to_bytes(8,'little')\n\
            assert q>=0 and c.msgctl(q,1,ctypes.create_string_buffer(bytes(d)))==0";
        let arguments = [&*key, &group.to_string(), &mode.to_string()];
        stage.bus.python_as(&owner.into(), script, &arguments).finish().success();
        key
    }
}

impl Drop for SysvQueues {
    fn drop(&mut self) {
        for key in &self.0 {
            let _gone = std::process::Command::new("ipcrm")
                .args(["-Q", key])
                .stderr(std::process::Stdio::null())
                .status();
        }
    }
}
