//! Dialogues of the client with servers that are good, poor and hostile.

mod dialogues;
mod hostile;
mod server;

use std::time::Duration;

use ringpost_smtp::client::{Action, Client, ClientSettings, CloseReason, Transaction, Verdict};

use crate::server::{Mail, PIPELINED, PLAIN, Server, converse, mail, run};

#[test]
fn commands_go_one_by_one_to_a_server_that_does_not_announce_pipelining() {
    let mut server = Server::with(PLAIN, &[]);
    let log = run(&mut server, &[mail(&["b@y.test", "c@y.test"]), mail(&["d@y.test"])]);
    assert_eq!(
        server.groups,
        [
            "EHLO me.test\r\n",
            "MAIL FROM:<s@a.test>\r\n",
            "RCPT TO:<b@y.test>\r\n",
            "RCPT TO:<c@y.test>\r\n",
            "DATA\r\n",
            "Subject: x\r\n\r\n..dot\r\n.\r\n",
            "MAIL FROM:<s@a.test>\r\n",
            "RCPT TO:<d@y.test>\r\n",
            "DATA\r\n",
            "Subject: x\r\n\r\n..dot\r\n.\r\n",
            "QUIT\r\n",
        ]
    );
    assert_eq!(log.verdicts(), [Verdict::Delivered; 3]);
    assert_eq!(log.outcomes[0].3, "250 2.0.0 ok");
    assert_eq!((log.done, log.close), (vec![0, 1], CloseReason::Quit));
    assert_eq!(server.contents, [b"Subject: x\r\n\r\n.dot\r\n"; 2]);
}

#[test]
fn a_pipelining_server_gets_groups_and_the_next_message_behind_the_dot() {
    let mut server = Server::with(PIPELINED, &[]);
    let log = run(&mut server, &[mail(&["b@y.test", "c@y.test"]), mail(&["d@y.test"]), mail(&["e@y.test"])]);
    assert_eq!(
        server.groups,
        [
            "EHLO me.test\r\n",
            "MAIL FROM:<s@a.test> SIZE=20\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n",
            // Its first content is answered alone: that it answers each dot once is to be seen before anything is sent behind one.
            "Subject: x\r\n\r\n..dot\r\n.\r\n",
            "MAIL FROM:<s@a.test> SIZE=20\r\nRCPT TO:<d@y.test>\r\nDATA\r\n",
            "Subject: x\r\n\r\n..dot\r\n.\r\nMAIL FROM:<s@a.test> SIZE=20\r\nRCPT TO:<e@y.test>\r\nDATA\r\n",
            "Subject: x\r\n\r\n..dot\r\n.\r\n",
            "QUIT\r\n",
        ]
    );
    assert_eq!(log.verdicts(), [Verdict::Delivered; 4]);
    assert_eq!(log.done, [0, 1, 2]);
}

#[test]
fn a_server_that_says_more_than_was_asked_gets_nothing_behind_its_dot() {
    // What it says beside the 250 would refuse the next message.
    let extra = [(".", "250 2.0.0 ok\r\n550 5.0.0 also this\r\n")];
    let log = run(&mut Server::with(PIPELINED, &extra), &[mail(&["b@y.test"]), mail(&["c@y.test"])]);
    assert_eq!(log.verdicts(), [Verdict::Delivered, Verdict::Untried]);
}

#[test]
fn replies_cut_at_every_byte_change_nothing() {
    for ehlo in [PLAIN, PIPELINED] {
        let replies = [("RCPT TO:<c", "550-5.1.1 no\r\n550 5.1.1 such user\r\n"), ("RCPT TO:<e", "450 4.2.0 later\r\n")];
        let mails = [mail(&["b@y.test", "c@y.test"]), mail(&["e@y.test"]), mail(&["f@y.test", "e@y.test", "c@y.test"])];
        let whole = run(&mut Server::with(ehlo, &replies), &mails);
        use Verdict::{Deferred, Delivered, Failed};
        assert_eq!(whole.verdicts(), [Failed, Delivered, Deferred, Deferred, Failed, Delivered]);
        for chunk in [1, 2, 3, 7] {
            let cut = converse(&mut Server::with(ehlo, &replies), &mails, chunk, usize::MAX);
            assert_eq!(cut.outcomes, whole.outcomes, "{chunk}");
        }
    }
}

#[test]
fn refusals_count_for_whom_they_were_said() {
    use Verdict::{Deferred, Delivered, Failed};
    for ehlo in [PLAIN, PIPELINED] {
        // At MAIL: for all recipients, whatever is said about them behind it.
        let mut server =
            Server::with(ehlo, &[("MAIL", "550 5.7.1 not you\r\n"), ("RCPT", "503 5.5.1 no\r\n"), ("DATA", "503 5.5.1 no\r\n")]);
        let log = run(&mut server, &[mail(&["b@y.test", "c@y.test"])]);
        assert_eq!(log.verdicts(), [Failed; 2]);
        assert_eq!(log.outcomes[1].3, "550 5.7.1 not you");
        // At DATA: for those that were accepted.
        let log = run(
            &mut Server::with(ehlo, &[("DATA", "451 4.3.0 disk\r\n"), ("RCPT TO:<c", "550 no\r\n")]),
            &[mail(&["b@y.test", "c@y.test"])],
        );
        assert_eq!(log.outcomes, [(0, 1, Failed, "550 no".into()), (0, 0, Deferred, "451 4.3.0 disk".into())]);
        // After the content: for those that were accepted.
        let mut server = Server::with(ehlo, &[(".", "552 5.3.4 too much\r\n"), ("RCPT TO:<c", "450 no\r\n")]);
        let log = run(&mut server, &[mail(&["b@y.test", "c@y.test"])]);
        assert_eq!(log.outcomes, [(0, 1, Deferred, "450 no".into()), (0, 0, Failed, "552 5.3.4 too much".into())]);
        // Unknown codes count by their first digit.
        let replies = [("RCPT TO:<b", "299 x\r\n"), ("RCPT TO:<c", "499 x\r\n"), ("RCPT TO:<d", "599 x\r\n"), (".", "277 x\r\n")];
        let log = run(&mut Server::with(ehlo, &replies), &[mail(&["b@y.test", "c@y.test", "d@y.test"])]);
        assert_eq!(log.verdicts(), [Deferred, Failed, Delivered]);
    }
}

#[test]
fn when_all_recipients_were_refused_no_content_is_sent() {
    // To a server that wants content all the same goes a lone dot; the one that does not gets RSET before the next mail.
    let replies = [("RCPT TO:<b", "550 5.1.1 no\r\n")];
    let mut server = Server::with(PIPELINED, &replies);
    let log = run(&mut server, &[mail(&["b@y.test"]), mail(&["c@y.test"])]);
    assert_eq!(log.verdicts(), [Verdict::Failed, Verdict::Delivered]);
    assert_eq!(server.groups[2], ".\r\n");
    assert_eq!(server.contents, [&b""[..], b"Subject: x\r\n\r\n.dot\r\n"]);

    let mut first = true;
    let mut inner = Server::with(PIPELINED, &replies);
    let mut server = Server::new(move |command| {
        if command == "DATA" && std::mem::replace(&mut first, false) { "554 5.5.1 no recipients\r\n".into() } else { (inner.rule)(command) }
    });
    let log = run(&mut server, &[mail(&["b@y.test"]), mail(&["c@y.test"])]);
    assert_eq!(log.verdicts(), [Verdict::Failed, Verdict::Delivered]);
    assert_eq!(server.groups[2], "RSET\r\nMAIL FROM:<s@a.test> SIZE=20\r\nRCPT TO:<c@y.test>\r\nDATA\r\n");

    let mut server = Server::with(PLAIN, &replies);
    let log = run(&mut server, &[mail(&["b@y.test"]), mail(&["c@y.test"])]);
    assert_eq!(log.verdicts(), [Verdict::Failed, Verdict::Delivered]);
    assert_eq!(server.groups[3..5], ["RSET\r\n", "MAIL FROM:<s@a.test>\r\n"]);
}

#[test]
fn what_the_server_cannot_take_is_failed_before_anything_is_sent() {
    let plain = mail(&["b@y.test"]);
    let eight_bit = Mail { eight_bit: true, content: b"\xE4\r\n", ..plain.clone() };
    let utf8 = Mail { smtputf8: true, eight_bit: true, content: "Subject: üx\r\n.dot\r\n".as_bytes(), ..plain.clone() };
    let utf8_path = Mail { recipients: vec!["ü@y.test"], ..plain.clone() };
    let large = Mail { content: &[b'x'; 1001], ..plain.clone() };
    let hostile = Mail { recipients: vec!["b@y.test>\r\nRCPT TO:<evil@y.test"], ..plain.clone() };
    for (ehlo, bad, code) in [
        (PLAIN, &eight_bit, "5.6.3"),
        (PLAIN, &utf8, "5.6.7"),
        (PLAIN, &utf8_path, "5.6.7"),
        (PIPELINED, &large, "5.3.4"),
        (PIPELINED, &hostile, "5.1.3"),
    ] {
        let mut server = Server::with(ehlo, &[]);
        let log = run(&mut server, &[bad.clone(), plain.clone()]);
        assert_eq!(log.verdicts(), [Verdict::Failed, Verdict::Delivered]);
        assert!(log.outcomes[0].3.contains(code), "{:?}", log.outcomes[0]);
        assert_eq!(server.contents.len(), 1);
        assert!(!server.groups.concat().contains("evil"));
        // The same behind the content of another.
        let log = run(&mut Server::with(ehlo, &[]), &[plain.clone(), bad.clone(), plain.clone()]);
        assert_eq!(log.verdicts().iter().filter(|verdict| **verdict == Verdict::Delivered).count(), 2);
    }
    let mut server = Server::with(PIPELINED, &[]);
    let null_sender = Mail { sender: "", ..utf8_path };
    let log = run(&mut server, &[utf8, null_sender]);
    assert_eq!(log.verdicts(), [Verdict::Delivered; 2]);
    assert!(server.groups[1].starts_with("MAIL FROM:<s@a.test> SIZE=20 BODY=8BITMIME SMTPUTF8\r\n"));
    assert!(server.groups[3].contains("MAIL FROM:<> SIZE=20 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<ü@y.test>\r\n"));
}

#[test]
fn announced_limits_are_respected() {
    let ehlo = "250-mx\r\n250-PIPELINING\r\n250 LIMITS MAILMAX=2 RCPTMAX=2\r\n";
    let mails = [mail(&["b@y.test", "c@y.test", "d@y.test"]), mail(&["e@y.test"]), mail(&["f@y.test"])];
    let log = run(&mut Server::with(ehlo, &[]), &mails);
    use Verdict::{Delivered, Untried};
    assert_eq!(log.verdicts(), [Delivered, Delivered, Untried, Delivered], "the third message is left for another connection");
    let ehlo = "250-mx\r\n250 LIMITS RCPTDOMAINMAX=2\r\n";
    let log = run(&mut Server::with(ehlo, &[]), &[mail(&["b@y.test", "c@z.test", "d@Y.TEST", "e@w.test", "f@y.test"])]);
    assert_eq!(log.verdicts(), [Delivered, Delivered, Delivered, Untried, Untried]);
    // A limit that is only found out goes on in a further transaction.
    for reply in ["452 4.5.3 too many\r\n", "552 too many\r\n"] {
        let log = run(&mut Server::with(PIPELINED, &[("RCPT TO:<c", reply)]), &[mail(&["b@y.test", "c@y.test"])]);
        assert_eq!(log.verdicts(), [Untried, Delivered]);
        let log = run(&mut Server::with(PIPELINED, &[("RCPT TO:<c", reply)]), &[mail(&["c@y.test", "b@y.test"])]);
        assert_ne!(log.verdicts()[0], Untried, "with nobody accepted it says something else");
    }
}

#[test]
fn a_server_without_ehlo_is_greeted_with_helo() {
    let mut server = Server::with("502 5.5.1 what?\r\n", &[]);
    let log = run(&mut server, &[mail(&["b@y.test"])]);
    assert_eq!(server.groups[..3], ["EHLO me.test\r\n", "HELO me.test\r\n", "MAIL FROM:<s@a.test>\r\n"]);
    assert_eq!(log.verdicts(), [Verdict::Delivered]);
}

/// A refusal of content before its end, of a message that is too large or spam, was told as that the service closes, which takes a connection from
/// those that the destination is thought to bear.
#[test]
fn content_that_is_refused_before_its_end_says_nothing_of_the_service() {
    for (reply, verdict) in [("552 5.3.4 too big\r\n", Verdict::Failed), ("451 4.7.1 spam\r\n", Verdict::Deferred)] {
        let mut client = Client::new(&ClientSettings::default());
        let (mut out, mut outcomes) = (Vec::new(), Vec::new());
        let transaction = Transaction { size: 1, ..Transaction::default() };
        let mut replies = ["220 x\r\n", "250 x\r\n", "250 x\r\n", "250 x\r\n", "354 x\r\n"].into_iter();
        let close = loop {
            let input = if outcomes.is_empty() { replies.next().unwrap_or(reply) } else { "" };
            match client.next(&mut input.as_bytes(), &mut out) {
                Action::Ready => _ = client.begin(&transaction, [&b"b@y.test"[..]].into_iter(), &mut out),
                Action::Outcome(outcome) => outcomes.push((outcome.verdict, outcome.reply.line().to_owned())),
                Action::Close(reason) => break reason,
                Action::Read | Action::Done(_) | Action::SendContent(..) => {}
            }
        };
        assert_eq!(outcomes, [(verdict, reply.trim_end().to_owned())]);
        assert_eq!(close, CloseReason::AnsweredEarly(ringpost_smtp::reply::Reply::local(reply.trim_end())));
    }
}

#[test]
fn each_state_has_its_deadline() {
    let mut client = Client::new(&ClientSettings::default());
    let mut out = Vec::new();
    let mut seconds = Vec::new();
    let transaction = Transaction { size: 1, ..Transaction::default() };
    for reply in ["220 x\r\n", "250 x\r\n", "250 x\r\n", "250 x\r\n", "354 x\r\n", "250 x\r\n"] {
        assert_eq!(client.next(&mut &b""[..], &mut out), Action::Read);
        seconds.push(client.timeout());
        let mut input = reply.as_bytes();
        match client.next(&mut input, &mut out) {
            Action::Ready => _ = client.begin(&transaction, [&b"b@y.test"[..]].into_iter(), &mut out),
            Action::SendContent(..) => {
                seconds.push(client.timeout());
                client.content_sent();
            }
            Action::Read => {}
            Action::Outcome(outcome) => assert_eq!(outcome.verdict, Verdict::Delivered),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seconds, [300, 300, 300, 300, 120, 180, 600].map(Duration::from_secs));
    assert!(matches!(client.next(&mut &b""[..], &mut out), Action::Done(_)));
    assert_eq!(client.next(&mut &b""[..], &mut out), Action::Ready);
    client.probe(&mut out);
    assert_eq!((client.next(&mut &b""[..], &mut out), client.timeout().as_secs()), (Action::Read, 10));
    assert_eq!(client.next(&mut &b"250 ok\r\n"[..], &mut out), Action::Ready);
    assert_eq!(
        client.next(&mut &b"421 idle\r\n"[..], &mut out),
        Action::Close(CloseReason::ServiceClosing(ringpost_smtp::reply::Reply::local("421 idle")))
    );
}
