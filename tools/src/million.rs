//! Commands over a million queued messages: how long each takes, and how fast mail is accepted meanwhile.

use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::source::SourceOptions;

use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;
use crate::traffic::{Sent, texts};

/// Messages of the sender that is looked for among the others.
const FEW: u64 = 1000;
/// Open-loop load beside each command, messages a second.
const BESIDE_PER_S: f64 = 200.0;
/// A command over the whole queue may raise the p99 of acceptance to so many times that without one, or to [`P99_MAX_US`].
const P99_TIMES_MAX: u64 = 5;
const P99_MAX_US: u64 = 50_000;
/// Of what a command prints so much is kept.
const BEGINS_BYTES: usize = 4096;

/// What to run.
#[derive(Debug, Args)]
pub struct MillionArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Messages that are queued first.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
}

/// Fills a held route, then runs each command beside a steady load; true when acceptance hardly noticed.
pub fn run(arguments: &MillionArguments) -> Result<bool, Box<dyn Error>> {
    let folder = rig_folder("million")?;
    let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Hold)?;
    options.lines.push(("memory", "max_memory = \"8 GiB\"".into()));
    options.lines.push(("[route]", "domain = \"other.test\"\nvia = \"hold\"".into()));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let fill = |sender: &str, messages: u64| -> Result<Sent, Box<dyn Error>> {
        let options = SourceOptions {
            sessions: 100,
            messages: Some(messages),
            reverse_path: format!("list@{sender}"),
            ..texts(engine.address, "256B")?
        };
        Ok(Sent::run(options)?)
    };
    let begun = Instant::now();
    let half = arguments.messages.saturating_sub(FEW) / 2;
    for (sender, messages) in [("many.test", half), ("few.test", FEW), ("many.test", arguments.messages.saturating_sub(FEW) - half)] {
        let sent = fill(sender, messages)?;
        if sent.acknowledged < messages {
            return Err(format!("{} of {messages} messages were accepted: {}", sent.acknowledged, sent.last_trouble).into());
        }
    }
    engine.must_run()?;
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    println!("{} messages queued in {:.0} s", arguments.messages, begun.elapsed().as_secs_f64());
    let beside = |seconds: f64| -> Result<Sent, Box<dyn Error>> {
        let options = SourceOptions {
            sessions: 8,
            rate: Some(Rate::Fixed(BESIDE_PER_S)),
            duration: Some(Duration::from_secs_f64(seconds)),
            reverse_path: "beside@beside.test".into(),
            ..texts(engine.address, "4KiB")?
        };
        Ok(Sent::run(options)?)
    };
    let quiet = beside(5.0)?;
    println!(
        "acceptance without a command: p50 {} us, p99 {} us, max {} us",
        quiet.latency_us.p50, quiet.latency_us.p99, quiet.latency_us.max
    );
    println!("{:<58}{:>10}{:>12}{:>12}{:>12}  said", "command", "seconds", "p50 us", "p99 us", "max us");
    let mut good = true;
    let calls: [&[&str]; 10] = [
        &["queue", "ls", "--json", "--sender-domain", "few.test"],
        &["queue", "ls", "--json", "--destination", "other.test"],
        &["queue", "reroute", "--sender-domain", "few.test", "--to", "other.test"],
        &["queue", "ls", "--json", "--destination", "other.test"],
        &["queue", "summary"],
        &["queue", "summary", "--destination", "other.test"],
        &["queue", "purge", "--sender-domain", "few.test"],
        &["queue", "ls", "--json"],
        &["queue", "reroute", "--sender-domain", "many.test", "--to", "other.test"],
        &["queue", "purge", "--sender-domain", "many.test"],
    ];
    for call in calls {
        let (engine, begun) = (&engine, Instant::now());
        let (said, took, loads) = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
            let asked = scope.spawn(move || {
                let said = listen(engine, call);
                (said, begun.elapsed())
            });
            let mut loads = vec![beside(1.0)?];
            while !asked.is_finished() {
                loads.push(beside(1.0)?);
            }
            let (said, took) = asked.join().map_err(|_| "the command's thread panicked")?;
            Ok((said?, took, loads))
        })?;
        let worst = |of: fn(&Sent) -> u64| loads.iter().map(of).max().unwrap_or(0);
        let (p50, p99, max) = (worst(|sent| sent.latency_us.p50), worst(|sent| sent.latency_us.p99), worst(|sent| sent.latency_us.max));
        let refused: u64 = loads.iter().map(|sent| sent.refused + sent.unknown).sum();
        let words = if said.lines > 3 { format!("{} lines", said.lines) } else { said.begins.trim().replace('\n', " · ") };
        println!("{:<58}{:>10.3}{p50:>12}{p99:>12}{max:>12}  {words}", call.join(" "), took.as_secs_f64());
        if refused > 0 {
            println!("    {refused} messages of the load beside it were refused");
        }
        good &= refused == 0 && p99 <= P99_MAX_US.max(quiet.latency_us.p99 * P99_TIMES_MAX);
    }
    engine.must_run()?;
    println!("{}", if good { "million: OK" } else { "million: FAILED" });
    Ok(good)
}

/// What a command printed.
struct Said {
    lines: usize,
    begins: String,
}

/// Runs a command and reads what it prints, without keeping it: the load beside it is measured in this process, and hundreds of megabytes
/// that grow in its memory hold that up for longer than the engine does.
fn listen(engine: &Engine, call: &[&str]) -> io::Result<Said> {
    let mut child = engine.command(call).stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().ok_or_else(|| io::Error::other("a piped output is there"))?;
    let (mut piece, mut begins, mut lines) = (vec![0; 64 * 1024], Vec::new(), 0);
    loop {
        let read = out.read(&mut piece)?;
        if read == 0 {
            break;
        }
        lines += piece[..read].iter().filter(|byte| **byte == b'\n').count();
        let room = BEGINS_BYTES.saturating_sub(begins.len()).min(read);
        begins.extend_from_slice(&piece[..room]);
    }
    let status = child.wait()?;
    match status.success() {
        true => Ok(Said { lines, begins: String::from_utf8_lossy(&begins).into_owned() }),
        false => Err(io::Error::other(format!("ringpost {}: {status}", call.join(" ")))),
    }
}
