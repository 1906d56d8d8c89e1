//! Chains that OpenSSL accepts and webpki can't read: a certificate of X.509 version 1, and an authority's certificate
//! shown by a server.
//!
//! Both come from PostgreSQL's manual (ssl-tcp, "Creating Certificates"): `openssl x509 -req` without extensions makes
//! version 1 up to OpenSSL 3.1. The rules are RFC 5280's, and whatever is not understood is refused: a critical
//! extension, any name constraint, a signature algorithm.

use std::cell::Cell;

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::x509::X509Version;

use super::revocation::RevocationLists;
use super::trust::Purpose;
use super::{certificate, signature};

/// How many authorities may stand between a certificate and a trusted one.
const INTERMEDIATES_MAX: u32 = 8;
/// How many signatures one verification may cost: a peer could send many certificates of one name.
const SIGNATURES_MAX: u32 = 32;

/// What one verification is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct LenientChain<'a> {
    pub(super) trusted: &'a [CertificateDer<'static>],
    /// What the peer sent along.
    pub(super) sent: &'a [CertificateDer<'a>],
    pub(super) revocation: Option<&'a RevocationLists>,
    pub(super) now: UnixTime,
}

impl LenientChain<'_> {
    /// A certificate that is itself among the trusted ones: it vouches for itself while it is valid.
    pub(super) fn verify_trusted_leaf(&self, leaf: &[u8], purpose: Purpose) -> Result<(), CertificateError> {
        let leaf = certificate::parse(leaf)?;
        self.check_leaf(&leaf, purpose)?;
        let Some(lists) = self.revocation else { return Ok(()) };
        let trusted = parse_all(self.trusted);
        let issuer = trusted.iter().find(|issuer| names_issuer(&leaf, issuer));
        let issuer = issuer.ok_or(CertificateError::UnknownRevocationStatus)?;
        lists.check(&leaf, issuer.public_key().raw, self.now)
    }

    /// A certificate that must lead to a trusted one.
    pub(super) fn verify(&self, leaf: &[u8], purpose: Purpose) -> Result<(), CertificateError> {
        let leaf = certificate::parse(leaf)?;
        self.check_leaf(&leaf, purpose)?;
        let search = Search {
            trusted: parse_all(self.trusted),
            sent: parse_all(self.sent),
            revocation: self.revocation,
            now: self.now,
            signatures_left: Cell::new(SIGNATURES_MAX),
        };
        search.climb(&leaf, 0)
    }

    fn check_leaf(&self, leaf: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertificateError> {
        certificate::check_validity(leaf, self.now)?;
        check_extensions(leaf)?;
        let usage = leaf.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
        match usage.map(|usage| usage.value) {
            Some(usage) if purpose == Purpose::Server && !usage.server_auth => Err(CertificateError::InvalidPurpose),
            Some(usage) if purpose == Purpose::Client && !usage.client_auth => Err(CertificateError::InvalidPurpose),
            _ => Ok(()),
        }
    }
}

/// The search for a way up. Depth first, trusted issuers first.
struct Search<'a> {
    trusted: Vec<X509Certificate<'a>>,
    sent: Vec<X509Certificate<'a>>,
    revocation: Option<&'a RevocationLists>,
    now: UnixTime,
    signatures_left: Cell<u32>,
}

impl Search<'_> {
    /// Finds an issuer of `below`, with `intermediates` authorities already passed.
    fn climb(&self, below: &X509Certificate<'_>, intermediates: u32) -> Result<(), CertificateError> {
        let mut refusal = CertificateError::UnknownIssuer;
        for issuer in self.trusted.iter().filter(|issuer| names_issuer(below, issuer)) {
            match self.check_issued(below, issuer, Standing::Trusted, intermediates) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        if intermediates == INTERMEDIATES_MAX {
            return Err(refusal);
        }
        for issuer in self.sent.iter().filter(|issuer| names_issuer(below, issuer)) {
            let way_up = self
                .check_issued(below, issuer, Standing::Sent, intermediates)
                .and_then(|()| self.climb(issuer, intermediates + 1));
            match way_up {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn check_issued(
        &self,
        below: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
        standing: Standing,
        intermediates: u32,
    ) -> Result<(), CertificateError> {
        certificate::check_validity(issuer, self.now)?;
        check_extensions(issuer)?;
        check_authority(issuer, standing, intermediates)?;
        let left = self
            .signatures_left
            .get()
            .checked_sub(1)
            .ok_or(CertificateError::UnknownIssuer)?;
        self.signatures_left.set(left);
        if below.signature_algorithm != below.tbs_certificate.signature {
            return Err(CertificateError::BadEncoding);
        }
        let key = issuer.public_key().raw;
        let signed = below.tbs_certificate.as_ref();
        signature::verify(key, &below.signature_algorithm, signed, &below.signature_value.data)?;
        self.revocation
            .map_or(Ok(()), |lists| lists.check(below, key, self.now))
    }
}

/// Where an issuer comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Trusted,
    Sent,
}

fn names_issuer(below: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    below.issuer().as_raw() == issuer.subject().as_raw()
}

/// Whether a certificate may sign others. Version 1 can't say so: it may if it was trusted and is its own issuer.
fn check_authority(
    issuer: &X509Certificate<'_>,
    standing: Standing,
    intermediates: u32,
) -> Result<(), CertificateError> {
    let refusal = Err(CertificateError::UnknownIssuer);
    if issuer.version() == X509Version::V1 {
        return if standing == Standing::Trusted && names_issuer(issuer, issuer) {
            Ok(())
        } else {
            refusal
        };
    }
    let constraints = issuer.basic_constraints().map_err(|_| CertificateError::BadEncoding)?;
    let usage = issuer.key_usage().map_err(|_| CertificateError::BadEncoding)?;
    let is_authority = constraints.is_some_and(|constraints| {
        constraints.value.ca
            && constraints
                .value
                .path_len_constraint
                .is_none_or(|most| intermediates <= most)
    });
    if is_authority && usage.is_none_or(|usage| usage.value.key_cert_sign()) {
        Ok(())
    } else {
        refusal
    }
}

/// Refuses what would limit a certificate in a way that isn't looked at here.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return Err(CertificateError::BadEncoding),
            ParsedExtension::NameConstraints(_) => return Err(CertificateError::UnhandledCriticalExtension),
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            _ if extension.critical => return Err(CertificateError::UnhandledCriticalExtension),
            _ => {}
        }
    }
    Ok(())
}

/// Those that can be read; the others can't be anyone's issuer.
fn parse_all<'a>(certificates: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
    certificates
        .iter()
        .filter_map(|der| certificate::parse(der).ok())
        .collect()
}
