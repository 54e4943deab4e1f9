//! The state of one outbound connection.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use super::action::{Action, CloseReason, ContentForm, Disconnect, ProtocolError, RecipientOutcome, TransactionId, Verdict};
use super::offer::Offer;
use super::own_words;
use super::rcpt::Rcpt;
use super::settings::{ClientSettings, Protocol};
use super::timeouts::Timeouts;
use super::transaction::{Slot, Stage, Transaction, verdict_of};
use crate::reply::{Reply, ReplyReader};

mod answers;

/// A command that was sent (or is in `out`) and not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Banner,
    Ehlo,
    Helo,
    Mail(usize),
    Rcpt(usize, u16),
    Data(usize),
    /// The answer to the content; with LMTP one for each accepted recipient.
    Dot(usize, Option<u16>),
    Rset,
    Quit,
}

impl Expected {
    /// What was asked, in the words of [`own_words::protocol_broken`].
    fn as_str(self) -> &'static str {
        match self {
            Self::Banner => "the connection",
            Self::Ehlo => "EHLO",
            Self::Helo => "HELO",
            Self::Mail(_) => "MAIL",
            Self::Rcpt(..) => "RCPT",
            Self::Data(_) => "DATA",
            Self::Dot(..) => "the content",
            Self::Rset => "RSET",
            Self::Quit => "QUIT",
        }
    }
}

/// One connection to a next hop, from its greeting on. Holds at most two transactions: the one whose content is sent or
/// awaited, and one chained behind it.
#[derive(Debug)]
pub struct Client {
    timeouts: Timeouts,
    pipelining: bool,
    protocol: Protocol,
    greeting: String,
    reader: ReplyReader,
    offer: Offer,
    expected: VecDeque<Expected>,
    slots: [Slot; 2],
    /// The slot of the older transaction.
    current: usize,
    transactions: u32,
    ehlo_lines: usize,
    greeted: bool,
    content_answered: bool,
    /// The answer to a content came alone: the server answers each command once.
    is_orderly: bool,
    /// RSET goes before the next MAIL.
    reset_wanted: bool,
    outcome: Option<RecipientOutcome>,
    closing: Option<CloseReason>,
    /// 421 was the answer for one recipient of content whose other answers are still to come.
    leaving: Option<Reply>,
    /// An answer to EHLO that is being read; kept apart until it is known to be 2yz.
    learning: Offer,
}

impl Client {
    /// A connection that is just up; the first thing to do is [`Client::next`], which waits for the greeting.
    pub fn new(settings: &ClientSettings) -> Self {
        assert!(!settings.helo_name.bytes().any(|b| b <= b' '), "the configuration checks the name");
        Self {
            timeouts: settings.timeouts,
            pipelining: settings.pipelining,
            protocol: settings.protocol,
            greeting: settings.helo_name.clone(),
            reader: ReplyReader::default(),
            offer: Offer::default(),
            expected: VecDeque::from([Expected::Banner]),
            slots: Default::default(),
            current: 0,
            transactions: 0,
            ehlo_lines: 0,
            greeted: false,
            content_answered: false,
            is_orderly: false,
            reset_wanted: false,
            outcome: None,
            closing: None,
            leaving: None,
            learning: Offer::default(),
        }
    }

    /// Whether [`Client::begin`] takes a transaction now: there is room for it, and the server allows it.
    pub fn can_begin(&self) -> bool {
        let room = self.slots.iter().any(|slot| slot.stage == Stage::Free);
        let allowed = self.offer.mail_max.is_none_or(|most| self.transactions < most);
        room && allowed && self.closing.is_none() && self.leaving.is_none() && !self.expected.contains(&Expected::Quit)
    }

    /// Whether a transaction that is given now, while content is sent, is sent right behind it. Not on a connection whose first content has
    /// not been answered: a server that says more than one thing to a dot would have it taken for the answer to the next MAIL.
    pub fn chains(&self) -> bool {
        self.pipelines() && self.is_orderly && self.can_begin()
    }

    /// Gives the client a transaction, to be sent as soon as that is allowed; commands that may be sent at once are appended
    /// to `out` (those that follow content, if the peer pipelines: see [`Action::SendContent`]). Each recipient gets exactly
    /// one [`Action::Outcome`], whatever happens. Panics unless [`Client::can_begin`], or without recipients.
    pub fn begin<'r, R: Into<Rcpt<'r>>>(
        &mut self,
        transaction: &Transaction<'r>,
        recipients: impl Iterator<Item = R>,
        out: &mut Vec<u8>,
    ) -> TransactionId {
        assert!(self.can_begin(), "the driver asks can_begin first");
        let id = self.transactions;
        self.transactions += 1;
        let free = if self.slots[self.current].stage == Stage::Free { self.current } else { 1 - self.current };
        self.slots[free].fill(id, transaction, recipients.map(Into::into));
        self.advance(out);
        TransactionId(id)
    }

    /// Takes what was received and says what to do next. Commands are appended to `out`, which the driver sends before it
    /// waits or sends content. `input` is advanced over what was taken; what is left is given again.
    pub fn next(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Action {
        loop {
            if let Some(outcome) = self.outcome.take() {
                return Action::Outcome(outcome);
            }
            if let Some(action) = self.tell() {
                return action;
            }
            if let Some(reason) = self.closing {
                return Action::Close(reason);
            }
            let is_unread = !input.is_empty() || self.reader.is_within_reply();
            self.is_orderly |= self.content_answered && self.expected.is_empty() && !is_unread;
            // What is here already answers nothing that is sent now.
            if !self.expected.is_empty() || !is_unread {
                self.advance(out);
            }
            if self.slots.iter().any(|slot| slot.stage == Stage::Complete) {
                continue;
            }
            if self.expected.is_empty() && input.is_empty() && !self.reader.is_within_reply() {
                return match self.slots[self.current].stage {
                    // Only with nothing unread: a reply that is here already cannot be the one to this content.
                    Stage::ContentWanted => self.want_content(out),
                    _ => Action::Ready,
                };
            }
            if input.is_empty() {
                return Action::Read;
            }
            let (learning, lines) = (&mut self.learning, &mut self.ehlo_lines);
            let is_ehlo = self.expected.front() == Some(&Expected::Ehlo);
            let read = self.reader.next(input, |line| {
                if is_ehlo && *lines > 0 {
                    learning.learn(line);
                }
                *lines += usize::from(is_ehlo);
            });
            match read {
                Ok(None) => {}
                Ok(Some(reply)) => self.answered(&reply, out),
                Err(error) => {
                    let asked = self.expected.front().copied();
                    // RFC 5321 4.2: the code decides, and it stands in front of what is too long. Nothing is sent any more.
                    if let (Some(reply), Some(Expected::Mail(_) | Expected::Rcpt(..) | Expected::Data(_) | Expected::Dot(..))) =
                        (self.reader.cut_off(error), self.expected.front())
                    {
                        self.answered(&reply, &mut Vec::new());
                    }
                    self.break_off(error.into(), asked, &error.to_string());
                }
            }
        }
    }

    fn want_content(&mut self, out: &mut Vec<u8>) -> Action {
        let current = self.current;
        let slot = &mut self.slots[current];
        slot.stage = Stage::Content;
        match self.protocol {
            Protocol::Smtp => self.expected.push_back(Expected::Dot(current, None)),
            // RFC 2033 4.2: in the order of their RCPT.
            Protocol::Lmtp => self.expected.extend(slot.accepted_recipients().map(|recipient| Expected::Dot(current, Some(recipient)))),
        }
        let form = if slot.is_binary() { ContentForm::Chunk } else { ContentForm::Dots };
        if form == ContentForm::Chunk {
            // RFC 3030 2: its length is in octets, and nothing marks its end.
            write!(out, "BDAT {} LAST\r\n", slot.size()).expect("writing into a Vec cannot fail");
        }
        Action::SendContent(slot.transaction(), form)
    }

    /// The content and its terminator are sent whole.
    pub fn content_sent(&mut self) {
        let slot = &mut self.slots[self.current];
        if slot.stage == Stage::Content {
            slot.stage = Stage::Dot;
        }
    }

    /// Content is wanted or being sent; a further transaction given now is sent right behind it.
    pub fn is_sending_content(&self) -> bool {
        self.slots[self.current].stage == Stage::Content
    }

    /// How long the next [`Action::Read`] may wait (or, while content is sent, each block of it).
    pub fn timeout(&self) -> Duration {
        if self.is_sending_content() {
            return self.timeouts.block;
        }
        match self.expected.front() {
            Some(Expected::Banner) => self.timeouts.banner,
            Some(Expected::Ehlo | Expected::Helo) => self.timeouts.ehlo,
            Some(Expected::Mail(_)) | None => self.timeouts.mail,
            Some(Expected::Rcpt(..)) => self.timeouts.rcpt,
            Some(Expected::Data(_)) => self.timeouts.data,
            Some(Expected::Dot(..)) => self.timeouts.dot,
            Some(Expected::Rset) => self.timeouts.rset,
            Some(Expected::Quit) => self.timeouts.quit,
        }
    }

    /// Replies that the peer still owes: with the same number and nothing sent, a [`Action::Read`] goes on waiting for the same one,
    /// and its time (RFC 5321 4.5.3.2) goes on too, however many octets have come.
    pub fn replies_owed(&self) -> usize {
        self.expected.len()
    }

    /// The connection is gone, or the driver gives it up. `next` then tells the outcomes that are left, and `Close`.
    pub fn disconnected(&mut self, why: Disconnect) {
        let quitting = self.expected.front() == Some(&Expected::Quit);
        self.give_up(if quitting { CloseReason::Quit } else { CloseReason::Disconnected(why) });
    }

    /// Asks with RSET whether an idle connection is alive: `next` says `Ready` again, or `Close`. Only when `Ready`.
    pub fn probe(&mut self, out: &mut Vec<u8>) {
        assert!(self.is_idle(), "a probe is for an idle connection");
        self.send_rset(out);
    }

    /// Ends the session politely. Only when `Ready`.
    pub fn quit(&mut self, out: &mut Vec<u8>) {
        assert!(self.is_idle(), "QUIT ends an idle session");
        out.extend_from_slice(b"QUIT\r\n");
        self.expected.push_back(Expected::Quit);
    }

    /// Greeted, with nothing in progress.
    pub fn is_idle(&self) -> bool {
        let free = self.slots.iter().all(|slot| slot.stage == Stage::Free);
        self.greeted && free && self.expected.is_empty() && self.closing.is_none() && self.outcome.is_none()
    }

    /// The connection is of no more use: what is told from now on was decided by its end, or by a 421.
    pub fn is_ending(&self) -> bool {
        self.closing.is_some()
    }

    /// What the server offers; all false before its answer to EHLO.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Transactions begun on this connection.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Sends whatever may be sent now.
    fn advance(&mut self, out: &mut Vec<u8>) {
        if !self.greeted || self.closing.is_some() || self.leaving.is_some() {
            return;
        }
        let current = self.current;
        match self.slots[current].stage {
            Stage::Waiting if self.expected.is_empty() => self.open(current, out),
            Stage::Envelope if self.expected.is_empty() => self.send_one(current, out),
            Stage::Content | Stage::Dot if self.pipelines() && self.is_orderly && self.slots[1 - current].stage == Stage::Waiting => {
                // RFC 2920 3.1: commands may follow the content at once. No RSET: any answer to the dot clears the server's state.
                self.open(1 - current, out);
            }
            _ => {}
        }
    }

    /// Begins to send a transaction, or decides it if this server cannot take it.
    fn open(&mut self, index: usize, out: &mut Vec<u8>) {
        let slot = &mut self.slots[index];
        if let Err(line) = slot.check(&self.offer, self.protocol == Protocol::Lmtp) {
            let reply = Reply::local(line);
            slot.decide(verdict_of(&reply), reply);
            slot.stage = Stage::Complete;
            return;
        }
        if self.offer.mail_max.is_some_and(|most| slot.id >= most) {
            slot.decide(Verdict::Untried, Reply::local(own_words::CONNECTION_USED_UP));
            slot.stage = Stage::Complete;
            return;
        }
        if self.reset_wanted {
            self.send_rset(out);
            if !self.pipelines() {
                return; // Still waiting: opened again when RSET is answered.
            }
        }
        self.slots[index].stage = Stage::Envelope;
        self.send_one(index, out);
        if self.pipelines() {
            let slot = &mut self.slots[index];
            for recipient in 0..slot.offered {
                slot.write_rcpt(recipient, &self.offer, out);
                self.expected.push_back(Expected::Rcpt(index, recipient));
            }
            slot.sent += usize::from(slot.offered);
            // A chunk waits for the answers: content for nobody is a waste, however small its command.
            if !slot.is_binary() {
                self.send_data(index, out);
            }
        }
    }

    /// Sends the next command of a transaction, each after the answer to the one before (no PIPELINING).
    fn send_one(&mut self, index: usize, out: &mut Vec<u8>) {
        let slot = &mut self.slots[index];
        let sent = slot.sent;
        if sent == 0 {
            slot.write_mail(&self.offer, out);
            self.expected.push_back(Expected::Mail(index));
        } else if slot.is_decided() {
            return self.refused(index);
        } else if sent <= usize::from(slot.offered) {
            slot.write_rcpt(sent as u16 - 1, &self.offer, out);
            self.expected.push_back(Expected::Rcpt(index, sent as u16 - 1));
        } else if slot.accepted == 0 {
            return self.refused(index);
        } else if slot.is_binary() {
            slot.stage = Stage::ContentWanted;
            return;
        } else {
            return self.send_data(index, out);
        }
        slot.sent += 1;
    }

    fn send_data(&mut self, index: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(b"DATA\r\n");
        self.expected.push_back(Expected::Data(index));
    }

    fn send_rset(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"RSET\r\n");
        self.expected.push_back(Expected::Rset);
        self.reset_wanted = false;
    }

    /// A transaction that ended before its content: the server may still be inside it.
    fn refused(&mut self, index: usize) {
        self.slots[index].stage = Stage::Complete;
        self.reset_wanted = true;
    }

    fn pipelines(&self) -> bool {
        self.pipelining && self.offer.pipelining
    }

    /// It said what makes no sense in answer to what was asked: whoever looks for the reason is told both.
    fn break_off(&mut self, error: ProtocolError, asked: Option<Expected>, said: &str) {
        let reply = own_words::protocol_broken(asked.map_or("nothing", Expected::as_str), said);
        self.end(CloseReason::Protocol(error), own_words::PROTOCOL_BROKEN, reply);
    }

    /// Decides everything that is open and closes.
    fn give_up(&mut self, reason: CloseReason) {
        let why = match reason {
            CloseReason::Disconnected(Disconnect::Closed) => own_words::CLOSED,
            CloseReason::Disconnected(Disconnect::Lost) => own_words::LOST,
            CloseReason::Disconnected(Disconnect::TimedOut) => own_words::TIMED_OUT,
            CloseReason::Disconnected(Disconnect::Abandoned) => own_words::ABANDONED,
            CloseReason::Disconnected(Disconnect::Unclean) => own_words::BARE_LINE_END,
            CloseReason::Protocol(_) => own_words::PROTOCOL_BROKEN,
            CloseReason::Quit | CloseReason::Refused(_) | CloseReason::ServiceClosing(_) | CloseReason::AnsweredEarly(_) => {
                own_words::ENDED
            }
        };
        let reply = match reason {
            CloseReason::Refused(reply) | CloseReason::ServiceClosing(reply) | CloseReason::AnsweredEarly(reply) => reply,
            _ => Reply::local(why),
        };
        self.end(reason, why, reply);
    }

    /// `reply` is the word about what was answered, `why` about what was not.
    fn end(&mut self, reason: CloseReason, why: &str, reply: Reply) {
        if self.closing.is_some() {
            return;
        }
        self.closing = Some(reason);
        // Silence and nonsense are an answer of a kind. A connection that just ends is not: an idle one may end at any time.
        let spoken = matches!(reason, CloseReason::Protocol(_) | CloseReason::Disconnected(Disconnect::TimedOut));
        if let Some(&(Expected::Mail(index) | Expected::Rcpt(index, _) | Expected::Data(index) | Expected::Dot(index, _))) =
            self.expected.front()
        {
            self.slots[index].answered |= spoken;
        }
        self.expected.clear();
        // What was said to one is not said to the one behind it: that one has seen the session end. Else one word would count twice.
        let is_open = |slot: &Slot| slot.stage != Stage::Free && slot.stage != Stage::Complete;
        let is_said_to_one = self.slots.iter().any(|slot| is_open(slot) && slot.answered);
        for slot in self.slots.iter_mut().filter(|slot| is_open(slot)) {
            let verdict = match slot.stage {
                // 421 in place of the answer to content is an answer; anything else leaves open what became of it.
                Stage::Dot if slot.accepted > 0 => Verdict::Unknown,
                _ if slot.answered => Verdict::Deferred,
                _ => Verdict::Untried,
            };
            slot.decide(verdict, if verdict == Verdict::Untried && is_said_to_one { Reply::local(why) } else { reply });
            slot.stage = Stage::Complete;
        }
    }

    /// Tells outcomes of complete transactions, the older first.
    fn tell(&mut self) -> Option<Action> {
        for index in [self.current, 1 - self.current] {
            let slot = &mut self.slots[index];
            if slot.stage != Stage::Complete {
                continue;
            }
            if let Some(outcome) = slot.tell() {
                return Some(Action::Outcome(outcome));
            }
            slot.stage = Stage::Free;
            let transaction = slot.transaction();
            if index == self.current && self.slots[1 - index].stage != Stage::Free {
                self.current = 1 - index;
            }
            return Some(Action::Done(transaction));
        }
        None
    }
}
