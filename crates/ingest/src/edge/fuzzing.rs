//! The edge's decoders for fuzz/: codings, heads, and a whole body's way to its batch.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use sha2::Digest;
use tidegate_event::{EncodedBatch, EventType, ReceivedAt};

use super::{
    Limits,
    away::Kept,
    coding::{Coding, DecodeError, DecodeLimits, from_headers},
    judge::Judge,
    protocol::{Protocol, Routed, implied_coding, route},
    work::{Done, Work},
};
use crate::{books::Tally, budget::Permit, tenants::Caller};

pub use super::{
    credentials::{Carrier, Credentials, find},
    head::{charset, media_type, query, single},
};

/// Why a body was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Damaged, cut short, or with bytes behind its end.
    Corrupt,
    /// More than this many bytes.
    TooLarge(u64),
    /// More than this many bytes for one.
    Ratio(u64),
    /// More than the budget holds.
    Full,
}

/// Decodes `raw` by the one coding that `headers` name; `None` where they name no such.
pub fn decode(
    headers: &HeaderMap,
    raw: &[u8],
    (bytes, ratio): (u64, u64),
    permit: &mut Permit,
) -> Option<Result<Vec<u8>, Refused>> {
    Some(decoded(from_headers(headers).ok()?, raw, (bytes, ratio), permit))
}

/// Decodes a block of snappy's, which no header names.
///
/// # Errors
/// [`Refused`]
pub fn unsnap(raw: &[u8], limits: (u64, u64), permit: &mut Permit) -> Result<Vec<u8>, Refused> {
    decoded(Coding::Snappy, raw, limits, permit)
}

fn decoded(
    coding: Coding,
    raw: &[u8],
    (bytes, ratio): (u64, u64),
    permit: &mut Permit,
) -> Result<Vec<u8>, Refused> {
    coding.decode(raw, DecodeLimits { bytes, ratio }, permit).map_err(|error| match error {
        DecodeError::Corrupt { .. } => Refused::Corrupt,
        DecodeError::TooLarge { limit } => Refused::TooLarge(limit),
        DecodeError::Ratio { ratio } => Refused::Ratio(ratio),
        DecodeError::Full(_) => Refused::Full,
    })
}

/// What is too much in a head.
#[must_use]
pub fn too_large(parts: &Parts, limits: &Limits) -> Option<String> {
    super::head::too_large(parts, limits)
}

/// The protocol that serves a request, by its head.
#[must_use]
pub fn serving(parts: &Parts) -> Option<&'static Protocol> {
    let Routed::Protocols(all) = route(&parts.method, parts.uri.path()) else { return None };
    all.into_iter().find(|protocol| (protocol.takes)(parts))
}

/// True where `claims` are a signature by `secret` over this head and an empty body.
#[must_use]
pub fn is_signed(parts: &Parts, claims: &str, secret: &[u8]) -> bool {
    let Ok(claim) = super::sigv4::Claim::of(parts, claims, "firehose") else { return false };
    let empty = sha2::Sha256::digest(b"").into();
    let _ = claim.check(ReceivedAt(1_772_323_200_000_000));
    claim.verify(parts, secret, &empty).is_ok()
}

/// A sane `X-Request-Id`.
#[must_use]
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    super::head::request_id(headers)
}

/// A valid `traceparent`.
#[must_use]
pub fn trace(headers: &HeaderMap) -> Option<(&str, &str)> {
    super::head::trace(headers)
}

/// A body, judged.
pub struct Outcome {
    /// Items of each type, and how many of them were rejected.
    pub types: Vec<(EventType, Tally)>,
    /// What is to be appended.
    pub batch: Option<EncodedBatch>,
    /// The dead letters' indexes.
    pub dead: Vec<u32>,
    /// How many cannot be kept.
    pub rejected: u64,
    /// How many reasons are told, and whether that is all.
    pub errors: (usize, bool),
    /// True where nothing can be kept.
    pub nothing: bool,
    /// The batch's memory.
    pub permit: Permit,
}

/// Judges a whole body; `None` where it is refused as a whole.
pub fn run(
    (parts, body): (Parts, Bytes),
    protocol: &'static Protocol,
    caller: Caller,
    judge: Arc<dyn Judge>,
    limits: &Limits,
    permit: Permit,
) -> Option<Outcome> {
    let work = Work {
        types: None,
        coding: implied_coding(&parts)
            .or_else(|| from_headers(&parts.headers).ok())
            .unwrap_or(Coding::Identity),
        parts: Arc::new(parts),
        body,
        protocol,
        caller,
        limits: Arc::new(limits.clone()),
        received_at: ReceivedAt(1_772_323_200_000_000),
        base_id: [7; 16],
        permit,
    };
    let Done { types, kept, dead, rejected, errors, errors_truncated, nothing, permit } =
        work.run(&*judge).ok()?;
    let batch = match kept {
        Some(Kept::Here(batch)) => Some(batch),
        Some(Kept::Away(..)) | None => None,
    };
    let types = types.into_iter().map(|(name, items)| {
        let rejected = items.rejected.iter().map(|(_, events)| events).sum();
        (name, Tally { received: items.received, rejected, ..Tally::default() })
    });
    let types = types.collect();
    let (errors, nothing) = ((errors.len(), errors_truncated), nothing.is_some());
    Some(Outcome { types, batch, dead, rejected, errors, nothing, permit })
}
