//! The last word about a recipient as it is kept: one printable line of bounded length, and the next hop that said it.

/// Bytes kept of a reply at most.
pub const REPLY_BYTES_MAX: usize = 200;

/// Stands between a kept reply and the next hop that gave it. No reply has it, because control characters are replaced in them; a
/// program that does not know of it shows the next hop as part of the reply.
const GIVEN_BY: u8 = 0x1F;

/// Bytes kept of a next hop's name at most, so that there is room for what it said.
const RELAY_BYTES_MAX: usize = 100;

/// Stands for a next hop whose name is too long to be kept: what it said is still a next hop's word.
pub(crate) const UNNAMED: &str = "?";

/// A kept reply and the next hop that gave it; that is empty when it was no next hop's.
pub(crate) fn split_reply(kept: &[u8]) -> (&[u8], &[u8]) {
    match kept.iter().position(|&byte| byte == GIVEN_BY) {
        Some(at) => (&kept[..at], &kept[at + 1..]),
        None => (kept, &[]),
    }
}

/// Writes `parts` as one line into `out`, and behind it the next hop that said it, if it did; returns the length. Of a next hop with a
/// long name only the name is kept, of one with a very long name that there was one.
pub(crate) fn join_reply(parts: &[&[u8]], relay: &str, out: &mut [u8; REPLY_BYTES_MAX]) -> usize {
    let name = relay.find('[').map_or("", |at| &relay[..=at]);
    let is_kept = |text: &&str| !text.is_empty() && text.len() <= RELAY_BYTES_MAX && !text.contains(char::is_control);
    let relay = if relay.is_empty() { "" } else { [relay, name].into_iter().find(is_kept).unwrap_or(UNNAMED) };
    let room = REPLY_BYTES_MAX - if relay.is_empty() { 0 } else { relay.len() + 1 };
    let mut length = 0;
    for part in parts {
        let mut clean = [0; REPLY_BYTES_MAX];
        let bytes = sanitise(part, &mut clean).min(room - length);
        let bytes = (0..=bytes).rev().find(|&end| std::str::from_utf8(&clean[..end]).is_ok()).unwrap_or(0);
        out[length..length + bytes].copy_from_slice(&clean[..bytes]);
        length += bytes;
    }
    if !relay.is_empty() {
        out[length] = GIVEN_BY;
        out[length + 1..length + 1 + relay.len()].copy_from_slice(relay.as_bytes());
        length += 1 + relay.len();
    }
    length
}

/// Copies `reply` into `out` as one printable line of at most [`REPLY_BYTES_MAX`] bytes and returns its length.
/// Control characters become spaces, what is not UTF-8 a question mark; a character is never cut in the middle.
pub(crate) fn sanitise(reply: &[u8], out: &mut [u8; REPLY_BYTES_MAX]) -> usize {
    let mut length = 0;
    for chunk in reply[..reply.len().min(2 * REPLY_BYTES_MAX)].utf8_chunks() {
        for character in chunk.valid().chars() {
            let character = if character.is_control() { ' ' } else { character };
            if length + character.len_utf8() > REPLY_BYTES_MAX {
                return length;
            }
            length += character.encode_utf8(&mut out[length..]).len();
        }
        if !chunk.invalid().is_empty() && length < REPLY_BYTES_MAX {
            out[length] = b'?';
            length += 1;
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_and_its_next_hop_stand_together_and_apart() {
        let long = "x".repeat(300);
        let (named, huge) = (format!("{}[192.0.2.7]:25", &long[..95]), format!("{long}[192.0.2.7]:25"));
        // A path of a socket has no address to cut off; what an LMTP server there said was once told as the word of nobody.
        let path = format!("unix:/{}", &long[..95]);
        let mut out = [0; REPLY_BYTES_MAX];
        for (reply, relay, kept) in [
            ("550 no", "mx1.y.test[192.0.2.7]:25", "mx1.y.test[192.0.2.7]:25".to_owned()),
            ("550 no", "", String::new()),
            (long.as_str(), "192.0.2.7:25", "192.0.2.7:25".to_owned()),
            ("550 no", named.as_str(), format!("{}[", &long[..95])),
            ("550 no", huge.as_str(), "?".to_owned()),
            ("550 no", path.as_str(), "?".to_owned()),
            ("550 no", "odd\u{1f}name[192.0.2.7]", "?".to_owned()),
        ] {
            let length = join_reply(&[b"5.4.7 expired; last: ", reply.as_bytes()], relay, &mut out);
            let (line, by) = split_reply(&out[..length]);
            assert_eq!(std::str::from_utf8(by).unwrap(), kept);
            let whole = format!("5.4.7 expired; last: {reply}");
            assert!(line.starts_with(b"5.4.7 expired; last: ") && whole.as_bytes().starts_with(line), "{line:?}");
            assert!(line.len() == whole.len() || length == REPLY_BYTES_MAX, "no more is cut than must be");
        }
        // A reply that holds the mark itself, as it came over the network.
        let length = join_reply(&[b"550 no\x1fmx.evil.test"], "", &mut out);
        assert_eq!(split_reply(&out[..length]), (&b"550 no mx.evil.test"[..], &b""[..]));
    }

    #[test]
    fn kept_replies_are_one_bounded_printable_line() {
        let mut out = [0; REPLY_BYTES_MAX];
        let length = sanitise(b"550 no\r\n\x00\x1b[31m \xFFx", &mut out);
        assert_eq!(&out[..length], b"550 no    [31m ?x");
        let umlauts = "ü".repeat(150);
        let length = sanitise(format!("x{umlauts}").as_bytes(), &mut out);
        assert_eq!(length, 199);
        assert!(std::str::from_utf8(&out[..length]).is_ok());
    }
}
