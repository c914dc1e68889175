//! One batch as bytes: what a request left in the log, and what travels between the stages.
//!
//! ```text
//! batch   := head record* types tail                    all integers little-endian
//! head    := version u8 (1) · tenant_len u8 · protocol_len u8 · 0 u8 · base_id [16]
//!            · received_at i64 (µs) · tenant · protocol
//! record  := len u32 (of what follows) · index u32 · event_time i64 (µs) · type u16
//!            · id_len u16 · note_len u32 · code u8 (0: accepted) · flags u8 · id · note · raw
//! types   := ( name_len u8 · version i32 · hash [16] · name )*
//! tail    := count u32 · type_count u32 · types_at u32
//! ```
//!
//! `raw` is the event as the client sent it, byte for byte, except where a personal-data rule
//! changed it. `index` is the event's place in its request and, with `base_id`, its id where the
//! client gave none. `note` is empty for a plain accepted event, else a JSON object with what else
//! is to be known (`field` and `message` of a dead letter, `pii`: the fields that a rule changed,
//! `source_name`: the type's name as it came).

use bytes::{BufMut, Bytes};

use crate::{Code, EventTime, EventType, Offset, ReceivedAt, TenantId};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 28;
const RECORD_BYTES: usize = 22;
const TYPE_BYTES: usize = 21;
const TAIL_BYTES: usize = 12;

const FLAG_CLIENT_ID: u8 = 1;
const FLAG_PII: u8 = 2;

/// Which schema an event was judged by. Version 0 and a zero hash: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SchemaRef {
    /// The schema's `x-version`.
    pub version: i32,
    /// The first 16 bytes of the SHA-256 of the schema's canonical text.
    pub hash: [u8; 16],
}

/// One event on its way into a batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its place in the request, from 0.
    pub index: u32,
    /// Its type.
    pub event_type: &'a EventType,
    /// The schema it was judged by.
    pub schema: SchemaRef,
    /// The id the client gave, if any (at most 512 bytes).
    pub client_id: Option<&'a str>,
    /// When it happened.
    pub event_time: EventTime,
    /// `None`: accepted; else the code it is a dead letter for.
    pub dead: Option<Code>,
    /// True where a personal-data rule changed `raw`.
    pub pii_changed: bool,
    /// See the module's text; empty for none.
    pub note: &'a str,
    /// The event: one JSON object (for a dead letter: as it came).
    pub raw: &'a [u8],
}

/// How many events of one type a batch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeTally {
    /// The type.
    pub event_type: EventType,
    /// Its accepted events.
    pub accepted: u64,
    /// Its dead letters.
    pub dead_lettered: u64,
}

/// A batch as bytes, with what the writer needs to know without reading them.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    /// Whose.
    pub tenant: TenantId,
    /// When the edge had the whole request.
    pub received_at: ReceivedAt,
    /// How many events, at least 1 in a batch that is appended.
    pub count: u32,
    /// True where at least one event brought an id of its own.
    pub has_client_ids: bool,
    /// True where known ids must not be dropped: a re-drive. False as it comes from the encoder.
    pub bypass_dedup: bool,
    /// How many of each type.
    pub tallies: Vec<TypeTally>,
    /// The bytes.
    pub body: Bytes,
}

/// Puts records one behind the other. Copies each event's bytes once, allocates per batch.
#[derive(Debug)]
pub struct BatchEncoder {
    tenant: TenantId,
    received_at: ReceivedAt,
    body: Vec<u8>,
    types: Vec<(SchemaRef, TypeTally)>,
    last_type: usize,
    count: u32,
    has_client_ids: bool,
}

impl BatchEncoder {
    /// A batch of `tenant` that came by `protocol`; `base_id` is a UUIDv7 (see [`generated_id`]);
    /// `capacity` is a guess of the bytes to come.
    #[must_use]
    pub fn new(
        tenant: TenantId,
        protocol: &str,
        received_at: ReceivedAt,
        base_id: [u8; 16],
        capacity: usize,
    ) -> Self {
        let mut body = Vec::with_capacity(capacity + HEAD_BYTES + 64);
        let name = tenant.as_str();
        body.extend_from_slice(&[VERSION, byte(name.len()), byte(protocol.len()), 0]);
        body.extend_from_slice(&base_id);
        body.put_i64_le(received_at.0);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(protocol.as_bytes());
        Self {
            tenant,
            received_at,
            body,
            types: Vec::new(),
            last_type: 0,
            count: 0,
            has_client_ids: false,
        }
    }

    /// Adds one event.
    pub fn push(&mut self, record: &Record<'_>) {
        let type_index = self.type_index(record.event_type, record.schema);
        if let Some((_, tally)) = self.types.get_mut(type_index) {
            match record.dead {
                None => tally.accepted += 1,
                Some(_) => tally.dead_lettered += 1,
            }
        }
        let id = record.client_id.unwrap_or_default();
        let mut flags = if record.pii_changed { FLAG_PII } else { 0 };
        if record.client_id.is_some() {
            flags |= FLAG_CLIENT_ID;
            self.has_client_ids = true;
        }
        let len = RECORD_BYTES + id.len() + record.note.len() + record.raw.len();
        let mut head = [0u8; 4 + RECORD_BYTES];
        let mut at = head.as_mut_slice();
        at.put_u32_le(word(len));
        at.put_u32_le(record.index);
        at.put_i64_le(record.event_time.0);
        at.put_u16_le(half(type_index));
        at.put_u16_le(half(id.len()));
        at.put_u32_le(word(record.note.len()));
        at.put_u8(record.dead.map_or(0, |code| code as u8));
        at.put_u8(flags);
        self.body.reserve(head.len() + len);
        self.body.extend_from_slice(&head);
        self.body.extend_from_slice(id.as_bytes());
        self.body.extend_from_slice(record.note.as_bytes());
        self.body.extend_from_slice(record.raw);
        self.count += 1;
    }

    fn type_index(&mut self, name: &EventType, schema: SchemaRef) -> usize {
        let same = |(s, t): &(SchemaRef, TypeTally)| *s == schema && t.event_type == *name;
        if self.types.get(self.last_type).is_some_and(same) {
            return self.last_type;
        }
        self.last_type = self.types.iter().position(same).unwrap_or_else(|| {
            let tally = TypeTally { event_type: name.clone(), accepted: 0, dead_lettered: 0 };
            self.types.push((schema, tally));
            self.types.len() - 1
        });
        self.last_type
    }

    /// How many events are in it so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many bytes are in it so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// How many kinds of (type, schema) it holds; at most 65,535 fit.
    #[must_use]
    pub fn types(&self) -> usize {
        self.types.len()
    }

    /// Closes the batch.
    #[must_use]
    pub fn finish(mut self) -> EncodedBatch {
        let types_at = word(self.body.len());
        for (schema, tally) in &self.types {
            let name = tally.event_type.as_str();
            self.body.put_u8(byte(name.len()));
            self.body.put_i32_le(schema.version);
            self.body.extend_from_slice(&schema.hash);
            self.body.extend_from_slice(name.as_bytes());
        }
        self.body.put_u32_le(self.count);
        self.body.put_u32_le(word(self.types.len()));
        self.body.put_u32_le(types_at);
        EncodedBatch {
            tenant: self.tenant,
            received_at: self.received_at,
            count: self.count,
            has_client_ids: self.has_client_ids,
            bypass_dedup: false,
            tallies: self.types.into_iter().map(|(_, tally)| tally).collect(),
            body: self.body.into(),
        }
    }
}

/// The bytes are no batch, or a damaged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a batch: {0}")]
pub struct DecodeError(pub &'static str);

/// One kind of event in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeView<'a> {
    /// The type's name, valid.
    pub name: &'a str,
    /// The schema its events were judged by.
    pub schema: SchemaRef,
}

/// A batch, read in place.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// By which protocol it came.
    pub protocol: &'a str,
    /// When the edge had it.
    pub received_at: ReceivedAt,
    /// How many events.
    pub count: u32,
    /// From which the ids of events without one are made.
    pub base_id: [u8; 16],
    /// The kinds of events in it.
    pub types: Vec<TypeView<'a>>,
    records: &'a [u8],
}

/// One event of a batch, read in place.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Its place in the request, from 0.
    pub index: u32,
    /// Its place in the batch, from 0: its offset is the batch's first offset plus this.
    pub position: u32,
    /// Index into [`BatchView::types`].
    pub type_index: usize,
    /// Its type and schema.
    pub kind: TypeView<'a>,
    /// The id the client gave, if any.
    pub client_id: Option<&'a str>,
    /// When it happened.
    pub event_time: EventTime,
    /// `None`: accepted; else the code it is a dead letter for.
    pub dead: Option<Code>,
    /// True where a personal-data rule changed `raw`.
    pub pii_changed: bool,
    /// See the module's text; empty for none.
    pub note: &'a str,
    /// The event.
    pub raw: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Reads head and types; the records are read by [`BatchView::records`].
    ///
    /// # Errors
    /// [`DecodeError`] with the part that is not as it should be.
    pub fn parse(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut head = Cursor(body);
        if head.u8()? != VERSION {
            return Err(DecodeError("unknown version"));
        }
        let (tenant_len, protocol_len) = (head.u8()?, head.u8()?);
        head.u8()?;
        let base_id = head.array::<16>()?;
        let received_at = ReceivedAt(i64::from_le_bytes(head.array()?));
        let tenant = head.text(tenant_len.into())?;
        let protocol = head.text(protocol_len.into())?;
        let records_at = body.len() - head.0.len();

        let tail_at = body.len().checked_sub(TAIL_BYTES).ok_or(DecodeError("too short"))?;
        let mut tail = Cursor(body.get(tail_at..).unwrap_or_default());
        let (count, type_count, types_at) = (tail.u32()?, tail.u32()?, tail.u32()? as usize);
        let mut at = Cursor(body.get(types_at..tail_at).ok_or(DecodeError("types out of place"))?);
        let mut types = Vec::with_capacity((type_count as usize).min(at.0.len() / TYPE_BYTES));
        for _ in 0..type_count {
            let name_len = at.u8()?;
            let version = i32::from_le_bytes(at.array()?);
            let schema = SchemaRef { version, hash: at.array()? };
            types.push(TypeView { name: at.text(name_len.into())?, schema });
        }
        if !at.0.is_empty() {
            return Err(DecodeError("bytes behind the types"));
        }
        let records = body.get(records_at..types_at).ok_or(DecodeError("records out of place"))?;
        Ok(Self { tenant, protocol, received_at, count, base_id, types, records })
    }

    /// Its events in order.
    pub fn records(&self) -> impl Iterator<Item = Result<RecordView<'a>, DecodeError>> + '_ {
        let mut rest = Cursor(self.records);
        let mut position = 0;
        std::iter::from_fn(move || {
            if rest.0.is_empty() {
                let whole = position == self.count;
                position = self.count;
                return (!whole).then_some(Err(DecodeError("fewer records than it says")));
            }
            let record = self.record(&mut rest, position);
            position += 1;
            if record.is_err() {
                rest = Cursor(&[]);
                position = self.count;
            }
            Some(record)
        })
    }

    fn record(&self, rest: &mut Cursor<'a>, position: u32) -> Result<RecordView<'a>, DecodeError> {
        let len = rest.u32()? as usize;
        let mut at = Cursor(rest.take(len)?);
        let index = at.u32()?;
        let event_time = EventTime(i64::from_le_bytes(at.array()?));
        let type_index = usize::from(u16::from_le_bytes(at.array()?));
        let id_len = usize::from(u16::from_le_bytes(at.array()?));
        let note_len = at.u32()? as usize;
        let (code, flags) = (at.u8()?, at.u8()?);
        let dead = match code {
            0 => None,
            n => Some(Code::from_number(n).ok_or(DecodeError("unknown code"))?),
        };
        let kind = *self.types.get(type_index).ok_or(DecodeError("unknown type"))?;
        let id = at.text(id_len)?;
        let note = at.text(note_len)?;
        Ok(RecordView {
            index,
            position,
            type_index,
            kind,
            client_id: (flags & FLAG_CLIENT_ID != 0).then_some(id),
            event_time,
            dead,
            pii_changed: flags & FLAG_PII != 0,
            note,
            raw: at.0,
        })
    }

    /// The same batch without the events for which `drop` says true (by position).
    ///
    /// # Errors
    /// [`DecodeError`] when a record or a name cannot be read.
    pub fn without(
        &self,
        protocol: &str,
        mut drop: impl FnMut(u32) -> bool,
    ) -> Result<EncodedBatch, DecodeError> {
        let tenant = TenantId::new(self.tenant).map_err(|_| DecodeError("no tenant's name"))?;
        let capacity = self.records.len();
        let mut kept =
            BatchEncoder::new(tenant, protocol, self.received_at, self.base_id, capacity);
        let names: Result<Vec<_>, _> = self.types.iter().map(|t| EventType::new(t.name)).collect();
        let names = names.map_err(|_| DecodeError("no event type's name"))?;
        for record in self.records() {
            let r = record?;
            if drop(r.position) {
                continue;
            }
            kept.push(&Record {
                index: r.index,
                event_type: names.get(r.type_index).ok_or(DecodeError("unknown type"))?,
                schema: r.kind.schema,
                client_id: r.client_id,
                event_time: r.event_time,
                dead: r.dead,
                pii_changed: r.pii_changed,
                note: r.note,
                raw: r.raw,
            });
        }
        Ok(kept.finish())
    }
}

impl RecordView<'_> {
    /// The event's id: the client's, else the one made from the batch's `base_id`.
    #[must_use]
    pub fn event_id(&self, base_id: &[u8; 16]) -> std::borrow::Cow<'_, str> {
        match self.client_id {
            Some(id) => id.into(),
            None => generated_id(base_id, self.index).into(),
        }
    }

    /// The event's offset in a batch whose first offset is `base`.
    #[must_use]
    pub fn offset(&self, base: Offset) -> Offset {
        base.plus(self.position.into())
    }
}

/// The id of an event that came without one: the UUIDv7 `base_id` with `index` added to its last 32
/// bits (whose top bit a base leaves clear, so that it never carries), as text.
#[must_use]
pub fn generated_id(base_id: &[u8; 16], index: u32) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    /// Where the digits of each byte stand.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let id = u128::from_be_bytes(*base_id).wrapping_add(index.into());
    let mut text = [b'-'; 36];
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    for (place, byte) in PLACES.into_iter().zip(id.to_be_bytes()) {
        if let Some(two) = text.get_mut(place..place + 2) {
            two.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
    }
    // Only ASCII was put there.
    std::str::from_utf8(&text).unwrap_or_default().to_owned()
}

/// Makes a UUID the base of a batch's ids: clears the bit that lets [`generated_id`] add.
#[must_use]
pub fn base_id(uuid: [u8; 16]) -> [u8; 16] {
    (u128::from_be_bytes(uuid) & !0x8000_0000).to_be_bytes()
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(DecodeError("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError("cut short"))?;
        self.0 = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(u8::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }
    fn text(&mut self, n: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.take(n)?).map_err(|_| DecodeError("text that is not UTF-8"))
    }
}

/// The bounds that make these casts safe: names are at most 127 bytes, ids 512, and a request's
/// decoded body (`edge.limits.decoded_bytes`) is at most 1 GiB.
fn byte(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}
fn half(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Sample = (Option<String>, i64, Option<u8>, bool, String, Vec<u8>, bool);

    fn sample() -> impl Strategy<Value = Vec<Sample>> {
        let one = (
            proptest::option::of(".{0,20}"),
            any::<i64>(),
            proptest::option::of(1u8..18),
            any::<bool>(),
            ".{0,10}",
            proptest::collection::vec(any::<u8>(), 0..60),
            any::<bool>(),
        );
        proptest::collection::vec(one, 1..20)
    }

    fn encode(samples: &[Sample]) -> EncodedBatch {
        let tenant = TenantId::new("acme").unwrap();
        let mut enc = BatchEncoder::new(tenant, "events", ReceivedAt(7), base_id([9; 16]), 0);
        let types = [EventType::new("a").unwrap(), EventType::new("b.c").unwrap()];
        for (i, (id, time, code, pii, note, raw, second)) in samples.iter().enumerate() {
            enc.push(&Record {
                index: i as u32,
                event_type: &types[usize::from(*second)],
                schema: SchemaRef { version: i32::from(*second), hash: [3; 16] },
                client_id: id.as_deref(),
                event_time: EventTime(*time),
                dead: code.and_then(Code::from_number),
                pii_changed: *pii,
                note,
                raw,
            });
        }
        enc.finish()
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_as_it_was_written(samples in sample()) {
            let batch = encode(&samples);
            let view = BatchView::parse(&batch.body).unwrap();
            prop_assert_eq!((view.tenant, view.protocol, view.received_at.0), ("acme", "events", 7));
            let records: Vec<_> = view.records().map(Result::unwrap).collect();
            prop_assert_eq!(records.len(), samples.len());
            for (r, (id, time, code, pii, note, raw, second)) in records.iter().zip(&samples) {
                prop_assert_eq!(r.client_id, id.as_deref());
                prop_assert_eq!(r.event_time.0, *time);
                prop_assert_eq!(r.dead.map(|c| c as u8), *code);
                prop_assert_eq!(r.pii_changed, *pii);
                prop_assert_eq!(r.note, note);
                prop_assert_eq!(r.raw, raw.as_slice());
                prop_assert_eq!(r.kind.name, if *second { "b.c" } else { "a" });
            }
            let counted: u64 = batch.tallies.iter().map(|t| t.accepted + t.dead_lettered).sum();
            prop_assert_eq!(counted, samples.len() as u64);
        }

        #[test]
        fn what_is_dropped_is_gone_and_the_rest_keeps_its_index(
            samples in sample(), mask in any::<u32>()
        ) {
            let batch = encode(&samples);
            let view = BatchView::parse(&batch.body).unwrap();
            let kept = view.without("events", |p| mask >> (p % 32) & 1 == 1).unwrap();
            let again = BatchView::parse(&kept.body).unwrap();
            let left: Vec<u32> = again.records().map(|r| r.unwrap().index).collect();
            let expected: Vec<u32> =
                (0..samples.len() as u32).filter(|p| mask >> (p % 32) & 1 == 0).collect();
            prop_assert_eq!(left, expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(view) = BatchView::parse(&bytes) {
                let _ = view.records().count();
            }
        }

        #[test]
        fn a_cut_or_flipped_batch_never_panics(
            samples in sample(), cut in any::<prop::sample::Index>(), bit in 0..8u32
        ) {
            let batch = encode(&samples);
            let at = cut.index(batch.body.len());
            prop_assert!(BatchView::parse(&batch.body[..at]).map_or(true, |v| v
                .records()
                .any(|r| r.is_err())));
            let mut flipped = batch.body.to_vec();
            flipped[at] ^= 1 << bit;
            if let Ok(view) = BatchView::parse(&flipped) {
                let _ = view.records().count();
            }
        }
    }

    #[test]
    fn generated_ids_are_uuids_and_distinct() {
        let base = base_id([0xff; 16]);
        assert_eq!(generated_id(&base, 0), "ffffffff-ffff-ffff-ffff-ffff7fffffff");
        assert_eq!(generated_id(&base, 1), "ffffffff-ffff-ffff-ffff-ffff80000000");
    }
}
