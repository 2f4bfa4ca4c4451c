//! A property of any service on any bus, as the text of a published file.

use std::sync::Arc;

use event_listener::EventListener;
use futures_util::{FutureExt, future::BoxFuture};
use ipc_engine::published::Remote;
use ipc_kernel::{Error, Result};
use zbus::{OwnedVariant, Variant};

use crate::dbus::{object::Object, property::PROPERTIES, target::Target, wish};

pub struct Property {
    object: Arc<Object>,
    interface: String,
    property: String,
}

impl Property {
    pub async fn new(
        bus: &str,
        service: &str,
        object: &str,
        interface: &str,
        property: &str,
    ) -> Result<Self> {
        let target = Target::new(wish::bus_name(service.to_owned())?, wish::path(object.to_owned())?)?;
        let (interface, property) =
            (wish::interface(interface.to_owned())?, wish::member(property.to_owned())?);
        let object = Object::find(bus, target, Some((interface.clone(), property.clone()))).await?;
        Ok(Self { object, interface, property })
    }

    async fn get(&self) -> Result<OwnedVariant> {
        let names = (self.interface.as_str(), self.property.as_str());
        let get = self.object.call(Some(PROPERTIES), "Get", |call| call.build(&names).map_err(wrong));
        get.await??.body().deserialize().map_err(wrong)
    }

    async fn set(&self, text: &[u8]) -> Result<()> {
        // It has to be of the type that the property has.
        let now = self.get().await?;
        let body = (self.interface.as_str(), self.property.as_str(), parsed(&now, text)?);
        let set = self.object.call(Some(PROPERTIES), "Set", |call| call.build(&body).map_err(wrong));
        set.await??;
        Ok(())
    }
}

/// What is no message.
pub fn wrong(error: zbus::Error) -> Error {
    Error::invalid(format!("the message has a body that it must not have: {error}"))
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

    fn version(&self) -> u64 {
        self.object.version()
    }

    fn changed(&self) -> EventListener {
        self.object.changed()
    }
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
    use ipc_kernel::Kind;

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
