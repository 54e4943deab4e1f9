//! One server under one load: what a message cost it. Whoever compares servers runs them through here, one after the other.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::SourceOptions;
use serde::Serialize;
use serde_json::Value;

use crate::engine::{Engine, EngineOptions, Route};
use crate::floor::Floor;
use crate::machine;
use crate::peer::{Peer, Program};
use crate::syscalls::{Counter, Syscalls};
use crate::traffic::{Latency, Sent, Told, next_hop, texts};
use crate::valkey_server::{ValkeyOptions, ValkeyServer};

/// A sender at its limit is run again at this part of what it reached, so that CPU per message can be judged.
const RATE_BELOW_LIMIT: f64 = 0.85;
/// Latencies are those of an open loop at this part of what was reached: a server at its limit has as long a queue as its clients keep up.
pub const RATE_OF_LATENCY: f64 = 0.7;
/// A server holds a rate when it acknowledged so much of it; the wait for the last reply counts, too.
const HELD_MIN: f64 = 0.9;
/// Disk that measurements leave alone.
const DISK_KEPT_FREE: u64 = 4 << 30;
/// What can be accepted in a second at most, by messages and by octets: decides how many segments are written beforehand.
const MESSAGES_PER_S_MAX: f64 = 130_000.0;
const BYTES_PER_S_MAX: f64 = 1.6e9;
/// Before the measurement: processes are started, memory is touched.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long system calls are counted, apart from the measurement, which counting would slow down.
const COUNTING: Duration = Duration::from_millis(700);
/// After the load a relay has so long without a delivery.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// A server that has no banner after so long has failed.
const START_MAX: Duration = Duration::from_secs(30);

/// Who is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contestant {
    /// The engine's binary.
    Engine(PathBuf),
    /// The same, as a node of a cluster, with a Valkey of its own; its mail stays local.
    InCluster(PathBuf),
    /// The floor's binary.
    Floor(PathBuf),
    /// Another mail server of this machine.
    Peer(Program),
}

impl Contestant {
    /// For tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Engine(_) => "engine",
            Self::InCluster(_) => "in-cluster",
            Self::Floor(_) => "floor",
            Self::Peer(program) => program.name(),
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Octets of a message.
    pub bytes: u64,
    /// Connections at once.
    pub sessions: usize,
    /// MAIL, RCPT and DATA go ahead.
    pub pipeline: bool,
    /// Messages per connection; 0 keeps it.
    pub per_connection: u32,
    /// To a next hop, and measured until nothing is queued; else accepted only.
    pub relay: bool,
    /// Behind it another load of the same length measures latencies in an open loop.
    pub open_loop: bool,
}

/// How long clients waited whose messages are due at a rate below the limit.
#[derive(Debug, Clone, Serialize)]
pub struct OpenLoop {
    /// Messages per second, evenly.
    pub rate: f64,
    /// It was held; if not, the latencies are those of a queue that grows.
    pub held: bool,
    /// The whole transaction, from when it was due.
    pub transaction_us: Told,
}

impl OpenLoop {
    /// What came of a load at this rate.
    pub fn of(rate: f64, sent: &Sent) -> Self {
        let held = sent.never_begun == 0 && sent.messages_per_s >= HELD_MIN * rate;
        Self { rate, held, transaction_us: sent.transaction_us.clone() }
    }

    /// For a table, in [`Told::HEAD`]'s columns.
    pub fn columns(&self) -> String {
        self.transaction_us.columns() + if self.held { "" } else { "  rate not held" }
    }
}

/// What a message cost.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figure {
    /// Acknowledged messages per second.
    pub messages_per_s: f64,
    /// The sender was at its limit, so the rate is a lower bound.
    pub rate_is_lower_bound: bool,
    /// CPU of all threads and processes of the server, io_uring's workers included, per message.
    pub cpu_us: f64,
    /// System calls per message, where `perf` could count them.
    pub calls: Option<f64>,
    /// Flushes per message in the closed loop: by the server's own count, or of another server the `fsync` and `fdatasync` that `perf`
    /// could count.
    pub flushes: Option<f64>,
    /// Dot to 250 in the closed loop that the rate is from.
    pub closed_loop_us: Latency,
    /// Where the scenario has it.
    pub open_loop: Option<OpenLoop>,
    /// Messages over each connection to the next hop, on average, where there is one; until the closed loop ended.
    pub per_hop_connection: Option<f64>,
    /// Share of its core the sender used.
    pub sender_core_percent: f64,
    /// The sender was at its limit even below what it reached before.
    pub void: bool,
}

/// The last line of a table, or beside lines of JSON, which are for programs.
pub fn say_verdict(verdict: &str, json: bool) {
    if json {
        eprintln!("{verdict}");
    } else {
        println!("{verdict}");
    }
}

/// A server that runs.
enum Running {
    /// With the Valkey that it was given.
    Engine(Box<Engine>, Option<ValkeyServer>),
    Floor(Floor),
    Peer(Peer),
}

impl Running {
    fn start(contestant: &Contestant, scenario: &Scenario, seconds: f64, folder: &Path, hop: Option<SocketAddr>) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (shards, _) = machine::shares()?;
        match contestant {
            Contestant::Floor(binary) => Floor::start(binary, folder, shards[0], hop).map(Self::Floor),
            Contestant::Peer(program) => Peer::start(*program, folder, Some(shards[0]), scenario.sessions, hop).map(Self::Peer),
            Contestant::Engine(binary) | Contestant::InCluster(binary) => {
                let mut options = EngineOptions::new(binary, folder, hop.map_or(Route::Hold, Route::Smarthost))?;
                options.cores = shards[..1].to_vec();
                options.lines.push(("shards", format!("coordinator_core = \"{}\"", shards[0])));
                options.lines.push(("smtp", "messages_per_connection = 999999".into()));
                if hop.is_some() {
                    options.lines.push(("delivery", "connections_max = 16\nwindow_initial = 16".into()));
                }
                let valkey = match contestant {
                    Contestant::InCluster(_) => Some(ValkeyServer::start(ValkeyOptions::new(folder)?)?),
                    _ => None,
                };
                if let Some(valkey) = &valkey {
                    let lines =
                        format!("enabled = true\nnode_id = \"n1\"\nvalkey_url = \"{}\"\nheartbeat_interval = \"1s\"\n", valkey.url());
                    options.lines.push(("cluster", lines));
                }
                // Segments enough for all that is accepted, written before, as an operator would who expects a burst.
                let per_s = (MESSAGES_PER_S_MAX * (scenario.bytes + 600) as f64).min(BYTES_PER_S_MAX);
                let loads = if scenario.open_loop { 2.0 + RATE_OF_LATENCY } else { 2.0 };
                let expected = per_s * (loads * seconds + COUNTING.as_secs_f64() + 1.0);
                let room = machine::free_bytes(folder)?.saturating_sub(DISK_KEPT_FREE) as f64;
                let segments = (expected.min(room) / f64::from(64 << 20)).ceil() as u64;
                let mut engine = Engine::new(options)?;
                engine.start()?;
                engine.ask(&["spool", "prepare", &segments.to_string()])?;
                Ok(Self::Engine(Box::new(engine), valkey))
            }
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Engine(engine, _) => engine.address,
            Self::Floor(floor) => floor.address,
            Self::Peer(peer) => peer.address,
        }
    }

    fn cpu(&self) -> io::Result<Duration> {
        match self {
            Self::Engine(engine, _) => machine::process_cpu(engine.pid().ok_or_else(|| io::Error::other("the engine has ended"))?),
            Self::Floor(floor) => machine::process_cpu(floor.pid()),
            Self::Peer(peer) => peer.cpu(),
        }
    }

    fn processes(&self) -> io::Result<Vec<u32>> {
        match self {
            Self::Engine(engine, _) => Ok(engine.pid().into_iter().collect()),
            Self::Floor(floor) => Ok(vec![floor.pid()]),
            Self::Peer(peer) => ringpost_loadtest::process::descendants(peer.master),
        }
    }

    /// What it counted so far, where it counts.
    fn counts(&self) -> io::Result<Option<OwnCounts>> {
        match self {
            Self::Engine(engine, _) => Ok(OwnCounts::of(&engine.stats())),
            Self::Floor(floor) => floor.counts().map(|counts| OwnCounts::of(&counts)),
            Self::Peer(_) => Ok(None),
        }
    }

    /// Ends it. Fails when it has ended before.
    fn stop(self) -> io::Result<()> {
        match self {
            Self::Engine(mut engine, _valkey) => engine.must_run(),
            Self::Floor(floor) => floor.stop(),
            Self::Peer(_) => Ok(()),
        }
    }
}

/// What a server counted since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnCounts {
    /// Flushes.
    batches: u64,
    /// Messages answered with 250.
    accepted: u64,
}

impl OwnCounts {
    fn of(counters: &Value) -> Option<Self> {
        Some(Self { batches: counters["batches"].as_u64()?, accepted: counters["accepted"].as_u64()? })
    }

    /// Flushes per message of what came behind `before`.
    fn flushes_since(self, before: Self) -> f64 {
        self.batches.saturating_sub(before.batches) as f64 / self.accepted.saturating_sub(before.accepted).max(1) as f64
    }
}

/// A server whose loads are as long as the measurement.
trait Loaded {
    /// A load at the sender's limit or at a rate, and what came of it.
    fn load(&self, rate: Option<f64>) -> io::Result<(Figure, Sent)>;

    /// What the server counted so far, where it counts.
    fn counts(&self) -> io::Result<Option<OwnCounts>>;

    /// Messages over each connection to the next hop so far, where there is one.
    fn per_hop_connection(&self) -> Option<f64>;
}

/// A closed loop, and the open one behind it where there is to be one. All but the latter's own is counted in the closed loop alone:
/// at a lower rate fewer messages share a flush or a connection.
fn judge(server: &impl Loaded, open_loop: bool) -> io::Result<Figure> {
    let closed = |rate| -> io::Result<(Figure, Sent)> {
        let before = server.counts()?;
        let (mut figure, report) = server.load(rate)?;
        figure.flushes = server.counts()?.zip(before).map(|(after, before)| after.flushes_since(before));
        Ok((figure, report))
    };
    let (mut figure, report) = closed(None)?;
    if report.acknowledged == 0 {
        return Err(io::Error::other(format!("nothing is taken any more: {}", report.last_trouble)));
    }
    if report.is_void {
        // Its rate stands; what a message costs is judged below the sender's limit.
        let free = figure.messages_per_s;
        figure = closed(Some(free * RATE_BELOW_LIMIT))?.0;
        (figure.messages_per_s, figure.rate_is_lower_bound) = (free, true);
    }
    figure.per_hop_connection = server.per_hop_connection();
    if open_loop {
        let rate = figure.messages_per_s * RATE_OF_LATENCY;
        figure.open_loop = Some(OpenLoop::of(rate, &server.load(Some(rate))?.1));
    }
    Ok(figure)
}

/// Measures one server under one load, in a folder of its own that is removed afterwards.
pub fn measure(contestant: &Contestant, scenario: &Scenario, seconds: f64, place: &Path) -> io::Result<Figure> {
    let folder = place.join(contestant.name());
    let sink = if scenario.relay { Some(Sink::start(next_hop(None)?)?) } else { None };
    let running = Running::start(contestant, scenario, seconds, &folder, sink.as_ref().map(|sink| sink.address))?;
    let options = SourceOptions {
        sessions: scenario.sessions,
        pipelining: scenario.pipeline,
        per_connection: (scenario.per_connection > 0).then_some(scenario.per_connection),
        gently: matches!(contestant, Contestant::Peer(program) if program.keeps_few_connections()),
        ..texts(running.address(), &scenario.bytes.to_string())?
    };
    let load = Load { running: &running, options, sink: sink.as_ref(), measured: Duration::from_secs_f64(seconds) };
    let began = Instant::now();
    // Some greet before they can take mail.
    loop {
        let report = load.run(WARM_UP, None)?.1;
        if report.acknowledged > 0 {
            break;
        }
        if began.elapsed() > START_MAX {
            return Err(io::Error::other(format!("nothing is taken: {}", report.last_trouble)));
        }
    }
    let calls = load.calls()?;
    let mut figure = judge(&load, scenario.open_loop)?;
    drop(load);
    running.stop()?;
    figure.calls = calls.map(|(counted, messages)| counted.all as f64 / messages as f64);
    if matches!(contestant, Contestant::Peer(_)) {
        // Who has no counter of its own is asked for by the kernel: other servers flush by system calls.
        figure.flushes = calls.map(|(counted, messages)| counted.syncs as f64 / messages as f64);
    }
    if let Some(sink) = sink {
        sink.stop();
        sink.join()?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(figure)
}

struct Load<'a> {
    running: &'a Running,
    options: SourceOptions,
    sink: Option<&'a Sink>,
    /// How long loads of the measurement are.
    measured: Duration,
}

impl Loaded for Load<'_> {
    fn load(&self, rate: Option<f64>) -> io::Result<(Figure, Sent)> {
        self.run(self.measured, rate)
    }

    fn counts(&self) -> io::Result<Option<OwnCounts>> {
        self.running.counts()
    }

    fn per_hop_connection(&self) -> Option<f64> {
        let counters = self.sink?.counters();
        Some(counters.messages() as f64 / counters.connections().max(1) as f64)
    }
}

impl Load<'_> {
    fn run(&self, duration: Duration, rate: Option<f64>) -> io::Result<(Figure, Sent)> {
        let arrived = || self.sink.map_or(0, |sink| sink.messages());
        let (before, arrived_before) = (self.running.cpu()?, arrived());
        let began = Instant::now();
        let report = Sent::run(SourceOptions { duration: Some(duration), rate: rate.map(Rate::Fixed), ..self.options.clone() })?;
        if report.refused > 0 {
            return Err(io::Error::other(format!("{} refused: {}", report.refused, report.last_trouble)));
        }
        let mut seconds = report.seconds;
        if self.sink.is_some() {
            // Whoever queues is measured until its queue is empty.
            let (mut seen, mut since) = (arrived(), Instant::now());
            while arrived() - arrived_before < report.acknowledged {
                std::thread::sleep(Duration::from_millis(2));
                if arrived() != seen {
                    (seen, since) = (arrived(), Instant::now());
                } else if since.elapsed() > DRAIN_MAX {
                    let missing = report.acknowledged - (seen - arrived_before);
                    return Err(io::Error::other(format!("{missing} messages do not arrive at the next hop")));
                }
            }
            seconds = began.elapsed().as_secs_f64();
        }
        let used = self.running.cpu()? - before;
        let figure = Figure {
            messages_per_s: report.acknowledged as f64 / seconds,
            rate_is_lower_bound: false,
            cpu_us: used.as_secs_f64() * 1e6 / report.acknowledged.max(1) as f64,
            calls: None,
            flushes: None,
            closed_loop_us: report.latency_us.clone(),
            open_loop: None,
            per_hop_connection: None,
            sender_core_percent: report.own_core_percent,
            void: report.is_void,
        };
        Ok((figure, report))
    }

    /// System calls in a load of its own, and its messages; nothing where `perf` is missing or may not.
    fn calls(&self) -> io::Result<Option<(Syscalls, u64)>> {
        let Some(counter) = Counter::attach(&self.running.processes()?)? else { return Ok(None) };
        let (_, report) = self.run(COUNTING, None)?;
        Ok(counter.stop()?.map(|counted| (counted, report.acknowledged.max(1))))
    }
}

/// The median of the rounds by CPU per message. Panics without rounds.
pub fn median(figures: &[Figure]) -> &Figure {
    let mut order: Vec<&Figure> = figures.iter().collect();
    order.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    order[order.len() / 2]
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// In a load at its limit ten messages share a flush and a hundred a connection, else two.
    #[derive(Default)]
    struct Fake {
        batches: Cell<u64>,
        accepted: Cell<u64>,
        connections: Cell<u64>,
        /// The sender is the limit of the closed loop.
        is_void: bool,
    }

    impl Loaded for Fake {
        fn load(&self, rate: Option<f64>) -> io::Result<(Figure, Sent)> {
            let (sharing_flush, sharing_connection) = if rate.is_some() { (2, 2) } else { (10, 100) };
            self.accepted.set(self.accepted.get() + 1000);
            self.batches.set(self.batches.get() + 1000 / sharing_flush);
            self.connections.set(self.connections.get() + 1000 / sharing_connection);
            let sent = Sent { acknowledged: 1000, is_void: self.is_void && rate.is_none(), ..Sent::default() };
            Ok((Figure { messages_per_s: 1000.0, ..Figure::default() }, sent))
        }

        fn counts(&self) -> io::Result<Option<OwnCounts>> {
            Ok(Some(OwnCounts { batches: self.batches.get(), accepted: self.accepted.get() }))
        }

        fn per_hop_connection(&self) -> Option<f64> {
            Some(self.accepted.get() as f64 / self.connections.get() as f64)
        }
    }

    /// What happened: flushes and connections per message were those of the server's whole life, so that the open loop behind the closed
    /// one, in which fewer messages share them, was mixed into figures that stand beside the closed loop's rate.
    #[test]
    fn flushes_and_connections_are_those_of_the_closed_loop() {
        let figure = judge(&Fake::default(), true).unwrap();
        assert_eq!((figure.flushes, figure.per_hop_connection), (Some(0.1), Some(100.0)));
        assert_eq!(figure.open_loop.map(|open| open.rate), Some(700.0));
    }

    #[test]
    fn below_the_senders_limit_flushes_are_those_of_that_load() {
        let figure = judge(&Fake { is_void: true, ..Fake::default() }, true).unwrap();
        assert!(figure.rate_is_lower_bound);
        assert_eq!(figure.flushes, Some(0.5));
    }

    #[test]
    fn flushes_before_a_load_are_not_its_own() {
        let fake = Fake { batches: Cell::new(5000), accepted: Cell::new(5000), ..Fake::default() };
        assert_eq!(judge(&fake, false).unwrap().flushes, Some(0.1));
    }

    #[test]
    fn a_rate_is_held_when_nothing_was_left_and_it_was_reached() {
        let sent = |messages_per_s, never_begun| Sent { messages_per_s, never_begun, ..Sent::default() };
        assert!(OpenLoop::of(700.0, &sent(690.0, 0)).held);
        assert!(!OpenLoop::of(700.0, &sent(690.0, 1)).held);
        assert!(!OpenLoop::of(700.0, &sent(600.0, 0)).held);
        assert!(OpenLoop::of(700.0, &sent(600.0, 0)).columns().contains("not held"));
    }
}
