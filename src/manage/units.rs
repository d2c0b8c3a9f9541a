//! Numbers for people.

use std::time::Duration;

/// `12.3 MiB`: binary units, three significant digits.
pub fn bytes(value: u64) -> String {
    scaled(value, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `9.87 Gbit/s`: decimal units, three significant digits.
pub fn rate(bits_per_s: u64) -> String {
    scaled(bits_per_s, 1000, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"])
}

/// `1234567` as `1.23 M`: decimal units, three significant digits.
pub fn count(value: u64) -> String {
    scaled(value, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// `2d 3h`, `4m 5s`, `6s`: the two largest units.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `85 µs`, `1.20 ms`, `3.40 s`.
pub fn round_trip(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => significant(micros as f64 / 1e3, "ms"),
        _ => significant(micros as f64 / 1e6, "s"),
    }
}

fn scaled(value: u64, step: u64, units: &[&str]) -> String {
    if value < step {
        return format!("{value} {}", units[0]).trim_end().to_owned();
    }
    let mut scaled = value as f64;
    let mut unit = 0;
    // 999.5 would be printed as "1000".
    while scaled >= step as f64 - 0.5 && unit + 1 < units.len() {
        scaled /= step as f64;
        unit += 1;
    }
    significant(scaled, units[unit])
}

fn significant(value: f64, unit: &str) -> String {
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_rates_and_counts() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(10 << 20), "10.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(rate(999), "999 bit/s");
        assert_eq!(rate(9_870_000_000), "9.87 Gbit/s");
        assert_eq!(rate(999_999), "1.00 Mbit/s");
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1.23 M");
    }

    #[test]
    fn durations_show_two_units() {
        let text = |s| duration(Duration::from_secs(s));
        assert_eq!([text(0), text(59), text(61)], ["0s", "59s", "1m 1s"]);
        assert_eq!([text(3600), text(90_000)], ["1h 0m", "1d 1h"]);
    }

    #[test]
    fn round_trips() {
        assert_eq!([round_trip(85), round_trip(1200)], ["85 µs", "1.20 ms"]);
        assert_eq!([round_trip(123_456), round_trip(3_400_000)], ["123 ms", "3.40 s"]);
    }
}
