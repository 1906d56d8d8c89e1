//! Who may log in: the `users:` list, or the upstream's own login where there is none.

use std::path::Path;

use base64::Engine;

use super::error::Problem;
use super::file::UserFile;
use super::path::KeyPath;
use super::resolve::pool_override;
use super::sources::Sources;
use super::{AuthMethod, Credential, ListenerConfig, PasswordSource, Secret, UserConfig};

/// The longest password that is taken, in bytes: PostgreSQL's clients send tokens of up to this size.
const PASSWORD_BYTES_MAX: usize = 64 * 1024;

/// Resolves `users:`.
pub(super) fn resolve(
    file: &[UserFile],
    listeners: &[ListenerConfig],
    sources: &Sources,
) -> Result<Vec<UserConfig>, Problem> {
    let mut users: Vec<UserConfig> = Vec::with_capacity(file.len());
    for (position, entry) in file.iter().enumerate() {
        let path = KeyPath::dotted("users").index(position);
        let at = |key: &str| {
            let path = path.key(key);
            move |message: String| Problem::new(path.clone(), message)
        };
        let name = entry
            .name
            .as_ref()
            .ok_or_else(|| at("name")("is missing".into()))?
            .text()
            .map_err(at("name"))?;
        if users.iter().any(|user| user.name == name) {
            return Err(at("name")(format!("{name:?} is given twice")));
        }
        let credential = credential(entry, &path, sources)?;
        check_use(&credential, listeners).map_err(|message| Problem::new(path.clone(), message))?;
        let pool = entry
            .pool
            .as_ref()
            .map(|pool| pool_override(pool, &path.key("pool")))
            .transpose()?;
        users.push(UserConfig {
            name,
            credential,
            pool: pool.unwrap_or_default(),
        });
    }
    Ok(users)
}

/// Exactly one of the four, or none.
fn credential(entry: &UserFile, path: &KeyPath, sources: &Sources) -> Result<Credential, Problem> {
    let given = [
        ("password", &entry.password),
        ("password_file", &entry.password_file),
        ("password_env", &entry.password_env),
        ("verifier", &entry.verifier),
    ];
    let mut given = given
        .into_iter()
        .filter_map(|(key, value)| value.as_ref().map(|value| (key, value)));
    let Some((key, value)) = given.next() else {
        return Ok(Credential::None);
    };
    if let Some((second, _)) = given.next() {
        return Err(Problem::new(
            path.key(second),
            format!("{key} is given as well; give one of them"),
        ));
    }
    let text = value.text().map_err(|message| Problem::new(path.key(key), message))?;
    let credential = match key {
        "password" => match hashed(&text) {
            Some(_) => Err("looks like a hash or a verifier; give it as verifier".into()),
            None => check_length(text).map(|text| Credential::Password(Secret::new(text))),
        },
        "password_file" => sources
            .read_line(Path::new(&text))
            .and_then(check_length)
            .map(|content| {
                // PostgreSQL's own rule: what has the form of a hash is one.
                hashed(&content).unwrap_or_else(|| Credential::PasswordFile(text.clone().into(), Secret::new(content)))
            }),
        "password_env" => sources
            .variable(&text)
            .map(str::to_owned)
            .ok_or_else(|| format!("the variable {text} is not set"))
            .and_then(check_length)
            .map(|content| hashed(&content).unwrap_or_else(|| Credential::Password(Secret::new(content)))),
        _ => hashed(&text)
            .ok_or_else(|| "must be md5 and 32 hexadecimal digits, or SCRAM-SHA-256$…, as in pg_authid".into()),
    };
    credential.map_err(|message: String| Problem::new(path.key(key), message))
}

fn check_length(password: String) -> Result<String, String> {
    match password.len() {
        0 => Err("holds an empty password".into()),
        length if length > PASSWORD_BYTES_MAX => Err("holds a password of more than 64 kB".into()),
        _ => Ok(password),
    }
}

/// A password in one of pg_authid's two hashed forms.
fn hashed(text: &str) -> Option<Credential> {
    let is_md5 = text
        .strip_prefix("md5")
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')));
    if is_md5 {
        return Some(Credential::Md5(Secret::new(text)));
    }
    is_scram_verifier(text).then(|| Credential::Verifier(Secret::new(text)))
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (manual: catalog-pg-authid).
fn is_scram_verifier(text: &str) -> bool {
    let bytes = |text: &str| {
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_or(0, |bytes| bytes.len())
    };
    let parts = text
        .strip_prefix("SCRAM-SHA-256$")
        .and_then(|rest| rest.split_once('$'));
    parts
        .and_then(|(head, keys)| Some((head.split_once(':')?, keys.split_once(':')?)))
        .is_some_and(|((iterations, salt), (stored, server))| {
            iterations.parse::<u32>().is_ok_and(|it| it > 0)
                && bytes(salt) > 0
                && bytes(stored) == 32
                && bytes(server) == 32
        })
}

/// A user that could log in nowhere is a mistake.
fn check_use(credential: &Credential, listeners: &[ListenerConfig]) -> Result<(), String> {
    let any = |methods: &[AuthMethod]| listeners.iter().any(|listener| methods.contains(&listener.auth));
    use AuthMethod::{Cert, Md5, Password, Peer, Trust};
    match credential {
        Credential::None if !any(&[Cert, Trust, Peer]) => {
            Err("one of password, password_file, password_env and verifier is needed".into())
        }
        Credential::Md5(_) if !any(&[Md5, Password, Cert, Trust, Peer]) => Err(
            "an md5 hash can't prove a password to scram-sha-256; set auth: md5 on a listener, or give a verifier"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// An upstream's own user with what is known of its password, as an entry of `users:`.
pub(super) fn of_upstream(user: &str, source: &PasswordSource, known: Option<&Secret>) -> UserConfig {
    let credential = match (source, known) {
        (PasswordSource::File(path), Some(secret)) => Credential::PasswordFile(path.clone(), secret.clone()),
        (_, Some(secret)) => Credential::Password(secret.clone()),
        (_, None) => Credential::None,
    };
    UserConfig {
        name: user.to_owned(),
        credential,
        pool: Default::default(),
    }
}

/// Whether some listener asks for a password, whose absence would lock everyone out.
pub(super) fn needs_password(listeners: &[ListenerConfig]) -> bool {
    use AuthMethod::{Md5, Password, ScramSha256};
    listeners
        .iter()
        .any(|listener| matches!(listener.auth, ScramSha256 | Md5 | Password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_known_by_their_form() {
        let key = "A".repeat(43) + "=";
        assert!(matches!(
            hashed(&format!("md5{}", "0".repeat(32))),
            Some(Credential::Md5(_))
        ));
        assert!(matches!(
            hashed(&format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}")),
            Some(Credential::Verifier(_))
        ));
        for plain in [
            "md5",
            "md5xyz",
            &format!("md5{}", "A".repeat(32)),
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$0:c2FsdA==$A:A",
            "SCRAM-SHA-256$4096:c2FsdA==$YQ==:YQ==",
        ] {
            assert_eq!(hashed(plain), None, "{plain}");
        }
    }
}
