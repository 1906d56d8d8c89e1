//! From what was written to what it means: each key read once, checked once, with its default beside it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::databases::{refuse_loop, upstreams};
use super::error::{ConfigError, Problem};
use super::file::{File, LimitsFile, LogFile, OverrideFile, PoolFile};
use super::listen::{self, Security};
use super::login::{auth, check_client_tls, client_tls, who_may_log_in};
use super::path::KeyPath;
use super::scalar::Scalar;
use super::section::Section;
use super::sources::{Layers, Sources};
use super::{
    Audit, Config, DrainConfig, DrainMode, LimitsConfig, ListenOnLoss, LogConfig, LogFormat, MetricsConfig, PoolConfig,
    PoolMode, PoolOverride, RuntimeConfig, UserConfig,
};

/// Settings that a pool may be told to try.
const WARM_SETTINGS_MAX: usize = 64;

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
pub(super) const LISTEN_ON_LOSS: &[(&str, ListenOnLoss)] =
    &[("close", ListenOnLoss::Close), ("resume", ListenOnLoss::Resume)];
pub(super) const AUDITS: &[(&str, Audit)] = &[
    ("off", Audit::Off),
    ("sampled", Audit::Sampled),
    ("always", Audit::Always),
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

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
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
        park: at.read("park", &file.park, Scalar::duration_or_zero, millis(50))?,
        statement_cache_bytes: at.read(
            "statement_cache_bytes",
            &file.statement_cache_bytes,
            Scalar::size,
            4 << 20,
        )?,
        cancel_timeout: at.read("cancel_timeout", &file.cancel_timeout, Scalar::duration, seconds(5))?,
        reset_timeout: at.read("reset_timeout", &file.reset_timeout, Scalar::duration, seconds(5))?,
        catalog_refresh: at.read(
            "catalog_refresh",
            &file.catalog_refresh,
            Scalar::duration_or_off,
            Some(seconds(60)),
        )?,
        catalog_wait: at.read(
            "catalog_wait",
            &file.catalog_wait,
            Scalar::duration_or_zero,
            millis(250),
        )?,
        max_pinned: at.read("max_pinned", &file.max_pinned, Scalar::count_or_max_size, None)?,
        pin_check: at.read("pin_check", &file.pin_check, Scalar::duration_or_off, Some(millis(50)))?,
        sequence_pin_timeout: at.read(
            "sequence_pin_timeout",
            &file.sequence_pin_timeout,
            Scalar::duration_or_off,
            Some(seconds(5)),
        )?,
        listen_on_loss: at.read(
            "listen_on_loss",
            &file.listen_on_loss,
            |it| it.word(LISTEN_ON_LOSS),
            ListenOnLoss::Close,
        )?,
        audit: at.read("audit", &file.audit, |it| it.word(AUDITS), Audit::Off)?,
        setting_answers: at.read(
            "setting_answers",
            &file.setting_answers,
            |it| it.count(0, 1_000_000),
            1000,
        )?,
        defer_begin: at.read("defer_begin", &file.defer_begin, Scalar::boolean, false)?,
        warm_settings: warm_settings(&at, &file.warm_settings)?.unwrap_or_default(),
    };
    check_sizes(&pool).map_err(|message| at.problem("min_idle", message))?;
    warnings.extend(warning_of_sizes(&pool));
    Ok(pool)
}

fn warning_of_sizes(pool: &PoolConfig) -> Option<String> {
    let (size, total) = (pool.max_size, pool.max_total);
    (size > total).then(|| format!("pool.max_size ({size}) is above pool.max_total ({total}), which caps it"))
}

pub(super) fn check_sizes(pool: &PoolConfig) -> Result<(), String> {
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
        defer_begin: at.read_if("defer_begin", &file.defer_begin, Scalar::boolean)?,
        warm_settings: warm_settings(&at, &file.warm_settings)?,
    })
}

/// Names with the values to be tried.
fn warm_settings(
    at: &Section,
    file: &Option<BTreeMap<String, Scalar>>,
) -> Result<Option<BTreeMap<String, String>>, Problem> {
    let Some(file) = file else {
        return Ok(None);
    };
    if file.len() > WARM_SETTINGS_MAX {
        return Err(at.problem(
            "warm_settings",
            format!("must not have more than {WARM_SETTINGS_MAX} entries"),
        ));
    }
    let read = |(name, value): (&String, &Scalar)| {
        let value = value.setting_value();
        let value = value.map_err(|message| at.problem("warm_settings", format!("{name} {message}")))?;
        Ok((name.clone(), value))
    };
    file.iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn check_overrides(pool: &PoolConfig, users: &[UserConfig]) -> Result<(), Problem> {
    for (position, user) in users.iter().enumerate() {
        let path = KeyPath::dotted("users").index(position).key("pool");
        check_sizes(&pool.overridden(&user.pool)).map_err(|message| Problem::new(path.key("min_idle"), message))?;
    }
    Ok(())
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
        client_channels: at.read("client_channels", &file.client_channels, a_million_at_most, 1000)?,
        client_notification_bytes: at.read(
            "client_notification_bytes",
            &file.client_notification_bytes,
            Scalar::size,
            1 << 20,
        )?,
        warm_clients: at.read("warm_clients", &file.warm_clients, a_million_at_most, 64)?,
    })
}

fn a_million_at_most(scalar: &Scalar) -> Result<usize, String> {
    scalar
        .count(0, 1_000_000)
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
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

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, URL};
    use super::super::{AuthMethod, Credential, DatabaseConfig, PasswordSource, Secret, reload_difference};
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_interface() {
        let config = Fixture::new().config();
        assert_eq!(config.listen.len(), 1);
        assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:6432");
        assert_eq!(config.listen[0].auth, AuthMethod::ScramSha256);
        assert_eq!(config.metrics.listen, Some("127.0.0.1:9930".parse().unwrap()));
        let pool = &config.pool;
        assert_eq!(
            (pool.max_size, pool.min_idle, pool.max_total, pool.max_pools),
            (20, 1, 80, 100)
        );
        assert_eq!(
            (pool.acquire_timeout, pool.idle_timeout),
            (Some(seconds(30)), Some(seconds(600)))
        );
        assert_eq!((pool.max_lifetime, pool.lifetime_jitter), (Some(seconds(3600)), 0.1));
        assert_eq!(
            (pool.park, pool.statement_cache_bytes),
            (Duration::from_millis(50), 4 << 20)
        );
        assert_eq!(
            (config.limits.max_clients, config.limits.max_unauthenticated),
            (10_000, 1000)
        );
        assert_eq!(config.limits.client_login_timeout, Some(seconds(15)));
        assert_eq!(config.limits.query_timeout, None);
        assert_eq!(
            (config.drain.mode, config.drain.deadline),
            (DrainMode::Sidecar, seconds(8))
        );
        assert_eq!(config.auth.scram_iterations, 4096);
        assert_eq!(config.upstream.connect_timeout, Some(seconds(10)));
        assert_eq!(config.upstream.tcp_user_timeout, Some(seconds(30)));
        assert_eq!(
            (config.log.level.as_str(), config.log.stats_interval),
            ("info", Some(seconds(60)))
        );
        assert_eq!(config.databases, None);
    }

    #[test]
    fn no_upstream_is_one_clear_line() {
        assert!(
            Fixture::empty()
                .error()
                .starts_with("upstream.url: no upstream is given; set --upstream")
        );
        assert!(
            Fixture::empty()
                .variable("PGPASSWORD", "x")
                .error()
                .contains("no upstream")
        );
        assert_eq!(
            Fixture::empty()
                .variable("PGHOST", "db")
                .variable("PGPASSWORD", "x")
                .config()
                .upstream
                .user,
            "me"
        );
    }

    #[test]
    fn by_default_the_upstreams_own_login_may_log_in() {
        let config = Fixture::new().config();
        let expected = Credential::Password(Secret::new("secret"));
        assert_eq!(
            (config.users[0].name.as_str(), &config.users[0].credential),
            ("app", &expected)
        );
        let config = Fixture::empty()
            .yaml("upstream: {url: 'postgres://app@h/d', password_file: /run/pw}")
            .file("/run/pw", "one\n\n")
            .config();
        assert_eq!(config.upstream.password, PasswordSource::File("/run/pw".into()));
        assert_eq!(
            config.users[0].credential,
            Credential::PasswordFile("/run/pw".into(), Secret::new("one\n"))
        );
    }

    #[test]
    fn an_upstream_without_a_known_password_needs_users() {
        let command = "upstream: {url: 'postgres://app@h/d', password_command: 'echo x'}\n";
        for yaml in [command, "upstream: {url: 'postgres://app@h/d'}\n"] {
            let error = Fixture::empty().yaml(yaml).error();
            assert!(
                error.starts_with("users: the upstream has no password that is known at start"),
                "{error}"
            );
            for more in [
                "users: [{name: app, password: x}]",
                "auth_query: {query: 'SELECT a, b FROM c.d($1)'}",
                "auth: {query: {query: 'SELECT a, b FROM c.d($1)'}}",
                "listen: [{address: 'unix:/run', auth: peer}]",
                "listen: [{address: 'unix:/run', auth: trust}, {address: '127.0.0.1:1', auth: trust}]",
            ] {
                Fixture::empty().yaml(&format!("{yaml}{more}")).config();
            }
        }
        let error = Fixture::empty()
            .yaml("upstream: {url: 'postgres://app@h/d', password_file: /none}")
            .error();
        assert_eq!(
            error,
            "/etc/pgsidecar/config.yaml:1: upstream.password_file: cannot read /none: No such file or directory"
        );
        let error = Fixture::new().yaml("upstream: {password_file: /none}").error();
        assert!(error.contains("the URL has one"), "{error}");
        let error = Fixture::empty()
            .yaml("upstream: {url: 'host=h', password_file: /a, password_command: b}")
            .error();
        assert!(
            error.contains("upstream.password_command: password_file is set as well"),
            "{error}"
        );
    }

    #[test]
    fn users_have_exactly_one_credential() {
        let scram = format!("SCRAM-SHA-256$4096:c2FsdA==${0}:{0}", "A".repeat(43) + "=");
        let yaml = format!(
            "listen: [{{address: '127.0.0.1:1', auth: md5}}]\nusers:\n- {{name: a, password: x}}\n- {{name: b, password_file: /pw}}\n\
             - {{name: c, password_env: PW}}\n- {{name: d, verifier: '{scram}'}}\n- {{name: e, verifier: md5{}}}\n\
             - {{name: f, password_file: /hash, pool: {{mode: session, idle_timeout: off}}}}\n",
            "0".repeat(32)
        );
        let fixture = Fixture::new()
            .yaml(&yaml)
            .file("/pw", "y\n")
            .file("/hash", &scram)
            .variable("PW", "z");
        let users = fixture.config().users;
        assert_eq!(users[0].credential, Credential::Password(Secret::new("x")));
        assert_eq!(
            users[1].credential,
            Credential::PasswordFile("/pw".into(), Secret::new("y"))
        );
        assert_eq!(users[2].credential, Credential::Password(Secret::new("z")));
        assert_eq!(users[3].credential, Credential::Verifier(Secret::new(scram.clone())));
        assert!(matches!(users[4].credential, Credential::Md5(_)));
        assert_eq!(users[5].credential, Credential::Verifier(Secret::new(scram)));
        assert_eq!(
            (users[5].pool.mode, users[5].pool.idle_timeout),
            (Some(PoolMode::Session), Some(None))
        );
    }

    #[test]
    fn a_user_that_could_not_log_in_is_refused() {
        let hash = format!("md5{}", "0".repeat(32));
        for (entry, words) in [
            ("{password: x}", "users[0].name: is missing"),
            ("{name: a}", "users[0]: one of password, password_file"),
            (
                "{name: a, password: x, verifier: y}",
                "users[0].verifier: password is given as well",
            ),
            ("{name: a, password: ''}", "users[0].password: must not be empty"),
            ("{name: a, verifier: x}", "users[0].verifier: must be md5 and 32"),
            (
                "{name: a, password_env: NONE}",
                "users[0].password_env: the variable NONE is not set",
            ),
            (
                "{name: a, password_file: /none}",
                "users[0].password_file: cannot read /none",
            ),
            (
                "{name: a, password_file: /empty}",
                "users[0].password_file: holds an empty password",
            ),
            ("{name: a, password_file: /long}", "more than 64 kB"),
            (&format!("{{name: a, verifier: {hash}}}"), "an md5 hash can't prove"),
            (&format!("{{name: a, password: {hash}}}"), "give it as verifier"),
            (
                "{name: a, password: x, pool: {max_size: 3, min_idle: 4}}",
                "users[0].pool.min_idle: 4 is above max_size",
            ),
            (
                "{name: a, password: x}, {name: a, password: y}",
                "users[1].name: \"a\" is given twice",
            ),
        ] {
            let fixture = Fixture::new().yaml(&format!("users: [{entry}]")).file("/empty", "\n");
            let error = fixture.file("/long", &"x".repeat(65_537)).error();
            assert!(error.contains(words), "{entry}: {error}");
        }
    }

    #[test]
    fn trap_87_a_secret_file_loses_one_newline_and_may_be_long() {
        let long = "x".repeat(65_536);
        let fixture = Fixture::new()
            .yaml("users: [{name: a, password_file: /long}]")
            .file("/long", &format!("{long}\r\n"));
        assert_eq!(
            fixture.config().users[0].credential,
            Credential::PasswordFile("/long".into(), Secret::new(long))
        );
    }

    #[test]
    fn databases_restrict_rename_and_lead_elsewhere() {
        let config = Fixture::new()
            .yaml(
                "databases:\n  app:\n  reports: {dbname: rep, user: reader, pool: {max_size: 2}}\n  far: {upstream: 'postgres://u:p@far:1/there'}\n\
                 \x20 near: {upstream: {url: 'postgres://u:p@near', connect_timeout: 1s}}\n",
            )
            .variable("PGPASSWORD", "elsewhere")
            .variable("PGSSLMODE", "disable")
            .config();
        let databases = config.databases.unwrap();
        assert_eq!(databases["app"], DatabaseConfig::default());
        assert_eq!(databases["reports"].dbname.as_deref(), Some("rep"));
        assert_eq!(databases["reports"].user.as_deref(), Some("reader"));
        assert_eq!(databases["reports"].pool.max_size, Some(2));
        assert_eq!(databases["far"].dbname.as_deref(), Some("there"));
        let near = databases["near"].upstream.as_ref().unwrap();
        assert_eq!(
            (databases["near"].dbname.as_deref(), near.connect_timeout),
            (None, Some(seconds(1)))
        );
        assert_eq!(near.tls.sslmode, super::super::SslMode::Disable);
        let names: Vec<&str> = config.users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["app", "u"]);
    }

    #[test]
    fn a_password_in_the_environment_is_for_the_general_upstream_alone() {
        let fixture = Fixture::new()
            .variable("PGPASSWORD", "elsewhere")
            .variable("PGUSER", "x");
        let config = fixture
            .yaml("databases: {far: {upstream: 'postgres://far/there'}}")
            .config();
        let far = config.databases.unwrap()["far"].upstream.clone().unwrap();
        assert_eq!((far.user.as_str(), far.password), ("me", PasswordSource::None));
    }

    #[test]
    fn databases_with_upstreams_of_their_own_need_no_general_one() {
        let config = Fixture::empty()
            .yaml("databases: {a: {upstream: 'postgres://u:p@h/x'}}")
            .config();
        assert_eq!(config.upstream.dbname, "x");
        assert!(
            Fixture::empty()
                .yaml("databases: {a: {upstream: 'postgres://u:p@h/x'}, b: {}}")
                .error()
                .contains("no upstream")
        );
        assert!(
            Fixture::new()
                .yaml("databases: {}")
                .error()
                .contains("databases: is empty")
        );
        assert!(
            Fixture::new()
                .yaml("databases: {a: {upstream: {}}}")
                .error()
                .contains("databases.a.upstream.url: is missing")
        );
        let error = Fixture::new()
            .yaml("databases:\n  a:\n    upstream: postgres://h?x=y\n")
            .error();
        assert!(
            error.starts_with("/etc/pgsidecar/config.yaml:3: databases.a.upstream: invalid connection option"),
            "{error}"
        );
    }

    #[test]
    fn few_scram_iterations_are_for_private_exchanges() {
        let with = |listen: &str| Fixture::new().yaml(&format!("auth: {{scram_iterations: 1}}\n{listen}"));
        with("listen: ['127.0.0.1:1', 'unix:/run']").config();
        assert!(
            with("listen: ['127.0.0.1:1', '0.0.0.0:2']")
                .error()
                .contains(":1: auth.scram_iterations: below 4096")
        );
        with("listen: [{address: '0.0.0.0:2', auth: md5}]").config();
        let tls = "listen: ['0.0.0.0:2']\ntls: {mode: require, cert: /c, key: /k}";
        with(tls).file("/c", "").file("/k", "").config();
        assert!(
            with("")
                .variable("PGSIDECAR__AUTH__SCRAM_ITERATIONS", "0")
                .error()
                .contains("from 1 to")
        );
    }

    #[test]
    fn tls_needs_its_files() {
        for (yaml, words) in [
            ("tls: {mode: require}", "tls.cert: is needed"),
            ("tls: {mode: require, cert: /c}", "tls.key: is needed"),
            (
                "tls: {mode: verify-full, cert: /c, key: /c}",
                "tls.client_ca: is needed",
            ),
            ("tls: {cert: /none}", "tls.cert: cannot read /none"),
            ("listen: [{address: 'h:1', tls: allow}]", "tls.cert: is needed"),
            (
                "tls: {mode: prefer}",
                "tls.mode: must be one of disable, allow, require, verify-full, not \"prefer\"",
            ),
        ] {
            let error = Fixture::new().yaml(yaml).file("/c", "").error();
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }

    #[test]
    fn values_out_of_bounds_name_their_key() {
        for (yaml, words) in [
            (
                "pool: {mode: txn}",
                "pool.mode: must be one of transaction, session, statement",
            ),
            (
                "pool: {max_size: 2, min_idle: 3}",
                "pool.min_idle: 3 is above max_size, which is 2",
            ),
            (
                "pool: {idle_timeout: 10}",
                "pool.idle_timeout: must be a duration with its unit",
            ),
            (
                "pool: {lifetime_jitter: 10}",
                "pool.lifetime_jitter: must be a percentage",
            ),
            ("pool: {cancel_timeout: off}", "pool.cancel_timeout: can't be off"),
            ("drain: {deadline: 0}", "drain.deadline: can't be off or 0"),
            ("drain: {mode: k8s}", "drain.mode: must be one of sidecar, server"),
            ("limits: {max_clients: 0}", "limits.max_clients: must be a whole number"),
            (
                "limits: {statement_bytes: lots}",
                "limits.statement_bytes: must be a size",
            ),
            (
                "metrics: {listen: somewhere:1}",
                "metrics.listen: \"somewhere:1\" is no address",
            ),
            ("log: {level: loud}", "log.level: \"loud\" is no level"),
            ("log: {format: xml}", "log.format: must be one of text, json"),
            ("log: {connections: 3}", "log.connections: must be true or false"),
            ("runtime: {threads: 0}", "runtime.threads: must be a whole number"),
            ("auth_query: {query: 'SELECT 1'}", "auth_query.query: must have $1"),
            ("auth_query: {user: x}", "auth_query.query: is missing"),
            (
                "auth_query: {query: '$1'}\nauth: {query: {query: '$1'}}",
                "auth.query: auth_query is set as well",
            ),
            (
                "peer_users: {a: b}\nauth: {peer_users: {a: b}}",
                "auth.peer_users: the top-level",
            ),
            ("upstream: {tcp_keepalive: 30s}", "upstream.tcp_keepalive: must be off"),
            (
                "allow_insecure_listen: maybe",
                "allow_insecure_listen: must be true or false",
            ),
        ] {
            let error = Fixture::new().yaml(yaml).error();
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }

    #[test]
    fn off_is_off() {
        let config = Fixture::new()
            .yaml(
                "pool: {acquire_timeout: off, idle_timeout: none, max_lifetime: 0, lifetime_jitter: off, park: off}\n\
                 metrics: {listen: off}\nlog: {stats_interval: false, level: off}\nupstream: {tcp_keepalive: off, tcp_user_timeout: off, connect_timeout: 0}",
            )
            .config();
        assert_eq!(
            (
                config.pool.acquire_timeout,
                config.pool.idle_timeout,
                config.pool.max_lifetime
            ),
            (None, None, None)
        );
        assert_eq!((config.pool.lifetime_jitter, config.pool.park), (0.0, Duration::ZERO));
        assert_eq!(
            (
                config.metrics.listen,
                config.log.stats_interval,
                config.log.level.as_str()
            ),
            (None, None, "off")
        );
        assert_eq!(
            (
                config.upstream.tcp_keepalive,
                config.upstream.tcp_user_timeout,
                config.upstream.connect_timeout
            ),
            (None, None, None)
        );
    }

    #[test]
    fn peers_and_queries() {
        let config = Fixture::new()
            .yaml("peer_users: {root: app, www: [a, b]}\nauth_query: {query: 'SELECT u, p FROM s.f($1)', database: d, negative_ttl: off}")
            .config();
        assert_eq!(config.auth.peer_users["www"], ["a", "b"]);
        assert_eq!(config.auth.peer_users["root"], ["app"]);
        let query = config.auth.query.unwrap();
        assert_eq!(
            (query.database.as_deref(), query.cache_ttl, query.negative_ttl),
            (Some("d"), seconds(60), Duration::ZERO)
        );
        assert!(config.users.is_empty());
    }

    #[test]
    fn an_upstream_that_is_our_own_listener_is_refused() {
        for (url, listen, is_refused) in [
            ("postgres://a:b@127.0.0.1:6432/d", "127.0.0.1:6432", true),
            ("postgres://a:b@localhost:6432/d", "0.0.0.0:6432", true),
            ("postgres://a:b@other:1,localhost:6432/d", "[::]:6432", true),
            ("postgres://a:b@/d?host=/run&port=6432", "unix:/run", true),
            ("postgres://a:b@/d?host=/run", "unix:/run", false),
            ("postgres://a:b@127.0.0.1:5432/d", "127.0.0.1:6432", false),
            ("postgres://a:b@db:6432/d", "0.0.0.0:6432", false),
        ] {
            let loaded = Fixture::empty()
                .variable("PGSIDECAR_UPSTREAM", url)
                .variable("PGSIDECAR_LISTEN", listen)
                .load();
            assert_eq!(
                loaded.is_err_and(|error| error.contains("pgsidecar's own address")),
                is_refused,
                "{url} {listen}"
            );
        }
    }

    #[test]
    fn a_reload_tells_what_needs_a_restart() {
        let old = Fixture::new().config();
        assert!(reload_difference(&old, &Fixture::new().yaml("pool: {max_size: 2}").config()).is_empty());
        let new = Fixture::new()
            .yaml("listen: 'localhost:1'\nmetrics: {listen: off}\nruntime: {threads: 2}")
            .config();
        assert_eq!(
            reload_difference(&old, &new),
            ["listen", "metrics.listen", "runtime.threads"]
        );
    }

    #[test]
    fn a_pool_larger_than_the_total_is_warned_of() {
        let warnings = Fixture::new().yaml("pool: {max_size: 100}").load().unwrap().warnings;
        assert_eq!(
            warnings,
            ["pool.max_size (100) is above pool.max_total (80), which caps it"]
        );
    }

    #[test]
    fn a_probe_does_not_fail_for_another_key() {
        let fixture = Fixture::empty().yaml("pool: {max_size: 0}\nmetrics: {listen: 127.0.0.1:7}");
        assert_eq!(
            metrics_listen(&fixture.sources),
            Ok(Some("127.0.0.1:7".parse().unwrap()))
        );
    }

    #[test]
    fn the_listing_masks_secrets_and_can_be_read_again() {
        let yaml = "users:\n- {name: a, password: hunter2, pool: {mode: session, connect_query: none}}\n\
                    databases: {x: {upstream: 'postgres://u:hunter2@[::1]:7/d?target_session_attrs=primary', pool: {lifetime_jitter: 7%}}}\n\
                    listen: [{address: 'unix:/run', unix_socket_mode: '0770'}, {address: 'localhost:1', auth: password}]\n\
                    limits: {query_timeout: 90s}\nauth_query: {query: 'SELECT a, b FROM s.f($1)'}\n";
        let url = "postgres://app:hunter2@%2Frun%2Fx,db:7/a%2Fb?application_name=x%20y&hostaddr=,10.0.0.1&ssl_max_protocol_version=TLSv1.3";
        let config = Fixture::empty().variable("PGSIDECAR_UPSTREAM", url).yaml(yaml).config();
        let listing = config.describe();
        assert!(!listing.contains("hunter2"), "{listing}");
        for words in [
            "postgresql://app:***@%2Frun%2Fx:5432,db:7/a%2Fb?sslmode=prefer",
            "unix_socket_mode: '0770'",
            "query_timeout: 90s",
            "lifetime_jitter: 7%",
        ] {
            assert!(listing.contains(words), "{words} in {listing}");
        }
        let again = Fixture::empty().yaml(&listing).config();
        assert_eq!(again.describe(), listing);
        assert_eq!(
            (again.upstream.hosts, again.pool, again.limits),
            (config.upstream.hosts, config.pool, config.limits)
        );
        let listing = Fixture::new().config().describe();
        assert_eq!(Fixture::empty().yaml(&listing).config().describe(), listing);
        assert!(!listing.contains(URL));
    }
}
