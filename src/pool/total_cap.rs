//! `pool.max_total`: every open backend of every pool holds one place.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::lock;
use super::registry::Registry;
use super::turnstile::Turnstile;

/// The places of all pools together, handed out in the order of asking.
#[derive(Debug)]
pub(crate) struct TotalCap {
    places: Turnstile,
    /// Connects that wait for a place and for which none has been surrendered yet, in the order of asking.
    wants: Mutex<Vec<Listed>>,
    /// The length of `wants`: all that a release looks at while nobody waits.
    unmet: AtomicUsize,
    last_want: AtomicU64,
    registry: OnceLock<Weak<Registry>>,
}

/// A place under `pool.max_total`.
#[derive(Debug)]
#[must_use]
pub(crate) struct TotalPlace(Arc<TotalCap>);

impl Drop for TotalPlace {
    fn drop(&mut self) {
        self.0.places.give_back();
    }
}

/// A want on the list.
#[derive(Debug)]
struct Listed {
    number: u64,
    /// Which pool wants: its own releases serve it without closing anything.
    pool_number: u64,
    want: Want,
}

/// How badly a connect wants its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Its pool has other backends.
    Hungry,
    /// Its pool has none: those who ask it can't be served at all.
    Starved,
}

impl TotalCap {
    pub(crate) fn new(max_total: u32) -> Arc<Self> {
        Arc::new(Self {
            places: Turnstile::new(max_total),
            wants: Mutex::default(),
            unmet: AtomicUsize::new(0),
            last_want: AtomicU64::new(0),
            registry: OnceLock::new(),
        })
    }

    /// Where idle backends to evict are found.
    pub(crate) fn attach(&self, registry: Weak<Registry>) {
        let _ = self.registry.set(registry);
    }

    pub(crate) fn set_width(&self, max_total: u32) {
        self.places.set_width(max_total);
    }

    pub(crate) fn width(&self) -> u32 {
        self.places.width()
    }

    pub(crate) fn try_take(self: &Arc<Self>) -> Option<TotalPlace> {
        self.places.try_pass().then(|| TotalPlace(Arc::clone(self)))
    }

    /// Tells the pools apart.
    pub(crate) fn next_pool_number(&self) -> u64 {
        self.last_want.fetch_add(1, Ordering::Relaxed)
    }

    /// A place, made by closing another pool's idle backend where there is one. Waits in line otherwise; a backend that
    /// is released meanwhile may be surrendered. Cancel-safe.
    pub(crate) async fn take(self: &Arc<Self>, pool_number: u64, want: Want) -> TotalPlace {
        if let Some(place) = self.try_take() {
            return place;
        }
        let _want = ListedWant::new(Arc::clone(self), pool_number, want);
        if let Some(registry) = self.registry.get().and_then(Weak::upgrade) {
            registry.evict_idle_backend();
        }
        self.places.pass().await;
        TotalPlace(Arc::clone(self))
    }

    /// Asked when a backend is released: is its place to be given up for a connect that waits? Each wait takes one.
    ///
    /// A pool whose own clients wait gives up a place only for a pool that has none, or two busy pools would trade
    /// logins for ever.
    pub(crate) fn claims_released(&self, pool_number: u64, own_clients_wait: bool) -> bool {
        if self.unmet.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.change_wants(|wants| {
            let met = wants.iter().position(|listed| {
                listed.pool_number != pool_number && (listed.want == Want::Starved || !own_clients_wait)
            });
            met.map(|index| wants.remove(index)).is_some()
        })
    }

    fn change_wants<T>(&self, change: impl FnOnce(&mut Vec<Listed>) -> T) -> T {
        let mut wants = lock(&self.wants);
        let changed = change(&mut wants);
        self.unmet.store(wants.len(), Ordering::Release);
        changed
    }
}

/// One wait for a place. Gone from the list once a place was surrendered for it, or it ended.
struct ListedWant {
    cap: Arc<TotalCap>,
    number: u64,
}

impl ListedWant {
    fn new(cap: Arc<TotalCap>, pool_number: u64, want: Want) -> Self {
        let number = cap.last_want.fetch_add(1, Ordering::Relaxed);
        cap.change_wants(|wants| {
            wants.push(Listed {
                number,
                pool_number,
                want,
            })
        });
        Self { cap, number }
    }
}

impl Drop for ListedWant {
    fn drop(&mut self) {
        self.cap
            .change_wants(|wants| wants.retain(|listed| listed.number != self.number));
    }
}
