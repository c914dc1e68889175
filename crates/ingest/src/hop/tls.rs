//! Mutual TLS between roles: each shows its certificate, each asks who signed the other's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::HopTlsConfig;

/// Why the files of `[hop.tls]` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HopTlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is no PEM, or holds none of what it should.
    #[error("{}: {message}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// They do not fit together.
    #[error("certificate, key and ca: {0}")]
    Unfit(String),
}

/// A file larger than this is no certificate and no key.
const FILE_BYTES_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Both sides of it, as the files were last read.
pub(super) struct HopTls {
    files: HopTlsConfig,
    live: ArcSwap<Pair>,
}

struct Pair {
    stamp: Stamp,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

type Stamp = [Option<(SystemTime, u64)>; 3];

impl HopTls {
    /// Reads the files.
    pub fn load(files: &HopTlsConfig) -> Result<Arc<Self>, HopTlsError> {
        let live = ArcSwap::from_pointee(load(files)?);
        Ok(Arc::new(Self { files: files.clone(), live }))
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.live.load().acceptor.clone()
    }

    pub fn connector(&self) -> TlsConnector {
        self.live.load().connector.clone()
    }

    /// Follows the files for ever; what cannot be used leaves what was.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut tried = self.live.load().stamp;
        loop {
            ticks.tick().await;
            let found = stamp(&self.files);
            if found == tried {
                continue;
            }
            tried = found;
            match load(&self.files) {
                Ok(pair) => {
                    self.live.store(Arc::new(pair));
                    tracing::info!(cert = %self.files.cert.display(), "certificate of the hops loaded");
                }
                Err(error) => {
                    tracing::error!(%error, "the hops' new certificate cannot be used; the old one stays");
                }
            }
        }
    }
}

fn stamp(files: &HopTlsConfig) -> Stamp {
    let of = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [of(&files.cert), of(&files.key), of(&files.ca)]
}

fn read(path: &Path) -> Result<Vec<u8>, HopTlsError> {
    let io = |source| HopTlsError::Io { path: path.to_owned(), source };
    let about = fs::metadata(path).map_err(io)?;
    if !about.is_file() || FILE_BYTES_MAX < about.len() {
        let message = format!("is no file of at most {FILE_BYTES_MAX} bytes");
        return Err(HopTlsError::Pem { path: path.to_owned(), message });
    }
    fs::read(path).map_err(io)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HopTlsError> {
    let pem = |message: String| HopTlsError::Pem { path: path.to_owned(), message };
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if all.is_empty() => Err(pem("holds no certificate".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(pem(error.to_string())),
    }
}

fn load(files: &HopTlsConfig) -> Result<Pair, HopTlsError> {
    let stamp = stamp(files);
    let chain = certificates(&files.cert)?;
    let text = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| HopTlsError::Pem {
        path: files.key.clone(),
        message: format!("holds no usable private key: {error}"),
    })?;
    let unfit = |error: &dyn std::fmt::Display| HopTlsError::Unfit(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).map_err(|e| unfit(&e))?;
    }
    let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| unfit(&e))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(&e))?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|e| unfit(&e))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.max_early_data_size = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unfit(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| unfit(&e))?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Pair {
        stamp,
        acceptor: TlsAcceptor::from(Arc::new(server)),
        connector: TlsConnector::from(Arc::new(client)),
    })
}
