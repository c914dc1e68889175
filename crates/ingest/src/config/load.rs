//! Reads the file, lays the environment over it, and finds every fault before anything starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::Config;
use crate::{
    edge::{
        EdgeConfig,
        protocol::{PROTOCOLS, naming},
    },
    kafka::PartitionBy,
    log::{LogConfig, LogKind},
    sink::{SinkConfig, SinkConfigError, SinkKind, shadow::ShadowPlace},
};

/// A file larger than this is no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Settings of no section: the only ones whose variables have no `__`.
const TOP_LEVEL: &[&str] = &["ROLE", "TENANTS_DIR"];

/// Why a configuration cannot be used; nothing of it is.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The text is not what it should be; the message names line and column.
    #[error("{source_name}: {message}")]
    Parse {
        /// The file, or the environment variable.
        source_name: String,
        /// What is wrong, and where.
        message: String,
    },
    /// Values that do not go together, each with its name.
    #[error("{}", .0.join("\n"))]
    Faults(Vec<String>),
}

/// Reads `path` (absent: all defaults), lays `TIDEGATE_<SECTION>__<NAME>` variables over it and
/// checks the whole.
///
/// # Errors
/// [`ConfigError`] with all that is wrong, as far as it can be seen at once.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), read(path)?),
        None => ("defaults".to_owned(), String::new()),
    };
    let config = parse(&name, &text, std::env::vars_os().filter_map(unicode))?;
    match check(&config) {
        faults if faults.is_empty() => Ok(config),
        faults => Err(ConfigError::Faults(faults)),
    }
}

fn unicode(pair: (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((pair.0.into_string().ok()?, pair.1.into_string().ok()?))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let fault = |error| ConfigError::Read { path: path.to_owned(), error };
    let about = fs::metadata(path).map_err(fault)?;
    if !about.is_file() {
        return Err(fault(io::Error::other("is no file")));
    }
    let size = about.len();
    if size > FILE_BYTES_MAX {
        let text = format!("{size} bytes are no configuration; at most {FILE_BYTES_MAX} are read");
        return Err(fault(io::Error::other(text)));
    }
    fs::read_to_string(path).map_err(fault)
}

/// Parses `text` and lays `environment` over it.
///
/// # Errors
/// [`ConfigError::Parse`] with the line of the first fault.
pub fn parse(
    source_name: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let fault = |name: &str, message: String| ConfigError::Parse {
        source_name: name.to_owned(),
        message: message.trim_end().to_owned(),
    };
    // The text alone first: only this way does a fault in it carry its line.
    let config: Config = toml::from_str(text).map_err(|e| fault(source_name, e.to_string()))?;
    let mut table: Table = toml::from_str(text).map_err(|e| fault(source_name, e.to_string()))?;
    no_stray_lists(&table).map_err(|message| fault(source_name, message))?;
    let mut overrides: Vec<_> = environment
        .filter_map(|(name, value)| {
            let rest = name.strip_prefix("TIDEGATE_")?;
            (rest.contains("__") || TOP_LEVEL.contains(&rest))
                .then(|| (name.clone(), rest.to_lowercase(), value))
        })
        .collect();
    if overrides.is_empty() {
        return Ok(config);
    }
    overrides.sort();
    for (name, path, value) in &overrides {
        let path: Vec<&str> = path.split("__").collect();
        set(&mut table, &path, literal(value)).map_err(|message| fault(name, message))?;
        no_stray_lists(&table).map_err(|message| fault(name, message))?;
        // Tried one by one, so that the fault names its variable.
        Config::try_from_table(table.clone()).map_err(|message| fault(name, message))?;
    }
    Config::try_from_table(table).map_err(|message| fault(source_name, message))
}

/// A list in the place of a section would be read as its values in the order of our fields, and an
/// empty one as all defaults: nobody means that.
fn no_stray_lists(table: &Table) -> Result<(), String> {
    fn walk(table: &Table, path: &str) -> Result<(), String> {
        for (name, value) in table {
            match value {
                Value::Table(inner) if name != "options" => walk(inner, &format!("{path}{name}."))?,
                Value::Array(_)
                    if path != "sink.filter."
                        && !(path == "hop." && matches!(&**name, "normalizers" | "writers"))
                        && !(path == "edge." && name == "also_listen") =>
                {
                    return Err(format!("{path}{name} is no list"));
                }
                _ => {}
            }
        }
        Ok(())
    }
    let (mut rest, mut table) = (Vec::new(), table.clone());
    if let Some(Value::Array(sinks)) = table.remove("sink") {
        rest = sinks;
    }
    walk(&table, "")?;
    for sink in &rest {
        let Value::Table(sink) = sink else { return Err("[[sink]] is a section".to_owned()) };
        walk(sink, "sink.")?;
    }
    Ok(())
}

impl Config {
    fn try_from_table(table: Table) -> Result<Self, String> {
        Value::Table(table).try_into().map_err(|e: toml::de::Error| e.to_string())
    }
}

/// A variable's value: TOML where it reads as one (a number, a truth value, a list, quoted text),
/// else the text itself.
fn literal(text: &str) -> Value {
    let parsed: Option<Table> = toml::from_str(&format!("v = {text}")).ok();
    parsed.and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn set(table: &mut Table, path: &[&str], value: Value) -> Result<(), String> {
    match path {
        [] => Err("names nothing".to_owned()),
        [last] => {
            table.insert((*last).to_owned(), value);
            Ok(())
        }
        [first, index, rest @ ..] if table.get(*first).is_some_and(Value::is_array) => {
            let items = table.get_mut(*first).and_then(Value::as_array_mut);
            let item =
                items.zip(index.parse::<usize>().ok()).and_then(|(items, i)| items.get_mut(i));
            match item.and_then(Value::as_table_mut) {
                Some(item) => set(item, rest, value),
                None => Err(format!("the file has no `{first}` number {index}, counted from 0")),
            }
        }
        [first, rest @ ..] => {
            let inner = table.entry((*first).to_owned()).or_insert(Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => set(inner, rest, value),
                _ => Err(format!("`{first}` is a value, not a section")),
            }
        }
    }
}

/// What is wrong between values that are each right alone; one sentence each.
#[must_use]
pub fn check(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    let mut need = |holds: bool, text: &str| {
        if !holds {
            faults.push(text.to_owned());
        }
    };
    let limits = &config.edge.limits;
    need(limits.decoded_bytes.0 <= 1 << 30, "edge.limits.decoded_bytes: at most 1GiB");
    need(
        limits.body_bytes.0 <= limits.decoded_bytes.0,
        "edge.limits.body_bytes: at most decoded_bytes",
    );
    need(
        limits.event_bytes.0 <= limits.decoded_bytes.0,
        "edge.limits.event_bytes: at most decoded_bytes",
    );
    need(limits.events > 0, "edge.limits.events: at least 1");
    need((1..=128).contains(&limits.depth), "edge.limits.depth: 1 to 128");
    need(limits.fields > 0, "edge.limits.fields: at least 1");
    need(limits.connections > 0, "edge.limits.connections: at least 1");
    keyless_faults(&config.edge).iter().for_each(|fault| need(false, fault));
    need(
        config.budget.bytes.0 >= limits.body_bytes.0.saturating_add(limits.decoded_bytes.0),
        "budget.bytes: at least edge.limits.body_bytes + decoded_bytes, or one body never fits",
    );
    need((1..=1024).contains(&config.log.partitions), "log.partitions: 1 to 1024");
    need(config.log.segment_bytes.0 >= 1 << 20, "log.segment_bytes: at least 1MiB");
    need(
        config.log.backlog_bytes.0 >= config.log.segment_bytes.0.saturating_mul(2),
        "log.backlog_bytes: at least twice log.segment_bytes",
    );
    if config.log.kind == LogKind::Kafka {
        kafka_faults(&config.log).iter().for_each(|fault| need(false, fault));
    }
    let windows: std::collections::BTreeSet<_> = config.log.dedup_windows.values().collect();
    need(windows.len() <= 32, "log.dedup_windows: at most 32 different lengths");
    need(
        config.log.dedup_ids > 0 || windows.iter().all(|window| window.0.is_zero()),
        "log.dedup_windows: no id is remembered with log.dedup_ids = 0",
    );
    for fault in config.defaults.quota.faults() {
        need(false, &format!("defaults.quota.{fault}"));
    }
    for fault in config.quota_store.faults() {
        need(false, &format!("quota_store.{fault}"));
    }
    for fault in config.hop.faults(config.role) {
        need(false, &format!("hop.{fault}"));
    }
    let mut names: Vec<&str> = config.sink.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        if let [a, b] = pair
            && a == b
        {
            need(false, &format!("sink {a:?}: two sinks of that name"));
        }
    }
    for sink in &config.sink {
        let named = tidegate_event::EventType::is_valid(&sink.name);
        need(named, &format!("sink {:?}: a name is letters, digits, '.', '_' and '-'", sink.name));
        if let Err(fault) = sink_fault(sink, &config.log.dir) {
            need(false, &format!("sink {:?}: {fault}", sink.name));
        }
    }
    faults.extend(address_faults(config));
    faults
}

/// What is wrong with the addresses to listen on.
fn address_faults(config: &Config) -> Vec<String> {
    let also = config.edge.also_listen.iter().flatten().map(|listen| ("edge.also_listen", listen));
    let own = [("edge.listen", &config.edge.listen), ("admin.listen", &config.admin.listen)];
    let is_wrong = |listen: &String| {
        let port = listen.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        port.is_none()
    };
    let wrong = own.into_iter().chain(also).filter(|(_, listen)| is_wrong(listen));
    wrong.map(|(name, listen)| format!("{name}: {listen:?} is no HOST:PORT")).collect()
}

/// What is wrong with what is read, or taken, of nobody known.
fn keyless_faults(edge: &EdgeConfig) -> Vec<String> {
    let mut faults = Vec::new();
    if !(1..=4 << 20).contains(&edge.limits.unauthenticated_bytes.0) {
        faults.push("edge.limits.unauthenticated_bytes: at least 1, at most 4MiB".to_owned());
    }
    faults.extend(naming::faults(&edge.event_types));
    for name in edge.open.keys() {
        let mut protocols = PROTOCOLS.iter();
        if !protocols.any(|protocol| protocol.name == name && protocol.login.may_be_open) {
            faults.push(format!("edge.open.{name}: no protocol that may come without a key"));
        }
    }
    faults
}

/// What is wrong with a sink's options, or with those of its shadows.
fn sink_fault(sink: &SinkConfig, dir: &Path) -> Result<(), SinkConfigError> {
    (SinkKind::of(sink)?.check)(&sink.own())?;
    match sink.shadow {
        Some(_) => ShadowPlace::fingerprint(sink, dir).map(drop),
        None => Ok(()),
    }
}

/// What does not go with a log on Kafka.
fn kafka_faults(log: &LogConfig) -> Vec<String> {
    let mut faults: Vec<_> =
        log.kafka.faults().into_iter().map(|fault| format!("log.kafka.{fault}")).collect();
    if log.remembers() && log.kafka.partition_by == PartitionBy::Request {
        let text = "log.kafka.partition_by = \"request\": an id that is sent again goes to another partition, \
                    where nobody knows it; write \"tenant\", or log.dedup_window = \"0s\" (and no \
                    log.dedup_windows): then a client that sends again leaves a second event";
        faults.push(text.to_owned());
    }
    if log.partitions != LogConfig::default().partitions {
        faults
            .push("log.partitions is the embedded log's; a topic has log.kafka.partitions".into());
    }
    if !cfg!(feature = "kafka") {
        faults.push(
            "log.kind = \"kafka\": this program was built without the feature `kafka`".into(),
        );
    }
    faults
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::config::{Size, Span};

    fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        parse("test.toml", text, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn ids_are_remembered_on_kafka_where_each_goes_to_one_partition() {
        let with = |more: &str| {
            check(&parse_with(&format!("[log]\nkind = \"kafka\"\n{more}"), &[]).unwrap())
        };
        let told = |faults: &[String]| faults.iter().any(|fault| fault.contains("partition_by"));
        assert!(!told(&with("")));
        let request = "[log.kafka]\npartition_by = \"request\"";
        assert!(told(&with(request)));
        assert!(told(&with(&format!(
            "dedup_window = \"0s\"\ndedup_windows = {{ a = \"1m\" }}\n{request}"
        ))));
        assert!(!told(&with(&format!("dedup_window = \"0s\"\n{request}"))));
        assert!(!told(&with(&format!("dedup_ids = 0\n{request}"))));
    }

    #[test]
    fn an_empty_file_is_the_defaults_and_they_hold_together() {
        let config = parse_with("", &[]).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(check(&config), Vec::<String>::new());
    }

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        let text = "[log]\nsegment_bytes = \"64MiB\"\nretention_age = \"2d\"\n[budget]\nbytes = 1048576\ndelay = \"250ms\"";
        let config = parse_with(text, &[]).unwrap();
        assert_eq!(config.log.segment_bytes, Size::mib(64));
        assert_eq!(config.log.retention_age, Span::seconds(172_800));
        assert_eq!(config.budget.bytes, Size::mib(1));
        assert_eq!(config.budget.delay.0.as_millis(), 250);
    }

    #[test]
    fn the_environment_lies_over_the_file() {
        let env = [
            ("TIDEGATE_LOG__DIR", "/x/y"),
            ("TIDEGATE_EDGE__LIMITS__EVENTS", "7"),
            ("TIDEGATE_TENANTS_DIR", "/t"),
        ];
        let config = parse_with("[log]\ndir = \"a\"\npartitions = 2", &env).unwrap();
        assert_eq!(config.log.dir, Path::new("/x/y"));
        assert_eq!(config.log.partitions, 2);
        assert_eq!(config.edge.limits.events, 7);
        assert_eq!(config.tenants_dir.as_deref(), Some(Path::new("/t")));
    }

    #[test]
    fn the_environment_reaches_into_sinks_by_their_place() {
        let text =
            "[[sink]]\nname = \"a\"\nkind = \"lake\"\n[[sink]]\nname = \"b\"\nkind = \"lake\"";
        let env = [("TIDEGATE_SINK__1__URL", "s3://x"), ("TIDEGATE_SINK__1__FLUSH__AGE", "9s")];
        let config = parse_with(text, &env).unwrap();
        assert_eq!((&config.sink[0].url, config.sink[0].flush.age), (&None, None));
        assert_eq!(config.sink[1].url.as_deref(), Some("s3://x"));
        assert_eq!(config.sink[1].flush.age, Some(Span::seconds(9)));
        for name in ["TIDEGATE_SINK__2__URL", "TIDEGATE_SINK__B__URL"] {
            let fault = parse_with(text, &[(name, "x")]).unwrap_err().to_string();
            assert!(fault.contains("has no `sink` number"), "{fault}");
        }
    }

    #[test]
    fn what_would_not_start_is_told_before() {
        for (text, expected) in [
            (
                "[[sink]]\nname = \"a\"\nkind = \"ftp\"",
                "is none of blackhole, clickhouse, elasticsearch, kafka, lake",
            ),
            ("[[sink]]\nname = \"a\"\nkind = \"lake\"\nshadow = { format = \"csv\" }", "csv"),
            (
                "[[sink]]\nname = \"a\"\nkind = \"lake\"\noptions = { format = \"csv\" }",
                "is none of parquet",
            ),
            ("[edge]\nlisten = \"here\"", "edge.listen"),
            ("[edge]\nalso_listen = [\"127.0.0.1:0\", \"here\"]", "edge.also_listen"),
            ("[edge.open]\nevents = \"acme\"", "edge.open.events"),
            ("[edge.event_types]\nhec = \"time\"", "edge.event_types.hec"),
            ("[edge.event_types]\nsegment = \"type\"", "edge.event_types.segment"),
            ("[edge.limits]\nunauthenticated_bytes = 0", "edge.limits.unauthenticated_bytes"),
            ("[admin]\nlisten = \"127.0.0.1:99999\"", "admin.listen"),
        ] {
            let faults = check(&parse_with(text, &[]).unwrap());
            assert!(faults.len() == 1 && faults[0].contains(expected), "{text}: {faults:?}");
        }
    }

    #[test]
    fn a_list_is_no_section() {
        for (text, env) in [
            ("edge = []", None),
            ("[edge]\nlimits = [1, 2]", None),
            ("[edge]\ntls = [\"cert.pem\", \"key.pem\"]", None),
            ("sink = [[\"a\", \"lake\"]]", None),
            ("[[sink]]\nname = \"a\"\nkind = \"lake\"\nflush = []", None),
            ("", Some(("TIDEGATE_LOG", "[]"))),
            ("", Some(("TIDEGATE_EDGE__LIMITS", "[]"))),
        ] {
            let env: Vec<_> = env.into_iter().collect();
            let fault = parse_with(text, &env);
            let ignored = env.iter().any(|(name, _)| !name.contains("__"));
            assert_eq!(fault.is_err(), !ignored, "{text} {env:?}");
        }
        let lists = "[[sink]]\nname = \"a\"\nkind = \"lake\"\nfilter = { tenants = [\"a\"] }\noptions = { x = [1] }";
        parse_with(lists, &[]).unwrap();
    }

    #[test]
    fn variables_that_are_not_configuration_are_left_alone() {
        let env = [("TIDEGATE_KEY", "tgk_dev"), ("TIDEGATE_ADMIN_URL", "x")];
        assert_eq!(parse_with("", &env).unwrap(), Config::default());
    }

    #[test]
    fn a_fault_names_its_place() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: &[Case] = &[
            ("[log]\npartition = 1", &[], "line 2"),
            ("[log\n", &[], "line 1"),
            ("[budget]\nbytes = \"much\"", &[], "is no size"),
            ("[budget]\ndelay = 3", &[], "line 2"),
            ("", &[("TIDEGATE_LOG__PARTITIONS", "many")], "TIDEGATE_LOG__PARTITIONS"),
            ("", &[("TIDEGATE_LOG__NO_SUCH", "1")], "TIDEGATE_LOG__NO_SUCH"),
            ("[[sink]]\nkind = \"lake\"", &[], "name"),
            ("[log.dedup_windows]\n\"a b\" = \"5s\"", &[], "line 2"),
            ("[log.dedup_windows]\norder = 5", &[], "line 2"),
        ];
        for (text, env, expected) in cases {
            let message = parse_with(text, env).unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?} {env:?}: {message}");
        }
    }

    #[test]
    fn windows_need_ids_to_remember() {
        let with = |ids: u32, window: &str| {
            let text =
                format!("[log]\ndedup_ids = {ids}\n[log.dedup_windows]\norder = \"{window}\"");
            check(&parse_with(&text, &[]).unwrap())
        };
        assert!(with(0, "24h").iter().any(|fault| fault.contains("log.dedup_windows")));
        assert!(with(0, "0s").is_empty() && with(5, "24h").is_empty());
    }

    #[test]
    fn the_largest_sizes_are_told_and_not_added_up_beyond_64_bits() {
        let text = "[edge.limits]\nbody_bytes = \"16777215TiB\"\ndecoded_bytes = \"16777215TiB\"\n[log]\nsegment_bytes = \"16777215TiB\"";
        let faults = check(&parse_with(text, &[]).unwrap());
        for expected in ["edge.limits.decoded_bytes", "budget.bytes", "log.backlog_bytes"] {
            assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{faults:#?}");
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_all_told() {
        let text = "[edge.limits]\nevents = 0\ndepth = 1000\n[budget]\nbytes = 1\n[[sink]]\nname = \"a b\"\nkind = \"lake\"\n[[sink]]\nname = \"a b\"\nkind = \"lake\"";
        let faults = check(&parse_with(text, &[]).unwrap());
        assert_eq!(faults.len(), 6, "{faults:#?}");
    }
}
