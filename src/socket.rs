//! Listening sockets: one for each shard and address, shared by SO_REUSEPORT, and the control socket.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};

/// Connections that the kernel keeps while a shard is busy.
const BACKLOG: i32 = 4096;

/// A killed engine's sockets live on until the kernel has taken its ring down, which it does in the background.
const TAKE_OVER: Duration = Duration::from_secs(5);
const TAKE_OVER_STEP: Duration = Duration::from_millis(20);

/// One listening socket for each of `shards` shards. With port 0 all of them get the port that the first was given.
pub fn listeners(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    // SO_REUSEPORT would let a second process share the port in silence: one without it tells whether the port is free.
    let began = Instant::now();
    let probe = loop {
        match open(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < TAKE_OVER => std::thread::sleep(TAKE_OVER_STEP),
            result => break result?,
        }
    };
    let address = SocketAddr::new(address.ip(), probe.local_addr()?.port());
    drop(probe);
    (0..shards).map(|_| open(address, true)).collect()
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let descriptor = socket(family, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    sockopt::set_socket_reuseaddr(&descriptor, true)?;
    if shared {
        sockopt::set_socket_reuseport(&descriptor, true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners, each as the config names it.
        sockopt::set_ipv6_v6only(&descriptor, true)?;
    }
    bind(&descriptor, &address)?;
    listen(&descriptor, BACKLOG)?;
    Ok(descriptor.into())
}

/// Why a listener cannot be opened, with the mend.
pub fn listen_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop the program that has it (`ss -ltnp` shows it) or choose another port".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "not allowed; ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit), or choose a higher one".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address".to_owned(),
        _ => error.to_string(),
    }
}

/// The control socket, for its owner only. A socket that nobody listens on is replaced.
pub fn control(path: &Path) -> Result<std::os::unix::net::UnixListener, String> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let shown = path.display();
    if path.exists() {
        match UnixStream::connect(path) {
            Ok(_) => return Err(format!("{shown}: another engine listens here; stop it first, or set control.socket to another path")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|error| format!("{shown}: cannot remove the socket of an earlier run: {error}"))?;
            }
            Err(error) => return Err(format!("{shown}: is there and is no control socket ({error}); set control.socket to another path")),
        }
    }
    let listener = UnixListener::bind(path).map_err(|error| format!("{shown}: {error}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|error| format!("{shown}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| format!("{shown}: {error}"))?;
    Ok(listener)
}
