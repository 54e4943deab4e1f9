//! What happened during a run: recorded by each thread without locks, gathered once a second.
//!
//! A thread owns a [`Recorder`] and tells it with each event which second of the run that belongs to ([`Recorder::at`]); what seconds
//! that are over hold ([`Recorder::ended`]) it sends over a channel. The collector gives the parts to [`Measurement::add`]; parts of one second from several
//! threads become one interval, and all become the totals.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use crate::{
    encoded_histogram::{EncodedHistogram, LATENCY_MAX_NS, latency_histogram},
    error_kind::{ErrorCounts, ErrorKind},
    interval::Interval,
    phase::Phase,
    process::{Look, ProcessSample},
    server_cpu::ServerCpu,
};

/// Intervals one run keeps. At the bound neighbours are merged and an interval becomes twice as long: 1 s for the first hour,
/// 2 s until two hours, and so on.
pub const INTERVALS_MAX: usize = 3600;
/// Seconds that are still open for parts of threads that are late; a later part counts into the oldest open one.
const OPEN_SECONDS: usize = 4;

/// Seconds that are over and wait in a recorder to be handed in. Of more, the last takes what is added.
const ENDED_MAX: usize = 4;

/// What one thread, or all, measured within a time.
#[derive(Clone, Debug)]
pub struct Part {
    histograms: [Histogram<u64>; Phase::COUNT],
    /// Transactions begun (MAIL sent).
    pub sent: u64,
    /// Transactions acknowledged (250 after the content).
    pub acknowledged: u64,
    /// Content bytes of the acknowledged.
    pub acknowledged_bytes: u64,
    /// Transactions open at the end of the time.
    pub in_flight: u64,
    /// Most connections open at once within the time; of several threads the sum of that of each.
    pub connections: u64,
    /// What went wrong.
    pub errors: ErrorCounts,
}

impl Default for Part {
    fn default() -> Self {
        Part {
            histograms: std::array::from_fn(|_| latency_histogram()),
            sent: 0,
            acknowledged: 0,
            acknowledged_bytes: 0,
            in_flight: 0,
            connections: 0,
            errors: ErrorCounts::default(),
        }
    }
}

impl Part {
    /// Latencies of a phase, nanoseconds.
    pub fn histogram(&self, phase: Phase) -> &Histogram<u64> {
        &self.histograms[phase as usize]
    }

    /// Adds what another thread measured at the same time: gauges add up.
    pub fn merge_thread(&mut self, other: &Part) {
        self.merge_counts(other);
        self.in_flight += other.in_flight;
        self.connections += other.connections;
    }

    /// Has nothing happened?
    fn is_empty(&self) -> bool {
        self.sent == 0 && self.acknowledged == 0 && self.errors.total() == 0 && self.histograms.iter().all(Histogram::is_empty)
    }

    fn merge_counts(&mut self, other: &Part) {
        for (own, others) in self.histograms.iter_mut().zip(&other.histograms) {
            if !others.is_empty() {
                own.add(others).expect("all have the same bounds");
            }
        }
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.acknowledged_bytes += other.acknowledged_bytes;
        self.errors.merge(&other.errors);
    }
}

/// One thread's side of a measurement.
#[derive(Default, Debug)]
pub struct Recorder {
    part: Box<Part>,
    /// The second that `part` is of.
    second: u64,
    /// Connections that are open.
    connections: u64,
    ended: Vec<(u64, Box<Part>)>,
}

impl Recorder {
    /// Nothing recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is recorded from now on happens in this second of the run. One that is over already stays over.
    #[inline]
    pub fn at(&mut self, second: u64) {
        if second > self.second {
            self.enter(second);
        }
    }

    #[cold]
    fn enter(&mut self, second: u64) {
        let part = std::mem::take(&mut self.part);
        match self.ended.get_mut(ENDED_MAX - 1) {
            Some((last, late)) => {
                late.merge_counts(&part);
                late.connections = late.connections.max(part.connections);
                *last = self.second;
            }
            None => self.ended.push((self.second, part)),
        }
        self.second = second;
        self.part.connections = self.connections;
    }

    /// So many connections are open from now on.
    pub fn connections(&mut self, open: u64) {
        self.connections = open;
        self.part.connections = self.part.connections.max(open);
    }

    /// The oldest second that is over, with so many transactions open at its end.
    pub fn ended(&mut self, in_flight: u64) -> Option<(u64, Box<Part>)> {
        if self.ended.is_empty() {
            return None;
        }
        let (second, mut part) = self.ended.remove(0);
        part.in_flight = in_flight;
        Some((second, part))
    }

    /// Ends it: the second that has begun, unless nothing happened in it and others were before.
    pub fn last(&mut self, in_flight: u64) -> Option<(u64, Box<Part>)> {
        (self.second == 0 || !self.part.is_empty()).then(|| (self.second, self.take(in_flight, self.connections)))
    }

    /// Records a latency; beyond an hour it counts as an hour.
    #[inline]
    pub fn record(&mut self, phase: Phase, latency: Duration) {
        self.record_ns(phase, u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records a latency in nanoseconds; 0 counts as 1, beyond an hour as an hour.
    #[inline]
    pub fn record_ns(&mut self, phase: Phase, latency_ns: u64) {
        self.part.histograms[phase as usize].record(latency_ns.clamp(1, LATENCY_MAX_NS)).expect("clamped into the bounds");
    }

    /// Counts a transaction begun.
    #[inline]
    pub fn sent(&mut self) {
        self.part.sent += 1;
    }

    /// Counts a transaction acknowledged, with the bytes of its content.
    #[inline]
    pub fn acknowledged(&mut self, content_bytes: u64) {
        self.part.acknowledged += 1;
        self.part.acknowledged_bytes += content_bytes;
    }

    /// Counts an error.
    pub fn error(&mut self, kind: ErrorKind) {
        self.part.errors.add(kind, 1);
    }

    /// Ends an interval: what was recorded since the last call, with so many transactions and connections open at its end.
    pub fn take(&mut self, in_flight: u64, connections: u64) -> Box<Part> {
        self.part.in_flight = in_flight;
        self.connections(connections);
        let part = std::mem::take(&mut self.part);
        self.part.connections = connections;
        part
    }
}

/// A second that still takes parts.
#[derive(Default, Debug)]
struct OpenSecond {
    part: Part,
    engine: Option<ProcessSample>,
    generator: Option<ProcessSample>,
}

/// Everything a run measured.
#[derive(Debug)]
pub struct Measurement {
    totals: Part,
    open: BTreeMap<u64, OpenSecond>,
    intervals: Vec<Interval>,
    seconds_per_interval: u64,
    intervals_max: usize,
    connections_max: u64,
    first_open: u64,
    server_cpu: Option<ServerCpu>,
    /// Messages that had been acknowledged at the last look at the server.
    acknowledged_before: u64,
}

impl Default for Measurement {
    fn default() -> Self {
        Self::new()
    }
}

impl Measurement {
    /// Nothing measured.
    pub fn new() -> Self {
        Self::with_intervals_max(INTERVALS_MAX)
    }

    fn with_intervals_max(intervals_max: usize) -> Self {
        Measurement {
            totals: Part::default(),
            open: BTreeMap::new(),
            intervals: Vec::new(),
            seconds_per_interval: 1,
            intervals_max,
            connections_max: 0,
            first_open: 0,
            server_cpu: None,
            acknowledged_before: 0,
        }
    }

    /// Adds what a thread measured in a second of the run (0 is the first). One call per thread and second; a thread that was away
    /// for several seconds hands in what it has under the last of them.
    pub fn add(&mut self, second: u64, part: &Part) {
        self.totals.merge_counts(part);
        let open = self.open_second(second);
        open.part.merge_thread(part);
        let connections = open.part.connections;
        self.connections_max = self.connections_max.max(connections);
    }

    /// Adds the latencies of one phase that another party measured in a second, such as the sink's end to end; its counts are not
    /// those of this run.
    pub fn add_latencies(&mut self, second: u64, phase: Phase, part: &Part) {
        let latencies = part.histogram(phase);
        if !latencies.is_empty() {
            let fits = "all have the same bounds";
            self.totals.histograms[phase as usize].add(latencies).expect(fits);
            self.open_second(second).part.histograms[phase as usize].add(latencies).expect(fits);
        }
    }

    /// Notes what the processes used in a second, all of which has been added. What was acknowledged since the call before is what the engine's
    /// CPU was for; without a look at it that counts for nothing.
    pub fn sample(&mut self, second: u64, engine: Option<Look>, generator: Option<ProcessSample>) {
        let acknowledged = self.totals.acknowledged;
        let messages = acknowledged - std::mem::replace(&mut self.acknowledged_before, acknowledged);
        if let Some(look) = &engine {
            self.server_cpu.get_or_insert_default().add(look, messages);
        }
        let open = self.open_second(second);
        (open.engine, open.generator) = (engine.map(|look| look.sample()), generator);
    }

    /// The server's CPU in the seconds in which it was looked at, and what it was for; none where it never was.
    pub fn server_cpu(&self) -> Option<ServerCpu> {
        self.server_cpu
    }

    /// Everything so far. The gauges are zero.
    pub fn totals(&self) -> &Part {
        &self.totals
    }

    /// A second that is still open (one of the last few), for live views.
    pub fn second(&self, second: u64) -> Option<&Part> {
        self.open.get(&second).map(|open| &open.part)
    }

    /// Most connections open at once; of several threads the sum of that of each.
    pub fn connections_max(&self) -> u64 {
        self.connections_max
    }

    /// Ends it: totals and intervals.
    pub fn finish(mut self) -> (Part, Vec<Interval>) {
        while !self.open.is_empty() {
            self.close_oldest();
        }
        (self.totals, self.intervals)
    }

    fn open_second(&mut self, second: u64) -> &mut OpenSecond {
        let mut second = second.max(self.first_open);
        if !self.open.contains_key(&second) {
            while self.open.len() >= OPEN_SECONDS {
                self.close_oldest();
            }
            second = second.max(self.first_open);
        }
        self.open.entry(second).or_default()
    }

    fn close_oldest(&mut self) {
        let Some((second, closed)) = self.open.pop_first() else { return };
        self.first_open = second + 1;
        let histograms = Phase::ALL
            .into_iter()
            .filter(|&phase| !closed.part.histogram(phase).is_empty())
            .map(|phase| (phase, EncodedHistogram::new(closed.part.histogram(phase))))
            .collect();
        let interval = Interval {
            start_s: second / self.seconds_per_interval * self.seconds_per_interval,
            length_s: 1,
            sent: closed.part.sent,
            acknowledged: closed.part.acknowledged,
            acknowledged_bytes: closed.part.acknowledged_bytes,
            in_flight: closed.part.in_flight,
            connections: closed.part.connections,
            errors: closed.part.errors,
            histograms,
            engine: closed.engine,
            generator: closed.generator,
        };
        self.push(interval);
    }

    fn push(&mut self, interval: Interval) {
        match self.intervals.last_mut() {
            Some(last) if last.start_s == interval.start_s => last.merge_later(&interval),
            _ => self.intervals.push(interval),
        }
        if self.intervals.len() > self.intervals_max {
            self.seconds_per_interval *= 2;
            for mut interval in std::mem::take(&mut self.intervals) {
                interval.start_s = interval.start_s / self.seconds_per_interval * self.seconds_per_interval;
                match self.intervals.last_mut() {
                    Some(last) if last.start_s == interval.start_s => last.merge_later(&interval),
                    _ => self.intervals.push(interval),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(acknowledged: u64, latency_ns: u64) -> Box<Part> {
        let mut recorder = Recorder::new();
        for _ in 0..acknowledged {
            recorder.sent();
            recorder.acknowledged(100);
            recorder.record_ns(Phase::Transaction, latency_ns);
        }
        recorder.error(ErrorKind::Reply(451));
        recorder.take(acknowledged, 2)
    }

    #[test]
    fn threads_of_one_second_become_one_interval_and_the_totals_are_exact() {
        let mut run = Measurement::new();
        for second in 0..10 {
            for thread in 0..3 {
                run.add(second, &part(5 + thread, 1_000_000 * (second + 1)));
            }
        }
        assert_eq!(run.connections_max(), 6);
        let (totals, intervals) = run.finish();
        assert_eq!((totals.acknowledged, totals.acknowledged_bytes, totals.errors.total()), (180, 18_000, 30));
        assert_eq!(intervals.len(), 10);
        assert_eq!((intervals[3].start_s, intervals[3].length_s, intervals[3].in_flight, intervals[3].connections), (3, 1, 18, 6));
        let all: u64 = intervals.iter().map(|interval| interval.histogram(Phase::Transaction).len()).sum();
        assert_eq!(all, totals.histogram(Phase::Transaction).len());
        assert!(intervals[0].histogram(Phase::Banner).is_empty() && !intervals[0].histograms.contains_key(&Phase::Banner));
    }

    /// What happened: whatever was recorded since the last look was filed under the second of the look, so that a run that was looked at
    /// late had its last second under the next number, and none where it was.
    #[test]
    fn events_are_filed_under_their_own_second_whenever_somebody_looks() {
        let mut recorder = Recorder::new();
        for second in [0, 1, 1, 3] {
            recorder.at(second);
            recorder.sent();
        }
        // A clock that was read before does not go back.
        recorder.at(2);
        recorder.sent();
        let mut seen = Vec::new();
        while let Some((second, part)) = recorder.ended(7) {
            assert_eq!(part.in_flight, 7);
            seen.push((second, part.sent));
        }
        assert_eq!(seen, [(0, 1), (1, 2)]);
        assert_eq!(recorder.last(0).map(|(second, part)| (second, part.sent)), Some((3, 2)));
        // The end is looked at in a second of its own: no second without throughput is made up.
        recorder.at(4);
        assert_eq!(recorder.ended(0).map(|(second, _)| second), Some(3));
        assert!(recorder.last(0).is_none());
        // Nobody takes them: they stay few, and nothing is lost.
        (5..50).for_each(|second| {
            recorder.at(second);
            recorder.sent();
        });
        let taken: Vec<(u64, u64)> = std::iter::from_fn(|| recorder.ended(0)).map(|(second, part)| (second, part.sent)).collect();
        assert_eq!(taken, [(4, 0), (5, 1), (6, 1), (48, 42)]);
    }

    /// What happened: the number was that at the turn of the second, so that a run of less than a second had none, and neither had one whose
    /// connections were made anew again and again.
    #[test]
    fn connections_are_the_most_at_once_within_each_second() {
        let mut recorder = Recorder::new();
        [1, 2, 3, 2].into_iter().for_each(|open| recorder.connections(open));
        recorder.at(1);
        recorder.connections(1);
        recorder.at(2);
        recorder.connections(0);
        let ended: Vec<u64> = std::iter::from_fn(|| recorder.ended(0)).map(|(_, part)| part.connections).collect();
        assert_eq!(ended, [3, 2]);
        recorder.sent();
        assert_eq!(recorder.last(0).map(|(_, part)| part.connections), Some(1));
        // Seconds that nobody takes become one, with the most of all.
        for second in 3..20 {
            recorder.at(second);
            recorder.connections(if second == 10 { 9 } else { 0 });
        }
        let ended: Vec<u64> = std::iter::from_fn(|| recorder.ended(0)).map(|(_, part)| part.connections).collect();
        assert_eq!(ended, [0, 0, 0, 9]);
    }

    #[test]
    fn latencies_of_another_party_come_without_its_counts() {
        let mut run = Measurement::new();
        run.add(0, &part(2, 1000));
        run.add_latencies(0, Phase::Transaction, &part(5, 1000));
        run.add_latencies(0, Phase::Banner, &part(5, 1000));
        let (totals, intervals) = run.finish();
        assert_eq!((totals.acknowledged, totals.histogram(Phase::Transaction).len()), (2, 7));
        assert_eq!((intervals[0].acknowledged, intervals[0].histogram(Phase::Transaction).len()), (2, 7));
    }

    #[test]
    fn a_late_part_is_counted_and_a_closed_second_stays_closed() {
        let mut run = Measurement::new();
        (0..20).for_each(|second| run.add(second, &part(1, 1000)));
        run.add(2, &part(7, 1000));
        let (totals, intervals) = run.finish();
        assert_eq!(totals.acknowledged, 27);
        assert_eq!(intervals.iter().map(|interval| interval.acknowledged).sum::<u64>(), 27);
        assert_eq!(intervals[2].acknowledged, 1);
        assert!(intervals.windows(2).all(|pair| pair[0].start_s < pair[1].start_s));
    }

    #[test]
    fn a_long_run_keeps_its_sums_in_fewer_intervals() {
        let mut run = Measurement::with_intervals_max(20);
        let seconds = 20 * 4 + 11;
        let one = part(1, 5000);
        (0..seconds).for_each(|second| run.add(second, &one));
        let (_, intervals) = run.finish();
        assert!(intervals.len() <= 20);
        assert_eq!((intervals[1].start_s, intervals[1].length_s), (8, 8));
        assert_eq!(intervals.iter().map(|interval| interval.length_s).sum::<u64>(), seconds);
        assert_eq!(intervals.iter().map(|interval| interval.histogram(Phase::Transaction).len()).sum::<u64>(), seconds);
    }

    #[test]
    fn latencies_beyond_the_bounds_are_kept_at_the_bounds() {
        let mut recorder = Recorder::new();
        recorder.record(Phase::Connect, Duration::ZERO);
        recorder.record(Phase::Connect, Duration::from_secs(1_000_000));
        let part = recorder.take(0, 0);
        assert_eq!(part.histogram(Phase::Connect).len(), 2);
        assert!(part.histogram(Phase::Connect).max() >= LATENCY_MAX_NS);
    }
}
