//! How much the machine takes, and how soon the server is well again after ten times that.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Bench, after, bodies,
    party::{self, CONNECTIONS, Outcome, Part, Party},
    report::{Report, float, percent, share},
    server::{Quota, SETTLE, Server, Setup},
};
use crate::ctl::{
    fault::Fault,
    load::{stats::per, worker::Refused},
};

/// The first part of a measurement is not counted: connections, caches, the first segment.
const WARM_UP: Duration = Duration::from_secs(1);
/// How far over its capacity the server is driven.
const TIMES: f64 = 10.0;
/// Tenants of `recovery`; half of them wait as told, half give up.
const TENANTS: usize = 4;
/// Connections of each.
const STORM_CONNECTIONS: u16 = 1_000;
/// How long is watched after it.
const WATCHED: Duration = Duration::from_secs(20);
/// How soon it has to be well again.
const RECOVERY_SECONDS_MAX: usize = 10;

/// Events a second that go all the way: taken from one tenant without a quota as fast as answers come,
/// and written by the sinks. What the sinks are behind by at the end counts with the time it takes them:
/// answers alone come faster than a machine can go on with.
///
/// # Errors
/// As [`party::run`]; the sinks do not catch up.
pub async fn measure(bench: &Bench<'_>, server: &Server, lasts: Duration) -> Result<f64, Fault> {
    let (_, outcome) = measured(bench, server, lasts).await?;
    sustained(server, &outcome).await
}

async fn sustained(server: &Server, outcome: &Outcome) -> Result<f64, Fault> {
    let behind = server.settle(SETTLE).await?.ok_or_else(|| {
        Fault::failed("the sinks did not catch up after the capacity was measured", "")
    })?;
    let events = outcome.stats.kept.durable();
    Ok(per(events, (outcome.lasted + behind).as_secs_f64()))
}

async fn measured(
    bench: &Bench<'_>,
    server: &Server,
    lasts: Duration,
) -> Result<(Party, Outcome), Fault> {
    bench.say("measuring the capacity");
    let tenant = server.tenant("capacity", Quota::default()).await?;
    let party = Party::honest(&tenant, bodies::plain(bench, bench.victim_batch(), false)?);
    let lasts = lasts.clamp(Duration::from_secs(1), Duration::from_secs(60)) + WARM_UP;
    let part = Part { measured_after: WARM_UP, ..Part::whole(&party, lasts) };
    let (outcomes, _) = party::run(server, &[part], &[]).await?;
    let outcome = outcomes.into_iter().next();
    let outcome = outcome.ok_or_else(|| Fault::failed("nothing was measured", ""))?;
    if outcome.measured.events == 0 {
        return Err(Fault::failed("the server took nothing when its capacity was measured", ""));
    }
    Ok((party, outcome))
}

/// `capacity`
pub async fn alone(bench: &Bench<'_>) -> Result<Report, Fault> {
    let server = Server::start(bench, &Setup::default()).await?;
    let (party, outcome) =
        measured(bench, &server, bench.attack_or(Duration::from_secs(10))).await?;
    let mut report = bench.report();
    let answered = per(outcome.measured.events, outcome.span.as_secs_f64());
    report.fact("answered", format!("{answered:.0} events/s"), json!(answered));
    let rate = sustained(&server, &outcome).await?;
    let text = format!(
        "{rate:.0} events/s to the lake's files: {CONNECTIONS} connections, {} events of {} a request",
        bench.victim_batch(),
        bench.args.event_bytes
    );
    report.fact("capacity", text, json!(rate));
    report.party(&party, &outcome, None);
    after::audited(bench, &mut report, &server, &[(&party, &outcome)], None).await?;
    after::stopped(bench, &mut report, server).await?;
    Ok(report)
}

/// `recovery`
pub async fn recovery(bench: &Bench<'_>) -> Result<Report, Fault> {
    let server = Server::start(bench, &Setup::default()).await?;
    let capacity = measure(bench, &server, Duration::from_secs(4)).await?;
    let storm = bench.attack_or(Duration::from_secs(60));
    let bodies = bodies::plain(bench, bench.victim_batch(), false)?;
    let each = capacity / float(bodies.first().map_or(1, |b| b.template.types.len()) as u64);
    let (mut storms, mut calm) = (Vec::new(), Vec::new());
    for number in 1..=TENANTS {
        let tenant = server.tenant(&format!("tenant-{number}"), Quota::default()).await?;
        let of = |name: &str, times: f64| Party {
            name: format!("{}, {name}", tenant.name),
            rate: Some(each * times / float(TENANTS as u64)),
            ..Party::honest(&tenant, Arc::clone(&bodies))
        };
        let refused = if number % 2 == 0 { Refused::AsTold } else { Refused::GivenUp };
        // On threads that leave the time to those who come after.
        storms.push(Party {
            connections: STORM_CONNECTIONS,
            refused,
            attacks: true,
            ..of("storm", TIMES)
        });
        calm.push(of("after", 0.5));
    }
    bench.say(format!("{} s at {TIMES} times the capacity, then half of it", storm.as_secs()));
    let mut parts: Vec<_> = storms.iter().map(|party| Part::whole(party, storm)).collect();
    parts.extend(calm.iter().map(|p| Part { after: storm, ..Part::whole(p, WATCHED) }));
    let (outcomes, _) = party::run(&server, &parts, &[]).await?;
    let (of_storms, of_calm) = outcomes.split_at(storms.len());
    let mut report = bench.report();
    report.fact("capacity", format!("{capacity:.0} events/s"), json!(capacity));
    about_storm(&mut report, &storms, of_storms, capacity);
    let offered: f64 = calm.iter().map(|p| p.rate.unwrap_or(0.0) * p.events_each()).sum();
    about_recovery(&mut report, of_calm, offered);
    let told: Vec<_> = storms.iter().chain(&calm).zip(&outcomes).collect();
    for (party, outcome) in &told {
        report.party(party, outcome, None);
    }
    after::memory_is_bounded(&mut report, &server);
    after::audited(bench, &mut report, &server, &told, None).await?;
    after::stopped(bench, &mut report, server).await?;
    Ok(report)
}

fn about_storm(report: &mut Report, storms: &[Party], outcomes: &[Outcome], capacity: f64) {
    let (mut due, mut sent) = (0.0, 0.0);
    for (party, outcome) in storms.iter().zip(outcomes) {
        let each = party.events_each() / outcome.lasted.as_secs_f64().max(0.001);
        due += float(outcome.due) * each;
        sent += float(outcome.due - outcome.blocked) * each;
    }
    let (times, reached) = (share(due, capacity), share(sent, capacity));
    let text = format!("{times:.1} times the capacity, of which {reached:.1} found a connection");
    report.fact("offered in the storm", text, json!({"times": times, "delivered_times": reached}));
    report.check("the storm: times the capacity", 9.9 <= times, ">= 10", format!("{times:.1}"));
    let untold: u64 = outcomes.iter().map(|o| o.stats.untold).sum();
    report.check("refusals without Retry-After", untold == 0, "none", untold.to_string());
}

fn about_recovery(report: &mut Report, calm: &[Outcome], offered: f64) {
    let seconds = per_second(calm, Duration::ZERO, WATCHED, offered);
    check_recovery(report, "half the capacity", &seconds);
    let last = seconds.iter().skip(RECOVERY_SECONDS_MAX);
    let mean = share(last.clone().sum(), float(last.count() as u64));
    report.check("goodput after those 10 s", 0.95 <= mean, ">= 95 %", percent(mean));
}

/// What share of `offered` events was accepted in each second from `from` to `to`.
#[must_use]
pub fn per_second(outcomes: &[Outcome], from: Duration, to: Duration, offered: f64) -> Vec<f64> {
    let second = Duration::from_secs(1);
    let mut shares = Vec::new();
    let mut at = from;
    while at + second <= to {
        let events: u64 =
            outcomes.iter().map(|o| o.stats.let_in_between(at, at + second).events).sum();
        shares.push(share(float(events), offered));
        at += second;
    }
    shares
}

/// That goodput is back within ten seconds.
pub fn check_recovery(report: &mut Report, of: &str, seconds: &[f64]) {
    let shown: Vec<_> = seconds.iter().map(|s| format!("{:.0}", s * 100.0)).collect();
    report.fact("goodput a second", format!("{} %", shown.join(" ")), json!(seconds));
    let found = recovered(seconds);
    report.check(
        format!("goodput of {of} is back to 95 %"),
        found.is_some_and(|after| after < RECOVERY_SECONDS_MAX),
        format!("within {RECOVERY_SECONDS_MAX} s"),
        found.map_or("never".to_owned(), |after| format!("in second {}", after + 1)),
    );
}

/// The first second that is well, and from which on all together are.
fn recovered(seconds: &[f64]) -> Option<usize> {
    (0..seconds.len()).find(|first| {
        let rest = seconds.get(*first..).unwrap_or_default();
        let mean = share(rest.iter().sum(), float(rest.len() as u64));
        0.95 <= mean && rest.first().is_some_and(|now| 0.95 <= *now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_the_first_second_that_is_well_and_stays_so() {
        assert_eq!(recovered(&[1.0, 1.0, 1.0]), Some(0));
        assert_eq!(recovered(&[0.1, 0.5, 0.96, 1.0, 0.99]), Some(2));
        assert_eq!(recovered(&[1.0, 0.1, 0.1, 0.1]), None);
        assert_eq!(recovered(&[0.9, 0.94, 0.9]), None);
        // A stall of a moment is made good in the next second.
        assert_eq!(recovered(&[0.2, 0.98, 0.9, 1.1, 1.0]), Some(1));
    }
}
