//! Two shards: how they share kept connections, and what a delivery costs that crosses from one to the other.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::pinning::cores;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::SourceOptions;

use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;
use crate::machine;
use crate::traffic::{Sent, next_hop, texts};

/// Connections that a client keeps.
const KEPT: usize = 10;
/// Of ten, this many on one shard are too many.
const TOO_MANY: usize = 7;
/// What ends by itself is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Args)]
pub struct HomesArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Trials of ten connections.
    #[arg(long, default_value_t = 50)]
    trials: usize,
    /// Messages of each measurement.
    #[arg(long, default_value_t = 60_000)]
    messages: u64,
    /// Measurements of each kind, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Runs both; true when connections are spread well and limits were kept.
pub fn run(arguments: &HomesArguments) -> Result<bool, Box<dyn std::error::Error>> {
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    let with = spread(arguments, true)?;
    let without = spread(arguments, false)?;
    println!("connections of {KEPT} on the first shard (0 to {KEPT}), in {} trials", arguments.trials);
    println!("  passed on     {with:?}");
    println!("  kernel alone  {without:?}");
    let worst =
        |distribution: &[usize]| distribution.iter().enumerate().filter(|(_, trials)| **trials > 0).map(|(on, _)| on.max(KEPT - on)).max();
    let is_even = worst(&with).is_some_and(|most| most < TOO_MANY);
    let proves = worst(&without).is_some_and(|most| most >= TOO_MANY);
    if !proves {
        println!("the kernel spread them as well: this run proves nothing");
    }

    let (mut kept_limits, mut sent, mut over_lanes) = (true, 0, 0);
    let mut medians = Vec::new();
    // Eight connections belong to one home, sixteen to two: then each shard delivers its own mail.
    let kinds = [("local", 16), ("crossing", 8)];
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        for ((name, connections), found) in kinds.iter().zip(&mut measured) {
            let one = measure(arguments, *connections)?;
            println!(
                "{name:<9} {:>6.1} us of CPU a message, {:>6.0} messages/s, {:>5.1} % crossed, {} pieces fetched, {} of {connections} connections, {:.0} messages each",
                one.cpu_us,
                one.per_second,
                one.crossed * 100.0,
                one.fetched,
                one.connections,
                one.per_connection
            );
            kept_limits &= one.connections <= u64::from(*connections);
            sent += arguments.messages;
            over_lanes += (one.crossed * arguments.messages as f64).round() as u64;
            found.push(one);
        }
    }
    for found in &mut measured {
        found.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
        medians.push(&found[found.len() / 2]);
    }
    let (local, crossing) = (medians[0], medians[1]);
    println!(
        "median: local {:.1} us, with {:.0} % crossing {:.1} us; a delivery that crosses costs {:+.1} us",
        local.cpu_us,
        crossing.crossed * 100.0,
        crossing.cpu_us,
        (crossing.cpu_us - local.cpu_us) / crossing.crossed
    );
    let said = if kept_limits { "never more" } else { "at times MORE" };
    println!(
        "{sent} messages, {over_lanes} of them over the lanes: {said} connections to their destination than its limit, by the count of the next hop"
    );
    let good = is_even && proves && kept_limits && crossing.crossed > 0.3;
    println!("{}", if good { "homes: OK" } else { "homes: FAILED" });
    Ok(good)
}

/// Two shards, on cores of their own where there are two.
fn two_shards(arguments: &HomesArguments, folder: &std::path::Path, route: Route) -> io::Result<EngineOptions> {
    let mut options = EngineOptions::new(&arguments.engine, folder, route)?;
    let all = cores()?;
    (options.cores, options.per_core) = if all.len() > 1 { (all[..2].to_vec(), 1) } else { (all, 2) };
    Ok(options)
}

/// Trials by the number of connections on the first shard.
fn spread(arguments: &HomesArguments, passes: bool) -> Result<Vec<usize>, Box<dyn std::error::Error>> {
    let folder = rig_folder("spread")?;
    let mut options = two_shards(arguments, folder.path(), Route::Discard)?;
    options.lines.push(("shards", format!("pass_connections = {passes}")));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let mut distribution = vec![0; KEPT + 1];
    for _ in 0..arguments.trials {
        let began = Instant::now();
        while engine.stats()["sessions"].as_u64() != Some(0) {
            engine.must_run()?;
            if began.elapsed() > PATIENCE {
                return Err("sessions do not end".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let streams = (0..KEPT).map(|_| TcpStream::connect(engine.address)).collect::<io::Result<Vec<_>>>()?;
        let mut on_first = 0;
        let mut open = Vec::new();
        for stream in streams {
            let (shard, stream) = send_one(stream)?;
            on_first += usize::from(shard == 0);
            open.push(stream);
        }
        distribution[on_first] += 1;
    }
    Ok(distribution)
}

/// Sends one message; the shard that took it, by its queue id.
fn send_one(stream: TcpStream) -> io::Result<(u32, BufReader<TcpStream>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut last = reply(&mut reader)?;
    for command in ["EHLO rig.x.test", "MAIL FROM:<a@x.test>", "RCPT TO:<d@z.test>", "DATA", "Subject: x\r\n\r\nx\r\n."] {
        reader.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        last = reply(&mut reader)?;
    }
    let id = last.trim_end().rsplit_once("id=").map(|(_, id)| id).unwrap_or_default();
    // Seven digits of the boot, four of the shard: decimal below ten.
    let shard = id.get(7..11).and_then(|digits| digits.parse().ok()).ok_or_else(|| io::Error::other(format!("no queue id: {last:?}")))?;
    Ok((shard, reader))
}

fn reply(reader: &mut impl BufRead) -> io::Result<String> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(line);
        }
    }
}

struct Measured {
    cpu_us: f64,
    per_second: f64,
    /// Share of the messages.
    crossed: f64,
    fetched: u64,
    /// Most at once at the next hop.
    connections: u64,
    per_connection: f64,
}

/// Messages in at both shards, and out to one next hop over so many connections, until all have arrived.
fn measure(arguments: &HomesArguments, connections: u32) -> Result<Measured, Box<dyn std::error::Error>> {
    let folder = rig_folder("homes")?;
    let sink = Sink::start(next_hop(None)?)?;
    let mut options = two_shards(arguments, folder.path(), Route::Smarthost(sink.address))?;
    options.lines.push(("delivery", format!("connections_max = {connections}\nwindow_initial = {connections}")));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let pid = engine.pid().expect("the engine was started");
    let load = |messages: u64, to: SocketAddr| -> io::Result<SourceOptions> {
        Ok(SourceOptions { sessions: KEPT, messages: Some(messages), ..texts(to, "4KiB")? })
    };
    // What every path needs once is paid for before.
    let warm = Sent::run(load(arguments.messages / 10, engine.address)?)?;
    engine.drain(PATIENCE, || sink.messages())?;
    let (before, stats, began) = (machine::process_cpu(pid)?, engine.stats(), Instant::now());
    let sent = Sent::run(load(arguments.messages, engine.address)?)?;
    engine.drain(PATIENCE, || sink.messages())?;
    let (cpu, took, after) = (machine::process_cpu(pid)? - before, began.elapsed(), engine.stats());
    let messages = sent.acknowledged;
    if messages != arguments.messages || sink.messages() != messages + warm.acknowledged {
        return Err(format!("{messages} acknowledged, {} arrived: {}", sink.messages(), sent.last_trouble).into());
    }
    let grown = |name: &str| after[name].as_u64().unwrap_or(0) - stats[name].as_u64().unwrap_or(0);
    let measured = Measured {
        cpu_us: cpu.as_secs_f64() * 1e6 / messages as f64,
        per_second: messages as f64 / took.as_secs_f64(),
        crossed: grown("dispatched_to_homes") as f64 / messages as f64,
        fetched: grown("content_fetched"),
        connections: 0,
        per_connection: 0.0,
    };
    engine.terminate(PATIENCE)?;
    sink.stop();
    let (report, _) = sink.join()?;
    Ok(Measured { connections: report.concurrent_max, per_connection: report.messages_per_connection_mean, ..measured })
}
