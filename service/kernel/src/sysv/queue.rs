//! The system calls of message queues: msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

use std::io;

use libc::{c_int, c_long, key_t, msqid_ds};
use rustix::io::Errno;

use super::{Family, result};
use crate::{Error, Kind, Result, error};

/// The family of message queues.
#[derive(Debug)]
pub struct Queue;

/// linux/msg.h; the crate libc does not have them for every C library.
const MSG_STAT_ANY: c_int = 13;
pub const MSG_COPY: c_int = 0o40000;

impl Family for Queue {
    type State = msqid_ds;
    const SCHEME: &str = "sysvmq";
    const OBJECT: &str = "message queue";
    const STAT_ANY: c_int = MSG_STAT_ANY;
    const INFO: c_int = libc::MSG_INFO;

    fn control(id: c_int, command: c_int, state: &mut msqid_ds) -> Result<c_int, Errno> {
        // SAFETY: the pointer is to a whole msqid_ds, which is larger than what the commands that
        // this is called with read or write there (a msginfo for MSG_INFO).
        result(unsafe { libc::msgctl(id, command, state) })
    }

    fn blank() -> msqid_ds {
        // SAFETY: integers only; all zero is a value.
        unsafe { std::mem::zeroed() }
    }

    fn permissions(state: &msqid_ds) -> &libc::ipc_perm {
        &state.msg_perm
    }

    fn permissions_mut(state: &mut msqid_ds) -> &mut libc::ipc_perm {
        &mut state.msg_perm
    }

    fn get_error(errno: Errno, attempt: String) -> Error {
        match errno {
            Errno::NOSPC => Error::new(
                Kind::LimitExceeded,
                format!(
                    "cannot {attempt}: {}: there are as many queues as there may be (kernel.msgmni, now {}); remove \
                     some (ipcs -q, ipcrm -q) or raise it",
                    error::describe(errno),
                    info(libc::IPC_INFO).map_or(0, |info| info.msgmni)
                ),
            ),
            Errno::EXIST => super::exists(attempt),
            errno => Error::from_errno(errno, attempt),
        }
    }

    #[allow(clippy::useless_conversion)] // The type of the field differs between machines.
    fn set_qbytes(state: &mut msqid_ds, qbytes: u64) -> Result<()> {
        state.msg_qbytes = qbytes
            .try_into()
            .map_err(|_| Error::invalid(format!("qbytes is {qbytes}, more than this machine can count")))?;
        Ok(())
    }
}

pub fn get(key: key_t, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: a system call without pointers.
    result(unsafe { libc::msgget(key, flags) })
}

/// IPC_INFO: the limits; MSG_INFO: with the current use in their places (msgctl(2)).
pub fn info(command: c_int) -> Result<libc::msginfo, Errno> {
    // SAFETY: integers only; all zero is a value.
    let mut info: libc::msginfo = unsafe { std::mem::zeroed() };
    // SAFETY: with both commands the kernel writes a msginfo, whatever the type of the pointer.
    result(unsafe { libc::msgctl(0, command, (&raw mut info).cast()) })?;
    Ok(info)
}

/// The type stands before the bytes (struct msgbuf).
const HEADER: usize = size_of::<c_long>();

/// A message as msgsnd(2) takes it.
pub fn message(kind: c_long, data: &[u8]) -> Vec<u8> {
    [&kind.to_ne_bytes(), data].concat()
}

/// Sends what [`message`] made. With IPC_NOWAIT in the flags it does not block.
pub fn send(id: c_int, message: &[u8], flags: c_int) -> Result<(), Errno> {
    debug_assert!(message.len() >= HEADER, "made by message()");
    // SAFETY: the pointer is to a type and as many bytes as the size says; no alignment is asked for.
    result(unsafe { libc::msgsnd(id, message.as_ptr().cast(), message.len() - HEADER, flags) }).map(drop)
}

/// Takes a message of at most `max` bytes, or copies one with MSG_COPY; its type and bytes.
pub fn receive(id: c_int, max: usize, kind: c_long, flags: c_int) -> Result<(c_long, Vec<u8>), Errno> {
    let mut buffer = vec![0; HEADER + max];
    // SAFETY: the buffer has room for a type and for as many bytes as the size says; no alignment is
    // asked for.
    let length = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), max, kind, flags) };
    let Ok(length) = usize::try_from(length) else {
        return Err(error::errno_of(&io::Error::last_os_error()));
    };
    let data = buffer[HEADER..HEADER + length].to_vec();
    let mut kind = [0; HEADER];
    kind.copy_from_slice(&buffer[..HEADER]);
    Ok((c_long::from_ne_bytes(kind), data))
}
