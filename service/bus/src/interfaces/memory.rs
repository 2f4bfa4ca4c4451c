//! `org.example.IPC.Memory`: memory that processes share.

use ipc_kernel::{Error, shape::Word};
use serde_bytes::ByteBuf;
use zbus::{OwnedVariant, Variant, interface, message::Header};

use crate::{
    errors::Result,
    interfaces::served,
    variants::{word, word_variant},
};

served!(Memory);

#[interface(name = "org.example.IPC.Memory")]
impl Memory {
    /// Reads exactly length bytes from offset.
    #[zbus(out_args("data"))]
    fn read(&self, offset: u64, length: u64, #[zbus(header)] header: Header<'_>) -> Result<ByteBuf> {
        let _call = self.face.call(&header)?;
        Ok(ByteBuf::from(self.face.engine.memory_read(&self.endpoint, offset, length)?))
    }

    /// Reads a text: up to length bytes, ending before the first zero byte.
    #[zbus(out_args("text"))]
    fn read_text(&self, offset: u64, length: u64, #[zbus(header)] header: Header<'_>) -> Result<String> {
        let _call = self.face.call(&header)?;
        let mut data = self.face.engine.memory_read(&self.endpoint, offset, length)?;
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
    fn write(&self, offset: u64, data: &[u8], #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.memory_write(&self.endpoint, offset, data)?)
    }

    /// Writes text at offset, as UTF-8 without a terminating zero.
    fn write_text(&self, offset: u64, text: &str, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.face.engine.memory_write(&self.endpoint, offset, text.as_bytes())?)
    }

    /// Reads a word: u8, u16, u32, u64, i16, i32, i64 or f64.
    #[zbus(out_args("value"))]
    fn load(&self, offset: u64, r#type: &str, #[zbus(header)] header: Header<'_>) -> Result<OwnedVariant> {
        let _call = self.face.call(&header)?;
        word_variant(self.endpoint.memory()?.load(offset, Word::zero(r#type)?)?)
    }

    /// Writes a word of the value's own D-Bus type (y q u t n i x d).
    fn store(&self, offset: u64, value: Variant<'_>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.memory()?.store(offset, word(&value)?)?)
    }

    /// Writes desired if the word is expected; says whether it did, and what was there. Both must
    /// have the same D-Bus type.
    #[zbus(out_args("exchanged", "found"))]
    fn compare_exchange(
        &self,
        offset: u64,
        expected: Variant<'_>,
        desired: Variant<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(bool, OwnedVariant)> {
        let _call = self.face.call(&header)?;
        let (expected, desired) = (word(&expected)?, word(&desired)?);
        if std::mem::discriminant(&expected) != std::mem::discriminant(&desired) {
            return Err(Error::invalid("expected and desired must have the same D-Bus type").into());
        }
        let (exchanged, found) = self.endpoint.memory()?.compare_exchange(offset, expected, desired)?;
        Ok((exchanged, word_variant(found)?))
    }

    /// Adds to a word, wrapping around, and returns what was there before.
    #[zbus(out_args("before"))]
    fn fetch_add(
        &self,
        offset: u64,
        value: Variant<'_>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedVariant> {
        let _call = self.face.call(&header)?;
        word_variant(self.endpoint.memory()?.fetch_add(offset, word(&value)?)?)
    }

    /// Changes the size. Other processes that map what is cut off get SIGBUS when they touch it;
    /// a shrink seal prevents that.
    fn resize(&self, size: u64, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.memory()?.resize(size)?)
    }

    /// Adds seals: shrink, grow, write, future-write, exec, seal. They cannot be taken back.
    fn seal(&self, seals: Vec<String>, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.memory()?.seal(&seals)?)
    }

    /// Flushes to the file behind it.
    fn sync(&self, #[zbus(header)] header: Header<'_>) -> Result<()> {
        let _call = self.face.call(&header)?;
        Ok(self.endpoint.memory()?.sync()?)
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
