//! The SMTP or LMTP client of the load: a state machine without socket or clock. Bytes and `now` in, bytes out.
//!
//! With PIPELINING an envelope and DATA leave in one send (RFC 2920), and the next envelope with the content before it: RFC 2920 3.1
//! lets content be the first part of a group. So a message costs one send where the server keeps up. What was sent ahead is timed from the
//! last reply to the message before it: until then the server could not have turned to it.
//! Read [`Client::receive`] first; [`Host`] is what the machine asks of its driver.

mod flight;
mod out_of_order;

use std::{collections::VecDeque, time::Instant};

use crate::{
    phase::Phase,
    source::{
        host::{ClientError, Flow, Host, Outcome, Script, Stage},
        outbox::Outbox,
        reply::{closing, mail_max, parse_reply, shown},
        transaction::{Asked, Transaction},
    },
};

/// Octets of a reply line; RFC 5321 4.5.3.1.5 allows 512.
const REPLY_LINE_BYTES_MAX: usize = 4096;

/// One session.
#[derive(Debug)]
pub struct Client {
    asked: VecDeque<(Asked, Instant)>,
    /// The one the next replies are about, and, sent ahead, the one after it.
    open: VecDeque<Transaction>,
    partial: Vec<u8>,
    greeted: bool,
    pipelining: bool,
    chunking: bool,
    eight_bit: bool,
    size: bool,
    smtputf8: bool,
    /// The content that was put into the outbox last has left it, and not the hands of its driver.
    content_waits: bool,
    left: Option<u32>,
    replies: u64,
    begun: bool,
    delivered: bool,
}

impl Client {
    /// A session whose connection began at `now`.
    pub fn new(script: &Script, now: Instant) -> Client {
        Client {
            asked: VecDeque::from([(Asked::Banner, now)]),
            open: VecDeque::new(),
            partial: Vec::new(),
            greeted: false,
            pipelining: false,
            chunking: false,
            eight_bit: false,
            size: false,
            smtputf8: false,
            content_waits: false,
            left: script.per_connection,
            replies: 0,
            begun: false,
            delivered: false,
        }
    }

    /// Could a message begin at once?
    pub fn rests(&self) -> bool {
        self.greeted && self.asked.is_empty() && self.open.is_empty() && self.left != Some(0)
    }

    /// Has the server answered banner and EHLO?
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Has a message of it been begun?
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Has it waited for its banner since it was connected?
    pub fn awaits_banner(&self) -> bool {
        matches!(self.asked.front(), Some((Asked::Banner, _)))
    }

    /// The reply that is waited for, in words.
    pub fn awaited(&self) -> &'static str {
        self.asked.front().map_or("nothing", |(asked, _)| asked.reply_name())
    }

    /// Replies that were read to their last line.
    pub fn replies(&self) -> u64 {
        self.replies
    }

    /// Has a message of it been acknowledged?
    pub fn has_delivered(&self) -> bool {
        self.delivered
    }

    /// Has it sent all it may, and stays?
    pub fn lingers(&self) -> bool {
        self.greeted && self.left == Some(0) && self.asked.is_empty() && self.open.is_empty()
    }

    /// Begins a message where the session rests and there is one. Tells whether it did.
    pub fn begin(&mut self, script: &Script, now: Instant, host: &mut impl Host, out: &mut Outbox) -> bool {
        if !self.rests() {
            return false;
        }
        let Some(job) = host.take(now) else { return false };
        self.envelope(script, job, now, host, out);
        true
    }

    /// Says QUIT where the session rests.
    pub fn quit(&mut self, now: Instant, out: &mut Outbox) {
        if self.greeted && self.asked.is_empty() {
            out.bytes().extend_from_slice(b"QUIT\r\n");
            self.asked.push_back((Asked::Quit, now));
        }
    }

    /// The content that was put into the outbox last has left at `now`, later than it was put there.
    pub fn content_left(&mut self, now: Instant) {
        if let Some((_, since)) = self.asked.iter_mut().rev().find(|(asked, _)| *asked == Asked::Dot) {
            *since = now;
        }
    }

    /// The end of the content that was put into the outbox last has not left, and will not: the server cannot have taken the message.
    pub fn content_stays(&mut self) {
        if let Some(transaction) = self.open.back_mut() {
            transaction.sent = None;
        }
    }

    /// Is a part of the content that was taken out of the outbox last still here, or was when something came that was not read yet? Told before
    /// [`Client::receive`]: a promise to have it is none then.
    pub fn content_waits(&mut self, waits: bool) {
        self.content_waits = waits;
    }

    /// Can the next reply only be one to a content?
    pub fn awaits_content_reply(&self) -> bool {
        matches!(self.asked.front(), Some((Asked::Dot, _)))
    }

    /// What was put into the outbox at `put` or later has left at `now`: what it asks is timed from then.
    pub fn left(&mut self, put: Instant, now: Instant) {
        self.asked.iter_mut().filter(|(_, since)| *since >= put).for_each(|(_, since)| *since = now);
    }

    /// Reads replies and puts what follows from them into the outbox.
    ///
    /// # Errors
    /// The session cannot go on: close the connection. What was open has been settled.
    pub fn receive(
        &mut self,
        script: &Script,
        bytes: &[u8],
        now: Instant,
        host: &mut impl Host,
        out: &mut Outbox,
    ) -> Result<Flow, ClientError> {
        let outcome = self.read_lines(script, bytes, now, host, out);
        match outcome {
            Ok(Flow::Go) => {}
            Ok(Flow::GiveUp) => self.end(now, host, |_| Outcome::Aborted),
            _ => self.broke(now, host),
        }
        outcome
    }

    /// The connection has ended or is given up: settles what is open.
    pub fn broke(&mut self, now: Instant, host: &mut impl Host) {
        self.end(now, host, |transaction| if transaction.sent.is_some() { Outcome::Unknown } else { Outcome::Unsent });
    }

    fn end(&mut self, now: Instant, host: &mut impl Host, outcome: fn(&Transaction) -> Outcome) {
        for transaction in self.open.drain(..) {
            host.settle(transaction.ended(b""), taken(&transaction).unwrap_or_else(|| outcome(&transaction)), now);
        }
        self.asked.clear();
    }

    fn read_lines(
        &mut self,
        script: &Script,
        bytes: &[u8],
        now: Instant,
        host: &mut impl Host,
        out: &mut Outbox,
    ) -> Result<Flow, ClientError> {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, behind) = rest.split_at(end + 1);
            rest = behind;
            let flow = if self.partial.is_empty() {
                self.reply_line(script, line, now, host, out)?
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                let flow = self.reply_line(script, &whole, now, host, out)?;
                whole.clear();
                self.partial = whole;
                flow
            };
            if flow != Flow::Go {
                return Ok(flow);
            }
        }
        self.partial.extend_from_slice(rest);
        if self.partial.len() > REPLY_LINE_BYTES_MAX {
            return Err(ClientError::NotAReply(shown(&self.partial)));
        }
        Ok(Flow::Go)
    }

    fn reply_line(
        &mut self,
        script: &Script,
        line: &[u8],
        now: Instant,
        host: &mut impl Host,
        out: &mut Outbox,
    ) -> Result<Flow, ClientError> {
        let (code, goes_on) = parse_reply(line).ok_or_else(|| ClientError::NotAReply(shown(line)))?;
        let Some(&(asked, since)) = self.asked.front() else {
            return Err(match code {
                421 => closing(Stage::Dot, code, line),
                _ => ClientError::Unasked(shown(line)),
            });
        };
        if asked == Asked::Hello && code == 250 {
            let word = line[4..].trim_ascii_end();
            self.pipelining |= script.pipelining && word.eq_ignore_ascii_case(b"PIPELINING");
            self.chunking |= script.chunking && word.eq_ignore_ascii_case(b"CHUNKING");
            self.eight_bit |= word.eq_ignore_ascii_case(b"8BITMIME");
            self.size |= word.get(..4).is_some_and(|name| name.eq_ignore_ascii_case(b"SIZE")) && matches!(word.get(4), None | Some(b' '));
            self.smtputf8 |= word.eq_ignore_ascii_case(b"SMTPUTF8");
            if let Some(most) = mail_max(word) {
                // RFC 9422 4.1: whoever goes on anyway is answered 421.
                self.left = Some(self.left.map_or(most, |left| left.min(most)));
            }
        }
        if goes_on {
            return Ok(Flow::Go);
        }
        self.asked.pop_front();
        self.replies += 1;
        if code == 421 {
            // RFC 5321 4.2.2: the channel closes, whatever this was the answer to.
            if let Some(transaction) = self.open.pop_front() {
                let refused = Outcome::Refused { stage: asked.stage(), code };
                host.settle(transaction.ended(line), taken(&transaction).unwrap_or(refused), now);
            }
            return Err(closing(asked.stage(), code, line));
        }
        self.answered(script, (asked, since), code, line, now, host, out)
    }

    #[expect(clippy::too_many_arguments, reason = "one call, split from `reply_line` for its length")]
    fn answered(
        &mut self,
        script: &Script,
        (asked, since): (Asked, Instant),
        code: u16,
        line: &[u8],
        now: Instant,
        host: &mut impl Host,
        out: &mut Outbox,
    ) -> Result<Flow, ClientError> {
        let good = code / 100 == 2;
        // RFC 5321 4.2.1: 3yz asks for more, and only DATA has more to come; 2yz to DATA is the answer to something else.
        let is_in_step = match asked {
            Asked::Banner | Asked::Hello | Asked::Quit => true,
            Asked::Data => !good,
            Asked::Mail | Asked::Rcpt | Asked::Dot | Asked::LoneDot | Asked::Rset => code / 100 != 3,
        };
        if !is_in_step {
            return Err(self.out_of_step(asked, code, line, now, host));
        }
        match asked {
            Asked::Banner => {
                if !good {
                    return Err(closing(Stage::Banner, code, line));
                }
                host.observe(Phase::Banner, since, now);
                if host.gives_up(Stage::Banner) {
                    return Ok(Flow::GiveUp);
                }
                out.bytes().extend_from_slice(&script.hello);
                self.asked.push_back((Asked::Hello, now));
            }
            Asked::Hello => {
                host.observe(Phase::Ehlo, since, now);
                if !good {
                    return Err(closing(Stage::Hello, code, line));
                }
                if script.needs_smtputf8 && !self.smtputf8 {
                    return Err(ClientError::NoSmtputf8);
                }
                if host.gives_up(Stage::Hello) {
                    return Ok(Flow::GiveUp);
                }
                self.greeted();
                self.begin(script, now, host, out);
            }
            Asked::Mail => {
                host.observe(Phase::Mail, since, now);
                let transaction = self.open.front_mut().expect("MAIL opened it");
                transaction.mail_taken = good;
                if !good {
                    transaction.refuse(Stage::Mail, code, line);
                }
                if transaction.ends_at == Some(Stage::Mail) {
                    return Ok(Flow::GiveUp);
                }
                if !self.pipelining {
                    if good {
                        self.next_recipient(now, host, out);
                    } else {
                        self.refused(script, line, now, host, out);
                    }
                }
            }
            Asked::Rcpt => {
                host.observe(Phase::Rcpt, since, now);
                let transaction = self.open.front_mut().expect("MAIL opened it");
                if good && !transaction.mail_taken {
                    return Err(self.out_of_order(asked, code, line, now, host));
                }
                transaction.forward_paths.answered(good);
                if good {
                    transaction.recipients_taken += 1;
                } else {
                    transaction.refuse(Stage::Rcpt, code, line);
                    // Behind a refused MAIL it is no recipient's refusal.
                    if transaction.mail_taken {
                        host.recipient_refused(code, line);
                    }
                }
                transaction.recipients_answered += 1;
                if transaction.ends_at == Some(Stage::Rcpt) && transaction.recipients_answered == transaction.recipients_asked {
                    return Ok(Flow::GiveUp);
                }
                if !self.pipelining {
                    let (taken, asked) = (transaction.recipients_taken, transaction.recipients_asked);
                    if asked < script.recipients {
                        self.next_recipient(now, host, out);
                    } else if taken == 0 {
                        self.refused(script, line, now, host, out);
                    } else if self.chunking {
                        return Ok(self.content(script, now, host, out));
                    } else {
                        self.data(now, host, out);
                    }
                }
            }
            Asked::Data => {
                host.observe(Phase::Data, since, now);
                let transaction = self.open.front_mut().expect("MAIL opened it");
                if transaction.ends_at == Some(Stage::Data) {
                    return Ok(Flow::GiveUp);
                }
                if code / 100 != 3 {
                    transaction.refuse(Stage::Data, code, line);
                    self.refused(script, line, now, host, out);
                } else if transaction.recipients_taken == 0 && script.lmtp {
                    // RFC 2033 4.2: DATA fails then, since a dot would have no reply.
                    return Err(self.out_of_order(asked, code, line, now, host));
                } else if transaction.recipients_taken == 0 {
                    // RFC 2920 3.1: a client that got 354 though all recipients were refused sends a lone dot.
                    self.ask(Asked::LoneDot, b".\r\n", now, out);
                } else {
                    return Ok(self.content(script, now, host, out));
                }
            }
            // RFC 5321 4.1.1.4: content for nobody fails.
            Asked::Dot | Asked::LoneDot if good && self.open.front().is_some_and(|transaction| transaction.recipients_taken == 0) => {
                return Err(self.out_of_order(asked, code, line, now, host));
            }
            // A refusal may come as soon as the server knows; a promise that was made before is none.
            Asked::Dot if good && (self.content_waits || out.has_content_end()) => {
                return Err(ClientError::TooEarly { reply: asked.reply_name(), code, text: shown(line.get(4..).unwrap_or_default()) });
            }
            Asked::Dot => return Ok(self.dot_answered(script, since, (code, line), now, host, out)),
            Asked::LoneDot => {
                // Whatever the reply is, the envelope is gone.
                self.open.front_mut().expect("MAIL opened it").mail_taken = false;
                self.refused(script, line, now, host, out);
            }
            Asked::Rset => {
                if self.open.is_empty() {
                    self.go_on(script, now, host, out);
                }
            }
            Asked::Quit => return Ok(Flow::Over),
        }
        Ok(Flow::Go)
    }

    /// Behind the reply to EHLO: STARTTLS (with a new EHLO) and AUTH belong here.
    fn greeted(&mut self) {
        self.greeted = true;
    }

    fn ask(&mut self, asked: Asked, command: &[u8], now: Instant, out: &mut Outbox) {
        out.bytes().extend_from_slice(command);
        self.asked.push_back((asked, now));
    }

    fn dot_answered(
        &mut self,
        script: &Script,
        since: Instant,
        (code, line): (u16, &[u8]),
        now: Instant,
        host: &mut impl Host,
        out: &mut Outbox,
    ) -> Flow {
        let transaction = self.open.front_mut().expect("content belongs to a message");
        let good = code / 100 == 2;
        if script.lmtp {
            // RFC 2033 4.2: one reply per recipient that was taken, in order. All of them are asked with one dot.
            if transaction.replies_left == 0 {
                transaction.replies_left = transaction.recipients_taken.max(1);
                transaction.forward_paths.ask_again();
            }
            transaction.replies_left -= 1;
            transaction.forward_paths.answered(good);
            transaction.delivered += u32::from(good);
            if !good {
                transaction.refuse(Stage::Dot, code, line);
                host.recipient_refused(code, line);
            }
            if transaction.replies_left > 0 {
                self.asked.push_front((Asked::Dot, since));
                return Flow::Go;
            }
        }
        host.observe(Phase::DotTo250, since, now);
        let transaction = self.open.pop_front().expect("it was just looked at");
        let accepted = if script.lmtp { transaction.delivered } else { transaction.recipients_taken };
        let outcome = if (good && !script.lmtp) || (script.lmtp && transaction.delivered > 0) {
            Outcome::Accepted { recipients: accepted }
        } else {
            // Where the server wanted the content for some recipients, the refusal of others did not decide.
            let first = transaction.refused.as_ref().filter(|_| script.lmtp || transaction.recipients_taken == 0);
            let (stage, code) = first.map_or((Stage::Dot, code), |first| (first.stage, first.code));
            Outcome::Refused { stage, code }
        };
        self.delivered |= matches!(outcome, Outcome::Accepted { .. });
        let is_first = matches!(outcome, Outcome::Refused { stage, .. } if script.lmtp || stage != Stage::Dot);
        let decided = if is_first { transaction.decided(line) } else { line };
        host.settle(transaction.ended(decided), outcome, now);
        self.turn(now, host);
        if self.open.is_empty() && self.asked.is_empty() {
            if self.chunking && !good {
                // RFC 3030 2: after a refused BDAT the envelope is there until RSET.
                self.ask(Asked::Rset, b"RSET\r\n", now, out);
            } else {
                self.go_on(script, now, host, out);
            }
        }
        Flow::Go
    }

    /// The message before has ended: the clocks of what was sent ahead begin.
    fn turn(&mut self, now: Instant, host: &mut impl Host) {
        if let Some(next) = self.open.front_mut() {
            next.began = now;
            host.has_its_turn(&mut next.job, now);
            self.asked.iter_mut().for_each(|(_, since)| *since = now);
        }
    }

    /// The message at the front was refused before its content.
    fn refused(&mut self, script: &Script, line: &[u8], now: Instant, host: &mut impl Host, out: &mut Outbox) {
        let transaction = self.open.pop_front().expect("a refusal is about a message");
        let (stage, code) = transaction.refused.as_ref().map_or((Stage::Data, 554), |first| (first.stage, first.code));
        host.settle(transaction.ended(transaction.decided(line)), Outcome::Refused { stage, code }, now);
        if transaction.mail_taken {
            // The server may still hold the envelope.
            self.ask(Asked::Rset, b"RSET\r\n", now, out);
        } else if self.asked.is_empty() {
            self.go_on(script, now, host, out);
        }
    }

    fn go_on(&mut self, script: &Script, now: Instant, host: &mut impl Host, out: &mut Outbox) {
        if self.left == Some(0) {
            if !script.linger {
                self.quit(now, out);
            }
        } else {
            self.begin(script, now, host, out);
        }
    }
}

/// LMTP: the recipients that were acknowledged before the end of the connection. Each of these replies is a promise (RFC 2033 4.2).
fn taken(transaction: &Transaction) -> Option<Outcome> {
    (transaction.delivered > 0).then_some(Outcome::Accepted { recipients: transaction.delivered })
}
