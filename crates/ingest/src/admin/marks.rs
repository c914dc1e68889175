//! Marks: where every partition ended when somebody said so.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Problem, Shared, records::time_text};
use crate::{
    control::RecordError,
    pipeline::Pipeline,
    replay::marks::{self, Mark, MarkError, MarkName},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    name: String,
    by: String,
}

fn shown(mark: &Mark) -> Value {
    let offsets: Vec<Value> = mark
        .offsets
        .iter()
        .map(|(partition, offset)| json!({ "partition": partition, "offset": offset }))
        .collect();
    json!({
        "name": mark.name,
        "at": time_text(mark.at.0),
        "by": mark.by,
        "offsets": offsets,
    })
}

async fn blocking(
    pipeline: Shared,
    work: impl FnOnce(&Arc<Pipeline>) -> Result<Value, Problem> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let done = tokio::task::spawn_blocking(move || work(&pipeline)).await;
    done.map_err(|e| Problem::internal(e.to_string()))?.map(Json)
}

pub(super) async fn list(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    blocking(pipeline, |pipeline| {
        let all = marks::all(&pipeline.control, &pipeline.log_id)
            .map_err(|e| problem(MarkError::Read(e)))?;
        let shown: Vec<Value> = all.iter().map(shown).collect();
        Ok(json!({ "log_id": pipeline.log_id, "marks": shown }))
    })
    .await
}

pub(super) async fn set(
    State(pipeline): State<Shared>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<Value>, Problem> {
    blocking(pipeline, move |pipeline| {
        let name: MarkName = wanted
            .name
            .parse()
            .map_err(|e: marks::MarkNameError| Problem::bad_request(e.to_string()))?;
        if pipeline.logs.is_empty() {
            let role = pipeline.config.role.as_str();
            let detail = format!("this process ({role}) has no log: ask one that has");
            return Err(Problem::conflict(detail));
        }
        let mark = Mark {
            name,
            at: pipeline.clock.now(),
            by: wanted.by,
            log_id: pipeline.log_id.clone(),
            offsets: pipeline.logs.iter().map(|log| (log.partition(), log.latest())).collect(),
        };
        marks::set(&pipeline.control, &mark).map_err(problem)?;
        Ok(shown(&mark))
    })
    .await
}

fn problem(error: MarkError) -> Problem {
    let text = error.to_string();
    match error {
        MarkError::Known(_) => Problem::conflict(text),
        MarkError::Record(RecordError::By | RecordError::Long) => Problem::bad_request(text),
        MarkError::Read(_) | MarkError::Record(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_recorded", text)
        }
    }
}
