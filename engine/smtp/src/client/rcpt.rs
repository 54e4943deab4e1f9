//! What RCPT says beside the address.

use crate::extension::Notify;

/// A recipient of a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rcpt<'a> {
    /// The forward-path, without brackets.
    pub path: &'a [u8],
    /// NOTIFY, to a server that offers DSN (RFC 3461 5.2.1).
    pub notify: Notify,
    /// ORCPT as it came, `type;xtext`.
    pub original: Option<&'a str>,
}

impl<'a> From<&'a [u8]> for Rcpt<'a> {
    fn from(path: &'a [u8]) -> Self {
        Rcpt { path, ..Rcpt::default() }
    }
}

/// The parameters of a transaction's recipients as they are sent, each with a blank in front. Empty, it costs nothing.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    text: Vec<u8>,
    /// End of each recipient's; shorter than their number when the rest has none.
    ends: Vec<u32>,
    recipients: usize,
}

impl Parameters {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.recipients = 0;
    }

    /// Takes in those of the next recipient.
    pub(super) fn push(&mut self, recipient: &Rcpt<'_>) {
        self.recipients += 1;
        if recipient.notify == Notify::UNSAID && recipient.original.is_none() {
            return;
        }
        self.ends.resize(self.recipients - 1, self.text.len() as u32);
        if recipient.notify != Notify::UNSAID {
            self.text.extend_from_slice(b" NOTIFY=");
            for (condition, word) in [
                (Notify::NEVER, &b"NEVER,"[..]),
                (Notify::SUCCESS, b"SUCCESS,"),
                (Notify::FAILURE, b"FAILURE,"),
                (Notify::DELAY, b"DELAY,"),
            ] {
                if recipient.notify.has(condition) {
                    self.text.extend_from_slice(word);
                }
            }
            self.text.pop();
        }
        if let Some(original) = recipient.original {
            self.text.extend_from_slice(b" ORCPT=");
            self.text.extend_from_slice(original.as_bytes());
        }
        self.ends.push(u32::try_from(self.text.len()).expect("a transaction's addresses are below 4 GiB"));
    }

    /// Those of one recipient.
    pub(super) fn of(&self, recipient: u16) -> &[u8] {
        let recipient = usize::from(recipient);
        let Some(&end) = self.ends.get(recipient) else { return &[] };
        let start = recipient.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start as usize..end as usize]
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_gets_its_own_parameters() {
        let mut parameters = Parameters::default();
        let plain = Rcpt::from(&b"a@y.test"[..]);
        let both = Notify::from_bits(Notify::SUCCESS.bits() | Notify::DELAY.bits()).unwrap();
        for recipient in [
            plain,
            Rcpt { notify: both, ..plain },
            plain,
            plain,
            Rcpt { original: Some("rfc822;a+2Bb@y.test"), ..plain },
            Rcpt { notify: Notify::NEVER, original: Some("rfc822;c@y.test"), ..plain },
            plain,
        ] {
            parameters.push(&recipient);
        }
        let all: Vec<_> = (0..8).map(|recipient| String::from_utf8_lossy(parameters.of(recipient)).into_owned()).collect();
        let expected = ["", " NOTIFY=SUCCESS,DELAY", "", "", " ORCPT=rfc822;a+2Bb@y.test", " NOTIFY=NEVER ORCPT=rfc822;c@y.test", "", ""];
        assert_eq!(all, expected);
        parameters.clear();
        assert_eq!(parameters.of(1), b"");
    }
}
