//! The life of a client between its greeting and its end: idle without a backend, busy with or for one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::context::{ClientContext, Snapshot};
use super::greeting::Greeted;
use crate::backend::ServerParameters;
use crate::config::{DrainMode, LimitsConfig, PoolConfig, PoolMode};
use crate::drain::{DrainSignal, Phase};
use crate::error;
use crate::metrics::{ClientGauge, ClientState, CloseReason};
use crate::net::{IdleState, Stream};
use crate::pool::{ClientCancel, Holder, Lease, LeaseError, Pool};
use crate::relay::{Aftermath, Exchange, Loss, Outcome, Parties, Rules};
use crate::virtual_session::VirtualSession;
use crate::virtual_session::reset::ResetPlan;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{Report, Severity};

/// How often the limits of a busy client are looked at, at most.
const LIMIT_TICK: Duration = Duration::from_millis(100);
/// Backends tried in a row for one request that none of them has seen a byte of.
const UNSEEN_RETRIES_MAX: u32 = 5;
/// How long last words may take to leave.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// One authenticated client.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
    ledger: VirtualSession,
    pool: Arc<Pool>,
    settings: Arc<PoolConfig>,
    neutral: Arc<ServerParameters>,
    holder: Arc<Holder>,
    _cancel: ClientCancel,
    context: Arc<ClientContext>,
    snapshot: Arc<Snapshot>,
    gauge: ClientGauge,
    drain: DrainSignal,
}

/// What follows a busy spell.
enum Then {
    /// Nothing is held and nothing waits.
    Idle,
    /// The client is gone, or was told to go.
    End,
}

/// Why a busy client was interrupted.
enum Interruption {
    Outcome(Outcome),
    /// The drain has come to a phase in which this client must go.
    Drain,
    /// The time to look at the limits.
    Tick,
}

impl Session {
    /// A session that was greeted.
    pub fn new(
        stream: Stream,
        greeted: Greeted,
        context: Arc<ClientContext>,
        snapshot: Arc<Snapshot>,
        gauge: ClientGauge,
        drain: DrainSignal,
    ) -> (Self, Option<Lease>) {
        let Greeted {
            pool,
            session,
            holder,
            cancel,
            neutral,
            dedicated,
            words: _,
        } = greeted;
        let settings = pool.settings();
        let session = Self {
            stream,
            ledger: session,
            pool,
            settings,
            neutral,
            holder,
            _cancel: cancel,
            context,
            snapshot,
            gauge,
            drain,
        };
        (session, dedicated)
    }

    /// Serves the client until it leaves. `early` is what it sent behind its login.
    pub async fn run(mut self, early: BytesMut, dedicated: Option<Lease>) {
        let mut first = Some((early, dedicated));
        loop {
            let (early, dedicated) = first.take().unwrap_or_default();
            if early.is_empty() && dedicated.is_none() && !self.wait_idle().await {
                return;
            }
            // Boxed, so that an idle client does not pay for what a busy one needs.
            match Box::pin(self.serve_busy(early, dedicated)).await {
                Then::Idle => {}
                Then::End => return,
            }
        }
    }

    /// Waits, without a buffer, until the client says something. False: the client is done for.
    async fn wait_idle(&mut self) -> bool {
        self.gauge.set(ClientState::Idle);
        let limit = self.snapshot.config.limits.client_idle_timeout;
        let leave_at = self.drain_phase_between_transactions();
        let timer = limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
        let last_words = {
            let mut drain = self.drain.clone();
            let draining = std::pin::pin!(drain.changed_to(leave_at));
            idle_race(&mut self.stream, draining, timer).await
        };
        match last_words {
            None => true,
            Some(report) => {
                self.say_last(&report).await;
                false
            }
        }
    }

    /// The drain's phase at which a client between transactions is sent away.
    fn drain_phase_between_transactions(&self) -> Phase {
        match self.snapshot.config.drain.mode {
            DrainMode::Sidecar => Phase::ClosingIdle,
            DrainMode::Server => Phase::Draining,
        }
    }

    async fn serve_busy(&mut self, early: BytesMut, dedicated: Option<Lease>) -> Then {
        let mut exchange = Exchange::default();
        exchange.preload(&early);
        if let Some(lease) = dedicated {
            exchange.attach(lease);
        }
        self.gauge.set(ClientState::Active);
        let rules = self.rules();
        let mut unseen_retries = 0;
        loop {
            let interruption = self.next_interruption(&mut exchange, &rules).await;
            let then = match interruption {
                Interruption::Tick => self.enforce_limits(&mut exchange).await,
                Interruption::Drain => self.leave(&mut exchange, &error::shutting_down()).await,
                Interruption::Outcome(outcome) => match outcome {
                    Outcome::NeedsBackend => self.acquire(&mut exchange, &rules).await,
                    Outcome::Settled => self.give_back(&mut exchange).await,
                    Outcome::Drained => Some(Then::Idle),
                    Outcome::ClientGone => self.clean_up(&mut exchange).await,
                    Outcome::BackendLost(loss) => {
                        unseen_retries += 1;
                        self.on_loss(&mut exchange, &rules, loss, unseen_retries).await
                    }
                    Outcome::PreludeFailed(report) => self.on_prelude_failure(&mut exchange, &rules, report).await,
                    Outcome::ClientViolation(report) => self.leave(&mut exchange, &report).await,
                    Outcome::TransactionRefused => self.leave(&mut exchange, &error::transactions_not_allowed()).await,
                },
            };
            if exchange.new_pins {
                self.announce_pin(&mut exchange);
            }
            if let Some(then) = then {
                self.observe(&mut exchange);
                return then;
            }
        }
    }

    fn rules(&self) -> Rules {
        let limits = &self.snapshot.config.limits;
        Rules {
            mode: self.settings.mode,
            statement_bytes: limits.statement_bytes,
            client_statement_bytes: limits.client_statement_bytes,
            backend_statement_bytes: self.settings.statement_cache_bytes,
            suspects: self.pool.knowledge().suspects(),
        }
    }

    async fn next_interruption(&mut self, exchange: &mut Exchange, rules: &Rules) -> Interruption {
        let has_limits = has_limits(&self.snapshot.config.limits);
        let leave_at = if exchange.is_between_transactions() {
            self.drain_phase_between_transactions()
        } else {
            Phase::ClosingAll
        };
        let mut drain = self.drain.clone();
        let parties = Parties {
            client: &mut self.stream,
            session: &mut self.ledger,
            rules,
            neutral: &self.neutral,
        };
        tokio::select! {
            biased;
            outcome = exchange.next(parties) => Interruption::Outcome(outcome),
            _ = drain.changed_to(leave_at) => Interruption::Drain,
            () = tokio::time::sleep(LIMIT_TICK), if has_limits => Interruption::Tick,
        }
    }

    // --- getting and giving back a backend ---

    async fn acquire(&mut self, exchange: &mut Exchange, rules: &Rules) -> Option<Then> {
        if let Some(lease) = self.pool.try_lease(&self.holder) {
            exchange.attach(lease);
            return None;
        }
        self.gauge.set(ClientState::Waiting);
        let mut drain = self.drain.clone();
        let leased = tokio::select! {
            biased;
            leased = self.pool.lease(&self.holder) => leased,
            () = client_left(&mut self.stream) => return Some(Then::End),
            _ = drain.changed_to(Phase::ClosingAll) => {
                return self.leave(exchange, &error::shutting_down()).await;
            }
        };
        self.gauge.set(ClientState::Active);
        match leased {
            Ok(lease) => exchange.attach(lease),
            Err(error) => self.refuse(exchange, rules, &error),
        }
        None
    }

    fn refuse(&mut self, exchange: &mut Exchange, rules: &Rules, error: &LeaseError) {
        let report = error.report().with_severity(Severity::Error);
        self.context.metrics.error_sent(report.sqlstate);
        let mut parties = Parties {
            client: &mut self.stream,
            session: &mut self.ledger,
            rules,
            neutral: &self.neutral,
        };
        exchange.refuse_next(&report, &mut parties);
    }

    async fn give_back(&mut self, exchange: &mut Exchange) -> Option<Then> {
        self.observe(exchange);
        let mut lease = exchange.detach()?;
        if std::mem::take(&mut exchange.catalog_changed) {
            let knowledge = self.pool.knowledge();
            knowledge.doubt_catalog();
            if let Err(error) = knowledge.read_catalog(&mut lease).await {
                tracing::info!(%error, "a backend was lost while the catalog was read");
                return None;
            }
        }
        lease.park();
        None
    }

    /// The client is gone: what it left running is ended, and what it left behind is cleaned.
    async fn clean_up(&mut self, exchange: &mut Exchange) -> Option<Then> {
        self.gauge.set(ClientState::Idle);
        let Some(mut lease) = exchange.detach() else {
            return Some(Then::End);
        };
        let plan = self.reset_plan(exchange);
        lease.transaction_status = exchange.backend_status();
        match exchange.owed() {
            _ if lease.is_dedicated() => lease.discard(CloseReason::SessionEnd),
            None => lease.discard(CloseReason::ClientGone),
            Some(owed) => {
                lease.read_buffer = exchange.hand_over_unread();
                if owed.ready == 0 && !owed.sync_missing && lease.read_buffer.is_empty() {
                    lease.release(plan).await;
                } else {
                    lease.release_after_client_loss(owed, plan).await;
                }
            }
        }
        Some(Then::End)
    }

    fn reset_plan(&self, exchange: &Exchange) -> ResetPlan {
        let plan = ResetPlan::for_pins(self.ledger.pins());
        let used_as_session = self.settings.mode == PoolMode::Session;
        match plan {
            // What was promised to the ledger and never confirmed is forgotten with everything else.
            ResetPlan::Nothing if exchange.has_unconfirmed_notes() || used_as_session => ResetPlan::DiscardAll,
            plan => plan,
        }
    }

    // --- when things break ---

    async fn on_loss(&mut self, exchange: &mut Exchange, rules: &Rules, loss: Loss, retries: u32) -> Option<Then> {
        if let Some(lease) = exchange.detach() {
            lease.discard(CloseReason::Broken);
        }
        let tied = !self.ledger.pins().is_empty() || self.settings.mode == PoolMode::Session;
        let mut parties = Parties {
            client: &mut self.stream,
            session: &mut self.ledger,
            rules,
            neutral: &self.neutral,
        };
        if loss.untouched && !tied && retries <= UNSEEN_RETRIES_MAX && exchange.rewind(&mut parties) {
            return None;
        }
        tracing::warn!(pool = %self.pool.key(), cause = %loss.cause, last_words = ?loss.last_words, "a client lost its backend");
        let report = error::backend_lost(loss.last_words, exchange.commit_at_risk());
        self.context.metrics.error_sent(report.sqlstate);
        if tied {
            return self.leave(exchange, &report.with_severity(Severity::Fatal)).await;
        }
        match exchange.tell_loss(&report, &mut parties) {
            Aftermath::GoesOn => None,
            Aftermath::Cut => Some(Then::End),
        }
    }

    async fn on_prelude_failure(&mut self, exchange: &mut Exchange, rules: &Rules, report: Report) -> Option<Then> {
        if let Some(lease) = exchange.detach() {
            lease.discard(CloseReason::NotClean);
        }
        tracing::warn!(pool = %self.pool.key(), sqlstate = %report.sqlstate, "a client's settings were refused; none of its statements was run");
        let report = report.with_severity(Severity::Error);
        self.context.metrics.error_sent(report.sqlstate);
        let mut parties = Parties {
            client: &mut self.stream,
            session: &mut self.ledger,
            rules,
            neutral: &self.neutral,
        };
        match exchange.tell_prelude_failure(&report, &mut parties) {
            Aftermath::GoesOn => None,
            Aftermath::Cut => Some(Then::End),
        }
    }

    /// Tells the client why it must go, if it can be told, and cleans its backend.
    async fn leave(&mut self, exchange: &mut Exchange, report: &Report) -> Option<Then> {
        let report = report.clone().with_severity(Severity::Fatal);
        self.context.metrics.error_sent(report.sqlstate);
        exchange.say(&report);
        let flushed = tokio::time::timeout(LAST_WORDS_TIMEOUT, exchange.flush(&mut self.stream)).await;
        if matches!(flushed, Ok(Ok(()))) {
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.stream.shutdown()).await;
        }
        self.clean_up(exchange).await
    }

    async fn say_last(&mut self, report: &Report) {
        self.context.metrics.error_sent(report.sqlstate);
        let mut exchange = Exchange::default();
        exchange.say(report);
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, async {
            exchange.flush(&mut self.stream).await?;
            self.stream.shutdown().await
        })
        .await;
    }

    // --- limits ---

    async fn enforce_limits(&mut self, exchange: &mut Exchange) -> Option<Then> {
        let limits = &self.snapshot.config.limits;
        let passed = |limit: Option<Duration>, since: Option<Instant>| matches!((limit, since), (Some(limit), Some(since)) if since.elapsed() >= limit);
        if exchange.owes_reply() && passed(limits.query_timeout, exchange.query_since) {
            return self.end_query(exchange).await;
        }
        if passed(limits.transaction_timeout, exchange.transaction_since) {
            return self.leave(exchange, &error::transaction_too_long()).await;
        }
        let idle_in_block = exchange.status() != TransactionStatus::Idle && !exchange.owes_reply();
        if idle_in_block && passed(limits.idle_transaction_timeout, exchange.answered_at) {
            return self.leave(exchange, &error::idle_in_transaction_too_long()).await;
        }
        if exchange.is_between_transactions() && passed(limits.client_idle_timeout, exchange.answered_at) {
            return self.leave(exchange, &error::idle_too_long()).await;
        }
        if passed(limits.client_write_timeout, exchange.stalled_since()) {
            tracing::info!(client = %self.stream.peer(), "a client left its reply unread for limits.client_write_timeout");
            return self.clean_up(exchange).await;
        }
        None
    }

    /// The query ran for longer than `limits.query_timeout`: it is cancelled, and the client keeps its connection. One
    /// that doesn't end then is left to its end with the connection.
    async fn end_query(&mut self, exchange: &mut Exchange) -> Option<Then> {
        let limit = self.settings.cancel_timeout;
        let first = exchange.cancel_sent_at.is_none();
        if first {
            exchange.cancel_sent_at = Some(Instant::now());
            if let Some(lease) = exchange.lease() {
                let target = lease.cancel_target().clone();
                let deadline = tokio::time::Instant::now() + limit;
                tokio::spawn(async move { target.send(deadline).await });
            }
            return None;
        }
        if exchange.cancel_sent_at.is_some_and(|since| since.elapsed() < limit) {
            return None;
        }
        self.leave(exchange, &error::query_not_cancelled()).await
    }

    // --- figures ---

    fn observe(&self, exchange: &mut Exchange) {
        exchange.tally.flush_into(&self.context.metrics);
        let finished = std::mem::take(&mut exchange.finished);
        if let Some(took) = finished.query {
            self.pool.metrics().observe_query(took);
        }
        if let Some(took) = finished.transaction {
            self.pool.metrics().observe_transaction(took);
        }
    }

    fn announce_pin(&self, exchange: &mut Exchange) {
        exchange.new_pins = false;
        let Some(reason) = self.ledger.pins().iter().next() else {
            return;
        };
        self.context.metrics.pinned(reason.label());
        tracing::info!(pool = %self.pool.key(), client = %self.stream.peer(), reason = reason.label(), "a client is pinned to its backend");
        if let Some(lease) = exchange.lease() {
            lease.set_pin(Some(reason));
        }
    }
}

/// Waits for the first of: the client's bytes (`None`), the drain, the idle limit (their last words).
async fn idle_race(
    stream: &mut Stream,
    mut draining: Pin<&mut impl Future<Output = Phase>>,
    mut timer: Option<Pin<Box<tokio::time::Sleep>>>,
) -> Option<Report> {
    std::future::poll_fn(|cx| {
        if stream.poll_read_ready(cx).is_ready() {
            return Poll::Ready(None);
        }
        if draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(error::shutting_down()));
        }
        match timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Some(error::idle_too_long())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Ends when the client has closed its side; never while it may only have sent more.
async fn client_left(stream: &mut Stream) {
    loop {
        if stream.read_ready().await.is_err() {
            return;
        }
        match stream.try_peek_idle() {
            IdleState::Closed => return,
            IdleState::HasData => std::future::pending().await,
            IdleState::Quiet => {}
        }
    }
}

const fn has_limits(limits: &LimitsConfig) -> bool {
    limits.query_timeout.is_some()
        || limits.transaction_timeout.is_some()
        || limits.idle_transaction_timeout.is_some()
        || limits.client_idle_timeout.is_some()
        || limits.client_write_timeout.is_some()
}
