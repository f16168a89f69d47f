//! Figures beside their bars.

use std::fmt;

/// One part's figures.
#[derive(Debug, Default)]
pub struct Table {
    title: String,
    rows: Vec<Row>,
}

/// One figure.
#[derive(Debug)]
struct Row {
    what: String,
    figure: String,
    bar: Option<(String, Verdict)>,
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// It must not be above this.
    AtMost(f64),
    /// It must not be below this.
    AtLeast(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Meets,
    Misses,
    NotApplicable,
}

/// Columns of what a row is about, and of its figure.
const WHAT: usize = 57;
const FIGURE: usize = 28;

impl Table {
    /// Says what the figures below are about.
    pub fn title(&mut self, title: impl Into<String>) {
        self.title = title.into();
    }

    /// Adds a figure that has no bar.
    pub fn row(&mut self, what: impl Into<String>, figure: impl Into<String>) {
        self.rows.push(Row { what: what.into(), figure: figure.into(), bar: None });
    }

    /// Adds a figure of `value`, in the unit of its bar, which `show` writes.
    pub fn barred(
        &mut self,
        what: impl Into<String>,
        figure: impl Into<String>,
        value: f64,
        bar: Bar,
        show: impl Fn(f64) -> String,
    ) {
        let (text, meets) = match bar {
            Bar::AtMost(most) => (format!("at most {}", show(most)), value <= most),
            Bar::AtLeast(least) => (format!("at least {}", show(least)), value >= least),
        };
        let verdict = if meets { Verdict::Meets } else { Verdict::Misses };
        self.rows.push(Row { what: what.into(), figure: figure.into(), bar: Some((text, verdict)) });
    }

    /// Adds a figure whose bar does not apply, and why not.
    pub fn not_applicable(
        &mut self,
        what: impl Into<String>,
        figure: impl Into<String>,
        why: impl Into<String>,
    ) {
        let bar = Some((why.into(), Verdict::NotApplicable));
        self.rows.push(Row { what: what.into(), figure: figure.into(), bar });
    }

    /// How many figures miss their bars.
    pub fn misses(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row.bar, Some((_, Verdict::Misses)))).count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for Row { what, figure, bar } in &self.rows {
            let line = match bar {
                None => format!("  {what:WHAT$} {figure:>FIGURE$}"),
                Some((bar, Verdict::Meets)) => format!("  {what:WHAT$} {figure:>FIGURE$}  {bar}: meets"),
                Some((bar, Verdict::Misses)) => format!("  {what:WHAT$} {figure:>FIGURE$}  {bar}: MISSES"),
                Some((why, Verdict::NotApplicable)) => {
                    format!("  {what:WHAT$} {figure:>FIGURE$}  no bar: {why}")
                }
            };
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// Several measurements of one thing.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one, or the mean of the two in the middle; NaN when there is none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The largest; NaN when there is none.
    pub fn largest(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Each divided by the other's of the same round.
    pub fn per_round(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// `1.45 (1.41 to 1.52)`: the median, and from the smallest to the largest.
    pub fn show(&self, show: impl Fn(f64) -> String) -> String {
        let least = self.0.iter().copied().fold(f64::NAN, f64::min);
        format!("{} ({} to {})", show(self.median()), show(least), show(self.largest()))
    }
}

/// `1.45`
pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// `99.87%`, rounded down, from a share of 1.
pub fn percent(value: f64) -> String {
    format!("{:.2}%", (value * 10_000.0).floor() / 100.0)
}

/// `12,345 ns`; below 100 with one decimal.
pub fn nanoseconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.1} ns") } else { format!("{} ns", thousands(value)) }
}

/// `0.59 s`
pub fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

/// `99 ms`, from seconds.
pub fn milliseconds(value: f64) -> String {
    format!("{:.0} ms", value * 1e3)
}

/// `66.9 MB`, from bytes.
pub fn megabytes(value: f64) -> String {
    format!("{:.1} MB", value / 1e6)
}

/// `12,345`
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratios = samples(&[20.0, 300.0, 8.0]).per_round(&samples(&[10.0, 100.0, 8.0]));
        assert_eq!(ratios.show(ratio), "2.00 (1.00 to 3.00)");
        assert_eq!(samples(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert!(samples(&[]).median().is_nan());
    }

    #[test]
    fn a_figure_at_its_bar_meets_it_and_one_that_is_not_a_number_does_not() {
        let mut table = Table::default();
        table.title("parts");
        table.row("plain", nanoseconds(21.34));
        table.barred("at", "1.60", 1.6, Bar::AtMost(1.6), ratio);
        table.barred("above", "1.61", 1.61, Bar::AtMost(1.6), ratio);
        table.barred("below", "4.99", 4.99, Bar::AtLeast(5.0), ratio);
        table.barred("nothing", "NaN", f64::NAN, Bar::AtMost(1.0), ratio);
        table.not_applicable("other", "1.00", "free is emulated");
        assert_eq!(table.misses(), 3);
        let lines: Vec<String> = table
            .to_string()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "parts",
                "plain 21.3 ns",
                "at 1.60 at most 1.60: meets",
                "above 1.61 at most 1.60: MISSES",
                "below 4.99 at least 5.00: MISSES",
                "nothing NaN at most 1.00: MISSES",
                "other 1.00 no bar: free is emulated",
            ]
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([7.0, 999.0, 1_000.0, 1_234_567.0].map(thousands), ["7", "999", "1,000", "1,234,567"]);
        assert_eq!(nanoseconds(2_149.6), "2,150 ns");
    }
}
