//! The configuration file as a whole. Each part lives beside the stage it is for.

use serde::{Deserialize, Serialize};

use crate::{
    admin::AdminConfig, edge::EdgeConfig, hop::HopConfig, log::LogConfig, normalize::SchemasConfig,
    quota::QuotaStoreConfig, sink::SinkConfig, tenants::Quota,
};

mod load;
mod units;

pub use load::{ConfigError, check, load, parse};
pub use units::{Size, Span};

/// Everything that can be configured; every field has a default (config/tidegate.toml shows them).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which stages this process is.
    pub role: Role,
    /// The public side.
    pub edge: EdgeConfig,
    /// Between roles.
    pub hop: HopConfig,
    /// The operators' side.
    pub admin: AdminConfig,
    /// Memory.
    pub budget: BudgetConfig,
    /// The durable log.
    pub log: LogConfig,
    /// What events are checked by.
    pub schemas: SchemasConfig,
    /// Where events go.
    pub sink: Vec<SinkConfig>,
    /// What tenants get that say nothing else.
    pub defaults: DefaultsConfig,
    /// Where several edges share their quotas.
    pub quota_store: QuotaStoreConfig,
    /// The folder of tenant files; `<data dir>/tenants` if absent.
    pub tenants_dir: Option<std::path::PathBuf>,
}

/// Which stages a process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Every stage: the default.
    #[default]
    All,
    /// TLS, keys, quotas, limits, protocols; it asks normalizers.
    Edge,
    /// Verdicts and batches; it asks writers.
    Normalizer,
    /// The log and the sinks.
    Writer,
}

impl Role {
    /// Every role.
    pub const ALL: &'static [Role] = &[Self::All, Self::Edge, Self::Normalizer, Self::Writer];

    /// As it stands in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Edge => "edge",
            Self::Normalizer => "normalizer",
            Self::Writer => "writer",
        }
    }

    /// True where it has a log of its own, and sinks.
    #[must_use]
    pub fn has_log(self) -> bool {
        matches!(self, Self::All | Self::Writer)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `[budget]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Memory that event bytes may take: requests, the writer's queue, the sinks' windows, known ids.
    pub bytes: Size,
    /// How long a request may wait in a hop's queue.
    pub delay: Span,
    /// How long a sink that blocks may take for its backlog: its bound is what it drains in this
    /// time, 1 GiB at least, `log.backlog_bytes` at most.
    pub sink_delay: Span,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { bytes: Size::mib(384), delay: Span::seconds(2), sink_delay: Span::seconds(3_600) }
    }
}

/// `[defaults]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefaultsConfig {
    /// `[defaults.quota]`
    pub quota: Quota,
}
