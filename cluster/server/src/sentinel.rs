//! A Sentinel of one test's own.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use crate::program;

/// A Sentinel that watches a primary by the name `mail`, until it is dropped.
pub struct Sentinel {
    _folder: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Sentinel {
    /// Of the primary on this port of the loopback, on a free port; does not wait until it answers. `extra` are further lines of its config file,
    /// which win: `"port 0\ntls-port 1234\n"`.
    pub fn start(primary: u16, quorum: u32, extra: &str) -> Sentinel {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mail 127.0.0.1 {primary} {quorum}\n{extra}",
            folder.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program()).arg(&config).arg("--sentinel").stdout(Stdio::null()).spawn().unwrap();
        Sentinel { _folder: folder, child, port }
    }

    /// Of the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
