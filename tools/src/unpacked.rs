//! Mail servers that cannot be installed beside Postfix: run from a folder where their packages were unpacked.
//!
//! Each runs in a mount namespace of its own, where the accounts, the spool and the state it insists on lie over the machine's. The
//! machine itself stays as it is. Needs root and `unshare` (package util-linux).

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine;

/// A start without banner after this long has failed.
const START_MAX: Duration = Duration::from_secs(30);
/// An end that takes longer is made short.
const END_MAX: Duration = Duration::from_secs(5);
/// The folder with unpacked packages.
pub const FOLDER: &str = "RINGPOST_PEERS";

/// Accounts that the programs were built to run as, in the namespace only.
const ACCOUNTS: [(&str, u32); 3] = [("opensmtpd", 941), ("opensmtpq", 942), ("Debian-exim", 943)];

/// Lays a folder over the machine's own and becomes the program. `$0` is the folder.
const ENTER: &str = "set -e; mount --make-rprivate /; mount --bind \"$0/passwd\" /etc/passwd; mount --bind \"$0/group\" /etc/group; \
    test ! -e /etc/resolv.conf || mount --bind \"$0/resolv.conf\" /etc/resolv.conf; \
    mount --bind \"$0/spool\" /var/spool; mount --bind \"$0/lib\" /var/lib; mount --bind \"$0/run\" /run; exec \"$@\"";

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// `opensmtpd`.
    OpenSmtpd,
    /// `exim4-daemon-light`.
    Exim,
}

impl Package {
    fn program(self) -> &'static str {
        match self {
            Self::OpenSmtpd => "usr/sbin/smtpd",
            Self::Exim => "usr/sbin/exim4",
        }
    }

    /// The program, if its package was unpacked.
    pub fn path(self) -> Option<PathBuf> {
        let path = PathBuf::from(std::env::var_os(FOLDER)?).join(self.program());
        path.exists().then_some(path)
    }

    fn config(self, address: SocketAddr, sessions: usize) -> String {
        let (ip, port) = (address.ip(), address.port());
        match self {
            // Started with relaying paused, so that mail stays queued.
            Self::OpenSmtpd => format!(
                "smtp limit max-mails 1000000\nlisten on {ip} port {port} hostname opensmtpd.x.test\n\
                 action \"out\" relay host smtp://{ip}:1\nmatch from any for any action \"out\"\n"
            ),
            Self::Exim => format!(
                "primary_hostname = exim.x.test\nspool_directory = /var/spool/exim4\nlog_file_path = /var/spool/exim4/log-%slog\n\
                 daemon_smtp_ports = {port}\nlocal_interfaces = {ip}\nsmtp_accept_max = {}\nsmtp_accept_max_per_connection = 0\n\
                 smtp_accept_queue_per_connection = 0\nqueue_only = true\nnever_users =\nhost_lookup =\nrfc1413_query_timeout = 0s\n\
                 tls_advertise_hosts =\nchunking_advertise_hosts =\nacl_smtp_rcpt = accept\nacl_smtp_data = accept\n\
                 keep_environment =\nbegin routers\nhold:\n  driver = redirect\n  data = :defer: held\nbegin retry\n* * F,1h,15m\n",
                sessions + 50
            ),
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::OpenSmtpd => &["-d", "-P", "mta", "-f"],
            Self::Exim => &["-bdf", "-C"],
        }
    }
}

/// A running one; it ends when dropped.
#[derive(Debug)]
pub struct Unpacked {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Unpacked {
    /// Starts it below `folder` on `core`. Needs root.
    pub fn start(package: Package, folder: &Path, core: Option<usize>, sessions: usize) -> io::Result<Self> {
        let program = package.path().ok_or_else(|| io::Error::other(format!("{FOLDER} names no folder with {}", package.program())))?;
        let libraries = program.ancestors().nth(2).unwrap_or(Path::new("/")).join("lib/x86_64-linux-gnu");
        let address = machine::free_port()?;
        let open = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        for part in ["spool/smtpd", "spool/exim4", "lib/opensmtpd/empty", "run"] {
            fs::create_dir_all(folder.join(part))?;
        }
        for part in ["", "spool", "spool/smtpd", "lib", "lib/opensmtpd", "lib/opensmtpd/empty"] {
            open(&folder.join(part), 0o711)?;
        }
        let (mut passwd, mut group) = (fs::read_to_string("/etc/passwd")?, fs::read_to_string("/etc/group")?);
        for (name, id) in ACCOUNTS {
            writeln!(passwd, "{name}:x:{id}:{id}::/var/lib/opensmtpd/empty:/usr/sbin/nologin").expect("writing to a string does not fail");
            writeln!(group, "{name}:x:{id}:").expect("writing to a string does not fail");
        }
        chown(folder.join("spool/exim4"), Some(ACCOUNTS[2].1), Some(ACCOUNTS[2].1))?;
        let config = folder.join("peer.conf");
        // OpenSMTPD looks up each client before its banner, and asks DNS before /etc/hosts unless it is told.
        let resolver = "lookup file\n".to_owned();
        for (path, text) in [
            (folder.join("passwd"), passwd),
            (folder.join("group"), group),
            (folder.join("resolv.conf"), resolver),
            (config.clone(), package.config(address, sessions)),
        ] {
            fs::write(&path, text)?;
            open(&path, 0o644)?;
        }
        let log = folder.join("log");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", ENTER]).arg(folder).arg(&program).args(package.arguments()).arg(&config);
        let log = fs::File::create(&log)?;
        command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Started from a thread bound to the core: its processes inherit the binding.
        let spawn = move || {
            machine::run_on(core)?;
            command.spawn()
        };
        let child = std::thread::spawn(spawn).join().map_err(|_| io::Error::other("the thread that started it panicked"))??;
        let mut server = Self { address, child };
        let began = Instant::now();
        while !greets(address) {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("{} ended at its start: {status}", program.display())));
            }
            if began.elapsed() > START_MAX {
                return Err(io::Error::other(format!("no banner from {}", program.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The process above all of its others.
    pub fn master(&self) -> u32 {
        self.child.id()
    }
}

fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(address) else { return false };
    let mut line = String::new();
    stream.set_read_timeout(Some(START_MAX)).is_ok() && BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("220")
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let below = ringpost_loadtest::process::descendants(self.child.id()).unwrap_or_default();
        let end = |pid: u32, signal| {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                let _already_ended = kill_process(pid, signal);
            }
        };
        end(self.child.id(), Signal::TERM);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < END_MAX {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _already_ended = self.child.kill();
        let _reaped = self.child.wait();
        // Processes for single connections outlive their daemon.
        below.into_iter().filter(|&pid| pid != self.child.id()).for_each(|pid| end(pid, Signal::KILL));
    }
}
