//! Logs: to standard error, for people or as JSON, and never by the core that logs.
//!
//! Whoever reads the log may be slow or stuck, so a thread of its own writes it, and lines are dropped when it falls
//! behind. A panic is written at once by the thread that panics: the process may end before any other thread runs.

use crate::Failure;
use crate::arguments::LogFormat;
use std::backtrace::Backtrace;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// The variable that says what is logged.
const FILTER_VARIABLE: &str = "REPRISE_LOG";

/// Starts logging. What was logged is written when the guard is dropped.
pub(crate) fn start(format: LogFormat) -> Result<WorkerGuard, Failure> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::bad_input(format!("{FILTER_VARIABLE} is {text:?}: {error}")))?,
        Err(_) => EnvFilter::new("info"),
    };
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Human => {
            subscriber.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
            std::panic::set_hook(Box::new(|panic| {
                let thread = std::thread::current();
                let name = thread.name().unwrap_or("unnamed");
                eprintln!("thread {name} panicked: {panic}\n{}", Backtrace::capture());
            }));
        }
        LogFormat::Json => {
            subscriber.json().flatten_event(true).init();
            std::panic::set_hook(Box::new(json_panic));
        }
    }
    Ok(guard)
}

fn json_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let line = serde_json::json!({
        "level": "ERROR",
        "message": "a panic",
        "panic": panic.payload_as_str(),
        "place": panic.location().map(ToString::to_string),
        "threadName": thread.name(),
        "backtrace": Backtrace::capture().to_string(),
    });
    eprintln!("{line}");
}
