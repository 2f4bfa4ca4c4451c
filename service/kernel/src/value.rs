//! Values that go in and out of a mechanism: parameters, attributes, rows of `List()`.
//!
//! They are D-Bus's own types without D-Bus: the bus layer translates them one to one.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

/// A dictionary, on the wire `a{sv}`.
pub type Dict = BTreeMap<String, Value>;

#[derive(Debug, Clone)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    F64(f64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `as`
    Texts(Vec<String>),
    /// `au`
    U32s(Vec<u32>),
    /// `ai`
    I32s(Vec<i32>),
    /// `aa{sv}`
    Dicts(Vec<Dict>),
    /// `a{sv}`
    Dict(Dict),
    /// `h`
    Fd(Arc<OwnedFd>),
    /// `ah`
    Fds(Vec<Arc<OwnedFd>>),
}

impl Value {
    /// A text where the bytes are UTF-8, else the bytes.
    pub fn text_or_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(bytes.to_owned()),
        }
    }

    /// The D-Bus signature of the value.
    pub fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::F64(_) => "d",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Texts(_) => "as",
            Self::U32s(_) => "au",
            Self::I32s(_) => "ai",
            Self::Dicts(_) => "aa{sv}",
            Self::Dict(_) => "a{sv}",
            Self::Fd(_) => "h",
            Self::Fds(_) => "ah",
        }
    }

    /// Whether two values are the same, numbers compared by value whatever their width.
    pub fn same(&self, other: &Value) -> bool {
        if let (Some(a), Some(b)) = (self.integer(), other.integer()) {
            return a == b;
        }
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::F64(a), Self::F64(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Texts(a), Self::Texts(b)) => a == b,
            (Self::U32s(a), Self::U32s(b)) => a == b,
            (Self::I32s(a), Self::I32s(b)) => a == b,
            (Self::Text(a), Self::Bytes(b)) | (Self::Bytes(b), Self::Text(a)) => a.as_bytes() == b,
            _ => false,
        }
    }

    /// The value as an integer, where it is one.
    pub fn integer(&self) -> Option<i128> {
        match self {
            Self::I32(n) => Some((*n).into()),
            Self::U32(n) => Some((*n).into()),
            Self::I64(n) => Some((*n).into()),
            Self::U64(n) => Some((*n).into()),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),* $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        })*
    };
}

from! {
    bool => Bool, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f64 => F64, String => Text,
    Vec<u8> => Bytes, Vec<String> => Texts, Vec<u32> => U32s, Vec<i32> => I32s, Vec<Dict> => Dicts, Dict => Dict,
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

/// Builds a [`Dict`]: `dict! { "path" => path, "mode" => 0o600u32 }`.
#[macro_export]
macro_rules! dict {
    ($($key:expr => $value:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut dict = $crate::Dict::new();
        $(dict.insert($key.to_string(), $crate::Value::from($value));)*
        dict
    }};
}
