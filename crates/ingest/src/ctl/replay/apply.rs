//! `ingestctl replay apply`: has the server run precisely one plan.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{PATH, who};
use crate::{
    ctl::{
        Context, admin,
        fault::{Fault, Verdict},
        human,
    },
    replay::Plan,
};

/// Run precisely the plan in a file
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The plan, as `ingestctl replay … --plan FILE` wrote it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How a plan is run.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Who does it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault`]: the file is no plan, or the server cannot be reached or refuses.
pub async fn run(args: &ApplyArgs, context: &Context) -> Result<Verdict, Fault> {
    let text = std::fs::read(&args.file).map_err(|e| Fault::file(&args.file, &e))?;
    let plan = Plan::read(&text)
        .map_err(|e| Fault::failed(format!("{}: {e}", args.file.display()), ""))?;
    start(&plan, &args.how, context).await
}

/// Has the server run `plan`.
pub(super) async fn start(plan: &Plan, how: &How, context: &Context) -> Result<Verdict, Fault> {
    let path = format!("{PATH}/jobs");
    let body = json!({ "plan": plan, "max_rate": null, "by": who(how.by.as_deref())? });
    let document = context.admin()?.post(&path, &body).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let state: String = admin::shape(&path, document.get("state").unwrap_or(&Value::Null))?;
    context.out.line(&format!("replay {}: {}", plan.plan_id, human::safe(&state)))?;
    Ok(Verdict::Done)
}
