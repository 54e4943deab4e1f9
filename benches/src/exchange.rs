//! A whole session in memory: what the engine does with it, but for sockets and disk.

use std::net::SocketAddr;
use std::rc::Rc;

use ringpost_smtp::content::{ContentSink, SinkError};
use ringpost_smtp::line::Unread;
use ringpost_smtp::server::{Action, ContentStep, Replies, ServerOptions, ServerSettings, Session, Verdict};

/// Content that is kept at most; a batch's length.
const BATCH_BYTES: usize = 256 << 10;

/// Takes the place of the open batch.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
}

impl ContentSink for Batch {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.bytes.len() + bytes.len() > BATCH_BYTES {
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// One session that takes everything.
#[derive(Debug)]
pub struct Exchange {
    session: Session,
    batch: Batch,
    replies: Vec<u8>,
    envelope: Vec<u8>,
    in_content: bool,
    settings: Rc<ServerSettings>,
    /// Octets of replies and messages so far.
    pub checksum: u64,
    /// Messages on this connection.
    messages: u32,
}

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)), 40_000);
/// A connection begins anew after so many messages, as a limit would have it.
const MESSAGES_MAX: u32 = 999_999;

impl Default for Exchange {
    fn default() -> Self {
        let options = ServerOptions { hostname: "mx.example.com".into(), messages_max: MESSAGES_MAX, ..ServerOptions::default() };
        let settings = Rc::new(ServerSettings::new(options).expect("the options are valid"));
        let mut exchange = Self {
            session: Session::new(Rc::clone(&settings), PEER),
            batch: Batch { bytes: Vec::with_capacity(BATCH_BYTES) },
            replies: Vec::with_capacity(1024),
            envelope: Vec::with_capacity(1024),
            in_content: false,
            settings,
            checksum: 0,
            messages: 0,
        };
        exchange.greet();
        exchange
    }
}

impl Exchange {
    fn greet(&mut self) {
        self.session.banner(&Unread::new(b""), &mut Replies::new(&mut self.replies));
        self.send();
        self.receive(b"EHLO client.example.org\r\n");
    }

    /// Takes what arrived in one piece.
    pub fn receive(&mut self, bytes: &[u8]) {
        let mut input = Unread::new(bytes);
        loop {
            if self.in_content {
                match self.session.content(&mut input, &mut self.batch) {
                    ContentStep::More => return self.send(),
                    ContentStep::Refused => continue,
                    ContentStep::End => self.in_content = false,
                }
            }
            match self.session.next(&mut input, &mut Replies::new(&mut self.replies)) {
                Action::Read => return self.send(),
                Action::Send => self.send(),
                Action::Mail { .. } => self.session.mail(Verdict::Accept, &mut Replies::new(&mut self.replies)),
                Action::Recipient => self.session.recipient(Verdict::Accept, &mut Replies::new(&mut self.replies)),
                Action::Content => {
                    self.send();
                    self.in_content = true;
                }
                Action::Commit => {
                    // The envelope stands behind the content in the record; it is kept, too, for those who want to look at it.
                    self.envelope.clear();
                    self.envelope.extend_from_slice(self.session.envelope().as_bytes());
                    self.checksum = self.checksum.rotate_left(5) ^ (self.envelope.len() + self.batch.bytes.len()) as u64;
                    self.session.committed(Ok("7F3A0000000000000001"), &mut Replies::new(&mut self.replies));
                    self.messages += 1;
                }
                Action::Abort => self.batch.bytes.clear(),
                Action::Delay(_) => unreachable!("no bad command is sent"),
                Action::Close => {
                    self.send();
                    return;
                }
            }
        }
    }

    /// One transaction of a pipelining client: envelope in one piece, content in another.
    pub fn transaction(&mut self, envelope: &[u8], content: &[u8]) {
        self.receive(envelope);
        self.receive(content);
        if self.messages == MESSAGES_MAX {
            self.messages = 0;
            self.session.reopen(Rc::clone(&self.settings), PEER);
            self.greet();
        }
    }

    /// The envelope of the last message, in its persisted form.
    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    fn send(&mut self) {
        self.checksum = self.checksum.wrapping_add(self.replies.len() as u64);
        self.replies.clear();
    }
}
