//! Structured logs by `tracing`, for a terminal or for the journal.
//!
//! A line is `[time] LEVEL message key=value …`. In the journal its time is
//! the journal's own and its level a syslog priority prefix (sd-daemon(3)).
//! Values may come from the network: control characters are escaped, so that
//! one event is one line and can't steer a terminal.

use std::{
    env,
    fmt::{self, Write},
    io::{self, IsTerminal},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG` makes no sense.
    #[error(
        "RUST_LOG={value:?} is not a log filter\n  try: RUST_LOG=debug, or RUST_LOG=info,landbridge::session=trace"
    )]
    Filter {
        /// Its value.
        value: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is in place already.
    #[error("logs are set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Where lines go and how they look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Journal,
    Terminal { colour: bool },
}

/// Sends logs to stderr from here on: `info` and up, `debug` with `verbose` 1,
/// `trace` with more; `RUST_LOG`, where set, decides instead.
///
/// # Errors
///
/// [`LogError`].
pub fn init(verbose: u8) -> Result<(), LogError> {
    let directives = env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let filter = filter(directives.as_deref(), verbose)?;
    let journal = env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let layout = if journal {
        Layout::Journal
    } else {
        Layout::Terminal { colour: colour_on(&io::stderr()) }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(layout)
        .finish()
        .try_init()
        .map_err(LogError::Twice)
}

/// Whether to use colours on `stream`: on a terminal, unless `NO_COLOR`
/// (no-color.org) or `TERM=dumb` forbids.
pub fn colour_on(stream: &impl IsTerminal) -> bool {
    let forbidden = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || env::var_os("TERM").is_some_and(|value| value == "dumb");
    stream.is_terminal() && !forbidden
}

fn filter(directives: Option<&str>, verbose: u8) -> Result<EnvFilter, LogError> {
    let value = match (directives, verbose) {
        (Some(value), _) => value,
        (None, 0) => "info",
        (None, 1) => "info,landbridge=debug",
        (None, _) => "info,landbridge=trace",
    };
    EnvFilter::try_new(value).map_err(|source| LogError::Filter { value: value.to_owned(), source })
}

impl<S, N> FormatEvent<S, N> for Layout
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let level = *event.metadata().level();
        match self {
            Self::Journal => write!(writer, "<{}>", priority(level))?,
            Self::Terminal { colour } => {
                SystemTime.format_time(&mut writer)?;
                write!(writer, " {} ", label(level, *colour))?;
            }
        }
        writeln!(writer, "{}{}", line.message, line.fields)
    }
}

/// syslog(3)'s priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn label(level: Level, colour: bool) -> String {
    let code = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 2,
    };
    match colour {
        true => format!("\x1b[{code}m{level:>5}\x1b[0m"),
        false => format!("{level:>5}"),
    }
}

/// One event's message and ` key=value` fields, escaped.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn record(&mut self, field: &Field, value: &str, quote: bool) {
        match field.name() {
            "message" => escape_into(&mut self.message, value),
            name => {
                let _ = write!(self.fields, " {name}=");
                let quote = quote && (value.is_empty() || value.contains([' ', '"', '=']));
                match quote {
                    true => {
                        let _ = write!(self.fields, "{value:?}");
                    }
                    false => escape_into(&mut self.fields, value),
                }
            }
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value, true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, &format!("{value:?}"), false);
    }

    /// An error with the errors beneath it.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.record(field, &text, true);
    }
}

fn escape_into(out: &mut String, text: &str) {
    for character in text.chars() {
        match character.is_control() {
            true => out.extend(character.escape_default()),
            false => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What `events` writes in `layout`.
    fn written(layout: Layout, events: impl FnOnce()) -> String {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&buffer);
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(None, 2).unwrap())
            .with_writer(move || Sink(Arc::clone(&sink)))
            .with_ansi(false)
            .event_format(layout)
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(buffer.lock().unwrap().clone()).unwrap()
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        let text = written(Layout::Journal, || {
            tracing::error!("port in use");
            tracing::warn!(peer = "west-1", rtt_us = 85, "slow");
            tracing::info!(peer = %"west 1", "up");
            tracing::trace!(name = "a b", empty = "", "more");
        });
        let expected = "<3>port in use\n<4>slow peer=west-1 rtt_us=85\n\
                        <6>up peer=west 1\n<7>more name=\"a b\" empty=\"\"\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_terminal_gets_time_and_level() {
        let plain = written(Layout::Terminal { colour: false }, || tracing::warn!("slow"));
        let (time, rest) = plain.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(rest, " WARN slow\n");
        let coloured = written(Layout::Terminal { colour: true }, || tracing::warn!("slow"));
        assert!(coloured.contains(" \x1b[33m WARN\x1b[0m slow\n"), "{coloured:?}");
    }

    #[test]
    fn the_network_can_neither_forge_a_line_nor_steer_a_terminal() {
        let evil = "x\n<0>fake \x1b[2J";
        let text = written(Layout::Journal, || {
            tracing::info!(display = %evil, text = evil, debug = ?evil, "{evil}");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot bind")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("port in use"));
        let text = written(Layout::Journal, || {
            tracing::error!(error = &error as &dyn std::error::Error, "stopped");
        });
        assert_eq!(text, "<3>stopped error=\"cannot bind: port in use\"\n");
    }

    #[test]
    fn verbosity_and_directives() {
        let shown = |directives, verbose| filter(directives, verbose).unwrap().to_string();
        assert_eq!(shown(None, 0), "info");
        assert!(shown(None, 1).contains("landbridge=debug"));
        assert_eq!(shown(Some("warn"), 2), "warn");
        let error = filter(Some("landbridge=loud"), 0).unwrap_err();
        assert!(error.to_string().contains("try: RUST_LOG=debug"), "{error}");
    }
}
