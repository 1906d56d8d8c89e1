//! What the clients of one pool share, and what was learned of its database: equal statements and settings, startup
//! parameters that PostgreSQL has accepted, and what its catalog says of routines and triggers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::{Holder, LeaseError, Pool, lock};
use crate::backend::{Backend, BackendError};
use crate::virtual_session::SharedLedger;
use crate::virtual_session::suspects::{SuspectKind, Suspects, suspects_query};
use crate::wire::{Report, SqlState};

/// Startup parameters that are remembered per pool; beyond it all are forgotten and tried anew.
const PROVEN_MAX: usize = 1000;
/// PostgreSQL's code for a setting that only a connection's start can set.
const CANT_CHANGE_RUNTIME_PARAM: &str = "55P02";

/// See the module.
#[derive(Debug)]
pub struct Knowledge {
    ledger: Arc<SharedLedger>,
    suspects: ArcSwap<Suspects>,
    catalog_read: AtomicBool,
    proven: Mutex<HashMap<(String, String), Proven>>,
}

#[derive(Debug, Clone)]
enum Proven {
    /// What `current_setting` says when it was set so.
    Value(String),
    /// It can be set at a connection's start only.
    AtStartOnly,
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
            suspects: ArcSwap::from_pointee(Suspects::every_mention()),
            catalog_read: AtomicBool::new(false),
            proven: Mutex::default(),
        }
    }

    /// Statements and settings that are equal between clients.
    pub fn ledger(&self) -> &Arc<SharedLedger> {
        &self.ledger
    }

    /// What the catalog says of routines and triggers; before it was read, that anything may be suspicious.
    pub fn suspects(&self) -> Arc<Suspects> {
        self.suspects.load_full()
    }

    /// A statement that may change routines or triggers was seen: until the catalog is read again nothing is trusted.
    pub fn doubt_catalog(&self) {
        self.catalog_read.store(false, Ordering::Release);
        self.suspects.store(Arc::new(Suspects::every_mention()));
    }

    /// Reads the catalog on a backend that is between transactions.
    pub async fn read_catalog(&self, backend: &mut Backend) -> Result<(), BackendError> {
        let outcome = backend.query(suspects_query()).await?;
        match outcome.error {
            None => {
                let rows = outcome.first_column.iter().flatten().filter_map(|row| {
                    let at = row.iter().position(|&byte| byte == b':')?;
                    let (kind, name) = row.split_at(at);
                    Some((SuspectKind::from_label(kind), name.get(1..)?))
                });
                self.suspects.store(Arc::new(Suspects::known(rows)));
                self.catalog_read.store(true, Ordering::Release);
            }
            Some(report) => tracing::warn!(%report, "the catalog of routines can't be read; unknown calls will pin"),
        }
        Ok(())
    }
}

impl Pool {
    /// Sees to it that the catalog was read once. A failure leaves everything suspicious, and is tried again.
    pub async fn know_catalog(self: &Arc<Self>) -> Result<(), LeaseError> {
        if self.knowledge().catalog_read.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut lease = self.lease(&Holder::internal("reading the catalog")).await?;
        if self.knowledge().catalog_read.load(Ordering::Acquire) {
            lease.park();
            return Ok(());
        }
        match self.knowledge().read_catalog(&mut lease).await {
            Ok(()) => lease.park(),
            Err(error) => tracing::warn!(%error, "the catalog of routines can't be read"),
        }
        Ok(())
    }

    /// What PostgreSQL makes of a client's startup parameters. A pair that was not tried before is tried on a backend.
    ///
    /// # Errors
    /// PostgreSQL's own refusal as a FATAL; or there is no backend to try it on.
    pub async fn prove(
        self: &Arc<Self>,
        holder: &Arc<Holder>,
        settings: &[(String, String)],
    ) -> Result<StartupSettings, Report> {
        let unknown: Vec<_> = {
            let proven = lock(&self.knowledge().proven);
            settings
                .iter()
                .filter(|pair| !is_custom(&pair.0) && !proven.contains_key(&key(pair)))
                .cloned()
                .collect()
        };
        if !unknown.is_empty() {
            self.try_settings(holder, &unknown).await?;
        }
        let proven = lock(&self.knowledge().proven);
        let mut canonical = Vec::with_capacity(settings.len());
        for pair in settings {
            match proven.get(&key(pair)) {
                Some(Proven::Value(value)) => canonical.push((pair.0.clone(), value.clone())),
                Some(Proven::AtStartOnly) => return Ok(StartupSettings::NeedOwnBackend),
                None => canonical.push(pair.clone()),
            }
        }
        Ok(StartupSettings::Follow(canonical))
    }

    async fn try_settings(self: &Arc<Self>, holder: &Arc<Holder>, unknown: &[(String, String)]) -> Result<(), Report> {
        let mut lease = self.lease(holder).await.map_err(|error| error.report())?;
        for pair in unknown {
            let tried = try_setting(&mut lease, pair).await.map_err(|error| {
                tracing::info!(%error, "a backend was lost while a startup parameter was tried");
                Report::fatal(
                    SqlState::CONNECTION_FAILURE,
                    "the connection to the database was lost during the login",
                )
            })?;
            match tried {
                Ok(proof) => {
                    let mut proven = lock(&self.knowledge().proven);
                    if proven.len() >= PROVEN_MAX {
                        proven.clear();
                    }
                    proven.insert(key(pair), proof);
                }
                Err(report) => {
                    lease.park();
                    return Err(report);
                }
            }
        }
        lease.park();
        Ok(())
    }
}

/// Tries one setting in a transaction that is rolled back. The inner error is PostgreSQL's refusal.
async fn try_setting(backend: &mut Backend, pair: &(String, String)) -> Result<Result<Proven, Report>, BackendError> {
    let sql = format!(
        "SELECT pg_catalog.set_config({}, {}, false)",
        crate::virtual_session::parameters::literal(&pair.0),
        crate::virtual_session::parameters::literal(&pair.1)
    );
    backend.query("BEGIN").await?;
    let outcome = backend.query(&sql).await?;
    backend.query("ROLLBACK").await?;
    if let Some(report) = outcome.error {
        if report.sqlstate.as_str() == CANT_CHANGE_RUNTIME_PARAM {
            return Ok(Ok(Proven::AtStartOnly));
        }
        return Ok(Err(report.with_severity(crate::wire::Severity::Fatal)));
    }
    let value = outcome.first_column.into_iter().flatten().next().unwrap_or_default();
    Ok(Ok(Proven::Value(String::from_utf8_lossy(&value).into_owned())))
}

/// `app.tenant_id` and the like: PostgreSQL takes any value, and even a trial would leave its trace on the backend.
fn is_custom(name: &str) -> bool {
    name.contains('.')
}

fn key(pair: &(String, String)) -> (String, String) {
    (pair.0.to_ascii_lowercase(), pair.1.clone())
}
