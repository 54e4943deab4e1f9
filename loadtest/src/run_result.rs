//! The result of one run: the JSON that `report`, `compare` and `history` read.
//!
//! The first fields have the names that users of other mail load tests know; times there are seconds. Everything behind them is
//! what makes the numbers trustworthy: full percentiles (nanoseconds), intervals, machine, command line.

mod bounds;
mod check;
mod load;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::SystemTime,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use bounds::Bounds;
pub use load::Load;

use crate::{
    cli::Failure,
    encoded_histogram::EncodedHistogram,
    error_kind::ErrorCounts,
    input_file,
    interval::Interval,
    machine::Machine,
    measurement::Measurement,
    percentile::{PERCENTILES, by_name, is_told, told},
    permissions,
    phase::Phase,
    server_cpu::{CpuByPhase, MeasuredPart, ServerCpu},
};

/// Version of this file's shape; a reader refuses others.
pub const FORMAT: u32 = 1;
/// The largest result that is read: an hour of intervals of all phases is a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Fewer open connections than this say nothing of what a connection costs: the mail under way weighs more.
pub const CONNECTIONS_THAT_COUNT: u64 = 500;

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`].
    pub format: u32,
    /// Scenario or free name.
    pub test_name: String,
    /// Seconds.
    pub duration: f64,
    /// Everything that the scenario demands held.
    pub success: bool,
    /// Messages acknowledged.
    pub emails_sent: u64,
    /// Messages acknowledged per second.
    pub emails_per_second: f64,
    /// Mean of whole transactions ([`Phase::Transaction`]), seconds.
    pub avg_response_time: f64,
    /// Median, seconds.
    pub median_response_time: f64,
    /// 95th percentile, seconds, where it is told ([`crate::percentile`]).
    pub p95_response_time: Option<f64>,
    /// 99th percentile, the same.
    pub p99_response_time: Option<f64>,
    /// Shortest, seconds.
    pub min_response_time: f64,
    /// Longest, seconds.
    pub max_response_time: f64,
    /// Errors by SMTP code or kind.
    pub errors: ErrorCounts,
    /// CPU of the server under test, percent of one core, mean over the load or [`Self::server_cpu_measured`], where it was measured. Results
    /// written before have 0 where it was not; those of scenarios with a next hop have that of the drain behind the load in it, too.
    #[serde(default, deserialize_with = "measured")]
    pub cpu_usage: Option<f64>,
    /// Most resident memory of the server under test, MiB, the same.
    #[serde(default, deserialize_with = "measured")]
    pub memory_usage_mb: Option<f64>,
    /// When the run began.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// Why `success` is false: each demand that did not hold, as a sentence.
    #[serde(default)]
    pub failures: Vec<String>,
    /// It was ended from outside before its time.
    #[serde(default)]
    pub interrupted: bool,
    /// What became of messages that were not acknowledged.
    #[serde(default, flatten)]
    pub fates: Fates,
    /// Transactions begun. A session that is given up at its banner or EHLO has begun none; up to commit 4d8a1bc it had.
    pub transactions_begun: u64,
    /// Content bytes acknowledged.
    pub acknowledged_bytes: u64,
    /// Most connections open at once; of several generator threads the sum of that of each.
    pub connections_max: u64,
    /// What the server's memory grew by for each of [`Self::connections_max`], mail under way included; known where its process
    /// is and at least [`CONNECTIONS_THAT_COUNT`] were open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_connection: Option<f64>,
    /// CPU of the generator, percent of one core, mean.
    pub generator_cpu_usage: f64,
    /// CPU of the server for each acknowledged message, microseconds; of those of [`Self::server_cpu_measured`], where that is there, or of all
    /// [`Self::server_cpu_by_phase`] that was used for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_message: Option<f64>,
    /// CPU of the server during the load and behind it, where a scenario measured both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_by_phase: Option<CpuByPhase>,
    /// The part of the run that the server's CPU is of, where it is not known of all: its process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cpu_measured: Option<MeasuredPart>,
    /// The load that was asked for.
    pub load: Load,
    /// Where the server turns mail away, as far as that is known.
    #[serde(default, skip_serializing_if = "Bounds::is_unknown")]
    pub bounds: Bounds,
    /// Latencies by phase.
    pub phases: BTreeMap<Phase, PhaseSummary>,
    /// The run second by second.
    pub intervals: Vec<Interval>,
    /// The server's counters before the run (`ringpost stats --json`).
    #[serde(default)]
    pub initial_metrics: BTreeMap<String, f64>,
    /// The server's counters after it.
    #[serde(default)]
    pub final_metrics: BTreeMap<String, f64>,
    /// What the scenario was told, all of it.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// Arguments of the command that made this; octets that are no UTF-8 as U+FFFD.
    pub command_line: Vec<String>,
    /// Where it was measured.
    pub machine: Machine,
}

/// Messages that were not acknowledged.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fates {
    /// Answered with 4xx or 5xx.
    pub refused: u64,
    /// The connection ended between the end of content and the reply.
    pub unknown: u64,
    /// The connection ended before.
    pub unsent: u64,
    /// Given up on purpose, also before they were begun.
    pub aborted: u64,
    /// Recipients answered with 4xx or 5xx, those of refused messages too; each is an error by its code.
    pub recipients_refused: u64,
    /// Due by the schedule, and no session took them until the end; or still to be begun when a load gave up.
    pub never_begun: u64,
    /// Times that a session waited to connect again after a failure.
    pub pauses: u64,
    /// How long all of them waited so, added up, seconds.
    pub paused_s: f64,
}

/// Latencies of one phase, nanoseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PhaseSummary {
    /// Values recorded.
    pub count: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Standard deviation.
    pub stdev_ns: f64,
    /// Longest.
    pub max_ns: u64,
    /// By the names of [`PERCENTILES`]; nothing where `count` is too small for it ([`crate::percentile`]).
    pub percentiles_ns: BTreeMap<String, Option<u64>>,
    /// All of it: HdrHistogram V2, deflate, base64.
    pub histogram: EncodedHistogram,
}

impl PhaseSummary {
    /// Of a histogram in nanoseconds.
    pub fn new(histogram: &Histogram<u64>) -> Self {
        PhaseSummary {
            count: histogram.len(),
            min_ns: if histogram.is_empty() { 0 } else { histogram.min() },
            mean_ns: histogram.mean(),
            stdev_ns: histogram.stdev(),
            max_ns: histogram.max(),
            percentiles_ns: PERCENTILES.iter().map(|&(name, at)| (name.to_owned(), told(histogram, at))).collect(),
            histogram: EncodedHistogram::new(histogram),
        }
    }

    /// A percentile of [`PERCENTILES`], where the file has it and it is told: files written before have those that are not, too.
    pub fn percentile_ns(&self, name: &str) -> Option<u64> {
        let is_told = by_name(name).is_some_and(|at| is_told(at, self.count));
        self.percentiles_ns.get(name).copied().flatten().filter(|_| is_told)
    }
}

/// What a run's result needs beside what was measured.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// Scenario or free name.
    pub test_name: String,
    /// When it began.
    pub started: SystemTime,
    /// Seconds that the load lasted, as `CoreReport::lasted` has it.
    pub duration_s: f64,
    /// Demands that did not hold, as sentences; none is success.
    pub failures: Vec<String>,
    /// It was ended from outside before its time.
    pub interrupted: bool,
    /// What became of messages that were not acknowledged.
    pub fates: Fates,
    /// The load asked for.
    pub load: Load,
    /// The server's bounds.
    pub bounds: Bounds,
    /// Settings of the scenario.
    pub settings: serde_json::Value,
    /// Server counters before.
    pub initial_metrics: BTreeMap<String, f64>,
    /// Server counters after.
    pub final_metrics: BTreeMap<String, f64>,
    /// CPU seconds the server used during the whole load, where that is known; else what was measured of it counts
    /// ([`Measurement::server_cpu`]).
    pub server_cpu_s: Option<f64>,
    /// The same, and what it used behind the load, where its queue was waited for.
    pub server_cpu_by_phase: Option<CpuByPhase>,
    /// CPU seconds the generator used.
    pub generator_cpu_s: f64,
    /// Memory of the server before the load, bytes.
    pub server_memory_before: Option<u64>,
    /// The machine.
    pub machine: Machine,
}

impl RunResult {
    /// Puts a result together. The command line is this process's.
    pub fn new(measurement: Measurement, facts: RunFacts) -> Self {
        let (connections_max, measured) = (measurement.connections_max(), measurement.server_cpu());
        let (totals, intervals) = measurement.finish();
        let response = PhaseSummary::new(totals.histogram(Phase::Transaction));
        let seconds = |ns: u64| ns as f64 / 1e9;
        let whole = MeasuredPart { seconds: facts.duration_s, messages: totals.acknowledged };
        let server_cpu = facts.server_cpu_s.map(|cpu_s| ServerCpu { cpu_s, within: whole }).or(measured);
        let memory_max = intervals.iter().filter_map(|i| Some(i.engine?.memory_bytes)).max().filter(|&bytes| bytes > 0);
        RunResult {
            format: FORMAT,
            test_name: facts.test_name,
            duration: facts.duration_s,
            success: facts.failures.is_empty(),
            emails_sent: totals.acknowledged,
            emails_per_second: if facts.duration_s > 0.0 { totals.acknowledged as f64 / facts.duration_s } else { 0.0 },
            avg_response_time: response.mean_ns / 1e9,
            median_response_time: response.percentile_ns("p50").map_or(0.0, seconds),
            p95_response_time: response.percentile_ns("p95").map(seconds),
            p99_response_time: response.percentile_ns("p99").map(seconds),
            min_response_time: seconds(response.min_ns),
            max_response_time: seconds(response.max_ns),
            errors: totals.errors.clone(),
            cpu_usage: server_cpu.and_then(|cpu| cpu.percent()),
            memory_usage_mb: memory_max.map(|bytes| bytes as f64 / f64::from(1 << 20)),
            timestamp: OffsetDateTime::from(facts.started),
            failures: facts.failures,
            interrupted: facts.interrupted,
            fates: facts.fates,
            transactions_begun: totals.sent,
            acknowledged_bytes: totals.acknowledged_bytes,
            connections_max,
            memory_bytes_per_connection: facts
                .server_memory_before
                .filter(|_| connections_max >= CONNECTIONS_THAT_COUNT)
                .zip(memory_max)
                .map(|(before, most)| most.saturating_sub(before) as f64 / connections_max as f64),
            generator_cpu_usage: if facts.duration_s > 0.0 { facts.generator_cpu_s / facts.duration_s * 100.0 } else { 0.0 },
            cpu_us_per_message: match facts.server_cpu_by_phase {
                Some(cpu) => cpu.us_per_message(),
                None => server_cpu.and_then(|cpu| cpu.us_per_message()),
            },
            server_cpu_by_phase: facts.server_cpu_by_phase,
            server_cpu_measured: measured.filter(|_| facts.server_cpu_s.is_none()).map(|cpu| cpu.within),
            load: facts.load,
            bounds: facts.bounds,
            phases: Phase::ALL
                .into_iter()
                .filter(|&phase| !totals.histogram(phase).is_empty())
                .map(|phase| (phase, PhaseSummary::new(totals.histogram(phase))))
                .collect(),
            intervals,
            initial_metrics: facts.initial_metrics,
            final_metrics: facts.final_metrics,
            settings: facts.settings,
            command_line: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            machine: facts.machine,
        }
    }

    /// A percentile of whole transactions, seconds, where it is told.
    pub fn percentile_s(&self, name: &str) -> Option<f64> {
        Some(self.phases.get(&Phase::Transaction)?.percentile_ns(name)? as f64 / 1e9)
    }

    /// Messages acknowledged per second while the server's CPU was measured, where it was.
    pub fn per_second_when_measured(&self) -> f64 {
        self.server_cpu_measured.map_or(self.emails_per_second, |part| part.per_second())
    }

    /// Whole transactions that were timed: what their percentiles rest on.
    pub fn transactions(&self) -> u64 {
        self.phases.get(&Phase::Transaction).map_or(0, |summary| summary.count)
    }

    /// Was it a load of connections without mail: `idle`, `slowloris`, `churn`?
    pub fn is_of_connections(&self) -> bool {
        self.settings["connections"].is_object()
    }

    /// Transactions that were begun and failed: refused, or the connection ended before the reply. One that went to some of its recipients did
    /// not. Results written before have no fates: of them what is known are their errors. Of connections that are held those failed that were
    /// not greeted; that the server closed some is an error by its kind and its right.
    pub fn transactions_failed(&self) -> u64 {
        if self.is_of_connections() {
            return self.fates.unsent;
        }
        match self.fates.refused + self.fates.unknown + self.fates.unsent {
            0 if self.fates == Fates::default() => self.errors.total(),
            failed => failed,
        }
    }

    /// Reads a result. [`Failure::Io`] when it cannot be read, [`Failure::Data`] when it is none or of another format.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        Self::parse(&read_text(path)?).map_err(|reason| Failure::Data(format!("{}: {reason}", path.display())))
    }

    /// Parses a result.
    pub fn parse(text: &str) -> Result<Self, String> {
        let result: RunResult = serde_json::from_str(text).map_err(|reason| format!("not a result: {reason}"))?;
        result.check()?;
        Ok(result)
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(self).expect("a result is plain data");
        text.push('\n');
        write_whole(path, text.as_bytes()).map_err(|reason| Failure::io(path.display(), reason))
    }
}

/// What was measured; nothing of it is nothing measured, as older results say it.
fn measured<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.filter(|&value| value != 0.0))
}

/// Reads a regular text file of at most 1 GiB.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    // What is not there, or is something else, is a wrong argument's fault and not the disk's.
    let fail = |reason: io::Error| match reason.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::FileTooLarge => Failure::Data(format!("{}: {reason}", path.display())),
        _ => Failure::io(path.display(), reason),
    };
    input_file::read_text(path, FILE_BYTES_MAX).map_err(fail)
}

/// Refuses a place where a file could not be written, before what it is for takes its time.
///
/// # Errors
/// [`Failure::Io`] with the path.
pub fn check_place(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |reason: io::Error| Failure::io(path.display(), reason);
    if path.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    if is_no_file(path) {
        return Ok(());
    }
    tempfile::tempfile_in(folder).map(drop).map_err(fail)
}

/// Is there something that is written to and not replaced, such as `/dev/stdout` or a pipe?
fn is_no_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|known| !known.is_file() && !known.is_dir())
}

/// Writes a file under another name in the same folder and renames it, so that a reader sees the old or the new one. Mode and owner stay those
/// of a file that is replaced ([`permissions::take_over`]). A device or a pipe is written as it is, and a link is followed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if is_no_file(path) {
        return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    // One that leads nowhere yet has no path: it is replaced.
    let target = fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let mut name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    // Synced first: after a power cut the name must not be there without the bytes.
    let write = || {
        let mut options = fs::File::options();
        // Until it has the mode of what it replaces it is nobody else's.
        let mode = if target.is_ok() { 0o600 } else { 0o666 };
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        permissions::take_over(path, &file)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    let written = write();
    if written.is_err() {
        // What could not be put in place is of no use; that it may not be removable either is not the news.
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{measurement::Recorder, process::Look, sample_run::SampleRun};

    /// What happened: whoever asked for a page in `/dev/stdout` as root had a file in that place from then on, and no page.
    #[test]
    fn what_is_no_file_is_written_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (device, link, file) = (folder.path().join("device"), folder.path().join("link"), folder.path().join("file"));
        std::os::unix::fs::symlink("/dev/full", &device).unwrap();
        check_place(&device).unwrap();
        assert_eq!(write_whole(&device, b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_link(&device).unwrap(), Path::new("/dev/full"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), fs::read_link(&link).unwrap().as_path()), ("new", Path::new("file")));
    }

    /// What happened: `p99.9` of five hundred messages stood in results as if it were one, and was the longest.
    #[test]
    fn a_percentile_that_few_values_lie_beyond_is_null_beside_its_count() {
        let json = |seconds| serde_json::to_value(SampleRun { seconds, ..SampleRun::default() }.result()).unwrap();
        let (few, many) = (json(1), json(3));
        assert!(few["phases"]["transaction"]["count"].as_u64().is_some_and(|count| (200..1000).contains(&count)));
        assert!(few["phases"]["transaction"]["percentiles_ns"]["p99"].is_null() && few["p99_response_time"].is_null());
        assert!(few["phases"]["transaction"]["percentiles_ns"]["p95"].is_u64() && few["p95_response_time"].is_f64());
        assert!(many["phases"]["transaction"]["percentiles_ns"]["p99"].is_u64() && many["p99_response_time"].is_f64());
    }

    /// What happened: of a server that was not measured reports said 0 % and 0 MiB.
    #[test]
    fn what_was_not_measured_is_null_and_an_older_results_0_is_that() {
        let mut json = serde_json::to_value(SampleRun { seconds: 1, ..SampleRun::default() }.result()).unwrap();
        json["cpu_usage"] = 0.0.into();
        json["memory_usage_mb"] = 0.0.into();
        let run = RunResult::parse(&json.to_string()).unwrap();
        assert_eq!((run.cpu_usage, run.memory_usage_mb), (None, None));
        assert!(serde_json::to_value(&run).unwrap()["cpu_usage"].is_null());
    }

    /// Results of before have all percentiles; they are read, and those that say nothing are not told.
    #[test]
    fn a_percentile_of_an_older_result_is_told_by_the_same_rule() {
        let mut json = serde_json::to_value(SampleRun { seconds: 1, ..SampleRun::default() }.result()).unwrap();
        json["phases"]["transaction"]["percentiles_ns"]["p99.9"] = 7_000_000.into();
        json["p99_response_time"] = 0.007.into();
        let run = RunResult::parse(&json.to_string()).unwrap();
        assert_eq!((run.percentile_s("p99.9"), run.percentile_s("p95").is_some()), (None, true));
    }

    /// What happened: the mean of the seconds in which the server lived was multiplied by the length of the whole run, so that one that died
    /// after a quarter of it had used twice and four times what it had.
    #[test]
    fn cpu_of_a_server_that_ended_is_that_of_the_seconds_and_messages_it_was_measured_for() {
        let mut run = Measurement::new();
        for second in 0..8 {
            let mut recorder = Recorder::new();
            // It dies within the third second: what it used there nobody knows.
            (0..if second < 2 { 500 } else { 100 * u64::from(second == 2) }).for_each(|_| {
                recorder.sent();
                recorder.acknowledged(1);
                recorder.record_ns(Phase::Transaction, 1000);
            });
            run.add(second, &recorder.take(0, 0));
            let look = Look { cpu: Duration::from_millis(100), wall: Duration::from_secs(1), memory_bytes: 1 };
            run.sample(second, (second < 2).then_some(look), None);
        }
        let result = RunResult::new(run, RunFacts { server_cpu_s: None, ..SampleRun { seconds: 8, ..SampleRun::default() }.facts() });
        let about = |value: Option<f64>, wanted: f64| value.is_some_and(|value| (value - wanted).abs() < 1e-9);
        assert!(about(result.cpu_usage, 10.0) && about(result.cpu_us_per_message, 200.0), "{result:?}");
        assert_eq!(result.server_cpu_measured, Some(MeasuredPart { seconds: 2.0, messages: 1000 }));
        assert_eq!((result.emails_sent, result.per_second_when_measured()), (1100, 500.0));
        assert_eq!(RunResult::parse(&serde_json::to_string(&result).unwrap()).unwrap(), result);
        // What is known of the whole run needs no part.
        let whole = SampleRun::default().result();
        assert_eq!((whole.server_cpu_measured, whole.per_second_when_measured()), (None, whole.emails_per_second));
    }

    /// What happened: what the server used while its queue emptied behind the load was divided by the seconds of the load, and what the
    /// background's mail cost was charged to the others'.
    #[test]
    fn cpu_of_the_drain_is_apart_and_a_messages_cost_is_that_of_all_it_was_for() {
        let sample = SampleRun { seconds: 10, ..SampleRun::default() };
        let result = |is_drained| {
            let whole = sample.result();
            let cpu = CpuByPhase { load_s: 6.0, drain_s: 3.0, drain_lasted_s: 4.0, messages: whole.emails_sent + 1000, is_drained };
            let facts = RunFacts { server_cpu_s: Some(6.0), server_cpu_by_phase: Some(cpu), ..sample.facts() };
            RunResult::new(sample.measurement(), facts)
        };
        let run = result(true);
        assert_eq!((run.cpu_usage.map(f64::round), run.server_cpu_by_phase.map(|cpu| cpu.drain_s)), (Some(60.0), Some(3.0)));
        let cost = 9e6 / (run.emails_sent + 1000) as f64;
        assert!(run.cpu_us_per_message.is_some_and(|us| (us - cost).abs() < 1e-9), "{:?}", run.cpu_us_per_message);
        let read = RunResult::parse(&serde_json::to_string(&run).unwrap()).unwrap();
        assert_eq!(read.server_cpu_by_phase, run.server_cpu_by_phase);
        assert_eq!(result(false).cpu_us_per_message, None, "some were accepted only");
    }

    #[test]
    fn memory_per_connection_is_its_growth_and_only_said_of_many() {
        let cost = |connections| SampleRun { connections, ..SampleRun::default() }.result().memory_bytes_per_connection;
        // 50.09 MB at most, 40 before.
        assert_eq!(cost(1000), Some(10_090.0));
        assert_eq!(cost(CONNECTIONS_THAT_COUNT - 1), None);
    }
}
