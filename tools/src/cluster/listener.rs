//! What a program with nothing else to do takes to hear of a completion and to ask Valkey, on the same machine in the same moment: the measure beside
//! which owners are judged. Three nodes, Valkey, load and next hop share the cores of a rig, which no promise of a node is about.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread::JoinHandle,
};

/// Hears completions of all owners, and says the name of each to Valkey at once (`ECHO`), which its MONITOR shows. Ends when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Everything that is published after this returns is heard.
    pub(super) fn start(server: SocketAddr) -> io::Result<Listener> {
        let mut hears = TcpStream::connect(server)?;
        hears.write_all(b"PSUBSCRIBE *:done:*\r\n")?;
        let mut reader = BufReader::new(hears.try_clone()?);
        message(&mut reader)?;
        let mut says = TcpStream::connect(server)?;
        says.set_nodelay(true)?;
        // Nobody reads answers.
        says.write_all(b"CLIENT REPLY OFF\r\n")?;
        let thread = std::thread::Builder::new().name("listener".into()).spawn(move || {
            while let Ok(words) = message(&mut reader) {
                let payload = words.last().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
                let names = payload.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name);
                let calls: String = names.map(|name| format!("ECHO {name}\r\n")).collect();
                if says.write_all(calls.as_bytes()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Listener { stream: hears, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _already_gone = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// One message of a channel: `*count`, then words or numbers. Fails at the end of the connection.
fn message(reader: &mut impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    let mut line = String::new();
    let mut number = |reader: &mut dyn BufRead| {
        line.clear();
        reader.read_line(&mut line)?;
        let number = line.get(1..).and_then(|digits| digits.trim().parse::<usize>().ok());
        Ok::<_, io::Error>((line.starts_with(':'), number.ok_or(io::ErrorKind::UnexpectedEof)?))
    };
    let (_, count) = number(reader)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (is_number, length) = number(reader)?;
        let mut word = Vec::new();
        if !is_number {
            word = vec![0; length + 2];
            reader.read_exact(&mut word)?;
            word.truncate(length);
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_one_after_another() {
        let mut bytes =
            &b"*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$3\r\na:b\r\n$7\r\nx 1\ny 2\r\n"[..];
        assert_eq!(message(&mut bytes).unwrap()[0], b"psubscribe");
        assert_eq!(message(&mut bytes).unwrap()[3], b"x 1\ny 2");
        assert!(message(&mut bytes).is_err(), "the end");
    }
}
