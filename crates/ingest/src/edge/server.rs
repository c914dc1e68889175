//! Listens, accepts, and ends: one task per connection.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    EdgeConfig, Limits, Timeouts,
    away::Behind,
    connection::{LAST_WORDS, Pulse, Watched},
    crowd::Place,
    door::{Door, Room},
    login::{EARLY_BYTES, signed::POOL_BYTES},
    request::{self, Shared},
    tls::{Tls, TlsError},
    turns::Turns,
};
use crate::{
    books::Books, budget::Budget, clock::Clock, metrics, quota::Quotas, shed::Pressure,
    tenants::Tenants,
};

/// What the edge is made of.
pub struct EdgeParts {
    /// `[edge]`
    pub config: EdgeConfig,
    /// Whose keys are taken.
    pub tenants: Arc<Tenants>,
    /// Gives the verdicts and makes events durable.
    pub behind: Behind,
    /// Counts them.
    pub books: Arc<Books>,
    /// Says when they came.
    pub clock: Arc<dyn Clock>,
    /// Bounds the bodies held at once.
    pub budget: Arc<Budget>,
    /// Says what behind the log is full.
    pub pressure: Arc<dyn Pressure>,
    /// Bounds what each tenant sends.
    pub quotas: Arc<Quotas>,
}

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address cannot be listened on.
    #[error("{what} {listen:?}: {source}")]
    Listen {
        /// Which value of the configuration.
        what: &'static str,
        /// The address.
        listen: String,
        /// What the system says.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("edge.tls: {0}")]
    Tls(#[from] TlsError),
}

/// The edge, listening.
pub struct Edge {
    listener: TcpListener,
    address: SocketAddr,
    also: Vec<(TcpListener, SocketAddr)>,
    inner: Arc<Inner>,
}

/// Steers an edge that serves.
#[derive(Clone)]
pub struct EdgeHandle(Arc<Inner>);

/// How full the edge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeStats {
    /// Open connections.
    pub connections: usize,
    /// Requests that are being answered.
    pub requests: usize,
    /// Bytes that connections and requests may hold.
    pub bound_bytes: u64,
    /// Bytes that they hold.
    pub held_bytes: u64,
    /// Those of them that connections hold, whatever they do.
    pub connection_bytes: u64,
    /// True once [`EdgeHandle::drain`] was called.
    pub draining: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// New requests are answered 503, on new connections too.
    Draining,
    /// Connections end after the request they are at.
    Closing,
    /// Connections end now.
    Aborting,
}

struct Inner {
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    http: auto::Builder<TokioExecutor>,
    phase: watch::Sender<Phase>,
    door: Door,
    connections: AtomicUsize,
}

/// Memory of one connection that has seen a small request: the HTTP library's buffers and our task. What
/// larger bodies need to be read is taken with them.
pub(crate) const CONNECTION_BYTES: u64 = 32 << 10;
/// The same with TLS.
pub(crate) const TLS_CONNECTION_BYTES: u64 = 64 << 10;

/// HTTP/2: requests of one connection at once.
const STREAMS_MAX: u32 = 64;
/// HTTP/2: bytes that a client may send ahead, per request and per connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;

/// HTTP/1.1: what one connection may hold read ahead.
const READ_AHEAD_BYTES: usize = 32 << 10;

/// While draining, how long clients are told so at least before connections are closed.
const NOTICE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Listens on `config.listen`.
///
/// # Errors
/// [`EdgeError`].
pub async fn bind(parts: EdgeParts) -> Result<Edge, EdgeError> {
    let EdgeParts { config, tenants, behind, books, clock, budget, pressure, quotas } = parts;
    let tls = match &config.tls {
        Some(files) => Some(Arc::new(Tls::load(files, Arc::clone(&clock))?)),
        None => None,
    };
    let (listener, address) = listen("edge.listen", &config.listen).await?;
    let also = also(&config).await?;
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let places = config.limits.connections.clamp(1, 1 << 28);
    let bytes = if tls.is_some() { TLS_CONNECTION_BYTES } else { CONNECTION_BYTES };
    let door = Door::new(places, bytes, Arc::clone(&budget));
    let http = http(&config.limits);
    let shared = Arc::new(Shared {
        limits: Arc::new(config.limits),
        timeouts: config.timeouts,
        tenants,
        behind,
        books,
        clock,
        budget,
        early: Budget::new(EARLY_BYTES),
        unproven: Budget::new(POOL_BYTES),
        open: config.open,
        event_types: Arc::new(config.event_types),
        pressure,
        quotas,
        draining: AtomicBool::new(false),
        in_flight: AtomicUsize::new(0),
        turns: Turns::new(processors),
    });
    let inner = Arc::new(Inner {
        shared,
        tls,
        http,
        phase: watch::Sender::new(Phase::Serving),
        door,
        connections: AtomicUsize::new(0),
    });
    Ok(Edge { listener, address, also, inner })
}

async fn listen(what: &'static str, address: &str) -> Result<(TcpListener, SocketAddr), EdgeError> {
    let fault = |source| EdgeError::Listen { what, listen: address.to_owned(), source };
    let listener = open(address).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    Ok((listener, address))
}

/// What is listened on besides; an address that may be taken is gone on without.
async fn also(config: &EdgeConfig) -> Result<Vec<(TcpListener, SocketAddr)>, EdgeError> {
    let mut also = Vec::new();
    for address in config.also_listen.iter().flatten() {
        also.push(listen("edge.also_listen", address).await?);
    }
    for address in &config.optional_listen {
        match listen("edge.also_listen", address).await {
            Ok(listener) => also.push(listener),
            Err(error) => tracing::warn!(
                "{error}: going on without it; OTLP's clients reach this server at edge.listen, too"
            ),
        }
    }
    Ok(also)
}

/// How many connections the system may hold that are not accepted yet. With the usual 128 a burst of
/// clients that reconnect fills it: some wait seconds, and some believe that they are connected while
/// nobody knows them.
const BACKLOG: u32 = 4096;

/// As [`TcpListener::bind`], with a longer queue.
async fn open(listen: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "names no address");
    for address in tokio::net::lookup_host(listen).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The HTTP library's own limits stand above ours, so that ours answer.
fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let header_bytes = limits.header_bytes.get().saturating_mul(2);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Counted from the first byte by `Pulse`; the library's own would end idle connections.
        .header_read_timeout(None)
        .max_headers(limits.headers.saturating_mul(2).max(100))
        .max_buf_size(header_bytes.max(READ_AHEAD_BYTES))
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(64 << 10);
    builder
}

impl EdgeHandle {
    /// Begins the end: 503 `draining` for new requests, then [`Edge::serve`] returns once what was
    /// in flight is answered, at the latest after `edge.timeouts.drain`.
    pub fn drain(&self) {
        self.0.shared.draining.store(true, Ordering::Relaxed);
        self.0.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    /// Reads certificate and key again, for [`EdgeHandle::install_tls`]; `None` without TLS.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn prepare_tls(&self) -> Result<Option<rustls::sign::CertifiedKey>, TlsError> {
        self.0.tls.as_ref().map(|tls| tls.prepare()).transpose()
    }

    /// Takes a pair for the connections to come; true where its certificate is another one.
    pub fn install_tls(&self, pair: Option<rustls::sign::CertifiedKey>) -> bool {
        match (&self.0.tls, pair) {
            (Some(tls), Some(pair)) => tls.install(pair),
            _ => false,
        }
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> EdgeStats {
        let shared = &self.0.shared;
        let connections = self.0.connections.load(Ordering::Relaxed);
        EdgeStats {
            connections,
            connection_bytes: connections as u64 * self.0.door.bytes(),
            requests: shared.in_flight.load(Ordering::Relaxed),
            bound_bytes: shared.budget.bound(),
            held_bytes: shared.budget.held(),
            draining: shared.is_draining(),
        }
    }
}

impl Edge {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens besides.
    pub fn also_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.also.iter().map(|(_, address)| *address)
    }

    /// For steering it while it serves.
    #[must_use]
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle(Arc::clone(&self.inner))
    }

    /// Serves until it is drained.
    pub async fn serve(self) {
        let Self { listener, also, inner, .. } = self;
        let listeners: Vec<TcpListener> = std::iter::once(listener)
            .chain(also.into_iter().map(|(listener, _)| listener))
            .collect();
        let watcher = inner.tls.clone().map(|tls| tokio::spawn(tls.watch()));
        let deadline = tokio::select! {
            deadline = inner.drained() => deadline,
            _all = join_all(listeners.iter().map(|listener| accept(listener, &inner))) => Instant::now(),
            () = inner.report() => Instant::now(),
        };
        drop(listeners);
        if let Some(watcher) = watcher {
            watcher.abort();
        }
        inner.end(deadline).await;
    }
}

/// Accepts for ever: whatever goes wrong, it goes on.
async fn accept(listener: &TcpListener, inner: &Arc<Inner>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let inner = Arc::clone(inner);
                tokio::spawn(async move { inner.admit(stream, peer).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of descriptors or memory: an idle connection has some.
                inner.door.crowd().make_room();
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Inner {
    /// Serves the connection once there is room for it.
    async fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let mut phase = self.phase.subscribe();
        let room = tokio::select! {
            room = self.door.room(peer.ip(), self.shared.timeouts.header.0) => room,
            _aborting = ending(&mut phase, false) => None,
        };
        match room {
            // On the heap only now: those that wait are to cost little.
            Some(room) => Box::pin(self.connection(stream, peer, room)).await,
            None => tracing::debug!(%peer, "connection closed: there was no room for it"),
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, room: Room) {
        let _room = room;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _left = Left(&self.connections);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "connection lost");
            return;
        }
        let pulse = Pulse::new(false);
        let place = Arc::new(self.door.crowd().enter(peer.ip(), &pulse));
        let Some(tls) = &self.tls else {
            self.serve(stream, peer, pulse, place).await;
            return;
        };
        let handshake = timeout(self.shared.timeouts.handshake.0, tls.acceptor().accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = pulse.closed() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    pulse.is_http2();
                }
                self.serve(stream, peer, pulse, place).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake too slow"),
        }
    }

    async fn serve<S>(&self, stream: S, peer: SocketAddr, pulse: Arc<Pulse>, place: Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&pulse)));
        let service = service_fn(|request| {
            let shared = Arc::clone(&self.shared);
            let busy = pulse.request(Arc::clone(&place));
            async move { Ok::<_, Infallible>(request::serve(shared, request, busy).await) }
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut phase = self.phase.subscribe();
        let (mut closing, mut given_up) = (false, None);
        let look_every = look_every(&self.shared.timeouts);
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                    return;
                }
                aborting = ending(&mut phase, closing) => {
                    if closing || aborting {
                        return;
                    }
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                // An answer that is being written still goes out.
                () = pulse.closed(), if given_up.is_none() => {
                    tracing::debug!(%peer, "connection closed, to make room for others");
                    given_up = Some(Instant::now() + LAST_WORDS);
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(given_up.unwrap_or_else(Instant::now)), if given_up.is_some() => {
                    return;
                }
                () = sleep(look_every) => {
                    if let Some(overdue) = pulse.overdue(&self.shared.timeouts) {
                        tracing::debug!(%peer, ?overdue, "connection closed");
                        return;
                    }
                }
            }
        }
    }

    /// Keeps the gauge of held bytes and measures how fast they are given back, for ever.
    async fn report(&self) {
        let budget = &self.shared.budget;
        let (mut given_back, mut at) = (0, Instant::now());
        loop {
            let held = i64::try_from(budget.held()).unwrap_or(i64::MAX);
            metrics::stage_held_bytes("edge", held);
            sleep(Duration::from_secs(1)).await;
            let now = Instant::now();
            given_back = budget.measure(given_back, now - at);
            at = now;
        }
    }

    /// Waits until draining begins, and then until what was in flight is answered, or for so long
    /// as it may take. New requests are told meanwhile, on new connections too.
    async fn drained(&self) -> Instant {
        let mut phase = self.phase.subscribe();
        // It fails only without a sender, and that is ours.
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
        let began = Instant::now();
        let deadline = began + self.shared.timeouts.drain.0;
        let notice = began + NOTICE.min(self.shared.timeouts.drain.0 / 4);
        while Instant::now() < deadline
            && (Instant::now() < notice || self.shared.in_flight.load(Ordering::Relaxed) != 0)
        {
            sleep(LOOK_AGAIN).await;
        }
        deadline
    }

    /// Closes every connection, those that are at work at the deadline.
    async fn end(&self, deadline: Instant) {
        self.phase.send_replace(Phase::Closing);
        if timeout_at(deadline, self.door.empty()).await.is_err() {
            tracing::warn!(
                connections = self.connections.load(Ordering::Relaxed),
                "connections cut off at the end of the drain timeout"
            );
            self.phase.send_replace(Phase::Aborting);
            // Every task sees it at its next poll; none blocks.
            let _ = timeout(Duration::from_secs(1), self.door.empty()).await;
        }
    }
}

struct Left<'a>(&'a AtomicUsize);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until connections are to end, or (where this one is ending) to be cut off; true for that.
async fn ending(phase: &mut watch::Receiver<Phase>, closing: bool) -> bool {
    let over = |phase: &Phase| match phase {
        Phase::Serving | Phase::Draining => false,
        Phase::Closing => !closing,
        Phase::Aborting => true,
    };
    phase.wait_for(over).await.map_or(true, |phase| *phase == Phase::Aborting)
}

/// How often a connection's pulse is looked at: a timeout fires at most a quarter late. Not the same for
/// all: thousands that came together do not end, and come again, in the same moment.
fn look_every(timeouts: &Timeouts) -> Duration {
    let shortest = timeouts.header.0.min(timeouts.idle.0).min(timeouts.body_idle.0);
    let most = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(5));
    most.mul_f64(rand::random_range(0.5..1.0))
}
