//! What the answers of a next hop mean for its connection and the transactions on it.

use super::{Client, Expected};
use crate::client::action::{CloseReason, ProtocolError, Verdict};
use crate::client::own_words;
use crate::client::settings::Protocol;
use crate::client::transaction::{Stage, verdict_of};
use crate::reply::{Class, Reply};

impl Client {
    /// Matches a reply to the oldest command that has none.
    pub(super) fn answered(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        let Some(expected) = self.expected.pop_front() else {
            return match reply.code() {
                421 => self.give_up(CloseReason::ServiceClosing(*reply)),
                _ => self.break_off(ProtocolError::Unasked, None, reply.line()),
            };
        };
        let class = reply.class();
        match expected {
            Expected::Mail(index) | Expected::Rcpt(index, _) | Expected::Data(index) | Expected::Dot(index, _) => {
                self.slots[index].answered = true;
                self.content_answered |= matches!(expected, Expected::Dot(..));
                self.transaction_answered(expected, index, reply, out);
            }
            Expected::Banner if class == Class::Completed => {
                let verb = if self.protocol == Protocol::Lmtp { "LHLO " } else { "EHLO " };
                self.say_hello(verb, Expected::Ehlo, out);
            }
            Expected::Ehlo if class == Class::Completed => {
                self.offer = self.learning;
                self.greeted = true;
            }
            // RFC 5321 4.1.1.1: a server that does not know EHLO is greeted with HELO, and offers nothing.
            Expected::Ehlo if class == Class::Permanent && self.protocol == Protocol::Smtp => self.say_hello("HELO ", Expected::Helo, out),
            Expected::Helo if class == Class::Completed => self.greeted = true,
            Expected::Banner | Expected::Ehlo | Expected::Helo | Expected::Rset
                if class == Class::Transient || class == Class::Permanent =>
            {
                if expected != Expected::Rset || reply.code() != 421 {
                    out.extend_from_slice(b"QUIT\r\n");
                }
                self.give_up(CloseReason::Refused(*reply));
            }
            Expected::Rset if class == Class::Completed => {}
            Expected::Quit => self.give_up(CloseReason::Quit),
            Expected::Banner | Expected::Ehlo | Expected::Helo | Expected::Rset => {
                self.break_off(ProtocolError::Class, Some(expected), reply.line())
            }
        }
    }

    fn say_hello(&mut self, verb: &str, expected: Expected, out: &mut Vec<u8>) {
        out.extend_from_slice(verb.as_bytes());
        out.extend_from_slice(self.greeting.as_bytes());
        out.extend_from_slice(b"\r\n");
        self.expected.push_back(expected);
    }

    fn transaction_answered(&mut self, expected: Expected, index: usize, reply: &Reply, out: &mut Vec<u8>) {
        let slot = &mut self.slots[index];
        let class = reply.class();
        if let (421, Expected::Dot(_, Some(recipient)), Stage::Dot, 2..) = (reply.code(), expected, slot.stage, slot.accepted) {
            // RFC 2033 4.2: the answer for one recipient. Those behind it have the whole content, too, and their own answers, if any.
            self.outcome = Some(slot.delivery_answered(recipient, reply));
            self.leaving = Some(*reply);
            return;
        }
        if reply.code() == 421 {
            // RFC 5321 3.8: the service closes; transient for the transaction, whatever it answered.
            slot.decide(Verdict::Deferred, *reply);
            return self.give_up(CloseReason::ServiceClosing(*reply));
        }
        if matches!(expected, Expected::Dot(..)) && matches!(reply.code(), 220 | 221) {
            // A greeting or a farewell is no answer to content: what became of it is not known.
            return self.break_off(ProtocolError::Class, Some(expected), reply.line());
        }
        let go_on = matches!(expected, Expected::Data(_));
        if (class == Class::Intermediate) != (go_on && class != Class::Transient && class != Class::Permanent) {
            return self.break_off(ProtocolError::Class, Some(expected), reply.line());
        }
        match expected {
            Expected::Mail(_) if class != Class::Completed => slot.decide(verdict_of(reply), *reply),
            Expected::Rcpt(_, recipient) => self.outcome = slot.rcpt_answered(recipient, reply),
            Expected::Data(_) if class == Class::Intermediate && slot.accepted > 0 && !slot.is_decided() => {
                slot.stage = Stage::ContentWanted
            }
            // RFC 2033 4.2: it must be refused with 503; behind a dot no answer would come. And behind recipients that were accepted
            // although MAIL was refused, a lone dot would be an empty message for them.
            Expected::Data(_) if class == Class::Intermediate && (self.protocol == Protocol::Lmtp || slot.taken_all_the_same) => {
                self.break_off(ProtocolError::Class, Some(expected), reply.line());
            }
            Expected::Data(_) if class == Class::Intermediate => {
                // RFC 2920 3.1: all recipients were refused and the server wants content all the same: it gets none.
                out.extend_from_slice(b".\r\n");
                slot.stage = Stage::Dot;
                self.expected.push_back(Expected::Dot(index, None));
            }
            Expected::Data(_) => {
                if slot.accepted > 0 {
                    slot.decide(verdict_of(reply), *reply);
                }
                self.refused(index);
            }
            Expected::Dot(_, of) if slot.stage == Stage::Content => {
                // Before the content is sent whole: a refusal is one, but nobody can take what was not sent.
                if class == Class::Completed {
                    return self.break_off(ProtocolError::Unasked, Some(expected), reply.line());
                }
                match of {
                    // RFC 2033 4.2: this recipient's answer. The others have none, and will not get one for half a content.
                    Some(recipient) => {
                        self.outcome = Some(slot.delivery_answered(recipient, reply));
                        slot.decide(Verdict::Deferred, Reply::local(own_words::RECIPIENT_UNANSWERED));
                    }
                    None => slot.decide(verdict_of(reply), *reply),
                }
                self.give_up(CloseReason::AnsweredEarly(*reply));
            }
            Expected::Dot(_, Some(recipient)) => {
                self.outcome = Some(slot.delivery_answered(recipient, reply));
                if slot.accepted == 0 {
                    slot.stage = Stage::Complete;
                    if let Some(reply) = self.leaving {
                        self.give_up(CloseReason::ServiceClosing(reply));
                    }
                }
            }
            Expected::Dot(_, None) => {
                if slot.accepted > 0 {
                    slot.decide(verdict_of(reply), *reply);
                }
                slot.stage = Stage::Complete;
            }
            _ => {}
        }
    }
}
