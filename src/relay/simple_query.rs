//! The rules for Query, and for what SQL says of prepared statements by their names.

use std::borrow::Cow;

use bytes::Bytes;

use super::extended_query::renamed_behind;
use super::own_names::{Agreed, AheadOfQuery, Naming};
use super::to_backend::{Next, invalid_message};
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::virtual_session::statement_effects::{Action, Effects, Step};
use crate::virtual_session::{NameChanges, Note, SWITCH_NAME, TakenBack};
use crate::wire::frontend_message::{Parse, Query};
use crate::wire::{BackendTag, FrontendTag, HEADER_LEN, Header, Report, compose};

impl Exchange {
    pub(super) fn on_query(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<Next, Report> {
        let limit = parties.rules.statement_bytes;
        if header.body_len > limit {
            return Ok(self.on_unread_statement(header, Request::Query, parties));
        }
        if self.lease.is_none()
            && let Some(answered) = self
                .answer_query(header, parties)
                .or_else(|| self.defer_query(header, parties))
        {
            return Ok(answered);
        }
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let sql = Query::parse(body).map_err(|cause| invalid_message(header, cause))?.sql;
        if self.lease.is_none() && parties.session.statement_bytes() == 0 {
            // Nothing could be answered without a backend: the text is read when there is one.
            return Ok(Next::NeedsBackend);
        }
        let effects = self.classify_query(sql, parties);
        if effects.is_none() {
            self.remember_query(header, &effects, parties);
            return self.on_plain_query(header, &effects, parties);
        }
        let trial = self.trial_of_query(sql, &effects, parties);
        if let Some(stop) = self
            .before_naming(&effects, parties)
            .or_else(|| self.before_leaving_names(header, Request::Query, &effects, parties))
        {
            return Ok(stop);
        }
        let effects = self.with_executed(Cow::Owned(effects), parties);
        if let Some(answered) = self.answer_deallocate(header, &effects, parties) {
            return Ok(answered);
        }
        if let Some(stop) = self.before_backend(parties, Some(&effects)) {
            return Ok(stop);
        }
        if let Some(refused) = self.before_pinning(header, Request::Query, &effects, parties) {
            return Ok(refused);
        }
        if let Some(stop) = self.before_notifying(&effects, parties) {
            return Ok(stop);
        }
        if let Some(stop) = self.before_listening(&effects, parties)? {
            return Ok(stop);
        }
        self.show_channels(header, &effects, parties);
        let names = match self.query_names(header, &effects, parties) {
            Agreed::Yes(names) => names,
            Agreed::NotYet(next) => return Ok(next),
            Agreed::Stale => return Ok(self.pass_stale(header, parties)),
        };
        self.pass_query(header, &effects, Some(names), parties);
        self.trial = trial.or(self.trial.take());
        Ok(Next::Done)
    }

    /// Whether the client's next message brings a text that leaves nothing behind, as far as is known of the catalog. It need
    /// not be whole, or bring a text at all: then it isn't.
    pub fn is_next_plain(&mut self, parties: &Parties<'_>) -> bool {
        let Ok(Some(header)) = self.up.next_header() else {
            return false;
        };
        let body = self.up.whole_body(header).unwrap_or_default();
        let sql = match header.frontend() {
            Ok(FrontendTag::Query) => Query::parse(body).map(|query| query.sql),
            Ok(FrontendTag::Parse) => Parse::parse(body).map(|parse| parse.sql),
            _ => return false,
        };
        sql.is_ok_and(|sql| self.classify(sql, parties).is_plain())
    }

    /// What the text does, which is known of nearly all that differ from one before in numbers alone.
    fn classify_query(&self, sql: &[u8], parties: &Parties<'_>) -> Effects {
        let fingerprint = parties.rules.pool.knowledge().suspects_fingerprint();
        let lexing = parties.session.lexing();
        match self.known_texts.known_query(sql, lexing, fingerprint) {
            Some(effects) if !self.catalog_changed => effects.clone(),
            _ => self.classify(sql, parties),
        }
    }

    fn remember_query(&mut self, header: Header, effects: &Effects, parties: &Parties<'_>) {
        let (mut known_texts, lexing) = (std::mem::take(&mut self.known_texts), parties.session.lexing());
        let sql = self.up.body_prefix(header).strip_suffix(b"\0").unwrap_or_default();
        self.with_suspects(parties, |suspects| {
            known_texts.note_query(sql, lexing, effects, suspects);
        });
        self.known_texts = known_texts;
    }

    /// Nearly every Query: it changes nothing of the session, so that nothing of names, settings or pins comes before it.
    fn on_plain_query(&mut self, header: Header, effects: &Effects, parties: &mut Parties<'_>) -> Result<Next, Report> {
        if let Some(stop) = self
            .before_backend(parties, Some(effects))
            .or_else(|| self.before_notifying(effects, parties))
        {
            return Ok(stop);
        }
        if let Some(stop) = self.before_listening(effects, parties)? {
            return Ok(stop);
        }
        self.ahead = AheadOfQuery::Nothing;
        self.pass_query(header, effects, None, parties);
        Ok(Next::Done)
    }

    fn pass_query(&mut self, header: Header, effects: &Effects, names: Option<NameChanges>, parties: &mut Parties<'_>) {
        self.note_query(header, parties);
        let note = parties
            .session
            .forget_unnamed(self.lease.as_mut().map(|lease| &mut lease.state));
        self.apply(effects, Request::Query, parties);
        self.listening_sent(parties);
        self.begin_round(parties);
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        let mut note = note.reporting(parties.session.unreported());
        if let Some(names) = names {
            self.names_sent(&names);
            note = note.naming(names);
        }
        if self.prelude_owed {
            self.behind_prelude = TakenBack::of(effects).filter(|_| self.pipeline.len() == 1);
        }
        self.expect(Request::Query, Fate::Forward, note);
        self.up.pass(header);
        self.tally.queries += 1;
    }

    fn query_names(&mut self, header: Header, effects: &Effects, parties: &mut Parties<'_>) -> Agreed {
        let prepares = |step: &Step| matches!(step.action, Action::Prepare(_));
        let text = match effects.steps.iter().any(prepares) {
            true => self
                .up
                .body_prefix(header)
                .strip_suffix(b"\0")
                .unwrap_or_default()
                .to_vec(),
            false => Vec::new(),
        };
        let request = Request::Query;
        let naming = Naming {
            effects,
            text: &text,
            request,
        };
        self.agree_on_names(&naming, parties)
    }

    /// Lets the report of who holds the backends name this Query.
    pub(super) fn note_query(&self, header: Header, parties: &Parties<'_>) {
        if let Some(lease) = &self.lease {
            let body = self.up.body_prefix(header);
            let sql = body.strip_suffix(b"\0").unwrap_or(body);
            lease.note_statement(sql, parties.session.lexing());
        }
    }

    /// A statement too long to be read for its effects: it passes, and anything may have happened.
    pub(super) fn on_unread_statement(&mut self, header: Header, request: Request, parties: &mut Parties<'_>) -> Next {
        let Some(&first) = self.up.body_prefix(header).first() else {
            return Next::Wants(HEADER_LEN + 1);
        };
        if let Some(stop) = self.before_backend(parties, Some(&Effects::opaque(PinReason::LargeStatement))) {
            return stop;
        }
        if request == Request::Query {
            self.note_query(header, parties);
        }
        let pins = PinSet::of(PinReason::LargeStatement);
        if let Some(refused) = self.before_pinning_for(header, request, pins, parties) {
            return refused;
        }
        self.pin(PinReason::LargeStatement, parties);
        self.before_unread_names(request, parties);
        let Some(lease) = self.lease.as_mut() else {
            return Next::NeedsBackend;
        };
        let note = match request {
            Request::Query => parties.session.forget_unnamed(Some(&mut lease.state)),
            _ if first == 0 => parties.session.parse_unnamed_unread(&mut lease.state),
            _ => Note::None,
        };
        self.commit_at_risk = true;
        self.note_notifier(false, parties);
        self.listening_unread(parties);
        self.expect(request, Fate::Forward, note);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    /// `DEALLOCATE name` of a statement that was prepared by protocol (PHP's PDO says so): no backend knows that name.
    pub(super) fn answer_deallocate(
        &mut self,
        header: Header,
        effects: &Effects,
        parties: &mut Parties<'_>,
    ) -> Option<Next> {
        let name = self.deallocated_here(effects, parties)?;
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

    /// The name in a text that deallocates one, which the ledger alone decides about: not where the backend may know it
    /// otherwise than the ledger does.
    pub(super) fn deallocated_here<'e>(&self, effects: &'e Effects, parties: &Parties<'_>) -> Option<&'e [u8]> {
        deallocated_name(effects).filter(|name| !parties.session.may_be_own(name))
    }

    /// A DEALLOCATE inside a group ends the group's implicit transaction, so PostgreSQL must have one.
    pub(super) fn pass_deallocate(&mut self, header: Header, closed: Note, parties: &mut Parties<'_>) {
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
    pub(super) fn bind_deallocate(
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
        if let Some(lease) = self.lease.as_mut() {
            // It stays there.
            lease.state.own.doubt(SWITCH_NAME);
        }
        self.up.say(|out| {
            compose::parse(out, &victim, b"\0\0\0");
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, &sql);
        });
        for request in [Request::Parse, Request::Close, Request::Parse] {
            self.expect(request, Fate::Swallow, Note::None);
        }
        self.expect(Request::Bind, Fate::Forward, note.leaving(victim));
        let old_len = replaced - HEADER_LEN - portal.len() - 1;
        self.up.pass_behind(header, replaced, |out| {
            renamed_behind(out, header, old_len, &[portal, b"\0"], SWITCH_NAME);
        });
        true
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
