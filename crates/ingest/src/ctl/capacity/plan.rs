//! What a rate needs: CPU by part, disks, partitions, inserts and files. Pure arithmetic over measured costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Microseconds of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Cost {
    /// For each request.
    pub request: f64,
    /// For each event.
    pub event: f64,
    /// For each byte of an event.
    pub byte: f64,
}

/// What was measured: for each log and sink, what each of the server's parts costs with it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figures {
    /// On what.
    pub machine: String,
    /// When.
    pub measured: String,
    /// By what ran, then by part: `edge`, `writer`, `sink`, `kafka`, `engine`.
    pub parts: BTreeMap<String, BTreeMap<String, Cost>>,
}

impl Figures {
    fn cost(&self, what: &str, part: &str) -> Option<Cost> {
        self.parts.get(what)?.get(part).copied()
    }
}

/// What comes in, and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Events a second, at the peak.
    pub events_per_second: f64,
    /// Bytes of an event.
    pub event_bytes: f64,
    /// Events in a request.
    pub events_per_request: f64,
    /// Tenants that send at once.
    pub tenants: u64,
    /// Event types of each.
    pub event_types: u64,
    /// Where to: names of measured sinks.
    pub sinks: Vec<String>,
    /// How long the log is kept, in seconds.
    pub retention_seconds: f64,
    /// Copies of the log: 1 for the embedded one.
    pub copies: u64,
    /// Bytes of log or lake for each byte of event, once compressed.
    pub compressed: f64,
    /// The part of a core that is to be used at the peak.
    pub utilisation: f64,
    /// Cores of a machine.
    pub cores: f64,
    /// Inserts a second that ClickHouse is to get at most.
    pub inserts_per_second: f64,
    /// How old a lake's file is before it is closed, in seconds.
    pub lake_seconds: f64,
}

/// One part's need of CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Need {
    /// Which.
    pub part: String,
    /// Microseconds of one core for each event.
    pub micros_per_event: f64,
    /// Cores that are busy.
    pub busy_cores: f64,
    /// Cores to have, so that no more than the wanted part of them is used.
    pub cores: f64,
}

/// What it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// CPU, part by part.
    pub needs: Vec<Need>,
    /// Cores of `ingestd`, all its parts.
    pub server_cores: f64,
    /// Machines for `ingestd`, one more than the peak needs where it is more than one.
    pub machines: u64,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Bytes of events a second.
    pub bytes_per_second: f64,
    /// Partitions of the log: so that no writer's thread is busier than wanted; of a topic, two for each
    /// machine and one for each 10 MB/s.
    pub partitions: u64,
    /// Bytes a second that the log's disks take, all copies.
    pub log_bytes_per_second: f64,
    /// Bytes of log, all copies, a quarter of the disks left free.
    pub log_bytes: f64,
    /// Bytes a day in the lake (and about as many in ClickHouse).
    pub stored_bytes_per_day: f64,
    /// Lanes: tenants times event types.
    pub lanes: u64,
    /// Files of the lake an hour.
    pub lake_files_per_hour: f64,
    /// The age of ClickHouse's windows, in seconds: within a second unless lanes are many.
    pub clickhouse_window_seconds: f64,
    /// Rows of an insert, on average.
    pub clickhouse_rows_per_insert: f64,
}

/// Bytes of the log for each event besides its own, before compression: frame, record, ids.
const LOG_OVERHEAD: f64 = 48.0;
/// The age of ClickHouse's windows where inserts are few.
const CLICKHOUSE_SECONDS: f64 = 0.7;

/// Bytes a second for one partition of a topic: a rule of thumb, far below what one can do.
const TOPIC_PARTITION_BYTES: f64 = 10e6;

/// What `load` takes.
///
/// # Errors
/// A sink that was not measured: its name.
pub fn plan(load: &Load, figures: &Figures) -> Result<Plan, String> {
    let mut needs = Vec::new();
    let mut need = |part: &str, cost: Cost| {
        let micros =
            cost.request / load.events_per_request + cost.event + cost.byte * load.event_bytes;
        let busy_cores = micros * load.events_per_second / 1e6;
        let cores = busy_cores / load.utilisation;
        let part = part.to_owned();
        needs.push(Need { part, micros_per_event: micros, busy_cores, cores });
        busy_cores
    };
    let on_kafka = load.copies > 1;
    let (base, thread, name) = if on_kafka {
        ("kafka_log", "kafka", "client of Kafka")
    } else {
        ("blackhole", "writer", "writer and log")
    };
    let of = |what: &str, part: &str| {
        figures.cost(what, part).ok_or_else(|| format!("{part} was not measured with {what}"))
    };
    let mut server = need("edge and normalizer", of(base, "edge")?);
    let writer = need(name, of(base, thread)?);
    server += writer;
    for sink in &load.sinks {
        server += need(&format!("sink {sink}"), of(sink, "sink").map_err(|_| sink.clone())?);
        if let Some(client) = figures.cost(sink, "kafka") {
            server += need(&format!("sink {sink}, client"), client);
        }
    }
    if let Some(brokers) = figures.cost(base, "engine") {
        need("Kafka's brokers, for one copy", brokers);
    }
    for sink in &load.sinks {
        if let Some(engine) = figures.cost(sink, "engine") {
            need(&format!("{sink} itself, to insert"), engine);
        }
    }
    let server_cores = server / load.utilisation;
    let least = (server_cores / load.cores).ceil().max(1.0);
    let spare = if least > 1.0 { 1.0 } else { 0.0 };
    let bytes_per_second = load.events_per_second * load.event_bytes;
    let log = load.events_per_second * (load.event_bytes + LOG_OVERHEAD) * load.copies as f64;
    let lanes = load.tenants * load.event_types;
    // Of a topic: two for each machine, so that they can be shared out anew, and none too busy.
    let of_topic = (2.0 * (least + spare)).max((bytes_per_second / TOPIC_PARTITION_BYTES).ceil());
    let of_folder = (writer / load.utilisation).ceil().max(1.0);
    let window = CLICKHOUSE_SECONDS.max(lanes as f64 / load.inserts_per_second);
    Ok(Plan {
        needs,
        server_cores,
        machines: whole(least + spare),
        requests_per_second: load.events_per_second / load.events_per_request,
        bytes_per_second,
        partitions: whole(if on_kafka { of_topic } else { of_folder }),
        log_bytes_per_second: log,
        log_bytes: log * load.retention_seconds / 0.75,
        stored_bytes_per_day: bytes_per_second * load.compressed * 86_400.0,
        lanes,
        lake_files_per_hour: lanes as f64 * 3_600.0 / load.lake_seconds,
        clickhouse_window_seconds: window,
        clickhouse_rows_per_insert: load.events_per_second * window / lanes.max(1) as f64,
    })
}

/// A float that is whole and not negative; a float cast saturates.
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        toml::from_str(
            "machine = 'm'\nmeasured = 'd'\n\
             [parts.blackhole.edge]\nrequest = 100\nevent = 1\nbyte = 0.001\n\
             [parts.blackhole.writer]\nrequest = 10\nevent = 0.1\n\
             [parts.kafka_log.edge]\nevent = 2\n[parts.kafka_log.kafka]\nevent = 3\n\
             [parts.lake.sink]\nevent = 2\n\
             [parts.clickhouse.sink]\nevent = 1\n[parts.clickhouse.engine]\nevent = 4\n",
        )
        .unwrap()
    }

    fn load() -> Load {
        Load {
            events_per_second: 100_000.0,
            event_bytes: 500.0,
            events_per_request: 100.0,
            tenants: 10,
            event_types: 4,
            sinks: vec!["lake".to_owned()],
            retention_seconds: 86_400.0,
            copies: 1,
            compressed: 0.2,
            utilisation: 0.5,
            cores: 2.0,
            inserts_per_second: 20.0,
            lake_seconds: 60.0,
        }
    }

    #[test]
    fn cores_are_what_each_part_costs_at_the_wanted_use() {
        let plan = plan(&load(), &figures()).unwrap();
        let cores: Vec<_> =
            plan.needs.iter().map(|need| (need.busy_cores * 100.0).round()).collect();
        // 1 + 1 + 0.5 µs; 0.1 + 0.1 µs; 2 µs: a tenth of a core for each µs.
        assert_eq!(cores, [25.0, 2.0, 20.0]);
        assert!((plan.server_cores - 0.94).abs() < 1e-9, "{}", plan.server_cores);
        assert_eq!((plan.machines, plan.partitions), (1, 1));
    }

    #[test]
    fn more_than_one_machine_has_one_to_spare_and_engines_are_counted_apart() {
        let sinks = vec!["lake".to_owned(), "clickhouse".to_owned()];
        let load = Load { events_per_second: 1_000_000.0, sinks, ..load() };
        let plan = plan(&load, &figures()).unwrap();
        // 2.5 + 0.2 + 2 + 1 µs make 5.7 busy cores, 11.4 to have, 6 machines of 2 and one more.
        assert!((plan.server_cores - 11.4).abs() < 1e-9, "{}", plan.server_cores);
        assert_eq!(plan.machines, 7);
        let engine = plan.needs.last().unwrap();
        assert_eq!(
            (engine.part.as_str(), engine.busy_cores),
            ("clickhouse itself, to insert", 4.0)
        );
    }

    #[test]
    fn many_lanes_make_windows_longer_and_a_log_keeps_what_its_copies_take() {
        let few = plan(&load(), &figures()).unwrap();
        assert_eq!((few.lanes, few.clickhouse_window_seconds), (40, 2.0));
        assert_eq!(few.clickhouse_rows_per_insert, 5_000.0);
        let many = Load { tenants: 1, event_types: 1, copies: 3, ..load() };
        let many = plan(&many, &figures()).unwrap();
        assert_eq!(many.clickhouse_window_seconds, CLICKHOUSE_SECONDS);
        assert_eq!(many.log_bytes_per_second, 3.0 * few.log_bytes_per_second);
        // 2 + 3 + 2 µs at half use of 2 cores: one machine; 50 MB/s in partitions of 10.
        assert_eq!((many.machines, many.partitions), (1, 5));
    }

    #[test]
    fn what_was_not_measured_is_named() {
        let load = Load { sinks: vec!["tape".to_owned()], ..load() };
        assert_eq!(plan(&load, &figures()), Err("tape".to_owned()));
    }
}
