//! An engine's process, for the load test and for the rigs: its start, its end of any kind, its queue and its last words.
//!
//! Whoever uses it writes the config file; it listens where that says.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{diff::QueuedMail, leash::Leashed};

/// A start that has no banner after this long has failed.
const START_MAX: Duration = Duration::from_secs(60);

/// Messages of a queue that are read: a load that leaves more behind is not told of each.
const QUEUED_MAX: u32 = 4_000_000;

/// Pace of looking whether something has happened that no event tells of.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// It ended instead of saying its banner.
#[derive(Debug)]
pub struct EndedAtStart {
    /// How.
    pub status: ExitStatus,
    /// The last lines of its log.
    words: String,
}

impl fmt::Display for EndedAtStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words.is_empty() {
            true => write!(f, "the engine ended at its start ({}) and said nothing", self.status),
            false => write!(f, "the engine ended at its start ({}): {}", self.status, self.words),
        }
    }
}

impl std::error::Error for EndedAtStart {}

/// Can be started and killed any number of times. Killed when dropped.
#[derive(Debug)]
pub struct EngineProcess {
    binary: PathBuf,
    folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    child: Option<Leashed>,
}

impl EngineProcess {
    /// One that does not run yet, with its config file, log and control socket in `folder`, which is made.
    ///
    /// # Errors
    /// A folder that cannot be had.
    pub fn new(binary: &Path, folder: &Path, address: SocketAddr) -> io::Result<EngineProcess> {
        std::fs::create_dir_all(folder)?;
        let (config, log) = (folder.join("ringpost.toml"), folder.join("engine.log"));
        Ok(EngineProcess { binary: binary.to_path_buf(), folder: folder.to_path_buf(), address, config, log, child: None })
    }

    /// The binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The config file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(|child| child.id())
    }

    /// Starts the process without waiting for it. `command` runs the binary, or becomes it.
    ///
    /// # Errors
    /// No binary, or no log.
    pub fn spawn(&mut self, mut command: Command) -> io::Result<()> {
        assert!(self.child.is_none(), "the engine runs already");
        let log = || -> io::Result<File> { OpenOptions::new().append(true).create(true).open(&self.log) };
        command.args(["serve", "-c"]).arg(&self.config).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        let child = command.spawn();
        let child = child.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.binary.display())))?;
        self.child = Some(Leashed::new(child));
        Ok(())
    }

    /// Starts it as [`EngineProcess::spawn`] does and waits for its banner; how long that took.
    ///
    /// # Errors
    /// As [`EngineProcess::spawn`] and [`EngineProcess::wait_for_banner`].
    pub fn start(&mut self, command: Command) -> io::Result<Duration> {
        let began = Instant::now();
        self.spawn(command)?;
        self.wait_for_banner()?;
        Ok(began.elapsed())
    }

    /// Waits for a banner of the process that was spawned.
    ///
    /// # Errors
    /// No banner within a minute, or its last words when it ends instead.
    pub fn wait_for_banner(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            if let Some(status) = self.child.as_mut().expect("the engine was spawned").try_wait()? {
                self.child = None;
                return Err(io::Error::other(EndedAtStart { status, words: self.last_words() }));
            }
            if has_banner(self.address) {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(io::Error::other(format!("no banner after {START_MAX:?}: {}", self.last_words())))
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Sends a signal and waits for nothing.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(child) = &self.child else { return Err(not_running()) };
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// SIGKILL, and waits for the end. True when it was still running.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&mut self) -> io::Result<bool> {
        let Some(mut child) = self.child.take() else { return Ok(false) };
        let ran = child.try_wait()?.is_none();
        child.kill()?;
        child.wait()?;
        Ok(ran)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It did not run, or did not end within `limit`: then it is killed.
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(limit, "after SIGTERM")
    }

    /// Waits for a process that ends by itself.
    ///
    /// # Errors
    /// As [`EngineProcess::terminate`].
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        self.ended(limit, "by itself")
    }

    fn ended(&mut self, limit: Duration, how: &str) -> io::Result<ExitStatus> {
        let mut child = self.child.take().ok_or_else(not_running)?;
        let began = Instant::now();
        while began.elapsed() < limit {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        child.kill()?;
        child.wait()?;
        Err(io::Error::other(format!("the engine did not end {how} within {limit:?}: {}", self.last_words())))
    }

    /// Fails when the process has ended by itself.
    ///
    /// # Errors
    /// Its last words.
    pub fn must_run(&mut self) -> io::Result<()> {
        match self.child.as_mut().ok_or_else(not_running)?.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("the engine ended by itself ({status}): {}", self.last_words()))),
        }
    }

    /// Runs the binary with `-c` and these arguments.
    ///
    /// # Errors
    /// No binary.
    pub fn call(&self, arguments: &[&str]) -> io::Result<Output> {
        self.command(arguments).output()
    }

    /// The same, not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("-c").arg(&self.config).stdin(Stdio::null());
        command
    }

    /// The same, and returns what it printed.
    ///
    /// # Errors
    /// Another exit code than 0.
    pub fn ask(&self, arguments: &[&str]) -> io::Result<String> {
        let output = self.call(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ringpost {}: {}: {}", arguments.join(" "), output.status, words.trim())))
    }

    /// The counters of the running engine; `Null` where it has none to offer.
    pub fn stats(&self) -> serde_json::Value {
        self.ask(&["stats", "--json"]).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// What waits in its queue.
    ///
    /// # Errors
    /// It does not answer, or not as it should.
    pub fn queued(&self) -> io::Result<QueuedMail> {
        let mut asked = self.command(&["queue", "ls", "--json", "--limit", &QUEUED_MAX.to_string()]);
        let mut asked = asked.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        // Where a line is none of it nobody reads on, and whoever writes sees that.
        let read = QueuedMail::read(BufReader::new(asked.stdout.take().expect("it is piped")));
        let status = asked.wait()?;
        match read {
            Ok(_) if !status.success() => Err(io::Error::other(format!("ringpost queue ls: {status}"))),
            read => read,
        }
    }

    /// Waits until nothing is queued. Fails after `limit` without any change in `progress`.
    ///
    /// # Errors
    /// The engine has ended, or the first of what is still queued.
    pub fn drain(&mut self, limit: Duration, progress: impl Fn() -> u64) -> io::Result<()> {
        self.drain_unless(limit, progress, || false).map(|_is_empty| ())
    }

    /// The same, until `stopped` says that nobody waits any more; true: nothing is queued.
    ///
    /// # Errors
    /// As [`EngineProcess::drain`].
    pub fn drain_unless(&mut self, limit: Duration, progress: impl Fn() -> u64, stopped: impl Fn() -> bool) -> io::Result<bool> {
        let (mut seen, mut since) = (progress(), Instant::now());
        loop {
            self.must_run()?;
            let listing = self.ask(&["queue", "ls", "--json", "--limit", "1"])?;
            if listing.trim().is_empty() {
                return Ok(true);
            }
            if stopped() {
                return Ok(false);
            }
            let now = progress();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() > limit {
                return Err(io::Error::other(format!("the queue does not empty, {limit:?} without a delivery: {}", listing.trim())));
            }
            std::thread::sleep(20 * LOOK_EVERY);
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let _already_ended = self.kill();
    }
}

fn not_running() -> io::Error {
    io::Error::other("the engine does not run")
}

fn has_banner(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut line = String::new();
    let patient = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let greeted = patient.and_then(|()| BufReader::new(&stream).read_line(&mut line)).is_ok() && line.starts_with("220");
    if greeted {
        let _polite = (&stream).write_all(b"QUIT\r\n");
    }
    greeted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_port::free_port;

    /// No engine: a shell that is told `serve -c FILE`.
    fn shell(folder: &Path, script: &str) -> (EngineProcess, Command) {
        let process = EngineProcess::new(Path::new("/bin/sh"), folder, free_port().unwrap()).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        (process, command)
    }

    #[test]
    fn a_process_that_ends_at_its_start_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, command) = shell(folder.path(), "echo not today >&2; exit 7");
        process.spawn(command).unwrap();
        let error = process.wait_for_banner().unwrap_err().to_string();
        assert!(error.contains("exit status: 7") && error.ends_with("not today"), "{error}");
        assert!(process.pid().is_none() && process.terminate(Duration::ZERO).is_err() && process.must_run().is_err());
        assert!(!process.kill().unwrap());
    }

    /// What happened: a colon with nothing behind it.
    #[test]
    fn a_process_that_ends_at_its_start_without_a_word_is_said_to() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, command) = shell(folder.path(), "exit 0");
        process.spawn(command).unwrap();
        let error = process.wait_for_banner().unwrap_err().to_string();
        assert_eq!(error, "the engine ended at its start (exit status: 0) and said nothing");
    }

    #[test]
    fn the_wait_for_an_empty_queue_ends_when_nobody_waits_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut command) = shell(folder.path(), "mkfifo fifo; read line < fifo");
        let mut process = EngineProcess::new(Path::new("/bin/echo"), folder.path(), free_port().unwrap()).unwrap();
        command.current_dir(folder.path());
        process.spawn(command).unwrap();
        // The queue holds what it is asked with, as `echo` says.
        let asked = std::cell::Cell::new(0);
        let stopped = || asked.replace(asked.get() + 1) == 2;
        assert!(!process.drain_unless(Duration::from_secs(60), || 0, stopped).unwrap());
        assert_eq!(asked.get(), 3);
        assert!(process.drain(Duration::ZERO, || 0).unwrap_err().to_string().contains("queue ls"));
        assert!(process.kill().unwrap());
    }

    #[test]
    fn one_that_does_not_end_in_time_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, command) = shell(folder.path(), "trap '' TERM; mkfifo fifo; read line < fifo");
        process.spawn(command).unwrap();
        process.must_run().unwrap();
        let pid = process.pid().unwrap();
        let error = process.wait(Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.contains("did not end by itself"), "{error}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists() && process.pid().is_none());
    }
}
