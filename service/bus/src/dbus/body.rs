//! Bodies of messages: the bytes of a message of ours as the arguments of one of D-Bus, and back.
//!
//! In the form *plain*, a body of one array of bytes (`ay`) is those bytes, one of a string (`s`) is its
//! text, and no arguments are no bytes. Everything else, and all in the form *json*, is a JSON array
//! of the arguments ([`json`](super::json)).

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    str::{self, FromStr},
};

use ipc_kernel::{Error, Fd, Kind, Result};
use serde::{
    Serialize, Serializer,
    de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor},
    ser::SerializeTuple,
};
use serde_bytes::ByteBuf;
use serde_json::Value as Json;
use zbus::{DynamicType, Message, Signature, message::Builder, wire::DynamicDeserialize};

use super::{
    json::{Descriptors, Inward, Outward},
    template::Template,
};

/// The most bytes of a body as it is here, in either direction.
pub const MOST_BYTES: usize = 4 << 20;

/// What the wire adds to a string or to bytes: their length, and a zero.
const FRAME: usize = 5;

/// The most bytes of a body on the wire that becomes JSON, which is several times as long.
const MOST_AS_JSON: usize = 1 << 20;

/// A bus passes on no message with more (session.conf, max_message_unix_fds).
pub const MOST_FDS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Json,
}

/// The types of the arguments of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Types {
    pub text: String,
    all: Vec<Signature>,
    /// The arguments, where the message is but a text in them.
    pub template: Option<Template>,
}

impl FromStr for Types {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("{text:?} is no signature of D-Bus, such as s, ay or a{{sv}}u"));
        // Together they are a structure without its parentheses, and are not longer than one may be.
        Signature::try_from(text).map_err(|_| wrong())?;
        let all = match text {
            "" => Vec::new(),
            _ => match Signature::try_from(format!("({text})").as_str()).map_err(|_| wrong())? {
                Signature::Structure(fields) => fields.iter().cloned().collect(),
                _ => return Err(wrong()),
            },
        };
        Ok(Self { text: text.to_owned(), all, template: None })
    }
}

/// Puts bytes into a message under construction.
pub fn build(builder: Builder<'_>, form: Form, types: &Types, data: &[u8], fds: &[Fd]) -> Result<Message> {
    check_length(data.len())?;
    if fds.len() > MOST_FDS {
        let text =
            format!("{} file descriptors are more than a message on a bus may have, {MOST_FDS}", fds.len());
        return Err(Error::new(Kind::TooLarge, text));
    }
    if !fds.is_empty() && !types.text.contains(['h', 'v']) {
        return Err(Error::not_supported(format!(
            "the signature {:?} has no place for file descriptors; give one with h, and their numbers in the JSON",
            types.text
        )));
    }
    if let Some(template) = &types.template {
        return arguments(builder, types, &template.filled(data)?, fds);
    }
    let built = match (form, types.text.as_str()) {
        (Form::Plain, "ay") => builder.build(&ByteBuf::from(data)),
        (Form::Plain, "s") => builder.build(&text(data)?),
        (_, "") if data.is_empty() => builder.build(&()),
        _ => return arguments(builder, types, &read(types, data)?, fds),
    };
    built.map_err(|error| Error::invalid(format!("the message cannot be written: {error}")))
}

/// Err(TooLarge): a body of so many bytes is too long.
pub fn check_length(bytes: usize) -> Result<()> {
    match bytes <= MOST_BYTES {
        true => Ok(()),
        false => Err(Error::new(
            Kind::TooLarge,
            format!("the message has {bytes} bytes; a body may have {MOST_BYTES} (MaxMessageSize)"),
        )),
    }
}

pub fn text(data: &[u8]) -> Result<&str> {
    match str::from_utf8(data) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(_) => Err(Error::invalid(
            "the body has a zero byte, which no string of D-Bus has; signature=ay takes any bytes",
        )),
        Err(error) => Err(Error::invalid(format!(
            "the body is not UTF-8 from byte {} on; signature=ay takes any bytes",
            error.valid_up_to()
        ))),
    }
}

pub fn read(types: &Types, data: &[u8]) -> Result<Vec<Json>> {
    let wanted = || {
        format!(
            "the body must be a JSON array of the {} arguments for the signature {:?}",
            types.all.len(),
            types.text
        )
    };
    match serde_json::from_slice(data) {
        Ok(Json::Array(values)) if values.len() == types.all.len() => Ok(values),
        Ok(Json::Array(values)) => Err(Error::invalid(format!("{}, not of {}", wanted(), values.len()))),
        Ok(_) => Err(Error::invalid(format!("{}, such as [1, \"x\"]", wanted()))),
        Err(error) => Err(Error::invalid(format!("{}: {error}", wanted()))),
    }
}

/// A message with these arguments.
fn arguments(builder: Builder<'_>, types: &Types, values: &[Json], fds: &[Fd]) -> Result<Message> {
    let descriptors = Descriptors::new(fds);
    let built = match values {
        [] => builder.build(&()),
        values => builder.build(&Arguments { types: &types.all, values, fds: &descriptors }),
    };
    let message = built.map_err(|error| {
        Error::invalid(format!("the body does not fit the signature {:?}: {error}", types.text))
    })?;
    match descriptors.unnamed() {
        None => Ok(message),
        Some(index) => Err(Error::invalid(format!(
            "the body does not name file descriptor {index} of the message; its number stands where the signature has h"
        ))),
    }
}

struct Arguments<'a> {
    types: &'a [Signature],
    values: &'a [Json],
    fds: &'a Descriptors<'a>,
}

impl DynamicType for Arguments<'_> {
    fn signature(&self) -> Signature {
        Signature::structure(self.types.to_vec())
    }
}

impl Serialize for Arguments<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut all = serializer.serialize_tuple(self.values.len())?;
        for (index, (signature, value)) in self.types.iter().zip(self.values).enumerate() {
            all.serialize_element(&Outward { signature, value, fds: self.fds })
                .map_err(|error| serde::ser::Error::custom(format!("argument {index} {error}")))?;
        }
        all.end()
    }
}

/// The body of a message that came.
#[derive(Debug, Default)]
pub struct Body {
    pub data: Vec<u8>,
    pub signature: String,
    pub fds: Vec<OwnedFd>,
}

/// The body of a message in this form; an error says in words why it cannot be had.
pub fn take(message: &Message, form: Form) -> std::result::Result<Body, String> {
    let body = message.body();
    let signature = signature(message);
    let read = |error: zbus::Error| format!("its body cannot be read: {error}");
    if body.len() > MOST_BYTES + FRAME {
        return Err(too_long(body.len(), MOST_BYTES));
    }
    if form == Form::Plain {
        let data = match signature.as_str() {
            "ay" => Some(body.deserialize::<ByteBuf>().map_err(read)?.into_vec()),
            "s" => Some(body.deserialize::<&str>().map_err(read)?.as_bytes().to_vec()),
            "" => Some(Vec::new()),
            _ => None,
        };
        if let Some(data) = data {
            return Ok(Body { data, signature, fds: Vec::new() });
        }
    }
    let Values { values, fds } = values(message)?;
    Ok(Body { data: Json::Array(values).to_string().into_bytes(), signature, fds })
}

fn too_long(bytes: usize, most: usize) -> String {
    format!("its body has {bytes} bytes, more than {most}")
}

/// The arguments of a message, and the file descriptors that they name.
#[derive(Default)]
pub struct Values {
    pub values: Vec<Json>,
    pub fds: Vec<OwnedFd>,
}

pub fn values(message: &Message) -> std::result::Result<Values, String> {
    let body = message.body();
    if body.len() > MOST_AS_JSON {
        return Err(too_long(body.len(), MOST_AS_JSON));
    }
    if body.signature() == &Signature::Unit {
        return Ok(Values::default());
    }
    let mut values: Values =
        body.deserialize().map_err(|error| format!("its body cannot be read: {error}"))?;
    // One structure is to zbus the same as its fields.
    if super::json::single(&signature(message)).is_some_and(|one| matches!(one, Signature::Structure(_))) {
        values.values = vec![Json::Array(std::mem::take(&mut values.values))];
    }
    Ok(values)
}

impl DynamicType for Values {
    fn signature(&self) -> Signature {
        Signature::Unit
    }
}

impl<'de> DynamicDeserialize<'de> for Values {
    type Deserializer = ValuesSeed;

    fn deserializer_for_signature(signature: &Signature) -> zbus::Result<ValuesSeed> {
        Ok(ValuesSeed(match signature {
            Signature::Structure(_) => signature.clone(),
            one => Signature::structure([one.clone()]),
        }))
    }
}

/// Reads the arguments of these types, which are a structure.
pub struct ValuesSeed(Signature);

impl DynamicType for ValuesSeed {
    fn signature(&self) -> Signature {
        self.0.clone()
    }
}

impl<'de> DeserializeSeed<'de> for ValuesSeed {
    type Value = Values;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Values, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ValuesSeed {
    type Value = Values;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the arguments of a message")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Values, A::Error> {
        let Signature::Structure(types) = &self.0 else {
            return Err(de::Error::custom("no arguments"));
        };
        let (mut values, fds) = (Vec::new(), RefCell::default());
        for signature in types.iter() {
            values.extend(seq.next_element_seed(Inward { signature, fds: &fds })?);
        }
        let fds: Vec<OwnedFd> = fds.into_inner();
        if fds.len() > MOST_FDS {
            return Err(de::Error::custom(format!("{} file descriptors, more than {MOST_FDS}", fds.len())));
        }
        Ok(Values { values, fds })
    }
}

/// The signature of a body, letter by letter: to zbus, one structure `(ss)` and its fields `ss` are the same.
pub fn signature(message: &Message) -> String {
    let written = signature_field(message.data().bytes()).and_then(|field| str::from_utf8(field).ok());
    written.map_or_else(|| message.body().signature().to_string_no_parens(), str::to_owned)
}

/// The field SIGNATURE in a header (D-Bus specification, "Header Fields"), which zbus has read before.
fn signature_field(message: &[u8]) -> Option<&[u8]> {
    const SIGNATURE: u8 = 8;
    let number = |at: usize| {
        let bytes = message.get(at..at + 4)?.try_into().ok()?;
        Some(if message[0] == b'l' { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) } as usize)
    };
    let end = 16 + number(12)?;
    let mut at = 16;
    while at < end {
        at = at.next_multiple_of(8);
        let code = *message.get(at)?;
        // The type of the field, which is a variant: a length of 1, the letter, and a zero.
        let letter = message.get(at + 1..at + 4)?[1];
        at += 4;
        let (start, length) = match letter {
            b'g' => (at + 1, usize::from(*message.get(at)?)),
            b's' | b'o' => (at.next_multiple_of(4) + 4, number(at.next_multiple_of(4))?),
            b'u' => (at.next_multiple_of(4), 3),
            _ => return None,
        };
        if code == SIGNATURE {
            return message.get(start..start + length);
        }
        at = start + length + 1;
    }
    // There is none: no body.
    Some(&[])
}

/// A JSON value as a property of this type, in the body of `org.freedesktop.DBus.Properties.Set`.
pub fn set_property(
    builder: Builder<'_>,
    interface: &str,
    property: &str,
    signature: &str,
    data: &[u8],
) -> Result<Message> {
    let value: Json = serde_json::from_slice(data).map_err(|error| {
        Error::invalid(format!("the value must be JSON of the D-Bus type {signature}: {error}"))
    })?;
    let variant = serde_json::json!({ "type": signature, "data": value });
    let types = Types::from_str("ssv")?;
    arguments(builder, &types, &[interface.into(), property.into(), variant], &[])
}
