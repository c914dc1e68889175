//! The log as a normalizer has it: writers elsewhere, of which each tenant has one that it prefers.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use tidegate_event::{BatchView, EncodedBatch, TenantId};
use tokio::time::{Instant, timeout_at};

use crate::{
    books::Open,
    hop::{
        APPEND, Errand, Peer, Pool, REFUSED, SCHEMA, SendFault,
        frame::{Frames, Script},
        outcome::{Outcome, SchemaContent},
        state::UNREACHABLE_FOR,
    },
    normalize::SchemaStore,
    writer::{Append, AppendError, Appended, BoxFuture},
};

/// An answer larger than this is none: 4 bytes for each event of the largest request.
const OUTCOME_BYTES_MAX: u64 = 64 << 20;
/// Schemas are told at most so often for one batch: a writer that asks again after that is not well.
const TELL_MAX: usize = 2;

/// Writers elsewhere.
#[derive(Clone)]
pub struct RemoteLog {
    pool: Arc<Pool>,
    schemas: Arc<SchemaStore>,
    timeout: Duration,
}

/// How far one writer came with a batch.
enum Delivered {
    /// This is its outcome.
    Settled(Result<Appended, AppendError>),
    /// Nothing was appended and another writer may be asked.
    NotTaken,
    /// Nothing was appended: it lacks these schemas.
    Lacks(Vec<[u8; 16]>),
}

impl RemoteLog {
    /// Over the writers of `pool`; batches are judged by `schemas`.
    pub fn new(pool: Arc<Pool>, schemas: Arc<SchemaStore>, timeout: Duration) -> Self {
        Self { pool, schemas, timeout }
    }

    async fn carry(&self, batch: &EncodedBatch, errand: &Errand) -> Result<Appended, AppendError> {
        for peer in self.pool.for_tenant(&errand.tenant) {
            let _underway = peer.begin();
            match self.to(&peer, batch, errand).await {
                Delivered::Settled(result) => return result,
                Delivered::NotTaken => {}
                Delivered::Lacks(_) => {
                    tracing::error!(
                        peer = peer.name(),
                        "a writer does not keep the schemas it is told"
                    );
                    return Err(AppendError::Storage);
                }
            }
        }
        Err(AppendError::Unreachable { retry_after: UNREACHABLE_FOR })
    }

    async fn to(&self, peer: &Arc<Peer>, batch: &EncodedBatch, errand: &Errand) -> Delivered {
        let mut told = 0;
        loop {
            let delivered = deliver(peer, batch, errand).await;
            let Delivered::Lacks(hashes) = &delivered else { return delivered };
            if told == TELL_MAX {
                return delivered;
            }
            told += 1;
            for hash in hashes {
                if let Err(result) = self.tell(peer, *hash, errand).await {
                    return result;
                }
            }
        }
    }

    /// Tells a writer what a schema says.
    async fn tell(
        &self,
        peer: &Arc<Peer>,
        hash: [u8; 16],
        errand: &Errand,
    ) -> Result<(), Delivered> {
        let Some(entry) = self.schemas.entry(hash) else {
            tracing::error!(
                hash = hex::encode(hash),
                "a schema that a batch was judged by is not kept here"
            );
            return Err(Delivered::Settled(Err(AppendError::Storage)));
        };
        let content = SchemaContent {
            tenant: entry.tenant,
            event_type: entry.event_type,
            text: entry.schema.canonical().to_owned(),
        };
        let mut request = peer.request(Method::POST, SCHEMA);
        errand.write(request.headers_mut());
        *request.body_mut() = Script::default().bare(content.encode());
        // Telling it twice changes nothing, and the batch is not sent yet.
        let Ok(answer) = peer.send(request, errand.until).await else {
            return Err(Delivered::NotTaken);
        };
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::SERVICE_UNAVAILABLE => Err(Delivered::NotTaken),
            status => {
                let (schema, peer) = (&content.event_type, peer.name());
                tracing::error!(peer, %schema, %status, "a writer refuses a schema: what it knows of the type is another content");
                Err(Delivered::Settled(Err(AppendError::Storage)))
            }
        }
    }
}

/// Sends a batch to one writer, once.
async fn deliver(peer: &Arc<Peer>, batch: &EncodedBatch, errand: &Errand) -> Delivered {
    if errand.is_over() {
        // Nobody waits for it: it is not begun.
        let retry_after = UNREACHABLE_FOR;
        return Delivered::Settled(Err(AppendError::Unreachable { retry_after }));
    }
    let mut request = peer.request(Method::POST, APPEND);
    errand.write(request.headers_mut());
    *request.body_mut() = Script::default().bare(batch.body.clone());
    let answer = match peer.send(request, errand.until).await {
        Ok(answer) => answer,
        Err(SendFault::Unsent) => return Delivered::NotTaken,
        Err(SendFault::Lost) => return Delivered::Settled(Err(AppendError::Unknown)),
    };
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => {
            tracing::error!(
                peer = peer.name(),
                "a writer takes a batch for none: are all roles of one version?"
            );
            return Delivered::Settled(Err(AppendError::Storage));
        }
        status => {
            if !answer.headers().contains_key(REFUSED) {
                tracing::error!(peer = peer.name(), %status, "a writer refuses to be called");
            }
            return Delivered::NotTaken;
        }
    }
    let body = Frames::new(answer.into_body()).rest(OUTCOME_BYTES_MAX, None);
    let outcome = match timeout_at(errand.until, body).await {
        Ok(Ok(body)) => Outcome::decode(&body).ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    match outcome {
        None | Some(Outcome::Unknown) => Delivered::Settled(Err(AppendError::Unknown)),
        Some(Outcome::UnknownSchemas(hashes)) => Delivered::Lacks(hashes),
        // It shut down before it took the batch.
        Some(Outcome::Refused(AppendError::Draining)) => Delivered::NotTaken,
        Some(Outcome::Refused(error)) => Delivered::Settled(Err(error)),
        Some(Outcome::Appended(appended)) => Delivered::Settled(Ok(appended)),
    }
}

/// The schemas that a batch was judged by.
pub(super) fn schemas_of(batch: &EncodedBatch) -> Vec<[u8; 16]> {
    let Ok(view) = BatchView::parse(&batch.body) else { return Vec::new() };
    let mut hashes: Vec<[u8; 16]> = view.types.iter().map(|kind| kind.schema.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

impl Append for RemoteLog {
    fn append(
        &self,
        batch: EncodedBatch,
        entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        let until = Instant::now() + self.timeout;
        let errand = Errand { tenant: batch.tenant.clone(), until, traceparent: None };
        self.append_for(batch, entry, errand)
    }

    fn append_for(
        &self,
        batch: EncodedBatch,
        entry: Open,
        errand: Errand,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        let log = self.clone();
        // A task of its own: it goes on where the caller has gone away.
        let task = tokio::spawn(async move {
            let result = log.carry(&batch, &errand).await;
            // In the writer's books where it has them, in the edge's where not: never in ours.
            entry.hand_over();
            result
        });
        Box::pin(async move { task.await.unwrap_or(Err(AppendError::Unknown)) })
    }

    fn room(&self, tenant: &TenantId, _bytes: usize) -> Result<(), AppendError> {
        if self.pool.for_tenant(tenant).is_empty() {
            return Err(AppendError::Unreachable { retry_after: UNREACHABLE_FOR });
        }
        Ok(())
    }
}
