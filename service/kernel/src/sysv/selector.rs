//! Which message of a System V queue: what `Receive`, `Peek` and `Purge` take as a selector,
//! msgrcv(2).

use libc::{c_int, c_long};

use crate::{Dict, Error, Result, Value};

/// A selector that was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selector {
    /// 0: any; > 0: of this type; < 0: the lowest type up to its absolute value.
    pub kind: c_long,
    /// Any but this type.
    pub except: bool,
    pub truncate: bool,
    pub max_size: Option<usize>,
    /// Where to look, in the kernel's queue; only for `Peek`.
    pub index: Option<u64>,
}

impl Selector {
    /// Of a message that is to be taken.
    pub fn taking(dict: &Dict) -> Result<Self> {
        let selector = Self::read(dict)?;
        if selector.index.is_some() {
            return Err(Error::invalid(
                "\"index\" is for Peek: the kernel takes messages by their type, not by their place",
            ));
        }
        if selector.truncate && selector.max_size.is_none() {
            return Err(Error::invalid(
                "\"truncate\" needs \"max-size\", the number of bytes that are wanted",
            ));
        }
        Ok(selector)
    }

    /// Of a message that is to be looked at.
    pub fn peeking(dict: &Dict) -> Result<Self> {
        let selector = Self::read(dict)?;
        if selector.truncate || selector.max_size.is_some() {
            return Err(Error::invalid(
                "\"truncate\" and \"max-size\" are for Receive: Peek copies all of it",
            ));
        }
        Ok(selector)
    }

    pub fn read(dict: &Dict) -> Result<Self> {
        let mut selector = Self::default();
        for (key, value) in dict {
            match key.as_str() {
                "type" => selector.kind = kind(value)?,
                "except" => selector.except = flag(key, value)?,
                "truncate" => selector.truncate = flag(key, value)?,
                "max-size" => selector.max_size = Some(number(key, value)?),
                "index" => selector.index = Some(number(key, value)?),
                other => {
                    return Err(Error::invalid(format!(
                        "a sysvmq selector has no key {other:?}; it has type, except, truncate, max-size and, for \
                         Peek, index"
                    )));
                }
            }
        }
        if selector.except && selector.kind <= 0 {
            return Err(Error::invalid("\"except\" needs a \"type\" above 0, the one that is not wanted"));
        }
        Ok(selector)
    }

    /// The flags of msgrcv(2) for it.
    pub fn flags(&self) -> c_int {
        let except = if self.except { libc::MSG_EXCEPT } else { 0 };
        let truncate = if self.truncate { libc::MSG_NOERROR } else { 0 };
        except | truncate
    }

    /// Whether a message of this type is asked for, and how urgently: the lowest comes first.
    pub fn rank(&self, kind: c_long) -> Option<c_long> {
        match self.kind {
            0 => Some(0),
            wanted if wanted > 0 => ((kind == wanted) != self.except).then_some(0),
            // The kernel takes the lowest number there is for the highest.
            wanted => (kind <= wanted.checked_neg().unwrap_or(c_long::MAX)).then_some(kind),
        }
    }
}

/// The type of a message to be sent, from its attributes.
pub fn sent_type(attributes: &Dict) -> Result<c_long> {
    let mut sent = 1;
    for (key, value) in attributes {
        match key.as_str() {
            "type" => sent = kind(value)?,
            other => {
                return Err(Error::invalid(format!(
                    "a sysvmq message has no attribute {other:?}; it has type"
                )));
            }
        }
    }
    match sent {
        1.. => Ok(sent),
        _ => Err(Error::invalid(format!("the type of a message must be above 0, not {sent} (msgsnd(2))"))),
    }
}

fn kind(value: &Value) -> Result<c_long> {
    value
        .integer()
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| Error::invalid("\"type\" must be a whole number of a C long (D-Bus type x)"))
}

fn flag(key: &str, value: &Value) -> Result<bool> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        _ => Err(Error::invalid(format!("{key:?} must be true or false (D-Bus type b)"))),
    }
}

fn number<T: TryFrom<i128>>(key: &str, value: &Value) -> Result<T> {
    value
        .integer()
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| Error::invalid(format!("{key:?} must be a whole number from 0 (D-Bus type t or u)")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dict;

    fn rank(selector: Dict, kind: c_long) -> Option<c_long> {
        Selector::taking(&selector).expect("a selector").rank(kind)
    }

    #[test]
    fn types_are_selected_as_by_the_kernel() {
        assert_eq!(rank(Dict::new(), 5), Some(0));
        assert_eq!(rank(dict! { "type" => 0i64 }, 5), Some(0));
        assert_eq!(rank(dict! { "type" => 5i64 }, 5), Some(0));
        assert_eq!(rank(dict! { "type" => 5u32 }, 6), None);
        assert_eq!(rank(dict! { "type" => 5i32, "except" => true }, 5), None);
        assert_eq!(rank(dict! { "type" => 5i32, "except" => true }, 6), Some(0));
        assert_eq!(rank(dict! { "type" => -5i64 }, 5), Some(5));
        assert_eq!(rank(dict! { "type" => -5i64 }, 3), Some(3));
        assert_eq!(rank(dict! { "type" => -5i64 }, 6), None);
        assert_eq!(rank(dict! { "type" => i64::MIN }, c_long::MAX), Some(c_long::MAX));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            dict! { "type" => "5" },
            dict! { "type" => u64::MAX },
            dict! { "except" => true },
            dict! { "except" => true, "type" => -1i32 },
            dict! { "truncate" => true },
            dict! { "truncate" => 1u32, "max-size" => 1u32 },
            dict! { "max-size" => -1i32 },
            dict! { "index" => 0u64 },
            dict! { "other" => 0u64 },
        ] {
            assert!(Selector::taking(&wrong).is_err(), "{wrong:?}");
        }
        for wrong in [dict! { "max-size" => 1u32 }, dict! { "index" => -1i32 }] {
            assert!(Selector::peeking(&wrong).is_err(), "{wrong:?}");
        }
        for wrong in [dict! { "type" => 0i64 }, dict! { "type" => -1i64 }, dict! { "priority" => 1u32 }] {
            assert!(sent_type(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(sent_type(&Dict::new()), Ok(1));
    }
}
