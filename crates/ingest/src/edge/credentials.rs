//! Where a key may stand in a request's head; each protocol names its own places.

use std::borrow::Cow;

use base64::{Engine, engine::GeneralPurpose, engine::general_purpose};
use http::{HeaderName, HeaderValue, header, request::Parts};

use super::sigv4;

/// A place for a key in the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer <key>`
    Bearer,
    /// `X-Api-Key: <key>`
    ApiKeyHeader,
    /// `Authorization: Basic`, the key as user; the password is read over.
    BasicUser,
    /// `Authorization: Basic`, the key as password; the user is read over.
    BasicPassword,
    /// `Authorization: Splunk <key>`
    Splunk,
    /// `Authorization: ApiKey <key>`, or base64 of `id:key` as Elasticsearch's clients send it.
    ApiKeyScheme,
    /// `X-Amz-Firehose-Access-Key: <key>`
    FirehoseAccessKey,
    /// `Authorization: AWS4-HMAC-SHA256 …`: no key, but what was signed with one ([`super::sigv4`]).
    SigV4,
}

impl Carrier {
    /// How a key is sent so, for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Bearer => "`Authorization: Bearer <key>`",
            Self::ApiKeyHeader => "`X-Api-Key`",
            Self::BasicUser => "the user of `Authorization: Basic`",
            Self::BasicPassword => "the password of `Authorization: Basic`",
            Self::Splunk => "`Authorization: Splunk <key>`",
            Self::ApiKeyScheme => "`Authorization: ApiKey <key>`",
            Self::FirehoseAccessKey => "`X-Amz-Firehose-Access-Key`",
            Self::SigV4 => "an AWS Signature Version 4 in `Authorization`",
        }
    }

    fn header(self) -> HeaderName {
        match self {
            Self::ApiKeyHeader => HeaderName::from_static("x-api-key"),
            Self::FirehoseAccessKey => HeaderName::from_static("x-amz-firehose-access-key"),
            _ => header::AUTHORIZATION,
        }
    }

    /// The key in a header's value; `None` where it is of another form, or empty.
    fn key<'a>(self, value: &'a str) -> Option<Cow<'a, str>> {
        let scheme = match self {
            Self::ApiKeyHeader | Self::FirehoseAccessKey => {
                return Some(Cow::Borrowed(value.trim()));
            }
            Self::Bearer => "bearer",
            Self::BasicUser | Self::BasicPassword => "basic",
            Self::Splunk => "splunk",
            Self::ApiKeyScheme => "apikey",
            Self::SigV4 => sigv4::ALGORITHM,
        };
        let (found, rest) = value.trim().split_once(' ')?;
        let rest = rest.trim();
        if !found.eq_ignore_ascii_case(scheme) {
            return None;
        }
        let part = |user: bool| {
            let (name, password) = pair(rest)?;
            Some(if user { name } else { password }).filter(|key| !key.is_empty())
        };
        match self {
            Self::BasicUser => part(true).map(Cow::Owned),
            Self::BasicPassword => part(false).map(Cow::Owned),
            // Our own keys hold `_`, which base64 as it is used here does not.
            Self::ApiKeyScheme => {
                part(false).map_or(Some(Cow::Borrowed(rest)), |k| Some(Cow::Owned(k)))
            }
            _ => Some(Cow::Borrowed(rest)),
        }
    }
}

/// What the head says about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials<'a> {
    /// Nothing, or in a form that is not taken here.
    Missing,
    /// Keys that are not the same, or one that cannot be read.
    Conflict,
    /// One key.
    Key(Cow<'a, str>),
}

/// Padding is taken and not asked for.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    general_purpose::PAD.with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// `name:secret` in base64.
fn pair(text: &str) -> Option<(String, String)> {
    let plain = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
    let (name, secret) = plain.split_once(':')?;
    Some((name.to_owned(), secret.to_owned()))
}

/// The one key that stands where `carriers` say; it may stand in several of these places, if they
/// agree.
#[must_use]
pub fn find<'a>(parts: &'a Parts, carriers: &[Carrier]) -> Credentials<'a> {
    let mut found = Credentials::Missing;
    let mut looked: Option<HeaderName> = None;
    for carrier in carriers {
        let name = carrier.header();
        // All carriers of one header are tried on each of its values.
        if looked.as_ref() == Some(&name) {
            continue;
        }
        for value in parts.headers.get_all(&name) {
            let Some(key) = key_of(value, &name, carriers) else { continue };
            match (&found, key) {
                (_, Err(())) => return Credentials::Conflict,
                (Credentials::Key(other), Ok(key)) if *other != key => {
                    return Credentials::Conflict;
                }
                (_, Ok(key)) => found = Credentials::Key(key),
            }
        }
        looked = Some(name);
    }
    found
}

fn key_of<'a>(
    value: &'a HeaderValue,
    name: &HeaderName,
    carriers: &[Carrier],
) -> Option<Result<Cow<'a, str>, ()>> {
    let Ok(text) = value.to_str() else { return Some(Err(())) };
    let of_this = carriers.iter().filter(|carrier| carrier.header() == *name);
    of_this.filter_map(|carrier| carrier.key(text)).next().map(Ok)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(carriers: &[Carrier], headers: &[(&str, &str)], expected: Option<&str>) {
        let expected = match expected {
            None => Credentials::Missing,
            Some("!") => Credentials::Conflict,
            Some(key) => Credentials::Key(key.into()),
        };
        assert_eq!(find(&parts(headers), carriers), expected, "{headers:?}");
    }

    #[test]
    fn a_key_is_found_once_or_twice_the_same() {
        const OWN: &[Carrier] = &[Carrier::Bearer, Carrier::ApiKeyHeader];
        check(OWN, &[], None);
        check(OWN, &[("authorization", "Basic abc")], None);
        check(OWN, &[("authorization", "Bearer k")], Some("k"));
        check(OWN, &[("authorization", "bearer  k ")], Some("k"));
        check(OWN, &[("x-api-key", " k")], Some("k"));
        check(OWN, &[("authorization", "Bearer k"), ("x-api-key", "k")], Some("k"));
        check(OWN, &[("authorization", "Bearer k"), ("x-api-key", "j")], Some("!"));
        check(OWN, &[("x-api-key", "k"), ("x-api-key", "j")], Some("!"));
        check(OWN, &[("x-api-key", "\u{e9}")], Some("!"));
        check(OWN, &[("authorization", "Bearer k"), ("authorization", "Bearer j")], Some("!"));
    }

    #[test]
    fn each_form_of_authorization_is_read_where_it_is_taken_and_nowhere_else() {
        use Carrier::{ApiKeyScheme, BasicPassword, BasicUser, Splunk};
        // `key:` and `id:key`.
        let (user, both) = ("Basic a2V5Og==", "Basic aWQ6a2V5");
        check(&[BasicUser], &[("authorization", user)], Some("key"));
        check(&[BasicUser], &[("authorization", "basic a2V5Og")], Some("key"));
        check(&[BasicUser], &[("authorization", both)], Some("id"));
        check(&[BasicPassword], &[("authorization", both)], Some("key"));
        check(&[BasicPassword], &[("authorization", user)], None);
        check(&[BasicUser], &[("authorization", "Basic ???")], None);
        check(&[BasicUser], &[("authorization", "Basic a2V5")], None);
        check(&[Splunk], &[("authorization", "Splunk tgk_dev")], Some("tgk_dev"));
        check(&[Splunk], &[("authorization", "Bearer tgk_dev")], None);
        check(&[Splunk, BasicPassword], &[("authorization", both)], Some("key"));
        check(&[ApiKeyScheme], &[("authorization", "ApiKey aWQ6a2V5")], Some("key"));
        check(&[ApiKeyScheme], &[("authorization", "ApiKey tgk_dev")], Some("tgk_dev"));
        check(&[Carrier::FirehoseAccessKey], &[("x-amz-firehose-access-key", "k")], Some("k"));
    }
}
