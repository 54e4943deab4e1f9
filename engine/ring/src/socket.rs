//! Sockets: their addresses and options.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// An address as the kernel reads it.
pub(crate) struct RawAddress {
    storage: libc::sockaddr_storage,
    pub(crate) len: libc::socklen_t,
}

impl RawAddress {
    fn empty() -> RawAddress {
        // SAFETY: zeros are an unspecified address.
        RawAddress { storage: unsafe { mem::zeroed() }, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// The address of a socket in the file system.
    pub(crate) fn local(path: &Path) -> io::Result<RawAddress> {
        let bytes = path.as_os_str().as_bytes();
        let mut name = [0; size_of::<libc::sockaddr_un>() - size_of::<libc::sa_family_t>()];
        // The last byte stays 0: the kernel reads a string.
        if bytes.is_empty() || bytes.len() >= name.len() || bytes.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of a socket has 1 to 107 bytes"));
        }
        for (to, from) in name.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        let mut raw = RawAddress::empty();
        let local = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: name };
        // SAFETY: the storage is large enough and aligned for any address.
        unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_un>().write(local) };
        raw.len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        Ok(raw)
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn to_std(&self) -> io::Result<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that it is one of these, and the storage is large enough and aligned for either.
                let raw = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let raw = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Ok(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), raw.sin6_flowinfo, raw.sin6_scope_id).into())
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(a) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is large enough and aligned for any address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(v4) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(a) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: a.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(v6) };
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }
}

pub(crate) fn stream_socket(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let raw = check(unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Connections go out from this address. The port is chosen with the peer known, so that one source has 64 Ki ports per peer, not in all.
pub(crate) fn bind_to(fd: RawFd, source: IpAddr) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
    let from = RawAddress::from(SocketAddr::new(source, 0));
    // SAFETY: the address is valid for the call.
    check(unsafe { libc::bind(fd, from.as_ptr(), from.len) }).map(drop)
}

/// Replies and envelopes are small and waited for. Accepted sockets inherit it.
pub(crate) fn set_no_delay(fd: RawFd) -> io::Result<()> {
    match set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32) {
        // A local socket has no such delay.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT)) => Ok(()),
        outcome => outcome,
    }
}

pub(crate) fn reset_on_close(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

pub(crate) fn shut_down(fd: RawFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: a system call without pointers.
    check(unsafe { libc::shutdown(fd, how) }).map(drop)
}

pub(crate) fn peer_addr(fd: RawFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    // SAFETY: the storage and its length are valid for the call.
    check(unsafe { libc::getpeername(fd, (&raw mut raw.storage).cast(), &mut raw.len) })?;
    raw.to_std()
}

pub(crate) fn local_addr(fd: RawFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    // SAFETY: the storage and its length are valid for the call.
    check(unsafe { libc::getsockname(fd, (&raw mut raw.storage).cast(), &mut raw.len) })?;
    raw.to_std()
}

/// Octets of this connection that its peer's kernel has acknowledged (RFC 4898, `tcpEStatsAppHCThruOctetsAcked`); none for what is not TCP.
pub(crate) fn acked_bytes(fd: RawFd) -> Option<u64> {
    /// Where `tcpi_bytes_acked` is in the kernel's `struct tcp_info`, in words of eight octets: behind 8 octets, 24 words of four, and two rates.
    const BYTES_ACKED: usize = (8 + 24 * 4 + 2 * 8) / 8;
    let mut info = [0u64; BYTES_ACKED + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the array and its length are valid for the call, and any octets are integers.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    (result == 0 && length as usize == size_of_val(&info)).then_some(info[BYTES_ACKED])
}

fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is valid for the call, and its length is its own.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as libc::socklen_t) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::{fd::AsRawFd, unix::net::UnixStream};

    use super::*;

    #[test]
    fn what_a_peer_has_acknowledged_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let before = acked_bytes(stream.as_raw_fd()).unwrap();
        stream.write_all(&[b'x'; 5000]).unwrap();
        peer.read_exact(&mut [0; 5000]).unwrap();
        // An answer carries the acknowledgement of all that it is to.
        peer.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(acked_bytes(stream.as_raw_fd()), Some(before + 5000));
        assert_eq!(acked_bytes(UnixStream::pair().unwrap().0.as_raw_fd()), None);
    }

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for address in ["127.0.0.1:25", "[::1]:2525", "[fe80::1%3]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(RawAddress::from(address).to_std().unwrap(), address);
        }
    }
}
