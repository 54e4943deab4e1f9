//! A run while it goes on: gathers what the cores measure, once a second, and shows it.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant, SystemTime},
};

use hdrhistogram::Histogram;

use crate::{
    measurement::{Measurement, Part},
    parts::CorePart,
    percentile::told,
    phase::Phase,
    pinning,
    process::{Look, ProcessMeter, ProcessSample, tree_use},
    server_cores::ThreadTimes,
    signals::StopSignal,
    sink::Sink,
    source::{CoreReport, Source, SourceError, SourceOptions},
};

/// How often a run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A run that has not ended so long after it was asked to says what it waits for.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// What it says then.
const WAITED_FOR: &str = "messages are under way: their replies are waited for, as long as --timeout says and 30 s at most; a second Ctrl-C \
                          ends it at once, without figures";

/// A trouble that goes on is said again after so long.
const TROUBLE_EVERY: Duration = Duration::from_secs(10);

/// One second of a run.
#[derive(Debug)]
pub struct Second<'a> {
    /// Which; the first is 0.
    pub number: u64,
    /// What all cores measured in it.
    pub part: &'a Part,
    /// All so far.
    pub totals: &'a Part,
    /// The server under test, where its process is known.
    pub server: Option<ProcessSample>,
    /// This process.
    pub generator: Option<ProcessSample>,
}

/// Shows a run, and may end it.
pub trait Viewer {
    /// A second is over.
    fn second(&mut self, second: &Second<'_>);
    /// The end was asked for, and something is waited for before it.
    fn waits(&mut self, text: &str) {
        let _unsaid = text;
    }
    /// Called some times a second; false asks for the end of the run.
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// Shows nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Viewer for Quiet {
    fn second(&mut self, _: &Second<'_>) {}
}

/// No line per second, and what somebody who waits for the end has to know.
#[derive(Debug, Default)]
pub struct Notes;

impl Viewer for Notes {
    fn second(&mut self, _: &Second<'_>) {}

    fn waits(&mut self, text: &str) {
        let _unread = writeln!(stderr(), "ringpost-load: {text}");
    }
}

/// One line per second on standard error.
#[derive(Debug)]
pub struct Lines {
    phase: Phase,
    what: &'static str,
}

impl Lines {
    /// For a source: whole transactions.
    pub fn of_source() -> Lines {
        Lines { phase: Phase::Transaction, what: "acknowledged" }
    }

    /// For connections: greetings.
    pub fn of_connections() -> Lines {
        Lines { phase: Phase::Banner, what: "greeted" }
    }

    /// For a sink: end to end.
    pub fn of_sink() -> Lines {
        Lines { phase: Phase::EndToEnd, what: "taken" }
    }
}

impl Viewer for Lines {
    fn second(&mut self, second: &Second<'_>) {
        let (part, latency) = (second.part, second.part.histogram(self.phase));
        let mut line = format!(
            "{:>4} s  {:>8}/s {}  in flight {:>5}  connections {:>6}  p50 {:>9}  p99 {:>9}  max {:>9}  errors {}",
            second.number + 1,
            part.acknowledged,
            self.what,
            part.in_flight,
            part.connections,
            shown(latency, 50.0),
            shown(latency, 99.0),
            shown(latency, 100.0),
            part.errors.total(),
        );
        if let Some(server) = second.server {
            line.push_str(&format!("  server {:.0} %", server.cpu_percent));
        }
        if let Some(generator) = second.generator {
            line.push_str(&format!("  own {:.0} %", generator.cpu_percent));
        }
        // Standard error may be gone; the run is worth more than its lines.
        let _unread = writeln!(stderr(), "{line}");
    }

    fn waits(&mut self, text: &str) {
        Notes.waits(text);
    }
}

/// A percentile of latencies for people; a dash where it is not told.
pub fn shown(latency: &Histogram<u64>, percentile: f64) -> String {
    told(latency, percentile).map_or_else(|| "–".to_owned(), shown_ns)
}

/// A time for people: three digits or so, and its unit.
pub fn shown_ns(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// Lines where somebody looks, else what has to be said, and nothing where that is asked for.
pub fn usual_viewer(quiet: bool, lines: Lines) -> Box<dyn Viewer> {
    match (quiet, stderr().is_terminal()) {
        (true, _) => Box::new(Quiet),
        (false, false) => Box::new(Notes),
        (false, true) => Box::new(lines),
    }
}

/// A run of a source from its start to its end.
#[derive(Debug)]
pub struct SourceRun {
    /// When it began.
    pub started: SystemTime,
    /// The same by the clock that does not jump.
    pub began: Instant,
    /// What was measured.
    pub measurement: Measurement,
    /// What was done.
    pub report: CoreReport,
    /// CPU time that this process used meanwhile, sinks in it included.
    pub cpu: Duration,
    /// CPU time that the server used meanwhile, where it is one process tree on this machine all the time; of one that was not what is known
    /// is [`Measurement::server_cpu`].
    pub server_cpu: Option<Duration>,
    /// Cores of the server meanwhile, where that is so.
    pub server_cores: Option<u32>,
    /// It was ended from outside while it ran.
    pub interrupted: bool,
    /// The run that its messages carry.
    pub run: u64,
}

/// What runs beside a source and is looked at meanwhile.
#[derive(Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The process under test at this moment, where it is on this machine.
    pub server_pid: Option<&'a dyn Fn() -> Option<u32>>,
    /// Next hops, whose end to end latencies belong to the run.
    pub sinks: &'a [Sink],
}

impl Beside<'_> {
    /// The server's process and the CPU time it has used.
    fn server_cpu(&self) -> Option<(u32, Duration)> {
        let pid = self.server_pid.and_then(|pid| pid())?;
        Some((pid, tree_use(pid).ok()?.cpu))
    }
}

/// Gathers parts and calls the viewer when all of a second are there.
struct Gatherer<'a> {
    measurement: Measurement,
    viewer: &'a mut dyn Viewer,
    beside: Beside<'a>,
    threads: usize,
    parts_seen: usize,
    second: u64,
    server: Option<(u32, ProcessMeter)>,
    generator: Option<ProcessMeter>,
}

impl<'a> Gatherer<'a> {
    fn new(threads: usize, beside: Beside<'a>, viewer: &'a mut dyn Viewer) -> Gatherer<'a> {
        let mut gatherer = Gatherer {
            measurement: Measurement::new(),
            viewer,
            beside,
            threads,
            parts_seen: 0,
            second: 0,
            server: None,
            generator: ProcessMeter::own().ok(),
        };
        gatherer.look_at_server();
        gatherer
    }

    fn add(&mut self, part: &CorePart) {
        if part.second > self.second && self.parts_seen > 0 {
            self.show();
        }
        self.second = part.second;
        self.measurement.add(part.second, &part.part);
        self.parts_seen += 1;
        if self.parts_seen >= self.threads {
            self.show();
        }
    }

    /// What the server used since the last call. One that was started meanwhile counts from now on.
    fn look_at_server(&mut self) -> Option<Look> {
        let pid = self.beside.server_pid.and_then(|pid| pid())?;
        match &mut self.server {
            Some((known, meter)) if *known == pid => meter.look().ok(),
            _ => {
                self.server = ProcessMeter::server(pid).ok().map(|meter| (pid, meter));
                None
            }
        }
    }

    fn show(&mut self) {
        self.parts_seen = 0;
        let server = self.look_at_server();
        let generator = self.generator.as_mut().and_then(|meter| Some(meter.look().ok()?.sample()));
        self.measurement.sample(self.second, server, generator);
        let server = server.map(|look| look.sample());
        if let Some(part) = self.measurement.second(self.second) {
            let totals = self.measurement.totals();
            self.viewer.second(&Second { number: self.second, part, totals, server, generator });
        }
    }
}

/// Adds what a sink measured to a run whose seconds it followed ([`Sink::follow`]), and whose second 0 is its second `first`.
pub fn add_end_to_end(measurement: &mut Measurement, first: u64, parts: impl IntoIterator<Item = CorePart>) {
    for part in parts {
        measurement.add_latencies(part.second.saturating_sub(first), Phase::EndToEnd, &part.part);
    }
}

/// What is followed until it is over.
pub(crate) struct Followed<'a> {
    /// Threads that hand in parts.
    pub(crate) threads: usize,
    /// When its second 0 began.
    pub(crate) began: Instant,
    /// The next part, waiting for at most so long.
    pub(crate) next_part: &'a dyn Fn(Duration) -> Option<CorePart>,
    /// Is it over?
    pub(crate) is_over: &'a dyn Fn() -> bool,
    /// Asks it to end.
    pub(crate) stop: &'a dyn Fn(),
}

/// Gathers what is measured and shows it, until it is over; and whether somebody ended it before.
pub(crate) fn follow(followed: &Followed<'_>, beside: Beside<'_>, stop: &StopSignal, viewer: &mut dyn Viewer) -> (Measurement, bool) {
    let mut gatherer = Gatherer::new(followed.threads, beside, viewer);
    let mut interrupted = false;
    let (mut asked_at, mut is_said) = (None, false);
    beside.sinks.iter().for_each(|sink| sink.follow(followed.began));
    loop {
        // Asked before the channel is emptied, so that nothing comes later than the last look.
        let over = (followed.is_over)();
        if stop.is_asked() || !gatherer.viewer.goes_on() {
            (followed.stop)();
            interrupted |= !over;
            let asked_at = *asked_at.get_or_insert_with(Instant::now);
            if !over && !is_said && asked_at.elapsed() >= SAID_AFTER {
                gatherer.viewer.waits(WAITED_FOR);
                is_said = true;
            }
        }
        for sink in beside.sinks {
            let parts = std::iter::from_fn(|| sink.next_part(Duration::ZERO));
            add_end_to_end(&mut gatherer.measurement, sink.second_of(followed.began), parts);
        }
        let mut wait = if over { Duration::ZERO } else { LOOK_EVERY };
        while let Some(part) = (followed.next_part)(wait) {
            gatherer.add(&part);
            wait = Duration::ZERO;
        }
        if over {
            return (gatherer.measurement, interrupted);
        }
    }
}

/// Runs a source to its end, and shows it meanwhile.
///
/// # Errors
/// As [`Source::start`] and [`Source::join`].
pub fn run_source(
    options: SourceOptions,
    beside: Beside<'_>,
    stop: &StopSignal,
    viewer: &mut dyn Viewer,
) -> Result<SourceRun, SourceError> {
    let threads = options.cores.len().min(options.sessions);
    let started = SystemTime::now();
    let (own, server) = (pinning::process_cpu(), beside.server_cpu());
    let server_threads = server.and_then(|(pid, _)| ThreadTimes::of_server(pid).ok());
    let source = Source::start(options)?;
    let (run, began) = (source.run, source.began);
    let followed =
        Followed { threads, began, next_part: &|limit| source.next_part(limit), is_over: &|| source.is_over(), stop: &|| source.stop() };
    let (measurement, interrupted) = follow(&followed, beside, stop, viewer);
    // Of threads of one that has ended nothing is known.
    let server_cores = server_threads.and_then(|threads| threads.cores_since());
    let report = source.join()?;
    let cpu = pinning::process_cpu().saturating_sub(own);
    let server_cpu = match (server, beside.server_cpu()) {
        // One that has died, and that nobody has waited for, has less than it had with those below it: that is no figure.
        (Some((pid, before)), Some((same, after))) if pid == same => after.checked_sub(before),
        _ => None,
    };
    Ok(SourceRun { started, began, measurement, report, cpu, server_cpu, server_cores, interrupted, run })
}

/// Watches a sink until it is over or the end is asked for; what it measured by then, which [`Sink::join`] has the rest of. Where it cannot take connections, it says so on standard error, once in ten seconds.
pub fn watch_sink(sink: &Sink, threads: usize, limit: Option<Duration>, stop: &StopSignal, viewer: &mut dyn Viewer) -> Measurement {
    let mut gatherer = Gatherer::new(threads, Beside::default(), viewer);
    let mut quiet_since: Option<Instant> = None;
    while !sink.is_over() {
        if quiet_since.is_none_or(|since| since.elapsed() >= TROUBLE_EVERY)
            && let Some(trouble) = sink.accept_trouble()
        {
            quiet_since = Some(Instant::now());
            let _unread =
                writeln!(stderr(), "ringpost-load: no connection can be taken: {trouble}; they wait for others to end (see ulimit -n)");
        }
        if stop.is_asked() || !gatherer.viewer.goes_on() || limit.is_some_and(|limit| sink.began.elapsed() >= limit) {
            break;
        }
        if let Some(part) = sink.next_part(LOOK_EVERY) {
            gatherer.add(&part);
        }
    }
    gatherer.measurement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_a_fitting_unit() {
        let shown: Vec<String> = [0, 999_499, 1_500_000, 44_000_000, 2_345_000_000].into_iter().map(shown_ns).collect();
        assert_eq!(shown, ["0 us", "999 us", "1.50 ms", "44 ms", "2.35 s"]);
    }
}
