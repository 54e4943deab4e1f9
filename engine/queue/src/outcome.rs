//! What came of an attempt, and its form in the spool: absolute per recipient, so that the newest record wins (S11).
//!
//! ```text
//! version u8 = 1 · flags u8 (1 = held by command) · count u16 ·
//! count x { recipient u16 · state u8 (0 waiting, 1 delivered, 2 failed) · deferrals u8 · attempts u16 ·
//!           last_attempt u64 · next_attempt u64 (unix ms, 0 = none) · reply length u8 (at most 200) · reply }
//! ```
//! Little endian. A record names only the recipients it changes; those of a message are read oldest first.

use thiserror::Error;

/// Bytes kept of a reply at most.
pub const REPLY_BYTES_MAX: usize = 200;

/// Length of a record's head.
const HEAD_BYTES: usize = 4;

/// Length of a recipient's state without its reply.
const STATE_BYTES: usize = 23;

const VERSION: u8 = 1;
const FLAG_HELD: u8 = 1;

/// What an attempt came to for one recipient. `reply` is the peer's (or our own) last word, in one line with its code;
/// control characters are replaced and at most [`REPLY_BYTES_MAX`] bytes are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// The next hop took responsibility.
    Delivered {
        /// Its reply to the content.
        reply: &'a [u8],
    },
    /// Not now: tried again after the back-off, or failed if its lifetime is over.
    Deferred {
        /// Why.
        reply: &'a [u8],
    },
    /// Refused for good. Kept in the queue as failed, for the operator to see.
    Failed {
        /// Why.
        reply: &'a [u8],
    },
    /// Nothing was said about this recipient (the connection ended before its turn, or the transaction was full): ready again
    /// at once, counted as no attempt. After the third attempt in a row that decides nobody it is deferred.
    Untried,
}

/// The states that are persisted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Settling {
    Waiting,
    Delivered,
    Failed,
}

/// One recipient in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecipientState<'a> {
    pub(crate) recipient: u16,
    pub(crate) settling: Settling,
    pub(crate) deferrals: u8,
    pub(crate) attempts: u16,
    pub(crate) last_attempt: u64,
    pub(crate) next_attempt: u64,
    pub(crate) reply: &'a [u8],
}

/// A persisted outcome cannot be read. The message is then as good as unknown in state: the engine reports it and keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// Written by a newer version of the program.
    #[error("outcome record of version {0}, newer than this program")]
    Version(u8),
    /// Shorter or longer than its counts say.
    #[error("outcome record of a wrong length")]
    Length,
    /// A state or length that no version wrote.
    #[error("outcome record with an impossible value")]
    Value,
    /// Names a recipient that the message does not have.
    #[error("outcome record for recipient {0}, which the message does not have")]
    Recipient(u16),
}

/// Appends a record; the head's count is filled in as recipients are added.
#[derive(Debug)]
pub(crate) struct RecordWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count: u16,
}

impl<'a> RecordWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, held: bool) -> Self {
        let start = out.len();
        out.extend_from_slice(&[VERSION, if held { FLAG_HELD } else { 0 }, 0, 0]);
        Self { out, start, count: 0 }
    }

    pub(crate) fn push(&mut self, state: &RecipientState<'_>) {
        let settling = match state.settling {
            Settling::Waiting => 0,
            Settling::Delivered => 1,
            Settling::Failed => 2,
        };
        self.out.extend_from_slice(&state.recipient.to_le_bytes());
        self.out.extend_from_slice(&[settling, state.deferrals]);
        self.out.extend_from_slice(&state.attempts.to_le_bytes());
        self.out.extend_from_slice(&state.last_attempt.to_le_bytes());
        self.out.extend_from_slice(&state.next_attempt.to_le_bytes());
        assert!(state.reply.len() <= REPLY_BYTES_MAX, "replies are cut when they are kept");
        self.out.push(state.reply.len() as u8);
        self.out.extend_from_slice(state.reply);
        self.count += 1;
        self.out[self.start + 2..self.start + HEAD_BYTES].copy_from_slice(&self.count.to_le_bytes());
    }
}

/// Reads a record, calling `visit` for each recipient, and returns whether the message is held by command.
/// An error of `visit` ends the reading.
pub(crate) fn read_record<'a>(
    record: &'a [u8],
    mut visit: impl FnMut(RecipientState<'a>) -> Result<(), DecodeError>,
) -> Result<bool, DecodeError> {
    let (&[version, flags, low, high], mut rest) = record.split_first_chunk::<HEAD_BYTES>().ok_or(DecodeError::Length)?;
    if version > VERSION {
        return Err(DecodeError::Version(version));
    }
    if version == 0 || flags & !FLAG_HELD != 0 {
        return Err(DecodeError::Value);
    }
    for _ in 0..u16::from_le_bytes([low, high]) {
        let (fixed, after) = rest.split_first_chunk::<STATE_BYTES>().ok_or(DecodeError::Length)?;
        let reply_bytes = usize::from(fixed[22]);
        if reply_bytes > REPLY_BYTES_MAX {
            return Err(DecodeError::Value);
        }
        let (reply, after) = after.split_at_checked(reply_bytes).ok_or(DecodeError::Length)?;
        visit(RecipientState {
            recipient: u16::from_le_bytes([fixed[0], fixed[1]]),
            settling: match fixed[2] {
                0 => Settling::Waiting,
                1 => Settling::Delivered,
                2 => Settling::Failed,
                _ => return Err(DecodeError::Value),
            },
            deferrals: fixed[3],
            attempts: u16::from_le_bytes([fixed[4], fixed[5]]),
            last_attempt: u64::from_le_bytes(fixed[6..14].try_into().expect("eight bytes")),
            next_attempt: u64::from_le_bytes(fixed[14..22].try_into().expect("eight bytes")),
            reply,
        })?;
        rest = after;
    }
    if rest.is_empty() { Ok(flags & FLAG_HELD != 0) } else { Err(DecodeError::Length) }
}

/// Copies `reply` into `out` as one printable line of at most [`REPLY_BYTES_MAX`] bytes and returns its length.
/// Control characters become spaces, what is not UTF-8 a question mark; a character is never cut in the middle.
pub(crate) fn sanitise(reply: &[u8], out: &mut [u8; REPLY_BYTES_MAX]) -> usize {
    let mut length = 0;
    for chunk in reply[..reply.len().min(2 * REPLY_BYTES_MAX)].utf8_chunks() {
        for character in chunk.valid().chars() {
            let character = if character.is_control() { ' ' } else { character };
            if length + character.len_utf8() > REPLY_BYTES_MAX {
                return length;
            }
            length += character.encode_utf8(&mut out[length..]).len();
        }
        if !chunk.invalid().is_empty() && length < REPLY_BYTES_MAX {
            out[length] = b'?';
            length += 1;
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: RecipientState<'_> = RecipientState {
        recipient: 513,
        settling: Settling::Waiting,
        deferrals: 3,
        attempts: 4,
        last_attempt: 1_790_000_000_000,
        next_attempt: 1_790_000_300_000,
        reply: b"450 4.2.0 later",
    };

    fn record() -> Vec<u8> {
        let mut out = b"before".to_vec();
        let mut writer = RecordWriter::new(&mut out, true);
        writer.push(&STATE);
        writer.push(&RecipientState { recipient: 0, settling: Settling::Failed, reply: b"", ..STATE });
        out.split_off(6)
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let record = record();
        let mut seen = Vec::new();
        let held = read_record(&record, |state| {
            seen.push(state);
            Ok(())
        });
        assert_eq!(held, Ok(true));
        assert_eq!(seen, [STATE, RecipientState { recipient: 0, settling: Settling::Failed, reply: b"", ..STATE }]);
    }

    #[test]
    fn the_bytes_of_version_1_stay_readable() {
        let record = b"\x01\x00\x01\x00\x02\x01\x00\x01\x02\x00\x08\x07\x06\x05\x04\x03\x02\x01\x09\x00\x00\x00\x00\x00\x00\x00\x02ok";
        let held = read_record(record, |state| {
            assert_eq!((state.recipient, state.settling, state.deferrals, state.attempts), (258, Settling::Waiting, 1, 2));
            assert_eq!((state.last_attempt, state.next_attempt, state.reply), (0x0102_0304_0506_0708, 9, &b"ok"[..]));
            Ok(())
        });
        assert_eq!(held, Ok(false));
    }

    #[test]
    fn damaged_and_newer_records_are_errors() {
        let good = record();
        for cut in 0..good.len() {
            assert_eq!(read_record(&good[..cut], |_| Ok(())), Err(DecodeError::Length), "{cut}");
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(read_record(&long, |_| Ok(())), Err(DecodeError::Length));
        for (place, value, error) in [
            (0, 2, DecodeError::Version(2)),
            (0, 0, DecodeError::Value),
            (1, 2, DecodeError::Value),
            (6, 3, DecodeError::Value),
            (26, 201, DecodeError::Value),
        ] {
            let mut bad = good.clone();
            bad[place] = value;
            assert_eq!(read_record(&bad, |_| Ok(())), Err(error), "{place}");
        }
    }

    #[test]
    fn kept_replies_are_one_bounded_printable_line() {
        let mut out = [0; REPLY_BYTES_MAX];
        let length = sanitise(b"550 no\r\n\x00\x1b[31m \xFFx", &mut out);
        assert_eq!(&out[..length], b"550 no    [31m ?x");
        let umlauts = "ü".repeat(150);
        let length = sanitise(format!("x{umlauts}").as_bytes(), &mut out);
        assert_eq!(length, 199);
        assert!(std::str::from_utf8(&out[..length]).is_ok());
    }
}
