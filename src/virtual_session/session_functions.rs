//! Functions whose call means something to the session, by name in any schema.

use super::pins::PinReason;
use super::word_table::WordTable;

/// What a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionFunction {
    /// set_config: what it does is in its arguments.
    SetConfig,
    /// Leaves something in the session.
    Pins(PinReason),
    /// Releases a session-level advisory lock.
    Unlocks,
    /// nextval, setval: gives the session a last value.
    DrawsSequence,
    /// currval, lastval: asks for the session's last value.
    ReadsSequence,
    /// pg_notify.
    Notifies,
    /// Tells what the session holds or which backend it is.
    ReadsSession,
    /// The same of its prepared statements.
    ListsStatements,
    /// Writes without a word in the text that says so (large objects).
    Writes,
}

/// What a call of `name` (any case) may do to the session, if it is one of these.
pub fn session_function(name: &[u8]) -> Option<SessionFunction> {
    if let Some(position) = TABLE.position(name) {
        return Some(MEANINGS[position]);
    }
    let dblink = name.get(..6).is_some_and(|head| head.eq_ignore_ascii_case(b"dblink"));
    dblink.then_some(SessionFunction::Pins(PinReason::Dblink))
}

static TABLE: WordTable<256> = WordTable::new(NAMES);

macro_rules! functions {
    ($($meaning:expr => $($name:ident)*;)*) => {
        const NAMES: &[&str] = &[$($(stringify!($name)),*),*];
        const MEANINGS: &[SessionFunction] = &[$($({ let _ = stringify!($name); $meaning }),*),*];
    };
}

functions! {
    SessionFunction::SetConfig => set_config;
    SessionFunction::Pins(PinReason::SetSeed) => setseed;
    SessionFunction::Pins(PinReason::AdvisoryLock) =>
        pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared;
    SessionFunction::Pins(PinReason::Replication) =>
        pg_backup_start pg_backup_stop pg_start_backup pg_stop_backup
        pg_create_logical_replication_slot pg_create_physical_replication_slot
        pg_copy_logical_replication_slot pg_copy_physical_replication_slot pg_replication_slot_advance
        pg_logical_slot_get_changes pg_logical_slot_get_binary_changes
        pg_logical_slot_peek_changes pg_logical_slot_peek_binary_changes
        pg_replication_origin_session_setup pg_replication_origin_session_reset
        pg_replication_origin_session_is_setup pg_replication_origin_session_progress
        pg_replication_origin_xact_setup pg_replication_origin_xact_reset;
    SessionFunction::Unlocks => pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all;
    SessionFunction::DrawsSequence => nextval setval;
    SessionFunction::ReadsSequence => currval lastval;
    SessionFunction::Notifies => pg_notify;
    SessionFunction::ReadsSession =>
        pg_backend_pid pg_cursor pg_listening_channels pg_lock_status pg_my_temp_schema;
    SessionFunction::ListsStatements => pg_prepared_statement;
    SessionFunction::Writes =>
        lo_creat lo_create lo_from_bytea lo_import lo_export lo_unlink lo_put lo_truncate lo_truncate64 lowrite
        lo_open lo_close lo_lseek lo_lseek64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_functions_are_found_in_any_case() {
        assert_eq!(session_function(b"SET_Config"), Some(SessionFunction::SetConfig));
        assert_eq!(
            session_function(b"dblink_connect_u"),
            Some(SessionFunction::Pins(PinReason::Dblink))
        );
        assert_eq!(session_function(b"pg_advisory_xact_lock"), None);
        assert_eq!(session_function(b"lower"), None);
    }

    #[test]
    fn what_pins_a_statement_makes_a_routine_suspicious_too() {
        let query = super::super::suspects::suspects_query();
        for (name, meaning) in NAMES.iter().zip(MEANINGS) {
            let pins = matches!(meaning, SessionFunction::SetConfig | SessionFunction::Pins(_));
            let tells = name.ends_with("_is_setup") || name.ends_with("_progress");
            assert_eq!(query.contains(&format!("('{name}')")), pins && !tells, "{name}");
        }
    }

    #[test]
    fn no_session_function_is_called_harmless() {
        assert!(
            NAMES
                .iter()
                .all(|name| !super::super::builtin_functions::is_harmless(name.as_bytes()))
        );
    }
}
