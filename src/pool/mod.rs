//! Who may use which backend. The only module that names bb8.
//!
//! [`registry`] finds the pool of a database and user, [`backends`] is one pool, [`lease`] the exclusive hold of one of
//! its backends, [`cancel_keys`] what a CancelRequest may stop. Below them: [`manager`] opens backends for bb8,
//! [`mod@listener`] hears notifications for those who listen, who say so at a desk ([`subscription`]) and find them in a
//! [`mailbox`]; [`notifiers`] knows who sent them. [`connect_failures`] tells waiters what failed, [`turnstile`] lets them pass
//! in order, [`line`] knows who waits, [`total_cap`] bounds all pools together, [`vacancy`] keeps databases empty that are to be
//! dropped, [`parked`] keeps released backends near their clients, [`pin_quota`] counts those that
//! are kept by clients, [`keeper`] watches the idle ones, [`mod@audit`] asks
//! released ones what they hold.
//!
//! A backend is idle in bb8, parked, in exactly one [`Lease`], or dedicated. bb8 0.9 stores and counts; its own retry,
//! lifetimes and idle watch are off, because it retries after 400 ms only, wakes no waiter when a connect fails, and
//! never looks at an idle connection.

mod audit;
mod backends;
pub mod cancel_keys;
mod connect_failures;
mod demand;
mod holder;
mod keeper;
mod knowledge;
mod lease;
mod line;
mod listener;
mod mailbox;
mod manager;
mod notifiers;
mod parked;
mod pin_quota;
mod record;
mod registry;
mod replacement_pace;
mod subscription;
mod timeout_report;
mod total_cap;
mod turnstile;
mod vacancy;
mod warm_settings;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use audit::surprise_labels;
pub use backends::{LeaseError, Pool, PoolStatus};
pub use cancel_keys::{CancelKeys, CancelSlot, Cancelled, ClientCancel, SecretLength};
pub use holder::{Holder, HolderState};
pub use knowledge::{Knowledge, StartupSettings};
pub use lease::Lease;
pub use notifiers::{MayNotify, Notifying};
pub use parked::Wish;
pub use registry::{LoadedTls, PoolKey, Pools};
pub use subscription::{Awaited, Subscription};
pub use vacancy::Vacancy;

/// A lock whose holder panicked is still good: everything under our locks is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random number from 0 to 1; a half where the system has none, since it only spreads things out.
fn random_share() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
