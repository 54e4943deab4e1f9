//! When a destination says "too much": which replies mean it, and how long it is then left alone.
//!
//! A throttled attempt is one that delivered nothing and got such a reply. As many of them in a row as attempts were open at
//! the first (a throttled cohort) pause the destination; the pause doubles with each cohort until something is delivered.
//! One such reply among deliveries only costs a place of the window, and so does each policy that may be about one sender alone.

use crate::destination_id::DestinationId;
use crate::hosts::PutOffBy;
use crate::retry::{Jitter, back_off_ms};

/// Spread of pauses to both sides.
const JITTER_PERCENT: u8 = 20;

/// What a transient reply asks for, beside saying that this message is not taken now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// It is about the service: nothing is sent for a while.
    Pause,
    /// A policy, which may be about this sender, recipient or message alone: fewer attempts at a time, and other mail goes on.
    Fewer,
}

/// What a transient reply says about the destination rather than about the message. `reply` is one line with its code.
///
/// RFC 5321 3.8 and 4.2.1: 421 is about the service. RFC 3463: X.3.2 system not accepting messages, X.4.5 mail system
/// congestion, X.7.x policy, which is where rate limits are told (`4.7.0`, `4.7.28`) as well as a sender that is not liked: it pauses
/// nobody unless it speaks of how much comes. What speaks of grey-listing is about one
/// sender and recipient: others at the destination need not wait for it. `452 4.5.3` limits a transaction, not the destination.
pub(crate) fn asks(reply: &[u8]) -> Option<Asks> {
    let (code, text) = reply.split_at_checked(3)?;
    if code[0] != b'4' || speaks_of_greylisting(text) {
        return None;
    }
    match enhanced(text) {
        Some((3, 2) | (4, 5)) => Some(Asks::Pause),
        Some((7, _)) if code == b"421" || speaks_of_load(text) => Some(Asks::Pause),
        Some((7, _)) => Some(Asks::Fewer),
        // 4.4.1 and 4.4.2 are about the line, and also what we say ourselves when it breaks.
        Some((4, _)) => None,
        _ => (code == b"421").then_some(Asks::Pause),
    }
}

/// Does a reply in place of a greeting (or to EHLO) mean that the host has enough connections? Whatever else is in a 421 there, it is about
/// the service (RFC 5321 4.2.1), and the host is alive.
pub fn asks_for_fewer_connections(reply: &[u8]) -> bool {
    reply.starts_with(b"421") || asks(reply).is_some()
}

/// Does a reply to a message ask for less mail?
pub fn asks_for_less(reply: &[u8]) -> bool {
    asks(reply) == Some(Asks::Pause)
}

/// Whose word is it that put a message off? RFC 3463: X.3 is about the mail system, X.4 the network and X.5 the protocol, as it is at the
/// address that was connected to; the end of a connection, in our own words, is X.4.2. A mailbox, a policy, a service that asks for less and
/// what is not said that plainly are the host's, whatever its address. So is X.5.3, which counts recipients.
pub fn put_off_by(reply: &[u8]) -> PutOffBy {
    match reply.get(3..).and_then(enhanced) {
        Some((3 | 4, _) | (5, 0..=2 | 4..)) if asks(reply).is_none() => PutOffBy::Address,
        _ => PutOffBy::Host,
    }
}

/// Is a refusal about the connection that it was said on, so that another one may be used at once?
pub(crate) fn speaks_of_connection(reply: &[u8]) -> bool {
    let has = |word: &[u8]| reply.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    has(b"this connection") || has(b"one connection") || has(b"per connection") || has(b"session")
}

/// Does a transient reply to a message say that its connection has had enough messages? Then that ends, and a new one may take the message at
/// once.
pub fn has_enough_of_connection(reply: &[u8]) -> bool {
    let Some((code, text)) = reply.split_at_checked(3) else { return false };
    let outside = outside_addresses(text);
    let speaks_of_limit = || ["limit", "maximum", "exceed"].iter().any(|word| outside.contains(word)) || speaks_of_load(text);
    code[0] == b'4' && speaks_of_connection(outside.as_bytes()) && speaks_of_limit()
}

/// Where a destination asked for less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Said {
    /// In answer to a message that is deferred by it.
    OfMail,
    /// On a connection that had served mail; the message goes over another. What bounds the messages of a connection says the same, and then
    /// takes the next one, so that one such word says nothing.
    OnUsed,
}

/// Does it say plainly that too much comes, as rate limits do? What stands in angle brackets is an address, which a sender chose.
fn speaks_of_load(text: &[u8]) -> bool {
    // The last two are of `451 4.7.500 Server busy`.
    const PAIRS: [[&str; 2]; 8] = [
        ["too", "many"],
        ["too", "much"],
        ["too", "fast"],
        ["too", "quickly"],
        ["too", "often"],
        ["slow", "down"],
        ["server", "busy"],
        ["service", "busy"],
    ];
    // `rate-limited`, `ratelimit`, `throttling`, `concurrency`; neither `rated` nor `connection`.
    const BEGINNINGS: [&str; 4] = ["ratelimit", "throttl", "concurren", "connections"];
    let outside = outside_addresses(text);
    let words: Vec<_> = outside.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(2).any(|pair| PAIRS.iter().any(|known| pair == known))
        || words.iter().any(|&word| word == "rate" || BEGINNINGS.iter().any(|beginning| word.starts_with(beginning)))
}

/// A text in lower case, without what stands in angle brackets.
fn outside_addresses(text: &[u8]) -> String {
    let mut depth = 0_u32;
    let mut outside = String::new();
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => outside.push(character.to_ascii_lowercase()),
            _ => {}
        }
    }
    outside
}

fn speaks_of_greylisting(text: &[u8]) -> bool {
    text.windows(4).any(|word| word.eq_ignore_ascii_case(b"grey") || word.eq_ignore_ascii_case(b"gray"))
}

/// Subject and detail of the enhanced code at the start of a reply's text.
fn enhanced(text: &[u8]) -> Option<(u16, u16)> {
    let text = text.strip_prefix(b" ").or_else(|| text.strip_prefix(b"-"))?;
    let end = text.iter().position(|b| !b.is_ascii_digit() && *b != b'.').unwrap_or(text.len());
    let mut parts = std::str::from_utf8(&text[..end]).ok()?.split('.');
    let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
    (class == "4").then(|| Some((subject.parse().ok()?, detail.parse().ok()?)))?
}

/// A pause that a destination asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Throttle {
    /// Unix milliseconds; 0 when it does not pause.
    until: u64,
    /// Pauses since something was delivered.
    times: u32,
    in_a_row: u32,
    cohort: u32,
}

impl Throttle {
    /// The end of the pause, while it lasts.
    pub(crate) fn until(self, now: u64) -> Option<u64> {
        (now < self.until).then_some(self.until)
    }

    /// It paused, and nothing was delivered since.
    pub(crate) fn has_paused(self) -> bool {
        self.times > 0
    }

    /// It has not asked for less since something was delivered.
    pub(crate) fn is_quiet(self) -> bool {
        self.until == 0 && self.in_a_row == 0
    }

    /// An attempt was throttled while `open` of them were under way. True if the destination pauses from now on.
    pub(crate) fn throttled(&mut self, open: u32, first_ms: u64, max_ms: u64, now: u64, jitter: &mut Jitter) -> bool {
        if now < self.until {
            return false; // A straggler of the cohort that already counted.
        }
        if self.in_a_row == 0 {
            self.cohort = open.max(1);
        }
        self.in_a_row += 1;
        if self.in_a_row < self.cohort {
            return false;
        }
        self.in_a_row = 0;
        self.times = self.times.saturating_add(1);
        self.until = now + back_off_ms(first_ms, max_ms, self.times, JITTER_PERCENT, jitter);
        true
    }

    /// Something was delivered: it takes mail. A pause that it asked for lasts all the same.
    pub(crate) fn delivered(&mut self, now: u64) {
        self.in_a_row = 0;
        if now >= self.until {
            (self.until, self.times) = (0, 0);
        }
    }

    /// An operator wants it tried now.
    pub(crate) fn end(&mut self) {
        self.until = 0;
    }
}

/// A pause of a destination that began, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Throttled {
    /// Which.
    pub destination: DestinationId,
    /// Its end, unix milliseconds.
    pub until: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_ask_for_less_are_told_from_those_about_a_message() {
        for reply in [
            "421 too many connections",
            "421 4.7.0 Try again later",
            "421-4.7.28 Our system has detected an unusual rate",
            "451 4.7.1 too many messages from your address",
            "450 4.7.1 slow down",
            "450 4.7.1 Error: too much mail from 192.0.2.7",
            "451 4.7.1 Ratelimit \"to_ip\" exceeded",
            "451 4.7.500 Server busy. Please try again later from [192.0.2.7]",
            "451 4.7.650 The mail server [192.0.2.7] has been temporarily rate limited due to IP reputation",
            "451 4.7.652 The mail server [192.0.2.7] has exceeded the maximum number of connections",
            "452 4.3.2 not accepting network messages",
            "451 4.4.5 congestion",
            "421",
        ] {
            assert_eq!(asks(reply.as_bytes()), Some(Asks::Pause), "{reply}");
        }
        // Of one sender, recipient or message, for all that is known.
        for reply in [
            "451 4.7.1 Try again later",
            "450 4.7.1 sender temporarily blocked",
            "450 4.7.1 <too many@x.test>: Sender address rejected: Access denied",
            "450 4.7.25 Client host rejected: cannot find your hostname",
            "451 4.7.0 temporarily deferred, moderated",
        ] {
            assert_eq!(asks(reply.as_bytes()), Some(Asks::Fewer), "{reply}");
        }
        for reply in [
            "450 4.7.1 <a@b.test>: Recipient address rejected: Greylisted, see http://x.test",
            "451 4.7.1 graylisting in action",
            "450 4.2.1 mailbox busy",
            "452 4.2.2 over quota",
            "452 4.5.3 too many recipients",
            "451 local error",
            "421 4.4.2 connection to the next hop lost",
            "550 5.7.1 no",
            "250 4.7.0 odd",
            "42",
            "",
        ] {
            assert_eq!(asks(reply.as_bytes()), None, "{reply}");
        }
    }

    #[test]
    fn what_is_of_one_machine_is_told_from_what_is_of_the_host() {
        for reply in [
            "421 4.4.2 connection closed by the next hop",
            "452 4.3.1 disk full",
            "451 4.3.0 local error",
            "451 4.5.0 the next hop broke the protocol",
            // What it said where that makes no sense asks for nothing.
            "451 4.5.0 the next hop broke the protocol, in answer to MAIL: 354 4.7.0 too many connections",
        ] {
            assert_eq!(put_off_by(reply.as_bytes()), PutOffBy::Address, "{reply}");
        }
        for reply in [
            "450 4.2.1 mailbox busy",
            "450 4.7.1 Greylisted",
            "452 4.3.2 busy",
            "421 4.7.0 slow down",
            "451 4.4.5 congestion",
            "452 4.5.3 too many recipients",
            "451 local error",
            "421",
            "",
        ] {
            assert_eq!(put_off_by(reply.as_bytes()), PutOffBy::Host, "{reply}");
        }
    }

    #[test]
    fn what_bounds_a_connection_is_told_from_what_bounds_a_sender() {
        for reply in
            ["421 4.7.0 Too many messages in this session", "421 too many messages in one connection", "421 4.7.0 limit per connection"]
        {
            assert!(speaks_of_connection(reply.as_bytes()), "{reply}");
        }
        for reply in ["421 4.7.28 Our system has detected an unusual rate", "421 4.7.0 too many connections from you", "421"] {
            assert!(!speaks_of_connection(reply.as_bytes()), "{reply}");
        }
    }

    #[test]
    fn a_connection_that_has_had_enough_messages_is_told_from_a_message_that_is_not_taken() {
        for reply in [
            "450 4.7.1 too many messages on this connection",
            "452 4.5.3 Too many messages in this session",
            "451 4.7.0 limit of messages per connection exceeded",
            "421 4.7.0 Maximum number of messages per session reached",
        ] {
            assert!(has_enough_of_connection(reply.as_bytes()), "{reply}");
        }
        for reply in [
            "450 4.7.1 session encryption is required",
            "450 4.7.1 <too many@one connection.test>: Sender address rejected",
            "450 4.7.1 too many messages from you",
            "451 4.7.1 too many connections",
            "550 5.7.1 too many messages on this connection",
            "450",
            "",
        ] {
            assert!(!has_enough_of_connection(reply.as_bytes()), "{reply}");
        }
    }

    #[test]
    fn a_cohort_pauses_one_reply_does_not_and_pauses_double_until_a_delivery() {
        let (mut throttle, mut jitter) = (Throttle::default(), Jitter::new(1));
        assert!(!throttle.throttled(3, 10_000, 300_000, 1000, &mut jitter));
        throttle.delivered(1000);
        assert!(throttle.is_quiet());
        let mut now = 1000;
        for (times, expected) in [(1, 10_000), (2, 20_000), (3, 40_000), (4, 80_000), (5, 160_000), (6, 300_000), (7, 300_000)] {
            for _ in 0..2 {
                assert!(!throttle.throttled(3, 10_000, 300_000, now, &mut jitter), "{times}");
            }
            assert!(throttle.throttled(3, 10_000, 300_000, now, &mut jitter));
            let pause = throttle.until(now).unwrap() - now;
            assert!((expected * 8 / 10..=expected * 12 / 10).contains(&pause), "{times}: {pause}");
            assert!(!throttle.throttled(1, 10_000, 300_000, now, &mut jitter), "a straggler changes nothing");
            throttle.delivered(now);
            now += pause;
            assert_eq!(throttle.until(now), None);
        }
        throttle.delivered(now);
        assert!(throttle.throttled(1, 10_000, 300_000, now, &mut jitter));
        assert!(throttle.until(now).unwrap() - now <= 12_000);
    }
}
