//! Other mail servers of this machine, as yardsticks.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::machine;
use crate::postfix::Postfix;
use crate::unpacked::{Package, Unpacked};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// From the package `postfix`.
    Postfix,
    /// From the package `opensmtpd`, unpacked.
    OpenSmtpd,
    /// From the package `exim4-daemon-light`, unpacked.
    Exim,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Postfix, Self::OpenSmtpd, Self::Exim];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postfix => "Postfix",
            Self::OpenSmtpd => "OpenSMTPD",
            Self::Exim => "Exim",
        }
    }

    /// Can be started here.
    pub fn is_there(self) -> bool {
        match self {
            Self::Postfix => Path::new("/usr/sbin/postfix").exists(),
            Self::OpenSmtpd => Package::OpenSmtpd.path().is_some(),
            Self::Exim => Package::Exim.path().is_some(),
        }
    }

    /// Does its listener ask the kernel for a backlog of a few connections? Of a hundred SYNs that come at once most are lost then, and
    /// come again after a second: it waits for nothing, and nothing is measured.
    pub fn keeps_few_connections(self) -> bool {
        self == Self::OpenSmtpd
    }

    /// How it is set up, in a sentence.
    pub fn settings(self) -> &'static str {
        match self {
            Self::Postfix => {
                "synced before each 250, as always; mail held; no name look-ups, no chroot, in_flow_delay 0, a process a session"
            }
            Self::OpenSmtpd => {
                "NOT synced before 250: it has no setting for that; relaying paused; one process for all sessions; 4 connections begun at once (its backlog is 5)"
            }
            Self::Exim => "synced before each 250, as always; queue_only; no name look-ups, no ident, a process a session",
        }
    }
}

/// A running one; it ends when dropped.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process above all of its others.
    pub master: u32,
    /// Ends the processes when it is dropped.
    _process: Box<dyn std::any::Any>,
}

impl Peer {
    /// Starts it below `folder` on `core`, for up to `sessions` sessions, accepting into a queue that holds, or with `relay` for this
    /// next hop, which only Postfix is set up for. Needs root.
    pub fn start(program: Program, folder: &Path, core: Option<usize>, sessions: usize, relay: Option<SocketAddr>) -> io::Result<Self> {
        let package = match program {
            Program::Postfix => {
                let postfix = Postfix::start(folder, core, sessions, relay)?;
                return Ok(Self { address: postfix.address, master: postfix.master, _process: Box::new(postfix) });
            }
            _ if relay.is_some() => return Err(io::Error::other(format!("{} is not set up for relaying here", program.name()))),
            Program::OpenSmtpd => Package::OpenSmtpd,
            Program::Exim => Package::Exim,
        };
        let server = Unpacked::start(package, folder, core, sessions)?;
        Ok(Self { address: server.address, master: server.master(), _process: Box::new(server) })
    }

    /// CPU time of all its processes since its start.
    pub fn cpu(&self) -> io::Result<Duration> {
        machine::tree_cpu(self.master)
    }
}
