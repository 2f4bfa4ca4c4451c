//! A template: arguments that are always the same, but for the text of the message in them.
//!
//! A queue that a script or a C program writes to has lines of text, and a method of a desktop has eight
//! arguments. The template says them once, as JSON; wherever a string in it has `{message}`, the text
//! of each message takes its place, whatever characters it has.

use ipc_kernel::{Error, Result};
use serde_json::Value as Json;
use zbus::Message;

use super::body::{self, Form, Types};

/// What the text of the message takes the place of.
const PLACE: &str = "{message}";

/// Texts that fit where one may stand: any string, a path, part of a path.
const SAMPLES: [&[u8]; 2] = [b"x", b"/x"];

#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    arguments: Vec<Json>,
    places: usize,
}

/// These types, with a template for their values. Err: it does not fit them.
pub fn with(mut types: Types, text: &str) -> Result<Types> {
    let wrong = |error: Error| Error::invalid(format!("the key \"template\": {}", error.text));
    let arguments = body::read(&types, text.as_bytes()).map_err(wrong)?;
    let places = arguments.iter().map(places).sum();
    types.template = Some(Template { arguments, places });
    let try_one = |sample| {
        let call = Message::method_call("/", "Sample");
        body::build(call, Form::Json, &types, sample, &[]).map(drop)
    };
    let [first, second] = SAMPLES.map(try_one);
    first.or(second).map_err(wrong)?;
    Ok(types)
}

impl Template {
    /// The arguments for a message.
    pub fn filled(&self, message: &[u8]) -> Result<Vec<Json>> {
        // The same text in several places may be more than the message.
        body::check_length(message.len().saturating_mul(self.places))?;
        let text = body::text(message)?;
        Ok(self.arguments.iter().map(|argument| fill(argument, text)).collect())
    }
}

fn places(value: &Json) -> usize {
    match value {
        Json::String(text) => text.matches(PLACE).count(),
        Json::Array(values) => values.iter().map(places).sum(),
        Json::Object(entries) => entries.values().map(places).sum(),
        _ => 0,
    }
}

fn fill(value: &Json, message: &str) -> Json {
    match value {
        Json::String(text) => text.replace(PLACE, message).into(),
        Json::Array(values) => values.iter().map(|value| fill(value, message)).collect(),
        Json::Object(entries) => {
            entries.iter().map(|(key, value)| (key.clone(), fill(value, message))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use ipc_kernel::Kind;

    use super::*;

    const NOTIFY: &str =
        r#"["ipc",0,"","{message}","<b>{message}</b>",[],{"urgency":{"type":"y","data":1}},-1]"#;

    fn types(signature: &str) -> Types {
        signature.parse().expect("a signature")
    }

    fn built(types: &Types, message: &[u8]) -> Result<Message> {
        body::build(Message::method_call("/", "M"), Form::Plain, types, message, &[])
    }

    #[test]
    fn the_text_takes_its_place_as_it_is() {
        let types = with(types("susssasa{sv}i"), NOTIFY).expect("a template");
        let text = r#"a "b", {message}\ and grüße"#;
        let wire = built(&types, text.as_bytes()).expect("a message");
        let data = body::take(&wire, Form::Json).expect("a body").data;
        let filled: Json = serde_json::from_slice(&data).expect("JSON");
        assert_eq!(filled[3], text);
        assert_eq!(filled[4], format!("<b>{text}</b>"));
        assert_eq!(filled[6]["urgency"]["data"], 1);
    }

    #[test]
    fn a_template_that_does_not_fit_is_refused_before_any_message() {
        for (signature, template, phrase) in [
            ("s", "{message}", "JSON array"),
            ("su", r#"["{message}"]"#, "2 arguments"),
            ("u", r#"["{message}"]"#, "whole number"),
            ("sh", r#"["{message}",0]"#, "file descriptor 0"),
        ] {
            let error = with(types(signature), template).expect_err("refused");
            assert!(error.kind == Kind::InvalidArgument && error.text.contains("\"template\""), "{error}");
            assert!(error.text.contains(phrase), "{error}");
        }
        // A path, and a call that is always the same.
        for (signature, template) in
            [("o", r#"["{message}"]"#), ("o", r#"["/a/{message}"]"#), ("s", r#"["x"]"#)]
        {
            with(types(signature), template).expect("a template");
        }
    }

    #[test]
    fn many_places_are_not_more_than_one_message() {
        let template = format!("[\"{}\"]", PLACE.repeat(5));
        let types = with(types("s"), &template).expect("a template");
        built(&types, &vec![b'x'; body::MOST_BYTES / 8]).expect("it fits");
        let error = built(&types, &vec![b'x'; body::MOST_BYTES / 4]).expect_err("too long");
        assert_eq!(error.kind, Kind::TooLarge);
        assert_eq!(built(&types, b"\xff").expect_err("no text").kind, Kind::InvalidArgument);
    }
}
