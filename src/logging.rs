//! Log lines on stderr: who writes them, how they look, and a level that a reload can change.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

use crate::config::{LogConfig, LogFormat};

/// Why logging can't be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The value of `log.level` is neither a level nor directives.
    #[error("log.level: {directive:?} is not a level ({LEVELS}) or a directive like \"pgsidecar::pool=debug\"")]
    Level {
        /// The part that isn't understood.
        directive: String,
    },
    /// Something else in this process already writes the log.
    #[error("the log was set up before")]
    AlreadySet,
}

const LEVELS: &str = "off, error, warn, info, debug, trace";

/// Changes what [`init`] set up.
#[derive(Debug, Clone)]
pub struct LoggingHandle {
    filter: reload::Handle<Targets, Registry>,
}

impl LoggingHandle {
    /// Takes over the `log.level` of a new configuration. The format stays as it was at start.
    ///
    /// # Errors
    /// [`LoggingError::Level`]; the level then stays as it was.
    pub fn reload(&self, config: &LogConfig) -> Result<(), LoggingError> {
        let targets = parse_level(&config.level)?;
        // Fails only when the subscriber is gone, and then there is no log to change.
        self.filter.reload(targets).map_err(|_| LoggingError::AlreadySet)
    }
}

/// Sends this process's log to stderr as `config` says, for the rest of its life.
///
/// # Errors
/// [`LoggingError::Level`] for a bad `log.level`, [`LoggingError::AlreadySet`] when called twice.
pub fn init(config: &LogConfig) -> Result<LoggingHandle, LoggingError> {
    let (subscriber, handle) = subscriber(config, std::io::stderr, std::io::stderr().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::AlreadySet)?;
    Ok(handle)
}

fn subscriber<W>(
    config: &LogConfig,
    writer: W,
    is_terminal: bool,
) -> Result<(impl Subscriber + Send + Sync, LoggingHandle), LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_level(&config.level)?);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(is_terminal);
    let lines = match config.format {
        LogFormat::Text => lines.event_format(TextLine).fmt_fields(TextFields).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Ok((
        Registry::default().with(filter).with(lines),
        LoggingHandle { filter: handle },
    ))
}

/// Stricter than tracing's own parser, which takes a misspelt level for the name of a target and logs nothing.
fn parse_level(text: &str) -> Result<Targets, LoggingError> {
    let mut targets = Targets::new();
    for directive in text.split(',').map(str::trim) {
        let bad = || LoggingError::Level {
            directive: directive.to_owned(),
        };
        match directive.split_once('=') {
            None => targets = targets.with_default(level(directive).ok_or_else(bad)?),
            Some((target, name)) if is_module_path(target) => {
                targets = targets.with_target(target, level(name).ok_or_else(bad)?);
            }
            Some(_) => return Err(bad()),
        }
    }
    Ok(targets)
}

fn level(name: &str) -> Option<LevelFilter> {
    let levels = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    levels
        .into_iter()
        .find_map(|(word, level)| word.eq_ignore_ascii_case(name).then_some(level))
}

fn is_module_path(target: &str) -> bool {
    !target.is_empty()
        && target
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// `2026-01-31T12:00:00.000000Z INFO message field=value span_field=value`, always one line.
struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        write_level(&mut writer, *event.metadata().level())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>() {
                writer.write_str(&fields.fields)?;
            }
        }
        writer.write_char('\n')
    }
}

fn write_level(writer: &mut Writer<'_>, level: Level) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        return write!(writer, " {level}");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG | Level::TRACE => 34,
    };
    write!(writer, " \x1b[{colour}m{level}\x1b[0m")
}

/// Each field with a blank before it: the message bare, the others as `name=value`.
struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor { writer, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'w> {
    writer: Writer<'w>,
    result: fmt::Result,
}

impl TextVisitor<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = self.try_write(field.name(), value);
        }
    }

    fn try_write(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        self.writer.write_char(' ')?;
        if name != "message" {
            write!(self.writer, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
        }
        write!(OneLine(&mut self.writer), "{value}")
    }
}

impl Visit for TextVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // Quoted where a reader could not tell where the value ends.
        let is_plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"' || c == '=');
        if is_plain || field.name() == "message" {
            self.write(field, format_args!("{value}"));
        } else {
            self.write(field, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, format_args!("{value:?}"));
    }
}

/// Escapes control characters: what a peer sent can't begin a line of its own, nor talk to the terminal.
struct OneLine<W>(W);

impl<W: fmt::Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (plain, tail) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut characters = tail.chars();
            if let Some(control) = characters.next() {
                write!(self.0, "{}", control.escape_default())?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn config(level: &str, format: LogFormat) -> LogConfig {
        LogConfig {
            level: level.to_owned(),
            format,
            connections: false,
            stats_interval: None,
        }
    }

    /// The lines that `events` writes.
    fn lines(config: &LogConfig, is_terminal: bool, events: impl FnOnce(&LoggingHandle)) -> Vec<String> {
        let sink = Sink::default();
        let writer = {
            let sink = sink.clone();
            move || sink.clone()
        };
        let (subscriber, handle) = subscriber(config, writer, is_terminal).expect("a good configuration");
        tracing::subscriber::with_default(subscriber, || events(&handle));
        let bytes = sink.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes)
            .expect("text")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_text_line_has_time_level_message_and_fields() {
        let lines = lines(&config("info", LogFormat::Text), false, |_| {
            let span = tracing::info_span!("client", address = %"127.0.0.1:5000");
            let _entered = span.enter();
            tracing::info!(pool = "app/app", waited_ms = 3, note = "two words", "a lease timed out");
        });
        let (time, rest) = lines[0].split_once(' ').expect("a time first");
        assert!(time.ends_with('Z') && time.contains('T') && time.len() == 27, "{time}");
        assert_eq!(
            rest,
            r#"INFO a lease timed out pool=app/app waited_ms=3 note="two words" address=127.0.0.1:5000"#
        );
    }

    #[test]
    fn what_a_peer_sent_stays_inside_its_line() {
        let lines = lines(&config("info", LogFormat::Text), false, |_| {
            tracing::warn!(name = %"x\n2026 ERROR forged", escape = %"\x1b[31m", "said\nso");
        });
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].ends_with(r"WARN said\nso name=x\n2026 ERROR forged escape=\u{1b}[31m"),
            "{}",
            lines[0]
        );
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        let event = |_: &LoggingHandle| tracing::error!("x");
        assert!(!lines(&config("info", LogFormat::Text), false, event)[0].contains('\x1b'));
        assert!(lines(&config("info", LogFormat::Text), true, event)[0].contains("\x1b[31mERROR\x1b[0m"));
    }

    #[test]
    fn a_json_line_is_one_object() {
        let lines = lines(&config("info", LogFormat::Json), false, |_| {
            tracing::info!(pool = "app", "hello")
        });
        assert!(lines[0].starts_with('{') && lines[0].ends_with('}'), "{}", lines[0]);
        for member in [r#""message":"hello""#, r#""level":"INFO""#, r#""pool":"app""#] {
            assert!(lines[0].contains(member), "{member} in {}", lines[0]);
        }
    }

    #[test]
    fn directives_hold_for_their_module() {
        let lines = lines(&config("warn, pgsidecar::pool=debug", LogFormat::Text), false, |_| {
            tracing::debug!(target: "pgsidecar::pool", "yes");
            tracing::info!(target: "pgsidecar::relay", "no");
        });
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn a_reload_changes_the_level_and_a_bad_one_changes_nothing() {
        let lines = lines(&config("error", LogFormat::Text), false, |handle| {
            tracing::info!("before");
            handle.reload(&config("info", LogFormat::Text)).expect("a good level");
            assert!(handle.reload(&config("inof", LogFormat::Text)).is_err());
            tracing::info!("after");
        });
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("after"));
    }

    #[test]
    fn a_bad_level_is_named_with_its_key() {
        for bad in [
            "inof",
            "",
            "info,",
            "pgsidecar=loud",
            "=info",
            "pg sidecar=info",
            "[span]=info",
        ] {
            let error = parse_level(bad).expect_err(bad).to_string();
            assert!(error.starts_with("log.level: "), "{error}");
        }
        assert!(parse_level("INFO").is_ok());
    }
}
