//! What was measured, in the numbers that matter. `--json` prints just this.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::spread::{Spread, milliseconds};
use super::survey::Survey;
use super::table;
use super::target::Connection;
use super::verdict::{self, Verdict};
use crate::net::ConnectStep;

/// A diagnosis. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// What acquiring a connection may take.
    pub goal_ms: f64,
    /// The database itself.
    pub direct: Path,
    /// pgsidecar in front of it.
    pub through: Option<Path>,
    /// What it means.
    pub verdict: Verdict,
}

/// One way to the database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Path {
    /// Host and port, or the socket's directory.
    pub address: String,
    /// Medians of the connections that were opened one after another.
    pub steps_ms: Steps,
    /// Acquiring a connection, one after another.
    pub one_by_one_ms: Spread,
    /// Acquiring a connection, all at once.
    pub at_once_ms: Spread,
    /// Connections that were opened.
    pub connections: usize,
    /// Backends of PostgreSQL that answered on them.
    pub backends: usize,
    /// Those that answered the connections that were opened one after another: 1 is enough.
    pub backends_one_by_one: usize,
}

/// The steps of one connection; a step that there was not is null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Steps {
    /// Asking the name service.
    pub dns: Option<f64>,
    /// The handshake of TCP, or connect(2) on a unix socket.
    pub connect: Option<f64>,
    /// SSLRequest and handshake.
    pub tls: Option<f64>,
    /// From StartupMessage to ReadyForQuery.
    pub login: Option<f64>,
    /// All of these.
    pub acquire: f64,
    /// The first query.
    pub first_query: f64,
    /// The second.
    pub round_trip: f64,
}

impl Findings {
    pub(super) fn new(goal: Duration, direct: Survey, through: Option<Survey>) -> Self {
        let (direct, through) = (Path::new(direct), through.map(Path::new));
        let goal_ms = milliseconds(goal);
        let verdict = verdict::judge(goal_ms, &direct, through.as_ref());
        Self {
            goal_ms,
            direct,
            through,
            verdict,
        }
    }

    /// Whether acquiring a connection is as fast as it was to be.
    pub fn is_goal_met(&self) -> bool {
        self.verdict.is_goal_met
    }

    /// One line for `--json`.
    pub fn json(&self) -> String {
        // No number of ours is one that JSON can't say.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people.
    pub fn table(&self) -> String {
        table::render(self)
    }
}

impl Path {
    fn new(survey: Survey) -> Self {
        let pids = |connections: &[Connection]| -> BTreeSet<u32> {
            connections.iter().map(|connection| connection.backend_pid).collect()
        };
        let one_by_one = pids(&survey.one_by_one);
        let backends = one_by_one.union(&pids(&survey.at_once)).count();
        Self {
            steps_ms: Steps::medians(&survey.one_by_one),
            one_by_one_ms: Spread::of(survey.one_by_one.iter().map(|it| it.acquire)),
            at_once_ms: Spread::of(survey.at_once.iter().map(|it| it.acquire)),
            connections: survey.one_by_one.len() + survey.at_once.len(),
            backends,
            backends_one_by_one: one_by_one.len(),
            address: survey.address,
        }
    }
}

impl Steps {
    fn medians(connections: &[Connection]) -> Self {
        let median = |of: &dyn Fn(&Connection) -> Option<Duration>| {
            let spread = Spread::of(connections.iter().filter_map(of));
            (spread.count > 0).then_some(spread.p50)
        };
        let step = |wanted: ConnectStep| {
            median(&|connection| {
                let mut steps = connection.steps.iter();
                steps.find(|(step, _)| *step == wanted).map(|(_, took)| *took)
            })
        };
        Self {
            dns: step(ConnectStep::LookUp),
            connect: step(ConnectStep::Connect),
            tls: step(ConnectStep::Tls),
            login: step(ConnectStep::LogIn),
            acquire: median(&|it| Some(it.acquire)).unwrap_or_default(),
            first_query: median(&|it| Some(it.first_query)).unwrap_or_default(),
            round_trip: median(&|it| Some(it.round_trip)).unwrap_or_default(),
        }
    }
}
