//! Replay: a window of the log again, into a shadow; look; promote.
//!
//! ```text
//!  addresses ─▶ plan ─▶ job: log [from, to) ─▶ judged again ─▶ shadow sinks     live: nothing
//!                        │                                          │
//!                        └─ pause, resume, cancel            compare ─▶ promote ─▶ revert
//! ```
//!
//! | file | purpose |
//! | --- | --- |
//! | `plan` | what is replayed, by what it is judged, where it goes: the plan and its id |
//! | `promote` | the shadow's rows in the place of live's, and back |
//! | `compare` | live against shadow: what a replay would change |
//!
//! Why replay cannot reach live: a job writes through a `ShadowSink` alone, which is opened from a
//! shadow's place and never from a sink's own; it reads the log and changes no cursor of it.

pub mod compare;
mod plan;
pub mod promote;

pub use crate::sink::shadow::{ShadowPlace, ShadowSink};

pub use plan::{
    Content, EventAt, Judging, KeptDead, LaneCount, Plan, PlanFileError, PlanId, PlanIdError,
    SchemaCount, SchemaPin, Selection, Slice, Target,
};
