//! How long does a client wait for 250, and how many messages a second does one shard take over loopback? Expected: alone, three round
//! trips and a flush (0.5 to 2 ms); with 100 pipelining sessions flushes are shared, and the shard's CPU or the sender is the limit.
//!
//! Runs the binary that RINGPOST_ENGINE names; `./dev bench transaction` builds and names it. A binary found by chance may be older than
//! this program: without a name it is the floor in this process that takes the mail, so that the bench itself is run by every test.
#![forbid(unsafe_code)]

use std::fs;
use std::io::PipeWriter;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringpost_benches::Run;
use ringpost_floor::server::{Counts, Options, Server as FloorServer};
use ringpost_loadtest::identity::MessageId;
use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::source::SourceOptions;
use ringpost_tools::contest::{OpenLoop, RATE_OF_LATENCY};
use ringpost_tools::engine::{Engine, EngineOptions, Route, rig_folder};
use ringpost_tools::machine::process_cpu;
use ringpost_tools::traffic::{Sent, Told, texts};

/// Messages of a small run before and while it is measured.
const FEW: u64 = 100;

/// Who takes the mail.
enum Server {
    Engine(Box<Engine>),
    /// Dropping the pipe's end ends the thread.
    Floor(SocketAddr, PipeWriter, JoinHandle<Counts>),
}

impl Server {
    fn start(binary: Option<&Path>, folder: &Path) -> Self {
        match binary {
            Some(binary) => {
                let mut options = EngineOptions::new(binary, folder, Route::Discard).expect("the binary is there");
                options.lines.push(("smtp", "messages_per_connection = 999999".into()));
                let mut engine = Engine::new(options).expect("a port is free");
                engine.start().expect("the engine starts");
                Self::Engine(Box::new(engine))
            }
            None => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
                let address = listener.local_addr().expect("it is bound");
                let options = Options { log: folder.join("log"), log_bytes: 16 << 20, relay: None, connections: 0, chained: true };
                let (ended, end) = std::io::pipe().expect("descriptors are left");
                let serve = move || {
                    let server = FloorServer::new(&options).expect("the ring and the disk work");
                    server.run(&listener, ended, std::io::sink()).expect("the floor serves")
                };
                Self::Floor(address, end, thread::spawn(serve))
            }
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Engine(engine) => engine.address,
            Self::Floor(address, ..) => *address,
        }
    }

    /// Of the engine's process; the floor's thread is in the sender's.
    fn cpu(&self) -> Option<Duration> {
        match self {
            Self::Engine(engine) => Some(process_cpu(engine.pid().expect("it runs")).expect("it runs")),
            Self::Floor(..) => None,
        }
    }

    /// Ends it. `acknowledged`: 250s that clients have read.
    fn stop(self, acknowledged: u64) {
        match self {
            Self::Engine(mut engine) => engine.must_run().expect("the engine is there to the end"),
            Self::Floor(_, end, thread) => {
                drop(end);
                assert_eq!(thread.join().expect("the floor ends in order").accepted, acknowledged, "what it took was acknowledged");
            }
        }
    }
}

/// How many messages a ledger has, and the sum of their numbers in the run.
fn acknowledged(ledger: &Path) -> (u64, u64) {
    let text = fs::read_to_string(ledger).expect("the source wrote it");
    let ids = text.lines().filter_map(|line| MessageId::parse(line.split(' ').next()?.as_bytes()));
    ids.fold((0, 0), |(count, sum), id| (count + 1, sum + id.sequence))
}

fn main() {
    let run = Run::begin("transaction", include_str!("transaction.rs"));
    let binary = std::env::var_os("RINGPOST_ENGINE").map(PathBuf::from);
    match &binary {
        Some(binary) => println!("{}", binary.display()),
        None => println!("RINGPOST_ENGINE names no engine: these are figures of the floor, in the sender's process"),
    }
    if binary.is_some() && run.is_profiled() {
        println!("the profile is the sender's: the engine is a process of its own (perf record -g -p PID)");
    }
    for (sessions, pipelining) in [(1, false), (1, true), (10, true), (100, false), (100, true)] {
        let name = format!("{sessions} sessions, {}", if pipelining { "pipelined" } else { "not pipelined" });
        if !run.wants(&name) {
            continue;
        }
        let folder = rig_folder("transaction").expect("a folder on a real disk");
        // Apart from the disk that is flushed.
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for ledgers");
        let server = Server::start(binary.as_deref(), folder.path());
        let load = |real: Duration, ledger: &str, rate: Option<f64>| {
            let ledger = memory.path().join(ledger);
            let (duration, messages) = if run.is_real() { (Some(real), None) } else { (None, Some(FEW)) };
            let options = texts(server.address(), "1KiB").expect("the cores can be asked for");
            let (ledger_file, rate) = (Some(ledger.clone()), rate.map(Rate::Fixed));
            let sent = Sent::run(SourceOptions { sessions, pipelining, duration, messages, rate, ledger: ledger_file, ..options })
                .expect("the load runs");
            assert_eq!((sent.refused, sent.unknown), (0, 0), "{}", sent.last_trouble);
            let (count, sum) = acknowledged(&ledger);
            assert_eq!(count, sent.acknowledged, "each 250 is in the ledger once");
            assert!(run.is_real() || (count, sum) == (FEW, FEW * (FEW - 1) / 2), "each message was acknowledged: {count}, {sum}");
            (sent, sum)
        };
        let (warm, _) = load(Duration::from_millis(300), "warm", None);
        let before = server.cpu();
        let (sent, sum) = load(Duration::from_secs(3), "measured", None);
        let cpu = server.cpu().zip(before).map(|(after, before)| (after - before).as_secs_f64() * 1e6 / sent.acknowledged.max(1) as f64);
        let rate = RATE_OF_LATENCY * sent.messages_per_s;
        let (open, _) = load(Duration::from_secs(3), "open", Some(rate));
        server.stop(warm.acknowledged + sent.acknowledged + open.acknowledged);
        println!(
            "{name:44} {:8.0} messages/s, {} us CPU each, {} in all, checksum {sum:016x}{}",
            sent.messages_per_s,
            cpu.map_or("     -".into(), |us| format!("{us:6.1}")),
            sent.acknowledged,
            if sent.is_void { " (the sender was the limit)" } else { "" }
        );
        println!("    open loop, {rate:.0} messages/s, transactions in ms from when they were due:");
        println!("    {}\n    {}", Told::HEAD, OpenLoop::of(rate, &open).columns());
    }
    run.end();
}
