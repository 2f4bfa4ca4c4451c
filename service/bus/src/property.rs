//! A property of any service on any bus, as the text of a published file.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use ipc_engine::published::Remote;
use ipc_kernel::{Error, Kind, Result};
use zbus::{
    Address, Connection, ObjectPath, OwnedVariant, Variant,
    connection::Builder,
    names::{BusName, InterfaceName, MemberName},
};

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// How long a bus may take to let us in.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Buses that files may be on at once.
const BUSES: usize = 8;

pub struct Property {
    connection: Connection,
    service: BusName<'static>,
    object: ObjectPath<'static>,
    interface: InterfaceName<'static>,
    property: MemberName<'static>,
}

impl Property {
    pub async fn new(
        bus: &str,
        service: &str,
        object: &ObjectPath<'_>,
        interface: &str,
        property: &str,
    ) -> Result<Self> {
        fn wrong(what: &str, given: &str, why: impl std::fmt::Display) -> Error {
            Error::invalid(format!("{given:?} is no name of {what}: {why}"))
        }
        let service =
            BusName::try_from(service.to_owned()).map_err(|why| wrong("a service on a bus", service, why))?;
        let interface = InterfaceName::try_from(interface.to_owned())
            .map_err(|why| wrong("an interface", interface, why))?;
        let property =
            MemberName::try_from(property.to_owned()).map_err(|why| wrong("a property", property, why))?;
        let connection = connected(bus).await?;
        Ok(Self { connection, service, object: object.to_owned(), interface, property })
    }

    async fn get(&self) -> Result<OwnedVariant> {
        let body = (self.interface.as_str(), self.property.as_str());
        let reply = self
            .connection
            .call_method(Some(&self.service), &self.object, Some(PROPERTIES), "Get", &body)
            .await
            .map_err(meaning)?;
        reply.body().deserialize().map_err(meaning)
    }

    async fn set(&self, text: &[u8]) -> Result<()> {
        // It has to be of the type that the property has.
        let now = self.get().await?;
        let value = parsed(&now, text)?;
        let body = (self.interface.as_str(), self.property.as_str(), value);
        let call =
            self.connection.call_method(Some(&self.service), &self.object, Some(PROPERTIES), "Set", &body);
        call.await.map(drop).map_err(meaning)
    }
}

impl Remote for Property {
    fn read(&self) -> BoxFuture<'_, Result<Vec<u8>>> {
        async {
            let value = self.get().await?;
            Ok(text(&value))
        }
        .boxed()
    }

    fn write(&self, text: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        async move { self.set(&text).await }.boxed()
    }
}

/// The connections that there are: one for each bus, for all files.
static CONNECTIONS: Mutex<Option<HashMap<String, Connection>>> = Mutex::new(None);

fn connections() -> MutexGuard<'static, Option<HashMap<String, Connection>>> {
    CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connected(bus: &str) -> Result<Connection> {
    let full = || {
        let text = format!("published properties are on {BUSES} buses already, which are the most at once");
        Error::new(Kind::LimitExceeded, text)
    };
    {
        let mut table = connections();
        let table = table.get_or_insert_default();
        // One that has ended is of no use to anybody.
        table.retain(|_, connection| !connection.is_closed());
        if let Some(connection) = table.get(bus) {
            return Ok(connection.clone());
        }
        if table.len() >= BUSES {
            return Err(full());
        }
    }
    let unreachable =
        |why: String| Error::new(Kind::Unavailable, format!("the bus {bus:?} cannot be reached: {why}"));
    let builder = match bus {
        "session" => Builder::session(),
        "system" => Builder::system(),
        address => Builder::address(address.parse::<Address>().map_err(|why| {
            Error::invalid(format!("the bus must be session, system or an address, not {address:?}: {why}"))
        })?),
    };
    let connection = tokio::time::timeout(HANDSHAKE, builder.build())
        .await
        .map_err(|_| unreachable("it does not answer".to_owned()))?
        .map_err(|why| unreachable(why.to_string()))?;
    let mut table = connections();
    let table = table.get_or_insert_default();
    if table.len() >= BUSES {
        return Err(full());
    }
    table.insert(bus.to_owned(), connection.clone());
    Ok(connection)
}

/// What a service's refusal means to whoever reads or writes the file.
fn meaning(error: zbus::Error) -> Error {
    let name = match &error {
        zbus::Error::MethodError(name, ..) => name.as_str().to_owned(),
        zbus::Error::FDO(error) => zbus::DBusError::name(&**error).to_string(),
        _ => String::new(),
    };
    let kind = match name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default() {
        "AccessDenied" | "AuthFailed" | "PropertyReadOnly" | "InteractiveAuthorizationRequired" => {
            Kind::PermissionDenied
        }
        "ServiceUnknown" | "NameHasNoOwner" | "UnknownObject" | "UnknownInterface" | "UnknownProperty" => {
            Kind::NotFound
        }
        "InvalidArgs" => Kind::InvalidArgument,
        "NotSupported" => Kind::NotSupported,
        _ => Kind::Unavailable,
    };
    Error::new(kind, error.to_string())
}

/// A value as it is read: text as it is, anything else as GVariant writes it; and a newline.
fn text(value: &Variant<'_>) -> Vec<u8> {
    let mut text = match value {
        Variant::Variant(inner) => return text(inner),
        Variant::Str(value) => value.to_string(),
        Variant::ObjectPath(value) => value.to_string(),
        Variant::Bool(value) => value.to_string(),
        Variant::U8(value) => value.to_string(),
        Variant::I16(value) => value.to_string(),
        Variant::U16(value) => value.to_string(),
        Variant::I32(value) => value.to_string(),
        Variant::U32(value) => value.to_string(),
        Variant::I64(value) => value.to_string(),
        Variant::U64(value) => value.to_string(),
        Variant::F64(value) => value.to_string(),
        other => other.to_string(),
    };
    text.push('\n');
    text.into_bytes()
}

/// A text as a value of the type that another one has.
fn parsed(like: &Variant<'_>, text: &[u8]) -> Result<Variant<'static>> {
    let kind = like.value_signature();
    let refused = || {
        Error::invalid(format!("{:?} is no value of the D-Bus type {kind}", String::from_utf8_lossy(text)))
    };
    let line = std::str::from_utf8(text).map_err(|_| refused())?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    macro_rules! number {
        ($type:ty) => {
            Variant::from(line.trim().parse::<$type>().map_err(|_| refused())?)
        };
    }
    Ok(match like {
        Variant::Str(_) if line.contains('\0') => return Err(refused()),
        Variant::Str(_) => Variant::from(line.to_owned()),
        Variant::Bool(_) => number!(bool),
        Variant::U8(_) => number!(u8),
        Variant::I16(_) => number!(i16),
        Variant::U16(_) => number!(u16),
        Variant::I32(_) => number!(i32),
        Variant::U32(_) => number!(u32),
        Variant::I64(_) => number!(i64),
        Variant::U64(_) => number!(u64),
        Variant::F64(_) => number!(f64),
        _ => {
            return Err(Error::not_supported(format!(
                "a property of the D-Bus type {kind} cannot be written as text; call Set"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_they_are_read() {
        let values: Vec<Variant<'static>> =
            vec!["a b".into(), true.into(), 7u8.into(), (-3i16).into(), u64::MAX.into(), 0.5f64.into()];
        for value in values {
            assert_eq!(parsed(&value, &text(&value)).expect("the same"), value);
        }
        assert_eq!(parsed(&"x".into(), b"\n").expect("empty"), Variant::from(""));
        for (like, wrong) in [
            (Variant::from(1u8), &b"256"[..]),
            (true.into(), b"1"),
            ("x".into(), b"\xff"),
            ("x".into(), b"\0"),
        ] {
            assert_eq!(parsed(&like, wrong).expect_err("refused").kind, Kind::InvalidArgument);
        }
        let list = Variant::from(vec![1u32, 2]);
        assert_eq!(text(&list), b"[uint32 1, 2]\n");
        assert_eq!(parsed(&list, b"[1]").expect_err("refused").kind, Kind::NotSupported);
    }
}
