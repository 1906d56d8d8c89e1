//! What failed connects mean for those who wait: told at once, tried again with back-off, remembered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep_until};

use super::demand::Demand;
use super::line::Line;
use super::lock;
use super::manager::ConnectError;
use crate::backend::ConnectFailure;
use crate::wire::{Report, SqlState};

/// The first pause after a server was not reached; doubled up to the longest, less a random share.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// A server that comes back is noticed within this.
const PAUSE_LONGEST: Duration = Duration::from_millis(500);
/// How long a refused login is answered without asking again: accounts get locked by those who hammer.
const REFUSAL_FIRST: Duration = Duration::from_millis(500);
/// The longest such time, and that of a database that does not exist.
const REFUSAL_LONGEST: Duration = Duration::from_secs(5);
/// The longest pause of connects that nobody waits for, after refusals.
const UNWANTED_LONGEST: Duration = Duration::from_secs(15);
/// How long a password that was right before, and may be changing now, is tried again before clients are told.
const ROTATION_MAX: Duration = Duration::from_secs(10);
/// The same failure over and over is one line per this time.
const LOGGED_AGAIN: Duration = Duration::from_secs(30);

/// The failures of one pool's connects.
#[derive(Debug)]
pub(crate) struct ConnectFailures {
    published: Mutex<Option<ConnectError>>,
    /// Those who are told.
    line: Arc<Line>,
    state: Mutex<State>,
    /// Who may try while the server is not reached: one at a time, each after its pause.
    probing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    unreached: u32,
    refusals: u32,
    next_at: Option<Instant>,
    refusal: Option<(Report, Instant)>,
    /// When a connect that nobody waits for may be tried after a refusal.
    unwanted_at: Option<Instant>,
    /// Since when a password that may change is refused.
    rotating_since: Option<Instant>,
    last: Option<Report>,
    /// What the log was told last of a failure, and when.
    logged: Option<(Report, Instant)>,
}

impl ConnectFailures {
    pub(crate) fn new(line: Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            published: Mutex::default(),
            line,
            state: Mutex::default(),
            probing: tokio::sync::Mutex::const_new(()),
        })
    }

    /// The failure that the line was told last.
    pub(crate) fn published(&self) -> Option<ConnectError> {
        lock(&self.published).clone()
    }

    /// Tells those who wait. Called from bb8's error sink, when bb8 has forgotten the connect: who asks again then gets
    /// a new one.
    pub(crate) fn publish(&self, error: ConnectError) {
        *lock(&self.published) = Some(error);
        self.line.ring();
    }

    /// Waits for this connect's turn: none while all is well; one at a time, after a pause, while the server is not
    /// reached (trap 79). `Err`: nobody wants it any more.
    pub(crate) async fn turn(&self, demand: &Demand) -> Result<Option<MutexGuard<'_, ()>>, ConnectError> {
        if lock(&self.state).next_at.is_none() {
            return Ok(None);
        }
        let turn = tokio::select! {
            turn = self.probing.lock() => turn,
            () = demand.gone() => return Err(ConnectError::NotWanted),
        };
        let Some(next_at) = lock(&self.state).next_at else {
            return Ok(None);
        };
        tokio::select! {
            () = sleep_until(next_at) => Ok(Some(turn)),
            () = demand.gone() => Err(ConnectError::NotWanted),
        }
    }

    /// Whether a connect that nobody waits for may be tried now.
    pub(crate) fn is_calm(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        state.next_at.is_none_or(|at| at <= now) && state.unwanted_at.is_none_or(|at| at <= now)
    }

    /// Whether the server was not reached last time.
    pub(crate) fn is_unreached(&self) -> bool {
        lock(&self.state).next_at.is_some()
    }

    /// A refusal that is recent enough to be repeated without asking.
    /// With when it ends to be so.
    pub(crate) fn remembered_refusal(&self, now: Instant) -> Option<(Report, Instant)> {
        lock(&self.state).refusal.clone().filter(|(_, until)| now < *until)
    }

    /// What a failure means for those who wait. A password that PostgreSQL no longer takes, of a pool whose password
    /// `rotates` and was right before, is waited for a while: the file or command may be about to change (trap 88).
    pub(crate) fn softened(&self, failure: ConnectFailure, rotates: bool, now: Instant) -> ConnectFailure {
        match failure {
            ConnectFailure::Refused(report) if rotates && report.sqlstate == SqlState::INVALID_PASSWORD => {
                let since = *lock(&self.state).rotating_since.get_or_insert(now);
                if now.saturating_duration_since(since) < ROTATION_MAX {
                    ConnectFailure::Unavailable(report)
                } else {
                    ConnectFailure::Refused(report)
                }
            }
            failure => failure,
        }
    }

    /// The last failure since the last success.
    pub(crate) fn last(&self) -> Option<Report> {
        lock(&self.state).last.clone()
    }

    /// A login succeeded. Says whether that is news after a failure that was logged.
    pub(crate) fn succeeded(&self) -> bool {
        std::mem::take(&mut *lock(&self.state)).logged.is_some()
    }

    /// Whether this failure is worth a line in the log: it is another one than the last, or the last is some time ago.
    pub(crate) fn is_news(&self, report: &Report, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let known = state
            .logged
            .as_ref()
            .is_some_and(|(last, at)| last == report && now.saturating_duration_since(*at) < LOGGED_AGAIN);
        if !known {
            state.logged = Some((report.clone(), now));
        }
        !known
    }

    /// What was refused may be granted now: another password, another configuration.
    pub(crate) fn forget(&self) {
        let mut state = lock(&self.state);
        *state = State {
            logged: state.logged.take(),
            ..State::default()
        };
    }

    pub(crate) fn failed(&self, failure: &ConnectFailure, now: Instant) {
        let mut state = lock(&self.state);
        let (logged, rotating_since) = (state.logged.take(), state.rotating_since);
        match failure {
            ConnectFailure::Refused(report) => {
                let times = state.refusals;
                let pause = match report.sqlstate {
                    SqlState::INVALID_CATALOG_NAME => REFUSAL_LONGEST,
                    _ => doubled(REFUSAL_FIRST, times, REFUSAL_LONGEST),
                };
                *state = State {
                    refusals: times + 1,
                    refusal: Some((report.clone(), now + pause)),
                    unwanted_at: Some(now + doubled(REFUSAL_FIRST, times, UNWANTED_LONGEST).max(pause)),
                    ..State::default()
                };
            }
            ConnectFailure::Unavailable(report) => {
                let pause = match report.sqlstate.class() {
                    // A login counts where accounts are locked; a connect that nobody answers costs nothing.
                    "28" => doubled(PAUSE_LONGEST / 8, state.unreached, PAUSE_LONGEST * 2),
                    _ => doubled(PAUSE_FIRST, state.unreached, PAUSE_LONGEST),
                };
                state.unreached = state.unreached.saturating_add(1);
                state.next_at = Some(now + jittered(pause));
                state.refusal = None;
                state.unwanted_at = None;
            }
        }
        state.last = Some(failure.report().clone());
        state.logged = logged;
        state.rotating_since = rotating_since;
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// Between half of it and all of it.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + super::random_share() / 2.0)
}

/// bb8's error sink: the one place that hears of a failed connect after bb8 has given its place back.
#[derive(Debug)]
pub(crate) struct FailureSink(pub(crate) Arc<ConnectFailures>);

impl bb8::ErrorSink<ConnectError> for FailureSink {
    fn sink(&self, error: ConnectError) {
        self.0.publish(error);
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectError>> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trap_77_a_missing_database_is_not_asked_for_again_for_five_seconds() {
        let failures = ConnectFailures::new(Arc::default());
        let now = Instant::now();
        let report = Report::fatal(SqlState::INVALID_CATALOG_NAME, "database \"x\" does not exist");
        failures.failed(&ConnectFailure::Refused(report.clone()), now);
        assert_eq!(
            failures.remembered_refusal(now + Duration::from_millis(4999)),
            Some((report, now + REFUSAL_LONGEST))
        );
        assert_eq!(failures.remembered_refusal(now + Duration::from_secs(5)), None);
    }

    #[tokio::test]
    async fn pauses_double_from_milliseconds_to_half_a_second() {
        let failures = ConnectFailures::new(Arc::default());
        let now = Instant::now();
        let unavailable = ConnectFailure::Unavailable(Report::fatal(SqlState::CANNOT_CONNECT_NOW, "starting up"));
        let mut pauses = Vec::new();
        for _ in 0..20 {
            failures.failed(&unavailable, now);
            pauses.push(lock(&failures.state).next_at.unwrap() - now);
        }
        assert!(pauses[0] <= PAUSE_FIRST && pauses[19] <= PAUSE_LONGEST && pauses[19] >= PAUSE_LONGEST / 2);
        failures.succeeded();
        assert!(failures.is_calm(now) && failures.last().is_none());
    }
}
