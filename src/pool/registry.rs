//! The pools of all databases and users: found, made on demand, bounded, changed by a reload.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::backends::{LeaseError, Pool};
use super::keeper;
use super::lock;
use super::manager::PoolCore;
use super::total_cap::TotalCap;
use super::vacancy::Vacancies;
use crate::backend::Connector;
use crate::backend::early_login::EarlyLogin;
use crate::backend::login::{LoginOptions, SaltedKeysCache};
use crate::config::{
    Config, Credential, DatabaseConfig, PasswordSource, PoolConfig, UpstreamConfig, UpstreamTlsConfig, UserConfig,
};
use crate::metrics::{CloseReason, Metrics};
use crate::net::dial::Names;
use crate::net::tls::{TlsConfigError, UpstreamTls};
use crate::protocol::backend_login::LoginSecret;
use crate::wire::{Report, SqlState};

/// Secrets that clients passed on, kept per user. More users than this log in anew.
const PASSED_SECRETS_MAX: usize = 10_000;

/// What names a pool: the database and user that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the startup parameters'")]
pub struct PoolKey {
    pub database: String,
    pub user: String,
}

impl fmt::Display for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.database, self.user)
    }
}

/// Every pool of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pools(Arc<Registry>);

/// The certificates and keys towards every upstream of a configuration.
#[derive(Debug)]
pub struct LoadedTls(Vec<(UpstreamTlsConfig, Arc<UpstreamTls>)>);

impl LoadedTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A certificate or key of an upstream can't be loaded.
    pub fn of(config: &Config) -> Result<Self, TlsConfigError> {
        load_tls(config).map(Self)
    }
}

/// What the pools share.
pub(crate) struct Registry {
    config: ArcSwap<Config>,
    /// TLS towards each upstream, loaded once per reload.
    tls: ArcSwap<Vec<(UpstreamTlsConfig, Arc<UpstreamTls>)>>,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    passed_secrets: Mutex<HashMap<String, LoginSecret>>,
    metrics: Arc<Metrics>,
    total_cap: Arc<TotalCap>,
    vacancies: Arc<Vacancies>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("pools", &lock(&self.pools).len())
            .finish_non_exhaustive()
    }
}

impl Pools {
    /// No pools yet. Needs a tokio runtime only once a pool is asked for.
    ///
    /// # Errors
    /// A certificate or key of an upstream can't be loaded.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>) -> Result<Self, TlsConfigError> {
        let tls = load_tls(&config)?;
        let registry = Arc::new(Registry {
            total_cap: TotalCap::new(config.pool.max_total),
            config: ArcSwap::new(config),
            tls: ArcSwap::from_pointee(tls),
            pools: Mutex::default(),
            passed_secrets: Mutex::default(),
            metrics,
            vacancies: Arc::default(),
        });
        registry.total_cap.attach(Arc::downgrade(&registry));
        registry.vacancies.attach(Arc::downgrade(&registry));
        let weak = Arc::downgrade(&registry);
        registry.metrics.on_scrape(move || {
            if let Some(registry) = weak.upgrade() {
                registry.refresh_waits();
            }
        });
        Ok(Self(registry))
    }

    /// Makes the pool of the upstream's own database and user and keeps its `min_idle` warm from now on, before any
    /// client came. Nothing where `databases:` does not admit that name.
    pub fn start(&self) {
        let key = self.default_key();
        if let Err(error) = self.0.pool(&key) {
            tracing::debug!(pool = %key, error = %error.report(), "no pool is kept warm");
        }
    }

    /// The database and user of the upstream's URL.
    pub fn default_key(&self) -> PoolKey {
        self.0.default_key()
    }

    /// The pool of a key, made if it does not exist. Logs in to nothing.
    ///
    /// # Errors
    /// 3D000 where `databases:` does not name the database; 53300 where all of `pool.max_pools` are in use.
    pub fn pool(&self, key: &PoolKey) -> Result<Arc<Pool>, LeaseError> {
        self.0.pool(key)
    }

    /// Every pool now.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        lock(&self.0.pools).values().cloned().collect()
    }

    /// Takes a new configuration over: sizes change in place, pools whose way to log in changed replace their backends
    /// as they come back, pools of names that are gone are closed.
    pub fn reconfigure(&self, config: Arc<Config>, tls: LoadedTls) {
        self.0.reconfigure(config, tls.0);
    }

    /// A client proved who it is with a secret that PostgreSQL would take too (its ClientKey, or its password): used
    /// for this user's logins where the configuration has no password (trap 85: the latest one counts).
    pub fn pass_secret(&self, user: &str, secret: LoginSecret) {
        {
            let mut secrets = lock(&self.0.passed_secrets);
            // The same again, as at nearly every login, is no reason to forget a refusal or a back-off.
            if secrets.get(user).is_some_and(|known| known.is_same(&secret)) {
                return;
            }
            if secrets.len() >= PASSED_SECRETS_MAX && !secrets.contains_key(user) {
                secrets.clear();
            }
            secrets.insert(user.to_owned(), secret.clone());
        }
        for pool in self.all().into_iter().filter(|pool| pool.key().user == user) {
            pool.pass_secret(secret.clone());
        }
    }

    /// Closes every pool: idle backends now, used ones as they come back. For the end of the process.
    pub fn close(&self) {
        let pools: Vec<_> = lock(&self.0.pools).drain().map(|(_, pool)| pool).collect();
        for pool in pools {
            pool.close(CloseReason::Drain);
        }
    }
}

impl Registry {
    fn default_key(&self) -> PoolKey {
        let config = self.config.load();
        PoolKey {
            database: config.upstream.dbname.clone(),
            user: config.upstream.user.clone(),
        }
    }

    /// Whether this is the pool of the upstream's own database and user, which is kept warm whatever comes.
    pub(crate) fn is_default(&self, key: &PoolKey) -> bool {
        let config = self.config.load();
        key.database == config.upstream.dbname && key.user == config.upstream.user
    }

    fn pool(self: &Arc<Self>, key: &PoolKey) -> Result<Arc<Pool>, LeaseError> {
        let mut pools = lock(&self.pools);
        if let Some(pool) = pools.get(key) {
            return Ok(Arc::clone(pool));
        }
        let config = self.config.load();
        let (settings, connector) = self.resolve(&config, key)?;
        if pools.len() >= usize::try_from(config.pool.max_pools).unwrap_or(usize::MAX) {
            let evicted = least_used(&pools).ok_or_else(|| LeaseError::Unavailable(too_many_pools(pools.len())))?;
            if let Some(pool) = pools.remove(&evicted) {
                pool.close(CloseReason::Evicted);
                self.metrics.remove_pool(&evicted.database, &evicted.user);
            }
        }
        let options = LoginOptions {
            passed_secret: lock(&self.passed_secrets).get(&key.user).cloned().unwrap_or_default(),
            ..LoginOptions::default()
        };
        let (metrics, total_cap) = (Arc::clone(&self.metrics), Arc::clone(&self.total_cap));
        let vacancies = Arc::clone(&self.vacancies);
        let core = PoolCore::new(key.clone(), settings, connector, options, metrics, total_cap, vacancies);
        let pool = Pool::new(core);
        pools.insert(key.clone(), Arc::clone(&pool));
        tokio::spawn(keeper::keep(
            Arc::downgrade(&pool),
            Arc::downgrade(self),
            keeper::since_boot,
        ));
        Ok(pool)
    }

    fn reconfigure(&self, config: Arc<Config>, tls: Vec<(UpstreamTlsConfig, Arc<UpstreamTls>)>) {
        // Under the lock, so that no pool is made from one half of each.
        let mut pools = lock(&self.pools);
        self.tls.store(Arc::new(tls));
        self.config.store(Arc::clone(&config));
        self.total_cap.set_width(config.pool.max_total);
        let mut gone = Vec::new();
        for (key, pool) in pools.iter() {
            match self.resolve(&config, key) {
                Ok((settings, connector)) => pool.reconfigure(settings, connector),
                Err(_) => gone.push(key.clone()),
            }
        }
        for key in gone {
            if let Some(pool) = pools.remove(&key) {
                pool.close(CloseReason::Reload);
                self.metrics.remove_pool(&key.database, &key.user);
            }
        }
    }

    /// What the configuration says of a key.
    fn resolve(&self, config: &Config, key: &PoolKey) -> Result<(PoolConfig, Connector), LeaseError> {
        let database = match &config.databases {
            None => &DatabaseConfig::default(),
            Some(databases) => databases.get(&key.database).ok_or_else(|| {
                let message = format!("database \"{}\" does not exist", key.database);
                LeaseError::Refused(Report::fatal(SqlState::INVALID_CATALOG_NAME, message))
            })?,
        };
        let user = config.users.iter().find(|user| user.name == key.user);
        let mut settings = config.pool.overridden(&database.pool);
        if let Some(user) = user {
            settings = settings.overridden(&user.pool);
        }
        let upstream = database.upstream.as_ref().unwrap_or(&config.upstream);
        let connector = Connector {
            upstream: Arc::new(upstream.clone()),
            tls: self.tls_of(upstream)?,
            names: Names::System,
            user: database.user.clone().unwrap_or_else(|| key.user.clone()),
            database: database.dbname.clone().unwrap_or_else(|| key.database.clone()),
            password: password_of(upstream, database, user, key),
            scram_iterations_max: config.auth.scram_iterations_max,
            connect_query: settings.connect_query.clone(),
            salted: SaltedKeysCache::default(),
            early: EarlyLogin::default(),
        };
        Ok((settings, connector))
    }

    fn tls_of(&self, upstream: &UpstreamConfig) -> Result<Arc<UpstreamTls>, LeaseError> {
        let tls = self.tls.load();
        let found = tls
            .iter()
            .find(|(config, _)| *config == upstream.tls)
            .map(|(_, tls)| Arc::clone(tls));
        found.ok_or_else(|| {
            LeaseError::Unavailable(Report::fatal(
                SqlState::INTERNAL_ERROR,
                "the upstream's TLS was not loaded",
            ))
        })
    }

    /// Closes an idle backend of the pool that nobody has asked for longest. Called by a connect that has no place.
    pub(crate) fn evict_idle_backend(&self) {
        let mut pools: Vec<_> = lock(&self.pools).values().cloned().collect();
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.longest_idle()));
        for pool in pools {
            if pool.evict_idle() {
                return;
            }
        }
    }

    /// The pools whose backends log in so.
    pub(crate) fn pools_where(&self, is_meant: impl Fn(&Connector) -> bool) -> Vec<Arc<Pool>> {
        let pools = lock(&self.pools);
        let meant = pools.values().filter(|pool| is_meant(&pool.core.connector.load()));
        meant.cloned().collect()
    }

    /// Takes away a pool that nobody refers to any more.
    pub(crate) fn remove_unused(&self, pool: &Arc<Pool>) {
        let mut pools = lock(&self.pools);
        // The registry's own and the keeper's: whoever else had one could still lease.
        let is_unused = Arc::strong_count(pool) <= 2;
        if is_unused && pools.get(pool.key()).is_some_and(|current| Arc::ptr_eq(current, pool)) {
            pools.remove(pool.key());
            drop(pools);
            pool.close(CloseReason::IdleTimeout);
            self.metrics.remove_pool(&pool.key().database, &pool.key().user);
        }
    }

    fn refresh_waits(&self) {
        for pool in lock(&self.pools).values() {
            pool.core
                .pool_metrics
                .set_oldest_wait(pool.status().oldest_wait.unwrap_or_default());
        }
    }
}

fn load_tls(config: &Config) -> Result<Vec<(UpstreamTlsConfig, Arc<UpstreamTls>)>, TlsConfigError> {
    let others = config
        .databases
        .iter()
        .flatten()
        .filter_map(|(_, database)| database.upstream.as_ref());
    let mut loaded: Vec<(UpstreamTlsConfig, Arc<UpstreamTls>)> = Vec::new();
    for upstream in std::iter::once(&config.upstream).chain(others) {
        if !loaded.iter().any(|(known, _)| *known == upstream.tls) {
            loaded.push((upstream.tls.clone(), Arc::new(UpstreamTls::new(&upstream.tls)?)));
        }
    }
    Ok(loaded)
}

/// Whose password opens PostgreSQL: a fixed backend user's and the upstream's own user's is the upstream's; any other
/// client's is its own, from `users:`, or what its login passed on.
fn password_of(
    upstream: &UpstreamConfig,
    database: &DatabaseConfig,
    user: Option<&UserConfig>,
    key: &PoolKey,
) -> PasswordSource {
    if database.user.is_some() || key.user == upstream.user {
        return upstream.password.clone();
    }
    match (user.map(|user| &user.credential), &upstream.password) {
        (Some(Credential::Password(secret)), _) => PasswordSource::Literal(secret.clone()),
        (Some(Credential::PasswordFile(path, _)), _) => PasswordSource::File(path.clone()),
        (_, PasswordSource::Passfile(path)) => PasswordSource::Passfile(path.clone()),
        _ => PasswordSource::None,
    }
}

/// The pool that nobody refers to and nobody has asked for longest.
fn least_used(pools: &HashMap<PoolKey, Arc<Pool>>) -> Option<PoolKey> {
    pools
        .iter()
        .filter(|(_, pool)| Arc::strong_count(pool) == 1)
        .max_by_key(|(_, pool)| pool.unasked_for())
        .map(|(key, _)| key.clone())
}

fn too_many_pools(count: usize) -> Report {
    Report::fatal(
        SqlState::TOO_MANY_CONNECTIONS,
        "too many different databases and users are in use",
    )
    .with_detail(format!("{count} pools are in use."))
    .with_hint("Raise pool.max_pools.")
}
