//! How fast is content scanned, on its way from the receive buffer to the sink?
//!
//! Expected from a sketch: one `memchr3` call a line and one pass for octets beyond ASCII, both at 20 GB/s and more, so
//! lines of 78 octets cost about 15 ns each: 4 GB/s. The goal is 2 GB/s, so that scanning 4 KiB costs at most 2 us.
//!
//! `cargo bench -p ringpost-smtp --bench content`; under `cargo test` it runs once over a small message.

use std::hint::black_box;
use std::time::Instant;

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

fn message(line: &[u8], body_bytes: usize) -> Vec<u8> {
    let mut message = b"Received: from a.example\r\n\tby b.example; Mon, 23 Nov 2026 23:13:33 +0000\r\nFrom: a@x.test\r\nTo: b@y.test\r\n\
        Subject: a message like many others\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        .to_vec();
    while message.len() < body_bytes {
        message.extend_from_slice(line);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b".\r\n");
    message
}

/// Scans the message `rounds` times in pieces of `piece` octets; gives GB/s and what the sink saw.
fn run(message: &[u8], piece: usize, rounds: usize) -> (f64, Checksum) {
    let rules = ContentRules::default();
    let mut sink = Checksum::default();
    let begun = Instant::now();
    for _ in 0..rounds {
        let mut scanner = ContentScanner::new(Framing::Dots);
        for bytes in black_box(message).chunks(piece) {
            if scanner.scan(&rules, &mut Unread::new(bytes), &mut sink) == Scanned::End {
                break;
            }
        }
        assert_eq!(scanner.defect(), None);
    }
    let seconds = begun.elapsed().as_secs_f64();
    ((message.len() * rounds) as f64 / seconds / 1e9, sink)
}

fn main() {
    let bench = std::env::args().any(|argument| argument == "--bench");
    let base64 = [b'Q'; 76];
    let text = *b"An ordinary line of text, as long as those that people's programs make of it.";
    for (name, message, piece) in [
        ("4 KiB, text", message(&text, 4 << 10), 16 << 10),
        ("64 KiB, base64", message(&base64, 64 << 10), 16 << 10),
        ("1 MiB, base64", message(&base64, 1 << 20), 64 << 10),
        ("1 MiB, short lines", message(b"short line", 1 << 20), 64 << 10),
        ("1 MiB, every line dot-stuffed", message(&[&b".."[..], &text].concat(), 1 << 20), 64 << 10),
        ("1 MiB, one line", message(&vec![b'x'; 1 << 20], 1 << 20), 64 << 10),
    ] {
        let rounds = if bench { (1 << 29) / message.len() } else { 1 };
        let mut speeds: Vec<f64> = (0..if bench { 5 } else { 1 }).map(|_| run(&message, piece, rounds).0).collect();
        speeds.sort_by(f64::total_cmp);
        let (_, sink) = run(&message, piece, 1);
        println!(
            "{name:30} median {:6.2} GB/s, slowest {:6.2}, {:8.0} ns a message, {} octets, checksum {:016x}",
            speeds[speeds.len() / 2],
            speeds[0],
            message.len() as f64 / speeds[speeds.len() / 2],
            sink.bytes,
            sink.sum
        );
    }
}
