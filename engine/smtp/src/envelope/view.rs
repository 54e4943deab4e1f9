//! An envelope read in place, after it was checked.

use std::net::{IpAddr, SocketAddr};

use super::{
    BY_TRACE, ContentFacts, ENVELOPE_BYTES_MAX, EnvelopeError, FIXED_BYTES, FLAG_EIGHT_BIT_BODY, FLAG_EIGHT_BIT_HEADER, FLAG_SMTPUTF8,
    FLAGS_KNOWN, Protocol, RECIPIENT_BYTES, RECIPIENTS_MAX, VERSION, at, u16_at,
};
use crate::address::{PATH_BYTES_MAX, Path};
use crate::extension::{Body, ByMode, DeliverBy, ENVELOPE_ID_BYTES_MAX, Hold, Notify, ORIGINAL_RECIPIENT_BYTES_MAX, Return};

/// An envelope read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopeView<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> EnvelopeView<'a> {
    /// Checks that `bytes` are one whole envelope of a known version: every length, every enumeration, UTF-8, no control
    /// characters in a text. No content can make the accessors panic afterwards.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) => return Err(EnvelopeError::Version(version)),
            None => return Err(EnvelopeError::Damaged),
        }
        if !(FIXED_BYTES..=ENVELOPE_BYTES_MAX).contains(&bytes.len()) {
            return Err(EnvelopeError::Damaged);
        }
        let view = Self { bytes };
        let codes_known = bytes[at::PROTOCOL] <= 1
            && view.flags() & !FLAGS_KNOWN == 0
            && bytes[at::BODY] <= 2
            && bytes[at::RET] <= 2
            && bytes[at::BY_MODE] & !BY_TRACE <= 2
            && bytes[at::BY_MODE] != BY_TRACE
            && bytes[at::HOLD_KIND] <= 2
            && matches!(bytes[at::PEER_FAMILY], 4 | 6);
        let front = bytes.get(FIXED_BYTES..view.recipients_at()).ok_or(EnvelopeError::Damaged)?;
        let lengths_allowed = view.reverse_length() <= PATH_BYTES_MAX
            && bytes[at::ENVELOPE_ID_LENGTH] as usize <= ENVELOPE_ID_BYTES_MAX
            && view.recipient_count() <= RECIPIENTS_MAX;
        // Each text by itself, or a cut within a character would pass.
        let (helo, rest) = front.split_at(bytes[at::HELO_LENGTH] as usize);
        let (reverse, id) = rest.split_at(view.reverse_length());
        if !(codes_known && lengths_allowed && is_text(helo) && is_text(reverse) && is_text(id)) {
            return Err(EnvelopeError::Damaged);
        }
        let mut rest = &bytes[view.recipients_at()..];
        for _ in 0..view.recipient_count() {
            rest = check_recipient(rest).ok_or(EnvelopeError::Damaged)?;
        }
        if rest.is_empty() { Ok(view) } else { Err(EnvelopeError::Damaged) }
    }

    /// The persisted form.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The persisted form of the same envelope with those recipients alone whose position `keeps` says yes to.
    pub fn with_recipients(&self, keeps: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.bytes[..self.recipients_at()].to_vec();
        let (mut rest, mut count) = (&self.bytes[self.recipients_at()..], 0_u32);
        for position in 0..self.recipient_count() {
            let behind = check_recipient(rest).expect("checked when the envelope was decoded");
            if keeps(position) {
                bytes.extend_from_slice(&rest[..rest.len() - behind.len()]);
                count += 1;
            }
            rest = behind;
        }
        bytes[at::RECIPIENTS..at::RECIPIENTS + 4].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    /// The TCP peer the message came from.
    pub fn peer(&self) -> SocketAddr {
        let octets: [u8; 16] = self.array(at::PEER_ADDRESS);
        let address = match self.bytes[at::PEER_FAMILY] {
            4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => IpAddr::from(octets),
        };
        SocketAddr::new(address, u16_at(self.bytes, at::PEER_PORT))
    }

    /// How the peer greeted.
    pub fn protocol(&self) -> Protocol {
        if self.bytes[at::PROTOCOL] == Protocol::Smtp as u8 { Protocol::Smtp } else { Protocol::Esmtp }
    }

    /// The name the peer greeted with: printable ASCII, unverified. [`crate::header`] sanitises it.
    pub fn helo(&self) -> &'a str {
        text_of(&self.bytes[FIXED_BYTES..FIXED_BYTES + self.bytes[at::HELO_LENGTH] as usize])
    }

    /// The reverse-path; null for reports.
    pub fn reverse_path(&self) -> Path<'a> {
        let start = FIXED_BYTES + self.bytes[at::HELO_LENGTH] as usize;
        Path::new(text_of(&self.bytes[start..start + self.reverse_length()]))
    }

    /// How many recipients there are.
    pub fn recipient_count(&self) -> usize {
        u32::from_le_bytes(self.array(at::RECIPIENTS)) as usize
    }

    /// The recipients in the order of their RCPT; that position is their name in outcomes.
    pub fn recipients(&self) -> Recipients<'a> {
        Recipients { rest: &self.bytes[self.recipients_at()..] }
    }

    /// BODY as it was declared. The content may know better: [`ContentFacts::eight_bit_body`].
    pub fn body(&self) -> Body {
        match self.bytes[at::BODY] {
            0 => Body::SevenBit,
            1 => Body::EightBitMime,
            _ => Body::BinaryMime,
        }
    }

    /// MAIL had SMTPUTF8: the next hop needs it too.
    pub fn smtputf8(&self) -> bool {
        self.flags() & FLAG_SMTPUTF8 != 0
    }

    /// What was found out about the content; zero until it was read to its end.
    pub fn content(&self) -> ContentFacts {
        let flags = self.flags();
        ContentFacts {
            bytes: u64::from_le_bytes(self.array(at::CONTENT_BYTES)),
            eight_bit_header: flags & FLAG_EIGHT_BIT_HEADER != 0,
            eight_bit_body: flags & FLAG_EIGHT_BIT_BODY != 0,
        }
    }

    /// SIZE as it was declared, in octets.
    pub fn declared_size(&self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array(at::DECLARED_SIZE))).filter(|&size| size != u64::MAX)
    }

    /// RET.
    pub fn ret(&self) -> Option<Return> {
        match self.bytes[at::RET] {
            0 => None,
            1 => Some(Return::Full),
            _ => Some(Return::Headers),
        }
    }

    /// ENVID, still xtext.
    pub fn envelope_id(&self) -> Option<&'a str> {
        let length = self.bytes[at::ENVELOPE_ID_LENGTH] as usize;
        (length > 0).then(|| text_of(&self.bytes[self.recipients_at() - length..self.recipients_at()]))
    }

    /// MT-PRIORITY.
    pub fn priority(&self) -> Option<i8> {
        Some(self.bytes[at::PRIORITY].cast_signed()).filter(|&priority| priority != i8::MIN)
    }

    /// BY, counted from the acceptance.
    pub fn deliver_by(&self) -> Option<DeliverBy> {
        let mode = self.bytes[at::BY_MODE];
        (mode != 0).then(|| DeliverBy {
            seconds: i32::from_le_bytes(self.array(at::BY_SECONDS)),
            mode: if mode & !BY_TRACE == 1 { ByMode::Return } else { ByMode::Notify },
            trace: mode & BY_TRACE != 0,
        })
    }

    /// HOLDFOR or HOLDUNTIL.
    pub fn hold(&self) -> Option<Hold> {
        let seconds = i64::from_le_bytes(self.array(at::HOLD_SECONDS));
        match self.bytes[at::HOLD_KIND] {
            0 => None,
            1 => Some(Hold::For(u32::try_from(seconds).unwrap_or(u32::MAX))),
            _ => Some(Hold::Until(seconds)),
        }
    }

    /// Whether there is more to pass on than addresses, size and SMTPUTF8: BODY=BINARYMIME, RET, ENVID, MT-PRIORITY, BY, NOTIFY or ORCPT.
    pub fn is_extended(&self) -> bool {
        let asks = self.bytes[at::RET] != 0
            || self.bytes[at::ENVELOPE_ID_LENGTH] != 0
            || self.bytes[at::BY_MODE] != 0
            || self.priority().is_some()
            || self.body() == Body::BinaryMime;
        asks || self.recipients().any(|recipient| recipient.notify != Notify::UNSAID || recipient.original.is_some())
    }

    pub(super) fn flags(&self) -> u16 {
        u16_at(self.bytes, at::FLAGS)
    }

    fn reverse_length(&self) -> usize {
        u16_at(self.bytes, at::REVERSE_LENGTH) as usize
    }

    pub(super) fn recipients_at(&self) -> usize {
        FIXED_BYTES + self.bytes[at::HELO_LENGTH] as usize + self.reverse_length() + self.bytes[at::ENVELOPE_ID_LENGTH] as usize
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes[offset..offset + N].try_into().expect("the slice has this length")
    }
}

/// One recipient of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// The forward-path.
    pub path: Path<'a>,
    /// NOTIFY.
    pub notify: Notify,
    /// ORCPT, `type;xtext`.
    pub original: Option<&'a str>,
}

/// The recipients of an envelope, in order.
#[derive(Debug, Clone)]
pub struct Recipients<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Recipients<'a> {
    type Item = Recipient<'a>;

    fn next(&mut self) -> Option<Recipient<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (path, original) = (u16_at(self.rest, 0) as usize, u16_at(self.rest, 2) as usize);
        let notify = Notify::from_bits(self.rest[4]).expect("checked when the envelope was decoded");
        let (texts, rest) = self.rest[RECIPIENT_BYTES..].split_at(path + original);
        self.rest = rest;
        let original = (original > 0).then(|| text_of(&texts[path..]));
        Some(Recipient { path: Path::new(text_of(&texts[..path])), notify, original })
    }
}

/// Checks the record in front and gives back what follows it.
fn check_recipient(bytes: &[u8]) -> Option<&[u8]> {
    let head = bytes.get(..RECIPIENT_BYTES)?;
    let (path, original) = (u16_at(head, 0) as usize, u16_at(head, 2) as usize);
    Notify::from_bits(head[4])?;
    let texts = bytes.get(RECIPIENT_BYTES..RECIPIENT_BYTES + path + original)?;
    let fits = (1..=PATH_BYTES_MAX).contains(&path) && original <= ORIGINAL_RECIPIENT_BYTES_MAX;
    (fits && is_text(&texts[..path]) && is_text(&texts[path..])).then(|| &bytes[RECIPIENT_BYTES + path + original..])
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(u8::is_ascii_control) && std::str::from_utf8(bytes).is_ok()
}

pub(super) fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("checked when it was parsed or decoded")
}

#[cfg(test)]
mod tests {
    use crate::envelope::{Envelope, EnvelopeView, Origin, Protocol};
    use crate::extension::{MailParameters, Notify, RecipientParameters};

    #[test]
    fn an_envelope_with_some_of_its_recipients_is_one_and_says_the_same_of_them() {
        let origin = Origin { peer: "192.0.2.1:25".parse().unwrap(), protocol: Protocol::Esmtp, helo: "mx.test" };
        let told = RecipientParameters { notify: Notify::NEVER, original_recipient: Some(b"rfc822;c@x.test") };
        let recipients = [("b@y.test", RecipientParameters::default()), ("c@y.test", told), ("d@y.test", RecipientParameters::default())];
        let envelope = Envelope::build(&origin, "a@x.test", &MailParameters::default(), recipients).unwrap();
        let whole = envelope.view();
        let bytes = whole.with_recipients(|position| position > 0);
        let part = EnvelopeView::decode(&bytes).unwrap();
        assert_eq!(part.recipients().collect::<Vec<_>>(), whole.recipients().skip(1).collect::<Vec<_>>());
        assert_eq!((part.reverse_path(), part.helo(), part.peer()), (whole.reverse_path(), whole.helo(), whole.peer()));
        assert_eq!(whole.with_recipients(|_| true), whole.as_bytes());
        assert_eq!(EnvelopeView::decode(&whole.with_recipients(|_| false)).unwrap().recipient_count(), 0);
    }
}
