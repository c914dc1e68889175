//! What tables have of some offsets: sums that tell whether two tables have the same, and the rows.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_event::{EventType, OffsetRange, Partition, TenantId};
use tokio::runtime::Handle;

use super::{
    super::{
        SinkConfig, SinkConfigError,
        back::{BackRow, Owner},
    },
    SELECT,
    block::literal,
    client::{Client, Fault, Request},
    config::Settings,
    ddl::{TableName, quote},
    tables,
};

/// What sums and counts may take.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What is told of a row beside its columns; no schema has a column of this name.
const HOUR: &str = "__tidegate_hour";
/// Columns that say whose row it is.
const OWNER: [&str; 2] = ["tenant", "event_type"];

/// Which rows: those of one event type, or its dead letters.
#[derive(Clone, Copy)]
pub struct Stretch<'a> {
    /// Of which log.
    pub log_id: &'a str,
    /// Of which partition.
    pub partition: Partition,
    /// Which offsets.
    pub range: OffsetRange,
    /// Only these tenants'; empty: all.
    pub tenants: &'a [TenantId],
    /// Of which type.
    pub event_type: &'a EventType,
    /// Its dead letters.
    pub dead: bool,
}

impl Stretch<'_> {
    fn condition(&self) -> String {
        let (log_id, range) = (literal(self.log_id), self.range);
        let mut text = format!(
            "log_id = {log_id} AND log_partition = {} AND log_offset >= {} AND log_offset < {}",
            self.partition,
            range.from(),
            range.to()
        );
        // Writing to a String cannot fail.
        if !self.tenants.is_empty() {
            let tenants: Vec<_> = self.tenants.iter().map(|t| literal(t.as_str())).collect();
            let _ = write!(text, " AND tenant IN ({})", tenants.join(", "));
        }
        if self.dead {
            let _ = write!(text, " AND event_type = {}", literal(self.event_type.as_str()));
        }
        text
    }
}

/// What the rows of some offsets come to: two of the same sum are the same rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many rows.
    pub rows: u64,
    /// How many offsets.
    pub offsets: u64,
    /// The rows' hashes, added up,
    pub sum: u64,
    /// and combined by exclusive or.
    pub xor: u64,
}

#[derive(Deserialize)]
struct SumLine {
    step: u64,
    rows: u64,
    offsets: u64,
    sum: u64,
    xor: u64,
}

#[derive(Deserialize)]
struct CountLine {
    tenant: TenantId,
    hour: i64,
    rows: u64,
}

/// The tables of one sink, or of its shadow, to be read.
pub struct Reader {
    clients: Vec<Client>,
    settings: Settings,
}

impl Reader {
    /// Makes no request.
    ///
    /// # Errors
    /// [`SinkConfigError`] as at the start of the sink.
    pub fn open(config: &SinkConfig, runtime: &Handle) -> Result<Self, SinkConfigError> {
        let settings = Settings::read(&config.own())?;
        let open = |url| Client::open(&settings, url, runtime.clone());
        let clients = settings.urls.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { clients, settings })
    }

    fn table(&self, of: &Stretch<'_>) -> TableName {
        TableName::named(&self.settings.database, of.event_type, of.dead, &self.settings.suffix)
    }

    /// What the rows come to, `step` offsets at a time, by the number of the step; those without a row are
    /// left out. A column that has no value counts as one that is not there.
    ///
    /// # Errors
    /// One line for people.
    pub fn sums(&self, of: &Stretch<'_>, step: u64) -> Result<BTreeMap<u64, Sum>, String> {
        let (table, mut sums) = (self.table(of), BTreeMap::<u64, Sum>::new());
        for client in &self.clients {
            let fault = |fault: Fault| format!("{}: {fault}", table.quoted());
            let Some(there) = tables::look(client, &table).map_err(fault)? else { continue };
            let statement = question(&table, &there.columns, of, step);
            let answer = ask(client, &statement, ANSWER_BYTES_MAX).map_err(fault)?;
            for line in tables::lines::<SumLine>(&answer).map_err(fault)? {
                let sum = sums.entry(line.step).or_default();
                sum.rows += line.rows;
                sum.offsets += line.offsets;
                sum.sum = sum.sum.wrapping_add(line.sum);
                sum.xor ^= line.xor;
            }
        }
        Ok(sums)
    }

    /// How many rows each tenant has, by the hour in which they were received.
    ///
    /// # Errors
    /// One line for people.
    pub fn counts(&self, of: &Stretch<'_>) -> Result<Vec<(TenantId, i64, u64)>, String> {
        let (table, mut counts) = (self.table(of), Vec::new());
        for client in &self.clients {
            let fault = |fault: Fault| format!("{}: {fault}", table.quoted());
            if tables::look(client, &table).map_err(fault)?.is_none() {
                continue;
            }
            let statement = format!(
                "SELECT tenant, {} AS hour, count() AS rows FROM {} WHERE {} GROUP BY tenant, hour \
                 FORMAT JSONEachRow",
                hour(),
                table.quoted(),
                of.condition()
            );
            let answer = ask(client, &statement, ANSWER_BYTES_MAX).map_err(fault)?;
            let lines = tables::lines::<CountLine>(&answer).map_err(fault)?;
            counts.extend(lines.into_iter().map(|line| (line.tenant, line.hour, line.rows)));
        }
        Ok(counts)
    }

    /// The rows in order of offset; `None` where they take more than `bytes_max`.
    ///
    /// # Errors
    /// One line for people.
    pub fn rows(&self, of: &Stretch<'_>, bytes_max: usize) -> Result<Option<BackRows>, String> {
        let table = self.table(of);
        let mut parts = Vec::new();
        for client in &self.clients {
            let fault = |fault: Fault| format!("{}: {fault}", table.quoted());
            if tables::look(client, &table).map_err(fault)?.is_none() {
                continue;
            }
            let statement = format!(
                "SELECT *, {} AS {HOUR} FROM {} WHERE {} ORDER BY log_offset FORMAT JSONEachRow",
                hour(),
                table.quoted(),
                of.condition()
            );
            match ask(client, &statement, bytes_max) {
                Ok(answer) => parts.push(Part { answer, at: 0 }),
                Err(Fault::Long(_)) => return Ok(None),
                Err(other) => return Err(fault(other)),
            }
        }
        let mut rows = BackRows {
            parts,
            heads: Vec::new(),
            owners: HashMap::new(),
            names: Arc::default(),
            event_type: of.event_type.clone(),
            dead: of.dead,
            table: table.quoted(),
        };
        for at in 0..rows.parts.len() {
            let head = rows.read(at)?;
            rows.heads.push(head);
        }
        Ok(Some(rows))
    }
}

fn ask(client: &Client, statement: &str, answer_bytes_max: usize) -> Result<Vec<u8>, Fault> {
    let id = format!("tidegate-{}", uuid::Uuid::now_v7());
    client.ask(Request { id: &id, statement, settings: SELECT, body: None, answer_bytes_max })
}

/// Hours since 1970 at which a row was received.
fn hour() -> &'static str {
    "intDiv(toUnixTimestamp64Micro(received_at), 3600000000)"
}

/// Asks for the sums. A row's hash is over its offset and the values of its columns with their names and
/// types, those without a value left out: so it is the same in a table with more columns.
fn question(
    table: &TableName,
    columns: &BTreeMap<String, String>,
    of: &Stretch<'_>,
    step: u64,
) -> String {
    let mut values = String::from("0");
    for (name, ty) in columns {
        let (column, name, ty) = (quote(name), literal(name), literal(bare(ty)));
        let _ = write!(
            values,
            " + if(isNull({column}), 0, sipHash64({name}, {ty}, assumeNotNull(toString({column}))))"
        );
    }
    format!(
        "SELECT toUInt64(intDiv(log_offset, {step})) AS step, count() AS rows, \
         uniqExact(log_offset) AS offsets, sum(hash) AS sum, groupBitXor(hash) AS xor FROM \
         (SELECT log_offset, sipHash64(log_offset, {values}) AS hash FROM {} WHERE {}) \
         GROUP BY step FORMAT JSONEachRow",
        table.quoted(),
        of.condition()
    )
}

/// A type without what says how it is kept.
fn bare(ty: &str) -> &str {
    let within = |ty: &'_ str, outer: &str| -> Option<usize> {
        ty.strip_prefix(outer)?.strip_suffix(')').map(|_| outer.len())
    };
    let mut ty = ty;
    for outer in ["LowCardinality(", "Nullable("] {
        if let Some(begin) = within(ty, outer) {
            ty = ty.get(begin..ty.len() - 1).unwrap_or(ty);
        }
    }
    ty
}

/// Rows as servers answered with them, one after the other in order of offset.
pub struct BackRows {
    parts: Vec<Part>,
    heads: Vec<Option<BackRow>>,
    owners: HashMap<TenantId, Arc<Owner>>,
    names: Arc<[String]>,
    event_type: EventType,
    dead: bool,
    table: String,
}

/// One server's answer, and up to where it was read.
struct Part {
    answer: Vec<u8>,
    at: usize,
}

/// The values of a line by the names of their columns.
type Line<'l> = BTreeMap<Cow<'l, str>, &'l RawValue>;

impl BackRows {
    /// The offset of the next row.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.heads.iter().flatten().map(|row| row.offset).min()
    }

    /// The next row.
    ///
    /// # Errors
    /// One line for people, where an answer is none.
    pub fn take(&mut self) -> Result<Option<BackRow>, String> {
        let heads = self.heads.iter().enumerate();
        let next = heads.filter_map(|(at, head)| Some((head.as_ref()?.offset, at))).min();
        let Some((_, at)) = next else { return Ok(None) };
        let after = self.read(at)?;
        Ok(self.heads.get_mut(at).and_then(|head| std::mem::replace(head, after)))
    }

    fn read(&mut self, at: usize) -> Result<Option<BackRow>, String> {
        let Some(part) = self.parts.get_mut(at) else { return Ok(None) };
        let rest = part.answer.get(part.at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        part.at += end;
        let none =
            |why: &str| format!("{}: the answer is not what was asked for: {why}", self.table);
        let line = rest.get(..end).unwrap_or_default();
        let values: Line<'_> = serde_json::from_slice(line).map_err(|e| none(&e.to_string()))?;
        let number = |name: &str| -> Option<i64> { values.get(name)?.get().parse().ok() };
        let tenant = values.get("tenant").and_then(|t| serde_json::from_str(t.get()).ok());
        let (Some(offset), Some(hour), Some(tenant)) = (number("log_offset"), number(HOUR), tenant)
        else {
            return Err(none("a row without offset, time or tenant"));
        };
        let owner = self.owners.entry(tenant).or_insert_with_key(|tenant| {
            Arc::new(Owner { tenant: tenant.clone(), event_type: self.event_type.clone() })
        });
        let mut row = BackRow::new(Arc::clone(owner));
        let told = |name: &&Cow<'_, str>| !OWNER.contains(&name.as_ref()) && **name != HOUR;
        let names = || values.keys().filter(told);
        if !names().map(Cow::as_ref).eq(self.names.iter().map(String::as_str)) {
            self.names = names().map(|name| name.clone().into_owned()).collect();
        }
        row.clear(&self.names);
        for name in names() {
            let value = values.get(name).map_or("null", |value| value.get());
            row.push(|text| {
                if value != "null" {
                    text.extend_from_slice(value.as_bytes());
                }
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap_or_else(|never| match never {});
        }
        row.offset = u64::try_from(offset).map_err(|_| none("an offset below 0"))?;
        (row.dead, row.hour) = (self.dead, hour);
        Ok(Some(row))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tidegate_event::Offset;

    #[test]
    fn a_question_keeps_every_name_in_its_quotes() {
        let tenants = [TenantId::new("acme").unwrap()];
        let of = Stretch {
            log_id: "abcd1234",
            partition: Partition(2),
            range: OffsetRange::new(Offset(10), Offset(20)).unwrap(),
            tenants: &tenants,
            event_type: &EventType::new("view").unwrap(),
            dead: true,
        };
        let table = TableName { database: "tidegate".into(), table: "_dead_letters".into() };
        let columns = BTreeMap::from([("a`'b".to_owned(), "Nullable(String)".to_owned())]);
        assert_eq!(
            question(&table, &columns, &of, 16),
            "SELECT toUInt64(intDiv(log_offset, 16)) AS step, count() AS rows, \
             uniqExact(log_offset) AS offsets, sum(hash) AS sum, groupBitXor(hash) AS xor FROM \
             (SELECT log_offset, sipHash64(log_offset, 0 + if(isNull(`a\\`'b`), 0, \
             sipHash64('a`\\'b', 'String', assumeNotNull(toString(`a\\`'b`))))) AS hash FROM \
             `tidegate`.`_dead_letters` WHERE log_id = 'abcd1234' AND log_partition = 2 AND \
             log_offset >= 10 AND log_offset < 20 AND tenant IN ('acme') AND event_type = 'view') \
             GROUP BY step FORMAT JSONEachRow"
        );
    }

    #[test]
    fn how_a_type_is_kept_makes_no_difference() {
        for (ty, expected) in [
            ("String", "String"),
            ("LowCardinality(String)", "String"),
            ("LowCardinality(Nullable(String))", "String"),
            ("Nullable(DateTime64(6, 'UTC'))", "DateTime64(6, 'UTC')"),
        ] {
            assert_eq!(bare(ty), expected);
        }
    }
}
