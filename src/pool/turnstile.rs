//! A first-come, first-served gate whose width changes while people stand in line.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, TryAcquireError};

/// Counts who may pass at a time. Places are handed out in the order of asking; nobody overtakes the line.
///
/// Passing is by the caller's own guard: what [`try_pass`](Self::try_pass) or [`pass`](Self::pass) granted must be
/// given back once.
#[derive(Debug)]
pub(crate) struct Turnstile {
    /// Tokio's semaphore is fair: a returned permit goes to the first in line before anyone else sees it.
    places: Semaphore,
    width: AtomicU32,
    /// Places to swallow as they come back, after the width was made smaller than what was taken.
    debt: AtomicUsize,
}

impl Turnstile {
    pub(crate) fn new(width: u32) -> Self {
        Self {
            places: Semaphore::new(usize_of(width)),
            width: AtomicU32::new(width),
            debt: AtomicUsize::new(0),
        }
    }

    /// A place, if one is free and nobody is in line.
    pub(crate) fn try_pass(&self) -> bool {
        match self.places.try_acquire() {
            Ok(permit) => {
                permit.forget();
                true
            }
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => false,
        }
    }

    /// Waits in line for a place. Cancel-safe: a dropped future leaves the line.
    pub(crate) async fn pass(&self) {
        if let Ok(permit) = self.places.acquire().await {
            permit.forget();
        }
    }

    /// Gives a place back.
    pub(crate) fn give_back(&self) {
        let in_debt = self
            .debt
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| debt.checked_sub(1))
            .is_ok();
        if !in_debt {
            self.places.add_permits(1);
        }
    }

    /// How many may pass at a time.
    pub(crate) fn width(&self) -> u32 {
        self.width.load(Ordering::Acquire)
    }

    /// Changes the width. Who has passed keeps the place; a smaller width is reached as places come back.
    ///
    /// Callers take turns (the registry's lock): two at a time would both see the same old width.
    pub(crate) fn set_width(&self, width: u32) {
        let old = self.width.swap(width, Ordering::AcqRel);
        for _ in old..width {
            self.give_back();
        }
        let surplus = usize_of(old.saturating_sub(width));
        let forgotten = self.places.forget_permits(surplus);
        self.debt.fetch_add(surplus - forgotten, Ordering::AcqRel);
    }
}

fn usize_of(width: u32) -> usize {
    usize::try_from(width).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_narrower_turnstile_swallows_places_as_they_come_back() {
        let turnstile = Turnstile::new(3);
        assert!(turnstile.try_pass() && turnstile.try_pass());
        turnstile.set_width(1);
        assert!(!turnstile.try_pass());
        turnstile.give_back();
        assert!(!turnstile.try_pass(), "one is still taken and one is allowed");
        turnstile.give_back();
        assert!(turnstile.try_pass());
        assert!(!turnstile.try_pass());
        turnstile.set_width(3);
        assert!(turnstile.try_pass() && turnstile.try_pass());
        assert!(!turnstile.try_pass());
    }

    #[tokio::test]
    async fn nobody_overtakes_the_line_and_who_leaves_it_loses_nothing() {
        let turnstile = Arc::new(Turnstile::new(1));
        assert!(turnstile.try_pass());
        let mut first = tokio_test_task(&turnstile);
        let mut second = tokio_test_task(&turnstile);
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        turnstile.give_back();
        assert!(!turnstile.try_pass(), "the place is the first one's in line");
        drop(first);
        assert!(poll(&mut second).is_ready());
    }

    type Passing = std::pin::Pin<Box<dyn Future<Output = ()>>>;

    fn tokio_test_task(turnstile: &Arc<Turnstile>) -> Passing {
        let turnstile = Arc::clone(turnstile);
        Box::pin(async move { turnstile.pass().await })
    }

    fn poll(passing: &mut Passing) -> std::task::Poll<()> {
        passing
            .as_mut()
            .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
