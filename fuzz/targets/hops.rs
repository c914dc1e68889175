//! What travels between roles: arbitrary bytes are a message or refused, a message reads back as it was.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_event::{BatchView, EncodedBatch};
use tidegate_fuzz::input::Input;
use tidegate_ingest::{
    edge::protocol::Found,
    hop::{
        ask::{self, Head, ItemsEncoder},
        outcome::{Outcome, SchemaContent},
        state::State,
        verdict::Verdict,
    },
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 7 {
        0 => head(input.0),
        1 => items(input.0),
        2 => verdict(input.0),
        3 => outcome(input.0),
        4 => schema(input.0),
        5 => batch(input.0),
        _ => state(input.0),
    }
});

fn head(bytes: &[u8]) {
    if let Ok(head) = Head::decode(bytes) {
        assert_eq!(Head::decode(&head.encode()).unwrap(), head);
    }
}

/// Encoded again they are the same bytes: there is one way to say it.
fn items(bytes: &[u8]) {
    let Ok(all) = ask::items(bytes) else { return };
    let mut again = ItemsEncoder::with_capacity(0);
    for asked in all {
        let Ok(asked) = asked else { return };
        match asked.arrived.found {
            Found::Item(item) => again.item(asked.arrived.place, &item),
            Found::Rejected(reason) => again.rejected(asked.arrived.place, asked.id, &reason),
        }
    }
    assert_eq!(again.finish(), bytes);
}

fn verdict(bytes: &[u8]) {
    if let Ok(verdict) = Verdict::decode(bytes) {
        assert_eq!(verdict.encode(), bytes);
    }
}

fn outcome(bytes: &[u8]) {
    if let Ok(outcome) = Outcome::decode(bytes) {
        assert_eq!(Outcome::decode(&outcome.encode()).unwrap(), outcome);
    }
}

fn schema(bytes: &[u8]) {
    if let Ok(schema) = SchemaContent::decode(bytes) {
        assert_eq!(schema.encode(), bytes);
    }
}

/// What a writer takes for a batch is one to every reader of the log, with the numbers it says.
fn batch(bytes: &[u8]) {
    let Ok(batch) = EncodedBatch::read(Bytes::copy_from_slice(bytes)) else { return };
    let view = BatchView::parse(bytes).unwrap();
    let records: Vec<_> = view.records().map(Result::unwrap).collect();
    assert_eq!((records.len(), view.tenant), (batch.count as usize, batch.tenant.as_str()));
    assert!(records.windows(2).all(|pair| pair[0].index < pair[1].index));
    for (kind, tally) in view.types.iter().zip(&batch.tallies) {
        assert_eq!(kind.name, tally.event_type.as_str());
    }
    for (at, tally) in batch.tallies.iter().enumerate() {
        let of_kind = records.iter().filter(|record| record.type_index == at);
        let dead = of_kind.clone().filter(|record| record.dead.is_some()).count() as u64;
        assert_eq!(
            (tally.accepted + tally.dead_lettered, tally.dead_lettered),
            (of_kind.count() as u64, dead)
        );
    }
    let copy = view.without(view.protocol, |_| false).unwrap();
    assert_eq!((copy.count, copy.has_client_ids), (batch.count, batch.has_client_ids));
}

fn state(bytes: &[u8]) {
    if let Ok(state) = serde_json::from_slice::<State>(bytes) {
        let text = serde_json::to_vec(&state).unwrap();
        assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state);
    }
}
