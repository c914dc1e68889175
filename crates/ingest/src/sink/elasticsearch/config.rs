//! `[sink.options]` of an Elasticsearch sink.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::super::{SinkConfig, SinkConfigError, names::Template, secret};
use crate::config::{Size, Span};

/// What a data stream is called where the configuration does not say.
pub const STREAM: &str = "tidegate-{tenant}.{event_type}";

/// What `options` may hold.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    stream: String,
    user: Option<String>,
    password: Option<String>,
    api_key: Option<String>,
    bearer: Option<String>,
    headers: BTreeMap<String, String>,
    ca: Option<PathBuf>,
    connect_timeout: Span,
    timeout: Span,
    bulk_bytes: Size,
    compression: Compression,
    create_template: bool,
    fsync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream: STREAM.to_owned(),
            user: None,
            password: None,
            api_key: None,
            bearer: None,
            headers: BTreeMap::new(),
            ca: None,
            connect_timeout: Span::seconds(5),
            timeout: Span::seconds(60),
            bulk_bytes: Size(10 << 20),
            compression: Compression::None,
            create_template: true,
            fsync: true,
        }
    }
}

/// How the bodies of bulks are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// As they are.
    None,
    /// `Content-Encoding: gzip`
    Gzip,
}

/// Who writes: secrets, or where they lie.
#[derive(Clone)]
enum Login {
    Nobody,
    Basic { user: String, password: String },
    ApiKey(String),
    Bearer(String),
}

/// Where an Elasticsearch sink writes to, and how.
#[derive(Clone)]
pub struct Settings {
    /// `http://` or `https://`, with a path where a proxy wants one.
    pub url: Url,
    /// The names of its data streams.
    pub stream: Template,
    login: Login,
    headers: BTreeMap<String, String>,
    /// Certificates to trust besides the machine's own (PEM).
    pub ca: Option<PathBuf>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take, its answer included.
    pub timeout: Duration,
    /// How many bytes a bulk may have, before compression.
    pub bulk_bytes: usize,
    /// How bulks are sent.
    pub compression: Compression,
    /// Whether an index template is made where none is of its name.
    pub create_template: bool,
    /// Whether streams whose translog is not on disk when a bulk is answered are refused.
    pub fsync: bool,
}

impl Settings {
    /// Reads the configuration of one sink; opens nothing.
    ///
    /// # Errors
    /// [`SinkConfigError`] for what is missing, unknown or of the wrong form.
    pub fn read(config: &SinkConfig) -> Result<Self, SinkConfigError> {
        let fault = |cause: String| SinkConfigError(format!("elasticsearch: {cause}"));
        let table = toml::Value::Table(config.options.clone());
        let options: Options =
            table.try_into().map_err(|e| fault(format!("options: {}", e.to_string().trim())))?;
        let url = address(config.url.as_deref()).map_err(fault)?;
        let stream = stream(&options).map_err(fault)?;
        for (name, span) in
            [("connect_timeout", options.connect_timeout), ("timeout", options.timeout)]
        {
            if !(100..=3_600_000).contains(&span.0.as_millis()) {
                return Err(fault(format!("options.{name}: 100ms to 1h")));
            }
        }
        if !(64 << 10..=100 << 20).contains(&options.bulk_bytes.0) {
            return Err(fault("options.bulk_bytes: 64KiB to 100MiB".to_owned()));
        }
        let settings = Self {
            url,
            stream,
            login: login(&options).map_err(fault)?,
            headers: options.headers,
            ca: options.ca,
            connect_timeout: options.connect_timeout.0,
            timeout: options.timeout.0,
            bulk_bytes: usize::try_from(options.bulk_bytes.0).unwrap_or(usize::MAX),
            compression: options.compression,
            create_template: options.create_template,
            fsync: options.fsync,
        };
        for name in settings.headers.keys() {
            let known = HeaderName::try_from(name.as_str())
                .map_err(|_| fault(format!("options.headers: {name:?} is no header's name")))?;
            if known == AUTHORIZATION {
                return Err(fault(
                    "options.headers: Authorization has options of its own: user and password, \
                     api_key, bearer"
                        .to_owned(),
                ));
            }
        }
        Ok(settings)
    }

    /// The user and the password, looked up, where that is the way to log in.
    ///
    /// # Errors
    /// One line for people that does not hold the password.
    pub fn basic(&self) -> Result<Option<(String, String)>, SinkConfigError> {
        let Login::Basic { user, password } = &self.login else { return Ok(None) };
        let password = secret::look_up(password).map_err(|cause| {
            SinkConfigError(format!("elasticsearch: options.password: {cause}"))
        })?;
        Ok(Some((user.clone(), password)))
    }

    /// The headers of every request, secrets looked up, but for the basic way to log in.
    ///
    /// # Errors
    /// One line for people that holds no secret.
    pub fn headers(&self) -> Result<HeaderMap, SinkConfigError> {
        let fault = |name: &str, cause: &str| {
            SinkConfigError(format!("elasticsearch: options.{name}: {cause}"))
        };
        let value = |name: &str, text: &str, form: &dyn Fn(String) -> String| {
            let found = secret::look_up(text).map_err(|cause| fault(name, &cause))?;
            let mut value = HeaderValue::try_from(form(found))
                .map_err(|_| fault(name, "it holds what no header may"))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let mut headers = HeaderMap::new();
        for (name, text) in &self.headers {
            let known = HeaderName::try_from(name.as_str())
                .map_err(|_| fault("headers", "no header's name"))?;
            headers.insert(known, value("headers", text, &|text| text)?);
        }
        let login = match &self.login {
            Login::Nobody | Login::Basic { .. } => return Ok(headers),
            Login::ApiKey(key) => value("api_key", key, &|key| format!("ApiKey {key}"))?,
            Login::Bearer(token) => value("bearer", token, &|token| format!("Bearer {token}"))?,
        };
        headers.insert(AUTHORIZATION, login);
        Ok(headers)
    }
}

fn stream(options: &Options) -> Result<Template, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let template = Template::parse(&options.stream, legal)
        .map_err(|cause| format!("options.stream: {cause}"))?;
    let prefix = template.prefix();
    if prefix.starts_with(['-', '_', '.']) || (prefix.is_empty() && options.create_template) {
        return Err(format!(
            "options.stream {:?}: write some letters in front, as in \
             \"tidegate-{{tenant}}.{{event_type}}\": an index template must not catch others' names",
            options.stream
        ));
    }
    if options.stream.starts_with("{event_type}") {
        return Err("options.stream: dead letters would have a name that begins with '_'".into());
    }
    Ok(template)
}

fn login(options: &Options) -> Result<Login, String> {
    match (&options.user, &options.password, &options.api_key, &options.bearer) {
        (None, None, None, None) => Ok(Login::Nobody),
        (Some(user), Some(password), None, None) if !user.is_empty() && !user.contains(':') => {
            Ok(Login::Basic { user: user.clone(), password: password.clone() })
        }
        (None, None, Some(key), None) => Ok(Login::ApiKey(key.clone())),
        (None, None, None, Some(token)) => Ok(Login::Bearer(token.clone())),
        _ => Err("options: give one of user (without ':') and password, api_key, bearer".into()),
    }
}

fn address(url: Option<&str>) -> Result<Url, String> {
    let text = url.ok_or("url is missing; write for instance http://127.0.0.1:9200")?;
    let url = Url::parse(text).map_err(|e| format!("url {text:?}: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("url {text:?}: write for instance http://127.0.0.1:9200"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url: the user and the password have options of their own".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("url: it may have a path, and nothing behind that".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Settings, SinkConfigError> {
        Settings::read(&toml::from_str(&format!("name='e'\nkind='elasticsearch'\n{more}")).unwrap())
    }

    #[test]
    fn an_address_is_all_that_is_needed() {
        let settings = read("url='http://h:9200'").unwrap();
        assert_eq!(settings.stream.prefix(), "tidegate-");
        assert!(settings.create_template && settings.fsync);
        assert_eq!((settings.bulk_bytes, settings.headers().unwrap().len()), (10 << 20, 0));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (more, why) in [
            ("", "url is missing"),
            ("url='ftp://h'", "write for instance"),
            ("url='http://u:p@h'", "options of their own"),
            ("url='http://h/?pretty'", "nothing behind"),
            ("url='http://h'\noptions.colour='red'", "colour"),
            ("url='http://h'\noptions.timeout='1ms'", "options.timeout"),
            ("url='http://h'\noptions.bulk_bytes='1GiB'", "options.bulk_bytes"),
            ("url='http://h'\noptions.stream='{tenant}.{event_type}'", "letters in front"),
            ("url='http://h'\noptions.stream='.x-{event_type}'", "letters in front"),
            ("url='http://h'\noptions.stream='A-{event_type}'", "'A' may not stand there"),
            ("url='http://h'\noptions.stream='t-{tenant}-{event_type}'", "one name"),
            ("url='http://h'\noptions={stream='{event_type}',create_template=false}", "'_'"),
            ("url='http://h'\noptions.user='u'", "give one of"),
            ("url='http://h'\noptions={user='u:v',password='p'}", "give one of"),
            ("url='http://h'\noptions={api_key='a',bearer='b'}", "give one of"),
            ("url='http://h'\noptions.headers={'a b'='c'}", "no header's name"),
            ("url='http://h'\noptions.headers={authorization='c'}", "options of its own"),
        ] {
            let fault = read(more).err().unwrap().to_string();
            assert!(fault.contains(why), "{more}: {fault}");
        }
    }

    #[test]
    fn each_way_to_log_in_is_one_header() {
        let header = |more: &str| {
            let headers = read(&format!("url='http://h'\n{more}")).unwrap().headers().unwrap();
            headers.get(AUTHORIZATION).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(header("options.api_key='abc'"), "ApiKey abc");
        assert_eq!(header("options.bearer='abc'"), "Bearer abc");
        let user = read("url='http://h'\noptions={user='a',password='b'}").unwrap();
        assert_eq!(user.basic().unwrap(), Some(("a".to_owned(), "b".to_owned())));
        assert!(user.headers().unwrap().is_empty());
        let more = read("url='http://h'\noptions.headers={'X-Found-Cluster'='one'}").unwrap();
        assert_eq!(more.headers().unwrap().get("x-found-cluster").unwrap(), "one");
    }
}
