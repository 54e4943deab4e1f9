//! Whose word it is that mail waits for: its own last one, or what was last said of its destination, by a next hop or by us.

use std::borrow::Cow;

use crate::destination_id::DestinationId;
use crate::kept_reply::UNNAMED;
use crate::queue::Queue;
use crate::route::Via;
use crate::throttling::asks_for_fewer_connections;
use crate::view::{RecipientView, State};
use crate::wait::Wait;

// What senders are told of mail that waits for a reason of ours, as RFC 3463 numbers it: what keeps it, and nothing of how this system is
// made. `RecipientView::reason` and `queue why` have the names.

// RFC 3463 3.4: X.3.2, the system does not take part for now, maintenance among the reasons.
const HELD: &str = "451 4.3.2 held by the operator of this system";
const SUSPENDED: &str = "451 4.3.2 delivery to this destination is suspended by the operator of this system";
const NOT_HERE: &str = "451 4.3.2 this system does not deliver it at present";
// RFC 3463 3.4: X.3.0, of the mail system, and none of those that have a number.
const SHORTAGE: &str = "451 4.3.0 no connection could be made for a reason of this system";
// RFC 3463 3.5: X.4.4, unable to route.
const UNROUTED: &str = "451 4.4.4 no route for this domain";
// RFC 3463 3.5: X.4.5, congestion: more mail than may go at a time.
const RATE: &str = "451 4.4.5 waits for its turn: mail goes to this destination at a limited rate";
const TURN: &str = "451 4.4.5 waits for its turn behind other mail for this destination";
const ASKED_FOR_LESS: &str = "451 4.4.5 the destination asked for less mail";
const CROWDED: &str = "451 4.4.5 the destination allows no more connections at present";
// RFC 3463 3.4: X.3.2 of the next hop, which takes no mail from the network.
const NOT_TAKING: &str = "451 4.3.2 the hosts of the destination take no mail at present";

/// What was said, and by which next hop; by none where it is our own word.
pub(crate) struct Word<'a> {
    pub(crate) text: &'a str,
    pub(crate) relay: Option<&'a str>,
}

impl<'a> Word<'a> {
    /// Of the reason that is kept about a destination: a reply, or what came in place of a greeting (`mx1.y.test[192.0.2.7]:25: 421 4.3.2
    /// full`), is the next hop's; the rest is ours.
    fn of_reason(reason: &'a str) -> Self {
        match reason.split_once(": ") {
            _ if is_reply(reason) => Self { text: reason, relay: Some(UNNAMED) },
            Some((relay, text)) if is_reply(text) && !relay.contains(' ') => Self { text, relay: Some(relay) },
            _ => Self { text: reason, relay: None },
        }
    }
}

fn is_reply(text: &str) -> bool {
    matches!(text.as_bytes(), [b'4' | b'5', second, third, rest @ ..]
        if second.is_ascii_digit() && third.is_ascii_digit() && matches!(rest.first(), None | Some(b' ')))
}

impl Queue {
    /// What the sender of mail that waits for this destination is told of why, if it does not wait for its turn, and who said so.
    ///
    /// RFC 3464 2.3.6: a diagnostic is of this recipient. What a next hop said to other mail, whose addresses may stand in it, is for operators
    /// alone, and so are words in place of a greeting, unless this recipient `was_tried`: then nothing was said to it but those.
    pub(crate) fn word_of(&self, home: u32, was_tried: bool, now: u64) -> Word<'_> {
        if self.acting(home).is_short(now) {
            return Word { text: SHORTAGE, relay: None };
        }
        let reason = self.reason_of(home);
        // What is written here meets no next hop, though it is said in a reply's form.
        let is_local = matches!(self.acting(home).via, Via::Maildir { .. } | Via::Discard);
        let own = |text| Word { text, relay: None };
        match Word::of_reason(reason) {
            _ if is_local => own(reason),
            Word { relay: Some(UNNAMED), .. } => own(ASKED_FOR_LESS),
            Word { relay: Some(_), text } if !was_tried => {
                own(if asks_for_fewer_connections(text.as_bytes()) { CROWDED } else { NOT_TAKING })
            }
            word => word,
        }
    }
}

impl<'q> RecipientView<'q> {
    /// What its sender is told of it while it waits, and the next hop that said it (`?`: one whose name is not kept): what an operator keeps
    /// it for, else the last word about it, else what is known of its destination, in our own words where a next hop said it to other mail. `None` as the next hop: it is our own word, in the form of a reply but for connections that failed.
    pub fn word(&self, now: u64) -> (Cow<'q, str>, Option<Cow<'q, str>>) {
        let own = match self.state() {
            State::Held if self.home() == DestinationId::UNROUTED.slot && !self.message.is_held() => UNROUTED,
            State::Held => HELD,
            State::Deferred | State::Ready if self.paused().is_some() => SUSPENDED,
            _ if !self.reply().is_empty() => return (self.reply(), self.relay()),
            State::Offered if self.message.envelope().size > self.queue().settings.offered_bytes_max => NOT_HERE,
            State::Offered => TURN,
            State::Ready => return self.word_of_wait(now),
            State::Deferred | State::Attempting | State::Delivered | State::Failed | State::Bounced | State::Purged => "",
        };
        (own.into(), None)
    }

    /// What its sender is told of it when its life ends: the last word about it, else what it waited for, so that mail that was never tried says why.
    pub(crate) fn last_word(&self, now: u64) -> (Cow<'q, str>, Option<Cow<'q, str>>) {
        let queue = self.queue();
        if !self.reply().is_empty() {
            return (self.reply(), self.relay());
        }
        let home = self.home();
        let waits_for_nothing = match self.state() {
            State::Deferred => self.paused().is_none(),
            State::Ready => self.paused().is_none() && queue.wait_of(home, now) == Wait::Turn,
            _ => false,
        };
        if !waits_for_nothing {
            return self.word(now);
        }
        match queue.word_of(home, self.attempts() > 0, now) {
            // What kept it is over just now, and it was behind the others.
            Word { text: "", .. } if self.attempts() == 0 && queue.destinations[home as usize].ready.len() > 1 => (TURN.into(), None),
            Word { text, relay } => (text.into(), relay.map(Cow::from)),
        }
    }

    /// Of mail that is ready, and that nothing was said about.
    fn word_of_wait(&self, now: u64) -> (Cow<'q, str>, Option<Cow<'q, str>>) {
        let (queue, home) = (self.queue(), self.home());
        let own = match queue.wait_of(home, now) {
            // RFC 3463 3.5: X.4.3, a directory server that failed.
            Wait::Asking | Wait::Unanswered { .. } => return (format!("451 4.4.3 {}", self.reason(now)).into(), None),
            Wait::Throttled { .. } => ASKED_FOR_LESS,
            Wait::Crowded { .. } => CROWDED,
            Wait::BreakerOpen { .. } | Wait::Probing => match queue.word_of(home, self.attempts() > 0, now) {
                Word { text, relay: Some(relay) } => return (text.into(), Some(relay.into())),
                // What a report makes X.4.1 of, no answer from the host: `connect to 192.0.2.7:25: refused`.
                Word { text, relay: None } => return (text.into(), None),
            },
            Wait::Held => HELD,
            Wait::Paused => SUSPENDED,
            Wait::Shortage { .. } => SHORTAGE,
            Wait::Rate { .. } | Wait::SharedRate { .. } | Wait::SharedShut { .. } => RATE,
            Wait::Window { .. } | Wait::Full { .. } | Wait::Home { .. } => TURN,
            Wait::Turn => "",
        };
        (own.into(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_the_word_of_a_next_hop() {
        for (reason, text, relay) in [
            ("421 4.3.2 going down", "421 4.3.2 going down", Some("?")),
            ("421", "421", Some("?")),
            ("mx1.y.test[192.0.2.7]:25: 554 5.7.1 go: away", "554 5.7.1 go: away", Some("mx1.y.test[192.0.2.7]:25")),
            ("[2001:db8::1]:25: 421 full", "421 full", Some("[2001:db8::1]:25")),
            ("unix:/run/lmtp.sock: 421 full", "421 full", Some("unix:/run/lmtp.sock")),
            ("mx1.y.test[192.0.2.7]:25: connection closed", "mx1.y.test[192.0.2.7]:25: connection closed", None),
            ("connect to 192.0.2.7:25: refused", "connect to 192.0.2.7:25: refused", None),
            ("MX of y.test: 421 hosts", "MX of y.test: 421 hosts", None),
            ("", "", None),
            ("4214 x", "4214 x", None),
        ] {
            let word = Word::of_reason(reason);
            assert_eq!((word.text, word.relay), (text, relay), "{reason}");
        }
    }
}
