//! What the kernel says about a request in the messages of netlink(7) themselves: NLMSG_ERROR, the
//! NLMSG_DONE of a dump that failed, with the extended acknowledgement's text, and NLM_F_DUMP_INTR.
//!
//! Read from raw bytes that anybody may have damaged: what does not fit is no answer.

use super::wire::{self, Frame, HEADER};
use crate::{Dict, dict, error};

/// linux/netlink.h. NLM_F_CAPPED: the request is not repeated whole. NLM_F_ACK_TLVS: attributes follow.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;
const NLMSGERR_ATTR_MISS_TYPE: u16 = 5;

/// The kernel's answer to a request, or how a dump has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0: it is an acknowledgement, or the dump went well.
    pub errno: i32,
    /// What the extended acknowledgement says, and about which byte or attribute of the request.
    pub text: Option<String>,
    pub offset: Option<u32>,
    pub missing: Option<u32>,
}

impl Answer {
    /// None: the message is no answer, or damaged.
    pub fn read(frame: &Frame<'_>) -> Option<Self> {
        let errno = wire::signed(frame.payload)?.saturating_neg();
        let rest = frame.payload.get(4..)?;
        let extended = match i32::from(frame.kind) {
            libc::NLMSG_ERROR => {
                // The header of the request; with NLM_F_CAPPED, or in an acknowledgement, without what was behind it.
                let shown = match frame.flags & NLM_F_CAPPED != 0 || errno == 0 {
                    true => HEADER,
                    false => usize::try_from(wire::word(rest)?).ok()?.checked_next_multiple_of(4)?,
                };
                rest.get(shown..).unwrap_or_default()
            }
            libc::NLMSG_DONE => rest,
            _ => return None,
        };
        let mut answer = Self { errno, text: None, offset: None, missing: None };
        if frame.flags & NLM_F_ACK_TLVS != 0 {
            for (kind, value) in wire::each(&wire::attributes(extended).unwrap_or_default()) {
                match kind {
                    NLMSGERR_ATTR_MSG => answer.text = Some(wire::text(value)),
                    NLMSGERR_ATTR_OFFS => answer.offset = wire::word(value),
                    NLMSGERR_ATTR_MISS_TYPE => answer.missing = wire::word(value),
                    _ => {}
                }
            }
        }
        Some(answer)
    }
}

/// The attributes of a received message: `errno` (0 for an acknowledgement), `error`, `text`, `offset` and
/// `missing` of the first answer in it, and `interrupted` where a dump has to be repeated.
pub fn attributes(data: &[u8]) -> Dict {
    let mut attributes = Dict::new();
    // Up to the first that does not fit.
    for frame in wire::frames(data).map_while(Result::ok) {
        if frame.flags & NLM_F_DUMP_INTR != 0 {
            attributes.insert("interrupted".into(), true.into());
        }
        if attributes.contains_key("errno") {
            continue;
        }
        match Answer::read(&frame) {
            // Only a dump that failed half-way says something at its end.
            Some(answer) if i32::from(frame.kind) == libc::NLMSG_ERROR || answer.errno > 0 => {
                attributes.extend(told(answer));
            }
            _ => {}
        }
    }
    attributes
}

fn told(answer: Answer) -> Dict {
    let mut attributes = dict! { "errno" => answer.errno };
    if answer.errno > 0 {
        attributes.insert("error".into(), error::describe(error::errno_in(-answer.errno)).into());
    }
    attributes.extend(answer.text.map(|text| ("text".to_owned(), text.into())));
    attributes.extend(answer.offset.map(|offset| ("offset".to_owned(), offset.into())));
    attributes.extend(answer.missing.map(|missing| ("missing".to_owned(), missing.into())));
    attributes
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
        message(libc::NLMSG_ERROR as u16, flags | NLM_F_ACK_TLVS, &payload)
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
            shown(&message(libc::NLMSG_ERROR as u16, NLM_F_CAPPED, &payload)),
            format!("{:?}", dict! { "errno" => 0_i32 })
        );
        assert!(
            attributes(&message(libc::NLMSG_DONE as u16, 2, &0_i32.to_ne_bytes())).is_empty(),
            "a dump that went well"
        );
        let mut dump = message(16, 2 | NLM_F_DUMP_INTR, b"a link");
        dump.extend(message(libc::NLMSG_DONE as u16, 2, &(-libc::ENOMEM).to_ne_bytes()));
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
