//! How long one reply of the server is, while it comes in: what would be too long ends there, and not when memory does.
//!
//! The client reads a reply to its end before it says anything of it, and believes every length in it. So the bytes pass here first: of
//! RESP only what says where a reply ends. Pure.

/// What a value takes in memory beside its bytes: a list of empty ones is short on the way.
const VALUE_BYTES: usize = 64;

/// Counts the replies of one connection.
#[derive(Debug)]
pub(crate) struct ReplyMeter {
    /// Of the reply that is coming in.
    used: usize,
    /// Values of it that have not ended.
    values: usize,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// The next byte says of what kind a value is.
    Kind,
    /// The rest of its line: for some kinds a length.
    Line { kind: u8, length: usize, is_null: bool },
    /// Bytes of a text, and its line end.
    Text { left: usize },
}

/// The reply is longer than it may be, or says that it is going to be.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct TooLong;

impl ReplyMeter {
    /// For a new connection.
    pub fn new() -> ReplyMeter {
        ReplyMeter { used: 0, values: 1, part: Part::Kind }
    }

    /// The next bytes of the connection. After an error it is to be given up.
    pub fn read(&mut self, mut bytes: &[u8], bytes_max: usize) -> Result<(), TooLong> {
        while let Some(&first) = bytes.first() {
            let taken = match self.part {
                Part::Kind => {
                    self.part = Part::Line { kind: first, length: 0, is_null: false };
                    self.uses(VALUE_BYTES, bytes_max)?;
                    1
                }
                Part::Line { kind, length, is_null } => self.line(bytes, kind, length, is_null, bytes_max)?,
                Part::Text { left } if left <= bytes.len() => {
                    self.value_ends();
                    left
                }
                Part::Text { left } => {
                    self.part = Part::Text { left: left - bytes.len() };
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Takes a line as far as it is there. Returns its bytes.
    fn line(&mut self, bytes: &[u8], kind: u8, mut length: usize, mut is_null: bool, bytes_max: usize) -> Result<usize, TooLong> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let line = &bytes[..end.unwrap_or(bytes.len())];
        self.uses(line.len(), bytes_max)?;
        if matches!(kind, b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%' | b'|') {
            is_null |= line.contains(&b'-');
            for digit in line.iter().filter(|byte| byte.is_ascii_digit()) {
                length = length.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
            }
        }
        if end.is_none() {
            self.part = Part::Line { kind, length, is_null };
            return Ok(line.len());
        }
        match kind {
            _ if is_null => self.value_ends(),
            b'$' | b'!' | b'=' => {
                // Counted before it comes: nothing of a text that is too long is read.
                self.uses(length, bytes_max)?;
                self.part = Part::Text { left: length + 2 };
            }
            b'*' | b'~' | b'>' => self.list(length, bytes_max)?,
            b'%' => self.list(length.saturating_mul(2), bytes_max)?,
            // Names and values about the value that follows.
            b'|' => self.list(length.saturating_mul(2).saturating_add(1), bytes_max)?,
            _ => self.value_ends(),
        }
        Ok(line.len() + 1)
    }

    fn list(&mut self, values: usize, bytes_max: usize) -> Result<(), TooLong> {
        // What a list says that it has it must not have room for; it is counted when it comes.
        if self.used.saturating_add(values.saturating_mul(VALUE_BYTES)) > bytes_max {
            return Err(TooLong);
        }
        self.values += values;
        self.value_ends();
        Ok(())
    }

    fn value_ends(&mut self) {
        self.part = Part::Kind;
        self.values -= 1;
        if self.values == 0 {
            *self = ReplyMeter::new();
        }
    }

    fn uses(&mut self, bytes: usize, bytes_max: usize) -> Result<(), TooLong> {
        self.used = self.used.saturating_add(bytes);
        if self.used > bytes_max { Err(TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read at once and byte by byte.
    fn read(replies: &[u8], bytes_max: usize) -> Result<(), TooLong> {
        let (mut whole, mut single) = (ReplyMeter::new(), ReplyMeter::new());
        let at_once = whole.read(replies, bytes_max);
        let by_byte = replies.iter().try_for_each(|byte| single.read(&[*byte], bytes_max));
        assert_eq!(at_once, by_byte);
        if at_once.is_ok() {
            assert_eq!((whole.used, whole.values, whole.part), (single.used, single.values, single.part));
        }
        at_once
    }

    fn ends(reply: &[u8]) -> bool {
        let mut meter = ReplyMeter::new();
        for (at, byte) in reply.iter().enumerate() {
            assert!(at == 0 || meter.used > 0, "it ends after {at} bytes");
            meter.read(&[*byte], 10_000).unwrap();
        }
        meter.used == 0 && meter.part == Part::Kind
    }

    #[test]
    fn replies_of_every_kind_end_where_they_end() {
        for reply in [
            &b"+OK\r\n"[..],
            b"-ERR no\r\n",
            b":-12\r\n",
            b"$5\r\na\r\nb\n\r\n",
            b"$0\r\n\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n*2\r\n:1\r\n$1\r\nx\r\n+y\r\n",
            b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n*9\r\n",
            b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n",
            b"~1\r\n#t\r\n",
            b">2\r\n+invalidate\r\n,1.5\r\n",
            b"|1\r\n+ttl\r\n:3600\r\n*1\r\n:1\r\n",
            b"=7\r\ntxt:a\r\n\r\n",
            b"!5\r\nERR x\r\n",
            b"(349\r\n",
        ] {
            assert!(ends(reply), "{}", String::from_utf8_lossy(reply));
        }
    }

    #[test]
    fn each_reply_has_the_bound_for_itself() {
        let reply = [&b"$1000\r\n"[..], &[b'x'; 1000], b"\r\n"].concat();
        assert_eq!(read(&reply.repeat(100), 1100), Ok(()));
        assert_eq!(read(&reply, 1000), Err(TooLong));
    }

    #[test]
    fn what_says_that_it_is_too_long_is_not_waited_for() {
        for head in [&b"$2000\r\n"[..], b"$99999999999999999999999\r\n", b"*100\r\n", b"*9999999999999999999\r\n", b"%50\r\n", b"|50\r\n"] {
            assert_eq!(read(head, 2000), Err(TooLong), "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn many_small_values_and_a_line_without_an_end_are_too_long_at_last() {
        let list = [&b"*2\r\n"[..]].repeat(1000).concat();
        assert_eq!(read(&list, 10_000), Err(TooLong));
        assert_eq!(read(&[&b"+"[..], &[b'x'; 20_000]].concat(), 10_000), Err(TooLong));
    }
}
