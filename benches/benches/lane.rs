//! What does it cost to pass a message between two threads? Expected, both awake: singly one cache line and one bell (20 to 60 ns),
//! in batches of 32 under 10 ns. Threads that sleep whenever they find nothing pay a futex call and a switch for each batch; one
//! such wake takes 3 to 50 us.
//!
//! `cargo bench -p ringpost-benches --bench lane`; both threads want a core of their own. Under `cargo test` the sizes are small.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ringpost_benches::Run;
use ringpost_lane::{Full, bell, lane, mailbox};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// `is_awake`: polls again and again, as an executor with other work does; else the thread sleeps until it is woken.
fn block_on<F: Future>(is_awake: bool, future: F) -> F::Output {
    let waker = if is_awake { Waker::noop().clone() } else { Waker::from(Arc::new(Unpark(thread::current()))) };
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        if is_awake {
            std::hint::spin_loop();
        } else {
            thread::park();
        }
    }
}

/// Passes so many numbers in batches of such a size.
type Throughput = fn(bool, u64, u64) -> (Duration, u64);

/// A function that passes `count` numbers in batches through a queue; it gives the time, and the sum as a check that they came.
macro_rules! throughput {
    ($name:ident, $queue:ident) => {
        fn $name(is_awake: bool, count: u64, batch: u64) -> (Duration, u64) {
            let (receiver_bell, mut receiver_listener) = bell();
            let (sender_bell, mut sender_listener) = bell();
            #[allow(unused_mut, reason = "a lane's sender is one, a mailbox's can be shared")]
            let (mut sender, mut receiver) = $queue::<u64>(64, receiver_bell, sender_bell);
            let start = Instant::now();
            let producer = thread::spawn(move || {
                block_on(is_awake, async move {
                    for number in 0..count {
                        let mut item = number;
                        while let Err(Full(back)) = sender.push(item) {
                            item = back;
                            sender.flush();
                            sender_listener.wait().await;
                        }
                        if number % batch == batch - 1 {
                            sender.flush();
                        }
                    }
                });
            });
            let mut sum = 0u64;
            block_on(is_awake, async {
                while let Some(number) = receiver.recv(&mut receiver_listener).await {
                    sum = sum.wrapping_add(number);
                }
            });
            producer.join().expect("the producer ends");
            (start.elapsed(), sum)
        }
    };
}
throughput!(lane_throughput, lane);
throughput!(mailbox_throughput, mailbox);

/// From the send to the awakened receiver, in nanoseconds, sorted.
fn wake_latency(count: usize) -> Vec<u128> {
    let (receiver_bell, mut receiver_listener) = bell();
    let (sender_bell, mut sender_listener) = bell();
    let (mut sender, mut receiver) = lane::<Instant>(64, receiver_bell.clone(), sender_bell.clone());
    let (mut back, mut from_receiver) = lane::<u128>(64, sender_bell, receiver_bell);
    let sleeper = thread::spawn(move || {
        block_on(false, async move {
            while let Some(sent) = receiver.recv(&mut receiver_listener).await {
                back.try_send(sent.elapsed().as_nanos()).expect("one at a time");
            }
        });
    });
    let mut latencies: Vec<u128> = block_on(false, async {
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            // Long enough for the other thread to be asleep.
            thread::sleep(Duration::from_micros(200));
            sender.try_send(Instant::now()).expect("one at a time");
            latencies.extend(from_receiver.recv(&mut sender_listener).await);
        }
        drop(sender);
        latencies
    });
    sleeper.join().expect("the sleeper ends");
    latencies.sort_unstable();
    latencies
}

fn main() {
    let run = Run::begin("lane", include_str!("lane.rs"));
    let (count, wakes) = run.of((5_000_000, 5_000), (20_000, 20));
    let expected = (0..count).fold(0u64, u64::wrapping_add);
    let queues: [(&str, Throughput); 2] = [("lane", lane_throughput), ("mailbox", mailbox_throughput)];
    for (state, is_awake) in [("awake", true), ("asleep", false)] {
        for batch in [1, 32] {
            for (queue, throughput) in queues {
                let name = format!("{queue} {state}, batches of {batch}");
                if !run.wants(&name) {
                    continue;
                }
                let (time, sum) = throughput(is_awake, count, batch);
                assert_eq!(sum, expected, "{name}: every number came");
                let per_item_ns = time.as_nanos() as f64 / count as f64;
                println!("{name:44} {per_item_ns:6.1} ns each, {:6.1} M/s, checksum {sum:016x}", 1e3 / per_item_ns);
            }
        }
    }
    let name = "wake of a sleeping thread";
    if run.wants(name) {
        let latencies = wake_latency(wakes);
        assert_eq!(latencies.len(), wakes, "every wake came");
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1e3;
        println!("{name:44} p50 {:.1} us, p99 {:.1} us, max {:.1} us, {wakes} wakes", at(0.5), at(0.99), at(1.0));
    }
    run.end();
}
