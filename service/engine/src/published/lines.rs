//! Events as lines of a file: the time in seconds since the epoch, and what happened, in words that grep(1) and
//! cut(1) take apart. What a name has of blanks, backslashes and control characters is written as `\040`, as in
//! mountinfo.

use ipc_kernel::{fuse::file::File, netlink, shape::Event, signal::names};

use crate::events::{Happening, Numbered};

/// Appends events that came after `seen`, and how many were lost; the number of the last event that is there now.
pub(crate) fn append<E>(
    file: &File,
    seen: u64,
    (events, lost): (Vec<Numbered<E>>, u64),
    words: impl Fn(&E) -> Option<String>,
) -> u64 {
    let mut text = String::new();
    if lost > 0 {
        text.push_str(&format!("# {lost} events were lost\n"));
    }
    for event in &events {
        if let Some(words) = words(&event.happening) {
            text.push_str(&format!("{}.{:06} {words}\n", event.at / 1_000_000, event.at % 1_000_000));
        }
    }
    if !text.is_empty() {
        file.append(text.as_bytes());
    }
    events.last().map_or(seen + lost, |event| event.seq)
}

/// None: nothing that a published endpoint's events are.
pub(crate) fn words(happening: &Happening) -> Option<String> {
    Some(match happening {
        Happening::Changed(Event { names, path, from, note }) => {
            let mut words = format!("{} {}", names.join("|"), escaped(path));
            for (key, value) in [("from", from.as_slice()), ("note", note.as_bytes())] {
                if !value.is_empty() {
                    words.push_str(&format!(" {key}={}", escaped(value)));
                }
            }
            words
        }
        Happening::Overflow => "OVERFLOW".to_owned(),
        Happening::Exited(exit) => {
            format!("EXITED code={} signal={} core={}", exit.code, exit.signal, exit.core)
        }
        Happening::Signalled(signal) => format!(
            "{} pid={} uid={} value={} code={}",
            names::name(signal.number),
            signal.pid,
            signal.uid,
            signal.value,
            signal.code
        ),
        Happening::Received { .. }
        | Happening::Accepted(_)
        | Happening::Ready
        | Happening::Woken(_)
        | Happening::RangeChanged { .. }
        | Happening::Read { .. }
        | Happening::Written { .. } => return None,
    })
}

/// What the kernel tells everybody: the name of the signal that tells it, and its arguments but the details. `-` is one
/// that is empty.
pub(crate) fn network_words(event: &netlink::Event) -> String {
    use netlink::Event as Told;
    let number = |number: &dyn ToString| number.to_string();
    let route = |it: &netlink::Route| vec![it.destination.clone(), it.gateway.clone(), it.interface.clone()];
    let address = |it: &netlink::Address| {
        vec![number(&it.index), it.interface.clone(), it.address.clone(), number(&it.prefix)]
    };
    let neighbour = |it: &netlink::Neighbour| {
        vec![number(&it.index), it.interface.clone(), it.address.clone(), it.state.clone()]
    };
    let (name, arguments) = match event {
        Told::LinkChanged(it) => ("LinkChanged", vec![number(&it.index), it.name.clone(), it.state.clone()]),
        Told::LinkRemoved(it) => ("LinkRemoved", vec![number(&it.index), it.name.clone()]),
        Told::AddressAdded(it) => ("AddressAdded", address(it)),
        Told::AddressRemoved(it) => ("AddressRemoved", address(it)),
        Told::RouteAdded(it) => ("RouteAdded", route(it)),
        Told::RouteRemoved(it) => ("RouteRemoved", route(it)),
        Told::NeighbourChanged(it) => ("NeighbourChanged", neighbour(it)),
        Told::NeighbourRemoved(it) => ("NeighbourRemoved", neighbour(it)),
        Told::RuleAdded(it) => ("RuleAdded", vec![number(&it.priority), number(&it.table)]),
        Told::RuleRemoved(it) => ("RuleRemoved", vec![number(&it.priority), number(&it.table)]),
        Told::Device(it) => (
            "DeviceEvent",
            vec![it.action.clone(), it.devpath.clone(), it.subsystem.clone(), it.source.to_owned()],
        ),
        Told::Process(it) => ("ProcessEvent", vec![it.event.to_owned(), number(&it.pid), number(&it.tid)]),
        Told::Generic(it) => ("GenericEvent", vec![it.family.clone(), it.group.clone(), it.command.clone()]),
        Told::Overflow(source) => ("Overflow", vec![source.clone()]),
    };
    let word = |argument: &String| match argument.is_empty() {
        true => "-".to_owned(),
        false => escaped(argument.as_bytes()),
    };
    std::iter::once(name.to_owned()).chain(arguments.iter().map(word)).collect::<Vec<_>>().join(" ")
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() || matches!(c, ' ' | '\\') {
                true => c
                    .encode_utf8(&mut [0; 4])
                    .bytes()
                    .for_each(|byte| text.push_str(&format!("\\{byte:03o}"))),
                false => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\{byte:03o}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_kernel::shape::Exit;

    #[test]
    fn a_happening_is_a_line() {
        let event = Event {
            names: vec!["MOVED_TO", "ISDIR"],
            path: b"/a b\\\n\xff\xc3\xbc".to_vec(),
            from: b"/c".to_vec(),
            note: String::new(),
        };
        let words_of = |happening| words(&happening).expect("an event");
        assert_eq!(words_of(Happening::Changed(event)), "MOVED_TO|ISDIR /a\\040b\\134\\012\\377ü from=/c");
        let exit = Exit { code: 3, signal: 0, core: false };
        assert_eq!(words_of(Happening::Exited(exit)), "EXITED code=3 signal=0 core=false");
        assert_eq!(words(&Happening::Ready), None);
    }

    #[test]
    fn what_the_kernel_tells_is_a_line() {
        let link = netlink::Link {
            index: 7,
            name: "a b".to_owned(),
            state: "up".to_owned(),
            details: Default::default(),
        };
        let line = network_words(&netlink::Event::LinkChanged(link));
        assert_eq!(line, "LinkChanged 7 a\\040b up");
        let route = netlink::Route {
            destination: "default".to_owned(),
            gateway: String::new(),
            interface: "eth0".to_owned(),
            details: Default::default(),
        };
        let line = network_words(&netlink::Event::RouteRemoved(route));
        assert_eq!(line, "RouteRemoved default - eth0");
    }
}
