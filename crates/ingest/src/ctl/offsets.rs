//! `ingestctl offsets`: which offsets each log partition holds.

use clap::Args;
use serde::Deserialize;

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    table::Table,
};

const PATH: &str = "/api/v1/offsets";

/// Show which offsets each log partition holds
#[derive(Debug, Args)]
#[command(after_help = "\
EARLIEST is the oldest event still kept, LATEST the offset the next event will get: a partition
holds LATEST - EARLIEST events, and LATEST == EARLIEST means it is empty.

Examples:
  ingestctl offsets
  ingestctl offsets --json | jq '.partitions[0].latest'")]
pub struct OffsetsArgs {}

/// What the server answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Offsets {
    log_id: Option<String>,
    partitions: Vec<Held>,
}

/// One partition.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Held {
    partition: u32,
    earliest: u64,
    latest: u64,
    bytes: Option<u64>,
}

/// Asks and shows.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached.
pub async fn run(_: &OffsetsArgs, context: &Context) -> Result<Verdict, Fault> {
    let document = context.admin()?.get(PATH).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let offsets: Offsets = admin::shape(PATH, &document)?;
    if let Some(id) = &offsets.log_id {
        context.out.line(&format!("log {}", human::safe(id)))?;
    }
    context.out.table(&offsets.table())?;
    Ok(Verdict::Done)
}

impl Offsets {
    /// One row a partition.
    pub(super) fn table(&self) -> Table {
        let sized = self.partitions.iter().any(|p| p.bytes.is_some());
        let mut headings = vec![">PARTITION", ">EARLIEST", ">LATEST", ">EVENTS"];
        if sized {
            headings.push(">BYTES");
        }
        let mut table = Table::new(&headings);
        for held in &self.partitions {
            let mut cells = vec![
                held.partition.to_string(),
                human::count(held.earliest),
                human::count(held.latest),
                human::count(held.latest.saturating_sub(held.earliest)),
            ];
            cells.extend(held.bytes.map(human::bytes));
            table.row(cells);
        }
        table
    }
}
