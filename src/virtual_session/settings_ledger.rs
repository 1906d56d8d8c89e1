//! The settings of one client: what it wants, what PostgreSQL reports, and what brings a backend to agree.

use std::sync::Arc;

use super::parameters::{self, Setting, Settings};
use super::pins::{PinReason, PinSet};
use super::said_path::SaidPath;
use super::set_config::names_temporary_schema;
use super::setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
use super::sql_lexer::{EncodingClass, Lexing, StandardConformingStrings};
use super::statement_effects::{Action, Effects};
use super::undone_steps::is_undone;
use super::unreported::{Following, Unreported, canonical};
use super::{BackendState, VirtualSession};

impl VirtualSession {
    /// What a statement may change of the ledger, to be taken back with [`Self::return_to`] where it was never sent.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            wanted: self.wanted.clone(),
            pins: self.pins,
            keeps_names: self.own_names.is_any(),
            unseen_settings: self.unseen_settings,
            unseen_until: self.unseen_until,
            said_path: self.said_path.clone(),
            lexing_touched: self.lexing_touched,
            rebased: self.rebased.clone(),
            unreported: self.unreported.clone(),
        }
    }

    /// Takes back what was applied since the checkpoint.
    pub fn return_to(&mut self, checkpoint: Checkpoint) {
        let Checkpoint {
            wanted,
            pins,
            keeps_names,
            unseen_settings,
            unseen_until,
            said_path,
            lexing_touched,
            rebased,
            unreported,
        } = checkpoint;
        self.wanted = wanted;
        self.relex();
        self.pins = pins;
        self.own_names.return_to(keeps_names);
        self.unseen_settings = unseen_settings;
        self.unseen_until = unseen_until;
        self.said_path = said_path;
        self.lexing_touched = lexing_touched;
        self.rebased = rebased;
        self.unreported = unreported;
        // It was made between two transactions.
        self.before_reset = None;
        self.restored.clear();
        self.set_to_default = false;
    }

    /// The settings that follow the client.
    pub fn settings(&self) -> &Settings {
        &self.wanted
    }

    /// Whether a backend can be made to agree with the ledger: it holds no custom setting that the client doesn't have.
    pub fn accepts(&self, backend: &BackendState) -> bool {
        backend
            .placeholders
            .iter()
            .all(|name| self.wanted.value(name).is_some())
    }

    /// Nothing need be done to a backend before the client's next statement, nor does it keep what another client may still
    /// ask it for.
    pub fn agrees_with(&self, backend: &BackendState) -> bool {
        // Equal settings are one allocation, but for those of a backend that nobody has used yet.
        let is_same = Arc::ptr_eq(&backend.applied, &self.wanted)
            || (backend.applied.entries().is_empty() && self.wanted.entries().is_empty());
        is_same
            && !(backend.doubted || backend.unsure)
            && !backend.keeps_values_for_another(self.client)
            && self.accepts(backend)
    }

    /// No statement before has left anything to be seen to: no pin, no setting whose value is to be learned, no name that
    /// is the backend's, no channel. What a ReadyForQuery decides, it decides about nothing.
    pub fn is_undisturbed(&self) -> bool {
        self.pins.is_empty()
            && self.unseen_settings == 0
            && !(self.reports_due || self.settings_touched || self.lexing_touched || self.set_to_default)
            && !self.own_names.is_any()
            && self.listening.is_none()
            && self.unreported.is_none()
            && self.before_reset.is_none()
            && self.untold.is_empty()
            && self.unresolved.is_empty()
            && self.rebased.is_empty()
            && self.restored.is_empty()
            && Arc::ptr_eq(&self.told, &self.wanted)
    }

    /// The backend has the client's settings, beyond doubt: [`Self::prelude_for`] has nothing to say or to note.
    pub fn is_followed_by(&self, backend: &BackendState) -> bool {
        Arc::ptr_eq(&backend.applied, &self.wanted) && !(backend.doubted || backend.unsure)
    }

    /// The SQL that makes a backend agree with the ledger, which is then taken to agree; `None` when it does already.
    pub fn prelude_for(&mut self, backend: &mut BackendState) -> Option<Vec<u8>> {
        // What a client that keeps its backend has there, the ledger need not know.
        let doubted = backend.doubted || (backend.unsure && self.pins.is_empty());
        if Arc::ptr_eq(&backend.applied, &self.wanted) && !doubted {
            return None;
        }
        let sql = match doubted {
            true if self.pins.is_empty() => Some(parameters::prelude_from_doubt(&self.wanted)),
            // The client held the backend when it was put in doubt, by a RESET of its own. What else is in force is its
            // own too, the role above all, and could not be said again; nor could what no text told.
            true => {
                let kept = backend.applied.only(|name| self.wanted.value(name).is_some());
                parameters::prelude_as_who_one_is(&kept, &self.wanted)
            }
            false => parameters::prelude(&backend.applied, &self.wanted),
        };
        backend.doubted = false;
        backend.unsure &= !self.pins.is_empty();
        backend.applied = self.wanted.clone();
        backend.note_placeholders(&self.wanted);
        if sql.is_some() {
            // A Query drops the unnamed statement (manual: protocol-flow-ext-query).
            backend.unnamed = None;
        }
        sql
    }

    /// What brings a backend back to the client's settings behind a RESET, inside the transaction of that; `None` when
    /// it agrees.
    pub fn restore_for(&mut self, backend: &mut BackendState) -> Option<Vec<u8>> {
        let of_baseline = self
            .baseline
            .entries()
            .iter()
            .filter_map(|(name, _)| self.wanted.entry(name));
        let wanted = Settings::new(backend.applied.entries().iter().chain(of_baseline).cloned());
        let sql = parameters::restore(&backend.applied, &wanted);
        let is_missing = |(name, value): &&Setting| backend.applied.value(name) != Some(value);
        let missing = wanted.entries().iter().filter(is_missing);
        // It is undone with the transaction.
        missing.for_each(|(name, _)| note_restored(&mut self.restored, name));
        backend.applied = self.shared.settings.intern(wanted);
        if sql.is_some() {
            backend.doubted = true;
            self.reports_due = true;
            self.rebase_all();
        }
        sql
    }

    /// The transaction has ended: whether startup settings may be missing on the backend.
    pub fn take_restore_again(&mut self, backend: &mut BackendState) -> bool {
        let restored = std::mem::take(&mut self.restored);
        if !restored.is_empty() {
            let is_there = |name: &str| {
                let may_be_undone = restored.iter().any(|other| other.eq_ignore_ascii_case(name));
                !may_be_undone || parameters::is_identity(name) || self.is_doubted(name)
            };
            let there = backend.applied.only(is_there);
            backend.applied = self.shared.settings.intern(there);
        }
        !restored.is_empty()
    }

    /// Whether a statement of these effects takes startup settings away.
    pub fn resets_baseline(&self, effects: &Effects) -> bool {
        let resets = |action: &Action| match action {
            Action::DiscardAll | Action::Setting(SettingChange::ResetAll) => true,
            Action::Setting(change) => change.taken_back().is_some(),
            _ => false,
        };
        let steps = effects.steps.iter().enumerate();
        let mut resets = steps.filter(|(_, step)| resets(&step.action));
        !self.baseline.entries().is_empty() && resets.any(|(at, _)| !is_undone(&effects.steps, at))
    }

    /// What the client must be told of its settings before the ReadyForQuery at hand, as PostgreSQL would: pairs of
    /// name and value. `neutral` tells what a fresh backend reports, for settings that are reported.
    pub fn news<'a>(&mut self, neutral: impl Fn(&str) -> Option<(&'a str, &'a [u8])>) -> Vec<(String, Vec<u8>)> {
        if Arc::ptr_eq(&self.told, &self.wanted) {
            return Vec::new();
        }
        let told = std::mem::replace(&mut self.told, self.wanted.clone());
        let gone = told
            .entries()
            .iter()
            .filter(|(name, _)| self.wanted.value(name).is_none());
        let names = gone.chain(self.wanted.entries()).map(|(name, _)| name);
        let changed = names.filter_map(|name| {
            let (name, neutral) = neutral(name)?;
            let now = self.wanted.value(name).map_or(neutral, str::as_bytes);
            (told.value(name).map_or(neutral, str::as_bytes) != now).then(|| (name.to_owned(), now.to_owned()))
        });
        changed.collect()
    }

    pub(super) fn apply_setting(
        &mut self,
        change: &SettingChange,
        is_undone: impl Fn() -> bool,
        backend: &mut BackendState,
        follows: &impl Fn(&str) -> Following,
    ) {
        let has_baseline = !self.baseline.entries().is_empty();
        if has_baseline && is_undone() && self.skip_reset(change, backend, follows) {
            return;
        }
        if let Some(name) = change.taken_back() {
            self.set_to_default |= !matches!(change, SettingChange::Reset(_));
            return self.reset_setting(name, backend, follows);
        }
        match change {
            SettingChange::Set {
                name: SettingName::Known(name),
                value,
                scope,
            } => {
                let name = String::from_utf8_lossy(name);
                let name = canonical(&name);
                if self.baseline.value(name).is_some() {
                    match is_undone() {
                        false => self.restore_not(name, backend),
                        // What was said of it before is what is left of it, and is asked for.
                        true if self.is_doubted(name) => return,
                        true => {}
                    }
                }
                self.set(name, value, *scope, backend, follows);
            }
            // It may be a custom one, whose name stays.
            SettingChange::Set { .. } => {
                self.pins.insert(PinReason::CustomSetting);
                self.lexing_touched = true;
                self.see_not(Until::Discard);
            }
            SettingChange::Reset(_) => {}
            SettingChange::ResetAll => self.reset_all(backend, follows),
        }
    }

    /// A RESET that its own text undoes takes nothing back. False where that may not be so.
    fn skip_reset(
        &mut self,
        change: &SettingChange,
        backend: &mut BackendState,
        follows: &impl Fn(&str) -> Following,
    ) -> bool {
        let name = match (change, change.taken_back()) {
            (SettingChange::ResetAll, _) => {
                self.see_not(Until::Reported);
                return true;
            }
            (_, Some(name)) => String::from_utf8_lossy(name),
            (_, None) => return false,
        };
        let name = canonical(&name);
        match follows(name) {
            Following::ByReports => self.see_not(Until::Reported),
            // What was said of it before is what is left of it.
            Following::ByAsking if self.is_doubted(name) => {}
            Following::ByAsking => self.doubt(name, false, backend),
            Following::Tied => return false,
        }
        true
    }

    /// A SET behind a RESET of the same text: the startup value that this took away is not to come back.
    fn restore_not(&mut self, name: &str, backend: &mut BackendState) {
        self.rebased.retain(|known| !known.eq_ignore_ascii_case(name));
        if backend.applied.value(name).is_none()
            && let Some((name, value)) = self.wanted.entry(name)
        {
            backend.applied = self.shared.settings.intern(backend.applied.with(name, Some(value)));
            backend.doubted = true;
            note_restored(&mut self.restored, name);
        }
    }

    fn set(
        &mut self,
        name: &str,
        value: &SettingValue,
        scope: SettingScope,
        backend: &mut BackendState,
        follows: &impl Fn(&str) -> Following,
    ) {
        // A value that was bound is known only now.
        match name {
            // These end with the transaction, however they are set.
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => return,
            "seed" => self.pins.insert(PinReason::SetSeed),
            // Objects that are made without a schema may be temporary ones.
            "search_path" if names_temporary_schema(value) || is_hidden(value) => {
                self.pins.insert(PinReason::TemporaryTable);
            }
            _ => {}
        }
        self.note_name(name, backend);
        self.touch_lexing(name);
        let following = match follows(name) {
            // Whenever that is, nobody will ask.
            Following::ByAsking if scope == SettingScope::Later => Following::Tied,
            following => following,
        };
        match (scope, following) {
            // What is reported is known at the end of the transaction.
            (_, Following::ByReports) => self.see_not(Until::Reported),
            // It ends then; but a custom setting leaves its name.
            (SettingScope::Local, Following::ByAsking) if name.contains('.') && self.wanted.value(name).is_none() => {
                self.doubt(name, false, backend);
            }
            (SettingScope::Local, _) => self.see_not(Until::Ready),
            (_, Following::ByAsking) => {
                self.doubt(name, false, backend);
                if name == "session_authorization" {
                    self.doubt("role", false, backend);
                }
            }
            (_, Following::Tied) => self.tie_setting(name, backend),
        }
    }

    fn tie_setting(&mut self, name: &str, backend: &mut BackendState) {
        self.pins.insert(match name.contains('.') {
            true => PinReason::CustomSetting,
            false => PinReason::Setting,
        });
        self.forget_setting(name, backend);
        self.see_not(Until::Discard);
    }

    fn reset_setting(&mut self, name: &[u8], backend: &mut BackendState, follows: &impl Fn(&str) -> Following) {
        let name = String::from_utf8_lossy(name);
        let name = canonical(&name);
        self.touch_lexing(name);
        let following = follows(name);
        let baseline = self.baseline.entry(name).cloned();
        let before = self.wanted.value(name).map(Box::from);
        if following != Following::ByAsking || baseline.is_some() {
            self.doubt_settings(backend);
        }
        if let Some((name, baseline)) = baseline {
            self.return_to_baseline(&name, &baseline, backend);
        }
        match following {
            Following::ByReports => self.see_not(Until::Reported),
            Following::ByAsking => {
                self.doubt_since(name, true, before, backend);
                if name == "session_authorization" {
                    self.reset_role_too(backend);
                }
            }
            // A custom setting that the session never had leaves its placeholder.
            Following::Tied if name.contains('.') => {
                self.pins.insert(PinReason::CustomSetting);
                self.note_name(name, backend);
                self.see_not(Until::Discard);
            }
            Following::Tied => self.see_not(Until::Ready),
        }
    }

    fn touch_lexing(&mut self, name: &str) {
        self.lexing_touched |= matches!(name, "standard_conforming_strings" | "client_encoding");
    }

    /// Whether texts are read otherwise than when the client began.
    pub(super) fn resets_lexing(&self) -> bool {
        let baseline = |name| self.baseline.value(name);
        let (strings, encoding) = (baseline("standard_conforming_strings"), baseline("client_encoding"));
        self.lexing != lexing_of(self.neutral_lexing, strings, encoding)
    }

    fn return_to_baseline(&mut self, name: &str, baseline: &str, backend: &mut BackendState) {
        self.forget_setting(name, backend);
        self.want(self.wanted.with(name, Some(baseline)));
        if !self.is_rebased(name) {
            self.rebased.push(name.into());
        }
    }

    fn is_rebased(&self, name: &str) -> bool {
        self.rebased.iter().any(|other| other.eq_ignore_ascii_case(name))
    }

    /// RESET SESSION AUTHORIZATION takes the role back, too.
    fn reset_role_too(&mut self, backend: &mut BackendState) {
        let before = self.wanted.value("role").map(Box::from);
        if let Some((name, baseline)) = self.baseline.entry("role").cloned() {
            self.doubt_settings(backend);
            self.return_to_baseline(&name, &baseline, backend);
        }
        self.doubt_since("role", true, before, backend);
    }

    /// A SET was completed: whether it may have been one to a default, which is a RESET by another name.
    pub const fn set_has_run(&mut self) -> bool {
        std::mem::replace(&mut self.set_to_default, false)
    }

    pub(super) fn see_not(&mut self, until: Until) {
        self.settings_touched = true;
        self.reports_due = true;
        self.unseen_until = if self.unseen_settings == 0 {
            until
        } else {
            until.max(self.unseen_until)
        };
        self.unseen_settings = self.shared.statements.unique_number();
    }

    pub(super) fn forget_setting(&mut self, name: &str, backend: &mut BackendState) {
        if self.wanted.value(name).is_some() {
            self.want(self.wanted.with(name, None));
        }
        if backend.applied.value(name).is_some() {
            backend.applied = self.shared.settings.intern(backend.applied.with(name, None));
        }
    }

    fn rebase_all(&mut self) {
        self.rebased = self.baseline.entries().iter().map(|(name, _)| name.clone()).collect();
    }

    fn reset_all(&mut self, backend: &mut BackendState, follows: &impl Fn(&str) -> Following) {
        self.lexing_touched |= self.resets_lexing();
        self.doubt_settings(backend);
        self.rebase_all();
        let asked = |(name, _): &&Setting| !parameters::is_identity(name) && follows(name) == Following::ByAsking;
        let wanted = Arc::clone(&self.wanted);
        let in_doubt = wanted.entries().iter().filter(asked);
        // What is not of the baseline is reported when it changes, or asked for. Who one is stays.
        let of_baseline = self.baseline.only(|name| !parameters::is_identity(name));
        let entries = self.wanted.entries().iter().chain(of_baseline.entries()).cloned();
        self.want(Settings::new(entries));
        backend.applied = self
            .shared
            .settings
            .intern(backend.applied.only(parameters::is_identity));
        self.see_not(Until::Reported);
        self.doubt_all(in_doubt, false, backend);
    }

    /// DISCARD ALL ran: what the client started with is what is left, and what PostgreSQL will report. The names of custom
    /// settings stay, without their values.
    pub(super) fn forget_settings(&mut self, backend: &mut BackendState, follows: impl Fn(&str) -> Following) {
        self.rebase_all();
        let left = self.wanted.entries().iter().filter_map(|(name, value)| {
            let value = match name.contains('.') {
                true => Box::from(""),
                false => value.clone(),
            };
            (name.contains('.') || follows(name) == Following::ByReports).then(|| (name.clone(), value))
        });
        let settings = Settings::new(left.chain(self.baseline.entries().iter().cloned()));
        self.want(settings);
        backend.applied = Arc::default();
        self.see_not(Until::Reported);
        self.doubt_all(std::iter::empty(), true, backend);
    }

    /// A RESET is on its way, which a rollback would undo: before anyone else's statement the backend is set anew.
    pub(super) fn doubt_settings(&mut self, backend: &mut BackendState) {
        backend.doubted |= !backend.applied.entries().is_empty();
        self.before_reset.get_or_insert_with(|| self.wanted.clone());
    }

    /// PostgreSQL reported a setting's value while the client's own statements ran. `neutral` is what a fresh backend
    /// reports: a value equal to it needs no entry. Says whether it is news to the client.
    pub fn reported(&mut self, backend: &mut BackendState, name: &str, value: &str, neutral: Option<&str>) -> bool {
        let baseline = self
            .baseline
            .value(name)
            .filter(|_| neutral == Some(value) && self.is_rebased(name));
        if let Some(baseline) = baseline.map(str::to_owned) {
            self.want(self.wanted.with(name, Some(&baseline)));
            // It may have been a SET ahead of the RESET, which may yet fail.
            if let Some(before) = &mut self.before_reset {
                *before = Arc::new(before.with(name, None));
            }
            // What was made again behind an earlier RESET is gone with this one.
            if backend.applied.value(name).is_some() {
                backend.applied = self.shared.settings.intern(backend.applied.with(name, None));
            }
            return false;
        }
        let entry = (neutral != Some(value)).then_some(value);
        if let Some(before) = &mut self.before_reset {
            *before = Arc::new(before.with(name, entry));
        }
        let is_news = self.told.value(name) != entry;
        let told_all = Arc::ptr_eq(&self.told, &self.wanted);
        if self.wanted.value(name) != entry {
            self.want(self.wanted.with(name, entry));
        }
        if told_all {
            self.told = self.wanted.clone();
        } else if is_news {
            self.told = Arc::new(self.told.with(name, entry));
        }
        if backend.applied.value(name) != entry {
            backend.applied = self.shared.settings.intern(backend.applied.with(name, entry));
        }
        is_news
    }

    /// Whether something of the client's is under way that may change settings.
    pub const fn expects_reports(&self) -> bool {
        self.reports_due
    }

    /// What was taken for the client's own doing was a change of the server's configuration, which the client was told of:
    /// it goes on following that.
    pub fn report_was_the_servers(&mut self, backend: &mut BackendState, name: &str) {
        self.forget_setting(name, backend);
        if self.told.value(name).is_some() {
            self.told = Arc::new(self.told.with(name, None));
        }
        if self.told == self.wanted {
            self.told = self.wanted.clone();
        }
    }

    /// A fresh backend reads texts otherwise than before.
    pub fn set_neutral_lexing(&mut self, neutral: Lexing) {
        self.neutral_lexing = neutral;
        self.relex();
    }

    /// PostgreSQL reported a value that no statement of ours could say again, because of its encoding: the client stays
    /// where it was made.
    pub fn reported_beyond_us(&mut self) {
        self.pins.insert(PinReason::Setting);
        self.see_not(Until::Discard);
    }

    /// The number of the settings that a SET under way has made, to be reported with its reply; 0 when there are none.
    pub const fn unreported(&self) -> u64 {
        if self.reports_due { self.unseen_settings } else { 0 }
    }

    /// A ReadyForQuery has come with the reports of settings of this number; later ones may be under way.
    pub fn reported_up_to(&mut self, number: u64) {
        if number == 0 {
            return;
        }
        if !self.unresolved.is_empty() {
            let settings = self.settings_with_said_path();
            self.unresolved.reported(number, &settings);
        }
        if let Some(unnamed) = self.unnamed.as_mut().filter(|unnamed| unnamed.unresolved == number) {
            unnamed.under.get_or_insert_with(|| self.wanted.clone());
        }
        if number == self.unseen_settings {
            self.reports_due = false;
            if self.unseen_until == Until::Reported {
                self.unseen_settings = 0;
            }
        }
    }

    /// A ReadyForQuery has come, and nothing is under way behind it: PostgreSQL has reported what it reports.
    pub fn all_reported(&mut self) {
        self.reported_up_to(self.unseen_settings);
        self.reports_due = false;
        self.unresolved.all_reported();
    }

    /// A ReadyForQuery with status idle has come, and nothing is under way behind it: what was local to the transaction
    /// is over.
    pub fn transaction_ended(&mut self) {
        if self.unseen_until <= Until::Ready {
            self.unseen_settings = 0;
        }
        self.settings_touched = false;
        self.lexing_touched = false;
    }

    /// Whether a RESET has happened is known now. `undone` when it was rolled back, or never ran.
    pub fn reset_decided(&mut self, undone: bool) {
        self.rebased.clear();
        if let Some(before) = self.before_reset.take()
            && undone
        {
            self.wanted = self.shared.settings.intern(Settings::new(before.entries().to_vec()));
            self.relex();
        }
    }
}

/// See [`VirtualSession::checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) wanted: Arc<Settings>,
    pub(super) pins: PinSet,
    keeps_names: bool,
    pub(super) unseen_settings: u64,
    pub(super) unseen_until: Until,
    said_path: Option<Box<SaidPath>>,
    pub(super) lexing_touched: bool,
    pub(super) rebased: Vec<Box<str>>,
    pub(super) unreported: Option<Box<Unreported>>,
}

fn note_restored(restored: &mut Vec<Box<str>>, name: &str) {
    if !restored.iter().any(|known| **known == *name) {
        restored.push(name.into());
    }
}

/// Whether nobody can tell what a setting gets.
const fn is_hidden(value: &SettingValue) -> bool {
    matches!(value, SettingValue::FromBind(_) | SettingValue::Unknown)
}

/// How long settings that the ledger can't see stay in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Until {
    /// PostgreSQL reports them, before its next ReadyForQuery.
    Reported,
    /// The transaction's end.
    Ready,
    /// PostgreSQL is asked for them, behind the transaction's end.
    Asked,
    /// DISCARD ALL, or the client's end.
    Discard,
}

/// How texts are read under these values of standard_conforming_strings and client_encoding; `neutral` where one is not
/// given.
pub fn lexing_of(neutral: Lexing, strings: Option<&str>, encoding: Option<&str>) -> Lexing {
    Lexing {
        strings: strings.map_or(neutral.strings, |value| match value {
            "on" => StandardConformingStrings::On,
            _ => StandardConformingStrings::Off,
        }),
        encoding: encoding.map_or(neutral.encoding, |value| EncodingClass::of(value.as_bytes())),
    }
}

#[cfg(test)]
#[path = "settings_ledger_tests.rs"]
mod tests;
