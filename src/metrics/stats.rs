//! The statistics line in the log: what happened since the last one.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Metrics;
use super::labels::{BackendState, ClientState, Direction};

/// The totals at one moment. Arrays are in the order of the label enum's `ALL`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// By [`ClientState`].
    pub clients: [u64; ClientState::ALL.len()],
    /// By [`BackendState`], all pools together.
    pub backends: [u64; BackendState::ALL.len()],
    /// `pgsidecar_transactions_total`.
    pub transactions: u64,
    /// `pgsidecar_queries_total`.
    pub queries: u64,
    /// By [`Direction`].
    pub bytes: [u64; Direction::ALL.len()],
    /// `pgsidecar_errors_total`, all SQLSTATEs together.
    pub errors: u64,
    /// Acquires of the pools that live now.
    pub acquires: u64,
    /// What those acquires took together.
    pub acquire_seconds: f64,
}

/// What lies between two snapshots. Its `Display` is the line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "each field is what the line calls it")]
pub struct StatsLine {
    pub clients_active: u64,
    pub clients_waiting: u64,
    pub clients_idle: u64,
    pub backends_active: u64,
    pub backends_pinned: u64,
    pub backends_idle: u64,
    pub transactions_per_second: f64,
    pub queries_per_second: f64,
    /// `None`: no backend was asked for.
    pub acquire_ms_average: Option<f64>,
    pub bytes_per_second_to_backend: f64,
    pub bytes_per_second_to_client: f64,
    /// Since the last line.
    pub errors: u64,
}

/// What happened between two snapshots of the same [`Metrics`].
#[must_use]
pub fn stats_line(previous: &Snapshot, now: &Snapshot) -> StatsLine {
    let seconds = now.at.saturating_duration_since(previous.at).as_secs_f64().max(0.001);
    #[allow(clippy::cast_precision_loss, reason = "a rate for a reader")]
    let rate = |now: u64, previous: u64| now.saturating_sub(previous) as f64 / seconds;
    // A pool that went took its acquires along; what is left can be less than before.
    let acquires = now.acquires.saturating_sub(previous.acquires);
    let acquire_seconds = now.acquire_seconds - previous.acquire_seconds;
    #[allow(clippy::cast_precision_loss, reason = "an average for a reader")]
    let acquire_ms_average =
        (acquires > 0 && acquire_seconds >= 0.0).then(|| acquire_seconds * 1000.0 / acquires as f64);
    StatsLine {
        clients_active: now.clients[ClientState::Active.index()],
        clients_waiting: now.clients[ClientState::Waiting.index()],
        clients_idle: now.clients[ClientState::Idle.index()],
        backends_active: now.backends[BackendState::Active.index()],
        backends_pinned: now.backends[BackendState::Pinned.index()],
        backends_idle: now.backends[BackendState::Idle.index()],
        transactions_per_second: rate(now.transactions, previous.transactions),
        queries_per_second: rate(now.queries, previous.queries),
        acquire_ms_average,
        bytes_per_second_to_backend: rate(now.bytes[0], previous.bytes[0]),
        bytes_per_second_to_client: rate(now.bytes[1], previous.bytes[1]),
        errors: now.errors.saturating_sub(previous.errors),
    }
}

impl fmt::Display for StatsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "clients {} active, {} waiting, {} idle; backends {} active, {} pinned, {} idle; {:.1} transactions/s, \
             {:.1} queries/s; ",
            self.clients_active,
            self.clients_waiting,
            self.clients_idle,
            self.backends_active,
            self.backends_pinned,
            self.backends_idle,
            self.transactions_per_second,
            self.queries_per_second,
        )?;
        match self.acquire_ms_average {
            Some(average) => write!(f, "acquire {average:.3} ms; ")?,
            None => write!(f, "no acquire; ")?,
        }
        write!(
            f,
            "{:.0} B/s to backends, {:.0} B/s to clients; {} errors",
            self.bytes_per_second_to_backend, self.bytes_per_second_to_client, self.errors,
        )
    }
}

/// Writes a statistics line every `interval` until `shutdown` is ready.
pub async fn stats_loop(metrics: Arc<Metrics>, interval: Duration, shutdown: impl Future<Output = ()>) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    // After a pause of the machine one line is enough.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut previous = metrics.snapshot();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = ticks.tick() => {
                let now = metrics.snapshot();
                log(&stats_line(&previous, &now));
                previous = now;
            }
        }
    }
}

fn log(line: &StatsLine) {
    tracing::info!(
        clients_active = line.clients_active,
        clients_waiting = line.clients_waiting,
        clients_idle = line.clients_idle,
        backends_active = line.backends_active,
        backends_pinned = line.backends_pinned,
        backends_idle = line.backends_idle,
        transactions_per_second = rounded(line.transactions_per_second),
        queries_per_second = rounded(line.queries_per_second),
        acquire_ms_average = line.acquire_ms_average.map(rounded),
        bytes_per_second_to_backend = rounded(line.bytes_per_second_to_backend),
        bytes_per_second_to_client = rounded(line.bytes_per_second_to_client),
        errors = line.errors,
        "statistics"
    );
}

/// Three digits behind the point are what a log is good for.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::SessionTally;
    use super::*;

    #[test]
    fn rates_are_per_second_and_the_average_is_of_this_interval() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app", "app");
        pool.reveal();
        pool.observe_acquire(Duration::from_secs(9));
        let previous = metrics.snapshot();
        let _client = metrics.client(ClientState::Waiting);
        SessionTally {
            queries: 40,
            transactions: 20,
            setting_answers: 0,
            bytes_to_backend: 100,
            bytes_to_client: 1000,
        }
        .flush_into(&metrics);
        pool.observe_acquire(Duration::from_millis(2));
        pool.observe_acquire(Duration::from_millis(4));
        let now = Snapshot {
            at: previous.at + Duration::from_secs(10),
            ..metrics.snapshot()
        };
        assert_eq!(
            stats_line(&previous, &now).to_string(),
            "clients 0 active, 1 waiting, 0 idle; backends 0 active, 0 pinned, 0 idle; 2.0 transactions/s, \
             4.0 queries/s; acquire 3.000 ms; 10 B/s to backends, 100 B/s to clients; 0 errors"
        );
    }

    #[test]
    fn a_pool_that_went_does_not_make_a_negative_average() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app", "app");
        pool.reveal();
        pool.observe_acquire(Duration::from_secs(9));
        let previous = metrics.snapshot();
        drop(pool);
        assert_eq!(stats_line(&previous, &metrics.snapshot()).acquire_ms_average, None);
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_loop_writes_a_line_per_interval_and_ends_with_its_shutdown() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _log = tracing::subscriber::set_default(subscriber);
        let shutdown = tokio::time::sleep(Duration::from_secs(150));
        stats_loop(Metrics::new(), Duration::from_secs(60), shutdown).await;
        let lines = String::from_utf8(sink.0.lock().expect("not poisoned").clone()).expect("text");
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.contains("queries_per_second"), "{lines}");
    }
}
