//! A log that had no room says when it has some: nobody who waits for that waits for ever.

use std::time::{Duration, Instant};

use ringpost_sim::station::Station;
use ringpost_sim::{Disk, Random, small_log};
use ringpost_spool::{AppendError, Content, Event, LogConfig, RecordId, Space};

const MESSAGE: RecordId = RecordId { boot: 1, shard: 0, sequence: 1 };
const OUTCOMES: u32 = 150;

fn config() -> LogConfig {
    // A second for each segment: they are used up before the next is there.
    LogConfig { segments_max: 32, prepare_bytes_per_s: 128 << 10, ..small_log(1) }
}

/// What one turn told.
#[derive(Default)]
struct Told {
    events: u32,
    makes_room: bool,
    acknowledged: bool,
    prepared: bool,
}

/// A shard's outcomes, as its delivery appends them: what finds no room is tried again when an event says so.
struct Shard {
    station: Station,
    random: Random,
    now: Instant,
    /// From one completion to the next: a fast disk or a slow one.
    step: Duration,
    appended: u32,
    /// Waits that the preparation of a segment ended, and nothing else.
    ended_by_preparation: u32,
}

impl Shard {
    fn turn(&mut self) -> Told {
        self.station.begin_all(self.now);
        self.station.complete_one(&mut self.random, self.now);
        self.now += self.step;
        let mut told = Told::default();
        while let Some(event) = self.station.log.event() {
            told.events += 1;
            told.makes_room |= event.makes_room();
            told.acknowledged |= matches!(event, Event::Acknowledged(_));
            told.prepared |= matches!(event, Event::SegmentPrepared { .. });
        }
        told
    }

    fn accept(&mut self) {
        while self.station.log.begin(Content::Message, MESSAGE, 0, self.now).map(|record| record.finish()).is_err() {
            self.turn();
        }
        while !self.turn().acknowledged {}
    }

    /// True if all found room.
    fn append(&mut self) -> bool {
        while self.appended < OUTCOMES {
            match self.station.log.outcome(MESSAGE, self.appended, &[0; 6000], self.now) {
                Ok(_) => self.appended += 1,
                Err(AppendError::Full | AppendError::NoSpace) => return false,
                Err(other) => panic!("{other}"),
            }
        }
        true
    }

    fn append_all(&mut self) -> bool {
        if self.append() {
            return true;
        }
        let mut idle = 0;
        // Long enough for all that goes by time: the pace of preparing, the witness of a tail.
        while idle < 3_000 {
            let told = self.turn();
            idle = if self.station.running() == 0 { idle + 1 } else { 0 };
            if told.makes_room {
                self.ended_by_preparation += u32::from(told.prepared && told.events == 1);
                if self.append() {
                    return true;
                }
            }
        }
        false
    }
}

/// Who waits on a full disk is told when others have freed some of it, before anything is written there.
#[test]
fn who_found_the_disk_full_is_told_when_there_is_space_again() {
    for seed in 0..50 {
        let (mut random, now) = (Random::new(seed), Instant::now());
        if random.clone().one_in(4) {
            continue;
        }
        let station = Station::new(Disk::new(8 << 20), config(), None, &mut random, now);
        let mut shard = Shard { station, random, now, step: Duration::from_millis(20), appended: 0, ended_by_preparation: 0 };
        shard.accept();
        shard.station.log.set_space(Space { bytes: 0, inodes: 0 });
        assert!(!shard.append_all(), "seed {seed}: they do not fit");
        assert_eq!(shard.station.log.outcome(MESSAGE, shard.appended, &[0; 6000], shard.now), Err(AppendError::NoSpace), "seed {seed}");
        assert_eq!(shard.station.running(), 0);
        shard.station.log.set_space(Space { bytes: u64::MAX, inodes: u64::MAX });
        shard.station.begin_all(shard.now);
        let is_told = std::iter::from_fn(|| shard.station.log.event().map(|event| event.makes_room())).any(|makes_room| makes_room);
        assert!(is_told, "seed {seed}: nothing has ended since");
        assert!(shard.append_all(), "seed {seed}");
    }
}

/// A prepared segment told nobody: what had found none stayed unwritten until something else happened, and with 1024 of them only
/// chance made something happen, because a shard then takes no mail and begins no attempt.
#[test]
fn who_tries_again_when_an_event_says_so_finds_the_room_that_comes() {
    let mut ended_by_preparation = 0;
    for seed in 0..200 {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let step = Duration::from_micros(random.between(1000, 50_000));
        // Some of the simulated hosts have no buffer now and then; those of shards always have one.
        if random.clone().one_in(4) {
            continue;
        }
        let station = Station::new(Disk::new(8 << 20), config(), None, &mut random, now);
        let mut shard = Shard { station, random, now, step, appended: 0, ended_by_preparation: 0 };
        shard.accept();
        assert!(shard.append_all(), "seed {seed}: {} of {OUTCOMES} are written, and nothing more is told", shard.appended);
        ended_by_preparation += shard.ended_by_preparation;
    }
    assert!(ended_by_preparation > 20, "the test meets what it is about: {ended_by_preparation}");
}
