//! The system calls of semaphore sets: semget(2), semop(2), semctl(2).

use std::{mem, ptr};

use libc::{c_int, key_t, semid_ds, seminfo};
use rustix::io::Errno;

use super::{Family, Object, result, sysctl};
use crate::{Error, Kind, Result, error::name, shape::SemaphoreOperation};

/// The largest value (SEMVMX), a constant of the kernel.
pub const VALUE_MAX: i32 = 32767;

/// semop(2): fail instead of waiting.
pub const NOWAIT: u16 = libc::IPC_NOWAIT as u16;

/// semop(2): the kernel undoes it when the process ends.
pub const UNDO: u16 = libc::SEM_UNDO as u16;

/// Semaphore sets.
#[derive(Debug)]
pub enum Sets {}

impl Family for Sets {
    type State = semid_ds;
    const SCHEME: &str = "sysvsem";
    const OBJECT: &str = "semaphore set";
    const STAT_ANY: c_int = libc::SEM_STAT_ANY;
    const INFO: c_int = libc::SEM_INFO;

    fn control(id: c_int, command: c_int, state: &mut semid_ds) -> Result<c_int, Errno> {
        // SAFETY: the commands of a family read or write a semid_ds, or write a seminfo, which is smaller
        // and has no stricter alignment.
        result(unsafe { libc::semctl(id, 0, command, ptr::from_mut(state)) })
    }

    fn blank() -> semid_ds {
        // SAFETY: a structure of numbers, for which zeroes are values.
        unsafe { mem::zeroed() }
    }

    fn permissions(state: &semid_ds) -> &libc::ipc_perm {
        &state.sem_perm
    }

    fn permissions_mut(state: &mut semid_ds) -> &mut libc::ipc_perm {
        &mut state.sem_perm
    }

    fn constant(state: &semid_ds) -> (u64, u64) {
        (size_of_set(state).into(), 0)
    }

    fn get_error(errno: Errno, attempt: String) -> Error {
        let error = Error::from_errno(errno, &attempt);
        match errno {
            Errno::EXIST => error.help("Attach opens it; or let Create choose with key=random"),
            Errno::NOSPC => {
                let Limits { sets, semaphores, .. } = Limits::now();
                let Use { sets: sets_now, semaphores: semaphores_now } = Use::now();
                Error::new(
                    Kind::LimitExceeded,
                    format!(
                        "cannot {attempt}: there are {sets_now} sets of at most {sets} (SEMMNI) with \
                         {semaphores_now} semaphores of at most {semaphores} (SEMMNS) ({}); remove some, or raise \
                         the sysctl kernel.sem",
                        name(errno)
                    ),
                )
            }
            _ => error,
        }
    }
}

const _: () = assert!(size_of::<seminfo>() <= size_of::<semid_ds>());
const _: () = assert!(align_of::<seminfo>() <= align_of::<semid_ds>());

/// How many semaphores a set has; the kernel's limits keep it far below 32 bits.
#[allow(clippy::unnecessary_cast)] // The type of the field differs between machines.
pub fn size_of_set(state: &semid_ds) -> u32 {
    state.sem_nsems as u32
}

pub fn get(key: key_t, count: u32, flags: c_int) -> Result<c_int, Errno> {
    // Too many is EINVAL all the same.
    let count = c_int::try_from(count).unwrap_or(c_int::MAX);
    // SAFETY: a system call without pointers.
    result(unsafe { libc::semget(key, count, flags) })
}

/// semop(2) of these operations with these flags added to each.
pub fn operate(id: c_int, operations: &[SemaphoreOperation], flags: u16) -> Result<(), Errno> {
    let mut operations: Vec<libc::sembuf> = operations
        .iter()
        .map(|&(number, operation, given)| libc::sembuf {
            sem_num: number,
            sem_op: operation,
            sem_flg: (given | flags).cast_signed(),
        })
        .collect();
    // SAFETY: the kernel reads as many operations as there are.
    result(unsafe { libc::semop(id, operations.as_mut_ptr(), operations.len()) }).map(drop)
}

/// What semctl(2) says of one semaphore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Value,
    /// Threads that wait for it to become larger (GETNCNT).
    Waiters,
    /// Threads that wait for it to become zero (GETZCNT).
    ZeroWaiters,
    /// The process that last did something to it (GETPID).
    Pid,
}

pub fn ask(id: c_int, number: u16, asked: Asked) -> Result<i32, Errno> {
    let command = match asked {
        Asked::Value => libc::GETVAL,
        Asked::Waiters => libc::GETNCNT,
        Asked::ZeroWaiters => libc::GETZCNT,
        Asked::Pid => libc::GETPID,
    };
    // SAFETY: these commands have no fourth argument.
    result(unsafe { libc::semctl(id, number.into(), command) })
}

/// SETVAL.
pub fn set_value(id: c_int, number: u16, value: i32) -> Result<(), Errno> {
    // SAFETY: the fourth argument is a union that is passed like the int in it.
    result(unsafe { libc::semctl(id, number.into(), libc::SETVAL, value) }).map(drop)
}

impl Object<Sets> {
    /// GETALL. The size of a set does not change; what has its id now is the same set, or the look
    /// in front says that it is not.
    pub fn values(&self) -> Result<Vec<i32>> {
        let count = size_of_set(&self.state()?);
        all_values(self.id, count).map_err(|errno| self.error(errno, format!("read {}", self.name())))
    }

    /// SETALL.
    pub fn set_values(&self, values: &[i32]) -> Result<()> {
        let attempt = || format!("set the values of {}", self.name());
        let count = size_of_set(&self.state()?);
        if values.len() != count as usize {
            return Err(Error::invalid(format!(
                "cannot {}: it has {count} semaphores, and {} values were given",
                attempt(),
                values.len()
            )));
        }
        let mut numbers = Vec::with_capacity(values.len());
        for &value in values {
            match u16::try_from(value) {
                Ok(number) if value <= VALUE_MAX => numbers.push(number),
                _ => return Err(beyond(attempt())),
            }
        }
        // SAFETY: the kernel reads as many numbers as the set has semaphores, which was compared.
        let set = unsafe { libc::semctl(self.id, 0, libc::SETALL, numbers.as_mut_ptr()) };
        result(set).map(drop).map_err(|errno| self.operation_error(errno, attempt(), &[]))
    }

    /// The meaning of an errno of semop(2), SETVAL and SETALL.
    pub fn operation_error(&self, errno: Errno, attempt: String, operations: &[SemaphoreOperation]) -> Error {
        match errno {
            Errno::RANGE => beyond(attempt),
            Errno::TOOBIG => {
                let limit = Limits::now().operations;
                self.error(errno, format!("{attempt} with {} operations", operations.len()))
                    .help(format_args!("one call does at most {limit} (SEMOPM, sysctl kernel.sem)"))
            }
            Errno::FBIG => {
                let count = self.state().map(|state| size_of_set(&state)).unwrap_or(0);
                let most = operations.iter().map(|(number, ..)| number).max();
                Error::invalid(format!(
                    "cannot {attempt}: there is no semaphore {} in a set of {count}; they are numbered from 0 ({})",
                    most.copied().unwrap_or(0),
                    name(errno)
                ))
            }
            errno => self.error(errno, attempt),
        }
    }
}

fn beyond(attempt: String) -> Error {
    Error::new(
        Kind::LimitExceeded,
        format!("cannot {attempt}: a value must be from 0 to {VALUE_MAX} (SEMVMX, ERANGE)"),
    )
}

/// The values of a set of this size.
pub fn all_values(id: c_int, count: u32) -> Result<Vec<i32>, Errno> {
    // The kernel writes as many as the set with this id has. Its size never changes, but the id may
    // have been given to a larger one: there is room for more than kernel.sem usually allows.
    let mut values = vec![0u16; (count as usize).max(1 << 16)];
    // SAFETY: room for as many as the set has, as above.
    result(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values.iter().take(count as usize).map(|value| i32::from(*value)).collect())
}

/// The kernel's limits, sysctl kernel.sem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// SEMMSL: semaphores of a set.
    pub in_set: u64,
    /// SEMMNS: semaphores in all.
    pub semaphores: u64,
    /// SEMOPM: operations of a call.
    pub operations: u64,
    /// SEMMNI: sets.
    pub sets: u64,
}

impl Limits {
    pub fn now() -> Self {
        match sysctl("sem")[..] {
            [in_set, semaphores, operations, sets] => Self { in_set, semaphores, operations, sets },
            _ => Self::default(),
        }
    }
}

/// What of the limits is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    pub sets: u64,
    pub semaphores: u64,
}

impl Use {
    /// SEM_INFO.
    pub fn now() -> Self {
        // SAFETY: a structure of numbers, for which zeroes are values.
        let mut info: seminfo = unsafe { mem::zeroed() };
        // SAFETY: the command writes a seminfo.
        if result(unsafe { libc::semctl(0, 0, libc::SEM_INFO, &raw mut info) }).is_err() {
            return Self::default();
        }
        let number = |number: c_int| u64::try_from(number).unwrap_or(0);
        Self { sets: number(info.semusz), semaphores: number(info.semaem) }
    }
}
