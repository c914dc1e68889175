//! The admin address as the commands see it.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    client::{NoAnswer, Reply, Sender, Target, request},
    fault::Fault,
    human,
};

/// Long enough for an audit that counts every file of a large lake.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// The admin address of one server.
#[derive(Debug)]
pub struct Admin {
    target: Target,
    token: Option<String>,
}

impl Admin {
    /// Nothing is sent yet.
    #[must_use]
    pub fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token }
    }

    /// The address, for messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.target.shown()
    }

    /// The JSON document at `path`.
    ///
    /// # Errors
    /// [`Fault::Failed`] where it cannot be reached or answers anything but 2xx.
    pub async fn get(&self, path: &str) -> Result<Value, Fault> {
        let reply = self.ask(Method::GET, path, None).await?;
        self.accepted(path, &reply)
    }

    /// Posts JSON and returns the document it is answered with.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Fault> {
        let reply = self.try_post(path, body).await?;
        self.accepted(path, &reply)
    }

    /// Posts JSON and returns whatever the answer is, for commands to which a refusal is an answer.
    ///
    /// # Errors
    /// [`Fault::Failed`] where it cannot be reached.
    pub async fn try_post(&self, path: &str, body: &Value) -> Result<Reply, Fault> {
        let body = Bytes::from(body.to_string());
        self.ask(Method::POST, path, Some(("application/json", body))).await
    }

    /// Posts lines of JSON and returns whatever the answer is.
    ///
    /// # Errors
    /// As [`Admin::try_post`].
    pub async fn try_post_lines(&self, path: &str, body: Bytes) -> Result<Reply, Fault> {
        self.ask(Method::POST, path, Some(("application/x-ndjson", body))).await
    }

    /// Opens an answer without end. The sender keeps the connection; drop it last.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn follow(&self, path: &str) -> Result<(Sender, Incoming), Fault> {
        self.stream(Method::GET, path, None).await
    }

    /// Posts `{}` and opens the answer, to be read as it comes. See [`Admin::follow`].
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn follow_post(&self, path: &str, body: &Value) -> Result<(Sender, Incoming), Fault> {
        let body = Bytes::from(body.to_string());
        self.stream(Method::POST, path, Some(("application/json", body))).await
    }

    /// Posts JSON and opens the answer, or returns what it was refused with. See [`Admin::follow`].
    ///
    /// # Errors
    /// [`Fault::Failed`] where it cannot be reached.
    pub async fn try_follow_post(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<Result<(Sender, Incoming), Reply>, Fault> {
        let body = Bytes::from(body.to_string());
        self.try_stream(Method::POST, path, Some(("application/json", body))).await
    }

    async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<(Sender, Incoming), Fault> {
        let opened = self.try_stream(method, path, body).await?;
        opened.map_err(|reply| self.refused(path, &reply))
    }

    async fn try_stream(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Result<(Sender, Incoming), Reply>, Fault> {
        let mut sender = self.open().await?;
        let request = self.request(method, path, body)?;
        let (head, body) =
            sender.send(request).await.map_err(|e| self.unreachable(&e))?.into_parts();
        if head.status.is_success() {
            return Ok(Ok((sender, body)));
        }
        let body = http_body_util::BodyExt::collect(http_body_util::Limited::new(body, 1 << 20))
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Ok(Err(Reply { status: head.status, headers: head.headers, body }))
    }

    /// The document of a 2xx answer.
    ///
    /// # Errors
    /// [`Fault::Failed`] with the server's own words for any other, and for what is not JSON.
    pub fn accepted(&self, path: &str, reply: &Reply) -> Result<Value, Fault> {
        if !reply.status.is_success() {
            return Err(self.refused(path, reply));
        }
        serde_json::from_slice(&reply.body).map_err(|e| {
            Fault::failed(
                format!("{}{path} answered with something that is not JSON: {e}", self.shown()),
                "check that --admin is an admin address (its default port is 8081)",
            )
        })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Reply, Fault> {
        let request = self.request(method, path, body)?;
        let mut sender = self.open().await?;
        sender.ask(request, ANSWER_TIMEOUT).await.map_err(|e| self.unreachable(&e))
    }

    async fn open(&self) -> Result<Sender, Fault> {
        self.target.open().await.map_err(|e| self.unreachable(&e))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<http::Request<Full<Bytes>>, Fault> {
        let mut builder = request(&self.target, method, path);
        if let Some(token) = &self.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bytes = match body {
            Some((kind, bytes)) => {
                builder = builder.header(header::CONTENT_TYPE, kind);
                bytes
            }
            None => Bytes::new(),
        };
        builder.body(Full::new(bytes)).map_err(|e| {
            Fault::Usage(format!(
                "cannot make a request for {path}: {e} (is the token one line of text?)"
            ))
        })
    }

    fn unreachable(&self, why: &NoAnswer) -> Fault {
        Fault::failed(
            format!("cannot reach {}: {why}", self.shown()),
            "check that ingestd runs and that --admin (TIDEGATE_ADMIN_URL) is its admin address",
        )
    }

    /// What a refusal comes to.
    #[must_use]
    pub fn refused(&self, path: &str, reply: &Reply) -> Fault {
        let mend = match reply.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "give the token of [admin] with --token or TIDEGATE_ADMIN_TOKEN"
            }
            StatusCode::NOT_FOUND if problem_code(&reply.body).is_none() => {
                "check that --admin is an admin address (its default port is 8081) of this version"
            }
            _ => "",
        };
        let what = format!("{}{path}: {}", self.shown(), describe(reply));
        Fault::failed(what, mend)
    }
}

/// What a refusal says: status, the problem's own words, its code.
#[must_use]
pub fn describe(reply: &Reply) -> String {
    let text = |problem: &Value, name: &str| {
        problem.get(name).and_then(Value::as_str).map(|t| human::cut(t, 2_000))
    };
    let Ok(problem) = serde_json::from_slice::<Value>(&reply.body) else {
        return reply.status.to_string();
    };
    let words = text(&problem, "detail").or_else(|| text(&problem, "title"));
    match (words, text(&problem, "code")) {
        (Some(words), Some(code)) => format!("{} {code}: {words}", reply.status.as_u16()),
        (Some(words), None) => format!("{}: {words}", reply.status),
        (None, Some(code)) => format!("{} {code}", reply.status),
        (None, None) => reply.status.to_string(),
    }
}

fn problem_code(body: &[u8]) -> Option<String> {
    let problem: Value = serde_json::from_slice(body).ok()?;
    Some(problem.get("code")?.as_str()?.to_owned())
}

/// Reads a document into the shape a command needs.
///
/// # Errors
/// [`Fault::Failed`] where the server's answer has another shape.
pub fn shape<T: DeserializeOwned>(path: &str, document: &Value) -> Result<T, Fault> {
    T::deserialize(document).map_err(|e| {
        Fault::failed(
            format!("the answer of {path} has another shape than expected: {e}"),
            "use the ingestctl of the same version as the server",
        )
    })
}

/// `path?name=value&…` from the values that are there.
#[must_use]
pub fn query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
