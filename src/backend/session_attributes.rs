//! libpq's target_session_attrs: is this server the kind that sessions are to be opened on?

use super::{Backend, BackendError};
use crate::config::TargetSessionAttrs;

/// Checks what the server reported (PostgreSQL 14 and later), or asks it.
pub(super) async fn is_wanted(backend: &mut Backend, wanted: TargetSessionAttrs) -> Result<bool, BackendError> {
    match wanted {
        TargetSessionAttrs::Any => Ok(true),
        TargetSessionAttrs::ReadWrite => is_read_only(backend).await.map(|read_only| !read_only),
        TargetSessionAttrs::ReadOnly => is_read_only(backend).await,
        TargetSessionAttrs::Primary => is_standby(backend).await.map(|standby| !standby),
        TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby => is_standby(backend).await,
    }
}

async fn is_read_only(backend: &mut Backend) -> Result<bool, BackendError> {
    let default = backend
        .parameters
        .get("default_transaction_read_only")
        .map(|value| value == b"on");
    match (default, backend.parameters.in_hot_standby()) {
        (Some(default), Some(standby)) => Ok(default || standby),
        _ => is_true(backend, "SHOW transaction_read_only").await,
    }
}

async fn is_standby(backend: &mut Backend) -> Result<bool, BackendError> {
    match backend.parameters.in_hot_standby() {
        Some(standby) => Ok(standby),
        None => is_true(backend, "SELECT pg_catalog.pg_is_in_recovery()").await,
    }
}

async fn is_true(backend: &mut Backend, sql: &str) -> Result<bool, BackendError> {
    let outcome = backend.query(sql).await?;
    match outcome.error {
        Some(report) => Err(BackendError::Fatal(report)),
        None => Ok(matches!(outcome.first_column.first(), Some(Some(value)) if matches!(&value[..], b"on" | b"t"))),
    }
}
