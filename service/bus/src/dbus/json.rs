//! Values of D-Bus as JSON and back, in the form of `busctl --json`, written straight from and to the
//! wire: a value is what its signature says, whatever JSON makes of it.
//!
//! | D-Bus | JSON |
//! | --- | --- |
//! | `y n q i u x t` | a number, all digits of it |
//! | `d` | a number, `"NaN"`, `"Infinity"` or `"-Infinity"` |
//! | `b` | `true`, `false` |
//! | `s o g` | a string |
//! | `h` | the number of one of the message's file descriptors, from 0 |
//! | an array, a structure | an array; so bytes are numbers |
//! | a dictionary | an object; keys that are no strings are written as text |
//! | `v` | `{"type": "s", "data": "x"}` |

use std::{
    cell::RefCell,
    fmt,
    os::fd::{AsFd, OwnedFd},
};

use ipc_kernel::Fd;
use serde::{
    Deserialize, Serialize, Serializer,
    de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
    ser::{Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple},
};
use serde_json::{Map, Value as Json};
use zbus::{ObjectPath, Signature};

/// A value of JSON on its way to the wire.
pub struct Outward<'a> {
    pub signature: &'a Signature,
    pub value: &'a Json,
    pub fds: &'a Descriptors<'a>,
}

/// The file descriptors of a message on its way out, and which of them its body has named.
pub struct Descriptors<'a> {
    fds: &'a [Fd],
    named: RefCell<Vec<bool>>,
}

impl<'a> Descriptors<'a> {
    pub fn new(fds: &'a [Fd]) -> Self {
        Self { fds, named: RefCell::new(vec![false; fds.len()]) }
    }

    /// The first that the body has not named.
    pub fn unnamed(&self) -> Option<usize> {
        self.named.borrow().iter().position(|named| !named)
    }
}

impl<'a> Outward<'a> {
    fn of(&self, signature: &'a Signature, value: &'a Json) -> Self {
        Self { signature, value, fds: self.fds }
    }

    fn wrong<E: Error>(&self) -> E {
        E::custom(format!(
            "must be {} (D-Bus type {}), not {}",
            expected(self.signature),
            self.signature,
            shortened(self.value)
        ))
    }

    fn whole<N: TryFrom<i128>, E: Error>(&self) -> Result<N, E> {
        let number = self.value.as_u64().map(i128::from).or_else(|| self.value.as_i64().map(i128::from));
        number.and_then(|number| N::try_from(number).ok()).ok_or_else(|| self.wrong())
    }

    fn text<E: Error>(&self) -> Result<&'a str, E> {
        self.value.as_str().ok_or_else(|| self.wrong())
    }

    fn double<E: Error>(&self) -> Result<f64, E> {
        match self.value {
            Json::Number(number) => number.as_f64(),
            Json::String(text) => NOT_FINITE.iter().find(|(name, _)| name == text).map(|(_, value)| *value),
            _ => None,
        }
        .ok_or_else(|| self.wrong())
    }

    fn descriptor<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index: usize = self.whole()?;
        let Some(fd) = self.fds.fds.get(index) else {
            return Err(S::Error::custom(format!(
                "names file descriptor {index}, but the message has {} (attribute fds)",
                self.fds.fds.len()
            )));
        };
        self.fds.named.borrow_mut()[index] = true;
        zbus::Fd::from(fd.as_fd()).serialize(serializer)
    }

    fn dict<S: Serializer>(
        &self,
        key: &'a Signature,
        value: &'a Signature,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let object = self.value.as_object().ok_or_else(|| self.wrong())?;
        let mut map = serializer.serialize_map(Some(object.len()))?;
        for (name, entry) in object {
            // A key that is no string is in its text what it would be in JSON.
            let text = Json::String(name.clone());
            let read = match key {
                Signature::Str | Signature::ObjectPath | Signature::Signature => text,
                _ => serde_json::from_str(name).unwrap_or(text),
            };
            let inside = |error: S::Error| within(format_args!("key {name:?}"), error);
            map.serialize_key(&Outward { signature: key, value: &read, fds: self.fds }).map_err(inside)?;
            map.serialize_value(&self.of(value, entry)).map_err(inside)?;
        }
        map.end()
    }

    fn variant<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parts = self.value.as_object().and_then(|object| match object.len() {
            2 => Some((object.get("type")?.as_str()?, object.get("data")?)),
            _ => None,
        });
        let (text, data) = parts.ok_or_else(|| self.wrong::<S::Error>())?;
        let signature = single(text).ok_or_else(|| {
            S::Error::custom(format!("has {text:?} for its type, which is not one complete type of D-Bus"))
        })?;
        let mut variant = serializer.serialize_struct("Variant", 2)?;
        variant.serialize_field("signature", text)?;
        variant.serialize_field("value", &Outward { signature: &signature, value: data, fds: self.fds })?;
        variant.end()
    }
}

impl Serialize for Outward<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.signature {
            Signature::U8 => serializer.serialize_u8(self.whole()?),
            Signature::I16 => serializer.serialize_i16(self.whole()?),
            Signature::U16 => serializer.serialize_u16(self.whole()?),
            Signature::I32 => serializer.serialize_i32(self.whole()?),
            Signature::U32 => serializer.serialize_u32(self.whole()?),
            Signature::I64 => serializer.serialize_i64(self.whole()?),
            Signature::U64 => serializer.serialize_u64(self.whole()?),
            Signature::F64 => serializer.serialize_f64(self.double()?),
            Signature::Bool => serializer.serialize_bool(self.value.as_bool().ok_or_else(|| self.wrong())?),
            Signature::Str => match self.text()? {
                text if text.contains('\0') => {
                    Err(S::Error::custom("has a zero byte, which no string of D-Bus has"))
                }
                text => serializer.serialize_str(text),
            },
            Signature::ObjectPath => match self.text()? {
                text if ObjectPath::try_from(text).is_err() => Err(self.wrong()),
                text => serializer.serialize_str(text),
            },
            Signature::Signature => match self.text()? {
                text if Signature::try_from(text).is_err() => Err(self.wrong()),
                text => serializer.serialize_str(text),
            },
            Signature::Fd => self.descriptor(serializer),
            Signature::Variant => self.variant(serializer),
            Signature::Array(element) => {
                let elements = self.value.as_array().ok_or_else(|| self.wrong())?;
                let mut array = serializer.serialize_seq(Some(elements.len()))?;
                for (index, value) in elements.iter().enumerate() {
                    array
                        .serialize_element(&self.of(element, value))
                        .map_err(|error| within(format_args!("element {index}"), error))?;
                }
                array.end()
            }
            Signature::Dict { key, value } => self.dict(key, value, serializer),
            Signature::Structure(fields) => {
                let values = self.value.as_array().filter(|values| values.len() == fields.iter().count());
                let values = values.ok_or_else(|| self.wrong())?;
                let mut structure = serializer.serialize_tuple(values.len())?;
                for (index, (signature, value)) in fields.iter().zip(values).enumerate() {
                    structure
                        .serialize_element(&self.of(signature, value))
                        .map_err(|error| within(format_args!("field {index}"), error))?;
                }
                structure.end()
            }
            Signature::Unit => serializer.serialize_unit(),
        }
    }
}

/// JSON has no number for these.
const NOT_FINITE: &[(&str, f64)] =
    &[("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];

/// One complete type.
pub fn single(text: &str) -> Option<Signature> {
    let signature = Signature::try_from(text).ok()?;
    // Several types are a structure without its parentheses to zbus.
    (signature != Signature::Unit && signature.to_string() == text).then_some(signature)
}

fn within<E: Error>(place: fmt::Arguments<'_>, error: E) -> E {
    E::custom(format!("{place}: {error}"))
}

fn shortened(value: &Json) -> String {
    const MOST: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn expected(signature: &Signature) -> String {
    match signature {
        Signature::U8 => format!("a whole number from 0 to {}", u8::MAX),
        Signature::I16 => format!("a whole number from {} to {}", i16::MIN, i16::MAX),
        Signature::U16 => format!("a whole number from 0 to {}", u16::MAX),
        Signature::I32 => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        Signature::U32 => format!("a whole number from 0 to {}", u32::MAX),
        Signature::I64 => format!("a whole number from {} to {}", i64::MIN, i64::MAX),
        Signature::U64 => format!("a whole number from 0 to {}", u64::MAX),
        Signature::F64 => "a number, \"NaN\", \"Infinity\" or \"-Infinity\"".to_owned(),
        Signature::Bool => "true or false".to_owned(),
        Signature::Str => "a string".to_owned(),
        Signature::ObjectPath => "an object path, as a string".to_owned(),
        Signature::Signature => "a signature, as a string".to_owned(),
        Signature::Fd => "the number of a file descriptor of the message".to_owned(),
        Signature::Variant => "an object with \"type\" and \"data\"".to_owned(),
        Signature::Array(_) => "an array".to_owned(),
        Signature::Dict { .. } => "an object".to_owned(),
        Signature::Structure(fields) => format!("an array of {} values", fields.iter().count()),
        Signature::Unit => "nothing".to_owned(),
    }
}

/// A value on its way from the wire to JSON; descriptors are put behind those that are there.
pub struct Inward<'a> {
    pub signature: &'a Signature,
    pub fds: &'a RefCell<Vec<OwnedFd>>,
}

impl<'a> Inward<'a> {
    fn of(&self, signature: &'a Signature) -> Self {
        Self { signature, fds: self.fds }
    }
}

impl<'de> DeserializeSeed<'de> for Inward<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        if *self.signature != Signature::Fd {
            return deserializer.deserialize_any(self);
        }
        let fd = zbus::Fd::deserialize(deserializer)?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(de::Error::custom)?;
        let mut fds = self.fds.borrow_mut();
        fds.push(fd);
        Ok(Json::from(fds.len() - 1))
    }
}

impl<'de> Visitor<'de> for Inward<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of type {}", self.signature)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        let name = match value {
            _ if value.is_nan() => "NaN",
            _ if value > 0.0 => "Infinity",
            _ => "-Infinity",
        };
        Ok(serde_json::Number::from_f64(value).map_or_else(|| name.into(), Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        match self.signature {
            Signature::Array(element) => {
                while let Some(value) = seq.next_element_seed(self.of(element))? {
                    values.push(value);
                }
            }
            Signature::Structure(fields) => {
                for field in fields.iter() {
                    values.extend(seq.next_element_seed(self.of(field))?);
                }
            }
            _ => {
                let missing = || de::Error::custom("a variant without a value");
                let text = seq.next_element::<&str>()?.ok_or_else(missing)?;
                let signature =
                    single(text).ok_or_else(|| de::Error::custom("a variant that is not of one type"))?;
                let data = seq.next_element_seed(self.of_variant(&signature))?.ok_or_else(missing)?;
                let parts = [("type".to_owned(), Json::from(text)), ("data".to_owned(), data)];
                return Ok(Json::Object(Map::from_iter(parts)));
            }
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let Signature::Dict { key, value } = self.signature else {
            return Err(de::Error::custom("a dictionary where none was expected"));
        };
        let mut object = Map::new();
        while let Some(name) = map.next_key_seed(self.of(key))? {
            let name = match name {
                Json::String(text) => text,
                other => other.to_string(),
            };
            object.insert(name, map.next_value_seed(self.of(value))?);
        }
        Ok(Json::Object(object))
    }
}

impl Inward<'_> {
    fn of_variant<'b>(&'b self, signature: &'b Signature) -> Inward<'b> {
        Inward { signature, fds: self.fds }
    }
}
