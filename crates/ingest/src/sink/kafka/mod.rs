//! Apache Kafka: messages to a topic for each tenant and event type, in transactions (docs/kafka-sink.md).
//!
//! | file | purpose |
//! | --- | --- |
//! | `config`, `connection` | what `[sink.options]` may hold |
//! | `client` | librdkafka's clients: how each is configured, what all of them tell |
//! | `destination` | the sink itself: which producer a write goes through, what its end means |
//! | `topics` | looks at topics, and makes them |
//! | `record` | rows as messages |
//! | `progress` | markers: how far each lane is |
//! | `producer` | taking a partition over; one transaction |
//!
//! Exactly once, in short: the rows of one write and a marker that says which they are go in one transaction. Who takes a
//! partition over (at the first write of a process, and after every outcome that nobody knows) begins with the same
//! transactional id: Kafka ends what an earlier one left open, and refuses whatever it would still send. Then the markers
//! are read, and what they say is committed is not sent again.

#[cfg(feature = "kafka")]
mod client;
// Without the feature a configuration is only read, to say so.
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
mod config;
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
mod connection;
#[cfg(feature = "kafka")]
mod destination;
#[cfg(feature = "kafka")]
mod producer;
#[cfg(feature = "kafka")]
mod progress;
#[cfg(feature = "kafka")]
mod record;
#[cfg(feature = "kafka")]
mod topics;

use std::sync::Arc;

use super::{Sink, SinkConfig, SinkConfigError, SinkContext, SinkKind};
use config::Settings;

pub(super) const KIND: SinkKind = SinkKind {
    name: "kafka",
    check: |config| Settings::read(config).map(drop),
    open,
    shadow,
    // A partition has one producer, and a marker that says how far it is.
    side_by_side: false,
};

fn shadow(config: &mut SinkConfig, _: &std::path::Path) -> Result<String, SinkConfigError> {
    let settings = Settings::read(config)?;
    let suffix = &config.suffix;
    let topic = match config.options.get("topic").and_then(toml::Value::as_str) {
        Some(topic) => format!("{topic}{suffix}"),
        None => format!("{}{suffix}", config::TOPIC),
    };
    let progress = format!("{}{suffix}", settings.progress_topic);
    let shown = format!("{}: {topic}", settings.connection.servers);
    config.options.insert("topic".to_owned(), topic.into());
    config.options.insert("progress_topic".to_owned(), progress.into());
    Ok(shown)
}

#[cfg(feature = "kafka")]
fn open(config: &SinkConfig, context: &SinkContext) -> Result<Arc<dyn Sink>, SinkConfigError> {
    Ok(Arc::new(destination::Kafka::open(config, context)?))
}

#[cfg(not(feature = "kafka"))]
fn open(config: &SinkConfig, _: &SinkContext) -> Result<Arc<dyn Sink>, SinkConfigError> {
    // Says that the program was built without it.
    Settings::read(config).and(Err(SinkConfigError("kafka: not in this program".to_owned())))
}
