//! The words of the pipeline, in reading order: who sent an event ([`TenantId`]), what it is
//! ([`EventType`]), where it lies ([`Offset`]), when it happened ([`EventTime`]), what became of it
//! ([`Reason`]) and the batch that travels between the stages ([`record`]).
//!
//! Nothing here has a clock, does I/O or is async. A value of one of these types is valid; nobody
//! checks it again.

pub mod id;
pub mod offset;
pub mod reason;
mod received;
pub mod record;
pub mod time;

pub use id::{EventType, NameError, TenantId};
pub use offset::{Offset, OffsetRange, Partition};
pub use reason::{Code, Reason};
pub use record::{BatchEncoder, BatchView, EncodedBatch, RecordView, SchemaRef};
pub use time::{EventTime, ReceivedAt};
