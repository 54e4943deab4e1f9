//! The floor (`benches/floor`) as a process: started, asked, ended.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine;

/// A floor that does not listen after so long has failed.
const START_MAX: Duration = Duration::from_secs(30);

/// A floor that runs. Killed when dropped.
pub struct Floor {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// A line asks for what it counted, its end ends the floor.
    input: Option<ChildStdin>,
    output: RefCell<BufReader<ChildStdout>>,
}

impl Floor {
    /// Starts it on a core, its log in this folder, and waits until it listens.
    pub fn start(binary: &Path, folder: &Path, core: usize, relay: Option<SocketAddr>) -> io::Result<Self> {
        let address = machine::free_port()?;
        let binary = binary.canonicalize().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", binary.display())))?;
        let mut command = Command::new(binary);
        command.args(["--listen", &address.to_string(), "--log"]).arg(folder.join("log"));
        if let Some(relay) = relay {
            command.args(["--relay", &relay.to_string()]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Started from a thread bound to the core: the process inherits the binding.
        let spawn = move || {
            machine::run_on(Some(core))?;
            command.spawn()
        };
        let mut child = std::thread::spawn(spawn).join().map_err(|_| io::Error::other("the thread that started the floor panicked"))??;
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
        let mut floor = Self { child, address, input, output: RefCell::new(BufReader::new(output)) };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = floor.child.try_wait()? {
                return Err(io::Error::other(format!("the floor ended at its start: {status}")));
            }
            if began.elapsed() > START_MAX {
                return Err(io::Error::other("the floor does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(floor)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it counted so far.
    pub fn counts(&self) -> io::Result<Value> {
        let mut input = self.input.as_ref().expect("it is open until the floor is to end");
        input.write_all(b"\n")?;
        let mut line = String::new();
        if self.output.borrow_mut().read_line(&mut line)? == 0 {
            return Err(io::Error::other("the floor ended by itself"));
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// Ends it. Fails when it has ended before, or ends with a failure.
    pub fn stop(mut self) -> io::Result<()> {
        drop(self.input.take());
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("the floor ended with {status}"))),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
