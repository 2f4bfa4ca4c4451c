//! Events as lines of a file: the time in seconds since the epoch, and what happened, in words that grep(1) and
//! cut(1) take apart. What a name has of blanks, backslashes and control characters is written as `\040`, as in
//! mountinfo.

use ipc_kernel::{fuse::file::File, shape::Event, signal::names};

use crate::{
    endpoint::Endpoint,
    events::{Happening, Numbered},
};

/// Appends what came after `seen`; the number of the last event that is there now.
pub(crate) fn append(endpoint: &Endpoint, file: &File, seen: u64) -> u64 {
    let (events, lost) = endpoint.events.since(seen);
    let mut text = String::new();
    if lost > 0 {
        text.push_str(&format!("# {lost} events were lost\n"));
    }
    for event in &events {
        if let Some(words) = words(&event.happening) {
            text.push_str(&format!("{} {words}\n", time(event)));
        }
    }
    if !text.is_empty() {
        file.append(text.as_bytes());
    }
    events.last().map_or(seen + lost, |event| event.seq)
}

fn time(event: &Numbered) -> String {
    format!("{}.{:06}", event.at / 1_000_000, event.at % 1_000_000)
}

/// None: nothing that a published endpoint's events are.
fn words(happening: &Happening) -> Option<String> {
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
}
