//! Elasticsearch and OpenSearch: documents created in data streams by bulks (docs/elasticsearch.md).
//!
//! | file | purpose |
//! | --- | --- |
//! | `config` | what `[sink.options]` may hold |
//! | `client` | HTTP: a request, an answer of bounded size |
//! | `names` | which lane goes into which data stream |
//! | `streams` | looks at the server, its template and data streams, and makes them |
//! | `document` | rows as the lines of a bulk |
//! | `verdict` | what an answer means for each document |
//! | `doubt` | which documents are there, after an outcome that nobody knows |
//!
//! Exactly once, in short: a document's id is its event's place in the log, and `create` refuses an id that is there, as
//! far as the one index goes that is written to. Before documents are sent that may have been sent before (a lane's
//! first of a process, and the next after every failure, until one is not there) the whole stream is asked for their
//! ids, and only what is missing is sent.

mod client;
mod config;
mod document;
mod doubt;
mod names;
mod streams;
mod verdict;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use reqwest::{Method, StatusCode};
use tidegate_event::Partition;

use super::{
    Lane, LaneRows, Sink, SinkConfig, SinkConfigError, SinkContext, SinkKind, WriteError,
    lake::{
        self, Schemas,
        table::{self, FilePlan},
    },
    shadow,
};
use client::{Body, Client, Request};
use config::Settings;
use document::{Chunk, Documents};
use streams::Streams;
use verdict::Verdict;

pub(super) const KIND: SinkKind = SinkKind {
    name: "elasticsearch",
    check: |config| Settings::read(config).map(drop),
    open: |config, context| Ok(Arc::new(Elasticsearch::open(config, context)?)),
    shadow: |config, _| {
        let settings = Settings::read(config)?;
        let stream = match config.options.get("stream").and_then(toml::Value::as_str) {
            Some(stream) => format!("{stream}{}", config.suffix),
            None => format!("{}{}", config::STREAM, config.suffix),
        };
        let shown = format!("{}: {stream}", settings.url);
        config.options.insert("stream".to_owned(), stream.into());
        Ok(shown)
    },
    side_by_side: false,
};

/// The answer to a bulk of 10,000 documents, each refused in many words.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Bulks are no smaller than this, so that small windows do not make many.
const BULK_BYTES_LEAST: usize = 1 << 20;
/// How often documents that a busy server did not take are sent again before the runner takes over.
const TRIES_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Which lanes' last write is known to be done; all others are asked about first.
type Settled = HashSet<(Partition, Lane)>;

/// Creates documents.
pub struct Elasticsearch {
    name: String,
    client: Client,
    settings: Settings,
    schemas: Arc<dyn Schemas>,
    streams: Streams,
    settled: Mutex<Settled>,
}

/// One write on its way: where to, and what it has found out so far.
struct Attempt {
    stream: String,
    opaque_id: String,
    /// Something may have been sent before.
    doubt: bool,
    /// Some of it was there.
    found: bool,
    guilty: Vec<(usize, String)>,
    tries: u32,
}

impl Elasticsearch {
    fn open(config: &SinkConfig, context: &SinkContext) -> Result<Self, SinkConfigError> {
        let settings = Settings::read(config)?;
        Ok(Self {
            name: config.name.clone(),
            client: Client::open(&settings, context.runtime.clone())?,
            settings,
            schemas: Arc::clone(&context.schemas),
            streams: Streams::default(),
            settled: Mutex::default(),
        })
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, rows: &LaneRows<'_>, doubt: bool) -> Attempt {
        let LaneRows { log_id, partition, lane, .. } = rows;
        let dead = if lane.dead { "dead/" } else { "" };
        Attempt {
            stream: names::stream(&self.settings.stream, lane),
            opaque_id: format!(
                "tidegate/{}/{log_id}/{}/{dead}{}/{}",
                self.name, partition.0, lane.tenant, lane.event_type
            ),
            doubt,
            found: false,
            guilty: Vec::new(),
            tries: 0,
        }
    }

    /// Puts the rows of one schema into the stream.
    fn put(
        &self,
        rows: &LaneRows<'_>,
        plan: &FilePlan,
        attempt: &mut Attempt,
    ) -> Result<(), WriteError> {
        let schema = lake::splitter(&*self.schemas, rows, plan)?;
        let made = match table::build(rows, plan, schema.as_deref()) {
            Ok(made) => made,
            Err(rows) => return Err(WriteError::Reject { rows }),
        };
        // A bulk is at most as large as the window it comes from, which memory was set aside for.
        let window = rows.rows.iter().map(super::rows::Row::bytes).sum::<u64>();
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        let bytes_max = self.settings.bulk_bytes.min(window.max(BULK_BYTES_LEAST));
        let mut documents = Documents::of(rows, plan, &made.table, bytes_max);
        let fault = |e: std::io::Error| WriteError::Retry { cause: e.to_string() };
        while let Some(chunk) = documents.chunk().map_err(fault)? {
            let mut left: Vec<usize> = (0..chunk.documents.len()).collect();
            let mut doubt = attempt.doubt;
            while !left.is_empty() {
                if doubt {
                    self.keep_missing(&chunk, &mut left, attempt)?;
                }
                (left, doubt) = self.send(&chunk, &left, attempt)?;
            }
        }
        Ok(())
    }

    /// Takes out of `left` what is in the stream already.
    fn keep_missing(
        &self,
        chunk: &Chunk,
        left: &mut Vec<usize>,
        attempt: &mut Attempt,
    ) -> Result<(), WriteError> {
        doubt::at_rest(&self.client, &attempt.opaque_id)?;
        let id = |place: &usize| chunk.documents.get(*place).map(|document| document.id.as_str());
        let ids: Vec<&str> = left.iter().filter_map(id).collect();
        let present = doubt::present(&self.client, &attempt.stream, &ids)?;
        attempt.found |= !present.is_empty();
        left.retain(|place| id(place).is_none_or(|id| !present.contains(id)));
        Ok(())
    }

    /// Sends some documents; those that are to be sent again, and whether they may be there all the same.
    fn send(
        &self,
        chunk: &Chunk,
        which: &[usize],
        attempt: &mut Attempt,
    ) -> Result<(Vec<usize>, bool), WriteError> {
        if which.is_empty() {
            return Ok((Vec::new(), false));
        }
        let stream = attempt.stream.clone();
        let retry = |cause: String| WriteError::Retry { cause: format!("{stream}: {cause}") };
        let request = Request {
            method: Method::POST,
            path: &[&stream, "_bulk"],
            query: &[("filter_path", verdict::FILTER)],
            body: Body::Lines(chunk.lines_of(which)),
            opaque_id: Some(&attempt.opaque_id),
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        let answer = self.client.ask(request).map_err(|unknown| retry(unknown.to_string()))?;
        match answer.status {
            StatusCode::OK => {
                let verdicts = verdict::of(&answer, &stream, which.len())
                    .map_err(|unknown| retry(unknown.to_string()))?;
                Self::settle(chunk, which, verdicts, attempt)
            }
            StatusCode::PAYLOAD_TOO_LARGE => self.halve(chunk, which, answer.words(), attempt),
            StatusCode::TOO_MANY_REQUESTS => {
                pause(attempt, answer.words())?;
                Ok((which.to_vec(), false))
            }
            _ => Err(retry(answer.words())),
        }
    }

    /// Goes through what became of each document that was sent.
    fn settle(
        chunk: &Chunk,
        which: &[usize],
        verdicts: Vec<Verdict>,
        attempt: &mut Attempt,
    ) -> Result<(Vec<usize>, bool), WriteError> {
        let (mut again, mut unsure, mut trouble, mut hold) = (Vec::new(), false, None, None);
        for (place, verdict) in which.iter().zip(verdicts) {
            match verdict {
                Verdict::Stored => {}
                Verdict::Again(cause) => {
                    again.push(*place);
                    trouble.get_or_insert(cause);
                }
                Verdict::Doubt(cause) => {
                    again.push(*place);
                    unsure = true;
                    trouble.get_or_insert(cause);
                }
                Verdict::Guilty(cause) => attempt.blame(chunk, *place, cause),
                Verdict::Hold(cause) => {
                    hold.get_or_insert(format!("{}: {cause}", attempt.stream));
                }
                Verdict::Astray(cause) => return Err(WriteError::Conflict { cause }),
            }
        }
        if let Some(cause) = hold {
            return Err(WriteError::Retry { cause });
        }
        if let Some(cause) = trouble {
            pause(attempt, cause)?;
        }
        Ok((again, unsure))
    }

    /// Sends each half by itself: what a server, or a proxy before it, finds too large.
    fn halve(
        &self,
        chunk: &Chunk,
        which: &[usize],
        cause: String,
        attempt: &mut Attempt,
    ) -> Result<(Vec<usize>, bool), WriteError> {
        if let [place] = which {
            attempt.blame(chunk, *place, cause);
            return Ok((Vec::new(), false));
        }
        let (first, second) = which.split_at(which.len() / 2);
        let (mut again, unsure) = self.send(chunk, first, attempt)?;
        let (more, also) = self.send(chunk, second, attempt)?;
        again.extend(more);
        Ok((again, unsure || also))
    }
}

impl Attempt {
    fn blame(&mut self, chunk: &Chunk, place: usize, cause: String) {
        self.guilty.extend(chunk.documents.get(place).map(|document| (document.row, cause)));
    }
}

/// Lets a busy server be for a while, each time longer.
///
/// # Errors
/// [`WriteError::Retry`] when that was often enough.
fn pause(attempt: &mut Attempt, cause: String) -> Result<(), WriteError> {
    attempt.tries += 1;
    if TRIES_MAX <= attempt.tries {
        return Err(WriteError::Retry { cause: format!("{}: {cause}", attempt.stream) });
    }
    thread::sleep(PAUSE_FIRST * 2u32.pow(attempt.tries - 1));
    Ok(())
}

impl Sink for Elasticsearch {
    fn exchange(&self) -> Result<&dyn crate::sink::exchange::Exchange, &'static str> {
        Err(
            "a data stream takes documents and replaces none: point its readers at the shadow's streams, or name other sinks with --sink",
        )
    }

    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        shadow::refuse_shadows_names(rows)?;
        let lane = (rows.partition, rows.lane.clone());
        // Whatever happens now, this lane is asked about next time unless it ends well.
        let doubt = !self.settled().remove(&lane);
        let mut attempt = self.attempt(rows, doubt);
        self.streams.ensure(&self.client, &self.settings, &attempt.stream)?;
        for plan in document::plans(rows) {
            match self.put(rows, &plan, &mut attempt) {
                Ok(()) => {}
                Err(WriteError::Reject { rows }) => attempt.guilty.extend(rows),
                Err(other) => {
                    self.streams.forget(&attempt.stream);
                    return Err(other);
                }
            }
        }
        if attempt.guilty.is_empty() {
            // Behind documents that were there already there may be more, of windows that were cut otherwise: those of
            // a cursor that was set back. A lane is written in order, so what is not there ends them.
            if !attempt.found {
                self.settled().insert(lane);
            }
            return Ok(());
        }
        attempt.guilty.sort_unstable_by_key(|(index, _)| *index);
        Err(WriteError::Reject { rows: attempt.guilty })
    }

    fn begins_with(&self, partition: Partition) {
        self.settled().retain(|(of, _)| *of != partition);
    }

    fn probe(&self) -> Result<(), String> {
        streams::product(&self.client).map_err(|cause| format!("{}: {cause}", self.settings.url))
    }
}
