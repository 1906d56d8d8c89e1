//! What a server asked for at its last login, so that the next login can begin with the answer to it: a round trip less.
//!
//! Kept for one connector: host, port, database, user, and whether TLS is in between. A login that began so and failed, for
//! whatever reason, proves nothing: it is done again the plain way, and for a while all are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long logins are plain behind one that began early and failed.
const PAUSE: Duration = Duration::from_secs(60);

/// Shared by all logins of a connector.
#[derive(Debug, Clone, Default)]
pub struct EarlyLogin(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    last: Option<Offer>,
    paused_until: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Offer {
    is_tls: bool,
    mechanisms: Vec<String>,
}

/// A login that begins early. Dropped without [`Self::succeeded`], it has failed.
#[derive(Debug)]
pub(super) struct EarlyAttempt<'m> {
    memory: &'m EarlyLogin,
    mechanisms: Vec<String>,
    has_succeeded: bool,
}

impl EarlyLogin {
    /// What to expect of the server, if anything.
    pub(super) fn begin(&self, is_tls: bool) -> Option<EarlyAttempt<'_>> {
        let memory = self.lock();
        if memory.paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let offer = memory.last.as_ref().filter(|offer| offer.is_tls == is_tls)?;
        Some(EarlyAttempt {
            memory: self,
            mechanisms: offer.mechanisms.clone(),
            has_succeeded: false,
        })
    }

    /// A login has succeeded behind this offer; an empty one was none.
    pub(super) fn learn(&self, is_tls: bool, mechanisms: &[String]) {
        self.lock().last = (!mechanisms.is_empty()).then(|| Offer {
            is_tls,
            mechanisms: mechanisms.to_vec(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EarlyAttempt<'_> {
    pub(super) fn mechanisms(&self) -> Vec<String> {
        self.mechanisms.clone()
    }

    pub(super) fn succeeded(mut self) {
        self.has_succeeded = true;
    }
}

impl Drop for EarlyAttempt<'_> {
    fn drop(&mut self) {
        if !self.has_succeeded {
            self.memory.lock().paused_until = Instant::now().checked_add(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_begins_early_where_the_last_one_tells_how_and_none_has_failed() {
        let memory = EarlyLogin::default();
        assert!(memory.begin(true).is_none(), "nothing is known");
        memory.learn(true, &["SCRAM-SHA-256".to_owned()]);
        assert!(memory.begin(false).is_none(), "with TLS it was another offer");
        let attempt = memory.begin(true).unwrap();
        assert_eq!(attempt.mechanisms(), ["SCRAM-SHA-256"]);
        attempt.succeeded();
        drop(memory.begin(true).unwrap());
        assert!(memory.begin(true).is_none(), "it failed a moment ago");
    }

    #[test]
    fn a_server_that_asks_for_nothing_is_expected_to_ask_for_nothing() {
        let memory = EarlyLogin::default();
        memory.learn(false, &["SCRAM-SHA-256".to_owned()]);
        memory.learn(false, &[]);
        assert!(memory.begin(false).is_none());
    }
}
