//! Messages whose lines are of every kind: text, 8-bit text, long lines, lines that begin with dots or are nothing else, empty lines.
//!
//! The texts of `ringpost-load` are even, so that figures can be compared. These are for rigs that look for lost and changed octets.

use ringpost_loadtest::content::{ContentKind, Item};
use ringpost_loadtest::random::Random;

/// Messages of one corpus, which are sent in turn.
const MESSAGES: usize = 64;

/// Messages from `least` to `most` octets and what `seed` decides: half of them within 1.7 times the least size of 1 KiB, where the greatest
/// has 5 MiB, one of the greatest.
pub fn corpus(least: u64, most: u64, seed: u64) -> ContentKind {
    let mut random = Random::new(seed);
    let message = |turn: usize| {
        // A stride without common factor, so that large messages are spread. The quantile to the fourth power on a logarithmic scale.
        let quantile = (turn * 29 % MESSAGES) as f64 / (MESSAGES - 1) as f64;
        let size = least as f64 * (most as f64 / least as f64).powf(quantile.powi(4));
        let mut content = b"From: sender <sender@x.test>\r\nTo: <b@y.test>\r\nSubject: odd\r\n\r\n".to_vec();
        push_lines(&mut content, size as usize, &mut random);
        Item::new(content)
    };
    ContentKind::Corpus((0..MESSAGES).map(message).collect())
}

/// Appends random lines until `content` has `bytes` octets, or somewhat more where that cuts a line.
fn push_lines(content: &mut Vec<u8>, bytes: usize, random: &mut Random) {
    while content.len() < bytes {
        let length = match random.below(32) {
            0 => 0,
            1 => random.between(100, 990),
            _ => random.between(20, 76),
        };
        let start = content.len();
        let eight_bit = random.one_in(8);
        for _ in 0..length {
            let byte = if eight_bit && random.one_in(4) { random.between(0xA1, 0xFE) } else { random.between(0x20, 0x7E) };
            content.push(byte as u8);
        }
        if length > 0 && random.one_in(12) {
            content[start] = b'.';
        }
        if length > 1 && random.one_in(40) {
            content[start..start + 2].copy_from_slice(b"..");
        }
        content.extend_from_slice(b"\r\n");
        if random.one_in(24) {
            content.extend_from_slice(b".\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_has_its_sizes_and_every_kind_of_line() {
        let ContentKind::Corpus(items) = corpus(1024, 1 << 20, 7) else { panic!("a corpus was asked for") };
        let sizes: Vec<usize> = items.iter().map(|item| item.raw.len()).collect();
        assert!(sizes.iter().all(|size| (1024..(1 << 20) + 1000).contains(size)));
        assert!(sizes.iter().any(|&size| size >= 1 << 20) && sizes.iter().filter(|&&size| size < 2200).count() > 20);
        for wanted in [&b"\r\n.\r\n"[..], b"\r\n\r\n\r\n", b"\r\n..", b"\r\n."] {
            assert!(items.iter().any(|item| memchr::memmem::find(&item.raw, wanted).is_some()), "{wanted:?}");
        }
        assert!(items.iter().any(|item| item.raw.iter().any(|&byte| byte > 0x7F)));
        assert!(items.iter().any(|item| item.raw.split(|&byte| byte == b'\n').any(|line| line.len() > 500)));
    }
}
