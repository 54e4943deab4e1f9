//! The first words of a server that runs already: is it there, does it speak, what is it?

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::cli::Failure;

/// A connection takes no longer, or nobody is there.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// RFC 5321 4.5.3.2.1 lets a client wait five minutes for a banner; who measures does not want to.
const BANNER_MAX: Duration = Duration::from_secs(30);

/// Octets of a banner line that are read; RFC 5321 4.5.3.1.5 allows 512.
const LINE_BYTES_MAX: u64 = 4096;

/// Characters of it that are kept.
const SHOWN_CHARS_MAX: usize = 120;

/// Connects, reads the banner, says QUIT; what the server says behind its 220.
///
/// # Errors
/// [`Failure::Unavailable`]: nobody listens, nothing is said within 30 s, or it is no 220.
pub fn greeting(to: SocketAddr) -> Result<String, Failure> {
    let silent = |reason: std::io::Error| match reason.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Failure::Unavailable(format!(
            "{to}: the connection was taken by the kernel, and no process of the server said a banner in {} s",
            BANNER_MAX.as_secs()
        )),
        _ => Failure::Unavailable(format!("{to}: {reason}")),
    };
    let stream = TcpStream::connect_timeout(&to, CONNECT_MAX).map_err(|reason| Failure::Unavailable(format!("{to}: {reason}")))?;
    stream.set_read_timeout(Some(BANNER_MAX)).map_err(silent)?;
    let mut line = Vec::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_until(b'\n', &mut line).map_err(silent)?;
    let text: String = String::from_utf8_lossy(&line).trim_end().chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect();
    // It is told of politely; whether it hears that is its business.
    let _said = (&stream).write_all(b"QUIT\r\n");
    match text.strip_prefix("220") {
        Some(words) => Ok(words.trim_start_matches(['-', ' ']).to_owned()),
        None if text.is_empty() => Err(Failure::Unavailable(format!("{to}: the server closed the connection without a banner"))),
        None => Err(Failure::Unavailable(format!("{to}: instead of a banner: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn said(words: &'static [u8]) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(words).unwrap());
        let heard = greeting(address).map_err(|failure| failure.to_string());
        server.join().unwrap();
        heard
    }

    #[test]
    fn the_banner_says_what_the_server_is() {
        assert_eq!(said(b"220 mx.test ESMTP Postfix\r\n").unwrap(), "mx.test ESMTP Postfix");
        assert_eq!(said(b"220-mx.test\x1b[2J\r\n220 more\r\n").unwrap(), "mx.test[2J");
    }

    #[test]
    fn whoever_is_no_mail_server_is_named_with_its_words() {
        assert!(said(b"421 too many\r\n").unwrap_err().contains("421 too many"));
        assert!(said(b"SSH-2.0-x\r\n").unwrap_err().contains("SSH-2.0-x"));
        assert!(said(b"").unwrap_err().contains("without a banner"));
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(greeting(free), Err(Failure::Unavailable(text)) if text.contains("refused")));
    }
}
