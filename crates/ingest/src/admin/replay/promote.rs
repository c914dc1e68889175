//! The shadow's rows in the place of live's, and back.

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        Problem, Shared,
        lines::{Lines, follow},
    },
    jobs::{done, plan_id, problem, record},
};
use crate::{
    pipeline::Pipeline,
    replay::{
        Judging, Plan, ShadowPlace,
        compare::{self, Compared, Reach, Scope},
        folder::Folder,
        planner,
        promote::{Outline, PromoteError, Request, Target},
        redriven_since, targets_changed,
    },
    storage::Disk,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Who wants it; of no meaning in a dry run.
    by: String,
    /// Only say what would change.
    #[serde(default)]
    dry_run: bool,
    /// What a dry run had shown.
    #[serde(default)]
    seen: String,
    /// Only this sink; all of the plan if absent.
    #[serde(default)]
    sink: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revert {
    by: String,
}

/// Puts the shadow's rows in the place of live's, or says what that would change; NDJSON, the last line
/// is the outcome.
pub(super) async fn promotion(
    State(pipeline): State<Shared>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    let id = plan_id(&id)?;
    let opened = tokio::task::spawn_blocking(move || {
        let plan = done(&pipeline, &id, "promote once it is done and compared")?;
        let targets =
            targets(&pipeline, &plan, asked.sink.as_deref()).map_err(Problem::conflict)?;
        if !asked.dry_run {
            let sinks: Vec<_> = targets.iter().map(|target| &target.sink).collect();
            let details = json!({ "sinks": sinks, "seen": asked.seen });
            record(&pipeline, "replay.promote", &asked.by, &id, details)?;
        }
        Ok((pipeline, plan, targets, asked))
    });
    let (pipeline, plan, targets, asked) =
        opened.await.map_err(|e| Problem::internal(e.to_string()))??;
    follow("promote", move |lines| match promote(&pipeline, &plan, &targets, &asked, lines) {
        Ok(outline) => {
            let state = if asked.dry_run { "planned" } else { "promoted" };
            if !asked.dry_run {
                tracing::info!(plan = %plan.plan_id, by = asked.by, "the replay was promoted");
            }
            lines.tell(&json!({
                    "plan_id": plan.plan_id, "state": state, "seen": outline.seen, "sinks": outline.sinks,
                }));
        }
        Err(error) => failed(&plan, "promoted", &error, lines),
    })
}

fn promote(
    pipeline: &Pipeline,
    plan: &Plan,
    targets: &[Target],
    asked: &Asked,
    lines: &Lines,
) -> Result<Outline, PromoteError> {
    let request = Request {
        plan: &plan.plan_id,
        content: &plan.content,
        targets,
        seen: &asked.seen,
        who: &asked.by,
        check: &|| may_be(pipeline, plan, targets),
        tell: &|sink, what| lines.tell(&json!({ "progress": { "sink": sink, "what": what } })),
    };
    match asked.dry_run {
        true => pipeline.promoter.outline(&request),
        false => pipeline.promoter.promote(&request),
    }
}

fn failed(plan: &Plan, what: &str, error: &PromoteError, lines: &Lines) {
    tracing::warn!(plan = %plan.plan_id, %error, "the replay was not {what}");
    lines.tell(&json!({ "failed": error.to_string() }));
}

/// Puts back what was before; NDJSON, the last line is the outcome.
pub(super) async fn revert(
    State(pipeline): State<Shared>,
    Path(id): Path<String>,
    Query(asked): Query<Revert>,
) -> Result<Response, Problem> {
    let id = plan_id(&id)?;
    let opened = tokio::task::spawn_blocking(move || {
        let (plan, _) = pipeline.jobs.plan(&id).map_err(problem)?;
        record(&pipeline, "replay.revert", &asked.by, &id, Value::Null)?;
        Ok::<_, Problem>((pipeline, plan, asked.by))
    });
    let (pipeline, plan, by) = opened.await.map_err(|e| Problem::internal(e.to_string()))??;
    follow("revert", move |lines| {
        let tell = |sink: &str, what: &str| {
            lines.tell(&json!({ "progress": { "sink": sink, "what": what } }))
        };
        match pipeline.promoter.revert(&plan.plan_id, &by, &tell) {
            Ok(_) => {
                tracing::info!(plan = %plan.plan_id, by, "the replay's promotion was reverted");
                lines.tell(&json!({ "plan_id": plan.plan_id, "state": "reverted" }));
            }
            Err(error) => failed(&plan, "reverted", &error, lines),
        }
    })
}

/// How far a replay's promotion is; `null` where it was never promoted.
pub(super) fn state(pipeline: &Pipeline, id: &crate::replay::PlanId) -> Result<Value, Problem> {
    let journal = pipeline.promoter.journal(id).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(journal.map_or(Value::Null, |journal| {
        json!({
            "phase": journal.phase, "promoted": journal.promoted, "reverted": journal.reverted,
            "sinks": journal.parts.iter().map(|part| &part.sink).collect::<Vec<_>>(),
            "trouble": pipeline.promoter.trouble(),
        })
    }))
}

/// The sinks of the plan, with their shadows.
fn targets(pipeline: &Pipeline, plan: &Plan, only: Option<&str>) -> Result<Vec<Target>, String> {
    let wanted = plan.content.targets.iter().map(|target| target.sink.as_str());
    let wanted: Vec<_> = wanted.filter(|name| only.is_none_or(|only| only == *name)).collect();
    if let (true, Some(only)) = (wanted.is_empty(), only) {
        return Err(format!("the plan has no sink {only:?}"));
    }
    let target = |name: &str| {
        let live = pipeline.config.sink.iter().find(|sink| sink.name == name);
        let live = live.ok_or_else(|| format!("there is no sink {name:?} any more"))?;
        let place = ShadowPlace::of(live, plan.plan_id.as_str(), &pipeline.config.log.dir);
        let shadow = place.map_err(|error| format!("sink {name:?}: {error}"))?.config().clone();
        Ok(Target { sink: name.to_owned(), shadow })
    };
    wanted.into_iter().map(target).collect()
}

/// Asked once nothing of live's window can change any more.
fn may_be(pipeline: &Pipeline, plan: &Plan, targets: &[Target]) -> Result<(), String> {
    let id = &plan.plan_id;
    if let Judging::Candidate { schemas, .. } = &plan.content.judging {
        let now = planner::pinned_now(pipeline, &plan.content.counts);
        if let Some(pin) = schemas.iter().find(|pin| !now.pins().contains(pin)) {
            return Err(format!(
                "the candidate's schema of {}/{} (version {}) is not live: what comes next would be judged \
                 by another; put it into schemas.dir and `ingestctl reload` first",
                pin.tenant, pin.event_type, pin.version
            ));
        }
    }
    let mut changed = targets_changed(plan, pipeline);
    changed.extend(redriven_since(plan, pipeline));
    if !changed.is_empty() {
        return Err(changed.join("; "));
    }
    let data_dir = pipeline.config.log.dir.clone();
    let compared = Compared::load(&Disk, Folder::of(&data_dir, id).path());
    let compared = compared.map_err(|error| error.to_string())?.ok_or_else(|| {
        format!("it was not compared yet: `ingestctl replay compare {id}`, and look at it")
    })?;
    let (scope, reach) =
        (Scope::of(&plan.content), Reach { data_dir, runtime: pipeline.runtime.clone() });
    for target in targets {
        let name = &target.sink;
        let sink = compared.sink(name).filter(|sink| sink.not_compared.is_none());
        let sink = sink.ok_or_else(|| {
            format!("sink {name:?} was not compared, so nobody knows what would change: --sink names others")
        })?;
        let live = pipeline.config.sink.iter().find(|sink| sink.name == *name);
        let live = live.ok_or_else(|| format!("there is no sink {name:?} any more"))?;
        let sides = [
            ("live", live, &sink.live_fingerprint),
            ("the shadow", &target.shadow, &sink.shadow_fingerprint),
        ];
        for (side, config, then) in sides {
            let now = compare::fingerprint(config, &scope, &reach);
            if now.map_err(|error| error.to_string())? != *then {
                return Err(format!(
                    "sink {name:?}: {side} is not what was compared any more: \
                     `ingestctl replay compare {id}` again, and look at it"
                ));
            }
        }
    }
    Ok(())
}
