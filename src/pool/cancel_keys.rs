//! Our BackendKeyData → what its client runs right now. A cancel reaches that query or none (traps 71–74).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::lock;
use crate::backend::CancelTarget;
use crate::backend::cancel::{CancelSent, InFlight};
use crate::metrics::CancelOutcome;
use crate::wire::startup_packet::CancelKey;

/// Locks that the map of keys is spread over.
const SHARDS: usize = 16;
/// Side connections to PostgreSQL at a time; each costs the server a process. The rest wait, up to their deadline.
const CONCURRENT_MAX: usize = 32;
/// Linux's largest process id: above it, a key of ours can't name a real backend.
const PROCESS_ID_MIN: u32 = (1 << 22) + 1;
/// Drivers read an Int32, and some print it: it stays positive.
const PROCESS_ID_MAX: u32 = i32::MAX as u32;
/// The longest secret of a cancel key that we give, in bytes.
const SECRET_LEN_MAX: usize = 32;

/// Every client's key. One per process.
#[derive(Debug)]
pub struct CancelKeys {
    shards: [Mutex<HashMap<u32, Entry>>; SHARDS],
    concurrent: Semaphore,
}

struct Entry {
    secret: Box<[u8]>,
    slot: Arc<CancelSlot>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

/// How long the secret of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretLength {
    /// Protocol 3.0: 4 bytes.
    Short,
    /// Protocol 3.2: 32 bytes.
    Long,
}

/// A client's key, for as long as this lives.
#[derive(Debug)]
pub struct ClientCancel {
    /// What the client is given in BackendKeyData.
    pub key: CancelKey,
    /// What a CancelRequest with it finds.
    pub slot: Arc<CancelSlot>,
    keys: Arc<CancelKeys>,
}

impl Drop for ClientCancel {
    fn drop(&mut self) {
        lock(self.keys.shard(self.key.process_id)).remove(&self.key.process_id);
    }
}

impl CancelKeys {
    /// No keys yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            concurrent: Semaphore::new(CONCURRENT_MAX),
        })
    }

    /// A key that no other client has: a process id that no process can have, a secret from the system's generator.
    ///
    /// # Errors
    /// The system's generator failed.
    pub fn register(self: &Arc<Self>, length: SecretLength) -> Result<ClientCancel, getrandom::Error> {
        let secret_len = match length {
            SecretLength::Short => 4,
            SecretLength::Long => SECRET_LEN_MAX,
        };
        // One system call for both.
        let mut number = [0; 4];
        let mut random = [0; 4 + SECRET_LEN_MAX];
        getrandom::fill(&mut random)?;
        let (first, rest) = random.split_at(number.len());
        number.copy_from_slice(first);
        let secret: Box<[u8]> = rest.get(..secret_len).unwrap_or(rest).into();
        let slot = Arc::new(CancelSlot::default());
        loop {
            let process_id = PROCESS_ID_MIN + u32::from_ne_bytes(number) % (PROCESS_ID_MAX - PROCESS_ID_MIN + 1);
            let mut shard = lock(self.shard(process_id));
            if let std::collections::hash_map::Entry::Vacant(vacant) = shard.entry(process_id) {
                vacant.insert(Entry {
                    secret: secret.clone(),
                    slot: Arc::clone(&slot),
                });
                let key = CancelKey { process_id, secret };
                return Ok(ClientCancel {
                    key,
                    slot,
                    keys: Arc::clone(self),
                });
            }
            drop(shard);
            getrandom::fill(&mut number)?;
        }
    }

    /// Carries a CancelRequest out. Nothing is ever answered to who sent it; the outcome is for the metrics.
    ///
    /// Takes `limit` at most (pool.cancel_timeout).
    pub async fn cancel(&self, key: &CancelKey, limit: Duration) -> CancelOutcome {
        let deadline = Instant::now() + limit;
        let Some(slot) = self.find(key) else {
            return CancelOutcome::UnknownKey;
        };
        let (target, in_flight) = match slot.strike() {
            Strike::Idle => return CancelOutcome::Idle,
            Strike::Noted => return CancelOutcome::Dequeued,
            Strike::Send(target, in_flight) => (target, in_flight),
        };
        let Ok(Ok(_turn)) = timeout_at(deadline, self.concurrent.acquire()).await else {
            return CancelOutcome::TimedOut;
        };
        if !slot.still_runs_on(&target) {
            return CancelOutcome::Idle;
        }
        let sent = target.send(deadline).await;
        drop(in_flight);
        match sent {
            CancelSent::Landed => CancelOutcome::Forwarded,
            CancelSent::NotSent => CancelOutcome::Idle,
            CancelSent::Overdue => CancelOutcome::TimedOut,
        }
    }

    /// The slot of a key, secrets compared in constant time.
    fn find(&self, key: &CancelKey) -> Option<Arc<CancelSlot>> {
        let shard = lock(self.shard(key.process_id));
        let entry = shard.get(&key.process_id)?;
        bool::from(entry.secret.ct_eq(&key.secret)).then(|| Arc::clone(&entry.slot))
    }

    fn shard(&self, process_id: u32) -> &Mutex<HashMap<u32, Entry>> {
        let index = usize::try_from(process_id).unwrap_or(0) % SHARDS;
        &self.shards[index]
    }
}

/// What one client runs now, as a cancel sees it.
#[derive(Debug, Default)]
pub struct CancelSlot {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
enum Running {
    /// Nothing of its own: a cancel is ignored, and no ReadyForQuery is owed for it.
    #[default]
    Idle,
    /// It stands in line for a backend.
    Waiting { cancelled: bool, waker: Option<Waker> },
    /// Its request is with a backend.
    Leased(Arc<CancelTarget>),
}

/// What a cancel found.
enum Strike {
    Idle,
    /// The client's own task has been told.
    Noted,
    Send(Arc<CancelTarget>, InFlight),
}

/// Whether a cancel came for a client before its request reached a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Cancelled {
    /// It is to be answered 57014, unsent.
    Yes,
    /// None came.
    No,
}

impl CancelSlot {
    fn strike(&self) -> Strike {
        match &mut *lock(&self.running) {
            Running::Idle => Strike::Idle,
            Running::Waiting { cancelled, waker } => {
                *cancelled = true;
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
                Strike::Noted
            }
            // Announced under the lock: the lease's end takes it too, and sees the cancel or precedes it.
            Running::Leased(target) => Strike::Send(Arc::clone(target), target.announce()),
        }
    }

    fn still_runs_on(&self, target: &Arc<CancelTarget>) -> bool {
        matches!(&*lock(&self.running), Running::Leased(current) if Arc::ptr_eq(current, target))
    }

    /// The client stands in line from now on, until the guard is dropped or it has its lease.
    pub(crate) fn begin_waiting(self: &Arc<Self>) -> Waiting {
        *lock(&self.running) = Running::Waiting {
            cancelled: false,
            waker: None,
        };
        Waiting(Arc::clone(self))
    }

    /// The client has its backend; or a cancel was faster and the lease must not be used.
    pub(crate) fn begin_lease(&self, target: &Arc<CancelTarget>) -> Cancelled {
        let mut running = lock(&self.running);
        let cancelled = matches!(&*running, Running::Waiting { cancelled: true, .. });
        *running = if cancelled {
            Running::Idle
        } else {
            Running::Leased(Arc::clone(target))
        };
        if cancelled { Cancelled::Yes } else { Cancelled::No }
    }

    /// The client's part of the lease is over, though it may still be cleaned: no cancel finds the backend by this slot any
    /// more.
    pub(crate) fn end_lease(&self) {
        *lock(&self.running) = Running::Idle;
    }

    /// Ready when a cancel came for the client while it waits.
    pub(crate) fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *lock(&self.running) {
            Running::Waiting { cancelled: true, .. } => Poll::Ready(()),
            Running::Waiting { waker, .. } => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => Poll::Pending,
        }
    }
}

/// A place in line that a cancel can take away. Dropped, the client runs nothing.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<CancelSlot>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut running = lock(&self.0.running);
        if let Running::Waiting { .. } = &*running {
            *running = Running::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn trap_74_keys_are_unique_and_name_no_process() {
        let keys = CancelKeys::new();
        let clients: Vec<_> = (0..1000).map(|_| keys.register(SecretLength::Short).unwrap()).collect();
        let mut ids: Vec<_> = clients.iter().map(|client| client.key.process_id).collect();
        assert!(ids.iter().all(|id| *id > 1 << 22 && i32::try_from(*id).is_ok()));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1000);
        assert_eq!(keys.register(SecretLength::Long).unwrap().key.secret.len(), 32);
    }

    #[tokio::test]
    async fn trap_73_a_wrong_secret_or_a_gone_client_is_an_unknown_key() {
        let keys = CancelKeys::new();
        let client = keys.register(SecretLength::Short).unwrap();
        let key = client.key.clone();
        let mut wrong = key.clone();
        wrong.secret[0] ^= 1;
        assert_eq!(keys.cancel(&wrong, LIMIT).await, CancelOutcome::UnknownKey);
        let longer = CancelKey {
            process_id: key.process_id,
            secret: vec![0; 32].into(),
        };
        assert_eq!(keys.cancel(&longer, LIMIT).await, CancelOutcome::UnknownKey);
        assert_eq!(keys.cancel(&key, LIMIT).await, CancelOutcome::Idle);
        drop(client);
        assert_eq!(keys.cancel(&key, LIMIT).await, CancelOutcome::UnknownKey);
    }

    #[tokio::test]
    async fn trap_72_a_waiting_client_is_told_and_an_idle_one_is_not() {
        let keys = CancelKeys::new();
        let client = keys.register(SecretLength::Short).unwrap();
        let waiting = client.slot.begin_waiting();
        assert_eq!(keys.cancel(&client.key, LIMIT).await, CancelOutcome::Dequeued);
        let mut context = Context::from_waker(Waker::noop());
        assert!(client.slot.poll_cancelled(&mut context).is_ready());
        drop(waiting);
        assert_eq!(keys.cancel(&client.key, LIMIT).await, CancelOutcome::Idle);
        let _waiting = client.slot.begin_waiting();
        assert!(
            client.slot.poll_cancelled(&mut context).is_pending(),
            "an old cancel does not hit the next request"
        );
    }
}
