//! The tables: their statements, and what is read of those that exist.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    time::Duration,
};

use tidegate_event::EventType;

use super::{
    super::{
        lake::{Project, SchemaColumn, columns::Kind},
        rows::Lane,
    },
    block::literal,
};

/// How many of a table's last inserts its server must know by their tokens.
pub const WINDOW_MIN: u64 = 10_000;
/// How long a replicated table must know them.
pub const WINDOW_SECONDS_MIN: u64 = 3_600;
/// Where dead letters go; no event type has this name.
const DEAD_LETTERS: &str = "_dead_letters";
/// What tables may be partitioned by: a day or more in one.
const PARTITION_KEYS: &[&str] = &[
    "toDate(received_at)",
    "toYYYYMMDD(received_at)",
    "toMonday(received_at)",
    "toStartOfMonth(received_at)",
    "toYYYYMM(received_at)",
    "toYear(received_at)",
    "",
    "tuple()",
];

/// The columns that every table begins with, as they are made.
const OWN: &[(&str, &str, &str)] = &[
    ("tenant", "LowCardinality(String)", "whose event"),
    ("event_id", "String", "the client's id, else a UUIDv7"),
    ("event_time", "DateTime64(6, 'UTC')", "the sender's clock"),
    ("received_at", "DateTime64(6, 'UTC')", "when Tidegate had the whole request"),
    ("log_id", "LowCardinality(String)", "which log"),
    ("log_partition", "Int32", "which partition of the log"),
    ("log_offset", "Int64", "where it stands in the partition"),
    ("schema_version", "Int32", "0: no schema"),
];
const DEAD: &[(&str, &str, &str)] = &[
    ("event_type", "LowCardinality(String)", "of which type"),
    ("reason", "LowCardinality(String)", "the code it is a dead letter for"),
    ("field", "Nullable(String)", "where in the event"),
    ("message", "Nullable(String)", "what is wrong with it"),
    ("raw", "String", "the event as it came"),
];

/// A table's name with its database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Where.
    pub database: String,
    /// The event type, or where dead letters go.
    pub table: String,
}

impl TableName {
    /// The table of a lane, with `suffix` behind its name.
    pub fn of(database: &str, lane: &Lane, suffix: &str) -> Self {
        Self::named(database, &lane.event_type, lane.dead, suffix)
    }

    /// The table of an event type, or that of its dead letters.
    pub fn named(database: &str, event_type: &EventType, dead: bool, suffix: &str) -> Self {
        let table = if dead { DEAD_LETTERS } else { event_type.as_str() };
        Self { database: database.to_owned(), table: format!("{table}{suffix}") }
    }

    /// As it stands in a statement.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.database), quote(&self.table))
    }
}

/// A name as it stands in a statement.
pub fn quote(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    out.push('`');
    for c in name.chars() {
        if matches!(c, '`' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('`');
    out
}

/// One column as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Its name.
    pub name: String,
    /// Its type where it is made.
    pub ty: String,
    /// What it says.
    pub comment: String,
}

impl ColumnSpec {
    fn new((name, ty, comment): (&str, &str, &str)) -> Self {
        Self { name: name.to_owned(), ty: ty.to_owned(), comment: comment.to_owned() }
    }

    fn of(column: &SchemaColumn) -> Self {
        let ty = match column.kind {
            Kind::Bool => "Bool",
            Kind::I32 => "Int32",
            Kind::I64 => "Int64",
            Kind::F64 => "Float64",
            Kind::Micros => "DateTime64(6, 'UTC')",
            Kind::Text | Kind::Json => "String",
        };
        let comment = match (&column.unit, column.kind) {
            (Some(unit), _) => format!("unit: {unit}"),
            (None, Kind::Json) => "JSON".to_owned(),
            (None, _) => String::new(),
        };
        Self { name: column.name.clone(), ty: format!("Nullable({ty})"), comment }
    }

    fn definition(&self) -> String {
        let comment = match self.comment.as_str() {
            "" => String::new(),
            comment => format!(" COMMENT {}", literal(comment)),
        };
        format!("{} {}{comment}", quote(&self.name), self.ty)
    }
}

/// The columns that the rows of a lane need, judged by one schema.
pub fn columns(dead: bool, schema: Option<&dyn Project>) -> Vec<ColumnSpec> {
    let mut columns: Vec<_> = OWN.iter().copied().map(ColumnSpec::new).collect();
    if dead {
        columns.extend(DEAD.iter().copied().map(ColumnSpec::new));
        return columns;
    }
    columns.extend(schema.map(Project::columns).unwrap_or_default().iter().map(ColumnSpec::of));
    let custom = ("custom", "String", "JSON: the fields that no schema names");
    columns.push(ColumnSpec::new(custom));
    columns
}

/// Makes a table.
pub fn create(
    table: &TableName,
    columns: &[ColumnSpec],
    ttl: Option<Duration>,
    fsync: bool,
) -> String {
    let mut text = format!("CREATE TABLE IF NOT EXISTS {} (", table.quoted());
    for column in columns {
        let _ = write!(text, "{}, ", column.definition());
    }
    text.push_str("INDEX by_log_offset log_offset TYPE minmax GRANULARITY 4) ");
    text.push_str("ENGINE = MergeTree PARTITION BY toDate(received_at) ");
    text.push_str("ORDER BY (tenant, event_time, log_partition, log_offset)");
    if let Some(ttl) = ttl {
        let seconds = ttl.as_secs();
        let _ = write!(text, " TTL toDateTime(received_at) + INTERVAL {seconds} SECOND DELETE");
    }
    let _ = write!(text, " SETTINGS non_replicated_deduplication_window = {WINDOW_MIN}");
    if ttl.is_some() {
        text.push_str(", ttl_only_drop_parts = 1");
    }
    if fsync {
        text.push_str(", fsync_after_insert = 1, fsync_part_directory = 1");
    }
    text
}

/// Adds columns to a table.
pub fn add(table: &TableName, columns: &[&ColumnSpec]) -> String {
    let add = |column: &&ColumnSpec| format!("ADD COLUMN IF NOT EXISTS {}", column.definition());
    let adds: Vec<_> = columns.iter().map(add).collect();
    format!("ALTER TABLE {} {}", table.quoted(), adds.join(", "))
}

/// What the server says of a table that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Its engine.
    pub engine: String,
    /// The engine with its settings.
    pub engine_full: String,
    /// What it is partitioned by.
    pub partition_key: String,
    /// The types of its columns.
    pub columns: BTreeMap<String, String>,
}

impl Existing {
    /// Whether inserts into it can be repeated without a double. `defaults`: the server's own settings
    /// of tables.
    ///
    /// # Errors
    /// What is wrong with it, and how it is mended.
    pub fn check(&self, defaults: &HashMap<String, u64>, fsync: bool) -> Result<(), String> {
        let replicated = match self.engine.as_str() {
            "MergeTree" => false,
            "ReplicatedMergeTree" | "SharedMergeTree" => true,
            other => {
                return Err(format!(
                    "its engine is {other}, which cannot tell a repeated insert from another: it must \
                     be MergeTree, ReplicatedMergeTree or SharedMergeTree"
                ));
            }
        };
        if !PARTITION_KEYS.contains(&self.partition_key.as_str()) {
            return Err(format!(
                "it is partitioned by {}, so that one insert may go into several partitions: it must \
                 be one of {}",
                self.partition_key,
                PARTITION_KEYS.join(", ")
            ));
        }
        let mut needed = vec![if replicated {
            ("replicated_deduplication_window", WINDOW_MIN)
        } else {
            ("non_replicated_deduplication_window", WINDOW_MIN)
        }];
        if replicated {
            needed.push(("replicated_deduplication_window_seconds", WINDOW_SECONDS_MIN));
        } else if fsync {
            needed.extend([("fsync_after_insert", 1), ("fsync_part_directory", 1)]);
        }
        for (name, least) in needed {
            let own = setting(&self.engine_full, name);
            let value = own.or_else(|| defaults.get(name).copied()).unwrap_or(0);
            if value < least {
                let hint =
                    if name.starts_with("fsync") { " (or say options.fsync = false)" } else { "" };
                return Err(format!(
                    "its setting {name} is {value} and must be {least} at least: ALTER TABLE … MODIFY \
                     SETTING {name} = {least}{hint}"
                ));
            }
        }
        Ok(())
    }

    /// The columns that it lacks.
    ///
    /// # Errors
    /// A column of another type, which would change values.
    pub fn lacks<'c>(&self, columns: &'c [ColumnSpec]) -> Result<Vec<&'c ColumnSpec>, String> {
        let mut lacking = Vec::new();
        for column in columns {
            match self.columns.get(&column.name) {
                None => lacking.push(column),
                Some(there) if holds(there, &column.ty) => {}
                Some(there) => {
                    return Err(format!(
                        "its column {} is {there} and cannot hold every value of {}",
                        quote(&column.name),
                        column.ty
                    ));
                }
            }
        }
        Ok(lacking)
    }
}

/// Whether a column of type `there` takes each value of `ours` unchanged: the same type, whether each
/// value is kept once (`LowCardinality`) or not, and with room for nothing where ours has it.
fn holds(there: &str, ours: &str) -> bool {
    let bare = |ty: &str| {
        let ty = ty.strip_prefix("LowCardinality(").and_then(|t| t.strip_suffix(')')).unwrap_or(ty);
        match ty.strip_prefix("Nullable(").and_then(|t| t.strip_suffix(')')) {
            Some(inner) => (inner.to_owned(), true),
            None => (ty.to_owned(), false),
        }
    };
    let ((there, takes_null), (ours, may_be_null)) = (bare(there), bare(ours));
    there == ours && (takes_null || !may_be_null)
}

/// A setting of the table's own, as it stands behind its engine.
fn setting(engine_full: &str, name: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once("SETTINGS ")?;
    settings.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        if key.trim() != name {
            return None;
        }
        match value.trim().trim_matches('\'') {
            "true" => Some(1),
            "false" => Some(0),
            value => value.parse().ok(),
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn existing(engine_full: &str) -> Existing {
        let engine = engine_full.split([' ', '(']).next().unwrap().to_owned();
        Existing {
            engine,
            engine_full: engine_full.to_owned(),
            partition_key: "toDate(received_at)".to_owned(),
            columns: BTreeMap::new(),
        }
    }

    #[test]
    fn only_tables_that_know_their_inserts_are_taken() {
        let none = HashMap::new();
        let enough: HashMap<_, _> = [
            ("replicated_deduplication_window".to_owned(), 10_000),
            ("replicated_deduplication_window_seconds".to_owned(), 604_800),
            ("non_replicated_deduplication_window".to_owned(), 0),
        ]
        .into();
        let own = "MergeTree PARTITION BY x ORDER BY y SETTINGS index_granularity = 8192, \
                   non_replicated_deduplication_window = 10000";
        let synced = format!("{own}, fsync_after_insert = 1, fsync_part_directory = true");
        for (engine, defaults, fsync, why) in [
            (own, &none, false, None),
            (own, &none, true, Some("fsync_after_insert is 0")),
            (&synced, &none, true, None),
            ("MergeTree ORDER BY y", &enough, false, Some("window is 0 and must be 10000")),
            (&own.replace("10000", "9999"), &enough, false, Some("window is 9999")),
            ("ReplicatedMergeTree('/p', 'r') ORDER BY y", &enough, true, None),
            ("ReplicatedMergeTree ORDER BY y", &none, true, Some("window is 0")),
            (
                "ReplicatedMergeTree ORDER BY y SETTINGS replicated_deduplication_window_seconds = 60",
                &enough,
                true,
                Some("seconds is 60"),
            ),
            ("ReplacingMergeTree ORDER BY y", &enough, false, Some("engine is ReplacingMergeTree")),
            ("Distributed('c', 'd', 't')", &enough, false, Some("engine is Distributed")),
            ("Null", &enough, false, Some("engine is Null")),
        ] {
            match (existing(engine).check(defaults, fsync), why) {
                (Ok(()), None) => {}
                (Err(said), Some(why)) => assert!(said.contains(why), "{said}"),
                (found, why) => panic!("{engine}: {found:?}, not {why:?}"),
            }
        }
        let by_hour =
            Existing { partition_key: "toStartOfHour(received_at)".into(), ..existing(own) };
        assert!(by_hour.check(&none, false).unwrap_err().contains("several partitions"));
    }

    #[test]
    fn a_type_that_would_change_values_is_refused() {
        for (there, ours, expected) in [
            ("String", "String", true),
            ("LowCardinality(String)", "String", true),
            ("LowCardinality(Nullable(String))", "Nullable(String)", true),
            ("Nullable(Int64)", "Int64", true),
            ("String", "Nullable(String)", false),
            ("Int32", "Int64", false),
            ("Nullable(Float32)", "Nullable(Float64)", false),
            ("DateTime64(3, 'UTC')", "DateTime64(6, 'UTC')", false),
        ] {
            assert_eq!(holds(there, ours), expected, "{there} for {ours}");
        }
    }

    #[test]
    fn a_table_is_made_as_its_documentation_says() {
        let table = TableName { database: "tidegate".into(), table: "page-view".into() };
        let columns = columns(false, None);
        let made = create(&table, &columns, Some(Duration::from_secs(86_400)), true);
        for part in [
            "CREATE TABLE IF NOT EXISTS `tidegate`.`page-view` (`tenant` LowCardinality(String)",
            "`custom` String COMMENT 'JSON: the fields that no schema names', INDEX",
            "PARTITION BY toDate(received_at) ORDER BY (tenant, event_time, log_partition, log_offset)",
            " TTL toDateTime(received_at) + INTERVAL 86400 SECOND DELETE",
            "non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, fsync_after_insert",
        ] {
            assert!(made.contains(part), "{part} is not in {made}");
        }
        let more = ColumnSpec::of(&SchemaColumn {
            name: "took`x".into(),
            kind: Kind::F64,
            unit: Some("s".into()),
        });
        assert_eq!(
            add(&table, &[&more]),
            "ALTER TABLE `tidegate`.`page-view` ADD COLUMN IF NOT EXISTS `took\\`x` \
             Nullable(Float64) COMMENT 'unit: s'"
        );
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_quotes(name in ".{0,60}") {
            let quoted = quote(&name);
            let inner = quoted.strip_prefix('`').unwrap().strip_suffix('`').unwrap();
            // Reads it as ClickHouse does: a backslash takes the next character as it is.
            let (mut read, mut chars) = (String::new(), inner.chars());
            while let Some(c) = chars.next() {
                prop_assert_ne!(c, '`');
                read.push(if c == '\\' { chars.next().unwrap() } else { c });
            }
            prop_assert_eq!(read, name);
        }
    }
}
