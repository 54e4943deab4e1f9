//! What came of an attempt, and its form in the spool: absolute per recipient, so that the newest record wins (S11).
//!
//! ```text
//! version u8 = 3 · flags u8 (1 held by command, 2 expires_at follows, 4 route follows) · count u16 ·
//! [expires_at u64 (unix ms)] · [length u8 (at least 1) · pattern of the route it was re-routed to] ·
//! count x { recipient u16 · state u8 (0 waiting, 1 delivered, 2 failed, 3 bounced, 4 purged) ·
//!           told u8 (1 delay reported, 2 success to be reported, 4 as relayed, 8 route follows) ·
//!           deferrals u8 · attempts u16 · last_attempt u64 · next_attempt u64 (unix ms, 0 = none) ·
//!           reply length u8 (at most 200) · reply [· 0x1F · the next hop that gave it]
//!           [· route u8, in place of the head's: the n-th pattern of a recipient in this record, or 0 · length u8 · a further pattern] }
//! ```
//! Little endian. A record names only the recipients it changes, and the head's overrides whole; those of a message are read
//! oldest first. `failed` is on its way to a report; `bounced` is one whose report is durable, or to whom none is due.
//!
//! Version 2 has no `purged` and no routes of recipients. What can be said so is written so: a program from before reads it. Version 1
//! has no overrides, no `told` and no `bounced` either: its head ends with the count, its recipients lack `told`.

use std::ops::Range;

use thiserror::Error;

use crate::kept_reply::REPLY_BYTES_MAX;

/// Length of a record's head.
const HEAD_BYTES: usize = 4;

const VERSION: u8 = 3;
/// What is written where nothing of [`VERSION`] is said.
const VERSION_PLAIN: u8 = 2;
const FLAG_HELD: u8 = 1;
const FLAG_EXPIRES_AT: u8 = 2;
const FLAG_ROUTE: u8 = 4;
const FLAGS_OF_2: u8 = FLAG_HELD | FLAG_EXPIRES_AT | FLAG_ROUTE;
const FLAGS_KNOWN: [u8; VERSION as usize] = [FLAG_HELD, FLAGS_OF_2, FLAGS_OF_2];

/// In a recipient's `told` byte, in records only: its own route follows.
const ROUTE_FOLLOWS: u8 = 8;

/// Bit of [`RecipientState::told`]: the sender was told that this recipient is delayed.
pub(crate) const TOLD_DELAY: u8 = 1;
/// It is delivered, and its sender has still to be told so.
pub(crate) const SUCCESS_DUE: u8 = 2;
/// And told that it was relayed; only with [`SUCCESS_DUE`].
pub(crate) const SUCCESS_RELAYED: u8 = 4;
pub(crate) const TOLD_KNOWN: u8 = TOLD_DELAY | SUCCESS_DUE | SUCCESS_RELAYED;

/// What an attempt came to for one recipient. `reply` is the peer's (or our own) last word, in one line with its code;
/// control characters are replaced and at most [`REPLY_BYTES_MAX`] bytes are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// It is where it is kept, or thrown away. If its sender wants to know, it is told.
    Delivered {
        /// The reply to the content.
        reply: &'a [u8],
    },
    /// The next hop took responsibility, and knows nothing of DSN. If its sender wants to know, it is told.
    Relayed {
        /// Its reply to the content.
        reply: &'a [u8],
    },
    /// The next hop took responsibility, and knows nothing of the time that the sender gave (RFC 2852 4.1.4.2): the sender is told that
    /// nobody watches it from here on, unless it wants to hear nothing.
    Untimed {
        /// Its reply to the content.
        reply: &'a [u8],
    },
    /// The next hop took responsibility, and with it the duty to report (RFC 3461 6.2.1): it was given NOTIFY.
    PassedOn {
        /// Its reply to the content.
        reply: &'a [u8],
    },
    /// Not now: tried again after the back-off, or failed if its lifetime is over.
    Deferred {
        /// Why.
        reply: &'a [u8],
    },
    /// Refused for good.
    Failed {
        /// Why.
        reply: &'a [u8],
    },
    /// Nothing was said about this recipient (the connection ended before its turn, or the transaction was full): ready again
    /// at once, counted as no attempt. After the third attempt in a row that decides nobody it is deferred.
    Untried {
        /// What ended the connection, such as the 421 of a peer that has enough of it; may be empty.
        reply: &'a [u8],
    },
}

impl Outcome<'_> {
    pub(crate) fn is_untried(&self) -> bool {
        matches!(self, Self::Untried { .. })
    }

    /// It is where it is kept.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Delivered { .. })
    }

    pub(crate) fn is_delivery(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Relayed { .. } | Self::Untimed { .. } | Self::PassedOn { .. })
    }
}

/// The states that are persisted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Settling {
    Waiting,
    Delivered,
    Failed,
    Bounced,
    Purged,
}

/// What a record says about the message as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RecordHead<'a> {
    /// Held by command.
    pub(crate) held: bool,
    /// Lifetime set by command, in place of the one that came with the message.
    pub(crate) expires_at: Option<u64>,
    /// Pattern of the route it was re-routed to; 1 to 255 bytes.
    pub(crate) route: Option<&'a str>,
}

/// One recipient in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecipientState<'a> {
    pub(crate) recipient: u16,
    pub(crate) settling: Settling,
    pub(crate) told: u8,
    pub(crate) deferrals: u8,
    pub(crate) attempts: u16,
    pub(crate) last_attempt: u64,
    pub(crate) next_attempt: u64,
    pub(crate) reply: &'a [u8],
    /// Pattern of the route that it was re-routed to alone; 1 to 255 bytes.
    pub(crate) route: Option<&'a str>,
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
    /// Where the patterns of recipients stand in `out`.
    routes: Vec<Range<usize>>,
}

impl<'a> RecordWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, head: &RecordHead<'_>) -> Self {
        let start = out.len();
        let flags = if head.held { FLAG_HELD } else { 0 }
            | if head.expires_at.is_some() { FLAG_EXPIRES_AT } else { 0 }
            | if head.route.is_some() { FLAG_ROUTE } else { 0 };
        out.extend_from_slice(&[VERSION_PLAIN, flags, 0, 0]);
        if let Some(expires_at) = head.expires_at {
            out.extend_from_slice(&expires_at.to_le_bytes());
        }
        if let Some(route) = head.route {
            out.push(u8::try_from(route.len()).expect("the routing table limits patterns"));
            out.extend_from_slice(route.as_bytes());
        }
        Self { out, start, count: 0, routes: Vec::new() }
    }

    pub(crate) fn push(&mut self, state: &RecipientState<'_>) {
        let settling = match state.settling {
            Settling::Waiting => 0,
            Settling::Delivered => 1,
            Settling::Failed => 2,
            Settling::Bounced => 3,
            Settling::Purged => 4,
        };
        let told = state.told | if state.route.is_some() { ROUTE_FOLLOWS } else { 0 };
        if state.route.is_some() || state.settling == Settling::Purged {
            self.out[self.start] = VERSION;
        }
        self.out.extend_from_slice(&state.recipient.to_le_bytes());
        self.out.extend_from_slice(&[settling, told, state.deferrals]);
        self.out.extend_from_slice(&state.attempts.to_le_bytes());
        self.out.extend_from_slice(&state.last_attempt.to_le_bytes());
        self.out.extend_from_slice(&state.next_attempt.to_le_bytes());
        assert!(state.reply.len() <= REPLY_BYTES_MAX, "replies are cut when they are kept");
        self.out.push(state.reply.len() as u8);
        self.out.extend_from_slice(state.reply);
        if let Some(route) = state.route {
            self.push_route(route);
        }
        self.count += 1;
        self.out[self.start + 2..self.start + HEAD_BYTES].copy_from_slice(&self.count.to_le_bytes());
    }
}

impl RecordWriter<'_> {
    fn push_route(&mut self, route: &str) {
        let known = self.routes.iter().position(|range| self.out[range.clone()] == *route.as_bytes());
        if let Some(number) = known.and_then(|known| u8::try_from(known + 1).ok()) {
            return self.out.push(number);
        }
        self.out.extend_from_slice(&[0, u8::try_from(route.len()).expect("the routing table limits patterns")]);
        self.routes.push(self.out.len()..self.out.len() + route.len());
        self.out.extend_from_slice(route.as_bytes());
    }
}

/// Takes bytes off the front of a record.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    /// Bytes behind their length.
    fn counted(&mut self) -> Result<&'a [u8], DecodeError> {
        let [length] = self.take()?;
        let (bytes, rest) = self.0.split_at_checked(length.into()).ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn head(&mut self) -> Result<(u8, RecordHead<'a>, u16), DecodeError> {
        let [version, flags] = self.take()?;
        let count = self.u16()?;
        let known = match version {
            0 => return Err(DecodeError::Value),
            1..=VERSION => FLAGS_KNOWN[usize::from(version) - 1],
            newer => return Err(DecodeError::Version(newer)),
        };
        if flags & !known != 0 {
            return Err(DecodeError::Value);
        }
        let expires_at = if flags & FLAG_EXPIRES_AT != 0 { Some(self.u64()?) } else { None };
        let route = if flags & FLAG_ROUTE != 0 { Some(pattern(self.counted()?)?) } else { None };
        Ok((version, RecordHead { held: flags & FLAG_HELD != 0, expires_at, route }, count))
    }

    /// `routes` are the patterns that recipients before named.
    fn recipient(&mut self, version: u8, routes: &mut Vec<&'a str>) -> Result<RecipientState<'a>, DecodeError> {
        let recipient = self.u16()?;
        let [settling] = self.take()?;
        let settling = match (settling, version) {
            (0, _) => Settling::Waiting,
            (1, _) => Settling::Delivered,
            (2, _) => Settling::Failed,
            (3, 2..) => Settling::Bounced,
            (4, 3..) => Settling::Purged,
            _ => return Err(DecodeError::Value),
        };
        let [told] = if version == 1 { [0] } else { self.take()? };
        let [deferrals] = self.take()?;
        let (attempts, last_attempt, next_attempt) = (self.u16()?, self.u64()?, self.u64()?);
        let is_routed = version >= VERSION && told & ROUTE_FOLLOWS != 0;
        let told = if is_routed { told & !ROUTE_FOLLOWS } else { told };
        if told & !TOLD_KNOWN != 0 || self.0.first().is_some_and(|&length| usize::from(length) > REPLY_BYTES_MAX) {
            return Err(DecodeError::Value);
        }
        let reply = self.counted()?;
        let route = if is_routed { Some(self.route(routes)?) } else { None };
        Ok(RecipientState { recipient, settling, told, deferrals, attempts, last_attempt, next_attempt, reply, route })
    }
}

impl<'a> Reader<'a> {
    fn route(&mut self, routes: &mut Vec<&'a str>) -> Result<&'a str, DecodeError> {
        let [number] = self.take()?;
        if number == 0 {
            routes.push(pattern(self.counted()?)?);
        }
        let route = match usize::from(number).checked_sub(1) {
            Some(place) => routes.get(place),
            None => routes.last(),
        };
        route.copied().ok_or(DecodeError::Value)
    }
}

fn pattern(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).ok().filter(|pattern| !pattern.is_empty()).ok_or(DecodeError::Value)
}

/// Does a record say of single recipients where they were re-routed to?
pub(crate) fn names_routes(record: &[u8]) -> bool {
    record.first() == Some(&VERSION)
}

/// Reads what a record says about the message as a whole.
pub(crate) fn read_head(record: &[u8]) -> Result<RecordHead<'_>, DecodeError> {
    Reader(record).head().map(|(_, head, _)| head)
}

/// Reads a record, calling `visit` for each recipient. An error of `visit` ends the reading.
pub(crate) fn read_record<'a>(
    record: &'a [u8],
    mut visit: impl FnMut(RecipientState<'a>) -> Result<(), DecodeError>,
) -> Result<RecordHead<'a>, DecodeError> {
    let mut reader = Reader(record);
    let (version, head, count) = reader.head()?;
    let mut routes = Vec::new();
    for _ in 0..count {
        visit(reader.recipient(version, &mut routes)?)?;
    }
    if reader.0.is_empty() { Ok(head) } else { Err(DecodeError::Length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: RecipientState<'_> = RecipientState {
        recipient: 513,
        settling: Settling::Waiting,
        told: TOLD_DELAY,
        deferrals: 3,
        attempts: 4,
        last_attempt: 1_790_000_000_000,
        next_attempt: 1_790_000_300_000,
        reply: b"450 4.2.0 later",
        route: None,
    };
    const BOUNCED: RecipientState<'_> = RecipientState { recipient: 0, settling: Settling::Bounced, told: 0, reply: b"", ..STATE };
    const HEAD: RecordHead<'_> = RecordHead { held: true, expires_at: Some(1_790_000_900_000), route: Some("*.a.test") };

    fn record(head: &RecordHead<'_>) -> Vec<u8> {
        let mut out = b"before".to_vec();
        let mut writer = RecordWriter::new(&mut out, head);
        writer.push(&STATE);
        writer.push(&BOUNCED);
        out.split_off(6)
    }

    fn read(record: &[u8]) -> Result<(RecordHead<'_>, Vec<RecipientState<'_>>), DecodeError> {
        let mut seen = Vec::new();
        let head = read_record(record, |state| {
            seen.push(state);
            Ok(())
        })?;
        assert_eq!(read_head(record), Ok(head));
        Ok((head, seen))
    }

    #[test]
    fn a_record_reads_back_as_written() {
        for (expires_at, route) in [(None, None), (HEAD.expires_at, None), (None, HEAD.route), (HEAD.expires_at, HEAD.route)] {
            for held in [false, true] {
                let head = RecordHead { held, expires_at, route };
                assert_eq!(read(&record(&head)), Ok((head, vec![STATE, BOUNCED])));
            }
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_readable() {
        let record = b"\x01\x01\x01\x00\x02\x01\x02\x01\x02\x00\x08\x07\x06\x05\x04\x03\x02\x01\x09\x00\x00\x00\x00\x00\x00\x00\x02ok";
        let state = RecipientState {
            recipient: 258,
            settling: Settling::Failed,
            told: 0,
            deferrals: 1,
            attempts: 2,
            last_attempt: 0x0102_0304_0506_0708,
            next_attempt: 9,
            reply: b"ok",
            route: None,
        };
        assert_eq!(read(record), Ok((RecordHead { held: true, ..RecordHead::default() }, vec![state])));
        // What version 1 could not say was never written by it.
        for (place, value) in [(1, 2), (1, 4), (6, 3)] {
            let mut bad = *record;
            bad[place] = value;
            assert_eq!(read(&bad), Err(DecodeError::Value), "{place}");
        }
    }

    #[test]
    fn the_bytes_of_version_2_stay_readable_and_are_what_is_written_where_they_say_it_all() {
        let bytes = b"\x02\x07\x01\x00\x00\x00\x00\x00\x00\x00\x00\x10\x06a.test\
            \x02\x01\x03\x01\x05\x02\x00\x08\x07\x06\x05\x04\x03\x02\x01\x09\x00\x00\x00\x00\x00\x00\x00\x02ok";
        let head = RecordHead { held: true, expires_at: Some(1 << 60), route: Some("a.test") };
        let state = RecipientState {
            recipient: 258,
            settling: Settling::Bounced,
            told: TOLD_DELAY,
            deferrals: 5,
            attempts: 2,
            last_attempt: 0x0102_0304_0506_0708,
            next_attempt: 9,
            reply: b"ok",
            route: None,
        };
        assert_eq!(read(bytes), Ok((head, vec![state])));
        let mut written = Vec::new();
        RecordWriter::new(&mut written, &head).push(&state);
        assert_eq!(written, bytes);
        // What version 2 could not say was never written by it.
        for (place, value) in [(21, 4), (22, 8 | 1)] {
            let mut bad = *bytes;
            bad[place] = value;
            assert_eq!(read(&bad), Err(DecodeError::Value), "{place}");
        }
    }

    #[test]
    fn recipients_that_were_rerouted_name_their_routes_once() {
        let routed = |recipient, route| RecipientState { recipient, route: Some(route), ..STATE };
        let purged = RecipientState { recipient: 9, settling: Settling::Purged, ..BOUNCED };
        let states = vec![routed(1, "a.test"), routed(2, "b.test"), routed(3, "a.test"), purged, STATE, routed(4, "b.test")];
        let mut record = Vec::new();
        let mut writer = RecordWriter::new(&mut record, &RecordHead::default());
        states.iter().for_each(|state| writer.push(state));
        assert_eq!((record[0], record.windows(6).filter(|bytes| *bytes == b"a.test").count()), (3, 1));
        assert_eq!(read(&record), Ok((RecordHead::default(), states)));
        for cut in 0..record.len() {
            assert_eq!(read_record(&record[..cut], |_| Ok(())), Err(DecodeError::Length), "{cut}");
        }
        *record.last_mut().unwrap() = 3;
        assert_eq!(read_record(&record, |_| Ok(())), Err(DecodeError::Value), "the third of two");
        // More patterns than a byte can number.
        let patterns: Vec<String> = (0..600).map(|number| format!("{}.test", number % 300)).collect();
        let (mut record, mut read_back) = (Vec::new(), Vec::new());
        let mut writer = RecordWriter::new(&mut record, &RecordHead::default());
        patterns.iter().for_each(|pattern| writer.push(&routed(0, pattern)));
        read_record(&record, |state| {
            read_back.push(state.route.unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(read_back, patterns);
    }

    #[test]
    fn damaged_and_newer_records_are_errors() {
        for good in [record(&HEAD), record(&RecordHead::default())] {
            for cut in 0..good.len() {
                assert_eq!(read_record(&good[..cut], |_| Ok(())), Err(DecodeError::Length), "{cut}");
            }
            let mut long = good.clone();
            long.push(0);
            assert_eq!(read_record(&long, |_| Ok(())), Err(DecodeError::Length));
        }
        let states = 4 + 8 + 1 + 8;
        for (place, value, error) in [
            (0, 4, DecodeError::Version(4)),
            (0, 0, DecodeError::Value),
            (1, 15, DecodeError::Value),
            (12, 0, DecodeError::Value),
            (13, 0xFF, DecodeError::Value),
            (states + 2, 4, DecodeError::Value),
            (states + 3, 8, DecodeError::Value),
            (states + 23, 201, DecodeError::Value),
        ] {
            let mut bad = record(&HEAD);
            bad[place] = value;
            assert_eq!(read_record(&bad, |_| Ok(())), Err(error), "{place}");
        }
    }
}
