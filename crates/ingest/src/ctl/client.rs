//! HTTP as the commands need it: one connection, plain or TLS, HTTP/1.1 or HTTP/2.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
};
use url::Url;

use super::fault::Fault;

/// The roots of the machine, as Debian and most others keep them.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer of an admin address is at most this large.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where to connect to.
#[derive(Clone)]
pub struct Target {
    url: Url,
    host: String,
    port: u16,
    authority: String,
    tls: Option<(tokio_rustls::TlsConnector, ServerName<'static>)>,
    http2: bool,
    from: Option<IpAddr>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub enum Stream {
    /// As they are.
    Plain(TcpStream),
    /// Through TLS.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// A connection that takes requests.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many at a time.
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why no answer came. What became of the request is unknown, unless it was `Connect`.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// No connection: the request was not sent.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection ended before the answer did.
    #[error("the connection ended before the answer: {0}")]
    Cut(String),
    /// No whole answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl NoAnswer {
    /// As it is counted.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Cut(_) => "connection_cut",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl Target {
    /// Reads an `http://` or `https://` URL; a path in it goes before every path asked for.
    ///
    /// # Errors
    /// [`Fault::Usage`] for a URL that is none, [`Fault::Failed`] for roots that cannot be read.
    pub fn new(url: &str, cacert: Option<&Path>, http2: bool) -> Result<Self, Fault> {
        let fault = |why: &str| {
            Fault::Usage(format!(
                "{url:?} is no address: {why}; write for instance http://127.0.0.1:8080"
            ))
        };
        let parsed = Url::parse(url).map_err(|e| fault(&e.to_string()))?;
        let host = parsed.host_str().ok_or_else(|| fault("no host"))?.to_owned();
        let secure = match parsed.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(fault("only http and https are spoken")),
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(fault("keys and tokens have options and variables of their own"));
        }
        let port = parsed.port_or_known_default().ok_or_else(|| fault("no port"))?;
        let authority = match parsed.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(|e| fault(&e.to_string()))?;
            Some((connector(cacert, http2)?, name))
        } else {
            None
        };
        Ok(Self { url: parsed, host, port, authority, tls, http2, from: None })
    }

    /// The same, with connections that come from `address` of this machine.
    #[must_use]
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// The address, for messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// The path and query of a request for `path` on this target, over HTTP/2 with what comes before.
    #[must_use]
    pub fn uri(&self, path: &str) -> String {
        let base = self.url.path().trim_end_matches('/');
        if self.http2 {
            let scheme = self.url.scheme();
            format!("{scheme}://{}{base}{path}", self.authority)
        } else {
            format!("{base}{path}")
        }
    }

    /// The `Host` of a request; HTTP/2 has it in the URI.
    #[must_use]
    pub fn host_header(&self) -> Option<&str> {
        (!self.http2).then_some(self.authority.as_str())
    }

    /// Opens a connection and spawns what drives it on this runtime.
    ///
    /// # Errors
    /// [`NoAnswer::Connect`].
    pub async fn open(&self) -> Result<Sender, NoAnswer> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.stream())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(NoAnswer::Connect)?;
        let refused = |e: hyper::Error| NoAnswer::Connect(io::Error::other(e));
        let io = TokioIo::new(stream);
        // The task's result is told to whoever waits for an answer on this connection.
        if self.http2 {
            let (sender, connection) =
                http2::Builder::new(TokioExecutor::new()).handshake(io).await.map_err(refused)?;
            tokio::spawn(connection);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(refused)?;
            tokio::spawn(connection);
            Ok(Sender::Http1(sender))
        }
    }

    /// A connection without TLS, and without a word on it yet.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let place = (self.host.as_str(), self.port);
        let Some(from) = self.from else { return TcpStream::connect(place).await };
        let fits = |to: &SocketAddr| to.is_ipv4() == from.is_ipv4();
        let none = || io::Error::new(io::ErrorKind::AddrNotAvailable, "of another address family");
        let to = lookup_host(place).await?.find(fits).ok_or_else(none)?;
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Ports of connections that have just ended may be taken again: there are only some 28,000.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(to).await
    }

    async fn stream(&self) -> io::Result<Stream> {
        let tcp = self.tcp().await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Stream::Plain(tcp)),
            Some((connector, name)) => {
                Ok(Stream::Tls(Box::new(connector.connect(name.clone(), tcp).await?)))
            }
        }
    }
}

fn connector(cacert: Option<&Path>, http2: bool) -> Result<tokio_rustls::TlsConnector, Fault> {
    let path = cacert.map_or_else(|| PathBuf::from(SYSTEM_ROOTS), Path::to_owned);
    let fault = |why: String| {
        Fault::failed(
            format!("{}: {why}", path.display()),
            "give the certificates to trust with --cacert FILE (PEM)",
        )
    };
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&path).map_err(|e| fault(e.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| fault(e.to_string()))?;
        match roots.add(certificate) {
            Ok(()) => {}
            // Among the machine's many roots an odd one is no reason to stop; in a file given it is.
            Err(_) if cacert.is_none() => {}
            Err(e) => return Err(fault(e.to_string())),
        }
    }
    if roots.is_empty() {
        return Err(fault("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| fault(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

impl Sender {
    /// True once no request can be sent on it any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`NoAnswer::Cut`].
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let sent = match self {
            Self::Http1(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(e) => Err(e),
            },
            Self::Http2(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(e) => Err(e),
            },
        };
        sent.map_err(|e| NoAnswer::Cut(causes(&e)))
    }

    /// Sends a request and reads its whole answer, all within `timeout`.
    ///
    /// # Errors
    /// [`NoAnswer::Cut`] and [`NoAnswer::Timeout`].
    pub async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Reply, NoAnswer> {
        let whole = async {
            let (head, body) = self.send(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| NoAnswer::Cut(e.to_string()))?.to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(timeout, whole).await.unwrap_or(Err(NoAnswer::Timeout(timeout)))
    }
}

/// An error with what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Starts a request with what every request of ours carries.
#[must_use]
pub fn request(target: &Target, method: http::Method, path: &str) -> http::request::Builder {
    let builder = Request::builder()
        .method(method)
        .uri(target.uri(path))
        .header(header::USER_AGENT, concat!("ingestctl/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "application/json");
    match target.host_header() {
        Some(host) => builder.header(header::HOST, host),
        None => builder,
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    // Said truly, so that bodies are written from where they lie instead of copied behind the head.
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_address_goes_before_every_path() {
        let target = Target::new("http://h:1/k/tgp_x/", None, false).unwrap();
        assert_eq!(target.uri("/v1/events"), "/k/tgp_x/v1/events");
        assert_eq!(target.host_header(), Some("h:1"));
        let target = Target::new("http://[::1]:9", None, true).unwrap();
        assert_eq!(target.uri("/a?b=c"), "http://[::1]:9/a?b=c");
        assert_eq!((target.host.as_str(), target.host_header()), ("::1", None));
    }

    #[test]
    fn an_address_that_is_none_is_a_usage_fault() {
        for url in ["127.0.0.1:8080", "ftp://h", "http://", "http://key@h"] {
            assert!(matches!(Target::new(url, None, false), Err(Fault::Usage(_))), "{url}");
        }
    }
}
