//! From what was written to what it means: each key read once, checked once, with its default beside it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, Problem};
use super::file::{
    AuthQueryFile, DatabaseFile, File, KeepaliveFile, LimitsFile, LogFile, OverrideFile, PoolFile, ScalarOr, TlsFile,
    UpstreamFile,
};
use super::listen::{self, Security, requires_tls};
use super::path::KeyPath;
use super::scalar::{Scalar, is_off};
use super::sources::{Layers, Sources};
use super::upstream::{self, Resolved, Scope, UpstreamKeys};
use super::users;
use super::{
    AuthConfig, AuthMethod, AuthQueryConfig, ClientTlsConfig, ClientTlsMode, Config, DatabaseConfig, DrainConfig,
    DrainMode, Host, LimitsConfig, ListenAddress, ListenerConfig, LogConfig, LogFormat, MetricsConfig, PoolConfig,
    PoolMode, PoolOverride, RuntimeConfig, TcpKeepalive, UserConfig,
};

/// A configuration, and what is odd about it without being wrong: for the log, once there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// One line each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads all sources and makes one configuration of them. A reload is this call again.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let layers = Layers::read(sources)?;
        let file = layers.merged()?;
        let mut warnings = Vec::new();
        let config = resolve(&file, sources, &mut warnings).map_err(|problem| layers.locate(problem))?;
        Ok(Loaded { config, warnings })
    }
}

/// The address of the metrics endpoint alone, for `pgsidecar healthcheck`: a probe must not fail because some other key
/// of a file that was edited since is wrong.
pub fn metrics_listen(sources: &Sources) -> Result<Option<SocketAddr>, ConfigError> {
    let layers = Layers::read(sources)?;
    let file = layers.merged()?;
    metrics(&file)
        .map(|metrics| metrics.listen)
        .map_err(|problem| layers.locate(problem))
}

pub(super) const POOL_MODES: &[(&str, PoolMode)] = &[
    ("transaction", PoolMode::Transaction),
    ("session", PoolMode::Session),
    ("statement", PoolMode::Statement),
];
pub(super) const DRAIN_MODES: &[(&str, DrainMode)] = &[("sidecar", DrainMode::Sidecar), ("server", DrainMode::Server)];
pub(super) const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

fn resolve(file: &File, sources: &Sources, warnings: &mut Vec<String>) -> Result<Config, Problem> {
    let top = Section::top();
    let allow_insecure_listen = top.read(
        "allow_insecure_listen",
        &file.allow_insecure_listen,
        Scalar::boolean,
        false,
    )?;
    let tls = client_tls(&file.tls.clone().unwrap_or_default(), sources)?;
    let listeners = listen::resolve(
        file.listen.as_ref(),
        &Security {
            allow_insecure_listen,
            tls_mode: tls.mode,
        },
    )?;
    check_client_tls(&tls, &listeners)?;
    let pool = pool(&file.pool.clone().unwrap_or_default(), warnings)?;
    let (general, databases) = upstreams(file, &pool, sources, warnings)?;
    let auth = auth(file, &listeners, &tls)?;
    let users = who_may_log_in(file, &listeners, &auth, &general, &databases, sources)?;
    check_overrides(&pool, &users)?;
    let config = Config {
        limits: limits(&file.limits.clone().unwrap_or_default())?,
        drain: drain(file)?,
        metrics: metrics(file)?,
        log: log(&file.log.clone().unwrap_or_default())?,
        runtime: runtime(file)?,
        upstream: general.upstream,
        databases: databases.map(|it| it.into_iter().map(|(name, database)| (name, database.config)).collect()),
        listen: listeners,
        allow_insecure_listen,
        users,
        auth,
        tls,
        pool,
    };
    refuse_loop(&config)?;
    Ok(config)
}

/// A section and the way to it; reads its keys.
pub(super) struct Section {
    path: KeyPath,
}

impl Section {
    fn top() -> Self {
        Self {
            path: KeyPath::default(),
        }
    }

    fn at(path: KeyPath) -> Self {
        Self { path }
    }

    fn named(name: &str) -> Self {
        Self {
            path: KeyPath::dotted(name),
        }
    }

    fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem::new(self.path.key(key), message)
    }

    /// The key's value, or `default` where the key isn't there.
    fn read<T>(
        &self,
        key: &str,
        value: &Option<Scalar>,
        parse: impl Fn(&Scalar) -> Result<T, String>,
        default: T,
    ) -> Result<T, Problem> {
        self.read_if(key, value, parse).map(|read| read.unwrap_or(default))
    }

    /// The key's value, if it is there.
    fn read_if<T>(
        &self,
        key: &str,
        value: &Option<Scalar>,
        parse: impl Fn(&Scalar) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        value
            .as_ref()
            .map(parse)
            .transpose()
            .map_err(|message| self.problem(key, message))
    }

    /// A path, if it is there.
    fn path_if(&self, key: &str, value: &Option<Scalar>) -> Result<Option<PathBuf>, Problem> {
        self.read_if(key, value, Scalar::text)
            .map(|path| path.map(PathBuf::from))
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pool(file: &PoolFile, warnings: &mut Vec<String>) -> Result<PoolConfig, Problem> {
    let at = Section::named("pool");
    let pool = PoolConfig {
        mode: at.read("mode", &file.mode, |it| it.word(POOL_MODES), PoolMode::Transaction)?,
        max_size: at.read("max_size", &file.max_size, |it| it.count(1, 100_000), 20)?,
        min_idle: at.read("min_idle", &file.min_idle, |it| it.count(0, 100_000), 1)?,
        max_total: at.read("max_total", &file.max_total, |it| it.count(1, 100_000), 80)?,
        max_pools: at.read("max_pools", &file.max_pools, |it| it.count(1, 100_000), 100)?,
        acquire_timeout: at.read(
            "acquire_timeout",
            &file.acquire_timeout,
            Scalar::duration_or_off,
            Some(seconds(30)),
        )?,
        idle_timeout: at.read(
            "idle_timeout",
            &file.idle_timeout,
            Scalar::duration_or_off,
            Some(seconds(600)),
        )?,
        max_lifetime: at.read(
            "max_lifetime",
            &file.max_lifetime,
            Scalar::duration_or_off,
            Some(seconds(3600)),
        )?,
        lifetime_jitter: at.read("lifetime_jitter", &file.lifetime_jitter, Scalar::share, 0.1)?,
        connect_query: at.read("connect_query", &file.connect_query, Scalar::text_or_none, None)?,
        park: at.read("park", &file.park, Scalar::duration_or_zero, Duration::from_millis(50))?,
        statement_cache_bytes: at.read(
            "statement_cache_bytes",
            &file.statement_cache_bytes,
            Scalar::size,
            4 << 20,
        )?,
        cancel_timeout: at.read("cancel_timeout", &file.cancel_timeout, Scalar::duration, seconds(5))?,
        reset_timeout: at.read("reset_timeout", &file.reset_timeout, Scalar::duration, seconds(5))?,
    };
    check_sizes(&pool).map_err(|message| at.problem("min_idle", message))?;
    if pool.max_size > pool.max_total {
        warnings.push(format!(
            "pool.max_size ({}) is above pool.max_total ({}), which caps it",
            pool.max_size, pool.max_total
        ));
    }
    Ok(pool)
}

fn check_sizes(pool: &PoolConfig) -> Result<(), String> {
    if pool.min_idle > pool.max_size {
        return Err(format!(
            "{} is above max_size, which is {}",
            pool.min_idle, pool.max_size
        ));
    }
    Ok(())
}

/// A `pool:` of a database or a user.
pub(super) fn pool_override(file: &OverrideFile, path: &KeyPath) -> Result<PoolOverride, Problem> {
    let at = Section::at(path.clone());
    Ok(PoolOverride {
        mode: at.read_if("mode", &file.mode, |it| it.word(POOL_MODES))?,
        max_size: at.read_if("max_size", &file.max_size, |it| it.count(1, 100_000))?,
        min_idle: at.read_if("min_idle", &file.min_idle, |it| it.count(0, 100_000))?,
        acquire_timeout: at.read_if("acquire_timeout", &file.acquire_timeout, Scalar::duration_or_off)?,
        idle_timeout: at.read_if("idle_timeout", &file.idle_timeout, Scalar::duration_or_off)?,
        max_lifetime: at.read_if("max_lifetime", &file.max_lifetime, Scalar::duration_or_off)?,
        lifetime_jitter: at.read_if("lifetime_jitter", &file.lifetime_jitter, Scalar::share)?,
        connect_query: at.read_if("connect_query", &file.connect_query, Scalar::text_or_none)?,
    })
}

fn check_overrides(pool: &PoolConfig, users: &[UserConfig]) -> Result<(), Problem> {
    for (position, user) in users.iter().enumerate() {
        let path = KeyPath::dotted("users").index(position).key("pool");
        check_sizes(&pool.overridden(&user.pool)).map_err(|message| Problem::new(path.key("min_idle"), message))?;
    }
    Ok(())
}

/// An entry of `databases:`, and the login of its own upstream if it has one.
struct Database {
    config: DatabaseConfig,
    own: Option<Resolved>,
}

type Databases = Option<BTreeMap<String, Database>>;

/// The general upstream and those of `databases:`.
fn upstreams(
    file: &File,
    pool: &PoolConfig,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<(Resolved, Databases), Problem> {
    let path = KeyPath::dotted("upstream");
    let keys = upstream_keys(file.upstream.as_ref().unwrap_or(&UpstreamFile::default()), &path)?;
    let databases = databases(file, &keys, pool, sources, warnings)?;
    let is_named = keys.url.is_some()
        || ["PGHOST", "PGHOSTADDR", "PGSERVICE"]
            .into_iter()
            .any(|name| sources.variable(name).is_some());
    let url = path.key("url");
    if is_named {
        let general = upstream::resolve(&keys, Scope::General, sources, warnings);
        return general
            .map(|general| (general, databases))
            .map_err(|message| blame(&path, message));
    }
    // Where every database has an upstream of its own, no name leads to the general one; the first stands in for it.
    let mut own = databases
        .iter()
        .flat_map(BTreeMap::values)
        .map(|database| database.own.as_ref());
    let first = own.next().flatten().filter(|_| own.all(|it| it.is_some()));
    let general = first.map(|first| Resolved {
        upstream: first.upstream.clone(),
        names_dbname: first.names_dbname,
        known_password: first.known_password.clone(),
    });
    let missing = "no upstream is given; set --upstream, PGSIDECAR_UPSTREAM, PGSIDECAR_UPSTREAM_FILE or upstream.url to the \
                   database's URL, such as postgres://app:secret@db.example:5432/app";
    Ok((general.ok_or_else(|| Problem::new(url, missing))?, databases))
}

/// A problem of an upstream belongs to one of our keys, or to the URL.
fn blame(path: &KeyPath, message: String) -> Problem {
    for key in ["password_file", "password_command"] {
        if let Some(message) = message.strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) {
            return Problem::new(path.key(key), message);
        }
    }
    Problem::new(path.key("url"), message)
}

fn upstream_keys(file: &UpstreamFile, path: &KeyPath) -> Result<UpstreamKeys, Problem> {
    let at = Section::at(path.clone());
    let keys = UpstreamKeys {
        url: at.read_if("url", &file.url, Scalar::text)?,
        password_file: at.path_if("password_file", &file.password_file)?,
        password_command: at.read_if("password_command", &file.password_command, Scalar::text)?,
        connect_timeout: at.read_if("connect_timeout", &file.connect_timeout, Scalar::duration_or_off)?,
        tcp_keepalive: tcp_keepalive(file.tcp_keepalive.as_ref(), &path.key("tcp_keepalive"))?,
        tcp_user_timeout: at.read_if("tcp_user_timeout", &file.tcp_user_timeout, Scalar::duration_or_off)?,
    };
    if keys.password_file.is_some() && keys.password_command.is_some() {
        return Err(at.problem("password_command", "password_file is set as well; set one of them"));
    }
    Ok(keys)
}

fn tcp_keepalive(
    file: Option<&ScalarOr<KeepaliveFile>>,
    path: &KeyPath,
) -> Result<Option<Option<TcpKeepalive>>, Problem> {
    let at = Section::at(path.clone());
    match file {
        None => Ok(None),
        Some(ScalarOr::Scalar(Scalar::Bool(false) | Scalar::Integer(0))) => Ok(Some(None)),
        Some(ScalarOr::Scalar(Scalar::Text(text))) if is_off(text) => Ok(Some(None)),
        Some(ScalarOr::Scalar(_)) => Err(Problem::new(
            path.clone(),
            "must be off, or a mapping such as {idle: 30s, interval: 10s, count: 3}",
        )),
        Some(ScalarOr::Full(file)) => Ok(Some(Some(TcpKeepalive {
            idle: at.read("idle", &file.idle, Scalar::duration, upstream::TCP_KEEPALIVE.idle)?,
            interval: at.read(
                "interval",
                &file.interval,
                Scalar::duration,
                upstream::TCP_KEEPALIVE.interval,
            )?,
            count: at.read(
                "count",
                &file.count,
                |it| it.count(1, 127),
                upstream::TCP_KEEPALIVE.count,
            )?,
        }))),
    }
}

fn databases(
    file: &File,
    general: &UpstreamKeys,
    pool: &PoolConfig,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<Databases, Problem> {
    let path = KeyPath::dotted("databases");
    let Some(entries) = &file.databases else {
        return Ok(None);
    };
    if entries.is_empty() {
        return Err(Problem::new(
            path,
            "is empty, so no database could be reached; leave it out for all of the upstream's",
        ));
    }
    let mut databases = BTreeMap::new();
    for (name, entry) in entries {
        let path = path.key(name);
        let entry = entry.clone().unwrap_or_default();
        let database = database(&entry, &path, general, sources, warnings)?;
        check_sizes(&pool.overridden(&database.config.pool))
            .map_err(|message| Problem::new(path.key("pool").key("min_idle"), message))?;
        databases.insert(name.clone(), database);
    }
    Ok(Some(databases))
}

fn database(
    file: &DatabaseFile,
    path: &KeyPath,
    general: &UpstreamKeys,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<Database, Problem> {
    let at = Section::at(path.clone());
    let own_path = path.key("upstream");
    let own_keys = match &file.upstream {
        None => None,
        Some(ScalarOr::Scalar(url)) => {
            let url = url.text().map_err(|message| at.problem("upstream", message))?;
            Some(UpstreamKeys {
                url: Some(url),
                ..UpstreamKeys::default()
            })
        }
        Some(ScalarOr::Full(file)) => Some(upstream_keys(file, &own_path)?),
    };
    let own = own_keys.map(|keys| {
        if keys.url.is_none() {
            return Err(Problem::new(own_path.key("url"), "is missing"));
        }
        let keys = UpstreamKeys {
            connect_timeout: keys.connect_timeout.or(general.connect_timeout),
            tcp_keepalive: keys.tcp_keepalive.or(general.tcp_keepalive),
            tcp_user_timeout: keys.tcp_user_timeout.or(general.tcp_user_timeout),
            ..keys
        };
        upstream::resolve(&keys, Scope::Database, sources, warnings).map_err(|message| match &file.upstream {
            Some(ScalarOr::Scalar(_)) => at.problem("upstream", message),
            _ => blame(&own_path, message),
        })
    });
    let own = own.transpose()?;
    let named = own
        .as_ref()
        .filter(|own| own.names_dbname)
        .map(|own| own.upstream.dbname.clone());
    let pool = file
        .pool
        .as_ref()
        .map(|pool| pool_override(pool, &path.key("pool")))
        .transpose()?;
    let config = DatabaseConfig {
        upstream: own.as_ref().map(|own| own.upstream.clone()),
        dbname: at.read_if("dbname", &file.dbname, Scalar::text)?.or(named),
        user: at.read_if("user", &file.user, Scalar::text)?,
        pool: pool.unwrap_or_default(),
    };
    Ok(Database { config, own })
}

/// `users:`; without it, and without `auth_query:`, the logins of the upstreams.
fn who_may_log_in(
    file: &File,
    listeners: &[ListenerConfig],
    auth: &AuthConfig,
    general: &Resolved,
    databases: &Databases,
    sources: &Sources,
) -> Result<Vec<UserConfig>, Problem> {
    if let Some(entries) = file.users.as_ref().filter(|entries| !entries.is_empty()) {
        return users::resolve(entries, listeners, sources);
    }
    if auth.query.is_some() {
        return Ok(Vec::new());
    }
    let user = &general.upstream.user;
    if general.known_password.is_none() && users::needs_password(listeners) {
        return Err(Problem::new(
            KeyPath::dotted("users"),
            format!(
                "the upstream has no password that is known at start, so clients can't prove that they are {user:?}; say who \
                 may log in, such as users: [{{name: {user}, password_file: /run/secrets/{user}}}], or set auth_query"
            ),
        ));
    }
    let mut users: Vec<UserConfig> = Vec::new();
    let own = databases
        .iter()
        .flat_map(BTreeMap::values)
        .filter_map(|database| database.own.as_ref());
    for login in [general]
        .into_iter()
        .chain(own.filter(|own| own.known_password.is_some()))
    {
        let Resolved {
            upstream,
            known_password,
            ..
        } = login;
        if !users.iter().any(|user| user.name == upstream.user) {
            users.push(users::of_upstream(
                &upstream.user,
                &upstream.password,
                known_password.as_ref(),
            ));
        }
    }
    Ok(users)
}

fn auth(file: &File, listeners: &[ListenerConfig], tls: &ClientTlsConfig) -> Result<AuthConfig, Problem> {
    let at = Section::named("auth");
    let section = file.auth.clone().unwrap_or_default();
    let scram_iterations = at.read(
        "scram_iterations",
        &section.scram_iterations,
        |it| it.count(1, 10_000_000),
        4096,
    )?;
    let overheard = listeners.iter().find(|listener| {
        let is_private = listener.address.is_private() || requires_tls(listener.tls.unwrap_or(tls.mode));
        listener.auth == AuthMethod::ScramSha256 && !is_private
    });
    if let Some(listener) = overheard.filter(|_| scram_iterations < 4096) {
        let address = &listener.address;
        return Err(at.problem("scram_iterations", format!("below 4096 is for exchanges that no one can overhear, but {address} is neither loopback, a unix socket, nor TLS only")));
    }
    if section.query.is_some() && file.auth_query.is_some() {
        return Err(at.problem("query", "auth_query is set as well; they are the same key"));
    }
    if section.peer_users.is_some() && file.peer_users.is_some() {
        return Err(at.problem(
            "peer_users",
            "the top-level peer_users is set as well; they are the same key",
        ));
    }
    let (query_path, query) = match &section.query {
        Some(query) => (KeyPath::dotted("auth.query"), query.clone()),
        None => (
            KeyPath::dotted("auth_query"),
            file.auth_query.clone().unwrap_or_default(),
        ),
    };
    let (peers_path, peers) = match section.peer_users {
        Some(peers) => (KeyPath::dotted("auth.peer_users"), peers),
        None => (
            KeyPath::dotted("peer_users"),
            file.peer_users.clone().unwrap_or_default(),
        ),
    };
    Ok(AuthConfig {
        scram_iterations,
        scram_iterations_max: at.read(
            "scram_iterations_max",
            &section.scram_iterations_max,
            |it| it.count(1, 10_000_000),
            100_000,
        )?,
        query: auth_query(&query, query_path)?,
        peer_users: peer_users(&peers, &peers_path)?,
    })
}

fn auth_query(file: &AuthQueryFile, path: KeyPath) -> Result<Option<AuthQueryConfig>, Problem> {
    let at = Section::at(path);
    let database = at.read_if("database", &file.database, Scalar::text)?;
    let user = at.read_if("user", &file.user, Scalar::text)?;
    let cache_ttl = at.read("cache_ttl", &file.cache_ttl, Scalar::duration_or_zero, seconds(60))?;
    let negative_ttl = at.read("negative_ttl", &file.negative_ttl, Scalar::duration_or_zero, seconds(5))?;
    let Some(query) = at.read("query", &file.query, Scalar::text_or_none, None)? else {
        return match database.or(user) {
            Some(_) => Err(at.problem("query", "is missing")),
            None => Ok(None),
        };
    };
    if !query.contains("$1") {
        return Err(at.problem("query", "must have $1 in it, for the user's name"));
    }
    Ok(Some(AuthQueryConfig {
        query,
        database,
        user,
        cache_ttl,
        negative_ttl,
    }))
}

fn peer_users(
    file: &BTreeMap<String, ScalarOr<Vec<Scalar>>>,
    path: &KeyPath,
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let names = |(system_user, names): (&String, &ScalarOr<Vec<Scalar>>)| {
        let names = match names {
            ScalarOr::Scalar(name) => vec![name.text()],
            ScalarOr::Full(names) => names.iter().map(Scalar::text).collect(),
        };
        let names: Result<Vec<String>, String> = names.into_iter().collect();
        let names = names.map_err(|message| Problem::new(path.key(system_user), message))?;
        Ok((system_user.clone(), names))
    };
    file.iter().map(names).collect()
}

fn client_tls(file: &TlsFile, sources: &Sources) -> Result<ClientTlsConfig, Problem> {
    let at = Section::named("tls");
    let readable = |key: &str, value: &Option<Scalar>| -> Result<Option<PathBuf>, Problem> {
        let path = at.path_if(key, value)?;
        let read = path.as_deref().map(|path: &Path| sources.read(path)).transpose();
        read.map(|_| path).map_err(|message| at.problem(key, message))
    };
    Ok(ClientTlsConfig {
        mode: at.read(
            "mode",
            &file.mode,
            |it| it.word(listen::TLS_MODES),
            ClientTlsMode::Disable,
        )?,
        cert: readable("cert", &file.cert)?,
        key: readable("key", &file.key)?,
        client_ca: readable("client_ca", &file.client_ca)?,
    })
}

/// Files that the modes in use can't do without.
fn check_client_tls(tls: &ClientTlsConfig, listeners: &[ListenerConfig]) -> Result<(), Problem> {
    let at = Section::named("tls");
    let modes = || {
        listeners
            .iter()
            .map(|listener| listener.tls.unwrap_or(tls.mode))
            .chain([tls.mode])
    };
    let needs = |key: &str, value: &Option<PathBuf>, is_needed: bool, why: &str| {
        if is_needed && value.is_none() {
            Err(at.problem(key, format!("is needed for {why}")))
        } else {
            Ok(())
        }
    };
    let is_any = modes().any(|mode| mode != ClientTlsMode::Disable);
    needs("cert", &tls.cert, is_any, "TLS towards clients")?;
    needs("key", &tls.key, is_any, "TLS towards clients")?;
    let verifies = modes().any(|mode| mode == ClientTlsMode::VerifyFull);
    needs(
        "client_ca",
        &tls.client_ca,
        verifies,
        "mode verify-full: it vouches for the clients' certificates",
    )
}

fn limits(file: &LimitsFile) -> Result<LimitsConfig, Problem> {
    let at = Section::named("limits");
    let off = |key: &str, value: &Option<Scalar>| at.read(key, value, Scalar::duration_or_off, None);
    Ok(LimitsConfig {
        max_clients: at.read("max_clients", &file.max_clients, |it| it.count(1, 1_000_000), 10_000)?,
        max_unauthenticated: at.read(
            "max_unauthenticated",
            &file.max_unauthenticated,
            |it| it.count(1, 1_000_000),
            1000,
        )?,
        client_login_timeout: at.read(
            "client_login_timeout",
            &file.client_login_timeout,
            Scalar::duration_or_off,
            Some(seconds(15)),
        )?,
        query_timeout: off("query_timeout", &file.query_timeout)?,
        transaction_timeout: off("transaction_timeout", &file.transaction_timeout)?,
        idle_transaction_timeout: off("idle_transaction_timeout", &file.idle_transaction_timeout)?,
        client_idle_timeout: off("client_idle_timeout", &file.client_idle_timeout)?,
        client_write_timeout: off("client_write_timeout", &file.client_write_timeout)?,
        statement_bytes: at.read("statement_bytes", &file.statement_bytes, Scalar::size, 1 << 20)?,
        client_statement_bytes: at.read(
            "client_statement_bytes",
            &file.client_statement_bytes,
            Scalar::size,
            4 << 20,
        )?,
    })
}

fn drain(file: &File) -> Result<DrainConfig, Problem> {
    let at = Section::named("drain");
    let section = file.drain.clone().unwrap_or_default();
    Ok(DrainConfig {
        mode: at.read("mode", &section.mode, |it| it.word(DRAIN_MODES), DrainMode::Sidecar)?,
        deadline: at.read("deadline", &section.deadline, Scalar::duration, seconds(8))?,
    })
}

fn metrics(file: &File) -> Result<MetricsConfig, Problem> {
    let at = Section::named("metrics");
    let section = file.metrics.clone().unwrap_or_default();
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9930));
    Ok(MetricsConfig {
        listen: at.read("listen", &section.listen, metrics_address, Some(default))?,
    })
}

fn metrics_address(said: &Scalar) -> Result<Option<SocketAddr>, String> {
    let Some(text) = said.text_or_none()? else {
        return Ok(None);
    };
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.clone(),
    };
    let wrong = |_| format!("{text:?} is no address: write an IP address and a port, such as 127.0.0.1:9930, or off");
    numeric.parse().map(Some).map_err(wrong)
}

fn log(file: &LogFile) -> Result<LogConfig, Problem> {
    let at = Section::named("log");
    Ok(LogConfig {
        level: at.read("level", &file.level, log_level, "info".into())?,
        format: at.read("format", &file.format, |it| it.word(LOG_FORMATS), LogFormat::Text)?,
        connections: at.read("connections", &file.connections, Scalar::boolean, false)?,
        stats_interval: at.read(
            "stats_interval",
            &file.stats_interval,
            Scalar::duration_or_off,
            Some(seconds(60)),
        )?,
    })
}

/// A level for everything, or levels for parts.
fn log_level(said: &Scalar) -> Result<String, String> {
    let text = if *said == Scalar::Bool(false) {
        "off".to_owned()
    } else {
        said.text()?
    };
    let wrong =
        |_| format!("{text:?} is no level: write error, warn, info, debug, trace, off, or info,pgsidecar::pool=debug");
    // A lone word that is no level would be taken for the name of a part.
    if !text.contains(['=', ',']) {
        text.parse::<tracing_subscriber::filter::LevelFilter>()
            .map_err(|_| wrong(()))?;
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(&text)
        .map_err(|_| wrong(()))?;
    Ok(text)
}

fn runtime(file: &File) -> Result<RuntimeConfig, Problem> {
    let section = file.runtime.clone().unwrap_or_default();
    let threads = Section::named("runtime").read("threads", &section.threads, |it| it.count(1, 1024), 1)?;
    Ok(RuntimeConfig {
        threads: threads as usize,
    })
}

/// An upstream that is our own listener would have us connect to ourselves without end: easily done where PGHOST and
/// PGPORT, meant for the app, are in our environment too.
fn refuse_loop(config: &Config) -> Result<(), Problem> {
    let own = config
        .databases
        .iter()
        .flatten()
        .filter_map(|(_, database)| database.upstream.as_ref());
    for upstream in [&config.upstream].into_iter().chain(own) {
        for listener in &config.listen {
            if upstream.hosts.iter().any(|host| is_same(host, &listener.address)) {
                let message = format!(
                    "is pgsidecar's own address ({}); it must be the database's",
                    listener.address
                );
                return Err(Problem::new(KeyPath::dotted("upstream.url"), message));
            }
        }
    }
    Ok(())
}

fn is_same(host: &Host, address: &ListenAddress) -> bool {
    match (host, address) {
        (
            Host::Unix { directory, port },
            ListenAddress::Unix {
                directory: own,
                port: own_port,
            },
        ) => directory == own && port == own_port,
        (
            Host::Tcp { host, hostaddr, port },
            ListenAddress::Tcp {
                host: own,
                port: own_port,
            },
        ) => {
            let host = hostaddr.map_or_else(|| host.clone(), |address| address.to_string());
            let is_local = ListenAddress::Tcp {
                host: host.clone(),
                port: *port,
            }
            .is_private();
            let listens_locally = ["0.0.0.0", "::", "localhost", "127.0.0.1"].contains(&own.as_str());
            port == own_port && (host == *own || is_local && listens_locally)
        }
        _ => false,
    }
}
