//! Certificates for tests, made as they are needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, SigningKey, date_time_ymd,
};
use tempfile::TempDir;

use crate::config::{ClientTlsConfig, ClientTlsMode, RootCert, SslMode, TlsVersion, UpstreamTlsConfig};
use crate::net::{ClientTls, Stream, UpstreamTls};

/// A directory of PEM files that only their owner can read.
pub(super) struct Files(TempDir);

impl Files {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The server's side with this certificate, and whatever else `change` sets.
    pub(super) fn server(&self, shown: &Shown, change: impl FnOnce(&mut ClientTlsConfig)) -> ClientTls {
        let mut config = ClientTlsConfig {
            mode: ClientTlsMode::Require,
            cert: Some(self.write("server.crt", &shown.pem)),
            key: Some(self.write("server.key", &shown.key_pem)),
            client_ca: None,
        };
        change(&mut config);
        ClientTls::new(&config).unwrap()
    }
}

/// A certificate, its chain and its key.
pub(super) struct Shown {
    pub(super) pem: String,
    pub(super) der: Vec<u8>,
    pub(super) key_pem: String,
}

/// A certificate authority.
pub(super) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(super) certificate: Certificate,
    /// What a server shows behind its own certificate; empty for a root.
    chain: String,
}

/// Parameters with this common name and nothing else: no subjectAltName.
pub(super) fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params
}

/// The same with DNS names or addresses beside it.
pub(super) fn with_names(name: &str, alternative: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternative.iter().map(ToString::to_string).collect();
    let names = CertificateParams::new(names).unwrap().subject_alt_names;
    altered(named(name), |params| params.subject_alt_names = names)
}

/// These parameters with a change.
pub(super) fn altered(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    change(&mut params);
    params
}

/// The same, out of date.
pub(super) fn expired(params: CertificateParams) -> CertificateParams {
    altered(params, |params| params.not_after = date_time_ymd(2021, 1, 1))
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let params = authority_params(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            params,
            key,
            certificate,
            chain: String::new(),
        }
    }

    pub(super) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_of(authority_params(name))
    }

    pub(super) fn intermediate_of(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let chain = certificate.pem() + &self.chain;
        Self {
            params,
            key,
            certificate,
            chain,
        }
    }

    pub(super) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(super) fn issue(&self, params: CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let pem = certificate.pem() + &self.chain;
        Shown {
            pem,
            der: certificate.der().to_vec(),
            key_pem: key.serialize_pem(),
        }
    }

    /// The same as X.509 version 1, as `openssl x509 -req` makes it up to OpenSSL 3.1: no version, no extensions.
    pub(super) fn issue_version_1(&self, params: CertificateParams) -> Shown {
        let shown = self.issue(params);
        let certificate = elements(body(&shown.der));
        let parts = elements(body(certificate[0]));
        let to_be_signed = element(0x30, &parts[1..7].concat());
        let signature = [&[0][..], &self.key.sign(&to_be_signed).unwrap()].concat();
        let der = element(
            0x30,
            &[&to_be_signed, certificate[1], &element(0x03, &signature)[..]].concat(),
        );
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n{}",
            self.chain
        );
        Shown {
            pem,
            der,
            key_pem: shown.key_pem,
        }
    }

    /// A revocation list that ends in that year.
    pub(super) fn revoke(&self, serials: &[u64], until_year: i32) -> String {
        let revoked_certs = serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(until_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

pub(super) fn authority_params(name: &str) -> CertificateParams {
    altered(named(name), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
    })
}

/// A certificate that is its own root, as the manual's `openssl req -new -x509` makes it: an authority.
pub(super) fn own_root(name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Shown {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = authority_params(name).self_signed(&key).unwrap();
    Shown {
        pem: certificate.pem(),
        der: certificate.der().to_vec(),
        key_pem: key.serialize_pem(),
    }
}

/// Settings towards the server that name this root.
pub(super) fn upstream_config(sslmode: SslMode, sslrootcert: Option<PathBuf>) -> UpstreamTlsConfig {
    UpstreamTlsConfig {
        sslmode,
        direct: false,
        sslrootcert: sslrootcert.map_or(RootCert::None, RootCert::File),
        sslcert: None,
        sslkey: None,
        sslcrl: None,
        sslcrldir: None,
        sslsni: true,
        ssl_min_protocol_version: TlsVersion::Tls12,
        ssl_max_protocol_version: None,
    }
}

/// Both ends of one handshake over a socket pair: the server's outcome, then the client's.
pub(super) async fn handshake(
    server: &ClientTls,
    client: &UpstreamTls,
    host: &str,
) -> (Result<Stream, String>, Result<Stream, String>) {
    let (here, there) = Stream::pair().unwrap();
    let (accepted, connected) = tokio::join!(server.accept(here, bytes::BytesMut::new()), client.connect(there, host));
    (
        accepted.map_err(|error| error.to_string()),
        connected.map_err(|error| error.to_string()),
    )
}

/// An element of DER with its header.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend(content);
    out
}

fn body(element: &[u8]) -> &[u8] {
    &element[header_len(element)..]
}

fn elements(mut content: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !content.is_empty() {
        let header = header_len(content);
        let length = match header {
            2 => usize::from(content[1]),
            _ => content[2..header]
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        let (first, rest) = content.split_at(header + length);
        out.push(first);
        content = rest;
    }
    out
}

fn header_len(element: &[u8]) -> usize {
    if element[1] < 0x80 {
        2
    } else {
        2 + usize::from(element[1] & 0x7f)
    }
}
