//! What a request changed in the ledgers when it was sent, so that its reply can confirm it and its loss undo it.

use std::sync::Arc;

use super::sql_names::NameChanges;
use super::statements::{NamedStatement, Statement};
use super::unnamed::{Unnamed, doubt_unnamed};
use super::{BackendState, Question, Reread, VirtualSession};

/// What a request changed in the ledgers when it was sent: confirmed by its reply, undone when none will come.
#[derive(Debug, Default)]
pub enum Note {
    /// Nothing.
    #[default]
    None,
    /// A client's name was given to a statement; `parsed` when the backend was told to parse it.
    Prepared(Box<Prepared>),
    /// The backend was told to parse a statement ahead of its use.
    Injected(Arc<Statement>),
    /// The backend was told to close a shared statement.
    Evicted(Arc<Statement>),
    /// A client's name was taken from a statement.
    Closed(Box<Closed>),
    /// The backend was told to make or to close a statement of this name of a client's.
    OwnName(Box<[u8]>),
    /// An Execute of what names or unnames statements, or uses one by its name.
    Names(Box<NameChanges>),
    /// A Bind of the shared statement of this number: nothing changes, but PostgreSQL may call it stale.
    Bound(u64),
    /// A use of a statement whose text PostgreSQL reads again, by the settings of this use; and what it describes.
    Reread(Box<Reread>, Option<Described>),
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
    /// PostgreSQL is asked for settings that it does not report; the question is with the message that is answered.
    Asked(Option<Box<Question>>),
}

/// What a change of the unnamed statement must be undone to. Each knows the one before it, so that any of several that
/// are under way can be taken out.
#[derive(Debug)]
pub struct ChangedUnnamed {
    pub(super) serial: u64,
    pub(super) serial_before: u64,
    pub(super) before: Option<Box<Unnamed>>,
    /// As [`Note::Reports`], of a Query.
    pub(super) reports: u64,
    /// As [`Note::Names`], of a Query.
    pub(super) names: Option<Box<NameChanges>>,
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

    /// The same of a name that is taken away together with a statement of ours, which stays where the request fails.
    #[must_use]
    pub fn leaving(mut self, ours: Vec<u8>) -> Self {
        if let Self::Closed(closed) = &mut self {
            closed.leaves = Some(ours.into());
        }
        self
    }

    /// The same for a request that has to do with names.
    #[must_use]
    pub fn naming(self, names: NameChanges) -> Self {
        if names.is_empty() {
            return self;
        }
        match self {
            Self::ChangedUnnamed(change) => Self::ChangedUnnamed(ChangedUnnamed {
                names: Some(Box::new(names)),
                ..change
            }),
            Self::None => Self::Names(Box::new(names)),
            note => note,
        }
    }

    /// What the request has to do with names.
    pub fn names_mut(&mut self) -> Option<&mut NameChanges> {
        match self {
            Self::Names(names) => Some(names),
            Self::ChangedUnnamed(change) => change.names.as_deref_mut(),
            _ => None,
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

    /// What is described.
    pub const fn described(&self) -> Option<Described> {
        match self {
            Self::Described(described) => Some(*described),
            Self::Reread(_, described) => *described,
            _ => None,
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
    pub(super) name: Box<[u8]>,
    pub(super) statement: Arc<Statement>,
    pub(super) parsed: bool,
}

/// See [`Note::Closed`].
#[derive(Debug)]
pub struct Closed {
    pub(super) name: Box<[u8]>,
    pub(super) named: NamedStatement,
    pub(super) leaves: Option<Box<[u8]>>,
}

/// See [`Note::Described`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The shared statement's number.
    pub id: u64,
    /// The number of the client's name for it, where the client is told; else 0.
    pub told: u64,
}

impl VirtualSession {
    /// The request will never be answered: what was recorded for it is undone. Call youngest first. `pending` are the
    /// notes of requests that still wait.
    pub fn undo<'a>(
        &mut self,
        note: Note,
        backend: Option<&mut BackendState>,
        pending: impl Iterator<Item = &'a mut Note>,
    ) {
        match note {
            // A question is taken out before.
            Note::None | Note::Reports(_) | Note::Bound(_) | Note::Described(_) | Note::Names(_) | Note::Asked(_) => {}
            Note::Reread(reread, _) => self.undo_reread(Some(*reread)),
            Note::OwnName(name) => {
                // What only the backend knows, it alone decides about.
                if let Some(backend) = backend.filter(|_| !self.keeps_names_on_backend()) {
                    backend.own.doubt(&name);
                }
            }
            Note::Prepared(prepared) => {
                self.statements.remove(&prepared.name);
                if let (true, Some(backend)) = (prepared.parsed, backend) {
                    backend.statements.take_place_of(&prepared.statement);
                }
            }
            Note::Injected(statement) => {
                if let Some(backend) = backend {
                    // Whatever has taken its place since: nothing stands under that name.
                    backend.statements.take_place_of(&statement);
                }
            }
            Note::Evicted(statement) => {
                if let Some(backend) = backend {
                    // Stale: whatever it was parsed from, it is closed before it is parsed again.
                    backend.statements.insert(statement, 0);
                }
            }
            Note::Closed(closed) => {
                let Closed { name, named, leaves } = *closed;
                self.statements.put_back(&name, named);
                if let (Some(backend), Some(ours)) = (backend, leaves) {
                    backend.own.doubt(&ours);
                }
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

    pub(super) fn undo_unnamed<'a>(&mut self, change: ChangedUnnamed, mut pending: impl Iterator<Item = &'a mut Note>) {
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
