//! The metrics that carry the labels `database` and `user`: they exist for live pools only and go with them.
//!
//! Each pool owns its own handles rather than children of a prometheus vector: a vector hashes its label values one
//! after the other without a separator, so (`ab`, `c`) and (`a`, `bc`) would be one series.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus::core::{Collector, Desc, Metric};
use prometheus::proto::{Metric as Sample, MetricFamily, MetricType};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts};

use super::gauges::BackendGauge;
use super::labels::BackendState;
use super::names::{self, Family};
use super::{SECONDS_BUCKETS, must};

/// The handles of one pool, resolved once and kept by it, its backends and leases. What is counted here costs a few
/// uncontended atomics and takes no lock.
#[derive(Debug)]
pub struct PoolMetrics {
    database: String,
    user: String,
    /// See [`reveal`](Self::reveal).
    is_revealed: AtomicBool,
    acquire: Histogram,
    backend_connect: Histogram,
    transaction: Histogram,
    query: Histogram,
    pub(super) backends: [IntGauge; BackendState::ALL.len()],
    max_size: IntGauge,
    oldest_wait: Gauge,
    backend_connections: IntCounter,
}

impl PoolMetrics {
    fn new(database: &str, user: &str) -> Self {
        let options = |family: Family| {
            Opts::new(family.name, family.help)
                .const_label("database", database)
                .const_label("user", user)
        };
        let histogram = |family: Family| {
            let options = HistogramOpts::from(options(family)).buckets(SECONDS_BUCKETS.to_vec());
            must(Histogram::with_opts(options))
        };
        let backends_in = |state: BackendState| {
            must(IntGauge::with_opts(
                options(names::BACKENDS).const_label("state", state.as_str()),
            ))
        };
        Self {
            database: database.to_owned(),
            user: user.to_owned(),
            is_revealed: AtomicBool::new(false),
            acquire: histogram(names::ACQUIRE),
            backend_connect: histogram(names::BACKEND_CONNECT),
            transaction: histogram(names::TRANSACTION),
            query: histogram(names::QUERY),
            backends: std::array::from_fn(|index| backends_in(BackendState::ALL[index])),
            max_size: must(IntGauge::with_opts(options(names::POOL_MAX_SIZE))),
            oldest_wait: must(Gauge::with_opts(options(names::OLDEST_WAIT))),
            backend_connections: must(IntCounter::with_opts(options(names::BACKEND_CONNECTIONS))),
        }
    }

    /// The label `database`.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The label `user`.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Shows this pool at `/metrics`. A client can name any database, and a name that PostgreSQL refused must never
    /// become a label; so a pool is hidden until its first login succeeded
    /// ([`backend_connected`](Self::backend_connected) reveals it), or until this is called because its names stand in
    /// the configuration.
    pub fn reveal(&self) {
        if !self.is_revealed() {
            self.is_revealed.store(true, Ordering::Release);
        }
    }

    /// Whether a scrape shows it.
    #[must_use]
    pub fn is_revealed(&self) -> bool {
        self.is_revealed.load(Ordering::Acquire)
    }

    /// A client had its backend, or gave up, after this long.
    pub fn observe_acquire(&self, waited: Duration) {
        self.acquire.observe(waited.as_secs_f64());
    }

    /// A backend was opened and has logged in, in this long.
    pub fn backend_connected(&self, took: Duration) {
        self.reveal();
        self.backend_connections.inc();
        self.backend_connect.observe(took.as_secs_f64());
    }

    /// A transaction ended.
    pub fn observe_transaction(&self, took: Duration) {
        self.transaction.observe(took.as_secs_f64());
    }

    /// A request was answered up to its ReadyForQuery.
    pub fn observe_query(&self, took: Duration) {
        self.query.observe(took.as_secs_f64());
    }

    /// The pool's size, from its configuration.
    pub fn set_max_size(&self, backends: u32) {
        self.max_size.set(i64::from(backends));
    }

    /// How long the client at the head of the queue has waited; zero when none waits. Best set from a hook
    /// ([`Metrics::on_scrape`](super::Metrics::on_scrape)): it grows without anything happening.
    pub fn set_oldest_wait(&self, waited: Duration) {
        self.oldest_wait.set(waited.as_secs_f64());
    }

    /// Counts a backend under `state` until the gauge is dropped.
    pub fn backend(self: &Arc<Self>, state: BackendState) -> BackendGauge {
        BackendGauge::new(Arc::clone(self), state)
    }

    /// Backends in this state now.
    #[must_use]
    pub fn backends_in(&self, state: BackendState) -> u64 {
        u64::try_from(self.backends[state.index()].get()).unwrap_or(0)
    }

    /// Acquires so far, and the seconds that they took together.
    pub(super) fn acquires(&self) -> (u64, f64) {
        (self.acquire.get_sample_count(), self.acquire.get_sample_sum())
    }

    /// Every sample, each with its place in [`FAMILIES`].
    fn samples(&self) -> [Vec<Sample>; FAMILIES.len()] {
        [
            vec![self.acquire.metric()],
            vec![self.backend_connect.metric()],
            vec![self.transaction.metric()],
            vec![self.query.metric()],
            self.backends.iter().map(Metric::metric).collect(),
            vec![self.max_size.metric()],
            vec![self.oldest_wait.metric()],
            vec![self.backend_connections.metric()],
        ]
    }
}

/// The families that pools have, in the order of [`PoolMetrics::samples`].
const FAMILIES: [(Family, MetricType); 8] = [
    (names::ACQUIRE, MetricType::HISTOGRAM),
    (names::BACKEND_CONNECT, MetricType::HISTOGRAM),
    (names::TRANSACTION, MetricType::HISTOGRAM),
    (names::QUERY, MetricType::HISTOGRAM),
    (names::BACKENDS, MetricType::GAUGE),
    (names::POOL_MAX_SIZE, MetricType::GAUGE),
    (names::OLDEST_WAIT, MetricType::GAUGE),
    (names::BACKEND_CONNECTIONS, MetricType::COUNTER),
];

/// By database and user.
type PoolsByName = BTreeMap<(String, String), Weak<PoolMetrics>>;

/// The pools that there are. It holds them weakly: what the last holder drops is gone from the next scrape, whether or
/// not anybody remembered to say so.
#[derive(Debug, Clone)]
pub(super) struct PoolSet {
    pools: Arc<Mutex<PoolsByName>>,
    descriptions: Vec<Desc>,
}

impl PoolSet {
    pub(super) fn new() -> Self {
        let describe = |(family, _): &(Family, MetricType)| {
            let mut labels = vec!["database".to_owned(), "user".to_owned()];
            if *family == names::BACKENDS {
                labels.push("state".to_owned());
            }
            must(Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                std::collections::HashMap::new(),
            ))
        };
        Self {
            pools: Arc::default(),
            descriptions: FAMILIES.iter().map(describe).collect(),
        }
    }

    pub(super) fn get_or_insert(&self, database: &str, user: &str) -> Arc<PoolMetrics> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = pools.entry((database.to_owned(), user.to_owned())).or_default();
        if let Some(pool) = entry.upgrade() {
            return pool;
        }
        let pool = Arc::new(PoolMetrics::new(database, user));
        *entry = Arc::downgrade(&pool);
        // Names that came and went leave an empty entry; sweeping here bounds them by the number of live pools.
        pools.retain(|_, pool| pool.strong_count() > 0);
        pool
    }

    pub(super) fn remove(&self, database: &str, user: &str) {
        let key = (database.to_owned(), user.to_owned());
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The live ones that may be shown, by name.
    pub(super) fn revealed(&self) -> Vec<Arc<PoolMetrics>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .values()
            .filter_map(Weak::upgrade)
            .filter(|pool| pool.is_revealed())
            .collect()
    }
}

impl Collector for PoolSet {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut samples: [Vec<Sample>; FAMILIES.len()] = Default::default();
        for pool in self.revealed() {
            for (family, of_pool) in samples.iter_mut().zip(pool.samples()) {
                family.extend(of_pool);
            }
        }
        let family = |((family, kind), samples): ((Family, MetricType), Vec<Sample>)| {
            let mut collected = MetricFamily::default();
            collected.set_name(family.name.to_owned());
            collected.set_help(family.help.to_owned());
            collected.set_field_type(kind);
            collected.set_metric(samples);
            collected
        };
        FAMILIES.into_iter().zip(samples).map(family).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn names_that_concatenate_alike_are_two_pools() {
        let metrics = Metrics::new();
        let (one, two) = (metrics.pool("ab", "c"), metrics.pool("a", "bc"));
        one.backend_connected(Duration::from_millis(3));
        two.reveal();
        let text = metrics.render();
        assert!(
            text.contains(r#"pgsidecar_backend_connections_total{database="ab",user="c"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"pgsidecar_backend_connections_total{database="a",user="bc"} 0"#),
            "{text}"
        );
    }

    #[test]
    fn trap_92_a_name_that_postgresql_refused_never_becomes_a_label() {
        let metrics = Metrics::new();
        let pool = metrics.pool("nosuch", "app");
        pool.observe_acquire(Duration::from_millis(1));
        let _connecting = pool.backend(BackendState::Connecting);
        assert!(!metrics.render().contains("nosuch"));
        pool.backend_connected(Duration::from_millis(1));
        assert!(metrics.render().contains("nosuch"));
    }

    #[test]
    fn a_pools_series_go_with_its_last_holder_or_when_removed() {
        let metrics = Metrics::new();
        let (first, second) = (metrics.pool("db_one", "app"), metrics.pool("db_two", "app"));
        first.reveal();
        second.reveal();
        let same = metrics.pool("db_one", "app");
        assert!(Arc::ptr_eq(&first, &same));
        drop((first, same));
        assert!(!metrics.render().contains("db_one"));
        metrics.remove_pool("db_two", "app");
        assert!(!metrics.render().contains("db_two"));
        // A handle that outlives its pool counts for nobody and harms nobody.
        second.observe_query(Duration::from_secs(1));
    }

    #[test]
    fn names_that_came_and_went_leave_nothing_behind() {
        let metrics = Metrics::new();
        for name in 0..1000 {
            drop(metrics.pool(&format!("db{name}"), "app"));
        }
        assert!(metrics.pools.pools.lock().expect("not poisoned").len() <= 1);
    }

    #[test]
    fn label_values_are_escaped() {
        let metrics = Metrics::new();
        let pool = metrics.pool("a\"b\\c\nd", "app");
        pool.reveal();
        assert!(metrics.render().contains(r#"{database="a\"b\\c\nd",user="app"}"#));
    }

    #[test]
    fn a_millisecond_and_a_minute_can_be_told_apart_from_their_neighbours() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app", "app");
        pool.reveal();
        for wait in [
            Duration::from_micros(40),
            Duration::from_micros(200),
            Duration::from_secs(45),
            Duration::from_secs(90),
        ] {
            pool.observe_acquire(wait);
        }
        let text = metrics.render();
        for (bound, count) in [("0.00005", 1), ("0.00025", 2), ("30", 2), ("60", 3), ("+Inf", 4)] {
            let line = format!(r#"pgsidecar_acquire_seconds_bucket{{database="app",user="app",le="{bound}"}} {count}"#);
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
