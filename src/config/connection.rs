//! A connection string by itself, and the address that our own configuration serves: the two ends that `pgsidecar diagnose`
//! compares.

use std::net::IpAddr;

use super::error::ConfigError;
use super::sources::Sources;
use super::upstream::{self, Scope, UpstreamKeys};
use super::{
    AuthMethod, ClientTlsMode, Config, Host, ListenAddress, PasswordSource, RootCert, SslMode, UpstreamConfig,
    UpstreamTlsConfig,
};

/// What an app's connection string means, with libpq's variables and defaults for what it leaves out. A driver's name in
/// the scheme (`postgresql+psycopg://`, as SQLAlchemy has it) is passed over.
///
/// # Errors
/// One line that begins with the keyword or variable at fault and holds no secret.
pub fn connection(sources: &Sources, url: &str) -> Result<UpstreamConfig, ConfigError> {
    let keys = UpstreamKeys {
        url: Some(without_driver(url)),
        ..UpstreamKeys::default()
    };
    match upstream::resolve(&keys, Scope::General, sources, &mut Vec::new()) {
        Ok(resolved) => Ok(resolved.upstream),
        Err(message) => Err(ConfigError {
            place: None,
            key: String::new(),
            message,
        }),
    }
}

/// `postgresql+psycopg://…` and Django's `postgis://…` are libpq's `postgresql://…`.
fn without_driver(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) if scheme.starts_with("postg") || scheme.starts_with("psql") => {
            format!("postgresql://{rest}")
        }
        _ => url.to_owned(),
    }
}

/// The variable that an app's frameworks read.
const DATABASE_URL: &str = "DATABASE_URL";

/// The app's own connection string, where the environment has one.
pub fn database_url(sources: &Sources) -> Option<&str> {
    sources.variable(DATABASE_URL)
}

impl Config {
    /// How an app on this machine connects to the first of our own addresses, as the upstream's user. `None` where we
    /// serve none.
    pub fn served(&self) -> Option<UpstreamConfig> {
        let listener = self.listen.first()?;
        let host = match &listener.address {
            ListenAddress::Unix { directory, port } => Host::Unix {
                directory: directory.clone(),
                port: *port,
            },
            ListenAddress::Tcp { host, port } => Host::Tcp {
                host: reachable(host),
                hostaddr: None,
                port: *port,
            },
        };
        let needs_tls = matches!(
            listener.tls.unwrap_or(self.tls.mode),
            ClientTlsMode::Require | ClientTlsMode::VerifyFull
        );
        let needs_password = !matches!(listener.auth, AuthMethod::Trust | AuthMethod::Peer | AuthMethod::Cert);
        Some(UpstreamConfig {
            hosts: vec![host],
            password: if needs_password {
                self.upstream.password.clone()
            } else {
                PasswordSource::None
            },
            tls: UpstreamTlsConfig {
                sslmode: if needs_tls { SslMode::Require } else { SslMode::Disable },
                sslrootcert: RootCert::None,
                sslcrl: None,
                sslcrldir: None,
                direct: false,
                ..self.upstream.tls.clone()
            },
            target_session_attrs: super::TargetSessionAttrs::Any,
            startup_parameters: Vec::new(),
            require_auth: None,
            channel_binding: super::ChannelBinding::Prefer,
            ..self.upstream.clone()
        })
    }
}

/// An address that listens on every interface is reached over loopback.
fn reachable(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
        _ => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn frameworks_spellings_of_a_url_are_read() {
        let sources = Fixture::empty().sources;
        for scheme in ["postgres", "postgresql", "postgresql+psycopg", "postgis", "psql"] {
            let upstream = connection(&sources, &format!("{scheme}://app:s@db.example/shop")).unwrap();
            assert_eq!((upstream.user.as_str(), upstream.dbname.as_str()), ("app", "shop"));
        }
        let error = connection(&sources, "mysql://app:secret@db.example/shop").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn our_own_address_is_reached_over_loopback_without_tls() {
        let config = Config::load(&Fixture::new().variable("PGSIDECAR_LISTEN", "127.0.0.1:7000").sources);
        let served = config.unwrap().config.served().unwrap();
        assert_eq!(
            served.hosts,
            [Host::Tcp {
                host: "127.0.0.1".into(),
                hostaddr: None,
                port: 7000
            }]
        );
        assert_eq!((served.user.as_str(), served.tls.sslmode), ("app", SslMode::Disable));
        assert_eq!(reachable("0.0.0.0"), "127.0.0.1");
        assert_eq!(reachable("::"), "::1");
        assert_eq!(reachable("pgsidecar"), "pgsidecar");
    }

    #[test]
    fn who_is_known_by_the_socket_sends_no_password() {
        let fixture = Fixture::new().variable("PGSIDECAR__LISTEN", "[{address: 'unix:/run/x', auth: peer}]");
        let served = Config::load(&fixture.sources).unwrap().config.served().unwrap();
        assert_eq!(served.password, PasswordSource::None);
        assert!(matches!(served.hosts.as_slice(), [Host::Unix { port: 6432, .. }]));
    }
}
