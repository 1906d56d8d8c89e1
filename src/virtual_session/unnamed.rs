//! The unnamed statement: it outlives its Sync, so the client's ledger keeps its definition (trap 29).

use std::sync::Arc;

use super::note::ChangedUnnamed;
use super::parameters::Settings;
use super::prepared::{Switch, reads_no_settings};
use super::statement_effects::Effects;
use super::{BackendState, Note, VirtualSession};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnnamedId {
    pub(super) client: u64,
    pub(super) serial: u64,
}

impl UnnamedId {
    /// The backend may hold one, of anyone's: clients' numbers begin with 1.
    pub(super) const DOUBTFUL: Self = Self { client: 0, serial: 0 };
}

/// The unnamed statement as the client believes it to be.
#[derive(Debug)]
pub struct Unnamed {
    pub(super) serial: u64,
    pub(super) definition: Vec<u8>,
    /// Bytes of the definition that are its text.
    sql_len: usize,
    pub(super) effects: Effects,
    /// The settings that it was parsed under, once they are known.
    pub(super) under: Option<Arc<Settings>>,
    /// The number of these while they are not.
    pub(super) unresolved: u64,
}

impl Unnamed {
    fn sql(&self) -> &[u8] {
        self.definition.get(..self.sql_len).unwrap_or_default()
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

impl VirtualSession {
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
            sql_len: memchr::memchr(0, definition).unwrap_or(definition.len()),
            effects,
            under: (self.unseen_settings == 0).then(|| self.wanted.clone()),
            unresolved: self.unresolved_number(),
        })))
    }

    /// The same of one that was answered and has reached no backend. Its settings are those before what it does.
    pub fn parse_unnamed_unsent(&mut self, definition: &[u8], effects: Effects) -> Note {
        self.parse_unnamed(definition, effects, &mut BackendState::default())
    }

    pub(super) fn change_unnamed(&mut self, unnamed: Option<Box<Unnamed>>) -> Note {
        self.serial += 1;
        Note::ChangedUnnamed(ChangedUnnamed {
            serial: self.serial,
            serial_before: std::mem::replace(&mut self.unnamed_serial, self.serial),
            before: std::mem::replace(&mut self.unnamed, unnamed),
            reports: 0,
            names: None,
        })
    }

    /// The text of the unnamed statement.
    pub fn unnamed_sql(&self) -> Option<&[u8]> {
        self.unnamed.as_deref().map(Unnamed::sql)
    }

    /// What the unnamed statement does.
    pub fn unnamed_effects(&self) -> Option<&Effects> {
        self.unnamed.as_ref().map(|unnamed| &unnamed.effects)
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
                let is_tied = self.unseen_settings != 0 || reads_no_settings(&unnamed.effects, unnamed.sql());
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
}

pub(super) fn doubt_unnamed(backend: Option<&mut BackendState>) {
    if let Some(backend) = backend {
        backend.unnamed = Some(UnnamedId::DOUBTFUL);
    }
}
