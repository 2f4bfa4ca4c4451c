//! `org.example.IPC.Memory`: memory that processes share.

use ipc_kernel::{
    Error,
    shape::{self, Word},
};
use serde_bytes::ByteBuf;
use zbus::{OwnedVariant, Variant, interface, message::Header};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{word, word_variant},
};

served!(Memory);

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
        self.on_memory(move |memory| memory.resize(size)).await
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
