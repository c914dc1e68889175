//! Plans: the window is found, then read line by line of progress; the last line is the plan.

use axum::{Json, extract::State, response::Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::super::{
    Problem, Shared,
    lines::{Lines, follow},
};
use crate::replay::{
    PlanRequest,
    planner::{self, Made, PlanError, Prepared},
};

/// Makes a plan. What is wrong with the question is a 422 that says what would be right; what is found
/// wrong with the window while it is read, a last line `refused`.
pub(super) async fn make(
    State(pipeline): State<Shared>,
    Json(request): Json<PlanRequest>,
) -> Result<Response, Problem> {
    let prepared = tokio::task::spawn_blocking(move || planner::prepare(&pipeline, &request)).await;
    let prepared = prepared.map_err(|e| Problem::internal(e.to_string()))?.map_err(problem)?;
    follow("replay-plan", move |lines| read(prepared, lines))
}

fn problem(error: PlanError) -> Problem {
    match error {
        PlanError::Refused(errors) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Problem::new(status, "replay_refused", errors.join("\n")).with("errors", json!(errors))
        }
        other => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_done", other.to_string()),
    }
}

fn read(prepared: Prepared, lines: &Lines) {
    let made = prepared.make(&mut |progress| lines.tell(&json!({ "progress": progress })));
    let last = match made {
        Ok(made) => document(&made),
        Err(PlanError::Refused(errors)) => json!({ "refused": errors }),
        Err(PlanError::Failed(why)) => json!({ "failed": why }),
        Err(PlanError::Stopped) => return,
    };
    lines.tell(&last);
}

fn document(made: &Made) -> Value {
    let [from, to] = &made.asked;
    json!({
        "plan": made.plan,
        "asked": { "from": from, "to": to },
        "estimate": made.estimate,
        "live": "nothing",
    })
}
