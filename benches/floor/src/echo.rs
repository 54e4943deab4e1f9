//! The floor of an exchange: what comes is sent back. What the engine's ring is measured beside.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use crate::kernel::{Kernel, Kind};

struct Peer {
    fd: i32,
    waiting: Vec<u8>,
    sending: Vec<u8>,
    receiving: bool,
}

/// Serves on this thread until `connections` connections have come and ended.
pub fn serve(listener: &TcpListener, connections: usize) -> io::Result<u64> {
    let mut kernel = Kernel::new()?;
    let mut peers: Vec<Peer> = Vec::new();
    let mut completions = Vec::new();
    let (mut ended, mut octets) = (0, 0);
    kernel.accept(listener.as_raw_fd());
    while ended < connections {
        kernel.turn(&mut completions)?;
        for completion in &completions {
            let number = completion.number as usize;
            match completion.kind {
                Kind::Accept if completion.result >= 0 => {
                    kernel.receive(Kind::Receive, completion.result, peers.len() as u32);
                    peers.push(Peer { fd: completion.result, waiting: Vec::new(), sending: Vec::new(), receiving: true });
                }
                Kind::Receive => {
                    let peer = &mut peers[number];
                    kernel.received(completion, |bytes| {
                        octets += bytes.len() as u64;
                        peer.waiting.extend_from_slice(bytes);
                    });
                    if !completion.more() {
                        peer.receiving = completion.result > 0 || completion.result == -libc::ENOBUFS;
                        if peer.receiving {
                            kernel.receive(Kind::Receive, peer.fd, completion.number);
                        }
                    }
                }
                Kind::Send => peers[number].sending.clear(),
                _ => continue,
            }
            let Some(peer) = peers.get_mut(number) else { continue };
            if peer.sending.is_empty() && !peer.waiting.is_empty() && peer.receiving {
                std::mem::swap(&mut peer.waiting, &mut peer.sending);
                kernel.send(peer.fd, completion.number, &peer.sending);
            } else if peer.sending.is_empty() && !peer.receiving && peer.fd >= 0 {
                kernel.close(std::mem::replace(&mut peer.fd, -1));
                ended += 1;
            }
        }
    }
    Ok(octets)
}
