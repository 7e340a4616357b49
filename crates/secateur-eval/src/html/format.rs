//! Numbers formatted for readers.

/// Formats `value` with `digits` significant digits; very small and very large values in scientific
/// form.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "not a number".into() } else { "infinite".into() };
    }
    if value == 0.0 {
        return "0".into();
    }
    // The exponent after rounding: 9.99 at two digits is 10, not 10.0.
    let scientific = format!("{:.*e}", digits - 1, value);
    let exponent: i32 =
        scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        return scientific;
    }
    #[expect(clippy::cast_possible_wrap, reason = "a handful of digits")]
    let decimals = (digits as i32 - 1 - exponent).max(0);
    format!("{value:.*}", decimals.unsigned_abs() as usize)
}

/// Formats `value` with a fixed number of decimals.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { significant(value, 1) }
}

/// Formats a share in \[0, 1\] as a percentage with one decimal.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { significant(share, 1) }
}

/// Formats a number of bytes in binary units.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["bytes", "KiB", "MiB", "GiB", "TiB"])
}

/// Formats a large number with a decimal prefix: 18.6 M.
pub(super) fn count(count: u64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G", "T"]).trim_end().to_owned()
}

fn scaled(number: u64, base: f64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    // 999.5 would be shown as 1000 with three digits, so it already takes the next unit.
    while value >= base.min(999.5) && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} {}", units[0])
    } else {
        format!("{} {}", significant(value, 3), units[unit])
    }
}

/// Formats a number with spaces between groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A narrow space that does not break.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Formats a duration: seconds with a decimal under a minute, minutes and hours above.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return significant(seconds, 3);
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite and not negative"
    )]
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min")
    } else {
        format!("{minutes} min {seconds:02} s")
    }
}

/// Formats a count with its noun in singular or plural: 1 layer, 2 layers.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn significant_digits() {
        let cases = [
            (0.123_456, "0.123"),
            (23.56, "23.6"),
            (99.96, "100"),
            (1234.5, "1234"),
            (0.0, "0"),
            (1e-5, "1.00e-5"),
        ];
        for (value, text) in cases {
            assert_eq!(significant(value, 3), text);
        }
        assert_eq!(significant(f64::NAN, 3), "not a number");
    }

    #[test]
    fn units() {
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(37_200_000), "35.5 MiB");
        assert_eq!(bytes(1_048_000), "0.999 MiB");
        assert_eq!(count(18_600_000), "18.6 M");
        assert_eq!(count(12), "12");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(123), "123");
    }

    #[test]
    fn durations() {
        assert_eq!(duration(3.04), "3.0 s");
        assert_eq!(duration(59.97), "1 min 00 s");
        assert_eq!(duration(7325.0), "2 h 02 min");
        assert_eq!(percent(0.4567), "45.7 %");
        assert_eq!(counted(1, "layer"), "1 layer");
    }
}
