//! The recipients of one message: in the order in which they were asked for, and which of them the server has.

use crate::ledger::push_address;

/// Replies come in the order of what was asked (RFC 2920 3.1, RFC 2033 4.2), so that each decides about the first that has none.
#[derive(Debug, Default)]
pub(super) struct ForwardPaths {
    /// Each with a comma behind it: those that were taken, what is left of those that were answered, and from `answered` on those that
    /// wait for a reply.
    text: Vec<u8>,
    taken: usize,
    answered: usize,
}

impl ForwardPaths {
    /// Asks for one more.
    pub(super) fn ask(&mut self, path: &[u8]) {
        push_address(path, &mut self.text);
        self.text.push(b',');
    }

    /// The next reply. One that nothing was asked for changes nothing.
    pub(super) fn answered(&mut self, taken: bool) {
        let Some(length) = memchr::memchr(b',', &self.text[self.answered..]) else { return };
        let end = self.answered + length + 1;
        if taken {
            self.text.copy_within(self.answered..end, self.taken);
            self.taken += end - self.answered;
        }
        self.answered = end;
    }

    /// Those that were taken get a reply each once more.
    pub(super) fn ask_again(&mut self) {
        self.text.truncate(self.taken);
        (self.taken, self.answered) = (0, 0);
    }

    /// Those that were taken, joined by commas.
    pub(super) fn taken(&self) -> &[u8] {
        self.text[..self.taken].strip_suffix(b",").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reply_decides_about_the_next_in_order_and_those_that_stay_can_be_asked_again() {
        let mut paths = ForwardPaths::default();
        assert_eq!(paths.taken(), b"");
        for path in [&b"a@x"[..], b"long, odd@x", b"c@x", b"d@x"] {
            paths.ask(path);
        }
        for taken in [false, true, true, false] {
            paths.answered(taken);
        }
        assert_eq!(paths.taken(), br"long\x2c\x20odd@x,c@x");
        paths.answered(true);
        assert_eq!(paths.taken(), br"long\x2c\x20odd@x,c@x", "nobody was asked for");
        paths.ask_again();
        assert_eq!(paths.taken(), b"");
        paths.answered(false);
        paths.answered(true);
        assert_eq!(paths.taken(), b"c@x");
    }
}
