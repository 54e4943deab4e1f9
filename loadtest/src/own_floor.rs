//! What this tool adds to latencies: its figures against a server that does nothing, beside those of plain blocking sockets.
//!
//! The server is a thread that answers each line, and the end of each content, with a constant. The same dialogue, one message after
//! the other, is timed once with `write` and `read` in a loop, and once by the source. The difference is what the source adds.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;

use crate::{
    cli::{EXIT_OK, Failure, say},
    content::ContentKind,
    encoded_histogram::latency_histogram,
    live::{Beside, Quiet, run_source, shown},
    phase::Phase,
    pinning,
    signals::StopSignal,
    sizes::Sizes,
    source::{SourceOptions, arguments::last_core},
};

/// `ringpost-load own-floor …`
#[derive(Args, Debug, Clone)]
pub struct OwnFloorArguments {
    /// Messages of each of the two.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..=10_000_000))]
    pub messages: u64,
    /// Octets of a message.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub size: u64,
}

impl OwnFloorArguments {
    /// Measures both and prints them.
    ///
    /// # Errors
    /// No socket, no ring.
    pub fn run(&self) -> Result<u8, Failure> {
        let failed = |error: io::Error| Failure::io("the own floor", error);
        let server = Responder::start(self.size as usize).map_err(failed)?;
        let core = last_core()?;
        let (address, messages, size) = (server.address, self.messages, self.size as usize);
        let plain = std::thread::spawn(move || blocking(address, core, messages, size));
        let plain = plain.join().map_err(|_| Failure::Io("the thread with blocking sockets panicked".into()))?.map_err(failed)?;
        say(&row("blocking sockets", &plain))?;
        let options = SourceOptions {
            messages: Some(self.messages),
            pipelining: false,
            ..SourceOptions::new(address, core, ContentKind::Text(Sizes::fixed(self.size)))
        };
        let ran = run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet)?;
        let own = ran.measurement.totals().histogram(Phase::DotTo250);
        say(&row("this source", own))?;
        let added = |at: f64| own.value_at_percentile(at) as f64 / 1000.0 - plain.value_at_percentile(at) as f64 / 1000.0;
        say(&format!("the source adds {:.1} us at p50, {:.1} us at p99", added(50.0), added(99.0)))?;
        Ok(EXIT_OK)
    }
}

fn row(name: &str, latency: &Histogram<u64>) -> String {
    let at = |percentile: f64| shown(latency, percentile);
    format!(
        "{name:<18} dot to 250: p50 {}, p90 {}, p99 {}, p99.9 {}, max {} ({} messages)",
        at(50.0),
        at(90.0),
        at(99.0),
        at(99.9),
        at(100.0),
        latency.len()
    )
}

/// A server that does nothing, for as many connections as come, one after the other.
struct Responder {
    address: SocketAddr,
    _thread: JoinHandle<()>,
}

impl Responder {
    fn start(content_bytes: usize) -> io::Result<Responder> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let core = pinning::cores()?.first().copied().unwrap_or_default();
        let thread = std::thread::Builder::new().name("responder".into()).spawn(move || {
            // On another core than the clients where there is one; if not, the scheduler decides.
            let _unpinned = pinning::pin(core);
            for stream in listener.incoming().flatten() {
                // A client that left is not missed.
                let _ended = respond(stream, content_bytes);
            }
        })?;
        Ok(Responder { address, _thread: thread })
    }
}

fn respond(mut stream: TcpStream, content_bytes: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 floor\r\n")?;
    let mut buffer = vec![0; (2 * content_bytes).max(64 << 10)];
    let mut in_content = false;
    let mut last = [0; 5];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = &buffer[..count];
        if in_content {
            let kept = bytes.len().min(5);
            last.rotate_left(kept);
            last[5 - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
            if last != *b"\r\n.\r\n" {
                continue;
            }
        }
        in_content = bytes.starts_with(b"DATA");
        stream.write_all(if in_content { b"354 go\r\n" } else { b"250 ok\r\n" })?;
    }
}

fn blocking(to: SocketAddr, core: usize, messages: u64, size: usize) -> io::Result<Histogram<u64>> {
    pinning::pin(core)?;
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = [0; 512];
    let mut latencies = latency_histogram();
    let content = [&vec![b'x'; size.saturating_sub(2)][..], b"\r\n.\r\n"].concat();
    expect_reply(&mut stream, &mut buffer)?;
    for _ in 0..messages {
        for command in [&b"MAIL FROM:<a@load.test>\r\n"[..], b"RCPT TO:<b@load.test>\r\n", b"DATA\r\n"] {
            stream.write_all(command)?;
            expect_reply(&mut stream, &mut buffer)?;
        }
        // Before the write, as the source counts content that leaves in one send: both then contain one send and one receive.
        let began = Instant::now();
        stream.write_all(&content)?;
        expect_reply(&mut stream, &mut buffer)?;
        latencies.saturating_record((began.elapsed().as_nanos() as u64).max(1));
    }
    Ok(latencies)
}

fn expect_reply(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    match stream.read(buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
