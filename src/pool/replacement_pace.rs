//! How fast backends may be closed because they hold traces of custom settings that the next client never named. Each costs
//! PostgreSQL a new connection: two kinds of clients that take turns must not make one for each transaction.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// On average, one in this time.
const INTERVAL: Duration = Duration::from_millis(100);
/// Replaced at once after a quiet spell: a whole pool may change its kind.
const BURST: u32 = 20;
/// A client waits no longer than this for its turn.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The pace of one pool.
#[derive(Debug, Default)]
pub(crate) struct ReplacementPace {
    /// When the next one would be due if all were spread evenly.
    due: Mutex<Option<Instant>>,
}

impl ReplacementPace {
    /// Takes the next turn. Returns how long that is away.
    pub(crate) fn take_turn(&self, now: Instant) -> Duration {
        let mut due = lock(&self.due);
        let at = due.unwrap_or(now).max(now);
        let wait = at.saturating_duration_since(now).saturating_sub(INTERVAL * BURST);
        if wait > WAIT_MAX {
            return WAIT_MAX;
        }
        *due = Some(at + INTERVAL);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_what_follows_is_spread() {
        let pace = ReplacementPace::default();
        let start = Instant::now();
        for _ in 0..=BURST {
            assert_eq!(pace.take_turn(start), Duration::ZERO);
        }
        for turn in 1..=50 {
            assert_eq!(pace.take_turn(start), INTERVAL * turn);
        }
        // However many wait, no one waits for ever.
        for _ in 0..1000 {
            assert_eq!(pace.take_turn(start), WAIT_MAX);
        }
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.take_turn(later), Duration::ZERO, "a quiet spell makes good");
    }
}
