//! Other mail servers of this machine, as yardsticks.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::machine;
use crate::postfix::Postfix;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// From the package `postfix`.
    Postfix,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Postfix];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postfix => "Postfix",
        }
    }

    /// Installed here.
    pub fn is_there(self) -> bool {
        match self {
            Self::Postfix => Path::new("/usr/sbin/postfix").exists(),
        }
    }

    /// How it is set up, in a sentence.
    pub fn settings(self) -> &'static str {
        match self {
            Self::Postfix => {
                "synced before each 250 as always; mail held; no name look-ups, no chroot, in_flow_delay 0, a process for each session"
            }
        }
    }
}

/// A running one; it ends when dropped.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process above all of its others.
    pub master: u32,
    /// For the table.
    pub version: String,
    _process: Postfix,
}

impl Peer {
    /// Starts it below `folder` on `core`, for up to `sessions` sessions, accepting into a queue that holds.
    pub fn start(program: Program, folder: &Path, core: Option<usize>, sessions: usize) -> io::Result<Self> {
        match program {
            Program::Postfix => {
                let postfix = Postfix::start(folder, core, sessions)?;
                Ok(Self { address: postfix.address, master: postfix.master, version: postfix.version.clone(), _process: postfix })
            }
        }
    }

    /// CPU time of all its processes since its start.
    pub fn cpu(&self) -> io::Result<Duration> {
        machine::tree_cpu(self.master)
    }
}
