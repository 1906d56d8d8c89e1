//! Which certificates are believed: those that lead to a trusted one, as libpq (through OpenSSL) decides it.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, DistinguishedName, OtherError};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};

use super::lenient_chain::LenientChain;
use super::revocation::RevocationLists;
use super::{TlsConfigError, certificate, pem};

/// What a certificate is shown for (extended key usage, where the certificate limits it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Server,
    Client,
}

/// Trusted certificates, and what was called back.
#[derive(Debug)]
pub(super) struct Trust {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revocation: Option<RevocationLists>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// Trusts every certificate of a PEM file.
    pub(super) fn from_file(
        key: &'static str,
        file: &Path,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TlsConfigError> {
        let certificates = pem::certificates(key, file)?;
        let anchors = certificates.iter().map(anchor).collect::<Result<Vec<_>, _>>();
        let anchors = anchors.map_err(|error| TlsConfigError::of_file(key, file, error))?;
        Ok(Self {
            certificates,
            anchors,
            revocation: None,
            algorithms,
        })
    }

    /// Trusts what the platform trusts (SSL_CERT_FILE and SSL_CERT_DIR move that, as with OpenSSL).
    pub(super) fn from_system(
        key: &'static str,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TlsConfigError> {
        let found = rustls_native_certs::load_native_certs();
        // One that can't be read must not take the others with it.
        let (certificates, anchors): (Vec<_>, Vec<_>) = found
            .certs
            .into_iter()
            .filter_map(|certificate| anchor(&certificate).ok().map(|anchor| (certificate, anchor)))
            .unzip();
        if anchors.is_empty() {
            let reason = found
                .errors
                .first()
                .map_or_else(|| "it is empty".to_owned(), ToString::to_string);
            return Err(TlsConfigError::of_key(
                key,
                format!("no certificate in the system's trust store: {reason}"),
            ));
        }
        Ok(Self {
            certificates,
            anchors,
            revocation: None,
            algorithms,
        })
    }

    /// Believes no certificate that these lists don't cover.
    pub(super) fn with_revocation(mut self, lists: Option<RevocationLists>) -> Self {
        self.revocation = lists;
        self
    }

    /// The subjects of the trusted certificates: a hint for a client that has several certificates of its own.
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        self.anchors
            .iter()
            .map(|anchor| DistinguishedName::in_sequence(anchor.subject.as_ref()))
            .collect()
    }

    /// Decides about a peer's certificate. Names are not compared here.
    ///
    /// A certificate that is itself trusted needs no issuer (PostgreSQL's own manual makes one of that kind with
    /// `openssl req -x509`: an authority, its own root and the server's certificate in one). Everything else is
    /// webpki's; what webpki can't read but OpenSSL accepts, [`LenientChain`] decides.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<(), CertificateError> {
        let chain = LenientChain {
            trusted: &self.certificates,
            sent,
            revocation: self.revocation.as_ref(),
            now,
        };
        if self.certificates.contains(leaf) {
            return chain.verify_trusted_leaf(leaf, purpose);
        }
        match self.verify_with_webpki(leaf, sent, now, purpose) {
            Err(Error::UnsupportedCertVersion | Error::CaUsedAsEndEntity) => chain.verify(leaf, purpose),
            result => result.map_err(translate),
        }
    }

    fn verify_with_webpki(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let usage = match purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let revocation = |path: &VerifiedPath<'_>| self.check_path(path, now);
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                sent,
                now,
                usage,
                None,
                Some(&revocation),
            )
            .map(|_| ())
    }

    /// Every certificate below the anchor must be covered by a list, and not be on it.
    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), Error> {
        let Some(lists) = &self.revocation else { return Ok(()) };
        let mut certificates = vec![path.end_entity().der()];
        certificates.extend(path.intermediate_certificates().map(|certificate| certificate.der()));
        let anchor_key = webpki::spki_for_anchor(path.anchor());
        for (position, der) in certificates.iter().enumerate() {
            let certificate = certificate::parse(der).map_err(|_| Error::BadDer)?;
            let above = certificates
                .get(position + 1)
                .map(|issuer| certificate::parse(issuer))
                .transpose();
            let above = above.map_err(|_| Error::BadDer)?;
            let issuer_key = above
                .as_ref()
                .map_or(anchor_key.as_ref(), |issuer| issuer.public_key().raw);
            lists
                .check(&certificate, issuer_key, now)
                .map_err(|error| match error {
                    CertificateError::Revoked => Error::CertRevoked,
                    _ => Error::UnknownRevocationStatus,
                })?;
        }
        Ok(())
    }
}

fn anchor(certificate: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, Error> {
    webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned())
}

fn translate(error: Error) -> CertificateError {
    match error {
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::CertRevoked => CertificateError::Revoked,
        Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    }
}
