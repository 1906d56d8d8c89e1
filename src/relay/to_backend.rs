//! The rules for the client's messages: which pass, which are rewritten, which are answered by us.

use std::sync::Arc;

use bytes::Bytes;

use super::stale_plan::Columns;
use super::{Exchange, Parties};
use crate::backend::parameters::is_settable;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::statement_effects::{Action, Effects, SequenceUse, Step};
use crate::virtual_session::statements::{NamedStatement, Statement};
use crate::virtual_session::{Described, Note, SWITCH_NAME, Teaching, UnnamedStep, VirtualSession};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::{BindHead, Named, Parse, Query, Target};
use crate::wire::{
    BackendTag, FrontendTag, HEADER_LEN, Header, Malformed, Report, SMALL_MESSAGE_LEN_MAX, SqlState, compose,
};

/// Where the walk over the client's messages stopped.
pub(super) enum Scan {
    /// More bytes are needed: a whole message of this length (0: any).
    Wants(usize),
    /// The next message needs a backend.
    NeedsBackend,
    /// The client said Terminate.
    Terminated,
    /// The next message may only be sent when the prelude has succeeded.
    Held,
}

/// What one message led to.
pub(super) enum Next {
    Done,
    Wants(usize),
    NeedsBackend,
    Terminated,
    Held,
}

/// Requests that may wait for their replies at a time. PostgreSQL writes out what it owes long before so many are owed, so
/// this bounds our memory and stops nobody.
const REQUESTS_MAX: usize = 8192;
/// Object identifiers of the large-object functions, which drivers call by FunctionCall and which leave nothing behind
/// in the session (their descriptors end with the transaction). The same in every PostgreSQL version.
const LARGE_OBJECT_FUNCTIONS: [u32; 13] = [715, 764, 765, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170];
/// Makes a backend forget the values that its sequences gave.
const FORGET_SEQUENCES: &[u8] = b"DISCARD SEQUENCES";
/// The statement and portal that say so amid a client's group; they exist for no longer.
const FORGETTING: &[u8] = b"pgsidecar forgets sequences";
const LARGE_OBJECT_FUNCTIONS_64: [u32; 2] = [3171, 3172];

impl Exchange {
    /// Decides on every message of the client's that has arrived.
    pub(super) fn scan_client(&mut self, parties: &mut Parties<'_>) -> Result<Scan, Report> {
        loop {
            let Some(header) = self.up.next_header().map_err(invalid_length)? else {
                return Ok(Scan::Wants(0));
            };
            if self.pipeline.len() >= REQUESTS_MAX {
                return Ok(Scan::Held);
            }
            let tag = header.frontend().map_err(|cause| invalid_message(header, cause))?;
            let next = if self.lost.is_some() {
                self.on_message_after_loss(header, tag, parties)?
            } else {
                self.on_message(header, tag, parties)?
            };
            match next {
                Next::Done => {}
                Next::Wants(whole) => return Ok(Scan::Wants(whole)),
                Next::NeedsBackend => return Ok(Scan::NeedsBackend),
                Next::Terminated => return Ok(Scan::Terminated),
                Next::Held => return Ok(Scan::Held),
            }
        }
    }

    fn on_message(&mut self, header: Header, tag: FrontendTag, parties: &mut Parties<'_>) -> Result<Next, Report> {
        if self.pipeline.is_streaming_both_ways() && tag != FrontendTag::Terminate {
            self.up.pass(header);
            return Ok(Next::Done);
        }
        match tag {
            FrontendTag::Terminate => Ok(Next::Terminated),
            FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => Ok(self.on_copy(header, tag)),
            FrontendTag::Sync => Ok(self.on_sync(header, parties)),
            FrontendTag::Authentication => Err(Report::fatal(
                SqlState::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {}", header.tag),
            )),
            _ if self.pipeline.is_skipping() => {
                // The group has failed; PostgreSQL would throw these away, so they are not sent.
                self.up.skip(header);
                Ok(Next::Done)
            }
            FrontendTag::Flush => {
                if self.lease.is_some() {
                    self.up.pass(header)
                } else {
                    self.up.skip(header)
                }
                Ok(Next::Done)
            }
            FrontendTag::Close => self.on_close(header, parties),
            FrontendTag::Query => self.on_query(header, parties),
            FrontendTag::Parse => self.on_parse(header, parties),
            FrontendTag::Bind => self.on_bind(header, parties),
            FrontendTag::Describe => self.on_describe(header, parties),
            FrontendTag::Execute => Ok(self.on_execute(header, parties)),
            FrontendTag::FunctionCall => Ok(self.on_function_call(header, parties)),
        }
    }

    // --- messages that no ledger is needed for ---

    fn on_copy(&mut self, header: Header, tag: FrontendTag) -> Next {
        if tag != FrontendTag::CopyData {
            self.pipeline.copy_ended();
        }
        // Late data after an error is dropped by PostgreSQL; where nothing is owed, no backend may see it (trap 49).
        let awaited = self.lease.is_some() && !self.pipeline.is_skipping() && !self.pipeline.is_quiet();
        if awaited {
            self.up.pass(header)
        } else {
            self.up.skip(header)
        }
        Next::Done
    }

    fn on_sync(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        let needed = self.lease.is_some() && !self.pipeline.is_answerable();
        if needed {
            let note = Note::None.reporting(parties.session.unreported());
            self.expect(Request::Sync, Fate::Forward, note);
            self.up.pass(header);
        } else {
            self.expect(Request::Sync, Fate::Answer(Bytes::new()), Note::None);
            self.up.skip(header);
            self.say_due();
        }
        Next::Done
    }

    fn on_execute(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        self.expect(Request::Execute, Fate::Forward, Note::None);
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    fn on_function_call(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        let oid = match self.up.body_prefix(header).first_chunk::<4>() {
            Some(oid) => u32::from_be_bytes(*oid),
            None if header.body_len >= 4 => return Next::Wants(HEADER_LEN + 4),
            // Too short to name one: PostgreSQL says so.
            None => 0,
        };
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        let is_known = LARGE_OBJECT_FUNCTIONS.contains(&oid) || LARGE_OBJECT_FUNCTIONS_64.contains(&oid);
        if let Some(lease) = self.lease.as_ref().filter(|_| !is_known) {
            // It has no text.
            lease.note_statement(b"", parties.session.lexing());
            self.pin(PinReason::Routine, parties);
        }
        self.commit_at_risk |= self.pipeline.status() == TransactionStatus::Idle;
        self.expect(Request::FunctionCall, Fate::Forward, Note::None);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    // --- simple queries ---

    fn on_query(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let limit = parties.rules.statement_bytes;
        if header.body_len > limit {
            return Ok(self.on_unread_statement(header, Request::Query, parties));
        }
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let sql = Query::parse(body).map_err(|cause| invalid_message(header, cause))?.sql;
        if self.lease.is_none() && parties.session.statement_bytes() == 0 {
            // Nothing could be answered without a backend: the text is read when there is one.
            return Ok(Next::NeedsBackend);
        }
        let effects = self.classify(sql, parties);
        if let Some(answered) = self.answer_deallocate(header, &effects, parties) {
            return Ok(answered);
        }
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        if self.materialise_named(&effects, Fate::Silence, parties) {
            self.up.say(|out| compose::bare_frontend(out, FrontendTag::Sync));
            self.expect(Request::Sync, Fate::Swallow, Note::None);
        }
        self.note_query(header, parties);
        let note = parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        self.apply(&effects, Request::Query, parties);
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        let note = note.reporting(parties.session.unreported());
        self.expect(Request::Query, Fate::Forward, note);
        self.up.pass(header);
        self.tally.queries += 1;
        Ok(Next::Done)
    }

    /// Lets the report of who holds the backends name this Query.
    fn note_query(&self, header: Header, parties: &Parties<'_>) {
        if let Some(lease) = &self.lease {
            let body = self.up.body_prefix(header);
            let sql = body.strip_suffix(b"\0").unwrap_or(body);
            lease.note_statement(sql, parties.session.lexing());
        }
    }

    /// A statement too long to be read for its effects: it passes, and anything may have happened.
    fn on_unread_statement(&mut self, header: Header, request: Request, parties: &mut Parties<'_>) -> Next {
        let Some(&first) = self.up.body_prefix(header).first() else {
            return Next::Wants(HEADER_LEN + 1);
        };
        if let Some(stop) = self.before_backend(parties, Some(&Effects::opaque(PinReason::LargeStatement))) {
            return stop;
        }
        if request == Request::Query {
            self.note_query(header, parties);
        }
        self.pin(PinReason::LargeStatement, parties);
        let Some(lease) = self.lease.as_mut() else {
            return Next::NeedsBackend;
        };
        let note = match request {
            Request::Query => parties.session.forget_unnamed(Some(&mut lease.state)),
            _ if first == 0 => parties.session.parse_unnamed_unread(&mut lease.state),
            _ => Note::None,
        };
        self.commit_at_risk = true;
        self.expect(request, Fate::Forward, note);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    /// `DEALLOCATE name` of a statement that was prepared by protocol (PHP's PDO says so): no backend knows that name.
    fn answer_deallocate(&mut self, header: Header, effects: &Effects, parties: &mut Parties<'_>) -> Option<Next> {
        let name = deallocated_name(effects)?;
        parties.session.statement(name)?;
        if self.pipeline.is_failed() {
            return None;
        }
        if let Some(stop) = self.before_name() {
            return Some(stop);
        }
        let note = parties.session.close(name)?;
        if self.pipeline.is_unsynced() {
            self.pass_deallocate(header, note, parties);
            return Some(Next::Done);
        }
        // A Query it is all the same, and ends the unnamed statement: an entry that says nothing stands for that.
        let ended = parties.session.forget_unnamed(None);
        self.expect(Request::FunctionCall, Fate::Answer(Bytes::new()), ended);
        let mut tag = bytes::BytesMut::new();
        compose::frame(&mut tag, BackendTag::CommandComplete.byte(), &[b"DEALLOCATE\0"]);
        self.expect(Request::Query, Fate::AnswerUnlessFailed(tag.freeze()), note);
        self.up.skip(header);
        self.say_due();
        Some(Next::Done)
    }

    /// A DEALLOCATE inside a group ends the group's implicit transaction, so PostgreSQL must have one.
    fn pass_deallocate(&mut self, header: Header, closed: Note, parties: &mut Parties<'_>) {
        let victim = parties.session.unused_name();
        let ended = parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        self.up.say(|out| compose::parse(out, &victim, b"\0\0\0"));
        self.expect(Request::Parse, Fate::Swallow, ended);
        self.up
            .say(|out| compose::query(out, &[b"DEALLOCATE ", victim.as_slice()].concat()));
        self.expect(Request::Query, Fate::Forward, closed);
        self.up.skip(header);
    }

    /// Bind of `DEALLOCATE name` where the name is a protocol-level one: the backend is given a statement to deallocate
    /// in place of the shared one, and the client's name is gone.
    fn bind_deallocate(
        &mut self,
        header: Header,
        portal: &[u8],
        replaced: usize,
        name: &[u8],
        parties: &mut Parties<'_>,
    ) -> bool {
        let Some(note) = parties.session.close(name) else {
            return false;
        };
        let victim = parties.session.unused_name();
        let sql = [b"DEALLOCATE ", victim.as_slice(), b"\0\0\0"].concat();
        self.up.say(|out| {
            compose::parse(out, &victim, b"\0\0\0");
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, &sql);
        });
        for request in [Request::Parse, Request::Close, Request::Parse] {
            self.expect(request, Fate::Swallow, Note::None);
        }
        self.expect(Request::Bind, Fate::Forward, note);
        let old_len = replaced - HEADER_LEN - portal.len() - 1;
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, old_len, &[portal, b"\0"], SWITCH_NAME);
        });
        true
    }

    /// SQL's EXECUTE, PREPARE and DEALLOCATE share their names with the protocol's statements (trap 30). Where a text
    /// names one of the client's, the backend is given it under that name, and is kept.
    fn materialise_named(&mut self, effects: &Effects, fate: Fate, parties: &mut Parties<'_>) -> bool {
        let mut any = false;
        if effects.steps.is_empty() || (fate == Fate::Silence && self.pipeline.is_unsynced()) {
            return any;
        }
        for step in &effects.steps {
            let Some(name) = named_statement(&step.action) else {
                continue;
            };
            let Some(statement) = parties.session.statement(name).cloned() else {
                continue;
            };
            let Some(note) = parties.session.hand_over(name) else {
                continue;
            };
            self.note_pin();
            self.up.say(|out| compose::parse(out, name, &statement.definition));
            self.expect(Request::Parse, fate.clone(), note);
            any = true;
        }
        any
    }

    // --- the extended protocol ---

    fn on_parse(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        if header.body_len > parties.rules.statement_bytes {
            return Ok(self.on_unread_statement(header, Request::Parse, parties));
        }
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let parse = Parse::parse(body).map_err(|cause| invalid_message(header, cause))?;
        let known = parties.session.statement(parse.name).cloned();
        if known.is_none()
            && self.lease.is_none()
            && !parse.name.is_empty()
            && parties.session.statement_bytes() + parse.definition.len() <= parties.rules.client_statement_bytes
            && parties.session.prepare_proven(parse.name, parse.definition)
        {
            self.expect(
                Request::Parse,
                Fate::Answer(Bytes::from_static(b"1\0\0\0\x04")),
                Note::None,
            );
            self.up.skip(header);
            self.say_due();
            return Ok(Next::Done);
        }
        if self.lease.is_none() {
            return Ok(Next::NeedsBackend);
        }
        let effects = match &known {
            Some(statement) => statement.effects.clone(),
            None => self.classify(parse.sql, parties),
        };
        let named = !parse.name.is_empty();
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        if let Some(stop) = self.before_name().filter(|_| named) {
            return Ok(stop);
        }
        let Some(lease) = self.lease.as_mut() else {
            return Ok(Next::NeedsBackend);
        };
        let body = self.up.whole_body(header).unwrap_or_default();
        let parse = Parse::parse(body).map_err(|cause| invalid_message(header, cause))?;
        lease.note_statement(parse.sql, parties.session.lexing());
        if parse.name.is_empty() {
            let note = parties
                .session
                .parse_unnamed(parse.definition, effects, &mut lease.state);
            self.expect(Request::Parse, Fate::Forward, note);
            self.up.pass(header);
            return Ok(Next::Done);
        }
        let held = parties.session.statement_bytes() + parse.name.len() + parse.definition.len();
        let too_much = held > parties.rules.client_statement_bytes;
        match known {
            Some(_) => self.parse_duplicate(header),
            None if parties.session.may_be_own(parse.name) => {
                // PostgreSQL knows whether the name is free.
                self.pin(PinReason::Prepare, parties);
                self.expect(Request::Parse, Fate::Forward, Note::None);
                self.up.pass(header);
            }
            None if too_much || parties.session.is_reserved(parse.name) => {
                // Kept by the backend under the client's own name; only this backend has it.
                self.pin(PinReason::LargeStatement, parties);
                self.expect(Request::Parse, Fate::Forward, Note::None);
                self.up.pass(header);
            }
            None => self.parse_shared(header, effects, parties),
        }
        Ok(Next::Done)
    }

    fn parse_shared(&mut self, header: Header, effects: Effects, parties: &mut Parties<'_>) {
        let (Some(lease), Some(body)) = (self.lease.as_mut(), self.up.whole_body(header)) else {
            return;
        };
        let Ok(parse) = Parse::parse(body) else {
            return;
        };
        let exits = effects.exits_failed_block;
        let statement = parties.session.prepare(parse.name, parse.definition, || effects);
        let generation = parties.session.generation();
        let mut held = lease.state.statements.touch(&statement, generation);
        let name = parse.name.to_vec();
        let replaced = HEADER_LEN + name.len();
        if (held && self.pipeline.is_failed() && !exits) || (!held && lease.state.statements.holds(statement.id)) {
            // PostgreSQL must refuse it, or not, if a ROLLBACK is on its way, or parse it as the catalog is now: it gets to
            // see it as a new one.
            lease.state.statements.remove(statement.id);
            held = false;
            self.up.say(|out| compose::close_statement(out, &statement.name));
            self.expect(Request::Close, Fate::Swallow, Note::Evicted(statement.clone()));
        }
        let note = VirtualSession::prepared_note(&name, statement.clone(), !held);
        if held {
            let complete = Bytes::from_static(b"1\0\0\0\x04");
            let fate = if exits {
                Fate::Answer(complete)
            } else {
                Fate::AnswerUnlessFailed(complete)
            };
            self.expect(Request::Parse, fate, note);
            self.up.skip(header);
            self.say_due();
            return;
        }
        self.make_room_for(&statement, generation, parties.rules.backend_statement_bytes);
        self.expect(Request::Parse, Fate::Forward, note);
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, replaced - HEADER_LEN, b"", &statement.name)
        });
    }

    /// A Parse of a name that the client already uses: PostgreSQL is made to say so (42P05), in the client's own words.
    /// It first looks at the text, so the name is taken by a statement that can be parsed even in a failed transaction.
    fn parse_duplicate(&mut self, header: Header) {
        let body = self.up.whole_body(header).unwrap_or_default();
        let name = Parse::parse(body).map(|parse| parse.name.to_vec()).unwrap_or_default();
        let report = Report::error(
            SqlState::DUPLICATE_PREPARED_STATEMENT,
            format!(
                "prepared statement \"{}\" already exists",
                String::from_utf8_lossy(&name)
            ),
        );
        let mut words = bytes::BytesMut::new();
        compose::report(&mut words, &report);
        self.up.say(|out| {
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, b"ROLLBACK\0\0\0");
        });
        self.expect(Request::Close, Fate::Swallow, Note::None);
        self.expect(Request::Parse, Fate::Swallow, Note::None);
        self.expect(Request::Parse, Fate::Substitute(*b"42P05", words.freeze()), Note::None);
        let replaced = HEADER_LEN + name.len();
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name.len(), b"", SWITCH_NAME)
        });
    }

    fn on_bind(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let head = match BindHead::parse(self.up.body_prefix(header)) {
            Ok(head) => head,
            Err(Malformed::Unterminated)
                if self.up.body_prefix(header).len() < header.body_len.min(SMALL_MESSAGE_LEN_MAX) =>
            {
                return Ok(Next::Wants(header.frame_len().min(HEADER_LEN + SMALL_MESSAGE_LEN_MAX)));
            }
            Err(cause) => return Err(invalid_message(header, cause)),
        };
        self.untold_portal = None;
        if head.statement.is_empty() {
            return Ok(self.on_unnamed(header, Request::Bind, parties));
        }
        let Some(NamedStatement {
            statement,
            told,
            number,
        }) = parties.session.named(head.statement).cloned()
        else {
            let offset = head.statement_offset;
            let reserved = parties.session.is_reserved(head.statement);
            return Ok(self.on_unknown_name(header, Request::Bind, offset, reserved, parties));
        };
        let (portal, name) = (head.portal.to_vec(), head.statement.to_vec());
        let effects = self.effects_now(&statement.effects, statement.sql(), parties);
        let is_first = self.pipeline.is_settled();
        if let Some(stop) = self
            .before_backend(parties, Some(&effects))
            .or_else(|| self.before_name())
            .or_else(|| self.before_teaching(&statement, parties))
        {
            return Ok(stop);
        }
        if let Some(deallocated) = deallocated_name(&statement.effects) {
            let replaced = HEADER_LEN + portal.len() + 1 + name.len();
            if self.bind_deallocate(header, &portal, replaced, deallocated, parties) {
                return Ok(Next::Done);
            }
        }
        self.materialise_named(&statement.effects, Fate::Swallow, parties);
        if is_first {
            self.allow_second_try();
        }
        let replaced = HEADER_LEN + portal.len() + 1 + name.len();
        let statement = self.ensure_parsed(&name, &statement, parties);
        match self.compare_columns(&statement, told) {
            Columns::Agree => {}
            Columns::Unknown => return Ok(self.await_replies()),
            Columns::Differ => {
                self.expect_stale_refusal(Request::Bind);
                let unknown = parties.session.unused_name();
                self.up.pass_behind(header, replaced, |out| {
                    renamed_behind(out, header, name.len(), &[&portal, b"\0"], &unknown);
                });
                return Ok(Next::Done);
            }
        }
        if told.is_none() {
            self.note_portal(&portal, statement.id, number);
        }
        if let Some(lease) = &self.lease {
            lease.note_statement(statement.sql(), parties.session.lexing());
        }
        self.apply(&effects, Request::Bind, parties);
        self.expect(Request::Bind, Fate::Forward, Note::Bound(statement.id));
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, name.len(), &[&portal, b"\0"], &statement.name);
        });
        Ok(Next::Done)
    }

    fn on_describe(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let named = Named::parse(body).map_err(|cause| invalid_message(header, cause))?;
        if named.target == Target::Portal {
            if let Some(stop) = self.before_backend(parties, None) {
                return Ok(stop);
            }
            let body = self.up.whole_body(header).unwrap_or_default();
            let portal = Named::parse(body).map(|named| named.name.to_vec()).unwrap_or_default();
            let note = self.portal_note(&portal);
            self.expect(Request::DescribePortal, Fate::Forward, note);
            self.up.pass(header);
            return Ok(Next::Done);
        }
        if named.name.is_empty() {
            return Ok(self.on_unnamed(header, Request::DescribeStatement, parties));
        }
        let name = named.name.to_vec();
        let is_first = self.pipeline.is_settled();
        let Some(NamedStatement {
            statement,
            told,
            number,
        }) = parties.session.named(named.name).cloned()
        else {
            let reserved = parties.session.is_reserved(named.name);
            return Ok(self.on_unknown_name(header, Request::DescribeStatement, 1, reserved, parties));
        };
        if let Some(stop) = self
            .before_backend(parties, None)
            .or_else(|| self.before_name())
            .or_else(|| self.before_teaching(&statement, parties))
        {
            return Ok(stop);
        }
        if is_first {
            self.allow_second_try();
        }
        let replaced = HEADER_LEN + 1 + name.len();
        let statement = self.ensure_parsed(&name, &statement, parties);
        match self.compare_columns(&statement, told) {
            Columns::Agree => {}
            Columns::Unknown => return Ok(self.await_replies()),
            Columns::Differ => {
                self.expect_stale_refusal(Request::DescribeStatement);
                let unknown = parties.session.unused_name();
                self.up.pass_behind(header, replaced, |out| {
                    renamed(out, header, name.len(), b"S", &unknown);
                });
                return Ok(Next::Done);
            }
        }
        let note = match told {
            Some(_) => Note::Bound(statement.id),
            None => Note::Described(Described {
                id: statement.id,
                told: number,
            }),
        };
        self.expect(Request::DescribeStatement, Fate::Forward, note);
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name.len(), b"S", &statement.name)
        });
        Ok(Next::Done)
    }

    fn on_close(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let named = Named::parse(body).map_err(|cause| invalid_message(header, cause))?;
        let is_name = named.target == Target::Statement && !named.name.is_empty();
        if (is_name || self.restore_due)
            && let Some(stop) = self.before_name()
        {
            return Ok(stop);
        }
        // What a RESET took away is made again before the group, not with it.
        if self.restore_due
            && self.lease.is_some()
            && let Some(stop) = self.before_backend(parties, None)
        {
            return Ok(stop);
        }
        let body = self.up.whole_body(header).unwrap_or_default();
        let named = Named::parse(body).map_err(|cause| invalid_message(header, cause))?;
        let mut ended = Note::None;
        if named.target == Target::Statement {
            if let Some(note) = parties.session.close(named.name) {
                // The shared statement stays on its backends: only the client's name for it is gone.
                self.expect(Request::Close, Fate::Answer(Bytes::from_static(b"3\0\0\0\x04")), note);
                self.up.skip(header);
                self.say_due();
                return Ok(Next::Done);
            }
            if named.name.is_empty() {
                ended = parties
                    .session
                    .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
            }
        }
        let tied = self.lease.is_some();
        let reserved = named.target == Target::Statement && parties.session.is_reserved(named.name);
        if !tied || reserved {
            // Closing what doesn't exist succeeds (trap 23), and without a backend nothing of the client's exists.
            self.expect(Request::Close, Fate::Answer(Bytes::from_static(b"3\0\0\0\x04")), ended);
            self.up.skip(header);
            self.say_due();
            return Ok(Next::Done);
        }
        self.expect(Request::Close, Fate::Forward, ended);
        self.up.pass(header);
        Ok(Next::Done)
    }

    /// Bind or Describe of the unnamed statement, which the backend may have to be taught (trap 29).
    fn on_unnamed(&mut self, header: Header, request: Request, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        // Whether a group before this one has changed it, and what this one refers to then, is known with its replies.
        if self.unsure.unnamed.before > 0 && self.unsure.unnamed.here == 0 {
            return Next::Held;
        }
        if self.awaits_reports(parties)
            && self
                .lease
                .as_ref()
                .is_some_and(|lease| parties.session.must_teach_unnamed(&lease.state))
        {
            return Next::Held;
        }
        let Some(lease) = self.lease.as_mut() else {
            return Next::NeedsBackend;
        };
        let effects = match parties.session.unnamed_for(&mut lease.state) {
            UnnamedStep::Agrees(effects) => effects.clone(),
            UnnamedStep::Parse(definition, effects, switch) => {
                let sql = definition.split(|&byte| byte == 0).next().unwrap_or_default();
                lease.note_statement(sql, parties.session.lexing());
                if let Some(switch) = &switch {
                    self.inject(&switch.before);
                }
                self.expect(Request::Parse, Fate::Swallow, Note::Unnamed);
                self.up.say(|out| compose::parse(out, b"", definition));
                if let Some(switch) = &switch {
                    self.inject(&switch.after);
                }
                effects.clone()
            }
            UnnamedStep::Close => {
                self.expect(Request::Close, Fate::Swallow, Note::Unnamed);
                self.up.say(|out| compose::close_statement(out, b""));
                Effects::NONE
            }
            // There is none, or one that nobody read.
            UnnamedStep::Unknown if self.prelude_owed => return Next::Held,
            UnnamedStep::Unknown => Effects::NONE,
        };
        let effects = match parties.session.unnamed_sql() {
            Some(sql) if !self.is_about_suspects_of_now(&effects, parties) => self.classify(sql, parties),
            _ => effects,
        };
        if self.prelude_owed && effects.exits_failed_block {
            return Next::Held;
        }
        if request == Request::Bind {
            let named = effects.steps.iter().any(|step| named_statement(&step.action).is_some());
            if let Some(stop) = self.before_name().filter(|_| named) {
                return stop;
            }
            if let Some(deallocated) = deallocated_name(&effects) {
                let portal = BindHead::parse(self.up.body_prefix(header)).map(|head| head.portal.to_vec());
                let portal = portal.unwrap_or_default();
                let replaced = HEADER_LEN + portal.len() + 1;
                if self.bind_deallocate(header, &portal, replaced, deallocated, parties) {
                    return Next::Done;
                }
            }
            if let (false, Some(lease), Some(sql)) = (
                effects.pins.is_empty(),
                self.lease.as_ref(),
                parties.session.unnamed_sql(),
            ) {
                lease.note_statement(sql, parties.session.lexing());
            }
            self.materialise_named(&effects, Fate::Swallow, parties);
            self.apply(&effects, request, parties);
        }
        self.expect(request, Fate::Forward, Note::None);
        self.up.pass(header);
        Next::Done
    }

    /// A name that is not in the ledger goes to the backend as it is: a pinned one may know it (SQL PREPARE), another
    /// says 26000 in PostgreSQL's own words. A name that looks like a shared one is made unknown first.
    fn on_unknown_name(
        &mut self,
        header: Header,
        request: Request,
        offset: usize,
        reserved: bool,
        parties: &mut Parties<'_>,
    ) -> Next {
        if let Some(stop) = self
            .before_backend(parties, Some(&Effects::opaque(PinReason::Prepare)))
            .or_else(|| self.before_name())
        {
            return stop;
        }
        self.commit_at_risk = true;
        self.expect(request, Fate::Forward, Note::None);
        if !reserved {
            self.up.pass(header);
            return Next::Done;
        }
        let before = self.up.body_prefix(header).get(..offset).unwrap_or_default().to_vec();
        self.up.pass_behind(header, HEADER_LEN + offset, |out| {
            renamed_behind(out, header, 0, &[&before], b"?")
        });
        Next::Done
    }

    // --- what the messages have in common ---

    /// What must hold before anything of the client's is sent: a backend, one that agrees with the ledger, and for a
    /// statement that could leave a failed block the knowledge that the prelude has not failed.
    fn before_backend(&mut self, parties: &mut Parties<'_>, effects: Option<&Effects>) -> Option<Next> {
        let (settled, quiet) = (self.pipeline.is_settled(), self.pipeline.is_quiet());
        if self.restore_due && !self.pipeline.is_quiet() {
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
            self.expect(Request::Query, Fate::Swallow, Note::None);
            self.up.say(|out| compose::query(out, &sql));
        }
        if quiet {
            self.request_begins();
        }
        let unsafe_behind_prelude = effects.is_some_and(|effects| effects.exits_failed_block);
        (self.prelude_owed && unsafe_behind_prelude).then_some(Next::Held)
    }

    /// Startup settings come back inside the transaction in which they were reset.
    fn restore(&mut self, sql: Option<Vec<u8>>) {
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

    fn request_begins(&mut self) {
        let now = std::time::Instant::now();
        self.query_since.get_or_insert(now);
        self.transaction_since.get_or_insert(now);
    }

    /// Records what a statement may do to the session.
    fn apply(&mut self, effects: &Effects, request: Request, parties: &mut Parties<'_>) {
        let outside = self.pipeline.status() == TransactionStatus::Idle;
        self.commit_at_risk |= effects.may_end_in_commit() || (outside && effects.may_commit());
        self.ends_block |= effects.ends_transaction;
        if effects.is_none() && effects.sequence == SequenceUse::None {
            return;
        }
        let pinned = parties.session.pins();
        self.remember_ledger(parties);
        self.keep_sequences_apart(effects.sequence, request, parties);
        if let Some(lease) = self.lease.as_mut() {
            let reported = &**parties.neutral;
            let follows = |name: &str| reported.contains(name) && is_settable(name);
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
        let forgets = |step: &Step| matches!(step.action, Action::DiscardAll | Action::DeallocateAll);
        if effects.steps.iter().any(forgets) {
            self.forgetting = true;
        }
        self.restore_bound |= parties.session.resets_baseline(effects);
    }

    /// Sees to it that lastval and currval tell only what this client drew.
    fn keep_sequences_apart(&mut self, uses: SequenceUse, request: Request, parties: &mut Parties<'_>) {
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

    fn pin(&mut self, reason: PinReason, parties: &mut Parties<'_>) {
        self.remember_ledger(parties);
        parties.session.pin(reason);
        self.note_pin();
    }

    /// While nothing was sent, the request may yet go to another backend as if it had never been read.
    fn remember_ledger(&mut self, parties: &Parties<'_>) {
        if self.sent_to_backend == 0 && self.before_effects.is_none() {
            self.before_effects = Some(parties.session.checkpoint());
        }
    }

    /// What a name stands for, and what the backend holds, is known when every request before this group that decides it
    /// was answered, and the DISCARD ALL or DEALLOCATE ALL under way.
    fn before_name(&mut self) -> Option<Next> {
        if self.unsure.names.before > 0 {
            return Some(Next::Held);
        }
        self.forgetting &= !self.pipeline.is_quiet();
        let wait = self.forgetting || (self.restore_due && !self.pipeline.is_quiet());
        wait.then(|| self.await_replies())
    }

    /// A statement that must be parsed again as it was parsed once waits until it is known what that differs from now.
    fn before_teaching(&mut self, statement: &Statement, parties: &Parties<'_>) -> Option<Next> {
        let generation = parties.session.generation();
        let held = |lease: &mut crate::pool::Lease| lease.state.statements.touch(statement, generation);
        let wait = statement.under().is_some() && !self.lease.as_mut().is_none_or(held) && self.awaits_reports(parties);
        wait.then_some(Next::Held)
    }

    /// Settings have changed that a ReadyForQuery on its way will tell.
    fn awaits_reports(&mut self, parties: &Parties<'_>) -> bool {
        let number = parties.session.unreported();
        number != 0 && self.pipeline.pending_mut().any(|note| note.reports() == number)
    }

    /// The message at hand is held until everything before it is answered; PostgreSQL is asked not to wait for a Sync.
    fn await_replies(&mut self) -> Next {
        if !std::mem::replace(&mut self.flushed, true) {
            self.up.say(|out| compose::bare_frontend(out, FrontendTag::Flush));
        }
        Next::Held
    }

    /// Sees to it that the backend holds a statement of the client's: its Parse travels ahead of the message that uses
    /// it. Returns the statement that the name stands for now.
    fn ensure_parsed(&mut self, name: &[u8], of: &Arc<Statement>, parties: &mut Parties<'_>) -> Arc<Statement> {
        let generation = parties.session.generation();
        let held = |lease: &mut crate::pool::Lease| lease.state.statements.touch(of, generation);
        if self.lease.as_mut().is_none_or(held) {
            return of.clone();
        }
        let reported = |name: &str| parties.neutral.contains(name);
        let (statement, switch) = match parties.session.teaching(of, reported) {
            Teaching::AsItIs => (of.clone(), None),
            Teaching::AsOnesOwn(switch) => (parties.session.own_statement(name, of), switch),
            Teaching::Under(switch) => (of.clone(), Some(switch)),
        };
        if let Some(switch) = &switch {
            self.inject(&switch.before);
        }
        if let Some(lease) = self
            .lease
            .as_mut()
            .filter(|lease| lease.state.statements.holds(statement.id))
        {
            // As it was before the catalog changed.
            lease.state.statements.remove(statement.id);
            self.up.say(|out| compose::close_statement(out, &statement.name));
            self.expect(Request::Close, Fate::Swallow, Note::Evicted(statement.clone()));
        }
        self.make_room_for(&statement, generation, parties.rules.backend_statement_bytes);
        self.expect(Request::Parse, Fate::Swallow, Note::Injected(statement.id));
        self.up
            .say(|out| compose::parse(out, &statement.name, &statement.definition));
        if let Some(switch) = &switch {
            self.inject(&switch.after);
        }
        statement
    }

    /// A statement of ours inside the client's group, in the extended protocol, so that it ends no transaction.
    fn inject(&mut self, sql: &[u8]) {
        self.up.say(|out| {
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, &[sql, b"\0\0\0"].concat());
            let name: &[u8] = &[SWITCH_NAME, b"\0"].concat();
            compose::frame(out, FrontendTag::Bind.byte(), &[name, name, &[0; 6]]);
            compose::frame(out, FrontendTag::Execute.byte(), &[name, &[0; 4]]);
            compose::frame(out, FrontendTag::Close.byte(), &[b"P", name]);
        });
        for request in [
            Request::Close,
            Request::Parse,
            Request::Bind,
            Request::Execute,
            Request::Close,
        ] {
            self.expect(request, Fate::Swallow, Note::None);
        }
    }

    /// Records a statement that the backend is about to hold; the ones not used for longest are closed for it.
    fn make_room_for(&mut self, statement: &Arc<Statement>, generation: u64, bytes_max: usize) {
        if let Some(lease) = self.lease.as_mut() {
            lease.state.statements.insert(statement.clone(), generation);
        }
        let evict = |lease: &mut crate::pool::Lease| lease.state.statements.evict(bytes_max);
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

/// The prepared statement that SQL names.
fn named_statement(action: &Action) -> Option<&[u8]> {
    match action {
        Action::Execute(name) | Action::Prepare(name) | Action::Deallocate(name) => name.as_deref(),
        _ => None,
    }
}

/// The name in a text that is one DEALLOCATE of a name and nothing else.
fn deallocated_name(effects: &Effects) -> Option<&[u8]> {
    match effects.steps.as_slice() {
        [
            Step {
                action: Action::Deallocate(Some(name)),
                ..
            },
        ] if effects.statement_count == 1 => Some(name),
        _ => None,
    }
}

/// The head of a message whose name of `old_len` bytes is replaced by `new`: header, what stands before the name, name.
fn renamed(out: &mut bytes::BytesMut, header: Header, old_len: usize, before: &[u8], new: &[u8]) {
    renamed_behind(out, header, old_len, &[before], new);
}

fn renamed_behind(out: &mut bytes::BytesMut, header: Header, old_len: usize, before: &[&[u8]], new: &[u8]) {
    use bytes::BufMut;
    let body_len = header.body_len - old_len + new.len();
    out.put_u8(header.tag);
    out.put_u32(u32::try_from(body_len + 4).unwrap_or(u32::MAX));
    for part in before {
        out.put_slice(part);
    }
    out.put_slice(new);
}

fn invalid_length(_: Malformed) -> Report {
    Report::fatal(SqlState::PROTOCOL_VIOLATION, "invalid message length")
}

fn invalid_message(header: Header, cause: Malformed) -> Report {
    match header.frontend() {
        Ok(tag) => Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            format!("invalid {tag:?} message: {cause}"),
        ),
        Err(Malformed::Length) => invalid_length(Malformed::Length),
        Err(_) => Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            format!("invalid frontend message type {}", header.tag),
        ),
    }
}
