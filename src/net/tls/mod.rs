//! TLS towards clients and towards PostgreSQL (manual: ssl-tcp, libpq-ssl). rustls does TLS, webpki the usual chains;
//! what libpq accepts beyond them is accepted here, by rules that are written out.
//!
//! Reading order: `session` is an established session, `client_tls` accepts one, `upstream_tls` opens one,
//! `trust` decides about certificates, `lenient_chain` about those that webpki can't read, `revocation` about those
//! that were called back, `peer_name` compares names as libpq does, `verify` ties them to rustls, `certificate`
//! reads one certificate, `signature` checks one signature, `identity` is a certificate with its key and `pem`
//! reads files.

mod certificate;
mod client_tls;
mod identity;
mod lenient_chain;
mod peer_name;
mod pem;
mod revocation;
pub(super) mod session;
mod signature;
mod trust;
pub(super) mod upstream_tls;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;

pub use client_tls::ClientTls;
pub use upstream_tls::UpstreamTls;

/// The application protocol's name in ALPN (manual: protocol-flow-ssl); mandatory where TLS begins without an SSLRequest.
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// A setting of TLS that can't be used, found at start or reload. Fault: the operator's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {}{reason}", .file.as_deref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
pub struct TlsConfigError {
    /// The key that names the file.
    pub key: &'static str,
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    /// What is wrong with it, in one line.
    pub reason: String,
}

impl TlsConfigError {
    fn of_file(key: &'static str, file: &Path, reason: impl ToString) -> Self {
        Self {
            key,
            file: Some(file.into()),
            reason: reason.to_string(),
        }
    }

    fn of_key(key: &'static str, reason: impl ToString) -> Self {
        Self {
            key,
            file: None,
            reason: reason.to_string(),
        }
    }
}

/// AWS-LC, with P-256 first: PostgreSQL before 18 knows no other curve by default (`ssl_ecdh_curve`), and a key share that
/// it can't use would cost each login another round trip. AES-128 comes before AES-256, which is not the safer one in any
/// way that is known today: its keys are derived with SHA-512's core, for which few processors have instructions.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .kx_groups
        .sort_by_key(|group| group.name() != rustls::NamedGroup::secp256r1);
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    Arc::new(provider)
}
