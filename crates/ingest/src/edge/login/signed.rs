//! Who sends, by a signature: the body's hash is part of what was signed.
//!
//! Where the head has that hash, signed (`X-Amz-Content-Sha256`), the signature is checked before anything
//! of the body is read, and the body against the hash once it is there. Many clients do not send it. Their
//! bodies have to be read before anybody is known, so: only once the head names a live key id, a date within
//! 15 minutes and all that must be signed; up to [`BODY_BYTES`], what a request of Firehose may have; from a
//! pool of [`POOL_BYTES`] for all of them, of which the tenant that the key id names has its share. Who knows
//! another's key id, which is no secret, can keep that share busy, and nothing else: neither the memory that
//! requests share, nor another tenant's part, nor the tenant's quota, which is asked once it is known who asks.

use http::request::Parts;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::{Coming, read_early, refused};
use crate::{
    edge::{
        answer::Refusal,
        connection::Busy,
        problem::Problem,
        protocol::Protocol,
        request::Shared,
        sigv4::{self, BodyHash, Claim, SignatureFault},
    },
    tenants::Caller,
};

/// What a body may have: 4 MiB of records in base64, and what is written around them.
pub(super) const BODY_BYTES: u64 = 6 << 20;
/// What all bodies may hold together whose signature is not checked yet.
pub(in crate::edge) const POOL_BYTES: u64 = 32 << 20;
/// Bodies beyond this are hashed on a thread of their own.
const LIGHT_BYTES: usize = 256 << 10;
/// In whose name a request must be signed: the one service that is spoken here.
const SERVICE: &str = "firehose";

/// Finds who sends by the claims in `Authorization`.
pub(super) async fn caller(
    shared: &Shared,
    (parts, protocol): (&Parts, &Protocol),
    claims: &str,
    body: Incoming,
    busy: &Busy,
) -> Result<(Caller, Coming), Refusal> {
    let refuse = |fault: SignatureFault| faulty(protocol, &fault);
    let claim = Claim::of(parts, claims, SERVICE).map_err(refuse)?;
    let (caller, secret) = shared.tenants.signer(claim.key_id).map_err(|error| {
        // Whether it is unknown, expired or disabled is not for everybody to know.
        tracing::debug!(%error, "key pair refused");
        let detail = "the key id is not known here, or is live no more";
        refused(protocol, Problem::KEY_INVALID, detail.to_owned())
    })?;
    claim.check(shared.clock.now()).map_err(refuse)?;
    if let Some(hash) = claim.body {
        claim.verify(parts, &secret.0, &hash).map_err(refuse)?;
        return Ok((caller, Coming::Signed(body, hash)));
    }
    let mend = format!(
        "a body whose hash is not in X-Amz-Content-Sha256 may have {BODY_BYTES} bytes; send fewer \
         records at once"
    );
    let tenant = &caller.tenant;
    let share = shared.unproven.share(&tenant.id, tenant.weight());
    let receiving = busy.receiving();
    let raw = read_early(shared, parts, body, &share, (BODY_BYTES, &mend)).await?;
    drop(receiving);
    let hash = hash(&raw.bytes).await?;
    claim.verify(parts, &secret.0, &hash).map_err(refuse)?;
    let early = raw.decoded(shared, BODY_BYTES)?;
    Ok((caller, Coming::Read(early)))
}

/// Whether a body is the one that was signed.
pub(in crate::edge) async fn check(bytes: &bytes::Bytes, signed: &BodyHash) -> Result<(), Refusal> {
    let found = hash(bytes).await?;
    sigv4::check_body(&found, signed)
        .map_err(|fault| Refusal::problem(Problem::SIGNATURE_WRONG, fault.to_string()))
}

async fn hash(bytes: &bytes::Bytes) -> Result<BodyHash, Refusal> {
    if bytes.len() <= LIGHT_BYTES {
        return Ok(Sha256::digest(bytes).into());
    }
    let bytes = bytes.clone();
    let hash = tokio::task::spawn_blocking(move || Sha256::digest(&bytes).into()).await;
    hash.map_err(|error| {
        tracing::error!(%error, "a body could not be hashed");
        Refusal::problem(Problem::INTERNAL, "the server failed to look at the body")
    })
}

fn faulty(protocol: &Protocol, fault: &SignatureFault) -> Refusal {
    let problem = match fault {
        SignatureFault::Incomplete(_) => Problem::SIGNATURE_INCOMPLETE,
        SignatureFault::Expired(_) | SignatureFault::NotYet(_) => Problem::SIGNATURE_EXPIRED,
        SignatureFault::Wrong | SignatureFault::OtherBody => Problem::SIGNATURE_WRONG,
        SignatureFault::Token => Problem::KEY_INVALID,
    };
    refused(protocol, problem, fault.to_string())
}
