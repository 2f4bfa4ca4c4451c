//! The results: one table for people, and the same as JSON for plots and comparisons over time.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::rounds::Stats;

/// What a result has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// Measured to be seen, nothing is demanded.
    None,
}

/// One comparison, or one absolute value: then there is no peer, and the result is the value.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The number of the bar, such as `P1`.
    pub number: &'static str,
    pub what: String,
    pub unit: &'static str,
    pub ours: Stats,
    pub peer: Option<Peer>,
    /// What is held against the bar: ours by the peer's, or ours.
    pub result: Stats,
    pub bar: Bar,
}

#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    pub name: String,
    pub stats: Stats,
}

impl Row {
    /// Ours by the peer's.
    pub fn ratio(
        number: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        ours: &[f64],
        peer: (&str, &[f64]),
        bar: Bar,
    ) -> Row {
        let (name, theirs) = peer;
        Row {
            number,
            what: what.into(),
            unit,
            ours: Stats::of(ours.iter().copied()),
            peer: Some(Peer { name: name.to_owned(), stats: Stats::of(theirs.iter().copied()) }),
            result: Stats::of_ratios(ours, theirs),
            bar,
        }
    }

    /// A value that stands by itself.
    pub fn absolute(
        number: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        ours: &[f64],
        bar: Bar,
    ) -> Row {
        let ours = Stats::of(ours.iter().copied());
        Row { number, what: what.into(), unit, ours, peer: None, result: ours, bar }
    }

    /// Whether the median meets the bar.
    pub fn met(&self) -> bool {
        match self.bar {
            Bar::AtLeast(bar) => self.result.median >= bar,
            Bar::AtMost(bar) => self.result.median <= bar,
            Bar::None => true,
        }
    }

    /// How many times as good as the bar a result is; 1 without one.
    pub fn good(&self, result: f64) -> f64 {
        match self.bar {
            Bar::AtLeast(bar) => result / bar,
            // Nothing is as good as can be.
            Bar::AtMost(_) if result == 0.0 => f64::INFINITY,
            Bar::AtMost(bar) => bar / result,
            Bar::None => 1.0,
        }
    }

    /// Such as `1.23 ≥ 1.4: MISSED by 12%`.
    pub fn verdict(&self) -> String {
        let found = self.result.median;
        let (sign, bar) = match self.bar {
            Bar::AtLeast(bar) => ('≥', bar),
            Bar::AtMost(bar) => ('≤', bar),
            Bar::None => return "no bar".to_owned(),
        };
        let compared = format!("{} {sign} {bar}", number(found));
        if self.met() {
            return format!("{compared}: met");
        }
        match (found - bar).abs() / bar {
            by if by.is_finite() => format!("{compared}: MISSED by {:.0}%", (by * 100.0).max(1.0)),
            _ => format!("{compared}: MISSED"),
        }
    }

    fn cells(&self) -> [String; 6] {
        let against = match &self.peer {
            Some(peer) => [peer.name.clone(), spread(peer.stats), spread(self.result)].join("\n"),
            None => "\n\n".to_owned(),
        };
        let mut against = against.split('\n').map(str::to_owned);
        let mut next = || against.next().unwrap_or_default();
        let (name, theirs, ratio) = (next(), next(), next());
        let what = format!("{} {} [{}]", self.number, self.what, self.unit);
        [what, spread(self.ours), name, theirs, ratio, self.verdict()]
    }
}

const HEAD: [&str; 6] =
    ["what", "ours (min … max)", "peer", "peer's (min … max)", "ratio (min … max)", "bar"];

/// The table as Markdown, aligned so that it can be read as it is.
pub fn render(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; HEAD.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let rule = widths.map(|width| "-".repeat(width));
    lines.insert(1, rule);
    let mut text = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
    }
    text
}

/// Writes `DIRECTORY/NAME.json`.
pub fn write_json(directory: &Path, name: &str, rounds: usize, rows: &[Row]) -> Result<()> {
    let uname = rustix::system::uname();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut value = json!(row);
            // A row is a struct: its JSON is an object.
            value["met"] = row.met().into();
            value
        })
        .collect();
    let document = json!({
        "benchmark": name,
        "rounds": rounds,
        "machine": {
            "kernel": uname.release().to_string_lossy(),
            "architecture": uname.machine().to_string_lossy(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        },
        "rows": rows,
    });
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&document)?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn spread(stats: Stats) -> String {
    format!("{} ({} … {})", number(stats.median), number(stats.min), number(stats.max))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_say_by_how_much() {
        let row = |found: f64, bar| Row::absolute("P1", "x", "MB/s", &[found], bar).verdict();
        assert_eq!(row(1.23, Bar::AtLeast(1.4)), "1.23 ≥ 1.4: MISSED by 12%");
        assert_eq!(row(1.4, Bar::AtLeast(1.4)), "1.40 ≥ 1.4: met");
        assert_eq!(row(5.0, Bar::AtMost(4.0)), "5.00 ≤ 4: MISSED by 25%");
        assert_eq!(row(0.5, Bar::AtMost(0.0)), "0.500 ≤ 0: MISSED");
        assert_eq!(row(0.5, Bar::None), "no bar");
    }

    #[test]
    fn the_table_is_aligned() {
        let rows = [
            Row::ratio("P1", "a", "MB/s", &[2000.0], ("socat", &[1000.0]), Bar::AtLeast(1.0)),
            Row::absolute("P13", "memory", "MB", &[3.0], Bar::AtMost(4.0)),
        ];
        let table = render(&rows);
        let mut widths: Vec<_> = table.lines().map(|line| line.chars().count()).collect();
        widths.dedup();
        assert_eq!(widths.len(), 1, "{table}");
        assert!(table.contains("2.00 ≥ 1: met"), "{table}");
    }
}
