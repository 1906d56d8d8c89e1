//! One end, and one connection to it: opened, asked twice, closed, with the time of each step.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::failure::{Failure, Step};
use crate::backend::early_login::EarlyLogin;
use crate::backend::login::{LoginOptions, SaltedKeysCache};
use crate::backend::{Backend, Connector};
use crate::config::{Host, UpstreamConfig};
use crate::net::dial::Names;
use crate::net::{ConnectStep, StepObserver, UpstreamTls};

/// The most SCRAM iterations that we do for a server: a second of CPU at the worst.
const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;
/// How long a query of ours may take: it does nothing, so what passes is the way and the wait for a backend.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// One end to measure.
#[derive(Clone)]
pub(super) struct Target {
    /// `directly` or `through`.
    pub(super) name: &'static str,
    /// Host and port, or the socket's directory.
    pub(super) address: String,
    connector: Arc<Connector>,
}

/// What one connection cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    /// The steps that there were, in order: a unix socket has no name to look up.
    pub(super) steps: Vec<(ConnectStep, Duration)>,
    /// All of them: what an app waits for before it can say anything.
    pub(super) acquire: Duration,
    /// The first query, in which pgsidecar lends a backend.
    pub(super) first_query: Duration,
    /// A second one: the way there and back.
    pub(super) round_trip: Duration,
    /// Which backend answered.
    pub(super) backend_pid: u32,
}

impl Target {
    pub(super) fn new(name: &'static str, upstream: &UpstreamConfig) -> Result<Self, Failure> {
        let address = address(upstream);
        let tls = UpstreamTls::new(&upstream.tls)
            .map_err(|error| Failure::new(name, &address, Step::Connect(ConnectStep::Tls), None, error.to_string()))?;
        let connector = Connector {
            upstream: Arc::new(upstream.clone()),
            tls: Arc::new(tls),
            names: Names::System,
            user: upstream.user.clone(),
            database: upstream.dbname.clone(),
            password: upstream.password.clone(),
            scram_iterations_max: SCRAM_ITERATIONS_MAX,
            connect_query: None,
            salted: SaltedKeysCache::default(),
            early: EarlyLogin::default(),
        };
        Ok(Self {
            name,
            address,
            connector: Arc::new(connector),
        })
    }

    /// Opens a connection, asks who serves it, asks again, closes it.
    pub(super) async fn measure(&self) -> Result<Connection, Failure> {
        let log = StepLog::default();
        let options = LoginOptions {
            steps: log.observer(),
            ..LoginOptions::default()
        };
        let began = Instant::now();
        let connected = self.connector.connect(&options).await;
        let acquired = Instant::now();
        let mut backend = connected.map_err(|failure| {
            let report = failure.report();
            let message = report.detail_log.as_ref().map(|detail| detail.0.clone());
            let message = match message {
                // PostgreSQL's own words say more than which host said them.
                Some(detail) if !detail.starts_with("said by ") => detail,
                _ => report.message.to_string(),
            };
            self.failure(Step::Connect(log.failed()), Some(report.sqlstate), message)
        })?;
        let backend_pid = self.ask(&mut backend, "SELECT pg_backend_pid()").await?;
        let answered = Instant::now();
        self.ask(&mut backend, "SELECT 1").await?;
        Ok(Connection {
            steps: log.durations(acquired),
            acquire: acquired - began,
            first_query: answered - acquired,
            round_trip: answered.elapsed(),
            backend_pid,
        })
    }

    async fn ask(&self, backend: &mut Backend, sql: &str) -> Result<u32, Failure> {
        let asked = tokio::time::timeout(QUERY_TIMEOUT, backend.query(sql)).await;
        let outcome = match asked {
            Err(_) => return Err(self.failure(Step::Query, None, format!("no answer within {QUERY_TIMEOUT:?}"))),
            Ok(Err(error)) => return Err(self.failure(Step::Query, None, error.to_string())),
            Ok(Ok(outcome)) => outcome,
        };
        if let Some(report) = outcome.error {
            let message = match &report.detail {
                Some(detail) => format!("{} ({detail})", report.message),
                None => report.message.to_string(),
            };
            return Err(self.failure(Step::Query, Some(report.sqlstate), message));
        }
        let value = outcome.first_column.first().and_then(Option::as_ref);
        let value = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        value.ok_or_else(|| self.failure(Step::Query, None, format!("{sql} was answered with no number")))
    }

    fn failure(&self, step: Step, sqlstate: Option<crate::wire::SqlState>, message: String) -> Failure {
        Failure::new(self.name, &self.address, step, sqlstate, message)
    }
}

fn address(upstream: &UpstreamConfig) -> String {
    let hosts = upstream.hosts.iter().map(|host| match host {
        Host::Tcp { host, hostaddr, port } => match hostaddr {
            Some(address) if host.is_empty() => format!("{address}:{port}"),
            _ => format!("{host}:{port}"),
        },
        Host::Unix { directory, port } => format!("unix:{}:{port}", directory.display()),
    });
    hosts.collect::<Vec<_>>().join(",")
}

/// When each step began.
#[derive(Clone, Default)]
struct StepLog(Arc<Mutex<Vec<(ConnectStep, Instant)>>>);

impl StepLog {
    fn observer(&self) -> StepObserver {
        let log = self.clone();
        StepObserver::new(move |step| log.entries().push((step, Instant::now())))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<(ConnectStep, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The step at which the first attempt ended: where another transport is tried behind it, the first is what is told.
    fn failed(&self) -> ConnectStep {
        let entries = self.entries();
        let mut steps = entries.iter().map(|(step, _)| *step);
        let first = steps.next().unwrap_or(ConnectStep::LookUp);
        let mut last = first;
        for step in steps.take_while(|step| *step > first) {
            last = step;
        }
        last
    }

    /// What each took, attempts that failed included: the app waited for them too.
    fn durations(&self, end: Instant) -> Vec<(ConnectStep, Duration)> {
        let entries = self.entries().clone();
        let ends = entries.iter().skip(1).map(|(_, began)| *began).chain([end]);
        let mut sums: Vec<(ConnectStep, Duration)> = Vec::new();
        for ((step, began), end) in entries.iter().zip(ends) {
            let took = end.saturating_duration_since(*began);
            match sums.iter_mut().find(|(known, _)| known == step) {
                Some((_, sum)) => *sum += took,
                None => sums.push((*step, took)),
            }
        }
        sums.sort_by_key(|(step, _)| *step);
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_attempt_adds_to_the_steps_of_the_first() {
        let log = StepLog::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        *log.entries() = vec![
            (ConnectStep::LookUp, at(0)),
            (ConnectStep::Connect, at(1)),
            (ConnectStep::LookUp, at(11)),
            (ConnectStep::Connect, at(13)),
            (ConnectStep::LogIn, at(23)),
        ];
        let expected = [
            (ConnectStep::LookUp, Duration::from_millis(3)),
            (ConnectStep::Connect, Duration::from_millis(20)),
            (ConnectStep::LogIn, Duration::from_millis(7)),
        ];
        assert_eq!(log.durations(at(30)), expected);
        assert_eq!(log.failed(), ConnectStep::Connect);
    }
}
