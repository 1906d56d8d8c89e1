//! libpq's TLS parameters (manual: libpq-ssl), its default files included.
//!
//! Stricter than libpq in one thing: a file that was named and isn't there is refused, where libpq would connect without
//! it and without a word.

use std::path::PathBuf;

use super::sources::Sources;
use super::upstream::Lookup;
use super::{Host, RootCert, SslMode, TlsVersion, UpstreamTlsConfig};

pub(super) const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

pub(super) const TLS_VERSIONS: &[(&str, TlsVersion)] =
    &[("TLSv1.2", TlsVersion::Tls12), ("TLSv1.3", TlsVersion::Tls13)];

/// The TLS side of an upstream.
pub(super) fn resolve(parameters: &Lookup<'_>, hosts: &[Host], sources: &Sources) -> Result<UpstreamTlsConfig, String> {
    let is_system = parameters.text("sslrootcert") == Some("system");
    let sslmode = ssl_mode(parameters, sources, is_system)?;
    let files = Files {
        parameters,
        sources,
        is_used: sslmode != SslMode::Disable,
    };
    let sslrootcert = if is_system {
        RootCert::System
    } else {
        files
            .named_or_default("sslrootcert", "root.crt")?
            .map_or(RootCert::None, RootCert::File)
    };
    check_verification(sslmode, &sslrootcert, hosts, sources)?;
    let sslcert = match parameters.word("sslcertmode", &[("disable", false), ("allow", true)], true) {
        Ok(true) => files.named_or_default("sslcert", "postgresql.crt")?,
        Ok(false) => None,
        Err(_) => {
            return Err(format!(
                "{}: only disable and allow are supported",
                parameters.blame("sslcertmode")
            ));
        }
    };
    let (ssl_min_protocol_version, ssl_max_protocol_version) = tls_versions(parameters)?;
    Ok(UpstreamTlsConfig {
        direct: is_direct(parameters, sslmode)?,
        sslkey: if sslcert.is_some() { private_key(&files)? } else { None },
        sslcrl: files.named_or_default("sslcrl", "root.crl")?,
        sslcrldir: files.directory("sslcrldir")?,
        sslsni: parameters.word("sslsni", &[("1", true), ("0", false)], true)?,
        sslmode,
        sslrootcert,
        sslcert,
        ssl_min_protocol_version,
        ssl_max_protocol_version,
    })
}

/// `sslmode`; with the system's roots nothing weaker than verify-full, because anyone can get a certificate from those.
fn ssl_mode(parameters: &Lookup<'_>, sources: &Sources, is_system: bool) -> Result<SslMode, String> {
    let requires = sources.variable("PGREQUIRESSL").is_some_and(|it| it.starts_with('1'));
    let default = match (is_system, requires) {
        (true, _) => SslMode::VerifyFull,
        (false, true) => SslMode::Require,
        (false, false) => SslMode::Prefer,
    };
    let sslmode = parameters.word("sslmode", SSL_MODES, default)?;
    if is_system && sslmode != SslMode::VerifyFull {
        let blame = parameters.blame("sslmode");
        return Err(format!(
            "{blame}: a weak sslmode may not be used with sslrootcert=system (use verify-full)"
        ));
    }
    Ok(sslmode)
}

fn is_direct(parameters: &Lookup<'_>, sslmode: SslMode) -> Result<bool, String> {
    let direct = parameters.word("sslnegotiation", &[("postgres", false), ("direct", true)], false)?;
    if direct && sslmode < SslMode::Require {
        let hint = "use require, verify-ca or verify-full";
        return Err(format!(
            "sslmode: a weak sslmode may not be used with sslnegotiation=direct ({hint})"
        ));
    }
    Ok(direct)
}

fn check_verification(sslmode: SslMode, roots: &RootCert, hosts: &[Host], sources: &Sources) -> Result<(), String> {
    if sslmode < SslMode::VerifyCa {
        return Ok(());
    }
    if *roots == RootCert::None {
        let path = sources.home.as_ref().map_or("~/.postgresql/root.crt".into(), |home| {
            home.join(".postgresql/root.crt").display().to_string()
        });
        return Err(format!(
            "sslrootcert: root certificate file {path:?} does not exist; provide the file, use the system's trusted roots \
             with sslrootcert=system, or change sslmode to disable server certificate verification"
        ));
    }
    let lacks_name =
        |host: &Host| matches!(host, Host::Tcp { host, hostaddr: Some(address), .. } if *host == address.to_string());
    if sslmode == SslMode::VerifyFull && hosts.iter().any(lacks_name) {
        return Err("host: a host name must be specified beside hostaddr for a verified SSL connection".into());
    }
    Ok(())
}

/// TLS 1.2 and 1.3 are spoken; the older ones were withdrawn (RFC 8996).
fn tls_versions(parameters: &Lookup<'_>) -> Result<(TlsVersion, Option<TlsVersion>), String> {
    let version = |name: &str| match parameters.text(name) {
        None => Ok(None),
        Some(old @ ("TLSv1" | "TLSv1.1")) => Err(format!(
            "{}: {old} is not supported; use TLSv1.2 or TLSv1.3",
            parameters.blame(name)
        )),
        Some(_) => parameters.word(name, TLS_VERSIONS, TlsVersion::Tls12).map(Some),
    };
    let (least, most) = (
        version("ssl_min_protocol_version")?,
        version("ssl_max_protocol_version")?,
    );
    let least = least.unwrap_or_default();
    if most.is_some_and(|most| most < least) {
        return Err("ssl_min_protocol_version: is above ssl_max_protocol_version".into());
    }
    Ok((least, most))
}

/// The key of the client certificate. As in libpq it must be there, and no one else may read it.
fn private_key(files: &Files<'_>) -> Result<Option<PathBuf>, String> {
    use std::os::unix::fs::MetadataExt;
    if files
        .parameters
        .text("sslkey")
        .is_some_and(|key| key.contains(':') && !key.starts_with('/'))
    {
        return Err("sslkey: keys in OpenSSL engines are not supported".into());
    }
    let path = files.named_or_default("sslkey", "postgresql.key")?;
    let path = path.ok_or("sslkey: a client certificate is present, but not its private key file")?;
    if let Ok(metadata) = std::fs::metadata(files.sources.located(&path)) {
        // Root may share a key with a group, as certificate packages and Kubernetes do.
        let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
        if metadata.mode() & 0o777 & !allowed != 0 {
            let hint = "it must have permissions 0600 or less, or 0640 or less if it is owned by root";
            return Err(format!("sslkey: {} has group or world access; {hint}", path.display()));
        }
    }
    Ok(Some(path))
}

/// Finds files by libpq's rules.
struct Files<'a> {
    parameters: &'a Lookup<'a>,
    sources: &'a Sources,
    /// Without TLS no file is needed, and none is looked for.
    is_used: bool,
}

impl Files<'_> {
    /// The file that was named, which must be readable, or the default one in `~/.postgresql` if it is there.
    fn named_or_default(&self, name: &str, default: &str) -> Result<Option<PathBuf>, String> {
        if !self.is_used {
            return Ok(self.parameters.path(name));
        }
        if let Some(path) = self.parameters.path(name) {
            self.sources
                .read(&path)
                .map_err(|message| format!("{}: {message}", self.parameters.blame(name)))?;
            return Ok(Some(path));
        }
        let default = self
            .sources
            .home
            .as_ref()
            .map(|home| home.join(".postgresql").join(default));
        Ok(default.filter(|path| self.sources.is_file(path)))
    }

    fn directory(&self, name: &str) -> Result<Option<PathBuf>, String> {
        let path = self.parameters.path(name);
        match path {
            Some(path) if self.is_used && !self.sources.is_directory(&path) => Err(format!(
                "{}: {} is not a directory",
                self.parameters.blame(name),
                path.display()
            )),
            path => Ok(path),
        }
    }
}
