//! The other end of the control socket: one request, its answer lines, its end.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::control_wire::{End, WireRequest};

/// The engine says at once that it has heard: one that does not is stopped, or hangs.
const HEARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Where as many wait for it as the kernel lets, this one looks again after so long.
const ROOM_STEP: Duration = Duration::from_millis(20);
/// Then it answers a page within moments; commands over a long queue take longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(thiserror::Error, Debug)]
pub enum ControlError {
    /// Nobody listens.
    #[error("{path}: cannot reach the engine: {reason}; is `ringpost serve` running with this config?")]
    Unreachable {
        /// The socket.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// Whoever asks may not.
    #[error("{path}: this user may not speak to the engine: {reason}; call it as root or as the user that `ringpost serve` runs as")]
    NotAllowed {
        /// The socket.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// It listens and does not hear.
    #[error(
        "{path}: the engine has not heard the call within {seconds} s: its process is stopped (`kill -CONT`), hangs, or is of an earlier version, \
         which does not say that it has heard and may still be at work: look with `ringpost stats` before the call is repeated"
    )]
    Unheard {
        /// The socket.
        path: String,
        /// So long.
        seconds: u64,
    },
    /// It has heard, and says no more.
    #[error(
        "{path}: the engine has heard the call and not answered for {seconds} s: it may still be at work, or hangs; look with `ringpost stats`"
    )]
    Silent {
        /// The socket.
        path: String,
        /// So long.
        seconds: u64,
    },
    /// Nobody was asked: more was said than one call can say.
    #[error("{0}")]
    TooLong(String),
    /// The engine said why not.
    #[error("{0}")]
    Refused(String),
    /// The engine said that what the call needs is away.
    #[error("{0}")]
    Unavailable(String),
    /// The engine said that its config has to be another for it.
    #[error("{0}")]
    Config(String),
    /// The answer broke off.
    #[error("the engine's answer broke off: {0}")]
    BrokenOff(String),
}

/// Asks, hands each answer line to `each`, returns the count of the end.
pub fn ask(socket: &Path, request: &WireRequest, mut each: impl FnMut(&str)) -> Result<u64, ControlError> {
    let mut line = request.line().map_err(ControlError::TooLong)?;
    line.push('\n');
    let unreachable = |error: io::Error| {
        let (path, reason) = (socket.display().to_string(), error.to_string());
        if error.kind() == ErrorKind::PermissionDenied {
            ControlError::NotAllowed { path, reason }
        } else {
            ControlError::Unreachable { path, reason }
        }
    };
    let broken = |reason: io::Error| ControlError::BrokenOff(reason.to_string());
    let path = socket.display().to_string();
    let unheard = || ControlError::Unheard { path: path.clone(), seconds: HEARD_TIMEOUT.as_secs() };
    let is_late = |reason: &io::Error| matches!(reason.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let connected = connected_within(socket, HEARD_TIMEOUT);
    let mut stream = connected.map_err(|reason| if is_late(&reason) { unheard() } else { unreachable(reason) })?;
    stream.set_read_timeout(Some(HEARD_TIMEOUT)).map_err(broken)?;
    stream.set_write_timeout(Some(HEARD_TIMEOUT)).map_err(broken)?;
    // An engine that has no time may answer before it is asked, and hang up.
    let asked = stream.write_all(line.as_bytes());
    let mut is_heard = false;
    let timeouts = stream.try_clone().map_err(broken)?;
    for line in BufReader::new(stream).lines() {
        let line = match (line, &asked) {
            (Ok(line), _) => line,
            (Err(reason), _) if is_late(&reason) && is_heard => {
                return Err(ControlError::Silent { path: path.clone(), seconds: ANSWER_TIMEOUT.as_secs() });
            }
            (Err(reason), _) if is_late(&reason) => return Err(unheard()),
            (Err(_), Err(reason)) => return Err(ControlError::BrokenOff(reason.to_string())),
            (Err(reason), Ok(())) => return Err(broken(reason)),
        };
        if !is_heard {
            is_heard = true;
            timeouts.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(broken)?;
        }
        if line.is_empty() {
            continue;
        }
        if line.starts_with("{\"end\":") {
            let end: End = serde_json::from_str(&line).map_err(|reason| ControlError::BrokenOff(reason.to_string()))?;
            return match end.error {
                Some(reason) if end.is_unavailable => Err(ControlError::Unavailable(reason)),
                Some(reason) if end.is_config => Err(ControlError::Config(reason)),
                Some(reason) => Err(ControlError::Refused(reason)),
                None => Ok(end.count),
            };
        }
        each(&line);
    }
    Err(asked.err().map_or_else(|| ControlError::BrokenOff("it has no end".to_owned()), broken))
}

/// A connection, or `TimedOut` where as many calls wait as the kernel lets and nobody takes one: `UnixStream::connect` would wait for ever.
fn connected_within(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let (address, began) = (SocketAddrUnix::new(path)?, Instant::now());
    let descriptor = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    loop {
        match connect(&descriptor, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if began.elapsed() < patience => sleep(ROOM_STEP),
            Err(Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(Errno::INTR) => {}
            Err(reason) => return Err(reason.into()),
        }
    }
    let stream = UnixStream::from(descriptor);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use ringpost_engine::control::Change;
    use rustix::net::{bind, listen, socket};

    use super::*;

    /// It was an answer of the engine, with exit code 1, although it was never asked.
    #[test]
    fn more_ids_than_one_call_can_name_are_wrong_usage() {
        let retry = |ids: usize| WireRequest::QueueChange {
            change: Change::Retry {},
            ids: Some(vec!["1NG9X0G00003".to_owned(); ids]),
            filter: None,
            whole_messages: false,
        };
        let nobody = Path::new("/nowhere/c.sock");
        let refused = ask(nobody, &retry(200_000), |_| ()).unwrap_err();
        assert!(matches!(&refused, ControlError::TooLong(why) if why.contains("at most 2162688 bytes long: name fewer ids")), "{refused}");
        assert!(matches!(ask(nobody, &retry(100_000), |_| ()), Err(ControlError::Unreachable { .. })));
    }

    /// To a stopped engine that many calls wait for a further one waited without end, before it could wait ten seconds for a word.
    #[test]
    fn a_call_for_which_there_is_no_room_gives_up_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.sock");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let waiting = UnixStream::connect(&path).unwrap();
        let began = Instant::now();
        let reason = connected_within(&path, Duration::from_millis(100)).expect_err("there is no room");
        assert_eq!(reason.kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() >= Duration::from_millis(100));
        drop((waiting, listener));
        assert_eq!(
            connected_within(&path, Duration::from_millis(100)).map_err(|reason| reason.kind()).err(),
            Some(ErrorKind::ConnectionRefused)
        );
    }

    #[test]
    fn who_hears_nothing_is_told_where_to_look() {
        let said = ControlError::Unheard { path: "/c.sock".to_owned(), seconds: 10 }.to_string();
        assert!(said.contains("may still be at work: look with `ringpost stats`"), "{said}");
    }
}
