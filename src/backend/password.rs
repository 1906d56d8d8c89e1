//! Where the secret of a login to PostgreSQL comes from. Files and commands are read at each login: they rotate.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::{Host, PasswordSource};

/// The longest password or token, in bytes (PG_MAX_AUTH_TOKEN_LENGTH; trap 87).
const SECRET_LEN_MAX: u64 = 65_535;
/// A password file has a line per server; a larger one is something else.
const PASSFILE_LEN_MAX: u64 = 1 << 20;
/// How long a command or a file on a slow filesystem may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no secret could be read. Says which key, never what was read.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file can't be read.
    #[error("password file {path}: {error}")]
    File {
        /// As configured.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The command failed, or printed nothing usable.
    #[error("password_command {0}")]
    Command(String),
    /// It took too long.
    #[error("reading the password took longer than {READ_TIMEOUT:?}")]
    TimedOut,
    /// More than a password can be, or not UTF-8.
    #[error("the password is longer than {SECRET_LEN_MAX} bytes or not UTF-8")]
    Unusable,
}

/// Who logs in where: what a password file is searched by.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The host of this attempt.
    pub host: &'a Host,
    /// The database's name on the server.
    pub database: &'a str,
    /// The user's name on the server.
    pub user: &'a str,
}

/// Reads the secret for a login; `None` where none is configured.
pub async fn read(source: &PasswordSource, login: Login<'_>) -> Result<Option<Zeroizing<String>>, PasswordError> {
    let reading = async {
        match source {
            PasswordSource::None => Ok(None),
            PasswordSource::Literal(secret) => Ok(Some(Zeroizing::new(secret.expose().to_owned()))),
            PasswordSource::File(path) => read_secret(path).await.map(Some),
            PasswordSource::Command(command) => run_command(command).await.and_then(without_newline).map(Some),
            PasswordSource::Passfile(path) => search_passfile(path, login).await,
        }
    };
    timeout(READ_TIMEOUT, reading)
        .await
        .map_err(|_| PasswordError::TimedOut)?
}

/// Reads a file that holds one secret.
pub async fn from_file(path: &Path) -> Result<Zeroizing<String>, PasswordError> {
    let reading = timeout(READ_TIMEOUT, read_secret(path)).await;
    reading.map_err(|_| PasswordError::TimedOut)?
}

async fn read_secret(path: &Path) -> Result<Zeroizing<String>, PasswordError> {
    read_file(path, SECRET_LEN_MAX + 1).await.and_then(without_newline)
}

/// Whether a second reading may bring another secret.
pub fn may_change(source: &PasswordSource) -> bool {
    matches!(
        source,
        PasswordSource::File(_) | PasswordSource::Command(_) | PasswordSource::Passfile(_)
    )
}

async fn read_file(path: &Path, len_max: u64) -> Result<Zeroizing<Vec<u8>>, PasswordError> {
    let failed = |error| PasswordError::File {
        path: path.display().to_string(),
        error,
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(len_max + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= len_max) {
        Ok(bytes)
    } else {
        Err(PasswordError::Unusable)
    }
}

async fn run_command(command: &str) -> Result<Zeroizing<Vec<u8>>, PasswordError> {
    let failed = |error: std::io::Error| PasswordError::Command(error.to_string());
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    if let Some(output) = child.stdout.take() {
        output
            .take(SECRET_LEN_MAX + 2)
            .read_to_end(&mut bytes)
            .await
            .map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        Ok(bytes)
    } else {
        Err(PasswordError::Command(format!("ended with {status}")))
    }
}

/// One newline at the end is the editor's, not the password's.
fn without_newline(bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>, PasswordError> {
    let text = std::str::from_utf8(&bytes).map_err(|_| PasswordError::Unusable)?;
    let text = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(text);
    if u64::try_from(text.len()).is_ok_and(|len| len <= SECRET_LEN_MAX) {
        Ok(Zeroizing::new(text.to_owned()))
    } else {
        Err(PasswordError::Unusable)
    }
}

/// libpq's password file (manual: libpq-pgpass). A missing file, or one that others may read, supplies nothing.
async fn search_passfile(path: &Path, login: Login<'_>) -> Result<Option<Zeroizing<String>>, PasswordError> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = tokio::fs::metadata(path).await else {
        return Ok(None);
    };
    if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is not a plain file that only its owner may read; it is not used");
        return Ok(None);
    }
    let bytes = read_file(path, PASSFILE_LEN_MAX).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| PasswordError::Unusable)?;
    Ok(text.lines().find_map(|line| passfile_line(line, login)))
}

/// The password of a line that matches; `None` for a comment, another login or a line that is short of fields.
fn passfile_line(line: &str, login: Login<'_>) -> Option<Zeroizing<String>> {
    if line.starts_with('#') {
        return None;
    }
    let (host, port) = match login.host {
        Host::Tcp { host, hostaddr, port } => {
            let name = if host.is_empty() {
                hostaddr.map(|address| address.to_string())
            } else {
                Some(host.clone())
            };
            (name.unwrap_or_default(), port)
        }
        // libpq: "localhost" also stands for a socket in the default directory; any directory matches by its name.
        Host::Unix { directory, port } => (directory.display().to_string(), port),
    };
    let port = port.to_string();
    let mut rest = line;
    for (index, wanted) in [host.as_str(), &port, login.database, login.user]
        .into_iter()
        .enumerate()
    {
        let (field, behind) = passfile_field(rest)?;
        let local_socket = index == 0 && field == "localhost" && matches!(login.host, Host::Unix { .. });
        if field != "*" && field != wanted && !local_socket {
            return None;
        }
        rest = behind;
    }
    let password = passfile_field(rest).map_or_else(|| unescape(rest), |(password, _)| password);
    Some(Zeroizing::new(password))
}

/// The field before the next unescaped colon, and what is behind it.
fn passfile_field(line: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (index, character) in line.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => return Some((unescape(line.get(..index)?), line.get(index + 1..)?)),
            _ => escaped = false,
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        text.push(if character == '\\' {
            characters.next().unwrap_or('\\')
        } else {
            character
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use std::io::Write;

    fn host() -> Host {
        Host::Tcp {
            host: "db".to_owned(),
            hostaddr: None,
            port: 5432,
        }
    }

    async fn read_from(source: PasswordSource) -> Result<Option<String>, PasswordError> {
        let host = host();
        read(
            &source,
            Login {
                host: &host,
                database: "app",
                user: "me",
            },
        )
        .await
        .map(|secret| secret.map(|secret| secret.to_string()))
    }

    #[tokio::test]
    async fn trap_87_one_newline_at_the_end_of_a_file_is_not_the_passwords() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"secret \n").unwrap();
        let source = PasswordSource::File(file.path().to_owned());
        assert_eq!(read_from(source).await.unwrap().as_deref(), Some("secret "));
        assert_eq!(
            read_from(PasswordSource::Literal(Secret::new("a\n")))
                .await
                .unwrap()
                .as_deref(),
            Some("a\n")
        );
    }

    #[tokio::test]
    async fn trap_87_a_token_of_64_kb_is_read_and_a_longer_one_refused() {
        for (len, fits) in [(65_535, true), (65_536, false)] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&vec![b'x'; len]).unwrap();
            let read = read_from(PasswordSource::File(file.path().to_owned())).await;
            assert_eq!(read.is_ok(), fits, "{len}");
        }
    }

    #[tokio::test]
    async fn a_commands_output_is_the_password_and_its_failure_an_error() {
        let run = |command: &str| read_from(PasswordSource::Command(command.to_owned()));
        assert_eq!(run("echo token").await.unwrap().as_deref(), Some("token"));
        assert!(run("echo token; exit 3").await.is_err());
        assert!(run("head -c 200000 /dev/zero").await.is_err());
    }

    #[test]
    fn a_password_file_is_searched_as_libpq_does() {
        let host = host();
        let login = Login {
            host: &host,
            database: "app",
            user: "me",
        };
        let found = |line| passfile_line(line, login).map(|password| password.to_string());
        assert_eq!(found("db:5432:app:me:pa:ss").as_deref(), Some("pa"));
        assert_eq!(found("*:*:*:me:a\\:b\\\\c").as_deref(), Some("a:b\\c"));
        assert_eq!(found("db:5433:app:me:x"), None);
        assert_eq!(found("#db:5432:app:me:x"), None);
        assert_eq!(found("db:5432"), None);
    }
}
