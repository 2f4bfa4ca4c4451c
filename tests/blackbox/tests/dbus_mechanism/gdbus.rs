//! The other side written with GDBus, the implementation of GLib: bodies of every shape, descriptors, errors, and peers
//! that are slow, die or leave.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::Command;

use ipc_blackbox::{Client, Options, Stage, assert_error, error, everywhere, options};
use ipc_harness::{Address, Process, Unavailable, or_skip};
use zbus::Variant;

use crate::peer::{PYTHON, method, need_peer, receive, send, text};

const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
const NO_REPLY: &str = "org.freedesktop.DBus.Error.NoReply";

fn start(stage: &Stage) -> Result<Process, Unavailable> {
    need_peer()?;
    let mut command = Command::new(PYTHON);
    let peer = Process::spawn_group(command.args(["-u", "-c", include_str!("gdbus.py"), stage.address()]));
    peer.wait_for(|line| line == "ready");
    Ok(peer)
}

async fn attach(client: &Client, stage: &Stage, member: &str, signature: &str) -> String {
    client.attach(&method(stage, member, &format!(",signature={signature}"))).await
}

/// Each type at its edges, empty and nested: the same comes back.
async fn every_signature_is_carried(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let deep = (0..20).fold("1".to_owned(), |inner, _| format!("[{inner}]"));
    let variants = (0..20)
        .fold(r#"{"data":1,"type":"u"}"#.to_owned(), |inner, _| format!(r#"{{"data":{inner},"type":"v"}}"#));
    let many = format!("[[{}]]", vec!["[1,\"x\"]"; 50_000].join(","));
    for (signature, body) in [
        ("yynnqq", "[0,255,-32768,32767,0,65535]"),
        ("iiuu", "[-2147483648,2147483647,0,4294967295]"),
        ("xxtt", "[-9223372036854775808,9223372036854775807,0,18446744073709551615]"),
        ("ddddd", r#"["NaN","Infinity","-Infinity",-0.0,5e-324]"#),
        ("bb", "[true,false]"),
        ("sso", r#"["","\u0001 ü 𝄞","/"]"#),
        ("gg", r#"["","a{s(iav)}aay"]"#),
        ("asayata{sv}a(ii)av", "[[],[],[],{},[],[]]"),
        ("aaas", r#"[[[],[[],["x"]]]]"#),
        ("a{ya{s(nv)}}", r#"[{"200":{"k":[-1,{"data":[{"data":"/","type":"o"}],"type":"av"}]}}]"#),
        ("(y(n(q(i(u)))))", "[[1,[2,[3,[4,[5]]]]]]"),
        ("a{tt}a{xd}a{bs}", r#"[{"18446744073709551615":1},{"-9":0.5},{"true":"yes"}]"#),
        ("a{oa{sa{sv}}}", r#"[{"/a":{"i":{"p":{"data":{"a":[1,2]},"type":"a{san}"}}}}]"#),
        ("aaaaaaaaaaaaaaaaaaaau", &format!("[{deep}]")),
        ("v", &format!("[{variants}]")),
        ("a(us)", &many),
    ] {
        let echo = attach(&client, &stage, "Echo", signature).await;
        send(&client, &echo, body).await;
        let (answer, attributes) = receive(&client, &echo).await;
        assert!(answer == body, "{signature}: {answer} instead of {body}");
        assert_eq!(text(&attributes, "signature"), signature);
        client.close(&echo).await;
    }
    let bytes = attach(&client, &stage, "Echo", "ay").await;
    client.send(&bytes, &vec![0xff; 1 << 20], Options::new()).await.expect("Send");
    assert!(client.receive(&bytes, 20_000).await.expect("Receive").0 == vec![0xff; 1 << 20]);
}

/// In a call and in its reply, over a real bus.
async fn descriptors_go_both_ways(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let pipes = attach(&client, &stage, "Pipes", "ah").await;
    // Two are what one call to the service may carry (fds-per-call).
    for count in [1, 2] {
        let (readers, writers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| std::io::pipe().expect("a pipe")).unzip();
        let fds: Vec<_> = writers.iter().map(|fd| zbus::Fd::from(fd.as_fd())).collect();
        let body = serde_json::json!([(0..count).collect::<Vec<_>>()]).to_string();
        client.send(&pipes, body.as_bytes(), options([("fds", fds.into())])).await.expect("Send");
        drop(writers);
        let (answer, attributes) = receive(&client, &pipes).await;
        assert_eq!(answer, body);
        let Variant::Array(fds) = &*attributes["fds"] else { panic!("{attributes:?}") };
        assert_eq!(fds.len(), count);
        for (index, (mut reader, fd)) in readers.into_iter().zip(fds.iter()).enumerate() {
            let mut said = String::new();
            reader.read_to_string(&mut said).expect("what it says");
            assert_eq!(said, format!("to {index}"));
            let Variant::Fd(fd) = fd else { panic!("{fd:?} is none") };
            said.clear();
            let mut file = File::from(fd.as_fd().try_clone_to_owned().expect("a copy"));
            file.read_to_string(&mut said).expect("what it says");
            assert_eq!(said, format!("from {index}"));
        }
    }
}

/// What is too large is refused, or is an error, and the connection goes on. (One
/// call brings less than the mechanism takes; its own bounds, 4 MiB and 16 descriptors, are tested beside the code.)
async fn bounds_have_errors_of_our_own(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let bytes = attach(&client, &stage, "Echo", "ay").await;
    let refused = error(client.send(&bytes, &vec![1; (1 << 20) + 1], Options::new()).await);
    assert_error(&refused, "TooLarge", &["1048577", "1048576 (payload)"]);
    client.send(&bytes, &vec![1; 1 << 20], Options::new()).await.expect("Send");
    assert_eq!(client.receive(&bytes, 20_000).await.expect("Receive").0.len(), 1 << 20);

    // The most that JSON becomes: two bytes of it are a number of eight, so 1 MiB is 4.
    let numbers = attach(&client, &stage, "Echo", "at").await;
    let body = format!("[[{}]]", vec!["1"; (1 << 19) - 2].join(","));
    send(&client, &numbers, &body).await;
    let (answer, attributes) = receive(&client, &numbers).await;
    assert_eq!(text(&attributes, "error"), LIMITS_EXCEEDED);
    assert!(answer.contains("was answered") && answer.contains("more than 1048576"), "{answer}");
    send(&client, &numbers, "[[1]]").await;
    assert_eq!(receive(&client, &numbers).await.0, "[[1]]");

    let large = attach(&client, &stage, "Large", "u").await;
    send(&client, &large, "[10000000]").await;
    assert_eq!(text(&receive(&client, &large).await.1, "error"), LIMITS_EXCEEDED);
    send(&client, &large, "[3]").await;
    assert_eq!(receive(&client, &large).await.0, "xxx");
}

/// An error keeps its name and all it has to say; flags are seen by the peer.
async fn errors_and_flags_are_kept(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let several = attach(&client, &stage, "Errors", "sa{sv}u").await;
    let body = r#"["why",{"code":{"data":5,"type":"y"}},7]"#;
    send(&client, &several, body).await;
    let (answer, attributes) = receive(&client, &several).await;
    assert_eq!((answer.as_str(), text(&attributes, "error").as_str()), (body, "org.test.Error.Several"));
    for (flags, number) in [
        ("", 0),
        (",flags=no-auto-start", 2),
        (",flags=allow-interactive-authorization", 4),
        (",flags=no-auto-start+allow-interactive-authorization", 6),
    ] {
        let seen = client.attach(&method(&stage, "Flags", flags)).await;
        send(&client, &seen, "").await;
        assert_eq!(receive(&client, &seen).await.0, format!("[{number}]"), "{flags}");
    }
}

/// Replies in another order than the calls; and peers that owe some when they die, or leave the bus.
async fn peers_are_slow_and_go(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let keep = attach(&client, &stage, "Keep", "s").await;
    for word in ["first", "second", "now"] {
        client.send(&keep, word.as_bytes(), options([("id", word.into())])).await.expect("Send");
    }
    for word in ["now", "second", "first"] {
        let (answer, attributes) = receive(&client, &keep).await;
        assert_eq!((answer.as_str(), text(&attributes, "id").as_str()), (word, word));
    }
    for end in ["Die", "Leave"] {
        let peer = if end == "Die" { None } else { Some(or_skip!(start(&stage))) };
        send(&client, &keep, "owed").await;
        let last = client.attach(&method(&stage, end, "")).await;
        send(&client, &last, "").await;
        let (answer, attributes) = receive(&client, &keep).await;
        assert_eq!(text(&attributes, "error"), NO_REPLY, "{end}: {answer}");
        assert!(!answer.contains("timeout-ms"), "the bus says so, not the time: {answer}");
        send(&client, &keep, "nobody").await;
        let (_, attributes) = receive(&client, &keep).await;
        assert_eq!(text(&attributes, "error"), "org.freedesktop.DBus.Error.ServiceUnknown", "{end}");
        drop(peer);
    }
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", every_signature_is_carried, descriptors_go_both_ways, bounds_have_errors_of_our_own, errors_and_flags_are_kept, peers_are_slow_and_go);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", every_signature_is_carried, descriptors_go_both_ways, bounds_have_errors_of_our_own, errors_and_flags_are_kept, peers_are_slow_and_go);
