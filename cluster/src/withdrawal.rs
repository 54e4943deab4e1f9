//! What an owner says of an item that it has taken back, signed with the cluster's key: on this word a worker whose completion may have been
//! heard drops its copy.
//!
//! ```text
//! record = LF · owner · LF · word      word = "withdrawn " · enqueued at · ' ' · HMAC-SHA256 in hexadecimal, or "ended"
//! ```
//! Signed are queue, id and the moment at which the item was enqueued, which a lease's token says as well: an item that was offered again has
//! another, so that what was said before of an earlier offer says nothing of this one. The queue writes the record without the signature, and
//! the owner signs it as soon as it reads it.

use crate::work_item::ItemKey;

/// How such a word begins.
const WITHDRAWN: &str = "withdrawn";
/// Of what was no lease's: no item was enqueued then.
const NO_MOMENT: &str = "0";

/// An item that was taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Withdrawal<'w> {
    /// The queue's name.
    pub queue: &'w str,
    /// The item's id.
    pub id: &'w str,
}

impl<'w> Withdrawal<'w> {
    /// The owner's signed record in place of one that says nothing, or is not signed yet.
    pub fn sign(&self, key: &ItemKey, owner: &str, record: &[u8]) -> String {
        let enqueued_at = word_of(record).and_then(moment_of).map(|(at, _)| at).filter(|at| is_moment(at)).unwrap_or(NO_MOMENT);
        format!("\n{owner}\n{WITHDRAWN} {enqueued_at} {}", key.sign(&self.texts(enqueued_at)))
    }

    /// When the item was enqueued that was taken back, by a record that somebody with this key has signed.
    pub fn signed_moment<'r>(&self, key: &ItemKey, record: &'r [u8]) -> Option<&'r str> {
        let (at, digits) = word_of(record).and_then(moment_of)?;
        key.has_signed(&self.texts(at), digits).then_some(at)
    }

    /// One more than a completion has: neither is the other.
    fn texts<'t>(&self, enqueued_at: &'t str) -> [&'t str; 5]
    where
        'w: 't,
    {
        ["owner", WITHDRAWN, self.queue, self.id, enqueued_at]
    }
}

/// Whether it says that an item came to its end before the queue went back in time. That is not signed: it costs nobody a copy.
pub(crate) fn is_ended(record: &[u8]) -> bool {
    word_of(record) == Some("ended")
}

/// What is behind the owner, in a record that its owner has left.
fn word_of(record: &[u8]) -> Option<&str> {
    str::from_utf8(record).ok()?.strip_prefix('\n')?.split_once('\n').map(|(_, word)| word)
}

/// The moment and the signature, which may not be there yet.
fn moment_of(word: &str) -> Option<(&str, &str)> {
    let rest = word.strip_prefix(WITHDRAWN)?.strip_prefix(' ')?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

fn is_moment(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: Withdrawal<'_> = Withdrawal { queue: "mail", id: "n1:A1" };

    #[test]
    fn an_owners_word_holds_for_one_offer_of_one_item() {
        let key = ItemKey::new(b"secret");
        let record = ITEM.sign(&key, "n1", b"\nn1\nwithdrawn 1700000000123");
        assert_eq!(ITEM.signed_moment(&key, record.as_bytes()), Some("1700000000123"));
        assert_eq!(ITEM.signed_moment(&ItemKey::new(b"other"), record.as_bytes()), None);
        assert_eq!(Withdrawal { id: "n1:A2", ..ITEM }.signed_moment(&key, record.as_bytes()), None);
        assert_eq!(Withdrawal { queue: "m", ..ITEM }.signed_moment(&key, record.as_bytes()), None);
        let changed = record.replace("1700000000123", "1700000000124");
        assert_eq!(ITEM.signed_moment(&key, changed.as_bytes()), None);
        // Signed again it is the same.
        assert_eq!(ITEM.sign(&key, "n1", record.as_bytes()), record);
    }

    #[test]
    fn what_is_no_record_of_a_withdrawal_is_signed_for_no_offer() {
        let key = ItemKey::new(b"secret");
        for record in [&b"\nn1\nwithdrawn"[..], b"t:1:1700000000123\nn1\nn2 0001", b"\nn1\nended", b"", b"\xff", b"\nn1\nwithdrawn x"] {
            assert_eq!(ITEM.signed_moment(&key, record), None);
            let signed = ITEM.sign(&key, "n1", record);
            assert_eq!(ITEM.signed_moment(&key, signed.as_bytes()), Some("0"), "{signed:?}");
        }
        assert!(is_ended(b"\nn1\nended") && !is_ended(b"\nn1\nwithdrawn 7") && !is_ended(b"t\nn1\nended"));
    }
}
