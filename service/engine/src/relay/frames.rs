//! How messages stand in a stream: pure functions on bytes, both ways.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipc_kernel::{Dict, Error, Kind, Result};

use super::{json, options::Framing};

/// The bytes of the length in front of a message.
const PREFIX: usize = 4;

/// A message found in a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where its bytes are.
    pub payload: Range<usize>,
    /// How much of the buffer it takes, with what marks its borders.
    pub total: usize,
}

/// What is still to be dropped of a message: the rest of a line, or so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discard {
    Line,
    Bytes(usize),
}

impl Discard {
    /// How many of these bytes go, and what is left to be dropped then.
    pub(super) fn of(self, bytes: &[u8]) -> (usize, Option<Self>) {
        match self {
            Self::Line => match bytes.iter().position(|&byte| byte == b'\n') {
                Some(length) => (length + 1, None),
                None => (bytes.len(), Some(self)),
            },
            Self::Bytes(wanted) => match wanted.checked_sub(bytes.len()) {
                None | Some(0) => (wanted, None),
                Some(left) => (bytes.len(), Some(Self::Bytes(left))),
            },
        }
    }
}

impl Framing {
    /// The most bytes in a frame that holds a message of at most `max`, of which no more than `buffer` are held.
    /// What JSON takes besides and for escapes is anybody's guess.
    pub(super) fn frame(self, max: usize, buffer: usize) -> usize {
        match self {
            Self::Line | Self::Length | Self::Fixed(_) => max.min(buffer),
            Self::Base64 => max.div_ceil(3).saturating_mul(4).min(buffer),
            Self::Json => buffer,
        }
    }

    /// The message in a frame, with its attributes; None: the frame is the message.
    pub(super) fn decode(self, frame: &[u8]) -> Result<Option<(Vec<u8>, Dict)>> {
        match self {
            Self::Line | Self::Length | Self::Fixed(_) => Ok(None),
            Self::Json => json::parse(frame).map(Some),
            Self::Base64 => STANDARD
                .decode(frame.trim_ascii_end())
                .map(|data| Some((data, Dict::new())))
                .map_err(|error| Error::invalid(format!("a line is no base64: {error}"))),
        }
    }

    /// The most bytes of the stream that a frame of `max` bytes takes.
    pub(super) fn longest(self, max: usize) -> usize {
        match self {
            Self::Line | Self::Json | Self::Base64 => max.saturating_add(1),
            Self::Length => max.saturating_add(PREFIX),
            Self::Fixed(size) => size,
        }
    }

    /// The first message in what has come so far, of at most `max` bytes; `ended` when nothing
    /// more will come. None: it is not complete yet (or, at the end, there is none).
    pub(super) fn next(self, bytes: &[u8], ended: bool, max: usize) -> Result<Option<Frame>> {
        let frame = match self {
            Self::Line | Self::Json | Self::Base64 => {
                match bytes.iter().take(max.saturating_add(1)).position(|&byte| byte == b'\n') {
                    Some(length) => Frame { payload: 0..length, total: length + 1 },
                    None if bytes.len() > max => return Err(too_long("line", None, max)),
                    // A last line without a newline is a line.
                    None if ended && !bytes.is_empty() => {
                        Frame { payload: 0..bytes.len(), total: bytes.len() }
                    }
                    None => return Ok(None),
                }
            }
            Self::Length => {
                let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
                    return incomplete(bytes.len(), PREFIX, ended);
                };
                let length = u32::from_be_bytes(*prefix) as usize;
                if length > max {
                    return Err(too_long("message", Some(length), max));
                }
                if rest.len() < length {
                    return incomplete(bytes.len(), PREFIX + length, ended);
                }
                Frame { payload: PREFIX..PREFIX + length, total: PREFIX + length }
            }
            Self::Fixed(size) => match bytes.len() {
                0 => return Ok(None),
                length if length >= size => Frame { payload: 0..size, total: size },
                // A short last record is sent as it is.
                length if ended => Frame { payload: 0..length, total: length },
                _ => return Ok(None),
            },
        };
        Ok(Some(frame))
    }

    /// How much of the stream belongs to a message that is too large, and begins with these bytes.
    pub(super) fn discard(self, bytes: &[u8]) -> Discard {
        match (self, bytes.first_chunk::<PREFIX>()) {
            (Self::Length, Some(prefix)) => Discard::Bytes(PREFIX + u32::from_be_bytes(*prefix) as usize),
            _ => Discard::Line,
        }
    }

    /// The message as it stands in the stream.
    pub(super) fn wrap(self, message: &[u8], attributes: &Dict) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(message.len() + PREFIX);
        match self {
            Self::Line => {
                if message.contains(&b'\n') {
                    return Err(Error::invalid(format!(
                        "a message of {} bytes contains a newline, which framing=line would make two of; use \
                         framing=length",
                        message.len()
                    )));
                }
                bytes.extend_from_slice(message);
                bytes.push(b'\n');
            }
            Self::Json => {
                bytes = json::message(message, attributes);
                bytes.push(b'\n');
            }
            Self::Base64 => {
                bytes = STANDARD.encode(message).into_bytes();
                bytes.push(b'\n');
            }
            Self::Length => {
                let length = u32::try_from(message.len()).map_err(|_| {
                    Error::new(Kind::TooLarge, "a message of 4 GiB or more has no length of 4 bytes")
                })?;
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(message);
            }
            Self::Fixed(size) => {
                if message.len() != size {
                    return Err(Error::invalid(format!(
                        "a message has {} bytes, record-size is {size}; use framing=length",
                        message.len()
                    )));
                }
                bytes.extend_from_slice(message);
            }
        }
        Ok(bytes)
    }
}

pub(super) fn too_long(what: &str, length: Option<usize>, max: usize) -> Error {
    let length = length.map_or_else(|| "more bytes".to_owned(), |length| format!("{length} bytes, more"));
    Error::new(
        Kind::TooLarge,
        format!("a {what} in the stream has {length} than the {max} that one message may have here"),
    )
}

fn incomplete(have: usize, want: usize, ended: bool) -> Result<Option<Frame>> {
    if ended && have > 0 {
        return Err(Error::new(
            Kind::Closed,
            format!(
                "the stream ended inside a message: after {have} of {want} bytes. They were kept at the source"
            ),
        ));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(framing: Framing, mut bytes: &[u8], max: usize) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        while let Some(frame) = framing.next(bytes, true, max)? {
            found.push(bytes[frame.payload].to_vec());
            bytes = &bytes[frame.total..];
        }
        Ok(found)
    }

    #[test]
    fn lines() {
        let lines = all(Framing::Line, b"a\r\n\nbc\nlast", 4).unwrap();
        assert_eq!(lines, [b"a\r".to_vec(), b"".to_vec(), b"bc".to_vec(), b"last".to_vec()]);
        assert_eq!(Framing::Line.next(b"abc", false, 4).unwrap(), None);
        assert_eq!(Framing::Line.next(b"abcde", false, 4).unwrap_err().kind, Kind::TooLarge);
        assert!(Framing::Line.next(b"abcd\n", false, 4).unwrap().is_some());
        assert_eq!(Framing::Line.wrap(b"a\nb", &Dict::new()).unwrap_err().kind, Kind::InvalidArgument);
    }

    #[test]
    fn lengths() {
        let bytes = [
            Framing::Length.wrap(b"", &Dict::new()).unwrap(),
            Framing::Length.wrap(b"four", &Dict::new()).unwrap(),
        ]
        .concat();
        assert_eq!(all(Framing::Length, &bytes, 4).unwrap(), [b"".to_vec(), b"four".to_vec()]);
        assert_eq!(Framing::Length.next(&bytes[4..7], false, 4).unwrap(), None);
        assert_eq!(Framing::Length.next(&bytes[4..7], true, 4).unwrap_err().kind, Kind::Closed);
        assert_eq!(Framing::Length.next(&bytes[4..], false, 3).unwrap_err().kind, Kind::TooLarge);
    }

    #[test]
    fn what_is_too_long_is_dropped_to_its_end() {
        assert_eq!(Framing::Line.discard(b"abcdef").of(b"abcdef"), (6, Some(Discard::Line)));
        assert_eq!(Discard::Line.of(b"ghi\njk"), (4, None));
        let long = Framing::Length.discard(b"\0\0\0\x05abc");
        assert_eq!(long.of(b"\0\0\0\x05abc"), (7, Some(Discard::Bytes(2))));
        assert_eq!(long.of(b"\0\0\0\x05abcde\0"), (9, None));
        assert_eq!(Discard::Bytes(2).of(b"de"), (2, None));
    }

    #[test]
    fn records() {
        let records = all(Framing::Fixed(3), b"abcdefgh", 3).unwrap();
        assert_eq!(records, [b"abc".to_vec(), b"def".to_vec(), b"gh".to_vec()]);
        assert_eq!(Framing::Fixed(3).wrap(b"ab", &Dict::new()).unwrap_err().kind, Kind::InvalidArgument);
    }

    #[test]
    fn lines_that_are_decoded() {
        for framing in [Framing::Json, Framing::Base64] {
            let message = b"a\n\xff\"".as_slice();
            let line = framing.wrap(message, &Dict::new()).unwrap();
            let frame = framing.next(&line, false, 100).unwrap().unwrap();
            assert_eq!(frame.total, line.len());
            assert_eq!(framing.decode(&line[frame.payload]).unwrap().unwrap().0, message);
        }
        assert_eq!(Framing::Base64.decode(b"YQ==\r").unwrap().unwrap().0, b"a");
        assert_eq!(Framing::Base64.decode(b"*").unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!((Framing::Base64.frame(4, 100), Framing::Json.frame(4, 100)), (8, 100));
    }
}
