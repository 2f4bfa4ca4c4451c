//! Futexes, futex(2): words in shared memory on which processes sleep.
//!
//! A futex has no name and no kernel object of its own: it is a place in memory ([`WordPlace`]) that
//! somebody waits on. What can be done with the word is in [`FutexWord`]; who waits, and whose
//! lock it is, is found out in `futex_waiters.rs` and `futex_owner.rs`.

use std::os::fd::OwnedFd;

use crate::{
    Ability, Lack, Address, Descriptor, Dict, Endpoint, Opening, Parameter, Parameters, Result, Type, dict,
    futex_owner, futex_waiters,
    futex_word::FutexWord,
    guard::MAX_MAPPINGS,
    mechanism::{Adoption, Column},
    shape::{Futex, Shape},
    word::MAX_WORDS,
    word_place::{self, Room, WordPlace},
};

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "futex",
    schemes: &["futex"],
    summary: "Futexes: words in shared memory on which processes sleep (futex(2))",
    shapes: &[Shape::Futex],
    create_parameters: &[
        Parameter::new("value", Type::U32 { min: 0, max: u32::MAX }, "Initial value").default("0"),
    ],
    attach_parameters: &word_place::parameters(SHM),
    columns: &[
        Column { key: "address", kind: "s", summary: "Address for Attach; absent where the memory cannot be opened" },
        Column { key: "memory", kind: "s", summary: "The memory as /proc/PID/maps names it (ay where it is not UTF-8)" },
        Column { key: "inode", kind: "t", summary: "Inode of the memory; the id of a System V segment" },
        Column { key: "offset", kind: "t", summary: "Where the word is in that memory, in bytes" },
        Column { key: "waiting", kind: "u", summary: "Threads that sleep on it, this service's included" },
        Column { key: "waiters", kind: "aa{sv}", summary: "Those threads: pid, tid, command, operation, expected (value)" },
    ],
    open_parameters: &[],
    create,
    anonymous: |_| true,
    attach,
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list: || Ok(futex_waiters::list()?.into()),
    limits,
    available: || Ok(()),
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Relay,
            "a futex is a word to sleep on, and no data; its memory (`posixshm`, `mmap`, `sysvshm`) can be relayed",
        ),
        Lack::new(
            Ability::Permissions,
            "a futex has those of its memory: `SetPermissions` of the `posixshm`, `mmap` or `sysvshm` endpoint",
        ),
        Lack::new(
            Ability::Remove,
            "a futex is a word of its memory and goes with it: `Remove` of the `posixshm`, `mmap` or `sysvshm` endpoint",
        ),
    ],
    reference: REFERENCE,
};

/// The key for POSIX shared memory.
const SHM: &str = "name";

const ROOM: Room = Room { what: "futex", bytes: 4, alignment: 4 };

const REFERENCE: &str = "\
A futex is a word of 32 bits in shared memory, by which processes tell each other that something has
changed: whoever finds the word with a value that means \"not yet\" sleeps on it (`Wait`), and whoever
changes it wakes the sleepers (`Wake`). Mutexes, condition variables and queues in shared memory are
made of it. `Attach` takes the place of a word that programs use: `futex:name=/jobs,offset=64` is byte 64 of
what they call `shm_open(\"/jobs\")`. `Create` makes a new word, in a memfd that `Open` hands out for mmap(2).

The service is a process among the others. Its `Wake` wakes programs in futex(2), theirs wake its
`Wait`s, and the kernel counts both. Programs must use *shared* futexes (no FUTEX_PRIVATE_FLAG; in
pthreads, PTHREAD_PROCESS_SHARED). The word is in the byte order of the machine.

`Wait(expected)` looks at the value and begins to sleep in one step, in the kernel: if the value is another
one, it returns \"changed\" at once; else a `Wake` ends it with \"woken\". As with futex(2), a wait may be woken
for no reason that can be seen, and that is \"woken\", too: look at the value, and wait again if it still says
\"not yet\". Whoever changes the value *before* it wakes loses nothing: that is the rule of every futex.

A wake-up *without* a change of the value is seen only by a wait that is in the kernel's queue at that
moment. Up to 64 waits have a thread each, and none misses one. More share threads (futex_waitv(2)): of
words on one thread that are woken at the same moment, only one wait may be told; and while a thread takes in
another wait, its words are not waited for. The value tells those that miss a wake-up. `WaitBitset` with
other bits than 4294967295 always has a thread of its own, of which there are 256. A wake-up that came
to a wait that was given up (its time was up, its caller left) is passed on to another waiter.

An endpoint with `notify=true` waits all the time, and says `Woken` with the value each time that it is
woken or that the value has changed when it looks. It is a waiter like any other: it takes one of the
wake-ups, as the kernel has no spectators. Use it where wakers wake all, or the word is for it alone.

*Whose lock is it?* The words of robust and PI mutexes hold the thread id of their owner and two bits.
`Inspect()` takes the value for one of these, in `as-lock`: `owner` is `none`, `alive` (with `pid`, `tid`,
`command` and the time when the thread `started`), `dead` or `unknown` (with `why`); `owner-tid` as it is in the
word, `owner-died` (FUTEX_OWNER_DIED), `waiters-bit` (FUTEX_WAITERS). A thread counts as the owner if its process
maps the memory and it has that number in its own pid namespace; owners in a namespace outside of the
service's cannot be seen. `waiters` are the threads that sleep on the word, where the kernel tells
(`/proc/PID/syscall`, which takes the right to trace).

`Repair()` does what the kernel does at the end of a robust mutex's owner, where that did not happen (the
owner had no robust list): it sets FUTEX_OWNER_DIED, takes the thread id out and wakes one waiter, who gets
EOWNERDEAD from pthread_mutex_lock(3). It changes the word only if it still names the dead owner, so that
nothing is lost against others. It is for *robust* mutexes: others do not expect the mark.

A peer that truncates the file makes the futex `Gone` until the file has grown again. The kernel wakes
nobody for that: a `Wait` ends with its time.

`List()` shows the words that threads sleep on, of the processes that the caller may trace; a word that
nobody waits on is nothing to the kernel. On the system bus the calls that wait in this service are not among them.

| error | when |
| --- | --- |
| `InvalidArgument` | no place, or more than one; the offset is no multiple of 4 or not within the memory; not a regular file; a count or bitset of 0; `Repair` of a lock that nobody owns; `Wake` of a PI futex |
| `NotFound` | no such object, file or segment; no process that the caller may look into holds the memfd |
| `PermissionDenied` | the memory does not let the caller read and write; `Repair` where it is not known whether the owner lives |
| `Busy` | `Wait` that may not wait, while the value is the expected one; `Requeue` while it is not; `Repair` while the owner lives |
| `Timeout` | nobody woke the `Wait` in time |
| `Gone` | another process truncated the memory |
| `LimitExceeded` | too many mappings, waits (12,192 for words in all) or threads; the limit is named |
| `NotSupported` | `Open` of a System V segment; `Remove` and `SetPermissions`, which are the memory's |
| `Unavailable` | `List` where the kernel does not tell in which system call processes are |

Sources: futex(2), futex_waitv(2), set_robust_list(2), get_robust_list(2), pthread_mutexattr_setrobust(3),
proc_pid_syscall(5), shmat(2), linux/futex.h; Documentation/locking/robust-futex-ABI.rst of the kernel.

Not offered: private futexes, because they belong to the threads of one process; locking and unlocking of
robust and PI mutexes (FUTEX_LOCK_PI, FUTEX_CMP_REQUEUE_PI), because the owner is a thread, and the service's
threads are not the caller; FUTEX_WAKE_OP, because `FetchAdd` or `CompareExchange` on one endpoint and
`Wake` on another do it, one after the other; words of 8, 16 and 64 bits, because the kernel has none;
deadlines, because a call has a `timeout_ms`.";

fn create(parameters: &Parameters) -> Result<Opening> {
    // The table has a default.
    let value = parameters.u32("value").unwrap_or(0);
    Ok(FutexEndpoint(WordPlace::fresh(&value.to_ne_bytes(), ROOM)?).into())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    Ok(FutexEndpoint(WordPlace::open(parameters, SHM, ROOM)?).into())
}

fn limits() -> Dict {
    dict! { "FUTEX_WAITV_MAX" => MAX_WORDS as u64, "mappings" => MAX_MAPPINGS as u64 }
}

struct FutexEndpoint(WordPlace);

impl Endpoint for FutexEndpoint {
    fn address(&self) -> Address {
        self.0.address("futex", SHM)
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Futex]
    }

    fn inspect(&self) -> Result<Dict> {
        let value = self.word()?.load()?;
        let mut state = self.0.inspect()?;
        let (sleepers, _) = futex_waiters::sleepers(|mapped| self.0.is_in(mapped));
        let waiters = futex_waiters::rows(sleepers.iter().filter(|other| other.offset == self.0.offset()));
        state.extend(dict! {
            "value" => value,
            "as-lock" => futex_owner::inspect(value, &self.0),
            "waiters" => waiters,
        });
        Ok(state)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        self.0.hand_out()
    }

    fn futex(&self) -> Option<&dyn Futex> {
        Some(self)
    }
}

impl Futex for FutexEndpoint {
    fn word(&self) -> Result<FutexWord> {
        let (mapping, offset) = self.0.mapped()?;
        Ok(FutexWord { mapping, offset })
    }

    fn may_block(&self) -> bool {
        self.0.may_block()
    }

    fn repair(&self) -> Result<u32> {
        futex_owner::repair(&self.word()?, &self.0)
    }
}
