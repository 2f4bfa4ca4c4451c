//! Messages of netlink(7) as bytes: a datagram's frames, a frame's header and attributes.
//!
//! neli writes the requests. What comes is taken apart here, as neli trusts the lengths in a frame and
//! forgets which attributes are nested: every length is checked against what is there, and whatever the
//! bytes are, reading them ends in a value or an error.

use std::io::Cursor;

use neli::{
    ToBytes,
    consts::nl::NlmF,
    err::{DeError, SerError},
    nl::{NlPayload, NlmsghdrBuilder},
    types::Buffer,
};

/// A message that cannot be read.
pub type Damaged = DeError;

/// One message of a datagram: `struct nlmsghdr` and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// `struct nlmsghdr`.
pub const HEADER: usize = 16;

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

/// The messages of a datagram, in order. A damaged one is the last.
pub fn frames(datagram: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Damaged>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = frame(rest);
        // The padding of the last message may be missing.
        let taken = frame.as_ref().map_or(rest.len(), |frame| aligned(HEADER + frame.payload.len()));
        rest = rest.get(taken..).unwrap_or_default();
        Some(frame)
    })
}

/// The messages of a datagram, if all are whole.
pub fn messages(datagram: &[u8]) -> Option<Vec<Frame<'_>>> {
    frames(datagram).collect::<Result<_, _>>().ok()
}

fn frame(bytes: &[u8]) -> Result<Frame<'_>, Damaged> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or_else(cut)?;
    let [a, b, c, d, kind_low, kind_high, flags_low, flags_high, e, f, g, h, ..] = *header;
    let length = u32::from_ne_bytes([a, b, c, d]) as usize;
    let payload = bytes.get(HEADER..length).ok_or(DeError::InvalidInput(length))?;
    Ok(Frame {
        kind: u16::from_ne_bytes([kind_low, kind_high]),
        flags: u16::from_ne_bytes([flags_low, flags_high]),
        sequence: u32::from_ne_bytes([e, f, g, h]),
        payload,
    })
}

fn cut() -> Damaged {
    DeError::new("it ends too early")
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A fixed header of `N` bytes and the attributes that follow it.
pub fn parts<const N: usize>(payload: &[u8]) -> Result<(&[u8; N], Vec<Attribute<'_>>), Damaged> {
    let (header, rest) = payload.split_first_chunk().ok_or_else(cut)?;
    Ok((header, attributes(rest)?))
}

/// The attributes in a payload that holds nothing else.
pub fn attributes(mut payload: &[u8]) -> Result<Vec<Attribute<'_>>, Damaged> {
    let mut attributes = Vec::new();
    while !payload.is_empty() {
        let length = usize::from(half(payload).ok_or_else(cut)?);
        let kind = u16_at(payload, 2).ok_or_else(cut)?;
        attributes.push(Attribute {
            kind: kind & TYPE_MASK,
            nested: kind & NESTED != 0,
            payload: payload.get(ATTRIBUTE_HEADER..length).ok_or(DeError::InvalidInput(length))?,
        });
        // The padding of the last one may be missing.
        payload = payload.get(aligned(length)..).unwrap_or_default();
    }
    Ok(attributes)
}

/// Type and payload of each attribute.
pub fn each<'a>(attributes: &[Attribute<'a>]) -> impl Iterator<Item = (u16, &'a [u8])> {
    attributes.iter().map(|attribute| (attribute.kind, attribute.payload))
}

pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    half(bytes.get(offset..)?)
}

pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    word(bytes.get(offset..)?)
}

/// The numbers at the start of an attribute's payload.
pub fn word(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

pub fn signed(payload: &[u8]) -> Option<i32> {
    word(payload).map(u32::cast_signed)
}

pub fn half(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// A text, up to its NUL.
pub fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// The bytes of a request with this payload.
pub fn request(kind: u16, flags: NlmF, sequence: u32, payload: &[u8]) -> Result<Vec<u8>, SerError> {
    let message = NlmsghdrBuilder::default()
        .nl_type(kind)
        .nl_flags(flags)
        .nl_seq(sequence)
        .nl_payload(NlPayload::<u16, Buffer>::Payload(Buffer::from(payload)))
        .build()
        .map_err(|error| SerError::new(error.to_string()))?;
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes)?;
    Ok(bytes.into_inner())
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut datagram = request(20, NlmF::DUMP, 7, b"12345678").unwrap();
        // Padding counts for the place of the next message, not for the length of this one.
        datagram[..4].copy_from_slice(&21_u32.to_ne_bytes());
        datagram.extend(request(21, NlmF::empty(), 8, b"").unwrap());
        let cut: Vec<_> = frames(&datagram).map(|frame| frame.unwrap()).collect();
        assert_eq!(cut.len(), 2);
        assert_eq!((cut[0].kind, cut[0].sequence, cut[0].payload), (20, 7, &b"12345"[..]));
        assert_eq!((cut[1].kind, cut[1].sequence, cut[1].payload), (21, 8, &b""[..]));
        // A message that says that it is longer, or shorter than its own header.
        for length in [0, 15, 17, u32::MAX] {
            datagram[24..28].copy_from_slice(&length.to_ne_bytes());
            let cut: Vec<_> = frames(&datagram).collect();
            assert!(cut.len() == 2 && cut[0].is_ok() && cut[1].is_err(), "{length}: {cut:?}");
        }
    }

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
            assert!(attributes(&bytes).is_err(), "an attribute of {length} bytes in 8");
        }
        for length in [0_u32, 15, 21, u32::MAX] {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(messages(&bytes).is_none(), "a message of {length} bytes in 20");
        }
    }

    proptest! {
        /// Neither a panic nor an endless loop, whatever the bytes are.
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(frames(&bytes).count() <= bytes.len());
            _ = attributes(&bytes).map(|attributes| each(&attributes).count());
        }
    }
}
