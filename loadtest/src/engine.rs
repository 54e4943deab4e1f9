//! An engine of one's own: its config file, its start, its sudden end, and what it says of itself.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::leash::{self, Leashed};

/// A start that has no banner after this long has failed.
const START_MAX: Duration = Duration::from_secs(60);

/// Pace of looking whether something has happened that no event tells of.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long SIGTERM is given.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Where the engine sends what it accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To these next hops, one at least: domain number k (`d<k>.load.test`) of so many to hop k modulo their number, all other domains to
    /// the first.
    Smarthosts {
        /// The next hops.
        hops: Vec<SocketAddr>,
        /// Domains that are spread over them.
        domains: usize,
    },
    /// Nowhere: accepted mail stays queued.
    Hold,
    /// Accepted, durable, and settled without a delivery.
    Discard,
}

/// How an engine is set up; what is not here is its default.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The binary.
    pub binary: PathBuf,
    /// Holds config, log and spool.
    pub folder: PathBuf,
    /// Cores of the shards.
    pub cores: Vec<usize>,
    /// The route of all mail.
    pub route: Route,
    /// Settings by section, as TOML; a key here wins over what this module writes.
    pub settings: toml::Table,
}

/// An engine that can be started and killed any number of times. Killed when dropped.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    /// Where it listens.
    pub address: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    child: Option<Leashed>,
}

/// Finds the engine: what was given, else `ringpost` beside this program.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn find_binary(given: Option<&Path>) -> Result<PathBuf, String> {
    let path = match given {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?.with_file_name("ringpost"),
    };
    let hint = "build it with `cargo build --release`, or say --engine PATH, or --to HOST:PORT for a server that runs";
    path.canonicalize().map_err(|error| format!("no engine at {}: {error}; {hint}", path.display()))
}

/// What `ringpost --version` says; empty when it says nothing.
pub fn version_of(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default()
}

impl Engine {
    /// Writes the config file for a free port of loopback. The engine is not started.
    ///
    /// # Errors
    /// A folder or port that cannot be had, or settings that are no TOML.
    pub fn new(options: EngineOptions) -> io::Result<Engine> {
        std::fs::create_dir_all(&options.folder)?;
        let address = free_port()?;
        let config = options.folder.join("ringpost.toml");
        std::fs::write(&config, config_text(&options, address)?)?;
        Ok(Engine { log: options.folder.join("engine.log"), options, address, config, child: None })
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(|child| child.id())
    }

    /// Starts it and waits for its banner; how long that took.
    ///
    /// # Errors
    /// No binary, no banner within a minute, or its last words when it ends instead.
    pub fn start(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        let log = || -> io::Result<File> { OpenOptions::new().append(true).create(true).open(&self.log) };
        let mut command = leash::command(self.options.binary.as_os_str());
        command.args(["serve", "-c"]).arg(&self.config).current_dir(&self.options.folder);
        command.stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        // A group of its own: Ctrl-C at the terminal ends the run, which ends the engine when the load is over; see `leash` for ends by force.
        command.process_group(0);
        let child = command.spawn();
        let child = child.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.options.binary.display())))?;
        self.child = Some(Leashed::new(child));
        while began.elapsed() < START_MAX {
            if let Some(status) = self.child.as_mut().expect("it was just started").try_wait()? {
                self.child = None;
                return Err(io::Error::other(format!("the engine ended at its start ({status}): {}", self.last_words())));
            }
            if has_banner(self.address) {
                return Ok(began.elapsed());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(io::Error::other(format!("no banner after {START_MAX:?}: {}", self.last_words())))
    }

    /// SIGKILL, and waits for the end. What it used of the processor, where that can be known.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It was not running, or did not end within a minute: then it is killed.
    pub fn terminate(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(io::Error::other("the engine does not run")) };
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < STOP_MAX {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        child.kill()?;
        child.wait()?;
        Err(io::Error::other(format!("the engine did not end within {STOP_MAX:?} of SIGTERM: {}", self.last_words())))
    }

    /// Fails when the process has ended by itself.
    ///
    /// # Errors
    /// Its last words.
    pub fn must_run(&mut self) -> io::Result<()> {
        match self.child.as_mut().map(|child| child.try_wait()).transpose()? {
            Some(None) => Ok(()),
            Some(Some(status)) => Err(io::Error::other(format!("the engine ended by itself ({status}): {}", self.last_words()))),
            None => Err(io::Error::other("the engine does not run")),
        }
    }

    /// Its counters; empty when it does not answer.
    pub fn counters(&self) -> BTreeMap<String, f64> {
        let text = self.ask(&["stats", "--json"]).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let mut counters = BTreeMap::new();
        flatten("", &value, &mut counters);
        counters
    }

    /// Waits until nothing is queued. Fails after `limit` without any change in `progress`.
    ///
    /// # Errors
    /// The engine has ended, or the first of what is still queued.
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

    fn ask(&self, arguments: &[&str]) -> io::Result<String> {
        let output = Command::new(&self.options.binary).args(arguments).arg("-c").arg(&self.config).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ringpost {}: {}: {}", arguments.join(" "), output.status, words.trim())))
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _already_ended = self.kill();
    }
}

/// A free port of loopback below the range that outgoing connections are given: while the engine is down, connections that are tried
/// meanwhile must not be able to take its port.
fn free_port() -> io::Result<SocketAddr> {
    let spread = (std::process::id() % 4000) as u16;
    for step in 0..1000 {
        let address = SocketAddr::from(([127, 0, 0, 1], 20_000 + (spread + step * 7) % 9000));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port between 20000 and 29000"))
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

fn config_text(options: &EngineOptions, listen: SocketAddr) -> io::Result<String> {
    let cores: Vec<String> = options.cores.iter().map(usize::to_string).collect();
    let route = routes(&options.route);
    let own = format!(
        "hostname = \"engine.load.test\"\n[shards]\ncores = \"{}\"\n[spool]\npath = \"spool\"\n[control]\nsocket = \"ringpost.sock\"\n\
         [log]\nmail_output = \"mail.log\"\n[[listener]]\naddress = \"{listen}\"\n[relay]\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\n\
         {route}",
        cores.join(",")
    );
    let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("the engine's settings: {error}"));
    let mut table: toml::Table = own.parse().map_err(|error| invalid(&error))?;
    for (section, value) in &options.settings {
        match (table.get_mut(section).and_then(toml::Value::as_table_mut), value.as_table()) {
            (Some(known), Some(given)) => known.extend(given.clone()),
            _ => drop(table.insert(section.clone(), value.clone())),
        }
    }
    let mut text = String::new();
    write!(text, "{}", toml::to_string(&table).map_err(|error| invalid(&error))?).expect("writing to a string does not fail");
    Ok(text)
}

fn routes(route: &Route) -> String {
    let to = |domain: &str, how: &str| format!("[[route]]\ndomain = {domain}\n{how}\n");
    match route {
        Route::Hold => to("\"*\"", "via = \"hold\""),
        Route::Discard => to("\"*\"", "via = \"discard\""),
        Route::Smarthosts { hops, domains } => {
            let how = |hop: &SocketAddr| format!("via = \"smarthost\"\nhosts = [\"{hop}\"]");
            let mut text = hops.first().map(|hop| to("\"*\"", &how(hop))).unwrap_or_default();
            for (at, hop) in hops.iter().enumerate().skip(1) {
                let names: Vec<String> = (at..*domains).step_by(hops.len()).map(|k| format!("\"d{k}.load.test\"")).collect();
                if !names.is_empty() {
                    text.push_str(&to(&format!("[{}]", names.join(", ")), &how(hop)));
                }
            }
            text
        }
    }
}

/// Numbers by their path in a JSON object.
fn flatten(path: &str, value: &serde_json::Value, counters: &mut BTreeMap<String, f64>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, counters);
            }
        }
        other => {
            if let Some(number) = other.as_f64() {
                counters.insert(path.to_string(), number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_win_over_what_is_written_by_itself() {
        let options = EngineOptions {
            binary: "/bin/true".into(),
            folder: "/tmp/x".into(),
            cores: vec![0, 2],
            route: Route::Hold,
            settings: "[shards]\nsmt = \"use\"\n[smtp]\nsessions_max = 10\n[log]\nmail_output = \"stdout\"\n".parse().unwrap(),
        };
        let text = config_text(&options, SocketAddr::from(([127, 0, 0, 1], 25))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["shards"]["cores"].as_str(), Some("0,2"));
        assert_eq!(table["shards"]["smt"].as_str(), Some("use"));
        assert_eq!(table["smtp"]["sessions_max"].as_integer(), Some(10));
        assert_eq!(table["log"]["mail_output"].as_str(), Some("stdout"));
        assert_eq!(table["route"][0]["via"].as_str(), Some("hold"));
    }

    #[test]
    fn domains_are_spread_over_the_next_hops() {
        let hops = [25, 26, 27].map(|port| SocketAddr::from(([127, 0, 0, 1], port))).to_vec();
        let table: toml::Table = routes(&Route::Smarthosts { hops, domains: 5 }).parse().unwrap();
        let routes = table["route"].as_array().unwrap();
        assert_eq!(routes.len(), 3);
        assert_eq!(routes[0]["domain"].as_str(), Some("*"));
        let names: Vec<&str> = routes[1]["domain"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
        assert_eq!(names, ["d1.load.test", "d4.load.test"]);
        assert_eq!(routes[2]["hosts"][0].as_str(), Some("127.0.0.1:27"));
    }

    #[test]
    fn an_engine_that_is_not_there_is_named_with_the_mend() {
        let error = find_binary(Some(Path::new("/nowhere/ringpost"))).unwrap_err();
        assert!(error.contains("/nowhere/ringpost") && error.contains("--to"), "{error}");
    }

    #[test]
    fn counters_are_numbers_by_their_path() {
        let mut counters = BTreeMap::new();
        flatten("", &serde_json::json!({"a": 1, "b": {"c": 2.5, "d": "x"}}), &mut counters);
        assert_eq!(counters, BTreeMap::from([("a".into(), 1.0), ("b.c".into(), 2.5)]));
    }
}
