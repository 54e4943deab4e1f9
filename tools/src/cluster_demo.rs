//! `./dev demo --cluster`: three nodes over a Valkey, mail for two of them; the leader is killed, then Valkey, and the account at the end.

use std::{
    fmt::Write as _,
    io,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ringpost_loadtest::{
    content::ContentKind,
    diff::compare,
    live::{Beside, Quiet, run_source},
    schedule::Rate,
    signals::StopSignal,
    sink::{Sink, SinkOptions},
    sizes::Sizes,
    source::SourceOptions,
};
use serde_json::Value;

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::machine;

/// How long mail is pushed to each of two nodes.
const PUSH: Duration = Duration::from_secs(20);
/// Messages a second for each of them.
const RATE: f64 = 200.0;
const MESSAGE_BYTES: u64 = 4096;
/// Whatever is waited for happens within this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Mail runs so long before, between and after what happens.
const PAUSE: Duration = Duration::from_secs(3);

/// What to show.
#[derive(Debug, Args)]
pub struct ClusterDemoArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
}

/// Runs the demo; true when nothing was lost.
pub fn run(arguments: &ClusterDemoArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("cluster-demo")?;
    let place = folder.path().to_path_buf();
    let received = place.join("received");
    let ((shards, _), own) = (machine::shares()?, machine::own_core()?);
    let sink = Sink::start(SinkOptions { ledger: Some(received.clone()), ..SinkOptions::new(([127, 0, 0, 1], 0).into(), own) })?;
    let mut valkey = Valkey::start(&place)?;
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let home = place.join(format!("n{number}"));
        std::fs::create_dir(&home)?;
        let mut options = EngineOptions::new(&arguments.engine, &home, Route::Smarthost(sink.address))?;
        options.cores = vec![shards[number % shards.len()]];
        options.segment_mib = Some(16);
        let mut lines = String::new();
        write!(lines, "enabled = true\nnode_id = \"n{number}\"\nvalkey_url = \"valkey://127.0.0.1:{}\"\n", valkey.port)?;
        write!(lines, "heartbeat_interval = \"1s\"\nnode_ttl = \"5s\"\nleader_ttl = \"3s\"")?;
        options.lines.push(("cluster", lines));
        let mut node = Engine::new(options)?;
        node.start()?;
        println!("n{number} on {}", node.address);
        nodes.push(node);
    }
    println!("Valkey on 127.0.0.1:{}, next hop on {}", valkey.port, sink.address);
    let ledgers = [place.join("sent-1"), place.join("sent-2")];
    let targets: Vec<_> = nodes.iter().take(2).map(|node| node.address).collect();
    let happened = thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
        let sources: Vec<_> = targets
            .iter()
            .zip(&ledgers)
            .map(|(address, ledger)| {
                let options = SourceOptions {
                    sessions: 10,
                    ledger: Some(ledger.clone()),
                    duration: Some(PUSH),
                    rate: Some(Rate::Fixed(RATE)),
                    ..SourceOptions::new(*address, own, ContentKind::Text(Sizes::fixed(MESSAGE_BYTES)))
                };
                scope.spawn(move || run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet).map(drop))
            })
            .collect();
        let told = disturb(&mut nodes, &mut valkey);
        for source in sources {
            source.join().map_err(|_| "a source panicked")??;
        }
        told
    });
    happened?;
    println!("-- senders done, waiting for the queues to empty");
    let mut is_clean = true;
    for node in &mut nodes {
        node.drain(Duration::from_secs(60), || sink.messages())?;
        is_clean &= node.terminate(Duration::from_secs(30))?.success();
    }
    sink.stop();
    sink.join()?;
    let result = compare(&[&ledgers[0], &ledgers[1]], &received)?;
    println!("\n{:<28}{:>14}", "accepted", result.accepted);
    println!("{:<28}{:>14}", "delivered", result.delivered);
    println!("{:<28}{:>14}", "  of these without a 250", result.unacknowledged);
    println!("{:<28}{:>14}", "lost", result.lost);
    println!("{:<28}{:>14}", "damaged", result.damaged);
    println!("{:<28}{:>14}", "duplicates", result.duplicated);
    Ok(result.lost + result.damaged == 0 && is_clean && result.accepted > 0)
}

/// The leader dies and comes back, then Valkey does.
fn disturb(nodes: &mut [Engine], valkey: &mut Valkey) -> Result<(), Box<dyn std::error::Error>> {
    let first = leader(nodes, None)?;
    println!("-- n{} leads", first + 1);
    thread::sleep(PAUSE);
    nodes[first].kill()?;
    let began = Instant::now();
    let second = leader(nodes, Some(first))?;
    println!("-- kill -9 of n{}: n{} leads after {} ms", first + 1, second + 1, began.elapsed().as_millis());
    nodes[first].start()?;
    println!("-- n{} is back", first + 1);
    thread::sleep(PAUSE);
    valkey.kill();
    println!("-- kill -9 of Valkey: mail goes on, nobody leads");
    thread::sleep(PAUSE);
    valkey.spawn()?;
    let began = Instant::now();
    let third = leader(nodes, None)?;
    println!("-- Valkey is back, with nothing: n{} leads after {} ms", third + 1, began.elapsed().as_millis());
    Ok(())
}

/// The node that says it leads, other than `not`.
fn leader(nodes: &[Engine], not: Option<usize>) -> io::Result<usize> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        for (number, node) in nodes.iter().enumerate().filter(|(number, _)| Some(*number) != not) {
            let status = node.ask(&["cluster", "leader", "--json"]).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
            if status.is_some_and(|status| status["is_leader"] == true) {
                return Ok(number);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other("nobody leads"))
}

/// A server of the demo's own, that keeps nothing.
struct Valkey {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Valkey {
    fn start(folder: &Path) -> io::Result<Valkey> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut valkey = Valkey { folder: folder.to_path_buf(), port, child: None };
        valkey.spawn()?;
        Ok(valkey)
    }

    fn spawn(&mut self) -> io::Result<()> {
        let program = ["valkey-server", "redis-server"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok())
            .ok_or_else(|| io::Error::other("valkey-server is missing: ./dev valkey"))?;
        let mut command = Command::new(program);
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.folder);
        self.child = Some(command.stdout(Stdio::null()).spawn()?);
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other("Valkey does not start"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself, which is as good here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        self.kill();
    }
}
