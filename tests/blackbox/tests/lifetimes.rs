//! Who outlives whom: endpoints and their clients, names and their endpoints, calls and their callers.

use std::path::Path;

use ipc_blackbox::{Options, Stage, error, everywhere, options};
use ipc_harness::{busctl, unique};

const DEFAULT: u32 = u32::MAX;

async fn closed_reason(inbox: &ipc_blackbox::Inbox, path: &str) -> String {
    let closed = inbox.signal(path, "Closed").await;
    closed.body().deserialize().expect("Closed says a reason")
}

async fn a_client(stage: Stage) {
    let (creator, watcher) = (stage.client().await, stage.client().await);
    let inbox = watcher.inbox().await;
    let service = creator.create("pipe:").await;
    let with_client = creator.create("pipe:lifetime=client").await;
    let sink = creator.create("pipe:").await;
    let relay = creator.relay(&service, &sink, options([("lifetime", "client".into())])).await;
    for (path, lifetime) in [(&service, "service"), (&with_client, "client")] {
        let told = watcher.property(path, "Endpoint", "Lifetime").await.expect("Lifetime");
        assert_eq!(String::try_from(told).as_deref(), Ok(lifetime));
    }
    creator.connection.close().await.expect("closing");
    let reason = closed_reason(&inbox, &with_client).await;
    assert!(reason.contains("connection") && reason.contains("ended"), "{reason}");
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, ..): (String, u64, u64) = finished.body().deserialize().expect("Finished");
    assert!(reason.contains("connection"), "{reason}");
    let gone = error(watcher.property(&with_client, "Endpoint", "Address").await);
    assert_eq!(gone.name, "org.freedesktop.DBus.Error.UnknownObject", "{gone}");
    watcher.write(&service, b"still here", DEFAULT).await.expect("lifetime=service outlives its creator");
}

async fn a_process(stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let process = stage.sh("cat");
    let address = format!("pipe:lifetime=pid:{}", process.pid());
    let pipe = client.create(&address).await;
    client.write(&pipe, b"x", DEFAULT).await.expect("it lives as long as the process");
    let pid = process.pid();
    process.finish().success();
    let reason = closed_reason(&inbox, &pipe).await;
    assert!(reason.contains("process") && reason.contains(&pid.to_string()), "{reason}");
    // The process is gone: there is nothing to hold an endpoint by.
    let late = error(client.try_create(&address, Options::new()).await);
    assert!(late.is("NotFound") && late.text.contains(&pid.to_string()), "{late}");
    assert_eq!(client.usage("endpoints").await, 0);
}

/// Proves: fifo remove
async fn names(stage: Stage) {
    let client = stage.client().await;
    let dir = stage.temp_dir();
    let path = |name: &str| dir.path().join(name);
    let address = |scheme: &str, name: &str| format!("{scheme}:path={}", path(name).display());
    // A FIFO stays unless asked otherwise, a listening socket goes unless asked otherwise.
    let stays = client.create(&address("fifo", "stays")).await;
    let goes = client.create(&format!("{},remove-on-close", address("fifo", "goes"))).await;
    let socket = client.create(&address("unix", "socket")).await;
    let kept = client.create(&format!("{},remove-on-close=false", address("unix", "kept"))).await;
    for endpoint in [&stays, &goes, &socket, &kept] {
        client.close(endpoint).await;
    }
    let left = |name: &str| path(name).symlink_metadata().is_ok();
    assert_eq!(["stays", "goes", "socket", "kept"].map(left), [true, false, false, true]);
    // Remove takes the name whatever was said.
    let again = client.attach(&address("fifo", "stays")).await;
    client.run(&again, "Endpoint", "Remove").await;
    assert!(!left("stays"));
    // or-attach opens what is there, and Create without it does not.
    let made = client.create(&address("fifo", "there")).await;
    assert!(error(client.try_create(&address("fifo", "there"), Options::new()).await).is("Exists"));
    let attached = client.create_with(&address("fifo", "there"), options([("or-attach", true.into())])).await;
    assert_eq!(client.address(&made).await, client.address(&attached).await);
    // Who removes the path behind our back keeps his own object: Remove does not take another one's.
    std::fs::remove_file(path("there")).expect("removing");
    std::fs::write(path("there"), "somebody else's").expect("a file in its place");
    assert!(error(client.call::<(), _>(&made, "Endpoint", "Remove", &()).await).is("Gone"));
    assert!(left("there"));
}

/// The end of an endpoint ends the waits on it.
async fn waits_on_what_is_closed(stage: Stage) {
    let (client, other) = (stage.client().await, stage.client().await);
    let pipe = client.create("pipe:").await;
    let waiting = {
        let (client, pipe) = (client.clone(), pipe.clone());
        tokio::spawn(async move { client.read(&pipe, 1, 30_000).await })
    };
    other.used("waits", 1).await;
    other.close(&pipe).await;
    let cancelled = error(waiting.await.expect("a task"));
    assert!(cancelled.is("Cancelled") && cancelled.text.contains("closed"), "{cancelled}");
}

/// A wait whose caller leaves is given up, and what comes then is for the next one.
async fn waits_of_callers_that_leave(stage: Stage) {
    let (leaving, client) = (stage.client().await, stage.client().await);
    let packets = client.create("pipe:packet").await;
    let pipe = client.create("pipe:").await;
    for round in 0..3u8 {
        let caller = if round == 0 { leaving.clone() } else { stage.client().await };
        let tasks = {
            let (caller, packets, pipe) = (caller.clone(), packets.clone(), pipe.clone());
            let other = caller.clone();
            [
                tokio::spawn(async move {
                    let body = (Options::new(), 30_000u32);
                    let call = caller.connection.call_method(
                        (!caller.is_peer()).then_some(ipc_harness::NAME),
                        packets.as_str(),
                        Some("org.example.IPC.Messages"),
                        "Receive",
                        &body,
                    );
                    call.await.is_ok()
                }),
                tokio::spawn(async move {
                    let call = other.connection.call_method(
                        (!other.is_peer()).then_some(ipc_harness::NAME),
                        pipe.as_str(),
                        Some("org.example.IPC.Stream"),
                        "Read",
                        &(10u32, 30_000u32),
                    );
                    call.await.is_ok()
                }),
            ]
        };
        client.used("waits", 2).await;
        caller.connection.close().await.expect("closing");
        for task in tasks {
            assert!(!task.await.expect("a task"), "nothing was answered");
        }
        client.used("waits", 0).await;
        client.send(&packets, &[round], Options::new()).await.expect("Send");
        assert_eq!(client.receive(&packets, DEFAULT).await.expect("the message").0, [round]);
        client.write(&pipe, &[round], DEFAULT).await.expect("Write");
        assert_eq!(client.read(&pipe, 10, DEFAULT).await.expect("the byte"), [round]);
    }
}

async fn the_service(mut stage: Stage) {
    let client = stage.client().await;
    let inbox = client.inbox().await;
    let dir = stage.temp_dir();
    let socket = dir.path().join("socket");
    let pipe = client.create("pipe:").await;
    let sink = client.create("pipe:").await;
    let other = client.create("pipe:").await;
    let listener = client.create(&format!("unix:path={}", socket.display())).await;
    let relay = client.relay(&other, &sink, Options::new()).await;
    let waiting = {
        let (client, pipe) = (client.clone(), pipe.clone());
        tokio::spawn(async move { client.read(&pipe, 1, 30_000).await })
    };
    let watcher = stage.client().await;
    watcher.used("waits", 1).await;
    let ended = tokio::task::spawn_blocking(move || {
        let status = stage.service.terminate();
        (status, stage)
    });
    let cancelled = error(waiting.await.expect("a task"));
    assert!(cancelled.is("Cancelled"), "{cancelled}");
    for endpoint in [&pipe, &sink, &other, &listener] {
        assert_eq!(closed_reason(&inbox, endpoint).await, "shutdown");
    }
    let finished = inbox.signal(&relay, "Finished").await;
    let (reason, ..): (String, u64, u64) = finished.body().deserialize().expect("Finished");
    assert!(reason.contains("stopping"), "{reason}");
    let (status, stage) = ended.await.expect("a task");
    assert_eq!(status.code(), Some(0), "{}", stage.service.log());
    assert!(!socket.exists(), "the path of a listening socket goes with it");
    stage.service.notifications().wait_for(|line| line == "STOPPING=1").expect("systemd is told");
    if let Some(bus) = &stage.bus {
        let (path, interface) = ("/org/freedesktop/DBus", "org.freedesktop.DBus");
        let owned = tokio::task::block_in_place(|| {
            busctl(bus).to(interface).call(path, interface, "NameHasOwner", "s", &[ipc_harness::NAME])
        });
        assert_eq!(owned.as_deref(), Ok("b false"), "the name is free");
    } else if stage.system.is_none() {
        let path = stage.service.address().trim_start_matches("unix:path=");
        let path = path.split(',').next().unwrap_or_default();
        assert!(!Path::new(path).exists(), "the private bus leaves no socket behind");
    }
}

/// A lease ends with the service, as nobody would be left to give it back.
async fn the_service_with_a_lease(mut stage: Stage) {
    let client = stage.client().await;
    let name = unique("lease");
    let semaphore = client.create(&format!("posixsem:name=/{name},value=1")).await;
    let body = (DEFAULT, Options::new());
    let _lease: zbus::OwnedFd =
        client.call(&semaphore, "Semaphore", "Acquire", &body).await.expect("Acquire");
    assert_eq!(client.number(&semaphore, "Semaphore", "Value").await, 0);
    let ended = tokio::task::spawn_blocking(move || (stage.service.terminate(), stage));
    let (status, _stage) = ended.await.expect("a task");
    assert_eq!(status.code(), Some(0));
    // sem_t: the value is its first word.
    let file = format!("/dev/shm/sem.{name}");
    let content = std::fs::read(&file).expect("the semaphore");
    std::fs::remove_file(&file).expect("removing it");
    assert_eq!(content[..4], 1u32.to_ne_bytes());
}

everywhere!(
    the_service_with_a_lease,
    a_client,
    a_process,
    names,
    waits_on_what_is_closed,
    waits_of_callers_that_leave,
    the_service,
);
