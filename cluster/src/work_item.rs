//! Items of the work queue and the form in which their data lies in Valkey: compressed, bounded, signed.
//!
//! body = version · flags (1: zstd) · raw length u32 big-endian · data · HMAC-SHA256 over queue, id, owner, priority and all of that.
//!
//! Version 2 has the form of version 1, and says that the owner believes signed completions only: a worker that signs none leaves it to others.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::identity::NodeId;

/// The longest id, in bytes.
pub const ITEM_ID_BYTES_MAX: usize = 128;
/// The most data of one item, before compression.
pub const ITEM_DATA_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Data above this is compressed.
const COMPRESS_ABOVE: usize = 1024;
const HEAD_BYTES: usize = 6;
const MAC_BYTES: usize = 32;
/// Of a signature.
pub(crate) const SIGNATURE_DIGITS: usize = 2 * MAC_BYTES;
const VERSION: u8 = 2;
/// Of owners that believe every completion: workers of this version serve them, too.
const VERSION_UNSIGNED: u8 = 1;
const FLAG_ZSTD: u8 = 1;

/// Why an item cannot be sent, or is not taken.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum ItemError {
    /// An id, owner or queue name that is none.
    #[error("{0:?} is not 1 to 128 letters, digits, '.', ':', '_' and '-'")]
    Id(String),
    /// More data than items may have.
    #[error("{0} bytes are more than an item may have")]
    TooLarge(usize),
    /// Not in this form, or longer than it says.
    #[error("the item is damaged: {0}")]
    Damaged(&'static str),
    /// Of a later version of this program.
    #[error("the item has a form of a later version")]
    Newer,
    /// Signed with another key, or changed.
    #[error("the item is not signed with this cluster's key")]
    NotOurs,
}

/// Whether `text` can be an item's id or a queue's name.
pub fn is_item_id(text: &str) -> bool {
    (1..=ITEM_ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'_' | b'-'))
}

/// An item to be enqueued.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewItem {
    /// Its name: enqueued twice, it is there once.
    pub id: String,
    /// The node that holds the original and settles it.
    pub owner: NodeId,
    /// 0 first, 9 last.
    pub priority: u8,
    /// Leases that may end without an answer before it goes to the dead letters.
    pub max_attempts: u32,
    /// Not before so long from now.
    pub delay_ms: u64,
    /// Not after so long from now; 0: always.
    pub expires_in_ms: u64,
    /// The data.
    pub data: Vec<u8>,
}

/// What items are signed with.
#[derive(Clone)]
pub struct ItemKey(Hmac<Sha256>);

impl ItemKey {
    /// From the cluster's secret, of any length.
    pub fn new(secret: &[u8]) -> ItemKey {
        ItemKey(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    fn mac(&self, label: &Label<'_>, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // Lengths before texts: no two labels give the same bytes.
        for text in [label.queue, label.id, label.owner] {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac.update(&[label.priority]);
        mac.update(bytes);
        mac
    }

    /// Over some texts: no two lists give the same bytes, and none gives those of a body or of [`ItemKey::text_mac`].
    fn texts_mac(&self, texts: &[&str]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(&(u64::MAX - 1).to_be_bytes());
        for text in texts {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text.as_bytes());
        }
        mac
    }

    /// The signature of some texts: [`SIGNATURE_DIGITS`] hexadecimal digits.
    pub(crate) fn sign(&self, texts: &[&str]) -> String {
        self.texts_mac(texts).finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether these digits are that.
    pub(crate) fn has_signed(&self, texts: &[&str], digits: &str) -> bool {
        if digits.len() != SIGNATURE_DIGITS || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return false;
        }
        let mac: Vec<u8> =
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits, as just checked")).collect();
        self.texts_mac(texts).verify_slice(&mac).is_ok()
    }

    /// What only who has the key can say of a text, in hexadecimal: 64 characters. No body of an item has it, whatever is in it.
    pub fn text_mac(&self, text: &str) -> String {
        let mut mac = self.0.clone();
        // In place of a label, whose first length is far below.
        mac.update(&u64::MAX.to_be_bytes());
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Tells this key from others, and is none of its signatures: 16 hexadecimal digits, for all to see.
    pub fn mark(&self) -> String {
        let mut mark = self.sign(&["the mark of a key"]);
        mark.truncate(16);
        mark
    }

    /// The form for Valkey. Fails with [`ItemError::TooLarge`].
    pub fn seal(&self, label: &Label<'_>, data: &[u8]) -> Result<Vec<u8>, ItemError> {
        if data.len() > ITEM_DATA_BYTES_MAX {
            return Err(ItemError::TooLarge(data.len()));
        }
        let compressed = if data.len() > COMPRESS_ABOVE { zstd::bulk::compress(data, 1).ok() } else { None };
        // Content that does not shrink (it is compressed already) goes as it is.
        let compressed = compressed.filter(|compressed| compressed.len() < data.len());
        let flags = if compressed.is_some() { FLAG_ZSTD } else { 0 };
        let payload = compressed.as_deref().unwrap_or(data);
        let mut body = Vec::with_capacity(HEAD_BYTES + payload.len() + MAC_BYTES);
        body.extend([VERSION, flags]);
        body.extend(u32::try_from(data.len()).expect("checked above").to_be_bytes());
        body.extend_from_slice(payload);
        let mac = self.mac(label, &body).finalize().into_bytes();
        body.extend_from_slice(&mac);
        Ok(body)
    }

    /// The data of a body. It is checked before it is unpacked, and never becomes longer than `bytes_max`.
    pub fn open(&self, label: &Label<'_>, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, ItemError> {
        let Some(signed) = body.len().checked_sub(MAC_BYTES).filter(|signed| *signed >= HEAD_BYTES) else {
            return Err(ItemError::Damaged("it is too short"));
        };
        let (signed, mac) = body.split_at(signed);
        self.mac(label, signed).verify_slice(mac).map_err(|_| ItemError::NotOurs)?;
        let (head, payload) = signed.split_at(HEAD_BYTES);
        let raw = u32::from_be_bytes(head[2..].try_into().expect("four bytes")) as usize;
        if !matches!(head[0], VERSION_UNSIGNED | VERSION) || head[1] & !FLAG_ZSTD != 0 {
            return Err(ItemError::Newer);
        }
        if raw > bytes_max.min(ITEM_DATA_BYTES_MAX) {
            return Err(ItemError::TooLarge(raw));
        }
        let data = if head[1] & FLAG_ZSTD == 0 {
            payload.to_vec()
        } else {
            zstd::bulk::decompress(payload, raw).map_err(|_| ItemError::Damaged("it cannot be unpacked"))?
        };
        if data.len() == raw { Ok(data) } else { Err(ItemError::Damaged("its length is wrong")) }
    }
}

/// What a body is signed together with.
#[derive(Clone, Copy, Debug)]
pub struct Label<'l> {
    /// The queue's name.
    pub queue: &'l str,
    /// The item's id.
    pub id: &'l str,
    /// The owner's node id.
    pub owner: &'l str,
    /// 0 to 9.
    pub priority: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label<'_> = Label { queue: "mail", id: "A1", owner: "n1", priority: 5 };

    #[test]
    fn bodies_read_back_small_and_large() {
        let key = ItemKey::new(b"secret");
        for data in [
            Vec::new(),
            vec![7; 1024],
            vec![7; 500_000],
            (0..40_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect(),
        ] {
            let body = key.seal(&LABEL, &data).unwrap();
            assert!(body.len() <= data.len() + HEAD_BYTES + MAC_BYTES);
            assert_eq!(key.open(&LABEL, &body, 1 << 20).unwrap(), data);
        }
        assert!(key.seal(&LABEL, &[7; 500_000]).unwrap().len() < 1000);
    }

    /// An owner of before has its mail taken by workers of now; what is of a later form is nobody's.
    #[test]
    fn bodies_of_the_version_before_are_read_and_those_of_a_later_one_are_not() {
        let key = ItemKey::new(b"secret");
        let of_version = |version: u8| {
            let mut body = key.seal(&LABEL, b"data").unwrap();
            body.truncate(body.len() - MAC_BYTES);
            body[0] = version;
            let mac = key.mac(&LABEL, &body).finalize().into_bytes();
            body.extend_from_slice(&mac);
            key.open(&LABEL, &body, 1 << 20)
        };
        assert_eq!(key.seal(&LABEL, b"data").unwrap()[0], 2);
        assert_eq!([1, 2].map(of_version), [Ok(b"data".to_vec()), Ok(b"data".to_vec())]);
        assert_eq!([0, 3].map(of_version), [Err(ItemError::Newer), Err(ItemError::Newer)]);
    }

    #[test]
    fn keys_are_told_apart_by_their_marks() {
        let mark = |secret: &[u8]| ItemKey::new(secret).mark();
        assert_eq!((mark(b"a").len(), mark(b"a")), (16, mark(b"a")));
        assert_ne!(mark(b"a"), mark(b"b"));
    }

    #[test]
    fn whatever_is_changed_is_refused() {
        let key = ItemKey::new(b"secret");
        let body = key.seal(&LABEL, &[9; 5000]).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&LABEL, &changed, 1 << 20), Err(ItemError::NotOurs), "{at}");
        }
        for other in
            [Label { owner: "n2", ..LABEL }, Label { id: "A", ..LABEL }, Label { queue: "m", ..LABEL }, Label { priority: 0, ..LABEL }]
        {
            assert_eq!(key.open(&other, &body, 1 << 20), Err(ItemError::NotOurs));
        }
        assert_eq!(ItemKey::new(b"other").open(&LABEL, &body, 1 << 20), Err(ItemError::NotOurs));
        assert_eq!(key.open(&LABEL, &body, 4999), Err(ItemError::TooLarge(5000)));
        assert!(key.open(&LABEL, &body[..37], 1 << 20).is_err());
    }
}
