//! A whole request: head, coding, items, verdicts, batch. Every item has one outcome, memory is paid for.

#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, request::Parts};
use libfuzzer_sys::fuzz_target;
use tidegate_event::BatchView;
use tidegate_fuzz::{input::Input, judge::NORMALIZER};
use tidegate_ingest::{
    budget::Budget,
    clock::ManualClock,
    config::Size,
    edge::{Limits, judge::Judge, protocol::PROTOCOLS},
    fuzzing::edge::{
        Credentials, Outcome, charset, find, media_type, query, request_id, run, serving, single,
        too_large, trace,
    },
    tenants::{Caller, Quota, Tenants},
};

const BUDGET: u64 = 4 << 20;

/// The tenant `dev`, without a folder that lasts.
static CALLER: LazyLock<Caller> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("tidegate-fuzz-{}", std::process::id()));
    let clock = Arc::new(ManualClock::new(0));
    let tenants = Tenants::load(&dir, Quota::default(), clock).unwrap().with_dev("tgk_dev");
    std::fs::remove_dir_all(&dir).unwrap();
    tenants.authenticate("tgk_dev").unwrap()
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let Some(parts) = head(&mut input) else { return };
    read_head(&parts);
    // By its path, or else by its head alone.
    let by_head = || PROTOCOLS.iter().find(|protocol| (protocol.takes)(&parts));
    let Some(protocol) = serving(&parts).or_else(by_head) else { return };
    let limits = Limits {
        decoded_bytes: Size::mib(2),
        event_bytes: Size(1_000),
        events: 50,
        ..Limits::default()
    };
    let budget = Budget::new(BUDGET);
    let body = Bytes::copy_from_slice(input.0);
    let once = || {
        let permit = budget.unshared().try_take(body.len() as u64).unwrap();
        let judge = Arc::clone(&*NORMALIZER) as Arc<dyn Judge>;
        run((parts.clone(), body.clone()), protocol, CALLER.clone(), judge, &limits, permit)
    };
    let (first, second) = (once(), once());
    assert_eq!(first.is_some(), second.is_some());
    if let (Some(first), Some(second)) = (first, second) {
        let bytes = |outcome: &Outcome| outcome.batch.as_ref().map(|batch| batch.body.clone());
        assert_eq!(bytes(&first), bytes(&second), "the same request, another batch");
        settled(&first, &limits);
    }
    assert_eq!(budget.held(), 0);
});

/// The first lines: path with query, then headers, up to an empty line.
fn head(input: &mut Input<'_>) -> Option<Parts> {
    let uri: Uri = input.text(b'\n').parse().ok()?;
    let mut parts = Request::post(uri).body(()).ok()?.into_parts().0;
    loop {
        let line = input.until(b'\n');
        if line.is_empty() {
            return Some(parts);
        }
        let at = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(at);
        let name = HeaderName::from_bytes(name).ok()?;
        parts.headers.append(name, HeaderValue::from_bytes(value[1..].trim_ascii()).ok()?);
    }
}

fn read_head(parts: &Parts) {
    let headers = &parts.headers;
    if let Some((trace, parent)) = trace(headers) {
        let hex =
            |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        assert!(trace.len() == 32 && parent.len() == 16 && hex(trace) && hex(parent));
        assert!(trace.bytes().any(|b| b != b'0') && parent.bytes().any(|b| b != b'0'));
    }
    if let Some(id) = request_id(headers) {
        let sane = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        assert!((1..=64).contains(&id.len()) && id.bytes().all(sane));
    }
    for protocol in PROTOCOLS {
        if let Credentials::Key(key) = find(parts, protocol.login.carriers) {
            // Out of base64 comes what was put in.
            let plain = key.trim() == key && !key.contains(['\r', '\n']);
            assert!(plain || parts.headers.contains_key("authorization"));
        }
    }
    if let Some(name) = media_type(headers) {
        assert!(!name.contains(';') && name == name.to_ascii_lowercase());
    }
    let _ = (charset(headers), query(parts, "event_type"), single(headers, "x-event-type"));
    let _ = too_large(parts, &Limits::default());
}

/// The batch holds what the outcomes say, and all of it can be read back.
fn settled(outcome: &Outcome, limits: &Limits) {
    let received: u64 = outcome.types.iter().map(|(_, tally)| tally.received).sum();
    let rejected: u64 = outcome.types.iter().map(|(_, tally)| tally.rejected).sum();
    let kept = outcome.batch.as_ref().map_or(0, |batch| u64::from(batch.count));
    assert_eq!((received, rejected), (kept + outcome.rejected, outcome.rejected));
    assert!(0 < received && received <= u64::from(limits.events));
    assert_eq!(outcome.nothing, outcome.batch.is_none());
    assert_eq!(outcome.errors.0 as u64, rejected + outcome.dead.len() as u64);
    let Some(batch) = &outcome.batch else { return };
    assert!(batch.body.len() as u64 <= outcome.permit.bytes() + 1_024, "memory nobody paid for");
    let view = BatchView::parse(&batch.body).unwrap();
    assert_eq!((view.tenant, view.count), (batch.tenant.as_str(), batch.count));
    let records: Vec<_> = view.records().map(Result::unwrap).collect();
    let dead: Vec<u32> = records.iter().filter(|r| r.dead.is_some()).map(|r| r.index).collect();
    assert_eq!(dead, outcome.dead);
    assert!(records.is_sorted_by(|a, b| a.index < b.index));
    let tallied: u64 = batch.tallies.iter().map(|t| t.accepted + t.dead_lettered).sum();
    assert_eq!(tallied, records.len() as u64);
    assert_eq!(batch.has_client_ids, records.iter().any(|r| r.client_id.is_some()));
}
