//! The page of relays: what becomes of each pair of mechanisms, asked of the function by which the service decides.

use std::{collections::BTreeMap, fmt::Write};

use ipc_bus::MECHANISMS;
use ipc_engine::relay::kinds::{Pair, Target, pair};
use ipc_kernel::shape::Shape;

/// A mechanism with a shape, as it stands in the table.
struct Kind {
    name: String,
    shape: Shape,
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for mechanism in MECHANISMS.iter() {
        for shape in mechanism.shapes {
            let name = match mechanism.shapes {
                [_] => mechanism.name.to_owned(),
                _ => format!("{} {}", mechanism.name, shape.name()),
            };
            kinds.push(Kind { name, shape: *shape });
        }
    }
    kinds
}

/// What stands in a cell.
fn symbol(pair: Pair) -> &'static str {
    match pair {
        Pair::Refused(_) => "–",
        Pair::Works { framing: true, signal: true, .. } => "fs",
        Pair::Works { framing: true, .. } => "f",
        Pair::Works { signal: true, .. } => "s",
        Pair::Works { into: Target::Bytes, .. } => "=",
        Pair::Works { .. } => "m",
    }
}

pub fn page() -> String {
    let mut text = String::from(ABOVE);
    let kinds = kinds();
    // Writing to a String cannot fail, here and below.
    let _infallible = writeln!(
        text,
        "| source \\ sink | {} |\n| --- |{}",
        kinds.iter().map(|kind| kind.name.as_str()).collect::<Vec<_>>().join(" | "),
        " :-: |".repeat(kinds.len())
    );
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for from in &kinds {
        let mut cells = Vec::new();
        for into in &kinds {
            let pair = pair(from.shape, into.shape, false);
            if let Pair::Refused(instead) = pair {
                *refused.entry(instead).or_default() += 1;
            }
            *counts.entry(symbol(pair)).or_default() += 1;
            cells.push(symbol(pair));
        }
        let _infallible = writeln!(text, "| {} | {} |", from.name, cells.join(" | "));
    }
    let refusals: usize = refused.values().sum();
    let all = kinds.len() * kinds.len();
    let _infallible = write!(
        text,
        "\n{} of {all} pairs work, {refusals} are refused.\n\n| cell | pairs | what it means |\n| --- | --- | --- |\n",
        all - refusals
    );
    for (cell, meaning) in LEGEND {
        // What no pair needs is not explained.
        if let Some(count) = counts.get(cell) {
            let _infallible = writeln!(text, "| {cell} | {count} | {meaning} |");
        }
    }
    text.push_str("\n| refused because | pairs |\n| --- | --- |\n");
    for (instead, count) in refused {
        let _infallible = writeln!(text, "| {instead} | {count} |");
    }
    text.push_str(BELOW);
    text
}

const LEGEND: &[(&str, &str)] = &[
    ("=", "bytes as they come"),
    ("m", "message by message"),
    ("f", "needs the option `framing`: where messages end in the bytes"),
    ("s", "needs the option `attributes` with the signal to send, such as `{\"signal\": \"SIGUSR1\"}`"),
    ("fs", "needs both"),
    ("–", "refused"),
];

const ABOVE: &str = "\
# Relays

`Relay(source, sink, options)` moves everything that comes out of one endpoint into another, until the source ends,
something fails, or `Stop`. The options are in [options.md](options.md). What becomes of a pair follows from the
shapes of its ends:

";

const BELOW: &str = r#"
## What a source gives

| source | each message |
| --- | --- |
| messages | as it was received, with its attributes |
| semaphore | a unit that was taken: the text `1`, and `count`; a unit that the sink did not take is posted again |
| futex | a wake-up, or a change of the word since the relay was started: the value as text, and as `value`. Wake-ups that leave the value as it is are only seen while the relay waits, as for any waiter (futex(2)) |
| watch, process, mailbox, file system | an event: a JSON object with the names of the signal's arguments and `event` (the signal's name), `seq`, `at` (microseconds since the epoch); the same as attributes. Bytes that are no UTF-8 are base64 under the name with `-base64` |
| memory with memory=snapshot | the whole content, at the start and when a look every interval-ms finds it changed; what changes and changes back in between is not seen |

Events are those that the endpoint keeps, from the oldest on, or after the number `since`; several relays can have them
all. What is not kept any more is one message, `{"event":"Overflow","lost":N,"seq":…}`: no gap is silent. A process
ends the stream with `Exited`.

## What a sink does with a message

| sink | each message |
| --- | --- |
| messages | is sent |
| semaphore | posts one unit, whatever is in it, or as many as the attribute `count` says |
| futex | sets the word to the number in its text or its attribute `value`, if it has one, and wakes all waiters |
| process | is a signal: `SIGUSR1`, or `SIGUSR1 5` with a value; or the attributes `signal` (or `number`) and `value`. With the signal in the option `attributes`, the text is the value |
| memory with memory=snapshot | replaces the whole content, with zeros behind it; a reader may see a part of each |

Units and events are no text to these sinks: only their attributes count. A semaphore at its highest value, a queue, a
socket and a process with as many signals as may wait are waited for; meanwhile nothing more is taken. Memory with
memory=snapshot has at most half of the limit relay-buffer.

## Attributes

Between two queues of one kind the priority or type stays with a message, between two buses where a signal came from,
between two semaphores `count`, from a mailbox to a process `number` and `value`, and `value` from a futex or a mailbox to
a futex. All others are dropped. From framing=json all attributes are meant: one that the sink does not know ends the
relay, and the error names it. The option `attributes` is put above both, and checked when the relay is made.

`filter` chooses by the attributes as they come from the source. What it does not let through is taken, dropped, and
counted as `filtered` in `Inspect`.

## What does not fit

A message that is too large for the sink stays at the source and ends the relay. Sockets tell the length, and it is not
even taken; queues give it out, and it is kept for the next `Receive`. What was taken and is not in the sink when a
relay ends goes back: messages to the front, a unit to the semaphore, a wake-up to the next waiter. Events were never
taken.

So it is with a message that cannot be converted, and one with an attribute that the sink refuses. With `on-error=skip` such
messages are taken and dropped, and the relay goes on: `Inspect` has their number as `skipped`, and why the last one was
dropped as `skipped-reason`. In a stream the whole frame is dropped, a line up to its newline; whoever stops the relay in
between finds the rest of it at the source, and `Finished` says so. An end that is gone or fails, a stream that ends within a
message, and a peer that has left still end the relay: they are about no message. There is nothing to skip between two
streams.

## How much, and for how long

| option | the relay ends |
| --- | --- |
| `count` | when so many messages are in the sink. What `filter` drops does not count |
| `bytes` | when so many bytes are in the sink; the next byte is still in the source, in the kernel |
| `idle-ms` | when nothing has arrived in the sink for so long: because nothing came, because the sink took nothing, or because an end was not there. A pause does not count |

That is no error: `Finished` says `count=3 is reached`, the state is `finished`, and both endpoints stay as they are. The end
of stream is not passed on, as the source is not at its end; another relay can go on there.
Of a stream with `framing` a part was read ahead to find where messages end: what was not moved is kept at the source's
endpoint for whoever reads or relays from it there. Other programs with the same pipe or socket do not see that part.

## How fast

`rate-bytes` and `rate-messages` are the most that goes in a second, as a token bucket (tc-tbf(8)) has it: after a pause what
the rate gives in 100 ms, and at least one, goes at once; from then on no window is faster than that. What is too fast is not
taken from the source, so a pipe fills and its writer waits. Bytes come in portions of 20 ms. A message goes as a whole,
however large it is, and those behind it wait for what it was too much. With both=true each way has the rate for itself.
Both options together are both kept to. splice(2) goes on moving the bytes.

## One source, several sinks

With `tee` everything goes into the sink and into further ones, as by tee(1): bytes into streams and memory, messages into queues
and other sinks of messages, and messages with `framing` into streams. All sinks take bytes, or all messages. What a sink that is
full does not take, holds up the others: a portion of bytes (at most relay-buffer, or 64 KiB) or a message leaves the source when
all have it, and the next one is taken then. `Bytes` and `Messages` count what all have; so do `bytes`, `count`, the rates and
`idle-ms`. Where the source and all sinks are pipes or FIFOs, the bytes are not copied (`splice and tee` in `Inspect`).

When one sink fails, has no reader or is closed, the relay ends and names it. What not all have is kept at the source, and
`Finished` says who has it already: `of the bytes that were kept at the source 4096 are in fifo:path=/x`. The end of stream is
passed on to all. There is no both=true, no fds=true between streams, and no sink that is connected again.

## A peer that leaves and comes back

With `reconnect=true` a relay does not end when the peer of a socket has left. It connects to the same address again, with the
options that Attach was given, and looks a host up anew; meanwhile its state is `reconnecting`. It is for sockets that the
service has connected: `Attach` with `unix:` (all types) and `tcp:`, at one end or both. Attach itself has to succeed.

| what | becomes of it |
| --- | --- |
| end of stream, a reset or a refusal from a source | another connection; the sink sees one stream, and no half-close in between |
| bytes and messages that the relay has taken and the sink has not | go into the next connection |
| what the former socket of a sink had taken, and its peer not | is lost with that socket; it counts as moved. TCP shows that a peer has left by what is sent to it, so what was sent before that is lost, too |
| a record of which a part was written (`framing`) | is written again from its beginning. A stream without framing goes on with the next byte |
| what the former socket had received and nobody had read | comes first, then what the next one receives |
| a record of the source that its connection did not complete | is dropped, and its bytes are counted as `cut` in `Inspect`. A last line without a newline is a line |
| a sink of messages | is known to be gone by the next message, which goes to the next peer |
| a half-close by the peer of a source | is the end of its connection. With both=true the other way goes on with the next one, too |
| both=true, when the other end is at its end | is passed on, and when the peer has answered with its own, the relay ends |

The first attempt is made `retry-ms` later, each further one after twice the time, up to `retry-max-ms`; each pause is shortened
by chance, by a half at most. Once data has moved over a connection, or it has lasted for retry-max-ms, the next pause is the
first again. `retries` failed attempts in a row end the relay. Whatever the error, an attempt is made again: a server that
restarts has no path, the wrong mode or nobody behind it for a moment. `Inspect` has `reconnects`, how often it has connected
again; `reconnect-error`, why it had to or could not; and `reconnect-at`, when it will try next.

The endpoint is the same with another socket: `Read`, `Write`, `Open` and other relays have the new one from then on, while who
got a file descriptor before holds the former one. Several relays at one endpoint share the next connection; each of them needs
the option.

## Several relays into one sink

Any number of relays may write into one sink of messages, and into one stream if all of them have `framing`: they take turns, so
each message stays whole. Messages of one source keep their order; between those of two sources there is none but that in
which they came in. A relay that was paused within a message makes the others wait, and one that is stopped there says so in
`Finished`, as what follows comes behind a part of a message. The end of stream is passed on when the last of them ends
with it. Two relays of bytes without framing would mix them, and are refused: lead their lines through a queue or a packet pipe.
Messages of one source may go to several relays, too, each to one of them; of a stream there is one reader.
"#;
