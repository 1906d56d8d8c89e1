//! `pool.warm_settings`: values of settings that a pool tries by itself, so that even the first client that says them needs
//! no round trip.

use std::collections::BTreeMap;

use super::knowledge::Knowledge;
use crate::backend::{Backend, BackendError, Row};
use crate::virtual_session::SettingRequest;
use crate::virtual_session::setting_text::{Said, answerable_name};
use crate::wire::Report;
use crate::wire::backend_message::TransactionStatus;

/// Whether a session that has set nothing hears nothing of a SET that succeeds.
const IS_QUIET: &str = "SELECT pg_catalog.current_setting('client_min_messages') IN ('notice', 'warning', 'error')";
const SET: &str = "SELECT pg_catalog.set_config($1, $2, false)";

impl Knowledge {
    /// Tries each value on a backend that is between transactions and neutral. One that PostgreSQL refuses does no harm:
    /// it is said in the log.
    pub(crate) async fn try_warm_settings(
        &self,
        backend: &mut Backend,
        settings: &BTreeMap<String, String>,
        count_max: usize,
    ) -> Result<(), BackendError> {
        for (name, value) in settings {
            let known = answerable_name(name).and_then(|name| Some((name, Said::string(name, value.as_bytes())?)));
            let Some((known, said)) = known else {
                tracing::warn!(key = %format_args!("pool.warm_settings.{name}"), "this is not a setting and value that are answered");
                continue;
            };
            let answers = &self.ledger().answers;
            let (age, style) = (answers.age(), backend.neutral_parameters().get("DateStyle"));
            let request = SettingRequest::of_neutral(known, said, style);
            if answers.value(&request).is_some() {
                continue;
            }
            match try_value(backend, known, value).await? {
                Ok(Some(made)) => answers.learn(request, &made, age, count_max),
                Ok(None) => {}
                Err(report) => tracing::warn!(
                    key = %format_args!("pool.warm_settings.{name}"), %report,
                    "PostgreSQL refuses this value"
                ),
            }
        }
        Ok(())
    }
}

/// What PostgreSQL makes of a value, in a transaction that is rolled back; `None` where it would tell more than that. The
/// inner error is its refusal.
async fn try_value(
    backend: &mut Backend,
    name: &str,
    value: &str,
) -> Result<Result<Option<String>, Report>, BackendError> {
    let statements: [(&str, &[&str]); 4] = [
        ("BEGIN", &[]),
        (IS_QUIET, &[]),
        (SET, &[name, value]),
        ("ROLLBACK", &[]),
    ];
    let outcome = backend.query_with(&statements).await?;
    if backend.transaction_status != TransactionStatus::Idle {
        backend.query("ROLLBACK").await?;
    }
    if let Some(report) = outcome.error {
        return Ok(Err(report));
    }
    let column = |index: usize| {
        let rows: Option<&Vec<Row>> = outcome.rows.get(index);
        rows.and_then(|rows| rows.first()?.first()?.as_deref())
    };
    let made = column(2).filter(|_| column(1) == Some(b"t"));
    Ok(Ok(
        made.and_then(|made| Some(std::str::from_utf8(made).ok()?.to_owned()))
    ))
}
