//! Gauges as values: whoever is counted holds one, so a count can't drift when a future is dropped or panics.

use std::sync::Arc;

use super::Metrics;
use super::labels::{BackendState, ClientState};
use super::pool_metrics::PoolMetrics;

/// Counts one logged-in client under its state until it is dropped.
#[must_use = "the client is counted only while this lives"]
#[derive(Debug)]
pub struct ClientGauge {
    metrics: Arc<Metrics>,
    state: ClientState,
}

impl ClientGauge {
    pub(super) fn new(metrics: Arc<Metrics>, state: ClientState) -> Self {
        metrics.clients[state.index()].inc();
        Self { metrics, state }
    }

    /// Counts it under another state from now on. The same state again costs nothing.
    pub fn set(&mut self, state: ClientState) {
        if state != self.state {
            self.metrics.clients[state.index()].inc();
            self.metrics.clients[self.state.index()].dec();
            self.state = state;
        }
    }

    /// What it is counted under.
    #[must_use]
    pub fn state(&self) -> ClientState {
        self.state
    }
}

impl Drop for ClientGauge {
    fn drop(&mut self) {
        self.metrics.clients[self.state.index()].dec();
    }
}

/// Counts one backend of a pool under its state until it is dropped.
#[must_use = "the backend is counted only while this lives"]
#[derive(Debug)]
pub struct BackendGauge {
    pool: Arc<PoolMetrics>,
    state: BackendState,
}

impl BackendGauge {
    pub(super) fn new(pool: Arc<PoolMetrics>, state: BackendState) -> Self {
        pool.backends[state.index()].inc();
        Self { pool, state }
    }

    /// Counts it under another state from now on. The same state again costs nothing.
    pub fn set(&mut self, state: BackendState) {
        if state != self.state {
            self.pool.backends[state.index()].inc();
            self.pool.backends[self.state.index()].dec();
            self.state = state;
        }
    }

    /// What it is counted under.
    #[must_use]
    pub fn state(&self) -> BackendState {
        self.state
    }

    /// The pool that it is counted for.
    #[must_use]
    pub fn pool(&self) -> &Arc<PoolMetrics> {
        &self.pool
    }
}

impl Drop for BackendGauge {
    fn drop(&mut self) {
        self.pool.backends[self.state.index()].dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_moves_between_states_and_leaves_none_behind() {
        let metrics = Metrics::new();
        let mut gauge = metrics.client(ClientState::Idle);
        gauge.set(ClientState::Waiting);
        gauge.set(ClientState::Active);
        gauge.set(ClientState::Active);
        assert_eq!(metrics.snapshot().clients, [1, 0, 0]);
        drop(gauge);
        assert_eq!(metrics.snapshot().clients, [0, 0, 0]);
    }

    #[test]
    fn a_backend_is_counted_for_its_own_pool() {
        let metrics = Metrics::new();
        let (ours, theirs) = (metrics.pool("app", "app"), metrics.pool("other", "app"));
        let mut gauge = ours.backend(BackendState::Connecting);
        gauge.set(BackendState::Pinned);
        assert_eq!(ours.backends_in(BackendState::Pinned), 1);
        assert_eq!(ours.backends_in(BackendState::Connecting), 0);
        assert_eq!(theirs.backends_in(BackendState::Pinned), 0);
        drop(gauge);
        assert_eq!(ours.backends_in(BackendState::Pinned), 0);
    }

    #[test]
    fn a_gauge_is_two_words() {
        assert!(std::mem::size_of::<ClientGauge>() <= 16);
    }
}
