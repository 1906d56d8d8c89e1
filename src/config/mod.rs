//! What the operator asked for, resolved once: flags, environment, file and defaults become one [`Config`].
//!
//! Nothing below this module reads a file, a variable or a flag, and nothing is checked twice after it.
//! Durations are [`Duration`]; `None` in a field whose key can be `off` or `none` means just that.
//!
//! In reading order: [`Sources`] (flags, environment, file), `file` (the keys as they are written), `resolve` (what
//! they mean), with `listen`, `login`, `users`, `databases`, `upstream` and `conninfo` for the parts that need more words;
//! `describe` shows the result, `reload` compares two, and `connection` reads a string by itself.

mod connection;
mod conninfo;
mod databases;
mod describe;
mod error;
mod file;
#[cfg(test)]
mod fixture;
mod keys;
mod line;
mod listen;
mod login;
mod passfile;
mod path;
mod reload;
mod resolve;
mod scalar;
pub mod secret;
mod section;
mod service_file;
mod sources;
mod upstream;
mod upstream_tls;
mod users;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use connection::{connection, database_url};
pub use conninfo::password_spans;
pub use error::{ConfigError, Place};
pub use file::known_keys;
pub use passfile::find_password;
pub use reload::reload_difference;
pub use resolve::{Loaded, metrics_listen};
pub use secret::Secret;
pub use sources::{DEFAULT_FILE, Flags, Sources};

pub use crate::protocol::backend_login::ChannelBinding;
pub use crate::protocol::client_auth::AuthMethod;

/// Everything that can be configured, resolved and consistent.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "each field is the key of the same name; docs/config.md and config.yaml tell its unit and price"
)]
pub struct Config {
    pub listen: Vec<ListenerConfig>,
    pub allow_insecure_listen: bool,
    /// The database server that every name without an `upstream` of its own goes to.
    pub upstream: UpstreamConfig,
    /// `None`: any database of the upstream that a client names. `Some`: these and no others.
    pub databases: Option<BTreeMap<String, DatabaseConfig>>,
    /// Who may log in. Where neither `users:` nor `auth_query:` says so, the upstreams' own logins stand here, so that
    /// nothing below has a rule for that case. Empty only with `auth.query`.
    pub users: Vec<UserConfig>,
    pub auth: AuthConfig,
    pub tls: ClientTlsConfig,
    pub pool: PoolConfig,
    pub limits: LimitsConfig,
    pub drain: DrainConfig,
    pub metrics: MetricsConfig,
    pub log: LogConfig,
    pub runtime: RuntimeConfig,
}

/// One address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct ListenerConfig {
    pub address: ListenAddress,
    pub auth: AuthMethod,
    /// `None`: the general `tls.mode`.
    pub tls: Option<ClientTlsMode>,
    /// Permission bits of the socket file; only for unix sockets.
    pub unix_socket_mode: u32,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `host:port`, every address that the host resolves to.
    Tcp {
        /// A name or an address.
        host: String,
        /// 0 lets the system choose.
        port: u16,
    },
    /// `unix:/dir` or `unix:/dir:port`: libpq's naming, `/dir/.s.PGSQL.port`, port 6432 where none is given.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The number in the file's name.
        port: u16,
    },
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct ClientTlsConfig {
    pub mode: ClientTlsMode,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
}

/// Whether a client may, must or can't use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are config.yaml's")]
pub enum ClientTlsMode {
    #[default]
    Disable,
    Allow,
    Require,
    VerifyFull,
}

/// How to reach and log in to PostgreSQL: libpq's connection string, resolved (manual: libpq-connect).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub struct UpstreamConfig {
    /// Tried in order; never empty.
    pub hosts: Vec<Host>,
    pub load_balance_hosts: bool,
    pub target_session_attrs: TargetSessionAttrs,
    pub user: String,
    /// The database of the URL; defaults to the user as libpq does.
    pub dbname: String,
    pub password: PasswordSource,
    pub tls: UpstreamTlsConfig,
    pub channel_binding: ChannelBinding,
    /// Methods that the server may ask for; `None`: any (libpq's require_auth).
    pub require_auth: Option<Vec<String>>,
    /// Per host, name lookup and login included; `None` waits for ever.
    pub connect_timeout: Option<Duration>,
    /// `options` and other settings of the URL (application_name, …), sent in every StartupMessage to this upstream.
    pub startup_parameters: Vec<(String, String)>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub tcp_user_timeout: Option<Duration>,
    /// Ours, not libpq's: what the server is expected to ask for is sent before it asks.
    pub early_login: bool,
}

/// One host of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub enum Host {
    Tcp {
        host: String,
        hostaddr: Option<IpAddr>,
        port: u16,
    },
    Unix {
        directory: PathBuf,
        port: u16,
    },
}

/// Which server a session may be opened on (libpq's target_session_attrs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub enum TargetSessionAttrs {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Where the password for logins to PostgreSQL comes from. Files and commands are read at each login.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PasswordSource {
    /// None is known: trust, peer or a client certificate.
    #[default]
    None,
    /// Known at start.
    Literal(Secret),
    /// A file whose content, less one newline at the end, is the password.
    File(PathBuf),
    /// A shell command whose output, less one newline at the end, is the password.
    Command(String),
    /// libpq's password file, searched by host, port, database and user.
    Passfile(PathBuf),
}

/// TLS towards PostgreSQL (manual: libpq-ssl).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub struct UpstreamTlsConfig {
    pub sslmode: SslMode,
    /// `sslnegotiation=direct`: no SSLRequest, ALPN instead.
    pub direct: bool,
    pub sslrootcert: RootCert,
    pub sslcert: Option<PathBuf>,
    pub sslkey: Option<PathBuf>,
    pub sslcrl: Option<PathBuf>,
    pub sslcrldir: Option<PathBuf>,
    pub sslsni: bool,
    pub ssl_min_protocol_version: TlsVersion,
    pub ssl_max_protocol_version: Option<TlsVersion>,
}

/// Which certificates vouch for the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RootCert {
    /// None is configured; verify-ca and verify-full are refused at start, require doesn't verify.
    #[default]
    None,
    /// A PEM file. With `sslmode=require` its presence means verify-ca, as in libpq.
    File(PathBuf),
    /// The platform's trust store.
    System,
}

/// libpq's sslmode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A TLS version that rustls speaks. Older ones are refused by name at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub enum TlsVersion {
    #[default]
    Tls12,
    Tls13,
}

/// TCP keepalive of backend and client sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct TcpKeepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// One entry of `databases:`.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct DatabaseConfig {
    /// `None`: the general upstream.
    pub upstream: Option<UpstreamConfig>,
    /// The name on the server; `None`: the entry's own name.
    pub dbname: Option<String>,
    pub pool: PoolOverride,
    /// Log in to PostgreSQL as this user whoever the client is; its password is the upstream's. `None`: as the client's user.
    pub user: Option<String>,
}

/// One entry of `users:`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct UserConfig {
    pub name: String,
    pub credential: Credential,
    pub pool: PoolOverride,
}

/// What is known of a client's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The password itself.
    Password(Secret),
    /// A file that holds the password; read at start and at reload.
    PasswordFile(PathBuf, Secret),
    /// `md5` and 32 hexadecimal digits, as in pg_authid.
    Md5(Secret),
    /// `SCRAM-SHA-256$…`, as in pg_authid.
    Verifier(Secret),
    /// Nothing: this user can log in by trust, peer or certificate only.
    None,
}

/// How clients log in.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct AuthConfig {
    pub scram_iterations: u32,
    /// The most iterations that an upstream may ask of us (each costs CPU).
    pub scram_iterations_max: u32,
    pub query: Option<AuthQueryConfig>,
    /// System user → the database users that it may be, for `peer` listeners. Without an entry: the same name.
    pub peer_users: BTreeMap<String, Vec<String>>,
}

/// Looking verifiers up in PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct AuthQueryConfig {
    pub query: String,
    pub database: Option<String>,
    pub user: Option<String>,
    pub cache_ttl: Duration,
    pub negative_ttl: Duration,
}

/// When a backend is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum PoolMode {
    /// At the end of each transaction.
    #[default]
    Transaction,
    /// When the client leaves.
    Session,
    /// After each statement; transaction blocks are refused.
    Statement,
}

/// What becomes of clients that listen when the connection that hears for them is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListenOnLoss {
    /// They are closed, as their own connection would have been.
    #[default]
    Close,
    /// A new one listens for them; what is notified in between is lost.
    Resume,
}

/// How often a backend that is given back is asked whether it holds what the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audit {
    /// Never.
    #[default]
    Off,
    /// One time in a hundred, at random.
    Sampled,
    /// Each time.
    Always,
}

/// `pool:`, general.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct PoolConfig {
    pub mode: PoolMode,
    pub max_size: u32,
    pub min_idle: u32,
    pub max_total: u32,
    pub max_pools: u32,
    pub acquire_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    /// A share of `max_lifetime`, 0.0 to 1.0.
    pub lifetime_jitter: f64,
    /// Run on each new backend; `None` runs nothing.
    pub connect_query: Option<String>,
    /// How long a released backend stays near its last client before anyone's turn.
    pub park: Duration,
    /// Bound of one backend's prepared statements, in bytes of their texts.
    pub statement_cache_bytes: usize,
    /// How long a cancel may take before its backend is discarded.
    pub cancel_timeout: Duration,
    /// How long cleaning a backend (ROLLBACK, DISCARD ALL, draining a reply) may take before it is discarded.
    pub reset_timeout: Duration,
    /// How old what the catalog told of routines and triggers may get while the pool is in use; DDL that passes through
    /// the pool renews it at once. `None`: DDL alone does.
    pub catalog_refresh: Option<Duration>,
    /// How long the first statement of a client that came before the catalog was read waits for it, if it mentions what the
    /// catalog would tell of. Without the catalog such a statement ties the client to its backend.
    pub catalog_wait: Duration,
    /// Backends of one pool that clients may keep beyond their transactions; `None`: as many as there are. A statement
    /// that would keep one more is refused with 53400.
    pub max_pinned: Option<u32>,
    /// How long a pinned client must be still before its backend is asked whether anything still pins it; twice as long
    /// each time that something does. `None`: a pin lasts until the client leaves or says DISCARD ALL.
    pub pin_check: Option<Duration>,
    /// How long a client keeps its backend for a sequence value that it drew and has not asked for; a tenth of it at most
    /// while others wait. `None`: until it has asked.
    pub sequence_pin_timeout: Option<Duration>,
    /// What becomes of clients that listen when the connection that hears for them is lost.
    pub listen_on_loss: ListenOnLoss,
    /// Whether backends that are given back are asked what they hold. A round trip of the backend each time; the client
    /// does not wait for it.
    pub audit: Audit,
    /// Values of settings that are remembered because PostgreSQL has accepted them, so that it need not be asked again.
    /// 0: each is asked for.
    pub setting_answers: u32,
    /// Whether a BEGIN is answered at once, and sent together with the first statement behind it.
    pub defer_begin: bool,
    /// Values that are tried when a pool opens, by name: PostgreSQL need not be asked for them even once.
    pub warm_settings: BTreeMap<String, String>,
}

/// What a `pool:` in `databases:` or `users:` overrides. The outer `Option` is: is the key there?
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct PoolOverride {
    pub mode: Option<PoolMode>,
    pub max_size: Option<u32>,
    pub min_idle: Option<u32>,
    pub acquire_timeout: Option<Option<Duration>>,
    pub idle_timeout: Option<Option<Duration>>,
    pub max_lifetime: Option<Option<Duration>>,
    pub lifetime_jitter: Option<f64>,
    pub connect_query: Option<Option<String>>,
    pub defer_begin: Option<bool>,
    pub warm_settings: Option<BTreeMap<String, String>>,
}

/// `limits:`. `None` is off.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct LimitsConfig {
    pub max_clients: u32,
    pub max_unauthenticated: u32,
    pub client_login_timeout: Option<Duration>,
    pub query_timeout: Option<Duration>,
    pub transaction_timeout: Option<Duration>,
    pub idle_transaction_timeout: Option<Duration>,
    pub client_idle_timeout: Option<Duration>,
    /// How long a client may leave a reply unread before it is dropped.
    pub client_write_timeout: Option<Duration>,
    /// The longest statement text that is read for its effects, in bytes; a longer one is passed on and pins.
    pub statement_bytes: usize,
    /// Prepared statements that one client may hold, in bytes of their texts.
    pub client_statement_bytes: usize,
    /// Channels that one client may hear without a backend of its own; more pin.
    pub client_channels: usize,
    /// Notifications that may wait for one client, in bytes; with more it is closed.
    pub client_notification_bytes: usize,
    /// Busy clients that keep their buffers, two of 8 KiB each, while they wait for their next request.
    pub warm_clients: usize,
}

/// `drain:`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct DrainConfig {
    pub mode: DrainMode,
    pub deadline: Duration,
}

/// What SIGTERM means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainMode {
    /// Serve and accept until the last client has left or the deadline is there.
    #[default]
    Sidecar,
    /// Stop accepting, close clients at their next transaction boundary.
    Server,
}

/// `metrics:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `None`: no endpoint.
    pub listen: Option<SocketAddr>,
}

/// `log:`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "see config.yaml")]
pub struct LogConfig {
    /// A level, or directives like `info,pgsidecar::pool=debug`.
    pub level: String,
    pub format: LogFormat,
    /// A line per client connect and disconnect.
    pub connections: bool,
    /// `None`: no statistics lines.
    pub stats_interval: Option<Duration>,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "see config.yaml")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `runtime:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Threads that serve clients.
    pub threads: usize,
}

impl PoolConfig {
    /// These settings with an override's keys in their place.
    #[must_use]
    pub fn overridden(&self, by: &PoolOverride) -> Self {
        let mut pool = self.clone();
        macro_rules! take {
            ($($key:ident),*) => { $(if let Some(value) = by.$key.clone() { pool.$key = value; })* };
        }
        take!(
            mode,
            max_size,
            min_idle,
            acquire_timeout,
            idle_timeout,
            max_lifetime,
            lifetime_jitter,
            connect_query,
            defer_begin,
            warm_settings
        );
        pool
    }
}
