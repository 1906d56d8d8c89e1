//! What is read from one certificate: its common name, the hash that channel binding uses, whether it is valid now.

use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::signature::{Algorithm, Hash};

/// Reads exactly one certificate.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::BadEncoding),
    }
}

/// The data of `tls-server-end-point` (RFC 5929, section 4.1): the certificate, hashed as its signature was, with
/// SHA-256 in place of MD5 and SHA-1. `None` where the signature names no hash.
pub(super) fn end_point(der: &[u8]) -> Option<Box<[u8]>> {
    let certificate = parse(der).ok()?;
    Some(match Algorithm::read(&certificate.signature_algorithm)?.hash()? {
        Hash::Broken | Hash::Sha256 => Sha256::digest(der).as_slice().into(),
        Hash::Sha224 => Sha224::digest(der).as_slice().into(),
        Hash::Sha384 => Sha384::digest(der).as_slice().into(),
        Hash::Sha512 => Sha512::digest(der).as_slice().into(),
    })
}

/// The first common name of the subject, if it is text. A zero byte in it is refused: a C program would see another name.
pub(super) fn common_name<'a>(certificate: &X509Certificate<'a>) -> Result<Option<&'a str>, CertificateError> {
    let Some(attribute) = certificate.tbs_certificate.subject.iter_common_name().next() else {
        return Ok(None);
    };
    let name: &'a [u8] = attribute.attr_value().data;
    if name.contains(&0) {
        Err(CertificateError::BadEncoding)
    } else {
        Ok(std::str::from_utf8(name).ok())
    }
}

/// Refuses a certificate outside its validity.
pub(super) fn check_validity(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > validity.not_after.timestamp() {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}
