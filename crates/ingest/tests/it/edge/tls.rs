//! TLS: versions, protocols, and certificates that change under load.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use tidegate_ingest::{
    config::Span,
    edge::{TlsConfig, TlsError},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::kit::{Server, is_closed, read_reply, start_with};

/// Writes a self-signed pair and returns the certificate.
fn write_pair(dir: &Path, expired: bool) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    }
    let certificate = params.self_signed(&key).unwrap();
    replace(&dir.join("cert.pem"), &certificate.pem());
    replace(&dir.join("key.pem"), &key.serialize_pem());
    certificate.der().clone()
}

fn replace(path: &Path, text: &str) {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).unwrap();
    std::fs::rename(&partial, path).unwrap();
}

async fn tls_server(dir: &Path) -> Server {
    let tls = TlsConfig { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    start_with(|setup| {
        setup.config.tls = Some(tls);
        setup.config.timeouts.handshake = Span(Duration::from_millis(500));
    })
    .await
}

async fn connect(
    server: &Server,
    trusted: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn request(server: &Server) -> String {
    let one = r#"{"event_type":"t"}"#;
    let headers =
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", one.len());
    format!("{}{one}", server.head(&headers))
}

#[tokio::test]
async fn both_protocols_are_offered_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = [write_pair(dir.path(), false)];
    let server = tls_server(dir.path()).await;
    let mut stream = connect(&server, &certificate, &[b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    stream.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);

    let stream = connect(&server, &certificate, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://localhost/healthz");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn garbage_and_half_handshakes_end_and_harm_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = [write_pair(dir.path(), false)];
    let server = tls_server(dir.path()).await;
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"\x16\x03\x01\x00\x05hello", b""]
    {
        let mut stream = server.connect().await;
        stream.write_all(garbage).await.unwrap();
        is_closed(&mut stream).await;
    }
    // A ClientHello with each byte wrong in turn, and cut at each byte; many at once.
    let hello = client_hello().await;
    let scale: usize = std::env::var("THREAT_SCALE").map_or(1, |n| n.parse().unwrap());
    for round in 0..scale {
        let junk = (0..hello.len()).flat_map(|at| {
            let mut wrong = hello.clone();
            wrong[at] ^= 1 << (round % 8);
            [wrong, hello[..at].to_vec()]
        });
        let sent = junk.map(|bytes| {
            let server = &server;
            async move {
                let mut stream = server.connect().await;
                // It may be closed before all is written.
                let _ = stream.write_all(&bytes).await;
                is_closed(&mut stream).await;
            }
        });
        futures_util::future::join_all(sent).await;
    }
    let mut stream = connect(&server, &certificate, &[]).await.unwrap();
    stream.write_all(request(&server).as_bytes()).await.unwrap();
    read_reply(&mut stream).await.counts(1, 0, 0);
}

/// What a client says first.
async fn client_hello() -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let client = tokio::spawn(async move {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let _ = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut hello = vec![0; 4096];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await.unwrap();
    hello.truncate(read);
    client.abort();
    hello
}

#[tokio::test]
async fn a_certificate_is_reloaded_under_load_without_a_failed_request() {
    let dir = tempfile::tempdir().unwrap();
    let first = write_pair(dir.path(), false);
    let server = Arc::new(tls_server(dir.path()).await);
    let trusted = Arc::new(std::sync::Mutex::new(vec![first.clone()]));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for reuse in [true, true, false, false] {
        let (server, trusted) = (server.clone(), trusted.clone());
        let (stop, served) = (stop.clone(), served.clone());
        clients.push(tokio::spawn(async move {
            let all = || trusted.lock().unwrap().clone();
            let mut stream = connect(&server, &all(), &[]).await.unwrap();
            while !stop.load(Ordering::SeqCst) {
                if !reuse {
                    // The server may have moved on between our look at `trusted` and the handshake.
                    let certificates = all();
                    stream = match connect(&server, &certificates, &[]).await {
                        Ok(stream) => stream,
                        Err(_) if certificates != all() => continue,
                        Err(error) => panic!("{error}"),
                    };
                }
                stream.write_all(request(&server).as_bytes()).await.unwrap();
                read_reply(&mut stream).await.counts(1, 0, 0);
                served.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for _ in 0..10 {
        // Trusted before it is served.
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        trusted.lock().unwrap().push(certificate.der().clone());
        replace(&dir.path().join("key.pem"), &key.serialize_pem());
        // Half a pair: refused, the old one stays.
        assert!(matches!(server.handle.prepare_tls(), Err(TlsError::Pair(_))));
        replace(&dir.path().join("cert.pem"), &certificate.pem());
        server.handle.install_tls(server.handle.prepare_tls().unwrap());
        let before = served.load(Ordering::SeqCst);
        while served.load(Ordering::SeqCst) < before + 8 {
            assert!(clients.iter().all(|client| !client.is_finished()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(connect(&server, &[first], &[]).await.is_err(), "the first certificate is gone");
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = [write_pair(dir.path(), false)];
    let server = tls_server(dir.path()).await;
    write_pair(dir.path(), true);
    assert!(matches!(server.handle.prepare_tls(), Err(TlsError::Expired(_))));
    replace(&dir.path().join("cert.pem"), "nonsense");
    assert!(matches!(server.handle.prepare_tls(), Err(TlsError::Pem { .. })));
    std::fs::remove_file(dir.path().join("cert.pem")).unwrap();
    assert!(matches!(server.handle.prepare_tls(), Err(TlsError::Io { .. })));
    connect(&server, &first, &[]).await.unwrap();
}

#[tokio::test]
async fn a_pair_that_changes_on_disk_is_taken_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), false);
    let server = tls_server(dir.path()).await;
    let second = [write_pair(dir.path(), false)];
    for _ in 0..1000 {
        if connect(&server, &second, &[]).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the new certificate is not served");
}
