//! What a scenario found: facts, a row for each party, and what had to hold.

use serde_json::{Map, Value, json};

use super::party::{Outcome, Party};
use crate::ctl::{
    Context,
    fault::{Fault, Verdict},
    human,
    load::stats::{Stats, milliseconds, per},
    out::Tone,
    table::Table,
};

/// The report of one run of one scenario.
#[derive(Debug, Default)]
pub struct Report {
    scenario: String,
    facts: Vec<(String, String, Value)>,
    rows: Vec<Row>,
    checks: Vec<Check>,
    notes: Vec<String>,
}

/// One party's figures.
#[derive(Debug)]
struct Row {
    name: String,
    document: Map<String, Value>,
    traffic: Vec<String>,
    latency: Option<Vec<String>>,
}

/// Something that had to hold.
#[derive(Debug)]
struct Check {
    name: String,
    wanted: String,
    found: String,
    holds: bool,
}

/// `a / b`, and 0 of nothing.
#[must_use]
pub fn share(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// A count as a number to reckon with.
#[must_use]
pub fn float(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a measured count")]
    let n = n as f64;
    n
}

/// A share of 1 as per cent; as much of it as tells 98.96 from 99.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// What share of the events that were due was kept.
#[must_use]
pub fn goodput(party: &Party, outcome: &Outcome) -> f64 {
    share(float(outcome.stats.kept.durable()), float(outcome.due) * party.events_each())
}

/// How evenly shares are shared: 1 where all are equal, 1/n where one has all (Jain).
#[must_use]
pub fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) =
        shares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    share(sum * sum, float(shares.len() as u64) * squares)
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), ..Self::default() }
    }

    /// A figure of the run as a whole.
    pub fn fact(&mut self, name: &str, text: impl Into<String>, value: Value) {
        self.facts.push((name.to_owned(), text.into(), value));
    }

    /// Something to know when the figures are read.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Something that has to hold.
    pub fn check(
        &mut self,
        name: impl Into<String>,
        holds: bool,
        wanted: impl Into<String>,
        found: impl Into<String>,
    ) {
        let (name, wanted, found) = (name.into(), wanted.into(), found.into());
        self.checks.push(Check { name, wanted, found, holds });
    }

    /// A party: what it did while it was attacked, or alone, and before that.
    pub fn party(&mut self, party: &Party, outcome: &Outcome, baseline: Option<&Stats>) {
        let stats = &outcome.stats;
        let offered = float(outcome.due) * party.events_each();
        let seconds = outcome.span.as_secs_f64();
        let kept = goodput(party, outcome);
        let others = stats.codes.iter().filter(|(code, _)| !matches!(**code, 200 | 429 | 503));
        let others = others.map(|(_, n)| n).chain(stats.errors.values()).sum::<u64>();
        let of = |code| stats.codes.get(&code).copied().unwrap_or(0);
        let traffic = vec![
            party.name.clone(),
            format!("{:.0}", share(offered, outcome.lasted.as_secs_f64())),
            format!("{:.0}", per(outcome.measured.events, seconds)),
            percent(kept),
            human::count(of(200)),
            human::count(of(429)),
            human::count(of(503)),
            human::count(others),
            human::count(outcome.blocked),
        ];
        let quantiles = |of: &Stats| {
            json!({"p50": milliseconds(&of.latency, 50.0), "p99": milliseconds(&of.latency, 99.0),
                "count": of.latency.len()})
        };
        let mut document = Map::new();
        let mut put = |name: &str, value: Value| document.insert(name.to_owned(), value);
        let codes: Map<_, _> =
            stats.codes.iter().map(|(code, n)| (code.to_string(), json!(n))).collect();
        put("name", json!(party.name));
        put("tenant", json!(party.tenant.name));
        put("attacks", json!(party.attacks));
        put("seconds", json!(outcome.lasted.as_secs_f64()));
        put("measured_seconds", json!(seconds));
        put("offered_events", json!(offered));
        put("accepted_events", json!(stats.kept.durable()));
        put("goodput", json!(kept));
        put("measured_events_per_second", json!(per(outcome.measured.events, seconds)));
        put("measured_bytes_per_second", json!(per(outcome.measured.bytes, seconds)));
        put("due_requests", json!(outcome.due));
        put("blocked_requests", json!(outcome.blocked));
        put("codes", Value::Object(codes));
        put("shed", json!(stats.shed));
        put("errors", json!(stats.errors));
        put("without_retry_after", json!(stats.untold));
        put("waited_as_told", json!(stats.waited));
        put("kept_at_the_next_try", json!(stats.waited_let_in));
        put("latency_ms", quantiles(stats));
        let latency = baseline.map(|before| {
            put("baseline_latency_ms", quantiles(before));
            latency_cells(party, before, stats)
        });
        self.rows.push(Row { name: party.name.clone(), document, traffic, latency });
    }

    /// True where everything holds that has to.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    fn document(&self) -> Value {
        let facts: Map<_, _> =
            self.facts.iter().map(|(name, _, value)| (plain(name), value.clone())).collect();
        let parties: Vec<_> = self.rows.iter().map(|row| &row.document).collect();
        let checks: Vec<_> = (self.checks.iter())
            .map(
                |c| json!({"name": c.name, "holds": c.holds, "wanted": c.wanted, "found": c.found}),
            )
            .collect();
        json!({"scenario": self.scenario, "holds": self.holds(), "facts": facts,
            "parties": parties, "checks": checks, "notes": self.notes})
    }

    /// Prints it.
    ///
    /// # Errors
    /// As [`crate::ctl::out::Output::line`].
    pub fn show(&self, context: &Context) -> Result<Verdict, Fault> {
        let out = &context.out;
        if out.json {
            out.document(&self.document())?;
            return Ok(Verdict::when(self.holds()));
        }
        out.line(&out.paint(Tone::Strong, &self.scenario))?;
        let widest = self.facts.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        for (name, text, _) in &self.facts {
            out.line(&format!("  {name:<widest$}  {text}"))?;
        }
        out.line("")?;
        self.show_tables(context)?;
        for note in &self.notes {
            out.line(&format!("note: {note}"))?;
        }
        for check in &self.checks {
            let Check { name, wanted, found, .. } = check;
            let (word, tone) = if check.holds { ("ok  ", Tone::Good) } else { ("FAIL", Tone::Bad) };
            let wanted =
                if wanted.is_empty() { String::new() } else { format!(" (wanted: {wanted})") };
            out.line(&format!("{} {name}: {found}{wanted}", out.paint(tone, word)))?;
        }
        let failed = self.checks.iter().filter(|check| !check.holds).count() as u64;
        let text = match failed {
            0 => out.paint(Tone::Good, "all hold"),
            n => out.paint(Tone::Bad, &human::things(n, "does not hold", "do not hold")),
        };
        out.line(&text)?;
        Ok(Verdict::when(self.holds()))
    }

    fn show_tables(&self, context: &Context) -> Result<(), Fault> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let headings = [
            "PARTY",
            ">OFFERED/S",
            ">KEPT/S",
            ">GOODPUT",
            ">200",
            ">429",
            ">503",
            ">OTHER",
            ">BLOCKED",
        ];
        let mut traffic = Table::new(&headings);
        let mut latency = Table::new(&[
            "PARTY",
            ">P50 ALONE",
            ">ATTACKED",
            ">RATIO",
            ">P99 ALONE",
            ">ATTACKED",
            ">RATIO",
        ]);
        for row in &self.rows {
            traffic.row(row.traffic.clone());
            if let Some(cells) = &row.latency {
                latency.row(cells.clone());
            }
        }
        context.out.table(&traffic)?;
        context.out.line("")?;
        if !latency.is_empty() {
            context.out.table(&latency)?;
            context.out.line("")?;
        }
        let mut why = Table::new(&["REFUSED OR NOT ANSWERED", "WHY", ">REQUESTS"]);
        for row in &self.rows {
            for field in ["shed", "errors"] {
                let reasons = row.document.get(field).and_then(Value::as_object);
                for (reason, n) in reasons.into_iter().flatten() {
                    let n = human::count(n.as_u64().unwrap_or(0));
                    why.row(vec![row.name.clone(), human::safe(reason), n]);
                }
            }
        }
        if !why.is_empty() {
            context.out.table(&why)?;
            context.out.line("")?;
        }
        Ok(())
    }
}

/// A fact's name as programs spell it.
fn plain(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(kept).collect()
}

fn latency_cells(party: &Party, before: &Stats, after: &Stats) -> Vec<String> {
    let at = |stats: &Stats, percentile| milliseconds(&stats.latency, percentile);
    let mut cells = vec![party.name.clone()];
    for percentile in [50.0, 99.0] {
        let (alone, attacked) = (at(before, percentile), at(after, percentile));
        cells.push(human::milliseconds(alone));
        cells.push(human::milliseconds(attacked));
        cells.push(format!("{:.2}", share(attacked, alone)));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_or_not() {
        assert!((jain(&[1.0, 1.0, 1.0, 1.0]) - 1.0).abs() < 1e-9);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-9);
        assert!(jain(&[]) < 1e-9);
    }

    #[test]
    fn one_check_that_fails_makes_the_answer_no() {
        let mut report = Report::new("x");
        report.check("a", true, "1", "1");
        assert!(report.holds());
        report.check("b", false, "1", "2");
        assert!(!report.holds());
        let document = report.document();
        assert_eq!(document.get("holds"), Some(&Value::Bool(false)));
    }
}
