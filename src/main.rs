//! The process's life, top to bottom: command line, configuration, logs, runtime, server, exit code.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pgsidecar::cli::{self, Arguments, Command, DiagnoseArguments};
use pgsidecar::config::{self, Config, ConfigError, Flags, Sources};
use pgsidecar::{admin, diagnose, logging, server};

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
    if let Command::Wait { seconds } = command {
        return Ok(wait(Duration::from_secs(seconds)));
    }
    let sources = Sources::of_process(flags)?;
    if let Command::Healthcheck { ready } = command {
        return Ok(healthcheck(config::metrics_listen(&sources)?, ready));
    }
    if let Command::Diagnose(arguments) = command {
        return diagnosis(&sources, &arguments);
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

/// Exit 0 when the time is over.
fn wait(time: Duration) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime.block_on(async { tokio::time::sleep(time).await }),
        Err(error) => return fail(&error),
    }
    ExitCode::SUCCESS
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

/// What to measure: the URLs of the command line; else the app's own; else our upstream, and through our first listener.
fn plan(sources: &Sources, arguments: &DiagnoseArguments) -> Result<diagnose::Plan, ConfigError> {
    let through = arguments.through.as_ref();
    let through = through.map(|url| config::connection(sources, url)).transpose()?;
    let url = arguments.url.as_deref().or_else(|| config::database_url(sources));
    let (direct, through) = match url {
        Some(url) => (config::connection(sources, url)?, through),
        None => {
            let config = Config::load(sources)?.config;
            let served = through.or_else(|| config.served());
            (config.upstream, served)
        }
    };
    Ok(diagnose::Plan {
        direct,
        through,
        connections: arguments.connections,
        at_once: arguments.at_once,
        goal: Duration::from_millis(arguments.goal_ms.into()),
    })
}

/// Exit 0 where the goal is met.
fn diagnosis(sources: &Sources, arguments: &DiagnoseArguments) -> Result<ExitCode, ConfigError> {
    let plan = plan(sources, arguments)?;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ok(fail(&error)),
    };
    let progress = diagnose::Progress::on_terminal(diagnose::connections_in(&plan));
    let outcome = runtime.block_on(diagnose::run(plan, &progress));
    progress.end();
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    Ok(match outcome {
        Ok(findings) => {
            match arguments.json {
                true => println!("{}", findings.json()),
                false => print!("{}", findings.table()),
            }
            ExitCode::from(u8::from(!findings.is_goal_met()))
        }
        Err(failure) => {
            if arguments.json {
                println!("{}", failure.json());
            }
            eprintln!("pgsidecar: {failure}");
            eprintln!("try: {}", failure.advice);
            ExitCode::FAILURE
        }
    })
}
