//! Dead letters: list them, look at one, judge them again by today's schemas.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tidegate_event::{Code, Offset, Partition, TenantId};

use super::{
    Problem, Shared,
    records::{Located, Next, scan},
};
use crate::{control::Action, pipeline::redrive, replay::REDRIVE, sink::source::LogSource};

/// Dead letters shown at once unless the caller says otherwise, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;
/// Bytes of dead letters held at once while they are re-driven.
const REDRIVE_BYTES: usize = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    tenant: Option<String>,
    event_type: Option<String>,
    code: Option<String>,
    limit: Option<usize>,
    partition: Option<u32>,
    from: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Redrive {
    tenant: Option<String>,
    event_type: Option<String>,
    code: Option<String>,
    offsets: Option<Vec<Place>>,
    #[serde(default)]
    dry_run: bool,
    /// Who does it.
    by: Option<String>,
}

#[derive(Clone, Copy, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
struct Place {
    partition: u32,
    offset: u64,
}

fn known_code(code: Option<&str>) -> Result<Option<Code>, Problem> {
    let Some(code) = code else { return Ok(None) };
    let found = Code::ALL.iter().find(|c| c.as_str() == code && !c.is_rejection());
    match found {
        Some(code) => Ok(Some(*code)),
        None => Err(Problem::bad_request(format!("no dead letter has the code {code:?}"))),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::internal(format!("reading the log failed: {e}")))?
}

/// Which dead letters were re-driven already: each re-driven event names the one it came from.
fn redriven(logs: &[Arc<dyn LogSource>]) -> Result<BTreeSet<Place>, Problem> {
    let mut places = BTreeSet::new();
    for log in logs {
        scan(&**log, log.earliest(), log.latest(), |event| {
            if event.record.note.contains("redrive_of")
                && let Some(origin) = event.note().get("redrive_of")
                && let Ok(place) = Place::deserialize(origin)
            {
                places.insert(place);
            }
            Ok(Next::Continue)
        })?;
    }
    Ok(places)
}

pub(super) async fn list(
    State(pipeline): State<Shared>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Value>, Problem> {
    blocking(move || find(&pipeline.as_read(), &wanted)).await.map(Json)
}

fn find(logs: &[Arc<dyn LogSource>], wanted: &Wanted) -> Result<Value, Problem> {
    let code = known_code(wanted.code.as_deref())?;
    let limit = wanted.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let done = redriven(logs)?;
    let mut found: Vec<Map<String, Value>> = Vec::new();
    let mut next = Value::Null;
    let first = wanted.partition.unwrap_or(0);
    for log in logs.iter().filter(|log| log.partition().0 >= first) {
        let start = if log.partition().0 == first { wanted.from.unwrap_or(0) } else { 0 };
        scan(&**log, Offset(start), log.latest(), |event| {
            if !is_wanted(event, wanted.tenant.as_deref(), wanted.event_type.as_deref(), code) {
                return Ok(Next::Continue);
            }
            if found.len() == limit {
                next = json!({"partition": event.partition.0, "from": event.offset.0});
                return Ok(Next::Stop);
            }
            let place = Place { partition: event.partition.0, offset: event.offset.0 };
            let mut letter = event.dead_letter();
            letter.insert("redriven".to_owned(), done.contains(&place).into());
            found.push(letter);
            Ok(Next::Continue)
        })?;
        if !next.is_null() {
            break;
        }
    }
    Ok(json!({ "dead_letters": found, "next": next }))
}

fn is_wanted(
    event: &Located<'_>,
    tenant: Option<&str>,
    kind: Option<&str>,
    code: Option<Code>,
) -> bool {
    let dead = event.record.dead;
    dead.is_some() && code.is_none_or(|code| dead == Some(code)) && event.is_of(tenant, kind)
}

pub(super) async fn show(
    State(pipeline): State<Shared>,
    Path((partition, offset)): Path<(u32, u64)>,
) -> Result<Json<Value>, Problem> {
    blocking(move || {
        let log = pipeline.logs.iter().find(|log| log.partition() == Partition(partition));
        let log = log.ok_or_else(|| Problem::not_found(format!("no partition {partition}")))?;
        let mut found = None;
        scan(&**log, Offset(offset), Offset(offset.saturating_add(1)), |event| {
            if event.record.dead.is_some() {
                let mut letter = event.dead_letter();
                let raw = String::from_utf8_lossy(event.record.raw).into_owned();
                letter.insert("raw".to_owned(), raw.into());
                letter.insert("schema_version".to_owned(), event.record.kind.schema.version.into());
                found = Some(Value::Object(letter));
            }
            Ok(Next::Stop)
        })?;
        found.map(Json).ok_or_else(|| {
            Problem::not_found(format!("no dead letter at partition {partition}, offset {offset}"))
        })
    })
    .await
}

/// What a re-drive came to.
#[derive(Default, Serialize)]
pub(super) struct Redriven {
    matched: u64,
    /// Valid now, and appended.
    accepted: u64,
    /// Not valid by today's schemas either; left as they are.
    dead_lettered: u64,
    /// Re-driven before.
    skipped: u64,
}

pub(super) async fn redrive(
    State(pipeline): State<Shared>,
    Json(wanted): Json<Redrive>,
) -> Result<Json<Redriven>, Problem> {
    // One at a time: two could each find the same letter not re-driven yet.
    let _one = pipeline.redrives.lock().await;
    let wanted = Arc::new(wanted);
    asked_code(&wanted)?;
    if !wanted.dry_run {
        let (recording, asked) = (Arc::clone(&pipeline), Arc::clone(&wanted));
        blocking(move || record(&recording, &asked)).await?;
    }
    let mut counts = Redriven::default();
    let mut from = Some(Place { partition: 0, offset: 0 });
    while let Some(start) = from {
        let (reading, asked) = (Arc::clone(&pipeline), Arc::clone(&wanted));
        let gathered = blocking(move || gather(&reading, &asked, start)).await?;
        counts.matched += gathered.matched;
        counts.skipped += gathered.skipped;
        append_all(&pipeline, gathered.letters, &mut counts).await?;
        from = gathered.next;
    }
    Ok(Json(counts))
}

/// Writes down what is about to be done: a plan of a replay that was made before must not be run then.
fn record(pipeline: &Shared, wanted: &Redrive) -> Result<(), Problem> {
    let details = json!({
        "tenant": wanted.tenant,
        "event_type": wanted.event_type,
        "code": wanted.code,
        "offsets": wanted.offsets.as_ref().map(Vec::len),
    });
    let action = Action {
        at: pipeline.clock.now(),
        by: wanted.by.clone().unwrap_or_else(|| "unknown".to_owned()),
        action: REDRIVE.to_owned(),
        plan_id: None,
        details,
    };
    let done = pipeline.control.record(&action);
    done.map_err(|e| {
        let detail = format!("nothing was re-driven: {e}");
        Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "not_recorded", detail)
    })
}

async fn append_all(
    pipeline: &Shared,
    letters: Letters,
    counts: &mut Redriven,
) -> Result<(), Problem> {
    for ((tenant, protocol), letters) in letters {
        let Some(tenant) = pipeline.tenants.get(&tenant) else {
            return Err(Problem::conflict(format!("tenant {tenant} is not configured any more")));
        };
        let done = redrive::append(pipeline, &tenant, &protocol, letters)
            .await
            .map_err(|e| Problem::new(http::StatusCode::SERVICE_UNAVAILABLE, "not_appended", e))?;
        counts.accepted += done.accepted;
        counts.dead_lettered += done.dead_lettered;
    }
    Ok(())
}

/// By tenant and the protocol they came by.
type Letters = BTreeMap<(TenantId, String), Vec<redrive::Letter>>;

/// Letters of one stretch of the log.
struct Gathered {
    matched: u64,
    skipped: u64,
    letters: Letters,
    /// Where the next stretch begins; `None` at the end.
    next: Option<Place>,
}

/// The code that is asked for, of a question that makes sense.
fn asked_code(wanted: &Redrive) -> Result<Option<Code>, Problem> {
    let code = known_code(wanted.code.as_deref())?;
    let Redrive { tenant, event_type, offsets, .. } = wanted;
    if offsets.is_none() && tenant.is_none() && event_type.is_none() && code.is_none() {
        let detail = "say which: tenant, event_type, code or offsets";
        return Err(Problem::bad_request(detail));
    }
    Ok(code)
}

fn gather(pipeline: &Shared, wanted: &Redrive, from: Place) -> Result<Gathered, Problem> {
    let code = asked_code(wanted)?;
    let (tenant, kind) = (wanted.tenant.as_deref(), wanted.event_type.as_deref());
    let places: Option<BTreeSet<Place>> =
        wanted.offsets.as_ref().map(|p| p.iter().copied().collect());
    let done = redriven(&pipeline.as_read())?;
    let mut gathered = Gathered { matched: 0, skipped: 0, letters: Letters::new(), next: None };
    let mut bytes = 0;
    let logs = pipeline.as_read();
    for log in logs.iter().filter(|log| from.partition <= log.partition().0) {
        let start = if log.partition().0 == from.partition { from.offset } else { 0 };
        scan(&**log, Offset(start), log.latest(), |event| {
            let place = Place { partition: event.partition.0, offset: event.offset.0 };
            let asked = places.as_ref().is_none_or(|places| places.contains(&place));
            if !asked || !is_wanted(event, tenant, kind, code) {
                return Ok(Next::Continue);
            }
            if bytes >= REDRIVE_BYTES {
                gathered.next = Some(place);
                return Ok(Next::Stop);
            }
            gathered.matched += 1;
            if done.contains(&place) {
                gathered.skipped += 1;
            } else if !wanted.dry_run
                && let Ok(tenant) = TenantId::new(event.batch.tenant)
            {
                bytes += event.record.raw.len();
                let letter = redrive::Letter::of(event.batch, &event.record, json!(place));
                let key = (tenant, event.batch.protocol.to_owned());
                gathered.letters.entry(key).or_default().push(letter);
            }
            Ok(Next::Continue)
        })?;
        if gathered.next.is_some() {
            break;
        }
    }
    Ok(gathered)
}
