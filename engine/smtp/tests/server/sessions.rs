//! What a session costs and how it is bounded.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringpost_smtp::content::{ContentRules, ContentSink, SinkError};
use ringpost_smtp::extension::Extensions;
use ringpost_smtp::line::Unread;
use ringpost_smtp::server::{
    Action, ContentStep, REPLIES_BYTES_MAX, Replies, ServerOptions, ServerSettings, Session, SettingsError, TimeoutKind, Verdict,
};

use crate::driver::{Driver, Event};

fn greeted() -> Driver {
    let mut driver = Driver::new(ServerOptions::default());
    driver.banner(b"");
    driver.receive(b"EHLO client.test\r\n");
    driver.events.clear();
    driver
}

const MESSAGE: &[u8] = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 5 LAST\r\nabc\r\n";

#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<Session>() <= 400, "{} octets", size_of::<Session>());
    let mut driver = greeted();
    assert_eq!(driver.session.heap_bytes(), "client.test".len(), "after EHLO only the peer's name is on the heap");
    driver.receive(MESSAGE);
    assert!(driver.session.heap_bytes() <= 600, "{} octets after a message", driver.session.heap_bytes());
}

#[test]
fn a_priority_above_the_limit_of_the_listener_is_lowered() {
    for (limit, expected) in [(0, [0, -9]), (5, [5, -9]), (9, [9, -9])] {
        let mut driver = Driver::new(ServerOptions { priority_max: limit, ..ServerOptions::default() });
        driver.banner(b"");
        driver.receive(b"EHLO client.test\r\n");
        for (asked, taken) in [9, -9].into_iter().zip(expected) {
            driver.receive(format!("RSET\r\nMAIL FROM:<a@x.test> MT-PRIORITY={asked}\r\n").as_bytes());
            assert_eq!(driver.session.envelope().priority(), Some(taken));
        }
    }
}

#[test]
fn the_latest_time_of_release_moves_with_the_time() {
    let options =
        ServerOptions { extensions: Extensions::NONE.with(Extensions::FUTURE_RELEASE), hold_seconds_max: 60, ..ServerOptions::default() };
    let settings = Rc::new(ServerSettings::new(options).unwrap());
    let announced = |unix_s| {
        settings.tell_time(unix_s);
        let mut session = Session::new(settings.clone(), SocketAddr::from(([192, 0, 2, 7], 40_000)));
        let mut replies = Vec::new();
        session.banner(&Unread::new(b""), &mut Replies::new(&mut replies));
        let mut input = Unread::new(b"EHLO x\r\n");
        assert!(matches!(session.next(&mut input, &mut Replies::new(&mut replies)), Action::Read));
        String::from_utf8(replies).unwrap().lines().last().unwrap().to_owned()
    };
    for (unix_s, expected) in
        [(0, "1970-01-01T00:01:00Z"), (59, "1970-01-01T00:01:00Z"), (60, "1970-01-01T00:02:00Z"), (i64::MAX, "9999-12-31T23:59:59Z")]
    {
        assert_eq!(announced(unix_s), format!("250 FUTURERELEASE 60 {expected}"));
    }
}

#[test]
fn messages_reuse_the_storage_of_those_before() {
    let mut driver = greeted();
    driver.receive(MESSAGE);
    let held = driver.session.heap_bytes();
    for _ in 0..100 {
        driver.receive(MESSAGE);
        assert_eq!(driver.session.heap_bytes(), held);
    }
    assert_eq!(driver.session.messages(), 101);
}

#[test]
fn a_large_envelope_is_given_back() {
    let mut driver = greeted();
    driver.receive(b"MAIL FROM:<a@x.test>\r\n");
    for _ in 0..500 {
        driver.receive(b"RCPT TO:<somebody@y.test>\r\n");
    }
    assert!(driver.session.heap_bytes() > 8000);
    // The engine accounts for it, and a step more is not much.
    for _ in 0..400 {
        driver.receive(b"RCPT TO:<somebody@y.test>\r\n");
        let (held, needed) = (driver.session.envelope_heap_bytes(), driver.session.envelope().as_bytes().len());
        assert!(held <= needed + 10 * 1024, "{held} octets for {needed}");
    }
    driver.receive(b"RSET\r\n");
    assert!(driver.session.heap_bytes() <= 600);
}

#[test]
fn a_session_that_is_opened_again_remembers_nothing() {
    let mut driver = greeted();
    driver.receive(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 5\r\nabc\r\nMAIL FR");
    let held = driver.session.heap_bytes();
    let settings = Rc::new(ServerSettings::new(ServerOptions::default()).expect("valid"));
    driver.session.reopen(settings, SocketAddr::from(([192, 0, 2, 8], 1)));
    assert!(driver.session.heap_bytes() <= held && driver.session.helo().is_empty() && driver.session.messages() == 0);
    assert!(!driver.session.in_content());
    driver.events.clear();
    driver.banner(b"");
    driver.receive(b"MAIL FROM:<a@x.test>\r\n");
    assert_eq!(driver.events[1], Event::Reply("503 5.5.1 EHLO or HELO first".into()));
}

#[test]
fn ordinary_content_is_put_in_one_piece() {
    let mut driver = greeted();
    driver.receive(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n");
    let content =
        [&b"Subject: x\r\nFrom: a\r\n\r\n"[..], &b"an ordinary line of text without any dots in front\r\n".repeat(20_000), b".\r\n"]
            .concat();
    driver.receive(&content);
    assert!(matches!(driver.events.last(), Some(Event::Reply(reply)) if reply.starts_with("250 2.0.0 ")));
    driver.receive(b"RSET\r\n");
    assert!(driver.puts_max <= 2, "header and body, not {} pieces", driver.puts_max);
}

#[test]
fn input_known_to_wait_behind_the_slice_counts_as_waiting() {
    let mut driver = greeted();
    driver.receive_with_more_behind(b"NOOP\r\n");
    assert_eq!(driver.events[0], Event::Reply("554 5.5.0 Wait for the reply before sending more, closing".into()));
    assert!(driver.is_closed());
    let mut driver = greeted();
    driver.receive_with_more_behind(b"MAIL FROM:<a@x.test>\r\n");
    assert_eq!(driver.events[0], Event::Reply("250 2.1.0 Sender OK".into()));
}

#[test]
fn a_client_that_never_reads_does_not_fill_the_memory_with_replies() {
    let options = ServerOptions { junk_commands_max: u16::MAX, ..ServerOptions::default() };
    let settings = Rc::new(ServerSettings::new(options).expect("valid"));
    let mut session = Session::new(settings, SocketAddr::from(([192, 0, 2, 7], 1)));
    let mut unsent = Vec::new();
    session.banner(&Unread::new(b""), &mut Replies::new(&mut unsent));
    let flood = b"RSET\r\n".repeat(50_000);
    let mut input = Unread::new(&flood);
    let mut sent = 0;
    loop {
        match session.next(&mut input, &mut Replies::new(&mut unsent)) {
            Action::Send => {
                assert!(unsent.len() >= REPLIES_BYTES_MAX && unsent.len() < REPLIES_BYTES_MAX + 1024);
                sent += 1;
                unsent.clear();
            }
            Action::Read => break,
            action => panic!("{action:?}"),
        }
    }
    assert!(sent > 50 && input.is_empty());
}

#[test]
fn the_deadline_of_content_grows_with_what_arrives_and_has_an_end() {
    let mut driver = greeted();
    let timeout = driver.session.timeout();
    assert_eq!((timeout.kind, timeout.after), (TimeoutKind::Idle, Duration::from_secs(300)));
    driver.receive(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n");
    let begun = driver.session.timeout();
    assert_eq!((begun.kind, begun.after), (TimeoutKind::Data, Duration::from_secs(300)));
    assert_ne!(begun.phase, timeout.phase);
    driver.receive(&b"x".repeat(50_000));
    let later = driver.session.timeout();
    assert_eq!((later.phase, later.after), (begun.phase, Duration::from_secs(400)), "500 octets earn a second");
    driver.receive(&b"x".repeat(2_000_000));
    assert_eq!(driver.session.timeout().after, Duration::from_secs(1800), "and no more than half an hour");
    driver.receive(b"\r\n.\r\n");
    let idle = driver.session.timeout();
    assert_eq!(idle.kind, TimeoutKind::Idle);
    assert_ne!(idle.phase, begun.phase);
}

#[test]
fn chunks_share_one_deadline_and_octets_of_a_command_do_not_renew_theirs() {
    let mut driver = greeted();
    driver.receive(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 500\r\n");
    let begun = driver.session.timeout();
    driver.receive(&b"x".repeat(500));
    driver.receive(b"BDAT 5");
    let between = driver.session.timeout();
    assert_eq!((between.kind, between.phase, between.after), (TimeoutKind::Data, begun.phase, Duration::from_secs(301)));
    driver.receive(b"\r\nxxxxxRSET\r\n");
    let idle = driver.session.timeout();
    driver.receive(b"N");
    let command = driver.session.timeout();
    assert_eq!((command.kind, command.after), (TimeoutKind::Command, Duration::from_secs(300)));
    assert_ne!(command.phase, idle.phase);
    driver.receive(b"O");
    driver.receive(b"O");
    assert_eq!(driver.session.timeout(), command, "an octet now and then buys no time");
    driver.receive(b"P\r\n");
    assert_eq!(driver.session.timeout().kind, TimeoutKind::Idle);
}

/// Time ran on from the first chunk: who said RSET or EHLO behind it and paused was cut off before the idle timeout.
#[test]
fn time_counts_anew_when_a_transaction_of_chunks_is_given_up() {
    for command in ["RSET\r\n", "EHLO client.test\r\n", "HELO client.test\r\n"] {
        let mut driver = greeted();
        driver.receive(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 5\r\nxxxxx");
        let begun = driver.session.timeout();
        driver.receive(command.as_bytes());
        let idle = driver.session.timeout();
        assert_eq!((idle.kind, idle.after), (TimeoutKind::Idle, Duration::from_secs(300)));
        assert_ne!(idle.phase, begun.phase, "{command}");
    }
}

/// Refused content was read for as long as its sender liked.
#[test]
fn refused_content_that_does_not_end_ends_the_session() {
    let limit = ServerOptions::default().content.content_bytes_max;
    let options =
        || ServerOptions { content: ContentRules { content_bytes_max: 1 << 10, ..ContentRules::default() }, ..ServerOptions::default() };
    let lines = b"an ordinary line of text\r\n".repeat(1000);
    for (begin, refusal) in [
        ("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n", "552 5.3.4 Message too large"),
        ("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 18446744073709551615\r\n", "552 5.3.4 Message too large"),
        ("BDAT 18446744073709551615\r\n", "503 5.5.1 MAIL first"),
    ] {
        let mut driver = Driver::new(options());
        driver.banner(b"");
        driver.receive(b"EHLO client.test\r\n");
        driver.receive(begin.as_bytes());
        driver.events.clear();
        let mut sent = 0;
        while !driver.is_closed() {
            assert!(sent < limit, "{begin:?}: {sent} octets are read");
            driver.receive(&lines);
            sent += lines.len() as u64;
        }
        assert_eq!(driver.events, [Event::Reply(refusal.into()), Event::Close], "{begin:?}");
        // Who does not know of SIZE may send a good deal too much before it reads why.
        assert!(sent > 4 << 10, "{sent}");
    }
}

/// The highest limit that can be set was one that the count of commands could not get beyond: the process ended.
#[test]
fn the_highest_limit_of_commands_that_do_nothing_is_one() {
    let mut driver = Driver::new(ServerOptions { junk_commands_max: u16::MAX, ..ServerOptions::default() });
    driver.banner(b"");
    driver.events.clear();
    driver.receive(&b"RSET\r\n".repeat(usize::from(u16::MAX) + 2));
    assert!(driver.is_closed());
    assert_eq!(driver.events[driver.events.len() - 2], Event::Reply("421 4.7.0 localhost Too many commands without a message".into()));
    assert_eq!(driver.events.len(), usize::from(u16::MAX) + 2);
}

#[test]
fn a_line_of_a_megabyte_is_one_error_and_leaves_nothing() {
    let mut driver = greeted();
    driver.receive(b"EHLO ");
    for _ in 0..256 {
        driver.receive(&[b'x'; 4096]);
        assert!(driver.session.heap_bytes() <= 2048 + 64);
    }
    assert!(driver.events.is_empty());
    driver.receive(b"\r\nNOOP\r\n");
    assert_eq!(driver.events, [Event::Reply("500 5.5.2 Line too long".into()), Event::Reply("250 2.0.0 OK".into())]);
}

#[test]
fn refused_content_is_told_once_and_before_its_end() {
    struct Count(usize);
    impl ContentSink for Count {
        fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
            self.0 += bytes.len();
            Ok(())
        }
    }
    let settings = Rc::new(ServerSettings::new(ServerOptions::default()).expect("valid"));
    let mut session = Session::new(settings, SocketAddr::from(([192, 0, 2, 7], 1)));
    let mut replies = Vec::new();
    let mut replies = Replies::new(&mut replies);
    session.banner(&Unread::new(b""), &mut replies);
    assert_eq!(session.next(&mut Unread::new(b"HELO c\r\n"), &mut replies), Action::Read);
    let mut input = Unread::new(b"MAIL FROM:<a@x.test> SIZE=7\r\nRCPT TO:<b@y.test>\r\nDATA\r\n");
    assert_eq!(session.next(&mut input, &mut replies), Action::Mail { size: Some(7) });
    assert_eq!(session.reverse_path().as_str(), "a@x.test");
    session.mail(Verdict::Accept, &mut replies);
    assert_eq!(session.next(&mut input, &mut replies), Action::Recipient);
    assert_eq!(session.recipient_path().as_str(), "b@y.test");
    session.recipient(Verdict::Accept, &mut replies);
    assert_eq!(session.next(&mut input, &mut replies), Action::Content);
    let mut sink = Count(0);
    assert_eq!(session.content(&mut input, &mut sink), ContentStep::More);
    assert_eq!(session.content(&mut Unread::new(b"ok\r\n"), &mut sink), ContentStep::More);
    let mut input = Unread::new(b"bare\nend\r\n");
    assert_eq!(session.content(&mut input, &mut sink), ContentStep::Refused);
    assert_eq!(session.content(&mut input, &mut sink), ContentStep::More);
    assert_eq!(sink.0, "ok\r\nbare".len(), "nothing is put from the bare LF on");
    let mut input = Unread::new(b".\r\n");
    assert_eq!(session.content(&mut input, &mut sink), ContentStep::End);
    assert_eq!(session.next(&mut input, &mut replies), Action::Close);
}

#[test]
fn settings_that_contradict_are_refused() {
    let with = |change: fn(&mut ServerOptions)| {
        let mut options = ServerOptions::default();
        change(&mut options);
        ServerSettings::new(options).err()
    };
    assert_eq!(with(|_| {}), None);
    assert_eq!(with(|options| options.hostname = "not a name".into()), Some(SettingsError::Hostname));
    assert_eq!(with(|options| options.hostname = "mx\r\n".into()), Some(SettingsError::Hostname));
    assert_eq!(with(|options| options.recipients_max = 99), Some(SettingsError::Recipients));
    assert_eq!(with(|options| options.messages_max = 0), Some(SettingsError::Messages));
    assert_eq!(with(|options| options.messages_max = 1_000_000), Some(SettingsError::Messages));
    assert_eq!(with(|options| options.data_rate_min = 0), None);
    assert_eq!(with(|options| options.command_line_bytes_max = 511), Some(SettingsError::CommandLine));
    assert_eq!(with(|options| options.paths.local_part_bytes_max = 63), Some(SettingsError::Paths));
    assert_eq!(with(|options| options.paths.path_bytes_max = 255), Some(SettingsError::Paths));
    assert_eq!(with(|options| options.paths.path_bytes_max = 513), Some(SettingsError::Paths));
    use ringpost_smtp::extension::Extensions;
    assert_eq!(with(|options| options.extensions = Extensions::BINARY_MIME), Some(SettingsError::Extensions));
    assert_eq!(with(|options| options.extensions = Extensions::SMTPUTF8), Some(SettingsError::Extensions));
}

/// Recipients that are refused, and what follows a refused MAIL, were answered without end: such a session never went away.
#[test]
fn a_session_of_nothing_but_refusals_ends() {
    for (before, again) in [("MAIL FROM:<bad\r\n", "RCPT TO:<b@y.test>\r\n"), ("MAIL FROM:<bad\r\n", "BDAT 1\r\nx")] {
        let mut driver = greeted();
        driver.receive(before.as_bytes());
        let mut refused = 0;
        while !driver.is_closed() {
            driver.events.clear();
            driver.receive(again.as_bytes());
            refused += 1;
            assert!(refused <= 10_001, "{again:?} is answered for ever");
        }
        assert_eq!(driver.events[0], Event::Reply("421 4.7.0 localhost Too many errors".into()));
        // A client that pipelines a long list of unlucky recipients is not one of those.
        assert!(refused > 5_000, "{refused}");
    }
}

#[test]
fn without_a_minimum_rate_content_may_take_the_whole_data_timeout() {
    let after = |data_rate_min| {
        let options = ServerOptions { data_rate_min, ..ServerOptions::default() };
        let mut session = Session::new(Rc::new(ServerSettings::new(options).unwrap()), "192.0.2.1:25".parse().unwrap());
        let mut replies = Vec::new();
        let mut replies = Replies::new(&mut replies);
        session.banner(&Unread::new(b""), &mut replies);
        assert_eq!(session.next(&mut Unread::new(b"EHLO client.test\r\n"), &mut replies), Action::Read);
        let mut input = Unread::new(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n");
        assert_eq!(session.next(&mut input, &mut replies), Action::Mail { size: None });
        session.mail(Verdict::Accept, &mut replies);
        assert_eq!(session.next(&mut input, &mut replies), Action::Recipient);
        session.recipient(Verdict::Accept, &mut replies);
        assert_eq!(session.next(&mut input, &mut replies), Action::Content);
        session.timeout().after
    };
    assert_eq!(after(0), ServerOptions::default().data_timeout);
    assert_eq!(after(1), ServerOptions::default().idle_timeout, "nothing was earned yet");
}
