//! md5 password authentication (manual: auth-password): the stored hash and the salted answer. Kept for old servers
//! and clients only; the hash is as good as the password.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// `md5` and 32 lower-case hexadecimal digits, as in pg_authid: the hash of password and user name.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash(Zeroizing<String>);

impl Md5Hash {
    /// Reads a stored hash; `None` if the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("md5")?;
        let well_formed = digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The hash that PostgreSQL would store for this user.
    pub fn of(password: &str, user: &str) -> Self {
        Self(Zeroizing::new(md5_of(&[password.as_bytes(), user.as_bytes()])))
    }

    /// What a client that knows the password (or this hash) answers to a salt.
    pub fn answer(&self, salt: [u8; 4]) -> Zeroizing<String> {
        let digits = self.0.get(3..).unwrap_or_default();
        Zeroizing::new(md5_of(&[digits.as_bytes(), &salt]))
    }

    /// Whether this is the hash of that user's password. Takes the same time wherever the difference is.
    pub fn is_of(&self, password: &str, user: &str) -> bool {
        self.0.as_bytes().ct_eq(Self::of(password, user).0.as_bytes()).into()
    }
}

impl std::fmt::Debug for Md5Hash {
    /// Never shows the hash.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Md5Hash(***)")
    }
}

fn md5_of(parts: &[&[u8]]) -> String {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(part);
    }
    format!("md5{:x}", digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored form is pg_authid's (PostgreSQL 15, password_encryption = md5).
    #[test]
    fn a_hash_is_what_postgresql_stores() {
        let hash = Md5Hash::of("secret", "app");
        assert_eq!(hash.0.as_str(), "md56a422f785c9e20873908ce25d1736ae2");
        assert_eq!(Md5Hash::parse(hash.0.as_str()), Some(hash.clone()));
        assert!(hash.is_of("secret", "app"));
        assert!(!hash.is_of("secret", "App"));
        assert!(hash.answer([1, 2, 3, 4]).starts_with("md5"));
        assert_ne!(*hash.answer([1, 2, 3, 4]), *hash.answer([1, 2, 3, 5]));
    }

    #[test]
    fn what_is_not_a_hash_is_not_read() {
        for text in [
            "",
            "md5",
            "md5zz",
            &format!("md5{}", "A".repeat(32)),
            &format!("md5{}", "a".repeat(33)),
            "md5é",
        ] {
            assert_eq!(Md5Hash::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_hash_is_not_shown() {
        assert_eq!(format!("{:?}", Md5Hash::of("a", "b")), "Md5Hash(***)");
    }
}
