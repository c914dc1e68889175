//! The lake: places that read back and never meet, rows that come back out of their files.

#![no_main]

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use object_store::path::Path;
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};
use tidegate_event::{
    BatchEncoder, EventType, Offset, Partition, ReceivedAt, TenantId,
    record::{Record, base_id},
};
use tidegate_fuzz::{
    disk::Memory,
    input::Input,
    json::is_object,
    judge::{NORMALIZER, NOW, TYPES, entries, tenant},
};
use tidegate_ingest::{
    normalize::{Cell, Item, JudgeContext, ProjectScratch, Schema, SchemaStore, Scratch, Verdict},
    sink::{
        Lane, LaneRows, SinkContext,
        lake::{FileName, Format, Lake},
        rows::Lanes,
        source::SourceFrame,
    },
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 3 {
        0 => any_path(&input.text(0)),
        1 => places(input),
        _ => rows(input),
    }
});

fn any_path(text: &str) {
    let (root, path) = (Path::from("lake"), Path::from(format!("lake/{text}")));
    if let Some((name, format)) = FileName::parse(&root, &path) {
        assert_eq!(name.path(&root, format), path, "a file has one name");
    }
}

fn file(input: &mut Input<'_>) -> Option<FileName> {
    let tenant = TenantId::new(&input.text(0)).ok()?;
    let name = input.text(0);
    let event_type = EventType::new(&name).ok().or_else(|| EventType::mapped(&name))?;
    let hour = i64::from(input.u32() % 70_000_000) - 10_000_000;
    let flags = input.u8();
    let plan = (flags & 2 != 0).then(|| format!("{:016x}", u64::from(flags)).parse().unwrap());
    Some(FileName {
        lane: Lane { tenant, event_type, dead: flags & 1 != 0 },
        hour,
        log_id: "abcd1234".to_owned(),
        partition: Partition(input.u16().into()),
        first: Offset(input.u64()),
        last: Offset(input.u64()),
        plan,
    })
}

fn places(mut input: Input<'_>) {
    let format = Format::ALL[usize::from(input.u8()) % Format::ALL.len()].1;
    let root = Path::from("some/root");
    let (Some(a), Some(b)) = (file(&mut input), file(&mut input)) else { return };
    let (x, y) = (a.path(&root, format), b.path(&root, format));
    assert_eq!(FileName::parse(&root, &x), Some((a.clone(), format)));
    assert_eq!(a == b, x == y);
    // Folders of different lanes do not lie in each other, and none leaves the root.
    let folder = |path: &Path| {
        let parts: Vec<String> =
            path.parts().take(5).map(|part| part.as_ref().to_owned()).collect();
        assert!(path.as_ref().starts_with("some/root/") && path.parts().count() == 8);
        format!("{}/", parts.join("/"))
    };
    let (p, q) = (folder(&x), folder(&y));
    assert_eq!(a.lane == b.lane, p.starts_with(&q) || q.starts_with(&p));
}

/// A lake for each format. Nothing is written: files are made in memory.
static LAKES: LazyLock<Vec<Lake>> = LazyLock::new(|| {
    let runtime = Box::leak(Box::new(
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
    ));
    let disk = Memory::default();
    for entry in entries() {
        let hash: String = entry.schema.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        disk.put(&format!("/schemas/{hash}.json"), entry.schema.canonical().into());
    }
    let dir = std::env::temp_dir().join(format!("tidegate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let context = SinkContext {
        log_id: String::new(),
        shared_as: None,
        data_dir: dir.clone(),
        storage: Arc::new(tidegate_ingest::storage::Disk),
        schemas: Arc::new(SchemaStore::open(Arc::new(disk), "/schemas".into()).unwrap()),
        runtime: runtime.handle().clone(),
    };
    let lakes = ["parquet", "jsonl"].map(|format| {
        let text = format!("name='lake'\nkind='lake'\noptions={{format='{format}'}}");
        Lake::open(&toml::from_str(&text).unwrap(), &context, &|store| store).unwrap()
    });
    std::fs::remove_dir_all(&dir).unwrap();
    lakes.into()
});

/// One event of the batch.
struct Sent<'a> {
    raw: Vec<u8>,
    id: Option<String>,
    time: i64,
    schema: Arc<Schema>,
    kind: &'a str,
    dead: bool,
}

/// Judges events as the edge does and puts them into a batch.
fn batch<'a>(mut input: Input<'_>, sent: &mut Vec<Sent<'a>>) -> Bytes
where
    'static: 'a,
{
    let tenant = tenant(false);
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
    let mut batch = BatchEncoder::new(tenant.id.clone(), "events", NOW, base_id([7; 16]), 0);
    let mut scratch = Scratch::default();
    while !input.is_empty() && sent.len() < 32 {
        let kind = TYPES[usize::from(input.u8()) % TYPES.len()];
        let raw = input.until(b'\n');
        let item = Item { raw, event_type: Some(kind), reserved: true, ..Item::default() };
        let judged = NORMALIZER.judge(&context, &item, &mut scratch);
        let dead = match &judged.verdict {
            Verdict::Accepted => None,
            Verdict::DeadLetter(reason) => Some(reason.code),
            Verdict::Rejected(_) => continue,
        };
        batch.push(&Record {
            index: sent.len() as u32,
            event_type: &judged.event_type,
            schema: judged.schema,
            client_id: judged.client_id.as_deref(),
            event_time: judged.event_time,
            dead,
            pii_changed: judged.pii_changed,
            note: &judged.note,
            raw: &judged.raw,
        });
        let set = NORMALIZER.schemas();
        let entry = set.get(&tenant.id, judged.event_type.as_str());
        sent.push(Sent {
            raw: judged.raw.to_vec(),
            id: judged.client_id.as_deref().map(str::to_owned),
            time: judged.event_time.0,
            schema: entry.map_or_else(Schema::none, |entry| Arc::clone(&entry.schema)),
            kind,
            dead: dead.is_some(),
        });
    }
    batch.finish().body
}

fn rows(input: Input<'_>) {
    let mut sent = Vec::new();
    let body = batch(input, &mut sent);
    if sent.is_empty() {
        return;
    }
    let frame = SourceFrame {
        base: Offset(1_000),
        count: sent.len() as u32,
        received_at: ReceivedAt(NOW.0),
        body,
    };
    let frames = [frame];
    let lanes = Lanes::sort(&frames, |_, _| true);
    assert!(lanes.bad.is_empty());
    let mut found = BTreeMap::new();
    for (lane, rows) in &lanes.rows {
        let rows = LaneRows {
            log_id: "abcd1234",
            partition: Partition(3),
            lane,
            heads: &lanes.heads,
            rows,
        };
        let files = LAKES[0].files(&rows).unwrap();
        let lines = LAKES[1].files(&rows).unwrap();
        assert_eq!(files.len(), lines.len());
        for ((path, bytes), (_, lines)) in files.into_iter().zip(lines) {
            let count = read(&path, bytes, lane.dead, &sent, &mut found);
            let lines: Vec<_> = lines.split(|byte| *byte == b'\n').collect();
            assert_eq!(lines.len(), count + 1);
            assert!(lines[..count].iter().all(|line| is_object(line)));
        }
    }
    assert!(found.keys().copied().eq(0..sent.len()), "rows are lost or doubled");
}

/// Reads one file's rows, each of which is what was sent.
fn read(
    path: &str,
    bytes: Bytes,
    dead: bool,
    sent: &[Sent<'_>],
    found: &mut BTreeMap<usize, ()>,
) -> usize {
    let reader = SerializedFileReader::new(bytes).unwrap();
    let mut count = 0;
    for row in reader.get_row_iter(None).unwrap() {
        let row: Row = row.unwrap();
        let columns: BTreeMap<&String, &Field> = row.get_column_iter().collect();
        let column = |name: &str| columns[&name.to_owned()];
        let Field::Long(offset) = column("log_offset") else { panic!("{path}") };
        let at = usize::try_from(offset - 1_000).unwrap();
        assert_eq!(found.insert(at, ()), None, "twice");
        let sent = &sent[at];
        assert_eq!(sent.dead, dead);
        if let Some(id) = &sent.id {
            assert_eq!(column("event_id"), &Field::Str(id.clone()));
        }
        assert_eq!(column("event_time"), &Field::TimestampMicros(sent.time));
        if dead {
            let raw = text(column("raw")).unwrap();
            assert_eq!(raw, String::from_utf8_lossy(&sent.raw));
        } else {
            live(&columns, sent);
        }
        count += 1;
    }
    count
}

fn text(field: &Field) -> Option<&str> {
    match field {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => Some(std::str::from_utf8(bytes.data()).unwrap()),
        Field::Null => None,
        other => panic!("{other:?} is no text"),
    }
}

fn live(columns: &BTreeMap<&String, &Field>, sent: &Sent<'_>) {
    let mut scratch = ProjectScratch::default();
    let row = sent.schema.project(&sent.raw, true, &mut scratch).unwrap();
    for (spec, cell) in sent.schema.columns().iter().zip(&row.cells) {
        let there = columns[&spec.name];
        let same = match cell {
            Cell::Null => *there == Field::Null,
            Cell::Bool(value) => *there == Field::Bool(*value),
            Cell::I64(value) => *there == Field::Long(*value),
            Cell::F64(value) => matches!(there, Field::Double(d) if d.to_bits() == value.to_bits()),
            Cell::Text(value) | Cell::Json(value) => text(there) == Some(value.as_ref()),
        };
        assert!(same, "{} of {}: {cell:?} became {there:?}", spec.name, sent.kind);
    }
    assert_eq!(text(columns[&"custom".to_owned()]), Some(row.custom.unwrap_or("{}")));
}
