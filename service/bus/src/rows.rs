//! The reply of `List()`: rows written straight as they go on the wire (D-Bus specification,
//! "Marshaling"), because by way of zbus's values ten thousand rows of twenty cells cost more than
//! everything else about them.
//!
//! An `aa{sv}` is the only argument of its message. So its length stands in the first four bytes
//! of the body, and its elements begin at the fifth: what is aligned to eight bytes in the body is so
//! when four are counted in front of the elements. zbus writes the length when it is given bytes.

use ipc_kernel::{Error, Kind, Result, Value, listing::Listing};
use serde::{Serialize, Serializer};
use zbus::{Signature, Type};

use crate::variants::{Vardict, text as zero_free};

/// The elements of an `aa{sv}`, in the byte order of the machine, as zbus writes all else.
#[derive(Debug)]
pub struct Rows(Vec<u8>);

impl Type for Rows {
    const SIGNATURE: &'static Signature = <Vec<Vardict> as Type>::SIGNATURE;
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

/// The length of the whole array, in front of the elements.
const BEFORE: usize = 4;

impl Rows {
    /// Of at most `longest` bytes; `limit` is the key of that limit.
    pub fn new(listing: &Listing, longest: u32, limit: &str) -> Result<Self> {
        let mut writer = Writer::default();
        for row in listing.rows() {
            writer.dict(row.iter().map(|(key, value)| (&**key, value)))?;
            if writer.0.len() > longest as usize {
                return Err(Error::new(
                    Kind::TooLarge,
                    format!(
                        "the list has {} rows, more than the {longest} bytes ({limit}) that one reply may have; give \
                         a filter, such as owner, or ask through Connect()",
                        listing.len()
                    ),
                ));
            }
        }
        Ok(Self(writer.0))
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, alignment: usize) {
        let aligned = (BEFORE + self.0.len()).next_multiple_of(alignment);
        self.0.resize(aligned - BEFORE, 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn length(length: usize) -> Result<u32> {
        length.try_into().map_err(|_| Error::new(Kind::TooLarge, "a value in a list has more than 4 GiB"))
    }

    /// No string of D-Bus has a zero.
    fn text(&mut self, text: &str) -> Result<()> {
        self.u32(Self::length(text.len())?);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.u32(Self::length(bytes.len())?);
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn signature(&mut self, signature: &str) {
        // None is longer than 255 bytes.
        self.0.push(signature.len() as u8);
        self.0.extend_from_slice(signature.as_bytes());
        self.0.push(0);
    }

    /// An array: its length in bytes, without the padding before the first element.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.u32(0);
        let place = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self)?;
        let length = Self::length(self.0.len() - start)?;
        self.0[place..place + 4].copy_from_slice(&length.to_ne_bytes());
        Ok(())
    }

    fn dict<'a>(&mut self, cells: impl Iterator<Item = (&'a str, &'a Value)>) -> Result<()> {
        self.array(8, |writer| {
            for (key, value) in cells {
                writer.align(8);
                writer.text(key)?;
                writer.variant(value)?;
            }
            Ok(())
        })
    }

    fn variant(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Text(text) if text.contains('\0') => {
                self.signature("ay");
                return self.bytes(text.as_bytes());
            }
            value => self.signature(value.signature()),
        }
        match value {
            Value::Bool(value) => self.u32((*value).into()),
            Value::I32(value) => self.u32(value.cast_unsigned()),
            Value::U32(value) => self.u32(*value),
            Value::I64(value) => self.u64(value.cast_unsigned()),
            Value::U64(value) => self.u64(*value),
            Value::F64(value) => self.u64(value.to_bits()),
            Value::Text(text) => self.text(text)?,
            Value::Bytes(bytes) => self.bytes(bytes)?,
            Value::Texts(texts) => {
                self.array(4, |writer| texts.iter().try_for_each(|text| writer.text(&zero_free(text))))?;
            }
            Value::I32s(numbers) => self.array(4, |writer| {
                numbers.iter().for_each(|number| writer.u32(number.cast_unsigned()));
                Ok(())
            })?,
            Value::U32s(numbers) => self.array(4, |writer| {
                numbers.iter().for_each(|number| writer.u32(*number));
                Ok(())
            })?,
            Value::Dict(dict) => self.dict(dict.iter().map(|(key, value)| (&**key, value)))?,
            Value::Dicts(dicts) => self.array(4, |writer| {
                dicts.iter().try_for_each(|dict| writer.dict(dict.iter().map(|(key, value)| (&**key, value))))
            })?,
            Value::Fd(_) | Value::Fds(_) => {
                return Err(Error::not_supported("a list has no file descriptors"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ipc_kernel::{Dict, dict};
    use proptest::prelude::*;
    use zbus::{Message, OwnedVariant};

    use super::*;
    use crate::variants::vardict;

    fn message(body: &(impl Serialize + zbus::DynamicType)) -> Message {
        Message::signal("/x", "x.y", "Z").build(body).expect("a body")
    }

    /// What zbus makes of the same rows is the same, byte for byte.
    #[track_caller]
    fn same(rows: Vec<Dict>) {
        let ours = message(&Rows::new(&rows.clone().into(), u32::MAX, "list").expect("rows"));
        let zbus: Vec<_> = rows.into_iter().map(|row| vardict(row).expect("no descriptors")).collect();
        let theirs = message(&zbus);
        assert_eq!(ours.body().signature(), theirs.body().signature());
        assert_eq!(&ours.body().data()[..], &theirs.body().data()[..]);
        let read: Vec<BTreeMap<String, OwnedVariant>> = ours.body().deserialize().expect("valid");
        assert_eq!(read.len(), zbus.len());
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = "[a-z\\x00é]{0,9}";
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i32>().prop_map(Value::I32),
            any::<u32>().prop_map(Value::U32),
            any::<i64>().prop_map(Value::I64),
            any::<u64>().prop_map(Value::U64),
            any::<f64>().prop_map(Value::F64),
            text.prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(Value::Bytes),
            proptest::collection::vec(text, 0..4).prop_map(Value::Texts),
            proptest::collection::vec(any::<u32>(), 0..4).prop_map(Value::U32s),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            let dict = proptest::collection::btree_map("[a-z]{0,9}", inner, 0..4);
            prop_oneof![
                dict.clone().prop_map(Value::Dict),
                proptest::collection::vec(dict, 0..3).prop_map(Value::Dicts),
            ]
        })
    }

    proptest! {
        #[test]
        fn rows_are_written_as_by_zbus(
            rows in proptest::collection::vec(proptest::collection::btree_map("[a-z]{0,12}", value(), 0..6), 0..5),
        ) {
            same(rows);
        }
    }

    #[test]
    fn a_list_that_is_too_large_says_what_helps() {
        let listing = Listing::from(vec![dict! { "key" => "x".repeat(100) }; 20]);
        let error = Rows::new(&listing, 1000, "payload").expect_err("too large");
        assert_eq!(error.kind, Kind::TooLarge);
        assert!(error.text.contains("20 rows") && error.text.contains("1000 bytes (payload)"), "{error}");
        assert!(Rows::new(&listing, 10_000, "payload").is_ok());
    }
}
