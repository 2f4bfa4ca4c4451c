//! A bus of the tests' own, and a service on it that emits signals and notes what it is called with.

use futures_util::StreamExt;
use tokio::sync::{Mutex, mpsc};
use zbus::{Connection, MessageStream, connection::Builder, message::Type};

pub struct Bus {
    /// As the value of a key.
    pub address: String,
    connection: Connection,
    notes: Mutex<mpsc::UnboundedReceiver<String>>,
}

impl Bus {
    pub async fn new(directory: &std::path::Path) -> Self {
        let address = format!("unix:path={}", directory.join("bus").display());
        let (tell, told) = tokio::sync::oneshot::channel();
        let wanted = address.clone();
        std::thread::spawn(move || {
            zruntime::block_on(async move {
                let mut bus = busd::bus::Bus::for_address(Some(&wanted)).await.expect("a bus");
                tell.send(()).expect("the starter waits");
                bus.run().await.expect("the bus runs");
            });
        });
        told.await.unwrap();
        let builder = Builder::address(address.as_str()).name("org.test.Peer");
        let mut calls: MessageStream = builder.build_message_stream().await.unwrap();
        let connection = Connection::from(&calls);
        let (note, notes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                if call.message_type() == Type::MethodCall
                    && let Ok(text) = call.body().deserialize::<String>()
                    && note.send(text).is_err()
                {
                    return;
                }
            }
        });
        Self { address, connection, notes: Mutex::new(notes) }
    }

    pub async fn say(&self, text: &str) {
        self.connection.emit_signal(None::<&str>, "/peer", "org.test.Peer", "Said", &text).await.unwrap();
    }

    pub async fn note(&self) -> String {
        self.notes.lock().await.recv().await.unwrap()
    }
}
