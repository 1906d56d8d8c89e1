//! Passwords that PostgreSQL itself is asked for (`auth_query`), remembered for a while.
//!
//! The query has one parameter, the user's name, which travels as a Bind parameter and can't be read as SQL. It runs in
//! a transaction whose search_path holds pg_catalog only, so that no schema of a user's can stand before it
//! (CVE-2025-12819), and beside it the role's VALID UNTIL is read, which pg_authid's password does not know of
//! (CVE-2025-2291). An answer is remembered for as long as no client changes a role through us.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use zeroize::Zeroizing;

use super::context::{ClientContext, Snapshot};
use super::credentials::{self, KnownUser, parse_verifier};
use crate::backend::{Backend, BackendError, ParameterisedOutcome, Row};
use crate::config::AuthQueryConfig;
use crate::metrics::CloseReason;
use crate::pool::{Holder, Lease, PoolKey, Wish};
use crate::relay::RoleChanges;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{Report, SqlState};

/// Users that are remembered; beyond it all are forgotten.
const USERS_MAX: usize = 10_000;
/// How long PostgreSQL may take to answer, from the moment on at which there is a backend to ask.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Whether the role's password is no longer valid, and for how many seconds it still is. No row: no such role, whose
/// users are a matter of the query alone.
const VALID_UNTIL: &str = "SELECT rolvaliduntil <= pg_catalog.now(), CASE WHEN pg_catalog.isfinite(rolvaliduntil) \
     THEN pg_catalog.date_part('epoch', rolvaliduntil - pg_catalog.now()) END \
     FROM pg_catalog.pg_roles WHERE rolname = $1";

/// What was answered lately, by user name. Unknown users are remembered too, for a shorter while.
#[derive(Debug, Default)]
pub struct AuthQueryCache {
    users: Mutex<HashMap<String, Entry>>,
    role_changes: Arc<RoleChanges>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// The changes of roles before it was asked for.
    role_changes: u64,
    knowledge: Knowledge,
}

#[derive(Debug, Clone)]
enum Knowledge {
    /// Somebody asks; everyone else waits for the same answer.
    Asking(watch::Receiver<Option<Result<Answer, Report>>>),
    Known(Answer),
}

/// What PostgreSQL said of a user.
#[derive(Debug, Clone)]
struct Answer {
    user: Option<Arc<KnownUser>>,
    since: Instant,
    until: Instant,
}

impl AuthQueryCache {
    /// What is stored of a user; `None` where there is no such user, or no auth_query. An answer of at most `age` and
    /// within its time to live is given without asking.
    ///
    /// # Errors
    /// PostgreSQL could not be asked: the login can't go on (FATAL).
    pub async fn find(
        &self,
        user: &str,
        age: Duration,
        snapshot: &Arc<Snapshot>,
        context: &Arc<ClientContext>,
    ) -> Result<Option<Arc<KnownUser>>, Report> {
        if snapshot.config.auth.query.is_none() {
            return Ok(None);
        }
        let mut asking = {
            let mut users = self.lock();
            let (now, role_changes) = (Instant::now(), self.role_changes.count());
            let entry = users.get(user).filter(|entry| entry.role_changes == role_changes);
            match entry.map(|entry| &entry.knowledge) {
                Some(Knowledge::Known(answer)) if now < answer.until && now - answer.since <= age => {
                    return Ok(answer.user.clone());
                }
                Some(Knowledge::Asking(asking)) => asking.clone(),
                _ => {
                    if users.len() >= USERS_MAX {
                        users.retain(|_, entry| matches!(entry.knowledge, Knowledge::Asking(_)));
                    }
                    let asking = begin(user, snapshot, context);
                    let knowledge = Knowledge::Asking(asking.clone());
                    users.insert(
                        user.to_owned(),
                        Entry {
                            role_changes,
                            knowledge,
                        },
                    );
                    asking
                }
            }
        };
        // The sender is dropped without an answer only where the task that asks died.
        let answered = asking.wait_for(Option::is_some).await;
        let answer = answered.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| Err(failed())).map(|answer| answer.user)
    }

    /// PostgreSQL refused what was remembered of a user: the next login asks anew.
    pub fn forget(&self, user: &str) {
        let mut users = self.lock();
        if let Some(Knowledge::Known(_)) = users.get(user).map(|entry| &entry.knowledge) {
            users.remove(user);
        }
    }

    /// Where changes of roles are told: what was asked before one is asked anew.
    pub const fn role_changes(&self) -> &Arc<RoleChanges> {
        &self.role_changes
    }

    /// The user's password itself is known now, where only its verifier was.
    pub fn password_proven(&self, user: &str, password: &Zeroizing<String>) {
        if let Some(Knowledge::Known(answer)) = self.lock().get_mut(user).map(|entry| &mut entry.knowledge)
            && let Some(known) = answer
                .user
                .as_ref()
                .and_then(|known| credentials::with_password(known, password))
        {
            answer.user = Some(Arc::new(known));
        }
    }

    /// The configuration changed.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Takes an answer over, unless the configuration has changed since it was asked for.
    fn answered(
        &self,
        user: &str,
        asked: &watch::Sender<Option<Result<Answer, Report>>>,
        answer: &Result<Answer, Report>,
    ) {
        let mut users = self.lock();
        let Some(entry) = users.get_mut(user) else { return };
        match (&entry.knowledge, answer) {
            (Knowledge::Asking(asking), _) if !asking.same_channel(&asked.subscribe()) => {}
            (Knowledge::Asking(_), Ok(answer)) => entry.knowledge = Knowledge::Known(answer.clone()),
            (Knowledge::Asking(_), Err(_)) => drop(users.remove(user)),
            (Knowledge::Known(_), _) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks in a task of its own: a client that goes away while it waits takes no backend with it.
fn begin(
    user: &str,
    snapshot: &Arc<Snapshot>,
    context: &Arc<ClientContext>,
) -> watch::Receiver<Option<Result<Answer, Report>>> {
    let (sender, receiver) = watch::channel(None);
    let (user, snapshot, context) = (user.to_owned(), snapshot.clone(), context.clone());
    tokio::spawn(async move {
        let answer = match &snapshot.config.auth.query {
            Some(query) => ask(&user, query, &snapshot, &context).await,
            None => Err(failed()),
        };
        context.auth_query.answered(&user, &sender, &answer);
        sender.send_replace(Some(answer));
    });
    receiver
}

async fn ask(
    user: &str,
    query: &AuthQueryConfig,
    snapshot: &Snapshot,
    context: &Arc<ClientContext>,
) -> Result<Answer, Report> {
    let default = context.pools.default_key();
    let key = PoolKey {
        database: query.database.clone().unwrap_or(default.database),
        user: query.user.clone().unwrap_or(default.user),
    };
    let pool = context
        .pools
        .pool(&key)
        .map_err(|error| unreached(&key, &error.report()))?;
    let lease = pool
        .lease(&Holder::internal("auth_query"), Wish::Any)
        .await
        .map_err(|error| unreached(&key, &error.report()))?;
    let outcome = ask_lease(lease, user, &query.query).await.map_err(|cause| {
        let report = Report::fatal(SqlState::CONNECTION_FAILURE, cause);
        unreached(&key, &report)
    })?;
    if let Some(report) = outcome.error {
        tracing::error!(%report, "auth_query failed");
        return Err(failed());
    }
    Ok(judge(user, query, &outcome.rows, snapshot.config.auth.scram_iterations).await)
}

/// Asks, and gives the backend back where it is as clean as before. The error is for the log.
async fn ask_lease(mut lease: Lease, user: &str, query: &str) -> Result<ParameterisedOutcome, String> {
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask_backend(&mut lease, user, query)).await;
    match asked {
        Ok(Ok(outcome)) if lease.transaction_status == TransactionStatus::Idle => {
            lease.park();
            Ok(outcome)
        }
        Ok(Ok(_)) => {
            lease.discard(CloseReason::NotClean);
            Err("auth_query.query left a transaction open".to_owned())
        }
        Ok(Err(error)) => {
            lease.discard(CloseReason::Broken);
            Err(error.to_string())
        }
        // Dropped in the middle of an answer: the lease cancels what may still run, and closes.
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
    }
}

/// What the rows of the pipeline (BEGIN, the search_path, VALID UNTIL, the query, COMMIT) come to.
async fn judge(user: &str, query: &AuthQueryConfig, rows: &[Vec<Row>], iterations: u32) -> Answer {
    let rows_of = |index: usize| rows.get(index).map(Vec::as_slice).unwrap_or_default();
    let validity = rows_of(2).first().map_or(Validity::Unlimited, time_left);
    let password = match validity {
        Validity::Expired => None,
        Validity::For(_) | Validity::Unlimited => stored_password(user, rows_of(3)),
    };
    let user = match password {
        Some(password) => known_user(password, iterations).await,
        None => None,
    };
    let ttl = match (&user, validity) {
        (Some(_), Validity::For(left)) => query.cache_ttl.min(left),
        (Some(_), _) => query.cache_ttl,
        (None, _) => query.negative_ttl,
    };
    let since = Instant::now();
    Answer {
        user: user.map(Arc::new),
        since,
        until: since.checked_add(ttl).unwrap_or(since),
    }
}

async fn ask_backend(backend: &mut Backend, user: &str, query: &str) -> Result<ParameterisedOutcome, BackendError> {
    backend.make_neutral().await?;
    let none: &[&str] = &[];
    let name = &[user][..];
    let outcome = backend
        .query_with(&[
            ("BEGIN", none),
            ("SET LOCAL search_path = pg_catalog, pg_temp", none),
            (VALID_UNTIL, name),
            (query.trim_end().trim_end_matches(';'), name),
            ("COMMIT", none),
        ])
        .await?;
    if backend.transaction_status != TransactionStatus::Idle {
        backend.query("ROLLBACK").await?;
    }
    Ok(outcome)
}

enum Validity {
    Expired,
    For(Duration),
    Unlimited,
}

fn time_left(row: &Row) -> Validity {
    let text = |index: usize| row.get(index).and_then(Option::as_deref).map(String::from_utf8_lossy);
    if text(0).as_deref() == Some("t") {
        return Validity::Expired;
    }
    let seconds = text(1).and_then(|seconds| seconds.parse::<f64>().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map_or(Validity::Unlimited, Validity::For)
}

/// The password column of the query's only row, as PgBouncer has it: (user, password), or the password alone. NULL, an
/// empty one and another user's are none.
fn stored_password(user: &str, rows: &[Row]) -> Option<Zeroizing<String>> {
    let row = match rows {
        [] => return None,
        [row] => row,
        _ => {
            tracing::error!(user, "auth_query returned more than one row; the user can't log in");
            return None;
        }
    };
    let password = match row.as_slice() {
        [password] => password,
        [Some(name), password] if **name == *user.as_bytes() => password,
        [Some(_), _] => {
            tracing::error!(user, "auth_query returned another user's name; the user can't log in");
            return None;
        }
        [None, _] => return None,
        _ => {
            tracing::error!("auth_query must return one column (password) or two (user, password)");
            return None;
        }
    };
    let text = std::str::from_utf8(password.as_deref()?).ok()?;
    (!text.is_empty()).then(|| Zeroizing::new(text.to_owned()))
}

/// A hash or verifier as pg_authid has it; anything else is the password itself, for which a verifier is derived once.
async fn known_user(password: Zeroizing<String>, iterations: u32) -> Option<KnownUser> {
    let stored = match parse_verifier(&password) {
        Some(stored) => stored,
        None => credentials::derive_aside(password, iterations).await?,
    };
    Some(KnownUser { stored, upstream: None })
}

/// What is wrong with the lookup's own login is the operator's to know, not the client's.
fn unreached(key: &PoolKey, report: &Report) -> Report {
    tracing::warn!(pool = %key, %report, "auth_query can't be asked");
    Report::fatal(
        report.sqlstate,
        "the database could not be asked for the user's password",
    )
}

fn failed() -> Report {
    Report::fatal(SqlState::INTERNAL_ERROR, "auth_query failed").with_hint("pgsidecar's log tells why.")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn row(columns: &[Option<&'static str>]) -> Row {
        columns
            .iter()
            .map(|column| column.map(|text| Bytes::from_static(text.as_bytes())))
            .collect()
    }

    #[test]
    fn one_column_is_the_password_and_two_are_user_and_password() {
        let password = |rows: &[Row]| stored_password("app", rows).map(|text| text.to_string());
        assert_eq!(password(&[row(&[Some("p")])]).as_deref(), Some("p"));
        assert_eq!(password(&[row(&[Some("app"), Some("p")])]).as_deref(), Some("p"));
        for none in [
            vec![],
            vec![row(&[None])],
            vec![row(&[Some("")])],
            vec![row(&[Some("app"), None])],
            vec![row(&[Some("other"), Some("p")])],
            vec![row(&[None, Some("p")])],
            vec![row(&[Some("app"), Some("p"), Some("x")])],
            vec![row(&[])],
            vec![row(&[Some("p")]), row(&[Some("q")])],
        ] {
            assert_eq!(password(&none), None, "{none:?}");
        }
    }

    #[test]
    fn a_validity_that_ends_bounds_how_long_it_is_remembered() {
        assert!(matches!(time_left(&row(&[Some("t"), Some("-3")])), Validity::Expired));
        assert!(matches!(time_left(&row(&[Some("f"), Some("2.5")])), Validity::For(left) if left.as_millis() == 2500));
        assert!(matches!(time_left(&row(&[Some("f"), None])), Validity::Unlimited));
        assert!(matches!(time_left(&row(&[None, None])), Validity::Unlimited));
    }
}
