//! One replica of the next role: its connection, how it is, and what is sent to it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Dial, STATE,
    frame::{Frames, Script},
    state::{STATE_BYTES_MAX, State},
};

/// How often a replica is asked how it is: what an edge knows of a writer is at most twice as old.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A replica that does not answer for so long is not sent anything more.
const SILENT: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(2);
/// Before a replica that could not be reached is tried again: from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// HTTP/2: bytes that a replica may answer ahead.
const WINDOW_BYTES: u32 = 1 << 20;

/// Why nothing came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFault {
    /// Nothing was sent: another replica may be asked.
    #[error("nothing was sent")]
    Unsent,
    /// Something was sent, and no answer came.
    #[error("no answer came")]
    Lost,
}

/// One replica.
pub struct Peer {
    name: String,
    link: ArcSwapOption<SendRequest<Script>>,
    state: ArcSwapOption<State>,
    in_flight: AtomicUsize,
    why: Mutex<String>,
    authorization: Option<HeaderValue>,
    scheme: &'static str,
}

/// A call to a replica that is not over.
pub struct Calling(Arc<Peer>);

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    pub(super) fn new(name: &str, dial: &Dial) -> Self {
        let authorization = dial.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Self {
            name: name.to_owned(),
            link: ArcSwapOption::empty(),
            state: ArcSwapOption::empty(),
            in_flight: AtomicUsize::new(0),
            why: Mutex::new("not reached yet".to_owned()),
            authorization,
            scheme: if dial.tls.is_some() { "https" } else { "http" },
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it said it is, a moment ago; `None` while it cannot be reached or does not answer.
    #[must_use]
    pub fn state(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    /// Why it cannot be reached.
    #[must_use]
    pub fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_down(&self, why: String) {
        self.link.store(None);
        let was_up = self.state.swap(None).is_some();
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if was_up || *known != why {
            tracing::warn!(peer = self.name, why, "a replica of the next role cannot be reached");
        }
        *known = why;
    }

    /// Calls to it that are not over.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One more call to it.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Calling {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Calling(Arc::clone(self))
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`SendFault`], which says whether another replica may be asked.
    pub async fn send(
        &self,
        mut request: Request<Script>,
        until: Instant,
    ) -> Result<Response<Incoming>, SendFault> {
        let link = self.link.load_full().ok_or(SendFault::Unsent)?;
        let mut link = SendRequest::clone(&link);
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        match timeout_at(until, link.try_send_request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            // A request that the library gives back: no byte of it went out.
            Ok(Err(mut error)) => match error.take_message() {
                Some(_) => Err(SendFault::Unsent),
                None => Err(SendFault::Lost),
            },
            Err(_) => Err(SendFault::Lost),
        }
    }

    /// A request to it, without its body.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> Request<Script> {
        let mut request = Request::new(Script::default());
        *request.method_mut() = method;
        let host = self.name.split('@').next().unwrap_or_default();
        if let Ok(uri) = format!("{}://{host}{path}", self.scheme).parse() {
            *request.uri_mut() = uri;
        }
        request
    }

    /// Keeps a connection to it and asks how it is, for ever.
    pub(super) async fn tend(self: Arc<Self>, address: String, dial: Dial) {
        let mut backoff = BACKOFF.0;
        loop {
            match connect(&address, &dial).await {
                Ok((link, mut connection)) => {
                    let why = self.follow(link, &mut connection, &mut backoff).await;
                    self.is_down(why);
                    // What is under way on the connection may still be answered.
                }
                Err(why) => self.is_down(why),
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Asks until it does not answer; returns why.
    async fn follow(
        &self,
        link: SendRequest<Script>,
        connection: &mut JoinHandle<String>,
        backoff: &mut Duration,
    ) -> String {
        let link = Arc::new(link);
        loop {
            match timeout(SILENT, self.ask(&link)).await {
                Ok(Ok(state)) => {
                    if self.state.swap(Some(Arc::new(state))).is_none() {
                        tracing::info!(peer = self.name, "a replica of the next role is reached");
                    }
                    self.link.store(Some(Arc::clone(&link)));
                    *backoff = BACKOFF.0;
                }
                Ok(Err(why)) => return why,
                Err(_) => return "it does not answer".to_owned(),
            }
            tokio::select! {
                ended = &mut *connection => {
                    return ended.unwrap_or_else(|error| error.to_string());
                }
                () = sleep(ASK_EVERY) => {}
            }
        }
    }

    async fn ask(&self, link: &SendRequest<Script>) -> Result<State, String> {
        let mut request = self.request(Method::GET, STATE);
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        let answer = link.clone().send_request(request).await.map_err(|e| chain(&e))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err("it does not take our hop.token".to_owned()),
            status => return Err(format!("it answers {status}")),
        }
        let body = Frames::new(answer.into_body()).rest(STATE_BYTES_MAX, None).await;
        let body = body.map_err(|e| e.to_string())?;
        serde_json::from_slice(&body).map_err(|e| format!("its state cannot be read: {e}"))
    }
}

/// What the system and the libraries say, from the outermost to the cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

type Link = (SendRequest<Script>, JoinHandle<String>);

async fn connect(address: &str, dial: &Dial) -> Result<Link, String> {
    let (name, address) = address.split_once('@').unwrap_or((address, address));
    let dialled = timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = dialled.map_err(|_| "no connection in time".to_owned())?;
    let stream = stream.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let Some(tls) = &dial.tls else { return shake(stream).await };
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let host = ServerName::try_from(host).map_err(|e| e.to_string())?;
    let shaken = timeout(CONNECT, tls.connector().connect(host, stream)).await;
    let stream = shaken.map_err(|_| "no TLS handshake in time".to_owned())?;
    shake(stream.map_err(|e| format!("TLS: {e}"))?).await
}

async fn shake<S>(stream: S) -> Result<Link, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .max_header_list_size(16 << 10);
    let shaken = timeout(CONNECT, builder.handshake(TokioIo::new(stream))).await;
    let shaken = shaken.map_err(|_| "no HTTP/2 in time".to_owned())?;
    let (link, connection) = shaken.map_err(|e| chain(&e))?;
    let connection = tokio::spawn(async move {
        match connection.await {
            Ok(()) => "it closed the connection".to_owned(),
            Err(error) => chain(&error),
        }
    });
    Ok((link, connection))
}
