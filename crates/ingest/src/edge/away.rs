//! The stages behind the edge, in this process or in others.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_event::{EncodedBatch, EventType, TenantId};
use tokio::time::{Duration, Instant};

use super::{
    answer::{ItemError, Refusal},
    bench::{Items, Nothing, no_memory},
    judge::Judge,
    problem::Problem,
    work::{Done, Packed},
};
use crate::{
    books::{ByReason, Open},
    hop::{
        Errand,
        ask::{Head, Named},
        verdict::{Fault, Judged, Verdict},
    },
    quota::Types,
    writer::{Append, AppendError, Appended, BoxFuture},
};

/// Who judges, and who keeps.
#[derive(Clone)]
pub enum Behind {
    /// This process.
    Here {
        /// Gives the verdicts.
        judge: Arc<dyn Judge>,
        /// Makes events durable.
        log: Arc<dyn Append>,
    },
    /// Others.
    Away(Arc<dyn Away>),
}

/// A verdict, and the batch that it leaves to be kept.
pub type Answered = (Verdict, Option<Box<dyn Keep>>);

/// A normalizer of another process, and the writer behind it.
pub trait Away: Send + Sync {
    /// Has items judged. Nothing is kept before [`Keep::keep`]: until then another replica may be
    /// asked, and is.
    ///
    /// # Errors
    /// Why no replica judged them; nothing is kept.
    fn judge<'a>(
        &'a self,
        head: &'a Head,
        items: Bytes,
        errand: &'a Errand,
    ) -> BoxFuture<'a, Result<Answered, AppendError>>;

    /// Whether events of this tenant would be taken now, asked before a body is read.
    ///
    /// # Errors
    /// Why not.
    fn room(&self, tenant: &TenantId) -> Result<(), AppendError>;

    /// How long the outcome of a request is waited for.
    fn timeout(&self) -> Duration;
}

/// A batch that a normalizer holds ready.
pub trait Keep: Send {
    /// Has it appended. `entry` is settled in every case, also where the client has gone away: what
    /// the log has is in its writer's books, and what may be in them counts here as a refused request
    /// of `bytes`.
    fn keep(
        self: Box<Self>,
        entry: Open,
        bytes: u64,
    ) -> BoxFuture<'static, Result<Appended, AppendError>>;
}

/// What is to be appended of a request.
pub(super) enum Kept {
    Here(EncodedBatch),
    /// So many events.
    Away(Box<dyn Keep>, u32),
}

impl Kept {
    /// How many events.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Here(batch) => batch.count.into(),
            Self::Away(_, count) => u64::from(*count),
        }
    }
}

/// Has a request's items judged elsewhere.
pub(super) async fn judged(
    away: &dyn Away,
    packed: Packed,
    traceparent: Option<String>,
) -> Result<Done, Refusal> {
    let Packed { mut head, items, types, mut permit } = packed;
    let until = Instant::now() + away.timeout();
    let errand = Errand { tenant: head.tenant.clone(), until, traceparent };
    let mut answer = away.judge(&head, items.clone(), &errand).await;
    if let (Ok((Verdict::Judged(judged), _)), Some(types)) = (&answer, &types)
        && let Some(named) = one_too_many(judged, types)
    {
        // Rare: the tenant has named as many types as it may. What was judged is forgotten.
        drop(answer);
        head.named = Some(named);
        answer = away.judge(&head, items.clone(), &errand).await;
    }
    drop(items);
    permit.shrink_to(0);
    let (verdict, keep) = answer.map_err(super::request::not_appended)?;
    match verdict {
        Verdict::Problem(fault) => {
            let Fault { code, detail } = fault;
            Err(Refusal::problem(problem(&code), detail))
        }
        Verdict::Shed(reason, after) => Err(Refusal::shed(reason, after)),
        Verdict::Judged(judged) => {
            let done = done(judged, keep, types.as_ref(), permit);
            done.with_reasons_paid()
        }
    }
}

impl Done {
    /// A protocol that tells of each item has all reasons: they are the request's memory here, too.
    fn with_reasons_paid(mut self) -> Result<Self, Refusal> {
        let bytes: usize = self.errors.iter().map(ItemError::bytes).sum();
        match self.permit.grow(bytes as u64) {
            Ok(()) => Ok(self),
            Err(full) => Err(no_memory(full, self.permit.share())),
        }
    }
}

/// The types of a request that its tenant may name, where there is one too many among them.
fn one_too_many(judged: &Judged, types: &Types) -> Option<Named> {
    let unnamed = EventType::unnamed();
    let kept = judged.types.iter().filter(|one| {
        let rejected: u64 = one.rejected.iter().map(|(_, events)| events).sum();
        rejected < one.received && one.event_type != unnamed
    });
    let over = kept.filter(|one| !types.take(&one.event_type)).count() != 0;
    let known = judged.types.iter().map(|one| one.event_type.clone());
    over.then(|| Named { most: types.most(), types: known.filter(|t| types.knows(t)).collect() })
}

fn problem(code: &str) -> Problem {
    let known = Problem::ALL.iter().find(|problem| problem.code == code);
    *known.unwrap_or(&Problem::INTERNAL)
}

fn done(
    judged: Judged,
    keep: Option<Box<dyn Keep>>,
    types: Option<&Types>,
    permit: crate::budget::Permit,
) -> Done {
    let mut all: Vec<(EventType, Items)> = Vec::with_capacity(judged.types.len());
    for one in judged.types {
        let sum: u64 = one.rejected.iter().map(|(_, events)| events).sum();
        // Types of which nothing is kept take no place of the tenant's.
        let strange = sum == one.received && types.is_some_and(|t| !t.knows(&one.event_type));
        let name = if strange { EventType::unnamed() } else { one.event_type };
        let place = all.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            all.push((name, Items::default()));
            all.len() - 1
        });
        if let Some((_, items)) = all.get_mut(place) {
            items.received += one.received;
            let mut rejected = ByReason::default();
            std::mem::swap(&mut rejected, &mut items.rejected);
            one.rejected.iter().for_each(|(code, events)| rejected.add(*code, *events));
            items.rejected = rejected;
        }
    }
    let error = |error: crate::hop::verdict::ItemFault| ItemError {
        index: error.index,
        event_id: error.event_id,
        code: error.code.as_str(),
        field: error.field,
        message: error.message,
    };
    Done {
        types: all,
        kept: keep.filter(|_| judged.kept != 0).map(|keep| Kept::Away(keep, judged.kept)),
        dead: judged.dead,
        rejected: judged.rejected,
        errors: judged.errors.into_iter().map(error).collect(),
        errors_truncated: judged.errors_truncated,
        nothing: judged
            .nothing
            .map(|fault| Nothing { problem: problem(&fault.code), detail: fault.detail }),
        permit,
    }
}
