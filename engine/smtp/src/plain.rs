//! Stretches of content that hold nothing to decide, found many octets at a time however short their lines are.

/// Octets that are looked at together. The loop over them has no branch, so that the compiler makes vector instructions of it.
pub(crate) const BLOCK_BYTES: usize = 64;

/// How many octets from the start of `bytes` on are plain: no NUL, CR and LF as pairs only, no dot behind an LF.
///
/// Counts whole blocks, and ends before a CR, so that a pair is never split. What stood before `bytes` is the caller's business, so is
/// its first octet as far as that depends on it.
pub(crate) fn plain_bytes(bytes: &[u8]) -> usize {
    let mut at = 0;
    // Each octet is judged together with the one behind it.
    while let Some(block) = bytes[at..].first_chunk::<{ BLOCK_BYTES + 1 }>() {
        let mut odd = 0;
        for index in 0..BLOCK_BYTES {
            let (octet, next) = (block[index], block[index + 1]);
            let unpaired = u8::from(octet == b'\r') ^ u8::from(next == b'\n');
            let stuffed = u8::from(octet == b'\n') & u8::from(next == b'.');
            odd |= unpaired | stuffed | u8::from(octet == 0);
        }
        if odd != 0 {
            break;
        }
        at += BLOCK_BYTES;
    }
    if at > 0 && bytes[at - 1] == b'\r' { at - 1 } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, octet by octet.
    fn model(bytes: &[u8]) -> usize {
        let odd = |at: usize| match (bytes[at], bytes[at + 1]) {
            (0, _) | (b'\n', b'.') => true,
            (octet, next) => (octet == b'\r') != (next == b'\n'),
        };
        let blocks = (bytes.len().saturating_sub(1)) / BLOCK_BYTES;
        let plain = (0..blocks).take_while(|block| !(0..BLOCK_BYTES).any(|at| odd(block * BLOCK_BYTES + at))).count() * BLOCK_BYTES;
        if plain > 0 && bytes[plain - 1] == b'\r' { plain - 1 } else { plain }
    }

    #[test]
    fn whatever_two_octets_stand_anywhere_the_count_is_that_of_the_model() {
        for length in [0, 1, 63, 64, 65, 66, 129, 200] {
            for at in 0..usize::max(length, 1) - 1 {
                for pair in [b"\r\n", b"\n.", b"\n\n", b"\r\r", b"\r.", b"a\n", b"\ra", b"a\0", b"..", b"\n\r"] {
                    let mut bytes = vec![b'a'; length];
                    bytes[at..at + 2].copy_from_slice(pair);
                    assert_eq!(plain_bytes(&bytes), model(&bytes), "{} in {length} at {at}", pair.escape_ascii());
                }
            }
        }
    }
}
