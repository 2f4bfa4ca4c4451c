//! Rows of `List()` where there can be tens of thousands: without a dictionary for each.

use std::borrow::Cow;

use crate::{Dict, Error, Result, Value, mechanism::Column};

/// A key of a row, and its value.
pub type Cell = (Cow<'static, str>, Value);

/// Rows, one behind the other.
#[derive(Debug, Default)]
pub struct Listing {
    cells: Vec<Cell>,
    /// Where each row ends.
    ends: Vec<usize>,
}

impl Listing {
    pub fn push(&mut self, row: impl IntoIterator<Item = (&'static str, Value)>) {
        self.cells.extend(row.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)));
        self.ends.push(self.cells.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn rows(&self) -> impl Iterator<Item = &[Cell]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.cells[start..*end])
    }

    /// Keeps the rows that have all of these values.
    pub fn filter(&mut self, wanted: &Dict) {
        if wanted.is_empty() {
            return;
        }
        let fits = |row: &[Cell]| {
            wanted
                .iter()
                .all(|(key, wanted)| row.iter().any(|(column, value)| column == key && value.same(wanted)))
        };
        let mut kept = Self::default();
        for row in self.rows().filter(|row| fits(row)) {
            kept.cells.extend_from_slice(row);
            kept.ends.push(kept.cells.len());
        }
        *self = kept;
    }

    /// Each row as a dictionary.
    pub fn dicts(self) -> Vec<Dict> {
        let mut cells = self.cells.into_iter();
        let mut start = 0;
        let row = |end: usize| {
            let dict =
                cells.by_ref().take(end - start).map(|(key, value)| (key.into_owned(), value)).collect();
            start = end;
            dict
        };
        self.ends.into_iter().map(row).collect()
    }
}

/// Refuses a filter with keys that no row has; `what` reads "inet".
pub fn check_filter(what: &str, columns: &[Column], filter: &Dict) -> Result<()> {
    let Some(key) = filter.keys().find(|key| !columns.iter().any(|column| column.key == *key)) else {
        return Ok(());
    };
    let known: Vec<_> = columns.iter().map(|column| column.key).collect();
    Err(Error::invalid(format!("{what} has no column {key:?} to filter by; it has {}", known.join(", "))))
}

impl From<Vec<Dict>> for Listing {
    fn from(dicts: Vec<Dict>) -> Self {
        let mut listing = Self::default();
        for dict in dicts {
            listing.cells.extend(dict.into_iter().map(|(key, value)| (Cow::Owned(key), value)));
            listing.ends.push(listing.cells.len());
        }
        listing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dict;

    #[test]
    fn a_filter_keeps_what_has_all_of_it() {
        let mut listing = Listing::default();
        for (id, key) in [(1, 7), (2, 7), (3, 8)] {
            listing.push([("id", Value::I32(id)), ("key", Value::U32(key))]);
        }
        listing.filter(&Dict::new());
        assert_eq!(listing.len(), 3);
        listing.filter(&dict! { "key" => 7u64 });
        assert_eq!(listing.len(), 2);
        listing.filter(&dict! { "key" => 7u64, "id" => 2i64 });
        assert_eq!(listing.rows().count(), 1);
        listing.filter(&dict! { "other" => 1u32 });
        assert!(listing.is_empty());
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let mut listing = Listing::default();
        listing.push([("id", Value::I32(1)), ("key", Value::U32(2))]);
        listing.push([]);
        listing.push([("id", Value::I32(3))]);
        let lengths: Vec<_> = listing.rows().map(<[Cell]>::len).collect();
        assert_eq!((lengths, listing.len(), listing.is_empty()), (vec![2, 0, 1], 3, false));
        let rows = Listing::from(listing.dicts()).dicts();
        assert_eq!(
            format!("{rows:?}"),
            format!("{:?}", [dict! { "id" => 1i32, "key" => 2u32 }, dict! {}, dict! { "id" => 3i32 }])
        );
    }
}
