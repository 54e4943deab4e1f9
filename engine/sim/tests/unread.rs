//! What a start could not read may be whatever the rest of the log speaks of: a later start that can read it finds the rest there still.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use ringpost_sim::station::{BadPlace, Station};
use ringpost_sim::{Cut, Disk, Random, small_log};
use ringpost_spool::{BLOCK_BYTES, Content, DamageKind, Event, RecordId, SegmentFile, blank_front};

const BIG: [u8; 9000] = [7; 9000];
/// Blocks of a segment.
const BLOCKS: u64 = (128 << 10) / BLOCK_BYTES as u64;

/// A message of the life `boot`.
fn id(boot: u64, sequence: u64) -> RecordId {
    RecordId { boot, shard: 0, sequence }
}

/// What a start made of the log.
#[derive(Debug, Default)]
struct Start {
    incomplete: BTreeSet<RecordId>,
    unidentified: Vec<SegmentFile>,
    loaded: bool,
}

/// Segment after segment, the log of the first life: content in chunks; the record of their message, and other messages; a last one, the
/// outcomes of some of those and the settled records of the others.
struct Bench {
    station: Station,
    random: Random,
    now: Instant,
    boot: u64,
    messages: SegmentFile,
    /// Blocks in which the record of the message in chunks stands.
    record: Range<u64>,
    queued: BTreeSet<RecordId>,
    settled: BTreeSet<RecordId>,
}

const IN_CHUNKS: RecordId = RecordId { boot: 1, shard: 0, sequence: 0 };
const LAST: RecordId = RecordId { boot: 1, shard: 0, sequence: 1000 };

impl Bench {
    fn new(seed: u64) -> Bench {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let station = Station::new(Disk::new(4 << 20), small_log(1), None, &mut random, now);
        let (queued, settled) = (BTreeSet::from([IN_CHUNKS, LAST]), BTreeSet::new());
        let mut bench = Bench { station, random, now, boot: 1, messages: SegmentFile(0), record: 0..0, queued, settled };
        bench.idle();
        let chunks = bench.append(Content::Chunk, IN_CHUNKS, &BIG).0;
        while bench.append(Content::Chunk, IN_CHUNKS, &BIG).0 == chunks {}
        (bench.messages, bench.record) = bench.append(Content::Message, IN_CHUNKS, &BIG[..100]);
        let mut sequence = 1;
        while bench.append(Content::Message, id(1, sequence), &BIG).0 == bench.messages {
            let set = if sequence % 2 == 0 { &mut bench.queued } else { &mut bench.settled };
            set.insert(id(1, sequence));
            sequence += 1;
        }
        bench.settled.insert(id(1, sequence));
        assert!(bench.append(Content::Message, LAST, &BIG).0 != bench.messages);
        bench.idle();
        for id in bench.queued.clone() {
            while bench.station.log.outcome(id, 0, b"deferred", bench.now).is_err() {
                bench.turn(&mut Start::default());
            }
        }
        for id in bench.settled.clone() {
            bench.settle(id);
        }
        bench.idle();
        bench.stop();
        bench
    }

    fn turn(&mut self, start: &mut Start) {
        self.station.begin_all(self.now);
        self.station.complete_one(&mut self.random, self.now);
        while let Some(event) = self.station.log.event() {
            match event {
                Event::Poisoned(_) | Event::Refused(_) => panic!("{event:?}"),
                Event::Incomplete { id } => drop(start.incomplete.insert(id)),
                Event::Damaged(damage) if damage.kind == DamageKind::Unidentified => start.unidentified.push(damage.file),
                Event::Loaded(_) => start.loaded = true,
                _ => {}
            }
        }
        self.now += Duration::from_millis(1);
    }

    /// Long enough for all that is to be freed, emptied and made.
    fn idle(&mut self) {
        (0..2000).for_each(|_| self.turn(&mut Start::default()));
    }

    fn stop(&mut self) {
        self.station.log.stop();
        self.idle();
    }

    /// The next life, once it has read all that it can.
    fn start(&mut self) -> Start {
        self.boot += 1;
        self.station.reopen(small_log(self.boot), &mut self.random, self.now);
        let mut start = Start::default();
        for _ in 0..10_000 {
            self.turn(&mut start);
            if start.loaded {
                return start;
            }
        }
        panic!("the log never opened");
    }

    fn append(&mut self, content: Content, id: RecordId, bytes: &[u8]) -> (SegmentFile, Range<u64>) {
        for _ in 0..2000 {
            if let Ok(mut record) = self.station.log.begin(content, id, bytes.len() as u32, self.now) {
                record.put(bytes);
                let location = record.finish().location;
                let (start, length) = location.blocks();
                let block = BLOCK_BYTES as u64;
                return (location.file, start / block..(start + length as u64) / block);
            }
            self.turn(&mut Start::default());
        }
        panic!("no room");
    }

    fn settle(&mut self, id: RecordId) {
        while self.station.log.settle(id, b"", self.now).is_err() {
            self.turn(&mut Start::default());
        }
    }

    /// From now on these blocks of the messages' segment can't be read.
    fn spoil(&mut self, blocks: Range<u64>) {
        let block = BLOCK_BYTES as u64;
        let place = BadPlace { file: self.messages, bytes: blocks.start * block..blocks.end * block, times: u32::MAX };
        self.station.unreadable.push(place);
    }

    fn found(&self) -> BTreeSet<RecordId> {
        self.station.log.queued().collect()
    }

    /// A start that can read everything finds the log as the first life left it.
    fn finds_all(&mut self, seed: u64) {
        self.finds_all_but(seed, &[]);
    }

    fn finds_all_but(&mut self, seed: u64, unidentified: &[SegmentFile]) {
        self.station.unreadable.clear();
        let start = self.start();
        assert!(start.unidentified == unidentified && start.incomplete.is_empty(), "seed {seed}: {start:?}");
        assert_eq!(self.found(), self.queued, "seed {seed}: settled were {:?}", self.settled);
        for &id in &self.queued {
            assert_eq!(self.station.log.outcomes(id).count(), 1, "seed {seed}: {id:?} is tried again as if it never had been");
        }
    }

    fn files(&self) -> usize {
        self.station.disk.list().len()
    }
}

/// A segment that could not be read for a moment was left alone, but nothing was kept for its sake: the settled records, outcomes and
/// chunks of its messages passed for leftovers, and their segments were used again. The start after that delivered twice, and lacked content.
#[test]
fn what_speaks_of_a_segment_that_could_not_be_read_is_kept_for_it() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        bench.spoil(0..BLOCKS);
        for _ in 0..1 + seed % 3 {
            let start = bench.start();
            assert_eq!(start.unidentified, [bench.messages], "seed {seed}");
            assert_eq!(bench.found(), BTreeSet::from([LAST]), "seed {seed}");
            // It goes on as ever, and compaction has something to do.
            bench.append(Content::Message, id(bench.boot, 0), &BIG);
            bench.idle();
            bench.settle(id(bench.boot, 0));
            bench.idle();
            bench.stop();
        }
        bench.finds_all(seed);
    }
}

/// The same with the block of one message record in a segment whose use was known.
#[test]
fn what_belongs_to_a_record_that_could_not_be_read_is_kept_for_it() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        let record = bench.record.clone();
        bench.spoil(record);
        let start = bench.start();
        assert!(start.unidentified.is_empty(), "seed {seed}");
        assert!(!bench.found().contains(&IN_CHUNKS), "seed {seed}");
        bench.idle();
        bench.stop();
        bench.finds_all(seed);
    }
}

#[test]
fn what_is_kept_goes_when_the_file_is_taken_away() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        bench.spoil(0..BLOCKS);
        for _ in 0..3 {
            bench.start();
            bench.idle();
            bench.stop();
        }
        assert!(bench.station.log.messages() > 1, "seed {seed}: something is kept");
        bench.station.disk.unlink((bench.messages, false));
        bench.station.disk.sync_directory();
        bench.start();
        assert_eq!((bench.station.log.messages(), bench.found()), (1, BTreeSet::from([LAST])), "seed {seed}");
        bench.settle(LAST);
        bench.idle();
        assert!(bench.station.log.is_retirable(), "seed {seed}: all but the one in use are free");
    }
}

/// A bad place that stays bad keeps nothing of the lives after the one whose segment it is in: what they leave behind does not add up.
#[test]
fn a_place_that_stays_bad_keeps_nothing_of_later_lives() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        let record = bench.record.clone();
        bench.spoil(record);
        bench.start();
        bench.idle();
        let (messages, mut files) = (bench.station.log.messages(), BTreeSet::new());
        for _ in 0..20 {
            // An upload that the end of the life cuts off.
            for _ in 0..4 {
                bench.append(Content::Chunk, id(bench.boot, 0), &BIG);
            }
            bench.idle();
            bench.stop();
            bench.start();
            bench.idle();
            assert_eq!(bench.station.log.messages(), messages, "seed {seed}");
            files.insert(bench.files());
        }
        assert!(files.len() <= 2, "seed {seed}: {files:?}");
    }
}

/// A log with no segment left opens although some of what it has is kept: a start makes one, whatever the limits.
#[test]
fn what_is_kept_does_not_keep_a_log_from_opening() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        bench.spoil(0..BLOCKS);
        for _ in 0..40 {
            bench.start();
            // Without the time to free anything.
            let mut random = bench.random.clone();
            bench.station.cut(Cut::Kill, &mut random);
        }
        bench.finds_all(seed);
    }
}

impl Bench {
    /// Mail comes and is delivered, and an upload is cut off by the end of the life.
    fn live_and_stop(&mut self) {
        let boot = self.boot;
        for sequence in 0..300 {
            self.append(Content::Message, id(boot, sequence), b"m");
        }
        self.idle();
        (0..300).for_each(|sequence| self.settle(id(boot, sequence)));
        self.append(Content::Chunk, id(boot, 300), &BIG);
        self.idle();
        self.stop();
    }

    /// Start after start with mail that comes and goes: how many files there are, and of how many messages something is known.
    fn grows_by(&mut self, what: &str) {
        let mut first = None;
        for life in 0..12 {
            self.start();
            self.idle();
            let kept = self.station.log.messages();
            self.live_and_stop();
            let (files, carried) = (self.files(), self.station.log.carried().bytes);
            if life < 2 {
                first = Some((files, kept, carried));
            }
            let before = first.expect("a life was lived");
            let is_no_more = files <= before.0 + 1 && kept <= before.1 && carried <= before.2;
            assert!(is_no_more, "{what}, life {life}: files, messages and carried bytes {before:?} became {:?}", (files, kept, carried));
        }
    }

    /// A file that is there at the next start.
    fn add_file(&mut self, bytes: usize, front: &[u8]) -> SegmentFile {
        let file = SegmentFile(99);
        self.station.disk.create((file, false));
        self.station.disk.allocate((file, false), bytes);
        self.station.disk.damage((file, false), 0, front);
        self.station.disk.sync((file, false));
        self.station.disk.sync_directory();
        file
    }

    fn spoil_file(&mut self, file: SegmentFile, blocks: Range<u64>) {
        let block = BLOCK_BYTES as u64;
        self.station.unreadable.push(BadPlace { file, bytes: blocks.start * block..blocks.end * block, times: u32::MAX });
    }
}

/// What a start left for the sake of a file that it could not read, the next one kept as well, with what had come since: the disk filled.
#[test]
fn a_segment_that_stays_unreadable_keeps_no_more_with_each_start() {
    let mut bench = Bench::new(1);
    bench.spoil(0..BLOCKS);
    bench.grows_by("all of a segment");
    bench.finds_all(1);
    let mut bench = Bench::new(2);
    bench.spoil(0..3);
    bench.grows_by("the head of a segment");
    bench.finds_all(2);
}

#[test]
fn a_stray_file_that_is_too_short_keeps_no_more_with_each_start() {
    for bytes in [0, BLOCK_BYTES, 2 * BLOCK_BYTES] {
        let mut bench = Bench::new(1);
        bench.add_file(bytes, &[]);
        bench.grows_by(&format!("{bytes} bytes"));
        bench.finds_all_but(1, &[SegmentFile(99)]);
    }
}

/// A bad block in what was written ahead and never used kept all that speaks of segments long gone.
#[test]
fn a_file_that_was_never_used_keeps_nothing() {
    for bad in [0..1, 1..2, 2..3, 0..3] {
        let mut bench = Bench::new(1);
        let file = bench.add_file(128 << 10, &blank_front(7, 0, 128 << 10));
        bench.spoil_file(file, bad.clone());
        bench.grows_by(&format!("blocks {bad:?} of a file that is marked blank"));
        bench.finds_all(1);
    }
    // The same of one that has its header.
    let mut bench = Bench::new(1);
    let files: Vec<SegmentFile> = bench.station.disk.list().iter().map(|found| found.file).collect();
    let is_free = |file: &&SegmentFile| {
        let mut front = [0; BLOCK_BYTES];
        bench.station.disk.read((**file, false), 2 * BLOCK_BYTES, &mut front);
        front.iter().all(|&byte| byte == 0)
    };
    let free = *files.iter().find(is_free).expect("one is ready");
    bench.spoil_file(free, 2..3);
    bench.grows_by("the front of a free segment");
    bench.finds_all(1);
}

/// A bad block made zeros of all good ones in front of it that were asked for in one with it: what stood there was not carried out of the
/// segment, which was left as it was for the rest of the run, though nothing that counted stood in the block.
#[test]
fn a_bad_block_in_which_nothing_counts_does_not_keep_compaction_from_emptying_a_segment() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        bench.start();
        let dead = bench.record.end + 6;
        bench.spoil(dead..dead + 1);
        bench.settle_all_but(&[IN_CHUNKS, LAST]);
        bench.idle();
        assert!(bench.station.reads.1 > 0 && bench.station.log.carried().others > 0, "seed {seed}: it was read");
        assert!(bench.is_used_again(), "seed {seed}: it holds nothing that counts, and stays");
        bench.stop();
        bench.finds_all(seed);
    }
}

/// A block that stays bad keeps what stands in it, for a start that can read it.
#[test]
fn what_compaction_cannot_read_stays_where_it_is() {
    for seed in 0..10 {
        let mut bench = Bench::new(seed);
        bench.start();
        let record = bench.record.clone();
        bench.spoil(record);
        bench.settle_all_but(&[IN_CHUNKS, id(1, 2), LAST]);
        bench.idle();
        assert!(!bench.is_used_again() && bench.station.reads.1 > 0, "seed {seed}");
        bench.stop();
        bench.finds_all(seed);
    }
}

/// Of a message that compaction had copied, the old record stood in a segment that could not be read when it was delivered. What said so named
/// the copy alone and went with it: once the segment could be read, the message was delivered again.
#[test]
fn a_message_is_not_delivered_again_from_an_old_copy_that_could_not_be_read() {
    for bad in [0..BLOCKS, HEAD_END..BLOCKS] {
        let mut bench = Bench::new(1);
        bench.start();
        let (record, copied) = (bench.record.clone(), id(1, 2));
        bench.spoil(record);
        bench.settle_all_but(&[IN_CHUNKS, copied, LAST]);
        bench.idle();
        bench.stop();
        bench.station.unreadable.clear();
        bench.spoil(bad.clone());
        bench.start();
        assert!(bench.found().contains(&copied), "the copy is found");
        bench.queued.remove(&copied);
        bench.settled.insert(copied);
        bench.settle(copied);
        for _ in 0..4 {
            bench.live_and_stop();
            bench.start();
        }
        bench.stop();
        bench.finds_all(1);
    }
}

const HEAD_END: u64 = 3;

impl Bench {
    fn settle_all_but(&mut self, kept: &[RecordId]) {
        for id in self.queued.clone().into_iter().filter(|id| !kept.contains(id)) {
            self.settle(id);
            self.queued.remove(&id);
            self.settled.insert(id);
        }
    }

    /// The messages' segment was freed: a header of another use stands in its other block.
    fn is_used_again(&self) -> bool {
        let mut blocks = [0; 2 * BLOCK_BYTES];
        self.station.disk.read((self.messages, false), 0, &mut blocks);
        blocks.chunks(BLOCK_BYTES).all(|block| block.iter().any(|&byte| byte != 0))
    }
}
