//! `ringpost-load idle`, `slowloris` and `churn`: their command lines, and what they print.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use serde_json::json;

use crate::{
    cli::{EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_OK, EXIT_UNAVAILABLE, Failure, say},
    connections::{
        ConnectionsOptions, ConnectionsReport, Mode,
        result::{Facts, result},
        run,
    },
    live::{Beside, Lines, shown, usual_viewer},
    machine::Machine,
    measurement::Measurement,
    percentile::told,
    phase::Phase,
    process::tree_use,
    run_result::check_place,
    server_cores::ThreadTimes,
    signals::StopSignal,
    source::arguments::{Cores, MEASURED, check_server_pid, last_core, parse_core_list, parse_cores, resolve, seconds_above_zero},
};

/// What the three have in common.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Where to: HOST:PORT.
    #[arg(long)]
    pub to: String,
    /// Cores: 0,1 or 0-3. Default: the last one this process may use.
    #[arg(long, value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// How long, seconds.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Local addresses that connections take in turn. Default: several of 127.0.1.0/24 where loopback has too few ports.
    #[arg(long, value_delimiter = ',')]
    pub from_address: Vec<IpAddr>,
    /// How long a connection or a reply is waited for, seconds.
    #[arg(long, default_value_t = 30.0)]
    pub timeout: f64,
    /// Process of the server, when it is on this machine: memory and CPU of it and of all processes below it are measured.
    #[arg(long)]
    pub server_pid: Option<u32>,
    /// Its cores: 0,1 or 0-3. Default: those that the threads may use which do nine tenths of its work, and
    /// each that one may not leave.
    #[arg(long, requires = "server_pid", value_parser = parse_core_list, value_name = "CORES")]
    pub server_cores: Option<Cores>,
    /// Write the result as JSON, in place of a file that has this name; a connection that was greeted counts as a message there, and its opening
    /// as the response.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name in the result [default: that of the command]
    #[arg(long, requires = "output", value_name = "TEXT")]
    pub name: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// No live line per second.
    #[arg(long)]
    pub quiet: bool,
}

/// `ringpost-load idle …`
#[derive(Args, Debug, Clone)]
pub struct IdleArguments {
    #[command(flatten)]
    common: Common,
    /// Connections at once.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Say NOOP now and then: seconds between two.
    #[arg(long)]
    noop_every: Option<f64>,
}

/// `ringpost-load slowloris …`
#[derive(Args, Debug, Clone)]
pub struct SlowlorisArguments {
    #[command(flatten)]
    common: Common,
    /// Connections at once.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Seconds between two octets.
    #[arg(long, default_value_t = 1.0)]
    octet_every: f64,
    /// Content behind DATA instead of a command.
    #[arg(long)]
    in_content: bool,
}

/// `ringpost-load churn …`
#[derive(Args, Debug, Clone)]
pub struct ChurnArguments {
    #[command(flatten)]
    common: Common,
    /// Connections at once.
    #[arg(long, default_value_t = 20)]
    connections: usize,
}

impl IdleArguments {
    /// Holds connections. The exit code: 0 all were greeted and none closed by the server, 69 nobody took one, 130 it was interrupted, 1
    /// otherwise.
    ///
    /// # Errors
    /// What makes it impossible.
    pub fn run(&self) -> Result<u8, Failure> {
        let noop_every = self.noop_every.map(|every| seconds_above_zero(every, "--noop-every")).transpose()?;
        self.common.run("idle", self.connections, Mode::Idle { noop_every }, |report| {
            report.failed + report.closed_by_server == 0 && report.greeted >= self.connections as u64
        })
    }
}

impl SlowlorisArguments {
    /// Holds connections slowly. The exit code: 0 the connections were made; that the server ends them is its right.
    ///
    /// # Errors
    /// What makes it impossible.
    pub fn run(&self) -> Result<u8, Failure> {
        let mode = Mode::Slowloris { octet_every: seconds_above_zero(self.octet_every, "--octet-every")?, in_content: self.in_content };
        self.common.run("slowloris", self.connections, mode, |report| report.greeted > 0)
    }
}

impl ChurnArguments {
    /// Connects and leaves. The exit code: 0 no connection failed, 1 some did.
    ///
    /// # Errors
    /// What makes it impossible.
    pub fn run(&self) -> Result<u8, Failure> {
        self.common.run("churn", self.connections, Mode::Churn, |report| report.failed == 0 && report.greeted > 0)
    }
}

impl Common {
    fn run(&self, name: &str, connections: usize, mode: Mode, is_well: impl Fn(&ConnectionsReport) -> bool) -> Result<u8, Failure> {
        check_server_pid(self.server_pid, MEASURED)?;
        self.output.as_deref().map_or(Ok(()), check_place)?;
        let options = ConnectionsOptions {
            to: resolve(&self.to)?,
            cores: match &self.cores {
                Some(cores) => cores.0.clone(),
                None => vec![last_core()?],
            },
            connections,
            duration: seconds_above_zero(self.seconds, "--seconds")?,
            mode,
            addresses: self.from_address.clone(),
            timeout: seconds_above_zero(self.timeout, "--timeout")?,
        };
        let machine = Machine::observe(Path::new("."), "");
        let stop = StopSignal::listen().map_err(|error| Failure::io("signals", error))?;
        let mut viewer = usual_viewer(self.quiet || self.json, Lines::of_connections());
        let used = || self.server_pid.and_then(|pid| tree_use(pid).ok());
        let before = used();
        let threads = self.server_pid.and_then(|pid| ThreadTimes::of_server(pid).ok());
        let mut memory_per_connection = None;
        let mut when_open = |open: u64| {
            if let (Some(before), Some(now)) = (before, used()) {
                memory_per_connection = Some(now.memory_bytes.saturating_sub(before.memory_bytes) as f64 / open.max(1) as f64);
            }
        };
        let server_pid = || self.server_pid;
        let beside = Beside { server_pid: Some(&server_pid), sinks: &[] };
        let (started, began) = (SystemTime::now(), Instant::now());
        let (report, measurement) = run(options.clone(), beside, &stop, &mut *viewer, &mut when_open)?;
        let lasted_s = began.elapsed().as_secs_f64();
        let server_cores = threads.and_then(|threads| threads.cores_since());
        let server_cpu = before.zip(used()).map(|(before, after)| after.cpu.saturating_sub(before.cpu).as_secs_f64());
        let text = summary(name, &report, &measurement, memory_per_connection, server_cpu);
        if self.json {
            say(&text.to_string())?;
        } else {
            print(name, self.seconds, connections as u64, &report, &measurement, memory_per_connection, server_cpu)?;
        }
        let code = match is_well(&report) {
            _ if stop.is_asked() => EXIT_INTERRUPTED,
            true => EXIT_OK,
            false if measurement.totals().histogram(Phase::Connect).is_empty() => EXIT_UNAVAILABLE,
            false => EXIT_NEGATIVE,
        };
        let Some(path) = &self.output else { return Ok(code) };
        let facts = Facts {
            name: self.name.clone().unwrap_or_else(|| name.to_owned()),
            started,
            lasted_s,
            failures: failures(code, lasted_s, connections as u64, &report),
            interrupted: code == EXIT_INTERRUPTED,
            server_cpu_s: server_cpu,
            server_cores: self.server_cores.as_ref().map(|cores| cores.0.len() as u32).or(server_cores),
            server_memory_before: before.map(|before| before.memory_bytes),
            machine,
        };
        result(&options, &report, measurement, facts).write(path).map(|()| code)
    }
}

/// What did not hold, as sentences; nothing where the exit code says that all did.
fn failures(code: u8, lasted_s: f64, connections: u64, report: &ConnectionsReport) -> Vec<String> {
    let mut failures = Vec::new();
    if code == EXIT_OK {
        return failures;
    }
    if code == EXIT_INTERRUPTED {
        failures.push(format!("it was interrupted after {lasted_s:.2} s"));
    }
    if report.failed > 0 {
        failures.push(format!(
            "{} connections failed; the last trouble: {}",
            report.failed,
            report.last_trouble.as_deref().unwrap_or("none")
        ));
    }
    failures.extend(silent_text(connections, report));
    if report.closed_by_server > 0 {
        failures.push(format!("the server closed {} connections", report.closed_by_server));
    }
    if failures.is_empty() {
        failures.push("no connection was greeted".to_owned());
    }
    failures
}

/// A sentence where connections neither failed nor came to anything.
fn silent_text(connections: u64, report: &ConnectionsReport) -> Option<String> {
    let silent = connections.checked_sub(report.greeted + report.failed).filter(|&silent| silent > 0)?;
    Some(format!("{silent} were connected, or tried to be, and never greeted: the server has too few processes or threads"))
}

pub(super) fn us(time: Duration) -> u64 {
    time.as_micros() as u64
}

fn summary(
    name: &str,
    report: &ConnectionsReport,
    measurement: &Measurement,
    memory_per_connection: Option<f64>,
    server_cpu_s: Option<f64>,
) -> serde_json::Value {
    let percentiles = |phase: Phase| {
        let latency = measurement.totals().histogram(phase);
        let at = |percentile: f64| told(latency, percentile).map(|ns| ns / 1000);
        json!({ "count": latency.len(), "p50_us": at(50.0), "p99_us": at(99.0), "max_us": at(100.0) })
    };
    json!({
        "mode": name, "greeted": report.greeted, "failed": report.failed, "open_max": report.open_max, "open_at_end": report.open_at_end,
        "closed_by_server": report.closed_by_server, "told_421": report.told_421,
        "closed_after_us": report.closed_after.map(|(least, most)| [us(least), us(most)]),
        "greeted_per_second": report.greeted_per_second(), "errors": measurement.totals().errors,
        "memory_bytes_per_connection": memory_per_connection, "server_cpu_s": server_cpu_s,
        "own_cpu_us_per_connection": report.cpu.as_secs_f64() * 1e6 / report.greeted.max(1) as f64,
        "connect": percentiles(Phase::Connect), "banner": percentiles(Phase::Banner), "ehlo": percentiles(Phase::Ehlo),
        "last_trouble": report.last_trouble,
    })
}

fn print(
    name: &str,
    seconds: f64,
    connections: u64,
    report: &ConnectionsReport,
    measurement: &Measurement,
    memory_per_connection: Option<f64>,
    server_cpu_s: Option<f64>,
) -> Result<(), Failure> {
    say(&format!(
        "{name}: {} connections greeted ({:.0}/s), {} failed, at most {} at once, {} open at the end",
        report.greeted,
        report.greeted_per_second(),
        report.failed,
        report.open_max,
        report.open_at_end
    ))?;
    if let Some(text) = silent_text(connections, report) {
        say(&text)?;
    }
    if let Some((least, most)) = report.closed_after {
        say(&format!("the server closed {} of them after {least:.1?} to {most:.1?}", report.closed_by_server))?;
    }
    if report.told_421 > 0 {
        say(&format!("421 was its answer to {}, as a greeting or at the end", report.told_421))?;
    }
    for phase in [Phase::Connect, Phase::Banner, Phase::Ehlo] {
        let latency = measurement.totals().histogram(phase);
        if !latency.is_empty() {
            let at = |percentile: f64| shown(latency, percentile);
            say(&format!("{:<10} p50 {}, p99 {}, max {}", phase.title(), at(50.0), at(99.0), at(100.0)))?;
        }
    }
    if let Some(bytes) = memory_per_connection {
        say(&format!("memory of the server per open connection: {:.2} KiB", bytes / 1024.0))?;
    }
    if let Some(cpu) = server_cpu_s {
        say(&format!("CPU of the server: {cpu:.2} s in {seconds} s"))?;
    }
    report.last_trouble.as_ref().map_or(Ok(()), |trouble| say(&format!("the last trouble: {trouble}")))
}
