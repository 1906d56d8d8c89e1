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

    /// One that sends what a test wants and compares no names.
    #[cfg(test)]
    pub(super) fn for_test(client: ClientConfig) -> Self {
        let connector = TlsConnector::from(Arc::new(client));
        Self {
            connector,
            names: Names::Ignored,
            begins: Begins::WithSslRequest,
        }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, SerialNumber, date_time_ymd};
    use sha2::{Digest, Sha256, Sha384};

    use super::*;
    use crate::net::test_certificates::{
        Authority, Files, Shown, altered, authority_params, expired, handshake, named, own_root, upstream_config,
        with_names,
    };

    /// What a client says to a server that shows this, with every sslmode: `Ok`, or a part of the refusal.
    async fn outcomes(shown: &Shown, root: Option<&str>, host: &str, expected: [(SslMode, Result<(), &str>); 3]) {
        let files = Files::new();
        let server = files.server(shown, |_| ());
        for (sslmode, expected) in expected {
            let root = root.map(|root| files.write("root.crt", root));
            for max in [TlsVersion::Tls12, TlsVersion::Tls13] {
                let mut config = upstream_config(sslmode, root.clone());
                config.ssl_max_protocol_version = Some(max);
                let client = UpstreamTls::new(&config).unwrap();
                let (_, connected) = handshake(&server, &client, host).await;
                let told = connected.map(|_| ());
                match expected {
                    Ok(()) => assert_eq!(told, Ok(()), "{sslmode:?} {max:?}"),
                    Err(part) => {
                        let told = told.expect_err(&format!("{sslmode:?} {max:?}"));
                        assert!(told.contains(part), "{sslmode:?} {max:?}: {told}");
                    }
                }
            }
        }
    }

    /// The same for the three modes that verify when a root is given: chain, chain, chain and name.
    async fn verified(shown: &Shown, root: &str, host: &str, chain: Result<(), &str>, name: Result<(), &str>) {
        let name = chain.and(name);
        let modes = [
            (SslMode::Require, chain),
            (SslMode::VerifyCa, chain),
            (SslMode::VerifyFull, name),
        ];
        outcomes(shown, Some(root), host, modes).await;
    }

    #[tokio::test]
    async fn without_a_root_any_certificate_will_do() {
        let other = Authority::new("other");
        for shown in [
            other.issue(expired(named("db"))),
            other.issue_version_1(named("x")),
            other.issue(authority_params("y")),
        ] {
            let modes = [
                (SslMode::Allow, Ok(())),
                (SslMode::Prefer, Ok(())),
                (SslMode::Require, Ok(())),
            ];
            outcomes(&shown, None, "db", modes).await;
        }
    }

    #[tokio::test]
    async fn a_root_is_verified_and_names_only_with_verify_full() {
        let root = Authority::new("root");
        let wrong = Err("does not match host name \"db.example\"");
        let shown = root.issue(with_names("x", &["db.example"]));
        verified(&shown, &root.pem(), "db.example", Ok(()), Ok(())).await;
        verified(
            &root.issue(with_names("db.example", &["other"])),
            &root.pem(),
            "db.example",
            Ok(()),
            wrong,
        )
        .await;
        verified(
            &root.issue(named("DB.example")),
            &root.pem(),
            "db.example",
            Ok(()),
            Ok(()),
        )
        .await;
        verified(
            &root.issue(named("*.example")),
            &root.pem(),
            "db.example",
            Ok(()),
            Ok(()),
        )
        .await;
        verified(&root.issue(named("other")), &root.pem(), "db.example", Ok(()), wrong).await;
        verified(
            &shown,
            &Authority::new("root").pem(),
            "db.example",
            Err("invalid peer certificate"),
            Ok(()),
        )
        .await;
        verified(
            &shown,
            &Authority::new("else").pem(),
            "db.example",
            Err("UnknownIssuer"),
            Ok(()),
        )
        .await;
    }

    #[tokio::test]
    async fn prefer_with_a_root_verifies_the_chain_too() {
        let (root, other) = (Authority::new("root"), Authority::new("other"));
        let unknown = Err("UnknownIssuer");
        let modes = [
            (SslMode::Allow, unknown),
            (SslMode::Prefer, unknown),
            (SslMode::Require, unknown),
        ];
        outcomes(&other.issue(named("db")), Some(&root.pem()), "db", modes).await;
    }

    #[tokio::test]
    async fn addresses_match_address_names_and_else_the_common_name() {
        let root = Authority::new("root");
        let wrong = Err("does not match host name");
        for (params, host, expected) in [
            (with_names("x", &["127.0.0.1"]), "127.0.0.1", Ok(())),
            (with_names("x", &["::1"]), "::1", Ok(())),
            (with_names("x", &["127.0.0.2"]), "127.0.0.1", wrong),
            (named("127.0.0.1"), "127.0.0.1", Ok(())),
            // An alternative name of the other kind leaves the common name its word, as in libpq.
            (with_names("127.0.0.1", &["db"]), "127.0.0.1", Ok(())),
            (with_names("db", &["127.0.0.1"]), "db", Ok(())),
            (with_names("127.0.0.1", &["127.0.0.2"]), "127.0.0.1", wrong),
            (with_names("db", &["127.0.0.1", "other"]), "db", wrong),
        ] {
            verified(&root.issue(params), &root.pem(), host, Ok(()), expected).await;
        }
    }

    #[tokio::test]
    async fn the_manuals_own_self_signed_certificate_is_its_own_root() {
        let shown = own_root("db.example", &rcgen::PKCS_ECDSA_P256_SHA256);
        verified(&shown, &shown.pem, "db.example", Ok(()), Ok(())).await;
        verified(&shown, &shown.pem, "other", Ok(()), Err("does not match")).await;
        let same_name = own_root("db.example", &rcgen::PKCS_ECDSA_P256_SHA256);
        verified(
            &same_name,
            &shown.pem,
            "db.example",
            Err("invalid peer certificate"),
            Ok(()),
        )
        .await;
    }

    #[tokio::test]
    async fn version_1_and_authorities_certificates_are_verified_like_others() {
        let (root, namesake) = (Authority::new("root"), Authority::new("root"));
        let old = root.issue_version_1(named("db"));
        verified(&old, &root.pem(), "db", Ok(()), Ok(())).await;
        verified(&old, &root.pem(), "other", Ok(()), Err("does not match")).await;
        verified(&old, &namesake.pem(), "db", Err("BadSignature"), Ok(())).await;
        verified(
            &root.issue_version_1(expired(named("db"))),
            &root.pem(),
            "db",
            Err("Expired"),
            Ok(()),
        )
        .await;
        let below = root.intermediate("middle").intermediate("lower");
        verified(&below.issue_version_1(named("db")), &root.pem(), "db", Ok(()), Ok(())).await;
        verified(&below.issue(authority_params("db")), &root.pem(), "db", Ok(()), Ok(())).await;
        verified(
            &below.issue_version_1(named("db")),
            &namesake.pem(),
            "db",
            Err("BadSignature"),
            Ok(()),
        )
        .await;
    }

    #[tokio::test]
    async fn only_authorities_vouch_for_others_and_only_as_deep_as_they_may() {
        let root = Authority::new("root");
        let no_authority = root.intermediate_of(named("middle"));
        let refused = Err("UnknownIssuer");
        verified(
            &no_authority.issue_version_1(named("db")),
            &root.pem(),
            "db",
            refused,
            Ok(()),
        )
        .await;
        verified(
            &no_authority.issue(authority_params("db")),
            &root.pem(),
            "db",
            refused,
            Ok(()),
        )
        .await;
        let mut flat = authority_params("middle");
        flat.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let flat = root.intermediate_of(flat);
        verified(&flat.issue_version_1(named("db")), &root.pem(), "db", Ok(()), Ok(())).await;
        let too_deep = flat.intermediate("lower");
        verified(
            &too_deep.issue_version_1(named("db")),
            &root.pem(),
            "db",
            refused,
            Ok(()),
        )
        .await;
        let old = root.intermediate_of(expired(authority_params("middle")));
        verified(
            &old.issue_version_1(named("db")),
            &root.pem(),
            "db",
            Err("Expired"),
            Ok(()),
        )
        .await;
    }

    #[tokio::test]
    async fn certificates_for_clients_or_out_of_time_are_refused() {
        let root = Authority::new("root");
        for issue in [
            Authority::issue,
            |root: &Authority, mut params: rcgen::CertificateParams| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                root.issue(params)
            },
        ] {
            verified(
                &issue(&root, expired(named("db"))),
                &root.pem(),
                "db",
                Err("Expired"),
                Ok(()),
            )
            .await;
            let early = altered(named("db"), |params| params.not_before = date_time_ymd(2090, 1, 1));
            verified(&issue(&root, early), &root.pem(), "db", Err("NotValidYet"), Ok(())).await;
            let mut client = named("db");
            client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            verified(
                &issue(&root, client),
                &root.pem(),
                "db",
                Err("invalid peer certificate"),
                Ok(()),
            )
            .await;
        }
    }

    #[tokio::test]
    async fn a_revoked_certificate_is_refused_and_every_certificate_needs_a_current_list() {
        let root = Authority::new("root");
        let middle = root.intermediate("middle");
        let serial = |number: u64| {
            altered(named("db"), |params| {
                params.serial_number = Some(SerialNumber::from(number))
            })
        };
        let chained = [root.revoke(&[], 2090), middle.revoke(&[7], 2090)].concat();
        let namesake = Authority::new("root");
        for (shown, lists, expected) in [
            (root.issue(serial(8)), root.revoke(&[7], 2090), Ok(())),
            (root.issue(serial(7)), root.revoke(&[7], 2090), Err("Revoked")),
            (root.issue(serial(7)), root.revoke(&[7], 2022), Err("Revoked")),
            (root.issue_version_1(serial(8)), root.revoke(&[7], 2090), Ok(())),
            (root.issue_version_1(serial(7)), root.revoke(&[7], 2090), Err("Revoked")),
            (
                root.issue(serial(8)),
                root.revoke(&[7], 2022),
                Err("UnknownRevocationStatus"),
            ),
            (
                root.issue(serial(8)),
                namesake.revoke(&[], 2090),
                Err("UnknownRevocationStatus"),
            ),
            (
                middle.issue(serial(8)),
                middle.revoke(&[7], 2090),
                Err("UnknownRevocationStatus"),
            ),
            (middle.issue(serial(8)), chained.clone(), Ok(())),
            (middle.issue(serial(7)), chained.clone(), Err("Revoked")),
            (middle.issue_version_1(serial(7)), chained.clone(), Err("Revoked")),
        ] {
            let files = Files::new();
            let server = files.server(&shown, |_| ());
            let mut config = upstream_config(SslMode::VerifyFull, Some(files.write("root.crt", &root.pem())));
            config.sslcrl = Some(files.write("root.crl", &lists));
            let (_, by_file) = handshake(&server, &UpstreamTls::new(&config).unwrap(), "db").await;
            config.sslcrldir = Some(tempfile::tempdir().unwrap().keep());
            fs::rename(
                config.sslcrl.take().unwrap(),
                config.sslcrldir.as_ref().unwrap().join("1a2b3c4d.r0"),
            )
            .unwrap();
            let (_, by_directory) = handshake(&server, &UpstreamTls::new(&config).unwrap(), "db").await;
            fs::remove_dir_all(config.sslcrldir.unwrap()).unwrap();
            for told in [by_file, by_directory] {
                match (told.map(|_| ()), expected) {
                    (told, Ok(())) => assert_eq!(told, Ok(())),
                    (told, Err(part)) => {
                        assert!(told.as_ref().is_err_and(|told| told.contains(part)), "{told:?} {part}")
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn the_end_point_is_hashed_as_the_certificates_signature_is() {
        for (algorithm, expected) in [
            (
                &rcgen::PKCS_ECDSA_P256_SHA256,
                Some((|der| Sha256::digest(der).to_vec()) as fn(&[u8]) -> Vec<u8>),
            ),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(|der| Sha384::digest(der).to_vec())),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let shown = own_root("db", algorithm);
            let files = Files::new();
            let client = UpstreamTls::new(&upstream_config(SslMode::Require, None)).unwrap();
            let (accepted, connected) = handshake(&files.server(&shown, |_| ()), &client, "db").await;
            let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
            let expected = expected.map(|hash| hash(&shown.der));
            assert_eq!(connected.tls_server_end_point(), expected.as_deref());
            assert_eq!(accepted.tls_server_end_point(), expected.as_deref());
            assert_eq!(connected.alpn(), Some(ALPN_POSTGRESQL));
            assert_eq!(connected.peer_certificate_common_name(), Some("db"));
        }
    }

    /// Whoever copied a certificate must not get by with it, also where no chain is looked at.
    #[tokio::test]
    async fn a_server_without_the_certificates_key_is_refused_in_every_mode() {
        let files = Files::new();
        let (genuine, thief) = (
            own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256),
            own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256),
        );
        let provider = provider();
        for version in [&TLS12, &TLS13] {
            let key = pem::private_key("key", &files.write("thief.key", &thief.key_pem)).unwrap();
            let key = provider.key_provider.load_private_key(key).unwrap();
            let shown = rustls::sign::CertifiedKey::new(vec![genuine.der.clone().into()], key);
            let server = rustls::ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
            let server = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            for (sslmode, root) in [(SslMode::Require, None), (SslMode::VerifyFull, Some(&genuine.pem))] {
                let root = root.map(|root| files.write("root.crt", root));
                let client = UpstreamTls::new(&upstream_config(sslmode, root)).unwrap();
                let (here, there) = tokio::net::UnixStream::pair().unwrap();
                let connect = client.connect(Stream::from_unix(there).unwrap(), "db");
                let (_, connected) = tokio::join!(server.accept(here), connect);
                let told = connected.unwrap_err().to_string();
                assert!(told.contains("BadSignature"), "{sslmode:?} {version:?} {told}");
            }
        }
    }

    #[tokio::test]
    async fn a_host_that_sni_cannot_carry_is_connected_to_without_it() {
        let root = Authority::new("root");
        let files = Files::new();
        let server = files.server(&root.issue(named("data base")), |_| ());
        let config = upstream_config(SslMode::VerifyFull, Some(files.write("root.crt", &root.pem())));
        let client = UpstreamTls::new(&config).unwrap();
        assert!(handshake(&server, &client, "data base").await.1.is_ok());
        assert!(handshake(&server, &client, "").await.1.is_err());
    }

    #[test]
    fn settings_that_cannot_be_used_name_their_key_and_file() {
        let files = Files::new();
        let shown = Authority::new("root").issue(named("app"));
        let told = |change: &dyn Fn(&mut UpstreamTlsConfig)| {
            let mut config = upstream_config(SslMode::Require, None);
            change(&mut config);
            UpstreamTls::new(&config).unwrap_err().to_string()
        };
        let certificate = files.write("app.crt", &shown.pem);
        let key = files.write("app.key", &shown.key_pem);
        let empty = files.write("empty", "");
        let missing = told(&|config| config.sslrootcert = RootCert::File("/no/such/root.crt".into()));
        assert_eq!(
            missing,
            "sslrootcert: /no/such/root.crt: No such file or directory (os error 2)"
        );
        assert!(told(&|config| config.sslmode = SslMode::VerifyCa).starts_with("sslrootcert: needed"));
        assert!(told(&|config| config.sslrootcert = RootCert::System).contains("verify-full"));
        assert!(
            told(&|config| config.sslrootcert = RootCert::File(empty.clone()))
                .ends_with("no certificate in PEM format")
        );
        assert!(told(&|config| config.sslcert = Some(certificate.clone())).starts_with("sslkey: needed"));
        let with_key = |key: &std::path::Path| {
            let (certificate, key) = (certificate.clone(), key.to_path_buf());
            told(&move |config| (config.sslcert, config.sslkey) = (Some(certificate.clone()), Some(key.clone())))
        };
        assert!(with_key(&empty).ends_with("no private key in PEM format"));
        let other = files.write("other.key", &Authority::new("x").issue(named("x")).key_pem);
        assert!(with_key(&other).contains("not the key of the certificate in"));
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert!(with_key(&files.write("locked.key", locked)).contains("encrypted"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(with_key(&key).contains("group or others have access"));
        let crossed = told(&|config| {
            config.ssl_min_protocol_version = TlsVersion::Tls13;
            config.ssl_max_protocol_version = Some(TlsVersion::Tls12);
        });
        assert!(crossed.starts_with("ssl_max_protocol_version"), "{crossed}");
    }

    #[test]
    fn with_disable_no_file_is_read() {
        let mut config = upstream_config(SslMode::Disable, Some("/no/such/root.crt".into()));
        config.sslcert = Some("/no/such/app.crt".into());
        assert!(UpstreamTls::new(&config).is_ok());
    }
}
