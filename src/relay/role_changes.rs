//! Counts the changes of roles that pass through: what was asked about a role before one may be old.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Exchange, Parties};
use crate::wire::backend_message::TransactionStatus;

/// How often roles may have changed through this process. One per process, told before a client sees that its change holds.
#[derive(Debug, Default)]
pub struct RoleChanges(AtomicU64);

impl RoleChanges {
    /// Roles may have changed just now.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// What was asked after one look at this is of now as long as the next look tells the same number.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Exchange {
    /// A ReadyForQuery is about to be told: what changed roles may hold from here on.
    pub(super) fn roles_at_ready(&mut self, status: TransactionStatus, parties: &Parties<'_>) {
        if self.roles_changed && status == TransactionStatus::Idle {
            parties.rules.role_changes.note();
            // What was sent behind this request may be what changes them.
            self.roles_changed = !self.pipeline.is_quiet();
        }
    }

    /// Nothing will tell what became of the requests under way.
    pub(super) fn roles_in_doubt(&mut self, parties: &Parties<'_>) {
        if std::mem::take(&mut self.roles_changed) {
            parties.rules.role_changes.note();
        }
    }
}
