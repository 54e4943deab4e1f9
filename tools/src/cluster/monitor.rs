//! All that a Valkey is asked and all that its scripts do, in the order in which it does them: its command MONITOR.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::JoinHandle,
    time::Duration,
};

use crate::valkey_server::ValkeyServer;

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// Seconds since 1970 by the server's clock, to the microsecond.
    pub(super) at: f64,
    /// Done by a script, not sent by a client.
    pub(super) is_of_script: bool,
    /// Its name and arguments.
    pub(super) words: Vec<String>,
}

impl Call {
    /// Reads `+1700000000.123456 [0 127.0.0.1:5555] "SET" "key" "value"`.
    fn parse(line: &str) -> Option<Call> {
        let (at, rest) = line.strip_prefix('+')?.split_once(" [")?;
        let (client, words) = rest.split_once("] ")?;
        let (at, is_of_script) = (at.parse().ok()?, client.ends_with(" lua"));
        Some(Call { at, is_of_script, words: words_of(words) })
    }

    /// A word, or nothing.
    pub(super) fn word(&self, number: usize) -> &str {
        self.words.get(number).map_or("", String::as_str)
    }
}

/// Quoted words; what is escaped in them stays so but for quotes and backslashes.
fn words_of(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_open) = (Vec::new(), String::new(), false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if is_open => {
                words.push(std::mem::take(&mut word));
                is_open = false;
            }
            '"' => is_open = true,
            '\\' if is_open => match letters.next() {
                Some(next @ ('"' | '\\')) => word.push(next),
                Some('n') => word.push('\n'),
                Some(next) => word.extend(['\\', next]),
                None => {}
            },
            _ if is_open => word.push(letter),
            _ => {}
        }
    }
    words
}

/// Watches a server until it ends or this is dropped.
#[derive(Debug)]
pub(super) struct Monitor {
    calls: Receiver<Call>,
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Everything that is done after this returns is seen.
    pub(super) fn start(server: &ValkeyServer) -> io::Result<Monitor> {
        let mut stream = TcpStream::connect(server.address)?;
        stream.write_all(b"MONITOR\r\n")?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim() != "+OK" {
            return Err(io::Error::other(format!("MONITOR is answered with {line:?}")));
        }
        let (sender, calls) = channel();
        let thread = std::thread::Builder::new().name("monitor".into()).spawn(move || {
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                if let Some(call) = Call::parse(String::from_utf8_lossy(&line).trim_end())
                    && sender.send(call).is_err()
                {
                    return;
                }
                line.clear();
            }
        })?;
        Ok(Monitor { calls, stream, thread: Some(thread) })
    }

    /// The next command, waiting for at most `limit`. Fails when the server is gone.
    pub(super) fn next(&self, limit: Duration) -> io::Result<Option<Call>> {
        match self.calls.recv_timeout(limit) {
            Ok(call) => Ok(Some(call)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("Valkey ended its MONITOR")),
        }
    }

    /// Those that are there.
    pub(super) fn rest(&self) -> impl Iterator<Item = Call> {
        self.calls.try_iter()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _already_gone = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_monitor_are_read() {
        let call = Call::parse(r#"+1700000000.123456 [0 lua] "SET" "{a:c}:plan" "say \"x\\y\" \x00\n""#).unwrap();
        assert!(call.is_of_script && call.at == 1_700_000_000.123_456);
        assert_eq!(call.words, ["SET", "{a:c}:plan", "say \"x\\y\" \\x00\n"]);
        assert!(!Call::parse(r#"+1.5 [0 127.0.0.1:77] "PING""#).unwrap().is_of_script);
        assert_eq!(Call::parse("+OK"), None);
    }
}
