//! How many leases wait for a connect: an opened backend nobody waits for any more is not worth a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts those who wait.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    waiting: AtomicUsize,
    gone: Notify,
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Wanting(Arc<Demand>);

impl Demand {
    pub(crate) fn begin(self: &Arc<Self>) -> Wanting {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Wanting(Arc::clone(self))
    }

    pub(crate) fn is_some(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Waits until nobody waits.
    pub(crate) async fn gone(&self) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if !self.is_some() {
                return;
            }
            gone.await;
        }
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.gone.notify_waiters();
        }
    }
}
