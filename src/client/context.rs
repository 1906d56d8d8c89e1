//! What every client's task is given: passed down by argument, never global, so that a test can make two of everything.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::auth_query::AuthQueryCache;
use super::credentials::{BadCredential, Credentials};
use super::warm::WarmClients;
use crate::config::{AuthMethod, ClientTlsConfig, ClientTlsMode, Config, ListenerConfig};
use crate::metrics::Metrics;
use crate::net::tls::{ClientTls, TlsConfigError};
use crate::pool::{CancelKeys, Pools};
use crate::protocol::scram::MockSecret;
use crate::relay::Exchange;

/// Exchanges that are kept for reuse: two buffers of 8 KiB each.
const SPARE_EXCHANGES_MAX: usize = 64;

/// Connections that are told at a time that there is no place for them.
const TURNED_AWAY_MAX: u32 = 64;

/// What a reload replaces as one: no client sees half of an old and half of a new configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Who may log in.
    pub credentials: Credentials,
    /// TLS towards clients; `None` where no listener has any.
    pub client_tls: Option<ClientTls>,
    /// The same for listeners on which clients must show a certificate.
    pub verifying_tls: Option<ClientTls>,
    /// What unknown users are answered with.
    pub mock: MockSecret,
}

/// Why a configuration can't be put into force.
#[derive(Debug, thiserror::Error)]
pub enum BadSnapshot {
    /// A certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    /// A user.
    #[error(transparent)]
    Credential(#[from] BadCredential),
    /// The system's generator.
    #[error("the system's random generator failed: {0}")]
    Random(#[from] getrandom::Error),
}

impl Snapshot {
    /// Loads certificates and derives verifiers.
    pub fn new(config: Arc<Config>, mock_key: [u8; 32]) -> Result<Self, BadSnapshot> {
        let modes = || {
            let own = config
                .listen
                .iter()
                .map(|listener| listener.tls.unwrap_or(config.tls.mode));
            own.chain([config.tls.mode])
        };
        let tls_of = |mode, is_wanted: bool| {
            let config = ClientTlsConfig {
                mode,
                ..config.tls.clone()
            };
            is_wanted.then(|| ClientTls::new(&config)).transpose()
        };
        let asks = |mode| matches!(mode, ClientTlsMode::Allow | ClientTlsMode::Require);
        let client_tls = tls_of(ClientTlsMode::Allow, modes().any(asks))?;
        let verifies = modes().any(|mode| mode == ClientTlsMode::VerifyFull);
        let verifying_tls = tls_of(ClientTlsMode::VerifyFull, verifies)?;
        let credentials = Credentials::derive(&config)?;
        let mock = MockSecret::new(mock_key, credentials.usual().scram_iterations);
        Ok(Self {
            config,
            credentials,
            client_tls,
            verifying_tls,
            mock,
        })
    }

    /// The TLS of a door; `None` where it has none.
    pub fn tls_for(&self, door: Door) -> Option<&ClientTls> {
        match door.tls {
            ClientTlsMode::Disable => None,
            ClientTlsMode::Allow | ClientTlsMode::Require => self.client_tls.as_ref(),
            ClientTlsMode::VerifyFull => self.verifying_tls.as_ref(),
        }
    }
}

/// The process, as a client's task sees it.
#[derive(Debug)]
pub struct ClientContext {
    snapshot: ArcSwap<Snapshot>,
    /// Reloads so far: clients look at it before every request.
    reloads: AtomicU64,
    /// The backends.
    pub pools: Arc<Pools>,
    /// Every figure.
    pub metrics: Arc<Metrics>,
    /// Every client's cancel key.
    pub cancel_keys: Arc<CancelKeys>,
    /// What auth.query said lately.
    pub auth_query: AuthQueryCache,
    #[allow(
        clippy::vec_box,
        reason = "they are handed out boxed: moving one costs a copy of its 800 bytes"
    )]
    spare_exchanges: Mutex<Vec<Box<Exchange>>>,
    /// Those that keep theirs.
    pub warm: Arc<WarmClients>,
    mock_key: [u8; 32],
    next_client: AtomicU64,
    /// How many connections the system has descriptors for.
    room: usize,
    connections: AtomicUsize,
    clients: AtomicUsize,
    unauthenticated: AtomicUsize,
    turned_away: AtomicUsize,
}

/// What a listener demands of its clients.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// How they prove who they are.
    pub auth: AuthMethod,
    /// Whether they may, must or can't use TLS.
    pub tls: ClientTlsMode,
}

impl Door {
    /// A listener's own settings over the general ones. Unix sockets have no TLS.
    pub fn new(listener: &ListenerConfig, config: &Config, is_unix: bool) -> Self {
        let tls = if is_unix {
            ClientTlsMode::Disable
        } else {
            listener.tls.unwrap_or(config.tls.mode)
        };
        Self {
            auth: listener.auth,
            tls,
        }
    }
}

/// One place of a bounded number, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    context: Arc<ClientContext>,
    counter: fn(&ClientContext) -> &AtomicUsize,
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.counter)(&self.context).fetch_sub(1, Ordering::Relaxed);
    }
}

impl ClientContext {
    /// The context of a process that has no clients yet.
    pub fn new(
        snapshot: Snapshot,
        mock_key: [u8; 32],
        pools: Arc<Pools>,
        metrics: Arc<Metrics>,
        room: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            reloads: AtomicU64::new(0),
            pools,
            metrics,
            cancel_keys: CancelKeys::new(),
            auth_query: AuthQueryCache::default(),
            spare_exchanges: Mutex::default(),
            warm: Arc::default(),
            mock_key,
            next_client: AtomicU64::new(1),
            room,
            connections: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            unauthenticated: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
        })
    }

    /// What is in force now. A login keeps the one it began with.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Reloads so far. What was looked up after one look at this is of now as long as the next look tells the same number.
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Acquire)
    }

    /// Loads and derives what another configuration needs, and changes nothing.
    pub fn prepare(&self, config: Arc<Config>) -> Result<Snapshot, BadSnapshot> {
        Snapshot::new(config, self.mock_key)
    }

    /// Puts another configuration into force for logins. Clients look for it when they are [told](Self::reloaded).
    pub fn replace(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.auth_query.clear();
    }

    /// Tells the clients that there is another configuration, here and in the pools.
    pub fn reloaded(&self) {
        self.reloads.fetch_add(1, Ordering::Release);
    }

    /// Buffers and queues for a busy client.
    pub fn take_exchange(&self) -> Box<Exchange> {
        let spare = self
            .spare_exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        spare.unwrap_or_default()
    }

    /// They are kept for the next one, up to a bound.
    pub fn give_back_exchange(&self, mut exchange: Box<Exchange>) {
        exchange.recycle();
        let mut spare = self.spare_exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_EXCHANGES_MAX {
            spare.push(exchange);
        }
    }

    /// A number that no other client of this process has.
    pub fn next_client(&self) -> u64 {
        self.next_client.fetch_add(1, Ordering::Relaxed)
    }

    /// A place among `limits.max_clients`, or none.
    pub fn client_place(self: &Arc<Self>, max: u32) -> Option<Place> {
        self.place(|context| &context.clients, max)
    }

    /// A place among `limits.max_unauthenticated`, or none.
    pub fn unauthenticated_place(self: &Arc<Self>, max: u32) -> Option<Place> {
        self.place(|context| &context.unauthenticated, max)
    }

    /// A place among the connections that there are descriptors for, or none.
    pub fn connection_place(self: &Arc<Self>) -> Option<Place> {
        self.place(
            |context| &context.connections,
            u32::try_from(self.room).unwrap_or(u32::MAX),
        )
    }

    /// A place among those who are being told that there is none; without one they aren't even told.
    pub fn turned_away_place(self: &Arc<Self>) -> Option<Place> {
        self.place(|context| &context.turned_away, TURNED_AWAY_MAX)
    }

    /// Clients connected now.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    fn place(self: &Arc<Self>, counter: fn(&Self) -> &AtomicUsize, max: u32) -> Option<Place> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let taken = counter(self).fetch_add(1, Ordering::Relaxed);
        let place = Place {
            context: self.clone(),
            counter,
        };
        (taken < max).then_some(place)
    }
}
