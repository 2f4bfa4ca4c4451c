//! One file of declarations: what it says, checked as far as it can be without the kernel, or all that is wrong with
//! it, each with its line.
//!
//! A file counts as a whole: with one error in it, nothing of it is made. Keys are those of Create, Attach and Relay.
//! A value of TOML's own type is one in the options; a text is read as in an address, so that `"0660"`, `"64K"` and
//! `"a+b"` mean there what they mean here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    path::PathBuf,
};

use ipc_engine::declared::{self, Misfit, Verb};
use ipc_kernel::{Address, Dict, Type, Value, mechanisms::Register};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What a file declares, by name: `endpoint.jobs`, `relay.spool`, `relay.spool.source`.
pub type Declarations = BTreeMap<String, Declaration>;

#[derive(Debug, Clone, PartialEq)]
pub enum Declaration {
    Endpoint(Wanted),
    Relay(Box<WantedRelay>),
}

/// An endpoint, as Create or Attach makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub verb: Verb,
    pub address: String,
    options: Vec<(String, Given)>,
}

/// A relay, with all that its ends are made of: it is made anew when they change.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedRelay {
    /// The names of its ends, as [`Declarations`] has them: the source, the sink, and further sinks.
    pub names: Vec<String>,
    pub restart: Restart,
    options: Vec<(String, Given)>,
    ends: Vec<Wanted>,
}

/// When a relay that has ended is started again; Restart= of systemd.service(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    No,
    OnFailure,
    Always,
}

/// A value of an option.
#[derive(Debug, Clone, PartialEq)]
enum Given {
    Bool(bool),
    Integer(i64),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub path: PathBuf,
    pub line: usize,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.text)
    }
}

impl Wanted {
    /// What to call Create or Attach with.
    pub fn options(&self) -> Dict {
        values(&self.options)
    }
}

impl WantedRelay {
    /// What to call Relay with.
    pub fn options(&self) -> Dict {
        values(&self.options)
    }
}

fn values(options: &[(String, Given)]) -> Dict {
    options.iter().map(|(key, given)| (key.clone(), given.clone().into())).collect()
}

impl From<Given> for Value {
    fn from(given: Given) -> Self {
        match given {
            Given::Bool(value) => value.into(),
            Given::Integer(value) => Self::I64(value),
            Given::Text(value) => value.into(),
            Given::Texts(value) => value.into(),
            Given::Integers(value) => value.into(),
        }
    }
}

/// Reads the text of the file at `path`.
pub fn read(register: Register, path: PathBuf, text: &str) -> Result<Declarations, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader =
        Reader { register, path, text, problems: Vec::new(), found: BTreeMap::new(), named: BTreeSet::new() };
    for error in errors {
        reader.problem(error.span().unwrap_or_default(), error.message().to_owned());
    }
    // What follows from a slip of the pen would only hide it.
    if reader.problems.is_empty() {
        reader.file(table.get_ref());
    }
    reader.problems.sort_by_key(|problem| problem.line);
    if reader.problems.is_empty() { Ok(reader.found) } else { Err(reader.problems) }
}

struct Reader<'a> {
    register: Register,
    path: PathBuf,
    text: &'a str,
    problems: Vec<Problem>,
    found: Declarations,
    /// The endpoints that have a name, right or wrong.
    named: BTreeSet<String>,
}

type Pair<'t, 'i> = (&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>);

impl Reader<'_> {
    fn problem(&mut self, at: Range<usize>, text: impl Into<String>) {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.problems.push(Problem { path: self.path.clone(), line, text: text.into() });
    }

    fn file(&mut self, table: &DeTable<'_>) {
        let endpoints = table.get("endpoint").and_then(|endpoints| endpoints.get_ref().as_table());
        self.named =
            endpoints.into_iter().flat_map(DeTable::keys).map(|name| name.get_ref().to_string()).collect();
        let mut relays = Vec::new();
        for (kind, entries) in table {
            let word = kind.get_ref().as_ref();
            let (true, Some(entries)) = (["endpoint", "relay"].contains(&word), entries.get_ref().as_table())
            else {
                self.problem(
                    kind.span(),
                    format!("{word:?} means nothing here: write [endpoint.NAME] or [relay.NAME]"),
                );
                continue;
            };
            for (name, entry) in entries {
                let whole = format!("{word}.{}", name.get_ref());
                let valid = |name: &str| {
                    !name.is_empty()
                        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                };
                if !valid(name.get_ref()) {
                    self.problem(
                        name.span(),
                        format!("the name of {whole:?} must be letters, digits, '-' or '_'"),
                    );
                    continue;
                }
                let Some(entry) = entry.get_ref().as_table() else {
                    self.problem(
                        name.span(),
                        format!("{whole} must be a table: [{whole}], and its keys below"),
                    );
                    continue;
                };
                match word {
                    "relay" => relays.push((whole, name.span(), entry)),
                    _ => self.endpoint(whole, name.span(), entry),
                }
            }
        }
        for (name, at, entry) in relays {
            self.relay(&name, at, entry);
        }
    }

    /// `create` or `attach`, and options.
    fn endpoint(&mut self, name: String, at: Range<usize>, entry: &DeTable<'_>) {
        let wrong = self.problems.len();
        let is_verb = |(key, _): &Pair<'_, '_>| {
            [Verb::Create, Verb::Attach].iter().any(|verb| verb.key() == key.get_ref())
        };
        let (verbs, options): (Vec<_>, Vec<_>) = entry.iter().partition(is_verb);
        let [(key, address)] = verbs.as_slice() else {
            let text = format!("{name} needs one of the two: create = \"ADDRESS\" or attach = \"ADDRESS\"");
            return self.problem(at, text);
        };
        let verb = if key.get_ref() == "create" { Verb::Create } else { Verb::Attach };
        let Some(text) = address.get_ref().as_str() else {
            return self
                .problem(address.span(), format!("{} must be an address: a text in quotes", verb.key()));
        };
        let parsed = match Address::parse(text) {
            Ok(parsed) => parsed,
            Err(error) => return self.problem(address.span(), error.text),
        };
        let mut given = self.options(&options);
        for (key, value) in &options {
            let row = declared::parameter(self.register, verb, &parsed, key.get_ref());
            let decimal = value.get_ref().as_integer().filter(|number| number.radix() == 10);
            if let (Some(Type::Mode), Some(decimal)) = (row.map(|row| row.kind), decimal) {
                let digits = decimal.as_str();
                self.problem(
                    key.span(),
                    format!("permission bits are octal: write 0o{digits} or \"0{digits}\""),
                );
            }
        }
        // What is there already, from a run before, is what was asked for.
        let says = |key: &str| {
            given.iter().any(|(known, _)| known == key) || parsed.pairs.iter().any(|(known, _)| known == key)
        };
        if verb == Verb::Create && !says(OR_ATTACH) {
            given.push((OR_ATTACH.to_owned(), Given::Bool(true)));
        }
        let (texts, others): (Vec<_>, Vec<_>) =
            given.into_iter().partition(|(_, value)| matches!(value, Given::Text(_)));
        let texts: Vec<_> = texts
            .into_iter()
            .filter_map(|(key, value)| if let Given::Text(text) = value { Some((key, text)) } else { None })
            .collect();
        let misfits = declared::misfits(self.register, verb, &parsed, &texts, &values(&others));
        self.misfits(misfits, key.span(), entry);
        let joined = declared::joined(&parsed, &texts);
        if let Some((_, Some(lifetime))) = joined.pairs.iter().find(|(key, _)| key == LIFETIME)
            && lifetime != b"service"
        {
            self.lifetime(key.span(), entry);
        }
        if self.problems.len() == wrong {
            let wanted = Wanted { verb, address: joined.to_string(), options: others };
            self.found.insert(name, Declaration::Endpoint(wanted));
        }
    }

    /// `source`, `sink`, `tee`, `restart`, and options.
    fn relay(&mut self, name: &str, at: Range<usize>, entry: &DeTable<'_>) {
        let wrong = self.problems.len();
        let own =
            |(key, _): &Pair<'_, '_>| ["source", "sink", "tee", "restart"].contains(&key.get_ref().as_ref());
        let options: Vec<_> = entry.iter().filter(|pair| !own(pair)).collect();
        let options = self.options(&options);
        self.misfits(declared::relay_misfits(&values(&options)), at.clone(), entry);
        if options.iter().any(|(key, value)| key == LIFETIME && *value != Given::Text("service".into())) {
            self.lifetime(at.clone(), entry);
        }
        let restart = self.restart(entry);
        let mut found = Vec::new();
        for which in ["source", "sink"] {
            match entry.get(which) {
                Some(end) => found.push(self.end(name, which, which, end)),
                None => {
                    let text = format!(
                        "{name} has no {which}: {which} = \"NAME\" of an [endpoint.NAME], or an address"
                    );
                    self.problem(at.clone(), text);
                }
            }
        }
        if let Some(tee) = entry.get("tee") {
            found.extend(self.tee(name, tee));
        }
        let (names, ends) = found.into_iter().flatten().unzip();
        if self.problems.len() == wrong {
            let relay = WantedRelay { names, restart, options, ends };
            self.found.insert(name.to_owned(), Declaration::Relay(relay.into()));
        }
    }

    /// Further sinks.
    fn tee(&mut self, relay: &str, tee: &Spanned<DeValue<'_>>) -> Vec<Option<(String, Wanted)>> {
        match tee.get_ref().as_array() {
            Some(ends) if !ends.is_empty() => {
                let numbered = ends.iter().enumerate();
                numbered
                    .map(|(index, end)| {
                        self.end(relay, &format!("tee.{}", index + 1), "an element of tee", end)
                    })
                    .collect()
            }
            _ => {
                let text = "tee must be an array of further sinks: names of endpoints, addresses, or tables";
                self.problem(tee.span(), text);
                Vec::new()
            }
        }
    }

    /// An end of a relay: the name of an endpoint, an address to attach to, or a table as that of an endpoint.
    fn end(
        &mut self,
        relay: &str,
        which: &str,
        called: &str,
        end: &Spanned<DeValue<'_>>,
    ) -> Option<(String, Wanted)> {
        let own = format!("{relay}.{which}");
        let name = match end.get_ref() {
            DeValue::String(text) if text.contains(':') => {
                let verb = Spanned::new(end.span(), Verb::Attach.key().into());
                self.endpoint(own.clone(), end.span(), &DeTable::from_iter([(verb, end.clone())]));
                own
            }
            DeValue::String(text) if self.named.contains(text.as_ref()) => format!("endpoint.{text}"),
            DeValue::String(text) => {
                self.problem(
                    end.span(),
                    format!("there is no [endpoint.{text}] in this file; an address has a ':' in it"),
                );
                return None;
            }
            DeValue::Table(table) => {
                self.endpoint(own.clone(), end.span(), table);
                own
            }
            _ => {
                let text = format!(
                    "{called} must be the name of an endpoint, an address, or a table with create or attach"
                );
                self.problem(end.span(), text);
                return None;
            }
        };
        match self.found.get(&name) {
            Some(Declaration::Endpoint(wanted)) => Some((name, wanted.clone())),
            // It is there, and wrong, which has been said.
            _ => None,
        }
    }

    fn restart(&mut self, entry: &DeTable<'_>) -> Restart {
        let Some(restart) = entry.get("restart") else { return Restart::OnFailure };
        match restart.get_ref().as_str() {
            Some("no") => return Restart::No,
            Some("on-failure") => return Restart::OnFailure,
            Some("always") => return Restart::Always,
            _ => {}
        }
        self.problem(restart.span(), "restart must be \"no\", \"on-failure\" or \"always\"");
        Restart::OnFailure
    }

    fn options(&mut self, pairs: &[Pair<'_, '_>]) -> Vec<(String, Given)> {
        let mut given = Vec::new();
        for (key, value) in pairs {
            match option(value.get_ref()) {
                Some(value) => given.push((key.get_ref().to_string(), value)),
                None => {
                    let kind = value.get_ref().type_str();
                    let text = format!(
                        "the value of {:?} is of the kind {kind}, or too large; options are texts, whole numbers, true \
                         or false, or arrays of texts or of numbers",
                        key.get_ref()
                    );
                    self.problem(key.span(), text);
                }
            }
        }
        given
    }

    fn misfits(&mut self, misfits: Vec<Misfit>, whole: Range<usize>, entry: &DeTable<'_>) {
        for Misfit { key, error } in misfits {
            let at = key.and_then(|key| Some(entry.get_key_value(key.as_str())?.0.span()));
            self.problem(at.unwrap_or_else(|| whole.clone()), error.text);
        }
    }

    fn lifetime(&mut self, whole: Range<usize>, entry: &DeTable<'_>) {
        let at = entry.get_key_value(LIFETIME).map_or(whole, |(key, _)| key.span());
        self.problem(at, "what a file declares lives as long as the file says so: leave lifetime out");
    }
}

const OR_ATTACH: &str = "or-attach";
const LIFETIME: &str = "lifetime";

/// None: no option is like this.
fn option(value: &DeValue<'_>) -> Option<Given> {
    Some(match value {
        DeValue::Boolean(value) => Given::Bool(*value),
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(number) => {
            Given::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
        }
        DeValue::Array(array) => {
            let values = array.iter().map(|value| option(value.get_ref())).collect::<Option<Vec<_>>>()?;
            let numbers = values.iter().map(|value| match value {
                Given::Integer(number) => i32::try_from(*number).ok(),
                _ => None,
            });
            let texts = values.iter().map(|value| match value {
                Given::Text(text) => Some(text.clone()),
                _ => None,
            });
            match texts.collect() {
                Some(texts) => Given::Texts(texts),
                None => Given::Integers(numbers.collect::<Option<_>>()?),
            }
        }
        _ => return None,
    })
}
