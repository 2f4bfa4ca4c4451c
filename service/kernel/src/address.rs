//! The address of a kernel object: one string that says what to create or attach.
//!
//! The syntax is that of D-Bus server addresses (D-Bus Specification, "Server Addresses"): a
//! scheme, a colon, then `key=value` pairs separated by commas. Bytes other than
//! `[-0-9A-Za-z_/.\*]` are written `%XX` in a value, so that every Linux path can be written;
//! unescaped bytes are accepted wherever they are not ambiguous (`:`, `+`, `@`, `~`, …). A key
//! without `=` is a flag: `unix:pair` says `pair=true`.

use std::fmt::{self, Write};

use crate::{Error, Kind, Result};

/// The longest address that is accepted: a path of PATH_MAX bytes, each escaped, and some keys.
pub const MAX_LENGTH: usize = 16 * 1024;

/// A parsed address: its scheme and its pairs in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: String,
    /// `None` is a flag.
    pub pairs: Vec<(String, Option<Vec<u8>>)>,
}

impl Address {
    pub fn new(scheme: impl Into<String>) -> Self {
        Self { scheme: scheme.into(), pairs: Vec::new() }
    }

    /// Appends `key=value`.
    pub fn with(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pairs.push((key.to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Appends a flag.
    pub fn flag(mut self, key: &str) -> Self {
        self.pairs.push((key.to_owned(), None));
        self
    }

    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_LENGTH {
            return Err(Error::new(
                Kind::InvalidAddress,
                format!("the address has {} bytes; at most {MAX_LENGTH} are accepted", text.len()),
            ));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            invalid(text, "it has no ':' after the scheme; write for example fifo:path=/tmp/f")
        })?;
        if scheme.is_empty() || !scheme.bytes().all(is_name_byte) {
            return Err(invalid(text, "the scheme before ':' must be letters, digits, '-' or '_'"));
        }
        let mut address = Self::new(scheme);
        if rest.is_empty() {
            return Ok(address);
        }
        for pair in rest.split(',') {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (pair, None),
            };
            if key.is_empty() {
                return Err(invalid(text, "a key is empty; write key=value pairs separated by ','"));
            }
            if !key.bytes().all(is_name_byte) {
                return Err(invalid(text, &format!("the key {key:?} must be letters, digits, '-' or '_'")));
            }
            if address.pairs.iter().any(|(known, _)| known == key) {
                return Err(Error::invalid(format!("the key {key:?} is given twice in {text:?}")));
            }
            let value = value.map(|value| unescape(text, value)).transpose()?;
            address.pairs.push((key.to_owned(), value));
        }
        Ok(address)
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The bytes that the specification lets stand for themselves.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/' | b'.' | b'\\' | b'*')
}

fn invalid(text: &str, why: &str) -> Error {
    Error::new(Kind::InvalidAddress, format!("the address {text:?} is not valid: {why}"))
}

/// The bytes that a value stands for, with `%62` for a `b`; `text` is the address that an error shows.
pub fn unescape(text: &str, value: &str) -> Result<Vec<u8>> {
    let mut bytes = value.bytes();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()];
        let [Some(high), Some(low)] = digits.map(|d| d.and_then(|d| (d as char).to_digit(16))) else {
            return Err(invalid(
                text,
                "'%' must be followed by two hexadecimal digits; write '%25' for the sign itself",
            ));
        };
        // Two hexadecimal digits are at most 255.
        out.push((high * 16 + low) as u8);
    }
    Ok(out)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        for (n, (key, value)) in self.pairs.iter().enumerate() {
            if n > 0 {
                f.write_char(',')?;
            }
            f.write_str(key)?;
            let Some(value) = value else { continue };
            f.write_char('=')?;
            for &byte in value {
                if is_plain(byte) {
                    f.write_char(byte as char)?;
                } else {
                    write!(f, "%{byte:02x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(text: &str) -> Kind {
        Address::parse(text).expect_err(text).kind
    }

    #[test]
    fn reads_what_the_reference_shows() {
        let address = Address::parse("unix:abstract=a%20b,type=seqpacket,pair").unwrap();
        assert_eq!(address.scheme, "unix");
        assert_eq!(
            address.pairs,
            [
                ("abstract".into(), Some(b"a b".to_vec())),
                ("type".into(), Some(b"seqpacket".to_vec())),
                ("pair".into(), None),
            ]
        );
        assert_eq!(Address::parse("futex:").unwrap().pairs, []);
    }

    #[test]
    fn refuses_with_a_name_and_a_reason() {
        for text in ["", "fifo", ":path=/x", "fi fo:path=/x", "fifo:,", "fifo:path=/x,", "fifo:=x"] {
            assert_eq!(kind(text), Kind::InvalidAddress, "{text:?}");
        }
        for text in ["fifo:path=%", "fifo:path=%4", "fifo:path=%zz", "fifo:path=/a%2"] {
            let error = Address::parse(text).expect_err(text);
            assert_eq!(error.kind, Kind::InvalidAddress);
            assert!(error.text.contains("hexadecimal"), "{error}");
        }
        assert_eq!(kind("fifo:path=/a,path=/b"), Kind::InvalidArgument);
        assert_eq!(kind(&format!("fifo:path={}", "x".repeat(MAX_LENGTH))), Kind::InvalidAddress);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            scheme in "[a-z][a-z0-9]{0,10}",
            pairs in proptest::collection::btree_map(
                "[a-z][a-z0-9-]{0,12}",
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)),
                0..6,
            ),
        ) {
            let address = Address { scheme, pairs: pairs.into_iter().collect() };
            prop_assert_eq!(Address::parse(&address.to_string()).unwrap(), address);
        }

        #[test]
        fn no_input_panics(text in "\\PC*") {
            let _ = Address::parse(&text);
        }

        #[test]
        fn what_is_accepted_prints_canonically(text in "[a-z]{1,4}:([a-z]{1,3}=[%0-9a-f/:@,=]{0,8}){0,2}") {
            if let Ok(address) = Address::parse(&text) {
                let printed = address.to_string();
                prop_assert_eq!(Address::parse(&printed).unwrap().to_string(), printed);
            }
        }
    }
}
