//! The server side of the sink: SMTP and LMTP as a state machine without socket or clock.
//!
//! It takes what a next hop takes and no more: no VRFY, no authentication. Content goes straight to the verifier; nothing of it is
//! kept. Read [`ServerSession::receive`] first; [`Behaviour`] is what the machine asks of its driver.

use std::ops::ControlFlow;

use crate::{
    identity::push_decimal,
    ledger::{Envelope, push_address},
    sink::{
        announcement::Announcement,
        fault::FaultKind,
        path::{PathKind, are_known, are_parameters, declared_bytes, has_smtputf8, path_and_parameters},
        terminator::Terminator,
        verify::{Arrival, Verifier},
    },
    source::host::Stage,
};

/// Octets of a command line; more than any client needs.
const COMMAND_BYTES_MAX: usize = 8192;

/// Recipients of a transaction.
const RECIPIENTS_MAX: u32 = 10_000;

/// Behind a 552, to MAIL with `SIZE=` and to the end of content (RFC 1870 6).
const TOO_LARGE: &str = "5.3.4 Larger than announced";

/// Behind a path.
const NO_PARAMETERS: &str = "5.5.4 No parameters";

/// Behind a 553: RFC 6531 3.5.
const NEEDS_SMTPUTF8: &str = "5.6.7 Address needs SMTPUTF8";

/// Behind a path: RFC 5321 4.1.1.11.
const UNKNOWN_PARAMETERS: &str = "5.5.4 Parameters that were not announced";

/// The reply to a message that was taken, up to its number.
const TAKEN: &[u8] = b"250 2.0.0 Ok: taken as number ";

/// What the machine asks of its driver.
pub trait Behaviour {
    /// What goes wrong here, if anything.
    fn fault(&mut self, stage: Stage) -> Option<FaultKind>;
    /// Is this sender and recipient to come again later?
    fn is_greylisted(&mut self, reverse_path: &[u8], forward_path: &[u8]) -> bool;
    /// A message is whole, before it is answered; under LMTP for each of its recipients, of whom one is the first.
    fn arrived(&mut self, arrival: &Arrival, envelope: Envelope<'_>, is_first: bool);
    /// A message was refused, or a command answered by 4xx or 5xx.
    fn refused(&mut self, code: u16);
}

/// How the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send the replies, then read.
    Read,
    /// Send the replies, then close.
    Close,
    /// Close at once, without the replies.
    Drop,
}

#[derive(Debug)]
enum State {
    Command,
    Data(Terminator),
    /// Octets of this chunk still to come, and whether it is the last.
    Chunk {
        left: u64,
        last: bool,
        /// There is no recipient for it: its octets are swallowed, then it is refused.
        refused: bool,
    },
    /// Nothing is answered any more.
    Silent,
}

/// What has been said of who talks here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    /// No EHLO or HELO has been answered with 250: there is no mail yet.
    Owed,
    /// A HELO has: no extension is announced.
    Plain,
    /// An EHLO or LHLO has.
    Extended,
    /// The banner was a refusal: there will be none.
    TurnedAway,
}

/// One session.
#[derive(Debug)]
pub struct ServerSession {
    state: State,
    partial: Vec<u8>,
    greeting: Greeting,
    reverse_path: Option<Vec<u8>>,
    /// Its MAIL said SMTPUTF8.
    smtputf8: bool,
    recipients: Vec<u8>,
    recipients_taken: u32,
    /// A chunk has come: DATA is out of order.
    chunked: bool,
    /// Nothing of the content has come: whether something goes wrong while it does is still to be asked.
    content_begins: bool,
    verifier: Verifier,
    messages: u64,
    /// Replies that said so: under LMTP one for each recipient.
    taken: u64,
}

/// Ends the handling of what was read with this.
type Step = ControlFlow<Next>;

impl ServerSession {
    /// A new session, and its banner.
    pub fn begin(announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> (ServerSession, Next) {
        let mut session = ServerSession {
            state: State::Command,
            partial: Vec::new(),
            greeting: Greeting::Owed,
            reverse_path: None,
            smtputf8: false,
            recipients: Vec::new(),
            recipients_taken: 0,
            chunked: false,
            content_begins: false,
            verifier: Verifier::new(),
            messages: 0,
            taken: 0,
        };
        let kind = if announcement.lmtp { "LMTP" } else { "ESMTP" };
        let step = session.or_fault(Stage::Banner, behaviour, out, |_, out| {
            out.extend_from_slice(format!("220 {} {kind}\r\n", announcement.hostname).as_bytes());
        });
        if matches!(out.first(), Some(b'4' | b'5')) {
            session.greeting = Greeting::TurnedAway;
        }
        (session, step.break_value().unwrap_or(Next::Read))
    }

    /// Messages taken on this connection.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Handles what was read and appends the replies.
    pub fn receive(&mut self, bytes: &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Next {
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = match self.state {
                State::Command => self.take_line(&mut rest, announcement, behaviour, out),
                State::Data(_) => self.take_content(&mut rest, announcement, behaviour, out),
                State::Chunk { .. } => self.take_chunk(&mut rest, announcement, behaviour, out),
                State::Silent => return Next::Read,
            };
            if let ControlFlow::Break(next) = step {
                return next;
            }
        }
        Next::Read
    }

    fn take_line(&mut self, rest: &mut &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        let Some(end) = memchr::memchr(b'\n', rest) else {
            self.partial.extend_from_slice(rest);
            *rest = b"";
            if self.partial.len() > COMMAND_BYTES_MAX {
                out.extend_from_slice(b"500 5.5.2 Line too long\r\n");
                return Step::Break(Next::Close);
            }
            return Step::Continue(());
        };
        let (line, behind) = rest.split_at(end + 1);
        *rest = behind;
        if self.partial.is_empty() {
            return self.command(line.trim_ascii_end(), announcement, behaviour, out);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(line);
        let step = self.command(whole.trim_ascii_end(), announcement, behaviour, out);
        whole.clear();
        self.partial = whole;
        step
    }

    fn command(&mut self, line: &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        let (verb, argument) = line.split_at(memchr::memchr(b' ', line).unwrap_or(line.len()));
        let is = |word: &[u8]| verb.eq_ignore_ascii_case(word);
        let is_bdat = is(b"BDAT") && announcement.chunking;
        // RFC 5321 3.1: a server that refused at the banner waits for QUIT. A chunk is swallowed first, or it would be read as commands.
        if self.greeting == Greeting::TurnedAway && !is_bdat && !is(b"QUIT") {
            return refuse(503, "5.5.1 No mail is taken here", behaviour, out);
        }
        if is(b"MAIL") {
            self.mail(argument, announcement, behaviour, out)
        } else if is(b"RCPT") {
            self.rcpt(argument, announcement, behaviour, out)
        } else if is(b"DATA") {
            self.data(announcement, behaviour, out)
        } else if is_bdat {
            self.bdat(argument, announcement, behaviour, out)
        } else if is(if announcement.lmtp { b"LHLO" } else { b"EHLO" }) || (is(b"HELO") && !announcement.lmtp) {
            let extended = !is(b"HELO");
            // RFC 5321 4.1.4: one that is refused changes nothing.
            self.or_fault(Stage::Hello, behaviour, out, |session, out| {
                session.reset();
                session.greeting = if extended { Greeting::Extended } else { Greeting::Plain };
                announcement.push_hello(extended, out);
            })
        } else if is(b"RSET") {
            self.reset();
            out.extend_from_slice(b"250 2.0.0 Ok\r\n");
            Step::Continue(())
        } else if is(b"NOOP") {
            out.extend_from_slice(b"250 2.0.0 Ok\r\n");
            Step::Continue(())
        } else if is(b"QUIT") {
            out.extend_from_slice(b"221 2.0.0 Bye\r\n");
            Step::Break(Next::Close)
        } else {
            refuse(500, "5.5.2 Unknown command", behaviour, out)
        }
    }

    fn mail(&mut self, argument: &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        if !matches!(self.greeting, Greeting::Plain | Greeting::Extended) || self.reverse_path.is_some() {
            return refuse(503, "5.5.1 Out of order", behaviour, out);
        }
        let Some((path, parameters)) = path_and_parameters(argument, PathKind::Reverse, announcement.smtputf8) else {
            return refuse(501, "5.1.7 No path", behaviour, out);
        };
        if !are_parameters(parameters) {
            return refuse(501, NO_PARAMETERS, behaviour, out);
        }
        if !parameters.is_empty() && !are_known(parameters, &announcement.mail_parameters(self.greeting == Greeting::Extended)) {
            return refuse(555, UNKNOWN_PARAMETERS, behaviour, out);
        }
        let Some(declared) = declared_bytes(parameters) else { return refuse(501, "5.5.4 SIZE=OCTETS", behaviour, out) };
        if announcement.is_too_large(declared) {
            return refuse(552, TOO_LARGE, behaviour, out);
        }
        let smtputf8 = has_smtputf8(parameters);
        if !path.is_ascii() && !smtputf8 {
            return refuse(553, NEEDS_SMTPUTF8, behaviour, out);
        }
        let path = path.to_vec();
        self.or_fault(Stage::Mail, behaviour, out, |session, out| {
            (session.reverse_path, session.smtputf8) = (Some(path), smtputf8);
            out.extend_from_slice(b"250 2.1.0 Ok\r\n");
        })
    }

    fn rcpt(&mut self, argument: &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        let Some(reverse_path) = &self.reverse_path else { return refuse(503, "5.5.1 Out of order", behaviour, out) };
        let Some((path, parameters)) = path_and_parameters(argument, PathKind::Forward, announcement.smtputf8) else {
            return refuse(501, "5.1.3 No path", behaviour, out);
        };
        if !are_parameters(parameters) {
            return refuse(501, NO_PARAMETERS, behaviour, out);
        }
        // None that is announced belongs to RCPT.
        if !parameters.is_empty() {
            return refuse(555, UNKNOWN_PARAMETERS, behaviour, out);
        }
        if !path.is_ascii() && !self.smtputf8 {
            return refuse(553, NEEDS_SMTPUTF8, behaviour, out);
        }
        if self.recipients_taken >= RECIPIENTS_MAX {
            return refuse(452, "4.5.3 Too many recipients", behaviour, out);
        }
        if behaviour.is_greylisted(reverse_path, path) {
            return refuse(451, "4.7.1 Greylisted, come again", behaviour, out);
        }
        self.or_fault(Stage::Rcpt, behaviour, out, |session, out| {
            session.recipients_taken += 1;
            if !session.recipients.is_empty() {
                session.recipients.push(b',');
            }
            push_address(path, &mut session.recipients);
            out.extend_from_slice(b"250 2.1.5 Ok\r\n");
        })
    }

    fn data(&mut self, announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        if self.recipients_taken == 0 || self.chunked {
            return refuse(503, "5.5.1 Out of order", behaviour, out);
        }
        let takes_eight_bits = announcement.eight_bit;
        self.or_fault(Stage::Data, behaviour, out, |session, out| {
            session.verifier.begin(true, takes_eight_bits);
            session.content_begins = true;
            session.state = State::Data(Terminator::new());
            out.extend_from_slice(b"354 Go ahead\r\n");
        })
    }

    fn bdat(&mut self, argument: &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        let mut words = argument.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let left = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        let last = words.next();
        let (Some(left), true) = (left, last.is_none_or(|word| word.eq_ignore_ascii_case(b"LAST"))) else {
            // How many octets follow is not known: nothing behind this can be read.
            out.extend_from_slice(b"501 5.5.4 BDAT SIZE [LAST]\r\n");
            return Step::Break(Next::Close);
        };
        let refused = self.recipients_taken == 0;
        if !self.chunked {
            self.verifier.begin(false, announcement.eight_bit);
            self.content_begins = true;
            self.chunked = true;
        }
        let last = last.is_some();
        self.state = State::Chunk { left, last, refused };
        if left == 0 { self.chunk_ended(last, refused, announcement, behaviour, out) } else { Step::Continue(()) }
    }

    fn take_content(&mut self, rest: &mut &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        if self.drops_content(behaviour) {
            return Step::Break(Next::Drop);
        }
        let State::Data(terminator) = &mut self.state else { unreachable!("called in this state") };
        let verifier = &mut self.verifier;
        match terminator.feed(rest, |content| verifier.feed(content)) {
            None => {
                *rest = b"";
                Step::Continue(())
            }
            Some(consumed) => {
                *rest = &rest[consumed..];
                self.message_ended(announcement, behaviour, out)
            }
        }
    }

    /// Asked with each piece of a content, and drawn with the first: how many pieces it comes in is the network's doing.
    fn drops_content(&mut self, behaviour: &mut impl Behaviour) -> bool {
        std::mem::take(&mut self.content_begins) && behaviour.fault(Stage::Content) == Some(FaultKind::Drop)
    }

    fn take_chunk(&mut self, rest: &mut &[u8], announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        if self.drops_content(behaviour) {
            return Step::Break(Next::Drop);
        }
        let State::Chunk { left, last, refused } = &mut self.state else { unreachable!("called in this state") };
        let take = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
        let (content, behind) = rest.split_at(take);
        *rest = behind;
        *left -= take as u64;
        let (done, last, refused) = (*left == 0, *last, *refused);
        self.verifier.feed(content);
        if done { self.chunk_ended(last, refused, announcement, behaviour, out) } else { Step::Continue(()) }
    }

    fn chunk_ended(
        &mut self,
        last: bool,
        refused: bool,
        announcement: &Announcement,
        behaviour: &mut impl Behaviour,
        out: &mut Vec<u8>,
    ) -> Step {
        self.state = State::Command;
        if refused {
            self.reset();
            return refuse(503, "5.5.1 No recipients", behaviour, out);
        }
        if last {
            return self.message_ended(announcement, behaviour, out);
        }
        out.extend_from_slice(b"250 2.0.0 Ok\r\n");
        Step::Continue(())
    }

    fn message_ended(&mut self, announcement: &Announcement, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
        self.state = State::Command;
        let arrival = self.verifier.finish();
        let recipients = std::mem::take(&mut self.recipients);
        let reverse_path = self.reverse_path.take().unwrap_or_default();
        let replies = if announcement.lmtp { self.recipients_taken } else { 1 };
        let too_large = announcement.is_too_large(arrival.bytes);
        self.reset();
        if !announcement.lmtp {
            let envelope = Envelope { reverse_path: &reverse_path, recipients: &recipients };
            let step = self.or_fault_with(Stage::Dot, behaviour, out, |session, behaviour, out| {
                session.take_or_refuse(&arrival, envelope, too_large, true, behaviour, out);
            });
            self.recipients = recipients;
            self.recipients.clear();
            return step;
        }
        let taken_before = self.taken;
        // RFC 2033 4.2: a reply for each recipient, which may differ.
        for recipient in recipients.split(|&byte| byte == b',').take(replies as usize) {
            let envelope = Envelope { reverse_path: &reverse_path, recipients: recipient };
            let step = self.or_fault_with(Stage::Dot, behaviour, out, |session, behaviour, out| {
                let is_first = session.taken == taken_before;
                session.take_or_refuse(&arrival, envelope, too_large, is_first, behaviour, out);
            });
            // A reply behind one that is not given would be taken for it.
            if step.is_break() || matches!(self.state, State::Silent) {
                return step;
            }
        }
        Step::Continue(())
    }

    fn take_or_refuse(
        &mut self,
        arrival: &Arrival,
        envelope: Envelope<'_>,
        too_large: bool,
        is_first: bool,
        behaviour: &mut impl Behaviour,
        out: &mut Vec<u8>,
    ) {
        if too_large {
            let _goes_on = refuse(552, TOO_LARGE, behaviour, out);
            return;
        }
        self.messages += u64::from(is_first);
        self.taken += 1;
        behaviour.arrived(arrival, envelope, is_first);
        out.extend_from_slice(TAKEN);
        push_decimal(self.taken, out);
        out.extend_from_slice(b" here\r\n");
    }

    fn reset(&mut self) {
        self.reverse_path = None;
        self.recipients.clear();
        self.recipients_taken = 0;
        self.chunked = false;
    }

    fn or_fault<B: Behaviour>(
        &mut self,
        stage: Stage,
        behaviour: &mut B,
        out: &mut Vec<u8>,
        well: impl FnOnce(&mut ServerSession, &mut Vec<u8>),
    ) -> Step {
        self.or_fault_with(stage, behaviour, out, |session, _, out| well(session, out))
    }

    /// Does what is right, unless something goes wrong here.
    fn or_fault_with<B: Behaviour>(
        &mut self,
        stage: Stage,
        behaviour: &mut B,
        out: &mut Vec<u8>,
        well: impl FnOnce(&mut ServerSession, &mut B, &mut Vec<u8>),
    ) -> Step {
        match behaviour.fault(stage) {
            None => {
                well(self, behaviour, out);
                Step::Continue(())
            }
            Some(FaultKind::Reply(421)) => {
                let _closing_anyway = refuse(421, "4.3.2 Closing", behaviour, out);
                Step::Break(Next::Close)
            }
            Some(FaultKind::Reply(code)) => {
                let class = if code < 500 { "4.3.0 Try again" } else { "5.3.0 No" };
                refuse(code, class, behaviour, out)
            }
            Some(FaultKind::Drop) => Step::Break(Next::Drop),
            Some(FaultKind::Lose) => {
                let reply = out.len();
                well(self, behaviour, out);
                out.truncate(reply);
                Step::Break(Next::Drop)
            }
            Some(FaultKind::Close) => {
                well(self, behaviour, out);
                Step::Break(Next::Close)
            }
            Some(FaultKind::Garble) => {
                out.extend_from_slice(b"2\x00 what? \xFF\r\n");
                Step::Continue(())
            }
            Some(FaultKind::Half) => {
                let reply = out.len();
                match stage {
                    // A client that takes this for a reply loses the message, which is not taken.
                    Stage::Dot => out.extend_from_slice(TAKEN),
                    _ => well(self, behaviour, out),
                }
                out.truncate(reply + (out.len() - reply) / 2);
                Step::Break(Next::Close)
            }
            Some(FaultKind::Silence) => {
                self.state = State::Silent;
                Step::Continue(())
            }
        }
    }
}

fn refuse(code: u16, text: &str, behaviour: &mut impl Behaviour, out: &mut Vec<u8>) -> Step {
    behaviour.refused(code);
    push_decimal(u64::from(code), out);
    out.push(b' ');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
    Step::Continue(())
}
