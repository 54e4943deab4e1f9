//! What was promised: who was told 250, which outcomes were written, and what a recovery must find therefore.

use std::collections::VecDeque;

use ringpost_spool::{Event, Log, RecordId, Ticket};

use crate::content::{Filling, payload};
use crate::counters::Counters;
use crate::disk::Disk;
use crate::station::SimHost;

/// Where a message stands, as its client and its relays know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Not acknowledged: may be found or not.
    Open,
    /// 250 was said, or a recovery found it: must be found until it is settled.
    Given,
    /// Gone or settled for good: must never be found again.
    Over,
}

/// One message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its name in the log.
    pub id: RecordId,
    /// Lengths of the pieces of its payload: one, or its chunks and the rest.
    pub pieces: Vec<u32>,
    /// What it holds.
    pub filling: Filling,
    /// What was promised.
    pub promise: Promise,
    /// In this life: its message record is appended.
    pub is_appended: bool,
    /// A settled record was appended that is not acknowledged.
    pub is_settling: bool,
    /// Per recipient: newest version appended, newest acknowledged (0: none).
    pub outcomes: Vec<(u32, u32)>,
    /// It was acknowledged or found, at some time.
    pub was_given: bool,
    /// The bounce that settles it.
    pub bounce: Option<usize>,
}

/// What waits for a ticket.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    Message(usize),
    Outcome(usize, usize, u32),
    Settled(usize),
}

/// All messages of a seed.
#[derive(Default)]
pub struct Ledger {
    /// By number, which is the sequence of their ids.
    pub messages: Vec<Message>,
    /// Messages that are given and not being settled, in no order.
    pub live: Vec<usize>,
    waiting: Vec<(u16, VecDeque<(Ticket, Waiting)>)>,
    bytes: Vec<u8>,
}

impl Ledger {
    /// A message that is about to be appended. Returns its number.
    pub fn add(&mut self, boot: u64, shard: u16, recipients: usize, filling: Filling) -> usize {
        let id = RecordId { boot, shard, sequence: self.messages.len() as u64 };
        self.messages.push(Message {
            id,
            pieces: Vec::new(),
            filling,
            promise: Promise::Open,
            is_appended: false,
            is_settling: false,
            outcomes: vec![(0, 0); recipients],
            was_given: false,
            bounce: None,
        });
        self.messages.len() - 1
    }

    /// The bytes of one piece.
    pub fn piece(&mut self, number: usize, piece: usize, bytes: u32) -> &[u8] {
        let filling = self.messages[number].filling;
        payload(number as u64, piece as u32, bytes as usize, filling, &mut self.bytes);
        &self.bytes
    }

    /// The message record was appended to the log of `shard`.
    pub fn appended(&mut self, number: usize, ticket: Ticket) {
        self.messages[number].is_appended = true;
        self.wait(self.messages[number].id.shard, ticket, Waiting::Message(number));
    }

    /// An outcome was appended.
    pub fn outcome(&mut self, number: usize, recipient: usize, ticket: Ticket) {
        let version = self.messages[number].outcomes[recipient].0;
        self.wait(self.messages[number].id.shard, ticket, Waiting::Outcome(number, recipient, version));
    }

    /// The message was settled in the log that holds it.
    pub fn settled(&mut self, number: usize, ticket: Ticket) {
        self.messages[number].is_settling = true;
        self.live.retain(|&live| live != number);
        self.wait(self.messages[number].id.shard, ticket, Waiting::Settled(number));
    }

    fn wait(&mut self, shard: u16, ticket: Ticket, waiting: Waiting) {
        match self.waiting.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, queue)) => queue.push_back((ticket, waiting)),
            None => self.waiting.push((shard, VecDeque::from([(ticket, waiting)]))),
        }
    }

    /// Everything up to `ticket` in the log of `shard` is durable: the promises are given.
    pub fn acknowledged(&mut self, shard: u16, ticket: Ticket, counters: &mut Counters) {
        let Some((_, queue)) = self.waiting.iter_mut().find(|(known, _)| *known == shard) else { return };
        while queue.front().is_some_and(|&(waiting, _)| waiting <= ticket) {
            match queue.pop_front().expect("the front was just seen").1 {
                Waiting::Message(number) => {
                    let message = &mut self.messages[number];
                    (message.promise, message.was_given) = (Promise::Given, true);
                    counters.acknowledged += 1;
                    counters.acknowledged_chunked += u64::from(message.pieces.len() > 1);
                    self.live.push(number);
                }
                Waiting::Outcome(number, recipient, version) => {
                    self.messages[number].outcomes[recipient].1 = version;
                    counters.outcomes += 1;
                }
                Waiting::Settled(number) => {
                    let message = &mut self.messages[number];
                    message.promise = Promise::Over;
                    counters.settled += 1;
                    counters.bounced += u64::from(message.bounce.is_some());
                }
            }
        }
    }

    /// The life of the log of `shard` ended: nobody waits any more.
    pub fn cut(&mut self, shard: u16) {
        self.waiting.retain(|(known, _)| *known != shard);
        let messages = &self.messages;
        self.live.retain(|&number| messages[number].id.shard != shard);
    }

    /// A recovery told of a record: its payload must be what was appended.
    pub fn found(&mut self, event: &Event<'_>) -> Result<(), String> {
        match *event {
            Event::Found { id, chunks, payload } => {
                let message = self.messages.get(id.sequence as usize).filter(|message| message.id == id);
                let message = message.ok_or_else(|| format!("{id:?} was never sent"))?;
                if chunks as usize + 1 != message.pieces.len() {
                    return Err(format!("{id:?} has {chunks} chunks, not {}", message.pieces.len() - 1));
                }
                let last = *message.pieces.last().expect("at least one piece");
                if self.piece(id.sequence as usize, chunks as usize, last) != payload {
                    return Err(format!("{id:?} was found damaged"));
                }
                Ok(())
            }
            Event::FoundOutcome { id, index, payload } => {
                let message = self.messages.get(id.sequence as usize).filter(|message| message.id == id);
                let known = message.and_then(|message| message.outcomes.get(index as usize));
                let &(appended, _) = known.ok_or_else(|| format!("an outcome of {id:?} that was never written"))?;
                if version_in(payload).is_some_and(|version| version <= appended) {
                    return Ok(());
                }
                Err(format!("an outcome of {id:?} was found damaged"))
            }
            _ => Ok(()),
        }
    }

    /// The whole log of `shard` is known: every promise must hold.
    ///
    /// Messages of the present life, `boot`, are no affair of the recovery.
    pub fn verify(&mut self, shard: u16, boot: u64, log: &Log<SimHost>, disk: &Disk) -> Result<(), String> {
        let mut present = 0;
        for number in 0..self.messages.len() {
            let id = self.messages[number].id;
            if id.shard == shard && id.boot < boot && self.verify_message(number, log, disk)? {
                present += 1;
                self.live.push(number);
            }
        }
        let queued = log.queued().filter(|id| id.boot < boot).count();
        if queued != present {
            return Err(format!("{queued} messages are queued, {present} of them were sent"));
        }
        Ok(())
    }

    /// Returns whether the message is there.
    fn verify_message(&mut self, number: usize, log: &Log<SimHost>, disk: &Disk) -> Result<bool, String> {
        let message = &self.messages[number];
        let id = message.id;
        let Some(queued) = log.message(id) else {
            if message.promise == Promise::Given && !message.is_settling {
                return Err(format!("{id:?} was acknowledged and is lost"));
            }
            self.messages[number].promise = Promise::Over;
            return Ok(false);
        };
        if message.promise == Promise::Over {
            return Err(format!("{id:?} was settled or dropped and is back"));
        }
        if !message.is_appended || queued.chunks as usize + 1 != message.pieces.len() {
            return Err(format!("{id:?} was found with {} chunks", queued.chunks));
        }
        self.verify_content(number, log, disk)?;
        let found: Vec<_> = log.outcomes(id).collect();
        let message = &mut self.messages[number];
        for (recipient, (appended, acknowledged)) in message.outcomes.iter_mut().enumerate() {
            let location = found.iter().find(|(index, _)| *index as usize == recipient).map(|(_, location)| location);
            let version = match location {
                None => 0,
                Some(location) => {
                    let blocks = read_blocks(disk, location);
                    let payload = log.check(id, location, &blocks).map_err(|_| format!("an outcome of {id:?} does not verify"))?;
                    version_in(payload).ok_or_else(|| format!("an outcome of {id:?} is damaged"))?
                }
            };
            if version < *acknowledged || version > *appended {
                return Err(format!("{id:?} recipient {recipient}: outcome {version} found, {acknowledged} was written, {appended} tried"));
            }
            (*appended, *acknowledged) = (version, version);
        }
        // What a recovery found is on the disk: from here on it must be found again.
        (message.promise, message.is_settling) = (Promise::Given, false);
        (message.was_given, message.bounce) = (true, None);
        Ok(true)
    }

    /// Reads the message's pieces where the log says they stand.
    pub fn verify_content(&mut self, number: usize, log: &Log<SimHost>, disk: &Disk) -> Result<(), String> {
        let id = self.messages[number].id;
        let queued = log.message(id).ok_or_else(|| format!("{id:?} is not queued"))?;
        for piece in 0..self.messages[number].pieces.len() {
            let bytes = self.messages[number].pieces[piece];
            let chunk = piece + 1 < self.messages[number].pieces.len();
            let location = if chunk { log.chunk(id, piece as u32) } else { Some(queued.location) };
            let location = location.ok_or_else(|| format!("{id:?} lacks chunk {piece}"))?;
            let blocks = read_blocks(disk, &location);
            let found = log.check(id, &location, &blocks).map_err(|_| format!("{id:?} piece {piece} does not verify"))?;
            if found != self.piece(number, piece, bytes) {
                return Err(format!("{id:?} piece {piece} is damaged"));
            }
        }
        Ok(())
    }

    /// A bounce settles its message only when it is there. `is_known` tells whether the log of a shard has been read.
    pub fn verify_bounces(&self, is_known: impl Fn(u16) -> bool) -> Result<(), String> {
        for message in &self.messages {
            let Some(bounce) = message.bounce else { continue };
            let bounce = &self.messages[bounce];
            if message.promise == Promise::Over && !bounce.was_given && is_known(message.id.shard) && is_known(bounce.id.shard) {
                return Err(format!("{:?} was settled by {:?}, which is lost", message.id, bounce.id));
            }
        }
        Ok(())
    }
}

/// The payload of an outcome.
pub fn outcome_payload(version: u32, number: usize) -> [u8; 12] {
    let mut payload = [0; 12];
    payload[..4].copy_from_slice(&version.to_le_bytes());
    payload[4..].copy_from_slice(&(number as u64 ^ 0x5555_5555).to_le_bytes());
    payload
}

fn version_in(payload: &[u8]) -> Option<u32> {
    (payload.len() == 12).then(|| u32::from_le_bytes(payload[..4].try_into().expect("four bytes")))
}

fn read_blocks(disk: &Disk, location: &ringpost_spool::Location) -> Vec<u8> {
    let (offset, bytes) = location.blocks();
    let mut blocks = vec![0; bytes];
    disk.read((location.file, false), offset as usize, &mut blocks);
    blocks
}
