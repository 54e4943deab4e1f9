//! The content scanner against a model that works on whole strings, for every short string of the octets that matter.

use ringpost_smtp::content::{BareNewline, ContentRules, ContentScanner, ContentSink, Defect, Framing, Scanned, SinkError};
use ringpost_smtp::line::Unread;

struct Kept(Vec<u8>);

impl ContentSink for Kept {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// What is seen of content: whether it ended and after how many octets, its defect, and what was put.
type Seen = (Option<usize>, Option<Defect>, Vec<u8>);

/// What must be seen: the end is the first CRLF.CRLF, lines are what stands between true CRLFs.
fn model(bytes: &[u8], bare_newline: BareNewline) -> Seen {
    let all = [b"\r\n", bytes].concat();
    let end = find(&all, b"\r\n.\r\n").map(|at| at + 3);
    let content = &bytes[..end.map_or(bytes.len(), |end| end - 3)];
    let mut lines = vec![vec![]];
    let mut rest = content;
    while let Some((&byte, behind)) = rest.split_first() {
        match rest.strip_prefix(b"\r\n") {
            Some(behind) => {
                lines.push(vec![]);
                rest = behind;
            }
            None => {
                lines.last_mut().expect("there is always one").push(byte);
                rest = behind;
            }
        }
    }
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.strip_prefix(b".").unwrap_or(line)).collect();
    let bare = lines.iter().any(|line| line.iter().any(|byte| matches!(byte, b'\r' | b'\n')));
    let nul = content.contains(&0);
    let defect = match bare_newline {
        BareNewline::Normalize => None,
        BareNewline::Reject if bare => Some(Defect::BareNewline),
        BareNewline::Reject if nul => Some(Defect::Nul),
        BareNewline::Reject => None,
    };
    let mut text = Vec::new();
    for byte in lines.join(&b"\r\n"[..]).iter().copied().scan(0, |before, byte| Some((std::mem::replace(before, byte), byte))) {
        match byte {
            (_, 0) => text.push(b' '),
            (_, byte) => text.push(byte),
        }
    }
    (end, defect, normal(&text))
}

/// Bare LF becomes CRLF, bare CR a blank.
fn normal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'\r' if text.get(at + 1) != Some(&b'\n') => out.push(b' '),
            b'\n' if at == 0 || text[at - 1] != b'\r' => out.extend_from_slice(b"\r\n"),
            byte => out.push(byte),
        }
    }
    out
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn scan(bytes: &[u8], bare_newline: BareNewline, cut: usize) -> Seen {
    let rules = ContentRules { bare_newline, ..ContentRules::default() };
    let mut scanner = ContentScanner::new(Framing::Dots);
    let mut kept = Kept(vec![]);
    let mut taken = 0;
    let mut pieces: Vec<&[u8]> = if cut == 0 { bytes.chunks(1).collect() } else { vec![&bytes[..cut], &bytes[cut..]] };
    pieces.retain(|piece| !piece.is_empty());
    for piece in pieces {
        let mut input = Unread::new(piece);
        let scanned = scanner.scan(&rules, &mut input, &mut kept);
        taken += input.consumed();
        if scanned == Scanned::End {
            return (Some(taken), scanner.defect(), kept.0);
        }
        assert!(input.is_empty(), "what doesn't end is read whole");
    }
    (None, scanner.defect(), kept.0)
}

#[test]
fn every_short_string_is_scanned_as_the_model_says() {
    const OCTETS: &[u8] = b"\r\n.\0a";
    const LENGTH: u32 = 7;
    let mut ended = 0_u32;
    for number in 0..OCTETS.len().pow(LENGTH) {
        let mut rest = number;
        let mut bytes: Vec<u8> = (0..LENGTH)
            .map(|_| {
                let octet = OCTETS[rest % OCTETS.len()];
                rest /= OCTETS.len();
                octet
            })
            .collect();
        // So that each string has an end, and what is held back comes out.
        bytes.extend_from_slice(b"\r\n.\r\n");
        for bare_newline in [BareNewline::Reject, BareNewline::Normalize] {
            let (end, defect, text) = model(&bytes, bare_newline);
            ended += u32::from(end < Some(bytes.len()));
            for cut in [0, 1 + number % (bytes.len() - 1), bytes.len()] {
                let seen = scan(&bytes, bare_newline, cut);
                assert_eq!((seen.0, seen.1), (end, defect), "{} {bare_newline:?} cut {cut}", bytes.escape_ascii());
                match defect {
                    None => assert_eq!(seen.2, text, "{} {bare_newline:?} cut {cut}", bytes.escape_ascii()),
                    Some(_) => assert!(text.starts_with(&seen.2) || find(&seen.2, b"\n.").is_none(), "nothing bare is put"),
                }
            }
        }
    }
    assert!(ended > 100, "some end early: {ended}");
}

/// Blocks of the body are skipped when nothing in them is odd: what is odd must be seen wherever in a block it stands, and whatever
/// length its neighbours have.
#[test]
fn what_is_odd_is_seen_wherever_it_stands_in_a_long_body() {
    for line in [&b"short\r\n"[..], b"a line of some length that is no multiple of anything, 73 octets in all.\r\n"] {
        let plain = line.repeat(400 / line.len());
        for odd in
            [&b"\n"[..], b"\r", b"\0", b"\r\n.", b"\r\n..", b"\r\n.\r\n", b"\r\n.\r", b"\n.\r\n", b"\r\r\n", b"\n\r\n", b"\r\n", b"."]
        {
            for at in 0..200 {
                let bytes = [b"S: x\r\n\r\n", &plain[..at], odd, &plain[at..], b"\r\n.\r\n"].concat();
                for bare_newline in [BareNewline::Reject, BareNewline::Normalize] {
                    let (end, defect, text) = model(&bytes, bare_newline);
                    for cut in [at + 3, at + 12, bytes.len()] {
                        let seen = scan(&bytes, bare_newline, cut);
                        assert_eq!((seen.0, seen.1), (end, defect), "{} at {at} {bare_newline:?} cut {cut}", odd.escape_ascii());
                        assert!(defect.is_some() || seen.2 == text, "{} at {at} {bare_newline:?} cut {cut}", odd.escape_ascii());
                    }
                }
            }
        }
    }
}

#[test]
fn octets_beyond_ascii_are_found_in_header_and_body() {
    for (content, header, body) in [
        (&b"Subject: x\r\n\r\nplain\r\n.\r\n"[..], false, false),
        (b"Subject: \xc3\xbc\r\n\r\nplain\r\n.\r\n", true, false),
        (b"Subject: x\r\n\r\n\xfc\r\n.\r\n", false, true),
        (b"\xfc\r\n.\r\n", false, true),
        (b"Subject: x\r\n\xfc\r\n.\r\n", false, true),
    ] {
        for cut in 1..content.len() {
            let mut scanner = ContentScanner::new(Framing::Dots);
            for piece in [&content[..cut], &content[cut..]] {
                scanner.scan(&ContentRules::default(), &mut Unread::new(piece), &mut Kept(vec![]));
            }
            let facts = scanner.facts();
            assert_eq!((facts.eight_bit_header, facts.eight_bit_body), (header, body), "{} cut at {cut}", content.escape_ascii());
            assert_eq!(facts.bytes as usize, content.len() - 3);
        }
    }
}
