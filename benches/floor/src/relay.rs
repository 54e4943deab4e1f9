//! The next hop: kept connections, the next MAIL in the same send as the dot before it, an outcome for each reply.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{IntoRawFd, RawFd};

use crate::client::Message;
use crate::kernel::{Completion, Kernel, Kind};
use crate::log::Log;

/// What an outcome takes in the log.
const OUTCOME: [u8; 64] = [b'o'; 64];
/// Messages whose memory is kept for the next ones.
const SPARE_MAX: usize = 1024;
const DATA: &[u8] = b"DATA\r\n";

/// A reply that is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Envelope,
    Data,
    Dot,
}

/// What one `sendmsg` names; stays in its box while the kernel reads it.
struct Sending {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    bytes: usize,
}

/// One connection to the next hop.
struct Hop {
    fd: RawFd,
    expected: VecDeque<Expect>,
    line: Vec<u8>,
    /// Its envelope is sent.
    opened: Option<Message>,
    /// Its content is sent.
    under_way: Option<Message>,
    /// Kept until the send that names it is over.
    sent: Vec<Message>,
    sending: Box<Sending>,
    busy: bool,
    /// 354 came, and content did not go yet.
    may_send: bool,
    /// The envelope of `opened` did not go yet.
    envelope_is_due: bool,
}

/// The connections, and what waits for one.
pub struct Relay {
    hops: Vec<Hop>,
    idle: Vec<usize>,
    waiting: VecDeque<Message>,
    spare: Vec<Message>,
    chained: bool,
    /// Messages that the next hop took.
    pub delivered: u64,
}

impl Relay {
    /// Connects and greets. `chained`: the next MAIL goes with the dot before it.
    pub fn connect(to: SocketAddr, connections: usize, chained: bool, kernel: &mut Kernel) -> io::Result<Self> {
        let mut hops = Vec::new();
        for number in 0..connections {
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            reader.read_line(&mut line)?;
            stream.write_all(b"EHLO floor.x.test\r\n")?;
            while !line.starts_with("250 ") {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Err(io::Error::other("the next hop did not greet"));
                }
            }
            let fd = stream.into_raw_fd();
            kernel.receive(Kind::HopReceive, fd, number as u32);
            // SAFETY: a zeroed msghdr names nothing.
            let header = unsafe { std::mem::zeroed() };
            hops.push(Hop {
                fd,
                expected: VecDeque::new(),
                line: Vec::new(),
                opened: None,
                under_way: None,
                sent: Vec::new(),
                sending: Box::new(Sending { header, vectors: Vec::new(), bytes: 0 }),
                busy: false,
                may_send: false,
                envelope_is_due: false,
            });
        }
        let idle = (0..connections).rev().collect();
        Ok(Self { hops, idle, waiting: VecDeque::new(), spare: Vec::new(), chained, delivered: 0 })
    }

    /// Memory for a message.
    pub fn spare(&mut self) -> Message {
        self.spare.pop().unwrap_or_default()
    }

    /// A durable message goes out as soon as a connection is free.
    pub fn forward(&mut self, message: Message, kernel: &mut Kernel) {
        match self.idle.pop() {
            Some(at) => {
                self.hops[at].open(message);
                self.advance(at, kernel);
            }
            None => self.waiting.push_back(message),
        }
    }

    /// Replies of a next hop.
    pub fn received(&mut self, completion: &Completion, kernel: &mut Kernel, log: &mut Log) -> io::Result<()> {
        let at = completion.number as usize;
        if completion.result <= 0 && completion.result != -libc::ENOBUFS {
            return Err(io::Error::other("the next hop closed a connection"));
        }
        let mut line = std::mem::take(&mut self.hops[at].line);
        kernel.received(completion, |bytes| line.extend_from_slice(bytes));
        let mut from = 0;
        while let Some(length) = memchr::memchr(b'\n', &line[from..]) {
            let reply = &line[from..from + length];
            from += length + 1;
            if reply.get(3) == Some(&b'-') {
                continue;
            }
            self.replied(at, reply, kernel, log)?;
        }
        line.drain(..from);
        self.hops[at].line = line;
        if !completion.more() {
            kernel.receive(Kind::HopReceive, self.hops[at].fd, completion.number);
        }
        Ok(())
    }

    fn replied(&mut self, at: usize, reply: &[u8], kernel: &mut Kernel, log: &mut Log) -> io::Result<()> {
        let hop = &mut self.hops[at];
        match (hop.expected.pop_front(), reply.first()) {
            (Some(Expect::Envelope), Some(b'2')) => {}
            (Some(Expect::Data), Some(b'3')) => {
                hop.may_send = true;
                self.advance(at, kernel);
            }
            (Some(Expect::Dot), Some(b'2')) => {
                let message = hop.under_way.take().expect("a dot was sent with a message");
                hop.sent.push(message);
                log.append(&OUTCOME, drop);
                self.delivered += 1;
                if hop.expected.is_empty() {
                    match self.waiting.pop_front() {
                        Some(message) => hop.open(message),
                        None => self.idle.push(at),
                    }
                }
                self.advance(at, kernel);
            }
            (expected, _) => {
                return Err(io::Error::other(format!("the next hop said {:?} to {expected:?}", String::from_utf8_lossy(reply))));
            }
        }
        Ok(())
    }

    /// Sends content if 354 came, and an envelope if one is to go, unless a send is under way.
    fn advance(&mut self, at: usize, kernel: &mut Kernel) {
        let hop = &mut self.hops[at];
        if hop.busy {
            return;
        }
        for mut message in hop.sent.drain(..) {
            message.content.clear();
            if self.spare.len() < SPARE_MAX {
                self.spare.push(message);
            }
        }
        let with_content = std::mem::take(&mut hop.may_send);
        if with_content {
            hop.under_way = hop.opened.take();
            hop.expected.push_back(Expect::Dot);
            if self.chained
                && let Some(next) = self.waiting.pop_front()
            {
                hop.open(next);
            }
        }
        if with_content || hop.envelope_is_due {
            hop.send(at, with_content, kernel);
        }
    }

    /// A send is over.
    pub fn sent(&mut self, completion: &Completion, kernel: &mut Kernel) -> io::Result<()> {
        let at = completion.number as usize;
        let hop = &mut self.hops[at];
        if completion.result != hop.sending.bytes as i32 {
            return Err(io::Error::other(format!("a send to the next hop ended with {}", completion.result)));
        }
        hop.busy = false;
        self.advance(at, kernel);
        Ok(())
    }
}

impl Hop {
    /// Takes the next message; its envelope goes with the next send.
    fn open(&mut self, message: Message) {
        let lines = message.envelope.iter().filter(|&&byte| byte == b'\n').count();
        self.expected.extend(std::iter::repeat_n(Expect::Envelope, lines));
        self.expected.push_back(Expect::Data);
        self.opened = Some(message);
        self.envelope_is_due = true;
    }

    fn send(&mut self, at: usize, with_content: bool, kernel: &mut Kernel) {
        let vectors = &mut self.sending.vectors;
        vectors.clear();
        let mut name = |start: *const u8, bytes: usize| vectors.push(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: bytes });
        if with_content {
            let message = self.under_way.as_ref().expect("354 was said to a message");
            message.content.iter().for_each(|piece| name(piece.block.at(piece.start), piece.bytes));
        }
        if std::mem::take(&mut self.envelope_is_due) {
            let message = self.opened.as_ref().expect("an envelope is a message's");
            name(message.envelope.as_ptr(), message.envelope.len());
            name(DATA.as_ptr(), DATA.len());
        }
        self.sending.bytes = vectors.iter().map(|vector| vector.iov_len).sum();
        self.sending.header.msg_iov = self.sending.vectors.as_mut_ptr();
        self.sending.header.msg_iovlen = self.sending.vectors.len();
        self.busy = true;
        kernel.send_message(self.fd, at as u32, &self.sending.header);
    }
}
