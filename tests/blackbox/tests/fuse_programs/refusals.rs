//! The errors that the reference names and no other suite brings about; the reference's table is the list.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ipc_blackbox::{Options, assert_error, error};
use ipc_harness::{CallError, or_skip, unique};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use zbus::ObjectPath;

use crate::{live, live_with, refused};

async fn publish(mount: &ipc_blackbox::Mount, name: &str, endpoint: &str) -> Result<(), CallError> {
    let body = (name, ObjectPath::try_from(endpoint).expect("a path"));
    mount.client.reply(&mount.path, "Filesystem", "PublishEndpoint", &body).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_published_is_refused() {
    let (stage, mount) = or_skip!(live("").await);
    let client = &mount.client;
    let pipe = client.create("pipe:").await;
    mount.publish_endpoint("pipe", &pipe).await;
    mount.publish_text("text", "").await;
    // Content replaces content, and nothing replaces anything else.
    for name in ["pipe", "text"] {
        assert_error(&error(publish(&mount, name, &pipe).await), "Exists", &["Unpublish it first"]);
    }
    let replaced = client.reply(&mount.path, "Filesystem", "PublishText", &("pipe", "x")).await;
    assert_error(&error(replaced), "Exists", &["Unpublish it first"]);
    assert_error(&error(publish(&mount, "text/below", &pipe).await), "Exists", &["is a file"]);
    // What only listens, and what is no endpoint.
    let listener = client.create(&format!("unix:abstract={}", unique("l"))).await;
    assert_error(&error(publish(&mount, "x", &listener).await), "NotSupported", &["nothing in it to read"]);
    for (path, phrase) in [
        ("/org/example/IPC/pipe/4711", "pipe/4711"),
        ("/org/example/IPC/pipe", "pipe"),
        ("/org/example/IPC", "/org/example/IPC"),
        ("/", "/"),
    ] {
        assert_error(&error(publish(&mount, "x", path).await), "NoSuchEndpoint", &[phrase]);
    }
    let gone = client.reply(&mount.path, "Filesystem", "Unpublish", &("x",)).await;
    assert_error(&error(gone), "NotFound", &["\"x\""]);
    for (method, phrases) in [("SetPermissions", ["chmod(1)", "mode"])] {
        let refused = client.reply(&mount.path, "Endpoint", method, &(Options::new(),)).await;
        let refused = error(refused);
        assert!(
            phrases.iter().all(|phrase| refused.text.contains(phrase)) || refused.is("InvalidArgument"),
            "{refused}"
        );
    }
    drop(stage);
}

/// Proves: fuse create
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_service_hold_for_mounts() {
    let (_stage, mount) = or_skip!(live_with("[limits]\nendpoints = 2\n", "").await);
    let client = &mount.client;
    let directory = ipc_harness::temp_dir();
    let address = format!("fuse:path={}", directory.path().display());
    let second = client.create(&address).await;
    let third = ipc_harness::temp_dir();
    let third = client.try_create(&format!("fuse:path={}", third.path().display()), Options::new()).await;
    assert_error(&error(third), "LimitExceeded", &["endpoints", "2"]);
    client.close(&second).await;
    client.create(&address).await;
}

/// Proves: fuse write
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_written_whole_or_not_at_all() {
    let (_stage, mount) = or_skip!(live("").await);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
    let most = {
        sockopt::set_socket_send_buffer_size(&ours, 4 << 20).expect("a size");
        sockopt::socket_send_buffer_size(&ours).expect("a size")
    };
    let socket = mount.client.try_adopt(ours.as_fd()).await.expect("Adopt");
    mount.publish_endpoint("socket", &socket).await;
    let script = "
f = os.open('socket', os.O_WRONLY)
data = b'-' + bytes(2 << 20)
for at in 0, 1:
    try: print(os.write(f, data[at:at + int(sys.argv[2])]))
    except OSError as error: print(os.strerror(error.errno))
";
    let receive = || {
        let mut buffer = vec![0; 4 << 20];
        rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT)
            .map(|(_, length)| length)
    };
    let page = rustix::param::page_size();
    // Where net.core.wmem_max is small, only what fits can be tried.
    let sizes: Vec<usize> =
        [1, page, 100_000, (1 << 20) - page].into_iter().filter(|size| size + 4096 < most).collect();
    for size in sizes {
        let said = mount.python(script, &[&size.to_string()]).finish().success();
        assert_eq!(said, format!("{size}\n{size}\n"));
        assert_eq!((receive(), receive()), (Ok(size), Ok(size)), "one message a write");
    }
    for size in [(1 << 20) - page + 1, 1 << 20, (1 << 20) + 1, 2 << 20] {
        let said = mount.python(script, &[&size.to_string()]).finish().success();
        assert_eq!(said, "Message too long\nMessage too long\n", "{size}");
        assert_eq!(receive(), Err(rustix::io::Errno::AGAIN), "nothing of it was sent");
    }
    // Descriptors cannot be read from a file: the message stays for who receives it.
    let (a, _b) = UnixStream::pair().expect("a pair");
    let fds = [a.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    let data = [std::io::IoSlice::new(b"with a descriptor")];
    rustix::net::sendmsg(&theirs, &data, &mut control, rustix::net::SendFlags::empty()).expect("sendmsg");
    refused(&mount, "cat socket", "Operation not supported");
    let (data, attributes) = mount.client.receive(&socket, 0).await.expect("Receive");
    assert_eq!(
        (data.as_slice(), attributes.contains_key("fds")),
        (&b"with a descriptor"[..], true),
        "{attributes:?}"
    );
    drop::<OwnedFd>(theirs);
    refused(&mount, "env printf x > socket", "Broken pipe");
}
