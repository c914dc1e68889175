//! Certificates: loaded, checked and swapped without dropping a connection.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

use super::TlsConfig;
use crate::clock::Clock;

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is no PEM, or holds none of what it should.
    #[error("{}: {message}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The pair does not fit, or cannot be used with this library.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
    /// The certificate is not valid any more.
    #[error("the certificate in {} is past its notAfter", .0.display())]
    Expired(PathBuf),
}

/// TLS for the public address.
pub(super) struct Tls {
    files: TlsConfig,
    clock: Arc<dyn Clock>,
    live: Arc<Live>,
    acceptor: TlsAcceptor,
    seen: Mutex<Stamp>,
}

/// A file larger than this is no certificate and no key.
const FILE_BYTES_MAX: u64 = 1 << 20;

type Stamp = [Option<(SystemTime, u64)>; 2];

#[derive(Debug)]
struct Live(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// Loads the pair. TLS 1.2 and 1.3, no early data, `h2` and `http/1.1`.
    pub(super) fn load(files: &TlsConfig, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let stamp = stamp(files);
        let live = Arc::new(Live(ArcSwap::from_pointee(load(files, &*clock)?)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&live) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.max_early_data_size = 0;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { files: files.clone(), clock, live, acceptor, seen: Mutex::new(stamp) })
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Reads the pair again, for [`Tls::install`]. Changes nothing yet.
    pub(super) fn prepare(&self) -> Result<CertifiedKey, TlsError> {
        self.keep(stamp(&self.files));
        load(&self.files, &*self.clock)
    }

    /// Takes a pair for the connections to come; true where its certificate is another one.
    pub(super) fn install(&self, pair: CertifiedKey) -> bool {
        let pair = Arc::new(pair);
        let before = self.live.0.swap(Arc::clone(&pair));
        let changed = before.cert != pair.cert;
        if changed {
            tracing::info!(cert = %self.files.cert.display(), "certificate loaded");
        }
        changed
    }

    /// Reads the pair again; where it cannot be used, the old one stays.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        self.install(self.prepare()?);
        Ok(())
    }

    fn keep(&self, stamp: Stamp) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, stamp) != stamp
    }

    /// Follows the files for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let tls = Arc::clone(&self);
            let look = tokio::task::spawn_blocking(move || {
                if tls.keep(stamp(&tls.files)) { tls.reload() } else { Ok(()) }
            });
            match look.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "the new certificate cannot be used; the old one stays");
                }
                Err(error) => tracing::error!(%error, "the certificate could not be looked at"),
            }
        }
    }
}

fn stamp(files: &TlsConfig) -> Stamp {
    let of = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [of(&files.cert), of(&files.key)]
}

fn load(files: &TlsConfig, clock: &dyn Clock) -> Result<CertifiedKey, TlsError> {
    let pem = |path: &Path, message: String| TlsError::Pem { path: path.to_owned(), message };
    let read = |path: &Path| {
        let io = |source| TlsError::Io { path: path.to_owned(), source };
        let about = fs::metadata(path).map_err(io)?;
        if !about.is_file() || FILE_BYTES_MAX < about.len() {
            return Err(pem(path, format!("is no file of at most {FILE_BYTES_MAX} bytes")));
        }
        fs::read(path).map_err(io)
    };
    let (cert, key) = (read(&files.cert)?, read(&files.key)?);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(|error| pem(&files.cert, error.to_string()))?;
    let Some(leaf) = chain.first() else {
        return Err(pem(&files.cert, "holds no certificate".to_owned()));
    };
    let not_after = not_after(leaf)
        .ok_or_else(|| pem(&files.cert, "the certificate's notAfter cannot be read".to_owned()))?;
    if not_after.as_microsecond() < clock.now().0 {
        return Err(TlsError::Expired(files.cert.clone()));
    }
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| pem(&files.key, format!("holds no usable private key: {error}")))?;
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}

/// One DER element at the front: its tag, its contents, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)), rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((*tag, contents, rest))
}

/// `notAfter` of an X.509 certificate (RFC 5280, 4.1).
fn not_after(certificate: &[u8]) -> Option<jiff::Timestamp> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut body, _) = element(certificate)?;
    // [0] version, where there is one; then serial number, signature and issuer.
    if body.first() == Some(&0xa0) {
        body = element(body)?.2;
    }
    for _ in 0..3 {
        body = element(body)?.2;
    }
    let (_, validity, _) = element(body)?;
    let (_, _, after) = element(validity)?;
    let (tag, text, _) = element(after)?;
    let text = std::str::from_utf8(text).ok()?;
    // UTCTime has two digits of the year: 50 to 99 are of the last century.
    let text = match (tag, text.get(..2)?.parse::<u8>().ok()?) {
        (0x17, 50..) => format!("19{text}"),
        (0x17, _) => format!("20{text}"),
        _ => text.to_owned(),
    };
    let digits = text.strip_suffix('Z')?;
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", digits).ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_spellings_of_time() {
        for (year, month, day) in [(2031, 2, 3), (2055, 12, 31)] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let certificate = params.self_signed(&key).unwrap();
            let expected = format!("{year}-{month:02}-{day:02}T00:00:00Z");
            let found = not_after(certificate.der()).unwrap();
            assert_eq!(found, expected.parse::<jiff::Timestamp>().unwrap());
        }
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
