//! What the sources of events take out of a datagram: messages, attributes, words.
//!
//! Every length is checked against what is there, and a datagram that does not add up is damaged as
//! a whole: `None`. Attributes are not neli's here, as those forget which are nested.

use super::wire::{Frame, frames};

/// The header of an attribute, `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// An attribute; its payload without the padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub kind: u16,
    /// The kernel says that there are attributes in it. Older families do not say so.
    pub nested: bool,
    pub payload: &'a [u8],
}

/// The messages of a datagram, if all are whole.
pub fn messages(datagram: &[u8]) -> Option<Vec<Frame<'_>>> {
    frames(datagram).collect::<Result<_, _>>().ok()
}

/// The attributes in a payload that holds nothing else.
pub fn attributes(mut payload: &[u8]) -> Option<Vec<Attribute<'_>>> {
    let mut attributes = Vec::new();
    while !payload.is_empty() {
        let length = usize::from(u16_at(payload, 0)?);
        let kind = u16_at(payload, 2)?;
        attributes.push(Attribute {
            kind: kind & TYPE_MASK,
            nested: kind & NESTED != 0,
            payload: payload.get(ATTRIBUTE_HEADER..length)?,
        });
        payload = after(payload, length);
    }
    Some(attributes)
}

/// What follows the first `length` bytes and their padding, which the last one may lack.
fn after(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// What the tests of every decoder do to a good message: cut it, and turn bytes over.
#[cfg(test)]
pub mod damage {
    use proptest::prelude::*;

    /// Copies of the message with up to eight bytes changed and the end cut off or grown.
    pub fn damaged(message: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let length = message.len();
        let changes = prop::collection::vec((0..length, any::<u8>()), 0..8);
        (changes, 0..length + 8).prop_map(move |(changes, end)| {
            let mut message = message.clone();
            for (place, byte) in changes {
                message[place] = byte;
            }
            message.resize(end, 0xff);
            message
        })
    }

    /// Cut anywhere, not changed.
    pub fn cut(message: &[u8]) -> impl Iterator<Item = &[u8]> {
        (0..message.len()).map(|end| &message[..end])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn padding_is_skipped_and_may_be_missing_at_the_end() {
        let attribute = [7, 0, 0x02, 0x80, b'a', b'b', 0];
        let all = [&attribute[..], &[0], &attribute[..]].concat();
        let expected = Attribute { kind: 2, nested: true, payload: b"ab\0" };
        assert_eq!(attributes(&all).unwrap(), [expected, expected]);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_damage() {
        for length in [0_u16, 3, 9] {
            let bytes = [&length.to_ne_bytes()[..], &[1, 0, 0, 0, 0, 0]].concat();
            assert_eq!(attributes(&bytes), None, "an attribute of {length} bytes in 8");
        }
        for length in [0_u32, 15, 21, u32::MAX] {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(messages(&bytes).is_none(), "a message of {length} bytes in 20");
        }
    }

    proptest! {
        #[test]
        fn whatever_bytes_are_taken_apart_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            for message in messages(&bytes).unwrap_or_default() {
                attributes(message.payload);
            }
            attributes(&bytes);
        }
    }
}
