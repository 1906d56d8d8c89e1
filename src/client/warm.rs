//! Clients that come back every moment keep their buffers while they wait: what a short idle spell costs otherwise is a
//! good part of a transaction. A bounded number of them, and only as long as they do come back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How often those that have become quiet are told to give their buffers back.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The warm clients of a process.
#[derive(Debug, Default)]
pub struct WarmClients {
    places: Mutex<Vec<Arc<Shared>>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Shared {
    /// It has come back since the last sweep.
    used: AtomicBool,
    /// It has not, and is to go.
    over: AtomicBool,
    waker: Mutex<Waker>,
}

/// Leave to keep one's buffers while idle. Given back when it is dropped.
#[derive(Debug)]
pub struct WarmPlace {
    clients: Arc<WarmClients>,
    shared: Arc<Shared>,
}

impl WarmClients {
    /// A place, unless `max` have one.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<WarmPlace> {
        if self.count.load(Ordering::Relaxed) >= max {
            return None;
        }
        let mut places = lock(&self.places);
        if places.len() >= max {
            return None;
        }
        let shared = Arc::new(Shared {
            used: AtomicBool::new(true),
            over: AtomicBool::new(false),
            waker: Mutex::new(Waker::noop().clone()),
        });
        places.push(Arc::clone(&shared));
        self.count.store(places.len(), Ordering::Relaxed);
        Some(WarmPlace {
            clients: Arc::clone(self),
            shared,
        })
    }

    /// Tells those that have not come back since the last time.
    pub fn sweep(&self) {
        for place in lock(&self.places).iter() {
            if !place.used.swap(false, Ordering::Relaxed) {
                place.over.store(true, Ordering::Release);
                lock(&place.waker).wake_by_ref();
            }
        }
    }
}

impl WarmPlace {
    /// The client has come back.
    pub fn touch(&self) {
        self.shared.used.store(true, Ordering::Relaxed);
    }

    /// Ready when the client has been quiet for too long. Wakes the task that asked last.
    pub fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waker = lock(&self.shared.waker);
        if !waker.will_wake(cx.waker()) {
            waker.clone_from(cx.waker());
        }
        match self.shared.over.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for WarmPlace {
    fn drop(&mut self) {
        let mut places = lock(&self.clients.places);
        places.retain(|place| !Arc::ptr_eq(place, &self.shared));
        self.clients.count.store(places.len(), Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_over(place: &WarmPlace) -> bool {
        place.poll_over(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let clients = Arc::new(WarmClients::default());
        let first = clients.enter(2).unwrap();
        let _second = clients.enter(2).unwrap();
        assert!(clients.enter(2).is_none());
        drop(first);
        assert!(clients.enter(2).is_some());
        assert!(clients.enter(0).is_none());
    }

    #[test]
    fn who_did_not_come_back_between_two_sweeps_is_told() {
        let clients = Arc::new(WarmClients::default());
        let (busy, quiet) = (clients.enter(9).unwrap(), clients.enter(9).unwrap());
        clients.sweep();
        assert!(!is_over(&busy) && !is_over(&quiet));
        busy.touch();
        clients.sweep();
        assert!(!is_over(&busy) && is_over(&quiet));
    }

    #[tokio::test]
    async fn the_task_that_waits_is_woken() {
        let clients = Arc::new(WarmClients::default());
        let place = clients.enter(1).unwrap();
        let told = tokio::spawn(async move { std::future::poll_fn(|cx| place.poll_over(cx)).await });
        tokio::task::yield_now().await;
        clients.sweep();
        clients.sweep();
        told.await.unwrap();
        assert!(clients.enter(1).is_some());
    }
}
