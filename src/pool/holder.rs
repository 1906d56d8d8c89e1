//! Who holds a backend, as the timeout's error and its log line tell it.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::cancel_keys::CancelSlot;
use super::lock;
use crate::net::PeerAddress;
use crate::virtual_session::pins::PinReason;

/// What a client does with the backend that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HolderState {
    /// A request is being answered.
    Active,
    /// A transaction is open and nothing runs.
    IdleInTransaction,
    /// It keeps the backend because of what it left in the session; the pin reason's label.
    Pinned(&'static str),
}

/// Where a holder is.
#[derive(Debug, Clone, Copy)]
pub enum HolderAddress {
    /// A client.
    Peer(PeerAddress),
    /// pgsidecar itself: what it does.
    Purpose(&'static str),
}

impl From<PeerAddress> for HolderAddress {
    fn from(peer: PeerAddress) -> Self {
        Self::Peer(peer)
    }
}

impl From<&'static str> for HolderAddress {
    fn from(purpose: &'static str) -> Self {
        Self::Purpose(purpose)
    }
}

impl std::fmt::Display for HolderAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Purpose(purpose) => f.write_str(purpose),
        }
    }
}

/// One client, as far as the pools know it. Made once per client and shared by all of its leases.
#[derive(Debug)]
pub struct Holder {
    client_id: u64,
    address: HolderAddress,
    cancel: Arc<CancelSlot>,
    is_idle_in_transaction: AtomicU8,
    /// What its client was told that its process id is; 0 where it was told none.
    process_id: AtomicU32,
    described: Mutex<Described>,
}

#[derive(Debug, Default, Clone)]
struct Described {
    application_name: Option<Arc<str>>,
    pin: Option<&'static str>,
}

impl Holder {
    /// `client_id` is unique in the process; `address` is for the log only, and made into text there.
    pub fn new(client_id: u64, address: impl Into<HolderAddress>, cancel: Arc<CancelSlot>) -> Arc<Self> {
        let (address, described) = (address.into(), Mutex::default());
        Arc::new(Self {
            client_id,
            address,
            cancel,
            is_idle_in_transaction: AtomicU8::new(0),
            process_id: AtomicU32::new(0),
            described,
        })
    }

    /// A holder inside pgsidecar, that no client can cancel.
    pub fn internal(purpose: &'static str) -> Arc<Self> {
        Self::new(0, purpose, Arc::new(CancelSlot::default()))
    }

    /// Whether it is pgsidecar itself.
    pub(crate) fn is_internal(&self) -> bool {
        self.client_id == 0
    }

    /// The number that affinity goes by.
    pub fn client_id(&self) -> u64 {
        self.client_id
    }

    /// Where cancels for this client find what it runs.
    pub fn cancel_slot(&self) -> &Arc<CancelSlot> {
        &self.cancel
    }

    /// The client was told this process id (BackendKeyData).
    pub fn set_process_id(&self, process_id: u32) {
        self.process_id.store(process_id, Ordering::Relaxed);
    }

    /// What its client was told that its process id is.
    pub fn process_id(&self) -> Option<u32> {
        Some(self.process_id.load(Ordering::Relaxed)).filter(|process_id| *process_id != 0)
    }

    /// The client's `application_name`, as it stands now.
    pub fn set_application_name(&self, name: impl Into<Arc<str>>) {
        lock(&self.described).application_name = Some(name.into());
    }

    /// A ReadyForQuery left the client in a transaction, or a new request began. One relaxed store.
    pub fn set_idle_in_transaction(&self, is_idle: bool) {
        self.is_idle_in_transaction.store(u8::from(is_idle), Ordering::Relaxed);
    }

    /// The client's pin, or that it has none any more.
    pub(crate) fn set_pin(&self, reason: Option<PinReason>) {
        lock(&self.described).pin = reason.map(|reason| reason.label());
    }

    /// What it does.
    pub fn state(&self) -> HolderState {
        match lock(&self.described).pin {
            Some(reason) => HolderState::Pinned(reason),
            None if self.is_idle_in_transaction.load(Ordering::Relaxed) != 0 => HolderState::IdleInTransaction,
            None => HolderState::Active,
        }
    }
}

impl std::fmt::Display for Holder {
    /// For the log: application_name, address, state.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let described = lock(&self.described).clone();
        let name = described
            .application_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("(no name)");
        write!(f, "{name:?} at {}", self.address)?;
        match self.state() {
            HolderState::Active => f.write_str(" active"),
            HolderState::IdleInTransaction => f.write_str(" idle in transaction"),
            HolderState::Pinned(reason) => write!(f, " pinned by {reason}"),
        }
    }
}
