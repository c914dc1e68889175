//! `ingestctl schema test`: what would become of these events.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Map, Value, json};
use tidegate_event::{ReceivedAt, TenantId};

use super::{
    Context,
    fault::{Fault, Verdict},
    human,
    out::{Tone, remark},
    schema::{TestArgs, fault_document, input, read, shown},
    send::lines::Batches,
};
use crate::{
    clock::{Clock, SystemClock},
    edge::Limits,
    json::ScanLimits,
    normalize::{
        Cell, Item, JudgeContext, Judged, Normalizer, ProjectScratch, Schema, SchemaStore,
        SchemasConfig, Scratch, UnknownTypes, Verdict as Judgement,
    },
    storage::Disk,
    tenants::{Quota, Secret, Tenant},
};

/// More lines than this are counted, not listed.
const LISTED_MAX: usize = 10_000;

/// A folder that is gone when this is: the normalizer keeps schema contents on disk.
struct Workspace(PathBuf);

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            remark(&format!("{} could not be removed: {e}", self.0.display()));
        }
    }
}

#[derive(Default)]
struct Found {
    events: u64,
    accepted: u64,
    dead_lettered: u64,
    rejected: u64,
    results: Vec<Map<String, Value>>,
    truncated: bool,
}

/// Judges and shows.
///
/// # Errors
/// [`Fault::Failed`] where files cannot be read.
pub(super) fn run(args: &TestArgs, context: &Context) -> Result<Verdict, Fault> {
    if let Err(faults) = read(&args.dir)? {
        return unfit(context, &faults);
    }
    let workspace =
        Workspace(std::env::temp_dir().join(format!("ingestctl-{}", uuid::Uuid::now_v7())));
    let store = SchemaStore::open(Arc::new(Disk), workspace.0.clone()).map_err(|e| {
        Fault::failed(e.to_string(), "check the folder for temporary files (TMPDIR)")
    })?;
    let unknown_types =
        if args.refuse_unknown { UnknownTypes::Refuse } else { UnknownTypes::Accept };
    let config = SchemasConfig { dir: Some(args.dir.clone()), unknown_types };
    let limits = Limits::default();
    let limits = ScanLimits { depth: limits.depth, fields: limits.fields };
    let normalizer = match Normalizer::load(&config, Arc::new(store), limits) {
        Ok(normalizer) => normalizer,
        Err(faults) => return unfit(context, &faults),
    };
    let found = judge_all(args, &normalizer)?;
    if context.out.json {
        context.out.document(&json!({"events": found.events, "accepted": found.accepted,
            "dead_lettered": found.dead_lettered, "rejected": found.rejected,
            "results": found.results, "results_truncated": found.truncated}))?;
    } else {
        for result in &found.results {
            context.out.line(&shown(result))?;
        }
        if found.truncated {
            remark(&format!("only the first {LISTED_MAX} are shown"));
        }
        let good = found.accepted == found.events;
        let text = format!(
            "{}: {} would be accepted, {} dead letters, {} rejected",
            human::things(found.events, "event", "events"),
            human::count(found.accepted),
            human::count(found.dead_lettered),
            human::count(found.rejected),
        );
        context.out.line(&context.out.paint(if good { Tone::Good } else { Tone::Bad }, &text))?;
    }
    Ok(Verdict::when(found.accepted == found.events))
}

fn unfit(context: &Context, faults: &[crate::normalize::SchemaFault]) -> Result<Verdict, Fault> {
    if context.out.json {
        let errors: Vec<_> = faults.iter().map(fault_document).collect();
        context.out.document(&json!({"valid": false, "errors": errors}))?;
    }
    for fault in faults {
        remark(&human::safe(&fault.to_string()));
    }
    Ok(Verdict::No)
}

fn judge_all(args: &TestArgs, normalizer: &Normalizer) -> Result<Found, Fault> {
    let id = TenantId::new(&args.tenant).map_err(|e| Fault::Usage(e.to_string()))?;
    let tenant = Tenant {
        id,
        enabled: true,
        strict: false,
        pii_secret: Secret(b"ingestctl schema test".to_vec()),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    };
    let mut found = Found::default();
    let mut batches = Batches::new(input(&args.file)?, 1_000, 1 << 20);
    let mut scratch = Scratch::default();
    let mut rows = ProjectScratch::default();
    while let Some(batch) = batches.read()? {
        for (index, line) in batch.lines.iter().enumerate() {
            let context = JudgeContext {
                tenant: &tenant,
                received_at: ReceivedAt(SystemClock.now().0),
                key_types: None,
            };
            let raw = batch.event(index);
            let item = Item {
                raw,
                event_type: args.event_type.as_deref(),
                reserved: true,
                ..Item::default()
            };
            let judged = normalizer.judge(&context, &item, &mut scratch);
            let result = outcome(*line, &judged, &mut found);
            let accepted = judged.verdict == Judgement::Accepted;
            if accepted && !args.rows {
                continue;
            }
            if found.results.len() >= LISTED_MAX {
                found.truncated = true;
                continue;
            }
            let mut result = result;
            if accepted {
                let schemas = normalizer.schemas();
                let entry = schemas.get(&tenant.id, judged.event_type.as_str());
                let none = Schema::none();
                let schema = entry.map_or(none.as_ref(), |entry| entry.schema.as_ref());
                result.insert("row".to_owned(), row(schema, &judged.raw, &mut rows)?);
            }
            found.results.push(result);
        }
    }
    Ok(found)
}

/// Counts an outcome, and describes it.
fn outcome(line: u64, judged: &Judged<'_>, found: &mut Found) -> Map<String, Value> {
    found.events += 1;
    let (counter, verdict, reason) = match &judged.verdict {
        Judgement::Accepted => (&mut found.accepted, "accepted", None),
        Judgement::DeadLetter(reason) => (&mut found.dead_lettered, "dead_lettered", Some(reason)),
        Judgement::Rejected(reason) => (&mut found.rejected, "rejected", Some(reason)),
    };
    *counter += 1;
    let mut result = Map::new();
    result.insert("line".to_owned(), line.into());
    result.insert("verdict".to_owned(), verdict.into());
    result.insert("event_type".to_owned(), judged.event_type.as_str().into());
    if let Some(reason) = reason {
        result.insert("code".to_owned(), reason.code.as_str().into());
        result.insert("field".to_owned(), reason.field.clone().into());
        result.insert("message".to_owned(), reason.message.clone().into());
    }
    result
}

/// An accepted event as the row it becomes.
fn row(schema: &Schema, raw: &[u8], scratch: &mut ProjectScratch) -> Result<Value, Fault> {
    let projected = schema
        .project(raw, true, scratch)
        .map_err(|e| Fault::failed(format!("an accepted event makes no row: {e}"), ""))?;
    let mut row = Map::new();
    for (column, cell) in schema.columns().iter().zip(&projected.cells) {
        let value = match cell {
            Cell::Null => Value::Null,
            Cell::Bool(value) => json!(value),
            Cell::I64(value) => json!(value),
            Cell::F64(value) => json!(value),
            Cell::Text(text) | Cell::Json(text) => json!(text),
        };
        row.insert(column.name.clone(), value);
    }
    // As text, as the column holds it: the values exactly as sent.
    row.insert("custom".to_owned(), json!(projected.custom.unwrap_or("{}")));
    Ok(Value::Object(row))
}
