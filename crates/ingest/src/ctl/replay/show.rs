//! A plan as people read it before they say yes.

use serde::Deserialize;

use crate::{
    ctl::{Context, fault::Fault, human, out::Tone, table::Table},
    replay::{EventAt, Judging, LaneCount, Plan, SchemaPin, Slice},
};

/// Lanes shown at most.
const LANES: usize = 40;

/// Both ends as they were asked for.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    from: String,
    to: String,
}

/// How long it takes.
#[derive(Debug, Deserialize)]
pub(super) struct Estimate {
    seconds: f64,
    events_per_second: f64,
    by: String,
}

/// Writes it; what was found out beside it, where it has just been made.
pub(super) fn plan(
    plan: &Plan,
    found: Option<(&Asked, &Estimate)>,
    context: &Context,
) -> Result<(), Fault> {
    let out = &context.out;
    let content = &plan.content;
    let strong = |text: &str| out.paint(Tone::Strong, text);
    let bytes = content.window.iter().map(|slice| slice.bytes).sum();
    out.line(&format!(
        "{} of log {}: {}, {}",
        strong(&format!("replay {}", plan.plan_id)),
        human::safe(&content.log_id),
        human::things(content.events(), "event", "events"),
        human::bytes(bytes),
    ))?;
    if let Some((asked, _)) = found {
        out.line(&format!("{} {}", human::safe(&asked.from), human::safe(&asked.to)))?;
    }
    for slice in &content.window {
        out.line("")?;
        window(slice, context)?;
    }
    out.line("")?;
    lanes(plan, context)?;
    selection(plan, context)?;
    out.line("")?;
    for (sink, place) in &plan.shadow {
        out.line(&format!("shadow of {}: {}", human::safe(sink), human::safe(place)))?;
    }
    if let Some((_, estimate)) = found {
        let (least, why) = match estimate.by.as_str() {
            "max_rate" => (" or more", "--max-rate"),
            "sinks" => (", about", "as live wrote what was behind"),
            _ => (" or more", "reading alone"),
        };
        out.line(&format!(
            "duration: {}{least}, at {} events/s ({why})",
            human::seconds(estimate.seconds),
            human::count(rounded(estimate.events_per_second)),
        ))?;
    }
    out.line(&strong("live: nothing"))
}

fn rounded(rate: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is not negative, and shown without a fraction"
    )]
    let whole = rate.max(0.0).round() as u64;
    whole
}

fn window(slice: &Slice, context: &Context) -> Result<(), Fault> {
    let Slice { partition, from, to, events, bytes, .. } = slice;
    context.out.line(&format!(
        "partition {partition}: {partition}:{from} to {partition}:{to}, {}, {}",
        human::things(*events, "event", "events"),
        human::bytes(*bytes)
    ))?;
    for (name, event) in [("first", &slice.first), ("last", &slice.last)] {
        let Some(EventAt { offset, received_at, tenant, event_type, event_id }) = event else {
            continue;
        };
        let time = jiff::Timestamp::from_microsecond(received_at.0)
            .map_or_else(|_| received_at.0.to_string(), |time| format!("{time:.3}"));
        let lane = human::cut(&format!("{tenant}/{event_type}"), 60);
        context.out.line(&format!("  {name:<5}  {partition}:{offset}  {time}  {lane}"))?;
        context.out.line(&format!("         id {}", human::cut(event_id, 68)))?;
    }
    Ok(())
}

fn lanes(plan: &Plan, context: &Context) -> Result<(), Fault> {
    let counts = &plan.content.counts;
    let mut table = Table::new(&["TENANT/TYPE", "WAS", ">EVENTS", ">BYTES", "SCHEMA THEN", "NOW"]);
    for count in counts.iter().take(LANES) {
        let lane = &count.lane;
        table.row(vec![
            human::cut(&format!("{}/{}", lane.tenant, lane.event_type), 40),
            if lane.dead { "dead letter" } else { "accepted" }.to_owned(),
            human::count(count.events),
            human::bytes(count.bytes),
            human::cut(&then(count), 40),
            now(plan, count),
        ]);
    }
    context.out.table(&table)?;
    let more = counts.get(LANES..).unwrap_or_default();
    if !more.is_empty() {
        let events: u64 = more.iter().map(|count| count.events).sum();
        let events = human::things(events, "event", "events");
        context.out.line(&format!("… and {} more with {events} (--json has all)", more.len()))?;
    }
    Ok(())
}

fn version(version: i32) -> String {
    if version == 0 { "none".to_owned() } else { format!("v{version}") }
}

fn then(count: &LaneCount) -> String {
    match count.schemas_then.as_slice() {
        [one] => version(one.version),
        several => {
            let each = several.iter();
            let each = each.map(|s| format!("{}: {}", version(s.version), human::count(s.events)));
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

fn now(plan: &Plan, count: &LaneCount) -> String {
    let judging = &plan.content.judging;
    if *judging == Judging::AsRecorded {
        return "as then".to_owned();
    }
    let same = |pin: &&SchemaPin| {
        pin.tenant == count.lane.tenant && pin.event_type == count.lane.event_type
    };
    match judging.pins().iter().find(same) {
        None => "none".to_owned(),
        Some(pin) => {
            let then = |schema: &crate::replay::SchemaCount| schema.hash == pin.hash;
            let same = count.schemas_then.iter().all(then);
            let version = version(pin.version);
            if same { format!("{version}, the same") } else { version }
        }
    }
}

/// What is left out, and by what the rest is judged.
fn selection(plan: &Plan, context: &Context) -> Result<(), Fault> {
    let content = &plan.content;
    let judged = match &content.judging {
        Judging::Today { .. } => "by the schemas that are live",
        Judging::Candidate { .. } => "by the candidate's schemas",
        Judging::AsRecorded => "not at all: as recorded",
    };
    context.out.line(&format!("judged {judged}"))?;
    if !content.selection.is_all() {
        let read: u64 = content.window.iter().map(|slice| slice.to.since(slice.from)).sum();
        let left = read.saturating_sub(content.events());
        let left = human::things(left, "event", "events");
        context.out.line(&format!("left out by the filters: {left} of the window"))?;
    }
    let kept: u64 =
        content.kept_dead.iter().flat_map(|kept| &kept.offsets).map(|range| range.count()).sum();
    if 0 < kept {
        let kept = human::things(kept, "dead letter was", "dead letters were");
        context.out.line(&format!("{kept} re-driven since and stay as they are"))?;
    }
    Ok(())
}
