//! TLS towards clients: we are the server.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::identity::IdentityFiles;
use super::session::{Certificates, TlsSession, TlsSocket};
use super::trust::Trust;
use super::verify::ClientVerifier;
use super::{ALPN_POSTGRESQL, TlsConfigError, certificate, provider};
use crate::config::{ClientTlsConfig, ClientTlsMode};
use crate::net::Stream;

/// Accepts TLS from clients. Cheap to clone; a reload builds a new one, and sessions keep what they began with.
#[derive(Clone)]
pub struct ClientTls {
    acceptor: TlsAcceptor,
    end_point: Option<Box<[u8]>>,
}

impl ClientTls {
    /// Reads `tls.cert`, `tls.key` and `tls.client_ca`. With `client_ca`, a certificate that a client shows is verified;
    /// with mode verify-full it must show one. The error names key and file.
    pub fn new(config: &ClientTlsConfig) -> Result<Self, TlsConfigError> {
        let provider = provider();
        let identity = IdentityFiles {
            certificate_key: "tls.cert",
            certificate: required("tls.cert", config.cert.as_deref())?,
            private_key_key: "tls.key",
            private_key: required("tls.key", config.key.as_deref())?,
        };
        let identity = identity.load(&provider)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsConfigError::of_key("tls", error))?;
        let builder = match client_verifier(config, &provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(identity.resolver);
        server.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
        // PostgreSQL resumes no sessions, so no client asks; tickets would only be bytes behind each handshake.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            end_point: identity.end_point,
        })
    }

    /// Runs the handshake. `already_read` is what came of a ClientHello that no SSLRequest announced; it is empty behind
    /// an SSLRequest, where early bytes are the caller's to refuse (trap 3). Without an announcement ALPN is mandatory
    /// (trap 5). The deadline is the caller's.
    pub async fn accept(&self, stream: Stream, already_read: BytesMut) -> io::Result<Stream> {
        let direct = !already_read.is_empty();
        let parts = stream.into_plain()?;
        let accepted = self.acceptor.accept(TlsSocket::new(already_read, parts.socket)).await?;
        let (_, connection) = accepted.get_ref();
        if direct && connection.alpn_protocol() != Some(ALPN_POSTGRESQL) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "received direct SSL connection request without ALPN protocol negotiation extension",
            ));
        }
        let common_name = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(|leaf| certificate::parse(leaf).ok())
            .and_then(|leaf| certificate::common_name(&leaf).ok().flatten().map(Box::from));
        let certificates = Certificates {
            end_point: self.end_point.clone(),
            common_name,
        };
        Ok(Stream::from_tls(
            TlsSession::new(TlsStream::Server(accepted), certificates),
            parts.rest,
        ))
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

fn client_verifier(
    config: &ClientTlsConfig,
    provider: &CryptoProvider,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsConfigError> {
    let mandatory = config.mode == ClientTlsMode::VerifyFull;
    let Some(file) = &config.client_ca else {
        let reason = "needed for tls.mode verify-full";
        return if mandatory {
            Err(TlsConfigError::of_key("tls.client_ca", reason))
        } else {
            Ok(None)
        };
    };
    let algorithms = provider.signature_verification_algorithms;
    let trust = Trust::from_file("tls.client_ca", file, algorithms)?;
    let hints = trust.subjects();
    Ok(Some(Arc::new(ClientVerifier {
        trust,
        algorithms,
        mandatory,
        hints,
    })))
}

fn required<'a>(key: &'static str, file: Option<&'a Path>) -> Result<&'a Path, TlsConfigError> {
    file.ok_or_else(|| TlsConfigError::of_key(key, "needed where clients may use TLS"))
}
