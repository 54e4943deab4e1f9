//! The engine as a process: its config file, its start, its sudden end, and what it says of itself.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A start that has no banner after this long has failed.
const START_MAX: Duration = Duration::from_secs(60);
/// Pace of looking whether something has happened that no event tells of.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Where the engine sends what it accepted.
#[derive(Debug, Clone, Copy)]
pub enum Route {
    /// To this next hop.
    Smarthost(SocketAddr),
    /// To the hosts that DNS names, at this port.
    Mx(u16),
    /// Nowhere: accepted mail stays queued.
    Hold,
    /// Accepted and forgotten.
    Discard,
}

/// How an engine under test is set up; what is not here is the embedded default.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The binary.
    pub binary: PathBuf,
    /// Holds config, logs and (unless `spool` says otherwise) the spool.
    pub folder: PathBuf,
    /// The spool's folder, when it is to lie elsewhere.
    pub spool: Option<PathBuf>,
    /// Cores of the shards.
    pub cores: Vec<usize>,
    /// Shards on each of them.
    pub per_core: u32,
    /// Length of a segment in MiB; none: the default.
    pub segment_mib: Option<u64>,
    /// The route of all mail.
    pub route: Route,
    /// Further `[[route]]`s, as in the file.
    pub routes: String,
    /// Further lines by section name, such as `("spool", "min_free_bytes = \"1 MiB\"")`.
    pub lines: Vec<(&'static str, String)>,
    /// The end of the file, such as further routes.
    pub tail: String,
    /// Where it listens; none: a free port of loopback.
    pub address: Option<SocketAddr>,
    /// The network namespace it runs in, by its name for `ip netns`; none: the rig's own.
    pub namespace: Option<String>,
}

impl EngineOptions {
    /// One shard on the first free core, the embedded defaults, and quick retries.
    pub fn new(binary: &Path, folder: &Path, route: Route) -> io::Result<Self> {
        let (cores, _) = crate::machine::shares()?;
        Ok(Self {
            binary: binary.canonicalize().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", binary.display())))?,
            folder: folder.to_path_buf(),
            spool: None,
            cores: cores[..1].to_vec(),
            per_core: 1,
            segment_mib: None,
            route,
            routes: String::new(),
            lines: vec![
                ("queue", "retry_base = \"1s\"\nretry_cap = \"2s\"".into()),
                ("delivery", "dead_destination = \"1s\"\nconnect_timeout = \"5s\"".into()),
            ],
            tail: String::new(),
            address: None,
            namespace: None,
        })
    }

    fn config(&self, listen: SocketAddr) -> String {
        let spool = self.spool.clone().unwrap_or_else(|| self.folder.join("spool"));
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        let mut sections: Vec<(&str, String)> = vec![
            ("shards", format!("cores = \"{}\"\nper_core = {}", cores.join(","), self.per_core)),
            ("spool", format!("path = {spool:?}")),
            ("control", "socket = \"ringpost.sock\"".into()),
            ("log", "mail_output = \"mail.log\"".into()),
        ];
        if let Some(mib) = self.segment_mib {
            sections[1].1.push_str(&format!("\nsegment_bytes = \"{mib} MiB\""));
        }
        for (name, lines) in &self.lines {
            match sections.iter_mut().find(|(section, _)| section == name) {
                Some((_, text)) => write!(text, "\n{lines}").expect("writing to a string does not fail"),
                None => sections.push((name, lines.clone())),
            }
        }
        let mut text = String::from("hostname = \"engine.x.test\"\n");
        for (name, lines) in &sections {
            writeln!(text, "[{name}]\n{lines}").expect("writing to a string does not fail");
        }
        let route = match self.route {
            Route::Smarthost(hop) => format!("via = \"smarthost\"\nhosts = [\"{hop}\"]"),
            Route::Mx(port) => format!("via = \"mx\"\nport = {port}"),
            Route::Hold => "via = \"hold\"".into(),
            Route::Discard => "via = \"discard\"".into(),
        };
        let near = match listen.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => format!(", \"{}/24\"", Ipv4Addr::from_bits(ip.to_bits() & !255)),
            _ => String::new(),
        };
        write!(text, "[[listener]]\naddress = \"{listen}\"\n[relay]\nnetworks = [\"127.0.0.0/8\", \"::1/128\"{near}]\n")
            .and_then(|()| write!(text, "[[domain]]\nname = \"y.test\"\n[[route]]\ndomain = \"*\"\n{route}\n{}", self.routes))
            .expect("writing to a string does not fail");
        text.push_str(&self.tail);
        text
    }
}

/// An engine that can be started and killed any number of times; killed when dropped.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    /// Where it listens.
    pub address: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Engine {
    /// Writes the config file. The engine isn't started.
    pub fn new(options: EngineOptions) -> io::Result<Self> {
        let address = match options.address {
            Some(address) => address,
            None => crate::machine::free_port()?,
        };
        std::fs::create_dir_all(&options.folder)?;
        let config = options.folder.join("ringpost.toml");
        let log = options.folder.join("engine.log");
        std::fs::write(&config, options.config(address))?;
        Ok(Self { options, address, config, log, child: None })
    }

    /// Changes the setup of the next start. The port stays.
    pub fn change(&mut self, change: impl FnOnce(&mut EngineOptions)) -> io::Result<()> {
        change(&mut self.options);
        std::fs::write(&self.config, self.options.config(self.address))
    }

    /// The config file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.options.folder.join("ringpost.sock")
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "the engine runs already");
        let log = || -> io::Result<File> { OpenOptions::new().append(true).create(true).open(&self.log) };
        let mut command = match &self.options.namespace {
            // `ip` becomes the engine: the process id stays.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.options.binary);
                command
            }
            None => Command::new(&self.options.binary),
        };
        let child = command
            .args(["serve", "-c"])
            .arg(&self.config)
            .current_dir(&self.options.folder)
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.options.binary.display())))?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it and waits for its banner; returns how long that took. Fails with its last words when it ends instead.
    pub fn start(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        self.spawn()?;
        self.wait_for_banner()?;
        Ok(began.elapsed())
    }

    /// Waits for a banner of the process that was spawned.
    pub fn wait_for_banner(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            let ended = self.child.as_mut().expect("the engine was spawned").try_wait()?;
            if let Some(status) = ended {
                self.child = None;
                return Err(io::Error::other(format!("the engine ended at its start ({status}): {}", self.last_words())));
            }
            if let Ok(stream) = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)) {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                let mut line = String::new();
                let greeted = BufReader::new(&stream).read_line(&mut line);
                if greeted.is_ok() && line.starts_with("220") {
                    let _polite = (&stream).write_all(b"QUIT\r\n");
                    return Ok(());
                }
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
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(child) = &self.child else { return Err(io::Error::other("the engine does not run")) };
        kill_process(Pid::from_raw(child.id() as i32).expect("a child has a process id"), signal)?;
        Ok(())
    }

    /// SIGKILL, and waits for the end. True when it was still running.
    pub fn kill(&mut self) -> io::Result<bool> {
        let Some(mut child) = self.child.take() else { return Ok(false) };
        let ran = child.try_wait()?.is_none();
        child.kill()?;
        child.wait()?;
        Ok(ran)
    }

    /// SIGTERM, and waits for the end; kills and fails after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().expect("it was sent a signal");
        self.ended(&mut child, limit, "after SIGTERM")
    }

    /// Waits for a process that ends by itself; kills and fails after `limit`.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(io::Error::other("the engine does not run")) };
        self.ended(&mut child, limit, "by itself")
    }

    fn ended(&self, child: &mut Child, limit: Duration, how: &str) -> io::Result<ExitStatus> {
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
    pub fn must_run(&mut self) -> io::Result<()> {
        let Some(child) = self.child.as_mut() else { return Err(io::Error::other("the engine does not run")) };
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("the engine ended by itself ({status}): {}", self.last_words()))),
        }
    }

    /// Runs the binary with `-c` and these arguments.
    pub fn call(&self, arguments: &[&str]) -> io::Result<Output> {
        Command::new(&self.options.binary).args(arguments).arg("-c").arg(&self.config).output()
    }

    /// The same, and returns what it printed. Fails on another exit code than 0.
    pub fn ask(&self, arguments: &[&str]) -> io::Result<String> {
        let output = self.call(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ringpost {}: {}: {}", arguments.join(" "), output.status, words.trim())))
    }

    /// The counters of the running engine; `Null` where it has none to offer.
    pub fn stats(&self) -> Value {
        self.ask(&["stats", "--json"]).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null)
    }

    /// Queue ids of all messages it still keeps.
    pub fn queued(&self) -> io::Result<HashSet<String>> {
        queue_ids(&self.ask(&["queue", "ls", "--json"])?).map_err(io::Error::other)
    }

    /// Waits until nothing is queued. Fails after `limit` without any change in `progress`.
    pub fn drain(&mut self, limit: Duration, progress: impl Fn() -> u64) -> io::Result<()> {
        let (mut seen, mut since) = (progress(), Instant::now());
        loop {
            self.must_run()?;
            let listing = self.ask(&["queue", "ls", "--json", "--limit", "1"])?;
            if listing.trim().is_empty() {
                return Ok(());
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

/// The queue ids in the output of `ringpost queue ls --json` (one object per line, key `id`).
fn queue_ids(listing: &str) -> Result<HashSet<String>, String> {
    listing
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let value: Value = serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))?;
            value["id"].as_str().map(str::to_string).ok_or_else(|| format!("no id in {line:?}"))
        })
        .collect()
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _already_ended = self.kill();
    }
}

/// A folder for one run of a rig on a real disk: in `RINGPOST_RIG_FOLDER`, else in /var/tmp (/tmp may be memory).
pub fn rig_folder(name: &str) -> io::Result<tempfile::TempDir> {
    let base = std::env::var_os("RINGPOST_RIG_FOLDER").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    tempfile::Builder::new().prefix(&format!("ringpost-{name}-")).tempdir_in(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_listings_are_read_line_by_line() {
        assert_eq!(queue_ids("{\"id\":\"A\"}\n{\"id\":\"B\",\"size\":3}\n").unwrap().len(), 2);
        assert!(queue_ids("{\"name\":1}").is_err());
    }

    #[test]
    fn lines_of_one_section_are_joined() {
        let options = EngineOptions {
            binary: "/bin/true".into(),
            folder: "/tmp/x".into(),
            spool: None,
            cores: vec![0, 2],
            per_core: 3,
            segment_mib: Some(1),
            route: Route::Hold,
            routes: String::new(),
            lines: vec![("spool", "min_free_inodes = 7".into()), ("queue", "expiry = \"1d\"".into())],
            tail: String::new(),
            address: None,
            namespace: None,
        };
        let text = options.config(SocketAddr::from(([127, 0, 0, 1], 25)));
        assert_eq!(text.matches("[spool]").count(), 1);
        assert!(text.contains("segment_bytes = \"1 MiB\"\nmin_free_inodes = 7\n"));
        assert!(text.contains("cores = \"0,2\"\nper_core = 3\n") && text.contains("[queue]\nexpiry"));
    }
}
