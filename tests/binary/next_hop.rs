//! The next hop: takes every message and keeps it, except for recipients whose address begins with `no-` (550), `later-` (450),
//! `grey-` (451, grey-listed), `much-` (421, asked for less) or `eight-` (554, the content needs a conversion).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::node::{PATIENCE, free_port};

/// One message as it came over the wire: dots still stuffed, without the final dot line.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) sender: String,
    pub(crate) recipients: Vec<String>,
    /// MAIL and each RCPT as they were said, without CRLF.
    pub(crate) commands: Vec<String>,
    /// By BDAT: then the wire has no dots stuffed.
    pub(crate) chunk: bool,
    pub(crate) wire: Vec<u8>,
}

impl Message {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.wire).into_owned()
    }

    /// What stands behind the header.
    pub(crate) fn body(&self) -> String {
        self.text().split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default()
    }
}

/// What the hop offers unless it is told not to.
const EIGHT_BIT: &str = "250-8BITMIME\r\n250-SMTPUTF8\r\n";

type Mailbox = Arc<Mutex<Vec<Message>>>;

/// Connections now, the most at once, and all; the tests of idle ones, and those that ended with QUIT.
#[derive(Default)]
struct Connections {
    open: AtomicUsize,
    most: AtomicUsize,
    made: AtomicUsize,
    tests: AtomicUsize,
    /// Contents that were read whole, by DATA.
    contents: AtomicUsize,
    quits: AtomicUsize,
    /// Ends of content, and QUITs, are not answered meanwhile.
    holds_content: AtomicBool,
    holds_quit: AtomicBool,
    /// Milliseconds until an end of content is answered.
    content_ms: AtomicU64,
}

impl Connections {
    fn wait_while(held: &AtomicBool) {
        while held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Listens until dropped.
pub(crate) struct NextHop {
    pub(crate) address: SocketAddr,
    mailbox: Mailbox,
    busy: Arc<AtomicBool>,
    connections: Arc<Connections>,
    stop: Arc<AtomicBool>,
    offer: Arc<Mutex<String>>,
}

impl NextHop {
    pub(crate) fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], free_port())))
    }

    /// A process that a test starts just now may hold the socket of the last one there for a moment.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let started = Instant::now();
        let listener = loop {
            match TcpListener::bind(address) {
                Err(error) if error.kind() == ErrorKind::AddrInUse && started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                bound => break bound.unwrap(),
            }
        };
        let mailbox = Mailbox::default();
        let stop = Arc::new(AtomicBool::new(false));
        let busy = Arc::new(AtomicBool::new(false));
        let offer = Arc::new(Mutex::new(EIGHT_BIT.to_owned()));
        let connections = Arc::new(Connections::default());
        let counted = Arc::clone(&connections);
        let (theirs, stopped, refuses, offered) = (Arc::clone(&mailbox), Arc::clone(&stop), Arc::clone(&busy), Arc::clone(&offer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (mailbox, busy, offer) = (Arc::clone(&theirs), Arc::clone(&refuses), offered.lock().unwrap().clone());
                // A connection that breaks is the business of the test, not of its next hop.
                let connections = Arc::clone(&counted);
                let open = connections.open.fetch_add(1, Ordering::SeqCst) + 1;
                connections.most.fetch_max(open, Ordering::SeqCst);
                connections.made.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let ended = stream.and_then(|stream| converse(stream, &mailbox, &busy, &offer, &connections));
                    if ended.is_err() {
                        connections.open.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { address, mailbox, busy, connections, stop, offer }
    }

    /// Offers these keywords too, on connections from now on.
    pub(crate) fn offer(&self, keywords: &[&str]) {
        *self.offer.lock().unwrap() = keywords.iter().map(|keyword| format!("250-{keyword}\r\n")).chain([EIGHT_BIT.to_owned()]).collect();
    }

    /// Knows bodies of eight bits, and no SMTPUTF8, on connections from now on.
    pub(crate) fn offer_eight_bit_bodies(&self) {
        *self.offer.lock().unwrap() = "250-8BITMIME\r\n".to_owned();
    }

    /// Knows seven bits only, on connections from now on.
    pub(crate) fn offer_seven_bits(&self) {
        self.offer.lock().unwrap().clear();
    }

    /// While busy it answers every recipient with 450, and content with 451.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        self.mailbox.lock().unwrap().clone()
    }

    /// Most connections at once so far. One counts until its QUIT or end is read.
    pub(crate) fn connections_most(&self) -> usize {
        self.connections.most.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub(crate) fn connections_open(&self) -> usize {
        self.connections.open.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub(crate) fn connections_made(&self) -> usize {
        self.connections.made.load(Ordering::SeqCst)
    }

    /// RSETs so far: each is a test of a connection without mail.
    pub(crate) fn tests(&self) -> usize {
        self.connections.tests.load(Ordering::SeqCst)
    }

    /// Connections that ended with QUIT so far.
    pub(crate) fn quits(&self) -> usize {
        self.connections.quits.load(Ordering::SeqCst)
    }

    /// Answers no end of content while this is on.
    pub(crate) fn hold_content(&self, on: bool) {
        self.connections.holds_content.store(on, Ordering::SeqCst);
    }

    /// Waits until so many contents were read whole, answered or not.
    pub(crate) fn wait_for_contents(&self, count: usize) {
        let began = Instant::now();
        while self.connections.contents.load(Ordering::SeqCst) < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} contents", self.connections.contents.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Answers the end of content so much later.
    pub(crate) fn take_time(&self, time: Duration) {
        self.connections.content_ms.store(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// Answers no QUIT while this is on.
    pub(crate) fn hold_quit(&self, on: bool) {
        self.connections.holds_quit.store(on, Ordering::SeqCst);
    }

    /// Waits until `count` messages have arrived; returns all there are.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Message> {
        let began = Instant::now();
        while self.messages().len() < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} messages arrived", self.messages().len());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.messages()
    }
}

impl Drop for NextHop {
    fn drop(&mut self) {
        self.hold_content(false);
        self.hold_quit(false);
        self.stop.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
    }
}

/// An end without an error is counted before the peer can know of it.
fn converse(stream: TcpStream, mailbox: &Mailbox, busy: &AtomicBool, offer: &str, connections: &Connections) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    writer.write_all(b"220 hop.test ESMTP\r\n")?;
    let (mut sender, mut recipients, mut commands) = (String::new(), Vec::new(), Vec::new());
    let ehlo = format!("250-hop.test\r\n{offer}250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 104857600\r\n");
    let path =
        |line: &str| line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path.to_string()).unwrap_or_default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            connections.open.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => &ehlo,
            "MAIL" => {
                (sender, recipients, commands) = (path(&line), Vec::new(), vec![line.trim_end().to_owned()]);
                "250 2.1.0 Ok\r\n"
            }
            "RCPT" if busy.load(Ordering::Relaxed) => "450 4.2.1 Busy\r\n",
            "RCPT" if path(&line).starts_with("no-") => "550 5.1.1 No such user\r\n",
            "RCPT" if path(&line).starts_with("later-") => "450 4.2.1 Later\r\n",
            "RCPT" if path(&line).starts_with("grey-") => "451 4.7.1 Greylisted, please try again in 300 seconds\r\n",
            "RCPT" if path(&line).starts_with("eight-") => "554 5.6.3 Conversion required\r\n",
            "RCPT" if path(&line).starts_with("much-") => "421 4.7.0 Too many messages from you, slow down\r\n",
            "RCPT" => {
                recipients.push(path(&line));
                commands.push(line.trim_end().to_owned());
                "250 2.1.5 Ok\r\n"
            }
            "DATA" if recipients.is_empty() => "503 5.5.1 No recipients\r\n",
            "DATA" => {
                writer.write_all(b"354 Go on\r\n")?;
                let wire = content(&mut reader)?;
                connections.contents.fetch_add(1, Ordering::SeqCst);
                Connections::wait_while(&connections.holds_content);
                std::thread::sleep(Duration::from_millis(connections.content_ms.load(Ordering::SeqCst)));
                let (recipients, commands) = (std::mem::take(&mut recipients), std::mem::take(&mut commands));
                if busy.load(Ordering::Relaxed) {
                    "451 4.3.2 Busy\r\n"
                } else {
                    mailbox.lock().unwrap().push(Message { sender: sender.clone(), recipients, commands, chunk: false, wire });
                    "250 2.0.0 Ok\r\n"
                }
            }
            // One chunk only: more than the engine sends.
            "BDAT" => {
                let size = line.trim_end().strip_suffix(" LAST").and_then(|line| line[5..].parse().ok());
                let mut wire = vec![0; size.ok_or(std::io::ErrorKind::InvalidInput)?];
                reader.read_exact(&mut wire)?;
                let (recipients, commands) = (std::mem::take(&mut recipients), std::mem::take(&mut commands));
                mailbox.lock().unwrap().push(Message { sender: sender.clone(), recipients, commands, chunk: true, wire });
                "250 2.0.0 Ok\r\n"
            }
            "RSET" => {
                connections.tests.fetch_add(1, Ordering::SeqCst);
                "250 2.0.0 Ok\r\n"
            }
            "QUIT" => {
                connections.quits.fetch_add(1, Ordering::SeqCst);
                Connections::wait_while(&connections.holds_quit);
                connections.open.fetch_sub(1, Ordering::SeqCst);
                let _late = writer.write_all(b"221 2.0.0 Bye\r\n");
                return Ok(());
            }
            _ => "250 2.0.0 Ok\r\n",
        };
        writer.write_all(reply.as_bytes())?;
    }
}

/// Reads to CRLF.CRLF and nothing else.
pub(crate) fn content(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    loop {
        if reader.read_until(b'\n', &mut wire)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if wire.ends_with(b"\r\n.\r\n") || wire == b".\r\n" {
            wire.truncate(wire.len() - 3);
            return Ok(wire);
        }
    }
}
