//! Connections without mail against the sink.

use std::{net::SocketAddr, time::Duration};

use ringpost_loadtest::{
    connections::{ConnectionsOptions, ConnectionsReport, Mode, run},
    error_kind::{ErrorCounts, ErrorKind},
    live::{Beside, Quiet},
    phase::Phase,
    pinning,
    signals::StopSignal,
    sink::{Sink, SinkOptions, SinkReport},
};

fn against_sink(
    change: impl FnOnce(&mut SinkOptions),
    connections: usize,
    mode: Mode,
    duration: Duration,
) -> (ConnectionsReport, SinkReport, Option<u64>, ErrorCounts) {
    let core = pinning::cores().unwrap()[0];
    let mut options = SinkOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)), core);
    change(&mut options);
    let sink = Sink::start(options).unwrap();
    let options = ConnectionsOptions {
        to: sink.address,
        cores: vec![core],
        connections,
        duration,
        mode,
        addresses: Vec::new(),
        timeout: Duration::from_secs(10),
    };
    let mut opened = None;
    let (report, measurement) = run(options, Beside::default(), &StopSignal::never(), &mut Quiet, &mut |open| opened = Some(open)).unwrap();
    assert_eq!(measurement.totals().histogram(Phase::Banner).len(), report.greeted);
    sink.stop();
    (report, sink.join().unwrap().0, opened, measurement.totals().errors.clone())
}

#[test]
fn idle_connections_stay_and_are_counted_by_both_ends() {
    let mode = Mode::Idle { noop_every: Some(Duration::from_millis(50)) };
    let (report, sink, opened, _) = against_sink(|_| {}, 300, mode, Duration::from_millis(1200));
    assert_eq!((report.greeted, report.failed, report.closed_by_server, report.open_at_end), (300, 0, 0, 300), "{report:?}");
    assert_eq!((opened, sink.concurrent_max), (Some(300), 300));
}

#[test]
fn a_server_that_has_had_enough_of_idle_or_slow_connections_is_seen_to_close_them() {
    let impatient = |o: &mut SinkOptions| o.idle_timeout = Duration::from_millis(200);
    let (report, _, _, _) = against_sink(impatient, 20, Mode::Idle { noop_every: None }, Duration::from_millis(1500));
    assert_eq!((report.greeted, report.closed_by_server, report.open_at_end), (20, 20, 0), "{report:?}");
    let (least, _) = report.closed_after.unwrap();
    assert!(least >= Duration::from_millis(150), "{least:?}");
    let slow = Mode::Slowloris { octet_every: Duration::from_millis(20), in_content: true };
    let (report, sink, _, _) = against_sink(|_| {}, 20, slow, Duration::from_millis(500));
    assert_eq!((report.greeted, report.closed_by_server, sink.messages), (20, 0, 0), "{report:?}");
}

#[test]
fn connections_that_come_and_go_are_many() {
    let (report, sink, _, _) = against_sink(|_| {}, 5, Mode::Churn, Duration::from_millis(500));
    assert!(report.greeted > 50 && report.failed == 0, "{report:?}");
    assert!(sink.concurrent_max <= 10 && sink.connections > 50, "{sink:?}");
    let limited = |o: &mut SinkOptions| o.connections_max = Some(2);
    let (report, sink, _, errors) = against_sink(limited, 5, Mode::Idle { noop_every: None }, Duration::from_millis(500));
    assert_eq!((report.greeted, report.failed, sink.connections_refused), (2, 3, 3), "{report:?}");
    // They were `other`, as if nobody had said why.
    assert_eq!((errors.of(ErrorKind::Reply(421)), errors.total()), (3, 3), "{errors:?}");
    // And the report said beside them that it had told nobody.
    assert_eq!(report.told_421, 3, "{report:?}");
}

/// What happened: it was counted as a connection that could not be had in time.
#[test]
fn a_server_that_takes_connections_and_greets_nobody_is_counted_as_that() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for mode in [Mode::Idle { noop_every: None }, Mode::Churn] {
        let options = ConnectionsOptions {
            to: listener.local_addr().unwrap(),
            cores: vec![pinning::cores().unwrap()[0]],
            connections: 3,
            duration: Duration::from_millis(1500),
            mode,
            addresses: Vec::new(),
            timeout: Duration::from_millis(100),
        };
        let (report, measurement) = run(options, Beside::default(), &StopSignal::never(), &mut Quiet, &mut |_| {}).unwrap();
        let errors = &measurement.totals().errors;
        assert!(report.greeted == 0 && errors.of(ErrorKind::NoBanner) >= 3, "{report:?} {errors:?}");
        assert_eq!(errors.of(ErrorKind::NoBanner), errors.total(), "{errors:?}");
        assert_eq!(report.last_trouble.as_deref(), Some("no banner in time"));
    }
}
