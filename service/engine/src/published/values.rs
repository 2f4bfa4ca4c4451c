//! Semaphores and futexes as text: `3`, or `3 0 1` for a set.
//!
//! A number sets the value, `+N` adds and `-N` takes; what a semaphore does not have must be waited for.

use std::sync::Arc;

use ipc_kernel::{
    Attempt, Error, Result,
    futex_word::{ANY, FutexWord},
};

use crate::{Engine, endpoint::Endpoint};

/// The value, with a newline.
pub(super) async fn read(engine: &Engine, endpoint: &Arc<Endpoint>) -> Result<Vec<u8>> {
    if endpoint.kernel.futex().is_some() {
        return Ok(format!("{}\n", engine.on_futex(endpoint, FutexWord::load).await?).into_bytes());
    }
    let values = endpoint.semaphore()?.values()?;
    let values: Vec<String> = values.iter().map(i32::to_string).collect();
    Ok(format!("{}\n", values.join(" ")).into_bytes())
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Set(Vec<i64>),
    Add(u32),
    Take(u32),
}

fn parse(text: &[u8]) -> Result<Change> {
    let refused = || {
        Error::invalid(format!(
            "{:?} is no value: write a number, +N or -N",
            String::from_utf8_lossy(&text[..text.len().min(64)])
        ))
    };
    let text = std::str::from_utf8(text).map_err(|_| refused())?.trim();
    let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse().map_err(|_| refused()),
        false => Err(refused()),
    };
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(digits), _) => Ok(Change::Add(number(digits)?)),
        (_, Some(digits)) => Ok(Change::Take(number(digits)?)),
        _ => {
            let values: Result<Vec<i64>, _> = text.split_ascii_whitespace().map(str::parse).collect();
            let values = values.map_err(|_| refused())?;
            if values.is_empty() { Err(refused()) } else { Ok(Change::Set(values)) }
        }
    }
}

/// An attempt to take one.
type Take<'a> = Box<dyn FnMut() -> Result<Attempt<()>> + Send + 'a>;

/// Does what the text says. `wait` repeats an attempt until it completes; `still_there` is an error once nobody is left
/// who could use what was taken.
pub(super) async fn write<'a, W: Future<Output = Result<()>>>(
    engine: &Engine,
    endpoint: &'a Arc<Endpoint>,
    text: &[u8],
    wait: impl Fn(Take<'a>) -> W,
    still_there: impl Fn() -> Result<()>,
) -> Result<()> {
    let change = parse(text)?;
    if endpoint.kernel.futex().is_some() {
        let change = move |word: &FutexWord| {
            match change {
                Change::Set(values) => match values.as_slice() {
                    [value] if (0..=i64::from(u32::MAX)).contains(value) => word.store(*value as u32)?,
                    _ => return Err(Error::invalid("a futex is one number from 0 to 4294967295")),
                },
                Change::Add(count) => _ = word.fetch_add(count)?,
                Change::Take(count) => _ = word.fetch_add(count.wrapping_neg())?,
            }
            // Whoever waits for another value has it.
            word.wake(u32::MAX >> 1, ANY).map(drop)
        };
        return engine.on_futex(endpoint, change).await;
    }
    let semaphore = endpoint.semaphore()?;
    match change {
        Change::Set(values) => {
            let values: Result<Vec<i32>, _> = values.into_iter().map(i32::try_from).collect();
            let values = values.map_err(|_| Error::invalid("the value of a semaphore has 32 bits"))?;
            match values.as_slice() {
                [value] => semaphore.set_value(*value),
                values => semaphore.set_values(values),
            }
        }
        Change::Add(count) => semaphore.post(count),
        Change::Take(count) => {
            let (mut taken, mut outcome) = (0, Ok(()));
            while taken < count && outcome.is_ok() {
                outcome = wait(Box::new(|| semaphore.wait())).await;
                taken += u32::from(outcome.is_ok());
            }
            let outcome = outcome.and_then(|()| still_there());
            // All or nothing.
            if outcome.is_err() && taken > 0 {
                semaphore.post(taken)?;
            }
            outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written_by_hand() {
        assert_eq!(parse(b"3\n").expect("valid"), Change::Set(vec![3]));
        assert_eq!(parse(b" 3 0 1 \n").expect("valid"), Change::Set(vec![3, 0, 1]));
        assert_eq!(parse(b"+2\n").expect("valid"), Change::Add(2));
        assert_eq!(parse(b"-1").expect("valid"), Change::Take(1));
        for wrong in
            [&b""[..], b"\n", b"x", b"+", b"-", b"++1", b"+-1", b"--1", b"1x", b"+4294967296", b"\xff"]
        {
            assert!(parse(wrong).is_err(), "{:?}", String::from_utf8_lossy(wrong));
        }
    }
}
