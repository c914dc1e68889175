//! What every log promises to those who append and read: the same tests against the embedded log and
//! against Apache Kafka, a real broker. Does not prove what a machine's crash leaves (`sim`, `rot`), nor
//! what several processes on one topic do to each other (tests/e2e/test_kafka_log.py).

mod embedded;
#[cfg(feature = "kafka")]
mod kafka;

use std::{sync::Arc, time::Duration};

use tidegate_event::{
    BatchEncoder, BatchView, Code, EncodedBatch, EventTime, EventType, Offset, ReceivedAt,
    SchemaRef, TenantId,
    record::{Record, base_id},
};
use tidegate_ingest::{
    books::Books,
    sink::source::{LogSource, SourceEntry, SourceError},
    writer::{AppendError, Appended, LogWriter, WriterSettings},
};

const SOON: Duration = Duration::from_secs(20);

/// A log with one partition, open.
struct OpenLog {
    writer: Arc<dyn LogWriter>,
    source: Arc<dyn LogSource>,
    books: Arc<Books>,
    runtime: tokio::runtime::Runtime,
}

/// A place where a log can be opened, closed, and opened again.
trait Place {
    /// Opens it; `change` is laid over how it is appended to.
    fn open(&self, change: &dyn Fn(&mut WriterSettings)) -> OpenLog;
    /// Removes all below `to`, as retention does.
    fn trim(&self, log: OpenLog, to: Offset) -> OpenLog;
}

/// One event as it comes out.
#[derive(Clone, Debug, PartialEq)]
struct Out {
    offset: u64,
    tenant: String,
    kind: String,
    id: String,
    index: u32,
    dead: Option<Code>,
    note: String,
    raw: String,
    schema: SchemaRef,
    received_at: i64,
}

/// A request of `count` events; every third is a dead letter, every second brings an id.
fn request(tenant: &str, number: u64, count: u32) -> EncodedBatch {
    let at = ReceivedAt(1_700_000_000_000_000 + i64::try_from(number).unwrap() * 1_000_000);
    let id = base_id((u128::from(number + 1) << 64).to_be_bytes());
    let mut batch = BatchEncoder::new(TenantId::new(tenant).unwrap(), "events", at, id, 0);
    let kinds = [EventType::new("a").unwrap(), EventType::new("b.c").unwrap()];
    for index in 0..count {
        let client_id = format!("{tenant}-{number}-{index}");
        let dead = (index % 3 == 2).then_some(Code::from_number(1).unwrap());
        batch.push(&Record {
            index,
            event_type: &kinds[index as usize % 2],
            schema: SchemaRef { version: i32::try_from(index % 2).unwrap(), hash: [5; 16] },
            client_id: (index % 2 == 0).then_some(client_id.as_str()),
            event_time: EventTime(at.0 - i64::from(index)),
            dead,
            pii_changed: index == 1,
            note: if dead.is_some() { r#"{"field":"/x","message":"no"}"# } else { "" },
            raw: format!(r#"{{"n":{number},"i":{index},"s":"é"}}"#).as_bytes(),
        });
    }
    batch.finish()
}

impl OpenLog {
    fn append(&self, batch: EncodedBatch) -> Result<Appended, AppendError> {
        let counted = batch.tallies.iter();
        let counted = counted.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered));
        let entry = self.books.open(&batch.tenant, batch.received_at, counted.collect());
        self.runtime.block_on(self.writer.append(batch, entry))
    }

    fn appended(&self, number: u64, count: u32) -> Appended {
        self.append(request("acme", number, count)).unwrap()
    }

    /// All events of `[from, to)`.
    fn read(&self, from: u64, to: u64) -> Vec<Out> {
        let mut reader = self.source.read_from(Offset(from)).unwrap();
        let (mut at, mut out) = (from, Vec::new());
        while at < to {
            match reader.next().unwrap() {
                None => panic!("it ends at {at}, before {to}"),
                Some(SourceEntry::Quarantined(range)) => panic!("{range} is damaged"),
                Some(SourceEntry::Empty(range)) => at = range.to().0,
                Some(SourceEntry::Frame(frame)) => {
                    let view = BatchView::parse(&frame.body).unwrap();
                    let records: Vec<_> = view.records().map(Result::unwrap).collect();
                    assert_eq!(records.len(), frame.count as usize);
                    assert_eq!(view.received_at, frame.received_at);
                    out.extend(records.iter().map(|record| Out {
                        offset: record.offset(frame.base).0,
                        tenant: view.tenant.to_owned(),
                        kind: record.kind.name.to_owned(),
                        id: record.event_id(&view.base_id).into_owned(),
                        index: record.index,
                        dead: record.dead,
                        note: record.note.to_owned(),
                        raw: String::from_utf8(record.raw.to_vec()).unwrap(),
                        schema: record.kind.schema,
                        received_at: view.received_at.0,
                    }));
                    at = frame.end().0;
                }
            }
        }
        out.retain(|event| from <= event.offset && event.offset < to);
        out
    }

    fn wait_for(&self, end: u64) {
        let until = std::time::Instant::now() + SOON;
        while self.source.latest().0 < end {
            assert!(std::time::Instant::now() < until, "it never reaches {end}");
            self.source.wait_past(self.source.latest(), Duration::from_millis(100));
        }
    }

    fn close(&self) {
        self.writer.close();
        self.writer.leave();
    }
}

fn same(_: &mut WriterSettings) {}

fn what_is_appended_comes_out_as_it_went_in_and_in_order(place: &dyn Place) {
    let log = place.open(&same);
    let mut expected = Vec::new();
    for (number, count) in [1, 7, 300, 2].into_iter().enumerate() {
        let number = number as u64;
        let appended = log.appended(number, count);
        let range = appended.range.unwrap();
        assert_eq!((range.from().0, range.count()), (expected.len() as u64, u64::from(count)));
        assert!(appended.deduplicated.is_empty());
        expected.extend((0..count).map(|index| (number, index)));
    }
    let end = expected.len() as u64;
    log.wait_for(end);
    assert_eq!((log.source.earliest().0, log.source.latest().0), (0, end));
    let all = log.read(0, end);
    for (at, (event, (number, index))) in all.iter().zip(&expected).enumerate() {
        assert_eq!((event.offset, event.index), (at as u64, *index));
        assert_eq!(event.raw, format!(r#"{{"n":{number},"i":{index},"s":"é"}}"#));
        assert_eq!((event.tenant.as_str(), event.dead.is_some()), ("acme", index % 3 == 2));
        assert_eq!(
            (event.schema.version, event.schema.hash),
            (i32::try_from(index % 2).unwrap(), [5; 16])
        );
        if index % 2 == 0 {
            assert_eq!(event.id, format!("acme-{number}-{index}"));
        } else {
            assert_eq!(event.id.len(), 36);
        }
    }
    log.close();
}

fn reading_from_any_offset_gives_the_same_events(place: &dyn Place) {
    let log = place.open(&same);
    for (number, count) in [5, 1, 40, 3].into_iter().enumerate() {
        log.appended(number as u64, count);
    }
    let end = 49;
    log.wait_for(end);
    let all = log.read(0, end);
    assert_eq!(all.len(), 49);
    for from in 0..end {
        assert_eq!(log.read(from, end), all[from as usize..], "from {from}");
    }
    for (from, to) in [(0, 1), (3, 9), (4, 5), (7, 46), (48, 49)] {
        assert_eq!(log.read(from, to), all[from as usize..to as usize], "[{from}, {to})");
        assert_eq!(log.read(from, to), log.read(from, to));
    }
    log.close();
}

fn a_log_that_is_opened_again_is_the_same_and_goes_on(place: &dyn Place) {
    let log = place.open(&same);
    log.appended(0, 10);
    log.wait_for(10);
    let (id, before) = (log.source.log_id().to_owned(), log.read(0, 10));
    assert!(
        id.len() == 8 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
        "{id}"
    );
    log.close();
    drop(log);
    let log = place.open(&same);
    assert_eq!(log.source.log_id(), id);
    log.wait_for(10);
    assert_eq!(log.appended(1, 5).range.unwrap().from().0, 10);
    log.wait_for(15);
    assert_eq!(log.read(0, 10), before);
    log.close();
}

fn who_waits_for_more_is_woken_and_else_waits_no_longer_than_told(place: &dyn Place) {
    let log = place.open(&same);
    assert!(!log.source.wait_past(Offset(0), Duration::from_millis(20)));
    let mut reader = log.source.read_from(Offset(0)).unwrap();
    assert!(reader.next().unwrap().is_none());
    let source = Arc::clone(&log.source);
    let waiting = std::thread::spawn(move || source.wait_past(Offset(0), SOON));
    log.appended(0, 4);
    assert!(waiting.join().unwrap());
    let mut events = 0;
    let until = std::time::Instant::now() + SOON;
    while events < 4 {
        assert!(std::time::Instant::now() < until, "the reader sees {events} of 4");
        if let Some(SourceEntry::Frame(frame)) = reader.next().unwrap() {
            events += frame.count;
        }
    }
    assert!(reader.next().unwrap().is_none());
    assert!(0 < log.source.bytes_since(Offset(0)) && log.source.bytes_since(Offset(4)) == 0);
    log.close();
}

fn what_retention_took_is_told_with_where_to_go_on(place: &dyn Place) {
    let log = place.open(&same);
    for number in 0..4 {
        log.appended(number, 100);
    }
    log.wait_for(400);
    let kept = log.read(300, 400);
    let log = place.trim(log, Offset(300));
    let earliest = log.source.earliest();
    assert!(0 < earliest.0 && earliest.0 <= 300, "{earliest}");
    match log.source.read_from(Offset(0)).and_then(|mut reader| reader.next()) {
        Err(SourceError::Gone { earliest: told }) => assert_eq!(told, earliest),
        other => panic!("{other:?}"),
    }
    log.wait_for(400);
    assert_eq!(log.read(300, 400), kept);
    assert_eq!(log.appended(4, 1).range.unwrap().from().0, 400, "offsets go on");
    log.close();
}

fn a_time_is_found_before_all_that_came_later(place: &dyn Place) {
    let log = place.open(&same);
    for number in 0..20 {
        log.appended(number, 10);
    }
    log.wait_for(200);
    let all = log.read(0, 200);
    for number in [0, 7, 19] {
        let wanted = 1_700_000_000_000_000 + number * 1_000_000;
        let at = log.source.offset_at(ReceivedAt(wanted)).0;
        let first = all.iter().find(|event| wanted <= event.received_at).unwrap().offset;
        assert!(at <= first, "{number}: {at} is behind {first}");
    }
    log.close();
}

fn a_way_in_that_is_full_refuses_with_when_to_come_again_and_the_books_balance(place: &dyn Place) {
    let log = place.open(&|settings| settings.queue_bytes = 64 << 10);
    let (mut taken, mut refused) = (0, 0);
    let waiting: Vec<_> = (0..200)
        .map(|number| {
            let batch = request(if number % 2 == 0 { "acme" } else { "other" }, number, 50);
            let counted = batch.tallies.iter();
            let counted = counted.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered));
            let entry = log.books.open(&batch.tenant, batch.received_at, counted.collect());
            log.writer.append(batch, entry)
        })
        .collect();
    for answer in waiting {
        match log.runtime.block_on(answer) {
            Ok(_) => taken += 1,
            Err(AppendError::Full { retry_after } | AppendError::Lane { retry_after }) => {
                assert!(Duration::ZERO < retry_after && retry_after <= Duration::from_secs(60));
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(0 < taken && 0 < refused, "{taken} taken, {refused} refused");
    log.wait_for(taken * 50);
    assert_eq!(log.read(0, taken * 50).len() as u64, taken * 50);
    let standing = log.books.standing();
    assert_eq!((standing.difference, standing.in_flight, standing.unaccounted), (0, 0, 0));
    let stats = log.writer.stats();
    assert_eq!(stats.held_bytes, 0, "what is done is given back");
    log.appended(999, 1);
    log.close();
}

fn a_log_that_is_closed_takes_nothing_more(place: &dyn Place) {
    let log = place.open(&same);
    log.appended(0, 3);
    log.close();
    assert_eq!(log.append(request("acme", 1, 3)).unwrap_err(), AppendError::Draining);
    let standing = log.books.standing();
    assert_eq!((standing.difference, standing.in_flight), (0, 0));
}

/// Every promise as a test of each log.
macro_rules! contract {
    ($place:expr) => {
        $crate::log_contract::contract!($place;
            what_is_appended_comes_out_as_it_went_in_and_in_order
            reading_from_any_offset_gives_the_same_events
            a_log_that_is_opened_again_is_the_same_and_goes_on
            who_waits_for_more_is_woken_and_else_waits_no_longer_than_told
            what_retention_took_is_told_with_where_to_go_on
            a_time_is_found_before_all_that_came_later
            a_way_in_that_is_full_refuses_with_when_to_come_again_and_the_books_balance
            a_log_that_is_closed_takes_nothing_more
        );
    };
    ($place:expr; $($name:ident)*) => {$(
        #[test]
        fn $name() {
            if let Some(place) = $place(stringify!($name)) {
                super::$name(&place);
            }
        }
    )*};
}
use contract;
