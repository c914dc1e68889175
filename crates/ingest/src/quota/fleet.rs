//! Quotas that several edges share: leases taken through Redis, in the background, ahead of need.
//!
//! A bucket of a fleet is fed by leases and not by the clock; what the edge does with it is the same.
//! Redis keeps one bucket for all of them, by its own clock, so that all edges together get no more
//! than the rate. Nobody who sends an event ever waits for Redis.
//!
//! * Each edge keeps a part of the burst at hand (half of it divided by the number of edges), and
//!   more while it uses more; what it no longer uses it gives back.
//! * Without Redis an edge is alone: its buckets are fed by the clock again, with the quota divided by
//!   the number of edges. It begins so late that the others, if only this edge is cut off, have
//!   missed it by then and Redis gives them less by that part; it ends before it asks for leases.
//! * A Redis that is not the one of before (its run id) may have forgotten what was taken: all its
//!   buckets begin empty, and until every edge was seen those that were not may be alone.
//! * Of a day each edge holds some, in Redis by its id. That lasts while it is alone, and no longer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Script, aio::MultiplexedConnection};
use serde::Serialize;
use tidegate_event::EventType;

use super::{
    QuotaStoreConfig, Quotas,
    account::{Entry, lock},
    day::Usage,
    limits::{Limits, Rate},
    state::{Feed, State, Tank, part},
};
use crate::{clock::Clock, metrics, tenants::Tenants};

/// For connecting, and for one answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries to connect.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Buckets of one call.
const ROWS: usize = 500;

/// Why there can be no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The URL cannot be looked up.
    #[error("{0}")]
    Reference(String),
    /// It is none of Redis.
    #[error("quota_store.url: {0}")]
    Url(redis::RedisError),
}

/// How this edge stands to the others it shares quotas with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// `local` (nobody shares), `joining`, `fleet`, or `alone` (without Redis).
    pub mode: Mode,
    /// Edges that take leases now, this one included.
    pub edges_seen: u64,
    /// Edges that did, and for whose part room is kept.
    pub edges_missed: u64,
    /// Why it is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What feeds the buckets of this edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The clock: nobody shares its quotas.
    #[default]
    Local,
    /// Nothing yet.
    Joining,
    /// Leases.
    Fleet,
    /// The clock, for its part.
    Alone,
}

impl Mode {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Local, "local"),
        (Self::Joining, "joining"),
        (Self::Fleet, "fleet"),
        (Self::Alone, "alone"),
    ];
}

/// Takes leases for the quotas of one edge.
pub struct Fleet {
    quotas: Arc<Quotas>,
    client: redis::Client,
    script: Script,
    id: String,
    edges: u32,
    lease: Duration,
    mode: Mode,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("id", &self.id).field("mode", &self.mode).finish()
    }
}

/// A connection, and which Redis is at its other end.
struct Link {
    connection: MultiplexedConnection,
    run: String,
}

/// Whose bucket a row is.
#[derive(Clone, Debug)]
enum Which {
    Events,
    Bytes,
    Type(EventType),
    EventsOfDay,
    BytesOfDay,
}

/// One bucket in one call.
struct Row {
    entry: Arc<Entry>,
    which: Which,
    key: String,
    kind: &'static str,
    arguments: [i128; 3],
    day: i64,
}

/// The quotas as `config` has them, and what takes leases for them where they are shared. `id` tells
/// this edge from the others, also after a restart.
///
/// # Errors
/// [`FleetError`].
pub fn open(
    config: &QuotaStoreConfig,
    id: &str,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Quotas>, Option<Fleet>), FleetError> {
    let Some(url) = config.resolved().map_err(FleetError::Reference)? else {
        return Ok((Quotas::new(clock), None));
    };
    let client = redis::Client::open(url).map_err(FleetError::Url)?;
    let (edges, lease) = (config.edges.max(1), config.lease.0);
    let standing = Standing { mode: Mode::Joining, ..Standing::default() };
    let quotas = Quotas::with_feed(clock, Feed::Leased(edges), standing);
    let script = Script::new(include_str!("lease.lua"));
    let (id, mode) = (id.to_owned(), Mode::Joining);
    let fleet = Fleet { quotas: Arc::clone(&quotas), client, script, id, edges, lease, mode };
    Ok((quotas, Some(fleet)))
}

impl Fleet {
    /// After so long without a word the others keep room for an edge.
    fn missed_after(&self) -> Duration {
        (self.lease * 5).max(Duration::from_secs(1))
    }

    /// Takes leases until `stop`, then gives back what is left.
    pub async fn run(mut self, tenants: Arc<Tenants>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let quotas = Arc::clone(&self.quotas);
        let mut link: Option<Link> = None;
        // The last moment at which Redis may have seen this edge.
        let mut seen = Instant::now();
        let mut next_try = Instant::now();
        let mut last = Instant::now();
        loop {
            quotas.know(&tenants.list());
            if link.is_none() && next_try <= Instant::now() {
                link = self.connected().await;
                next_try = Instant::now() + TRY_AGAIN;
            }
            if let Some(open) = &mut link {
                if self.mode == Mode::Alone {
                    // From here on nothing but leases, so that nothing is counted twice.
                    quotas.set_feed(Feed::Leased(self.edges));
                }
                let passed = std::mem::replace(&mut last, Instant::now()).elapsed();
                let told = self.cycle(open, passed).await;
                seen = Instant::now();
                match told {
                    Ok((edges_seen, edges_missed)) => self.joined(edges_seen, edges_missed),
                    Err(error) => {
                        link = None;
                        self.failed(&error);
                        if self.mode == Mode::Alone {
                            quotas.set_feed(Feed::Alone(self.edges));
                        }
                    }
                }
            }
            if self.mode != Mode::Alone && self.missed_after() <= seen.elapsed() {
                quotas.set_feed(Feed::Alone(self.edges));
                self.is_now(Mode::Alone);
            }
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(self.lease) => {}
                () = quotas.made.notified() => {}
            }
        }
        if let Some(mut link) = link {
            self.leave(&mut link).await;
        }
    }

    async fn connected(&self) -> Option<Link> {
        match self.connect().await {
            Ok(link) => Some(link),
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    async fn connect(&self) -> redis::RedisResult<Link> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let about: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let run = about.lines().find_map(|line| line.strip_prefix("run_id:"));
        let no_run = (redis::ErrorKind::Client, "INFO server names no run_id");
        let run = run.ok_or(no_run)?.trim().to_owned();
        Ok(Link { connection, run })
    }

    fn failed(&self, error: &redis::RedisError) {
        metrics::quota_store_failures(1);
        tracing::debug!(%error, "no leases from the quota store");
        lock(&self.quotas.standing).error = Some(error.to_string());
    }

    fn joined(&mut self, edges_seen: u64, edges_missed: u64) {
        if u64::from(self.edges) < edges_seen + edges_missed && self.mode != Mode::Fleet {
            tracing::error!(
                edges = edges_seen + edges_missed,
                configured = self.edges,
                "more edges than quota_store.edges share the quotas: without Redis they would give too much"
            );
        }
        self.is_now(Mode::Fleet);
        let mut standing = lock(&self.quotas.standing);
        *standing = Standing { mode: Mode::Fleet, edges_seen, edges_missed, error: None };
    }

    fn is_now(&mut self, mode: Mode) {
        for (each, name) in Mode::ALL {
            metrics::quota_mode(name, i64::from(each == mode));
        }
        if std::mem::replace(&mut self.mode, mode) == mode {
            return;
        }
        let mut standing = lock(&self.quotas.standing);
        (standing.mode, standing.edges_seen, standing.edges_missed) = (mode, 0, 0);
        match mode {
            Mode::Alone => tracing::warn!(
                error = standing.error,
                edges = self.edges,
                "no leases from the quota store: this edge gives its part of each quota"
            ),
            _ => tracing::info!("quotas are shared with the fleet"),
        }
    }

    /// One round of leases; how many edges there are, and how many are missed.
    async fn cycle(&self, link: &mut Link, passed: Duration) -> redis::RedisResult<(u64, u64)> {
        let entries: Vec<_> = self.quotas.entries.load().values().cloned().collect();
        let mut rows = Vec::new();
        for entry in &entries {
            self.wants(entry, &mut rows);
        }
        let mut edges = (0, 0);
        // Also where nobody wants anything: the others are to see this edge.
        let mut chunks: Vec<&[Row]> = rows.chunks(ROWS).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for chunk in chunks {
            edges = self.call(link, chunk, passed, false).await?;
        }
        Ok(edges)
    }

    async fn call(
        &self,
        link: &mut Link,
        rows: &[Row],
        passed: Duration,
        leaves: bool,
    ) -> redis::RedisResult<(u64, u64)> {
        let mut call = self.script.prepare_invoke();
        call.key("{tidegate}:life").key("{tidegate}:edges");
        call.arg(&link.run).arg(&self.id).arg(self.edges);
        call.arg(self.missed_after().as_secs_f64()).arg(i32::from(leaves));
        for row in rows {
            call.key(&row.key).arg(row.kind);
            for n in &row.arguments {
                call.arg(n.to_string());
            }
        }
        let answer: Vec<i64> = call.invoke_async(&mut link.connection).await?;
        let mut answer = answer.into_iter().map(|n| u64::try_from(n).unwrap_or(0));
        let edges = (answer.next().unwrap_or(0), answer.next().unwrap_or(0));
        for (row, granted) in rows.iter().zip(answer) {
            row.granted(granted, passed);
        }
        Ok(edges)
    }

    /// What an account wants leases for, or gives back.
    fn wants(&self, entry: &Arc<Entry>, rows: &mut Vec<Row>) {
        let limits = entry.limits.load_full();
        let (now, moment) = (entry.time.now(), entry.time.moment());
        let mut state = lock(&entry.state);
        state.advance(&limits, now, moment);
        let tanks = tanks(&mut state, &limits);
        for (which, rate, tank) in tanks {
            let (most, wanted) = self.want(rate, tank);
            if wanted == 0 {
                continue;
            }
            let name = match &which {
                Which::Type(name) => format!("type:{name}"),
                Which::Bytes => "bytes".to_owned(),
                _ => "events".to_owned(),
            };
            let key = format!("{{tidegate}}:{}:{name}", entry.tenant);
            let arguments = [rate.per_second.into(), most.into(), wanted];
            let entry = Arc::clone(entry);
            rows.push(Row { entry, which, key, kind: "r", arguments, day: moment.day });
        }
        let used = state.days.now;
        let before = std::mem::replace(&mut state.leased_at, used);
        let before = if before.day == used.day { before } else { Usage::default() };
        let days = [
            (Which::EventsOfDay, limits.events_per_day, used.events, before.events),
            (Which::BytesOfDay, limits.bytes_per_day, used.bytes, before.bytes),
        ];
        for (which, cap, used, before) in days {
            let (Some(cap), Some(granted)) = (cap, &mut state.days.granted) else { continue };
            let (granted, name) = match which {
                Which::EventsOfDay => (&mut granted.events, "events"),
                _ => (&mut granted.bytes, "bytes"),
            };
            let demand = used.saturating_sub(before).saturating_mul(2);
            let held = granted.saturating_sub(used);
            // While the call is under way no more than this is used: the rest may be taken back.
            let kept = used.saturating_add(held.min(demand.max(held.div_ceil(2))));
            *granted = kept;
            let key = format!("{{tidegate}}:{}:{name}:{}", entry.tenant, moment.day);
            let arguments = [cap.into(), kept.into(), demand.into()];
            let entry = Arc::clone(entry);
            rows.push(Row { entry, which, key, kind: "d", arguments, day: moment.day });
        }
    }

    /// How much Redis may save up for a bucket, and how much this edge wants of it.
    fn want(&self, rate: Rate, tank: &mut Tank) -> (u64, i128) {
        let milliseconds = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let two_leases = rate.per_second.saturating_mul(milliseconds).div_ceil(500).max(1);
        let standing = part(rate.burst / 2, self.edges);
        let charged = std::mem::take(&mut tank.charged);
        tank.demand = charged.max(tank.demand / 2);
        let size = standing.max(two_leases.min(tank.demand.saturating_mul(2)));
        let most = two_leases.max(rate.burst / 2);
        let back = tank.bucket.resize_backed(size);
        if back != 0 {
            return (most, -i128::from(back));
        }
        (most, tank.bucket.owed().min(two_leases.max(standing)).into())
    }

    /// Gives back what is left of every lease.
    async fn leave(&self, link: &mut Link) {
        let mut rows = Vec::new();
        for entry in self.quotas.entries.load().values() {
            let limits = entry.limits.load_full();
            let day = entry.time.moment().day;
            let mut state = lock(&entry.state);
            for (which, rate, tank) in tanks(&mut state, &limits) {
                let (most, _) = self.want(rate, tank);
                let back = tank.bucket.resize_backed(0);
                let name = match &which {
                    Which::Type(name) => format!("type:{name}"),
                    Which::Bytes => "bytes".to_owned(),
                    _ => "events".to_owned(),
                };
                let key = format!("{{tidegate}}:{}:{name}", entry.tenant);
                let arguments = [rate.per_second.into(), most.into(), -i128::from(back)];
                let entry = Arc::clone(entry);
                rows.push(Row { entry, which, key, kind: "r", arguments, day });
            }
        }
        for chunk in rows.chunks(ROWS) {
            if let Err(error) = self.call(link, chunk, Duration::ZERO, true).await {
                tracing::info!(%error, "leases could not be given back; they lapse");
                return;
            }
        }
    }
}

/// Every bucket of an account.
fn tanks<'a>(
    state: &'a mut State,
    limits: &Limits,
) -> impl Iterator<Item = (Which, Rate, &'a mut Tank)> {
    let events = limits.events.map(|rate| (Which::Events, rate, &mut state.events));
    let bytes = limits.bytes.map(|rate| (Which::Bytes, rate, &mut state.bytes));
    let types = state.types.iter_mut().filter_map(|(name, tank)| {
        Some((Which::Type(name.clone()), *limits.types.get(name)?, tank))
    });
    events.into_iter().chain(bytes).chain(types)
}

impl Row {
    fn granted(&self, n: u64, passed: Duration) {
        let mut state = lock(&self.entry.state);
        let same_day = state.days.now.day == self.day;
        let tank = match &self.which {
            Which::EventsOfDay | Which::BytesOfDay => {
                let Some(granted) = state.days.granted.as_mut().filter(|_| same_day) else {
                    return;
                };
                match self.which {
                    Which::EventsOfDay => granted.events = n,
                    _ => granted.bytes = n,
                }
                return;
            }
            Which::Events => &mut state.events,
            Which::Bytes => &mut state.bytes,
            Which::Type(name) => match state.types.get_mut(name) {
                Some(tank) => tank,
                None => return,
            },
        };
        let [rate, _, wanted] = self.arguments;
        if wanted <= 0 {
            return;
        }
        tank.bucket.feed(n);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let milliseconds = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
        let seen = if i128::from(n) < wanted {
            n.saturating_mul(1000) / milliseconds
        } else {
            // It got all it wanted: it would get more.
            rate
        };
        let before = if tank.expected == 0 { seen } else { tank.expected };
        tank.expected = (before.saturating_mul(4).saturating_add(seen) / 5).clamp(1, rate.max(1));
    }
}

impl Quotas {
    /// From now on this feeds every bucket.
    fn set_feed(&self, next: Feed) {
        let mut feed = lock(&self.feed);
        *feed = next;
        for entry in self.entries.load().values() {
            let limits = entry.limits.load_full();
            let (now, moment) = (entry.time.now(), entry.time.moment());
            let mut state = lock(&entry.state);
            state.advance(&limits, now, moment);
            state.feed = next;
        }
    }
}
