//! How many backends of a pool are kept by clients beyond their transactions.

use std::sync::atomic::{AtomicU32, Ordering};

use super::backends::Pool;
use super::holder::HolderState;
use crate::virtual_session::pins::PinReason;

/// Counts the leases that are pinned, or are about to be.
#[derive(Debug, Default)]
pub(super) struct PinQuota(AtomicU32);

impl PinQuota {
    /// One more, if there are fewer than `limit`.
    pub(super) fn try_take(&self, limit: u32) -> bool {
        let one_more = |taken: u32| (taken < limit).then(|| taken + 1);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_ok()
    }

    /// One more, whatever the limit: its pin was known too late to be refused.
    pub(super) fn take(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// One of those taken has ended.
    pub(super) fn give_back(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// Backends that clients keep beyond their transactions. Those of replication are outside the pool's size.
    pub(crate) fn pinned_count(&self) -> usize {
        let records = self.core.records();
        let pinned = records.iter().filter_map(|record| match record.holder()?.state() {
            HolderState::Pinned(reason) => Some(reason),
            HolderState::Active | HolderState::IdleInTransaction => None,
        });
        pinned
            .filter(|reason| *reason != PinReason::Replication.label())
            .count()
    }

    /// Whether no backend is left for clients that share.
    pub(crate) fn is_all_pinned(&self) -> bool {
        self.pinned_count() >= usize::try_from(self.admission.width()).unwrap_or(usize::MAX)
    }

    /// Says so in the log where one more pin has taken the last backend that others could share (trap 69).
    pub fn warn_if_all_are_pinned(&self) {
        if self.is_all_pinned() {
            tracing::warn!(
                pool = %self.key(),
                max_size = self.admission.width(),
                "every backend of the pool is pinned to one client; the others wait until one of these leaves"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_to_be_refused_counts_all_the_same() {
        let quota = PinQuota::default();
        assert!(!quota.try_take(0));
        assert!(quota.try_take(1) && !quota.try_take(1));
        quota.take();
        quota.give_back();
        assert!(!quota.try_take(1));
        quota.give_back();
        assert!(quota.try_take(1));
    }
}
