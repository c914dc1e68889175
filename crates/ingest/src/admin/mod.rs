//! The operators' side: health, metrics, and the JSON that `ingestctl` uses.
//!
//! It listens on an address of its own, by default loopback. No web page can reach it: an unknown
//! `Host`, a foreign `Origin` and a write that is not JSON are refused (`guard`).

mod api;
mod audit;
mod books;
mod dead_letters;
mod guard;
mod lines;
pub(crate) mod log;
mod marks;
mod problem;
mod records;
mod replay;
mod sinks;
mod status;
mod tail;
mod tenants;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, middleware, routing};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

pub use guard::token_of;
pub use problem::Problem;

use crate::pipeline::Pipeline;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where to listen.
    pub listen: String,
    /// What operators must present (`Authorization: Bearer …`); needed off loopback.
    /// `file:PATH`, `env:NAME`, or the text itself.
    pub token: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8081".to_owned(), token: None }
    }
}

/// The ids of one question to `audit/ids`: each question reads the whole log.
const IDS_BYTES_MAX: usize = 64 << 20;

/// What every handler sees.
type Shared = Arc<Pipeline>;

/// Serves until `stop` is done; requests under way are finished.
///
/// # Errors
/// As `accept(2)`.
pub async fn serve(
    listener: TcpListener,
    pipeline: Shared,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() && pipeline.admin_token.is_none() {
        tracing::warn!(
            %address,
            "the admin address is not loopback and has no admin.token: it answers health and metrics alone"
        );
    }
    axum::serve(listener, router(pipeline, address)).with_graceful_shutdown(stop).await
}

fn router(pipeline: Shared, address: SocketAddr) -> Router {
    let guard = guard::Guard::new(&pipeline.config.admin, pipeline.admin_token.clone(), address);
    Router::new()
        .route("/healthz", routing::get(status::healthz))
        .route("/readyz", routing::get(status::readyz))
        .route("/metrics", routing::get(status::metrics))
        .nest("/api/v1", api_routes())
        .fallback(async || Problem::not_found("no such path"))
        .method_not_allowed_fallback(async || {
            let detail = "this path does not take this method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
        })
        .layer(middleware::map_response(problem::or_problem))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::check))
        .with_state(pipeline)
}

fn api_routes() -> Router<Shared> {
    Router::new()
        .route("/status", routing::get(status::status))
        .route("/offsets", routing::get(status::offsets))
        .route("/audit", routing::get(audit::audit))
        .route("/audit/ids", routing::post(audit::ids).layer(DefaultBodyLimit::max(IDS_BYTES_MAX)))
        .route("/books", routing::get(books::books))
        .route("/tail", routing::get(tail::tail))
        .route("/dead-letters", routing::get(dead_letters::list))
        .route("/dead-letters/redrive", routing::post(dead_letters::redrive))
        .route("/dead-letters/{partition}/{offset}", routing::get(dead_letters::show))
        .route("/sinks/{sink}/reconcile", routing::post(sinks::reconcile))
        .route("/log/verify", routing::post(log::verify))
        .route("/log/quarantine", routing::get(log::list))
        .route("/log/quarantine/acknowledge", routing::post(log::acknowledge))
        .route("/log/quarantine/{partition}/{offset}", routing::get(log::show))
        .route("/log/quarantine/{partition}/{offset}/bytes", routing::get(log::bytes))
        .route("/tenants", routing::get(tenants::list).post(tenants::add))
        .route("/tenants/{tenant}/rotate", routing::post(tenants::rotate))
        .route("/tenants/{tenant}/sigv4", routing::post(tenants::add_pair))
        .route("/tenants/{tenant}/public_keys", routing::post(tenants::add_public))
        .route("/tenants/{tenant}/public_keys/{key}/revoke", routing::post(tenants::revoke_public))
        .route("/tenants/{tenant}/quota", routing::post(tenants::quota))
        .route("/tenants/{tenant}/disable", routing::post(tenants::disable))
        .route("/tenants/{tenant}/enable", routing::post(tenants::enable))
        .route("/schemas", routing::get(api::schemas))
        .route("/config", routing::get(api::config))
        .nest("/replay", replay::routes())
        .route("/marks", routing::get(marks::list).post(marks::set))
        .route("/reload", routing::post(api::reload))
        .route("/drain", routing::post(api::drain))
}
