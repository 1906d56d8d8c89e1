//! What must hold before a message of the client's is sent, and what is recorded when it is: a backend that agrees with the
//! ledger, the statement that the message uses, the effects that it may have.

use std::sync::Arc;

use super::stale_plan::Columns;
use super::to_backend::Next;
use super::unreported::following;
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::result_shape::ResultShape;
use crate::virtual_session::statement_effects::{Action, Effects, SequenceUse, Step};
use crate::virtual_session::statements::Statement;
use crate::virtual_session::{Note, Reread, SWITCH_NAME, Teaching};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{FrontendTag, compose};

/// Makes a backend forget the values that its sequences gave.
const FORGET_SEQUENCES: &[u8] = b"DISCARD SEQUENCES";
/// The statement and portal that say so amid a client's group; they exist for no longer.
const FORGETTING: &[u8] = b"pgsidecar forgets sequences";

impl Exchange {
    /// What must hold before anything of the client's is sent: a backend, one that agrees with the ledger, and for a
    /// statement that could leave a failed block the knowledge that the prelude has not failed.
    pub(super) fn before_backend(&mut self, parties: &mut Parties<'_>, effects: Option<&Effects>) -> Option<Next> {
        // What is reported of an earlier SET must not be taken for what this RESET has come to.
        if effects.is_some_and(|effects| parties.session.resets_baseline(effects)) && self.awaits_reports(parties) {
            return Some(Next::Held);
        }
        let begins = self.has_begin_to_send();
        let (settled, quiet) = (self.pipeline.is_settled() || begins, self.pipeline.is_quiet());
        self.discarding &= !quiet;
        let leaves_something = effects.is_some_and(|effects| !effects.is_none());
        if (self.restore_due && !quiet) || (self.discarding && leaves_something) {
            return Some(self.await_replies());
        }
        let Some(lease) = self.lease.as_mut() else {
            return Some(Next::NeedsBackend);
        };
        if std::mem::take(&mut self.restore_due) && !settled && !self.pipeline.is_failed() {
            let sql = parties.session.restore_for(&mut lease.state);
            self.restore(sql);
        }
        let Some(lease) = self.lease.as_mut() else {
            return Some(Next::NeedsBackend);
        };
        lease.holder().set_idle_in_transaction(false);
        if settled && let Some(sql) = parties.session.prelude_for(&mut lease.state) {
            self.prelude_owed = true;
            self.before_prelude = Some(parties.session.checkpoint());
            self.expect(Request::Query, Fate::Swallow, Note::None);
            self.up.say(|out| compose::query(out, &sql));
        }
        // Behind a question of ours it is the first one all the same.
        if quiet || self.query_since.is_none() {
            self.request_begins();
        }
        let unsafe_behind_prelude = effects.is_some_and(|effects| effects.exits_failed_block);
        if self.prelude_owed && unsafe_behind_prelude {
            return Some(Next::Held);
        }
        match &self.deferred {
            Some(_) => self.before_message_behind_begin(effects, parties),
            None => None,
        }
    }

    /// Startup settings come back inside the transaction in which they were reset.
    pub(super) fn restore(&mut self, sql: Option<Vec<u8>>) {
        let Some(sql) = sql else {
            return;
        };
        let in_group = self.pipeline.is_unsynced();
        self.inject(&sql);
        if !in_group {
            self.up.say(|out| compose::bare_frontend(out, FrontendTag::Sync));
            self.expect(Request::Sync, Fate::Swallow, Note::None);
        }
    }

    pub(super) fn request_begins(&mut self) {
        let now = std::time::Instant::now();
        self.query_since.get_or_insert(now);
        self.transaction_since.get_or_insert(now);
    }

    /// Records what a statement may do to the session.
    pub(super) fn apply(&mut self, effects: &Effects, request: Request, parties: &mut Parties<'_>) {
        let outside = self.pipeline.status() == TransactionStatus::Idle;
        self.commit_at_risk |= effects.may_end_in_commit() || (outside && effects.may_commit());
        self.ends_block |= effects.ends_transaction;
        if effects.may_notify() {
            self.note_may_notify(effects.notifies, effects.sequence, parties);
        }
        if effects.is_none() && effects.sequence == SequenceUse::None {
            return;
        }
        let pinned = parties.session.pins();
        self.remember_ledger(parties);
        self.keep_sequences_apart(effects.sequence, request, parties);
        if let Some(lease) = self.lease.as_mut() {
            let follows = following(lease.is_dedicated(), parties.rules, parties.neutral);
            parties.session.apply(effects, &mut lease.state, follows);
        }
        if parties.session.pins() != pinned {
            self.note_pin();
        }
        if effects.catalog_change {
            self.catalog_changed = true;
            self.catalog_touched = true;
            parties.session.forget_shared_statements();
        }
        self.roles_changed |= effects.role_change;
        if let Some((database, stays)) = effects.steps.iter().find_map(Step::needs_unused) {
            self.vacancy = Some(parties.rules.pool.vacate(database, stays));
        }
        let forgets = |step: &Step| matches!(step.action, Action::DiscardAll | Action::DeallocateAll);
        self.forgetting |= effects.steps.iter().any(forgets);
        self.discarding |= effects.steps.iter().any(|step| step.action == Action::DiscardAll);
        let resets = parties.session.resets_baseline(effects);
        self.restore_bound |= resets;
        self.reset_stands |= resets && request == Request::Query;
    }

    pub(super) fn note_may_notify(&mut self, notifies: bool, uses: SequenceUse, parties: &mut Parties<'_>) {
        self.note_notifier(notifies, parties);
        // What may notify may as well draw.
        if let Some(lease) = self.lease.as_mut().filter(|_| !uses.draws()) {
            parties.session.may_draw_unseen(&mut lease.state);
        }
    }

    /// Sees to it that lastval and currval tell only what this client drew.
    pub(super) fn keep_sequences_apart(&mut self, uses: SequenceUse, request: Request, parties: &mut Parties<'_>) {
        let Some(lease) = self.lease.as_mut().filter(|_| uses != SequenceUse::None) else {
            return;
        };
        if !parties.session.use_sequences(uses, &mut lease.state) {
            return;
        }
        if request == Request::Query {
            self.expect(Request::Query, Fate::Swallow, Note::SequencesForgotten);
            self.up.say(|out| compose::query(out, FORGET_SEQUENCES));
            return;
        }
        // A Query amid a group would end it, and an unnamed statement would replace the client's.
        for request in [
            Request::Parse,
            Request::Bind,
            Request::Execute,
            Request::Close,
            Request::Close,
        ] {
            self.expect(request, Fate::Swallow, Note::SequencesForgotten);
        }
        self.up.say(|out| {
            compose::parse(out, FORGETTING, &[FORGET_SEQUENCES, b"\0\0\0"].concat());
            compose::frame(
                out,
                FrontendTag::Bind.byte(),
                &[FORGETTING, b"\0", FORGETTING, b"\0\0\0\0\0\0\0"],
            );
            compose::frame(out, FrontendTag::Execute.byte(), &[FORGETTING, b"\0\0\0\0\0"]);
            compose::frame(out, FrontendTag::Close.byte(), &[b"P", FORGETTING, b"\0"]);
            compose::close_statement(out, FORGETTING);
        });
    }

    pub(super) fn pin(&mut self, reason: PinReason, parties: &mut Parties<'_>) {
        self.remember_ledger(parties);
        parties.session.pin(reason);
        self.note_pin();
    }

    /// While nothing was sent, the request may yet go to another backend as if it had never been read.
    pub(super) fn remember_ledger(&mut self, parties: &Parties<'_>) {
        if self.sent_to_backend == 0 && self.before_effects.is_none() {
            self.before_effects = Some(parties.session.checkpoint());
        }
    }

    /// What a name stands for, and what the backend holds, is known when every request before this group that decides it
    /// was answered, and the DISCARD ALL or DEALLOCATE ALL under way.
    pub(super) fn before_name(&mut self) -> Option<Next> {
        if self.unsure.names.before > 0 {
            return Some(Next::Held);
        }
        self.forgetting &= !self.pipeline.is_quiet();
        let wait = self.forgetting || (self.restore_due && !self.pipeline.is_quiet());
        wait.then(|| self.await_replies())
    }

    /// A statement that must be parsed again as it was parsed once waits until it is known what that differs from now.
    pub(super) fn before_teaching(&mut self, statement: &Statement, parties: &Parties<'_>) -> Option<Next> {
        let generation = parties.session.generation();
        let held = |lease: &mut crate::pool::Lease| lease.state.statements.touch(statement, generation);
        let reads = !self.lease.as_mut().is_none_or(held) || parties.session.may_reread(statement);
        let wait = statement.under().is_some() && reads && self.awaits_reports(parties);
        wait.then_some(Next::Held)
    }

    /// A name is about to be used: see [`crate::virtual_session::VirtualSession::reread`]. In a failed transaction
    /// PostgreSQL does not come to it.
    fn reread(&mut self, name: &[u8], ahead: &[Step], parties: &mut Parties<'_>) -> Option<Reread> {
        if self.pipeline.is_failed() {
            return None;
        }
        let schemas = parties.rules.pool.knowledge().schemas();
        parties.session.reread(name, ahead, schemas.as_deref())
    }

    /// The same for what the backend knows by the client's own name. `ahead` runs before that, in the same text.
    pub(super) fn reread_own(&mut self, name: &[u8], ahead: &[Step], parties: &mut Parties<'_>) -> Option<Reread> {
        let reread = self.reread(name, ahead, parties)?;
        if let Some(lease) = self.lease.as_mut() {
            reread.note_on_own(&mut lease.state);
        }
        Some(reread)
    }

    /// The same for a shared statement: nearly all are parsed under the settings of now.
    fn reread_shared(&mut self, name: &[u8], of: &Statement, parties: &mut Parties<'_>) -> Option<Reread> {
        if !parties.session.is_parsed_under_others(of) {
            return None;
        }
        let reread = self.reread(name, &[], parties)?;
        if let Some(lease) = self.lease.as_mut() {
            reread.note_on_shared(&mut lease.state);
        }
        Some(reread)
    }

    /// The backend holds what the name stands for at this use, and it has the columns that the client was told, or not.
    pub(super) fn use_shared(
        &mut self,
        name: &[u8],
        before: &Arc<Statement>,
        told: Option<ResultShape>,
        parties: &mut Parties<'_>,
    ) -> (Arc<Statement>, Option<Reread>, Columns) {
        let mut reread = self.reread_shared(name, before, parties);
        let statement = self.ensure_named(name, before, parties);
        let columns = self.compare_columns(&statement, told, &mut reread);
        if columns == Columns::Differ {
            // PostgreSQL refuses before it has read the text again.
            parties.session.undo_reread(reread.take());
        }
        (statement, reread, columns)
    }

    /// Settings have changed that a ReadyForQuery on its way will tell, or PostgreSQL was asked for some.
    pub(super) fn awaits_reports(&mut self, parties: &Parties<'_>) -> bool {
        if parties.session.awaits_answer() {
            return true;
        }
        let number = parties.session.unreported();
        number != 0 && self.pipeline.pending_mut().any(|note| note.reports() == number)
    }

    /// The message at hand is held until everything before it is answered; PostgreSQL is asked not to wait for a Sync.
    pub(super) fn await_replies(&mut self) -> Next {
        if !std::mem::replace(&mut self.flushed, true) {
            self.up.say(|out| compose::bare_frontend(out, FrontendTag::Flush));
        }
        Next::Held
    }

    /// Sees to it that the backend holds a statement of the client's: its Parse travels ahead of the message that uses
    /// it. Returns the statement that the name stands for now.
    pub(super) fn ensure_parsed(
        &mut self,
        name: &[u8],
        of: &Arc<Statement>,
        parties: &mut Parties<'_>,
    ) -> Arc<Statement> {
        let generation = parties.session.generation();
        let held = |lease: &mut crate::pool::Lease| lease.state.statements.touch(of, generation);
        if self.lease.as_mut().is_none_or(held) {
            return of.clone();
        }
        let reported = |name: &str| parties.neutral.contains(name);
        let schemas = parties.rules.pool.knowledge().schemas();
        let (statement, switch) = match parties.session.teaching(of, reported, schemas.as_deref()) {
            Teaching::AsItIs => (of.clone(), None),
            Teaching::AsOnesOwn(switch) => (parties.session.own_statement(name, of), switch),
            Teaching::Under(switch) => (of.clone(), Some(switch)),
        };
        let statement = match statement.is_apart() {
            // The shared one keeps its place here.
            true => parties.session.own_statement(name, &statement),
            false => statement,
        };
        if let Some(switch) = &switch {
            self.inject(&switch.before);
        }
        self.close_place_of(&statement);
        self.make_room_for(&statement, generation, parties.rules.backend_statement_bytes);
        self.expect(Request::Parse, Fate::Swallow, Note::Injected(statement.clone()));
        self.up
            .say(|out| compose::parse(out, &statement.name, &statement.definition));
        if let Some(switch) = &switch {
            self.inject(&switch.after);
        }
        statement
    }

    /// The name of a shared statement is free on the backend: what it was before the catalog changed is closed there, or
    /// what one client's use has made of it.
    pub(super) fn close_place_of(&mut self, statement: &Statement) {
        let closed = self
            .lease
            .as_mut()
            .and_then(|lease| lease.state.statements.take_place_of(statement));
        if let Some(closed) = closed {
            self.up.say(|out| compose::close_statement(out, &closed.name));
            self.expect(Request::Close, Fate::Swallow, Note::Evicted(closed));
        }
    }

    /// The same of what the name stands for now, which was this before it was read again.
    pub(super) fn ensure_named(
        &mut self,
        name: &[u8],
        before: &Arc<Statement>,
        parties: &mut Parties<'_>,
    ) -> Arc<Statement> {
        let statement = parties.session.statement(name).unwrap_or(before).clone();
        self.ensure_parsed(name, &statement, parties)
    }

    /// A statement of ours inside the client's group, in the extended protocol, so that it ends no transaction.
    pub(super) fn inject(&mut self, sql: &[u8]) {
        self.inject_as(sql, &Fate::Swallow, Note::None);
    }

    /// The same with what becomes of its replies, and of what it does.
    pub(super) fn inject_as(&mut self, sql: &[u8], fate: &Fate, note: Note) {
        self.up.say(|out| {
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, &[sql, b"\0\0\0"].concat());
            let name: &[u8] = &[SWITCH_NAME, b"\0"].concat();
            compose::frame(out, FrontendTag::Bind.byte(), &[name, name, &[0; 6]]);
            compose::frame(out, FrontendTag::Execute.byte(), &[name, &[0; 4]]);
            compose::frame(out, FrontendTag::Close.byte(), &[b"P", name]);
            compose::close_statement(out, SWITCH_NAME);
        });
        for request in [Request::Close, Request::Parse, Request::Bind] {
            self.expect(request, fate.clone(), Note::None);
        }
        self.expect(Request::Execute, fate.clone(), note);
        for request in [Request::Close, Request::Close] {
            self.expect(request, fate.clone(), Note::None);
        }
    }

    /// Records a statement that the backend is about to hold; the ones not used for longest are closed for it.
    pub(super) fn make_room_for(&mut self, statement: &Arc<Statement>, generation: u64, bytes_max: usize) {
        if let Some(lease) = self.lease.as_mut() {
            lease.state.statements.insert(statement.clone(), generation);
        }
        self.make_room_for_own(bytes_max);
        let evict = |lease: &mut crate::pool::Lease| {
            let left = bytes_max.saturating_sub(lease.state.own.bytes());
            lease.state.statements.evict(left.max(bytes_max / 2))
        };
        while let Some(evicted) = self.lease.as_mut().and_then(evict) {
            self.up.say(|out| compose::close_statement(out, &evicted.name));
            self.expect(Request::Close, Fate::Swallow, Note::Evicted(evicted));
        }
    }

    /// The client's next message can't be served: throws it away. True when it was one that ends with ReadyForQuery.
    pub(super) fn skip_refused(&mut self) -> bool {
        match self.up.next_header() {
            Ok(Some(header)) => {
                self.up.skip(header);
                matches!(header.frontend(), Ok(FrontendTag::Query | FrontendTag::FunctionCall))
            }
            _ => false,
        }
    }
}
