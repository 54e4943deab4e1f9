//! Next hops that are broken: the engine's own deadlines end each attempt, mail is deferred, and goes when the hop is well.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpost_loadtest::sink::{Sink, SinkOptions};

use super::{Case, Needs, Place, Seen};
use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};
use crate::traffic::next_hop;

/// An attempt whose deadlines are a second each has ended after this.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// Replies of a whole transaction: banner, EHLO, MAIL, RCPT, DATA, the dot.
const REPLIES: [&str; 6] = ["220 hop.test\r\n", "250 hop.test\r\n", "250 Ok\r\n", "250 Ok\r\n", "354 Go on\r\n", "250 Ok\r\n"];

pub(super) const CASES: &[Case] = &[
    ("next hop: never speaks", Needs::Nothing, |place| is_survived(place, Manner::Silent)),
    ("next hop: a byte at a time", Needs::Nothing, |place| is_survived(place, Manner::Dribbles)),
    ("next hop: endless reply", Needs::Nothing, |place| is_survived(place, Manner::Endless)),
    ("next hop: 421 at once", Needs::Nothing, |place| is_survived(place, Manner::Says("421 4.3.2 Busy\r\n"))),
    ("next hop: 554 at once", Needs::Nothing, |place| is_survived(place, Manner::Says("554 5.3.2 Never\r\n"))),
    ("next hop: nonsense", Needs::Nothing, |place| is_survived(place, Manner::Says("\0\u{1}hello\r\n\r\n"))),
    ("next hop: drops in every state", Needs::Nothing, drops),
];

#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Accepts, and that is all.
    Silent,
    /// Speaks one octet each 300 ms.
    Dribbles,
    /// A reply that has no last line.
    Endless,
    /// Says this and closes.
    Says(&'static str),
    /// Closes in place of its reply of this number.
    Drops(usize),
}

/// A next hop with bad manners; gone when dropped.
pub(super) struct BadHop {
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadHop {
    pub(super) fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind(crate::machine::free_port()?)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("bad-hop".into()).spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(SeqCst) {
                    return;
                }
                let theirs = Arc::clone(&stopped);
                // Connections that break off are what this is about.
                held.push(std::thread::spawn(move || drop(behave(stream, manner, &theirs))));
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for BadHop {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn behave(mut stream: TcpStream, manner: Manner, stop: &AtomicBool) -> io::Result<()> {
    match manner {
        Manner::Silent => {
            stream.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut octets = [0; 512];
            while !stop.load(SeqCst) {
                match stream.read(&mut octets) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Manner::Dribbles => {
            for octet in b"220 hop.test is a very slow and talkative server that takes its time for this\r\n".iter().cycle() {
                if stop.load(SeqCst) {
                    return Ok(());
                }
                stream.write_all(&[*octet])?;
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        Manner::Endless => {
            while !stop.load(SeqCst) {
                stream.write_all(&b"220-and so on\r\n".repeat(1000))?;
            }
        }
        Manner::Says(words) => stream.write_all(words.as_bytes())?,
        Manner::Drops(at) => {
            let mut unread = Vec::new();
            for (number, reply) in REPLIES.iter().take(at).enumerate() {
                if number > 0 {
                    read_to(&mut stream, &mut unread, b"\r\n")?;
                }
                stream.write_all(reply.as_bytes())?;
            }
            if at > 0 {
                read_to(&mut stream, &mut unread, if at == REPLIES.len() - 1 { b"\r\n.\r\n" } else { b"\r\n" })?;
            }
        }
    }
    Ok(())
}

/// Reads until `end` is there, and takes everything up to it.
fn read_to(stream: &mut TcpStream, unread: &mut Vec<u8>, end: &[u8]) -> io::Result<()> {
    loop {
        if let Some(at) = memchr::memmem::find(unread, end) {
            unread.drain(..at + end.len());
            return Ok(());
        }
        let mut octets = [0; 4096];
        match stream.read(&mut octets)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => unread.extend_from_slice(&octets[..count]),
        }
    }
}

/// An engine with deadlines of a second.
pub(super) fn impatient(place: &Place<'_>, hop: SocketAddr) -> io::Result<Engine> {
    let mut options = EngineOptions::new(place.engine, &place.folder, Route::Smarthost(hop))?;
    options.segment_mib = Some(1);
    let keys = ["banner", "ehlo", "mail", "rcpt", "data", "block", "dot", "quit"];
    let lines: Vec<String> = keys.iter().map(|key| format!("{key}_timeout = \"1s\"")).collect();
    options.lines.push(("delivery", lines.join("\n")));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    Ok(engine)
}

/// A message is deferred with a reason, others are accepted meanwhile, and both arrive when the hop is well.
fn is_survived(place: &Place<'_>, manner: Manner) -> Seen {
    let hop = BadHop::start(manner)?;
    let address = hop.address;
    let mut engine = impatient(place, address)?;
    Dialogue::greeted(engine.address, ATTEMPT_MAX)?.message()?;
    let began = Instant::now();
    let reason = loop {
        engine.must_run()?;
        let text = engine.ask(&["queue", "ls", "--json"])?;
        let message: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or("null")).unwrap_or_default();
        let reply = message["recipients"][0]["last_reply"].as_str().unwrap_or_default();
        let reason = message["reason"].as_str().unwrap_or_default();
        let said = if reason.is_empty() { reply } else { reason };
        if !said.is_empty() {
            break said.to_string();
        }
        if began.elapsed() > ATTEMPT_MAX {
            return Ok((false, format!("no reason after {ATTEMPT_MAX:?}: {}", text.trim())));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let took = began.elapsed();
    let meanwhile = Dialogue::greeted(engine.address, ATTEMPT_MAX)?.message()?;
    drop(hop);
    let sink = Sink::start(SinkOptions { listen: address, ..next_hop(None)? })?;
    let drained = engine.drain(Duration::from_secs(20), || sink.messages());
    let arrived = sink.messages();
    let good = meanwhile.starts_with("250") && drained.is_ok() && arrived == 2;
    Ok((good, format!("after {:.1} s: {reason:?}; then {arrived} of 2 arrive", took.as_secs_f64())))
}

fn drops(place: &Place<'_>) -> Seen {
    for at in 0..REPLIES.len() {
        let folder = place.folder.join(at.to_string());
        let (good, seen) = is_survived(&Place { engine: place.engine, folder }, Manner::Drops(at))?;
        if !good {
            return Ok((false, format!("in place of reply {at}: {seen}")));
        }
    }
    Ok((true, format!("{} states, mail arrives after each", REPLIES.len())))
}
