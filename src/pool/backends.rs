//! One pool: the backends of one database and user, and the line of clients for them.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::connect_failures::FailureSink;
use super::holder::Holder;
use super::lease::{Admitted, Lease, Pooled};
use super::line::Ticket;
use super::lock;
use super::manager::{BackendManager, ConnectError, PoolCore, closed_report};
use super::parked::{Parked, Wish};
use super::pin_quota::PinQuota;
use super::registry::PoolKey;
use super::replacement_pace::ReplacementPace;
use super::timeout_report;
use super::total_cap::Want;
use super::turnstile::Turnstile;
use super::vacancy::Vacancy;
use crate::backend::login::LoginOptions;
use crate::backend::{ConnectFailure, Connector, ServerParameters};
use crate::config::{PoolConfig, PoolMode};
use crate::metrics::{BackendState, CloseReason};
use crate::protocol::backend_login::LoginSecret;
use crate::wire::{Report, Severity, SqlState};

/// bb8 counts only to a bound that is never reached: the turnstile admits, and its width changes on reload.
const BB8_SIZE_MAX: u32 = 1 << 20;
/// A wait in bb8 that this long brought nothing is begun anew. Every event wakes it earlier; this is the net below.
const BB8_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why there is no lease.
#[derive(Debug, Clone)]
pub enum LeaseError {
    /// PostgreSQL refused the login, in its own words (FATAL): the same for everyone who asks this pool.
    Refused(Report),
    /// `pool.acquire_timeout` passed: 53300 (ERROR), with what holds the backends.
    TimedOut(Report),
    /// A CancelRequest came for the waiting client: 57014 (ERROR).
    Cancelled,
    /// The pool is gone (a reload took it away, or the process ends), or there are too many pools (FATAL).
    Unavailable(Report),
}

impl LeaseError {
    /// What the client is told. An ERROR leaves it its connection.
    pub fn report(&self) -> Report {
        match self {
            Self::Refused(report) | Self::TimedOut(report) | Self::Unavailable(report) => report.clone(),
            Self::Cancelled => Report::error(SqlState::QUERY_CANCELED, "canceling statement due to user request"),
        }
    }
}

/// A pool at one moment, for metrics, log lines and the timeout's error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "counts, named as in the metrics")]
pub struct PoolStatus {
    pub max_size: u32,
    pub open: usize,
    pub idle: usize,
    pub connecting: usize,
    /// Clients in line or waiting for a connect.
    pub waiting: usize,
    pub oldest_wait: Option<Duration>,
}

/// The backends of one database and user.
#[derive(Debug)]
pub struct Pool {
    pub(crate) core: Arc<PoolCore>,
    pub(crate) admission: Turnstile,
    bb8: bb8::Pool<BackendManager>,
    parked: Mutex<Parked>,
    pub(super) pinned: PinQuota,
    /// Milliseconds of the coarse clock: when somebody last asked for a backend.
    last_asked: AtomicU64,
    replacements: ReplacementPace,
}

impl Pool {
    pub(crate) fn new(core: Arc<PoolCore>) -> Arc<Self> {
        let width = core.settings.load().max_size;
        let bb8 = bb8::Pool::builder()
            .max_size(BB8_SIZE_MAX)
            .min_idle(None)
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(BB8_WAIT_MAX)
            .retry_connection(false)
            .queue_strategy(bb8::QueueStrategy::Lifo)
            .error_sink(Box::new(FailureSink(Arc::clone(&core.failures))))
            .build_unchecked(BackendManager(Arc::clone(&core)));
        Arc::new(Self {
            admission: Turnstile::new(width),
            bb8,
            parked: Mutex::default(),
            pinned: PinQuota::default(),
            last_asked: AtomicU64::new(0),
            replacements: ReplacementPace::default(),
            core,
        })
    }

    /// The database and user that clients ask for.
    pub fn key(&self) -> &PoolKey {
        &self.core.key
    }

    /// The settings as of the last reload.
    pub fn settings(&self) -> Arc<PoolConfig> {
        self.core.settings.load_full()
    }

    /// What the pool's clients share, and what was learned of its database.
    pub fn knowledge(&self) -> &super::Knowledge {
        &self.core.knowledge
    }

    /// Its figures.
    pub fn metrics(&self) -> &Arc<crate::metrics::PoolMetrics> {
        &self.core.pool_metrics
    }

    /// When backends of this pool are given back.
    pub fn mode(&self) -> PoolMode {
        self.core.settings.load().mode
    }

    /// A lease at once, if nobody is in line and a backend is parked: the client's own last one, else the most recent.
    /// No await, no timer, no clock.
    pub fn try_lease(self: &Arc<Self>, holder: &Arc<Holder>, wish: Wish<'_>) -> Option<Lease> {
        let admitted = self.try_admit()?;
        let connection = self.take_parked(holder.client_id(), wish)?;
        self.last_asked.store(self.core.now(), Ordering::Relaxed);
        self.core.pool_metrics.observe_acquire(Duration::ZERO);
        Lease::begin(connection, admitted, holder)
    }

    /// A lease, in the order of asking, within `pool.acquire_timeout`.
    ///
    /// A refused login ends the wait at once; a server that is down or starting is waited for. Cancel-safe: a dropped
    /// future leaves the line and loses no backend.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn lease(self: &Arc<Self>, holder: &Arc<Holder>, wish: Wish<'_>) -> Result<Lease, LeaseError> {
        let started = Instant::now();
        let _waiting = holder.cancel_slot().begin_waiting();
        let ticket = self.core.line.join(started, self.core.settings.load().acquire_timeout);
        self.last_asked.store(self.core.now(), Ordering::Relaxed);
        let waited = self.wait_for_backend(holder, wish, &ticket).await;
        drop(ticket);
        self.core.pool_metrics.observe_acquire(started.elapsed());
        let (connection, admitted) = waited?;
        Lease::begin(connection, admitted, holder).ok_or(LeaseError::Cancelled)
    }

    /// A backend of the holder's own, outside the pool: replication, and startup parameters that can't be set later.
    /// Counted under `pool.max_total` only, closed when its lease ends, within `pool.acquire_timeout`.
    ///
    /// # Errors
    /// See [`LeaseError`]. Nothing is remembered of a refusal: it may be due to the parameters.
    pub async fn dedicated(
        self: &Arc<Self>,
        holder: &Arc<Holder>,
        parameters: Vec<(String, String)>,
    ) -> Result<Lease, LeaseError> {
        let slot = holder.cancel_slot();
        let _waiting = slot.begin_waiting();
        let limit = self.core.settings.load().acquire_timeout;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let open = tokio::select! {
            biased;
            open = self.core.open_dedicated(parameters) => open?,
            () = poll_fn(|cx| slot.poll_cancelled(cx)) => return Err(LeaseError::Cancelled),
            () = at(deadline) => {
                return Err(LeaseError::TimedOut(timeout_report::timed_out(self, limit.unwrap_or_default())));
            }
        };
        Lease::dedicated(open, holder).ok_or(LeaseError::Cancelled)
    }

    /// What the server reports to a login with neutral parameters; `None` until a first backend has logged in.
    pub fn parameters(&self) -> Option<Arc<ServerParameters>> {
        self.core.parameters.load_full()
    }

    /// The same, from a first backend where none has logged in yet. Fails as that login fails.
    ///
    /// # Errors
    /// As [`lease`](Self::lease).
    pub async fn learn(self: &Arc<Self>) -> Result<Arc<ServerParameters>, LeaseError> {
        if let Some(parameters) = self.parameters() {
            return Ok(parameters);
        }
        let holder = Holder::internal("learning the server's parameters");
        // Boxed: every login comes by here, and nearly none goes on.
        let lease = Box::pin(self.lease(&holder, Wish::Any)).await?;
        let parameters = Arc::clone(lease.neutral_parameters());
        lease.park();
        Ok(parameters)
    }

    /// Something says that the upstream's name now leads elsewhere, or this server changed its role (25006, a flip of
    /// in_hot_standby): idle backends are closed, used ones when they come back, and new ones look the name up (trap 80).
    pub fn suspect_upstream(&self) {
        self.core.suspect_upstream();
        self.close_unfit();
    }

    /// Whether a backend that refused to write (25006) should be on a primary and is on a standby: a demoted server, or
    /// a name that led to the wrong one. Asked only after such an error, and not where a standby is what is wanted.
    pub async fn is_now_standby(&self, lease: &mut Lease) -> bool {
        use crate::config::TargetSessionAttrs as Wanted;
        let wanted = self.core.connector.load().upstream.target_session_attrs;
        if !matches!(wanted, Wanted::Any | Wanted::ReadWrite | Wanted::Primary) || !self.core.may_be_suspected() {
            return false;
        }
        let limit = self.core.settings.load().reset_timeout;
        let asked = lease.query("SELECT pg_catalog.pg_is_in_recovery()");
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(outcome)) => matches!(outcome.first_column.first(), Some(Some(value)) if &value[..] == b"t"),
            Ok(Err(_)) | Err(_) => {
                lease.mark_broken();
                false
            }
        }
    }

    /// A client proved who it is with a secret that also opens PostgreSQL: used where no password is configured for
    /// this user. A refusal that the old one met is forgotten.
    pub fn pass_secret(&self, secret: LoginSecret) {
        self.core.login_options.store(Arc::new(LoginOptions {
            passed_secret: secret,
            ..LoginOptions::default()
        }));
        self.core.failures.forget();
    }

    /// Counts and durations of now.
    pub fn status(&self) -> PoolStatus {
        let records = self.core.records();
        PoolStatus {
            max_size: self.admission.width(),
            open: records.len(),
            idle: records.iter().filter(|record| record.is_idle()).count(),
            connecting: self.core.connecting_count(),
            waiting: self.core.line.len(),
            oldest_wait: self.core.line.oldest_wait(),
        }
    }

    /// Whether anyone waits for a backend.
    pub fn is_waited_for(&self) -> bool {
        !self.core.line.is_empty()
    }

    /// How long a client must wait before a backend is closed for it that holds traces of others.
    pub fn replacement_wait(&self) -> Duration {
        self.replacements.take_turn(Instant::now())
    }

    /// Milliseconds since the pool began, as of a moment ago. One load.
    pub fn coarse_now(&self) -> u64 {
        self.core.now()
    }

    /// Waits in line, then for a backend. Whoever is dropped in between gives the place back.
    async fn wait_for_backend(
        self: &Arc<Self>,
        holder: &Holder,
        wish: Wish<'_>,
        ticket: &Ticket<'_>,
    ) -> Result<(Pooled, Admitted), LeaseError> {
        let admitted = {
            let mut passing = pin!(self.admission.pass());
            poll_fn(|cx| match passing.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(Admitted::new(Arc::clone(self)))),
                Poll::Pending => self.poll_end_of_wait(holder, ticket, cx).map(Err),
            })
            .await?
        };
        let connection = match self.take_parked(holder.client_id(), wish) {
            Some(connection) => connection,
            // Boxed: who finds one parked does not pay for the room.
            None => Box::pin(self.backend_for(holder, wish, ticket)).await?,
        };
        Ok((connection, admitted))
    }

    pub(crate) fn try_admit(self: &Arc<Self>) -> Option<Admitted> {
        self.admission.try_pass().then(|| Admitted::new(Arc::clone(self)))
    }

    /// Ready when the wait is over without a backend: cancelled, too long, or refused for good.
    fn poll_end_of_wait(&self, holder: &Holder, ticket: &Ticket<'_>, cx: &mut Context<'_>) -> Poll<LeaseError> {
        if holder.cancel_slot().poll_cancelled(cx).is_ready() {
            return Poll::Ready(LeaseError::Cancelled);
        }
        // Its keeper is gone, so that nobody would ring.
        if self.core.is_closed() {
            return Poll::Ready(LeaseError::Unavailable(closed_report()));
        }
        while ticket.poll_rung(cx).is_ready() {
            if let Some(limit) = ticket.overdue(Instant::now()) {
                return Poll::Ready(LeaseError::TimedOut(timeout_report::timed_out(self, limit)));
            }
            // With a backend open, the line moves on when it is released, whatever the next login's answer (trap 88).
            if self.core.open_count() == 0
                && let Err(refused) = refusal(self.core.failures.published())
            {
                return Poll::Ready(refused);
            }
        }
        Poll::Pending
    }

    async fn backend_for(&self, holder: &Holder, wish: Wish<'_>, ticket: &Ticket<'_>) -> Result<Pooled, LeaseError> {
        // Announced before looking: a release after this goes to bb8, which wakes us; one before it is found parked.
        let _wanting = self.core.demand.begin();
        loop {
            let client_id = holder.client_id();
            let suited = self.take_parked(client_id, wish).or_else(|| self.take_idle(wish));
            // One that will not do is at least one that can be replaced.
            if let Some(connection) = suited.or_else(|| self.take_parked(client_id, Wish::Any)) {
                return Ok(connection);
            }
            if self.core.is_closed() {
                return Err(LeaseError::Unavailable(closed_report()));
            }
            let refused = self.core.failures.remembered_refusal(Instant::now());
            if let Some((report, _)) = refused.filter(|_| self.core.open_count() == 0) {
                return Err(LeaseError::Refused(report));
            }
            tokio::select! {
                biased;
                connected = self.bb8.get_owned() => {
                    // An error is only bb8's own time limit.
                    if let Ok(mut connection) = connected && connection.is_fit() {
                        return Ok(connection);
                    }
                }
                error = poll_fn(|cx| self.poll_end_of_wait(holder, ticket, cx)) => return Err(error),
            }
        }
    }

    fn take_parked(&self, client_id: u64, wish: Wish<'_>) -> Option<Pooled> {
        loop {
            let mut connection = lock(&self.parked).take(client_id, wish)?;
            if connection.is_still_fit() {
                return Some(connection);
            }
            drop(connection);
        }
    }

    /// An idle backend out of bb8, most recently used first, without beginning a connect. One that will not do only where
    /// there is no other.
    fn take_idle(&self, wish: Wish<'_>) -> Option<Pooled> {
        let mut passed_over = Vec::new();
        loop {
            let idle = {
                let _order = lock(&self.parked);
                self.take_any_idle()
            };
            let Some(mut connection) = idle else {
                return passed_over.pop();
            };
            if !connection.is_fit() {
                continue;
            }
            if wish.accepts(&connection) {
                return Some(connection);
            }
            passed_over.push(connection);
        }
    }

    /// One poll of bb8, which has an idle one: callers hold the lock of `parked`, so that no two of us meet here. bb8
    /// begins a connect where it is asked with nothing idle.
    fn take_any_idle(&self) -> Option<Pooled> {
        if self.bb8.state().idle_connections == 0 {
            return None;
        }
        match pin!(self.bb8.get_owned()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(connection)) => Some(connection),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// A lease ended: parks a clean backend, or lets bb8 have or close it.
    pub(crate) fn take_back(&self, mut connection: Pooled, client_id: u64) {
        connection.record.came_back(self.core.now());
        connection.count_as(BackendState::Idle);
        connection.learn_neutral_change();
        connection.keeps_its_role();
        if self.core.total_cap.claims_released(
            self.core.number,
            self.core.demand.is_some() || !self.core.line.is_empty(),
        ) {
            connection.condemn(CloseReason::Evicted);
        }
        if connection.is_condemned() {
            return;
        }
        let mut parked = lock(&self.parked);
        if self.core.demand.is_some() {
            // Behind the lock: whoever wants one has looked at the parked ones before this, or will find it there.
            drop(parked);
            return;
        }
        parked.put(connection, client_id);
    }

    /// Parked backends that nobody took since the last sweep go to bb8.
    pub(crate) fn sweep_parked(&self) {
        let mut parked = lock(&self.parked);
        // Dropped under the lock, so that each is found in one place or the other.
        parked.sweep().into_iter().for_each(drop);
    }

    pub(crate) fn has_parked(&self) -> bool {
        !lock(&self.parked).is_empty()
    }

    /// Looks at every idle backend and closes those that are retired or have something to say that ends them.
    pub(crate) fn close_unfit(&self) {
        let mut unfit = Vec::new();
        let mut parked = lock(&self.parked);
        let mut idle = parked.take_all();
        while let Some(connection) = self.take_any_idle() {
            idle.insert(0, connection);
        }
        for mut connection in idle {
            if connection.is_fit() {
                // Oldest first: bb8 puts each on top of the last.
                drop(connection);
            } else {
                unfit.push(connection);
            }
        }
        drop(parked);
        drop(unfit);
    }

    /// Clears a database for a statement that fails while anyone is connected to it: until the guard is dropped no pool has
    /// an idle backend of it or opens one. `None` where the text does not tell which; `stays` where the database will be
    /// what it was.
    pub fn vacate(&self, database: Option<&[u8]>, stays: bool) -> Vacancy {
        self.core.vacancies.vacate(&self.core.connector.load(), database, stays)
    }

    /// Closes the idle backends, and whatever is being opened when it is.
    pub(crate) fn vacate_idle(&self, stays: bool) {
        self.core.retire_all(CloseReason::Evicted);
        self.close_unfit();
        if !stays {
            // A database of the same name will be another one.
            self.core.knowledge.doubt_catalog();
            self.core.knowledge.forget_what_follows_from_settings();
        }
    }

    /// Closes the backend that was idle longest. Says whether there was one.
    pub(crate) fn evict_idle(&self) -> bool {
        let evicted = {
            let mut parked = lock(&self.parked);
            self.take_any_idle().or_else(|| parked.take_oldest())
        };
        let found = evicted.is_some();
        if let Some(mut connection) = evicted {
            connection.condemn(CloseReason::Evicted);
        }
        found
    }

    /// Opens one backend that nobody waits for yet.
    pub(crate) async fn warm(self: Arc<Self>, admitted: Admitted) {
        let _connecting = super::manager::Connecting::new(&self.core);
        let Some(place) = self.core.total_cap.try_take() else {
            return;
        };
        match self.core.open(place).await {
            Ok(open) => drop(self.bb8.add(open)),
            Err(error) => self.core.failures.publish(error),
        }
        drop(admitted);
    }

    /// Milliseconds since somebody last asked for a backend.
    pub(crate) fn unasked_for(&self) -> u64 {
        self.core.now().saturating_sub(self.last_asked.load(Ordering::Relaxed))
    }

    /// How long its longest idle backend has been so, in milliseconds; `None` where none is idle.
    pub(crate) fn longest_idle(&self) -> Option<u64> {
        let now = self.core.now();
        let records = self.core.records();
        records
            .iter()
            .filter(|record| record.is_idle())
            .map(|record| now.saturating_sub(record.since()))
            .max()
    }

    /// New settings and, where they differ, a new way to log in: backends opened the old way are closed as they return.
    pub(crate) fn reconfigure(&self, settings: PoolConfig, connector: Connector) {
        self.admission.set_width(settings.max_size);
        self.core.pool_metrics.set_max_size(settings.max_size);
        self.core.settings.store(Arc::new(settings));
        let changed = !self.core.connector.load().leads_to_the_same(&connector);
        self.core.connector.store(Arc::new(connector));
        self.core.failures.forget();
        if changed {
            self.core.retire_all(CloseReason::Reload);
            self.close_unfit();
        }
    }

    /// Closes idle backends now and used ones as they come back; who waits is told.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.core.set_closed();
        self.core.retire_all(reason);
        self.close_unfit();
        self.core.failures.publish(ConnectError::Closed);
    }
}

impl PoolCore {
    async fn open_dedicated(
        self: &Arc<Self>,
        parameters: Vec<(String, String)>,
    ) -> Result<Box<super::manager::OpenBackend>, LeaseError> {
        if self.is_closed() {
            return Err(LeaseError::Unavailable(closed_report()));
        }
        let place = self.total_cap.take(self.number, Want::Hungry).await;
        let passed_secret = self.login_options.load().passed_secret.clone();
        let options = LoginOptions {
            passed_secret,
            parameters,
            ..LoginOptions::default()
        };
        let connector = self.connector.load_full();
        let failure = loop {
            self.vacancies.wait_for(&connector).await;
            match connector.connect(&options).await {
                Ok(backend) => return Ok(self.admit(backend, place)),
                Err(ConnectFailure::Refused(report)) => break report,
                Err(unavailable) => {
                    self.connect_failed(&unavailable);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        Err(LeaseError::Refused(failure.with_severity(Severity::Fatal)))
    }
}

/// Whether a published failure ends a wait.
fn refusal(error: Option<ConnectError>) -> Result<(), LeaseError> {
    match error {
        Some(ConnectError::Failed(ConnectFailure::Refused(report))) => {
            Err(LeaseError::Refused(report.with_severity(Severity::Fatal)))
        }
        Some(ConnectError::Closed) => Err(LeaseError::Unavailable(closed_report())),
        Some(ConnectError::Failed(ConnectFailure::Unavailable(_)) | ConnectError::NotWanted) | None => Ok(()),
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
