//! AWS Signature Version 4: what a signed request claims, and whether it is true.
//!
//! By "Signing AWS API requests" in the IAM user guide, as services other than S3 have it. Own code: what
//! verifies is a canonical text, five HMACs and a comparison, while the crates there are sign, and bring an
//! HTTP stack's types along. Signatures in the query are not taken.
//!
//! ```text
//! canonical := method \n path \n query \n (name:value \n)* \n signed names \n hex SHA-256 of the body
//! to sign   := AWS4-HMAC-SHA256 \n date \n scope \n hex SHA-256 of canonical
//! key       := HMAC(HMAC(HMAC(HMAC("AWS4" secret, day), region), service), "aws4_request")
//! ```

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Uri, header, request::Parts};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tidegate_event::ReceivedAt;

/// The word before the claims in `Authorization`.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const END: &str = "aws4_request";
const DATE: &str = "x-amz-date";
const BODY_HASH: &str = "x-amz-content-sha256";
const TOKEN: &str = "x-amz-security-token";
/// How far the client's clock may be off, in microseconds.
const SKEW: i64 = 15 * 60 * 1_000_000;
/// More names of headers than a request may have headers are no honest list.
const NAMES_MAX: usize = 256;

/// Why a signature is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// Something is missing, or is not of its form.
    #[error("{0}")]
    Incomplete(String),
    /// Signed more than 15 minutes ago.
    #[error("signature expired: {0} is more than 15 minutes ago")]
    Expired(String),
    /// Signed more than 15 minutes ahead of now.
    #[error("signature not yet current: {0} is more than 15 minutes ahead")]
    NotYet(String),
    /// Another key, or another request.
    #[error(
        "the signature is not the one that this request and the key's secret make; check the secret, \
         and that nothing on the way changes the request"
    )]
    Wrong,
    /// The body is not the one that was signed.
    #[error("the body is not the one whose hash was signed")]
    OtherBody,
    /// A session's token; none are given out here.
    #[error("there are no session tokens here; use a key pair of the tenant without one")]
    Token,
}

/// SHA-256 of a body.
pub type BodyHash = [u8; 32];

/// What a signed request claims. Nothing of it is true before [`Claim::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Whose secret signed it.
    pub key_id: &'a str,
    /// As the client has it; any is taken.
    pub region: &'a str,
    /// `<day>/<region>/<service>/aws4_request`
    scope: &'a str,
    service: &'a str,
    day: &'a str,
    date: &'a str,
    names: Vec<&'a str>,
    signed: &'a str,
    signature: [u8; 32],
    has_token: bool,
    /// The body's hash, where the head has it.
    pub body: Option<BodyHash>,
}

fn incomplete<T>(what: impl Into<String>) -> Result<T, SignatureFault> {
    Err(SignatureFault::Incomplete(what.into()))
}

fn hash_of(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let small = text.bytes().all(|b| !b.is_ascii_uppercase());
    hex::decode_to_slice(text, &mut bytes).ok().filter(|()| small).map(|()| bytes)
}

/// The one value of a header; `None` where there is none, `Err` where there are more.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, SignatureFault> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text.trim())),
        _ => incomplete(format!("{name} must stand once, in ASCII")),
    }
}

impl<'a> Claim<'a> {
    /// Reads `Authorization` behind its first word, and what belongs to it.
    ///
    /// # Errors
    /// [`SignatureFault::Incomplete`]
    pub fn of(parts: &'a Parts, claims: &'a str, service: &str) -> Result<Self, SignatureFault> {
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for claim in claims.split(',') {
            let (name, value) = claim.trim().split_once('=').unwrap_or((claim.trim(), ""));
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return incomplete("Authorization holds something else than its three claims"),
            };
            if value.is_empty() || place.replace(value).is_some() {
                return incomplete(format!("Authorization needs `{name}=` once, with a value"));
            }
        }
        let (Some(credential), Some(signed), Some(signature)) = (credential, signed, signature)
        else {
            return incomplete("Authorization needs Credential, SignedHeaders and Signature");
        };
        let Some(signature) = hash_of(signature) else {
            return incomplete("the signature must be 64 small hexadecimal digits");
        };
        let Some((key_id, scope)) = credential.split_once('/') else {
            return incomplete("Credential must be <key id>/<day>/<region>/<service>/aws4_request");
        };
        let [day, region, claimed, END] = scope.split('/').collect::<Vec<_>>()[..] else {
            return incomplete("Credential must be <key id>/<day>/<region>/<service>/aws4_request");
        };
        if claimed != service {
            return incomplete(format!("Credential should be scoped to the service {service:?}"));
        }
        let Some(date) = single(&parts.headers, DATE)? else {
            return incomplete("X-Amz-Date is missing");
        };
        if moment(date).is_none() || date.get(..8) != Some(day) {
            return incomplete("X-Amz-Date must be like 20150830T123600Z, of Credential's day");
        }
        let names: Vec<&str> = signed.split(';').collect();
        check_names(&names, &parts.headers)?;
        let body = match single(&parts.headers, BODY_HASH)? {
            None => None,
            // `UNSIGNED-PAYLOAD` and signatures in chunks are S3's.
            Some(text) => match hash_of(text) {
                None => return incomplete("X-Amz-Content-Sha256 must be the body's SHA-256"),
                hash => hash,
            },
        };
        let has_token = parts.headers.contains_key(TOKEN);
        Ok(Self {
            key_id,
            region,
            scope,
            service: claimed,
            day,
            date,
            names,
            signed,
            signature,
            has_token,
            body,
        })
    }

    /// Whether it may be true now: the client's clock is about ours, and it claims no session.
    ///
    /// # Errors
    /// [`SignatureFault::Expired`], [`SignatureFault::NotYet`], [`SignatureFault::Token`].
    pub fn check(&self, now: ReceivedAt) -> Result<(), SignatureFault> {
        if self.has_token {
            return Err(SignatureFault::Token);
        }
        let date = moment(self.date).unwrap_or(i64::MIN);
        if date < now.0.saturating_sub(SKEW) {
            return Err(SignatureFault::Expired(self.date.to_owned()));
        }
        if now.0.saturating_add(SKEW) < date {
            return Err(SignatureFault::NotYet(self.date.to_owned()));
        }
        Ok(())
    }

    /// Whether `secret` signed this head with a body of that hash. Takes as long wherever the signature
    /// differs.
    ///
    /// # Errors
    /// [`SignatureFault::Wrong`]
    pub fn verify(
        &self,
        parts: &Parts,
        secret: &[u8],
        body: &BodyHash,
    ) -> Result<(), SignatureFault> {
        let canonical = self.canonical(parts, body);
        let hash = hex::encode(Sha256::digest(canonical));
        let text = format!("{ALGORITHM}\n{}\n{}\n{hash}", self.date, self.scope);
        let first = [b"AWS4".as_slice(), secret].concat();
        let key = hmac(&first, self.day);
        let key = hmac(&hmac(&hmac(&key, self.region), self.service), END);
        match bool::from(hmac(&key, &text).ct_eq(&self.signature)) {
            true => Ok(()),
            false => Err(SignatureFault::Wrong),
        }
    }

    fn canonical(&self, parts: &Parts, body: &BodyHash) -> Vec<u8> {
        let mut text = format!("{}\n{}\n", parts.method, path(&parts.uri)).into_bytes();
        text.extend_from_slice(query(&parts.uri).as_bytes());
        text.push(b'\n');
        for name in &self.names {
            text.extend_from_slice(name.as_bytes());
            text.push(b':');
            text.extend_from_slice(&header_value(parts, name));
            text.push(b'\n');
        }
        text.push(b'\n');
        text.extend_from_slice(self.signed.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(hex::encode(body).as_bytes());
        text
    }
}

/// Compares a body with what was signed.
///
/// # Errors
/// [`SignatureFault::OtherBody`]
pub fn check_body(found: &BodyHash, signed: &BodyHash) -> Result<(), SignatureFault> {
    match bool::from(found.ct_eq(signed)) {
        true => Ok(()),
        false => Err(SignatureFault::OtherBody),
    }
}

/// What is not signed could be anybody's. So the host and all that is acted on must be: everything of
/// Amazon's own, and how the body is coded and read.
fn check_names(names: &[&str], headers: &HeaderMap) -> Result<(), SignatureFault> {
    if NAMES_MAX < names.len() || !names.is_sorted_by(|a, b| a < b) {
        return incomplete("SignedHeaders must be names in order, each once");
    }
    let well = |name: &&str| !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase());
    if !names.iter().all(well) {
        return incomplete("SignedHeaders must be names in small letters");
    }
    let signed = |name: &str| names.binary_search(&name).is_ok();
    let acted_on = |name: &str| {
        name.starts_with("x-amz-")
            || name == header::CONTENT_ENCODING.as_str()
            || name == header::CONTENT_TYPE.as_str()
    };
    if !signed("host") {
        return incomplete("SignedHeaders must hold host");
    }
    let unsigned = headers.keys().find(|name| acted_on(name.as_str()) && !signed(name.as_str()));
    match unsigned {
        Some(name) => incomplete(format!("SignedHeaders must hold {name}, which was sent")),
        None => Ok(()),
    }
}

/// Microseconds since 1970 of a date such as `20150830T123600Z`.
fn moment(text: &str) -> Option<i64> {
    let digit = |at: usize, b: u8| match at {
        8 => b == b'T',
        15 => b == b'Z',
        _ => b.is_ascii_digit(),
    };
    if text.len() != 16 || !text.bytes().enumerate().all(|(at, b)| digit(at, b)) {
        return None;
    }
    let date = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    let date = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(date.timestamp().as_microsecond())
}

fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    // HMAC takes keys of any length, so this always holds a value.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

fn encode(bytes: &[u8], but: &[u8], into: &mut String) {
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                into.push(char::from(*byte));
            }
            byte if but.contains(byte) => into.push(char::from(*byte)),
            // Writing to a String cannot fail.
            byte => drop(write!(into, "%{byte:02X}")),
        }
    }
}

/// The path as it came, encoded once more, without `.`, `..` and empty segments.
fn path(uri: &Uri) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let path = uri.path();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut text = String::from("/");
    encode(kept.join("/").as_bytes(), b"/", &mut text);
    if path.ends_with('/') && !kept.is_empty() {
        text.push('/');
    }
    text
}

fn query(uri: &Uri) -> String {
    let encoded = |text: &str| {
        let mut into = String::new();
        encode(&super::protocol::percent_decoded(text), b"", &mut into);
        into
    };
    let all = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<(String, String)> = all
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encoded(name), encoded(value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// All values of a header, each without space around it and with one space where it has more.
fn header_value(parts: &Parts, name: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let mut values = parts.headers.get_all(name).iter().peekable();
    if values.peek().is_none() && name == header::HOST.as_str() {
        // HTTP/2 has it apart.
        let host = parts.uri.authority().map_or("", |authority| authority.as_str());
        return host.as_bytes().to_vec();
    }
    for (at, value) in values.enumerate() {
        if at != 0 {
            text.push(b',');
        }
        let mut words = value.as_bytes().split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
        text.extend_from_slice(words.next().unwrap_or_default());
        for word in words {
            text.push(b' ');
            text.extend_from_slice(word);
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
#[path = "sigv4_tests.rs"]
mod tests;
