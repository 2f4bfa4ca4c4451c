//! A file on a FUSE mount whose server never answers FLUSH: whoever closes a descriptor of it hangs in close(2),
//! unkillably, until the mount is aborted.
//!
//! The server is a process of its own in a mount namespace of its own, and the only one that has `/dev/fuse` open: when
//! it ends, however it ends, the kernel aborts the mount and everybody goes on. It ends when this value is dropped,
//! when the test ends, and after five minutes in any case.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipc_harness::system::ROOT;
use ipc_harness::{Process, SystemBus, Unavailable};

/// The FUSE protocol by hand: fuse(4) and include/uapi/linux/fuse.h. $1: where to mount.
const SERVER: &str = r#"
import ctypes, os, signal, struct, sys, threading
signal.alarm(300)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
libc = ctypes.CDLL(None, use_errno=True)
def must(result, what):
    if result != 0:
        print('unavailable', what + ':', os.strerror(ctypes.get_errno())); sys.exit()
must(libc.unshare(0x20000), 'unshare')                       # CLONE_NEWNS
must(libc.mount(b'none', b'/', None, 0x44000, None), 'the namespace')  # MS_REC | MS_PRIVATE
try: device = os.open('/dev/fuse', os.O_RDWR)
except OSError as error: print('unavailable', error); sys.exit()
options = f'fd={device},rootmode=40000,user_id=0,group_id=0,allow_other'
must(libc.mount(b'ipc-test', sys.argv[1].encode(), b'fuse', 0, options.encode()), 'mount')
print('mounted', os.getpid())
def attr(node):
    mode, links = (0o40755, 2) if node == 1 else (0o100666, 1)
    return struct.pack('<6Q10I', node, 0, 0, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)
while True:
    request = os.read(device, 1 << 20)
    length, code, unique, node, uid, gid, pid, more = struct.unpack('<IIQQIIIHxx', request[:40])
    error, answer = 0, b''
    if code == 26: answer = struct.pack('<4I2H2I2H32x', 7, 31, 4096, 0, 1, 1, 4096, 1, 0, 0)      # INIT
    elif code == 1: answer = struct.pack('<4Q2I', 2, 1, 3600, 3600, 0, 0) + attr(2)              # LOOKUP
    elif code == 3: answer = struct.pack('<Q2I', 3600, 0, 0) + attr(node)                        # GETATTR
    elif code == 14: answer = struct.pack('<Q2I', 1, 0, 0)                                       # OPEN
    elif code in (2, 36, 42): continue                                                           # no answer
    elif code == 25:                                                                             # FLUSH
        print('flush', pid); continue
    else: error = -38                                                                            # ENOSYS
    os.write(device, struct.pack('<IiQ', 16 + len(answer), error, unique) + answer)
"#;

/// The mount, and a descriptor of a file on it. Field order is drop order: the server ends before the test closes it.
pub struct DeadFile {
    server: Process,
    pub file: File,
}

/// Held by a test that is going to open such a file, from before it starts anything: others of its process wait.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has closed its file.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeadFile {
    /// Mounts at this directory, for nobody but who goes there through the server.
    pub fn open(bus: &SystemBus, at: &str) -> Result<DeadFile, Unavailable> {
        let server = bus.python_as(&ROOT.into(), SERVER, &[at]);
        let said = server.wait_for(|line| line.starts_with("mounted") || line.starts_with("unavailable"));
        let Some(pid) = said.strip_prefix("mounted ") else {
            return Err(Unavailable(format!("no FUSE mount: {said}")));
        };
        // Its first look at the mount is by whoever opens the file.
        let path = format!("/proc/{pid}/root{at}/file");
        match open(&path) {
            Ok(file) => Ok(DeadFile { server, file }),
            Err(error) => panic!("{path}: {error}; the server said:\n{}", server.stderr().text()),
        }
    }

    /// Waits until one of these threads, or processes, hangs in close(2) of it; which.
    #[track_caller]
    pub fn hangs(&self, mut is_it: impl FnMut(i32) -> bool) -> i32 {
        let thread = |line: &str| line.strip_prefix("flush ").and_then(|pid| pid.parse().ok());
        let line = self.server.wait_for(|line| thread(line).is_some_and(&mut is_it));
        thread(&line).expect("it was wanted")
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
