//! One run of the history.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, macros::format_description};

use super::MetricName;
use crate::{
    phase::Phase,
    report::format::{latency, number},
    run_result::RunResult,
};

/// The figures of a run that are kept, and where they come from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// The test.
    pub test_name: String,
    /// Version and commit of the server; empty when it was not known.
    pub server: String,
    /// Version and commit of the tool.
    pub tool: String,
    /// Processor and cores.
    pub machine: String,
    /// Kernel.
    pub kernel: String,
    /// Its demands held.
    pub success: bool,
    /// Messages acknowledged per second.
    pub messages_per_second: f64,
    /// Whole transactions, seconds.
    pub p50: f64,
    /// Whole transactions, seconds.
    pub p95: f64,
    /// Whole transactions, seconds.
    pub p99: f64,
    /// Whole transactions, seconds.
    pub p99_9: f64,
    /// CPU of the server for each message, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_message: Option<f64>,
    /// Most resident memory of the server, MiB; 0 when it was not measured.
    pub memory_mb: f64,
    /// Errors.
    pub errors: u64,
}

impl Entry {
    /// Of a result.
    pub fn new(run: &RunResult) -> Self {
        let machine = &run.machine;
        Entry {
            timestamp: run.timestamp,
            test_name: run.test_name.clone(),
            server: machine.engine.clone(),
            tool: machine.tool.clone(),
            machine: format!("{}, {} cores", machine.cpu_model, machine.cores_allowed),
            kernel: machine.kernel.clone(),
            success: run.success,
            messages_per_second: run.emails_per_second,
            p50: run.median_response_time,
            p95: run.p95_response_time,
            p99: run.p99_response_time,
            p99_9: run.phases.get(&Phase::Transaction).map_or(0.0, |summary| summary.percentile_ns("p99.9") as f64 / 1e9),
            cpu_us_per_message: run.cpu_us_per_message,
            memory_mb: run.memory_usage_mb,
            errors: run.errors.total(),
        }
    }

    /// As its line in the file, without the line's end.
    pub fn json_line(&self) -> String {
        serde_json::to_string(self).expect("an entry is plain data")
    }

    /// When it began, for people.
    pub fn when(&self) -> String {
        self.timestamp.format(format_description!("[year]-[month]-[day] [hour]:[minute]")).unwrap_or_default()
    }

    /// The heading above entries as text.
    pub fn heading() -> String {
        format!(
            "{:<16}  {:<20} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}  {}",
            "when", "test", "messages/s", "p50", "p99", "p99.9", "CPU/msg", "errors", "server; kernel"
        )
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16}  {:<20} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}  {}; {}{}",
            self.when(),
            self.test_name,
            number(self.messages_per_second),
            latency(self.p50 * 1e9),
            latency(self.p99 * 1e9),
            latency(self.p99_9 * 1e9),
            self.cpu_us_per_message.map_or_else(|| "–".to_owned(), |cost| format!("{} us", number(cost))),
            self.errors,
            if self.server.is_empty() { "not known" } else { &self.server },
            self.kernel,
            if self.success { "" } else { "  FAILED" }
        )
    }
}

/// A metric with its name and text.
#[derive(Clone, Copy)]
pub struct Metric {
    /// For headings.
    pub title: &'static str,
    /// Of an entry; none where it was not measured.
    pub value: fn(&Entry) -> Option<f64>,
    /// As text.
    pub text: fn(f64) -> String,
}

impl Metric {
    /// By the name of the command line.
    pub fn of(name: MetricName) -> Metric {
        let measured = |title, value, text| Metric { title, value, text };
        match name {
            MetricName::MessagesPerSecond => measured("messages per second", |entry| Some(entry.messages_per_second), number),
            MetricName::P50 => measured("p50", |entry| Some(entry.p50 * 1e9), latency),
            MetricName::P99 => measured("p99", |entry| Some(entry.p99 * 1e9), latency),
            MetricName::P999 => measured("p99.9", |entry| Some(entry.p99_9 * 1e9), latency),
            MetricName::CpuPerMessage => measured("server CPU per message, us", |entry| entry.cpu_us_per_message, number),
            MetricName::Memory => measured("server memory, MiB", |entry| Some(entry.memory_mb).filter(|&mb| mb > 0.0), number),
        }
    }
}
