//! Reading a segment: which batches count, where the log ends, what is damaged, and which records can be rescued from there.
//!
//! A batch that doesn't verify is either damage (it was acknowledged once) or a tail (nobody was told 250). What tells them apart is a
//! *witness*: a later header that states an earlier batch as durable, a later batch at all (two are in flight, so the one before the one
//! before was acknowledged), or a seal. So where a batch doesn't verify, the rest of the segment is surveyed for headers first.

use std::collections::HashMap;
use std::ops::Range;

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, next_record, verify_records};
use crate::check::Generation;
use crate::event::DamageKind;
use crate::record::{RECORD_HEADER_BYTES, RecordHeader};
use crate::segment::FIRST_BATCH;

/// One use of a segment, as far as it is known before its batches are read.
#[derive(Clone, Debug)]
pub(crate) struct ScanOf {
    pub(crate) generation: Generation,
    pub(crate) number: u64,
    /// Batches end here at the latest: the segment's length, or the end that a seal states.
    pub(crate) end: u32,
    /// Everything up to `end` counted once: a seal says so, or this run wrote it.
    pub(crate) all_acknowledged: bool,
    /// The boot whose batches stand here, if known.
    pub(crate) boot: Option<u64>,
    /// Per boot, the batch up to which all are known to have been acknowledged.
    pub(crate) witnesses: HashMap<u64, u64>,
    /// Log position of the first batch in the use with the next number, if it stands: segments are written in the order of numbers.
    pub(crate) next_first: Option<(u64, u64)>,
    /// Most that can be looked at in one piece.
    pub(crate) read_bytes: u32,
    /// Whether bodies are summed.
    pub(crate) check_bodies: bool,
    /// Whether a chained batch of a later boot counts too: only a control of the tests sets it.
    pub(crate) later_boots: bool,
}

/// A piece of a segment in memory.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    pub(crate) at: u32,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Window<'a> {
    pub(crate) fn view(&self, at: u32, bytes: u32) -> Option<&'a [u8]> {
        let start = at.checked_sub(self.at)? as usize;
        self.bytes.get(start..start + bytes as usize)
    }

    fn range(&self, at: u32, bytes: u32) -> Range<usize> {
        let start = (at - self.at) as usize;
        start..start + bytes as usize
    }
}

/// What came of looking at one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A window that starts here and has at least so many bytes is needed (whole blocks).
    Read { offset: u32, bytes: u32 },
    /// A batch of this log position counts; its records follow.
    Batch { position: (u64, u64) },
    /// A record; its body stands in the window.
    Record { header: RecordHeader, offset: u32, body: Range<usize>, rescued: bool },
    /// A stretch that doesn't verify.
    Damaged { offset: u32, bytes: u32, kind: DamageKind },
    /// Nothing more.
    Done,
}

enum Mode {
    /// At a batch.
    Walk,
    /// Within a batch that verified.
    Records {
        at: u32,
        end: u32,
        left: u32,
    },
    /// Looking for headers behind the batch at `at` that doesn't verify.
    Survey {
        at: u32,
        next: Option<(u32, u64)>,
        broken_bytes: Option<u32>,
    },
    /// Looking for single records up to `until`, then on from there, or not.
    Rescue(Rescue),
    Done,
}

#[derive(Clone, Copy)]
struct Rescue {
    at: u32,
    until: u32,
    go_on: bool,
    /// Whether it is damage at all shows with the first record: the batch looked for may stand in another segment.
    in_doubt: bool,
}

/// The state of reading one segment.
pub(crate) struct Scan {
    of: ScanOf,
    mode: Mode,
    /// The batch looked at.
    at: u32,
    boot: Option<u64>,
    /// Sequence that the batch at `at` must have, and the check it must be chained to.
    expected: Option<u64>,
    chain: Option<u32>,
    /// The last batch that counts.
    last: Option<u64>,
    witnessed: u64,
    /// The whole rest was surveyed: `witnessed` is final.
    surveyed: bool,
    log_end: u32,
    pub(crate) batches: u64,
    pub(crate) torn_before_valid: u64,
    pub(crate) stale_generations: u64,
    pub(crate) tails_dropped: u64,
}

impl Scan {
    pub(crate) fn new(of: ScanOf) -> Self {
        Scan {
            mode: Mode::Walk,
            at: FIRST_BATCH,
            boot: of.boot,
            expected: None,
            chain: None,
            last: None,
            witnessed: of.boot.and_then(|boot| of.witnesses.get(&boot).copied()).unwrap_or(0),
            surveyed: false,
            log_end: FIRST_BATCH,
            batches: 0,
            torn_before_valid: 0,
            stale_generations: 0,
            tails_dropped: 0,
            of,
        }
    }

    /// Offset behind the last batch that counts or was quarantined.
    pub(crate) fn log_end(&self) -> u32 {
        self.log_end
    }

    /// Log position of the last batch that counts.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        Some((self.boot?, self.last?))
    }

    /// Log position that the batch at hand must have.
    pub(crate) fn next_position(&self) -> Option<(u64, u64)> {
        Some((self.boot?, self.expected?))
    }

    /// Header check of the last batch, which the next one would be chained to.
    pub(crate) fn chain(&self) -> Option<u32> {
        self.chain
    }

    /// Batches of the boot here up to this one were acknowledged, as far as this segment shows.
    pub(crate) fn witnessed(&self) -> u64 {
        self.witnessed
    }

    /// Looks at the next thing.
    pub(crate) fn step(&mut self, window: Window<'_>) -> Step {
        loop {
            let step = match self.mode {
                Mode::Walk => self.walk(window),
                Mode::Records { at, end, left } => self.next_of_batch(window, at, end, left),
                Mode::Survey { at, next, broken_bytes } => self.survey(window, at, next, broken_bytes),
                Mode::Rescue(rescue) => self.rescue(window, rescue),
                Mode::Done => Some(Step::Done),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn walk(&mut self, window: Window<'_>) -> Option<Step> {
        let block = BLOCK_BYTES as u32;
        if self.at + block > self.of.end {
            self.mode = Mode::Done;
            return None;
        }
        let Some(front) = window.view(self.at, block) else { return Some(Step::Read { offset: self.at, bytes: block }) };
        let Some((header, check)) = self.header(front, self.at) else {
            self.begin_survey(None);
            return None;
        };
        let chained = self.chain.is_none_or(|chain| chain == header.previous_check);
        let in_order = self.expected.is_none_or(|expected| expected == header.sequence) && self.boot.is_none_or(|boot| boot == header.boot);
        let later_boot = self.of.later_boots && self.boot.is_some_and(|boot| boot < header.boot);
        if !chained || !(in_order || later_boot) {
            self.begin_survey(None);
            return None;
        }
        let Some(batch) = window.view(self.at, header.bytes) else {
            return Some(Step::Read { offset: self.at, bytes: header.bytes });
        };
        if !verify_records(batch, &header, self.of.check_bodies) {
            self.begin_survey(Some(header));
            return None;
        }
        self.accept(&header, check);
        Some(Step::Batch { position: (header.boot, header.sequence) })
    }

    fn accept(&mut self, header: &BatchHeader, check: u32) {
        self.take_witness(header);
        (self.last, self.expected, self.chain) = (Some(header.sequence), Some(header.sequence + 1), Some(check));
        self.batches += 1;
        let end = self.at + header.bytes;
        self.mode = Mode::Records { at: self.at + BATCH_HEADER_BYTES as u32, end, left: header.records };
    }

    fn next_of_batch(&mut self, window: Window<'_>, at: u32, end: u32, left: u32) -> Option<Step> {
        if left == 0 {
            (self.at, self.log_end, self.mode) = (end, end, Mode::Walk);
            return None;
        }
        let Some(batch) = window.view(self.at, end - self.at) else {
            return Some(Step::Read { offset: self.at, bytes: end - self.at });
        };
        let header = next_record(batch, (at - self.at) as usize, batch.len(), self.of.generation).expect("the batch verified");
        self.mode = Mode::Records { at: at + header.span() as u32, end, left: left - 1 };
        let body = window.range(at + RECORD_HEADER_BYTES as u32, header.body_bytes);
        Some(Step::Record { header, offset: at, body, rescued: false })
    }

    /// `broken`: the header of the batch at `at` holds and is in order, its records do not.
    fn begin_survey(&mut self, broken: Option<BatchHeader>) {
        if let Some(header) = &broken {
            self.expected = Some(header.sequence);
            self.take_witness(header);
        }
        let broken_bytes = broken.map(|header| header.bytes);
        self.mode = Mode::Survey { at: self.at + broken_bytes.unwrap_or(BLOCK_BYTES as u32), next: None, broken_bytes };
    }

    fn survey(&mut self, window: Window<'_>, at: u32, mut next: Option<(u32, u64)>, broken_bytes: Option<u32>) -> Option<Step> {
        let block = BLOCK_BYTES as u32;
        let mut at = at;
        while at + block <= self.of.end && !(self.surveyed && next.is_some()) {
            let Some(front) = window.view(at, block) else {
                self.mode = Mode::Survey { at, next, broken_bytes };
                return Some(Step::Read { offset: at, bytes: block });
            };
            if let Some((header, _)) = self.header(front, at)
                && self.boot.is_none_or(|boot| boot == header.boot)
                && self.expected.is_none_or(|expected| header.sequence > expected)
            {
                self.take_witness(&header);
                next = next.or(Some((at, header.sequence)));
            }
            at += block;
        }
        self.surveyed = true;
        self.judge(next, broken_bytes)
    }

    /// Damage or tail, now that all witnesses are known.
    fn judge(&mut self, next: Option<(u32, u64)>, broken_bytes: Option<u32>) -> Option<Step> {
        let was_acknowledged = |sequence: u64| self.of.all_acknowledged || sequence <= self.witnessed;
        let from = self.at;
        let until = match (next, broken_bytes) {
            (Some((next_at, _)), _) => next_at,
            (None, Some(bytes)) if !self.of.all_acknowledged => from + bytes,
            (None, _) => self.of.end,
        };
        // Behind a gap at the front of a segment only the batch before the next one is known.
        let first_missing = self.expected.or(next.map(|(_, sequence)| sequence.saturating_sub(1)));
        let damaged = match first_missing {
            Some(sequence) => was_acknowledged(sequence),
            None => self.of.all_acknowledged,
        };
        if !damaged {
            // What else stands in the segment is whatever the recycled file held before.
            let traces = next.is_some() || broken_bytes.is_some();
            self.torn_before_valid += u64::from(next.is_some());
            self.tails_dropped += u64::from(traces);
            self.mode = Mode::Done;
            return traces.then_some(Step::Damaged { offset: from, bytes: until - from, kind: DamageKind::UnacknowledgedTail });
        }
        if next.is_none() && broken_bytes.is_none() && !self.of.all_acknowledged {
            let goes_on_at = self.of.next_first.filter(|&(boot, _)| Some(boot) == self.boot).map(|(_, sequence)| sequence);
            if goes_on_at.is_some() && goes_on_at == self.expected {
                self.mode = Mode::Done;
                return None;
            }
            if goes_on_at.is_none() {
                // The batch may have stood in a segment that was freed since: then nothing of this generation is here.
                self.mode = Mode::Rescue(Rescue { at: from, until, go_on: false, in_doubt: true });
                return None;
            }
        }
        let go_on = next.is_some_and(|(_, sequence)| was_acknowledged(sequence - 1));
        if let Some((_, sequence)) = next.filter(|_| go_on) {
            (self.expected, self.chain) = (Some(sequence), None);
        }
        self.mode = Mode::Rescue(Rescue { at: from, until, go_on, in_doubt: false });
        Some(Step::Damaged { offset: from, bytes: until - from, kind: DamageKind::Quarantined })
    }

    fn rescue(&mut self, window: Window<'_>, rescue: Rescue) -> Option<Step> {
        let Rescue { mut at, until, go_on, in_doubt } = rescue;
        let block = BLOCK_BYTES as u32;
        while at + RECORD_HEADER_BYTES as u32 <= until {
            let aligned = at / block * block;
            let needed = |bytes: u32| ((at - aligned) + bytes).next_multiple_of(block);
            let Some(front) = window.view(at, RECORD_HEADER_BYTES as u32) else {
                self.mode = Mode::Rescue(Rescue { at, ..rescue });
                return Some(Step::Read { offset: aligned, bytes: needed(RECORD_HEADER_BYTES as u32) });
            };
            let fits = |header: &RecordHeader| {
                header.span() <= u64::from(until - at) && u64::from(at - aligned) + header.span() <= u64::from(self.of.read_bytes)
            };
            let Some(header) = RecordHeader::decode(front, self.of.generation).filter(fits) else {
                at += 8;
                continue;
            };
            if in_doubt {
                self.mode = Mode::Rescue(Rescue { at, in_doubt: false, ..rescue });
                return Some(Step::Damaged { offset: self.at, bytes: until - self.at, kind: DamageKind::Quarantined });
            }
            let Some(body) = window.view(at + RECORD_HEADER_BYTES as u32, header.body_bytes) else {
                self.mode = Mode::Rescue(Rescue { at, ..rescue });
                return Some(Step::Read { offset: aligned, bytes: needed(header.span() as u32) });
            };
            if !self.of.check_bodies || self.of.generation.body_check(body) == header.body_check {
                self.mode = Mode::Rescue(Rescue { at: at + header.span() as u32, ..rescue });
                let body = window.range(at + RECORD_HEADER_BYTES as u32, header.body_bytes);
                return Some(Step::Record { header, offset: at, body, rescued: true });
            }
            at += header.span() as u32;
        }
        if in_doubt {
            self.mode = Mode::Done;
            return None;
        }
        (self.at, self.log_end) = (until, until);
        self.mode = if go_on { Mode::Walk } else { Mode::Done };
        None
    }

    /// The batch header at `at`, if it is one of this use of the segment.
    fn header(&mut self, front: &[u8], at: u32) -> Option<(BatchHeader, u32)> {
        let (header, check) = BatchHeader::decode(front)?;
        if header.generation != self.of.generation {
            self.stale_generations += 1;
            return None;
        }
        let fits = header.number == self.of.number && header.bytes <= self.of.end - at && header.bytes <= self.of.read_bytes;
        fits.then_some((header, check))
    }

    fn take_witness(&mut self, header: &BatchHeader) {
        if self.boot != Some(header.boot) {
            self.boot = Some(header.boot);
            self.witnessed = self.of.witnesses.get(&header.boot).copied().unwrap_or(0);
        }
        self.witnessed = self.witnessed.max(header.durable_upto).max(header.sequence.saturating_sub(2));
    }
}
