//! One run of the history.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, macros::format_description};

use super::MetricName;
use crate::{
    report::format::{latency, number},
    run_result::RunResult,
};

/// Characters of a command line that are kept.
const COMMAND_CHARS_MAX: usize = 4096;
/// Characters of a disk and of a command line that tables show.
const SHOWN_CHARS_MAX: usize = 60;

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
    /// The disk under the spool; empty in lines written before.
    #[serde(default)]
    pub disk: String,
    /// The command, at most 4,096 characters of it; empty in lines written before.
    #[serde(default)]
    pub command_line: String,
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
            disk: machine.disk.clone(),
            command_line: cut(&run.command_line.join(" "), COMMAND_CHARS_MAX),
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

    /// Where it comes from, for tables: server, tool, machine, kernel, disk, and the beginning of the command line.
    pub fn places(&self) -> [String; 6] {
        let known = |text: &str| if text.is_empty() { "not known".to_owned() } else { text.to_owned() };
        let (disk, command) = (cut(&self.disk, SHOWN_CHARS_MAX), cut(&self.command_line, SHOWN_CHARS_MAX));
        [known(&self.server), known(&self.tool), known(&self.machine), known(&self.kernel), known(&disk), known(&command)]
    }

    /// The heading above entries as text.
    pub fn heading() -> String {
        format!(
            "{:<16}  {:<20} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}  {}",
            "when", "test", "messages/s", "p50", "p99", "p99.9", "CPU/msg", "errors", "server; tool; machine; kernel; disk; command line"
        )
    }
}

/// At most so many characters of a text, and a sign where there are more.
fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
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
            "{:<16}  {:<20} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}  {}{}",
            self.when(),
            self.test_name,
            number(self.messages_per_second),
            cell(MetricName::P50),
            cell(MetricName::P99),
            cell(MetricName::P999),
            self.cpu_us_per_message.map_or_else(|| "–".to_owned(), |cost| format!("{} us", number(cost))),
            self.errors,
            self.places().join("; "),
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

    /// What happened: a history had neither disk nor command line, and its tables no commit of the tool either, all of which a figure is
    /// reported with or is a rumour.
    #[test]
    fn where_a_figure_comes_from_is_kept_and_shown_with_it() {
        let mut run = SampleRun { seconds: 1, ..SampleRun::default() }.result();
        run.machine.disk = "ext4 on /dev/vda, not rotational".into();
        run.machine.tool = "0.1.0 (abcdef)".into();
        run.command_line = vec!["ringpost-load".into(), "source".into(), "--header".into(), "x".repeat(100)];
        let entry = Entry::new(&run);
        let json: serde_json::Value = serde_json::from_str(&entry.json_line()).unwrap();
        assert_eq!((&json["disk"], &json["command_line"]), (&run.machine.disk.clone().into(), &run.command_line.join(" ").into()));
        let shown = entry.to_string();
        for part in ["ext4 on /dev/vda", "0.1.0 (abcdef)", "2 cores", "Linux 6.1", "ringpost-load source --header xx", "xx…"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let page = super::super::trend::page(std::slice::from_ref(&entry));
        assert!(page.contains("ext4 on /dev/vda") && page.contains("0.1.0 (abcdef)") && page.contains(&entry.command_line), "{page}");
        // Lines written before are read.
        let mut old = json;
        ["disk", "command_line"].iter().for_each(|name| drop(old.as_object_mut().unwrap().remove(*name)));
        assert!(serde_json::from_value::<Entry>(old).unwrap().to_string().ends_with("not known; not known"));
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
