//! Live against a replay's shadow.

use std::sync::{Mutex, PoisonError, TryLockError};

use axum::{
    Json,
    extract::{Path, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        Problem, Shared,
        lines::{Lines, follow},
    },
    jobs::{done, plan_id, record},
};
use crate::{
    pipeline::Pipeline,
    replay::{
        Plan, ShadowPlace,
        compare::{self, Compared, Pair, Reach, Scope},
        folder::Folder,
    },
    sink::SinkConfig,
    storage::Disk,
};

/// One comparison at a time: each reads as fast as it can.
static AT_WORK: Mutex<()> = Mutex::new(());

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    by: String,
}

/// Holds live against the shadow, telling how far it is as NDJSON; the last line is the report, which is
/// kept in the job's folder too.
pub(super) async fn compare(
    State(pipeline): State<Shared>,
    Path(id): Path<String>,
    Json(asked): Json<Asked>,
) -> Result<Response, Problem> {
    let id = plan_id(&id)?;
    let opened = tokio::task::spawn_blocking(move || {
        let plan = done(&pipeline, &id, "compare once it is done")?;
        record(&pipeline, "replay.compare", &asked.by, &id, Value::Null)?;
        Ok((pipeline, plan, asked.by))
    });
    let (pipeline, plan, by) = opened.await.map_err(|e| Problem::internal(e.to_string()))??;
    follow("compare", move |lines| {
        let began = std::time::Instant::now();
        let id = plan.plan_id.clone();
        match work(&pipeline, &plan, by, lines) {
            Ok(compared) => {
                let found = compared.result.differences;
                tracing::info!(plan = %id, ?found, took = ?began.elapsed(), "compared with live");
                lines.tell(&json!(compared));
            }
            Err(why) => {
                tracing::warn!(plan = %id, error = why, "not compared with live");
                lines.tell(&json!({ "failed": why }));
            }
        }
    })
}

fn work(pipeline: &Pipeline, plan: &Plan, by: String, lines: &Lines) -> Result<Compared, String> {
    let _one_at_a_time = match AT_WORK.try_lock() {
        Ok(lock) => lock,
        Err(TryLockError::Poisoned(lock)) => PoisonError::into_inner(lock),
        Err(TryLockError::WouldBlock) => {
            return Err("another comparison is at work; wait for it".to_owned());
        }
    };
    let at = pipeline.clock.now();
    let data_dir = pipeline.config.log.dir.clone();
    let sides = sides(pipeline, plan)?;
    let pairs: Vec<_> =
        sides.iter().map(|(live, shadow)| Pair { live, shadow: shadow.config() }).collect();
    let scope = Scope::of(&plan.content);
    let reach = Reach { data_dir: data_dir.clone(), runtime: pipeline.runtime.clone() };
    let tell = &mut |progress: &compare::Progress| lines.tell(&json!({ "progress": progress }));
    let result = compare::compare(&pairs, &scope, &reach, tell);
    let mut result = result.map_err(|error| error.to_string())?;
    for sink in &mut result.sinks {
        sink.live_behind = behind(pipeline, &sink.sink, &scope);
    }
    let plan_id = plan.plan_id.clone();
    let compared = Compared { format: compare::FORMAT, plan_id, at, by, result };
    let folder = Folder::of(&data_dir, &plan.plan_id);
    compared.save(&Disk, folder.path()).map_err(|error| error.to_string())?;
    Ok(compared)
}

/// Each sink of a plan, and its shadow.
fn sides<'p>(
    pipeline: &'p Pipeline,
    plan: &Plan,
) -> Result<Vec<(&'p SinkConfig, ShadowPlace)>, String> {
    let side = |target: &crate::replay::Target| {
        let live = pipeline.config.sink.iter().find(|sink| sink.name == target.sink);
        let live = live.ok_or_else(|| format!("there is no sink {:?} any more", target.sink))?;
        let shadow = ShadowPlace::of(live, plan.plan_id.as_str(), &pipeline.config.log.dir);
        Ok((live, shadow.map_err(|error| format!("sink {:?}: {error}", target.sink))?))
    };
    plan.content.targets.iter().map(side).collect()
}

/// Offsets of the window that the live sink has not passed.
fn behind(pipeline: &Pipeline, sink: &str, scope: &Scope) -> u64 {
    let mut behind = 0;
    for (name, partition, cursor) in pipeline.sinks.cursors() {
        let range = scope.window.iter().find(|(of, _)| *of == partition).map(|(_, range)| range);
        if let Some(range) = range.filter(|_| name == sink) {
            behind += range.to().0.saturating_sub(range.from().0.max(cursor.0));
        }
    }
    behind
}
