//! What clients are told when pgsidecar itself refuses, ends or loses something: SQLSTATE, words and HINT in one place.
//!
//! PostgreSQL's own words where it has some for the case; never an address, a secret or another client's data.

use crate::wire::{Report, Severity, SqlState};

/// The process is draining: the client's connection ends between its transactions, or with them.
pub fn shutting_down() -> Report {
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
    .with_hint("pgsidecar is shutting down.")
}

/// `limits.client_idle_timeout` has passed.
pub fn idle_too_long() -> Report {
    Report::fatal(
        SqlState::IDLE_SESSION_TIMEOUT,
        "terminating connection due to idle-session timeout",
    )
    .with_hint("limits.client_idle_timeout of pgsidecar was exceeded.")
}

/// `limits.idle_transaction_timeout` has passed.
pub fn idle_in_transaction_too_long() -> Report {
    Report::fatal(
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        "terminating connection due to idle-in-transaction timeout",
    )
    .with_hint("limits.idle_transaction_timeout of pgsidecar was exceeded.")
}

/// `limits.transaction_timeout` has passed.
pub fn transaction_too_long() -> Report {
    Report::fatal(
        SqlState::TRANSACTION_TIMEOUT,
        "terminating connection due to transaction timeout",
    )
    .with_hint("limits.transaction_timeout of pgsidecar was exceeded.")
}

/// `limits.query_timeout` has passed, and the cancel of the query has not ended it.
pub fn query_not_cancelled() -> Report {
    Report::fatal(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
        .with_hint("limits.query_timeout of pgsidecar was exceeded, and the database did not cancel the query.")
}

/// Pool mode `statement` met a transaction block.
pub fn transactions_not_allowed() -> Report {
    Report::fatal(
        SqlState::FEATURE_NOT_SUPPORTED,
        "transaction blocks are not allowed in statement pooling mode",
    )
    .with_hint("Set pool.mode to transaction or session.")
}

/// The connection that listened for this client is gone: its own would be, too.
pub fn listener_lost(last_words: Report) -> Report {
    if last_words.sqlstate == SqlState::ADMIN_SHUTDOWN {
        return last_words.with_severity(Severity::Fatal);
    }
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
    .with_detail("The connection to the database that listened for this one was lost.")
    .with_hint("Connect and LISTEN again; notifications may have been missed.")
}

/// The connection that listens for a pool's clients can't be had or doesn't answer.
pub fn listener_not_open() -> Report {
    Report::fatal(
        SqlState::CONNECTION_FAILURE,
        "the connection that listens for clients is lost, or could not be opened in time",
    )
}

/// `limits.client_notification_bytes` are unread.
pub fn too_many_notifications() -> Report {
    Report::fatal(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "terminating connection because too many notifications wait for it",
    )
    .with_hint("Read notifications as they come, end transactions soon, or raise limits.client_notification_bytes of pgsidecar.")
}

/// A notification in an encoding that its listener does not speak.
pub fn notification_in_another_encoding() -> Report {
    Report::fatal(
        SqlState::FEATURE_NOT_SUPPORTED,
        "terminating connection because of a notification that can't be converted to its client_encoding",
    )
    .with_hint("Set client_encoding before LISTEN, or in the startup parameters.")
}

/// What decides on a client's channels is written so that pgsidecar can't read it.
pub fn unreadable_channel() -> Report {
    Report::fatal(
        SqlState::FEATURE_NOT_SUPPORTED,
        "terminating connection because pgsidecar can't follow what it listens to",
    )
    .with_hint(
        "Name channels and savepoints without U&, and end the transaction of a LISTEN before very long statements.",
    )
}

/// What a client's settings have become could not be asked within `pool.reset_timeout`, and its backend is closed.
pub fn settings_untold() -> Report {
    Report::fatal(
        SqlState::CONNECTION_FAILURE,
        "terminating connection because the database did not tell what its settings have become",
    )
    .with_hint("pool.reset_timeout of pgsidecar was exceeded.")
}

/// A bound on clients, named by its key, is reached.
pub fn too_many_clients(key: &str) -> Report {
    Report::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .with_hint(format!("{key} of pgsidecar is reached."))
}

/// `limits.client_login_timeout` has passed: PostgreSQL's words for authentication_timeout.
pub fn login_too_long() -> Report {
    Report::fatal(SqlState::QUERY_CANCELED, "canceling authentication due to timeout")
        .with_hint("limits.client_login_timeout of pgsidecar was exceeded.")
}

/// 25P02 as PostgreSQL says it.
pub fn failed_transaction() -> Report {
    Report::error(
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// `pool.max_pinned` backends are kept by their clients already.
pub fn too_many_pinned(limit: u32, reason: &str) -> Report {
    Report::error(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many clients keep a connection to the database for their sessions already",
    )
    .with_detail(format!(
        "This statement would keep one more beyond its transaction ({reason}), and {limit} are kept. It was not run."
    ))
    .with_hint("Repeat it later, do without what it leaves in the session, or raise pool.max_pinned of pgsidecar.")
}

/// The backend died under its client: PostgreSQL's own last words, or what is known.
pub fn backend_lost(last_words: Option<Report>, commit_at_risk: bool) -> Report {
    match last_words {
        Some(report) => report.with_severity(Severity::Error),
        None if commit_at_risk => Report::error(
            SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            "the connection to the database was lost before it confirmed the transaction",
        )
        .with_detail("The transaction may have taken effect.")
        .with_hint("Check before you repeat it."),
        None => Report::error(SqlState::CONNECTION_FAILURE, "the connection to the database was lost")
            .with_detail("The transaction did not take effect.")
            .with_hint("Repeat the transaction."),
    }
}
