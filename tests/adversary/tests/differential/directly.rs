//! What alice does without the service, by system calls.

/// The same by system calls: a line "what, tab, path" in, "ok" or the errno's name out. What a nonblocking open finds
/// (no writer yet, no reader yet) is no refusal.
pub const DIRECTLY: &str = r#"
import ctypes, errno, os, socket, sys
os.umask(0)
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def open_(path, flags): kept.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
def bind(path):
    s = socket.socket(socket.AF_UNIX); kept.append(s); os.umask(0o177)
    try: s.bind(path); s.listen()
    finally: os.umask(0)
def connect(path): s = socket.socket(socket.AF_UNIX); kept.append(s); s.connect(path)
def watch(path):
    fd = libc.inotify_init()
    if libc.inotify_add_watch(fd, path.encode(), 0x100) < 0: raise OSError(ctypes.get_errno(), '')
    os.close(fd)
def port(path, call):
    host, number = path.rsplit(' ', 1)
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET); kept.append(s)
    getattr(s, call)((host, int(number)))
what = {
    'MakeFifo': lambda p: os.mkfifo(p, 0o600),
    'MakeFile': lambda p: open_(p, os.O_CREAT | os.O_EXCL | os.O_RDWR),
    'BindSocket': bind,
    'ReadFifo': lambda p: open_(p, os.O_RDONLY | os.O_NONBLOCK),
    'WriteFifo': lambda p: open_(p, os.O_WRONLY | os.O_NONBLOCK),
    'MapForReading': lambda p: open_(p, os.O_RDONLY),
    'MapForBoth': lambda p: open_(p, os.O_RDWR),
    'Connect': connect,
    'Watch': watch,
    'Remove': os.unlink,
    'Chmod': lambda p: os.chmod(p, 0o640),
    'MakeSemaphore': lambda p: open_('/dev/shm/sem.' + p, os.O_CREAT | os.O_EXCL | os.O_RDWR),
    'OpenSemaphore': lambda p: open_('/dev/shm/sem.' + p, os.O_RDWR | os.O_NOFOLLOW),
    'OpenFutex': lambda p: open_('/dev/shm/' + p, os.O_RDWR | os.O_NOFOLLOW),
    'BindPort': lambda p: port(p, 'bind'),
    'ConnectPort': lambda p: port(p, 'connect'),
    'AskSignal': lambda p: os.kill(int(p), 0),
    'SendSignal': lambda p: os.kill(int(p), 23),
    'OpenDescriptor': lambda p: open_('/proc/%s/fd/%s' % tuple(p.split(' ')), os.O_RDONLY | os.O_NONBLOCK),
}
"#;

/// Goes through the lines.
pub const LINES: &str = r#"
for line in sys.stdin:
    name, path = line.rstrip('\n').split('\t')
    try: what[name](path); print('ok')
    except OSError as e: print('ok' if e.errno == errno.ENXIO else errno.errorcode[e.errno])
"#;
