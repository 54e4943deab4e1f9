//! The source against the sink over loopback, and what the ledgers say of it; damage planted on the way is found.

mod loopback;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use ringpost_loadtest::{
    addresses::RecipientPlan,
    content::{Composer, ContentKind, Form, Item},
    diff::{Difference, compare},
    error_kind::ErrorKind,
    ledger::LedgerWriter,
    live::{Beside, Quiet, SourceRun, run_source},
    phase::Phase,
    run_result::RunResult,
    signals::StopSignal,
    sink::{Flapping, Sink, SinkOptions, SinkReport, delay::ReplyDelay, fault::Faults},
    sizes::Sizes,
    source::{Source, SourceOptions, host::Stage, summary},
    template::Template,
};

use loopback::{core, load, loopback, wait_for};

/// Runs a load into a sink, both with ledgers.
fn run(sink: impl FnOnce(&mut SinkOptions), source: impl FnOnce(&mut SourceOptions)) -> (SourceRun, SinkReport, Difference) {
    let folder = tempfile::tempdir().unwrap();
    let (accepted, delivered) = (folder.path().join("accepted"), folder.path().join("delivered"));
    let mut options = SinkOptions { ledger: Some(delivered.clone()), ..SinkOptions::new(loopback(), core()) };
    sink(&mut options);
    let listening = Sink::start(options).unwrap();
    let mut options = SourceOptions {
        sessions: 4,
        messages: Some(200),
        ledger: Some(accepted.clone()),
        timeout: Duration::from_secs(20),
        ..SourceOptions::new(listening.address, core(), ContentKind::Text(Sizes::fixed(1500)))
    };
    source(&mut options);
    let ran = run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet).unwrap();
    listening.stop();
    let (report, _) = listening.join().unwrap();
    let difference = compare(&[&accepted], &delivered).unwrap();
    (ran, report, difference)
}

fn assert_clean(run: &SourceRun, sink: &SinkReport, difference: &Difference, messages: u64) {
    assert!(difference.is_clean(false), "{difference:?}, {:?}", run.report.last_trouble);
    assert_eq!((run.report.acknowledged, difference.accepted), (messages, messages), "{:?}", run.report);
    assert_eq!(run.measurement.totals().histogram(Phase::Transaction).len(), messages);
    assert_eq!(sink.damaged_all() + sink.foreign + sink.bare_line_ends, 0, "{sink:?}");
}

fn template() -> ContentKind {
    ContentKind::Template(Template::parse(b"Subject: {{seq}}\r\n\r\n.{{id}}\r\n.\r\nend\r\n").unwrap())
}

fn corpus() -> ContentKind {
    let text = |line: &[u8]| Item::new([b"Subject: x\r\n\r\n", line, b"\r\n.\r\n..\r\n"].concat());
    ContentKind::Corpus(vec![text(b"one"), text(&[0xE4; 5000])])
}

#[test]
fn every_way_of_sending_arrives_whole() {
    type Change = fn(&mut SourceOptions);
    let ways: [(&str, Change); 9] = [
        ("pipelined", |_| {}),
        ("one command at a time", |o| o.pipelining = false),
        ("in chunks", |o| o.chunking = true),
        ("one message per connection", |o| o.per_connection = Some(1)),
        ("sizes up to 300 KB", |o| o.content = ContentKind::Text("700..300000".parse().unwrap())),
        ("a template, stuffed", |o| o.content = template()),
        ("a corpus in chunks", |o| (o.content, o.chunking) = (corpus(), true)),
        ("three recipients", |o| o.recipients.per_message = 3),
        ("open loop", |o| o.rate = Some("poisson:2000".parse().unwrap())),
    ];
    for (name, way) in ways {
        let (ran, sink, difference) = run(|_| {}, way);
        println!("{name}");
        assert_clean(&ran, &sink, &difference, 200);
        let connections = if name.starts_with("one message") { 200 } else { 4 };
        assert_eq!(sink.connections, connections, "{name}");
        assert!(sink.concurrent_max <= 4);
    }
}

#[test]
fn addresses_beyond_ascii_arrive_as_they_are() {
    let (ran, sink, difference) = run(
        |_| {},
        |o| {
            (o.reverse_path, o.recipients.domain) = ("j\u{f6}rg@x.test".into(), "m\u{fc}nchen.test".into());
        },
    );
    assert_clean(&ran, &sink, &difference, 200);
}

#[test]
fn lmtp_delivers_to_each_recipient() {
    let (ran, sink, difference) = run(|o| o.announcement.lmtp = true, |o| (o.lmtp, o.recipients.per_message) = (true, 3));
    assert_clean(&ran, &sink, &difference, 200);
    assert_eq!((sink.messages, sink.deliveries, difference.owed), (200, 600, 600));
}

#[test]
fn slow_readers_senders_and_thinkers_lose_nothing() {
    let slow = |o: &mut SourceOptions| (o.bytes_per_s, o.messages) = (Some(20_000), Some(8));
    let (ran, sink, difference) = run(|_| {}, slow);
    assert_clean(&ran, &sink, &difference, 8);
    let think = |o: &mut SourceOptions| (o.think, o.messages) = (Duration::from_millis(20), Some(40));
    let (ran, sink, difference) =
        run(|o| (o.read_bytes_per_s, o.reply_delay) = (Some(1_000_000), ReplyDelay::fixed(Duration::from_millis(1))), think);
    assert_clean(&ran, &sink, &difference, 40);
    assert!(ran.report.lasted >= Duration::from_millis(20 * 9), "{:?}", ran.report.lasted);
}

/// What happened: the ledger of a source had nothing of it, so that nobody could tell when the server delivered it all the same.
#[test]
fn what_was_refused_behind_its_content_stands_in_the_sources_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("accepted");
    let faults = ["mail:451:0.2", "dot:451:0.2", "dot:554:0.3"].map(|fault| fault.parse().unwrap());
    let sink = Sink::start(SinkOptions { faults: Faults::new(faults.into()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    let ran = load(sink.address, |o| (o.messages, o.ledger) = (Some(200), Some(ledger.clone())));
    sink.stop();
    let (report, _) = sink.join().unwrap();
    let text = std::fs::read_to_string(&ledger).unwrap();
    let of = |code: &str| text.lines().filter(|line| line.starts_with("# refused ") && line.ends_with(code)).count() as u64;
    let errors = &ran.measurement.totals().errors;
    assert!(of(" 554") > 0 && of(" 554") == report.refusals[&554], "{report:?}");
    // One refused at MAIL was not sent.
    assert!(of(" 451") > 0 && of(" 451") < errors.of(ErrorKind::Reply(451)), "{errors:?}");
    assert_eq!(text.lines().count() as u64, 1 + of("") + ran.report.acknowledged);
}

#[test]
fn refusals_drops_and_broken_replies_are_counted_and_nothing_is_lost() {
    let faults = [
        "banner:421:0.05",
        "ehlo:garble:0.03",
        "mail:451:0.1",
        "rcpt:550:0.1",
        "data:452:0.05",
        "content:drop:0.05",
        "dot:451:0.1",
        "dot:half:0.03",
    ];
    let faults = Faults::new(faults.iter().map(|fault| fault.parse().unwrap()).collect());
    let (ran, sink, difference) = run(|o| (o.faults, o.seed) = (faults, 1), |o| (o.messages, o.seed) = (Some(400), 1));
    assert!(difference.is_clean(false), "{difference:?}");
    let report = &ran.report;
    assert_eq!(report.settled, 400, "{report:?}");
    assert_eq!(report.acknowledged + report.refused + report.unknown + report.unsent, 400);
    assert!(report.refused > 50 && report.unknown + report.unsent > 5 && report.acknowledged > 100, "{report:?}");
    assert!(sink.refusals[&451] > 20 && sink.dropped > 5, "{sink:?}");
}

#[test]
fn a_connection_can_be_cut_when_it_is_accepted_and_a_reply_in_its_middle() {
    let ended = |fault: &str| {
        let faults = Faults::new(vec![fault.parse().unwrap()]);
        let sink = Sink::start(SinkOptions { faults, ..SinkOptions::new(loopback(), core()) }).unwrap();
        let (mut stream, mut said) = (TcpStream::connect(sink.address).unwrap(), Vec::new());
        let ended = stream.read_to_end(&mut said).map_err(|error| error.kind());
        (String::from_utf8(said).unwrap(), ended.err())
    };
    assert_eq!(ended("banner:drop:1"), (String::new(), Some(std::io::ErrorKind::ConnectionReset)));
    assert_eq!(ended("banner:half:1"), ("220 sink.load".to_owned(), None));
    assert_eq!(ended("banner:close:1"), ("220 sink.load.test ESMTP\r\n".to_owned(), None));
}

/// A next hop that has taken a message and ends before it can say so: the ledger has it, and whoever sends it again doubles it.
#[test]
fn a_message_whose_reply_is_lost_is_taken() {
    let faults = Faults::new(vec!["dot:lose:0.2".parse().unwrap()]);
    let (ran, sink, difference) = run(|o| (o.faults, o.seed) = (faults, 1), |_| {});
    assert!(difference.is_clean(false) && ran.report.unknown > 10 && sink.dropped > 10, "{:?} {sink:?}", ran.report);
    // What stood before the lost reply in the same send is lost with it.
    assert!(difference.unacknowledged >= sink.dropped && sink.intact == difference.delivered + difference.unacknowledged, "{difference:?}");
}

#[test]
fn refused_recipients_of_accepted_messages_are_errors_and_a_failure() {
    for lmtp in [false, true] {
        let faults = Faults::new(vec!["rcpt:550:0.3".parse().unwrap()]);
        let (ran, sink, difference) =
            run(|o| (o.faults, o.announcement.lmtp) = (faults, lmtp), |o| (o.lmtp, o.recipients.per_message) = (lmtp, 5));
        let (report, errors) = (&ran.report, &ran.measurement.totals().errors);
        assert!(difference.is_clean(false) && report.acknowledged > 150 && report.recipients_refused > 100, "{report:?}");
        assert_eq!((sink.refusals[&550], errors.of(ErrorKind::Reply(550))), (report.recipients_refused, report.recipients_refused));
        assert_eq!(errors.total(), report.recipients_refused);
        let wanted = format!("{} recipients were refused", report.recipients_refused);
        assert!(summary::failures(&ran).contains(&wanted), "{:?}", summary::failures(&ran));
    }
}

/// What happened: the sink announced a size and took any.
#[test]
fn what_is_larger_than_announced_is_refused_and_the_rest_arrives() {
    let mixed = |o: &mut SourceOptions| o.content = ContentKind::Text("1000*1,9000*1".parse().unwrap());
    let (ran, sink, difference) = run(|o| o.announcement.size_max = 4096, mixed);
    let report = &ran.report;
    assert!(difference.is_clean(false) && report.refused > 20 && report.acknowledged > 20, "{report:?} {difference:?}");
    assert_eq!(report.refused + report.acknowledged, 200);
    assert_eq!(ran.measurement.totals().errors.of(ErrorKind::Reply(552)), report.refused);
    // At MAIL: nothing of them was sent.
    assert_eq!((sink.bytes, sink.refusals[&552]), (report.acknowledged * 1000, report.refused));
}

#[test]
fn sessions_given_up_at_any_stage_leave_no_damage() {
    let aborts = Stage::ALL.map(|stage| (stage, 0.05)).to_vec();
    let (ran, sink, difference) = run(|_| {}, |o| (o.aborts, o.per_connection, o.messages) = (aborts, Some(3), Some(300)));
    assert!(difference.is_clean(false), "{difference:?}");
    assert_eq!(ran.report.settled, 300);
    assert!(ran.report.aborted > 20 && sink.connections > 100, "{:?}", ran.report);
    // They were asked for: no failure.
    assert_eq!(summary::failures(&ran), [""; 0]);
}

#[test]
fn greylisted_mail_comes_in_later_and_limits_refuse_connections() {
    let grey = |o: &mut SinkOptions| o.greylist = Some(Duration::from_millis(300));
    let (ran, _, difference) = run(grey, |o| (o.messages, o.rate, o.recipients.mailboxes) = (Some(100), Some("100".parse().unwrap()), 5));
    assert!(difference.is_clean(false) && ran.report.refused > 5 && ran.report.acknowledged > 30, "{:?}", ran.report);
    // A pipelining client reads a 503 to its DATA after the 451; it is the 451 that matters.
    assert!(ran.report.last_trouble.as_deref().is_some_and(|text| text.contains("451")), "{:?}", ran.report);
    let (ran, sink, _) = run(|o| o.per_client_max = Some(2), |o| (o.messages, o.duration) = (None, Some(Duration::from_millis(300))));
    assert!(sink.connections_refused > 0 && sink.concurrent_max == 2 && ran.report.acknowledged > 0, "{sink:?}");
}

#[test]
fn a_sink_that_goes_up_and_down_is_found_again() {
    let flap = |o: &mut SinkOptions| o.flapping = Some(Flapping { up: Duration::from_millis(200), down: Duration::from_millis(100) });
    let (ran, sink, difference) = run(flap, |o| (o.messages, o.duration) = (None, Some(Duration::from_millis(1500))));
    assert_eq!((difference.lost, difference.damaged, difference.foreign), (0, 0, 0), "{difference:?}");
    assert!(sink.connections >= 8 && ran.report.acknowledged > 0 && ran.measurement.totals().errors.total() > 0, "{sink:?}");
}

/// A load without end into a sink, both with ledgers; what is done meanwhile; and what the ledgers say.
fn meanwhile(change: impl FnOnce(&mut SourceOptions), done: impl FnOnce(&Sink, &Source)) -> (u64, Difference) {
    let folder = tempfile::tempdir().unwrap();
    let (accepted, delivered) = (folder.path().join("accepted"), folder.path().join("delivered"));
    let sink = Sink::start(SinkOptions { ledger: Some(delivered.clone()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    let mut options = SourceOptions {
        sessions: 4,
        ledger: Some(accepted.clone()),
        ..SourceOptions::new(sink.address, core(), ContentKind::Text(Sizes::fixed(1500)))
    };
    change(&mut options);
    let source = Source::start(options).unwrap();
    wait_for("the first messages", || source.acknowledged() > 10);
    done(&sink, &source);
    source.stop();
    let report = source.join().unwrap();
    sink.stop();
    sink.join().unwrap();
    (report.unknown, compare(&[&accepted], &delivered).unwrap())
}

#[test]
fn a_paused_source_sends_nothing_and_keeps_its_connections() {
    let (unknown, difference) = meanwhile(
        |_| {},
        |sink, source| {
            source.pause(true);
            // What was under way when the pause began ends; then the count stands still.
            let mut seen = u64::MAX;
            wait_for("the pause", || {
                let before = std::mem::replace(&mut seen, source.acknowledged());
                std::thread::sleep(Duration::from_millis(100));
                before == seen
            });
            assert_eq!((sink.counters().connections_open(), sink.messages()), (4, seen));
            source.pause(false);
            wait_for("messages after the pause", || source.acknowledged() > seen);
            assert_eq!(source.broken(), 0);
        },
    );
    assert!(unknown == 0 && difference.is_clean(false), "{difference:?}");
}

#[test]
fn a_held_source_has_no_connections_and_what_was_under_way_is_unknown_or_unsent() {
    for rate in [None, Some("2000".parse().unwrap())] {
        let (_, difference) = meanwhile(
            |o| o.rate = rate,
            |sink, source| {
                for _ in 0..3 {
                    source.hold(true);
                    wait_for("the end of the connections", || sink.counters().connections_open() == 0);
                    let (seen, taken) = (source.acknowledged(), sink.messages());
                    std::thread::sleep(Duration::from_millis(100));
                    assert_eq!((source.acknowledged(), sink.messages()), (seen, taken));
                    source.hold(false);
                    wait_for("messages after the hold", || source.acknowledged() > seen + 10);
                }
                assert_eq!(source.broken(), 0, "{:?}", source.last_trouble());
                source.hold(true);
            },
        );
        assert!(difference.is_clean(false), "{difference:?}");
    }
}

#[test]
fn a_sink_that_is_down_refuses_connections_and_is_found_again() {
    let (_, difference) = meanwhile(
        |_| {},
        |sink, source| {
            for _ in 0..3 {
                sink.set_down(true);
                wait_for("the end of the connections", || sink.counters().connections_open() == 0);
                let (seen, broken) = (source.acknowledged(), source.broken());
                wait_for("refused connections", || source.broken() > broken + 4);
                assert!(TcpStream::connect(sink.address).is_err());
                wait_for("its trouble in words", || source.last_trouble().is_some());
                sink.set_down(false);
                wait_for("messages after that", || source.acknowledged() > seen + 10);
            }
        },
    );
    assert_eq!((difference.lost, difference.damaged, difference.foreign), (0, 0, 0), "{difference:?}");
}

/// What happened: a result said that its load was pipelined wherever that was asked for, also before a server that does not offer it.
#[test]
fn a_result_says_whether_the_load_was_pipelined_and_not_only_whether_it_was_to_be() {
    for (offered, asked) in [(true, true), (false, true), (true, false)] {
        let mut options = None;
        let (ran, ..) = run(
            |sink| sink.announcement.pipelining = offered,
            |source| {
                source.pipelining = asked;
                options = Some(source.clone());
            },
        );
        let load = summary::load_of(&options.unwrap(), &ran.report);
        let done = offered && asked;
        assert_eq!((load.pipelined, load.pipelining_asked), (done, Some(asked)), "{offered} {asked}");
        assert_eq!(load.transactions_pipelined, Some(if done { 200 } else { 0 }));
    }
}

/// What happened: whether BDAT was used nothing said but the settings, which say what was asked for.
#[test]
fn a_result_says_of_how_many_transactions_the_content_went_with_bdat() {
    for (offered, asked) in [(true, true), (false, true), (true, false)] {
        let mut options = None;
        let (ran, ..) = run(
            |sink| sink.announcement.chunking = offered,
            |source| {
                source.chunking = asked;
                options = Some(source.clone());
            },
        );
        let load = summary::load_of(&options.unwrap(), &ran.report);
        let done = if offered && asked { 200 } else { 0 };
        assert_eq!((load.chunking_asked, load.transactions_chunked), (Some(asked), Some(done)), "{offered} {asked}");
    }
}

/// What happened: the small messages of a distribution were all of one size, and no word said so.
#[test]
fn sizes_below_the_least_that_a_message_has_are_counted_and_said_once() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args([
        "source",
        "--to",
        &sink.address.to_string(),
        "--messages",
        "300",
        "--size",
        "lognormal:1KiB:1.5:256..64KiB",
        "--seed",
        "3",
    ]);
    let output = command.arg("--output").arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let raised = RunResult::read(&path).unwrap().load.sizes_raised.unwrap();
    assert!((30..200).contains(&raised), "{raised}");
    assert_eq!(text.matches(&format!("{raised} of 300 messages were drawn smaller than ")).count(), 1, "{text}");
}

/// What happened: CPU was the mean of the seconds, the last of them a fragment, so that what a message cost and the share of a core did not
/// agree.
#[test]
fn the_generators_cost_per_message_and_its_share_of_a_core_agree() {
    let sink = Sink::start(SinkOptions::new(loopback(), core())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["source", "--to", &sink.address.to_string(), "--seconds", "1.2", "--json", "--output", path.to_str().unwrap()]);
    let output = command.args(["--server-pid", &std::process::id().to_string()]).output().unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = RunResult::read(&path).unwrap();
    let own_s = summary["own_cpu_us_per_message"].as_f64().unwrap() * result.emails_sent as f64 / 1e6;
    assert!((own_s - result.generator_cpu_usage / 100.0 * result.duration).abs() < 0.001, "{own_s} {result:?}");
    let server_s = result.cpu_us_per_message.unwrap() * result.emails_sent as f64 / 1e6;
    assert!((server_s - result.cpu_usage.unwrap() / 100.0 * result.duration).abs() < 0.001, "{server_s} {result:?}");
}

/// What happened: a second sink on a port shared it in silence (SO_REUSEPORT), each got half of the connections, and the ledger of either
/// showed losses. Now only the cores of one sink share its port.
#[test]
fn a_port_is_that_of_one_sink() {
    for cores in [vec![core()], vec![core(), core()]] {
        let options = |listen| SinkOptions { cores: cores.clone(), ..SinkOptions::new(listen, core()) };
        let first = Sink::start(options(loopback())).unwrap();
        for second in [options(first.address), SinkOptions::new(first.address, core())] {
            let error = Sink::start(second).unwrap_err().to_string();
            assert!(error.contains(&first.address.to_string()) && error.contains("in use"), "{error}");
        }
        let ran = load(first.address, |o| o.messages = Some(20));
        assert_eq!((ran.report.acknowledged, first.messages()), (20, 20));
        let address = first.address;
        drop(first);
        Sink::start(options(address)).unwrap();
    }
}

/// What happened: it ended when the last message had come, before its 250 had left.
#[test]
fn a_sink_that_has_its_messages_answers_the_last_of_them() {
    let delay = ReplyDelay::fixed(Duration::from_millis(100));
    let sink = Sink::start(SinkOptions { messages: Some(8), reply_delay: delay, ..SinkOptions::new(loopback(), core()) }).unwrap();
    let ran = load(sink.address, |o| (o.messages, o.per_connection) = (Some(8), Some(2)));
    assert_eq!((ran.report.acknowledged, ran.report.unknown), (8, 0), "{:?}", ran.report);
    wait_for("its end", || sink.is_over());
}

#[test]
fn a_sink_is_down_while_its_file_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("down");
    let sink = Sink::start(SinkOptions { down_file: Some(file.clone()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    for _ in 0..2 {
        wait_for("up", || TcpStream::connect(sink.address).is_ok());
        std::fs::write(&file, "").unwrap();
        wait_for("down", || TcpStream::connect(sink.address).is_err());
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn connections_linger_behind_their_last_message_until_the_end() {
    let (unknown, difference) = meanwhile(
        |o| (o.sessions, o.per_connection, o.linger) = (20, Some(1), true),
        |sink, source| {
            wait_for("a message of each", || source.acknowledged() == 20);
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!((sink.counters().connections_open(), source.acknowledged(), source.broken()), (20, 20, 0));
        },
    );
    assert!(unknown == 0 && difference.is_clean(false) && difference.accepted == 20, "{difference:?}");
    let lingering = SourceOptions { linger: true, ..SourceOptions::new(loopback(), core(), ContentKind::Text(Sizes::fixed(700))) };
    assert!(Source::start(lingering).is_err());
}

#[test]
fn the_ledger_of_a_running_sink_can_be_read_once_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let delivered = folder.path().join("delivered");
    let sink = Sink::start(SinkOptions { ledger: Some(delivered.clone()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    let options = SourceOptions {
        messages: Some(3),
        recipients: RecipientPlan { per_message: 2, ..RecipientPlan::default() },
        ..SourceOptions::new(sink.address, core(), ContentKind::Text(Sizes::fixed(1500)))
    };
    for round in 1..=5 {
        Source::start(options.clone()).unwrap().join().unwrap();
        sink.write_ledger();
        assert_eq!(std::fs::read_to_string(&delivered).unwrap().lines().count(), 3 * round);
        assert_eq!((sink.messages(), sink.counters().deliveries()), (3 * round as u64, 6 * round as u64));
    }
}

/// Sends content as it is, by hand.
fn send_by_hand(stream: &mut BufReader<TcpStream>, content: &[u8]) {
    let mut say = |text: &[u8], wanted: &str| {
        stream.get_mut().write_all(text).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with(wanted), "{line:?}");
    };
    say(b"MAIL FROM:<a@x.test>\r\n", "250");
    say(b"RCPT TO:<b@y.test>\r\n", "250");
    say(b"DATA\r\n", "354");
    say(&[content, b".\r\n"].concat(), "250");
}

/// What a planted fault makes of five good messages.
fn planted(fault: impl Fn(u64, Vec<u8>) -> Vec<Vec<u8>>) -> Difference {
    let folder = tempfile::tempdir().unwrap();
    let (accepted, delivered) = (folder.path().join("accepted"), folder.path().join("delivered"));
    let sink = Sink::start(SinkOptions { ledger: Some(delivered.clone()), ..SinkOptions::new(loopback(), core()) }).unwrap();
    send_planted(sink.address, &accepted, fault);
    sink.stop();
    sink.join().unwrap();
    compare(&[&accepted], &delivered).unwrap()
}

fn send_planted(to: SocketAddr, accepted: &Path, fault: impl Fn(u64, Vec<u8>) -> Vec<Vec<u8>>) {
    let mut stream = BufReader::new(TcpStream::connect(to).unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    stream.get_mut().write_all(b"HELO me\r\n").unwrap();
    stream.read_line(&mut line).unwrap();
    let (mut composer, items): (Composer, Vec<Item>) = Composer::new(&ContentKind::Text(Sizes::fixed(2000)), 9, 1, 0);
    let mut ledger = LedgerWriter::open(Some(accepted)).unwrap();
    for sequence in 0..5 {
        let plan = composer.plan(sequence, 0, Form::Stuffed);
        for content in fault(sequence, composer.whole(&plan, &items)) {
            send_by_hand(&mut stream, &content);
        }
        ledger.accepted(&plan.mark, 0, b"b@y.test", b"").unwrap();
    }
    ledger.flush().unwrap();
}

#[test]
fn the_ledgers_find_planted_loss_duplicates_flipped_bytes_and_missing_dots() {
    let counts = |d: &Difference| (d.lost, d.duplicated, d.damaged, d.foreign);
    assert_eq!(counts(&planted(|_, content| vec![content])), (0, 0, 0, 0));
    assert_eq!(counts(&planted(|n, content| if n == 2 { vec![] } else { vec![content] })), (1, 0, 0, 0));
    assert_eq!(counts(&planted(|n, content| if n == 2 { vec![content.clone(), content] } else { vec![content] })), (0, 1, 0, 0));
    let flip = |n, mut content: Vec<u8>| {
        if n == 2 {
            let at = content.len() / 2;
            content[at] ^= 0x01;
        }
        vec![content]
    };
    assert_eq!(counts(&planted(flip)), (0, 0, 1, 0));
    let unstuff = |n, mut content: Vec<u8>| {
        if n == 2 {
            let at = content.windows(4).position(|four| four == b"\r\n..").unwrap();
            content.remove(at + 2);
        }
        vec![content]
    };
    assert_eq!(counts(&planted(unstuff)), (0, 0, 1, 0));
    let foreign = |n, content: Vec<u8>| if n == 2 { vec![content, b"Subject: x\r\n\r\nhello\r\n".to_vec()] } else { vec![content] };
    assert_eq!(counts(&planted(foreign)), (0, 0, 0, 1));
}

#[test]
fn replies_are_held_back_as_their_distribution_says() {
    let delay = "lognormal:4:0.5:40".parse().unwrap();
    let (ran, sink, difference) = run(|o| o.reply_delay = delay, |o| o.pipelining = false);
    assert_clean(&ran, &sink, &difference, 200);
    let dot = ran.measurement.totals().histogram(Phase::DotTo250).clone();
    assert!(dot.value_at_percentile(50.0) >= 2_000_000 && dot.min() < dot.value_at_percentile(90.0), "{}", dot.value_at_percentile(50.0));
}

/// What happened: a source that had read no 250 left no line, so that its ledger knew no run and its mail was foreign.
#[test]
fn a_run_whose_replies_were_all_lost_is_unacknowledged_and_not_foreign() {
    let lost = Faults::new(vec!["dot:lose:1".parse().unwrap()]);
    let (ran, sink, difference) = run(|o| o.faults = lost, |o| o.messages = Some(5));
    assert!(ran.report.acknowledged == 0 && sink.messages > 0, "{:?}", ran.report);
    assert_eq!((difference.unacknowledged, difference.foreign, difference.lost), (sink.messages, 0, 0), "{difference:?}");
}
