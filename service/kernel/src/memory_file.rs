//! What the endpoints on a [`SharedFile`] have in common, whatever the file's kind: the keys that
//! select a range and an access, the fd that is handed out, and the fd that is adopted.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use crate::{
    Address, Error, Kind, Parameter, Parameters, Result, Type,
    error::Attempted,
    fd,
    memory_io::{SharedFile, Window},
};

const SIZE: Type = Type::Size { min: 0, max: i64::MAX as u64 };

pub const ACCESS_WORDS: Type = Type::Word(&["read-write", "read-only"]);

pub const OFFSET: Parameter =
    Parameter::new("offset", SIZE, "First byte of the memory that is shown").default("0");

pub const LENGTH: Parameter = Parameter::new(
    "length",
    SIZE,
    "How many bytes are shown; 0: up to the end of the memory, wherever that is",
)
.default("0");

pub const ACCESS: Parameter =
    Parameter::new("access", ACCESS_WORDS, "What the memory is opened for").default("read-write");

pub const OPEN_ACCESS: Parameter =
    Parameter::new("access", ACCESS_WORDS, "What the fd is opened for; read-write where the endpoint is");

pub fn window(parameters: &Parameters) -> Window {
    Window {
        offset: parameters.size("offset").unwrap_or(0),
        length: parameters.size("length").filter(|length| *length > 0),
    }
}

pub fn read_only(parameters: &Parameters) -> bool {
    parameters.text("access") == Some("read-only")
}

/// The flags of open(2) that the key `access` asks for.
pub fn flags(parameters: &Parameters) -> OFlags {
    if read_only(parameters) { OFlags::RDONLY } else { OFlags::RDWR }
}

/// What helps where the memory may not be opened for writing.
pub fn may_help(error: Error, parameters: &Parameters) -> Error {
    match error.kind {
        Kind::PermissionDenied if !read_only(parameters) => error.help("access=read-only may be allowed"),
        _ => error,
    }
}

/// The address of the file, and which part of it is shown for what.
pub fn address(mut file: Address, memory: &SharedFile) -> Address {
    let window = memory.window();
    if window.offset > 0 {
        file = file.with("offset", window.offset.to_string());
    }
    if let Some(length) = window.length {
        file = file.with("length", length.to_string());
    }
    if !memory.opened_for_writing() {
        file = file.with("access", "read-only");
    }
    file
}

/// An fd for the caller, with what `options` ask for.
pub fn open(memory: &SharedFile, options: &Parameters) -> Result<OwnedFd> {
    let read_only = match options.text("access") {
        Some(access) => access == "read-only",
        None => !memory.opened_for_writing(),
    };
    memory.open(read_only)
}

/// A description of the service's own for a regular file that was handed over.
pub fn own_description(adopted: OwnedFd) -> Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&adopted).attempted(|| "read the flags of a file descriptor")?;
    let (reads, writes) = fd::access(&adopted)?;
    if !reads {
        let how = if flags.contains(OFlags::PATH) { "with O_PATH" } else { "for writing only" };
        return Err(Error::invalid(format!(
            "cannot adopt this file descriptor: it was opened {how}, and memory must be readable"
        )));
    }
    let again = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    match fd::reopen(&adopted, again | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(own) => Ok(own),
        // The giver may open it and we may not: his description then, unless its flags would
        // change what pread(2) and pwrite(2) do.
        Err(_) if !flags.intersects(OFlags::APPEND | OFlags::DIRECT) => Ok(adopted),
        Err(errno) => Err(Error::from_errno(errno, "re-open the file without O_APPEND and O_DIRECT")),
    }
}
