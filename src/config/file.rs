//! The mirror of config.yaml: every key, as it is written, before anything is understood.
//!
//! The structs are declared through one macro, which also gives each its [`Shape`]: what the check for misspelt keys,
//! the `PGSIDECAR__…` variables and the test of config.yaml go by, so a key exists in one place.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::scalar::Scalar;

/// What may stand at a key.
#[derive(Debug)]
pub(super) enum Shape {
    /// A single value.
    Scalar,
    /// A mapping with these keys and no others.
    Section(&'static [(&'static str, &'static Shape)]),
    /// A mapping from names of the operator's choice.
    Map(&'static Shape),
    /// A list.
    List(&'static Shape),
    /// A single value, or the longer form.
    ScalarOr(&'static Shape),
}

/// A type that stands for a part of the file.
pub(super) trait Mirror {
    /// What may stand there.
    const SHAPE: Shape;
}

impl Mirror for Scalar {
    const SHAPE: Shape = Shape::Scalar;
}
impl<T: Mirror> Mirror for Option<T> {
    const SHAPE: Shape = T::SHAPE;
}
impl<T: Mirror + 'static> Mirror for Vec<T> {
    const SHAPE: Shape = Shape::List(&T::SHAPE);
}
impl<T: Mirror + 'static> Mirror for BTreeMap<String, T> {
    const SHAPE: Shape = Shape::Map(&T::SHAPE);
}
impl<T: Mirror + 'static> Mirror for ScalarOr<T> {
    const SHAPE: Shape = Shape::ScalarOr(&T::SHAPE);
}

/// A short form and a long one.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum ScalarOr<T> {
    /// A single value.
    Scalar(Scalar),
    /// The longer form.
    Full(T),
}

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty),* $(,)? })*) => { $(
        $(#[$doc])*
        // No Debug: there are passwords in it.
        #[derive(Clone, Default, Deserialize)]
        #[serde(default)]
        pub(super) struct $name { $(pub(super) $key: Option<$type>),* }
        impl Mirror for $name {
            const SHAPE: Shape = Shape::Section(&[$((stringify!($key), &<$type as Mirror>::SHAPE)),*]);
        }
    )* };
}

sections! {
    /// The whole file.
    File {
        listen: ScalarOr<Vec<ScalarOr<ListenFile>>>,
        allow_insecure_listen: Scalar,
        upstream: UpstreamFile,
        databases: BTreeMap<String, Option<DatabaseFile>>,
        users: Vec<UserFile>,
        auth: AuthFile,
        auth_query: AuthQueryFile,
        peer_users: BTreeMap<String, ScalarOr<Vec<Scalar>>>,
        tls: TlsFile,
        pool: PoolFile,
        limits: LimitsFile,
        drain: DrainFile,
        metrics: MetricsFile,
        log: LogFile,
        runtime: RuntimeFile,
    }
    /// One entry of `listen:`.
    ListenFile { address: Scalar, auth: Scalar, tls: Scalar, unix_socket_mode: Scalar }
    /// `upstream:`.
    UpstreamFile {
        url: Scalar,
        password_file: Scalar,
        password_command: Scalar,
        connect_timeout: Scalar,
        tcp_keepalive: ScalarOr<KeepaliveFile>,
        tcp_user_timeout: Scalar,
        early_login: Scalar,
    }
    /// `upstream.tcp_keepalive:`.
    KeepaliveFile { idle: Scalar, interval: Scalar, count: Scalar }
    /// One entry of `databases:`.
    DatabaseFile { upstream: ScalarOr<UpstreamFile>, dbname: Scalar, user: Scalar, pool: OverrideFile }
    /// One entry of `users:`.
    UserFile {
        name: Scalar,
        password: Scalar,
        password_file: Scalar,
        password_env: Scalar,
        verifier: Scalar,
        pool: OverrideFile,
    }
    /// `auth:`. `query` and `peer_users` are the top-level `auth_query` and `peer_users`, for those who look for them here.
    AuthFile {
        scram_iterations: Scalar,
        scram_iterations_max: Scalar,
        query: AuthQueryFile,
        peer_users: BTreeMap<String, ScalarOr<Vec<Scalar>>>,
    }
    /// `auth_query:`.
    AuthQueryFile { query: Scalar, database: Scalar, user: Scalar, cache_ttl: Scalar, negative_ttl: Scalar }
    /// `tls:`.
    TlsFile { mode: Scalar, cert: Scalar, key: Scalar, client_ca: Scalar }
    /// `pool:`.
    PoolFile {
        mode: Scalar,
        max_size: Scalar,
        min_idle: Scalar,
        max_total: Scalar,
        max_pools: Scalar,
        acquire_timeout: Scalar,
        idle_timeout: Scalar,
        max_lifetime: Scalar,
        lifetime_jitter: Scalar,
        connect_query: Scalar,
        park: Scalar,
        statement_cache_bytes: Scalar,
        cancel_timeout: Scalar,
        reset_timeout: Scalar,
        catalog_refresh: Scalar,
        catalog_wait: Scalar,
        max_pinned: Scalar,
        pin_check: Scalar,
        sequence_pin_timeout: Scalar,
        listen_on_loss: Scalar,
        audit: Scalar,
        setting_answers: Scalar,
        defer_begin: Scalar,
        warm_settings: BTreeMap<String, Scalar>,
    }
    /// `pool:` of a database or a user.
    OverrideFile {
        mode: Scalar,
        max_size: Scalar,
        min_idle: Scalar,
        acquire_timeout: Scalar,
        idle_timeout: Scalar,
        max_lifetime: Scalar,
        lifetime_jitter: Scalar,
        connect_query: Scalar,
        defer_begin: Scalar,
        warm_settings: BTreeMap<String, Scalar>,
    }
    /// `limits:`.
    LimitsFile {
        max_clients: Scalar,
        max_unauthenticated: Scalar,
        client_login_timeout: Scalar,
        query_timeout: Scalar,
        transaction_timeout: Scalar,
        idle_transaction_timeout: Scalar,
        client_idle_timeout: Scalar,
        client_write_timeout: Scalar,
        statement_bytes: Scalar,
        client_statement_bytes: Scalar,
        client_channels: Scalar,
        client_notification_bytes: Scalar,
        warm_clients: Scalar,
    }
    /// `drain:`.
    DrainFile { mode: Scalar, deadline: Scalar }
    /// `metrics:`.
    MetricsFile { listen: Scalar }
    /// `log:`.
    LogFile { level: Scalar, format: Scalar, connections: Scalar, stats_interval: Scalar }
    /// `runtime:`.
    RuntimeFile { threads: Scalar }
}

/// Every key of the file as a dotted path; a list's entries as `[]`, a map's as `*`. For the test of config.yaml.
pub fn known_keys() -> Vec<String> {
    fn walk(shape: &Shape, path: &str, keys: &mut Vec<String>) {
        match shape {
            Shape::Scalar => keys.push(path.to_owned()),
            Shape::Section(section) => {
                for (key, shape) in *section {
                    walk(
                        shape,
                        &if path.is_empty() {
                            (*key).to_owned()
                        } else {
                            format!("{path}.{key}")
                        },
                        keys,
                    );
                }
            }
            Shape::Map(of) => walk(of, &format!("{path}.*"), keys),
            Shape::List(of) => walk(of, &format!("{path}[]"), keys),
            Shape::ScalarOr(of) => {
                keys.push(path.to_owned());
                walk(of, path, keys);
            }
        }
    }
    let mut keys = Vec::new();
    walk(&File::SHAPE, "", &mut keys);
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_known_by_its_path() {
        let keys = known_keys();
        for key in [
            "listen",
            "listen[].auth",
            "pool.max_size",
            "users[].pool.max_size",
            "databases.*.upstream.url",
        ] {
            assert!(keys.iter().any(|known| known == key), "{key}");
        }
    }
}
