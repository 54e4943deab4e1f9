//! One seed: several lives of one log on one disk, cut wherever chance says, and a ledger of what was promised.

use std::time::{Duration, Instant};

use ringpost_spool::{AppendError, BLOCK_BYTES, Content, Event, Location, LogConfig, PoisonReason, SegmentFile};

use crate::content::Filling;
use crate::control::Control;
use crate::counters::Counters;
use crate::disk::{Cut, Disk};
use crate::ledger::{Ledger, outcome_payload};
use crate::random::Random;
use crate::station::{Fault, Station};

/// A promise that was not kept.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}, life {life}: {what}")]
pub struct Loss {
    /// The seed that shows it.
    pub seed: u64,
    /// The life in which it showed.
    pub life: u32,
    /// What was expected and what came.
    pub what: String,
}

/// Messages that a seed keeps queued at once: more would fill its small segments.
const LIVE_MAX: usize = 16;
const SHARD: u16 = 3;

/// How the present life stands.
#[derive(Default)]
struct Life {
    is_open: bool,
    is_loaded: bool,
    is_sealed: bool,
    is_poisoned: bool,
    is_stopping: bool,
    is_stopped: bool,
}

/// A settlement that waits for its bounce.
struct Bouncing {
    number: usize,
    bounce: usize,
}

struct Seed {
    random: Random,
    station: Station,
    ledger: Ledger,
    counters: Counters,
    control: Option<Control>,
    config: LogConfig,
    now: Instant,
    life: Life,
    /// Uploads in chunks that are not committed.
    uploads: Vec<usize>,
    bouncing: Vec<Bouncing>,
    /// Attempts that read: message, piece, pinned location.
    reads: Vec<(usize, Location)>,
    uses: Vec<(SegmentFile, u64)>,
}

/// Runs one seed. Fails with the first promise that was broken.
pub fn run(seed: u64, control: Option<Control>) -> Result<Counters, Loss> {
    let mut random = Random::new(seed);
    let now = Instant::now();
    let batch_blocks = random.between(2, 3);
    let segment_blocks = random.between(8, 16);
    let segments_max = random.between(6, 9);
    let block = BLOCK_BYTES as u64;
    let mut config = LogConfig::new(0x5150, SHARD, 1);
    config.segment_bytes = (segment_blocks * block) as u32;
    config.batch_bytes = (batch_blocks * block) as u32;
    config.read_bytes = if random.one_in(2) { config.segment_bytes } else { config.batch_bytes };
    config.prepared_segments = 3;
    config.segments_max = segments_max as u32;
    config.open_bytes_max = 40_000;
    config.prepare_bytes_per_s = 1 << 40;
    config.compact_bytes_per_s = 1 << 40;
    // Some disks are smaller than what the log may use.
    let room = if random.one_in(3) { segments_max - 1 } else { segments_max + 1 };
    let mut disk = Disk::new((room * segment_blocks * block) as usize);
    disk.forgets_flushes = control == Some(Control::NoSync);
    let station = Station::new(disk, config.clone(), control, &mut random, now);
    let lives = random.between(3, 5) as u32;
    let mut seed_run = Seed {
        random,
        station,
        ledger: Ledger::default(),
        counters: Counters::default(),
        control,
        config,
        now,
        life: Life::default(),
        uploads: Vec::new(),
        bouncing: Vec::new(),
        reads: Vec::new(),
        uses: Vec::new(),
    };
    for life in 0..=lives {
        seed_run.live(life == lives).map_err(|what| Loss { seed, life, what })?;
        if life < lives {
            seed_run.end_life();
        }
    }
    let counters = &mut seed_run.counters;
    counters.seeds = 1;
    let most = seed_run.uses.iter().map(|&(_, uses)| uses).max().unwrap_or(0);
    counters.reuses = most;
    counters.seeds_with_three_uses = u64::from(most >= 3);
    Ok(*counters)
}

impl Seed {
    /// One life, up to its cut. The last one goes on until everything is known, and verifies.
    fn live(&mut self, is_last: bool) -> Result<(), String> {
        self.counters.lives += 1;
        self.life = Life::default();
        // A life in six is cut while it recovers; the others last long enough to use segments again.
        let steps = if self.random.one_in(6) { self.random.between(1, 40) } else { self.random.between(60, 420) };
        if !is_last && self.random.one_in(8) {
            let fault = [Fault::ShortWrite, Fault::FailedWrite, Fault::FailedSync][self.random.below(3) as usize];
            self.station.fault = Some((self.random.below(40), fault));
        }
        let mut step = 0;
        while if is_last { !self.life.is_loaded } else { step < steps } {
            step += 1;
            if step > 2_000 && step % 100 == 0 && !self.life.is_loaded {
                // The operator makes room: a log that found no segment to go on in must do so now.
                assert!(step < 20_000, "a recovery ends");
                self.station.disk.capacity += self.config.segment_bytes as usize;
                self.counters.room_made += 1;
            }
            self.station.begin_all(self.now);
            if !self.life.is_open {
                self.station.land_late(&mut self.random);
            }
            if self.life.is_loaded && !self.life.is_poisoned && !self.life.is_stopping {
                self.act()?;
            }
            self.station.begin_all(self.now);
            if self.random.one_in(3) || (self.station.running() > 0 && self.random.one_in(2)) {
                self.station.complete_one(&mut self.random, self.now);
            }
            self.take_events()?;
            self.pass_time();
            if self.life.is_stopped || (self.life.is_poisoned && self.station.running() == 0) {
                break;
            }
        }
        self.ledger.verify_bounces()
    }

    fn end_life(&mut self) {
        let cut = if self.random.one_in(3) { Cut::Kill } else { Cut::Power };
        let counters = &mut self.counters;
        match cut {
            _ if self.life.is_stopped => counters.stops += 1,
            Cut::Kill => counters.kills += 1,
            Cut::Power => counters.power_cuts += 1,
        }
        let carried = self.station.log.carried();
        counters.outcome_carried_forward += carried.outcomes;
        counters.others_carried_forward += carried.others;
        let under_way = self.station.cut(cut, &mut self.random);
        let counters = &mut self.counters;
        counters.cuts_in_recovery += u64::from(!self.life.is_loaded);
        counters.cuts_in_sealing += u64::from(self.life.is_loaded && !self.life.is_sealed);
        counters.cuts_in_preparation += u64::from(under_way.preparing);
        counters.cuts_in_freeing += u64::from(under_way.freeing);
        counters.header_writes_cut += u64::from(under_way.freeing);
        counters.cuts_in_compaction += u64::from(self.life.is_loaded && under_way.reading);
        counters.cuts_with_two_in_flight += u64::from(under_way.batches == 2);
        counters.torn_writes += u64::from(under_way.torn);
        self.ledger.cut(SHARD);
        self.uploads.clear();
        self.bouncing.clear();
        self.reads.clear();
        self.now += Duration::from_secs(1);
        self.config.boot += 1;
        self.station.reopen(self.config.clone(), &mut self.random, self.now);
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_micros(self.random.between(50, 1500));
        if self.station.running() == 0
            && self.random.one_in(4)
            && let Some(deadline) = self.station.log.next_deadline()
        {
            self.now = self.now.max(deadline);
        }
        // A log that waits for a full disk to have room again.
        if self.station.running() == 0 && !self.life.is_loaded {
            self.now += Duration::from_millis(100);
        }
    }

    fn take_events(&mut self) -> Result<(), String> {
        let Seed { station, ledger, counters, life, uses, .. } = self;
        while let Some(event) = station.log.event() {
            match event {
                Event::Opened => life.is_open = true,
                Event::Found { .. } | Event::FoundOutcome { .. } => ledger.found(&event)?,
                Event::FoundSettled { .. } => (),
                Event::Loaded(report) => {
                    counters.add_report(&report);
                    ledger.verify(SHARD, &station.log, &station.disk)?;
                    station.forget_late();
                    life.is_loaded = true;
                }
                Event::Incomplete { id } => return Err(format!("{id:?} is incomplete")),
                Event::Damaged(damage) => {
                    use ringpost_spool::DamageKind::{Quarantined, ReadFailed};
                    if matches!(damage.kind, Quarantined | ReadFailed) {
                        return Err(format!("a cut damages nothing that was acknowledged, but {damage:?}"));
                    }
                }
                Event::Acknowledged(ticket) => {
                    if life.is_poisoned {
                        return Err("acknowledged after a failure".into());
                    }
                    life.is_sealed = true;
                    ledger.acknowledged(SHARD, ticket, counters);
                }
                Event::Poisoned(PoisonReason::Write { .. } | PoisonReason::Flush { .. }) if station.fault.is_some() => {
                    counters.faults += 1;
                    life.is_poisoned = true;
                }
                Event::Poisoned(reason) => return Err(format!("poisoned without a fault: {reason}")),
                Event::Refused(error) => return Err(format!("refused: {error}")),
                Event::SegmentPrepared { .. } => counters.segments_prepared += 1,
                Event::SegmentFreed { file } => {
                    counters.segments_freed += 1;
                    match uses.iter_mut().find(|(known, _)| *known == file) {
                        Some((_, uses)) => *uses += 1,
                        None => uses.push((file, 1)),
                    }
                }
                Event::Reserve(entered) => counters.reserve += u64::from(entered),
                Event::Stopped => life.is_stopped = true,
                Event::PrepareFailed { .. } | Event::Retired => (),
            }
        }
        Ok(())
    }

    /// What clients and relays do in one step.
    fn act(&mut self) -> Result<(), String> {
        self.settle_bounced()?;
        let crowded = self.ledger.live.len() >= LIVE_MAX;
        match self.random.below(16) {
            0..4 if !crowded => self.send()?,
            4 if !crowded => self.upload()?,
            5 | 6 => self.go_on_uploading()?,
            7..9 => self.record_outcome()?,
            9..12 => self.settle()?,
            12 => self.read()?,
            13 if self.random.one_in(60) => {
                self.station.log.stop();
                self.life.is_stopping = true;
            }
            0..5 => self.settle()?,
            _ => (),
        }
        Ok(())
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

    fn send(&mut self) -> Result<(), String> {
        let filling = self.filling();
        let recipients = self.random.between(1, 3) as usize;
        let number = self.ledger.add(self.config.boot, SHARD, recipients, filling);
        let most = if self.random.one_in(6) { u64::from(self.config.batch_bytes) - 200 } else { 2500 };
        let bytes = self.random.between(20, most) as u32;
        self.commit(number, bytes)
    }

    /// Appends the message record, with the last piece of its payload.
    fn commit(&mut self, number: usize, bytes: u32) -> Result<(), String> {
        let id = self.ledger.messages[number].id;
        let piece = self.ledger.messages[number].pieces.len();
        let payload = self.ledger.piece(number, piece, bytes);
        match self.station.log.begin(Content::Message, id, bytes, self.now) {
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
                self.uploads.retain(|&upload| upload != number);
                Ok(())
            }
            Err(AppendError::Full | AppendError::NoSpace) => Ok(()),
            Err(error) => Err(format!("a message was refused: {error}")),
        }
    }

    fn upload(&mut self) -> Result<(), String> {
        if self.uploads.len() < 3 {
            let filling = self.filling();
            let number = self.ledger.add(self.config.boot, SHARD, 1, filling);
            self.uploads.push(number);
        }
        self.go_on_uploading()
    }

    fn go_on_uploading(&mut self) -> Result<(), String> {
        if self.uploads.is_empty() {
            return Ok(());
        }
        let number = self.uploads[self.random.below(self.uploads.len() as u64) as usize];
        let pieces = self.ledger.messages[number].pieces.len();
        if pieces > 0 && self.random.one_in(8) {
            self.counters.abandoned += 1;
            self.station.log.abandon(self.ledger.messages[number].id);
            self.uploads.retain(|&upload| upload != number);
            return Ok(());
        }
        let bytes = self.random.between(20, 5000) as u32;
        if pieces > 0 && self.random.one_in(3) {
            return self.commit(number, bytes.min(800));
        }
        let id = self.ledger.messages[number].id;
        let payload = self.ledger.piece(number, pieces, bytes);
        match self.station.log.begin(Content::Chunk, id, bytes, self.now) {
            Ok(mut record) => {
                record.put(payload);
                record.finish();
                self.ledger.messages[number].pieces.push(bytes);
                Ok(())
            }
            Err(AppendError::Full | AppendError::NoSpace | AppendError::OpenMax) => Ok(()),
            Err(error) => Err(format!("a chunk was refused: {error}")),
        }
    }

    fn any_live(&mut self) -> Option<usize> {
        let live = &self.ledger.live;
        (!live.is_empty()).then(|| live[self.random.below(live.len() as u64) as usize])
    }

    fn record_outcome(&mut self) -> Result<(), String> {
        let Some(number) = self.any_live() else { return Ok(()) };
        let message = &self.ledger.messages[number];
        if message.outcomes.is_empty() {
            return Ok(());
        }
        let recipient = self.random.below(message.outcomes.len() as u64) as usize;
        let version = message.outcomes[recipient].0 + 1;
        match self.station.log.outcome(message.id, recipient as u32, &outcome_payload(version, number), self.now) {
            Ok(ticket) => {
                self.ledger.messages[number].outcomes[recipient].0 = version;
                self.ledger.outcome(number, recipient, ticket);
                Ok(())
            }
            Err(AppendError::Full | AppendError::NoSpace) => Ok(()),
            Err(error) => Err(format!("an outcome was refused: {error}")),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        let Some(number) = self.any_live() else { return Ok(()) };
        if self.bouncing.iter().any(|bouncing| bouncing.number == number) {
            return Ok(());
        }
        if self.random.one_in(4) && !self.ledger.messages[number].outcomes.is_empty() {
            return self.bounce(number);
        }
        self.append_settled(number)
    }

    fn append_settled(&mut self, number: usize) -> Result<(), String> {
        match self.station.log.settle(self.ledger.messages[number].id, b"250", self.now) {
            Ok(ticket) => {
                self.ledger.settled(number, ticket);
                Ok(())
            }
            Err(AppendError::Full | AppendError::NoSpace) => Ok(()),
            Err(error) => Err(format!("a settled record was refused: {error}")),
        }
    }

    /// A message that can't be delivered: a new one to its sender, and only when that is acknowledged is the old one settled (S21).
    fn bounce(&mut self, number: usize) -> Result<(), String> {
        let bounce = self.ledger.add(self.config.boot, SHARD, 0, Filling::Noise);
        if self.control == Some(Control::SettledBeforeBounce) {
            self.append_settled(number)?;
            if !self.ledger.messages[number].is_settling {
                return Ok(());
            }
            self.ledger.messages[number].bounce = Some(bounce);
            self.bouncing.push(Bouncing { number, bounce });
            return Ok(());
        }
        self.commit(bounce, 300)?;
        if self.ledger.messages[bounce].is_appended {
            self.bouncing.push(Bouncing { number, bounce });
        }
        Ok(())
    }

    fn settle_bounced(&mut self) -> Result<(), String> {
        for at in (0..self.bouncing.len()).rev() {
            let Bouncing { number, bounce } = self.bouncing[at];
            if self.control == Some(Control::SettledBeforeBounce) {
                if !self.ledger.messages[bounce].is_appended && self.random.one_in(4) {
                    self.commit(bounce, 300)?;
                }
            } else if self.ledger.messages[bounce].was_given {
                self.append_settled(number)?;
                if self.ledger.messages[number].is_settling {
                    self.ledger.messages[number].bounce = Some(bounce);
                }
            }
            let over = if self.control == Some(Control::SettledBeforeBounce) {
                self.ledger.messages[bounce].is_appended
            } else {
                self.ledger.messages[number].is_settling
            };
            if over {
                self.bouncing.swap_remove(at);
            }
        }
        Ok(())
    }

    /// An attempt reads a message: pinned at one step, read at a later one.
    fn read(&mut self) -> Result<(), String> {
        if !self.reads.is_empty() && self.random.one_in(2) {
            let (number, location) = self.reads.swap_remove(0);
            let (offset, bytes) = location.blocks();
            let mut blocks = vec![0; bytes];
            self.station.disk.read((location.file, false), offset as usize, &mut blocks);
            let id = self.ledger.messages[number].id;
            let found = self.station.log.check(id, &location, &blocks).map_err(|_| format!("{id:?} was pinned and is gone"))?;
            let piece = self.ledger.messages[number].pieces.len() - 1;
            let bytes = self.ledger.messages[number].pieces[piece];
            if found != self.ledger.piece(number, piece, bytes) {
                return Err(format!("{id:?} was read damaged"));
            }
            self.station.log.unpin(&location);
            self.counters.read_back += 1;
            return Ok(());
        }
        if self.reads.len() < 2
            && let Some(number) = self.any_live()
            && let Some(message) = self.station.log.message(self.ledger.messages[number].id)
        {
            self.station.log.pin(&message.location);
            self.reads.push((number, message.location));
        }
        Ok(())
    }
}
