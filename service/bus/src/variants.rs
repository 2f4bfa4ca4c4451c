//! The kernel layer's values as D-Bus values and back, one to one.

use std::{collections::BTreeMap, os::fd, sync::Arc};

use ipc_kernel::{Dict, Error, Value, fd::duplicate, shape::Word};
use zbus::{Array, Fd, OwnedVariant, Signature, Variant, wire};

use crate::errors::Result;

/// A dictionary on the wire, `a{sv}`, sorted by key.
pub type Vardict = BTreeMap<String, OwnedVariant>;

/// A dictionary as it comes in.
pub type Given<'a> = BTreeMap<String, Variant<'a>>;

pub fn vardict(dict: Dict) -> Result<Vardict> {
    dict.into_iter().map(|(key, value)| Ok((key, OwnedVariant::try_from(variant(value)?)?))).collect()
}

fn variant(value: Value) -> Result<Variant<'static>> {
    Ok(match value {
        Value::Bool(value) => value.into(),
        Value::I32(value) => value.into(),
        Value::U32(value) => value.into(),
        Value::I64(value) => value.into(),
        Value::U64(value) => value.into(),
        Value::F64(value) => value.into(),
        // No string of D-Bus has a zero: a bus, and the front, end the connection over one.
        Value::Text(value) if value.contains('\0') => value.into_bytes().into(),
        Value::Text(value) => value.into(),
        Value::Bytes(value) => value.into(),
        Value::Texts(value) => value.iter().map(|it| text(it)).collect::<Vec<_>>().into(),
        Value::U32s(value) => value.into(),
        Value::I32s(value) => value.into(),
        Value::Dict(value) => Variant::Dict(inner_dict(value)?),
        Value::Dicts(value) => {
            let mut array = Array::new(&Signature::dict(Signature::Str, Signature::Variant));
            for dict in value {
                array.append(Variant::Dict(inner_dict(dict)?))?;
            }
            Variant::Array(array)
        }
        Value::Fd(fd) => Variant::Fd(shared_fd(fd)?),
        Value::Fds(fds) => {
            let mut array = Array::new(&Signature::Fd);
            for fd in fds {
                array.append(Variant::Fd(shared_fd(fd)?))?;
            }
            Variant::Array(array)
        }
    })
}

/// A string without a zero, where no bytes can stand for it.
pub fn text(text: &str) -> String {
    text.replace('\0', "\\0")
}

/// A dictionary as a value.
pub fn inner_dict(dict: Dict) -> Result<wire::Dict<'static, 'static>> {
    let mut made = wire::Dict::new(&Signature::Str, &Signature::Variant);
    for (key, value) in dict {
        made.append(key.into(), Variant::Variant(Box::new(variant(value)?)))?;
    }
    Ok(made)
}

fn shared_fd(fd: Arc<fd::OwnedFd>) -> Result<Fd<'static>> {
    Ok(match Arc::try_unwrap(fd) {
        Ok(fd) => fd.into(),
        Err(shared) => duplicate(&shared)?.into(),
    })
}

/// Options or a selector as they come in.
pub fn dict(given: Given<'_>) -> Result<Dict> {
    given
        .into_iter()
        .map(|(key, variant)| {
            let value = value(&variant)?.ok_or_else(|| {
                Error::invalid(format!(
                    "the value of the key {key:?} has the D-Bus type {}, which no key has",
                    variant.value_signature()
                ))
            });
            Ok((key, value?))
        })
        .collect()
}

/// None: no key has this type.
fn value(variant: &Variant<'_>) -> Result<Option<Value>> {
    Ok(Some(match variant {
        Variant::Bool(value) => (*value).into(),
        Variant::U8(value) => u32::from(*value).into(),
        Variant::I16(value) => i32::from(*value).into(),
        Variant::U16(value) => u32::from(*value).into(),
        Variant::I32(value) => (*value).into(),
        Variant::U32(value) => (*value).into(),
        Variant::I64(value) => (*value).into(),
        Variant::U64(value) => (*value).into(),
        Variant::F64(value) => (*value).into(),
        Variant::Str(value) => value.as_str().into(),
        Variant::ObjectPath(value) => value.as_str().into(),
        Variant::Variant(inner) => return value(inner),
        Variant::Array(array) => match array.element_signature() {
            Signature::U8 => {
                let bytes =
                    array.iter().map(|item| if let Variant::U8(byte) = item { Some(*byte) } else { None });
                return Ok(bytes.collect::<Option<_>>().map(Value::Bytes));
            }
            Signature::Str => {
                let texts = array
                    .iter()
                    .map(|item| if let Variant::Str(text) = item { Some(text.to_string()) } else { None });
                return Ok(texts.collect::<Option<_>>().map(Value::Texts));
            }
            Signature::ObjectPath => {
                let path = |item: &Variant<'_>| match item {
                    Variant::ObjectPath(path) => Some(path.as_str().to_owned()),
                    _ => None,
                };
                return Ok(array.iter().map(path).collect::<Option<_>>().map(Value::Texts));
            }
            Signature::U32 => {
                let numbers = array
                    .iter()
                    .map(|item| if let Variant::U32(number) = item { Some(*number) } else { None });
                return Ok(numbers.collect::<Option<_>>().map(Value::U32s));
            }
            Signature::I32 => {
                let numbers = array
                    .iter()
                    .map(|item| if let Variant::I32(number) = item { Some(*number) } else { None });
                return Ok(numbers.collect::<Option<_>>().map(Value::I32s));
            }
            Signature::Fd => {
                let fds = array.iter().filter_map(|item| match item {
                    Variant::Fd(fd) => Some(duplicate(fd).map(Arc::new)),
                    _ => None,
                });
                Value::Fds(fds.collect::<ipc_kernel::Result<_>>()?)
            }
            _ => return Ok(None),
        },
        Variant::Fd(fd) => Value::Fd(Arc::new(duplicate(fd)?)),
        Variant::Signature(_) | Variant::Dict(_) | Variant::Structure(_) => return Ok(None),
    }))
}

/// A word of memory as a variant; i8 and f32, which D-Bus lacks, as the next larger type.
pub fn word_variant(word: Word) -> Result<OwnedVariant> {
    let variant: Variant<'static> = match word {
        Word::U8(n) => n.into(),
        Word::U16(n) => n.into(),
        Word::U32(n) => n.into(),
        Word::U64(n) => n.into(),
        Word::I8(n) => i16::from(n).into(),
        Word::I16(n) => n.into(),
        Word::I32(n) => n.into(),
        Word::I64(n) => n.into(),
        Word::F32(n) => f64::from(n).into(),
        Word::F64(n) => n.into(),
    };
    Ok(OwnedVariant::try_from(variant)?)
}

/// A variant as a word of memory: its D-Bus type says the width, or a structure of the type's name
/// and the value.
pub fn word(variant: &Variant<'_>) -> Result<Word> {
    Ok(match variant {
        Variant::U8(n) => Word::U8(*n),
        Variant::U16(n) => Word::U16(*n),
        Variant::U32(n) => Word::U32(*n),
        Variant::U64(n) => Word::U64(*n),
        Variant::I16(n) => Word::I16(*n),
        Variant::I32(n) => Word::I32(*n),
        Variant::I64(n) => Word::I64(*n),
        Variant::F64(n) => Word::F64(*n),
        Variant::Variant(inner) => return word(inner),
        Variant::Structure(named) => return named_word(named),
        other => {
            return Err(Error::invalid(format!(
                "a word must have one of the D-Bus types y q u t n i x d, or be a structure (sv) of a type's name \
                 and the value, not {}",
                other.value_signature()
            ))
            .into());
        }
    })
}

/// `("f32", <1.5>)`: a number of any D-Bus type that the named type can hold.
fn named_word(named: &wire::Structure<'_>) -> Result<Word> {
    let [Variant::Str(name), number] = named.fields() else {
        return Err(Error::invalid(format!(
            "a word in a structure must be (sv), a type's name and the value, not {}",
            named.signature()
        ))
        .into());
    };
    let kind = Word::zero(name)?;
    let number = match number {
        Variant::Variant(inner) => inner,
        other => other,
    };
    let refused = || Error::invalid(format!("the value does not fit into a word of the type {name}"));
    let number = value(number)?.ok_or_else(refused)?;
    Ok(kind.with_value(&number).ok_or_else(refused)?)
}
