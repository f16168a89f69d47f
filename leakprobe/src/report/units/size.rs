//! Sizes in bytes; every unit is a power of 1024, whichever way it is written.

use super::{Decimal, UnitError, count, sign};

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes in the largest unit that leaves at least 1 of it, with three significant digits: `312 MiB`,
/// `12.3 MiB`, `4.10 MiB`. Below 1 KiB the exact number of bytes.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{} B", count(bytes));
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.5 would be shown as 1,024: it belongs to the next unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = UNITS[unit];
    // The bounds are where rounding to that many digits reaches the next power of ten.
    if value < 9.995 {
        format!("{value:.2} {unit}")
    } else if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{} {unit}", count(value.round() as u64))
    }
}

/// A change in bytes, with its sign: `+512 KiB`, `-3 B`, `+0 B`.
pub fn signed_size(change: i64) -> String {
    format!("{}{}", sign(change), size(change.unsigned_abs()))
}

/// A rate in bytes a minute: `+6.00 MiB/min`; one that is not a number is shown as `?/min`.
pub fn size_per_minute(rate: f64) -> String {
    if rate.is_nan() {
        return "?/min".to_owned();
    }
    // Saturates: nothing grows by more than 8 EiB a minute.
    format!("{}/min", signed_size(rate.round() as i64))
}

/// Reads a size: a decimal number and an optional unit (`b`, `k`, `kb`, `kib`, `m`, ... `e`, in any case).
///
/// k is 1024. Fractions of a byte are dropped (`1.1k` is 1126), but refused where no unit is given.
///
/// # Errors
/// [`UnitError::Size`] for anything else, [`UnitError::SizeTooLarge`] above 64 bits.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = Decimal::take(text.trim()).ok_or(UnitError::Size)?;
    let power = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        "e" | "eb" | "eib" => 6,
        _ => return Err(UnitError::Size),
    };
    if power == 0 && number.fraction != 0 {
        return Err(UnitError::Size);
    }
    u64::try_from(number.times(1 << (10 * power))).map_err(|_| UnitError::SizeTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1_023, "1,023 B"),
            (1_024, "1.00 KiB"),
            (10_234, "9.99 KiB"),
            (10_235, "10.0 KiB"),
            (102_348, "99.9 KiB"),
            (102_349, "100 KiB"),
            (512 << 10, "512 KiB"),
            (1023 << 10, "1,023 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (12_897_485, "12.3 MiB"),
            (1_299_227_607, "1.21 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn changes_and_rates_carry_their_sign() {
        assert_eq!(signed_size(524_288), "+512 KiB");
        assert_eq!(signed_size(-3), "-3 B");
        assert_eq!(signed_size(i64::MIN), "-8.00 EiB");
        assert_eq!(size_per_minute(6_291_456.0), "+6.00 MiB/min");
        assert_eq!(size_per_minute(-0.4), "+0 B/min");
        assert_eq!(size_per_minute(f64::NEG_INFINITY), "-8.00 EiB/min");
        assert_eq!(size_per_minute(f64::NAN), "?/min");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4096", 4_096),
            ("0", 0),
            ("64k", 65_536),
            ("64 KB", 65_536),
            ("1M", 1 << 20),
            ("10mb", 10 << 20),
            ("1.5GiB", 3 << 29),
            ("1.1k", 1_126),
            ("12B", 12),
            ("2.0", 2),
            (" 7k ", 7_168),
            ("15.999eib", 18_445_591_152_204_944_769),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        for text in [
            "", "k", "-1", "+1", "1.5", "1.", ".5k", "1kk", "1k2", "0x10", "1e3", "1,024", "64x", "1 2", "٣k",
        ] {
            assert_eq!(parse_size(text), Err(UnitError::Size), "{text}");
        }
        for text in ["16E", "18446744073709551616", "99999999999999999999e"] {
            assert_eq!(parse_size(text), Err(UnitError::SizeTooLarge), "{text}");
        }
    }
}
