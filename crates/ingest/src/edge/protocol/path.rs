//! Paths with places in them, such as `/v3/send/{channel}`.

use std::borrow::Cow;

use http::request::Parts;

use super::Route;

/// True where `path` is what `pattern` says. A place in braces stands for one segment that is not
/// empty.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let Some(at) = pattern.find('{') else { return pattern == path };
    // Most paths are no match already before the first place.
    let (Some((before, pattern)), Some((same, path))) =
        (pattern.split_at_checked(at), path.split_at_checked(at))
    else {
        return false;
    };
    before == same && places(pattern, path).all(|(pattern, found)| fits(pattern, found))
}

fn is_place(segment: &str) -> bool {
    segment.starts_with('{') && segment.ends_with('}')
}

fn fits(pattern: Option<&str>, found: Option<&str>) -> bool {
    match (pattern, found) {
        (Some(pattern), Some(found)) if is_place(pattern) => !found.is_empty(),
        (pattern, found) => pattern == found,
    }
}

/// The segments of both, side by side.
fn places<'a>(
    pattern: &'a str,
    path: &'a str,
) -> impl Iterator<Item = (Option<&'a str>, Option<&'a str>)> {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    std::iter::from_fn(move || match (pattern.next(), path.next()) {
        (None, None) => None,
        pair => Some(pair),
    })
}

/// What stands at a place of the path by which the request came, percent-decoded once; `None` where
/// the path has no such place. Bytes that are no UTF-8 become U+FFFD.
pub(super) fn place<'a>(routes: &[Route], parts: &'a Parts, name: &str) -> Option<Cow<'a, str>> {
    let path = parts.uri.path();
    let route = routes.iter().find(|route| matches(route.path, path))?;
    let mut both = route.path.split('/').zip(path.split('/'));
    let (_, found) =
        both.find(|(pattern, _)| is_place(pattern) && pattern.trim_matches(['{', '}']) == name)?;
    Some(match String::from_utf8_lossy(&percent_decoded(found)) {
        Cow::Borrowed(_) if !found.contains('%') => Cow::Borrowed(found),
        decoded => Cow::Owned(decoded.into_owned()),
    })
}

/// One round of percent-decoding; a `%` without two digits behind it stands for itself.
pub(in crate::edge) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.first_chunk::<2>().filter(|_| *first == b'%');
        let digits = digits.and_then(|d| std::str::from_utf8(d).ok());
        // from_str_radix alone would take a sign.
        let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{Method, Request};
    use proptest::prelude::*;

    use super::*;

    const ROUTES: &[Route] = &[
        Route { methods: &[Method::POST], path: "/a/{first}/_b/{second}" },
        Route { methods: &[Method::POST], path: "/v3/send/{channel}" },
    ];

    #[test]
    fn a_place_is_one_segment_that_is_not_empty() {
        for (pattern, path, expected) in [
            ("/v1/events", "/v1/events", true),
            ("/v1/events", "/v1/events/", false),
            ("/v3/send/{channel}", "/v3/send/x", true),
            ("/v3/send/{channel}", "/v3/send/", false),
            ("/v3/send/{channel}", "/v3/send", false),
            ("/v3/send/{channel}", "/v3/send/x/y", false),
            ("/{index}/_bulk", "/a.b/_bulk", true),
            ("/{index}/_bulk", "/_bulk", false),
            ("/{index}/_bulk", "//_bulk", false),
            ("/{index}/_create/{id}", "/a/_create/7", true),
            ("/{index}/_create/{id}", "/a/_create", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn what_stands_at_a_place_is_decoded_once() {
        let parts = |uri: &str| Request::post(uri).body(()).unwrap().into_parts().0;
        let at = |uri: &str, name: &str| place(ROUTES, &parts(uri), name).map(Cow::into_owned);
        assert_eq!(at("/a/x%20y/_b/%252e?q=1", "first").as_deref(), Some("x y"));
        assert_eq!(at("/a/x%20y/_b/%252e?q=1", "second").as_deref(), Some("%2e"));
        assert_eq!(at("/v3/send/a%2Fb", "channel").as_deref(), Some("a/b"));
        assert_eq!(at("/v3/send/%ff", "channel").as_deref(), Some("\u{fffd}"));
        assert_eq!(at("/v3/send/x", "first"), None);
        assert_eq!(at("/other", "first"), None);
    }

    proptest! {
        #[test]
        fn any_segment_without_a_slash_fits_a_place(name in "[^/{}?#]{1,20}") {
            let path = format!("/v3/send/{name}");
            let fits = matches("/v3/send/{channel}", &path);
            prop_assert!(fits);
        }

        #[test]
        fn a_pattern_without_places_is_itself_alone(path in "(/[a-z0-9_.]{0,5}){0,4}", other in "(/[a-z0-9_.]{0,5}){0,4}") {
            prop_assert_eq!(matches(&path, &other), path == other);
        }
    }
}
