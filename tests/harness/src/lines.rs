//! Text that arrives over time (a program's output, notifications), kept whole, and waited for line by line.
//!
//! A thread per source collects; any number of threads look and wait. Waiting always starts from the first line,
//! so that an event that came before the question is found too: no race between asking and happening.

use std::fmt;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools::patience;

/// What a source has said until now. Clones look at the same text.
#[derive(Clone, Default)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    collected: Mutex<Collected>,
    changed: Condvar,
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

/// What was waited for did not come.
#[derive(Debug)]
pub struct Missing {
    /// Whether the source has ended (and so it never will come), or patience has.
    pub ended: bool,
    /// All that came instead.
    pub seen: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.ended { "the output ended" } else { "patience ended" };
        write!(f, "{why} before the wanted line came; what came:\n{}", self.seen)
    }
}

impl std::error::Error for Missing {}

impl Lines {
    /// Collects from a pipe until its end, on a thread of its own.
    pub(crate) fn collect(mut source: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let collecting = lines.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => collecting.push(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            collecting.end();
        });
        lines
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.shared.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.shared.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every byte until now.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Everything until now, bytes that are not UTF-8 replaced.
    pub fn text(&self) -> String {
        self.lock().text()
    }

    /// Every finished line until now.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines()
    }

    /// Whether the source is at its end.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// The first line, past or to come, that is wanted.
    pub fn wait_for(&self, mut wanted: impl FnMut(&str) -> bool) -> Result<String, Missing> {
        self.wait_until(|lines| lines.iter().find(|line| wanted(line)).cloned())
    }

    /// Asks `judge` about all lines whenever some came, until it answers: for sequences and counts.
    pub fn wait_until<T>(&self, judge: impl FnMut(&[String]) -> Option<T>) -> Result<T, Missing> {
        self.wait_within(patience(), judge)
    }

    /// The same with a bound of its own, for tests that expect nothing to come.
    pub fn wait_within<T>(
        &self,
        bound: Duration,
        mut judge: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T, Missing> {
        let deadline = Instant::now() + bound;
        let mut collected = self.lock();
        loop {
            if let Some(answer) = judge(&collected.lines()) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if collected.ended || left.is_zero() {
                return Err(Missing { ended: collected.ended, seen: collected.text() });
            }
            let waited = self.shared.changed.wait_timeout(collected, left);
            collected = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the source; false when patience ends before.
    pub fn wait_end(&self) -> bool {
        matches!(self.wait_until(|_| None::<()>), Err(Missing { ended: true, .. }))
    }
}

impl Collected {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The last line counts without its newline only when nothing can follow.
    fn lines(&self) -> Vec<String> {
        let finished = match self.bytes.iter().rposition(|&byte| byte == b'\n') {
            _ if self.ended => self.bytes.len(),
            Some(newline) => newline + 1,
            None => return Vec::new(),
        };
        String::from_utf8_lossy(&self.bytes[..finished]).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_lines_are_judged() {
        let lines = Lines::default();
        lines.push(b"one\ntw");
        assert_eq!(lines.lines(), ["one"]);
        lines.push(b"o\n\nthree");
        assert_eq!(lines.lines(), ["one", "two", ""]);
        lines.end();
        assert_eq!(lines.lines(), ["one", "two", "", "three"]);
    }

    #[test]
    fn the_end_of_the_source_ends_the_wait() {
        let lines = Lines::collect(&b"only this\n"[..]);
        assert_eq!(lines.wait_for(|line| line.starts_with("only")).expect("it came"), "only this");
        let missing = lines.wait_for(|line| line == "else").expect_err("it never came");
        assert!(missing.ended && missing.seen == "only this\n", "{missing}");
    }

    #[test]
    fn patience_ends_the_wait() {
        let lines = Lines::default();
        let missing = lines.wait_within(Duration::from_millis(1), |_| None::<()>).expect_err("nothing came");
        assert!(!missing.ended);
    }
}
