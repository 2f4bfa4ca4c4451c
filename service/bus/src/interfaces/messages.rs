//! `org.example.IPC.Messages`: bytes with borders.

use ipc_engine::{events::Happening, messages::attributes};
use ipc_kernel::{
    Error, Kind, Value,
    blocked::Sent,
    shape::{Message, Outgoing},
};
use serde_bytes::ByteBuf;
use zbus::{interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{Given, Vardict, dict, vardict},
};

served!(Messages);

fn as_bytes(mut message: Message) -> Result<(ByteBuf, Vardict)> {
    let attributes = attributes(&mut message);
    Ok((ByteBuf::from(message.data), vardict(attributes)?))
}

/// An event that was kept: number, time in microseconds since the epoch, bytes, attributes.
type Kept = (u64, u64, ByteBuf, Vardict);

impl Messages {
    async fn send_bytes(
        &self,
        data: &[u8],
        given: Given<'_>,
        timeout_ms: u32,
        header: &Header<'_>,
    ) -> Result<()> {
        let call = self.face.call(header)?;
        let engine = &self.face.engine;
        let mut attributes = dict(given)?;
        let fds = match attributes.remove("fds") {
            None => Vec::new(),
            Some(Value::Fds(fds)) => fds,
            Some(other) => {
                let text =
                    format!("the attribute \"fds\" must have the D-Bus type ah, not {}", other.signature());
                return Err(Error::invalid(text).into());
            }
        };
        if fds.len() > engine.limits.fds_per_call as usize {
            let text = format!(
                "{} file descriptors are more than one call may carry, {} (fds-per-call)",
                fds.len(),
                engine.limits.fds_per_call
            );
            return Err(Error::new(Kind::TooLarge, text).into());
        }
        let message = Outgoing { data, attributes: &attributes, fds: &fds, sent: &Sent::default() };
        Ok(engine.send(&call, &self.endpoint, message, timeout_ms).await?)
    }

    async fn take(&self, selector: Given<'_>, timeout_ms: u32, header: &Header<'_>) -> Result<Message> {
        let call = self.face.call(header)?;
        Ok(self.face.engine.receive(&call, &self.endpoint, &dict(selector)?, timeout_ms).await?)
    }

    async fn look(&self, selector: Given<'_>, timeout_ms: u32, header: &Header<'_>) -> Result<Message> {
        let call = self.face.call(header)?;
        Ok(self.face.engine.peek(&call, &self.endpoint, &dict(selector)?, timeout_ms).await?)
    }

    /// A message as text; one that is not UTF-8, or has a zero byte, is kept.
    fn as_text(&self, mut message: Message, keep: bool) -> Result<(String, Vardict)> {
        let wrong = match std::str::from_utf8(&message.data) {
            Ok(text) => text.find('\0').map(|zero| format!("has a zero, its byte {zero}")),
            Err(error) => Some(format!("is not UTF-8 from byte {} on", error.valid_up_to())),
        };
        match wrong {
            None => {
                let attributes = attributes(&mut message);
                // Found to be UTF-8 just above.
                Ok((String::from_utf8(message.data).unwrap_or_default(), vardict(attributes)?))
            }
            Some(wrong) => {
                let text = format!(
                    "the message {wrong}; it was kept: use {}, which returns bytes",
                    if keep { "Receive" } else { "Peek" }
                );
                if keep {
                    self.endpoint.keep(message);
                }
                Err(Error::invalid(text).into())
            }
        }
    }
}

#[interface(name = "org.example.IPC.Messages")]
impl Messages {
    /// Sends one message, whole or not at all. Attributes are the mechanism's: address (s), fds
    /// (ah), priority (u), … timeout_ms: 0 does not wait (Busy), 4294967295 is the default of 20 s, at most
    /// 300 s. Errors: TooLarge (MaxMessageSize, 1 MiB, or 2 file descriptors), InvalidArgument (an
    /// attribute that the mechanism does not have), Closed, Busy, Timeout, Cancelled.
    async fn send(
        &self,
        data: &[u8],
        attributes: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        self.send_bytes(data, attributes, timeout_ms, &header).await
    }

    /// Sends text, as UTF-8 without a terminating zero.
    async fn send_text(
        &self,
        text: &str,
        attributes: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<()> {
        self.send_bytes(text.as_bytes(), attributes, timeout_ms, &header).await
    }

    /// Takes one message, waiting until there is one. An empty selector takes the next.
    /// timeout_ms as for Send. A message with more than 1 MiB or more than 4 file descriptors is
    /// kept: TooLarge. Errors: Busy, Timeout, Closed, Cancelled.
    #[zbus(out_args("data", "attributes"))]
    async fn receive(
        &self,
        selector: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(ByteBuf, Vardict)> {
        as_bytes(self.take(selector, timeout_ms, &header).await?)
    }

    /// Takes one message as text. One that is not UTF-8 is an error and stays.
    #[zbus(out_args("text", "attributes"))]
    async fn receive_text(
        &self,
        selector: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(String, Vardict)> {
        let message = self.take(selector, timeout_ms, &header).await?;
        self.as_text(message, true)
    }

    /// The next message, which stays; NotSupported where the kernel cannot.
    #[zbus(out_args("data", "attributes"))]
    async fn peek(
        &self,
        selector: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(ByteBuf, Vardict)> {
        as_bytes(self.look(selector, timeout_ms, &header).await?)
    }

    /// The next message as text, which stays.
    #[zbus(out_args("text", "attributes"))]
    async fn peek_text(
        &self,
        selector: Given<'_>,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(String, Vardict)> {
        let message = self.look(selector, timeout_ms, &header).await?;
        self.as_text(message, false)
    }

    /// Takes every message that waits now and that the selector asks for, without returning them,
    /// and says how many: at most 65,536, then call again. An empty selector empties the queue.
    /// Errors as for Receive.
    #[zbus(out_args("count"))]
    async fn purge(&self, selector: Given<'_>, #[zbus(header)] header: Header<'_>) -> Result<u64> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.purge(&call, &self.endpoint, &dict(selector)?).await?)
    }

    /// What Received signals have said since number seq, as far as it is kept (1,024 events and
    /// 1 MiB), and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let mut kept = Vec::new();
        for event in events {
            if let Happening::Received { data, attributes } = event.happening {
                kept.push((event.seq, event.at, ByteBuf::from(data), vardict(attributes)?));
            }
        }
        Ok((kept, lost))
    }

    /// A message came and was taken (option deliver). Without bytes and with the attribute overflow (s), it says
    /// that messages were lost here, and why.
    #[zbus(signal)]
    pub async fn received(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        data: &[u8],
        attributes: Vardict,
    ) -> zbus::Result<()>;

    /// A message is waiting; nothing was taken. With the option notify, and again after each
    /// Receive behind which another one waits; with deliver, for a message that no signal can
    /// carry: for its size, or because it brings file descriptors.
    #[zbus(signal)]
    pub async fn ready(emitter: &SignalEmitter<'_>, seq: u64) -> zbus::Result<()>;

    /// The largest message that can be sent, in bytes.
    #[zbus(property(emits_changed_signal = "false"))]
    fn max_message_size(&self) -> Result<u64> {
        Ok(self.endpoint.messages()?.max_message_size())
    }

    /// How many messages wait: those that the kernel has, and those that were taken and given back. Not there where
    /// the kernel does not tell.
    #[zbus(property(emits_changed_signal = "false"))]
    fn depth(&self) -> Result<u64> {
        Ok(self.endpoint.messages_depth()?)
    }
}
