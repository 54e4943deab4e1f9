//! Connecting.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use io_uring::{opcode, types};

use crate::{
    conn::Conn,
    ring::Ring,
    slot::Lent,
    socket::{RawAddress, bind_to, set_no_delay, stream_socket},
};

impl Ring {
    /// Connects to `to`, from `source` where given, without Nagle's delay. Dropping the future gives up; there is no time limit but the
    /// kernel's.
    pub async fn connect(&self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<Conn> {
        let socket = stream_socket(if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 })?;
        set_no_delay(socket.as_raw_fd())?;
        if let Some(source) = source {
            bind_to(socket.as_raw_fd(), source)?;
        }
        self.connect_socket(socket, to.into()).await
    }

    /// Connects to the stream socket at `path`. Fails with `InvalidInput` if the path has more than 107 bytes or a NUL. Dropping the
    /// future gives up.
    pub async fn connect_unix(&self, path: &Path) -> io::Result<Conn> {
        let address = RawAddress::local(path)?;
        self.connect_socket(stream_socket(libc::AF_UNIX)?, address).await
    }

    async fn connect_socket(&self, socket: OwnedFd, to: RawAddress) -> io::Result<Conn> {
        let entry = |lent: &mut Lent| {
            let Lent::Connecting(socket, address) = lent else { unreachable!("it was lent as a socket and an address") };
            opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr(), address.len).build()
        };
        // SAFETY: the address is boxed in the slot, which holds the socket, too.
        let op = unsafe { self.0.issue(Lent::Connecting(socket, Box::new(to)), entry) }.cancel_on_drop();
        let done = op.await;
        done.result()?;
        let Lent::Connecting(socket, _) = done.lent else { unreachable!("a slot gives back what it lent") };
        Ok(self.0.adopt(socket))
    }
}
