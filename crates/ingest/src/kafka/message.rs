//! One event as one message of Kafka: the value is the event, the headers are what the edge knew.
//!
//! ```text
//! value          the event as it was accepted, byte for byte (for a dead letter: as it came)
//! timestamp      when it was received, milliseconds
//! tenant, event_type, event_id, protocol     text
//! received_at    RFC 3339, microseconds, UTC
//! verdict        "accepted", or the code of a dead letter
//! schema_version decimal; 0: none
//! note           JSON, absent where there is none (tidegate_event::record)
//! tidegate       version u8 (1) · flags u8 (1: the client gave the id, 2: changed by a rule for
//!                personal data) · code u8 (0: accepted) · index u32 · event_time i64 µs
//!                · received_at i64 µs · schema version i32 · schema hash [16] · base_id [16],
//!                integers little-endian
//! ```
//!
//! The header `tidegate` makes a message ours: with the texts it holds all that is needed to make the
//! record again. The other headers are the same facts for the rest of the world.

use bytes::{Buf, BufMut, Bytes};
use tidegate_event::{
    BatchEncoder, BatchView, Code, EventTime, EventType, ReceivedAt, RecordView, SchemaRef,
    TenantId, record::Record,
};

const VERSION: u8 = 1;
const FLAG_CLIENT_ID: u8 = 1;
const FLAG_PII: u8 = 2;
const FIXED_BYTES: usize = 3 + 4 + 8 + 8 + 4 + 16 + 16;

/// The header that makes a message ours.
const OURS: &str = "tidegate";

/// Bytes a message takes besides its value, at most, but for id and note: names, texts, framing.
pub const OVERHEAD_BYTES: usize = 1024;

/// Bytes that the headers of an ordinary event take, about.
pub const HEADER_BYTES: usize = 280;

/// Why a message of the topic is no event of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no event of ours: {0}")]
pub struct NotOurs(pub &'static str);

/// The headers that events of one batch, type and verdict share. `received_at`: the batch's, as text.
pub fn shared_headers(
    batch: &BatchView<'_>,
    record: &RecordView<'_>,
    received_at: &str,
    mut put: impl FnMut(&str, &[u8]),
) {
    put("tenant", batch.tenant.as_bytes());
    put("event_type", record.kind.name.as_bytes());
    put("received_at", received_at.as_bytes());
    put("protocol", batch.protocol.as_bytes());
    put("verdict", record.dead.map_or("accepted", |code| code.as_str()).as_bytes());
    put("schema_version", record.kind.schema.version.to_string().as_bytes());
}

/// The headers of one event alone.
pub fn own_headers(
    batch: &BatchView<'_>,
    record: &RecordView<'_>,
    mut put: impl FnMut(&str, &[u8]),
) {
    let mut flags = 0;
    if record.client_id.is_some() {
        flags |= FLAG_CLIENT_ID;
    }
    if record.pii_changed {
        flags |= FLAG_PII;
    }
    let mut fixed = [0u8; FIXED_BYTES];
    let mut at = fixed.as_mut_slice();
    at.put_slice(&[VERSION, flags, record.dead.map_or(0, |code| code as u8)]);
    at.put_u32_le(record.index);
    at.put_i64_le(record.event_time.0);
    at.put_i64_le(batch.received_at.0);
    at.put_i32_le(record.kind.schema.version);
    at.put_slice(&record.kind.schema.hash);
    at.put_slice(&batch.base_id);
    put("event_id", record.event_id(&batch.base_id).as_bytes());
    put(OURS, &fixed);
    if !record.note.is_empty() {
        put("note", record.note.as_bytes());
    }
}

/// Makes records of messages again. Remembers the names that came last: most are the same.
#[derive(Debug, Default)]
pub struct Decoder {
    tenant: Option<TenantId>,
    event_type: Option<EventType>,
}

/// What the headers said, as they came.
#[derive(Default)]
struct Texts<'a> {
    tenant: Option<&'a str>,
    event_type: Option<&'a str>,
    event_id: Option<&'a str>,
    protocol: Option<&'a str>,
    note: Option<&'a str>,
    fixed: Option<&'a [u8]>,
}

impl<'a> Texts<'a> {
    /// Headers of other names are let be: tools on the way may add theirs.
    fn read(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Self, NotOurs> {
        let mut texts = Self::default();
        for (name, value) in headers {
            let place = match name {
                "tenant" => &mut texts.tenant,
                "event_type" => &mut texts.event_type,
                "event_id" => &mut texts.event_id,
                "protocol" => &mut texts.protocol,
                "note" => &mut texts.note,
                OURS => {
                    texts.fixed = value;
                    continue;
                }
                _ => continue,
            };
            let text = std::str::from_utf8(value.unwrap_or_default());
            *place = Some(text.map_err(|_| NotOurs("a header that is not UTF-8"))?);
        }
        Ok(texts)
    }
}

impl Decoder {
    /// One message as a batch of one record, and when it was received.
    ///
    /// # Errors
    /// [`NotOurs`]: somebody else wrote it.
    pub fn batch<'a>(
        &mut self,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        value: &[u8],
    ) -> Result<(ReceivedAt, Bytes), NotOurs> {
        let texts = Texts::read(headers)?;
        let mut fixed = texts.fixed.ok_or(NotOurs("no header `tidegate`"))?;
        if fixed.len() != FIXED_BYTES || fixed.first() != Some(&VERSION) {
            return Err(NotOurs("a header `tidegate` of a version this program does not know"));
        }
        let (_, flags, code) = (fixed.get_u8(), fixed.get_u8(), fixed.get_u8());
        let index = fixed.get_u32_le();
        let event_time = EventTime(fixed.get_i64_le());
        let received_at = ReceivedAt(fixed.get_i64_le());
        let mut schema = SchemaRef { version: fixed.get_i32_le(), hash: [0; 16] };
        fixed.copy_to_slice(&mut schema.hash);
        let mut base_id = [0; 16];
        fixed.copy_to_slice(&mut base_id);
        let dead = match code {
            0 => None,
            n => Some(Code::from_number(n).ok_or(NotOurs("an unknown code"))?),
        };
        let tenant = self.tenant(texts.tenant.ok_or(NotOurs("no tenant"))?)?;
        let protocol = texts.protocol.ok_or(NotOurs("no protocol"))?;
        let id = texts.event_id.ok_or(NotOurs("no event id"))?;
        if 255 < protocol.len() || usize::from(u16::MAX) < id.len() {
            return Err(NotOurs("a header that is too long"));
        }
        let note = texts.note.unwrap_or_default();
        let event_type = self.event_type(texts.event_type.ok_or(NotOurs("no event type"))?)?;
        let capacity = value.len() + note.len() + id.len() + 2 * event_type.as_str().len() + 64;
        let mut batch = BatchEncoder::new(tenant, protocol, received_at, base_id, capacity);
        batch.push(&Record {
            index,
            event_type,
            schema,
            client_id: (flags & FLAG_CLIENT_ID != 0).then_some(id),
            event_time,
            dead,
            pii_changed: flags & FLAG_PII != 0,
            note,
            raw: value,
        });
        Ok((received_at, batch.finish().body))
    }

    fn tenant(&mut self, name: &str) -> Result<TenantId, NotOurs> {
        match &self.tenant {
            Some(known) if known.as_str() == name => Ok(known.clone()),
            _ => {
                let tenant = TenantId::new(name).map_err(|_| NotOurs("no tenant's name"))?;
                self.tenant = Some(tenant.clone());
                Ok(tenant)
            }
        }
    }

    fn event_type(&mut self, name: &str) -> Result<&EventType, NotOurs> {
        if self.event_type.as_ref().is_none_or(|known| known.as_str() != name) {
            let named = EventType::new(name).map_err(|_| NotOurs("no event type's name"))?;
            self.event_type = Some(named);
        }
        self.event_type.as_ref().ok_or(NotOurs("no event type"))
    }
}

/// When a batch was received, as it stands in the header.
#[must_use]
pub fn received_text(at: ReceivedAt) -> String {
    jiff::Timestamp::from_microsecond(at.0)
        .map_or_else(|_| at.0.to_string(), |time| format!("{time:.6}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_event::EncodedBatch;

    type Sample = (Option<String>, i64, Option<u8>, bool, String, Vec<u8>, bool, i32);
    type Headers = Vec<(String, Vec<u8>)>;

    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let one = (
            proptest::option::of(".{0,20}"),
            any::<i64>(),
            proptest::option::of(1u8..18),
            any::<bool>(),
            ".{0,10}",
            proptest::collection::vec(any::<u8>(), 1..60),
            any::<bool>(),
            any::<i32>(),
        );
        proptest::collection::vec(one, 1..10)
    }

    fn encode(samples: &[Sample], base: [u8; 16], received: i64) -> EncodedBatch {
        let tenant = TenantId::new("acme").unwrap();
        let mut batch = BatchEncoder::new(tenant, "events", ReceivedAt(received), base, 0);
        let types = [EventType::new("a").unwrap(), EventType::new("b.c").unwrap()];
        for (i, (id, time, code, pii, note, raw, second, version)) in samples.iter().enumerate() {
            batch.push(&Record {
                index: i as u32 * 3,
                event_type: &types[usize::from(*second)],
                schema: SchemaRef { version: *version, hash: [u8::from(*second); 16] },
                client_id: id.as_deref(),
                event_time: EventTime(*time),
                dead: code.and_then(Code::from_number),
                pii_changed: *pii,
                note,
                raw,
            });
        }
        batch.finish()
    }

    fn sent(batch: &BatchView<'_>, record: &RecordView<'_>) -> Headers {
        let mut all = Headers::new();
        let text = received_text(batch.received_at);
        let mut put = |name: &str, value: &[u8]| all.push((name.to_owned(), value.to_owned()));
        shared_headers(batch, record, &text, &mut put);
        own_headers(batch, record, put);
        all
    }

    fn given(headers: &Headers) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice())))
    }

    proptest! {
        #[test]
        fn a_record_comes_out_of_its_message_as_it_went_in(
            samples in samples(), base in any::<[u8; 16]>(), received in any::<i64>()
        ) {
            let batch = encode(&samples, base, received);
            let view = BatchView::parse(&batch.body).unwrap();
            let mut decoder = Decoder::default();
            for record in view.records().map(Result::unwrap) {
                let headers = sent(&view, &record);
                let (at, body) = decoder.batch(given(&headers), record.raw).unwrap();
                prop_assert_eq!(at, batch.received_at);
                let again = BatchView::parse(&body).unwrap();
                prop_assert_eq!(
                    (again.tenant, again.protocol, again.received_at, again.base_id, again.count),
                    (view.tenant, view.protocol, view.received_at, view.base_id, 1)
                );
                let back = again.records().next().unwrap().unwrap();
                prop_assert_eq!(back.kind, record.kind);
                prop_assert_eq!(back.event_id(&again.base_id), record.event_id(&view.base_id));
                prop_assert_eq!(
                    (back.index, back.client_id, back.event_time, back.dead, back.pii_changed),
                    (record.index, record.client_id, record.event_time, record.dead, record.pii_changed)
                );
                prop_assert_eq!((back.note, back.raw), (record.note, record.raw));
            }
        }

        #[test]
        fn what_others_wrote_is_told_and_never_panics(
            headers in proptest::collection::vec(
                ("(tenant|event_type|event_id|protocol|note|tidegate|x)",
                 proptest::collection::vec(any::<u8>(), 0..60)),
                0..8,
            ),
            value in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let _ = Decoder::default().batch(given(&headers), &value);
        }
    }

    #[test]
    fn a_message_without_our_header_is_not_ours() {
        let batch =
            encode(&[(None, 1, None, false, String::new(), b"{}".to_vec(), false, 0)], [1; 16], 5);
        let view = BatchView::parse(&batch.body).unwrap();
        let record = view.records().next().unwrap().unwrap();
        let mut headers = sent(&view, &record);
        assert!(Decoder::default().batch(given(&headers), b"{}").is_ok());
        headers.retain(|(name, _)| name != OURS);
        let refused = Decoder::default().batch(given(&headers), b"{}");
        assert_eq!(refused, Err(NotOurs("no header `tidegate`")));
    }

    #[test]
    fn what_a_message_takes_besides_is_within_its_bound() {
        let longest = format!("a{}", "b".repeat(126));
        let tenant = TenantId::new(&format!("a{}", "b".repeat(62))).unwrap();
        let protocol = "p".repeat(255);
        let mut batch = BatchEncoder::new(tenant, &protocol, ReceivedAt(5), [1; 16], 0);
        batch.push(&Record {
            index: u32::MAX,
            event_type: &EventType::new(&longest).unwrap(),
            schema: SchemaRef { version: i32::MIN, hash: [7; 16] },
            client_id: None,
            event_time: EventTime(i64::MIN),
            dead: Code::from_number(1),
            pii_changed: true,
            note: "",
            raw: b"{}",
        });
        let batch = batch.finish();
        let view = BatchView::parse(&batch.body).unwrap();
        let record = view.records().next().unwrap().unwrap();
        // Each with a length of up to five bytes before name and value.
        let all: usize =
            sent(&view, &record).iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        assert!(all + 64 < OVERHEAD_BYTES, "{all}");
    }
}
