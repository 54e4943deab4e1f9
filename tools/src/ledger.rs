//! Two append-only ledgers: what was acknowledged to the sender, what arrived at the sink, and their difference.
//!
//! A line of the sent ledger is written after the 250 was read: `ID HASH RECIPIENTS QUEUE-ID`. A line of the received one
//! is written before the sink says 250: `ID HASH ok|foreign|hash|... MILLISECONDS RECIPIENT,RECIPIENT`.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::Serialize;

use crate::arrival::{Arrived, Damage};
use crate::content::{ContentHash, MessageId, decimal};

/// Lines gathered before they are written, in octets, unless [`LedgerWriter::flush`] comes first.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// Appends lines; the caller flushes once per turn of its loop.
#[derive(Debug)]
pub struct LedgerWriter {
    file: Option<File>,
    gathered: Vec<u8>,
}

impl LedgerWriter {
    /// Opens for appending, or keeps no ledger for `None`.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(|path| OpenOptions::new().append(true).create(true).open(path)).transpose()?;
        Ok(Self { file, gathered: Vec::with_capacity(2 * GATHERED_BYTES_MAX) })
    }

    /// Records an acknowledgement.
    pub fn acknowledged(&mut self, id: MessageId, hash: &ContentHash, recipients: usize, queue_id: &[u8]) -> io::Result<()> {
        let mut digits = [0; 20];
        id.push_to(&mut self.gathered);
        self.gathered.push(b' ');
        hash.push_to(&mut self.gathered);
        self.gathered.push(b' ');
        self.gathered.extend_from_slice(decimal(recipients, &mut digits));
        self.gathered.push(b' ');
        self.gathered.extend_from_slice(if queue_id.is_empty() { b"-" } else { queue_id });
        self.end_line()
    }

    /// Records an arrival; `since_ms` counts from the start of the sink, `recipients` are joined by commas.
    pub fn arrived(&mut self, arrived: &Arrived, since_ms: u64, recipients: &[u8]) -> io::Result<()> {
        let mut digits = [0; 20];
        match arrived.id {
            Some(id) => id.push_to(&mut self.gathered),
            None => self.gathered.push(b'-'),
        }
        self.gathered.push(b' ');
        match &arrived.hash {
            Some(hash) => hash.push_to(&mut self.gathered),
            None => self.gathered.push(b'-'),
        }
        self.gathered.extend_from_slice(match arrived.damage {
            None => b" ok ",
            Some(Damage::Foreign) => b" foreign ",
            Some(Damage::BareLineEnd) => b" bare-line-end ",
            Some(Damage::NotStuffed) => b" not-stuffed ",
            Some(Damage::Length) => b" length ",
            Some(Damage::Hash) => b" hash ",
        });
        self.gathered.extend_from_slice(decimal(since_ms as usize, &mut digits));
        self.gathered.push(b' ');
        self.gathered.extend_from_slice(if recipients.is_empty() { b"-" } else { recipients });
        self.end_line()
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.gathered.push(b'\n');
        if self.gathered.len() >= GATHERED_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(&self.gathered)?;
        }
        self.gathered.clear();
        Ok(())
    }
}

/// One acknowledged message.
#[derive(Debug, Clone)]
pub struct Sent {
    /// What it must hash to.
    pub hash: ContentHash,
    /// Deliveries owed.
    pub recipients: usize,
    /// The engine's name for it, `-` where the 250 named none.
    pub queue_id: String,
}

/// What came of comparing two ledgers.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Messages the sender saw a 250 for.
    pub acknowledged: u64,
    /// Deliveries of them (message times recipient), each counted once.
    pub delivered: u64,
    /// Acknowledged messages that are not delivered to all recipients but stand in the queue.
    pub queued: u64,
    /// Acknowledged messages that are neither delivered to all recipients nor queued.
    pub lost: u64,
    /// Deliveries beyond the first of a message to a recipient.
    pub duplicated: u64,
    /// Arrivals with bare line ends, missing stuffing, or another length or hash than sent.
    pub damaged: u64,
    /// Arrivals of no known run, or without identity.
    pub foreign: u64,
    /// Messages that arrived though the sender never read a 250: allowed, the reply was cut off.
    pub unacknowledged: u64,
    /// Up to ten examples of what was lost, damaged or foreign.
    pub examples: Vec<String>,
}

impl Difference {
    /// True when nothing is lost and nothing damaged.
    pub fn is_intact(&self) -> bool {
        self.lost == 0 && self.damaged == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < 10 {
            self.examples.push(text);
        }
    }
}

fn bad(path: &Path, number: usize, line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}:{number}: not a ledger line: {line:?}", path.display()))
}

/// Reads a sent ledger. Fails on a line it cannot read: a ledger that is cut off proves nothing.
pub fn read_sent(path: &Path) -> io::Result<HashMap<MessageId, Sent>> {
    let mut sent = HashMap::new();
    for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let line = line?;
        let mut words = line.split(' ');
        let mut entry = || -> Option<(MessageId, Sent)> {
            let id = MessageId::parse(words.next()?.as_bytes())?;
            let hash = ContentHash::parse(words.next()?.as_bytes())?;
            Some((id, Sent { hash, recipients: words.next()?.parse().ok()?, queue_id: words.next()?.to_string() }))
        };
        let (id, one) = entry().ok_or_else(|| bad(path, number + 1, &line))?;
        if sent.insert(id, one).is_some() {
            return Err(bad(path, number + 1, "an identity acknowledged twice"));
        }
    }
    Ok(sent)
}

/// Compares the ledgers of one or more senders with that of the sink. `queued` holds the queue ids that the engine still keeps.
pub fn difference(senders: &[&Path], received: &Path, queued: &HashSet<String>) -> io::Result<Difference> {
    let mut sent = HashMap::new();
    for path in senders {
        sent.extend(read_sent(path)?);
    }
    let runs: HashSet<u64> = sent.keys().map(|id| id.run).collect();
    let mut result = Difference { acknowledged: sent.len() as u64, ..Difference::default() };
    let mut deliveries: HashMap<MessageId, Vec<String>> = HashMap::with_capacity(sent.len());
    let mut unacknowledged = HashSet::new();
    for (number, line) in BufReader::new(File::open(received)?).lines().enumerate() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [id, hash, verdict, _, recipients] = words[..] else { return Err(bad(received, number + 1, &line)) };
        let id = MessageId::parse(id.as_bytes());
        if verdict == "foreign" || id.is_none_or(|id| !runs.contains(&id.run)) {
            result.foreign += 1;
            result.example(format!("foreign: {line}"));
            continue;
        }
        let id = id.expect("the line above turned away lines without identity");
        let entry = sent.get(&id);
        let same = entry.is_none_or(|sent| Some(sent.hash) == ContentHash::parse(hash.as_bytes()));
        if verdict != "ok" || !same {
            result.damaged += 1;
            result.example(format!("damaged ({verdict}): {id}"));
            continue;
        }
        if entry.is_none() {
            unacknowledged.insert(id);
        }
        let reached = deliveries.entry(id).or_default();
        for recipient in recipients.split(',') {
            if reached.iter().any(|other| other == recipient) {
                result.duplicated += 1;
            } else {
                reached.push(recipient.to_string());
                result.delivered += 1;
            }
        }
    }
    result.unacknowledged = unacknowledged.len() as u64;
    for (id, one) in &sent {
        let reached = deliveries.get(id).map_or(0, Vec::len);
        if reached >= one.recipients {
            continue;
        }
        if queued.contains(&one.queue_id) {
            result.queued += 1;
        } else {
            result.lost += 1;
            result.example(format!("lost: {id} queue id {} reached {reached} of {} recipients", one.queue_id, one.recipients));
        }
    }
    Ok(result)
}

/// The queue ids in the output of `ringpost queue ls --json` (one object per line, key `id`).
pub fn queue_ids(listing: &str) -> Result<HashSet<String>, String> {
    listing
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))?;
            value["id"].as_str().map(str::to_string).ok_or_else(|| format!("no id in {line:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> MessageId {
        MessageId { run: 1, sequence }
    }

    fn arrival(sequence: u64, damage: Option<Damage>) -> Arrived {
        Arrived { id: Some(id(sequence)), hash: Some(ContentHash::Crc32c(sequence as u32)), damage }
    }

    fn compare(sent: &[u64], recipients: usize, received: &[(Arrived, &str)], queued: &[&str]) -> Difference {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("sent"), folder.path().join("received"));
        let mut writer = LedgerWriter::open(Some(&a)).unwrap();
        for &sequence in sent {
            let name = format!("Q{sequence}");
            writer.acknowledged(id(sequence), &ContentHash::Crc32c(sequence as u32), recipients, name.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        let mut writer = LedgerWriter::open(Some(&b)).unwrap();
        for (arrived, recipients) in received {
            writer.arrived(arrived, 0, recipients.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        difference(&[&a], &b, &queued.iter().map(|text| text.to_string()).collect()).unwrap()
    }

    #[test]
    fn all_delivered_once_is_intact() {
        let result = compare(&[1, 2], 1, &[(arrival(2, None), "a"), (arrival(1, None), "a")], &[]);
        assert!(result.is_intact());
        assert_eq!((result.delivered, result.duplicated, result.foreign), (2, 0, 0));
    }

    #[test]
    fn a_missing_message_is_lost_unless_it_is_queued() {
        assert_eq!(compare(&[1, 2], 1, &[(arrival(2, None), "a")], &[]).lost, 1);
        let queued = compare(&[1, 2], 1, &[(arrival(2, None), "a")], &["Q1"]);
        assert_eq!((queued.lost, queued.queued), (0, 1));
    }

    #[test]
    fn a_missing_recipient_is_a_loss_and_one_served_twice_a_duplicate() {
        let both = compare(&[1], 2, &[(arrival(1, None), "a"), (arrival(1, None), "a,b")], &[]);
        assert_eq!((both.lost, both.duplicated, both.delivered), (0, 1, 2));
        assert_eq!(compare(&[1], 2, &[(arrival(1, None), "a"), (arrival(1, None), "a")], &[]).lost, 1);
    }

    #[test]
    fn damage_foreign_mail_and_unacknowledged_arrivals_are_told_apart() {
        let foreign = Arrived { id: None, hash: None, damage: Some(Damage::Foreign) };
        let result = compare(&[1], 1, &[(arrival(1, Some(Damage::Hash)), "a"), (foreign, "a"), (arrival(9, None), "a")], &[]);
        assert_eq!((result.damaged, result.foreign, result.unacknowledged, result.lost), (1, 1, 1, 1));
        assert!(!result.is_intact());
    }

    #[test]
    fn another_hash_than_acknowledged_is_damage() {
        let mut other = arrival(1, None);
        other.hash = Some(ContentHash::Crc32c(4));
        assert_eq!(compare(&[1], 1, &[(other, "a")], &[]).damaged, 1);
    }

    #[test]
    fn queue_listings_are_read_line_by_line() {
        let ids = queue_ids("{\"id\":\"A\"}\n{\"id\":\"B\",\"size\":3}\n").unwrap();
        assert_eq!(ids.len(), 2);
        assert!(queue_ids("{\"name\":1}").is_err());
    }
}
