//! Tokens for `OAUTHBEARER`: the client's id and secret for a token, at an OpenID provider's endpoint.

use std::{error::Error, time::Duration};

use rdkafka::client::OAuthToken;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::config::Sasl;
use crate::clock::{Clock, SystemClock};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A token is used for at most so long, and for at least a little, whatever is said of it.
const LIFETIME: std::ops::RangeInclusive<u64> = 10..=86_400;

/// Where tokens are had from.
#[derive(Clone)]
pub(super) struct Tokens {
    sasl: Sasl,
    runtime: Handle,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Option<u64>,
}

impl Tokens {
    pub fn new(sasl: Sasl, runtime: Handle) -> Self {
        Self { sasl, runtime }
    }

    /// A new token. Blocks; never called on a thread of the runtime, but on those that poll clients.
    pub fn fetch(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let url = self.sasl.token_url.as_deref().ok_or("token_url is missing")?;
        let secret = self.sasl.secret()?;
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.sasl.scope {
            form.append_pair("scope", scope);
        }
        // reqwest brings no crypto provider of its own. An error says that one is installed already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let request = client
            .post(url)
            .basic_auth(&self.sasl.user, Some(secret))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(form.finish());
        let answer = self.runtime.block_on(async {
            let answer = request.send().await?.error_for_status()?;
            answer.bytes().await
        })?;
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| "the answer holds no access_token")?;
        let lifetime = answer.expires_in.unwrap_or(300).clamp(*LIFETIME.start(), *LIFETIME.end());
        let now = SystemClock.now().0 / 1_000;
        Ok(OAuthToken {
            token: answer.access_token,
            principal_name: self.sasl.user.clone(),
            lifetime_ms: now + i64::try_from(lifetime * 1_000)?,
        })
    }
}
