//! Interval logs (`.hlog`): one histogram for each interval and phase, format 1.3 with V2 compressed base64 histograms.
//!
//! Whole transactions have no tag, which is what viewers show first; the other phases are tagged with their names. Time stamps are
//! seconds since `BaseTime`, values nanoseconds, the maximum column milliseconds.

use std::fmt::Write;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{interval::Interval, phase::Phase};

/// Nanoseconds to milliseconds, as the writers of the reference implementation do.
const MAX_VALUE_UNIT_RATIO: f64 = 1e6;

/// The interval log of a run that began at `started`. `about` is put into the head as comments.
pub fn interval_log(about: &str, started: OffsetDateTime, intervals: &[Interval]) -> String {
    let mut text = String::new();
    let start_s = started.unix_timestamp_nanos() as f64 / 1e9;
    let date = started.format(&Rfc3339).unwrap_or_default();
    about.lines().for_each(|line| text.extend(["#[", line, "]\n"]));
    text.push_str("#[Histogram log format version 1.3]\n");
    writeln!(text, "#[StartTime: {start_s:.3} (seconds since epoch), {date}]").expect("a string takes every line");
    writeln!(text, "#[BaseTime: {start_s:.3} (seconds since epoch)]").expect("a string takes every line");
    text.push_str("\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n");
    for interval in intervals {
        for (&phase, encoded) in &interval.histograms {
            if phase != Phase::Transaction {
                write!(text, "Tag={},", phase.name()).expect("a string takes every line");
            }
            let max = interval.histogram(phase).max() as f64 / MAX_VALUE_UNIT_RATIO;
            writeln!(text, "{:.3},{:.3},{max:.3},{}", interval.start_s as f64, interval.length_s as f64, encoded.as_str())
                .expect("a string takes every line");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::{Engine, engine::general_purpose::STANDARD};
    use hdrhistogram::{
        Histogram,
        serialization::{
            Deserializer,
            interval_log::{IntervalLogIterator, LogEntry},
        },
    };

    use super::*;
    use crate::measurement::{Measurement, Recorder};

    #[test]
    fn what_is_written_is_read_back_by_a_reader_of_the_format() {
        let mut run = Measurement::new();
        for second in 0..5 {
            let mut recorder = Recorder::new();
            (1..=100).for_each(|n| recorder.record_ns(Phase::Transaction, n * 10_000 * (second + 1)));
            recorder.record_ns(Phase::DotTo250, 77_000);
            run.add(second, &recorder.take(0, 0));
        }
        let (_, intervals) = run.finish();
        let started = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let text = interval_log("first\nsecond", started, &intervals);
        assert!(
            text.starts_with(
                "#[first]\n#[second]\n#[Histogram log format version 1.3]\n#[StartTime: 1700000000.000 (seconds since epoch), "
            )
        );

        let entries: Vec<LogEntry<'_>> = IntervalLogIterator::new(text.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert!(matches!(entries[0], LogEntry::StartTime(at) if at == Duration::from_secs(1_700_000_000)));
        assert!(matches!(entries[1], LogEntry::BaseTime(at) if at == Duration::from_secs(1_700_000_000)));
        let mut seen = 0;
        for entry in &entries[2..] {
            let LogEntry::Interval(interval) = entry else { panic!("{entry:?}") };
            let bytes = STANDARD.decode(interval.encoded_histogram()).unwrap();
            let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
            let phase = if interval.tag().is_none() { Phase::Transaction } else { Phase::DotTo250 };
            let second = interval.start_timestamp().as_secs();
            assert_eq!(read, intervals[second as usize].histogram(phase));
            assert_eq!(interval.duration(), Duration::from_secs(1));
            assert!((interval.max() - read.max() as f64 / 1e6).abs() < 0.001);
            seen += 1;
        }
        assert_eq!(seen, 10);
    }
}
