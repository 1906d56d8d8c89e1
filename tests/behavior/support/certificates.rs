//! Certificates made with openssl as PostgreSQL's manual documents ("Creating Certificates", ssl-tcp).

use std::path::{Path, PathBuf};
use std::process::Command;

/// A self-signed certificate: what `openssl req -new -x509` in the manual makes.
#[derive(Debug, Clone)]
pub struct SelfSigned {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
}

/// Makes `NAME.crt` and `NAME.key` in `directory`, for a host or user of this common name.
pub fn self_signed(directory: &Path, name: &str, common_name: &str) -> SelfSigned {
    let files = files(directory, name);
    openssl(
        directory,
        &format!(
            "req -new -x509 -days 30 {} -out {name}.crt -subj /CN={common_name}",
            new_key(name)
        ),
    );
    files
}

/// Makes `NAME.crt` and `NAME.key`, signed by `authority`. The subjectAltName is `common_name`'s where it is a host.
pub fn signed_by(directory: &Path, authority: &SelfSigned, name: &str, common_name: &str) -> SelfSigned {
    let files = files(directory, name);
    let san = format!("{name}.ext");
    std::fs::write(
        directory.join(&san),
        format!("subjectAltName=DNS:{common_name},IP:127.0.0.1\n"),
    )
    .unwrap();
    openssl(
        directory,
        &format!("req -new {} -out {name}.csr -subj /CN={common_name}", new_key(name)),
    );
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -days 30 -CA {} -CAkey {} -CAcreateserial -extfile {san} -out {name}.crt",
            authority.certificate.display(),
            authority.key.display()
        ),
    );
    files
}

fn files(directory: &Path, name: &str) -> SelfSigned {
    SelfSigned {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}

/// An elliptic key: made in a millisecond, where RSA takes a second.
fn new_key(name: &str) -> String {
    format!("-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key")
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl is installed (./tests/run installs it)");
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
