//! Where mail goes when DNS says plain, odd or hostile things: a name server with a script, sinks on loopback, the real engine.
//! Each case is a domain: what its name server says, what must become of its mail, and what did.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::sink::{Sink, SinkOptions};

use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};

/// A domain whose mail has come to nothing by then is wrong.
const CASE_MAX: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(10);
/// Domains whose name server is silent while others' delay is measured.
const SILENT_DOMAINS: usize = 300;
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
const CASES: &[(&str, &str, &str)] = &[
    ("plain.test", "one MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("many.test", "200 MX, truncated, whole over TCP", "relay=mx outcome=delivered"),
    ("implicit.test", "no MX, an address", "relay=implicit.test[127.0.0.2] outcome=delivered"),
    ("chain.test", "CNAME to CNAME to MX", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("second.test", "the best MX is down", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("six.test", "AAAA that nobody answers, and A", "relay=mx6.test[127.0.0.2] outcome=delivered"),
    ("half.test", "a host without address, and one with", "relay=mx1.test[127.0.0.2] outcome=delivered"),
    ("null.test", "null MX", "dsn=5.1.10 outcome=bounced"),
    ("nx.test", "NXDOMAIN", "dsn=5.1.2 outcome=bounced"),
    ("self.test", "MX is this host", "dsn=5.4.6 outcome=bounced"),
    ("nothing.test", "neither MX nor address", "dsn=5.4.4 outcome=bounced"),
    ("bare.test", "NXDOMAIN without SOA", "dsn=4.4.3 outcome=deferred"),
    ("servfail.test", "SERVFAIL", "dsn=4.4.3 outcome=deferred SERVFAIL"),
    ("silent.test", "no answer", "dsn=4.4.3 outcome=deferred timed"),
    ("garbage.test", "octets that are no message", "dsn=4.4.3 outcome=deferred"),
    ("lame.test", "a referral to nowhere", "dsn=4.4.3 outcome=deferred"),
    ("loop.test", "CNAME to itself", "dsn=4.4.3 outcome=deferred"),
    ("cut.test", "truncated, TCP closes", "dsn=4.4.3 outcome=deferred"),
    ("nowhere.test", "MX hosts without address, and an address", "dsn=4.4.3 outcome=deferred"),
];

/// Runs all cases; true when each saw what it must.
pub fn run(arguments: &DnsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = crate::engine::rig_folder("dns")?;
    let server = NameServer::start()?;
    let port = crate::machine::free_port()?.port();
    let hop = SocketAddr::from(([127, 0, 0, 2], port));
    let sink = Sink::start(SinkOptions::new(hop, crate::machine::own_core()?))?;
    let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Mx(port))?;
    options.lines.push(("dns", format!("servers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 2\nallow_private = true", server.address)));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let log = folder.path().join("mail.log");
    for (domain, ..) in CASES {
        send(engine.address, &format!("user@{domain}"))?;
    }
    let mut good = true;
    println!("{:<14} {:<42} {:<52} seen", "domain", "DNS says", "expected");
    for (domain, says, expected) in CASES {
        let seen = wait_for(&log, domain, expected)?;
        good &= seen.0;
        println!("{domain:<14} {says:<42} {expected:<52} {} {}", if seen.0 { "ok   " } else { "WRONG" }, seen.1);
    }
    good &= silence_delays_nobody(&engine, &log)?;
    drop(sink);
    Ok(good)
}

/// The delay of mail for a domain that is well, alone and while the name servers of hundreds of others are silent.
fn silence_delays_nobody(engine: &Engine, log: &Path) -> io::Result<bool> {
    let alone = delays(engine, log, "alone")?;
    for number in 0..SILENT_DOMAINS {
        send(engine.address, &format!("user@d{number}.silent.test"))?;
    }
    let beside = delays(engine, log, "beside")?;
    let median = |delays: &[u64]| delays[delays.len() / 2];
    let longest = |delays: &[u64]| delays[delays.len() - 1];
    let good = median(&beside) <= median(&alone) + 5;
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

/// A name server that answers by script; ends with the process.
struct NameServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

impl NameServer {
    fn start() -> io::Result<Self> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let address = tcp.local_addr()?;
        let udp = UdpSocket::bind(address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_udp, stop_tcp) = (stop.clone(), stop.clone());
        udp.set_read_timeout(Some(Duration::from_millis(200)))?;
        std::thread::spawn(move || {
            let mut query = [0; 2048];
            while !stop_udp.load(SeqCst) {
                if let Ok((length, client)) = udp.recv_from(&mut query)
                    && let Some(answer) = answer(&query[..length], false)
                {
                    // A client that is gone needs no answer.
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                if stop_tcp.load(SeqCst) {
                    return;
                }
                std::thread::spawn(move || -> io::Result<()> {
                    let mut stream = stream;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    loop {
                        let mut length = [0; 2];
                        stream.read_exact(&mut length)?;
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        stream.read_exact(&mut query)?;
                        let Some(answer) = answer(&query, true) else { return Ok(()) };
                        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
                        stream.write_all(&answer)?;
                    }
                });
            }
        });
        Ok(Self { address, stop })
    }
}

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const MX: u16 = 15;
const AAAA: u16 = 28;

/// An answer being written.
struct Reply {
    rcode: u8,
    truncated: bool,
    answers: Vec<u8>,
    answers_count: u16,
    authority: Vec<u8>,
    authority_count: u16,
}

impl Reply {
    fn new() -> Self {
        Self { rcode: 0, truncated: false, answers: Vec::new(), answers_count: 0, authority: Vec::new(), authority_count: 0 }
    }

    fn with(mut self, owner: &str, kind: u16, data: &[u8]) -> Self {
        record(&mut self.answers, owner, kind, data);
        self.answers_count += 1;
        self
    }

    fn mx(self, owner: &str, preference: u16, host: &str) -> Self {
        self.with(owner, MX, &[&preference.to_be_bytes()[..], &name(host)].concat())
    }

    fn authority(mut self, kind: u16, data: &[u8]) -> Self {
        record(&mut self.authority, "test", kind, data);
        self.authority_count += 1;
        self
    }

    /// The proof of a negative answer.
    fn soa(self) -> Self {
        let times = [1_u32, 3600, 600, 86400, 5].map(u32::to_be_bytes).concat();
        self.authority(SOA, &[name("ns.test"), name("admin.test"), times].concat())
    }
}

fn name(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    octets
}

fn record(out: &mut Vec<u8>, owner: &str, kind: u16, data: &[u8]) {
    out.extend(name(owner));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1, 0, 0, 0, 60]);
    out.extend((data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// What is sent to a query; nothing for silence.
fn answer(query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let domain = labels.join(".");
    if domain == "garbage.test" {
        return Some(b"\x00\x01 this is no message \xFF\xFF".to_vec());
    }
    let reply = script(&domain, kind, over_tcp)?;
    let mut out = query[..2].to_vec();
    out.extend([0x84 | if reply.truncated { 2 } else { 0 }, 0x80 | reply.rcode, 0, 1]);
    out.extend(reply.answers_count.to_be_bytes());
    out.extend(reply.authority_count.to_be_bytes());
    out.extend([0, 0]);
    out.extend_from_slice(question);
    out.extend(reply.answers);
    out.extend(reply.authority);
    Some(out)
}

/// What the name server says of a domain.
fn script(domain: &str, kind: u16, over_tcp: bool) -> Option<Reply> {
    let none = || Reply::new().soa();
    let sink = Ipv4Addr::new(127, 0, 0, 2).octets();
    if domain == "silent.test" || domain.ends_with(".silent.test") {
        return None;
    }
    Some(match (domain, kind) {
        ("plain.test", MX) => Reply::new().mx(domain, 10, "mx1.test"),
        ("mx1.test" | "implicit.test", A) => Reply::new().with(domain, A, &sink),
        ("many.test", MX) if !over_tcp => Reply { truncated: true, ..Reply::new() },
        ("many.test", MX) => {
            (0..200).fold(Reply::new(), |reply, number| reply.mx(domain, 10 + number % 3, &format!("mx{number}.many.test")))
        }
        (host, A) if host.ends_with(".many.test") => Reply::new().with(domain, A, &sink),
        ("chain.test", MX) => {
            Reply::new().with(domain, CNAME, &name("c1.test")).with("c1.test", CNAME, &name("c2.test")).mx("c2.test", 10, "mx1.test")
        }
        ("second.test", MX) => Reply::new().mx(domain, 10, "down.test").mx(domain, 20, "mx1.test"),
        ("down.test", A) => Reply::new().with(domain, A, &[127, 0, 0, 9]),
        ("six.test", MX) => Reply::new().mx(domain, 10, "mx6.test"),
        ("mx6.test", A) => Reply::new().with(domain, A, &sink),
        ("mx6.test", AAAA) => Reply::new().with(domain, AAAA, &Ipv6Addr::LOCALHOST.octets()),
        ("half.test", MX) => Reply::new().mx(domain, 10, "gone.test").mx(domain, 20, "mx1.test"),
        ("null.test", MX) => Reply::new().mx(domain, 0, "."),
        ("self.test", MX) => Reply::new().mx(domain, 10, "engine.x.test"),
        ("nx.test" | "gone.test", _) => Reply { rcode: 3, ..none() },
        ("bare.test", _) => Reply { rcode: 3, ..Reply::new() },
        ("servfail.test", _) => Reply { rcode: 2, ..Reply::new() },
        ("lame.test", _) => Reply::new().authority(NS, &name("ns.elsewhere.test")),
        ("loop.test", _) => Reply::new().with(domain, CNAME, &name("loop.test")),
        ("cut.test", _) if over_tcp => return None,
        ("cut.test", _) => Reply { truncated: true, ..Reply::new() },
        ("nowhere.test", MX) => Reply::new().mx(domain, 10, "gone.test"),
        ("nowhere.test", A) => Reply::new().with(domain, A, &sink),
        _ => none(),
    })
}
