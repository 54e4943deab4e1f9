//! How many instructions does a message take, exactly? Expected: about 10,000 for a session of 1 KiB and 1,500 for its way through the
//! queue: 510 to come, 420 to be polled, 580 to be settled, with what the bench itself does (in the release profile), and 1,500 more at 1e5,
//! where it is linked into the lists of its domains and taken out of them. Counted by callgrind, so that a change of one in a hundred is seen
//! on a noisy machine: two runs of different length, subtracted.
#![forbid(unsafe_code)]

use std::process::Command;

use ringpost_benches::Run;
use ringpost_benches::exchange::Exchange;
use ringpost_benches::mail::{ENVELOPE, TEXT_LINE, message, with_dot};
use ringpost_benches::queued::Queued;

/// Messages of the longer run beyond those of the shorter.
const MORE: u64 = 2_000;
const FEW: u64 = 500;
/// Says to this program, started again, what to do and how often.
const WORK: &str = "RINGPOST_INSTRUCTIONS";

const WORKS: [&str; 5] = ["session 1 KiB", "session 4 KiB", "session 64 KiB", "queue at 1e3", "queue at 1e5"];

fn work(name: &str, messages: u64) -> u64 {
    let session = |kib: usize| {
        let content = with_dot(message(TEXT_LINE, kib << 10));
        let mut exchange = Exchange::default();
        (0..messages).for_each(|_| exchange.transaction(ENVELOPE, &content));
        exchange.checksum
    };
    let queue = |depth| {
        let mut queued = Queued::new(depth);
        (0..64).for_each(|_| queued.poll());
        for _ in 0..messages {
            queued.enqueue();
            queued.poll();
            queued.settle();
        }
        queued.checksum
    };
    match name {
        "session 1 KiB" => session(1),
        "session 4 KiB" => session(4),
        "session 64 KiB" => session(64),
        "queue at 1e3" => queue(1_000),
        _ => queue(100_000),
    }
}

/// Instructions of one run under callgrind, and its checksum.
fn counted(name: &str, messages: u64) -> Result<(u64, String), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .env(WORK, format!("{name}={messages}"))
        .output()
        .map_err(|error| format!("valgrind: {error} (package valgrind)"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected :")).ok_or_else(|| format!("no count in {text}"))?;
    let instructions = line.1.trim().parse().map_err(|_| format!("no number in {line:?}"))?;
    Ok((instructions, String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

fn main() {
    if let Ok(task) = std::env::var(WORK) {
        let (name, messages) = task.split_once('=').expect("this program wrote it");
        println!("{:016x}", work(name, messages.parse().expect("this program wrote it")));
        return;
    }
    let run = Run::begin("instructions", include_str!("instructions.rs"));
    for name in WORKS {
        if !run.wants(name) {
            continue;
        }
        if !run.is_real() {
            println!("{name:44} checksum {:016x}", work(name, 10));
            continue;
        }
        match counted(name, FEW).and_then(|few| Ok((few.0, counted(name, FEW + MORE)?))) {
            Ok((few, (all, checksum))) => {
                println!("{name:44} {:10.1} instructions a message, checksum {checksum}", (all - few) as f64 / MORE as f64)
            }
            Err(reason) => println!("{name:44} left out: {reason}"),
        }
    }
    run.end();
}
