//! Asking PostgreSQL what the client's settings are that it does not report, behind the transaction that touched them.

use super::{Exchange, Parties, Rules};
use crate::backend::ServerParameters;
use crate::backend::parameters::is_settable;
use crate::config::PoolMode;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::{Following, Note, SWITCH_NAME, is_portable};
use crate::wire::{FrontendTag, Header, compose};

/// How each setting follows a client of these rules. `neutral` has the names that PostgreSQL reports.
pub(super) fn following<'a>(
    is_dedicated: bool,
    rules: &Rules,
    neutral: &'a ServerParameters,
) -> impl Fn(&str) -> Following + use<'a> {
    let moves = !is_dedicated && rules.mode != PoolMode::Session;
    move |name| {
        if neutral.contains(name) && is_settable(name) {
            Following::ByReports
        } else if moves && is_portable(name) {
            Following::ByAsking
        } else {
            Following::Tied
        }
    }
}

impl Exchange {
    /// Between transactions: asks PostgreSQL for what the ledger lacks. Says whether something is to be sent.
    #[inline]
    pub(super) fn ask(&mut self, parties: &mut Parties<'_>) -> bool {
        let has_questions = parties.session.is_in_doubt() || parties.session.has_untold_columns();
        has_questions && (self.ask_of_settings(parties) || self.ask_of_columns(parties))
    }

    /// Between transactions: asks PostgreSQL for the settings that the client may have changed. Nobody waits for the
    /// answer, but the backend stays with its client until it has come. Says whether something is to be sent.
    pub(super) fn ask_of_settings(&mut self, parties: &mut Parties<'_>) -> bool {
        if !parties.session.is_in_doubt() || !self.pipeline.is_settled() || self.up.is_amid_message() {
            return false;
        }
        if self.lease.is_none() {
            return false;
        }
        let Some(question) = parties.session.question() else {
            return false;
        };
        self.asked_at = Some(std::time::Instant::now());
        let sql = question.sql();
        self.up.say(|out| {
            compose::close_statement(out, SWITCH_NAME);
            compose::parse(out, SWITCH_NAME, &[&*sql, b"\0\0\0"].concat());
            let name: &[u8] = &[SWITCH_NAME, b"\0"].concat();
            compose::frame(out, FrontendTag::Bind.byte(), &[b"\0", name, &[0; 6]]);
            compose::frame(out, FrontendTag::Execute.byte(), &[b"\0", &[0; 4]]);
            // The client may look at pg_prepared_statements.
            compose::close_statement(out, SWITCH_NAME);
            compose::bare_frontend(out, FrontendTag::Sync);
        });
        for request in [Request::Close, Request::Parse, Request::Bind] {
            self.expect(request, Fate::Silence, Note::Asked(None));
        }
        self.expect(Request::Execute, Fate::Silence, Note::Asked(Some(Box::new(question))));
        self.expect(Request::Close, Fate::Silence, Note::Asked(None));
        self.expect(Request::Sync, Fate::Swallow, Note::Asked(None));
        true
    }

    /// What comes from the backend now answers a question of ours.
    pub(super) fn is_answer_to_us(&self) -> bool {
        matches!(self.pipeline.head_note(), Some(Note::Asked(_)))
    }

    /// A question was passed over, or failed.
    pub(super) fn on_no_answer(&mut self, note: &mut Note, parties: &mut Parties<'_>) {
        let Note::Asked(question) = note else {
            return;
        };
        let pinned = parties.session.pins();
        if let Some(question) = question.take() {
            parties.session.unanswered(*question);
        }
        if parties.session.pins() != pinned {
            self.note_pin();
        }
    }

    /// The row that answers.
    pub(super) fn on_answer(&mut self, header: Header, parties: &mut Parties<'_>) {
        let Some(Note::Asked(question)) = self.pipeline.pending_mut().next() else {
            return;
        };
        let (Some(question), Some(lease)) = (question.take(), self.lease.as_mut()) else {
            return;
        };
        let row = self.down.whole_body(header).unwrap_or_default();
        let is_unicode = lease.parameters.get("client_encoding").is_none_or(|it| it == b"UTF8");
        let neutral = std::sync::Arc::clone(lease.neutral_parameters());
        let pinned = parties.session.pins();
        let learned = self.trial.take().and_then(|trial| trial.with_value_in(&question, row));
        let login = neutral.text("session_authorization");
        parties
            .session
            .answered(*question, row, &mut lease.state, login, is_unicode);
        if parties.session.pins() != pinned {
            self.note_pin();
        } else if let Some((trial, value)) = learned {
            trial.succeeded(&value, parties);
        }
    }
}
