//! What the service publishes is seen by those who watch the files with inotify(7), though the kernel did not do it.

use std::path::Path;

use ipc_blackbox::{Mount, Stage, Way, mounted};
use ipc_harness::{Process, need_tool, or_skip};

/// inotifywait(1), once it watches.
fn watcher(path: &Path) -> Process {
    let path = path.display();
    let watcher = ipc_harness::sh(&format!(
        "exec inotifywait --monitor --event create,modify,delete --format '%e %w%f' {path}"
    ));
    watcher.stderr().wait_for(|line| line.contains("Watches established")).expect("inotifywait");
    watcher
}

/// Waits for a line, and for no other before it.
fn next(watcher: &Process, seen: &mut usize, wanted: &str) {
    let line = watcher.stdout().wait_until(|lines| lines.get(*seen).cloned());
    assert_eq!(line.unwrap_or_else(|_| panic!("nothing is told, not {wanted}")), wanted);
    *seen += 1;
}

/// Proves: fuse event
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inotify_sees_what_is_published_changed_and_unpublished() {
    let stage = or_skip!(Stage::new(Way::Private));
    let mount = or_skip!(mounted(&stage, "").await);
    or_skip!(need_tool("inotifywait"));
    let root = watcher(&mount.directory);
    let path = |name: &str| mount.directory.join(name).display().to_string();
    let mut seen = 0;
    mount.publish_text("a", "1").await;
    next(&root, &mut seen, &format!("CREATE {}", path("a")));
    mount.publish_text("a", "2").await;
    next(&root, &mut seen, &format!("MODIFY {}", path("a")));
    assert_eq!(
        mount.sh("cat a; stat -c ' %A %h' a; mkdir b 2>&1 || true; ls"),
        "2 -rw------- 1\nmkdir: cannot create directory 'b': Operation not permitted\na\n"
    );
    mount.publish_text("sound/volume", "30").await;
    next(&root, &mut seen, &format!("CREATE,ISDIR {}", path("sound")));
    let below = watcher(&mount.directory.join("sound"));
    mount.publish_text("sound/deep/title", "x").await;
    mount.publish_text("sound/volume", "31").await;
    let mut told: Vec<String> = Vec::new();
    while told.len() < 2 {
        let line = below.stdout().wait_until(|lines| lines.get(told.len()).cloned());
        told.push(line.expect("both are told"));
    }
    told.sort();
    let wanted = [format!("CREATE,ISDIR {}", path("sound/deep")), format!("MODIFY {}", path("sound/volume"))];
    assert_eq!(told, wanted);
    mount.unpublish("a").await;
    next(&root, &mut seen, &format!("DELETE {}", path("a")));
    // A log.
    let mut child = ipc_harness::sh("read line");
    let process = mount.client.attach(&format!("signal:pid={}", child.pid())).await;
    mount.publish_endpoint("process", &process).await;
    next(&root, &mut seen, &format!("CREATE {}", path("process")));
    child.write("\n");
    next(&root, &mut seen, &format!("MODIFY {}", path("process")));
    assert!(mount.sh("cat process").contains("EXITED code=0"));
}

/// The service's own watches see it, too, and a watch that is published where it looks does not tell of itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_published_where_it_looks_does_not_go_round() {
    let stage = or_skip!(Stage::new(Way::DbusDaemon));
    let mount = or_skip!(mounted(&stage, "").await);
    let watch =
        format!("inotify:path={},events=create+modify+delete,partial=true", mount.directory.display());
    let watch = mount.client.create(&watch).await;
    mount.publish_endpoint("log", &watch).await;
    for text in ["1", "2"] {
        mount.publish_text("a", text).await;
        wait_for(&mount, "a").await;
    }
    mount.publish_text("b", "1").await;
    mount.unpublish("b").await;
    // What comes last is told last.
    let lines = loop {
        let lines = mount.sh("cut -d ' ' -f 2 log");
        if lines.contains("DELETE") {
            break lines;
        }
    };
    for (event, most) in [("CREATE", 3), ("MODIFY", 1), ("DELETE", 1)] {
        assert!(lines.lines().filter(|line| *line == event).count() <= most, "{lines}");
    }
}

/// Until the log tells of a file.
async fn wait_for(mount: &Mount, name: &str) {
    while !mount.sh("cat log").contains(&format!("/{name}\n")) {}
}
