//! The HTTP/1.1 library's own refusals, which have no body: given ours instead.
//!
//! What cannot be parsed at all, or goes far beyond the limits, never becomes a request: the library
//! answers it before any of our code runs. Its answer passes through here on its way out.

use super::{
    answer::{self, Refusal},
    problem::Problem,
};
use crate::metrics;

/// Our answer in place of the library's own; `None` where `answer` is not one of those.
pub(super) fn instead_of(answer: &[u8]) -> Option<Vec<u8>> {
    let status = answer.strip_prefix(b"HTTP/1.1 4").or(answer.strip_prefix(b"HTTP/1.0 4"))?;
    let has = |text: &[u8]| memchr::memmem::find(answer, text).is_some();
    // Ours have a body, and an id.
    if !answer.ends_with(b"\r\n\r\n") || !has(b"content-length: 0\r\n") || has(b"x-request-id") {
        return None;
    }
    let (problem, detail) = match status.get(..2) {
        Some(b"31" | b"14") => (
            Problem::HEADERS_TOO_LARGE,
            "far more, or far larger headers than are taken; or a path that is far too long",
        ),
        _ => (Problem::BAD_REQUEST, "the request cannot be parsed as HTTP/1.1"),
    };
    let id = uuid::Uuid::now_v7().to_string();
    let refusal = Refusal::problem(problem, detail);
    let body = answer::refuse_with(&id, &refusal).into_body();
    let body = body.into_inner().unwrap_or_default();
    metrics::requests("none", if problem.status == 431 { "431" } else { "400" }, 1);
    let reason =
        if problem.status == 431 { "Request Header Fields Too Large" } else { "Bad Request" };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\nx-request-id: {id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        problem.status,
        body.len(),
    );
    Some([head.as_bytes(), &body].concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_bodiless_refusals_without_an_id_are_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: x\r\n\r\n";
        let ours = String::from_utf8(instead_of(bare.as_bytes()).unwrap()).unwrap();
        assert!(ours.starts_with("HTTP/1.1 431 "), "{ours}");
        assert!(ours.contains("\"code\":\"headers_too_large\""), "{ours}");
        let unparsed = bare.replace("431 Request Header Fields Too Large", "400 Bad Request");
        let ours = String::from_utf8(instead_of(unparsed.as_bytes()).unwrap()).unwrap();
        assert!(ours.contains("\"code\":\"bad_request\""), "{ours}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "",
        ] {
            assert_eq!(instead_of(other.as_bytes()), None, "{other}");
        }
    }
}
