//! Certificates, keys and revocation lists from PEM files. Every error names the key and the file.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::TlsConfigError;

/// The largest file that is read: revocation lists of a big authority take megabytes.
const FILE_LEN_MAX: u64 = 64 << 20;

/// Every certificate of a file, at least one.
pub(super) fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    every(key, file, "certificate")
}

/// Every revocation list of a file, at least one.
pub(super) fn revocation_lists(
    key: &'static str,
    file: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsConfigError> {
    every(key, file, "certificate revocation list")
}

/// The private key of a file: PKCS#8, PKCS#1 or SEC1, not encrypted.
pub(super) fn private_key(key: &'static str, file: &Path) -> Result<PrivateKeyDer<'static>, TlsConfigError> {
    let text = read(key, file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
        let reason = match error {
            _ if encrypted => "the key is encrypted; store it without a passphrase".to_owned(),
            Error::NoItemsFound => "no private key in PEM format".to_owned(),
            error => error.to_string(),
        };
        TlsConfigError::of_file(key, file, reason)
    })
}

/// libpq's rule for `sslkey`: nobody but its owner may read it; root's own may be read by its group.
pub(super) fn refuse_readable_key(key: &'static str, file: &Path) -> Result<(), TlsConfigError> {
    let metadata = fs::metadata(file).map_err(|error| TlsConfigError::of_file(key, file, error))?;
    let refused = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.mode() & refused {
        _ if !metadata.is_file() => Err(TlsConfigError::of_file(key, file, "not a regular file")),
        0 => Ok(()),
        _ => Err(TlsConfigError::of_file(
            key,
            file,
            "group or others have access; permissions must be u=rw (0600) or less if owned by the current user, or \
             u=rw,g=r (0640) or less if owned by root",
        )),
    }
}

fn every<T: PemObject>(key: &'static str, file: &Path, what: &str) -> Result<Vec<T>, TlsConfigError> {
    let text = read(key, file)?;
    let items = T::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match items {
        Ok(items) if items.is_empty() => Err(TlsConfigError::of_file(key, file, format!("no {what} in PEM format"))),
        Ok(items) => Ok(items),
        Err(error) => Err(TlsConfigError::of_file(key, file, error)),
    }
}

fn read(key: &'static str, file: &Path) -> Result<Zeroizing<Vec<u8>>, TlsConfigError> {
    let mut text = Zeroizing::new(Vec::new());
    let length = File::open(file)
        .and_then(|open| open.take(FILE_LEN_MAX + 1).read_to_end(&mut text))
        .map_err(|error| TlsConfigError::of_file(key, file, error))?;
    if u64::try_from(length).is_ok_and(|length| length <= FILE_LEN_MAX) {
        return Ok(text);
    }
    Err(TlsConfigError::of_file(key, file, "larger than 64 MiB"))
}
