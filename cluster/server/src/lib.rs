//! A Valkey of one test's own, and Sentinels that watch it: on free ports, in temporary folders, killed at the end. For tests and benches; never
//! shipped.
#![forbid(unsafe_code)]

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub mod cluster;
mod sentinel;

pub use sentinel::Sentinel;

/// How it keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// In memory only.
    None,
    /// An append-only file, synced each second.
    EverySecond,
    /// An append-only file, synced before each answer.
    Always,
}

/// A server that runs until it is dropped.
pub struct Server {
    folder: tempfile::TempDir,
    child: Option<Child>,
    port: u16,
    durability: Durability,
    extra: Vec<String>,
}

/// Valkey's server, or Redis's, where that is all there is. Panics where neither is installed.
pub fn program() -> &'static str {
    let found = ["valkey-server", "redis-server"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok());
    found.expect("valkey-server or redis-server is installed: ./dev valkey")
}

impl Server {
    /// As [`Server::start_with`], without further options.
    pub fn start(durability: Durability) -> Server {
        Server::start_with(durability, &[])
    }

    /// Returns as soon as it answers. `extra` are options as on the command line: `["--maxmemory", "100mb"]`.
    pub fn start_with(durability: Durability, extra: &[&str]) -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let extra = extra.iter().map(|&text| text.to_owned()).collect();
        let mut server = Server { folder: tempfile::tempdir().unwrap(), child: None, port, durability, extra };
        server.restart();
        server
    }

    /// As in `cluster.valkey_url`.
    pub fn url(&self) -> String {
        format!("valkey://127.0.0.1:{}", self.port)
    }

    /// Of the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it if it runs (kill -9), and starts it on the same port with what its disk has.
    pub fn restart(&mut self) {
        self.kill();
        let (append, sync) = match self.durability {
            Durability::None => ("no", "no"),
            Durability::EverySecond => ("yes", "everysec"),
            Durability::Always => ("yes", "always"),
        };
        let mut command = Command::new(program());
        command.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            append,
            "--appendfsync",
            sync,
        ]);
        command.args(&self.extra).arg("--dir").arg(self.folder.path());
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while !self.answers() {
            assert!(began.elapsed() < Duration::from_secs(20), "the server does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it where it is, or lets it go on.
    pub fn pause(&self, is_paused: bool) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let signal = if is_paused { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Runs one command, inline form, and returns its answer, the first 16 KiB of it as it came.
    pub fn command(&self, text: &str) -> String {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 16384];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
