//! Holding a sink's destination against the log.

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_event::{Offset, Partition};

use super::{Problem, Shared, lines::follow};
use crate::sink::reconcile::{ReconcileError, Reconciled, Wanted};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    partition: Option<u32>,
    from: Option<u64>,
    to: Option<u64>,
    #[serde(default)]
    repair: bool,
}

/// Looks at every row that a sink says it stored, telling how far it is as NDJSON; the last line is the
/// report.
pub(super) async fn reconcile(
    State(pipeline): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    if !pipeline.config.sink.iter().any(|sink| sink.name == name) {
        return Err(Problem::not_found(ReconcileError::NoSink(name).to_string()));
    }
    let repair = asked.repair.then(|| uuid::Uuid::now_v7().simple().to_string());
    let wanted = Wanted {
        partition: asked.partition.map(Partition),
        from: asked.from.map(Offset),
        to: asked.to.map(Offset),
        now: pipeline.clock.now(),
        repair,
    };
    follow("reconcile", move |lines| {
        let began = std::time::Instant::now();
        let tell = &mut |progress| lines.tell(&json!({ "progress": progress }));
        match pipeline.sinks.reconcile(&name, &wanted, tell) {
            Ok(done) => {
                let total = done.total();
                tracing::info!(sink = name, ?total, took = ?began.elapsed(), "held against the log");
                lines.tell(&report(&done));
            }
            Err(error) => {
                tracing::warn!(sink = name, %error, "not held against the log");
                lines.tell(&json!({ "failed": error.to_string() }));
            }
        }
    })
}

fn report(done: &Reconciled) -> Value {
    let windows: Vec<Value> = done
        .windows
        .iter()
        .map(|(partition, from, to)| json!({ "partition": partition, "from": from, "to": to }))
        .collect();
    let lane = |(lane, found)| {
        let mut row = json!(lane);
        if let (Value::Object(row), Value::Object(found)) = (&mut row, json!(found)) {
            row.extend(found);
        }
        row
    };
    let lanes: Vec<Value> = done.lanes.iter().map(lane).collect();
    let total = done.total();
    json!({ "whole": total.is_whole(), "total": total, "windows": windows, "lanes": lanes })
}
