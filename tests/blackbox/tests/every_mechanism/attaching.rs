//! What a program made, and the service attaches to: each reads what the other has written.

use ipc_blackbox::{Stage, everywhere};
use ipc_harness::{need_tool, or_skip};

use crate::DEFAULT;

/// A pipe, a FIFO, a unix and a TCP listener; `from` goes out of each, and what comes is said.
const PROGRAM: &str = r#"
import os, socket, sys
directory = sys.argv[1]
read, write = os.pipe()
os.mkfifo(directory + '/fifo'); fifo = os.open(directory + '/fifo', os.O_RDWR)
unix = socket.socket(socket.AF_UNIX); unix.bind(directory + '/socket'); unix.listen()
inet = socket.create_server(('127.0.0.1', 0))
print('made', os.getpid(), read, write, inet.getsockname()[1], flush=True)
for line in sys.stdin:
    what = line.strip()
    if what in ('pipe', 'fifo'):
        ends = (read, write) if what == 'pipe' else (fifo, fifo)
        os.write(ends[1], b'from')
        print(what, 'wrote', flush=True); sys.stdin.readline()
        got = os.read(ends[0], 99)
    else:
        peer, _ = (unix if what == 'unix' else inet).accept()
        peer.sendall(b'from')
        print(what, 'wrote', flush=True)
        got = peer.recv(99)
    print(what, 'got', got.decode(), flush=True)
"#;

/// Proves: pipe attach, read, write
/// Proves: fifo attach, read, write
/// Proves: unix attach, read, write
/// Proves: inet attach, read, write
async fn streams_of_programs(stage: Stage) {
    or_skip!(need_tool("python3"));
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let directory = dir.path().to_str().expect("UTF-8");
    let mut program = stage.python(PROGRAM, &[directory]);
    let said = program.wait_for(|line| line.starts_with("made "));
    let words: Vec<&str> = said.split(' ').collect();
    let [_, pid, read, write, port] = words[..] else { panic!("{said}") };
    for (what, source, sink) in [
        ("pipe", format!("pipe:pid={pid},fd={read}"), Some(format!("pipe:pid={pid},fd={write}"))),
        ("fifo", format!("fifo:path={directory}/fifo"), None),
        ("unix", format!("unix:path={directory}/socket"), None),
        ("inet", format!("tcp:host=127.0.0.1,port={port}"), None),
    ] {
        program.write(format!("{what}\n"));
        let source = client.attach(&source).await;
        assert_eq!(client.read(&source, 99, DEFAULT).await.as_deref(), Ok(&b"from"[..]), "{what}");
        let sink = match sink {
            Some(sink) => client.attach(&sink).await,
            None => source.clone(),
        };
        client.write(&sink, b"to", DEFAULT).await.expect("Write");
        if what == "pipe" || what == "fifo" {
            program.write("read\n");
        }
        program.wait_for(|line| line == format!("{what} got to"));
    }
    program.finish().success();
}

everywhere!(streams_of_programs);
