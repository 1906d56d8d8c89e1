//! The connection that listens for all clients of a pool: opened at the first LISTEN, closed when nobody listens.
//!
//! It is no backend of the pool's: nobody leases it, and `pool.max_size` does not count it; `pool.max_total` does.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use super::manager::PoolCore;
use super::subscription::Round;
use super::total_cap::{TotalPlace, Want};
use crate::backend::{Backend, BackendError, ConnectFailure};
use crate::config::ListenOnLoss;
use crate::error;
use crate::metrics::{BackendGauge, BackendState, CloseReason};
use crate::protocol::Violation;
use crate::wire::backend_message::{Notification, ReportFields};
use crate::wire::{BackendTag, Report, compose};

/// How long it stays when nobody listens: clients that come and go don't cost a login each.
const LINGER: Duration = Duration::from_secs(1);
/// Between two rounds for nothing but to know the senders.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// Between two attempts to open it again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// It is silent for as long as nobody notifies, and that is no reason to end it.
const NEVER_TIMED_OUT: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
     WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout')";

/// Why a connection is no listener any more.
enum End {
    /// Nobody listens.
    Deserted,
    /// It could not be opened, and nobody has lost anything by that.
    NotOpened(Report),
    /// Whoever listened may have missed something.
    Lost(Report),
}

/// Listens for the pool until nobody wants it to.
pub(super) async fn run(core: Arc<PoolCore>) {
    let mut pause = PAUSE.0;
    let mut has_listened = false;
    loop {
        let end = match open(&core).await {
            Ok(mut connection) => {
                pause = PAUSE.0;
                has_listened = true;
                connection.serve().await
            }
            Err(report) if has_listened => End::Lost(report),
            Err(report) => End::NotOpened(report),
        };
        let resumes = core.settings.load().listen_on_loss == ListenOnLoss::Resume && !core.is_closed();
        match end {
            End::Deserted => return,
            End::NotOpened(report) => {
                tracing::warn!(pool = %core.key, %report, "the listener could not be opened; clients listen on backends of their own");
                core.desk.give_up();
                return;
            }
            End::Lost(report) => {
                tracing::warn!(pool = %core.key, %report, resumes, "the listener was lost");
                core.desk
                    .lose((!resumes).then(|| error::listener_lost(report)).as_ref());
                if !resumes {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        if core.desk.close_if_deserted() {
            return;
        }
    }
}

/// The open connection and its place under the caps.
struct Connection {
    core: Arc<PoolCore>,
    backend: Backend,
    /// What the pool's backends were opened under when it was.
    generation: u64,
    closed_for: CloseReason,
    _gauge: BackendGauge,
    _place: TotalPlace,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.core.metrics.backend_closed(self.closed_for);
    }
}

async fn open(core: &Arc<PoolCore>) -> Result<Connection, Report> {
    let limit = core.settings.load().reset_timeout;
    let generation = core.generation();
    let gauge = core.pool_metrics.backend(BackendState::Listening);
    let opening = async {
        let place = core.total_cap.take(core.number, Want::Hungry).await;
        let started = Instant::now();
        let connector = core.connector.load_full();
        core.vacancies.wait_for(&connector).await;
        let options = core.login_options.load_full();
        let mut backend = match connector.connect(&options).await {
            Ok(backend) => backend,
            Err(ConnectFailure::Refused(report) | ConnectFailure::Unavailable(report)) => return Err(report),
        };
        core.pool_metrics.backend_connected(started.elapsed());
        backend.begin_use();
        let prepared = backend.query(NEVER_TIMED_OUT).await.map_err(report_of)?;
        match prepared.error {
            Some(report) => Err(report),
            None => Ok((backend, place)),
        }
    };
    let opened = timeout(limit, opening)
        .await
        .unwrap_or_else(|_| Err(error::listener_not_open()));
    let (backend, place) = opened?;
    tracing::debug!(pool = %core.key, process_id = ?backend.cancel_target().process_id(), "the listener is open");
    Ok(Connection {
        core: Arc::clone(core),
        backend,
        generation,
        closed_for: CloseReason::Broken,
        _gauge: gauge,
        _place: place,
    })
}

impl Connection {
    async fn serve(&mut self) -> End {
        let mut next_due = Instant::now();
        let mut deserted_since = None;
        loop {
            if self.core.is_closed() || self.core.generation() != self.generation {
                self.closed_for = CloseReason::Reload;
                return End::Lost(error::shutting_down());
            }
            if let Some(round) = self.core.desk.next_round(Instant::now() >= next_due) {
                if let Err(report) = self.run_round(round).await {
                    return End::Lost(report);
                }
                next_due = Instant::now() + ROUND_PAUSE;
                continue;
            }
            deserted_since = match self.core.desk.is_deserted() {
                true => deserted_since.or_else(|| Some(Instant::now())),
                false => None,
            };
            let leave_at = deserted_since.unwrap_or_else(Instant::now) + LINGER;
            let core = Arc::clone(&self.core);
            tokio::select! {
                message = self.backend.next_message() => {
                    if let Err(report) = message.map_err(report_of).and_then(|message| self.hear(message.tag, &message.body)) {
                        return End::Lost(report);
                    }
                }
                () = core.desk.news.notified() => {}
                () = tokio::time::sleep_until(next_due), if core.desk.is_round_due() => {}
                () = tokio::time::sleep_until(leave_at), if deserted_since.is_some() => {
                    if self.core.desk.close_if_deserted() {
                        self.closed_for = CloseReason::SessionEnd;
                        self.backend.end_use();
                        return End::Deserted;
                    }
                }
            }
        }
    }

    /// One Query, within `pool.reset_timeout`. The notifications that come with its reply are heard before it is answered.
    async fn run_round(&mut self, round: Round) -> Result<(), Report> {
        let limit = self.core.settings.load().reset_timeout;
        let refusal = match timeout(limit, self.exchange(&round.sql)).await {
            Ok(done) => done?,
            Err(_) => return Err(error::listener_not_open()),
        };
        match refusal {
            None => self.core.desk.finish(round),
            Some(report) if self.core.desk.refuse(&round) => {
                tracing::info!(pool = %self.core.key, %report, "the listener was refused a channel");
            }
            Some(report) => return Err(report),
        }
        Ok(())
    }

    async fn exchange(&mut self, sql: &[u8]) -> Result<Option<Report>, Report> {
        let mut out = BytesMut::new();
        compose::query(&mut out, sql);
        let sent = self.backend.stream.write_all(&out).await;
        sent.map_err(|error| report_of(error.into()))?;
        let mut refusal = None;
        loop {
            let message = self.backend.next_message().await.map_err(report_of)?;
            match BackendTag::from_byte(message.tag) {
                Some(BackendTag::ReadyForQuery) => return Ok(refusal),
                Some(BackendTag::ErrorResponse) => {
                    let fields =
                        ReportFields::parse(&message.body).map_err(|_| report_of(unreadable("ErrorResponse")))?;
                    refusal = Some(fields.to_report());
                }
                _ => self.hear(message.tag, &message.body)?,
            }
        }
    }

    fn hear(&self, tag: u8, body: &[u8]) -> Result<(), Report> {
        if BackendTag::from_byte(tag) != Some(BackendTag::NotificationResponse) {
            return Ok(());
        }
        let heard = Notification::parse(body).map_err(|_| report_of(unreadable("NotificationResponse")))?;
        self.core.desk.deliver(heard.process_id, heard.channel, heard.payload);
        Ok(())
    }
}

fn unreadable(message: &'static str) -> BackendError {
    Violation::Malformed {
        message,
        cause: crate::wire::Malformed::Value,
    }
    .into()
}

/// What the log, or a client, is told of it: PostgreSQL's own words where there are some.
fn report_of(error: BackendError) -> Report {
    match error {
        BackendError::Fatal(report) => report,
        error => {
            tracing::info!(%error, "the listener's connection failed");
            error::listener_not_open()
        }
    }
}
