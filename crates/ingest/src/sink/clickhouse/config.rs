//! `[sink.options]` of a ClickHouse sink.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

use super::{
    super::{Lane, SinkConfig, SinkConfigError, secret},
    ddl::TableName,
};
use crate::config::Span;

/// What `options` may hold.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    database: String,
    user: String,
    password: Option<String>,
    ca: Option<PathBuf>,
    connect_timeout: Span,
    timeout: Span,
    ttl: Option<Span>,
    fsync: bool,
    create: bool,
    shards: Vec<String>,
    inserts_per_second: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            database: "tidegate".to_owned(),
            user: "default".to_owned(),
            password: None,
            ca: None,
            connect_timeout: Span::seconds(5),
            timeout: Span::seconds(60),
            ttl: None,
            fsync: true,
            create: true,
            shards: Vec::new(),
            inserts_per_second: 20.0,
        }
    }
}

/// Where a ClickHouse sink writes to, and how.
#[derive(Clone)]
pub struct Settings {
    /// `http://` or `https://`, with a path where a proxy wants one; one for each shard.
    pub urls: Vec<Url>,
    /// The database of all its tables.
    pub database: String,
    /// Behind the name of each of its tables: a shadow's.
    pub suffix: String,
    /// Who writes.
    pub user: String,
    /// The user's password, or `file:PATH` or `env:NAME` that holds it.
    password: Option<String>,
    /// Certificates to trust besides the machine's own (PEM).
    pub ca: Option<PathBuf>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take, its answer included.
    pub timeout: Duration,
    /// How long rows are kept in tables that are made here.
    pub ttl: Option<Duration>,
    /// Whether an insert is on disk when it is answered.
    pub fsync: bool,
    /// Whether the database, tables and columns that are missing are made.
    pub create: bool,
    /// Beyond so many inserts a second, over all tables, windows wait and grow.
    pub inserts_per_second: f64,
}

impl Settings {
    /// Reads the configuration of one sink; opens nothing.
    ///
    /// # Errors
    /// [`SinkConfigError`] for what is missing, unknown or of the wrong form.
    pub fn read(config: &SinkConfig) -> Result<Self, SinkConfigError> {
        let fault = |cause: String| SinkConfigError(format!("clickhouse: {cause}"));
        let table = toml::Value::Table(config.options.clone());
        let options: Options =
            table.try_into().map_err(|e| fault(format!("options: {}", e.to_string().trim())))?;
        let urls = addresses(config.url.as_deref(), &options.shards).map_err(fault)?;
        if !is_name(&options.database) {
            return Err(fault(format!(
                "options.database {:?} is no name: a letter or '_', then letters, digits and '_', \
                 64 at most",
                options.database
            )));
        }
        if options.user.is_empty() || options.user.chars().any(char::is_control) {
            return Err(fault("options.user is empty or holds control characters".to_owned()));
        }
        for (name, span) in
            [("connect_timeout", options.connect_timeout), ("timeout", options.timeout)]
        {
            if !(100..=3_600_000).contains(&span.0.as_millis()) {
                return Err(fault(format!("options.{name}: 100ms to 1h")));
            }
        }
        if options.ttl.is_some_and(|ttl| ttl.0 < Duration::from_secs(3_600)) {
            return Err(fault("options.ttl: 1h at least".to_owned()));
        }
        if !(0.1..=10_000.0).contains(&options.inserts_per_second) {
            return Err(fault("options.inserts_per_second: 0.1 to 10000".to_owned()));
        }
        Ok(Self {
            urls,
            database: options.database,
            suffix: config.suffix.clone(),
            user: options.user,
            password: options.password,
            ca: options.ca,
            connect_timeout: options.connect_timeout.0,
            timeout: options.timeout.0,
            ttl: options.ttl.map(|ttl| ttl.0),
            fsync: options.fsync,
            create: options.create,
            inserts_per_second: options.inserts_per_second,
        })
    }

    /// The table of a lane.
    pub fn table(&self, lane: &Lane) -> TableName {
        TableName::of(&self.database, lane, &self.suffix)
    }

    /// The password itself, looked up where it is a reference; empty where there is none.
    ///
    /// # Errors
    /// One line for people that does not hold the password.
    pub fn password(&self) -> Result<String, SinkConfigError> {
        let Some(text) = &self.password else { return Ok(String::new()) };
        secret::look_up(text)
            .map_err(|cause| SinkConfigError(format!("clickhouse: options.password: {cause}")))
    }
}

/// The server's address, or those of its shards.
fn addresses(url: Option<&str>, shards: &[String]) -> Result<Vec<Url>, String> {
    match (url, shards) {
        (None, []) => Err("url is missing; write for instance http://127.0.0.1:8123".to_owned()),
        (Some(url), []) => Ok(vec![address(url)?]),
        (None, shards) => {
            let urls = shards.iter().map(|shard| address(shard)).collect::<Result<Vec<_>, _>>()?;
            let differ: HashSet<_> = urls.iter().collect();
            if differ.len() < urls.len() {
                return Err("options.shards: an address is there twice".to_owned());
            }
            Ok(urls)
        }
        (Some(_), _) => Err("url and options.shards: one of them, not both".to_owned()),
    }
}

fn address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("url {text:?}: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("url {text:?}: write for instance http://127.0.0.1:8123"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url: the user and the password have options of their own".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("url: settings of the server's cannot be given here".to_owned());
    }
    Ok(url)
}

/// True for a name that needs no quotes, and that no configuration can make a statement of.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Settings, SinkConfigError> {
        Settings::read(&toml::from_str(&format!("name='c'\nkind='clickhouse'\n{more}")).unwrap())
    }

    #[test]
    fn an_address_is_all_that_is_needed() {
        let settings = read("url='http://h:8123'").unwrap();
        assert_eq!((settings.database.as_str(), settings.user.as_str()), ("tidegate", "default"));
        assert!(settings.fsync && settings.create && settings.ttl.is_none());
        assert_eq!(settings.password().unwrap(), "");
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (more, why) in [
            ("", "url is missing"),
            ("url='http://h'\noptions.shards=['http://a']", "not both"),
            ("options.shards=['http://a:1', 'http://a:1/']", "twice"),
            ("options.shards=['http://a', 'a']", "a"),
            ("url='http://h'\noptions.inserts_per_second=0", "inserts_per_second"),
            ("url='ftp://h'", "write for instance"),
            ("url='http://u:p@h'", "options of their own"),
            ("url='http://h/?async_insert=1'", "cannot be given"),
            ("url='http://h'\noptions.colour='red'", "colour"),
            ("url='http://h'\noptions.database='a`b'", "is no name"),
            ("url='http://h'\noptions.database=''", "is no name"),
            ("url='http://h'\noptions.user=''", "options.user"),
            ("url='http://h'\noptions.timeout='1ms'", "options.timeout"),
            ("url='http://h'\noptions.ttl='1m'", "options.ttl"),
        ] {
            let fault = read(more).err().unwrap().to_string();
            assert!(fault.contains(why), "{more}: {fault}");
        }
    }

    #[test]
    fn a_password_is_looked_up_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "pass word\n").unwrap();
        let options = format!("url='http://h'\noptions.password='file:{}'", path.display());
        assert_eq!(read(&options).unwrap().password().unwrap(), "pass word");
        let missing = read("url='http://h'\noptions.password='env:NO_SUCH_VARIABLE'").unwrap();
        assert!(missing.password().unwrap_err().to_string().contains("NO_SUCH_VARIABLE"));
        assert_eq!(read("url='http://h'\noptions.password='x'").unwrap().password().unwrap(), "x");
    }
}
