//! What is noted of a request on its way, for protocols whose answers tell more than what became of its items.

use std::sync::{Arc, OnceLock};

use http::request::Parts;
use tidegate_event::ReceivedAt;

/// Stands among a request's extensions.
#[derive(Clone, Debug)]
pub(in crate::edge) struct Noted {
    at: ReceivedAt,
    groups: Arc<OnceLock<Vec<u32>>>,
}

/// The paths of those protocols.
fn is_wanted(path: &str) -> bool {
    path == "/" || path.starts_with("/v1/firehose")
}

impl Noted {
    /// Begins with when the request came.
    pub(in crate::edge) fn begin(parts: &mut Parts, at: ReceivedAt) {
        if is_wanted(parts.uri.path()) {
            parts.extensions.insert(Self { at, groups: Arc::default() });
        }
    }

    /// When the request came, in milliseconds since 1970.
    pub(super) fn millis(parts: &Parts) -> i64 {
        parts.extensions.get::<Self>().map_or(0, |noted| noted.at.0.div_euclid(1000))
    }

    /// How many items each of the parts has that the client told apart. What is noted first stays.
    pub(super) fn set_groups(parts: &Parts, groups: Vec<u32>) {
        if let Some(noted) = parts.extensions.get::<Self>() {
            let _ = noted.groups.set(groups);
        }
    }

    /// The same, once it is known.
    pub(super) fn groups(parts: &Parts) -> Option<&[u32]> {
        parts.extensions.get::<Self>()?.groups.get().map(Vec::as_slice)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_again_and_only_where_it_is_wanted() {
        let mut parts = http::Request::post("/").body(()).unwrap().into_parts().0;
        assert_eq!((Noted::millis(&parts), Noted::groups(&parts)), (0, None));
        Noted::begin(&mut parts, ReceivedAt(1_234_567));
        Noted::set_groups(&parts, vec![1, 2]);
        Noted::set_groups(&parts, vec![3]);
        assert_eq!(Noted::millis(&parts), 1234);
        assert_eq!(Noted::groups(&parts), Some([1, 2].as_slice()));
        let mut other = http::Request::post("/v1/events").body(()).unwrap().into_parts().0;
        Noted::begin(&mut other, ReceivedAt(1));
        Noted::set_groups(&other, vec![1]);
        assert_eq!(Noted::groups(&other), None);
    }
}
