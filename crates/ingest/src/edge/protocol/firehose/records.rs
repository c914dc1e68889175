//! Firehose's records: base64 that holds JSON objects one behind the other, as both of its protocols carry them.

use std::ops::ControlFlow;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;

use super::super::{
    Arrived, Found, Place,
    members::{Members, begin_event, push_member},
};
use crate::{
    json::trim,
    normalize::{Item, ItemTime, is_rfc3339},
};

/// So many broken stretches are looked behind in one record; each costs a look at all that follows.
const BROKEN_MAX: usize = 16;
/// The longest id that an event may have, in bytes.
const ID_BYTES_MAX: usize = 512;

/// What all records of a request have in common.
pub(super) struct Common<'a> {
    /// The stream's name, or what stands for it.
    pub event_type: Option<&'a str>,
    /// By what a record is known that has no `event_id`: the record's number comes behind it.
    pub request: Option<&'a str>,
    /// The fields that each event gets beside its own, as a JSON object.
    pub attributes: Option<&'a str>,
}

/// The field for [`Common::attributes`].
pub(super) const ATTRIBUTES: &str = "common_attributes";

/// A record's bytes; `None` for what is no base64.
pub(super) fn bytes(data: &str) -> Option<Vec<u8>> {
    STANDARD.decode(data).ok()
}

impl Common<'_> {
    /// Hands over what is in one record, and says how many items that were: at least one.
    pub(super) fn hand_over(
        &self,
        (number, place): (usize, Place),
        record: &[u8],
        each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
    ) -> (u32, ControlFlow<()>) {
        let mut count = 0;
        let flow = pieces(record, |piece| {
            count += 1;
            self.piece((number, count), place, piece, each)
        });
        (count, flow)
    }

    fn piece(
        &self,
        (record, nth): (usize, u32),
        place: Place,
        piece: &[u8],
        each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let own = Own::of(piece, self.attributes);
        let made = || match nth {
            1 => self.request.map(|request| format!("{request}/{record}")),
            _ => self.request.map(|request| format!("{request}/{record}/{}", nth - 1)),
        };
        let id = own.id.or_else(made);
        let item = Item {
            raw: own.event.as_deref().map_or(piece, str::as_bytes),
            event_type: self.event_type,
            event_id: id.as_deref(),
            event_time: own.time.as_deref().map_or(ItemTime::None, ItemTime::Rfc3339),
            reserved: false,
            source_name: None,
            map_names: true,
        };
        each(Arrived { place, found: Found::Item(item) })
    }
}

/// What an event says of itself.
#[derive(Default)]
struct Own {
    id: Option<String>,
    time: Option<String>,
    /// The event with the attributes; `None`: as it came.
    event: Option<String>,
}

impl Own {
    fn of(piece: &[u8], attributes: Option<&str>) -> Self {
        let names = [b"event_id".as_slice(), b"event_time", b"\\u"];
        let says = names.iter().any(|name| memchr::memmem::find(piece, name).is_some());
        if !says && attributes.is_none() {
            return Self::default();
        }
        // What is no object is left to its scan.
        let Some(members) = Members::of(piece) else { return Self::default() };
        let fits = |id: &String| !id.is_empty() && id.len() <= ID_BYTES_MAX;
        let attributes = attributes.filter(|_| members.get(ATTRIBUTES).is_none());
        let event = attributes.and_then(|attributes| {
            let text = std::str::from_utf8(trim(piece).1).ok()?;
            let mut event = begin_event(text, ATTRIBUTES);
            push_member(&mut event, ATTRIBUTES, attributes);
            event.push('}');
            Some(event)
        });
        Self {
            id: members.text("event_id").filter(fits),
            time: members.text("event_time").filter(|text| is_rfc3339(text)),
            event,
        }
    }
}

/// JSON values one behind the other, with or without space or line ends between them. What is broken
/// goes up to the next line that begins with `{`, and is one piece, as is a record without anything.
fn pieces<'r>(
    record: &'r [u8],
    mut each: impl FnMut(&'r [u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut rest = trim(record).1;
    if rest.is_empty() {
        return each(record);
    }
    let mut broken = 0;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<&RawValue>();
        let end = match values.next() {
            Some(Ok(_)) => values.byte_offset(),
            Some(Err(_)) | None => {
                broken += 1;
                match memchr::memmem::find(rest, b"\n{") {
                    Some(at) if broken <= BROKEN_MAX => at + 1,
                    Some(_) | None => rest.len(),
                }
            }
        };
        let (piece, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        each(trim(piece).1)?;
        rest = trim(behind).1;
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(record: &str) -> Vec<String> {
        let mut found = Vec::new();
        let _ = pieces(record.as_bytes(), |piece| {
            found.push(String::from_utf8_lossy(piece).into_owned());
            ControlFlow::Continue(())
        });
        found
    }

    #[test]
    fn objects_are_split_with_and_without_lines_between_them() {
        let is = |record: &str, expected: &[&str]| assert_eq!(split(record), expected, "{record}");
        is("{\"a\":1}", &["{\"a\":1}"]);
        is("{\"a\":1}{\"b\":2}\n{\"c\":\n3} {}", &["{\"a\":1}", "{\"b\":2}", "{\"c\":\n3}", "{}"]);
        is("", &[""]);
        is("\n", &["\n"]);
        is("{\"a\":1}\nx{y\nz\n{\"b\":2}\n", &["{\"a\":1}", "x{y\nz", "{\"b\":2}"]);
        is("{\"a\":1}{\"b\":", &["{\"a\":1}", "{\"b\":"]);
        is("[{}] 7", &["[{}]", "7"]);
        let broken = "{\"a\":\n".repeat(1000);
        assert_eq!(split(&broken).len(), BROKEN_MAX + 1, "a record costs only so many looks");
    }

    /// Each item's id, time and bytes.
    fn items(common: &Common<'_>, record: &str) -> Vec<(Option<String>, Option<String>, String)> {
        let mut found = Vec::new();
        let (count, _) = common.hand_over((3, Place::Byte(0)), record.as_bytes(), &mut |arrived| {
            let Found::Item(item) = arrived.found else { panic!("{arrived:?}") };
            let time = match item.event_time {
                ItemTime::Rfc3339(text) => Some(text.to_owned()),
                _ => None,
            };
            let raw = String::from_utf8(item.raw.to_vec()).unwrap();
            found.push((item.event_id.map(str::to_owned), time, raw));
            ControlFlow::Continue(())
        });
        assert_eq!(count as usize, found.len());
        found
    }

    #[test]
    fn an_event_has_its_own_id_or_its_place_in_the_request() {
        let text = |text: &str| Some(text.to_owned());
        let common = Common { event_type: Some("s"), request: Some("r"), attributes: None };
        let record = r#"{"event_id":"x","event_time":"2026-03-01T12:00:00Z"}{"event_id":7}{"b":2}"#;
        let found = items(&common, record);
        let ids: Vec<_> = found.iter().map(|(id, ..)| id.clone()).collect();
        assert_eq!(ids, [text("x"), text("r/3/1"), text("r/3/2")]);
        assert_eq!(found[0].1, text("2026-03-01T12:00:00Z"));
        assert_eq!(items(&common, "{\"event_time\":\"soon\"}")[0].0, text("r/3"));
        let none = Common { request: None, ..common };
        assert_eq!(items(&none, "{\"ev\\u0065nt_id\":\"x\"}")[0].0, text("x"));
        assert_eq!(items(&none, "{}")[0].0, None);
    }

    #[test]
    fn attributes_are_one_more_field_unless_the_event_has_it() {
        let common = Common { event_type: None, request: None, attributes: Some("{\"env\":1}") };
        let raw = |record: &str| items(&common, record).remove(0).2;
        assert_eq!(raw("{\"a\": 1.50}"), r#"{"a": 1.50,"common_attributes":{"env":1}}"#);
        assert_eq!(raw("{}"), r#"{"common_attributes":{"env":1}}"#);
        let own = r#"{"common_attributes":2}"#;
        assert_eq!(raw(own), own);
        assert_eq!(raw("[1]"), "[1]");
    }

    proptest! {
        #[test]
        fn nothing_but_space_is_lost_between_pieces(record in "[ \n{}\"a:1,\\[\\]]{0,60}") {
            let squeezed = |text: &str| text.split_ascii_whitespace().collect::<String>();
            prop_assert_eq!(squeezed(&split(&record).concat()), squeezed(&record));
        }
    }
}
