//! Keys: `tgk_<id>_<secret><checksum>` or `tgp_…`, and what is kept of them.
//!
//! `tgk_` begins a secret key, `tgp_` a public one: it may stand in a page and in a path.
//! `id` is public, 12 characters; `secret` 43 characters (256 bits), `checksum` the CRC-32C of all
//! before it, 6 characters, so that scanners and typing errors are told apart from guesses. All of
//! them `0-9A-Za-z`.

use hmac::{Hmac, KeyInit, Mac};
use rand::TryRngCore;
use sha2::Sha256;
use subtle::ConstantTimeEq;

const PREFIX: &str = "tgk_";
const PUBLIC_PREFIX: &str = "tgp_";
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_CHARS: usize = 12;
const SECRET_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes from the operating system: {0}")]
pub struct NoRandom(rand::rand_core::OsError);

/// A key, just made: the only time that its text is known.
#[derive(Debug)]
pub struct NewKey {
    /// The public part.
    pub id: String,
    /// The whole.
    pub text: String,
}

/// Makes a secret key.
///
/// # Errors
/// [`NoRandom`].
pub fn generate() -> Result<NewKey, NoRandom> {
    with_prefix(PREFIX)
}

/// Makes a public key.
///
/// # Errors
/// [`NoRandom`].
pub fn generate_public() -> Result<NewKey, NoRandom> {
    with_prefix(PUBLIC_PREFIX)
}

/// True for a text that only a public key can be.
#[must_use]
pub fn is_public(text: &str) -> bool {
    text.starts_with(PUBLIC_PREFIX)
}

fn with_prefix(prefix: &str) -> Result<NewKey, NoRandom> {
    let id = random_text(ID_CHARS)?;
    let body = format!("{prefix}{id}_{}", random_text(SECRET_CHARS)?);
    let text = format!("{body}{}", checksum(&body));
    Ok(NewKey { id, text })
}

/// `N` random bytes.
///
/// # Errors
/// [`NoRandom`].
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(NoRandom)?;
    Ok(bytes)
}

pub(super) fn random_text(chars: usize) -> Result<String, NoRandom> {
    let mut text = String::with_capacity(chars);
    while text.len() < chars {
        // 248 is the largest multiple of 62 in a byte: no character is likelier than another.
        let fair = random_bytes::<64>()?.into_iter().filter(|b| *b < 248);
        let chars_left = chars - text.len();
        text.extend(fair.map(|b| digit(u32::from(b))).take(chars_left));
    }
    Ok(text)
}

fn digit(n: u32) -> char {
    ALPHABET.get(n as usize % 62).copied().map_or('0', char::from)
}

fn checksum(body: &str) -> String {
    let mut rest = crc32c::crc32c(body.as_bytes());
    let mut text = String::with_capacity(CHECKSUM_CHARS);
    for _ in 0..CHECKSUM_CHARS {
        text.push(digit(rest % 62));
        rest /= 62;
    }
    text
}

/// The id in a key that is well formed; `None` for anything else. Says nothing about its secret.
#[must_use]
pub fn id_of(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(PREFIX).or_else(|| text.strip_prefix(PUBLIC_PREFIX))?;
    let (id, secret) = rest.split_once('_')?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
    let sized = id.len() == ID_CHARS && secret.len() == SECRET_CHARS + CHECKSUM_CHARS;
    let (body, check) = text.split_at_checked(text.len().checked_sub(CHECKSUM_CHARS)?)?;
    (sized && plain(id) && plain(secret) && checksum(body) == check).then_some(id)
}

/// HMAC-SHA-256 of `text` under `pepper`.
#[must_use]
pub fn hash(pepper: &[u8; 32], text: &str) -> [u8; 32] {
    // HMAC takes keys of any length, so this always holds a value.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(pepper) else { return [0; 32] };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

/// Compares in a time that does not depend on where they differ.
#[must_use]
pub fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_random() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert_eq!(id_of(&a.text), Some(a.id.as_str()));
        assert_ne!(a.text, b.text);
        assert_ne!(a.id, b.id);
    }

    #[test]
    fn a_key_with_one_character_changed_or_missing_is_malformed() {
        let key = generate().unwrap().text;
        for at in 0..key.len() {
            let mut bytes = key.clone().into_bytes();
            if let Some(b) = bytes.get_mut(at) {
                *b = if *b == b'x' { b'y' } else { b'x' };
            }
            assert_eq!(id_of(&String::from_utf8(bytes).unwrap()), None, "{at}");
            assert_eq!(id_of(key.get(..at).unwrap()), None, "{at}");
        }
        for text in ["", "tgk_", "tgk__", "tgk_dev", "ümläut_tgk_", "tgk_\u{e9}_\u{e9}"] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_public_key_is_no_secret_one() {
        let (public, secret) = (generate_public().unwrap(), generate().unwrap());
        assert_eq!(id_of(&public.text), Some(public.id.as_str()));
        assert!(is_public(&public.text) && !is_public(&secret.text));
        assert_eq!(id_of(&public.text.replace("tgp_", "tgk_")), None);
    }

    #[test]
    fn hashes_differ_by_pepper_and_text() {
        let one = hash(&[1; 32], "a");
        assert!(same(&one, &hash(&[1; 32], "a")));
        assert!(!same(&one, &hash(&[2; 32], "a")));
        assert!(!same(&one, &hash(&[1; 32], "b")));
    }
}
