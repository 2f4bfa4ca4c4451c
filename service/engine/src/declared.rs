//! What files declare: checked before anything is made, and a board that shows what became of it.
//!
//! Whoever reads the files (the daemon) asks here what Create, Attach and Relay would say of each key without
//! asking the kernel, makes the objects as any client does, and writes on the board; the bus layer shows it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipc_kernel::{Address, Descriptor, Dict, Error, Parameter, Parameters, Result, mechanisms::Register};

use crate::{Object, options, relay};

/// What an endpoint is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Create,
    Attach,
}

impl Verb {
    /// As files write it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Attach => "attach",
        }
    }

    fn table(self, mechanism: &Descriptor) -> &'static [Parameter] {
        match self {
            Self::Create => mechanism.create_parameters,
            Self::Attach => mechanism.attach_parameters,
        }
    }
}

/// Something that would be refused whatever the kernel says.
#[derive(Debug)]
pub struct Misfit {
    /// The key that it is about; None: the address, or the whole.
    pub key: Option<String>,
    pub error: Error,
}

impl Misfit {
    fn of(key: &str, error: Error) -> Self {
        Self { key: Some(key.to_owned()), error }
    }
}

/// The row of a key, as Create or Attach with this address would find it.
pub fn parameter(register: Register, verb: Verb, address: &Address, key: &str) -> Option<&'static Parameter> {
    let mechanism = register.by_scheme(&address.scheme).ok()?;
    options::OPTIONS.iter().chain(verb.table(mechanism)).find(|parameter| parameter.key == key)
}

/// What Create or Attach would refuse of this address, of `texts`, which are written as in an address, and of
/// `values`; each key by itself, so that all that is wrong is said at once.
pub fn misfits(
    register: Register,
    verb: Verb,
    address: &Address,
    texts: &[(String, String)],
    values: &Dict,
) -> Vec<Misfit> {
    let mechanism = match register.by_scheme(&address.scheme) {
        Ok(mechanism) => mechanism,
        Err(error) => return vec![Misfit { key: None, error }],
    };
    let table = verb.table(mechanism);
    let one = |key: &str, pair: Option<&str>, value: Option<(&String, &ipc_kernel::Value)>| {
        // A key that nobody has is looked for in the mechanism's table, whose text lists what there is.
        let row = parameter(register, verb, address, key).map_or(table, std::slice::from_ref);
        let mut alone = Address::new(address.scheme.clone());
        alone.pairs.extend(pair.map(|text| (key.to_owned(), Some(text.as_bytes().to_vec()))));
        let option = value.map(|(key, value)| (key.clone(), value.clone())).into_iter().collect();
        Parameters::check(row, &[], &alone, &option).err().map(|error| Misfit::of(key, error))
    };
    let twice = texts
        .iter()
        .map(|(key, _)| key)
        .chain(values.keys())
        .filter(|key| address.pairs.iter().any(|(known, _)| known == *key));
    let mut found: Vec<_> = twice
        .map(|key| {
            let error =
                Error::invalid(format!("the key {key:?} is given twice: it stands in the address, too"));
            Misfit::of(key, error)
        })
        .collect();
    found.extend(texts.iter().filter_map(|(key, text)| one(key, Some(text), None)));
    found.extend(values.iter().filter_map(|pair| one(pair.0, None, Some(pair))));
    if found.is_empty() {
        found.extend(
            whole(table, joined(address, texts), values).err().map(|error| Misfit { key: None, error }),
        );
    }
    found
}

/// What is missing, and what does not go together.
fn whole(table: &'static [Parameter], address: Address, values: &Dict) -> Result<()> {
    let (_, address, options) = options::Options::split(address, values.clone())?;
    Parameters::check(table, &[], &address, &options)?;
    Ok(())
}

/// The address with these pairs in it.
pub fn joined(address: &Address, texts: &[(String, String)]) -> Address {
    texts.iter().fold(address.clone(), |address, (key, text)| address.with(key, text))
}

/// What Relay would refuse of these options.
pub fn relay_misfits(values: &Dict) -> Vec<Misfit> {
    let mut found = Vec::new();
    for (key, value) in values {
        let row = relay::RELAY_OPTIONS.iter().find(|parameter| parameter.key == key);
        let row = row.map_or(relay::RELAY_OPTIONS, std::slice::from_ref);
        let option = Dict::from([(key.clone(), value.clone())]);
        let checked = Parameters::check(row, &[], &Address::new("a relay"), &option);
        found.extend(checked.err().map(|error| Misfit::of(key, error)));
    }
    if found.is_empty() {
        found.extend(relay::options::Options::parse(values).err().map(|error| Misfit { key: None, error }));
    }
    found
}

/// What became of something that a file declares.
#[derive(Debug, Clone)]
pub struct Declared {
    /// The name of the file.
    pub file: String,
    /// `endpoint.NAME`, `relay.NAME`, `relay.NAME.source`, `relay.NAME.sink`; empty: the file as a whole.
    pub name: String,
    /// A word; see the property Declared.
    pub state: &'static str,
    /// Why it is not there, in words.
    pub why: String,
    pub object: Option<Object>,
}

/// What there is of declarations, by file and name.
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<(String, String), Declared>>);

impl Board {
    fn rows_locked(&self) -> MutexGuard<'_, BTreeMap<(String, String), Declared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, row: Declared) {
        self.rows_locked().insert((row.file.clone(), row.name.clone()), row);
    }

    pub fn remove(&self, file: &str, name: &str) {
        self.rows_locked().remove(&(file.to_owned(), name.to_owned()));
    }

    pub fn rows(&self) -> Vec<Declared> {
        self.rows_locked().values().cloned().collect()
    }
}
