//! Ports of loopback for servers of tests and rigs.

use std::{
    io,
    net::SocketAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt::set_socket_reuseaddr};

/// They end below the range that outgoing connections are given: while a server is down, connections that are tried meanwhile must not be
/// able to take its port.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A free port of loopback, this process's as long as it lives. Each call gives another.
///
/// # Errors
/// None of them is free, or no sockets are.
pub fn free_port() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static KEPT: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Where the first search begins only saves time: processes keep ports from each other by names.
    let start = (std::process::id() % 500) as u16 * 40;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Relaxed) % COUNT) % COUNT;
        let kept = match UnixListener::bind_addr(&UnixAddr::from_abstract_name(format!("ringpost-port-{port}"))?) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            bound => bound?,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if is_free(address)? {
            KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
            return Ok(address);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no port from {FIRST} to {} is free", FIRST + COUNT - 1)))
}

/// Whether nobody listens there. Nor does the socket that asks: a process that another thread starts in this moment holds it for a moment
/// more, and a listener would meet it.
fn is_free(address: SocketAddr) -> io::Result<bool> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    Ok(bind(&socket, &address).is_ok())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command};

    use super::*;

    #[test]
    fn where_somebody_listens_is_not_free() {
        let listener = TcpListener::bind(free_port().unwrap()).unwrap();
        assert!(!is_free(listener.local_addr().unwrap()).unwrap());
    }

    /// A process in the moment of its start has the sockets of all threads: one in some thousand listeners found its port taken.
    #[test]
    fn processes_that_start_meanwhile_take_no_port() {
        std::thread::scope(|threads| {
            let listeners: Vec<_> =
                (0..4).map(|_| threads.spawn(|| (0..100).for_each(|_| drop(TcpListener::bind(free_port().unwrap()).unwrap())))).collect();
            while !listeners.iter().all(|thread| thread.is_finished()) {
                Command::new("/bin/true").status().unwrap();
            }
        });
    }
}
