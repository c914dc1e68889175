//! Live against shadow: which events a replay would change, and how.
//!
//! | file | purpose |
//! | --- | --- |
//! | `merge` | two sides in order of offset, held against each other: pure |
//! | `tally` | what is counted meanwhile, and what of it is kept |
//! | `lake` | a lake's rows in order of offset |
//! | `clickhouse` | tables: sums over both sides, and the rows where these differ |
//! | `fingerprint` | whether a side is still what was compared |
//! | `report` | what came of it; `compared.json` |
//!
//! Both sides are read in order of offset, a few rows at a time, so that memory is bounded whatever the
//! window is. Rows are the same where every column has the same value; a column that one side does not
//! have holds no value there.

mod clickhouse;
mod fingerprint;
mod lake;
mod merge;
mod report;
mod tally;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tidegate_event::{OffsetRange, Partition};
use tokio::runtime::Handle;

pub use fingerprint::fingerprint;
pub use report::{
    Compared, ComparedError, Comparison, Difference, Differences, FILE, FORMAT, FieldChanges,
    FieldDifference, HourCompared, HourTotal, LaneCompared, Progress, Rows, Sample, Side,
    SinkCompared, Unreadable,
};

use super::plan::{Content, Selection};
use crate::sink::{SinkConfig, SinkConfigError, lake::InventoryError};
use tally::{Tally, Total};

/// How often it is told how far a comparison is.
const EVERY: Duration = Duration::from_millis(200);
/// How often a comparison is begun again where a side was written to meanwhile: files of an hour that is
/// over are joined once.
const TRIES: usize = 3;

/// Which events of a sink are looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Of which log.
    pub log_id: String,
    /// Which offsets; one stretch of each partition at most.
    pub window: Vec<(Partition, OffsetRange)>,
    /// Which of them.
    pub selection: Selection,
    /// The event types that may be there, for sinks that cannot list theirs.
    pub event_types: Vec<tidegate_event::EventType>,
}

impl Scope {
    /// That of a plan.
    #[must_use]
    pub fn of(plan: &Content) -> Self {
        let stretch = |slice: &super::Slice| Some((slice.partition, slice.range()?));
        let mut event_types: Vec<_> =
            plan.counts.iter().map(|count| count.lane.event_type.clone()).collect();
        event_types.sort_unstable();
        event_types.dedup();
        Self {
            log_id: plan.log_id.clone(),
            window: plan.window.iter().filter_map(stretch).collect(),
            selection: plan.selection.clone(),
            event_types,
        }
    }
}

/// What reading a sink's destination needs of the server.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The data folder: a lake without a URL lies in it.
    pub data_dir: PathBuf,
    /// Where futures are run; not the one that calls.
    pub runtime: Handle,
}

/// Two sides could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Sinks of this kind cannot be read back.
    #[error("a sink of kind {0:?} cannot be compared: it cannot be read back")]
    Kind(String),
    /// A side cannot be opened.
    #[error(transparent)]
    Config(#[from] SinkConfigError),
    /// A lake cannot be read.
    #[error(transparent)]
    Lake(#[from] InventoryError),
    /// A server does not answer, or not what was asked.
    #[error("{0}")]
    Server(String),
    /// A side was written to meanwhile.
    #[error("{0}: live or its shadow was written to while they were compared; compare again")]
    Moved(String),
    /// Nobody listens any more.
    #[error("given up: nobody waits for it any more")]
    Stopped,
}

/// One sink of a plan: what it is, and what its shadow is.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// The sink's own configuration.
    pub live: &'a SinkConfig,
    /// Its shadow's.
    pub shadow: &'a SinkConfig,
}

/// True for kinds of sinks that can be read back.
#[must_use]
pub fn can_be_compared(kind: &str) -> bool {
    matches!(kind, "lake" | "clickhouse")
}

/// Holds each sink's live side against its shadow. `tell` hears how far it is, and says false where nobody
/// waits for it any more. Blocks.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    pairs: &[Pair<'_>],
    scope: &Scope,
    reach: &Reach,
    tell: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Comparison, CompareError> {
    let mut all = Comparison::default();
    let mut teller =
        Teller { tell, last: None, progress: Progress::default(), before: Progress::default() };
    for pair in pairs {
        let (sink, kind) = (pair.live.name.as_str(), pair.live.kind.as_str());
        if !can_be_compared(kind) {
            let why = CompareError::Kind(kind.to_owned()).to_string();
            all.not_compared.push(sink.to_owned());
            all.sinks.push(SinkCompared {
                sink: sink.to_owned(),
                kind: kind.to_owned(),
                not_compared: Some(why),
                ..SinkCompared::default()
            });
            continue;
        }
        teller.begin(sink);
        let compared = steadily(pair, scope, reach, &mut teller)?;
        teller.end(&compared.differences);
        all.differences.add(&compared.differences);
        all.sinks.push(compared);
    }
    let mut compared = all.sinks.iter().filter(|sink| sink.not_compared.is_none()).peekable();
    all.identical = compared.peek().is_some() && compared.all(|sink| sink.identical);
    Ok(all)
}

/// Compares a sink whose sides do not change meanwhile: else what was found is of no moment.
fn steadily(
    pair: &Pair<'_>,
    scope: &Scope,
    reach: &Reach,
    teller: &mut Teller<'_>,
) -> Result<SinkCompared, CompareError> {
    let now = || {
        let of = |config| fingerprint(config, scope, reach);
        Ok::<_, CompareError>((of(pair.live)?, of(pair.shadow)?))
    };
    let mut before = now()?;
    for _ in 0..TRIES {
        teller.restart();
        let compared = match pair.live.kind.as_str() {
            "clickhouse" => clickhouse::compare(pair, scope, reach, teller),
            _ => lake::compare(pair, scope, reach, teller),
        };
        if matches!(compared, Err(CompareError::Stopped)) {
            return Err(CompareError::Stopped);
        }
        let after = now()?;
        if before == after {
            let mut report = compared?.report(&pair.live.name, &pair.live.kind);
            (report.live_fingerprint, report.shadow_fingerprint) = after;
            return Ok(report);
        }
        before = after;
    }
    Err(CompareError::Moved(pair.live.name.clone()))
}

/// Says how far a comparison is, not too often.
struct Teller<'t> {
    tell: &'t mut dyn FnMut(&Progress) -> bool,
    last: Option<Instant>,
    progress: Progress,
    /// What sinks before this one came to.
    before: Progress,
}

impl Teller<'_> {
    fn begin(&mut self, sink: &str) {
        self.before = self.progress.clone();
        self.before.sink = sink.to_owned();
    }

    /// Forgets what was found of this sink.
    fn restart(&mut self) {
        self.progress = self.before.clone();
    }

    /// This sink has so much more to look at.
    fn expect(&mut self, total: u64) {
        self.progress.total += total;
    }

    /// Says that all is done until `done` of this sink.
    fn tell(
        &mut self,
        (rows, done): (u64, u64),
        total: &Total,
        tally: &Tally,
    ) -> Result<(), CompareError> {
        self.progress.rows += rows;
        self.progress.done = self.before.done + done;
        if self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        self.progress.differences = self.before.differences;
        self.progress.differences.add(&total.counted.differences);
        self.progress.differences.add(tally.differences());
        if (self.tell)(&self.progress) { Ok(()) } else { Err(CompareError::Stopped) }
    }

    fn end(&mut self, differences: &Differences) {
        self.progress.done = self.progress.total;
        self.progress.differences = self.before.differences;
        self.progress.differences.add(differences);
    }
}
