//! A running `ringpost` with a folder and a port of its own.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tempfile::TempDir;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn ringpost() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
}

/// One that nobody else takes.
pub(crate) fn free_port() -> u16 {
    ringpost_loadtest::free_port::free_port().unwrap().port()
}

/// Writes `text` as a config file into `folder`.
pub(crate) fn write_config(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("ringpost.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// What differs from node to node.
pub(crate) struct Setup {
    pub(crate) networks: &'static str,
    pub(crate) domains: &'static str,
    pub(crate) route: String,
    /// `[queue]` and `[delivery]`.
    pub(crate) retries: &'static str,
    pub(crate) extra: &'static str,
    pub(crate) address: SocketAddr,
    /// Limit of open files; none: that of the test.
    pub(crate) open_files: Option<u32>,
}

impl Setup {
    /// Loopback may relay, `y.test` has b and c, all mail is held.
    pub(crate) fn new() -> Self {
        Self {
            networks: r#"["127.0.0.0/8", "::1/128"]"#,
            domains: "[[domain]]\nname = \"y.test\"\nrecipients = [\"b\", \"c\"]\n",
            route: "via = \"hold\"".into(),
            retries: "[queue]\nretry_base = \"1s\"\nretry_cap = \"2s\"\n[delivery]\ndead_destination = \"1s\"\n",
            extra: "",
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
            open_files: None,
        }
    }

    /// All mail goes to `hop`.
    pub(crate) fn to(hop: SocketAddr) -> Self {
        Self { route: format!("via = \"smarthost\"\nhosts = [\"{hop}\"]"), ..Self::new() }
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "hostname = \"mx1.example.test\"\n\
             [spool]\npath = \"spool\"\nsegment_bytes = \"1 MiB\"\nprepared_segments = 3\nmin_free_bytes = \"1 MiB\"\n\
             min_free_inodes = 10\nallow_unsafe_spool = true\n\
             [control]\nsocket = \"ringpost.sock\"\n\
             [log]\nmail_output = \"mail.log\"\n\
             {}[[listener]]\naddress = \"{}\"\n[relay]\nnetworks = {}\n{}[[route]]\ndomain = \"*\"\n{}\n{}\n",
            self.retries, self.address, self.networks, self.domains, self.route, self.extra
        )
    }
}

/// A process that is killed when dropped.
pub(crate) struct Node {
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) config: PathBuf,
    /// What a shell does before it becomes the node.
    pub(crate) prelude: Option<String>,
    child: Option<Child>,
}

impl Node {
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::start_with(setup, &setup.text())
    }

    /// With this text, which a test has made of that of `setup`.
    pub(crate) fn start_with(setup: &Setup, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = write_config(folder.path(), text);
        let prelude = setup.open_files.map(|limit| format!("ulimit -n {limit}"));
        let mut node = Self { folder, address: setup.address, config, prelude, child: None };
        node.restart();
        node
    }

    /// Changes the config file for the next start.
    pub(crate) fn reconfigure(&self, setup: &Setup) {
        write_config(self.folder.path(), &setup.text());
    }

    /// Starts it and waits for its banner.
    pub(crate) fn restart(&mut self) {
        self.restart_logging_to(OpenOptions::new().append(true).create(true).open(self.folder.path().join("log")).unwrap());
    }

    /// The same, and what it says goes elsewhere.
    pub(crate) fn restart_logging_to(&mut self, log: File) {
        assert!(self.child.is_none());
        let program = self.prelude.as_ref().map_or_else(ringpost, |prelude| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{prelude} && exec \"$0\" \"$@\"")]).arg(ringpost().get_program());
            shell
        });
        let output = log.try_clone().unwrap();
        let child = { program }.args(["serve", "-c"]).arg(&self.config).stdin(Stdio::null()).stdout(output).stderr(log).spawn().unwrap();
        self.child = Some(child);
        let began = Instant::now();
        while !self.greets() {
            assert_eq!(self.child.as_mut().unwrap().try_wait().unwrap(), None, "ended at its start: {}", self.log());
            assert!(began.elapsed() < PATIENCE, "no banner: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn greets(&self) -> bool {
        let Ok(stream) = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)) else { return false };
        // Briefly: right behind a kill it can be the old process's socket, which lives until the kernel has taken its ring down, and in rare
        // cases says nothing for ever.
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut line = String::new();
        let read = BufReader::new(&stream).read_line(&mut line);
        let _polite = (&stream).write_all(b"QUIT\r\n");
        read.is_ok() && line.starts_with("220 ")
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        assert_eq!(child.try_wait().unwrap(), None, "ended by itself: {}", self.log());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal and goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.as_ref().expect("the node runs").id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// From now on it may open no file whose descriptor would be so high; `None`: as many as the test may.
    pub(crate) fn limit_open_files(&self, limit: Option<u64>) {
        let pid = Pid::from_raw(self.child.as_ref().expect("the node runs").id() as i32).unwrap();
        let own = getrlimit(Resource::Nofile);
        let limit = Rlimit { current: limit.or(own.maximum), maximum: own.maximum };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    }

    /// From now on whatever it writes beyond so many bytes of a file is refused with EFBIG: a failing disk that needs neither root nor a file system of
    /// its own. The signal that comes with it ends the process unless [`Node::prelude`] has it ignored.
    pub(crate) fn limit_files(&self, bytes_max: u64) {
        let pid = Pid::from_raw(self.child.as_ref().expect("the node runs").id() as i32);
        prlimit(pid, Resource::Fsize, Rlimit { current: Some(bytes_max), maximum: Some(bytes_max) }).unwrap();
    }

    /// Waits for the end of a process that was told to end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if began.elapsed() > Duration::from_secs(35) {
                child.kill().unwrap();
                panic!("did not end: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Runs `ringpost ARGUMENTS -c CONFIG`.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output().unwrap()
    }

    /// Of the running process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// A command against this node, to be run as the test likes.
    pub(crate) fn call(&self, arguments: &[&str]) -> Command {
        let mut command = ringpost();
        command.args(arguments).arg("-c").arg(&self.config);
        command
    }

    /// The lines of `queue ls --json`.
    pub(crate) fn queue(&self) -> Vec<serde_json::Value> {
        let output = self.ask(&["queue", "ls", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }

    /// Waits until the mail log has `text`; returns the whole of it.
    pub(crate) fn wait_for_mail_log(&self, text: &str) -> String {
        self.wait_for_mail_log_that(text, |log| log.contains(text))
    }

    /// Waits until the mail log satisfies `is_wanted`; `what` says for people what is waited for.
    pub(crate) fn wait_for_mail_log_that(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let log = String::from_utf8_lossy(&std::fs::read(self.folder.path().join("mail.log")).unwrap_or_default()).into_owned();
            if is_wanted(&log) {
                return log;
            }
            assert!(began.elapsed() < PATIENCE, "no {what:?} in {log}; {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the queue satisfies `wanted`.
    pub(crate) fn wait_for_queue(&self, wanted: impl Fn(&[serde_json::Value]) -> bool) -> Vec<serde_json::Value> {
        let began = Instant::now();
        loop {
            let queue = self.queue();
            if wanted(&queue) {
                return queue;
            }
            assert!(began.elapsed() < PATIENCE, "the queue stays {queue:?}; {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}
