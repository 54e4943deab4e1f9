//! Whose word it is that mail waits for: its own last one, or what was last said of its destination, by a next hop or by us.

use std::borrow::Cow;

use crate::destination::DestinationId;
use crate::kept_reply::UNNAMED;
use crate::queue::Queue;
use crate::route::Via;
use crate::view::{RecipientView, State};
use crate::wait::Wait;

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
    /// Why mail of this destination waits, if it does not wait for its turn, and who said so.
    pub(crate) fn word_of(&self, home: u32) -> Word<'_> {
        let reason = self.reason_of(home);
        // What is written here meets no next hop, though it is said in a reply's form.
        let is_local = matches!(self.acting(home).via, Via::Maildir { .. } | Via::Discard);
        if is_local { Word { text: reason, relay: None } } else { Word::of_reason(reason) }
    }
}

impl<'q> RecipientView<'q> {
    /// What its sender is told of it while it waits, and the next hop that said it (`?`: one whose name is not kept): the last word about
    /// it, else that about its destination. `None` as the next hop: it is our own word.
    pub fn word(&self, now: u64) -> (Cow<'q, str>, Option<Cow<'q, str>>) {
        if !self.reply().is_empty() {
            return (self.reply(), self.relay());
        }
        let (queue, home) = (self.queue(), self.home());
        match queue.wait_of(home, now) {
            // How mail without a route is sent is for operators to know.
            _ if self.state() == State::Held && home == DestinationId::UNROUTED.slot && !self.message.is_held() => {
                return (queue.reason_of(home).into(), None);
            }
            _ if self.state() != State::Ready => {}
            // RFC 3463 3.5: X.4.3, a directory server that failed.
            Wait::Asking | Wait::Unanswered { .. } => return (format!("451 4.4.3 {}", self.reason(now)).into(), None),
            Wait::Throttled { .. } | Wait::Crowded { .. } | Wait::BreakerOpen { .. } | Wait::Probing => {
                if let Word { text, relay: Some(relay) } = queue.word_of(home) {
                    return (text.into(), Some(relay.into()));
                }
            }
            _ => {}
        }
        (self.reason(now), None)
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
