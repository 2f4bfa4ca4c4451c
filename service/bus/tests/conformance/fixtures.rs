//! Endpoints on a bus of the tests' own, with a service that sends everything back.

use std::sync::{LazyLock, mpsc};

use futures_util::StreamExt;
use ipc_kernel::shape::Shape;
use serde_bytes::ByteBuf;
use zbus::{Message, MessageStream, connection::Builder, message::Type};

pub use crate::row::{Made, MessageRules, Names, Row};
use crate::{
    RUNTIME,
    making::{Ends, Scratch, attached, created, name},
};

/// The address of the bus, as the value of a key. It lives as long as the tests do.
static BUS: LazyLock<String> = LazyLock::new(|| {
    let address = format!("unix:path={}", std::env::temp_dir().join(name()).display());
    let (tell, told) = mpsc::sync_channel(1);
    let wanted = address.clone();
    std::thread::spawn(move || {
        zruntime::block_on(async move {
            let mut bus = busd::bus::Bus::for_address(Some(&wanted)).await.expect("a bus");
            tell.send(()).expect("the starter waits");
            bus.run().await.expect("the bus runs");
        });
    });
    told.recv().expect("the bus starts");
    let (tell, told) = mpsc::sync_channel(1);
    RUNTIME.spawn(echo(address.clone(), tell));
    told.recv().expect("the service starts");
    address
});

/// Answers each call with what it was called with, one after the other.
async fn echo(address: String, ready: mpsc::SyncSender<()>) {
    let builder = Builder::address(address.as_str()).name("org.test.Echo");
    let mut calls: MessageStream = builder.build_message_stream().await.expect("a connection");
    let connection = zbus::Connection::from(&calls);
    ready.send(()).expect("the starter waits");
    while let Some(Ok(call)) = calls.next().await {
        if call.message_type() != Type::MethodCall {
            continue;
        }
        let body: ByteBuf = call.body().deserialize().expect("bytes");
        let reply = Message::method_return(&call.header()).build(&body).expect("a reply");
        connection.send(&reply).await.expect("sending");
    }
}

fn method(_scratch: &mut Scratch) -> Ends {
    let what = "name=org.test.Echo,path=/,interface=org.test.Echo,member=Echo,signature=ay";
    Ends::one(attached(&format!("dbus:bus={},{what}", *BUS)))
}

pub static MESSAGES: &[Row<MessageRules, Ends>] = &[Row {
    mechanism: "dbus",
    variant: "a method that echoes",
    make: method,
    rules: MessageRules {
        empty: true,
        peek: true,
        // The signature ay has no place for them.
        fds: false,
        waits_when_full: true,
        // A service that leaves is an error reply; the next one may come.
        ends: false,
        duplex: false,
        found: true,
        open_reader: None,
        open_writer: None,
    },
}];

/// A name on a bus is made by owning it; nobody is attached to what is owned.
pub static NAMES: LazyLock<Vec<(&str, Names)>> = LazyLock::new(|| {
    let create = format!("dbus:bus={},own-name=org.test.Chosen", *BUS);
    let missing = "dbus:bus=unix:path=/nobody/listens/here,watch-name=org.test.Chosen";
    vec![("dbus", Names::Chosen { create: create.leak(), missing })]
});

pub fn missing(mechanism: &str, shape: Shape) -> String {
    format!("{mechanism} declares the shape {}, but has no fixture here", shape.name())
}

pub fn unavailable(_variant: &str) -> Option<&'static str> {
    None
}

/// One of each kind.
pub fn endpoints(_mechanism: &str, scratch: &mut Scratch) -> Vec<Made> {
    let others = [
        ("signals", attached(&format!("dbus:bus={},signal=true,interface=org.test.I", *BUS)), true),
        ("a name that is watched", attached(&format!("dbus:bus={},watch-name=org.test.Echo", *BUS)), true),
        (
            "a name that is owned",
            created(&format!("dbus:bus={},own-name=org.test.{}", *BUS, name().replace('-', "_"))),
            false,
        ),
    ];
    let made = |(variant, endpoint, found): (_, Box<dyn ipc_kernel::Endpoint>, _)| Made {
        shape: Shape::Messages,
        variant,
        endpoint: endpoint.into(),
        found,
        open: None,
    };
    let method = method(scratch).reader;
    let method = Made {
        shape: Shape::Messages,
        variant: "a method that echoes",
        endpoint: method,
        found: true,
        open: None,
    };
    others.into_iter().map(made).chain([method]).collect()
}
