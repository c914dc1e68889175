//! Replay for operators, below `/api/v1/replay`: one file for each part.

mod jobs;
mod promote;

use axum::{Router, routing};

use super::Shared;

/// What is served below `/api/v1/replay`.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/jobs", routing::get(jobs::list).post(jobs::apply))
        .route("/jobs/{id}", routing::get(jobs::get))
        .route("/jobs/{id}/plan", routing::get(jobs::plan))
        .route("/jobs/{id}/promotion", routing::post(promote::promotion))
        .route("/jobs/{id}/revert", routing::post(promote::revert))
        .route("/jobs/{id}/{what}", routing::post(jobs::change))
}
