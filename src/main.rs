//! The process's life, top to bottom: command line, configuration, logs, runtime, server, exit code.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pgsidecar::cli::{self, Arguments, Command};
use pgsidecar::config::{self, Config, ConfigError, Flags, Sources};
use pgsidecar::{admin, logging, server};

/// How long a probe waits for its answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long threads that hang in the system may keep the process from ending.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

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
    Ok(serve(loaded, sources))
}

fn serve(loaded: config::Loaded, sources: Sources) -> ExitCode {
    let logging = match logging::init(&loaded.config.log) {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let threads = loaded.config.runtime.threads;
    // One thread needs no stealing, no handing over and no waking of another: it costs less per transaction.
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    let runtime = builder.thread_name("pgsidecar").enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    // A task like any other, so that of several threads this one, which only waits, serves no client.
    let serving = runtime.spawn(server::run(loaded.config, sources, logging));
    let ended = runtime.block_on(serving);
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pgsidecar: {error}");
    ExitCode::FAILURE
}

/// Exit 0 where the endpoint says so.
fn healthcheck(listen: Option<std::net::SocketAddr>, ready: bool) -> ExitCode {
    let Some(address) = listen else {
        return fail(&"metrics.listen is off, so there is nothing to ask");
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let path = if ready { "/readyz" } else { "/healthz" };
    match runtime.block_on(admin::healthcheck(address, path, HEALTHCHECK_TIMEOUT)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => fail(&line),
    }
}
