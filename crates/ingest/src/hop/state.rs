//! What a replica tells of itself a few times a second: an edge refuses by it before it reads a body.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::hash::{Hash, Hasher};
use tidegate_event::TenantId;

use crate::shed::{Pressure, ShedReason};

/// A state larger than this is none.
pub const STATE_BYTES_MAX: u64 = 4 << 20;
/// Tenants whose lanes are told at most; the others are told after the body.
pub const LANES_MAX: usize = 10_000;
/// When to come again where nobody of the next role can be reached.
pub const UNREACHABLE_FOR: Duration = Duration::from_secs(1);

/// How a replica is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct State {
    /// It shuts down: nobody new is to come.
    pub draining: bool,
    /// Of a normalizer: each writer that it reaches, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub writers: BTreeMap<String, Pressed>,
    /// Of a writer: what presses it.
    #[serde(default)]
    pub pressed: Pressed,
}

/// What a writer refuses, as far as it is known before a batch comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pressed {
    /// It shuts down.
    #[serde(default)]
    pub draining: bool,
    /// Everybody is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Told>,
    /// Who waited as told is refused too.
    #[serde(default)]
    pub to_the_brim: bool,
    /// Tenants that are refused, with how many milliseconds they are to stay away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lanes: BTreeMap<TenantId, u64>,
}

/// Why, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Told {
    /// As it stands in `X-Shed-Reason`.
    pub reason: String,
    /// When to come again.
    pub after_ms: u64,
}

impl Told {
    /// As it is told.
    #[must_use]
    pub fn new(reason: ShedReason, after: Duration) -> Self {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self { reason: reason.as_str().to_owned(), after_ms }
    }

    fn shed(&self) -> (ShedReason, Duration) {
        let known = ShedReason::ALL.iter().find(|reason| reason.as_str() == self.reason);
        (*known.unwrap_or(&ShedReason::LogFull), Duration::from_millis(self.after_ms))
    }
}

impl Pressed {
    /// What presses a writer now.
    #[must_use]
    pub fn of(
        pressure: &dyn Pressure,
        log: Option<(ShedReason, Duration)>,
        draining: bool,
    ) -> Self {
        let told = pressure.told();
        let all = told.all.map(|(after, brim)| (ShedReason::LogFull, after, brim));
        let all = log.map(|(reason, after)| (reason, after, true)).or(all);
        let ms = |after: &Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let lanes = told.lanes.iter().take(LANES_MAX);
        Self {
            draining,
            to_the_brim: all.is_some_and(|(_, _, brim)| brim),
            all: all.map(|(reason, after, _)| Told::new(reason, after)),
            lanes: lanes.map(|(tenant, after)| (tenant.clone(), ms(after))).collect(),
        }
    }

    /// Why this tenant is refused, and when to come again.
    #[must_use]
    pub fn shed(&self, tenant: &TenantId, waited: bool) -> Option<(ShedReason, Duration)> {
        if let Some(after) = self.lanes.get(tenant) {
            return Some((ShedReason::TenantLane, Duration::from_millis(*after)));
        }
        self.all.as_ref().filter(|_| self.to_the_brim || !waited).map(Told::shed)
    }
}

/// Names in the order in which a tenant prefers them. Each tenant has its own order, and keeps it for
/// all others when one name comes or goes: so its ids are known where it comes again.
#[must_use]
pub fn ranked<'a>(tenant: &TenantId, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let score = |name: &str| {
        let mut hasher = SipHasher13::new();
        (tenant.as_str(), name).hash(&mut hasher);
        hasher.finish()
    };
    let mut all: Vec<(u64, &str)> = names.map(|name| (score(name), name)).collect();
    all.sort_unstable();
    all.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn tenant(n: usize) -> TenantId {
        TenantId::new(&format!("tenant{n}")).unwrap()
    }

    #[test]
    fn a_tenant_keeps_its_writer_where_another_goes_and_all_writers_have_tenants() {
        let names = ["a:1", "b:1", "c:1"];
        let mut homes = BTreeMap::<&str, usize>::new();
        for n in 0..300 {
            let home = ranked(&tenant(n), names.into_iter())[0];
            *homes.entry(home).or_default() += 1;
            let without = ranked(&tenant(n), names.into_iter().filter(|name| *name != "b:1"))[0];
            assert!(home == "b:1" || home == without);
        }
        assert!(homes.len() == 3 && homes.values().all(|n| 50 < *n), "{homes:?}");
    }

    #[test]
    fn what_is_told_is_refused_and_those_who_waited_come_first() {
        let mut pressed = Pressed {
            all: Some(Told::new(ShedReason::Storage, Duration::from_millis(7))),
            ..Pressed::default()
        };
        pressed.lanes.insert(tenant(1), 9);
        let text = serde_json::to_string(&pressed).unwrap();
        let read: Pressed = serde_json::from_str(&text).unwrap();
        assert_eq!(read, pressed);
        let told = |ms| Duration::from_millis(ms);
        assert_eq!(read.shed(&tenant(1), true), Some((ShedReason::TenantLane, told(9))));
        assert_eq!(read.shed(&tenant(2), false), Some((ShedReason::Storage, told(7))));
        assert_eq!(read.shed(&tenant(2), true), None);
        pressed.to_the_brim = true;
        assert!(pressed.shed(&tenant(2), true).is_some());
    }
}
