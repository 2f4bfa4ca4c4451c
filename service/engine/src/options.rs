//! The options that every Create, Attach and Adopt takes, whatever the mechanism. They may stand
//! in the address as well.

use ipc_kernel::{Address, Dict, Error, Kind, Parameter, Parameters, Result, Type};

/// The table, shown by `Describe()` behind the mechanism's own keys.
pub static OPTIONS: &[Parameter] = &[
    Parameter::new("or-attach", Type::Bool, "Create: if it exists, attach instead of failing with Exists").default("false"),
    Parameter::new("remove-on-close", Type::Bool, "Remove the kernel object's name with the endpoint"),
    Parameter::new("lifetime", Type::Text, "service: until Close or the service's stop; client: until the creating connection ends; pid:N: until that process ends")
        .default("service"),
    Parameter::new("deliver", Type::Bool, "Take bytes or messages as they come and send them as signals Received").default("false"),
    Parameter::new("notify", Type::Bool, "Messages: send a signal Ready when one waits; nothing is taken. Futexes: send a signal Woken for each wake-up, and take it").default("false"),
    Parameter::new("accept", Type::Bool, "Accept connections as they come and send signals Accepted").default("false"),
    Parameter::new("batch", Type::Bool, "Watch: send up to 64 changes in one signal ChangedMany, 20 ms late at most").default("false"),
];

/// How long an endpoint lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    Service,
    Client,
    Process(u32),
}

impl std::fmt::Display for Lifetime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service => f.write_str("service"),
            Self::Client => f.write_str("client"),
            Self::Process(pid) => write!(f, "pid:{pid}"),
        }
    }
}

/// The options, checked.
#[derive(Debug, Clone)]
pub struct Options {
    pub or_attach: bool,
    pub remove_on_close: Option<bool>,
    pub lifetime: Lifetime,
    pub deliver: bool,
    pub notify: bool,
    pub accept: bool,
    pub batch: bool,
}

impl Options {
    /// Takes the engine's own pairs and options out of an address and a dictionary.
    pub fn split(mut address: Address, mut options: Dict) -> Result<(Self, Address, Dict)> {
        let ours = |key: &str| OPTIONS.iter().any(|parameter| parameter.key == key);
        let mut own_address = Address::new(address.scheme.clone());
        own_address.pairs = address.pairs.extract_if(.., |(key, _)| ours(key)).collect();
        let own_options: Dict =
            OPTIONS.iter().filter_map(|parameter| options.remove_entry(parameter.key)).collect();
        let own = Parameters::check(OPTIONS, &[], &own_address, &own_options)?;
        let parsed = Self {
            or_attach: own.bool("or-attach"),
            remove_on_close: own.has("remove-on-close").then(|| own.bool("remove-on-close")),
            lifetime: lifetime(own.text("lifetime").unwrap_or("service"))?,
            deliver: own.bool("deliver"),
            notify: own.bool("notify"),
            accept: own.bool("accept"),
            batch: own.bool("batch"),
        };
        if parsed.deliver && parsed.notify {
            return Err(Error::invalid(
                "deliver and notify exclude each other: deliver takes what notify would only announce",
            ));
        }
        Ok((parsed, address, options))
    }
}

/// The number of the process that a lifetime `pid:N` names.
pub(crate) fn process(lifetime: &str) -> Option<u32> {
    let pid: u32 = lifetime.strip_prefix("pid:")?.parse().ok()?;
    (pid > 0 && i32::try_from(pid).is_ok()).then_some(pid)
}

fn lifetime(text: &str) -> Result<Lifetime> {
    match (text, process(text)) {
        ("service", _) => Ok(Lifetime::Service),
        ("client", _) => Ok(Lifetime::Client),
        (_, Some(pid)) => Ok(Lifetime::Process(pid)),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "the key \"lifetime\" must be service, client or pid:N with the number of a process, not {text:?}"
            ),
        )),
    }
}
