//! Answers: what an error says, and the headers that every answer carries.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use rand::Rng;
use serde::Serialize;

use super::{problem::Problem, protocol::Call};
use crate::{
    faults::{Bug, planted},
    quota::Refused,
    shed::ShedReason,
};

/// An answer as it goes to the HTTP library.
pub(super) type Answer = Response<Full<Bytes>>;

/// An item of a request that was not accepted, as answers list it.
#[derive(Clone, Debug, Serialize)]
pub struct ItemError {
    /// The item's place in the request, from 0.
    pub index: u32,
    /// Its id, given by the client or made here; absent where it was rejected without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// One of `tidegate_event::Code`, as text.
    pub code: &'static str,
    /// Where: a JSON pointer into the event; empty for the whole of it.
    pub field: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl ItemError {
    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let id = self.event_id.as_ref().map_or(0, String::len);
        size_of::<Self>() + id + self.field.len() + self.message.len()
    }
}

/// Why a request as a whole is not answered with 200.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What kind.
    pub kind: Kind,
    /// What is wrong in this request, where, and how to mend it.
    pub detail: String,
    /// The reasons, where the items were looked at.
    pub errors: Vec<ItemError>,
    /// True where `errors` does not list all.
    pub errors_truncated: bool,
    /// A slot is held for the client: its Retry-After is told as it is.
    pub exact: bool,
    /// What else goes into the answer's headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The two families of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is at fault.
    Problem(Problem),
    /// Refused on purpose: the same request may succeed later.
    Shed(ShedReason, Duration),
}

impl Refusal {
    /// A request that is at fault.
    pub(super) fn problem(problem: Problem, detail: impl Into<String>) -> Self {
        Self {
            kind: Kind::Problem(problem),
            detail: detail.into(),
            errors: Vec::new(),
            errors_truncated: false,
            exact: false,
            headers: Vec::new(),
        }
    }

    /// A request that may come again `after` this long.
    pub(super) fn shed(reason: ShedReason, after: Duration) -> Self {
        Self {
            kind: Kind::Shed(reason, after),
            detail: reason.describe().to_owned(),
            errors: Vec::new(),
            errors_truncated: false,
            exact: false,
            headers: Vec::new(),
        }
    }

    /// A request over its tenant's quota.
    pub(super) fn over_quota(refused: &Refused) -> Self {
        Self { exact: refused.promised, ..Self::shed(refused.reason, refused.after) }
    }

    /// With one more header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            Kind::Problem(problem) => problem.code,
            Kind::Shed(reason, _) => reason.as_str(),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.kind {
            Kind::Problem(problem) => problem.status,
            Kind::Shed(reason, _) => reason.status(),
        }
    }

    /// The same, as the HTTP library has it.
    pub(super) fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [ItemError],
    #[serde(skip_serializing_if = "Option::is_none")]
    errors_truncated: Option<bool>,
}

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SHED_REASON: HeaderName = HeaderName::from_static("x-shed-reason");

/// A refusal as problem+json (RFC 9457).
pub(super) fn refuse(call: &Call<'_>, refusal: &Refusal) -> Answer {
    refuse_with(call.request_id, refusal)
}

/// The same, where there is no request to look at.
pub(super) fn refuse_with(request_id: &str, refusal: &Refusal) -> Answer {
    let status = refusal.status_code();
    let title = match refusal.kind {
        Kind::Problem(problem) => problem.title,
        Kind::Shed(..) => "Refused for now; send the same request again later.",
    };
    let body = ProblemJson {
        r#type: format!("urn:tidegate:problem:{}", refusal.code()),
        title,
        status: status.as_u16(),
        code: refusal.code(),
        detail: &refusal.detail,
        request_id,
        errors: &refusal.errors,
        errors_truncated: (!refusal.errors.is_empty()).then_some(refusal.errors_truncated),
    };
    let mut answer = json(status, "application/problem+json", &body);
    describe(refusal, &mut answer);
    answer
}

/// What a refusal says in the headers of any protocol's answer: when to come again, and why.
pub(super) fn describe(refusal: &Refusal, answer: &mut Answer) {
    let headers = answer.headers_mut();
    if let Kind::Shed(reason, after) = refusal.kind {
        if !planted(Bug::NoRetryAfter) {
            let seconds = retry_after_seconds(after, refusal.exact);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        headers.insert(SHED_REASON, HeaderValue::from_static(reason.as_str()));
    }
    for (name, value) in &refusal.headers {
        headers.append(name.clone(), value.clone());
    }
}

/// A refusal with a protocol's own body, under the status that it has everywhere.
pub(super) fn refuse_as(refusal: &Refusal, body: &impl Serialize) -> Answer {
    let mut answer = json(refusal.status_code(), "application/json", body);
    describe(refusal, &mut answer);
    answer
}

/// `body` as JSON.
pub(super) fn json(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> Answer {
    let (status, text) = match serde_json::to_vec(body) {
        Ok(text) => (status, text),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// The longest that anybody is told to stay away: until the next day begins.
const LONGEST_SECONDS: u64 = 86_400;
/// Clients that were refused together are spread over no more than this.
const SPREAD_SECONDS: u64 = 1800;

/// At least `after`, in whole seconds, and up to half as much again, so that clients which were
/// refused together do not come back together. Whose slot is held (`exact`) is alone there.
fn retry_after_seconds(after: Duration, exact: bool) -> u64 {
    let least = after.as_secs() + u64::from(after.subsec_nanos() != 0);
    let least = least.clamp(1, LONGEST_SECONDS);
    if exact {
        return least;
    }
    least + rand::rng().random_range(0..=least.div_ceil(2).min(SPREAD_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_slot_is_held_is_told_when_and_others_are_spread() {
        for (after, least) in [(0, 1), (1, 1), (1_001, 2), (90_000, 90), (50_000_000, 50_000)] {
            let after = Duration::from_millis(after);
            assert_eq!(retry_after_seconds(after, true), least);
            for _ in 0..100 {
                let told = retry_after_seconds(after, false);
                assert!((least..=least + least.div_ceil(2).min(1800)).contains(&told), "{told}");
            }
        }
        assert_eq!(retry_after_seconds(Duration::from_secs(1 << 40), true), 86_400);
    }
}
