//! The prepared statements of one client: what its names stand for, and how a backend is taught them.

use std::sync::Arc;

use super::note::{Closed, Prepared};
use super::parameters::{self, Settings};
use super::rereading::Schemas;
use super::result_shape::ResultShape;
use super::settings_ledger::Until;
use super::statement_effects::Effects;
use super::statements::{NamedStatement, ParseKey, Statement};
use super::{BackendState, Described, Following, Note, SWITCH_NAME, VirtualSession};

impl VirtualSession {
    pub(super) fn parse_key(&self) -> ParseKey {
        match self.unseen_settings {
            0 => ParseKey::Settings(self.wanted.clone()),
            number => ParseKey::Private(number),
        }
    }

    /// How a statement that a backend does not hold is to be taught to it, so that it means there what it meant when it
    /// was parsed (trap 28).
    ///
    /// `reported` tells the settings whose values are known whatever else is in force. Under another path of `schemas` than it was
    /// parsed under PostgreSQL would read its text again for the use at hand, so it is parsed as things are now.
    pub fn teaching(
        &self,
        statement: &Arc<Statement>,
        reported: impl Fn(&str) -> bool,
        schemas: Option<&Schemas>,
    ) -> Teaching {
        match statement.under() {
            _ if reads_no_settings(&statement.effects, statement.sql()) => Teaching::AsItIs,
            None => Teaching::AsItIs,
            Some(then) if self.unseen_settings != 0 => {
                let path = self.said_path_behind(&[]);
                let is_read_again = schemas.is_some_and(|schemas| !schemas.agree(then, path.now()));
                let (then, now) = (then.only(&reported), self.wanted.only(&reported));
                let switch = Switch::between(&now, &then).filter(|_| !self.reports_due);
                Teaching::AsOnesOwn(switch.filter(|_| !is_read_again))
            }
            Some(then) => Switch::between(&self.wanted, then).map_or(Teaching::AsItIs, Teaching::Under),
        }
    }

    /// A statement of this client's alone takes the place of a shared one behind its name.
    pub fn own_statement(&mut self, name: &[u8], statement: &Statement) -> Arc<Statement> {
        let key = ParseKey::Private(self.shared.statements.unique_number());
        let effects = || statement.effects.clone();
        let own = self.shared.statements.share(&statement.definition, key, effects);
        match statement.under() {
            // Wherever else it is taught, it means what it meant.
            Some(under) => own.resolve(under.clone()),
            None => self.resolve_later(&own),
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
        self.shared.forget();
    }

    /// The statement behind a client's name.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named(name).map(|named| &named.statement)
    }

    /// The same with what the client was told of its rows.
    pub fn named(&self, name: &[u8]) -> Option<&NamedStatement> {
        self.statements.find(name).filter(|_| !self.keeps_names_on_backend())
    }

    /// PostgreSQL has described a statement.
    pub fn described(&mut self, described: Described, shape: ResultShape, backend: &mut BackendState) {
        backend.statements.note_shape(described.id, shape);
        backend.own.note_shape(described.id, shape);
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
        self.resolve_later(&statement);
        self.statements.insert(name, statement.clone());
        statement
    }

    /// A statement is parsed, or read again, under settings that the ledger can't see. If it ever will, the statement is
    /// told; else it is taken for what PostgreSQL reports of them, and for what the client has said.
    pub(super) fn resolve_later(&mut self, statement: &Arc<Statement>) {
        let reported = match self.reports_due {
            true => None,
            false => Some(self.settings_with_said_path()),
        };
        let (until, reported) = match (self.unseen_until, reported) {
            _ if self.unseen_settings == 0 => return,
            (Until::Ready | Until::Discard, Some(settings)) => return statement.resolve(settings),
            (Until::Asked, reported) => (Until::Asked, reported),
            (_, reported) => (Until::Reported, reported),
        };
        self.unresolved.push((self.unseen_settings, until), statement, reported);
    }

    /// The client's settings as far as PostgreSQL reports them, and the path of schemas that the client has said.
    pub(super) fn settings_with_said_path(&self) -> Arc<Settings> {
        match &self.said_path {
            Some(_) => self
                .shared
                .settings
                .intern(self.said_path_behind(&[]).over(&self.wanted)),
            None => self.wanted.clone(),
        }
    }

    /// The same for a statement that is what it is by this client's names, and shared with nobody.
    pub fn prepare_alone(
        &mut self,
        name: &[u8],
        definition: &[u8],
        effects: impl FnOnce() -> Effects,
    ) -> Arc<Statement> {
        let key = ParseKey::Private(self.shared.statements.unique_number());
        let statement = self.shared.statements.share(definition, key, effects);
        match self.unseen_settings {
            0 => statement.resolve(self.wanted.clone()),
            _ => self.resolve_later(&statement),
        }
        self.statements.insert(name, statement.clone());
        statement
    }

    /// The number of the settings in force that the ledger can't see yet, and will; 0 when there are none.
    pub(super) const fn unresolved_number(&self) -> u64 {
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
        self.named(name)?;
        let named = self.statements.remove(name)?;
        let (name, leaves) = (name.into(), None);
        Some(Note::Closed(Box::new(Closed { name, named, leaves })))
    }

    /// Whether the backend may know a name as the client says it, so that PostgreSQL decides about it.
    pub fn may_be_own(&self, name: &[u8]) -> bool {
        self.own_names.contains(name)
    }

    /// DEALLOCATE ALL ran: no name is left, on this backend either. The unnamed statement has no name.
    pub fn deallocated_all(&mut self, backend: &mut BackendState) {
        self.statements.clear();
        self.own_names.clear();
        self.untold.clear();
        backend.statements.clear();
        backend.own.clear();
    }

    /// DISCARD ALL ran: the session is as after its login, and so is this backend, but for the startup settings.
    pub fn discarded_all(&mut self, backend: &mut BackendState, follows: impl Fn(&str) -> Following) {
        self.deallocated_all(backend);
        self.forget_settings(backend, follows);
        self.before_reset = None;
        self.discard_sequences();
        backend.doubted = false;
        match self.is_in_doubt() {
            true => self.unseen_until = Until::Asked,
            false => {
                backend.unsure = false;
                self.unseen_settings = 0;
            }
        }
        self.pins = self
            .pins
            .iter()
            .filter(|reason| !reason.ends_with_discard_all())
            .collect();
    }
}

/// Whether a statement means the same under any settings: none at all, COMMIT and the like, which may be said in a failed
/// transaction, and commands that PostgreSQL analyses when they run. Some of these refuse to run behind anything else in a
/// group.
pub(super) fn reads_no_settings(effects: &Effects, sql: &[u8]) -> bool {
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
        || sql.trim_ascii().is_empty()
        || word().is_some_and(|word| COMMANDS.iter().any(|command| word.eq_ignore_ascii_case(command)))
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
    pub(super) fn between(now: &Settings, then: &Settings) -> Option<Self> {
        (!then.folds_like(now)).then(|| Self {
            before: parameters::switch(now, then),
            after: parameters::switch(then, now),
        })
    }
}
