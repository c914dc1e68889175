//! Who may send: tenants, their keys, their quotas. One file each in `tenants_dir`.

mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod store;
mod watch;

use serde::{Deserialize, Serialize};
use tidegate_event::TenantId;

pub use key::{NewKey, NoRandom, generate};
pub use store::{
    AuthError, Caller, ChangeError, NewTenant, Rotated, TenantFault, Tenants, TenantsError,
};

/// Bytes nobody may see: prints as `[secret]`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// How much a tenant may send. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl Quota {
    /// Itself, with what it leaves open taken from `defaults`. A rate brings its own burst.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let mut quota = *self;
        if quota.events_per_second.is_none() {
            quota.events_per_second = defaults.events_per_second;
            quota.events_burst = quota.events_burst.or(defaults.events_burst);
        }
        if quota.bytes_per_second.is_none() {
            quota.bytes_per_second = defaults.bytes_per_second;
            quota.bytes_burst = quota.bytes_burst.or(defaults.bytes_burst);
        }
        quota
    }

    fn named(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("events_per_second", self.events_per_second),
            ("events_burst", self.events_burst),
            ("bytes_per_second", self.bytes_per_second),
            ("bytes_burst", self.bytes_burst),
        ]
    }
}

/// One key of a tenant. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The public part.
    pub id: String,
    /// HMAC-SHA-256 of the key's text under the pepper.
    pub hash: [u8; 32],
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
}

impl Tenant {
    /// Its part against others' where stages are shared.
    #[must_use]
    pub fn weight(&self) -> u64 {
        1
    }
}
