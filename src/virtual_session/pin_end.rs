//! What holds a pin, as the catalogs tell it, and the end of those that nothing holds any more.

use super::VirtualSession;
use super::pins::{PinReason, PinSet};

/// Pins whose end the catalogs prove.
const PROVABLE: [PinReason; 4] = [
    PinReason::Prepare,
    PinReason::TemporaryTable,
    PinReason::HoldCursor,
    PinReason::AdvisoryLock,
];

/// A question to the client's own backend, between two of its transactions.
#[derive(Debug)]
pub struct PinProof {
    sql: String,
}

impl PinProof {
    /// One Query; each row of its last statement is the label of a pin that something still holds. `own_statements` is how
    /// the names of statements that pgsidecar prepared begin.
    ///
    /// Asked as nobody in particular: the client's role, search_path and timeouts don't touch it, and are back when it ends.
    fn new(own_statements: &str) -> Self {
        Self {
            sql: format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL ROLE NONE; \
                 SET LOCAL search_path = pg_catalog; \
                 SELECT label FROM (VALUES \
                 ('{prepare}', EXISTS (SELECT FROM pg_catalog.pg_prepared_statements \
                 WHERE from_sql OR left(name, length('{own_statements}')) <> '{own_statements}')), \
                 ('{temporary}', EXISTS (SELECT FROM pg_catalog.pg_depend \
                 WHERE refclassid = 'pg_catalog.pg_namespace'::regclass AND refobjid = pg_my_temp_schema())), \
                 ('{cursor}', EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)), \
                 ('{lock}', EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())) \
                 ) AS pins (label, is_held) WHERE is_held; COMMIT",
                prepare = PinReason::Prepare.label(),
                temporary = PinReason::TemporaryTable.label(),
                cursor = PinReason::HoldCursor.label(),
                lock = PinReason::AdvisoryLock.label(),
            ),
        }
    }

    /// What is sent.
    pub fn sql(&self) -> &str {
        &self.sql
    }
}

/// The pins that are still held, of the labels that the answer to a [`PinProof`] has.
pub fn still_held<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> PinSet {
    let reason = |label: &[u8]| PROVABLE.into_iter().find(|reason| reason.label().as_bytes() == label);
    // What we did not ask for is held by we don't know what.
    let labels = labels.into_iter();
    labels
        .map(|label| reason(label).unwrap_or(PinReason::Unknown))
        .collect()
}

impl VirtualSession {
    /// Whether every pin but a sequence's can be proven to be over: asked before any question is.
    pub fn can_be_freed(&self) -> bool {
        let mut pins = self.pins.counted().iter().peekable();
        let has_any = pins.peek().is_some();
        has_any
            && pins.all(|reason| PROVABLE.contains(&reason))
            && !self.is_in_doubt()
            && !self.creates_temporary_objects()
    }

    /// What to ask the backend.
    pub fn pin_proof(&self) -> PinProof {
        PinProof::new(self.shared.statements.name_prefix())
    }

    /// The backend was asked: only these are still held.
    pub fn end_proven_pins(&mut self, held: PinSet) {
        if !held.contains(PinReason::Unknown) {
            self.end_pins(PROVABLE.into_iter().filter(|reason| !held.contains(*reason)));
        }
    }

    pub(super) fn end_pins(&mut self, reasons: impl IntoIterator<Item = PinReason>) {
        for reason in reasons {
            self.pins.remove(reason);
        }
        if self.pins.is_empty() {
            // None of these hides a setting, and no statement is left that only this backend knows by name.
            self.unseen_settings = 0;
            if self.keeps_names_on_backend() {
                self.statements.clear();
            }
            self.own_names.clear();
        }
    }

    /// With pg_temp first to be created in, any CREATE makes a temporary object, and its text does not say so.
    fn creates_temporary_objects(&self) -> bool {
        let path = self.wanted.value("search_path");
        path.is_some_and(|path| path.to_ascii_lowercase().contains("pg_temp"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::SharedLedger;
    use super::super::parameters::Settings;
    use super::super::sql_lexer::Lexing;
    use super::*;

    fn pinned(reasons: &[PinReason], settings: &[(&str, &str)]) -> VirtualSession {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let shared = Arc::new(SharedLedger::new(7));
        let mut session = VirtualSession::new(1, shared, Settings::new(settings), Lexing::default());
        reasons.iter().for_each(|reason| session.pin(*reason));
        session
    }

    #[test]
    fn only_what_can_be_proven_is_asked_for() {
        for reason in PinReason::ALL {
            let is_provable = PROVABLE.contains(&reason);
            let session = pinned(&[reason], &[]);
            assert_eq!(session.can_be_freed(), is_provable, "{reason:?}");
            let with_sequence = pinned(&[reason, PinReason::Sequence], &[]);
            assert_eq!(with_sequence.can_be_freed(), is_provable, "{reason:?}");
            assert!(!pinned(&[reason, PinReason::Load], &[]).can_be_freed());
        }
        assert!(!pinned(&[], &[]).can_be_freed());
    }

    #[test]
    fn a_session_that_creates_in_pg_temp_keeps_its_backend() {
        let path = [("search_path", "\"$user\", PG_TEMP")];
        assert!(!pinned(&[PinReason::TemporaryTable], &path).can_be_freed());
    }

    #[test]
    fn what_is_still_held_stays_pinned_and_the_rest_ends() {
        let mut session = pinned(&[PinReason::Prepare, PinReason::AdvisoryLock], &[]);
        session.end_proven_pins(still_held([b"advisory_lock".as_slice()]));
        assert_eq!(session.pins(), PinSet::of(PinReason::AdvisoryLock));
        session.end_proven_pins(still_held([b"what is this".as_slice()]));
        assert_eq!(session.pins(), PinSet::of(PinReason::AdvisoryLock));
        session.end_proven_pins(still_held([]));
        assert!(session.pins().is_empty());
    }
}
