//! What an edge asks a normalizer: whose events these are, and the items of one request.
//!
//! ```text
//! head   := version u8 (1) · flags u8 · base_id [16] · received_at i64 (µs) · errors_max u32
//!           · tenant · protocol · secret · [count · key type*] · [most u64 · count · named type*]
//! items  := item* count u32          all lengths u32, all integers little-endian
//! go     := 1 u8
//! item   := kind u8 · place u64 · (raw · [type] · [id] · [source name] · [time])
//!                               | (code u8 · field · message)
//! ```

use tidegate_event::{Code, EventType, Reason, ReceivedAt, TenantId};

use super::wire::{Malformed, Reader, Writer};
use crate::{
    edge::protocol::{Arrived, Found, Place},
    normalize::{Item, ItemTime},
    tenants::Secret,
};

const VERSION: u8 = 1;

const STRICT: u8 = 1;
const KEY_TYPES: u8 = 2;
const NAMED: u8 = 4;

const REJECTED: u8 = 1;
const BY_LINE: u8 = 2;
const RESERVED: u8 = 4;
const MAP_NAMES: u8 = 8;
const TIME_TEXT: u8 = 16;
const TIME_MICROS: u8 = 32;

/// The edge's word: the batch that was judged is to be appended.
pub const GO: &[u8] = &[1];

/// What the edge knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose events.
    pub tenant: TenantId,
    /// By which protocol they came; at most 255 bytes.
    pub protocol: String,
    /// When the edge had the whole request.
    pub received_at: ReceivedAt,
    /// From which the ids of events without one are made.
    pub base_id: [u8; 16],
    /// True: invalid events are rejected, not kept as dead letters.
    pub strict: bool,
    /// Keys the `hash` rule for personal data.
    pub secret: Secret,
    /// The event types this key may send; `None`: all.
    pub key_types: Option<Vec<String>>,
    /// The types the tenant may still name; `None`: the edge finds none that is one too many.
    pub named: Option<Named>,
    /// How many reasons the protocol wants.
    pub errors_max: u32,
}

/// A tenant that has named as many types as it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// How many it may name.
    pub most: u64,
    /// Those of this request that are among them.
    pub types: Vec<EventType>,
}

impl Head {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        let mut flags = if self.strict { STRICT } else { 0 };
        flags |= if self.key_types.is_some() { KEY_TYPES } else { 0 };
        flags |= if self.named.is_some() { NAMED } else { 0 };
        to.u8(VERSION);
        to.u8(flags);
        to.raw(&self.base_id);
        to.i64(self.received_at.0);
        to.u32(self.errors_max);
        to.text(self.tenant.as_str());
        to.text(&self.protocol);
        to.bytes(&self.secret.0);
        if let Some(types) = &self.key_types {
            to.len(types.len());
            types.iter().for_each(|name| to.text(name));
        }
        if let Some(named) = &self.named {
            to.u64(named.most);
            to.len(named.types.len());
            named.types.iter().for_each(|name| to.text(name.as_str()));
        }
        to.0
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader(bytes);
        if from.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let flags = from.u8()?;
        if flags & !(STRICT | KEY_TYPES | NAMED) != 0 {
            return Err(Malformed("unknown flags"));
        }
        let base_id = from.array()?;
        let received_at = ReceivedAt(from.i64()?);
        let errors_max = from.u32()?;
        let tenant = TenantId::new(from.text()?).map_err(|_| Malformed("no tenant's name"))?;
        let protocol = from.text()?.to_owned();
        if usize::from(u8::MAX) < protocol.len() {
            return Err(Malformed("no protocol's name"));
        }
        let secret = Secret(from.bytes()?.to_vec());
        let key_types = match flags & KEY_TYPES {
            0 => None,
            _ => {
                let count = from.count(4)?;
                let names: Result<Vec<_>, _> =
                    (0..count).map(|_| from.text().map(str::to_owned)).collect();
                Some(names?)
            }
        };
        let named = if flags & NAMED == 0 { None } else { Some(named(&mut from)?) };
        from.end()?;
        let strict = flags & STRICT != 0;
        Ok(Self {
            tenant,
            protocol,
            received_at,
            base_id,
            strict,
            secret,
            key_types,
            named,
            errors_max,
        })
    }
}

fn named(from: &mut Reader<'_>) -> Result<Named, Malformed> {
    let (most, count) = (from.u64()?, from.count(4)?);
    let mut types = Vec::with_capacity(count);
    for _ in 0..count {
        let name = EventType::new(from.text()?);
        types.push(name.map_err(|_| Malformed("no event type's name"))?);
    }
    Ok(Named { most, types })
}

/// Puts items one behind the other. Copies each event's bytes once.
#[derive(Debug, Default)]
pub struct ItemsEncoder {
    to: Writer,
    count: u32,
}

impl ItemsEncoder {
    /// With room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { to: Writer(Vec::with_capacity(bytes)), count: 0 }
    }

    /// How many are in it.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.to.0.len()
    }

    /// Adds one item, to be judged.
    pub fn item(&mut self, place: Place, item: &Item<'_>) {
        let mut kind = place_kind(place);
        kind |= if item.reserved { RESERVED } else { 0 };
        kind |= if item.map_names { MAP_NAMES } else { 0 };
        kind |= match item.event_time {
            ItemTime::None => 0,
            ItemTime::Rfc3339(_) => TIME_TEXT,
            ItemTime::Micros(_) => TIME_MICROS,
        };
        self.begin(kind, place);
        let to = &mut self.to;
        to.bytes(item.raw);
        to.optional(item.event_type);
        to.optional(item.event_id);
        to.optional(item.source_name);
        match item.event_time {
            ItemTime::None => {}
            ItemTime::Rfc3339(text) => to.text(text),
            ItemTime::Micros(micros) => to.i64(micros),
        }
    }

    /// Adds one item that the edge rejects, with the id it came with.
    pub fn rejected(&mut self, place: Place, id: Option<&str>, reason: &Reason) {
        self.begin(place_kind(place) | REJECTED, place);
        let to = &mut self.to;
        to.u8(reason.code as u8);
        to.optional(id);
        to.text(&reason.field);
        to.text(&reason.message);
    }

    fn begin(&mut self, kind: u8, place: Place) {
        let (Place::Line(at) | Place::Byte(at)) = place;
        self.to.u8(kind);
        self.to.u64(at as u64);
        self.count += 1;
    }

    /// Closes the message.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.to.u32(self.count);
        self.to.0
    }
}

fn place_kind(place: Place) -> u8 {
    match place {
        Place::Line(_) => BY_LINE,
        Place::Byte(_) => 0,
    }
}

/// One item as it came, or as the edge rejected it with the id it came with.
#[derive(Debug)]
pub struct Asked<'a> {
    /// As the protocol found it.
    pub arrived: Arrived<'a>,
    /// The id of one that is rejected.
    pub id: Option<&'a str>,
}

/// The items of a message, read in place; ends with the first that cannot be read.
///
/// # Errors
/// [`Malformed`] where there is no count at its end.
pub fn items(
    bytes: &[u8],
) -> Result<impl Iterator<Item = Result<Asked<'_>, Malformed>> + '_, Malformed> {
    let at = bytes.len().checked_sub(4).ok_or(Malformed("cut short"))?;
    let (body, mut tail) = (bytes.get(..at).unwrap_or_default(), Reader(bytes));
    tail.take(at)?;
    let (count, mut from, mut read) = (tail.u32()?, Reader(body), 0u32);
    let mut over = false;
    Ok(std::iter::from_fn(move || {
        if over {
            return None;
        }
        if from.0.is_empty() {
            over = true;
            return (read != count).then_some(Err(Malformed("another number of items")));
        }
        read = read.saturating_add(1);
        let item = asked(&mut from);
        over = item.is_err();
        Some(item)
    }))
}

fn asked<'a>(from: &mut Reader<'a>) -> Result<Asked<'a>, Malformed> {
    let kind = from.u8()?;
    let at = usize::try_from(from.u64()?).map_err(|_| Malformed("a place that cannot be"))?;
    let place = if kind & BY_LINE == 0 { Place::Byte(at) } else { Place::Line(at) };
    if kind & REJECTED != 0 {
        if kind & !(REJECTED | BY_LINE) != 0 {
            return Err(Malformed("unknown kind"));
        }
        let code = Code::from_number(from.u8()?).ok_or(Malformed("unknown code"))?;
        let id = from.optional()?;
        let reason = Reason::new(code, from.text()?, from.text()?);
        return Ok(Asked { arrived: Arrived { place, found: Found::Rejected(reason) }, id });
    }
    if kind & !(BY_LINE | RESERVED | MAP_NAMES | TIME_TEXT | TIME_MICROS) != 0 {
        return Err(Malformed("unknown kind"));
    }
    let raw = from.bytes()?;
    let (event_type, event_id, source_name) =
        (from.optional()?, from.optional()?, from.optional()?);
    let event_time = match kind & (TIME_TEXT | TIME_MICROS) {
        0 => ItemTime::None,
        TIME_TEXT => ItemTime::Rfc3339(from.text()?),
        TIME_MICROS => ItemTime::Micros(from.i64()?),
        _ => return Err(Malformed("two times")),
    };
    let item = Item {
        raw,
        event_type,
        event_id,
        event_time,
        reserved: kind & RESERVED != 0,
        source_name,
        map_names: kind & MAP_NAMES != 0,
    };
    Ok(Asked { arrived: Arrived { place, found: Found::Item(item) }, id: None })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> impl Strategy<Value = Head> {
        let named = (any::<u64>(), prop::collection::vec("[A-Za-z][a-z0-9_]{0,20}", 0..4));
        let names = prop::collection::vec(".{0,20}", 0..4);
        let more = (prop::option::of(names), prop::option::of(named), any::<u32>());
        let plain = ("[a-z][a-z0-9_-]{0,20}", "[a-z]{0,9}", any::<i64>(), any::<[u8; 16]>());
        (plain, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40), more).prop_map(
            |((tenant, protocol, at, base_id), strict, secret, (key_types, named, errors_max))| {
                let types = |types: Vec<String>| {
                    types.iter().map(|name| EventType::new(name).unwrap()).collect()
                };
                Head {
                    tenant: TenantId::new(&tenant).unwrap(),
                    protocol,
                    received_at: ReceivedAt(at),
                    base_id,
                    strict,
                    secret: Secret(secret),
                    key_types,
                    named: named.map(|(most, names)| Named { most, types: types(names) }),
                    errors_max,
                }
            },
        )
    }

    type Sample =
        (Vec<u8>, [Option<String>; 3], Option<Result<String, i64>>, (bool, bool, bool), u32);

    fn sample() -> impl Strategy<Value = Sample> {
        let text = || prop::option::of(".{0,12}");
        let time = prop::option::of(prop_oneof![
            ".{0,12}".prop_map(Ok::<String, i64>),
            any::<i64>().prop_map(Err)
        ]);
        let raw = prop::collection::vec(any::<u8>(), 0..60);
        (raw, [text(), text(), text()], time, any::<(bool, bool, bool)>(), any::<u32>())
    }

    fn item(sample: &Sample) -> (Place, Item<'_>) {
        let (raw, [event_type, event_id, source_name], time, (line, reserved, map_names), at) =
            sample;
        let at = *at as usize;
        let item = Item {
            raw,
            event_type: event_type.as_deref(),
            event_id: event_id.as_deref(),
            source_name: source_name.as_deref(),
            event_time: match time {
                None => ItemTime::None,
                Some(Ok(text)) => ItemTime::Rfc3339(text),
                Some(Err(micros)) => ItemTime::Micros(*micros),
            },
            reserved: *reserved,
            map_names: *map_names,
        };
        (if *line { Place::Line(at) } else { Place::Byte(at) }, item)
    }

    fn encode(samples: &[Sample]) -> Vec<u8> {
        let mut encoder = ItemsEncoder::with_capacity(0);
        for one in samples {
            let (place, item) = item(one);
            encoder.item(place, &item);
            let reason = Reason::new(Code::EventTooLarge, "/a", "large");
            encoder.rejected(place, item.event_id, &reason);
        }
        encoder.finish()
    }

    proptest! {
        #[test]
        fn a_head_reads_back_as_it_was_written(head in head()) {
            prop_assert_eq!(Head::decode(&head.encode()).unwrap(), head);
        }

        #[test]
        fn items_read_back_as_they_were_written(samples in prop::collection::vec(sample(), 0..9)) {
            let bytes = encode(&samples);
            let read: Result<Vec<_>, _> = items(&bytes).unwrap().collect();
            let read = read.unwrap();
            prop_assert_eq!(read.len(), samples.len() * 2);
            for (pair, one) in read.chunks(2).zip(&samples) {
                let (place, item) = item(one);
                let shown = format!("{:?}", Arrived { place, found: Found::Item(item) });
                prop_assert_eq!(format!("{:?}", pair[0].arrived), shown);
                let reason = Reason::new(Code::EventTooLarge, "/a", "large");
                let shown = format!("{:?}", Arrived { place, found: Found::Rejected(reason) });
                prop_assert_eq!(format!("{:?}", pair[1].arrived), shown);
                prop_assert_eq!(pair[1].id, item.event_id);
            }
        }

        #[test]
        fn what_is_cut_is_never_whole_and_what_is_flipped_never_panics(
            head in head(), samples in prop::collection::vec(sample(), 1..4),
            at in any::<prop::sample::Index>(), bit in 0..8u32,
        ) {
            let (head, body) = (head.encode(), encode(&samples));
            prop_assert!(Head::decode(&head[..at.index(head.len())]).is_err());
            let cut = at.index(body.len());
            if let Ok(mut read) = items(&body[..cut]) {
                prop_assert!(read.any(|item| item.is_err()));
            }
            for mut bytes in [head, body] {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                let _ = Head::decode(&bytes);
                let _ = items(&bytes).map(Iterator::count);
            }
        }
    }
}
