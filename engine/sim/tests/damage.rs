//! A stopped log whose disk goes bad: bits flip, blocks turn to zeros or to noise. What verifies is found, what doesn't is told.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use ringpost_sim::content::{Filling, payload};
use ringpost_sim::station::{BadPlace, Station};
use ringpost_sim::{Disk, Random, small_log};
use ringpost_spool::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Content, DamageKind, Event, RECORD_HEADER_BYTES, RecordId, SegmentFile, blank_front, forged_batch,
    forged_run,
};

const MESSAGES: u64 = 60;

struct Bench {
    station: Station,
    random: Random,
    now: Instant,
    /// Blocks in which each message's record stands: (file, first, behind the last).
    stands: BTreeMap<u64, (SegmentFile, u64, u64)>,
    /// Where a message of other content than ours stands.
    hostile_in: Option<SegmentFile>,
}

impl Bench {
    /// A log with messages of all sizes, stopped cleanly.
    fn new(seed: u64) -> Bench {
        Bench::with(seed, &[])
    }

    /// The same, with messages of these contents in front of all.
    fn with(seed: u64, hostile: &[Vec<u8>]) -> Bench {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let station = Station::new(Disk::new(4 << 20), small_log(1), None, &mut random, now);
        let mut bench = Bench { station, random, now, stands: BTreeMap::new(), hostile_in: None };
        let (mut next, mut hostile) = (0, hostile.iter().zip(0..).peekable());
        for _ in 0..100_000 {
            bench.turn(|_| ());
            if next == MESSAGES {
                break;
            }
            if let Some(&(content, sequence)) = hostile.peek() {
                let id = RecordId { boot: 1, shard: 9, sequence };
                if let Ok(mut record) = bench.station.log.begin(Content::Message, id, content.len() as u32, bench.now) {
                    record.put(content);
                    bench.hostile_in = bench.hostile_in.or(Some(record.finish().location.file));
                    hostile.next();
                }
                continue;
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
        self.station.reopen(small_log(boot), &mut self.random, self.now);
        let (mut found, mut damages, mut loaded) = (BTreeSet::new(), Vec::new(), false);
        let mut body = Vec::new();
        for _ in 0..10_000 {
            self.turn(|event| match event {
                Event::Found { id, .. } if id.shard != 0 => (),
                Event::Found { id, payload: bytes, .. } => {
                    payload(id.sequence, 0, bytes.len(), Filling::Noise, &mut body);
                    assert_eq!(&body, bytes, "a damaged message was found");
                    found.insert(id.sequence);
                }
                Event::FoundSettled { id } => drop(found.remove(&id.sequence)),
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
    let station = Station::new(disk, small_log(1), None, &mut random, now);
    let mut bench = Bench { station, random, now, stands: BTreeMap::new(), hostile_in: None };
    assert_eq!(bench.recover(), (BTreeSet::new(), vec![]));
}

/// Each file that was written ahead of a burst was read whole, twice, before mail was accepted.
#[test]
fn a_file_marked_as_blank_is_not_looked_through() {
    let (mut random, now) = (Random::new(1), Instant::now());
    let mut disk = Disk::new(4 << 20);
    for number in 1..=8 {
        let name = (SegmentFile(number), false);
        disk.create(name);
        disk.allocate(name, 128 << 10);
        disk.damage(name, 0, &blank_front(7, 0, 128 << 10));
        disk.sync(name);
    }
    disk.sync_directory();
    let station = Station::new(disk, small_log(1), None, &mut random, now);
    let mut bench = Bench { station, random, now, stands: BTreeMap::new(), hostile_in: None };
    assert_eq!(bench.recover(), (BTreeSet::new(), vec![]));
    assert_eq!(bench.station.bytes_read, 8 * 3 * BLOCK_BYTES as u64);
    // The first header takes the place of the mark, and what is written behind it is found.
    (0..2000).for_each(|_| bench.turn(|_| ()));
    let id = RecordId { boot: 2, shard: 0, sequence: 1 };
    let mut body = Vec::new();
    payload(1, 0, 500, Filling::Noise, &mut body);
    let mut record = bench.station.log.begin(Content::Message, id, body.len() as u32, bench.now).expect("there is room");
    record.put(&body);
    let file = record.finish().location.file;
    (0..2000).for_each(|_| bench.turn(|_| ()));
    let mut front = [0; BLOCK_BYTES];
    bench.station.disk.read((file, false), 0, &mut front);
    assert_ne!(front, blank_front(7, 0, 128 << 10));
    assert_eq!(bench.recover_as(3), (BTreeSet::from([1]), vec![]));
}

/// A file that ended in front of its first batch, as a restore that was cut short leaves it, kept the log from opening, or the process went down.
#[test]
fn a_file_too_short_for_a_segment_is_told_and_left_alone() {
    for (length, seed) in [0, BLOCK_BYTES, 2 * BLOCK_BYTES].into_iter().zip(1..) {
        let mut bench = Bench::new(seed);
        let short = (SegmentFile(99), false);
        bench.station.disk.create(short);
        bench.station.disk.allocate(short, length);
        bench.station.disk.sync(short);
        bench.station.disk.sync_directory();
        let (mut found, damages) = bench.recover();
        assert_eq!((&found, damages), (&(0..MESSAGES).collect(), vec![(short.0, DamageKind::Unidentified)]), "{length} bytes");
        let mut body = Vec::new();
        payload(MESSAGES, 0, 500, Filling::Noise, &mut body);
        let mut sent = false;
        for _ in 0..2000 {
            let id = RecordId { boot: 2, shard: 0, sequence: MESSAGES };
            if !sent && let Ok(mut record) = bench.station.log.begin(Content::Message, id, body.len() as u32, bench.now) {
                record.put(&body);
                record.finish();
                sent = true;
            }
            bench.turn(|_| ());
        }
        found.insert(MESSAGES);
        assert_eq!(bench.recover_as(3).0, found, "{length} bytes");
    }
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

/// Blocks of a segment, and of the longest batch.
const BLOCKS: u64 = (128 << 10) / BLOCK_BYTES as u64;
const BATCH_BLOCKS: u64 = (16 << 10) / BLOCK_BYTES as u64;

impl Bench {
    /// From now on reads that touch these blocks of the file fail, so many times.
    fn spoil(&mut self, file: SegmentFile, blocks: Range<u64>, times: u32) {
        let block = BLOCK_BYTES as u64;
        self.station.unreadable.push(BadPlace { file, bytes: blocks.start * block..blocks.end * block, times });
    }

    /// Messages of which something stands in these blocks.
    fn within(&self, file: SegmentFile, blocks: Range<u64>) -> BTreeSet<u64> {
        let stands = self.stands.iter().filter(|(_, stand)| stand.0 == file && stand.1 < blocks.end && blocks.start < stand.2);
        stands.map(|(&number, _)| number).collect()
    }

    /// A life goes on for a while, the places are good again, and the next life finds every message.
    fn finds_all_once_it_can_be_read(&mut self, seed: u64) {
        (0..2000).for_each(|_| self.turn(|_| ()));
        self.station.unreadable.clear();
        let (found, damages) = self.recover_as(3);
        assert_eq!(found, (0..MESSAGES).collect(), "seed {seed}: {damages:?}");
    }
}

/// A segment whose headers and batches could not be read for a moment passed for one that nothing was ever written to: it got a new
/// header, and what was acknowledged in it was gone.
#[test]
fn a_segment_that_could_not_be_read_for_a_moment_is_not_used_again() {
    for seed in 1..20 {
        let mut bench = Bench::new(seed);
        let file = bench.stands[&(MESSAGES / 2)].0;
        bench.spoil(file, 0..BLOCKS, u32::MAX);
        let (found, damages) = bench.recover();
        assert!(found.len() < MESSAGES as usize && damages.contains(&(file, DamageKind::ReadFailed)), "{damages:?}");
        bench.finds_all_once_it_can_be_read(seed);
    }
}

/// A read asks for far more than is needed. One bad sector behind the end of the log made all of that unreadable, up to 1 MiB of mail, and
/// the end was sealed in front of it: the start after that did not find it either, on whatever disk.
#[test]
fn a_bad_block_behind_the_end_of_the_log_costs_nothing() {
    let mut tried = 0;
    for seed in 0..60 {
        let mut bench = Bench::new(seed);
        let (file, _, end) = bench.stands[&(MESSAGES - 1)];
        // Behind the witness of the clean stop, at the most.
        let Some(bad) = (end + 2..BLOCKS).nth(seed as usize % 8) else { continue };
        tried += 1;
        bench.spoil(file, bad..bad + 1, u32::MAX);
        let (found, damages) = bench.recover();
        assert_eq!(found, (0..MESSAGES).collect(), "seed {seed}: {damages:?}");
        assert_eq!(damages, [(file, DamageKind::ReadFailed)], "seed {seed}");
        bench.finds_all_once_it_can_be_read(seed);
    }
    assert!(tried > 20, "{tried}");
}

/// The same in the middle of the log: all in front of it within the same read was not delivered, at any start. And where nothing behind could be
/// read either, the end was sealed there.
#[test]
fn unreadable_blocks_cost_what_stands_in_them_until_they_can_be_read() {
    let (mut harmless, mut costly) = (0, 0);
    for seed in 0..60 {
        let mut bench = Bench::new(seed);
        let mut chance = Random::new(seed ^ 0xbad);
        let file = bench.stands[&chance.below(MESSAGES)].0;
        let first = chance.below(BLOCKS);
        let bad = first..if seed % 2 == 0 { first + 1 } else { BLOCKS };
        bench.spoil(file, bad.clone(), u32::MAX);
        let (found, damages) = bench.recover();
        let lost: Vec<u64> = (0..MESSAGES).filter(|number| !found.contains(number)).collect();
        // Nothing may be left that shows whether the batch was acknowledged that reaches into them: it waits, too.
        let batch = if bad.end == BLOCKS { BATCH_BLOCKS } else { 0 };
        let stood = bench.within(file, bad.start.saturating_sub(batch)..bad.end);
        assert!(lost.iter().all(|number| stood.contains(number)), "seed {seed}, blocks {bad:?}: {lost:?}, but {stood:?}: {damages:?}");
        assert!(lost.is_empty() || damages.contains(&(file, DamageKind::ReadFailed)), "seed {seed}: {damages:?}");
        if lost.is_empty() {
            harmless += 1
        } else {
            costly += 1
        }
        bench.finds_all_once_it_can_be_read(seed);
    }
    assert!(harmless > 0 && costly > 0, "{harmless} {costly}");
}

#[test]
fn a_read_that_fails_once_costs_nothing() {
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        let files: BTreeSet<SegmentFile> = bench.stands.values().map(|stand| stand.0).collect();
        for file in files {
            bench.spoil(file, seed % BLOCKS..seed % BLOCKS + 1, 1);
        }
        let (found, damages) = bench.recover();
        assert_eq!((found, damages), ((0..MESSAGES).collect(), vec![]), "seed {seed}");
    }
}

/// A start on a disk that refuses every read ends, says so, and spoils nothing.
#[test]
fn a_disk_that_reads_nothing_is_told_and_loses_nothing() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        let kept = bench.station.disk.list().into_iter().filter(|found| !found.temporary);
        let files: BTreeSet<SegmentFile> = kept.map(|found| found.file).collect();
        for &file in &files {
            bench.spoil(file, 0..BLOCKS, u32::MAX);
        }
        let (found, damages) = bench.recover();
        assert!(found.is_empty());
        assert!(files.iter().all(|&file| damages.contains(&(file, DamageKind::ReadFailed))), "{damages:?}");
        let refused = bench.station.reads.1;
        // The head in one piece, with what is behind it, by itself and by blocks; then each block once, and twice what was asked for with it.
        assert!(refused <= (BLOCKS + 10) * files.len() as u64, "{refused} reads were refused, {} files", files.len());
        bench.finds_all_once_it_can_be_read(seed);
    }
}

/// Blocks of a segment's head: two headers and the front of the first batch.
const HEAD: Range<u64> = 0..3;

#[test]
fn a_segment_whose_head_is_gone_is_found_by_its_batches_and_left_as_it_is() {
    let mut tried = 0;
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        // One that is full: of the last one there may be too little to prove anything.
        let file = bench.stands[&0].0;
        if bench.stands[&(MESSAGES - 1)].0 == file {
            continue;
        }
        tried += 1;
        bench.spoil(file, HEAD, u32::MAX);
        let (found, damages) = bench.recover();
        let stood = bench.within(file, HEAD);
        assert!((0..MESSAGES).all(|number| found.contains(&number) || stood.contains(&number)), "seed {seed}: {found:?}, {damages:?}");
        assert!(damages.contains(&(file, DamageKind::SegmentHeader)), "seed {seed}: {damages:?}");
        bench.finds_all_once_it_can_be_read(seed);
    }
    assert!(tried > 20, "{tried}");
}

/// Where the head of a segment could not be read, the batch with the greatest log position told its use, and a sender could have put that
/// batch into a message: its records were taken for ours, ours for old ones, and with the greatest number there is each start aborted.
#[test]
fn batches_forged_in_content_are_not_believed_where_the_head_is_gone() {
    const VICTIM: u64 = MESSAGES - 1;
    for number in [1, 2, 3, u64::MAX - 1, u64::MAX] {
        for position in [(1, 1 << 40), (u64::MAX, 1 << 40)] {
            let victim = RecordId { boot: 1, shard: 0, sequence: VICTIM };
            let forged = forged_batch(0x5eed, number, position.0, position.1, victim);
            // The first record of a batch begins here, so that the forged ones stand at the front of blocks.
            let mut content = vec![b'x'; BLOCK_BYTES - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES];
            (0..2).for_each(|_| content.extend_from_slice(&forged));
            let mut bench = Bench::with(7, &[content]);
            let file = bench.hostile_in.expect("it was sent");
            let elsewhere: BTreeSet<u64> = (0..MESSAGES).filter(|number| bench.stands[number].0 != file).collect();
            assert!(elsewhere.contains(&VICTIM), "the victim stands in another segment");
            bench.spoil(file, HEAD, u32::MAX);
            let (found, damages) = bench.recover();
            assert!(elsewhere.iter().all(|number| found.contains(number)), "{number}: {found:?}, {damages:?}");
            assert!(damages.contains(&(file, DamageKind::Unidentified)), "{damages:?}");
            bench.finds_all_once_it_can_be_read(7);
        }
    }
}

/// A batch could claim to be far longer than its records: nothing verified the rest, and the search went on behind it, over the real batches.
/// A second one that a sender put exactly there was more than one batch can hold, and both were believed.
#[test]
fn a_forged_batch_that_claims_to_be_longer_than_it_is_is_not_believed() {
    let victim = RecordId { boot: 1, shard: 0, sequence: MESSAGES - 1 };
    let (apart, batch) = (small_log(1).read_bytes, small_log(1).batch_bytes);
    let [first, second] = forged_run(0x5eed, 1000, 1, 1 << 40, victim, apart);
    // Each message fills a batch, and the forged one is its second block.
    let content = |forged: &[u8]| {
        let mut content = vec![b'x'; BLOCK_BYTES - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES];
        content.extend_from_slice(forged);
        content.resize(batch as usize - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES, b'x');
        content
    };
    let mut contents = vec![content(&[b'x'; BLOCK_BYTES]); (apart / batch) as usize];
    contents[0] = content(&first);
    contents.push(content(&second));
    let mut bench = Bench::with(7, &contents);
    let file = bench.hostile_in.expect("they were sent");
    for (forged, offset) in [(&first, 0), (&second, apart as usize)] {
        let mut there = vec![0; BLOCK_BYTES];
        bench.station.disk.read((file, false), 3 * BLOCK_BYTES + offset, &mut there);
        assert!(*forged == there, "it stands where the search would come by");
    }
    let elsewhere: BTreeSet<u64> = (0..MESSAGES).filter(|number| bench.stands[number].0 != file).collect();
    assert!(elsewhere.contains(&victim.sequence), "the victim stands in another segment");
    bench.spoil(file, HEAD, u32::MAX);
    let (found, damages) = bench.recover();
    assert!(elsewhere.iter().all(|number| found.contains(number)), "{found:?}, {damages:?}");
    // The real batches prove the use that it is in.
    assert!(damages.contains(&(file, DamageKind::SegmentHeader)), "{damages:?}");
    bench.finds_all_once_it_can_be_read(7);
}

/// A segment whose end was gone, as a restore that was cut short leaves it, was sealed there without a word: with the whole file put in its
/// place the mail behind was never delivered.
#[test]
fn a_segment_that_was_cut_short_is_told_and_not_sealed() {
    for (seed, kept) in (1..6).zip([3, 4, 9, 17, 30]) {
        let mut bench = Bench::new(seed);
        let file = bench.stands[&0].0;
        let whole = bench.station.disk.take_end((file, false), kept * BLOCK_BYTES);
        let (found, damages) = bench.recover();
        let cut = bench.within(file, kept as u64 - 1..BLOCKS);
        assert!((0..MESSAGES).all(|number| found.contains(&number) || cut.contains(&number)), "seed {seed}: {found:?}");
        assert!(damages.contains(&(file, DamageKind::CutShort)), "seed {seed}: {damages:?}");
        (0..2000).for_each(|_| bench.turn(|_| ()));
        bench.station.disk.put_end((file, false), &whole);
        bench.finds_all_once_it_can_be_read(seed);
    }
}
