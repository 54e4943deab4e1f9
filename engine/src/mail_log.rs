//! The mail log: one line for each accepted message and each recipient's attempt, encoded by the shard, written elsewhere.
//!
//! ```text
//! 2026-11-23T22:40:03.123Z queue_id=… event=accepted client=192.0.2.7:4711 from=<a@b> size=4096 recipients=1
//! 2026-11-23T22:40:03.130Z queue_id=… event=attempt to=<c@d> relay=192.0.2.9:25 delay_ms=7 dsn=2.0.0 outcome=delivered reply="250 2.0.0 Ok"
//! ```
//! Lines gather in buffers of 64 KiB; a full one, or one that is 100 ms old, goes to the writer, the last one only when it is full. Where
//! no buffer is free the line is dropped and counted, and a `lost=N` line says so as soon as there is room. What came from a peer is escaped.

use std::{
    cell::{Cell, RefCell},
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use crossbeam::queue::ArrayQueue;
use ringpost_smtp::shown::{is_steering, write_octets};

use crate::{clock::Clock, mail_line::MailLine};

/// Bytes a buffer holds before it is passed on.
const BUFFER_BYTES: usize = 64 * 1024;
/// Buffers of one shard: filling, on the way, being written, coming back.
const BUFFERS: usize = 16;
/// The longest line: a 320-byte address, a 512-byte reply, all escaped, and the names.
const LINE_BYTES_MAX: usize = 4096;
/// What the last buffer may hold while new mail is still begun; the rest is for the lines of what has begun.
const LAST_BUFFER_BYTES: usize = BUFFER_BYTES / 4;
/// How old a line may get in the shard's hands, unless the writer is behind by all other buffers.
pub const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// The two queues between a shard and the log's writer, and how the writer is woken.
pub struct MailLogChannel {
    full: ArrayQueue<Vec<u8>>,
    empty: ArrayQueue<Vec<u8>>,
    wake_writer: Box<dyn Fn() + Send + Sync>,
}

impl MailLogChannel {
    /// `wake_writer` is called, from the shard's thread, after a buffer was passed on.
    pub fn new(wake_writer: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        let channel = MailLogChannel { full: ArrayQueue::new(BUFFERS), empty: ArrayQueue::new(BUFFERS), wake_writer };
        for _ in 0..BUFFERS {
            channel.empty.push(Vec::new()).expect("there is room for every buffer");
        }
        Arc::new(channel)
    }

    /// The writer's side: the next buffer of whole lines. Give it back with [`MailLogChannel::recycle`].
    pub fn take(&self) -> Option<Vec<u8>> {
        self.full.pop()
    }

    /// Gives a written buffer back.
    pub fn recycle(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        // Full only for a buffer that this channel did not hand out: then it is simply freed.
        let _ = self.empty.push(buffer);
    }
}

/// A shard's end of the mail log.
pub struct MailLog {
    channel: Arc<MailLogChannel>,
    open: RefCell<Option<Vec<u8>>>,
    lost: Cell<u64>,
    lost_total: Cell<u64>,
}

/// Text from a peer, for within quotes: what steers a terminal or ends a line, quotes, backslashes and what is not UTF-8 are escaped, so
/// that one line stays one line.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |_| false)
    }
}

/// As [`Escaped`], for within angle brackets or without anything around it: blanks and brackets are escaped, too. A quoted local part
/// may hold any of them, and what stands behind them would be read as fields of ours.
pub struct EscapedWord<'a>(pub &'a [u8]);

impl fmt::Display for EscapedWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |byte| matches!(byte, b' ' | b'<' | b'>'))
    }
}

/// `ends_word`: of the printable ASCII characters, which are escaped beside quotes and backslashes.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &[u8], ends_word: impl Fn(u8) -> bool) -> fmt::Result {
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        if valid.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\' && !ends_word(byte)) {
            f.write_str(valid)?;
        } else {
            for character in valid.chars() {
                match character {
                    '"' | '\\' => write!(f, "\\{character}")?,
                    _ if is_steering(character) || u8::try_from(character).is_ok_and(&ends_word) => write_octets(f, character)?,
                    _ => f.write_char(character)?,
                }
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

impl MailLog {
    /// The shard's end of `channel`.
    pub fn new(channel: Arc<MailLogChannel>) -> Self {
        MailLog { channel, open: RefCell::default(), lost: Cell::default(), lost_total: Cell::default() }
    }

    /// Appends `<time> <line>\n`; cut at 4 KiB.
    pub fn line(&self, clock: &Clock, line: fmt::Arguments<'_>) {
        self.write(clock, |out| {
            out.shown(line);
        });
    }

    /// As [`MailLog::line`]; `write` puts the pieces of the line.
    pub fn write(&self, clock: &Clock, write: impl FnOnce(&mut MailLine<'_>)) {
        let now = clock.unix_ms();
        let mut open = self.open.borrow_mut();
        let Some(buffer) = open.take().or_else(|| self.channel.empty.pop()) else {
            self.lost.set(self.lost.get() + 1);
            self.lost_total.set(self.lost_total.get() + 1);
            return;
        };
        let buffer = open.insert(buffer);
        if buffer.capacity() == 0 {
            buffer.reserve_exact(BUFFER_BYTES + LINE_BYTES_MAX);
        }
        let lost = self.lost.take();
        if lost > 0 {
            clock.write_rfc3339(now, buffer);
            let _ = writeln!(Text(buffer), " event=log lost={lost}");
        }
        let start = buffer.len();
        clock.write_rfc3339(now, buffer);
        buffer.push(b' ');
        write(&mut MailLine::new(buffer));
        buffer.truncate(start + LINE_BYTES_MAX - 1);
        buffer.push(b'\n');
        if buffer.len() >= BUFFER_BYTES {
            drop(open);
            self.pass_on_all();
        }
    }

    /// Passes what has gathered to the writer, which is woken; not the last buffer, which the lines of mail that was begun go on in.
    /// Returns whether something was passed on.
    pub fn pass_on(&self) -> bool {
        !self.channel.empty.is_empty() && self.pass_on_all()
    }

    /// As [`MailLog::pass_on`], the last buffer too: when it is full, and at the end of a shard.
    pub fn pass_on_all(&self) -> bool {
        let Some(buffer) = self.open.take() else { return false };
        // There are as many places as buffers.
        if self.channel.full.push(buffer).is_ok() {
            (self.channel.wake_writer)();
        }
        true
    }

    /// Is a line waiting to be passed on?
    pub fn is_waiting(&self) -> bool {
        self.open.borrow().is_some()
    }

    /// Is there room for the lines of another message, beside those of what has begun?
    pub fn has_room(&self) -> bool {
        !self.channel.empty.is_empty() || self.open.borrow().as_ref().is_some_and(|buffer| buffer.len() < LAST_BUFFER_BYTES)
    }

    /// Lines dropped since the start.
    pub fn lost_total(&self) -> u64 {
        self.lost_total.get()
    }
}

/// A buffer of lines as `fmt` writes into it.
pub(crate) struct Text<'a>(pub(crate) &'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_line_with_hostile_text_stays_one_line() {
        let text = format!("reply=\"{}\"", Escaped(b"a\r\nqueue_id=forged \"q\" \xff \x1b[31m \xc3\xa9 <a>"));
        // C1 controls lost their meaning with the first octet; separators and overrides of direction went through.
        let text_beyond_ascii = Escaped("\u{9b}2J\u{2028}\u{202e}".as_bytes()).to_string();
        assert_eq!(text_beyond_ascii, "\\xc2\\x9b2J\\xe2\\x80\\xa8\\xe2\\x80\\xae");
        assert_eq!(text, "reply=\"a\\x0d\\x0aqueue_id=forged \\\"q\\\" \\xff \\x1b[31m \u{e9} <a>\"");
    }

    #[test]
    fn an_address_has_neither_blanks_nor_brackets_of_its_own() {
        let text = format!("to=<{}>", EscapedWord(b"\"x> queue_id=forged <\xff\"@\xc3\xa9.test"));
        assert_eq!(text, "to=<\\\"x\\x3e\\x20queue_id=forged\\x20\\x3c\\xff\\\"@\u{e9}.test>");
    }

    #[test]
    fn without_a_free_buffer_lines_are_counted_and_the_loss_is_said_later() {
        static WOKEN: AtomicUsize = AtomicUsize::new(0);
        let channel = MailLogChannel::new(Box::new(|| {
            WOKEN.fetch_add(1, Ordering::Relaxed);
        }));
        let (log, clock) = (MailLog::new(channel.clone()), Clock::default());
        for _ in 0..BUFFERS {
            log.line(&clock, format_args!("x"));
            assert!(log.pass_on_all());
        }
        assert_eq!(WOKEN.load(Ordering::Relaxed), BUFFERS);
        assert!(!log.has_room());
        log.line(&clock, format_args!("dropped"));
        log.line(&clock, format_args!("dropped"));
        channel.recycle(channel.take().unwrap());
        log.line(&clock, format_args!("kept"));
        assert!(log.pass_on_all());
        let last = std::iter::from_fn(|| channel.take()).last().unwrap();
        let last = String::from_utf8(last).unwrap();
        assert!(last.contains(" event=log lost=2\n") && last.ends_with(" kept\n"), "{last}");
        assert_eq!(log.lost_total(), 2);
    }

    /// The last buffer went the way of the others after 100 ms, and a message that MAIL had found room for got no line.
    #[test]
    fn what_has_begun_has_room_in_the_last_buffer() {
        let channel = MailLogChannel::new(Box::new(|| {}));
        let (log, clock) = (MailLog::new(channel.clone()), Clock::default());
        for _ in 1..BUFFERS {
            log.line(&clock, format_args!("x"));
            assert!(log.pass_on());
        }
        log.line(&clock, format_args!("x"));
        assert!(!log.pass_on() && log.is_waiting() && log.has_room());
        let line = "y".repeat(1000);
        let begun = (0..).take_while(|_| log.has_room()).map(|_| log.line(&clock, format_args!("{line}"))).count();
        assert!((1..=LAST_BUFFER_BYTES / 1000).contains(&begun), "{begun}");
        for _ in 0..2 * begun {
            log.line(&clock, format_args!("{line}"));
            assert!(!log.pass_on());
        }
        assert_eq!(log.lost_total(), 0);
        channel.recycle(channel.take().unwrap());
        assert!(log.has_room() && log.pass_on());
    }
}
