//! Quotas that several edges share through a real Redis, which goes away and comes back empty.
//!
//! What this does not prove: how edges speak HTTP (the edge's tests) and what one bucket gives over
//! hours (the state's own tests, in simulated time).

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_event::{EventType, TenantId};
use tidegate_ingest::{
    clock::ManualClock,
    quota::{self, Line, Mode, Patience, QuotaStoreConfig, Quotas},
    tenants::{NewTenant, Quota, Tenant, Tenants},
};

use crate::tally::Tally;

const NOON_MICROS: i64 = 1_700_006_400_000_000;
const RATE: u64 = 1000;
const BURST: u64 = 1000;
const EDGES: u32 = 3;
const BATCH: u64 = 5;

/// A Redis of the test's own, without a file.
struct Redis {
    child: Child,
    port: u16,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    /// `None` where none is installed, which CI does not allow.
    fn start(port: u16) -> Option<Self> {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
        command.arg(port.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "redis-server: {error}");
                eprintln!("SKIPPED 1: quota: redis-server is not installed ({error})");
                return None;
            }
        };
        let redis = Self { child, port };
        wait_for("redis", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(redis)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An edge's quotas, and what was served of each tenant.
struct Edge {
    quotas: Arc<Quotas>,
    served: Arc<AtomicU64>,
    served_of_day: Arc<AtomicU64>,
}

/// Sends batches at `per_second` until `stop`.
fn send(edge: &Edge, tenant: &Arc<Tenant>, per_second: u64, of_day: bool, stop: &Arc<AtomicBool>) {
    let (quotas, tenant, stop) = (Arc::clone(&edge.quotas), Arc::clone(tenant), Arc::clone(stop));
    let served = Arc::clone(if of_day { &edge.served_of_day } else { &edge.served });
    std::thread::spawn(move || {
        let line = Line { keeps: false, multiplexed: false };
        let kind = EventType::new("t").unwrap();
        let (began, mut sent) = (Instant::now(), 0);
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
            let due = began.elapsed().as_millis() as u64 * per_second / 1000;
            while sent < due {
                sent += BATCH;
                let patience = Mutex::new(Patience::default());
                let mut account = quotas.account(&tenant);
                let Ok(mut admitted) = account.admit(Some(100), line, &patience) else { continue };
                admitted.begin_reading();
                admitted.read(100);
                let counts = [(kind.clone(), BATCH)];
                if admitted.settle(&counts, &mut account, line, &patience).is_ok() {
                    served.fetch_add(BATCH, Ordering::SeqCst);
                }
            }
        }
    });
}

struct World {
    edges: Vec<Edge>,
    began: Instant,
    stop: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl World {
    /// Three edges: one floods, one sends a tenth of the quota, one nothing at all.
    fn start(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOON_MICROS));
        let tenants = Tenants::load(dir.path(), Quota::default(), clock.clone()).unwrap();
        let rate =
            Quota { events_per_second: Some(RATE), events_burst: Some(BURST), ..Quota::default() };
        let day = Quota { events_per_day: Some(5000), ..Quota::default() };
        for (name, quota) in [("rate", rate), ("day", day)] {
            let id = TenantId::new(name).unwrap();
            tenants.add(&NewTenant { id, quota, strict: false }).unwrap();
        }
        let tenants = Arc::new(tenants);
        let config = QuotaStoreConfig {
            url: Some(format!("redis://127.0.0.1:{port}")),
            edges: EDGES,
            ..QuotaStoreConfig::default()
        };
        let began = Instant::now();
        let mut edges = Vec::new();
        for n in 0..EDGES {
            let (quotas, fleet) = quota::open(&config, &format!("edge{n}"), clock.clone()).unwrap();
            let run = fleet.unwrap().run(Arc::clone(&tenants), std::future::pending());
            runtime.spawn(run);
            let (served, served_of_day) = Default::default();
            edges.push(Edge { quotas, served, served_of_day });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let tenant = |name| tenants.get(&TenantId::new(name).unwrap()).unwrap();
        send(&edges[0], &tenant("rate"), 100 * RATE, false, &stop);
        send(&edges[1], &tenant("rate"), RATE / 10, false, &stop);
        send(&edges[0], &tenant("day"), 2000, true, &stop);
        send(&edges[1], &tenant("day"), 100, true, &stop);
        Self { edges, began, stop, _runtime: runtime, _dir: dir }
    }

    fn served(&self) -> u64 {
        self.edges.iter().map(|edge| edge.served.load(Ordering::SeqCst)).sum()
    }

    fn served_of_day(&self) -> u64 {
        self.edges.iter().map(|edge| edge.served_of_day.load(Ordering::SeqCst)).sum()
    }

    fn all_are(&self, mode: Mode) -> bool {
        self.edges.iter().all(|edge| {
            let standing = edge.quotas.standing();
            let seen = if mode == Mode::Fleet { u64::from(EDGES) } else { 0 };
            standing.mode == mode && standing.edges_seen == seen
        })
    }

    /// What was served within a time, of what the quota gave in it. Never more, all the time.
    fn watch(&self, seconds: u64) -> f64 {
        let (from, before) = (Instant::now(), self.served());
        while from.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(20));
            self.is_never_above(from, before);
        }
        (self.served() - before) as f64 / (from.elapsed().as_secs_f64() * RATE as f64)
    }

    /// Neither from the start nor from a later moment.
    #[track_caller]
    fn is_never_above(&self, from: Instant, before: u64) {
        // Counted first: what is served meanwhile is not in it.
        let served = self.served();
        for (from, before) in [(self.began, 0), (from, before)] {
            let most = from.elapsed().as_secs_f64() * RATE as f64 + (BURST + BATCH) as f64;
            assert!((served - before) as f64 <= most, "{} of {most}", served - before);
        }
        let of_day = self.served_of_day();
        assert!(of_day <= 5000, "{of_day} of a day's 5000");
    }
}

#[test]
fn three_edges_share_a_quota_and_are_never_above_it_with_redis_or_without() {
    let mut tally = Tally::new("quota", "tenant at 100x", &["P3"]);
    let Some(mut redis) = Redis::start(free_port()) else { return };
    let port = redis.port;
    let world = World::start(port);
    wait_for("fleet", || world.all_are(Mode::Fleet));
    let share = world.watch(6);
    assert!((0.95..1.2).contains(&share), "in the fleet: {share}");
    assert!(world.edges[1].served.load(Ordering::SeqCst) > 0);
    tally.survived(1);

    redis.kill();
    let (killed, before) = (Instant::now(), world.served());
    wait_for("edges alone", || {
        world.is_never_above(killed, before);
        world.all_are(Mode::Alone)
    });
    let share = world.watch(4);
    // One third for the flood, and the tenth; what the third edge does not use is nobody's.
    assert!((0.35..0.55).contains(&share), "alone: {share}");
    tally.survived(1);

    let (back, before) = (Instant::now(), world.served());
    let _redis = Redis::start(port).unwrap();
    wait_for("fleet again", || {
        world.is_never_above(back, before);
        world.all_are(Mode::Fleet)
    });
    let share = world.watch(6);
    assert!((0.90..1.2).contains(&share), "in the fleet again: {share}");
    tally.survived(1);
    wait_for("the whole day's quota", || {
        world.is_never_above(back, before);
        world.served_of_day() >= 4750
    });
}
