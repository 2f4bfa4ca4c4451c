//! A word with its type: what the atomic operations on memory take and give, whatever its width.
//!
//! The types are those of D-Bus and the narrower ones that it lacks. A word travels as its bits; which type they are of,
//! the caller says.

use crate::{Error, Result, Value};

/// A word of memory, for the atomic operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Word {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    I8(i8),
    I16(i16),
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
}

impl Word {
    /// A zero of the type with this name (`u32`) or D-Bus signature (`u`), where D-Bus has the type.
    pub fn zero(name: &str) -> Result<Self> {
        Ok(match name {
            "y" | "u8" => Self::U8(0),
            "q" | "u16" => Self::U16(0),
            "u" | "u32" => Self::U32(0),
            "t" | "u64" => Self::U64(0),
            "i8" => Self::I8(0),
            "n" | "i16" => Self::I16(0),
            "i" | "i32" => Self::I32(0),
            "x" | "i64" => Self::I64(0),
            "f32" => Self::F32(0.0),
            "d" | "f64" => Self::F64(0.0),
            other => {
                return Err(Error::invalid(format!(
                    "the type must be one of u8 u16 u32 u64 i8 i16 i32 i64 f32 f64 (or the D-Bus type \
                     y q u t n i x d), not {other:?}"
                )));
            }
        })
    }

    /// The width in bytes: 1, 2, 4 or 8.
    pub fn width(self) -> usize {
        match self {
            Self::U8(_) | Self::I8(_) => 1,
            Self::U16(_) | Self::I16(_) => 2,
            Self::U32(_) | Self::I32(_) | Self::F32(_) => 4,
            Self::U64(_) | Self::I64(_) | Self::F64(_) => 8,
        }
    }

    /// The bits, in the low end.
    pub fn bits(self) -> u64 {
        match self {
            Self::U8(n) => n.into(),
            Self::U16(n) => n.into(),
            Self::U32(n) => n.into(),
            Self::U64(n) => n,
            Self::I8(n) => (n as u8).into(),
            Self::I16(n) => (n as u16).into(),
            Self::I32(n) => (n as u32).into(),
            Self::I64(n) => n as u64,
            Self::F32(n) => n.to_bits().into(),
            Self::F64(n) => n.to_bits(),
        }
    }

    /// A word of the same type with these bits.
    pub fn with_bits(self, bits: u64) -> Self {
        match self {
            Self::U8(_) => Self::U8(bits as u8),
            Self::U16(_) => Self::U16(bits as u16),
            Self::U32(_) => Self::U32(bits as u32),
            Self::U64(_) => Self::U64(bits),
            Self::I8(_) => Self::I8(bits as i8),
            Self::I16(_) => Self::I16(bits as i16),
            Self::I32(_) => Self::I32(bits as i32),
            Self::I64(_) => Self::I64(bits as i64),
            Self::F32(_) => Self::F32(f32::from_bits(bits as u32)),
            Self::F64(_) => Self::F64(f64::from_bits(bits)),
        }
    }

    /// A word of the same type with this number, if the type can hold it.
    pub fn with_value(self, value: &Value) -> Option<Self> {
        if self.is_float() {
            let number = match value {
                Value::F64(number) => *number,
                other => other.integer()? as f64,
            };
            let Self::F32(_) = self else { return Some(Self::F64(number)) };
            // The nearest one; too large a number has none.
            let single = number as f32;
            return (single.is_finite() || !number.is_finite()).then_some(Self::F32(single));
        }
        let number = value.integer()?;
        Some(match self {
            Self::U8(_) => Self::U8(number.try_into().ok()?),
            Self::U16(_) => Self::U16(number.try_into().ok()?),
            Self::U32(_) => Self::U32(number.try_into().ok()?),
            Self::U64(_) => Self::U64(number.try_into().ok()?),
            Self::I8(_) => Self::I8(number.try_into().ok()?),
            Self::I16(_) => Self::I16(number.try_into().ok()?),
            Self::I32(_) => Self::I32(number.try_into().ok()?),
            Self::I64(_) => Self::I64(number.try_into().ok()?),
            Self::F32(_) | Self::F64(_) => return None,
        })
    }

    /// Floating-point numbers, which no instruction adds in memory.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32(_) | Self::F64(_))
    }

    /// The sum, wrapping around for integers.
    pub fn wrapping_add(self, other: Self) -> Self {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => Self::F32(a + b),
            (Self::F64(a), Self::F64(b)) => Self::F64(a + b),
            (a, b) => a.with_bits(a.bits().wrapping_add(b.bits())),
        }
    }
}
