//! What does a session cost without sockets and disk? Expected: 30 to 60 ns to take a command apart, and for a whole transaction of 1 KiB
//! (three commands, 13 lines of content, a copy into the batch, five replies) 500 to 600 ns, 1.5 M/s at least.
#![forbid(unsafe_code)]

use std::hint::black_box;

use ringpost_benches::exchange::Exchange;
use ringpost_benches::mail::{ENVELOPE, TEXT_LINE, message, with_dot};
use ringpost_benches::{Run, Size};
use ringpost_smtp::command::Command;

const COMMANDS: [&[u8]; 8] = [
    b"EHLO client.example.org",
    b"MAIL FROM:<newsletter-bounces@lists.example.org> SIZE=4096 BODY=8BITMIME",
    b"RCPT TO:<some.recipient@mail.example.com>",
    b"DATA",
    b"BDAT 4096 LAST",
    b"rset",
    b"NOOP",
    b"QUIT",
];

/// As in the engine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut run = Run::begin("session", include_str!("session.rs"));
    run.measure("a command taken apart", Some(20.0), Size { samples: 20_000, operations: 64 * COMMANDS.len() as u64 }, || {
        let mut sum = 0;
        for _ in 0..64 {
            for command in COMMANDS {
                sum += match black_box(Command::parse(black_box(command))) {
                    Ok(Command::Mail(argument) | Command::Rcpt(argument)) => argument.len() as u64,
                    Ok(_) => 1,
                    Err(_) => panic!("each of them is a command"),
                };
            }
        }
        sum
    });
    for (name, bytes, goal) in
        [("transaction, 1 KiB", 1 << 10, Some(1.5)), ("transaction, 4 KiB", 4 << 10, None), ("64 KiB", 64 << 10, None)]
    {
        let content = with_dot(message(TEXT_LINE, bytes));
        let mut exchange = Exchange::default();
        run.measure(name, goal, Size { samples: (200 << 20) / bytes / 16, operations: 16 }, || {
            for _ in 0..16 {
                exchange.transaction(black_box(ENVELOPE), black_box(&content));
            }
            exchange.checksum
        });
    }
    let mut exchange = Exchange::default();
    let content = with_dot(message(TEXT_LINE, 1 << 10));
    let lines: Vec<&[u8]> = ENVELOPE.split_inclusive(|&byte| byte == b'\n').collect();
    run.measure("transaction, 1 KiB, a command at a time", None, Size { samples: 20_000, operations: 16 }, || {
        for _ in 0..16 {
            lines.iter().for_each(|line| exchange.receive(black_box(line)));
            exchange.receive(black_box(&content));
        }
        exchange.checksum
    });
    run.end();
}
