//! Events that look real: 13 fields, mostly text, one id, one time, four numbers and truth values.
//!
//! All of it is drawn from the seed, so that the same options make the same bodies.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// What the events are to be like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Draws everything.
    pub seed: u64,
    /// Events in a body.
    pub batch: usize,
    /// About how many bytes an event has, its line end included.
    pub event_bytes: usize,
    /// The names of the event types, used in turn.
    pub event_types: Vec<String>,
    /// True: a field `duration_ms`, for a schema that converts it.
    pub unit_field: bool,
    /// True: room for an id in each event, as `event_id`.
    pub ids: bool,
    /// True: room for a new event type in each event, in place of the names.
    pub fresh_types: bool,
}

/// A body before it is sent: lines of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// The lines.
    pub bytes: Vec<u8>,
    /// Where each event's id goes; empty without ids.
    pub ids: Vec<usize>,
    /// The type of each event, as an index into [`Shape::event_types`].
    pub types: Vec<usize>,
    /// Where each event's own event type goes; empty where types have names.
    pub fresh: Vec<usize>,
}

impl Template {
    /// True where every request sends the same bytes.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.ids.is_empty() && self.fresh.is_empty()
    }
}

/// Characters of an id: 16 for the run, a dash, 16 for the event.
pub const ID_CHARS: usize = 33;

const TEXTS: &[(&str, &[&str])] = &[
    ("page", &["/", "/pricing", "/docs/getting-started", "/account/settings", "/search"]),
    ("referrer", &["https://www.example.com/", "https://news.example.org/item", "direct"]),
    ("country", &["DE", "US", "JP", "BR", "IN", "FR", "NG"]),
    ("browser", &["Firefox 145.0", "Chrome 142.0.7444.59", "Safari 26.1", "Edge 142.0"]),
    ("platform", &["linux-x86_64", "windows-11", "macos-26", "android-16", "ios-26.1"]),
    ("message", &["the request was answered from the cache", "the user moved on", "done"]),
];
/// Words that compress about as well as what real clients send.
const WORDS: &[&str] = &[
    "Mozilla/5.0 ",
    "(X11; Linux x86_64; rv:145.0) ",
    "Gecko/20100101 ",
    "AppleWebKit/537.36 ",
    "(KHTML, like Gecko) ",
    "Chrome/142.0.7444.59 ",
    "Safari/537.36 ",
    "Mobile/15E148 ",
    "en-GB ",
    "basket ",
    "checkout ",
    "variant-b ",
    "1f3a9c ",
    "77d20e ",
    "b04c55 ",
    "e91a07 ",
    "retry ",
];
/// 2026-01-01T00:00:00Z in seconds: fixed, since bodies must not depend on when they are made.
const EPOCH_SECONDS: i64 = 1_767_225_600;

/// Makes body number `number`, with `events` events.
#[must_use]
pub fn template(shape: &Shape, number: u64, events: usize) -> Template {
    let mut random = StdRng::seed_from_u64(shape.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut template = Template::default();
    for index in 0..events {
        let kind = index % shape.event_types.len().max(1);
        template.types.push(kind);
        event(shape, kind, &mut random, &mut template);
    }
    template
}

fn event(shape: &Shape, kind: usize, random: &mut StdRng, into: &mut Template) {
    let start = into.bytes.len();
    let text = |into: &mut Template, name: &str, value: &str| {
        for part in [",\"", name, "\":\"", value, "\""] {
            into.bytes.extend_from_slice(part.as_bytes());
        }
    };
    let name = shape.event_types.get(kind).map_or("", String::as_str);
    into.bytes.extend_from_slice(b"{\"event_type\":\"");
    if shape.fresh_types {
        into.fresh.push(into.bytes.len());
        into.bytes.extend_from_slice(&[b'x'; ID_CHARS]);
    } else {
        into.bytes.extend_from_slice(name.as_bytes());
    }
    into.bytes.push(b'"');
    if shape.ids {
        into.bytes.extend_from_slice(b",\"event_id\":\"");
        into.ids.push(into.bytes.len());
        into.bytes.extend_from_slice(&[b'0'; ID_CHARS]);
        into.bytes.push(b'"');
    }
    let micros = random.random_range(0..86_400_000_000_i64);
    let time = jiff::Timestamp::new(EPOCH_SECONDS + micros / 1_000_000, 0).unwrap_or_default();
    let time = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    text(into, "event_time", &format!("{time}.{:03}Z", micros / 1_000 % 1_000));
    let id: u128 = random.random();
    let session = uuid::Builder::from_random_bytes(id.to_be_bytes()).into_uuid().to_string();
    text(into, "session_id", &session);
    for (name, values) in TEXTS {
        text(into, name, values.choose(random).copied().unwrap_or_default());
    }
    numbers(shape, random, into);
    pad(shape, random, into, start);
    into.bytes.extend_from_slice(b"}\n");
}

fn numbers(shape: &Shape, random: &mut StdRng, into: &mut Template) {
    let mut field = |name: &str, value: String| {
        into.bytes.extend_from_slice(format!(",\"{name}\":{value}").as_bytes());
    };
    if shape.unit_field {
        field("duration_ms", random.random_range(1..60_000_u32).to_string());
    } else {
        field(
            "status",
            [200_u16, 204, 304, 404].choose(random).copied().unwrap_or(200).to_string(),
        );
    }
    let cents: u32 = random.random_range(0..1_000_000);
    field("price", format!("{}.{:02}", cents / 100, cents % 100));
    field("is_new", random.random::<bool>().to_string());
}

/// The last field fills up to the size asked for.
fn pad(shape: &Shape, random: &mut StdRng, into: &mut Template, start: usize) {
    const BEFORE: &[u8] = b",\"user_agent\":\"";
    into.bytes.extend_from_slice(BEFORE);
    // `"`, `}` and the line end are still to come.
    let wanted = shape.event_bytes.saturating_sub(into.bytes.len() - start + 3);
    let end = into.bytes.len() + wanted;
    while into.bytes.len() < end {
        let word = WORDS.choose(random).copied().unwrap_or("word ");
        into.bytes.extend_from_slice(word.as_bytes());
    }
    into.bytes.truncate(end);
    into.bytes.push(b'"');
}

/// Writes a name of an event type that no other event of run `run` has: as an id, behind a letter.
pub fn write_type(run: u64, number: u64, into: &mut [u8]) {
    write_id(run, number, into);
    if let Some(first) = into.first_mut() {
        *first = b't';
    }
}

/// Writes id number `number` of run `run` where an id goes.
pub fn write_id(run: u64, number: u64, into: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let hex = |value: u64, place: usize| {
        let digit = usize::try_from(value >> (60 - 4 * place) & 15).unwrap_or(0);
        DIGITS.get(digit).copied().unwrap_or(b'0')
    };
    for (place, byte) in into.iter_mut().enumerate().take(ID_CHARS) {
        *byte = match place {
            0..16 => hex(run, place),
            16 => b'-',
            _ => hex(number, place - 17),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            seed: 7,
            batch: 50,
            event_bytes: 500,
            event_types: vec!["a".into(), "b".into()],
            unit_field: false,
            ids: false,
            fresh_types: false,
        }
    }

    #[test]
    fn fresh_types_are_valid_names_and_all_differ() {
        let shape = Shape { fresh_types: true, ..shape() };
        let mut body = template(&shape, 0, 3);
        for (number, place) in (0..).zip(body.fresh.clone()) {
            write_type(0x12, number, &mut body.bytes[place..]);
        }
        let lines = body.bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        let names: std::collections::BTreeSet<String> = lines
            .map(|l| serde_json::from_slice::<serde_json::Value>(l).unwrap())
            .map(|event| event["event_type"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| tidegate_event::EventType::is_valid(name)), "{names:?}");
    }

    #[test]
    fn the_same_seed_makes_the_same_body_and_another_does_not() {
        let first = template(&shape(), 0, 50);
        assert_eq!(first, template(&shape(), 0, 50));
        assert_ne!(first, template(&shape(), 1, 50));
        assert_ne!(first, template(&Shape { seed: 8, ..shape() }, 0, 50));
    }

    #[test]
    fn events_have_thirteen_fields_and_the_size_asked_for() {
        for (unit_field, ids, event_bytes) in
            [(false, false, 500), (true, true, 500), (true, false, 4_096)]
        {
            let shape = Shape { unit_field, ids, event_bytes, ..shape() };
            let body = template(&shape, 0, 50);
            let lines: Vec<_> = body.bytes.split_inclusive(|b| *b == b'\n').collect();
            assert_eq!(lines.len(), 50);
            for (i, line) in lines.iter().enumerate() {
                let event: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(line).unwrap();
                assert_eq!(event.len(), 13 + usize::from(ids));
                assert_eq!(line.len(), event_bytes);
                assert_eq!(event["event_type"], ["a", "b"][i % 2]);
                assert_eq!(event.contains_key("duration_ms"), unit_field);
            }
        }
    }

    #[test]
    fn ids_are_patched_where_they_go() {
        let shape = Shape { ids: true, ..shape() };
        let mut body = template(&shape, 0, 2);
        for (number, place) in [(1, body.ids[0]), (0xabc, body.ids[1])] {
            write_id(0x12, number, &mut body.bytes[place..]);
        }
        let events: Vec<serde_json::Value> = body
            .bytes
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(events[0]["event_id"], "0000000000000012-0000000000000001");
        assert_eq!(events[1]["event_id"], "0000000000000012-0000000000000abc");
    }
}
