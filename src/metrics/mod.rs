//! What happened and how long it took, for Prometheus, the status page and the statistics line.
//!
//! [`Metrics`] is made once and handed down in an `Arc`: nothing here is static, and two of them in one process know
//! nothing of each other. The hot path touches handles that were resolved beforehand ([`PoolMetrics`]) or adds up
//! without an atomic and tells the sum once ([`SessionTally`]); whoever is counted by a gauge holds a value that takes
//! it back ([`ClientGauge`], [`BackendGauge`]).

mod bounded_counters;
mod gauges;
mod labels;
mod names;
mod pool_metrics;
mod process;
mod readiness;
mod session_tally;
mod stats;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use gauges::{BackendGauge, ClientGauge};
pub use labels::{BackendState, CancelOutcome, ClientState, CloseReason, Direction};
pub use pool_metrics::PoolMetrics;
pub use readiness::Readiness;
pub use session_tally::SessionTally;
pub use stats::{Snapshot, StatsLine, stats_line, stats_loop};

use crate::wire::SqlState;
use bounded_counters::BoundedCounters;
use names::Family;
use pool_metrics::PoolSet;

/// Upper bounds of every histogram, in seconds: an uncontended acquire is below the first, `acquire_timeout` and slow
/// queries are at the other end.
const SECONDS_BUCKETS: [f64; 19] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// Distinct SQLSTATEs that are counted apart. PostgreSQL has about 260 and a client can make up more.
const SQLSTATES_MAX: usize = 200;

/// Distinct pin reasons that are counted apart; they are constants of ours, so this is never reached.
const PIN_REASONS_MAX: usize = 100;

/// What pgsidecar itself says: series from the start, so that their first increment is seen, and so that no client can
/// push them into `other` by raising two hundred codes of its own.
const OWN_SQLSTATES: [SqlState; 28] = [
    SqlState::CONNECTION_DOES_NOT_EXIST,
    SqlState::CONNECTION_FAILURE,
    SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
    SqlState::PROTOCOL_VIOLATION,
    SqlState::FEATURE_NOT_SUPPORTED,
    SqlState::ACTIVE_SQL_TRANSACTION,
    SqlState::IN_FAILED_SQL_TRANSACTION,
    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    SqlState::TRANSACTION_TIMEOUT,
    SqlState::INVALID_SQL_STATEMENT_NAME,
    SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
    SqlState::INVALID_PASSWORD,
    SqlState::INVALID_CATALOG_NAME,
    SqlState::DUPLICATE_PREPARED_STATEMENT,
    SqlState::INSUFFICIENT_PRIVILEGE,
    SqlState::INSUFFICIENT_RESOURCES,
    SqlState::TOO_MANY_CONNECTIONS,
    SqlState::CONFIGURATION_LIMIT_EXCEEDED,
    SqlState::PROGRAM_LIMIT_EXCEEDED,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    SqlState::QUERY_CANCELED,
    SqlState::ADMIN_SHUTDOWN,
    SqlState::CRASH_SHUTDOWN,
    SqlState::CANNOT_CONNECT_NOW,
    SqlState::DATABASE_DROPPED,
    SqlState::IDLE_SESSION_TIMEOUT,
    SqlState::SYSTEM_ERROR,
    SqlState::INTERNAL_ERROR,
];

/// Every metric of one process.
pub struct Metrics {
    registry: Registry,
    pools: PoolSet,
    clients: [IntGauge; ClientState::ALL.len()],
    client_login: Histogram,
    client_connections: IntCounter,
    backend_closed: [IntCounter; CloseReason::ALL.len()],
    transactions: IntCounter,
    setting_answers: IntCounter,
    queries: IntCounter,
    bytes: [IntCounter; Direction::ALL.len()],
    errors: BoundedCounters<SqlState>,
    errors_all: IntCounter,
    pins: BoundedCounters<&'static str>,
    pins_refused: BoundedCounters<&'static str>,
    audits: IntCounter,
    audit_surprises: BoundedCounters<&'static str>,
    cancels: [IntCounter; CancelOutcome::ALL.len()],
    upstream_up: IntGauge,
    readiness: Readiness,
    scrape_hooks: Mutex<Vec<ScrapeHook>>,
}

type ScrapeHook = Arc<dyn Fn() + Send + Sync>;

impl Metrics {
    /// All at zero, with a registry of their own.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let pools = PoolSet::new();
        register(&registry, pools.clone());
        register(&registry, process::ProcessCollector::new());
        build_info(&registry);
        let client_login = {
            let options = HistogramOpts::new(names::CLIENT_LOGIN.name, names::CLIENT_LOGIN.help);
            must(Histogram::with_opts(options.buckets(SECONDS_BUCKETS.to_vec())))
        };
        let clients = must(IntGaugeVec::new(
            Opts::new(names::CLIENTS.name, names::CLIENTS.help),
            &["state"],
        ));
        register(&registry, client_login.clone());
        register(&registry, clients.clone());
        let upstream_up = must(IntGauge::new(names::UPSTREAM_UP.name, names::UPSTREAM_UP.help));
        register(&registry, upstream_up.clone());
        Arc::new(Self {
            clients: std::array::from_fn(|index| clients.with_label_values(&[ClientState::ALL[index].as_str()])),
            client_login,
            client_connections: counter(&registry, names::CLIENT_CONNECTIONS),
            backend_closed: counters(&registry, names::BACKEND_CLOSED, "reason", |index| {
                CloseReason::ALL[index].as_str()
            }),
            transactions: counter(&registry, names::TRANSACTIONS),
            setting_answers: counter(&registry, names::SETTING_ANSWERS),
            queries: counter(&registry, names::QUERIES),
            bytes: counters(&registry, names::BYTES, "direction", |index| {
                Direction::ALL[index].as_str()
            }),
            errors: sqlstate_counters(&registry),
            errors_all: must(IntCounter::new(
                "errors",
                "All of them; not exposed, for the statistics line.",
            )),
            pins: BoundedCounters::new(counter_family(&registry, names::PINS, "reason"), PIN_REASONS_MAX),
            pins_refused: BoundedCounters::new(
                counter_family(&registry, names::PINS_REFUSED, "reason"),
                PIN_REASONS_MAX,
            ),
            audits: counter(&registry, names::AUDITS),
            audit_surprises: BoundedCounters::new(
                counter_family(&registry, names::AUDIT_SURPRISES, "kind"),
                PIN_REASONS_MAX,
            ),
            cancels: counters(&registry, names::CANCELS, "outcome", |index| {
                CancelOutcome::ALL[index].as_str()
            }),
            upstream_up,
            readiness: Readiness::default(),
            scrape_hooks: Mutex::default(),
            pools,
            registry,
        })
    }

    /// The handles of the pool (database, user): the same ones for as long as anyone holds them. They are hidden from
    /// scrapes until [`PoolMetrics::reveal`].
    #[must_use]
    pub fn pool(&self, database: &str, user: &str) -> Arc<PoolMetrics> {
        self.pools.get_or_insert(database, user)
    }

    /// Takes a pool's series away at once, though a last lease may still hold its handles. For when the name leaves the
    /// registry of pools; a pool that is only replaced keeps its series.
    pub fn remove_pool(&self, database: &str, user: &str) {
        self.pools.remove(database, user);
    }

    /// Counts a logged-in client under `state` until the gauge is dropped.
    pub fn client(self: &Arc<Self>, state: ClientState) -> ClientGauge {
        ClientGauge::new(Arc::clone(self), state)
    }

    /// A client's connection was accepted.
    pub fn client_connected(&self) {
        self.client_connections.inc();
    }

    /// A client was greeted, this long after it was accepted.
    pub fn observe_client_login(&self, took: Duration) {
        self.client_login.observe(took.as_secs_f64());
    }

    /// A backend was closed.
    pub fn backend_closed(&self, reason: CloseReason) {
        self.backend_closed[reason.index()].inc();
    }

    /// A client was sent an ErrorResponse, ours or PostgreSQL's.
    pub fn error_sent(&self, sqlstate: SqlState) {
        self.errors_all.inc();
        self.errors.inc(sqlstate, sqlstate.as_str());
    }

    /// A client was pinned to its backend. The reason is a constant of `virtual_session`.
    pub fn pinned(&self, reason: &'static str) {
        self.pins.inc(reason, reason);
    }

    /// A statement was refused because it would have pinned one backend too many.
    pub fn pin_refused(&self, reason: &'static str) {
        self.pins_refused.inc(reason, reason);
    }

    /// A backend was asked what it holds. The kinds of surprises are constants of `virtual_session`.
    pub fn audited(&self, surprises: impl IntoIterator<Item = &'static str>) {
        self.audits.inc();
        for kind in surprises {
            self.audit_surprises.inc(kind, kind);
        }
    }

    /// Makes the series of these kinds at zero, so that `rate()` sees the first surprise.
    pub fn declare_surprises(&self, kinds: &[&'static str]) {
        for kind in kinds {
            self.audit_surprises.declare(kind, kind);
        }
    }

    /// Makes the series of these reasons at zero, so that `rate()` sees their first pin.
    pub fn declare_pin_reasons(&self, reasons: &[&'static str]) {
        for reason in reasons {
            self.pins.declare(reason, reason);
            self.pins_refused.declare(reason, reason);
        }
    }

    /// A CancelRequest was dealt with.
    pub fn cancel_handled(&self, outcome: CancelOutcome) {
        self.cancels[outcome.index()].inc();
    }

    /// What `/readyz` and `pgsidecar_upstream_up` tell.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Runs `hook` before each scrape, to set gauges that change by themselves. Hooks run on a thread where blocking
    /// harms no client, one scrape at a time; a hook that takes longer than a scrape may makes that scrape fail. They
    /// stay for the life of these metrics: capture a `Weak`.
    pub fn on_scrape(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.scrape_hooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::new(hook));
    }

    /// Everything in the text exposition format, version 0.0.4. May take milliseconds with many pools: not for a thread
    /// that serves clients (trap 92).
    #[must_use]
    pub fn render(&self) -> String {
        // Cloned: a hook that registers another must not find the lock taken.
        let hooks = self.scrape_hooks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for hook in hooks {
            hook();
        }
        self.upstream_up.set(i64::from(self.readiness.is_upstream_up()));
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics can't be encoded");
        }
        text
    }

    /// The totals of now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let count = |gauge: &IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        let mut backends = [0; BackendState::ALL.len()];
        let (mut acquires, mut acquire_seconds) = (0, 0.0);
        for pool in self.pools.revealed() {
            for (total, state) in backends.iter_mut().zip(BackendState::ALL) {
                *total += pool.backends_in(*state);
            }
            let (count, seconds) = pool.acquires();
            acquires += count;
            acquire_seconds += seconds;
        }
        Snapshot {
            at: Instant::now(),
            clients: std::array::from_fn(|index| count(&self.clients[index])),
            backends,
            transactions: self.transactions.get(),
            queries: self.queries.get(),
            bytes: std::array::from_fn(|index| self.bytes[index].get()),
            errors: self.errors_all.get(),
            acquires,
            acquire_seconds,
        }
    }

    /// SQLSTATEs that were sent, the most frequent first.
    #[must_use]
    pub fn errors(&self) -> Vec<(String, u64)> {
        self.errors.counts(|sqlstate| sqlstate.as_str().to_owned())
    }

    /// Pin reasons that occurred, the most frequent first.
    #[must_use]
    pub fn pins(&self) -> Vec<(String, u64)> {
        self.pins.counts(|reason| (*reason).to_owned())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

fn build_info(registry: &Registry) {
    let options =
        Opts::new(names::BUILD_INFO.name, names::BUILD_INFO.help).const_label("version", env!("CARGO_PKG_VERSION"));
    let info = must(IntGauge::with_opts(options));
    info.set(1);
    register(registry, info);
}

fn counter(registry: &Registry, family: Family) -> IntCounter {
    let counter = must(IntCounter::new(family.name, family.help));
    register(registry, counter.clone());
    counter
}

fn counter_family(registry: &Registry, family: Family, label: &str) -> IntCounterVec {
    let counters = must(IntCounterVec::new(Opts::new(family.name, family.help), &[label]));
    register(registry, counters.clone());
    counters
}

/// One counter per value of a closed label, all there from the start.
fn counters<const N: usize>(
    registry: &Registry,
    family: Family,
    label: &str,
    value: impl Fn(usize) -> &'static str,
) -> [IntCounter; N] {
    let counters = counter_family(registry, family, label);
    std::array::from_fn(|index| counters.with_label_values(&[value(index)]))
}

fn sqlstate_counters(registry: &Registry) -> BoundedCounters<SqlState> {
    let errors = BoundedCounters::new(counter_family(registry, names::ERRORS, "sqlstate"), SQLSTATES_MAX);
    for sqlstate in &OWN_SQLSTATES {
        errors.declare(*sqlstate, sqlstate.as_str());
    }
    errors
}

fn register(registry: &Registry, collector: impl Collector + 'static) {
    must(registry.register(Box::new(collector)));
}

/// A metric that can't be made is a mistake in [`names`], and the first test that makes a [`Metrics`] finds it.
fn must<T>(made: prometheus::Result<T>) -> T {
    made.expect("names, helps and labels are constants that the tests hold to the conventions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Metrics in which every series has been used.
    fn used() -> (Arc<Metrics>, Arc<PoolMetrics>) {
        let metrics = Metrics::new();
        let pool = metrics.pool("app", "app");
        pool.backend_connected(Duration::from_millis(2));
        pool.observe_acquire(Duration::from_micros(20));
        pool.observe_query(Duration::from_micros(300));
        pool.observe_transaction(Duration::from_micros(300));
        pool.set_max_size(20);
        metrics.client_connected();
        metrics.observe_client_login(Duration::from_millis(1));
        metrics.pinned("listen");
        metrics.pin_refused("listen");
        metrics.audited(["setting"]);
        metrics.cancel_handled(CancelOutcome::Forwarded);
        metrics.backend_closed(CloseReason::Lifetime);
        metrics.error_sent(SqlState::QUERY_CANCELED);
        (metrics, pool)
    }

    #[test]
    fn every_name_of_the_interface_is_exposed() {
        let (metrics, _pool) = used();
        let text = metrics.render();
        for family in names::ALL {
            assert!(
                text.contains(&format!("# HELP {} {}\n", family.name, family.help)),
                "{}",
                family.name
            );
        }
        assert_eq!(text.matches("# TYPE ").count(), names::ALL.len());
        for line in [
            r#"pgsidecar_clients{state="waiting"} 0"#,
            r#"pgsidecar_backends{database="app",state="pinned",user="app"} 0"#,
            r#"pgsidecar_bytes_total{direction="to_client"} 0"#,
            r#"pgsidecar_errors_total{sqlstate="57014"} 1"#,
            r#"pgsidecar_pins_total{reason="listen"} 1"#,
            r#"pgsidecar_cancels_total{outcome="forwarded"} 1"#,
            r#"pgsidecar_backend_closed_total{reason="lifetime"} 1"#,
            concat!(
                r#"pgsidecar_build_info{version=""#,
                env!("CARGO_PKG_VERSION"),
                r#""} 1"#
            ),
            r#"pgsidecar_pool_max_size{database="app",user="app"} 20"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn names_keep_the_conventions() {
        let (metrics, _pool) = used();
        let text = metrics.render();
        let types: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .collect();
        for Family { name, help } in names::ALL {
            assert!(help.ends_with('.'), "{name}: {help}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            let kind = types[name];
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}: base unit");
            for wrong in [
                "_ms",
                "_milliseconds",
                "_kb",
                "_count",
                "_sum",
                "_bucket",
                "_gauge",
                "_counter",
            ] {
                assert!(!name.ends_with(wrong), "{name}");
            }
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../docs/metrics.md");
        let cell = |text: &str| page.contains(&format!("`{text}`"));
        assert!(
            names::ALL.iter().all(|family| cell(family.name)),
            "docs/metrics.md names every metric"
        );
        assert!(
            CloseReason::ALL.iter().all(|reason| cell(reason.as_str())),
            "and every reason"
        );
        assert!(
            CancelOutcome::ALL.iter().all(|outcome| cell(outcome.as_str())),
            "and every outcome"
        );
    }

    #[test]
    fn promtool_finds_nothing() {
        let mut promtool = Command::new("promtool");
        promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let Ok(mut child) = promtool.spawn() else {
            return; // Not installed: names_keep_the_conventions holds the same rules.
        };
        let (metrics, _pool) = used();
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(metrics.render().as_bytes())
            .expect("promtool reads");
        let output = child.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }

    #[test]
    fn trap_92_sqlstates_are_bounded_and_ours_are_never_pushed_out() {
        let metrics = Metrics::new();
        for number in 0..5000 {
            let code = format!("U{number:04}");
            metrics.error_sent(SqlState::from_bytes(code.as_bytes()).expect("five letters and digits"));
        }
        metrics.error_sent(SqlState::TOO_MANY_CONNECTIONS);
        let text = metrics.render();
        assert_eq!(text.matches("pgsidecar_errors_total{").count(), SQLSTATES_MAX + 1);
        assert!(text.contains(r#"pgsidecar_errors_total{sqlstate="53300"} 1"#));
        let other = 5000 - (SQLSTATES_MAX - OWN_SQLSTATES.len());
        assert!(
            text.contains(&format!(r#"pgsidecar_errors_total{{sqlstate="other"}} {other}"#)),
            "{text}"
        );
        assert_eq!(metrics.snapshot().errors, 5001);
        assert_eq!(metrics.errors()[0], ("other".to_owned(), other as u64));
    }

    #[test]
    fn a_hook_sets_what_changes_by_itself() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app", "app");
        pool.reveal();
        let weak = Arc::downgrade(&pool);
        metrics.on_scrape(move || {
            if let Some(pool) = weak.upgrade() {
                pool.set_oldest_wait(Duration::from_millis(1500));
            }
        });
        assert!(
            metrics
                .render()
                .contains(r#"pgsidecar_oldest_wait_seconds{database="app",user="app"} 1.5"#)
        );
    }

    #[test]
    fn upstream_up_follows_the_last_attempt() {
        let metrics = Metrics::new();
        assert!(metrics.render().contains("pgsidecar_upstream_up 0\n"));
        metrics.readiness().upstream_login_succeeded();
        assert!(metrics.render().contains("pgsidecar_upstream_up 1\n"));
        metrics.readiness().upstream_up(false);
        assert!(metrics.render().contains("pgsidecar_upstream_up 0\n"));
    }

    #[test]
    fn two_metrics_in_one_process_know_nothing_of_each_other() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.client_connected();
        assert!(one.render().contains("pgsidecar_client_connections_total 1\n"));
        assert!(two.render().contains("pgsidecar_client_connections_total 0\n"));
    }
}
