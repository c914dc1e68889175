//! One request from head to answer: the order of the checks is the order of this file.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{HeaderValue, Method, Request, StatusCode, Version, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use tidegate_event::ReceivedAt;
use tracing::Instrument;

use super::{
    Limits, Timeouts,
    answer::{self, Answer, ItemError, Kind, Refusal},
    away::{self, Behind, Kept},
    bench::no_memory,
    body::{self, ReadError, ReadLimits},
    coding::{self, Coding},
    connection::Busy,
    head::{self, Credentials},
    over,
    problem::Problem,
    protocol::{self, Outcomes, Protocol, Routed},
    turns::Turns,
    work::{Done, Packed, Work},
};
use crate::{
    books::{Books, Outcome, Unread},
    budget::{Budget, Permit, Share},
    clock::Clock,
    faults::{self, Bug, Point, planted},
    metrics,
    quota::{Account, Admitted, Quotas},
    shed::{Pressure, ShedReason},
    tenants::{Caller, Tenants},
    writer::{AppendError, Appended},
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
    fn read_limits(&self) -> ReadLimits {
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
    request_id: String,
    base_id: [u8; 16],
    protocol: Option<&'static Protocol>,
    account: Option<Account>,
    /// True while bytes of the body may be left on the connection.
    unread: bool,
    /// True where the body would be read over, were the request refused for now.
    passes_over: bool,
    busy: Busy,
}

/// By how much longer each refusal takes for a client that does not wait as it was told, and how long
/// at most. It costs us nothing, and keeps the processor for those who do.
const PACE: std::time::Duration = std::time::Duration::from_millis(50);
const PACE_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// So many refusals in a row that were not waited for end the connection.
const IMPOLITE_MAX: u32 = 20;

impl Exchange {
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
pub(super) async fn serve(shared: Arc<Shared>, request: Request<Incoming>, busy: Busy) -> Answer {
    // Those that come while draining are refused: the end does not wait for them.
    let _leave = (!shared.draining.load(Ordering::SeqCst)).then(|| Leave::enter(&shared));
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let base_id = new_id(shared.clock.now());
    let request_id = match head::request_id(&parts.headers) {
        Some(id) => id.to_owned(),
        None => base_id.to_string(),
    };
    let base_id = tidegate_event::record::base_id(base_id.into_bytes());
    let unread = !body.is_end_stream();
    let (protocol, account) = (None, None);
    let passes_over = false;
    let mut exchange =
        Exchange { request_id, base_id, protocol, account, unread, passes_over, busy };
    let span = span(&parts, &exchange.request_id);
    let version = parts.version;
    let result = respond(&shared, parts, body, &mut exchange).instrument(span.clone()).await;
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
    answer
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
        Some(protocol) => (protocol.refuse)(refusal, &exchange.request_id),
        None => answer::refuse(refusal, &exchange.request_id),
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
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The checks before the body, then the body, the verdicts and the append.
async fn respond(
    shared: &Arc<Shared>,
    parts: Parts,
    body: Incoming,
    exchange: &mut Exchange,
) -> Result<Answer, Refusal> {
    if let Some(detail) = head::too_large(&parts, &shared.limits) {
        return Err(Refusal::problem(Problem::HEADERS_TOO_LARGE, detail));
    }
    if parts.version == Version::HTTP_11 && parts.headers.get_all(header::HOST).iter().count() != 1
    {
        return Err(Refusal::problem(Problem::BAD_REQUEST, "HTTP/1.1 needs one Host header"));
    }
    if let Some(answer) = health(shared, &parts) {
        return Ok(answer);
    }
    let candidates = route(&parts)?;
    let taker = candidates.iter().find(|protocol| (protocol.takes)(&parts));
    let first = taker.or(candidates.first()).copied();
    exchange.protocol = first;
    let Some(first) = first else { return Err(nothing_here(&parts)) };
    let declared = body.size_hint().exact();
    let caller = match authenticate(shared, &parts, first) {
        Err(refusal) if planted(Bug::KeyAfterBody) => {
            let _read = body::read(body, shared.read_limits(), &shared.budget.unshared()).await;
            return Err(refusal);
        }
        known => known?,
    };
    exchange.busy.is_known(&caller.tenant.id);
    // From here on no way out, not even a client that hangs up, leaves nothing in the books.
    let mut unread = shared.books.unread(&caller.tenant.id, declared);
    let share = shared.budget.share(&caller.tenant.id, caller.tenant.weight());
    let multiplexed = parts.version == Version::HTTP_2;
    let gated = gate(shared, &parts, &caller, &candidates, declared, exchange);
    let (protocol, coding, mut admitted) = match gated {
        Ok(gated) => gated,
        Err(refusal) => {
            if exchange.unread && over::may_pass(&refusal, exchange.passes_over) {
                let busy = &exchange.busy;
                let refused = over::Refused { body, busy, share: &share, multiplexed };
                exchange.unread = !over::pass(shared, refused).await;
            }
            return Err(refusal);
        }
    };

    admitted.begin_reading();
    let receiving = exchange.busy.receiving();
    let read = body::read(body, shared.read_limits(), &share).await;
    drop(receiving);
    let (bytes, permit) = read.map_err(|error| unreadable(&error, &share))?;
    exchange.unread = false;
    faults::at(Point::BodyRead);
    let length = bytes.len() as u64;
    unread.set_bytes(length);
    admitted.read(length);
    let types = exchange.account.as_ref().map(Account::types);
    let received_at = shared.clock.now();
    let work = Work {
        parts,
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

fn health(shared: &Shared, parts: &Parts) -> Option<Answer> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return None;
    }
    let well = match parts.uri.path() {
        "/healthz" => true,
        "/readyz" => !shared.is_draining() && shared.pressure.ready(),
        _ => return None,
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Some(answer::json(status, "application/json", &serde_json::json!({ "ok": well })))
}

fn nothing_here(parts: &Parts) -> Refusal {
    let path: String = parts.uri.path().chars().take(100).collect();
    Refusal::problem(Problem::NO_SUCH_PATH, format!("nothing at {path:?}; events go to /v1/events"))
}

fn route(parts: &Parts) -> Result<Vec<&'static Protocol>, Refusal> {
    let path = parts.uri.path();
    if matches!(path, "/healthz" | "/readyz") {
        return Err(wrong_method(&[&Method::GET, &Method::HEAD]));
    }
    match protocol::route(&parts.method, path) {
        Routed::Protocols(protocols) => Ok(protocols),
        Routed::WrongMethod(methods) => Err(wrong_method(&methods)),
        Routed::Nothing => Err(nothing_here(parts)),
    }
}

fn wrong_method(methods: &[&Method]) -> Refusal {
    let list: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
    let list = list.join(", ");
    let refusal = Refusal::problem(Problem::METHOD, format!("this path takes {list}"));
    match HeaderValue::from_str(&list) {
        Ok(value) => refusal.with(header::ALLOW, value),
        Err(_) => refusal,
    }
}

fn authenticate(shared: &Shared, parts: &Parts, protocol: &Protocol) -> Result<Caller, Refusal> {
    let (problem, detail) = match (protocol.key)(parts) {
        Credentials::Key(key) => match shared.tenants.authenticate(key) {
            Ok(caller) => return Ok(caller),
            // Whether it is unknown, expired or disabled is not for everybody to know.
            Err(error) => {
                tracing::debug!(%error, "key refused");
                (Problem::KEY_INVALID, "the key is not known here, or is live no more")
            }
        },
        Credentials::Missing => {
            (Problem::KEY_MISSING, "send the key as `Authorization: Bearer <key>` or `X-Api-Key`")
        }
        Credentials::Conflict => (Problem::KEY_CONFLICT, "send one key, in one place"),
    };
    let challenge = HeaderValue::from_static("Bearer realm=\"tidegate\"");
    Err(Refusal::problem(problem, detail).with(header::WWW_AUTHENTICATE, challenge))
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
    let admitted = account
        .admit(declared, line, exchange.busy.patience())
        .map_err(|refused| Refusal::over_quota(&refused))?;
    let Some(protocol) = taker else { return Err(wrong_media_type(parts, candidates)) };
    exchange.protocol = Some(protocol);
    let coding = coding::from_headers(&parts.headers).map_err(|found| {
        let detail =
            format!("the content coding is {found}; one of these is taken: {}", coding::TAKEN);
        Refusal::problem(Problem::CONTENT_CODING, detail)
            .with(header::ACCEPT_ENCODING, HeaderValue::from_static(coding::TAKEN))
    })?;
    Ok((protocol, coding, admitted))
}

fn wrong_media_type(parts: &Parts, candidates: &[&'static Protocol]) -> Refusal {
    let found = parts.headers.get(header::CONTENT_TYPE).map_or_else(
        || "there is no Content-Type".to_owned(),
        |value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            format!("the Content-Type is {:?}", text.chars().take(100).collect::<String>())
        },
    );
    let taken: Vec<&str> = candidates.iter().map(|protocol| protocol.media_types).collect();
    let detail = format!("{found}; taken here, in UTF-8: {}", taken.join(", "));
    Refusal::problem(Problem::MEDIA_TYPE, detail)
        .with(header::ACCEPT_ENCODING, HeaderValue::from_static(coding::TAKEN))
}

fn unreadable(error: &ReadError, share: &Share) -> Refusal {
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
        Coding::Gzip | Coding::Zstd | Coding::Deflate | Coding::Brotli => LIGHT_CODED_BYTES,
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
    let Exchange { account, busy, .. } = exchange;
    if let Some(account) = account
        && let Err(refused) = admitted.settle(&received, account, busy.line(true), busy.patience())
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
        let nothing = done.nothing.map(|n| n.refusal(done.errors, done.errors_truncated));
        return Err(nothing.unwrap_or_else(|| Refusal::problem(Problem::BODY_EMPTY, "no event")));
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
    let outcomes = outcomes(&appended, kept, done.dead, done.rejected, done.errors);
    Ok((protocol.encode)(&Outcomes {
        request_id: exchange.request_id.clone(),
        errors_truncated: done.errors_truncated,
        ..outcomes
    }))
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

/// An event known already by its id counts as that and as nothing else.
fn outcomes(
    appended: &Appended,
    kept: u64,
    dead: Vec<u32>,
    rejected: u64,
    mut errors: Vec<ItemError>,
) -> Outcomes {
    let known = &appended.deduplicated;
    let is_known = |index: &u32| known.binary_search(index).is_ok();
    let dead_lettered = dead.iter().filter(|index| !is_known(index)).count() as u64;
    let deduplicated = known.len() as u64;
    if !known.is_empty() {
        errors.retain(|error| !is_known(&error.index));
    }
    Outcomes {
        request_id: String::new(),
        accepted: kept.saturating_sub(dead_lettered + deduplicated),
        dead_lettered,
        deduplicated,
        rejected,
        errors,
        errors_truncated: false,
    }
}
