//! Messages that a sink can never take: they end the relay, or are dropped and told.

use std::sync::{Mutex, PoisonError};

use ipc_kernel::{Dict, Error, Kind, Result};

/// What was dropped in one direction.
#[derive(Debug, Default)]
pub(super) struct Skips {
    /// on-error=skip.
    pub wanted: bool,
    dropped: Mutex<Dropped>,
}

#[derive(Debug, Default)]
struct Dropped {
    count: u64,
    /// Why the last one was.
    why: String,
}

impl Skips {
    pub fn new(wanted: bool) -> Self {
        Self { wanted, dropped: Mutex::default() }
    }

    /// What became of a message. Ok: it is to be dropped, and is counted. Whatever says that an end does not work, and
    /// not just with this message, stays an error.
    pub fn refuse(&self, error: Error) -> Result<()> {
        self.skip(error).map_err(|error| match of_the_message(error.kind) {
            true => error.help("it was kept at the source"),
            false => error,
        })
    }

    /// The same, where somebody else says what becomes of a message that is not dropped.
    pub fn skip(&self, error: Error) -> Result<()> {
        if !self.wanted || !of_the_message(error.kind) {
            return Err(error);
        }
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.count += 1;
        dropped.why = error.text;
        Ok(())
    }

    /// Adds to what `Inspect` tells, with this behind the names.
    pub fn tell(&self, state: &mut Dict, direction: &str) {
        if self.wanted {
            let dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            state.insert(format!("skipped{direction}"), dropped.count.into());
            state.insert(format!("skipped-reason{direction}"), dropped.why.as_str().into());
        }
    }
}

/// It is too large, not convertible, or has attributes that are refused.
fn of_the_message(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::TooLarge | Kind::InvalidArgument | Kind::InvalidAddress | Kind::NotSupported | Kind::Confined
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_kernel::Value;

    #[test]
    fn only_messages_are_skipped() {
        let skips = Skips::new(true);
        skips.refuse(Error::invalid("a")).unwrap();
        skips.refuse(Error::new(Kind::TooLarge, "b")).unwrap();
        skips.refuse(Error::new(Kind::Gone, "c")).unwrap_err();
        let mut state = Dict::new();
        skips.tell(&mut state, "-back");
        assert_eq!(state["skipped-back"].integer(), Some(2));
        assert!(matches!(&state["skipped-reason-back"], Value::Text(why) if why == "b"));
    }

    #[test]
    fn it_is_said_where_a_message_is() {
        let error = Skips::new(false).refuse(Error::invalid("five is no value")).unwrap_err();
        assert_eq!(error.text, "five is no value; it was kept at the source");
    }
}
