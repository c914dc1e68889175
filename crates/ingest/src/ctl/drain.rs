//! `ingestctl drain`: have the server stop accepting, finish, flush and exit.

use clap::Args;
use serde_json::json;

use super::{
    Context,
    fault::{Fault, Verdict},
};

/// Have the server stop accepting, finish, flush and exit
#[derive(Debug, Args)]
#[command(after_help = "\
New requests are refused with 503 and the server is no longer ready; what is in flight is finished
and the sinks are flushed; then the server exits, as it does on SIGTERM.

Examples:
  ingestctl drain
  ingestctl drain && ingestctl status --watch      until it cannot be reached")]
pub struct DrainArgs {}

/// Asks for it.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn run(_: &DrainArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let document = admin.post("/api/v1/drain", &json!({})).await?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        context.out.line(&format!(
            "{} is draining: new requests are refused; it exits once what is in flight is flushed",
            admin.shown()
        ))?;
    }
    Ok(Verdict::Done)
}
