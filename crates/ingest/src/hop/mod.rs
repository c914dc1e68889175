//! The hops between roles: the contract of one process, over HTTP/2 between several.
//!
//! ```text
//! edge ──judge──▶ normalizer ──append──▶ writer
//!   head, items ▸           batch ▸
//!   ◂ verdict               ◂ outcome, or: these schemas are unknown (nothing was appended)
//!   go ▸
//!   ◂ outcome
//! ```
//!
//! A callee answers durable, full, failed or unknown. What fails before a batch was sent to a writer is
//! known to be in no log: another replica may be asked. What fails afterwards is unknown, a 503, and is
//! never tried again inside. So the edge and the normalizer speak twice: the verdict comes back before
//! `go`, and the edge charges its quotas in between, exactly as in one process.
//!
//! | file | what is there |
//! | --- | --- |
//! | `wire`, `ask`, `verdict`, `outcome` | the messages, as bytes |
//! | `state` | what a replica tells of itself, a few times a second |
//! | `frame` | messages on a stream, both ways |
//! | `peer`, `pool` | replicas of the next role: connections, health, who is asked |
//! | `server` | the listener: who may speak, draining |
//! | `tls`, `config` | mutual TLS; `[hop]` |

pub mod ask;
mod config;
pub mod frame;
pub mod outcome;
mod peer;
mod pool;
mod server;
pub mod state;
mod tls;
pub mod verdict;
mod wire;

use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_event::TenantId;
use tokio::time::{Duration, Instant};

pub use config::{HopConfig, HopTlsConfig};
pub use peer::{Calling, Peer, SendFault};
pub use pool::{Dial, Pool};
pub(crate) use server::status;
pub use server::{Call, Gate, HopError, HopHandle, HopServer, Service, Underway, bind};
pub use tls::HopTlsError;
pub use wire::Malformed;

/// An edge has items judged and kept.
pub const JUDGE: &str = "/hop/v1/judge";
/// A normalizer has a batch appended.
pub const APPEND: &str = "/hop/v1/append";
/// A normalizer tells a schema's content.
pub const SCHEMA: &str = "/hop/v1/schema";
/// How a replica is.
pub const STATE: &str = "/hop/v1/state";

/// Whose the events are; only callers that showed who they are may name one.
pub const TENANT: HeaderName = HeaderName::from_static("x-hop-tenant");
/// How many milliseconds the caller still waits.
pub const LEFT: HeaderName = HeaderName::from_static("x-hop-left-ms");
/// Why a replica refused before it did anything.
pub const REFUSED: HeaderName = HeaderName::from_static("x-hop-refused");
/// As clients send it; what is not valid never gets here.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The answer of a replica that shuts down: nothing was done, another may be asked.
pub const DRAINING: &str = "draining";

/// For whom, until when, and as part of which trace a call is made.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Whose events.
    pub tenant: TenantId,
    /// Nobody waits any longer than this.
    pub until: Instant,
    /// The client's, if it sent a valid one.
    pub traceparent: Option<String>,
}

impl Errand {
    /// Puts it into a request's head.
    pub fn write(&self, headers: &mut HeaderMap) {
        let left = self.until.saturating_duration_since(Instant::now());
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        headers.insert(LEFT, HeaderValue::from(left));
        if let Ok(tenant) = HeaderValue::from_str(self.tenant.as_str()) {
            headers.insert(TENANT, tenant);
        }
        let trace = self.traceparent.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(trace)) = trace {
            headers.insert(TRACEPARENT, trace);
        }
    }

    /// Reads it from a request's head; `None` where it names no tenant. Nobody waits longer than
    /// `most`.
    #[must_use]
    pub fn read(headers: &HeaderMap, most: Duration) -> Option<Self> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let tenant = TenantId::new(text(TENANT)?).ok()?;
        let left = text(LEFT)?.parse().ok().map(Duration::from_millis)?;
        let traceparent = text(TRACEPARENT).map(str::to_owned);
        Some(Self { tenant, until: Instant::now() + left.min(most), traceparent })
    }

    /// True once nobody waits any longer.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until <= Instant::now()
    }
}
