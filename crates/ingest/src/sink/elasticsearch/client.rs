//! HTTP as the sink needs it: a request, an answer of bounded size, the server's words where it says no.

use std::io::Write as _;

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::runtime::Handle;
use url::Url;

use super::{
    super::{
        SinkConfigError,
        web::{self, Reach},
    },
    config::{Compression, Settings},
};

/// What is kept of a refusal's words.
const WORDS_CHARS: usize = 400;
/// An answer that is no list of anything.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Talks to one cluster. Blocks.
pub struct Client {
    http: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    basic: Option<(String, String)>,
    settings: Settings,
    runtime: Handle,
}

/// One request.
pub struct Request<'a> {
    /// What to do.
    pub method: Method,
    /// To what: the parts of the path.
    pub path: &'a [&'a str],
    /// How.
    pub query: &'a [(&'a str, &'a str)],
    /// With what.
    pub body: Body,
    /// What the server's list of tasks calls it.
    pub opaque_id: Option<&'a str>,
    /// How many bytes the answer may have.
    pub answer_bytes_max: usize,
}

/// What goes with a request.
pub enum Body {
    /// Nothing.
    None,
    /// One JSON value.
    Json(String),
    /// Lines of JSON.
    Lines(Bytes),
}

/// What the server answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    body: Vec<u8>,
}

/// Nobody knows what became of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);

#[derive(Deserialize)]
struct Refusal {
    error: Cause,
}

/// Why the server says no, to a request or to one document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Its name for it.
    pub r#type: String,
    /// Its words.
    pub reason: Option<String>,
    /// What lies behind it.
    pub caused_by: Option<Box<Cause>>,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = self.r#type.clone();
        let mut next = Some(self);
        while let Some(cause) = next {
            if let Some(reason) = &cause.reason {
                words = format!("{words}: {reason}");
            }
            next = cause.caused_by.as_deref();
        }
        write!(f, "{}", words.chars().take(WORDS_CHARS).collect::<String>())
    }
}

impl Answer {
    /// What was asked for.
    ///
    /// # Errors
    /// What answers in a server's place (a proxy's page, for instance) is not that.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Unknown> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Unknown(format!("{}: not what was asked for: {e}", self.status)))
    }

    /// Why the server says no.
    pub fn cause(&self) -> Option<Cause> {
        serde_json::from_slice::<Refusal>(&self.body).ok().map(|refusal| refusal.error)
    }

    /// The same in one line, whatever it was.
    pub fn words(&self) -> String {
        match self.cause() {
            Some(cause) => format!("{}: {cause}", self.status),
            None => {
                let text = String::from_utf8_lossy(&self.body);
                let text: String = text.trim().chars().take(WORDS_CHARS).collect();
                format!("{}: {text}", self.status)
            }
        }
    }
}

impl Client {
    /// Makes a client; makes no request.
    ///
    /// # Errors
    /// [`SinkConfigError`] for secrets or certificates that cannot be read.
    pub fn open(settings: &Settings, runtime: Handle) -> Result<Self, SinkConfigError> {
        let fault = |cause: String| SinkConfigError(format!("elasticsearch: {cause}"));
        let Settings { connect_timeout, timeout, .. } = *settings;
        let reach = Reach { ca: settings.ca.as_deref(), connect_timeout, timeout };
        let http = web::client(&reach).map_err(fault)?;
        Ok(Self {
            http,
            url: settings.url.clone(),
            headers: settings.headers()?,
            basic: settings.basic()?,
            settings: settings.clone(),
            runtime,
        })
    }

    /// Sends one request and reads its answer, whatever its status.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn ask(&self, request: Request<'_>) -> Result<Answer, Unknown> {
        self.runtime.block_on(self.exchange(request))
    }

    async fn exchange(&self, request: Request<'_>) -> Result<Answer, Unknown> {
        let unknown = |e: reqwest::Error| Unknown(web::unanswered(&e, self.settings.timeout));
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(request.path);
        }
        for (name, value) in request.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let mut sent = self.http.request(request.method, url).headers(self.headers.clone());
        if let Some((user, password)) = &self.basic {
            sent = sent.basic_auth(user, Some(password));
        }
        if let Some(id) = request.opaque_id {
            sent = sent.header("X-Opaque-Id", id);
        }
        sent = match request.body {
            Body::None => sent,
            Body::Json(text) => sent.header(CONTENT_TYPE, "application/json").body(text),
            Body::Lines(lines) => {
                let sent = sent.header(CONTENT_TYPE, "application/x-ndjson");
                match self.settings.compression {
                    Compression::None => sent.body(lines),
                    Compression::Gzip => {
                        let zipped = gzip(&lines).map_err(|e| Unknown(format!("gzip: {e}")))?;
                        sent.header(CONTENT_ENCODING, "gzip").body(zipped)
                    }
                }
            }
        };
        let mut answer = sent.send().await.map_err(unknown)?;
        let status = answer.status();
        let most = request.answer_bytes_max;
        let (body, whole) = web::read(&mut answer, most).await.map_err(unknown)?;
        if !whole {
            return Err(Unknown(format!("{status}: the answer has more than {most} bytes")));
        }
        Ok(Answer { status, body })
    }
}

fn gzip(lines: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(lines)?;
    out.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_one_line() {
        let answer = |body: &str| Answer { status: StatusCode::BAD_REQUEST, body: body.into() };
        let refusal = answer(
            r#"{"error":{"root_cause":[],"type":"a","reason":"b","caused_by":{"type":"c","reason":"d"}},"status":400}"#,
        );
        assert_eq!(refusal.words(), "400 Bad Request: a: b: d");
        assert_eq!(answer(" <html>no\n").words(), "400 Bad Request: <html>no");
        assert!(answer("<html>").json::<Cause>().is_err());
        assert!(answer(&"é".repeat(9_000)).words().chars().count() < WORDS_CHARS + 20);
    }
}
