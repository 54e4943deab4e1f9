//! Servers that break off, garble, flood or answer out of turn.

use ringpost_smtp::client::{Action, Client, ClientSettings, CloseReason, Protocol, ProtocolError, Transaction, Verdict};
use ringpost_smtp::reply::ReplyError;

use crate::server::{PIPELINED, PLAIN, Server, converse, mail, run};

#[test]
fn a_connection_that_ends_at_any_byte_never_loses_or_invents_an_outcome() {
    for ehlo in [PLAIN, PIPELINED] {
        let mails = [mail(&["b@y.test", "c@y.test"]), mail(&["d@y.test"])];
        let mut sizes = Server::with(ehlo, &[]);
        run(&mut sizes, &mails);
        for end in 0..420 {
            let mut server = Server::with(ehlo, &[]);
            let log = converse(&mut server, &mails, usize::MAX, end);
            for (transaction, _, verdict, _) in &log.outcomes {
                let sent_whole = server.contents.len() > *transaction as usize;
                match verdict {
                    Verdict::Delivered | Verdict::Unknown => assert!(sent_whole, "{end}"),
                    Verdict::Deferred | Verdict::Untried => assert!(!sent_whole, "{end}: the peer may have it"),
                    Verdict::Failed => panic!("nothing was refused"),
                }
            }
        }
    }
}

#[test]
fn a_host_that_does_not_want_us_says_nothing_about_mail() {
    for (place, reply) in [("EHLO", "421 4.7.0 busy\r\n"), ("EHLO", "450 later\r\n"), ("HELO", "550 go away\r\n")] {
        let replies = [(place, reply)];
        let mut server = Server::with("500 no\r\n", &replies);
        let log = run(&mut server, &[mail(&["b@y.test"])]);
        assert!(matches!(log.close, CloseReason::Refused(said) if said.line() == reply.trim_end()), "{log:?}");
        assert_eq!(server.groups.last().map(String::as_str), Some("QUIT\r\n"));
        assert_eq!(log.outcomes, []);
    }
    let mut server = Server::new(|command| if command.is_empty() { "554 5.7.1 no\r\n".into() } else { "221 bye\r\n".into() });
    assert!(matches!(run(&mut server, &[mail(&["b@y.test"])]).close, CloseReason::Refused(reply) if reply.code() == 554));
}

#[test]
fn service_closing_is_transient_wherever_it_is_said() {
    for ehlo in [PLAIN, PIPELINED] {
        for place in ["MAIL", "RCPT TO:<b", "RCPT TO:<c", "DATA", "."] {
            let log =
                run(&mut Server::with(ehlo, &[(place, "421 4.3.2 closing\r\n")]), &[mail(&["b@y.test", "c@y.test"]), mail(&["d@y.test"])]);
            assert!(matches!(log.close, CloseReason::ServiceClosing(_)), "{place}: {log:?}");
            assert!(log.outcomes.iter().filter(|outcome| outcome.0 == 0).all(|outcome| outcome.2 == Verdict::Deferred), "{place}: {log:?}");
            assert!(log.outcomes.iter().filter(|outcome| outcome.0 == 1).all(|outcome| outcome.2 == Verdict::Untried), "{place}: {log:?}");
        }
    }
}

/// The 421 in place of the answer to a dot was told of the transaction behind it, too: to a destination with one connection that was two of
/// them, and it paused.
#[test]
fn service_closing_is_said_to_the_transaction_that_it_answers_alone() {
    let (mut dots, mut inner) = (0, Server::with(PIPELINED, &[]));
    let mut server = Server::new(move |command| {
        dots += u32::from(command == ".");
        if command == "." && dots == 2 { "421 4.7.0 slow down\r\n".into() } else { (inner.rule)(command) }
    });
    let log = run(&mut server, &[mail(&["b@y.test"]), mail(&["c@y.test"]), mail(&["d@y.test"])]);
    assert_eq!(
        log.outcomes[1..],
        [
            (1, 0, Verdict::Deferred, "421 4.7.0 slow down".into()),
            (2, 0, Verdict::Untried, "421 4.4.2 session ended by the next hop".into())
        ]
    );
}

#[test]
fn answers_to_nothing_deliver_nothing() {
    // All answers of a session at once, before anything was said: none may be taken for the answer to content.
    let early = "220 hi\r\n250 hi\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n221 bye\r\n";
    let mut server = Server::new(|command| if command.is_empty() { early.into() } else { String::new() });
    let log = run(&mut server, &[mail(&["b@y.test"])]);
    assert_eq!(log.close, CloseReason::Protocol(ProtocolError::Unasked));
    assert!(log.verdicts().iter().all(|verdict| *verdict != Verdict::Delivered));
    // The answer to content together with 354.
    for ehlo in [PLAIN, PIPELINED] {
        let log = run(&mut Server::with(ehlo, &[("DATA", "354 go\r\n250 taken\r\n")]), &[mail(&["b@y.test"])]);
        assert_eq!((log.verdicts(), log.close), (vec![Verdict::Deferred], CloseReason::Protocol(ProtocolError::Unasked)));
    }
}

#[test]
fn replies_of_an_impossible_class_defer() {
    for ehlo in [PLAIN, PIPELINED] {
        for (place, reply) in [("MAIL", "354 go\r\n"), ("RCPT", "334 x\r\n"), ("DATA", "250 ok\r\n"), (".", "354 more\r\n")] {
            let log = run(&mut Server::with(ehlo, &[(place, reply)]), &[mail(&["b@y.test"])]);
            assert_eq!(log.close, CloseReason::Protocol(ProtocolError::Class), "{place}");
            assert!(matches!(log.verdicts()[..], [Verdict::Deferred | Verdict::Unknown]), "{place}: {log:?}");
            // Whatever it was, the word about it was the same for all.
            let asked = if place == "." { "the content" } else { place };
            let words = format!("451 4.5.0 the next hop broke the protocol, in answer to {asked}: {}", reply.trim_end());
            assert_eq!(log.outcomes[0].3, words);
        }
    }
}

#[test]
fn endless_long_and_garbled_replies_end_the_connection() {
    let endless = "250-more\r\n".repeat(5000);
    let long = format!("250 {}\r\n", "x".repeat(1 << 20));
    for (reply, error) in [
        (endless.as_str(), ReplyError::TooManyLines),
        (&long, ReplyError::LineTooLong),
        ("\0\0\0\r\n", ReplyError::Malformed),
        ("HTTP/1.1 200 OK\r\n", ReplyError::Malformed),
        ("250-a\r\n550 b\r\n", ReplyError::TwoCodes),
    ] {
        for place in ["EHLO", "MAIL", "RCPT", "DATA", "."] {
            for chunk in [13, usize::MAX] {
                let log = converse(&mut Server::with(PIPELINED, &[(place, reply)]), &[mail(&["b@y.test"])], chunk, usize::MAX);
                let has_code = matches!(error, ReplyError::TooManyLines | ReplyError::LineTooLong);
                let why = if place == "DATA" && has_code { ProtocolError::Class } else { ProtocolError::Reply(error) };
                assert_eq!(log.close, CloseReason::Protocol(why), "{place}");
                let words = log.outcomes.first().map_or("", |outcome| &outcome.3);
                let is_told = words.starts_with("451 4.5.0 the next hop broke the protocol, in answer to ") && !words.ends_with(": ");
                assert!(is_told || place == "EHLO" || has_code, "{place}: {words}");
                let is_taken = place == "." && has_code;
                let is_expected = |verdict: &Verdict| match verdict {
                    Verdict::Delivered => is_taken,
                    Verdict::Deferred | Verdict::Unknown => !is_taken,
                    _ => false,
                };
                assert!(log.verdicts().iter().all(is_expected), "{place}: {log:?}");
            }
        }
    }
}

/// A host that said 250 to the content in a line of 2,100 octets had the message once more at each retry, and its sender was told after days that it
/// was not delivered.
#[test]
fn the_code_in_front_of_a_reply_that_is_too_long_decides() {
    let text = "x".repeat(3000);
    let lines = |code: &str| format!("{code}-more\r\n").repeat(200);
    for (place, reply, expected) in [
        (".", format!("250 {text}\r\n"), Verdict::Delivered),
        (".", lines("250"), Verdict::Delivered),
        (".", format!("250-a\r\n250-b\r\n250-{text}"), Verdict::Delivered),
        (".", format!("554 {text}\r\n"), Verdict::Failed),
        (".", format!("451 {text}\r\n"), Verdict::Deferred),
        ("RCPT", format!("550 5.1.1 {text}\r\n"), Verdict::Failed),
        ("RCPT", lines("550"), Verdict::Failed),
        ("RCPT", format!("250 {text}\r\n"), Verdict::Deferred),
        ("MAIL", format!("550 {text}\r\n"), Verdict::Failed),
        ("DATA", format!("354 {text}\r\n"), Verdict::Deferred),
        // Which of the two is not known.
        (".", format!("250-a\r\n554 {text}\r\n"), Verdict::Unknown),
        (".", format!("999 {text}\r\n"), Verdict::Unknown),
        (".", format!("250{text}\r\n"), Verdict::Unknown),
    ] {
        for ehlo in [PLAIN, PIPELINED] {
            for chunk in [1, 13, usize::MAX] {
                let log = converse(&mut Server::with(ehlo, &[(place, &reply)]), &[mail(&["b@y.test"])], chunk, usize::MAX);
                assert!(matches!(log.close, CloseReason::Protocol(ProtocolError::Reply(_))), "{:?}", log.close);
                assert_eq!(log.verdicts(), [expected], "{place} {} {chunk}", &reply[..12]);
            }
        }
    }
}

#[test]
fn random_servers_never_break_the_account() {
    for seed in 0..3000u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % bound
        };
        let ehlo = if random(2) == 0 { PLAIN } else { PIPELINED };
        let chunk = [1, 5, usize::MAX][random(3) as usize];
        let end = if random(3) == 0 { random(600) as usize } else { usize::MAX };
        let mut good = Server::with(ehlo, &[]);
        let mut server = Server::new(|command| match random(12) {
            0 => ["250 ok\r\n", "354 go\r\n", "421 bye\r\n", "450 x\r\n", "550 x\r\n", "", "\0", "250-", "25", "999 x\r\n"]
                [random(10) as usize]
                .into(),
            1 => format!("{}{}", (good.rule)(command), ["250 extra\r\n", "x", "550 extra\r\n"][random(3) as usize]),
            _ => (good.rule)(command),
        });
        let mails = [mail(&["b@y.test", "c@y.test"]), mail(&["d@y.test"]), mail(&["e@y.test", "f@y.test", "g@y.test"])];
        // `converse` checks that each recipient has one outcome.
        let log = converse(&mut server, &mails, chunk, end);
        for (transaction, _, verdict, _) in &log.outcomes {
            if *verdict == Verdict::Delivered {
                assert!(
                    server.groups.iter().filter(|group| group.contains("..dot\r\n.\r\n")).count() > 0,
                    "seed {seed} transaction {transaction}"
                );
            }
        }
    }
}

#[test]
fn an_answer_before_the_content_is_sent_whole_is_no_delivery() {
    for (reply, verdict) in
        [("250 taken\r\n", Verdict::Deferred), ("552 5.3.4 stop\r\n", Verdict::Failed), ("421 bye\r\n", Verdict::Deferred)]
    {
        let mut client = Client::new(&ClientSettings::default());
        let mut out = Vec::new();
        let transaction = Transaction { size: 1, ..Transaction::default() };
        let mut input = &b"220 x\r\n250 x\r\n"[..];
        assert_eq!(client.next(&mut input, &mut out), Action::Ready);
        client.begin(&transaction, [&b"b@y.test"[..]].into_iter(), &mut out);
        for reply in ["250 x\r\n", "250 x\r\n"] {
            assert_eq!(client.next(&mut reply.as_bytes(), &mut out), Action::Read);
        }
        assert!(matches!(client.next(&mut &b"354 x\r\n"[..], &mut out), Action::SendContent(..)));
        let mut input = reply.as_bytes();
        assert!(matches!(client.next(&mut input, &mut out), Action::Outcome(outcome) if outcome.verdict == verdict), "{reply}");
        assert!(matches!(client.next(&mut input, &mut out), Action::Done(_)));
        assert!(matches!(client.next(&mut input, &mut out), Action::Close(_)));
    }
}

/// The word on one recipient failed the whole message: a mailbox that was full bounced the mail of all others, too.
#[test]
fn a_stores_early_answer_is_about_one_recipient() {
    let mut client = Client::new(&ClientSettings { protocol: Protocol::Lmtp, ..ClientSettings::default() });
    let mut out = Vec::new();
    let transaction = Transaction { size: 1, ..Transaction::default() };
    let mut input = &b"220 x\r\n250 x\r\n"[..];
    assert_eq!(client.next(&mut input, &mut out), Action::Ready);
    client.begin(&transaction, [&b"b@y.test"[..], b"c@y.test", b"d@y.test"].into_iter(), &mut out);
    for reply in ["250 x\r\n", "250 x\r\n", "250 x\r\n", "250 x\r\n"] {
        assert_eq!(client.next(&mut reply.as_bytes(), &mut out), Action::Read);
    }
    assert!(matches!(client.next(&mut &b"354 x\r\n"[..], &mut out), Action::SendContent(..)));
    let mut input = &b"552 5.2.2 full\r\n"[..];
    for (recipient, verdict, word) in [(0, Verdict::Failed, "552"), (1, Verdict::Deferred, "451"), (2, Verdict::Deferred, "451")] {
        let Action::Outcome(outcome) = client.next(&mut input, &mut out) else { panic!("no outcome of {recipient}") };
        assert_eq!((outcome.recipient, outcome.verdict), (recipient, verdict));
        assert!(outcome.reply.line().starts_with(word), "{}", outcome.reply);
    }
    assert!(matches!(client.next(&mut input, &mut out), Action::Done(_)));
    assert!(matches!(client.next(&mut input, &mut out), Action::Close(_)));
}
