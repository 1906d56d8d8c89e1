//! The effective configuration as YAML, for `pgsidecar check`: a configuration file again, but for its secrets.

use serde_yaml::{Mapping, Value};

use super::file::{File, Mirror, Shape};
use super::scalar::{show_duration, show_size};
use super::{
    Config, Credential, DatabaseConfig, Host, ListenerConfig, PasswordSource, PoolOverride, RootCert, UpstreamConfig,
    UserConfig, listen, resolve, upstream, upstream_tls,
};
use std::time::Duration;

/// What stands in place of a secret.
const MASK: &str = "***";

impl Config {
    /// The effective configuration as YAML. Passwords, hashes and verifiers are shown as `***`.
    #[must_use]
    pub fn describe(&self) -> String {
        let sections = [
            ("listen", Value::Sequence(self.listen.iter().map(listener).collect())),
            ("allow_insecure_listen", self.allow_insecure_listen.into()),
            ("upstream", upstream_section(&self.upstream)),
            ("databases", self.databases_section()),
            ("users", Value::Sequence(self.users.iter().map(user).collect())),
            ("auth", self.auth_section()),
            ("auth_query", self.auth_query_section()),
            ("peer_users", self.peer_users_section()),
            ("tls", self.tls_section()),
            ("pool", self.pool_section()),
            ("limits", self.limits_section()),
            (
                "drain",
                section([
                    ("mode", word(resolve::DRAIN_MODES, self.drain.mode)),
                    ("deadline", duration(self.drain.deadline)),
                ]),
            ),
            (
                "metrics",
                section([(
                    "listen",
                    self.metrics.listen.map_or("off".into(), |it| it.to_string().into()),
                )]),
            ),
            ("log", self.log_section()),
            ("runtime", section([("threads", self.runtime.threads.into())])),
        ];
        debug_assert!(
            matches!(File::SHAPE, Shape::Section(keys) if keys.len() == sections.len()),
            "a section is missing"
        );
        // Strings, numbers and mappings always serialise.
        serde_yaml::to_string(&section(sections)).unwrap_or_default()
    }

    fn databases_section(&self) -> Value {
        let Some(databases) = &self.databases else {
            return Value::Null;
        };
        section(databases.iter().map(|(name, entry)| (name.as_str(), database(entry))))
    }

    fn peer_users_section(&self) -> Value {
        let names = |names: &[String]| names.iter().map(|name| Value::from(name.as_str())).collect();
        section(
            self.auth
                .peer_users
                .iter()
                .map(|(user, them)| (user.as_str(), Value::Sequence(names(them)))),
        )
    }

    fn log_section(&self) -> Value {
        section([
            ("level", self.log.level.as_str().into()),
            ("format", word(resolve::LOG_FORMATS, self.log.format)),
            ("connections", self.log.connections.into()),
            ("stats_interval", duration_or_off(self.log.stats_interval)),
        ])
    }

    fn auth_section(&self) -> Value {
        section([
            ("scram_iterations", self.auth.scram_iterations.into()),
            ("scram_iterations_max", self.auth.scram_iterations_max.into()),
        ])
    }

    fn auth_query_section(&self) -> Value {
        let Some(query) = &self.auth.query else {
            return Value::Null;
        };
        section([
            ("query", query.query.as_str().into()),
            ("database", optional(query.database.as_deref())),
            ("user", optional(query.user.as_deref())),
            ("cache_ttl", duration(query.cache_ttl)),
            ("negative_ttl", duration(query.negative_ttl)),
        ])
    }

    fn tls_section(&self) -> Value {
        let path =
            |path: &Option<std::path::PathBuf>| optional(path.as_ref().map(|it| it.to_string_lossy()).as_deref());
        section([
            ("mode", word(listen::TLS_MODES, self.tls.mode)),
            ("cert", path(&self.tls.cert)),
            ("key", path(&self.tls.key)),
            ("client_ca", path(&self.tls.client_ca)),
        ])
    }

    fn pool_section(&self) -> Value {
        let pool = &self.pool;
        section([
            ("mode", word(resolve::POOL_MODES, pool.mode)),
            ("max_size", pool.max_size.into()),
            ("min_idle", pool.min_idle.into()),
            ("max_total", pool.max_total.into()),
            ("max_pools", pool.max_pools.into()),
            ("acquire_timeout", duration_or_off(pool.acquire_timeout)),
            ("idle_timeout", duration_or_off(pool.idle_timeout)),
            ("max_lifetime", duration_or_off(pool.max_lifetime)),
            ("lifetime_jitter", share(pool.lifetime_jitter)),
            ("connect_query", pool.connect_query.as_deref().unwrap_or("none").into()),
            ("park", duration(pool.park)),
            ("statement_cache_bytes", show_size(pool.statement_cache_bytes).into()),
            ("cancel_timeout", duration(pool.cancel_timeout)),
            ("reset_timeout", duration(pool.reset_timeout)),
            ("catalog_refresh", duration_or_off(pool.catalog_refresh)),
            ("catalog_wait", duration(pool.catalog_wait)),
            (
                "max_pinned",
                pool.max_pinned.map_or_else(|| "max_size".into(), Into::into),
            ),
            ("pin_check", duration_or_off(pool.pin_check)),
            ("sequence_pin_timeout", duration_or_off(pool.sequence_pin_timeout)),
            ("listen_on_loss", word(resolve::LISTEN_ON_LOSS, pool.listen_on_loss)),
            ("audit", word(resolve::AUDITS, pool.audit)),
            ("setting_answers", pool.setting_answers.into()),
            ("defer_begin", on_or_off(pool.defer_begin)),
            ("warm_settings", settings(&pool.warm_settings)),
        ])
    }

    fn limits_section(&self) -> Value {
        let limits = &self.limits;
        section([
            ("max_clients", limits.max_clients.into()),
            ("max_unauthenticated", limits.max_unauthenticated.into()),
            ("client_login_timeout", duration_or_off(limits.client_login_timeout)),
            ("query_timeout", duration_or_off(limits.query_timeout)),
            ("transaction_timeout", duration_or_off(limits.transaction_timeout)),
            (
                "idle_transaction_timeout",
                duration_or_off(limits.idle_transaction_timeout),
            ),
            ("client_idle_timeout", duration_or_off(limits.client_idle_timeout)),
            ("client_write_timeout", duration_or_off(limits.client_write_timeout)),
            ("statement_bytes", show_size(limits.statement_bytes).into()),
            (
                "client_statement_bytes",
                show_size(limits.client_statement_bytes).into(),
            ),
            ("client_channels", limits.client_channels.into()),
            (
                "client_notification_bytes",
                show_size(limits.client_notification_bytes).into(),
            ),
            ("warm_clients", limits.warm_clients.into()),
        ])
    }
}

impl UpstreamConfig {
    /// The upstream as a URL with its password masked and every parameter that has an effect.
    #[must_use]
    pub fn masked_url(&self) -> String {
        let password = if matches!(self.password, PasswordSource::Literal(_)) {
            format!(":{MASK}")
        } else {
            String::new()
        };
        let hosts: Vec<String> = self.hosts.iter().map(url_host).collect();
        let parameters = self.url_parameters();
        let parameters: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encoded(value)))
            .collect();
        let (user, dbname) = (percent_encoded(&self.user), percent_encoded(&self.dbname));
        format!(
            "postgresql://{user}{password}@{}/{dbname}?{}",
            hosts.join(","),
            parameters.join("&")
        )
    }

    /// `sslmode` always, the others where they differ from their defaults.
    fn url_parameters(&self) -> Vec<(&str, String)> {
        let tls = &self.tls;
        let mut parameters = vec![("sslmode", name_of(upstream_tls::SSL_MODES, tls.sslmode))];
        let mut add = |name: &'static str, value: Option<String>| parameters.extend(value.map(|value| (name, value)));
        let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        add("hostaddr", self.hostaddr_list());
        add(
            "sslrootcert",
            match &tls.sslrootcert {
                RootCert::None => None,
                RootCert::File(path) => Some(path.to_string_lossy().into_owned()),
                RootCert::System => Some("system".into()),
            },
        );
        add("sslcert", path(&tls.sslcert));
        add("sslkey", path(&tls.sslkey));
        add("sslcrl", path(&tls.sslcrl));
        add("sslcrldir", path(&tls.sslcrldir));
        add("sslnegotiation", tls.direct.then(|| "direct".into()));
        add("sslsni", (!tls.sslsni).then(|| "0".into()));
        let version = |version| name_of(upstream_tls::TLS_VERSIONS, version);
        add(
            "ssl_min_protocol_version",
            Some(tls.ssl_min_protocol_version)
                .filter(|it| *it != Default::default())
                .map(version),
        );
        add("ssl_max_protocol_version", tls.ssl_max_protocol_version.map(version));
        let changed = |text: String, default: &str| Some(text).filter(|text| text != default);
        add(
            "channel_binding",
            changed(name_of(upstream::CHANNEL_BINDINGS, self.channel_binding), "prefer"),
        );
        let session_attrs = name_of(upstream::TARGET_SESSION_ATTRS, self.target_session_attrs);
        add("target_session_attrs", changed(session_attrs, "any"));
        add("load_balance_hosts", self.load_balance_hosts.then(|| "random".into()));
        add(
            "require_auth",
            self.require_auth.as_ref().map(|methods| methods.join(",")),
        );
        if let PasswordSource::Passfile(path) = &self.password {
            add("passfile", Some(path.to_string_lossy().into_owned()));
        }
        for name in ["options", "application_name", "client_encoding"] {
            add(
                name,
                self.startup_parameters
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone()),
            );
        }
        parameters
    }

    fn hostaddr_list(&self) -> Option<String> {
        let address = |host: &Host| match host {
            Host::Tcp {
                hostaddr: Some(address),
                ..
            } => address.to_string(),
            _ => String::new(),
        };
        let list: Vec<String> = self.hosts.iter().map(address).collect();
        list.iter().any(|address| !address.is_empty()).then(|| list.join(","))
    }
}

fn upstream_section(upstream: &UpstreamConfig) -> Value {
    let mut entries = vec![("url", Value::from(upstream.masked_url()))];
    match &upstream.password {
        PasswordSource::File(path) => entries.push(("password_file", path.to_string_lossy().as_ref().into())),
        PasswordSource::Command(command) => entries.push(("password_command", command.as_str().into())),
        PasswordSource::None | PasswordSource::Literal(_) | PasswordSource::Passfile(_) => {}
    }
    entries.push(("connect_timeout", duration_or_off(upstream.connect_timeout)));
    entries.push((
        "tcp_keepalive",
        upstream.tcp_keepalive.map_or("off".into(), |keepalive| {
            section([
                ("idle", duration(keepalive.idle)),
                ("interval", duration(keepalive.interval)),
                ("count", keepalive.count.into()),
            ])
        }),
    ));
    entries.push(("tcp_user_timeout", duration_or_off(upstream.tcp_user_timeout)));
    entries.push(("early_login", if upstream.early_login { "auto" } else { "off" }.into()));
    section(entries)
}

fn url_host(host: &Host) -> String {
    match host {
        Host::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
        Host::Tcp { host, port, .. } => format!("{}:{port}", percent_encoded(host)),
        Host::Unix { directory, port } => format!("{}:{port}", percent_encoded(&directory.to_string_lossy())),
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut encoded, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            encoded
        })
}

fn listener(listener: &ListenerConfig) -> Value {
    let mut entries = vec![
        ("address", Value::from(listener.address.to_string())),
        ("auth", word(listen::AUTH_METHODS, listener.auth)),
    ];
    match listener.address {
        super::ListenAddress::Unix { .. } => {
            entries.push(("unix_socket_mode", format!("{:04o}", listener.unix_socket_mode).into()));
        }
        super::ListenAddress::Tcp { .. } => {
            entries.extend(listener.tls.map(|tls| ("tls", word(listen::TLS_MODES, tls))));
        }
    }
    section(entries)
}

fn user(user: &UserConfig) -> Value {
    let mut entries = vec![("name", Value::from(user.name.as_str()))];
    match &user.credential {
        Credential::Password(_) => entries.push(("password", MASK.into())),
        Credential::PasswordFile(path, _) => entries.push(("password_file", path.to_string_lossy().as_ref().into())),
        Credential::Md5(_) | Credential::Verifier(_) => entries.push(("verifier", MASK.into())),
        Credential::None => {}
    }
    entries.extend(pool_override(&user.pool).map(|pool| ("pool", pool)));
    section(entries)
}

fn database(database: &DatabaseConfig) -> Value {
    let mut entries = Vec::new();
    entries.extend(
        database
            .upstream
            .as_ref()
            .map(|upstream| ("upstream", upstream_section(upstream))),
    );
    entries.extend(database.dbname.as_deref().map(|dbname| ("dbname", Value::from(dbname))));
    entries.extend(database.user.as_deref().map(|user| ("user", Value::from(user))));
    entries.extend(pool_override(&database.pool).map(|pool| ("pool", pool)));
    section(entries)
}

fn on_or_off(value: bool) -> Value {
    if value { "on" } else { "off" }.into()
}

fn pool_override(pool: &PoolOverride) -> Option<Value> {
    let entries = [
        ("mode", pool.mode.map(|mode| word(resolve::POOL_MODES, mode))),
        ("max_size", pool.max_size.map(Value::from)),
        ("min_idle", pool.min_idle.map(Value::from)),
        ("acquire_timeout", pool.acquire_timeout.map(duration_or_off)),
        ("idle_timeout", pool.idle_timeout.map(duration_or_off)),
        ("max_lifetime", pool.max_lifetime.map(duration_or_off)),
        ("lifetime_jitter", pool.lifetime_jitter.map(share)),
        (
            "connect_query",
            pool.connect_query
                .as_ref()
                .map(|query| query.as_deref().unwrap_or("none").into()),
        ),
        ("defer_begin", pool.defer_begin.map(on_or_off)),
        ("warm_settings", pool.warm_settings.as_ref().map(settings)),
    ];
    let entries: Vec<_> = entries
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    (!entries.is_empty()).then(|| section(entries))
}

fn section<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Mapping(Mapping::from_iter(
        entries.into_iter().map(|(key, value)| (Value::from(key), value)),
    ))
}

fn settings(settings: &std::collections::BTreeMap<String, String>) -> Value {
    section(
        settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().into())),
    )
}

fn optional(text: Option<&str>) -> Value {
    text.map_or(Value::Null, Value::from)
}

fn duration(duration: Duration) -> Value {
    show_duration(duration).into()
}

fn duration_or_off(duration: Option<Duration>) -> Value {
    show_duration(duration.unwrap_or_default()).into()
}

fn share(share: f64) -> Value {
    // Rounded to what was written: 0.07 × 100 is not 7.
    format!("{}%", (share * 1e8).round() / 1e6).into()
}

fn word<T: PartialEq + Copy>(words: &[(&str, T)], value: T) -> Value {
    name_of(words, value).into()
}

fn name_of<T: PartialEq + Copy>(words: &[(&str, T)], value: T) -> String {
    words
        .iter()
        .find(|(_, known)| *known == value)
        .map_or_else(String::new, |(word, _)| (*word).to_owned())
}
