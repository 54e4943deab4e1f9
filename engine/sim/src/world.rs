//! Several lives of one or more logs, cut wherever chance says, and a ledger of what was promised.

use std::time::{Duration, Instant};

use ringpost_spool::{BLOCK_BYTES, Event, Location, LogConfig, PoisonReason, Role, SegmentFile};

use crate::actions::Bouncing;
use crate::control::Control;
use crate::counters::Counters;
use crate::disk::{Cut, Disk};
use crate::ledger::Ledger;
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

/// How the present life of a log stands.
#[derive(Default)]
pub(crate) struct Life {
    pub(crate) is_open: bool,
    pub(crate) is_loaded: bool,
    pub(crate) is_sealed: bool,
    pub(crate) is_poisoned: bool,
    pub(crate) is_stopping: bool,
    pub(crate) is_stopped: bool,
}

/// One log, and what its clients are about.
pub(crate) struct Place {
    pub(crate) station: Station,
    pub(crate) shard: u16,
    pub(crate) is_own: bool,
    pub(crate) life: Life,
    /// Uploads in chunks that are not committed.
    pub(crate) uploads: Vec<usize>,
    pub(crate) bouncing: Vec<Bouncing>,
    /// Attempts that read: message, pinned location.
    pub(crate) reads: Vec<(usize, Location)>,
    uses: Vec<(SegmentFile, u64)>,
}

impl Place {
    pub(crate) fn takes_mail(&self) -> bool {
        self.is_own && self.is_active()
    }

    fn is_active(&self) -> bool {
        self.life.is_open && !self.life.is_poisoned && !self.life.is_stopping
    }

    fn is_over(&self) -> bool {
        self.life.is_stopped || (self.life.is_poisoned && self.station.running() == 0)
    }
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) places: Vec<Place>,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
    pub(crate) control: Option<Control>,
    pub(crate) config: LogConfig,
    pub(crate) now: Instant,
    /// Bytes of a disk that has all segments a log may have.
    capacity: usize,
    /// This life is to find everything: it isn't stopped before it has.
    pub(crate) is_last: bool,
}

/// One log, three to five lives. Fails with the first promise that was broken.
pub fn run(seed: u64, control: Option<Control>) -> Result<Counters, Loss> {
    let mut world = World::new(seed, control);
    let lives = world.random.between(3, 5) as usize;
    world.play(seed, &vec![1; lives])
}

/// As many logs as there are shards, and their number changes from life to life: 2, 1, 2, 3. Logs without a shard are adopted.
pub fn run_shards(seed: u64, control: Option<Control>) -> Result<Counters, Loss> {
    World::new(seed, control).play(seed, &[2, 1, 2, 3])
}

impl World {
    fn new(seed: u64, control: Option<Control>) -> Self {
        let mut random = Random::new(seed);
        let batch_blocks = random.between(2, 3);
        let segment_blocks = random.between(8, 16);
        let segments_max = random.between(6, 9);
        let block = BLOCK_BYTES as u64;
        let mut config = LogConfig::new(0x5150, 0, 0);
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
        let capacity = (room * segment_blocks * block) as usize;
        let (ledger, counters, now) = (Ledger::default(), Counters::default(), Instant::now());
        World { random, places: Vec::new(), ledger, counters, control, config, now, capacity, is_last: false }
    }

    /// One life per entry of `shards`, and one more that is not cut and finds everything.
    fn play(mut self, seed: u64, shards: &[usize]) -> Result<Counters, Loss> {
        for (life, &count) in shards.iter().chain(shards.last()).enumerate() {
            let is_last = life == shards.len();
            self.is_last = is_last;
            self.open(count);
            self.live(is_last).map_err(|what| Loss { seed, life: life as u32, what })?;
            if !is_last {
                self.end_life();
            }
        }
        let most = self.places.iter().flat_map(|place| &place.uses).map(|&(_, uses)| uses).max().unwrap_or(0);
        self.counters.seeds = 1;
        self.counters.reuses = most;
        self.counters.seeds_with_three_uses = u64::from(most >= 3);
        Ok(self.counters)
    }

    /// A new process with so many shards: it opens their logs and adopts the others.
    fn open(&mut self, count: usize) {
        self.config.boot += 1;
        self.counters.lives += 1;
        for at in 0..count.max(self.places.len()) {
            let role = if at < count { Role::Own } else { Role::Adopted };
            let config = LogConfig { shard: at as u16, role, ..self.config.clone() };
            if at == self.places.len() {
                let mut disk = Disk::new(self.capacity);
                disk.forgets_flushes = self.control == Some(Control::NoSync);
                let station = Station::new(disk, config, self.control, &mut self.random, self.now);
                let (uploads, bouncing, reads, uses) = Default::default();
                let (shard, is_own, life) = (at as u16, true, Life::default());
                self.places.push(Place { station, shard, is_own, life, uploads, bouncing, reads, uses });
            } else {
                let place = &mut self.places[at];
                place.station.reopen(config, &mut self.random, self.now);
                (place.is_own, place.life) = (role == Role::Own, Life::default());
            }
        }
    }

    /// One life, up to its cut. The last one goes on until everything is known.
    fn live(&mut self, is_last: bool) -> Result<(), String> {
        // A life in six is cut while it recovers; the others last long enough to use segments again.
        let steps = if self.random.one_in(6) { self.random.between(1, 40) } else { self.random.between(60, 420) };
        let steps = steps * self.places.len() as u64;
        if !is_last && self.random.one_in(8) {
            let fault = [Fault::ShortWrite, Fault::FailedWrite, Fault::FailedSync][self.random.below(3) as usize];
            let at = self.random.below(self.places.len() as u64) as usize;
            self.places[at].station.fault = Some((self.random.below(40), fault));
        }
        let mut step = 0;
        while if is_last { self.places.iter().any(|place| !place.life.is_loaded) } else { step < steps } {
            step += 1;
            let at = self.random.below(self.places.len() as u64) as usize;
            self.step(at, step)?;
            if !is_last && self.places.iter().any(|place| place.life.is_poisoned) {
                // What fails in one log of a spool ends all (S8).
                for place in &mut self.places {
                    place.station.log.poison(PoisonReason::Elsewhere);
                    place.life.is_poisoned = true;
                }
            }
            if self.places.iter().all(Place::is_over) {
                break;
            }
        }
        self.ledger.verify_bounces(|shard| self.places[usize::from(shard)].life.is_loaded)
    }

    fn step(&mut self, at: usize, step: u64) -> Result<(), String> {
        let place = &mut self.places[at];
        if step > 2_000 && step.is_multiple_of(100) && !place.life.is_loaded {
            // The operator makes room: a log that found no segment to go on in must do so now.
            assert!(step < 20_000, "a recovery ends");
            place.station.disk.capacity += self.config.segment_bytes as usize;
            self.counters.room_made += 1;
        }
        place.station.begin_all(self.now);
        if !place.life.is_open {
            place.station.land_late(&mut self.random);
        }
        if place.is_active() {
            self.act(at)?;
        }
        let place = &mut self.places[at];
        place.station.begin_all(self.now);
        if self.random.one_in(3) || (place.station.running() > 0 && self.random.one_in(2)) {
            place.station.complete_one(&mut self.random, self.now);
        }
        self.take_events(at)?;
        self.pass_time(at);
        Ok(())
    }

    fn pass_time(&mut self, at: usize) {
        self.now += Duration::from_micros(self.random.between(50, 1500));
        let place = &self.places[at];
        if place.station.running() > 0 {
            return;
        }
        if self.random.one_in(4)
            && let Some(deadline) = place.station.log.next_deadline()
        {
            self.now = self.now.max(deadline);
        }
        // A log that waits for a full disk to have room again.
        if !place.life.is_loaded {
            self.now += Duration::from_millis(100);
        }
    }

    fn end_life(&mut self) {
        let cut = if self.random.one_in(3) { Cut::Kill } else { Cut::Power };
        let counters = &mut self.counters;
        match cut {
            _ if self.places.iter().all(|place| place.life.is_stopped) => counters.stops += 1,
            Cut::Kill => counters.kills += 1,
            Cut::Power => counters.power_cuts += 1,
        }
        for place in &mut self.places {
            let carried = place.station.log.carried();
            counters.outcome_carried_forward += carried.outcomes;
            counters.others_carried_forward += carried.others;
            let under_way = place.station.cut(cut, &mut self.random);
            counters.cuts_in_recovery += u64::from(!place.life.is_loaded);
            counters.cuts_in_sealing += u64::from(place.life.is_loaded && !place.life.is_sealed);
            counters.cuts_in_preparation += u64::from(under_way.preparing);
            counters.cuts_in_freeing += u64::from(under_way.freeing);
            counters.cuts_in_compaction += u64::from(place.life.is_loaded && under_way.reading);
            counters.cuts_with_two_in_flight += u64::from(under_way.batches == 2);
            counters.torn_writes += u64::from(under_way.torn);
            self.ledger.cut(place.shard);
            place.uploads.clear();
            place.bouncing.clear();
            place.reads.clear();
        }
        self.now += Duration::from_secs(1);
    }

    fn take_events(&mut self, at: usize) -> Result<(), String> {
        let World { places, ledger, counters, config, .. } = self;
        let Place { station, life, uses, shard, .. } = &mut places[at];
        while let Some(event) = station.log.event() {
            match event {
                Event::Opened => {
                    life.is_open = true;
                    counters.opened_before_loaded += u64::from(station.log.is_loading());
                    station.forget_late();
                }
                Event::Found { .. } | Event::FoundOutcome { .. } => ledger.found(&event)?,
                Event::FoundSettled { .. } => (),
                Event::Loaded(report) => {
                    counters.add_report(&report);
                    ledger.verify(*shard, config.boot, &station.log, &station.disk)?;
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
                    ledger.acknowledged(*shard, ticket, counters);
                }
                Event::Poisoned(PoisonReason::Elsewhere) => (),
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
                Event::Retired => {
                    counters.retired += 1;
                    life.is_stopped = true;
                }
                Event::PrepareFailed { .. } | Event::NotEmptied { .. } => (),
            }
        }
        Ok(())
    }
}
