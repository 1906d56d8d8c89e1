//! The path of schemas that a client's statements ask for, before it is known what has become of them.
//!
//! An estimate: PostgreSQL alone knows. It says whether a text would be read again, where that backend is not at hand
//! which would tell.

use std::sync::Arc;

use super::parameters::Settings;
use super::setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
use super::statement_effects::{Action, Name, Step, TransactionControl};
use super::undone_steps::is_undone;

/// The settings that decide which schemas are searched.
const NAMES: [&str; 3] = ["search_path", "role", "session_authorization"];

/// What is in force if nothing has failed.
#[derive(Debug, Clone)]
pub(super) struct SaidPath {
    /// As the transaction at hand began.
    committed: Arc<Settings>,
    session: Arc<Settings>,
    /// Until the transaction ends.
    local: Option<Arc<Settings>>,
}

impl SaidPath {
    /// Nothing was said yet: the settings are these.
    pub(super) fn new(seen: &Arc<Settings>) -> Self {
        Self {
            committed: seen.clone(),
            session: seen.clone(),
            local: None,
        }
    }

    /// What the path is taken for.
    pub(super) fn now(&self) -> &Settings {
        self.local.as_ref().unwrap_or(&self.session)
    }

    /// Settings with this path among them.
    pub(super) fn over(&self, settings: &Settings) -> Settings {
        let others = settings.entries().iter().filter(|(name, _)| !is_of_path(name));
        let path = self.now().entries().iter().filter(|(name, _)| is_of_path(name));
        Settings::new(others.chain(path).cloned())
    }

    /// The first statements of a text have run. `baseline` is what RESET returns to.
    pub(super) fn run(&mut self, steps: &[Step], baseline: &Settings) {
        for (at, step) in steps.iter().enumerate() {
            let savepoint = |name: &Name| Action::Transaction(TransactionControl::Savepoint, name.clone());
            match &step.action {
                Action::Setting(change) if may_concern_path(change) && !is_undone(steps, at) => {
                    self.change(change, baseline);
                }
                // What it takes back of this text was not counted.
                Action::Transaction(TransactionControl::RollbackTo, name)
                    if steps.iter().take(at).any(|step| step.action == savepoint(name)) => {}
                Action::Transaction(control, _) => self.transaction(*control),
                _ => {}
            }
        }
    }

    /// What a statement of transaction control makes of it. Of a savepoint it is taken that all was said behind it.
    pub(super) fn transaction(&mut self, control: TransactionControl) {
        match control {
            TransactionControl::Rollback | TransactionControl::RollbackAndChain | TransactionControl::RollbackTo => {
                self.session = self.committed.clone();
                self.local = None;
            }
            control if control.ends_transaction() => {
                self.committed = self.session.clone();
                self.local = None;
            }
            _ => {}
        }
    }

    fn change(&mut self, change: &SettingChange, baseline: &Settings) {
        match change {
            SettingChange::Set { name, value, scope } => {
                let SettingName::Known(name) = name else { return };
                let name = String::from_utf8_lossy(name);
                let value = match value {
                    SettingValue::Default => baseline.value(&name).map(str::to_owned),
                    SettingValue::Source(source) => Some(unquoted(source, &name)),
                    SettingValue::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
                    SettingValue::FromBind(_) | SettingValue::Unknown => return,
                };
                self.set(&name, value.as_deref(), *scope == SettingScope::Local);
            }
            SettingChange::Reset(name) => {
                let name = String::from_utf8_lossy(name);
                self.set(&name, baseline.value(&name), false);
            }
            SettingChange::ResetAll => self.set("search_path", baseline.value("search_path"), false),
        }
    }

    fn set(&mut self, name: &str, value: Option<&str>, is_local: bool) {
        if is_local || self.local.is_some() {
            self.local = Some(Arc::new(self.now().with(name, value)));
        }
        if !is_local {
            self.session = Arc::new(self.session.with(name, value));
        }
    }
}

/// Whether a change may be one of the path, and be it by a name that is bound later.
pub(super) fn may_concern_path(change: &SettingChange) -> bool {
    match change {
        SettingChange::Set {
            name: SettingName::Known(name),
            ..
        }
        | SettingChange::Reset(name) => NAMES.iter().any(|other| other.as_bytes() == &**name),
        SettingChange::Set { .. } | SettingChange::ResetAll => true,
    }
}

fn is_of_path(name: &str) -> bool {
    NAMES.iter().any(|other| other.eq_ignore_ascii_case(name))
}

/// SET's value as `current_setting` would tell it: of a list each constant is a name.
fn unquoted(source: &[u8], name: &str) -> String {
    let source = String::from_utf8_lossy(source);
    let source = source.trim();
    match name {
        "search_path" => source.replace('\'', "\""),
        _ => source.trim_matches(['\'', '"']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql_lexer::Lexing;
    use super::super::statement_effects::classify;
    use super::super::suspects::Suspects;
    use super::*;

    /// The path and the role behind a text.
    fn behind(text: &str) -> (Option<String>, Option<String>) {
        let settings = |path: &str| Arc::new(Settings::new([("search_path".into(), path.into())]));
        let (seen, baseline) = (settings("seen"), settings("baseline"));
        let effects = classify(text.as_bytes(), Lexing::default(), &Suspects::known(std::iter::empty()));
        let mut said = SaidPath::new(&seen);
        said.run(&effects.steps, &baseline);
        let value = |name| said.now().value(name).map(str::to_owned);
        (value("search_path"), value("role"))
    }

    #[test]
    fn the_path_is_what_was_said_last_and_not_taken_back() {
        for (text, path) in [
            ("SET search_path TO a, B", "a, B"),
            ("SET search_path TO 'a b', \"c\"", "\"a b\", \"c\""),
            ("SELECT set_config('search_path', 'a, b', true)", "a, b"),
            ("SET search_path TO a; RESET search_path", "baseline"),
            ("SET search_path TO a; RESET ALL", "baseline"),
            ("BEGIN; SET search_path TO a; ROLLBACK", "seen"),
            ("BEGIN; SET LOCAL search_path TO a; SET search_path TO b", "b"),
            ("BEGIN; SET LOCAL search_path TO a; COMMIT", "seen"),
            (
                "BEGIN; SET search_path TO a; SAVEPOINT s; RESET search_path; ROLLBACK TO s; COMMIT AND CHAIN",
                "a",
            ),
            ("SET TimeZone TO 'UTC'", "seen"),
        ] {
            assert_eq!(behind(text).0.as_deref(), Some(path), "{text}");
        }
    }

    #[test]
    fn a_role_is_part_of_it() {
        assert_eq!(behind("SET ROLE 'one'").1.as_deref(), Some("one"));
        assert_eq!(behind("SET ROLE one; RESET ROLE").1, None);
    }
}
