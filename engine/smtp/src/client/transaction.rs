//! One transaction as the client sees it: its commands, and where each recipient stands.

use std::io::Write;

use super::action::{RecipientOutcome, SuccessReport, TransactionId, Verdict};
use super::offer::Offer;
use super::own_words;
use super::rcpt::{Parameters, Rcpt};
use crate::decimal::write_number;
use crate::extension::{ByMode, DeliverBy, Return};
use crate::reply::{Class, Reply};

/// What the driver wants sent. Recipients are given beside it. What is asked for here and not offered by the server is left out,
/// or the transaction fails unsent, as the extension's RFC says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transaction<'a> {
    /// Without brackets; empty is the null reverse-path.
    pub reverse_path: &'a [u8],
    /// Bytes of the content with CRLF, before dot-stuffing (RFC 1870 3).
    pub size: u64,
    /// The content has bytes above 127, in the header or in the body.
    pub eight_bit: bool,
    /// The header has, or that of a part ([`PartHeaders`](crate::part_headers::PartHeaders)).
    pub eight_bit_header: bool,
    /// MAIL had SMTPUTF8 (RFC 6531): an address or the header may have text beyond ASCII.
    pub smtputf8: bool,
    /// The content came as BODY=BINARYMIME: it goes by BDAT or not at all, and `size` is exact (RFC 3030 3).
    pub binary: bool,
    /// RET, to a server that offers DSN (RFC 3461 5.2.1).
    pub ret: Option<Return>,
    /// ENVID as it came, xtext.
    pub envelope_id: Option<&'a str>,
    /// BY with the seconds that are left now (RFC 2852).
    pub deliver_by: Option<DeliverBy>,
    /// MT-PRIORITY (RFC 6710).
    pub priority: Option<i8>,
}

/// Where a transaction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Stage {
    /// No transaction.
    #[default]
    Free,
    /// Given by the driver, nothing sent.
    Waiting,
    /// Commands are sent and answered.
    Envelope,
    /// 354 was read; the driver is asked for the content.
    ContentWanted,
    /// The driver sends the content.
    Content,
    /// The dot is sent. Without accepted recipients it is a lone one.
    Dot,
    /// Nothing is expected any more; outcomes are told.
    Complete,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// No word about it.
    Open,
    /// Accepted at RCPT.
    Accepted,
    /// Its outcome was told.
    Told,
}

/// A transaction's memory; two of them are used in turn for a connection's life.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) stage: Stage,
    /// A reply to one of its commands was read.
    pub(super) answered: bool,
    pub(super) accepted: u32,
    /// Recipients for which RCPT is sent; the rest exceeds a limit of the server.
    pub(super) offered: u16,
    /// Commands sent: 0 MAIL, then the recipients' RCPT.
    pub(super) sent: usize,
    envelope: Envelope,
    standing: Vec<Standing>,
    /// Addresses: reverse-path, then recipients.
    paths: Vec<u8>,
    path_ends: Vec<u32>,
    /// NOTIFY and ORCPT of the recipients.
    parameters: Parameters,
    /// ENVID; empty when there is none.
    envelope_id: Vec<u8>,
    verdict: Option<(Verdict, Reply)>,
    told: u16,
    /// A recipient was accepted although MAIL was refused.
    pub(super) taken_all_the_same: bool,
    success_report: SuccessReport,
}

#[derive(Clone, Copy, Debug, Default)]
struct Envelope {
    size: u64,
    eight_bit: bool,
    eight_bit_header: bool,
    smtputf8: bool,
    binary: bool,
    ret: Option<Return>,
    deliver_by: Option<DeliverBy>,
    priority: Option<i8>,
}

impl Slot {
    pub(super) fn fill<'r>(&mut self, id: u32, transaction: &Transaction<'r>, recipients: impl Iterator<Item = Rcpt<'r>>) {
        self.id = id;
        self.stage = Stage::Waiting;
        (self.answered, self.accepted, self.offered, self.sent, self.verdict, self.told) = (false, 0, 0, 0, None, 0);
        self.taken_all_the_same = false;
        let Transaction { size, eight_bit, eight_bit_header, smtputf8, binary, ret, deliver_by, priority, .. } = *transaction;
        self.envelope = Envelope { size, eight_bit, eight_bit_header, smtputf8, binary, ret, deliver_by, priority };
        self.envelope_id.clear();
        self.envelope_id.extend_from_slice(transaction.envelope_id.unwrap_or_default().as_bytes());
        self.standing.clear();
        self.paths.clear();
        self.path_ends.clear();
        self.parameters.clear();
        self.push_path(transaction.reverse_path);
        for recipient in recipients {
            self.push_path(recipient.path);
            self.parameters.push(&recipient);
        }
        self.standing.resize(self.path_ends.len() - 1, Standing::Open);
        assert!((1..=usize::from(u16::MAX)).contains(&self.standing.len()), "a transaction has 1 to 65,535 recipients");
    }

    fn push_path(&mut self, path: &[u8]) {
        self.paths.extend_from_slice(path);
        self.path_ends.push(u32::try_from(self.paths.len()).expect("a transaction's addresses are below 4 GiB"));
    }

    /// The content goes as one chunk.
    pub(super) fn is_binary(&self) -> bool {
        self.envelope.binary
    }

    /// Its length, exact.
    pub(super) fn size(&self) -> u64 {
        self.envelope.size
    }

    pub(super) fn transaction(&self) -> TransactionId {
        TransactionId(self.id)
    }

    /// Path 0 is the reverse-path, path n + 1 that of recipient n.
    fn path(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.path_ends[index - 1] as usize };
        &self.paths[start..self.path_ends[index] as usize]
    }

    /// Decides before anything is sent whether this server can take it, and how many of the recipients.
    ///
    /// `is_final`: the server delivers into mailboxes (LMTP).
    pub(super) fn check(&mut self, offer: &Offer, is_final: bool) -> Result<(), &'static str> {
        self.success_report = match is_final {
            false if self.envelope.deliver_by.is_some() && offer.deliver_by.is_none() => SuccessReport::Untimed,
            _ if offer.dsn => SuccessReport::PassedOn,
            true => SuccessReport::Delivered,
            false => SuccessReport::Relayed,
        };
        // RFC 6531 3.4: it is about addresses and the header; a body of eight bits is 8BITMIME's. Many clients ask for SMTPUTF8 whatever they
        // send.
        let said_beyond_ascii = self.envelope.eight_bit_header || !self.parameters.as_bytes().is_ascii();
        let needs_smtputf8 = !self.paths.is_ascii() || self.envelope.smtputf8 && said_beyond_ascii;
        if needs_smtputf8 && !offer.smtputf8 {
            return Err(own_words::NEEDS_SMTPUTF8);
        }
        if self.envelope.binary && !(offer.binary_mime && offer.chunking) {
            return Err(own_words::NEEDS_BINARYMIME);
        }
        if self.envelope.eight_bit && !self.envelope.binary && !offer.eight_bit_mime {
            return Err(own_words::NEEDS_8BITMIME);
        }
        if offer.size_max.is_some_and(|limit| self.envelope.size > limit) {
            return Err(own_words::TOO_LARGE);
        }
        if let Some(by) = self.envelope.deliver_by.filter(|by| by.mode == ByMode::Return) {
            // RFC 2852 4.1: what is to come back in time is not given to who knows nothing of time; a store of mailboxes is the end.
            match offer.deliver_by {
                _ if by.seconds <= 0 => return Err(own_words::TIME_IS_OVER),
                None if !is_final => return Err(own_words::NEEDS_DELIVERBY),
                Some(least) if i64::from(by.seconds) < i64::from(least) => {
                    return Err(own_words::NEEDS_MORE_TIME);
                }
                _ => {}
            }
        }
        // A line end or a stray bracket in an address would let a sender write commands of ours.
        let is_control = |b: &u8| *b < b' ' || *b == 0x7F;
        if self.paths.iter().any(is_control) || self.envelope_id.iter().chain(self.parameters.as_bytes()).any(is_control) {
            return Err(own_words::CONTROL_CHARACTER);
        }
        let most = offer.rcpt_max.map_or(usize::from(u16::MAX), |most| most as usize);
        let most = most.min(offer.rcpt_domain_max.map_or(usize::MAX, |domains| self.within_domains(domains as usize)));
        self.offered = self.standing.len().min(most.max(1)) as u16;
        Ok(())
    }

    /// How many of the recipients, from the first on, have at most `most` different domains.
    fn within_domains(&self, most: usize) -> usize {
        let count = self.standing.len();
        let mut domains = 0;
        for recipient in 0..count {
            let domain = domain_of(self.path(recipient + 1));
            let seen = (0..recipient).rev().any(|other| domain_of(self.path(other + 1)).eq_ignore_ascii_case(domain));
            domains += usize::from(!seen);
            if domains > most {
                return recipient;
            }
        }
        count
    }

    pub(super) fn write_mail(&self, offer: &Offer, out: &mut Vec<u8>) {
        out.extend_from_slice(b"MAIL FROM:<");
        out.extend_from_slice(self.path(0));
        out.push(b'>');
        if offer.size {
            out.extend_from_slice(b" SIZE=");
            write_number(self.envelope.size, out);
        }
        if self.envelope.binary {
            out.extend_from_slice(b" BODY=BINARYMIME");
        } else if self.envelope.eight_bit || !self.paths.is_ascii() && offer.eight_bit_mime {
            // The Received field that was put in front of the content names the recipient.
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if offer.smtputf8 && (self.envelope.smtputf8 || !self.paths.is_ascii()) {
            out.extend_from_slice(b" SMTPUTF8");
        }
        if offer.dsn {
            match self.envelope.ret {
                None => {}
                Some(Return::Full) => out.extend_from_slice(b" RET=FULL"),
                Some(Return::Headers) => out.extend_from_slice(b" RET=HDRS"),
            }
            if !self.envelope_id.is_empty() {
                out.extend_from_slice(b" ENVID=");
                out.extend_from_slice(&self.envelope_id);
            }
        }
        if let (Some(_), Some(by)) = (offer.deliver_by, self.envelope.deliver_by) {
            let mode = if by.mode == ByMode::Return { 'R' } else { 'N' };
            // RFC 2852 4: nine digits.
            let seconds = by.seconds.clamp(-999_999_999, 999_999_999);
            write!(out, " BY={seconds};{mode}{}", if by.trace { "T" } else { "" }).expect("writing into a Vec cannot fail");
        }
        if let (true, Some(priority)) = (offer.mt_priority, self.envelope.priority) {
            write!(out, " MT-PRIORITY={priority}").expect("writing into a Vec cannot fail");
        }
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn write_rcpt(&self, recipient: u16, offer: &Offer, out: &mut Vec<u8>) {
        out.extend_from_slice(b"RCPT TO:<");
        out.extend_from_slice(self.path(usize::from(recipient) + 1));
        out.push(b'>');
        if offer.dsn {
            out.extend_from_slice(self.parameters.of(recipient));
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Takes in the answer to a RCPT; an outcome if it is a refusal that counts.
    pub(super) fn rcpt_answered(&mut self, recipient: u16, reply: &Reply) -> Option<RecipientOutcome> {
        if self.verdict.is_some() {
            // MAIL was refused: what is said about recipients behind it says nothing.
            self.taken_all_the_same |= reply.class() == Class::Completed;
            return None;
        }
        if reply.class() == Class::Completed {
            self.standing[usize::from(recipient)] = Standing::Accepted;
            self.accepted += 1;
            return None;
        }
        self.standing[usize::from(recipient)] = Standing::Told;
        // RFC 5321 4.5.3.1.10: "too many recipients" (452, of old 552) only ends this transaction; the rest goes in the next.
        let too_many =
            reply.code() == 452 || (reply.code() == 552 && reply.enhanced().is_none_or(|code| (code.subject, code.detail) == (5, 3)));
        let verdict = if too_many && self.accepted > 0 { Verdict::Untried } else { verdict_of(reply) };
        Some(self.outcome(recipient, verdict, *reply))
    }

    /// Takes in the answer to the content for one accepted recipient (LMTP).
    pub(super) fn delivery_answered(&mut self, recipient: u16, reply: &Reply) -> RecipientOutcome {
        self.standing[usize::from(recipient)] = Standing::Told;
        self.accepted -= 1;
        self.outcome(recipient, verdict_of(reply), *reply)
    }

    /// The recipients that were accepted at RCPT and have no outcome yet, in order.
    pub(super) fn accepted_recipients(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.standing).filter(|(_, standing)| **standing == Standing::Accepted).map(|(recipient, _)| recipient)
    }

    fn outcome(&self, recipient: u16, verdict: Verdict, reply: Reply) -> RecipientOutcome {
        RecipientOutcome { transaction: self.transaction(), recipient, verdict, reply, success_report: self.success_report }
    }

    /// Decides all recipients that were not told yet, unless that was decided before.
    pub(super) fn decide(&mut self, verdict: Verdict, reply: Reply) {
        self.verdict.get_or_insert((verdict, reply));
    }

    pub(super) fn is_decided(&self) -> bool {
        self.verdict.is_some()
    }

    /// The next outcome of a complete transaction.
    pub(super) fn tell(&mut self) -> Option<RecipientOutcome> {
        while usize::from(self.told) < self.standing.len() {
            let recipient = self.told;
            self.told += 1;
            let standing = std::mem::replace(&mut self.standing[usize::from(recipient)], Standing::Told);
            if standing == Standing::Told {
                continue;
            }
            let exceeding = recipient >= self.offered && self.offered > 0;
            let (verdict, reply) = match self.verdict {
                _ if exceeding => (Verdict::Untried, Reply::local(own_words::RECIPIENTS_EXCEEDED)),
                Some(decided) => decided,
                None => (Verdict::Deferred, Reply::local(own_words::RECIPIENT_UNANSWERED)),
            };
            return Some(self.outcome(recipient, verdict, reply));
        }
        None
    }
}

/// What a reply of the peer means for a recipient; what is unclear is deferred.
pub(super) fn verdict_of(reply: &Reply) -> Verdict {
    match reply.class() {
        // 421 is about the service, whatever it answers (RFC 5321 3.8).
        _ if reply.code() == 421 => Verdict::Deferred,
        Class::Completed => Verdict::Delivered,
        Class::Permanent => Verdict::Failed,
        Class::Transient | Class::Intermediate => Verdict::Deferred,
    }
}

fn domain_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'@').map_or(&[][..], |at| &path[at + 1..])
}
