//! D-Bus messages by hand (the specification's "Message Protocol"): small, and free to be wrong.
//!
//! A library refuses to send what the specification forbids; an attacker does not. So a header here is a list of
//! fields of which any may be missing, doubled or of the wrong type, lengths may lie, and a body is bytes with a
//! signature that need not fit. Little-endian only; what is read comes from a bus and is trusted to be well-formed.

use std::fmt;

/// Types of messages.
pub const CALL: u8 = 1;
pub const RETURN: u8 = 2;
pub const ERROR: u8 = 3;
pub const SIGNAL: u8 = 4;

/// The flag of a call whose sender wants no reply.
pub const NO_REPLY: u8 = 1;

/// Codes of header fields.
pub const PATH: u8 = 1;
pub const INTERFACE: u8 = 2;
pub const MEMBER: u8 = 3;
pub const ERROR_NAME: u8 = 4;
pub const REPLY_SERIAL: u8 = 5;
pub const DESTINATION: u8 = 6;
pub const SENDER: u8 = 7;
pub const SIGNATURE: u8 = 8;
pub const UNIX_FDS: u8 = 9;

/// A value to be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    Path(String),
    Sig(String),
    /// The index of a descriptor.
    Fd(u32),
    Variant(Box<Arg>),
    Struct(Vec<Arg>),
    /// The signature of the elements, and they.
    Array(String, Vec<Arg>),
    Pair(Box<Arg>, Box<Arg>),
}

pub fn text(text: impl Into<String>) -> Arg {
    Arg::Str(text.into())
}

pub fn path(path: impl Into<String>) -> Arg {
    Arg::Path(path.into())
}

pub fn variant(value: Arg) -> Arg {
    Arg::Variant(Box::new(value))
}

/// `ay`
pub fn bytes(bytes: &[u8]) -> Arg {
    Arg::Array("y".into(), bytes.iter().map(|&byte| Arg::Byte(byte)).collect())
}

/// `a{sv}`
pub fn dict(pairs: &[(&str, Arg)]) -> Arg {
    let pairs =
        pairs.iter().map(|(key, value)| Arg::Pair(Box::new(text(*key)), Box::new(variant(value.clone()))));
    Arg::Array("{sv}".into(), pairs.collect())
}

/// `a{sv}` without an entry: no options.
pub fn no_options() -> Arg {
    dict(&[])
}

impl Arg {
    pub fn signature(&self) -> String {
        match self {
            Arg::Byte(_) => "y".into(),
            Arg::Bool(_) => "b".into(),
            Arg::I16(_) => "n".into(),
            Arg::U16(_) => "q".into(),
            Arg::I32(_) => "i".into(),
            Arg::U32(_) => "u".into(),
            Arg::I64(_) => "x".into(),
            Arg::U64(_) => "t".into(),
            Arg::F64(_) => "d".into(),
            Arg::Str(_) => "s".into(),
            Arg::Path(_) => "o".into(),
            Arg::Sig(_) => "g".into(),
            Arg::Fd(_) => "h".into(),
            Arg::Variant(_) => "v".into(),
            Arg::Struct(fields) => format!("({})", signature_of(fields)),
            Arg::Array(element, _) => format!("a{element}"),
            Arg::Pair(key, value) => format!("{{{}{}}}", key.signature(), value.signature()),
        }
    }

    fn write(&self, to: &mut Writer) {
        match self {
            Arg::Byte(n) => to.bytes.push(*n),
            Arg::Bool(b) => to.u32((*b).into()),
            Arg::I16(n) => to.number(&n.to_le_bytes()),
            Arg::U16(n) => to.number(&n.to_le_bytes()),
            Arg::I32(n) => to.number(&n.to_le_bytes()),
            Arg::U32(n) | Arg::Fd(n) => to.u32(*n),
            Arg::I64(n) => to.number(&n.to_le_bytes()),
            Arg::U64(n) => to.number(&n.to_le_bytes()),
            Arg::F64(n) => to.number(&n.to_le_bytes()),
            Arg::Str(text) | Arg::Path(text) => to.string(text.as_bytes()),
            Arg::Sig(text) => to.signature(text),
            Arg::Variant(value) => {
                to.signature(&value.signature());
                value.write(to);
            }
            Arg::Struct(fields) => {
                to.align(8);
                fields.iter().for_each(|field| field.write(to));
            }
            Arg::Pair(key, value) => {
                to.align(8);
                key.write(to);
                value.write(to);
            }
            Arg::Array(element, values) => {
                to.u32(0);
                let length_at = to.bytes.len() - 4;
                to.align(alignment(element.as_bytes().first().copied().unwrap_or(b'y')));
                let start = to.bytes.len();
                values.iter().for_each(|value| value.write(to));
                let length = u32::try_from(to.bytes.len() - start).expect("a message of a sane size");
                to.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

pub fn signature_of(args: &[Arg]) -> String {
    args.iter().map(Arg::signature).collect()
}

pub(crate) fn alignment(code: u8) -> usize {
    match code {
        b'y' | b'g' | b'v' => 1,
        b'n' | b'q' => 2,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 4,
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn u32(&mut self, n: u32) {
        self.number(&n.to_le_bytes());
    }

    fn string(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes.extend_from_slice(bytes);
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }
}

/// A message to be sent, right or wrong.
#[derive(Clone)]
pub struct Outgoing {
    pub kind: u8,
    pub flags: u8,
    /// 0 until it is sent by a [`Raw`](crate::Raw) client, who numbers those that have none.
    pub serial: u32,
    pub fields: Vec<(u8, Arg)>,
    pub body: Vec<u8>,
    /// What the header says of the body's length, if not the truth.
    pub length: Option<u32>,
}

/// Without its body, which may be large.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {} serial {} fields {:?}, {} bytes",
            self.kind,
            self.serial,
            self.fields,
            self.body.len()
        )
    }
}

impl Outgoing {
    pub fn call(destination: &str, path: &str, interface: &str, member: &str, args: &[Arg]) -> Outgoing {
        let fields = vec![
            (PATH, Arg::Path(path.into())),
            (INTERFACE, text(interface)),
            (MEMBER, text(member)),
            (DESTINATION, text(destination)),
        ];
        Outgoing { kind: CALL, flags: 0, serial: 0, fields, body: Vec::new(), length: None }.with_body(args)
    }

    pub fn signal(
        destination: Option<&str>,
        path: &str,
        interface: &str,
        member: &str,
        args: &[Arg],
    ) -> Outgoing {
        let mut message = Outgoing::call("", path, interface, member, args).without(DESTINATION);
        if let Some(destination) = destination {
            message.fields.push((DESTINATION, text(destination)));
        }
        Outgoing { kind: SIGNAL, flags: NO_REPLY, ..message }
    }

    pub fn reply(destination: &str, reply_serial: u32, args: &[Arg]) -> Outgoing {
        let fields = vec![(REPLY_SERIAL, Arg::U32(reply_serial)), (DESTINATION, text(destination))];
        let message =
            Outgoing { kind: RETURN, flags: NO_REPLY, serial: 0, fields, body: Vec::new(), length: None };
        message.with_body(args)
    }

    pub fn error(destination: &str, reply_serial: u32, name: &str, why: &str) -> Outgoing {
        let message = Outgoing::reply(destination, reply_serial, &[text(why)]);
        Outgoing { kind: ERROR, ..message }.with(ERROR_NAME, text(name))
    }

    pub fn with_body(mut self, args: &[Arg]) -> Outgoing {
        let mut writer = Writer::default();
        args.iter().for_each(|arg| arg.write(&mut writer));
        self.body = writer.bytes;
        let this = self.without(SIGNATURE);
        if args.is_empty() { this } else { this.with(SIGNATURE, Arg::Sig(signature_of(args))) }
    }

    pub fn with(mut self, field: u8, value: Arg) -> Outgoing {
        self.fields.push((field, value));
        self
    }

    pub fn without(mut self, field: u8) -> Outgoing {
        self.fields.retain(|(code, _)| *code != field);
        self
    }

    /// Nobody waits for an answer.
    pub fn no_reply(mut self) -> Outgoing {
        self.flags |= NO_REPLY;
        self
    }

    /// Says that descriptors come with it.
    pub fn with_fds(self, count: u32) -> Outgoing {
        self.with(UNIX_FDS, Arg::U32(count))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer { bytes: vec![b'l', self.kind, self.flags, 1] };
        writer.u32(self.length.unwrap_or(self.body.len() as u32));
        writer.u32(self.serial);
        let fields = self.fields.iter();
        let fields = fields.map(|(code, value)| Arg::Struct(vec![Arg::Byte(*code), variant(value.clone())]));
        Arg::Array("(yv)".into(), fields.collect()).write(&mut writer);
        writer.align(8);
        writer.bytes.extend_from_slice(&self.body);
        writer.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_specification_says() {
        let mut message = Outgoing::call("a.b", "/", "c.d", "E", &[Arg::U32(7)]);
        message.serial = 9;
        let bytes = message.encode();
        assert_eq!(bytes[..12], [b'l', 1, 0, 1, 4, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes[bytes.len() - 4..], [7, 0, 0, 0]);
        // The first field: code 1, a variant of type o, at an offset of 16.
        assert_eq!(bytes[16..22], [1, 1, b'o', 0, 1, 0]);
    }

    #[test]
    fn values_have_their_alignment() {
        let body = |arg: Arg| Outgoing::reply("x.y", 1, &[Arg::Byte(1), arg]).body;
        assert_eq!(body(Arg::U64(2)), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        // The length of an array does not count the padding before its first element.
        assert_eq!(body(dict(&[])), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(body(bytes(b"ab")), [1, 0, 0, 0, 2, 0, 0, 0, b'a', b'b']);
        assert_eq!(dict(&[("k", Arg::Bool(true))]).signature(), "a{sv}");
    }
}
