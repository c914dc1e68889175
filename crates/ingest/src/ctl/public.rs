//! The public side as clients of ours see it: the answer to `/v1/events`, when to send again.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tidegate_event::Code;

use super::fault::Fault;
use crate::clock::{Clock, SystemClock};

/// A server that asks for more is asked again after this long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How bodies are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Not at all
    #[default]
    None,
    /// gzip, level 6
    Gzip,
    /// zstd, level 3
    Zstd,
}

impl Compression {
    /// As it stands in `Content-Encoding`.
    #[must_use]
    pub fn header(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// Packs a body.
    ///
    /// # Errors
    /// [`Fault::Failed`]: only where memory runs out.
    pub fn pack(self, body: Vec<u8>) -> Result<Bytes, Fault> {
        let packed = match self {
            Self::None => Ok(body),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(&body).and_then(|()| encoder.finish())
            }
            Self::Zstd => zstd::bulk::compress(&body, 3),
        };
        packed.map(Bytes::from).map_err(|e| Fault::failed(format!("cannot compress: {e}"), ""))
    }
}

/// The answer to a request whose events were kept, at least in part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Valid and durable.
    pub accepted: u64,
    /// Durable with a reason.
    pub dead_lettered: u64,
    /// Known already by their ids.
    pub deduplicated: u64,
    /// Cannot be kept.
    pub rejected: u64,
    /// What is wrong with which, at most 100.
    pub errors: Vec<ItemError>,
    /// True where there are more errors than listed.
    pub errors_truncated: bool,
}

/// What is wrong with one event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ItemError {
    /// Which one of the request, from 0.
    pub index: usize,
    /// Its id, where it has one.
    pub event_id: Option<String>,
    /// Which rule.
    pub code: String,
    /// Where in it.
    pub field: String,
    /// What is wrong, and how to mend it.
    pub message: String,
}

impl Kept {
    /// Reads the body of a 200.
    ///
    /// # Errors
    /// [`Fault::Failed`] for a body that is none of ours.
    pub fn read(body: &[u8]) -> Result<Self, Fault> {
        let shape: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(body);
        // Anything else that answers 200 (a proxy's page, an empty body) acknowledges nothing.
        match shape {
            Ok(fields) if fields.contains_key("accepted") => {
                Self::deserialize(serde_json::Value::Object(fields))
                    .map_err(|e| stranger(&e.to_string()))
            }
            Ok(_) => Err(stranger("no \"accepted\" in it")),
            Err(e) => Err(stranger(&e.to_string())),
        }
    }

    /// How many are in the log now.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.accepted + self.dead_lettered + self.deduplicated
    }

    /// True where this error means that the event was not kept, false where it is a dead letter.
    #[must_use]
    pub fn is_rejection(&self, error: &ItemError) -> bool {
        // A tenant with strict checking has no dead letters: all its invalid events are rejected.
        let always = Code::ALL.iter().any(|c| c.as_str() == error.code && c.is_rejection());
        always || (self.dead_lettered == 0 && self.rejected > 0)
    }

    /// The indexes of the events that are in the log, of a request of `events`; `None` where the
    /// answer does not tell which were rejected.
    #[must_use]
    pub fn acknowledged(&self, events: usize) -> Option<Vec<usize>> {
        if self.rejected == 0 {
            return Some((0..events).collect());
        }
        let mut rejected: Vec<usize> =
            self.errors.iter().filter(|e| self.is_rejection(e)).map(|e| e.index).collect();
        rejected.sort_unstable();
        rejected.dedup();
        if rejected.len() as u64 != self.rejected {
            return None;
        }
        Some((0..events).filter(|index| rejected.binary_search(index).is_err()).collect())
    }
}

fn stranger(why: &str) -> Fault {
    Fault::failed(
        format!("answered 200 with something that is no answer of /v1/events: {why}"),
        "check that --url is the public address of ingestd (its default port is 8080)",
    )
}

/// True for a status that asks to send the same again.
#[must_use]
pub fn asks_again(status: StatusCode) -> bool {
    // 409: the first try with this Idempotency-Key is still running.
    matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502 | 503 | 504)
}

/// What `Retry-After` asks for: seconds or a date; `None` where it is absent or makes no sense.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_microsecond();
    Some(Duration::from_micros(u64::try_from(at - SystemClock.now().0).unwrap_or(0)))
}

/// How long to wait before try number `tries + 1`. `asked`: what the server wants, taken as the
/// least up to a minute. `spread`, 0 to 1: up to a quarter more, so that clients do not come back
/// all at once.
#[must_use]
pub fn wait(tries: u32, asked: Option<Duration>, spread: f64) -> Duration {
    let least = match asked {
        Some(asked) => asked.min(RETRY_AFTER_MAX),
        None => BACKOFF_MIN.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(BACKOFF_MAX),
    };
    least + least.max(BACKOFF_MIN).mul_f64(0.25 * spread.clamp(0.0, 1.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())])
    }

    #[test]
    fn waits_are_what_the_server_asks_within_a_cap_and_never_less() {
        let second = Duration::from_secs(1);
        assert_eq!(wait(1, Some(3 * second), 0.0), 3 * second);
        assert_eq!(wait(1, Some(3 * second), 1.0), 3 * second + 3 * second / 4);
        assert_eq!(wait(1, Some(3_600 * second), 0.0), RETRY_AFTER_MAX);
        assert_eq!(wait(1, Some(Duration::ZERO), 1.0), BACKOFF_MIN / 4);
        let alone: Vec<_> = (1..9).map(|tries| wait(tries, None, 0.0).as_millis()).collect();
        assert_eq!(alone, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(wait(u32::MAX, None, 0.0), BACKOFF_MAX);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        let past = retry_after(&headers("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(past, Some(Duration::ZERO));
        let future = retry_after(&headers("Tue, 31 Dec 2199 23:59:59 GMT")).unwrap();
        assert!(future > RETRY_AFTER_MAX);
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn only_answers_of_ours_acknowledge() {
        assert!(Kept::read(b"").is_err());
        assert!(Kept::read(b"<html>").is_err());
        assert!(Kept::read(b"{}").is_err());
        assert_eq!(Kept::read(b"{\"accepted\":3}").unwrap().durable(), 3);
    }

    #[test]
    fn acknowledged_events_are_all_but_the_rejected() {
        let error = |index, code: &str| ItemError { index, code: code.into(), ..<_>::default() };
        let mut kept = Kept {
            accepted: 2,
            dead_lettered: 1,
            rejected: 1,
            errors: vec![error(1, "type_mismatch"), error(3, "not_an_object")],
            ..Kept::default()
        };
        assert_eq!(kept.acknowledged(4).unwrap(), [0, 1, 2]);
        // More rejected than named: nobody knows which.
        kept.rejected = 2;
        assert_eq!(kept.acknowledged(5), None);
        // Strict checking: what would be a dead letter was rejected.
        kept = Kept {
            accepted: 1,
            rejected: 1,
            errors: vec![error(0, "type_mismatch")],
            ..<_>::default()
        };
        assert_eq!(kept.acknowledged(2).unwrap(), [1]);
    }
}
