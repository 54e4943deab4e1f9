use super::*;
use crate::client::{own_words, put_off_offer};
use crate::reply::Reply;

fn date(unix_s: i64) -> DateText {
    DateText::new(unix_s)
}

fn recipient<'a>(path: &'a str, action: Action, reply: &'a str) -> ReportedRecipient<'a> {
    ReportedRecipient { path: Path::new(path), original: None, action, reply, relay: None, last_attempt: None, will_retry_until: None }
}

fn report<'a>(recipients: &'a [ReportedRecipient<'a>], returned: Returned<'a>, now: &'a DateText) -> Report<'a> {
    Report {
        hostname: "mx1.example.test",
        id: "REPORT1",
        date: now,
        to: Path::new("s@x.test"),
        text: "It failed.\n",
        envelope_id: None,
        arrival: now,
        recipients,
        is_kept: false,
        smtputf8: false,
        is_double: false,
        returned,
        seed: 7,
    }
}

fn text_of(report: &Report<'_>) -> (String, ReportNeeds) {
    let mut out = Vec::new();
    let needs = write_report(report, &mut out);
    (String::from_utf8(out).unwrap(), needs)
}

/// The fields of the group of a delivery status that has `address`.
fn group<'t>(text: &'t str, address: &str) -> Vec<&'t str> {
    let group = text.split("\r\n\r\n").find(|group| group.contains(&format!("Final-Recipient: {address}")));
    group.unwrap_or_else(|| panic!("no group of {address} in {text}")).lines().collect()
}

#[test]
fn a_failure_report_is_what_the_rfcs_say() {
    let now = date(1_790_000_000);
    let failed = ReportedRecipient {
        original: Some("rfc822;B+2Bx@old.test"),
        relay: Some("mx1.y.test[192.0.2.7]:25"),
        last_attempt: Some(date(1_790_000_001)),
        ..recipient("b@y.test", Action::Failed, "550 5.1.1 no such user")
    };
    let recipients = [failed];
    let facts = Report { envelope_id: Some("a+3Db"), ..report(&recipients, Returned::Whole(b"Subject: x\r\n\r\nbody\r\n"), &now) };
    let (text, needs) = text_of(&facts);
    let expected = "Date: Mon, 21 Sep 2026 14:13:20 +0000\r\n\
        From: Mail Delivery System <MAILER-DAEMON@mx1.example.test>\r\n\
        To: <s@x.test>\r\n\
        Subject: Undelivered mail returned to sender\r\n\
        Message-ID: <REPORT1@mx1.example.test>\r\n\
        Auto-Submitted: auto-replied\r\n\
        MIME-Version: 1.0\r\n\
        Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"=_00000000000000000000000000000007\"\r\n\
        \r\n\
        This is a report in the form of RFC 6522.\r\n\
        \r\n\
        --=_00000000000000000000000000000007\r\n\
        Content-Description: Notification\r\n\
        Content-Type: text/plain; charset=us-ascii\r\n\
        \r\n\
        It failed.\r\n\
        \r\n\
        --=_00000000000000000000000000000007\r\n\
        Content-Description: Delivery report\r\n\
        Content-Type: message/delivery-status\r\n\
        \r\n\
        Original-Envelope-Id: a=b\r\n\
        Reporting-MTA: dns; mx1.example.test\r\n\
        Arrival-Date: Mon, 21 Sep 2026 14:13:20 +0000\r\n\
        \r\n\
        Original-Recipient: rfc822;B+x@old.test\r\n\
        Final-Recipient: rfc822; b@y.test\r\n\
        Action: failed\r\n\
        Status: 5.1.1\r\n\
        Remote-MTA: dns; mx1.y.test\r\n\
        Diagnostic-Code: smtp; 550 5.1.1 no such user\r\n\
        Last-Attempt-Date: Mon, 21 Sep 2026 14:13:21 +0000\r\n\
        \r\n\
        --=_00000000000000000000000000000007\r\n\
        Content-Description: The message\r\n\
        Content-Type: message/rfc822\r\n\
        \r\n\
        Subject: x\r\n\
        \r\n\
        body\r\n\
        \r\n\
        --=_00000000000000000000000000000007--\r\n";
    assert_eq!(text, expected);
    assert_eq!(needs, ReportNeeds { eight_bit: false, smtputf8: false });
}

/// Mail that an operator held was said to be retried.
#[test]
fn held_mail_is_not_said_to_be_retried() {
    let now = date(0);
    for (is_kept, will_retry_until, subject) in
        [(false, Some(now), "Delayed mail (still being retried)"), (true, None, "Delayed mail (held, not being tried at present)")]
    {
        let held = "451 4.3.2 held by the operator of this system";
        let recipients = [ReportedRecipient { will_retry_until, ..recipient("b@y.test", Action::Delayed, held) }];
        let (text, _) = text_of(&Report { is_kept, ..report(&recipients, Returned::Nothing, &now) });
        assert!(text.contains(&format!("\r\nSubject: {subject}\r\n")), "{text}");
        assert_eq!(text.contains("Will-Retry-Until:"), !is_kept);
        assert!(text.contains("Action: delayed\r\nStatus: 4.3.2\r\n"), "{text}");
    }
}

#[test]
fn a_report_of_a_report_is_known_wherever_it_goes_and_what_it_returns_is_not() {
    let now = date(0);
    let recipients = [recipient("b@y.test", Action::Failed, "550 5.1.1 no such gr\u{fc}n user")];
    let double = Report { is_double: true, ..report(&recipients, Returned::Nothing, &now) };
    let (text, _) = text_of(&double);
    assert!(is_double(text.as_bytes()) && is_double(format!("Received: from a\r\n\tby b\r\n{text}").as_bytes()));
    let (again, _) = text_of(&report(&recipients, Returned::Whole(text.as_bytes()), &now));
    assert!(again.contains("double") && !is_double(again.as_bytes()));
    let eight = Report { returned: Returned::Whole("\r\n\u{fc}".as_bytes()), ..double };
    let seven = to_seven_bit(text_of(&eight).0.as_bytes()).expect("it has octets beyond ASCII");
    assert!(is_double(&seven));
}

#[test]
fn a_success_says_what_the_next_hop_said_and_only_that() {
    let now = date(0);
    for (relay, status, remote, diagnostic) in [
        (Some("mx1.y.test[192.0.2.7]:25"), "2.6.0", "dns; mx1.y.test", "smtp; 250 2.6.0 queued as 7"),
        (Some("192.0.2.7:25"), "2.6.0", "dns; [192.0.2.7]", "smtp; 250 2.6.0 queued as 7"),
        (Some("unix:/run/lmtp.sock"), "2.0.0", "", ""),
        (Some("maildir"), "2.0.0", "", ""),
        (None, "2.0.0", "", ""),
    ] {
        let recipients = [ReportedRecipient { relay, ..recipient("b@y.test", Action::Relayed, "250 2.6.0 queued as 7") }];
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        let group = group(&text, "rfc822; b@y.test");
        let value = |name: &str| group.iter().find_map(|line| line.strip_prefix(name)).unwrap_or("");
        assert_eq!((value("Status: "), value("Remote-MTA: "), value("Diagnostic-Code: ")), (status, remote, diagnostic), "{relay:?}");
    }
}

#[test]
fn status_and_diagnostic_follow_the_last_word() {
    let now = date(0);
    for (action, reply, status, diagnostic) in [
        (Action::Failed, "550 5.7.1 no", "5.7.1", "smtp; 550 5.7.1 no"),
        (Action::Failed, "550", "5.0.0", "smtp; 550"),
        (Action::Failed, "550 4.7.1 odd", "5.0.0", "smtp; 550 4.7.1 odd"),
        (Action::Failed, "5.4.7 expired; last: 450 4.2.0 later", "5.4.7", "smtp; 450 4.2.0 later"),
        (Action::Failed, "5.4.7 expired; last: connect to h:25: refused", "5.4.7", "x-ringpost; connect to h:25: refused"),
        (Action::Failed, "5.4.7 expired", "5.4.7", ""),
        (Action::Failed, "", "5.0.0", ""),
        (Action::Delayed, "450 4.2.1 busy", "4.2.1", "smtp; 450 4.2.1 busy"),
        (Action::Delayed, "connect to h:25: refused", "4.4.1", "x-ringpost; connect to h:25: refused"),
        (Action::Delayed, "", "4.0.0", ""),
        (Action::Relayed, "250 2.0.0 ok", "2.0.0", ""),
    ] {
        let recipients = [ReportedRecipient { relay: Some("unix:/run/lmtp.sock"), ..recipient("b@y.test", action, reply) }];
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        let group = group(&text, "rfc822; b@y.test");
        assert!(group.contains(&format!("Status: {status}").as_str()), "{reply}: {group:?}");
        let found = group.iter().find_map(|line| line.strip_prefix("Diagnostic-Code: ")).unwrap_or("");
        assert_eq!(found, diagnostic, "{reply}");
    }
}

/// What waited in vain for a host that could not be asked had failed for its eight bits, too, and its report was not known for such.
#[test]
fn what_has_to_be_converted_is_known_by_its_last_word() {
    let waits = put_off_offer(&Reply::local(own_words::NEEDS_8BITMIME));
    let waited = format!("5.4.7 expired; last: {}", waits.line());
    for (reply, expected) in [
        (own_words::NEEDS_8BITMIME, true),
        ("554 5.6.3 Conversion required", true),
        (&*waited, true),
        // A long name of the next hop leaves no room for all of it.
        ("5.4.7 expired; last: 451 4.6.3 the next hop does not offer 8BITMIME, which thi", true),
        (own_words::NEEDS_SMTPUTF8, false),
        ("554 5.6.30 no", false),
        ("554 4.6.3 no", false),
        ("5.4.7 expired; last: 451 4.4.5 the destination asked for less mail", false),
        ("5.4.7 expired", false),
        ("", false),
    ] {
        assert_eq!(is_for_conversion(reply), expected, "{reply}");
    }
}

/// What the engine says of a next hop was once given out as a reply of that next hop.
#[test]
fn our_own_words_about_a_next_hop_are_not_given_out_as_its_reply() {
    let now = date(0);
    for (action, reply, status, remote, diagnostic) in [
        (Action::Failed, "550 5.1.1 no", "5.1.1", "dns; mx.y.test", "smtp; 550 5.1.1 no"),
        (Action::Failed, own_words::TOO_LARGE, "5.3.4", "", "x-ringpost; 552 5.3.4 the message is larger than the next hop takes"),
        (Action::Delayed, own_words::TIMED_OUT, "4.4.2", "", "x-ringpost; 421 4.4.2 the next hop did not answer in time"),
        (
            Action::Failed,
            "5.4.7 expired; last: 451 4.5.0 the next hop broke the protocol, in answer to MAIL: 354 go on",
            "5.4.7",
            "",
            "x-ringpost; 451 4.5.0 the next hop broke the protocol, in answer to MAIL: 354 go on",
        ),
    ] {
        let recipients = [ReportedRecipient { relay: Some("mx.y.test[192.0.2.7]:25"), ..recipient("b@y.test", action, reply) }];
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        let group = group(&text, "rfc822; b@y.test");
        let value = |name: &str| group.iter().find_map(|line| line.strip_prefix(name)).unwrap_or("");
        assert_eq!((value("Status: "), value("Remote-MTA: "), value("Diagnostic-Code: ")), (status, remote, diagnostic), "{reply}");
    }
}

/// Words about a mailbox, of local policy and of operators were given out as SMTP replies of nobody.
#[test]
fn a_reply_is_the_word_of_a_next_hop_and_of_nobody_else() {
    let now = date(0);
    for (relay, reply, remote, diagnostic) in [
        (Some("maildir"), "452 4.2.2 the mailbox is over its quota", "", "x-ringpost; 452 4.2.2 the mailbox is over its quota"),
        (Some("none"), "550 5.1.2 y.test takes no mail", "", "x-ringpost; 550 5.1.2 y.test takes no mail"),
        (None, "554 5.0.0 returned by the operator", "", "x-ringpost; 554 5.0.0 returned by the operator"),
        (Some("mx.y.test[192.0.2.7]:25"), own_words::UNREADABLE, "", "x-ringpost; 451 4.3.0 the message cannot be read from the spool"),
        (Some("unix:/run/lmtp.sock"), "550 5.1.1 no", "", "smtp; 550 5.1.1 no"),
        // Its name was too long to be kept.
        (Some("?"), "550 5.1.1 no", "", "smtp; 550 5.1.1 no"),
        (Some("192.0.2.7:25"), "550 5.1.1 no", "dns; [192.0.2.7]", "smtp; 550 5.1.1 no"),
    ] {
        let recipients = [ReportedRecipient { relay, ..recipient("b@y.test", Action::Failed, reply) }];
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        let group = group(&text, "rfc822; b@y.test");
        let value = |name: &str| group.iter().find_map(|line| line.strip_prefix(name)).unwrap_or("");
        assert_eq!((value("Remote-MTA: "), value("Diagnostic-Code: ")), (remote, diagnostic), "{relay:?} {reply}");
    }
}

#[test]
fn the_name_of_a_next_hop_is_a_name_or_an_address_literal() {
    let now = date(0);
    for (relay, expected) in
        [("mx.y.test[192.0.2.7]:25", "mx.y.test"), ("192.0.2.7:2525", "[192.0.2.7]"), ("[2001:db8::1]:25", "[2001:db8::1]")]
    {
        let recipients = [ReportedRecipient { relay: Some(relay), ..recipient("b@y.test", Action::Failed, "550 no") }];
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        assert!(text.contains(&format!("Remote-MTA: dns; {expected}\r\n")), "{text}");
    }
}

#[test]
fn no_text_of_others_makes_a_line_or_a_part_of_its_own() {
    let now = date(0);
    let boundary = "--=_00000000000000000000000000000007";
    let hostile = format!("550 5.1.1 no\r\nX-Forged: yes\r\n\r\n{boundary}\r\n\u{2028}\u{1b}[2J\u{85}z");
    let recipients = [ReportedRecipient {
        original: Some("rfc822;a+0D+0AX-Forged:+20yes"),
        relay: Some("mx.test\r\nX-Forged: yes[1]"),
        ..recipient("b\r\nX-Forged: yes@y.test", Action::Failed, &hostile)
    }];
    let original = format!("Subject: x\r\n\r\n{boundary}--\r\nbehind");
    let facts = Report {
        to: Path::new("s\r\nX-Forged: yes@x.test"),
        envelope_id: Some("e+0D+0AX-Forged:+20yes"),
        ..report(&recipients, Returned::Whole(original.as_bytes()), &now)
    };
    let (text, _) = text_of(&facts);
    assert!(!text.contains("\nX-Forged"), "{text}");
    assert!(!text.contains('\u{2028}') && !text.contains('\u{1b}'));
    let used = text.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(used, "=_00000000000000000000000000000008", "the seed's boundary occurs in the content");
    assert_eq!(text.matches(&format!("--{used}")).count(), 4);
    for line in text.split("\r\n") {
        assert!(!line.contains(['\r', '\n']), "{line:?}");
    }
}

/// Content that came as BODY=BINARYMIME may have a bare LF in its header, which went back as it was: `\n.\r\n` ended the report at a next hop
/// to which a bare LF ends a line, and what followed were commands of a stranger.
#[test]
fn what_goes_back_has_no_bare_line_end_and_no_nul() {
    let now = date(0);
    let recipients = [recipient("b@y.test", Action::Failed, "554 5.6.3 no")];
    let header = b"X: a\n.\r\nMAIL FROM:<evil@x.test>\r\nY: \0b\rc\r\r\n\n\r\nZ: d\r";
    for returned in [Returned::Header(header), Returned::Whole(header)] {
        let mut out = Vec::new();
        let _needs = write_report(&report(&recipients, returned, &now), &mut out);
        let mut check = crate::stuffing::LineEndCheck::default();
        assert_eq!(check.piece(&out).and_then(|()| check.finish()), Ok(()));
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("X: a .\r\nMAIL FROM:<evil@x.test>\r\nY:  b c \r\n \r\nZ: d \r\n"), "{text}");
    }
}

#[test]
fn mail_of_any_script_is_reported_in_its_own() {
    let now = date(0);
    let recipients = [ReportedRecipient {
        original: Some(r"utf-8;gr\x{FC}n@y.test"),
        relay: Some("192.0.2.7:25"),
        ..recipient("gr\u{fc}n@y.test", Action::Failed, "550 5.1.1 gibt es nicht: gr\u{fc}n")
    }];
    let returned = Returned::Header("Subject: gr\u{fc}n\r\n".as_bytes());
    let facts = Report { smtputf8: true, text: "Gr\u{fc}\u{df}e\n", ..report(&recipients, returned, &now) };
    let foreign = Report { to: Path::new("m\u{fc}ller@x.test"), ..facts };
    let (text, needs) = text_of(&foreign);
    for part in [
        "Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit",
        "Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit",
        "Original-Recipient: utf-8;gr\\x{FC}n@y.test\r\n",
        "Final-Recipient: utf-8; gr\u{fc}n@y.test\r\n",
        "Diagnostic-Code: smtp; 550 5.1.1 gibt es nicht: gr\u{fc}n\r\n",
        "Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe\r\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(needs, ReportNeeds { eight_bit: true, smtputf8: true });
    // Without SMTPUTF8 a report is ASCII, whatever a next hop says.
    let plain = [ReportedRecipient { relay: Some("192.0.2.7:25"), ..recipient("b@y.test", Action::Failed, "550 5.1.1 gr\u{fc}n") }];
    let (text, needs) = text_of(&report(&plain, Returned::Nothing, &now));
    assert!(text.contains("Diagnostic-Code: smtp; 550 5.1.1 gr?n\r\n") && !needs.eight_bit);
}

/// Raw UTF-8 in the headers of its parts went to next hops that know nothing of SMTPUTF8, because the sender's own address does not need it.
#[test]
fn a_report_that_goes_without_smtputf8_has_no_header_beyond_ascii() {
    let now = date(0);
    let content = "Subject: gr\u{fc}n = 1\r\n\r\nk\u{f6}rper".as_bytes();
    let recipients = [recipient("gr\u{fc}n@y.test", Action::Failed, "550 5.1.1 gibt es nicht: gr\u{fc}n")];
    let quoted = "Content-Transfer-Encoding: quoted-printable\r\n\r\n";
    for (smtputf8, returned, parts) in [
        (
            true,
            Returned::Whole(content),
            vec![
                format!("Content-Type: message/global-delivery-status\r\n{quoted}Reporting-MTA: dns; mx1.example.test\r\n"),
                "Final-Recipient: utf-8; gr=C3=BCn@y.test\r\n".to_owned(),
                format!("Content-Type: message/global\r\n{quoted}Subject: gr=C3=BCn =3D 1\r\n\r\nk=C3=B6rper\r\n"),
            ],
        ),
        (
            true,
            Returned::Header(&content[..header_bytes(content)]),
            vec![format!("Content-Type: message/global-headers\r\n{quoted}Subject: gr=C3=BCn =3D 1\r\n")],
        ),
        // What came without SMTPUTF8 and has such a header all the same.
        (
            false,
            Returned::Header(&content[..header_bytes(content)]),
            vec![format!("Content-Type: text/rfc822-headers\r\n{quoted}Subject: gr=C3=BCn =3D 1\r\n")],
        ),
    ] {
        let (text, needs) = text_of(&Report { smtputf8, ..report(&recipients, returned, &now) });
        assert!(text.is_ascii(), "{text}");
        assert_eq!(needs, ReportNeeds { eight_bit: false, smtputf8: false });
        for part in parts {
            assert!(text.contains(&part), "{part:?} is not in {text}");
        }
        assert_eq!(to_seven_bit(text.as_bytes()), None, "it is made once");
    }
}

/// A message/rfc822 with a header beyond ASCII, its own or that of a part, went back as it came, though no such message has one; and lines of
/// any length were said to be 7bit or 8bit.
#[test]
fn what_a_message_within_a_report_cannot_have_goes_back_otherwise() {
    let now = date(0);
    let recipients = [recipient("b@y.test", Action::Failed, "550 5.1.1 no")];
    let quoted = "Content-Transfer-Encoding: quoted-printable\r\n\r\n";
    let utf8 = "Subject: gr\u{fc}n\r\n\r\nk\u{f6}rper\r\n".as_bytes();
    let part = "Subject: s\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\nX: gr\u{fc}n\r\n\r\nx\r\n--in--\r\n".as_bytes();
    let body = "Subject: s\r\n\r\nk\u{f6}rper\r\n".as_bytes();
    let long = [b"Subject: s\r\n\r\n", &[b'x'; 999][..], b"\r\n"].concat();
    let full = [b"Subject: s\r\n\r\n", &[b'x'; 998][..], b"\r\n"].concat();
    let wide = [b"Subject: ", &[b'x'; 999][..], b"\r\n\r\nbody\r\n"].concat();
    for (content, kind, part, is_whole) in [
        (utf8, "message/global", format!("{quoted}Subject: gr=C3=BCn\r\n\r\nk=C3=B6rper\r\n"), true),
        (part, "message/global", format!("{quoted}Subject: s\r\n"), true),
        (b"Subject: gr\xfcn\r\n\r\nbody\r\n", "text/rfc822-headers", format!("{quoted}Subject: gr=FCn\r\n"), false),
        (b"Subject: s\r\n\r\nb\xf6dy\r\n", "message/rfc822", "Content-Transfer-Encoding: 8bit\r\n\r\nSubject: s\r\n".to_owned(), true),
        (body, "message/rfc822", "Content-Transfer-Encoding: 8bit\r\n\r\nSubject: s\r\n".to_owned(), true),
        (&long, "text/rfc822-headers", "\r\nSubject: s\r\n".to_owned(), false),
        (&full, "message/rfc822", "\r\nSubject: s\r\n".to_owned(), true),
        (&wide, "text/rfc822-headers", format!("{quoted}Subject: x"), false),
    ] {
        let mut out = Vec::new();
        let needs = write_report(&report(&recipients, Returned::Whole(content), &now), &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains(&format!("\r\nContent-Type: {kind}\r\n{part}")), "{kind}: {text}");
        assert_eq!(text.contains("Content-Description: The message\r\n"), is_whole, "{text}");
        assert!(is_whole || !text.contains("body") && !text.contains("\r\n\r\nx"), "{text}");
        assert!(out.split(|&byte| byte == b'\n').all(|line| line.len() <= 999), "{text}");
        assert_eq!(needs.eight_bit, !out.is_ascii(), "{text}");
        assert_eq!(text.contains("\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"=_00000000000000000000000000000007\"\r\nContent-Transfer-Encoding: 8bit\r\n"), !out.is_ascii(), "{text}");
    }
    // SMTPUTF8 and a text of the config, too.
    let facts = Report { smtputf8: true, text: &"y".repeat(999), ..report(&recipients, Returned::Whole(&long), &now) };
    for to in ["s@x.test", "s\u{f6}@x.test"] {
        let (text, _) = text_of(&Report { to: Path::new(to), ..facts });
        assert!(text.contains(&format!("Content-Type: message/global\r\n{quoted}Subject: s\r\n\r\nxxx")), "{text}");
        assert!(text.split("\r\n").all(|line| line.len() <= 998), "{text}");
    }
}

/// A next hop that answers 554 in place of a greeting is tried again: its words told the sender of a delay that the mail had failed.
#[test]
fn a_delay_says_nothing_of_a_failure_for_good() {
    let now = date(0);
    for (reply, line) in [
        ("554 5.7.1 go: away", "refused for now, and tried again; the next hop says: go: away"),
        ("535 no", "refused for now, and tried again; the next hop says: no"),
        ("554 5.7.1", "refused for now, and tried again"),
        ("554", "refused for now, and tried again"),
        ("450 4.2.1 busy", "450 4.2.1 busy"),
        ("connect to h:25: refused", "connect to h:25: refused"),
    ] {
        let recipients = [ReportedRecipient { relay: Some("mx1.y.test[192.0.2.7]:25"), ..recipient("b@y.test", Action::Delayed, reply) }];
        let mut list = String::new();
        write_list(&recipients, &mut list);
        assert_eq!(list, format!("<b@y.test>:\n    {line}"));
        let (text, _) = text_of(&report(&recipients, Returned::Nothing, &now));
        let group = group(&text, "rfc822; b@y.test");
        assert!(group.iter().any(|line| line.starts_with("Status: 4.")), "{group:?}");
    }
    let mut list = String::new();
    write_list(&[recipient("b@y.test", Action::Failed, "554 5.7.1 no")], &mut list);
    assert_eq!(list, "<b@y.test>:\n    554 5.7.1 no");
}

#[test]
fn the_header_of_a_content_ends_at_its_blank_line() {
    for (content, expected) in [("A: b\r\n\r\nbody", 6), ("\r\nbody", 0), ("A: b\r\nC: d", 10), ("", 0), ("A: b\r\n", 6)] {
        assert_eq!(header_bytes(content.as_bytes()), expected, "{content:?}");
    }
}

#[test]
fn a_report_of_the_largest_recipients_keeps_to_its_bound() {
    let now = date(0);
    let (path, reply, original) = ("p".repeat(512), "r".repeat(200), format!("rfc822;{}", "o".repeat(493)));
    let one = ReportedRecipient {
        original: Some(&original),
        relay: Some("mx.test[192.0.2.1]:25"),
        last_attempt: Some(now),
        will_retry_until: Some(now),
        ..recipient(&path, Action::Failed, &reply)
    };
    let (few, many) = (vec![one; 1], vec![one; 11]);
    let size = |recipients: &[ReportedRecipient<'_>]| {
        let mut list = String::new();
        write_list(recipients, &mut list);
        text_of(&Report { text: &list, ..report(recipients, Returned::Nothing, &now) }).0.len()
    };
    assert!(size(&many) - size(&few) <= 10 * RECIPIENT_BYTES_MAX, "{}", size(&many) - size(&few));
    // Beyond ASCII each octet takes three, and the text is left out where it does not fit.
    let (path, reply, original) = ("\u{fc}".repeat(256), "\u{fc}".repeat(100), format!("utf-8;{}", "\u{fc}".repeat(247)));
    let (path, reply, original) = (&*path, &*reply, Some(&*original));
    let one = ReportedRecipient { path: Path::new(path), reply, original, ..one };
    let size = |recipients: &[ReportedRecipient<'_>]| {
        text_of(&Report { smtputf8: true, text: "", ..report(recipients, Returned::Nothing, &now) }).0.len()
    };
    let (few, many) = (size(&[one]), size(&[one; 11]));
    assert!(many - few <= 10 * RECIPIENT_BYTES_MAX, "{}", many - few);
}

#[test]
fn a_report_becomes_seven_bits_without_losing_what_a_program_reads() {
    let now = date(0);
    let content = "Subject: gr\u{fc}n = 1\r\nX: y \r\n\r\nk\u{f6}rper\r\n".as_bytes();
    let body = "Subject: plain\r\nX: y \r\n\r\nk\u{f6}rper\r\n".as_bytes();
    let cut = "Content-Transfer-Encoding: quoted-printable\r\n\r\nSubject: gr=C3=BCn =3D 1\r\nX: y=20\r\n\r\n--";
    for (smtputf8, returned, kind, text) in [
        (false, Returned::Whole(body), "text/rfc822-headers", "headers\r\n\r\nSubject: plain\r\nX: y \r\n\r\n--"),
        // As an earlier version made them.
        (true, Returned::Whole(content), "message/global-headers", cut),
        (true, Returned::Whole(b"Subject: plain\r\n\r\nplain\r\n"), "message/global", "global\r\n\r\nSubject: plain\r\n\r\nplain\r\n"),
        (true, Returned::Nothing, "", ""),
    ] {
        let recipients = [recipient("b\u{f6}@y.test", Action::Failed, "554 5.6.3 no"), recipient("c@y.test", Action::Failed, "")];
        let (foreign, plain) = ("m\u{fc}@x.test", "m@x.test");
        let to = Path::new(if smtputf8 { foreign } else { plain });
        let (eight, _) = text_of(&Report { to, smtputf8, text: "T\u{f6}t\n", ..report(&recipients, returned, &now) });
        let seven = to_seven_bit(eight.replace(foreign, plain).as_bytes()).unwrap();
        assert!(seven.is_ascii() && !seven.windows(6).any(|word| word == b": 8bit"));
        let seven = String::from_utf8(seven).unwrap();
        assert_eq!(seven.matches("\r\n--=_00000000000000000000000000000007").count(), if kind.is_empty() { 3 } else { 4 });
        assert!(kind.is_empty() || seven.contains(&format!("Content-Type: {kind}\r\n")), "{seven}");
        assert!(seven.contains("Final-Recipient: rfc822; c@y.test\r\n"), "{seven}");
        assert_eq!(smtputf8, seven.contains("Final-Recipient: utf-8; b=C3=B6@y.test\r\n"), "{seven}");
        assert!(seven.contains(text), "{seven}");
        assert!(!seven.contains("rper"), "{seven}");
    }
    let mut plain = Vec::new();
    write_report(&report(&[recipient("c@y.test", Action::Failed, "")], Returned::Header(b"Subject: s\r\n"), &now), &mut plain);
    assert_eq!(to_seven_bit(&plain), None, "it would be the same again");
    let utf8 = Report { to: Path::new("s\u{f6}@x.test"), ..report(&[], Returned::Nothing, &now) };
    let mut own = Vec::new();
    write_report(&utf8, &mut own);
    for other in [&own[..], b"", b"Subject: x\r\n\r\nno report\r\n", b"Content-Type: x; boundary=\"b\"\r\n\r\n--b--\r\n"] {
        assert_eq!(to_seven_bit(other), None, "{}", String::from_utf8_lossy(other));
    }
}
