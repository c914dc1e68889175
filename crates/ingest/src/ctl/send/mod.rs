//! `ingestctl send`: a file of events, sent until every one is kept or known not to be.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, BufReader, Read},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    task::LocalSet,
};

use super::{
    Context,
    client::Target,
    fault::{Fault, Verdict},
    public::Compression,
    tail::event_type_name,
};
use crate::config::{Size, Span};

pub(super) mod lines;
mod tally;
mod worker;

use lines::{Batch, Batches};
use tally::Tally;
use worker::Worker;

/// Send a file of events, one JSON object a line, and see that every one is kept
#[derive(Debug, Args)]
#[command(after_help = "\
Lines travel in batches. A batch that the server refuses for now (429, 503, no connection, no
answer) is sent again with the same Idempotency-Key and the same bytes, after what Retry-After
asks for, so that an answer lost on the way does not leave a second copy. Lines that are kept
as dead letters or rejected are named with the reason.

Exit status 1 if a line was rejected, 3 if lines are left unsent.

Examples:
  ingestctl send --key tgk_dev --event-type page_view events.ndjson
  zcat old.ndjson.gz | ingestctl send - --compression zstd
  jq -c '.[]' array.json | ingestctl send --event-type order -
  ingestctl send big.ndjson --idempotency-key import-7      sending it twice leaves one copy")]
pub struct SendArgs {
    /// The file; - for stdin
    file: PathBuf,
    /// The public address of the server
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    /// The tenant's key; better in the variable, which no process list shows
    #[arg(long, env = "TIDEGATE_KEY", hide_env_values = true, default_value = "tgk_dev")]
    key: String,
    /// The type of events that do not name their own in `event_type`
    #[arg(long, value_name = "NAME", value_parser = event_type_name)]
    event_type: Option<String>,
    /// Most events in a request
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batch_events: u32,
    /// Most bytes in a request, before compression
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    batch_bytes: Size,
    /// How bodies are packed: none, gzip or zstd
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    compression: Compression,
    /// How many requests are in flight; with more than one the order of lines is not kept
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// How long a batch is tried before it is given up
    #[arg(long, value_name = "SPAN", default_value = "5m")]
    retry_for: Span,
    /// How long an answer may take
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    timeout: Span,
    /// What the batches' Idempotency-Keys start with; give the same to send a file again
    #[arg(long, value_name = "TEXT", value_parser = idempotency_key)]
    idempotency_key: Option<String>,
    /// Write the ids of acknowledged events here, for `ingestctl audit --journal`
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// HTTP/2
    #[arg(long)]
    http2: bool,
}

fn idempotency_key(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= 200 && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("up to 200 printable ASCII characters without spaces".to_owned())
    }
}

/// What every worker needs.
#[derive(Debug)]
struct Settings {
    target: Target,
    key: String,
    event_type: Option<String>,
    compression: Compression,
    retry_for: Duration,
    timeout: Duration,
    idempotency_key: String,
}

/// Sends, and tells what became of it.
///
/// # Errors
/// [`Fault::Failed`] where the input cannot be read, the server cannot be reached, or refuses all.
pub async fn run(args: SendArgs, context: &Context) -> Result<Verdict, Fault> {
    let target = context.public(&args.url, args.http2)?;
    let (input, size) = open(&args.file)?;
    // Tried once before anything is read: a wrong address is told at once, not after five minutes.
    target.open().await.map_err(|e| unreachable(&target, &e.to_string()))?;
    let settings = Rc::new(Settings {
        target,
        key: args.key,
        event_type: args.event_type,
        compression: args.compression,
        retry_for: args.retry_for.0,
        timeout: args.timeout.0,
        idempotency_key: args.idempotency_key.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
    });
    let tally = Rc::new(RefCell::new(Tally::new(args.journal.as_deref(), size)?));
    let events_max = usize::try_from(args.batch_events).unwrap_or(usize::MAX);
    let batches =
        Batches::new(BufReader::with_capacity(1 << 20, input), events_max, args.batch_bytes.get());
    let started = Instant::now();
    let fatal = drive(batches, args.concurrency, &settings, &tally).await;
    let mut tally = tally.borrow_mut();
    let closed = tally.close();
    let seconds = started.elapsed().as_secs_f64();
    let document = tally.document(&settings.idempotency_key, seconds);
    if context.out.json {
        context.out.document(&document)?;
    } else {
        tally.show(context, seconds)?;
    }
    match (fatal, closed) {
        (Some(fault), _) | (None, Err(fault)) => Err(fault),
        (None, Ok(())) => Ok(Verdict::when(tally.all_kept())),
    }
}

fn unreachable(target: &Target, why: &str) -> Fault {
    Fault::failed(
        format!("cannot reach {}: {why}", target.shown()),
        "check that ingestd runs and that --url (TIDEGATE_URL) is its public address",
    )
}

fn open(path: &std::path::Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Fault> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path).map_err(|e| Fault::file(path, &e))?;
    let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
    Ok((Box::new(file), size))
}

/// What the reading thread hands over.
type Piece = Result<Batch, Fault>;

/// Reads on a thread of its own, sends on this one; the first fault ends it.
async fn drive<R: io::BufRead + Send + 'static>(
    mut batches: Batches<R>,
    concurrency: u16,
    settings: &Rc<Settings>,
    tally: &Rc<RefCell<Tally>>,
) -> Option<Fault> {
    // One batch ahead of each worker: memory is bounded by concurrency and --batch-bytes.
    let (hand, pieces) = mpsc::channel::<Piece>(usize::from(concurrency));
    std::thread::spawn(move || {
        loop {
            let piece = match batches.read() {
                Ok(Some(batch)) => Ok(batch),
                Ok(None) => return,
                Err(fault) => Err(fault),
            };
            let ended = piece.is_err();
            if hand.blocking_send(piece).is_err() || ended {
                return;
            }
        }
    });
    let pieces = Rc::new(tokio::sync::Mutex::new(pieces));
    let stop = Rc::new(Notify::new());
    let local = LocalSet::new();
    for _ in 0..concurrency {
        let worker = Worker::new(Rc::clone(settings), Rc::clone(tally));
        let (pieces, tally, stop) = (Rc::clone(&pieces), Rc::clone(tally), Rc::clone(&stop));
        local.spawn_local(work(worker, pieces, tally, stop));
    }
    local.await;
    // Batches that were read and never taken: said, so that they can be sent later.
    let mut pieces = pieces.lock().await;
    pieces.close();
    while let Some(piece) = pieces.recv().await {
        if let Ok(batch) = piece {
            tally.borrow_mut().unsent(&batch);
        }
    }
    tally.borrow_mut().fatal.take()
}

async fn work(
    mut worker: Worker,
    pieces: Rc<tokio::sync::Mutex<mpsc::Receiver<Piece>>>,
    tally: Rc<RefCell<Tally>>,
    stop: Rc<Notify>,
) {
    while tally.borrow().fatal.is_none() {
        let piece = tokio::select! {
            piece = async { pieces.lock().await.recv().await } => piece,
            // Another worker met what ends it all, and the input may never give another line.
            () = stop.notified() => return,
        };
        let result = match piece {
            None => {
                tally.borrow_mut().input_ended = true;
                return;
            }
            Some(Ok(batch)) => worker.deliver(batch).await,
            Some(Err(fault)) => Err(fault),
        };
        if let Err(fault) = result {
            tally.borrow_mut().fatal.get_or_insert(fault);
            stop.notify_waiters();
            return;
        }
    }
}

/// The parts of a summary that never change their names.
fn counts(names: &[(&str, u64)]) -> serde_json::Map<String, serde_json::Value> {
    names.iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect()
}
