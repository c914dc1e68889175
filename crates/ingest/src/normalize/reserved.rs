//! The fields that say which event it is and when it happened.

use std::borrow::Cow;

use tidegate_event::{Code, Reason, ReceivedAt};

use super::ItemTime;
use crate::json::{Field, Kind, short};

/// Longest id a client may give, in bytes.
const ID_BYTES_MAX: usize = 512;
/// 1990-01-01T00:00:00Z in microseconds.
const EARLIEST: i64 = 631_152_000_000_000;
const DAY: i64 = 86_400_000_000;

/// Our fields in the body, where it has them; null counts as absent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reserved<'a> {
    pub(super) event_type: Option<&'a Field>,
    pub(super) event_id: Option<&'a Field>,
    pub(super) event_time: Option<&'a Field>,
}

/// Which of our fields a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ours {
    Type,
    Id,
    Time,
}

/// Tells whether a field is one of ours.
pub(super) fn ours(field: &Field, text: &str) -> Option<Ours> {
    let name = |name: &str| match name {
        "event_type" => Some(Ours::Type),
        "event_id" => Some(Ours::Id),
        "event_time" => Some(Ours::Time),
        _ => None,
    };
    if field.key_escaped() { name(&field.name(text)) } else { name(field.key(text)) }
}

impl<'a> Reserved<'a> {
    /// Finds them; of a key that stands twice the first counts.
    pub(super) fn find(fields: &'a [Field], text: &str) -> Self {
        let mut found = Self::default();
        for field in fields {
            let place = match ours(field, text) {
                None => continue,
                Some(Ours::Type) => &mut found.event_type,
                Some(Ours::Id) => &mut found.event_id,
                Some(Ours::Time) => &mut found.event_time,
            };
            if place.is_none() && field.kind != Kind::Null {
                *place = Some(field);
            }
        }
        found
    }
}

/// The client's id for the event, from the body or else from beside it.
pub(super) fn event_id<'s>(
    field: Option<&Field>,
    text: &'s str,
    beside: Option<&'s str>,
) -> Result<Option<Cow<'s, str>>, Reason> {
    let (id, at) = match field {
        Some(field) => (field.string(text), "/event_id"),
        None if let Some(beside) = beside => (Some(Cow::Borrowed(beside)), ""),
        None => return Ok(None),
    };
    let invalid = |message: &str| Reason::new(Code::IdInvalid, at, message);
    match id {
        None => Err(invalid("event_id must be a text of 1 to 512 bytes")),
        Some(id) if id.is_empty() => Err(invalid("event_id is empty; leave it out instead")),
        Some(id) if ID_BYTES_MAX < id.len() => Err(invalid("event_id is longer than 512 bytes")),
        Some(id) if id.contains('\0') => Err(invalid("event_id holds the character U+0000")),
        Some(id) => Ok(Some(id)),
    }
}

/// When it happened in microseconds since 1970, from the body or else from beside it.
pub(super) fn event_time(
    field: Option<&Field>,
    text: &str,
    beside: ItemTime<'_>,
    received_at: ReceivedAt,
) -> Result<i64, Reason> {
    let invalid = |at: &str, shown: &str| {
        let message = format!(
            "event_time is {}; send RFC 3339 such as 2026-03-01T12:00:00Z or Unix milliseconds",
            short(shown)
        );
        Reason::new(Code::TimeInvalid, at, message)
    };
    let Some(field) = field else {
        return match beside {
            ItemTime::None => Ok(received_at.0),
            ItemTime::Rfc3339(text) => match rfc3339(text) {
                Some(micros) => plausible(micros, received_at, "", None),
                None => Err(invalid("", text)),
            },
            ItemTime::Micros(micros) => plausible(micros, received_at, "", None),
        };
    };
    let raw = field.value(text);
    let fault = || invalid("/event_time", raw);
    match field.kind {
        Kind::String { .. } => {
            let micros = rfc3339(&field.string(text).unwrap_or_default()).ok_or_else(fault)?;
            plausible(micros, received_at, "/event_time", None)
        }
        Kind::Integer => {
            let sent: i64 = raw.parse().map_err(|_| fault())?;
            plausible(sent.saturating_mul(1000), received_at, "/event_time", Some(sent))
        }
        _ => Err(fault()),
    }
}

fn is_plausible(micros: i64, received_at: ReceivedAt) -> bool {
    EARLIEST <= micros && micros <= received_at.0.saturating_add(DAY)
}

fn plausible(
    micros: i64,
    received_at: ReceivedAt,
    at: &str,
    sent: Option<i64>,
) -> Result<i64, Reason> {
    if is_plausible(micros, received_at) {
        return Ok(micros);
    }
    let what = if micros < EARLIEST {
        "event_time is before 1990"
    } else {
        "event_time is more than a day ahead of the time of receipt"
    };
    let guess = sent.and_then(|n| {
        [
            ("seconds", n.checked_mul(1_000_000)),
            ("microseconds", Some(n)),
            ("nanoseconds", Some(n / 1000)),
        ]
        .into_iter()
        .find(|(_, micros)| micros.is_some_and(|micros| is_plausible(micros, received_at)))
    });
    let message = match guess {
        Some((unit, _)) => format!("{what}; it looks like {unit}, send milliseconds"),
        None => format!("{what}; send RFC 3339 or Unix milliseconds"),
    };
    Err(Reason::new(Code::TimeImplausible, at, message))
}

/// True for an RFC 3339 time, whenever it is.
#[must_use]
pub fn is_rfc3339(text: &str) -> bool {
    rfc3339(text).is_some()
}

/// Reads an RFC 3339 time; digits behind microseconds are cut off. `None` where it is none.
#[must_use]
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let two = |at: usize| -> Option<i64> {
        let (a, b) = (bytes.get(at)?, bytes.get(at + 1)?);
        (a.is_ascii_digit() && b.is_ascii_digit())
            .then(|| i64::from(a - b'0') * 10 + i64::from(b - b'0'))
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    let (year, month, day) = (two(0)? * 100 + two(2)?, two(5)?, two(8)?);
    let (hour, minute, second) = (two(11)?, two(14)?, two(17)?);
    let marks = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    // 60 is a leap second.
    if !marks || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut micros = 0;
    if is(at, b".") {
        let digits = bytes.get(at + 1..)?.iter().take_while(|b| b.is_ascii_digit());
        let count = digits.clone().count();
        let padded = digits.map(|b| i64::from(b - b'0')).chain(std::iter::repeat(0)).take(6);
        micros = padded.fold(0, |sum, digit| sum * 10 + digit);
        at += 1 + count;
        if count == 0 {
            return None;
        }
    }
    let offset = if is(at, b"Zz") {
        at += 1;
        0
    } else {
        let sign = if is(at, b"-") { -1 } else { i64::from(is(at, b"+")) };
        let (hours, minutes) = (two(at + 1)?, two(at + 4)?);
        if sign == 0 || !is(at + 3, b":") || hours > 23 || minutes > 59 {
            return None;
        }
        at += 6;
        sign * (hours * 60 + minutes)
    };
    let seconds =
        days_since_1970(year, month, day) * 86_400 + hour * 3600 + (minute - offset) * 60 + second;
    (at == bytes.len()).then_some(seconds * 1_000_000 + micros)
}

/// Days from 1970-01-01 in the Gregorian calendar, years counted from March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_read_as_jiff_reads_them(
            micros in -62_000_000_000_000_000i64..250_000_000_000_000_000, offset in -1439..1439i64
        ) {
            let stamp = jiff::Timestamp::from_microsecond(micros).unwrap();
            prop_assert_eq!(rfc3339(&stamp.to_string()), Some(micros));
            let shifted = jiff::Timestamp::from_microsecond(micros + offset * 60_000_000).unwrap();
            let sign = if offset < 0 { '-' } else { '+' };
            let (h, m) = (offset.abs() / 60, offset.abs() % 60);
            let text = format!("{}{sign}{h:02}:{m:02}", shifted.to_string().trim_end_matches('Z'));
            prop_assert_eq!(rfc3339(&text), Some(micros), "{}", text);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,30}", cut in 0..26usize) {
            let _ = rfc3339(&text);
            let _ = rfc3339(&"2026-02-28T12:00:00.000+01:00"[..cut]);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00Zx",
            "2026-1-1T00:00:00Z",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
        assert_eq!(rfc3339("2016-12-31t23:59:60z"), rfc3339("2017-01-01T00:00:00Z"));
        assert_eq!(rfc3339("1970-01-01T00:00:00.123456789Z"), Some(123_456));
    }
}
