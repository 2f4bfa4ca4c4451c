//! The end of a process.

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; -1 where a signal ended it, or where the kernel does not say.
    pub code: i32,
    /// The signal that ended it; 0 where none did, or where the kernel does not say.
    pub signal: i32,
    /// Whether it left a core dump.
    pub core: bool,
}

impl Exit {
    /// It has ended, and the kernel tells nobody but its parent how.
    pub const UNKNOWN: Self = Self { code: -1, signal: 0, core: false };

    /// From a status as waitpid(2) gives it, of a process that has ended.
    pub fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self { code: status >> 8 & 0xff, signal: 0, core: false },
            signal => Self { code: -1, signal, core: status & 0x80 != 0 },
        }
    }
}
