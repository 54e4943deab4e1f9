//! The envelope of a message: who sent it from where, to whom, with which promises.
//!
//! An [`Envelope`] *is* its persisted form: MAIL and RCPT write straight into it, [`Envelope::as_bytes`] is what the
//! spool keeps, and [`EnvelopeView`] reads it in place. Its length does not change after the last RCPT, whatever the
//! content turns out to be, so a record can be laid out before the content has come.
//!
//! Layout, version 1, little endian:
//!
//! ```text
//!  0 version u8 = 1      1 protocol u8          2 flags u16 (bit 0 SMTPUTF8, 1 header beyond ASCII, 2 body beyond ASCII)
//!  4 body u8             5 RET u8               6 MT-PRIORITY i8 (-128 none)    7 BY mode u8 (0 none, 1 R, 2 N, +128 T)
//!  8 BY seconds i32     12 hold kind u8 (0 none, 1 for, 2 until)               13 peer family u8 (4, 6)
//! 14 peer port u16      16 peer address [u8; 16] (IPv4 in the first four)      32 hold seconds i64
//! 40 declared size u64 (max none)               48 content octets u64          56 recipients u32
//! 60 length of the HELO name u8                 61 length of ENVID u8          62 length of the reverse-path u16
//! 64 HELO name, reverse-path, ENVID, then each recipient: path length u16, ORCPT length u16, NOTIFY u8, path, ORCPT
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::address::{PATH_BYTES_MAX, Path};
use crate::extension::{ByMode, ENVELOPE_ID_BYTES_MAX, Hold, MailParameters, ORIGINAL_RECIPIENT_BYTES_MAX, RecipientParameters, Return};

/// The most recipients one envelope can hold; a listener's limit is lower or equal.
pub const RECIPIENTS_MAX: usize = 10_000;
/// The most octets of one recipient's record.
pub const RECIPIENT_BYTES_MAX: usize = RECIPIENT_BYTES + PATH_BYTES_MAX + ORIGINAL_RECIPIENT_BYTES_MAX;
/// The most octets in front of the recipients.
pub const FRONT_BYTES_MAX: usize = FIXED_BYTES + HELO_BYTES_MAX + PATH_BYTES_MAX + ENVELOPE_ID_BYTES_MAX;
/// The most octets an envelope can have.
pub const ENVELOPE_BYTES_MAX: usize = FRONT_BYTES_MAX + RECIPIENTS_MAX * RECIPIENT_BYTES_MAX;

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 64;
const RECIPIENT_BYTES: usize = 5;
const HELO_BYTES_MAX: usize = 255;
/// From here on storage grows by [`STEP_BYTES`], so that a large envelope takes little more than it needs: drivers account for it.
const STEPS_FROM: usize = 2048;
/// See [`STEPS_FROM`].
const STEP_BYTES: usize = 8 * 1024;
/// Storage of at most this capacity is kept between transactions, so that ordinary mail allocates nothing.
const BYTES_KEPT: usize = 256;

mod repeats;
mod view;

use view::text_of;
pub use view::{EnvelopeView, Recipient, Recipients};

mod at {
    //! Offsets of the fixed part.
    pub(super) const PROTOCOL: usize = 1;
    pub(super) const FLAGS: usize = 2;
    pub(super) const BODY: usize = 4;
    pub(super) const RET: usize = 5;
    pub(super) const PRIORITY: usize = 6;
    pub(super) const BY_MODE: usize = 7;
    pub(super) const BY_SECONDS: usize = 8;
    pub(super) const HOLD_KIND: usize = 12;
    pub(super) const PEER_FAMILY: usize = 13;
    pub(super) const PEER_PORT: usize = 14;
    pub(super) const PEER_ADDRESS: usize = 16;
    pub(super) const HOLD_SECONDS: usize = 32;
    pub(super) const DECLARED_SIZE: usize = 40;
    pub(super) const CONTENT_BYTES: usize = 48;
    pub(super) const RECIPIENTS: usize = 56;
    pub(super) const HELO_LENGTH: usize = 60;
    pub(super) const ENVELOPE_ID_LENGTH: usize = 61;
    pub(super) const REVERSE_LENGTH: usize = 62;
}

const FLAG_SMTPUTF8: u16 = 1;
const FLAG_EIGHT_BIT_HEADER: u16 = 2;
const FLAG_EIGHT_BIT_BODY: u16 = 4;
const FLAGS_KNOWN: u16 = FLAG_SMTPUTF8 | FLAG_EIGHT_BIT_HEADER | FLAG_EIGHT_BIT_BODY;
const BY_TRACE: u8 = 128;

/// How the peer greeted. With TLS and AUTH come their own (RFC 3848).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HELO.
    Smtp,
    /// EHLO.
    Esmtp,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The TCP peer: the one thing a trusted network is judged by.
    pub peer: SocketAddr,
    /// How it greeted.
    pub protocol: Protocol,
    /// The name it greeted with: printable ASCII, at most 255 octets, otherwise anything.
    pub helo: &'a str,
}

/// What was found out about the content while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContentFacts {
    /// Octets, without dot-stuffing and without what a relay adds in front.
    pub bytes: u64,
    /// The header has octets beyond ASCII: the next hop needs SMTPUTF8 (RFC 6531), or lenience.
    pub eight_bit_header: bool,
    /// The body has octets beyond ASCII: the next hop needs 8BITMIME (RFC 6152), whatever BODY said.
    pub eight_bit_body: bool,
}

/// Why bytes are no envelope: damage, or a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The version isn't known here.
    #[error("envelope of unknown version {0}")]
    Version(u8),
    /// The bytes contradict themselves.
    #[error("damaged envelope")]
    Damaged,
    /// A text is longer than its limit, or there are too many recipients.
    #[error("the envelope is full")]
    Full,
}

/// An envelope under construction, stored as it will be persisted.
#[derive(Debug, Default)]
pub struct Envelope {
    bytes: Vec<u8>,
    /// Where the last recipient's record begins.
    last_recipient: usize,
}

impl Envelope {
    /// An empty envelope that holds no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// A whole envelope in one go, for messages that no peer sent. Paths are canonical text.
    pub fn build<'r>(
        origin: &Origin<'_>,
        reverse_path: &str,
        parameters: &MailParameters<'_>,
        recipients: impl IntoIterator<Item = (&'r str, RecipientParameters<'r>)>,
    ) -> Result<Self, EnvelopeError> {
        let mut envelope = Self::new();
        envelope.begin(origin, |out| text(reverse_path, out))?;
        envelope.set_parameters(parameters);
        for (path, parameters) in recipients {
            if envelope.recipient_count() == RECIPIENTS_MAX {
                return Err(EnvelopeError::Full);
            }
            envelope.push_recipient(|out| text(path, out))?;
            envelope.set_recipient_parameters(&parameters);
        }
        Ok(envelope)
    }

    /// Whether there is no reverse-path yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The persisted form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads what was written so far. Only valid when not [empty](Self::is_empty).
    pub fn view(&self) -> EnvelopeView<'_> {
        EnvelopeView { bytes: &self.bytes }
    }

    /// How many recipients were taken.
    pub fn recipient_count(&self) -> usize {
        if self.is_empty() { 0 } else { self.view().recipient_count() }
    }

    /// Octets of heap held.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Forgets everything; gives the memory back if it was much.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.last_recipient = 0;
        if self.bytes.capacity() > BYTES_KEPT {
            self.bytes = Vec::new();
        }
    }

    /// Starts a transaction. `reverse_path` appends canonical text, at most [`PATH_BYTES_MAX`] octets; when it fails the
    /// envelope stays empty.
    pub(crate) fn begin<T, E>(&mut self, origin: &Origin<'_>, reverse_path: impl FnOnce(&mut Vec<u8>) -> Result<T, E>) -> Result<T, E> {
        self.clear();
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(BYTES_KEPT);
        }
        self.bytes.resize(FIXED_BYTES, 0);
        self.bytes[0] = VERSION;
        self.bytes[at::PROTOCOL] = origin.protocol as u8;
        self.bytes[at::PRIORITY] = i8::MIN.cast_unsigned();
        self.set_peer(origin.peer);
        self.put(at::DECLARED_SIZE, &u64::MAX.to_le_bytes());
        let helo = &origin.helo.as_bytes()[..origin.helo.len().min(HELO_BYTES_MAX)];
        self.bytes[at::HELO_LENGTH] = u8::try_from(helo.len()).expect("cut to 255 octets");
        self.bytes.extend_from_slice(helo);
        let start = self.bytes.len();
        match reverse_path(&mut self.bytes) {
            Ok(result) => {
                let length = length_of(self.bytes.len() - start, PATH_BYTES_MAX);
                self.put(at::REVERSE_LENGTH, &length);
                Ok(result)
            }
            Err(error) => {
                self.clear();
                Err(error)
            }
        }
    }

    /// Notes the parameters of MAIL, once, before the first recipient.
    pub(crate) fn set_parameters(&mut self, parameters: &MailParameters<'_>) {
        assert_eq!(self.last_recipient, 0, "parameters of MAIL come before the first recipient");
        let flags = self.view().flags() | if parameters.smtputf8 { FLAG_SMTPUTF8 } else { 0 };
        self.put(at::FLAGS, &flags.to_le_bytes());
        self.bytes[at::BODY] = parameters.body as u8;
        self.bytes[at::RET] = match parameters.ret {
            None => 0,
            Some(Return::Full) => 1,
            Some(Return::Headers) => 2,
        };
        self.bytes[at::PRIORITY] = parameters.priority.unwrap_or(i8::MIN).cast_unsigned();
        if let Some(by) = parameters.deliver_by {
            self.bytes[at::BY_MODE] = if by.mode == ByMode::Return { 1 } else { 2 } | if by.trace { BY_TRACE } else { 0 };
            self.put(at::BY_SECONDS, &by.seconds.to_le_bytes());
        }
        let (kind, seconds) = match parameters.hold {
            None => (0, 0),
            Some(Hold::For(seconds)) => (1, i64::from(seconds)),
            Some(Hold::Until(seconds)) => (2, seconds),
        };
        self.bytes[at::HOLD_KIND] = kind;
        self.put(at::HOLD_SECONDS, &seconds.to_le_bytes());
        self.put(at::DECLARED_SIZE, &parameters.size.unwrap_or(u64::MAX).to_le_bytes());
        if let Some(id) = parameters.envelope_id {
            self.bytes[at::ENVELOPE_ID_LENGTH] = u8::try_from(id.len()).expect("the parser checked the length of ENVID");
            self.bytes.extend_from_slice(id);
        }
    }

    /// Adds a recipient. `path` appends canonical text, at most [`PATH_BYTES_MAX`] octets; when it fails nothing is added.
    pub(crate) fn push_recipient<T, E>(&mut self, path: impl FnOnce(&mut Vec<u8>) -> Result<T, E>) -> Result<T, E> {
        let record = self.bytes.len();
        if record >= STEPS_FROM && self.bytes.capacity() - record < RECIPIENT_BYTES_MAX {
            self.bytes.reserve_exact(STEP_BYTES);
        }
        self.bytes.extend_from_slice(&[0; RECIPIENT_BYTES]);
        match path(&mut self.bytes) {
            Ok(result) => {
                let length = length_of(self.bytes.len() - record - RECIPIENT_BYTES, PATH_BYTES_MAX);
                self.put(record, &length);
                self.last_recipient = record;
                self.set_count(self.recipient_count() + 1);
                Ok(result)
            }
            Err(error) => {
                self.bytes.truncate(record);
                Err(error)
            }
        }
    }

    /// Notes the parameters of RCPT for the recipient added last, once.
    pub(crate) fn set_recipient_parameters(&mut self, parameters: &RecipientParameters<'_>) {
        let record = self.last_recipient;
        self.bytes[record + 4] = parameters.notify.bits();
        if let Some(original) = parameters.original_recipient {
            self.put(record + 2, &length_of(original.len(), ORIGINAL_RECIPIENT_BYTES_MAX));
            self.bytes.extend_from_slice(original);
        }
    }

    /// The path of the recipient added last.
    pub(crate) fn last_recipient(&self) -> Path<'_> {
        let record = self.last_recipient;
        let length = u16_at(&self.bytes, record) as usize;
        Path::new(text_of(&self.bytes[record + RECIPIENT_BYTES..][..length]))
    }

    /// Takes the recipient added last back: it was refused.
    pub(crate) fn pop_recipient(&mut self) {
        self.set_count(self.recipient_count() - 1);
        self.bytes.truncate(self.last_recipient);
    }

    /// Notes what the content turned out to be. The length of the envelope stays.
    pub fn set_content(&mut self, facts: &ContentFacts) {
        let seen =
            if facts.eight_bit_header { FLAG_EIGHT_BIT_HEADER } else { 0 } | if facts.eight_bit_body { FLAG_EIGHT_BIT_BODY } else { 0 };
        let flags = self.view().flags() & FLAG_SMTPUTF8 | seen;
        self.put(at::FLAGS, &flags.to_le_bytes());
        self.put(at::CONTENT_BYTES, &facts.bytes.to_le_bytes());
    }

    fn set_peer(&mut self, peer: SocketAddr) {
        match peer.ip() {
            IpAddr::V4(address) => {
                self.bytes[at::PEER_FAMILY] = 4;
                self.put(at::PEER_ADDRESS, &address.octets());
            }
            IpAddr::V6(address) => {
                self.bytes[at::PEER_FAMILY] = 6;
                self.put(at::PEER_ADDRESS, &address.octets());
            }
        }
        self.put(at::PEER_PORT, &peer.port().to_le_bytes());
    }

    fn set_count(&mut self, count: usize) {
        assert!(count <= RECIPIENTS_MAX, "the limit is checked before a recipient is added");
        let count = u32::try_from(count).expect("at most RECIPIENTS_MAX");
        self.put(at::RECIPIENTS, &count.to_le_bytes());
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

fn text(path: &str, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
    out.extend_from_slice(path.as_bytes());
    if path.len() <= PATH_BYTES_MAX { Ok(()) } else { Err(EnvelopeError::Full) }
}

fn length_of(bytes: usize, bytes_max: usize) -> [u8; 2] {
    assert!(bytes <= bytes_max, "the parser checked the length");
    u16::try_from(bytes).expect("every limit fits in 16 bits").to_le_bytes()
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}
