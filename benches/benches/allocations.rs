//! Does a message allocate in the steady state? Expected: no, neither in the session (commands, envelope, content, replies) nor in the
//! queue (enqueue, poll, settle). The running engine is counted by `./dev allocations`.
#![forbid(unsafe_code)]

use std::alloc::System;

use ringpost_benches::Run;
use ringpost_benches::exchange::Exchange;
use ringpost_benches::mail::{ENVELOPE, TEXT_LINE, message, with_dot};
use ringpost_benches::queued::Queued;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A table that grows is allowed for: one allocation in so many messages.
const PER_MESSAGE_MAX: f64 = 0.001;

fn count(run: &Run, name: &str, messages: usize, mut work: impl FnMut()) {
    (0..messages / 10).for_each(|_| work());
    let region = Region::new(ALLOCATOR);
    (0..messages).for_each(|_| work());
    let change = region.change();
    let each = (change.allocations + change.reallocations) as f64 / messages as f64;
    println!("{name:44} {each:.5} allocations a message, {} octets", change.bytes_allocated / messages);
    assert!(!run.is_real() || each <= PER_MESSAGE_MAX, "{name} allocates");
}

fn main() {
    let run = Run::begin("allocations", include_str!("allocations.rs"));
    let messages = run.of(200_000, 1_000);
    let content = with_dot(message(TEXT_LINE, 1 << 10));
    let mut exchange = Exchange::default();
    count(&run, "session, 1 KiB, pipelined", messages, || exchange.transaction(ENVELOPE, &content));
    let lines: Vec<&[u8]> = ENVELOPE.split_inclusive(|&byte| byte == b'\n').collect();
    count(&run, "session, 1 KiB, a command at a time", messages, || {
        lines.iter().for_each(|line| exchange.receive(line));
        exchange.receive(&content);
    });
    let halves: Vec<&[u8]> = ENVELOPE.chunks(33).chain(content.chunks(100)).collect();
    count(&run, "session, 1 KiB, cut anywhere", messages, || halves.iter().for_each(|piece| exchange.receive(piece)));
    let mut queued = Queued::new(10_000);
    count(&run, "queue: enqueue, poll, settle", messages, || {
        queued.enqueue();
        queued.poll();
        queued.settle();
    });
    println!("checksum {:016x}", exchange.checksum ^ queued.checksum);
    run.end();
}
