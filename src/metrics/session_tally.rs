//! What one lease did, added up without an atomic and told to [`Metrics`] once, when the backend is given back.

use super::Metrics;
use super::labels::Direction;

/// Counts of one client since the last flush. The relay adds to its fields; a release flushes them, and a long
/// transfer now and then, so that a scrape sees it move.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SessionTally {
    /// ReadyForQuery messages that clients were sent for requests of theirs.
    pub queries: u64,
    /// Of those, the ones that ended a transaction (status `I`).
    pub transactions: u64,
    /// Requests that were answered without PostgreSQL, because it had accepted the setting's value before.
    pub setting_answers: u64,
    /// Bytes from the client to PostgreSQL.
    pub bytes_to_backend: u64,
    /// Bytes from PostgreSQL to the client.
    pub bytes_to_client: u64,
}

impl SessionTally {
    /// Adds everything to the process's counters and starts again from zero.
    pub fn flush_into(&mut self, metrics: &Metrics) {
        let tally = std::mem::take(self);
        let add = |counter: &prometheus::IntCounter, count: u64| {
            if count > 0 {
                counter.inc_by(count);
            }
        };
        add(&metrics.queries, tally.queries);
        add(&metrics.transactions, tally.transactions);
        add(&metrics.setting_answers, tally.setting_answers);
        add(&metrics.bytes[Direction::ToBackend.index()], tally.bytes_to_backend);
        add(&metrics.bytes[Direction::ToClient.index()], tally.bytes_to_client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_adds_once() {
        let metrics = Metrics::new();
        let mut tally = SessionTally {
            queries: 3,
            transactions: 2,
            setting_answers: 1,
            bytes_to_backend: 10,
            bytes_to_client: 100,
        };
        tally.flush_into(&metrics);
        tally.flush_into(&metrics);
        assert_eq!(tally, SessionTally::default());
        let now = metrics.snapshot();
        assert_eq!((now.queries, now.transactions, now.bytes), (3, 2, [10, 100]));
    }
}
