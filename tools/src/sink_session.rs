//! One connection to the sink.

use std::io::{self, Read, Write};
use std::sync::LazyLock;
use std::sync::atomic::Ordering::Relaxed;

use memchr::memmem::Finder;
use mio::net::TcpStream;

use crate::arrival::verify;
use crate::sink::Desk;

/// Octets of the input buffer at first; it doubles while a message does not fit.
const BUFFER_BYTES: usize = 32 << 10;
/// The largest message the sink takes.
const CONTENT_BYTES_MAX: usize = 128 << 20;
/// The longest command line.
const LINE_BYTES_MAX: usize = 4096;

static END_OF_DATA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n.\r\n"));

/// What the sink does with a session after it handled its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for more input.
    Continue,
    /// The reply to the final dot is due after the sink's delay; call `release` then.
    Wait,
    /// The connection is over.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Command,
    Data,
    /// A checked message waits for its reply.
    Delayed,
    /// Its time has come.
    Released,
}

#[derive(Debug)]
pub(crate) struct SinkSession {
    stream: TcpStream,
    phase: Phase,
    buffer: Vec<u8>,
    /// Octets of `buffer` that hold input.
    filled: usize,
    /// Octets of it that are done with. In `Data` the CRLF of the DATA command is kept: a message may begin with its end.
    done: usize,
    /// Octets of it in which the end of data was looked for.
    searched: usize,
    /// Recipients of the transaction, joined by commas.
    recipients: Vec<u8>,
    in_mail: bool,
    replies: Vec<u8>,
    written: usize,
    verdict: &'static [u8],
}

impl SinkSession {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            phase: Phase::Command,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            done: 0,
            searched: 0,
            recipients: Vec::new(),
            in_mail: false,
            replies: b"220 sink.test ESMTP\r\n".to_vec(),
            written: 0,
            verdict: b"",
        }
    }

    /// The delay of its message is over: `ready` goes on.
    pub(crate) fn release(&mut self) {
        if self.phase == Phase::Delayed {
            self.phase = Phase::Released;
        }
    }

    pub(crate) fn is_released(&self) -> bool {
        self.phase == Phase::Released
    }

    /// Writes what is to be said. A failure shows again as the end of the stream.
    pub(crate) fn flush_replies(&mut self) {
        while self.written < self.replies.len() {
            match self.stream.write(&self.replies[self.written..]) {
                Ok(count) => self.written += count,
                Err(_) => return,
            }
        }
        self.replies.clear();
        self.written = 0;
    }

    /// Reads and handles all input there is. Replies wait for `flush_replies`, so that the ledger comes first.
    pub(crate) fn ready(&mut self, readable: bool, desk: &mut Desk<'_>) -> io::Result<Step> {
        let mut open = true;
        if self.phase == Phase::Released {
            self.replies.extend_from_slice(self.verdict);
            self.phase = Phase::Command;
        }
        while readable && open {
            if self.done == self.filled {
                (self.done, self.filled, self.searched) = (0, 0, 0);
            } else if self.filled == self.buffer.len() && self.done > 0 {
                self.buffer.copy_within(self.done..self.filled, 0);
                (self.filled, self.searched) = (self.filled - self.done, self.searched.saturating_sub(self.done));
                self.done = 0;
            }
            if self.filled == self.buffer.len() {
                if self.buffer.len() >= CONTENT_BYTES_MAX {
                    return Ok(Step::Close);
                }
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let room = self.buffer.len() - self.filled;
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => open = false,
                Ok(count) => {
                    self.filled += count;
                    let step = self.handle(desk)?;
                    if step != Step::Continue {
                        return Ok(step);
                    }
                    if count < room {
                        // Edge-triggered, and the socket held less than was asked for: more input is a new event.
                        return Ok(Step::Continue);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.handle(desk),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => open = false,
            }
        }
        if open { self.handle(desk) } else { Ok(Step::Close) }
    }

    fn handle(&mut self, desk: &mut Desk<'_>) -> io::Result<Step> {
        loop {
            match self.phase {
                Phase::Delayed | Phase::Released => return Ok(Step::Continue),
                Phase::Data => {
                    let from = self.searched.max(self.done).saturating_sub(4).max(self.done);
                    let Some(found) = END_OF_DATA.find(&self.buffer[from..self.filled]) else {
                        self.searched = self.filled;
                        return Ok(Step::Continue);
                    };
                    let end = from + found + 2;
                    let step = self.message(end, desk)?;
                    self.done = end + 3;
                    if step != Step::Continue {
                        return Ok(step);
                    }
                }
                Phase::Command => {
                    let unread = &self.buffer[self.done..self.filled];
                    let Some(length) = memchr::memchr(b'\n', unread) else {
                        return Ok(if unread.len() > LINE_BYTES_MAX { Step::Close } else { Step::Continue });
                    };
                    if length == 0 || unread[length - 1] != b'\r' {
                        self.replies.extend_from_slice(b"500 5.5.2 bare LF\r\n");
                        self.flush_replies();
                        return Ok(Step::Close);
                    }
                    let line = self.done..self.done + length - 1;
                    self.done += length + 1;
                    if self.command(line, desk) == Step::Close {
                        return Ok(Step::Close);
                    }
                }
            }
        }
    }

    fn command(&mut self, line: std::ops::Range<usize>, desk: &Desk<'_>) -> Step {
        let end = line.end;
        let line = &self.buffer[line];
        let verb = &line[..line.len().min(4)];
        let reply: &[u8] = if verb.eq_ignore_ascii_case(b"MAIL") {
            self.recipients.clear();
            self.in_mail = true;
            b"250 2.1.0 Ok\r\n"
        } else if verb.eq_ignore_ascii_case(b"RCPT") && self.in_mail {
            let start = memchr::memchr(b'<', line).map_or(0, |at| at + 1);
            let end = memchr::memchr(b'>', line).unwrap_or(line.len()).max(start);
            if !self.recipients.is_empty() {
                self.recipients.push(b',');
            }
            self.recipients.extend(line[start..end].iter().map(|&byte| if byte == b' ' || byte == b',' { b'_' } else { byte }));
            b"250 2.1.5 Ok\r\n"
        } else if verb.eq_ignore_ascii_case(b"DATA") && !self.recipients.is_empty() {
            self.phase = Phase::Data;
            self.done = end;
            self.searched = end;
            b"354 End data with <CR><LF>.<CR><LF>\r\n"
        } else if verb.eq_ignore_ascii_case(b"EHLO") {
            self.in_mail = false;
            self.recipients.clear();
            if desk.options.pipelining {
                b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 134217728\r\n"
            } else {
                b"250-sink.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 134217728\r\n"
            }
        } else if verb.eq_ignore_ascii_case(b"HELO") {
            b"250 sink.test\r\n"
        } else if verb.eq_ignore_ascii_case(b"RSET") {
            self.in_mail = false;
            self.recipients.clear();
            b"250 2.0.0 Ok\r\n"
        } else if verb.eq_ignore_ascii_case(b"NOOP") {
            b"250 2.0.0 Ok\r\n"
        } else if verb.eq_ignore_ascii_case(b"QUIT") {
            self.replies.extend_from_slice(b"221 2.0.0 Bye\r\n");
            self.flush_replies();
            return Step::Close;
        } else {
            b"503 5.5.1 Bad command or sequence\r\n"
        };
        self.replies.extend_from_slice(reply);
        Step::Continue
    }

    /// Judges the content that ends at `end`, records it and prepares the reply.
    fn message(&mut self, end: usize, desk: &mut Desk<'_>) -> io::Result<Step> {
        let start = (self.done + 2).min(end);
        let wire = &self.buffer[start..end];
        self.phase = Phase::Command;
        self.in_mail = false;
        if desk.random.one_in(desk.options.drop_one_in) {
            desk.state.turned_away.fetch_add(1, Relaxed);
            return Ok(Step::Close);
        }
        let verdict: &'static [u8] = if desk.random.one_in(desk.options.defer_one_in) {
            b"451 4.3.0 Not now\r\n"
        } else if desk.random.one_in(desk.options.reject_one_in) {
            b"554 5.6.0 Not this one\r\n"
        } else {
            b"250 2.0.0 Ok\r\n"
        };
        if verdict[0] == b'2' {
            let arrived = verify(wire);
            desk.count(arrived.damage, wire.len());
            desk.ledger.arrived(&arrived, desk.since.elapsed().as_millis() as u64, &self.recipients)?;
            desk.state.deliveries.fetch_add(memchr::memchr_iter(b',', &self.recipients).count() as u64 + 1, Relaxed);
            let number = desk.state.accepted.fetch_add(1, Relaxed);
            if let Some(folder) = &desk.options.keep {
                std::fs::write(folder.join(format!("{number:06}")), wire)?;
            }
        } else {
            desk.state.turned_away.fetch_add(1, Relaxed);
        }
        if desk.options.delay.is_zero() {
            self.replies.extend_from_slice(verdict);
            return Ok(Step::Continue);
        }
        self.verdict = verdict;
        self.phase = Phase::Delayed;
        Ok(Step::Wait)
    }
}
