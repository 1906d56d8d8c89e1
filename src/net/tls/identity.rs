//! A certificate that we show, with the key that proves it.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::{TlsConfigError, certificate, pem};

/// The two keys and files that an identity is configured by.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdentityFiles<'a> {
    pub(super) certificate_key: &'static str,
    pub(super) certificate: &'a Path,
    pub(super) private_key_key: &'static str,
    pub(super) private_key: &'a Path,
}

/// What is shown in handshakes.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) resolver: Arc<SingleCertAndKey>,
    /// Channel binding's hash of the certificate.
    pub(super) end_point: Option<Box<[u8]>>,
}

impl IdentityFiles<'_> {
    /// Reads the chain and the key, and makes sure that they belong together.
    pub(super) fn load(self, provider: &CryptoProvider) -> Result<Identity, TlsConfigError> {
        let bad_certificate =
            |reason: &dyn ToString| TlsConfigError::of_file(self.certificate_key, self.certificate, reason.to_string());
        let bad_key =
            |reason: &dyn ToString| TlsConfigError::of_file(self.private_key_key, self.private_key, reason.to_string());
        let chain = pem::certificates(self.certificate_key, self.certificate)?;
        let key = pem::private_key(self.private_key_key, self.private_key)?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| bad_key(&error))?;
        let leaf = chain.first().ok_or_else(|| bad_certificate(&"no certificate"))?;
        let end_point = certificate::end_point(leaf);
        // rustls would compare them too, but reads no certificate of X.509 version 1.
        let parsed = certificate::parse(leaf).map_err(|error| bad_certificate(&error))?;
        if key
            .public_key()
            .is_some_and(|public| public.as_ref() != parsed.public_key().raw)
        {
            return Err(bad_key(&format!(
                "not the key of the certificate in {}",
                self.certificate.display()
            )));
        }
        let resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        Ok(Identity { resolver, end_point })
    }
}
