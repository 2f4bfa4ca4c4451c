//! What `Inspect()` and `List()` say of every System V object.

use std::collections::HashMap;

use libc::c_int;

use super::{Family, PERMISSION_MASK, address_text};
use crate::{Dict, Value, mechanism::Column, parameters::joined, proc};

/// The columns of [`permissions`].
const COLUMNS: [Column; 9] = [
    Column { key: "address", kind: "s", summary: "Address for Attach" },
    Column { key: "id", kind: "i", summary: "Id, as ipcs(1) shows it" },
    Column { key: "key", kind: "u", summary: "Key; 0 (IPC_PRIVATE) where it has none" },
    Column { key: "owner", kind: "u", summary: "User id of the owner" },
    Column { key: "group", kind: "u", summary: "Group id of the owner" },
    Column { key: "creator-uid", kind: "u", summary: "User id of the creator" },
    Column { key: "creator-gid", kind: "u", summary: "Group id of the creator" },
    Column { key: "mode", kind: "u", summary: "Permission bits" },
    Column { key: "sequence", kind: "u", summary: "How often the kernel has given the id's slot anew" },
];

/// The columns of [`permissions`], and a mechanism's own.
pub const fn columns<const OWN: usize, const ALL: usize>(own: [Column; OWN]) -> [Column; ALL] {
    joined(COLUMNS, own)
}

/// A column and its value.
pub type Cell = (&'static str, Value);

/// What `ipc_perm` says, for `Inspect()` and short lists.
pub fn permissions<F: Family>(id: c_int, state: &F::State) -> Dict {
    permission_cells::<F>(id, state).into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The same, for lists of very many.
#[allow(clippy::unnecessary_cast)] // The types of the fields differ between machines.
pub fn permission_cells<F: Family>(id: c_int, state: &F::State) -> [Cell; 9] {
    let permissions = F::permissions(state);
    [
        ("address", Value::Text(address_text::<F>(permissions.__key, id))),
        ("id", Value::I32(id)),
        ("key", Value::U32(permissions.__key.cast_unsigned())),
        ("owner", Value::U32(permissions.uid)),
        ("group", Value::U32(permissions.gid)),
        ("creator-uid", Value::U32(permissions.cuid)),
        ("creator-gid", Value::U32(permissions.cgid)),
        ("mode", Value::U32(permissions.mode as u32 & PERMISSION_MASK)),
        ("sequence", Value::U32(permissions.__seq as u32)),
    ]
}

/// A `time_t` in microseconds since the epoch; 0 stays 0: never.
#[allow(clippy::useless_conversion)] // The type differs between machines.
pub fn micros(time: libc::time_t) -> u64 {
    u64::try_from(i64::from(time)).unwrap_or(0).saturating_mul(1_000_000)
}

/// The command names of processes, each read once.
#[derive(Debug, Default)]
pub struct Commands(HashMap<libc::pid_t, Option<String>>);

impl Commands {
    fn of(&mut self, pid: libc::pid_t) -> Option<&str> {
        self.0.entry(pid).or_insert_with(|| look(pid)).as_deref()
    }

    /// Whether the process lives, or another one that has got its number.
    pub fn lives(&mut self, pid: libc::pid_t) -> bool {
        self.of(pid).is_some()
    }

    /// Puts a process into a row under `key`, and its command name under `key`-command where there is one.
    pub fn put(&mut self, row: &mut Dict, key: &str, pid: libc::pid_t) {
        if let Some(name) = self.name(pid) {
            row.insert(format!("{key}-command"), name.into());
        }
        row.insert(key.to_owned(), Value::U32(pid.cast_unsigned()));
    }

    /// The command name; None for no process, and for one that has ended.
    pub fn name(&mut self, pid: libc::pid_t) -> Option<&str> {
        self.of(pid)
    }
}

/// None: there is no such process.
fn look(pid: libc::pid_t) -> Option<String> {
    let process = rustix::process::Pid::from_raw(pid)?;
    let command = proc::command(pid.cast_unsigned());
    // Where /proc hides the processes of others (hidepid), they are alive all the same.
    let lives =
        !command.is_empty() || rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH);
    lives.then_some(command)
}
