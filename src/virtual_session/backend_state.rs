//! What one backend holds of clients' sessions.

use std::sync::Arc;

use super::own_statements::OwnStatements;
use super::parameters::{self, Settings};
use super::sequences::Drawn;
use super::statements::BackendStatements;
use super::unnamed::UnnamedId;

/// Custom settings that one backend may have traces of.
const PLACEHOLDERS_MAX: usize = 1000;

/// What one backend holds of clients' sessions.
#[derive(Debug, Default)]
pub struct BackendState {
    /// Settings that a prelude has applied, different from the backend's own.
    pub applied: Arc<Settings>,
    /// Shared statements that it has parsed.
    pub statements: BackendStatements,
    /// What it knows by clients' own names.
    pub own: OwnStatements,
    /// Who drew values of its sequences, which lastval and currval tell.
    pub(super) drawn: Drawn,
    /// `applied` may not be what is in force: a RESET was sent whose transaction may not have committed.
    pub(super) doubted: bool,
    /// `applied` may lack what a client has set, until PostgreSQL has told what became of it.
    pub(super) unsure: bool,
    /// Whose unnamed statement it holds, if anyone's.
    pub(super) unnamed: Option<UnnamedId>,
    /// Custom settings (`app.tenant`) that a prelude has ever applied. RESET and DISCARD ALL leave `''` of them where a
    /// new session has NULL, so whoever comes next must have them too (trap 58).
    pub(super) placeholders: Vec<Box<str>>,
    /// It was told to LISTEN for a client that hears of notifications another way, and must be told to stop before
    /// anyone else has it.
    pub listens: bool,
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

    /// It remembers sequence values that one other client drew.
    pub(super) fn keeps_values_for_another(&self, client: u64) -> bool {
        matches!(self.drawn, Drawn::By(draw) if draw.client != client)
    }

    /// One with the same settings, on which to try what a statement would do.
    pub(super) fn trial(&self) -> Self {
        Self {
            applied: self.applied.clone(),
            placeholders: self.placeholders.clone(),
            doubted: self.doubted,
            unsure: self.unsure,
            ..Self::default()
        }
    }

    /// DISCARD ALL has run: nothing is left of anyone.
    pub fn discarded(&mut self) {
        *self = Self {
            placeholders: std::mem::take(&mut self.placeholders),
            ..Self::default()
        };
    }

    pub(super) fn note_placeholders(&mut self, settings: &Settings) {
        for (name, _) in settings.entries() {
            self.note_placeholder(name);
        }
    }

    /// A statement names this setting: if it is a custom one, its trace stays. False: there are too many to keep, and the
    /// backend must be closed.
    pub(super) fn note_placeholder(&mut self, name: &str) -> bool {
        if !name.contains('.') || self.placeholders.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return true;
        }
        let has_room = self.placeholders.len() < PLACEHOLDERS_MAX;
        if has_room {
            self.placeholders.push(name.into());
        }
        has_room
    }

    /// The SQL that takes clients' settings off, so that statements of ours see what a new session would; they are then
    /// taken to be off. `None` when there are none.
    pub fn take_settings_off(&mut self) -> Option<Vec<u8>> {
        let sql = match std::mem::take(&mut self.doubted) | std::mem::take(&mut self.unsure) {
            true => Some(parameters::prelude_from_doubt(&Settings::default())),
            false => parameters::prelude(&self.applied, &Settings::default()),
        };
        self.applied = Arc::default();
        sql
    }
}
