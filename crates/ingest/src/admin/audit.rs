//! Do the books balance? The log and the lake's files, counted, against the ledgers.
//!
//! Every number is taken below a cut that it shares with those it is compared to, so the answer is
//! exact while events come in: sinks first (each counts up to its own cursor), then the log's
//! ledgers (which stand at or behind those cursors), then the log itself up to the ledgers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Query, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidegate_event::{EventType, Offset, OffsetRange, Partition, TenantId};

use super::{
    Problem, Shared, books,
    records::{Next, scan, scan_all},
};
use crate::{
    books::Reasons,
    metrics,
    pipeline::Pipeline,
    sink::{
        Counts, Lane, SinkConfig,
        lake::{FileFacts, LakeReader},
        source::SourceError,
    },
    writer::LedgerCopy,
};

/// How often it is tried to see the sinks between two promotions.
const PROMOTED_TRIES: u32 = 10;

/// Ids told at most when some are missing.
const MISSING_SHOWN: usize = 1000;

type Key = (TenantId, EventType);

/// Damaged stretches told at most; all are counted.
const STRETCHES_SHOWN: usize = 100;

/// One tenant and event type.
#[derive(Debug, Default, Serialize)]
struct Line {
    received: u64,
    accepted: u64,
    dead_lettered: u64,
    deduplicated: u64,
    rejected: u64,
    shed: u64,
    /// Why events were rejected or shed.
    reasons: Reasons,
    /// Accepted and dead-lettered events found in the log that the ledger does not know, or the
    /// other way round; absent where retention has removed part of the log.
    log_difference: Option<i64>,
    sinks: BTreeMap<String, SinkLine>,
}

/// One tenant and event type at one sink.
#[derive(Debug, Default, Serialize)]
struct SinkLine {
    stored: u64,
    pending: u64,
    quarantined: u64,
    skipped: u64,
    /// Accepted minus all of these.
    difference: i64,
    /// The dead letters' side of the same sum.
    dead_letters_difference: i64,
    /// Rows counted in files minus rows the sink says it stored; absent where it keeps no files.
    files_difference: Option<i64>,
    /// Events that came here (dead letters healed) less those that went, by promoted replays: the sink
    /// has as many more than were accepted.
    promoted: i64,
}

/// Events of one lane, and which of them a sink has yet to look at.
#[derive(Default)]
struct InLog {
    accepted: u64,
    dead_lettered: u64,
    /// Per sink, in the order of `Sinks::counts`: accepted and dead behind its `up_to`.
    behind: Vec<(u64, u64)>,
}

pub(super) async fn audit(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    let reading = Arc::clone(&pipeline);
    let done = tokio::task::spawn_blocking(move || balance(&reading)).await;
    done.map_err(|e| Problem::internal(e.to_string()))?.map(Json)
}

fn balance(pipeline: &Pipeline) -> Result<Value, Problem> {
    let standing = pipeline.books_standing();
    let (sinks, files) = counts_and_files(pipeline)?;
    let ledgers = ledgers_behind(pipeline, &sinks)?;
    let (in_log, lost) = count_log(pipeline, &ledgers, &sinks)?;
    let mut lines = lines_of(pipeline, &ledgers);
    let whole = pipeline.logs.iter().all(|log| log.earliest() == Offset(0));
    let mut difference = standing.difference.unsigned_abs();
    let mut at_sinks: Vec<AtSink> = sinks.iter().map(|_| AtSink::default()).collect();
    let moves: Vec<_> = sinks.iter().map(|s| s.promotions.moves(&pipeline.log_id)).collect();
    let mut ledger_minus_log = 0i64;
    for (key, line) in &mut lines {
        let empty = InLog::default();
        let found = in_log.get(key).unwrap_or(&empty);
        if whole {
            let ledger = line.accepted + line.dead_lettered;
            let off = signed(ledger) - signed(found.accepted + found.dead_lettered);
            line.log_difference = Some(off);
            ledger_minus_log += off;
        }
        for (index, counts) in sinks.iter().enumerate() {
            let behind = found.behind.get(index).copied().unwrap_or_default();
            let none = BTreeMap::new();
            let moves = moves.get(index).unwrap_or(&none);
            let sink = sink_line(key, line, counts, behind, files.get(&counts.sink), moves);
            if let Some(at_sink) = at_sinks.get_mut(index) {
                at_sink.add(&sink);
            }
            line.sinks.insert(counts.sink.clone(), sink);
        }
    }
    // Events in stretches that failed their checksum are of no type any more: they are taken out of
    // the sum, and told apart. Where that was before the ledger had them, it does not count them.
    let never_counted: u64 = ledgers.iter().map(|ledger| ledger.lost).sum();
    for ((counts, at_sink), behind) in sinks.iter().zip(at_sinks).zip(&lost.behind) {
        let off = at_sink.off(counts.lost_in_log + counts.gone + behind, never_counted);
        difference += off;
        metrics::books_sink_difference(&counts.sink, signed(off));
    }
    if whole {
        difference +=
            (ledger_minus_log + signed(never_counted) - signed(lost.events)).unsigned_abs();
    }
    Ok(json!({
        "balanced": difference == 0,
        "difference": difference,
        "books_difference": standing.difference,
        "in_flight": standing.in_flight,
        "unaccounted": standing.unaccounted,
        "refused": standing.refused,
        "gaps": books::gaps(pipeline),
        "log_quarantined": lost,
        "promotions": promotions_of(&sinks),
        "log_counted_whole": whole,
        "tenants": lines.iter().map(|((t, e), line)| shown(t, e, line)).collect::<Vec<_>>(),
    }))
}

type Files = BTreeMap<String, BTreeMap<Lane, u64>>;

/// The sinks' side and the lakes' files; again where a replay was promoted in between.
fn counts_and_files(pipeline: &Pipeline) -> Result<(Vec<Counts>, Files), Problem> {
    for _ in 0..PROMOTED_TRIES {
        let sinks = counts(pipeline)?;
        let files = files(pipeline, &sinks)?;
        let is_same = |counts: &Counts| {
            let now = pipeline.sinks.promotions(&counts.sink);
            now.map(|now| now.applied == counts.promotions.applied)
        };
        let same = sinks.iter().map(is_same).collect::<Result<Vec<_>, _>>();
        let same = same.map_err(|e| Problem::internal(e.to_string()))?;
        if same.into_iter().all(|same| same) {
            return Ok((sinks, files));
        }
    }
    Err(Problem::internal("replays are promoted and reverted all the time; ask again"))
}

/// What was promoted, for each sink, in the order in which it was.
fn promotions_of(sinks: &[Counts]) -> Value {
    let some = sinks.iter().filter(|counts| !counts.promotions.applied.is_empty());
    let some = some.map(|counts| (counts.sink.clone(), json!(counts.promotions.applied)));
    Value::Object(some.collect())
}

/// The sinks' side; read again where retention passed meanwhile.
fn counts(pipeline: &Pipeline) -> Result<Vec<Counts>, Problem> {
    let mut tries = 0;
    loop {
        match pipeline.sinks.counts() {
            Ok(counts) => return Ok(counts),
            Err(SourceError::Gone { .. }) if tries < 3 => tries += 1,
            Err(error) => return Err(Problem::internal(error.to_string())),
        }
    }
}

/// The ledgers, once they have counted what the sinks have seen: the writer shows events to readers
/// an instant before it counts them.
fn ledgers_behind(pipeline: &Pipeline, sinks: &[Counts]) -> Result<Vec<LedgerCopy>, Problem> {
    loop {
        let ledgers = pipeline.writers.ledgers().map_err(Problem::internal)?;
        let counted = |ledger: &LedgerCopy| {
            let seen = sinks.iter().filter_map(|s| s.up_to.get(&ledger.partition));
            seen.max().is_none_or(|seen| *seen <= ledger.as_of)
        };
        if ledgers.iter().all(counted) || pipeline.writers.stats().held_bytes == 0 {
            return Ok(ledgers);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn shown(tenant: &TenantId, event_type: &EventType, line: &Line) -> Value {
    let mut shown = json!(line);
    if let Value::Object(shown) = &mut shown {
        shown.insert("tenant".to_owned(), json!(tenant));
        shown.insert("event_type".to_owned(), json!(event_type));
    }
    shown
}

/// The ledgers' totals, and what the edge refused beside them.
fn lines_of(pipeline: &Pipeline, ledgers: &[LedgerCopy]) -> BTreeMap<Key, Line> {
    let mut lines = BTreeMap::<Key, Line>::new();
    for ledger in ledgers {
        for (key, tally) in &ledger.types {
            let line = lines.entry(key.clone()).or_default();
            line.accepted += tally.accepted;
            line.dead_lettered += tally.dead_lettered;
            line.deduplicated += tally.deduplicated;
        }
    }
    for (tenant, mut page) in pipeline.books.copy() {
        for (event_type, tally) in page.types {
            let reasons = page.reasons.remove(&event_type).unwrap_or_default();
            let line = lines.entry((tenant.clone(), event_type)).or_default();
            line.reasons = reasons;
            line.deduplicated += tally.deduplicated;
            line.rejected += tally.rejected;
            line.shed += tally.shed;
        }
    }
    for line in lines.values_mut() {
        line.received =
            line.accepted + line.dead_lettered + line.deduplicated + line.rejected + line.shed;
    }
    lines
}

/// Where one sink's side differs, over all tenants and types.
#[derive(Default)]
struct AtSink {
    /// Accepted and dead letters that are nowhere at the sink.
    missing: u64,
    /// What is at the sink and was never accepted.
    surplus: u64,
    files: u64,
}

impl AtSink {
    fn add(&mut self, line: &SinkLine) {
        for off in [line.difference, line.dead_letters_difference] {
            if off < 0 {
                self.surplus += off.unsigned_abs();
            } else {
                self.missing += off.unsigned_abs();
            }
        }
        self.files += line.files_difference.unwrap_or(0).unsigned_abs();
    }

    /// How far off it is. `lost` events the log could not give to the sink, of whatever type they
    /// were: they must be missing, and nothing else may. Of them `never_counted` are not accepted in
    /// the ledger either; those alone may be at the sink beyond what was accepted.
    fn off(&self, lost: u64, never_counted: u64) -> u64 {
        let expected = signed(lost) - signed(never_counted);
        let sum = signed(self.missing) - signed(self.surplus);
        let unexplained = self.surplus.saturating_sub(never_counted);
        self.files + unexplained + (sum - expected).unsigned_abs()
    }
}

/// Events in stretches of the log that failed their checksum.
#[derive(Debug, Default, Serialize)]
struct Lost {
    events: u64,
    /// Of those, what each sink has yet to come to, in the order of `Sinks::counts`.
    #[serde(skip)]
    behind: Vec<u64>,
    /// The first of them.
    stretches: Vec<Stretch>,
}

/// Offsets `from` to before `to`.
#[derive(Debug, Serialize)]
struct Stretch {
    partition: Partition,
    from: Offset,
    to: Offset,
}

impl Lost {
    fn add(&mut self, partition: Partition, (from, to): (Offset, Offset), up_to: &[Offset]) {
        let events = to.since(from);
        self.events += events;
        for (behind, up_to) in self.behind.iter_mut().zip(up_to) {
            *behind += to.since(from.max(*up_to));
        }
        if events > 0 && self.stretches.len() < STRETCHES_SHOWN {
            self.stretches.push(Stretch { partition, from, to });
        }
    }
}

/// Counts the log up to the ledgers; also the offsets that are in no readable frame.
fn count_log(
    pipeline: &Pipeline,
    ledgers: &[LedgerCopy],
    sinks: &[Counts],
) -> Result<(BTreeMap<Key, InLog>, Lost), Problem> {
    let mut found = BTreeMap::<Key, InLog>::new();
    let mut lost = Lost { behind: vec![0; sinks.len()], ..Lost::default() };
    for log in &pipeline.logs {
        let as_of = ledgers.iter().find(|l| l.partition == log.partition()).map(|l| l.as_of);
        let Some(as_of) = as_of else { continue };
        let up_to: Vec<Offset> = sinks
            .iter()
            .map(|s| s.up_to.get(&log.partition()).copied().unwrap_or_default())
            .collect();
        let from = log.earliest();
        // One batch is of one tenant and mostly of one type: the entry is looked up when it changes.
        let expected = std::cell::Cell::new(from);
        let empty = |range: OffsetRange| {
            if expected.get() == range.from() {
                expected.set(range.to());
            }
        };
        let log = pipeline.writers.as_read(log);
        scan_all(&*log, from, as_of, empty, |event| {
            lost.add(event.partition, (expected.get(), event.offset), &up_to);
            expected.set(event.offset.plus(1));
            let Some(entry) = entry_of(&mut found, event.batch.tenant, event.record.kind.name)
            else {
                return Ok(Next::Continue);
            };
            entry.behind.resize(sinks.len(), (0, 0));
            let dead = event.record.dead.is_some();
            if dead {
                entry.dead_lettered += 1
            } else {
                entry.accepted += 1
            }
            for (up_to, (accepted_behind, dead_behind)) in up_to.iter().zip(&mut entry.behind) {
                if event.offset >= *up_to {
                    if dead { *dead_behind += 1 } else { *accepted_behind += 1 }
                }
            }
            Ok(Next::Continue)
        })?;
        // What retention removed meanwhile is not lost.
        lost.add(log.partition(), (expected.get().max(log.earliest()), as_of), &up_to);
    }
    Ok((found, lost))
}

fn entry_of<'a>(
    found: &'a mut BTreeMap<Key, InLog>,
    tenant: &str,
    event_type: &str,
) -> Option<&'a mut InLog> {
    let key = (TenantId::new(tenant).ok()?, EventType::new(event_type).ok()?);
    Some(found.entry(key).or_default())
}

fn sink_line(
    key: &Key,
    line: &Line,
    counts: &Counts,
    behind: (u64, u64),
    files: Option<&BTreeMap<Lane, u64>>,
    moves: &BTreeMap<Lane, (i64, i64, i64)>,
) -> SinkLine {
    let moved = |lane: &Lane| moves.get(lane).copied().unwrap_or_default();
    let lane = |dead| Lane { tenant: key.0.clone(), event_type: key.1.clone(), dead };
    let (live, dead) = (lane(false), lane(true));
    let of = |lane: &Lane| counts.lanes.get(lane).copied().unwrap_or_default();
    let held = |lane: &Lane| counts.pending.get(lane).copied().unwrap_or_default();
    let (known, known_dead) = (of(&live), of(&dead));
    let sum = |c: &crate::sink::LaneCounts, pending| c.stored + pending + c.quarantined + c.skipped;
    let pending = held(&live) + behind.0;
    let (moved, moved_dead) = (moved(&live), moved(&dead));
    let files_difference = files.map(|files| {
        let rows = |lane: &Lane| files.get(lane).copied().unwrap_or_default();
        let (off, off_dead) = (
            signed(rows(&live)) - signed(known.stored) - moved.0,
            signed(rows(&dead)) - signed(known_dead.stored) - moved_dead.0,
        );
        if off == 0 { off_dead } else { off }
    });
    let stored = known.stored.saturating_add_signed(moved.0);
    SinkLine {
        stored: files.map_or(stored, |f| f.get(&live).copied().unwrap_or_default()),
        pending,
        quarantined: known.quarantined.saturating_add_signed(moved.1),
        skipped: known.skipped.saturating_add_signed(moved.2),
        promoted: moved.0 + moved.1 + moved.2,
        difference: signed(line.accepted) - signed(sum(&known, pending)),
        dead_letters_difference: signed(line.dead_lettered)
            - signed(sum(&known_dead, held(&dead) + behind.1)),
        files_difference,
    }
}

/// Rows in the files of every lake, per lane, as far as its cursors had come: a window whose cursor
/// has not moved yet is not counted as stored, nor are its files.
fn files(pipeline: &Pipeline, sinks: &[Counts]) -> Result<Files, Problem> {
    let mut rows_of = BTreeMap::new();
    for (name, lake) in lakes(pipeline)? {
        let Some(counts) = sinks.iter().find(|counts| counts.sink == name) else { continue };
        let passed = |file: &FileFacts| {
            let held = counts.held.get(&(file.partition, file.lane.clone()));
            let cursor = held.or_else(|| counts.cursors.get(&file.partition));
            cursor.copied().filter(|_| file.log_id == pipeline.log_id)
        };
        let rows = lake.rows_below(passed).map_err(|e| of_lake(&name, &e))?;
        rows_of.insert(name, rows);
    }
    Ok(rows_of)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledged {
    tenant: Option<String>,
    event_type: Option<String>,
    event_id: String,
}

/// How many of the missing ids are told.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Shown {
    /// All of them: who asks several servers needs to know.
    all: bool,
}

/// Which ids of a client's journal are in the log: NDJSON in, the missing ones out.
pub(super) async fn ids(
    State(pipeline): State<Shared>,
    Query(Shown { all }): Query<Shown>,
    body: String,
) -> Result<Json<Value>, Problem> {
    let work = move || {
        let mut wanted = Wanted::new();
        for (number, line) in body.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let one: Acknowledged = serde_json::from_str(line)
                .map_err(|e| Problem::bad_request(format!("line {}: {e}", number + 1)))?;
            let places = wanted.entry(one.event_id).or_default();
            let place = (one.tenant, one.event_type);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let count = |wanted: &Wanted| wanted.values().map(Vec::len).sum::<usize>();
        let checked = count(&wanted);
        find_in_log(&pipeline, &mut wanted)?;
        let trimmed = pipeline.logs.iter().any(|log| Offset(0) < log.earliest());
        if trimmed && !wanted.is_empty() {
            find_in_lakes(&pipeline, &mut wanted)?;
        }
        let shown = if all { usize::MAX } else { MISSING_SHOWN };
        let missing: Vec<&String> = wanted.keys().take(shown).collect();
        let missing_count = count(&wanted);
        Ok(json!({ "checked": checked, "missing": missing, "missing_count": missing_count }))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::internal(e.to_string()))?.map(Json)
}

/// Each id with the tenants and types it is looked for in, where those are named.
type Wanted = HashMap<String, Vec<(Option<String>, Option<String>)>>;

fn find_in_log(pipeline: &Pipeline, wanted: &mut Wanted) -> Result<(), Problem> {
    for log in &pipeline.logs {
        scan(&**log, log.earliest(), log.latest(), |event| {
            let id = event.record.event_id(&event.batch.base_id);
            if let Some(places) = wanted.get_mut(&*id) {
                places.retain(|(tenant, kind)| !event.is_of(tenant.as_deref(), kind.as_deref()));
                if places.is_empty() {
                    wanted.remove(&*id);
                }
            }
            Ok(if wanted.is_empty() { Next::Stop } else { Next::Continue })
        })?;
    }
    Ok(())
}

/// What retention has removed from the log is in the lakes' `event_id` columns.
fn find_in_lakes(pipeline: &Pipeline, wanted: &mut Wanted) -> Result<(), Problem> {
    let places: HashSet<_> = wanted.values().flatten().cloned().collect();
    for (tenant, kind) in places {
        let place = (tenant, kind);
        let kind = place.1.as_deref().and_then(|kind| EventType::new(kind).ok());
        let named = place.0.as_deref().and_then(|tenant| TenantId::new(tenant).ok());
        let tenants = match &place.0 {
            Some(_) => named.into_iter().collect(),
            None => pipeline.tenants.list().iter().map(|t| t.id.clone()).collect::<Vec<_>>(),
        };
        let of_place = wanted.iter().filter(|(_, places)| places.contains(&place));
        let ids: HashSet<String> = of_place.map(|(id, _)| id.clone()).collect();
        for (name, lake) in lakes(pipeline)? {
            for tenant in &tenants {
                let found = lake.find_ids(tenant, kind.as_ref(), &ids);
                for id in found.map_err(|e| of_lake(&name, &e))? {
                    if let Some(places) = wanted.get_mut(&id) {
                        places.retain(|other| *other != place);
                    }
                }
            }
        }
        wanted.retain(|_, places| !places.is_empty());
    }
    Ok(())
}

/// Every lake by its sink's name, for reading.
fn lakes(pipeline: &Pipeline) -> Result<Vec<(String, LakeReader)>, Problem> {
    let open = |config: &SinkConfig| {
        LakeReader::open(config, &pipeline.config.log.dir, pipeline.runtime.clone())
            .map(|lake| (config.name.clone(), lake))
            .map_err(|e| of_lake(&config.name, &e))
    };
    pipeline.config.sink.iter().filter(|config| config.kind == "lake").map(open).collect()
}

fn of_lake(name: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::internal(format!("the files of {name}: {error}"))
}
