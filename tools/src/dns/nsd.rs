//! NSD with a zone of its own, as any user, on a free port of loopback.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A name server that answers nothing after this long has not started.
const START_MAX: Duration = Duration::from_secs(10);
/// Pace of looking whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// MX records of the large sets.
const CROWD: usize = 200;
/// What a resolver takes over UDP today (DNS flag day 2020).
const UDP_BYTES: u16 = 1232;
const MX: u16 = 15;

/// Names relative to `test.`; the sink is at 127.0.0.2, and nobody is at 127.0.0.9.
const ZONE: &str = "\
$ORIGIN test.
$TTL 60
@ IN SOA ns admin 1 3600 600 86400 5
@ IN NS ns
ns IN A 127.0.0.1
mx1 IN A 127.0.0.2
plain IN MX 10 mx1
implicit IN A 127.0.0.2
chain IN CNAME c1
c1 IN CNAME c2
c2 IN MX 10 mx1
alias IN MX 10 mxalias
mxalias IN CNAME mx1
*.wild IN MX 10 mx1
second IN MX 10 down
second IN MX 20 mx1
down IN A 127.0.0.9
six IN MX 10 mx6
mx6 IN A 127.0.0.2
mx6 IN AAAA ::1
half IN MX 10 gone
half IN MX 20 mx1
smart IN CNAME mx1
null IN MX 0 .
self IN MX 10 engine.x.test.
nothing IN TXT \"neither MX nor address\"
loop IN CNAME loop2
loop2 IN CNAME loop
nowhere IN MX 10 gone
nowhere IN A 127.0.0.2
";

/// The server; ends when dropped.
pub struct Nsd {
    /// Over UDP and TCP.
    pub address: SocketAddr,
    /// What it says of itself.
    pub version: String,
    child: Child,
}

impl Nsd {
    /// Starts it with its files in `folder` and waits until it answers. Fails when the program is missing, with the package's name.
    pub fn start(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let address = crate::machine::free_port()?;
        std::fs::write(folder.join("test.zone"), zone())?;
        let config = folder.join("nsd.conf");
        std::fs::write(&config, configuration(folder, address))?;
        let missing = |error: io::Error| io::Error::new(error.kind(), format!("nsd (package nsd) cannot be started: {error}"));
        let said = Command::new("nsd").arg("-v").output().map_err(missing)?;
        let version = String::from_utf8_lossy(&said.stderr).lines().next().unwrap_or_default().to_owned();
        let log = File::create(folder.join("nsd.log"))?;
        let child = Command::new("nsd").arg("-d").arg("-c").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut nsd = Self { address, version, child: child.map_err(missing)? };
        let began = Instant::now();
        while nsd.ask("plain.test").is_err() {
            let ended = nsd.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START_MAX {
                let log = std::fs::read_to_string(folder.join("nsd.log")).unwrap_or_default();
                return Err(io::Error::other(format!("nsd does not answer: {log}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(nsd)
    }

    /// Does its answer to MX of a domain not fit into a datagram?
    pub fn truncates(&self, domain: &str) -> io::Result<bool> {
        const TC: u8 = 2;
        self.ask(domain).map(|answer| answer.get(2).is_some_and(|flags| flags & TC != 0))
    }

    /// The answer to MX of a domain over UDP.
    fn ask(&self, domain: &str) -> io::Result<Vec<u8>> {
        let mut query = vec![0x52, 0x50, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in domain.split('.') {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.push(0);
        query.extend(MX.to_be_bytes());
        query.extend([0, 1]);
        // EDNS (RFC 6891 6.1.2): the root's OPT record says how long an answer may be.
        query.extend([0, 0, 41]);
        query.extend(UDP_BYTES.to_be_bytes());
        query.extend([0; 6]);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.connect(self.address)?;
        socket.send(&query)?;
        let mut answer = vec![0; usize::from(UDP_BYTES)];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // By the signal that it hands on to its own processes.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process(pid, Signal::TERM);
        }
        let _reaped = self.child.wait();
    }
}

fn zone() -> String {
    let mut zone = String::from(ZONE);
    for number in 0..CROWD {
        writeln!(zone, "crowd IN MX 10 mx{number}.crowd\nmx{number}.crowd IN A 127.0.0.2").expect("a string takes all");
    }
    for number in 1..CROWD {
        writeln!(zone, "many IN MX {} mx{number}.many\nmx{number}.many IN A 127.0.0.9", 10 + number % 3).expect("a string takes all");
    }
    zone.push_str("many IN MX 5 best.many\nbest.many IN A 127.0.0.2\neight IN CNAME e1\ne8 IN MX 10 mx1\n");
    for number in 1..8 {
        writeln!(zone, "e{number} IN CNAME e{}", number + 1).expect("a string takes all");
    }
    zone
}

fn configuration(folder: &Path, address: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "server:\n  ip-address: {}@{}\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{folder}\"\n  database: \"\"\n  pidfile: \"{folder}/nsd.pid\"\n  \
         xfrdfile: \"{folder}/xfrd.state\"\n  zonelistfile: \"{folder}/zone.list\"\n  server-count: 1\n\
         remote-control:\n  control-enable: no\nzone:\n  name: \"test\"\n  zonefile: \"test.zone\"\n",
        address.ip(),
        address.port()
    )
}
