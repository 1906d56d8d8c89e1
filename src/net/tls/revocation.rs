//! Certificates that were called back: libpq's sslcrl and sslcrldir.
//!
//! As with OpenSSL's CRL_CHECK_ALL, which libpq asks for: where lists are configured, each certificate of a chain needs a
//! current list of its issuer, or it isn't believed.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{TlsConfigError, pem, signature};

/// The lists that were configured.
#[derive(Debug)]
pub(super) struct RevocationLists(Vec<List>);

#[derive(Debug)]
struct List {
    der: Vec<u8>,
    issuer: Vec<u8>,
    this_update: i64,
    next_update: Option<i64>,
    serials: HashSet<Vec<u8>>,
}

impl RevocationLists {
    /// Reads the file, and every file of the directory that holds a list. `None` where neither is configured.
    pub(super) fn load(file: Option<&Path>, directory: Option<&Path>) -> Result<Option<Self>, TlsConfigError> {
        let mut lists = Vec::new();
        if let Some(file) = file {
            lists.append(&mut read("sslcrl", file)?);
        }
        for file in directory.map_or(Ok(Vec::new()), files_in)? {
            lists.append(&mut read("sslcrldir", &file)?);
        }
        Ok((file.is_some() || directory.is_some()).then_some(Self(lists)))
    }

    /// Whether a certificate is still good, by a current list that its issuer signed.
    pub(super) fn check(
        &self,
        certificate: &X509Certificate<'_>,
        issuer_key: &[u8],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let issuer = certificate.issuer().as_raw();
        let mut outcome = Err(CertificateError::UnknownRevocationStatus);
        for list in self
            .0
            .iter()
            .filter(|list| list.issuer == issuer && list.is_signed_by(issuer_key))
        {
            if list.serials.contains(certificate.raw_serial()) {
                return Err(CertificateError::Revoked);
            }
            if list.this_update <= now && list.next_update.is_none_or(|next| now <= next) {
                outcome = Ok(());
            } else if outcome.is_err() {
                outcome = Err(CertificateError::ExpiredRevocationList);
            }
        }
        outcome
    }
}

impl List {
    fn parse(der: &[u8]) -> Result<Self, &'static str> {
        let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
            return Err("not a certificate revocation list");
        };
        // An indirect or partial list says less than it seems to.
        if list.extensions().iter().any(|extension| extension.critical)
            || list
                .iter_revoked_certificates()
                .any(|entry| entry.extensions().iter().any(|extension| extension.critical))
        {
            return Err("a certificate revocation list with a critical extension, which is not supported");
        }
        Ok(Self {
            der: der.to_vec(),
            issuer: list.issuer().as_raw().to_vec(),
            this_update: list.last_update().timestamp(),
            next_update: list.next_update().map(|time| time.timestamp()),
            serials: list
                .iter_revoked_certificates()
                .map(|entry| entry.raw_serial().to_vec())
                .collect(),
        })
    }

    fn is_signed_by(&self, issuer_key: &[u8]) -> bool {
        CertificateRevocationList::from_der(&self.der).is_ok_and(|(_, list)| {
            let signed = list.tbs_cert_list.as_ref();
            signature::verify(
                issuer_key,
                &list.signature_algorithm,
                signed,
                &list.signature_value.data,
            )
            .is_ok()
        })
    }
}

fn read(key: &'static str, file: &Path) -> Result<Vec<List>, TlsConfigError> {
    pem::revocation_lists(key, file)?
        .iter()
        .map(|der| List::parse(der).map_err(|reason| TlsConfigError::of_file(key, file, reason)))
        .collect()
}

/// The directory's regular files, in the order of their names. OpenSSL wants them named by hash; here any name will do.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, TlsConfigError> {
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| TlsConfigError::of_file("sslcrldir", directory, error))?;
    let mut files: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}
