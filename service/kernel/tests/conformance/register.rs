//! The rows of the register: names, tables, reference, lists, adoption and names of objects.

use std::{
    collections::BTreeSet,
    os::fd::{AsRawFd, OwnedFd},
};

use ipc_kernel::{
    Address, Dict, Endpoint, Kind, Parameter, Parameters, Type, Value, mechanism::Adoption, shape::Shape,
};

use crate::{
    fixtures::{self, Made, NAMES, Names},
    making::{Scratch, attached, created},
    suite::{self, each_mechanism, must_fail},
};

/// Lower-case words, joined with `-`.
fn is_kebab(key: &str) -> bool {
    key.starts_with(|first: char| first.is_ascii_lowercase())
        && !key.ends_with('-')
        && !key.contains("--")
        && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[track_caller]
fn must_be_line(what: &str, text: &str) {
    assert!(text.len() > 5, "{what} says too little: {text:?}");
    assert!(!text.contains('\n') && text.trim() == text, "{what} must be one line: {text:?}");
}

fn tables(descriptor: &'static ipc_kernel::Descriptor) -> [(&'static str, &'static [Parameter]); 3] {
    [
        ("create", descriptor.create_parameters),
        ("attach", descriptor.attach_parameters),
        ("open", descriptor.open_parameters),
    ]
}

#[test]
fn names_and_schemes_are_unique() {
    let mut names = BTreeSet::new();
    let mut schemes = BTreeSet::new();
    for descriptor in crate::rows() {
        assert!(names.insert(descriptor.name), "two mechanisms are called {}", descriptor.name);
        assert!(is_kebab(descriptor.name), "{} is no element of an object path", descriptor.name);
        assert!(!descriptor.schemes.is_empty(), "{} has no scheme", descriptor.name);
        for scheme in descriptor.schemes {
            assert!(schemes.insert(scheme), "two mechanisms have the scheme {scheme}");
            assert_eq!(crate::REGISTER.by_scheme(scheme).unwrap().name, descriptor.name);
        }
        assert_eq!(crate::REGISTER.by_name(descriptor.name).unwrap().name, descriptor.name);
    }
    let text = must_fail("an unknown name", Kind::NoSuchMechanism, crate::REGISTER.by_name("no-such"));
    assert!(schemes.iter().all(|scheme| text.contains(**scheme)), "the error must name all schemes: {text}");
}

#[test]
fn every_row_is_complete() {
    each_mechanism(|descriptor| {
        must_be_line("the summary", descriptor.summary);
        let mut columns = BTreeSet::new();
        for column in descriptor.columns {
            must_be_line(&format!("the column {}", column.key), column.summary);
            assert!(is_kebab(column.key), "the column {:?} is not kebab-case", column.key);
            assert!(columns.insert(column.key), "two columns are called {:?}", column.key);
            let known = ["b", "i", "u", "x", "t", "d", "s", "ay", "as", "au", "ai", "aa{sv}", "a{sv}"];
            assert!(known.contains(&column.kind), "the column {} has the type {:?}", column.key, column.kind);
        }
        for (verb, table) in tables(descriptor) {
            let mut keys = BTreeSet::new();
            for parameter in table {
                let key = parameter.key;
                must_be_line(&format!("the {verb} parameter {key}"), parameter.summary);
                assert!(is_kebab(key), "the {verb} parameter {key:?} is not kebab-case");
                assert!(keys.insert(key), "two {verb} parameters are called {key:?}");
                assert!(
                    !parameter.required || parameter.default.is_empty(),
                    "the {verb} parameter {key:?} is required and has a default"
                );
                if !parameter.default.is_empty() {
                    let alone: &'static [Parameter] = Box::leak(Box::new([*parameter]));
                    let address = Address::new("x").with(key, parameter.default);
                    let checked = Parameters::check(alone, &[], &address, &Dict::new());
                    assert!(checked.is_ok(), "the default of {key:?} is not of its type: {checked:?}");
                }
            }
        }
    });
}

#[test]
fn the_reference_says_what_fails_and_what_is_missing() {
    each_mechanism(|descriptor| {
        let reference = descriptor.reference;
        assert!(reference.contains("| error | when |"), "the reference has no table of errors");
        assert!(reference.contains("Not offered:"), "the reference does not say what is not offered");
        assert!(reference.contains("because"), "the reference does not say why something is not offered");
        // The odd pieces between backquotes of each first cell.
        let cells = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        for name in cells.flat_map(|cell| cell.split('`').step_by(2)) {
            let known = [
                "InvalidArgument",
                "InvalidAddress",
                "Exists",
                "NotFound",
                "PermissionDenied",
                "NotSupported",
                "Busy",
                "Timeout",
                "LimitExceeded",
                "TooLarge",
                "Closed",
                "Gone",
                "Overflow",
                "Unavailable",
                "Cancelled",
            ];
            assert!(
                known.contains(&name) || name.starts_with("Errno.E"),
                "the table of errors names {name:?}, which is no error of the contract"
            );
        }
    });
}

#[test]
fn every_shape_has_a_fixture() {
    each_mechanism(|descriptor| {
        if (descriptor.available)().is_err() {
            return;
        }
        let mut scratch = Scratch::new();
        let made = fixtures::endpoints(descriptor.name, &mut scratch);
        for shape in descriptor.shapes {
            assert!(
                made.iter().any(|made| made.shape == *shape),
                "{}",
                fixtures::missing(descriptor.name, *shape)
            );
        }
    });
}

#[test]
fn endpoints_are_what_they_say() {
    each_mechanism(|descriptor| {
        let mut scratch = Scratch::new();
        for made in fixtures::endpoints(descriptor.name, &mut scratch) {
            let Made { shape: made_for, variant, endpoint, found, .. } = &made;
            let (made_for, found) = (*made_for, *found);
            let shapes = endpoint.shapes();
            let has = |shape| shapes.contains(&shape);
            assert!(has(made_for), "{variant}: made for {}, but has {shapes:?}", made_for.name());
            for shape in &shapes {
                assert!(descriptor.shapes.contains(shape), "{variant}: {shape:?} is not declared");
            }
            for (shape, accessor) in [
                (Shape::Stream, endpoint.stream().is_some()),
                (Shape::Listener, endpoint.listener().is_some()),
                (Shape::Messages, endpoint.messages().is_some()),
                (Shape::Memory, endpoint.memory().is_some()),
                (Shape::Semaphore, endpoint.semaphore().is_some()),
                (Shape::Futex, endpoint.futex().is_some()),
                (Shape::Watch, endpoint.events().is_some()),
                (Shape::Process, endpoint.process().is_some()),
                (Shape::Mailbox, endpoint.mailbox().is_some()),
                (Shape::Filesystem, endpoint.filesystem().is_some()),
            ] {
                assert_eq!(
                    accessor,
                    has(shape),
                    "{variant}: the accessor of {shape:?} and shapes() disagree"
                );
            }
            assert!(!endpoint.inspect().expect("inspect").is_empty(), "{variant}: inspect says nothing");
            let text = endpoint.address().to_string();
            let address = Address::parse(&text).expect("the endpoint's own address");
            assert_eq!(address.to_string(), text, "{variant}: the address is not canonical");
            assert!(descriptor.schemes.contains(&&*address.scheme), "{variant}: the scheme of {text}");
            if found {
                let other = suite::attach(&text);
                let other =
                    other.unwrap_or_else(|error| panic!("{variant}: Attach does not take {text}: {error}"));
                assert!(!other.shapes().is_empty());
            }
        }
    });
}

#[test]
fn lists_have_the_declared_columns() {
    each_mechanism(|descriptor| {
        let mut scratch = Scratch::new();
        // So that there is something to list.
        let _made = fixtures::endpoints(descriptor.name, &mut scratch);
        if (descriptor.available)().is_err() {
            return;
        }
        let rows = descriptor.objects().unwrap_or_else(|error| {
            // What lists the objects may be missing where what makes them is not.
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
            eprintln!("SKIPPED: {}: {error}", descriptor.name);
            Vec::new()
        });
        for row in rows {
            for (key, value) in &row {
                let column = descriptor.columns.iter().find(|column| column.key == key);
                let column = column.unwrap_or_else(|| panic!("the column {key:?} is not declared: {row:?}"));
                let found = value.signature();
                // A name that is not UTF-8 comes as bytes.
                let as_bytes = column.kind == "s" && found == "ay";
                assert!(as_bytes || found == column.kind, "{key}: {found} instead of {}", column.kind);
            }
            if let Some(Value::Text(address)) = row.get("address") {
                let address = Address::parse(address).expect("an address of a row");
                let checked = Parameters::check(descriptor.attach_parameters, &[], &address, &Dict::new());
                assert!(checked.is_ok(), "Attach does not take the address {address} of a row: {checked:?}");
            }
        }
        for (key, _) in (descriptor.limits)() {
            assert!(key.len() > 2 && key.trim() == key, "a limit is called {key:?}");
        }
    });
}

#[test]
fn wrong_parameters_are_named() {
    each_mechanism(|descriptor| {
        for (verb, table) in tables(descriptor) {
            let check = |address: &Address, options: &Dict| Parameters::check(table, &[], address, options);
            let refused = |what: &str, key: &str, address: &Address, options: &Dict| {
                let text =
                    must_fail(&format!("{verb} with {what}"), Kind::InvalidArgument, check(address, options));
                assert!(text.contains(key), "{verb} with {what}: the error does not name {key:?}: {text}");
            };
            let scheme = descriptor.schemes[0];
            let plain = || Address::new(scheme);
            refused("an unknown key", "no-such-key", &plain().with("no-such-key", "1"), &Dict::new());
            let mut options = Dict::new();
            options.insert("no-such-key".into(), true.into());
            refused("an unknown option", "no-such-key", &plain(), &options);
            for parameter in table {
                let key = parameter.key;
                let mut options = Dict::new();
                options.insert(key.into(), Value::F64(0.5));
                refused("an option of the wrong type", key, &plain(), &options);
                options.insert(key.into(), sample(parameter));
                if let Some(text) = sample_text(parameter) {
                    refused("a key given twice", key, &plain().with(key, text), &options);
                }
                if parameter.kind != Type::Bool {
                    refused("a key without value", key, &plain().flag(key), &Dict::new());
                }
                match parameter.kind {
                    Type::Text => {}
                    Type::Path => refused("a NUL byte", key, &plain().with(key, b"/a\0b"), &Dict::new()),
                    _ => refused("a value that is none", key, &plain().with(key, "~"), &Dict::new()),
                }
                let beyond = match parameter.kind {
                    Type::U32 { max, .. } => Some(i128::from(max) + 1),
                    Type::I32 { max, .. } => Some(i128::from(max) + 1),
                    Type::Key { .. } => Some(i128::from(u32::MAX) + 1),
                    Type::Numbers { max, .. } => Some(i128::from(max) + 1),
                    Type::U64 { max, .. } | Type::Size { max, .. } => Some(i128::from(max) + 1),
                    _ => None,
                };
                if let Some(beyond) = beyond {
                    refused("a number too large", key, &plain().with(key, beyond.to_string()), &Dict::new());
                }
                if parameter.required {
                    let others = table.iter().filter(|other| other.required && other.key != key);
                    let options = others.map(|other| (other.key.to_owned(), sample(other))).collect();
                    refused("a key missing", key, &plain(), &options);
                }
            }
        }
    });
}

/// A value of the parameter's type.
fn sample(parameter: &Parameter) -> Value {
    match parameter.kind {
        Type::Bool => true.into(),
        Type::U32 { min, .. } => min.into(),
        Type::I32 { min, .. } => min.into(),
        Type::U64 { min, .. } | Type::Size { min, .. } => min.into(),
        Type::Mode => 0o600u32.into(),
        Type::Text => "x".into(),
        Type::Word(words) => words[0].into(),
        Type::Words(words) => vec![words[0].to_owned()].into(),
        Type::Names => vec!["x".to_owned(), "1".to_owned()].into(),
        Type::Signals => vec!["SIGRTMIN+3".to_owned()].into(),
        Type::Key { .. } => 1u32.into(),
        Type::Numbers { min, .. } => vec![min, min].into(),
        Type::Path => "/x".into(),
        Type::Dict => Dict::new().into(),
        Type::Objects => vec!["/x".to_owned()].into(),
    }
}

/// The same as it is written in an address.
fn sample_text(parameter: &Parameter) -> Option<String> {
    Some(match sample(parameter) {
        Value::Bool(value) => value.to_string(),
        Value::U32(mode) if parameter.kind == Type::Mode => format!("{mode:o}"),
        Value::U32(number) => number.to_string(),
        Value::I32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::Text(text) => text,
        Value::Texts(texts) => texts.join("+"),
        Value::I32s(numbers) => numbers.iter().map(i32::to_string).collect::<Vec<_>>().join("+"),
        _ => return None,
    })
}

#[test]
fn foreign_fds_are_given_back_untouched() {
    each_mechanism(|descriptor| {
        use rustix::{event::EventfdFlags, fs::OFlags, time::TimerfdClockId};
        let eventfd = rustix::event::eventfd(7, EventfdFlags::CLOEXEC).expect("an eventfd");
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, rustix::time::TimerfdFlags::CLOEXEC);
        let directory = rustix::fs::open("/", OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        let foreign: [(&str, OwnedFd); 3] = [
            ("an eventfd", eventfd),
            ("a timerfd", timer.expect("a timerfd")),
            ("a directory", directory.expect("the root directory")),
        ];
        for (what, fd) in foreign {
            let number = fd.as_raw_fd();
            let flags =
                |fd: &OwnedFd| (rustix::fs::fcntl_getfl(fd).unwrap(), rustix::io::fcntl_getfd(fd).unwrap());
            let before = flags(&fd);
            let fd = match (descriptor.adopt)(fd) {
                Ok(Adoption::Refused(fd)) => fd,
                Ok(Adoption::Taken(_)) => panic!("{what} was taken"),
                Err(error) => panic!("{what} must be given back, not fail: {error}"),
            };
            assert_eq!(fd.as_raw_fd(), number, "{what}: another fd came back");
            assert_eq!(flags(&fd), before, "{what}: its flags were changed");
            if what == "an eventfd" {
                let mut count = [0; 8];
                rustix::io::read(&fd, &mut count).expect("reading the eventfd");
                assert_eq!(u64::from_ne_bytes(count), 7, "the eventfd was read");
            }
        }
    });
}

fn names(mechanism: &str) -> &'static Names {
    let found = NAMES.iter().find(|(name, _)| *name == mechanism);
    &found
        .unwrap_or_else(|| {
            panic!("add a row for {mechanism} to NAMES in tests/conformance/fixtures/names.rs")
        })
        .1
}

#[test]
fn create_never_opens_and_attach_never_creates() {
    each_mechanism(|descriptor| {
        let mut scratch = Scratch::new();
        match names(descriptor.name) {
            Names::Named { fresh, .. } => {
                let (create, attach) = fresh(&mut scratch);
                must_fail("attaching what is not there", Kind::NotFound, suite::attach(&attach));
                let endpoint = created(&create);
                must_fail("creating what exists", Kind::Exists, suite::create(&create));
                drop(attached(&attach));
                endpoint.remove().expect("removing the name");
                must_fail("attaching what was removed", Kind::NotFound, suite::attach(&attach));
                let again = endpoint.remove().expect_err("removing twice must fail");
                assert!(matches!(again.kind, Kind::Gone | Kind::NotFound), "{:?}: {again}", again.kind);
                drop(created(&create));
            }
            Names::Chosen { create, missing } => {
                must_fail("attaching what is not there", Kind::NotFound, suite::attach(missing));
                let endpoint = created(create);
                let chosen = endpoint.address().to_string();
                must_fail("creating what exists", Kind::Exists, suite::create(&chosen));
                must_fail("removing a port", Kind::NotSupported, endpoint.remove());
            }
            Names::Anonymous => {}
        }
    });
}

/// The engine shows an fd to the mechanisms in the register's order; the first that takes it has it.
#[test]
fn what_open_hands_out_is_adopted_by_its_own() {
    each_mechanism(|descriptor| {
        let mut scratch = Scratch::new();
        for made in &fixtures::endpoints(descriptor.name, &mut scratch) {
            let Some(options) = made.open else { continue };
            let fd = suite::open(descriptor.name, &*made.endpoint, options).expect("Open");
            let taker = crate::REGISTER.iter().find_map(|candidate| {
                let given = rustix::io::fcntl_dupfd_cloexec(&fd, 3).expect("a duplicate");
                match (candidate.adopt)(given).expect("adopting") {
                    Adoption::Taken(endpoint) => Some((candidate.name, endpoint)),
                    Adoption::Refused(_) => None,
                }
            });
            let (name, endpoint) = taker.unwrap_or_else(|| panic!("{}: nobody takes it", made.variant));
            assert_eq!(name, descriptor.name, "{}: taken by another mechanism", made.variant);
            assert!(endpoint.shapes().contains(&made.shape), "{}: {:?}", made.variant, endpoint.shapes());
            assert!(!endpoint.inspect().expect("inspect").is_empty());
        }
    });
}

#[test]
fn modes_are_exact_whatever_the_umask() {
    each_mechanism(|descriptor| {
        let Names::Named { fresh, mode: true } = names(descriptor.name) else { return };
        let mut scratch = Scratch::new();
        let (create, _) = fresh(&mut scratch);
        let endpoint = created(&format!("{create},mode=0626"));
        let mode = |endpoint: &dyn Endpoint| endpoint.inspect().expect("inspect").remove("mode");
        assert!(matches!(mode(&*endpoint), Some(Value::U32(0o626))), "mode: {:?}", mode(&*endpoint));
    });
}

#[test]
fn nothing_is_inherited_by_children() {
    let mut scratch = Scratch::new();
    let mut make =
        || crate::rows().flat_map(|descriptor| fixtures::endpoints(descriptor.name, &mut scratch)).collect();
    let _made: Vec<Made> = crate::within(&mut make);
    // What this process got from its own parent is in the parent too.
    let links = |process: &str| -> Option<Vec<(String, std::path::PathBuf)>> {
        let entries = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
        let link = |entry: std::fs::DirEntry| {
            Some((entry.file_name().into_string().ok()?, std::fs::read_link(entry.path()).ok()?))
        };
        Some(entries.filter_map(link).collect())
    };
    let Some(inherited) = links(&std::os::unix::process::parent_id().to_string()) else {
        eprintln!("SKIPPED: the kernel does not let this user see what the parent process has open");
        return;
    };
    for (fd, link) in links("self").expect("the fds of this process") {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0").trim();
        let flags = i32::from_str_radix(flags, 8).unwrap_or(0);
        let ours =
            fd.parse::<u32>().is_ok_and(|fd| fd > 2) && !inherited.iter().any(|(_, known)| *known == link);
        assert!(
            !ours || flags == 0 || flags & libc::O_CLOEXEC != 0,
            "fd {fd} ({link:?}) has no close-on-exec"
        );
    }
}
