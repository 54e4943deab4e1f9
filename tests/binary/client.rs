//! A client that says exactly what a test tells it to, byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::node::PATIENCE;

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects and reads the banner.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut client = Self::silent(address);
        let banner = client.reply();
        assert!(banner.starts_with("220 "), "{banner}");
        client
    }

    /// Connects without reading.
    pub(crate) fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Connects, reads the banner and says EHLO.
    pub(crate) fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        client.must("EHLO client.x.test", "250");
        client
    }

    /// Sends octets as they are. A peer that has closed meanwhile is no failure here: the replies tell.
    pub(crate) fn send(&mut self, octets: &[u8]) {
        if let Err(error) = self.stream.write_all(octets) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    }

    /// Says one command and returns its reply, all lines of it.
    pub(crate) fn say(&mut self, command: &str) -> String {
        self.send(command.as_bytes());
        self.send(b"\r\n");
        self.reply()
    }

    /// Says one command whose reply must begin so.
    pub(crate) fn must(&mut self, command: &str, expected: &str) -> String {
        let reply = self.say(command);
        assert!(reply.starts_with(expected), "{command:?} was answered {reply:?}, not {expected}");
        reply
    }

    /// Reads one reply; empty when the peer has closed.
    pub(crate) fn reply(&mut self) -> String {
        self.reply_or_silence().expect("the peer says something or closes in time")
    }

    /// Reads one reply; empty when the peer has closed, none when it says nothing for a long time.
    pub(crate) fn reply_or_silence(&mut self) -> Option<String> {
        let mut reply = String::new();
        loop {
            let line = self.line()?;
            reply.push_str(&line);
            if line.is_empty() || line.as_bytes().get(3) != Some(&b'-') {
                return Some(reply);
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                assert!(line.ends_with(b"\r\n"), "a reply line without CRLF: {line:?}");
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            let mut octets = [0; 4096];
            match self.stream.read(&mut octets) {
                Ok(0) => return Some(String::new()),
                Ok(count) => self.unread.extend_from_slice(&octets[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return Some(String::new()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(error) => panic!("no reply: {error}"),
            }
        }
    }

    /// Says that nothing more comes, and goes on reading.
    pub(crate) fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends one whole message and returns the queue id of its 250.
    pub(crate) fn deliver(&mut self, recipient: &str, content: &str) -> String {
        self.deliver_to(&[recipient], content)
    }

    /// As [`Client::deliver`], to several at once.
    pub(crate) fn deliver_to(&mut self, recipients: &[&str], content: &str) -> String {
        self.must("MAIL FROM:<a@x.test>", "250 2.1.0");
        for recipient in recipients {
            self.must(&format!("RCPT TO:<{recipient}>"), "250 2.1.5");
        }
        self.must("DATA", "354");
        let reply = self.say(&format!("{content}\r\n."));
        assert!(reply.starts_with("250 2.0.0 "), "{reply}");
        let id = reply.trim_end().rsplit_once("id=").expect("the 250 names the queue id").1;
        id.to_string()
    }
}
