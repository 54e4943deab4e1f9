//! Sender and sink against each other: the ledgers agree whatever the way of sending, and show what the sink did.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ringpost_tools::content::HashKind;
use ringpost_tools::ledger::{Difference, difference};
use ringpost_tools::load::{LoadOptions, LoadReport};
use ringpost_tools::sender::LoadHandle;
use ringpost_tools::sink::{Sink, SinkOptions, SinkState};

/// Runs a load against a sink and compares their ledgers.
fn run(
    sink: SinkOptions,
    load: impl FnOnce(LoadOptions) -> LoadOptions,
    meanwhile: impl FnOnce(&SinkState, &LoadHandle),
) -> (LoadReport, Difference) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let sink = Sink::spawn(SinkOptions { ledger: Some(path("received")), ..sink }).unwrap();
    let options = LoadOptions { sessions: 10, messages: Some(500), ledger: Some(path("sent")), ..LoadOptions::new(sink.address) };
    let load = LoadHandle::start(load(options)).unwrap();
    meanwhile(&sink.state, &load);
    let report = load.join().unwrap();
    sink.stop().unwrap();
    let sent: &Path = &path("sent");
    (report, difference(&[sent], &path("received"), &HashSet::new()).unwrap())
}

fn untouched(_: &SinkState, _: &LoadHandle) {}

#[test]
fn every_way_of_sending_arrives_whole_and_once() {
    for pipeline in [false, true] {
        for per_connection in [0, 1, 7] {
            for recipients in [1, 3] {
                let (report, result) = run(
                    SinkOptions::on_loopback(),
                    |options| LoadOptions { pipeline, per_connection, recipients, sizes: "600..40000".parse().unwrap(), ..options },
                    untouched,
                );
                assert_eq!((report.acknowledged, report.broken, report.refused), (500, 0, 0), "{}", report.last_trouble);
                let delivered = 500 * recipients as u64;
                assert_eq!(result, Difference { acknowledged: 500, delivered, ..Difference::default() });
            }
        }
    }
}

#[test]
fn a_server_without_pipelining_gets_one_command_at_a_time() {
    let plain = SinkOptions { pipelining: false, ..SinkOptions::on_loopback() };
    let (_, result) = run(plain, |options| LoadOptions { pipeline: true, hash: HashKind::Crc32c, ..options }, untouched);
    assert_eq!(result, Difference { acknowledged: 500, delivered: 500, ..Difference::default() });
}

#[test]
fn refused_and_dropped_messages_are_sent_again_under_another_identity() {
    let rough =
        SinkOptions { defer_one_in: 7, reject_one_in: 11, drop_one_in: 13, delay: Duration::from_millis(1), ..SinkOptions::on_loopback() };
    let (report, result) = run(rough, |options| LoadOptions { pipeline: true, ..options }, untouched);
    assert!(report.refused > 0 && report.unknown > 0, "{report:?}");
    assert_eq!((result.acknowledged, result.lost, result.duplicated, result.damaged), (500, 0, 0, 0));
}

#[test]
fn a_sink_that_was_down_is_found_again() {
    let (report, result) = run(
        SinkOptions::on_loopback(),
        |options| LoadOptions { messages: Some(5000), ..options },
        |sink, load| {
            while load.state.acknowledged.load(Relaxed) < 100 {
                std::thread::yield_now();
            }
            sink.down.store(true, Relaxed);
            let began = Instant::now();
            while load.state.broken.load(Relaxed) < 20 {
                assert!(began.elapsed() < Duration::from_secs(10));
                std::thread::sleep(Duration::from_millis(1));
            }
            sink.down.store(false, Relaxed);
        },
    );
    assert_eq!((report.acknowledged, result.lost, result.damaged), (5000, 0, 0));
}

#[test]
fn a_paused_load_sends_nothing_and_a_stopped_one_ends() {
    run(
        SinkOptions::on_loopback(),
        |options| LoadOptions { messages: None, pipeline: true, ..options },
        |_, load| {
            load.state.pause.store(true, Relaxed);
            // What was under way when the pause began ends; then the count stands still.
            let mut seen = u64::MAX;
            let began = Instant::now();
            while seen != load.state.acknowledged.load(Relaxed) {
                assert!(began.elapsed() < Duration::from_secs(10));
                seen = load.state.acknowledged.load(Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
            load.state.pause.store(false, Relaxed);
            while load.state.acknowledged.load(Relaxed) == seen {
                std::thread::yield_now();
            }
            load.state.stop.store(true, Relaxed);
        },
    );
}

#[test]
fn a_rate_is_kept() {
    let (report, _) =
        run(SinkOptions::on_loopback(), |options| LoadOptions { rate: Some(400.0), messages: Some(300), ..options }, untouched);
    assert!(report.seconds > 0.6, "{report:?}");
}
