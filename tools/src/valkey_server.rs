//! A Valkey of a rig's own: started, killed, asked, watched. It keeps nothing unless it is told to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine;

/// A start, and a connection, are there within this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pace of looking whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A call of a rig is answered within this.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Which server to start.
#[derive(Debug, Clone)]
pub struct ValkeyOptions {
    /// The program; `valkey-server`, or where that is missing `redis-server`.
    pub program: String,
    /// Where it listens; a free port is taken.
    pub ip: IpAddr,
    /// Its folder.
    pub folder: PathBuf,
    /// Further arguments, which win over the usual ones.
    pub arguments: Vec<String>,
}

impl ValkeyOptions {
    /// Of loopback, with its files in `folder`. Fails when no server is installed.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let program = installed(&["valkey-server", "redis-server"])
            .ok_or_else(|| io::Error::other("valkey-server is missing: ./dev valkey installs it"))?;
        Ok(Self { program, ip: Ipv4Addr::LOCALHOST.into(), folder: folder.to_path_buf(), arguments: Vec::new() })
    }
}

/// The first of these programs that can be run.
pub fn installed(programs: &[&str]) -> Option<String> {
    let runs = |name: &&&str| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    programs.iter().find(runs).map(|name| (*name).to_string())
}

/// A server that can be started and killed any number of times on one port; killed when dropped.
#[derive(Debug)]
pub struct ValkeyServer {
    options: ValkeyOptions,
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Child>,
}

impl ValkeyServer {
    /// Starts it on a free port and waits until it answers.
    pub fn start(options: ValkeyOptions) -> io::Result<Self> {
        let port = machine::free_port()?.port();
        let mut server = Self { address: SocketAddr::new(options.ip, port), options, child: None };
        server.spawn()?;
        Ok(server)
    }

    /// Starts it again with what its folder has, and waits until it takes connections.
    pub fn spawn(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "the server runs already");
        let mut command = Command::new(&self.options.program);
        if self.options.arguments.iter().any(|argument| argument == "--sentinel") {
            // A Sentinel's first argument is its config file, which names the port.
            command.args(&self.options.arguments).args(["--port", &self.address.port().to_string()]);
        } else {
            command.args(["--port", &self.address.port().to_string(), "--bind", &self.address.ip().to_string()]);
            command.args(["--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir"]).arg(&self.options.folder);
            command.args(&self.options.arguments);
        }
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let began = Instant::now();
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                self.child = None;
                return Err(io::Error::other(format!("{} ended at its start: {status}", self.options.program)));
            }
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{} does not start", self.options.program)));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself, which is as good here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it where it is, or lets it go on.
    pub fn pause(&self, pause: bool) -> io::Result<()> {
        let child = self.child.as_ref().ok_or_else(|| io::Error::other("the server does not run"))?;
        let pid = Pid::from_raw(child.id() as i32).expect("a child has a process id");
        Ok(kill_process(pid, if pause { Signal::STOP } else { Signal::CONT })?)
    }

    /// As `cluster.valkey_url`.
    pub fn url(&self) -> String {
        format!("valkey://{}", self.address)
    }

    /// What its first line of `--version` says.
    pub fn version(&self) -> String {
        let output = Command::new(&self.options.program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let version = text.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("?");
        format!("{} {version}", self.options.program)
    }

    /// A connection of its own.
    pub fn connection(&self) -> io::Result<redis::Connection> {
        let client = redis::Client::open(format!("redis://{}", self.address)).map_err(io::Error::other)?;
        let connection = client.get_connection_with_timeout(PATIENCE).map_err(io::Error::other)?;
        connection.set_read_timeout(Some(ANSWER_MAX)).map_err(io::Error::other)?;
        Ok(connection)
    }

    /// Runs one command.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> io::Result<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection()?).map_err(|error| io::Error::other(format!("{}: {error}", words.join(" "))))
    }
}

impl Drop for ValkeyServer {
    fn drop(&mut self) {
        self.kill();
    }
}
