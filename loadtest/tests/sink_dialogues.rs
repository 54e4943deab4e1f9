//! The server side of the sink against clients of any kind, without a socket.

use ringpost_loadtest::{
    ledger::Envelope,
    sink::{
        announcement::Announcement,
        fault::{Fault, FaultKind},
        session::{Behaviour, Next, ServerSession},
        verify::{Arrival, Damage},
    },
    source::host::Stage,
};

/// A sink without faults; what came.
#[derive(Default)]
struct Good {
    arrived: Vec<(u64, String)>,
    refused: Vec<u16>,
    /// Where it was asked what goes wrong.
    asked: Vec<Stage>,
    /// Of the last that came.
    damage: Option<Damage>,
}

impl Behaviour for Good {
    fn fault(&mut self, stage: Stage) -> Option<FaultKind> {
        self.asked.push(stage);
        None
    }

    fn is_greylisted(&mut self, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn arrived(&mut self, arrival: &Arrival, envelope: Envelope<'_>, _: bool) {
        self.damage = arrival.damage;
        self.arrived.push((arrival.bytes, String::from_utf8(envelope.recipients.to_vec()).unwrap()));
    }

    fn refused(&mut self, code: u16) {
        self.refused.push(code);
    }
}

/// A sink at which this goes wrong, the first time that its stage comes.
struct Faulty {
    good: Good,
    fault: Option<Fault>,
}

impl Behaviour for Faulty {
    fn fault(&mut self, stage: Stage) -> Option<FaultKind> {
        self.fault.take_if(|fault| fault.stage == stage).map(|fault| fault.kind)
    }

    fn is_greylisted(&mut self, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn arrived(&mut self, arrival: &Arrival, envelope: Envelope<'_>, is_first: bool) {
        self.good.arrived(arrival, envelope, is_first);
    }

    fn refused(&mut self, code: u16) {
        self.good.refused(code);
    }
}

/// What is answered to a message, a line or command at a time, until the sink wants no more; how it ended; and the messages it took.
fn answered_until_the_end(fault: Option<Fault>) -> (String, Next, usize) {
    let announcement = Announcement::default();
    let mut faulty = Faulty { good: Good::default(), fault };
    let mut out = Vec::new();
    let (mut session, mut next) = ServerSession::begin(&announcement, &mut faulty, &mut out);
    for text in ["EHLO me\r\n", "MAIL FROM:<a@x>\r\n", "RCPT TO:<b@y>\r\n", "DATA\r\n", "hello\r\n", ".\r\n", "NOOP\r\n"] {
        if next == Next::Read {
            next = session.receive(text.as_bytes(), &announcement, &mut faulty, &mut out);
        }
    }
    (String::from_utf8_lossy(&out).into_owned(), next, faulty.good.arrived.len())
}

/// What happened: the beginning of each reply was `25`, also that of a banner, and a message could not be taken without a reply.
#[test]
fn a_connection_can_end_in_any_state_and_a_message_is_taken_only_where_it_is_said() {
    let ended = |stage: &str, what: &str| answered_until_the_end(Some(format!("{stage}:{what}:1").parse().unwrap()));
    let (well, next, taken) = answered_until_the_end(None);
    assert_eq!((next, taken), (Next::Read, 1));
    let replies: Vec<&str> = well.split_inclusive("\r\n").filter(|line| line.as_bytes()[3] == b' ').collect();
    for (at, stage) in ["banner", "ehlo", "mail", "rcpt", "data", "dot"].into_iter().enumerate() {
        let (said, next, taken) = ended(stage, "drop");
        assert_eq!((next, taken), (Next::Drop, 0), "{stage}");
        assert_eq!(said.lines().filter(|line| line.as_bytes()[3] == b' ').count(), at, "{stage}: {said}");
        let (said, next, taken) = ended(stage, "close");
        assert_eq!((next, taken), (Next::Close, usize::from(stage == "dot")), "{stage}");
        assert!(well.starts_with(&said) && said.ends_with(replies[at]), "{stage}: {said}");
        let (said, next, taken) = ended(stage, "half");
        assert_eq!((next, taken), (Next::Close, 0), "{stage}");
        assert!(well.starts_with(&said) && !said.ends_with('\n') && said.len() > 5, "{stage}: {said}");
    }
    assert_eq!(ended("content", "drop").1, Next::Drop);
    let (said, next, taken) = ended("dot", "lose");
    assert!(said.ends_with("354 Go ahead\r\n"), "{said}");
    assert_eq!((next, taken), (Next::Drop, 1));
}

/// What happened: each piece that was read was a draw, so that `content:drop:0.01` lost nearly all large messages and hardly a small one, and
/// the same seed others in each run.
#[test]
fn whether_a_connection_drops_within_a_content_is_drawn_once_for_each_message() {
    let announcement = Announcement::default();
    let mut good = Good::default();
    let (mut session, _) = ServerSession::begin(&announcement, &mut good, &mut Vec::new());
    let mut draws = Vec::new();
    let data = "MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\nhello\r\nhello\r\n.\r\n";
    let chunks = "MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nBDAT 4\r\nab\r\nBDAT 3 LAST\r\nc\r\n";
    for text in ["EHLO me\r\n", data, chunks, "NOOP\r\n", data] {
        for octet in text.as_bytes() {
            assert_eq!(session.receive(&[*octet], &announcement, &mut good, &mut Vec::new()), Next::Read);
        }
        draws.push(good.asked.iter().filter(|&&stage| stage == Stage::Content).count());
    }
    assert_eq!((good.arrived.len(), draws), (3, vec![0, 1, 2, 2, 3]));
}

/// What a sink says to these lines, at which this goes wrong the first time: the codes, and how it ended.
fn codes(announcement: &Announcement, fault: &str, lines: &[&str]) -> (Vec<u16>, Next) {
    let mut faulty = Faulty { good: Good::default(), fault: Some(fault.parse().unwrap()) };
    let mut out = Vec::new();
    let (mut session, mut next) = ServerSession::begin(announcement, &mut faulty, &mut out);
    for line in lines {
        if next == Next::Read {
            next = session.receive(format!("{line}\r\n").as_bytes(), announcement, &mut faulty, &mut out);
        }
    }
    let lasts = |line: &&str| line.as_bytes()[3] == b' ';
    (String::from_utf8(out).unwrap().lines().filter(lasts).map(|line| line[..3].parse().unwrap()).collect(), next)
}

/// RFC 5321 4.1.4. What happened: an EHLO that was refused counted as one, so that a client that did not look was told that its mail was taken.
#[test]
fn mail_waits_for_an_ehlo_that_was_not_refused() {
    let smtp = Announcement::default();
    let again = codes(&smtp, "ehlo:450:1", &["EHLO me", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", "NOOP", "EHLO me", "MAIL FROM:<a@x>"]);
    assert_eq!(again, (vec![220, 450, 503, 503, 503, 250, 250, 250], Next::Read));
    let helo = codes(&smtp, "ehlo:502:1", &["EHLO me", "MAIL FROM:<a@x>", "HELO me", "MAIL FROM:<a@x>"]);
    assert_eq!(helo, (vec![220, 502, 503, 250, 250], Next::Read));
    assert_eq!(codes(&smtp, "ehlo:421:1", &["EHLO me", "MAIL FROM:<a@x>"]), (vec![220, 421], Next::Close));
    let lmtp = Announcement { lmtp: true, ..Announcement::default() };
    let lhlo = codes(&lmtp, "ehlo:550:1", &["LHLO me", "MAIL FROM:<a@x>", "LHLO me", "MAIL FROM:<a@x>"]);
    assert_eq!(lhlo, (vec![220, 550, 503, 250, 250], Next::Read));
}

/// The state is that before it: a transaction that is open stays open.
#[test]
fn a_refused_ehlo_changes_nothing() {
    let announcement = Announcement::default();
    let mut faulty = Faulty { good: Good::default(), fault: None };
    let mut out = Vec::new();
    let (mut session, _) = ServerSession::begin(&announcement, &mut faulty, &mut out);
    session.receive(b"EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n", &announcement, &mut faulty, &mut out);
    faulty.fault = Some("ehlo:550:1".parse().unwrap());
    out.clear();
    session.receive(b"EHLO me\r\nDATA\r\nhello\r\n.\r\n", &announcement, &mut faulty, &mut out);
    let said = String::from_utf8(out).unwrap();
    assert_eq!(said.lines().map(|line| &line[..3]).collect::<Vec<_>>(), ["550", "354", "250"]);
}

/// RFC 5321 3.1. What happened: it closed behind any code, although only 421 says so.
#[test]
fn behind_a_refusal_at_the_banner_quit_is_waited_for() {
    let smtp = Announcement::default();
    for code in [554, 450, 500] {
        let lines = ["EHLO me", "HELO me", "MAIL FROM:<a@x>", "NOOP", "RSET", "what", "QUIT", "NOOP"];
        let wanted = (vec![code, 503, 503, 503, 503, 503, 503, 221], Next::Close);
        assert_eq!(codes(&smtp, &format!("banner:{code}:1"), &lines), wanted);
    }
    // Seven octets that would be a command are the chunk.
    assert_eq!(codes(&smtp, "banner:554:1", &["BDAT 7 LAST\r\nQUIT\r", "QUIT"]), (vec![554, 503, 221], Next::Close));
    assert_eq!(codes(&smtp, "banner:421:1", &["QUIT"]), (vec![421], Next::Close));
}

/// What is answered to this behind EHLO or LHLO, by a sink that takes 20 octets: the codes.
fn answered(lmtp: bool, size_max: u64, text: &str) -> (Vec<u16>, Good) {
    let announcement = Announcement { lmtp, size_max, ..Announcement::default() };
    let (mut good, mut out) = (Good::default(), Vec::new());
    let (mut session, next) = ServerSession::begin(&announcement, &mut good, &mut out);
    assert_eq!(next, Next::Read);
    let hello = if lmtp { "LHLO me\r\n" } else { "EHLO me\r\n" };
    session.receive(hello.as_bytes(), &announcement, &mut good, &mut out);
    assert!(String::from_utf8_lossy(&out).contains(&format!("SIZE {size_max}\r\n")));
    out.clear();
    assert_eq!(session.receive(text.as_bytes(), &announcement, &mut good, &mut out), Next::Read);
    let codes = String::from_utf8(out).unwrap().lines().map(|line| line[..3].parse().unwrap()).collect();
    (codes, good)
}

/// 20 octets and 21, with a line that was stuffed.
const FITS: &str = "..345678\r\n012345678\r\n";
const TOO_LARGE: &str = "..3456789\r\n012345678\r\n";

#[test]
fn a_size_that_is_declared_too_large_is_refused_at_mail() {
    let mail = |parameters: &str| answered(false, 20, &format!("MAIL FROM:<a@x> {parameters}\r\nRCPT TO:<b@y>\r\n")).0;
    assert_eq!(mail("SIZE=20"), [250, 250]);
    assert_eq!(mail("BODY=8BITMIME size=21"), [552, 503]);
    assert_eq!(mail("SIZE=99999999999999999999"), [552, 503]);
    assert_eq!(mail("SIZE=0"), [250, 250]);
    assert_eq!(mail("SIZE=x"), [501, 503]);
    assert_eq!(mail("SIZE="), [501, 503]);
    assert_eq!(answered(false, 0, "MAIL FROM:<a@x> SIZE=99999999\r\n").0, [250]);
}

#[test]
fn content_that_is_larger_than_announced_is_refused_behind_its_dot() {
    let data = |content: &str| answered(false, 20, &format!("MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n{content}.\r\nNOOP\r\n"));
    let (codes, good) = data(FITS);
    assert_eq!((codes, good.arrived), (vec![250, 250, 354, 250, 250], vec![(20, "b@y".to_string())]));
    let (codes, good) = data(TOO_LARGE);
    assert_eq!((codes, good.arrived, good.refused), (vec![250, 250, 354, 552, 250], vec![], vec![552]));
}

#[test]
fn chunks_are_refused_at_the_last_by_the_size_of_all() {
    let chunks = |text: &str| answered(false, 20, &format!("MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n{text}NOOP\r\n")).0;
    assert_eq!(chunks("BDAT 10\r\n01234567\r\nBDAT 10 LAST\r\n01234567\r\n"), [250, 250, 250, 250, 250]);
    assert_eq!(chunks("BDAT 10\r\n01234567\r\nBDAT 11 LAST\r\n012345678\r\n"), [250, 250, 250, 552, 250]);
    assert_eq!(chunks("BDAT 21\r\n0123456789012345678\r\nBDAT 0 LAST\r\n"), [250, 250, 250, 552, 250]);
}

/// RFC 2033 4.2, also where the last chunk is empty: there was one reply for all.
#[test]
fn lmtp_answers_for_each_recipient_also_when_it_refuses() {
    let envelope = "MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\n";
    let (codes, good) = answered(true, 20, &format!("{envelope}DATA\r\n{TOO_LARGE}.\r\n"));
    assert_eq!((codes, good.arrived), (vec![250, 250, 250, 354, 552, 552], vec![]));
    let (codes, good) = answered(true, 20, &format!("{envelope}BDAT 4\r\nab\r\nBDAT 0 LAST\r\n"));
    assert_eq!(codes, [250, 250, 250, 250, 250, 250]);
    assert_eq!(good.arrived, [(4, "b@y".to_string()), (4, "c@y".to_string())]);
}

/// What happened: the sink fell silent for one recipient and answered the next, whose reply the client took for that of the first.
#[test]
fn lmtp_silence_behind_the_content_is_silence_for_all_recipients_that_follow() {
    let announcement = Announcement { lmtp: true, ..Announcement::default() };
    let mut faulty = Faulty { good: Good::default(), fault: Some("dot:silence:1".parse().unwrap()) };
    let mut out = Vec::new();
    let (mut session, _) = ServerSession::begin(&announcement, &mut faulty, &mut out);
    let text = "LHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nRCPT TO:<c@y>\r\nDATA\r\nhello\r\n.\r\n";
    assert_eq!(session.receive(text.as_bytes(), &announcement, &mut faulty, &mut out), Next::Read);
    assert!(out.ends_with(b"354 Go ahead\r\n"), "{}", String::from_utf8_lossy(&out));
    assert_eq!(faulty.good.arrived.len(), 0);
}

/// RFC 5321 4.1.2: a quoted local part may hold a `>`; the ledger had what stood before it.
#[test]
fn a_quoted_local_part_is_whole_in_the_ledger() {
    for (path, recorded) in [(r#""a>b"@y"#, r#""a>b"@y"#), (r#""a\">b"@y"#, r#""a\">b"@y"#), ("@hop:d@y", "@hop:d@y")] {
        let (codes, good) = answered(false, 0, &format!("MAIL FROM:<\">\"@x> SIZE=9\r\nRCPT TO:<{path}>\r\nDATA\r\nhello\r\n.\r\n"));
        assert_eq!(codes, [250, 250, 354, 250], "{path}");
        assert_eq!(good.arrived, [(7, recorded.to_string())]);
    }
    assert_eq!(answered(false, 20, "MAIL FROM:<\"> SIZE=1\"@x> SIZE=21\r\n").0, [552]);
    assert_eq!(answered(false, 20, "MAIL FROM:<\"a@x>\r\n").0, [501]);
}

/// What happened: what stood between the first `<` and a `>` was a path, whatever stood in and around it, so that a client that wrote an
/// address without quotes, or something behind the bracket, was told that all was well.
#[test]
fn what_no_server_may_take_for_a_path_is_refused() {
    for broken in ["FROM:<a b>", "FROM:<a b@x>", "FROM:a@x", "FROM:<a@x>y", "FROM:<a@x> <b@x>", "TO:<a@x>", "FROM:y<a@x>", "FROM:<a@x> =1"]
    {
        let (codes, good) = answered(false, 0, &format!("MAIL {broken}\r\nMAIL FROM:<>\r\n"));
        assert_eq!((codes, good.refused), (vec![501, 250], vec![501]), "{broken}");
    }
    for broken in ["TO:<a b@y>", "TO:b@y", "TO:<>", "TO:<b@y>z", "TO:<b>", "FROM:<b@y>"] {
        let (codes, good) = answered(false, 0, &format!("MAIL FROM:<a@x>\r\nRCPT {broken}\r\nRCPT TO:<b@y>\r\nDATA\r\nhello\r\n.\r\n"));
        assert_eq!(codes, [250, 501, 250, 354, 250], "{broken}");
        assert_eq!(good.arrived, [(7, "b@y".to_string())], "{broken}");
    }
}

/// RFC 6531 3.5. What happened: they were taken without the parameter, so that a client that forgets it was told that all was well.
#[test]
fn addresses_beyond_ascii_are_refused_without_smtputf8() {
    let lines = |parameter: &str, rcpt: &str| {
        let mail = format!("MAIL FROM:<\u{e9}@x>{parameter}");
        codes(&Announcement::default(), "content:drop:1", &["EHLO me", &mail, "RSET", &format!("MAIL FROM:<a@x>{parameter}"), rcpt]).0[2..]
            .to_vec()
    };
    assert_eq!(lines("", "RCPT TO:<b@m\u{fc}n.test>"), [553, 250, 250, 553]);
    assert_eq!(lines(" SMTPUTF8 BODY=8BITMIME", "RCPT TO:<b@m\u{fc}n.test>"), [250, 250, 250, 250]);
    assert_eq!(lines("", "RCPT TO:<b@y>"), [553, 250, 250, 250]);
}

/// RFC 5321 4.1.1.11. What happened: whatever was a parameter by its form was taken, so that a client that uses what a next hop does not
/// announce, as one without 8BITMIME, was told that all was well; and content that such a hop must not be sent was intact.
#[test]
fn what_was_not_announced_is_refused_and_eight_bits_are_damage_without_8bitmime() {
    let mail = |announcement: &Announcement, hello: &str, parameters: &str| {
        let lines = [hello, &format!("MAIL FROM:<a@x> {parameters}"), "RSET", "MAIL FROM:<a@x>", &format!("RCPT TO:<b@y> {parameters}")];
        let (codes, next) = codes(announcement, "content:drop:1", &lines);
        assert_eq!(next, Next::Read);
        (codes[2], codes[5])
    };
    let all = Announcement::default();
    for (parameters, mail_code) in
        [("", 250), ("size=5", 250), ("BODY=8BITMIME SMTPUTF8", 250), ("BODY=7BIT", 250), ("BODY=BINARYMIME", 555), ("RET=HDRS", 555)]
    {
        let rcpt_code = if parameters.is_empty() { 250 } else { 555 };
        assert_eq!(mail(&all, "EHLO me", parameters), (mail_code, rcpt_code), "{parameters}");
        assert_eq!(mail(&all, "HELO me", parameters), (rcpt_code, rcpt_code), "{parameters}");
    }
    let without = Announcement { eight_bit: false, ..Announcement::default() };
    assert_eq!(mail(&without, "EHLO me", "BODY=8BITMIME").0, 555);
    assert_eq!(mail(&without, "EHLO me", "SMTPUTF8 SIZE=9").0, 250);
    assert_eq!(mail(&Announcement { smtputf8: false, ..Announcement::default() }, "EHLO me", "SMTPUTF8").0, 555);
    for (announcement, wanted) in [(&all, None), (&without, Some(Damage::EightBit))] {
        for (begin, end) in [("DATA\r\n", ".\r\n"), ("BDAT 7 LAST\r\n", "")] {
            let (mut good, mut out) = (Good::default(), Vec::new());
            let (mut session, _) = ServerSession::begin(announcement, &mut good, &mut out);
            for part in ["EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n", begin, "h\u{e4}ll\r\n", end] {
                session.receive(part.as_bytes(), announcement, &mut good, &mut out);
            }
            assert_eq!(good.damage, wanted, "{begin}");
        }
    }
}
