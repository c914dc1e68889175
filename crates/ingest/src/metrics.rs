//! One typed function per metric, `tidegate_<stage>_<noun>_<unit>`; emitted per request or batch.
//!
//! Labels come from closed sets; `tenant` only from tenants that are configured.

use std::sync::LazyLock;

use prometheus::{
    Encoder, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder, histogram_opts, opts,
    proto::MetricFamily,
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

fn counters(name: &str, help: &str, labels: &[&str]) -> Option<IntCounterVec> {
    let metric = IntCounterVec::new(opts!(name, help), labels).ok()?;
    REGISTRY.register(Box::new(metric.clone())).ok()?;
    Some(metric)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Option<IntGaugeVec> {
    let metric = IntGaugeVec::new(opts!(name, help), labels).ok()?;
    REGISTRY.register(Box::new(metric.clone())).ok()?;
    Some(metric)
}

fn histograms(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Option<HistogramVec> {
    let metric = HistogramVec::new(histogram_opts!(name, help, buckets.to_vec()), labels).ok()?;
    REGISTRY.register(Box::new(metric.clone())).ok()?;
    Some(metric)
}

macro_rules! counter {
    ($(#[doc = $help:literal] $function:ident($($label:ident),*) = $name:literal;)*) => {$(
        #[doc = $help]
        pub fn $function($($label: &str,)* by: u64) {
            static METRIC: LazyLock<Option<IntCounterVec>> =
                LazyLock::new(|| counters($name, $help.trim_ascii(), &[$(stringify!($label)),*]));
            if let Some(metric) = &*METRIC {
                metric.with_label_values::<&str>(&[$($label),*]).inc_by(by);
            }
        }
    )*};
}

macro_rules! gauge {
    ($(#[doc = $help:literal] $function:ident($($label:ident),*) = $name:literal;)*) => {$(
        #[doc = $help]
        pub fn $function($($label: &str,)* value: i64) {
            static METRIC: LazyLock<Option<IntGaugeVec>> =
                LazyLock::new(|| gauges($name, $help.trim_ascii(), &[$(stringify!($label)),*]));
            if let Some(metric) = &*METRIC {
                metric.with_label_values::<&str>(&[$($label),*]).set(value);
            }
        }
    )*};
}

macro_rules! histogram {
    ($(#[doc = $help:literal] $function:ident($($label:ident),*) = $name:literal, $buckets:expr;)*) => {$(
        #[doc = $help]
        pub fn $function($($label: &str,)* value: f64) {
            static METRIC: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
                histograms($name, $help.trim_ascii(), &[$(stringify!($label)),*], $buckets)
            });
            if let Some(metric) = &*METRIC {
                metric.with_label_values::<&str>(&[$($label),*]).observe(value);
            }
        }
    )*};
}

const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10.];

counter! {
    #[doc = "Requests answered, by protocol and status."]
    requests(protocol, status) = "tidegate_edge_requests_total";
    #[doc = "Requests refused on purpose, by reason."]
    shed_requests(reason) = "tidegate_edge_shed_requests_total";
    #[doc = "Requests taken over the quota of clients that never send again, by tenant."]
    grace_requests(tenant) = "tidegate_grace_requests_total";
    #[doc = "Bytes of their bodies, by tenant."]
    grace_bytes(tenant) = "tidegate_grace_bytes_total";
    #[doc = "Times that no leases of shared quotas could be had."]
    quota_store_failures() = "tidegate_quota_store_failures_total";
    #[doc = "Bytes appended to the log, frames' heads included."]
    log_bytes(partition) = "tidegate_log_appended_bytes_total";
    #[doc = "Events appended to the log."]
    log_events(partition) = "tidegate_log_appended_events_total";
    #[doc = "Frames cut off at recovery because they were half written."]
    log_torn_tails(partition) = "tidegate_log_torn_tails_total";
    #[doc = "Events in stretches of the log that failed their checksum."]
    log_quarantined_events(partition) = "tidegate_log_quarantined_events_total";
    #[doc = "Events dropped without an outcome: must stay 0."]
    books_unaccounted() = "tidegate_books_unaccounted_events_total";
    #[doc = "Clients' ids forgotten before their window ended, because there were more than log.dedup_ids."]
    dedup_evicted_ids(partition) = "tidegate_dedup_evicted_ids_total";
    #[doc = "Rows written, by sink."]
    sink_rows(sink) = "tidegate_sink_rows_total";
    #[doc = "Attempts that failed and are made again, by sink."]
    sink_retries(sink) = "tidegate_sink_retries_total";
    #[doc = "Rows set aside because the sink refuses them for good, by sink."]
    sink_quarantined_rows(sink) = "tidegate_sink_quarantined_rows_total";
    #[doc = "Rows skipped because they expired, by sink."]
    sink_expired_rows(sink) = "tidegate_sink_expired_rows_total";
    #[doc = "Small files of a lake that others have taken the place of, by sink."]
    lake_joined_files(sink) = "tidegate_lake_joined_files_total";
    #[doc = "Files of a lake that were made of small ones, by sink."]
    lake_made_files(sink) = "tidegate_lake_made_files_total";
    #[doc = "Times that small files could not be joined, by sink."]
    lake_join_failures(sink) = "tidegate_lake_join_failures_total";
}

counter! {
    #[doc = "Messages of the log's topic that are no events of ours: passed over, counted as lost."]
    kafka_foreign_messages() = "tidegate_kafka_foreign_messages_total";
    #[doc = "Requests that Kafka did not acknowledge in time: answered 503."]
    kafka_unacknowledged_requests() = "tidegate_kafka_unacknowledged_requests_total";
    #[doc = "Events of the log's topic that came twice by their id: shown to no sink."]
    kafka_deduplicated_events(partition) = "tidegate_kafka_deduplicated_events_total";
}

gauge! {
    #[doc = "How long brokers made the producer wait of late because of a quota, at most."]
    kafka_throttled_milliseconds() = "tidegate_kafka_throttled_milliseconds";
    #[doc = "Events that sinks have not made visible of partitions that other processes have, or nobody: each process tells the same."]
    kafka_elsewhere_lag_events(partition, sink) = "tidegate_kafka_elsewhere_lag_events";
    #[doc = "Partitions of the log's topic that nobody has: their events reach no sink. Each process tells the same."]
    kafka_unowned_partitions() = "tidegate_kafka_unowned_partitions";
    #[doc = "Event bytes held, by stage."]
    stage_held_bytes(stage) = "tidegate_stage_held_bytes";
    #[doc = "How many event bytes a stage may hold."]
    stage_bound_bytes(stage) = "tidegate_stage_bound_bytes";
    #[doc = "Bytes a second that pass a stage, measured."]
    stage_drain_bytes(stage) = "tidegate_stage_drain_bytes_per_second";
    #[doc = "1 for what feeds the quotas: local, joining, fleet, or alone (without the store)."]
    quota_mode(mode) = "tidegate_quota_mode";
    #[doc = "Clients' ids remembered."]
    dedup_ids(partition) = "tidegate_dedup_remembered_ids";
    #[doc = "By how much ids are remembered for less than their window: must be 0."]
    dedup_shortfall_seconds(partition) = "tidegate_dedup_window_shortfall_seconds";
    #[doc = "Events received minus events with an outcome, apart from those in flight: must be 0."]
    books_difference() = "tidegate_books_difference_events";
    #[doc = "Events received whose outcome is not known yet."]
    books_in_flight() = "tidegate_books_in_flight_events";
    #[doc = "What the last audit found missing or too much at a sink, in events: must be 0."]
    books_sink_difference(sink) = "tidegate_books_sink_difference_events";
    #[doc = "Events since the books were opened, by tenant and what became of them."]
    books_events(tenant, outcome) = "tidegate_books_events";
    #[doc = "Events in damaged stretches of the log, by state: open until an operator acknowledges."]
    log_quarantine_events(partition, state) = "tidegate_log_quarantined_events";
    #[doc = "Damaged stretches of the log, by state: open until an operator acknowledges them."]
    log_quarantine_stretches(partition, state) = "tidegate_log_quarantined_stretches";
    #[doc = "Accepted events a sink has not made visible yet."]
    sink_lag_events(sink) = "tidegate_sink_lag_events";
    #[doc = "Bytes a sink has yet to write: the log behind its cursors, and of lanes held back."]
    sink_backlog_bytes(sink) = "tidegate_sink_backlog_bytes";
    #[doc = "The bound of a sink's backlog, as fast as it drains now."]
    sink_backlog_bound_bytes(sink) = "tidegate_sink_backlog_bound_bytes";
    #[doc = "Bytes of log kept for the sake of a sink's held lanes alone."]
    sink_pinned_bytes(sink) = "tidegate_sink_pinned_bytes";
    #[doc = "Bytes of log a second that a sink drains while it writes; 0: it never was behind."]
    sink_drain_bytes(sink) = "tidegate_sink_drain_bytes_per_second";
    #[doc = "Memory that a sink's windows may take."]
    sink_memory_bytes(sink) = "tidegate_sink_memory_bytes";
    #[doc = "Bytes of windows that a sink holds in memory."]
    sink_held_bytes(sink) = "tidegate_sink_held_bytes";
    #[doc = "Lanes held back, by sink."]
    sink_held_lanes(sink) = "tidegate_sink_held_lanes";
    #[doc = "Age of the oldest accepted event that a sink has not made visible, in milliseconds; 0: there is none."]
    sink_oldest_waiting_milliseconds(sink) = "tidegate_sink_oldest_waiting_milliseconds";
    #[doc = "1 while a sink's objective is met (or nothing was to become visible), 0 while it is missed."]
    sink_objective_met(sink) = "tidegate_sink_objective_met";
    #[doc = "The age that a sink's objective names, in milliseconds."]
    sink_objective_milliseconds(sink) = "tidegate_sink_objective_milliseconds";
    #[doc = "What was measured lately of that, at the objective's quantile, in milliseconds."]
    sink_objective_measured(sink) = "tidegate_sink_objective_measured_milliseconds";
    #[doc = "Small files of a lake that wait to be joined, by sink."]
    lake_small_files(sink) = "tidegate_lake_small_files";
}

histogram! {
    #[doc = "From a request's head to its answer."]
    request_seconds(protocol) = "tidegate_edge_request_duration_seconds", SECONDS;
    #[doc = "One fdatasync of the log."]
    log_sync_seconds(partition) = "tidegate_log_sync_duration_seconds", SECONDS;
    #[doc = "From received to visible, the oldest event of each window, by sink."]
    sink_freshness_seconds(sink) = "tidegate_sink_freshness_seconds", SECONDS;
    #[doc = "From received to visible, each request, by sink."]
    sink_visible_seconds(sink) = "tidegate_sink_visible_seconds", SECONDS;
}

/// Everything, and `more` families besides, in Prometheus' text format (version 0.0.4).
#[must_use]
pub fn render(more: Vec<MetricFamily>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut families = REGISTRY.gather();
    families.extend(more);
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::error!(%error, "metrics could not be rendered");
    }
    text
}
