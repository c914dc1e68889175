//! A public key in the path, `/k/<key>/…`, for clients that can send none anywhere else.
//!
//! It is taken out of the path before anything else looks at it: no route, no answer and no line of the log knows it.

use http::{HeaderValue, Uri, header, request::Parts, uri::PathAndQuery};

use super::{answer::Refusal, credentials::Credentials, problem::Problem, protocol::Protocol};
use crate::tenants::Caller;

/// What begins such a path.
const BEFORE: &str = "/k/";

/// The key that stood in a path; never printed.
pub(super) struct PathKey(String);

/// Takes the key out of the path; the rest is the path of its protocol.
pub(super) fn take(parts: &mut Parts) -> Option<PathKey> {
    let whole = parts.uri.path_and_query()?.as_str();
    // A key has no `?`: a query before the second slash leaves nothing behind the key.
    let (key, _) = whole.strip_prefix(BEFORE)?.split_once('/')?;
    if key.is_empty() || key.contains('?') {
        return None;
    }
    let (key, rest) = (key.to_owned(), whole.get(BEFORE.len() + key.len()..)?);
    let rest = rest.parse::<PathAndQuery>().ok()?;
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = Some(rest);
    parts.uri = Uri::from_parts(uri).ok()?;
    Some(PathKey(key))
}

/// A path as it may be told and logged: where a key may be in it, not at all.
pub(super) fn told(path: &str) -> String {
    match path.starts_with(BEFORE) {
        true => format!("{BEFORE}…"),
        false => path.chars().take(100).collect(),
    }
}

/// What the head and the path say about the key together.
pub(super) fn with_path<'a>(found: Credentials<'a>, key: Option<&'a PathKey>) -> Credentials<'a> {
    match (key, found) {
        (None, found) => found,
        (Some(_), Credentials::Conflict) => Credentials::Conflict,
        (Some(key), Credentials::Key(other)) if other != key.0.as_str() => Credentials::Conflict,
        (Some(key), _) => Credentials::Key(key.0.as_str().into()),
    }
}

impl PathKey {
    /// `None` where it may stand in a path, else what to tell whoever put it there.
    pub(super) fn fault(&self) -> Option<&'static str> {
        (!crate::tenants::is_public(&self.0)).then_some(
            "only a public key (tgp_…) may stand in a path, where everybody on the way can read it; take another one",
        )
    }
}

/// What a public key may not do: send by protocols that are no page's, or from a page that is not its own.
pub(super) fn allowed(parts: &Parts, protocol: &Protocol, caller: &Caller) -> Result<(), Refusal> {
    let Some(origins) = caller.public() else { return Ok(()) };
    let forbidden = |detail: String| Err(Refusal::problem(Problem::KEY_FORBIDDEN, detail));
    if protocol.cors.is_none() {
        return forbidden(format!(
            "a public key may not send by {}: take one of the tenant's secret keys",
            protocol.name
        ));
    }
    let is_known =
        |origin: &HeaderValue| origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
    let mut sent = parts.headers.get_all(header::ORIGIN).iter();
    // An image's request, or an app's, has no origin: those are for the tenant's quota.
    if !origins.is_empty() && !sent.all(is_known) {
        return forbidden("this key is not for pages of this origin".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(uri: &str) -> (Option<String>, String) {
        let mut parts = http::Request::get(uri).body(()).unwrap().into_parts().0;
        let key = take(&mut parts).map(|key| key.0);
        (key, parts.uri.to_string())
    }

    #[test]
    fn a_key_is_taken_out_and_the_rest_stays() {
        for (uri, key, rest) in [
            ("/k/tgp_a/i?e=pv&u=/k/b/", Some("tgp_a"), "/i?e=pv&u=/k/b/"),
            ("/k/tgp_a/v1/batch", Some("tgp_a"), "/v1/batch"),
            ("http://h:1/k/tgp_a/i", Some("tgp_a"), "http://h:1/i"),
            ("/k/a/", Some("a"), "/"),
            ("/k/a//k/b/i", Some("a"), "//k/b/i"),
            ("/k/a", None, "/k/a"),
            ("/k/a?b/c", None, "/k/a?b/c"),
            ("/k//i", None, "/k//i"),
            ("/v1/events", None, "/v1/events"),
            ("/kk/a/i", None, "/kk/a/i"),
        ] {
            assert_eq!(taken(uri), (key.map(str::to_owned), rest.to_owned()), "{uri}");
        }
        assert_eq!(told("/k/secret"), "/k/…");
        assert_eq!(told("/other"), "/other");
    }

    proptest! {
        #[test]
        fn any_path_behind_a_key_is_what_it_was(path in "(/[a-z0-9_.%]{0,5}){1,4}", query in "[a-z0-9=&%/]{0,9}") {
            let rest = format!("{path}?{query}");
            let with = format!("/k/tgp_x{rest}");
            prop_assert_eq!(taken(&with), (Some("tgp_x".to_owned()), rest));
        }
    }
}
