//! Which deliveries a running engine has written down as done: what bounds the duplicates of a kill (RELIABILITY S11).
//!
//! An outcome is counted and put into the log when the next hop's 250 is read, and durable with its batch. The witness asks
//! the engine, again and again, how many deliveries it has counted, and then to answer once all outcomes so far are durable
//! (a change of no message does that). So many must never arrive again; what the next hop took beyond them may, once. How
//! long a 250 waits until it is read is nobody's promise, and no part of this: a busy machine is slow, and the bound knows.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringpost_loadtest::sink::SinkCounters;
use serde_json::Value;

/// Pace of asking; nothing rests on it.
const ASK_EVERY: Duration = Duration::from_millis(5);
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

/// Deliveries (message times recipient) that this life of the engine has put into its log so far.
fn counted(socket: &Path) -> io::Result<u64> {
    let answer = ask(socket, "{\"call\":\"stats\"}")?;
    let counters: Option<Value> = answer.lines().next().and_then(|line| serde_json::from_str(line).ok());
    counters
        .and_then(|counters| counters["delivered"].as_u64())
        .ok_or_else(|| io::Error::other(format!("the engine does not say what it delivered: {answer}")))
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
        let line = line?;
        // An empty one only says that the engine has heard.
        if !line.is_empty() {
            answer.push_str(&line);
            answer.push('\n');
        }
    }
    Ok(answer)
}

/// Watches one life of the engine.
#[derive(Debug)]
pub struct Witness {
    sink: SinkCounters,
    /// What the next hop had taken in earlier lives.
    before: u64,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Begins before the engine starts: everything that was delivered until now belongs to earlier lives.
    pub fn start(socket: PathBuf, sink: SinkCounters) -> io::Result<Self> {
        let mut watch = Self { before: sink.deliveries(), sink, written: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        for _ in 0..ASKING {
            let (written, stop, socket) = (Arc::clone(&watch.written), Arc::clone(&watch.stop), socket.clone());
            watch.threads.push(std::thread::Builder::new().name("witness".into()).spawn(move || {
                while !stop.load(SeqCst) {
                    if let Ok(delivered) = counted(&socket)
                        && outcomes_durable(&socket).is_ok()
                    {
                        written.fetch_max(delivered, SeqCst);
                    }
                    std::thread::sleep(ASK_EVERY);
                }
            })?);
        }
        Ok(watch)
    }

    /// Deliveries of this life whose outcome is durable. Ask before the kill.
    pub fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    /// After the kill: how many deliveries may come again, those that the next hop took in this life beyond `written`. Waits until the
    /// next hop has seen the end of every connection, so that what stood in its sockets counts.
    pub fn may_come_again(self, written: u64) -> io::Result<u64> {
        let began = Instant::now();
        while self.sink.connections_open() > 0 {
            if began.elapsed() > CLOSED_MAX {
                return Err(io::Error::other("connections of the killed engine stay open"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let taken = self.sink.deliveries() - self.before;
        taken
            .checked_sub(written)
            .ok_or_else(|| io::Error::other(format!("the engine wrote {written} deliveries down as done, and the next hop took {taken}")))
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use ringpost_loadtest::sink::Sink;
    use ringpost_loadtest::source::{Source, SourceOptions};

    use super::*;
    use crate::traffic::{next_hop, texts};

    /// The control socket of an engine that has counted so many deliveries, and how often its outcomes were asked to be durable. Ends with
    /// the process: it waits for questions that do not come any more.
    fn engine(folder: &Path, delivered: u64) -> (PathBuf, Arc<AtomicU64>) {
        let socket = folder.join("ringpost.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut question = String::new();
                let mut stream = BufReader::new(stream);
                stream.read_line(&mut question).unwrap();
                let is_stats = question.contains("stats");
                let counters = if is_stats { format!("{{\"delivered\":{delivered}}}\n") } else { String::new() };
                writeln!(stream.get_mut(), "{counters}{{\"end\":true,\"count\":0}}").unwrap();
                counts.fetch_add(u64::from(!is_stats), SeqCst);
            }
        });
        (socket, asked)
    }

    /// What happened: what the next hop had taken 5 ms before a question was held to be read by then, so that on a busy machine more came
    /// again than the bound allowed. Now what the engine has not counted may come again, however long ago it was taken.
    #[test]
    fn what_the_engine_has_not_read_may_come_again() {
        for (counted, may_come_again) in [(0, Some(5)), (3, Some(2)), (5, Some(0)), (6, None)] {
            let folder = tempfile::tempdir().unwrap();
            let sink = Sink::start(next_hop(None).unwrap()).unwrap();
            let send = |messages| {
                let load = SourceOptions { messages: Some(messages), ..texts(sink.address, "1KiB").unwrap() };
                assert_eq!(Source::start(load).unwrap().join().unwrap().acknowledged, messages);
            };
            // An earlier life's.
            send(7);
            let (socket, asked) = engine(folder.path(), counted);
            let witness = Witness::start(socket, sink.counters()).unwrap();
            send(5);
            // Each thread of the witness has asked since, and read the answer.
            let enough = asked.load(SeqCst) + 3 * ASKING as u64;
            while asked.load(SeqCst) < enough {
                std::thread::yield_now();
            }
            let written = witness.written();
            assert_eq!(witness.may_come_again(written).ok(), may_come_again, "{counted}");
        }
    }
}
