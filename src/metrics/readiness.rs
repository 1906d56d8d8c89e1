//! Whether this process can serve: what `/readyz` answers from.

use std::sync::atomic::{AtomicBool, Ordering};

/// Three facts that outlive any one connection. Later outages don't make it unready: a sidecar that is taken out of
/// service because its database is down helps nobody; they show in `pgsidecar_upstream_up`.
#[derive(Debug, Default)]
pub struct Readiness {
    has_logged_in: AtomicBool,
    is_draining: AtomicBool,
    is_upstream_up: AtomicBool,
}

impl Readiness {
    /// A login to PostgreSQL has succeeded; that also means that it is up.
    pub fn upstream_login_succeeded(&self) {
        // Looked at first: this stands beside every connect, and a load doesn't take the cache line from the others.
        if !self.has_logged_in.load(Ordering::Relaxed) {
            self.has_logged_in.store(true, Ordering::Relaxed);
        }
        self.upstream_up(true);
    }

    /// Whether the last attempt to reach PostgreSQL reached it. A refused login did; a refused connection, a timeout or
    /// "the database system is starting up" did not.
    pub fn upstream_up(&self, is_up: bool) {
        self.is_upstream_up.store(is_up, Ordering::Relaxed);
    }

    /// The process was told to stop. There is no way back.
    pub fn set_draining(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether PostgreSQL was reached last time.
    #[must_use]
    pub fn is_upstream_up(&self) -> bool {
        self.is_upstream_up.load(Ordering::Relaxed)
    }

    /// `Ok`, or one line that says why not.
    ///
    /// # Errors
    /// While draining, and before the first login to PostgreSQL has succeeded.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err("draining: told to stop");
        }
        if !self.has_logged_in.load(Ordering::Relaxed) {
            return Err("no login to PostgreSQL has succeeded since start");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_after_the_first_login_and_through_later_outages() {
        let readiness = Readiness::default();
        assert_eq!(
            readiness.check(),
            Err("no login to PostgreSQL has succeeded since start")
        );
        readiness.upstream_login_succeeded();
        assert!(readiness.is_upstream_up());
        readiness.upstream_up(false);
        assert_eq!(readiness.check(), Ok(()));
        assert!(!readiness.is_upstream_up());
    }

    #[test]
    fn draining_is_not_ready_whatever_else_is() {
        let readiness = Readiness::default();
        readiness.upstream_login_succeeded();
        readiness.set_draining();
        assert!(readiness.check().is_err_and(|why| why.contains("draining")));
    }
}
