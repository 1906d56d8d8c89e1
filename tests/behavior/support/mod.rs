//! What the tests stand on: a real PostgreSQL, pgsidecar as a child process, a client that speaks raw bytes, a scripted
//! PostgreSQL, and the command-line clients. Every wait in here has a deadline; nothing sleeps for a guessed time.

#![allow(dead_code, reason = "each behaviour uses what it needs")]

pub mod certificates;
pub mod fake_backend;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod raw_client;
pub mod scram;
pub mod sidecar;
pub mod slow_link;

use std::time::Duration;

/// How long any single step may take before the test fails. Generous: two cores build and test at once.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Polls `condition` until it yields a value, and fails the test with `what` at the deadline.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let polling = async {
        loop {
            ticks.tick().await;
            if let Some(value) = condition().await {
                return value;
            }
        }
    };
    tokio::time::timeout(3 * DEADLINE, polling)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within the deadline"))
}
