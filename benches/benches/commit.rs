//! How many batches a second become durable, by length, with one and two in flight? Expected: a flush without metadata takes 0.1 to
//! 0.4 ms, so 2,000 to 11,000 a second at 64 KiB; two in flight keep the device busy between flushes and give two to three times one.
#![forbid(unsafe_code)]

use std::fs::{File as StdFile, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use ringpost_benches::{Run, nanoseconds};
use ringpost_ring::{File, Ring, RingConfig, local};
use ringpost_tools::engine::rig_folder;

const MIB: usize = 1 << 20;

async fn batches(ring: Ring, file: File, file_bytes: usize, bytes: usize, count: usize, in_flight: usize) -> hdrhistogram::Histogram<u64> {
    let mut histogram = nanoseconds();
    let mut flights = std::collections::VecDeque::new();
    let mut offset = 0;
    for number in 0..count {
        let mut pages = ring.take_pages_unzeroed(bytes);
        pages.fill(number as u8);
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

fn main() {
    let mut run = Run::begin("commit", include_str!("commit.rs"));
    let folder = rig_folder("commit").expect("a folder on a real disk");
    println!("in {}; an operation is a batch, written O_DIRECT into a pre-written file and flushed", folder.path().display());
    let path = folder.path().join("segment");
    let file_bytes = run.of(256 * MIB, 8 * MIB);
    let mut plain = StdFile::create(&path).expect("the folder is writable");
    (0..file_bytes / MIB).for_each(|_| plain.write_all(&vec![0; MIB]).expect("the disk has room"));
    plain.sync_all().expect("the disk works");
    for round in 0..run.of(3, 1) {
        for (kib, count) in [(4, 2000), (64, 2000), (256, 1000), (1024, 300)] {
            for in_flight in [1, 2] {
                let name = format!("{kib} KiB, {in_flight} in flight ({round})");
                if !run.wants(&name) {
                    continue;
                }
                let open = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).expect("written above");
                let count = run.of(count, 8);
                let begun = Instant::now();
                let histogram =
                    local::run(RingConfig::default(), |ring, _| batches(ring, File::from(open), file_bytes, kib * 1024, count, in_flight))
                        .expect("the ring works");
                let took = begun.elapsed();
                run.report(&name, None, &histogram, count as u64, took, (kib * count) as u64);
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
