//! One signature under a public key: of a handshake, a certificate or a revocation list.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, PeerMisbehaved};
use webpki::aws_lc_rs as algorithms;
use webpki::{Error, RawPublicKeyEntity};
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::AlgorithmIdentifier;

/// A hash function that a certificate's signature is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// MD5 or SHA-1, which nothing is proven by any more.
    Broken,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// How a certificate is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rsa(Hash),
    RsaPss(Hash),
    Ecdsa(Hash),
    /// Signs the certificate itself rather than a hash of it.
    Ed25519,
}

impl Algorithm {
    /// Reads an AlgorithmIdentifier; `None` for one that we don't know.
    pub(super) fn read(identifier: &AlgorithmIdentifier<'_>) -> Option<Self> {
        Some(match identifier.algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" => Self::Rsa(Hash::Broken),
            "1.2.840.113549.1.1.14" => Self::Rsa(Hash::Sha224),
            "1.2.840.113549.1.1.11" => Self::Rsa(Hash::Sha256),
            "1.2.840.113549.1.1.12" => Self::Rsa(Hash::Sha384),
            "1.2.840.113549.1.1.13" => Self::Rsa(Hash::Sha512),
            "1.2.840.113549.1.1.10" => Self::RsaPss(pss_hash(identifier)?),
            "1.2.840.10045.4.1" => Self::Ecdsa(Hash::Broken),
            "1.2.840.10045.4.3.1" => Self::Ecdsa(Hash::Sha224),
            "1.2.840.10045.4.3.2" => Self::Ecdsa(Hash::Sha256),
            "1.2.840.10045.4.3.3" => Self::Ecdsa(Hash::Sha384),
            "1.2.840.10045.4.3.4" => Self::Ecdsa(Hash::Sha512),
            "1.3.101.112" => Self::Ed25519,
            _ => return None,
        })
    }

    /// The hash that it is made over, where there is one.
    pub(super) fn hash(self) -> Option<Hash> {
        match self {
            Self::Rsa(hash) | Self::RsaPss(hash) | Self::Ecdsa(hash) => Some(hash),
            Self::Ed25519 => None,
        }
    }

    /// What can check it: for ECDSA one per curve. Nothing checks a broken hash.
    fn verifiers(self) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
        match self {
            Self::Rsa(Hash::Sha256) => vec![algorithms::RSA_PKCS1_2048_8192_SHA256],
            Self::Rsa(Hash::Sha384) => vec![algorithms::RSA_PKCS1_2048_8192_SHA384],
            Self::Rsa(Hash::Sha512) => vec![algorithms::RSA_PKCS1_2048_8192_SHA512],
            Self::RsaPss(Hash::Sha256) => vec![algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY],
            Self::RsaPss(Hash::Sha384) => vec![algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY],
            Self::RsaPss(Hash::Sha512) => vec![algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY],
            Self::Ecdsa(Hash::Sha256) => vec![algorithms::ECDSA_P256_SHA256, algorithms::ECDSA_P384_SHA256],
            Self::Ecdsa(Hash::Sha384) => vec![algorithms::ECDSA_P256_SHA384, algorithms::ECDSA_P384_SHA384],
            Self::Ed25519 => vec![algorithms::ED25519],
            Self::Rsa(_) | Self::RsaPss(_) | Self::Ecdsa(_) => Vec::new(),
        }
    }
}

/// Checks that the owner of `issuer_key` (a SubjectPublicKeyInfo in DER) signed these bytes.
pub(super) fn verify(
    issuer_key: &[u8],
    identifier: &AlgorithmIdentifier<'_>,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), CertificateError> {
    let verifiers = Algorithm::read(identifier)
        .map(Algorithm::verifiers)
        .unwrap_or_default();
    verify_with_any(issuer_key, &verifiers, signed, signature)
}

/// Checks a handshake's signature under the key of a certificate, which webpki may be unable to read (X.509 v1).
pub(super) fn verify_handshake(
    key: &[u8],
    message: &[u8],
    signed: &DigitallySignedStruct,
    supported: &WebPkiSupportedAlgorithms,
    version: HandshakeVersion,
) -> Result<(), rustls::Error> {
    let possible = supported
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signed.scheme)
        .map(|(_, possible)| *possible);
    let possible = match version {
        HandshakeVersion::Tls12 => possible,
        // TLS 1.3 binds a scheme to one algorithm; before, the key told the curve.
        HandshakeVersion::Tls13 => possible.and_then(|possible| possible.get(..1)),
    };
    let possible = possible.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    verify_with_any(key, possible, message, signed.signature()).map_err(Into::into)
}

/// Which TLS a handshake's signature belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum HandshakeVersion {
    Tls12,
    Tls13,
}

fn verify_with_any(
    key: &[u8],
    verifiers: &[&dyn SignatureVerificationAlgorithm],
    signed: &[u8],
    signature: &[u8],
) -> Result<(), CertificateError> {
    let key = SubjectPublicKeyInfoDer::from(key);
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
    for verifier in verifiers {
        match key.verify_signature(*verifier, signed, signature) {
            Ok(()) => return Ok(()),
            Err(Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => break,
        }
    }
    Err(CertificateError::BadSignature)
}

fn pss_hash(identifier: &AlgorithmIdentifier<'_>) -> Option<Hash> {
    let parameters = RsaSsaPssParams::try_from(identifier.parameters.as_ref()?).ok()?;
    Some(match parameters.hash_algorithm_oid().to_id_string().as_str() {
        "1.3.14.3.2.26" => Hash::Broken,
        "2.16.840.1.101.3.4.2.4" => Hash::Sha224,
        "2.16.840.1.101.3.4.2.1" => Hash::Sha256,
        "2.16.840.1.101.3.4.2.2" => Hash::Sha384,
        "2.16.840.1.101.3.4.2.3" => Hash::Sha512,
        _ => return None,
    })
}
