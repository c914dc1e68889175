//! A window of a lake promoted and reverted on a simulated disk, cut at every single operation, by a kill
//! and by a power cut: live is what it was or what it is to be, rows outside the window are untouched, and
//! whoever lists and reads meanwhile has the one, the other, or an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidegate_event::{
    BatchEncoder, Code, EventTime, EventType, Offset, Partition, ReceivedAt, SchemaRef, TenantId,
    record::Record,
};
use tidegate_ingest::{
    clock::ManualClock,
    replay::{
        Content, Judging, LaneCount, PlanId, Selection, ShadowPlace, Slice,
        promote::{Lacking, Live, PromoteError, Promoter, Request, Target, journal::Phase},
    },
    sink::{
        Lane, LaneRows, Sink, SinkConfig, SinkContext,
        exchange::Marked,
        lake::Lake,
        promoted::{Promotions, Span},
        rows::Lanes,
        source::SourceFrame,
    },
    storage::Storage,
};

use super::{
    MORNING,
    dice::Dice,
    fs::{Odds, Process, SimFs},
    store::SimStore,
    world::World,
};
use crate::{
    sink::{TestSchemas, read_rows},
    tally::Tally,
};

const PLAN: &str = "00000000000000aa";
const HOUR: i64 = 3_600_000_000;
/// Events in the lake, and the window of them that is replayed.
const ALL: u64 = 24;
const WINDOW: (u64, u64) = (5, 17);

type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// The sinks, without threads.
struct One(Arc<dyn Sink>);

impl Live for One {
    fn names(&self) -> Vec<String> {
        vec!["lake".to_owned()]
    }
    fn sink(&self, name: &str) -> Option<Arc<dyn Sink>> {
        (name == "lake").then(|| Arc::clone(&self.0))
    }
    fn passed(&self, _: &str, _: &[Span], _: &Selection) -> Result<(), String> {
        Ok(())
    }
    fn gained(
        &self,
        _: &str,
        offsets: &BTreeMap<Partition, Marked>,
    ) -> Result<BTreeMap<Lane, Lacking>, String> {
        panic!("live has all of it: {offsets:?}")
    }
}

struct Bench {
    fs: SimFs,
    runtime: tokio::runtime::Runtime,
    /// A real folder, empty: the object store wants one to be opened on.
    dir: tempfile::TempDir,
    sink: SinkConfig,
    content: Content,
}

/// Event `n` is dead in the log, and what the replay makes of it.
fn is_dead(n: u64) -> bool {
    n % 5 == 2
}

fn heals(n: u64) -> bool {
    n % 10 == 2
}

/// The batch of events `[first, first + 4)`; `again`: as a replay judges them.
fn frame(first: u64, again: bool) -> SourceFrame {
    let received_at = ReceivedAt(MORNING + i64::try_from(first / 12).unwrap() * HOUR);
    let tenant = TenantId::new(if first.is_multiple_of(8) { "acme" } else { "beta" }).unwrap();
    let mut batch = BatchEncoder::new(tenant, "events", received_at, [7; 16], 0);
    for (index, n) in (0..).zip(first..first + 4) {
        let dead = is_dead(n) && !(again && heals(n));
        let raw = format!("{{\"n\":{n},\"name\":\"{}\"}}", if again { "anew" } else { "é" });
        let hash = [1; 16];
        batch.push(&Record {
            index,
            event_type: &EventType::new("view").unwrap(),
            schema: SchemaRef { version: if again { 2 } else { 1 }, hash },
            client_id: None,
            event_time: EventTime(received_at.0),
            dead: dead.then_some(Code::TypeMismatch),
            pii_changed: false,
            note: "",
            raw: raw.as_bytes(),
        });
    }
    let batch = batch.finish();
    SourceFrame { base: Offset(first), count: 4, received_at, body: batch.body }
}

impl Bench {
    /// A lake with some events in files of 8 at most, and the shadow of the window.
    fn new(format: &str, selection: Selection) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lake")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let sink = format!("name='lake'\nkind='lake'\noptions.format='{format}'");
        let content = content(selection);
        let sink = toml::from_str(&sink).unwrap();
        let bench = Self { fs: SimFs::new(3), runtime, dir, sink, content };
        let disk = bench.fs.process();
        disk.create_dir_all(&bench.dir.path().join("sinks")).unwrap();
        let live = bench.open(&disk).unwrap();
        for first in (0..ALL).step_by(8) {
            let frames: Vec<_> =
                (first..ALL.min(first + 8)).step_by(4).map(|n| frame(n, false)).collect();
            write(&*live, &frames, |_, _| true);
        }
        let shadow = bench.open_shadow(&disk);
        for first in (0..ALL).step_by(12) {
            let recorded =
                |offset: Offset, lane: &Lane| Lane { dead: is_dead(offset.0), ..lane.clone() };
            let frames: Vec<_> =
                (first..ALL.min(first + 12)).step_by(4).map(|n| frame(n, true)).collect();
            write(&*shadow, &frames, |lane, offset| {
                (WINDOW.0..WINDOW.1).contains(&offset.0)
                    && bench.content.selection.takes(&recorded(offset, lane))
            });
        }
        bench
    }

    fn lake_dir(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    fn context(&self, disk: &Process) -> SinkContext {
        SinkContext {
            log_id: "abcd1234".to_owned(),
            shared_as: None,
            data_dir: self.dir.path().to_owned(),
            storage: Arc::new(disk.clone()),
            schemas: Arc::new(TestSchemas),
            runtime: self.runtime.handle().clone(),
        }
    }

    fn open(&self, disk: &Process) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(self.lake(disk, &self.sink, self.lake_dir())?))
    }

    fn lake(&self, disk: &Process, config: &SinkConfig, dir: PathBuf) -> Option<Lake> {
        // The first store that is opened is the one that syncs.
        let syncs = AtomicBool::new(true);
        let wrap = |_| {
            let syncs = syncs.swap(false, Ordering::SeqCst);
            Arc::new(SimStore { disk: disk.clone(), dir: dir.clone(), syncs }) as _
        };
        Lake::open(config, &self.context(disk), &wrap).ok()
    }

    /// The place of the shadow, which is one by the program's own word.
    fn shadow(&self) -> SinkConfig {
        let place = ShadowPlace::of(&self.sink, PLAN, self.dir.path()).unwrap();
        place.config().clone()
    }

    fn open_shadow(&self, disk: &Process) -> Arc<dyn Sink> {
        let config = self.shadow();
        let dir = PathBuf::from(config.url.clone().unwrap());
        std::fs::create_dir_all(&dir).unwrap();
        Arc::new(self.lake(disk, &config, dir).unwrap())
    }

    fn promoter(&self, disk: &Process) -> Option<Promoter> {
        self.promoter_that_tries(1, disk)
    }

    fn promoter_that_tries(&self, tries: u32, disk: &Process) -> Option<Promoter> {
        let live = Arc::new(One(self.open(disk)?));
        let clock = Arc::new(ManualClock::new(MORNING));
        let (storage, dir) = (Arc::new(disk.clone()), self.dir.path().to_owned());
        Some(Promoter::new(live, storage, clock, dir).with(Duration::ZERO, tries))
    }

    fn promote(&self, promoter: &Promoter) -> Result<(), PromoteError> {
        let plan: PlanId = PLAN.parse().unwrap();
        let targets = [Target { sink: "lake".to_owned(), shadow: self.shadow() }];
        let request = Request {
            plan: &plan,
            content: &self.content,
            targets: &targets,
            seen: "",
            who: "kim",
            check: &|| Ok(()),
            tell: &|_, _| true,
        };
        promoter.promote(&request).map(drop)
    }

    fn revert(&self, promoter: &Promoter) -> Result<(), PromoteError> {
        promoter.revert(&PLAN.parse().unwrap(), "kim", &|_, _| true).map(drop)
    }

    fn tree(&self) -> Tree {
        let area = |area: &str| self.fs.tree(&self.lake_dir().join(area));
        ["events", "dead_letters"].into_iter().flat_map(area).collect()
    }

    fn promotions(&self) -> Promotions {
        let disk: Arc<dyn Storage> = Arc::new(self.fs.process());
        Promotions::load(&*disk, self.dir.path(), "lake").unwrap()
    }

    fn phase(&self) -> Option<Phase> {
        let promoter = self.promoter(&self.fs.process()).unwrap();
        promoter.journal(&PLAN.parse().unwrap()).unwrap().map(|journal| journal.phase)
    }
}

fn content(selection: Selection) -> Content {
    let lane = |tenant, kind, dead| Lane {
        tenant: TenantId::new(tenant).unwrap(),
        event_type: EventType::new(kind).unwrap(),
        dead,
    };
    let lanes = ["acme", "beta"].into_iter().map(|tenant| lane(tenant, "view", false));
    let count = |lane| LaneCount { lane, events: 1, bytes: 1, schemas_then: vec![] };
    Content {
        log_id: "abcd1234".to_owned(),
        window: vec![Slice {
            partition: Partition(0),
            from: Offset(WINDOW.0),
            to: Offset(WINDOW.1),
            events: WINDOW.1 - WINDOW.0,
            bytes: 1,
            log_bytes: 1,
            first: None,
            last: None,
        }],
        selection,
        judging: Judging::AsRecorded,
        targets: vec![],
        counts: lanes.map(count).collect(),
        kept_dead: vec![],
    }
}

fn write(sink: &dyn Sink, frames: &[SourceFrame], mut take: impl FnMut(&Lane, Offset) -> bool) {
    let lanes = Lanes::sort(frames, |lane, offset| take(lane, offset));
    for (lane, rows) in lanes.rows.iter().filter(|(_, rows)| !rows.is_empty()) {
        let (log_id, partition) = ("abcd1234", Partition(0));
        sink.write(&LaneRows { log_id, partition, lane, heads: &lanes.heads, rows }).unwrap();
    }
}

/// Offset to (lane, row), of files as a reader without a catalogue reads them; `None` where one cannot be
/// read.
fn rows(tree: &Tree) -> Option<BTreeMap<u64, (String, serde_json::Value)>> {
    let mut rows = BTreeMap::new();
    for (path, bytes) in tree {
        let name = path.to_str().unwrap();
        if name.contains(".promoting.") {
            return None;
        }
        let lane: Vec<_> = name.split('/').filter(|part| part.contains('=')).collect();
        let area = if name.contains("/dead_letters/") { "dead" } else { "event" };
        for row in read_rows(name, bytes.clone()) {
            let offset = row["log_offset"].as_u64().unwrap();
            let there = rows.insert(offset, (format!("{area} {}", lane.join("/")), row));
            assert_eq!(there, None, "offset {offset} is there twice: {name}");
        }
    }
    Some(rows)
}

fn folders(tree: &Tree) -> BTreeMap<&Path, BTreeMap<&Path, &Vec<u8>>> {
    let mut folders: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (path, bytes) in tree {
        folders.entry(path.parent().unwrap()).or_default().insert(path.as_path(), bytes);
    }
    folders
}

/// What a reader may find at one moment: all as before, all as after, or, where files of any folder are
/// others, in each such folder what cannot be read.
fn check_reader(now: &Tree, before: &Tree, after: &Tree, what: &str) {
    let blocked: BTreeSet<&Path> = now
        .keys()
        .filter(|path| path.to_str().unwrap().contains(".promoting."))
        .map(|path| path.parent().unwrap())
        .collect();
    let (now, before, after) = (folders(now), folders(before), folders(after));
    let none = BTreeMap::new();
    let in_all = |which: &BTreeMap<&Path, BTreeMap<&Path, &Vec<u8>>>| {
        let all = now.keys().chain(which.keys()).filter(|folder| !blocked.contains(**folder));
        all.into_iter()
            .all(|folder| now.get(folder).unwrap_or(&none) == which.get(folder).unwrap_or(&none))
    };
    assert!(in_all(&before) || in_all(&after), "{what}: a reader would see a mixture: {now:#?}");
}

/// Cuts `act` at each of its operations (or each `step`th), by a kill and by a power cut, then once more in
/// what ends it.
fn sweep(
    bench: &Bench,
    (start, step): (&World, usize),
    (before, after): (&Tree, &Tree),
    act: &dyn Fn(&Bench, &Promoter) -> Result<(), PromoteError>,
    ends: &dyn Fn(&Bench, bool),
) -> [u64; 2] {
    let mut dice = Dice::new(11);
    let mut cuts = [0, 0];
    for power in [false, true] {
        for at in (1..).step_by(step) {
            bench.fs.back_to(start);
            let disk = bench.fs.process();
            let promoter = bench.promoter(&disk).unwrap();
            bench.fs.crash_in(at, false);
            let done = act(bench, &promoter);
            if done.is_ok() {
                break;
            }
            cuts[usize::from(power)] += 1;
            let what = format!("cut at operation {at}, power {power}");
            let next = || if power { bench.fs.reboot() } else { bench.fs.kill() };
            check_reader(&bench.tree(), before, after, &what);
            next();
            check_reader(&bench.tree(), before, after, &what);
            // What ends it may be cut as well, anywhere.
            bench.fs.crash_in(1 + dice.below(60), false);
            if let Some(promoter) = bench.promoter(&bench.fs.process()) {
                drop(promoter.resume());
            }
            check_reader(&bench.tree(), before, after, &what);
            next();
            let promoter = bench.promoter(&bench.fs.process()).unwrap();
            promoter.resume().unwrap_or_else(|error| panic!("{what}: {error}"));
            let now = bench.tree();
            assert!(now == *before || now == *after, "{what}: neither old nor new");
            assert_eq!(bench.promotions().open, None, "{what}");
            ends(bench, now == *after);
        }
    }
    cuts
}

fn all_of(bench: &Bench, step: usize) -> [u64; 2] {
    let before = bench.tree();
    let start = bench.fs.world();
    let disk = bench.fs.process();
    let promoter = bench.promoter(&disk).unwrap();
    bench.promote(&promoter).unwrap();
    let after = bench.tree();
    check_rows(bench, &before, &after);
    assert_eq!(bench.phase(), Some(Phase::Done));

    let kept = bench.lake_dir().join(format!("shadow/{PLAN}/promotion"));
    let promoted = bench.fs.world();
    let forward = sweep(
        bench,
        (&start, step),
        (&before, &after),
        &|bench, promoter| bench.promote(promoter),
        &|bench, is_new| {
            assert_eq!(bench.promotions().applied.len(), usize::from(is_new));
            assert_eq!(bench.phase(), is_new.then_some(Phase::Done));
            assert_eq!(bench.fs.tree(&kept).is_empty(), !is_new, "what was made ready is gone");
        },
    );
    let back = sweep(
        bench,
        (&promoted, step),
        (&after, &before),
        &|bench, promoter| bench.revert(promoter),
        &|bench, is_old| {
            assert_eq!(bench.promotions().applied.len(), usize::from(!is_old));
            let phase = if is_old { Phase::Reverted } else { Phase::Done };
            assert_eq!(bench.phase(), Some(phase));
            assert_eq!(bench.fs.tree(&kept).is_empty(), is_old);
        },
    );
    assert!(40 < forward[0] * step as u64 && 40 < back[0] * step as u64, "{forward:?} {back:?}");
    [forward[0] + back[0], forward[1] + back[1]]
}

/// Rows outside the window are what they were, value by value; those within are the shadow's.
fn check_rows(bench: &Bench, before: &Tree, after: &Tree) {
    let shadow = bench.lake_dir().join(format!("shadow/{PLAN}"));
    let area = |area: &str| bench.fs.tree(&shadow.join(area));
    let shadow: Tree = ["events", "dead_letters"].into_iter().flat_map(area).collect();
    let (old, new, shadow) = (rows(before).unwrap(), rows(after).unwrap(), rows(&shadow).unwrap());
    assert!(!shadow.is_empty() && old.len() as u64 == ALL);
    for (offset, row) in &new {
        assert_eq!(row, shadow.get(offset).unwrap_or(&old[offset]), "offset {offset}");
    }
    assert_eq!(new.len(), old.len());
    assert!(old != new);
    // Files that were not cut are the very same.
    let same = after.iter().filter(|(path, bytes)| before.get(*path) == Some(*bytes)).count();
    assert!(0 < same, "files outside the window stay");
}

#[test]
fn a_promotion_cut_at_any_operation_leaves_the_old_window_or_the_new() {
    let names = |tenants: &[&str]| tenants.iter().map(|t| TenantId::new(t).unwrap()).collect();
    let selections = [
        Selection::default(),
        Selection { tenants: names(&["beta"]), ..Selection::default() },
        Selection { dead_letters_only: true, ..Selection::default() },
    ];
    let mut kill = Tally::new("sim::promote", "kill -9", &["P2", "P6"]);
    let mut power = Tally::new("sim::promote", "power loss", &["P2", "P6"]);
    let how = [("parquet", 1), ("jsonl", 5), ("parquet", 5)];
    for ((format, step), selection) in how.into_iter().zip(selections) {
        let cuts = all_of(&Bench::new(format, selection.clone()), step);
        eprintln!("promote and revert, {format}, {selection:?}: cut {cuts:?} times");
        kill.survived(cuts[0]);
        power.survived(cuts[1]);
    }
}

/// Writes, syncs and renames fail at random instead: nothing is lost, and it goes on once they do not.
#[test]
fn a_promotion_on_a_disk_that_fails_ends_in_the_old_window_or_the_new() {
    let mut tally = Tally::new("sim::promote", "EIO", &["P2", "P6"]);
    let bench = Bench::new("parquet", Selection::default());
    let start = bench.fs.world();
    let before = bench.tree();
    bench.promote(&bench.promoter(&bench.fs.process()).unwrap()).unwrap();
    let (after, promoted) = (bench.tree(), bench.fs.world());
    for round in 0..120 {
        let back = round % 2 == 1;
        bench.fs.back_to(if back { &promoted } else { &start });
        // Half of them go on by themselves for a while.
        let tries = if round % 4 < 2 { 1 } else { 3 };
        let promoter = bench.promoter_that_tries(tries, &bench.fs.process()).unwrap();
        let odds = Odds { write_error: 20, sync_error: 20, ..Odds::default() };
        bench.fs.set_odds(odds);
        let done = if back { bench.revert(&promoter) } else { bench.promote(&promoter) };
        let now = bench.tree();
        let (from, to) = if back { (&after, &before) } else { (&before, &after) };
        check_reader(&now, from, to, &format!("round {round}"));
        match done {
            Ok(()) => assert!(now == *to, "round {round}"),
            Err(PromoteError::Refused(why)) => panic!("round {round}: {why}"),
            Err(PromoteError::Failed(_)) => assert!(now == *from, "round {round}"),
            Err(PromoteError::Unfinished(_)) => {}
        }
        bench.fs.set_odds(Odds::default());
        bench.fs.kill();
        let promoter = bench.promoter(&bench.fs.process()).unwrap();
        promoter.resume().unwrap();
        let now = bench.tree();
        assert!(now == *from || now == *to, "round {round}");
        assert_eq!(bench.promotions().open, None);
        tally.survived(1);
    }
}

/// Room for some bytes more and no others, in the same process: what is refused leaves the old, what was
/// begun goes on once there is room.
#[test]
fn a_promotion_on_a_disk_that_is_full_ends_in_the_old_window_or_the_new() {
    let mut tally = Tally::new("sim::promote", "ENOSPC", &["P2", "P6"]);
    let bench = Bench::new("parquet", Selection::default());
    let start = bench.fs.world();
    let before = bench.tree();
    bench.promote(&bench.promoter(&bench.fs.process()).unwrap()).unwrap();
    let (after, promoted) = (bench.tree(), bench.fs.world());
    let mut ends = [0; 3];
    for (back, step) in [(false, 700), (true, 100)] {
        let (world, from, to) = match back {
            false => (&start, &before, &after),
            true => (&promoted, &after, &before),
        };
        for room in (0..).map(|n| n * step) {
            let what = format!("back {back}, room for {room} bytes");
            bench.fs.back_to(world);
            let promoter = bench.promoter(&bench.fs.process()).unwrap();
            let capacity = Some(world.clone().used() + room);
            bench.fs.set_odds(Odds { capacity, ..Odds::default() });
            let done = if back { bench.revert(&promoter) } else { bench.promote(&promoter) };
            let now = bench.tree();
            check_reader(&now, from, to, &what);
            match &done {
                Ok(()) => assert!(now == *to, "{what}"),
                Err(PromoteError::Refused(why)) => panic!("{what}: {why}"),
                Err(PromoteError::Failed(_)) => assert!(now == *from, "{what}"),
                Err(PromoteError::Unfinished(_)) => {}
            }
            let end = usize::from(done.is_ok())
                + 2 * usize::from(matches!(done, Err(PromoteError::Unfinished(_))));
            ends[end] += 1;
            bench.fs.set_odds(Odds::default());
            promoter.resume().unwrap_or_else(|error| panic!("{what}: {error}"));
            let now = bench.tree();
            assert!(now == *from || now == *to, "{what}");
            assert_eq!(bench.promotions().open, None, "{what}");
            tally.survived(1);
            if done.is_ok() {
                break;
            }
        }
    }
    eprintln!("promote and revert without room: failed, done, unfinished {ends:?}");
    assert!(ends.iter().all(|count| 0 < *count), "each end was met: {ends:?}");
}
