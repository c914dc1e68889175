//! What a request's head says: limits, request id, trace, key, media type, query.

use std::borrow::Cow;

use http::{HeaderMap, header, request::Parts};

use super::Limits;

/// Bytes of all headers together, as HTTP/1.1 would send them.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// What is too much in the head, if anything is.
pub(super) fn too_large(parts: &Parts, limits: &Limits) -> Option<String> {
    let (count, count_max) = (parts.headers.len(), limits.headers);
    if count_max < count {
        return Some(format!("{count} headers; at most {count_max} are taken"));
    }
    let line = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let (bytes, bytes_max) = (header_bytes(&parts.headers) + line, limits.header_bytes.get());
    (bytes_max < bytes).then(|| format!("{bytes} bytes of headers; at most {bytes_max} are taken"))
}

/// The client's `X-Request-Id` where it is sane: 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub(super) fn request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("x-request-id")?.to_str().ok()?;
    let sane = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (!text.is_empty() && text.len() <= 64 && text.bytes().all(sane)).then_some(text)
}

/// Trace id and parent id of a valid W3C `traceparent`; anything else is ignored.
pub(super) fn trace(headers: &HeaderMap) -> Option<(&str, &str)> {
    let mut values = headers.get_all("traceparent").iter();
    let (text, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let mut fields = text.split('-');
    let (version, trace, parent, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    let sized = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let known = version != "ff" && (version != "00" || fields.next().is_none());
    (sized && known && !zero(trace) && !zero(parent)).then_some((trace, parent))
}

/// A valid `traceparent` as it came.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    trace(headers)?;
    headers.get("traceparent")?.to_str().ok()
}

/// The media type in lower case, without parameters; `None` where there is none, or several.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let text = value.to_str().ok()?.split(';').next()?.trim();
    (!text.is_empty()).then(|| text.to_ascii_lowercase())
}

/// The charset that the media type names, in lower case.
#[must_use]
pub fn charset(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let parameters = text.split(';').skip(1).filter_map(|part| part.split_once('='));
    let mut charsets = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    charsets.next().map(|(_, value)| value.trim().trim_matches('"').to_ascii_lowercase())
}

/// The value of `name` in the query, percent-decoded; `Err` where it stands twice or is no UTF-8.
pub fn query<'a>(parts: &'a Parts, name: &str) -> Result<Option<Cow<'a, str>>, String> {
    let text = parts.uri.query().unwrap_or_default();
    let mut found = None;
    for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
        if key != name {
            continue;
        }
        if found.is_some() {
            return Err(format!("{name} stands twice in the query"));
        }
        if value.contains(char::REPLACEMENT_CHARACTER) {
            return Err(format!("{name} in the query is no UTF-8"));
        }
        found = Some(value);
    }
    Ok(found)
}

/// The text of a header that may stand once; `Err` where it stands twice or is no text.
pub fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(format!("{name} stands twice in the headers"));
    }
    let text = std::str::from_utf8(value.as_bytes());
    text.map(|text| Some(text.trim())).map_err(|_| format!("the header {name} is no UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post("/v1/events?a=1%202&b=x&b=y");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_sane_request_id_is_taken() {
        let id = |text: &str| request_id(&parts(&[("x-request-id", text)]).headers).is_some();
        assert!(id("abc-1._Z"));
        for bad in ["", "a b", "a\"b", &"x".repeat(65), "\u{e9}"] {
            assert!(!id(bad), "{bad}");
        }
    }

    #[test]
    fn only_a_valid_traceparent_is_taken() {
        let (trace_id, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let of = |text: &str| {
            let parts = parts(&[("traceparent", text)]);
            trace(&parts.headers).map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        let good = Some((trace_id.to_owned(), parent.to_owned()));
        assert_eq!(of(&format!("00-{trace_id}-{parent}-01")), good);
        assert_eq!(of(&format!("cc-{trace_id}-{parent}-01-more")), good);
        for bad in [
            String::new(),
            format!("00-{trace_id}-{parent}"),
            format!("00-{trace_id}-{parent}-01-more"),
            format!("ff-{trace_id}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace_id}-{}-01", "0".repeat(16)),
            format!("00-{}-{parent}-01", trace_id.to_uppercase()),
            format!("00-{trace_id}-{parent}-zz"),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
        let twice = parts(&[("traceparent", "a"), ("traceparent", "b")]);
        assert_eq!(trace(&twice.headers), None);
    }

    #[test]
    fn media_type_and_query_are_read() {
        let parts = parts(&[("content-type", "Application/JSON; Charset=\"UTF-8\"")]);
        assert_eq!(media_type(&parts.headers).as_deref(), Some("application/json"));
        assert_eq!(charset(&parts.headers).as_deref(), Some("utf-8"));
        assert_eq!(query(&parts, "a").unwrap().as_deref(), Some("1 2"));
        assert_eq!(query(&parts, "c").unwrap(), None);
        assert!(query(&parts, "b").is_err());
    }
}
