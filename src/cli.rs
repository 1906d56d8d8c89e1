//! The command line: what `--help` says, and the blanking of a password that was given in it.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Flags};

/// A PostgreSQL connection-pooling proxy that runs as a sidecar beside an app.
///
/// Apps connect to it as if it were the database; it keeps long-lived, logged-in connections to the real one and lends
/// them out, by default for one transaction at a time.
#[derive(Parser)]
#[command(name = "pgsidecar", version, after_long_help = AFTER_HELP, args_conflicts_with_subcommands = false)]
pub struct Arguments {
    /// Configuration file (default: /etc/pgsidecar/config.yaml, if it is there)
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// The database to connect to, as a libpq URL or keyword string
    ///
    /// Such as 'postgres://app:secret@db.example:5432/app?sslmode=verify-full'. Better given by PGSIDECAR_UPSTREAM or
    /// PGSIDECAR_UPSTREAM_FILE: a command line can be read by every user of the machine. A password in it is blanked as
    /// soon as it was read.
    #[arg(long, value_name = "URL", global = true)]
    upstream: Option<String>,

    /// Address to serve clients on: host:port or unix:/directory; may be given more than once (default: 127.0.0.1:6432)
    #[arg(long, value_name = "ADDR", global = true)]
    listen: Vec<String>,

    /// Address of /metrics, /healthz and /readyz: IP:port, or off (default: 127.0.0.1:9930)
    #[arg(long, value_name = "ADDR", global = true)]
    metrics_listen: Option<String>,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What the process is to do. [`Command::Serve`] where the command line names nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Subcommand)]
pub enum Command {
    /// Serve clients until a signal (the default)
    #[default]
    #[command(hide = true)]
    Serve,
    /// Validate the configuration and print what is in effect, secrets masked; exit 0 if it is good, 1 if not
    Check,
    /// Ask the running pgsidecar's /healthz (with --ready: /readyz); exit 0 if it is well, 1 if not
    Healthcheck {
        /// Ask whether it is ready for clients, not just alive
        #[arg(long)]
        ready: bool,
    },
    /// Do nothing for so many seconds: a preStop hook in an image without a shell
    Wait {
        /// How long, at most an hour
        #[arg(value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
        seconds: u64,
    },
    /// Measure what a connection costs, step by step, directly and through pgsidecar; exit 1 if the goal is missed
    Diagnose(DiagnoseArguments),
}

/// What `pgsidecar diagnose` is to measure.
#[derive(Clone, PartialEq, Eq, Args)]
pub struct DiagnoseArguments {
    /// The database itself (default: DATABASE_URL, else the configured upstream, and then through its own listener)
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// pgsidecar in front of it: the URL that the app uses
    #[arg(long, value_name = "URL")]
    pub through: Option<String>,

    /// Connections to open one after another, each way
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,

    /// Connections to open at once, each way
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub at_once: u32,

    /// What acquiring a connection may take, in milliseconds, at the 99th percentile
    #[arg(long, value_name = "MS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub goal_ms: u32,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

impl std::fmt::Debug for DiagnoseArguments {
    /// Without the URLs: there may be passwords in them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiagnoseArguments").finish_non_exhaustive()
    }
}

const AFTER_HELP: &str = "\
Examples:
  PGSIDECAR_UPSTREAM='postgres://app:secret@db.example/app?sslmode=verify-full' pgsidecar
      and the app: DATABASE_URL=postgres://app:secret@127.0.0.1:6432/app
  pgsidecar --config ./config.yaml --listen 127.0.0.1:6432 --listen unix:/run/pgsidecar
  pgsidecar check --config ./config.yaml
  pgsidecar healthcheck --ready
  pgsidecar diagnose postgres://app:secret@db.example/app --through postgres://app:secret@127.0.0.1:6432/app

Environment (stronger than the file, weaker than the options above):
  PGSIDECAR_CONFIG           the configuration file
  PGSIDECAR_UPSTREAM         the database's URL
  PGSIDECAR_UPSTREAM_FILE    a file that holds the URL, for mounted secrets
  PGSIDECAR_LISTEN           addresses, a comma between several
  PGSIDECAR_METRICS_LISTEN   the address of metrics and health
  PGSIDECAR__SECTION__KEY    any key of config.yaml, such as PGSIDECAR__POOL__MAX_SIZE=40; lists and maps as YAML:
                             PGSIDECAR__USERS='[{name: app, password_file: /run/secrets/app}]'
  PGHOST, PGPASSWORD, PGSSLMODE, …   libpq's variables supply what the URL leaves out

Files:
  /etc/pgsidecar/config.yaml      read if no --config is given; config.yaml in the distribution shows every key
  ~/.pgpass, ~/.pg_service.conf   libpq's password and service files
  ~/.postgresql/                  libpq's root.crt, root.crl, postgresql.crt and postgresql.key

Signals:
  SIGTERM, SIGINT   drain: see drain.mode and drain.deadline; a second one closes everything now
  SIGHUP            reload: pools, users, certificates and limits change, no client is dropped

Exit codes:
  0  stopped as asked, or the check passed
  1  the configuration is wrong, an address is taken, the check failed, or diagnose missed its goal
  2  the command line is wrong";

impl std::fmt::Debug for Arguments {
    /// Without the upstream: there may be a password in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arguments")
            .field("config", &self.config)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

impl Arguments {
    /// Divides the command line into what to do and what it says of the configuration.
    #[must_use]
    pub fn into_parts(self) -> (Command, Flags) {
        let Self {
            config,
            upstream,
            listen,
            metrics_listen,
            command,
        } = self;
        (
            command.unwrap_or_default(),
            Flags {
                config,
                upstream,
                listen,
                metrics_listen,
            },
        )
    }
}

/// Overwrites the passwords in the URLs of this process' arguments with asterisks, so that `ps` doesn't show it.
/// Call it once the arguments were read; they read blanked afterwards.
///
/// The memory is reached through /proc/self/mem, which needs no unsafe code. Where /proc is missing nothing happens, and
/// the error says why.
pub fn blank_argv_passwords() -> std::io::Result<()> {
    blank_passwords_in(Path::new("/proc/self"))
}

fn blank_passwords_in(process: &Path) -> std::io::Result<()> {
    let region = argument_region(&std::fs::read_to_string(process.join("stat"))?)
        .ok_or_else(|| std::io::Error::other("no argument addresses in /proc/self/stat"))?;
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(process.join("mem"))?;
    let length = usize::try_from(region.end - region.start).map_err(std::io::Error::other)?;
    let mut arguments = vec![0; length];
    memory.read_exact_at(&mut arguments, region.start)?;
    for span in secret_spans(&arguments) {
        memory.write_all_at(&vec![b'*'; span.len()], region.start + span.start as u64)?;
    }
    Ok(())
}

/// `arg_start` and `arg_end`, fields 48 and 49 of proc_pid_stat(5). The second field is the program's name in
/// parentheses, and may hold spaces and parentheses itself.
fn argument_region(stat: &str) -> Option<Range<u64>> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(45);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (0 < start && start < end && end - start <= 1 << 22).then_some(start..end)
}

/// Their values are connection strings.
const OPTIONS_WITH_SECRETS: [&str; 2] = ["--upstream", "--through"];

/// The argument of `diagnose` stands by itself.
fn is_url(argument: &[u8]) -> bool {
    argument.starts_with(b"p") && argument.windows(3).any(|window| window == b"://")
}

/// Where passwords stand in arguments that are separated by NUL bytes.
fn secret_spans(arguments: &[u8]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut at = 0;
    let mut is_value = false;
    for argument in arguments.split(|byte| *byte == 0) {
        let inline = OPTIONS_WITH_SECRETS.iter().find_map(|option| {
            let value = argument.strip_prefix(option.as_bytes())?.strip_prefix(b"=")?;
            Some(argument.len() - value.len())
        });
        let value_at = inline.or_else(|| (is_value || is_url(argument)).then_some(0));
        is_value = !is_value && OPTIONS_WITH_SECRETS.iter().any(|option| argument == option.as_bytes());
        if let Some(value_at) = value_at {
            let value = argument.get(value_at..).unwrap_or_default();
            // What is not UTF-8 is no URL that we understand: all of it goes.
            let whole = 0..value.len();
            let inner = match std::str::from_utf8(value) {
                Ok(value) => config::password_spans(value),
                Err(_) => Vec::from_iter([whole]),
            };
            spans.extend(
                inner
                    .into_iter()
                    .map(|span| at + value_at + span.start..at + value_at + span.end),
            );
        }
        at += argument.len() + 1;
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parts(arguments: &[&str]) -> (Command, Flags) {
        let arguments = ["pgsidecar"].iter().chain(arguments);
        Arguments::try_parse_from(arguments).unwrap().into_parts()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_behind_the_command() {
        assert_eq!(parts(&[]).0, Command::Serve);
        assert_eq!(parts(&["check"]).0, Command::Check);
        assert_eq!(
            parts(&["healthcheck", "--ready"]).0,
            Command::Healthcheck { ready: true }
        );
        for arguments in [["check", "--config", "x"], ["--config", "x", "check"]] {
            let (command, flags) = parts(&arguments);
            assert_eq!((command, flags.config), (Command::Check, Some("x".into())));
        }
        let (_, flags) = parts(&[
            "--listen",
            "a:1",
            "--listen",
            "unix:/b",
            "--upstream",
            "u",
            "--metrics-listen",
            "off",
        ]);
        assert_eq!(flags.listen, ["a:1", "unix:/b"]);
        assert_eq!(
            (flags.upstream.as_deref(), flags.metrics_listen.as_deref()),
            (Some("u"), Some("off"))
        );
        assert!(Arguments::try_parse_from(["pgsidecar", "--nonsense"]).is_err());
        assert!(Arguments::try_parse_from(["pgsidecar", "--ready"]).is_err());
    }

    #[test]
    fn help_tells_what_matters() {
        let help = Arguments::command().render_long_help().to_string();
        for word in [
            "Examples:",
            "PGSIDECAR_UPSTREAM_FILE",
            "SIGHUP",
            "Exit codes:",
            "healthcheck",
            "--metrics-listen",
        ] {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn only_the_password_of_the_upstream_is_blanked() {
        for (arguments, blanked) in [
            (
                "pgsidecar\0--upstream\0postgres://a:secret@h/d\0",
                "pgsidecar\0--upstream\0postgres://a:******@h/d\0",
            ),
            (
                "x\0--upstream=postgres://a:s@h\0--listen\0b:1\0",
                "x\0--upstream=postgres://a:*@h\0--listen\0b:1\0",
            ),
            ("x\0--upstream=host=h password=s\0", "x\0--upstream=host=h password=*\0"),
            ("x\0--upstream\0--upstream\0", "x\0--upstream\0**********\0"),
            ("x\0--listen\0a:secret@b\0", "x\0--listen\0a:secret@b\0"),
            (
                "x\0diagnose\0postgres://a:secret@h\0--through\0postgres://a:other@h/d\0",
                "x\0diagnose\0postgres://a:******@h\0--through\0postgres://a:*****@h/d\0",
            ),
            ("x\0--through=postgres://a:s@h\0", "x\0--through=postgres://a:*@h\0"),
        ] {
            let mut bytes = arguments.as_bytes().to_vec();
            for span in secret_spans(arguments.as_bytes()) {
                bytes[span].fill(b'*');
            }
            assert_eq!(String::from_utf8(bytes).unwrap(), blanked);
        }
        assert_eq!(secret_spans(b"x\0--upstream\0\xff\xfe\0").first(), Some(&(13..15)));
    }

    #[test]
    fn the_region_of_the_arguments_is_found() {
        let fields: Vec<String> = (3..=52).map(|field| (field * 10).to_string()).collect();
        let stat = format!("42 (a) b (c)) {}", fields.join(" "));
        assert_eq!(argument_region(&stat), Some(480..490));
        assert_eq!(argument_region("42 (x) S 1 2"), None);
        assert_eq!(argument_region(""), None);
    }
}
