//! Durations: written `1h30m`, shown `1h 30m`.

use super::{Decimal, UnitError};
use std::time::Duration;

/// The longest duration that is read: 36,500 days. Clocks and timers can add it to any time without overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(36_500 * 86_400);

/// Seconds in the two largest units that matter: `350ms`, `5.2s`, `58s`, `4m 12s`, `2h 05m`, `3d 04h`.
/// A negative number is shown as `0s`, one that is not a number as `?`.
pub fn duration(seconds: f64) -> String {
    if seconds.is_nan() {
        return "?".to_owned();
    }
    // Saturates; each step rounds once from milliseconds, and what rounds up to 60 goes to the next form.
    let ms = (seconds * 1000.0).round() as u64;
    let round = |unit_ms: u64| ms.saturating_add(unit_ms / 2) / unit_ms;
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (tenths, seconds, minutes, hours) = (round(100), round(1_000), round(60_000), round(3_600_000));
    if tenths < 100 && !tenths.is_multiple_of(10) {
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else if seconds < 60 {
        format!("{seconds}s")
    } else if seconds < 3_600 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else if minutes < 1_440 {
        format!("{}h {:02}m", minutes / 60, minutes % 60)
    } else {
        format!("{}d {:02}h", hours / 24, hours % 24)
    }
}

/// Reads a duration: numbers with units from the largest to the smallest (`d`, `h`, `m` or `min`, `s` or
/// `sec`, `ms`), such as `1h30m` or `1.5h`; a bare number counts seconds.
///
/// # Errors
/// [`UnitError::Duration`] for anything else, [`UnitError::DurationTooLong`] above [`MAX_DURATION`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    let mut nanoseconds = 0u128;
    let mut smallest = u64::MAX;
    while !rest.is_empty() || smallest == u64::MAX {
        let (number, after) = Decimal::take(rest).ok_or(UnitError::Duration)?;
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = match &after[..end] {
            "d" => 86_400_000_000_000,
            "h" => 3_600_000_000_000,
            "m" | "min" => 60_000_000_000,
            "s" | "sec" => 1_000_000_000,
            "ms" => 1_000_000,
            // Only where it stands alone: `1h30` could be read in two ways.
            "" if smallest == u64::MAX && after.is_empty() => 1_000_000_000,
            _ => return Err(UnitError::Duration),
        };
        if unit >= smallest {
            return Err(UnitError::Duration);
        }
        smallest = unit;
        nanoseconds = nanoseconds.saturating_add(number.times(unit));
        rest = after[end..].trim_start();
    }
    if nanoseconds > MAX_DURATION.as_nanos() {
        return Err(UnitError::DurationTooLong);
    }
    Ok(Duration::from_nanos_u128(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units() {
        for (seconds, text) in [
            (0.0, "0s"),
            (-3.0, "0s"),
            (0.000_4, "0s"),
            (0.35, "350ms"),
            (0.999_6, "1s"),
            (5.0, "5s"),
            (5.24, "5.2s"),
            (9.96, "10s"),
            (58.4, "58s"),
            (59.6, "1m 00s"),
            (252.0, "4m 12s"),
            (3_599.7, "1h 00m"),
            (7_500.0, "2h 05m"),
            (86_399.0, "1d 00h"),
            (273_600.0, "3d 04h"),
            (f64::INFINITY, "213503982334d 14h"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        assert_eq!(duration(f64::NAN), "?");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [
            ("30s", 30_000),
            ("30", 30_000),
            ("0", 0),
            ("0.1", 100),
            ("500ms", 500),
            ("5m", 300_000),
            ("5 min", 300_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("2d", 172_800_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("36500d", 3_153_600_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration("0.0005ms"), Ok(Duration::from_nanos(500)));
    }

    #[test]
    fn other_durations_are_refused() {
        for text in [
            "", "s", "-1s", "+1s", "1h30", "30m1h", "1s1s", "5x", "1.s", ".5s", "1:30", "5M", "1e3", "1h,2m",
            "٣s",
        ] {
            assert_eq!(parse_duration(text), Err(UnitError::Duration), "{text}");
        }
        for text in ["36501d", "36500d1ms", "99999999999999999999d"] {
            assert_eq!(parse_duration(text), Err(UnitError::DurationTooLong), "{text}");
        }
    }
}
