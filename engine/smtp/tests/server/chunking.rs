//! Random conversations: however the network cuts them, the same happens; and nothing makes the session panic.

use proptest::collection::vec;
use proptest::prelude::*;
use ringpost_smtp::content::{BareNewline, TextLine};
use ringpost_smtp::extension::Extensions;
use ringpost_smtp::server::ServerOptions;

use crate::driver::{Driver, Event};

/// Lines that may stand anywhere in a group.
const LINES: &[&[u8]] = &[
    b"MAIL FROM:<a@x.test>\r\n",
    b"MAIL FROM:<x@refused.test>\r\n",
    b"MAIL FROM:<a@x.test> BODY=BINARYMIME\r\n",
    b"MAIL FROM:<nosync@x.test> SIZE=20\r\n",
    b"MAIL FROM:<a@x.test> SIZE=2000\r\n",
    b"RCPT TO:<b@y.test>\r\n",
    b"RCPT TO:<nobody@y.test>\r\n",
    b"RCPT TO:<b\r\n",
    b"RSET\r\n",
    b"XYZZY\r\n",
    b"\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 7 LAST\r\nabc\r\n..",
    b"BDAT 7\r\n\r\n.\r\nab",
    b"BDAT 3\r\na\r\r",
    b"BDAT 3 LAST\r\na\nb",
    b"BDAT 200 LAST\r\n",
    b"RSET \0\r\n",
];

/// Lines that end a group, and content that follows a 354.
const ENDS: &[&[u8]] = &[b"DATA\r\n", b"NOOP\r\n", b"EHLO client.test\r\n", b"QUIT\r\n", b"RSET\r\n"];

const CONTENT: &[&[u8]] = &[
    b".\r\n",
    b"\r\n.\r\n",
    b".",
    b"\r",
    b"\n",
    b"\r\n",
    b"Received: x\r\n",
    b"Subject: x\r\n",
    b"\r\n\r\n",
    b"..\r\n",
    b"\n.\n",
    b"\0",
    b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    b"RSET\r\n",
    b"\xc3\xbc",
];

fn pick(from: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    (0..from.len()).prop_map(|at| from[at].to_vec())
}

fn segment() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (vec(pick(LINES), 0..5), pick(ENDS)).prop_map(|(lines, end)| [lines.concat(), end].concat()),
        vec(pick(CONTENT), 1..8).prop_map(|pieces| pieces.concat()),
        Just(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n".to_vec()),
    ]
}

fn options() -> impl Strategy<Value = ServerOptions> {
    (any::<bool>(), any::<bool>(), 20_u64..200).prop_map(|(normalize, strict, size)| {
        let mut options = ServerOptions { extensions: Extensions::DEFAULT.with(Extensions::BINARY_MIME), ..ServerOptions::default() };
        options.content.content_bytes_max = size;
        options.content.hops_max = 3;
        options.content.header_bytes_max = 60;
        options.content.header_lines_max = 4;
        options.content.bare_newline = if normalize { BareNewline::Normalize } else { BareNewline::Reject };
        options.content.text_line = if strict { TextLine::Strict } else { TextLine::Relaxed };
        options
    })
}

fn run(options: &ServerOptions, segments: &[Vec<u8>], cuts: &[usize]) -> Vec<Event> {
    let mut driver = Driver::new(options.clone());
    driver.banner(b"");
    driver.receive(b"EHLO client.test\r\n");
    let mut cuts = cuts.iter().cycle();
    for segment in segments {
        let mut rest = &segment[..];
        while !rest.is_empty() {
            let length = cuts.next().map_or(rest.len(), |&cut| cut.clamp(1, rest.len()));
            let (piece, behind) = rest.split_at(length);
            // What was cut off is on its way: a session that is told so behaves as if it had come.
            if behind.is_empty() {
                driver.receive(piece)
            } else {
                driver.receive_with_more_behind(piece)
            }
            rest = behind;
        }
    }
    driver.events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_conversation_is_the_same_however_it_is_cut(
        options in options(),
        segments in vec(segment(), 1..10),
        cuts in vec(1_usize..40, 1..20),
    ) {
        let whole = run(&options, &segments, &[]);
        prop_assert_eq!(&run(&options, &segments, &cuts), &whole);
        prop_assert_eq!(&run(&options, &segments, &[1]), &whole);
    }

    #[test]
    fn no_octets_make_a_session_panic(
        options in options(),
        segments in vec(vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'.'), Just(b'<'), Just(b'>')], 0..30), 1..8),
    ) {
        let mut driver = Driver::new(options);
        driver.banner(b"");
        driver.receive(b"EHLO client.test\r\nMAIL FROM:<a@x.test>\r\n");
        for segment in segments {
            driver.receive(b"RCPT TO:");
            driver.receive(&segment);
        }
    }
}
