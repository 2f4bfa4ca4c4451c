//! The other side as gdbus-codegen(1) makes it, in C: its own code judges what comes by the types of its interface.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use ipc_blackbox::{Client, Stage, everywhere, options};
use ipc_harness::{Address, Process, Unavailable, need_tool, or_skip};
use zbus::Variant;

use crate::peer::{bus, receive, send, text};

/// The program, compiled once.
fn program() -> Result<PathBuf, Unavailable> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    for tool in ["gdbus-codegen", "pkg-config", "cc"] {
        need_tool(tool)?;
    }
    PROGRAM.get_or_init(compiled).clone().map_err(Unavailable)
}

fn compiled() -> Result<PathBuf, String> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("codegen");
    fs::create_dir_all(&directory).expect("a directory of the tests");
    for (name, source) in
        [("codegen.xml", include_str!("codegen.xml")), ("codegen.c", include_str!("codegen.c"))]
    {
        fs::write(directory.join(name), source).expect("a directory of the tests");
    }
    let script = "gdbus-codegen --interface-prefix org.test. --c-namespace Test --generate-c-code generated codegen.xml\n\
                  cc -Wall -Wextra -Werror -o codegen codegen.c generated.c $(pkg-config --cflags --libs gio-unix-2.0)";
    let headers = Command::new("pkg-config").args(["--exists", "gio-unix-2.0"]).status();
    if !headers.is_ok_and(|status| status.success()) {
        return Err("libglib2.0-dev is not installed".to_owned());
    }
    Process::spawn(Command::new("sh").args(["-ec", script]).current_dir(&directory)).finish().success();
    Ok(directory.join("codegen"))
}

fn start(stage: &Stage) -> Result<Process, Unavailable> {
    let peer = Process::spawn_group(Command::new(program()?).arg(stage.address()));
    peer.wait_for(|line| line == "ready");
    Ok(peer)
}

async fn attach(client: &Client, stage: &Stage, more: &str) -> String {
    let to = "name=org.test.Codegen,path=/org/test/Codegen,interface=org.test.Codegen";
    client.attach(&format!("dbus:bus={},{to},{more}", bus(stage))).await
}

async fn generated_code_takes_what_it_is_sent(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let told = attach(&client, &stage, "signal=true,member=Told").await;
    let all = attach(&client, &stage, "member=All,signature=ybnqiuxtdsogayas").await;
    // To this code bytes are a text that ends with a zero.
    for body in [
        r#"[255,true,-32768,65535,-2147483648,4294967295,-9223372036854775808,18446744073709551615,0.1,"ü","/a","a{sv}",[1,2,0],["a",""]]"#,
        r#"[0,false,0,0,0,0,0,0,-0.0,"","/","",[0],[]]"#,
    ] {
        send(&client, &all, body).await;
        let (answer, attributes) = receive(&client, &all).await;
        assert_eq!((answer.as_str(), text(&attributes, "signature").as_str()), (body, "ybnqiuxtdsogayas"));
    }
    let nested = attach(&client, &stage, "member=Nested,signature=a{sv}a(ia{sas})v").await;
    let values = r#"{"deep":{"data":{"k":[[1,{"data":"x","type":"s"}]]},"type":"a{sa(iv)}"}}"#;
    let body = format!(r#"[{values},[[-1,{{"a":["b","c"],"d":[]}}]],{{"data":[7],"type":"(u)"}}]"#);
    send(&client, &nested, &body).await;
    assert_eq!(receive(&client, &nested).await.0, body);
    assert_eq!(receive(&client, &told).await.0, format!(r#"["nested",{values}]"#));
    let level = attach(&client, &stage, "property=Level").await;
    assert_eq!(receive(&client, &level).await.0, "7");
    send(&client, &level, "8").await;
    assert_eq!(receive(&client, &level).await.0, "8");
}

async fn generated_code_passes_descriptors(stage: Stage) {
    let _peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let handle = attach(&client, &stage, "member=Handle,signature=h").await;
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let fds = vec![zbus::Fd::from(writer.as_fd())];
    client.send(&handle, b"[0]", options([("fds", fds.into())])).await.expect("Send");
    drop(writer);
    let (answer, attributes) = receive(&client, &handle).await;
    assert_eq!(answer, "[0]");
    let mut said = String::new();
    reader.read_to_string(&mut said).expect("what it says");
    let Variant::Array(fds) = &*attributes["fds"] else { panic!("{attributes:?}") };
    let Some(Variant::Fd(fd)) = fds.iter().next() else { panic!("{attributes:?}") };
    let mut file = File::from(fd.as_fd().try_clone_to_owned().expect("a copy"));
    file.read_to_string(&mut said).expect("what it says");
    assert_eq!(said, "to youfrom me");
}

async fn generated_code_fails_waits_and_dies(stage: Stage) {
    let mut peer = or_skip!(start(&stage));
    let client = stage.client().await;
    let fail = attach(&client, &stage, "member=Fail,signature=s").await;
    send(&client, &fail, "not \"today\"").await;
    let (answer, attributes) = receive(&client, &fail).await;
    assert_eq!(
        (answer.as_str(), text(&attributes, "error").as_str()),
        ("not \"today\"", "org.test.Error.Failed")
    );
    // It checks types itself.
    let wrong = attach(&client, &stage, "member=Fail,signature=u").await;
    send(&client, &wrong, "[1]").await;
    let refused = text(&receive(&client, &wrong).await.1, "error");
    assert_eq!(refused, "org.freedesktop.DBus.Error.InvalidArgs");
    let slow = attach(&client, &stage, "member=Slow,signature=s").await;
    send(&client, &slow, "first").await;
    send(&client, &slow, "owed").await;
    assert_eq!(receive(&client, &slow).await.0, "first");
    let die = attach(&client, &stage, "member=Die").await;
    send(&client, &die, "").await;
    for waits in [&slow, &die] {
        let (_, attributes) = receive(&client, waits).await;
        assert_eq!(text(&attributes, "error"), "org.freedesktop.DBus.Error.NoReply");
    }
    assert_eq!(peer.wait().code(), Some(3));
}

everywhere!(@ dbus_daemon, DbusDaemon, with_config, "", generated_code_takes_what_it_is_sent, generated_code_passes_descriptors, generated_code_fails_waits_and_dies);
everywhere!(@ dbus_broker, DbusBroker, with_config, "", generated_code_takes_what_it_is_sent, generated_code_passes_descriptors, generated_code_fails_waits_and_dies);
