//! The files for HdrHistogram's viewers, read and written again by a reader that has nothing in common with this crate but the formats.
//!
//! The reader decodes V2 by its octets, and prints the distribution by the rules of the reference implementation (Java's
//! `HistogramLogWriter`, `PercentileIterator` and `outputPercentileDistribution`).

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{hgrm::hgrm, interval_log::interval_log};
use crate::{encoded_histogram::latency_histogram, measurement::Measurement, measurement::Recorder, phase::Phase, random::Random};

const READER: &str = r##"
import base64, json, math, re, struct, sys, zlib

def counts_of(text):
    packed = base64.b64decode(text, validate=True)
    cookie, length = struct.unpack(">ii", packed[:8])
    assert (cookie, length) == (0x1C849314, len(packed) - 8), (hex(cookie), length)
    plain = zlib.decompress(packed[8:])
    cookie, length, offset, digits, low, high, ratio = struct.unpack(">iiiiqqd", plain[:40])
    assert (cookie, length, offset, ratio) == (0x1C849313, len(plain) - 40, 0, 1.0), (hex(cookie), length, offset, ratio)
    assert (digits, low) == (3, 1) and high >= 3_600_000_000_000, (digits, low, high)
    counts, at, index = [], 40, 0
    while at < len(plain):
        number = shift = 0
        while True:
            octet = plain[at]
            at += 1
            if shift == 56:
                number |= octet << shift
                break
            number |= (octet & 0x7F) << shift
            if octet < 0x80:
                break
            shift += 7
        number = number >> 1 ^ -(number & 1)
        if number < 0:
            index -= number
        else:
            if number:
                counts.append((index, number))
            index += 1
    return counts

def bounds_of(index):
    bucket, sub = (index >> 10) - 1, (index & 1023) + 1024
    if bucket < 0:
        bucket, sub = 0, sub - 1024
    return sub << bucket, 1 << bucket

def distribution(counts, scale):
    lines = ["%12s %14s %10s %14s\n\n" % ("Value", "Percentile", "TotalCount", "1/(1-Percentile)")]
    total = sum(count for _, count in counts)
    level, seen = 0.0, 0
    def line(index, seen, level):
        low, size = bounds_of(index)
        value = (low + size - 1) / scale
        if level == 100.0:
            return "%12.3f %2.12f %10d\n" % (value, level / 100.0, seen)
        return "%12.3f %2.12f %10d %14.2f\n" % (value, level / 100.0, seen, 1 / (1.0 - level / 100.0))
    for index, count in counts:
        seen += count
        while level <= 100.0 * seen / total:
            lines.append(line(index, seen, level))
            ticks = 5 * int(math.pow(2, int(math.log(100.0 / (100.0 - level)) / math.log(2)) + 1))
            level += 100.0 / ticks
            if seen == total:
                break
    lines.append(line(counts[-1][0], total, 100.0))
    median = lambda index: bounds_of(index)[0] + (bounds_of(index)[1] >> 1)
    mean = sum(median(index) * count for index, count in counts) / total
    deviation = math.sqrt(sum((median(index) - mean) ** 2 * count for index, count in counts) / total)
    low, size = bounds_of(counts[-1][0])
    lines.append("#[Mean    = %12.3f, StdDeviation   = %12.3f]\n" % (mean / scale, deviation / scale))
    lines.append("#[Max     = %12.3f, Total count    = %12d]\n" % ((low + size - 1) / scale, total))
    buckets, largest = 1, 2048
    while largest <= 3_600_000_000_000:
        buckets, largest = buckets + 1, largest << 1
    lines.append("#[Buckets = %12d, SubBuckets     = %12d]\n" % (buckets, 2048))
    return "".join(lines)

lines = sys.stdin.read().split("\n")
assert lines.pop() == ""
head = [line for line in lines if line.startswith("#")]
assert head[-3] == "#[Histogram log format version 1.3]", head
assert re.fullmatch(r"#\[StartTime: \d+\.\d{3} \(seconds since epoch\), .*\]", head[-2]), head
assert re.fullmatch(r"#\[BaseTime: \d+\.\d{3} \(seconds since epoch\)\]", head[-1]), head
assert lines[len(head)] == '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"', lines[len(head)]
intervals, sums = [], {}
for line in lines[len(head) + 1:]:
    tag, start, length, longest, packed = re.fullmatch(r"(?:Tag=([^, ]+),)?(\d+\.\d{3}),(\d+\.\d{3}),(\d+\.\d{3}),(\S+)", line).groups()
    counts = counts_of(packed)
    low, size = bounds_of(counts[-1][0])
    assert longest == "%.3f" % ((low + size - 1) / 1e6), line
    intervals.append([tag, float(start), float(length), sum(count for _, count in counts)])
    for index, count in counts:
        of_tag = sums.setdefault(tag or "transaction", {})
        of_tag[index] = of_tag.get(index, 0) + count
print(json.dumps({"intervals": intervals, "hgrm": {tag: distribution(sorted(counts.items()), 1e6) for tag, counts in sums.items()}}))
"##;

fn read(log: &str) -> Value {
    let mut command = Command::new("python3");
    let mut reader = command.args(["-c", READER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this test needs python3");
    reader.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "see above: {log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn another_reader_of_the_formats_finds_the_same_values_and_prints_the_same_distribution() {
    let mut random = Random::new(3);
    let (mut run, mut whole, mut dots) = (Measurement::new(), latency_histogram(), latency_histogram());
    for second in 0..3 {
        let mut recorder = Recorder::new();
        // A prime number of values in all, so that none of the levels falls between two of them.
        for _ in 0..if second == 2 { 3335 } else { 3336 } {
            let ns = (400_000.0 * (random.normal() * 1.5).exp()) as u64;
            recorder.record_ns(Phase::Transaction, ns);
            whole.record(ns).unwrap();
        }
        // Far apart, alone, and the smallest.
        for ns in [1, 3, 1_000_003, 59_000_000_000, 77].into_iter().take(if second == 0 { 5 } else { 4 }) {
            recorder.record_ns(Phase::DotTo250, ns * (second + 1));
            dots.record(ns * (second + 1)).unwrap();
        }
        run.add(second, &recorder.take(0, 0));
    }
    let (_, intervals) = run.finish();
    let started = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    let found = read(&interval_log("a run, of some\nmachine", started, &intervals));
    let counted: Vec<(Option<&str>, f64, u64)> = found["intervals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|interval| (interval[0].as_str(), interval[1].as_f64().unwrap(), interval[3].as_u64().unwrap()))
        .collect();
    for (second, transactions, dots) in [(0, 3336, 5), (1, 3336, 4), (2, 3335, 4)] {
        let at = f64::from(second);
        assert!(counted.contains(&(None, at, transactions)) && counted.contains(&(Some("dot_to_250"), at, dots)), "{counted:?}");
    }
    assert_eq!(counted.len(), 6);
    for (phase, histogram) in [(Phase::Transaction, whole), (Phase::DotTo250, dots)] {
        let (own, other) = (hgrm(&histogram), found["hgrm"][phase.name()].as_str().unwrap());
        for (own, other) in own.lines().zip(other.lines()) {
            // A level is summed up from its steps, of one or of a hundred: the last of its twelve digits may be another.
            let level = |line: &str| line.get(13..27).and_then(|level| level.parse::<f64>().ok());
            match (level(own), level(other)) {
                (Some(own_level), Some(other_level)) => {
                    assert!((own_level - other_level).abs() < 1.5e-12, "{own} {other}");
                    assert_eq!((&own[..13], &own[27..]), (&other[..13], &other[27..]), "{}", phase.name());
                }
                _ => assert_eq!(own, other, "{}", phase.name()),
            }
        }
        assert_eq!(own.len(), other.len());
    }
}
