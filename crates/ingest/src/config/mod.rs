//! The configuration file as a whole. Each part lives beside the stage it is for.

use serde::{Deserialize, Serialize};

use crate::{
    admin::AdminConfig, edge::EdgeConfig, log::LogConfig, normalize::SchemasConfig,
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
    /// The public side.
    pub edge: EdgeConfig,
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
