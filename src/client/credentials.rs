//! Who may log in, and with what PostgreSQL is then asked for a backend. Made once from the configuration, not per login.

use std::collections::HashMap;

use crate::config::{Config, Credential, PasswordSource, Secret};
use crate::protocol::client_auth::StoredCredential;
use crate::protocol::md5::Md5Hash;
use crate::protocol::scram::Verifier;
use zeroize::Zeroizing;

/// Every user that the configuration names.
#[derive(Debug)]
pub struct Credentials {
    users: HashMap<String, KnownUser>,
}

/// One user that the configuration names.
#[derive(Debug, Clone)]
pub struct KnownUser {
    /// What its proof is checked against.
    pub stored: StoredCredential,
    /// What PostgreSQL is told; `None` where only a verifier is known, so that the client's own ClientKey is passed on.
    pub upstream: Option<PasswordSource>,
}

/// Why the credentials can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BadCredential {
    /// The system's generator failed.
    #[error("the system's random generator failed: {0}")]
    Random(#[from] getrandom::Error),
    /// A `verifier` that is none.
    #[error("users: {0}: verifier: neither md5… nor SCRAM-SHA-256$…, as in pg_authid")]
    Verifier(String),
}

impl Credentials {
    /// Derives what each user is checked against. Costs `auth.scram_iterations` HMACs per plaintext password.
    pub fn derive(config: &Config) -> Result<Self, BadCredential> {
        let mut users = HashMap::new();
        for user in &config.users {
            let (stored, password) = match &user.credential {
                Credential::Password(secret) => (
                    derive(secret, config.auth.scram_iterations)?,
                    Some(PasswordSource::Literal(secret.clone())),
                ),
                Credential::PasswordFile(path, secret) => (
                    derive(secret, config.auth.scram_iterations)?,
                    Some(PasswordSource::File(path.clone())),
                ),
                Credential::Md5(hash) => {
                    let hash = Md5Hash::parse(hash.expose());
                    (
                        StoredCredential::Md5(hash.ok_or_else(|| BadCredential::Verifier(user.name.clone()))?),
                        None,
                    )
                }
                Credential::Verifier(text) => {
                    let verifier = Verifier::parse(text.expose());
                    (
                        StoredCredential::Verifier(verifier.ok_or_else(|| BadCredential::Verifier(user.name.clone()))?),
                        None,
                    )
                }
                Credential::None => (StoredCredential::Unknown, None),
            };
            // The upstream's own user keeps the upstream's own way to a password where users: gives none.
            let own = (user.name == config.upstream.user).then(|| config.upstream.password.clone());
            let known = KnownUser {
                stored,
                upstream: password.or(own),
            };
            users.insert(user.name.clone(), known);
        }
        Ok(Self { users })
    }

    /// A user that the configuration names.
    pub fn find(&self, name: &str) -> Option<&KnownUser> {
        self.users.get(name)
    }
}

/// A user whose password is known: checked by SCRAM against a verifier derived here, once.
fn derive(password: &Secret, iterations: u32) -> Result<StoredCredential, getrandom::Error> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    Ok(StoredCredential::Password {
        password: Zeroizing::new(password.expose().to_owned()),
        verifier: Verifier::derive(password.expose(), &salt, iterations),
    })
}

/// What a verifier text of pg_authid, looked up by auth.query, is.
pub fn parse_verifier(text: &str) -> Option<StoredCredential> {
    Md5Hash::parse(text)
        .map(StoredCredential::Md5)
        .or_else(|| Verifier::parse(text).map(StoredCredential::Verifier))
}
