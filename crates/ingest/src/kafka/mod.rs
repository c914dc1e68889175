//! Apache Kafka as the log: a topic instead of segment files, and a group instead of one process.
//!
//! | file | what for |
//! | --- | --- |
//! | `config` | `[log.kafka]`; `client`, `oauth`: what clients are made from it |
//! | `reach` | how brokers are reached, for sinks too |
//! | `check` | at the start: can these topics keep what is promised? |
//! | `identity` | the log's id, made once and kept beside the log |
//! | `message` | one event as one message, and back, without loss |
//! | `producer` | the append: answered once all copies have it; `room`: how much may be under way |
//! | `cluster`, `reader` | the partitions' extents; reading one, as sinks see a log |
//! | `state` | what outlives a process, written by one owner at a time |
//! | `group` | which partitions are ours; takes over, starts sinks, gives back |
//! | `elsewhere` | how far behind the sinks of the others are, and of those that nobody has |
//! | `tenure`, `ledger`, `tally` | the books of our partitions, counted by a thread for each |
//! | `duplicates` | which events came twice: decided once, by the partition's owner |
//! | `schemas` | contents that events were judged by, for every process |
//!
//! Offsets and partitions are Kafka's own. Retention is Kafka's too: it waits for no sink.

mod config;
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) mod reach;

#[cfg(feature = "kafka")]
mod check;
#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
mod cluster;
#[cfg(feature = "kafka")]
mod duplicates;
#[cfg(feature = "kafka")]
mod elsewhere;
#[cfg(feature = "kafka")]
mod group;
#[cfg(feature = "kafka")]
mod identity;
#[cfg(feature = "kafka")]
mod ledger;
#[cfg(feature = "kafka")]
mod log;
#[cfg(feature = "kafka")]
pub mod message;
#[cfg(feature = "kafka")]
mod oauth;
#[cfg(feature = "kafka")]
mod producer;
#[cfg(feature = "kafka")]
mod reader;
#[cfg(feature = "kafka")]
mod room;
#[cfg(feature = "kafka")]
mod schemas;
#[cfg(feature = "kafka")]
mod state;
#[cfg(feature = "kafka")]
mod tally;
#[cfg(feature = "kafka")]
mod tenure;

pub use config::{Compression, KafkaConfig, Mechanism, PartitionBy, Sasl, Tls};

#[cfg(feature = "kafka")]
pub use check::{CheckError, Needs};
#[cfg(feature = "kafka")]
pub use log::{KafkaLog, OpenError, open};
