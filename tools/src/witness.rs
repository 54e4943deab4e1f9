//! Which deliveries a running engine has written down as done: what bounds the duplicates of a kill (RELIABILITY S11).
//!
//! An outcome is in the log from the moment the next hop's 250 is read, and durable with its batch. The witness asks the
//! engine, again and again, to answer once all outcomes so far are durable (a change of no message does that). What the
//! next hop had taken before such a question must never arrive again; what it took later may, once.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpost_loadtest::sink::SinkCounters;

/// From the next hop's 250 to the turn in which a shard reads it; a busy shard's turn is well under that.
const READ_MAX: Duration = Duration::from_millis(5);
/// Questions under way at once: one alone would leave a gap as long as its answer takes.
const ASKING: usize = 4;
/// The engine answers within this, or the witness ends.
const ANSWER_MAX: Duration = Duration::from_secs(100);
/// Connections of a killed engine are closed by the kernel within this.
const CLOSED_MAX: Duration = Duration::from_secs(10);

/// Returns once every outcome that the engine knew of when asked is durable.
pub fn outcomes_durable(socket: &Path) -> io::Result<()> {
    let answer = ask(socket, "{\"call\":\"queue_change\",\"change\":{\"action\":\"retry\"},\"ids\":[]}")?;
    if answer.contains("\"error\"") || !answer.contains("\"end\":true") {
        return Err(io::Error::other(format!("the engine did not write its outcomes: {answer}")));
    }
    Ok(())
}

/// Sends one request line to the control socket and returns all it answers.
pub fn ask(socket: &Path, request: &str) -> io::Result<String> {
    ask_within(socket, request, ANSWER_MAX)
}

/// The same of an engine that may hang: no line is waited for longer than `limit`.
pub fn ask_within(socket: &Path, request: &str, limit: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(request.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    for line in BufReader::new(stream).lines() {
        answer.push_str(&line?);
        answer.push('\n');
    }
    Ok(answer)
}

/// Watches one life of the engine.
#[derive(Debug)]
pub struct Witness {
    sink: SinkCounters,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Begins before the engine starts: everything that was delivered until now belongs to earlier lives.
    pub fn start(socket: PathBuf, sink: SinkCounters) -> io::Result<Self> {
        let written = Arc::new(AtomicU64::new(sink.deliveries()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut watch = Self { sink: sink.clone(), written, stop, threads: Vec::new() };
        for _ in 0..ASKING {
            let (written, stop) = (Arc::clone(&watch.written), Arc::clone(&watch.stop));
            let (sink, socket) = (sink.clone(), socket.clone());
            watch.threads.push(std::thread::Builder::new().name("witness".into()).spawn(move || {
                while !stop.load(SeqCst) {
                    let taken = sink.deliveries();
                    std::thread::sleep(READ_MAX);
                    if outcomes_durable(&socket).is_ok() {
                        written.fetch_max(taken, SeqCst);
                    }
                }
            })?);
        }
        Ok(watch)
    }

    /// Deliveries (message times recipient) whose outcome is durable. Ask before the kill.
    pub fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    /// After the kill: how many deliveries may come again, those that the next hop took since `written`. Waits until the
    /// next hop has seen the end of every connection, so that what stood in its sockets counts.
    pub fn may_come_again(self, written: u64) -> io::Result<u64> {
        let began = Instant::now();
        while self.sink.connections_open() > 0 {
            if began.elapsed() > CLOSED_MAX {
                return Err(io::Error::other("connections of the killed engine stay open"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.sink.deliveries() - written)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}
