//! Verifiers that PostgreSQL itself is asked for (`auth_query`), remembered for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::context::{ClientContext, Snapshot};
use super::credentials::{KnownUser, parse_verifier};
use crate::config::AuthQueryConfig;
use crate::pool::{Holder, PoolKey};
use crate::virtual_session::parameters::literal;
use crate::wire::{Report, Severity};

/// Users that are remembered; beyond it all are forgotten.
const USERS_MAX: usize = 10_000;

/// What was answered lately, by user name. Unknown users are remembered too, for a shorter while.
#[derive(Debug, Default)]
pub struct AuthQueryCache {
    answers: Mutex<HashMap<String, (Instant, Option<KnownUser>)>>,
}

impl AuthQueryCache {
    /// What is stored of a user; `None` where there is no such user, or no auth_query.
    ///
    /// # Errors
    /// PostgreSQL could not be asked: the login can't go on (FATAL).
    pub async fn find(
        &self,
        user: &str,
        snapshot: &Snapshot,
        context: &Arc<ClientContext>,
    ) -> Result<Option<KnownUser>, Report> {
        let Some(query) = &snapshot.config.auth.query else {
            return Ok(None);
        };
        if let Some(answer) = self.remembered(user, query) {
            return Ok(answer);
        }
        let answer = ask(user, query, context).await?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= USERS_MAX {
            answers.clear();
        }
        answers.insert(user.to_owned(), (Instant::now(), answer.clone()));
        Ok(answer)
    }

    /// A login failed: the next one asks anew, because the password may have been changed.
    pub fn forget(&self, user: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.get(user).is_some_and(|(_, answer)| answer.is_some()) {
            answers.remove(user);
        }
    }

    /// The configuration changed.
    pub fn clear(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn remembered(&self, user: &str, query: &AuthQueryConfig) -> Option<Option<KnownUser>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, answer) = answers.get(user)?;
        let ttl: Duration = if answer.is_some() {
            query.cache_ttl
        } else {
            query.negative_ttl
        };
        (since.elapsed() < ttl).then(|| answer.clone())
    }
}

async fn ask(user: &str, query: &AuthQueryConfig, context: &Arc<ClientContext>) -> Result<Option<KnownUser>, Report> {
    let default = context.pools.default_key();
    let key = PoolKey {
        database: query.database.clone().unwrap_or(default.database),
        user: query.user.clone().unwrap_or(default.user),
    };
    let fatal = |report: Report| report.with_severity(Severity::Fatal);
    let pool = context.pools.pool(&key).map_err(|error| fatal(error.report()))?;
    let holder = Holder::internal("auth_query");
    let mut lease = pool.lease(&holder).await.map_err(|error| fatal(error.report()))?;
    // One transaction with a search_path of its own: no schema of a user's can stand before pg_catalog (CVE-2025-12819).
    let sql = format!(
        "BEGIN READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp; {}; COMMIT",
        query.query.trim_end_matches(';').replace("$1", &literal(user))
    );
    let outcome = lease.query(&sql).await;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::warn!(%error, "auth_query could not be asked");
            return Err(Report::fatal(
                crate::wire::SqlState::CONNECTION_FAILURE,
                "the database could not be asked for the user's password",
            ));
        }
    };
    if let Some(report) = outcome.error {
        tracing::error!(%report, "auth_query failed");
        lease.release(crate::virtual_session::reset::ResetPlan::Nothing).await;
        return Err(
            Report::fatal(crate::wire::SqlState::INTERNAL_ERROR, "auth_query failed")
                .with_hint("pgsidecar's log tells why."),
        );
    }
    lease.park();
    let text = outcome.first_column.into_iter().flatten().next();
    let stored = text.and_then(|text| parse_verifier(&String::from_utf8_lossy(&text)));
    Ok(stored.map(|stored| KnownUser { stored, upstream: None }))
}
