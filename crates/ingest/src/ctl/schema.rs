//! `ingestctl schema`: are these schemas fit, and what would become of these events.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::{Tone, remark},
    schema_test,
    table::Table,
    tail::{event_type_name, tenant_name},
};
use crate::normalize::{Before, Schema, SchemaEntry, SchemaFault, read_dir, succession};

const PATH: &str = "/api/v1/schemas";

/// Check schemas, try events on them, list the server's
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl schema check schemas/
  ingestctl schema test schemas/ events.ndjson --event-type order
  ingestctl schema list")]
pub struct SchemaArgs {
    #[command(subcommand)]
    command: SchemaCommand,
}

#[derive(Debug, Subcommand)]
enum SchemaCommand {
    /// Check a folder of schemas, alone or as the successor of another
    #[command(after_help = "\
A folder holds <event type>.json and <tenant>/<event type>.json. A new version may add and remove
fields; it may not change the type, unit or column of a field, since one event type is one table.
Other content needs a higher x-version. Exit status 1 if anything is wrong.

Examples:
  ingestctl schema check schemas/
  ingestctl schema check schemas/ --against-server       would a reload take them
  ingestctl schema check schemas/ --against released/")]
    Check {
        /// The folder
        dir: PathBuf,
        /// The folder of the schemas before
        #[arg(long, value_name = "DIR", conflicts_with = "against_server")]
        against: Option<PathBuf>,
        /// Take what the server has as the schemas before
        #[arg(long)]
        against_server: bool,
    },
    /// Tell what would become of events, without a server
    #[command(after_help = "\
Each line is judged as the server would judge it on /v1/events. The `hash` rule for personal data
takes a secret of its own here, so hashes differ from the server's. Exit status 1 if an event would
not be accepted.

Examples:
  ingestctl schema test schemas/ events.ndjson
  ingestctl schema test schemas/ - --event-type order < order.ndjson
  ingestctl schema test schemas/ events.ndjson --rows --json | jq '.results[0].row'")]
    Test(TestArgs),
    /// List the schemas a server judges by
    #[command(after_help = "\
Examples:
  ingestctl schema list
  ingestctl schema list --json | jq '.schemas[] | select(.event_type == \"order\") | .columns'")]
    List,
}

/// What `schema test` takes.
#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// The folder of schemas
    pub(super) dir: PathBuf,
    /// The events, one a line; - for stdin
    pub(super) file: PathBuf,
    /// The type of events that do not name their own in `event_type`
    #[arg(long, value_name = "NAME", value_parser = event_type_name)]
    pub(super) event_type: Option<String>,
    /// Whose events they are, where tenants have schemas of their own
    #[arg(long, value_name = "NAME", default_value = "test", value_parser = tenant_name)]
    pub(super) tenant: String,
    /// Refuse types without a schema, as `unknown_types = "refuse"` below `[schemas]` does
    #[arg(long)]
    pub(super) refuse_unknown: bool,
    /// Show the row of every accepted event too
    #[arg(long)]
    pub(super) rows: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    schemas: Vec<ListedSchema>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedSchema {
    tenant: Option<String>,
    event_type: String,
    version: i64,
    hash: String,
    columns: Vec<ListedColumn>,
    schema: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedColumn {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    unit: Option<String>,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where files cannot be read or the server not be reached.
pub async fn run(args: SchemaArgs, context: &Context) -> Result<Verdict, Fault> {
    match args.command {
        SchemaCommand::List => list(context).await,
        SchemaCommand::Test(args) => schema_test::run(&args, context),
        SchemaCommand::Check { dir, against, against_server } => {
            let before = match (against, against_server) {
                (Some(before), _) => match read(&before)? {
                    Ok(entries) => {
                        Some(entries.into_iter().map(|e| (e.file(), e.schema)).collect())
                    }
                    Err(faults) => {
                        let what = faults.iter().map(SchemaFault::to_string).collect::<Vec<_>>();
                        return Err(Fault::failed(
                            format!(
                                "{} is not fit to hold against: {}",
                                before.display(),
                                what.join("; ")
                            ),
                            "check that folder first",
                        ));
                    }
                },
                (None, true) => Some(of_server(context).await?),
                (None, false) => None,
            };
            check(context, &dir, before)
        }
    }
}

/// Reads a folder; faults of its schemas are an answer, a folder that cannot be read is not.
pub(super) fn read(dir: &Path) -> Result<Result<Vec<SchemaEntry>, Vec<SchemaFault>>, Fault> {
    std::fs::read_dir(dir).map_err(|e| Fault::file(dir, &e))?;
    Ok(read_dir(dir))
}

/// The input of `schema test`.
pub(super) fn input(path: &Path) -> Result<BufReader<Box<dyn Read>>, Fault> {
    let input: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).map_err(|e| Fault::file(path, &e))?)
    };
    Ok(BufReader::with_capacity(1 << 20, input))
}

fn check(context: &Context, dir: &Path, before: Option<Vec<Before>>) -> Result<Verdict, Fault> {
    let (entries, mut faults) = match read(dir)? {
        Ok(entries) => (entries, Vec::new()),
        Err(faults) => (Vec::new(), faults),
    };
    let mut notes = Vec::new();
    if faults.is_empty() {
        (faults, notes) = succession(&entries, before.unwrap_or_default());
    }
    if context.out.json {
        let errors: Vec<_> = faults.iter().map(fault_document).collect();
        context.out.document(&json!({"valid": faults.is_empty(), "schemas": entries.len(),
            "errors": errors, "notes": notes}))?;
        return Ok(Verdict::when(faults.is_empty()));
    }
    for note in &notes {
        context.out.line(&human::safe(note))?;
    }
    for fault in &faults {
        remark(&human::safe(&fault.to_string()));
    }
    let (tone, word) = if faults.is_empty() { (Tone::Good, "fit") } else { (Tone::Bad, "not fit") };
    let what = if faults.is_empty() {
        human::things(entries.len() as u64, "schema", "schemas")
    } else {
        human::things(faults.len() as u64, "fault", "faults")
    };
    context.out.line(&format!("{}: {what}, {}", dir.display(), context.out.paint(tone, word)))?;
    Ok(Verdict::when(faults.is_empty()))
}

/// A fault as a program reads it.
pub(super) fn fault_document(fault: &SchemaFault) -> Value {
    json!({"file": fault.file, "pointer": fault.pointer, "what": fault.what, "mend": fault.mend})
}

async fn of_server(context: &Context) -> Result<Vec<Before>, Fault> {
    let document = context.admin()?.get(PATH).await?;
    let listed: Listed = admin::shape(PATH, &document)?;
    listed
        .schemas
        .iter()
        .map(|schema| {
            let file = schema.file();
            let text = schema.schema.to_string();
            let parsed = Schema::parse(&file, text.as_bytes()).map_err(|faults| {
                let what = faults.iter().map(SchemaFault::to_string).collect::<Vec<_>>();
                Fault::failed(
                    format!("the server's {file} makes no sense here: {}", what.join("; ")),
                    "use the ingestctl of the same version as the server",
                )
            })?;
            Ok((file, Arc::new(parsed)))
        })
        .collect()
}

impl ListedSchema {
    fn file(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("{tenant}/{}.json", self.event_type),
            None => format!("{}.json", self.event_type),
        }
    }
}

async fn list(context: &Context) -> Result<Verdict, Fault> {
    let document = context.admin()?.get(PATH).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let listed: Listed = admin::shape(PATH, &document)?;
    let mut table = Table::new(&["TYPE", "TENANT", ">VERSION", "HASH", "COLUMNS"]);
    for schema in &listed.schemas {
        let columns = schema.columns.iter().map(|column| {
            let unit = column.unit.as_ref().map_or(String::new(), |unit| format!(" in {unit}"));
            format!("{} {}{unit}", column.name, column.kind)
        });
        table.row(vec![
            human::safe(&schema.event_type),
            schema.tenant.as_deref().map_or("all".to_owned(), human::safe),
            schema.version.to_string(),
            human::cut(&schema.hash, 12),
            human::cut(&columns.collect::<Vec<_>>().join(", "), 200),
        ]);
    }
    if table.is_empty() {
        context.out.line("no schemas: all fields of all events go to `custom`")?;
    } else {
        context.out.table(&table)?;
    }
    Ok(Verdict::Done)
}

/// One line's outcome, for people.
pub(super) fn shown(result: &Map<String, Value>) -> String {
    let text = |name: &str| human::safe(result.get(name).and_then(Value::as_str).unwrap_or(""));
    let line = result.get("line").and_then(Value::as_u64).unwrap_or(0);
    let verdict = text("verdict").replace("dead_lettered", "dead letter");
    if let Some(row) = result.get("row") {
        return format!(
            "line {line}: {} {verdict}: {}",
            text("event_type"),
            human::safe(&row.to_string())
        );
    }
    let field = text("field");
    let place = if field.is_empty() { String::new() } else { format!(" {field}") };
    format!(
        "line {line}: {} {verdict}: {}{place}: {}",
        text("event_type"),
        text("code"),
        text("message")
    )
}
