//! PREPARE, EXECUTE and DEALLOCATE, and what the protocol says of statements that SQL prepared.
//!
//! SQL names a statement as the client does, so the backend must know it by that name (trap 30). Before a message that
//! mentions one, what a stranger left under the name is closed there, and the client's own statement is made, in the
//! same write. Ahead of a Query of one statement this has no Sync of its own: if it fails, PostgreSQL skips the Query
//! with it, and the client gets the error as its Query's. See decision 12.

use std::borrow::Cow;
use std::sync::Arc;

use super::stale_plan::Columns;
use super::to_backend::Next;
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::statement_effects::{Action, Effects, Step};
use crate::virtual_session::statements::Statement;
use crate::virtual_session::{NameChange, NameChanges, Note, is_plain};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::Execute;
use crate::wire::{FrontendTag, Header, compose};

/// Portals that may be remembered for what their Execute does.
const PORTALS_MAX: usize = 16;

/// What was said ahead of a Query, without a Sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum AheadOfQuery {
    #[default]
    Nothing,
    /// It is awaited before the Query is sent.
    Awaited,
    /// The Query was sent behind it, and nothing behind that.
    Sent,
}

/// Portals whose Execute has to do with names.
#[derive(Debug, Default)]
pub(super) struct NamedPortals(Vec<(Box<[u8]>, NameChanges)>);

impl NamedPortals {
    /// A portal of this name is about to be another one.
    pub(super) fn forget(&mut self, portal: &[u8]) {
        self.0.retain(|(name, _)| **name != *portal);
    }
}

/// Whether a message may be sent, as far as it is about names.
pub(super) enum Agreed {
    /// With what its reply will tell of names.
    Yes(NameChanges),
    /// It waits.
    NotYet(Next),
    /// PostgreSQL must refuse it: what it executes has other columns than when SQL prepared it.
    Stale,
}

/// A message that has to do with names.
pub(super) struct Naming<'a> {
    pub(super) effects: &'a Effects,
    pub(super) text: &'a [u8],
    pub(super) request: Request,
}

/// In which form something is said to the backend ahead of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// In the group that the message is in, or that a Query ends: what fails, fails the message.
    Together,
    /// In groups of its own: what fails is not there.
    Apart,
}

impl Form {
    pub(super) const fn fate(self) -> Fate {
        match self {
            Self::Together => Fate::Swallow,
            Self::Apart => Fate::Silence,
        }
    }
}

/// Whether a text of these effects needs a backend that agrees on names.
fn concerns_names(effects: &Effects) -> bool {
    !effects.is_none() && (effects.mentions_names() || effects.lists_statements || effects.may_mention_any_name())
}

// --- before a message ---

impl Exchange {
    /// Nothing that decides what a name stands for may be under way when a message mentions one.
    pub(super) fn before_naming(&mut self, effects: &Effects, parties: &Parties<'_>) -> Option<Next> {
        if !concerns_names(effects) {
            return None;
        }
        if let Some(stop) = self.before_name() {
            return Some(stop);
        }
        if self.pipeline.is_failed() && !self.pipeline.is_quiet() {
            // What is on its way may end the failed transaction, or not.
            return Some(self.await_replies());
        }
        let prepares = |action: &Action| matches!(action, Action::Prepare(_));
        if effects.steps.iter().any(|step| prepares(&step.action))
            && parties.session.has_unseen_settings()
            && !self.pipeline.is_quiet()
        {
            // The settings that it is parsed under are known then.
            return Some(self.await_replies());
        }
        let state = self.lease.as_mut().map(|lease| &mut lease.state)?;
        let lists = effects.lists_statements || effects.may_mention_any_name();
        let is_used = |name: &[u8]| lists || executed(effects).any(|(_, executed)| executed == Some(name));
        let must_teach = parties.session.named_statements().any(|(name, named)| {
            let statement = &named.statement;
            let is_held = is_used(name) && state.own.touch(name, statement.id);
            is_used(name) && statement.under().is_some() && (!is_held || parties.session.may_reread(statement))
        });
        (must_teach && self.awaits_reports(parties)).then_some(Next::Held)
    }

    /// What gives the client's names to its backend for good waits until nothing is under way that could fail: behind an error
    /// PostgreSQL would skip it, and the names that go ahead of it.
    pub(super) fn before_leaving_names(
        &mut self,
        header: Header,
        request: Request,
        effects: &Effects,
        parties: &Parties<'_>,
    ) -> Option<Next> {
        let waits = !self.pipeline.is_quiet()
            && concerns_names(effects)
            && !parties.session.keeps_names_on_backend()
            && self.would_leave_to_backend(header, request, effects, parties);
        waits.then(|| self.await_replies())
    }

    /// A text that executes a name is parsed, or described: PostgreSQL looks up what that returns.
    pub(super) fn before_parsing_names(&mut self, effects: &Effects, parties: &mut Parties<'_>) -> Option<Next> {
        if effects.is_none() || !effects.executes_names() {
            return None;
        }
        if let Some(stop) = self.before_naming(effects, parties) {
            return Some(stop);
        }
        if self.lease.is_none() || self.pipeline.is_failed() {
            return None;
        }
        if parties.session.keeps_names_on_backend() {
            return None;
        }
        if effects.may_mention_any_name() {
            self.close_strangers(Form::Together, parties);
        }
        for (_, name) in executed(effects) {
            let Some(name) = name.filter(|name| is_plain(name)) else {
                continue;
            };
            match parties.session.statement(name).cloned() {
                Some(statement) => self.ensure_own(name, &statement, Form::Together, parties),
                None => self.close_own(name, Form::Together),
            }
        }
        None
    }

    /// The effects of a text with those of the statements that it executes by name.
    pub(super) fn with_executed<'e>(&self, effects: Cow<'e, Effects>, parties: &Parties<'_>) -> Cow<'e, Effects> {
        if effects.is_none() || executed(&effects).next().is_none() {
            return effects;
        }
        let mut all = effects.clone().into_owned();
        for (number, name) in executed(&effects) {
            if let Some(statement) = name.and_then(|name| parties.session.statement(name)) {
                all.execute(number, &self.effects_of(statement, parties));
            }
        }
        Cow::Owned(all)
    }

    /// What executing a prepared statement does, as the catalog is now.
    pub(super) fn effects_of<'s>(&self, statement: &'s Statement, parties: &Parties<'_>) -> Cow<'s, Effects> {
        match self.effects_now(&statement.effects, statement.sql(), parties) {
            Cow::Owned(effects) if statement.is_from_sql() => Cow::Owned(effects.of_prepared()),
            effects => effects,
        }
    }

    /// Makes the backend agree with the client on every name that a message mentions.
    pub(super) fn agree_on_names(&mut self, naming: &Naming<'_>, parties: &mut Parties<'_>) -> Agreed {
        let effects = naming.effects;
        let mut names = NameChanges::default();
        self.ahead = AheadOfQuery::Nothing;
        // In a failed transaction PostgreSQL refuses the text, whatever it names.
        if !concerns_names(effects) || (self.pipeline.is_failed() && !effects.exits_failed_block) {
            return Agreed::Yes(names);
        }
        let is_query = naming.request == Request::Query;
        let is_alone = is_query && effects.statement_count != 1 && !self.pipeline.is_unsynced();
        let form = if is_alone { Form::Apart } else { Form::Together };
        let said = self.pipeline.len();
        self.make_room_for_own(parties.rules.backend_statement_bytes);
        self.agree_on_hidden_names(effects, is_query, parties);
        let said_together = self.pipeline.len();
        for (at, step) in effects.steps.iter().enumerate() {
            match &step.action {
                Action::Prepare(name) => {
                    let change = self.before_prepare(name.as_deref(), naming, form, parties);
                    names.changes.push_back(NameChange::Prepared(change));
                }
                Action::Execute(name) => {
                    names.executes.extend(name.clone());
                    let ahead = effects.steps.get(..at).unwrap_or_default();
                    self.before_sql_execute(name.as_deref(), ahead, form, parties);
                }
                Action::Deallocate(name) => {
                    self.before_deallocate(name.as_deref(), form, parties);
                    names.changes.push_back(NameChange::Deallocated(name.clone()));
                }
                _ => {}
            }
        }
        if form == Form::Apart && self.pipeline.len() > said_together {
            self.end_apart();
        }
        if is_query && self.pipeline.is_unsynced() && self.pipeline.len() > said {
            self.ahead = AheadOfQuery::Sent;
        }
        if is_query && effects.statement_count == 1 {
            return self.compare_executed(names, parties);
        }
        Agreed::Yes(names)
    }

    /// A text may use names that it does not tell: then the backend knows nobody else's, and where that can't harm the
    /// client's transaction all of the client's own.
    fn agree_on_hidden_names(&mut self, effects: &Effects, is_query: bool, parties: &mut Parties<'_>) {
        let is_reserved = |action: &Action| named(action).is_some_and(|name| parties.session.is_reserved(name));
        let lists = effects.lists_statements || effects.steps.iter().any(|step| is_reserved(&step.action));
        if parties.session.keeps_names_on_backend() {
            return;
        }
        if !lists && !effects.may_mention_any_name() {
            return;
        }
        let is_apart = is_query && self.pipeline.status() == TransactionStatus::Idle && !self.pipeline.is_unsynced();
        let form = if is_apart { Form::Apart } else { Form::Together };
        let said = self.pipeline.len();
        if lists {
            self.close_shared(form);
        }
        self.close_strangers(form, parties);
        if is_apart && self.pipeline.len() > said {
            self.end_apart();
        }
        if !(lists || is_apart) || self.pipeline.is_failed() {
            return;
        }
        let follows = |name: &[u8]| is_plain(name) && !parties.session.is_reserved(name);
        let mut own: Vec<_> = parties
            .session
            .named_statements()
            .filter(|(name, named)| follows(name) && (lists || named.statement.is_from_sql()))
            .map(|(name, named)| (named.number, Box::<[u8]>::from(name), named.statement.clone()))
            .collect();
        // As the client made them: prepare_time tells the order.
        own.sort_unstable_by_key(|(number, ..)| *number);
        for (_, name, statement) in own {
            let said = self.pipeline.len();
            self.ensure_own(&name, &statement, form, parties);
            if is_apart && self.pipeline.len() > said {
                self.end_apart();
            }
        }
    }

    /// What PREPARE will have made when its tag comes; `None` where the ledger won't know it.
    fn before_prepare(
        &mut self,
        name: Option<&[u8]>,
        naming: &Naming<'_>,
        form: Form,
        parties: &mut Parties<'_>,
    ) -> Option<(Box<[u8]>, Arc<Statement>)> {
        let Some(name) = name.filter(|name| Self::follows(name, parties)) else {
            self.leave_to_backend(name, form, parties);
            return None;
        };
        if parties.session.statement(name).is_some() {
            // PostgreSQL says that the name is taken (42P05).
            self.ensure_some(name, form);
            if naming.effects.statement_count != 1 {
                self.leave_to_backend(Some(name), form, parties);
            }
            return None;
        }
        self.close_own(name, form);
        let limit = parties.rules.client_statement_bytes;
        let statement = parties.session.sql_statement(name, naming.text, naming.effects, limit);
        let Some(statement) = statement.filter(|_| !parties.session.may_be_own(name)) else {
            self.leave_to_backend(Some(name), form, parties);
            return None;
        };
        if let Some(lease) = self.lease.as_mut() {
            lease.state.own.doubt(name);
        }
        Some((name.into(), statement))
    }

    /// `ahead` runs before the EXECUTE, in the same text.
    fn before_sql_execute(&mut self, name: Option<&[u8]>, ahead: &[Step], form: Form, parties: &mut Parties<'_>) {
        let Some(name) = name.filter(|name| Self::follows(name, parties)) else {
            return self.leave_to_backend(name, form, parties);
        };
        self.reread_own(name, ahead, parties);
        let Some(statement) = parties.session.statement(name).cloned() else {
            self.close_own(name, form);
            if parties.session.may_be_own(name) {
                self.leave_to_backend(Some(name), form, parties);
            }
            return;
        };
        if !statement.is_from_sql() && statement.effects.is_command() {
            // SQL prepares no such thing, and executes it all the same.
            self.pin(PinReason::Unknown, parties);
            if statement.effects.listens() {
                self.pin(PinReason::Listen, parties);
            }
            return self.leave_to_backend(Some(name), form, parties);
        }
        self.ensure_own(name, &statement, form, parties);
    }

    /// A DEALLOCATE among other statements, or of what the ledger doesn't know.
    fn before_deallocate(&mut self, name: Option<&[u8]>, form: Form, parties: &mut Parties<'_>) {
        match name.filter(|name| Self::follows(name, parties)) {
            Some(name) if parties.session.statement(name).is_some() => self.ensure_some(name, form),
            Some(name) => self.close_own(name, form),
            None => self.leave_to_backend(name, form, parties),
        }
    }

    /// Whether a message says of names what the ledger can't follow.
    pub(super) fn would_leave_to_backend(
        &self,
        header: Header,
        request: Request,
        effects: &Effects,
        parties: &Parties<'_>,
    ) -> bool {
        // What a Bind prepares was measured with its Parse.
        let len = if request == Request::Query { header.body_len } else { 0 };
        let session = &parties.session;
        let is_left = |action: &Action| match action {
            Action::Prepare(name) | Action::Execute(name) | Action::Deallocate(name)
                if name.as_deref().is_none_or(|name| !Self::follows(name, parties)) =>
            {
                true
            }
            Action::Prepare(Some(name)) => {
                let fits = session.statement_bytes() + name.len() + len <= parties.rules.client_statement_bytes;
                let is_taken = session.statement(name).is_some();
                effects.statement_count != 1 || !(is_taken || (fits && !session.has_unseen_settings()))
            }
            Action::Execute(Some(name)) => session
                .statement(name)
                .is_some_and(|statement| !statement.is_from_sql() && statement.effects.is_command()),
            _ => false,
        };
        effects.steps.iter().any(|step| is_left(&step.action))
    }

    /// Whether the ledger follows what is said of this name.
    fn follows(name: &[u8], parties: &Parties<'_>) -> bool {
        is_plain(name) && !parties.session.is_reserved(name) && !parties.session.keeps_names_on_backend()
    }

    /// The ledger can't follow what a message does to names: the backend gets all of the client's, by these names alone,
    /// and keeps the client. From then on it decides. In a failed transaction it can be told nothing, and gets the one.
    fn leave_to_backend(&mut self, name: Option<&[u8]>, form: Form, parties: &mut Parties<'_>) {
        if parties.session.keeps_names_on_backend() {
            return self.pin(PinReason::Prepare, parties);
        }
        self.remember_ledger(parties);
        let all = !self.pipeline.is_failed();
        if all {
            self.close_shared(form);
            self.close_strangers(form, parties);
            let named = parties.session.named_statements();
            let own: Vec<_> = named
                .map(|(name, named)| (Box::<[u8]>::from(name), named.statement.clone()))
                .collect();
            for (name, statement) in own {
                self.ensure_own(&name, &statement, form, parties);
            }
        }
        if let Some(lease) = self.lease.as_mut() {
            let name = name.filter(|_| !all);
            parties.session.leave_to_backend(name, &mut lease.state);
        }
        self.note_pin();
    }

    /// A group of ours ahead of a Query has no Sync yet.
    pub(super) fn end_apart(&mut self) {
        self.up.say(|out| compose::bare_frontend(out, FrontendTag::Sync));
        self.expect(Request::Sync, Fate::Swallow, Note::None);
    }

    /// A text that nobody reads is about to be sent.
    pub(super) fn before_unread_names(&mut self, request: Request, parties: &mut Parties<'_>) {
        let effects = Effects {
            lists_statements: false,
            ..Effects::opaque(PinReason::LargeStatement)
        };
        if !self.pipeline.is_failed() {
            self.agree_on_hidden_names(&effects, request == Request::Query, parties);
        }
    }
}

// --- portals ---

impl Exchange {
    /// A portal is about to be bound to a statement of this text.
    pub(super) fn bind_names(&mut self, portal: &[u8], text: &[u8], effects: &Effects, parties: &mut Parties<'_>) {
        let request = Request::Bind;
        let naming = Naming { effects, text, request };
        if let Agreed::Yes(names) = self.agree_on_names(&naming, parties) {
            self.names_bound(portal, names, parties);
        }
    }

    /// A portal was bound to a statement that has to do with names.
    fn names_bound(&mut self, portal: &[u8], names: NameChanges, parties: &mut Parties<'_>) {
        self.named_portals.forget(portal);
        if names.is_empty() {
            return;
        }
        if self.named_portals.0.len() < PORTALS_MAX {
            self.named_portals.0.push((portal.into(), names));
            return;
        }
        for change in names.changes {
            match change {
                NameChange::Prepared(Some((name, _))) | NameChange::Deallocated(Some(name)) => {
                    self.leave_to_backend(Some(&name), Form::Together, parties);
                }
                _ => {}
            }
        }
    }

    /// What an Execute has to do with names; or that more of it must be read.
    pub(super) fn names_of_execute(&mut self, header: Header) -> Result<NameChanges, Next> {
        if self.named_portals.0.is_empty() {
            return Ok(NameChanges::default());
        }
        let Some(body) = self.up.whole_body(header) else {
            return Err(Next::Wants(header.frame_len()));
        };
        // PostgreSQL says what is wrong with one that can't be read.
        let portal = Execute::parse(body).map(|execute| execute.portal).unwrap_or_default();
        let position = self.named_portals.0.iter().position(|(name, _)| **name == *portal);
        let names = position.map(|position| self.named_portals.0.swap_remove(position).1);
        Ok(names.unwrap_or_default())
    }
}

// --- replies ---

impl Exchange {
    /// Whether what a Query executes still has the columns that it had when SQL prepared it.
    fn compare_executed(&mut self, names: NameChanges, parties: &mut Parties<'_>) -> Agreed {
        let [name] = &names.executes[..] else {
            return Agreed::Yes(names);
        };
        match self.compare_own_columns(name, &mut None, parties) {
            Columns::Agree => Agreed::Yes(names),
            Columns::Differ => Agreed::Stale,
            Columns::Unknown => {
                self.ahead = AheadOfQuery::Awaited;
                Agreed::NotYet(self.await_replies())
            }
        }
    }

    /// PostgreSQL calls a plan stale that has to do with names. What clients share of it is made again before its next use.
    pub(super) fn note_stale_names(&mut self, parties: &mut Parties<'_>) {
        let asks = self.pipeline.head_is_ours();
        let Some(note) = self.pipeline.pending_mut().next() else {
            return;
        };
        match note {
            Note::Described(described) if asks && described.told != 0 => {
                parties.session.columns_are_stale(described.told);
            }
            note => {
                let Some(names) = note.names_mut() else { return };
                if let Some(lease) = self.lease.as_mut() {
                    names.executes.iter().for_each(|name| lease.state.own.doubt(name));
                }
                parties.session.forget_shared_statements();
            }
        }
    }
}

impl Exchange {
    /// The backend is gone, with its portals and what was said to it.
    pub(super) fn forget_names(&mut self) {
        self.ahead = AheadOfQuery::Nothing;
        self.named_portals = NamedPortals::default();
        self.asks_of_columns = false;
    }

    /// What has to do with names is being sent.
    pub(super) fn names_sent(&mut self, names: &NameChanges) {
        self.forgetting |= !names.changes.is_empty();
    }

    /// A Query is under way behind what it depends on: nothing follows it before it is answered.
    pub(super) fn awaits_query(&mut self) -> bool {
        if self.ahead == AheadOfQuery::Sent && self.pipeline.is_quiet() {
            self.ahead = AheadOfQuery::Nothing;
        }
        self.ahead != AheadOfQuery::Nothing && !self.pipeline.is_quiet() && !self.pipeline.awaits_copy_data()
    }

    /// What was said ahead of a Query has failed, and PostgreSQL has skipped the Query or would: the client has the error,
    /// and gets its ReadyForQuery from a Sync of ours.
    pub(super) fn end_failed_query(&mut self, parties: &mut Parties<'_>) {
        if std::mem::take(&mut self.ahead) == AheadOfQuery::Awaited {
            self.skip_refused();
        }
        // A Query ends the unnamed statement, come what may.
        let note = parties.session.forget_unnamed(None);
        let note = note.reporting(parties.session.unreported());
        self.up.say(|out| compose::bare_frontend(out, FrontendTag::Sync));
        self.expect(Request::Sync, Fate::Forward, note);
    }

    /// Whether an error of the request at the head is one of what was said ahead of a Query.
    pub(super) fn fails_ahead_of_query(&self) -> bool {
        self.ahead != AheadOfQuery::Nothing && self.pipeline.head_is_ours()
    }

    /// PREPARE or DEALLOCATE has run.
    pub(super) fn on_name_tag(&mut self, tag: &[u8], parties: &mut Parties<'_>) {
        let Some(lease) = self.lease.as_mut() else { return };
        let note = self.pipeline.pending_mut().next();
        match note.and_then(Note::names_mut).and_then(|names| names.take(tag)) {
            Some(NameChange::Prepared(Some((name, statement)))) => {
                parties.session.prepared_by_sql(&name, statement, &mut lease.state);
            }
            Some(NameChange::Deallocated(Some(name))) => parties.session.deallocated_by_sql(&name, &mut lease.state),
            _ => {}
        }
    }

    /// A Query whose statement is stale: one that PostgreSQL refuses takes its place.
    pub(super) fn pass_stale(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        let ended = parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        let unknown = parties.session.unused_name();
        self.expect_stale_refusal(Request::Query, ended.reporting(parties.session.unreported()));
        self.up
            .say(|out| compose::query(out, &[b"EXECUTE ", &unknown[..]].concat()));
        self.up.skip(header);
        Next::Done
    }
}

/// The names that a text's EXECUTEs mention, with the numbers of their statements.
fn executed(effects: &Effects) -> impl Iterator<Item = (u32, Option<&[u8]>)> {
    effects.steps.iter().filter_map(|step| match &step.action {
        Action::Execute(name) => Some((step.statement, name.as_deref())),
        _ => None,
    })
}

fn named(action: &Action) -> Option<&[u8]> {
    match action {
        Action::Execute(name) | Action::Prepare(name) | Action::Deallocate(name) => name.as_deref(),
        _ => None,
    }
}
