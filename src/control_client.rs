//! The other end of the control socket: one request, its answer lines, its end.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::control_wire::{End, REQUEST_BYTES_MAX, WireRequest, too_long};

/// The engine says at once that it has heard: one that does not is stopped, or hangs.
const HEARD_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// It listens and does not hear.
    #[error("{path}: the engine has not heard the call within {seconds} s: its process is stopped (`kill -CONT`), or hangs")]
    Unheard {
        /// The socket.
        path: String,
        /// So long.
        seconds: u64,
    },
    /// It has heard, and says no more.
    #[error("{path}: the engine has heard the call and not answered for {seconds} s: it goes on with it, or hangs")]
    Silent {
        /// The socket.
        path: String,
        /// So long.
        seconds: u64,
    },
    /// The engine said why not.
    #[error("{0}")]
    Refused(String),
    /// The engine said that what the call needs is away.
    #[error("{0}")]
    Unavailable(String),
    /// The answer broke off.
    #[error("the engine's answer broke off: {0}")]
    BrokenOff(String),
}

/// Asks, hands each answer line to `each`, returns the count of the end.
pub fn ask(socket: &Path, request: &WireRequest, mut each: impl FnMut(&str)) -> Result<u64, ControlError> {
    let unreachable = |reason: std::io::Error| ControlError::Unreachable { path: socket.display().to_string(), reason: reason.to_string() };
    let broken = |reason: std::io::Error| ControlError::BrokenOff(reason.to_string());
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(HEARD_TIMEOUT)).map_err(broken)?;
    stream.set_write_timeout(Some(HEARD_TIMEOUT)).map_err(broken)?;
    let mut line = serde_json::to_string(request).expect("a request is plain data");
    line.push('\n');
    if line.len() as u64 > REQUEST_BYTES_MAX {
        return Err(ControlError::Refused(too_long()));
    }
    // An engine that has no time may answer before it is asked, and hang up.
    let asked = stream.write_all(line.as_bytes());
    let is_late = |reason: &std::io::Error| matches!(reason.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let (path, mut is_heard) = (socket.display().to_string(), false);
    let timeouts = stream.try_clone().map_err(broken)?;
    for line in BufReader::new(stream).lines() {
        let line = match (line, &asked) {
            (Ok(line), _) => line,
            (Err(reason), _) if is_late(&reason) && is_heard => {
                return Err(ControlError::Silent { path, seconds: ANSWER_TIMEOUT.as_secs() });
            }
            (Err(reason), _) if is_late(&reason) => return Err(ControlError::Unheard { path, seconds: HEARD_TIMEOUT.as_secs() }),
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
                Some(reason) => Err(ControlError::Refused(reason)),
                None => Ok(end.count),
            };
        }
        each(&line);
    }
    Err(asked.err().map_or_else(|| ControlError::BrokenOff("it has no end".to_owned()), broken))
}
