//! A step that failed: which, in one line, and what to try.

use std::fmt;

use crate::net::ConnectStep;
use crate::wire::SqlState;

/// Where a connection stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Connect(ConnectStep),
    Query,
}

/// Why nothing was measured. Fault: whoever is at the other end, or the connection string.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    /// `directly` or `through`.
    pub way: &'static str,
    /// Where to.
    pub address: String,
    /// The step's name.
    pub step: &'static str,
    /// PostgreSQL's code, where PostgreSQL said no.
    pub sqlstate: Option<String>,
    /// What happened. One line, without a secret.
    pub message: String,
    /// What may help. One line.
    pub advice: &'static str,
}

impl Failure {
    pub(super) fn new(
        way: &'static str,
        address: &str,
        step: Step,
        sqlstate: Option<SqlState>,
        message: impl Into<String>,
    ) -> Self {
        let message = one_line(&message.into());
        Self {
            way,
            address: address.to_owned(),
            step: name(step),
            advice: advice(way, step, sqlstate, &message),
            sqlstate: sqlstate.map(|code| code.as_str().to_owned()),
            message,
        }
    }

    /// One line for `--json`.
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self }).to_string()
    }

    /// The same, of a connection that was one of many.
    pub(super) fn among(mut self, at_once: u32) -> Self {
        self.message = format!("{} (with {at_once} connections at once)", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way, address, step, .. } = self;
        write!(f, "{way} to {address}: {step} failed: {}", self.message)
    }
}

impl std::error::Error for Failure {}

fn name(step: Step) -> &'static str {
    match step {
        Step::Connect(ConnectStep::LookUp) => "DNS",
        Step::Connect(ConnectStep::Connect) => "connecting",
        Step::Connect(ConnectStep::Tls) => "TLS",
        Step::Connect(ConnectStep::LogIn) => "login",
        Step::Query => "the first query",
    }
}

/// Peers choose their words, and a message may hold what was never meant for a terminal.
fn one_line(message: &str) -> String {
    let words = message.split(|character: char| character.is_control() || character == ' ');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn advice(way: &str, step: Step, sqlstate: Option<SqlState>, message: &str) -> &'static str {
    match step {
        Step::Connect(ConnectStep::LookUp) => {
            "check the host's spelling in the URL, and that this machine or container can resolve it (getent hosts NAME)"
        }
        Step::Connect(ConnectStep::Connect) if way == "through" => {
            "is pgsidecar running, and is this an address of its listen: (default 127.0.0.1:6432)? In containers 127.0.0.1 \
             is each container's own, unless they share a network"
        }
        Step::Connect(ConnectStep::Connect) if message.contains("refused") => {
            "nothing listens there: check the port (PostgreSQL's own is 5432) and PostgreSQL's listen_addresses"
        }
        Step::Connect(ConnectStep::Connect) => {
            "no way there: check host and port, firewalls, security groups and the network of the container"
        }
        Step::Connect(ConnectStep::Tls) => tls_advice(message),
        Step::Connect(ConnectStep::LogIn) => login_advice(sqlstate),
        Step::Query => query_advice(sqlstate),
    }
}

fn tls_advice(message: &str) -> &'static str {
    if message.contains("does not support SSL") {
        "the server has no TLS: turn ssl on in PostgreSQL, or say sslmode=disable where the network is trusted"
    } else if message.contains("timed out") || message.contains("doesn't say") || message.contains("closed") {
        "what listens on this port does not speak PostgreSQL's protocol: check the port (PostgreSQL's own is 5432)"
    } else {
        "check sslmode and sslrootcert against the server's certificate: its name must be the host of the URL for \
         verify-full, its authority that of sslrootcert"
    }
}

fn login_advice(sqlstate: Option<SqlState>) -> &'static str {
    match sqlstate {
        Some(SqlState::INVALID_PASSWORD) => {
            "check user and password; in a URL, characters such as @ : / # % of a password are written %40 %3A %2F %23 %25"
        }
        Some(SqlState::INVALID_CATALOG_NAME) => "check the database's name, the part behind the last / of the URL",
        Some(SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            "PostgreSQL's pg_hba.conf lets nobody of this user, database, address and TLS in, or the role may not log in"
        }
        Some(SqlState::TOO_MANY_CONNECTIONS) => {
            "all of PostgreSQL's max_connections are taken: fewer connections, which is what a pooler is for"
        }
        Some(SqlState::CANNOT_CONNECT_NOW) => "PostgreSQL is starting or stopping: try again in a moment",
        Some(SqlState::PROTOCOL_VIOLATION | SqlState::CONNECTION_FAILURE) => {
            "what listens on this port may not be PostgreSQL: check the port (PostgreSQL's own is 5432) and its log"
        }
        _ => "PostgreSQL's log says more",
    }
}

fn query_advice(sqlstate: Option<SqlState>) -> &'static str {
    match sqlstate {
        Some(SqlState::TOO_MANY_CONNECTIONS) => {
            "no backend was free or could be opened: see pgsidecar's log, pool.max_size, and whether PostgreSQL is up"
        }
        _ => "see the log of PostgreSQL, and of pgsidecar where it is in between",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(step: Step, sqlstate: Option<SqlState>, message: &str) -> Failure {
        Failure::new("directly", "db:5432", step, sqlstate, message)
    }

    #[test]
    fn the_line_names_way_address_and_step() {
        let failed = failure(Step::Connect(ConnectStep::LookUp), None, "no such\nhost\x1b[2J");
        assert_eq!(
            failed.to_string(),
            "directly to db:5432: DNS failed: no such host [2J",
            "one line, and nothing that a terminal obeys"
        );
        assert!(failed.advice.contains("getent"));
    }

    #[test]
    fn advice_fits_the_step() {
        let login = |code| failure(Step::Connect(ConnectStep::LogIn), Some(code), "x").advice;
        assert!(login(SqlState::INVALID_PASSWORD).contains("%40"));
        assert!(login(SqlState::INVALID_CATALOG_NAME).contains("database's name"));
        assert!(login(SqlState::PROTOCOL_VIOLATION).contains("may not be PostgreSQL"));
        let connect = |message| failure(Step::Connect(ConnectStep::Connect), None, message).advice;
        assert!(connect("Connection refused").contains("listen_addresses"));
        assert!(connect("timed out").contains("firewalls"));
        let tls = |message| failure(Step::Connect(ConnectStep::Tls), None, message).advice;
        assert!(tls("db port 1 does not support SSL, but SSL was required").contains("sslmode=disable"));
        assert!(tls("invalid peer certificate").contains("sslrootcert"));
        assert!(tls("timed out").contains("does not speak"));
    }
}
