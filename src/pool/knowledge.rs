//! What the clients of one pool share, and what was learned of its database: equal statements and settings, startup
//! parameters that PostgreSQL has accepted, and what its catalog says of routines and triggers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::manager::millis;
use super::{Holder, Pool, Wish, lock};
use crate::backend::parameters::is_settable;
use crate::backend::{Backend, BackendError, Row, ServerParameters};
use crate::config::PoolConfig;
use crate::metrics::CloseReason;
use crate::virtual_session::parameters::literal;
use crate::virtual_session::suspects::{SuspectKind, Suspects, suspects_query};
use crate::virtual_session::{Schemas, SharedLedger};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{Report, Severity, SqlState};

/// Startup parameters that are remembered per pool; beyond it all are forgotten and tried anew.
const PROVEN_MAX: usize = 1000;
/// PostgreSQL's code for a setting that only a connection's start can set.
const CANT_CHANGE_RUNTIME_PARAM: &str = "55P02";
/// The longest application_name (`NAMEDATALEN` - 1), in bytes.
const APPLICATION_NAME_LEN_MAX: usize = 63;
/// The setting's own row, if it is one that this server or a loaded library defines.
const IS_DEFINED: &str = "SELECT 1 FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) = pg_catalog.lower($1)";

/// See the module.
#[derive(Debug)]
pub struct Knowledge {
    ledger: Arc<SharedLedger>,
    suspects: ArcSwap<Suspects>,
    /// Theirs, for who only wants to know whether they are still the same.
    fingerprint: AtomicU64,
    /// `None` while nothing is known of them.
    schemas: ArcSwapOption<Schemas>,
    catalog_read: AtomicBool,
    /// When it was read last, in the pool's coarse milliseconds.
    catalog_read_at: AtomicU64,
    /// Who reads the catalog; the others wait.
    catalog_turn: tokio::sync::Mutex<()>,
    proven: Mutex<HashMap<(String, String), Proven>>,
}

#[derive(Debug, Clone)]
enum Proven {
    /// What `current_setting` says when it was set so.
    Value(String),
    /// It can be set at a connection's start only.
    AtStartOnly,
    /// A custom name (`app.tenant`) that no library defines: it takes any value. Kept with an empty value as the key.
    Placeholder,
}

/// What a client's startup parameters come to.
#[derive(Debug, PartialEq, Eq)]
pub enum StartupSettings {
    /// They can be applied to any backend: names with the values that PostgreSQL makes of them.
    Follow(Vec<(String, String)>),
    /// At least one can only be given at a connection's start: the client needs a backend of its own.
    NeedOwnBackend,
}

impl Knowledge {
    pub(crate) fn new() -> Self {
        // Without randomness the names are only guessable, and a client's own name that meets one is still refused.
        let nonce = getrandom::u64().unwrap_or_default();
        Self {
            ledger: Arc::new(SharedLedger::new(nonce)),
            fingerprint: AtomicU64::new(Suspects::every_mention().fingerprint()),
            suspects: ArcSwap::from_pointee(Suspects::every_mention()),
            schemas: ArcSwapOption::const_empty(),
            catalog_read: AtomicBool::new(false),
            catalog_read_at: AtomicU64::new(0),
            catalog_turn: tokio::sync::Mutex::const_new(()),
            proven: Mutex::default(),
        }
    }

    /// Statements and settings that are equal between clients.
    pub fn ledger(&self) -> &Arc<SharedLedger> {
        &self.ledger
    }

    /// What the catalog says of routines and triggers; before it was read, that anything may be suspicious.
    pub fn suspects(&self) -> arc_swap::Guard<Arc<Suspects>> {
        self.suspects.load()
    }

    /// The fingerprint of [`Self::suspects`], in one load.
    pub fn suspects_fingerprint(&self) -> u64 {
        self.fingerprint.load(Ordering::Acquire)
    }

    fn suspect(&self, suspects: Suspects) {
        let fingerprint = suspects.fingerprint();
        self.suspects.store(Arc::new(suspects));
        self.fingerprint.store(fingerprint, Ordering::Release);
    }

    /// Which schemas there are, if that is known; as old as what the catalog says of routines.
    pub fn schemas(&self) -> arc_swap::Guard<Option<Arc<Schemas>>> {
        self.schemas.load()
    }

    /// A statement that may change routines or triggers was seen: until the catalog is read again nothing is trusted.
    pub fn doubt_catalog(&self) {
        self.catalog_read.store(false, Ordering::Release);
        self.suspect(Suspects::every_mention());
    }

    /// The server is another one than before, or configured otherwise: what it made of startup parameters may differ, and
    /// what it parsed before would not be parsed so again.
    pub(crate) fn forget_what_follows_from_settings(&self) {
        lock(&self.proven).clear();
        self.ledger.forget();
    }

    /// Which of these reported settings have the server's own value, and not one that was set in the session.
    pub async fn servers_own(&self, backend: &mut Backend, names: &[Box<str>]) -> Result<Vec<Box<str>>, BackendError> {
        let literals: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let sql = format!(
            "SELECT name FROM pg_catalog.pg_settings WHERE source <> 'session' AND name IN ({})",
            literals.join(",")
        );
        let outcome = backend.query(&sql).await?;
        let own = outcome.first_column.iter().flatten();
        let own: Vec<&[u8]> = own.map(|name| &name[..]).collect();
        let names = names.iter().filter(|name| own.contains(&name.as_bytes()));
        Ok(names.cloned().collect())
    }

    /// What is known of a pair; nothing is asked.
    fn proof(&self, pair: &(String, String)) -> Option<Proven> {
        if is_plain_application_name(pair) {
            return Some(Proven::Value(pair.1.clone()));
        }
        let proven = lock(&self.proven);
        let custom = if is_custom(&pair.0) {
            proven.get(&(pair.0.to_ascii_lowercase(), String::new()))
        } else {
            None
        };
        custom
            .filter(|proof| matches!(proof, Proven::Placeholder))
            .or_else(|| proven.get(&key(pair)))
            .cloned()
    }

    fn remember(&self, pair: &(String, String), proof: Proven) {
        let key = match proof {
            Proven::Placeholder => (pair.0.to_ascii_lowercase(), String::new()),
            Proven::Value(_) | Proven::AtStartOnly => key(pair),
        };
        let mut proven = lock(&self.proven);
        if proven.len() >= PROVEN_MAX {
            proven.clear();
        }
        proven.insert(key, proof);
    }

    /// Reads the catalog on a backend that is between transactions.
    /// What may hang on it is learned anew: the values of `pool.warm_settings`.
    pub async fn read_catalog(&self, backend: &mut Backend, settings: &PoolConfig) -> Result<(), BackendError> {
        // A client's role or timeout is not ours.
        backend.make_neutral().await?;
        let outcome = backend.query(&catalog_query()).await?;
        match outcome.error {
            None => {
                let rows = outcome.first_column.iter().flatten().flat_map(|row| names_of(row));
                let suspects = Suspects::known(rows);
                if suspects.fingerprint() != self.suspects.load().fingerprint() {
                    self.ledger.answers.forget();
                }
                self.suspect(suspects);
                self.catalog_read.store(true, Ordering::Release);
            }
            Some(report) => tracing::warn!(%report, "the catalog of routines can't be read; unknown calls will pin"),
        }
        let outcome = backend.query(Schemas::query()).await?;
        let rows = outcome.first_column.iter().flatten().map(|row| &row[..]);
        let schemas = outcome.error.is_none().then(|| Schemas::from_rows(rows)).flatten();
        self.schemas.store(schemas.map(Arc::new));
        let count_max = usize::try_from(settings.setting_answers).unwrap_or(usize::MAX);
        self.try_warm_settings(backend, &settings.warm_settings, count_max)
            .await
    }
}

/// The rows of [`suspects_query`], gathered into few: each is a kind and, behind separators, its names.
fn catalog_query() -> String {
    format!(
        "SELECT suspect.kind || E'\\x01' || pg_catalog.string_agg(DISTINCT suspect.name, E'\\x01') FROM (\n{}\n) AS suspect \
         GROUP BY suspect.kind, pg_catalog.hashtext(suspect.name) % 16",
        suspects_query().trim_end().trim_end_matches(';')
    )
}

fn names_of(row: &[u8]) -> impl Iterator<Item = (SuspectKind, &[u8])> {
    let mut parts = row.split(|&byte| byte == 1);
    let kind = SuspectKind::from_label(parts.next().unwrap_or_default());
    parts.map(move |name| (kind, name))
}

impl Pool {
    /// Whether the catalog was read once.
    pub fn knows_catalog(&self) -> bool {
        self.knowledge().catalog_read.load(Ordering::Acquire)
    }

    /// Sees to it that the catalog was read once. Where it can't be read everything stays suspicious, and the next login
    /// tries again.
    pub fn begin_to_know_catalog(self: &Arc<Self>) {
        drop(self.reading_catalog());
    }

    /// The same, and waits for it no longer than this.
    pub async fn know_catalog(self: &Arc<Self>, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.reading_catalog()).await;
    }

    /// In a task of its own: a client that goes away takes no backend with it.
    fn reading_catalog(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let pool = Arc::clone(self);
        tokio::spawn(async move { pool.read_catalog_in_turn().await })
    }

    /// Reads the catalog again where what it told is older than `limit` and clients have asked the pool for backends
    /// since: DDL by another way than this pool is seen by this alone (trap 57).
    pub(crate) fn renew_catalog(self: &Arc<Self>, limit: Duration) {
        let (knowledge, now) = (self.knowledge(), self.core.now());
        let read_at = knowledge.catalog_read_at.load(Ordering::Acquire);
        let is_old = now.saturating_sub(read_at) >= millis(limit) && self.unasked_for() < now.saturating_sub(read_at);
        if !is_old || !knowledge.catalog_read.load(Ordering::Acquire) {
            return;
        }
        // Taken at once, so that the next tick does not begin a second reading.
        knowledge.catalog_read_at.store(now, Ordering::Release);
        let pool = Arc::clone(self);
        tokio::spawn(async move { pool.read_catalog_on_a_backend().await });
    }

    async fn read_catalog_in_turn(self: &Arc<Self>) {
        let knowledge = self.knowledge();
        let _turn = knowledge.catalog_turn.lock().await;
        if knowledge.catalog_read.load(Ordering::Acquire) {
            return;
        }
        self.read_catalog_on_a_backend().await;
    }

    async fn read_catalog_on_a_backend(self: &Arc<Self>) {
        let knowledge = self.knowledge();
        let Ok(mut lease) = self.lease(&Holder::internal("reading the catalog"), Wish::Any).await else {
            return;
        };
        let settings = self.settings();
        let limit = settings.reset_timeout;
        match tokio::time::timeout(limit, knowledge.read_catalog(&mut lease, &settings)).await {
            Ok(Ok(())) => lease.park(),
            Ok(Err(error)) => tracing::warn!(%error, "the catalog of routines can't be read"),
            Err(_) => tracing::warn!(?limit, "the catalog of routines could not be read in time"),
        }
        // Behind our own lease, which is no client's asking.
        knowledge.catalog_read_at.store(self.core.now(), Ordering::Release);
    }

    /// What PostgreSQL makes of a client's startup parameters. A pair that was not tried before is tried on a backend, unless
    /// a new backend reports just that by itself (`neutral`): Django's `client_encoding=UTF8` costs not even the first
    /// client a round trip.
    ///
    /// # Errors
    /// PostgreSQL's own refusal as a FATAL; or there is no backend to try it on.
    pub async fn prove(
        self: &Arc<Self>,
        holder: &Arc<Holder>,
        settings: &[(String, String)],
        neutral: &ServerParameters,
    ) -> Result<StartupSettings, Report> {
        let knowledge = self.knowledge();
        let proof = |pair: &(String, String)| {
            let reported = || is_reported(neutral, pair).then(|| Proven::Value(pair.1.clone()));
            knowledge.proof(pair).or_else(reported)
        };
        let unknown = || settings.iter().filter(|pair| proof(pair).is_none()).cloned();
        let unknown: Vec<_> = unknown().collect();
        let tried = if unknown.is_empty() {
            HashMap::new()
        } else {
            let (pool, holder) = (Arc::clone(self), Arc::clone(holder));
            let trial = tokio::spawn(async move { pool.try_settings(&holder, &unknown).await });
            trial.await.unwrap_or_else(|_| Err(lost()))?
        };
        let mut canonical = Vec::with_capacity(settings.len());
        for pair in settings {
            match tried.get(pair).cloned().or_else(|| proof(pair)) {
                Some(Proven::Value(value)) => canonical.push((pair.0.clone(), value)),
                Some(Proven::Placeholder) => canonical.push(pair.clone()),
                // Forgotten meanwhile: PostgreSQL itself decides.
                Some(Proven::AtStartOnly) | None => return Ok(StartupSettings::NeedOwnBackend),
            }
        }
        Ok(StartupSettings::Follow(canonical))
    }

    async fn try_settings(
        self: &Arc<Self>,
        holder: &Arc<Holder>,
        unknown: &[(String, String)],
    ) -> Result<HashMap<(String, String), Proven>, Report> {
        let mut lease = self.lease(holder, Wish::Any).await.map_err(|error| error.report())?;
        let limit = self.settings().reset_timeout;
        let mut tried = HashMap::new();
        for pair in unknown {
            let trial = tokio::time::timeout(limit, try_setting(&mut lease, pair)).await;
            let proof = match trial {
                Ok(Ok(Ok(proof))) => proof,
                Ok(Ok(Err(refusal))) => {
                    lease.park();
                    return Err(refusal);
                }
                Ok(Err(error)) => {
                    tracing::info!(%error, "a backend was lost while a startup parameter was tried");
                    return Err(lost());
                }
                Err(_) => {
                    tracing::info!(?limit, "a startup parameter could not be tried in time");
                    return Err(lost());
                }
            };
            self.knowledge().remember(pair, proof.clone());
            let leaves_trace = matches!(proof, Proven::Placeholder);
            tried.insert(pair.clone(), proof);
            if leaves_trace {
                // The name exists on this backend now, with an empty value, where others' sessions have none.
                lease.discard(CloseReason::NotClean);
                lease = self.lease(holder, Wish::Any).await.map_err(|error| error.report())?;
            }
        }
        lease.park();
        Ok(tried)
    }
}

/// Tries one setting in a transaction that is rolled back. The inner error is PostgreSQL's refusal.
async fn try_setting(backend: &mut Backend, pair: &(String, String)) -> Result<Result<Proven, Report>, BackendError> {
    // What a value comes to may depend on the one before: DateStyle `iso` keeps the order of day and month.
    backend.make_neutral().await?;
    let (name, value) = (pair.0.as_str(), pair.1.as_str());
    let outcome = backend
        .query_with(&[
            ("BEGIN", &[]),
            (IS_DEFINED, &[name]),
            ("SELECT pg_catalog.set_config($1, $2, false)", &[name, value]),
            ("ROLLBACK", &[]),
        ])
        .await?;
    if backend.transaction_status != TransactionStatus::Idle {
        backend.query("ROLLBACK").await?;
    }
    if let Some(report) = outcome.error {
        if report.sqlstate.as_str() == CANT_CHANGE_RUNTIME_PARAM {
            return Ok(Ok(Proven::AtStartOnly));
        }
        return Ok(Err(report.with_severity(Severity::Fatal)));
    }
    let first = |index: usize| outcome.rows.get(index).and_then(|rows: &Vec<Row>| rows.first());
    if is_custom(name) && first(1).is_none() {
        return Ok(Ok(Proven::Placeholder));
    }
    let value = first(2)
        .and_then(|row| row.first().cloned().flatten())
        .unwrap_or_default();
    Ok(Ok(Proven::Value(String::from_utf8_lossy(&value).into_owned())))
}

/// Whether a new backend has this value already, in PostgreSQL's own spelling: then it is one that can be set.
fn is_reported(neutral: &ServerParameters, (name, value): &(String, String)) -> bool {
    let mut reported = neutral.iter();
    is_settable(name) && reported.any(|(key, own)| key.eq_ignore_ascii_case(name) && own == value.as_bytes())
}

/// Most names are as unique as their clients, and PostgreSQL changes only those that are too long or not plain ASCII.
fn is_plain_application_name((name, value): &(String, String)) -> bool {
    name.eq_ignore_ascii_case("application_name")
        && value.len() <= APPLICATION_NAME_LEN_MAX
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// `app.tenant_id` and the like.
fn is_custom(name: &str) -> bool {
    name.contains('.')
}

fn key(pair: &(String, String)) -> (String, String) {
    (pair.0.to_ascii_lowercase(), pair.1.clone())
}

fn lost() -> Report {
    Report::fatal(
        SqlState::CONNECTION_FAILURE,
        "the connection to the database was lost during the login",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_plain_application_name_is_known_without_asking() {
        for (name, value, is_plain) in [
            ("application_name", "PostgreSQL JDBC Driver", true),
            ("Application_Name", "", true),
            ("application_name", "caf\u{e9}", false),
            ("application_name", "a\tb", false),
            ("search_path", "public", false),
        ] {
            assert_eq!(is_plain_application_name(&pair(name, value)), is_plain, "{value}");
        }
        assert!(!is_plain_application_name(&pair("application_name", &"x".repeat(64))));
    }

    #[test]
    fn what_a_new_backend_reports_by_itself_is_known_without_asking() {
        let neutral = [
            ("client_encoding", "UTF8"),
            ("is_superuser", "off"),
            ("TimeZone", "UTC"),
        ];
        let neutral = neutral.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let neutral = ServerParameters::new(neutral);
        for (name, value, is_known) in [
            ("client_encoding", "UTF8", true),
            ("Client_Encoding", "UTF8", true),
            ("timezone", "UTC", true),
            ("client_encoding", "utf8", false),
            ("is_superuser", "off", false),
            ("search_path", "UTF8", false),
        ] {
            assert_eq!(is_reported(&neutral, &pair(name, value)), is_known, "{name}={value}");
        }
    }

    #[test]
    fn a_placeholder_is_remembered_for_every_value_and_others_for_their_own() {
        let knowledge = Knowledge::new();
        knowledge.remember(&pair("App.Tenant", "1"), Proven::Placeholder);
        knowledge.remember(&pair("TimeZone", "utc"), Proven::Value("UTC".to_owned()));
        assert!(matches!(
            knowledge.proof(&pair("app.tenant", "2")),
            Some(Proven::Placeholder)
        ));
        assert!(matches!(
            knowledge.proof(&pair("timezone", "utc")),
            Some(Proven::Value(_))
        ));
        assert!(knowledge.proof(&pair("timezone", "UTC")).is_none());
        knowledge.forget_what_follows_from_settings();
        assert!(knowledge.proof(&pair("app.tenant", "2")).is_none());
    }
}
