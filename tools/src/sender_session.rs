//! One connection of the sender: an SMTP client that has prebuilt everything it can.
//!
//! Pipelined, MAIL, RCPT and DATA of the next message leave in one segment behind the final dot of this one: DATA ends a
//! group (RFC 2920 3.1), so this is the most a client may send ahead.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::time::Instant;

use memchr::memmem;
use mio::net::TcpStream;

use crate::content::{Composed, Composer, decimal};

/// Octets of replies read at once.
const INBOX_BYTES: usize = 4096;

/// Commands prepared once for all sessions of a load.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) hello: Vec<u8>,
    pub(crate) mail: Vec<u8>,
    pub(crate) mail_8bit: Vec<u8>,
    pub(crate) recipients: Vec<Vec<u8>>,
    pub(crate) pipeline: bool,
    pub(crate) bdat: bool,
}

/// The reply that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Banner,
    Hello,
    Mail,
    Recipient,
    Data,
    Dot,
    Quit,
}

/// What a session tells the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A message was acknowledged; its queue id is `Session::queue_id`.
    Acknowledged(Composed, Instant),
    /// A message was answered with 4xx or 5xx after its end.
    Refused,
    /// The greeting is over and the first message may begin: call `begin`.
    Ready,
    /// The session was put together for a next message but there is none now: call `begin` when there is.
    Idle,
    /// The connection ended in order.
    Ended,
}

/// Whether a session may take one more message at this moment.
pub(crate) trait Supply {
    /// Takes one message of the load; false when there is none for now.
    fn take(&mut self) -> bool;
    /// Gives back one that was taken but not sent.
    fn give_back(&mut self);
    /// Composes the message that was taken.
    fn composer(&mut self) -> &mut Composer;
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) stream: TcpStream,
    expected: VecDeque<Expect>,
    inbox: Box<[u8; INBOX_BYTES]>,
    filled: usize,
    head: Vec<u8>,
    block: Option<usize>,
    /// The content under way goes by BDAT: unstuffed, without final dot line.
    by_bdat: bool,
    tail: Vec<u8>,
    written: usize,
    /// The message whose end was or is being sent.
    under_way: Option<Composed>,
    /// When its last octet went to the kernel.
    ended_at: Option<Instant>,
    /// A message was taken from the supply and its envelope sent, its content not yet.
    opened: bool,
    pub(crate) queue_id: Vec<u8>,
    pipelining: bool,
    eight_bit: bool,
    chunking: bool,
    /// Messages this connection may still begin; none: no limit.
    left: Option<u32>,
    /// The connection stays open, silent, after its last message.
    lingers: bool,
    next_recipient: usize,
}

impl Session {
    /// Wraps a stream that is being connected. `messages_max` 0 stands for no limit; a session that `lingers` doesn't say QUIT
    /// at that limit.
    pub(crate) fn new(stream: TcpStream, messages_max: u32, lingers: bool) -> Self {
        Self {
            stream,
            expected: VecDeque::from([Expect::Banner]),
            inbox: Box::new([0; INBOX_BYTES]),
            filled: 0,
            head: Vec::with_capacity(512),
            block: None,
            by_bdat: false,
            tail: Vec::with_capacity(512),
            written: 0,
            under_way: None,
            ended_at: None,
            opened: false,
            queue_id: Vec::new(),
            pipelining: false,
            eight_bit: false,
            chunking: false,
            left: (messages_max > 0).then_some(messages_max),
            lingers,
            next_recipient: 0,
        }
    }

    /// The message whose fate is unknown if the connection breaks now, and whether one was taken but not sent.
    pub(crate) fn abandon(&mut self) -> (Option<Composed>, bool) {
        (self.under_way.take(), std::mem::take(&mut self.opened))
    }

    /// Starts a message on a connection that rests. False when the supply has none.
    pub(crate) fn begin(&mut self, supply: &mut impl Supply, script: &Script, now: Instant) -> io::Result<bool> {
        if !self.expected.is_empty() || self.left == Some(0) || !supply.take() {
            return Ok(false);
        }
        self.opened = true;
        self.envelope(script, supply);
        self.flush(supply.composer(), now)?;
        Ok(true)
    }

    /// Says QUIT on a connection that rests.
    pub(crate) fn quit(&mut self, composer: &Composer, now: Instant) -> io::Result<()> {
        if self.expected.is_empty() {
            self.tail.extend_from_slice(b"QUIT\r\n");
            self.expected.push_back(Expect::Quit);
            self.flush(composer, now)?;
        }
        Ok(())
    }

    /// True when nothing is under way.
    pub(crate) fn is_resting(&self) -> bool {
        self.expected.is_empty()
    }

    /// True when the answer to a message is owed.
    pub(crate) fn has_content_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// True when QUIT was said.
    pub(crate) fn is_quitting(&self) -> bool {
        self.expected.contains(&Expect::Quit)
    }

    /// Puts the envelope of the message that was taken behind what is to be sent.
    fn envelope(&mut self, script: &Script, supply: &mut impl Supply) {
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        self.tail.extend_from_slice(if self.eight_bit { &script.mail_8bit } else { &script.mail });
        self.expected.push_back(Expect::Mail);
        self.next_recipient = 0;
        if !self.pipelining {
            return;
        }
        for recipient in &script.recipients {
            self.tail.extend_from_slice(recipient);
            self.expected.push_back(Expect::Recipient);
        }
        if script.bdat && self.chunking {
            self.content(script, supply);
        } else {
            self.tail.extend_from_slice(b"DATA\r\n");
            self.expected.push_back(Expect::Data);
        }
    }

    /// Puts the content of the message that was taken behind what is to be sent, and what may follow it in the same segment.
    fn content(&mut self, script: &Script, supply: &mut impl Supply) {
        let bdat = script.bdat && self.chunking;
        // Whatever waits (an envelope, with BDAT) goes in front of the header.
        self.head.append(&mut self.tail);
        let head_start = self.head.len();
        let composed = supply.composer().compose(&mut self.head, &mut self.tail);
        if bdat {
            let length = self.head.len() - head_start + supply.composer().block(composed.block).raw().len() + self.tail.len();
            let mut digits = [0; 20];
            let command = [b"BDAT ", decimal(length, &mut digits), b" LAST\r\n"].concat();
            self.head.splice(head_start..head_start, command);
        } else {
            self.tail.extend_from_slice(b".\r\n");
        }
        self.block = Some(composed.block);
        self.by_bdat = bdat;
        self.under_way = Some(composed);
        self.opened = false;
        self.ended_at = None;
        self.expected.push_back(Expect::Dot);
        if self.left == Some(0) {
            if self.pipelining && !self.lingers {
                self.tail.extend_from_slice(b"QUIT\r\n");
                self.expected.push_back(Expect::Quit);
            }
        } else if self.pipelining && !bdat && supply.take() {
            self.opened = true;
            self.envelope(script, supply);
        }
    }

    /// Writes what is to be sent as far as the socket takes it.
    pub(crate) fn flush(&mut self, composer: &Composer, now: Instant) -> io::Result<()> {
        let block: &[u8] = match self.block {
            Some(index) if self.by_bdat => composer.block(index).raw(),
            Some(index) => composer.block(index).stuffed(),
            None => b"",
        };
        let total = self.head.len() + block.len() + self.tail.len();
        while self.written < total {
            let mut skip = self.written;
            let mut slices = [IoSlice::new(b""); 3];
            let mut count = 0;
            for part in [&self.head[..], block, &self.tail[..]] {
                if skip >= part.len() {
                    skip -= part.len();
                } else {
                    slices[count] = IoSlice::new(&part[skip..]);
                    count += 1;
                    skip = 0;
                }
            }
            match self.stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(octets) => self.written += octets,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.block.take().is_some() {
            self.ended_at = Some(now);
        }
        self.head.clear();
        self.tail.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads replies and goes on; calls `notify` for each thing the sender must know. An error or a closed stream is a broken connection.
    pub(crate) fn ready(
        &mut self,
        supply: &mut impl Supply,
        script: &Script,
        now: Instant,
        mut notify: impl FnMut(Notice, &[u8]),
    ) -> io::Result<()> {
        if self.written > 0 || !self.tail.is_empty() || !self.head.is_empty() {
            self.flush(supply.composer(), now)?;
        }
        loop {
            let room = INBOX_BYTES - self.filled;
            let count = match self.stream.read(&mut self.inbox[self.filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.filled += count;
            let mut start = 0;
            while let Some(length) = memchr::memchr(b'\n', &self.inbox[start..self.filled]) {
                let (from, to) = (start, start + length + 1);
                start = to;
                if self.reply(from, to, supply, script, now, &mut notify)? {
                    return Ok(());
                }
            }
            if start == 0 && self.filled == INBOX_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply line is too long"));
            }
            self.inbox.copy_within(start..self.filled, 0);
            self.filled -= start;
            if self.written == 0 && !(self.head.is_empty() && self.tail.is_empty()) {
                self.flush(supply.composer(), now)?;
            }
            if count < room {
                return Ok(());
            }
        }
    }

    /// Handles one reply line; true when the connection has ended in order.
    fn reply(
        &mut self,
        from: usize,
        to: usize,
        supply: &mut impl Supply,
        script: &Script,
        now: Instant,
        notify: &mut impl FnMut(Notice, &[u8]),
    ) -> io::Result<bool> {
        let line = &self.inbox[from..to];
        if line.len() < 5 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a reply line is too short"));
        }
        let expect = self.expected.front().copied();
        if expect == Some(Expect::Hello) {
            let word = line[4..].trim_ascii_end();
            self.pipelining |= script.pipeline && word == b"PIPELINING";
            self.eight_bit |= word == b"8BITMIME";
            self.chunking |= word == b"CHUNKING";
        }
        if line[3] == b'-' {
            return Ok(false);
        }
        let refused = |line: &[u8]| Err(io::Error::other(String::from_utf8_lossy(line.trim_ascii_end()).into_owned()));
        let Some(expect) = expect else { return refused(line) };
        if line.starts_with(b"421") {
            return refused(line);
        }
        let class = line[0];
        self.expected.pop_front();
        match (expect, class) {
            (Expect::Banner, b'2') => {
                self.tail.extend_from_slice(&script.hello);
                self.expected.push_back(Expect::Hello);
            }
            (Expect::Hello, b'2') => notify(Notice::Ready, b""),
            (Expect::Mail, b'2') if self.pipelining => {}
            (Expect::Mail, b'2') | (Expect::Recipient, b'2') => {
                if !self.pipelining {
                    match script.recipients.get(self.next_recipient) {
                        Some(recipient) => {
                            self.next_recipient += 1;
                            self.tail.extend_from_slice(recipient);
                            self.expected.push_back(Expect::Recipient);
                        }
                        None if script.bdat && self.chunking => self.content(script, supply),
                        None => {
                            self.tail.extend_from_slice(b"DATA\r\n");
                            self.expected.push_back(Expect::Data);
                        }
                    }
                }
            }
            (Expect::Data, b'3') => self.content(script, supply),
            (Expect::Dot, b'2') => {
                let composed = self.under_way.take().ok_or_else(|| io::Error::other("a reply to a message that was not sent"))?;
                let line = &self.inbox[from..to];
                self.queue_id.clear();
                self.queue_id.extend_from_slice(queue_id(line));
                notify(Notice::Acknowledged(composed, self.ended_at.unwrap_or(now)), &self.queue_id);
                self.after_message(notify);
            }
            (Expect::Dot, b'4' | b'5') => {
                self.under_way = None;
                notify(Notice::Refused, line);
                self.after_message(notify);
            }
            (Expect::Quit, _) => {
                notify(Notice::Ended, b"");
                return Ok(true);
            }
            _ => return refused(line),
        }
        Ok(false)
    }

    /// Goes on after the answer to a message.
    fn after_message(&mut self, notify: &mut impl FnMut(Notice, &[u8])) {
        if !self.expected.is_empty() {
            return;
        }
        if self.left == Some(0) && self.lingers {
            return;
        }
        if self.left == Some(0) {
            self.tail.extend_from_slice(b"QUIT\r\n");
            self.expected.push_back(Expect::Quit);
        } else {
            notify(Notice::Idle, b"");
        }
    }
}

/// The queue id that the 250 after a message names: behind `id=` or `queued as `.
fn queue_id(line: &[u8]) -> &[u8] {
    let start = memmem::find(line, b"id=").map(|at| at + 3).or_else(|| memmem::find(line, b"queued as ").map(|at| at + 10));
    let Some(start) = start else { return b"" };
    let length = line[start..].iter().position(|&byte| !byte.is_ascii_alphanumeric() && byte != b'-' && byte != b'_').unwrap_or(0);
    &line[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::queue_id;

    #[test]
    fn the_queue_id_is_read_from_ours_and_from_postfix_replies() {
        assert_eq!(queue_id(b"250 2.0.0 Message accepted for delivery, id=7F3A\r\n"), b"7F3A");
        assert_eq!(queue_id(b"250 2.0.0 Ok: queued as 4ABC\r\n"), b"4ABC");
        assert_eq!(queue_id(b"250 OK\r\n"), b"");
    }
}
