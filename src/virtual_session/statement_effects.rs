//! What a statement's text may do to the session: [`classify`] and the [`Effects`] it finds.
//!
//! Safety first: what is not proven harmless is a reason to pin. The text is lexed, never parsed; so the answer may be
//! too careful (a column named `discard_all(` is), never too careless. PostgreSQL parses a whole Query text before it
//! runs any of it, so a text that is no SQL has no effect whatever is found here.

use super::ordinary_statement::ordinary_effects;
use super::pins::{PinReason, PinSet};
use super::setting_change::SettingChange;
use super::sql_lexer::Lexing;
use super::statement_scan::Scan;
use super::suspects::Suspects;

/// Finds what `text` (a simple Query, or the text of a Parse) may do to the session.
///
/// One pass over the bytes; allocates only for statements with something to tell (SET, LISTEN, PREPARE, …). Never
/// fails: a text that does not lex is pinned as [`PinReason::Unlexable`].
pub fn classify(text: &[u8], lexing: Lexing, suspects: &Suspects) -> Effects {
    // For measuring alone: what clients leave on a backend then reaches others.
    if cfg!(pgsidecar_unclassified) {
        return Effects::NONE;
    }
    if let Some(effects) = ordinary_effects(text, lexing, suspects) {
        return effects;
    }
    Scan::run(text, lexing, suspects).unwrap_or_else(|_| Effects::opaque(PinReason::Unlexable))
}

/// What a text may do to the session of the backend that runs it.
///
/// For a Parse nothing of it happens before Execute; for a Query, each [`Step`] happens with its statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effects {
    /// Why a backend that ran the text must stay with its client.
    pub pins: PinSet,
    /// What the text does to the session, in order, by statement. BEGIN, COMMIT and ROLLBACK as the first statement
    /// are told by `transaction` alone, so that they cost no allocation.
    pub steps: Vec<Step>,
    /// Transaction control of the first statement.
    pub transaction: TransactionControl,
    /// What the text has to do with the session's last sequence values.
    pub sequence: SequenceUse,
    /// How many statements there are; empty ones don't count. 0 gets an EmptyQueryResponse.
    pub statement_count: u32,
    /// Whether any statement ends a transaction block (COMMIT, ROLLBACK, PREPARE TRANSACTION; not ROLLBACK TO).
    pub ends_transaction: bool,
    /// Whether the first statement is one that PostgreSQL runs in a failed transaction, leaving it.
    pub exits_failed_block: bool,
    /// Whether the text is one BEGIN or START TRANSACTION and nothing else.
    pub is_begin_only: bool,
    /// Whether nothing would be lost or doubled by running it again: only BEGIN and SHOW (or nothing at all).
    pub without_effect: bool,
    /// Whether it only reads: a backend that dies under it can't have committed anything. False when in doubt.
    pub is_read_only_shape: bool,
    /// Whether it may change routines, triggers, types or relations, so that what the catalog told is old.
    pub catalog_change: bool,
    /// Whether it may change roles, their passwords among it.
    pub role_change: bool,
    /// Whether it is CREATE, ALTER or DROP DATABASE.
    pub database_ddl: bool,
    /// Whether it is, or may be, a NOTIFY.
    pub notifies: bool,
    /// Whether it asks what the session or the backend holds (`pg_cursors`, `pg_backend_pid()`, …).
    pub reads_session: bool,
    /// Whether it asks which prepared statements the session has.
    pub lists_statements: bool,
    /// The [`Suspects::fingerprint`] that they were found with, where they are kept: with another they may be others.
    pub suspects: u64,
}

impl Effects {
    /// The effects of a text without any statement.
    pub const NONE: Self = Self {
        pins: PinSet::EMPTY,
        steps: Vec::new(),
        transaction: TransactionControl::None,
        sequence: SequenceUse::None,
        statement_count: 0,
        ends_transaction: false,
        exits_failed_block: false,
        is_begin_only: false,
        without_effect: true,
        is_read_only_shape: true,
        catalog_change: false,
        role_change: false,
        database_ddl: false,
        notifies: false,
        reads_session: false,
        lists_statements: false,
        suspects: 0,
    };

    /// The effects of a text that nobody read (too large, not lexable): anything may have happened.
    pub fn opaque(reason: PinReason) -> Self {
        Self {
            pins: PinSet::of(reason),
            sequence: SequenceUse::DrawsAndReads,
            statement_count: 1,
            ends_transaction: true,
            exits_failed_block: true,
            without_effect: false,
            is_read_only_shape: false,
            catalog_change: true,
            role_change: true,
            database_ddl: false,
            notifies: true,
            reads_session: true,
            lists_statements: true,
            ..Self::NONE
        }
    }

    /// Whether the text is an ordinary one: it leaves the session, its transaction and the catalog as they were.
    pub fn is_none(&self) -> bool {
        self.pins.is_empty()
            && self.steps.is_empty()
            && self.transaction == TransactionControl::None
            && self.sequence <= SequenceUse::MayDraw
            && !(self.catalog_change || self.role_change || self.database_ddl || self.notifies || self.reads_session)
    }

    /// Whether nothing at all need be thought of when it runs, but that it may write: it knows of no sequence, and is
    /// refused in a failed transaction as everything is.
    pub fn is_plain(&self) -> bool {
        self.is_none()
            && self.sequence == SequenceUse::None
            && !(self.lists_statements || self.exits_failed_block || self.ends_transaction)
    }

    /// Whether it says LISTEN.
    pub fn listens(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Listen(_)))
    }

    /// Whether a transaction that ran it may notify: by NOTIFY, a routine, or a trigger of what it writes.
    pub fn may_notify(&self) -> bool {
        let is_channel = |step: &Step| {
            matches!(
                step.action,
                Action::Listen(_) | Action::Unlisten(_) | Action::UnlistenAll
            )
        };
        let is_known = self.transaction != TransactionControl::None || self.steps.iter().any(is_channel);
        self.notifies || !(self.is_read_only_shape || (self.statement_count == 1 && is_known))
    }

    /// Whether a transaction may have committed if the backend died while it ran this outside a block (08007, not
    /// 08006).
    pub fn may_commit(&self) -> bool {
        !self.is_read_only_shape
    }

    /// Whether it may commit the block that it is run in. ROLLBACK alone can't.
    pub fn may_end_in_commit(&self) -> bool {
        let only_rolls_back = self.statement_count == 1
            && matches!(
                self.transaction,
                TransactionControl::Rollback | TransactionControl::RollbackAndChain
            );
        self.ends_transaction && !only_rolls_back
    }

    /// Whether the values of parameters decide which settings it changes.
    pub fn is_bound_later(&self) -> bool {
        self.settings().any(SettingChange::is_bound_later)
    }

    /// The same with these values of the statement's parameters.
    #[must_use]
    pub fn bound(mut self, values: &[Option<&[u8]>]) -> Self {
        for step in &mut self.steps {
            if let Action::Setting(change) = &mut step.action {
                *change = change.bound(values);
            }
        }
        self
    }

    /// The changes of settings, in order.
    pub fn settings(&self) -> impl Iterator<Item = &SettingChange> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Setting(change) => Some(change),
            _ => None,
        })
    }
}

/// Something that a statement does to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which statement of the text, from 0, empty ones not counted. It has happened when that statement's
    /// CommandComplete came.
    pub statement: u32,
    /// What.
    pub action: Action,
}

impl Step {
    /// The database that nobody may be connected to when the statement runs, where there is one, with whether it stays what
    /// it is; the inner `None` is one that the text does not spell.
    pub fn needs_unused(&self) -> Option<(Option<&[u8]>, bool)> {
        match &self.action {
            Action::ChangesDatabase(name) => Some((name.as_deref(), false)),
            Action::CopiesDatabase(name) => Some((name.as_deref(), true)),
            _ => None,
        }
    }
}

/// A name, folded as PostgreSQL folds it. `None` where the text does not spell it (`U&"…"`).
pub type Name = Option<Box<[u8]>>;

/// What a statement does to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// SET, RESET, set_config.
    Setting(SettingChange),
    /// Transaction control of a statement that is not the text's first, and every SAVEPOINT form.
    Transaction(TransactionControl, Name),
    /// LISTEN channel.
    Listen(Name),
    /// UNLISTEN channel.
    Unlisten(Name),
    /// UNLISTEN *.
    UnlistenAll,
    /// SQL PREPARE name.
    Prepare(Name),
    /// SQL EXECUTE name.
    Execute(Name),
    /// DEALLOCATE name.
    Deallocate(Name),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// DECLARE name … WITH HOLD.
    HoldCursor(Name),
    /// CLOSE name.
    Close(Name),
    /// CLOSE ALL.
    CloseAll,
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD PLANS.
    DiscardPlans,
    /// DISCARD SEQUENCES.
    DiscardSequences,
    /// DISCARD TEMP.
    DiscardTemporary,
    /// A call that may release session-level advisory locks.
    AdvisoryUnlock,
    /// DROP DATABASE, RENAME, SET TABLESPACE: fails while anyone is connected to this database, and ends it or its name.
    ChangesDatabase(Name),
    /// CREATE DATABASE: fails while anyone is connected to this one, its template, which stays as it is.
    CopiesDatabase(Name),
}

/// What a statement does to the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionControl {
    /// Nothing.
    None,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit,
    /// COMMIT AND CHAIN.
    CommitAndChain,
    /// ROLLBACK, ABORT.
    Rollback,
    /// ROLLBACK AND CHAIN.
    RollbackAndChain,
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo,
    /// SAVEPOINT.
    Savepoint,
    /// RELEASE SAVEPOINT.
    Release,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
}

impl TransactionControl {
    /// Whether it ends the block (a chained one begins the next at once).
    pub const fn ends_transaction(self) -> bool {
        matches!(
            self,
            Self::Commit | Self::CommitAndChain | Self::Rollback | Self::RollbackAndChain | Self::PrepareTransaction
        )
    }

    /// Whether PostgreSQL runs it in a failed block.
    pub const fn exits_failed_block(self) -> bool {
        self.ends_transaction() || matches!(self, Self::RollbackTo)
    }
}

/// What a text has to do with `currval` and `lastval`. Ordered: the later includes what matters of the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SequenceUse {
    /// Nothing that the text tells.
    None,
    /// It inserts, so a default may draw a value, and says RETURNING: who writes so need not ask.
    MayDrawAndTell,
    /// It inserts, so a default may draw a value.
    MayDraw,
    /// nextval or setval.
    Draws,
    /// currval or lastval.
    Reads,
    /// Both, in an order that is not told.
    DrawsAndReads,
}

impl SequenceUse {
    /// Both uses together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self.min(other), self.max(other)) {
            (Self::Draws, Self::Reads) => Self::DrawsAndReads,
            (_, more) => more,
        }
    }

    /// Whether a value may be drawn.
    pub const fn draws(self) -> bool {
        !matches!(self, Self::None | Self::Reads)
    }

    /// Whether the session's last value is asked for.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Reads | Self::DrawsAndReads)
    }
}

#[cfg(test)]
#[path = "statement_effects_tests.rs"]
mod tests;
