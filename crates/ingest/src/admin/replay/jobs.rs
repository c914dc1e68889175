//! Jobs: apply a plan, look, pause, resume, cancel, remove.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{Problem, Shared};
use crate::{
    control::Action,
    pipeline::Pipeline,
    replay::{
        Plan, PlanId, Slice, check,
        job::JobState,
        jobs::{JobError, JobView, Jobs},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apply {
    plan: Value,
    #[serde(default)]
    max_rate: Option<u64>,
    by: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    by: String,
}

pub(super) async fn list(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    blocking(pipeline, |pipeline| Ok(json!({ "jobs": pipeline.jobs.list() }))).await
}

pub(super) async fn get(
    State(pipeline): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = plan_id(&id)?;
    blocking(pipeline, move |pipeline| {
        let mut view = shown(pipeline.jobs.get(&id))?;
        if let Value::Object(view) = &mut view {
            view.insert("promotion".to_owned(), super::promote::state(pipeline, &id)?);
        }
        Ok(view)
    })
    .await
}

pub(super) async fn plan(
    State(pipeline): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = plan_id(&id)?;
    blocking(pipeline, move |pipeline| {
        let (plan, _) = pipeline.jobs.plan(&id).map_err(problem)?;
        Ok(json!(plan))
    })
    .await
}

pub(super) async fn apply(
    State(pipeline): State<Shared>,
    Json(asked): Json<Apply>,
) -> Result<Json<Value>, Problem> {
    blocking(pipeline, move |pipeline| {
        let plan = Plan::read(asked.plan.to_string().as_bytes());
        let plan = plan.map_err(|e| Problem::bad_request(e.to_string()))?;
        // What is re-driven once this holds is recorded after the job, and found by who promotes it.
        let _none = pipeline.redrives.blocking_lock();
        check(&plan, pipeline).map_err(|changed| {
            let status = StatusCode::CONFLICT;
            let problem = Problem::new(status, "world_changed", changed.join("\n"));
            problem.with("errors", json!(changed))
        })?;
        // What is refused for being there already is no action.
        if let Ok(view) = pipeline.jobs.get(&plan.plan_id) {
            return Err(problem(JobError::exists(&view)));
        }
        let places = |slice: &Slice| json!({ "partition": slice.partition, "from": slice.from, "to": slice.to });
        let window: Vec<Value> = plan.content.window.iter().map(places).collect();
        let events = plan.content.events();
        let details = json!({ "window": window, "events": events, "max_rate": asked.max_rate });
        record(pipeline, "replay.apply", &asked.by, &plan.plan_id, details)?;
        shown(pipeline.jobs.apply(plan, &asked.by, asked.max_rate))
    })
    .await
}

/// What an operator may have a job do.
type Act = fn(&Jobs, &PlanId) -> Result<JobView, JobError>;

pub(super) async fn change(
    State(pipeline): State<Shared>,
    Path((id, what)): Path<(String, String)>,
    Json(change): Json<Change>,
) -> Result<Json<Value>, Problem> {
    let id = plan_id(&id)?;
    let act: Option<Act> = match what.as_str() {
        "pause" => Some(Jobs::pause),
        "resume" => Some(Jobs::resume),
        "cancel" => Some(Jobs::cancel),
        "remove" => None,
        _ => return Err(Problem::not_found("no such path")),
    };
    blocking(pipeline, move |pipeline| {
        pipeline.jobs.get(&id).map_err(problem)?;
        let _not_promoted = match act {
            Some(_) => None,
            None => {
                let may = pipeline.promoter.may_remove(&id);
                Some(may.map_err(|e| Problem::conflict(e.to_string()))?)
            }
        };
        record(pipeline, &format!("replay.{what}"), &change.by, &id, Value::Null)?;
        match act {
            Some(act) => shown(act(&pipeline.jobs, &id)),
            None => {
                pipeline.jobs.remove(&id).map_err(problem)?;
                Ok(json!({ "plan_id": id, "state": "removed" }))
            }
        }
    })
    .await
}

/// Writes down what somebody is about to do.
///
/// # Errors
/// It is not done then.
pub(super) fn record(
    pipeline: &Pipeline,
    action: &str,
    by: &str,
    plan: &PlanId,
    details: Value,
) -> Result<(), Problem> {
    let action = Action {
        at: pipeline.clock.now(),
        by: by.to_owned(),
        action: action.to_owned(),
        plan_id: Some(plan.clone()),
        details,
    };
    let done = pipeline.control.record(&action);
    done.map_err(|e| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_recorded", e.to_string()))
}

/// The plan of a job that is done.
///
/// # Errors
/// 404, 409 with `then`: what to do once it is.
pub(super) fn done(pipeline: &Pipeline, id: &PlanId, then: &str) -> Result<Plan, Problem> {
    let (plan, state) = pipeline.jobs.plan(id).map_err(problem)?;
    if state != JobState::Done {
        let state = json!(state);
        let state = state.as_str().unwrap_or_default();
        return Err(Problem::conflict(format!("the replay is {state}: {then}")));
    }
    Ok(plan)
}

/// The id in a path.
///
/// # Errors
/// 400
pub(super) fn plan_id(text: &str) -> Result<PlanId, Problem> {
    text.parse().map_err(|e: crate::replay::PlanIdError| Problem::bad_request(e.to_string()))
}

pub(super) fn problem(error: JobError) -> Problem {
    let text = error.to_string();
    match error {
        JobError::Unknown(_) => Problem::not_found(text),
        JobError::Exists { .. } | JobError::State(_) => Problem::conflict(text),
        JobError::Plan(_) => Problem::bad_request(text),
        JobError::Io(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_done", text),
    }
}

fn shown(view: Result<JobView, JobError>) -> Result<Value, Problem> {
    view.map(|view| json!(view)).map_err(problem)
}

/// Disks and destinations are asked: not on a thread that serves.
async fn blocking(
    pipeline: Shared,
    work: impl FnOnce(&Arc<Pipeline>) -> Result<Value, Problem> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let done = tokio::task::spawn_blocking(move || work(&pipeline)).await;
    done.map_err(|e| Problem::internal(e.to_string()))?.map(Json)
}
