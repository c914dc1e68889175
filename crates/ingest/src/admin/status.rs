//! How it is: health, readiness, metrics, and the one document `ingestctl status` reads.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::{Shared, log};
use crate::{
    books::Tally,
    log::LogHandle,
    metrics,
    pipeline::Pipeline,
    sink::{Lane, freshness::Named, source::LogSource},
};

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(pipeline): State<Shared>) -> (StatusCode, Json<Value>) {
    let reasons = pipeline.not_ready();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons })))
}

pub(super) async fn metrics(
    State(pipeline): State<Shared>,
) -> ([(header::HeaderName, &'static str); 1], Vec<u8>) {
    publish(&pipeline);
    let schemas = pipeline.normalizer.schemas();
    let named = |lane: &Lane| Named {
        tenant: pipeline.tenants.get(&lane.tenant).is_some(),
        event_type: schemas.get(&lane.tenant, lane.event_type.as_str()).is_some(),
    };
    let text = metrics::render(pipeline.sinks.families(&named));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Gauges are set when somebody asks.
fn publish(pipeline: &Pipeline) {
    for stage in pipeline.stages() {
        let signed = |n| i64::try_from(n).unwrap_or(i64::MAX);
        metrics::stage_held_bytes(stage.name, signed(stage.held_bytes));
        metrics::stage_bound_bytes(stage.name, signed(stage.bound_bytes));
        metrics::stage_drain_bytes(stage.name, signed(stage.drain_bytes_per_second));
    }
    pipeline.sinks.publish();
    pipeline.books_standing();
    for log in &pipeline.embedded {
        let (label, totals) = (log.partition().to_string(), log.quarantine_totals());
        let signed = |n| i64::try_from(n).unwrap_or(i64::MAX);
        for (state, events, stretches) in [
            ("open", totals.open_events, totals.open_stretches),
            (
                "acknowledged",
                totals.events - totals.open_events,
                totals.stretches - totals.open_stretches,
            ),
        ] {
            metrics::log_quarantine_events(&label, state, signed(events));
            metrics::log_quarantine_stretches(&label, state, signed(stretches));
        }
    }
    for (tenant, page) in pipeline.books.copy() {
        if pipeline.tenants.get(&tenant).is_none() {
            continue;
        }
        let mut sum = Tally::default();
        page.types.values().for_each(|tally| sum.add(tally));
        let outcomes = [
            ("received", sum.received),
            ("accepted", sum.accepted),
            ("dead_lettered", sum.dead_lettered),
            ("deduplicated", sum.deduplicated),
            ("rejected", sum.rejected),
            ("shed", sum.shed),
        ];
        for (outcome, count) in outcomes {
            metrics::books_events(
                tenant.as_str(),
                outcome,
                i64::try_from(count).unwrap_or(i64::MAX),
            );
        }
    }
}

pub(super) async fn offsets(State(pipeline): State<Shared>) -> Json<Value> {
    Json(json!({ "log_id": pipeline.log_id, "partitions": partitions(&pipeline) }))
}

fn partitions(pipeline: &Pipeline) -> Vec<Value> {
    let bytes = |log: &dyn LogSource| {
        let own = pipeline.embedded.iter().find(|own| own.partition() == log.partition());
        own.map_or_else(|| log.bytes_since(log.earliest()), LogHandle::bytes)
    };
    let one = |log: &Arc<dyn LogSource>| {
        json!({
            "partition": log.partition(),
            "earliest": log.earliest(),
            "latest": log.latest(),
            "bytes": bytes(&**log),
        })
    };
    pipeline.logs.iter().map(one).collect()
}

pub(super) async fn status(State(pipeline): State<Shared>) -> Json<Value> {
    let reasons = pipeline.not_ready();
    let (difference, in_flight) = pipeline.books_difference();
    let (quarantine, damaged) = log::summary(&pipeline.embedded);
    Json(json!({
        "ready": reasons.is_empty(),
        "healthy": reasons.is_empty() && !damaged,
        "reasons": reasons,
        "version": env!("CARGO_PKG_VERSION"),
        "generation": pipeline.generation(),
        "uptime_seconds": pipeline.started.elapsed().as_secs(),
        "role": pipeline.config.role,
        "log_id": pipeline.log_id,
        "peers": pipeline.peers(),
        "recovery": pipeline.recovery,
        "stages": pipeline.stages(),
        "partitions": partitions(&pipeline),
        "log": pipeline.writers.about(),
        "log_quarantine": quarantine,
        "sinks": pipeline.sinks.status(),
        "books": { "difference": difference, "in_flight": in_flight, "gaps": pipeline.books_gaps().count },
        "quota": pipeline.quotas.standing(),
        "grace": pipeline.quotas.grace().taken(),
        "dedup": pipeline.writers.dedup(),
    }))
}
