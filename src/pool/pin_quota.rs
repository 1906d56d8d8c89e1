//! How many backends of a pool are kept by clients beyond their transactions.

use std::sync::atomic::{AtomicU32, Ordering};

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
