//! One tenant's quota as it is applied, and what answers say of it.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_event::EventType;

use crate::tenants::{Quota, Tenant};

/// How much a bucket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

impl Rate {
    fn new(per_second: Option<u64>, burst: Option<u64>) -> Option<Self> {
        let per_second = per_second.filter(|n| *n > 0)?;
        Some(Self { per_second, burst: burst.filter(|n| *n > 0).unwrap_or(per_second) })
    }

    /// The seconds in which an empty bucket fills, at least 1.
    fn window(self) -> u64 {
        self.burst.div_ceil(self.per_second).max(1)
    }
}

/// A tenant's quota, made ready.
#[derive(Debug)]
pub(super) struct Limits {
    /// What it was made of.
    pub tenant: Arc<Tenant>,
    pub events: Option<Rate>,
    pub bytes: Option<Rate>,
    pub types: BTreeMap<EventType, Rate>,
    pub events_per_day: Option<u64>,
    pub bytes_per_day: Option<u64>,
    pub event_types: u64,
    policy: Option<HeaderValue>,
}

/// What is left of one bucket, and the seconds until it is full again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub left: u64,
    pub full_in: u64,
}

/// What is left of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Levels {
    pub events: Level,
    pub bytes: Level,
    pub events_today: Level,
    pub bytes_today: Level,
}

const DAY_SECONDS: u64 = 86_400;

impl Limits {
    pub(super) fn of(tenant: &Arc<Tenant>) -> Self {
        let quota: &Quota = &tenant.quota;
        let events = Rate::new(quota.events_per_second, quota.events_burst);
        let bytes = Rate::new(quota.bytes_per_second, quota.bytes_burst);
        let rate = |limit: &crate::tenants::TypeQuota| {
            Rate::new(limit.events_per_second, limit.events_burst)
        };
        let types = quota.types.iter();
        let types = types.filter_map(|(name, limit)| Some((name.clone(), rate(limit)?))).collect();
        let mut limits = Self {
            tenant: Arc::clone(tenant),
            events,
            bytes,
            types,
            events_per_day: quota.events_per_day,
            bytes_per_day: quota.bytes_per_day,
            event_types: quota.event_types(),
            policy: None,
        };
        limits.policy = HeaderValue::try_from(limits.policy_text()).ok();
        limits
    }

    /// True where nothing is counted.
    pub(super) fn are_none(&self) -> bool {
        self.events.is_none()
            && self.bytes.is_none()
            && self.types.is_empty()
            && self.events_per_day.is_none()
            && self.bytes_per_day.is_none()
    }

    /// True where events are counted, so that they are worth an estimate.
    pub(super) fn count_events(&self) -> bool {
        self.events.is_some() || self.events_per_day.is_some()
    }

    /// Each as (name, unit, most at once, in how many seconds).
    fn rows(&self) -> [Option<(&'static str, &'static str, u64, u64)>; 4] {
        let rate = |rate: Rate| (rate.burst, rate.window());
        let day = |most: u64| (most, DAY_SECONDS);
        [
            self.events.map(rate).map(|(q, w)| ("events", "events", q, w)),
            self.bytes.map(rate).map(|(q, w)| ("bytes", "content-bytes", q, w)),
            self.events_per_day.map(day).map(|(q, w)| ("events-day", "events", q, w)),
            self.bytes_per_day.map(day).map(|(q, w)| ("bytes-day", "content-bytes", q, w)),
        ]
    }

    fn policy_text(&self) -> String {
        let mut text = String::new();
        for (name, unit, most, window) in self.rows().into_iter().flatten() {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}\"{name}\";q={most};qu=\"{unit}\";w={window}");
        }
        text
    }

    /// The `RateLimit-Policy` and `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers-10).
    pub(super) fn describe(&self, levels: &Levels, headers: &mut HeaderMap) {
        let Some(policy) = self.policy.as_ref().filter(|policy| !policy.is_empty()) else { return };
        let levels = [levels.events, levels.bytes, levels.events_today, levels.bytes_today];
        let mut text = String::with_capacity(128);
        for (row, level) in self.rows().into_iter().zip(levels) {
            let Some((name, ..)) = row else { continue };
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}\"{name}\";r={};t={}", level.left, level.full_in);
        }
        headers.insert(HeaderName::from_static("ratelimit-policy"), policy.clone());
        // Takes the text as it is, without a copy.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static("ratelimit"), value);
        }
    }
}
