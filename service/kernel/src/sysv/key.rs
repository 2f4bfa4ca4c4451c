//! Keys: what unrelated processes find a System V object by, sysvipc(7), ftok(3).

use libc::{c_int, key_t};
use rustix::io::Errno;

use crate::{Error, Parameter, Parameters, Result, Type, error::Attempted};

/// The bits of a mode that exist; the others of a get call's flags mean something else.
pub const PERMISSION_MASK: u32 = 0o777;

/// For Create: the key of the new object.
pub const NEW_KEY: Parameter = Parameter::new(
    "key",
    Type::Key { words: &["private", "random"] },
    "Key of the new object; private: it has none and is found by its id; random: one that nobody has",
);

/// For Attach.
pub const KEY: Parameter = Parameter::new("key", Type::Key { words: &[] }, "Key of the object");

/// For both.
pub const PATH: Parameter = Parameter::new(
    "path",
    Type::Path,
    "With project, instead of key: an existing file that the key is made of, as by ftok(3)",
);

/// For both.
pub const PROJECT: Parameter = Parameter::new(
    "project",
    Type::U32 { min: 1, max: 255 },
    "Project id for ftok(3); a C program's 'A' is 65. Different files may give the same key",
);

/// For Attach.
pub const ID: Parameter = Parameter::new(
    "id",
    Type::I32 { min: 0, max: i32::MAX },
    "Instead of a key: the id, as ipcs(1) shows it",
);

/// Where a new object is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Number(key_t),
    Private,
    Random,
}

impl Key {
    /// What the parameters say: `key`, or `path` and `project`.
    pub fn of(parameters: &Parameters) -> Result<Self> {
        let path = parameters.path(PATH.key)?;
        let key = match (parameters.text(KEY.key), parameters.u32(KEY.key), path, parameters.u32(PROJECT.key))
        {
            (Some("private"), None, None, None) => return Ok(Self::Private),
            (Some("random"), None, None, None) => return Ok(Self::Random),
            (None, Some(key), None, None) => key.cast_signed(),
            (None, None, Some(path), Some(project)) => {
                let stat =
                    rustix::fs::stat(&path).attempted(|| format!("make a key of {}", path.display()))?;
                ftok(stat.st_ino, stat.st_dev, project)
            }
            (None, None, None, None) => {
                return Err(Error::invalid("the key \"key\" is missing; or give path and project (ftok(3))"));
            }
            (None, None, Some(_), None) | (None, None, None, Some(_)) => {
                return Err(Error::invalid("path and project make a key together (ftok(3)); give both"));
            }
            _ => return Err(Error::invalid("give either key, or path and project (ftok(3))")),
        };
        match key {
            libc::IPC_PRIVATE => Err(Error::invalid(
                "the key 0 is IPC_PRIVATE: it makes an object without a key; write key=private if that is meant",
            )),
            key => Ok(Self::Number(key)),
        }
    }
}

/// As in glibc: the low bits of the inode and device numbers. Files that agree in them have the same
/// key, as do a file and its successor with the same inode number.
#[allow(clippy::unnecessary_cast)] // The types of the fields differ between machines.
fn ftok(inode: impl Into<u64>, device: impl Into<u64>, project: u32) -> key_t {
    let (inode, device) = (inode.into() as u32, device.into() as u32);
    ((inode & 0xffff) | ((device & 0xff) << 16) | ((project & 0xff) << 24)).cast_signed()
}

/// Nothing else may say which object is meant.
pub(super) fn alone(parameters: &Parameters) -> Result<()> {
    match [KEY.key, PATH.key, PROJECT.key].into_iter().find(|key| parameters.has(key)) {
        Some(key) => Err(Error::invalid(format!("give either id or {key}, not both"))),
        None => Ok(()),
    }
}

pub(super) fn mode(parameters: &Parameters) -> Result<c_int> {
    let mode = parameters.mode();
    if mode & !PERMISSION_MASK != 0 {
        return Err(Error::invalid(format!(
            "the mode {mode:04o} of a System V object may have the bits 0777 only"
        )));
    }
    Ok(mode.cast_signed())
}

/// How often a random key may be taken already. With a table full of 32,000 objects, one is once in
/// 130,000 times.
const RANDOM_ATTEMPTS: u32 = 16;

/// Creates with keys that nobody knows, until one is free.
pub(super) fn random<T>(mut create: impl FnMut(key_t) -> Result<T, Errno>) -> Result<T, (Errno, key_t)> {
    let mut last = (Errno::EXIST, libc::IPC_PRIVATE);
    for _ in 0..RANDOM_ATTEMPTS {
        let mut bytes = [0; size_of::<key_t>()];
        // So few bytes come whole (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| (errno, libc::IPC_PRIVATE))?;
        let key = key_t::from_ne_bytes(bytes);
        if key == libc::IPC_PRIVATE {
            continue;
        }
        match create(key) {
            Err(Errno::EXIST) => last = (Errno::EXIST, key),
            other => return other.map_err(|errno| (errno, key)),
        }
    }
    Err(last)
}

/// As in an address: `0x1234`.
pub(super) fn text(key: key_t) -> String {
    format!("0x{:x}", key.cast_unsigned())
}

pub(super) fn describe(key: key_t) -> String {
    match key {
        libc::IPC_PRIVATE => "a private key".to_owned(),
        key => format!("key {}", text(key)),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use proptest::prelude::*;

    use super::*;
    use crate::{Address, Dict, Kind};

    const KEYS: &[Parameter] = &[NEW_KEY, PATH, PROJECT];

    fn key(text: &str) -> Result<Key> {
        let address = Address::parse(&format!("sysvmq:{text}"))?;
        Key::of(&Parameters::check(KEYS, &[], &address, &Dict::new())?)
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        assert_eq!(key("key=0x1234"), Ok(Key::Number(0x1234)));
        assert_eq!(key("key=4660"), Ok(Key::Number(0x1234)));
        assert_eq!(key("key=0xffffffff"), Ok(Key::Number(-1)));
        assert_eq!(key("key=-1"), Ok(Key::Number(-1)));
        assert_eq!(key("key=private"), Ok(Key::Private));
        assert_eq!(key("key=random"), Ok(Key::Random));
        for wrong in [
            "",
            "key=0",
            "key=0x100000000",
            "key=-2147483649",
            "key=other",
            "path=/tmp",
            "project=1",
            "key=1,path=/tmp",
            "key=1,project=1",
            "path=/tmp,project=0",
            "path=/tmp,project=256",
            "path=tmp,project=1",
        ] {
            assert_eq!(key(wrong).expect_err(wrong).kind, Kind::InvalidArgument, "{wrong}");
        }
        assert_eq!(key("path=/no/such/file,project=1").expect_err("no file").kind, Kind::NotFound);
    }

    #[test]
    fn what_is_printed_reads_back() {
        for number in [1, 0x1234, -1, key_t::MIN, key_t::MAX] {
            assert_eq!(key(&format!("key={}", text(number))), Ok(Key::Number(number)));
        }
    }

    proptest! {
        #[test]
        fn path_and_project_make_the_key_of_the_c_library(project in 1u32..=255) {
            let directory = std::env::temp_dir();
            for path in ["/", "/proc", "/dev/null", directory.to_str().expect("UTF-8")] {
                let c = CString::new(path).expect("no NUL");
                // SAFETY: the path ends with a NUL byte and lives until the call is over.
                let expected = unsafe { libc::ftok(c.as_ptr(), project as c_int) };
                prop_assert_eq!(key(&format!("path={path},project={project}")), Ok(Key::Number(expected)));
            }
        }
    }

    #[test]
    fn a_random_key_is_tried_until_one_is_free() {
        let mut tried = Vec::new();
        let made = random(|key| {
            tried.push(key);
            if tried.len() < 3 { Err(Errno::EXIST) } else { Ok(key) }
        });
        assert_eq!(made.ok(), tried.last().copied());
        assert_eq!(random::<()>(|_| Err(Errno::EXIST)).map_err(|(errno, _)| errno), Err(Errno::EXIST));
        assert_eq!(random::<()>(|_| Err(Errno::NOSPC)).map_err(|(errno, _)| errno), Err(Errno::NOSPC));
    }
}
