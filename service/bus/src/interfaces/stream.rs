//! `org.example.IPC.Stream`: bytes without borders.

use ipc_engine::events::Happening;
use ipc_kernel::Error;
use serde_bytes::ByteBuf;
use zbus::{interface, message::Header, object_server::SignalEmitter};

use crate::{errors::Result, interfaces::served};

served!(Stream);

/// An event that was kept: number, time in microseconds since the epoch, bytes.
type Kept = (u64, u64, ByteBuf);

/// Whether there is more than the beginning of a character.
fn has_character(data: &[u8]) -> bool {
    std::str::from_utf8(data)
        .map_or_else(|error| error.valid_up_to() > 0 || error.error_len().is_some(), |_| true)
}

#[interface(name = "org.example.IPC.Stream")]
impl Stream {
    /// Reads up to max bytes, waiting until there are some; empty means end of stream.
    /// timeout_ms: 0 does not wait (Busy), 4294967295 is the default of 20 s, at most 300 s.
    /// More than 1 MiB (payload) is never returned at once. Errors: Busy, Timeout, Closed (this
    /// direction was shut down), Cancelled, LimitExceeded (waits).
    #[zbus(out_args("data"))]
    async fn read(&self, max: u32, timeout_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<ByteBuf> {
        let call = self.face.call(&header)?;
        Ok(ByteBuf::from(self.face.engine.read(&call, &self.endpoint, max, timeout_ms).await?))
    }

    /// Reads as text. Bytes that are not UTF-8, and a zero byte, which no text has, are an error and
    /// stay; a character that was cut in two is completed by the next call. The first character
    /// comes whole, even beyond max.
    #[zbus(out_args("text"))]
    async fn read_text(
        &self,
        max: u32,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String> {
        let call = self.face.call(&header)?;
        let engine = &self.face.engine;
        let data = engine.read_until(&call, &self.endpoint, max, timeout_ms, has_character).await?;
        if let Some(zero) = data.iter().position(|byte| *byte == 0) {
            self.endpoint.keep_bytes(&data);
            let text = format!("byte {zero} of the data is 0; it was kept: use Read, which returns bytes");
            return Err(Error::invalid(text).into());
        }
        let error = match String::from_utf8(data) {
            Ok(text) => return Ok(text),
            Err(error) => error,
        };
        let (valid, cut) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
        let mut data = error.into_bytes();
        if !cut || valid == 0 {
            self.endpoint.keep_bytes(&data);
            let text = format!(
                "the data is not UTF-8 from byte {valid} on; it was kept: use Read, which returns bytes"
            );
            return Err(Error::invalid(text).into());
        }
        self.endpoint.keep_bytes(&data.split_off(valid));
        // Everything before `valid` was found to be UTF-8.
        Ok(String::from_utf8(data).unwrap_or_default())
    }

    /// Writes the bytes, at most 1 MiB, waiting for room, and says how many were written: all,
    /// unless the time ran out after some. timeout_ms as for Read. Errors: TooLarge, Closed (no
    /// reader is left), Busy and Timeout (nothing was written), Cancelled.
    #[zbus(out_args("written"))]
    async fn write(&self, data: &[u8], timeout_ms: u32, #[zbus(header)] header: Header<'_>) -> Result<u64> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.write(&call, &self.endpoint, data, timeout_ms).await?)
    }

    /// Writes text, as UTF-8 without a terminating zero.
    #[zbus(out_args("written"))]
    async fn write_text(
        &self,
        text: &str,
        timeout_ms: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<u64> {
        let call = self.face.call(&header)?;
        Ok(self.face.engine.write(&call, &self.endpoint, text.as_bytes(), timeout_ms).await?)
    }

    /// Ends a direction: read, write or both. After write, the peer reads end of stream.
    fn shutdown(&self, direction: &str, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.stream()?.shutdown(direction.parse()?)?)
    }

    /// What Received signals have said since number seq, as far as it is kept (1,024 events and
    /// 1 MiB), and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            Happening::Received { data, .. } => Some((event.seq, event.at, ByteBuf::from(data))),
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// Bytes came and were taken (option deliver); empty: end of stream.
    #[zbus(signal)]
    pub async fn received(emitter: &SignalEmitter<'_>, seq: u64, data: &[u8]) -> zbus::Result<()>;

    /// How many bytes wait: those that the kernel has for this endpoint (FIONREAD; of a pipe or FIFO all that are in
    /// it, through whichever end the service holds), and those that were taken and given back. It changes with each
    /// write and read of anybody, and so no signal tells of it. Not there while the service holds no end of the
    /// pipe or FIFO; a FIFO's are opened at the first Read or Write, or with hold=true.
    #[zbus(property(emits_changed_signal = "false"))]
    fn depth(&self) -> Result<u64> {
        Ok(self.endpoint.depth()?)
    }
}
