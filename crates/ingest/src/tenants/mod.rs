//! Who may send: tenants, their keys, their quotas. One file each in `tenants_dir`.

mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod pair;
mod public;
mod store;
mod watch;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

pub use key::{NewKey, NoRandom, generate, is_public};
pub use pair::{NewPair, Pair};
pub use public::NewPublicKey;
pub use store::{
    AddedPair, AuthError, Caller, ChangeError, NewTenant, Rotated, TenantFault, Tenants,
    TenantsError,
};

/// Bytes nobody may see: prints as `[secret]`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// How much a tenant may send. `None`: no limit, or the default where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Events a second, over time.
    pub events_per_second: Option<u64>,
    /// Events at once; `events_per_second` if absent.
    pub events_burst: Option<u64>,
    /// Bytes a second (raw bodies as declared or read), over time.
    pub bytes_per_second: Option<u64>,
    /// Bytes at once; `bytes_per_second` if absent.
    pub bytes_burst: Option<u64>,
    /// Events a day, UTC.
    pub events_per_day: Option<u64>,
    /// Bytes a day, UTC.
    pub bytes_per_day: Option<u64>,
    /// How many event types it may name; 1000 if absent.
    pub event_types: Option<u64>,
    /// Its share where tenants take turns, 1 to 100; 1 if absent.
    pub weight: Option<u32>,
    /// Single event types, each in a bucket of its own besides the tenant's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<EventType, TypeQuota>,
}

/// How much of one event type a tenant may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TypeQuota {
    /// Events a second, over time.
    pub events_per_second: Option<u64>,
    /// Events at once; `events_per_second` if absent.
    pub events_burst: Option<u64>,
}

/// The largest `weight`.
pub const WEIGHT_MAX: u32 = 100;
/// How many event types a tenant may name that says nothing else.
pub const EVENT_TYPES: u64 = 1000;

impl Quota {
    /// Itself, with what it leaves open taken from `defaults`. A rate brings its own burst.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let mut quota = self.clone();
        if quota.events_per_second.is_none() {
            quota.events_per_second = defaults.events_per_second;
            quota.events_burst = quota.events_burst.or(defaults.events_burst);
        }
        if quota.bytes_per_second.is_none() {
            quota.bytes_per_second = defaults.bytes_per_second;
            quota.bytes_burst = quota.bytes_burst.or(defaults.bytes_burst);
        }
        quota.events_per_day = quota.events_per_day.or(defaults.events_per_day);
        quota.bytes_per_day = quota.bytes_per_day.or(defaults.bytes_per_day);
        quota.event_types = quota.event_types.or(defaults.event_types);
        quota.weight = quota.weight.or(defaults.weight);
        for (event_type, limit) in &defaults.types {
            quota.types.entry(event_type.clone()).or_insert(*limit);
        }
        quota
    }

    /// Its share where tenants take turns.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1).clamp(1, WEIGHT_MAX)
    }

    /// How many event types it may name.
    #[must_use]
    pub fn event_types(&self) -> u64 {
        self.event_types.unwrap_or(EVENT_TYPES)
    }

    /// What in it makes no sense, one sentence each without its section.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let named = [
            ("events_per_second", self.events_per_second),
            ("events_burst", self.events_burst),
            ("bytes_per_second", self.bytes_per_second),
            ("bytes_burst", self.bytes_burst),
            ("events_per_day", self.events_per_day),
            ("bytes_per_day", self.bytes_per_day),
            ("event_types", self.event_types),
        ];
        let mut zeros: Vec<String> = named
            .into_iter()
            .filter(|(_, value)| *value == Some(0))
            .map(|(name, _)| name.to_owned())
            .collect();
        for (event_type, limit) in &self.types {
            let named = [
                ("events_per_second", limit.events_per_second),
                ("events_burst", limit.events_burst),
            ];
            let zero = named.into_iter().filter(|(_, value)| *value == Some(0));
            zeros.extend(zero.map(|(name, _)| format!("types.{event_type:?}.{name}")));
        }
        let mut faults: Vec<String> =
            zeros.iter().map(|name| format!("{name}: at least 1, or leave it out")).collect();
        if self.weight.is_some_and(|weight| !(1..=WEIGHT_MAX).contains(&weight)) {
            faults.push(format!("weight: 1 to {WEIGHT_MAX}"));
        }
        faults
    }
}

/// One key of a tenant. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The public part.
    pub id: String,
    /// HMAC-SHA-256 of the key's text under the pepper.
    pub hash: [u8; 32],
    /// Where it is a public one: the origins whose pages may use it; none: all.
    pub public: Option<Vec<String>>,
    /// The event types it may send; `None`: all.
    pub event_types: Option<Vec<String>>,
    /// Microseconds since 1970 after which it is refused; `None`: never.
    pub not_after: Option<i64>,
}

/// One tenant, as loaded. A new generation replaces it whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// False: all its keys are refused.
    pub enabled: bool,
    /// True: invalid events are rejected, not kept as dead letters.
    pub strict: bool,
    /// Keys the `hash` rule for personal data (HMAC-SHA-256).
    pub pii_secret: Secret,
    /// What it may send.
    pub quota: Quota,
    /// Its keys; two may be live at once.
    pub keys: Vec<Key>,
    /// Its SigV4 key pairs; two may be live at once.
    pub pairs: Vec<Pair>,
}

impl Tenant {
    /// Its part against others' where stages are shared.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.quota.weight().into()
    }
}
