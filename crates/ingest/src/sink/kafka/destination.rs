//! The sink itself: which producer a write goes through, and what its end means.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::Partition;

use super::{
    super::{
        LaneRows, Sink, SinkConfig, SinkConfigError, SinkContext, WriteError, lake::Schemas,
        rows::Row, shadow,
    },
    client::Clients,
    config::Settings,
    producer::{Fault, Open},
    progress::{self, Standing},
    topics::Topics,
};

/// How long a partition is left to whoever took it over.
const FENCED_FOR: Duration = Duration::from_secs(10);

/// How large a window is before anything was written: so small that its write ends soon, whatever the brokers
/// are like. By then it is known how long others may take.
const WINDOW_FIRST: u64 = 2 << 20;
/// So many are.
const WRITES_FIRST: u32 = 4;

/// Produces messages.
pub struct Kafka {
    name: String,
    settings: Settings,
    clients: Clients,
    topics: Topics,
    schemas: Arc<dyn Schemas>,
    slots: Mutex<HashMap<Partition, Arc<Mutex<Slot>>>>,
    /// Transactions of this process so far.
    written: AtomicU32,
}

/// The transactional producer of one partition of the log. One write at a time: lanes take turns.
#[derive(Default)]
struct Slot {
    open: Option<Open>,
    fenced_until: Option<Instant>,
}

impl Kafka {
    /// Makes no request.
    pub fn open(config: &SinkConfig, context: &SinkContext) -> Result<Self, SinkConfigError> {
        let settings = Settings::read(config)?;
        let clients =
            Clients::new(&settings).map_err(|cause| SinkConfigError(format!("kafka: {cause}")))?;
        Ok(Self {
            name: format!("{}{}", config.name, config.suffix),
            topics: Topics::new(&clients, &settings, context.runtime.clone()),
            clients,
            settings,
            schemas: Arc::clone(&context.schemas),
            slots: Mutex::default(),
            written: AtomicU32::new(0),
        })
    }

    fn slot(&self, partition: Partition) -> Arc<Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(partition).or_default())
    }

    /// Writes what is not committed yet, through the producer of the rows' partition.
    fn put(&self, slot: &mut Slot, rows: &LaneRows<'_>, topic: &str) -> Result<(), Fault> {
        if slot.fenced_until.is_some_and(|until| Instant::now() < until) {
            return Err(Fault::Fenced("it was a moment ago".to_owned()));
        }
        let open = match &mut slot.open {
            Some(open) => open,
            closed => {
                let id = format!("{}-{}-{}", rows.log_id, self.name, rows.partition.0);
                self.topics.ensure_progress().map_err(Fault::Undone)?;
                closed.insert(Open::take_over(&self.clients, &self.settings, &id)?)
            }
        };
        let key = progress::key(open.id(), rows.lane);
        let from = match open.marker(&key).map(|marker| marker.stands(rows)) {
            None => 0,
            Some(Standing::From(from)) => from,
            Some(Standing::Differs) => {
                return Err(Fault::Differs(format!(
                    "{}: under {key} other rows are committed for the same offsets",
                    self.settings.progress_topic
                )));
            }
        };
        let left = rows.rows.get(from..).unwrap_or_default();
        let mut done = from;
        for part in parts(left, self.settings.queue_bytes) {
            let given = LaneRows { rows: part, ..*rows };
            open.transaction(&*self.schemas, &self.settings, &given, topic, &key).map_err(
                |fault| {
                    let Fault::Guilty(rows) = fault else { return fault };
                    Fault::Guilty(rows.into_iter().map(|(row, why)| (row + done, why)).collect())
                },
            )?;
            done += part.len();
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Rows in pieces of at most so many bytes, or of one row: what one transaction holds, so that none is open
/// for long. Each has its own marker, so what is done of a window is known piece by piece.
fn parts<'r, 'a>(rows: &'r [Row<'a>], bytes_max: u64) -> impl Iterator<Item = &'r [Row<'a>]> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |row: &&Row<'_>| {
            bytes += row.bytes();
            bytes <= bytes_max
        };
        let count = left.iter().take_while(fits).count().max(1).min(left.len());
        let (part, rest) = left.split_at(count);
        left = rest;
        (!part.is_empty()).then_some(part)
    })
}

impl Sink for Kafka {
    fn exchange(&self) -> Result<&dyn crate::sink::exchange::Exchange, &'static str> {
        Err(
            "messages that were sent cannot be taken back, and consumers have read them: produce the shadow's topics to them, or name other sinks with --sink",
        )
    }

    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        shadow::refuse_shadows_names(rows)?;
        let topic = self.settings.topic.name(rows.lane, str::to_owned);
        let retry = |cause: String| WriteError::Retry { cause: format!("{topic}: {cause}") };
        self.topics.ensure(&topic).map_err(retry)?;
        let slot = self.slot(rows.partition);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(fault) = self.put(&mut slot, rows, &topic) else { return Ok(()) };
        if !slot.open.as_ref().is_some_and(Open::is_usable) {
            slot.open = None;
        }
        match fault {
            Fault::Guilty(mut rows) => {
                rows.sort_unstable_by_key(|(row, _)| *row);
                Err(WriteError::Reject { rows })
            }
            Fault::Differs(cause) => Err(WriteError::Conflict { cause }),
            Fault::Fenced(cause) => {
                slot.open = None;
                let now = Instant::now();
                if slot.fenced_until.is_none_or(|until| until <= now) {
                    slot.fenced_until = Some(now + FENCED_FOR);
                }
                let id = format!("{}-{}-{}", rows.log_id, self.name, rows.partition.0);
                let cause = format!("another process writes as {id}: {cause}");
                Err(WriteError::Conflict { cause })
            }
            Fault::BatchTooLarge => Err(retry("the topic takes no batch of this size".to_owned())),
            Fault::Undone(cause) | Fault::Unknown(cause) => {
                self.topics.forget(&topic);
                Err(retry(cause))
            }
        }
    }

    fn window_bytes(&self) -> Option<u64> {
        (self.written.load(Ordering::Relaxed) < WRITES_FIRST).then_some(WINDOW_FIRST)
    }

    fn probe(&self) -> Result<(), String> {
        self.topics.answers().map_err(|cause| {
            let told = self.clients.told().map(|told| format!(" ({told})")).unwrap_or_default();
            format!("{}: {cause}{told}", self.settings.connection.servers)
        })
    }
}
