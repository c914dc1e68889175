//! A server that notes what it is asked and answers as it is told, and the program under test.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub version: http::Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn lines(&self) -> u64 {
        self.body.iter().filter(|b| **b == b'\n').count() as u64
    }
}

/// An answer; `None` closes the connection without one.
pub type Answer = Option<Response<Full<Bytes>>>;

pub struct Stub {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub fn answer(status: u16, body: impl ToString) -> Answer {
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let builder = Response::builder().status(status).header("content-type", kind);
    Some(builder.body(Full::new(Bytes::from(body.to_string()))).unwrap())
}

pub fn with_header(answer: Answer, name: &'static str, value: &str) -> Answer {
    answer.map(|mut answer| {
        answer.headers_mut().insert(name, value.parse().unwrap());
        answer
    })
}

/// What `/v1/events` says when all is well.
pub fn all_accepted(asked: &Asked) -> Answer {
    let accepted = asked.lines();
    let body = serde_json::json!({"request_id": "r", "accepted": accepted, "dead_lettered": 0,
        "deduplicated": 0, "rejected": 0, "errors": [], "errors_truncated": false});
    answer(200, body)
}

impl Stub {
    /// Answers with what `told` says, given how many requests came before.
    pub fn start(told: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(told, None)
    }

    /// The same behind TLS; returns the certificate to trust (PEM).
    pub fn start_tls(
        told: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static,
    ) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        (Self::serve(told, Some(Arc::new(config))), made.cert.pem())
    }

    fn serve(
        told: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (notes, told) = (Arc::clone(&asked), Arc::new(told));
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (notes, told, tls) = (Arc::clone(&notes), Arc::clone(&told), tls.clone());
                    tokio::spawn(async move {
                        let Some(tls) = tls else { return connection(stream, notes, told).await };
                        // A handshake that fails is what some tests are about.
                        if let Ok(stream) =
                            tokio_rustls::TlsAcceptor::from(tls).accept(stream).await
                        {
                            connection(stream, notes, told).await;
                        }
                    });
                }
            });
        });
        Self { address, asked }
    }

    pub fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn connection<S, F>(stream: S, notes: Arc<Mutex<Vec<Asked>>>, told: Arc<F>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(usize, &Asked) -> Answer + Send + Sync + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (notes, told) = (Arc::clone(&notes), Arc::clone(&told));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let path = head.uri.path_and_query().unwrap();
            let line = format!("{} {path}", head.method);
            let asked = Asked { line, version: head.version, headers: head.headers, body };
            let before = {
                let mut notes = notes.lock().unwrap();
                notes.push(asked.clone());
                notes.len() - 1
            };
            told(before, &asked).ok_or_else(|| std::io::Error::other("cut"))
        }
    });
    // A connection that is cut on purpose ends with an error.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// An address where nobody listens.
pub fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// What a run of `ingestctl` left.
#[derive(Debug)]
pub struct Done {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }
}

/// Runs the program against `url` (as both addresses) with nothing else in its environment.
pub fn ingestctl(url: &str, arguments: &[&str]) -> Done {
    ingestctl_with_input(url, arguments, b"")
}

pub fn ingestctl_with_input(url: &str, arguments: &[&str], input: &[u8]) -> Done {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ingestctl"))
        .args(arguments)
        .env_clear()
        .env("TIDEGATE_URL", url)
        .env("TIDEGATE_ADMIN_URL", url)
        .env("TIDEGATE_KEY", "tgk_test")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read all of it is no fault of the test.
    let _ = child.stdin.take().unwrap().write_all(input);
    let mut err = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || stderr.read_to_string(&mut err).map(|_| err));
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    let status = child.wait().unwrap().code().expect("it was not killed");
    Done { status, out, err: errors.join().unwrap().unwrap() }
}
