//! The client of the source against servers of any kind, byte by byte and without a socket.

use std::time::{Duration, Instant};

use ringpost_loadtest::{
    content::{Body, Composer, ContentKind, Form, Item},
    phase::Phase,
    sizes::Sizes,
    source::{
        client::Client,
        host::{ClientError, Ended, Flow, Host, Job, Manner, Outcome, Script, Stage},
        outbox::{Outbox, Piece},
    },
};

struct Desk {
    composer: Composer,
    items: Vec<Item>,
    left: u32,
    given: u64,
    gives_up: Option<Stage>,
    outcomes: Vec<(u64, Outcome)>,
    phases: Vec<(Phase, Duration)>,
    /// Of messages that were accepted: since they were due, and since they began.
    lasted: Vec<(Duration, Duration)>,
    open_loop: bool,
    recipients_refused: Vec<u16>,
    /// Recipients, in turn.
    mailboxes: &'static [&'static str],
    asked: usize,
    /// The recipients of messages that were accepted.
    taken: Vec<String>,
}

impl Desk {
    fn new(messages: u32) -> Desk {
        let (composer, items) = Composer::new(&ContentKind::Text(Sizes::fixed(700)), 1, 1, 0);
        Desk {
            composer,
            items,
            left: messages,
            given: 0,
            gives_up: None,
            outcomes: Vec::new(),
            phases: Vec::new(),
            lasted: Vec::new(),
            open_loop: false,
            recipients_refused: Vec::new(),
            mailboxes: &["r@y.test"],
            asked: 0,
            taken: Vec::new(),
        }
    }
}

impl Host for Desk {
    fn take(&mut self, now: Instant) -> Option<Job> {
        self.left = self.left.checked_sub(1)?;
        self.given += 1;
        Some(Job { sequence: self.given, due: now, due_us: 0 })
    }

    fn push_recipient(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.mailboxes[self.asked % self.mailboxes.len()].as_bytes());
        self.asked += 1;
    }

    fn composer(&mut self) -> &mut Composer {
        &mut self.composer
    }

    fn began(&mut self, _: Manner) {}

    fn has_its_turn(&mut self, job: &mut Job, now: Instant) {
        if !self.open_loop {
            job.due = now;
        }
    }

    fn observe(&mut self, phase: Phase, since: Instant, now: Instant) {
        self.phases.push((phase, now - since));
    }

    fn recipient_refused(&mut self, code: u16, _: &[u8]) {
        self.recipients_refused.push(code);
    }

    fn settle(&mut self, ended: Ended<'_>, outcome: Outcome, now: Instant) {
        assert!(ended.content.is_some() || !matches!(outcome, Outcome::Accepted { .. } | Outcome::Unknown));
        if let (Outcome::Accepted { .. }, Some(content)) = (outcome, ended.content) {
            self.lasted.push((now - ended.job.due, now - content.began));
            self.taken.push(String::from_utf8(ended.recipients.to_vec()).unwrap());
        }
        self.outcomes.push((ended.job.sequence, outcome));
    }

    fn gives_up(&mut self, stage: Stage) -> bool {
        self.gives_up == Some(stage)
    }
}

struct Dialogue {
    script: Script,
    desk: Desk,
    client: Client,
    now: Instant,
    /// Replies are cut into pieces of this length.
    piece: usize,
}

fn script() -> Script {
    Script {
        hello: b"EHLO me\r\n".to_vec(),
        lmtp: false,
        reverse_path: b"s@x.test".to_vec(),
        needs_smtputf8: false,
        recipients: 1,
        pipelining: true,
        envelopes_ahead: true,
        chunking: false,
        per_connection: None,
        linger: false,
    }
}

impl Dialogue {
    fn new(script: Script, messages: u32, piece: usize) -> Dialogue {
        let now = Instant::now();
        Dialogue { client: Client::new(&script, now), desk: Desk::new(messages), script, now, piece }
    }

    /// The server says this; what the client says next, each content as `<content>`.
    fn server(&mut self, text: &str) -> String {
        self.server_result(text).1
    }

    fn server_result(&mut self, text: &str) -> (Result<Flow, ClientError>, String) {
        let mut outbox = Outbox::default();
        let mut flow = Ok(Flow::Go);
        self.now += Duration::from_millis(1);
        for piece in text.as_bytes().chunks(self.piece) {
            flow = self.client.receive(&self.script, piece, self.now, &mut self.desk, &mut outbox);
            if flow != Ok(Flow::Go) {
                break;
            }
        }
        (flow, said(&mut outbox, &self.desk.items))
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.desk.outcomes.iter().map(|&(_, outcome)| outcome).collect()
    }
}

fn said(outbox: &mut Outbox, items: &[Item]) -> String {
    let mut text = String::new();
    for piece in outbox.drain().0 {
        match piece {
            Piece::Bytes(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Piece::Body(Form::Stuffed, Body { item, range }) => text.push_str(std::str::from_utf8(&items[item].stuffed[range]).unwrap()),
            Piece::Body(Form::Raw, Body { item, range }) => text.push_str(std::str::from_utf8(&items[item].raw[range]).unwrap()),
        }
    }
    // From the first header field to the last line: content.
    while let (Some(from), Some(last)) = (text.find("Message-ID:"), text.find("ringpost-load ")) {
        let to = last + text[last..].find("\r\n").unwrap() + 2;
        text.replace_range(from..to, "<content>");
    }
    text
}

const PIPELINING: &str = "250-here\r\n250-8BITMIME\r\n250 PIPELINING\r\n";
const ENVELOPE: &str = "MAIL FROM:<s@x.test> BODY=8BITMIME\r\nRCPT TO:<r@y.test>\r\nDATA\r\n";

#[test]
fn pipelined_the_next_envelope_leaves_with_the_content() {
    for piece in [1, 2, 7, 1000] {
        let mut dialogue = Dialogue::new(script(), 2, piece);
        assert_eq!(dialogue.server("220 hello\r\n"), "EHLO me\r\n");
        assert_eq!(dialogue.server(PIPELINING), ENVELOPE);
        assert_eq!(dialogue.server("250 a\r\n250 b\r\n354 c\r\n"), format!("<content>.\r\n{ENVELOPE}"));
        assert_eq!(dialogue.server("250 d\r\n250 a\r\n250 b\r\n354 c\r\n"), "<content>.\r\n");
        assert_eq!(dialogue.server("250 d\r\n"), "");
        assert!(dialogue.client.rests());
        assert_eq!(dialogue.outcomes(), [Outcome::Accepted { recipients: 1 }; 2]);
        let dots: Vec<_> = dialogue.desk.phases.iter().filter(|(phase, _)| *phase == Phase::DotTo250).collect();
        assert_eq!(dots.len(), 2);
        let mut outbox = Outbox::default();
        dialogue.client.quit(dialogue.now, &mut outbox);
        assert_eq!(said(&mut outbox, &[]), "QUIT\r\n");
        assert_eq!(dialogue.server_result("221 bye\r\n").0, Ok(Flow::Over));
    }
}

/// What happened: what was sent ahead was timed from when it was sent, so that MAIL, RCPT, DATA and the whole transaction held the
/// wait for the message before it, and a closed loop reported twice its latency. Now the last reply to the message before is the earliest.
#[test]
fn what_is_sent_ahead_is_timed_from_the_end_of_the_message_before() {
    for open_loop in [false, true] {
        let mut dialogue = Dialogue::new(script(), 3, 1000);
        dialogue.desk.open_loop = open_loop;
        dialogue.server("220 hello\r\n");
        dialogue.server(PIPELINING);
        dialogue.server("250 a\r\n250 b\r\n354 c\r\n");
        let ms = Duration::from_millis;
        for _ in 0..2 {
            // The wait for the disk.
            dialogue.now += ms(99);
            dialogue.server("250 d\r\n");
            dialogue.server("250 a\r\n250 b\r\n354 c\r\n");
        }
        let envelopes = dialogue.desk.phases.iter().filter(|(phase, _)| matches!(phase, Phase::Mail | Phase::Rcpt | Phase::Data));
        assert!(envelopes.clone().count() == 9 && envelopes.clone().all(|&(_, lasted)| lasted == ms(1)), "{:?}", dialogue.desk.phases);
        // An open loop's latency counts from the scheduled time, here that of the content before.
        let since_due = if open_loop { ms(201) } else { ms(101) };
        assert_eq!(dialogue.desk.lasted, [(ms(101), ms(101)), (since_due, ms(101))]);
    }
}

#[test]
fn a_server_without_pipelining_is_asked_one_thing_at_a_time() {
    let mut dialogue = Dialogue::new(Script { recipients: 2, ..script() }, 1, 1000);
    dialogue.server("220 hello\r\n");
    assert_eq!(dialogue.server("250 here\r\n"), "MAIL FROM:<s@x.test>\r\n");
    assert_eq!(dialogue.server("250 a\r\n"), "RCPT TO:<r@y.test>\r\n");
    assert_eq!(dialogue.server("250 b\r\n"), "RCPT TO:<r@y.test>\r\n");
    assert_eq!(dialogue.server("550 no\r\n"), "DATA\r\n");
    assert_eq!(dialogue.server("354 c\r\n"), "<content>.\r\n");
    assert_eq!(dialogue.server("250 d\r\n"), "");
    assert_eq!(dialogue.outcomes(), [Outcome::Accepted { recipients: 1 }]);
}

/// RFC 1870: the size is stated where the server asks for it, however it does so, and is that of the content before stuffing.
#[test]
fn the_size_is_declared_where_it_is_announced() {
    for announced in ["SIZE", "SIZE 0", "size 10000"] {
        let mut dialogue = Dialogue::new(script(), 1, 1000);
        dialogue.server("220 hello\r\n");
        let envelope = dialogue.server(&format!("250-here\r\n250-{announced}\r\n250 PIPELINING\r\n"));
        assert_eq!(envelope, "MAIL FROM:<s@x.test> SIZE=700\r\nRCPT TO:<r@y.test>\r\nDATA\r\n", "{announced}");
    }
    let mut dialogue = Dialogue::new(script(), 1, 1000);
    dialogue.server("220 hello\r\n");
    assert!(dialogue.server("250-SIZEABLE\r\n250 PIPELINING\r\n").starts_with("MAIL FROM:<s@x.test>\r\n"));
}

/// What happened: addresses beyond ASCII went without the parameter to servers that announce it (RFC 6531 3.4), and as they were to those that
/// do not (3.2).
#[test]
fn addresses_beyond_ascii_go_with_smtputf8_and_to_no_server_without_it() {
    let script = Script { needs_smtputf8: true, reverse_path: "j\u{f6}rg@x.test".into(), ..script() };
    let mut dialogue = Dialogue::new(script.clone(), 1, 3);
    dialogue.server("220 here\r\n");
    let said = dialogue.server("250-here\r\n250-smtputf8\r\n250-8BITMIME\r\n250 PIPELINING\r\n");
    assert_eq!(said, "MAIL FROM:<j\u{f6}rg@x.test> BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<r@y.test>\r\nDATA\r\n");
    let mut dialogue = Dialogue::new(script, 1, 1000);
    dialogue.server("220 here\r\n");
    let (flow, said) = dialogue.server_result(PIPELINING);
    assert_eq!((flow, said.as_str(), dialogue.outcomes()), (Err(ClientError::NoSmtputf8), "", vec![]));
}

/// What happened: a 250 that had come before a message was sent was its acknowledgement.
#[test]
fn a_promise_that_comes_before_the_content_has_left_is_none() {
    for lmtp in [false, true] {
        let mut dialogue = Dialogue::new(Script { lmtp, ..script() }, 1, 1000);
        dialogue.server("220 here\r\n");
        dialogue.server(PIPELINING);
        let flow = dialogue.server_result("250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n").0;
        assert!(matches!(flow, Err(ClientError::TooEarly { code: 250, .. })), "lmtp {lmtp}: {flow:?}");
        assert_eq!(dialogue.outcomes(), [Outcome::Unknown], "lmtp {lmtp}");
    }
    // It left the outbox, and not the machine.
    let sent = |waits, reply: &str| {
        let mut dialogue = Dialogue::new(script(), 1, 1000);
        dialogue.server("220 here\r\n");
        dialogue.server(PIPELINING);
        dialogue.server("250 ok\r\n250 ok\r\n354 go\r\n");
        dialogue.client.content_waits(waits);
        let flow = dialogue.server_result(reply).0;
        (flow.is_ok(), dialogue.outcomes())
    };
    assert_eq!(sent(true, "250 ok\r\n"), (false, vec![Outcome::Unknown]));
    assert_eq!(sent(false, "250 ok\r\n"), (true, vec![Outcome::Accepted { recipients: 1 }]));
    // Whoever refuses may have seen enough.
    assert_eq!(sent(true, "552 too large\r\n"), (true, vec![Outcome::Refused { stage: Stage::Dot, code: 552 }]));
}

#[test]
fn the_last_message_of_a_connection_takes_quit_with_it() {
    let mut dialogue = Dialogue::new(Script { per_connection: Some(1), ..script() }, 5, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    assert_eq!(dialogue.server("250 a\r\n250 b\r\n354 c\r\n"), "<content>.\r\nQUIT\r\n");
    assert_eq!(dialogue.server_result("250 d\r\n221 bye\r\n").0, Ok(Flow::Over));
    assert_eq!(dialogue.outcomes(), [Outcome::Accepted { recipients: 1 }]);
}

#[test]
fn a_354_to_nobody_gets_a_lone_dot() {
    let mut dialogue = Dialogue::new(script(), 2, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    assert_eq!(dialogue.server("250 a\r\n550 no\r\n354 go\r\n"), ".\r\n");
    assert_eq!(dialogue.server("554 no recipients\r\n"), ENVELOPE);
    assert_eq!(dialogue.outcomes(), [Outcome::Refused { stage: Stage::Rcpt, code: 550 }]);
}

/// What happened: MAIL was refused, and whoever took its recipients and content all the same was a good server.
#[test]
fn whoever_takes_what_rests_on_a_refusal_is_told_and_left() {
    let refused = |stage, code| Outcome::Refused { stage, code };
    let (mail, rcpt) = (refused(Stage::Mail, 452), refused(Stage::Rcpt, 550));
    for (lmtp, chunking, replies, wanted, text) in [
        (false, false, "452 full\r\n250 b\r\n354 c\r\n", mail, "the reply to RCPT is 250 b, although mail was answered 452"),
        (
            false,
            false,
            "452 full\r\n503 no\r\n354 c\r\n250 d\r\n",
            mail,
            "the reply to the content is 250 d, although mail was answered 452",
        ),
        (false, false, "250 a\r\n550 no\r\n354 c\r\n250 d\r\n", rcpt, "the reply to the content is 250 d, although rcpt was answered 550"),
        (true, false, "250 a\r\n550 no\r\n354 c\r\n", rcpt, "the reply to DATA is 354 c, although rcpt was answered 550"),
        // The content has left, and may be somewhere.
        (false, true, "452 full\r\n250 b\r\n250 c\r\n", Outcome::Unknown, "the reply to RCPT is 250 b, although mail was answered 452"),
        (true, true, "250 a\r\n550 no\r\n250 c\r\n", Outcome::Unknown, "the reply to the content is 250 c, although rcpt was answered 550"),
    ] {
        let mut dialogue = Dialogue::new(Script { lmtp, chunking, ..script() }, 1, 1000);
        dialogue.server("220 hello\r\n");
        dialogue.server("250-here\r\n250-CHUNKING\r\n250 PIPELINING\r\n");
        let flows: Vec<_> = replies.split_inclusive('\n').map(|reply| dialogue.server_result(reply).0).collect();
        let error = flows.into_iter().find_map(Result::err).expect(replies);
        assert_eq!((error.to_string(), dialogue.outcomes()), (text.to_owned(), vec![wanted]), "{replies}");
    }
}

/// What happened: a message was accepted, so that the recipients that were refused with it were counted nowhere.
#[test]
fn every_recipient_that_is_refused_is_told() {
    let mut dialogue = Dialogue::new(Script { recipients: 3, ..script() }, 3, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    dialogue.server("250 a\r\n550 no\r\n250 b\r\n451 later\r\n354 c\r\n");
    assert_eq!(dialogue.desk.recipients_refused, [550, 451]);
    // The content is refused for the one that was taken: that decides, and not the others' 550.
    dialogue.server("552 too big\r\n");
    assert_eq!(dialogue.outcomes(), [Outcome::Refused { stage: Stage::Dot, code: 552 }]);
    // Behind a refused MAIL nobody was refused.
    dialogue.server("452 full\r\n503 no\r\n503 no\r\n503 no\r\n503 no\r\n");
    assert_eq!(dialogue.desk.recipients_refused, [550, 451]);
}

#[test]
fn a_refused_envelope_is_reset_before_the_next() {
    let mut dialogue = Dialogue::new(script(), 3, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    assert_eq!(dialogue.server("250 a\r\n451 later\r\n503 no\r\n"), "RSET\r\n");
    assert_eq!(dialogue.server("250 ok\r\n"), ENVELOPE);
    assert_eq!(dialogue.server("452 full\r\n503 no\r\n503 no\r\n"), ENVELOPE);
    assert_eq!(
        dialogue.outcomes(),
        [Outcome::Refused { stage: Stage::Rcpt, code: 451 }, Outcome::Refused { stage: Stage::Mail, code: 452 }]
    );
}

#[test]
fn a_session_that_lingers_says_nothing_behind_its_last_message_until_it_is_told_to_quit() {
    for hello in ["250 here\r\n", PIPELINING] {
        let mut dialogue = Dialogue::new(Script { per_connection: Some(1), linger: true, ..script() }, 5, 1000);
        dialogue.server("220 hello\r\n");
        dialogue.server(hello);
        let mut text = String::new();
        for reply in ["250 a\r\n", "250 b\r\n", "354 c\r\n"] {
            assert!(!dialogue.client.lingers());
            text.push_str(&dialogue.server(reply));
        }
        assert!(text.ends_with("<content>.\r\n"), "{text}");
        assert_eq!(dialogue.server("250 d, id=7F3A\r\n"), "");
        assert!(dialogue.client.lingers() && !dialogue.client.rests());
        let mut outbox = Outbox::default();
        dialogue.client.quit(dialogue.now, &mut outbox);
        assert_eq!(said(&mut outbox, &dialogue.desk.items), "QUIT\r\n");
    }
}

#[test]
fn chunks_follow_the_envelope_at_once_and_a_refused_one_is_reset() {
    let mut dialogue = Dialogue::new(Script { chunking: true, ..script() }, 2, 1000);
    dialogue.server("220 hello\r\n");
    let envelope = "MAIL FROM:<s@x.test>\r\nRCPT TO:<r@y.test>\r\nBDAT 700 LAST\r\n<content>";
    assert_eq!(dialogue.server("250-here\r\n250-CHUNKING\r\n250 PIPELINING\r\n"), envelope);
    assert_eq!(dialogue.server("250 a\r\n250 b\r\n552 no\r\n"), "RSET\r\n");
    assert_eq!(dialogue.server("250 ok\r\n"), envelope);
    assert_eq!(dialogue.server("250 a\r\n250 b\r\n250 c\r\n"), "");
    assert_eq!(dialogue.outcomes(), [Outcome::Refused { stage: Stage::Dot, code: 552 }, Outcome::Accepted { recipients: 1 }]);
}

#[test]
fn lmtp_counts_a_reply_per_recipient() {
    let mut dialogue = Dialogue::new(Script { lmtp: true, recipients: 3, ..script() }, 1, 3);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    assert_eq!(dialogue.server("250 a\r\n250 b\r\n550 no\r\n250 b\r\n354 c\r\n"), "<content>.\r\n");
    dialogue.server("250 first\r\n");
    assert!(dialogue.desk.outcomes.is_empty());
    dialogue.server("452 second\r\n");
    assert_eq!(dialogue.outcomes(), [Outcome::Accepted { recipients: 1 }]);
    assert_eq!(dialogue.desk.recipients_refused, [550, 452]);
    assert!(dialogue.client.rests());
}

/// What happened: a ledger held how many recipients were taken and not which, so that mail at the wrong one was not noticed.
#[test]
fn the_recipients_of_an_accepted_message_are_those_that_were_taken() {
    let take = |lmtp: bool, pipelining: bool, chunking: bool, behind_content: &str| {
        let mut dialogue = Dialogue::new(Script { lmtp, recipients: 4, pipelining, chunking, ..script() }, 1, 3);
        dialogue.desk.mailboxes = &["a@y.test", "b@y.test", "c@y.test", "d@y.test"];
        dialogue.server("220 hello\r\n");
        dialogue.server("250-here\r\n250-CHUNKING\r\n250 PIPELINING\r\n");
        for reply in ["250 a", "550 no", "250 b", "250 c", "451 later"].iter().chain((!chunking).then_some(&"354 go")) {
            dialogue.server(&format!("{reply}\r\n"));
        }
        dialogue.server(behind_content);
        assert!(dialogue.client.rests());
        dialogue.desk.taken
    };
    for (pipelining, chunking) in [(true, false), (false, false), (true, true), (false, true)] {
        assert_eq!(take(false, pipelining, chunking, "250 ok\r\n"), ["b@y.test,c@y.test"]);
        assert_eq!(take(true, pipelining, chunking, "452 full\r\n250 ok\r\n"), ["c@y.test"]);
    }
}

#[test]
fn a_421_closes_and_what_was_sent_ahead_is_unsent() {
    let mut dialogue = Dialogue::new(script(), 5, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    dialogue.server("250 a\r\n250 b\r\n354 c\r\n");
    let (flow, _) = dialogue.server_result("421 4.3.2 closing\r\n");
    assert!(matches!(flow, Err(ClientError::Closing { stage: Stage::Dot, code: 421, .. })), "{flow:?}");
    assert_eq!(dialogue.outcomes(), [Outcome::Refused { stage: Stage::Dot, code: 421 }, Outcome::Unsent]);
}

/// What happened: 354 to content was a refusal, though the server may have taken it, 250 to DATA another, and the dialogue went on with each
/// reply taken for that of the command before it.
#[test]
fn a_reply_that_its_command_cannot_have_ends_the_connection() {
    let ended = |pipelining: bool, replies: &[&str]| {
        let mut dialogue = Dialogue::new(Script { pipelining, ..script() }, 5, 1000);
        dialogue.server("220 hello\r\n");
        dialogue.server(PIPELINING);
        let (last, before) = replies.split_last().unwrap();
        before.iter().for_each(|reply| assert_eq!(dialogue.server_result(&format!("{reply}\r\n")).0, Ok(Flow::Go), "{reply}"));
        let (flow, _) = dialogue.server_result(&format!("{last}\r\n"));
        assert!(matches!(flow, Err(ClientError::OutOfStep { .. })), "{replies:?}: {flow:?}");
        dialogue.outcomes()
    };
    // What was sent ahead ends with it.
    assert_eq!(ended(true, &["250 a", "250 b", "354 c", "354 d"]), [Outcome::Unknown, Outcome::Unsent]);
    assert_eq!(ended(false, &["250 a", "250 b", "354 c", "354 d"]), [Outcome::Unknown]);
    for pipelining in [true, false] {
        assert_eq!(ended(pipelining, &["250 a", "250 b", "250 c"]), [Outcome::Unsent]);
        assert_eq!(ended(pipelining, &["250 a", "354 b"]), [Outcome::Unsent]);
        let twice = ["250 a", "250 b", "354 c", "250 d", "250 d", "250 e", "250 f"];
        assert_eq!(ended(pipelining, &twice), [Outcome::Accepted { recipients: 1 }, Outcome::Unsent]);
    }
    // Nobody was to have it.
    let refused = Outcome::Refused { stage: Stage::Rcpt, code: 550 };
    assert_eq!(ended(true, &["250 a", "550 b", "250 c"]), [refused]);
}

#[test]
fn a_connection_that_breaks_behind_the_dot_leaves_the_message_unknown() {
    let mut dialogue = Dialogue::new(script(), 5, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    dialogue.server("250 a\r\n250 b\r\n354 c\r\n");
    dialogue.client.broke(dialogue.now, &mut dialogue.desk);
    assert_eq!(dialogue.outcomes(), [Outcome::Unknown, Outcome::Unsent]);
}

#[test]
fn nonsense_is_no_reply_and_never_a_panic() {
    for text in ["hello\r\n", "\r\n", "999 x\r\n", "25\r\n", "250x\r\n", "2 0 x\r\n"] {
        let mut dialogue = Dialogue::new(script(), 1, 1000);
        assert!(matches!(dialogue.server_result(text).0, Err(ClientError::NotAReply(_))), "{text:?}");
    }
    let mut dialogue = Dialogue::new(script(), 1, 1000);
    assert!(matches!(dialogue.server_result(&"x".repeat(10_000)).0, Err(ClientError::NotAReply(_))));
    let mut dialogue = Dialogue::new(script(), 0, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server(PIPELINING);
    assert!(matches!(dialogue.server_result("250 what?\r\n").0, Err(ClientError::Unasked(_))));
}

#[test]
fn a_session_is_given_up_where_it_is_asked_for() {
    for stage in Stage::ALL {
        let mut dialogue = Dialogue::new(script(), 5, 1000);
        dialogue.desk.gives_up = Some(stage);
        let replies = ["220 hello\r\n", PIPELINING, "250 a\r\n", "250 b\r\n", "354 c\r\n", "250 d\r\n"];
        let flow = replies.iter().map(|reply| dialogue.server_result(reply).0).find(|flow| *flow != Ok(Flow::Go));
        assert_eq!(flow, Some(Ok(Flow::GiveUp)), "{stage}");
        let wanted: &[Outcome] = match stage {
            Stage::Banner | Stage::Hello => &[],
            _ => &[Outcome::Aborted],
        };
        assert_eq!(dialogue.outcomes(), wanted, "{stage}");
    }
}

/// What happened: where a session was to be given up at MAIL, RCPT and DATA had left with it.
#[test]
fn nothing_is_sent_ahead_of_the_reply_at_which_a_session_is_given_up() {
    for (stage, sent) in [
        (Stage::Mail, "MAIL FROM:<s@x.test> BODY=8BITMIME\r\n"),
        (Stage::Rcpt, "MAIL FROM:<s@x.test> BODY=8BITMIME\r\nRCPT TO:<r@y.test>\r\n"),
        (Stage::Data, ENVELOPE),
    ] {
        let mut dialogue = Dialogue::new(script(), 5, 1000);
        dialogue.desk.gives_up = Some(stage);
        dialogue.server("220 hello\r\n");
        assert_eq!(dialogue.server(PIPELINING), sent, "{stage}");
    }
}

#[test]
fn a_server_that_announces_a_limit_of_messages_gets_no_more() {
    let mut dialogue = Dialogue::new(script(), 5, 1000);
    dialogue.server("220 hello\r\n");
    dialogue.server("250-here\r\n250-LIMITS RCPTMAX=10 MAILMAX=1\r\n250 PIPELINING\r\n");
    assert_eq!(dialogue.server("250 a\r\n250 b\r\n354 c\r\n"), "<content>.\r\nQUIT\r\n");
    for nonsense in ["LIMITS", "LIMITS MAILMAX=", "LIMITS MAILMAX=0", "LIMITS MAILMAX=99999999", "LIMITS MAILMAX=x"] {
        let mut dialogue = Dialogue::new(script(), 5, 1000);
        dialogue.server("220 hello\r\n");
        dialogue.server(&format!("250-{nonsense}\r\n{PIPELINING}"));
        assert!(dialogue.server("250 a\r\n250 b\r\n354 c\r\n").ends_with(ENVELOPE), "{nonsense}");
    }
}

/// What happened: a server that closed between two replies after the content left the recipients it had said 250 for in no ledger, so that
/// the loss of their mail was none.
#[test]
fn lmtp_recipients_that_were_taken_before_the_end_of_the_connection_are_acknowledged() {
    for how in ["421", "broken reply", "end"] {
        let mut dialogue = Dialogue::new(Script { lmtp: true, recipients: 3, ..script() }, 1, 1000);
        dialogue.desk.mailboxes = &["a@y.test", "b@y.test", "c@y.test"];
        dialogue.server("220 hello\r\n");
        dialogue.server(PIPELINING);
        dialogue.server("250 a\r\n250 b\r\n250 c\r\n250 d\r\n354 go\r\n");
        dialogue.server("250 a has it\r\n");
        match how {
            "421" => assert!(dialogue.server_result("421 4.3.2 closing\r\n").0.is_err()),
            "end" => dialogue.client.broke(dialogue.now, &mut dialogue.desk),
            _ => assert!(dialogue.server_result("nonsense\r\n").0.is_err()),
        }
        assert_eq!(dialogue.outcomes(), [Outcome::Accepted { recipients: 1 }], "{how}");
        assert_eq!(dialogue.desk.taken, ["a@y.test"], "{how}");
    }
}
