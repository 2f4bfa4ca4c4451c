//! `org.example.IPC.Memory`: memory that processes share.

use ipc_engine::events::Happening;
use ipc_kernel::{
    Error, Value,
    shape::{self, Word},
};
use serde_bytes::ByteBuf;
use zbus::{ObjectPath, OwnedVariant, Variant, interface, message::Header, object_server::SignalEmitter};

use crate::{
    errors::Result,
    interfaces::served,
    paths,
    variants::{Given, dict, word, word_variant},
};

served!(Memory);

/// A change that was kept: number, time in microseconds since the epoch, watch, offset, length.
type Kept = (u64, u64, u32, u64, u64);

impl Memory {
    async fn on_memory<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&dyn shape::Memory) -> ipc_kernel::Result<T> + Send + 'static,
    ) -> Result<T> {
        Ok(self.face.engine.on_memory(&self.endpoint, operation).await?)
    }
}

#[interface(name = "org.example.IPC.Memory")]
impl Memory {
    /// Reads exactly length bytes from offset.
    #[zbus(out_args("data"))]
    async fn read(&self, offset: u64, length: u64, #[zbus(header)] header: Header<'_>) -> Result<ByteBuf> {
        let _call = self.face.call(&header)?;
        Ok(ByteBuf::from(self.face.engine.memory_read(&self.endpoint, offset, length).await?))
    }

    /// Reads a text: up to length bytes, ending before the first zero byte.
    #[zbus(out_args("text"))]
    async fn read_text(
        &self,
        offset: u64,
        length: u64,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String> {
        let _call = self.face.call(&header)?;
        let mut data = self.face.engine.memory_read(&self.endpoint, offset, length).await?;
        if let Some(end) = data.iter().position(|&byte| byte == 0) {
            data.truncate(end);
        }
        let text = String::from_utf8(data).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::invalid(format!(
                "the memory is not UTF-8 from byte {at} on: use Read, which returns bytes"
            ))
        })?;
        Ok(text)
    }

    /// Writes the bytes at offset.
    async fn write(&self, offset: u64, data: &[u8], #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.memory_write(&self.endpoint, offset, data).await?)
    }

    /// Writes text at offset, as UTF-8 without a terminating zero.
    async fn write_text(&self, offset: u64, text: &str, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.memory_write(&self.endpoint, offset, text.as_bytes()).await?)
    }

    /// Reads a word: u8, u16, u32, u64, i8, i16, i32, i64, f32 or f64. D-Bus has no types for i8
    /// and f32: they come as n and d.
    #[zbus(out_args("value"))]
    async fn load(
        &self,
        offset: u64,
        r#type: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedVariant> {
        let _call = self.face.call(&header)?;
        let kind = Word::zero(r#type)?;
        word_variant(self.on_memory(move |memory| memory.load(offset, kind)).await?)
    }

    /// Writes a word of the value's own D-Bus type (y q u t n i x d), or of a type that is named: a
    /// structure (sv) of the name and the value, such as ("f32", 1.5).
    async fn store(&self, offset: u64, value: Variant<'_>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        let value = word(&value)?;
        self.on_memory(move |memory| memory.store(offset, value)).await
    }

    /// Writes desired if the word is expected; says whether it did, and what was there. Both must
    /// be words of the same type, given as in Store.
    #[zbus(out_args("exchanged", "found"))]
    async fn compare_exchange(
        &self,
        offset: u64,
        expected: Variant<'_>,
        desired: Variant<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(bool, OwnedVariant)> {
        let _call = self.face.call(&header)?;
        let (expected, desired) = (word(&expected)?, word(&desired)?);
        if std::mem::discriminant(&expected) != std::mem::discriminant(&desired) {
            return Err(Error::invalid("expected and desired must be words of the same type").into());
        }
        let exchange = move |memory: &dyn shape::Memory| memory.compare_exchange(offset, expected, desired);
        let (exchanged, found) = self.on_memory(exchange).await?;
        Ok((exchanged, word_variant(found)?))
    }

    /// Adds to a word, given as in Store, and returns what was there before. Integers wrap around.
    #[zbus(out_args("before"))]
    async fn fetch_add(
        &self,
        offset: u64,
        value: Variant<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedVariant> {
        let _call = self.face.call(&header)?;
        let value = word(&value)?;
        word_variant(self.on_memory(move |memory| memory.fetch_add(offset, value)).await?)
    }

    /// Changes the size. Other processes that map what is cut off get SIGBUS when they touch it;
    /// a shrink seal prevents that.
    async fn resize(&self, size: u64, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.on_memory_at_length(&self.endpoint, move |memory| memory.resize(size)).await?)
    }

    /// Sets memory or disk space aside for a range, so that stores into it do not run out of it
    /// (fallocate(2)). Errors: InvalidArgument, LimitExceeded, NotSupported.
    async fn allocate(&self, offset: u64, length: u64, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self
            .face
            .engine
            .on_memory_at_length(&self.endpoint, move |memory| memory.allocate(offset, length))
            .await?)
    }

    /// Gives back what a range takes up; it reads as zeros then, for everybody (fallocate(2),
    /// FALLOC_FL_PUNCH_HOLE). Errors: InvalidArgument, PermissionDenied, NotSupported.
    async fn punch_hole(&self, offset: u64, length: u64, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self
            .face
            .engine
            .on_memory_at_length(&self.endpoint, move |memory| memory.punch_hole(offset, length))
            .await?)
    }

    /// Adds seals: shrink, grow, write, future-write, exec, seal. They cannot be taken back.
    async fn seal(&self, seals: Vec<String>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        self.on_memory(move |memory| memory.seal(&seals)).await
    }

    /// Flushes to the file behind it.
    async fn sync(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        self.on_memory(|memory| memory.sync()).await
    }

    /// Watches a range: what changes in it is told by Changed. The kernel has no event for stores, so
    /// the service looks again every interval-ms (u, default 100, at least 10). Or it looks when it is
    /// told to, by an endpoint of this service in the option with (o): a semaphore, of which each look
    /// takes one unit; or a futex, at each wake-up and each new value. What changes and changes back
    /// between two looks is not seen. A watch ends with UnwatchRange, the endpoint, or the
    /// connection that asked for it. All watched ranges together are bounded by the limit payload.
    /// Errors: InvalidArgument, TooLarge, LimitExceeded.
    #[zbus(out_args("watch"))]
    async fn watch_range(
        &self,
        offset: u64,
        length: u64,
        options: Given<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<u32> {
        let call = self.face.call(&header)?;
        let engine = &self.face.engine;
        let mut options = dict(options)?;
        let with = match options.remove("with") {
            Some(Value::Text(path)) => {
                let path = ObjectPath::try_from(path)
                    .map_err(|_| Error::invalid("the key \"with\" must be an object path"))?;
                Some(paths::find_endpoint(engine, &path)?)
            }
            Some(_) => {
                return Err(Error::invalid("the key \"with\" must be an object path (D-Bus type o)").into());
            }
            None => None,
        };
        Ok(engine.watch_range(&call, &self.endpoint, (offset, length), options, with).await?)
    }

    /// Ends a watch of this endpoint, whoever began it. Errors: NotFound.
    fn unwatch_range(&self, watch: u32, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.unwatch_range(&self.endpoint, watch)?)
    }

    /// What Changed signals have said since number seq, as far as it is kept (1,024 events): number,
    /// time in microseconds since the epoch, watch, offset, length; and how many are no longer kept.
    #[zbus(out_args("events", "lost"))]
    fn since(&self, seq: u64, #[zbus(header)] header: Header<'_>) -> Result<(Vec<Kept>, u64)> {
        let _call = self.face.call(&header)?;
        let (events, lost) = self.endpoint.events.since(seq);
        let kept = events.into_iter().filter_map(|event| match event.happening {
            Happening::RangeChanged { watch, offset, length } => {
                Some((event.seq, event.at, watch, offset, length))
            }
            _ => None,
        });
        Ok((kept.collect(), lost))
    }

    /// Memory under a watch has changed: the smallest range that holds all changes since the last
    /// look. offset counts from the start of the memory, as in Read. A range that can no longer be
    /// read, or can again, has changed as a whole. A length of 0 says that the watch has ended
    /// because what drove it has gone.
    #[zbus(signal)]
    pub async fn changed(
        emitter: &SignalEmitter<'_>,
        seq: u64,
        watch: u32,
        offset: u64,
        length: u64,
    ) -> zbus::Result<()>;

    /// The size in bytes.
    #[zbus(property(emits_changed_signal = "false"))]
    fn size(&self) -> Result<u64> {
        Ok(self.endpoint.memory()?.size()?)
    }

    /// The seals that it has.
    #[zbus(property(emits_changed_signal = "false"))]
    fn seals(&self) -> Result<Vec<String>> {
        Ok(self.endpoint.memory()?.seals())
    }

    /// Whether the service may only read it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn read_only(&self) -> Result<bool> {
        Ok(self.endpoint.memory()?.read_only())
    }
}
