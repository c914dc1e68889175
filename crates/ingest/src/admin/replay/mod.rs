//! Replay for operators, below `/api/v1/replay`: one file for each part.

use axum::Router;

use super::Shared;

/// What is served below `/api/v1/replay`.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
}
