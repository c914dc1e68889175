//! Who is full, and what the client is told: one table, nothing else chooses these codes.

use std::time::Duration;

use tidegate_event::TenantId;

/// Tells the edge what behind it is full, before a body is read.
pub trait Pressure: Send + Sync {
    /// Why this tenant's requests are to be refused now, and when to come again; `None`: they are not.
    /// Who `waited` as it was told comes before all who did not, where there is a little room again.
    fn shed(&self, tenant: &TenantId, waited: bool) -> Option<(ShedReason, Duration)>;

    /// True where an event of a tenant within its bounds would be taken now.
    fn ready(&self) -> bool {
        true
    }

    /// All that [`Pressure::shed`] goes by, for another process that asks in advance.
    fn told(&self) -> PressureTold {
        PressureTold::default()
    }
}

/// What presses, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PressureTold {
    /// Everybody is refused (`log_full`) and told to come again after so long; true: those who waited
    /// as well.
    pub all: Option<(Duration, bool)>,
    /// Tenants that are refused (`tenant_lane`), and when they are to come again.
    pub lanes: Vec<(TenantId, Duration)>,
}

/// Nothing behind the edge is ever full.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPressure;

impl Pressure for NoPressure {
    fn shed(&self, _: &TenantId, _waited: bool) -> Option<(ShedReason, Duration)> {
        None
    }
}

/// Why a request was refused on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShedReason {
    /// The tenant is over its events per second or per day.
    QuotaEvents,
    /// The tenant is over its bytes per second or per day.
    QuotaBytes,
    /// The tenant's own part is full: of the memory, of the log's queue, or its lane to a blocking sink.
    TenantLane,
    /// The edge holds as many bytes as its budget allows.
    EdgeFull,
    /// The log's queue is full, or what a blocking sink has not passed fills its space.
    LogFull,
    /// The disk is full or failing.
    Storage,
    /// The server is shutting down.
    Draining,
    /// No replica of the next role takes it: nothing was kept.
    Unreachable,
    /// It was handed on and no answer came back: it may have been kept.
    OutcomeUnknown,
}

impl ShedReason {
    /// Every reason, in the order of the table in docs/wire.md.
    pub const ALL: &'static [ShedReason] = &[
        Self::QuotaEvents,
        Self::QuotaBytes,
        Self::TenantLane,
        Self::EdgeFull,
        Self::LogFull,
        Self::Storage,
        Self::Draining,
        Self::Unreachable,
        Self::OutcomeUnknown,
    ];

    /// As it stands in `X-Shed-Reason`, `code`, metrics and books.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QuotaEvents => "quota_events",
            Self::QuotaBytes => "quota_bytes",
            Self::TenantLane => "tenant_lane",
            Self::EdgeFull => "edge_full",
            Self::LogFull => "log_full",
            Self::Storage => "storage",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// 429 where the tenant is the cause, 503 where we are.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::QuotaEvents | Self::QuotaBytes | Self::TenantLane => 429,
            Self::EdgeFull
            | Self::LogFull
            | Self::Storage
            | Self::Draining
            | Self::Unreachable
            | Self::OutcomeUnknown => 503,
        }
    }

    /// What happened and what to do, one sentence or two.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::QuotaEvents => "over the tenant's quota of events; send again after Retry-After",
            Self::QuotaBytes => "over the tenant's quota of bytes; send again after Retry-After",
            Self::TenantLane => {
                "this tenant's own part is full: its requests under way, or its lane to a sink; send \
                 again after Retry-After"
            }
            Self::EdgeFull => {
                "the edge has no memory left for this body; send again after Retry-After"
            }
            Self::LogFull => "the log is full; send again after Retry-After",
            Self::Storage => "the log's disk is full or failing; send again after Retry-After",
            Self::Draining => {
                "the server is shutting down; send again, to another one if there is one"
            }
            Self::Unreachable => {
                "no server behind this one takes it now; nothing was kept, send again after \
                 Retry-After"
            }
            Self::OutcomeUnknown => {
                "a server behind this one was lost before it answered: the events may have been kept; \
                 send again after Retry-After, with the same event_id to have them once"
            }
        }
    }
}
