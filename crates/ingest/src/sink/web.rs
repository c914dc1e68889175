//! What sinks that speak HTTP share: a client that repeats and follows nothing, answers of bounded size.

use std::{error::Error, path::Path, time::Duration};

use reqwest::{Certificate, Response, redirect, retry};

/// How a destination is reached.
pub struct Reach<'a> {
    /// Certificates to trust besides the machine's own (PEM).
    pub ca: Option<&'a Path>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take, its answer included.
    pub timeout: Duration,
}

/// Makes a client; makes no request.
///
/// # Errors
/// What is wrong with the certificates, in one line.
pub fn client(reach: &Reach<'_>) -> Result<reqwest::Client, String> {
    // reqwest brings no crypto provider of its own. An error says that one is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    // A request is repeated by the runner alone, which knows what may be repeated.
    let mut http = reqwest::Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .connect_timeout(reach.connect_timeout)
        .timeout(reach.timeout);
    if let Some(path) = reach.ca {
        let shown = path.display();
        let pem = std::fs::read(path).map_err(|e| format!("options.ca: {shown}: {e}"))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|e| format!("options.ca: {shown}: {}", causes(&e)))?;
        http = http.tls_certs_merge(certificates);
    }
    http.build().map_err(|e| causes(&e))
}

/// As much of the body as there is, up to `most` bytes; true where that is all.
pub async fn read(answer: &mut Response, most: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut read = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = most - read.len();
        if room < chunk.len() {
            read.extend_from_slice(chunk.get(..room).unwrap_or_default());
            return Ok((read, false));
        }
        read.extend_from_slice(&chunk);
    }
    Ok((read, true))
}

/// What is known after a request that was not answered, in one line.
pub fn unanswered(error: &reqwest::Error, timeout: Duration) -> String {
    if error.is_timeout() {
        format!("no answer within {timeout:?}: {}", causes(error))
    } else {
        causes(error)
    }
}

/// An error with what caused it, in one line and without the URL, which may hold statements.
pub fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn Error> = Error::source(error);
    while let Some(cause) = next {
        let separator = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{separator}{cause}");
        next = cause.source();
    }
    if text.is_empty() { "the request failed".to_owned() } else { text }
}
