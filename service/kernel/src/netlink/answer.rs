//! What the kernel says about a request in the messages of netlink(7) themselves: NLMSG_ERROR, the
//! NLMSG_DONE of a dump that failed, with the extended acknowledgement's text, and NLM_F_DUMP_INTR.
//!
//! Read from raw bytes that anybody may have damaged: what does not fit is no answer.

use crate::{Dict, dict, error};

/// linux/netlink.h.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;
const NLMSGERR_ATTR_MISS_TYPE: u16 = 5;
/// NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE: u16 = 0x3fff;

/// One message: its type and flags, and what is behind its header.
struct Part<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

/// The messages of a datagram, up to the first that does not fit.
fn parts(mut data: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let (length, kind, flags) = header(data)?;
        let payload = data.get(HEADER..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Part { kind, flags, payload })
    })
}

/// Length, type and flags of a message that is there in full.
pub fn header(data: &[u8]) -> Option<(usize, u16, u16)> {
    let length = usize::try_from(word(data)?).ok()?;
    let kind = half(data.get(4..)?)?;
    let flags = half(data.get(6..)?)?;
    (HEADER..=data.len()).contains(&length).then_some((length, kind, flags))
}

/// The attributes of a received message: `errno` (0 for an acknowledgement), `error`, `text`, `offset` and
/// `missing` of the first answer in it, and `interrupted` where a dump has to be repeated.
pub fn attributes(data: &[u8]) -> Dict {
    let mut attributes = Dict::new();
    for part in parts(data) {
        if part.flags & NLM_F_DUMP_INTR != 0 {
            attributes.insert("interrupted".into(), true.into());
        }
        if attributes.contains_key("errno") {
            continue;
        }
        if let Some(answer) = answer(&part) {
            attributes.extend(answer);
        }
    }
    attributes
}

fn answer(part: &Part<'_>) -> Option<Dict> {
    let code = word(part.payload)?.cast_signed();
    let extended = match part.kind {
        NLMSG_ERROR => {
            let request = part.payload.get(4..)?;
            // The header of the request; with NLM_F_CAPPED, or in an acknowledgement, without what was behind it.
            let length = usize::try_from(word(request)?).ok()?;
            let shown = match part.flags & NLM_F_CAPPED != 0 || code == 0 {
                true => HEADER,
                false => length.checked_next_multiple_of(4)?,
            };
            request.get(shown..).unwrap_or_default()
        }
        // Only a dump that failed half-way says something here.
        NLMSG_DONE if code < 0 => part.payload.get(4..)?,
        _ => return None,
    };
    let mut attributes = dict! { "errno" => code.saturating_neg() };
    if code < 0 {
        attributes.insert("error".into(), error::describe(error::errno_in(code)).into());
    }
    if part.flags & NLM_F_ACK_TLVS != 0 {
        for (kind, value) in extensions(extended) {
            match kind {
                NLMSGERR_ATTR_MSG => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    attributes.insert("text".into(), String::from_utf8_lossy(text).into_owned().into());
                }
                NLMSGERR_ATTR_OFFS => attributes.extend(word(value).map(|n| ("offset".to_owned(), n.into()))),
                NLMSGERR_ATTR_MISS_TYPE => {
                    attributes.extend(word(value).map(|n| ("missing".to_owned(), n.into())));
                }
                _ => {}
            }
        }
    }
    Some(attributes)
}

/// Attributes as type and value, up to the first that does not fit.
fn extensions(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(data)?);
        let kind = half(data.get(2..)?)?;
        let value = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    })
}

fn word(data: &[u8]) -> Option<u32> {
    data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn half(data: &[u8]) -> Option<u16> {
    data.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([7, 0, 0, 0, 9, 0, 0, 0]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn shown(data: &[u8]) -> String {
        format!("{:?}", attributes(data))
    }

    fn refusal(flags: u16, request: &[u8]) -> Vec<u8> {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend(request);
        payload.extend(extension(NLMSGERR_ATTR_MSG, b"no\0"));
        payload.extend(extension(NLMSGERR_ATTR_OFFS, &5_u32.to_ne_bytes()));
        message(NLMSG_ERROR, flags | NLM_F_ACK_TLVS, &payload)
    }

    #[test]
    fn refusals_are_read_with_and_without_the_request() {
        let told = dict! {
            "errno" => libc::EINVAL, "error" => "Invalid argument (EINVAL)", "text" => "no", "offset" => 5_u32,
        };
        let request = message(16, 1, b"twelve bytes");
        assert_eq!(shown(&refusal(0, &request)), format!("{told:?}"));
        assert_eq!(shown(&refusal(NLM_F_CAPPED, &request[..HEADER])), format!("{told:?}"));
    }

    #[test]
    fn acknowledgements_and_ends_of_dumps_are_told_apart() {
        let mut payload = 0_i32.to_ne_bytes().to_vec();
        payload.extend(message(16, 1, b""));
        assert_eq!(
            shown(&message(NLMSG_ERROR, NLM_F_CAPPED, &payload)),
            format!("{:?}", dict! { "errno" => 0_i32 })
        );
        assert!(
            attributes(&message(NLMSG_DONE, 2, &0_i32.to_ne_bytes())).is_empty(),
            "a dump that went well"
        );
        let mut dump = message(16, 2 | NLM_F_DUMP_INTR, b"a link");
        dump.extend(message(NLMSG_DONE, 2, &(-libc::ENOMEM).to_ne_bytes()));
        let told = dict! {
            "errno" => libc::ENOMEM, "error" => "Cannot allocate memory (ENOMEM)", "interrupted" => true,
        };
        assert_eq!(shown(&dump), format!("{told:?}"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            attributes(&data);
        }

        #[test]
        fn no_damage_panics(at in 0..80_usize, byte: u8, flags: u16, length in 0..120_usize) {
            let mut data = refusal(flags, &message(16, 1, b"a request"));
            if let Some(place) = data.get_mut(at) {
                *place = byte;
            }
            data.truncate(length);
            attributes(&data);
        }
    }
}
