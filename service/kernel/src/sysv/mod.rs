//! What message queues, shared memory segments and semaphore sets of System V have in common,
//! sysvipc(7): keys and ids, owners and modes, removal, and the table of all of them.
//!
//! The three families are one design with three sets of system calls. A mechanism says what is its
//! own ([`Family`]) and keeps an [`Object`]: an id, and what tells that object from another one
//! that has got the same id later.
//!
//! State is read with `MSG_STAT_ANY` and its siblings (Linux 4.17), by the index in the kernel's
//! table that is part of each id: like /proc/sysvipc, they need no read permission.

mod key;
pub mod message_queue;
pub mod queue;
mod row;
pub mod segment;
pub mod selector;
pub mod set;
pub mod set_waits;
pub mod undo;

use std::{io, marker::PhantomData};

use libc::{c_int, key_t};
use rustix::io::Errno;

pub use key::{ID, KEY, Key, NEW_KEY, PATH, PERMISSION_MASK, PROJECT};
pub use row::{Cell, Commands, columns, micros, permission_cells, permissions};

use crate::{Address, Error, Kind, Parameters, Result, error::describe, mechanism::Permissions};

/// What one of the three is in particular.
pub trait Family: Send + Sync + 'static {
    /// `msqid_ds`, `shmid_ds` or `semid_ds`.
    type State: Copy;
    /// The scheme of its addresses.
    const SCHEME: &str;
    /// "message queue"
    const OBJECT: &str;
    /// The command that reads an entry of the table without permission to read the object.
    const STAT_ANY: c_int;
    /// The command that says how long the table is.
    const INFO: c_int;

    /// msgctl(2), shmctl(2) or semctl(2) with one of the commands above, IPC_SET or IPC_RMID.
    fn control(id: c_int, command: c_int, state: &mut Self::State) -> Result<c_int, Errno>;

    /// All zero.
    fn blank() -> Self::State;

    fn permissions(state: &Self::State) -> &libc::ipc_perm;

    fn permissions_mut(state: &mut Self::State) -> &mut libc::ipc_perm;

    /// What else never changes in an object's life: size and creator of a segment, size of a set.
    fn constant(_state: &Self::State) -> (u64, u64) {
        (0, 0)
    }

    /// The meaning of an errno of msgget(2), shmget(2) or semget(2).
    fn get_error(errno: Errno, attempt: String) -> Error {
        match errno {
            Errno::EXIST => exists(attempt),
            _ => Error::from_errno(errno, attempt),
        }
    }

    /// Only queues have it.
    fn set_qbytes(_state: &mut Self::State, _qbytes: u64) -> Result<()> {
        Err(Error::invalid("only System V message queues have qbytes"))
    }
}

/// Create found the key taken.
fn exists(attempt: String) -> Error {
    Error::from_errno(Errno::EXIST, attempt).help("Attach opens it; or let Create choose with key=random")
}

/// The result of a call of the C library that returns -1 and sets errno.
pub fn result(returned: c_int) -> Result<c_int, Errno> {
    match returned {
        -1 => Err(crate::error::errno_of(&io::Error::last_os_error())),
        value => Ok(value),
    }
}

/// An object that is known by its id.
#[derive(Debug)]
pub struct Object<F: Family> {
    pub id: c_int,
    identity: Identity,
    family: PhantomData<F>,
}

/// What stays the same for an object's whole life; the time of the last change does not, as others
/// may change permissions. The key of a segment changes when it is marked
/// for removal, so that is not compared where it has become IPC_PRIVATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    key: key_t,
    creator: (libc::uid_t, libc::gid_t),
    sequence: u64,
    constant: (u64, u64),
}

impl Identity {
    fn of<F: Family>(state: &F::State) -> Self {
        let permissions = F::permissions(state);
        Self {
            key: permissions.__key,
            creator: (permissions.cuid, permissions.cgid),
            sequence: permissions.__seq.into(),
            constant: F::constant(state),
        }
    }

    fn is_still(self, now: Self) -> bool {
        Self { key: self.key, ..now } == self && (now.key == self.key || now.key == libc::IPC_PRIVATE)
    }
}

impl<F: Family> Object<F> {
    /// Makes a new object. `get` is msgget(2) and its siblings, called with a key and flags.
    pub fn create(
        parameters: &Parameters,
        mut get: impl FnMut(key_t, c_int) -> Result<c_int, Errno>,
    ) -> Result<Self> {
        let mode = key::mode(parameters)?;
        let key = Key::of(parameters)?;
        let attempt = |key: key_t| format!("create a {} with {}", F::OBJECT, key::describe(key));
        // The mode is not masked by the umask (sysvipc(7)).
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode;
        let id = match key {
            Key::Private => get(libc::IPC_PRIVATE, flags).map_err(|errno| (errno, libc::IPC_PRIVATE)),
            Key::Number(key) => get(key, flags).map_err(|errno| (errno, key)),
            Key::Random => key::random(|key| get(key, flags)),
        };
        let id = id.map_err(|(errno, key)| F::get_error(errno, attempt(key)))?;
        Self::known(id)
    }

    /// Finds an object by its key or id.
    pub fn attach(
        parameters: &Parameters,
        get: impl FnOnce(key_t, c_int) -> Result<c_int, Errno>,
    ) -> Result<Self> {
        if let Some(id) = parameters.i32(ID.key) {
            key::alone(parameters)?;
            return Self::with_id(id);
        }
        let Key::Number(key) = Key::of(parameters)? else {
            return Err(Error::invalid(
                "Attach needs the key of an object that exists, or its id; private objects are found by id only",
            ));
        };
        let attempt = || format!("find the {} with {}", F::OBJECT, key::describe(key));
        Self::known(get(key, 0).map_err(|errno| F::get_error(errno, attempt()))?)
    }

    pub fn with_id(id: c_int) -> Result<Self> {
        Self::known(id).map_err(|error| match error.kind {
            Kind::Gone => {
                Error::new(Kind::NotFound, format!("there is no {} with id {id} (EINVAL)", F::OBJECT))
            }
            _ => error,
        })
    }

    fn known(id: c_int) -> Result<Self> {
        let state = state::<F>(id)?;
        Ok(Self { id, identity: Identity::of::<F>(&state), family: PhantomData })
    }

    /// By the key where it has one, else by the id.
    pub fn address(&self) -> Address {
        address::<F>(self.identity.key, self.id)
    }

    /// "message queue 42"
    pub fn name(&self) -> String {
        format!("{} {}", F::OBJECT, self.id)
    }

    /// What the kernel knows of it; `Gone` where it was removed, even if its id was given anew.
    pub fn state(&self) -> Result<F::State> {
        let state = state::<F>(self.id)?;
        if self.identity.is_still(Identity::of::<F>(&state)) {
            return Ok(state);
        }
        Err(Error::new(
            Kind::Gone,
            format!("{} was removed; its id has been given to another one", self.name()),
        ))
    }

    /// IPC_SET. Only the nine permission bits of a mode exist.
    pub fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        let Permissions { mode, uid, gid, qbytes } = permissions;
        if mode.is_some_and(|mode| mode & !PERMISSION_MASK != 0) {
            return Err(Error::invalid("the mode of a System V object has the bits 0777 only"));
        }
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Error::invalid("4294967295 is no user or group"));
        }
        let mut state = self.state()?;
        let new = F::permissions_mut(&mut state);
        new.uid = uid.unwrap_or(new.uid);
        new.gid = gid.unwrap_or(new.gid);
        if let Some(mode) = mode {
            // Nine bits fit, whatever width the field has on this machine.
            new.mode = (mode & PERMISSION_MASK) as _;
        }
        if let Some(qbytes) = qbytes {
            F::set_qbytes(&mut state, qbytes)?;
        }
        F::control(self.id, libc::IPC_SET, &mut state).map(drop).map_err(|errno| {
            let error = self.error(errno, format_args!("change the permissions of {}", self.name()));
            match (errno, qbytes) {
                (Errno::PERM, Some(_)) => error.help(
                    "only the owner, the creator and privileged processes may, and only privileged ones may raise \
                     qbytes over kernel.msgmnb",
                ),
                (Errno::PERM, None) => error.help("only the owner, the creator and privileged processes may"),
                _ => error,
            }
        })
    }

    /// IPC_RMID, if the id still means this object. (Between the look and the call there is a gap
    /// that no system call closes; an id is only given anew after 65,536 others of its slot.)
    pub fn remove(&self) -> Result<()> {
        self.state()?;
        F::control(self.id, libc::IPC_RMID, &mut F::blank()).map(drop).map_err(|errno| {
            let error = self.error(errno, format_args!("remove {}", self.name()));
            match errno {
                Errno::PERM => error.help("only the owner, the creator and privileged processes may"),
                _ => error,
            }
        })
    }

    /// The meaning of an errno of a call on the object. EINVAL is also what the kernel says of an id
    /// that nothing has any more.
    pub fn error(&self, errno: Errno, attempt: impl std::fmt::Display) -> Error {
        let gone = || {
            Error::new(
                Kind::Gone,
                format!("cannot {attempt}: it was removed ({})", crate::error::name(errno)),
            )
        };
        match errno {
            Errno::IDRM => gone(),
            Errno::INVAL if self.state().is_err_and(|error| error.kind == Kind::Gone) => gone(),
            Errno::ACCESS => Error::from_errno(errno, attempt).help("its mode does not let the caller"),
            errno => Error::from_errno(errno, attempt),
        }
    }
}

/// By the key where there is one, else by the id.
pub fn address<F: Family>(key: key_t, id: c_int) -> Address {
    match key {
        libc::IPC_PRIVATE => Address::new(F::SCHEME).with("id", id.to_string()),
        key => Address::new(F::SCHEME).with("key", key::text(key)),
    }
}

/// The same as text, for very many: nothing in it has to be escaped.
fn address_text<F: Family>(key: key_t, id: c_int) -> String {
    match key {
        libc::IPC_PRIVATE => format!("{}:id={id}", F::SCHEME),
        key => format!("{}:key={}", F::SCHEME, key::text(key)),
    }
}

/// How many entries the kernel's table can have: 15 bits of an id are the index, 24 with the kernel
/// parameter ipcmni_extend.
const INDEXES: [c_int; 2] = [1 << 15, 1 << 24];

/// The state of the object with this id.
fn state<F: Family>(id: c_int) -> Result<F::State> {
    let attempt = || format!("look at {} {id}", F::OBJECT);
    for indexes in INDEXES {
        let mut state = F::blank();
        match F::control(id & (indexes - 1), F::STAT_ANY, &mut state) {
            Ok(found) if found == id => return Ok(state),
            Ok(_) | Err(Errno::INVAL | Errno::IDRM) => {}
            Err(errno) => return Err(Error::from_errno(errno, attempt())),
        }
    }
    Err(Error::new(Kind::Gone, format!("cannot {}: there is none of that id, it was removed", attempt())))
}

/// Every object on the machine (in the IPC namespace) with its id, whoever may read it.
pub fn all<F: Family>() -> Result<Vec<(c_int, F::State)>> {
    let last = F::control(0, F::INFO, &mut F::blank())
        .map_err(|errno| Error::from_errno(errno, format!("list every {}", F::OBJECT)))?;
    let mut found = Vec::new();
    for index in 0..=last {
        let mut state = F::blank();
        // An entry may be empty, or become so.
        if let Ok(id) = F::control(index, F::STAT_ANY, &mut state) {
            found.push((id, state));
        }
    }
    Ok(found)
}

/// Err says why there is nothing of this family on this machine.
pub fn available<F: Family>() -> Result<()> {
    match F::control(0, F::INFO, &mut F::blank()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::new(
            Kind::Unavailable,
            format!(
                "the kernel has no System V {} ({}); it needs to be built with CONFIG_SYSVIPC",
                F::OBJECT,
                describe(errno)
            ),
        )),
    }
}

/// The numbers in a file of /proc/sys/kernel: `msgmax`, `shmmni`, `sem`, …
pub fn sysctl(name: &str) -> Vec<u64> {
    std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))
        .map(|text| text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect())
        .unwrap_or_default()
}
