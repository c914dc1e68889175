//! The listener for the role before: who may speak, one connection many calls, an orderly end.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    DRAINING, HopConfig, REFUSED, STATE,
    frame::Script,
    state::State,
    tls::{HopTls, HopTlsError},
};
use crate::writer::BoxFuture;

/// Connections at once. Each caller has one, and a second while it changes over.
const CONNECTIONS_MAX: usize = 1_024;
/// HTTP/2: calls of one connection at once.
const STREAMS_MAX: u32 = 4_096;
const WINDOW_BYTES: u32 = 1 << 20;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection on which nobody who may speak asked anything for so long ends: callers ask how we are
/// several times a second.
const SILENT: Duration = Duration::from_secs(10);
/// While draining, how long callers can learn of it before connections are told to end.
const NOTICE: Duration = Duration::from_millis(700);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a role does for the role before it.
pub trait Service: Send + Sync + 'static {
    /// Answers one call of a caller that may speak.
    fn call(&self, call: Call) -> BoxFuture<'static, Response<Script>>;
    /// How it is.
    fn state(&self) -> State;
}

/// One call.
pub struct Call {
    /// The request.
    pub request: Request<Incoming>,
    /// Kept until what was asked for is done: the end waits for it.
    pub underway: Underway,
}

/// Counts a call until it is dropped.
pub struct Underway(Arc<Gate>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Who may speak, and whether anybody still may.
#[derive(Debug)]
pub struct Gate {
    token: Option<String>,
    /// Told to whoever asks: nobody new is to come.
    draining: AtomicBool,
    /// Calls are refused.
    closed: AtomicBool,
    calls: AtomicUsize,
}

/// Why the listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HopError {
    /// The address cannot be listened on.
    #[error("hop.listen {listen:?}: {source}")]
    Listen {
        /// The address.
        listen: String,
        /// What the system says.
        source: io::Error,
    },
    /// Anybody could name any tenant.
    #[error(
        "hop.listen {0}: off loopback callers must show who they are; set [hop.tls], or hop.token in all roles"
    )]
    Open(SocketAddr),
    /// The certificate cannot be used.
    #[error("hop.tls: {0}")]
    Tls(#[from] HopTlsError),
}

/// The listener.
pub struct HopServer {
    listener: TcpListener,
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    tls: Option<Arc<HopTls>>,
    gate: Arc<Gate>,
    service: Arc<dyn Service>,
    closing: watch::Sender<bool>,
    connections: AtomicUsize,
    grace: Duration,
}

/// Ends a listener that serves.
#[derive(Clone)]
pub struct HopHandle(Arc<Inner>);

/// Listens on `hop.listen`. What was begun has `grace` to end, once it is drained.
///
/// # Errors
/// [`HopError`]
pub async fn bind(
    config: &HopConfig,
    token: Option<String>,
    grace: Duration,
    service: Arc<dyn Service>,
) -> Result<HopServer, HopError> {
    let listen = |source| HopError::Listen { listen: config.listen.clone(), source };
    let listener = TcpListener::bind(&config.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() && config.tls.is_none() && token.is_none() {
        return Err(HopError::Open(address));
    }
    if !address.ip().is_loopback() && config.tls.is_none() {
        tracing::warn!(%address, "events and hop.token go over the network in the clear: [hop.tls] is not set");
    }
    let tls = config.tls.as_ref().map(HopTls::load).transpose()?;
    let (draining, closed) = (AtomicBool::new(false), AtomicBool::new(false));
    let inner = Arc::new(Inner {
        tls,
        gate: Arc::new(Gate { token, draining, closed, calls: AtomicUsize::new(0) }),
        service,
        closing: watch::Sender::new(false),
        connections: AtomicUsize::new(0),
        grace,
    });
    Ok(HopServer { listener, address, inner })
}

impl HopHandle {
    /// Begins the end: callers learn that they are to go elsewhere, and are still served while they
    /// do; then calls are refused as `draining`, which callers take elsewhere, and
    /// [`HopServer::serve`] returns once what was begun is done.
    pub fn drain(&self) {
        self.0.gate.draining.store(true, Ordering::SeqCst);
        self.0.closing.send_replace(true);
    }

    /// Calls that are not done.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.0.gate.calls.load(Ordering::SeqCst)
    }
}

impl HopServer {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// For ending it while it serves.
    #[must_use]
    pub fn handle(&self) -> HopHandle {
        HopHandle(Arc::clone(&self.inner))
    }

    /// Serves until it is drained.
    pub async fn serve(self) {
        let Self { listener, inner, .. } = self;
        let watcher = inner.tls.clone().map(|tls| tokio::spawn(tls.watch()));
        let (end, closing) = watch::channel(false);
        let mut draining = inner.closing.subscribe();
        tokio::select! {
            _ = draining.wait_for(|closing| *closing) => {}
            () = accept(&listener, &inner, &closing) => {}
        }
        let deadline = Instant::now() + inner.grace;
        // Callers that are connected learn of it by their next question, others by a closed port.
        tokio::select! {
            () = sleep(NOTICE.min(inner.grace)) => {}
            () = accept(&listener, &inner, &closing) => {}
        }
        drop(listener);
        inner.gate.closed.store(true, Ordering::SeqCst);
        end.send_replace(true);
        let busy = || {
            0 < inner.gate.calls.load(Ordering::SeqCst) + inner.connections.load(Ordering::SeqCst)
        };
        while busy() && Instant::now() < deadline {
            sleep(LOOK_AGAIN).await;
        }
        if let Some(watcher) = watcher {
            watcher.abort();
        }
    }
}

/// Accepts for ever: whatever goes wrong, it goes on.
async fn accept(listener: &TcpListener, inner: &Arc<Inner>, closing: &watch::Receiver<bool>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if CONNECTIONS_MAX <= inner.connections.fetch_add(1, Ordering::SeqCst) {
                    inner.connections.fetch_sub(1, Ordering::SeqCst);
                    tracing::warn!(%peer, "too many connections to the hop's port: this one is closed");
                    continue;
                }
                let (inner, closing) = (Arc::clone(inner), closing.clone());
                tokio::spawn(async move {
                    let _left = Left(&inner.connections);
                    inner.connection(stream, peer, closing).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the hop's port could not be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

struct Left<'a>(&'a AtomicUsize);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inner {
    async fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        closing: watch::Receiver<bool>,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection lost");
            return;
        }
        let Some(tls) = &self.tls else { return self.speak(stream, peer, closing).await };
        match timeout(HANDSHAKE, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.speak(stream, peer, closing).await,
            Ok(Err(error)) => {
                tracing::warn!(%peer, %error, "a caller was refused: its certificate is not taken");
            }
            Err(_) => tracing::debug!(%peer, "TLS handshake too slow"),
        }
    }

    async fn speak<S>(&self, stream: S, peer: SocketAddr, mut closing: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let asked = Arc::new(AtomicUsize::new(0));
        let service = service_fn(|request| {
            let (gate, service) = (Arc::clone(&self.gate), Arc::clone(&self.service));
            let asked = Arc::clone(&asked);
            async move { Ok::<_, Infallible>(gate.answer(request, &*service, &asked).await) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(16 << 10)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES * 8);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let (mut told, mut seen) = (false, 0);
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "connection of the hop ended");
                    }
                    return;
                }
                _ = closing.wait_for(|closing| *closing), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep(SILENT) => {
                    let now = asked.load(Ordering::Relaxed);
                    if now == seen {
                        tracing::debug!(%peer, "connection of the hop closed: nobody asks");
                        return;
                    }
                    seen = now;
                }
            }
        }
    }
}

impl Gate {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        service: &dyn Service,
        asked: &AtomicUsize,
    ) -> Response<Script> {
        if !self.knows(request.headers()) {
            tracing::warn!("a caller was refused: it does not show hop.token");
            return status(StatusCode::UNAUTHORIZED);
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let draining = self.draining.load(Ordering::SeqCst);
        if request.method() == Method::GET && request.uri().path() == STATE {
            let state = service.state();
            return state_answer(&State { draining: draining || state.draining, ..state });
        }
        // Counted before it is looked at: the end waits for every call that was not refused.
        self.calls.fetch_add(1, Ordering::SeqCst);
        let underway = Underway(Arc::clone(&self));
        if self.closed.load(Ordering::SeqCst) {
            return refused(StatusCode::SERVICE_UNAVAILABLE, DRAINING);
        }
        service.call(Call { request, underway }).await
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let shown = shown.and_then(|shown| shown.strip_prefix(b"Bearer ")).unwrap_or_default();
        shown.ct_eq(token.as_bytes()).into()
    }
}

/// An answer without a body.
pub(crate) fn status(status: StatusCode) -> Response<Script> {
    let mut answer = Response::new(Script::default());
    *answer.status_mut() = status;
    answer
}

/// A refusal before anything was done.
fn refused(code: StatusCode, why: &'static str) -> Response<Script> {
    let mut answer = status(code);
    answer.headers_mut().insert(REFUSED, HeaderValue::from_static(why));
    answer
}

fn state_answer(state: &State) -> Response<Script> {
    match serde_json::to_vec(state) {
        Ok(text) => Response::new(Script::default().bare(text)),
        Err(error) => {
            tracing::error!(%error, "the state cannot be told");
            status(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}
