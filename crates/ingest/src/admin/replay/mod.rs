//! Replay for operators, below `/api/v1/replay`: one file for each part.

mod compare;
mod jobs;
mod plans;
mod promote;

use axum::{Router, extract::DefaultBodyLimit, routing};

use super::Shared;

/// A candidate's folder of schemas, or a plan that holds their contents.
const BODY_BYTES_MAX: usize = 64 << 20;

/// What is served below `/api/v1/replay`.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/plans", routing::post(plans::make))
        .route("/jobs", routing::get(jobs::list).post(jobs::apply))
        .route("/jobs/{id}", routing::get(jobs::get))
        .route("/jobs/{id}/plan", routing::get(jobs::plan))
        .route("/jobs/{id}/promotion", routing::post(promote::promotion))
        .route("/jobs/{id}/revert", routing::post(promote::revert))
        .route("/jobs/{id}/compare", routing::post(compare::compare))
        .route("/jobs/{id}/{what}", routing::post(jobs::change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}
