//! Live against shadow, both written by the real sink. Not proved here: that a job writes such shadows.

use std::{path::PathBuf, sync::Arc};

use tidegate_event::{
    BatchEncoder, Code, EventTime, EventType, Offset, OffsetRange, Partition, ReceivedAt,
    SchemaRef, TenantId,
    record::{Record, base_id},
};
use tidegate_ingest::{
    replay::{
        Selection,
        compare::{
            self, CompareError, Comparison, Difference, Differences, Pair, Reach, Scope,
            SinkCompared, fingerprint,
        },
    },
    sink::{LaneRows, Sink, SinkConfig, SinkContext, lake::Lake, rows::Lanes, source::SourceFrame},
    storage::Disk,
};

use super::{HOUR, MORNING, Pipe, TestSchemas, eventually, read_rows, schema, tree};
use crate::tally::Tally;

const LOG: &str = "abcd1234";
const DEAD: Option<Code> = Some(Code::TypeMismatch);

/// One event as a sink gets it.
#[derive(Clone)]
struct Event {
    offset: u64,
    tenant: &'static str,
    event_type: &'static str,
    at: i64,
    schema: SchemaRef,
    dead: Option<Code>,
    raw: String,
}

/// Two tenants, two types, two hours, a dead letter among ten.
fn events(count: u64) -> Vec<Event> {
    let event = |offset: u64| Event {
        offset,
        tenant: if offset.is_multiple_of(3) { "beta" } else { "acme" },
        event_type: if offset.is_multiple_of(5) { "click" } else { "view" },
        at: MORNING + HOUR / 2 + HOUR * i64::try_from(offset / 20).unwrap(),
        schema: schema(1),
        dead: if offset % 10 == 7 { DEAD } else { None },
        raw: format!("{{\"n\":{offset},\"name\":\"é {offset}\",\"x\":[{offset}, 1]}}"),
    };
    (0..count).map(event).collect()
}

fn frame(event: &Event) -> SourceFrame {
    let tenant = TenantId::new(event.tenant).unwrap();
    let id = base_id((u128::from(event.offset) << 40).to_be_bytes());
    let mut batch = BatchEncoder::new(tenant, "events", ReceivedAt(event.at), id, 0);
    batch.push(&Record {
        index: 0,
        event_type: &EventType::new(event.event_type).unwrap(),
        schema: if event.dead.is_some() { SchemaRef::default() } else { event.schema },
        client_id: None,
        event_time: EventTime(event.at - 1_000),
        dead: event.dead,
        pii_changed: false,
        note: if event.dead.is_some() { r#"{"field":"/x","message":"no"}"# } else { "" },
        raw: event.raw.as_bytes(),
    });
    let body = batch.finish().body.to_vec().into();
    SourceFrame { base: Offset(event.offset), count: 1, received_at: ReceivedAt(event.at), body }
}

/// A data folder with two lakes: live's, and a shadow's.
struct Lakes {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    live: SinkConfig,
    shadow: SinkConfig,
}

impl Lakes {
    fn new() -> Self {
        Self::of_formats("parquet", "parquet")
    }

    fn of_formats(live: &str, shadow: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = |folder: &str, format: &str| -> SinkConfig {
            let url = dir.path().join(folder);
            let text = format!(
                "name='lake'\nkind='lake'\nurl='{}'\noptions.format='{format}'",
                url.display()
            );
            toml::from_str(&text).unwrap()
        };
        let (live, shadow) = (config("lake", live), config("lake/shadow/p", shadow));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let lakes = Self { dir, runtime, live, shadow };
        lakes.write(&lakes.live, &[], 1);
        lakes.write(&lakes.shadow, &[], 1);
        lakes
    }

    fn reach(&self) -> Reach {
        let runtime = self.runtime.handle().clone();
        Reach { data_dir: self.dir.path().to_owned(), runtime }
    }

    /// Writes events in windows of so many.
    fn write(&self, config: &SinkConfig, events: &[Event], window: usize) {
        let context = SinkContext {
            log_id: LOG.to_owned(),
            shared_as: None,
            data_dir: self.dir.path().to_owned(),
            storage: Arc::new(Disk),
            schemas: Arc::new(TestSchemas),
            runtime: self.runtime.handle().clone(),
        };
        let lake = Lake::open(config, &context, &|store| store).unwrap();
        for window in events.chunks(window) {
            let frames: Vec<_> = window.iter().map(frame).collect();
            let lanes = Lanes::sort(&frames, |_, _| true);
            assert!(lanes.bad.is_empty());
            for (lane, rows) in &lanes.rows {
                let (heads, partition) = (lanes.heads.as_slice(), Partition(0));
                lake.write(&LaneRows { log_id: LOG, partition, lane, heads, rows }).unwrap();
            }
        }
    }

    fn compare(&self, scope: &Scope) -> Result<Comparison, CompareError> {
        let pair = Pair { live: &self.live, shadow: &self.shadow };
        compare::compare(&[pair], scope, &self.reach(), &mut |_| true)
    }

    fn compared(&self, scope: &Scope) -> SinkCompared {
        let mut all = self.compare(scope).unwrap();
        let sink = all.sinks.remove(0);
        assert_eq!((all.identical, all.differences), (sink.identical, sink.differences));
        sink
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    /// The files of live, by their names.
    fn files(&self) -> Vec<PathBuf> {
        let files = tree(&self.root()).into_keys();
        let live = files.filter(|name| name.starts_with("events") || name.starts_with("dead"));
        live.map(|name| self.root().join(name)).collect()
    }
}

fn scope(from: u64, to: u64) -> Scope {
    Scope {
        log_id: LOG.to_owned(),
        window: vec![(Partition(0), OffsetRange::new(Offset(from), Offset(to)).unwrap())],
        selection: Selection::default(),
        event_types: Vec::new(),
    }
}

fn of(found: Differences) -> [u64; 5] {
    let Differences { missing, extra, changed, healed, newly_dead, .. } = found;
    [missing, extra, changed, healed, newly_dead]
}

#[test]
fn the_same_rows_are_identical_however_windows_were_cut_and_whatever_the_format() {
    let formats = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"];
    for (live, shadow) in formats
        .map(|format| (format, format))
        .into_iter()
        .chain([("parquet", "jsonl"), ("jsonl.zst", "parquet")])
    {
        let lakes = Lakes::of_formats(live, shadow);
        lakes.write(&lakes.live, &events(90), 7);
        lakes.write(&lakes.shadow, &events(90), 40);
        let compared = lakes.compared(&scope(0, 90));
        assert!(compared.identical, "{live} {shadow}: {:?}", compared.samples);
        assert_eq!((compared.rows.live_events, compared.rows.live_dead_letters), (81, 9));
        assert_eq!((compared.rows.live(), compared.rows.shadow()), (90, 90));
        let lanes: Vec<_> =
            compared.lanes.iter().map(|l| (l.tenant.as_str(), l.rows.live())).collect();
        assert_eq!(lanes, [("acme", 12), ("acme", 48), ("beta", 6), ("beta", 24)]);
        let hours: Vec<_> =
            compared.by_hour.iter().map(|h| (h.hour.as_str(), h.rows.shadow())).collect();
        assert_eq!(hours[0], ("2026-11-21T10:00:00Z", 20));
        assert_eq!(hours.iter().map(|(_, rows)| rows).sum::<u64>(), 90);
    }
}

#[test]
fn another_schema_changes_the_fields_that_it_does_and_its_version() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(60), 7);
    let newer: Vec<_> = events(60)
        .into_iter()
        .map(|event| match event.tenant {
            "acme" => Event { schema: schema(2), ..event },
            _ => event,
        })
        .collect();
    lakes.write(&lakes.shadow, &newer, 60);
    let compared = lakes.compared(&scope(0, 60));
    let acme = newer.iter().filter(|e| e.tenant == "acme" && e.dead.is_none()).count() as u64;
    assert_eq!(of(compared.differences), [0, 0, acme, 0, 0]);
    let fields: Vec<_> = compared.fields.iter().map(|f| (f.field.as_str(), f.changes)).collect();
    assert_eq!(fields, [("custom", acme), ("name", acme), ("schema_version", acme)]);
    let sample = &compared.samples[0];
    assert_eq!((sample.difference, sample.offset.0), (Difference::Changed, 5));
    let name = sample.fields.iter().find(|field| field.field == "name").unwrap();
    assert_eq!((name.live.as_deref(), name.shadow.as_deref()), (None, Some("\"é 5\"")));
    let lanes: Vec<_> = compared.lanes.iter().map(|l| l.differences.changed).collect();
    assert_eq!(lanes, [8, acme - 8, 0, 0]);
}

#[test]
fn what_is_missing_extra_healed_and_newly_dead_is_told_apart() {
    let lakes = Lakes::new();
    let all = events(60);
    let live: Vec<_> = all.iter().filter(|e| e.offset % 11 != 4).cloned().collect();
    let shadow: Vec<_> = all
        .iter()
        .filter(|e| e.offset % 13 != 2)
        .cloned()
        .map(|event| match event.offset {
            // Valid now, and no more.
            17 | 27 => Event { dead: None, ..event },
            31 => Event { dead: DEAD, ..event },
            40 => Event { raw: "{\"n\":41}".to_owned(), ..event },
            _ => event,
        })
        .collect();
    lakes.write(&lakes.live, &live, 9);
    lakes.write(&lakes.shadow, &shadow, 14);
    let compared = lakes.compared(&scope(0, 60));
    let offsets = |difference| -> Vec<u64> {
        let of = compared.samples.iter().filter(|sample| sample.difference == difference);
        of.map(|sample| sample.offset.0).collect()
    };
    let mut missing = offsets(Difference::Missing);
    missing.sort_unstable();
    assert_eq!(missing, [2, 28, 41, 54]);
    let mut extra = offsets(Difference::Extra);
    extra.sort_unstable();
    assert_eq!(extra, [4, 26, 37, 48, 59]);
    let mut healed = offsets(Difference::Healed);
    healed.sort_unstable();
    assert_eq!(healed, [17, 27]);
    assert_eq!(of(compared.differences), [4, 5, 1, 2, 1]);
    assert_eq!(offsets(Difference::NewlyDead), [31]);
    assert_eq!(offsets(Difference::Changed), [40]);
}

#[test]
fn files_that_the_window_cuts_are_compared_within_it_alone() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(90), 30);
    let elsewhere: Vec<_> = events(90)
        .into_iter()
        .map(|event| match event.offset {
            13..71 => event,
            _ => Event { raw: "{\"n\":-1}".to_owned(), ..event },
        })
        .collect();
    lakes.write(&lakes.shadow, &elsewhere, 45);
    let compared = lakes.compared(&scope(13, 71));
    assert!(compared.identical, "{:?}", compared.samples);
    assert_eq!((compared.rows.live(), compared.rows.shadow()), (58, 58));
    assert_eq!(lakes.compared(&scope(12, 71)).differences.changed, 1);
    assert_eq!(lakes.compared(&scope(13, 72)).differences.changed, 1);
}

#[test]
fn only_what_was_selected_is_compared() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(60), 7);
    let replayed: Vec<_> = events(60)
        .into_iter()
        .filter(|event| event.tenant == "acme" && event.event_type == "view")
        .collect();
    lakes.write(&lakes.shadow, &replayed, 60);
    let mut some = scope(0, 60);
    some.selection.tenants = vec![TenantId::new("acme").unwrap()];
    some.selection.event_types = vec![EventType::new("view").unwrap()];
    assert!(lakes.compared(&some).identical);
    some.selection.event_types.clear();
    assert_eq!(lakes.compared(&some).differences.missing, 8);

    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(60), 7);
    let dead = events(60).into_iter().filter(|event| event.dead.is_some());
    let healed: Vec<_> = dead
        .filter(|event| event.offset != 7)
        .map(|event| if event.offset < 40 { Event { dead: None, ..event } } else { event })
        .collect();
    lakes.write(&lakes.shadow, &healed, 60);
    let mut dead_only = scope(0, 60);
    dead_only.selection.dead_letters_only = true;
    let compared = lakes.compared(&dead_only);
    assert_eq!(of(compared.differences), [1, 0, 0, 3, 0]);
    assert_eq!((compared.rows.live(), compared.rows.shadow()), (6, 5));
}

#[test]
fn joined_files_hold_the_same_rows() {
    let mut pipe = Pipe::new();
    for number in 0..12 {
        let text = format!("{{\"n\":{number},\"name\":\"é\"}}");
        pipe.append_as(
            "acme",
            schema(1 + number % 2),
            &[("view", &text, None), ("view", "{}", None)],
        );
    }
    let config = |more: &str| -> SinkConfig {
        let text = "name='lake'\nkind='lake'\nflush.rows=3\nflush.age='1h'\n";
        toml::from_str(&format!("{text}{more}")).unwrap()
    };
    pipe.run(&config("options.merge=false"));
    let shadow = pipe.data().join("lake/shadow/p");
    let files = tree(&pipe.lake());
    let count = files.len() as u64;
    for (name, bytes) in files {
        let path = shadow.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let joins = config("options.merge={after='0s', every='0s', settle='0s'}");
    let sinks = pipe.start(&joins);
    eventually("all are joined", || {
        let joining = sinks.status().remove(0).joining.unwrap();
        joining.made_files == 2 && joining.removed_files == count
    });
    pipe.drain(&sinks);
    let scope = Scope { log_id: pipe.log.handle().log_id().to_owned(), ..scope(1, 23) };
    let shadow: SinkConfig =
        toml::from_str(&format!("name='s'\nkind='lake'\nurl='{}'", shadow.display())).unwrap();
    let reach = Reach { data_dir: pipe.data(), runtime: pipe.runtime.handle().clone() };
    let pair = Pair { live: &joins, shadow: &shadow };
    let compared = compare::compare(&[pair], &scope, &reach, &mut |_| true).unwrap();
    assert!(compared.identical, "{:?}", compared.sinks[0].samples);
    assert_eq!((compared.sinks[0].rows.live(), compared.sinks[0].rows.shadow()), (22, 22));
}

#[test]
fn a_fingerprint_is_another_as_soon_as_a_row_of_its_side_is() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(60), 10);
    lakes.write(&lakes.shadow, &events(60), 60);
    let whole = scope(0, 60);
    let print =
        |config: &SinkConfig, scope: &Scope| fingerprint(config, scope, &lakes.reach()).unwrap();
    let (live, shadow) = (print(&lakes.live, &whole), print(&lakes.shadow, &whole));
    let compared = lakes.compared(&whole);
    assert_eq!((&compared.live_fingerprint, &compared.shadow_fingerprint), (&live, &shadow));
    let begin = print(&lakes.live, &scope(0, 10));
    let mut acme = whole.clone();
    acme.selection.tenants = vec![TenantId::new("acme").unwrap()];
    let others = print(&lakes.live, &acme);

    // Behind the window, and another tenant's.
    let later: Vec<_> = events(70).into_iter().skip(60).collect();
    lakes.write(&lakes.live, &later, 10);
    assert_eq!(print(&lakes.live, &whole), live);
    assert_eq!(lakes.compared(&whole).live_fingerprint, live);
    let of_beta = lakes.files().into_iter().rfind(|path| {
        let name = path.to_string_lossy();
        name.contains("/events/tenant=beta") && name.contains("hour=12")
    });
    let of_beta = of_beta.unwrap();
    let bytes = std::fs::read(&of_beta).unwrap();
    std::fs::remove_file(&of_beta).unwrap();
    assert_ne!(print(&lakes.live, &whole), live);
    assert_eq!(print(&lakes.live, &acme), others);
    assert_eq!(print(&lakes.live, &scope(0, 10)), begin);

    // The same name and size, written again.
    std::fs::write(&of_beta, &bytes).unwrap();
    let again = print(&lakes.live, &whole);
    let mut changed = bytes;
    changed[100] ^= 1;
    std::fs::write(&of_beta, &changed).unwrap();
    assert_ne!(print(&lakes.live, &whole), again);
    assert_eq!(print(&lakes.shadow, &whole), shadow);
}

#[test]
fn rows_that_are_there_twice_are_no_secret() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(20), 20);
    lakes.write(&lakes.shadow, &events(20), 20);
    // A window that was cut again: what exactly once forbids.
    lakes.write(&lakes.live, &events(8), 8);
    let compared = lakes.compared(&scope(0, 20));
    assert_eq!((compared.identical, compared.differences.doubled_in_live), (false, 8));
    assert_eq!((compared.rows.live(), compared.rows.shadow()), (28, 20));
}

#[test]
fn an_empty_shadow_lacks_all() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(20), 20);
    assert_eq!(of(lakes.compared(&scope(0, 20)).differences), [20, 0, 0, 0, 0]);
}

#[test]
fn a_sink_that_cannot_be_read_back_is_not_called_identical() {
    let lakes = Lakes::new();
    let hole: SinkConfig = toml::from_str("name='hole'\nkind='blackhole'").unwrap();
    let pairs =
        [Pair { live: &lakes.live, shadow: &lakes.shadow }, Pair { live: &hole, shadow: &hole }];
    let compare = |pairs: &[Pair<'_>]| {
        compare::compare(pairs, &scope(0, 9), &lakes.reach(), &mut |_| true).unwrap()
    };
    let both = compare(&pairs);
    assert_eq!(
        (both.identical, both.not_compared.as_slice()),
        (true, ["hole".to_owned()].as_slice())
    );
    assert!(!both.sinks[1].identical);
    assert!(both.sinks[1].not_compared.as_ref().unwrap().contains("cannot be compared"));
    assert!(!compare(&pairs[1..]).identical);
    assert!(fingerprint(&hole, &scope(0, 9), &lakes.reach()).is_err());
}

#[test]
fn whoever_stops_listening_ends_it() {
    let lakes = Lakes::new();
    lakes.write(&lakes.live, &events(20), 20);
    let pair = Pair { live: &lakes.live, shadow: &lakes.shadow };
    let stopped = compare::compare(&[pair], &scope(0, 20), &lakes.reach(), &mut |_| false);
    assert!(matches!(stopped, Err(CompareError::Stopped)), "{stopped:?}");
}

/// Bits of live's files flip, one at a time. Another reader says what the file holds then.
#[test]
fn a_file_with_flipped_bits_is_never_called_identical_where_its_rows_are_not() {
    let mut tally = Tally::new("sink::compare", "bit flip", &["P6"]);
    let lakes = Lakes::new();
    let few: Vec<_> = events(40).into_iter().filter(|event| event.tenant == "acme").collect();
    lakes.write(&lakes.live, &few, 40);
    lakes.write(&lakes.shadow, &few, 40);
    let file =
        lakes.files().into_iter().find(|path| path.to_string_lossy().contains("view")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    // The other reader panics at some damage.
    let rows = |bytes: Vec<u8>| std::panic::catch_unwind(|| read_rows("x.parquet", bytes)).ok();
    let expected = rows(whole.clone()).unwrap();
    let (mut unreadable, mut other) = (0, 0);
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&file, &flipped).unwrap();
        let same = rows(flipped).is_some_and(|rows| rows == expected);
        let compared = lakes.compared(&scope(0, 40));
        assert!(same || !compared.identical, "byte {at}: {compared:?}");
        unreadable += u64::from(!compared.unreadable.is_empty());
        other += u64::from(compared.unreadable.is_empty() && !compared.identical);
    }
    std::fs::write(&file, &whole).unwrap();
    assert!(lakes.compared(&scope(0, 40)).identical);
    assert!(10 < unreadable, "{unreadable} unreadable, {other} other");
    eprintln!("of 150 flipped bits {unreadable} make a file unreadable, {other} other rows");
    tally.survived(150);
}
