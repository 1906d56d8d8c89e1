//! Told to stop, tells when all clients are gone.
//!
//! The server owns a [`Drain`] and moves it through the phases; every client holds a [`DrainSignal`], which tells it
//! the phase, and a [`DrainGuard`], which counts it. What a phase means to a client is the client's business.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use std::task::{Context, Poll};

use tokio::sync::{Notify, watch};

/// How far the process has gone towards its end. Phases only ever go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Phase {
    /// Nobody asked us to stop.
    #[default]
    Serving,
    /// Not ready any more; clients go on until they leave by themselves.
    Draining,
    /// The deadline is there: clients between transactions get 57P01, the others at the end of theirs.
    ClosingIdle,
    /// Everyone gets 57P01 now.
    ClosingAll,
}

impl Phase {
    const fn from_u8(phase: u8) -> Self {
        match phase {
            0 => Self::Serving,
            1 => Self::Draining,
            2 => Self::ClosingIdle,
            _ => Self::ClosingAll,
        }
    }
}

/// The one who says when to stop. Dropping it means [`Phase::ClosingAll`]: nobody is left to wait for the clients.
pub struct Drain {
    shared: Arc<Shared>,
    sender: watch::Sender<Phase>,
}

#[derive(Debug)]
struct Shared {
    /// The same as in the watch channel, without its lock: clients look at it at every transaction boundary.
    phase: AtomicU8,
    clients: AtomicUsize,
    gone: Notify,
}

impl Drain {
    /// A process that serves.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            phase: AtomicU8::new(0),
            clients: AtomicUsize::new(0),
            gone: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
            sender: watch::Sender::new(Phase::Serving),
        }
    }

    /// Goes to `phase`; an earlier one than now changes nothing.
    pub fn advance(&self, phase: Phase) {
        self.sender.send_if_modified(|now| {
            if phase <= *now {
                return false;
            }
            *now = phase;
            // Under the channel's lock, so that two callers can't leave the older phase here.
            self.shared.phase.store(phase as u8, Ordering::Release);
            true
        });
    }

    /// The phase of now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.phase()
    }

    /// What a client (or a listener) listens to.
    #[must_use]
    pub fn signal(&self) -> DrainSignal {
        DrainSignal {
            shared: Arc::clone(&self.shared),
            receiver: self.sender.subscribe(),
        }
    }

    /// Clients that hold a [`DrainGuard`].
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::Acquire)
    }

    /// Ready as soon as no client is left, whatever the phase. Has no deadline of its own: race it with the phase's.
    pub async fn all_gone(&self) {
        loop {
            let mut gone = std::pin::pin!(self.shared.gone.notified());
            // Registered before the count is read, or the last guard could leave in between, unheard.
            gone.as_mut().enable();
            if self.clients() == 0 {
                return;
            }
            gone.await;
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.advance(Phase::ClosingAll);
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("phase", &self.phase())
            .field("clients", &self.clients())
            .finish()
    }
}

impl Shared {
    fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Acquire))
    }
}

/// Tells one client how far the drain has gone. Clone it for each; it is three words.
#[derive(Clone)]
pub struct DrainSignal {
    shared: Arc<Shared>,
    receiver: watch::Receiver<Phase>,
}

impl DrainSignal {
    /// The phase of now: one load.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.phase()
    }

    /// Waits until the phase is `at_least` this, and says which it is. Ready at once if it is already. May be dropped
    /// at any time and called again; nothing is missed.
    pub async fn changed_to(&mut self, at_least: Phase) -> Phase {
        // A closed channel is a dropped Drain, which has gone to the last phase before.
        let _ = self.receiver.wait_for(|phase| *phase >= at_least).await;
        self.phase()
    }

    /// Counts a client until the guard is dropped.
    pub fn guard(&self) -> DrainGuard {
        self.shared.clients.fetch_add(1, Ordering::AcqRel);
        DrainGuard {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl fmt::Debug for DrainSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DrainSignal").field(&self.phase()).finish()
    }
}

/// One client's ear for the drain. It listens once per phase and not once per transaction, so that looking costs one
/// load. To be polled by one task only.
pub struct DrainWatch {
    signal: DrainSignal,
    /// Waits for the phase behind `heard`.
    ear: Option<Pin<Box<dyn Future<Output = Phase> + Send>>>,
    heard: Phase,
}

impl DrainWatch {
    /// Listens by a signal of the client's own.
    #[must_use]
    pub fn new(signal: DrainSignal) -> Self {
        Self {
            signal,
            ear: None,
            heard: Phase::Serving,
        }
    }

    /// The phase of now: one load.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.signal.phase()
    }

    /// Ready when the phase is `at_least` this. Otherwise the task is woken at the next phase, whichever it is.
    pub fn poll_reached(&mut self, cx: &mut Context<'_>, at_least: Phase) -> Poll<()> {
        loop {
            let now = self.signal.phase();
            if now >= at_least {
                return Poll::Ready(());
            }
            if self.ear.is_some() && now == self.heard {
                return Poll::Pending;
            }
            self.heard = now;
            let (mut signal, next) = (self.signal.clone(), Phase::from_u8(now as u8 + 1));
            let mut ear: Pin<Box<dyn Future<Output = Phase> + Send>> =
                Box::pin(async move { signal.changed_to(next).await });
            if ear.as_mut().poll(cx).is_pending() {
                self.ear = Some(ear);
                return Poll::Pending;
            }
        }
    }

    /// Waits for a phase. Cancel-safe.
    pub async fn reached(&mut self, at_least: Phase) {
        std::future::poll_fn(|cx| self.poll_reached(cx, at_least)).await;
    }
}

impl fmt::Debug for DrainWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DrainWatch").field(&self.signal.phase()).finish()
    }
}

/// One client that a drain waits for.
#[must_use = "the client is waited for only while this lives"]
#[derive(Debug)]
pub struct DrainGuard {
    shared: Arc<Shared>,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.shared.clients.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.gone.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::mem::size_of_val;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn phases_go_forward_only() {
        let drain = Drain::new();
        drain.advance(Phase::ClosingIdle);
        drain.advance(Phase::Draining);
        assert_eq!(drain.phase(), Phase::ClosingIdle);
        assert_eq!(drain.signal().phase(), Phase::ClosingIdle);
    }

    #[tokio::test]
    async fn trap_90_a_client_waits_for_its_phase_and_is_told_of_a_later_one() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        let mut changed = std::pin::pin!(signal.changed_to(Phase::ClosingIdle));
        assert!(poll(changed.as_mut()).is_pending());
        drain.advance(Phase::Draining);
        assert!(poll(changed.as_mut()).is_pending());
        drain.advance(Phase::ClosingAll);
        assert_eq!(changed.await, Phase::ClosingAll);
        assert_eq!(drain.signal().changed_to(Phase::Draining).await, Phase::ClosingAll);
    }

    #[tokio::test]
    async fn a_wait_that_was_dropped_misses_nothing() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        assert!(poll(std::pin::pin!(signal.changed_to(Phase::Draining)).as_mut()).is_pending());
        drain.advance(Phase::Draining);
        assert_eq!(signal.changed_to(Phase::Draining).await, Phase::Draining);
    }

    #[tokio::test]
    async fn a_dropped_drain_closes_everyone() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        drop(drain);
        assert_eq!(signal.changed_to(Phase::ClosingAll).await, Phase::ClosingAll);
    }

    #[tokio::test]
    async fn all_gone_waits_for_the_last_guard() {
        let drain = Drain::new();
        drain.all_gone().await;
        let (first, second) = (drain.signal().guard(), drain.signal().guard());
        assert_eq!(drain.clients(), 2);
        let mut all_gone = std::pin::pin!(drain.all_gone());
        assert!(poll(all_gone.as_mut()).is_pending());
        drop(first);
        assert!(poll(all_gone.as_mut()).is_pending());
        drop(second);
        all_gone.await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ten_thousand_clients_hear_of_it_and_leave() {
        let drain = Drain::new();
        for _ in 0..10_000 {
            let (mut signal, guard) = (drain.signal(), drain.signal().guard());
            tokio::spawn(async move {
                signal.changed_to(Phase::ClosingIdle).await;
                drop(guard);
            });
        }
        drain.advance(Phase::ClosingIdle);
        drain.all_gone().await;
        assert_eq!(drain.clients(), 0);
    }

    #[test]
    fn an_idle_client_pays_little_for_listening() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        assert!(size_of_val(&signal) <= 24, "{}", size_of_val(&signal));
        assert!(size_of_val(&drain.signal().guard()) <= 8);
        let changed = signal.changed_to(Phase::ClosingIdle);
        // 192 bytes with tokio 1.54, inside the idle future of each client.
        assert!(size_of_val(&changed) <= 256, "{}", size_of_val(&changed));
    }
}
