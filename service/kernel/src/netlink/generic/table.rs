//! Attributes by table: which number has which name and what is in it.
//!
//! What a table does not know keeps its number as its name, and is bytes, or a dictionary where the
//! kernel says that it is one. An attribute that is not what its table says is damage, and the whole
//! message with it: half of a message would be a guess.

use crate::{
    Dict, Value,
    netlink::wire::{attributes, text},
};

/// Numbers, names and forms.
pub type Table = &'static [(u16, &'static str, Form)];

/// What an attribute holds.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Unsigned, of 1, 2 or 4 bytes (`u`), or of 8 (`t`).
    Number,
    /// Signed, of 4 bytes (`i`).
    Signed,
    /// A number with names, from 0 (`s`).
    Name(&'static [&'static str]),
    /// Text, with or without its NUL (`s`).
    Text,
    /// Nothing; it is there or not (`b`).
    Flag,
    /// A bitmap of 32-bit words: the bits that are set (`au`).
    Bits,
    /// Attributes (`a{sv}`).
    Dict(Table),
    /// Attributes that are told as if they stood beside it.
    Inline(Table),
    /// An array: attributes with any number, each of which holds attributes (`aa{sv}`).
    Each(Table),
    /// Attributes one after the other that begin again and again (`aa{sv}`).
    Rows(Table),
    /// A structure that its family takes apart (`a{sv}`).
    Structure(fn(&[u8]) -> Option<Dict>),
}

/// How deep attributes without a table may be nested; deeper ones are bytes.
const DEPTH: u32 = 8;

/// The attributes of a message by name; None where they are damaged.
pub fn decode(payload: &[u8], table: Table) -> Option<Dict> {
    nested(payload, table, DEPTH)
}

fn nested(payload: &[u8], table: Table, depth: u32) -> Option<Dict> {
    let mut dict = Dict::new();
    for attribute in attributes(payload).ok()? {
        let payload = attribute.payload;
        match table.iter().find(|(kind, ..)| *kind == attribute.kind) {
            Some((_, _, Form::Inline(inner))) => dict.extend(nested(payload, inner, depth)?),
            Some((_, _, Form::Structure(decode))) => dict.extend(decode(payload)?),
            Some((_, name, form)) => {
                dict.insert((*name).to_owned(), value(payload, *form, depth)?);
            }
            None => {
                let inner = attribute.nested && depth > 0;
                let inner = inner.then(|| nested(payload, &[], depth - 1)).flatten();
                let value = inner.map_or_else(|| payload.to_owned().into(), Value::Dict);
                dict.insert(attribute.kind.to_string(), value);
            }
        }
    }
    Some(dict)
}

fn value(payload: &[u8], form: Form, depth: u32) -> Option<Value> {
    Some(match form {
        Form::Number => number(payload)?,
        Form::Signed => i32::from_ne_bytes(payload.try_into().ok()?).into(),
        Form::Name(names) => {
            let number = number(payload)?.integer()?;
            match usize::try_from(number).ok().and_then(|number| names.get(number)) {
                Some(name) => (*name).into(),
                None => number.to_string().into(),
            }
        }
        Form::Text => {
            let bytes = payload.strip_suffix(&[0]).unwrap_or(payload);
            if bytes.contains(&0) {
                return None;
            }
            text(bytes).into()
        }
        Form::Flag => payload.is_empty().then_some(true)?.into(),
        Form::Bits => {
            let (words, []) = payload.as_chunks::<4>() else { return None };
            let words = words.iter().map(|word| u32::from_ne_bytes(*word));
            let set = |(n, word): (usize, u32)| {
                (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| n as u32 * 32 + bit)
            };
            words.enumerate().flat_map(set).collect::<Vec<u32>>().into()
        }
        Form::Dict(table) => nested(payload, table, depth)?.into(),
        Form::Each(table) => attributes(payload)
            .ok()?
            .into_iter()
            .map(|attribute| nested(attribute.payload, table, depth))
            .collect::<Option<Vec<_>>>()?
            .into(),
        Form::Rows(table) => {
            let mut rows: Vec<Dict> = Vec::new();
            for attribute in attributes(payload).ok()? {
                let (_, name, form) = table.iter().find(|(kind, ..)| *kind == attribute.kind)?;
                if rows.last().is_none_or(|row| row.contains_key(*name)) {
                    rows.push(Dict::new());
                }
                let value = value(attribute.payload, *form, depth)?;
                rows.last_mut()?.insert((*name).to_owned(), value);
            }
            rows.into()
        }
        // Those have no name of their own.
        Form::Inline(_) | Form::Structure(_) => return None,
    })
}

fn number(payload: &[u8]) -> Option<Value> {
    Some(match *payload {
        [byte] => u32::from(byte).into(),
        [a, b] => u32::from(u16::from_ne_bytes([a, b])).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => u64::from_ne_bytes(payload.try_into().ok()?).into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{dict, netlink::generic::testing::attribute};

    const TABLE: Table = &[
        (1, "number", Form::Number),
        (2, "signed", Form::Signed),
        (3, "name", Form::Name(&["none", "one"])),
        (4, "text", Form::Text),
        (5, "flag", Form::Flag),
        (6, "bits", Form::Bits),
        (7, "dict", Form::Dict(&[(1, "number", Form::Number)])),
        (8, "inline", Form::Inline(&[(1, "beside", Form::Number)])),
        (9, "each", Form::Each(&[(1, "number", Form::Number)])),
        (10, "rows", Form::Rows(&[(1, "a", Form::Number), (2, "b", Form::Number)])),
    ];

    #[track_caller]
    fn says(attributes: &[Vec<u8>], expected: &Dict) {
        let dict = decode(&attributes.concat(), TABLE).unwrap();
        assert_eq!(format!("{dict:?}"), format!("{expected:?}"));
    }

    #[test]
    fn every_form_is_read() {
        let number = attribute(1, &7_u32.to_ne_bytes());
        says(std::slice::from_ref(&number), &dict! { "number" => 7_u32 });
        says(&[attribute(1, &[7])], &dict! { "number" => 7_u32 });
        says(&[attribute(1, &7_u16.to_ne_bytes())], &dict! { "number" => 7_u32 });
        says(&[attribute(1, &7_u64.to_ne_bytes())], &dict! { "number" => 7_u64 });
        says(&[attribute(2, &(-7_i32).to_ne_bytes())], &dict! { "signed" => -7 });
        says(&[attribute(3, &[1])], &dict! { "name" => "one" });
        says(&[attribute(3, &[2])], &dict! { "name" => "2" });
        says(&[attribute(4, b"lo\0")], &dict! { "text" => "lo" });
        says(&[attribute(4, b"lo")], &dict! { "text" => "lo" });
        says(&[attribute(5, b"")], &dict! { "flag" => true });
        let bits = [1_u32 << 31 | 1, 2].map(u32::to_ne_bytes);
        says(&[attribute(6, bits.as_flattened())], &dict! { "bits" => vec![0_u32, 31, 33] });
        says(&[attribute(7, &number)], &dict! { "dict" => dict! { "number" => 7_u32 } });
        says(&[attribute(8, &number)], &dict! { "beside" => 7_u32 });
        let each = [attribute(1, &number), attribute(2, &number)].concat();
        let twice = vec![dict! { "number" => 7_u32 }; 2];
        says(&[attribute(9, &each)], &dict! { "each" => twice });
        let rows = [attribute(1, &[1]), attribute(2, &[2]), attribute(1, &[3])].concat();
        let expected = vec![dict! { "a" => 1_u32, "b" => 2_u32 }, dict! { "a" => 3_u32 }];
        says(&[attribute(10, &rows)], &dict! { "rows" => expected });
    }

    #[test]
    fn what_no_table_knows_is_told_by_number() {
        let inner = attribute(3, b"ab");
        let nested = attribute(11 | 0x8000, &inner);
        says(&[nested], &dict! { "11" => dict! { "3" => b"ab".to_vec() } });
        says(&[attribute(11, &inner)], &dict! { "11" => inner });
        says(&[attribute(12 | 0x8000, b"ab")], &dict! { "12" => b"ab".to_vec() });
        let deep = (0..4000).fold(Vec::new(), |inner, _| attribute(99 | 0x8000, &inner));
        assert!(decode(&deep, TABLE).is_some(), "nested 4000 times");
    }

    #[test]
    fn an_attribute_that_is_not_what_its_table_says_is_damage() {
        for bad in [
            attribute(1, &[0; 3]),
            attribute(1, &[]),
            attribute(2, &[0; 8]),
            attribute(3, &[]),
            attribute(4, b"a\0b\0"),
            attribute(5, &[1]),
            attribute(6, &[0; 6]),
            attribute(7, &[0; 6]),
            attribute(9, &attribute(1, &[0; 6])),
            attribute(10, &attribute(3, &[])),
        ] {
            assert!(decode(&bad, TABLE).is_none(), "{bad:?}");
        }
    }
}
