//! One connection under load: takes the next request that is due, sends it, notes what came back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use tokio::sync::Semaphore;

use super::{
    payload::{ID_CHARS, Template, write_id, write_type},
    protocol::Protocol,
    stall::Stalls,
    stats::{Let, Stats},
};
use crate::ctl::{
    admin::describe,
    client::{NoAnswer, Reply, Sender, Target, request},
    fault::Fault,
    journal::{Entry, Journal},
    public::{Compression, Kept, asks_again, retry_after, wait},
};

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// A body ready to send, or to have its ids written into.
#[derive(Clone, Debug)]
pub struct Body {
    /// What it is made from.
    pub template: Template,
    /// Packed; only where it has no ids.
    pub packed: Bytes,
}

/// What a client does with a request that is refused for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Gives it up.
    GivenUp,
    /// Sends it again, until it is kept: after Retry-After and a little more.
    Again,
    /// Sends it again after exactly as long as Retry-After says, and counts what came of it; gives it
    /// up where the answer does not say.
    AsTold,
}

/// What all connections share.
#[derive(Debug)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// In which protocol.
    pub protocol: &'static Protocol,
    /// The tenants' names, where told, and the values of `Authorization`; used in turn.
    pub keys: Vec<(Option<String>, HeaderValue)>,
    /// The names of the event types.
    pub event_types: Vec<String>,
    /// How bodies are packed.
    pub compression: Compression,
    /// The bodies; used in turn.
    pub bodies: Arc<[Body]>,
    /// The last body of a run of so many events, where it is shorter.
    pub tail: Option<Body>,
    /// Whole requests there are to send, the tail included.
    pub requests: u64,
    /// Time between two requests; `None`: the next as soon as the last is answered.
    pub interval: Option<Duration>,
    /// When the first is due.
    pub start: Instant,
    /// When no more are sent.
    pub end: Option<Instant>,
    /// Names this run in ids.
    pub run: u64,
    /// What becomes of requests that are refused for now.
    pub refused: Refused,
    /// A connection is closed after so many requests.
    pub reconnect_after: Option<u64>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The next request's number.
    pub next: AtomicU64,
    /// One permit for each request that is due, where there is an interval.
    pub due: Semaphore,
    /// True once nothing more is to be sent.
    pub stop: AtomicBool,
    /// Where acknowledged ids go.
    pub journal: Option<Mutex<Journal>>,
    /// What ended the run early.
    pub fault: Mutex<Option<Fault>>,
    /// When the load itself stood still; latencies that such a time is part of are counted apart.
    pub stalls: Option<Arc<Stalls>>,
}

/// Locks; a thread that died holding it left nothing half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan {
    /// True once nothing more is to be sent.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Ends the run: wakes everyone who waits for a request to be due.
    pub fn finish(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.due.close();
    }

    /// Ends the run because of `fault`.
    pub fn fail(&self, fault: Fault) {
        lock(&self.fault).get_or_insert(fault);
        self.finish();
    }

    /// When request `number` is due, in an open loop.
    pub fn due_at(&self, number: u64) -> Option<Instant> {
        let nanos = self.interval?.as_nanos() * u128::from(number);
        Some(self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// The number of the next request and when it was due; `None` at the end.
    async fn take(&self) -> Option<(u64, Instant)> {
        if self.interval.is_some() {
            self.due.acquire().await.ok()?.forget();
        }
        if self.is_over() {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.requests {
            return None;
        }
        Some((number, self.due_at(number).unwrap_or_else(Instant::now)))
    }

    fn body(&self, number: u64) -> Option<&Body> {
        if number + 1 == self.requests
            && let Some(tail) = &self.tail
        {
            return Some(tail);
        }
        let len = u64::try_from(self.bodies.len()).ok()?;
        self.bodies.get(usize::try_from(number.checked_rem(len)?).ok()?)
    }

    /// The number of the first id of request `number`.
    fn first_id(&self, number: u64) -> u64 {
        let each = self.bodies.first().map_or(0, |b| b.template.types.len());
        number.wrapping_mul(each as u64)
    }
}

/// A connection and how many requests it has carried.
#[derive(Debug)]
struct Connection {
    sender: Sender,
    carried: u64,
}

/// Sends until the run is over; connections that end are opened again.
pub async fn work(plan: Arc<Plan>, stats: Arc<Mutex<Stats>>) {
    let mut connection = None;
    while let Some((number, due)) = plan.take().await {
        if let Err(fault) = deliver(&plan, &stats, &mut connection, number, due).await {
            plan.fail(fault);
            return;
        }
    }
}

async fn deliver(
    plan: &Plan,
    stats: &Mutex<Stats>,
    connection: &mut Option<Connection>,
    number: u64,
    due: Instant,
) -> Result<(), Fault> {
    let Some(body) = plan.body(number) else { return Ok(()) };
    let bytes = filled(plan, body, number)?;
    let events = body.template.types.len();
    let mut tries = 0;
    let mut waited = false;
    loop {
        if !connect(plan, stats, connection).await {
            return Ok(());
        }
        let Some(open) = connection.as_mut() else { return Ok(()) };
        let request = build(plan, number, &bytes)?;
        let result = open.sender.ask(request, plan.timeout).await;
        open.carried += 1;
        let worn = plan.reconnect_after.is_some_and(|most| most <= open.carried);
        if worn || result.is_err() {
            *connection = None;
        }
        tries += 1;
        let next = {
            let mut stats = lock(stats);
            stats.sent += events as u64;
            stats.requests += 1;
            let sent = Sent { number, due, body, bytes: bytes.len() };
            let next = match result {
                Ok(reply) => answered(plan, &mut stats, &reply, &sent)?,
                Err(no_answer) => {
                    *stats.errors.entry(no_answer.kind()).or_default() += 1;
                    // What became of it is unknown; with --retry the same ids are sent again.
                    Next::Later(None)
                }
            };
            stats.waited += u64::from(waited);
            stats.waited_let_in += u64::from(waited && !matches!(next, Next::Later(_)));
            next
        };
        let wait = match (next, plan.refused) {
            (Next::Later(asked), Refused::Again) => wait(tries, asked, rand::random()),
            (Next::Later(Some(asked)), Refused::AsTold) => asked,
            _ => return Ok(()),
        };
        if !pause(plan, wait).await {
            return Ok(());
        }
        waited = plan.refused == Refused::AsTold;
        lock(stats).retries += 1;
    }
}

/// A request that was sent.
struct Sent<'a> {
    number: u64,
    due: Instant,
    body: &'a Body,
    /// As they went over the wire.
    bytes: usize,
}

/// What becomes of a request after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It was kept.
    Kept,
    /// It never will be.
    Never,
    /// It is to be sent again, after what Retry-After asks for.
    Later(Option<Duration>),
}

/// Notes an answer.
fn answered(plan: &Plan, stats: &mut Stats, reply: &Reply, sent: &Sent<'_>) -> Result<Next, Fault> {
    *stats.codes.entry(reply.status.as_u16()).or_default() += 1;
    let now = Instant::now();
    stats.last = Some(now);
    if plan.stalls.as_ref().is_some_and(|stalls| stalls.between(sent.due, now)) {
        stats.stalled += 1;
    } else {
        stats.took(now.saturating_duration_since(sent.due), reply.status == StatusCode::OK);
    }
    let shed = matches!(reply.status.as_u16(), 429 | 503);
    let since = now.saturating_duration_since(plan.start);
    if !shed {
        stats.let_in(since, Let { events: 0, bytes: sent.bytes as u64 });
    }
    if reply.status == StatusCode::OK {
        let kept = (plan.protocol.read)(&reply.body)?;
        stats.let_in(since, Let { events: kept.durable(), bytes: 0 });
        stats.keep(&kept, sent.body.template.bytes.len() as u64);
        stats.unjournaled += journal(plan, &kept, sent.number, sent.body)?;
        return Ok(Next::Kept);
    }
    let hopeless = matches!(reply.status.as_u16(), 401 | 404 | 405 | 415);
    if hopeless && stats.kept.durable() == 0 {
        return Err(Fault::failed(
            format!("{}: {}", plan.target.shown(), describe(reply)),
            "check --key (TIDEGATE_KEY) and that --url (TIDEGATE_URL) is the public address",
        ));
    }
    if let Some(reason) = reply.headers.get("x-shed-reason").and_then(|v| v.to_str().ok()) {
        *stats.shed.entry(reason.to_owned()).or_default() += 1;
    }
    let told = retry_after(&reply.headers);
    stats.untold += u64::from(shed && told.is_none());
    Ok(if asks_again(reply.status) { Next::Later(told) } else { Next::Never })
}

/// Writes the ids of what was acknowledged; tells how many could not be, the answer not naming them.
fn journal(plan: &Plan, kept: &Kept, number: u64, body: &Body) -> Result<u64, Fault> {
    let Some(journal) = &plan.journal else { return Ok(0) };
    let Some(indexes) = kept.acknowledged(body.template.types.len()) else {
        return Ok(kept.durable());
    };
    let tenant = key(plan, number).and_then(|(tenant, _)| tenant.as_deref());
    let first = plan.first_id(number);
    let mut journal = lock(journal);
    for index in indexes {
        let kind = body.template.types.get(index).copied().unwrap_or(0);
        let mut id = [0_u8; ID_CHARS];
        write_id(plan.run, first + index as u64, &mut id);
        journal.add(&Entry {
            tenant: tenant.map(Into::into),
            event_type: plan.event_types.get(kind).map(Into::into),
            event_id: String::from_utf8_lossy(&id),
        })?;
    }
    Ok(0)
}

/// The body with this request's ids in it.
fn filled(plan: &Plan, body: &Body, number: u64) -> Result<Bytes, Fault> {
    if body.template.is_fixed() {
        return Ok(body.packed.clone());
    }
    let mut bytes = body.template.bytes.clone();
    let first = plan.first_id(number);
    for (places, write) in [
        (&body.template.ids, write_id as fn(u64, u64, &mut [u8])),
        (&body.template.fresh, write_type),
    ] {
        for (id, place) in (first..).zip(places) {
            if let Some(space) = bytes.get_mut(*place..place + ID_CHARS) {
                write(plan.run, id, space);
            }
        }
    }
    plan.compression.pack(bytes)
}

/// Sees that there is a connection, trying until there is; false once the run is over.
async fn connect(plan: &Plan, stats: &Mutex<Stats>, connection: &mut Option<Connection>) -> bool {
    let mut pause = RECONNECT_MIN;
    while connection.as_ref().is_none_or(|open| open.sender.is_closed()) {
        if plan.is_over() {
            return false;
        }
        match plan.target.open().await {
            Ok(sender) => *connection = Some(Connection { sender, carried: 0 }),
            Err(no_answer @ (NoAnswer::Connect(_) | NoAnswer::Cut(_) | NoAnswer::Timeout(_))) => {
                *lock(stats).errors.entry(no_answer.kind()).or_default() += 1;
                self::pause(plan, pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        }
    }
    true
}

/// Waits, but not past the end of the run; false once it is over.
async fn pause(plan: &Plan, span: Duration) -> bool {
    let until = Instant::now() + span;
    while !plan.is_over() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
    false
}

fn key(plan: &Plan, number: u64) -> Option<&(Option<String>, HeaderValue)> {
    let len = u64::try_from(plan.keys.len()).ok()?;
    plan.keys.get(usize::try_from(number.checked_rem(len)?).ok()?)
}

fn build(plan: &Plan, number: u64, body: &Bytes) -> Result<Request<Full<Bytes>>, Fault> {
    let mut builder = request(&plan.target, Method::POST, plan.protocol.path)
        .header(header::CONTENT_TYPE, HeaderValue::from_static(plan.protocol.content_type));
    if let Some((_, key)) = key(plan, number) {
        builder = builder.header(header::AUTHORIZATION, key.clone());
    }
    if let Some(coding) = plan.compression.header() {
        builder = builder.header(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    builder
        .body(Full::new(body.clone()))
        .map_err(|e| Fault::Usage(format!("cannot make a request: {e}")))
}
