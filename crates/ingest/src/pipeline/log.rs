//! Opens the log, whichever it is, and the way into it.

use std::sync::Arc;

use tidegate_event::Offset;
use tokio::runtime::Handle;

use super::run::{StartError, part};
use crate::{
    books::Books,
    clock::Clock,
    config::Config,
    log::{self, LogHandle, LogKind},
    normalize::SharedContents,
    sink::{Sinks, source::LogSource},
    storage::Storage,
    writer::{self, LogWriter, WriterSettings, Writers},
};

#[cfg(feature = "kafka")]
use super::roles;
#[cfg(feature = "kafka")]
use crate::kafka::{self, KafkaLog};

/// The log, open for readers; nothing can be appended yet.
pub(super) struct OpenedLog {
    pub log_id: String,
    /// What was done to it at the start, and what an operator should know of it.
    pub recovery: Vec<String>,
    /// Every partition, for readers.
    pub sources: Vec<Arc<dyn LogSource>>,
    /// The same, of an embedded log alone.
    pub handles: Vec<LogHandle>,
    kind: Kind,
}

enum Kind {
    None,
    Embedded(Vec<log::Log>),
    #[cfg(feature = "kafka")]
    /// And what this process is called among those that have it.
    Kafka(Arc<KafkaLog>, String),
}

impl OpenedLog {
    pub fn open(
        config: &Config,
        storage: &Arc<dyn Storage>,
        clock: &Arc<dyn Clock>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        match config.log.kind {
            LogKind::Embedded => Self::embedded(config, storage, clock),
            LogKind::Kafka => Self::kafka(config, storage, runtime),
        }
    }

    /// That of a process whose role has none, which is called `id`.
    pub fn none(id: &str) -> Self {
        Self {
            log_id: id.to_owned(),
            recovery: Vec::new(),
            sources: Vec::new(),
            handles: Vec::new(),
            kind: Kind::None,
        }
    }

    fn embedded(
        config: &Config,
        storage: &Arc<dyn Storage>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let opened = log::open(Arc::clone(storage), &config.log, Arc::clone(clock));
        let opened = opened.map_err(part("log"))?;
        let handles: Vec<_> = opened.partitions.iter().map(log::Log::handle).collect();
        let source = |log: &LogHandle| Arc::new(log.clone()) as Arc<dyn LogSource>;
        Ok(Self {
            log_id: opened.log_id,
            recovery: opened.recovery.iter().map(ToString::to_string).collect(),
            sources: handles.iter().map(source).collect(),
            handles,
            kind: Kind::Embedded(opened.partitions),
        })
    }

    #[cfg(feature = "kafka")]
    fn kafka(
        config: &Config,
        storage: &Arc<dyn Storage>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let lock = log::lock(&**storage, &config.log.dir).map_err(part("log"))?;
        let name = roles::instance(&**storage, &config.log.dir).map_err(part("log.dir"))?;
        let needs = kafka::Needs {
            event_bytes: config.edge.limits.event_bytes.0,
            retention: config.log.retention_age.0,
        };
        let opened = kafka::open(&config.log.kafka, needs, runtime.clone(), lock);
        let opened = opened.map_err(part("log"))?;
        Ok(Self {
            log_id: opened.log_id().to_owned(),
            recovery: opened.notes().to_vec(),
            sources: opened.sources(),
            handles: Vec::new(),
            kind: Kind::Kafka(opened, name),
        })
    }

    #[cfg(not(feature = "kafka"))]
    fn kafka(_: &Config, _: &Arc<dyn Storage>, _: &Handle) -> Result<Self, StartError> {
        let why = "kind = \"kafka\": this program was built without the feature `kafka`";
        Err(StartError::Part { what: "log", why: why.to_owned() })
    }

    /// True where nothing was ever appended.
    pub fn is_empty(&self) -> bool {
        self.sources.iter().all(|log| log.latest() == Offset(0))
    }

    /// What this process is called where others have the log too.
    pub fn shared_as(&self) -> Option<&str> {
        match &self.kind {
            Kind::None | Kind::Embedded(_) => None,
            #[cfg(feature = "kafka")]
            Kind::Kafka(_, name) => Some(name),
        }
    }

    /// Where processes that have the log share the schemas' contents.
    pub fn contents(&self) -> Option<Arc<dyn SharedContents>> {
        match &self.kind {
            Kind::None | Kind::Embedded(_) => None,
            #[cfg(feature = "kafka")]
            Kind::Kafka(log, _) => Some(log.contents()),
        }
    }

    /// Opens the way in; from here on events are appended, and, where the log is shared, the sinks of
    /// the partitions that are ours run.
    pub fn begin(
        self,
        sinks: &Arc<Sinks>,
        books: &Arc<Books>,
        clock: &Arc<dyn Clock>,
        settings: &WriterSettings,
    ) -> Result<Arc<dyn LogWriter>, StartError> {
        match self.kind {
            Kind::None => Ok(Arc::new(Writers::none())),
            Kind::Embedded(partitions) => {
                let mut writers = Vec::new();
                for mut log in partitions {
                    leave_out_lost(&mut log, sinks).map_err(part("log"))?;
                    let (books, clock) = (Arc::clone(books), Arc::clone(clock));
                    let started = writer::start(log, books, clock, settings.clone());
                    writers.push(started.map_err(part("log"))?);
                }
                let writers = Writers::new(writers).ok_or("no partitions").map_err(part("log"))?;
                Ok(Arc::new(writers))
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka(log, _) => {
                log.begin_appending(settings).map_err(part("log"))?;
                let begun = log.begin_owning(Arc::clone(sinks), settings, Arc::clone(clock));
                begun.map_err(part("log"))?;
                Ok(log)
            }
        }
    }
}

/// Should the log end before a sink's cursor, its disk lost what it had said was durable. Those offsets
/// are never given again: the sink would take new events under them for ones it has written.
fn leave_out_lost(log: &mut log::Log, sinks: &Sinks) -> Result<(), log::AppendFault> {
    let (partition, latest) = (log.handle().partition(), log.handle().latest());
    let own = sinks.cursors().into_iter().filter(|(_, of, _)| *of == partition);
    let Some((sink, _, cursor)) = own.max_by_key(|(_, _, cursor)| *cursor) else { return Ok(()) };
    if latest < cursor {
        tracing::error!(sink, %cursor, %latest, "the log ends before what a sink has written: those events are lost");
        log.skip_to(cursor)?;
    }
    Ok(())
}
