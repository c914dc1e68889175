//! Minutes of traffic against one tenant's state, in simulated time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BinaryHeap, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tidegate_event::TenantId;

use super::{
    day::Moment,
    limits::Limits,
    state::{Ask, Claim, Key, State},
};
use crate::tenants::{Quota, Secret, Tenant, TypeQuota};

const SECOND: u128 = 1_000_000_000;
const NOON: Moment = Moment { day: 20_000, left_seconds: 43_200 };

fn limits(quota: Quota) -> Limits {
    let id = TenantId::new("acme").unwrap();
    let (pii_secret, keys, pairs) = (Secret::default(), Vec::new(), Vec::new());
    let tenant = Tenant { id, enabled: true, strict: false, pii_secret, quota, keys, pairs };
    Limits::of(&Arc::new(tenant))
}

fn events(per_second: u64, burst: u64) -> Quota {
    Quota { events_per_second: Some(per_second), events_burst: Some(burst), ..Quota::default() }
}

/// A connection and its client.
#[derive(Clone, Debug, Default)]
struct Client {
    promise: Option<Key>,
    not_before: Option<u128>,
    impolite: u32,
}

/// One tenant, and what came of its requests.
struct World {
    limits: Limits,
    state: State,
    served: u64,
    served_bytes: u64,
}

/// What became of one request: served, or how long to wait and whether it has a promise.
type Fate = Result<(), (Duration, bool)>;

impl World {
    fn new(quota: Quota) -> Self {
        Self { limits: limits(quota), state: State::default(), served: 0, served_bytes: 0 }
    }

    fn told(&mut self, client: &mut Client, now: u128, refusal: super::state::Refusal) -> Fate {
        client.impolite = if refusal.impolite { client.impolite + 1 } else { 0 };
        client.not_before = Some(now + refusal.after.as_nanos());
        client.promise = refusal.promise;
        Err((refusal.after, refusal.promise.is_some()))
    }

    /// One request of `n` events in `bytes`, from head to answer.
    fn send(&mut self, client: &mut Client, now: u128, n: u64, bytes: u64) -> Fate {
        let ask = Ask {
            declared: Some(bytes),
            promise: client.promise.take(),
            not_before: client.not_before,
            keeps: true,
            multiplexed: false,
        };
        let claim = match self.state.admit(&self.limits, now, NOON, ask) {
            Ok(claim) => claim,
            Err(refusal) => return self.told(client, now, refusal),
        };
        *client = Client::default();
        let found = Claim { events: n, bytes, types: Vec::new() };
        let held = (&claim, NOON.day);
        match self.state.settle(&self.limits, (now, NOON), held, found, ask) {
            Ok(()) => {
                self.served += n;
                self.served_bytes += bytes;
                Ok(())
            }
            Err(refusal) => self.told(client, now, refusal),
        }
    }
}

/// By how much `got` is away from what was to be had in so many seconds.
fn off(got: u64, per_second: u64, burst: u64, seconds: u64) -> f64 {
    let fair = (per_second * seconds + burst) as f64;
    (got as f64 - fair) / fair
}

#[test]
fn a_flood_of_a_hundred_times_the_quota_gets_the_quota() {
    for (batch, poisson, cancelled) in
        [(1, false, 0.0), (1, true, 0.2), (10, true, 0.0), (100, false, 0.1), (1000, true, 0.3)]
    {
        let mut random = SmallRng::seed_from_u64(batch);
        let rate = (5 * batch).min(1000);
        let mut world = World::new(events(rate, 2 * rate));
        let mut now = 0u128;
        while now < 600 * SECOND {
            let mean = SECOND * u128::from(batch) / u128::from(100 * rate);
            now += if poisson {
                (-(1.0 - random.random::<f64>()).ln() * mean as f64) as u128
            } else {
                mean
            };
            // Each on a connection of its own, which ends with it.
            let mut client = Client::default();
            if random.random_bool(cancelled) {
                let ask = Ask {
                    declared: Some(batch * 100),
                    promise: None,
                    not_before: None,
                    keeps: true,
                    multiplexed: false,
                };
                match world.state.admit(&world.limits, now, NOON, ask) {
                    Ok(claim) => world.state.give_up(&world.limits, &claim, NOON.day),
                    Err(refusal) => {
                        refusal.promise.into_iter().for_each(|key| world.state.cancel(key));
                    }
                }
                continue;
            }
            let _ = world.send(&mut client, now, batch, batch * 100);
            client.promise.into_iter().for_each(|key| world.state.cancel(key));
        }
        let off = off(world.served, rate, 2 * rate, 600);
        assert!((-0.02..=0.001).contains(&off), "{batch} {poisson} {cancelled}: {off}");
        assert_eq!(world.state.promises(), 0);
    }
}

#[test]
fn a_flood_of_bytes_gets_the_quota_of_bytes() {
    for bytes in [100u64, 5_000, 60_000] {
        let rate = (5 * bytes).min(100_000);
        let quota = Quota { bytes_per_second: Some(rate), ..Quota::default() };
        let mut world = World::new(quota);
        let mut now = 0u128;
        while now < 600 * SECOND {
            now += SECOND * u128::from(bytes) / u128::from(100 * rate);
            let mut client = Client::default();
            let _ = world.send(&mut client, now, 3, bytes);
            client.promise.into_iter().for_each(|key| world.state.cancel(key));
        }
        let off = off(world.served_bytes, rate, rate, 600);
        assert!((-0.02..=0.001).contains(&off), "{bytes}: {off}");
    }
}

/// How a client behaves once it is refused.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Waits as told, and up to a second more.
    Polite,
    /// Comes back after so many milliseconds, whatever it is told, on the same connection.
    Rude(u64),
    /// Comes back much later than told: what was promised has lapsed.
    Late,
}

struct Outcome {
    served: u64,
    polite_served: u64,
    /// Next tries of polite clients that had a promise, and how many of them were served.
    tries: u64,
    kept: u64,
}

/// Clients that send one request after the other, for `seconds`.
fn closed(quota: Quota, seconds: u64, clients: &[(Manner, u64)], seed: u64) -> Outcome {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::new(quota);
    let mut states: Vec<Client> = clients.iter().map(|_| Client::default()).collect();
    let mut waiting: Vec<bool> = vec![false; clients.len()];
    let mut queue: BinaryHeap<(std::cmp::Reverse<u128>, usize)> = (0..clients.len())
        .map(|at| (std::cmp::Reverse(random.random_range(0..SECOND)), at))
        .collect();
    let mut outcome = Outcome { served: 0, polite_served: 0, tries: 0, kept: 0 };
    while let Some((std::cmp::Reverse(now), at)) = queue.pop() {
        if seconds as u128 * SECOND < now {
            break;
        }
        let (manner, n) = clients[at];
        let fate = world.send(&mut states[at], now, n, n * 100);
        if std::mem::take(&mut waiting[at]) {
            outcome.tries += 1;
            outcome.kept += u64::from(fate.is_ok());
        }
        let polite = matches!(manner, Manner::Polite);
        let pause = match (fate, manner) {
            (Ok(()), Manner::Polite) => {
                outcome.polite_served += n;
                SECOND / 100
            }
            (Ok(()), Manner::Rude(_) | Manner::Late) => SECOND / 100,
            (Err((after, promised)), Manner::Polite) => {
                waiting[at] = polite && promised;
                let told = after.as_nanos().div_ceil(SECOND).max(1) * SECOND;
                told + random.random_range(0..SECOND)
            }
            (Err(_), Manner::Rude(milliseconds)) => u128::from(milliseconds) * SECOND / 1000,
            (Err((after, _)), Manner::Late) => after.as_nanos() + 15 * SECOND,
        };
        queue.push((std::cmp::Reverse(now + pause), at));
    }
    outcome.served = world.served;
    outcome
}

#[test]
fn who_waits_as_told_is_served_at_a_hundred_times_the_quota() {
    // 200 clients that would each send 100 a second with 1000 a second for all of them.
    let clients: Vec<_> = (0..200).map(|n| (Manner::Polite, 1 + n % 20)).collect();
    let outcome = closed(events(200, 200), 600, &clients, 1);
    assert!(outcome.tries > 5_000, "{}", outcome.tries);
    let kept = outcome.kept as f64 / outcome.tries as f64;
    assert!(kept >= 0.99, "{kept}");
    let off = off(outcome.served, 200, 200, 600);
    assert!((-0.02..=0.001).contains(&off), "{off}");
}

#[test]
fn who_waits_as_told_is_served_beside_a_flood_that_does_not() {
    let mut clients: Vec<_> = (0..10).map(|_| (Manner::Polite, 5)).collect();
    clients.extend((0..40).map(|n| (Manner::Rude(20 + n), 5)));
    let outcome = closed(events(100, 100), 600, &clients, 2);
    let kept = outcome.kept as f64 / outcome.tries as f64;
    assert!(kept >= 0.99, "{kept} of {}", outcome.tries);
    assert!(outcome.tries > 500, "{}", outcome.tries);
    let off = off(outcome.served, 100, 100, 600);
    assert!((-0.02..=0.001).contains(&off), "{off}");
}

#[test]
fn promises_that_nobody_takes_up_cost_nothing() {
    let rude: Vec<_> = (0..50).map(|n| (Manner::Rude(1 + n), 5)).collect();
    let late: Vec<_> = (0..300).map(|_| (Manner::Late, 5)).collect();
    let mixed: Vec<_> = rude.iter().chain(&late).copied().collect();
    for (name, clients) in [("rude", rude), ("late and rude", mixed)] {
        let outcome = closed(events(100, 100), 600, &clients, 3);
        let off = off(outcome.served, 100, 100, 600);
        assert!((-0.02..=0.001).contains(&off), "{name}: {off}");
    }
}

/// A flood's connections, and polite ones beside it.
struct Flood {
    quota: Quota,
    connections: usize,
    polite: usize,
    /// A request of either has this many bytes, one after the other.
    sizes: &'static [u64],
    /// Between the flood's requests, in milliseconds: how long the server holds back a refusal.
    pause: fn(&Client) -> u64,
    /// After so many requests, or refusals in a row that it did not wait for, a connection is a new one.
    requests: u32,
    impolite: u32,
}

struct Got {
    events: u64,
    bytes: u64,
    polite: u64,
    tries: u64,
    kept: u64,
}

/// Runs it for `seconds`; what is got is counted after the first 10.
fn run(flood: &Flood, seconds: u128) -> Got {
    let mut random = SmallRng::seed_from_u64(7);
    let mut world = World::new(flood.quota.clone());
    let all = flood.connections + flood.polite;
    // A client, its requests on this connection and over all, and whether it waits for a promise.
    let mut states = vec![(Client::default(), 0u32, 0usize, false); all];
    let mut queue: BinaryHeap<(std::cmp::Reverse<u128>, usize)> =
        (0..all).map(|at| (std::cmp::Reverse(random.random_range(0..2 * SECOND)), at)).collect();
    let mut got = Got { events: 0, bytes: 0, polite: 0, tries: 0, kept: 0 };
    let mut before = None;
    while let Some((std::cmp::Reverse(now), at)) = queue.pop() {
        if 10 * SECOND <= now && before.is_none() {
            before = Some((world.served, world.served_bytes));
        }
        if (10 + seconds) * SECOND < now {
            break;
        }
        let (client, sent, total, waits) = &mut states[at];
        let bytes = flood.sizes[(at + *total) % flood.sizes.len()];
        let fate = world.send(client, now, 1, bytes);
        if std::mem::take(waits) {
            got.tries += 1;
            got.kept += u64::from(fate.is_ok());
        }
        let pause = if at < flood.connections {
            (*sent, *total) = (*sent + 1, *total + 1);
            let pause = u128::from((flood.pause)(client)) * SECOND / 1000;
            if flood.requests <= *sent || flood.impolite <= client.impolite {
                client.promise.into_iter().for_each(|key| world.state.cancel(key));
                (*client, *sent) = (Client::default(), 0);
            }
            pause + random.random_range(0..SECOND / 1000)
        } else {
            match fate {
                Ok(()) => {
                    got.polite += 1;
                    *total += 1;
                    SECOND / 100
                }
                Err((after, promised)) => {
                    *waits = promised;
                    after.as_nanos().div_ceil(SECOND).max(1) * SECOND
                        + random.random_range(0..SECOND / 4)
                }
            }
        };
        queue.push((std::cmp::Reverse(now + pause), at));
    }
    let (events, bytes) = before.unwrap();
    got.events = world.served - events;
    got.bytes = world.served_bytes - bytes;
    got
}

#[test]
fn a_flood_of_bodies_of_many_sizes_gets_the_quota_and_who_waits_its_slots() {
    for (polite, burst) in [(0, 200_000), (8, 200_000), (8, 20_000)] {
        let flood = Flood {
            quota: Quota {
                bytes_per_second: Some(200_000),
                bytes_burst: Some(burst),
                ..Quota::default()
            },
            connections: 256,
            polite,
            sizes: &[15_800, 9_000, 15_800, 4_000, 9_000, 15_800, 9_000, 700],
            pause: |client| u64::from(10 * client.impolite).min(200),
            requests: u32::MAX,
            impolite: 30,
        };
        let got = run(&flood, 60);
        let off = off(got.bytes, 200_000, 0, 60);
        assert!((-0.02..=0.02).contains(&off), "{polite} {burst}: {off}");
        assert!(got.kept * 100 >= got.tries * 99, "{} of {}", got.kept, got.tries);
        assert!(polite == 0 || got.tries > 50, "{}", got.tries);
    }
}

#[test]
fn a_flood_of_short_connections_gets_the_quota_and_who_waits_its_slots() {
    for (polite, bytes_per_second) in [(0, None), (8, Some(30 * 300))] {
        let flood = Flood {
            quota: Quota { bytes_per_second, ..events(30, 30) },
            connections: 4_000,
            polite,
            sizes: &[200],
            pause: |_| 1_300,
            requests: 4,
            impolite: u32::MAX,
        };
        let got = run(&flood, 60);
        let off = off(got.events, 30, 0, 60);
        assert!((-0.02..=0.02).contains(&off), "{polite} {bytes_per_second:?}: {off}");
        assert!(got.kept * 100 >= got.tries * 99, "{} of {}", got.kept, got.tries);
        assert!(polite == 0 || 10 < got.tries, "{}", got.tries);
    }
}

#[test]
fn who_comes_early_loses_its_slot_and_is_counted() {
    let mut world = World::new(events(10, 10));
    let (mut hog, mut client) = (Client::default(), Client::default());
    world.send(&mut hog, 0, 10, 1000).unwrap();
    let (after, promised) = world.send(&mut client, 0, 10, 1000).unwrap_err();
    assert_eq!((after, promised), (Duration::from_secs(1), true));
    let (_, promised) = world.send(&mut client, SECOND / 2, 10, 1000).unwrap_err();
    assert_eq!((promised, client.impolite), (false, 1));
    assert_eq!(world.state.promises(), 0);
    world.send(&mut client, SECOND / 2, 10, 1000).unwrap_err();
    assert_eq!(client.impolite, 2);
    world.send(&mut client, SECOND, 10, 1000).unwrap();
    assert_eq!(client.impolite, 0);
}

#[test]
fn a_batch_larger_than_the_burst_finds_its_slot_too() {
    let mut world = World::new(events(10, 10));
    let mut clients: Vec<_> = (0..5).map(|_| Client::default()).collect();
    world.send(&mut clients[0], 0, 50, 5000).unwrap();
    let mut due = Vec::new();
    for client in &mut clients[1..] {
        let (after, promised) = world.send(client, 0, 50, 5000).unwrap_err();
        assert!(promised, "{after:?}");
        due.push(after.as_nanos());
    }
    assert_eq!(due, [5, 10, 15, 20].map(|s| s * SECOND));
    for (client, due) in clients[1..].iter_mut().zip(due) {
        world.send(client, due, 50, 5000).unwrap();
    }
}

#[test]
fn the_estimate_is_learned_and_a_flood_is_refused_before_its_bodies() {
    let mut world = World::new(events(100, 100));
    let (mut client, mut now) = (Client::default(), 0);
    let ask = Ask {
        declared: Some(10_000),
        promise: None,
        not_before: None,
        keeps: false,
        multiplexed: false,
    };
    for _ in 0..10 {
        now += 10 * SECOND;
        world.send(&mut client, now, 100, 10_000).unwrap();
    }
    let claim = world.state.admit(&world.limits, now + 10 * SECOND, NOON, ask).unwrap();
    assert_eq!(claim.events, 100);
    let refused = world.state.admit(&world.limits, now + 10 * SECOND, NOON, ask).unwrap_err();
    assert_eq!(refused.after, Duration::from_secs(1));
    world.state.give_up(&world.limits, &claim, NOON.day);
    world.send(&mut client, now + 10 * SECOND, 100, 10_000).unwrap();
}

#[test]
fn a_type_has_a_bucket_of_its_own_besides() {
    let page_view = tidegate_event::EventType::new("page_view").unwrap();
    let limit = TypeQuota { events_per_second: Some(5), events_burst: None };
    let quota = Quota { types: [(page_view.clone(), limit)].into(), ..events(1000, 1000) };
    let mut world = World::new(quota);
    let ask = Ask {
        declared: Some(500),
        promise: None,
        not_before: None,
        keeps: true,
        multiplexed: false,
    };
    let mut send = |now: u128, promise, views: u64, others: u64| {
        let claim = world.state.admit(&world.limits, now, NOON, Ask { promise, ..ask }).unwrap();
        let found =
            Claim { events: views + others, bytes: 500, types: vec![(page_view.clone(), views)] };
        world.state.settle(&world.limits, (now, NOON), (&claim, NOON.day), found, ask)
    };
    send(0, None, 5, 50).unwrap();
    let refusal = send(0, None, 5, 0).unwrap_err();
    assert_eq!(refusal.after, Duration::from_secs(1));
    send(0, None, 0, 100).unwrap();
    // All that the type gets is promised.
    send(SECOND, None, 1, 0).unwrap_err();
    send(SECOND, refusal.promise, 5, 0).unwrap();
}

#[test]
fn a_day_ends_at_midnight_and_its_quota_is_exact() {
    let quota =
        Quota { events_per_day: Some(1000), bytes_per_day: Some(1_000_000), ..Quota::default() };
    let mut world = World::new(quota);
    let mut client = Client::default();
    let mut refused = None;
    for _ in 0..500 {
        if let Err((after, promised)) = world.send(&mut client, 0, 3, 300) {
            assert!(!promised);
            refused = Some(after);
        }
    }
    assert_eq!((world.served, refused), (999, Some(Duration::from_secs(43_200))));
    assert_eq!(world.state.days.now.events, 999);
    let next = Moment { day: NOON.day + 1, left_seconds: 86_400 };
    let ask = Ask {
        declared: Some(300),
        promise: None,
        not_before: None,
        keeps: true,
        multiplexed: false,
    };
    world.state.admit(&world.limits, 0, next, ask).unwrap();
    let large = Ask { declared: Some(2_000_000), ..ask };
    let refusal = world.state.admit(&world.limits, 0, next, large).unwrap_err();
    assert_eq!(refusal.reason, crate::shed::ShedReason::QuotaBytes);
}
