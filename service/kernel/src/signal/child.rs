//! The process of a mailbox: a fork of the service that does nothing but receive signals.
//!
//! The service has many threads, so the child may only do what is safe after such a fork: system
//! calls on its own stack, no allocation, no lock, nothing that panics. It gives up all that it
//! inherited: every descriptor but its end of a pipe, every signal handler, every mapping that is
//! shared with others, and the service's memory. A seccomp filter, no_new_privs and the lack of
//! a core dump it inherits; nothing is executed.
//!
//! Signals that were asked for are blocked and read from a signalfd(2), but only while there is
//! room in the pipe: until then they queue in the kernel, and who sends a real-time signal beyond
//! RLIMIT_SIGPENDING gets EAGAIN. Of the others SIGTERM ends it, and the rest is ignored. When
//! the other end of the pipe has gone, because the mailbox was closed or the service died, it
//! ends. (PR_SET_PDEATHSIG would be tied to the thread that forked, and has no say after a setuid.)

use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{c_int, c_long, c_uint};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{error::last_errno, signal::names::bit};

/// What the child writes for each signal: number, code, pid, uid, value, 0. The first record has
/// the number 0 and says that it is ready, or an errno as its code.
pub type Record = [i32; 6];

/// One record on the wire.
pub const RECORD: usize = size_of::<Record>();

/// The name of the process, as `ps` shows it.
pub const NAME: &core::ffi::CStr = c"ipcd-mailbox";

/// A new child.
pub struct Born {
    pub pid: i32,
    pub process: OwnedFd,
    /// Where records come from, non-blocking.
    pub records: OwnedFd,
}

/// All signals that may be asked for: SIGKILL and SIGSTOP cannot be caught.
pub const CATCHABLE: u64 = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));

/// The size of the kernel's sigset_t.
const MASK_SIZE: usize = size_of::<u64>();

/// Forks. `asked` is a mask as in proc_pid_status(5).
pub fn start(asked: u64) -> rustix::io::Result<Born> {
    let (records, own_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let mut process: c_int = -1;
    // Nothing is delivered in the child before it has its own dispositions.
    let mask = set_mask(u64::MAX);
    // SAFETY: without CLONE_VM the child has a copy of this memory, and goes on on its copy of this
    // stack; it calls only `live`, which never returns and does what a child of a threaded process
    // may. `process` is written by the kernel, in this process only.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD),
            0usize,
            &raw mut process,
            0usize,
            0usize,
        )
    };
    if pid == 0 {
        live(own_end.as_raw_fd(), asked & CATCHABLE);
    }
    let failed = last_errno();
    set_mask(mask);
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made this fd for us; nobody else owns it.
            Ok(Born { pid, process: unsafe { OwnedFd::from_raw_fd(process) }, records })
        }
        _ => Err(failed),
    }
}

/// Sets the mask of this thread, the C library's own signals included; returns the former one.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: both masks are as long as is said.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut before,
            MASK_SIZE,
        )
    };
    before
}

/// The descriptors of the child.
const PIPE: RawFd = 3;
const SIGNALS: RawFd = 4;

/// The child's whole life.
fn live(pipe: RawFd, asked: u64) -> ! {
    // SAFETY: system calls on descriptors of this process alone, whose table is a copy, and a
    // string that ends in NUL.
    unsafe {
        if pipe != PIPE && libc::syscall(libc::SYS_dup3, pipe, PIPE, 0) < 0 {
            leave();
        }
        check(libc::syscall(libc::SYS_close_range, PIPE + 1, c_uint::MAX, 0));
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, NAME.as_ptr());
    }
    forget_memory();
    for signal in 1..=64 {
        dispose(signal, asked);
    }
    set_mask(asked);
    // SAFETY: the mask is as long as is said.
    let signals = unsafe {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        libc::syscall(libc::SYS_signalfd4, -1, &raw const asked, MASK_SIZE, flags)
    };
    check(signals);
    if signals != c_long::from(SIGNALS) {
        leave();
    }
    tell(&[[0; 6]]);
    loop {
        // First for a signal, then for room: nothing is taken that could not be told.
        wait(SIGNALS, libc::POLLIN);
        wait(PIPE, libc::POLLOUT);
        pass_on();
    }
}

/// Tells the errno and ends, where a call has failed.
fn check(done: c_long) {
    if done < 0 {
        // SAFETY: the address of this thread's errno.
        tell(&[[0, unsafe { *libc::__errno_location() }, 0, 0, 0, 0]]);
        leave();
    }
}

fn leave() -> ! {
    loop {
        // SAFETY: ends this process.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    }
}

/// What is asked for keeps its default action, which a blocked signal does not take; of the rest,
/// all is ignored but SIGTERM. Handlers of the service's go, except for that of a sandbox that
/// names the call which it does not allow.
fn dispose(signal: c_int, asked: u64) {
    // The kernel's struct sigaction begins with the handler; flags and mask are 0. Both
    // architectures with and without a restorer are within four words.
    let mut action = [0usize; 4];
    let wanted = asked & bit(signal) != 0;
    if !wanted && signal != libc::SIGTERM {
        action[0] = libc::SIG_IGN;
    }
    // SAFETY: the structures are at least as long as the kernel's; SIG_DFL and SIG_IGN are no
    // functions. SIGKILL and SIGSTOP are refused, which changes nothing.
    unsafe {
        let mut before = [0usize; 4];
        let nothing: *const usize = ptr::null();
        libc::syscall(libc::SYS_rt_sigaction, signal, nothing, before.as_mut_ptr(), MASK_SIZE);
        let handled = before[0] != libc::SIG_DFL && before[0] != libc::SIG_IGN;
        if signal == libc::SIGSYS && handled && !wanted {
            return;
        }
        libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null_mut::<usize>(), MASK_SIZE);
    }
}

/// Waits for this, or ends because the service's end of the pipe has gone.
fn wait(fd: RawFd, events: i16) {
    let mut fds = [
        libc::pollfd { fd: PIPE, events: if fd == PIPE { events } else { 0 }, revents: 0 },
        libc::pollfd { fd: if fd == PIPE { -1 } else { fd }, events, revents: 0 },
    ];
    loop {
        // SAFETY: two entries; no time limit and no mask.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_ppoll,
                fds.as_mut_ptr(),
                2,
                ptr::null::<u8>(),
                ptr::null::<u8>(),
                MASK_SIZE,
            )
        };
        if fds[0].revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            leave();
        }
        if ready > 0 {
            return;
        }
    }
}

/// Takes what has come and tells it.
fn pass_on() {
    // As many as are told in one write, which a pipe with room for it takes whole (PIPE_BUF).
    const BATCH: usize = 64;
    let mut taken = [const { MaybeUninit::<libc::signalfd_siginfo>::zeroed() }; BATCH];
    // SAFETY: the buffer is as long as is said.
    let length = unsafe { libc::syscall(libc::SYS_read, SIGNALS, taken.as_mut_ptr(), size_of_val(&taken)) };
    let count = usize::try_from(length).unwrap_or(0) / size_of::<libc::signalfd_siginfo>();
    let mut records = [[0; 6]; BATCH];
    for (record, info) in records.iter_mut().zip(&taken) {
        // SAFETY: all zeroes, or what the kernel has written: plain numbers in any case.
        let info = unsafe { info.assume_init_ref() };
        *record = [
            info.ssi_signo.cast_signed(),
            info.ssi_code,
            info.ssi_pid.cast_signed(),
            info.ssi_uid.cast_signed(),
            info.ssi_int,
            0,
        ];
    }
    if let Some(records) = records.get(..count) {
        tell(records);
    }
}

/// Writes records; at most 64, for which there is room.
fn tell(records: &[Record]) {
    let length = size_of_val(records);
    if length == 0 {
        return;
    }
    // SAFETY: the records are as long as is said.
    let written = unsafe { libc::syscall(libc::SYS_write, PIPE, records.as_ptr(), length) };
    if usize::try_from(written) != Ok(length) {
        leave();
    }
}

/// Unmaps what is shared with others, or would be kept alive for nothing: the service's heap
/// and the stacks of its threads. What cannot be read stays mapped, which is harmless.
fn forget_memory() {
    let here = 0u8;
    // SAFETY: the address of this thread's errno, in its thread-local storage.
    let local = unsafe { libc::__errno_location() } as usize;
    let kept = [&raw const here as usize, local];
    // SAFETY: the path ends in NUL.
    let maps = unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/maps".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if maps < 0 {
        return;
    }
    let mut line = Line::default();
    let mut buffer = [0u8; 4096];
    loop {
        // SAFETY: the buffer is as long as is said.
        let length = unsafe { libc::syscall(libc::SYS_read, maps, buffer.as_mut_ptr(), buffer.len()) };
        let Ok(length @ 1..) = usize::try_from(length) else { break };
        for byte in buffer.iter().take(length) {
            if *byte != b'\n' {
                line.take(*byte);
                continue;
            }
            if line.is_to_go(kept) {
                // SAFETY: nothing of the child is there: neither its stack, nor its thread-local
                // storage, nor code, nor static data, which is mapped from files.
                unsafe { libc::syscall(libc::SYS_munmap, line.start, line.end.wrapping_sub(line.start)) };
            }
            line = Line::default();
        }
    }
    // SAFETY: opened above.
    unsafe { libc::syscall(libc::SYS_close, maps) };
}

/// A line of proc_pid_maps(5), read byte by byte: `start-end perms offset device inode path`.
#[derive(Default)]
struct Line {
    field: u8,
    start: usize,
    end: usize,
    writable: bool,
    shared: bool,
    /// Mapped from a file.
    file: bool,
    /// The second byte of the path: that of `[heap]`.
    path: u8,
    length: u16,
}

impl Line {
    fn take(&mut self, byte: u8) {
        let digit = |sum: usize| (sum << 4) | (byte as char).to_digit(16).unwrap_or(0) as usize;
        match (self.field, byte) {
            (0, b'-') => self.field = 1,
            (0, _) => self.start = digit(self.start),
            // Many spaces may come before the path.
            (1..=5, b' ') => self.field += 1,
            (1, _) => self.end = digit(self.end),
            (2, b'w') => self.writable = true,
            (2, b's') => self.shared = true,
            (5, b'1'..=b'9') => self.file = true,
            (6, b' ') if self.length == 0 => {}
            (6, _) => {
                self.length = self.length.saturating_add(1);
                if self.length == 2 {
                    self.path = byte;
                }
            }
            _ => {}
        }
    }

    fn is_to_go(&self, kept: [usize; 2]) -> bool {
        let holds = |address: usize| (self.start..self.end).contains(&address);
        let [stack, local] = kept;
        // Not the main stack, nor the kernel's own pages.
        let nameless = self.length == 0 || matches!(self.path, b'h' | b'a');
        let private = self.writable && !self.file && nameless;
        (self.shared || private) && !holds(stack) && !holds(local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes(text: &str) -> bool {
        let mut line = Line::default();
        text.bytes().for_each(|byte| line.take(byte));
        line.is_to_go([0x7ffd_0000_1000, 0x7f00_0000_0800])
    }

    #[test]
    fn only_what_is_shared_or_memory_of_the_service_goes() {
        for text in [
            "55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]",
            "7f1000000000-7f1000021000 rw-p 00000000 00:00 0 ",
            "7f1000000000-7f1000021000 rw-p 00000000 00:00 0                          [anon:malloc]",
            "7f2000000000-7f2000001000 rw-s 00000000 00:01 1028                       /memfd:frames (deleted)",
            "7f2000000000-7f2000001000 r--s 00000000 00:01 10                         /SYSV00001234 (deleted)",
            "7f2000000000-7f2000001000 rw-s 00000000 00:01 0                          /dev/zero (deleted)",
        ] {
            assert!(goes(text), "{text}");
        }
        for text in [
            "55d0bf000000-55d0bf100000 r-xp 00000000 fe:00 4711                       /usr/bin/ipcd",
            "55d0bf200000-55d0bf210000 rw-p 00200000 fe:00 4711                       /usr/bin/ipcd",
            "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]",
            "7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]",
            "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ",
            "7f1000000000-7f1000021000 ---p 00000000 00:00 0 ",
            "7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0                          [vdso]",
        ] {
            assert!(!goes(text), "{text}");
        }
    }
}
