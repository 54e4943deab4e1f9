//! A next hop that does wrong at one point of the dialogue, each time, and counts its connections. It speaks SMTP and LMTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::next_hop::content;
use crate::node::free_port;

/// What it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Closes without a word.
    Drop,
    /// Says nothing until the other side ends.
    Silence,
    /// Says this line; 421 is its last one.
    Says(&'static str),
}

/// In place of which answer: `connect` (its greeting), `ehlo`, `mail`, `rcpt`, `data`, `content` (after some octets of it) or `dot`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Script {
    pub(crate) point: &'static str,
    pub(crate) fault: Fault,
    pub(crate) pipelining: bool,
}

/// Listens for the rest of the test.
pub(crate) struct FaultyHop {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    faults: Arc<AtomicUsize>,
}

impl FaultyHop {
    pub(crate) fn start(script: Script) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], free_port())), script)
    }

    pub(crate) fn start_at(address: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (connections, faults) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (counted, done_wrong) = (Arc::clone(&connections), Arc::clone(&faults));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                // A connection that breaks is the business of the test, not of its next hop.
                let conversation = Conversation { script, faults: Arc::clone(&done_wrong) };
                std::thread::spawn(move || stream.and_then(|stream| conversation.converse(stream)));
            }
        });
        Self { address, connections, faults }
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How often it has come to its point, but for `content`.
    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::SeqCst)
    }
}

/// One connection.
struct Conversation {
    script: Script,
    faults: Arc<AtomicUsize>,
}

impl Conversation {
    /// Says `usual`, or does what it does at this point. Whether it goes on.
    fn answer(&self, point: &str, usual: &str, stream: &mut TcpStream) -> std::io::Result<bool> {
        if self.script.point == point {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        let line = match self.script.fault {
            _ if self.script.point != point => usual,
            Fault::Drop => return Ok(false),
            Fault::Silence => return std::io::copy(stream, &mut std::io::sink()).map(|_| false),
            Fault::Says(line) => line,
        };
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        Ok(!line.starts_with("421"))
    }

    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        if !self.answer("connect", "220 hop.test", &mut stream)? {
            return Ok(());
        }
        let ehlo = if self.script.pipelining { "250-hop.test\r\n250-8BITMIME\r\n250 PIPELINING" } else { "250-hop.test\r\n250 8BITMIME" };
        let (mut is_lmtp, mut has_sender, mut recipients) = (false, false, 0);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 {
            let verb = std::mem::take(&mut line).get(..4).unwrap_or("").to_ascii_uppercase();
            let goes_on = match verb.as_str() {
                "EHLO" | "LHLO" => {
                    is_lmtp = verb == "LHLO";
                    self.answer("ehlo", ehlo, &mut stream)?
                }
                "MAIL" => {
                    (has_sender, recipients) = (self.script.point != "mail", 0);
                    self.answer("mail", "250 2.1.0 Ok", &mut stream)?
                }
                "RCPT" if has_sender => {
                    recipients += usize::from(self.script.point != "rcpt");
                    self.answer("rcpt", "250 2.1.5 Ok", &mut stream)?
                }
                "DATA" if recipients > 0 && self.script.point == "data" => self.answer("data", "", &mut stream)?,
                "DATA" if recipients > 0 => {
                    stream.write_all(b"354 Go on\r\n")?;
                    if self.script.point == "content" {
                        return reader.read_exact(&mut [0; 64]);
                    }
                    content(&mut reader)?;
                    let answers = if is_lmtp { recipients } else { 1 };
                    (0..answers)
                        .try_fold(true, |goes_on, _| Ok::<_, std::io::Error>(goes_on && self.answer("dot", "250 2.0.0 Ok", &mut stream)?))?
                }
                "RCPT" | "DATA" => self.answer("", "503 5.5.1 Not now", &mut stream)?,
                "QUIT" => return stream.write_all(b"221 2.0.0 Bye\r\n"),
                _ => self.answer("", "250 2.0.0 Ok", &mut stream)?,
            };
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }
}
