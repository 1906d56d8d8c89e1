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
        // As PostgreSQL's ssl_prefer_server_ciphers.
        server.ignore_client_order = true;
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::config::SslMode;
    use crate::net::UpstreamTls;
    use crate::net::test_certificates::{
        Authority, Files, Shown, altered, expired, handshake, named, own_root, upstream_config,
    };

    fn client_showing(files: &Files, shown: Option<&Shown>) -> UpstreamTls {
        let mut config = upstream_config(SslMode::Require, None);
        if let Some(shown) = shown {
            config.sslcert = Some(files.write("client.crt", &shown.pem));
            config.sslkey = Some(files.write("client.key", &shown.key_pem));
        }
        UpstreamTls::new(&config).unwrap()
    }

    #[tokio::test]
    async fn a_clients_certificate_is_verified_and_its_common_name_known() {
        let (root, other) = (Authority::new("root"), Authority::new("other"));
        let server_only = altered(named("app"), |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
        });
        type Outcome = Result<Option<&'static str>, ()>;
        let cases: [(Option<Shown>, Outcome, Outcome); 8] = [
            (None, Ok(None), Err(())),
            (Some(root.issue(named("app"))), Ok(Some("app")), Ok(Some("app"))),
            (
                Some(root.issue_version_1(named("app"))),
                Ok(Some("app")),
                Ok(Some("app")),
            ),
            (
                Some(root.intermediate("middle").issue(named("app"))),
                Ok(Some("app")),
                Ok(Some("app")),
            ),
            (Some(other.issue(named("app"))), Err(()), Err(())),
            (Some(root.issue(server_only)), Err(()), Err(())),
            (Some(root.issue(expired(named("app")))), Err(()), Err(())),
            (Some(root.issue(named("ap\0p"))), Err(()), Err(())),
        ];
        for (position, (shown, if_allowed, if_required)) in cases.into_iter().enumerate() {
            for (mode, expected) in [
                (ClientTlsMode::Allow, if_allowed),
                (ClientTlsMode::VerifyFull, if_required),
            ] {
                let files = Files::new();
                let server = files.server(&root.issue(named("db")), |config| {
                    config.mode = mode;
                    config.client_ca = Some(files.write("client_ca.crt", &root.pem()));
                });
                let (accepted, _connected) = handshake(&server, &client_showing(&files, shown.as_ref()), "db").await;
                let name = accepted
                    .as_ref()
                    .map(Stream::peer_certificate_common_name)
                    .map_err(|_| ());
                assert_eq!(name, expected, "case {position} {mode:?}");
            }
        }
    }

    #[tokio::test]
    async fn without_client_ca_no_certificate_is_asked_for() {
        let root = Authority::new("root");
        let files = Files::new();
        let server = files.server(&root.issue_version_1(named("db")), |_| ());
        let client = client_showing(&files, Some(&root.issue(named("app"))));
        let (accepted, _) = handshake(&server, &client, "db").await;
        assert_eq!(accepted.unwrap().peer_certificate_common_name(), None);
    }

    #[tokio::test]
    async fn trap_05_direct_tls_takes_the_bytes_already_read_and_insists_on_alpn() {
        let files = Files::new();
        let server = files.server(&own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256), |_| ());
        for (protocols, is_accepted) in [
            (vec![ALPN_POSTGRESQL.to_vec()], true),
            (vec![], false),
            (vec![b"h2".to_vec()], false),
        ] {
            let (mut here, there) = Stream::pair().unwrap();
            let mut rustls = upstream_without_verification();
            rustls.alpn_protocols = protocols.clone();
            let client = UpstreamTls::for_test(rustls);
            let accept = async {
                let mut ahead = BytesMut::with_capacity(100);
                here.read_buf(&mut ahead).await.unwrap();
                assert_eq!(ahead[0], 0x16);
                server.accept(here, ahead).await
            };
            let (accepted, connected) = tokio::join!(accept, client.connect(there, "db"));
            assert_eq!(accepted.is_ok(), is_accepted, "{protocols:?}");
            if let (Ok(mut accepted), Ok(mut connected)) = (accepted, connected) {
                connected.write_all(b"hello").await.unwrap();
                let mut buf = BytesMut::with_capacity(64);
                accepted.read_buf(&mut buf).await.unwrap();
                assert_eq!(&buf[..], b"hello");
            }
        }
    }

    fn upstream_without_verification() -> rustls::ClientConfig {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(super::super::verify::ServerVerifier {
                trust: None,
                algorithms,
            }))
            .with_no_client_auth()
    }

    #[tokio::test]
    async fn trap_04_tls_inside_tls_is_refused() {
        let files = Files::new();
        let server = files.server(&own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256), |_| ());
        let (accepted, _connected) = handshake(&server, &client_showing(&files, None), "db").await;
        assert!(server.accept(accepted.unwrap(), BytesMut::new()).await.is_err());
    }

    #[tokio::test]
    async fn garbage_and_an_end_in_the_handshake_are_errors() {
        let files = Files::new();
        let server = files.server(&own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256), |_| ());
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"\x16\x03\x01\xff\xff\xff"] {
            let (here, mut there) = Stream::pair().unwrap();
            there.write_all(bytes).await.unwrap();
            poll_fn(|cx| there.poll_shutdown(cx)).await.unwrap();
            assert!(server.accept(here, BytesMut::new()).await.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn settings_that_cannot_be_used_name_their_key() {
        let files = Files::new();
        let shown = own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256);
        let mut config = ClientTlsConfig {
            mode: ClientTlsMode::VerifyFull,
            cert: None,
            key: None,
            client_ca: None,
        };
        assert!(
            ClientTls::new(&config)
                .unwrap_err()
                .to_string()
                .starts_with("tls.cert: needed")
        );
        config.cert = Some(files.write("db.crt", &shown.pem));
        assert!(
            ClientTls::new(&config)
                .unwrap_err()
                .to_string()
                .starts_with("tls.key: needed")
        );
        config.key = Some(files.write("db.key", &shown.key_pem));
        assert!(
            ClientTls::new(&config)
                .unwrap_err()
                .to_string()
                .starts_with("tls.client_ca: needed")
        );
        config.client_ca = Some("/no/such/ca.crt".into());
        assert!(
            ClientTls::new(&config)
                .unwrap_err()
                .to_string()
                .starts_with("tls.client_ca: /no/such/ca.crt: No such")
        );
    }
}
