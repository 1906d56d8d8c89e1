//! What the status page shows, given by the server: admin knows no pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Looks at the process and says what it sees. Called on a thread where blocking harms no client.
#[derive(Clone)]
pub struct StatusSource(Arc<dyn Fn() -> Status + Send + Sync>);

impl StatusSource {
    /// Asks `look` each time that the page is asked for.
    pub fn new(look: impl Fn() -> Status + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    pub(super) fn look(&self) -> Status {
        (self.0)()
    }
}

impl fmt::Debug for StatusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusSource")
    }
}

/// The process at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Since the process started.
    pub uptime: Duration,
    /// Every bound address.
    pub listening: Vec<String>,
    /// Where backends go, without secrets.
    pub upstream: String,
    /// `serving`, or what a drain has come to.
    pub phase: String,
    /// Every live pool.
    pub pools: Vec<PoolStatus>,
}

/// One pool at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs, reason = "each field is the column of the same name")]
pub struct PoolStatus {
    pub database: String,
    pub user: String,
    pub mode: String,
    pub active: u64,
    pub pinned: u64,
    pub idle: u64,
    pub connecting: u64,
    pub max_size: u32,
    /// Clients that wait for a backend.
    pub waiting: u64,
    /// How long the first of them has; `None` when none waits.
    pub oldest_wait: Option<Duration>,
}
