//! A little that is taken over the quota, of clients that never send again: to refuse them is to lose.
//!
//! It goes into the log like all else, and is counted. Nothing of it is charged to the quota, so that what
//! waits as it was told loses no slot to it.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use serde::{Deserialize, Serialize};
use tidegate_event::TenantId;

use super::account::lock;
use crate::{
    config::{Size, Span},
    metrics,
};

/// `[edge.grace]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraceConfig {
    /// So many bytes of bodies of each tenant; 0: nothing.
    pub bytes: Size,
    /// In which as much comes back as is taken.
    pub refill: Span,
    /// By which protocols.
    pub protocols: Vec<String>,
}

impl Default for GraceConfig {
    fn default() -> Self {
        let refill = Span(Duration::from_secs(60));
        Self { bytes: Size(64 << 10), refill, protocols: vec!["loki".to_owned()] }
    }
}

/// What was taken of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Graced {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies, as sent.
    pub bytes: u64,
}

/// What is left for each tenant.
#[derive(Debug, Default)]
pub struct Grace {
    config: Mutex<Option<GraceConfig>>,
    tenants: Mutex<BTreeMap<TenantId, Left>>,
}

/// One tenant's.
#[derive(Debug)]
struct Left {
    bytes: u64,
    /// Nanoseconds on the monotonic clock up to which something came back.
    at: u128,
    taken: Graced,
}

impl Grace {
    /// Says how much there is; before that there is none.
    pub fn set(&self, config: &GraceConfig) {
        *lock(&self.config) = Some(config.clone());
    }

    /// What was taken since the start, by tenant.
    #[must_use]
    pub fn taken(&self) -> BTreeMap<TenantId, Graced> {
        let tenants = lock(&self.tenants);
        tenants.iter().map(|(tenant, left)| (tenant.clone(), left.taken)).collect()
    }

    /// Takes a request that is over the quota; false where it is to be refused.
    pub(super) fn takes(&self, tenant: &TenantId, protocol: &str, bytes: u64, now: u128) -> bool {
        let config = lock(&self.config);
        let Some(config) = config.as_ref().filter(|config| {
            config.protocols.iter().any(|name| name == protocol) && config.bytes.0 != 0
        }) else {
            return false;
        };
        // A body of no bytes is not for nothing.
        let (most, bytes) = (config.bytes.0, bytes.max(1));
        let mut tenants = lock(&self.tenants);
        let left = tenants.entry(tenant.clone()).or_insert_with(|| Left {
            bytes: most,
            at: now,
            taken: Graced::default(),
        });
        left.refill(most, config.refill.0.as_nanos().max(1), now);
        let Some(rest) = left.bytes.checked_sub(bytes) else { return false };
        left.bytes = rest;
        left.taken.requests += 1;
        left.taken.bytes += bytes;
        metrics::grace_requests(tenant.as_str(), 1);
        metrics::grace_bytes(tenant.as_str(), bytes);
        true
    }
}

impl Left {
    /// Gives back what came since the last time; what makes no whole byte yet is waited for.
    fn refill(&mut self, most: u64, period: u128, now: u128) {
        let passed = now.saturating_sub(self.at).min(period);
        let back = u128::from(most) * passed / period;
        if back == 0 {
            return;
        }
        self.at = now;
        let back = u64::try_from(back).unwrap_or(most);
        self.bytes = self.bytes.saturating_add(back).min(most);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u128 = 1_000_000_000;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn grace(bytes: u64) -> Grace {
        let grace = Grace::default();
        let config = GraceConfig { bytes: Size(bytes), ..GraceConfig::default() };
        grace.set(&config);
        grace
    }

    #[test]
    fn each_tenant_has_its_own_and_it_comes_back() {
        let (a, b, grace) = (tenant("a"), tenant("b"), grace(600));
        assert!(grace.takes(&a, "loki", 500, 0) && !grace.takes(&a, "loki", 101, 0));
        assert!(grace.takes(&a, "loki", 100, 0) && grace.takes(&b, "loki", 600, 0));
        // Ten bytes a second.
        assert!(
            !grace.takes(&a, "loki", 51, 5 * SECOND) && grace.takes(&a, "loki", 50, 5 * SECOND)
        );
        assert!(grace.takes(&a, "loki", 600, 500 * SECOND));
        assert!(!grace.takes(&a, "loki", 601, 5000 * SECOND), "never more than that at once");
        let taken = grace.taken();
        assert_eq!(taken.get(&a), Some(&Graced { requests: 4, bytes: 1250 }));
        assert_eq!(taken.get(&b), Some(&Graced { requests: 1, bytes: 600 }));
    }

    #[test]
    fn there_is_none_for_other_protocols_nor_where_it_is_off() {
        let a = tenant("a");
        assert!(!grace(600).takes(&a, "events", 1, 0));
        assert!(!grace(0).takes(&a, "loki", 0, 0));
        assert!(!Grace::default().takes(&a, "loki", 1, 0));
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_is_taken_than_it_allows(
            asked in prop::collection::vec((0u64..2_000, 0u128..30), 1..60),
        ) {
            let (a, grace) = (tenant("a"), grace(1_000));
            let (mut now, mut taken) = (0, 0);
            for (bytes, wait) in asked {
                now += wait * SECOND;
                if grace.takes(&a, "loki", bytes, now) {
                    taken += u128::from(bytes.max(1));
                }
            }
            prop_assert!(taken <= 1_000 + 1_000 * now / (60 * SECOND));
        }
    }
}
