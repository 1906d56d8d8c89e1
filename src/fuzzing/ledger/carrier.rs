//! One client between its ledger and its backend: `relay::Exchange` for Query alone.

use std::collections::{BTreeMap, VecDeque};

use bytes::BufMut;

use super::Backend;
use super::server::{DEFAULTS, REPORTED, Said, Server};
use crate::protocol::pipeline::{Fate, Pipeline, Request};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::reset::ResetPlan;
use crate::virtual_session::sql_lexer::{Lexing, StandardConformingStrings};
use crate::virtual_session::statement_effects::{Action, Effects, SequenceUse, Step, classify};
use crate::virtual_session::suspects::Suspects;
use crate::virtual_session::{Following, Note, VirtualSession, is_portable};
use crate::wire::BackendTag;
use crate::wire::backend_message::TransactionStatus;

/// Requests under way at a time; the relay has a bound too.
pub(super) const REQUESTS_MAX: usize = 24;

/// What a backend was sent and has not answered.
#[derive(Debug)]
enum Sent {
    /// The client's own.
    Query(Vec<u8>),
    Prelude(Vec<u8>),
    /// Another Query of ours.
    Ours(Vec<u8>),
    /// Startup settings are made again behind a RESET, in the extended protocol.
    Restore(Vec<u8>),
    Question(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) session: VirtualSession,
    pub(super) backend: Option<Backend>,
    /// What the client would have if it had a backend of its own.
    twin: Server,
    /// What the client was told of its settings.
    told: BTreeMap<&'static str, String>,
    pipeline: Pipeline<Note>,
    sent: VecDeque<Sent>,
    undone: bool,
    reset_ran: bool,
    reset_kept: bool,
    reset_stands: bool,
    ends_block: bool,
    restore_due: bool,
    restore_bound: bool,
    discarding: bool,
    /// Settings were changed in the transaction at hand.
    has_changed: bool,
    prelude_owed: bool,
    before_prelude: Option<crate::virtual_session::Checkpoint>,
    /// Questions are answered late.
    pub(super) is_slow: bool,
    /// The next question is not answered.
    pub(super) question_fails: bool,
    /// The next prelude is refused.
    pub(super) prelude_fails: bool,
}

/// How a backend of the model reads texts by itself.
pub(super) fn neutral_lexing() -> Lexing {
    Lexing::default()
}

/// What a backend of the model reports by itself.
fn neutral(name: &str) -> Option<(&'static str, &'static [u8])> {
    let reported = DEFAULTS.into_iter().take(REPORTED);
    let mut found = reported.filter(|(known, _)| known.eq_ignore_ascii_case(name));
    found.next().map(|(name, value)| (name, value.as_bytes()))
}

/// `relay::unreported::following`.
fn following(name: &str) -> Following {
    match name {
        _ if neutral(name).is_some() => Following::ByReports,
        _ if is_portable(name) => Following::ByAsking,
        _ => Following::Tied,
    }
}

impl Carrier {
    pub(super) fn new(session: VirtualSession, twin: Server) -> Self {
        Self {
            session,
            backend: None,
            told: twin.told().clone(),
            twin,
            pipeline: Pipeline::default(),
            sent: VecDeque::new(),
            undone: false,
            reset_ran: false,
            reset_kept: false,
            reset_stands: false,
            ends_block: false,
            restore_due: false,
            restore_bound: false,
            discarding: false,
            has_changed: false,
            prelude_owed: false,
            before_prelude: None,
            is_slow: false,
            question_fails: false,
            prelude_fails: false,
        }
    }

    /// RESET returns to something that the server would not.
    pub(super) fn has_startup(&self) -> bool {
        self.twin.has_startup()
    }

    pub(super) fn len(&self) -> usize {
        self.pipeline.len()
    }

    pub(super) fn owes_reply(&self) -> bool {
        !self.sent.is_empty()
    }

    /// The client waits for something; not for the answer to a question of ours.
    pub(super) fn owes_client_reply(&self) -> bool {
        self.sent.iter().any(|sent| matches!(sent, Sent::Query(_)))
    }

    /// A startup setting that is RESET amid a text is, for the rest of that text, what a backend of the pool has by itself;
    /// and by a text that can't be read, for ever (docs/transparency.md).
    pub(super) fn is_beyond_us(&self, text: &[u8]) -> bool {
        use StandardConformingStrings::{Off, On};
        let is_read = !self.effects_of(text).pins.contains(PinReason::Unlexable);
        [On, Off].into_iter().any(|strings| {
            let lexing = Lexing {
                strings,
                ..neutral_lexing()
            };
            let effects = classify(text, lexing, &Suspects::known([]));
            let is_amid = |step: &Step| {
                let alone = Effects {
                    steps: vec![step.clone()],
                    ..Effects::NONE
                };
                let is_last = is_read && step.statement + 1 == effects.statement_count;
                !is_last && self.session.resets_baseline(&alone)
            };
            effects.steps.iter().any(is_amid)
        })
    }

    fn effects_of(&self, text: &[u8]) -> Effects {
        classify(text, self.session.lexing(), &Suspects::known([]))
    }

    fn expect(&mut self, request: Request, fate: Fate, note: Note) {
        self.pipeline.expect(request, fate, note);
    }

    /// `Exchange::on_query`. False: a reply must be awaited first.
    pub(super) fn send(&mut self, text: &[u8]) -> bool {
        let effects = self.effects_of(text);
        if !self.before_backend(&effects) {
            return false;
        }
        let state = self.backend.as_mut().map(|backend| &mut backend.state);
        let note = self.session.forget_unnamed(state);
        self.apply(&effects);
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        let note = note.reporting(self.session.unreported());
        self.expect(Request::Query, Fate::Forward, note);
        self.sent.push_back(Sent::Query(text.to_vec()));
        true
    }

    /// `Exchange::before_backend`.
    fn before_backend(&mut self, effects: &Effects) -> bool {
        if self.session.resets_baseline(effects) && self.awaits_reports() {
            return false;
        }
        let quiet = self.pipeline.is_quiet();
        self.discarding &= !quiet;
        if (self.restore_due && !quiet) || (self.discarding && !effects.is_none()) {
            return false;
        }
        let settled = self.pipeline.is_settled();
        let Some(backend) = self.backend.as_mut() else {
            return true;
        };
        if std::mem::take(&mut self.restore_due) && !settled && !self.pipeline.is_failed() {
            let sql = self.session.restore_for(&mut backend.state);
            sql.into_iter().for_each(|sql| self.restore(sql));
        }
        let Some(backend) = self.backend.as_mut() else {
            return true;
        };
        if settled {
            let agreed = self.session.agrees_with(&backend.state);
            let sql = self.session.prelude_for(&mut backend.state);
            assert!(!agreed || sql.is_none(), "a backend that agrees needs no prelude");
            assert_eq!(
                self.session.prelude_for(&mut backend.state),
                None,
                "a prelude brings agreement"
            );
            // But for traces of settings that the client may have named itself, in a text that failed.
            let is_suited = self.session.pins().is_empty() && self.session.accepts(&backend.state);
            assert!(
                !is_suited || self.session.agrees_with(&backend.state),
                "a prelude brings agreement"
            );
            if let Some(sql) = sql {
                self.prelude_owed = true;
                self.before_prelude = Some(self.session.checkpoint());
                self.expect(Request::Query, Fate::Swallow, Note::None);
                self.sent.push_back(Sent::Prelude(sql));
            }
        }
        !(self.prelude_owed && effects.exits_failed_block)
    }

    fn awaits_reports(&mut self) -> bool {
        let number = self.session.unreported();
        let is_due = self.pipeline.pending_mut().any(|note| note.reports() == number);
        self.session.awaits_answer() || (number != 0 && is_due)
    }

    /// `Exchange::restore` and `Exchange::inject`.
    fn restore(&mut self, sql: Vec<u8>) {
        use Request as R;
        self.has_changed = true;
        for request in [R::Close, R::Parse, R::Bind, R::Execute, R::Close, R::Close, R::Sync] {
            self.expect(request, Fate::Swallow, Note::None);
        }
        self.sent.push_back(Sent::Restore(sql));
    }

    /// `Exchange::apply`.
    fn apply(&mut self, effects: &Effects) {
        self.ends_block |= effects.ends_transaction;
        self.has_changed |= effects.settings().count() > 0;
        if effects.is_none() && effects.sequence == SequenceUse::None {
            return;
        }
        let Some(backend) = self.backend.as_mut() else {
            return;
        };
        let uses = effects.sequence;
        if uses != SequenceUse::None && self.session.use_sequences(uses, &mut backend.state) {
            self.pipeline
                .expect(Request::Query, Fate::Swallow, Note::SequencesForgotten);
            self.sent.push_back(Sent::Ours(b"listen sequences".to_vec()));
        }
        self.session.apply(effects, &mut backend.state, following);
        self.discarding |= effects.steps.iter().any(|step| step.action == Action::DiscardAll);
        let resets = self.session.resets_baseline(effects);
        self.restore_bound |= resets;
        self.reset_stands |= resets;
    }

    /// All that [`Self::send`] does, and then nothing of it is sent (`Exchange::rewind`).
    pub(super) fn send_in_vain(&mut self, text: &[u8]) {
        let before = self.session.checkpoint();
        let settings = |session: &VirtualSession| {
            let entries = session.settings().entries().to_vec();
            (
                entries,
                session.pins(),
                session.lexing(),
                session.is_in_doubt(),
                session.unnamed_effects().is_some(),
            )
        };
        let expected = settings(&self.session);
        self.send(text);
        self.pipeline.abandon();
        self.undo_dropped();
        self.session.return_to(before);
        assert_eq!(settings(&self.session), expected, "what was not sent has not been");
        self.forget_exchange();
    }

    fn forget_exchange(&mut self) {
        self.sent.clear();
        self.ends_block = false;
        self.prelude_owed = false;
        self.before_prelude = None;
        self.restore_due = false;
        self.restore_bound = false;
        self.discarding = false;
    }

    /// The backend answers what it was sent first. False: it is lost to the client.
    pub(super) fn reply(&mut self) -> bool {
        let (Some(sent), Some(backend)) = (self.sent.pop_front(), self.backend.as_mut()) else {
            return false;
        };
        match sent {
            Sent::Query(text) => self.run(&text),
            Sent::Prelude(_) if std::mem::take(&mut self.prelude_fails) => {
                // The client's own statements got 25P02 behind it, and none has run.
                if let Some(before) = self.before_prelude.take() {
                    self.session.return_to(before);
                }
                self.pipeline.abandon();
                self.undo_dropped();
                self.forget_exchange();
                return false;
            }
            Sent::Prelude(sql) => {
                let said = backend.server.query(&sql);
                assert!(!said.contains(&Said::Error), "{}", String::from_utf8_lossy(&sql));
                said.into_iter().for_each(|said| self.hear(said));
            }
            Sent::Ours(sql) => backend.server.query(&sql).into_iter().for_each(|said| self.hear(said)),
            Sent::Restore(sql) => self.run_group(&sql, b"312", b"33", false),
            Sent::Question(sql) => {
                let fails = std::mem::take(&mut self.question_fails);
                self.run_group(&sql, b"312", b"3", fails);
            }
        }
        true
    }

    /// The client's own statement, which runs beside it on the backend that it would have.
    fn run(&mut self, text: &[u8]) {
        let Some(backend) = self.backend.as_mut() else {
            return;
        };
        let shown = String::from_utf8_lossy(text).into_owned();
        assert_eq!(
            backend.server.settings(),
            self.twin.settings(),
            "before {shown:?}: on the pool's backend, and on its own"
        );
        assert_eq!(backend.server.status(), self.twin.status(), "before {shown:?}");
        let said = backend.server.query(text);
        let expected = self.twin.query(text);
        let answers = |said: &[Said]| -> Vec<Said> {
            let is_answer = |said: &&Said| !matches!(said, Said::Status(..));
            said.iter().filter(is_answer).cloned().collect()
        };
        assert_eq!(
            answers(&said),
            answers(&expected),
            "{shown:?} is answered as on its own backend"
        );
        said.into_iter().for_each(|said| self.hear(said));
        if self.pipeline.is_quiet() && self.twin.status() != TransactionStatus::Failed {
            assert_eq!(
                &self.told,
                self.twin.told(),
                "what the client is told of its settings, behind {shown:?}"
            );
        }
    }

    /// A group of ours in the extended protocol, with the replies before and behind its Execute's.
    fn run_group(&mut self, sql: &[u8], before: &[u8], behind: &[u8], fails: bool) {
        let Some(backend) = self.backend.as_mut() else {
            return;
        };
        let mut said = Vec::new();
        match fails {
            true => said.push(Said::Error),
            false => backend.server.run(sql, &mut said),
        }
        let end = backend.server.query(b"");
        let has_failed = said.contains(&Said::Error);
        let frames = |carrier: &mut Self, tags: &[u8]| {
            for tag in tags {
                let tag = match tag {
                    b'1' => BackendTag::ParseComplete,
                    b'2' => BackendTag::BindComplete,
                    _ => BackendTag::CloseComplete,
                };
                carrier.on_frame(tag, b"");
            }
        };
        frames(self, before);
        said.into_iter().for_each(|said| self.hear(said));
        if !has_failed {
            frames(self, behind);
        }
        end.into_iter()
            .filter(|said| *said != Said::Empty)
            .for_each(|said| self.hear(said));
    }

    /// `Exchange::on_backend_message`.
    fn hear(&mut self, said: Said) {
        match said {
            Said::Status(name, value) => self.on_status(name, &value),
            Said::Row(columns) => {
                self.on_answer(&columns);
                self.on_frame(BackendTag::DataRow, b"");
            }
            Said::Command(tag) => {
                self.on_command_tag(tag);
                self.on_frame(BackendTag::CommandComplete, tag.as_bytes());
            }
            Said::Empty => self.on_frame(BackendTag::EmptyQueryResponse, b""),
            Said::Error => {
                self.undone |= !self.is_answer_to_us();
                self.on_frame(BackendTag::ErrorResponse, b"SERROR\0C22023\0\0");
            }
            Said::Ready(status) => {
                let status: &[u8] = match status {
                    TransactionStatus::Idle => b"I",
                    TransactionStatus::InTransaction => b"T",
                    TransactionStatus::Failed => b"E",
                };
                self.on_frame(BackendTag::ReadyForQuery, status);
            }
        }
    }

    fn is_answer_to_us(&self) -> bool {
        matches!(self.pipeline.head_note(), Some(Note::Asked(_)))
    }

    /// `Exchange::on_parameter_status`.
    fn on_status(&mut self, name: &'static str, value: &str) {
        let mut is_news = !self.prelude_owed;
        let Some(backend) = self.backend.as_mut() else {
            return;
        };
        if !self.prelude_owed && !self.pipeline.is_quiet() {
            let neutral = neutral(name).and_then(|(_, value)| std::str::from_utf8(value).ok());
            is_news = self.session.reported(&mut backend.state, name, value, neutral);
            // Where a statement fails that is no SET, or startup settings were made again, PostgreSQL is asked for nothing.
            let is_changed = self.has_changed || !self.session.pins().is_empty();
            let is_explained = neutral == Some(value) || self.session.expects_reports() || is_changed;
            assert!(is_explained, "{name} = {value:?} is nobody's doing");
        }
        if is_news {
            self.told.insert(name, value.to_owned());
        }
    }

    /// `Exchange::on_answer`.
    fn on_answer(&mut self, columns: &[Option<String>]) {
        let mut row = Vec::new();
        row.put_i16(i16::try_from(columns.len()).unwrap_or_default());
        for column in columns {
            match column {
                None => row.put_i32(-1),
                Some(text) => {
                    row.put_i32(i32::try_from(text.len()).unwrap_or_default());
                    row.put_slice(text.as_bytes());
                }
            }
        }
        let Some(Note::Asked(question)) = self.pipeline.pending_mut().next() else {
            return;
        };
        if let (Some(question), Some(backend)) = (question.take(), self.backend.as_mut()) {
            self.session
                .answered(*question, &row, &mut backend.state, Some("app"), true);
        }
    }

    /// `Exchange::on_command_tag`.
    fn on_command_tag(&mut self, tag: &str) {
        let Some(backend) = self.backend.as_mut().filter(|_| !self.prelude_owed) else {
            return;
        };
        match tag {
            "DISCARD ALL" => {
                self.session.discarded_all(&mut backend.state, following);
                self.note_reset();
            }
            "ROLLBACK" => self.undone |= !(self.reset_stands && self.reset_ran),
            "COMMIT" => self.reset_kept = self.reset_ran && !self.undone,
            "RESET" => self.note_reset(),
            "SET" if self.session.set_has_run() => self.note_reset(),
            _ => {}
        }
    }

    const fn note_reset(&mut self) {
        (self.reset_ran, self.reset_kept, self.undone) = (true, false, false);
    }

    /// `Exchange::on_verdict`, and what of `on_backend_message` comes before.
    fn on_frame(&mut self, tag: BackendTag, body: &[u8]) {
        let mut verdict = match self.pipeline.on_frame(tag, body) {
            Ok(verdict) => verdict,
            Err(violation) => panic!("{violation}"),
        };
        if verdict.ours_failed
            && let Some(backend) = self.backend.as_mut()
        {
            backend.state.doubt_sequences();
        }
        if let Some((_, note)) = &mut verdict.completed {
            self.on_no_answer(note);
        }
        if let Some(status) = verdict.ready {
            let ours = verdict.action == crate::protocol::pipeline::Action::Swallow;
            if let Some((_, note)) = &verdict.completed {
                self.session.reported_up_to(note.reports());
            }
            self.on_ready(status, ours);
        }
        if let Some((_, note)) = &verdict.completed {
            note.confirm();
        }
        self.undo_dropped();
    }

    fn on_no_answer(&mut self, note: &mut Note) {
        if let Note::Asked(question) = note
            && let Some(question) = question.take()
        {
            self.session.unanswered(*question);
        }
    }

    /// `Exchange::on_ready`.
    fn on_ready(&mut self, status: TransactionStatus, ours: bool) {
        if ours {
            self.prelude_owed = false;
            self.before_prelude = None;
            return;
        }
        let is_chained = self.ends_block && self.pipeline.is_quiet() && status == TransactionStatus::InTransaction;
        self.ends_block &= !self.pipeline.is_quiet();
        if self.pipeline.is_quiet() {
            self.session.all_reported();
        }
        if status == TransactionStatus::Idle {
            let undone = std::mem::take(&mut self.undone);
            let reset_ran = std::mem::take(&mut self.reset_ran);
            if reset_ran || self.pipeline.is_settled() {
                self.session.reset_decided(undone || !reset_ran);
            }
            if self.pipeline.is_settled() {
                self.session.transaction_ended();
                self.has_changed = false;
            }
        }
        if self.undone && self.pipeline.is_quiet() && (is_chained || !self.reset_ran) {
            self.session.reset_decided(true);
            self.undone &= !is_chained;
        } else if is_chained && self.reset_kept {
            self.session.reset_decided(false);
            self.reset_ran = false;
        }
        if self.pipeline.is_quiet() {
            (self.reset_kept, self.reset_stands) = (false, false);
        }
        if (is_chained || status == TransactionStatus::Idle)
            && let Some(backend) = self.backend.as_mut()
        {
            self.restore_due |= self.session.take_restore_again(&mut backend.state);
        }
        if status == TransactionStatus::Failed || !self.pipeline.is_quiet() {
            return;
        }
        for (name, value) in self.session.news(neutral) {
            let name = neutral(&name).map_or("", |(name, _)| name);
            self.told.insert(name, String::from_utf8_lossy(&value).into_owned());
        }
    }

    /// `Exchange::undo_dropped`.
    fn undo_dropped(&mut self) {
        let oldest_failed = self.pipeline.take_oldest_failed();
        let mut notes = self.pipeline.take_dropped();
        let failed = if oldest_failed { notes.pop() } else { None };
        for (mut note, has_failed) in notes
            .into_iter()
            .map(|note| (note, false))
            .chain(failed.map(|note| (note, true)))
        {
            self.on_no_answer(&mut note);
            let state = self.backend.as_mut().map(|backend| &mut backend.state);
            match has_failed {
                true => self.session.undo_failed(note, state, self.pipeline.pending_mut()),
                false => self.session.undo(note, state, self.pipeline.pending_mut()),
            }
        }
    }

    /// `Exchange::ask_of_settings`.
    pub(super) fn asks_of_settings(&mut self) -> bool {
        use Request as R;
        if !self.session.is_in_doubt() || !self.pipeline.is_settled() || self.backend.is_none() {
            return false;
        }
        let Some(question) = self.session.question() else {
            return false;
        };
        self.sent.push_back(Sent::Question(question.sql()));
        for request in [R::Close, R::Parse, R::Bind] {
            self.expect(request, Fate::Silence, Note::Asked(None));
        }
        self.expect(R::Execute, Fate::Silence, Note::Asked(Some(Box::new(question))));
        self.expect(R::Close, Fate::Silence, Note::Asked(None));
        self.expect(R::Sync, Fate::Swallow, Note::Asked(None));
        true
    }

    /// `Exchange::resting_place`: the backend is anyone's.
    pub(super) fn can_part(&self) -> bool {
        self.pipeline.is_settled() && !self.session.is_bound()
    }

    /// `Session::clean_up`: the backend, `None` for one that is closed; where there was none, none.
    pub(super) fn clean_up(mut self) -> Option<Option<Backend>> {
        while self.owes_reply() {
            if !self.reply() {
                return Some(None);
            }
        }
        let plan = ResetPlan::for_pins(self.session.pins());
        let plan = match plan {
            ResetPlan::Nothing if self.session.is_in_doubt() || !self.pipeline.is_settled() => ResetPlan::DiscardAll,
            plan => plan,
        };
        let mut backend = self.backend.take()?;
        if plan == ResetPlan::Close {
            return Some(None);
        }
        if backend.server.status() != TransactionStatus::Idle {
            backend.server.query(b"rollback");
        }
        if plan == ResetPlan::DiscardAll {
            backend.server.query(b"discard all");
            backend.state.discarded();
        }
        Some(Some(backend))
    }
}
