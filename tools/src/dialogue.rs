//! A client that says exactly what a rig tells it to.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One SMTP connection, used by one thread.
#[derive(Debug)]
pub struct Dialogue {
    reader: BufReader<TcpStream>,
}

impl Dialogue {
    /// Connects and reads the banner. No reply is waited for longer than `patience`.
    pub fn open(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let mut dialogue = Self { reader: BufReader::new(stream) };
        dialogue.expect("220")?;
        Ok(dialogue)
    }

    /// Connects, reads the banner and says EHLO.
    pub fn greeted(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let mut dialogue = Self::open(address, patience)?;
        dialogue.say("EHLO rig.x.test")?;
        Ok(dialogue)
    }

    /// Sends octets as they are.
    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(octets)
    }

    /// Says one command and returns its reply.
    pub fn say(&mut self, command: &str) -> io::Result<String> {
        self.send(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// Says one command whose reply must begin so.
    pub fn must(&mut self, command: &str, expected: &str) -> io::Result<String> {
        let reply = self.say(command)?;
        if reply.starts_with(expected) { Ok(reply) } else { Err(io::Error::other(format!("{command:?} was answered {reply:?}"))) }
    }

    fn expect(&mut self, expected: &str) -> io::Result<String> {
        let reply = self.reply()?;
        if reply.starts_with(expected) { Ok(reply) } else { Err(io::Error::other(format!("{reply:?} instead of {expected}"))) }
    }

    /// Reads one reply, all lines of it; empty at the end of the connection.
    pub fn reply(&mut self) -> io::Result<String> {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(reply),
                Err(error) => return Err(error),
            }
            reply.push_str(&line);
            if line.is_empty() || line.as_bytes().get(3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// MAIL, RCPT and DATA: the next thing to send is content.
    pub fn begin_content(&mut self) -> io::Result<()> {
        self.must("MAIL FROM:<a@x.test>", "250")?;
        self.must("RCPT TO:<b@y.test>", "250")?;
        self.must("DATA", "354").map(drop)
    }

    /// One whole small message; returns the reply to its end.
    pub fn message(&mut self) -> io::Result<String> {
        self.begin_content()?;
        self.say("Subject: rig\r\n\r\ntext\r\n.")
    }
}
