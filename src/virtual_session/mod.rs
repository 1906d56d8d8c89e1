//! What a client believes its session holds, and how any backend is made to agree with it. Sans-IO.
//!
//! In reading order: [`sql_lexer`] and [`statement_effects`] tell from a text what it may do to a session;
//! [`parameters`] and [`statements`] follow the client from backend to backend; [`pins`] are what can't follow;
//! [`reset`] is what is owed to a backend before anyone else has it. [`VirtualSession`] is the ledger of one client,
//! [`BackendState`] what one backend holds, and [`Note`] what the pipeline keeps between a request and its reply.

mod builtin_functions;
mod definitions;
pub mod effects_cache;
pub mod fingerprint;
mod keywords;
mod ordinary_statement;
pub mod parameters;
pub mod pins;
pub mod reset;
pub mod result_shape;
mod session_functions;
mod set_config;
mod set_statement;
pub mod setting_change;
pub mod sql_lexer;
pub mod statement_effects;
mod statement_kinds;
mod statement_scan;
pub mod statements;
pub mod suspects;
mod word_table;

use std::sync::{Arc, Weak};

use parameters::{Settings, SettingsInterner};
use pins::{PinReason, PinSet};
use result_shape::ResultShape;
use setting_change::{SettingChange, SettingName, SettingScope};
use sql_lexer::{EncodingClass, Lexing, StandardConformingStrings};
use statement_effects::{Action, Effects, SequenceUse, Step, TransactionControl};
use statements::{BackendStatements, ClientStatements, NamedStatement, ParseKey, SharedStatements, Statement};

/// The name of statements of ours that are used once, behind their Parse.
pub const SWITCH_NAME: &[u8] = b"pgsidecar_switch";

/// What the clients of one pool share: statements and settings that are equal are one.
#[derive(Debug)]
pub struct SharedLedger {
    /// Prepared statements by text, types and settings.
    pub statements: SharedStatements,
    /// Equal sets of settings are one allocation.
    pub settings: SettingsInterner,
}

impl SharedLedger {
    /// `nonce` is random; it keeps shared statement names apart from clients' own.
    pub fn new(nonce: u64) -> Self {
        Self {
            statements: SharedStatements::new(nonce),
            settings: SettingsInterner::default(),
        }
    }
}

/// What one backend holds of clients' sessions.
#[derive(Debug, Default)]
pub struct BackendState {
    /// Settings that a prelude has applied, different from the backend's own.
    pub applied: Arc<Settings>,
    /// Shared statements that it has parsed.
    pub statements: BackendStatements,
    /// Who drew values of its sequences, which lastval and currval tell.
    drawn: Drawn,
    /// `applied` may not be what is in force: a RESET was sent whose transaction may not have committed.
    doubted: bool,
    /// Whose unnamed statement it holds, if anyone's.
    unnamed: Option<UnnamedId>,
    /// Custom settings (`app.tenant`) that a prelude has ever applied. RESET and DISCARD ALL leave `''` of them where a
    /// new session has NULL, so whoever comes next must have them too (trap 58).
    placeholders: Vec<Box<str>>,
}

impl BackendState {
    /// The clients' settings that are on it; what else it reports is the server's own. `None` while that is not known.
    pub fn known_settings(&self) -> Option<&Settings> {
        (!self.doubted).then_some(&self.applied)
    }

    /// A Query of ours runs: nobody's unnamed statement is left.
    pub fn unnamed_dropped(&mut self) {
        self.unnamed = None;
    }

    /// An unnamed statement of ours is parsed, or what stood there is still there: it is no client's.
    pub fn unnamed_replaced(&mut self) {
        self.unnamed = Some(UnnamedId::DOUBTFUL);
    }

    /// It may not have forgotten the values of its sequences after all.
    pub fn doubt_sequences(&mut self) {
        self.drawn = Drawn::BySeveral;
    }

    /// DISCARD ALL has run: nothing is left of anyone.
    pub fn discarded(&mut self) {
        *self = Self {
            placeholders: std::mem::take(&mut self.placeholders),
            ..Self::default()
        };
    }

    fn note_placeholders(&mut self, settings: &Settings) {
        for (name, _) in settings.entries().iter().filter(|(name, _)| name.contains('.')) {
            if !self.placeholders.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                self.placeholders.push(name.clone());
            }
        }
    }
}

/// Whose sequence values a backend remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Drawn {
    #[default]
    ByNobody,
    By(u64),
    BySeveral,
}

impl BackendState {
    /// A Query of ours ran on it, which drops the unnamed statement (manual: protocol-flow-ext-query).
    pub fn query_ran(&mut self) {
        self.unnamed = None;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnnamedId {
    client: u64,
    serial: u64,
}

impl UnnamedId {
    /// The backend may hold one, of anyone's: clients' numbers begin with 1.
    const DOUBTFUL: Self = Self { client: 0, serial: 0 };
}

/// The unnamed statement as the client believes it to be.
#[derive(Debug)]
pub struct Unnamed {
    serial: u64,
    definition: Vec<u8>,
    effects: Effects,
    /// The settings that it was parsed under, once they are known.
    under: Option<Arc<Settings>>,
    /// The number of these while they are not.
    unresolved: u64,
}

/// What a request changed in the ledgers when it was sent: confirmed by its reply, undone when none will come.
#[derive(Debug, Default)]
pub enum Note {
    /// Nothing.
    #[default]
    None,
    /// A client's name was given to a statement; `parsed` when the backend was told to parse it.
    Prepared(Box<Prepared>),
    /// The backend was told to parse a shared statement ahead of its use.
    Injected(u64),
    /// The backend was told to close a shared statement.
    Evicted(Arc<Statement>),
    /// A client's name was taken from a statement.
    Closed(Box<(Box<[u8]>, NamedStatement)>),
    /// A Bind of the shared statement of this number: nothing changes, but PostgreSQL may call it stale.
    Bound(u64),
    /// A shared statement is described.
    Described(Described),
    /// The backend's unnamed statement was replaced or removed.
    Unnamed,
    /// The backend was told to forget the values of its sequences.
    SequencesForgotten,
    /// The client's unnamed statement was replaced by its own Parse, or ended by a Query or a Close.
    ChangedUnnamed(ChangedUnnamed),
    /// A Sync: before its reply PostgreSQL reports what the settings of this number come to.
    Reports(u64),
}

/// What a change of the unnamed statement must be undone to. Each knows the one before it, so that any of several that
/// are under way can be taken out.
#[derive(Debug)]
pub struct ChangedUnnamed {
    serial: u64,
    serial_before: u64,
    before: Option<Box<Unnamed>>,
    /// As [`Note::Reports`], of a Query.
    reports: u64,
}

impl Note {
    /// The same for a Query that is sent while settings of this number are under way.
    #[must_use]
    pub fn reporting(self, number: u64) -> Self {
        match self {
            Self::ChangedUnnamed(change) => Self::ChangedUnnamed(ChangedUnnamed {
                reports: number,
                ..change
            }),
            Self::None => Self::Reports(number),
            note => note,
        }
    }

    /// The number of the settings that are reported with this reply, which ends with ReadyForQuery; 0 for none.
    pub const fn reports(&self) -> u64 {
        match self {
            Self::Reports(number) => *number,
            Self::ChangedUnnamed(change) => change.reports,
            _ => 0,
        }
    }

    /// The reply has come.
    pub fn confirm(&self) {
        match self {
            Self::Prepared(prepared) if prepared.parsed => prepared.statement.prove(),
            _ => {}
        }
    }
}

/// See [`Note::Prepared`].
#[derive(Debug)]
pub struct Prepared {
    name: Box<[u8]>,
    statement: Arc<Statement>,
    parsed: bool,
}

/// See [`Note::Described`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The shared statement's number.
    pub id: u64,
    /// The number of the client's name for it, where the client is told; else 0.
    pub told: u64,
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
    unnamed: Option<Box<Unnamed>>,
    /// Of the last change of the unnamed statement.
    unnamed_serial: u64,
    serial: u64,
    pins: PinSet,
    /// Settings that the ledger can't see are in force (a pinned SET, a SET LOCAL): statements parsed now are no one
    /// else's, and this number keeps them apart.
    unseen_settings: u64,
    unseen_until: Until,
    /// The transaction at hand has changed settings, so that its end may change them.
    settings_touched: bool,
    /// What changes settings is under way, so that PostgreSQL may report something with its reply.
    reports_due: bool,
    /// Statements that were parsed under unseen settings which PostgreSQL will report, with the number of these.
    unresolved: Vec<(u64, Weak<Statement>)>,
    /// How texts are read under the client's settings.
    lexing: Lexing,
    neutral_lexing: Lexing,
    /// It has asked for the last value of a sequence, and will again: values that it draws stay with it.
    reads_sequences: bool,
    /// What the client was told that its settings are.
    told: Arc<Settings>,
    /// RESET was run in the transaction at hand: what PostgreSQL reports of the baseline's settings is not the client's
    /// value, which is the baseline's.
    rebase: bool,
    /// A SET to a default is under way.
    set_to_default: bool,
    /// What `wanted` was before the first RESET of the transaction at hand: it returns if that is rolled back.
    before_reset: Option<Arc<Settings>>,
}

impl VirtualSession {
    /// The ledger of a client that has just logged in. `client` is unique in the process.
    /// `neutral` is how a backend of the pool reads texts by itself.
    pub fn new(client: u64, shared: Arc<SharedLedger>, startup: Settings, neutral: Lexing) -> Self {
        let baseline = shared.settings.intern(startup);
        let mut session = Self {
            client,
            wanted: baseline.clone(),
            told: baseline.clone(),
            baseline,
            lexing: neutral,
            neutral_lexing: neutral,
            shared,
            statements: ClientStatements::default(),
            unnamed: None,
            unnamed_serial: 0,
            serial: 0,
            pins: PinSet::default(),
            unseen_settings: 0,
            reads_sequences: false,
            unseen_until: Until::Reported,
            settings_touched: false,
            reports_due: false,
            unresolved: Vec::new(),
            rebase: false,
            set_to_default: false,
            before_reset: None,
        };
        session.relex();
        session
    }

    /// How the client's texts are read.
    pub const fn lexing(&self) -> Lexing {
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

    /// What a statement may change of the ledger, to be taken back with [`Self::return_to`] where it was never sent.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            wanted: self.wanted.clone(),
            pins: self.pins,
            unseen_settings: self.unseen_settings,
            unseen_until: self.unseen_until,
            rebase: self.rebase,
        }
    }

    /// Takes back what was applied since the checkpoint.
    pub fn return_to(&mut self, checkpoint: Checkpoint) {
        let Checkpoint {
            wanted,
            pins,
            unseen_settings,
            unseen_until,
            rebase,
        } = checkpoint;
        self.wanted = wanted;
        self.relex();
        self.pins = pins;
        self.unseen_settings = unseen_settings;
        self.unseen_until = unseen_until;
        self.rebase = rebase;
    }

    /// Ties the backend to the client for a reason that no statement shows.
    pub fn pin(&mut self, reason: PinReason) {
        self.pins.insert(reason);
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

    /// The SQL that makes a backend agree with the ledger, which is then taken to agree; `None` when it does already.
    pub fn prelude_for(&mut self, backend: &mut BackendState) -> Option<Vec<u8>> {
        if Arc::ptr_eq(&backend.applied, &self.wanted) && !backend.doubted {
            return None;
        }
        let sql = if std::mem::take(&mut backend.doubted) {
            Some(parameters::prelude_from_doubt(&self.wanted))
        } else {
            parameters::prelude(&backend.applied, &self.wanted)
        };
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
    pub fn restore_for(&self, backend: &mut BackendState) -> Option<Vec<u8>> {
        let of_baseline = self
            .baseline
            .entries()
            .iter()
            .filter_map(|(name, _)| self.wanted.entry(name));
        let wanted = Settings::new(backend.applied.entries().iter().chain(of_baseline).cloned());
        let sql = parameters::restore(&backend.applied, &wanted);
        backend.applied = self.shared.settings.intern(wanted);
        sql
    }

    /// Whether a statement of these effects takes startup settings away.
    pub fn resets_baseline(&self, effects: &Effects) -> bool {
        let resets = |action: &Action| match action {
            Action::DiscardAll | Action::Setting(SettingChange::ResetAll) => true,
            Action::Setting(change) => change.taken_back().is_some(),
            _ => false,
        };
        !self.baseline.entries().is_empty() && effects.steps.iter().any(|step| resets(&step.action))
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

    /// A statement of these effects is about to run. `follows` tells which settings are reported and so follow.
    pub fn apply(&mut self, effects: &Effects, backend: &mut BackendState, follows: impl Fn(&str) -> bool) {
        if effects.is_none() {
            return;
        }
        // Each SET is a step, which tells whether it follows its client or ties it.
        let mut pins = effects.pins;
        pins.remove(PinReason::Setting);
        let rolls_back = |step: &Step| matches!(step.action, Action::Transaction(TransactionControl::RollbackTo, _));
        if self.settings_touched && (effects.ends_transaction || effects.steps.iter().any(rolls_back)) {
            self.see_not(Until::Reported);
        }
        self.pins.extend(pins);
        if !pins.is_empty() {
            self.see_not(Until::Discard);
        }
        for step in &effects.steps {
            match &step.action {
                Action::Setting(change) => self.apply_setting(change, backend, &follows),
                Action::Listen(_) => self.pins.insert(PinReason::Listen),
                Action::Prepare(_) | Action::Execute(_) => self.pins.insert(PinReason::Prepare),
                Action::HoldCursor(_) => self.pins.insert(PinReason::HoldCursor),
                _ => {}
            }
        }
    }

    /// A statement that has to do with sequences is about to run. True: the backend remembers values that others drew,
    /// and must forget them first (DISCARD SEQUENCES), so that lastval and currval tell nothing of theirs.
    pub fn use_sequences(&mut self, uses: SequenceUse, backend: &mut BackendState) -> bool {
        let own = Drawn::By(self.client);
        let forget = uses.reads() && backend.drawn != Drawn::ByNobody && backend.drawn != own;
        if forget {
            backend.drawn = Drawn::ByNobody;
        }
        self.reads_sequences |= uses.reads();
        if uses.draws() {
            backend.drawn = match backend.drawn {
                Drawn::ByNobody => own,
                drawn if drawn == own => own,
                _ => Drawn::BySeveral,
            };
            if self.reads_sequences {
                self.pins.insert(PinReason::Sequence);
            }
        }
        forget
    }

    fn apply_setting(&mut self, change: &SettingChange, backend: &mut BackendState, follows: &impl Fn(&str) -> bool) {
        if let Some(name) = change.taken_back() {
            self.set_to_default |= !matches!(change, SettingChange::Reset(_));
            return self.reset_setting(name, backend, follows);
        }
        match change {
            // What is local, or reported and so known, ends or is known at the end of the transaction.
            SettingChange::Set {
                name,
                scope: SettingScope::Local,
                ..
            } => {
                let known = matches!(name, SettingName::Known(name) if follows(&String::from_utf8_lossy(name)));
                self.see_not(if known { Until::Reported } else { Until::Ready });
            }
            SettingChange::Set {
                name: SettingName::Known(name),
                ..
            } => {
                let name = String::from_utf8_lossy(name);
                if follows(&name) {
                    return self.see_not(Until::Reported);
                }
                self.pins.insert(if name.contains('.') {
                    PinReason::CustomSetting
                } else {
                    PinReason::Setting
                });
                self.forget_setting(&name, backend);
                self.see_not(Until::Discard);
            }
            SettingChange::Set { .. } => {
                self.pins.insert(PinReason::CustomSetting);
                self.see_not(Until::Discard);
            }
            SettingChange::Reset(_) => {}
            SettingChange::ResetAll => self.reset_all(backend),
        }
    }

    fn reset_setting(&mut self, name: &[u8], backend: &mut BackendState, follows: &impl Fn(&str) -> bool) {
        self.doubt_settings(backend);
        let name = String::from_utf8_lossy(name);
        let known = follows(&name);
        if let Some((name, baseline)) = self.baseline.entry(&name).cloned() {
            self.forget_setting(&name, backend);
            self.want(self.wanted.with(&name, Some(&baseline)));
            self.rebase = true;
        }
        self.see_not(if known { Until::Reported } else { Until::Ready });
    }

    /// A SET was completed: whether it may have been one to a default, which is a RESET by another name.
    pub const fn set_has_run(&mut self) -> bool {
        std::mem::replace(&mut self.set_to_default, false)
    }

    fn see_not(&mut self, until: Until) {
        self.settings_touched = true;
        self.reports_due = true;
        self.unseen_until = if self.unseen_settings == 0 {
            until
        } else {
            until.max(self.unseen_until)
        };
        self.unseen_settings = self.shared.statements.unique_number();
    }

    fn forget_setting(&mut self, name: &str, backend: &mut BackendState) {
        if self.wanted.value(name).is_some() {
            self.want(self.wanted.with(name, None));
        }
        if backend.applied.value(name).is_some() {
            backend.applied = self.shared.settings.intern(backend.applied.with(name, None));
        }
    }

    fn reset_all(&mut self, backend: &mut BackendState) {
        self.doubt_settings(backend);
        self.rebase = !self.baseline.entries().is_empty();
        // What is not of the baseline is reported when it changes.
        let entries = self.wanted.entries().iter().chain(self.baseline.entries()).cloned();
        self.want(Settings::new(entries));
        backend.applied = Arc::default();
        self.see_not(Until::Reported);
    }

    /// A RESET is on its way, which a rollback would undo: before anyone else's statement the backend is set anew.
    fn doubt_settings(&mut self, backend: &mut BackendState) {
        backend.doubted |= !backend.applied.entries().is_empty();
        self.before_reset.get_or_insert_with(|| self.wanted.clone());
    }

    /// PostgreSQL reported a setting's value while the client's own statements ran. `neutral` is what a fresh backend
    /// reports: a value equal to it needs no entry. Says whether it is news to the client.
    pub fn reported(&mut self, backend: &mut BackendState, name: &str, value: &str, neutral: Option<&str>) -> bool {
        let baseline = self
            .baseline
            .value(name)
            .filter(|_| self.rebase && neutral == Some(value));
        if let Some(baseline) = baseline.map(str::to_owned) {
            self.want(self.wanted.with(name, Some(&baseline)));
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
        // Numbers only grow.
        for (under, statement) in self.unresolved.extract_if(.., |(under, _)| *under <= number) {
            if let Some(statement) = statement.upgrade().filter(|_| under == number) {
                statement.resolve(self.wanted.clone());
            }
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
        self.unresolved.clear();
    }

    /// A ReadyForQuery with status idle has come, and nothing is under way behind it: what was local to the transaction
    /// is over.
    pub fn transaction_ended(&mut self) {
        if self.unseen_until <= Until::Ready {
            self.unseen_settings = 0;
        }
        self.settings_touched = false;
    }

    /// Whether a RESET has happened is known now. `undone` when it was rolled back, or never ran.
    pub fn reset_decided(&mut self, undone: bool) {
        self.rebase = false;
        if let Some(before) = self.before_reset.take()
            && undone
        {
            self.wanted = self.shared.settings.intern(Settings::new(before.entries().to_vec()));
            self.relex();
        }
    }

    fn parse_key(&self) -> ParseKey {
        match self.unseen_settings {
            0 => ParseKey::Settings(self.wanted.clone()),
            number => ParseKey::Private(number),
        }
    }

    /// How a statement that a backend does not hold is to be taught to it, so that it means there what it meant when it
    /// was parsed (trap 28).
    ///
    /// `reported` tells the settings whose values are known whatever else is in force.
    pub fn teaching(&self, statement: &Arc<Statement>, reported: impl Fn(&str) -> bool) -> Teaching {
        match statement.under() {
            _ if reads_no_settings(&statement.effects, statement.sql()) => Teaching::AsItIs,
            None => Teaching::AsItIs,
            Some(then) if self.unseen_settings != 0 => {
                let (then, now) = (then.only(&reported), self.wanted.only(&reported));
                Teaching::AsOnesOwn(Switch::between(&now, &then).filter(|_| !self.reports_due))
            }
            Some(then) => Switch::between(&self.wanted, then).map_or(Teaching::AsItIs, Teaching::Under),
        }
    }

    /// A statement of this client's alone takes the place of a shared one behind its name.
    pub fn own_statement(&mut self, name: &[u8], statement: &Statement) -> Arc<Statement> {
        let key = ParseKey::Private(self.shared.statements.unique_number());
        let effects = || statement.effects.clone();
        let own = self.shared.statements.share(&statement.definition, key, effects);
        if let Some(under) = statement.under() {
            // Wherever else it is taught, it means what it meant.
            own.resolve(under.clone());
        }
        if let Some(named) = self.statements.remove(name) {
            let statement = own.clone();
            self.statements.put_back(name, NamedStatement { statement, ..named });
        }
        own
    }

    /// What the catalog says may have changed, so that statements parsed before may fail: none of them is shared any
    /// more (trap 31). Who holds one keeps it, as PostgreSQL has it.
    pub fn forget_shared_statements(&self) {
        self.shared.statements.forget();
    }

    // --- prepared statements ---

    /// The statement behind a client's name.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.statements.find(name).map(|named| &named.statement)
    }

    /// The same with what the client was told of its rows.
    pub fn named(&self, name: &[u8]) -> Option<&NamedStatement> {
        self.statements.find(name)
    }

    /// PostgreSQL has described a statement.
    pub fn described(&mut self, described: Described, shape: ResultShape, backend: &mut BackendState) {
        backend.statements.note_shape(described.id, shape);
        if described.told != 0 {
            self.statements.tell(described.told, shape);
        }
    }

    /// PostgreSQL called a statement stale that this backend holds. Where nobody knew of the change that made it so,
    /// everything else that was parsed before is parsed again too.
    pub fn note_stale(&self, id: u64, backend: &mut BackendState) {
        if backend.statements.note_stale(id) == Some(self.generation()) {
            self.forget_shared_statements();
        }
    }

    /// Of the catalog, for statements that are parsed now.
    pub fn generation(&self) -> u64 {
        self.shared.statements.generation()
    }

    /// Bytes of the client's prepared statements.
    pub const fn statement_bytes(&self) -> usize {
        self.statements.bytes()
    }

    /// A name that can't go to a backend as it is, because it looks like a shared one.
    pub fn is_reserved(&self, name: &[u8]) -> bool {
        name == SWITCH_NAME || self.shared.statements.is_reserved(name)
    }

    /// A name that no backend has a statement of.
    pub fn unused_name(&self) -> Vec<u8> {
        self.shared.statements.unused_name()
    }

    /// Gives a free name to a definition. Returns the shared statement.
    pub fn prepare(&mut self, name: &[u8], definition: &[u8], effects: impl FnOnce() -> Effects) -> Arc<Statement> {
        let statement = self.shared.statements.share(definition, self.parse_key(), effects);
        let unresolved = self.unresolved_number();
        if unresolved != 0 {
            self.unresolved.push((unresolved, Arc::downgrade(&statement)));
        }
        self.statements.insert(name, statement.clone());
        statement
    }

    /// The number of the settings in force that the ledger can't see yet, and will; 0 when there are none.
    const fn unresolved_number(&self) -> u64 {
        match self.unseen_until {
            Until::Reported => self.unseen_settings,
            _ => 0,
        }
    }

    /// Gives a free name to a definition that PostgreSQL is known to parse, if it is one: that needs no backend.
    pub fn prepare_proven(&mut self, name: &[u8], definition: &[u8]) -> bool {
        let found = self.shared.statements.find_proven(definition, self.parse_key());
        if let Some(statement) = &found {
            self.statements.insert(name, statement.clone());
        }
        found.is_some()
    }

    /// The note of a Parse that gave a name.
    pub fn prepared_note(name: &[u8], statement: Arc<Statement>, parsed: bool) -> Note {
        Note::Prepared(Box::new(Prepared {
            name: name.into(),
            statement,
            parsed,
        }))
    }

    /// Takes a name away.
    pub fn close(&mut self, name: &[u8]) -> Option<Note> {
        let named = self.statements.remove(name)?;
        Some(Note::Closed(Box::new((name.into(), named))))
    }

    /// DEALLOCATE ALL ran: no name is left, on this backend either. The unnamed statement has no name.
    pub fn deallocated_all(&mut self, backend: &mut BackendState) {
        self.statements.clear();
        backend.statements.clear();
    }

    /// DISCARD ALL ran: the session is as after its login, and so is this backend, but for the startup settings.
    pub fn discarded_all(&mut self, backend: &mut BackendState) {
        self.deallocated_all(backend);
        self.reset_all(backend);
        self.before_reset = None;
        backend.doubted = false;
        self.unseen_settings = 0;
        self.pins = self
            .pins
            .iter()
            .filter(|reason| !reason.ends_with_discard_all())
            .collect();
    }

    // --- the unnamed statement ---

    /// The client's own unnamed Parse is sent.
    pub fn parse_unnamed(&mut self, definition: &[u8], effects: Effects, backend: &mut BackendState) -> Note {
        self.serial += 1;
        backend.unnamed = Some(UnnamedId {
            client: self.client,
            serial: self.serial,
        });
        let serial = self.serial;
        self.change_unnamed(Some(Box::new(Unnamed {
            serial,
            definition: definition.to_vec(),
            effects,
            under: (self.unseen_settings == 0).then(|| self.wanted.clone()),
            unresolved: self.unresolved_number(),
        })))
    }

    fn change_unnamed(&mut self, unnamed: Option<Box<Unnamed>>) -> Note {
        self.serial += 1;
        Note::ChangedUnnamed(ChangedUnnamed {
            serial: self.serial,
            serial_before: std::mem::replace(&mut self.unnamed_serial, self.serial),
            before: std::mem::replace(&mut self.unnamed, unnamed),
            reports: 0,
        })
    }

    /// The text of the unnamed statement.
    pub fn unnamed_sql(&self) -> Option<&[u8]> {
        self.unnamed.as_ref()?.definition.split(|&byte| byte == 0).next()
    }

    /// The backend does not hold it, and must be taught it under the settings of then.
    pub fn must_teach_unnamed(&self, backend: &BackendState) -> bool {
        let held = |unnamed: &Unnamed| {
            backend.unnamed
                == Some(UnnamedId {
                    client: self.client,
                    serial: unnamed.serial,
                })
        };
        let unnamed = self.unnamed.as_ref().filter(|unnamed| unnamed.under.is_some());
        unnamed.is_some_and(|unnamed| !held(unnamed))
    }

    /// What must be said to the backend before the client's Bind or Describe of the unnamed statement.
    pub fn unnamed_for(&self, backend: &mut BackendState) -> UnnamedStep<'_> {
        let held = backend.unnamed;
        match &self.unnamed {
            Some(unnamed) => {
                let id = UnnamedId {
                    client: self.client,
                    serial: unnamed.serial,
                };
                if held == Some(id) {
                    return UnnamedStep::Agrees(&unnamed.effects);
                }
                backend.unnamed = Some(id);
                let sql = unnamed.definition.split(|&byte| byte == 0).next().unwrap_or_default();
                let is_tied = self.unseen_settings != 0 || reads_no_settings(&unnamed.effects, sql);
                let known = unnamed.under.as_ref().filter(|_| !is_tied);
                let switch = known.and_then(|then| Switch::between(&self.wanted, then));
                UnnamedStep::Parse(&unnamed.definition, &unnamed.effects, switch)
            }
            None if held.is_some() => {
                backend.unnamed = None;
                UnnamedStep::Close
            }
            None => UnnamedStep::Unknown,
        }
    }

    /// A simple Query, or a Close, ends the unnamed statement.
    pub fn forget_unnamed(&mut self, backend: Option<&mut BackendState>) -> Note {
        if let Some(backend) = backend {
            backend.unnamed = None;
        }
        self.change_unnamed(None)
    }

    /// An unnamed Parse that is too long to be kept is sent: only this backend, to which the client is tied, has it.
    pub fn parse_unnamed_unread(&mut self, backend: &mut BackendState) -> Note {
        backend.unnamed = None;
        self.change_unnamed(None)
    }

    // --- notes ---

    /// The request will never be answered: what was recorded for it is undone. Call youngest first. `pending` are the
    /// notes of requests that still wait.
    pub fn undo<'a>(
        &mut self,
        note: Note,
        backend: Option<&mut BackendState>,
        pending: impl Iterator<Item = &'a mut Note>,
    ) {
        match note {
            Note::None | Note::Reports(_) | Note::Bound(_) | Note::Described(_) => {}
            Note::Prepared(prepared) => {
                self.statements.remove(&prepared.name);
                if let (true, Some(backend)) = (prepared.parsed, backend) {
                    backend.statements.remove(prepared.statement.id);
                }
            }
            Note::Injected(id) => {
                if let Some(backend) = backend {
                    backend.statements.remove(id);
                }
            }
            Note::Evicted(statement) => {
                if let Some(backend) = backend {
                    // Stale: whatever it was parsed from, it is closed before it is parsed again.
                    backend.statements.insert(statement, 0);
                }
            }
            Note::Closed(closed) => {
                let (name, named) = *closed;
                self.statements.put_back(&name, named);
            }
            Note::SequencesForgotten => {
                if let Some(backend) = backend {
                    backend.doubt_sequences();
                }
            }
            // What the backend holds now may be anyone's: it is replaced or closed before the next use.
            Note::Unnamed => doubt_unnamed(backend),
            Note::ChangedUnnamed(change) => {
                self.undo_unnamed(change, pending);
                doubt_unnamed(backend);
            }
        }
    }

    /// The request was reached and failed.
    pub fn undo_failed<'a>(
        &mut self,
        note: Note,
        backend: Option<&mut BackendState>,
        pending: impl Iterator<Item = &'a mut Note>,
    ) {
        match note {
            // PostgreSQL drops the old one before it looks at the new one's text.
            Note::ChangedUnnamed(change) => {
                let change = ChangedUnnamed { before: None, ..change };
                self.undo(Note::ChangedUnnamed(change), backend, pending);
            }
            note => self.undo(note, backend, pending),
        }
    }

    fn undo_unnamed<'a>(&mut self, change: ChangedUnnamed, mut pending: impl Iterator<Item = &'a mut Note>) {
        if self.unnamed_serial == change.serial {
            self.unnamed = change.before;
            self.unnamed_serial = change.serial_before;
            return;
        }
        let next = pending.find_map(|note| match note {
            Note::ChangedUnnamed(later) if later.serial_before == change.serial => Some(later),
            _ => None,
        });
        if let Some(later) = next {
            later.before = change.before;
            later.serial_before = change.serial_before;
        }
    }
}

/// Whether a statement means the same under any settings: COMMIT and the like, which may be said in a failed transaction,
/// and commands that PostgreSQL analyses when they run. Some of these refuse to run behind anything else in a group.
fn reads_no_settings(effects: &Effects, sql: &[u8]) -> bool {
    const COMMANDS: [&[u8]; 6] = [
        b"discard",
        b"deallocate",
        b"vacuum",
        b"cluster",
        b"reindex",
        b"checkpoint",
    ];
    let word = || sql.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next();
    effects.exits_failed_block
        || word().is_some_and(|word| COMMANDS.iter().any(|command| word.eq_ignore_ascii_case(command)))
}

fn doubt_unnamed(backend: Option<&mut BackendState>) {
    if let Some(backend) = backend {
        backend.unnamed = Some(UnnamedId::DOUBTFUL);
    }
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

/// See [`VirtualSession::checkpoint`].
#[derive(Debug)]
pub struct Checkpoint {
    wanted: Arc<Settings>,
    pins: PinSet,
    unseen_settings: u64,
    unseen_until: Until,
    rebase: bool,
}

/// How long settings that the ledger can't see stay in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    /// PostgreSQL reports them, before its next ReadyForQuery.
    Reported,
    /// The transaction's end.
    Ready,
    /// DISCARD ALL, or the client's end.
    Discard,
}

/// See [`VirtualSession::teaching`].
#[derive(Debug)]
pub enum Teaching {
    /// By its Parse.
    AsItIs,
    /// By its Parse, but as a statement that nobody shares: settings are in force that are not known.
    AsOnesOwn(Option<Switch>),
    /// By its Parse between two statements.
    Under(Switch),
}

/// Two statements around a Parse, which change settings and change them back.
#[derive(Debug)]
pub struct Switch {
    /// To what they were when the statement was parsed.
    pub before: Vec<u8>,
    /// To what the client's are now.
    pub after: Vec<u8>,
}

impl Switch {
    fn between(now: &Settings, then: &Settings) -> Option<Self> {
        (!then.parses_like(now)).then(|| Self {
            before: parameters::switch(now, then),
            after: parameters::switch(then, now),
        })
    }
}

/// See [`VirtualSession::unnamed_for`].
#[derive(Debug)]
pub enum UnnamedStep<'a> {
    /// The backend holds it.
    Agrees(&'a Effects),
    /// This definition must be parsed first, perhaps under other settings.
    Parse(&'a [u8], &'a Effects, Option<Switch>),
    /// Another client's, or an older one of its own, must be closed first, so that it gets PostgreSQL's own 26000.
    Close,
    /// Neither the client nor the backend has one.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use setting_change::SettingValue;
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
            one.apply(&set_local(), &mut backend, |_| true);
            two.apply(&set_local(), &mut backend, |_| true);
            let unseen = one.prepare(b"s", definition, || Effects::NONE);
            assert_ne!(unseen.id, known.id);
            assert_ne!(unseen.id, two.prepare(b"s", definition, || Effects::NONE).id);
        }
    }
}
