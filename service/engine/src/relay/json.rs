//! Messages and events as JSON objects, and messages back from them.
//!
//! A text stands as it is; bytes that are not UTF-8 stand as base64 under the key with `-base64` behind it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipc_kernel::{Dict, Error, Result, Value, dict, shape::Event, signal::names};
use serde_json::{Map, Value as Json};

use crate::events::{Happening, Numbered};

/// What is behind a key whose bytes are not UTF-8.
const BASE64: &str = "-base64";

/// The payload's key.
const DATA: &str = "data";

/// An event under the names of the signal's arguments, with its number, its time in microseconds since the epoch,
/// and the signal's name.
pub(super) fn event(numbered: &Numbered) -> Dict {
    let (name, mut event) = match &numbered.happening {
        Happening::Changed(Event { names, path, from, note }) => {
            let events: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut changed = dict! { "events" => events, "path" => Value::text_or_bytes(path), "from" => Value::text_or_bytes(from) };
            if !note.is_empty() {
                changed.insert("reason".into(), note.as_str().into());
            }
            ("Changed", changed)
        }
        Happening::Overflow => ("Overflow", dict! { "lost" => 0u64 }),
        Happening::Received { data, attributes } => {
            let mut received = attributes.clone();
            received.insert(DATA.into(), Value::text_or_bytes(data));
            ("Received", received)
        }
        Happening::Accepted(endpoint) => ("Accepted", dict! { "endpoint" => *endpoint }),
        Happening::Ready => ("Ready", Dict::new()),
        Happening::Woken(value) => ("Woken", dict! { "value" => *value }),
        Happening::RangeChanged { watch, offset, length } => {
            ("Changed", dict! { "watch" => *watch, "offset" => *offset, "length" => *length })
        }
        Happening::Exited(exit) => {
            ("Exited", dict! { "code" => exit.code, "signal" => exit.signal, "core" => exit.core })
        }
        Happening::Signalled(signal) => (
            "Received",
            dict! {
                "number" => signal.number, "name" => names::name(signal.number), "pid" => signal.pid,
                "uid" => signal.uid, "value" => signal.value, "code" => signal.code,
            },
        ),
        Happening::Read { name, pid } => ("Read", dict! { "name" => name.as_str(), "pid" => *pid }),
        Happening::Written { name, data } => {
            ("Written", dict! { "name" => name.as_str(), DATA => Value::text_or_bytes(data) })
        }
    };
    event.extend(dict! { "event" => name, "seq" => numbered.seq, "at" => numbered.at });
    event
}

/// Events that are not kept any more, up to the one with this number.
pub(super) fn lost(count: u64, last: u64) -> Dict {
    dict! { "event" => "Overflow", "lost" => count, "seq" => last }
}

/// A dictionary as one JSON object.
pub(super) fn object(dict: &Dict) -> Vec<u8> {
    Json::Object(map(dict)).to_string().into_bytes()
}

/// A message as one JSON object.
pub(super) fn message(data: &[u8], attributes: &Dict) -> Vec<u8> {
    let mut object = map(attributes);
    put(&mut object, DATA, &Value::text_or_bytes(data));
    Json::Object(object).to_string().into_bytes()
}

fn map(dict: &Dict) -> Map<String, Json> {
    let mut object = Map::new();
    dict.iter().for_each(|(key, value)| put(&mut object, key, value));
    object
}

fn put(object: &mut Map<String, Json>, key: &str, value: &Value) {
    match value {
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => object.insert(key.to_owned(), text.into()),
            Err(_) => object.insert(format!("{key}{BASE64}"), STANDARD.encode(bytes).into()),
        },
        other => object.insert(key.to_owned(), json(other)),
    };
}

fn json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(number) => (*number).into(),
        Value::U32(number) => (*number).into(),
        Value::I64(number) => (*number).into(),
        Value::U64(number) => (*number).into(),
        Value::F64(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Value::Texts(texts) => texts.as_slice().into(),
        Value::U32s(numbers) => numbers.as_slice().into(),
        Value::I32s(numbers) => numbers.as_slice().into(),
        Value::Dict(dict) => Json::Object(map(dict)),
        Value::Dicts(dicts) => dicts.iter().map(|dict| Json::Object(map(dict))).collect(),
        // Messages with descriptors are refused before they come here.
        Value::Fd(_) | Value::Fds(_) => Json::Null,
    }
}

/// The message that a JSON object is.
pub(super) fn parse(text: &[u8]) -> Result<(Vec<u8>, Dict)> {
    let refused = |why: String| Error::invalid(format!("a line is no message as JSON: {why}"));
    let object = match serde_json::from_slice(text) {
        Ok(Json::Object(object)) => object,
        Ok(_) => return Err(refused("it is no object, {\"data\": …}".into())),
        Err(error) => return Err(refused(error.to_string())),
    };
    let (mut data, mut attributes) = (Vec::new(), Dict::new());
    for (key, json) in object {
        let (key, value) = match (key.strip_suffix(BASE64), &json) {
            (Some(key), Json::String(text)) => match STANDARD.decode(text) {
                Ok(bytes) => (key.to_owned(), Value::Bytes(bytes)),
                Err(error) => return Err(refused(format!("{key}{BASE64}: {error}"))),
            },
            _ => {
                let value =
                    value(json).ok_or_else(|| refused(format!("no attribute has the type of {key:?}")))?;
                (key, value)
            }
        };
        match (key.as_str(), value) {
            (DATA, Value::Text(text)) => data = text.into_bytes(),
            (DATA, Value::Bytes(bytes)) => data = bytes,
            (DATA, _) => {
                return Err(refused("data must be a string; bytes are written as data-base64".into()));
            }
            (_, value) => _ = attributes.insert(key, value),
        }
    }
    Ok((data, attributes))
}

fn value(json: Json) -> Option<Value> {
    Some(match json {
        Json::Bool(value) => value.into(),
        Json::String(text) => text.into(),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => number.as_f64()?.into(),
        },
        Json::Array(items) if items.iter().all(Json::is_string) => {
            Value::Texts(items.into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
        }
        Json::Array(items) => {
            let number = |item: &Json| item.as_i64().and_then(|number| i32::try_from(number).ok());
            Value::I32s(items.iter().map(number).collect::<Option<_>>()?)
        }
        Json::Object(object) => Value::Dict(
            object.into_iter().map(|(key, json)| Some((key, value(json)?))).collect::<Option<_>>()?,
        ),
        Json::Null => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_there_and_back() {
        let attributes = || dict! { "type" => 7i64, "name" => "x", "raw" => vec![0xffu8], "flag" => true };
        for data in [b"text\n".as_slice(), b"", b"\xff\x00"] {
            let (back, with) = parse(&message(data, &attributes())).unwrap();
            assert_eq!(back, data);
            assert!(
                with.len() == 4 && with.iter().all(|(key, value)| value.same(&attributes()[key])),
                "{with:?}"
            );
        }
        assert_eq!(message(b"a", &dict! { "priority" => 3u32 }), br#"{"data":"a","priority":3}"#);
        assert_eq!(message(b"\xff", &Dict::new()), br#"{"data-base64":"/w=="}"#);
        for wrong in ["", "[]", "{\"data\":1}", "{\"data-base64\":\"*\"}", "{\"x\":null}"] {
            assert!(parse(wrong.as_bytes()).unwrap_err().text.contains("no message as JSON"), "{wrong}");
        }
    }

    #[test]
    fn an_event_has_the_names_of_the_signal() {
        let happening = Happening::Written { name: "f".into(), data: vec![0xff] };
        let text = object(&event(&Numbered { seq: 5, at: 6, happening }));
        assert_eq!(text, br#"{"at":6,"data-base64":"/w==","event":"Written","name":"f","seq":5}"#);
    }
}
