//! System V semaphore sets, semget(2), semop(2), semctl(2).
//!
//! A set is known by a key or an id. Every operation is the kernel's own, made in a process with the
//! caller's rights; what may wait is in [`sysv::set_waits`](crate::sysv::set_waits), leases are in
//! [`sysv::undo`](crate::sysv::undo).

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime},
};

use rustix::io::Errno;

use crate::{
    Ability, Lack, Address, Attempt, Descriptor, Dict, Endpoint, Error, Kind, Opening, Parameter, Parameters, Readiness, Result,
    Type, dict,
    leases::{self, Lent},
    mechanism::{Adoption, Column, Permissions},
    shape::{Held, Semaphore, SemaphoreOperation, Shape},
    sysv::{
        self, Commands, ID, KEY, NEW_KEY, Object, PATH, PROJECT,
        set::{self, Asked, Limits, NOWAIT, Sets, Use, VALUE_MAX},
        set_waits::Waits,
    },
};

use super::MODE;

pub static DESCRIPTOR: Descriptor = Descriptor {
    name: "sysvsem",
    schemes: &["sysvsem"],
    summary: "System V semaphore sets, shared with programs that call semget(2)",
    shapes: &[Shape::Semaphore],
    create_parameters: &[NEW_KEY, PATH, PROJECT, COUNT, VALUES, NUMBER, MODE],
    attach_parameters: &[KEY, PATH, PROJECT, ID, AT_LEAST, NUMBER],
    columns: &COLUMNS,
    open_parameters: &[],
    create,
    anonymous: |_| false,
    attach,
    adopt: |fd| Ok(Adoption::Refused(fd)),
    list: || Ok(list()?.into()),
    limits,
    available: sysv::available::<Sets>,
    driver: None,
    lacks: &[
        Lack::new(
            Ability::Event,
            "the kernel has no event for a semaphore that others could hear without taking from it; a call of `Wait` or `Operate` ends when it may go on",
        ),
        Lack::new(
            Ability::Fd,
            "a set is no file; the descriptor that `Acquire` returns is a lease",
        ),
        Lack::new(
            Ability::Relay,
            "a semaphore holds a number, and nothing that could be moved",
        ),
    ],
    reference: include_str!("sysvsem.md"),
};

const COUNT: Parameter = Parameter::new(
    "count",
    Type::U32 { min: 1, max: i32::MAX as u32 },
    "How many semaphores; as many as values where those are given, else 1",
);

const AT_LEAST: Parameter = Parameter::new(
    "count",
    Type::U32 { min: 0, max: i32::MAX as u32 },
    "Refuse a set of fewer semaphores (semget(2))",
)
.default("0");

const VALUES: Parameter =
    Parameter::new("values", Type::Numbers { min: 0, max: VALUE_MAX }, "Initial value of each; 0 where none are given");

const NUMBER: Parameter = Parameter::new(
    "number",
    Type::U32 { min: 0, max: 65535 },
    "The semaphore that Post, Wait, TryWait, Acquire, Value and SetValue mean",
)
.default("0");

static COLUMNS: [Column; 19] = sysv::columns([
    Column { key: "count", kind: "u", summary: "Number of semaphores" },
    Column { key: "values", kind: "ai", summary: "Values, where the caller may read them" },
    Column { key: "waiters", kind: "au", summary: "Of each: threads that wait for it to grow, where readable" },
    Column { key: "zero-waiters", kind: "au", summary: "Of each: threads that wait for it to be zero, where readable" },
    Column { key: "pids", kind: "au", summary: "Of each: the process that last did something to it, where readable" },
    Column { key: "commands", kind: "as", summary: "The command names of those processes; empty where one has ended" },
    Column { key: "operated", kind: "t", summary: "Time of the last semop(2), in microseconds since the epoch; 0: never" },
    Column { key: "changed", kind: "t", summary: "Time of creation, or of the last change of permissions or by SETVAL, SETALL" },
    Column { key: "initialised", kind: "b", summary: "Whether there has been a semop(2), by which its creator says that the values are set" },
    Column { key: "stale", kind: "b", summary: "A value is 0, and the process that last changed it has ended; where readable" },
]);

/// Of how many semaphores of a set more is shown than the value: a set may have 32,000.
const SHOWN: u32 = 256;

/// How long Attach waits for the creator of a new set to set its values.
const INITIALISATION: Duration = Duration::from_secs(1);

fn create(parameters: &Parameters) -> Result<Opening> {
    let values = parameters.numbers(VALUES.key);
    let given = values.map(|values| u32::try_from(values.len()).unwrap_or(u32::MAX));
    let count = parameters.u32(COUNT.key).or(given).unwrap_or(1);
    if given.is_some_and(|given| given != count) {
        return Err(Error::invalid(format!(
            "count is {count}, but {} values were given; give as many values as semaphores, or none",
            given.unwrap_or(0)
        )));
    }
    let number = number(parameters, count)?;
    // Its creator may always set the values; the mode that was asked for comes with the last step.
    let set = Object::<Sets>::create(parameters, |key, flags| set::get(key, count, flags | 0o600)).map_err(|error| {
        let limit = Limits::now().in_set;
        if error.kind == Kind::InvalidArgument && u64::from(count) > limit {
            let help = format!("a set has at most {limit} semaphores (SEMMSL, sysctl kernel.sem)");
            return Error::new(Kind::LimitExceeded, error.text).help(help);
        }
        error
    })?;
    match initialise(&set, values, parameters.mode()) {
        Ok(()) => Ok(SemaphoreSet { waits: Waits::new(set), number }.into()),
        Err(error) => {
            // What was made is not what was asked for; why is worth more than how removing it went.
            let _ = set.remove();
            Err(error)
        }
    }
}

/// Sets the values, and then does one semop(2), so that those who wait for that find them set (W.
/// R. Stevens, "UNIX Network Programming", volume 2, section 11.2).
fn initialise(set: &Object<Sets>, values: Option<&[i32]>, mode: u32) -> Result<()> {
    let first = match values {
        Some([first, rest @ ..]) => {
            if rest.iter().any(|value| *value != 0) {
                set.set_values(&[&[0], rest].concat())?;
            }
            *first
        }
        _ => 0,
    };
    // Within SEMVMX, as the table of parameters has it. 0 waits for zero, which it is.
    let operation = (0, i16::try_from(first).unwrap_or(i16::MAX), NOWAIT);
    match set::operate(set.id, &[operation], 0) {
        // Somebody did not wait: there has been a semop(2), and the value is his.
        Ok(()) | Err(Errno::AGAIN) => {}
        Err(errno) => {
            let attempt = format!("set the values of {}", set.name());
            return Err(set.operation_error(errno, attempt, &[operation]));
        }
    }
    if mode & 0o600 != 0o600 {
        set.set_permissions(Permissions { mode: Some(mode), ..Permissions::default() })?;
    }
    Ok(())
}

fn attach(parameters: &Parameters) -> Result<Opening> {
    let count = parameters.u32(AT_LEAST.key).unwrap_or(0);
    let set = Object::<Sets>::attach(parameters, |key, flags| set::get(key, count, flags)).map_err(|error| {
        match error.kind {
            Kind::InvalidArgument if count > 0 => error.help(format_args!("the set has fewer than {count} semaphores")),
            _ => error,
        }
    })?;
    let found = set::size_of_set(&set.state()?);
    if count > found {
        return Err(Error::invalid(format!("{} has {found} semaphores, fewer than {count} (EINVAL)", set.name())));
    }
    let number = number(parameters, found)?;
    if is_initialised(&set)? {
        return Ok(SemaphoreSet { waits: Waits::new(set), number }.into());
    }
    let deadline = Instant::now() + INITIALISATION;
    let mut waiting = Some(set);
    Ok(Opening::Pending(Box::new(move || {
        // It is asked until it is done.
        let Some(set) = waiting.take() else { return Err(Error::invalid("the set was attached already")) };
        if !is_initialised(&set)? && Instant::now() < deadline {
            waiting = Some(set);
            return Ok(Attempt::Wait(Readiness::After(Duration::from_millis(5))));
        }
        Ok(Attempt::Done(Box::new(SemaphoreSet { waits: Waits::new(set), number })))
    })))
}

/// Whether its creator has set the values, or is not expected to say so any more: many programs
/// never do. Times are in seconds, so that a set is new for one or two.
fn is_initialised(set: &Object<Sets>) -> Result<bool> {
    let state = set.state()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let changed = u64::try_from(state.sem_ctime).unwrap_or(0);
    Ok(state.sem_otime != 0 || now > changed.saturating_add(INITIALISATION.as_secs()))
}

fn number(parameters: &Parameters, count: u32) -> Result<u16> {
    let number = parameters.u32(NUMBER.key).unwrap_or(0);
    match u16::try_from(number) {
        Ok(fits) if number < count => Ok(fits),
        _ => Err(Error::invalid(format!(
            "the key \"number\" is {number}, but the set has {count} semaphores, numbered from 0"
        ))),
    }
}

fn list() -> Result<Vec<Dict>> {
    let mut commands = Commands::default();
    let all = sysv::all::<Sets>()?;
    Ok(all.into_iter().map(|(id, state)| row(id, &state, &mut commands)).collect())
}

/// What `List()` shows of a set, and `Inspect()` as well.
fn row(id: i32, state: &libc::semid_ds, commands: &mut Commands) -> Dict {
    let count = set::size_of_set(state);
    let mut row = sysv::permissions::<Sets>(id, state);
    row.extend(dict! {
        "count" => count,
        "operated" => sysv::micros(state.sem_otime),
        "changed" => sysv::micros(state.sem_ctime),
        "initialised" => state.sem_otime != 0,
    });
    let Ok(values) = set::all_values(id, count) else { return row };
    // Each of them may be gone by now, or no longer be readable; then nothing of the kind is said.
    let each = |asked| -> Result<Vec<u32>, Errno> {
        let shown = u16::try_from(count.min(SHOWN)).unwrap_or(0);
        (0..shown).map(|number| Ok(set::ask(id, number, asked)?.cast_unsigned())).collect()
    };
    for (key, asked) in [("waiters", Asked::Waiters), ("zero-waiters", Asked::ZeroWaiters)] {
        if let Ok(numbers) = each(asked) {
            row.insert(key.into(), numbers.into());
        }
    }
    if let Ok(pids) = each(Asked::Pid) {
        let mut ended = |pid: u32| pid != 0 && !commands.lives(pid.cast_signed());
        let taken_by_the_dead = values.iter().zip(&pids).any(|(value, pid)| *value == 0 && ended(*pid));
        row.insert("stale".into(), (taken_by_the_dead && leases::count(Lent::Set(id)) == 0).into());
        let names: Vec<String> = pids.iter().map(|pid| commands.name(pid.cast_signed()).unwrap_or_default().to_owned()).collect();
        row.insert("commands".into(), names.into());
        row.insert("pids".into(), pids.into());
    }
    row.insert("values".into(), values.into());
    row
}

fn limits() -> Dict {
    let Limits { in_set, semaphores, operations, sets } = Limits::now();
    let Use { sets: sets_now, semaphores: semaphores_now } = Use::now();
    dict! {
        "SEMMSL" => in_set,
        "SEMMNS" => semaphores,
        "SEMOPM" => operations,
        "SEMMNI" => sets,
        "SEMVMX" => VALUE_MAX as u64,
        "sets-in-use" => sets_now,
        "semaphores-in-use" => semaphores_now,
    }
}

struct SemaphoreSet {
    waits: Waits,
    number: u16,
}

impl SemaphoreSet {
    fn set(&self) -> &Object<Sets> {
        self.waits.set()
    }

    fn ask(&self, asked: Asked) -> Result<i32> {
        let set = self.set();
        set::ask(set.id, self.number, asked)
            .map_err(|errno| set.error(errno, format_args!("read semaphore {} of {}", self.number, set.name())))
    }
}

impl Endpoint for SemaphoreSet {
    fn address(&self) -> Address {
        let address = self.set().address();
        match self.number {
            0 => address,
            number => address.with(NUMBER.key, number.to_string()),
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        vec![Shape::Semaphore]
    }

    fn inspect(&self) -> Result<Dict> {
        let set = self.set();
        let state = set.state()?;
        let mut inspected = row(set.id, &state, &mut Commands::default());
        inspected.extend(dict! {
            "number" => u32::from(self.number),
            "leases" => leases::count(Lent::Set(set.id)),
        });
        Ok(inspected)
    }

    fn open(&self, _options: &Parameters) -> Result<OwnedFd> {
        Err(Error::not_supported(
            "a System V semaphore set is no file: there is no file descriptor of it. Whoever has the key or the id, \
             and permission, uses it by semop(2); the descriptor that Acquire returns is a lease",
        ))
    }

    fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        self.set().set_permissions(permissions)
    }

    fn remove(&self) -> Result<()> {
        self.set().remove()
    }

    fn semaphore(&self) -> Option<&dyn Semaphore> {
        Some(self)
    }
}

impl Semaphore for SemaphoreSet {
    fn number(&self) -> u16 {
        self.number
    }

    fn post(&self, count: u32) -> Result<()> {
        let set = self.set();
        let attempt = || format!("add {count} to semaphore {} of {}", self.number, set.name());
        let operation = match i16::try_from(count) {
            Ok(0) => return Err(Error::invalid("the count of a post must be at least 1")),
            Ok(count) => (self.number, count, NOWAIT),
            Err(_) => return Err(set.operation_error(Errno::RANGE, attempt(), &[])),
        };
        set::operate(set.id, &[operation], 0)
            .map_err(|errno| set.operation_error(errno, attempt(), &[operation]))
    }

    fn wait(&self) -> Result<Attempt<()>> {
        self.waits.operate(&[(self.number, -1, 0)])
    }

    fn value(&self) -> Result<i32> {
        self.ask(Asked::Value)
    }

    fn acquire(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<Held>> {
        self.waits.acquire(operations)
    }

    fn operate(&self, operations: &[SemaphoreOperation]) -> Result<Attempt<()>> {
        self.waits.operate(operations)
    }

    fn values(&self) -> Result<Vec<i32>> {
        self.set().values()
    }

    fn set_value(&self, value: i32) -> Result<()> {
        let set = self.set();
        set::set_value(set.id, self.number, value).map_err(|errno| {
            set.operation_error(errno, format!("set semaphore {} of {} to {value}", self.number, set.name()), &[])
        })
    }

    fn set_values(&self, values: &[i32]) -> Result<()> {
        self.set().set_values(values)
    }
}
