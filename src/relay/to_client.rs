//! The rules for PostgreSQL's messages: nearly all of them pass as they are, in runs.

use std::sync::Arc;

use super::own_names::AheadOfQuery;
use super::plain_group::is_plain_tag;
use super::stale_plan::{ColumnsBehind, is_of_a_stale_plan};
use super::unreported::following;
use super::{Exchange, Outcome, Parties};
use crate::backend::ServerParameters;
use crate::backend::parameters::is_settable;
use crate::config::PoolMode;
use crate::error::failed_transaction;
use crate::protocol::Violation;
use crate::protocol::pipeline::{Action, Due, Request, Verdict};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::result_shape::ResultShape;
use crate::virtual_session::{Described, Note};
use crate::wire::backend_message::{ParameterStatus, ReportFields, TransactionStatus, command_tag};
use crate::wire::{BackendTag, Header, Report, compose};

/// The longest body that is read as one: reports, parameters, command tags. A longer report passes unread.
pub(super) const READ_LEN_MAX: usize = 256 * 1024;

impl Exchange {
    /// Decides on every message of the backend's that has arrived. Returns the length of the message that must be read
    /// as one before the walk can go on (0: any).
    pub(super) fn scan_backend(&mut self, parties: &mut Parties<'_>) -> Result<usize, Outcome> {
        if !self.is_unusual && self.pass_plain_replies(parties) {
            return Ok(0);
        }
        loop {
            let header = match self.down.next_header() {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(0),
                Err(cause) => {
                    return Err(self.broken_backend(&Violation::Malformed {
                        message: "message header",
                        cause,
                    }));
                }
            };
            // Most of all messages: they pass with the run before them.
            if !self.is_telling_tag(header) && self.passes(header) {
                self.down.pass(header);
                continue;
            }
            let Ok(tag) = header.backend() else {
                let violation = Violation::Unexpected {
                    expected: "a message of the protocol",
                    got: char::from(header.tag),
                };
                return Err(self.broken_backend(&violation));
            };
            if self.must_be_whole(tag, header) && self.down.whole_body(header).is_none() {
                return Ok(header.frame_len());
            }
            if tag == BackendTag::ReadyForQuery && parties.subscription.is_some() && self.holds_ready(header, parties) {
                return Ok(0);
            }
            match self.columns_behind(header) {
                ColumnsBehind::Told => {}
                ColumnsBehind::Unread(length) => return Ok(length),
                ColumnsBehind::Stale => {
                    self.down.skip(header);
                    continue;
                }
            }
            self.on_backend_message(tag, header, parties)?;
        }
    }

    fn passes(&mut self, header: Header) -> bool {
        let (unsure, second_try, up) = (&mut self.unsure, &mut self.second_try, &mut self.up);
        self.pipeline.passes(header.tag, |note| match note {
            Note::None => true,
            Note::ChangedUnnamed(_) => {
                unsure.end(note);
                true
            }
            Note::Bound(_) => {
                second_try.first_was_answered(up);
                true
            }
            _ => false,
        })
    }

    /// It may be the tag of one of the commands that [`Self::on_command_tag`] knows: it is none of those that nearly all are,
    /// but behind a RESET.
    fn is_telling_tag(&self, header: Header) -> bool {
        header.tag == b'C'
            && (self.listens.watches_tags() || self.reset_ran || !is_plain_tag(self.down.body_prefix(header)))
    }

    fn must_be_whole(&self, tag: BackendTag, header: Header) -> bool {
        let read = matches!(
            tag,
            BackendTag::ReadyForQuery
                | BackendTag::ErrorResponse
                | BackendTag::ParameterStatus
                | BackendTag::CommandComplete
                | BackendTag::NoticeResponse
                | BackendTag::NotificationResponse
        ) || (tag == BackendTag::RowDescription
            && self.pipeline.head_note().is_some_and(|note| note.described().is_some()))
            || (tag == BackendTag::DataRow && self.is_answer_to_us());
        read && header.body_len <= READ_LEN_MAX
    }

    fn on_backend_message(
        &mut self,
        tag: BackendTag,
        header: Header,
        parties: &mut Parties<'_>,
    ) -> Result<(), Outcome> {
        self.is_unusual = true;
        let body = self.down.whole_body(header).unwrap_or_default();
        let mut fatal = None;
        match tag {
            BackendTag::ErrorResponse => {
                if is_of_a_stale_plan(body) && self.on_stale_plan(parties) {
                    self.down.skip(header);
                    return Ok(());
                }
                let body = self.down.whole_body(header).unwrap_or_default();
                self.undone |= !self.is_answer_to_us();
                self.trial = None;
                self.listens.has_failed = true;
                let fields = ReportFields::parse(body).ok();
                self.read_only_refused |= fields.as_ref().is_some_and(|fields| fields.sqlstate == b"25006");
                if let Some(fields) = fields.filter(ReportFields::is_fatal) {
                    fatal = Some(fields.to_report());
                }
            }
            BackendTag::CommandComplete if self.is_begin_owed() => self.begin_answered(),
            BackendTag::CommandComplete => self.on_command_tag(header, parties),
            BackendTag::DataRow if self.is_answer_to_us() => self.on_answer(header, parties),
            BackendTag::ParameterStatus => return self.on_parameter_status(header, parties),
            BackendTag::NotificationResponse => return self.on_notification(header, parties),
            BackendTag::NoticeResponse => {
                self.parting_warning = parting_warning(body).or(self.parting_warning.take());
                self.trial = None;
            }
            _ => {}
        }
        if let Some(report) = fatal {
            self.down.skip(header);
            self.last_words = Some(report);
            return Err(self.lost_backend("it ended the session"));
        }
        if tag == BackendTag::ErrorResponse && self.is_begin_owed() {
            return Err(self.refused_begin(header));
        }
        let fails_query = tag == BackendTag::ErrorResponse && self.fails_ahead_of_query();
        let body = self.down.whole_body(header).unwrap_or_default();
        let hint = (tag == BackendTag::ErrorResponse && parties.session.has_lost_its_value())
            .then(|| with_hint_of_sequences(body))
            .flatten();
        let verdict = match self.pipeline.on_frame(tag, body) {
            Ok(verdict) => verdict,
            Err(violation) => return Err(self.broken_backend(&violation)),
        };
        if verdict.ours_failed && self.prelude_owed {
            let report = ReportFields::parse(body).map(|fields| fields.to_report()).ok();
            return Err(report.map_or_else(
                || self.lost_backend("its prelude failed"),
                |report| Outcome::PreludeFailed(Box::new(report)),
            ));
        }
        if verdict.ours_failed
            && let Some(lease) = self.lease.as_mut()
        {
            // Of what is said to a backend behind a prelude, only this can fail by itself.
            lease.state.doubt_sequences();
        }
        let action = match (verdict.action, hint) {
            (Action::Forward, Some(words)) => Action::Replace(words),
            (action, _) => action,
        };
        self.on_verdict(header, Verdict { action, ..verdict }, parties)?;
        if fails_query {
            self.end_failed_query(parties);
        }
        Ok(())
    }

    fn on_verdict(
        &mut self,
        header: Header,
        mut verdict: Verdict<Note>,
        parties: &mut Parties<'_>,
    ) -> Result<(), Outcome> {
        if let Some((_, note)) = &mut verdict.completed {
            self.on_no_answer(note, parties);
        }
        if let Some(status) = verdict.ready {
            let ours = verdict.action == Action::Swallow;
            if let Some((_, note)) = &verdict.completed {
                parties.session.reported_up_to(note.reports());
            }
            self.on_ready(status, ours, parties);
            if status != TransactionStatus::Idle && !ours && parties.rules.mode == PoolMode::Statement {
                return Err(Outcome::TransactionRefused);
            }
        }
        let (completed, failed) = (verdict.completed.is_some(), self.pipeline.has_dropped());
        if let Some((_, note)) = &verdict.completed {
            self.unsure.end(note);
            note.confirm();
            if let Some(described) = note.described() {
                self.on_description(header, described, parties)?;
            }
        }
        self.note_first_answer(&verdict);
        match verdict.action {
            Action::Forward => self.down.pass(header),
            Action::Swallow => self.down.skip(header),
            Action::Replace(words) => {
                self.down.skip(header);
                self.down.say(|out| out.extend_from_slice(&words));
            }
        }
        if self.pipeline.is_doubtful() {
            return Err(self.broken_backend(&Violation::Rule("an error in a COPY that a Sync was sent into")));
        }
        self.undo_dropped(parties);
        if completed || failed {
            self.say_due();
        }
        Ok(())
    }

    /// RowDescription or NoData, where somebody must remember it.
    fn on_description(
        &mut self,
        header: Header,
        described: Described,
        parties: &mut Parties<'_>,
    ) -> Result<(), Outcome> {
        let shape = match header.backend() {
            Ok(BackendTag::NoData) => Ok(ResultShape::NONE),
            _ => ResultShape::of_row_description(self.down.whole_body(header).unwrap_or_default()),
        };
        match shape {
            Ok(shape) => self.note_columns(described, shape, parties),
            Err(cause) => {
                return Err(self.broken_backend(&Violation::Malformed {
                    message: "RowDescription",
                    cause,
                }));
            }
        }
        Ok(())
    }

    fn on_ready(&mut self, status: TransactionStatus, ours: bool, parties: &mut Parties<'_>) {
        if ours {
            self.prelude_owed = false;
            self.before_prelude = None;
            self.listens.has_failed = false;
            self.asks_of_columns &= !self.pipeline.is_quiet();
            return;
        }
        self.forget_second_try();
        if self.pipeline.is_quiet() {
            self.ahead = AheadOfQuery::Nothing;
        }
        if self.trial.is_some() {
            self.trial_at_ready(status, parties);
        }
        self.listening_at_ready(status, parties);
        self.roles_at_ready(status, parties);
        let now = std::time::Instant::now();
        // A block that was ended, and at once another.
        let is_chained = self.ends_block && self.pipeline.is_quiet() && status == TransactionStatus::InTransaction;
        // What was sent behind this request is still at risk.
        self.commit_at_risk &= !self.pipeline.is_quiet();
        self.ends_block &= !self.pipeline.is_quiet();
        self.cancel_sent_at = None;
        self.parting_warning = None;
        self.answered_at = Some(now);
        self.finished.query = self.query_since.take().map(|since| now - since);
        if let Some(lease) = self.lease.as_ref().filter(|_| status != TransactionStatus::Idle) {
            lease.holder().set_idle_in_transaction(true);
        }
        self.query_since = (!self.pipeline.is_quiet()).then_some(now);
        if self.pipeline.is_quiet() {
            self.vacancy = None;
            parties.session.all_reported();
        }
        if status == TransactionStatus::Idle {
            // Whoever read the catalog before this commit has read the old one.
            self.catalog_touched |= self.catalog_changed;
            if self.catalog_changed {
                parties.session.forget_shared_statements();
            }
            self.tally.transactions += 1;
            self.finished.transaction = self.transaction_since.take().map(|since| now - since);
            let undone = std::mem::take(&mut self.undone);
            let reset_ran = std::mem::take(&mut self.reset_ran);
            if reset_ran || self.pipeline.is_settled() {
                parties.session.reset_decided(undone || !reset_ran);
            }
            // While more is under way, what is local to it may be in force already.
            if self.pipeline.is_settled() {
                parties.session.transaction_ended();
            }
        }
        if self.undone && self.pipeline.is_quiet() && (is_chained || !self.reset_ran) {
            parties.session.reset_decided(true);
            self.undone &= !is_chained;
        } else if is_chained && self.reset_kept {
            parties.session.reset_decided(false);
            self.reset_ran = false;
        }
        if self.pipeline.is_quiet() {
            (self.reset_kept, self.reset_stands) = (false, false);
        }
        if (is_chained || status == TransactionStatus::Idle)
            && let Some(lease) = self.lease.as_mut()
        {
            self.restore_due |= parties.session.take_restore_again(&mut lease.state);
        }
        // A RESET under way, or one in a failed transaction, has not happened yet, or never will.
        if status == TransactionStatus::Failed || !self.pipeline.is_quiet() {
            return;
        }
        self.tell_neutral(parties);
        let neutral = &**parties.neutral;
        let find = |name: &str| neutral.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        for (name, value) in parties.session.news(find) {
            self.down.say(|out| compose::parameter_status(out, &name, &value));
        }
    }

    /// The server's configuration may have changed since the client was told what it reports: a client that never set
    /// something sees the new value, and is told of it, as PostgreSQL has it (trap 63).
    fn tell_neutral(&mut self, parties: &mut Parties<'_>) {
        let Some(lease) = self.lease.as_ref() else {
            return;
        };
        if Arc::ptr_eq(parties.neutral, lease.neutral_parameters()) && !lease.has_reported() {
            return;
        }
        // Of its own settings the ledger does not know all; what PostgreSQL reported passed as it came.
        if parties.session.pins().contains(PinReason::Setting) {
            return;
        }
        let follows = |name: &str| {
            let of_clients = [parties.session.settings(), &lease.state.applied];
            of_clients.iter().all(|settings| settings.value(name).is_none())
        };
        let mut told = ServerParameters::clone(parties.neutral);
        for (name, value) in lease.parameters.iter() {
            if !follows(name) || !(is_settable(name) || name == "in_hot_standby") {
                // The client has a value of its own, or can't see it change.
                if let Some(own) = lease.neutral_parameters().get(name) {
                    told.set(name, own);
                }
            } else if told.set(name, value) {
                self.down.say(|out| compose::parameter_status(out, name, value));
            }
        }
        if told == **lease.neutral_parameters() {
            *parties.neutral = Arc::clone(lease.neutral_parameters());
        } else if told != **parties.neutral {
            *parties.neutral = Arc::new(told);
        }
        parties.session.set_neutral_lexing(parties.neutral.lexing());
    }

    /// Some commands are known by their tags better than by their texts, in either protocol.
    fn on_command_tag(&mut self, header: Header, parties: &mut Parties<'_>) {
        let tag = self.down.whole_body(header).and_then(|body| command_tag(body).ok());
        // A prelude's are ours.
        let Some(lease) = self.lease.as_mut().filter(|_| !self.prelude_owed) else {
            return;
        };
        match tag {
            Some(b"DISCARD ALL") => {
                let follows = following(lease.is_dedicated(), parties.rules, parties.neutral);
                parties.session.discarded_all(&mut lease.state, follows);
                self.note_reset();
            }
            Some(b"DEALLOCATE ALL") => parties.session.deallocated_all(&mut lease.state),
            Some(b"PREPARE" | b"DEALLOCATE") => {
                let tag = tag.unwrap_or_default().to_vec();
                self.on_name_tag(&tag, parties);
            }
            // Not of what its own text holds on to.
            Some(b"ROLLBACK") => self.undone |= !(self.reset_stands && self.reset_ran),
            Some(b"COMMIT") => self.reset_kept = self.reset_ran && !self.undone,
            Some(b"RESET") => self.note_reset(),
            Some(b"SET") if parties.session.set_has_run() => self.note_reset(),
            _ => {}
        }
        if self.listens.watches_tags() {
            let tag = self.down.whole_body(header).and_then(|body| command_tag(body).ok());
            let tag = tag.unwrap_or_default().to_vec();
            self.on_listening_tag(&tag, parties);
        }
    }

    /// A RESET has run, whatever was undone before it.
    const fn note_reset(&mut self) {
        (self.reset_ran, self.reset_kept, self.undone) = (true, false, false);
    }

    /// A setting was reported: the backend's known state follows, and the client's ledger where it was the client's
    /// own doing. What our prelude makes PostgreSQL report is no news to the client.
    fn on_parameter_status(&mut self, header: Header, parties: &mut Parties<'_>) -> Result<(), Outcome> {
        let body = self.down.whole_body(header).unwrap_or_default();
        let Ok(status) = ParameterStatus::parse(body) else {
            return Err(self.broken_backend(&Violation::Rule("a ParameterStatus that can't be read")));
        };
        // Older servers report at once that a question of ours has left the client's role, and that it is back.
        let is_ours = self.is_answer_to_us() && matches!(status.name, b"is_superuser" | b"session_authorization");
        let mut is_news = !self.prelude_owed && !is_ours;
        let mut is_beyond_us = false;
        if let Some(lease) = self.lease.as_mut() {
            lease.learn_parameter(&status);
            let name = std::str::from_utf8(status.name).ok().filter(|name| is_settable(name));
            let is_utf8 = lease.parameters.get("client_encoding").is_none_or(|it| it == b"UTF8");
            if let Some(name) = name.filter(|_| !self.prelude_owed && !self.pipeline.is_quiet()) {
                match std::str::from_utf8(status.value) {
                    Ok(value) if value.is_ascii() || is_utf8 => {
                        let neutral = parties.neutral.text(name);
                        is_news = parties.session.reported(&mut lease.state, name, value, neutral);
                        let is_known = neutral.is_some() && !self.unexplained.iter().any(|known| **known == *name);
                        if is_known && neutral != Some(value) && !parties.session.expects_reports() {
                            self.unexplained.push(name.into());
                        }
                    }
                    // In an encoding in which no statement of ours can say it again: it stays where it was made.
                    _ => is_beyond_us = parties.neutral.get(name) != Some(status.value),
                }
            }
        }
        if is_beyond_us && !parties.session.pins().contains(PinReason::Setting) {
            parties.session.reported_beyond_us();
            self.note_pin();
        }
        if is_news {
            self.down.pass(header);
        } else {
            self.down.skip(header);
        }
        Ok(())
    }

    /// Says every reply of ours whose turn has come.
    pub(super) fn say_due(&mut self) {
        while let Some(due) = self.pipeline.next_due() {
            let status = self.pipeline.status();
            match due {
                Due::Answer(request, words, note) => {
                    self.unsure.end(&note);
                    self.down.say(|out| out.extend_from_slice(&words));
                    if matches!(request, Request::Sync | Request::Query) {
                        self.down.say(|out| compose::ready_for_query(out, status));
                    }
                }
                Due::Refusal(request) => {
                    self.down.say(|out| compose::report(out, &failed_transaction()));
                    if request == Request::Query {
                        self.down.say(|out| compose::ready_for_query(out, status));
                    }
                }
            }
        }
    }

    /// The backend's socket failed at a write: a FATAL that stands in it is worth more than the error.
    pub(super) fn note_last_words(&mut self) {
        self.is_unusual = true;
        while let Ok(Some(header)) = self.down.next_header() {
            let Some(body) = self.down.whole_body(header) else {
                return;
            };
            if header.backend() == Ok(BackendTag::ErrorResponse) {
                self.last_words = ReportFields::parse(body)
                    .ok()
                    .filter(ReportFields::is_fatal)
                    .map(|f| f.to_report());
            }
            self.down.skip(header);
        }
    }
}

/// PostgreSQL's 55000 for a value of a sequence that the backend does not remember, with why its client may wonder; `None`
/// for any other report.
fn with_hint_of_sequences(report: &[u8]) -> Option<bytes::Bytes> {
    const ROUTINES: [&[u8]; 2] = [b"\0Rlastval\0", b"\0Rcurrval_oid\0"];
    const HINT: &[u8] =
        b"HIt was drawn in an earlier transaction, and the connection that remembers it is not at hand any more: \
        see pool.sequence_pin_timeout of pgsidecar. Ask in the transaction that draws, or use RETURNING.\0\0";
    let is_theirs = ReportFields::parse(report).is_ok_and(|fields| fields.sqlstate == b"55000")
        && ROUTINES
            .iter()
            .any(|name| report.windows(name.len()).any(|part| part == *name));
    let fields = report.strip_suffix(b"\0").filter(|_| is_theirs)?;
    let mut words = bytes::BytesMut::new();
    compose::frame(&mut words, BackendTag::ErrorResponse.byte(), &[fields, HINT]);
    Some(words.freeze())
}

/// A crash and an immediate shutdown are told as warnings before the connection ends.
fn parting_warning(body: &[u8]) -> Option<Report> {
    let fields = ReportFields::parse(body).ok()?;
    matches!(fields.sqlstate, b"57P01" | b"57P02").then(|| fields.to_report())
}
