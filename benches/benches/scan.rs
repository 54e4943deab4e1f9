//! How fast is content scanned on its way from the receive buffer to the sink? Expected from a sketch: long lines at the speed of memory
//! (10 GB/s and more), lines of 77 octets 15 ns each (5 GB/s), lines of 10 octets 6 ns each (2 GB/s).
#![forbid(unsafe_code)]

use std::hint::black_box;

use ringpost_benches::mail::{TEXT_LINE, message, with_dot};
use ringpost_benches::{Run, Size};
use ringpost_smtp::content::{ContentRules, ContentScanner, ContentSink, Framing, Scanned, SinkError};
use ringpost_smtp::line::Unread;

/// Takes the place of the copy into the batch: counts, and sums a few octets so that nothing is optimised away.
#[derive(Default)]
struct Checksum {
    bytes: u64,
    sum: u64,
}

impl ContentSink for Checksum {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.bytes += bytes.len() as u64;
        self.sum = self.sum.wrapping_mul(31).wrapping_add(u64::from(bytes[0])).wrapping_add(u64::from(bytes[bytes.len() - 1]));
        Ok(())
    }
}

fn scan(message: &[u8], piece: usize) -> u64 {
    let rules = ContentRules::default();
    let mut sink = Checksum::default();
    let mut scanner = ContentScanner::new(Framing::Dots);
    for bytes in black_box(message).chunks(piece) {
        if scanner.scan(&rules, &mut Unread::new(bytes), &mut sink) == Scanned::End {
            break;
        }
    }
    assert_eq!(scanner.defect(), None);
    sink.sum ^ sink.bytes
}

fn main() {
    let mut run = Run::begin("scan", include_str!("scan.rs"));
    println!("an operation is 1000 octets: M/s are GB/s");
    let mib = run.of(1 << 20, 16 << 10);
    for (name, line, bytes, piece, goal) in [
        ("4 KiB, lines of 77", TEXT_LINE.to_vec(), 4 << 10, 16 << 10, None),
        ("64 KiB, lines of 76 (base64)", vec![b'Q'; 76], 64 << 10, 16 << 10, None),
        ("1 MiB, lines of 10", b"short line".to_vec(), mib, 64 << 10, Some(1.35)),
        ("1 MiB, lines of 30", vec![b'x'; 30], mib, 64 << 10, None),
        ("1 MiB, lines of 77", TEXT_LINE.to_vec(), mib, 64 << 10, None),
        ("1 MiB, lines of 500", vec![b'x'; 500], mib, 64 << 10, None),
        ("1 MiB, each line dot-stuffed", [b"..", TEXT_LINE].concat(), mib, 64 << 10, None),
        ("1 MiB, beyond ASCII", "Grüße aus Köln, wo Umlaute in jeder Zeile stehen, nicht nur im Kopf.".into(), mib, 64 << 10, None),
        ("1 MiB, one line", vec![b'x'; mib], mib, 64 << 10, Some(10.0)),
    ] {
        let message = with_dot(message(&line, bytes));
        let operations = (message.len() as u64 / 1000).max(1);
        run.measure(name, goal, Size { samples: (1 << 29) / message.len(), operations }, || scan(&message, piece));
    }
    run.end();
}
