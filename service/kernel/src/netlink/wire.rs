//! Messages of netlink(7) as bytes: a datagram's frames, a frame's header and attributes.
//!
//! neli reads the attributes and writes the requests; the frames are cut here, as neli trusts the
//! lengths in them. Whatever the bytes are, reading them ends in a value or an error.

use std::io::Cursor;

use neli::{
    FromBytesWithInput, ToBytes,
    consts::nl::NlmF,
    err::{DeError, SerError},
    nl::{NlPayload, NlmsghdrBuilder},
    types::Buffer,
};

use crate::sock_diag::Attributes;

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

const HEADER: usize = 16;

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
pub fn parts<const N: usize>(payload: &[u8]) -> Result<(&[u8; N], Attributes), Damaged> {
    let (header, rest) = payload.split_first_chunk().ok_or_else(cut)?;
    Ok((header, attributes(rest)?))
}

/// Attributes, as a message or an attribute holds them.
pub fn attributes(bytes: &[u8]) -> Result<Attributes, Damaged> {
    Attributes::from_bytes_with_input(&mut Cursor::new(bytes), bytes.len())
}

/// Type and payload of each attribute, without the bits NLA_F_NESTED and NLA_F_NET_BYTEORDER.
pub fn each(attributes: &Attributes) -> impl Iterator<Item = (u16, &[u8])> {
    attributes.iter().map(|attribute| (attribute.rta_type() & 0x3fff, attribute.rta_payload().as_ref()))
}

/// The numbers at the start of an attribute's payload.
pub fn word(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

pub fn signed(payload: &[u8]) -> Option<i32> {
    payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
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

/// The kernel's answer to a request, NLMSG_ERROR, or the end of a dump, NLMSG_DONE: its errno, 0 for
/// none, and the text of the extended acknowledgement.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub errno: i32,
    pub text: Option<String>,
}

/// NLM_F_CAPPED: the request is not repeated whole. NLM_F_ACK_TLVS: attributes follow.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// NLMSGERR_ATTR_MSG.
const MESSAGE: u16 = 1;

/// Reads an NLMSG_ERROR or NLMSG_DONE.
pub fn verdict(frame: &Frame<'_>) -> Result<Verdict, Damaged> {
    let (code, rest) = frame.payload.split_first_chunk::<4>().ok_or_else(cut)?;
    let errno = i32::from_ne_bytes(*code).saturating_neg();
    if frame.flags & ACK_TLVS == 0 {
        return Ok(Verdict { errno, text: None });
    }
    let repeated = match i32::from(frame.kind) == libc::NLMSG_ERROR {
        false => 0,
        true if frame.flags & CAPPED != 0 => HEADER,
        // The whole request, which only an error brings along.
        true => aligned(word(rest).ok_or_else(cut)? as usize),
    };
    let attributes = attributes(rest.get(repeated..).ok_or(DeError::InvalidInput(repeated))?)?;
    let text = each(&attributes).find(|(kind, _)| *kind == MESSAGE).map(|(_, payload)| text(payload));
    Ok(Verdict { errno, text })
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
    fn the_text_of_an_error_is_found_behind_the_request() {
        let text = [&[10, 0, 1, 0], &b"worse\0"[..], &[0, 0]].concat();
        let repeated = request(26, NlmF::empty(), 1, b"abc").unwrap();
        for (flags, repeated) in [(ACK_TLVS, aligned(repeated.len())), (ACK_TLVS | CAPPED, HEADER)] {
            let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
            let mut request = request(26, NlmF::empty(), 1, b"abc").unwrap();
            request.resize(repeated, 0);
            payload.extend(request);
            payload.extend(&text);
            let frame = Frame { kind: libc::NLMSG_ERROR as u16, flags, sequence: 1, payload: &payload };
            let expected = Verdict { errno: libc::EINVAL, text: Some("worse".into()) };
            assert_eq!(verdict(&frame).unwrap(), expected);
        }
    }

    proptest! {
        /// Neither a panic nor an endless loop, whatever the bytes are.
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4u16, flags: u16) {
            prop_assert!(frames(&bytes).count() <= bytes.len());
            _ = attributes(&bytes).map(|attributes| each(&attributes).count());
            _ = verdict(&Frame { kind, flags, sequence: 0, payload: &bytes });
        }
    }
}
