//! Quotas: how much each tenant may send, here and in a fleet of edges (docs/quotas.md).
//!
//! | file | what is there |
//! | --- | --- |
//! | `bucket` | one bucket (GCRA) and the slots of it that are promised for later |
//! | `limits` | a tenant's quota made ready, and the fields that tell of it |
//! | `day` | what was used of a UTC day |
//! | `state` | all of one tenant: what is admitted, settled, promised. Pure |
//! | `account` | the same behind one lock, for the edge |
//! | `grace` | a little over the quota, for clients that never send again |
//! | `fleet`, `lease.lua` | leases of a quota that several edges share, through Redis |

mod account;
mod bucket;
mod config;
mod day;
mod fleet;
mod grace;
mod limits;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Instant,
};

use arc_swap::ArcSwap;
use tidegate_event::{EventType, TenantId};

pub use account::{Account, Admitted, Line, Patience, Refused, Types};
pub use config::QuotaStoreConfig;
pub use day::Usage;
pub use fleet::{Fleet, FleetError, Mode, Standing, open};
pub use grace::{Grace, GraceConfig, Graced};

use crate::{
    clock::Clock,
    faults::{self, Bug, planted},
    tenants::Tenant,
};
use account::{Entry, lock};
use day::Moment;
use state::{Feed, State};

/// The two clocks: buckets go by the monotonic one, days by the other.
pub(super) struct Time {
    started: Instant,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Time").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Time {
    /// Nanoseconds on the monotonic clock.
    fn now(&self) -> u128 {
        if planted(Bug::QuotaByWallClock) {
            return u128::from(faults::wall_clock().unsigned_abs()) * 1_000;
        }
        self.started.elapsed().as_nanos()
    }

    fn moment(&self) -> Moment {
        Moment::of(self.clock.now())
    }
}

/// The quotas of all tenants. Who has an account needs no lock but that tenant's own.
#[derive(Debug)]
pub struct Quotas {
    time: Arc<Time>,
    entries: ArcSwap<HashMap<TenantId, Arc<Entry>>>,
    /// What feeds accounts that are made now.
    feed: Mutex<Feed>,
    /// Tells the fleet of an account that has no lease yet.
    made: tokio::sync::Notify,
    standing: Mutex<Standing>,
    grace: Arc<Grace>,
}

impl Quotas {
    /// Quotas of this process alone.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::with_feed(clock, Feed::Own, Standing::default())
    }

    fn with_feed(clock: Arc<dyn Clock>, feed: Feed, standing: Standing) -> Arc<Self> {
        Arc::new(Self {
            time: Arc::new(Time { started: Instant::now(), clock }),
            entries: ArcSwap::default(),
            feed: Mutex::new(feed),
            made: tokio::sync::Notify::new(),
            standing: Mutex::new(standing),
            grace: Arc::default(),
        })
    }

    /// The tenant's account.
    #[must_use]
    pub fn account(&self, tenant: &Arc<Tenant>) -> Account {
        let entry = self.entry(tenant);
        let limits = entry.limits(tenant);
        Account::new(entry, limits)
    }

    /// What is taken over the quotas.
    #[must_use]
    pub fn grace(&self) -> &Grace {
        &self.grace
    }

    fn entry(&self, tenant: &Arc<Tenant>) -> Arc<Entry> {
        if let Some(entry) = self.entries.load().get(&tenant.id) {
            return Arc::clone(entry);
        }
        // Whoever changes what feeds accounts holds this meanwhile: none is made behind its back.
        let feed = lock(&self.feed);
        let state = State::fed_by(*feed);
        let made =
            Arc::new(Entry::new(tenant, (Arc::clone(&self.time), Arc::clone(&self.grace)), state));
        self.entries.rcu(|entries| {
            let mut entries = HashMap::clone(entries);
            entries.entry(tenant.id.clone()).or_insert_with(|| Arc::clone(&made));
            entries
        });
        drop(feed);
        self.made.notify_one();
        self.entries.load().get(&tenant.id).map_or(made, Arc::clone)
    }

    /// Makes accounts for these tenants, so that they have their leases before their first request,
    /// and forgets those of tenants that are no more.
    pub fn know(&self, tenants: &[Arc<Tenant>]) {
        let known = self.entries.load();
        if tenants.iter().all(|tenant| known.contains_key(&tenant.id))
            && known.len() == tenants.len()
        {
            return;
        }
        tenants.iter().for_each(|tenant| drop(self.account(tenant)));
        self.entries.rcu(|entries| {
            let mut entries = HashMap::clone(entries);
            entries.retain(|id, _| tenants.iter().any(|tenant| tenant.id == *id));
            entries
        });
    }

    /// The event types that a tenant has named in earlier runs.
    pub fn restore_types<'a>(
        &self,
        tenant: &Arc<Tenant>,
        types: impl Iterator<Item = &'a EventType>,
    ) {
        self.entry(tenant).learn(types);
    }

    /// What a tenant has used of a day in an earlier run.
    pub fn restore_usage(&self, tenant: &Arc<Tenant>, usage: Usage) {
        let entry = self.entry(tenant);
        lock(&entry.state).days.restore(usage);
    }

    /// What was used of the day, of each tenant with a quota for days.
    #[must_use]
    pub fn usage(&self) -> BTreeMap<TenantId, Usage> {
        let entries = self.entries.load();
        let usage = entries.values().filter_map(|e| Some((e.tenant.clone(), e.usage()?)));
        usage.filter(|(_, usage)| *usage != Usage::default()).collect()
    }

    /// How this edge stands to the others it shares quotas with.
    #[must_use]
    pub fn standing(&self) -> Standing {
        lock(&self.standing).clone()
    }
}
