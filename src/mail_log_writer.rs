//! Writes the mail log of all shards: one thread, so that a slow disk or a full pipe stalls neither shards nor control.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use ringpost_config::LogFormat;
use ringpost_engine::mail_log::MailLogChannel;
use tracing::error;

use crate::mail_log_entry::MailLogEntry;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Appended to this file; made if missing. Reopened when it was renamed away (log rotation).
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The writer's thread and the shards' channels to it.
pub struct MailLogWriter {
    channels: Vec<Arc<MailLogChannel>>,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl MailLogWriter {
    /// Opens the destination and starts the thread, with one channel for each of `shards`.
    pub fn start(destination: Destination, format: LogFormat, shards: usize) -> io::Result<MailLogWriter> {
        let mut sink = Sink::open(destination)?;
        let handle: Arc<OnceLock<Thread>> = Arc::default();
        let channels: Vec<_> = (0..shards)
            .map(|_| {
                let handle = handle.clone();
                MailLogChannel::new(Box::new(move || {
                    if let Some(thread) = handle.get() {
                        thread.unpark();
                    }
                }))
            })
            .collect();
        let ending = Arc::new(AtomicBool::new(false));
        let (on_end, ended) = mpsc::channel();
        let thread = {
            let (channels, ending) = (channels.clone(), ending.clone());
            thread::Builder::new().name("mail-log".to_owned()).spawn(move || {
                loop {
                    let last_round = ending.load(Ordering::Acquire);
                    let mut wrote = false;
                    for channel in &channels {
                        while let Some(buffer) = channel.take() {
                            match format {
                                LogFormat::Text => sink.write(&buffer),
                                LogFormat::Json => sink.write(&as_json(&buffer)),
                            }
                            channel.recycle(buffer);
                            wrote = true;
                        }
                    }
                    if last_round && !wrote {
                        let _ = on_end.send(());
                        return;
                    }
                    if !wrote {
                        thread::park();
                    }
                }
            })?
        };
        handle.set(thread.thread().clone()).expect("set once");
        thread.thread().unpark();
        Ok(MailLogWriter { channels, ending, thread, ended })
    }

    /// The channel of each shard, in order.
    pub fn channels(&self) -> &[Arc<MailLogChannel>] {
        &self.channels
    }

    /// Writes what has been passed on, then ends.
    pub fn finish(self) {
        self.ending.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // A pipe that nobody reads must not keep the process from its end.
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

/// Lines of text as lines of JSON; one that was cut at its longest length says so with what is left of it.
fn as_json(lines: &[u8]) -> Vec<u8> {
    let mut json = Vec::with_capacity(lines.len() * 3 / 2);
    for line in String::from_utf8_lossy(lines).lines() {
        let object = MailLogEntry::parse(line)
            .map_or_else(|| serde_json::json!({"event": "log", "unparsed": line}).to_string(), |entry| entry.to_json());
        json.extend_from_slice(object.as_bytes());
        json.push(b'\n');
    }
    json
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

struct Sink {
    destination: Destination,
    out: Box<dyn Write + Send>,
    /// Device and inode of the file: another one under its name means that the log was rotated.
    identity: Option<(u64, u64)>,
    failed: bool,
}

impl Sink {
    fn open(destination: Destination) -> io::Result<Sink> {
        let out: Box<dyn Write + Send> = match &destination {
            Destination::File(path) => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
            Destination::Stdout => Box::new(io::stdout()),
            Destination::Stderr => Box::new(io::stderr()),
        };
        let identity = match &destination {
            Destination::File(path) => identity(path),
            Destination::Stdout | Destination::Stderr => None,
        };
        Ok(Sink { destination, out, identity, failed: false })
    }

    /// Writes whole lines; a failure is said once and ends with the next success.
    fn write(&mut self, lines: &[u8]) {
        if let Destination::File(path) = &self.destination
            && identity(path) != self.identity
            && let Ok(reopened) = Sink::open(self.destination.clone())
        {
            (self.out, self.identity) = (reopened.out, reopened.identity);
        }
        match self.out.write_all(lines).and_then(|()| self.out.flush()) {
            Ok(()) => self.failed = false,
            Err(reason) => {
                if !self.failed {
                    error!(%reason, destination = ?self.destination, "the mail log cannot be written; its lines are lost until it can");
                }
                self.failed = true;
            }
        }
    }
}
