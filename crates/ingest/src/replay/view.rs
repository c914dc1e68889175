//! A job as it is shown: how it stands, how far it is, how fast, and what it waits for.

use std::time::Instant;

use serde::Serialize;
use tidegate_event::ReceivedAt;

use super::{
    PlanId,
    folder::Progress,
    job::{JobState, Saved},
};

/// A job as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// Whose id it has.
    pub plan_id: PlanId,
    /// How it stands.
    pub state: JobState,
    /// Events that each shadow holds in the end.
    pub events: u64,
    /// Events that every shadow holds by now.
    pub done_events: u64,
    /// Events a second of late; 0: it does not run.
    pub events_per_second: f64,
    /// What is left at that rate.
    pub seconds_left: Option<f64>,
    /// The part of the time in which it works: less than 1 where live leaves less.
    pub duty: f64,
    /// Why it does not go on at the moment, though it is to; it tries again by itself.
    pub trouble: Option<String>,
    /// Each shadow.
    pub sinks: Vec<ShadowView>,
    /// Who applied it, when, how fast at most, why it failed.
    #[serde(flatten)]
    pub saved: SavedView,
}

/// What is kept of it, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct SavedView {
    by: String,
    applied_at: String,
    since: String,
    max_rate: Option<u64>,
    error: Option<String>,
}

impl SavedView {
    /// Of what is kept.
    #[must_use]
    pub fn of(saved: &Saved) -> Self {
        Self {
            by: saved.by.clone(),
            applied_at: time(saved.applied_at),
            since: time(saved.since),
            max_rate: saved.max_rate,
            error: saved.error.clone(),
        }
    }
}

/// One shadow, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct ShadowView {
    /// Where it is.
    pub shadow: String,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

/// How fast a job is: looked at by whoever asks.
#[derive(Debug, Default)]
pub struct Meter {
    seen: Option<(Instant, u64)>,
    rate: f64,
}

impl Meter {
    /// The rate, of late, of a job that has done so many events by now.
    pub fn look(&mut self, done: u64) -> f64 {
        let now = Instant::now();
        match self.seen {
            Some((at, before)) if at.elapsed().as_millis() < 500 => {
                let _too_soon = (at, before);
            }
            Some((at, before)) => {
                let rate = done.saturating_sub(before) as f64 / at.elapsed().as_secs_f64();
                self.rate = if self.rate == 0.0 { rate } else { self.rate * 0.5 + rate * 0.5 };
                self.seen = Some((now, done));
            }
            None => self.seen = Some((now, done)),
        }
        self.rate
    }
}

/// As it stands in JSON.
#[must_use]
pub fn word(state: JobState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn time(at: ReceivedAt) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |t| format!("{t:.3}"))
}
