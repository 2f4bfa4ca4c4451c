//! What introspection data says, as far as the lints and the generated calls need it.

use ipc_harness::xml::{attribute, tags};

use crate::incoming::split;
use crate::wire::{Arg, variant};

/// A method or a property of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub interface: String,
    pub name: String,
    /// Name and type of each argument that goes in; of a property, its own.
    pub arguments: Vec<(String, String)>,
    /// `method`, `signal` or `property`.
    pub kind: String,
}

/// Every member of the document's own object.
pub fn members(xml: &str) -> Vec<Member> {
    let (mut members, mut interface) = (Vec::<Member>::new(), String::new());
    for tag in tags(xml) {
        let name = attribute(tag, "name").unwrap_or_default().to_owned();
        let of_type = attribute(tag, "type").unwrap_or_default().to_owned();
        match tag.split([' ', '/']).next() {
            Some("interface") => interface = name,
            Some(kind @ ("method" | "signal" | "property")) => {
                let arguments = if kind == "property" { vec![(name.clone(), of_type)] } else { Vec::new() };
                members.push(Member { interface: interface.clone(), name, arguments, kind: kind.to_owned() });
            }
            Some("arg") if attribute(tag, "direction") != Some("out") => {
                let member = members.last_mut().expect("an argument is of something");
                member.arguments.push((name, of_type));
            }
            _ => {}
        }
    }
    members
}

/// Some value of each type of a signature: enough for a call that is to be refused for another reason.
pub fn some_values(signature: &str) -> Vec<Arg> {
    split(signature).into_iter().map(some_value).collect()
}

fn some_value(signature: &str) -> Arg {
    match signature.as_bytes()[0] {
        b'y' => Arg::Byte(0),
        b'b' => Arg::Bool(false),
        b'n' => Arg::I16(0),
        b'q' => Arg::U16(0),
        b'i' => Arg::I32(0),
        b'u' => Arg::U32(0),
        b'x' => Arg::I64(0),
        b't' => Arg::U64(0),
        b'd' => Arg::F64(0.0),
        b'o' => Arg::Path("/org/example/IPC/pipe/1".into()),
        b'g' => Arg::Sig("u".into()),
        b'v' => variant(Arg::U32(0)),
        b'a' => Arg::Array(signature[1..].to_owned(), Vec::new()),
        b'(' => Arg::Struct(some_values(&signature[1..signature.len() - 1])),
        _ => Arg::Str("x".into()),
    }
}

#[cfg(test)]
mod tests {
    use ipc_harness::xml::children;

    use super::*;

    #[test]
    fn members_and_children_are_found() {
        let xml = r#"<node><interface name="a.b"><!-- <x> --><method name="M"><arg name="n" type="u" direction="in"/>
            <arg name="r" type="s" direction="out"/></method><property name="P" type="s" access="read"/></interface>
            <node name="1"/></node>"#;
        let member = |kind: &str, name: &str, argument: (&str, &str)| Member {
            interface: "a.b".into(),
            name: name.into(),
            arguments: vec![(argument.0.into(), argument.1.into())],
            kind: kind.into(),
        };
        assert_eq!(members(xml), [member("method", "M", ("n", "u")), member("property", "P", ("P", "s"))]);
        assert_eq!(children(xml), ["1"]);
        assert_eq!(some_values("ua{sv}(sh)").len(), 3);
    }
}
