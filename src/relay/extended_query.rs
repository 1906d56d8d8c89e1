//! The rules for Parse, Bind, Describe and Close: names of the client's stand for statements that backends share.

use std::borrow::Cow;

use bytes::Bytes;

use super::own_names::{AheadOfQuery, Form};
use super::stale_plan::Columns;
use super::to_backend::{Next, invalid_message};
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::virtual_session::statement_effects::Effects;
use crate::virtual_session::statements::NamedStatement;
use crate::virtual_session::{Described, Note, SWITCH_NAME, Switch, UnnamedStep, VirtualSession};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::{BindHead, Named, Parse, Target, bound_values};
use crate::wire::{HEADER_LEN, Header, Malformed, Report, SMALL_MESSAGE_LEN_MAX, SqlState, compose};

impl Exchange {
    pub(super) fn on_parse(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
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
            let answered = self.answer_group(parties).or_else(|| self.defer_group(parties));
            return Ok(answered.unwrap_or(Next::NeedsBackend));
        }
        let effects = match &known {
            Some(statement) => statement.effects.clone(),
            None => {
                let mut known_texts = std::mem::take(&mut self.known_texts);
                let effects = self.classify_parsed(parse.sql, &mut known_texts, parties);
                self.known_texts = known_texts;
                effects
            }
        };
        let named = !parse.name.is_empty();
        let trial = if named {
            None
        } else {
            self.trial_of_group(&effects, parties)
        };
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        if let Some(stop) = self.before_name().filter(|_| named) {
            return Ok(stop);
        }
        if let Some(stop) = self.before_parsing_names(&effects, parties) {
            return Ok(stop);
        }
        self.show_channels(header, &effects, parties);
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
            self.trial = trial.or(self.trial.take());
            return Ok(Next::Done);
        }
        self.parse_named(header, known.is_some(), effects, parties)
    }

    /// Parse of a name.
    fn parse_named(
        &mut self,
        header: Header,
        is_taken: bool,
        effects: Effects,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        let body = self.up.whole_body(header).unwrap_or_default();
        let parse = Parse::parse(body).map_err(|cause| invalid_message(header, cause))?;
        let held = parties.session.statement_bytes() + parse.name.len() + parse.definition.len();
        let too_much = held > parties.rules.client_statement_bytes;
        match is_taken {
            true => self.parse_duplicate(header),
            false if parties.session.may_be_own(parse.name) => {
                // PostgreSQL knows whether the name is free.
                let limit = parties.rules.client_statement_bytes;
                let is_known = effects.is_none()
                    || parties
                        .session
                        .remember_on_backend(parse.name, parse.definition, &effects, limit);
                self.pin(PinReason::Prepare, parties);
                if !is_known {
                    self.pin(PinReason::Unknown, parties);
                }
                self.expect(Request::Parse, Fate::Forward, Note::None);
                self.up.pass(header);
            }
            false if too_much || parties.session.is_reserved(parse.name) => {
                // Kept by the backend under the client's own name; only this backend has it.
                let name = parse.name.to_vec();
                let pins = PinSet::of(PinReason::LargeStatement);
                if let Some(refused) = self.before_pinning_for(header, Request::Parse, pins, parties) {
                    return Ok(refused);
                }
                self.close_stranger(&name);
                self.pin(PinReason::LargeStatement, parties);
                self.expect(Request::Parse, Fate::Forward, Note::None);
                self.up.pass(header);
            }
            false => self.parse_shared(header, effects, parties),
        }
        Ok(Next::Done)
    }

    pub(super) fn parse_shared(&mut self, header: Header, effects: Effects, parties: &mut Parties<'_>) {
        let (Some(lease), Some(body)) = (self.lease.as_mut(), self.up.whole_body(header)) else {
            return;
        };
        let Ok(parse) = Parse::parse(body) else {
            return;
        };
        let exits = effects.exits_failed_block;
        let statement = match effects.executes_names() {
            true => parties.session.prepare_alone(parse.name, parse.definition, || effects),
            false => parties.session.prepare(parse.name, parse.definition, || effects),
        };
        let generation = parties.session.generation();
        let mut held = lease.state.statements.touch(&statement, generation);
        let name = parse.name.to_vec();
        let replaced = HEADER_LEN + name.len();
        if !held || (self.pipeline.is_failed() && !exits) {
            // PostgreSQL must refuse it, or not, if a ROLLBACK is on its way, or parse it as the catalog is now: it gets to
            // see it as a new one.
            self.close_place_of(&statement);
            held = false;
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
    pub(super) fn parse_duplicate(&mut self, header: Header) {
        if let Some(lease) = self.lease.as_mut() {
            // What the client's Parse does not replace stays there.
            lease.state.own.doubt(SWITCH_NAME);
        }
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

    pub(super) fn on_bind(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
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
        self.listens.forget_portal(head.portal);
        self.named_portals.forget(head.portal);
        if head.statement.is_empty() {
            return self.on_unnamed(header, Request::Bind, parties);
        }
        let Some(named) = parties.session.named(head.statement).cloned() else {
            let offset = head.statement_offset;
            let reserved = parties.session.is_reserved(head.statement);
            return Ok(self.on_unknown_name(header, Request::Bind, offset, reserved, parties));
        };
        let statement = &named.statement;
        if let Some(wanted) = self.wants_values(header, &statement.effects, parties) {
            return Ok(wanted);
        }
        let (portal, name) = (head.portal.to_vec(), head.statement.to_vec());
        let effects = self.effects_of(statement, parties);
        let effects = self.with_values(header, effects);
        let effects = self.with_executed(effects, parties);
        let is_first = self.pipeline.is_settled();
        if let Some(stop) = self
            .before_backend(parties, Some(&effects))
            .or_else(|| self.before_name())
            .or_else(|| self.before_teaching(statement, parties))
            .or_else(|| self.before_binding(header, &effects, parties))
        {
            return Ok(stop);
        }
        if !effects.is_none() {
            if let Some(deallocated) = self.deallocated_here(&statement.effects, parties) {
                let replaced = HEADER_LEN + portal.len() + 1 + name.len();
                if self.bind_deallocate(header, &portal, replaced, deallocated, parties) {
                    return Ok(Next::Done);
                }
            }
            self.bind_names(&portal, statement.sql(), &effects, parties);
        }
        if statement.is_from_sql() || effects.lists_statements || parties.session.keeps_names_on_backend() {
            return self.bind_own_name(header, (&portal, &name), &named, &effects, parties);
        }
        let told = named.told.filter(|_| !effects.executes_names());
        if is_first {
            self.allow_second_try();
        }
        let replaced = HEADER_LEN + portal.len() + 1 + name.len();
        self.teach_unnamed_before(&effects, parties);
        let (statement, reread, columns) = self.use_shared(&name, statement, told, parties);
        match columns {
            Columns::Agree => {}
            Columns::Unknown => return Ok(self.await_replies()),
            Columns::Differ => {
                self.pass_stale_bind(header, &portal, &name, parties);
                return Ok(Next::Done);
            }
        }
        if told.is_none() {
            self.note_portal(&portal, statement.id, named.number);
        }
        if let Some(lease) = &self.lease {
            lease.note_statement(statement.sql(), parties.session.lexing());
        }
        self.apply(&effects, Request::Bind, parties);
        self.listening_bound(&portal, &effects, parties)?;
        self.expect(Request::Bind, Fate::Forward, Note::bound(statement.id, reread));
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, name.len(), &[&portal, b"\0"], &statement.name);
        });
        Ok(Next::Done)
    }

    /// What comes before a Bind of a statement of these effects. Nearly all have none.
    fn before_binding(&mut self, header: Header, effects: &Effects, parties: &mut Parties<'_>) -> Option<Next> {
        if effects.is_none() {
            self.ahead = AheadOfQuery::Nothing;
            return self.before_notifying(effects, parties);
        }
        self.before_naming(effects, parties)
            .or_else(|| self.before_leaving_names(header, Request::Bind, effects, parties))
            .or_else(|| self.before_pinning(header, Request::Bind, effects, parties))
            .or_else(|| self.before_bind(effects, parties))
            .or_else(|| self.before_notifying(effects, parties))
    }

    pub(super) fn on_describe(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
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
            return self.on_unnamed(header, Request::DescribeStatement, parties);
        }
        let name = named.name.to_vec();
        let is_first = self.pipeline.is_settled();
        let Some(named) = parties.session.named(named.name).cloned() else {
            let reserved = parties.session.is_reserved(named.name);
            return Ok(self.on_unknown_name(header, Request::DescribeStatement, 1, reserved, parties));
        };
        let NamedStatement {
            statement,
            told,
            number,
            ..
        } = named.clone();
        if let Some(stop) = self
            .before_backend(parties, None)
            .or_else(|| self.before_name())
            .or_else(|| self.before_teaching(&statement, parties))
            .or_else(|| self.before_parsing_names(&statement.effects, parties))
        {
            return Ok(stop);
        }
        let replaced = HEADER_LEN + 1 + name.len();
        if statement.is_from_sql() {
            return Ok(self.describe_own_name(header, &name, &named, parties));
        }
        if is_first {
            self.allow_second_try();
        }
        let (statement, reread, columns) = self.use_shared(&name, &statement, told, parties);
        match columns {
            Columns::Agree => {}
            Columns::Unknown => return Ok(self.await_replies()),
            Columns::Differ => {
                self.pass_stale_describe(header, &name, parties);
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
        self.expect(Request::DescribeStatement, Fate::Forward, note.rereading(reread));
        self.up.pass_behind(header, replaced, |out| {
            renamed(out, header, name.len(), b"S", &statement.name)
        });
        Ok(Next::Done)
    }

    pub(super) fn on_close(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let named = Named::parse(body).map_err(|cause| invalid_message(header, cause))?;
        let is_name = named.target == Target::Statement && !named.name.is_empty();
        let own = (is_name && parties.session.may_be_own(named.name)).then(|| named.name.to_vec());
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
        if let Some(name) = own {
            self.close_stranger(&name);
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
        if is_name {
            let name = named.name.to_vec();
            ended = self.note_closed_own(&name);
        }
        self.expect(Request::Close, Fate::Forward, ended);
        self.up.pass(header);
        Ok(Next::Done)
    }

    /// The values of a Bind are read only where a setting's name, or its value, is one of them, and as long as they are no
    /// longer than a text that is read.
    fn wants_values(&self, header: Header, effects: &Effects, parties: &Parties<'_>) -> Option<Next> {
        let wants = effects.is_bound_later()
            && header.body_len <= parties.rules.statement_bytes
            && self.up.whole_body(header).is_none();
        wants.then(|| Next::Wants(header.frame_len()))
    }

    fn with_values<'a>(&self, header: Header, effects: Cow<'a, Effects>) -> Cow<'a, Effects> {
        if !effects.is_bound_later() {
            return effects;
        }
        match self.up.whole_body(header).map(bound_values) {
            Some(Ok(values)) => Cow::Owned(effects.into_owned().bound(&values)),
            _ => effects,
        }
    }

    /// Bind or Describe of the unnamed statement, which the backend may have to be taught (trap 29).
    pub(super) fn on_unnamed(
        &mut self,
        header: Header,
        request: Request,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        if let Some(stop) = self.before_backend(parties, None) {
            return Ok(stop);
        }
        // Whether a group before this one has changed it, and what this one refers to then, is known with its replies.
        if self.unsure.unnamed.before > 0 && self.unsure.unnamed.here == 0 {
            return Ok(Next::Held);
        }
        if self.awaits_reports(parties)
            && self
                .lease
                .as_ref()
                .is_some_and(|lease| parties.session.must_teach_unnamed(&lease.state))
        {
            return Ok(Next::Held);
        }
        if let Some(effects) = parties.session.unnamed_effects().filter(|effects| !effects.is_none()) {
            let effects = effects.clone();
            if let Some(stop) = self.before_parsing_names(&effects, parties) {
                return Ok(stop);
            }
        }
        if request == Request::Bind
            && let Some(effects) = parties.session.unnamed_effects()
            && let Some(wanted) = self.wants_values(header, effects, parties)
        {
            return Ok(wanted);
        }
        if parties.session.is_unnamed_parsed_under_others() && !self.pipeline.is_failed() {
            let schemas = parties.rules.pool.knowledge().schemas();
            parties.session.reread_unnamed(schemas.as_deref());
        }
        let Some(lease) = self.lease.as_mut() else {
            return Ok(Next::NeedsBackend);
        };
        let effects = match parties.session.unnamed_for(&mut lease.state) {
            UnnamedStep::Agrees(effects) => effects.clone(),
            UnnamedStep::Parse(definition, effects, switch) => {
                let sql = definition.split(|&byte| byte == 0).next().unwrap_or_default();
                lease.note_statement(sql, parties.session.lexing());
                self.teach_unnamed(definition, switch.as_ref(), Form::Together);
                effects.clone()
            }
            UnnamedStep::Close => {
                self.expect(Request::Close, Fate::Swallow, Note::Unnamed);
                self.up.say(|out| compose::close_statement(out, b""));
                Effects::NONE
            }
            // There is none, or one that nobody read.
            UnnamedStep::Unknown if self.prelude_owed => return Ok(Next::Held),
            UnnamedStep::Unknown => Effects::NONE,
        };
        let effects = match parties.session.unnamed_sql() {
            Some(sql) if !self.is_about_suspects_of_now(&effects, parties) => self.classify(sql, parties),
            _ => effects,
        };
        if self.prelude_owed && effects.exits_failed_block {
            return Ok(Next::Held);
        }
        if request == Request::Bind
            && let Some(next) = self.bind_unnamed(header, effects, parties)?
        {
            return Ok(next);
        }
        self.expect(request, Fate::Forward, Note::None);
        self.up.pass(header);
        Ok(Next::Done)
    }

    /// A group that changes settings is about to begin, and may use the unnamed statement behind that, when what they were
    /// changed from is not known to us: it is taught before. If that fails, it is not there, as its use would fail.
    fn teach_unnamed_before(&mut self, effects: &Effects, parties: &Parties<'_>) {
        let may_follow = effects.settings().next().is_some()
            && self.pipeline.status() == TransactionStatus::Idle
            && !self.pipeline.is_unsynced()
            && parties.session.unnamed_has_constant();
        let Some(lease) = self.lease.as_mut().filter(|_| may_follow) else {
            return;
        };
        if !parties.session.must_teach_unnamed(&lease.state) {
            return;
        }
        if let UnnamedStep::Parse(definition, _, switch) = parties.session.unnamed_for(&mut lease.state) {
            self.teach_unnamed(definition, switch.as_ref(), Form::Apart);
            self.end_apart();
        }
    }

    fn teach_unnamed(&mut self, definition: &[u8], switch: Option<&Switch>, form: Form) {
        if let Some(switch) = switch {
            self.inject_as(&switch.before, &form.fate(), Note::None);
        }
        self.expect(Request::Parse, form.fate(), Note::Unnamed);
        self.up.say(|out| compose::parse(out, b"", definition));
        if let Some(switch) = switch {
            self.inject_as(&switch.after, &form.fate(), Note::None);
        }
    }

    /// What comes before a Bind of the unnamed statement; or what it led to, if it is not to be passed on.
    fn bind_unnamed(
        &mut self,
        header: Header,
        effects: Effects,
        parties: &mut Parties<'_>,
    ) -> Result<Option<Next>, Report> {
        let effects = match effects.is_none() {
            true => Cow::Owned(effects),
            false => self.with_executed(self.with_values(header, Cow::Owned(effects)), parties),
        };
        if let Some(stop) = self.before_binding(header, &effects, parties) {
            return Ok(Some(stop));
        }
        let portal = BindHead::parse(self.up.body_prefix(header)).map(|head| head.portal.to_vec());
        let portal = portal.unwrap_or_default();
        if let Some(deallocated) = self.deallocated_here(&effects, parties) {
            let replaced = HEADER_LEN + portal.len() + 1;
            if self.bind_deallocate(header, &portal, replaced, deallocated, parties) {
                return Ok(Some(Next::Done));
            }
        }
        if !effects.is_none() {
            self.bind_unnamed_names(&portal, &effects, parties);
        }
        self.apply(&effects, Request::Bind, parties);
        self.listening_bound(&portal, &effects, parties)?;
        Ok(None)
    }

    fn bind_unnamed_names(&mut self, portal: &[u8], effects: &Effects, parties: &mut Parties<'_>) {
        if let (false, Some(lease), Some(sql)) = (
            effects.pins.is_empty(),
            self.lease.as_ref(),
            parties.session.unnamed_sql(),
        ) {
            lease.note_statement(sql, parties.session.lexing());
        }
        let text = match effects.mentions_names() {
            true => parties.session.unnamed_sql().unwrap_or_default().to_vec(),
            false => Vec::new(),
        };
        self.bind_names(portal, &text, effects, parties);
    }

    /// A name that is not in the ledger goes to the backend as it is: a pinned one may know it (SQL PREPARE), another
    /// says 26000 in PostgreSQL's own words. A name that looks like a shared one is made unknown first.
    pub(super) fn on_unknown_name(
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
        if !reserved {
            let name = self.up.body_prefix(header).get(offset..).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
            self.close_stranger(&name);
            if let Some(effects) = parties.session.effects_on_backend(&name).cloned()
                && request == Request::Bind
            {
                self.apply(&effects, Request::Bind, parties);
            }
        }
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
}

/// The head of a message whose name of `old_len` bytes is replaced by `new`: header, what stands before the name, name.
pub(super) fn renamed(out: &mut bytes::BytesMut, header: Header, old_len: usize, before: &[u8], new: &[u8]) {
    renamed_behind(out, header, old_len, &[before], new);
}

pub(super) fn renamed_behind(out: &mut bytes::BytesMut, header: Header, old_len: usize, before: &[&[u8]], new: &[u8]) {
    use bytes::BufMut;
    let body_len = header.body_len - old_len + new.len();
    out.put_u8(header.tag);
    out.put_u32(u32::try_from(body_len + 4).unwrap_or(u32::MAX));
    for part in before {
        out.put_slice(part);
    }
    out.put_slice(new);
}
