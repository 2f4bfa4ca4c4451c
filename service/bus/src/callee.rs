//! A method of any service on any bus, as a published file: what is written calls it, and the answer is read.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{FutureExt, future::BoxFuture};
use ipc_engine::published::Callee;
use ipc_kernel::{Address, Dict, Error, Kind, Parameter, Parameters, Result, Type};
use quick_xml::{Reader, events::Event};
use zbus::message::Flags;

use crate::{
    dbus::{
        body::{self, Form, Types},
        link::DBUS,
        object::Object,
        target::Target,
        wish::{self, Wish},
    },
    property::wrong,
};

static OPTIONS: &[Parameter] = &[
    wish::SIGNATURE,
    wish::BODY,
    wish::TEMPLATE,
    Parameter::new(
        "flags",
        Type::Words(&["no-auto-start", "allow-interactive-authorization"]),
        "Flags of the calls",
    ),
];

/// What a bus does to the connection that asks for it: this one is shared, and the service's.
const OF_CONNECTIONS: &[&str] = &[
    "Hello",
    "BecomeMonitor",
    "RequestName",
    "ReleaseName",
    "AddMatch",
    "RemoveMatch",
    "UpdateActivationEnvironment",
];

/// The most bytes of introspection data that are looked at.
const MOST_DATA: usize = 1 << 20;

pub struct Method {
    object: Arc<Object>,
    interface: String,
    member: String,
    form: Form,
    flags: Flags,
    /// As they were given.
    types: Option<Types>,
    /// As the object says it, and at which of its versions.
    asked: Mutex<Option<(u64, Types)>>,
}

impl Method {
    pub async fn new(
        bus: &str,
        service: &str,
        object: &str,
        interface: &str,
        member: &str,
        options: &Dict,
    ) -> Result<Self> {
        let options = Parameters::check(OPTIONS, &[], &Address::new("call"), options)?;
        let wish = Wish(&options);
        let target = Target::new(wish::bus_name(service.to_owned())?, wish::path(object.to_owned())?)?;
        let (interface, member) = (wish::interface(interface.to_owned())?, wish::member(member.to_owned())?);
        if target.name == DBUS && OF_CONNECTIONS.contains(&member.as_str()) {
            return Err(Error::not_supported(format!(
                "{member} changes the connection of whoever calls it, which is the service's own; the mechanism dbus \
                 owns names and matches signals"
            )));
        }
        let types = match (wish.given("signature"), wish.given("template")) {
            (true, _) => Some(wish.types_of_calls()?),
            (false, true) => {
                return Err(Error::invalid("the option \"template\" needs the option \"signature\""));
            }
            (false, false) => None,
        };
        Ok(Self {
            object: Object::find(bus, target, None).await?,
            interface,
            member,
            form: wish.form(Form::Plain),
            flags: wish.flags(),
            types,
            asked: Mutex::default(),
        })
    }

    /// The types of its arguments. Another owner of the name may have others.
    async fn types(&self) -> Result<Types> {
        if let Some(types) = &self.types {
            return Ok(types.clone());
        }
        let version = self.object.version();
        let asked = || self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, types)) = asked().as_ref().filter(|(then, _)| *then == version) {
            return Ok(types.clone());
        }
        let helped = |error: Error| {
            error.help("the types of the arguments are not known; give signature to PublishCall")
        };
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        let ask = self.object.call(introspectable, "Introspect", |call| call.build(&()).map_err(wrong));
        let answer = ask.await?.map_err(|refused| helped(refused.into()))?;
        let body = answer.body();
        let data: &str = body.deserialize().map_err(|error| helped(wrong(error)))?;
        let types: Types = signature(data, &self.interface, &self.member).map_err(helped)?.parse()?;
        *asked() = Some((version, types.clone()));
        Ok(types)
    }

    async fn call(&self, data: &[u8]) -> Result<Vec<u8>> {
        let types = self.types().await?;
        // Whoever writes by hand ends the line.
        let data = match types.text.as_str() {
            "ay" if types.template.is_none() && self.form == Form::Plain => data,
            _ => data.strip_suffix(b"\n").unwrap_or(data),
        };
        let call = self.object.call(Some(&self.interface), &self.member, |call| {
            body::build(call.with_flags(self.flags), self.form, &types, data, &[])
        });
        let reply = call.await??;
        let answer = body::take(&reply, self.form).map_err(|why| {
            Error::new(
                Kind::TooLarge,
                format!("the method was called, but its answer cannot be shown: {why}"),
            )
        })?;
        if !answer.fds.is_empty() {
            return Err(Error::not_supported(
                "the method was called, but its answer has file descriptors, which no file can carry",
            ));
        }
        let mut text = answer.data;
        let is_text = !(self.form == Form::Plain && matches!(answer.signature.as_str(), "ay" | ""));
        if is_text {
            text.push(b'\n');
        }
        Ok(text)
    }
}

impl Callee for Method {
    fn call(&self, data: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>>> {
        async move { Method::call(self, &data).await }.boxed()
    }
}

/// The types of a method's arguments, out of introspection data (D-Bus specification, "Introspection Data Format").
/// Read as it comes: data of nodes in nodes in nodes is somebody else's, and may be deep.
fn signature(data: &str, interface: &str, method: &str) -> Result<String> {
    let wrong = |why: &str| Error::new(Kind::NotFound, format!("the introspection data of the object {why}"));
    if data.len() > MOST_DATA {
        return Err(wrong("has more than 1 MiB"));
    }
    let mut reader = Reader::from_str(data);
    reader.config_mut().expand_empty_elements = true;
    // The names of what is open, as far as it leads to the method.
    let (mut depth, mut led, mut types) = (0usize, 0usize, String::new());
    loop {
        match reader.read_event().map_err(|error| wrong(&format!("is no XML: {error}")))? {
            Event::Start(element) => {
                let attribute = |key: &str| {
                    let found = element.try_get_attribute(key).ok().flatten();
                    found.map(|found| found.value.into_owned())
                };
                let named = |wanted: &str| attribute("name").is_some_and(|name| name == wanted);
                let name = element.name();
                let leads = match led {
                    0 => name.as_ref() == "node",
                    1 => name.as_ref() == "interface" && named(interface),
                    2 => name.as_ref() == "method" && named(method),
                    _ => false,
                };
                if led == 3 && depth == 3 && name.as_ref() == "arg" {
                    // "in" is what is meant where a method says nothing.
                    if attribute("direction").is_none_or(|direction| direction == "in") {
                        types.push_str(
                            &attribute("type").ok_or_else(|| wrong("has an argument without type"))?,
                        );
                    }
                }
                if leads && led == depth {
                    led += 1;
                }
                depth += 1;
            }
            Event::End(_) => {
                if led == 3 && depth == 3 {
                    return Ok(types);
                }
                depth = depth.saturating_sub(1);
                led = led.min(depth);
            }
            Event::Eof => return Err(wrong(&format!("has no method {method} of the interface {interface}"))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = r#"<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" "x">
        <node name="/a">
          <interface name="org.example.A"><method name="M"><arg type="y"/></method></interface>
          <node name="child"><interface name="org.example.B"><method name="M"/></interface></node>
          <interface name="org.example.B">
            <annotation name="M" value="x"/>
            <method name="M">
              <annotation name="org.freedesktop.DBus.Deprecated" value="true"/>
              <arg name="first" type="su" direction="in"/><arg type="a{sv}"/><arg type="i" direction="out"/>
            </method>
            <method name="None"/>
            <signal name="S"><arg type="x"/></signal>
          </interface>
        </node>"#;

    #[test]
    fn the_arguments_of_a_method_are_found() {
        assert_eq!(signature(DATA, "org.example.B", "M").expect("there"), "sua{sv}");
        assert_eq!(signature(DATA, "org.example.A", "M").expect("there"), "y");
        assert_eq!(signature(DATA, "org.example.B", "None").expect("there"), "");
        for (interface, method) in [("org.example.B", "S"), ("org.example.C", "M"), ("org.example.A", "None")]
        {
            let error = signature(DATA, interface, method).expect_err("not there");
            assert!(error.kind == Kind::NotFound && error.text.contains(method), "{error}");
        }
        for data in ["", "no XML", "<node><interface name='org.example.B'></node>", "<a><b"] {
            signature(data, "org.example.B", "M").expect_err(data);
        }
        // It takes no more room than its text.
        signature(&"<node>".repeat(MOST_DATA / 6), "org.example.B", "M").expect_err("not there");
        signature(&" ".repeat(MOST_DATA + 1), "org.example.B", "M").expect_err("too long");
    }
}
