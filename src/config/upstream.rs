//! What a connection string means: libpq's parameters become an [`UpstreamConfig`].
//!
//! What the string leaves out comes, in this order, from its service, from our own keys (`upstream.connect_timeout`, …),
//! from libpq's environment variables, and from defaults. Manual: libpq-connect 34.1.2, libpq-envars, libpq-pgpass.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::conninfo::{self, KEYWORDS, Parameters};
use super::sources::Sources;
use super::upstream_tls;
use super::{
    ChannelBinding, Host, PasswordSource, Secret, TargetSessionAttrs, TcpKeepalive, UpstreamConfig, passfile,
    service_file,
};

/// Our own keys beside `url`. An outer `None`: the key is not there.
#[derive(Default, Clone)]
pub(super) struct UpstreamKeys {
    pub(super) url: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) password_command: Option<String>,
    pub(super) connect_timeout: Option<Option<Duration>>,
    pub(super) tcp_keepalive: Option<Option<TcpKeepalive>>,
    pub(super) tcp_user_timeout: Option<Option<Duration>>,
    pub(super) early_login: Option<bool>,
}

/// An upstream, and what its resolution found out besides.
pub(super) struct Resolved {
    pub(super) upstream: UpstreamConfig,
    /// The database was said, not defaulted to the user's name.
    pub(super) names_dbname: bool,
    /// The password, if it can be known before a login.
    pub(super) known_password: Option<Secret>,
}

/// The defaults of `upstream:`.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
};

/// The port of a PostgreSQL that says nothing else.
const PORT: u16 = 5432;

/// Which of libpq's variables apply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The general upstream: all.
    General,
    /// An upstream of one database: not those that say which server and login.
    Database,
}

/// Resolves one upstream. The words of an error begin with the keyword or variable at fault.
pub(super) fn resolve(
    keys: &UpstreamKeys,
    scope: Scope,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<Resolved, String> {
    let parameters = Lookup::gather(keys, scope, sources)?;
    let hosts = hosts(&parameters, sources)?;
    let user = parameters
        .text("user")
        .map(str::to_owned)
        .or_else(|| sources.system_user.clone());
    let user = user.ok_or("user: is not given, and the system user has no name")?;
    let dbname = parameters.text("dbname").map(str::to_owned);
    let names_dbname = dbname.is_some();
    let dbname = dbname.unwrap_or_else(|| user.clone());
    let (password, known_password) = password(keys, &parameters, &hosts, &dbname, &user, sources, warnings)?;
    refuse_what_is_not_spoken(&parameters)?;
    let upstream = UpstreamConfig {
        tls: upstream_tls::resolve(&parameters, &hosts, sources)?,
        load_balance_hosts: parameters.word("load_balance_hosts", &[("disable", false), ("random", true)], false)?,
        target_session_attrs: parameters.word("target_session_attrs", TARGET_SESSION_ATTRS, TargetSessionAttrs::Any)?,
        channel_binding: parameters.word("channel_binding", CHANNEL_BINDINGS, ChannelBinding::Prefer)?,
        require_auth: require_auth(&parameters)?,
        connect_timeout: connect_timeout(keys, &parameters)?,
        startup_parameters: startup_parameters(&parameters, sources)?,
        tcp_keepalive: tcp_keepalive(keys, &parameters)?,
        tcp_user_timeout: tcp_user_timeout(keys, &parameters)?,
        early_login: keys.early_login.unwrap_or(true),
        hosts,
        user,
        dbname,
        password,
    };
    Ok(Resolved {
        upstream,
        names_dbname,
        known_password,
    })
}

/// The words of `early_login`.
pub(super) const EARLY_LOGINS: &[(&str, bool)] = &[("auto", true), ("off", false)];

pub(super) const TARGET_SESSION_ATTRS: &[(&str, TargetSessionAttrs)] = &[
    ("any", TargetSessionAttrs::Any),
    ("read-write", TargetSessionAttrs::ReadWrite),
    ("read-only", TargetSessionAttrs::ReadOnly),
    ("primary", TargetSessionAttrs::Primary),
    ("standby", TargetSessionAttrs::Standby),
    ("prefer-standby", TargetSessionAttrs::PreferStandby),
];

pub(super) const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

/// The parameters in their order of precedence.
pub(super) struct Lookup<'a> {
    /// The URL's, then its service's.
    said: Parameters,
    sources: &'a Sources,
    scope: Scope,
}

impl<'a> Lookup<'a> {
    fn gather(keys: &UpstreamKeys, scope: Scope, sources: &'a Sources) -> Result<Self, String> {
        let said = keys
            .url
            .as_deref()
            .map(conninfo::parse)
            .transpose()?
            .unwrap_or_default();
        let mut lookup = Self { said, sources, scope };
        lookup.refuse_variables()?;
        if let Some(service) = lookup.text("service").map(str::to_owned) {
            for (name, value) in lookup.service(&service)? {
                lookup.said.entry(name).or_insert(value);
            }
        }
        Ok(lookup)
    }

    /// A value from the connection string, its service or a variable; an empty one counts as not given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.said_text(name).or_else(|| self.variable(name))
    }

    /// A value from the connection string or its service.
    fn said_text(&self, name: &str) -> Option<&str> {
        self.said
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name)?;
        if keyword.is_login && self.scope == Scope::Database {
            return None;
        }
        self.sources.variable(keyword.variable?)
    }

    /// Who is to blame for a value: the keyword, or the variable that supplied it.
    pub(super) fn blame(&self, name: &str) -> String {
        let keyword = KEYWORDS.iter().find(|keyword| keyword.name == name);
        match keyword.and_then(|keyword| keyword.variable) {
            Some(variable) if self.said_text(name).is_none() => variable.to_owned(),
            _ => name.to_owned(),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T) -> Result<T, String> {
        let Some(said) = self.text(name) else {
            return Ok(default);
        };
        words
            .iter()
            .find(|(word, _)| *word == said)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!(
                    "{}: invalid value {said:?}; it must be one of {}",
                    self.blame(name),
                    known.join(", ")
                )
            })
    }

    /// A path, as it is.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn number(&self, name: &str) -> Result<Option<i32>, String> {
        let wrong = |_| format!("{}: invalid integer value", self.blame(name));
        self.text(name)
            .map(|text| text.trim().parse().map_err(wrong))
            .transpose()
    }

    /// A variable whose parameter is refused counts as said only where it is set.
    fn refuse_variables(&self) -> Result<(), String> {
        for keyword in KEYWORDS {
            if let (Some(reason), Some(variable)) = (keyword.refusal, keyword.variable)
                && self.sources.variable(variable).is_some()
            {
                return Err(format!("{variable}: {reason}"));
            }
        }
        Ok(())
    }

    /// The user's file, then the system's (manual: libpq-pgservice).
    fn service(&self, service: &str) -> Result<Parameters, String> {
        let named = self.path("servicefile");
        let own = named
            .clone()
            .or_else(|| self.sources.home.as_ref().map(|home| home.join(".pg_service.conf")));
        let system = self
            .sources
            .variable("PGSYSCONFDIR")
            .unwrap_or("/etc/postgresql-common");
        let system = Path::new(system).join("pg_service.conf");
        for path in own.into_iter().chain([system]) {
            if named.as_ref() != Some(&path) && !self.sources.is_file(&path) {
                continue;
            }
            let text = self
                .sources
                .read_line(&path)
                .map_err(|message| format!("service: {message}"))?;
            let found = service_file::find(&text, service);
            if let Some(found) = found.map_err(|message| format!("{}: {message}", path.display()))? {
                return Ok(found);
            }
        }
        Err(format!("service: definition of service {service:?} not found"))
    }
}

/// `host`, `hostaddr` and `port`, each a list.
fn hosts(parameters: &Lookup<'_>, sources: &Sources) -> Result<Vec<Host>, String> {
    let list = |name| -> Vec<String> {
        parameters
            .text(name)
            .map(|text| text.split(',').map(|it| it.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!(
            "host: could not match {} host names to {} hostaddr values",
            names.len(),
            addresses.len()
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!(
            "port: could not match {} port numbers to {count} hosts",
            ports.len()
        ));
    }
    (0..count)
        .map(|position| {
            let name = names.get(position).map_or("", String::as_str);
            let address = addresses.get(position).map_or("", String::as_str);
            let port = ports
                .get(position)
                .or(if ports.len() == 1 { ports.first() } else { None });
            host(name, address, port.map_or("", String::as_str), parameters, sources)
        })
        .collect()
}

fn host(name: &str, address: &str, port: &str, parameters: &Lookup<'_>, sources: &Sources) -> Result<Host, String> {
    let port = match port {
        "" => PORT,
        // The text is not repeated: behind a password with a raw `/` in it, it is a part of the password.
        port => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            let hint = "a password's special characters must be percent-encoded in a URL";
            format!(
                "{}: must be a number from 1 to 65535 ({hint})",
                parameters.blame("port")
            )
        })?,
    };
    if !address.is_empty() {
        let wrong = |_| format!("{}: is not an IP address", parameters.blame("hostaddr"));
        let hostaddr = address.parse().map_err(wrong)?;
        let host = if name.is_empty() { address } else { name };
        return Ok(Host::Tcp {
            host: host.to_owned(),
            hostaddr: Some(hostaddr),
            port,
        });
    }
    match name {
        "" => Ok(Host::Unix {
            directory: default_socket_directory(sources),
            port,
        }),
        it if it.starts_with('/') => Ok(Host::Unix {
            directory: it.into(),
            port,
        }),
        it if it.starts_with('@') => Err(format!(
            "{}: abstract unix sockets (@…) are not supported",
            parameters.blame("host")
        )),
        it => Ok(Host::Tcp {
            host: it.to_owned(),
            hostaddr: None,
            port,
        }),
    }
}

/// Debian's socket directory where it exists, PostgreSQL's own default elsewhere.
fn default_socket_directory(sources: &Sources) -> PathBuf {
    let debian = Path::new("/var/run/postgresql");
    if sources.is_directory(debian) {
        debian.to_owned()
    } else {
        "/tmp".into()
    }
}

/// The source of the password by precedence, and the password if it can be known now.
fn password(
    keys: &UpstreamKeys,
    parameters: &Lookup<'_>,
    hosts: &[Host],
    dbname: &str,
    user: &str,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<(PasswordSource, Option<Secret>), String> {
    let said = parameters.said_text("password");
    if said.is_some() && (keys.password_file.is_some() || keys.password_command.is_some()) {
        return Err("password: the URL has one, and password_file or password_command is set as well".into());
    }
    if let Some(path) = &keys.password_file {
        let secret = Secret::new(
            sources
                .read_line(path)
                .map_err(|message| format!("password_file: {message}"))?,
        );
        if secret.expose().is_empty() {
            return Err(format!("password_file: {} is empty", path.display()));
        }
        return Ok((PasswordSource::File(path.clone()), Some(secret)));
    }
    if let Some(command) = &keys.password_command {
        return Ok((PasswordSource::Command(command.clone()), None));
    }
    if let Some(literal) = parameters.text("password") {
        return Ok((
            PasswordSource::Literal(Secret::new(literal)),
            Some(Secret::new(literal)),
        ));
    }
    let home = || sources.home.as_ref().map(|home| home.join(".pgpass"));
    let Some(path) = parameters.path("passfile").or_else(home) else {
        return Ok((PasswordSource::None, None));
    };
    let known = passfile_text(&path, sources, warnings)?
        .and_then(|text| hosts.iter().find_map(|host| host.find_password(&text, dbname, user)));
    Ok(known.map_or((PasswordSource::None, None), |secret| {
        (PasswordSource::Passfile(path), Some(secret))
    }))
}

/// A password file's text. As in libpq one that isn't there counts as empty, and one that others can read is passed over
/// with a warning.
fn passfile_text(path: &Path, sources: &Sources, warnings: &mut Vec<String>) -> Result<Option<String>, String> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(sources.located(path)) else {
        return Ok(None);
    };
    if !metadata.is_file() {
        warnings.push(format!(
            "password file {} is not a plain file; it is not used",
            path.display()
        ));
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let hint = "permissions should be u=rw (0600) or less";
        warnings.push(format!(
            "password file {} has group or world access; it is not used ({hint})",
            path.display()
        ));
        return Ok(None);
    }
    sources
        .read_line(path)
        .map(Some)
        .map_err(|message| format!("passfile: {message}"))
}

impl Host {
    /// This host's password in the text of a password file, for the database and user given.
    #[must_use]
    pub fn find_password(&self, text: &str, dbname: &str, user: &str) -> Option<Secret> {
        match self {
            Self::Tcp { host, port, .. } => passfile::find_password(text, host, *port, dbname, user),
            Self::Unix { directory, port } => {
                let directory = directory.to_str()?;
                let is_default = ["/var/run/postgresql", "/run/postgresql", "/tmp"].contains(&directory);
                let at = |host| passfile::find_password(text, host, *port, dbname, user);
                let named = at(directory);
                if is_default { at("localhost").or(named) } else { named }
            }
        }
    }
}

/// `require_auth`: a list of methods, or of methods with `!` that are excluded from all.
fn require_auth(parameters: &Lookup<'_>) -> Result<Option<Vec<String>>, String> {
    const METHODS: [&str; 6] = ["password", "md5", "gss", "sspi", "scram-sha-256", "none"];
    let Some(text) = parameters.text("require_auth") else {
        return Ok(None);
    };
    let wrong = |message: String| Err(format!("{}: {message}", parameters.blame("require_auth")));
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    let excluded = entries.iter().filter(|entry| entry.starts_with('!')).count();
    if excluded != 0 && excluded != entries.len() {
        return wrong("methods with and without ! can't be mixed".into());
    }
    let mut named: Vec<&str> = Vec::new();
    for entry in &entries {
        let method = entry.strip_prefix('!').unwrap_or(entry);
        if method == "oauth" && excluded == 0 {
            return wrong("OAuth is not supported".into());
        }
        if method != "oauth" && !METHODS.contains(&method) {
            return wrong(format!("invalid method {method:?}"));
        }
        if named.contains(&method) {
            return wrong(format!("method {method:?} is given more than once"));
        }
        named.push(method);
    }
    let is_allowed = |method: &&str| named.contains(method) != (excluded != 0);
    Ok(Some(
        METHODS
            .iter()
            .filter(|method| is_allowed(method))
            .map(|method| (*method).to_owned())
            .collect(),
    ))
}

/// Values that would need something that we don't speak.
fn refuse_what_is_not_spoken(parameters: &Lookup<'_>) -> Result<(), String> {
    let only = |name: &str, allowed: &[&str], reason: &str| match parameters.text(name) {
        Some(said) if !allowed.contains(&said) => Err(format!("{}: {reason}", parameters.blame(name))),
        _ => Ok(()),
    };
    only(
        "gssencmode",
        &["disable", "prefer"],
        "GSSAPI encryption is not supported; use disable, or TLS",
    )?;
    only("gssdelegation", &["0"], "GSSAPI is not supported")?;
    only("sslcompression", &["0"], "TLS compression is not supported")?;
    only("min_protocol_version", &["3.0"], "pooled backends speak protocol 3.0")?;
    only(
        "max_protocol_version",
        &["3.0", "3.2", "latest"],
        "must be 3.0, 3.2 or latest",
    )
}

/// Seconds in libpq; 0 and less wait for ever.
fn connect_timeout(keys: &UpstreamKeys, parameters: &Lookup<'_>) -> Result<Option<Duration>, String> {
    if parameters.said_text("connect_timeout").is_none()
        && let Some(timeout) = keys.connect_timeout
    {
        return Ok(timeout);
    }
    Ok(match parameters.number("connect_timeout")? {
        None => Some(CONNECT_TIMEOUT),
        Some(seconds) => u64::try_from(seconds)
            .ok()
            .filter(|it| *it != 0)
            .map(Duration::from_secs),
    })
}

fn tcp_keepalive(keys: &UpstreamKeys, parameters: &Lookup<'_>) -> Result<Option<TcpKeepalive>, String> {
    match parameters.number("keepalives")? {
        Some(0) => return Ok(None),
        None | Some(1) => {}
        Some(_) => return Err("keepalives: must be 0 or 1".into()),
    }
    let positive = |name| {
        let number = parameters.number(name)?;
        // 0 is libpq's word for the default.
        Ok::<_, String>(number.and_then(|it| u32::try_from(it).ok()).filter(|it| *it != 0))
    };
    let idle = positive("keepalives_idle")?.map(|seconds| Duration::from_secs(seconds.into()));
    let interval = positive("keepalives_interval")?.map(|seconds| Duration::from_secs(seconds.into()));
    let count = positive("keepalives_count")?;
    let says_any = parameters.said_text("keepalives").is_some() || idle.or(interval).is_some() || count.is_some();
    let base = match keys.tcp_keepalive {
        Some(None) if !says_any => return Ok(None),
        base => base.flatten().unwrap_or(TCP_KEEPALIVE),
    };
    Ok(Some(TcpKeepalive {
        idle: idle.unwrap_or(base.idle),
        interval: interval.unwrap_or(base.interval),
        count: count.unwrap_or(base.count),
    }))
}

/// Milliseconds in libpq; 0 leaves it to the system.
fn tcp_user_timeout(keys: &UpstreamKeys, parameters: &Lookup<'_>) -> Result<Option<Duration>, String> {
    Ok(match parameters.number("tcp_user_timeout")? {
        Some(milliseconds) => u64::try_from(milliseconds)
            .ok()
            .filter(|it| *it != 0)
            .map(Duration::from_millis),
        None => keys.tcp_user_timeout.unwrap_or(Some(TCP_USER_TIMEOUT)),
    })
}

/// What goes into every StartupMessage to this upstream, in libpq's order.
fn startup_parameters(parameters: &Lookup<'_>, sources: &Sources) -> Result<Vec<(String, String)>, String> {
    let mut startup = Vec::new();
    let mut push = |name: &str, value: Option<&str>| {
        startup.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    };
    push("options", parameters.text("options"));
    push(
        "application_name",
        parameters
            .text("application_name")
            .or(parameters.text("fallback_application_name")),
    );
    match parameters.text("client_encoding") {
        Some("auto") => {
            let blame = parameters.blame("client_encoding");
            return Err(format!(
                "{blame}: auto is not supported: a pooler has no locale of its own; name the encoding"
            ));
        }
        encoding => push("client_encoding", encoding),
    }
    for (variable, name) in [("PGDATESTYLE", "datestyle"), ("PGTZ", "timezone"), ("PGGEQO", "geqo")] {
        push(name, sources.variable(variable));
    }
    Ok(startup)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::super::{RootCert, SslMode, TlsVersion};
    use super::*;

    fn fixture(url: &str) -> Fixture {
        Fixture::empty()
            .variable("PGSIDECAR_UPSTREAM", url)
            .yaml("listen: [{address: 'unix:/l', auth: trust}]")
    }

    fn upstream(url: &str) -> UpstreamConfig {
        fixture(url).config().upstream
    }

    fn error(url: &str) -> String {
        fixture(url).error()
    }

    fn tcp(host: &str, port: u16) -> Host {
        Host::Tcp {
            host: host.into(),
            hostaddr: None,
            port,
        }
    }

    #[test]
    fn hosts_and_ports_are_lists() {
        for (url, hosts) in [
            ("postgres://h", vec![tcp("h", 5432)]),
            ("postgres://a:1,b", vec![tcp("a", 1), tcp("b", 5432)]),
            ("host=a,b port=7", vec![tcp("a", 7), tcp("b", 7)]),
            ("host=a,b port=7,8", vec![tcp("a", 7), tcp("b", 8)]),
            ("postgres://[::1]:9", vec![tcp("::1", 9)]),
            (
                "postgres://%2Frun%2Fpg/d",
                vec![Host::Unix {
                    directory: "/run/pg".into(),
                    port: 5432,
                }],
            ),
            (
                "postgres:///d?host=/a,b&port=1,2",
                vec![
                    Host::Unix {
                        directory: "/a".into(),
                        port: 1,
                    },
                    tcp("b", 2),
                ],
            ),
            (
                "postgres:///d",
                vec![Host::Unix {
                    directory: "/tmp".into(),
                    port: 5432,
                }],
            ),
            (
                "host=a hostaddr=10.0.0.1",
                vec![Host::Tcp {
                    host: "a".into(),
                    hostaddr: Some("10.0.0.1".parse().unwrap()),
                    port: 5432,
                }],
            ),
            (
                "hostaddr=::1",
                vec![Host::Tcp {
                    host: "::1".into(),
                    hostaddr: Some("::1".parse().unwrap()),
                    port: 5432,
                }],
            ),
        ] {
            assert_eq!(upstream(url).hosts, hosts, "{url}");
        }
        let debian = fixture("postgres:///d")
            .file("/var/run/postgresql/x", "")
            .config()
            .upstream;
        assert_eq!(
            debian.hosts,
            [Host::Unix {
                directory: "/var/run/postgresql".into(),
                port: 5432
            }]
        );
        for (url, words) in [
            (
                "host=a,b hostaddr=10.0.0.1",
                "could not match 2 host names to 1 hostaddr",
            ),
            ("host=a,b,c port=1,2", "could not match 2 port numbers to 3 hosts"),
            ("hostaddr=db", "hostaddr: is not an IP address"),
            ("host=@abstract", "abstract unix sockets"),
            ("postgres://h:0", "port: must be a number from 1 to 65535"),
            ("postgres://h:65536", "port: must be"),
        ] {
            assert!(error(url).contains(words), "{url}: {}", error(url));
        }
    }

    #[test]
    fn a_password_that_was_not_encoded_is_not_repeated() {
        let error = error("postgres://app:hunter2/hunter2@h/d");
        assert!(
            error.contains("percent-encoded") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn user_and_database_have_libpqs_defaults() {
        let it = upstream("postgres://h");
        assert_eq!((it.user.as_str(), it.dbname.as_str()), ("me", "me"));
        let it = upstream("postgres://joe@h");
        assert_eq!((it.user.as_str(), it.dbname.as_str()), ("joe", "joe"));
        let it = fixture("postgres://h")
            .variable("PGUSER", "u")
            .variable("PGDATABASE", "d")
            .config()
            .upstream;
        assert_eq!((it.user.as_str(), it.dbname.as_str()), ("u", "d"));
        let it = fixture("postgres://joe@h/x")
            .variable("PGUSER", "u")
            .variable("PGDATABASE", "d")
            .config()
            .upstream;
        assert_eq!((it.user.as_str(), it.dbname.as_str()), ("joe", "x"));
    }

    #[test]
    fn words_have_their_values() {
        let it =
            upstream("host=h target_session_attrs=prefer-standby load_balance_hosts=random channel_binding=require");
        assert_eq!(it.target_session_attrs, TargetSessionAttrs::PreferStandby);
        assert_eq!(
            (it.load_balance_hosts, it.channel_binding),
            (true, ChannelBinding::Require)
        );
        for keyword in [
            "target_session_attrs",
            "load_balance_hosts",
            "channel_binding",
            "sslmode",
            "sslnegotiation",
            "sslsni",
        ] {
            let error = error(&format!("host=h {keyword}=x"));
            assert!(
                error.contains(&format!("{keyword}: invalid value \"x\"; it must be one of")),
                "{error}"
            );
        }
        let error = fixture("host=h").variable("PGSSLMODE", "x").error();
        assert!(error.contains("upstream.url: PGSSLMODE: invalid value"), "{error}");
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (parameter, words) in [
            ("gssencmode=require", "gssencmode: GSSAPI encryption is not supported"),
            ("gssdelegation=1", "gssdelegation:"),
            ("sslcompression=1", "sslcompression:"),
            ("min_protocol_version=3.2", "min_protocol_version:"),
            ("max_protocol_version=2.0", "max_protocol_version:"),
            ("krbsrvname=x", "krbsrvname:"),
            ("gsslib=x", "gsslib:"),
            ("sslpassword=x", "sslpassword:"),
            ("sslkeylogfile=x", "sslkeylogfile:"),
            ("requirepeer=x", "requirepeer:"),
            ("replication=true", "replication:"),
            ("scram_client_key=x", "scram_client_key:"),
            ("oauth_issuer=x", "oauth_issuer:"),
            ("client_encoding=auto", "client_encoding: auto"),
            ("sslcertmode=require", "sslcertmode:"),
            (
                "ssl_min_protocol_version=TLSv1",
                "ssl_min_protocol_version: TLSv1 is not supported",
            ),
            (
                "ssl_max_protocol_version=TLSv1.1",
                "ssl_max_protocol_version: TLSv1.1 is not supported",
            ),
            (
                "ssl_max_protocol_version=SSLv3",
                "ssl_max_protocol_version: invalid value",
            ),
            ("connect_timeout=x", "connect_timeout: invalid integer value"),
            ("keepalives=2", "keepalives: must be 0 or 1"),
        ] {
            let error = error(&format!("host=h {parameter}"));
            assert!(error.contains(words), "{parameter}: {error}");
        }
        for harmless in [
            "gssencmode=prefer",
            "gssencmode=disable",
            "sslcompression=0",
            "max_protocol_version=latest",
            "krbsrvname=''",
        ] {
            upstream(&format!("host=h {harmless}"));
        }
        assert!(
            fixture("host=h")
                .variable("PGREQUIREPEER", "x")
                .error()
                .contains("PGREQUIREPEER: ")
        );
    }

    #[test]
    fn timeouts_come_from_the_url_then_our_key_then_the_variable() {
        let seconds = |it: u64| Some(Duration::from_secs(it));
        let timeout = |fixture: Fixture| fixture.config().upstream.connect_timeout;
        assert_eq!(timeout(fixture("host=h")), seconds(10));
        let with_variable = || fixture("host=h").variable("PGCONNECT_TIMEOUT", "3");
        assert_eq!(timeout(with_variable()), seconds(3));
        assert_eq!(
            timeout(with_variable().variable("PGSIDECAR__UPSTREAM__CONNECT_TIMEOUT", "4s")),
            seconds(4)
        );
        let url = fixture("host=h connect_timeout=5").variable("PGSIDECAR__UPSTREAM__CONNECT_TIMEOUT", "4s");
        assert_eq!(timeout(url), seconds(5));
        assert_eq!(timeout(fixture("host=h connect_timeout=0")), None);
        assert_eq!(timeout(fixture("host=h connect_timeout=-1")), None);
        assert_eq!(
            upstream("host=h tcp_user_timeout=1500").tcp_user_timeout,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(upstream("host=h tcp_user_timeout=0").tcp_user_timeout, None);
        assert_eq!(upstream("host=h keepalives=0").tcp_keepalive, None);
        let keepalive = upstream("host=h keepalives_idle=7 keepalives_count=0")
            .tcp_keepalive
            .unwrap();
        assert_eq!((keepalive.idle, keepalive.count), (Duration::from_secs(7), 3));
        let off = fixture("host=h").variable("PGSIDECAR__UPSTREAM__TCP_KEEPALIVE", "off");
        assert_eq!(off.config().upstream.tcp_keepalive, None);
        let on = fixture("host=h keepalives=1").variable("PGSIDECAR__UPSTREAM__TCP_KEEPALIVE", "off");
        assert_eq!(on.config().upstream.tcp_keepalive, Some(TCP_KEEPALIVE));
    }

    #[test]
    fn settings_go_into_the_startup_message() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let it = upstream("postgres://h?options=-c%20geqo%3Doff&fallback_application_name=f&client_encoding=UTF8");
        let expected = [
            pair("options", "-c geqo=off"),
            pair("application_name", "f"),
            pair("client_encoding", "UTF8"),
        ];
        assert_eq!(it.startup_parameters, expected);
        let it = fixture("host=h fallback_application_name=f")
            .variable("PGAPPNAME", "n")
            .variable("PGTZ", "UTC");
        assert_eq!(
            it.config().upstream.startup_parameters,
            [pair("application_name", "n"), pair("timezone", "UTC")]
        );
    }

    #[test]
    fn require_auth_is_a_list_or_what_is_left() {
        let methods = |text: &str| upstream(&format!("host=h require_auth={text}")).require_auth.unwrap();
        assert_eq!(methods("scram-sha-256,md5"), ["md5", "scram-sha-256"]);
        assert_eq!(methods("!password,!md5"), ["gss", "sspi", "scram-sha-256", "none"]);
        assert_eq!(methods("none"), ["none"]);
        assert_eq!(upstream("host=h require_auth=''").require_auth, None);
        for bad in ["md5,!password", "md5,md5", "nonsense", "oauth", "md5,"] {
            assert!(
                error(&format!("host=h require_auth={bad}")).contains("require_auth: "),
                "{bad}"
            );
        }
    }

    #[test]
    fn passwords_come_from_the_url_the_variable_or_the_password_file() {
        let source = |fixture: &Fixture| fixture.config().upstream.password;
        let both = fixture("postgres://u:one@h").variable("PGPASSWORD", "two");
        assert_eq!(source(&both), PasswordSource::Literal(Secret::new("one")));
        let variable = fixture("postgres://u@h").variable("PGPASSWORD", "two");
        assert_eq!(source(&variable), PasswordSource::Literal(Secret::new("two")));
        let home = fixture("postgres://u@x,h/d").file("/home/me/.pgpass", "h:5432:d:u:three\n");
        assert_eq!(source(&home), PasswordSource::Passfile("/home/me/.pgpass".into()));
        assert_eq!(
            home.config().users,
            [super::super::UserConfig {
                name: "u".into(),
                credential: super::super::Credential::Password(Secret::new("three")),
                pool: Default::default(),
            }]
        );
        let other = fixture("postgres://other@h/d").file("/home/me/.pgpass", "h:5432:d:u:three\n");
        assert_eq!(source(&other), PasswordSource::None);
        let named = fixture("postgres://u@h?passfile=/pw")
            .variable("PGPASSFILE", "/no")
            .file("/pw", "*:*:*:*:four");
        assert_eq!(source(&named), PasswordSource::Passfile("/pw".into()));
        let socket = fixture("postgres://u@/d?passfile=/pw").file("/pw", "localhost:*:*:*:five");
        assert_eq!(source(&socket), PasswordSource::Passfile("/pw".into()));
    }

    #[test]
    fn a_password_file_that_others_can_read_is_passed_over() {
        let loaded = fixture("postgres://u@h/d")
            .file_with_mode("/home/me/.pgpass", "*:*:*:*:x", 0o640)
            .load()
            .unwrap();
        assert_eq!(loaded.config.upstream.password, PasswordSource::None);
        assert!(
            loaded.warnings[0].contains("/home/me/.pgpass has group or world access"),
            "{:?}",
            loaded.warnings
        );
    }

    #[test]
    fn a_service_supplies_what_the_url_leaves_out() {
        let file = "[prod]\nhost=prod.example\nuser=svc\nsslmode=disable\n";
        let it = fixture("postgres://u@/d?service=prod")
            .file("/home/me/.pg_service.conf", file)
            .config()
            .upstream;
        assert_eq!(
            (it.hosts, it.user.as_str(), it.tls.sslmode),
            (vec![tcp("prod.example", 5432)], "u", SslMode::Disable)
        );
        let it = fixture("service=prod")
            .file("/etc/postgresql-common/pg_service.conf", file)
            .config()
            .upstream;
        assert_eq!(it.user, "svc");
        let it = fixture("dbname=d")
            .variable("PGSERVICE", "prod")
            .variable("PGSERVICEFILE", "/s")
            .file("/s", file)
            .config();
        assert_eq!((it.upstream.user.as_str(), it.upstream.dbname.as_str()), ("svc", "d"));
        assert!(error("service=nosuch").contains("definition of service \"nosuch\" not found"));
        assert!(error("service=prod servicefile=/none").contains("service: cannot read /none"));
        let bad = fixture("service=prod")
            .file("/home/me/.pg_service.conf", "[prod]\nhosst=x\n")
            .error();
        assert!(
            bad.contains("/home/me/.pg_service.conf: invalid connection option \"hosst\""),
            "{bad}"
        );
    }

    #[test]
    fn verification_needs_a_root_certificate() {
        for mode in ["verify-ca", "verify-full"] {
            let url = format!("postgres://h?sslmode={mode}");
            let message = error(&url);
            assert!(
                message.contains("sslrootcert: root certificate file \"/home/me/.postgresql/root.crt\" does not exist"),
                "{message}"
            );
            let found = fixture(&url)
                .file("/home/me/.postgresql/root.crt", "")
                .config()
                .upstream
                .tls;
            assert_eq!(
                found.sslrootcert,
                RootCert::File("/home/me/.postgresql/root.crt".into())
            );
            assert!(error(&format!("{url}&sslrootcert=/none")).contains("sslrootcert: cannot read /none"));
            fixture(&format!("{url}&sslrootcert=/ca")).file("/ca", "").config();
        }
        assert!(
            fixture("hostaddr=10.0.0.1 sslmode=verify-full sslrootcert=/ca")
                .file("/ca", "")
                .error()
                .contains("host: ")
        );
        assert!(
            fixture("postgres://h")
                .variable("PGSSLROOTCERT", "/none")
                .error()
                .contains("PGSSLROOTCERT: cannot read")
        );
        assert_eq!(upstream("postgres://h?sslmode=require").tls.sslrootcert, RootCert::None);
        // Without TLS no file is looked at.
        upstream("postgres://h?sslmode=disable&sslrootcert=/none&sslcert=/none&sslkey=/none&sslcrldir=/none");
    }

    #[test]
    fn the_systems_roots_force_verify_full() {
        let tls = upstream("postgres://h?sslrootcert=system").tls;
        assert_eq!((tls.sslmode, tls.sslrootcert), (SslMode::VerifyFull, RootCert::System));
        upstream("postgres://h?sslrootcert=system&sslmode=verify-full");
        assert!(error("postgres://h?sslrootcert=system&sslmode=verify-ca").contains("weak sslmode"));
        assert!(error("postgres://h?sslnegotiation=direct").contains("weak sslmode"));
        assert!(
            upstream("postgres://h?sslnegotiation=direct&sslmode=require")
                .tls
                .direct
        );
        let required = fixture("postgres://h")
            .variable("PGREQUIRESSL", "1")
            .config()
            .upstream
            .tls;
        assert_eq!(required.sslmode, SslMode::Require);
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let url = "postgres://h?sslcert=/c&sslkey=/k";
        let it = fixture(url).file("/c", "").file("/k", "").config().upstream.tls;
        assert_eq!((it.sslcert, it.sslkey), (Some("/c".into()), Some("/k".into())));
        assert!(
            fixture("postgres://h?sslcert=/c")
                .file("/c", "")
                .error()
                .contains("sslkey: a client certificate is present")
        );
        let open = fixture(url).file("/c", "").file_with_mode("/k", "", 0o644).error();
        assert!(open.contains("sslkey: /k has group or world access"), "{open}");
        assert!(error(url).contains("sslcert: cannot read /c"));
        let none = fixture("postgres://h?sslcert=/c&sslcertmode=disable")
            .config()
            .upstream
            .tls;
        assert_eq!((none.sslcert, none.sslkey), (None, None));
        let engine = fixture("postgres://h?sslcert=/c&sslkey=pkcs11:x")
            .file("/c", "")
            .error();
        assert!(engine.contains("OpenSSL engines"), "{engine}");
        let home = fixture("postgres://h")
            .file("/home/me/.postgresql/postgresql.crt", "")
            .file("/home/me/.postgresql/postgresql.key", "");
        assert!(home.config().upstream.tls.sslkey.is_some());
    }

    #[test]
    fn tls_versions_are_ordered() {
        let tls = upstream("host=h ssl_min_protocol_version=TLSv1.3 sslsni=0").tls;
        assert_eq!(
            (tls.ssl_min_protocol_version, tls.ssl_max_protocol_version, tls.sslsni),
            (TlsVersion::Tls13, None, false)
        );
        let message = error("host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2");
        assert!(message.contains("is above ssl_max_protocol_version"), "{message}");
    }
}
