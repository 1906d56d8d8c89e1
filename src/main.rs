//! The process's life, top to bottom: command line, configuration, then what was asked for.

use std::process::ExitCode;

use clap::Parser;
use pgsidecar::cli::{self, Arguments, Command};
use pgsidecar::config::{self, Config, ConfigError, Flags, Sources};

fn main() -> ExitCode {
    let (command, flags) = Arguments::parse().into_parts();
    // Where /proc is missing there is no ps to hide from.
    let _ = cli::blank_argv_passwords();
    match run(command, flags) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pgsidecar: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, flags: Flags) -> Result<ExitCode, ConfigError> {
    let sources = Sources::of_process(flags)?;
    if let Command::Healthcheck { ready } = command {
        return Ok(healthcheck(config::metrics_listen(&sources)?, ready));
    }
    let loaded = Config::load(&sources)?;
    if command == Command::Check {
        for warning in &loaded.warnings {
            eprintln!("pgsidecar: warning: {warning}");
        }
        print!("{}", loaded.config.describe());
        return Ok(ExitCode::SUCCESS);
    }
    // Config is loaded: logs, runtime and server begin here.
    Ok(ExitCode::SUCCESS)
}

/// Exit 0 where the endpoint says so.
fn healthcheck(listen: Option<std::net::SocketAddr>, _ready: bool) -> ExitCode {
    if listen.is_none() {
        eprintln!("pgsidecar: metrics.listen is off, so there is nothing to ask");
    }
    ExitCode::FAILURE
}
