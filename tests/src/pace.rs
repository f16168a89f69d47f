//! How slow this machine is: a guest on an emulated processor takes 10 to 20 times as long for everything.
//!
//! Nothing that a test claims depends on these: they are how long it waits before it gives up, how often it
//! repeats what it does, and how many blocks it takes where only the number's size is a matter of taste.
//!
//! * `LEAKPROBE_PATIENCE`: what waits are multiplied by (1).
//! * `LEAKPROBE_ROUNDS`: how often tests repeat an attach (each has its own number).
//! * `LEAKPROBE_SHARE`: what the largest numbers of blocks are divided by (1).

use std::env;
use std::time::Duration;

/// How long to wait for what takes at most `usual` on a machine of its own.
///
/// # Panics
///
/// When `LEAKPROBE_PATIENCE` is no number above 0.
pub fn patience(usual: Duration) -> Duration {
    usual * number("LEAKPROBE_PATIENCE").unwrap_or(1)
}

/// How often to repeat what is repeated `usual` times where time doesn't matter.
///
/// # Panics
///
/// When `LEAKPROBE_ROUNDS` is no number above 0.
pub fn rounds(usual: u32) -> u32 {
    number("LEAKPROBE_ROUNDS").unwrap_or(usual)
}

/// How many of `usual` blocks to take: a whole part of them.
///
/// # Panics
///
/// When `LEAKPROBE_SHARE` is no number above 0, or does not divide `usual`.
pub fn share(usual: u64) -> u64 {
    let share = u64::from(number("LEAKPROBE_SHARE").unwrap_or(1));
    assert_eq!(usual % share, 0, "LEAKPROBE_SHARE={share} does not divide {usual} blocks");
    usual / share
}

fn number(name: &str) -> Option<u32> {
    env::var(name).ok().map(|text| parse(name, &text))
}

fn parse(name: &str, text: &str) -> u32 {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.unwrap_or_else(|| panic!("failed to read {name}={text:?}: want a whole number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_whole() {
        assert_eq!(parse("X", "20"), 20);
    }

    #[test]
    #[should_panic(expected = "failed to read X=\"0\": want a whole number above 0")]
    fn nothing_is_waited_for_no_time() {
        parse("X", "0");
    }
}
