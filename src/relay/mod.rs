//! Frames between a client and its lease, until the pipeline says that the backend may be given back.
//!
//! One task owns both sockets: no lock, no channel. [`flow`] holds the bytes of one direction. [`to_backend`] walks over
//! the client's messages, with the rules of [`simple_query`] and [`extended_query`], after the [`preparation`] that each
//! needs, unless [`pin_quota`] refuses it; [`to_client`] has the rules for PostgreSQL's. [`turns`] polls both directions: it tries first and waits
//! after, so that a transaction costs two receives and two sends. [`plain_group`] and [`plain_turn`] are the short way
//! of those that need none of this, which nearly all are. [`deferred_begin`] is a BEGIN that is sent later, [`listening`] is
//! LISTEN, and [`telling`] what the session says through it.

mod deferred_begin;
mod extended_query;
pub mod flow;
mod ledger_answers;
mod listening;
mod lost_transaction;
mod own_names;
mod own_statements;
mod pin_quota;
mod plain_group;
mod plain_turn;
mod preparation;
mod role_changes;
mod simple_query;
mod stale_plan;
mod telling;
mod to_backend;
mod to_client;
mod turns;
mod unreported;

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::backend::{Owed, ServerParameters};
use crate::config::PoolMode;
use crate::metrics::SessionTally;
use crate::net::Stream;
use crate::pool::{Lease, Pool, Subscription, Vacancy};
use crate::protocol::pipeline::{Fate, Pipeline, Request};
use crate::virtual_session::known_texts::KnownTexts;
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::statement_effects::{Effects, classify};
use crate::virtual_session::suspects::Suspects;
use crate::virtual_session::{Checkpoint, Note, TakenBack, VirtualSession};
use crate::wire::Report;
use crate::wire::backend_message::TransactionStatus;
use flow::Flow;
pub use role_changes::RoleChanges;

/// Bounds and mode that the relay works under; a snapshot of the configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    /// When the backend is given back.
    pub mode: PoolMode,
    /// Backends of the pool that clients may keep; `None` where there is no statement to refuse for it.
    pub max_pinned: Option<u32>,
    /// The longest text that is read for its effects.
    pub statement_bytes: usize,
    /// What one client's prepared statements may weigh.
    pub client_statement_bytes: usize,
    /// What one backend's prepared statements may weigh.
    pub backend_statement_bytes: usize,
    /// Channels that one client may hear without a backend of its own.
    pub client_channels: usize,
    /// Notifications that may wait for one client.
    pub client_notification_bytes: usize,
    /// Accepted values of settings that the pool remembers; 0 where nothing is answered.
    pub setting_answers: usize,
    /// A BEGIN is answered at once, and sent together with what follows it.
    pub defers_begin: bool,
    /// Knows at each moment what the catalog says of routines and triggers.
    pub pool: Arc<Pool>,
    /// Who remembers passwords looks here.
    pub role_changes: Arc<RoleChanges>,
}

/// What the relay works with besides its own buffers.
#[derive(Debug)]
pub struct Parties<'a> {
    /// The client's socket.
    pub client: &'a mut Stream,
    /// The client's ledger.
    pub session: &'a mut VirtualSession,
    /// Bounds and mode.
    pub rules: &'a Rules,
    /// What a backend of the pool reports by itself, as far as the client was told.
    pub neutral: &'a mut Arc<ServerParameters>,
    /// Where it hears notifications without a backend of its own, if it listens.
    pub subscription: &'a mut Option<Box<Subscription>>,
}

/// Why the relay stopped.
#[derive(Debug)]
pub enum Outcome {
    /// The client's next message needs a backend, and there is none.
    NeedsBackend,
    /// The backend can be given back.
    Settled,
    /// Between transactions, with the backend kept: the drain sends such clients away.
    Boundary,
    /// Something must be told on: [`Exchange::new_pins`], [`Exchange::catalog_touched`], or figures of a client that
    /// keeps its backend.
    Noted,
    /// Nothing waits and no backend is held: the exchange can be dropped.
    Drained,
    /// The client has left: by Terminate, at the end of its stream, or by an error of its socket.
    ClientGone,
    /// The backend is gone, or can't be trusted any more.
    BackendLost(Box<Loss>),
    /// A message of ours ahead of the client's failed; nothing of the client's was executed.
    PreludeFailed(Box<Report>),
    /// The client broke the protocol.
    ClientViolation(Box<Report>),
    /// Pool mode `statement` met a transaction block.
    TransactionRefused,
    /// The client listens, and can't be told of every notification.
    Unheard(Box<Report>),
}

/// How a backend was lost.
#[derive(Debug)]
pub struct Loss {
    /// PostgreSQL's own last words, if it said any.
    pub last_words: Option<Report>,
    /// For the log: what happened on the socket or in the protocol.
    pub cause: String,
    /// It broke the protocol, and may still run what it was sent.
    pub runs_on: bool,
    /// Not one byte of the client's request was given to the kernel: it can be sent to another backend, unseen.
    pub untouched: bool,
}

/// What remains of a client's conversation when its backend was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// The client was told and goes on.
    GoesOn,
    /// A reply was cut inside a message: nothing well-formed can be said any more.
    Cut,
}

/// What is on its way between one client and one backend.
#[derive(Debug, Default)]
pub struct Exchange {
    lease: Option<Lease>,
    /// Something else than plain groups has passed since the exchange was new, so that its other fields may say anything.
    is_unusual: bool,
    up: Flow,
    down: Flow,
    pipeline: Pipeline<Note>,
    /// Texts of Parse messages, this client's and of those before it.
    known_texts: KnownTexts,
    /// A statement is under way whose commit may have taken effect when the backend dies.
    commit_at_risk: bool,
    /// A statement is under way that ends the transaction block, this way or the other.
    ends_block: bool,
    /// A RESET of startup settings is under way: before the next statement they are made again.
    restore_due: bool,
    /// The same for a RESET that is bound and not executed yet.
    restore_bound: bool,
    /// What is awaited was asked for with a Flush.
    flushed: bool,
    prelude_owed: bool,
    /// What the Query takes back that was sent behind the prelude that is owed, if it is one that PostgreSQL can't refuse.
    behind_prelude: Option<TakenBack>,
    /// What the ledger was before the prelude that is owed.
    before_prelude: Option<Checkpoint>,
    /// A DISCARD ALL is under way, or what SQL says of statements' names: what a backend holds of statements is known when
    /// it is answered.
    forgetting: bool,
    /// A DISCARD ALL is under way: it ends what tied the backend before it, and nothing that comes behind it.
    discarding: bool,
    unsure: Unsure,
    /// What was said to the backend ahead of a Query that depends on it.
    ahead: own_names::AheadOfQuery,
    /// Portals whose Execute has to do with names of statements.
    named_portals: own_names::NamedPortals,
    /// An error or a ROLLBACK was seen in the transaction at hand.
    undone: bool,
    /// A RESET, or what includes one, has run in the transaction at hand.
    reset_ran: bool,
    /// It has been committed since.
    reset_kept: bool,
    /// A text is under way that holds a RESET of startup settings, and nothing that undoes it.
    reset_stands: bool,
    /// Whether the group at hand can begin again when PostgreSQL calls its first statement stale.
    second_try: stale_plan::SecondTry,
    /// The last portal that was bound to a statement whose rows the client was not told of yet.
    untold_portal: Option<stale_plan::UntoldPortal>,
    /// PostgreSQL's FATAL, kept to be told as an error.
    last_words: Option<Report>,
    /// The client was tied to its backend for one reason more.
    pub new_pins: bool,
    /// The fingerprint of the statement that did so.
    pinned_by: Option<String>,
    /// A statement was refused because it would have pinned, for this reason, and nobody was told yet.
    pub refused_pin: Option<PinReason>,
    /// A statement has passed that may change what the catalog says of routines and triggers.
    pub catalog_changed: bool,
    /// The same, and nobody was told yet.
    pub catalog_touched: bool,
    /// A statement has passed that may change roles, and nobody was told yet.
    pub roles_changed: bool,
    /// PostgreSQL refused to write (25006): a primary may have become a standby.
    pub read_only_refused: bool,
    /// Settings that were reported while nothing of the client's should have changed them. They are taken for its own, until
    /// PostgreSQL is asked where they come from.
    pub unexplained: Vec<Box<str>>,
    /// The drain waits for the end of the client's transaction: [`Outcome::Boundary`] is told there.
    pub ends_at_boundary: bool,
    /// What the ledger was before the first statement for this lease that changed it.
    before_effects: Option<Checkpoint>,
    /// The database that the statement under way wants for itself.
    vacancy: Option<Vacancy>,
    /// A warning that PostgreSQL says only when it is about to end the session.
    parting_warning: Option<Report>,
    /// Bytes of the lease's exchange that the kernel took.
    sent_to_backend: u64,
    /// The transaction block that the client was in died with its backend: it sees status `E` until it ends it.
    lost: Option<lost_transaction::LostTransaction>,
    /// A BEGIN that the client was answered, and PostgreSQL has not executed yet.
    deferred: Option<Box<deferred_begin::DeferredBegin>>,
    /// A SET of which PostgreSQL's word is to be remembered.
    trial: Option<Box<ledger_answers::Trial>>,
    /// What is under way of its listening.
    listens: listening::ListenProgress,
    /// What was counted since the last release.
    pub tally: SessionTally,
    /// When the metrics were last told of it, or when the lease was first waited for, in the pool's coarse milliseconds.
    tallied_at: Option<u64>,
    /// When the request at hand was sent; `None` while nothing is owed.
    pub query_since: Option<Instant>,
    /// When the transaction at hand began.
    pub transaction_since: Option<Instant>,
    /// When the last reply was complete: since then the client has been the one to speak.
    pub answered_at: Option<Instant>,
    /// When a cancel was sent for the query at hand because it ran too long.
    pub cancel_sent_at: Option<Instant>,
    stalled_since: Option<Instant>,
    /// When PostgreSQL was last asked what the client's settings have become.
    asked_at: Option<Instant>,
    /// PostgreSQL was asked for the columns of what SQL prepared.
    asks_of_columns: bool,
    /// Durations of finished queries and transactions, in seconds, to be observed at release.
    pub finished: Finished,
}

/// What the histograms are fed at release.
#[derive(Debug, Default)]
pub struct Finished {
    /// The last query's duration.
    pub query: Option<std::time::Duration>,
    /// The transaction's duration.
    pub transaction: Option<std::time::Duration>,
}

/// Requests under way whose success decides what names stand for and what a backend holds.
#[derive(Debug, Default)]
struct Unsure {
    names: Undecided,
    unnamed: Undecided,
}

#[derive(Debug, Default)]
struct Undecided {
    /// In the group that the client is in: an error there drops them with whatever depends on them.
    here: usize,
    /// In groups before it: they may be dropped while what depends on them is not.
    before: usize,
}

impl Undecided {
    fn end(&mut self) {
        match self.before {
            0 => self.here = self.here.saturating_sub(1),
            _ => self.before -= 1,
        }
    }
}

impl Unsure {
    fn of(&mut self, note: &Note) -> Option<&mut Undecided> {
        match note {
            Note::Prepared(_)
            | Note::Injected(_)
            | Note::Evicted(_)
            | Note::Closed(_)
            | Note::OwnName(_)
            | Note::Reread(..) => Some(&mut self.names),
            Note::ChangedUnnamed(_) | Note::Unnamed => Some(&mut self.unnamed),
            Note::None
            | Note::Reports(_)
            | Note::SequencesForgotten
            | Note::Bound(_)
            | Note::Described(_)
            | Note::Names(_)
            | Note::Asked(_) => None,
        }
    }

    fn begin(&mut self, note: &Note) {
        if let Some(undecided) = self.of(note) {
            undecided.here += 1;
        }
    }

    fn next_group(&mut self) {
        for undecided in [&mut self.names, &mut self.unnamed] {
            undecided.before += std::mem::take(&mut undecided.here);
        }
    }

    fn end(&mut self, note: &Note) {
        if let Some(undecided) = self.of(note) {
            undecided.end();
        }
    }
}

/// Makes each field as new: the first few keep their memory, and the next what they hold.
macro_rules! recycle {
    ($exchange:expr; $($kept:ident)*; $($unchanged:ident)*; $($renewed:ident)*) => {
        let Self { $($kept,)* $($unchanged: _,)* $($renewed,)* } = $exchange;
        $($kept.recycle();)*
        $(*$renewed = Default::default();)*
    };
}

impl Exchange {
    /// As new, but for the memory of its buffers and queues, which the next client's request finds ready.
    pub fn recycle(&mut self) {
        match self.is_unusual || !self.is_drained() {
            true => self.recycle_all(),
            false => self.recycle_plain(),
        }
    }

    fn recycle_all(&mut self) {
        // Every field by name: one that is added later can't be forgotten.
        recycle! {
            self;
            up down pipeline;
            known_texts;
            lease is_unusual commit_at_risk ends_block restore_due restore_bound flushed prelude_owed before_prelude behind_prelude
            forgetting discarding unsure ahead named_portals undone reset_ran reset_kept reset_stands second_try untold_portal last_words new_pins pinned_by refused_pin
            catalog_changed roles_changed read_only_refused unexplained catalog_touched ends_at_boundary before_effects
            vacancy parting_warning sent_to_backend lost deferred trial listens tally tallied_at query_since transaction_since
            answered_at cancel_sent_at stalled_since asked_at asks_of_columns finished
        }
    }

    /// Hands the exchange the backend that [`Outcome::NeedsBackend`] asked for.
    pub fn attach(&mut self, lease: Lease) {
        self.sent_to_backend = 0;
        self.before_effects = None;
        self.trial = None;
        self.behind_prelude = None;
        self.forget_second_try();
        self.tallied_at = None;
        self.up.mark();
        self.lease = Some(lease);
    }

    /// Takes the backend back: to give it up, to clean it, or to look at it.
    pub fn detach(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Reads what the client says next, while nothing is under way. Ready with 0 at its end.
    pub fn poll_client(&mut self, cx: &mut Context<'_>, client: &mut Stream) -> Poll<std::io::Result<usize>> {
        self.up.poll_read(cx, client, 0)
    }

    /// The statement, without its literals, that first tied the client since this was last asked. `None` where no text
    /// did.
    pub fn take_pinned_by(&mut self) -> Option<String> {
        self.pinned_by.take()
    }

    /// Keeps what the log is to say of a pin, while the statement noted last is the one that pins.
    fn note_pin(&mut self) {
        self.new_pins = true;
        if self.pinned_by.is_none() {
            self.pinned_by = self.lease.as_ref().and_then(Lease::fingerprint);
        }
    }

    /// The backend was told to LISTEN for a client that hears another way: it must be told to stop.
    pub fn backend_listens(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.state.listens)
    }

    /// The backend, while there is one.
    pub fn lease(&mut self) -> Option<&mut Lease> {
        self.lease.as_mut()
    }

    /// What the backend owes a client that is gone; `None` when a message to it was cut, so that only closing helps.
    pub fn owed(&self) -> Option<Owed> {
        let whole = self.up.is_written() && !self.up.is_amid_message() && !self.pipeline.is_streaming_both_ways();
        let (ready, sync_missing, copy_in) = self.pipeline.owed();
        (whole && !self.pipeline.is_doubtful()).then_some(Owed {
            ready,
            sync_missing,
            copy_in,
        })
    }

    /// The status that the backend had at its last ReadyForQuery.
    pub const fn backend_status(&self) -> TransactionStatus {
        self.pipeline.status()
    }

    /// What was read from the backend and not decided on, from a message's start: for whoever drains it.
    pub fn hand_over_unread(&mut self) -> bytes::BytesMut {
        self.down.hand_over()
    }

    /// Nothing is under way with the backend: what the ledgers say of it is true.
    pub fn is_settled(&self) -> bool {
        self.pipeline.is_settled()
    }

    /// Since when the client has not taken a byte of what waits for it.
    pub const fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// When PostgreSQL was asked what the client's settings have become, where it has not answered yet. One load where it
    /// was not asked.
    pub fn unanswered_since(&self, session: &VirtualSession) -> Option<Instant> {
        self.asked_at
            .filter(|_| session.awaits_answer() || self.asks_of_columns)
    }

    /// The status that the client believes its transaction has.
    pub fn status(&self) -> TransactionStatus {
        if self.lost.is_some() {
            TransactionStatus::Failed
        } else {
            self.pipeline.status()
        }
    }

    /// The client waits for a reply.
    pub fn owes_reply(&self) -> bool {
        !self.pipeline.is_quiet()
    }

    /// The client is between transactions, nothing is owed to it and nothing is half said.
    pub fn is_between_transactions(&self) -> bool {
        self.pipeline.is_settled() && self.lost.is_none() && self.down.is_empty()
    }

    /// Takes up bytes that the client sent behind its login.
    pub fn preload(&mut self, bytes: &[u8]) {
        self.up.preload(bytes);
    }

    /// Records a request with what its reply decides.
    fn expect(&mut self, request: Request, fate: Fate, note: Note) {
        self.unsure.begin(&note);
        self.flushed = false;
        if request == Request::Sync {
            self.unsure.next_group();
            self.note_sync_behind_begin(&fate);
        }
        self.pipeline.expect(request, fate, note);
    }

    fn undo_dropped(&mut self, parties: &mut Parties<'_>) {
        if !self.pipeline.has_dropped() {
            return;
        }
        let oldest_failed = self.pipeline.take_oldest_failed();
        let mut notes = self.pipeline.take_dropped();
        let failed = if oldest_failed { notes.pop() } else { None };
        for mut note in notes {
            self.unsure.end(&note);
            self.on_no_answer(&mut note, parties);
            let backend = self.lease.as_mut().map(|lease| &mut lease.state);
            parties.session.undo(note, backend, self.pipeline.pending_mut());
        }
        if let Some(mut note) = failed {
            self.unsure.end(&note);
            self.on_no_answer(&mut note, parties);
            let backend = self.lease.as_mut().map(|lease| &mut lease.state);
            parties.session.undo_failed(note, backend, self.pipeline.pending_mut());
        }
    }
}

impl Exchange {
    fn classify(&self, sql: &[u8], parties: &Parties<'_>) -> Effects {
        self.with_suspects(parties, |suspects| Effects {
            suspects: suspects.fingerprint(),
            ..classify(sql, parties.session.lexing(), suspects)
        })
    }

    /// The same of a Parse's text, which is likely to come again.
    fn classify_parsed(&self, sql: &[u8], known: &mut KnownTexts, parties: &Parties<'_>) -> Effects {
        let suspects = self.with_suspects(parties, Suspects::fingerprint);
        known.effects(sql, parties.session.lexing(), suspects, || self.classify(sql, parties))
    }

    /// Looks at what is to be known of routines and triggers now. Behind a change of the client's own, which the catalog
    /// may not show to others yet, nothing is.
    fn with_suspects<T>(&self, parties: &Parties<'_>, look: impl FnOnce(&Suspects) -> T) -> T {
        if self.catalog_changed {
            look(&Suspects::every_mention())
        } else {
            look(&parties.rules.pool.knowledge().suspects())
        }
    }

    fn is_about_suspects_of_now(&self, effects: &Effects, parties: &Parties<'_>) -> bool {
        self.with_suspects(parties, |suspects| effects.suspects == suspects.fingerprint())
    }

    /// The effects of a statement that was prepared earlier: a routine that it calls may be another one by now (trap 57).
    fn effects_now<'a>(&self, kept: &'a Effects, sql: &[u8], parties: &Parties<'_>) -> Cow<'a, Effects> {
        if self.is_about_suspects_of_now(kept, parties) {
            Cow::Borrowed(kept)
        } else {
            Cow::Owned(self.classify(sql, parties))
        }
    }
}

/// Every reason that a client may be tied for, for the metrics to declare.
pub fn pin_labels() -> Vec<&'static str> {
    PinReason::ALL.iter().map(|reason| reason.label()).collect()
}
