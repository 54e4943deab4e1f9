//! The process log (`tracing`), on standard error, as text or JSON.

use std::io::{self, IsTerminal};

use ringpost_config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging. `RINGPOST_LOG` overrides the level with a filter (`info,ringpost_engine=debug`).
pub fn start(log: &Log) {
    let filter = EnvFilter::try_from_env("RINGPOST_LOG").unwrap_or_else(|_| EnvFilter::new(log.level.as_str()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // What cannot be written is lost. The subscriber would say so on standard error, too, and that panics.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
