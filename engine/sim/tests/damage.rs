//! A stopped log whose disk goes bad: bits flip, blocks turn to zeros or to noise. What verifies is found, what doesn't is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringpost_sim::content::{Filling, payload};
use ringpost_sim::station::Station;
use ringpost_sim::{Disk, Random};
use ringpost_spool::{BLOCK_BYTES, Content, DamageKind, Event, LogConfig, RecordId, SegmentFile};

const MESSAGES: u64 = 60;

struct Bench {
    station: Station,
    random: Random,
    now: Instant,
    /// Blocks in which each message's record stands: (file, first, behind the last).
    stands: BTreeMap<u64, (SegmentFile, u64, u64)>,
}

fn config(boot: u64) -> LogConfig {
    let mut config = LogConfig::new(7, 0, boot);
    config.segment_bytes = 128 << 10;
    config.batch_bytes = 16 << 10;
    config.read_bytes = 64 << 10;
    config.prepared_segments = 3;
    config.segments_max = 12;
    config.prepare_bytes_per_s = 1 << 40;
    config
}

impl Bench {
    /// A log with messages of all sizes, stopped cleanly.
    fn new(seed: u64) -> Bench {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let station = Station::new(Disk::new(4 << 20), config(1), None, &mut random, now);
        let mut bench = Bench { station, random, now, stands: BTreeMap::new() };
        let mut next = 0;
        for _ in 0..100_000 {
            bench.turn(|_| ());
            if next == MESSAGES {
                break;
            }
            let id = RecordId { boot: 1, shard: 0, sequence: next };
            let (mut bytes, mut body) = (bench.random.between(100, 9000) as usize, Vec::new());
            payload(next, 0, bytes, Filling::Noise, &mut body);
            bytes = body.len();
            if let Ok(mut record) = bench.station.log.begin(Content::Message, id, bytes as u32, bench.now) {
                record.put(&body);
                let location = record.finish().location;
                let (start, length) = location.blocks();
                bench.stands.insert(next, (location.file, start / BLOCK_BYTES as u64, (start + length as u64) / BLOCK_BYTES as u64));
                next += 1;
            }
        }
        bench.station.log.stop();
        let mut stopped = false;
        for _ in 0..10_000 {
            bench.turn(|event| stopped |= *event == Event::Stopped);
        }
        assert!(stopped);
        bench
    }

    fn turn(&mut self, mut see: impl FnMut(&Event<'_>)) {
        self.station.begin_all(self.now);
        self.station.complete_one(&mut self.random, self.now);
        while let Some(event) = self.station.log.event() {
            see(&event);
        }
        self.now += Duration::from_micros(200);
    }

    /// The next life: messages found, damage told.
    fn recover(&mut self) -> (BTreeSet<u64>, Vec<(SegmentFile, DamageKind)>) {
        self.recover_as(2)
    }

    fn recover_as(&mut self, boot: u64) -> (BTreeSet<u64>, Vec<(SegmentFile, DamageKind)>) {
        self.station.reopen(config(boot), &mut self.random, self.now);
        let (mut found, mut damages, mut loaded) = (BTreeSet::new(), Vec::new(), false);
        let mut body = Vec::new();
        for _ in 0..10_000 {
            self.turn(|event| match event {
                Event::Found { id, payload: bytes, .. } => {
                    payload(id.sequence, 0, bytes.len(), Filling::Noise, &mut body);
                    assert_eq!(&body, bytes, "a damaged message was found");
                    found.insert(id.sequence);
                }
                Event::Damaged(damage) => damages.push((damage.file, damage.kind)),
                Event::Loaded(_) => loaded = true,
                _ => (),
            });
            if loaded {
                return (found, damages);
            }
        }
        panic!("the log never opened");
    }
}

#[test]
fn an_undamaged_log_is_found_whole() {
    let mut bench = Bench::new(1);
    let (found, damages) = bench.recover();
    assert_eq!(found.len() as u64, MESSAGES);
    assert_eq!(damages, []);
}

/// The first start of a new spool said that it was damaged: its first segment is written in advance, as zeros without a header.
#[test]
fn a_file_written_in_advance_is_no_damage() {
    let (mut random, now) = (Random::new(1), Instant::now());
    let (mut disk, file) = (Disk::new(4 << 20), SegmentFile(1));
    disk.create((file, false));
    disk.allocate((file, false), 128 << 10);
    disk.sync((file, false));
    disk.sync_directory();
    let station = Station::new(disk, config(1), None, &mut random, now);
    let mut bench = Bench { station, random, now, stands: BTreeMap::new() };
    assert_eq!(bench.recover(), (BTreeSet::new(), vec![]));
}

#[test]
fn one_bad_block_costs_only_what_stands_in_it() {
    let rounds = if cfg!(debug_assertions) { 60 } else { 1000 };
    let (mut harmless, mut costly) = (0, 0);
    for seed in 0..rounds {
        let mut bench = Bench::new(seed);
        let mut chance = Random::new(seed ^ 0xdead);
        let files: Vec<_> = bench.stands.values().map(|stand| stand.0).collect();
        let file = files[chance.below(files.len() as u64) as usize];
        let block = chance.below(32);
        let mut xor = vec![0; BLOCK_BYTES];
        match chance.below(3) {
            0 => xor[chance.below(BLOCK_BYTES as u64) as usize] = 1 << chance.below(8),
            1 => {
                bench.station.disk.read((file, false), block as usize * BLOCK_BYTES, &mut xor);
            }
            _ => xor.fill_with(|| chance.draw() as u8),
        }
        bench.station.disk.damage((file, false), block as usize * BLOCK_BYTES, &xor);
        let (found, damages) = bench.recover();
        let lost: Vec<u64> = (0..MESSAGES).filter(|number| !found.contains(number)).collect();
        for number in &lost {
            let &(stood_in, first, end) = &bench.stands[number];
            assert!(
                stood_in == file && (first..end).contains(&block),
                "seed {seed}: message {number} is lost, but block {block} was damaged"
            );
        }
        // A message shares its blocks with others: what is lost begins, ends or lies in the block.
        let told = damages.iter().any(|&(told, _)| told == file);
        assert!(lost.is_empty() || told, "seed {seed}: {lost:?} lost without a word");
        if lost.is_empty() { harmless += 1 } else { costly += 1 }
    }
    assert!(harmless > 0 && costly > 0, "{harmless} {costly}");
}

/// A segment whose headers and batches could not be read for a moment passed for one that nothing was ever written to: it got a new
/// header, and what was acknowledged in it was gone.
#[test]
fn a_segment_that_could_not_be_read_for_a_moment_is_not_used_again() {
    let blocks = (128 << 10) / BLOCK_BYTES as u32;
    for seed in 1..20 {
        let mut bench = Bench::new(seed);
        let file = bench.stands[&(MESSAGES / 2)].0;
        // Its head, and then each block behind the headers in the search for a batch.
        bench.station.unreadable = Some((file, 1 + blocks - 2));
        let (found, damages) = bench.recover();
        assert_eq!(bench.station.unreadable, Some((file, 0)), "all that was to fail did");
        assert!(found.len() < MESSAGES as usize && damages.contains(&(file, DamageKind::ReadFailed)), "{damages:?}");
        (0..2000).for_each(|_| bench.turn(|_| ()));
        let (found, _) = bench.recover_as(3);
        assert_eq!(found, (0..MESSAGES).collect(), "seed {seed}");
    }
}
