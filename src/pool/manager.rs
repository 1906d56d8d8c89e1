//! bb8's manager: a connect is a login in its turn and under the caps; broken is what is not clean, or too old.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::Instant;

use super::connect_failures::ConnectFailures;
use super::demand::Demand;
use super::knowledge::Knowledge;
use super::line::Line;
use super::lock;
use super::record::{NEVER, Record};
use super::registry::PoolKey;
use super::subscription::Desk;
use super::total_cap::{TotalCap, TotalPlace, Want};
use super::vacancy::Vacancies;
use crate::backend::login::LoginOptions;
use crate::backend::{Backend, Condition, ConnectFailure, Connector, ServerParameters};
use crate::config::PoolConfig;
use crate::metrics::{BackendGauge, BackendState, CloseReason, Metrics, PoolMetrics};
use crate::wire::{Report, SqlState};

/// How often a connect that was refused looks whether the last open backend has gone.
const REFUSED_TICK: Duration = Duration::from_millis(100);

/// Why bb8 got no backend.
#[derive(Debug, Clone)]
pub(crate) enum ConnectError {
    /// The login failed.
    Failed(ConnectFailure),
    /// Nobody waited for it any more.
    NotWanted,
    /// The pool is closed.
    Closed,
}

/// What a pool's connects, backends and keeper share. Knows nothing of who waits or what is parked.
#[derive(Debug)]
pub(crate) struct PoolCore {
    pub(crate) key: PoolKey,
    /// Tells pools apart, also those of the same key at different times.
    pub(crate) number: u64,
    pub(crate) settings: ArcSwap<PoolConfig>,
    pub(crate) connector: ArcSwap<Connector>,
    pub(crate) login_options: ArcSwap<LoginOptions>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pool_metrics: Arc<PoolMetrics>,
    pub(crate) failures: Arc<ConnectFailures>,
    pub(crate) demand: Arc<Demand>,
    pub(crate) line: Arc<Line>,
    pub(crate) total_cap: Arc<TotalCap>,
    pub(crate) vacancies: Arc<Vacancies>,
    pub(crate) parameters: ArcSwapOption<ServerParameters>,
    pub(crate) knowledge: Knowledge,
    /// Where its clients say which notifications they want to hear.
    pub(crate) desk: Desk,
    records: Mutex<Vec<Arc<Record>>>,
    connecting: AtomicUsize,
    generation: AtomicU64,
    has_logged_in: AtomicBool,
    is_closed: AtomicBool,
    epoch: Instant,
    coarse_now: AtomicU64,
    /// When a backend was last asked whether its server is a standby.
    suspected_at: AtomicU64,
}

/// A replica that an application writes to by mistake is not asked about, and reconnected to, at each mistake.
const SUSPICION_PAUSE_MS: u64 = 5000;

/// One open backend and what it holds while it is open: its place under the caps, its count in the metrics.
#[derive(Debug)]
pub(crate) struct OpenBackend {
    pub(crate) backend: Backend,
    pub(crate) record: Arc<Record>,
    gauge: BackendGauge,
    core: Arc<PoolCore>,
    close_reason: Option<CloseReason>,
    _place: TotalPlace,
}

/// The manager that bb8 drives.
#[derive(Debug)]
pub(crate) struct BackendManager(pub(crate) Arc<PoolCore>);

impl bb8::ManageConnection for BackendManager {
    type Connection = Box<OpenBackend>;
    type Error = ConnectError;

    async fn connect(&self) -> Result<Self::Connection, ConnectError> {
        let core = &self.0;
        // Counted before the first await, so that nobody opens one more beside it.
        let _connecting = Connecting::new(core);
        let _turn = core.failures.turn(&core.demand).await?;
        while let Some((report, until)) = core.failures.remembered_refusal(Instant::now()) {
            if core.open_count() == 0 {
                return Err(ConnectError::Failed(ConnectFailure::Refused(report)));
            }
            // Those who wait are served by the backends that are open: PostgreSQL is asked again in a while.
            tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + REFUSED_TICK)) => {}
                () = core.demand.gone() => return Err(ConnectError::NotWanted),
            }
        }
        let want = if core.open_count() == 0 {
            Want::Starved
        } else {
            Want::Hungry
        };
        let place = tokio::select! {
            place = core.total_cap.take(core.number, want) => place,
            () = core.demand.gone() => return Err(ConnectError::NotWanted),
        };
        core.open(place).await
    }

    /// Never called: bb8 is set up not to test on check-out, because a test would be a query.
    async fn is_valid(&self, _: &mut Self::Connection) -> Result<(), ConnectError> {
        Ok(())
    }

    fn has_broken(&self, open: &mut Self::Connection) -> bool {
        open.is_condemned()
    }
}

impl PoolCore {
    pub(crate) fn new(
        key: PoolKey,
        settings: PoolConfig,
        connector: Connector,
        login_options: LoginOptions,
        metrics: Arc<Metrics>,
        total_cap: Arc<TotalCap>,
        vacancies: Arc<Vacancies>,
    ) -> Arc<Self> {
        let pool_metrics = metrics.pool(&key.database, &key.user);
        pool_metrics.set_max_size(settings.max_size);
        let line = Arc::<Line>::default();
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings),
            connector: ArcSwap::from_pointee(connector),
            login_options: ArcSwap::from_pointee(login_options),
            metrics,
            pool_metrics,
            number: total_cap.next_pool_number(),
            failures: ConnectFailures::new(Arc::clone(&line)),
            line,
            demand: Arc::default(),
            total_cap,
            vacancies,
            parameters: ArcSwapOption::empty(),
            knowledge: Knowledge::new(),
            desk: Desk::default(),
            records: Mutex::default(),
            connecting: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            has_logged_in: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            epoch: Instant::now(),
            coarse_now: AtomicU64::new(0),
            suspected_at: AtomicU64::new(0),
            key,
        })
    }

    /// Opens a backend. Its failure is remembered, and for the caller to publish.
    pub(crate) async fn open(self: &Arc<Self>, place: TotalPlace) -> Result<Box<OpenBackend>, ConnectError> {
        self.vacancies.wait_for(&self.connector.load_full()).await;
        let generation = self.generation.load(Ordering::Acquire);
        let connector = self.connector.load_full();
        let options = self.login_options.load_full();
        let started = Instant::now();
        match connector.connect(&options).await {
            _ if self.is_closed() => Err(ConnectError::Closed),
            Ok(mut backend) => {
                self.connected(&mut backend, started);
                let open = self.admit(backend, place);
                if self.generation.load(Ordering::Acquire) != generation {
                    open.record.retire(CloseReason::Reload);
                }
                Ok(open)
            }
            Err(failure) => {
                let rotates = self.has_logged_in() && connector.password_may_change();
                let failure = self.failures.softened(failure, rotates, Instant::now());
                self.connect_failed(&failure);
                Err(ConnectError::Failed(failure))
            }
        }
    }

    fn connected(&self, backend: &mut Backend, started: Instant) {
        if self.failures.succeeded() {
            tracing::info!(pool = %self.key, "backends can be opened again");
        }
        self.has_logged_in.store(true, Ordering::Release);
        self.metrics.readiness().upstream_login_succeeded();
        self.pool_metrics.backend_connected(started.elapsed());
        // Learned anew at each login: an upgrade or a failover changes server_version and in_hot_standby (trap 9).
        self.know_neutral(backend);
        tracing::debug!(pool = %self.key, process_id = ?backend.cancel_target().process_id(), "backend opened");
    }

    /// What a backend reports by itself is what the pool's next greetings say.
    fn know_neutral(&self, backend: &mut Backend) {
        if let Some(known) = &*self.parameters.load() {
            backend.share_neutral(known);
            if Arc::ptr_eq(known, backend.neutral_parameters()) {
                return;
            }
        }
        self.parameters.store(Some(Arc::clone(backend.neutral_parameters())));
        self.knowledge.forget_what_follows_from_settings();
    }

    pub(crate) fn connect_failed(&self, failure: &ConnectFailure) {
        self.failures.failed(failure, Instant::now());
        let (reached, report) = match failure {
            ConnectFailure::Refused(report) => (true, report),
            ConnectFailure::Unavailable(report) => (matches!(report.sqlstate.class(), "28" | "53"), report),
        };
        self.metrics.readiness().upstream_up(reached);
        if self.failures.is_news(report, Instant::now()) {
            tracing::warn!(pool = %self.key, %report, "no backend could be opened");
        } else {
            tracing::debug!(pool = %self.key, %report, "no backend could be opened");
        }
    }

    pub(crate) fn admit(self: &Arc<Self>, backend: Backend, place: TotalPlace) -> Box<OpenBackend> {
        let now = self.now();
        let record = Arc::new(Record::new(backend.stream.idle_probe(), now, self.lifetime_end(now)));
        lock(&self.records).push(Arc::clone(&record));
        let gauge = self.pool_metrics.backend(BackendState::Idle);
        Box::new(OpenBackend {
            backend,
            record,
            gauge,
            core: Arc::clone(self),
            close_reason: None,
            _place: place,
        })
    }

    /// `max_lifetime` less a random share of it: backends that were opened together don't end together (trap 47).
    fn lifetime_end(&self, now: u64) -> u64 {
        let settings = self.settings.load();
        settings.max_lifetime.map_or(NEVER, |lifetime| {
            let jitter = settings.lifetime_jitter.clamp(0.0, 1.0) * super::random_share();
            now.saturating_add(millis(lifetime.mul_f64(1.0 - jitter)))
        })
    }

    /// Every backend open now, whoever has it.
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        lock(&self.records).clone()
    }

    pub(crate) fn open_count(&self) -> usize {
        lock(&self.records).len()
    }

    pub(crate) fn connecting_count(&self) -> usize {
        self.connecting.load(Ordering::Acquire)
    }

    pub(crate) fn has_logged_in(&self) -> bool {
        self.has_logged_in.load(Ordering::Acquire)
    }

    /// Every backend open now is closed when it is next idle; connects under way are not kept.
    pub(crate) fn retire_all(&self, reason: CloseReason) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        for record in lock(&self.records).iter() {
            record.retire(reason);
        }
        self.desk.news.notify_one();
    }

    /// Changes when every backend opened so far is to be closed.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// At most once in a while.
    pub(crate) fn may_be_suspected(&self) -> bool {
        let (now, last) = (self.now(), self.suspected_at.load(Ordering::Relaxed));
        let may = last == 0 || now.saturating_sub(last) >= SUSPICION_PAUSE_MS;
        if may {
            self.suspected_at.store(now.max(1), Ordering::Relaxed);
        }
        may
    }

    pub(crate) fn suspect_upstream(&self) {
        tracing::warn!(pool = %self.key, "the upstream is not what it was; its backends are replaced");
        // The next greeting is learned from a new login (trap 9).
        self.parameters.store(None);
        self.retire_all(CloseReason::Broken);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    pub(crate) fn set_closed(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Milliseconds since the pool began, as of the keeper's last tick.
    pub(crate) fn now(&self) -> u64 {
        self.coarse_now.load(Ordering::Relaxed)
    }

    /// Moves the coarse clock on.
    pub(crate) fn tick(&self) {
        self.coarse_now.store(millis(self.epoch.elapsed()), Ordering::Relaxed);
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One connect under way, counted in the pool and in the metrics.
pub(crate) struct Connecting {
    core: Arc<PoolCore>,
    _gauge: BackendGauge,
}

impl Connecting {
    pub(crate) fn new(core: &Arc<PoolCore>) -> Self {
        core.connecting.fetch_add(1, Ordering::AcqRel);
        Self {
            core: Arc::clone(core),
            _gauge: core.pool_metrics.backend(BackendState::Connecting),
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.core.connecting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl OpenBackend {
    /// Why it can't be used again; `None` while it can.
    pub(crate) fn is_condemned(&mut self) -> bool {
        if self.close_reason.is_none() {
            self.close_reason = self.record.retired();
        }
        self.close_reason.is_some() || self.backend.condition() != Condition::Clean
    }

    /// It is to be closed, and why. The first reason stays.
    pub(crate) fn condemn(&mut self, reason: CloseReason) {
        self.close_reason.get_or_insert(reason);
    }

    /// [`is_fit`](Self::is_fit) for one that was given back a moment ago: as long as the runtime has heard nothing from it, the kernel
    /// is not asked.
    pub(crate) fn is_still_fit(&mut self) -> bool {
        let quiet = self.backend.read_buffer.is_empty() && self.backend.stream.has_been_quiet();
        if quiet && !self.is_condemned() && self.backend.condition() == crate::backend::Condition::Clean {
            return true;
        }
        self.is_fit()
    }

    /// Whether it can be lent: not retired, clean, and silent or harmless on its socket.
    pub(crate) fn is_fit(&mut self) -> bool {
        if self.is_condemned() {
            return false;
        }
        match self.backend.check_idle() {
            crate::backend::IdleVerdict::Usable => {
                self.learn_neutral_change();
                self.keeps_its_role()
            }
            crate::backend::IdleVerdict::Gone(sqlstate) => {
                tracing::info!(pool = %self.core.key, ?sqlstate, "an idle backend ended");
                self.condemn(CloseReason::Broken);
                false
            }
        }
    }

    /// The server's own configuration changed: the next greetings show it (trap 9).
    pub(crate) fn learn_neutral_change(&mut self) {
        if self.backend.take_neutral_change() {
            self.core.know_neutral(&mut self.backend);
        }
    }

    /// A server that was promoted or demoted is another one than the pool logged in to: every backend of before is
    /// closed when it is idle, and new ones look the upstream's name up (trap 80).
    pub(crate) fn keeps_its_role(&mut self) -> bool {
        if self.backend.role_changed() && self.record.retired().is_none() {
            self.core.suspect_upstream();
        }
        !self.is_condemned()
    }

    pub(crate) fn core(&self) -> &Arc<PoolCore> {
        &self.core
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.gauge.state() == BackendState::Pinned
    }

    pub(crate) fn count_as(&mut self, state: BackendState) {
        self.gauge.set(state);
    }
}

impl Drop for OpenBackend {
    fn drop(&mut self) {
        lock(&self.core.records).retain(|record| !Arc::ptr_eq(record, &self.record));
        let reason = self
            .close_reason
            .or_else(|| self.record.retired())
            .unwrap_or(CloseReason::Broken);
        self.core.metrics.backend_closed(reason);
    }
}

/// What is told where a pool is gone.
pub(crate) fn closed_report() -> Report {
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "the pool of this database and user was closed",
    )
}
