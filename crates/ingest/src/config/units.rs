//! Sizes and lengths of time as people write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A number of bytes: an integer, or text such as `"64MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct Size(pub u64);

/// A length of time: text such as `"5s"` or `"1h 30m"`; a number alone is seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

const SUFFIXES: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Size {
    /// `n` times 1,048,576 bytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// As a length in memory.
    #[must_use]
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault =
            || format!("{text:?} is no size; write bytes, or a number with KiB, MiB, GiB or TiB");
        let (digits, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
            .unwrap_or((text, 1));
        let n: u64 = digits.trim().replace('_', "").parse().map_err(|_| fault())?;
        n.checked_mul(factor).map(Self).ok_or_else(fault)
    }
}

impl TryFrom<NumberOrText> for Size {
    type Error = String;
    fn try_from(value: NumberOrText) -> Result<Self, String> {
        match value {
            NumberOrText::Number(n) => Ok(Self(n)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            SUFFIXES.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (suffix, factor) = unit.copied().unwrap_or(("B", 1));
        write!(f, "{}{suffix}", self.0 / factor)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl Span {
    /// `n` seconds.
    #[must_use]
    pub const fn seconds(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
}

/// The longest that makes sense: 100 years. A clock that is moved on by it does not overflow.
const SPAN_MAX: Duration = Duration::from_secs(36_500 * 86_400);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "{text:?} is no length of time up to 100 years; write for instance \"5s\", \
                 \"250ms\", \"7d\""
            )
        };
        let span = if let Ok(seconds) = text.parse() {
            Duration::from_secs(seconds)
        } else if let Some(Ok(days)) = text.strip_suffix('d').map(str::parse::<u64>) {
            Duration::from_secs(days.checked_mul(86_400).ok_or_else(fault)?)
        } else {
            let span: jiff::SignedDuration = text.parse().map_err(|_| fault())?;
            Duration::try_from(span).map_err(|_| fault())?
        };
        if span <= SPAN_MAX { Ok(Self(span)) } else { Err(fault()) }
    }
}

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, days) = (self.0.as_secs(), self.0.as_secs() / 86_400);
        let fraction = self.0.subsec_nanos();
        if !fraction.is_multiple_of(1_000_000) {
            write!(f, "{s}s {fraction}ns")
        } else if fraction != 0 {
            write!(f, "{}ms", self.0.as_millis())
        } else if days > 0 && s.is_multiple_of(86_400) {
            write!(f, "{days}d")
        } else {
            write!(f, "{s}s")
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_their_unit_or_as_seconds() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("90", 90_000),
            ("1h 30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))), "{text}");
        }
        for text in
            ["", "s", "-5s", "5x", "1.5", "36501d", "213503982334602d", "18446744073709551615"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_length_of_time_is_written_whole() {
        for (text, written) in [("1us", "0s 1000ns"), ("1500ms", "1500ms"), ("2s 5ns", "2s 5ns")] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), written);
            assert_eq!(written.parse(), Ok(span));
        }
    }
}
