//! Stretches of content that hold nothing to decide, found many octets at a time however short their lines are.

/// Octets that are looked at together. The loop over them has no branch, so that the compiler makes vector instructions of it.
pub(crate) const BLOCK_BYTES: usize = 64;

/// How many octets from the start of `bytes` on are plain: no NUL, CR and LF as pairs only, no dot behind an LF.
///
/// Counts whole blocks, and ends before a CR, so that a pair is never split. What stood before `bytes` is the caller's business; the first
/// octet is no LF.
pub(crate) fn plain_bytes(bytes: &[u8]) -> usize {
    debug_assert_ne!(bytes.first(), Some(&b'\n'), "what an LF is depends on the octet before it");
    let mut at = 0;
    // Each octet is judged together with the two behind it. They are blocks of their own: out of one the compiler would make the next octets
    // of one step the octets of the following, by shifting what it could load again for less. They are arrays: of slices, whose length is
    // told and not typed, a build that is linked thinly (the benches) made no vector instructions.
    while bytes.len() - at >= BLOCK_BYTES + 2 {
        let block =
            |behind: usize| bytes[at + behind..].first_chunk::<BLOCK_BYTES>().expect("the loop asked for a block and two octets more");
        let [octets, next, after] = [0, 1, 2].map(block);
        let mut odd = 0;
        for index in 0..BLOCK_BYTES {
            let ends_line = u8::from(next[index] == b'\n');
            let unpaired = u8::from(octets[index] == b'\r') ^ ends_line;
            let stuffed = ends_line & u8::from(after[index] == b'.');
            odd |= unpaired | stuffed | u8::from(octets[index] == 0);
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
        let odd = |at: usize| match (bytes[at], bytes[at + 1], bytes[at + 2]) {
            (0, ..) | (_, b'\n', b'.') => true,
            (octet, next, _) => (octet == b'\r') != (next == b'\n'),
        };
        let blocks = (bytes.len().saturating_sub(2)) / BLOCK_BYTES;
        let plain = (0..blocks).take_while(|block| !(0..BLOCK_BYTES).any(|at| odd(block * BLOCK_BYTES + at))).count() * BLOCK_BYTES;
        if plain > 0 && bytes[plain - 1] == b'\r' { plain - 1 } else { plain }
    }

    #[test]
    fn whatever_octets_stand_anywhere_the_count_is_that_of_the_model() {
        for length in [0, 1, 63, 64, 65, 66, 67, 129, 130, 200] {
            for at in 0..length {
                for odd in [&b"\r\n."[..], b"\r\n\r\n", b"\r\n", b"\n.", b"\n\n", b"\r\r", b"\r.", b"a\n", b"\ra", b"\0", b"..", b"\n\r"] {
                    let mut bytes = vec![b'a'; length];
                    let Some(place) = bytes.get_mut(at..at + odd.len()) else { continue };
                    place.copy_from_slice(odd);
                    if bytes[0] != b'\n' {
                        assert_eq!(plain_bytes(&bytes), model(&bytes), "{} in {length} at {at}", odd.escape_ascii());
                    }
                }
            }
        }
    }
}
