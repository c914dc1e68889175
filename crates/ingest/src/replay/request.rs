//! What is asked for when a plan is made: as the command line says it, and as it travels.

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

use super::address::Written;

/// The question to `POST /api/v1/replay/plans`. Empty lists: all.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanRequest {
    /// `--from`
    pub from: Option<String>,
    /// `--to`
    pub to: Option<String>,
    /// `--from-time`
    pub from_time: Option<String>,
    /// `--to-time`
    pub to_time: Option<String>,
    /// `--partition`
    pub partition: Option<u32>,
    /// Only these tenants'.
    pub tenants: Vec<String>,
    /// Only these types.
    pub event_types: Vec<String>,
    /// Only what was recorded as a dead letter.
    pub dead_letters_only: bool,
    /// Only into the shadows of these sinks.
    pub sinks: Vec<String>,
    /// By which schemas.
    pub judging: JudgingBy,
    /// A candidate's schemas.
    pub schemas: Vec<CandidateSchema>,
    /// Events a second, for the estimate.
    pub max_rate: Option<u64>,
}

/// By which schemas a replay judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgingBy {
    /// By those that are live.
    #[default]
    Today,
    /// By those that come with the question.
    Candidate,
    /// Verdicts and schemas as they were recorded.
    AsRecorded,
}

/// One schema of a candidate's folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateSchema {
    /// The tenant it is for alone.
    pub tenant: Option<TenantId>,
    /// Of which type.
    pub event_type: EventType,
    /// Its text.
    pub text: String,
}

impl PlanRequest {
    /// Its two ends.
    #[must_use]
    pub fn written(&self) -> Written<'_> {
        Written {
            from: self.from.as_deref(),
            to: self.to.as_deref(),
            from_time: self.from_time.as_deref(),
            to_time: self.to_time.as_deref(),
            partition: self.partition,
        }
    }
}
