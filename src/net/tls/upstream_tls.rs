//! TLS towards PostgreSQL: we are the client, with libpq's rules (manual: libpq-ssl).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, SupportedProtocolVersion};
use tokio_rustls::{TlsConnector, TlsStream};

use super::identity::{Identity, IdentityFiles};
use super::revocation::RevocationLists;
use super::session::{Certificates, TlsSession, TlsSocket};
use super::trust::Trust;
use super::verify::ServerVerifier;
use super::{ALPN_POSTGRESQL, TlsConfigError, certificate, peer_name, pem, provider};
use crate::config::{RootCert, SslMode, TlsVersion, UpstreamTlsConfig};
use crate::net::Stream;

/// Opens TLS to one upstream. Cheap to clone; its files were read when it was built.
#[derive(Clone)]
pub struct UpstreamTls {
    connector: TlsConnector,
    names: Names,
    begins: Begins,
}

/// Whether the host's name is compared with the certificate's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Compared,
    Ignored,
}

/// How TLS begins on a new connection (libpq's sslnegotiation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    WithSslRequest,
    Directly,
}

impl UpstreamTls {
    /// Reads the files that the settings name. The error names key and file.
    ///
    /// A chain is verified wherever `sslrootcert` is configured, whatever the mode, as libpq does; so `require` with a
    /// root is verify-ca, and `prefer` with one falls back to no TLS when the chain is wrong. Unlike libpq, a file that
    /// is named and missing is an error in every mode. With `disable` nothing is read.
    pub fn new(config: &UpstreamTlsConfig) -> Result<Self, TlsConfigError> {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let trust = if config.sslmode == SslMode::Disable {
            None
        } else {
            trust(config, &provider)?
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions(config)?)
            .map_err(|error| TlsConfigError::of_key("ssl_min_protocol_version", error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, algorithms }));
        let mut client = match identity(config, &provider)? {
            Some(identity) => builder.with_client_cert_resolver(identity.resolver),
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
        client.enable_sni = config.sslsni;
        // PostgreSQL resumes no sessions, and a resumed one would not be verified anew.
        client.resumption = Resumption::disabled();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            names: if config.sslmode == SslMode::VerifyFull {
                Names::Compared
            } else {
                Names::Ignored
            },
            begins: if config.direct {
                Begins::Directly
            } else {
                Begins::WithSslRequest
            },
        })
    }

    /// How TLS is begun.
    pub(crate) fn begins(&self) -> Begins {
        self.begins
    }

    /// Runs the handshake and verifies what sslmode asks for. `host` is the name that was configured, not an address
    /// that it resolved to. The deadline is the caller's.
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let parts = stream.into_plain()?;
        let socket = TlsSocket::new(BytesMut::new(), parts.socket);
        let connected = self.connector.connect(server_name(host), socket).await?;
        let (_, connection) = connected.get_ref();
        if self.begins == Begins::Directly && connection.alpn_protocol() != Some(ALPN_POSTGRESQL) {
            return Err(refusal(
                "the server did not agree to ALPN protocol \"postgresql\", which direct TLS needs",
            ));
        }
        let leaf = connection.peer_certificates().and_then(|chain| chain.first());
        let leaf = leaf.ok_or_else(|| refusal("the server showed no certificate"))?;
        if self.names == Names::Compared {
            compare_names(leaf, host)?;
        }
        let certificates = Certificates {
            end_point: certificate::end_point(leaf),
            common_name: name_of(leaf),
        };
        Ok(Stream::from_tls(
            TlsSession::new(TlsStream::Client(connected), certificates),
            parts.rest,
        ))
    }
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UpstreamTls({:?}, {:?})", self.names, self.begins)
    }
}

fn trust(config: &UpstreamTlsConfig, provider: &CryptoProvider) -> Result<Option<Trust>, TlsConfigError> {
    const KEY: &str = "sslrootcert";
    let algorithms = provider.signature_verification_algorithms;
    let trust = match &config.sslrootcert {
        RootCert::None if config.sslmode >= SslMode::VerifyCa => {
            return Err(TlsConfigError::of_key(
                KEY,
                "needed to verify the server's certificate (a file, or \"system\")",
            ));
        }
        RootCert::None => return Ok(None),
        // Anyone can get a certificate of a public authority: only its name tells the server from others.
        RootCert::System if config.sslmode != SslMode::VerifyFull => {
            return Err(TlsConfigError::of_key(KEY, "\"system\" needs sslmode=verify-full"));
        }
        RootCert::System => Trust::from_system(KEY, algorithms)?,
        RootCert::File(file) => Trust::from_file(KEY, file, algorithms)?,
    };
    let lists = RevocationLists::load(config.sslcrl.as_deref(), config.sslcrldir.as_deref())?;
    Ok(Some(trust.with_revocation(lists)))
}

fn identity(config: &UpstreamTlsConfig, provider: &CryptoProvider) -> Result<Option<Identity>, TlsConfigError> {
    let (Some(certificate), mode) = (&config.sslcert, config.sslmode) else {
        return Ok(None);
    };
    if mode == SslMode::Disable {
        return Ok(None);
    }
    let missing = || TlsConfigError::of_key("sslkey", "needed beside sslcert");
    let private_key = config.sslkey.as_deref().ok_or_else(missing)?;
    pem::refuse_readable_key("sslkey", private_key)?;
    let files = IdentityFiles {
        certificate_key: "sslcert",
        certificate,
        private_key_key: "sslkey",
        private_key,
    };
    files.load(provider).map(Some)
}

fn versions(config: &UpstreamTlsConfig) -> Result<Vec<&'static SupportedProtocolVersion>, TlsConfigError> {
    match (config.ssl_min_protocol_version, config.ssl_max_protocol_version) {
        (TlsVersion::Tls12, None | Some(TlsVersion::Tls13)) => Ok(vec![&TLS13, &TLS12]),
        (TlsVersion::Tls12, Some(TlsVersion::Tls12)) => Ok(vec![&TLS12]),
        (TlsVersion::Tls13, None | Some(TlsVersion::Tls13)) => Ok(vec![&TLS13]),
        (TlsVersion::Tls13, Some(TlsVersion::Tls12)) => Err(TlsConfigError::of_key(
            "ssl_max_protocol_version",
            "below ssl_min_protocol_version",
        )),
    }
}

/// The name for SNI. One that SNI can't carry is replaced by an address, for which none is sent.
fn server_name(host: &str) -> ServerName<'static> {
    let host = host.strip_suffix('.').unwrap_or(host).to_owned();
    ServerName::try_from(host).unwrap_or_else(|_| ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

fn compare_names(leaf: &CertificateDer<'_>, host: &str) -> io::Result<()> {
    let leaf = certificate::parse(leaf).map_err(|error: CertificateError| refusal(&error.to_string()))?;
    peer_name::check(&leaf, host).map_err(|reason| refusal(&reason))
}

fn name_of(leaf: &CertificateDer<'_>) -> Option<Box<str>> {
    let leaf = certificate::parse(leaf).ok()?;
    certificate::common_name(&leaf).ok().flatten().map(Box::from)
}

fn refusal(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
