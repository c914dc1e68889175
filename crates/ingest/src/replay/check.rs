//! Whether the world is still as a plan has it: asked before the plan is run.

use std::sync::Arc;

use super::{
    plan::{EventAt, Judging, Plan, SchemaPin, Slice},
    planner, scan,
};
use crate::{
    normalize::Schema,
    pipeline::Pipeline,
    sink::{shadow::ShadowPlace, source::LogSource},
};

/// The action under which re-drives stand in the control log.
pub const REDRIVE: &str = "dead_letters.redrive";

/// Holds `plan` against what there is now. Reads the ends of its window; blocks.
///
/// # Errors
/// What changed since, one sentence each: the plan must not be run.
pub fn check(plan: &Plan, pipeline: &Pipeline) -> Result<(), Vec<String>> {
    let mut changed = Vec::new();
    match plan.content.id() {
        Ok(id) if id == plan.plan_id => {}
        Ok(id) => {
            let said = &plan.plan_id;
            return Err(vec![format!(
                "the plan says that its id is {said}, its content's is {id}: it was changed; make the plan again"
            )]);
        }
        Err(error) => return Err(vec![format!("the plan makes no sense: {error}")]),
    }
    let (theirs, ours) = (&plan.content.log_id, &pipeline.log_id);
    if theirs != ours {
        return Err(vec![format!(
            "the plan is of the log {theirs}, this is {ours}: name that server with --admin"
        )]);
    }
    for slice in &plan.content.window {
        match pipeline.logs.iter().find(|log| log.partition() == slice.partition) {
            Some(log) => changed.extend(slice_changed(slice, log)),
            None => changed.push(format!("the log has no partition {} any more", slice.partition)),
        }
    }
    changed.extend(schemas_changed(plan, pipeline));
    changed.extend(targets_changed(plan, pipeline));
    changed.extend(redriven_since(plan, pipeline));
    if changed.is_empty() { Ok(()) } else { Err(changed) }
}

fn slice_changed(slice: &Slice, log: &Arc<dyn LogSource>) -> Option<String> {
    let Slice { partition, from, to, .. } = slice;
    let (earliest, latest) = (log.earliest(), log.latest());
    if *from < earliest {
        return Some(format!(
            "partition {partition}: retention has removed {from} to {}, a part of the window; make a plan that begins at --from {partition}:{earliest}",
            earliest.min(*to)
        ));
    }
    if latest < *to {
        return Some(format!(
            "partition {partition} ends at {latest}, before the window does ({to}): it is another log than the plan's"
        ));
    }
    let differs = |event: &EventAt| match scan::event(&**log, event.offset) {
        Ok(Some(found)) if found == *event => None,
        Ok(_) => Some(format!(
            "partition {partition}: the event at {} is not the one of the plan ({}): make the plan again",
            event.offset, event.event_id
        )),
        Err(error) => Some(format!("partition {partition}: {error}; make the plan again")),
    };
    let mut ends = slice.first.iter().chain(&slice.last);
    ends.find_map(differs)
}

fn shown(pin: &SchemaPin) -> String {
    format!("version {} ({})", pin.version, pin.hash.get(..8).unwrap_or_default())
}

fn schemas_changed(plan: &Plan, pipeline: &Pipeline) -> Vec<String> {
    let (pinned, refuse) = match &plan.content.judging {
        Judging::AsRecorded => return Vec::new(),
        Judging::Candidate { schemas, contents, .. } => {
            let unfit = schemas.iter().filter(|pin| {
                let text = contents.get(&pin.hash).map(String::as_bytes);
                let schema = text.and_then(|text| Schema::parse("plan", text).ok());
                schema
                    .is_none_or(|s| hex::encode(s.hash()) != pin.hash || s.version() != pin.version)
            });
            return unfit
                .map(|pin| {
                    let SchemaPin { tenant, event_type, .. } = pin;
                    format!("the plan's schema of {tenant}/{event_type} is not what it says; make the plan again")
                })
                .collect();
        }
        Judging::Today { schemas, refuse_unknown } => (schemas, *refuse_unknown),
    };
    let Judging::Today { schemas: live, refuse_unknown } =
        planner::pinned_now(pipeline, &plan.content.counts)
    else {
        return Vec::new();
    };
    let mut changed = Vec::new();
    if refuse != refuse_unknown {
        changed.push("schemas.unknown_types is another one now; make the plan again".to_owned());
    }
    let same = |a: &SchemaPin, b: &SchemaPin| a.tenant == b.tenant && a.event_type == b.event_type;
    for pin in pinned {
        let SchemaPin { tenant, event_type, .. } = pin;
        let now = match live.iter().find(|live| same(live, pin)) {
            Some(live) if live == pin => continue,
            Some(live) => format!("it is {} now", shown(live)),
            None => "it has none now".to_owned(),
        };
        changed.push(format!(
            "the schema of {tenant}/{event_type} was {} when the plan was made, {now}; make the plan again",
            shown(pin)
        ));
    }
    for new in live.iter().filter(|live| pinned.iter().all(|pin| !same(live, pin))) {
        let SchemaPin { tenant, event_type, .. } = new;
        changed.push(format!(
            "{tenant}/{event_type} had no schema when the plan was made, it is {} now; make the plan again",
            shown(new)
        ));
    }
    changed
}

pub(crate) fn targets_changed(plan: &Plan, pipeline: &Pipeline) -> Vec<String> {
    let mut changed = Vec::new();
    for target in &plan.content.targets {
        let name = &target.sink;
        let Some(sink) = pipeline.config.sink.iter().find(|sink| sink.name == *name) else {
            changed.push(format!("there is no sink {name} any more; make the plan again"));
            continue;
        };
        match ShadowPlace::fingerprint(sink, &pipeline.config.log.dir) {
            Ok(place) if place == target.place && sink.kind == target.kind => {}
            Ok(_) => changed.push(format!(
                "sink {name} is configured otherwise than when the plan was made; make the plan again"
            )),
            Err(error) => changed.push(format!("sink {name}: {error}")),
        }
    }
    changed
}

/// Whether dead letters were re-driven since `plan` was made, in words. What was is in the log anew:
/// healed by the replay as well, it would be there twice. Also for who promotes.
#[must_use]
pub fn redriven_since(plan: &Plan, pipeline: &Pipeline) -> Option<String> {
    if plan.content.judging == Judging::AsRecorded
        || plan.content.counts.iter().all(|count| !count.lane.dead)
    {
        return None;
    }
    let actions = match pipeline.control.read() {
        Ok(recorded) => recorded.actions,
        Err(error) => return Some(format!("the control log cannot be read: {error}")),
    };
    let later = actions.iter().find(|a| a.action == REDRIVE && plan.made_at <= a.at)?;
    let at = jiff::Timestamp::from_microsecond(later.at.0).ok()?;
    Some(format!(
        "dead letters were re-driven at {at:.0} by {}, after the plan was made; make the plan again",
        later.by
    ))
}
