//! Who may log in, and with what PostgreSQL is then asked for a backend. Made once from the configuration, not per login.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use crate::backend::password;
use crate::config::{Config, Credential, PasswordSource};
use crate::protocol::client_auth::StoredCredential;
use crate::protocol::md5::Md5Hash;
use crate::protocol::scram::Verifier;

/// Every user that the configuration names.
#[derive(Debug)]
pub struct Credentials {
    /// Swapped one by one, when a password file is found changed.
    users: HashMap<String, ArcSwap<KnownUser>>,
    scram_iterations: u32,
    usual: Usual,
}

/// What most users' exchanges look like: an unknown user's must look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usual {
    /// Of their verifiers.
    pub scram_iterations: u32,
    /// On md5 listeners they are asked for md5, and not for SCRAM because only verifiers are stored.
    pub md5: bool,
}

impl Usual {
    fn of<'a>(stored: impl Iterator<Item = &'a StoredCredential> + Clone, configured_iterations: u32) -> Self {
        let is_md5 =
            |one: &StoredCredential| matches!(one, StoredCredential::Password { .. } | StoredCredential::Md5(_));
        let verifiers = || stored.clone().filter_map(verifier_of);
        let derived_here = verifiers().any(|verifier| verifier.iterations == configured_iterations);
        let first = verifiers().next().filter(|_| !derived_here);
        Self {
            scram_iterations: first.map_or(configured_iterations, |verifier| verifier.iterations),
            md5: stored.clone().any(is_md5),
        }
    }
}

fn verifier_of(stored: &StoredCredential) -> Option<&Verifier> {
    match stored {
        StoredCredential::Password { verifier, .. } | StoredCredential::Verifier(verifier) => Some(verifier),
        StoredCredential::Md5(_) | StoredCredential::Unknown => None,
    }
}

/// One user that is known, by the configuration or by auth_query.
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
                    derive(secret.expose(), config.auth.scram_iterations)?,
                    Some(PasswordSource::Literal(secret.clone())),
                ),
                Credential::PasswordFile(path, secret) => (
                    derive(secret.expose(), config.auth.scram_iterations)?,
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
        let scram_iterations = config.auth.scram_iterations;
        let usual = Usual::of(users.values().map(|user| &user.stored), scram_iterations);
        let users = users
            .into_iter()
            .map(|(name, user)| (name, ArcSwap::from_pointee(user)));
        Ok(Self {
            users: users.collect(),
            scram_iterations,
            usual,
        })
    }

    /// What an unknown user's exchange must look like.
    pub fn usual(&self) -> Usual {
        self.usual
    }

    /// A user that the configuration names.
    pub fn find(&self, name: &str) -> Option<Arc<KnownUser>> {
        self.users.get(name).map(ArcSwap::load_full)
    }

    /// A login failed: a password file may have changed since it was read. What it holds now, if it has.
    pub async fn reread(&self, name: &str) -> Option<Arc<KnownUser>> {
        let user = self.users.get(name)?;
        let known = user.load_full();
        let (Some(PasswordSource::File(path)), StoredCredential::Password { password, .. }) =
            (&known.upstream, &known.stored)
        else {
            return None;
        };
        let stored = read_anew(path, password, self.scram_iterations).await?;
        let upstream = known.upstream.clone();
        let changed = Arc::new(KnownUser { stored, upstream });
        user.store(changed.clone());
        tracing::info!(user = name, "the user's password file has changed");
        Some(changed)
    }

    /// The user's password itself is known now, where only its verifier was: it is compared from now on, which costs no
    /// key derivation.
    pub fn password_proven(&self, name: &str, password: &Zeroizing<String>) {
        if let Some(user) = self.users.get(name)
            && let Some(known) = with_password(&user.load(), password)
        {
            user.store(Arc::new(known));
        }
    }
}

async fn read_anew(path: &Path, known: &str, iterations: u32) -> Option<StoredCredential> {
    let content = match password::from_file(path).await {
        Ok(content) => content,
        Err(error) => {
            tracing::warn!(%error, "a user's password can't be read anew");
            return None;
        }
    };
    if content.is_empty() || content.as_str() == known {
        return None;
    }
    derive_aside(content, iterations).await
}

/// [`derive`] on a thread that may compute for milliseconds.
pub async fn derive_aside(password: Zeroizing<String>, iterations: u32) -> Option<StoredCredential> {
    let derived = tokio::task::spawn_blocking(move || derive(&password, iterations)).await;
    derived.ok()?.ok()
}

/// The same user with a password that was proven to be its verifier's; `None` where there is nothing to be gained.
pub fn with_password(known: &KnownUser, password: &Zeroizing<String>) -> Option<KnownUser> {
    match &known.stored {
        StoredCredential::Verifier(verifier) => Some(KnownUser {
            stored: StoredCredential::Password {
                password: password.clone(),
                verifier: verifier.clone(),
            },
            upstream: known.upstream.clone(),
        }),
        _ => None,
    }
}

/// A user whose password is known: checked by SCRAM against a verifier derived here, once.
fn derive(password: &str, iterations: u32) -> Result<StoredCredential, getrandom::Error> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    Ok(StoredCredential::Password {
        password: Zeroizing::new(password.to_owned()),
        verifier: Verifier::derive(password, &salt, iterations),
    })
}

/// What a verifier text of pg_authid, looked up by auth.query, is.
pub fn parse_verifier(text: &str) -> Option<StoredCredential> {
    Md5Hash::parse(text)
        .map(StoredCredential::Md5)
        .or_else(|| Verifier::parse(text).map(StoredCredential::Verifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_83_unknown_users_are_answered_as_most_known_ones_are() {
        let password = derive("sesame", 5000).unwrap();
        let other = StoredCredential::Verifier(Verifier::derive("sesame", b"salt", 9));
        let usual = |stored: &[StoredCredential]| Usual::of(stored.iter(), 5000);
        let of = |scram_iterations, md5| Usual { scram_iterations, md5 };
        assert_eq!(usual(&[]), of(5000, false));
        assert_eq!(usual(std::slice::from_ref(&other)), of(9, false));
        assert_eq!(usual(&[other, password]), of(5000, true));
        let hash = StoredCredential::Md5(Md5Hash::of("sesame", "app"));
        assert_eq!(usual(&[hash]), of(5000, true));
    }

    #[test]
    fn a_proven_password_is_compared_and_no_longer_derived() {
        let verifier = Verifier::derive("sesame", b"salt", 9);
        let known = KnownUser {
            stored: StoredCredential::Verifier(verifier),
            upstream: None,
        };
        let password = Zeroizing::new("sesame".to_owned());
        let with = with_password(&known, &password).expect("only a verifier was stored");
        assert!(matches!(&with.stored, StoredCredential::Password { password, .. } if password.as_str() == "sesame"));
        assert!(with_password(&with, &password).is_none());
    }
}
