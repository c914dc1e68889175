//! Sinks over a real log: exactly once, lanes, the lake's files. Not proved here: durability on a
//! disk that loses power.

mod compare;
mod exactly_once;
mod fan_out;
mod faults;
mod files;
mod lanes;
mod memory;
mod merge;
mod slow;
mod start;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_event::{
    BatchEncoder, Code, EventTime, EventType, Offset, Partition, SchemaRef, TenantId,
    record::{Record, base_id},
};
use tidegate_ingest::{
    clock::ManualClock,
    log::{self, Codec, FrameBody, Log, LogConfig},
    normalize::ProjectScratch,
    sink::{
        self, Lane, Sink, SinkConfig, SinkContext, SinkParts, Sinks,
        lake::{Column, Kind, Lake, LakeReader, Project, SchemaColumn, Schemas},
    },
    storage::{Disk, Storage},
};

/// 2026-11-21T10:00:00Z
const MORNING: i64 = 1_795_255_200_000_000;
const HOUR: i64 = 3_600_000_000;

/// A log, a data folder, and what sinks stand on.
struct Pipe {
    dir: tempfile::TempDir,
    log: Log,
    clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
    backlog_bytes: u64,
    memory_bytes: u64,
}

impl Pipe {
    fn new() -> Self {
        Self::with_log(LogConfig::default())
    }

    fn with_log(config: LogConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { dir: dir.path().join("data"), ..config };
        let clock = Arc::new(ManualClock::new(MORNING));
        let opened = log::open(Arc::new(Disk), &config, Arc::<ManualClock>::clone(&clock)).unwrap();
        let log = opened.partitions.into_iter().next().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { dir, log, clock, runtime, backlog_bytes: 1 << 30, memory_bytes: 64 << 20 }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn lake(&self) -> PathBuf {
        self.data().join("lake")
    }

    /// One request: each event a type, its text, and the code it is a dead letter for.
    fn append(&mut self, tenant: &str, events: &[(&str, &str, Option<Code>)]) -> Offset {
        self.append_as(tenant, SchemaRef::default(), events)
    }

    fn append_as(
        &mut self,
        tenant: &str,
        schema: SchemaRef,
        events: &[(&str, &str, Option<Code>)],
    ) -> Offset {
        use tidegate_ingest::clock::Clock;
        let now = self.clock.now();
        let tenant = TenantId::new(tenant).unwrap();
        let id = base_id((u128::from(self.log.handle().latest().0) << 40).to_be_bytes());
        let mut batch = BatchEncoder::new(tenant, "events", now, id, 0);
        for (index, (name, raw, dead)) in events.iter().enumerate() {
            let note = match dead {
                Some(_) => r#"{"field":"/x","message":"no"}"#,
                None => "",
            };
            batch.push(&Record {
                index: u32::try_from(index).unwrap(),
                event_type: &EventType::new(name).unwrap(),
                schema: if dead.is_some() { SchemaRef::default() } else { schema },
                client_id: None,
                event_time: EventTime(now.0 - 1_000),
                dead: *dead,
                pii_changed: false,
                note,
                raw: raw.as_bytes(),
            });
        }
        let batch = batch.finish();
        let frame = FrameBody::prepare(batch.body, batch.count, now, Codec::None).unwrap();
        self.log.append(&[frame]).unwrap()[0]
    }

    fn parts(&self, storage: Arc<dyn Storage>) -> SinkParts {
        SinkParts {
            logs: vec![Arc::new(self.log.handle())],
            shared_as: None,
            schemas: Arc::new(TestSchemas),
            storage,
            clock: Arc::<ManualClock>::clone(&self.clock),
            data_dir: self.data(),
            backlog_bytes: self.backlog_bytes,
            sink_delay: Duration::from_secs(3_600),
            memory_bytes: self.memory_bytes,
            runtime: self.runtime.handle().clone(),
            background: false,
        }
    }

    fn start(&self, config: &SinkConfig) -> Sinks {
        sink::start(std::slice::from_ref(config), &self.parts(Arc::new(Disk))).unwrap()
    }

    /// Starts, writes all there is, ends.
    fn run(&self, config: &SinkConfig) {
        let sinks = self.start(config);
        self.drain(&sinks);
    }

    fn drain(&self, sinks: &Sinks) {
        self.runtime.block_on(sinks.drain(Duration::from_secs(20)));
        sinks.stop();
    }

    fn reader(&self, config: &SinkConfig) -> LakeReader {
        LakeReader::open(config, &self.data(), self.runtime.handle().clone()).unwrap()
    }

    /// The offsets in the lake's files, by lane, in order; twice where they are there twice.
    fn offsets(&self, config: &SinkConfig) -> BTreeMap<String, Vec<u64>> {
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (name, row) in self.rows(config) {
            found.entry(name).or_default().push(row["log_offset"].as_u64().unwrap());
        }
        found.values_mut().for_each(|offsets| offsets.sort_unstable());
        found
    }

    /// Every row of the lake as JSON, with its lane.
    fn rows(&self, config: &SinkConfig) -> Vec<(String, serde_json::Value)> {
        let mut rows = Vec::new();
        for facts in self.reader(config).inventory().unwrap() {
            let bytes = std::fs::read(self.lake().join(&facts.path)).unwrap();
            let read = read_rows(&facts.path, bytes);
            assert_eq!(read.len() as u64, facts.rows, "{}", facts.path);
            let offset = |row: &serde_json::Value| Offset(row["log_offset"].as_u64().unwrap());
            assert_eq!(offset(&read[0]), facts.first);
            assert_eq!(offset(read.last().unwrap()), facts.last);
            rows.extend(read.into_iter().map(|row| (facts.lane.to_string(), row)));
        }
        rows
    }
}

/// The rows of a file as JSON, read by the parquet crate's own record reader.
pub(crate) fn read_rows(path: &str, bytes: Vec<u8>) -> Vec<serde_json::Value> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let lines = if path.ends_with(".parquet") {
        let file = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let rows = file.get_row_iter(None).unwrap();
        return rows.map(|row| to_json(&row.unwrap())).collect();
    } else if path.ends_with(".gz") {
        std::io::read_to_string(flate2::read::GzDecoder::new(&bytes[..])).unwrap()
    } else if path.ends_with(".zst") {
        String::from_utf8(zstd::stream::decode_all(&bytes[..]).unwrap()).unwrap()
    } else {
        String::from_utf8(bytes).unwrap()
    };
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn to_json(row: &parquet::record::Row) -> serde_json::Value {
    use parquet::record::Field;
    let field = |field: &Field| match field {
        Field::Null => serde_json::Value::Null,
        Field::Bool(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) | Field::TimestampMicros(v) => (*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(v) => v.clone().into(),
        Field::Bytes(v) => v.as_utf8().unwrap().into(),
        other => panic!("{other:?}"),
    };
    row.get_column_iter().map(|(name, value)| (name.clone(), field(value))).collect()
}

fn config(rows: u64) -> SinkConfig {
    let config = format!("name='lake'\nkind='lake'\nflush.rows={rows}\nflush.age='1h'");
    toml::from_str(&config).unwrap()
}

fn lane(tenant: &str, event_type: &str, dead: bool) -> Lane {
    Lane {
        tenant: TenantId::new(tenant).unwrap(),
        event_type: EventType::new(event_type).unwrap(),
        dead,
    }
}

#[track_caller]
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Version 1 has the column `n`, version 2 also `name`; the rest is `custom`.
pub(crate) struct TestSchemas;
struct TestSchema(i32);

fn schema(version: i32) -> SchemaRef {
    SchemaRef { version, hash: [u8::try_from(version).unwrap(); 16] }
}

impl Schemas for TestSchemas {
    fn get(&self, schema: SchemaRef) -> Option<Arc<dyn Project>> {
        (schema.version < 9).then(|| Arc::new(TestSchema(schema.version)) as _)
    }
    fn none(&self) -> Arc<dyn Project> {
        Arc::new(TestSchema(0))
    }
}

impl Project for TestSchema {
    fn columns(&self) -> Vec<SchemaColumn> {
        let column = |name: &str, kind| SchemaColumn { name: name.into(), kind, unit: None };
        let all = vec![column("n", Kind::I64), column("name", Kind::Text)];
        all.into_iter().take(usize::try_from(self.0).unwrap()).collect()
    }

    fn project(
        &self,
        raw: &[u8],
        _reserved: bool,
        _scratch: &mut ProjectScratch,
        columns: &mut [Column],
        custom: &mut String,
    ) -> Result<bool, String> {
        let mut object: serde_json::Map<_, _> =
            serde_json::from_slice(raw).map_err(|e| e.to_string())?;
        for column in columns {
            match object.remove(&column.name) {
                Some(serde_json::Value::String(text)) => column.push_text(&text),
                Some(value) => column.push_i64(value.as_i64().unwrap()),
                None => column.push_null(),
            }
        }
        if object.is_empty() {
            return Ok(false);
        }
        *custom = serde_json::Value::Object(object).to_string();
        Ok(true)
    }
}

/// Opens a lake whose store is behind `wrap`.
fn open_lake(
    pipe: &Pipe,
    config: &SinkConfig,
    storage: Arc<dyn Storage>,
    wrap: sink::lake::Wrap<'_>,
) -> Result<Arc<dyn Sink>, sink::SinkConfigError> {
    let context = SinkContext { storage, ..context(pipe) };
    Ok(Arc::new(Lake::open(config, &context, wrap)?))
}

/// What a sink on this pipe's log is opened with.
fn context(pipe: &Pipe) -> SinkContext {
    SinkContext {
        log_id: pipe.log.handle().log_id().to_owned(),
        shared_as: None,
        data_dir: pipe.data(),
        storage: Arc::new(Disk),
        schemas: Arc::new(TestSchemas),
        runtime: pipe.runtime.handle().clone(),
    }
}

fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

const FIRST: Partition = Partition(0);
