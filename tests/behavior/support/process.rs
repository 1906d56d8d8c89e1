//! Command-line clients as child processes: psql, pgbench, and whatever else a test runs, each with a deadline.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::postgres::installed_binaries;

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output, its last newline cut.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output of a program that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

/// A PostgreSQL client program of Debian's newest version, with none of the caller's PG* variables, that dies with the
/// thread that started it.
pub fn client_program(name: &str) -> Command {
    let mut command = mortal(installed_binaries().join(name));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PGCONNECT_TIMEOUT", "20")
        .env("LC_ALL", "C");
    command
}

/// A program that the kernel kills when the thread that started it ends: no test leaves one behind.
pub fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs a program to its end.
pub async fn run(command: Command, deadline: Duration) -> Finished {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(deadline, command.output())
        .await
        .unwrap_or_else(|_| panic!("{shown}: not within {deadline:?}"))
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `psql -XAt -c SQL` for each statement, in one session, stopping at the first error.
pub async fn psql(url: &str, statements: &[&str]) -> Finished {
    let mut command = client_program("psql");
    command.args([
        "-X",
        "-At",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "VERBOSITY=verbose",
        "-d",
        url,
    ]);
    for statement in statements {
        command.args(["-c", statement]);
    }
    run(command, Duration::from_secs(60)).await
}

/// pgbench with these arguments.
pub async fn pgbench(url: &str, arguments: &[&str]) -> Finished {
    let mut command = client_program("pgbench");
    command.args(arguments).arg(url);
    run(command, Duration::from_secs(120)).await
}
