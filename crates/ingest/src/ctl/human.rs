//! Numbers, sizes and foreign text as people read them.

use std::fmt::Write as _;

/// `1234567` as `1,234,567`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes with three digits at most: `512 B`, `1.5 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Seconds: `250 ms`, `3.2 s`, `4 min 05 s`, `2 h 10 min`, `3 d 4 h`.
#[must_use]
pub fn seconds(value: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and rounded on purpose"
    )]
    let whole = value.max(0.0).round() as u64;
    match whole {
        _ if value < 0.0005 => "0 s".to_owned(),
        _ if value < 0.9995 => format!("{:.0} ms", value * 1000.0),
        0..60 if value < 9.95 => format!("{value:.1} s"),
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Milliseconds with as many digits as matter.
#[must_use]
pub fn milliseconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2} ms") } else { format!("{value:.0} ms") }
}

/// How full something is: `[####......]  42 %`. A bound of 0 means there is none.
#[must_use]
pub fn bar(held: u64, bound: u64, width: usize) -> String {
    if bound == 0 {
        return String::new();
    }
    let share = |of: u64| u128::from(held.min(bound)) * u128::from(of) / u128::from(bound);
    let filled = usize::try_from(share(width as u64)).unwrap_or(width);
    // One mark as soon as there is anything: "nothing held" and "a little held" differ at 3 a.m.
    let filled = if held > 0 { filled.max(1) } else { 0 }.min(width);
    let percent = u128::from(held) * 100 / u128::from(bound);
    format!("[{}{}] {percent:>3} %", "#".repeat(filled), ".".repeat(width - filled))
}

/// `n` things, with the plural where it belongs.
#[must_use]
pub fn things(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// Text from outside, safe to show: control characters (which could move the cursor or recolour the
/// terminal) are written as escapes.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // The marks that reorder text are no control characters, and mislead as well.
        let misleading = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || misleading {
            // Writing to a String cannot fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// [`safe`], cut to `width` characters with an ellipsis.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    let shown = safe(text);
    if shown.chars().count() <= width {
        return shown;
    }
    let mut short: String = shown.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")];
        for (n, text) in sizes {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
        let spans = [
            (0.0, "0 s"),
            (0.25, "250 ms"),
            (3.24, "3.2 s"),
            (59.0, "59 s"),
            (245.0, "4 min 05 s"),
            (7_800.0, "2 h 10 min"),
            (273_600.0, "3 d 4 h"),
        ];
        for (value, text) in spans {
            assert_eq!(seconds(value), text);
        }
    }

    #[test]
    fn a_bar_shows_nothing_little_and_overflow_apart() {
        assert_eq!(bar(0, 100, 10), "[..........]   0 %");
        assert_eq!(bar(1, 100, 10), "[#.........]   1 %");
        assert_eq!(bar(50, 100, 10), "[#####.....]  50 %");
        assert_eq!(bar(150, 100, 10), "[##########] 150 %");
        assert_eq!(bar(7, 0, 10), "");
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\r\\n");
        assert_eq!(safe("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(cut("héllo wörld", 6), "héllo…");
    }
}
