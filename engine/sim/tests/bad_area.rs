//! A disk with a bad area: what stands behind it is found, however long it is, and what stands in it once it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use ringpost_sim::station::{BadPlace, Station};
use ringpost_sim::{Disk, Random, small_log};
use ringpost_spool::{BLOCK_BYTES, Content, Event, LogConfig, RecordId, SegmentFile};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SEGMENT_BYTES: u64 = 4 << 20;
const BLOCKS: u64 = SEGMENT_BYTES / BLOCK;

fn config(boot: u64) -> LogConfig {
    LogConfig { segment_bytes: SEGMENT_BYTES as u32, ..small_log(boot) }
}

struct Bench {
    station: Station,
    random: Random,
    now: Instant,
    boot: u64,
    file: SegmentFile,
    /// Blocks in which each message of the file stands.
    stands: BTreeMap<u64, Range<u64>>,
}

impl Bench {
    /// A segment full of messages, of which each is a batch, and a clean stop in the one behind it.
    fn new(seed: u64) -> Bench {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let station = Station::new(Disk::new(64 << 20), config(1), None, &mut random, now);
        let mut bench = Bench { station, random, now, boot: 1, file: SegmentFile(0), stands: BTreeMap::new() };
        for sequence in 0.. {
            let (file, blocks) = bench.accept(sequence);
            if sequence == 0 {
                bench.file = file;
            } else if file != bench.file {
                break;
            }
            bench.stands.insert(sequence, blocks);
            bench.idle(8);
        }
        bench.station.log.stop();
        bench.idle(2000);
        bench
    }

    fn idle(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    fn turn(&mut self) -> bool {
        self.station.begin_all(self.now);
        self.station.complete_one(&mut self.random, self.now);
        self.now += Duration::from_millis(1);
        let mut is_loaded = false;
        while let Some(event) = self.station.log.event() {
            assert!(!matches!(event, Event::Poisoned(_) | Event::Refused(_)), "{event:?}");
            is_loaded |= matches!(event, Event::Loaded(_));
        }
        is_loaded
    }

    fn accept(&mut self, sequence: u64) -> (SegmentFile, Range<u64>) {
        loop {
            let id = RecordId { boot: 1, shard: 0, sequence };
            if let Ok(mut record) = self.station.log.begin(Content::Message, id, 9000, self.now) {
                record.put(&[7; 9000]);
                let location = record.finish().location;
                let (start, bytes) = location.blocks();
                return (location.file, start / BLOCK..(start + bytes as u64) / BLOCK);
            }
            self.turn();
        }
    }

    /// The next life: which messages of the file it finds.
    fn found(&mut self) -> BTreeSet<u64> {
        self.boot += 1;
        self.station.reopen(config(self.boot), &mut self.random, self.now);
        for _ in 0..100_000 {
            if self.turn() {
                return self.station.log.queued().map(|id| id.sequence).filter(|sequence| self.stands.contains_key(sequence)).collect();
            }
        }
        panic!("the log never opened");
    }
}

/// Behind 64 bad blocks nothing more of a segment was read, at any start: acknowledged mail that the disk would have given stayed away.
#[test]
fn mail_behind_a_bad_area_is_found_at_once() {
    for (seed, bad) in (1..).zip([10..75, 10..80, 10..300, 200..900, 3..BLOCKS / 2]) {
        let mut bench = Bench::new(seed);
        let place = BadPlace { file: bench.file, bytes: bad.start * BLOCK..bad.end * BLOCK, times: u32::MAX };
        bench.station.unreadable.push(place);
        let all: BTreeSet<u64> = bench.stands.keys().copied().collect();
        let found = bench.found();
        let is_lost = |sequence: &&u64| !found.contains(sequence);
        for sequence in all.iter().filter(is_lost) {
            let blocks = &bench.stands[sequence];
            assert!(blocks.start < bad.end && bad.start < blocks.end, "{bad:?} are bad: message {sequence} in {blocks:?} was not found");
        }
        assert!(found.len() < all.len() && bench.station.reads.1 < 64 + 64, "{bad:?}: {} reads were refused", bench.station.reads.1);
        bench.idle(2000);
        bench.station.unreadable.clear();
        assert_eq!(bench.found(), all, "{bad:?}");
    }
}
