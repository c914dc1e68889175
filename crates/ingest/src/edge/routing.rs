//! Where a request goes by its path and method.

use http::{HeaderValue, Method, StatusCode, header, request::Parts};

use super::{
    answer::{self, Answer, Refusal},
    coding,
    cors::Cors,
    keyed,
    problem::Problem,
    protocol::{self, Protocol, Routed},
    request::Shared,
};

/// `/healthz` and `/readyz`.
pub(super) fn health(shared: &Shared, parts: &Parts) -> Option<Answer> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return None;
    }
    let well = match parts.uri.path() {
        "/healthz" => true,
        "/readyz" => is_well(shared),
        _ => return None,
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Some(answer::json(status, "application/json", &serde_json::json!({ "ok": well })))
}

pub(super) fn nothing_here(parts: &Parts) -> Refusal {
    let path = keyed::told(parts.uri.path());
    Refusal::problem(Problem::NO_SUCH_PATH, format!("nothing at {path:?}; events go to /v1/events"))
}

/// What becomes of a request by its path and method.
pub(super) enum Next {
    /// It brings events: those that share its path.
    Events(Vec<&'static Protocol>),
    /// It brings none.
    Answered(&'static Protocol, Answer),
}

/// What serves a request.
pub(super) fn next(shared: &Shared, parts: &Parts) -> Result<Next, Refusal> {
    let path = parts.uri.path();
    if matches!(path, "/healthz" | "/readyz") {
        return Err(wrong_method(&[&Method::GET, &Method::HEAD]));
    }
    match protocol::route(&parts.method, path) {
        Routed::Protocols(protocols) => Ok(Next::Events(protocols)),
        Routed::Probe(protocol, probe) => {
            Ok(Next::Answered(protocol, (probe.answer)(parts, is_well(shared))))
        }
        Routed::Preflight(protocol) => Ok(Next::Answered(protocol, Cors::preflight(parts))),
        Routed::WrongMethod(methods) => Err(wrong_method(&methods)),
        Routed::Nothing => Err(nothing_here(parts)),
    }
}

fn is_well(shared: &Shared) -> bool {
    !shared.is_draining() && shared.pressure.ready()
}

fn wrong_method(methods: &[&Method]) -> Refusal {
    let list: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
    let list = list.join(", ");
    let refusal = Refusal::problem(Problem::METHOD, format!("this path takes {list}"));
    match HeaderValue::from_str(&list) {
        Ok(value) => refusal.with(header::ALLOW, value),
        Err(_) => refusal,
    }
}

pub(super) fn wrong_media_type(parts: &Parts, candidates: &[&'static Protocol]) -> Refusal {
    let found = parts.headers.get(header::CONTENT_TYPE).map_or_else(
        || "there is no Content-Type".to_owned(),
        |value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            format!("the Content-Type is {:?}", text.chars().take(100).collect::<String>())
        },
    );
    let taken: Vec<&str> = candidates.iter().map(|protocol| protocol.media_types).collect();
    let detail = format!("{found}; taken here, in UTF-8: {}", taken.join(", "));
    Refusal::problem(Problem::MEDIA_TYPE, detail)
        .with(header::ACCEPT_ENCODING, HeaderValue::from_static(coding::TAKEN))
}
