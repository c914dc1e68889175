//! One request from head to answer: the order of the checks is the order of this file.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Version, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use tidegate_event::{ReceivedAt, TenantId};
use tracing::Instrument;

use super::{
    Limits, Timeouts,
    answer::{self, Answer, Kind, Refusal},
    away::{self, Behind, Kept},
    bench::no_memory,
    body::{self, ReadError, ReadLimits},
    coding::{self, Coding},
    connection::Busy,
    grpc, head,
    keyed::{self, PathKey},
    listed,
    login::{self, Coming},
    over,
    problem::Problem,
    protocol::{self, Call, Noted, Notes, Outcomes, Protocol, Sorted, Tells, naming::Naming},
    routing::{self, Next},
    turns::Turns,
    work::{Done, Packed, Work},
};
use crate::{
    books::{Books, Outcome, Unread},
    budget::{Budget, Permit, Share},
    clock::Clock,
    faults::{self, Bug, Point, planted},
    metrics,
    quota::{Account, Admitted, Quotas, Types},
    shed::{Pressure, ShedReason},
    tenants::{Caller, Tenants},
    writer::AppendError,
};

/// What all requests share.
pub(super) struct Shared {
    pub limits: Arc<Limits>,
    pub timeouts: Timeouts,
    pub tenants: Arc<Tenants>,
    pub behind: Behind,
    pub books: Arc<Books>,
    pub clock: Arc<dyn Clock>,
    pub budget: Arc<Budget>,
    /// For bodies that are read before anybody is known.
    pub early: Arc<Budget>,
    /// For bodies that are read before the signature over them is checked.
    pub unproven: Arc<Budget>,
    /// Whose it is what comes without a key, by protocol.
    pub open: BTreeMap<String, TenantId>,
    /// What names the types of events, by protocol.
    pub event_types: Arc<BTreeMap<String, String>>,
    pub pressure: Arc<dyn Pressure>,
    pub quotas: Arc<Quotas>,
    pub draining: AtomicBool,
    pub in_flight: AtomicUsize,
    /// Who is worked on next, of the bodies that are not small.
    pub turns: Turns,
}

impl Shared {
    /// True once no new requests are taken.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How much of a body is read, and how long that may take.
    pub(super) fn read_limits(&self) -> ReadLimits {
        ReadLimits {
            bytes: self.limits.body_bytes.0,
            total: self.timeouts.body.0,
            idle: self.timeouts.body_idle.0,
        }
    }
}

/// Bodies up to this size are worked on at once: to stand in line would cost as much as the work.
const SMALL_BYTES: usize = 16 << 10;
/// Bodies up to this size are worked on where they were read; larger ones on a thread of their own.
const LIGHT_BYTES: usize = 512 << 10;
/// The same for bodies that are compressed.
const LIGHT_CODED_BYTES: usize = 64 << 10;

/// How long a client should stay away from a server that is shutting down.
const DRAINING_FOR: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a client should stay away after an outcome that nobody knows.
const UNKNOWN_FOR: std::time::Duration = std::time::Duration::from_secs(1);
/// How long a client should stay away from a disk that is full or failing.
const STORAGE_FOR: std::time::Duration = std::time::Duration::from_secs(5);

/// What is known of a request while it is answered.
struct Exchange {
    parts: Arc<Parts>,
    request_id: String,
    base_id: [u8; 16],
    protocol: Option<&'static Protocol>,
    account: Option<Account>,
    /// True while bytes of the body may be left on the connection.
    unread: bool,
    /// True where the body would be read over, were the request refused for now.
    passes_over: bool,
    /// How many items there are, once they are counted.
    items: Option<u64>,
    busy: Busy,
    /// The key that stood in the path.
    path_key: Option<PathKey>,
}

/// By how much longer each refusal takes for a client that does not wait as it was told, and how long
/// at most. It costs us nothing, and keeps the processor for those who do.
const PACE: std::time::Duration = std::time::Duration::from_millis(50);
const PACE_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// So many refusals in a row that were not waited for end the connection.
const IMPOLITE_MAX: u32 = 20;

impl Exchange {
    /// What its protocol's answer is made from.
    fn call(&self) -> Call<'_> {
        Call {
            parts: &self.parts,
            request_id: &self.request_id,
            base_id: &self.base_id,
            items: self.items,
        }
    }

    /// Holds back the refusal of a client that did not wait for the last one's time.
    async fn slow_down(&self, refusal: &Refusal) {
        let impolite = self.busy.impolite();
        if impolite != 0 && matches!(refusal.kind, Kind::Shed(..)) {
            // Where others need its place it may be cut off: nothing of it is kept.
            let _closable = self.busy.receiving();
            tokio::time::sleep((PACE * impolite).min(PACE_MAX)).await;
        }
    }
}

/// Answers one request.
pub(super) async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    busy: Busy,
) -> grpc::Sent {
    // Those that come while draining are refused: the end does not wait for them.
    let _leave = (!shared.draining.load(Ordering::SeqCst)).then(|| Leave::enter(&shared));
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let now = shared.clock.now();
    let path_key = keyed::take(&mut parts);
    Notes::begin(&mut parts);
    if !shared.event_types.is_empty() {
        parts.extensions.insert(Naming(Arc::clone(&shared.event_types)));
    }
    Noted::begin(&mut parts, now);
    let parts = Arc::new(parts);
    let base_id = new_id(now);
    let request_id = match head::request_id(&parts.headers) {
        Some(id) => id.to_owned(),
        None => base_id.to_string(),
    };
    let base_id = tidegate_event::record::base_id(base_id.into_bytes());
    let unread = !body.is_end_stream();
    let mut exchange = Exchange {
        parts: Arc::clone(&parts),
        request_id,
        base_id,
        protocol: None,
        account: None,
        unread,
        passes_over: false,
        items: None,
        busy,
        path_key,
    };
    let span = span(&parts, &exchange.request_id);
    let version = parts.version;
    let result = respond(&shared, &parts, body, &mut exchange).instrument(span.clone()).await;
    let mut answer = match result {
        Ok(answer) => answer,
        Err(refusal) => {
            exchange.slow_down(&refusal).await;
            refused(&refusal, &exchange, &span)
        }
    };
    let close = exchange.unread
        || IMPOLITE_MAX <= exchange.busy.impolite()
        || answer.status() == StatusCode::UNAUTHORIZED
        || shared.is_draining();
    if IMPOLITE_MAX <= exchange.busy.impolite() && version == Version::HTTP_2 {
        exchange.busy.ends_connection();
    }
    finish(&mut answer, &exchange, close && version < Version::HTTP_2);
    span.in_scope(|| tracing::debug!(status = answer.status().as_u16(), "request answered"));
    let name = exchange.protocol.map_or("none", |protocol| protocol.name);
    metrics::requests(name, answer.status().as_str(), 1);
    metrics::request_seconds(name, started.elapsed().as_secs_f64());
    grpc::sent(&parts, answer)
}

/// A UUIDv7. Its 74 random bits are drawn without a system call.
fn new_id(now: ReceivedAt) -> uuid::Uuid {
    let millis = u64::try_from(now.0 / 1000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

struct Leave<'a>(&'a Shared);

impl<'a> Leave<'a> {
    fn enter(shared: &'a Shared) -> Self {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn span(parts: &Parts, request_id: &str) -> tracing::Span {
    let (trace_id, parent_id) = head::trace(&parts.headers).unzip();
    tracing::debug_span!("request", request_id, trace_id, parent_id)
}

fn refused(refusal: &Refusal, exchange: &Exchange, span: &tracing::Span) -> Answer {
    let _in_span = span.enter();
    let impolite = exchange.busy.impolite();
    tracing::debug!(code = refusal.code(), detail = ?refusal.detail, impolite, "request refused");
    if let Kind::Shed(reason, _) = refusal.kind {
        metrics::shed_requests(reason.as_str(), 1);
    }
    match exchange.protocol {
        Some(protocol) => (protocol.refuse)(&exchange.call(), refusal),
        None => answer::refuse(&exchange.call(), refusal),
    }
}

fn finish(answer: &mut Answer, exchange: &Exchange, close: bool) {
    let headers = answer.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&exchange.request_id) {
        headers.insert(answer::REQUEST_ID, id);
    }
    if let Some(account) = &exchange.account {
        account.describe(headers);
    }
    if let Some(cors) = exchange.protocol.and_then(|protocol| protocol.cors) {
        cors.describe(&exchange.parts, headers);
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The checks before the body, then the body, the verdicts and the append.
async fn respond(
    shared: &Arc<Shared>,
    parts: &Arc<Parts>,
    body: Incoming,
    exchange: &mut Exchange,
) -> Result<Answer, Refusal> {
    if let Some(detail) = head::too_large(parts, &shared.limits) {
        return Err(Refusal::problem(Problem::HEADERS_TOO_LARGE, detail));
    }
    if parts.version == Version::HTTP_11 && parts.headers.get_all(header::HOST).iter().count() != 1
    {
        return Err(Refusal::problem(Problem::BAD_REQUEST, "HTTP/1.1 needs one Host header"));
    }
    if let Some(answer) = routing::health(shared, parts) {
        return Ok(answer);
    }
    let candidates = match routing::next(shared, parts)? {
        Next::Events(candidates) => candidates,
        Next::Answered(protocol, answer) => {
            exchange.protocol = Some(protocol);
            return Ok(answer);
        }
    };
    let taker = candidates.iter().find(|protocol| (protocol.takes)(parts));
    let first = taker.or(candidates.first()).copied();
    exchange.protocol = first;
    let Some(first) = first else { return Err(routing::nothing_here(parts)) };
    let declared = body.size_hint().exact();
    let shown = (&exchange.busy, exchange.path_key.as_ref());
    let (caller, coming) = login::caller(shared, parts, first, body, shown).await?;
    exchange.busy.is_known(&caller.tenant.id);
    exchange.unread &= !matches!(coming, Coming::Read(_));
    let declared = coming.length().or(declared);
    // From here on no way out, not even a client that hangs up, leaves nothing in the books.
    let mut unread = shared.books.unread(&caller.tenant.id, declared);
    let share = shared.budget.share(&caller.tenant.id, caller.tenant.weight());
    let gated = gate(shared, parts, &caller, &candidates, declared, exchange);
    let (protocol, coding, mut admitted) = match gated {
        Ok(gated) => gated,
        Err(refusal) => {
            pass_over(shared, first, coming, &share, exchange, &refusal).await;
            return Err(refusal);
        }
    };

    admitted.begin_reading();
    let (bytes, permit, coding, length) = receive(shared, coming, coding, &share, exchange).await?;
    exchange.unread = false;
    faults::at(Point::BodyRead);
    unread.set_bytes(length);
    admitted.read(length);
    let types = exchange.account.as_ref().map(Account::types);
    let received_at = shared.clock.now();
    if let Some(question) = protocol::question(protocol, parts) {
        drop(unread.count(received_at, Vec::new()));
        let known = types.as_ref().map(Types::names).unwrap_or_default();
        return question.ask(exchange.call(), (&bytes, coding), caller.event_types(), known);
    }
    let work = Work {
        parts: Arc::clone(parts),
        body: bytes,
        coding,
        protocol,
        caller,
        limits: Arc::clone(&shared.limits),
        received_at,
        base_id: exchange.base_id,
        types,
        permit,
    };
    let done = judged(shared, work).await?;
    settle(shared, (unread, received_at, length), protocol, (done, admitted), exchange).await
}

/// The body, as far as it is not there yet: its bytes, their memory, what they are coded with, and how
/// many were sent.
async fn receive(
    shared: &Shared,
    coming: Coming,
    coding: Coding,
    share: &Share,
    exchange: &Exchange,
) -> Result<(Bytes, Permit, Coding, u64), Refusal> {
    match coming {
        Coming::Unread(body) => {
            let receiving = exchange.busy.receiving();
            let read = body::read(body, shared.read_limits(), share).await;
            drop(receiving);
            let (bytes, permit) = read.map_err(|error| unreadable(&error, share))?;
            let length = bytes.len() as u64;
            if grpc::is_grpc(&exchange.parts) {
                let (bytes, coding) = grpc::message(&exchange.parts, bytes)?;
                return Ok((bytes, permit, coding, length));
            }
            Ok((bytes, permit, coding, length))
        }
        Coming::Signed(body, hash) => {
            let unread = receive(shared, Coming::Unread(body), coding, share, exchange);
            let received = Box::pin(unread).await?;
            login::signed::check(&received.0, &hash).await?;
            Ok(received)
        }
        Coming::Read(early) => {
            // From what nobody is known by to what the tenant may hold.
            let held = share.try_take(early.permit.bytes());
            let permit = held.map_err(|full| no_memory(full, share))?;
            Ok((early.bytes, permit, Coding::Identity, early.length))
        }
    }
}

/// Reads over the body of a refused request, so that its connection may stay.
async fn pass_over(
    shared: &Arc<Shared>,
    protocol: &Protocol,
    coming: Coming,
    share: &Share,
    exchange: &mut Exchange,
    refusal: &Refusal,
) {
    let parts = Arc::clone(&exchange.parts);
    if exchange.passes_over && listed::is_listed(&parts, &coming, refusal) {
        exchange.items = listed::items(shared, &parts, protocol, coming, share).await;
        exchange.unread &= exchange.items.is_none();
        return;
    }
    let (Coming::Unread(body) | Coming::Signed(body, _)) = coming else { return };
    if exchange.unread && over::may_pass(refusal, exchange.passes_over) {
        let (busy, multiplexed) = (&exchange.busy, exchange.parts.version == Version::HTTP_2);
        let refused = over::Refused { body, busy, share, multiplexed };
        exchange.unread = !over::pass(shared, refused).await;
    }
}

/// What can be said with the key known and the body unread.
fn gate(
    shared: &Shared,
    parts: &Parts,
    caller: &Caller,
    candidates: &[&'static Protocol],
    declared: Option<u64>,
    exchange: &mut Exchange,
) -> Result<(&'static Protocol, Coding, Admitted), Refusal> {
    let taker = candidates.iter().copied().find(|protocol| (protocol.takes)(parts));
    if let (Some(protocol), Some(types)) = (taker, caller.event_types())
        && let Some(name) = (protocol.only_type)(parts)
        && !types.contains(&name)
    {
        let detail = format!("this key may not send {name:?}; use another key");
        return Err(Refusal::problem(Problem::TYPES_FORBIDDEN, detail));
    }
    exchange.passes_over = over::is_passed(parts, declared, exchange.busy.impolite());
    let tenant = &caller.tenant;
    let account = exchange.account.insert(shared.quotas.account(tenant));
    if shared.is_draining() {
        return Err(Refusal::shed(ShedReason::Draining, DRAINING_FOR));
    }
    if let Some((reason, after)) = shared.pressure.shed(&tenant.id, exchange.busy.comes_as_told()) {
        exchange.busy.is_sent_away(after);
        return Err(Refusal::shed(reason, after));
    }
    if declared.is_some_and(|bytes| shared.limits.body_bytes.0 < bytes) {
        let error = ReadError::TooLarge { limit: shared.limits.body_bytes.0 };
        return Err(Refusal::problem(Problem::BODY_TOO_LARGE, error.to_string()));
    }
    let expected = usize::try_from(declared.unwrap_or(0)).unwrap_or(usize::MAX);
    let room = match &shared.behind {
        Behind::Here { log, .. } => log.room(&tenant.id, expected),
        Behind::Away(away) => away.room(&tenant.id),
    };
    room.map_err(not_appended)?;
    let line = exchange.busy.line(exchange.passes_over);
    let name = taker.map(|taker| taker.name);
    let admitted = account
        .admit_or_grace(name, declared, line, exchange.busy.patience())
        .map_err(|refused| Refusal::over_quota(&refused))?;
    let Some(protocol) = taker else { return Err(routing::wrong_media_type(parts, candidates)) };
    exchange.protocol = Some(protocol);
    let coding = coding_of(parts)?;
    Ok((protocol, coding, admitted))
}

/// The content coding that the head names, or the protocol.
pub(super) fn coding_of(parts: &Parts) -> Result<Coding, Refusal> {
    if let Some(coding) = protocol::implied_coding(parts) {
        return Ok(coding);
    }
    coding::from_headers(&parts.headers).map_err(|found| {
        let detail =
            format!("the content coding is {found}; one of these is taken: {}", coding::TAKEN);
        Refusal::problem(Problem::CONTENT_CODING, detail)
            .with(header::ACCEPT_ENCODING, HeaderValue::from_static(coding::TAKEN))
    })
}

pub(super) fn unreadable(error: &ReadError, share: &Share) -> Refusal {
    let problem = match error {
        ReadError::TooLarge { .. } => Problem::BODY_TOO_LARGE,
        ReadError::Slow { .. } => Problem::BODY_SLOW,
        ReadError::Full(full) => return no_memory(*full, share),
        ReadError::Cut => Problem::BODY_CUT_SHORT,
    };
    Refusal::problem(problem, error.to_string())
}

/// Has the items judged, here or elsewhere.
async fn judged(shared: &Shared, work: Work) -> Result<Done, Refusal> {
    match &shared.behind {
        Behind::Here { judge, .. } => {
            let judge = Arc::clone(judge);
            run(shared, work, move |work| work.run(&*judge)).await
        }
        Behind::Away(away) => {
            let trace = head::traceparent(&work.parts.headers).map(str::to_owned);
            let packed: Packed = run(shared, work, Work::pack).await?;
            away::judged(&**away, packed, trace).await
        }
    }
}

/// Does what only computes, where and when it is its turn.
async fn run<T: Send + 'static>(
    shared: &Shared,
    work: Work,
    compute: impl FnOnce(Work) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let light = match work.coding {
        Coding::Identity => LIGHT_BYTES,
        Coding::Gzip | Coding::Zstd | Coding::Deflate | Coding::Brotli | Coding::Snappy => {
            LIGHT_CODED_BYTES
        }
    };
    if work.body.len() <= SMALL_BYTES && work.coding == Coding::Identity {
        return compute(work);
    }
    let internal = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a body could not be worked on");
        Refusal::problem(
            Problem::INTERNAL,
            "the server failed to look at the body; nothing was kept",
        )
    };
    let (tenant, bytes) = (&work.caller.tenant, work.body.len() as u64);
    let turn = shared.turns.take(&tenant.id, tenant.weight(), bytes).await;
    let turn = turn.ok_or_else(|| internal(&"there are no turns"))?;
    if work.body.len() <= light {
        let done = compute(work);
        drop(turn);
        return done;
    }
    let task = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        compute(work)
    });
    task.await.map_err(|error| internal(&error))?
}

/// Books, quota, append, answer.
async fn settle(
    shared: &Shared,
    (unread, received_at, bytes): (Unread, ReceivedAt, u64),
    protocol: &'static Protocol,
    (done, admitted): (Done, Admitted),
    exchange: &mut Exchange,
) -> Result<Answer, Refusal> {
    let received: Vec<_> =
        done.types.iter().map(|(name, items)| (name.clone(), items.received)).collect();
    let mut entry = unread.count(received_at, received.clone());
    exchange.items = Some(received.iter().map(|(_, items)| items).sum());
    let Exchange { account, busy, .. } = exchange;
    if let Some(account) = account
        && let Err(refused) = admitted.settle(&received, account, busy.line(true), busy.patience())
        && account.graced(protocol.name, Some(bytes), busy.patience()).is_none()
    {
        entry.shed(refused.reason);
        return Err(Refusal::over_quota(&refused));
    }
    for (name, items) in &done.types {
        for (code, events) in items.rejected.iter() {
            if planted(Bug::OutcomeForgotten) {
                continue;
            }
            entry.settle(name, Outcome::Rejected(code), events);
        }
    }
    let Some(batch) = done.kept else {
        let empty = || Refusal::problem(Problem::BODY_EMPTY, "no event");
        let nothing = done.nothing.ok_or_else(empty)?;
        if protocol.tells == Tells::EachItem {
            let outcomes = Outcomes::nothing(nothing, done.rejected, done.errors);
            return Ok((protocol.encode)(&exchange.call(), &outcomes));
        }
        return Err(nothing.refusal(done.errors, done.errors_truncated));
    };
    let kept = batch.count();
    faults::at(Point::Decoded);
    let appending = match (batch, &shared.behind) {
        (Kept::Here(batch), Behind::Here { log, .. }) => log.append(batch, entry),
        (Kept::Away(keep, _), _) => keep.keep(entry, bytes),
        // Nobody makes one without the other.
        (Kept::Here(_), Behind::Away(_)) => {
            entry.shed(ShedReason::Storage);
            Box::pin(std::future::ready(Err(AppendError::Storage)))
        }
    };
    let appended = hold(appending, done.permit).await.map_err(not_appended)?;
    faults::at(Point::BeforeAnswer);
    let Done { dead, rejected, errors, errors_truncated, .. } = done;
    let sorted = Sorted { kept, rejected, dead, errors, errors_truncated };
    Ok((protocol.encode)(&exchange.call(), &Outcomes::of(sorted, appended)))
}

pub(super) fn not_appended(error: AppendError) -> Refusal {
    let after = match error {
        AppendError::Full { retry_after }
        | AppendError::Lane { retry_after }
        | AppendError::Memory { retry_after }
        | AppendError::Unreachable { retry_after } => retry_after,
        AppendError::Storage => STORAGE_FOR,
        AppendError::Draining => DRAINING_FOR,
        AppendError::Unknown => UNKNOWN_FOR,
    };
    Refusal::shed(error.reason(), after)
}

/// Waits with the batch's memory still taken.
async fn hold<T>(future: impl Future<Output = T>, permit: Permit) -> T {
    let output = future.await;
    drop(permit);
    output
}
