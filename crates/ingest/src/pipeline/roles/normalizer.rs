//! The normalizer's side of the hop: items in, verdicts out, and once the edge says so the batch on its
//! way to a writer.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use tidegate_event::{Code, EncodedBatch, EventType};
use tokio::{sync::oneshot, time::timeout_at};

use crate::{
    books::Books,
    budget::{Budget, Permit},
    edge::{
        answer::{Kind, Refusal},
        bench::{self, Finished, Order, TypeGate},
        judge::Judge,
        turns::Turns,
    },
    hop::{
        Call, Errand, JUDGE, Pool, Service, Underway,
        ask::{self, Head, Named},
        frame::{FrameFault, Frames, Script},
        outcome::Outcome,
        state::State,
        status,
        verdict::{Fault, ItemFault, Judged, TypeItems, Verdict},
    },
    normalize::JudgeContext,
    tenants::{Quota, Tenant, Tenants},
    writer::{Append, BoxFuture},
};

/// What an edge knows of a request is never larger.
const HEAD_BYTES_MAX: u64 = 4 << 20;
/// Items up to this size are judged at once, up to the second where they came in.
const SMALL_BYTES: usize = 16 << 10;
const LIGHT_BYTES: usize = 512 << 10;

/// What the normalizer's side is made of.
pub struct NormalizerParts {
    /// Gives the verdicts.
    pub judge: Arc<dyn Judge>,
    /// Makes batches durable.
    pub log: Arc<dyn Append>,
    /// The writers.
    pub pool: Arc<Pool>,
    /// Counts what is under way; nothing stays in them.
    pub books: Arc<Books>,
    /// Bounds what is held at once.
    pub budget: Arc<Budget>,
    /// Says how tenants share.
    pub tenants: Arc<Tenants>,
    /// Nobody waits longer than this.
    pub timeout: Duration,
}

/// Judges for edges.
pub struct NormalizerService(Arc<Inner>);

struct Inner {
    parts: NormalizerParts,
    turns: Turns,
}

/// What judging came to.
struct Sorted {
    verdict: Verdict,
    batch: Option<EncodedBatch>,
    permit: Permit,
}

impl NormalizerService {
    /// Of its parts.
    pub fn new(parts: NormalizerParts) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Arc::new(Self(Arc::new(Inner { parts, turns: Turns::new(processors) })))
    }
}

impl Service for NormalizerService {
    fn call(&self, call: Call) -> BoxFuture<'static, Response<Script>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.call(call).await })
    }

    fn state(&self) -> State {
        State { writers: self.0.parts.pool.pressed(), ..State::default() }
    }
}

impl Inner {
    async fn call(self: Arc<Self>, call: Call) -> Response<Script> {
        let Call { request, underway } = call;
        if request.method() != Method::POST || request.uri().path() != JUDGE {
            return status(StatusCode::NOT_FOUND);
        }
        let Some(errand) = Errand::read(request.headers(), self.parts.timeout) else {
            return status(StatusCode::BAD_REQUEST);
        };
        if let Err(error) = self.parts.log.room(&errand.tenant, 0) {
            let after = crate::hop::state::UNREACHABLE_FOR;
            return told(&Verdict::Shed(error.reason(), after));
        }
        let weight = self.parts.tenants.get(&errand.tenant).map_or(1, |tenant| tenant.weight());
        let share = self.parts.budget.share(&errand.tenant, weight);
        let mut frames = Frames::new(request.into_body());
        let shed = |full: crate::budget::Full| told(&Verdict::Shed(full.reason(), share.wait()));
        let mut permit = match share.try_take(0) {
            Ok(permit) => permit,
            Err(full) => return shed(full),
        };
        let reading = read(&mut frames, &mut permit, self.parts.budget.bound());
        let (head, items) = match timeout_at(errand.until, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(FrameFault::Full(full))) => return shed(full),
            Ok(Err(FrameFault::TooLarge)) => return status(StatusCode::PAYLOAD_TOO_LARGE),
            Ok(Err(FrameFault::Cut)) | Err(_) => return status(StatusCode::REQUEST_TIMEOUT),
        };
        let head = match Head::decode(&head) {
            Ok(head) if head.tenant == errand.tenant => head,
            Ok(_) | Err(_) => {
                tracing::error!(tenant = %errand.tenant, "an edge's request cannot be read: are all roles of one version?");
                return status(StatusCode::BAD_REQUEST);
            }
        };
        let trace = errand.traceparent.as_deref();
        tracing::debug!(traceparent = trace, tenant = %head.tenant, "judging for an edge");
        let Some(sorted) = Arc::clone(&self).sorted(head, items, (permit, weight)).await else {
            return status(StatusCode::BAD_REQUEST);
        };
        self.answer(errand, sorted, frames, underway)
    }

    /// Judges the items where and when it is their turn; `None` where they cannot be read.
    async fn sorted(
        self: Arc<Self>,
        head: Head,
        items: Bytes,
        (permit, weight): (Permit, u64),
    ) -> Option<Sorted> {
        if items.len() <= SMALL_BYTES {
            return sort(&*self.parts.judge, &head, items, permit);
        }
        let turn = self.turns.take(&head.tenant, weight, items.len() as u64).await?;
        if items.len() <= LIGHT_BYTES {
            let sorted = sort(&*self.parts.judge, &head, items, permit);
            drop(turn);
            return sorted;
        }
        let judging = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            sort(&*self.parts.judge, &head, items, permit)
        });
        judging.await.ok()?
    }

    /// Tells the verdict; the batch waits for the edge's word.
    fn answer(
        self: Arc<Self>,
        errand: Errand,
        sorted: Sorted,
        mut frames: Frames,
        underway: Underway,
    ) -> Response<Script> {
        let Sorted { verdict, batch, permit } = sorted;
        let script = Script::default().then(verdict.encode());
        let Some(batch) = batch else { return Response::new(script) };
        let (tell, outcome) = oneshot::channel();
        tokio::spawn(async move {
            let _underway = underway;
            let word = timeout_at(errand.until, frames.next(1, None)).await;
            // Without it nobody counted the batch or waits for it: it is in no log, and never will be.
            if !matches!(word, Ok(Ok(word)) if *word == *ask::GO) {
                return;
            }
            let kinds = batch.tallies.iter();
            let received = kinds.map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered));
            let received = received.collect();
            let entry = self.parts.books.open(&batch.tenant, batch.received_at, received);
            let result = self.parts.log.append_for(batch, entry, errand).await;
            drop(permit);
            // Where the edge has gone away nobody hears it.
            let _ = tell.send(Outcome::of(result).encode().into());
        });
        Response::new(script.later(outcome))
    }
}

fn told(verdict: &Verdict) -> Response<Script> {
    Response::new(Script::default().then(verdict.encode()))
}

async fn read(
    frames: &mut Frames,
    permit: &mut Permit,
    bound: u64,
) -> Result<(Bytes, Bytes), FrameFault> {
    let head = frames.next(HEAD_BYTES_MAX, Some(permit)).await?;
    let items = frames.next(bound, Some(permit)).await?;
    Ok((head, items))
}

/// The types that a tenant may name, as its edge knows them.
struct Listed<'a>(&'a Named);

impl TypeGate for Listed<'_> {
    fn knows(&self, event_type: &EventType) -> bool {
        self.0.types.contains(event_type)
    }
    fn take(&self, event_type: &EventType) -> bool {
        self.knows(event_type)
    }
    fn most(&self) -> u64 {
        self.0.most
    }
}

fn sort(judge: &dyn Judge, head: &Head, items: Bytes, mut permit: Permit) -> Option<Sorted> {
    let tenant = Tenant {
        id: head.tenant.clone(),
        enabled: true,
        strict: head.strict,
        pii_secret: head.secret.clone(),
        quota: Quota::default(),
        keys: Vec::new(),
        pairs: Vec::new(),
    };
    let listed = head.named.as_ref().map(Listed);
    let order = Order {
        context: JudgeContext {
            tenant: &tenant,
            received_at: head.received_at,
            key_types: head.key_types.as_deref(),
        },
        tenant: head.tenant.clone(),
        protocol: &head.protocol,
        base_id: head.base_id,
        // Both were looked at by the edge, which has the items within its limits.
        event_bytes: usize::MAX,
        events: u32::MAX,
        errors_max: usize::try_from(head.errors_max).unwrap_or(usize::MAX),
        types: listed.as_ref().map(|listed| listed as &dyn TypeGate),
        capacity: items.len(),
    };
    let mut sound = true;
    let finished = bench::sort(order, judge, &mut permit, |take| {
        let Ok(all) = ask::items(&items) else {
            sound = false;
            return Ok(());
        };
        for asked in all {
            let Ok(asked) = asked else {
                sound = false;
                return Ok(());
            };
            if take(asked.arrived, asked.id).is_break() {
                break;
            }
        }
        Ok(())
    });
    if !sound {
        return None;
    }
    drop(items);
    Some(match finished {
        Ok(finished) => {
            permit.shrink_to(finished.held);
            let (verdict, batch) = judged(finished);
            Sorted { verdict: Verdict::Judged(verdict), batch, permit }
        }
        Err(refusal) => Sorted { verdict: refused(refusal), batch: None, permit },
    })
}

fn refused(refusal: Refusal) -> Verdict {
    match refusal.kind {
        Kind::Problem(problem) => {
            Verdict::Problem(Fault { code: problem.code.to_owned(), detail: refusal.detail })
        }
        Kind::Shed(reason, after) => Verdict::Shed(reason, after),
    }
}

fn judged(finished: Finished) -> (Judged, Option<EncodedBatch>) {
    let types = finished.types.into_iter().map(|(event_type, items)| TypeItems {
        event_type,
        received: items.received,
        rejected: items.rejected.iter().collect(),
    });
    let errors = finished.errors.into_iter().filter_map(|error| {
        let code = Code::ALL.iter().find(|code| code.as_str() == error.code)?;
        let (index, event_id) = (error.index, error.event_id);
        let (field, message) = (error.field, error.message);
        Some(ItemFault { index, event_id, code: *code, field, message })
    });
    let nothing = finished
        .nothing
        .map(|nothing| Fault { code: nothing.problem.code.to_owned(), detail: nothing.detail });
    let judged = Judged {
        kept: finished.batch.as_ref().map_or(0, |batch| batch.count),
        rejected: finished.rejected,
        dead: finished.dead,
        types: types.collect(),
        errors: errors.collect(),
        errors_truncated: finished.errors_truncated,
        nothing,
    };
    (judged, finished.batch)
}
