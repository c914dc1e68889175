//! A batch that came from another process: taken for one only after all of it was read.

use bytes::Bytes;

use crate::{
    BatchView, EncodedBatch, EventType, TenantId,
    record::{DecodeError, TypeTally},
};

impl EncodedBatch {
    /// Reads every record once: whatever is wrong with the bytes is found before they are in a log,
    /// where each reader would find it again.
    ///
    /// # Errors
    /// [`DecodeError`] with the part that is not as an encoder makes it.
    pub fn read(body: Bytes) -> Result<Self, DecodeError> {
        let view = BatchView::parse(&body)?;
        let tenant = TenantId::new(view.tenant).map_err(|_| DecodeError("no tenant's name"))?;
        let mut tallies = Vec::with_capacity(view.types.len());
        for kind in &view.types {
            let named = EventType::new(kind.name);
            let event_type = named.map_err(|_| DecodeError("no event type's name"))?;
            tallies.push(TypeTally { event_type, accepted: 0, dead_lettered: 0 });
        }
        let (mut has_client_ids, mut next) = (false, 0u64);
        for record in view.records() {
            let record = record?;
            if u64::from(record.index) < next {
                return Err(DecodeError("records out of order"));
            }
            next = u64::from(record.index) + 1;
            has_client_ids |= record.client_id.is_some();
            if let Some(tally) = tallies.get_mut(record.type_index) {
                match record.dead {
                    None => tally.accepted += 1,
                    Some(_) => tally.dead_lettered += 1,
                }
            }
        }
        if view.count == 0 || tallies.iter().any(|t| t.accepted + t.dead_lettered == 0) {
            return Err(DecodeError("a batch or a type without events"));
        }
        let (received_at, count) = (view.received_at, view.count);
        let bypass_dedup = false;
        Ok(Self { tenant, received_at, count, has_client_ids, bypass_dedup, tallies, body })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BatchEncoder, Code, EventTime, ReceivedAt, SchemaRef, record::Record};

    fn encode(samples: &[(Option<String>, bool, bool)]) -> EncodedBatch {
        let (a, b) = (EventType::new("a").unwrap(), EventType::new("b").unwrap());
        let tenant = TenantId::new("acme").unwrap();
        let mut encoder = BatchEncoder::new(tenant, "events", ReceivedAt(7), [0; 16], 0);
        for (index, (id, dead, second)) in (0..).zip(samples) {
            encoder.push(&Record {
                index: index * 2,
                event_type: if *second { &b } else { &a },
                schema: SchemaRef::default(),
                client_id: id.as_deref(),
                event_time: EventTime(1),
                dead: dead.then_some(Code::TypeMismatch),
                pii_changed: false,
                note: "",
                raw: b"{}",
            });
        }
        encoder.finish()
    }

    proptest! {
        #[test]
        fn what_an_encoder_says_of_its_batch_is_read_from_its_bytes_alone(
            samples in prop::collection::vec((prop::option::of("[a-z]{1,9}"), any::<bool>(), any::<bool>()), 1..40),
        ) {
            let batch = encode(&samples);
            let read = EncodedBatch::read(batch.body.clone()).unwrap();
            prop_assert_eq!(&read.tenant, &batch.tenant);
            prop_assert_eq!((read.count, read.received_at), (batch.count, batch.received_at));
            prop_assert_eq!(read.has_client_ids, batch.has_client_ids);
            prop_assert_eq!(&read.tallies, &batch.tallies);
            prop_assert_eq!(&read.body, &batch.body);
        }

        #[test]
        fn a_cut_batch_is_none_and_a_flipped_one_never_panics(
            samples in prop::collection::vec((prop::option::of("[a-z]{1,9}"), any::<bool>(), any::<bool>()), 1..9),
            at in any::<prop::sample::Index>(), bit in 0..8u32,
        ) {
            let whole = encode(&samples).body;
            let at = at.index(whole.len());
            prop_assert!(EncodedBatch::read(whole.slice(..at)).is_err());
            let mut flipped = whole.to_vec();
            flipped[at] ^= 1 << bit;
            if let Ok(read) = EncodedBatch::read(flipped.into()) {
                let sum: u64 = read.tallies.iter().map(|t| t.accepted + t.dead_lettered).sum();
                prop_assert_eq!(sum, u64::from(read.count));
            }
        }
    }

    #[test]
    fn a_batch_without_events_is_none() {
        assert!(EncodedBatch::read(encode(&[]).body).is_err());
    }
}
