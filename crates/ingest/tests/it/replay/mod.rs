//! Replay: a window of the log again, into a shadow.

mod faults;
mod jobs;
mod promote;
mod refusals;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_event::{EventType, Offset, Partition, ReceivedAt, TenantId};
use tidegate_ingest::{
    replay::{
        Content, Judging, LaneCount, Plan, PlanId, SchemaPin, Selection, ShadowPlace, Slice, Target,
    },
    sink::{Lane, SinkConfig},
};

use crate::server::{Server, files};

const KEY: &str = "tgk_dev";
const NDJSON: &str = "application/x-ndjson";

/// A server with a lake of JSON lines in small windows, and a folder of schemas.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(place.schemas()).unwrap();
        place
    }

    fn schemas(&self) -> PathBuf {
        self.dir.path().join("schemas")
    }

    /// Makes `text` the schema of a type.
    fn schema(&self, event_type: &str, schema: &Value) {
        let path = self.schemas().join(format!("{event_type}.json"));
        std::fs::write(path, schema.to_string()).unwrap();
    }

    fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    fn sink(&self) -> SinkConfig {
        let mut config = SinkConfig::lake("lake", &self.lake().display().to_string());
        config.options.insert("format".into(), "jsonl".into());
        config
    }

    fn start(&self) -> Server {
        self.start_with("")
    }

    /// With `more` in its configuration.
    fn start_with(&self, more: &str) -> Server {
        let config = format!(
            "[schemas]\ndir = {:?}\n[[sink]]\nname = \"lake\"\nkind = \"lake\"\nurl = {:?}\n\
             options.format = \"jsonl\"\nflush = {{ rows = 50, age = \"200ms\" }}\n{more}",
            self.schemas(),
            self.lake()
        );
        let path = self.dir.path().join("tidegate.toml");
        std::fs::write(&path, config).unwrap();
        let data = self.dir.path().join("data");
        Server::start(
            &[
                "--dev",
                "--config",
                &path.display().to_string(),
                "--data-dir",
                &data.display().to_string(),
            ],
            &[],
        )
    }

    /// The rows below a folder of the lake, by offset.
    fn rows(&self, folder: &Path) -> BTreeMap<u64, Value> {
        let mut rows = BTreeMap::new();
        for file in files(folder, ".jsonl") {
            for line in std::fs::read_to_string(&file).unwrap().lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                let offset = row["log_offset"].as_u64().unwrap();
                assert!(rows.insert(offset, row).is_none(), "offset {offset} is there twice");
            }
        }
        rows
    }

    fn live(&self, area: &str) -> BTreeMap<u64, Value> {
        self.rows(&self.lake().join(area))
    }

    fn shadow(&self, plan: &PlanId, area: &str) -> BTreeMap<u64, Value> {
        self.rows(&self.lake().join("shadow").join(plan.as_str()).join(area))
    }

    /// A hash of everything that is live: the lake but for its shadows, and the cursors.
    fn fingerprint(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in [
            self.lake().join("events"),
            self.lake().join("dead_letters"),
            self.dir.path().join("data/sinks"),
        ] {
            for file in files(&folder, "") {
                found.insert(file.clone(), std::fs::read(&file).unwrap());
            }
        }
        found
    }
}

/// Sends `count` events of a type, `n` from `from`, ids `<type>-<n>`.
fn send(
    server: &Server,
    event_type: &str,
    from: usize,
    count: usize,
    field: impl Fn(usize) -> Value,
) {
    let line = |n: usize| {
        let id = format!("{event_type}-{n}");
        json!({"event_type": event_type, "event_id": id, "n": n, "size": field(n)}).to_string()
            + "\n"
    };
    let body: String = (from..from + count).map(line).collect();
    let answer = server.post("/v1/events", KEY, NDJSON, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn lane(event_type: &str, dead: bool) -> Lane {
    Lane {
        tenant: TenantId::new("dev").unwrap(),
        event_type: EventType::new(event_type).unwrap(),
        dead,
    }
}

/// A plan for `[from, to)` of partition 0, which holds so many events of each lane.
fn plan(
    place: &Place,
    server: &Server,
    (from, to): (u64, u64),
    lanes: &[(Lane, u64)],
    selection: Selection,
    judging: Judging,
) -> Plan {
    let sink = place.sink();
    let data = place.dir.path().join("data");
    let log_id = server.admin_get("/api/v1/status").json()["log_id"].as_str().unwrap().to_owned();
    let count = |(lane, events): &(Lane, u64)| LaneCount {
        lane: lane.clone(),
        events: *events,
        bytes: 0,
        schemas_then: Vec::new(),
    };
    let content = Content {
        log_id,
        window: vec![Slice {
            partition: Partition(0),
            from: Offset(from),
            to: Offset(to),
            events: lanes.iter().map(|(_, events)| events).sum(),
            bytes: 0,
            log_bytes: 0,
            first: None,
            last: None,
        }],
        selection,
        judging,
        targets: vec![Target {
            sink: "lake".to_owned(),
            kind: "lake".to_owned(),
            place: ShadowPlace::fingerprint(&sink, &data).unwrap(),
        }],
        counts: lanes.iter().map(count).collect(),
        kept_dead: Vec::new(),
    };
    let plan_id = content.id().unwrap();
    let shadow = ShadowPlace::of(&sink, plan_id.as_str(), &data).unwrap();
    let shadow = BTreeMap::from([("lake".to_owned(), shadow.shown().to_owned())]);
    Plan { format: 1, plan_id, made_at: ReceivedAt(0), content, shadow }
}

/// The schema that the server has for a type now, pinned.
fn today(server: &Server, event_type: &str) -> Judging {
    let listed = server.admin_get("/api/v1/schemas").json();
    let schemas = listed["schemas"].as_array().unwrap();
    let schema = schemas.iter().find(|s| s["event_type"] == event_type).unwrap();
    let pin = SchemaPin {
        tenant: TenantId::new("dev").unwrap(),
        event_type: EventType::new(event_type).unwrap(),
        version: i32::try_from(schema["version"].as_i64().unwrap()).unwrap(),
        hash: schema["hash"].as_str().unwrap().to_owned(),
    };
    Judging::Today { schemas: vec![pin], refuse_unknown: false }
}

fn schema(version: i32, size: &str) -> Value {
    json!({"type": "object", "x-version": version, "properties": {
        "n": {"type": "integer"}, "size": {"type": size}}})
}
