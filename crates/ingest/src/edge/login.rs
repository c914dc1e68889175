//! Who sends: by a key in the head, by one in the body, or by what the configuration says of a protocol.

use bytes::Bytes;
use http::{HeaderValue, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;

pub(super) mod signed;

use super::{
    bench::no_memory,
    body::{self, ReadError, ReadLimits},
    coding::{Coding, DecodeLimits},
    connection::Busy,
    credentials::{self, Carrier, Credentials},
    keyed::{self, PathKey},
    problem::Problem,
    protocol::Protocol,
    request::{Shared, coding_of, unreadable},
    sigv4::BodyHash,
    work::undecodable,
};
use crate::{
    budget::{Permit, Share},
    faults::{Bug, planted},
    tenants::Caller,
};

use super::answer::Refusal;

/// What all bodies may hold together that are read before anybody is known. Apart from the budget, so
/// that nobody without a key takes anything of what tenants share.
pub(super) const EARLY_BYTES: u64 = 8 << 20;

/// A request's body, read or still to be read.
pub(super) enum Coming {
    Unread(Incoming),
    /// Unread, and good only if it has this hash: the one that was signed.
    Signed(Incoming, BodyHash),
    /// Read for the key in it.
    Read(Early),
}

impl Coming {
    /// How many bytes were sent, where it is read.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Unread(_) | Self::Signed(..) => None,
            Self::Read(early) => Some(early.length),
        }
    }
}

/// A body that was read before its sender was known.
pub(super) struct Early {
    /// Decoded.
    pub bytes: Bytes,
    /// How many bytes were sent.
    pub length: u64,
    /// Holds their memory.
    pub permit: Permit,
}

/// Finds who sends. A body is read only for a protocol that has its key there, where the head has
/// none, and no further than `edge.limits.unauthenticated_bytes`.
pub(super) async fn caller(
    shared: &Shared,
    parts: &Parts,
    protocol: &Protocol,
    body: Incoming,
    (busy, path_key): (&Busy, Option<&PathKey>),
) -> Result<(Caller, Coming), Refusal> {
    if let Some(fault) = path_key.and_then(PathKey::fault) {
        return Err(refused(protocol, Problem::KEY_INVALID, fault.to_owned()));
    }
    let found = credentials::find(parts, protocol.login.carriers);
    match keyed::with_path(found, path_key) {
        Credentials::Key(claims) if protocol.login.carriers == [Carrier::SigV4] => {
            signed::caller(shared, (parts, protocol), &claims, body, busy).await
        }
        Credentials::Key(key) => match known(shared, parts, protocol, &key) {
            Ok(caller) => Ok((caller, Coming::Unread(body))),
            Err(refusal) => {
                if planted(Bug::KeyAfterBody) {
                    let share = shared.budget.unshared();
                    let _read = body::read(body, shared.read_limits(), &share).await;
                }
                Err(refusal)
            }
        },
        Credentials::Conflict => {
            Err(refused(protocol, Problem::KEY_CONFLICT, "send one key, in one place".to_owned()))
        }
        Credentials::Missing => {
            if let Some(find) = protocol.login.in_body {
                let receiving = busy.receiving();
                let early = early(shared, parts, body).await?;
                drop(receiving);
                if let Some(key) = find(&early.bytes) {
                    return Ok((known(shared, parts, protocol, &key)?, Coming::Read(early)));
                }
                return Err(missing(protocol));
            }
            match open(shared, protocol) {
                Some(caller) => Ok((caller, Coming::Unread(body))),
                None => Err(missing(protocol)),
            }
        }
    }
}

fn known(
    shared: &Shared,
    parts: &Parts,
    protocol: &Protocol,
    key: &str,
) -> Result<Caller, Refusal> {
    let caller = shared.tenants.authenticate(key).map_err(|error| {
        // Whether it is unknown, expired or disabled is not for everybody to know.
        tracing::debug!(%error, "key refused");
        let detail = "the key is not known here, or is live no more";
        refused(protocol, Problem::KEY_INVALID, detail.to_owned())
    })?;
    keyed::allowed(parts, protocol, &caller)?;
    Ok(caller)
}

/// The tenant to whom the configuration gives what comes without a key.
fn open(shared: &Shared, protocol: &Protocol) -> Option<Caller> {
    let tenant = shared.open.get(protocol.name).filter(|_| protocol.login.may_be_open)?;
    match shared.tenants.without_key(tenant) {
        Ok(caller) => Some(caller),
        Err(error) => {
            tracing::debug!(%error, %tenant, protocol = protocol.name, "edge.open names no live tenant");
            None
        }
    }
}

fn missing(protocol: &Protocol) -> Refusal {
    let places: Vec<&str> = protocol.login.carriers.iter().map(|c| c.describe()).collect();
    let in_body = if protocol.login.in_body.is_some() { ", or in the body" } else { "" };
    let detail = format!("send the key as {}{in_body}", places.join(" or "));
    refused(protocol, Problem::KEY_MISSING, detail)
}

fn refused(protocol: &Protocol, problem: Problem, detail: String) -> Refusal {
    let challenge = HeaderValue::from_static(protocol.login.challenge);
    Refusal::problem(problem, detail).with(header::WWW_AUTHENTICATE, challenge)
}

/// A body that is read before its sender is known.
struct Raw {
    bytes: Bytes,
    permit: Permit,
    coding: Coding,
}

/// Reads a body up to `most` bytes; `mend` says what to do about one that is larger.
async fn read_early(
    shared: &Shared,
    parts: &Parts,
    body: Incoming,
    share: &Share,
    (most, mend): (u64, &str),
) -> Result<Raw, Refusal> {
    let declared = body.size_hint().exact();
    let too_large = || Refusal::problem(Problem::BODY_TOO_LARGE, mend);
    if declared.is_some_and(|bytes| most < bytes) {
        return Err(too_large());
    }
    let coding = coding_of(parts)?;
    let limits = ReadLimits { bytes: most, ..shared.read_limits() };
    match body::read(body, limits, share).await {
        Ok((bytes, permit)) => Ok(Raw { bytes, permit, coding }),
        Err(ReadError::TooLarge { .. }) => Err(too_large()),
        Err(ReadError::Full(full)) => Err(no_memory(full, share)),
        Err(error) => Err(unreadable(&error, share)),
    }
}

impl Raw {
    /// Decoded, to at most `most` bytes.
    fn decoded(mut self, shared: &Shared, most: u64) -> Result<Early, Refusal> {
        let length = self.bytes.len() as u64;
        let bytes = match self.coding {
            Coding::Identity => self.bytes,
            _ => {
                let limits = DecodeLimits { bytes: most, ratio: shared.limits.ratio };
                let decoded = self.coding.decode(&self.bytes, limits, &mut self.permit);
                let decoded = decoded.map_err(|error| undecodable(&error, &self.permit))?;
                drop(self.bytes);
                self.permit.shrink_to(decoded.capacity() as u64);
                decoded.into()
            }
        };
        Ok(Early { bytes, length, permit: self.permit })
    }
}

async fn early(shared: &Shared, parts: &Parts, body: Incoming) -> Result<Early, Refusal> {
    let most = shared.limits.unauthenticated_bytes.0;
    let mend = format!(
        "a body that has its key in it may have {most} bytes, as sent and decoded; send it in parts, \
         or the key in a header"
    );
    let share = shared.early.unshared();
    let raw = read_early(shared, parts, body, &share, (most, &mend)).await?;
    raw.decoded(shared, most)
}
