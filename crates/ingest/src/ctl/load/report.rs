//! Shows how a run goes, and what it came to.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::{
    LoadArgs,
    engine::Running,
    stats::{Run, Stats, milliseconds, per},
    worker::{Plan, lock},
};
use crate::ctl::{
    Context,
    fault::Fault,
    human,
    out::{self, Tone},
    table::Table,
};

/// Waits for the end, showing a line each second on a terminal; Ctrl-C is an end.
///
/// # Errors
/// [`Fault::Failed`] where Ctrl-C cannot be listened for.
pub async fn watch(running: &Running) -> Result<(), Fault> {
    let (plan, all) = (running.plan(), running.stats());
    let bar = bar(plan.end.map(|end| end - plan.start));
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut shown_at = 0;
    let mut shown_events = 0;
    while !running.is_finished() {
        tokio::select! {
            pressed = &mut interrupt => {
                plan.finish();
                bar.finish_and_clear();
                return pressed.map_err(|e| Fault::failed(format!("cannot listen for Ctrl-C: {e}"), ""));
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        if plan.end.is_some() && plan.is_over() {
            // Open loop workers may wait for a request that will never be due.
            plan.finish();
        }
        if let Some(journal) = &plan.journal
            && shown_at < plan.start.elapsed().as_secs()
        {
            // Each second, so that a run that is killed leaves a journal to hold against the log.
            lock(journal).flush()?;
        }
        let second = plan.start.elapsed().as_secs();
        if second > shown_at {
            let (line, events) = progress(all, shown_events, second - shown_at)?;
            bar.set_position(second);
            bar.set_message(line);
            (shown_at, shown_events) = (second, events);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn bar(duration: Option<Duration>) -> ProgressBar {
    if !out::progress_is_wanted() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match duration {
        Some(span) => (ProgressBar::new(span.as_secs()), "{pos:>4}/{len} s {wide_msg}"),
        None => (ProgressBar::new_spinner(), "{pos:>4} s {wide_msg}"),
    };
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}

fn progress(all: &[Arc<Mutex<Stats>>], before: u64, seconds: u64) -> Result<(String, u64), Fault> {
    if !out::progress_is_wanted() {
        return Ok((String::new(), 0));
    }
    let mut total = Stats::new()?;
    for stats in all {
        total.add(&lock(stats))?;
    }
    let events = total.kept.durable();
    let rate = events.saturating_sub(before) / seconds.max(1);
    let odd: Vec<_> = (total.codes.iter().filter(|(code, _)| **code != 200))
        .map(|(code, n)| format!("{code}: {n}"))
        .chain(total.errors.iter().map(|(kind, n)| format!("{kind}: {n}")))
        .collect();
    let line = format!(
        "{} events  {}/s  p50 {}  p99 {}  {}",
        human::count(events),
        human::count(rate),
        human::milliseconds(milliseconds(&total.latency, 50.0)),
        human::milliseconds(milliseconds(&total.latency, 99.0)),
        odd.join("  ")
    );
    Ok((line, events))
}

/// Prints the report.
///
/// # Errors
/// As [`crate::ctl::out::Output::line`].
pub fn show(
    context: &Context,
    args: &LoadArgs,
    plan: &Plan,
    total: &Stats,
    run: &Run,
) -> Result<(), Fault> {
    if context.out.json {
        return context.out.document(&total.document(run, settings(args, plan)));
    }
    let seconds = run.elapsed.as_secs_f64();
    let kept = &total.kept;
    let mut table = Table::new(&["EVENTS", ">COUNT"]);
    let rows = [
        ("sent", total.sent),
        ("accepted", kept.accepted),
        ("dead letters", kept.dead_lettered),
        ("known already", kept.deduplicated),
        ("rejected", kept.rejected),
    ];
    for (name, n) in rows {
        table.row(vec![name.to_owned(), human::count(n)]);
    }
    context.out.table(&table)?;
    context.out.line("")?;
    let mut table = Table::new(&["REQUESTS", ">COUNT", ">P50", ">P95", ">P99", ">P99.9", ">MAX"]);
    for (name, histogram) in [("answered 200", &total.latency), ("refused", &total.refused)] {
        let mut cells = vec![name.to_owned(), human::count(histogram.len())];
        if !histogram.is_empty() {
            let at = |p| human::milliseconds(milliseconds(histogram, p));
            cells.extend([50.0, 95.0, 99.0, 99.9, 100.0].map(at));
        }
        table.row(cells);
    }
    context.out.table(&table)?;
    context.out.line("")?;
    oddities(context, total, run)?;
    let (events, bytes) = (per(kept.durable(), seconds), per(total.bytes, seconds));
    context.out.line(&format!(
        "{events:.0} events/s, {:.1} MB/s, in {}",
        bytes / 1e6,
        human::seconds(seconds)
    ))?;
    if let (Some(cpu), Some(each)) = (run.cpu_seconds, total.cpu_each(run)) {
        context.out.line(&format!("own CPU time {cpu:.2} s, {each:.2} µs an event"))?;
    }
    Ok(())
}

fn oddities(context: &Context, total: &Stats, run: &Run) -> Result<(), Fault> {
    let mut table = Table::new(&["ANSWERS", ">COUNT"]);
    let codes = total.codes.iter().map(|(code, n)| (code.to_string(), n));
    let shed = total.shed.iter().map(|(reason, n)| (format!("  shed: {}", human::safe(reason)), n));
    let errors = total.errors.iter().map(|(kind, n)| (format!("none: {kind}"), n));
    for (name, n) in codes.chain(shed).chain(errors) {
        table.row(vec![name, human::count(*n)]);
    }
    if total.retries > 0 {
        table.row(vec!["sent again".to_owned(), human::count(total.retries)]);
    }
    if !table.is_empty() {
        context.out.table(&table)?;
        context.out.line("")?;
    }
    if run.unsent_requests > 0 {
        let text = format!(
            "could not keep the rate: {} due and never sent (all connections were busy);\n\
             they are in the latencies above with the time they had waited",
            human::things(run.unsent_requests, "request was", "requests were"),
        );
        context.out.line(&context.out.paint(Tone::Warning, &text))?;
    }
    if total.unjournaled > 0 {
        let text = human::things(total.unjournaled, "acknowledged event", "acknowledged events");
        out::remark(&format!("{text} not in the journal: the answers do not tell which"));
    }
    Ok(())
}

fn settings(args: &LoadArgs, plan: &Plan) -> Map<String, Value> {
    let fields = [
        ("url", json!(args.url)),
        ("protocol", json!(plan.protocol.name)),
        ("rate", json!(args.rate)),
        ("connections", json!(args.connections())),
        ("threads", json!(args.threads)),
        ("batch", json!(args.batch)),
        ("event_bytes", json!(args.event_bytes.0)),
        ("event_types", json!(plan.event_types.len())),
        ("keys", json!(plan.keys.len())),
        ("compression", json!(plan.compression.header())),
        ("http2", json!(args.http2)),
        ("ids", json!(args.ids || args.journal.is_some())),
        ("retry", json!(args.retry)),
        ("seed", json!(args.seed)),
        ("run", json!(format!("{:016x}", plan.run))),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}
