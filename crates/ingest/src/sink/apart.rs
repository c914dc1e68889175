//! What must hold of all sinks of a configuration together, and what the runner takes of each one's options.

use std::collections::HashSet;

use tidegate_event::EventType;

use super::{SinkConfig, SinkParts, SinkStartError, clickhouse, lake};
use crate::config::Size;

/// Two sinks never share a name, a lake or a database.
pub(super) fn check_apart<'a>(
    configs: impl Iterator<Item = &'a SinkConfig>,
    parts: &SinkParts,
) -> Result<(), SinkStartError> {
    let (mut names, mut lakes) = (HashSet::new(), HashSet::new());
    let mut databases = HashSet::new();
    for config in configs {
        let fault =
            |cause: &str| SinkStartError::Config { sink: config.name.clone(), cause: cause.into() };
        if !EventType::is_valid(&config.name) {
            return Err(fault("its name must be a letter and then letters, digits, '.', '_', '-'"));
        }
        if !names.insert(config.name.clone()) {
            return Err(fault("another sink has this name"));
        }
        if config.kind == "lake" {
            let url = lake::url(config, &parts.data_dir);
            if !lakes.insert(url.trim_end_matches('/').to_owned()) {
                return Err(fault("another lake has this url"));
            }
        }
        if !clickhouse::places(config).into_iter().all(|place| databases.insert(place)) {
            return Err(fault("another sink has this ClickHouse url and database"));
        }
    }
    Ok(())
}

/// `options.lane_bytes`: what one tenant's held lanes may hold back before that tenant is told to
/// wait; a quarter of the backlog's bound if absent.
pub(super) fn lane_bytes(config: &SinkConfig, backlog_bytes: u64) -> Result<u64, SinkStartError> {
    let fault = |cause: String| SinkStartError::Config { sink: config.name.clone(), cause };
    match config.options.get("lane_bytes") {
        None => Ok(backlog_bytes / 4),
        Some(toml::Value::Integer(n)) => {
            u64::try_from(*n).map_err(|_| fault("options.lane_bytes is negative".to_owned()))
        }
        Some(toml::Value::String(text)) => text.parse::<Size>().map(|size| size.0).map_err(fault),
        Some(_) => Err(fault("options.lane_bytes is a number of bytes or a size".to_owned())),
    }
}
