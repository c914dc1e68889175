//! Batches and frames: arbitrary bytes are read or refused, what is encoded reads back.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, Offset, ReceivedAt,
    SchemaRef, TenantId,
    record::{Record, RecordView},
};
use tidegate_fuzz::input::Input;
use tidegate_ingest::{
    fuzzing::log,
    log::{Codec, FRAME_HEADER_BYTES, FrameBody},
    sink::{rows::Lanes, source::SourceFrame},
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => arbitrary(input.0),
        1 => round_trip(input),
        2 => arbitrary(&mutated(input)),
        _ => frame(input),
    }
});

/// Whatever the bytes are, each reader of batches says the same of them.
fn arbitrary(body: &[u8]) {
    let frame = SourceFrame {
        base: Offset(7),
        count: 1,
        received_at: ReceivedAt(5),
        body: Bytes::copy_from_slice(body),
    };
    let frames = [frame];
    let lanes = Lanes::sort(&frames, |_, _| true);
    let sorted: usize = lanes.rows.values().map(Vec::len).sum();
    let Ok(view) = BatchView::parse(body) else {
        assert_eq!((lanes.bad.len(), sorted), (1, 0));
        return;
    };
    let records: Vec<_> = view.records().take(100_000).collect();
    let whole = records.iter().all(Result::is_ok);
    if whole {
        assert_eq!(records.len(), view.count as usize);
        let bytes: usize = records.iter().flatten().map(|r| r.raw.len() + r.note.len()).sum();
        assert!(bytes <= body.len());
    } else {
        assert_eq!(records.iter().filter(|r| r.is_err()).count(), 1);
    }
    // Its own names may be no names: then nobody takes it.
    match view.without(view.protocol, |_| false) {
        Ok(copy) => {
            assert!(whole && lanes.bad.is_empty() && sorted == records.len());
            same(&copy, records.iter().flatten());
        }
        Err(_) => assert!(lanes.bad.len() == 1 && sorted == 0),
    }
}

fn same<'a>(batch: &EncodedBatch, expected: impl Iterator<Item = &'a RecordView<'a>>) {
    let view = BatchView::parse(&batch.body).unwrap();
    let all: Vec<_> = view.records().map(Result::unwrap).collect();
    let expected: Vec<_> = expected.collect();
    assert_eq!(all.len(), expected.len());
    for (a, b) in all.iter().zip(expected) {
        assert_eq!(
            (a.index, a.event_time, a.dead, a.note, a.raw),
            (b.index, b.event_time, b.dead, b.note, b.raw)
        );
        assert_eq!((a.client_id, a.pii_changed, a.kind), (b.client_id, b.pii_changed, b.kind));
    }
}

fn encoded(input: &mut Input<'_>) -> EncodedBatch {
    let types = ["a", "page_view", "Z.9-_"].map(|name| EventType::new(name).unwrap());
    let tenant = TenantId::new("acme").unwrap();
    let at = ReceivedAt(input.u64().cast_signed());
    let mut batch = BatchEncoder::new(tenant, "events", at, [input.u8(); 16], 64);
    let mut sent = Vec::new();
    for index in 0..u32::from(input.u8() % 8) {
        let what = input.u8();
        let id = input.text(0);
        let note = input.text(0);
        let raw = input.until(0);
        let record = Record {
            index: index * 3,
            event_type: &types[usize::from(what & 3) % 3],
            schema: SchemaRef { version: (what >> 6).into(), hash: [what >> 6; 16] },
            client_id: (what & 4 != 0).then_some(&id),
            event_time: EventTime(i64::from(what) - 100),
            dead: (what & 8 != 0).then(|| Code::from_number(1 + what % 16)).flatten(),
            pii_changed: what & 16 != 0,
            note: &note,
            raw,
        };
        batch.push(&record);
        sent.push((
            record.index,
            record.client_id.map(str::to_owned),
            record.dead,
            record.pii_changed,
            note.clone(),
            raw.to_vec(),
        ));
    }
    let batch = batch.finish();
    let view = BatchView::parse(&batch.body).unwrap();
    assert_eq!((view.tenant, view.protocol, view.received_at), ("acme", "events", at));
    let back: Vec<_> = view
        .records()
        .map(Result::unwrap)
        .map(|r| {
            (
                r.index,
                r.client_id.map(str::to_owned),
                r.dead,
                r.pii_changed,
                r.note.to_owned(),
                r.raw.to_vec(),
            )
        })
        .collect();
    assert_eq!(back, sent);
    batch
}

fn round_trip(mut input: Input<'_>) {
    let drop = input.u8();
    let batch = encoded(&mut input);
    let view = BatchView::parse(&batch.body).unwrap();
    let dropped = |position: u32| drop >> (position % 8) & 1 != 0;
    let kept = view.without("events", dropped).unwrap();
    let expected: Vec<_> =
        view.records().map(Result::unwrap).filter(|r| !dropped(r.position)).collect();
    same(&kept, expected.iter());
}

/// A good batch with some bytes changed.
fn mutated(mut input: Input<'_>) -> Vec<u8> {
    let changes: Vec<_> = (0..input.u8() % 8).map(|_| (input.u16(), input.u8())).collect();
    let cut = input.u16();
    let mut body = encoded(&mut input).body.to_vec();
    for (at, value) in changes {
        let at = usize::from(at) % body.len();
        body[at] ^= value;
    }
    if cut & 0x8000 != 0 {
        body.truncate(usize::from(cut & 0x7fff));
    }
    body
}

/// A frame reads back; with its header changed and summed up anew it is read or refused.
fn frame(mut input: Input<'_>) {
    let (what, seed, base) = (input.u8(), input.u32(), input.u64() >> 1);
    let changes: Vec<_> = (0..what >> 4).map(|_| (input.u8(), input.u8())).collect();
    let codec = if what & 1 == 0 { Codec::None } else { Codec::Lz4 };
    let raw = Bytes::copy_from_slice(input.0);
    let body = FrameBody::prepare(raw.clone(), 3, ReceivedAt(9), codec).unwrap();
    let mut bytes = log::encode(&body, base, 77, seed);
    assert_eq!(bytes.len(), body.stored_bytes());
    let opened = log::open(&Bytes::copy_from_slice(&bytes), seed).unwrap();
    assert_eq!((opened.body, opened.offsets), (Ok(raw), (base, base + 3)));
    assert_eq!(opened.header, bytes[..FRAME_HEADER_BYTES]);
    for (at, value) in changes {
        let at = usize::from(at) % bytes.len();
        bytes[at] ^= value;
    }
    let (covered, sum) = bytes[..FRAME_HEADER_BYTES].split_at_mut(FRAME_HEADER_BYTES - 4);
    sum.copy_from_slice(&crc32c::crc32c_append(seed, covered).to_le_bytes());
    if let Some(opened) = log::open(&Bytes::from(bytes), seed) {
        assert!(opened.offsets.0 <= opened.offsets.1);
    }
}
