//! The end of a load: when it comes, what it does not wait for, and how long the load lasted.

mod loopback;

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use loopback::{core, load, loopback, wait_for};
use ringpost_loadtest::{
    content::{ContentKind, Item},
    error_kind::ErrorKind,
    live::SourceRun,
    phase::Phase,
    schedule::Rate,
    sink::{Sink, SinkCounters, SinkOptions, fault::Faults},
    sizes::Sizes,
    source::{Reached, SourceOptions, host::Stage, summary},
};

/// What happened: Postfix with fewer processes than sessions left half of a load's sessions in its kernel's backlog; they were waited
/// for until the processes were free again, and the run said that all was well. Now the end of the load ends the wait, and it is told.
#[test]
fn connections_that_nobody_greets_are_counted_and_do_not_hold_up_the_end() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let ran = load(listener.local_addr().unwrap(), |o| o.duration = Some(Duration::from_millis(400)));
    assert_eq!((ran.report.acknowledged, ran.report.ungreeted), (0, 4), "{:?}", ran.report);
    assert_eq!(ran.measurement.totals().errors.of(ErrorKind::NoBanner), 4);
    assert!(ran.report.last_trouble.unwrap().contains("no banner in"));
    assert!(ran.began.elapsed() < Duration::from_secs(10));
}

/// What happened: a server that said the first line of its banner and no more was said to have left the connection to its kernel.
#[test]
fn a_banner_without_an_end_is_a_reply_that_is_missing() {
    for (messages, duration) in [(Some(1), None), (None, Some(Duration::from_millis(400)))] {
        let listener = std::net::TcpListener::bind(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(b"220-here\r\n220").unwrap();
            let _until_its_end = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let ran = load(address, |o| {
            (o.sessions, o.messages, o.duration) = (1, messages, duration);
            o.timeout = if messages.is_some() { Duration::from_millis(300) } else { Duration::from_secs(60) };
        });
        server.join().unwrap();
        let errors = &ran.measurement.totals().errors;
        assert_eq!((ran.report.ungreeted, errors.of(ErrorKind::NoBanner)), (0, 0), "{:?}", ran.report);
        assert_eq!(errors.of(ErrorKind::ReplyTimeout), 1, "{:?}", ran.report);
    }
}

/// A server with one process: one connection is served, the others stay where the kernel keeps them.
#[test]
fn messages_that_are_all_sent_end_a_load_though_some_sessions_were_never_greeted() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), sink.address);
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut hop = TcpStream::connect(behind).unwrap();
        let (mut from_client, mut to_hop) = (client.try_clone().unwrap(), hop.try_clone().unwrap());
        let there = std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_hop));
        std::io::copy(&mut hop, &mut client).unwrap();
        let _ended = there.join();
        listener
    });
    let ran = load(address, |o| o.messages = Some(50));
    assert_eq!(ran.report.acknowledged, 50, "{:?}", ran.report);
    assert!(ran.began.elapsed() < Duration::from_secs(20), "less than the timeout of 60 s and the drain of 30 s");
    drop(server.join().unwrap());
}

#[test]
fn a_load_without_an_end_in_time_gives_up_where_nobody_is() {
    let free = std::net::TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let ran = load(free, |o| (o.messages, o.timeout) = (Some(5), Duration::from_millis(300)));
    assert_eq!(ran.report.settled, 0);
    assert!(ran.measurement.totals().errors.of(ErrorKind::ConnectRefused) > 0);
    assert!(ran.began.elapsed() < Duration::from_secs(10));
}

/// What happened: only a load that had never met its server gave up. One whose server died knocked at its door until somebody stopped it.
#[test]
fn a_closed_loop_of_so_many_messages_gives_up_when_its_server_has_died() {
    let ran = load_while(goes, |o| (o.messages, o.timeout) = (Some(1_000_000), Duration::from_millis(500)));
    let report = &ran.report;
    assert!(report.acknowledged > 20 && report.gave_up_after.is_some_and(|after| after >= Duration::from_millis(500)), "{report:?}");
    assert_eq!(report.settled + report.never_begun, 1_000_000, "{report:?}");
    let failures = summary::failures(&ran);
    assert!(failures.iter().any(|text| text.contains("gave up") && text.contains(&report.never_begun.to_string())), "{failures:?}");
    assert_eq!(summary::exit_code(&ran, &failures), 69);
    assert!(ran.began.elapsed() < Duration::from_secs(15));
}

/// What happened: what was due when it gave up counted twice.
#[test]
fn an_open_loop_that_gives_up_counts_each_message_once() {
    let free = std::net::TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let ran = load(free, |o| (o.messages, o.rate, o.timeout) = (Some(100_000), Some(Rate::Fixed(1000.0)), Duration::from_millis(300)));
    let report = &ran.report;
    assert!(report.gave_up_after.is_some() && report.settled == 0, "{report:?}");
    assert_eq!(report.never_begun, 100_000, "{report:?}");
}

/// What happened: each message cost a connection and up to a second there, and each greeting said that somebody was there, so that a load of
/// a million messages knocked for weeks. A refusal on a connection that stays is an answer, and such a load ends with its messages.
#[test]
fn a_closed_loop_gives_up_where_sessions_are_opened_and_none_comes_to_anything() {
    let run = |fault: &str, messages, timeout| {
        let faults = Faults::new(vec![fault.parse().unwrap()]);
        let sink = Sink::start(SinkOptions { faults, ..SinkOptions::new(loopback(), core()) }).unwrap();
        load(sink.address, |o| (o.sessions, o.messages, o.timeout) = (2, Some(messages), timeout))
    };
    let short = Duration::from_millis(300);
    for (fault, trouble, timeout) in [
        // Longer than the longest pause between two tries, as usual: no pause is taken for nobody.
        ("mail:421:1", "mail answered 421", Duration::from_millis(1200)),
        ("rcpt:drop:1", "while waiting for the reply to", short),
        ("dot:half:1", "while waiting for the reply to the content", short),
        ("mail:silence:1", "the reply to MAIL did not come in time", short),
    ] {
        let ran = run(fault, 1_000_000, timeout);
        let report = &ran.report;
        assert_eq!((report.acknowledged, report.gave_up_at), (0, Reached::Session), "{fault}: {report:?}");
        assert!(report.gave_up_after.is_some_and(|after| after >= timeout) && report.settled >= 6, "{fault}: {report:?}");
        assert_eq!(report.settled + report.never_begun, 1_000_000, "{fault}: {report:?}");
        let failures = summary::failures(&ran);
        let why = |text: &String| text.contains("ended without an acknowledged message") && text.contains(trouble);
        assert!(failures.iter().any(why), "{fault}: {failures:?}");
        assert_eq!(summary::exit_code(&ran, &failures), 69);
        assert!(ran.began.elapsed() < Duration::from_secs(20), "{fault}");
    }
    let ran = run("mail:451:1", 2000, short);
    assert_eq!((ran.report.refused, ran.report.never_begun, ran.report.gave_up_after), (2000, 0, None), "{:?}", ran.report);
}

/// What happened: the last session failed a timeout after the one before it, so that the load was said to have given up, and no session to
/// have been opened, although all of its messages were begun and most acknowledged.
#[test]
fn a_load_that_has_begun_all_does_not_give_up_when_its_last_sessions_time_out_one_after_the_other() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    // Both think at first; then one has no reply any more, and the other one acknowledged message, a pause in which the first fails, and no
    // reply after that.
    let server = std::thread::spawn(move || {
        let mut first = listener.accept().unwrap().0;
        let mut second = BufReader::new(listener.accept().unwrap().0);
        first.write_all(b"220 here\r\n250 ok\r\n").unwrap();
        second.get_mut().write_all(b"220 here\r\n").unwrap();
        let (mut line, mut in_content, mut taken) = (String::new(), false, false);
        while second.read_line(&mut line).is_ok_and(|octets| octets > 0) {
            let ends = line == ".\r\n";
            if !taken && (!in_content || ends) {
                second.get_mut().write_all(if line.starts_with("DATA") { b"354 go\r\n" } else { b"250 ok\r\n" }).unwrap();
            }
            taken |= ends;
            in_content = line.starts_with("DATA") || (in_content && !ends);
            line.clear();
        }
    });
    let ran = load(address, |o| {
        (o.sessions, o.messages, o.pipelining) = (2, Some(3), false);
        (o.timeout, o.think) = (Duration::from_millis(300), Duration::from_millis(500));
    });
    server.join().unwrap();
    let report = &ran.report;
    assert_eq!((report.acknowledged, report.unsent, report.never_begun, report.gave_up_after), (1, 2, 0, None), "{report:?}");
    let failures = summary::failures(&ran);
    assert!(failures.iter().any(|text| text.contains("2 messages were not acknowledged")), "{failures:?}");
    assert_eq!(summary::exit_code(&ran, &failures), 1);
}

/// A server that is away for less than `--timeout` is waited for, as often as that happens.
#[test]
fn a_server_that_comes_back_in_time_is_found_again() {
    let comes_and_goes = |counters: &SinkCounters, down: &Path| {
        for _ in 0..3 {
            let seen = counters.messages();
            wait_for("messages", || counters.messages() > seen + 20);
            std::fs::write(down, "").unwrap();
            wait_for("the end of the connections", || counters.connections_open() == 0);
            std::fs::remove_file(down).unwrap();
        }
    };
    let ran = load_while(comes_and_goes, |o| (o.messages, o.think) = (Some(400), Duration::from_millis(1)));
    assert_eq!((ran.report.settled, ran.report.gave_up_after), (400, None), "{:?}", ran.report);
}

/// What happened: an open loop whose server died halfway ended with its last reply, so that its rate was that of the first half; what was
/// due and never begun was no failure; and it was waited for 30 s, whatever `--timeout` said.
#[test]
fn an_open_loop_whose_server_dies_lasts_as_long_as_its_schedule_and_tells_what_it_owes() {
    let ran = load_whose_server_dies(|o| o.duration = Some(Duration::from_secs(1)));
    let report = &ran.report;
    assert!(report.lasted >= Duration::from_secs(1) && report.lasted < Duration::from_secs(2), "{report:?}");
    // The drain behind the schedule was counted as well, so that sessions waited for longer than there was time.
    assert!(report.paused <= report.lasted * 4, "{report:?}");
    let failures = summary::failures(&ran);
    assert!(
        failures.iter().any(|text| text.contains(&format!("{} messages were due and never begun", report.never_begun))),
        "{failures:?}"
    );
}

/// What happened: with a number of messages and no end in time it knocked at the dead server's door until somebody stopped it. Now the
/// end of its schedule is the end of its time.
#[test]
fn an_open_loop_of_so_many_messages_ends_with_its_schedule_though_its_server_died() {
    let ran = load_whose_server_dies(|o| o.messages = Some(200));
    assert!(ran.report.lasted >= Duration::from_millis(995) && ran.report.lasted < Duration::from_secs(2), "{:?}", ran.report);
}

/// A load into a sink with which this is done meanwhile; the sink is down while the file at the path exists.
fn load_while(done: impl FnOnce(&SinkCounters, &Path) + Send, change: impl FnOnce(&mut SourceOptions)) -> SourceRun {
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    let sink = Sink::start(SinkOptions { down_file: Some(down.clone()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    let counters = sink.counters();
    std::thread::scope(|scope| {
        scope.spawn(|| done(&counters, &down));
        load(sink.address, change)
    })
}

/// Goes down for good after some messages.
fn goes(counters: &SinkCounters, down: &Path) {
    wait_for("the first messages", || counters.messages() > 20);
    std::fs::write(down, "").unwrap();
}

/// An open loop of 200 messages in a second, whose server goes down for good after some of them.
fn load_whose_server_dies(change: impl FnOnce(&mut SourceOptions)) -> SourceRun {
    let began = Instant::now();
    let ran = load_while(goes, |o| {
        (o.rate, o.timeout) = (Some("200".parse().unwrap()), Duration::from_millis(500));
        change(o);
    });
    let report = &ran.report;
    assert!(report.never_begun > 0 && report.acknowledged > 20, "{report:?}");
    assert_eq!(report.settled + report.never_begun, 200, "{report:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "half a second after the end, and not half a minute");
    ran
}

/// Answers so many messages of one session, one command at a time, and nothing after the next content.
fn answer_then_stall(listener: std::net::TcpListener, messages: usize) {
    let mut stream = BufReader::new(listener.accept().unwrap().0);
    let say = |stream: &mut BufReader<TcpStream>, text: &str| stream.get_mut().write_all(text.as_bytes()).unwrap();
    say(&mut stream, "220 here\r\n");
    let (mut line, mut in_content, mut taken) = (String::new(), false, 0);
    while stream.read_line(&mut line).is_ok_and(|octets| octets > 0) {
        let ends = line == ".\r\n";
        taken += usize::from(ends);
        if !in_content || (ends && taken <= messages) {
            say(&mut stream, if line.starts_with("DATA") { "354 go\r\n" } else { "250 ok\r\n" });
        }
        in_content = line.starts_with("DATA") || (in_content && !ends);
        line.clear();
    }
}

/// What happened: each session that had carried its message saw that one was left, and connected for it, so that three connections of four
/// at the end of a load had nothing to say.
#[test]
fn no_connection_is_made_for_a_message_that_another_session_is_about_to_begin() {
    for (messages, per_connection, connections) in [(41, Some(1), 41), (2, None, 2), (3, Some(1), 3)] {
        for think in [Duration::ZERO, Duration::from_millis(2)] {
            let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
            let ran = load(sink.address, |o| (o.messages, o.per_connection, o.think) = (Some(messages), per_connection, think));
            assert_eq!(ran.report.acknowledged, messages, "{:?}", ran.report);
            sink.stop();
            let (report, _) = sink.join().unwrap();
            assert_eq!(report.connections, connections, "{messages} messages, {per_connection:?} for a connection, {think:?} between");
        }
    }
}

/// A server that closes connections from one address before a word, and leads others to a sink.
fn closed_to(address: IpAddr, sink: SocketAddr) -> SocketAddr {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let here = listener.local_addr().unwrap();
    // Ends with the process: it waits for connections that do not come any more.
    std::thread::spawn(move || {
        for mut client in
            listener.incoming().map_while(Result::ok).filter(|client| client.peer_addr().is_ok_and(|peer| peer.ip() != address))
        {
            std::thread::spawn(move || {
                let mut hop = TcpStream::connect(sink).unwrap();
                let (mut from_client, mut to_hop) = (client.try_clone().unwrap(), hop.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_hop));
                let _ended = std::io::copy(&mut hop, &mut client);
            });
        }
    });
    here
}

/// What happened: sessions from an address that no session ever came of held the last messages of a load, each for itself, and the others,
/// which saw that enough were about to begin them, had left.
#[test]
fn an_address_that_comes_to_nothing_holds_no_message_up() {
    let [well, closed] = [1, 2].map(|last| IpAddr::from([127, 0, 0, last]));
    for rate in [None, Some(Rate::Fixed(200.0))] {
        for (messages, per_connection) in [(20, Some(1)), (20, Some(3)), (2, None)] {
            let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
            let server = closed_to(closed, sink.address);
            let ran = load(server, |o| {
                (o.messages, o.per_connection, o.rate, o.timeout) = (Some(messages), per_connection, rate, Duration::from_secs(3));
                o.addresses = vec![closed, well];
            });
            let report = &ran.report;
            assert_eq!(
                (report.acknowledged, report.never_begun, report.gave_up_after),
                (messages, 0, None),
                "{rate:?} {per_connection:?}: {report:?}"
            );
            sink.stop();
            assert_eq!(sink.join().unwrap().0.messages, messages, "each of them once");
        }
    }
}

/// Where no address comes to anything, what each session gave up is still there at the end, and counted once.
#[test]
fn a_load_all_of_whose_addresses_come_to_nothing_ends_and_counts_each_message_once() {
    let closed = IpAddr::from([127, 0, 0, 2]);
    for rate in [None, Some(Rate::Fixed(1000.0))] {
        for messages in [1, 3, 9] {
            let server = closed_to(closed, loopback());
            let ran = load(server, |o| {
                (o.messages, o.rate, o.timeout) = (Some(messages), rate, Duration::from_millis(300));
                o.addresses = vec![closed];
            });
            let report = &ran.report;
            // An open loop that has begun ends with its schedule.
            assert!((report.gave_up_after.is_some() || rate.is_some()) && ran.began.elapsed() < Duration::from_secs(15), "{report:?}");
            assert_eq!((report.settled, report.never_begun), (0, messages), "{rate:?}: {report:?}");
        }
    }
}

/// What happened: in an open loop a session whose connection had carried all it may connected again beside others that waited for a message
/// on theirs: of six messages, two for each connection, and three sessions, that made five connections.
#[test]
fn an_open_loop_makes_no_connection_beside_those_that_wait_for_its_last_messages() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    // Slow enough that each session rests when the next message is due, also on a busy machine.
    let rate = Some("10".parse().unwrap());
    let ran = load(sink.address, |o| (o.sessions, o.messages, o.per_connection, o.rate) = (3, Some(6), Some(2), rate));
    assert_eq!(ran.report.acknowledged, 6, "{:?}", ran.report);
    sink.stop();
    assert_eq!(sink.join().unwrap().0.connections, 3);
}

/// What happened: the 30 s of waiting for replies that did not come were a part of the load, so that its rate was a hundredth.
#[test]
fn the_wait_for_stragglers_is_no_part_of_a_closed_loop() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || answer_then_stall(listener, 5));
    let began = Instant::now();
    let closed = |o: &mut SourceOptions| {
        (o.sessions, o.duration, o.timeout) = (1, Some(Duration::from_millis(300)), Duration::from_secs(2));
    };
    let ran = load(address, closed);
    assert_eq!((ran.report.acknowledged, ran.report.unknown), (5, 1), "{:?}", ran.report);
    assert!(began.elapsed() >= Duration::from_secs(2), "it was waited for");
    assert!(ran.report.lasted >= Duration::from_millis(300) && ran.report.lasted < Duration::from_secs(1), "{:?}", ran.report);
    server.join().unwrap();
}

#[test]
fn the_end_of_a_load_ends_the_longest_pause_between_two_messages() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let ran = load(sink.address, |o| (o.duration, o.think) = (Some(Duration::from_millis(300)), Duration::from_secs(100_000)));
    assert!(ran.began.elapsed() < Duration::from_secs(10), "{:?}", ran.report);
}

/// What happened: each line of a reply began the wait for it anew, so that a reply without an end held its session for ever.
#[test]
fn a_reply_that_never_ends_is_given_up_after_the_timeout() {
    for (first, line, kind) in [("", "220-x\r\n", ErrorKind::ReplyTimeout), ("220 here\r\n", "250-x\r\n", ErrorKind::ReplyTimeout)] {
        let listener = std::net::TcpListener::bind(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        // Ends with the process: it waits for connections that do not come any more.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut said = stream.write_all(first.as_bytes());
                    while said.is_ok() {
                        said = stream.write_all(line.as_bytes());
                        std::thread::sleep(Duration::from_millis(20)); // the server's pace
                    }
                });
            }
        });
        let ran = load(address, |o| {
            (o.sessions, o.duration, o.timeout) = (1, Some(Duration::from_secs(2)), Duration::from_millis(300));
        });
        assert!(ran.measurement.totals().errors.of(kind) >= 3, "{kind}: {:?}", ran.measurement.totals().errors);
    }
}

/// What happened: a session that was given up before its first message took none, so that a load of so many messages never ended.
#[test]
fn a_session_that_is_given_up_before_its_message_costs_the_message() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    for stage in [Stage::Banner, Stage::Hello] {
        for rate in [None, Some("50".parse().unwrap())] {
            let ran = load(sink.address, |o| {
                (o.messages, o.duration, o.aborts, o.rate) = (Some(20), Some(Duration::from_secs(3)), vec![(stage, 1.0)], rate);
            });
            assert_eq!((ran.report.aborted, ran.report.settled, ran.report.never_begun), (20, 20, 0), "{stage} {rate:?}: {:?}", ran.report);
            assert_eq!(ran.measurement.totals().sent, 0, "it has begun none");
        }
    }
}

/// What happened: the message that was answered 421 and the connection that ended with it were an error each.
#[test]
fn a_421_is_one_error() {
    for fault in ["mail:421:1", "rcpt:421:1", "dot:421:1", "banner:421:1"] {
        let faults = Faults::new(vec![fault.parse().unwrap()]);
        let sink = Sink::start(SinkOptions { faults, ..SinkOptions::new(loopback(), core()) }).unwrap();
        let ran = load(sink.address, |o| {
            (o.sessions, o.messages, o.duration) = (1, Some(3), Some(Duration::from_millis(500)));
        });
        sink.stop();
        let (report, _) = sink.join().unwrap();
        let errors = ran.measurement.totals().errors.of(ErrorKind::Reply(421));
        assert!(errors > 0 && errors == report.refusals[&421], "{fault}: {errors}, {report:?}");
    }
}

/// What happened: each connection that broke let its session wait for twice as long as the one before, whatever came between, so that a
/// server that loses one connection in ten had a load that fell from second to second.
#[test]
fn a_connection_that_breaks_behind_acknowledged_mail_costs_a_moment() {
    let faults = Faults::new(vec!["dot:lose:0.1".parse().unwrap()]);
    let sink = Sink::start(SinkOptions { faults, seed: 2, ..SinkOptions::new(loopback(), core()) }).unwrap();
    let ran = load(sink.address, |o| o.messages = Some(800));
    let report = &ran.report;
    assert!(report.unknown > 30 && report.pauses > 30 && report.acknowledged + report.unknown + report.unsent == 800, "{report:?}");
    // Half a second and more each, when all of them had doubled.
    assert!(report.paused >= Duration::from_millis(10) && report.paused < report.pauses as u32 * Duration::from_millis(150), "{report:?}");
    let told = summary::summary_text(&SourceOptions::new(sink.address, core(), ContentKind::Text(Sizes::fixed(1500))), &ran);
    assert!(told.contains(&format!("sessions waited {} times to connect again", report.pauses)), "{told}");
}

/// A greeting is no sign that it goes better now: a server that closes behind it is not stormed.
#[test]
fn a_server_that_closes_behind_its_greeting_is_asked_ever_more_seldom() {
    for fault in ["ehlo:drop:1", "mail:421:1"] {
        let faults = Faults::new(vec![fault.parse().unwrap()]);
        let sink = Sink::start(SinkOptions { faults, ..SinkOptions::new(loopback(), core()) }).unwrap();
        let ran = load(sink.address, |o| (o.sessions, o.duration) = (1, Some(Duration::from_millis(600))));
        // 10 ms and 20, 40, 80, 160 and 320 are more than that.
        assert!(ran.measurement.totals().errors.total() <= 7, "{fault}: {:?}", ran.report);
    }
}

/// What happened: a slow sender's clocks began before its octets left. Whatever a machine does meanwhile, the sending of a content, which
/// takes 50 ms between its two steps, and the waits for replies one after the other are no longer together than the load.
#[test]
fn a_slow_senders_phases_begin_with_the_last_octet() {
    for pipelining in [false, true] {
        let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
        let ran = load(sink.address, |o| {
            (o.sessions, o.bytes_per_s, o.messages, o.pipelining) = (1, Some(20_000), Some(3), pipelining);
        });
        // What is asked in one flight waits at the same time, and DATA for the longest.
        let one_by_one: &[Phase] = if pipelining { &[] } else { &[Phase::Mail, Phase::Rcpt] };
        let in_turn = [Phase::Banner, Phase::Ehlo, Phase::Data, Phase::DotTo250];
        let waited_ns: u64 = in_turn.iter().chain(one_by_one).map(|&phase| least_sum_ns(ran.measurement.totals().histogram(phase))).sum();
        assert_eq!(ran.measurement.totals().histogram(Phase::DotTo250).len(), 3);
        let waited = Duration::from_nanos(waited_ns);
        assert!(waited + Duration::from_millis(150) <= ran.report.lasted, "{waited:?} {:?}", ran.report);
        // Three times 1500 octets, all but the last step, at 20 octets a millisecond.
        assert!(ran.report.lasted >= Duration::from_millis(200), "{:?}", ran.report);
    }
}

/// What happened: a slow sender saw that the load was held, and not that it was over, so that its session was dropped in the middle of a
/// message that nobody counted: the load ended with 0, and the largest messages of a mix were in none of its figures.
#[test]
fn what_a_slow_sender_has_not_sent_when_the_wait_for_it_ends_is_counted() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let text = |octets: usize| Item::new([&b"Subject: x\r\n\r\n"[..], &b"0123456789 abcdef\r\n".repeat(octets / 19)].concat());
    let ran = load(sink.address, |o| {
        o.content = ContentKind::Corpus(vec![text(100), text(1 << 20), text(1 << 20)]);
        (o.sessions, o.bytes_per_s, o.duration, o.drain) = (2, Some(20_000), Some(Duration::from_secs(1)), Duration::from_millis(300));
    });
    let report = &ran.report;
    // Without its end no server takes a message.
    assert_eq!((report.acknowledged, report.unknown, report.unsent, report.settled), (1, 0, 2, 3), "{report:?}");
    assert!(report.last_trouble.as_ref().is_some_and(|trouble| trouble.contains("had not left when the load was over")), "{report:?}");
    let failures = summary::failures(&ran);
    assert_eq!((failures.as_slice(), summary::exit_code(&ran, &failures)), (&["2 messages were not acknowledged".to_owned()][..], 1));
}

/// All values together, each as short as its bucket allows.
fn least_sum_ns(histogram: &Histogram<u64>) -> u64 {
    histogram.iter_recorded().map(|value| histogram.lowest_equivalent(value.value_iterated_to()) * value.count_at_value()).sum()
}

/// A server that refuses MAIL and takes the rest. What happened: each message was acknowledged, and the refusal stood nowhere.
#[test]
fn a_server_that_takes_what_it_has_refused_is_an_error_by_name() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process: it waits for connections that do not come any more.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = BufReader::new(stream);
            let mut replies = "220 here\r\n";
            let mut line = String::new();
            while stream.get_mut().write_all(replies.as_bytes()).is_ok() && stream.read_line(&mut line).is_ok_and(|octets| octets > 0) {
                replies = match &line[..4.min(line.len())] {
                    "EHLO" => "250-here\r\n250 PIPELINING\r\n",
                    "MAIL" => "452 4.3.1 full\r\n",
                    "DATA" => "354 go\r\n",
                    _ => "250 ok\r\n",
                };
                line.clear();
            }
        }
    });
    let ran = load(address, |o| (o.sessions, o.messages) = (1, Some(3)));
    let (report, errors) = (&ran.report, &ran.measurement.totals().errors);
    assert_eq!((report.acknowledged, report.refused, report.unknown + report.unsent), (0, 3, 0), "{report:?}");
    assert_eq!((errors.of(ErrorKind::OutOfOrder), errors.of(ErrorKind::Reply(452)), errors.total()), (3, 3, 6), "{errors:?}");
    let failures = summary::failures(&ran);
    assert!(failures[0].contains("the reply to RCPT is 250 ok, although mail was answered 452"), "{failures:?}");
    assert_eq!(summary::exit_code(&ran, &failures), 1);
}

/// A server that says all its replies in its first packet.
#[test]
fn a_server_that_acknowledges_what_it_has_not_been_sent_has_nothing() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process: it waits for connections that do not come any more.
    std::thread::spawn(move || {
        let replies = format!("220 x\r\n250-x\r\n250 PIPELINING\r\n{}", "250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n".repeat(20));
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _gone = stream.write_all(replies.as_bytes()).and_then(|()| std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    let ran = load(address, |o| (o.sessions, o.messages, o.per_connection) = (1, Some(3), Some(1)));
    let (report, errors) = (&ran.report, &ran.measurement.totals().errors);
    assert_eq!(
        (report.acknowledged, report.unknown, errors.of(ErrorKind::OutOfOrder), errors.total()),
        (0, 3, 3, 3),
        "{report:?} {errors:?}"
    );
    assert!(summary::failures(&ran)[0].contains("before all of the content had been sent"), "{:?}", summary::failures(&ran));
}

/// A slow sender's content is on its way for two seconds; the server says that it has it when it has a line of it.
#[test]
fn a_slow_senders_content_is_not_taken_before_it_is_there() {
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut say = |reply: &str| {
            let mut line = String::new();
            stream.get_mut().write_all(reply.as_bytes()).unwrap();
            stream.read_line(&mut line).unwrap();
            line
        };
        for reply in ["220 here\r\n", "250 here\r\n", "250 ok\r\n", "250 ok\r\n"] {
            say(reply);
        }
        assert!(say("354 go\r\n").contains(':'), "it is a header field");
        say("250 ok\r\n");
        let _gone = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let ran = load(address, |o| (o.sessions, o.messages, o.bytes_per_s, o.duration) = (1, Some(1), Some(700), None));
    server.join().unwrap();
    let (report, errors) = (&ran.report, &ran.measurement.totals().errors);
    assert_eq!((report.acknowledged, report.unknown, errors.of(ErrorKind::OutOfOrder)), (0, 1, 1), "{report:?} {errors:?}");
}

/// What happened: QUIT went out behind the dot in steps of its own, and the 250 that came between two of them was taken for one to a content
/// that had not been sent.
#[test]
fn a_reply_between_the_dot_and_the_end_of_quit_is_one_to_the_content() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    // 5 octets at a time: one step at least ends behind the dot and before the end of QUIT, which has 6.
    let ran = load(sink.address, |o| {
        (o.sessions, o.messages, o.per_connection, o.bytes_per_s) = (1, Some(1), Some(1), Some(100));
        o.content = ContentKind::Text(Sizes::fixed(1));
    });
    let (report, errors) = (&ran.report, &ran.measurement.totals().errors);
    assert_eq!((report.acknowledged, report.unknown, errors.total()), (1, 0, 0), "{report:?} {errors:?}");
}

/// What happened: mail for addresses beyond ASCII was sent to servers that do not announce SMTPUTF8.
#[test]
fn a_load_that_its_server_cannot_be_sent_ends_at_once_and_says_why() {
    let mut options = SinkOptions::new(loopback(), core());
    options.announcement.smtputf8 = false;
    let sink = Sink::start(options).unwrap();
    for rate in [None, Some("100".parse().unwrap())] {
        let ran = load(sink.address, |o| {
            (o.recipients.domain, o.messages, o.rate, o.timeout) = ("m\u{fc}nchen.test".into(), Some(50), rate, Duration::from_secs(600));
        });
        let report = &ran.report;
        assert_eq!((report.settled, report.acknowledged, sink.messages()), (0, 0, 0), "{report:?}");
        assert!(report.lasted > Duration::ZERO && ran.measurement.totals().errors.of(ErrorKind::NoSmtputf8) > 0, "{report:?}");
        let failures = summary::failures(&ran);
        assert!(failures[0].contains("does not announce SMTPUTF8") && summary::exit_code(&ran, &failures) == 1, "{failures:?}");
    }
}

/// What happened: banners that were 554 stood among those of the phase, and those that were 421 did not.
#[test]
fn a_refusal_is_no_banner() {
    for fault in ["banner:421:1", "banner:554:1"] {
        let faults = Faults::new(vec![fault.parse().unwrap()]);
        let sink = Sink::start(SinkOptions { faults, ..SinkOptions::new(loopback(), core()) }).unwrap();
        let ran = load(sink.address, |o| {
            (o.sessions, o.messages, o.duration) = (1, Some(3), Some(Duration::from_millis(500)));
        });
        let totals = ran.measurement.totals();
        assert!(totals.errors.total() > 0 && totals.histogram(Phase::Banner).is_empty(), "{fault}: {:?}", totals.errors);
    }
}

/// What happened: sessions given up at their banner or EHLO had begun a transaction, so that of those that were pipelined some were not.
#[test]
fn a_session_that_is_given_up_at_its_greeting_has_begun_nothing() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let ran = load(sink.address, |o| {
        (o.messages, o.aborts, o.per_connection) = (Some(200), vec![(Stage::Banner, 0.2), (Stage::Hello, 0.2)], Some(1));
    });
    let (report, begun) = (&ran.report, ran.measurement.totals().sent);
    assert!(report.aborted > 20 && report.acknowledged + report.aborted == 200, "{report:?}");
    assert_eq!((begun, report.pipelined), (report.acknowledged, report.acknowledged), "{report:?}");
}

/// What happened: a run that ended with 0 had a last trouble as one that had failed.
#[test]
fn trouble_that_cost_no_message_is_told_as_overcome() {
    let faults = Faults::new(vec!["banner:421:0.3".parse().unwrap()]);
    let sink = Sink::start(SinkOptions { faults, seed: 2, ..SinkOptions::new(loopback(), core()) }).unwrap();
    let ran = load(sink.address, |o| (o.messages, o.per_connection) = (Some(60), Some(1)));
    assert!(summary::failures(&ran).is_empty() && ran.report.last_trouble.is_some(), "{:?}", ran.report);
    let told = summary::summary_text(&SourceOptions::new(sink.address, core(), ContentKind::Text(Sizes::fixed(1500))), &ran);
    assert!(told.contains("the last trouble, overcome, as all was acknowledged: "), "{told}");
}
