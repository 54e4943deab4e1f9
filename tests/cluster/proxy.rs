//! Between a node and Valkey: passes on what a rule lets through, command by command.

use std::{
    io::Result,
    net::{Shutdown, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ringpost_cluster::script::Scripts;

use super::*;

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// It is answered.
    Through,
    /// The server gets it, and nothing comes back on this connection from then on.
    OneWay,
    /// The server does not get it.
    Lost,
    /// The server gets another in its place.
    Instead(&'static [u8]),
}

/// In the place of a command: answered as by a cluster of which the part that it is about does not answer.
pub const DOWN: &[u8] = b"*3\r\n$4\r\nEVAL\r\n$47\r\nreturn redis.error_reply('CLUSTERDOWN no slot')\r\n$1\r\n0\r\n";

/// Whether a command runs this script.
pub fn runs(words: &[Vec<u8>], script: &'static str) -> bool {
    words.iter().any(|word| word == Scripts::shipped().named(script).hash().as_bytes())
}

/// Its port.
pub fn proxy(server: u16, rule: impl Fn(&[Vec<u8>]) -> Passage + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, rule) = (listener.local_addr().unwrap().port(), Arc::new(rule));
    thread::spawn(move || {
        for client in listener.incoming() {
            // A server that is not there is none for the client either.
            let (client, Ok(server)) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server))) else { continue };
            let (from_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let (is_cut, rule) = (Arc::new(AtomicBool::new(false)), rule.clone());
            let cut = is_cut.clone();
            thread::spawn(move || {
                let _ = answers(&from_server, &to_client, &is_cut);
                let _ = to_client.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let _ = commands(BufReader::new(client), &server, &*rule, &cut);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

fn answers(mut server: &TcpStream, mut client: &TcpStream, is_cut: &AtomicBool) -> Result<()> {
    let mut bytes = [0; 65_536];
    loop {
        let count = server.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        if !is_cut.load(Ordering::SeqCst) {
            client.write_all(&bytes[..count])?;
        }
    }
}

/// Command by command (`*count`, then `$length` and the bytes of each word).
fn commands(mut client: impl BufRead, mut server: &TcpStream, rule: &dyn Fn(&[Vec<u8>]) -> Passage, cut: &AtomicBool) -> Result<()> {
    let mut line = String::new();
    while client.read_line(&mut line)? > 0 {
        let count: usize = line.trim_start_matches('*').trim().parse().unwrap();
        let mut command = std::mem::take(&mut line).into_bytes();
        let mut words = Vec::new();
        for _ in 0..count {
            client.read_line(&mut line)?;
            let length: usize = line.trim_start_matches('$').trim().parse().unwrap();
            command.extend(std::mem::take(&mut line).into_bytes());
            let mut word = vec![0; length + 2];
            client.read_exact(&mut word)?;
            command.extend_from_slice(&word);
            word.truncate(length);
            words.push(word);
        }
        match rule(&words) {
            Passage::Through => server.write_all(&command)?,
            Passage::OneWay => {
                // Before the server can answer it.
                cut.store(true, Ordering::SeqCst);
                server.write_all(&command)?;
            }
            Passage::Lost => {}
            Passage::Instead(another) => server.write_all(another)?,
        }
    }
    Ok(())
}
