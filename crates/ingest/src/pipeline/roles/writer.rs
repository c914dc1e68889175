//! The writer's side of the hop: batches in, what became of them out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use tidegate_event::EncodedBatch;
use tokio::time::timeout_at;

use super::remote_log::schemas_of;
use crate::{
    books::Books,
    budget::{Budget, Full, Permit, Share},
    hop::{
        APPEND, Call, Errand, SCHEMA, Service, Underway,
        frame::{FrameFault, Frames, Script},
        outcome::{Outcome, SchemaContent},
        state::{Pressed, State},
        status,
    },
    normalize::SchemaStore,
    shed::Pressure,
    tenants::Tenants,
    writer::{AppendError, BoxFuture, LogWriter},
};

/// A schema larger than this is none.
const SCHEMA_BYTES_MAX: u64 = 2 << 20;
/// Batches up to this size are read through where they came in.
const LIGHT_BYTES: usize = 512 << 10;
/// How long a disk is left alone that is full or failing.
const STORAGE_FOR: Duration = Duration::from_secs(5);

/// What the writer's side is made of.
pub struct WriterParts {
    /// The log.
    pub writers: Arc<dyn LogWriter>,
    /// What the sinks read schemas from.
    pub schemas: Arc<SchemaStore>,
    /// Counts what is in the log.
    pub books: Arc<Books>,
    /// Bounds the batches held at once.
    pub budget: Arc<Budget>,
    /// Says what behind the log is full.
    pub pressure: Arc<dyn Pressure>,
    /// Says how tenants share.
    pub tenants: Arc<Tenants>,
    /// Nobody waits longer than this.
    pub timeout: Duration,
}

/// Appends for normalizers.
pub struct WriterService(Arc<WriterParts>);

impl WriterService {
    /// Of its parts.
    pub fn new(parts: WriterParts) -> Arc<Self> {
        Arc::new(Self(Arc::new(parts)))
    }
}

impl Service for WriterService {
    fn call(&self, call: Call) -> BoxFuture<'static, Response<Script>> {
        let parts = Arc::clone(&self.0);
        Box::pin(async move { parts.call(call).await })
    }

    fn state(&self) -> State {
        let writers = &self.0.writers;
        let failed = writers.is_failed();
        let failed = failed.then_some((crate::shed::ShedReason::Storage, STORAGE_FOR));
        let log = failed.or_else(|| {
            let stats = writers.stats();
            let full = stats.bound_bytes <= stats.held_bytes && 0 < stats.held_bytes;
            full.then_some((crate::shed::ShedReason::LogFull, Duration::from_secs(1)))
        });
        let pressed = Pressed::of(&*self.0.pressure, log, false);
        State { pressed, ..State::default() }
    }
}

impl WriterParts {
    async fn call(self: Arc<Self>, call: Call) -> Response<Script> {
        let Call { request, underway } = call;
        if request.method() != Method::POST {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        let Some(errand) = Errand::read(request.headers(), self.timeout) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let path = request.uri().path().to_owned();
        let frames = Frames::new(request.into_body());
        match &*path {
            APPEND => self.append(errand, length, frames, underway).await,
            SCHEMA => self.schema(errand, frames).await,
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    async fn append(
        self: Arc<Self>,
        errand: Errand,
        length: Option<u64>,
        frames: Frames,
        underway: Underway,
    ) -> Response<Script> {
        let tenant = &errand.tenant;
        let expected = usize::try_from(length.unwrap_or(0)).unwrap_or(usize::MAX);
        if let Err(error) = self.writers.room(tenant, expected) {
            return told(&Outcome::Refused(error));
        }
        let weight = self.tenants.get(tenant).map_or(1, |tenant| tenant.weight());
        let share = self.budget.share(tenant, weight);
        if let Err(full) = share.check(length.unwrap_or(0)) {
            return told(&Outcome::Refused(no_memory(full, &share)));
        }
        let mut permit = match share.try_take(0) {
            Ok(permit) => permit,
            Err(full) => return told(&Outcome::Refused(no_memory(full, &share))),
        };
        let most = self.budget.bound().min(u32::MAX.into());
        let body = match timeout_at(errand.until, frames.rest(most, Some(&mut permit))).await {
            Ok(Ok(body)) => body,
            Ok(Err(FrameFault::Full(full))) => {
                return told(&Outcome::Refused(no_memory(full, &share)));
            }
            Ok(Err(FrameFault::TooLarge)) => return status(StatusCode::PAYLOAD_TOO_LARGE),
            Ok(Err(FrameFault::Cut)) | Err(_) => return status(StatusCode::REQUEST_TIMEOUT),
        };
        let batch = match read(body).await {
            Some(batch) if batch.tenant == *tenant => batch,
            Some(batch) => {
                let (named, of) = (tenant, &batch.tenant);
                tracing::error!(%named, %of, "a batch of another tenant than its call names: refused");
                return status(StatusCode::BAD_REQUEST);
            }
            None => return status(StatusCode::BAD_REQUEST),
        };
        let lacks: Vec<_> =
            schemas_of(&batch).into_iter().filter(|hash| !self.schemas.has(*hash)).collect();
        if !lacks.is_empty() {
            return told(&Outcome::UnknownSchemas(lacks));
        }
        self.commit(errand, batch, (permit, underway)).await
    }

    /// From here on it is appended, whoever goes away.
    async fn commit(
        self: Arc<Self>,
        errand: Errand,
        batch: EncodedBatch,
        kept: (Permit, Underway),
    ) -> Response<Script> {
        if errand.is_over() {
            let retry_after = crate::hop::state::UNREACHABLE_FOR;
            return told(&Outcome::Refused(AppendError::Unreachable { retry_after }));
        }
        let trace = errand.traceparent.as_deref();
        tracing::debug!(traceparent = trace, tenant = %batch.tenant, events = batch.count, "appending for a normalizer");
        let received =
            batch.tallies.iter().map(|t| (t.event_type.clone(), t.accepted + t.dead_lettered));
        let entry = self.books.open(&batch.tenant, batch.received_at, received.collect()).lend();
        let task = tokio::spawn(async move {
            let result = self.writers.append_for(batch, entry, errand).await;
            drop(kept);
            result
        });
        let result = task.await.unwrap_or(Err(AppendError::Unknown));
        told(&Outcome::of(result))
    }

    async fn schema(self: Arc<Self>, errand: Errand, frames: Frames) -> Response<Script> {
        let body = timeout_at(errand.until, frames.rest(SCHEMA_BYTES_MAX, None)).await;
        let Ok(Ok(body)) = body else { return status(StatusCode::BAD_REQUEST) };
        let Ok(content) = SchemaContent::decode(&body) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let event_type = content.event_type.clone();
        let kept = tokio::task::spawn_blocking(move || {
            self.schemas.take(content.tenant, content.event_type, &content.text)
        });
        match kept.await {
            Ok(Ok(())) => {
                tracing::info!(%event_type, "a schema's content was told by a normalizer");
                status(StatusCode::OK)
            }
            Ok(Err(faults)) => {
                for fault in faults {
                    tracing::error!(%event_type, %fault, "a normalizer's schema is refused");
                }
                status(StatusCode::CONFLICT)
            }
            Err(error) => {
                tracing::error!(%error, "a schema could not be kept");
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

fn told(outcome: &Outcome) -> Response<Script> {
    Response::new(Script::default().bare(outcome.encode()))
}

fn no_memory(full: Full, share: &Share) -> AppendError {
    let retry_after = share.wait();
    match full {
        Full::Share => AppendError::Lane { retry_after },
        Full::Pool => AppendError::Memory { retry_after },
    }
}

/// A batch, read through; `None` where the bytes are none.
async fn read(body: Bytes) -> Option<EncodedBatch> {
    let batch = if body.len() <= LIGHT_BYTES {
        EncodedBatch::read(body)
    } else {
        tokio::task::spawn_blocking(move || EncodedBatch::read(body)).await.ok()?
    };
    match batch {
        Ok(batch) => Some(batch),
        Err(error) => {
            tracing::error!(%error, "a normalizer sent what is no batch: refused");
            None
        }
    }
}
