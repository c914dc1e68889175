//! A lake on a simulated disk, log, cursor and files alike: crashes and power cuts anywhere, until it
//! has caught up. Each offset is in its lane's files once; a name that was seen has the same bytes for
//! ever; whoever reads meanwhile finds whole files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::{
    BatchEncoder, BatchView, Code, EventTime, EventType, SchemaRef, TenantId, record::Record,
};
use tidegate_ingest::{
    clock::{Clock, ManualClock},
    log::{Codec, Entry, FrameBody, Log, LogConfig},
    sink::{self, Lane, Sink, SinkConfig, SinkContext, SinkParts, SinkState, Sinks, lake::Lake},
    storage::Storage,
};

use super::{
    MORNING,
    dice::Dice,
    entries,
    fs::{Process, SimFs},
    open_log, seeds, small_log,
    store::SimStore,
};
use crate::sink::{TestSchemas, read_rows};

type Offsets = BTreeMap<String, Vec<u64>>;

struct Run<'a> {
    fs: SimFs,
    dice: Dice,
    runtime: &'a tokio::runtime::Runtime,
    /// A real folder, empty: the object store wants one to be opened on.
    dir: &'a Path,
    clock: Arc<ManualClock>,
    log: LogConfig,
    sink: SinkConfig,
    /// Small files are joined.
    joins: bool,
    /// Every lake file ever seen.
    seen: BTreeMap<PathBuf, Vec<u8>>,
}

impl<'a> Run<'a> {
    fn new(seed: u64, joins: bool, runtime: &'a tokio::runtime::Runtime, dir: &'a Path) -> Self {
        let mut dice = Dice::new(!seed);
        let mut log = LogConfig { dir: dir.to_owned(), ..small_log() };
        log.retention_bytes = tidegate_ingest::config::Size(1 << 30);
        let (rows, format) = (3 + dice.below(8), ["jsonl", "parquet"][dice.index(2)]);
        let sink = format!(
            "name='lake'\nkind='lake'\nflush.rows={rows}\nflush.age='1h'\noptions.format='{format}'\n{}",
            if joins { "options.merge={after='0s',every='0s',settle='0s'}" } else { "" }
        );
        Self {
            fs: SimFs::new(seed),
            dice,
            runtime,
            dir,
            clock: Arc::new(ManualClock::new(MORNING)),
            log,
            sink: toml::from_str(&sink).unwrap(),
            joins,
            seen: BTreeMap::new(),
        }
    }

    fn append(&mut self, log: &mut Log) {
        let tenant = TenantId::new(["acme", "beta"][self.dice.index(2)]).unwrap();
        let now = self.clock.now();
        let mut batch = BatchEncoder::new(tenant, "events", now, [7; 16], 0);
        for index in 0..=self.dice.below(4) as u32 {
            let raw = format!("{{\"n\":{}}}", self.dice.below(1_000));
            batch.push(&Record {
                index,
                event_type: &EventType::new(["view", "click"][self.dice.index(2)]).unwrap(),
                schema: SchemaRef::default(),
                client_id: None,
                event_time: EventTime(now.0),
                dead: self.dice.permille(150).then_some(Code::TypeMismatch),
                pii_changed: false,
                note: "",
                raw: raw.as_bytes(),
            });
        }
        let batch = batch.finish();
        let frame = FrameBody::prepare(batch.body, batch.count, now, Codec::None).unwrap();
        drop(log.append(&[frame]));
        if self.dice.permille(200) {
            self.clock.advance(3_600_000_000);
        }
    }

    fn start(&self, log: &Log, disk: &Process) -> Option<Sinks> {
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let context = SinkContext {
            log_id: log.handle().log_id().to_owned(),
            shared_as: None,
            data_dir: self.dir.to_owned(),
            storage: Arc::clone(&storage),
            schemas: Arc::new(TestSchemas),
            runtime: self.runtime.handle().clone(),
        };
        // The first store that is opened is the one that syncs.
        let syncs = AtomicBool::new(true);
        let wrap = |_| {
            let syncs = syncs.swap(false, Ordering::SeqCst);
            Arc::new(SimStore { disk: disk.clone(), dir: self.lake(), syncs }) as _
        };
        let lake: Arc<dyn Sink> = Arc::new(Lake::open(&self.sink, &context, &wrap).ok()?);
        let parts = SinkParts {
            logs: vec![Arc::new(log.handle())],
            shared_as: None,
            schemas: Arc::new(TestSchemas),
            storage,
            clock: Arc::<ManualClock>::clone(&self.clock),
            data_dir: self.dir.to_owned(),
            backlog_bytes: 1 << 30,
            sink_delay: Duration::from_secs(3_600),
            memory_bytes: 64 << 20,
            runtime: self.runtime.handle().clone(),
            background: false,
        };
        sink::start_with(vec![(self.sink.clone(), lake)], &parts).ok()
    }

    fn lake(&self) -> PathBuf {
        self.dir.join("lake")
    }

    /// Some events, then the sink until it is done or struck.
    fn life(&mut self) {
        let disk = self.fs.process();
        let (mut log, _) = open_log(Arc::new(disk.clone()), &self.log, &self.clock).unwrap();
        if self.dice.permille(200) {
            self.fs.crash_in(1 + self.dice.below(30), false);
        }
        for _ in 0..self.dice.below(8) {
            self.append(&mut log);
        }
        if !self.fs.crashed() {
            let span = if self.dice.coin() { 40 } else { 400 };
            self.fs.crash_in(1 + self.dice.below(span), true);
            let started = catch_unwind(AssertUnwindSafe(|| self.start(&log, &disk)));
            if let Ok(Some(sinks)) = started {
                if self.joins {
                    let until = Instant::now() + Duration::from_millis(80);
                    while Instant::now() < until && !self.fs.crashed() {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
                self.runtime.block_on(sinks.drain(Duration::from_secs(20)));
                sinks.stop();
            }
        }
        if self.dice.permille(300) {
            self.fs.kill()
        } else {
            self.fs.reboot()
        }
        self.look();
    }

    /// Waits until each folder has one file.
    fn is_joined_within(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while Instant::now() < until {
            let files = self.files();
            let mut folders: Vec<_> = files.iter().map(|(path, _)| path.parent()).collect();
            folders.dedup();
            if !files.is_empty() && folders.len() == files.len() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let area = |area| self.fs.tree(&self.lake().join(area));
        ["events", "dead_letters"].into_iter().flat_map(area).collect()
    }

    /// What is in the lake now: whole files, and none that changed. Each row once, but for folders that
    /// no reader can read because their files are being joined: there, at least once.
    fn look(&mut self) -> Offsets {
        let mut found = Offsets::new();
        let mut files = self.files();
        let blocker = |path: &Path| path.to_str().unwrap().contains(".joining.");
        let blocked: BTreeSet<PathBuf> = files
            .iter()
            .filter(|(path, _)| blocker(path))
            .map(|(path, _)| path.parent().unwrap().to_owned())
            .collect();
        files.retain(|(path, _)| !blocker(path));
        let mut once = BTreeSet::new();
        for (path, bytes) in files {
            let name = path.strip_prefix(self.lake()).unwrap().to_str().unwrap();
            let known = self.seen.entry(path.clone()).or_insert_with(|| bytes.clone());
            assert!(*known == bytes, "{name} has other bytes than it had");
            let parts: Vec<_> = name.split('/').collect();
            let lane = format!("{} {} {}", parts[0], parts[1], parts[2]);
            let rows = read_rows(name, bytes);
            assert!(!rows.is_empty(), "{name}");
            let is_blocked = blocked.contains(path.parent().unwrap());
            let all = found.entry(lane.clone()).or_default();
            for row in rows {
                let offset = row["log_offset"].as_u64().unwrap();
                let new = once.insert((lane.clone(), offset));
                assert!(new || is_blocked, "{name}: offset {offset} is there twice");
                all.extend(new.then_some(offset));
            }
        }
        found.values_mut().for_each(|offsets| offsets.sort_unstable());
        found
    }

    fn whole(mut self) -> u64 {
        for _ in 0..8 {
            self.life();
        }
        self.finish();
        self.fs.operations()
    }

    fn finish(&mut self) {
        let disk = self.fs.process();
        let (log, _) = open_log(Arc::new(disk.clone()), &self.log, &self.clock).unwrap();
        let sinks = self.start(&log, &disk).unwrap();
        if self.joins {
            assert!(self.is_joined_within(Duration::from_secs(20)), "not all is joined");
        }
        self.runtime.block_on(sinks.drain(Duration::from_secs(20)));
        sinks.stop();
        let status = sinks.status().remove(0).partitions.remove(0);
        assert!(matches!(status.state, SinkState::Drained), "{:?}", status.state);
        let expected = expected(&log);
        assert_eq!(self.look(), expected);
        let counts = sinks.counts().unwrap().remove(0);
        assert_eq!((counts.lost_in_log, counts.pending.len()), (0, 0));
        for (lane, counts) in counts.lanes {
            assert_eq!(counts.stored, expected[&name(&lane)].len() as u64, "{lane}");
        }
        assert!(self.fs.tree(&self.lake().join("staging")).is_empty());
        // And it stays.
        self.fs.reboot();
        assert_eq!(self.look(), expected);
    }
}

fn name(lane: &Lane) -> String {
    let area = if lane.dead { "dead_letters" } else { "events" };
    format!("{area} tenant={} event_type={}", lane.tenant, lane.event_type)
}

/// What the log says must be there.
fn expected(log: &Log) -> Offsets {
    let mut all = Offsets::new();
    for entry in entries(&log.handle()) {
        let Entry::Frame(frame) = entry else { panic!("{entry:?}") };
        let view = BatchView::parse(&frame.body).unwrap();
        for record in view.records() {
            let record = record.unwrap();
            let lane = Lane {
                tenant: TenantId::new(view.tenant).unwrap(),
                event_type: EventType::new(view.types[record.type_index].name).unwrap(),
                dead: record.dead.is_some(),
            };
            all.entry(name(&lane)).or_default().push(record.offset(frame.base).0);
        }
    }
    all
}

#[test]
fn a_lake_has_each_event_once_after_any_crash() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("lake")).unwrap();
    seeds("lake", &["P2"], 60, |seed| Run::new(seed, false, &runtime, dir.path()).whole());
}

/// Files are joined all the time, and a join may be cut anywhere: what is left has all rows once, or
/// cannot be read until the next start has ended it.
#[test]
fn a_lake_whose_files_are_joined_has_each_event_once_after_any_crash() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("lake")).unwrap();
    seeds("joins", &["P2"], 30, |seed| Run::new(seed, true, &runtime, dir.path()).whole());
}
