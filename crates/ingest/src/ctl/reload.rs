//! `ingestctl reload`: have the server read its configuration again.

use clap::Args;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::Tone,
};

const PATH: &str = "/api/v1/reload";

/// Have the server read its configuration again: whole or not at all
#[derive(Debug, Args)]
#[command(after_help = "\
Configuration, schemas, tenants and certificates are read again. If anything is wrong with them
nothing changes, every fault is listed and the exit status is 1. SIGHUP does the same.

Examples:
  ingestctl reload
  ingestctl config check tidegate.toml && ingestctl reload")]
pub struct ReloadArgs {}

/// What the server answers; the lists may hold anything that can be shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reloaded {
    generation: u64,
    changed: Vec<Value>,
    needs_restart: Vec<Value>,
}

/// Asks for it and shows what changed.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached.
pub async fn run(_: &ReloadArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let reply = admin.try_post(PATH, &json!({})).await?;
    if reply.status == StatusCode::UNPROCESSABLE_ENTITY {
        return refused(context, &reply);
    }
    let document = admin.accepted(PATH, &reply)?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let done: Reloaded = admin::shape(PATH, &document)?;
    context.out.line(&format!("generation {} is live", done.generation))?;
    if done.changed.is_empty() {
        context.out.line("  nothing changed")?;
    }
    for item in &done.changed {
        context.out.line(&format!("  changed        {}", shown(item)))?;
    }
    for item in &done.needs_restart {
        let text = format!("  needs restart  {}", shown(item));
        context.out.line(&context.out.paint(Tone::Warning, &text))?;
    }
    Ok(Verdict::Done)
}

fn refused(context: &Context, reply: &super::client::Reply) -> Result<Verdict, Fault> {
    let problem: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    if context.out.json {
        context.out.document(&problem)?;
        return Ok(Verdict::No);
    }
    let headline = format!("nothing was changed: {}", admin::describe(reply));
    context.out.line(&context.out.paint(Tone::Bad, &headline))?;
    for error in problem.get("errors").and_then(Value::as_array).into_iter().flatten() {
        context.out.line(&format!("  {}", shown(error)))?;
    }
    Ok(Verdict::No)
}

/// Text as it is, anything else as JSON.
fn shown(value: &Value) -> String {
    human::safe(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}
