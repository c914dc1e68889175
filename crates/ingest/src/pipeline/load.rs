//! What stages share, read from the data folder at the start: schemas, tenants, replays.

use std::sync::Arc;

use super::run::{StartError, part, parts};
use crate::{
    budget::Budget,
    clock::Clock,
    config::Config,
    json::ScanLimits,
    normalize::{Normalizer, SchemaStore, SharedContents},
    replay::{
        jobs::{Jobs, JobsParts},
        promote::Promoter,
    },
    sink::{SinkParts, Sinks},
    storage::Storage,
    tenants::Tenants,
};

/// The schemas by their hash, and today's.
pub(super) fn load_schemas(
    config: &Config,
    storage: &Arc<dyn Storage>,
    shared: Option<Arc<dyn SharedContents>>,
) -> Result<(Arc<SchemaStore>, Normalizer), StartError> {
    let dir = config.log.dir.join("schemas-by-hash");
    let store = SchemaStore::open(Arc::clone(storage), dir).map_err(part("schemas"))?;
    let store = Arc::new(store.sharing(shared));
    let normalizer = Normalizer::load(&config.schemas, Arc::clone(&store), scan_limits(config));
    Ok((store, normalizer.map_err(parts("schemas"))?))
}

fn scan_limits(config: &Config) -> ScanLimits {
    let limits = &config.edge.limits;
    ScanLimits { depth: limits.depth, fields: limits.fields }
}

/// Promotions, over the running sinks.
pub(super) fn open_promoter(sinks: &Arc<Sinks>, parts: &SinkParts) -> Arc<Promoter> {
    let (storage, clock) = (Arc::clone(&parts.storage), Arc::clone(&parts.clock));
    let live = Arc::<Sinks>::clone(sinks);
    Arc::new(Promoter::new(live, storage, clock, parts.data_dir.clone()))
}

/// Replays, over the same log as the sinks.
pub(super) fn open_jobs(
    config: &Config,
    parts: SinkParts,
    schemas: &Arc<SchemaStore>,
    tenants: &Arc<Tenants>,
    budget: &Arc<Budget>,
) -> Result<Arc<Jobs>, StartError> {
    let jobs = Jobs::open(JobsParts {
        logs: parts.logs,
        writers: Arc::default(),
        sinks: config.sink.clone(),
        schemas: Arc::clone(schemas),
        limits: scan_limits(config),
        tenants: Arc::clone(tenants),
        storage: parts.storage,
        clock: parts.clock,
        data_dir: parts.data_dir,
        budget: Arc::clone(budget),
        runtime: parts.runtime,
    });
    Ok(Arc::new(jobs.map_err(part("replays"))?))
}

pub(super) fn load_tenants(
    config: &Config,
    dev_key: Option<&str>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<Tenants>, StartError> {
    let dir = config.tenants_dir.clone().unwrap_or_else(|| config.log.dir.join("tenants"));
    let tenants = Tenants::load(&dir, config.defaults.quota.clone(), Arc::clone(clock));
    let tenants = tenants.map_err(part("tenants"))?;
    Ok(Arc::new(match dev_key {
        Some(key) => tenants.with_dev(key),
        None => tenants,
    }))
}
