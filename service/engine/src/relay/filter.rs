//! Which messages of a source go along, by their attributes.

use std::ops::RangeInclusive;

use ipc_kernel::{Dict, Error, Result, Value};

#[derive(Debug, Clone, Default)]
pub(crate) struct Filter(Vec<(String, Wanted)>);

#[derive(Debug, Clone)]
enum Wanted {
    Same(Value),
    /// Any of these.
    OneOf(Vec<Value>),
    Within(RangeInclusive<i128>),
}

impl Filter {
    pub fn parse(filter: Option<&Dict>) -> Result<Self> {
        let wanted = |(key, value): (&String, &Value)| Ok((key.clone(), Wanted::parse(key, value)?));
        filter.into_iter().flatten().map(wanted).collect::<Result<_>>().map(Self)
    }

    /// Whether everything goes along.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a message with these attributes goes along.
    pub fn matches(&self, attributes: &Dict) -> bool {
        self.0.iter().all(|(key, wanted)| attributes.get(key).is_some_and(|value| wanted.is(value)))
    }
}

impl Wanted {
    fn parse(key: &str, value: &Value) -> Result<Self> {
        Ok(match value {
            Value::Text(text) => match text.split_once("..") {
                Some((from, to)) => match (bound(from, i128::MIN), bound(to, i128::MAX)) {
                    (Some(from), Some(to)) if from <= to => Self::Within(from..=to),
                    // Names and paths may have two dots.
                    (None, _) | (_, None) => Self::Same(value.clone()),
                    _ => {
                        return Err(Error::invalid(format!(
                            "the range {text:?} of the filter for {key:?} is empty; write the smaller number first"
                        )));
                    }
                },
                None => Self::Same(value.clone()),
            },
            Value::Texts(texts) => Self::OneOf(texts.iter().map(|text| text.as_str().into()).collect()),
            Value::U32s(numbers) => Self::OneOf(numbers.iter().map(|number| (*number).into()).collect()),
            Value::I32s(numbers) => Self::OneOf(numbers.iter().map(|number| (*number).into()).collect()),
            Value::Dict(_) | Value::Dicts(_) | Value::Fd(_) | Value::Fds(_) => {
                return Err(Error::invalid(format!(
                    "the filter for {key:?} must be a value, a list of values or a range as text, not {}",
                    value.signature()
                )));
            }
            other => Self::Same(other.clone()),
        })
    }

    /// Of an attribute that is a list, one element is enough.
    fn is(&self, value: &Value) -> bool {
        if let Value::Texts(texts) = value {
            return texts.iter().any(|text| self.is(&text.as_str().into()));
        }
        match self {
            Self::Same(wanted) => wanted.same(value),
            Self::OneOf(wanted) => wanted.iter().any(|wanted| wanted.same(value)),
            Self::Within(range) => value.integer().is_some_and(|number| range.contains(&number)),
        }
    }
}

fn bound(text: &str, open: i128) -> Option<i128> {
    if text.is_empty() { Some(open) } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc_kernel::dict;

    #[test]
    fn equal_one_of_or_within() {
        let fits =
            |filter: Dict, attributes: Dict| Filter::parse(Some(&filter)).unwrap().matches(&attributes);
        let letter = || dict! { "type" => 3i64, "names" => vec!["CREATE".to_owned(), "ISDIR".to_owned()] };
        assert!(fits(Dict::new(), letter()));
        assert!(fits(dict! { "type" => 3u32 }, letter()));
        assert!(fits(dict! { "type" => vec![1u32, 3] }, letter()));
        for (range, inside) in [("1..5", true), ("3..3", true), ("4..", false), ("..3", true), ("..2", false)]
        {
            assert_eq!(fits(dict! { "type" => range }, letter()), inside, "{range}");
        }
        assert!(fits(dict! { "names" => "ISDIR" }, letter()));
        assert!(!fits(dict! { "names" => "DELETE" }, letter()));
        assert!(!fits(dict! { "absent" => 1u32 }, letter()));
        assert!(fits(dict! { "path" => "/a..b" }, dict! { "path" => "/a..b" }));
        assert!(Filter::parse(Some(&dict! { "type" => "5..1" })).is_err());
    }
}
