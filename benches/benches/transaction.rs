//! How long does a client wait for 250, and how many messages a second does one shard take over loopback? Expected: alone, three round
//! trips and a flush (0.5 to 2 ms); with 100 pipelining sessions flushes are shared, and the shard's CPU or the sender is the limit.
//!
//! Runs the binary that RINGPOST_ENGINE names; `./dev bench transaction` builds and names it. Without one nothing is measured: a binary
//! found by chance may be older than this program.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use ringpost_benches::Run;
use ringpost_loadtest::source::SourceOptions;
use ringpost_tools::engine::{Engine, EngineOptions, Route, rig_folder};
use ringpost_tools::machine::process_cpu;
use ringpost_tools::traffic::{Sent, texts};

fn main() {
    let run = Run::begin("transaction", include_str!("transaction.rs"));
    let Some(binary) = std::env::var_os("RINGPOST_ENGINE").map(PathBuf::from) else {
        println!("left out: RINGPOST_ENGINE names no engine");
        return;
    };
    println!("{}", binary.display());
    for (sessions, pipelining) in [(1, false), (1, true), (10, true), (100, false), (100, true)] {
        let name = format!("{sessions} sessions, {}", if pipelining { "pipelined" } else { "not pipelined" });
        if !run.wants(&name) {
            continue;
        }
        let folder = rig_folder("transaction").expect("a folder on a real disk");
        let mut options = EngineOptions::new(&binary, folder.path(), Route::Discard).expect("the binary is there");
        options.lines.push(("smtp", "messages_per_connection = 999999".into()));
        let mut engine = Engine::new(options).expect("a port is free");
        engine.start().expect("the engine starts");
        let pid = engine.pid().expect("it runs");
        let load = |duration| {
            let options = texts(engine.address, "1KiB").expect("the cores can be asked for");
            Sent::run(SourceOptions { sessions, pipelining, duration: Some(duration), ..options }).expect("the load runs")
        };
        load(Duration::from_millis(run.of(300, 20)));
        let before = process_cpu(pid).expect("it runs");
        let report = load(Duration::from_millis(run.of(3000, 50)));
        let cpu = process_cpu(pid).expect("it runs") - before;
        assert_eq!((report.refused, report.unknown), (0, 0), "{}", report.last_trouble);
        let latency = &report.latency_us;
        println!(
            "{name:44} {:8.0} messages/s, {:6.1} us CPU each, dot to 250 p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, {} in all{}",
            report.messages_per_s,
            cpu.as_secs_f64() * 1e6 / report.acknowledged.max(1) as f64,
            latency.p50 as f64 / 1e3,
            latency.p99 as f64 / 1e3,
            latency.p999 as f64 / 1e3,
            report.acknowledged,
            if report.is_void { " (the sender was the limit)" } else { "" }
        );
    }
    run.end();
}
