//! The life of a client between its greeting and its end: idle without a backend, busy with or for one.
//!
//! [`giving_back`] is what a backend is asked (by [`mod@audit`] too), and how it is cleaned, when the client lets go of it;
//! [`pinned`] begins and ends pins, when [`pin_watch`] says that it is time to look, but for those of [`sequence_hold`];
//! [`answer_watch`] bounds questions of ours.

mod alarm;
mod answer_watch;
mod audit;
mod first_catalog;
mod giving_back;
mod pin_watch;
mod pinned;
mod sequence_hold;

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::context::{ClientContext, Snapshot};
use super::greeting::Greeted;
use super::warm::WarmPlace;
use crate::backend::ServerParameters;
use crate::config::{Audit, DrainMode, LimitsConfig, PoolConfig, PoolMode};
use crate::drain::{DrainSignal, DrainWatch, Phase};
use crate::error;
use crate::metrics::{ClientGauge, ClientState, CloseReason};
use crate::net::Stream;
use crate::pool::{ClientCancel, Holder, Lease, LeaseError, Pool, Subscription, Wish};
use crate::relay::{Aftermath, Exchange, Loss, Outcome, Parties, Rules};
use crate::virtual_session::VirtualSession;
use crate::virtual_session::pins::PinSet;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{Report, Severity};
use answer_watch::AnswerWatch;
use audit::AuditTurn;
use pin_watch::PinWatch;
use sequence_hold::SequenceHold;

/// How often the limits of a busy client are looked at, at most.
const LIMIT_TICK: Duration = Duration::from_millis(100);
/// Backends tried in a row for one request that none of them has seen a byte of.
const UNSEEN_RETRIES_MAX: u32 = 5;
/// How long last words may take to leave.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests after which a client is taken for one that comes back every moment.
const SPELLS_TO_WARM: u32 = 8;

/// One authenticated client.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
    ledger: VirtualSession,
    pool: Arc<Pool>,
    settings: Arc<PoolConfig>,
    /// The reloads that `snapshot` and `settings` know of.
    reloads: u64,
    /// The relay's share of the configuration, made anew when that changes.
    rules: Arc<Rules>,
    neutral: Arc<ServerParameters>,
    holder: Arc<Holder>,
    _cancel: ClientCancel,
    context: Arc<ClientContext>,
    snapshot: Arc<Snapshot>,
    gauge: ClientGauge,
    drain: DrainWatch,
    /// The pins that the metrics and the log know of.
    announced: PinSet,
    /// When to ask whether they still hold.
    pin_watch: PinWatch,
    /// Since when it keeps its backend for the value of a sequence.
    sequence_hold: SequenceHold,
    /// Until when its backend must answer a question of ours.
    answer_watch: AnswerWatch,
    /// When a backend that it gives back is asked what it holds.
    audit_turn: AuditTurn,
    /// Where it hears notifications without a backend of its own, if it listens.
    subscription: Option<Box<Subscription>>,
    /// Leave to keep its buffers between requests.
    warm: Option<WarmPlace>,
    /// Its requests since it last had or gave back that leave.
    spells: u32,
    /// It came before the catalog was read, and has not waited for that.
    awaits_catalog: bool,
}

/// What a client begins with, where that is more than silence.
#[derive(Debug)]
pub struct Beginning {
    /// What it sent behind its login.
    early: BytesMut,
    /// The backend that it does not share.
    dedicated: Option<Lease>,
}

impl Beginning {
    /// `None` for a client that is idle. The buffer of its login is given back then.
    pub fn of(early: BytesMut, dedicated: Option<Lease>) -> Option<Box<Self>> {
        let is_idle = early.is_empty() && dedicated.is_none();
        (!is_idle).then(|| Box::new(Self { early, dedicated }))
    }
}

/// What the relay works with: these fields alone are borrowed, so that the others can be used beside it.
macro_rules! parties {
    ($session:expr, $rules:expr) => {
        Parties {
            client: &mut $session.stream,
            session: &mut $session.ledger,
            rules: $rules,
            neutral: &mut $session.neutral,
            subscription: &mut $session.subscription,
        }
    };
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
    /// The client is pinned and has been still: its pins may be over.
    Still,
    /// The time to look at a pin that yields to others.
    Yield,
    /// A question of ours was not answered in time.
    Unanswered,
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
        // Those that came during the login are caught up with: no number of reloads is the last one.
        let reloads = u64::MAX;
        let settings = pool.settings();
        let awaits_catalog = !pool.knows_catalog();
        let rules = Arc::new(rules(&context, &snapshot, &settings, &pool));
        let session = Self {
            stream,
            ledger: session,
            pool,
            settings,
            reloads,
            rules,
            neutral,
            holder,
            _cancel: cancel,
            context,
            snapshot,
            gauge,
            drain: DrainWatch::new(drain),
            announced: PinSet::EMPTY,
            pin_watch: PinWatch::default(),
            sequence_hold: SequenceHold::default(),
            answer_watch: AnswerWatch::default(),
            audit_turn: AuditTurn::default(),
            subscription: None,
            warm: None,
            spells: 0,
            awaits_catalog,
        };
        (session, dedicated)
    }

    /// Serves the client until it leaves.
    pub async fn run(&mut self, beginning: Option<Box<Beginning>>) {
        // Boxed, so that an idle client does not pay for what a busy one needs.
        if let Some(beginning) = beginning
            && let Then::End = Box::pin(self.serve_busy(beginning.early, beginning.dedicated)).await
        {
            return;
        }
        while self.wait_idle().await {
            if let Then::End = Box::pin(self.serve_busy(BytesMut::new(), None)).await {
                return;
            }
        }
    }

    /// Waits, without a buffer, until the client says something, or is to be told something. False: the client is done for.
    async fn wait_idle(&mut self) -> bool {
        self.gauge.set(ClientState::Idle);
        let limit = self.snapshot.config.limits.client_idle_timeout;
        let leave_at = self.drain_phase_between_transactions();
        let mut timer = limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
        let last_words = std::future::poll_fn(|cx| {
            if self.stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(None);
            }
            if self
                .subscription
                .as_ref()
                .is_some_and(|subscription| subscription.has_mail(cx))
            {
                return Poll::Ready(None);
            }
            if self.drain.poll_reached(cx, leave_at).is_ready() {
                return Poll::Ready(Some(error::shutting_down()));
            }
            match timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(Some(error::idle_too_long())),
                _ => Poll::Pending,
            }
        })
        .await;
        match last_words {
            None => true,
            Some(report) => {
                Box::pin(self.say_last(&report)).await;
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

    /// A reload's limits and pool settings hold for a client from its next request on.
    fn catch_up(&mut self) {
        let reloads = self.context.reloads();
        if self.reloads != reloads {
            self.reloads = reloads;
            self.snapshot = self.context.snapshot();
            self.settings = self.pool.settings();
            self.rules = Arc::new(rules(&self.context, &self.snapshot, &self.settings, &self.pool));
        }
    }

    async fn serve_busy(&mut self, early: BytesMut, dedicated: Option<Lease>) -> Then {
        self.catch_up();
        let mut exchange = self.context.take_exchange();
        exchange.preload(&early);
        if let Some(lease) = dedicated {
            exchange.attach(lease);
            self.announce_pins(&mut exchange);
        }
        self.gauge.set(ClientState::Active);
        let mut rules = Arc::clone(&self.rules);
        let mut unseen_retries = 0;
        loop {
            let then = match self.next_interruption(&mut exchange, &rules).await {
                Interruption::Outcome(Outcome::Settled) if self.parts_without_a_word(&exchange) => {
                    self.observe(&mut exchange);
                    if let Some(lease) = exchange.detach() {
                        lease.park();
                    }
                    if exchange.is_drained() {
                        if !self.wait_warm(&mut exchange).await {
                            self.context.give_back_exchange(exchange);
                            return Then::Idle;
                        }
                        self.catch_up();
                        rules.clone_from(&self.rules);
                        unseen_retries = 0;
                    }
                    None
                }
                Interruption::Outcome(Outcome::Drained) => Some(Then::Idle),
                // Boxed: what is rare is no part of what every transaction allocates.
                rare => Box::pin(self.on_rare(rare, &mut exchange, &rules, &mut unseen_retries)).await,
            };
            if let Some(then) = then {
                self.observe(&mut exchange);
                self.context.give_back_exchange(exchange);
                return then;
            }
        }
    }

    /// Waits for the client's next request with the buffers for it in hand, where the client comes back every moment. False:
    /// the buffers are given back first.
    async fn wait_warm(&mut self, exchange: &mut Exchange) -> bool {
        let Some(place) = self.warm_place() else {
            return false;
        };
        exchange.recycle();
        self.gauge.set(ClientState::Idle);
        let leave_at = self.drain_phase_between_transactions();
        let has_spoken = std::future::poll_fn(|cx| {
            if let Poll::Ready(read) = exchange.poll_client(cx, &mut self.stream) {
                // Its end shows again to whoever asks next.
                return Poll::Ready(matches!(read, Ok(1..)));
            }
            if self.drain.poll_reached(cx, leave_at).is_ready() {
                return Poll::Ready(false);
            }
            place.poll_over(cx).map(|()| false)
        })
        .await;
        if has_spoken {
            place.touch();
            self.gauge.set(ClientState::Active);
            self.warm = Some(place);
        }
        has_spoken
    }

    /// Leave to wait so: not for who is waited for with a limit, or with its notifications.
    fn warm_place(&mut self) -> Option<WarmPlace> {
        let limits = &self.snapshot.config.limits;
        if has_limits(limits) || self.subscription.is_some() {
            return None;
        }
        if self.warm.is_some() {
            return self.warm.take();
        }
        self.spells = (self.spells + 1) % SPELLS_TO_WARM;
        match self.spells {
            0 => self.context.warm.enter(limits.warm_clients),
            _ => None,
        }
    }

    /// Nothing is to be asked of the backend, told of a pin, or ended with the transaction.
    fn parts_without_a_word(&self, exchange: &Exchange) -> bool {
        !exchange.catalog_changed
            && !exchange.read_only_refused
            && exchange.unexplained.is_empty()
            && self.announced.is_empty()
            && !exchange.backend_listens()
            && self.settings.audit == Audit::Off
            && self.drain.phase() == Phase::Serving
    }

    async fn on_rare(
        &mut self,
        interruption: Interruption,
        exchange: &mut Exchange,
        rules: &Rules,
        unseen_retries: &mut u32,
    ) -> Option<Then> {
        match interruption {
            Interruption::Tick => self.enforce_limits(exchange).await,
            Interruption::Drain => self.on_drain(exchange).await,
            Interruption::Still => self.question_pins(exchange, rules).await,
            Interruption::Unanswered => self.on_unanswered(exchange, rules).await,
            Interruption::Yield => self.look_at_sequence_pin(exchange).await,
            Interruption::Outcome(outcome) => match outcome {
                Outcome::Boundary => self.leave(exchange, &error::shutting_down()).await,
                Outcome::Noted => {
                    self.announce_pins(exchange);
                    self.watch_pins(exchange);
                    self.doubt_catalog(exchange);
                    self.observe(exchange);
                    self.look_at_sequence_pin(exchange).await
                }
                Outcome::NeedsBackend => self.acquire(exchange, rules).await,
                Outcome::Settled => self.give_back_in_doubt(exchange).await,
                Outcome::Drained => Some(Then::Idle),
                Outcome::ClientGone => self.clean_up(exchange).await,
                Outcome::BackendLost(loss) => {
                    *unseen_retries += 1;
                    self.on_loss(exchange, rules, *loss, *unseen_retries).await
                }
                Outcome::PreludeFailed(report) => self.on_prelude_failure(exchange, rules, *report).await,
                Outcome::ClientViolation(report) => self.leave(exchange, &report).await,
                Outcome::TransactionRefused => self.leave(exchange, &error::transactions_not_allowed()).await,
                Outcome::Unheard(report) => self.leave(exchange, &report).await,
            },
        }
    }

    async fn next_interruption(&mut self, exchange: &mut Exchange, rules: &Rules) -> Interruption {
        let leave_at = if exchange.ends_at_boundary {
            Phase::ClosingAll
        } else {
            self.drain_phase_between_transactions()
        };
        let has_limits = has_limits(&self.snapshot.config.limits);
        let mut tick = has_limits.then(|| Box::pin(tokio::time::sleep(LIMIT_TICK)));
        let mut parties = parties!(self, rules);
        std::future::poll_fn(|cx| {
            let mut polled = exchange.poll(cx, &mut parties);
            // Nearly always there is one, and the exchange goes on.
            while let Poll::Ready(Outcome::NeedsBackend) = polled
                && !self.awaits_catalog
                && let Some(lease) = self.pool.try_lease(&self.holder, Wish::SuitedTo(parties.session))
            {
                // One that will not do holds traces of a custom setting that this client never named.
                match parties.session.accepts(&lease.state) {
                    true => exchange.attach(lease),
                    false => lease.discard(CloseReason::NotClean),
                }
                polled = exchange.poll(cx, &mut parties);
            }
            if let Poll::Ready(outcome) = polled {
                return Poll::Ready(Interruption::Outcome(outcome));
            }
            if self.drain.poll_reached(cx, leave_at).is_ready() {
                return Poll::Ready(Interruption::Drain);
            }
            if self.pin_watch.poll_due(cx).is_ready() {
                return Poll::Ready(Interruption::Still);
            }
            let asked_at = exchange.unanswered_since(parties.session);
            let limit = self.settings.reset_timeout;
            if self.answer_watch.poll_overdue(cx, asked_at, limit).is_ready() {
                return Poll::Ready(Interruption::Unanswered);
            }
            if self.sequence_hold.poll_due(cx).is_ready() {
                return Poll::Ready(Interruption::Yield);
            }
            match tick.as_mut().map(|tick| tick.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(Interruption::Tick),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// The drain has come to the phase in which clients between transactions go. One inside its transaction goes at the
    /// end of that, or in the last phase.
    async fn on_drain(&mut self, exchange: &mut Exchange) -> Option<Then> {
        if self.drain.phase() == Phase::ClosingAll || exchange.is_between_transactions() {
            return self.leave(exchange, &error::shutting_down()).await;
        }
        exchange.ends_at_boundary = true;
        None
    }

    // --- getting a backend ---

    async fn acquire(&mut self, exchange: &mut Exchange, rules: &Rules) -> Option<Then> {
        if self.awaits_catalog {
            let is_plain = exchange.is_next_plain(&parties!(self, rules));
            self.wait_for_catalog(is_plain).await;
        }
        let mut has_waited = false;
        loop {
            self.gauge.set(ClientState::Waiting);
            let leased = tokio::select! {
                biased;
                leased = self.pool.lease(&self.holder, Wish::SuitedTo(&self.ledger)) => leased,
                () = self.stream.left() => return Some(Then::End),
                () = self.drain.reached(Phase::ClosingAll) => {
                    return self.leave(exchange, &error::shutting_down()).await;
                }
            };
            self.gauge.set(ClientState::Active);
            match leased {
                Ok(lease) if self.ledger.accepts(&lease.state) => {
                    exchange.attach(lease);
                    return None;
                }
                // Once per backend; meanwhile one may come back that will do.
                Ok(lease) if !has_waited => {
                    has_waited = self.wait_to_replace(lease).await;
                }
                Ok(lease) => {
                    lease.discard(CloseReason::NotClean);
                    has_waited = false;
                }
                // Its pool will not come back: only a new connection finds another.
                Err(LeaseError::Unavailable(report)) => return self.leave(exchange, &report).await,
                Err(error) => {
                    self.refuse(exchange, rules, &error);
                    return None;
                }
            }
        }
    }

    /// Closes a backend that will not do, if it is time for that. Else gives it back and waits for the time: true.
    async fn wait_to_replace(&mut self, lease: Lease) -> bool {
        let wait = self.pool.replacement_wait();
        if wait.is_zero() {
            lease.discard(CloseReason::NotClean);
            return false;
        }
        lease.park();
        self.gauge.set(ClientState::Waiting);
        // Who leaves, or must, is seen to behind it.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.stream.left() => {}
            () = self.drain.reached(Phase::ClosingAll) => {}
        }
        true
    }

    fn refuse(&mut self, exchange: &mut Exchange, rules: &Rules, error: &LeaseError) {
        let report = error.report().with_severity(Severity::Error);
        self.context.metrics.error_sent(report.sqlstate);
        let mut parties = parties!(self, rules);
        exchange.refuse_next(&report, &mut parties);
    }

    // --- when things break ---

    async fn on_loss(&mut self, exchange: &mut Exchange, rules: &Rules, loss: Loss, retries: u32) -> Option<Then> {
        let dedicated = exchange.lease().is_some_and(|lease| lease.is_dedicated());
        match exchange.detach() {
            Some(lease) if loss.runs_on => lease.abandon(CloseReason::Broken),
            Some(lease) => lease.discard(CloseReason::Broken),
            None => {}
        }
        // What it never saw a byte of left nothing on it.
        let is_listen_at_risk = self.ledger.listening().is_some_and(|it| it.is_pending()) && exchange.commit_at_risk();
        let tied = dedicated
            || is_listen_at_risk
            || !loss.untouched && (self.ledger.is_bound() || self.settings.mode == PoolMode::Session);
        let mut parties = parties!(self, rules);
        if loss.untouched && !tied && retries <= UNSEEN_RETRIES_MAX && exchange.rewind(&mut parties) {
            self.lose_sequence();
            return None;
        }
        tracing::warn!(pool = %self.pool.key(), cause = %loss.cause, last_words = ?loss.last_words, "a client lost its backend");
        let report = error::backend_lost(loss.last_words, exchange.commit_at_risk());
        self.context.metrics.error_sent(report.sqlstate);
        if tied {
            return self.leave(exchange, &report.with_severity(Severity::Fatal)).await;
        }
        let aftermath = exchange.tell_loss(&report, &mut parties);
        self.lose_sequence();
        match aftermath {
            Aftermath::GoesOn => None,
            Aftermath::Cut => Some(Then::End),
        }
    }

    async fn on_prelude_failure(&mut self, exchange: &mut Exchange, rules: &Rules, report: Report) -> Option<Then> {
        let dedicated = exchange.lease().is_some_and(|lease| lease.is_dedicated());
        if let Some(lease) = exchange.detach() {
            lease.discard(CloseReason::NotClean);
        }
        // What PostgreSQL has accepted, it may accept no longer.
        self.ledger.answers().forget();
        tracing::warn!(pool = %self.pool.key(), sqlstate = %report.sqlstate, "a client's settings, or its BEGIN, were refused; none of its statements was run");
        let mut parties = parties!(self, rules);
        exchange.forget_behind_prelude(&mut parties);
        if dedicated || !parties.session.pins().counted().is_empty() {
            // What tied it is gone with the backend, as a connection of its own would be.
            return self.leave(exchange, &report).await;
        }
        if exchange.take_back_instead(&mut parties) {
            return None;
        }
        let report = report.with_severity(Severity::Error);
        self.context.metrics.error_sent(report.sqlstate);
        let aftermath = exchange.tell_prelude_failure(&report, &mut parties);
        self.lose_sequence();
        match aftermath {
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
                // Announced here and now: the query may end before the task runs, and its backend must not go then.
                let in_flight = target.announce();
                tokio::spawn(async move {
                    target.send(deadline).await;
                    drop(in_flight);
                });
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

    /// What the catalog says is about to change: nothing of it is trusted until it is read again.
    fn doubt_catalog(&self, exchange: &mut Exchange) {
        if !std::mem::take(&mut exchange.catalog_touched) {
            return;
        }
        self.pool.knowledge().doubt_catalog();
        let kept = self.settings.mode == PoolMode::Session || !self.ledger.pins().is_empty();
        if kept && exchange.is_settled() {
            // Its own backend won't come back for this soon.
            exchange.catalog_changed = false;
            self.pool.begin_to_know_catalog();
        }
    }
}

fn rules(context: &ClientContext, snapshot: &Snapshot, settings: &PoolConfig, pool: &Arc<Pool>) -> Rules {
    let limits = &snapshot.config.limits;
    Rules {
        mode: settings.mode,
        max_pinned: settings.max_pinned.filter(|limit| *limit < settings.max_size),
        statement_bytes: limits.statement_bytes,
        client_statement_bytes: limits.client_statement_bytes,
        backend_statement_bytes: settings.statement_cache_bytes,
        client_channels: limits.client_channels,
        client_notification_bytes: limits.client_notification_bytes,
        defers_begin: settings.defer_begin && settings.mode == PoolMode::Transaction,
        setting_answers: usize::try_from(settings.setting_answers).unwrap_or(usize::MAX),
        pool: pool.clone(),
        role_changes: context.auth_query.role_changes().clone(),
    }
}

const fn has_limits(limits: &LimitsConfig) -> bool {
    limits.query_timeout.is_some()
        || limits.transaction_timeout.is_some()
        || limits.idle_transaction_timeout.is_some()
        || limits.client_idle_timeout.is_some()
        || limits.client_write_timeout.is_some()
}
