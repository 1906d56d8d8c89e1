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
