//! Addresses that clients connect to, and which ways to log in are safe on them.

use std::fmt;
use std::net::IpAddr;

use super::error::Problem;
use super::file::{ListenFile, ScalarOr};
use super::path::KeyPath;
use super::scalar::Scalar;
use super::{AuthMethod, ClientTlsMode, ListenAddress, ListenerConfig};

/// The port of a listener that names none.
pub(super) const PORT: u16 = 6432;

pub(super) const AUTH_METHODS: &[(&str, AuthMethod)] = &[
    ("scram-sha-256", AuthMethod::ScramSha256),
    ("md5", AuthMethod::Md5),
    ("password", AuthMethod::Password),
    ("cert", AuthMethod::Cert),
    ("trust", AuthMethod::Trust),
    ("peer", AuthMethod::Peer),
];

pub(super) const TLS_MODES: &[(&str, ClientTlsMode)] = &[
    ("disable", ClientTlsMode::Disable),
    ("allow", ClientTlsMode::Allow),
    ("require", ClientTlsMode::Require),
    ("verify-full", ClientTlsMode::VerifyFull),
];

/// What the listeners are checked against.
pub(super) struct Security {
    pub(super) allow_insecure_listen: bool,
    pub(super) tls_mode: ClientTlsMode,
}

/// Resolves `listen:` in any of its forms.
pub(super) fn resolve(
    file: Option<&ScalarOr<Vec<ScalarOr<ListenFile>>>>,
    security: &Security,
) -> Result<Vec<ListenerConfig>, Problem> {
    let path = KeyPath::dotted("listen");
    let listeners = match file {
        None => vec![listener(&text_entry(&format!("127.0.0.1:{PORT}")), &path, security)?],
        Some(ScalarOr::Scalar(text)) => {
            let text = text.text().map_err(|message| Problem::new(path.clone(), message))?;
            // A comma between several, as in PGSIDECAR_LISTEN.
            let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            entries
                .map(|entry| listener(&text_entry(entry), &path, security))
                .collect::<Result<_, _>>()?
        }
        Some(ScalarOr::Full(entries)) => {
            let entries = entries.iter().enumerate();
            entries
                .map(|(at, entry)| listener(entry, &path.index(at), security))
                .collect::<Result<Vec<_>, _>>()?
        }
    };
    if listeners.is_empty() {
        return Err(Problem::new(path, "names no address"));
    }
    for (position, listener) in listeners.iter().enumerate() {
        let is_chosen_by_system = matches!(listener.address, ListenAddress::Tcp { port: 0, .. });
        if !is_chosen_by_system
            && listeners
                .iter()
                .take(position)
                .any(|other| other.address == listener.address)
        {
            return Err(Problem::new(
                path.index(position),
                format!("{} is given twice", listener.address),
            ));
        }
    }
    Ok(listeners)
}

fn text_entry(address: &str) -> ScalarOr<ListenFile> {
    ScalarOr::Scalar(Scalar::Text(address.to_owned()))
}

fn listener(entry: &ScalarOr<ListenFile>, path: &KeyPath, security: &Security) -> Result<ListenerConfig, Problem> {
    let (file, address_path) = match entry {
        ScalarOr::Scalar(address) => (
            ListenFile {
                address: Some(address.clone()),
                ..Default::default()
            },
            path.clone(),
        ),
        ScalarOr::Full(file) => (file.clone(), path.key("address")),
    };
    let at = |key: &str| {
        let path = path.key(key);
        move |message: String| Problem::new(path.clone(), message)
    };
    let address = file
        .address
        .as_ref()
        .ok_or_else(|| at("address")("is missing".into()))?;
    let address = address
        .text()
        .and_then(|text| parse_address(&text))
        .map_err(|message| Problem::new(address_path.clone(), message))?;
    let auth = match &file.auth {
        Some(auth) => auth.word(AUTH_METHODS).map_err(at("auth"))?,
        None => AuthMethod::default(),
    };
    let is_unix = matches!(address, ListenAddress::Unix { .. });
    let tls = match &file.tls {
        Some(tls) => Some(tls.word(TLS_MODES).map_err(at("tls"))?),
        // No client speaks TLS over a unix socket.
        None => is_unix.then_some(ClientTlsMode::Disable),
    };
    if is_unix && tls != Some(ClientTlsMode::Disable) {
        return Err(at("tls")("a unix socket has no TLS".into()));
    }
    let unix_socket_mode = unix_socket_mode(file.unix_socket_mode.as_ref(), is_unix, auth);
    let listener = ListenerConfig {
        address,
        auth,
        tls,
        unix_socket_mode: unix_socket_mode.map_err(at("unix_socket_mode"))?,
    };
    check_auth(&listener, security).map_err(|message| {
        Problem::new(
            if file.auth.is_some() {
                path.key("auth")
            } else {
                path.clone()
            },
            message,
        )
    })?;
    Ok(listener)
}

/// 0777 by default: the password protects. Where nothing else does, the file's owner is all who may connect.
fn unix_socket_mode(said: Option<&Scalar>, is_unix: bool, auth: AuthMethod) -> Result<u32, String> {
    let needs_owner = matches!(auth, AuthMethod::Trust | AuthMethod::Peer);
    let default = if needs_owner { 0o700 } else { 0o777 };
    let Some(said) = said else { return Ok(default) };
    if !is_unix {
        return Err("is for unix sockets only".into());
    }
    let text = match said {
        Scalar::Text(text) => text.trim().trim_start_matches("0o"),
        // YAML has read the digits as a decimal or an octal number by now, and doesn't tell which.
        _ => return Err("must be octal and in quotes, such as '0770'".into()),
    };
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or("must be octal permission bits, such as '0770'")?;
    if needs_owner && mode & 0o077 != 0 {
        return Err("trust and peer allow no wider mode than '0700'".into());
    }
    Ok(mode)
}

/// Refuses ways to log in that the address doesn't protect.
fn check_auth(listener: &ListenerConfig, security: &Security) -> Result<(), String> {
    let tls = listener.tls.unwrap_or(security.tls_mode);
    let is_private = listener.address.is_private();
    let is_open = !is_private && !security.allow_insecure_listen;
    let address = &listener.address;
    match listener.auth {
        AuthMethod::Trust if is_open => Err(format!(
            "trust on {address} would let everyone in who can reach it; listen on a loopback address or a unix socket, \
             or set allow_insecure_listen: true"
        )),
        AuthMethod::Password if is_open && !requires_tls(tls) => Err(format!(
            "password without TLS on {address} would show passwords to the network; set tls.mode: require, listen on a \
             loopback address or a unix socket, or set allow_insecure_listen: true"
        )),
        AuthMethod::Cert if tls != ClientTlsMode::VerifyFull => {
            Err("cert needs TLS with verified certificates: set tls.mode: verify-full and tls.client_ca".into())
        }
        AuthMethod::Peer if !matches!(address, ListenAddress::Unix { .. }) => {
            Err("peer needs a unix socket: only there does the system tell who connects".into())
        }
        _ => Ok(()),
    }
}

/// Whether nothing can be read off the wire.
pub(super) fn requires_tls(mode: ClientTlsMode) -> bool {
    matches!(mode, ClientTlsMode::Require | ClientTlsMode::VerifyFull)
}

/// `host:port`, `[::1]:port`, `unix:/dir` or `unix:/dir:port`.
fn parse_address(text: &str) -> Result<ListenAddress, String> {
    let wrong = || format!("{text:?} is no address: write host:port, [::1]:port or unix:/directory");
    if let Some(unix) = text.strip_prefix("unix:") {
        let (directory, port) = match unix.rsplit_once(':') {
            Some((directory, port)) => (directory, parse_port(port).filter(|it| *it != 0).ok_or_else(wrong)?),
            None => (unix, PORT),
        };
        let directory = if directory.len() > 1 {
            directory.trim_end_matches('/')
        } else {
            directory
        };
        return if directory.starts_with('/') {
            Ok(ListenAddress::Unix {
                directory: directory.into(),
                port,
            })
        } else {
            Err(format!("{text:?}: the directory of a unix socket must be absolute"))
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed
            .strip_suffix(']')
            .filter(|it| it.parse::<IpAddr>().is_ok())
            .ok_or_else(wrong)?,
        None => host,
    };
    // Two colons without brackets: an IPv6 address, whose last group is no port.
    let is_name =
        !host.is_empty() && !host.contains(['/', ' ', '[', ']']) && (text.contains('[') || !host.contains(':'));
    let port = parse_port(port).filter(|_| is_name).ok_or_else(wrong)?;
    Ok(ListenAddress::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|it| it.is_ascii_digit()))
}

impl ListenAddress {
    /// Whether only this machine can reach it: a unix socket, a loopback address, or the name `localhost`. Any other
    /// name may resolve to anything.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Tcp { host, .. } if host.eq_ignore_ascii_case("localhost") => true,
            Self::Tcp { host, .. } => host.parse::<IpAddr>().is_ok_and(|it| it.to_canonical().is_loopback()),
        }
    }
}

impl fmt::Display for ListenAddress {
    /// As it would be written in `listen:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } if *port == PORT => write!(f, "unix:{}", directory.display()),
            Self::Unix { directory, port } => write!(f, "unix:{}:{port}", directory.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(
        yaml: &str,
        allow_insecure_listen: bool,
        tls_mode: ClientTlsMode,
    ) -> Result<Vec<ListenerConfig>, String> {
        let file: ScalarOr<Vec<ScalarOr<ListenFile>>> = serde_yaml::from_str(yaml).unwrap();
        resolve(
            Some(&file),
            &Security {
                allow_insecure_listen,
                tls_mode,
            },
        )
        .map_err(|problem| format!("{}: {}", problem.key, problem.message))
    }

    fn plain(yaml: &str) -> Result<Vec<ListenerConfig>, String> {
        resolved(yaml, false, ClientTlsMode::Disable)
    }

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in [
            "127.0.0.1:6432",
            "[::1]:0",
            "db.example:1",
            "unix:/run/pg",
            "unix:/run/pg:5432",
            "unix:/",
            "0.0.0.0:65535",
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_address("unix:/run/pg/").unwrap().to_string(), "unix:/run/pg");
        for bad in [
            "",
            "6432",
            "localhost",
            ":6432",
            "::1:6432",
            "[::1]",
            "[x]:1",
            "h:65536",
            "h:+1",
            "unix:run",
            "unix:",
            "a b:1",
            "unix:/x:0",
        ] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_listener_is_a_text_a_list_or_a_list_of_maps() {
        assert_eq!(plain("127.0.0.1:1, unix:/run").unwrap().len(), 2);
        assert_eq!(plain("['127.0.0.1:1', 'localhost:2']").unwrap().len(), 2);
        let mapped = plain("[{address: 'unix:/run', auth: peer}]").unwrap();
        assert_eq!(mapped[0].unix_socket_mode, 0o700);
        assert_eq!(
            plain("[{address: 'unix:/run', unix_socket_mode: '0770'}]").unwrap()[0].unix_socket_mode,
            0o770
        );
        assert_eq!(plain("[]").unwrap_err(), "listen: names no address");
        assert_eq!(plain("[{auth: trust}]").unwrap_err(), "listen[0].address: is missing");
        assert!(
            plain("['h:1', 'h:1']")
                .unwrap_err()
                .starts_with("listen[1]: h:1 is given twice")
        );
        assert_eq!(plain("['h:0', 'h:0']").unwrap().len(), 2);
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_private() {
        for (host, is_private) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("localhost", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("localhost.example.com", false),
            ("db", false),
        ] {
            assert_eq!(
                ListenAddress::Tcp {
                    host: host.into(),
                    port: 1
                }
                .is_private(),
                is_private,
                "{host}"
            );
        }
    }

    #[test]
    fn a_way_to_log_in_that_the_address_does_not_protect_is_refused() {
        for (yaml, words) in [
            (
                "[{address: '0.0.0.0:1', auth: trust}]",
                "listen[0].auth: trust on 0.0.0.0:1",
            ),
            ("[{address: '[::]:1', auth: trust}]", "allow_insecure_listen"),
            (
                "[{address: 'app:1', auth: password}]",
                "listen[0].auth: password without TLS",
            ),
            (
                "[{address: '127.0.0.1:1', auth: peer}]",
                "listen[0].auth: peer needs a unix socket",
            ),
            ("[{address: 'unix:/x', auth: cert}]", "listen[0].auth: cert needs TLS"),
            ("[{address: '127.0.0.1:1', auth: cert}]", "tls.mode: verify-full"),
            (
                "[{address: 'unix:/x', auth: peer, unix_socket_mode: '0770'}]",
                "listen[0].unix_socket_mode: trust and peer",
            ),
            ("[{address: 'unix:/x', unix_socket_mode: 770}]", "in quotes"),
            ("[{address: 'unix:/x', unix_socket_mode: '888'}]", "octal"),
            ("[{address: 'h:1', unix_socket_mode: '0770'}]", "unix sockets only"),
            ("[{address: 'unix:/x', tls: require}]", "no TLS"),
            ("[{address: 'h:1', auth: scram}]", "must be one of scram-sha-256, md5"),
        ] {
            let message = plain(yaml).unwrap_err();
            assert!(message.contains(words), "{yaml}: {message}");
        }
        assert!(resolved("[{address: '0.0.0.0:1', auth: trust}]", true, ClientTlsMode::Disable).is_ok());
        assert!(resolved("[{address: '0.0.0.0:1', auth: trust}]", false, ClientTlsMode::Require).is_err());
        assert!(
            resolved(
                "[{address: '0.0.0.0:1', auth: password}]",
                false,
                ClientTlsMode::Require
            )
            .is_ok()
        );
        assert!(
            resolved(
                "[{address: '0.0.0.0:1', auth: password, tls: allow}]",
                false,
                ClientTlsMode::Require
            )
            .is_err()
        );
        assert!(plain("[{address: '127.0.0.1:1', auth: trust}, {address: 'unix:/x', auth: password}]").is_ok());
        assert!(resolved("[{address: 'h:1', auth: cert}]", false, ClientTlsMode::VerifyFull).is_ok());
    }
}
