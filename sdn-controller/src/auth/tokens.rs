//! Bearer tokens (RFC 6750). A token is 256 random bits and is kept as its SHA-256 alone: what makes slow hashes
//! necessary for passwords, that they can be guessed, does not hold for it, and a slow hash would cost every request.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock};

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Grant, Identity, Role};

/// What every token begins with, so that one that lies about is recognised.
const PREFIX: &str = "sluice_";

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// A token, without what proves it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name, for the audit log.
    #[serde(default)]
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// The tenant its bearer is confined to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// Why there is no such token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The host has no randomness.
    #[error("the host gives no random numbers")]
    Random,
    /// What was stored is no token.
    #[error("user {name} in the store is no token: {detail}")]
    Stored {
        /// Its name.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The tokens that are good.
#[derive(Default)]
pub struct Tokens {
    known: RwLock<HashMap<Digest, Token>>,
}

fn digest_of(text: &str) -> Digest {
    let mut found = [0; 32];
    found.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// A new secret: its text, which is told once, and what is kept of it.
///
/// # Errors
/// The host has no randomness.
pub(crate) fn make() -> Result<(String, Digest), TokenError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TokenError::Random)?;
    let text = format!("{PREFIX}{}", hex(&bytes));
    let digest = digest_of(&text);
    Ok((text, digest))
}

/// What is stored of a token.
pub(crate) fn stored(token: &Token, digest: &Digest) -> Value {
    let mut value = serde_json::json!(token);
    value["sha256"] = hex(digest).into();
    value
}

impl Tokens {
    /// Takes what was stored.
    ///
    /// # Errors
    /// Something in it is no token.
    pub fn load(&self, stored: Vec<(String, Value)>) -> Result<(), TokenError> {
        for (name, value) in stored {
            let wrong = |detail: String| TokenError::Stored { name: name.clone(), detail };
            let digest = value["sha256"].as_str().and_then(from_hex);
            let digest = digest.ok_or_else(|| wrong("it has no SHA-256".to_owned()))?;
            let token: Token = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            self.insert(digest, Token { name, ..token });
        }
        Ok(())
    }

    /// Who bears this token, from `from`; `None`: nobody.
    pub fn find(&self, text: &str, from: &str) -> Option<Identity> {
        // By its digest: how long this takes says nothing about the tokens that are there.
        let digest = digest_of(text);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let token = known.get(&digest)?;
        let grant = Grant { role: token.role, tenant: token.tenant.clone() };
        Some(Identity { token: Some(digest), ..Identity::granted(&token.name, from, grant) })
    }

    /// Whether this token is still good.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }

    /// The tokens, by name.
    pub fn list(&self) -> BTreeMap<String, Token> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|token| (token.name.clone(), token.clone())).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn insert(&self, digest: Digest, token: Token) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(digest, token);
    }

    pub(crate) fn remove(&self, name: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, token| token.name != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_digest_is_kept_and_it_is_found_by_the_text() {
        let token =
            Token { name: "ci".into(), role: Role::Operate, tenant: Some("acme".into()), created_ms: 7 };
        let (text, digest) = make().unwrap();
        assert_eq!((text.len(), text.starts_with(PREFIX)), (PREFIX.len() + 64, true));
        assert_ne!(text, make().unwrap().0);
        let row = stored(&token, &digest);
        assert!(!row.to_string().contains(&text[PREFIX.len()..]), "{row}");
        let tokens = Tokens::default();
        tokens.load(vec![("ci".into(), row)]).unwrap();
        let found = tokens.find(&text, "there").unwrap();
        let expected = ("ci", "there", Role::Operate, Some("acme"));
        assert_eq!((&*found.name, &*found.from, found.role, found.tenant.as_deref()), expected);
        assert!(tokens.knows(&found.token.unwrap()));
        for other in ["", PREFIX, &text[..text.len() - 1], &hex(&digest), &text.to_uppercase()] {
            assert_eq!(tokens.find(other, "there"), None, "{other}");
        }
        tokens.remove("ci");
        assert_eq!(tokens.find(&text, "there"), None);
        assert!(tokens.is_empty());
    }

    #[test]
    fn what_is_no_token_is_named() {
        for row in
            [Value::Null, serde_json::json!({"sha256": "00"}), serde_json::json!({"sha256": hex(&[0; 32])})]
        {
            let error = Tokens::default().load(vec![("eve".into(), row)]).unwrap_err();
            assert!(error.to_string().contains("eve"), "{error}");
        }
    }
}
