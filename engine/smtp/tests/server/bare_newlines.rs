//! SMTP smuggling: no sequence that some other server takes for the end of content ends it here, or gets through.
//!
//! In December 2023 it became known that servers which end content at `\n.\n` and the like, behind relays that pass
//! such sequences on, take a second message out of the first. The list is that of RELIABILITY.md 7.2.

use ringpost_smtp::content::BareNewline;
use ringpost_smtp::server::ServerOptions;

use crate::driver::{Driver, Event};

const SEQUENCES: [&[u8]; 12] = [
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
];

const FORGED: &[u8] = b"MAIL FROM:<forged@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nForged\r\n";

/// All octets of one transaction; what follows DATA comes in a second segment, as 354 is waited for.
fn segments(sequence: &[u8], chunked: bool) -> Vec<Vec<u8>> {
    let mut content = b"Subject: x\r\n\r\nHello".to_vec();
    content.extend_from_slice(sequence);
    content.extend_from_slice(FORGED);
    let mut first = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n".to_vec();
    if chunked {
        first.extend_from_slice(format!("BDAT {} LAST\r\n", content.len()).as_bytes());
        first.extend_from_slice(&content);
        return vec![first];
    }
    first.extend_from_slice(b"DATA\r\n");
    content.extend_from_slice(b".\r\n");
    vec![first, content]
}

fn run(bare_newline: BareNewline, segments: &[Vec<u8>], cut: usize) -> Vec<Event> {
    let mut options = ServerOptions::default();
    options.content.bare_newline = bare_newline;
    let mut driver = Driver::new(options);
    driver.banner(b"");
    driver.receive(b"EHLO client.test\r\n");
    driver.events.clear();
    for segment in segments {
        let (head, tail) = segment.split_at(cut.min(segment.len()));
        driver.receive(head);
        driver.receive(tail);
    }
    driver.receive(b"NOOP\r\n");
    driver.events
}

fn for_each_cut(bare_newline: BareNewline, check: impl Fn(&[u8], bool, &[Event])) {
    for sequence in SEQUENCES {
        for chunked in [false, true] {
            let segments = segments(sequence, chunked);
            let longest = segments.iter().map(Vec::len).max().unwrap_or(0);
            let whole = run(bare_newline, &segments, usize::MAX);
            check(sequence, chunked, &whole);
            for cut in 0..longest {
                let events = run(bare_newline, &segments, cut);
                assert_eq!(events, whole, "{} chunked {chunked} cut at {cut}", sequence.escape_ascii());
            }
        }
    }
}

#[test]
fn rejected_sequences_neither_end_content_nor_get_through() {
    for_each_cut(BareNewline::Reject, |sequence, chunked, events| {
        let name = sequence.escape_ascii().to_string();
        assert!(!events.iter().any(|event| matches!(event, Event::Message(..))), "{name}: nothing is committed");
        let prompt = usize::from(!chunked);
        let replies: Vec<_> = events[2 + prompt..].iter().collect();
        let only_nul = sequence.contains(&0);
        match (only_nul, &replies[..]) {
            (true, [Event::Reply(refusal), Event::Reply(noop)]) => {
                assert!(refusal.starts_with("550 5.6.0 ") && noop.starts_with("250 "), "{name}: {refusal} {noop}");
            }
            (false, [Event::Reply(refusal), Event::Close]) => assert!(refusal.starts_with("550 5.5.2 "), "{name}: {refusal}"),
            (_, other) => panic!("{name}: {other:?}"),
        }
    });
}

#[test]
fn normalized_sequences_neither_end_content_nor_are_forwarded_bare() {
    for_each_cut(BareNewline::Normalize, |sequence, _, events| {
        let name = sequence.escape_ascii().to_string();
        let messages: Vec<_> = events
            .iter()
            .filter_map(|event| if let Event::Message(paths, content) = event { Some((paths, content)) } else { None })
            .collect();
        let [(paths, content)] = messages[..] else { panic!("{name}: one message, not {messages:?}") };
        assert_eq!(paths, "<a@x.test> <b@y.test>", "{name}");
        assert!(content.ends_with(FORGED), "{name}: the forged commands are text");
        let without_ends = content.windows(2).filter(|pair| pair == b"\r\n").count();
        let (cr, lf) = (count(content, b'\r'), count(content, b'\n'));
        assert_eq!((cr, lf), (without_ends, without_ends), "{name}: every CR and LF is of a CRLF");
        assert_eq!(count(content, 0), 0, "{name}: no NUL");
    });
}

fn count(content: &[u8], octet: u8) -> usize {
    content.iter().filter(|&&byte| byte == octet).count()
}
