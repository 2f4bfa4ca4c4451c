//! Where the service is: which bus, and who owns its name there.

use std::{num::NonZeroUsize, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use zbus::{
    Address, Connection, MatchRule, MessageStream,
    connection::Builder,
    fdo::{DBusProxy, ObjectManagerProxy},
    message::Type,
};

pub use crate::arguments::Choice;
use crate::signals::Interfaces;

pub const NAME: &str = "org.example.IPC";

/// Signals that wait while the tray does something else; it does nothing that takes long.
const QUEUED: Option<NonZeroUsize> = NonZeroUsize::new(4096);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(25);

impl Choice {
    /// As the menu says it.
    pub fn name(&self) -> &str {
        match self {
            Self::System => "system bus",
            Self::Session => "session bus",
            Self::Address(address) => address,
        }
    }

    async fn connect(&self) -> Result<Connection> {
        let builder = match self {
            Self::System => Builder::system(),
            Self::Session => Builder::session(),
            Self::Address(address) => {
                Builder::address(Address::from_str(address).with_context(|| address.to_owned())?)
            }
        };
        builder
            .method_timeout(PATIENCE)
            .build()
            .await
            .with_context(|| format!("cannot connect to the {}", self.name()))
    }
}

/// Connects to the bus that was chosen; else to the one where the service is or can be started.
pub async fn find(chosen: Option<Choice>) -> Result<(Choice, Connection)> {
    if let Some(chosen) = chosen {
        let connection = chosen.connect().await?;
        return Ok((chosen, connection));
    }
    if let Ok(system) = Choice::System.connect().await
        && serves(&system).await.unwrap_or(false)
    {
        return Ok((Choice::System, system));
    }
    Ok((Choice::Session, Choice::Session.connect().await?))
}

/// Whether the service is there, or would be started by a call.
async fn serves(connection: &Connection) -> Result<bool> {
    let bus = DBusProxy::new(connection).await?;
    Ok(bus.name_has_owner(NAME.try_into()?).await?
        || bus.list_activatable_names().await?.iter().any(|name| name.as_str() == NAME))
}

/// Who owns the name now; None: nobody.
pub async fn owner(connection: &Connection) -> Result<Option<String>> {
    let bus = DBusProxy::new(connection).await?;
    Ok(bus.get_name_owner(NAME.try_into()?).await.ok().map(|name| name.to_string()))
}

/// Tells of each change of the owner.
pub async fn owners(connection: &Connection) -> Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(0, NAME)
        .build()?;
    Ok(MessageStream::for_match_rule(rule, connection, QUEUED).await?)
}

/// All signals of the objects of the service's paths, whoever sends them.
pub async fn signals(connection: &Connection) -> Result<MessageStream> {
    let rule = MatchRule::builder().msg_type(Type::Signal).path_namespace("/org/example/IPC").build()?;
    Ok(MessageStream::for_match_rule(rule, connection, QUEUED).await?)
}

/// All objects of the service, with their properties.
pub async fn objects(connection: &Connection) -> Result<Vec<(String, Interfaces)>> {
    let manager = ObjectManagerProxy::new(connection, NAME, "/org/example/IPC").await?;
    let objects = manager.get_managed_objects().await?.into_iter().map(|(path, interfaces)| {
        let interfaces = interfaces.into_iter().map(|(name, properties)| {
            let properties = properties.into_iter().map(|(name, value)| (name.to_string(), value));
            (name.to_string(), properties.collect())
        });
        (path.to_string(), interfaces.collect())
    });
    Ok(objects.collect())
}
