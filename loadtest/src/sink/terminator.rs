//! The end of content after DATA: CRLF, dot, CRLF, wherever the pieces are cut.

use std::sync::LazyLock;

use memchr::memmem::Finder;

const END: &[u8; 5] = b"\r\n.\r\n";
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(END));

/// Looks for the end and passes on what is content.
#[derive(Debug, Clone)]
pub struct Terminator {
    /// Octets of the end that the content so far ends with. From the third on they have not been passed on.
    matched: usize,
}

impl Terminator {
    /// At the beginning of a content, where a lone dot line ends it, too.
    pub fn new() -> Terminator {
        Terminator { matched: 2 }
    }

    /// Passes on the content among the next octets; `Some`: the content has ended, and so many octets belonged to it or its end.
    pub fn feed(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> Option<usize> {
        let mut at = 0;
        while self.matched > 0 && at < bytes.len() {
            if bytes[at] == END[self.matched] {
                if self.matched < 2 {
                    content(&bytes[at..=at]);
                }
                self.matched += 1;
                at += 1;
                if self.matched == END.len() {
                    return Some(at);
                }
            } else {
                if self.matched > 2 {
                    content(&END[2..self.matched]);
                }
                self.matched = 0;
            }
        }
        let rest = &bytes[at..];
        if let Some(found) = FINDER.find(rest) {
            content(&rest[..found + 2]);
            return Some(at + found + END.len());
        }
        if !rest.is_empty() {
            self.matched = (1..END.len()).rev().find(|&length| rest.ends_with(&END[..length])).unwrap_or(0);
            let held = self.matched.saturating_sub(2);
            content(&rest[..rest.len() - held]);
        }
        None
    }
}

impl Default for Terminator {
    fn default() -> Terminator {
        Terminator::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// What it should do, byte by byte.
    fn model(bytes: &[u8]) -> (Vec<u8>, Option<usize>) {
        let whole = [b"\r\n", bytes].concat();
        match (0..whole.len()).find(|&at| whole[at..].starts_with(END)) {
            Some(at) => (whole[2..at + 2].to_vec(), Some(at + END.len() - 2)),
            None => (bytes.to_vec(), None),
        }
    }

    #[test]
    fn it_agrees_with_the_model_wherever_pieces_are_cut() {
        let mut random = Random::new(11);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.below(24)).map(|_| b"\r\n.x"[random.below(4) as usize]).collect();
            let (wanted, end) = model(&bytes);
            let (mut terminator, mut got, mut at, mut ended) = (Terminator::new(), Vec::new(), 0, None);
            while at < bytes.len() && ended.is_none() {
                let piece = &bytes[at..bytes.len().min(at + 1 + random.below(6) as usize)];
                ended = terminator.feed(piece, |content| got.extend_from_slice(content)).map(|consumed| at + consumed);
                at += piece.len();
            }
            assert_eq!(ended, end, "{:?}", String::from_utf8_lossy(&bytes));
            if end.is_some() {
                assert_eq!(got, wanted);
            } else {
                // What may yet be an end is held back.
                assert!(wanted.starts_with(&got) && wanted.len() - got.len() <= 2);
            }
        }
    }
}
