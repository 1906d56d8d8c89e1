//! What rustls asks about a peer's certificate. Chains are [`Trust`]'s; a handshake's signature is always checked, also
//! where no chain is: whoever shows a certificate must hold its key.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate;
use super::signature::{HandshakeVersion, verify_handshake};
use super::trust::{Purpose, Trust};

/// Judges PostgreSQL's certificate.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    /// `None`: any certificate will do (sslmode up to require, without sslrootcert).
    pub(super) trust: Option<Trust>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Judges a client's certificate.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: Trust,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) mandatory: bool,
    pub(super) hints: Vec<DistinguishedName>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is compared after the handshake, as libpq does it: here it may be one that SNI can't carry.
        match &self.trust {
            Some(trust) => trust.verify(end_entity, intermediates, now, Purpose::Server)?,
            None => drop(certificate::parse(end_entity)?),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.algorithms, message, certificate, signed, HandshakeVersion::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.algorithms, message, certificate, signed, HandshakeVersion::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.verify(end_entity, intermediates, now, Purpose::Client)?;
        // A name with a zero byte in it is refused here, where it still ends the handshake.
        certificate::common_name(&certificate::parse(end_entity)?)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.algorithms, message, certificate, signed, HandshakeVersion::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.algorithms, message, certificate, signed, HandshakeVersion::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn check_signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    version: HandshakeVersion,
) -> Result<HandshakeSignatureValid, Error> {
    let certificate = certificate::parse(certificate)?;
    verify_handshake(certificate.public_key().raw, message, signed, algorithms, version)?;
    Ok(HandshakeSignatureValid::assertion())
}
