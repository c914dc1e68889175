//! How `budget.bytes` is divided: what is reserved at start, and the pool that requests share.

use crate::{
    config::Config,
    edge::{CONNECTION_BYTES, TLS_CONNECTION_BYTES},
    log::LogKind,
};

/// Memory of one remembered id: 63 bytes, measured with a million of them (docs/deduplication.md).
const ID_BYTES: u64 = 64;

/// The parts of `budget.bytes`, and what follows from them where they are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Bytes of the sinks' windows, all sinks and partitions together: three eighths.
    pub sinks: u64,
    /// Bytes of the index of ids, all partitions together: a sixth at most.
    pub ids: u64,
    /// Bytes that requests share: connections, bodies, decode buffers, batches, the writer's queue.
    pub pool: u64,
    /// `log.dedup_ids`, or as many as fit into `ids`, of each partition.
    pub dedup_ids: usize,
    /// The same of all partitions together.
    pub dedup_ids_all: usize,
    /// `edge.limits.decoded_bytes`, or what one request can have of the pool.
    pub decoded_bytes: u64,
    /// `edge.limits.body_bytes`, or the same.
    pub body_bytes: u64,
    /// `edge.limits.connections`, or as many as fit into half of the pool: the rest is for bodies.
    pub connections: usize,
}

impl Division {
    /// Of what is configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let (bytes, limits) = (config.budget.bytes.0, &config.edge.limits);
        let partitions = u64::from(config.log.partitions.max(1));
        let sinks = if config.sink.is_empty() { 0 } else { bytes / 8 * 3 };
        // Of a log on Kafka nobody knows yet how many partitions this process will have: any of them may
        // have all that there is, and they share it (`kafka::tenure`).
        let partitions = match config.log.kind {
            LogKind::Embedded => partitions,
            LogKind::Kafka => 1,
        };
        let fit = bytes / 6 / ID_BYTES / partitions;
        let fit = if remembers(config) { fit } else { 0 };
        let dedup_ids = config.log.dedup_ids.min(usize::try_from(fit).unwrap_or(usize::MAX));
        let shared = match config.log.kind {
            LogKind::Kafka if 0 < dedup_ids => fit.min(
                (config.log.dedup_ids as u64).saturating_mul(config.log.kafka.partitions.into()),
            ),
            _ => dedup_ids as u64,
        };
        let ids = shared * ID_BYTES * partitions;
        let dedup_ids_all = usize::try_from(shared * partitions).unwrap_or(usize::MAX);
        let pool = bytes.saturating_sub(sinks).saturating_sub(ids);
        // While a body is judged both it and its batch are held, and a batch is about as large; a fifth
        // is for what others hold meanwhile.
        let one = pool / 5 * 2;
        let decoded_bytes = limits.decoded_bytes.0.min(one.max(1));
        let body_bytes = limits.body_bytes.0.min(decoded_bytes);
        let tls = config.edge.tls.is_some();
        let each = if tls { TLS_CONNECTION_BYTES } else { CONNECTION_BYTES };
        let fit = usize::try_from(pool / 2 / each).unwrap_or(usize::MAX);
        let connections = limits.connections.min(fit.max(1));
        Self { sinks, ids, pool, dedup_ids, dedup_ids_all, decoded_bytes, body_bytes, connections }
    }

    /// What is less than configured, one sentence each: `budget.bytes` does not hold more.
    #[must_use]
    pub fn lowered(&self, config: &Config) -> Vec<String> {
        let limits = &config.edge.limits;
        // Where ids are not deduplicated, there is nothing to lower.
        let ids = if remembers(config) { config.log.dedup_ids } else { 0 };
        let rows = [
            ("log.dedup_ids", self.dedup_ids as u64, ids as u64),
            ("edge.limits.decoded_bytes", self.decoded_bytes, limits.decoded_bytes.0),
            ("edge.limits.body_bytes", self.body_bytes, limits.body_bytes.0),
            ("edge.limits.connections", self.connections as u64, limits.connections as u64),
        ];
        let lower = rows.into_iter().filter(|(_, is, said)| is < said);
        lower
            .map(|(name, is, said)| {
                format!("{name} is {is}, not {said}: budget.bytes holds no more")
            })
            .collect()
    }
}

/// False where no memory is kept for ids.
fn remembers(config: &Config) -> bool {
    config.log.kind == LogKind::Embedded || config.log.remembers()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{config::Size, sink::SinkConfig};

    fn config(bytes: u64) -> Config {
        let mut config = Config::default();
        config.budget.bytes = Size(bytes);
        config.sink.push(SinkConfig::lake("lake", "lake"));
        config
    }

    #[test]
    fn the_defaults_are_what_they_say() {
        let config = config(Config::default().budget.bytes.0);
        let division = Division::of(&config);
        assert_eq!(division.lowered(&config), Vec::<String>::new());
        assert_eq!(division.dedup_ids, config.log.dedup_ids);
    }

    #[test]
    fn the_parts_are_never_more_than_the_whole() {
        for (mib, partitions) in [(80, 1), (96, 4), (384, 1), (384, 64), (4096, 8)] {
            let mut config = config(mib << 20);
            config.log.partitions = partitions;
            let Division { sinks, ids, pool, decoded_bytes, body_bytes, .. } =
                Division::of(&config);
            assert_eq!(sinks + ids + pool, mib << 20);
            assert!(2 * decoded_bytes <= pool && body_bytes <= decoded_bytes);
        }
    }

    #[test]
    fn what_does_not_fit_is_lowered_and_said() {
        let config = config(80 << 20);
        let lowered = Division::of(&config).lowered(&config);
        assert_eq!(lowered.len(), 4, "{lowered:?}");
    }
}
