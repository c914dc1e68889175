//! The stages behind an edge: normalizers it may choose from, and writers it knows of through them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use tidegate_event::TenantId;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    books::Open,
    edge::{Answered, Away, Keep},
    hop::{
        self, Errand, JUDGE, Peer, Pool, REFUSED,
        ask::{self, Head},
        frame::{Frames, Script},
        outcome::Outcome,
        state::{Pressed, UNREACHABLE_FOR, ranked},
        verdict::Verdict,
    },
    shed::{Pressure, ShedReason},
    writer::{AppendError, Appended, BoxFuture},
};

/// Answers larger than this are none: 4 bytes for each event of the largest request, and more for each
/// type.
const VERDICT_BYTES_MAX: u64 = 64 << 20;

/// Normalizers elsewhere.
pub struct RemoteStages {
    pool: Arc<Pool>,
    timeout: Duration,
}

/// How far one normalizer came.
enum Asked {
    Judged(Verdict, Option<Box<dyn Keep>>),
    /// Nothing was kept, and another may be asked.
    NotTaken(AppendError),
}

const UNREACHABLE: AppendError = AppendError::Unreachable { retry_after: UNREACHABLE_FOR };

impl RemoteStages {
    /// Over the normalizers of `pool`.
    pub fn new(pool: Arc<Pool>, timeout: Duration) -> Self {
        Self { pool, timeout }
    }

    /// Every writer that a normalizer reaches.
    fn writers(&self) -> BTreeMap<String, Pressed> {
        let mut all = BTreeMap::new();
        for peer in self.pool.peers().iter() {
            let Some(state) = peer.state() else { continue };
            for (name, pressed) in &state.writers {
                all.entry(name.clone()).or_insert_with(|| pressed.clone());
            }
        }
        all
    }
}

/// Asks one normalizer. Until it has our word it keeps nothing, so whatever goes wrong is known.
async fn ask(peer: &Arc<Peer>, head: &Bytes, items: &Bytes, errand: &Errand) -> Asked {
    let underway = peer.begin();
    let (go, word) = oneshot::channel();
    let mut request = peer.request(Method::POST, JUDGE);
    errand.write(request.headers_mut());
    *request.body_mut() = Script::default().then(head.clone()).then(items.clone()).later(word);
    // One that does not answer leaves time for another.
    let left = errand.until.saturating_duration_since(Instant::now());
    let until = Instant::now() + left / 2;
    let Ok(answer) = peer.send(request, until).await else { return Asked::NotTaken(UNREACHABLE) };
    if answer.status() != StatusCode::OK {
        let status = answer.status();
        if !answer.headers().contains_key(REFUSED) {
            tracing::error!(peer = peer.name(), %status, "a normalizer refuses to be called");
        }
        return Asked::NotTaken(UNREACHABLE);
    }
    let mut frames = Frames::new(answer.into_body());
    let verdict = match timeout_at(until, frames.next(VERDICT_BYTES_MAX, None)).await {
        Ok(Ok(bytes)) => Verdict::decode(&bytes),
        Ok(Err(_)) | Err(_) => return Asked::NotTaken(UNREACHABLE),
    };
    match verdict {
        Err(error) => {
            tracing::error!(peer = peer.name(), %error, "a normalizer's answer cannot be read: are all roles of one version?");
            Asked::NotTaken(UNREACHABLE)
        }
        // It reaches no writer; another one may.
        Ok(Verdict::Shed(ShedReason::Unreachable, _)) => Asked::NotTaken(UNREACHABLE),
        Ok(verdict) => {
            let kept = matches!(&verdict, Verdict::Judged(judged) if judged.kept != 0);
            let ready = Ready { go, frames, until: errand.until, _underway: underway };
            Asked::Judged(verdict, kept.then(|| Box::new(ready) as Box<dyn Keep>))
        }
    }
}

impl Away for RemoteStages {
    fn judge<'a>(
        &'a self,
        head: &'a Head,
        items: Bytes,
        errand: &'a Errand,
    ) -> BoxFuture<'a, Result<Answered, AppendError>> {
        Box::pin(async move {
            let head = Bytes::from(head.encode());
            let (mut tried, mut fault) = (Vec::new(), UNREACHABLE);
            while !errand.is_over()
                && let Some(peer) = self.pool.least_busy(&tried)
            {
                match ask(&peer, &head, &items, errand).await {
                    Asked::Judged(verdict, keep) => return Ok((verdict, keep)),
                    Asked::NotTaken(error) => fault = error,
                }
                tried.push(peer);
            }
            Err(fault)
        })
    }

    fn room(&self, tenant: &TenantId) -> Result<(), AppendError> {
        let _ = tenant;
        if self.writers().is_empty() { Err(UNREACHABLE) } else { Ok(()) }
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Pressure for RemoteStages {
    fn shed(&self, tenant: &TenantId, waited: bool) -> Option<(ShedReason, Duration)> {
        let writers = self.writers();
        // As normalizers choose: who shuts down comes last.
        let order = ranked(tenant, writers.keys().map(String::as_str));
        let mut known = order.iter().filter_map(|name| writers.get(*name));
        let first = known.clone().next()?;
        known.find(|writer| !writer.draining).unwrap_or(first).shed(tenant, waited)
    }

    fn ready(&self) -> bool {
        self.writers().values().any(|writer| writer.all.is_none())
    }
}

/// A batch that a normalizer holds ready for us.
struct Ready {
    go: oneshot::Sender<Bytes>,
    frames: Frames,
    until: Instant,
    _underway: hop::Calling,
}

impl Keep for Ready {
    fn keep(
        self: Box<Self>,
        entry: Open,
        bytes: u64,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        // A task of its own: the books are settled where the client has gone away too.
        let task = tokio::spawn(async move {
            let Self { go, mut frames, until, _underway } = *self;
            let result = if Instant::now() < until && go.send(Bytes::from_static(ask::GO)).is_ok() {
                match timeout_at(until, frames.next(VERDICT_BYTES_MAX, None)).await {
                    Ok(Ok(answer)) => Outcome::decode(&answer).unwrap_or(Outcome::Unknown).result(),
                    Ok(Err(_)) | Err(_) => Err(AppendError::Unknown),
                }
            } else {
                // Our word never left: nothing is kept.
                Err(UNREACHABLE)
            };
            match &result {
                Ok(_) => entry.hand_over(),
                Err(AppendError::Unknown) => entry.lose_sight(bytes),
                Err(error) => entry.shed(error.reason()),
            }
            result
        });
        Box::pin(async move { task.await.unwrap_or(Err(AppendError::Unknown)) })
    }
}
