//! Databases that a client wants for itself: DROP DATABASE and the like fail while anyone is connected, and the pools are.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::sync::Notify;

use super::lock;
use super::registry::Registry;
use crate::backend::Connector;
use crate::config::UpstreamConfig;

/// The databases in which no backend may be opened now. One per process.
#[derive(Debug, Default)]
pub(crate) struct Vacancies {
    held: Mutex<Held>,
    freed: Notify,
    registry: OnceLock<Weak<Registry>>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    entries: Vec<(u64, Vacated)>,
}

/// A database of a server; without a name, all of that server's.
#[derive(Debug, Clone)]
struct Vacated {
    upstream: Arc<UpstreamConfig>,
    database: Option<Box<[u8]>>,
}

impl Vacated {
    fn is_of(&self, connector: &Connector) -> bool {
        let is_named = |name: &[u8]| name == connector.database.as_bytes();
        self.database.as_deref().is_none_or(is_named) && *self.upstream == *connector.upstream
    }
}

/// Keeps a database free of backends of ours, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Vacancy {
    vacancies: Arc<Vacancies>,
    number: u64,
}

impl Drop for Vacancy {
    fn drop(&mut self) {
        let number = self.number;
        lock(&self.vacancies.held).entries.retain(|(other, _)| *other != number);
        self.vacancies.freed.notify_waiters();
    }
}

impl Vacancies {
    pub(crate) fn attach(&self, registry: Weak<Registry>) {
        // Called once, by the registry.
        let _ = self.registry.set(registry);
    }

    /// Closes the idle backends of a database in every pool of that server, and holds back those that would be opened.
    /// `None` is a database whose name was not told: every one.
    pub(crate) fn vacate(self: &Arc<Self>, asker: &Connector, database: Option<&[u8]>, stays: bool) -> Vacancy {
        let vacated = Vacated {
            upstream: Arc::clone(&asker.upstream),
            database: database.map(Into::into),
        };
        let number = {
            let mut held = lock(&self.held);
            held.next += 1;
            let number = held.next;
            held.entries.push((number, vacated.clone()));
            number
        };
        if let Some(registry) = self.registry.get().and_then(Weak::upgrade) {
            for pool in registry.pools_where(|connector| vacated.is_of(connector)) {
                pool.vacate_idle(stays);
            }
        }
        Vacancy {
            vacancies: Arc::clone(self),
            number,
        }
    }

    /// Ready when a backend of this database may be opened.
    pub(crate) async fn wait_for(&self, connector: &Connector) {
        loop {
            let freed = self.freed.notified();
            if !self.is_held(connector) {
                return;
            }
            freed.await;
        }
    }

    pub(crate) fn is_held(&self, connector: &Connector) -> bool {
        lock(&self.held)
            .entries
            .iter()
            .any(|(_, vacated)| vacated.is_of(connector))
    }
}
