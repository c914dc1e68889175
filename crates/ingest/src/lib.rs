//! # The path of an event
//!
//! ```text
//!                one process (`ingestd`), or one role per process
//!  client ──HTTP(S)──▶ edge ───▶ normalize ───▶ writer ──append──▶ log ──read──▶ sink ──▶ lake / …
//!                 TLS, key,   schema, units,  group commit,    segments     one cursor per
//!                 limits,     personal data,  fsync, ids       of frames    partition and sink
//!                 protocols   verdict
//! ```
//!
//! [`pipeline`] builds the stages and the queues between them: read it first.

pub mod admin;
pub mod books;
pub mod budget;
pub mod clock;
pub mod config;
pub mod control;
pub mod ctl;
pub mod edge;
pub mod fair;
pub mod faults;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod hop;
pub mod json;
pub mod kafka;
pub mod log;
pub mod metrics;
pub mod normalize;
pub mod pipeline;
pub mod quota;
pub mod replay;
mod sealed;
pub mod shed;
pub mod sink;
pub mod storage;
pub mod tenants;
pub mod writer;
