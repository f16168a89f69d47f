//! Sizes, durations and counts, as people read and write them.

mod duration;
mod size;

pub use duration::{MAX_DURATION, duration, parse_duration};
pub use size::{parse_size, signed_size, size, size_per_minute};

/// Why a size or a duration was refused; the text says what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not of the form that a size has.
    #[error("expected a size such as 4096, 64k, 1.5MiB or 2g (k = 1024 bytes)")]
    Size,
    /// More bytes than 64 bits can count.
    #[error("more than 16 EiB; expected a size such as 4096, 64k, 1.5MiB or 2g (k = 1024 bytes)")]
    SizeTooLarge,
    /// Not of the form that a duration has.
    #[error("expected a duration such as 30s, 500ms, 5m, 1h30m or 2d (a bare number counts seconds)")]
    Duration,
    /// Longer than [`MAX_DURATION`].
    #[error("longer than 36500 days; expected a duration such as 30s, 500ms, 5m, 1h30m or 2d")]
    DurationTooLong,
}

/// A count with thousands separators: `1,024`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A change of a count, with its sign: `+1,024`, `-3`, `+0`.
pub fn signed_count(change: i64) -> String {
    format!("{}{}", sign(change), count(change.unsigned_abs()))
}

/// A count and what is counted: `1 block`, `2 blocks`. For nouns that take an `s`, or `es` after one.
pub fn counted(value: u64, noun: &str) -> String {
    let plural = match value {
        1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", count(value))
}

fn sign(change: i64) -> char {
    if change < 0 { '-' } else { '+' }
}

/// A decimal number without sign or exponent, as written: exact, so that `1.1k` is what it says.
struct Decimal {
    whole: u128,
    fraction: u128,
    /// 10 to the number of digits in `fraction`.
    scale: u128,
}

impl Decimal {
    /// Digits that are read on either side of the point; more are refused, and nothing can overflow.
    const DIGITS: usize = 20;

    /// Reads a number from the start of `text`; returns it with what follows.
    fn take(text: &str) -> Option<(Self, &str)> {
        let (whole, rest) = digits(text)?;
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(rest) => digits(rest)?,
            None => ("", rest),
        };
        let fraction = fraction.trim_end_matches('0');
        let whole = whole.trim_start_matches('0');
        if whole.len() > Self::DIGITS || fraction.len() > Self::DIGITS - 2 {
            return None;
        }
        let value = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse() };
        let scale = 10u128.pow(fraction.len() as u32);
        Some((Self { whole: value(whole).ok()?, fraction: value(fraction).ok()?, scale }, rest))
    }

    /// The number times `unit`, rounded down.
    fn times(&self, unit: u64) -> u128 {
        // No unit is above 2^60 and `whole` is below 10^20, so that the product is below 2^127.
        let unit = u128::from(unit);
        self.whole * unit + self.fraction * unit / self.scale
    }
}

/// The decimal digits that `text` begins with, at least one, and the rest.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345), "12,345");
        assert_eq!(count(123_456), "123,456");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn changes_carry_their_sign() {
        assert_eq!(signed_count(0), "+0");
        assert_eq!(signed_count(1_024), "+1,024");
        assert_eq!(signed_count(-3), "-3");
        assert_eq!(signed_count(i64::MIN), "-9,223,372,036,854,775,808");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(0, "block"), "0 blocks");
        assert_eq!(counted(1, "block"), "1 block");
        assert_eq!(counted(1_024, "block"), "1,024 blocks");
        assert_eq!(counted(1, "process"), "1 process");
        assert_eq!(counted(20, "process"), "20 processes");
    }
}
