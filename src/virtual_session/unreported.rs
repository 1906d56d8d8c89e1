//! Settings that PostgreSQL does not report: which of them the client may have changed, and asking PostgreSQL for them.
//!
//! What a SET comes to depends on savepoints, errors and the fate of the transaction. So nothing is computed: when the
//! transaction has ended, PostgreSQL is asked for the names that were touched, behind the client's back and without
//! anyone waiting. Until it has answered the backend stays where it is.

use std::sync::Arc;

use super::parameters::{Setting, Settings, is_identity, literal};
use super::pins::PinReason;
use super::settings_ledger::Until;
use super::{BackendState, VirtualSession};
use crate::wire::Reader;

/// Names that may be in doubt at a time; beyond them the client is tied.
const DOUBTS_MAX: usize = 64;
/// The longest name that is asked for, in bytes.
const NAME_LEN_MAX: usize = 256;
/// Settings of one client that follow it, in bytes of names and values, and in number; beyond them it is tied.
const SETTINGS_BYTES_MAX: usize = 64 * 1024;
const SETTINGS_MAX: usize = 256;
/// How often a question may fail in a row (a cancel that came late, a timeout of the client's) before it is given up.
const FAILURES_MAX: u32 = 3;
/// A timeout that is shorter could end a statement of ours, in milliseconds.
const SHORT_TIMEOUT_MS: u32 = 1000;

/// How the ledger learns what a SET has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// PostgreSQL reports the setting.
    ByReports,
    /// PostgreSQL is asked when the transaction has ended.
    ByAsking,
    /// Not at all: the client is tied to its backend.
    Tied,
}

/// Whether a setting can be made on another backend as if it had been made there first.
pub fn is_portable(name: &str) -> bool {
    // Its backend would end while nobody uses it, and its client would not.
    let is_of_the_connection = name.eq_ignore_ascii_case("idle_session_timeout");
    // Another name may be in an encoding in which we could not say it again.
    name.is_ascii() && name.len() <= NAME_LEN_MAX && !is_of_the_connection
}

/// A name as settings are kept by: PostgreSQL takes these for two others.
pub(super) fn canonical(name: &str) -> &str {
    match name {
        "sort_mem" => "work_mem",
        "vacuum_mem" => "maintenance_work_mem",
        name => name,
    }
}

/// Settings in doubt, and questions on their way.
#[derive(Debug, Clone, Default)]
pub(super) struct Unreported {
    doubts: Vec<Doubt>,
    /// Of the questions on their way: what is said of these now is not in their answers.
    asked: Vec<Box<str>>,
    in_flight: u32,
    failures: u32,
}

#[derive(Debug, Clone)]
struct Doubt {
    name: Box<str>,
    /// It may have been given a value.
    set: bool,
    /// It may have been taken back.
    reset: bool,
    /// That is what was said of it last.
    reset_last: bool,
    /// What it was before; `None` where that is on its way.
    before: Option<Option<Box<str>>>,
}

/// What PostgreSQL is asked: the names, and the number of the settings that were in force.
#[derive(Debug)]
pub struct Question {
    doubts: Vec<Doubt>,
    under: u64,
    /// The client may have a role, to which not every setting is allowed.
    has_role: bool,
    /// Whether the defaults are asked for, too. Where that was refused, a value is kept though it be the default.
    with_defaults: bool,
}

impl Unreported {
    fn forget_asked(&mut self) {
        if self.in_flight == 0 {
            self.asked.clear();
        }
    }

    fn add(&mut self, doubt: Doubt) {
        let is_full = self.doubts.len() > DOUBTS_MAX;
        match self.doubts.iter_mut().find(|known| known.name == doubt.name) {
            Some(known) => {
                known.set |= doubt.set;
                known.reset |= doubt.reset;
                known.reset_last = doubt.reset_last;
            }
            // One more says that there are too many.
            None if is_full => {}
            None => self.doubts.push(doubt),
        }
    }
}

impl Doubt {
    fn may_have_been(&self, value: Option<&str>) -> bool {
        self.before.as_ref().is_none_or(|before| before.as_deref() == value)
    }

    /// Custom settings have no default but `''`, which a value can be too. The login's own identity is reported, and going
    /// back to it, if only for a look, would end the role.
    fn has_default(&self) -> bool {
        !self.name.contains('.') && &*self.name != "session_authorization"
    }
}

impl Doubt {
    /// The value if the session has one of its own: what is the server's the client may have no right to say again.
    fn value_of_session(&self) -> String {
        let name = literal(&self.name);
        let value = format!("pg_catalog.current_setting({name}, true)");
        match self.has_default() && &*self.name != "role" {
            true => format!(
                "CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) = {name} AND source = \
                 'session') THEN {value} END"
            ),
            // These are not in pg_settings.
            false => value,
        }
    }
}

impl Question {
    fn columns(&self) -> usize {
        let defaults = self.doubts.iter().filter(|doubt| doubt.has_default()).count();
        let with_defaults = usize::from(self.with_defaults);
        self.doubts.len() + with_defaults * (usize::from(self.has_role) + defaults)
    }

    /// What this answer says that a setting is; `None` where it was not asked for. `under` is the number of the settings
    /// that were in force: under another the value is another statement's.
    pub fn value_of(&self, name: &str, under: u64, row: &[u8]) -> Option<String> {
        let at = self.doubts.iter().position(|doubt| &*doubt.name == name)?;
        let value = *columns(row, false)?.get(at)?;
        value.filter(|_| under == self.under).map(str::to_owned)
    }

    /// The statement that asks: the values first, then what each would be if it were taken back. That is undone with the
    /// transaction which the statement is.
    pub fn sql(&self) -> Vec<u8> {
        let mut sql = "SELECT ".to_owned();
        for (index, doubt) in self.doubts.iter().enumerate() {
            sql.push_str(if index == 0 { "" } else { ", " });
            sql.push_str(&match self.with_defaults {
                true => format!("pg_catalog.current_setting({}, true)", literal(&doubt.name)),
                false => doubt.value_of_session(),
            });
        }
        if !self.with_defaults {
            return sql.into_bytes();
        }
        if self.has_role {
            sql.push_str(", pg_catalog.set_config('role', 'none', true)");
        }
        for doubt in self.doubts.iter().filter(|doubt| doubt.has_default()) {
            let name = literal(&doubt.name);
            sql.push_str(&format!(
                ", CASE WHEN pg_catalog.current_setting({name}, true) IS NOT NULL THEN pg_catalog.set_config({name}, NULL, true) END"
            ));
        }
        sql.into_bytes()
    }
}

impl VirtualSession {
    /// Whether PostgreSQL must be asked, or was and has not answered, before anyone else may have the backend.
    pub const fn is_in_doubt(&self) -> bool {
        self.unreported.is_some()
    }

    /// PostgreSQL was asked, and has not answered.
    pub fn awaits_answer(&self) -> bool {
        self.unreported
            .as_ref()
            .is_some_and(|unreported| unreported.in_flight > 0)
    }

    /// What PostgreSQL is to be asked now, between two transactions.
    pub fn question(&mut self) -> Option<Question> {
        let under = self.unseen_settings;
        let had_role = self.wanted.value("role").is_some();
        let unreported = self
            .unreported
            .as_mut()
            .filter(|unreported| !unreported.doubts.is_empty())?;
        unreported.in_flight += 1;
        let doubts = std::mem::take(&mut unreported.doubts);
        unreported.asked.extend(doubts.iter().map(|doubt| doubt.name.clone()));
        Some(Question {
            with_defaults: unreported.failures == 0,
            has_role: had_role || doubts.iter().any(|doubt| &*doubt.name == "role"),
            doubts,
            under,
        })
    }

    /// A statement is about to run that may change a setting which is not reported.
    pub(super) fn doubt(&mut self, name: &str, reset: bool, backend: &mut BackendState) {
        let before = self.wanted.value(name).map(Box::from);
        self.doubt_since(name, reset, before, backend);
    }

    /// The same for one that had this value before.
    pub(super) fn doubt_since(
        &mut self,
        name: &str,
        reset: bool,
        before: Option<Box<str>>,
        backend: &mut BackendState,
    ) {
        backend.unsure = true;
        self.note_name(name, backend);
        self.see_not(Until::Asked);
        let unreported = self.unreported.get_or_insert_default();
        let is_asked = unreported.asked.iter().any(|asked| &**asked == name);
        let doubt = Doubt {
            name: name.into(),
            set: !reset,
            reset,
            reset_last: reset,
            before: (!is_asked).then_some(before),
        };
        unreported.add(doubt);
        if unreported.doubts.len() > DOUBTS_MAX {
            self.tie_settings();
        }
    }

    /// Whether PostgreSQL will be asked for it.
    pub(super) fn is_doubted(&self, name: &str) -> bool {
        let unreported = self.unreported.as_ref();
        unreported.is_some_and(|unreported| unreported.doubts.iter().any(|doubt| &*doubt.name == name))
    }

    /// A custom setting's name stays on the backend, whatever becomes of its value.
    pub(super) fn note_name(&mut self, name: &str, backend: &mut BackendState) {
        self.shared.custom_names.note(name);
        if !backend.note_placeholder(name) {
            self.pins.insert(PinReason::CustomSetting);
        }
    }

    /// Every setting in doubt, and these besides, may have been taken back.
    /// Who one is, only DISCARD ALL takes back.
    pub(super) fn doubt_all<'a>(
        &mut self,
        settings: impl Iterator<Item = &'a Setting>,
        with_identity: bool,
        backend: &mut BackendState,
    ) {
        let mut asked = Vec::new();
        if let Some(unreported) = &mut self.unreported {
            let is_taken_back = |doubt: &&mut Doubt| with_identity || !is_identity(&doubt.name);
            for doubt in unreported.doubts.iter_mut().filter(is_taken_back) {
                (doubt.reset, doubt.reset_last) = (true, true);
            }
            asked.clone_from(&unreported.asked);
        }
        for (name, before) in settings {
            self.doubt_since(name, true, Some(before.clone()), backend);
        }
        for name in asked.iter().filter(|name| !is_identity(name)) {
            self.doubt(name, true, backend);
        }
    }

    /// PostgreSQL has answered with this row. `login` is who the backend logged in as; `is_unicode` whether values that are
    /// not ASCII can be said again.
    pub fn answered(
        &mut self,
        question: Question,
        row: &[u8],
        backend: &mut BackendState,
        login: Option<&str>,
        is_unicode: bool,
    ) {
        let columns = columns(row, is_unicode).filter(|columns| columns.len() == question.columns());
        let Some(columns) = columns else {
            return self.cant_know(question);
        };
        let (baseline, wanted) = (Arc::clone(&self.baseline), Arc::clone(&self.wanted));
        let mut defaults = columns
            .iter()
            .skip(question.doubts.len() + usize::from(question.has_role));
        let (mut on_backend, mut of_client) = (Vec::new(), Vec::new());
        for (doubt, value) in question.doubts.iter().zip(&columns) {
            let default = match doubt.has_default() {
                true if !question.with_defaults => None,
                true => defaults.next().copied().flatten(),
                false => login.filter(|_| !doubt.name.contains('.')),
            };
            let here = value.filter(|_| *value != default);
            let baseline = baseline.value(&doubt.name);
            let is_taken_back = doubt.reset && (*value == default || (default.is_none() && *value == Some("")));
            let of_client_now = match baseline {
                // Whether the RESET has happened, the ledger knows by its tag.
                Some(_) if doubt.reset && !doubt.set && !question.with_defaults => wanted.value(&doubt.name),
                Some(_) if doubt.reset && doubt.has_default() && !question.with_defaults => {
                    return self.cant_know(question);
                }
                // Was it RESET, or set to what happens to be the server's default?
                Some(_) if is_taken_back && doubt.set && !doubt.reset_last => return self.cant_know(question),
                // It was that before, too: the tag decides again.
                Some(_) if is_taken_back && doubt.may_have_been(*value) => wanted.value(&doubt.name),
                Some(baseline) if is_taken_back => Some(baseline),
                Some(_) => *value,
                None => here,
            };
            // Set to the server's default it is there already: no prelude may say it behind what else was said meanwhile.
            let is_there = baseline.is_some() && of_client_now == *value;
            on_backend.push((&*doubt.name, if is_there { *value } else { here }));
            of_client.push((&*doubt.name, of_client_now));
        }
        for ((_, here), (name, now)) in on_backend.iter_mut().zip(&mut of_client) {
            if may_end_ours(name, *now) {
                // It stays where it is, and no prelude of ours may say otherwise. What else was asked for is known.
                (*here, *now) = (None, None);
                self.tie_settings();
            }
        }
        backend.applied = self.shared.settings.intern(with_all(&backend.applied, &on_backend));
        let told_all = Arc::ptr_eq(&self.told, &self.wanted);
        if let Some(before) = &mut self.before_reset {
            *before = Arc::new(with_all(before, &of_client));
        }
        // A RESET behind the question returned to the startup parameter.
        of_client.retain(|(name, _)| baseline.value(name).is_none() || !self.is_reset_again(name));
        self.want(with_all(&self.wanted, &of_client));
        if told_all {
            // None of it is reported.
            self.told = self.wanted.clone();
        }
        if self.wanted.entries().len() > SETTINGS_MAX || self.wanted.bytes() > SETTINGS_BYTES_MAX {
            self.tie_settings();
        }
        self.end_question(question.under, Some(backend));
    }

    /// PostgreSQL did not answer, or not with what was asked.
    pub fn unanswered(&mut self, question: Question) {
        let Some(unreported) = &mut self.unreported else {
            return;
        };
        unreported.failures += 1;
        if unreported.failures >= FAILURES_MAX {
            return self.cant_know(question);
        }
        unreported.in_flight -= 1;
        unreported.forget_asked();
        question.doubts.into_iter().for_each(|doubt| unreported.add(doubt));
    }

    fn is_reset_again(&self, name: &str) -> bool {
        let unreported = self.unreported.as_ref();
        unreported.is_some_and(|unreported| {
            unreported
                .doubts
                .iter()
                .any(|doubt| doubt.reset && &*doubt.name == name)
        })
    }

    fn cant_know(&mut self, question: Question) {
        self.tie_settings();
        // What the backend has of them is what the client has; no prelude of ours may say otherwise.
        let unknown: Vec<_> = question.doubts.iter().map(|doubt| (&*doubt.name, None)).collect();
        self.want(with_all(&self.wanted, &unknown));
        self.end_question(question.under, None);
    }

    /// What the client's settings are is not known for sure: they stay where they were made.
    fn tie_settings(&mut self) {
        self.pins.insert(PinReason::Setting);
        self.see_not(Until::Discard);
    }

    fn end_question(&mut self, under: u64, backend: Option<&mut BackendState>) {
        let Some(unreported) = &mut self.unreported else {
            return;
        };
        unreported.in_flight -= 1;
        unreported.forget_asked();
        unreported.failures = 0;
        let known = backend.is_some();
        self.unresolved.answered(under, Some(&self.wanted).filter(|_| known));
        if !unreported.doubts.is_empty() || unreported.in_flight > 0 {
            return;
        }
        self.unreported = None;
        if let Some(backend) = backend {
            backend.unsure = false;
        }
        if self.unseen_until == Until::Asked {
            // What was begun since ends with its own transaction.
            self.unseen_until = Until::Ready;
            if under == self.unseen_settings {
                self.unseen_settings = 0;
            }
        }
    }
}

/// The columns of a DataRow; `None` where one is not text that we could say again.
fn columns(row: &[u8], is_unicode: bool) -> Option<Vec<Option<&str>>> {
    let mut reader = Reader::new(row);
    let count = reader.i16().ok()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let column = match usize::try_from(reader.i32().ok()?) {
            Ok(len) => Some(std::str::from_utf8(reader.bytes(len).ok()?).ok()?),
            Err(_) => None,
        };
        if column.is_some_and(|text| !text.is_ascii() && !is_unicode) {
            return None;
        }
        columns.push(column);
    }
    Some(columns)
}

/// The same settings with each of these set or taken out, under the names that they have already.
fn with_all(settings: &Settings, changes: &[(&str, Option<&str>)]) -> Settings {
    let kept = settings
        .entries()
        .iter()
        .filter(|(name, _)| !changes.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)));
    let new = changes.iter().filter_map(|(name, value)| {
        let name = settings.entry(name).map_or((*name).into(), |(name, _)| name.clone());
        value.map(|value| (name, value.into()))
    });
    Settings::new(kept.cloned().chain(new))
}

/// A statement of ours runs under whatever the client before it left (trap 61).
pub(super) fn may_end_ours(name: &str, value: Option<&str>) -> bool {
    let milliseconds = value.and_then(|value| value.strip_suffix("ms")?.parse::<u32>().ok());
    matches!(name, "statement_timeout" | "transaction_timeout" | "lock_timeout")
        && milliseconds.is_some_and(|milliseconds| milliseconds < SHORT_TIMEOUT_MS)
}

#[cfg(test)]
#[path = "unreported_tests.rs"]
mod tests;
