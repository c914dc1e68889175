//! What every scenario ends with: the books, the server's memory and time, a clean stop.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::{
    Bench,
    party::{Outcome, Party},
    report::Report,
    server::{SETTLE, Server},
};
use crate::ctl::{fault::Fault, human};

/// Holds log and sinks against the books, the books against what clients were told, and a journal
/// against the log; the books' document.
///
/// # Errors
/// As [`Server::audit`].
pub async fn audited(
    bench: &Bench<'_>,
    report: &mut Report,
    server: &Server,
    told: &[(&Party, &Outcome)],
    journal: Option<&Path>,
) -> Result<Value, Fault> {
    bench.say("waiting for the sinks");
    let settled = server.settle(SETTLE).await?;
    let found = settled.map_or("not within 120 s".to_owned(), |t| human::seconds(t.as_secs_f64()));
    report.check("the sinks catch up without help", settled.is_some(), "", found);
    about_server(report, server);
    bench.say("counting log and sinks against the books");
    let (books, well) = server.audit(journal).await?;
    let found = if well { "nothing differs" } else { "they differ" };
    report.check("the audit of books, log and sinks", well, "", found);
    if let Some(held) = books.get("journal") {
        let of = |name| held.get(name).and_then(Value::as_u64).unwrap_or(0);
        let (checked, missing) = (of("checked"), of("missing_count"));
        let found = format!("{} of {} missing", human::count(missing), human::count(checked));
        report.check("acknowledged ids in the log", 0 < checked && missing == 0, "", found);
    }
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (party, outcome) in told {
        let kept = &outcome.stats.kept;
        *sums.entry(&party.tenant.name).or_default() += kept.accepted + kept.dead_lettered;
    }
    let missing: u64 =
        (sums.iter()).map(|(tenant, told)| told.saturating_sub(in_the_books(&books, tenant))).sum();
    let all: u64 = sums.values().sum();
    let found = format!("{} of {} missing", human::count(missing), human::count(all));
    report.check("acknowledged events in the books", missing == 0, "none missing", found);
    if let Some(peak) = server.peak_bytes() {
        report.fact("with the audit", human::bytes(peak), json!(peak));
    }
    Ok(books)
}

/// Events of a tenant that the books say are in the log.
#[must_use]
pub fn in_the_books(books: &Value, tenant: &str) -> u64 {
    let rows = books.get("tenants").and_then(Value::as_array);
    let own = rows.into_iter().flatten().filter(|r| r.get("tenant").is_some_and(|t| t == tenant));
    let of = |row: &Value, name| row.get(name).and_then(Value::as_u64).unwrap_or(0);
    own.map(|row| of(row, "accepted") + of(row, "dead_lettered")).sum()
}

fn about_server(report: &mut Report, server: &Server) {
    if let Some(peak) = server.peak_bytes() {
        let budget = human::bytes(server.budget_bytes);
        let text = format!("{} (budget {budget})", human::bytes(peak));
        report.fact("server peak memory", text, json!(peak));
    }
    if let Some(cpu) = server.cpu_seconds() {
        report.fact("server CPU time", human::seconds(cpu), json!(cpu));
    }
}

/// That the server never had more resident than its budget and a fifth.
pub fn memory_is_bounded(report: &mut Report, server: &Server) {
    let most = server.budget_bytes + server.budget_bytes / 5;
    if let Some(peak) = server.peak_bytes() {
        report.check(
            "peak memory",
            peak <= most,
            format!("<= {}, the budget and a fifth", human::bytes(most)),
            human::bytes(peak),
        );
    }
}

/// Stops the server.
///
/// # Errors
/// As [`Server::stop`].
pub async fn stopped(bench: &Bench<'_>, report: &mut Report, server: Server) -> Result<(), Fault> {
    bench.say("stopping the server");
    let status = server.stop().await?;
    let found = status.map_or("a signal".to_owned(), |status| format!("exit status {status}"));
    report.check("the server's end on SIGTERM", status == Some(0), "", found);
    Ok(())
}
