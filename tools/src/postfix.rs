//! Postfix from the distribution as the yardstick: an instance of its own, accepting into its hold queue or relaying.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine;

/// A start without banner after this long has failed.
const START_MAX: Duration = Duration::from_secs(30);

/// A running Postfix; stopped when dropped.
#[derive(Debug)]
pub struct Postfix {
    /// Where it listens.
    pub address: SocketAddr,
    config: PathBuf,
    /// Its process above all others.
    pub master: u32,
    /// Its version, for the table.
    pub version: String,
}

impl Postfix {
    /// Starts an instance below `folder` on `core` for up to `sessions` sessions. Needs root and the package `postfix`.
    ///
    /// Everything that slows it down without need is off: name look-ups, chroot, flow control. With `relay` all mail goes to
    /// this next hop, with the concurrency and the kept connections of its defaults; without, it is held, so nothing is charged
    /// for delivery. It syncs each message before its 250, as it does everywhere.
    pub fn start(folder: &Path, core: Option<usize>, sessions: usize, relay: Option<SocketAddr>) -> io::Result<Self> {
        let address = machine::free_port()?;
        let (config, queue, data) = (folder.join("etc"), folder.join("queue"), folder.join("data"));
        for path in [&config, &queue, &data] {
            fs::create_dir_all(path)?;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        run("chown", &["postfix", &text(&data)])?;
        // Its processes must reach the queue through every folder above it.
        run("chmod", &["755", &text(folder)])?;
        let delivery = match relay {
            Some(hop) => format!("relayhost = [{}]:{}", hop.ip(), hop.port()),
            None => "smtpd_client_restrictions = check_client_access static:HOLD".to_owned(),
        };
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {}\ndata_directory = {}\nmail_owner = postfix\nsetgid_group = postdrop\n\
             command_directory = /usr/sbin\ndaemon_directory = {}\nmyhostname = postfix.x.test\nmydestination =\nlocal_recipient_maps =\n\
             mynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nsmtpd_peername_lookup = no\n\
             {}\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             default_process_limit = {}\nin_flow_delay = 0\nmessage_size_limit = 52428800\nmaillog_file = {}\nmaillog_file_prefixes = {}\n\
             disable_dns_lookups = yes\nalias_maps =\nmailbox_size_limit = 0\n",
            text(&queue),
            text(&data),
            daemon_folder()?,
            delivery,
            sessions + 50,
            text(&folder.join("maillog")),
            text(folder),
        );
        fs::write(config.join("main.cf"), main)?;
        // The services of its own master.cf, without chroot, without the public port.
        let services: String = fs::read_to_string("/etc/postfix/master.cf")?
            .lines()
            .filter(|line| !line.starts_with(['#', ' ', '\t']) && !line.trim().is_empty())
            .filter(|line| line.split_ascii_whitespace().nth(1).is_none_or(|kind| kind != "inet"))
            .filter(|line| !line.contains("pipe") && !line.contains("postlogd"))
            .map(|line| {
                let mut fields: Vec<&str> = line.split_ascii_whitespace().collect();
                if let Some(chroot) = fields.get_mut(4) {
                    *chroot = "n";
                }
                fields.join(" ") + "\n"
            })
            .collect();
        let own = format!("{} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\n", address);
        fs::write(config.join("master.cf"), own + &services)?;
        let there = config.clone();
        // Started from a thread bound to the core: its processes inherit the binding.
        let started = std::thread::spawn(move || {
            machine::run_on(core)?;
            run("postfix", &["-c", &there.to_string_lossy(), "start"])
        });
        started.join().map_err(|_| io::Error::other("the thread that started Postfix panicked"))??;
        let master = fs::read_to_string(queue.join("pid/master.pid"))?;
        let master = master.trim().parse().map_err(|_| io::Error::other(format!("master.pid holds {master:?}")))?;
        let version = run("postconf", &["-h", "mail_version"])?;
        let postfix = Self { address, config, master, version };
        postfix.wait_for_banner(folder)?;
        Ok(postfix)
    }

    fn wait_for_banner(&self, folder: &Path) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            if let Ok(stream) = TcpStream::connect(self.address) {
                stream.set_read_timeout(Some(START_MAX))?;
                let mut line = String::new();
                if BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("220") {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(folder.join("maillog")).unwrap_or_default();
        Err(io::Error::other(format!("no banner from Postfix: {log}")))
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _best_effort = run("postfix", &["-c", &self.config.to_string_lossy(), "abort"]);
        let began = Instant::now();
        while Path::new(&format!("/proc/{}", self.master)).exists() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn daemon_folder() -> io::Result<String> {
    run("postconf", &["-h", "daemon_directory"])
}

fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error} (package postfix)")))?;
    let words = |octets: &[u8]| String::from_utf8_lossy(octets).trim().to_string();
    if output.status.success() {
        return Ok(words(&output.stdout));
    }
    Err(io::Error::other(format!("{program} {}: {}: {}", arguments.join(" "), output.status, words(&output.stderr))))
}
