//! Browsers: who may read an answer, and what a page is told before it sends.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};

use super::answer::Answer;

/// What pages of other origins may do at a protocol's paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cors {
    /// True: the origin is echoed and cookies may be sent along, as some trackers insist on. Cookies
    /// mean nothing here.
    pub credentials: bool,
}

/// How long a browser may remember what it was told.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");
/// What a page may send where it asks for nothing by name.
const HEADERS: HeaderValue = HeaderValue::from_static("Authorization, Content-Type");
/// What a page may read of an answer.
const EXPOSED: HeaderValue = HeaderValue::from_static("Retry-After, X-Request-Id, X-Shed-Reason");

impl Cors {
    /// Adds what lets a page read the answer.
    pub(super) fn describe(self, parts: &Parts, headers: &mut HeaderMap) {
        let origin = parts.headers.get(header::ORIGIN);
        if self.credentials {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
            if let Some(origin) = origin {
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                let yes = HeaderValue::from_static("true");
                headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
            }
        } else {
            let anybody = HeaderValue::from_static("*");
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, anybody);
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }

    /// The answer to the question before a request. Whether that request is taken, its key decides.
    pub(super) fn preflight(parts: &Parts) -> Answer {
        let mut answer = Response::default();
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let asked = parts.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let headers = answer.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(&HEADERS).clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        answer
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn anybody_may_read_or_the_origin_that_asks_and_no_other() {
        let request = http::Request::options("/").header("origin", "https://a.example");
        let parts = request.body(()).unwrap().into_parts().0;
        let told = |credentials| {
            let mut headers = HeaderMap::new();
            Cors { credentials }.describe(&parts, &mut headers);
            let of = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
            (of("access-control-allow-origin"), of("access-control-allow-credentials"))
        };
        assert_eq!(told(false), (Some("*".to_owned()), None));
        assert_eq!(told(true), (Some("https://a.example".to_owned()), Some("true".to_owned())));
    }
}
