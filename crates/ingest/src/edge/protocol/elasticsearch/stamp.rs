//! `@timestamp`, in the forms that Elasticsearch takes for a date where nobody says otherwise.

use crate::edge::protocol::members::{Members, unquoted};

/// When a document says that it happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stamp {
    None,
    /// RFC 3339, or what cannot be read as a time.
    Text(String),
    /// Microseconds since 1970.
    Micros(i64),
}

impl Stamp {
    pub(super) fn of(raw: &[u8]) -> Self {
        // Few bytes say that most documents without a time have none; escapes begin with the name, if at all.
        if memchr::memmem::find(raw, b"timestamp\"").is_none() {
            return Self::None;
        }
        match Members::of(raw).and_then(|members| members.get("@timestamp")) {
            None | Some("null") => Self::None,
            Some(value) => {
                let text = unquoted(value);
                let is_text = text.is_some();
                let text = text.unwrap_or_else(|| value.to_owned());
                match micros(&text).filter(|_| !is_text || 4 < text.trim_start_matches('-').len()) {
                    Some(micros) => Self::Micros(micros),
                    None => Self::Text(completed(text)),
                }
            }
        }
    }
}

/// Milliseconds since 1970, with up to six decimals of which three count.
fn micros(text: &str) -> Option<i64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if decimals.is_empty() || 6 < decimals.len() || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{decimals:0<3}").get(..3)?.parse().ok()?;
    let micros = if whole.starts_with('-') { -micros } else { micros };
    whole.parse::<i64>().ok()?.checked_mul(1_000)?.checked_add(micros)
}

/// `strict_date_optional_time` as RFC 3339: what may be left away is added, UTC where there is no zone.
fn completed(mut text: String) -> String {
    const WHOLE: &str = "0000-01-01T00:00:00Z";
    let is_form = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(found, form)| match form {
                b'0' => found.is_ascii_digit(),
                form => found == form,
            })
    };
    if ["0000", "0000-00", "0000-00-00"].iter().any(|form| is_form(&text, form)) {
        text.push_str(WHOLE.get(text.len()..).unwrap_or_default());
        return text;
    }
    let Some((date, rest)) = text.split_once('T') else { return text };
    let at = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(at);
    let time = match time {
        hours if is_form(hours, "00") => format!("{hours}:00:00"),
        minutes if is_form(minutes, "00:00") => format!("{minutes}:00"),
        whole => whole.replace(',', "."),
    };
    let zone = match zone {
        "" => "Z".to_owned(),
        zone if is_form(zone.get(1..).unwrap_or_default(), "00") => format!("{zone}:00"),
        zone if is_form(zone.get(1..).unwrap_or_default(), "0000") => {
            let (hours, minutes) = zone.split_at(3);
            format!("{hours}:{minutes}")
        }
        zone => zone.to_owned(),
    };
    format!("{date}T{time}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::is_rfc3339;

    #[track_caller]
    fn text(sent: &str, expected: &str) {
        let raw = format!(r#"{{"a":1,"@timestamp":{sent}}}"#);
        assert_eq!(Stamp::of(raw.as_bytes()), Stamp::Text(expected.to_owned()), "{sent}");
    }

    #[test]
    fn what_elasticsearch_takes_for_a_date_is_a_time() {
        for (sent, expected) in [
            (r#""2026-03-01T12:00:00.123456789Z""#, "2026-03-01T12:00:00.123456789Z"),
            (r#""2026-03-01T12:00:00,5+01""#, "2026-03-01T12:00:00.5+01:00"),
            (r#""2026-03-01T12:00:00-0130""#, "2026-03-01T12:00:00-01:30"),
            (r#""2026-03-01T12:00""#, "2026-03-01T12:00:00Z"),
            (r#""2026-03-01T12Z""#, "2026-03-01T12:00:00Z"),
            (r#""2026-03-01T12:00:00+01:00""#, "2026-03-01T12:00:00+01:00"),
            (r#""2026-03-01""#, "2026-03-01T00:00:00Z"),
            (r#""2026-03""#, "2026-03-01T00:00:00Z"),
            (r#""2026""#, "2026-01-01T00:00:00Z"),
        ] {
            text(sent, expected);
            assert!(is_rfc3339(expected), "{expected}");
        }
        for (sent, micros) in [
            ("1772366400250", 1_772_366_400_250_000),
            (r#""1772366400250""#, 1_772_366_400_250_000),
            ("1772366400250.25", 1_772_366_400_250_250),
            ("-1.5", -1_500),
        ] {
            let raw = format!(r#"{{"@timestamp":{sent}}}"#);
            assert_eq!(Stamp::of(raw.as_bytes()), Stamp::Micros(micros), "{sent}");
        }
    }

    #[test]
    fn what_is_no_time_is_handed_on_as_it_is_and_what_is_missing_is_not_made_up() {
        for sent in ["\"soon\"", "true", "{}", "1e30", "\"1772366400.x\"", "\"T+\"", "\"aT00é\""] {
            let raw = format!(r#"{{"@timestamp":{sent}}}"#);
            let Stamp::Text(text) = Stamp::of(raw.as_bytes()) else { panic!("{sent}") };
            assert!(!is_rfc3339(&text), "{text}");
        }
        for raw in
            ["{}", r#"{"@timestamp":null}"#, r#"{"x":{"@timestamp":1}}"#, "{", r#"{"timestamp":1}"#]
        {
            assert_eq!(Stamp::of(raw.as_bytes()), Stamp::None, "{raw}");
        }
    }
}
