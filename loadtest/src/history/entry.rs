//! One run of the history.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, macros::format_description};

use super::MetricName;
use crate::{
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
    /// Whole transactions that were timed; lines written before do not say.
    #[serde(default)]
    pub transactions: Option<u64>,
    /// Whole transactions, seconds, where it is told ([`crate::percentile`]); lines without their number have it in any case.
    #[serde(default)]
    pub p95: Option<f64>,
    /// The same.
    #[serde(default)]
    pub p99: Option<f64>,
    /// The same.
    #[serde(default)]
    pub p99_9: Option<f64>,
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
            transactions: Some(run.transactions()),
            p95: run.percentile_s("p95"),
            p99: run.percentile_s("p99"),
            p99_9: run.percentile_s("p99.9"),
            cpu_us_per_message: run.cpu_us_per_message,
            memory_mb: run.memory_usage_mb.unwrap_or(0.0),
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
        let cell = |name| {
            let metric = Metric::of(name);
            (metric.value)(self).map_or_else(|| "–".to_owned(), metric.text)
        };
        write!(
            f,
            "{:<16}  {:<20} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}  {}; {}{}",
            self.when(),
            self.test_name,
            number(self.messages_per_second),
            cell(MetricName::P50),
            cell(MetricName::P99),
            cell(MetricName::P999),
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
            MetricName::P50 => measured("p50", |entry| Some(entry.p50 * 1e9).filter(|&ns| ns > 0.0), latency),
            MetricName::P99 => measured("p99", |entry| Some(entry.p99? * 1e9), latency),
            MetricName::P999 => measured("p99.9", |entry| Some(entry.p99_9? * 1e9), latency),
            MetricName::CpuPerMessage => measured("server CPU per message, us", |entry| entry.cpu_us_per_message, number),
            MetricName::Memory => measured("server memory, MiB", |entry| Some(entry.memory_mb).filter(|&mb| mb > 0.0), number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    /// What happened: of a run of four hundred messages the longest stood under p99.9, and a trend was drawn of it.
    #[test]
    fn a_percentile_of_few_messages_is_a_dash_and_null_beside_their_number() {
        let run = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        let entry = Entry::new(&run);
        let json: serde_json::Value = serde_json::from_str(&entry.json_line()).unwrap();
        assert!(json["p99"].is_null() && json["p99_9"].is_null() && json["p95"].is_f64(), "{json}");
        assert_eq!(json["transactions"], run.emails_sent);
        let cells: Vec<String> = entry.to_string().split_whitespace().map(str::to_owned).collect();
        assert_eq!(cells.iter().filter(|cell| *cell == "–").count(), 2, "{entry}");
        assert_eq!((Metric::of(MetricName::P999).value)(&entry), None);
        let long = Entry::new(&SampleRun { seconds: 30, ..SampleRun::default() }.result());
        assert!(long.p99.is_some() && long.p99_9.is_some());
    }

    #[test]
    fn lines_that_do_not_say_how_many_messages_are_read_as_they_are() {
        let entry = Entry::new(&SampleRun { seconds: 3, ..SampleRun::default() }.result());
        let mut json: serde_json::Value = serde_json::from_str(&entry.json_line()).unwrap();
        json.as_object_mut().unwrap().remove("transactions");
        json["p99_9"] = 0.5.into();
        let old: Entry = serde_json::from_value(json).unwrap();
        assert_eq!((old.transactions, old.p99_9), (None, Some(0.5)));
        assert!(old.to_string().contains("500 ms"), "{old}");
    }
}
