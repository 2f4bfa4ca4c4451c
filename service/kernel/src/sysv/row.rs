//! What `Inspect()` and `List()` say of every System V object.

use std::collections::HashMap;

use libc::c_int;

use super::{Family, PERMISSION_MASK, address};
use crate::{Dict, Value, dict, mechanism::Column, proc};

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
    assert!(ALL == COLUMNS.len() + OWN);
    let mut all = [COLUMNS[0]; ALL];
    let mut index = 0;
    while index < ALL {
        all[index] = if index < COLUMNS.len() { COLUMNS[index] } else { own[index - COLUMNS.len()] };
        index += 1;
    }
    all
}

/// What `ipc_perm` says.
#[allow(clippy::unnecessary_cast)] // The types of the fields differ between machines.
pub fn permissions<F: Family>(id: c_int, state: &F::State) -> Dict {
    let permissions = F::permissions(state);
    dict! {
        "address" => address::<F>(permissions.__key, id).to_string(),
        "id" => id,
        "key" => permissions.__key.cast_unsigned(),
        "owner" => permissions.uid,
        "group" => permissions.gid,
        "creator-uid" => permissions.cuid,
        "creator-gid" => permissions.cgid,
        "mode" => permissions.mode as u32 & PERMISSION_MASK,
        "sequence" => permissions.__seq as u32,
    }
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

    /// The command name; empty where there is no such process.
    pub fn name(&mut self, pid: libc::pid_t) -> String {
        self.of(pid).unwrap_or_default().to_owned()
    }

    /// Whether the process lives, or another one that has got its number.
    pub fn lives(&mut self, pid: libc::pid_t) -> bool {
        self.of(pid).is_some()
    }

    /// Puts a process into a row under `key`, and its command name under `key`-command. No process:
    /// pid 0 and no name; one that has ended: no name.
    pub fn put(&mut self, row: &mut Dict, key: &str, pid: libc::pid_t) {
        let command = self.of(pid).unwrap_or_default();
        row.insert(format!("{key}-command"), command.into());
        row.insert(key.to_owned(), Value::U32(pid.cast_unsigned()));
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
