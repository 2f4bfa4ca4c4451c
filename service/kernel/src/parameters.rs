//! The parameters of a mechanism: one table that is the source of the parser, of `Describe()`
//! and of the reference page.
//!
//! A parameter may stand in the address (`size=4096`) or in the options dictionary under the
//! same key with its D-Bus type. Unknown keys, keys given twice, wrong types and values out of
//! range are `InvalidArgument`, naming the key and what was expected.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use crate::{Address, Dict, Error, Result, Value, inotify::budget::Budget, signal::names};

/// The type of a parameter: how it is written in an address and which D-Bus type it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`; D-Bus `b`.
    Bool,
    /// A whole number, decimal or `0x…`, within the bounds; D-Bus `u`.
    U32 { min: u32, max: u32 },
    /// A whole number that may be negative; D-Bus `i`.
    I32 { min: i32, max: i32 },
    /// A whole number of any size, decimal or `0x…`, within the bounds; D-Bus `t`.
    U64 { min: u64, max: u64 },
    /// Bytes: a whole number, `K`, `M` or `G` (powers of 1024) behind it or not; D-Bus `t`.
    Size { min: u64, max: u64 },
    /// Permission bits in octal (`0600`); D-Bus `u`.
    Mode,
    /// UTF-8 text; D-Bus `s`.
    Text,
    /// One of the words; D-Bus `s`.
    Word(&'static [&'static str]),
    /// Words of a set, joined with `+` in an address; D-Bus `as`.
    Words(&'static [&'static str]),
    /// Whole numbers within the bounds, joined with `+` in an address; D-Bus `ai`.
    Numbers { min: i32, max: i32 },
    /// Names of lower-case letters, digits, `-` and `.`, or numbers, joined with `+` in an address; D-Bus `as`.
    Names,
    /// Signals by name or number, joined with `/` in an address, as `+` is part of their names;
    /// or `all`; D-Bus `as`.
    Signals,
    /// A System V key: 32 bits, decimal or `0x…`, or one of the words; D-Bus `u`, or `s` as in an
    /// address.
    Key { words: &'static [&'static str] },
    /// A file name or other bytes; D-Bus `s`, or `ay` where it is not UTF-8.
    Path,
    /// Keys with values of any type; only in the options. D-Bus `a{sv}`.
    Dict,
    /// Object paths; only in the options. D-Bus `ao`.
    Objects,
}

impl Type {
    /// The D-Bus signature that `Describe()` shows.
    pub fn signature(self) -> &'static str {
        match self {
            Self::Bool => "b",
            Self::U32 { .. } | Self::Mode | Self::Key { .. } => "u",
            Self::I32 { .. } => "i",
            Self::U64 { .. } | Self::Size { .. } => "t",
            Self::Text | Self::Word(_) | Self::Path => "s",
            Self::Words(_) | Self::Names | Self::Signals => "as",
            Self::Numbers { .. } => "ai",
            Self::Dict => "a{sv}",
            Self::Objects => "ao",
        }
    }

    /// What is expected, in words.
    pub fn expected(self) -> String {
        match self {
            Self::Bool => "true or false (D-Bus type b)".into(),
            Self::U32 { min, max } => format!("a whole number from {min} to {max} (D-Bus type u)"),
            Self::I32 { min, max } => format!("a whole number from {min} to {max} (D-Bus type i)"),
            Self::U64 { min, max } => format!("a whole number from {min} to {max} (D-Bus type t)"),
            Self::Size { min, max } => {
                format!("a number of bytes from {min} to {max}, K, M or G allowed (D-Bus type t)")
            }
            Self::Mode => "permission bits in octal, 0000 to 7777 (D-Bus type u)".into(),
            Self::Text => "UTF-8 text (D-Bus type s)".into(),
            Self::Word(words) => format!("one of {} (D-Bus type s)", words.join(", ")),
            Self::Words(words) => {
                format!("words out of {}, joined with '+' (D-Bus type as)", words.join(", "))
            }
            Self::Numbers { min, max } => {
                format!("whole numbers from {min} to {max}, joined with '+' (D-Bus type ai)")
            }
            Self::Names => "names or numbers, joined with '+' (D-Bus type as)".into(),
            Self::Signals => format!("all, or joined with '/' {} (D-Bus type as)", names::EXPECTED),
            Self::Key { words } => format!(
                "a key of 32 bits, decimal or 0x…{}{} (D-Bus type u, or s)",
                if words.is_empty() { "" } else { ", or one of " },
                words.join(", ")
            ),
            Self::Path => "a path or name without NUL bytes (D-Bus type s, or ay)".into(),
            Self::Dict => "a dictionary (D-Bus type a{sv})".into(),
            Self::Objects => "object paths (D-Bus type ao)".into(),
        }
    }

    fn parse(self, text: &[u8]) -> Option<Value> {
        if self == Self::Path {
            return (!text.contains(&0)).then(|| Value::Bytes(text.to_owned()));
        }
        let text = std::str::from_utf8(text).ok()?;
        match self {
            Self::Bool => Some(Value::Bool(text.parse().ok()?)),
            Self::U32 { .. } => self.check(Value::U32(whole(text)?.try_into().ok()?)),
            Self::I32 { .. } => self.check(Value::I32(whole(text)?.try_into().ok()?)),
            Self::U64 { .. } => self.check(Value::U64(whole(text)?.try_into().ok()?)),
            Self::Size { .. } => self.check(Value::U64(size(text)?)),
            Self::Mode => self.check(Value::U32(u32::from_str_radix(text, 8).ok()?)),
            Self::Text | Self::Word(_) | Self::Key { .. } => self.check(Value::Text(text.to_owned())),
            Self::Words(_) | Self::Names => {
                self.check(Value::Texts(text.split('+').map(str::to_owned).collect()))
            }
            Self::Numbers { .. } => {
                let numbers = text.split('+').map(|number| whole(number)?.try_into().ok());
                self.check(Value::I32s(numbers.collect::<Option<_>>()?))
            }
            Self::Signals => self.check(Value::Texts(text.split('/').map(str::to_owned).collect())),
            Self::Path | Self::Dict | Self::Objects => None,
        }
    }

    /// A value that came in the options dictionary; integers of another width are accepted where
    /// the number fits, as scripting languages do not let their users choose.
    fn check(self, value: Value) -> Option<Value> {
        match self {
            Self::Bool => matches!(value, Value::Bool(_)).then_some(value),
            Self::U32 { min, max } => {
                let number = value.integer()?.try_into().ok()?;
                (min..=max).contains(&number).then_some(Value::U32(number))
            }
            Self::I32 { min, max } => {
                let number = value.integer()?.try_into().ok()?;
                (min..=max).contains(&number).then_some(Value::I32(number))
            }
            Self::U64 { min, max } | Self::Size { min, max } => {
                let number = value.integer()?.try_into().ok()?;
                (min..=max).contains(&number).then_some(Value::U64(number))
            }
            Self::Mode => {
                let mode: u32 = value.integer()?.try_into().ok()?;
                (mode <= 0o7777).then_some(Value::U32(mode))
            }
            Self::Text => match value {
                Value::Text(text) if !text.contains('\0') => Some(Value::Text(text)),
                _ => None,
            },
            Self::Word(words) => match value {
                Value::Text(text) if words.contains(&text.as_str()) => Some(Value::Text(text)),
                _ => None,
            },
            Self::Words(words) => match value {
                Value::Texts(texts) if texts.iter().all(|t| words.contains(&t.as_str())) => {
                    Some(Value::Texts(texts))
                }
                _ => None,
            },
            Self::Numbers { min, max } => {
                let numbers: Vec<i32> = match value {
                    Value::I32s(numbers) => numbers,
                    Value::U32s(numbers) => {
                        numbers.into_iter().map(i32::try_from).collect::<Result<_, _>>().ok()?
                    }
                    _ => return None,
                };
                numbers.iter().all(|number| (min..=max).contains(number)).then_some(Value::I32s(numbers))
            }
            Self::Names => match value {
                Value::Texts(texts) if texts.iter().all(|text| is_name(text)) => Some(Value::Texts(texts)),
                _ => None,
            },
            Self::Signals => match value {
                Value::Texts(texts) if texts.iter().all(|t| t == "all" || names::number(t).is_some()) => {
                    Some(Value::Texts(texts))
                }
                _ => None,
            },
            Self::Key { words } => match value {
                Value::Text(text) if words.contains(&text.as_str()) => Some(Value::Text(text)),
                Value::Text(text) => key(whole(&text)?),
                number => key(number.integer()?),
            },
            Self::Path => match value {
                Value::Text(text) => self.parse(text.as_bytes()),
                Value::Bytes(bytes) => self.parse(&bytes),
                _ => None,
            },
            Self::Dict => matches!(value, Value::Dict(_)).then_some(value),
            Self::Objects => match value {
                Value::Texts(texts) if texts.iter().all(|text| text.starts_with('/')) => {
                    Some(Value::Texts(texts))
                }
                _ => None,
            },
        }
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !text.is_empty() && text.bytes().all(plain)
}

fn whole(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { -number } else { number })
}

/// C programs write keys as signed numbers and as unsigned ones.
fn key(number: i128) -> Option<Value> {
    let bits = u32::try_from(number).or_else(|_| i32::try_from(number).map(i32::cast_unsigned));
    bits.ok().map(Value::U32)
}

fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = whole(digits)?.try_into().ok()?;
    number.checked_mul(1 << shift)
}

/// One row of a mechanism's table.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    pub key: &'static str,
    pub kind: Type,
    /// As it would be written in an address; empty where there is none.
    pub default: &'static str,
    pub required: bool,
    /// One line, for `Describe()` and the reference page.
    pub summary: &'static str,
}

impl Parameter {
    pub const fn new(key: &'static str, kind: Type, summary: &'static str) -> Self {
        Self { key, kind, default: "", required: false, summary }
    }

    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// One table behind the other, for rows that several tables share.
pub const fn joined<T: Copy, const FIRST: usize, const SECOND: usize, const ALL: usize>(
    first: [T; FIRST],
    second: [T; SECOND],
) -> [T; ALL] {
    assert!(ALL == FIRST + SECOND && FIRST > 0);
    let mut all = [first[0]; ALL];
    let mut index = 0;
    while index < ALL {
        all[index] = if index < FIRST { first[index] } else { second[index - FIRST] };
        index += 1;
    }
    all
}

/// The checked parameters of one Create, Attach or Adopt.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    /// The scheme that the address was written with (`tcp`, `udp`, `unix`, …).
    pub scheme: String,
    values: BTreeMap<&'static str, Value>,
    /// The keys that were given; the others have their defaults.
    given: BTreeSet<&'static str>,
    /// How many watches the endpoint may make besides its first.
    pub budget: Budget,
}

impl Parameters {
    /// Checks the address's pairs and the options against the table. Options whose key is in
    /// `reserved` belong to the engine and are left alone.
    pub fn check(
        table: &'static [Parameter],
        reserved: &[&str],
        address: &Address,
        options: &Dict,
    ) -> Result<Self> {
        let mut values = BTreeMap::new();
        let find = |key: &str| table.iter().find(|parameter| parameter.key == key);
        for (key, value) in &address.pairs {
            let parameter = find(key).ok_or_else(|| unknown_key(&address.scheme, key, table))?;
            let value = match value {
                Some(value) => parameter.kind.parse(value),
                None => (parameter.kind == Type::Bool).then_some(Value::Bool(true)),
            };
            values.insert(parameter.key, value.ok_or_else(|| wrong(parameter))?);
        }
        for (key, value) in options {
            if reserved.contains(&key.as_str()) {
                continue;
            }
            let parameter = find(key).ok_or_else(|| unknown_key(&address.scheme, key, table))?;
            let value = parameter.kind.check(value.clone()).ok_or_else(|| {
                let signature = value.signature();
                let mut error = wrong(parameter);
                error.text.push_str(&format!(", not a value of this kind (given as {signature})"));
                error
            })?;
            if values.insert(parameter.key, value).is_some() {
                return Err(Error::invalid(format!(
                    "the key {key:?} is given twice, in the address and in the options"
                )));
            }
        }
        let given = values.keys().copied().collect();
        for parameter in table {
            if values.contains_key(parameter.key) {
                continue;
            }
            if parameter.required {
                return Err(Error::invalid(format!(
                    "the key {:?} is missing: {} ({})",
                    parameter.key,
                    parameter.summary,
                    parameter.kind.expected()
                )));
            }
            if !parameter.default.is_empty() {
                // The conformance suite parses every default of every table.
                if let Some(value) = parameter.kind.parse(parameter.default.as_bytes()) {
                    values.insert(parameter.key, value);
                }
            }
        }
        Ok(Self { scheme: address.scheme.clone(), values, given, budget: Budget::default() })
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A value as it would be written in an address, if it was given: not those of sets and paths.
    pub fn written(&self, key: &str) -> Option<String> {
        match self.values.get(self.given.get(key)?)? {
            Value::Bool(value) => Some(value.to_string()),
            Value::Text(text) => Some(text.clone()),
            number => number.integer().map(|number| number.to_string()),
        }
    }

    pub fn bool(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::Bool(true)))
    }

    pub fn u32(&self, key: &str) -> Option<u32> {
        match self.values.get(key) {
            Some(Value::U32(number)) => Some(*number),
            _ => None,
        }
    }

    pub fn i32(&self, key: &str) -> Option<i32> {
        match self.values.get(key) {
            Some(Value::I32(number)) => Some(*number),
            _ => None,
        }
    }

    /// A number of bytes, or any other number that is a `t`.
    pub fn size(&self, key: &str) -> Option<u64> {
        match self.values.get(key) {
            Some(Value::U64(number)) => Some(*number),
            _ => None,
        }
    }

    /// The permission bits, 0600 where none were given.
    pub fn mode(&self) -> u32 {
        self.u32("mode").unwrap_or(0o600)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.values.get(key) {
            Some(Value::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    pub fn numbers(&self, key: &str) -> Option<&[i32]> {
        match self.values.get(key) {
            Some(Value::I32s(numbers)) => Some(numbers),
            _ => None,
        }
    }

    pub fn dict(&self, key: &str) -> Option<&Dict> {
        match self.values.get(key) {
            Some(Value::Dict(dict)) => Some(dict),
            _ => None,
        }
    }

    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        match self.values.get(key) {
            Some(Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// An absolute path; the service's working directory means nothing to a caller.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>> {
        let Some(bytes) = self.bytes(key) else {
            return Ok(None);
        };
        if !bytes.starts_with(b"/") {
            return Err(Error::invalid(format!(
                "the key {key:?} must be an absolute path, not {:?}",
                String::from_utf8_lossy(bytes)
            )));
        }
        if bytes.len() >= libc::PATH_MAX as usize {
            return Err(Error::invalid(format!(
                "the key {key:?} has {} bytes; a path has at most {} (PATH_MAX)",
                bytes.len(),
                libc::PATH_MAX - 1
            )));
        }
        Ok(Some(PathBuf::from(OsStr::from_bytes(bytes))))
    }
}

fn wrong(parameter: &Parameter) -> Error {
    Error::invalid(format!("the key {:?} must be {}", parameter.key, parameter.kind.expected()))
}

fn unknown_key(scheme: &str, key: &str, table: &[Parameter]) -> Error {
    let known: Vec<_> = table.iter().map(|parameter| parameter.key).collect();
    Error::invalid(format!("{scheme} has no key {key:?}; it has {}", known.join(", ")))
}
