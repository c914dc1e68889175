//! The public side over real sockets, with a fake normalizer and a fake log behind it.
//!
//! What this does not prove: what a verdict is (the normalizer's tests) and that 200 is durable
//! (the log's).

mod answers;
mod codings;
mod connections;
mod elasticsearch;
mod firehose;
mod forms;
mod keyed;
pub mod kit;
mod otlp;
mod protocols;
mod tenants;
mod tls;
mod trackers;
mod wire;
