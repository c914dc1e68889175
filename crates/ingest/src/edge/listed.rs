//! The items of a body that is refused for now, where its protocol tells each of them so.
//!
//! Such a body would be read over anyway ([`super::over`]); its items are counted and named, and nothing of it is judged.

use std::{ops::ControlFlow, time::Duration};

use http::request::Parts;

use super::{
    answer::{Kind, Refusal},
    body::{self, ReadLimits},
    coding::{Coding, DecodeLimits},
    login::Coming,
    protocol::{Notes, Protocol},
    request::{Shared, coding_of},
};
use crate::budget::Share;

/// Bodies up to this size, as sent and decoded: what is refused must cost little.
const MOST_BYTES: u64 = 256 << 10;
/// How long they may take to come.
const MOST: Duration = Duration::from_secs(1);

/// True where the items of a refused body are to be told one by one.
pub(super) fn is_listed(parts: &Parts, coming: &Coming, refusal: &Refusal) -> bool {
    let declared = match coming {
        Coming::Unread(body) => http_body::Body::size_hint(body).exact(),
        Coming::Read(_) | Coming::Signed(..) => None,
    };
    Notes::are_wanted(parts)
        && matches!(refusal.kind, Kind::Shed(..))
        && declared.is_some_and(|bytes| bytes <= MOST_BYTES)
}

/// How many items there are, with what is to be said of them noted; `None` where they cannot be told.
pub(super) async fn items(
    shared: &Shared,
    parts: &Parts,
    protocol: &Protocol,
    coming: Coming,
    share: &Share,
) -> Option<u64> {
    let Coming::Unread(body) = coming else { return None };
    let limits = ReadLimits { bytes: MOST_BYTES, total: MOST, idle: MOST };
    let (raw, mut permit) = body::read(body, limits, share).await.ok()?;
    let body = match coding_of(parts).ok()? {
        Coding::Identity => raw,
        coding => {
            let limits = DecodeLimits { bytes: MOST_BYTES, ratio: shared.limits.ratio };
            coding.decode(&raw, limits, &mut permit).ok()?.into()
        }
    };
    let mut items = 0;
    let counted = (protocol.decode)(parts, &body, &mut |_| {
        items += 1;
        if items <= shared.limits.events {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    counted.ok()?;
    Notes::pay(parts, share).ok()?;
    Some(items.into())
}
