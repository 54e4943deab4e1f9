//! What is owed to whom, and what came, line by line of the ledgers.

use std::{borrow::Cow, collections::HashMap, rc::Rc};

use super::{
    Difference, QueuedMail,
    examples::{Examples, Kind},
};
use crate::{checksum::Checksum, identity::MessageId, sink::verify::Damage};

/// What a line says is not what a line of its ledger says.
pub(super) type Wrong = &'static str;

/// An address by its number: a few thousand of them stand in millions of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address(u32);

#[derive(Debug, Default)]
struct Addresses {
    known: HashMap<Rc<str>, Address>,
    names: Vec<Rc<str>>,
}

impl Addresses {
    fn number(&mut self, address: &str) -> Address {
        let address = comparable(address);
        if let Some(&known) = self.known.get(&*address) {
            return known;
        }
        let number = Address(u32::try_from(self.names.len()).expect("four billion addresses have no place in memory"));
        let name: Rc<str> = address.into();
        self.names.push(name.clone());
        self.known.insert(name, number);
        number
    }

    fn name(&self, address: Address) -> &str {
        &self.names[address.0 as usize]
    }
}

/// RFC 5321 2.4: a domain is the same in any case, and what stands before it may not be.
fn comparable(address: &str) -> Cow<'_, str> {
    match address.rsplit_once('@') {
        Some((local, domain)) if domain.bytes().any(|octet| octet.is_ascii_uppercase()) => {
            format!("{local}@{}", domain.to_ascii_lowercase()).into()
        }
        _ => address.into(),
    }
}

/// A delivery that is owed.
#[derive(Debug, Clone, Copy)]
struct Owed {
    to: Address,
    arrivals: u32,
    came_damaged: bool,
    is_queued: bool,
}

#[derive(Debug)]
struct Sent {
    length: u64,
    checksum: Checksum,
    owed: Box<[Owed]>,
}

/// The accounts: first all lines of sources are entered, then those of the sink.
#[derive(Debug, Default)]
pub(super) struct Account {
    addresses: Addresses,
    sent: HashMap<MessageId, Sent>,
    /// The runs of the sources, and the sender of all messages of each, where its ledger says it.
    runs: HashMap<u64, Option<Address>>,
    /// Messages whose content was refused, and with what.
    refused: HashMap<MessageId, u16>,
    /// Messages that nobody saw a 250 for, and whom they reached.
    unacknowledged: HashMap<MessageId, Vec<Address>>,
    queued: QueuedMail,
    result: Difference,
    examples: Examples,
}

impl Account {
    /// Empty accounts beside an engine that has `queued`.
    pub(super) fn new(queued: QueuedMail) -> Account {
        Account { queued, ..Account::default() }
    }

    /// Enters a line of a source.
    pub(super) fn accepted(&mut self, words: &[&str]) -> Result<(), Wrong> {
        if let ["#", "run", run, sender @ ..] = words {
            let run = parse_run(run).ok_or("no run")?;
            let sender = match sender {
                [] => None,
                [sender] if !sender.is_empty() => Some(self.addresses.number(sender)),
                _ => return Err("no sender behind the run"),
            };
            self.runs.insert(run, sender);
            return Ok(());
        }
        if let ["#", "refused", id, code] = words {
            let id = MessageId::parse(id.as_bytes()).ok_or("no identity")?;
            self.refused.insert(id, code.parse().map_err(|_| "no code")?);
            self.runs.entry(id.run).or_default();
            return Ok(());
        }
        let [id, length, checksum, time, recipients, behind @ ..] = words else { return Err("not six parts") };
        if is_verdict(recipients) {
            return Err("it is one of a sink's: the source's ledger comes first");
        }
        let [queue_id] = behind else { return Err("not six parts") };
        let id = MessageId::parse(id.as_bytes()).ok_or("no identity")?;
        let (length, checksum) = length_and_checksum(length, checksum)?;
        check_time(time)?;
        if recipients.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err("it says how many recipients there were and not which, as older versions wrote it: take the diff of the version \
                        that wrote it");
        }
        check_recipients(recipients)?;
        let mut owed: Vec<Owed> = Vec::new();
        for recipient in recipients.split(',').filter(|&recipient| recipient != "-") {
            let to = self.addresses.number(recipient);
            if owed.iter().any(|other| other.to == to) {
                return Err("a recipient twice");
            }
            owed.push(Owed { to, arrivals: 0, came_damaged: false, is_queued: self.queued.has(queue_id, recipient) });
        }
        self.result.accepted += 1;
        self.result.owed += owed.len() as u64;
        self.runs.entry(id.run).or_default();
        match self.sent.insert(id, Sent { length, checksum, owed: owed.into() }) {
            None => Ok(()),
            Some(_) => Err("an identity acknowledged twice"),
        }
    }

    /// Enters a line of the sink. Recipients of a message may come in several.
    pub(super) fn delivered(&mut self, words: &[&str]) -> Result<(), Wrong> {
        let [id, length, checksum, time, verdict, recipients, sender @ ..] = words else { return Err("not six or seven parts") };
        check_time(time)?;
        let sender = match sender {
            [] => None,
            [sender] if !sender.is_empty() => Some(*sender),
            _ => return Err("no sender behind the recipients"),
        };
        if !is_verdict(verdict) {
            return Err("no verdict behind the time: in a sink's ledger there is one, and that of the source comes first");
        }
        check_recipients(recipients)?;
        let id = match *id {
            "-" => None,
            id => Some(MessageId::parse(id.as_bytes()).ok_or("no identity")?),
        };
        let (result, examples) = (&mut self.result, &mut self.examples);
        let Some((id, sent_by)) = id.and_then(|id| Some((id, *self.runs.get(&id.run)?))) else {
            // Without a mark a damaged message of ours and a foreign one look alike; either is a reason to look.
            if *verdict == "foreign" || *verdict == "ok" {
                result.foreign += 1;
                examples.add(Kind::Foreign, || format!("foreign: {}", words.join(" ")));
            } else {
                result.damaged += 1;
                examples.add(Kind::Damaged, || format!("damaged: {}", words.join(" ")));
            }
            return Ok(());
        };
        let (length, checksum) = length_and_checksum(length, checksum)?;
        let mut known = self.sent.get_mut(&id);
        let same = known.as_ref().is_none_or(|sent| (sent.length, sent.checksum) == (length, checksum));
        if *verdict != "ok" || !same {
            result.damaged += 1;
            let what = if *verdict == "ok" { "another length or checksum than acknowledged" } else { verdict };
            examples.add(Kind::Damaged, || format!("damaged ({what}): {id}"));
            self.came_damaged(id, recipients);
            return Ok(());
        }
        if let (Some(sent_by), Some(sender)) = (sent_by, sender)
            && self.addresses.number(sender) != sent_by
        {
            result.damaged += 1;
            examples.add(Kind::Damaged, || format!("damaged (from {sender}, and not {}): {id}", self.addresses.name(sent_by)));
            self.came_damaged(id, recipients);
            return Ok(());
        }
        if let (None, Some(code)) = (&known, self.refused.get(&id)) {
            let count = recipients.split(',').count() as u64;
            // Whoever was told 4xx sends it again, and it is there twice; whoever was told 5xx tells the sender that it is not.
            let of_class = if *code / 100 == 5 { &mut result.delivered_though_refused } else { &mut result.delivered_though_deferred };
            *of_class += count;
            examples.add(Kind::Refused, || format!("refused: {id} with {code}, and delivered to {recipients}"));
            return Ok(());
        }
        for recipient in recipients.split(',') {
            let to = self.addresses.number(recipient);
            let came_before = match &mut known {
                Some(sent) => match sent.owed.iter_mut().find(|owed| owed.to == to) {
                    Some(owed) => {
                        owed.arrivals += 1;
                        result.delivered += u64::from(owed.arrivals == 1);
                        owed.arrivals > 1
                    }
                    None => {
                        (result.foreign, result.misdirected) = (result.foreign + 1, result.misdirected + 1);
                        examples.add(Kind::Foreign, || format!("foreign: {id} to {recipient}, whom it was not for"));
                        continue;
                    }
                },
                None => {
                    let reached = self.unacknowledged.entry(id).or_default();
                    let came_before = reached.contains(&to);
                    reached.push(to);
                    came_before
                }
            };
            if came_before {
                result.duplicated += 1;
                examples.add(Kind::Duplicated, || format!("duplicated: {id} to {recipient}"));
            }
        }
        Ok(())
    }

    /// A message that is owed to these recipients is there, if not as it was sent.
    fn came_damaged(&mut self, id: MessageId, recipients: &str) {
        let Some(sent) = self.sent.get_mut(&id) else { return };
        for recipient in recipients.split(',') {
            let to = self.addresses.number(recipient);
            sent.owed.iter_mut().filter(|owed| owed.to == to).for_each(|owed| owed.came_damaged = true);
        }
    }

    /// Notes a line that an earlier run left unfinished.
    pub(super) fn cut_off(&mut self, place: &str) {
        self.result.cut_off += 1;
        self.examples.add(Kind::CutOff, || format!("cut off: {place}, by the end of an earlier run; left out"));
    }

    /// Closes the accounts: what did not come is lost, unless it came damaged, which has been counted, or waits.
    pub(super) fn close(mut self) -> Difference {
        self.result.unacknowledged = self.unacknowledged.len() as u64;
        for (id, one) in &self.sent {
            for owed in one.owed.iter().filter(|owed| owed.arrivals == 0) {
                if owed.came_damaged {
                    self.result.damaged_only += 1;
                    continue;
                }
                if owed.is_queued {
                    self.result.queued += 1;
                    self.examples.add(Kind::Queued, || format!("still queued: {id} to {}", self.addresses.name(owed.to)));
                    continue;
                }
                self.result.lost += 1;
                self.examples.add(Kind::Lost, || format!("lost: {id} to {}", self.addresses.name(owed.to)));
            }
        }
        Difference { examples: self.examples.lines(), ..self.result }
    }
}

fn parse_run(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)
}

fn is_verdict(word: &str) -> bool {
    word == "ok" || word == "foreign" || Damage::ALL.iter().any(|damage| damage.name() == word)
}

fn check_time(time: &str) -> Result<(), Wrong> {
    time.parse::<u64>().map(drop).map_err(|_| "no time")
}

fn check_recipients(recipients: &str) -> Result<(), Wrong> {
    if recipients.split(',').any(str::is_empty) { Err("a recipient without a name") } else { Ok(()) }
}

fn length_and_checksum(length: &str, checksum: &str) -> Result<(u64, Checksum), Wrong> {
    let parts = length.parse().ok().zip(Checksum::parse(checksum.as_bytes()));
    parts.ok_or("no length or checksum")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_the_same_in_any_case_and_a_mailbox_is_not() {
        let mut addresses = Addresses::default();
        let number = addresses.number("r1@Load.TEST");
        assert_eq!(addresses.name(number), "r1@load.test");
        assert_eq!(addresses.number("r1@load.test"), number);
        assert_ne!(addresses.number("R1@load.test"), number);
        assert_eq!(comparable("Postmaster"), "Postmaster");
    }
}
