//! Who may speak to the admin side.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use subtle::ConstantTimeEq;

use super::{AdminConfig, Problem};

/// What is checked before any handler runs.
pub(super) struct Guard {
    token: Option<String>,
    token_needed: bool,
    loopback: bool,
    hosts: Vec<String>,
}

/// The admin token that a configuration names.
///
/// # Errors
/// What is wrong with the file or variable it names.
pub fn token_of(config: &AdminConfig) -> Result<Option<String>, String> {
    let Some(text) = &config.token else { return Ok(None) };
    let token = if let Some(path) = text.strip_prefix("file:") {
        std::fs::read_to_string(path).map_err(|e| format!("admin.token: {path}: {e}"))?
    } else if let Some(name) = text.strip_prefix("env:") {
        std::env::var(name).map_err(|e| format!("admin.token: {name}: {e}"))?
    } else {
        text.clone()
    };
    match token.trim() {
        "" => Err("admin.token: is empty".to_owned()),
        token => Ok(Some(token.to_owned())),
    }
}

impl Guard {
    pub(super) fn new(config: &AdminConfig, token: Option<String>, address: SocketAddr) -> Self {
        let configured = config.listen.rsplit_once(':').map_or("", |(host, _)| host);
        let mut hosts: Vec<String> =
            ["localhost", "127.0.0.1", "[::1]", configured].map(str::to_owned).to_vec();
        hosts.push(match address {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        });
        let loopback = address.ip().is_loopback();
        Self { token_needed: !loopback || token.is_some(), token, loopback, hosts }
    }

    fn knows(&self, authority: &str) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        };
        // Off loopback the names by which a network reaches us are not ours to know: there the token
        // is what protects.
        let any = !self.loopback && self.token.is_some();
        any || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    fn refuse(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Option<Problem> {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let host = text(header::HOST).or_else(|| uri.authority().map(|a| a.as_str()));
        if !host.is_some_and(|host| self.knows(host)) {
            let detail = "this Host is not served here; use the address it listens on";
            return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", detail));
        }
        if matches!(path, "/healthz" | "/readyz" | "/metrics") {
            return None;
        }
        if let Some(origin) = text(header::ORIGIN) {
            let own = origin.split_once("://").is_some_and(|(_, rest)| Some(rest) == host);
            if !own {
                let detail = "requests of other origins are refused";
                return Some(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail));
            }
        }
        let json = |media: &str| {
            let media = media.split(';').next().unwrap_or_default().trim();
            matches!(media, "application/json" | "application/x-ndjson")
        };
        let writes = !matches!(*method, Method::GET | Method::HEAD);
        if writes && !text(header::CONTENT_TYPE).is_some_and(json) {
            let detail = "send writes as application/json";
            return Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail));
        }
        (self.token_needed && !self.presents_token(text(header::AUTHORIZATION))).then(|| {
            let detail = if self.token.is_some() {
                "present the admin token: Authorization: Bearer <token>"
            } else {
                "off loopback this needs a token; set admin.token in the configuration"
            };
            Problem::new(StatusCode::UNAUTHORIZED, "admin_token", detail)
        })
    }

    fn presents_token(&self, authorization: Option<&str>) -> bool {
        let presented = authorization.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
        let known = self.token.as_deref().unwrap_or_default();
        self.token.is_some() && bool::from(presented.as_bytes().ct_eq(known.as_bytes()))
    }
}

pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method(), request.uri());
    match guard.refuse(method, uri.path(), request.headers(), uri) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn verdict(guard: &Guard, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let method = method.parse().unwrap();
        let refused = guard.refuse(&method, path, &map, &path.parse().unwrap());
        refused.map(|p| p.into_response().status().as_u16())
    }

    #[test]
    fn a_web_page_cannot_reach_it() {
        let guard = Guard::new(&AdminConfig::default(), None, "127.0.0.1:8081".parse().unwrap());
        let local = ("host", "127.0.0.1:8081");
        let json = ("content-type", "application/json");
        assert_eq!(verdict(&guard, "GET", "/api/v1/status", &[local]), None);
        assert_eq!(
            verdict(&guard, "GET", "/api/v1/status", &[("host", "evil.example")]),
            Some(421)
        );
        assert_eq!(verdict(&guard, "GET", "/api/v1/status", &[]), Some(421));
        let foreign = ("origin", "http://evil.example");
        assert_eq!(verdict(&guard, "GET", "/api/v1/status", &[local, foreign]), Some(403));
        let own = ("origin", "http://127.0.0.1:8081");
        assert_eq!(verdict(&guard, "POST", "/api/v1/reload", &[local, own, json]), None);
        assert_eq!(verdict(&guard, "POST", "/api/v1/reload", &[local]), Some(415));
        let form = ("content-type", "text/plain");
        assert_eq!(verdict(&guard, "POST", "/api/v1/reload", &[local, form]), Some(415));
    }

    #[test]
    fn off_loopback_it_needs_the_token() {
        let address = "192.0.2.1:8081".parse().unwrap();
        let host = ("host", "192.0.2.1:8081");
        let open = Guard::new(&AdminConfig::default(), None, address);
        assert_eq!(verdict(&open, "GET", "/api/v1/status", &[host]), Some(401));
        assert_eq!(verdict(&open, "GET", "/readyz", &[host]), None);
        assert_eq!(verdict(&open, "GET", "/metrics", &[host]), None);
        let closed = Guard::new(&AdminConfig::default(), Some("s3cret".into()), address);
        let named = ("host", "tidegate.internal");
        let token = ("authorization", "Bearer s3cret");
        assert_eq!(verdict(&closed, "GET", "/api/v1/status", &[named, token]), None);
        let wrong = ("authorization", "Bearer s3cre");
        assert_eq!(verdict(&closed, "GET", "/api/v1/status", &[named, wrong]), Some(401));
        assert_eq!(verdict(&closed, "GET", "/api/v1/status", &[named]), Some(401));
    }

    #[test]
    fn on_loopback_a_token_does_not_open_it_to_foreign_hosts() {
        let address = "127.0.0.1:8081".parse().unwrap();
        let guard = Guard::new(&AdminConfig::default(), Some("s3cret".into()), address);
        let token = ("authorization", "Bearer s3cret");
        let rebound = ("host", "evil.example");
        assert_eq!(verdict(&guard, "GET", "/metrics", &[rebound]), Some(421));
        assert_eq!(verdict(&guard, "GET", "/api/v1/status", &[rebound, token]), Some(421));
        let local = ("host", "localhost:8081");
        assert_eq!(verdict(&guard, "GET", "/api/v1/status", &[local, token]), None);
    }
}
