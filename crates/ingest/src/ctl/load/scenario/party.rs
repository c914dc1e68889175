//! Parties: tenants that send at once, each in its own way and with its own counts.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    raw::{self, Raw},
    server::{Server, Tenant},
};
use crate::ctl::{
    fault::Fault,
    journal::Journal,
    load::{
        engine::{self, Running},
        protocol::PROTOCOLS,
        stall::{Stalls, Watch},
        stats::{Let, Stats},
        worker::{Body, Plan, Refused, lock},
    },
    public::Compression,
};

/// Where attackers come from, so that limits by address can tell them from victims.
pub const ATTACKERS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Connections of a party that is not about connections.
pub const CONNECTIONS: u16 = 16;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTACKERS_TIMEOUT: Duration = Duration::from_secs(10);
/// What is due at the end of a phase may be answered so much later.
const GRACE: Duration = Duration::from_secs(5);
/// Attackers' threads give way to all others: what victims see must come from the server.
const ATTACKERS_NICENESS: i32 = 10;

/// Who sends what, and how.
#[derive(Debug)]
pub struct Party {
    /// As the report calls it.
    pub name: String,
    /// Whose key.
    pub tenant: Tenant,
    /// What it sends, in turn.
    pub bodies: Arc<[Body]>,
    /// How bodies are packed.
    pub compression: Compression,
    /// Requests a second (open loop); `None`: the next when the last is answered.
    pub rate: Option<f64>,
    /// Connections.
    pub connections: u16,
    /// What it does when it is refused.
    pub refused: Refused,
    /// A connection is closed after so many requests.
    pub reconnect_after: Option<u64>,
    /// True: it is no victim.
    pub attacks: bool,
    /// Where acknowledged ids go.
    pub journal: Option<std::path::PathBuf>,
}

/// What a party did in a phase, or in several.
#[derive(Debug)]
pub struct Outcome {
    /// Counts and latencies.
    pub stats: Stats,
    /// Requests that were due, or sent where nothing says when.
    pub due: u64,
    /// Of these: never sent, since every connection was waiting for the server.
    pub blocked: u64,
    /// What was let in while it was measured.
    pub measured: Let,
    /// How long that was.
    pub span: Duration,
    /// How long all of it was.
    pub lasted: Duration,
}

impl Outcome {
    /// Nothing yet.
    ///
    /// # Errors
    /// As [`Stats::new`].
    pub fn new() -> Result<Self, Fault> {
        let (measured, span, lasted) = (Let::default(), Duration::ZERO, Duration::ZERO);
        Ok(Self { stats: Stats::new()?, due: 0, blocked: 0, measured, span, lasted })
    }

    /// Adds another phase's.
    ///
    /// # Errors
    /// As [`Stats::add`].
    pub fn add(&mut self, other: &Self) -> Result<(), Fault> {
        self.stats.add(&other.stats)?;
        self.due += other.due;
        self.blocked += other.blocked;
        self.measured.add(other.measured);
        self.span += other.span;
        self.lasted += other.lasted;
        Ok(())
    }
}

impl Party {
    /// Sends without a rate over a few connections, and gives up what is refused.
    #[must_use]
    pub fn honest(tenant: &Tenant, bodies: Arc<[Body]>) -> Self {
        Self {
            name: tenant.name.clone(),
            tenant: tenant.clone(),
            bodies,
            compression: Compression::None,
            rate: None,
            connections: CONNECTIONS,
            refused: Refused::GivenUp,
            reconnect_after: None,
            attacks: false,
            journal: None,
        }
    }

    /// The same from another address, on threads that give way to the others'.
    #[must_use]
    pub fn attacker(tenant: &Tenant, bodies: Arc<[Body]>) -> Self {
        Self { attacks: true, ..Self::honest(tenant, bodies) }
    }

    /// Events in each of its requests; the mean where they differ.
    #[must_use]
    pub fn events_each(&self) -> f64 {
        self.mean(|body| body.template.types.len())
    }

    /// Bytes of each of its requests, as they are sent.
    #[must_use]
    pub fn bytes_each(&self) -> f64 {
        self.mean(|body| match body.template.is_fixed() {
            true => body.packed.len(),
            false => body.template.bytes.len(),
        })
    }

    fn mean(&self, of: impl Fn(&Body) -> usize) -> f64 {
        let sum: usize = self.bodies.iter().map(of).sum();
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let mean = sum as f64 / self.bodies.len().max(1) as f64;
        mean
    }

    fn plan(&self, server: &Server, when: &When) -> Result<Plan, Fault> {
        let target = server.target.clone();
        let interval = self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(0.001)));
        let requests = match interval {
            // A victim's requests are all sent, the last ones a little later if need be.
            Some(interval) if !self.attacks => {
                u64::try_from(when.lasts.as_nanos() / interval.as_nanos().max(1))
                    .unwrap_or(u64::MAX)
            }
            _ => u64::MAX,
        };
        let grace = if requests == u64::MAX { Duration::ZERO } else { GRACE };
        let event_types = vec!["load".to_owned()];
        let Some(protocol) = PROTOCOLS.first() else {
            return Err(Fault::failed("there is no protocol", "this is a fault of ingestctl"));
        };
        Ok(Plan {
            target: if self.attacks { target.from(ATTACKERS) } else { target },
            protocol,
            keys: vec![(Some(self.tenant.name.clone()), self.tenant.authorization.clone())],
            event_types,
            compression: self.compression,
            bodies: Arc::clone(&self.bodies),
            tail: None,
            requests,
            interval,
            start: when.start,
            end: Some(when.start + when.lasts + grace),
            run: rand::random(),
            refused: self.refused,
            reconnect_after: self.reconnect_after,
            timeout: if self.attacks { ATTACKERS_TIMEOUT } else { TIMEOUT },
            next: AtomicU64::new(0),
            due: Semaphore::new(0),
            stop: AtomicBool::new(false),
            journal: self.journal.as_deref().map(Journal::create).transpose()?.map(Mutex::new),
            fault: Mutex::new(None),
            stalls: Some(Arc::clone(&when.stalls)),
        })
    }
}

/// When a party sends, and which part of that is measured.
#[derive(Clone, Debug)]
pub struct When {
    /// From.
    pub start: Instant,
    /// For so long.
    pub lasts: Duration,
    /// What is let in counts from so long after the start.
    pub measured_after: Duration,
    /// When the load itself stood still.
    pub stalls: Arc<Stalls>,
}

/// One party's part in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Who.
    pub party: &'a Party,
    /// So long after the phase began.
    pub after: Duration,
    /// For so long.
    pub lasts: Duration,
    /// What is let in counts from so long after its own start.
    pub measured_after: Duration,
}

impl<'a> Part<'a> {
    /// From the phase's beginning, measured from there.
    #[must_use]
    pub fn whole(party: &'a Party, lasts: Duration) -> Self {
        Self { party, after: Duration::ZERO, lasts, measured_after: Duration::ZERO }
    }
}

/// Has all of them send at once, beside `raws`, and waits for the end of the last.
///
/// # Errors
/// [`Fault::Failed`] where one could not go on.
pub async fn run(
    server: &Server,
    parts: &[Part<'_>],
    raws: &[(&Raw, Duration)],
) -> Result<(Vec<Outcome>, Vec<raw::Counts>), Fault> {
    // A moment for threads to start: then all is on time.
    let begin = Instant::now() + Duration::from_millis(50);
    let watch = Watch::start();
    let mut running = Vec::new();
    for part in parts {
        let start = begin + part.after;
        let stalls = Arc::clone(watch.stalls());
        let when = When { start, lasts: part.lasts, measured_after: part.measured_after, stalls };
        let plan = Arc::new(part.party.plan(server, &when)?);
        let niceness = if part.party.attacks { ATTACKERS_NICENESS } else { 0 };
        let run = Running::start(plan, part.party.connections, 1, niceness)?;
        running.push((part.party, when, run));
    }
    let mut open = Vec::new();
    for (raw, lasts) in raws {
        open.push(raw::Running::start(raw, &server.target, begin + *lasts, ATTACKERS_NICENESS)?);
    }
    while !(running.iter().all(|(.., run)| run.is_finished() || run.plan().is_over())
        && open.iter().all(raw::Running::is_finished))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut outcomes = Vec::new();
    for (party, when, run) in running {
        // Those who wait for a request that will never be due wake up; then the last answers come.
        run.plan().finish();
        while !run.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        outcomes.push(outcome(party, &when, run)?);
    }
    let counts = open.into_iter().map(raw::Running::join).collect::<Result<_, _>>()?;
    Ok((outcomes, counts))
}

fn outcome(party: &Party, when: &When, run: Running) -> Result<Outcome, Fault> {
    let plan = run.shared_plan();
    let mut stats = run.join()?;
    if let Some(journal) = &plan.journal {
        lock(journal).flush()?;
    }
    if let Some(fault) = lock(&plan.fault).take() {
        return Err(fault);
    }
    let sent = stats.requests.saturating_sub(stats.retries);
    let due = match plan.interval {
        Some(interval) => {
            let due = when.lasts.as_nanos() / interval.as_nanos().max(1);
            u64::try_from(due).unwrap_or(u64::MAX).min(plan.requests)
        }
        None => sent,
    };
    if !party.attacks {
        engine::unsent(&plan, &mut stats, when.lasts);
    }
    let blocked = due.saturating_sub(sent);
    let measured = stats.let_in_between(when.measured_after, when.lasts);
    let span = when.lasts.saturating_sub(when.measured_after);
    Ok(Outcome { stats, due, blocked, measured, span, lasted: when.lasts })
}
