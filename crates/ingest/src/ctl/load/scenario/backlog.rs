//! What is behind the log and cannot keep up: a slow sink, a dead one, a full disk.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Bench, after, bodies, capacity,
    party::{self, Outcome, Part, Party},
    report::{Report, float, percent, share},
    server::{LAKE, Quota, Server, Setup},
};
use crate::ctl::{
    fault::Fault,
    human,
    load::{
        stats::{Stats, per},
        worker::Refused,
    },
};

/// What the slow sink takes.
const SLOW_BYTES_PER_SECOND: u64 = 4 << 20;
/// How much more comes in.
const TOO_MUCH: f64 = 3.0;
/// Tenants of `slow-sink`; half of them wait as told, half give up.
const TENANTS: u64 = 4;
/// What `dead-sink` sends, in events a second, and the bound of its backlog in seconds of that.
const DEAD_EVENTS_PER_SECOND: f64 = 10_000.0;
/// A sink that does not wait for another is never further behind than this.
const HEALTHY_LAG_SECONDS: f64 = 5.0;
/// How long is watched after the fault.
const WATCHED: Duration = Duration::from_secs(20);
/// The disk of `disk-full`, what is in its way at first, and how much of the log fits beside that.
const DISK_MIB: u64 = 192;
const BALLAST_MIB: u64 = 160;
const ROOM_MIB: f64 = 24.0;

/// A second sink that is always well.
const HEALTHY: &str =
    "[[sink]]\nname = \"healthy\"\nkind = \"blackhole\"\nflush = { age = \"200ms\" }\n";

/// `slow-sink`
pub async fn slow_sink(bench: &Bench<'_>) -> Result<Report, Fault> {
    let setup = Setup {
        segment_mib: 8,
        log: "backlog_bytes = \"16MiB\"".to_owned(),
        sinks: format!(
            "[[sink]]\nname = \"slow\"\nkind = \"blackhole\"\nflush = {{ age = \"200ms\", bytes = \"1MiB\" }}\n\
             options = {{ bytes_per_second = {SLOW_BYTES_PER_SECOND} }}\n"
        ),
        ..Setup::default()
    };
    let server = Server::start(bench, &setup).await?;
    let bodies = bodies::plain(bench, bench.victim_batch(), false)?;
    let attack = bench.attack();
    let mut parties = Vec::new();
    for number in 1..=TENANTS {
        let tenant = server.tenant(&format!("tenant-{number}"), Quota::default()).await?;
        let refused = if number % 2 == 0 { Refused::AsTold } else { Refused::GivenUp };
        let base = Party::honest(&tenant, Arc::clone(&bodies));
        let bytes = float(SLOW_BYTES_PER_SECOND) * TOO_MUCH / float(TENANTS);
        let rate = Some(bytes / base.bytes_each().max(1.0));
        parties.push(Party { rate, refused, connections: 64, attacks: true, ..base });
    }
    bench.say(format!("{TOO_MUCH} times what the sink takes"));
    // Measured once the backlog is at its bound.
    let measured_after = attack / 2;
    let part = |p| Part { measured_after, ..Part::whole(p, attack) };
    let parts: Vec<_> = parties.iter().map(part).collect();
    let (outcomes, _) = party::run(&server, &parts, &[]).await?;
    let mut report = bench.report();
    let text = format!("{}/s", human::bytes(SLOW_BYTES_PER_SECOND));
    report.fact("the sink takes", text, json!(SLOW_BYTES_PER_SECOND));
    let told: Vec<_> = parties.iter().zip(&outcomes).collect();
    for (party, outcome) in &told {
        report.party(party, outcome, None);
    }
    let seconds = outcomes.first().map_or(0.0, |o| o.span.as_secs_f64());
    let taken: u64 = outcomes.iter().map(|o| o.measured.events).sum();
    let of_speed =
        share(per(taken, seconds) * float(bench.args.event_bytes.0), float(SLOW_BYTES_PER_SECOND));
    report.check(
        "let in at the bound, of what the sink takes",
        (0.8..=1.2).contains(&of_speed),
        "80 to 120 %",
        percent(of_speed),
    );
    let total = total(&outcomes)?;
    refusals(&mut report, &total, &["log_full", "tenant_lane"]);
    let kept = share(float(total.waited_let_in), float(total.waited));
    report.check(
        "waited as told, let in at the next try",
        total.waited > 0 && 0.9 <= kept,
        ">= 90 %",
        format!("{} ({} of {})", percent(kept), total.waited_let_in, total.waited),
    );
    after::memory_is_bounded(&mut report, &server);
    after::audited(bench, &mut report, &server, &told, None).await?;
    after::stopped(bench, &mut report, server).await?;
    Ok(report)
}

/// `dead-sink`
pub async fn dead_sink(bench: &Bench<'_>) -> Result<Report, Fault> {
    let attack = bench.attack();
    // Sound, dead for the attack's time, mended: with a bound that is reached in the middle of it.
    let sound = attack / 4;
    let event_bytes = float(bench.args.event_bytes.0);
    let backlog = DEAD_EVENTS_PER_SECOND * event_bytes * attack.as_secs_f64() / 2.0;
    // At least two segments.
    let backlog = backlog.max(16.0 * 1_048_576.0);
    let setup = Setup {
        segment_mib: 8,
        log: format!("backlog_bytes = \"{}MiB\"", (backlog / 1_048_576.0).ceil()),
        sinks: format!("{LAKE}{HEALTHY}"),
        ..Setup::default()
    };
    let server = Server::start(bench, &setup).await?;
    let sending = journaling(bench, &server, DEAD_EVENTS_PER_SECOND).await?;
    let lasts = sound + attack + WATCHED;
    let script = async {
        bench.say("both sinks are well");
        tokio::time::sleep(sound).await;
        let (lake, away) = (server.folder().join("lake"), server.folder().join("lake-away"));
        let file = |e| Fault::file(&lake, &e);
        fs::rename(&lake, &away).map_err(file)?;
        fs::write(&lake, "no folder").map_err(file)?;
        bench.say("the lake cannot be written");
        let worst = watch_healthy(&server, attack).await?;
        fs::remove_file(&lake).map_err(file)?;
        fs::rename(&away, &lake).map_err(file)?;
        bench.say("the lake is mended");
        Ok::<_, Fault>(worst)
    };
    let parts = [Part::whole(&sending.party, lasts)];
    let (ran, worst) = tokio::try_join!(party::run(&server, &parts, &[]), script)?;
    let (outcomes, _) = ran;
    let mut report = bench.report();
    report.fact("backlog bound", human::bytes(whole(backlog)), json!(whole(backlog)));
    let lag_max = whole(DEAD_EVENTS_PER_SECOND * HEALTHY_LAG_SECONDS);
    report.check(
        "the healthy sink never waits: events behind",
        worst <= lag_max,
        format!("<= {}", human::count(lag_max)),
        human::count(worst),
    );
    conclude(
        bench,
        report,
        server,
        &sending,
        outcomes,
        (sound + attack, lasts),
        &["log_full", "tenant_lane"],
    )
    .await
}

/// `disk-full`
pub async fn disk_full(bench: &Bench<'_>) -> Result<Report, Fault> {
    let attack = bench.attack().max(Duration::from_secs(10));
    let setup = Setup { segment_mib: 8, tmpfs_mib: Some(DISK_MIB), ..Setup::default() };
    let server = Server::start(bench, &setup).await?;
    // Full after two fifths of the time; there is room again after three.
    let (full, room) = (attack * 2 / 5, attack * 3 / 5);
    let bytes = ROOM_MIB * 1_048_576.0 / full.as_secs_f64();
    let rate = bytes / float(bench.args.event_bytes.0);
    let sending = journaling(bench, &server, rate).await?;
    let ballast = server.data_as_seen().join("ballast");
    write_ballast(&ballast)?;
    let script = async {
        bench.say("the disk fills up");
        tokio::time::sleep(room).await;
        bench.say("there is room again");
        fs::remove_file(&ballast).map_err(|e| Fault::file(&ballast, &e))
    };
    let lasts = room + WATCHED;
    let parts = [Part::whole(&sending.party, lasts)];
    let (ran, ()) = tokio::try_join!(party::run(&server, &parts, &[]), script)?;
    let mut report = bench.report();
    report.fact(
        "disk",
        format!("{DISK_MIB} MiB, {BALLAST_MIB} MiB of it taken at first"),
        json!(DISK_MIB),
    );
    conclude(bench, report, server, &sending, ran.0, (room, lasts), &["storage"]).await
}

/// A party and where it writes down what it was told is kept.
struct Journaling {
    party: Party,
    journal: PathBuf,
}

/// A party that sends at this rate and writes down what it was told is kept.
async fn journaling(
    bench: &Bench<'_>,
    server: &Server,
    events_per_second: f64,
) -> Result<Journaling, Fault> {
    let tenant = server.tenant("tenant", Quota::default()).await?;
    let base = Party::honest(&tenant, bodies::plain(bench, bench.victim_batch(), true)?);
    let journal = server.folder().join("journal.ndjson");
    let rate = Some(events_per_second / base.events_each().max(1.0));
    let party = Party { rate, connections: 64, journal: Some(journal.clone()), ..base };
    Ok(Journaling { party, journal })
}

/// How many events the healthy sink was behind at worst, while the other was dead.
async fn watch_healthy(server: &Server, lasts: Duration) -> Result<u64, Fault> {
    let start = Instant::now();
    let mut worst = 0;
    while start.elapsed() < lasts {
        let status = server.status().await?;
        let sinks = status.get("sinks").and_then(Value::as_array);
        let healthy =
            sinks.into_iter().flatten().find(|s| s.get("name").is_some_and(|n| n == "healthy"));
        let lag = healthy.and_then(|sink| sink.get("lag_events")?.as_u64());
        let lag =
            lag.ok_or_else(|| Fault::failed("status does not tell of the healthy sink", ""))?;
        worst = worst.max(lag);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(worst)
}

fn write_ballast(path: &Path) -> Result<(), Fault> {
    let mebibyte = vec![0x5a; 1 << 20];
    let mut file = fs::File::create(path).map_err(|e| Fault::file(path, &e))?;
    for _ in 0..BALLAST_MIB {
        std::io::Write::write_all(&mut file, &mebibyte).map_err(|e| Fault::file(path, &e))?;
    }
    Ok(())
}

/// What both of the above come to: refused for the right reasons, nothing lost, well again by itself.
async fn conclude(
    bench: &Bench<'_>,
    mut report: Report,
    server: Server,
    Journaling { party, journal }: &Journaling,
    outcomes: Vec<Outcome>,
    well: (Duration, Duration),
    reasons: &[&str],
) -> Result<Report, Fault> {
    let told: Vec<_> = std::iter::repeat(party).zip(&outcomes).collect();
    for (party, outcome) in &told {
        report.party(party, outcome, None);
    }
    refusals(&mut report, &total(&outcomes)?, reasons);
    let offered = party.rate.unwrap_or(0.0) * party.events_each();
    let seconds = capacity::per_second(&outcomes, well.0, well.1, offered);
    capacity::check_recovery(&mut report, "what is offered", &seconds);
    after::memory_is_bounded(&mut report, &server);
    after::audited(bench, &mut report, &server, &told, Some(journal)).await?;
    after::stopped(bench, &mut report, server).await?;
    Ok(report)
}

fn total(outcomes: &[Outcome]) -> Result<Stats, Fault> {
    let mut total = Stats::new()?;
    outcomes.iter().try_for_each(|outcome| total.add(&outcome.stats))?;
    Ok(total)
}

/// That there were refusals, for these reasons alone, each with a time to come again.
fn refusals(report: &mut Report, total: &Stats, reasons: &[&str]) {
    let found: Vec<_> =
        total.shed.iter().map(|(reason, n)| format!("{reason} {}", human::count(*n))).collect();
    let holds = !total.shed.is_empty() && total.shed.keys().all(|r| reasons.contains(&r.as_str()));
    let found = if found.is_empty() { "no refusal".to_owned() } else { found.join(", ") };
    report.check("reasons of refusals", holds, reasons.join(" or "), found);
    report.check(
        "refusals without Retry-After",
        total.untold == 0,
        "none",
        human::count(total.untold),
    );
    let odd: Vec<_> = (total.codes.keys())
        .filter(|code| !matches!(**code, 200 | 429 | 503))
        .map(u16::to_string)
        .chain(total.errors.iter().map(|(kind, n)| format!("{kind} {n}")))
        .collect();
    let found = if odd.is_empty() { "none".to_owned() } else { odd.join(", ") };
    report.check("answers other than 200, 429 and 503", odd.is_empty(), "none", found);
}

/// A number of bytes or events without its fraction.
fn whole(n: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bound, not negative"
    )]
    let n = n.max(0.0).round() as u64;
    n
}
