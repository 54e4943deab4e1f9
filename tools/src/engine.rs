//! The engine under test: its config file, where it runs, and what it keeps. Its process is that of the load test.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringpost_loadtest::engine::process::EngineProcess;
use serde_json::Value;

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

/// An engine that can be started and killed any number of times ([`EngineProcess`]); killed when dropped.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    process: EngineProcess,
}

impl Engine {
    /// Writes the config file. The engine isn't started.
    pub fn new(options: EngineOptions) -> io::Result<Self> {
        let address = match options.address {
            Some(address) => address,
            None => crate::machine::free_port()?,
        };
        let process = EngineProcess::new(&options.binary, &options.folder, address)?;
        std::fs::write(process.config(), options.config(address))?;
        Ok(Self { options, process })
    }

    /// Changes the setup of the next start. The port stays.
    pub fn change(&mut self, change: impl FnOnce(&mut EngineOptions)) -> io::Result<()> {
        change(&mut self.options);
        std::fs::write(self.process.config(), self.options.config(self.process.address))
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.options.folder.join("ringpost.sock")
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> io::Result<()> {
        let command = self.command();
        self.process.spawn(command)
    }

    /// Starts it and waits for its banner; returns how long that took. Fails with its last words when it ends instead.
    pub fn start(&mut self) -> io::Result<Duration> {
        let command = self.command();
        self.process.start(command)
    }

    fn command(&self) -> Command {
        match &self.options.namespace {
            // `ip` becomes the engine: the process id stays.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.options.binary);
                command
            }
            None => Command::new(&self.options.binary),
        }
    }

    /// Queue ids of all messages it still keeps.
    pub fn queued(&self) -> io::Result<HashSet<String>> {
        queue_ids(&self.ask(&["queue", "ls", "--json"])?).map_err(io::Error::other)
    }
}

impl Deref for Engine {
    type Target = EngineProcess;

    fn deref(&self) -> &EngineProcess {
        &self.process
    }
}

impl DerefMut for Engine {
    fn deref_mut(&mut self) -> &mut EngineProcess {
        &mut self.process
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

/// Where rigs work, on a real disk: `RINGPOST_RIG_FOLDER`, else /var/tmp (/tmp may be memory).
pub fn rig_base() -> PathBuf {
    std::env::var_os("RINGPOST_RIG_FOLDER").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder for one run of a rig below [`rig_base`].
pub fn rig_folder(name: &str) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(&format!("ringpost-{name}-")).tempdir_in(rig_base())
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
