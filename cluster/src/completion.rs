//! What a worker says of an item that it has taken over, signed with the cluster's key: on this word, and on no other, an owner gives up
//! its original.
//!
//! ```text
//! record = token · LF · owner · LF · word          word = result · ' ' · HMAC-SHA256 in hexadecimal
//! ```
//! Signed are queue, id, token and result. An id is one message's of one owner (that of mail names node, spool and message), and a token
//! is one lease's: what was signed for one lease of one item is none for another.

use crate::work_item::{ItemKey, SIGNATURE_DIGITS};

/// What is cut off a result to make room for its signature, in bytes: a space and the digits.
pub(crate) const SIGNATURE_BYTES: usize = 1 + SIGNATURE_DIGITS;
/// No record that a worker writes is longer: what is left of one by then is enough to know that it is none.
pub(crate) const RECORD_BYTES_MAX: usize = 1024;

/// One lease of one item, which came to an end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion<'c> {
    /// The queue's name.
    pub queue: &'c str,
    /// The item's id.
    pub id: &'c str,
    /// The lease's.
    pub token: &'c str,
}

impl Completion<'_> {
    /// The word about it: the result, signed.
    pub fn word(&self, key: &ItemKey, result: &str) -> String {
        format!("{result} {}", key.sign(&[self.queue, self.id, self.token, result]))
    }

    /// The result of a word that was signed with this key for exactly this.
    pub fn result<'w>(&self, key: &ItemKey, word: &'w str) -> Option<&'w str> {
        let (result, digits) = word.rsplit_once(' ')?;
        key.has_signed(&[self.queue, self.id, self.token, result], digits).then_some(result)
    }
}

/// The result of an item's record as it lies in the queue; `None` for one that nobody with the key has written.
pub(crate) fn result_of<'r>(key: &ItemKey, queue: &str, id: &str, record: &'r [u8]) -> Option<&'r str> {
    let mut lines = str::from_utf8(record).ok()?.splitn(3, '\n');
    let (token, _owner, word) = (lines.next()?, lines.next()?, lines.next()?);
    Completion { queue, id, token }.result(key, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Completion<'_> = Completion { queue: "mail", id: "n1:A1", token: "00ff:1" };

    #[test]
    fn a_word_is_believed_for_its_own_lease_alone() {
        let key = ItemKey::new(b"secret");
        let word = LEASE.word(&key, "n2 0001");
        assert_eq!(word.len(), "n2 0001".len() + SIGNATURE_BYTES);
        assert_eq!(LEASE.result(&key, &word), Some("n2 0001"));
        for other in [
            Completion { queue: "m", ..LEASE },
            Completion { id: "n1:A2", ..LEASE },
            Completion { token: "00ff:2", ..LEASE },
            // The same bytes, divided otherwise.
            Completion { id: "n1:A100ff:", token: "1", ..LEASE },
        ] {
            assert_eq!(other.result(&key, &word), None, "{other:?}");
        }
        assert_eq!(LEASE.result(&ItemKey::new(b"other"), &word), None);
        let (result, digits) = word.rsplit_once(' ').unwrap();
        for changed in [format!("n3 0001 {digits}"), format!("{result} {}", digits.to_uppercase()), result.to_owned(), String::new()] {
            assert_eq!(LEASE.result(&key, &changed), None, "{changed}");
        }
        // What another kind of text was signed with is no signature here.
        let config = format!("{result} {}", key.text_mac("mailn1:A100ff:1n2 0001"));
        assert_eq!(LEASE.result(&key, &config), None);
    }

    #[test]
    fn a_record_without_its_signature_or_its_parts_is_none() {
        let key = ItemKey::new(b"secret");
        let word = LEASE.word(&key, "n2 0001");
        let read = |record: &str| result_of(&key, "mail", "n1:A1", record.as_bytes()).map(str::to_owned);
        assert_eq!(read(&format!("00ff:1\nn1\n{word}")).as_deref(), Some("n2 0001"));
        for forged in ["00ff:1\nn1\nn2 0001".to_owned(), format!("00ff:2\nn1\n{word}"), format!("00ff:1\n{word}"), word, "\n\n".to_owned()]
        {
            assert_eq!(read(&forged), None, "{forged:?}");
        }
        assert_eq!(result_of(&key, "mail", "n1:A1", b"\xff\n\n\xff"), None);
    }
}
