//! What one backend is told of clients' own names: statements that are made under them, closed, and described.
//!
//! [`super::own_names`] says which names a message is about.

use std::sync::Arc;

use super::extended_query::{renamed, renamed_behind};
use super::own_names::{Agreed, Form};
use super::stale_plan::Columns;
use super::to_backend::Next;
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::statement_effects::Effects;
use crate::virtual_session::statements::{NamedStatement, Statement};
use crate::virtual_session::{Described, Note, Reread, Teaching};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{FrontendTag, HEADER_LEN, Header, Report, compose};

/// A statement that PostgreSQL parses whatever has happened before.
const PLACEHOLDER: &[u8] = b"ROLLBACK\0\0\0";

impl Exchange {
    /// The backend knows nothing by this name, or is told to forget it.
    pub(super) fn close_own(&mut self, name: &[u8], form: Form) {
        let removed = self.lease.as_mut().is_some_and(|lease| lease.state.own.remove(name));
        if removed {
            self.up.say(|out| compose::close_statement(out, name));
            self.expect(Request::Close, form.fate(), Note::OwnName(name.into()));
        }
    }

    /// The same for a message of the protocol that names what the ledger doesn't know.
    pub(super) fn close_stranger(&mut self, name: &[u8]) {
        self.close_own(name, Form::Together);
    }

    /// The backend closes a name by a message of the client's own.
    pub(super) fn note_closed_own(&mut self, name: &[u8]) -> Note {
        let removed = self.lease.as_mut().is_some_and(|lease| lease.state.own.remove(name));
        if removed {
            Note::OwnName(name.into())
        } else {
            Note::None
        }
    }

    /// The backend knows something by this name, whatever it is: what comes is about the name alone.
    pub(super) fn ensure_some(&mut self, name: &[u8], form: Form) {
        if self
            .lease
            .as_mut()
            .is_some_and(|lease| lease.state.own.touch_some(name))
        {
            return;
        }
        self.close_own(name, form);
        self.up.say(|out| compose::parse(out, name, PLACEHOLDER));
        self.expect(Request::Parse, form.fate(), Note::OwnName(name.into()));
        if let Some(lease) = self.lease.as_mut() {
            lease.state.own.doubt(name);
        }
    }

    /// The backend knows the client's own statement by its name.
    pub(super) fn ensure_own(&mut self, name: &[u8], of: &Arc<Statement>, form: Form, parties: &mut Parties<'_>) {
        if self
            .lease
            .as_mut()
            .is_none_or(|lease| lease.state.own.touch(name, of.id))
        {
            return;
        }
        let reported = |name: &str| parties.neutral.contains(name);
        let schemas = parties.rules.pool.knowledge().schemas();
        let (statement, switch) = match parties.session.teaching(of, reported, schemas.as_deref()) {
            Teaching::AsItIs => (of.clone(), None),
            Teaching::AsOnesOwn(switch) => (parties.session.own_statement(name, of), switch),
            Teaching::Under(switch) => (of.clone(), Some(switch)),
        };
        self.close_own(name, form);
        if self.pipeline.is_failed() && form == Form::Apart {
            // PostgreSQL would refuse to make it: the name is unknown here (26000).
            return;
        }
        if let Some(switch) = &switch {
            self.inject_as(&switch.before, &form.fate(), Note::None);
        }
        let note = Note::OwnName(name.into());
        if statement.is_from_sql() {
            self.inject_as(statement.sql(), &form.fate(), note);
        } else {
            self.up.say(|out| compose::parse(out, name, &statement.definition));
            self.expect(Request::Parse, form.fate(), note);
        }
        if let Some(switch) = &switch {
            self.inject_as(&switch.after, &form.fate(), Note::None);
        }
        if let Some(lease) = self.lease.as_mut() {
            lease.state.own.insert(name, Some(statement));
        }
    }

    /// Both kinds of statements together weigh no more than `pool.statement_cache_bytes`. Amid a transaction a portal may
    /// yet ask for any of them.
    pub(super) fn make_room_for_own(&mut self, bytes_max: usize) {
        if self.pipeline.status() != TransactionStatus::Idle || self.pipeline.is_unsynced() {
            return;
        }
        let evict = |lease: &mut crate::pool::Lease| {
            let left = bytes_max.saturating_sub(lease.state.statements.bytes());
            lease.state.own.evict(left.max(bytes_max / 2))
        };
        while let Some(name) = self.lease.as_mut().and_then(evict) {
            self.up.say(|out| compose::close_statement(out, &name));
            self.expect(Request::Close, Fate::Swallow, Note::OwnName(name));
        }
    }

    /// Nothing that others left is known to the backend by a name.
    pub(super) fn close_strangers(&mut self, form: Form, parties: &Parties<'_>) {
        let Some(lease) = self.lease.as_ref() else { return };
        let is_own = |name: &[u8], id: u64| parties.session.statement(name).is_some_and(|own| own.id == id);
        let strangers: Vec<Box<[u8]>> = lease
            .state
            .own
            .names()
            .filter(|(name, id)| !is_own(name, *id))
            .map(|(name, _)| name.into())
            .collect();
        for name in strangers {
            self.close_own(&name, form);
        }
    }

    /// What clients share is not on the backend.
    pub(super) fn close_shared(&mut self, form: Form) {
        let shared = self.lease.as_mut().map(|lease| lease.state.statements.take_all());
        for statement in shared.into_iter().flatten() {
            self.up.say(|out| compose::close_statement(out, &statement.name));
            self.expect(Request::Close, form.fate(), Note::Evicted(statement));
        }
    }
}

impl Exchange {
    /// As [`Self::compare_columns`].
    pub(super) fn compare_own_columns(
        &mut self,
        name: &[u8],
        reread: &mut Option<Reread>,
        parties: &mut Parties<'_>,
    ) -> Columns {
        let Some(named) = parties
            .session
            .named(name)
            .filter(|named| parties.session.must_compare(named))
        else {
            return Columns::Agree;
        };
        let id = named.statement.id;
        let shape = self.lease.as_ref().and_then(|lease| lease.state.own.shape(name));
        match (shape, named.told) {
            (Some(now), Some(told)) if now == told => Columns::Agree,
            (Some(_), _) => Columns::Differ,
            (None, _) => {
                let note = Note::Described(Described { id, told: 0 }).rereading(reread.take());
                self.describe_own(name, &Fate::Swallow, note);
                Columns::Unknown
            }
        }
    }

    fn describe_own(&mut self, name: &[u8], fate: &Fate, note: Note) {
        self.up
            .say(|out| compose::frame(out, FrontendTag::Describe.byte(), &[b"S", name, b"\0"]));
        self.expect(Request::DescribeStatement, fate.clone(), note);
    }

    /// Between transactions: asks PostgreSQL for the columns of what SQL has just prepared, while that is as it was.
    /// Nobody waits for the answer, but the backend stays with its client until it has come. Says whether something is
    /// to be sent.
    pub(super) fn ask_of_columns(&mut self, parties: &mut Parties<'_>) -> bool {
        if !parties.session.has_untold_columns() || !self.pipeline.is_settled() || self.up.is_amid_message() {
            return false;
        }
        let Some(lease) = self.lease.as_mut() else {
            return false;
        };
        let untold = parties.session.take_untold_columns(&mut lease.state);
        self.asks_of_columns = !untold.is_empty();
        self.asked_at = Some(std::time::Instant::now());
        for (name, id, told) in &untold {
            self.describe_own(
                name,
                &Fate::Silence,
                Note::Described(Described { id: *id, told: *told }),
            );
            self.end_apart();
        }
        !untold.is_empty()
    }
}

impl Exchange {
    /// Before a Bind or Describe of a statement that the backend knows by the client's own name. `None`: it may pass.
    pub(super) fn before_own_name(
        &mut self,
        name: &[u8],
        named: &NamedStatement,
        reread: &mut Option<Reread>,
        parties: &mut Parties<'_>,
    ) -> Option<Agreed> {
        if parties.session.keeps_names_on_backend() {
            return None;
        }
        let statement = parties.session.statement(name).unwrap_or(&named.statement).clone();
        self.ensure_own(name, &statement, Form::Together, parties);
        match self.compare_own_columns(name, reread, parties) {
            Columns::Agree => None,
            Columns::Unknown => Some(Agreed::NotYet(self.await_replies())),
            Columns::Differ => {
                parties.session.undo_reread(reread.take());
                Some(Agreed::Stale)
            }
        }
    }

    /// Bind of a statement that the backend knows by the client's own name.
    pub(super) fn bind_own_name(
        &mut self,
        header: Header,
        (portal, name): (&[u8], &[u8]),
        named: &NamedStatement,
        effects: &Effects,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        let mut reread = self.reread_own(name, &[], parties);
        match self.before_own_name(name, named, &mut reread, parties) {
            None | Some(Agreed::Yes(_)) => {}
            Some(Agreed::NotYet(next)) => return Ok(next),
            Some(Agreed::Stale) => {
                self.pass_stale_bind(header, portal, name, parties);
                return Ok(Next::Done);
            }
        }
        if let Some(lease) = &self.lease {
            lease.note_statement(named.statement.sql(), parties.session.lexing());
        }
        self.apply(effects, Request::Bind, parties);
        self.listening_bound(portal, effects, parties)?;
        self.expect(Request::Bind, Fate::Forward, Note::None.rereading(reread));
        self.up.pass(header);
        Ok(Next::Done)
    }

    /// The same for its Describe.
    pub(super) fn describe_own_name(
        &mut self,
        header: Header,
        name: &[u8],
        named: &NamedStatement,
        parties: &mut Parties<'_>,
    ) -> Next {
        let mut reread = self.reread_own(name, &[], parties);
        match self.before_own_name(name, named, &mut reread, parties) {
            None | Some(Agreed::Yes(_)) => {
                self.expect(Request::DescribeStatement, Fate::Forward, Note::None.rereading(reread));
                self.up.pass(header);
            }
            Some(Agreed::NotYet(next)) => return next,
            Some(Agreed::Stale) => self.pass_stale_describe(header, name, parties),
        }
        Next::Done
    }

    /// A Bind whose statement has other columns than the client was told: PostgreSQL is made to refuse it.
    pub(super) fn pass_stale_bind(&mut self, header: Header, portal: &[u8], name: &[u8], parties: &Parties<'_>) {
        self.expect_stale_refusal(Request::Bind, Note::None);
        let unknown = parties.session.unused_name();
        let replaced = HEADER_LEN + portal.len() + 1 + name.len();
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, name.len(), &[portal, b"\0"], &unknown);
        });
    }

    /// The same for a Describe.
    pub(super) fn pass_stale_describe(&mut self, header: Header, name: &[u8], parties: &Parties<'_>) {
        self.expect_stale_refusal(Request::DescribeStatement, Note::None);
        let unknown = parties.session.unused_name();
        let replaced = HEADER_LEN + 1 + name.len();
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name.len(), b"S", &unknown);
        });
    }
}
