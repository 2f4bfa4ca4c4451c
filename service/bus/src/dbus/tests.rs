//! Bodies go to the wire and come back as they were, whatever their signature.

use std::str::FromStr;

use ipc_kernel::{Fd, Kind};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value as Json, json};
use zbus::{Message, Signature};

use super::body::{self, Form, Types};

/// One complete type, of at most so many levels.
fn one_type(levels: u32) -> BoxedStrategy<String> {
    let basic = prop::sample::select("ybnqiuxtdsog".chars().map(String::from).collect::<Vec<_>>()).boxed();
    if levels == 0 {
        return basic;
    }
    let inner = || one_type(levels - 1);
    prop_oneof![
        3 => basic.clone(),
        1 => Just("v".to_owned()),
        2 => inner().prop_map(|element| format!("a{element}")),
        2 => (basic, inner()).prop_map(|(key, value)| format!("a{{{key}{value}}}")),
        2 => vec(inner(), 1..4).prop_map(|fields| format!("({})", fields.concat())),
    ]
    .boxed()
}

/// A value of the type, as JSON.
fn value(signature: &Signature, levels: u32) -> BoxedStrategy<Json> {
    macro_rules! number {
        ($($kind:ident => $type:ty),*) => {
            match signature {
                $(Signature::$kind => return any::<$type>().prop_map(Json::from).boxed(),)*
                _ => {}
            }
        };
    }
    number!(U8 => u8, I16 => i16, U16 => u16, I32 => i32, U32 => u32, I64 => i64, U64 => u64, Bool => bool);
    match signature {
        Signature::F64 => prop_oneof![
            4 => any::<f64>().prop_filter("JSON has a number", |number| number.is_finite()).prop_map(Json::from),
            1 => prop::sample::select(vec!["NaN", "Infinity", "-Infinity"]).prop_map(Json::from),
        ]
        .boxed(),
        Signature::Str => any::<String>().prop_map(|text| text.replace('\0', "").into()).boxed(),
        Signature::ObjectPath => "(/[A-Za-z0-9_]{1,8}){1,4}".prop_map(Json::from).boxed(),
        Signature::Signature => vec(one_type(1), 0..4).prop_map(|types| types.concat().into()).boxed(),
        Signature::Variant => one_type(levels.saturating_sub(1))
            .prop_flat_map(move |text| {
                let signature = Signature::from_str(&text).expect("a type");
                value(&signature, levels.saturating_sub(1)).prop_map(move |data| json!({ "type": text, "data": data }))
            })
            .boxed(),
        Signature::Array(element) => vec(value(element, levels), 0..4).prop_map(Json::from).boxed(),
        Signature::Dict { key, value: entry } => {
            let text = |key: Json| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            prop::collection::btree_map(value(key, levels).prop_map(text), value(entry, levels), 0..4)
                .prop_map(|entries| Json::Object(entries.into_iter().collect()))
                .boxed()
        }
        Signature::Structure(fields) => {
            fields.iter().map(|field| value(field, levels)).collect::<Vec<_>>().prop_map(Json::from).boxed()
        }
        other => panic!("{other} is not made here"),
    }
}

/// The types of a body and its arguments.
fn arguments() -> impl Strategy<Value = (String, Vec<Json>)> {
    vec(one_type(3), 0..4).prop_flat_map(|types| {
        let values: Vec<_> =
            types.iter().map(|text| value(&Signature::from_str(text).expect("a type"), 3)).collect();
        (Just(types.concat()), values)
    })
}

fn built(signature: &str, form: Form, data: &[u8], fds: &[Fd]) -> ipc_kernel::Result<Message> {
    body::build(Message::signal("/", "org.test.I", "Test"), form, &Types::from_str(signature)?, data, fds)
}

proptest! {
    #[test]
    fn json_comes_back((signature, values) in arguments()) {
        let data = Json::from(values).to_string();
        let message = built(&signature, Form::Json, data.as_bytes(), &[]).expect("a message");
        let taken = body::take(&message, Form::Json).expect("a body");
        prop_assert_eq!(&taken.signature, &signature);
        prop_assert_eq!(std::str::from_utf8(&taken.data), Ok(data.as_str()));
        // What the wire says is the same the second time.
        let again = built(&signature, Form::Json, &taken.data, &[]).expect("a message");
        prop_assert_eq!(message.body().data().bytes().to_vec(), again.body().data().bytes().to_vec());
    }

    #[test]
    fn bytes_and_text_come_back(bytes in vec(any::<u8>(), 0..300), text in "[^\0]{0,100}") {
        let message = built("ay", Form::Plain, &bytes, &[]).expect("a message");
        prop_assert_eq!(body::take(&message, Form::Plain).expect("a body").data, bytes);
        let message = built("s", Form::Plain, text.as_bytes(), &[]).expect("a message");
        prop_assert_eq!(body::take(&message, Form::Plain).expect("a body").data, text.as_bytes());
    }

    #[test]
    fn no_input_panics(signature in "[ybnqiuxtdsoghva(){}]{0,8}", data in "\\PC{0,40}") {
        let _ = built(&signature, Form::Json, data.as_bytes(), &[]);
    }
}

/// Against what zbus itself makes of a value: the two do not err together.
#[test]
fn the_wire_is_that_of_zbus() {
    let body = (
        1u8,
        vec![("a", 2i64)],
        zbus::Variant::from((true, "x")),
        std::collections::BTreeMap::from([(3u32, 0.5)]),
    );
    let theirs = Message::signal("/", "org.test.I", "Test").build(&body).expect("a message");
    let data = r#"[1,[["a",2]],{"data":[true,"x"],"type":"(bs)"},{"3":0.5}]"#;
    let ours = built("ya(sx)va{ud}", Form::Json, data.as_bytes(), &[]).expect("a message");
    assert_eq!(ours.body().data().bytes().to_vec(), theirs.body().data().bytes().to_vec());
    assert_eq!(body::take(&theirs, Form::Json).expect("a body").data, data.as_bytes());
}

#[test]
fn file_descriptors_are_named_by_number() {
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let fds = [Fd::new(one.into()), Fd::new(other.into())];
    let message = built("hv", Form::Json, br#"[1,{"type":"h","data":0}]"#, &fds).expect("a message");
    let taken = body::take(&message, Form::Json).expect("a body");
    assert_eq!((taken.data.as_slice(), taken.fds.len()), (&br#"[0,{"data":1,"type":"h"}]"#[..], 2));
    let refused = |signature: &str, data: &str| {
        let error = built(signature, Form::Json, data.as_bytes(), &fds).expect_err("refused");
        (error.kind, error.text)
    };
    let (kind, text) = refused("s", "[\"x\"]");
    assert!(kind == Kind::NotSupported && text.contains("no place for file descriptors"), "{text}");
    let (kind, text) = refused("h", "[0]");
    assert!(kind == Kind::InvalidArgument && text.contains("does not name file descriptor 1"), "{text}");
    let (kind, text) = refused("hh", "[0,2]");
    assert!(
        kind == Kind::InvalidArgument && text.contains("file descriptor 2, but the message has 2"),
        "{text}"
    );
    let many: Vec<Fd> = (0..17).map(|_| fds[0].clone()).collect();
    let error = built("ah", Form::Json, b"[[0]]", &many).expect_err("refused");
    assert!(error.kind == Kind::TooLarge && error.text.contains("16"), "{error}");
}

#[test]
fn what_is_too_long_is_told() {
    let long = vec![7u8; body::MOST_BYTES];
    let message = built("ay", Form::Plain, &long, &[]).expect("a message");
    assert_eq!(body::take(&message, Form::Plain).expect("a body").data, long);
    let why = body::take(&message, Form::Json).expect_err("too long");
    assert!(why.contains("more than 1048576"), "{why}");
    let error = built("ay", Form::Plain, &vec![0; body::MOST_BYTES + 1], &[]).expect_err("refused");
    assert!(error.kind == Kind::TooLarge && error.text.contains("4194304"), "{error}");
}
