//! A CPU profile of a bench: pprof format, and a flame graph beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pprof::protos::Message;
use pprof::{ProfilerGuard, ProfilerGuardBuilder};

use crate::flame_graph;

/// Samples a second; no multiple of what programs do by the clock.
const SAMPLES_PER_S: i32 = 997;

/// A profile being taken.
pub struct Profile {
    path: PathBuf,
    guard: ProfilerGuard<'static>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Profile {
    /// Samples all threads of this process from now on.
    pub fn begin(path: PathBuf) -> Result<Self, Box<dyn std::error::Error>> {
        // Unwinding through these from a signal may meet a lock that the interrupted thread holds.
        let guard = ProfilerGuardBuilder::default().frequency(SAMPLES_PER_S).blocklist(&["libc", "libgcc", "pthread", "vdso"]).build()?;
        Ok(Self { path, guard })
    }

    /// Writes the profile to its file and the flame graph beside it; neither where this process has used no CPU.
    pub fn end(self) -> Result<(), Box<dyn std::error::Error>> {
        let report = self.guard.report().build()?;
        if report.data.is_empty() {
            println!("profile: none, as nothing was sampled: other processes do the work, or it took no time");
            return Ok(());
        }
        fs::write(&self.path, report.pprof()?.encode_to_vec())?;
        let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for (frames, count) in &report.data {
            let stack = frames.frames.iter().rev().flat_map(|frame| frame.iter().rev()).map(|symbol| symbol.name());
            *stacks.entry(stack.collect()).or_default() += u64::try_from(*count).unwrap_or(0);
        }
        let picture = self.path.with_extension("svg");
        fs::write(&picture, flame_graph::draw(&stacks))?;
        let mut leaves: BTreeMap<&str, u64> = BTreeMap::new();
        stacks.iter().for_each(|(stack, count)| *leaves.entry(stack.last().map_or("", String::as_str)).or_default() += count);
        let all: u64 = leaves.values().sum();
        let mut order: Vec<(&str, u64)> = leaves.into_iter().collect();
        order.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut text = format!("profile: {} and {}, {all} samples; most in", self.path.display(), picture.display());
        for (name, count) in order.iter().take(12) {
            write!(text, "\n  {:5.1} % {name}", 100.0 * *count as f64 / all.max(1) as f64)?;
        }
        println!("{text}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::process::Command;

    use pprof::protos::Profile as Pprof;

    use super::*;
    use crate::profile_file;

    /// Reads a profile by its octets (protobuf, and `profile.proto` of pprof), and says what does not hold.
    const READER: &str = r#"
import sys

def fields(octets):
    at = 0
    def varint():
        nonlocal at
        number = shift = 0
        while True:
            octet = octets[at]
            at += 1
            number |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                return number
    while at < len(octets):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2, key
            length = varint()
            yield key >> 3, octets[at:at + length]
            at += length

def packed(octets):
    if isinstance(octets, int):
        return [octets]
    numbers, number, shift = [], 0, 0
    for octet in octets:
        number |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            numbers.append(number)
            number = shift = 0
    return numbers

profile = list(fields(open(sys.argv[1], "rb").read()))
every = lambda number: [value for field, value in profile if field == number]
text = [value.decode() for value in every(6)]
assert text[0] == "", "the first string is empty"
kind = lambda octets: tuple(text[value] for _, value in sorted(fields(octets)))
assert [kind(one) for one in every(1)] == [("samples", "count"), ("cpu", "nanoseconds")], every(1)
assert [kind(one) for one in every(11)] == [("cpu", "nanoseconds")], every(11)
(period,) = every(12)
assert period == 1_000_000_000 // 997, period
assert every(9)[0] > 1_600_000_000 * 10**9 and every(10)[0] > 0, (every(9), every(10))
functions = {dict(fields(one))[1]: text[dict(fields(one))[2]] for one in every(5)}
places = {}
for one in every(4):
    place = dict(fields(one))
    places[place[1]] = functions[dict(fields(place[4]))[1]]
assert all(places.values()) and 0 not in places, "each place has a function with a name"
stacks = []
for one in every(2):
    ids, values = [], []
    for field, value in fields(one):
        ids += packed(value) if field == 1 else []
        values += packed(value) if field == 2 else []
    count, cpu = values
    assert count > 0 and cpu == count * 1_000_000_000 // 997, values
    stacks.append([places[id] for id in ids])
assert stacks, "there are samples"
# The leaf comes first.
def at(stack, word):
    return next((index for index, name in enumerate(stack) if word in name), None)
order = [(at(stack, "each_bench_leaves"), at(stack, "rust_begin_short_backtrace")) for stack in stacks]
assert any(inner is not None and outer is not None and inner < outer for inner, outer in order), stacks
"#;

    /// What several benches do that are given one folder, without the processes between them. Then one that does nothing itself, as
    /// `instructions`: it left two files with nothing in them.
    #[test]
    fn each_bench_leaves_a_profile_and_a_flame_graph_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let profile = Profile::begin(profile_file(folder.path().into(), name)).unwrap();
            let mut sum = 0u64;
            // A sample is taken for each millisecond of CPU, however long the machine takes for it.
            while profile.guard.report().build().unwrap().data.is_empty() {
                (0..100_000u64).for_each(|number| sum = black_box(sum.rotate_left(3) ^ number));
            }
            profile.end().unwrap();
        }
        for name in ["one", "two"] {
            let profile = Pprof::decode(fs::read(folder.path().join(format!("{name}.pb"))).unwrap().as_slice()).unwrap();
            assert!(!profile.sample.is_empty(), "{name}");
            let path = folder.path().join(format!("{name}.pb"));
            let read = Command::new("python3").args(["-c", READER]).arg(path).status().expect("this test needs python3");
            assert!(read.success(), "see above");
            let picture = fs::read_to_string(folder.path().join(format!("{name}.svg"))).unwrap();
            assert!(picture.starts_with("<svg") && picture.contains("<title>"), "{picture}");
        }
        // A sample may be taken between begin and end, but not each time.
        let nothing = folder.path().join("nothing.pb");
        let leaves_none = (0..100).any(|_| {
            let _gone = fs::remove_file(&nothing);
            Profile::begin(nothing.clone()).unwrap().end().unwrap();
            !nothing.exists()
        });
        assert!(leaves_none);
    }
}
