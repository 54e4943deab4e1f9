//! A store of mailboxes that speaks LMTP, over TCP or a socket in the file system.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::node::{PATIENCE, free_port};

#[derive(Default)]
struct Shared {
    /// Address and content of each mailbox copy.
    saved: Vec<(String, String)>,
    /// Replies behind the content, by recipient; 250 for the others. Each is used once.
    replies: HashMap<String, Vec<String>>,
    connections: usize,
    /// Between the replies behind the content.
    pause: Duration,
}

/// Listens for the rest of the test.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Shared>>);

impl Store {
    pub(crate) fn over_tcp() -> (Self, SocketAddr) {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener = TcpListener::bind(address).unwrap();
        let store = Self::default();
        let theirs = store.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = theirs.clone();
                stream.set_nodelay(true).unwrap();
                std::thread::spawn(move || store.converse(stream.try_clone()?, stream));
            }
        });
        (store, address)
    }

    pub(crate) fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let store = Self::default();
        let theirs = store.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = theirs.clone();
                std::thread::spawn(move || store.converse(stream.try_clone()?, stream));
            }
        });
        store
    }

    /// The next reply for this recipient behind the content. "close" ends the connection in its place, "silence" waits for its end.
    pub(crate) fn answer(&self, recipient: &str, reply: &str) {
        self.0.lock().unwrap().replies.entry(recipient.into()).or_default().push(reply.into());
    }

    /// Waits so long before each reply behind the content, which then has a packet of its own.
    pub(crate) fn set_pause(&self, pause: Duration) {
        self.0.lock().unwrap().pause = pause;
    }

    /// Recipients whose copy was saved, sorted.
    pub(crate) fn saved(&self) -> Vec<(String, String)> {
        let mut saved = self.0.lock().unwrap().saved.clone();
        saved.sort();
        saved
    }

    pub(crate) fn connections(&self) -> usize {
        self.0.lock().unwrap().connections
    }

    pub(crate) fn wait_for(&self, count: usize) -> Vec<(String, String)> {
        let began = Instant::now();
        while self.saved().len() < count {
            assert!(began.elapsed() < PATIENCE, "{:?} of {count} copies", self.saved());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.saved()
    }

    fn converse(&self, mut writer: impl Write, stream: impl Read) -> std::io::Result<()> {
        self.0.lock().unwrap().connections += 1;
        let mut reader = BufReader::new(stream);
        writer.write_all(b"220 store.test LMTP\r\n")?;
        let mut recipients: Vec<String> = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let path = line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path).to_owned();
            let reply = match line.get(..4).unwrap_or("") {
                "LHLO" => "250-store.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n".to_owned(),
                "EHLO" | "HELO" => "500 5.5.1 this is LMTP\r\n".to_owned(),
                "RCPT" if path.starts_with("nobody@") => "550 5.1.1 no such mailbox\r\n".to_owned(),
                "RCPT" => {
                    recipients.push(path);
                    "250 2.1.5 Ok\r\n".to_owned()
                }
                "DATA" if recipients.is_empty() => "503 5.5.1 nobody\r\n".to_owned(),
                "DATA" => {
                    writer.write_all(b"354 Go on\r\n")?;
                    let mut content = Vec::new();
                    while !content.ends_with(b"\r\n.\r\n") {
                        if reader.read_until(b'\n', &mut content)? == 0 {
                            return Ok(());
                        }
                    }
                    for recipient in recipients.drain(..) {
                        let pause = self.0.lock().unwrap().pause;
                        if !pause.is_zero() {
                            std::thread::sleep(pause);
                        }
                        let mut shared = self.0.lock().unwrap();
                        let next = shared.replies.get_mut(&recipient).filter(|next| !next.is_empty()).map(|next| next.remove(0));
                        match next {
                            Some(reply) if reply == "close" => return Ok(()),
                            Some(reply) if reply == "silence" => {
                                drop(shared);
                                return reader.read_line(&mut line).map(drop);
                            }
                            Some(reply) => writer.write_all(format!("{reply}\r\n").as_bytes())?,
                            None => {
                                writer.write_all(format!("250 2.0.0 <{recipient}> saved\r\n").as_bytes())?;
                                shared.saved.push((recipient, String::from_utf8_lossy(&content).into_owned()));
                            }
                        }
                    }
                    continue;
                }
                "QUIT" => {
                    writer.write_all(b"221 2.0.0 Bye\r\n")?;
                    return Ok(());
                }
                _ => "250 2.0.0 Ok\r\n".to_owned(),
            };
            writer.write_all(reply.as_bytes())?;
        }
    }
}
