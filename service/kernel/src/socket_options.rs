//! Socket options that rustix has no call for, and the sizes of a socket's buffers: for every
//! family of sockets, socket(7).

use std::os::fd::{AsFd, AsRawFd};

use rustix::{io::Errno, net::sockopt};

use crate::{
    Error, Kind, Result,
    error::{Attempted, last_errno},
    proc,
};

/// Sets an option of SOL_SOCKET whose value is an int that says yes or no.
pub fn set_flag(fd: impl AsFd, option: libc::c_int, value: bool) -> rustix::io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, option, value.into())
}

/// Sets an option of any level whose value is an int.
pub fn set_int(
    fd: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> rustix::io::Result<()> {
    // SAFETY: the fd is open for the call, and the pointer and length describe a live c_int.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Reads an option of SOL_SOCKET, as [`get_of`].
pub fn get(fd: impl AsFd, option: libc::c_int, capacity: usize) -> rustix::io::Result<Vec<u8>> {
    get_of(fd, libc::SOL_SOCKET, option, capacity)
}

/// Reads an option of any level into a buffer that starts with `capacity` bytes and grows where
/// the kernel asks for more: by ERANGE, or by a length that is more than it wrote.
pub fn get_of(
    fd: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    capacity: usize,
) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0_u8; capacity];
    loop {
        // A capacity is at most what the kernel asked for, which is a socklen_t.
        let mut length = value.len() as libc::socklen_t;
        // SAFETY: the fd is open for the call; pointer and length describe the live buffer, and
        // the kernel writes no more than `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                level,
                option,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let length = length as usize;
        if result == 0 && length <= value.len() {
            value.truncate(length);
            return Ok(value);
        }
        match last_errno() {
            _ if result == 0 => value.resize(length, 0),
            Errno::RANGE if length > value.len() => value.resize(length, 0),
            errno => return Err(errno),
        }
    }
}

/// Reads an option of SOL_SOCKET that is an int.
pub fn get_int(fd: impl AsFd, option: libc::c_int) -> rustix::io::Result<i32> {
    let value = get(fd, option, size_of::<i32>())?;
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::INVAL)
}

/// Sets SO_SNDBUF and SO_RCVBUF. The kernel doubles the number for its own bookkeeping and cuts
/// what is above the sysctl without a word; here that is `LimitExceeded`.
pub fn set_buffers(fd: impl AsFd, send: Option<u64>, receive: Option<u64>) -> Result<()> {
    if let Some(size) = send {
        let attempt = || format!("set the send buffer to {size} bytes");
        sockopt::set_socket_send_buffer_size(&fd, to_usize(size)).attempted(attempt)?;
        let got = sockopt::socket_send_buffer_size(&fd).attempted(attempt)?;
        must_be_granted("send", size, got, "net.core.wmem_max", "net/core/wmem_max")?;
    }
    if let Some(size) = receive {
        let attempt = || format!("set the receive buffer to {size} bytes");
        sockopt::set_socket_recv_buffer_size(&fd, to_usize(size)).attempted(attempt)?;
        let got = sockopt::socket_recv_buffer_size(&fd).attempted(attempt)?;
        must_be_granted("receive", size, got, "net.core.rmem_max", "net/core/rmem_max")?;
    }
    Ok(())
}

fn must_be_granted(which: &str, asked: u64, doubled: usize, sysctl: &str, file: &str) -> Result<()> {
    let granted = doubled as u64 / 2;
    if granted >= asked {
        return Ok(());
    }
    Err(Error::new(
        Kind::LimitExceeded,
        format!(
            "cannot set the {which} buffer to {asked} bytes: the kernel allows {granted}; raise {sysctl}, now {}",
            proc::sysctl(file).unwrap_or(granted)
        ),
    ))
}

fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
