//! The tables that exist: looked at before the first insert of a process, made and widened as schemas ask.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    super::WriteError,
    block::literal,
    client::{Client, Fault, Request},
    config::Settings,
    ddl::{self, ColumnSpec, Existing, TableName},
};

/// An answer about one table: a line for each column.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// In answers of ours a 64-bit number is a number.
const READ: &[(&str, &str)] = &[("output_format_json_quote_64bit_integers", "0")];

/// What is known of the tables of one database.
#[derive(Default)]
pub struct Tables {
    known: Mutex<HashMap<TableName, Existing>>,
    /// One change at a time: a server refuses some that meet.
    changing: Mutex<()>,
}

#[derive(Deserialize)]
struct TableLine {
    engine: String,
    engine_full: String,
    partition_key: String,
}

#[derive(Deserialize)]
struct ColumnLine {
    name: String,
    r#type: String,
}

#[derive(Deserialize)]
struct SettingLine {
    name: String,
    value: String,
}

impl Tables {
    /// Makes sure that `table` is there, keeps its promise and has these columns.
    ///
    /// # Errors
    /// [`WriteError::Retry`] where that cannot be seen or done, [`WriteError::Conflict`] for a table that
    /// must not be written to.
    pub fn ensure(
        &self,
        client: &Client,
        settings: &Settings,
        table: &TableName,
        columns: &[ColumnSpec],
    ) -> Result<(), WriteError> {
        if self.is_ready(table, columns) {
            return Ok(());
        }
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_ready(table, columns) {
            return Ok(());
        }
        let retry =
            |fault: Fault| WriteError::Retry { cause: format!("{}: {fault}", table.quoted()) };
        let conflict =
            |why: String| WriteError::Conflict { cause: format!("{}: {why}", table.quoted()) };
        let there = look(client, table).map_err(retry)?;
        let there = match there {
            Some(there) => there,
            None => {
                let make = ddl::create(table, columns, settings.ttl, settings.fsync);
                if !settings.create {
                    let cause = format!("{} is not there; make it: {make}", table.quoted());
                    return Err(WriteError::Retry { cause });
                }
                let database = ddl::quote(&table.database);
                run(client, &format!("CREATE DATABASE IF NOT EXISTS {database}")).map_err(retry)?;
                run(client, &make).map_err(retry)?;
                tracing::info!(table = table.quoted(), "the table was made");
                look(client, table).map_err(retry)?.ok_or_else(|| WriteError::Retry {
                    cause: format!("{} was made and is not there", table.quoted()),
                })?
            }
        };
        let defaults = defaults(client).map_err(retry)?;
        there.check(&defaults, settings.fsync).map_err(conflict)?;
        let lacking = there.lacks(columns).map_err(conflict)?;
        let there = if lacking.is_empty() {
            there
        } else {
            let add = ddl::add(table, &lacking);
            if !settings.create {
                let cause = format!("{} lacks columns; add them: {add}", table.quoted());
                return Err(WriteError::Retry { cause });
            }
            run(client, &add).map_err(retry)?;
            tracing::info!(table = table.quoted(), columns = lacking.len(), "columns were added");
            look(client, table).map_err(retry)?.unwrap_or(there)
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(table.clone(), there);
        Ok(())
    }

    /// Whether there is such a table.
    ///
    /// # Errors
    /// [`WriteError::Retry`] where that cannot be seen.
    pub fn is_there(&self, client: &Client, table: &TableName) -> Result<bool, WriteError> {
        match look(client, table) {
            Ok(there) => Ok(there.is_some()),
            Err(fault) => Err(WriteError::Retry { cause: format!("{}: {fault}", table.quoted()) }),
        }
    }

    fn is_ready(&self, table: &TableName, columns: &[ColumnSpec]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(table).is_some_and(|there| there.lacks(columns).is_ok_and(|l| l.is_empty()))
    }

    /// Looks at the table again before the next insert.
    pub fn forget(&self, table: &TableName) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(table);
    }
}

#[derive(Deserialize)]
struct NameLine {
    name: String,
}

/// Drops every table of the database whose name ends so.
///
/// # Errors
/// [`Fault`] of the first that cannot be dropped.
pub fn drop_all(client: &Client, database: &str, suffix: &str) -> Result<(), Fault> {
    let statement = format!(
        "SELECT name FROM system.tables WHERE database = {} AND endsWith(name, {}) FORMAT JSONEachRow",
        literal(database),
        literal(suffix)
    );
    for line in lines::<NameLine>(&ask(client, &statement, READ)?)? {
        let table = TableName { database: database.to_owned(), table: line.name };
        run(client, &format!("DROP TABLE IF EXISTS {}", table.quoted()))?;
        tracing::info!(table = table.quoted(), "the shadow's table was dropped");
    }
    Ok(())
}

fn run(client: &Client, statement: &str) -> Result<Vec<u8>, Fault> {
    ask(client, statement, &[])
}

fn ask(client: &Client, statement: &str, settings: &[(&str, &str)]) -> Result<Vec<u8>, Fault> {
    let id = format!("tidegate-{}", uuid::Uuid::now_v7());
    client.ask(Request {
        id: &id,
        statement,
        settings,
        body: None,
        answer_bytes_max: ANSWER_BYTES_MAX,
    })
}

/// The lines of an answer in `JSONEachRow`.
pub fn lines<T: DeserializeOwned>(answer: &[u8]) -> Result<Vec<T>, Fault> {
    let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = lines.map(serde_json::from_slice);
    read.collect::<Result<_, _>>()
        .map_err(|e| Fault::Unknown(format!("the answer is not what was asked for: {e}")))
}

/// What the server says of a table; `None` where there is none.
///
/// # Errors
/// [`Fault`] where it does not say so.
pub fn look(client: &Client, table: &TableName) -> Result<Option<Existing>, Fault> {
    let (database, name) = (literal(&table.database), literal(&table.table));
    let statement = format!(
        "SELECT engine, engine_full, partition_key FROM system.tables \
         WHERE database = {database} AND name = {name} FORMAT JSONEachRow"
    );
    let Some(line) = lines::<TableLine>(&ask(client, &statement, READ)?)?.pop() else {
        return Ok(None);
    };
    // Nothing is inserted into what is computed: such a column is none that could be filled.
    let statement = format!(
        "SELECT name, type FROM system.columns WHERE database = {database} AND table = {name} \
         AND default_kind NOT IN ('MATERIALIZED', 'ALIAS') FORMAT JSONEachRow"
    );
    let columns = lines::<ColumnLine>(&ask(client, &statement, READ)?)?;
    let columns: BTreeMap<_, _> = columns.into_iter().map(|c| (c.name, c.r#type)).collect();
    let TableLine { engine, engine_full, partition_key } = line;
    Ok(Some(Existing { engine, engine_full, partition_key, columns }))
}

/// The server's own settings of tables, where a table has none.
fn defaults(client: &Client) -> Result<HashMap<String, u64>, Fault> {
    let of = |table: &str, like: &str| {
        format!("SELECT name, value FROM system.{table} WHERE {like} FORMAT JSONEachRow")
    };
    let mut defaults = HashMap::new();
    for statement in [
        of("merge_tree_settings", "name LIKE 'non_replicated_dedup%' OR name LIKE 'fsync%'"),
        of("replicated_merge_tree_settings", "name LIKE 'replicated_dedup%'"),
    ] {
        let lines = lines::<SettingLine>(&ask(client, &statement, READ)?)?;
        defaults.extend(lines.into_iter().filter_map(|l| Some((l.name, l.value.parse().ok()?))));
    }
    Ok(defaults)
}
