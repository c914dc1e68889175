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
//! | `address`, `marks`, `resolve` | where a window begins and ends: as it is written, named, found |
//! | `request`, `planner`, `pins`, `scan` | what is asked for, what the window holds: a plan is made |
//! | `check` | whether the world is still as the plan has it |
//! | `judge` | what the log holds, judged again |
//! | `source` | a window as a log of its own; `ahead`: read before it is asked for; `pace`: how fast |
//! | `job`, `jobs`, `view` | running a plan; all of a server's; as they are shown |
//! | `folder`, `parts`, `memory` | what is kept of a job; what it writes at the same time; what it takes |
//! | `promote` | the shadow's rows in the place of live's, and back |
//! | `compare` | live against shadow: what a replay would change |
//!
//! Why replay cannot reach live: a job writes through a `ShadowSink` alone, which is opened from a
//! shadow's place and never from a sink's own; it reads the log and changes no cursor of it.

pub mod address;
mod ahead;
mod check;
pub mod compare;
pub mod folder;
pub mod job;
pub mod jobs;
mod judge;
pub mod marks;
mod memory;
mod pace;
mod parts;
mod pins;
mod plan;
pub mod planner;
pub mod promote;
mod request;
pub mod resolve;
mod scan;
mod source;
mod view;

pub use crate::sink::shadow::{ShadowPlace, ShadowSink};

pub(crate) use check::targets_changed;
pub use check::{REDRIVE, check, redriven_since};
pub(crate) use judge::OF_THE_VERDICT;
pub use plan::{
    Content, EventAt, Judging, KeptDead, LaneCount, Plan, PlanFileError, PlanId, PlanIdError,
    SchemaCount, SchemaPin, Selection, Slice, Target,
};
pub use request::{CandidateSchema, JudgingBy, PlanRequest};
