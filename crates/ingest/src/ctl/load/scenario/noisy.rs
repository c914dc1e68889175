//! A tenant far over its quota beside four that keep to theirs, in seven ways; and slow sockets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Bench, after, bodies, capacity,
    party::{self, Outcome, Part, Party},
    pin::Watch,
    raw::{Counts, Kind, Raw},
    report::{Report, float, goodput, jain, percent, share},
    server::{Quota, SETTLE, Server, Setup, Tenant},
};
use crate::ctl::{
    fault::Fault,
    human,
    load::{
        stats::{Stats, cpu_seconds, milliseconds},
        worker::Refused,
    },
    public::Compression,
};

/// Tenants that keep to their quotas.
const VICTIMS: u16 = 4;
/// What they offer together, of what the machine takes; and what has to come of that at least.
const VICTIMS_SHARE: f64 = 0.55;
const VICTIMS_SHARE_MIN: f64 = 0.5;
/// The same beside slow sockets: what those cost others is looked for, not what is left of a machine
/// that is nearly full, where little more work makes much longer queues.
const SOCKETS_VICTIMS_SHARE: f64 = 0.2;
const SOCKETS_VICTIMS_SHARE_MIN: f64 = 0.15;
/// How far the attacker is over its quota; a little more is offered, so that it is never less.
const TIMES: f64 = 100.0;
const OFFERED_TIMES: f64 = 103.0;
/// The attack begins so long before anything is measured: the attacker's burst is gone then.
const LEAD: Duration = Duration::from_secs(2);
/// The same of slow sockets: all of them have come then.
const SOCKETS_LEAD: Duration = Duration::from_secs(5);
/// Above this share of a core the load itself may have been what could not keep up; and so where it
/// was ready to run for this share of the time and others had the CPU.
const LOAD_CPU_MAX: f64 = 0.9;
const STARVED_MAX: f64 = 0.2;

/// With more than this left out, latencies say little.
const LEFT_OUT_MAX: f64 = 0.05;

/// More than this is no quiet machine.
const OTHERS_MAX: f64 = 0.2;

/// One way to be noisy.
struct Way {
    quota: Quota,
    /// What the victims offer together, of the capacity, and the least that has to be.
    share: f64,
    share_min: f64,
    /// True: what is let in must be the quota within 2 %; else not more than that.
    exact: bool,
    /// Rounds of a phase without and one with the attack: noise of the machine meets both alike.
    rounds: u32,
    /// The attack begins so long before anything is measured.
    lead: Duration,
    /// How long all attacks last together, and all phases without one.
    attack: Duration,
    alone: Duration,
    /// What p99 may be of what it is without the attack.
    inflation_max: f64,
    /// True: the attack is also measured alone, for what a refusal costs.
    refusals: bool,
}

/// Who attacks.
#[derive(Default)]
struct Attackers {
    parties: Vec<Party>,
    raws: Vec<Raw>,
}

impl Way {
    fn new(bench: &Bench<'_>, quota: Quota) -> Self {
        let attack = bench.attack();
        // A short run has one round, or none of its phases would be long enough.
        let rounds = if attack < Duration::from_secs(8) { 1 } else { 2 };
        let alone = attack / 2;
        Self {
            quota,
            share: VICTIMS_SHARE,
            share_min: VICTIMS_SHARE_MIN,
            exact: true,
            rounds,
            lead: LEAD,
            attack,
            alone,
            inflation_max: 1.5,
            refusals: false,
        }
    }

    fn per_second(&self) -> f64 {
        float(self.quota.events.or(self.quota.bytes).unwrap_or(0))
    }

    /// What counts against the quota of what was let in.
    fn charged(&self, outcome: &Outcome) -> f64 {
        float(match self.quota.events {
            Some(_) => outcome.measured.events,
            None => outcome.measured.bytes,
        })
    }

    /// What a request of a party counts against the quota.
    fn each(&self, party: &Party) -> f64 {
        match self.quota.events {
            Some(_) => party.events_each(),
            None => party.bytes_each(),
        }
    }
}

/// A flood at 100 times the quota that never waits, and some connections that do as they are told.
fn flood(way: &Way, base: Party, connections: u16, polite: u16) -> Vec<Party> {
    let rate = OFFERED_TIMES * way.per_second() / way.each(&base).max(1.0);
    let waiting = Party {
        name: "polite".to_owned(),
        compression: base.compression,
        connections: polite,
        refused: Refused::AsTold,
        ..Party::attacker(&base.tenant, Arc::clone(&base.bodies))
    };
    let name = "flood".to_owned();
    vec![Party { name, rate: Some(rate), connections, ..base }, waiting]
}

/// `noisy-requests`
pub async fn requests(bench: &Bench<'_>) -> Result<Report, Fault> {
    let way = Way::new(bench, Quota { events: Some(200), bytes: None });
    neighbour(bench, &way, |tenant| {
        let base = Party::attacker(tenant, bodies::plain(bench, 10, false)?);
        Ok(Attackers { parties: flood(&way, base, 256, 8), raws: Vec::new() })
    })
    .await
}

/// `noisy-bytes`
pub async fn bytes(bench: &Bench<'_>) -> Result<Report, Fault> {
    let way = Way::new(bench, Quota { events: None, bytes: Some(2_048_000) });
    neighbour(bench, &way, |tenant| {
        let base = Party::attacker(tenant, bodies::plain(bench, 256, false)?);
        Ok(Attackers { parties: flood(&way, base, 256, 4), raws: Vec::new() })
    })
    .await
}

/// `noisy-tiny`
pub async fn tiny(bench: &Bench<'_>) -> Result<Report, Fault> {
    let quota = Quota { events: Some(50), bytes: None };
    let way = Way { refusals: true, ..Way::new(bench, quota) };
    neighbour(bench, &way, |tenant| {
        let base = Party::attacker(tenant, bodies::plain(bench, 1, false)?);
        Ok(Attackers { parties: flood(&way, base, 256, 8), raws: Vec::new() })
    })
    .await
}

/// `noisy-connections`
pub async fn connections(bench: &Bench<'_>) -> Result<Report, Fault> {
    let way = Way::new(bench, Quota { events: Some(10), bytes: None });
    neighbour(bench, &way, |tenant| {
        let base = Party::attacker(tenant, bodies::plain(bench, 1, false)?);
        let base = Party { reconnect_after: Some(4), ..base };
        Ok(Attackers { parties: flood(&way, base, 4_000, 8), raws: Vec::new() })
    })
    .await
}

/// `noisy-slow-bodies`
pub async fn slow_bodies(bench: &Bench<'_>) -> Result<Report, Fault> {
    let quota = Quota { events: Some(50), bytes: None };
    let way = Way { exact: false, ..Way::new(bench, quota) };
    neighbour(bench, &way, |tenant| {
        let kind = Kind::SlowBody { gap: Duration::from_millis(100) };
        let raws = vec![Raw { kind, connections: 1_000, tenant: tenant.clone() }];
        let base = Party::attacker(tenant, bodies::plain(bench, 10, false)?);
        // Only those that wait as told.
        let parties = flood(&way, base, 1, 8).split_off(1);
        Ok(Attackers { parties, raws })
    })
    .await
}

/// `noisy-types`
pub async fn types(bench: &Bench<'_>) -> Result<Report, Fault> {
    // Once it has named as many types as a tenant may, its events are rejected: they use its quota up
    // and are not accepted.
    let quota = Quota { events: Some(200), bytes: None };
    let way = Way { exact: false, ..Way::new(bench, quota) };
    neighbour(bench, &way, |tenant| {
        let base = Party::attacker(tenant, bodies::of_fresh_types(bench, 10)?);
        Ok(Attackers { parties: flood(&way, base, 256, 8), raws: Vec::new() })
    })
    .await
}

/// `noisy-bombs`
pub async fn bombs(bench: &Bench<'_>) -> Result<Report, Fault> {
    let way = Way::new(bench, Quota { events: None, bytes: Some(200_000) });
    neighbour(bench, &way, |tenant| {
        let mut parties = Vec::new();
        for (name, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd)] {
            let base = Party::attacker(tenant, bodies::bombs(compression)?);
            for mut one in flood(&way, Party { compression, ..base }, 128, 4) {
                one.name = format!("{} {name}", one.name);
                // Both floods together are what one is elsewhere.
                one.rate = one.rate.map(|rate| rate / 2.0);
                parties.push(one);
            }
        }
        Ok(Attackers { parties, raws: Vec::new() })
    })
    .await
}

/// `slow-sockets`
pub async fn slow_sockets(bench: &Bench<'_>) -> Result<Report, Fault> {
    let attack = bench.attack_or(Duration::from_secs(60));
    let rounds = if attack < Duration::from_secs(12) { 1 } else { 2 };
    let quota = Quota { events: Some(50), bytes: None };
    let way = Way {
        exact: false,
        share: SOCKETS_VICTIMS_SHARE,
        share_min: SOCKETS_VICTIMS_SHARE_MIN,
        rounds,
        lead: SOCKETS_LEAD,
        attack,
        alone: attack,
        inflation_max: 1.05,
        ..Way::new(bench, quota)
    };
    neighbour(bench, &way, |tenant| {
        let kinds = [
            (Kind::HalfHead, 1_700),
            (Kind::SlowBody { gap: Duration::from_secs(1) }, 1_650),
            (Kind::NeverReads, 1_650),
        ];
        let raw = |(kind, connections)| Raw { kind, connections, tenant: tenant.clone() };
        Ok(Attackers { parties: Vec::new(), raws: kinds.map(raw).into() })
    })
    .await
}

/// What was measured of everyone.
struct Measured {
    /// Victims without the attack, and with it.
    alone: Vec<Outcome>,
    attacked: Vec<Outcome>,
    attackers: Vec<Outcome>,
    raws: Vec<Counts>,
    /// The load's own share of a core during attacks.
    load_cpu: Option<f64>,
    /// Cores that others took all the while: neither the server nor the load.
    others: Option<f64>,
    /// Microseconds of the server's CPU time for each refused request, of the attack alone.
    refusal_micros: Option<f64>,
    /// Since the attacker's quota began to count.
    since: Instant,
}

async fn neighbour(
    bench: &Bench<'_>,
    way: &Way,
    make: impl Fn(&Tenant) -> Result<Attackers, Fault>,
) -> Result<Report, Fault> {
    let server = Server::start(bench, &Setup::default()).await?;
    let capacity = capacity::measure(bench, &server, way.alone / 2).await?;
    let victims = victims(bench, &server, way.share * capacity).await?;
    let attacker = server.tenant("attacker", way.quota).await?;
    let attackers = make(&attacker)?;
    let measured = measure(bench, &server, way, &victims, &attackers).await?;
    let mut report = bench.report();
    let offered: f64 = victims.iter().map(|v| v.rate.unwrap_or(0.0) * v.events_each()).sum();
    let text =
        format!("{capacity:.0} events/s to the lake's files, {} a request", bench.victim_batch());
    report.fact("capacity", text, json!(capacity));
    let text =
        format!("{offered:.0} events/s, {} of the capacity", percent(share(offered, capacity)));
    report.fact("victims offer", text, json!(offered));
    about_victims(&mut report, way, &victims, &measured);
    report.check(
        "victims: offer, of the capacity",
        way.share_min <= share(offered, capacity),
        format!(">= {}", percent(way.share_min)),
        percent(share(offered, capacity)),
    );
    about_attackers(&mut report, way, &attackers, &measured);
    let mut told: Vec<_> = victims.iter().zip(&measured.alone).collect();
    told.extend(victims.iter().zip(&measured.attacked));
    told.extend(attackers.parties.iter().zip(&measured.attackers));
    let books = after::audited(bench, &mut report, &server, &told, None).await?;
    by_the_books(&mut report, way, &attackers, &measured, &books);
    after::stopped(bench, &mut report, server).await?;
    Ok(report)
}

/// The victims, with `offered` events/s together.
async fn victims(bench: &Bench<'_>, server: &Server, offered: f64) -> Result<Vec<Party>, Fault> {
    let batch = bench.victim_batch();
    let bodies = bodies::plain(bench, batch, false)?;
    let events = offered / f64::from(VICTIMS);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let twice = (events * 2.0).ceil().max(1.0) as u64;
    let mut victims = Vec::new();
    for number in 1..=VICTIMS {
        let bytes = twice * bench.args.event_bytes.0;
        let quota = Quota { events: Some(twice), bytes: Some(bytes) };
        let tenant = server.tenant(&format!("victim-{number}"), quota).await?;
        let rate = Some(events / float(batch as u64));
        let base = Party::honest(&tenant, Arc::clone(&bodies));
        victims.push(Party { rate, ..base });
    }
    Ok(victims)
}

async fn measure(
    bench: &Bench<'_>,
    server: &Server,
    way: &Way,
    victims: &[Party],
    attackers: &Attackers,
) -> Result<Measured, Fault> {
    let nothing = |n: usize| (0..n).map(|_| Outcome::new()).collect::<Result<Vec<_>, _>>();
    let mut measured = Measured {
        alone: nothing(victims.len())?,
        attacked: nothing(victims.len())?,
        attackers: nothing(attackers.parties.len())?,
        raws: vec![Counts::default(); attackers.raws.len()],
        load_cpu: None,
        others: None,
        refusal_micros: None,
        since: Instant::now(),
    };
    let (alone, attack) = (way.alone / way.rounds, way.attack / way.rounds);
    let mut load = (0.0, 0.0);
    let watch = Watch::start(&bench.pins, server);
    for round in 1..=way.rounds {
        bench.say(format!("round {round} of {}: the victims alone", way.rounds));
        quiet(server).await?;
        let parts: Vec<_> = victims.iter().map(|v| Part::whole(v, alone)).collect();
        let (outcomes, _) = party::run(server, &parts, &[]).await?;
        add(&mut measured.alone, &outcomes)?;
        bench.say(format!("round {round} of {}: the attack", way.rounds));
        quiet(server).await?;
        let mut parts: Vec<_> =
            victims.iter().map(|v| Part { after: way.lead, ..Part::whole(v, attack) }).collect();
        let attacking = |p| Part { measured_after: way.lead, ..Part::whole(p, way.lead + attack) };
        parts.extend(attackers.parties.iter().map(attacking));
        let raws: Vec<_> = attackers.raws.iter().map(|raw| (raw, way.lead + attack)).collect();
        let (cpu, begun) = (cpu_seconds(), Instant::now());
        let (outcomes, counts) = party::run(server, &parts, &raws).await?;
        if let Some((after, before)) = cpu_seconds().zip(cpu) {
            load = (load.0 + after - before, load.1 + begun.elapsed().as_secs_f64());
        }
        let (of_victims, of_attackers) = outcomes.split_at(victims.len());
        add(&mut measured.attacked, of_victims)?;
        add(&mut measured.attackers, of_attackers)?;
        measured.raws.iter_mut().zip(&counts).for_each(|(sum, one)| sum.add(one));
    }
    measured.others = watch.others(&bench.pins, server);
    measured.load_cpu = (load.1 > 0.0).then(|| load.0 / load.1);
    if way.refusals {
        bench.say("the attack alone");
        quiet(server).await?;
        measured.refusal_micros = refusals(server, attackers, (attack / 4).max(LEAD)).await?;
    }
    Ok(measured)
}

fn add(sums: &mut [Outcome], outcomes: &[Outcome]) -> Result<(), Fault> {
    sums.iter_mut().zip(outcomes).try_for_each(|(sum, one)| sum.add(one))
}

/// Until the lake has caught up: what the last phase left is no part of the next.
async fn quiet(server: &Server) -> Result<(), Fault> {
    server.settle(SETTLE).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(())
}

/// What a refusal costs the server, in microseconds of CPU time.
async fn refusals(
    server: &Server,
    attackers: &Attackers,
    lasts: Duration,
) -> Result<Option<f64>, Fault> {
    let parts: Vec<_> = attackers.parties.iter().map(|p| Part::whole(p, lasts)).collect();
    let before = server.cpu_seconds();
    let (outcomes, _) = party::run(server, &parts, &[]).await?;
    let after = server.cpu_seconds();
    let refused = |o: &Outcome| [429, 503].iter().filter_map(|c| o.stats.codes.get(c)).sum::<u64>();
    let refused: u64 = outcomes.iter().map(refused).sum();
    let spent = after.zip(before).map(|(after, before)| after - before);
    Ok(spent.filter(|_| refused > 0).map(|seconds| seconds * 1e6 / float(refused)))
}

fn about_victims(report: &mut Report, way: &Way, victims: &[Party], measured: &Measured) {
    let (mut shares, mut refused, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let p99 = |stats: &Stats| milliseconds(&stats.latency, 99.0);
    for ((victim, alone), attacked) in victims.iter().zip(&measured.alone).zip(&measured.attacked) {
        report.party(victim, attacked, Some(&alone.stats));
        shares.push(goodput(victim, attacked));
        let codes = &attacked.stats.codes;
        refused.push([429, 503].iter().filter_map(|code| codes.get(code)).sum::<u64>());
        ratios.push(share(p99(&attacked.stats), p99(&alone.stats)));
    }
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    report.check("victims: least goodput", 0.99 <= least, ">= 99 %", percent(least));
    let most = refused.iter().max().copied().unwrap_or(0);
    let name = "victims: most 429 and 503";
    report.check(name, most == 0, "none", human::count(most));
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    report.check(
        "victims: worst p99, of that without the attack",
        worst <= way.inflation_max,
        format!("<= {:.2}", way.inflation_max),
        format!("{worst:.3}"),
    );
    left_out(report, measured);
    report.fact("Jain index", format!("{:.4}", jain(&shares)), json!(jain(&shares)));
}

/// What of the victims' answers is in no latency, the load itself having stood still meanwhile.
fn left_out(report: &mut Report, measured: &Measured) {
    let of = |outcomes: &[Outcome]| {
        let sum = |of: fn(&Stats) -> u64| outcomes.iter().map(|o| of(&o.stats)).sum::<u64>();
        share(float(sum(|s| s.stalled)), float(sum(|s| s.codes.values().sum())))
    };
    let (alone, attacked) = (of(&measured.alone), of(&measured.attacked));
    report.check(
        "victims: latencies left out, the load having stood still",
        alone.max(attacked) <= LEFT_OUT_MAX,
        format!("<= {}", percent(LEFT_OUT_MAX)),
        format!("{} alone, {} attacked", percent(alone), percent(attacked)),
    );
}

fn about_attackers(report: &mut Report, way: &Way, attackers: &Attackers, measured: &Measured) {
    let (mut offered, mut delivered, mut charged, mut seconds) = (0.0, 0.0, 0.0, 0.0_f64);
    let (mut waited, mut kept) = (0, 0);
    for (party, outcome) in attackers.parties.iter().zip(&measured.attackers) {
        report.party(party, outcome, None);
        charged += way.charged(outcome);
        seconds = seconds.max(outcome.span.as_secs_f64());
        let lasted = outcome.lasted.as_secs_f64();
        offered += float(outcome.due) * way.each(party) / lasted;
        delivered += float(outcome.due - outcome.blocked) * way.each(party) / lasted;
        waited += outcome.stats.waited;
        kept += outcome.stats.waited_let_in;
    }
    for (raw, counts) in attackers.raws.iter().zip(&measured.raws) {
        let Counts { opened, not_opened, ended, offered } = counts;
        let text = format!(
            "{}: {opened} opened, {ended} ended by the server, {not_opened} failed, {offered} requests begun",
            raw.connections
        );
        report.fact(
            raw.kind.name(),
            text,
            json!({"connections": raw.connections, "opened": opened,
            "ended": ended, "not_opened": not_opened, "offered": offered}),
        );
    }
    let quota = way.per_second();
    let (times, let_in) = (share(offered, quota), share(charged, quota * seconds));
    if attackers.raws.is_empty() {
        hundredfold(report, measured, times, share(delivered, quota));
    }
    if !attackers.parties.is_empty() {
        let unit = if way.quota.events.is_some() { "events" } else { "bytes" };
        report.fact("attacker quota", format!("{quota:.0} {unit}/s"), json!(quota));
        let (holds, wanted) = match way.exact {
            true => ((0.98..=1.02).contains(&let_in), "98 to 102 %"),
            false => (let_in <= 1.02, "<= 102 %"),
        };
        report.check("attacker: let in, of its quota", holds, wanted, percent(let_in));
        let share_kept = share(float(kept), float(waited));
        let found = format!("{} ({kept} of {waited})", percent(share_kept));
        let holds = waited > 0 && 0.9 <= share_kept;
        report.check("waited as told, let in at the next try", holds, ">= 90 %", found);
        let untold: u64 = measured.attackers.iter().map(|o| o.stats.untold).sum();
        report.check("refusals without Retry-After", untold == 0, "none", human::count(untold));
    }
    if let Some(micros) = measured.refusal_micros {
        report.fact("server CPU a refusal", format!("{micros:.1} µs"), json!(micros));
    }
    if let Some(others) = measured.others {
        let text = format!("{others:.2} cores, on the CPUs of this run");
        report.fact("others took", text, json!(others));
        if OTHERS_MAX < others {
            report
                .note("the machine was busy with other work: latencies are not the server's alone");
        }
    }
    if let Some(cpu) = measured.load_cpu {
        report.fact("load CPU", format!("{} of a core", percent(cpu)), json!(cpu));
    }
}

/// That the attack was what it is called: attempts count, also those that the server held back, as
/// long as the load itself could have sent them.
fn hundredfold(report: &mut Report, measured: &Measured, times: f64, delivered: f64) {
    let starved = |o: &Outcome| share(o.stats.starved.as_secs_f64(), o.lasted.as_secs_f64());
    let starved = measured.attackers.iter().map(starved).fold(0.0, f64::max);
    let able = starved < STARVED_MAX && measured.load_cpu.is_some_and(|cpu| cpu < LOAD_CPU_MAX);
    let text = format!("{times:.1} times its quota, of which {delivered:.1} reached the server");
    report.fact("attacker offers", text, json!({"times": times, "delivered_times": delivered}));
    let text = format!("{} of the time", percent(starved));
    report.fact("attacker without CPU", text, json!(starved));
    if delivered < TIMES {
        report.note(match able {
            true => {
                "not all of the attack reached the server: its connections were waiting for the \
                 server, while the load had time to spare; what was due counts as offered"
            }
            false => "not all of the attack reached the server: the load had too little CPU time",
        });
    }
    report.check(
        "attacker: times its quota",
        TIMES <= times && (TIMES <= delivered || able),
        ">= 100",
        format!("{times:.1}, {delivered:.1} reached the server"),
    );
}

/// What the books say that was let in: also of those who never read an answer.
fn by_the_books(
    report: &mut Report,
    way: &Way,
    attackers: &Attackers,
    measured: &Measured,
    books: &Value,
) {
    let Some(quota) = way.quota.events.filter(|_| !attackers.raws.is_empty()) else { return };
    let accepted = after::in_the_books(books, "attacker");
    let entitled = float(quota) * (1.0 + measured.since.elapsed().as_secs_f64());
    report.check(
        "attacker: accepted by the books, of its quota and burst",
        share(float(accepted), entitled) <= 1.02,
        "<= 102 %",
        percent(share(float(accepted), entitled)),
    );
}
