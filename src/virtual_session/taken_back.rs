//! Taking back what PostgreSQL refuses to make: a RESET ROLE must be able to end a role that was dropped meanwhile, though no
//! backend can be made to agree with the ledger before it.

use super::parameters::{Settings, is_identity};
use super::setting_change::{SettingChange, SettingName, SettingValue};
use super::statement_effects::{Action, Effects};
use super::{BackendState, VirtualSession};

/// A statement that takes settings back and can't fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// RESET ROLE, or SET ROLE NONE, which says so by its tag.
    Role {
        /// It is a SET.
        by_set: bool,
    },
    /// RESET ALL.
    All,
    /// DISCARD ALL.
    Everything,
}

impl TakenBack {
    /// What a text of these effects takes back, if it does nothing else.
    pub fn of(effects: &Effects) -> Option<Self> {
        let [step] = effects.steps.as_slice() else {
            return None;
        };
        let taken = match &step.action {
            Action::DiscardAll => Self::Everything,
            Action::Setting(SettingChange::ResetAll) => Self::All,
            Action::Setting(SettingChange::Reset(name)) if **name == *b"role" => Self::Role { by_set: false },
            Action::Setting(SettingChange::Set {
                name: SettingName::Known(name),
                value: SettingValue::Source(value),
                ..
            }) if **name == *b"role" && value.eq_ignore_ascii_case(b"none") => Self::Role { by_set: true },
            _ => return None,
        };
        (effects.statement_count == 1).then_some(taken)
    }

    /// The tag of its CommandComplete.
    pub const fn tag(self) -> &'static [u8] {
        match self {
            Self::Role { by_set: true } => b"SET\0",
            Self::Role { by_set: false } | Self::All => b"RESET\0",
            Self::Everything => b"DISCARD ALL\0",
        }
    }
}

impl VirtualSession {
    /// The ledger is as if PostgreSQL had run it between two transactions. False where what that comes to is not known here.
    pub fn take_back(&mut self, taken: TakenBack) -> bool {
        let startup_identity = self.baseline.entries().iter().any(|(name, _)| is_identity(name));
        let is_known = !self.is_bound() && self.unseen_settings == 0 && self.listening.is_none();
        if startup_identity || !is_known || self.wanted.value("session_authorization").is_some() {
            return false;
        }
        let role = self.wanted.entry("role").cloned();
        let settings = match taken {
            TakenBack::Role { .. } => self.wanted.with("role", None),
            // The names of custom settings stay, without their values.
            TakenBack::All | TakenBack::Everything => {
                let custom = self.wanted.entries().iter().filter(|(name, _)| name.contains('.'));
                let custom = custom.map(|(name, _)| (name.clone(), "".into()));
                let role = role.filter(|_| taken == TakenBack::All);
                Settings::new(custom.chain(self.baseline.entries().iter().cloned()).chain(role))
            }
        };
        self.want(settings);
        if taken == TakenBack::Everything {
            self.deallocated_all(&mut BackendState::default());
        }
        let _ = self.forget_unnamed(None);
        true
    }
}
