//! A client's connection: line ends and the final dot, and the replies an engine gives.

use std::os::fd::RawFd;

use memchr::{memchr, memmem};

use crate::log::{Log, Piece};

/// What EHLO is answered with. Of a command only the first octet is looked at.
const EHLO: &[u8] = b"250-floor.x.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n";
/// Said first.
pub const BANNER: &[u8] = b"220 floor.x.test ESMTP\r\n";
/// The dot's reply, up to the id.
const ACCEPTED: &[u8] = b"250 2.0.0 Message accepted for delivery, id=";
/// A command line and an envelope are no longer than this.
const ENVELOPE_BYTES_MAX: usize = 64 << 10;

const END: &[u8; 5] = b"\r\n.\r\n";

/// A message that arrived whole.
#[derive(Debug, Default)]
pub struct Message {
    /// MAIL and RCPT lines as they came.
    pub envelope: Vec<u8>,
    /// The content as it came, with its final dot line.
    pub content: Vec<Piece>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Commands,
    Data,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// Its socket.
    pub fd: RawFd,
    phase: Phase,
    /// A line that came in part.
    line: Vec<u8>,
    /// The last four octets of content.
    last: [u8; 4],
    /// The message that is arriving, then the one that waits to be durable.
    pub message: Message,
    /// The envelope of the next one may come meanwhile.
    next_envelope: Vec<u8>,
    /// Replies to be sent.
    pub replies: Vec<u8>,
    /// Replies behind the one that waits for the disk.
    behind: Vec<u8>,
    /// What the kernel is sending.
    pub sending: Vec<u8>,
    /// The batch whose end is awaited.
    pub awaits: Option<u64>,
    /// A receive is armed.
    pub receiving: bool,
    /// A send is under way.
    pub busy: bool,
    /// Said QUIT, or talked nonsense.
    pub leaving: bool,
    /// The end of the receive was asked for.
    pub stopping: bool,
}

impl Client {
    /// A connection that was accepted just now.
    pub fn new(fd: RawFd) -> Self {
        Self {
            fd,
            phase: Phase::Commands,
            line: Vec::new(),
            last: [0; 4],
            message: Message::default(),
            next_envelope: Vec::new(),
            replies: BANNER.to_vec(),
            behind: Vec::new(),
            sending: Vec::new(),
            awaits: None,
            receiving: false,
            busy: false,
            leaving: false,
            stopping: false,
        }
    }

    /// Takes what arrived. True if a message is whole and waits for its batch now.
    pub fn feed(&mut self, mut bytes: &[u8], log: &mut Log, keep: bool) -> bool {
        let mut whole = false;
        while !bytes.is_empty() && !self.leaving {
            if self.phase == Phase::Data {
                if self.awaits.is_some() {
                    // Did not wait for 354, which stands behind the reply to the dot before.
                    self.leaving = true;
                    break;
                }
                let (here, ended) = self.content_end(bytes);
                self.store(&bytes[..here], log, keep);
                bytes = &bytes[here..];
                if ended {
                    self.phase = Phase::Commands;
                    self.awaits = Some(log.gathering());
                    log.urgent = true;
                    whole = true;
                }
                continue;
            }
            let Some(at) = memchr(b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                self.leaving = self.line.len() > ENVELOPE_BYTES_MAX;
                return whole;
            };
            let (line, rest) = bytes.split_at(at + 1);
            bytes = rest;
            if self.line.is_empty() {
                self.command(line, log);
            } else {
                let mut line_before = std::mem::take(&mut self.line);
                line_before.extend_from_slice(line);
                self.command(&line_before, log);
                line_before.clear();
                self.line = line_before;
            }
        }
        whole
    }

    fn command(&mut self, line: &[u8], log: &mut Log) {
        let replies = if self.awaits.is_some() { &mut self.behind } else { &mut self.replies };
        match line[0] {
            b'E' | b'H' => replies.extend_from_slice(EHLO),
            b'M' => {
                self.next_envelope.clear();
                self.next_envelope.extend_from_slice(line);
                replies.extend_from_slice(b"250 2.1.0 Sender OK\r\n");
            }
            b'R' if self.next_envelope.len() < ENVELOPE_BYTES_MAX => {
                self.next_envelope.extend_from_slice(line);
                replies.extend_from_slice(b"250 2.1.5 Recipient OK\r\n");
            }
            b'D' => {
                replies.extend_from_slice(b"354 End data with <CR><LF>.<CR><LF>\r\n");
                self.phase = Phase::Data;
                self.last = *b"\0\0\r\n";
                log.append(&self.next_envelope, drop);
            }
            b'Q' => {
                replies.extend_from_slice(b"221 2.0.0 Closing\r\n");
                self.leaving = true;
            }
            _ => self.leaving = true,
        }
    }

    /// Where the content ends in `bytes`, if it does; else their length.
    fn content_end(&mut self, bytes: &[u8]) -> (usize, bool) {
        for here in 1..END.len().min(bytes.len() + 1) {
            let before = END.len() - here;
            if self.last[4 - before..] == END[..before] && bytes[..here] == END[before..] {
                return (here, true);
            }
        }
        if let Some(at) = memmem::find(bytes, END) {
            return (at + END.len(), true);
        }
        let kept = bytes.len().min(4);
        self.last.rotate_left(kept);
        self.last[4 - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        (bytes.len(), false)
    }

    fn store(&mut self, bytes: &[u8], log: &mut Log, keep: bool) {
        let header = u64::from(self.fd as u32) << 32 | bytes.len() as u64;
        log.append(&header.to_le_bytes(), drop);
        let content = &mut self.message.content;
        if keep && content.is_empty() {
            self.message.envelope.clear();
            self.message.envelope.extend_from_slice(&self.next_envelope);
        }
        log.append(bytes, |piece| {
            if keep {
                content.push(piece);
            }
        });
    }

    /// The batch is durable: the reply to the dot, and those behind it.
    pub fn durable(&mut self, id: u64) {
        self.awaits = None;
        self.replies.extend_from_slice(ACCEPTED);
        let mut digits = [0; 16];
        for (at, digit) in digits.iter_mut().rev().enumerate() {
            *digit = b"0123456789ABCDEF"[(id >> (4 * at)) as usize & 15];
        }
        self.replies.extend_from_slice(&digits);
        self.replies.extend_from_slice(b"\r\n");
        self.replies.append(&mut self.behind);
    }

    /// Nothing of it is in the kernel or waits.
    pub fn is_over(&self) -> bool {
        !self.receiving && !self.busy && self.awaits.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_content_is_found_wherever_it_is_cut() {
        for text in [&b".\r\nrest"[..], b"a\r\n..\r\n.\r\nrest", b"\r\n\r\n.\r\nrest", b"x.\r\n.\r.\r\n\r\n.\n\r\n.\r\nrest"] {
            let expected = text.len() - 4;
            for cut in 1..text.len() {
                let mut client = Client::new(-1);
                client.last = *b"\0\0\r\n";
                let mut at = 0;
                for piece in text.chunks(cut) {
                    let (here, ended) = client.content_end(piece);
                    at += here;
                    if ended {
                        break;
                    }
                }
                assert_eq!(at, expected, "{:?} in pieces of {cut}", String::from_utf8_lossy(text));
            }
        }
    }
}
