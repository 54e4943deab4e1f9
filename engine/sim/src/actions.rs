//! What clients and relays do to a log: send, upload in chunks, deliver, fail, bounce, read.

use ringpost_spool::{AppendError, Content};

use crate::content::Filling;
use crate::control::Control;
use crate::ledger::outcome_payload;
use crate::world::World;

/// Messages that a log keeps queued at once: more would fill its small segments.
const LIVE_MAX: usize = 16;

/// A settlement that waits for its bounce.
pub(crate) struct Bouncing {
    pub(crate) number: usize,
    pub(crate) bounce: usize,
}

/// Whether a refusal is one that a driver meets in a sound log: it tries later.
fn is_short(error: AppendError) -> bool {
    matches!(error, AppendError::Full | AppendError::NoSpace | AppendError::OpenMax | AppendError::NotOpen | AppendError::Closed)
}

impl World {
    /// What happens to the log at `at` in one step.
    pub(crate) fn act(&mut self, at: usize) -> Result<(), String> {
        self.settle_bounced(at)?;
        let is_own = self.places[at].is_own;
        let crowded = !is_own || self.live_of(at) >= LIVE_MAX;
        match self.random.below(16) {
            0..4 if !crowded => self.send(at)?,
            4 if !crowded => self.upload(at)?,
            5 | 6 => self.go_on_uploading(at)?,
            7..9 => self.record_outcome(at)?,
            9..12 => self.settle(at)?,
            12 => self.read(at)?,
            13 if self.random.one_in(60) && (!self.is_last || self.places[at].life.is_loaded) => {
                let place = &mut self.places[at];
                place.station.log.stop();
                place.life.is_stopping = true;
            }
            0..5 => self.settle(at)?,
            13 if !is_own && self.places[at].station.log.is_retirable() => {
                let place = &mut self.places[at];
                place.station.log.retire();
                place.life.is_stopping = true;
            }
            _ => (),
        }
        Ok(())
    }

    fn live_of(&self, at: usize) -> usize {
        let shard = self.places[at].shard;
        self.ledger.live.iter().filter(|&&number| self.ledger.messages[number].id.shard == shard).count()
    }

    fn filling(&mut self) -> Filling {
        let hostile = if self.control == Some(Control::GenerationGuessable) { 2 } else { 8 };
        if self.ledger.live.is_empty() || !self.random.one_in(hostile) {
            return Filling::Noise;
        }
        self.counters.hostile += 1;
        let victim = self.ledger.live[self.random.below(self.ledger.live.len() as u64) as usize];
        Filling::Forged {
            guess: self.random.between(1, 30),
            boot: self.config.boot,
            sequence: self.random.between(100, 10_000),
            victim: self.ledger.messages[victim].id,
        }
    }

    fn send(&mut self, at: usize) -> Result<(), String> {
        let filling = self.filling();
        let recipients = self.random.between(1, 3) as usize;
        let number = self.ledger.add(self.config.boot, self.places[at].shard, recipients, filling);
        let most = if self.random.one_in(6) { u64::from(self.config.batch_bytes) - 200 } else { 2500 };
        let bytes = self.random.between(20, most) as u32;
        self.commit(at, number, bytes)
    }

    /// Appends the message record, with the last piece of its payload.
    fn commit(&mut self, at: usize, number: usize, bytes: u32) -> Result<(), String> {
        let id = self.ledger.messages[number].id;
        let piece = self.ledger.messages[number].pieces.len();
        let payload = self.ledger.piece(number, piece, bytes);
        let place = &mut self.places[at];
        match place.station.log.begin(Content::Message, id, bytes, self.now) {
            Ok(mut record) => {
                let cut = self.random.below(u64::from(bytes)) as usize;
                record.put(&payload[..cut]);
                if self.random.one_in(30) {
                    record.abort();
                    return Ok(());
                }
                record.put(&payload[cut..]);
                let appended = record.finish();
                self.ledger.messages[number].pieces.push(bytes);
                self.ledger.appended(number, appended.ticket);
                place.uploads.retain(|&upload| upload != number);
                Ok(())
            }
            Err(error) if is_short(error) => Ok(()),
            Err(error) => Err(format!("a message was refused: {error}")),
        }
    }

    fn upload(&mut self, at: usize) -> Result<(), String> {
        if self.places[at].uploads.len() < 3 {
            let filling = self.filling();
            let number = self.ledger.add(self.config.boot, self.places[at].shard, 1, filling);
            self.places[at].uploads.push(number);
        }
        self.go_on_uploading(at)
    }

    fn go_on_uploading(&mut self, at: usize) -> Result<(), String> {
        let uploads = &self.places[at].uploads;
        if uploads.is_empty() {
            return Ok(());
        }
        let number = uploads[self.random.below(uploads.len() as u64) as usize];
        let pieces = self.ledger.messages[number].pieces.len();
        let id = self.ledger.messages[number].id;
        let place = &mut self.places[at];
        if pieces > 0 && self.random.one_in(8) {
            self.counters.abandoned += 1;
            place.station.log.abandon(id);
            place.uploads.retain(|&upload| upload != number);
            return Ok(());
        }
        let bytes = self.random.between(20, 5000) as u32;
        if pieces > 0 && self.random.one_in(3) {
            return self.commit(at, number, bytes.min(800));
        }
        let payload = self.ledger.piece(number, pieces, bytes);
        match place.station.log.begin(Content::Chunk, id, bytes, self.now) {
            Ok(mut record) => {
                record.put(payload);
                record.finish();
                self.ledger.messages[number].pieces.push(bytes);
                Ok(())
            }
            Err(error) if is_short(error) => Ok(()),
            Err(error) => Err(format!("a chunk was refused: {error}")),
        }
    }

    /// A message that is queued in the log at `at`.
    fn any_live(&mut self, at: usize) -> Option<usize> {
        let shard = self.places[at].shard;
        let of_shard = |number: &&usize| self.ledger.messages[**number].id.shard == shard;
        let live = self.ledger.live.iter().filter(of_shard).count() as u64;
        let chosen = if live == 0 { return None } else { self.random.below(live) as usize };
        self.ledger.live.iter().filter(of_shard).nth(chosen).copied()
    }

    fn record_outcome(&mut self, at: usize) -> Result<(), String> {
        let Some(number) = self.any_live(at) else { return Ok(()) };
        let message = &self.ledger.messages[number];
        if message.outcomes.is_empty() {
            return Ok(());
        }
        let recipient = self.random.below(message.outcomes.len() as u64) as usize;
        let version = message.outcomes[recipient].0 + 1;
        let payload = outcome_payload(version, number);
        match self.places[at].station.log.outcome(message.id, recipient as u32, &payload, self.now) {
            Ok(ticket) => {
                self.ledger.messages[number].outcomes[recipient].0 = version;
                self.ledger.outcome(number, recipient, ticket);
                Ok(())
            }
            Err(error) if is_short(error) => Ok(()),
            Err(error) => Err(format!("an outcome was refused: {error}")),
        }
    }

    fn settle(&mut self, at: usize) -> Result<(), String> {
        let Some(number) = self.any_live(at) else { return Ok(()) };
        if self.places[at].bouncing.iter().any(|bouncing| bouncing.number == number) {
            return Ok(());
        }
        if self.random.one_in(4) && !self.ledger.messages[number].outcomes.is_empty() {
            return self.bounce(at, number);
        }
        self.append_settled(at, number)
    }

    fn append_settled(&mut self, at: usize, number: usize) -> Result<(), String> {
        match self.places[at].station.log.settle(self.ledger.messages[number].id, b"250", self.now) {
            Ok(ticket) => {
                self.ledger.settled(number, ticket);
                Ok(())
            }
            Err(error) if is_short(error) => Ok(()),
            Err(error) => Err(format!("a settled record was refused: {error}")),
        }
    }

    /// A message that can't be delivered: a new one to its sender, and only when that is acknowledged is the old one settled (S21).
    ///
    /// The bounce of a message in an adopted log goes into another log: only the order keeps both from being lost.
    fn bounce(&mut self, at: usize, number: usize) -> Result<(), String> {
        let owns: Vec<usize> = (0..self.places.len()).filter(|&other| self.places[other].takes_mail()).collect();
        let Some(&into) = owns.get(self.random.below(owns.len().max(1) as u64) as usize) else { return Ok(()) };
        let bounce = self.ledger.add(self.config.boot, self.places[into].shard, 0, Filling::Noise);
        if self.control == Some(Control::SettledBeforeBounce) {
            self.append_settled(at, number)?;
            if self.ledger.messages[number].is_settling {
                self.ledger.messages[number].bounce = Some(bounce);
                self.places[at].bouncing.push(Bouncing { number, bounce });
            }
            return Ok(());
        }
        self.commit(into, bounce, 300)?;
        if self.ledger.messages[bounce].is_appended {
            self.places[at].bouncing.push(Bouncing { number, bounce });
        }
        Ok(())
    }

    fn settle_bounced(&mut self, at: usize) -> Result<(), String> {
        let too_early = self.control == Some(Control::SettledBeforeBounce);
        for index in (0..self.places[at].bouncing.len()).rev() {
            let Bouncing { number, bounce } = self.places[at].bouncing[index];
            if too_early {
                if !self.ledger.messages[bounce].is_appended && self.random.one_in(4) {
                    self.commit(at, bounce, 300)?;
                }
            } else if self.ledger.messages[bounce].was_given {
                self.append_settled(at, number)?;
                if self.ledger.messages[number].is_settling {
                    self.ledger.messages[number].bounce = Some(bounce);
                }
            }
            let over = if too_early { self.ledger.messages[bounce].is_appended } else { self.ledger.messages[number].is_settling };
            if over {
                self.places[at].bouncing.swap_remove(index);
            }
        }
        Ok(())
    }

    /// An attempt reads a message: pinned at one step, read at a later one.
    fn read(&mut self, at: usize) -> Result<(), String> {
        if !self.places[at].reads.is_empty() && self.random.one_in(2) {
            let place = &mut self.places[at];
            let (number, location) = place.reads.swap_remove(0);
            let (offset, bytes) = location.blocks();
            let mut blocks = vec![0; bytes];
            place.station.disk.read((location.file, false), offset as usize, &mut blocks);
            let id = self.ledger.messages[number].id;
            let found = place.station.log.check(id, &location, &blocks).map_err(|_| format!("{id:?} was pinned and is gone"))?;
            let piece = self.ledger.messages[number].pieces.len() - 1;
            let bytes = self.ledger.messages[number].pieces[piece];
            if found != self.ledger.piece(number, piece, bytes) {
                return Err(format!("{id:?} was read damaged"));
            }
            place.station.log.unpin(&location);
            self.counters.read_back += 1;
            return Ok(());
        }
        if self.places[at].reads.len() < 2
            && let Some(number) = self.any_live(at)
            && let Some(message) = self.places[at].station.log.message(self.ledger.messages[number].id)
        {
            let place = &mut self.places[at];
            place.station.log.pin(&message.location);
            place.reads.push((number, message.location));
        }
        Ok(())
    }
}
