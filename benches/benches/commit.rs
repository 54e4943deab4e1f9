//! How many batches a second become durable, by length, with one and two in flight? Expected: a flush without metadata takes 0.1 to
//! 0.4 ms, so 2,000 to 11,000 a second at 64 KiB; two in flight keep the device busy between flushes and give two to three times one.
#![forbid(unsafe_code)]

use std::fs::{File as StdFile, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use ringpost_benches::{Run, nanoseconds};
use ringpost_ring::{File, Ring, RingConfig, local};
use ringpost_tools::engine::rig_folder;

const MIB: usize = 1 << 20;

/// One measurement.
#[derive(Clone, Copy)]
struct Plan {
    file_bytes: usize,
    /// Octets of a batch.
    bytes: usize,
    count: usize,
    in_flight: usize,
    /// Which measurement of the run.
    case: u64,
}

async fn batches(ring: Ring, file: File, plan: Plan) -> hdrhistogram::Histogram<u64> {
    let Plan { file_bytes, bytes, count, in_flight, case } = plan;
    let mut histogram = nanoseconds();
    let mut flights = std::collections::VecDeque::new();
    let mut offset = 0;
    for number in 0..count {
        let mut pages = ring.take_pages_unzeroed(bytes);
        fill(&mut pages[..bytes], case, number);
        if offset + bytes > file_bytes {
            offset = 0;
        }
        flights.push_back((Instant::now(), ring.write_synced(&file, pages.freeze(), bytes, offset as u64)));
        offset += bytes;
        if flights.len() == in_flight {
            let (begun, write) = flights.pop_front().expect("one is in flight");
            write.await.expect("the disk takes it");
            histogram.saturating_record(begun.elapsed().as_nanos() as u64);
        }
    }
    for (begun, write) in flights {
        write.await.expect("the disk takes it");
        histogram.saturating_record(begun.elapsed().as_nanos() as u64);
    }
    histogram
}

/// Where a batch says of which measurement it is.
const CASE: Range<usize> = 0..8;

/// What a batch holds: which measurement it is of, so that nothing that stood there before is like it, its number, and an octet that differs
/// from the next batch's.
fn fill(batch: &mut [u8], case: u64, number: usize) {
    batch.fill(number as u8);
    batch[CASE].copy_from_slice(&case.to_le_bytes());
    batch[CASE.end..CASE.end + 8].copy_from_slice(&(number as u64).to_le_bytes());
}

/// CRC32C of what the file holds behind the last of `count` batches, in the order of places and without their [`CASE`]. Panics where it is not
/// what was written.
fn checksum(path: &Path, plan: Plan) -> u32 {
    let Plan { file_bytes, bytes, count, case, .. } = plan;
    let file = StdFile::open(path).expect("written before");
    let (places, mut read, mut written) = (file_bytes / bytes, vec![0; bytes], vec![0; bytes]);
    let mut sum = 0;
    for place in 0..places.min(count) {
        file.read_exact_at(&mut read, (place * bytes) as u64).expect("the disk works");
        // Where the file was gone through more than once the last batch stands.
        fill(&mut written, case, place + (count - 1 - place) / places * places);
        assert!(read == written, "the batch at {} is not what was written there last", place * bytes);
        sum = crc32c::crc32c_append(sum, &read[CASE.end..]);
    }
    sum
}

fn main() {
    let mut run = Run::begin("commit", include_str!("commit.rs"));
    let folder = rig_folder("commit").expect("a folder on a real disk");
    println!("in {}; an operation is a batch, written O_DIRECT into a pre-written file and flushed", folder.path().display());
    let path = folder.path().join("segment");
    let file_bytes = run.of(256 * MIB, 8 * MIB);
    let mut plain = StdFile::create(&path).expect("the folder is writable");
    (0..file_bytes / MIB).for_each(|_| plain.write_all(&vec![0; MIB]).expect("the disk has room"));
    plain.sync_all().expect("the disk works");
    let mut case = 0;
    for round in 0..run.of(3, 1) {
        for (kib, count) in [(4, 2000), (64, 2000), (256, 1000), (1024, 300)] {
            for in_flight in [1, 2] {
                let name = format!("{kib} KiB, {in_flight} in flight ({round})");
                if !run.wants(&name) {
                    continue;
                }
                let open = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).expect("written above");
                let count = run.of(count, 8);
                case += 1;
                let plan = Plan { file_bytes, bytes: kib * 1024, count, in_flight, case };
                let begun = Instant::now();
                let histogram = local::run(RingConfig::default(), |ring, _| batches(ring, File::from(open), plan)).expect("the ring works");
                let took = begun.elapsed();
                let sum = checksum(&path, plan);
                run.report(&name, None, &histogram, count as u64, took, u64::from(sum));
                println!(
                    "    {:8.0} batches a second, {:6.0} MiB/s",
                    count as f64 / took.as_secs_f64(),
                    (kib * count) as f64 / 1024.0 / took.as_secs_f64()
                );
            }
        }
    }
    run.end();
}
