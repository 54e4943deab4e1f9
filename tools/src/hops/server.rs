//! A next hop that follows a script: what it says at each point of the dialogue, and what it has taken.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A connection on which nothing comes for so long is of no more interest.
const PATIENCE: Duration = Duration::from_secs(60);

/// A point of the dialogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    Banner,
    Ehlo,
    Helo,
    Mail,
    Rcpt,
    Data,
    /// The content is here whole; with LMTP once for each recipient.
    Dot,
    Quit,
    Other,
}

/// What a script decides by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) point: Point,
    /// The recipient's local part, at RCPT and at an LMTP dot.
    pub(super) to: &'a str,
    /// Connections before this one.
    pub(super) connection: usize,
    /// Recipients accepted in this transaction.
    pub(super) accepted: usize,
    /// How often this point (and recipient) was met before, over all connections.
    pub(super) before: usize,
}

/// What the hop does.
#[derive(Debug, Clone)]
pub(super) enum Say {
    /// These octets.
    Text(String),
    /// These, one a second.
    Slowly(&'static str),
    /// These, and closes.
    Last(&'static str),
    /// Closes at once.
    Close,
    /// Resets the connection.
    Reset,
    /// Nothing more, but keeps the connection.
    Silence,
    /// A reply without an end.
    Endless,
    /// After the dot: takes the message and closes without a word.
    TakeAndClose,
    /// After the dot: takes the message and says nothing.
    TakeInSilence,
}

impl From<&str> for Say {
    fn from(line: &str) -> Self {
        Say::Text(format!("{line}\r\n"))
    }
}

/// What any good server says.
pub(super) fn good(moment: Moment<'_>) -> Say {
    match moment.point {
        Point::Banner => "220 hop.test ESMTP",
        Point::Ehlo => "250-hop.test\r\n250-PIPELINING\r\n250 SIZE 1000000",
        Point::Data if moment.accepted == 0 => "503 5.5.1 no recipients",
        Point::Data => "354 go on",
        Point::Quit => "221 2.0.0 bye",
        _ => "250 2.0.0 ok",
    }
    .into()
}

pub(super) type Script = fn(Moment<'_>) -> Say;

#[derive(Debug, Default)]
struct Account {
    connections: usize,
    met: HashMap<(u8, String), usize>,
    /// Copies by local part.
    copies: HashMap<String, usize>,
}

/// How the hop reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Smtp,
    Lmtp,
    /// Announces PIPELINING and forgets what stands behind a command.
    Forgetful,
}

/// A listening hop; gone when dropped.
#[derive(Debug)]
pub(super) struct Hop {
    pub(super) address: SocketAddr,
    account: Arc<Mutex<Account>>,
    stop: Arc<AtomicBool>,
}

impl Hop {
    pub(super) fn start(script: Script, reading: Reading) -> io::Result<Self> {
        let listener = TcpListener::bind(crate::machine::free_port()?)?;
        let hop = Self { address: listener.local_addr()?, account: Arc::default(), stop: Arc::default() };
        let (account, stop) = (hop.account.clone(), hop.stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(SeqCst) {
                    return;
                }
                let account = account.clone();
                let connection = {
                    let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
                    account.connections += 1;
                    account.connections - 1
                };
                // Connections that break off are what this is about.
                std::thread::spawn(move || drop(Talk { stream, unread: Vec::new(), connection, account }.run(script, reading)));
            }
        });
        Ok(hop)
    }

    /// Copies of the message that this recipient got.
    pub(super) fn copies(&self, to: &str) -> usize {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).copies.get(to).copied().unwrap_or(0)
    }

    pub(super) fn connections(&self) -> usize {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).connections
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _woken = TcpStream::connect(self.address);
    }
}

struct Talk {
    stream: TcpStream,
    unread: Vec<u8>,
    connection: usize,
    account: Arc<Mutex<Account>>,
}

impl Talk {
    fn run(&mut self, script: Script, reading: Reading) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        let mut accepted: Vec<String> = Vec::new();
        self.say(script, Point::Banner, "", 0)?;
        loop {
            let line = self.line()?;
            if reading == Reading::Forgetful {
                self.unread.clear();
            }
            let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
            let to = line.split_once('<').and_then(|(_, rest)| rest.split_once('@')).map_or("", |(local, _)| local).to_owned();
            let point = match verb.as_str() {
                "EHLO" | "LHLO" => Point::Ehlo,
                "HELO" => Point::Helo,
                "MAIL" => Point::Mail,
                "RCPT" => Point::Rcpt,
                "DATA" => Point::Data,
                "QUIT" => Point::Quit,
                _ => Point::Other,
            };
            if matches!(point, Point::Mail | Point::Ehlo) {
                accepted.clear();
            }
            let said = self.say(script, point, &to, accepted.len())?;
            match point {
                Point::Rcpt if said.starts_with('2') => accepted.push(to),
                Point::Data if said.starts_with("354") => {
                    self.content()?;
                    let all = std::mem::take(&mut accepted);
                    if reading == Reading::Lmtp {
                        for to in &all {
                            let said = self.say(script, Point::Dot, to, all.len())?;
                            self.take(&said, std::slice::from_ref(to));
                        }
                    } else {
                        // What it takes it has taken before it says so.
                        let said = self.say(script, Point::Dot, "", all.len());
                        self.take(said.as_deref().unwrap_or("taken"), &all);
                        said?;
                    }
                }
                Point::Quit => return Ok(()),
                _ => {}
            }
        }
    }

    fn take(&self, said: &str, recipients: &[String]) {
        if said.starts_with('2') || said == "taken" {
            let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
            recipients.iter().for_each(|to| *account.copies.entry(to.clone()).or_default() += 1);
        }
    }

    /// Does what the script says; returns the text. An error ends the connection.
    fn say(&mut self, script: Script, point: Point, to: &str, accepted: usize) -> io::Result<String> {
        let before = {
            let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
            let met = account.met.entry((point as u8, to.to_owned())).or_default();
            *met += 1;
            *met - 1
        };
        let end = || io::Error::from(io::ErrorKind::ConnectionAborted);
        match script(Moment { point, to, connection: self.connection, accepted, before }) {
            Say::Text(text) => {
                self.stream.write_all(text.as_bytes())?;
                Ok(text)
            }
            Say::Slowly(text) => {
                for octet in text.as_bytes() {
                    self.stream.write_all(&[*octet])?;
                    std::thread::sleep(Duration::from_secs(1));
                }
                Ok(text.into())
            }
            Say::Last(text) => {
                self.stream.write_all(text.as_bytes())?;
                // Taken or not, by what it said: an error would say that it was taken in silence.
                if point == Point::Dot && text.starts_with('2') { Err(end()) } else { self.hang_up(text) }
            }
            Say::Close if point == Point::Dot => self.hang_up(""),
            Say::Close => Err(end()),
            Say::Reset => {
                rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?;
                Err(end())
            }
            Say::Silence if point == Point::Dot => {
                self.wait_for_end();
                self.hang_up("")
            }
            Say::Silence => {
                self.wait_for_end();
                Err(end())
            }
            Say::Endless => loop {
                self.stream.write_all(&b"250-and so on\r\n".repeat(100))?;
            },
            Say::TakeAndClose => Err(end()),
            Say::TakeInSilence => {
                self.wait_for_end();
                Err(end())
            }
        }
    }

    /// Ends the connection without having taken anything; the text it said last comes back.
    fn hang_up(&mut self, text: &str) -> io::Result<String> {
        self.stream.shutdown(std::net::Shutdown::Both)?;
        Ok(text.to_owned())
    }

    fn wait_for_end(&mut self) {
        let mut octets = [0; 4096];
        while matches!(self.stream.read(&mut octets), Ok(count) if count > 0) {}
    }

    fn line(&mut self) -> io::Result<String> {
        let octets = self.up_to(b"\r\n")?;
        Ok(String::from_utf8_lossy(&octets).into_owned())
    }

    fn content(&mut self) -> io::Result<()> {
        if self.unread.starts_with(b".\r\n") {
            self.unread.drain(..3);
            return Ok(());
        }
        // A lone dot may come in a packet of its own.
        let first = self.up_to(b"\r\n")?;
        if first == b".\r\n" { Ok(()) } else { self.up_to(b"\r\n.\r\n").map(drop) }
    }

    fn up_to(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, end) {
                return Ok(self.unread.drain(..at + end.len()).collect());
            }
            let mut octets = [0; 4096];
            match self.stream.read(&mut octets)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&octets[..count]),
            }
        }
    }
}
