//! Whether a backend that is free holds what the ledger says: what to ask it, and what its answer means.
//!
//! The ledger follows texts and the catalog's word. What both miss (a routine replaced behind our back, a library, a fault of
//! ours) would reach the next client unseen. Asked of a backend that nobody needs, PostgreSQL tells most of it: settings
//! whose source is the session, who one is, what the session's views list.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use super::parameters::{is_identity, literal};
use super::{BackendState, SharedLedger, VirtualSession};

/// Custom settings that are looked for.
const CUSTOM_NAMES_MAX: usize = 64;
/// The longest name that is.
const CUSTOM_NAME_LEN_MAX: usize = 256;

/// Something that a backend holds, and should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SurpriseKind {
    /// A setting that differs from what was applied, or from the backend's own.
    Setting,
    /// A setting of an application's (`app.tenant_id`), or its trace.
    CustomSetting,
    /// Another role.
    Role,
    /// Another session user.
    SessionAuthorization,
    /// Something in the temporary schema.
    TemporaryTable,
    /// A holdable cursor.
    HoldCursor,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A prepared statement that is not ours.
    Prepare,
    /// A channel that it listens to.
    Listen,
    /// It did not tell.
    Unanswered,
}

impl SurpriseKind {
    /// Each of them.
    pub const ALL: [Self; 10] = [
        Self::Setting,
        Self::CustomSetting,
        Self::Role,
        Self::SessionAuthorization,
        Self::TemporaryTable,
        Self::HoldCursor,
        Self::AdvisoryLock,
        Self::Prepare,
        Self::Listen,
        Self::Unanswered,
    ];

    /// The metric label and the word in the log; a closed set.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::CustomSetting => "custom_setting",
            Self::Role => "role",
            Self::SessionAuthorization => "session_authorization",
            Self::TemporaryTable => "temporary_table",
            Self::HoldCursor => "hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Prepare => "prepare",
            Self::Listen => "listen",
            Self::Unanswered => "unanswered",
        }
    }
}

/// A kind, and the name of the setting where it is one; never a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surprise {
    /// What it is.
    pub kind: SurpriseKind,
    /// Of a setting.
    pub name: Option<Box<str>>,
}

/// Names of custom settings that clients of a pool have used, as far as they are few.
#[derive(Debug, Default)]
pub(super) struct CustomNames(Mutex<BTreeSet<Box<str>>>);

impl CustomNames {
    pub(super) fn note(&self, name: &str) {
        if !name.contains('.') || !name.is_ascii() || name.len() > CUSTOM_NAME_LEN_MAX {
            return;
        }
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < CUSTOM_NAMES_MAX {
            names.insert(name.to_ascii_lowercase().into());
        }
    }

    fn all(&self) -> Vec<Box<str>> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().cloned().collect()
    }
}

/// See [`VirtualSession::audit_question`].
fn question(shared: &SharedLedger, backend: &BackendState, login: Option<&str>, own_text: &str) -> String {
    let mut sql = "BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY, NOT DEFERRABLE;".to_owned();
    if let Some(applied) = backend.known_settings() {
        push_identity(
            &mut sql,
            applied.value("session_authorization").or(login),
            applied.value("role"),
        );
        push_settings(&mut sql, backend, own_text);
        push_custom_settings(&mut sql, shared, backend);
    }
    push_objects(&mut sql, shared.statements.name_prefix(), backend);
    sql.push_str("ROLLBACK");
    sql
}

impl VirtualSession {
    /// The Query that asks a backend in this state, in a transaction of its own that is rolled back. Each row of the answer is a
    /// [`Surprise`]. `login` is who the backend logged in as; `own_text` what the operator runs on each new backend: settings that
    /// it names are the operator's.
    ///
    /// The settings are looked at as they are: no name in there depends on search_path. What follows is asked as nobody in
    /// particular.
    pub fn audit_question(&self, backend: &BackendState, login: Option<&str>, own_text: &str) -> String {
        question(&self.shared, backend, login, own_text)
    }
}

/// Says who one is. From here on it is the login's own, without a role.
fn push_identity(sql: &mut String, user: Option<&str>, role: Option<&str>) {
    if let Some(user) = user {
        let user = literal(user);
        let _ = write!(
            sql,
            "SELECT 'session_authorization' WHERE SESSION_USER OPERATOR(pg_catalog.<>) {user}::pg_catalog.name;"
        );
    }
    let expected = match role {
        Some(role) => literal(role),
        None => "pg_catalog.set_config('role', NULL, true)".to_owned(),
    };
    let _ = write!(
        sql,
        "SELECT 'role' WHERE pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) {expected};"
    );
    sql.push_str("SET LOCAL ROLE NONE;");
}

/// Settings that were applied must be in force, and no others. PostgreSQL says what the value that was applied reads as.
fn push_settings(sql: &mut String, backend: &BackendState, own_text: &str) {
    let applied = backend.applied.entries();
    let is_another_user = applied.iter().any(|(name, _)| is_identity(name));
    let mut excepted = vec![
        "'transaction_isolation'".to_owned(),
        "'transaction_read_only'".to_owned(),
        "'transaction_deferrable'".to_owned(),
    ];
    excepted.extend(applied.iter().map(|(name, _)| literal(&name.to_ascii_lowercase())));
    let _ = write!(
        sql,
        "SELECT pg_catalog.concat('setting ', s.name) FROM pg_catalog.pg_settings AS s \
         WHERE s.source OPERATOR(pg_catalog.=) 'session' \
         AND COALESCE(s.setting, '') OPERATOR(pg_catalog.<>) COALESCE(s.reset_val, '') \
         AND pg_catalog.strpos(pg_catalog.lower({}), pg_catalog.lower(s.name)) OPERATOR(pg_catalog.=) 0 \
         AND pg_catalog.lower(s.name) OPERATOR(pg_catalog.<>) ALL (ARRAY[{}]::pg_catalog.text[]);",
        literal(own_text),
        excepted.join(",")
    );
    // Another user may not be allowed what was applied before it.
    for (name, value) in applied
        .iter()
        .filter(|(name, _)| !is_identity(name) && !is_another_user)
    {
        let kind = if name.contains('.') {
            "custom_setting"
        } else {
            "setting"
        };
        let (name, value) = (literal(name), literal(value));
        let _ = write!(
            sql,
            "SELECT pg_catalog.concat('{kind} ', {name}) WHERE COALESCE(pg_catalog.current_setting({name}, true), '') \
             OPERATOR(pg_catalog.<>) pg_catalog.set_config({name}, {value}, true);"
        );
    }
}

/// Custom settings are in no view. Those that clients have named are looked for by their names: where nobody should have left
/// one, not even its trace.
fn push_custom_settings(sql: &mut String, shared: &SharedLedger, backend: &BackendState) {
    for name in shared.custom_names.all() {
        if backend.applied.value(&name).is_some() {
            continue;
        }
        let has_trace = backend
            .placeholders
            .iter()
            .any(|known| known.eq_ignore_ascii_case(&name));
        let name = literal(&name);
        // Only where there is one: set_config would leave a trace of its own.
        let is_off = match has_trace {
            true => "false".to_owned(),
            false => format!("pg_catalog.current_setting({name}, true) OPERATOR(pg_catalog.=) ''"),
        };
        let _ = write!(
            sql,
            "SELECT pg_catalog.concat('custom_setting ', {name}) WHERE CASE WHEN pg_catalog.current_setting({name}, true) IS NULL \
             THEN false ELSE {is_off} OR pg_catalog.current_setting({name}, true) \
             OPERATOR(pg_catalog.<>) pg_catalog.set_config({name}, NULL, true) END;"
        );
    }
}

fn push_objects(sql: &mut String, own_statements: &str, backend: &BackendState) {
    // What clients left by their own names is known by these.
    let names = backend.own.names();
    let known: Vec<_> = names.map(|(name, _)| literal(&String::from_utf8_lossy(name))).collect();
    let known = known.join(",");
    let _ = write!(
        sql,
        "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL search_path = pg_catalog; \
         SELECT kind FROM (VALUES \
         ('prepare', EXISTS (SELECT FROM pg_prepared_statements \
         WHERE (from_sql OR (left(name, length('{own_statements}')) <> '{own_statements}' AND left(name, 9) <> 'pgsidecar')) \
         AND name <> ALL (ARRAY[{known}]::text[]))), \
         ('temporary_table', EXISTS (SELECT FROM pg_depend \
         WHERE refclassid = 'pg_namespace'::regclass AND refobjid = pg_my_temp_schema())), \
         ('hold_cursor', EXISTS (SELECT FROM pg_cursors WHERE is_holdable)), \
         ('advisory_lock', EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())), \
         ('listen', EXISTS (SELECT FROM pg_listening_channels())) \
         ) AS held (kind, is_held) WHERE is_held;"
    );
}

/// What the rows of an answer mean.
pub fn surprises<'a>(rows: impl IntoIterator<Item = &'a [u8]>) -> Vec<Surprise> {
    // The settings that were asked for by set_config are no rows of ours, nor is anything that we don't know.
    rows.into_iter().filter_map(surprise).collect()
}

fn surprise(row: &[u8]) -> Option<Surprise> {
    let text = std::str::from_utf8(row).ok()?;
    let (kind, name) = text
        .split_once(' ')
        .map_or((text, None), |(kind, name)| (kind, Some(name)));
    let kind = SurpriseKind::ALL.into_iter().find(|known| known.label() == kind)?;
    Some(Surprise {
        kind,
        name: name.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_by_its_label() {
        for kind in SurpriseKind::ALL {
            let named = format!("{} app.x y", kind.label());
            let [bare, with_name] = <[_; 2]>::try_from(surprises([kind.label().as_bytes(), named.as_bytes()])).unwrap();
            assert_eq!((bare.kind, bare.name), (kind, None));
            assert_eq!((with_name.kind, with_name.name.as_deref()), (kind, Some("app.x y")));
        }
        assert!(surprises([b"what is this".as_slice(), b"\xff"]).is_empty());
    }

    #[test]
    fn custom_names_are_few_and_no_value_is_asked_for() {
        let names = CustomNames::default();
        names.note("work_mem");
        (0..200).for_each(|number| names.note(&format!("App.x{number}")));
        assert_eq!(names.all().len(), CUSTOM_NAMES_MAX);
        assert_eq!(&*names.all()[0], "app.x0");
        let sql = question(&SharedLedger::new(7), &BackendState::default(), Some("o'hara"), "");
        assert!(sql.starts_with("BEGIN") && sql.ends_with("ROLLBACK") && sql.contains("'o''hara'"));
    }
}
