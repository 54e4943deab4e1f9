//! Where mail goes when DNS says plain, odd or hostile things: NSD with a zone, then a name server with a script for what NSD would
//! never say; a sink on loopback, the real engine. Each case is a domain: what its name server says, what must become of its mail,
//! and what did.

mod nsd;
mod script;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::sink::{Sink, SinkOptions};

use self::nsd::Nsd;
use self::script::Scripted;
use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};

/// A domain whose mail has come to nothing by then is wrong.
const CASE_MAX: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(10);
/// Domains whose name server is silent while others' delay is measured.
const SILENT_DOMAINS: usize = 300;
/// How long the engine waits for an answer, once.
const DNS_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages of each measurement.
const MEASURED: usize = 100;

/// What to run.
#[derive(Debug, Args)]
pub struct DnsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
}

/// Domain, what DNS says, and what the mail log must have of its mail.
type Case = (&'static str, &'static str, &'static str);

/// What a real name server says.
const REAL: &[Case] = &[
    ("plain.test", "one MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("crowd.test", "200 MX of one preference, truncated, by TCP", "relay=mx .crowd.test[127.0.0.2] outcome=delivered"),
    ("many.test", "200 MX, one of them up: the best", "relay=best.many.test[127.0.0.2] outcome=delivered"),
    ("implicit.test", "no MX, an address", "relay=implicit.test[127.0.0.2] outcome=delivered"),
    ("chain.test", "CNAME to CNAME to MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("eight.test", "eight CNAMEs, then MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("alias.test", "MX to a CNAME", "relay=mxalias.test[127.0.0.2] outcome=delivered"),
    ("a.b.wild.test", "a wildcard's MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("second.test", "the best MX is down", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("six.test", "AAAA that nobody answers, and A", "relay=mx6.test[127.0.0.2] outcome=delivered"),
    ("half.test", "a host without address, and one with", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("smart.invalid", "the route's host: CNAME to A", "relay=smart.test[127.0.0.2] outcome=delivered"),
    ("lost.invalid", "the route's host: NXDOMAIN", "relay=none dsn=4.4.3 outcome=deferred gone.test"),
    ("null.test", "null MX", "dsn=5.1.10 outcome=bounced"),
    ("nx.test", "NXDOMAIN", "dsn=5.1.2 outcome=bounced"),
    ("self.test", "MX is this host", "dsn=5.4.6 outcome=bounced"),
    ("nothing.test", "neither MX nor address", "dsn=5.4.4 outcome=bounced"),
    ("loop.test", "CNAMEs in a circle", "dsn=4.4.3 outcome=deferred"),
    ("nowhere.test", "MX hosts without address, and an address", "dsn=4.4.3 outcome=deferred"),
    ("elsewhere.example", "REFUSED: not its zone", "dsn=4.4.3 outcome=deferred REFUSED"),
];

/// What a script says, because no real name server would.
const SCRIPTED: &[Case] = &[
    ("plain.test", "one MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("bare.test", "NXDOMAIN without SOA", "dsn=4.4.3 outcome=deferred"),
    ("servfail.test", "SERVFAIL", "dsn=4.4.3 outcome=deferred SERVFAIL"),
    ("silent.test", "no answer", "dsn=4.4.3 outcome=deferred timed"),
    ("garbage.test", "octets that are no message", "dsn=4.4.3 outcome=deferred"),
    ("lame.test", "a referral to nowhere", "dsn=4.4.3 outcome=deferred"),
    ("circle.test", "a CNAME of itself, with the SOA", "dsn=4.4.3 outcome=deferred its CNAMEs"),
    ("cut.test", "truncated, TCP closes", "dsn=4.4.3 outcome=deferred"),
];

/// Runs all cases; true when each saw what it must.
pub fn run(arguments: &DnsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = crate::engine::rig_folder("dns")?;
    let port = crate::machine::free_port()?.port();
    let hop = SocketAddr::from(([127, 0, 0, 2], port));
    let _sink = Sink::start(SinkOptions::new(hop, crate::machine::own_core()?))?;

    let nsd = Nsd::start(&folder.path().join("nsd"))?;
    println!("{}", nsd.version);
    let truncated = nsd.truncates("crowd.test")?;
    println!("its answer to MX of crowd.test over UDP: {}", if truncated { "truncated" } else { "whole: WRONG" });
    let by_name = format!(
        "[[route]]\ndomain = \"smart.invalid\"\nvia = \"smarthost\"\nhosts = [\"smart.test:{port}\"]\n\
         [[route]]\ndomain = \"lost.invalid\"\nvia = \"smarthost\"\nhosts = [\"gone.test:{port}\"]\n"
    );
    let engine = start(arguments, &folder.path().join("real"), port, nsd.address, by_name)?;
    let mut good = truncated & see(REAL, &engine)?;
    drop(engine);
    drop(nsd);

    let script = Scripted::start()?;
    let engine = start(arguments, &folder.path().join("scripted"), port, script.address, String::new())?;
    good &= see(SCRIPTED, &engine)?;
    good &= silence_delays_nobody(&engine)?;
    Ok(good)
}

struct Asking {
    engine: Engine,
    log: PathBuf,
}

/// An engine that asks this name server and finds the hosts at this port.
fn start(arguments: &DnsArguments, folder: &Path, port: u16, server: SocketAddr, routes: String) -> io::Result<Asking> {
    let mut options = EngineOptions::new(&arguments.engine, folder, Route::Mx(port))?;
    options
        .lines
        .push(("dns", format!("servers = [\"{server}\"]\ntimeout = \"{}s\"\nattempts = 2\nallow_private = true", DNS_TIMEOUT.as_secs())));
    options.routes = routes;
    let mut engine = Engine::new(options)?;
    engine.start()?;
    Ok(Asking { engine, log: folder.join("mail.log") })
}

/// Sends a message for each case and prints what came of it.
fn see(cases: &[Case], asking: &Asking) -> io::Result<bool> {
    let mut good = true;
    for (domain, ..) in cases {
        send(asking.engine.address, &format!("user@{domain}"))?;
    }
    println!("{:<18} {:<44} {:<60} seen", "domain", "DNS says", "expected");
    for (domain, says, expected) in cases {
        let seen = wait_for(&asking.log, domain, expected)?;
        good &= seen.0;
        println!("{domain:<18} {says:<44} {expected:<60} {} {}", if seen.0 { "ok   " } else { "WRONG" }, seen.1);
    }
    Ok(good)
}

/// The delay of mail for a domain that is well, alone and while the name servers of hundreds of others are silent.
fn silence_delays_nobody(Asking { engine, log }: &Asking) -> io::Result<bool> {
    let alone = delays(engine, log, "alone")?;
    for number in 0..SILENT_DOMAINS {
        send(engine.address, &format!("user@d{number}.silent.test"))?;
    }
    let beside = delays(engine, log, "beside")?;
    let median = |delays: &[u64]| delays[delays.len() / 2];
    let longest = |delays: &[u64]| delays[delays.len() - 1];
    // One that waited behind a question would have waited for its time-out.
    let good = median(&beside) <= median(&alone) + 5 && longest(&beside) < DNS_TIMEOUT.as_millis() as u64;
    println!(
        "delay of {MEASURED} messages in ms, median and longest: alone {} and {}, beside {SILENT_DOMAINS} silent domains {} and {}: {}",
        median(&alone),
        longest(&alone),
        median(&beside),
        longest(&beside),
        if good { "ok" } else { "WRONG" }
    );
    Ok(good)
}

/// Milliseconds from acceptance to delivery of mail for `plain.test`, sorted.
fn delays(engine: &Engine, log: &Path, name: &str) -> io::Result<Vec<u64>> {
    let mut delays = Vec::new();
    for number in 0..MEASURED {
        let address = format!("{name}{number}@plain.test");
        send(engine.address, &address)?;
        let (_, line) = wait_for(log, &address, "outcome=delivered")?;
        let word = line.split(' ').find_map(|word| word.strip_prefix("delay_ms="));
        delays.push(word.and_then(|word| word.parse().ok()).ok_or_else(|| io::Error::other(format!("no delay in {line:?}")))?);
    }
    delays.sort_unstable();
    Ok(delays)
}

fn send(engine: SocketAddr, to: &str) -> io::Result<()> {
    let mut dialogue = Dialogue::greeted(engine, PATIENCE)?;
    dialogue.must("MAIL FROM:<s@x.test>", "250")?;
    dialogue.must(&format!("RCPT TO:<{to}>"), "250")?;
    dialogue.must("DATA", "354")?;
    dialogue.send(b"Subject: dns\r\n\r\nx\r\n.\r\n")?;
    let reply = dialogue.reply()?;
    if reply.starts_with("250") { Ok(()) } else { Err(io::Error::other(reply)) }
}

/// The line of the mail log about an attempt for an address or domain; waits for one with all the expected words.
fn wait_for(log: &Path, to: &str, expected: &str) -> io::Result<(bool, String)> {
    let began = Instant::now();
    let mut last = String::from("nothing");
    while began.elapsed() < CASE_MAX {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let tail = format!("{to}>");
        for line in text.lines().filter(|line| line.contains("event=attempt") && line.contains(&tail)) {
            if expected.split(' ').all(|word| line.contains(word)) {
                return Ok((true, shortened(line)));
            }
            last = shortened(line);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((false, last))
}

fn shortened(line: &str) -> String {
    line.split_once("relay=").map_or(line.to_owned(), |(_, rest)| format!("relay={rest}"))
}
