//! The rules for the client's messages: which pass, which are rewritten, which are answered by us.

use bytes::Bytes;

use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::statement_effects::{Action, Effects, SequenceUse, Step};
use crate::virtual_session::statements::Statement;
use crate::virtual_session::{Note, UnnamedStep, VirtualSession, Watched};
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
            FrontendTag::Sync => Ok(self.on_sync(header)),
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

    fn on_sync(&mut self, header: Header) -> Next {
        let needed = self.lease.is_some() && !self.pipeline.is_answerable();
        if needed {
            self.pipeline.expect(Request::Sync, Fate::Forward, Note::None);
            self.up.pass(header);
        } else {
            self.pipeline
                .expect(Request::Sync, Fate::Answer(Bytes::new()), Note::None);
            self.up.skip(header);
            self.say_due();
        }
        Next::Done
    }

    fn on_execute(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        self.pipeline.expect(Request::Execute, Fate::Forward, Note::None);
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
        if !LARGE_OBJECT_FUNCTIONS.contains(&oid) && !LARGE_OBJECT_FUNCTIONS_64.contains(&oid) {
            self.pin(PinReason::Routine, parties);
        }
        self.commit_at_risk |= self.pipeline.status() == TransactionStatus::Idle;
        self.pipeline.expect(Request::FunctionCall, Fate::Forward, Note::None);
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
        let effects = self.classify(sql, parties);
        if let Some(answered) = self.answer_deallocate(header, &effects, parties) {
            return Ok(answered);
        }
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        self.note_query(header, parties);
        parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        let watched = self.apply(&effects, Request::Query, parties);
        self.pipeline.expect(Request::Query, Fate::Forward, watched);
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
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        if request == Request::Query {
            self.note_query(header, parties);
        }
        self.pin(PinReason::LargeStatement, parties);
        parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        self.commit_at_risk = true;
        self.pipeline.expect(request, Fate::Forward, Note::None);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    /// `DEALLOCATE name` of a statement that was prepared by protocol (PHP's PDO says so): no backend knows that name.
    fn answer_deallocate(&mut self, header: Header, effects: &Effects, parties: &mut Parties<'_>) -> Option<Next> {
        let name = match effects.steps.as_slice() {
            [
                Step {
                    action: Action::Deallocate(Some(name)),
                    ..
                },
            ] if effects.statement_count == 1 => name,
            _ => return None,
        };
        parties.session.statement(name)?;
        if self.pipeline.is_failed() {
            return None;
        }
        let note = parties.session.close(name)?;
        let mut tag = bytes::BytesMut::new();
        compose::frame(&mut tag, BackendTag::CommandComplete.byte(), &[b"DEALLOCATE\0"]);
        self.pipeline
            .expect(Request::Query, Fate::AnswerUnlessFailed(tag.freeze()), note);
        self.up.skip(header);
        self.say_due();
        Some(Next::Done)
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
        let effects = match &known {
            Some(statement) => statement.effects.clone(),
            None => self.classify(parse.sql, parties),
        };
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        let Some(lease) = self.lease.as_mut() else {
            return Ok(Next::NeedsBackend);
        };
        let body = self.up.whole_body(header).unwrap_or_default();
        let parse = Parse::parse(body).map_err(|cause| invalid_message(header, cause))?;
        lease.note_statement(parse.sql, parties.session.lexing());
        if parse.name.is_empty() {
            parties
                .session
                .parse_unnamed(parse.definition, effects, &mut lease.state);
            self.pipeline.expect(Request::Parse, Fate::Forward, Note::ClientUnnamed);
            self.up.pass(header);
            return Ok(Next::Done);
        }
        let held = parties.session.statement_bytes() + parse.name.len() + parse.definition.len();
        let too_much = held > parties.rules.client_statement_bytes;
        match known {
            Some(statement) => self.parse_duplicate(header, &statement, parties),
            None if too_much || parties.session.is_reserved(parse.name) => {
                // Kept by the backend under the client's own name; only this backend has it.
                self.pin(PinReason::LargeStatement, parties);
                self.pipeline.expect(Request::Parse, Fate::Forward, Note::None);
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
        let held = lease.state.statements.touch(&statement);
        let note = VirtualSession::prepared_note(parse.name, statement.clone(), !held);
        let replaced = HEADER_LEN + parse.name.len();
        if held && (exits || !self.pipeline.is_failed()) {
            let complete = Bytes::from_static(b"1\0\0\0\x04");
            let fate = if exits {
                Fate::Answer(complete)
            } else {
                Fate::AnswerUnlessFailed(complete)
            };
            self.pipeline.expect(Request::Parse, fate, note);
            self.up.skip(header);
            self.say_due();
            return;
        }
        self.make_room_for(&statement, parties.rules.backend_statement_bytes);
        self.pipeline.expect(Request::Parse, Fate::Forward, note);
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, replaced - HEADER_LEN, b"", &statement.name)
        });
    }

    /// A Parse of a name that the client already uses: PostgreSQL is made to say so (42P05), in the client's own words.
    fn parse_duplicate(&mut self, header: Header, statement: &std::sync::Arc<Statement>, parties: &mut Parties<'_>) {
        self.ensure_parsed(statement, parties);
        let name = self
            .up
            .whole_body(header)
            .and_then(|body| Parse::parse(body).ok())
            .map(|parse| parse.name);
        let name = name.unwrap_or_default().to_vec();
        let report = Report::error(
            SqlState::DUPLICATE_PREPARED_STATEMENT,
            format!(
                "prepared statement \"{}\" already exists",
                String::from_utf8_lossy(&name)
            ),
        );
        let mut words = bytes::BytesMut::new();
        compose::report(&mut words, &report);
        self.pipeline
            .expect(Request::Parse, Fate::Substitute(*b"42P05", words.freeze()), Note::None);
        let replaced = HEADER_LEN + name.len();
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name.len(), b"", &statement.name)
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
        if head.statement.is_empty() {
            return Ok(self.on_unnamed(header, Request::Bind, parties));
        }
        let Some(statement) = parties.session.statement(head.statement).cloned() else {
            let offset = head.statement_offset;
            let reserved = parties.session.is_reserved(head.statement);
            return Ok(self.on_unknown_name(header, Request::Bind, offset, reserved, parties));
        };
        let (portal, name_len) = (head.portal.to_vec(), head.statement.len());
        let effects = self.effects_now(&statement.effects, statement.sql(), parties);
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        self.ensure_parsed(&statement, parties);
        if let Some(lease) = &self.lease {
            lease.note_statement(statement.sql(), parties.session.lexing());
        }
        let watched = self.apply(&effects, Request::Bind, parties);
        self.pipeline.expect(Request::Bind, Fate::Forward, watched);
        let replaced = HEADER_LEN + portal.len() + 1 + name_len;
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, name_len, &[&portal, b"\0"], &statement.name);
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
            self.pipeline.expect(Request::DescribePortal, Fate::Forward, Note::None);
            self.up.pass(header);
            return Ok(Next::Done);
        }
        if named.name.is_empty() {
            return Ok(self.on_unnamed(header, Request::DescribeStatement, parties));
        }
        let name_len = named.name.len();
        let Some(statement) = parties.session.statement(named.name).cloned() else {
            let reserved = parties.session.is_reserved(named.name);
            return Ok(self.on_unknown_name(header, Request::DescribeStatement, 1, reserved, parties));
        };
        if let Some(stop) = self.before_backend(parties, None) {
            return Ok(stop);
        }
        self.ensure_parsed(&statement, parties);
        self.pipeline
            .expect(Request::DescribeStatement, Fate::Forward, Note::None);
        let replaced = HEADER_LEN + 1 + name_len;
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name_len, b"S", &statement.name)
        });
        Ok(Next::Done)
    }

    fn on_close(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let named = Named::parse(body).map_err(|cause| invalid_message(header, cause))?;
        if named.target == Target::Statement {
            if let Some(note) = parties.session.close(named.name) {
                // The shared statement stays on its backends: only the client's name for it is gone.
                self.pipeline
                    .expect(Request::Close, Fate::Answer(Bytes::from_static(b"3\0\0\0\x04")), note);
                self.up.skip(header);
                self.say_due();
                return Ok(Next::Done);
            }
            if named.name.is_empty() {
                parties
                    .session
                    .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
            }
        }
        let tied = self.lease.is_some();
        let reserved = named.target == Target::Statement && parties.session.is_reserved(named.name);
        if !tied || reserved {
            // Closing what doesn't exist succeeds (trap 23), and without a backend nothing of the client's exists.
            self.pipeline.expect(
                Request::Close,
                Fate::Answer(Bytes::from_static(b"3\0\0\0\x04")),
                Note::None,
            );
            self.up.skip(header);
            self.say_due();
            return Ok(Next::Done);
        }
        self.pipeline.expect(Request::Close, Fate::Forward, Note::None);
        self.up.pass(header);
        Ok(Next::Done)
    }

    /// Bind or Describe of the unnamed statement, which the backend may have to be taught (trap 29).
    fn on_unnamed(&mut self, header: Header, request: Request, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        let Some(lease) = self.lease.as_mut() else {
            return Next::NeedsBackend;
        };
        let effects = match parties.session.unnamed_for(&mut lease.state) {
            UnnamedStep::Agrees(effects) => effects.clone(),
            UnnamedStep::Parse(definition, effects) => {
                let sql = definition.split(|&byte| byte == 0).next().unwrap_or_default();
                lease.note_statement(sql, parties.session.lexing());
                self.pipeline.expect(Request::Parse, Fate::Swallow, Note::Unnamed);
                self.up.say(|out| compose::parse(out, b"", definition));
                effects.clone()
            }
            UnnamedStep::Close => {
                self.pipeline.expect(Request::Close, Fate::Swallow, Note::Unnamed);
                self.up.say(|out| compose::close_statement(out, b""));
                Effects::NONE
            }
            UnnamedStep::Unknown => Effects::NONE,
        };
        let effects = match parties.session.unnamed_sql() {
            Some(sql) if effects.suspects != self.suspects(parties).fingerprint() => self.classify(sql, parties),
            _ => effects,
        };
        if self.prelude_owed && effects.exits_failed_block {
            return Next::Held;
        }
        let note = if request == Request::Bind {
            self.apply(&effects, request, parties)
        } else {
            Note::None
        };
        self.pipeline.expect(request, Fate::Forward, note);
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
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        self.commit_at_risk = true;
        self.pipeline.expect(request, Fate::Forward, Note::None);
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
        let settled = self.pipeline.is_settled();
        if self.lease.is_some() && self.pipeline.is_quiet() {
            self.request_begins();
        }
        let Some(lease) = self.lease.as_mut() else {
            return Some(Next::NeedsBackend);
        };
        lease.holder().set_idle_in_transaction(false);
        if settled && let Some(sql) = parties.session.prelude_for(&mut lease.state) {
            self.tell_prelude = parties.session.take_rebase();
            self.prelude_owed = true;
            self.pipeline.expect(Request::Query, Fate::Swallow, Note::None);
            self.up.say(|out| compose::query(out, &sql));
        }
        let unsafe_behind_prelude = effects.is_some_and(|effects| effects.exits_failed_block);
        (self.prelude_owed && unsafe_behind_prelude).then_some(Next::Held)
    }

    fn request_begins(&mut self) {
        let now = std::time::Instant::now();
        self.query_since.get_or_insert(now);
        self.transaction_since.get_or_insert(now);
    }

    /// Records what a statement may do to the session, and returns the note of its request.
    fn apply(&mut self, effects: &Effects, request: Request, parties: &mut Parties<'_>) -> Note {
        let outside = self.pipeline.status() == TransactionStatus::Idle;
        self.commit_at_risk |= effects.may_end_in_commit() || (outside && effects.may_commit());
        self.ends_block |= effects.ends_transaction;
        if effects.is_none() && effects.sequence == SequenceUse::None {
            return Note::None;
        }
        let pinned = parties.session.pins();
        self.remember_ledger(parties);
        self.keep_sequences_apart(effects.sequence, request, parties);
        if let Some(lease) = self.lease.as_mut() {
            let reported = parties.neutral;
            let follows = |name: &str| reported.contains(name);
            parties.session.apply(effects, &mut lease.state, follows);
        }
        self.new_pins |= parties.session.pins() != pinned;
        self.catalog_changed |= effects.catalog_change;
        self.catalog_touched |= effects.catalog_change;
        match effects.steps.first().map(|step| &step.action) {
            Some(Action::DiscardAll) if effects.statement_count == 1 => Note::Watched(Watched::DiscardAll),
            Some(Action::DeallocateAll) if effects.statement_count == 1 => Note::Watched(Watched::DeallocateAll),
            _ => Note::None,
        }
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
            self.pipeline
                .expect(Request::Query, Fate::Swallow, Note::SequencesForgotten);
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
            self.pipeline.expect(request, Fate::Swallow, Note::SequencesForgotten);
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
        self.new_pins = true;
    }

    /// While nothing was sent, the request may yet go to another backend as if it had never been read.
    fn remember_ledger(&mut self, parties: &Parties<'_>) {
        if self.sent_to_backend == 0 && self.before_effects.is_none() {
            self.before_effects = Some(parties.session.checkpoint());
        }
    }

    /// Sees to it that the backend holds a shared statement: its Parse travels ahead of the message that uses it.
    fn ensure_parsed(&mut self, statement: &std::sync::Arc<Statement>, parties: &mut Parties<'_>) {
        let Some(lease) = self.lease.as_mut() else {
            return;
        };
        if lease.state.statements.touch(statement) {
            return;
        }
        self.make_room_for(statement, parties.rules.backend_statement_bytes);
        self.pipeline
            .expect(Request::Parse, Fate::Swallow, Note::Injected(statement.id));
        self.up
            .say(|out| compose::parse(out, &statement.name, &statement.definition));
    }

    /// Records a statement that the backend is about to hold; the ones not used for longest are closed for it.
    fn make_room_for(&mut self, statement: &std::sync::Arc<Statement>, bytes_max: usize) {
        let Some(lease) = self.lease.as_mut() else {
            return;
        };
        lease.state.statements.insert(statement.clone());
        while let Some(evicted) = lease.state.statements.evict(bytes_max) {
            self.up.say(|out| compose::close_statement(out, &evicted.name));
            self.pipeline
                .expect(Request::Close, Fate::Swallow, Note::Evicted(evicted));
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
