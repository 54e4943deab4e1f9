//! What runs short is no failure: a full disk takes no mail and goes on recording what is owed for the mail that is there, and nothing has
//! to be restarted.

use std::time::{Duration, Instant};

use ringpost_sim::station::{BadPlace, Change, SimHost, Station};
use ringpost_sim::{Cut, Disk, Random, small_log};
use ringpost_spool::{AppendError, Content, Event, Log, LogConfig, RecordId, Space, Ticket};

const SEGMENT_BYTES: usize = 128 << 10;
const BIG: [u8; 6000] = [0; 6000];
/// Records of this size that a segment holds.
const BIG_IN_SEGMENT: u64 = 20;

fn config(boot: u64) -> LogConfig {
    LogConfig { segments_max: 4096, ..small_log(boot) }
}

/// As many segments as are ready at the start, and never one more.
fn no_more(boot: u64) -> LogConfig {
    LogConfig { segments_max: 4, ..config(boot) }
}

fn message(sequence: u64) -> RecordId {
    RecordId { boot: 1, shard: 0, sequence }
}

struct Shard {
    station: Station,
    random: Random,
    now: Instant,
}

impl Shard {
    fn new(seed: u64, config: LogConfig, capacity: usize) -> Shard {
        let (mut random, now) = (with_buffers(Random::new(seed)), Instant::now());
        let station = Station::new(Disk::new(capacity), config, None, &mut random, now);
        let mut shard = Shard { station, random, now };
        shard.idle();
        shard
    }

    /// One operation ends. Whether what found no room is to be tried again.
    fn turn(&mut self) -> bool {
        self.station.begin_all(self.now);
        self.station.complete_one(&mut self.random, self.now);
        self.now += Duration::from_millis(20);
        let mut makes_room = false;
        while let Some(event) = self.station.log.event() {
            assert!(!matches!(event, Event::Poisoned(_) | Event::Refused(_)), "{event:?}");
            makes_room |= event.makes_room();
        }
        makes_room
    }

    /// Long enough for all that goes by time.
    fn idle(&mut self) {
        for _ in 0..500 {
            self.turn();
        }
    }

    /// The next life, without a word of how much room there is.
    fn restart(&mut self, config: LogConfig) {
        self.station.log.stop();
        self.idle();
        self.random = with_buffers(self.random.clone());
        self.station.reopen(config, &mut self.random, self.now);
        self.idle();
    }

    /// As a shard does it: what finds no room is tried again when an event says so.
    fn written(&mut self, mut append: impl FnMut(&mut Log<SimHost>, Instant) -> Result<Ticket, AppendError>) -> bool {
        let mut turns = 0;
        loop {
            match append(&mut self.station.log, self.now) {
                Ok(_) => return true,
                Err(AppendError::Full | AppendError::NoSpace) => {}
                Err(other) => panic!("{other}"),
            }
            while !self.turn() {
                turns += 1;
                if turns > 2000 {
                    return false;
                }
            }
        }
    }

    fn mail(&mut self, sequence: u64) -> bool {
        self.written(|log, now| {
            let mut record = log.begin(Content::Message, message(sequence), BIG.len() as u32, now)?;
            record.put(&BIG);
            Ok(record.finish().ticket)
        })
    }

    fn settled(&mut self, sequence: u64) {
        assert!(self.written(|log, now| log.settle(message(sequence), &[], now)), "{sequence} is not settled");
    }

    fn outcome(&mut self, sequence: u64, index: u32, payload: &[u8]) -> bool {
        self.written(|log, now| log.outcome(message(sequence), index, payload, now))
    }
}

/// Some of the simulated hosts have no buffer now and then; those of shards always have one.
fn with_buffers(mut random: Random) -> Random {
    while random.clone().one_in(4) {
        random.draw();
    }
    random
}

/// A destination that answers each of many messages with 4xx filled the reserve, and then the shard delivered nothing any more.
#[test]
fn outcomes_of_more_than_the_reserve_are_recorded_below_the_limits() {
    for seed in 0..10 {
        let mut shard = Shard::new(seed, config(1), 64 << 20);
        let messages = 5 * BIG_IN_SEGMENT;
        (0..messages).for_each(|sequence| assert!(shard.mail(sequence)));
        let mail = shard.station.disk.list().len();
        shard.station.log.set_space(Space { bytes: config(1).free_bytes_min - 1, inodes: u64::MAX });
        for round in 0..10 {
            for sequence in 0..messages {
                assert!(shard.outcome(sequence, 0, &BIG), "seed {seed}, round {round}: {sequence} is not recorded");
            }
        }
        assert_eq!(shard.station.log.begin(Content::Message, message(messages), 0, shard.now).err(), Some(AppendError::NoSpace));
        // Five segments of outcomes count. Those in which they stand are three quarters full of them, and some are emptied or to be written.
        let made = shard.station.disk.list().len() - mail;
        assert!(made <= 5 * 4 / 3 + 2, "seed {seed}: {made} were made");
    }
}

/// The segment that is written to is never freed. At its end it could not be left either, though nothing in it counted any more.
#[test]
fn what_replaces_itself_is_recorded_for_ever_though_no_segment_can_be_made() {
    for seed in 0..10 {
        let mut shard = Shard::new(seed, no_more(1), 64 << 20);
        let messages = BIG_IN_SEGMENT - 1;
        (0..messages).for_each(|sequence| assert!(shard.mail(sequence)));
        // Each start takes a segment, and leaves one behind that is full of what counts: one is free in the end.
        shard.restart(no_more(2));
        (0..messages).for_each(|sequence| assert!(shard.outcome(sequence, 0, &BIG)));
        shard.restart(no_more(3));
        for round in 0..10 * BIG_IN_SEGMENT {
            assert!(shard.outcome(0, 1, &BIG), "seed {seed}, outcome {round} is not recorded");
        }
    }
}

/// One that was too large for what was left of the last segment closed it: with that went the room for the copies by which another became free.
#[test]
fn an_outcome_that_is_too_large_just_now_leaves_compaction_its_room() {
    const LARGE: [u8; 15_000] = [0; 15_000];
    for outcomes in 9..12 {
        for turns in 0..12 {
            let mut shard = Shard::new(outcomes, no_more(1), 64 << 20);
            let messages = BIG_IN_SEGMENT - 1;
            (0..messages).for_each(|sequence| assert!(shard.mail(sequence)));
            // As above: one is free in the end, and none when outcomes fill what is written to and one message more is settled.
            shard.restart(no_more(2));
            (0..messages).for_each(|sequence| assert!(shard.outcome(sequence, 0, &BIG)));
            shard.restart(no_more(3));
            let mut index = 1;
            for payload in [&BIG[..], &BIG[..100]] {
                while shard.outcome(0, index, payload) {
                    index += 1;
                }
            }
            shard.settled(1);
            for _ in 0..outcomes {
                assert!(shard.outcome(0, index, &[]));
                shard.idle();
                index += 1;
            }
            (2..messages).for_each(|sequence| shard.settled(sequence));
            for _ in 0..turns {
                shard.turn();
            }
            for payload in [&LARGE[..], &[], &LARGE[..]] {
                assert!(shard.outcome(0, index, payload), "{outcomes} outcomes, {turns} turns: {} octets are not recorded", payload.len());
                index += 1;
            }
        }
    }
}

/// Mail that came in faster than segments were made took those of the reserve, as long as one was being made.
#[test]
fn mail_leaves_the_reserve_alone_while_segments_are_made() {
    for seed in 0..10 {
        let mut slow = config(1);
        slow.prepare_bytes_per_s = 128 << 10;
        let mut shard = Shard::new(seed, slow, 5 * SEGMENT_BYTES + SEGMENT_BYTES / 2);
        let mail = (0..200).take_while(|&sequence| shard.mail(sequence)).count() as u64;
        assert!((BIG_IN_SEGMENT..200).contains(&mail), "{mail}");
        for sequence in 0..BIG_IN_SEGMENT - 2 {
            assert!(shard.outcome(sequence, 0, &BIG), "seed {seed}: {sequence} is not recorded");
        }
    }
}

/// With each segment full of what counts nothing could be deleted: that too has to be written.
#[test]
fn messages_can_be_settled_when_not_one_outcome_more_can_be_recorded() {
    for seed in 0..10 {
        let mut shard = Shard::new(seed, no_more(1), 64 << 20);
        (0..BIG_IN_SEGMENT - 1).for_each(|sequence| assert!(shard.mail(sequence)));
        let mut index = 0;
        for payload in [&BIG[..], &BIG[..100]] {
            while shard.outcome(0, index, payload) {
                index += 1;
            }
        }
        for sequence in 0..BIG_IN_SEGMENT - 2 {
            let settled = shard.written(|log, now| log.settle(message(sequence), &[], now));
            assert!(settled, "seed {seed}: {sequence} cannot be deleted");
        }
        assert!(shard.outcome(BIG_IN_SEGMENT - 2, 0, &BIG), "seed {seed}: what is left goes on");
    }
}

/// A start took one of the last segments. While the old ones were read mail was let into it, and then no outcome found room.
#[test]
fn mail_leaves_alone_what_a_start_on_a_full_disk_goes_on_in() {
    let life = |boot| LogConfig { segments_max: 16, ..config(boot) };
    let mut refused = 0;
    for seed in 0..10 {
        let mut shard = Shard::new(seed, life(1), 64 << 20);
        let mail = (0..1000).take_while(|&sequence| shard.mail(sequence)).count() as u64;
        for boot in 2..4 {
            shard.station.log.stop();
            shard.idle();
            shard.random = with_buffers(shard.random.clone());
            shard.station.reopen(life(boot), &mut shard.random, shard.now);
            let mut is_loaded = false;
            while !is_loaded {
                shard.station.begin_all(shard.now);
                shard.station.complete_one(&mut shard.random, shard.now);
                while let Some(event) = shard.station.log.event() {
                    is_loaded |= matches!(event, Event::Loaded(_));
                }
                let id = RecordId { boot, ..message(mail) };
                match shard.station.log.begin(Content::Message, id, BIG.len() as u32, shard.now).err() {
                    Some(AppendError::NotOpen) => {}
                    Some(AppendError::NoSpace) => refused += u32::from(!is_loaded),
                    other => panic!("seed {seed}, boot {boot}: mail is to be refused: {other:?}"),
                }
            }
            for sequence in 0..BIG_IN_SEGMENT / 2 {
                assert!(shard.outcome(sequence, 0, &BIG), "seed {seed}, boot {boot}: {sequence} is not recorded");
            }
        }
    }
    assert!(refused > 0, "the test meets what it is about");
}

/// What is made below the limits took the last of the file system, and what is settled the last segment: no start could go on anywhere.
#[test]
fn what_is_made_below_the_limits_leaves_a_start_its_segment() {
    let life = |boot| LogConfig { free_bytes_min: SEGMENT_BYTES as u64, ..config(boot) };
    for seed in 0..10 {
        let mut shard = Shard::new(seed, life(1), 7 * SEGMENT_BYTES);
        let space = |shard: &mut Shard| {
            let bytes = shard.station.disk.room() as u64;
            shard.station.log.set_space(Space { bytes, inodes: u64::MAX });
        };
        let mut mail = 0;
        space(&mut shard);
        while shard.mail(mail) {
            mail += 1;
            space(&mut shard);
        }
        let mut index = 0;
        for payload in [&BIG[..], &BIG[..100]] {
            while shard.outcome(0, index, payload) {
                index += 1;
                space(&mut shard);
            }
        }
        shard.settled(1);
        shard.idle();
        shard.station.cut(Cut::Kill, &mut shard.random);
        shard.random = with_buffers(shard.random.clone());
        shard.station.reopen(life(2), &mut shard.random, shard.now);
        space(&mut shard);
        shard.idle();
        assert_ne!(
            shard.station.log.outcome(message(0), 0, &[], shard.now),
            Err(AppendError::NotOpen),
            "seed {seed}: the start waits for ever"
        );
        assert_eq!(shard.station.log.messages() as u64, mail - 1, "seed {seed}");
        shard.settled(2);
    }
}

/// While a process had no descriptor left, the segment that it wanted to make ended it: as if the disk had failed.
#[test]
fn a_shortage_of_descriptors_or_memory_is_no_failure_of_the_disk() {
    const ENOMEM: i64 = -12;
    const ENFILE: i64 = -23;
    const EMFILE: i64 = -24;
    for (seed, errno) in [EMFILE, ENFILE, ENOMEM].into_iter().enumerate() {
        for change in [Change::Create, Change::Sync] {
            let mut shard = Shard::new(seed as u64, config(1), 64 << 20);
            shard.station.refused = Some((change, errno));
            let mail = 8 * BIG_IN_SEGMENT;
            // Whoever is told that the log failed panics.
            (0..mail).for_each(|sequence| assert!(shard.mail(sequence), "{change:?} {errno}: {sequence}"));
            assert_eq!(shard.station.refused, None, "it was met");
            shard.idle();
            let files = shard.station.disk.list();
            assert!(files.iter().all(|found| !found.temporary && found.bytes == SEGMENT_BYTES as u64), "{change:?} {errno}: {files:?}");
            assert!(files.len() as u64 <= mail.div_ceil(BIG_IN_SEGMENT) + 1 + 3, "{change:?} {errno}: what was not used is gone again");
            shard.restart(config(2));
            assert_eq!(shard.station.log.messages() as u64, mail);
        }
    }
}

impl Shard {
    /// As a shard does it, and polled only when the log has asked for that: after an append, a completion, and when its time has come.
    ///
    /// False if the log has nothing more to say; then there is no room, and none is to come.
    fn written_unasked(&mut self, mut append: impl FnMut(&mut Log<SimHost>, Instant) -> Result<Ticket, AppendError>) -> bool {
        loop {
            if append(&mut self.station.log, self.now).is_ok() {
                return true;
            }
            loop {
                self.station.begin_all(self.now);
                let mut makes_room = false;
                while let Some(event) = self.station.log.event() {
                    assert!(!matches!(event, Event::Poisoned(_) | Event::Refused(_)), "{event:?}");
                    makes_room |= event.makes_room();
                }
                if makes_room {
                    break;
                }
                if self.station.running() > 0 {
                    self.station.complete_one(&mut self.random, self.now);
                    self.now += Duration::from_millis(1);
                } else if let Some(at) = self.station.log.next_deadline() {
                    self.now = self.now.max(at);
                } else {
                    assert_eq!(append(&mut self.station.log, self.now).err(), Some(AppendError::NoSpace), "nothing more is to come");
                    return false;
                }
            }
        }
    }
}

/// What found no room was to wait for the copies out of a segment. It could not be read, nothing was copied, and nobody was told: outcomes
/// stayed unwritten until something else happened, though there was room for a segment more.
#[test]
fn who_waits_for_copies_is_told_when_there_are_none() {
    let mut unreadable = 0;
    for seed in 0..40 {
        let mut shard = Shard::new(seed, config(1), 64 << 20);
        let messages = BIG_IN_SEGMENT - 1;
        (0..messages).for_each(|sequence| assert!(shard.mail(sequence)));
        shard.restart(config(2));
        (0..messages).for_each(|sequence| assert!(shard.outcome(sequence, 0, &BIG)));
        shard.restart(config(3));
        shard.station.log.set_space(Space { bytes: config(1).free_bytes_min - 1, inodes: u64::MAX });
        shard.station.disk.list().into_iter().for_each(|found| {
            shard.station.unreadable.push(BadPlace { file: found.file, bytes: 0..u64::MAX, times: u32::MAX });
        });
        for index in 1..100 {
            if index == 10 + seed as u32 {
                (2..messages).for_each(|sequence| shard.settled(sequence));
            }
            let is_written = shard.written_unasked(|log, now| log.outcome(message(0), index, &BIG, now));
            assert!(is_written, "seed {seed}: outcome {index} is not recorded");
        }
        unreadable += shard.station.reads.1;
    }
    assert!(unreadable > 0, "compaction tried to read");
}

/// A start with no segment free, on a disk without room for one, said nothing: the shard did not answer its clients, nor tell anybody why.
#[test]
fn a_start_without_room_for_a_segment_says_so_and_goes_on_when_there_is_some() {
    for seed in 0..10 {
        for messages in [0, 3 * BIG_IN_SEGMENT + 5] {
            let mut shard = Shard::new(seed, config(1), 64 << 20);
            (0..messages).for_each(|sequence| assert!(shard.mail(sequence)));
            shard.station.log.stop();
            shard.idle();
            // All that is free has gone to another, and so has the room.
            for found in shard.station.disk.list() {
                let mut front = [0; 4096];
                shard.station.disk.read((found.file, found.temporary), 8192, &mut front);
                if messages == 0 || front.iter().all(|&byte| byte == 0) {
                    shard.station.disk.unlink((found.file, found.temporary));
                }
            }
            shard.station.disk.sync_directory();
            shard.station.disk.capacity -= shard.station.disk.room();
            shard.random = with_buffers(shard.random.clone());
            shard.station.reopen(config(2), &mut shard.random, shard.now);
            let mut told = 0;
            for _ in 0..500 {
                shard.station.begin_all(shard.now);
                shard.station.complete_one(&mut shard.random, shard.now);
                shard.now += Duration::from_millis(20);
                while let Some(event) = shard.station.log.event() {
                    told += u32::from(matches!(event, Event::PrepareFailed { keeps_closed: true, .. }));
                    assert!(!matches!(event, Event::Opened | Event::Poisoned(_) | Event::Refused(_)), "{event:?}");
                }
            }
            assert!(told > 0 && shard.station.log.room(shard.now).reserve, "seed {seed}: told {told} times");
            shard.station.disk.capacity += 8 * SEGMENT_BYTES;
            shard.idle();
            assert!(!shard.station.log.is_loading() && !shard.station.log.room(shard.now).reserve, "seed {seed}: it is open");
            assert_eq!(shard.station.log.messages() as u64, messages, "seed {seed}");
        }
    }
}
