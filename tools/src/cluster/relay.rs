//! A way to Valkey that can be turned to another server at once, as a failover does.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
};

#[derive(Debug)]
struct Ways {
    target: SocketAddr,
    /// Both ends of all connections since the last turn.
    open: Vec<TcpStream>,
}

/// Passes connections on to one server; ends when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    /// Where it listens.
    pub(super) address: SocketAddr,
    ways: Arc<Mutex<Ways>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub(super) fn start(target: SocketAddr) -> io::Result<Relay> {
        let listener = TcpListener::bind(crate::machine::free_port()?)?;
        let address = listener.local_addr()?;
        let ways = Arc::new(Mutex::new(Ways { target, open: Vec::new() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopping) = (Arc::clone(&ways), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            for client in listener.incoming() {
                if stopping.load(SeqCst) {
                    return;
                }
                // A server that is down refuses: the client's connection ends, too.
                if let Ok(client) = client
                    && let Err(error) = pass_on(client, &shared)
                    && error.kind() != io::ErrorKind::ConnectionRefused
                {
                    eprintln!("relay: {error}");
                }
            }
        })?;
        Ok(Relay { address, ways, stop, thread: Some(thread) })
    }

    /// Cuts all connections; the next ones go to `target`.
    pub(super) fn turn_to(&self, target: SocketAddr) {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.target = target;
        for stream in ways.open.drain(..) {
            let _already_gone = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(client: TcpStream, ways: &Mutex<Ways>) -> io::Result<()> {
    // Under the lock: a connection that is made while the way is turned must not go where it led before.
    let mut ways = ways.lock().unwrap_or_else(PoisonError::into_inner);
    let server = TcpStream::connect(ways.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            // However it ends, both ends see it.
            let _cut = io::copy(&mut from, &mut to);
            let _already_gone = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        })?;
    }
    ways.open.extend([client, server]);
    Ok(())
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.turn_to(self.address);
        // It waits for a connection.
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
