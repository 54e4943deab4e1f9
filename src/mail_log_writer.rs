//! Writes the mail log of all shards: one thread, so that a slow disk or a full pipe stalls neither shards nor control.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
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
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::error;

use crate::mail_log_entry::MailLogEntry;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How long after a failed write the same lines are tried again, at most.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
                                LogFormat::Text => sink.write_all(&buffer, &ending),
                                LogFormat::Json => sink.write_all(&as_json(&buffer), &ending),
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

/// Makes the file if need be. A named pipe that nobody reads is an error, not a wait without end; one that is read is waited for.
fn open_for_append(path: &Path) -> io::Result<File> {
    let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).custom_flags(without_waiting).open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Did the process that wrote it end within a line? Of what is no regular file nothing is known.
fn ends_within_line(path: &Path) -> io::Result<bool> {
    let file = fs::metadata(path)?;
    let Some(last) = file.len().checked_sub(1).filter(|_| file.is_file()) else { return Ok(false) };
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

struct Sink {
    destination: Destination,
    out: Box<dyn Write + Send>,
    /// The same file, to be asked for its names.
    file: Option<File>,
    /// Device and inode of the file: another one under its name means that the log was rotated.
    identity: Option<(u64, u64)>,
    failed: bool,
    /// The file ends within a line that nobody goes on with.
    torn: bool,
}

impl Sink {
    fn open(destination: Destination) -> io::Result<Sink> {
        let (out, file): (Box<dyn Write + Send>, _) = match &destination {
            Destination::File(path) => {
                let file = open_for_append(path)?;
                (Box::new(file.try_clone()?), Some(file))
            }
            Destination::Stdout => (Box::new(io::stdout()), None),
            Destination::Stderr => (Box::new(io::stderr()), None),
        };
        let (identity, torn) = match &destination {
            // A log that may be written and not be read is no fault.
            Destination::File(path) => (
                file.as_ref().and_then(|file| file.metadata().ok()).map(|file| (file.dev(), file.ino())),
                ends_within_line(path).unwrap_or(false),
            ),
            Destination::Stdout | Destination::Stderr => (None, false),
        };
        Ok(Sink { destination, out, file, identity, failed: false, torn })
    }

    /// Writes whole lines. While that fails it is tried again and the shards' buffers stay away: so lines are dropped and counted, or
    /// mail is refused, as `log.mail` says. When the process ends, lines that cannot be written are given up.
    fn write_all(&mut self, lines: &[u8], ending: &AtomicBool) {
        let mut written = 0;
        while written < lines.len() {
            let is_last_try = ending.load(Ordering::Acquire);
            match self.write(lines, &mut written) {
                Ok(()) => self.failed = false,
                Err(reason) if reason.kind() == io::ErrorKind::Interrupted => {}
                Err(reason) => {
                    if !self.failed {
                        error!(%reason, destination = ?self.destination, "the mail log cannot be written; it is tried again");
                    }
                    self.failed = true;
                    if is_last_try {
                        return;
                    }
                    thread::park_timeout(RETRY_AFTER);
                }
            }
        }
    }

    fn is_unlinked(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|file| file.nlink() == 0))
    }

    /// Writes some of what lies behind `written` and moves that on.
    fn write(&mut self, lines: &[u8], written: &mut usize) -> io::Result<()> {
        if let Destination::File(path) = &self.destination
            && identity(path) != self.identity
        {
            match Sink::open(self.destination.clone()) {
                Ok(reopened) => {
                    (self.out, self.file, self.identity, self.torn) = (reopened.out, reopened.file, reopened.identity, reopened.torn);
                    // A line that the old file has a part of is whole in the new one.
                    *written = lines[..*written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                }
                // What has no name any more is read by nobody: its folder was removed. One that was renamed is as good as it was.
                Err(reason) if self.is_unlinked() => return Err(reason),
                Err(_) => {}
            }
        }
        if self.torn {
            self.out.write_all(b"\n")?;
            self.torn = false;
        }
        *written += match self.out.write(&lines[*written..])? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => count,
        };
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes a few bytes, then nothing for once.
    struct Stingy(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Stingy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(2) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(7);
            self.0.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// With the folder of the log removed lines went into a file without a name, and nobody counted them or refused mail.
    #[test]
    fn a_log_that_was_removed_with_its_folder_takes_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log/mail.log");
        fs::create_dir(folder.path().join("log")).unwrap();
        let mut sink = Sink::open(Destination::File(path.clone())).unwrap();
        sink.write(b"one\n", &mut 0).unwrap();
        // Renamed away while no other can be made: it is gone on with.
        fs::rename(folder.path().join("log"), folder.path().join("kept")).unwrap();
        sink.write(b"two\n", &mut 0).unwrap();
        assert_eq!(fs::read(folder.path().join("kept/mail.log")).unwrap(), b"one\ntwo\n");
        fs::remove_dir_all(folder.path().join("kept")).unwrap();
        let mut written = 0;
        assert_eq!(sink.write(b"three\n", &mut written).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(written, 0);
        fs::create_dir(folder.path().join("log")).unwrap();
        sink.write(b"three\n", &mut written).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three\n");
    }

    /// The rest of a buffer was dropped at such a failure, and the next line went on where the one before was cut.
    #[test]
    fn a_line_that_was_written_in_part_is_gone_on_with() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let out = Box::new(Stingy(taken.clone(), 0));
        let mut sink = Sink { destination: Destination::Stdout, out, file: None, identity: None, failed: false, torn: false };
        // Nobody has to wait for the next try.
        thread::current().unpark();
        sink.write_all(b"queue_id=A1\n", &AtomicBool::new(false));
        thread::current().unpark();
        sink.write_all(b"queue_id=B2\n", &AtomicBool::new(false));
        assert_eq!(*taken.lock().unwrap(), b"queue_id=A1\nqueue_id=B2\n");
    }

    /// The thread waited for a reader of the pipe, and every line from then on was lost without a word.
    #[test]
    fn a_pipe_that_nobody_reads_does_not_take_the_place_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (log, old) = (folder.path().join("mail.log"), folder.path().join("mail.log.1"));
        let mut sink = Sink::open(Destination::File(log.clone())).unwrap();
        fs::rename(&log, &old).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
        sink.write_all(b"queue_id=A1\n", &AtomicBool::new(true));
        assert_eq!(fs::read(&old).unwrap(), b"queue_id=A1\n");
        fs::remove_file(&log).unwrap();
        sink.write_all(b"queue_id=B2\n", &AtomicBool::new(true));
        assert_eq!(fs::read(&log).unwrap(), b"queue_id=B2\n");
    }
}
