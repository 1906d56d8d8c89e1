//! Memory goes back to the system behind clients that have left.
//!
//! glibc keeps what was freed: after ten thousand idle clients some 25 MB, for as long as the process lives. It gives pages
//! back when it is told to (malloc_trim(3)), which takes milliseconds, and so is said seldom: when most of the clients that
//! there were are gone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::drain::Drain;

/// How often the clients are counted.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Fewer that have left, with some 3 KiB each, are not worth it.
const LEFT_MIN: usize = 500;

/// Gives memory back until `stopped`.
pub(super) async fn keep_small(drain: Arc<Drain>, stopped: impl Future<Output = ()>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tide = Tide::default();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = look.tick() => if tide.has_ebbed(drain.clients()) {
                // Not on the thread that serves, which may be the only one.
                let _ = tokio::task::spawn_blocking(trim).await;
            },
            () = &mut stopped => return,
        }
    }
}

/// The most clients that there were since memory was given back, and how many at the last look.
#[derive(Debug, Default)]
struct Tide {
    high: usize,
    last: usize,
}

impl Tide {
    /// Whether half of them have left, enough to be worth it, and no more are leaving; then it counts anew.
    fn has_ebbed(&mut self, clients: usize) -> bool {
        self.high = self.high.max(clients);
        let is_leaving = clients < std::mem::replace(&mut self.last, clients);
        let has = !is_leaving && clients <= self.high / 2 && self.high - clients >= LEFT_MIN;
        if has {
            self.high = clients;
        }
        has
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it takes glibc's own locks, may be called from any thread at any time, and touches no memory that is in use
    // (malloc_trim(3)). No crate that we have offers it as a safe function.
    #[allow(unsafe_code, reason = "the only way to ask glibc for what was freed")]
    let released = unsafe { libc::malloc_trim(0) } != 0;
    tracing::debug!(released, "clients have left: freed memory was given back");
}

/// Other allocators give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_half_of_many_clients_have_left() {
        let mut tide = Tide::default();
        let counts = [100, 2000, 1001, 1001, 1000, 900, 901, 902, 400, 400, 0, 0];
        let given: Vec<usize> = (0..counts.len()).filter(|at| tide.has_ebbed(counts[*at])).collect();
        assert_eq!(given, [6, 9], "by place; what is left of a few is not worth it");
    }

    #[test]
    fn while_clients_are_leaving_their_memory_is_not_yet_there_to_be_given_back() {
        let mut tide = Tide::default();
        let counts = [2000, 700, 300, 0, 0, 0];
        let given: Vec<usize> = (0..counts.len()).filter(|at| tide.has_ebbed(counts[*at])).collect();
        assert_eq!(given, [4]);
    }

    #[test]
    fn a_few_clients_that_leave_are_not_worth_it() {
        let mut tide = Tide::default();
        let counts = [499, 0, 499, 0, 10];
        assert!(!counts.into_iter().any(|count| tide.has_ebbed(count)));
    }
}
