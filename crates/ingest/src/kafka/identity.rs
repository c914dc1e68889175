//! The log's id: made once by whoever is first, kept in the state topic, so that offsets of two logs
//! never mix.
//!
//! librdkafka's interface does not tell a topic's own id. What a topic that was made anew under the old
//! name would do, is found out by the books instead (`ledger`).

use std::{sync::Arc, time::Duration};

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{
    client::Clients,
    state::{Kept, Pulse, Store, TakeOverError},
};
use crate::sink::state::SaveError;

const FORMAT: u32 = 1;
const KEY: &str = "log";
/// Others may be at the same: whoever was overtaken looks again,
const TRIES: u32 = 20;
/// after a wait of its own, longer each time: else two would overtake each other for ever.
const WAIT: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    log_id: String,
    topic: String,
}

/// Why there is no id.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state topic cannot be used.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// What is kept is not ours.
    #[error("topic {topic} holds no state of this log: {why}")]
    Foreign {
        /// The state topic.
        topic: String,
        /// What is wrong.
        why: String,
    },
    /// It cannot be written.
    #[error("the log's id cannot be kept: {0}")]
    Save(#[from] SaveError),
}

impl IdentityError {
    /// Another process was at the same, and came after us.
    fn is_overtaken(&self) -> bool {
        match self {
            Self::TakeOver(error) => error.is_overtaken(),
            Self::Save(error) => matches!(error, SaveError::Fenced),
            Self::Foreign { .. } => false,
        }
    }
}

/// The id of the log on this topic.
pub(super) fn identify(clients: &Clients) -> Result<String, IdentityError> {
    let mut tries = 0;
    loop {
        match look_or_make(clients) {
            Err(error) if error.is_overtaken() && tries < TRIES => {
                tries += 1;
                std::thread::sleep(rand::rng().random_range(Duration::ZERO..tries.min(10) * WAIT));
            }
            done => return done,
        }
    }
}

fn look_or_make(clients: &Clients) -> Result<String, IdentityError> {
    let (topic, name) = (clients.config.state_topic(), &clients.config.topic);
    let pulse = Arc::new(Pulse::new(Duration::MAX));
    let kept = Kept::take_over(clients, &topic, 0, &format!("{topic}-id"), pulse)?;
    if let Some(text) = Store::get(&*kept, KEY) {
        return known(&text, name).map_err(|why| IdentityError::Foreign { topic, why });
    }
    let log_id = random();
    let made = Identity { format: FORMAT, log_id: log_id.clone(), topic: name.clone() };
    let text = serde_json::to_vec(&made).map_err(|e| SaveError::Io(e.into()))?;
    kept.put(KEY, &text)?;
    Ok(log_id)
}

fn known(text: &[u8], topic: &str) -> Result<String, String> {
    let identity: Identity = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if identity.format != FORMAT {
        return Err(format!("format {}, this program knows {FORMAT}", identity.format));
    }
    if identity.topic != topic {
        return Err(format!("it is of topic {}", identity.topic));
    }
    if identity.log_id.len() != 8 || !identity.log_id.bytes().all(valid) {
        return Err(format!("{:?} is no id of a log", identity.log_id));
    }
    Ok(identity.log_id)
}

fn random() -> String {
    let mut random = rand::rng();
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let letter = |_| {
        let at = random.random_range(0..letters.len());
        char::from(letters.get(at).copied().unwrap_or(b'a'))
    };
    (0..8).map(letter).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_eight_letters_and_reads_back() {
        let log_id = random();
        let made = Identity { format: FORMAT, log_id: log_id.clone(), topic: "t".to_owned() };
        let text = serde_json::to_vec(&made).unwrap();
        assert_eq!(known(&text, "t"), Ok(log_id));
        assert!(known(&text, "other").unwrap_err().contains("of topic t"));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"format":2,"log_id":"abcdefgh","topic":"t"}"#,
            r#"{"format":1,"log_id":"ABCDEFGH","topic":"t"}"#,
            r#"{"format":1,"log_id":"a","topic":"t"}"#,
        ] {
            assert!(known(text.as_bytes(), "t").is_err(), "{text}");
        }
    }
}
