//! A line of the mail log while it is written, piece by piece: `fmt` would take longer for one than the queue does for a message.

use std::{fmt::Write, net::SocketAddr};

use ringpost_queue::QueueId;
use ringpost_smtp::decimal::{write_number, write_socket_address};

use crate::mail_log::{Escaped, EscapedWord, Text};

/// Takes the pieces of a line in order; the time before them and the line's end behind them are the log's.
pub struct MailLine<'b> {
    buffer: &'b mut Vec<u8>,
}

impl<'b> MailLine<'b> {
    /// Appends to `buffer`.
    pub(crate) fn new(buffer: &'b mut Vec<u8>) -> Self {
        MailLine { buffer }
    }

    /// Words of our own.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.buffer.extend_from_slice(text.as_bytes());
        self
    }

    /// In decimal.
    pub fn number(&mut self, number: u64) -> &mut Self {
        write_number(number, self.buffer);
        self
    }

    /// The name of a message.
    pub fn id(&mut self, id: QueueId) -> &mut Self {
        self.text(id.write_text(&mut [0; QueueId::TEXT_BYTES_MAX]))
    }

    /// With its port.
    pub fn address(&mut self, address: SocketAddr) -> &mut Self {
        write_socket_address(address, self.buffer);
        self
    }

    /// Text from a peer, as [`EscapedWord`].
    pub fn word(&mut self, text: &[u8]) -> &mut Self {
        // One pass without a branch.
        let is_plain = text.iter().fold(true, |plain, &byte| plain & is_plain(byte) & !matches!(byte, b' ' | b'<' | b'>'));
        if is_plain {
            self.buffer.extend_from_slice(text);
            return self;
        }
        self.shown(format_args!("{}", EscapedWord(text)))
    }

    /// Text from a peer, as [`Escaped`].
    pub fn quoted(&mut self, text: &[u8]) -> &mut Self {
        let is_plain = text.iter().fold(true, |plain, &byte| plain & is_plain(byte));
        if is_plain {
            self.buffer.extend_from_slice(text);
            return self;
        }
        self.shown(format_args!("{}", Escaped(text)))
    }

    /// Anything else.
    pub fn shown(&mut self, shown: std::fmt::Arguments<'_>) -> &mut Self {
        // Only a `Display` that gives up fails, and then the line has what it wrote.
        let _ = Text(self.buffer).write_fmt(shown);
        self
    }
}

/// An octet that stands for itself wherever it is.
fn is_plain(byte: u8) -> bool {
    (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut MailLine<'_>)) -> String {
        let mut buffer = b"x".to_vec();
        write(&mut MailLine::new(&mut buffer));
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn what_came_from_a_peer_is_written_as_it_is_shown_whatever_octets_it_has() {
        for octet in 0..=u8::MAX {
            for text in [vec![octet], [&b"some.one"[..], &[octet], b"@example.org"].concat(), "ü".bytes().chain([octet]).collect()] {
                assert_eq!(written(|line| _ = line.word(&text)), format!("x{}", EscapedWord(&text)), "{octet}");
                assert_eq!(written(|line| _ = line.quoted(&text)), format!("x{}", Escaped(&text)), "{octet}");
            }
        }
    }

    #[test]
    fn pieces_stand_one_behind_the_other() {
        let id = QueueId { boot: 7, shard: 3, sequence: 99 };
        let peer = "[2001:db8::1]:4711".parse().unwrap();
        let text = written(|line| {
            line.text("queue_id=").id(id).text(" client=").address(peer).text(" size=").number(0).shown(format_args!(" {}", 7));
        });
        assert_eq!(text, format!("xqueue_id={id} client={peer} size=0 7"));
    }
}
