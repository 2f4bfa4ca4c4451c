//! Messages that came: header fields by their code, and a body that is read value by value.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;

use crate::wire::{self, Arg, alignment};

/// A message that came, with its descriptors.
pub struct Incoming {
    pub kind: u8,
    pub flags: u8,
    pub serial: u32,
    pub fields: BTreeMap<u8, Arg>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// In a line: type, path and member (or the error), and the beginning of the values.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = ["?", "call", "return", "error", "signal"];
        let kind = kinds.get(usize::from(self.kind)).unwrap_or(&"?");
        let mut args = format!("{:?}", self.args());
        args.truncate((0..=300).rev().find(|&at| args.is_char_boundary(at)).unwrap_or_default());
        let [from, path, interface] =
            [wire::SENDER, wire::PATH, wire::INTERFACE].map(|code| self.field(code));
        let what = [self.field(wire::MEMBER), self.field(wire::ERROR_NAME)].concat();
        write!(f, "{kind} from {from} {path} {interface} {what} {args}")
    }
}

impl Incoming {
    /// How many bytes the message that begins here has in all; None until the fixed part is there.
    pub(crate) fn size(bytes: &[u8]) -> Option<usize> {
        let fixed = bytes.get(..16)?;
        let number =
            |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        Some((16 + number(12)).next_multiple_of(8) + number(4))
    }

    /// Of the bytes of one whole message.
    pub(crate) fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Incoming {
        assert_eq!(bytes[0], b'l', "a message of another byte order than the machine's");
        let mut reader = Reader { bytes, at: 4 };
        let length = reader.u32() as usize;
        let serial = reader.u32();
        let fields = match reader.value("a(yv)") {
            Arg::Array(_, fields) => fields.into_iter().filter_map(field).collect(),
            other => panic!("{other:?} is no array"),
        };
        let body = bytes[bytes.len() - length..].to_vec();
        Incoming { kind: bytes[1], flags: bytes[2], serial, fields, body, fds }
    }

    /// A header field of text; empty where there is none.
    pub fn field(&self, code: u8) -> &str {
        match self.fields.get(&code) {
            Some(Arg::Str(text) | Arg::Path(text) | Arg::Sig(text)) => text,
            _ => "",
        }
    }

    /// A header field that is a number; 0 where there is none.
    pub fn number(&self, code: u8) -> u32 {
        match self.fields.get(&code) {
            Some(Arg::U32(n)) => *n,
            _ => 0,
        }
    }

    /// The values of the body.
    pub fn args(&self) -> Vec<Arg> {
        let signature = self.field(wire::SIGNATURE);
        let mut reader = Reader { bytes: &self.body, at: 0 };
        split(signature).into_iter().map(|one| reader.value(one)).collect()
    }

    /// Whether it is a signal of this name.
    pub fn is_signal(&self, member: &str) -> bool {
        self.kind == wire::SIGNAL && self.field(wire::MEMBER) == member
    }

    /// Whether it is from the service, or says to be.
    pub fn is_ours(&self) -> bool {
        self.field(wire::INTERFACE).starts_with("org.example.IPC")
    }
}

fn field(pair: Arg) -> Option<(u8, Arg)> {
    let Arg::Struct(pair) = pair else { return None };
    match <[Arg; 2]>::try_from(pair) {
        Ok([Arg::Byte(code), Arg::Variant(value)]) => Some((code, *value)),
        _ => None,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at = self.at.next_multiple_of(N);
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().expect("so many were taken")
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn text(&mut self, length: usize) -> String {
        let text = String::from_utf8_lossy(&self.bytes[self.at..self.at + length]).into_owned();
        self.at += length + 1;
        text
    }

    /// A value of one complete type.
    fn value(&mut self, signature: &str) -> Arg {
        let code = signature.as_bytes()[0];
        match code {
            b'y' => Arg::Byte(self.take::<1>()[0]),
            b'b' => Arg::Bool(self.u32() != 0),
            b'n' => Arg::I16(i16::from_le_bytes(self.take())),
            b'q' => Arg::U16(u16::from_le_bytes(self.take())),
            b'i' => Arg::I32(i32::from_le_bytes(self.take())),
            b'u' => Arg::U32(self.u32()),
            b'h' => Arg::Fd(self.u32()),
            b'x' => Arg::I64(i64::from_le_bytes(self.take())),
            b't' => Arg::U64(u64::from_le_bytes(self.take())),
            b'd' => Arg::F64(f64::from_le_bytes(self.take())),
            b's' | b'o' => {
                let length = self.u32() as usize;
                let text = self.text(length);
                if code == b's' { Arg::Str(text) } else { Arg::Path(text) }
            }
            b'g' => {
                let length = self.take::<1>()[0] as usize;
                Arg::Sig(self.text(length))
            }
            b'v' => {
                let length = self.take::<1>()[0] as usize;
                let inner = self.text(length);
                wire::variant(self.value(&inner))
            }
            b'(' => {
                self.at = self.at.next_multiple_of(8);
                let inner = split(&signature[1..signature.len() - 1]);
                Arg::Struct(inner.into_iter().map(|one| self.value(one)).collect())
            }
            b'{' => {
                self.at = self.at.next_multiple_of(8);
                let inner = split(&signature[1..signature.len() - 1]);
                let key = self.value(inner[0]);
                Arg::Pair(Box::new(key), Box::new(self.value(inner[1])))
            }
            b'a' => {
                let element = &signature[1..];
                let length = self.u32() as usize;
                self.at = self.at.next_multiple_of(alignment(element.as_bytes()[0]));
                let end = self.at + length;
                let mut values = Vec::new();
                while self.at < end {
                    values.push(self.value(element));
                }
                Arg::Array(element.to_owned(), values)
            }
            other => panic!("no type has the code {:?}", char::from(other)),
        }
    }
}

/// The complete types of a signature.
pub fn split(signature: &str) -> Vec<&str> {
    let mut types = Vec::new();
    let mut rest = signature;
    while !rest.is_empty() {
        let (one, left) = rest.split_at(first(rest));
        types.push(one);
        rest = left;
    }
    types
}

/// How long the first complete type is.
fn first(signature: &str) -> usize {
    let bytes = signature.as_bytes();
    match bytes[0] {
        b'a' => 1 + first(&signature[1..]),
        b'(' | b'{' => {
            let mut depth = 0;
            let ends = bytes.iter().position(|byte| {
                depth += match byte {
                    b'(' | b'{' => 1,
                    b')' | b'}' => -1,
                    _ => 0,
                };
                depth == 0
            });
            ends.expect("brackets come in pairs") + 1
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Outgoing, bytes, dict, path, text};

    #[test]
    fn what_is_written_is_read() {
        let args = [
            text("grüß"),
            path("/a/b"),
            Arg::U64(1 << 40),
            dict(&[("fd", Arg::Fd(0)), ("n", Arg::I16(-3)), ("s", text("x"))]),
            bytes(b"abc"),
            Arg::Array("(st)".into(), vec![Arg::Struct(vec![text("a"), Arg::U64(1)])]),
            Arg::F64(0.5),
        ];
        let mut message = Outgoing::call("a.b", "/p", "c.d", "E", &args);
        message.serial = 3;
        let encoded = message.encode();
        assert_eq!(Incoming::size(&encoded), Some(encoded.len()));
        let read = Incoming::parse(&encoded, Vec::new());
        assert_eq!((read.kind, read.serial, read.field(wire::MEMBER)), (wire::CALL, 3, "E"));
        assert_eq!(read.field(wire::SIGNATURE), "sota{sv}aya(st)d");
        assert_eq!(read.args(), args);
    }

    #[test]
    fn signatures_are_split() {
        assert_eq!(split("sa{sv}a(yv)ay(u(ss))"), ["s", "a{sv}", "a(yv)", "ay", "(u(ss))"]);
    }
}
