//! The results as a picture, SVG: for each row with a bar how many times as good as the bar it is, the median with the
//! extremes, on a scale of powers of two. Right of the line is met.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::table::{Bar, Row};

/// Pixels: of a row, left of the scale, of the scale, above the rows.
const ROW: f64 = 22.0;
const LABELS: f64 = 520.0;
const SCALE: f64 = 360.0;
const TOP: f64 = 46.0;

/// The ends of the scale are 2^-REACH and 2^REACH; what is beyond is drawn there.
const REACH: f64 = 3.0;

/// Writes `DIRECTORY/NAME.svg`.
pub fn write(directory: &Path, name: &str, rows: &[Row]) -> Result<()> {
    let path = directory.join(format!("{name}.svg"));
    fs::write(&path, drawn(name, rows)?).with_context(|| format!("cannot write {}", path.display()))
}

fn drawn(name: &str, rows: &[Row]) -> Result<String> {
    let rows: Vec<_> = rows.iter().filter(|row| row.bar != Bar::None).collect();
    let (width, height) = (LABELS + SCALE + 40.0, TOP + ROW * rows.len() as f64 + 20.0);
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">"
    )?;
    writeln!(svg, "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>")?;
    let title = format!("{name}: times as good as the bar (right of the line: met)");
    writeln!(svg, "<text x=\"10\" y=\"18\" font-size=\"14\">{}</text>", escaped(&title))?;
    let bottom = height - 16.0;
    for power in -3..=3 {
        let (x, line) = (place(f64::from(power).exp2()), if power == 0 { "#444" } else { "#ddd" });
        let label = if power < 0 { format!("1/{}", 1 << -power) } else { (1 << power).to_string() };
        writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{line}\"/>")?;
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", TOP - 6.0)?;
    }
    for (n, row) in rows.iter().enumerate() {
        let y = TOP + ROW * (n as f64 + 0.5);
        let against = row.peer.as_ref().map(|peer| format!(" : {}", peer.name)).unwrap_or_default();
        let label = escaped(&format!("{} {} [{}]{against}", row.number, row.what, row.unit));
        let color = if row.met() { "#2a7" } else { "#c43" };
        let [low, middle, high] =
            [row.result.min, row.result.median, row.result.max].map(|it| place(row.good(it)));
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LABELS - 10.0,
            y + 4.0
        )?;
        writeln!(
            svg,
            "<line x1=\"{low:.1}\" y1=\"{y}\" x2=\"{high:.1}\" y2=\"{y}\" stroke=\"{color}\" stroke-width=\"2\"/>"
        )?;
        writeln!(svg, "<circle cx=\"{middle:.1}\" cy=\"{y}\" r=\"5\" fill=\"{color}\"/>")?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn place(good: f64) -> f64 {
    let power = if good > 0.0 { good.log2().clamp(-REACH, REACH) } else { -REACH };
    LABELS + SCALE * (power + REACH) / (2.0 * REACH)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_met_is_right_of_the_line() -> Result<()> {
        let row = |bar| Row::absolute("P0", "a < b & c", "µs", &[2.0], bar);
        let svg = drawn("test", &[row(Bar::AtMost(4.0)), row(Bar::AtLeast(4.0)), row(Bar::None)])?;
        let circles: Vec<_> = svg.lines().filter(|line| line.starts_with("<circle")).collect();
        assert!(circles[0].contains(&format!("cx=\"{:.1}\"", place(2.0))), "{svg}");
        assert!(circles[1].contains(&format!("cx=\"{:.1}\"", place(0.5))), "{svg}");
        assert_eq!(circles.len(), 2);
        assert!(svg.contains("a &lt; b &amp; c") && place(0.5) < place(1.0) && place(1.0) < place(2.0));
        Ok(())
    }

    #[test]
    fn what_is_beyond_the_scale_is_at_its_end() {
        assert_eq!(place(0.0), LABELS);
        assert_eq!(place(f64::INFINITY), LABELS + SCALE);
    }
}
