//! What a client believes its session holds, and how any backend is made to agree with it. Sans-IO.
//!
//! In reading order: [`sql_lexer`] and [`statement_effects`] tell from a text what it may do to a session;
//! [`parameters`] and [`statements`] follow the client from backend to backend; [`pins`] are what can't follow;
//! [`mod@sequences`] keeps the values of one from the others, [`reset`] is what is owed to a backend before anyone else has it. [`VirtualSession`] is the ledger of one client (its
//! settings, its prepared statements and the unnamed one are a file each),
//! [`BackendState`] what one backend holds, and [`Note`] what the pipeline keeps between a request and its reply.

mod answers;
pub mod audit;
mod backend_state;
mod builtin_functions;
mod definitions;
pub mod fingerprint;
mod keywords;
pub mod known_texts;
pub mod listening;
mod note;
mod ordinary_statement;
mod own_names;
mod own_statements;
pub mod parameters;
pub mod pin_end;
pub mod pins;
mod prepared;
mod rereading;
pub mod reset;
pub mod result_shape;
mod said_path;
mod sequences;
mod session_functions;
mod set_config;
mod set_statement;
pub mod setting_change;
pub mod setting_text;
mod settings_ledger;
pub mod sql_lexer;
mod sql_names;
pub mod statement_effects;
mod statement_kinds;
mod statement_scan;
pub mod statements;
pub mod suspects;
mod taken_back;
mod undone_steps;
mod unnamed;
mod unreported;
mod unresolved;
mod word_table;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use answers::{Answers, SettingRequest};
use audit::CustomNames;
pub use backend_state::BackendState;
pub use note::{ChangedUnnamed, Described, Note, Prepared};
pub use prepared::{Switch, Teaching};
pub use rereading::{Reread, Schemas};
use settings_ledger::Until;
pub use settings_ledger::{Checkpoint, lexing_of};
pub use sql_names::{NameChange, NameChanges, is_plain};
pub use taken_back::TakenBack;
pub use unnamed::{Unnamed, UnnamedStep};
pub use unreported::{Following, Question, is_portable};

use listening::Listening;
use own_names::OwnNames;
use parameters::{Settings, SettingsInterner};
use pins::{PinReason, PinSet};
use said_path::SaidPath;
use sequences::Sequences;
use sql_lexer::{EncodingClass, Lexing, StandardConformingStrings};
use statement_effects::{Action, Effects, Step, TransactionControl};
use statements::{ClientStatements, SharedStatements};
use unreported::Unreported;
use unresolved::Unresolved;

/// The name of statements of ours that are used once, behind their Parse.
pub const SWITCH_NAME: &[u8] = b"pgsidecar_switch";

/// What the clients of one pool share: statements and settings that are equal are one.
#[derive(Debug)]
pub struct SharedLedger {
    /// Prepared statements by text, types and settings.
    pub statements: SharedStatements,
    /// Equal sets of settings are one allocation.
    pub settings: SettingsInterner,
    /// Somebody has asked for the last value of a sequence, so that others may.
    sequences_are_read: AtomicBool,
    /// Custom settings that clients have named: what an audit looks for where nobody should have left one.
    custom_names: CustomNames,
    /// Values of settings that PostgreSQL has accepted.
    pub answers: Answers,
}

impl SharedLedger {
    /// `nonce` is random; it keeps shared statement names apart from clients' own.
    pub fn new(nonce: u64) -> Self {
        Self {
            statements: SharedStatements::new(nonce),
            settings: SettingsInterner::default(),
            sequences_are_read: AtomicBool::new(false),
            custom_names: CustomNames::default(),
            answers: Answers::default(),
        }
    }

    /// The catalog, the server or its configuration is another one: statements so far are not shared any more, and what
    /// was accepted may not be.
    pub fn forget(&self) {
        self.statements.forget();
        self.answers.forget();
    }
}

/// The ledger of one client.
#[derive(Debug)]
pub struct VirtualSession {
    client: u64,
    shared: Arc<SharedLedger>,
    /// What RESET returns to: the startup parameters.
    baseline: Arc<Settings>,
    /// What the client's settings are, as far as they follow it.
    wanted: Arc<Settings>,
    statements: ClientStatements,
    /// Of statements that the backend knows as the client says them.
    own_names: OwnNames,
    /// Names of statements that SQL prepared, whose columns PostgreSQL is still to be asked for.
    untold: Vec<Box<[u8]>>,
    unnamed: Option<Box<Unnamed>>,
    /// Of the last change of the unnamed statement.
    unnamed_serial: u64,
    serial: u64,
    pins: PinSet,
    /// Settings that the ledger can't see are in force (a pinned SET, a SET LOCAL): statements parsed now are no one
    /// else's, and this number keeps them apart.
    unseen_settings: u64,
    unseen_until: Until,
    /// While some are, what the client's statements ask for as the path of schemas, if anything.
    said_path: Option<Box<SaidPath>>,
    /// The transaction at hand has changed settings, so that its end may change them.
    settings_touched: bool,
    /// What changes settings is under way, so that PostgreSQL may report something with its reply.
    reports_due: bool,
    /// Statements that were parsed under unseen settings which PostgreSQL will tell.
    unresolved: Unresolved,
    /// Settings that PostgreSQL must be asked for; nearly always none.
    unreported: Option<Box<Unreported>>,
    /// How texts are read under the client's settings.
    lexing: Lexing,
    neutral_lexing: Lexing,
    /// The transaction at hand may have changed how texts are read.
    lexing_touched: bool,
    sequences: Sequences,
    /// What the client was told that its settings are.
    told: Arc<Settings>,
    /// Settings of the baseline on which RESET was run in the transaction at hand: where PostgreSQL reports the server's
    /// value of one, the client's is the baseline's.
    rebased: Vec<Box<str>>,
    /// Startup settings that were brought back in the transaction at hand, or are hidden by a SET: its end may take them away.
    restored: Vec<Box<str>>,
    /// A SET to a default is under way.
    set_to_default: bool,
    /// What `wanted` was before the first RESET of the transaction at hand: it returns if that is rolled back.
    before_reset: Option<Arc<Settings>>,
    /// The channels that it listens to without a backend of its own, if any.
    listening: Option<Box<Listening>>,
}

impl VirtualSession {
    /// The ledger of a client that has just logged in. `client` is unique in the process.
    /// `neutral` is how a backend of the pool reads texts by itself.
    pub fn new(client: u64, shared: Arc<SharedLedger>, startup: Settings, neutral: Lexing) -> Self {
        for (name, _) in startup.entries() {
            shared.custom_names.note(name);
        }
        let baseline = shared.settings.intern(startup);
        let mut session = Self {
            client,
            wanted: baseline.clone(),
            told: baseline.clone(),
            baseline,
            lexing: neutral,
            neutral_lexing: neutral,
            lexing_touched: false,
            shared,
            statements: ClientStatements::default(),
            own_names: OwnNames::default(),
            untold: Vec::new(),
            unnamed: None,
            unnamed_serial: 0,
            serial: 0,
            pins: PinSet::default(),
            unseen_settings: 0,
            sequences: Sequences::default(),
            unseen_until: Until::Reported,
            said_path: None,
            settings_touched: false,
            reports_due: false,
            unresolved: Unresolved::default(),
            unreported: None,
            rebased: Vec::new(),
            restored: Vec::new(),
            set_to_default: false,
            before_reset: None,
            listening: None,
        };
        session.relex();
        session
    }

    /// How the client's texts are read. While that may be about to change, only what reads the same either way is read.
    pub const fn lexing(&self) -> Lexing {
        if self.lexing_touched && self.reports_due {
            return Lexing {
                strings: StandardConformingStrings::Uncertain,
                encoding: EncodingClass::Unsafe,
            };
        }
        self.lexing
    }

    fn want(&mut self, settings: Settings) {
        self.wanted = self.shared.settings.intern(settings);
        self.relex();
    }

    fn relex(&mut self) {
        self.lexing = lexing_of(
            self.neutral_lexing,
            self.wanted.value("standard_conforming_strings"),
            self.wanted.value("client_encoding"),
        );
    }

    /// The client's number, unique in the process.
    pub const fn client(&self) -> u64 {
        self.client
    }

    /// Why the backend can't be given back, if it can't.
    pub const fn pins(&self) -> PinSet {
        self.pins
    }

    /// Whether something of the session is only on its backend, or may be: without that it can't go on. It can without the
    /// value of a sequence, as it could had the backend been given up for others.
    pub const fn is_bound(&self) -> bool {
        !self.pins.counted().is_empty() || self.is_in_doubt()
    }

    /// The channels that it listens to without a backend of its own; `None` where there are none.
    pub fn listening(&self) -> Option<&Listening> {
        self.listening.as_deref()
    }

    /// The same, to be changed.
    pub fn listening_mut(&mut self) -> &mut Listening {
        self.listening.get_or_insert_default()
    }

    /// Where nothing is left of it, it costs nothing.
    pub fn drop_empty_listening(&mut self) {
        if self.listening.as_ref().is_some_and(|listening| listening.is_empty()) {
            self.listening = None;
        }
    }

    /// Ties the backend to the client for a reason that no statement shows.
    pub fn pin(&mut self, reason: PinReason) {
        self.pins.insert(reason);
    }

    /// A statement of these effects is about to run. `follows` tells how each setting follows the client.
    pub fn apply(&mut self, effects: &Effects, backend: &mut BackendState, follows: impl Fn(&str) -> Following) {
        if effects.is_none() {
            return;
        }
        self.say_path(effects);
        // Each SET is a step, which tells whether it follows its client or ties it.
        let mut pins = effects.pins;
        pins.remove(PinReason::Setting);
        pins.remove(PinReason::CustomSetting);
        // Who carries the statement knows where its notifications come from, and what it says of names.
        pins.remove(PinReason::Listen);
        pins.remove(PinReason::Prepare);
        let rolls_back = |step: &Step| matches!(step.action, Action::Transaction(TransactionControl::RollbackTo, _));
        if self.settings_touched && (effects.ends_transaction || effects.steps.iter().any(rolls_back)) {
            self.see_not(Until::Reported);
        }
        self.pins.extend(pins);
        if !pins.is_empty() {
            self.see_not(Until::Discard);
        }
        for (at, step) in effects.steps.iter().enumerate() {
            match &step.action {
                Action::Setting(change) => {
                    let is_undone = || undone_steps::is_undone(&effects.steps, at);
                    self.apply_setting(change, is_undone, backend, &follows);
                }
                Action::HoldCursor(_) => self.pins.insert(PinReason::HoldCursor),
                Action::DiscardSequences => self.discard_sequences(),
                Action::DiscardAll if self.resets_lexing() => {
                    self.lexing_touched = true;
                    self.see_not(Until::Reported);
                }
                _ => {}
            }
        }
    }

    /// The pins that a statement of these effects would add, if it were run.
    pub fn would_pin(
        &mut self,
        effects: &Effects,
        backend: &BackendState,
        follows: impl Fn(&str) -> Following,
    ) -> PinSet {
        let before = self.checkpoint();
        let own_names = std::mem::take(&mut self.own_names);
        let flags = (self.settings_touched, self.reports_due, self.set_to_default);
        let (before_reset, restored) = (self.before_reset.clone(), self.restored.clone());
        self.apply(effects, &mut backend.trial(), follows);
        let pins = self.pins.without(before.pins);
        self.return_to(before);
        self.own_names = own_names;
        (self.settings_touched, self.reports_due, self.set_to_default) = flags;
        (self.before_reset, self.restored) = (before_reset, restored);
        pins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
    use statement_effects::Step;

    fn set_local() -> Effects {
        let change = SettingChange::Set {
            name: SettingName::Known(b"timezone".as_slice().into()),
            value: SettingValue::Unknown,
            scope: SettingScope::Local,
        };
        Effects {
            steps: vec![Step {
                statement: 0,
                action: Action::Setting(change),
            }],
            statement_count: 1,
            ..Effects::NONE
        }
    }

    /// Trap 28: what is parsed under settings that nobody knows is shared with nobody, however long the clients live.
    #[test]
    fn trap_28_unseen_settings_never_look_like_none_or_like_another_clients() {
        let ledger = Arc::new(SharedLedger::new(7));
        let client = |number| VirtualSession::new(number, ledger.clone(), Settings::default(), Lexing::default());
        let (mut one, mut two) = (client(1), client(2));
        let mut backend = BackendState::default();
        let definition = b"select now()\0\0\0";
        for serial in [(1 << 20) - 1, (1 << 20) ^ (2 << 20)] {
            one.serial = serial;
            two.serial = 0;
            let known = client(3).prepare(b"s", definition, || Effects::NONE);
            one.apply(&set_local(), &mut backend, |_| Following::ByReports);
            two.apply(&set_local(), &mut backend, |_| Following::ByReports);
            let unseen = one.prepare(b"s", definition, || Effects::NONE);
            assert_ne!(unseen.id, known.id);
            assert_ne!(unseen.id, two.prepare(b"s", definition, || Effects::NONE).id);
        }
    }
}
