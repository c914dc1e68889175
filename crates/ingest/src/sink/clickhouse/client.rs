//! ClickHouse's HTTP interface as the sink needs it: a statement, its settings, an answer of bounded size.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use tokio::runtime::Handle;
use url::Url;

use super::{
    super::{
        SinkConfigError,
        web::{self, Reach},
    },
    config::Settings,
};

/// What is read of an answer that says no.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
/// Exceptions whose code is not in a header say it in their first words.
const CODE_WORD: &str = "Code: ";

/// Talks to one server. Blocks.
pub struct Client {
    http: reqwest::Client,
    url: Url,
    user: String,
    password: String,
    timeout: Duration,
    runtime: Handle,
}

/// Why a request was not answered with what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The server says no, with the code of its exception.
    #[error("{message}")]
    Refused {
        /// ClickHouse's number for it.
        code: u32,
        /// Its own words.
        message: String,
    },
    /// Nobody knows what became of it.
    #[error("{0}")]
    Unknown(String),
    /// It was done, and the answer is longer than was asked for.
    #[error("the answer has more than {0} bytes")]
    Long(usize),
}

/// One statement.
pub struct Request<'a> {
    /// Its id: the server takes no second one with it while the first runs.
    pub id: &'a str,
    /// What to do. Where there is a body it is the statement's data.
    pub statement: &'a str,
    /// The settings of this request alone.
    pub settings: &'a [(&'a str, &'a str)],
    /// The statement's data.
    pub body: Option<Vec<u8>>,
    /// How many bytes an answer may have.
    pub answer_bytes_max: usize,
}

impl Client {
    /// Where it talks to.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Makes a client; makes no request.
    ///
    /// # Errors
    /// [`SinkConfigError`] for a password or certificates that cannot be read.
    pub fn open(settings: &Settings, url: &Url, runtime: Handle) -> Result<Self, SinkConfigError> {
        let fault = |cause: String| SinkConfigError(format!("clickhouse: {cause}"));
        let Settings { connect_timeout, timeout, .. } = *settings;
        let reach = Reach { ca: settings.ca.as_deref(), connect_timeout, timeout };
        let http = web::client(&reach).map_err(fault)?;
        Ok(Self {
            http,
            url: url.clone(),
            user: settings.user.clone(),
            password: settings.password()?,
            timeout: settings.timeout,
            runtime,
        })
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn ask(&self, request: Request<'_>) -> Result<Vec<u8>, Fault> {
        self.runtime.block_on(self.exchange(request))
    }

    async fn exchange(&self, request: Request<'_>) -> Result<Vec<u8>, Fault> {
        let unknown = |e: reqwest::Error| Fault::Unknown(web::unanswered(&e, self.timeout));
        let mut url = self.url.clone();
        let body = {
            let mut query = url.query_pairs_mut();
            query.append_pair("query_id", request.id);
            // The status is the statement's own only if it is sent when that has ended.
            query.append_pair("wait_end_of_query", "1");
            for (name, value) in request.settings {
                query.append_pair(name, value);
            }
            match request.body {
                Some(body) => {
                    query.append_pair("query", request.statement);
                    body
                }
                None => request.statement.as_bytes().to_vec(),
            }
        };
        let sent = self.http.post(url).body(body);
        let sent = sent
            .header("X-ClickHouse-User", &self.user)
            .header("X-ClickHouse-Key", &self.password)
            .header("Content-Type", "application/octet-stream");
        let mut answer = sent.send().await.map_err(unknown)?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(&mut answer).await);
        }
        // What answers in a server's place (a proxy's page, for instance) knows no query's id.
        let told = answer.headers().get("X-ClickHouse-Query-Id");
        if told.is_none_or(|told| told.as_bytes() != request.id.as_bytes()) {
            return Err(Fault::Unknown(
                "the answer bears no X-ClickHouse-Query-Id of ours".to_owned(),
            ));
        }
        let (read, whole) =
            web::read(&mut answer, request.answer_bytes_max).await.map_err(unknown)?;
        if !whole {
            return Err(Fault::Long(request.answer_bytes_max));
        }
        Ok(read)
    }
}

async fn refusal(answer: &mut Response) -> Fault {
    let status = answer.status();
    let header = answer.headers().get("X-ClickHouse-Exception-Code");
    let header = header.and_then(|code| code.to_str().ok()?.parse().ok());
    let text = match web::read(answer, REFUSAL_BYTES_MAX).await {
        Ok((text, _)) => String::from_utf8_lossy(&text).trim().to_owned(),
        Err(error) => web::causes(&error),
    };
    match header.or_else(|| code(&text)) {
        Some(code) => Fault::Refused { code, message: text },
        None => Fault::Unknown(format!("{status}: {text}")),
    }
}

/// The code at the start of an exception's text.
fn code(text: &str) -> Option<u32> {
    let (digits, _) = text.strip_prefix(CODE_WORD)?.split_once('.')?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_from_an_exceptions_words() {
        let text = "Code: 469. DB::Exception: Constraint `c` is violated";
        assert_eq!(code(text), Some(469));
        for text in ["", "Code: x. no", "bad gateway", "Code: 4"] {
            assert_eq!(code(text), None, "{text}");
        }
    }
}
