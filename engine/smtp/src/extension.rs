//! Service extensions: which are on, and the parameters they add to MAIL and RCPT.
//!
//! Every parameter is parsed here, but an extension that isn't in the [`Extensions`] of the listener refuses its own
//! with 555 5.5.4 (RFC 5321 4.1.1.11), as if it weren't known.

use crate::command::decimal;

/// RFC 3461 4.4: the longest ENVID, in octets of xtext.
pub const ENVELOPE_ID_BYTES_MAX: usize = 100;
/// RFC 3461 4.2: the longest ORCPT, in octets, address type and semicolon included.
pub const ORIGINAL_RECIPIENT_BYTES_MAX: usize = 500;
/// Most `keyword=value` pairs one command may carry; more than all that exist.
const PARAMETERS_MAX: usize = 16;

/// A set of service extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Extensions(u32);

impl Extensions {
    /// Nothing beyond RFC 5321 itself.
    pub const NONE: Self = Self(0);
    /// RFC 2920.
    pub const PIPELINING: Self = Self(1);
    /// RFC 1870.
    pub const SIZE: Self = Self(1 << 1);
    /// RFC 6152.
    pub const EIGHT_BIT_MIME: Self = Self(1 << 2);
    /// RFC 6531.
    pub const SMTPUTF8: Self = Self(1 << 3);
    /// RFC 2034.
    pub const ENHANCED_STATUS_CODES: Self = Self(1 << 4);
    /// RFC 3030: BDAT.
    pub const CHUNKING: Self = Self(1 << 5);
    /// RFC 3030: BODY=BINARYMIME; needs CHUNKING.
    pub const BINARY_MIME: Self = Self(1 << 6);
    /// RFC 3461: RET, ENVID, NOTIFY, ORCPT.
    pub const DSN: Self = Self(1 << 7);
    /// RFC 9422.
    pub const LIMITS: Self = Self(1 << 8);
    /// RFC 2852: BY.
    pub const DELIVER_BY: Self = Self(1 << 9);
    /// RFC 4865: HOLDFOR, HOLDUNTIL.
    pub const FUTURE_RELEASE: Self = Self(1 << 10);
    /// RFC 6710: MT-PRIORITY.
    pub const MT_PRIORITY: Self = Self(1 << 11);
    /// RFC 5321 4.1.1.8.
    pub const HELP: Self = Self(1 << 12);

    /// What works from end to end for every client. FUTURERELEASE is for those that may relay (RFC 4865: submission).
    pub const DEFAULT: Self = Self::PIPELINING
        .with(Self::SIZE)
        .with(Self::EIGHT_BIT_MIME)
        .with(Self::SMTPUTF8)
        .with(Self::ENHANCED_STATUS_CODES)
        .with(Self::CHUNKING)
        .with(Self::BINARY_MIME)
        .with(Self::DSN)
        .with(Self::LIMITS)
        .with(Self::DELIVER_BY)
        .with(Self::MT_PRIORITY)
        .with(Self::HELP);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The value of BODY. RFC 6152 2, RFC 3030 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// Seven bits, said or unsaid.
    #[default]
    SevenBit,
    /// Lines of eight-bit octets.
    EightBitMime,
    /// Octets without any line structure; never to a hop that has only DATA.
    BinaryMime,
}

/// What of the message goes back in a failure report. RFC 3461 4.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// RET=FULL.
    Full,
    /// RET=HDRS.
    Headers,
}

/// What happens when the time of BY is over. RFC 2852 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByMode {
    /// `R`: the message goes back.
    Return,
    /// `N`: the sender is told of the delay.
    Notify,
}

/// BY=n;mode\[T\]. RFC 2852 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliverBy {
    /// Seconds from now, at most nine digits; below zero only with [`ByMode::Notify`].
    pub seconds: i32,
    /// What happens then.
    pub mode: ByMode,
    /// The sender wants `relayed` reports as a trace.
    pub trace: bool,
}

/// When a held message is released. RFC 4865 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// HOLDFOR: seconds from the acceptance.
    For(u32),
    /// HOLDUNTIL: seconds since 1970, rounded up.
    Until(i64),
}

/// The conditions of NOTIFY as a set. RFC 3461 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notify(u8);

impl Notify {
    /// Nothing was said: failure, and delay where the server chooses.
    pub const UNSAID: Self = Self(0);
    /// NEVER, always alone.
    pub const NEVER: Self = Self(1);
    /// SUCCESS.
    pub const SUCCESS: Self = Self(2);
    /// FAILURE.
    pub const FAILURE: Self = Self(4);
    /// DELAY.
    pub const DELAY: Self = Self(8);

    /// Whether all of `other` was asked for.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// The set of these bits, if there can be such a set.
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        (bits <= 1 || bits < 16 && bits & 1 == 0).then_some(Self(bits))
    }
}

/// Why parameters were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// 555 5.5.4: not known, or its extension is not on.
    #[error("parameter not recognised")]
    Unknown,
    /// 501 5.5.4: a value that is missing, not allowed or wrong, or a parameter given twice.
    #[error("bad parameter value")]
    Value,
}

/// The parameters of MAIL. Text borrows the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MailParameters<'a> {
    /// RFC 1870 6.1: octets the message will have; none for `SIZE=0` and when not said.
    pub size: Option<u64>,
    /// BODY.
    pub body: Body,
    /// SMTPUTF8 was given. RFC 6531 3.4.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Return>,
    /// ENVID as xtext, to be passed on unchanged.
    pub envelope_id: Option<&'a [u8]>,
    /// BY.
    pub deliver_by: Option<DeliverBy>,
    /// HOLDFOR or HOLDUNTIL.
    pub hold: Option<Hold>,
    /// MT-PRIORITY, -9 to 9.
    pub priority: Option<i8>,
}

impl<'a> MailParameters<'a> {
    /// Reads `KEY=value KEY ...`; `extensions` says what is on.
    pub fn parse(text: &'a [u8], extensions: Extensions) -> Result<Self, ParameterError> {
        let mut parameters = Self::default();
        let (mut seen_size, mut seen_body) = (false, false);
        let on = |extension: Extensions, seen: bool| match () {
            () if !extensions.has(extension) => Err(ParameterError::Unknown),
            () if seen => Err(ParameterError::Value),
            () => Ok(()),
        };
        for (key, value) in pairs(text)? {
            if is(key, "SIZE") {
                on(Extensions::SIZE, std::mem::replace(&mut seen_size, true))?;
                // RFC 1870 6.1: up to 20 digits; more than fits in 64 bits is certainly too much.
                let digits = value
                    .filter(|digits| (1..=20).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit))
                    .ok_or(ParameterError::Value)?;
                parameters.size = Some(decimal(digits).unwrap_or(u64::MAX)).filter(|&size| size > 0);
            } else if is(key, "BODY") {
                on(Extensions::EIGHT_BIT_MIME, std::mem::replace(&mut seen_body, true))?;
                parameters.body = body(value.ok_or(ParameterError::Value)?, extensions)?;
            } else if is(key, "SMTPUTF8") {
                on(Extensions::SMTPUTF8, parameters.smtputf8)?;
                parameters.smtputf8 = value.is_none().then_some(true).ok_or(ParameterError::Value)?;
            } else if is(key, "RET") {
                on(Extensions::DSN, parameters.ret.is_some())?;
                parameters.ret = Some(match value.ok_or(ParameterError::Value)? {
                    word if is(word, "FULL") => Return::Full,
                    word if is(word, "HDRS") => Return::Headers,
                    _ => return Err(ParameterError::Value),
                });
            } else if is(key, "ENVID") {
                on(Extensions::DSN, parameters.envelope_id.is_some())?;
                let id = value.filter(|id| (1..=ENVELOPE_ID_BYTES_MAX).contains(&id.len()) && is_xtext(id));
                parameters.envelope_id = Some(id.ok_or(ParameterError::Value)?);
            } else if is(key, "BY") {
                on(Extensions::DELIVER_BY, parameters.deliver_by.is_some())?;
                parameters.deliver_by = Some(deliver_by(value.ok_or(ParameterError::Value)?)?);
            } else if is(key, "HOLDFOR") {
                // RFC 4865 5: HOLDFOR beside HOLDUNTIL is an error like the same one twice.
                on(Extensions::FUTURE_RELEASE, parameters.hold.is_some())?;
                let seconds = value.filter(|digits| digits.len() <= 9).and_then(decimal).filter(|&seconds| seconds > 0);
                parameters.hold = Some(Hold::For(u32::try_from(seconds.ok_or(ParameterError::Value)?).map_err(|_| ParameterError::Value)?));
            } else if is(key, "HOLDUNTIL") {
                on(Extensions::FUTURE_RELEASE, parameters.hold.is_some())?;
                parameters.hold = Some(Hold::Until(date_time(value.ok_or(ParameterError::Value)?)?));
            } else if is(key, "MT-PRIORITY") {
                on(Extensions::MT_PRIORITY, parameters.priority.is_some())?;
                parameters.priority = Some(priority(value.ok_or(ParameterError::Value)?)?);
            } else {
                return Err(ParameterError::Unknown);
            }
        }
        Ok(parameters)
    }
}

/// The parameters of RCPT. Text borrows the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecipientParameters<'a> {
    /// NOTIFY.
    pub notify: Notify,
    /// ORCPT, `type;xtext`, to be passed on unchanged.
    pub original_recipient: Option<&'a [u8]>,
}

impl<'a> RecipientParameters<'a> {
    /// Reads `KEY=value KEY ...`; `extensions` says what is on, `smtputf8` whether MAIL had it (RFC 6533 3 then allows
    /// UTF-8 in ORCPT).
    pub fn parse(text: &'a [u8], extensions: Extensions, smtputf8: bool) -> Result<Self, ParameterError> {
        let mut parameters = Self::default();
        for (key, value) in pairs(text)? {
            if !extensions.has(Extensions::DSN) {
                return Err(ParameterError::Unknown);
            }
            let value = value.ok_or(ParameterError::Value);
            if is(key, "NOTIFY") {
                if parameters.notify != Notify::UNSAID {
                    return Err(ParameterError::Value);
                }
                parameters.notify = notify(value?)?;
            } else if is(key, "ORCPT") {
                let text = value?;
                if parameters.original_recipient.is_some() || !is_original_recipient(text, smtputf8) {
                    return Err(ParameterError::Value);
                }
                parameters.original_recipient = Some(text);
            } else {
                return Err(ParameterError::Unknown);
            }
        }
        Ok(parameters)
    }
}

/// Appends what an xtext means. RFC 3461 4: `+` and two upper-case hexadecimal digits stand for one octet.
///
/// False when it is no xtext; `out` may then hold a part.
pub fn decode_xtext(text: &[u8], out: &mut Vec<u8>) -> bool {
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        rest = behind;
        match (first, behind) {
            (b'+', [high, low, behind @ ..]) => {
                let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low)) else { return false };
                out.push(high << 4 | low);
                rest = behind;
            }
            (b'+', _) | (b'=', _) => return false,
            (byte @ b'!'..=b'~', _) => out.push(*byte),
            _ => return false,
        }
    }
    true
}

/// `keyword` and `value` of each parameter. RFC 5321 4.1.2 esmtp-param.
fn pairs(text: &[u8]) -> Result<impl Iterator<Item = (&[u8], Option<&[u8]>)>, ParameterError> {
    let words = || text.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    if words().nth(PARAMETERS_MAX).is_some() {
        return Err(ParameterError::Unknown);
    }
    Ok(words().map(|word| match memchr::memchr(b'=', word) {
        None => (word, None),
        Some(at) => (&word[..at], Some(&word[at + 1..])),
    }))
}

fn is(word: &[u8], keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword.as_bytes())
}

fn body(word: &[u8], extensions: Extensions) -> Result<Body, ParameterError> {
    match word {
        _ if is(word, "7BIT") => Ok(Body::SevenBit),
        _ if is(word, "8BITMIME") => Ok(Body::EightBitMime),
        _ if is(word, "BINARYMIME") && extensions.has(Extensions::BINARY_MIME) => Ok(Body::BinaryMime),
        _ if is(word, "BINARYMIME") => Err(ParameterError::Unknown),
        _ => Err(ParameterError::Value),
    }
}

fn notify(list: &[u8]) -> Result<Notify, ParameterError> {
    let mut conditions = 0;
    for word in list.split(|&byte| byte == b',') {
        conditions |= match word {
            _ if is(word, "NEVER") => Notify::NEVER.0,
            _ if is(word, "SUCCESS") => Notify::SUCCESS.0,
            _ if is(word, "FAILURE") => Notify::FAILURE.0,
            _ if is(word, "DELAY") => Notify::DELAY.0,
            _ => return Err(ParameterError::Value),
        };
    }
    Notify::from_bits(conditions).ok_or(ParameterError::Value)
}

/// RFC 2852 4: `by-value = by-time ";" by-mode [by-trace]`, by-time up to nine digits.
fn deliver_by(value: &[u8]) -> Result<DeliverBy, ParameterError> {
    let at = memchr::memchr(b';', value).ok_or(ParameterError::Value)?;
    let (time, rest) = (&value[..at], &value[at + 1..]);
    let (digits, sign) = match time {
        [b'-', digits @ ..] => (digits, -1),
        [b'+', digits @ ..] => (digits, 1),
        digits => (digits, 1),
    };
    let magnitude = Some(digits).filter(|digits| digits.len() <= 9).and_then(decimal).ok_or(ParameterError::Value)?;
    let seconds = sign * i32::try_from(magnitude).map_err(|_| ParameterError::Value)?;
    let (mode, trace) = match rest {
        [b'R' | b'r', trace @ ..] => (ByMode::Return, trace),
        [b'N' | b'n', trace @ ..] => (ByMode::Notify, trace),
        _ => return Err(ParameterError::Value),
    };
    // RFC 2852 4: with R a time that is over already makes no sense.
    if mode == ByMode::Return && seconds <= 0 || !(trace.is_empty() || is(trace, "T")) {
        return Err(ParameterError::Value);
    }
    Ok(DeliverBy { seconds, mode, trace: !trace.is_empty() })
}

/// RFC 6710 4.1: one digit with an optional minus.
fn priority(value: &[u8]) -> Result<i8, ParameterError> {
    match value {
        [digit @ b'0'..=b'9'] => Ok((digit - b'0').cast_signed()),
        [b'-', digit @ b'1'..=b'9'] => Ok(-(digit - b'0').cast_signed()),
        _ => Err(ParameterError::Value),
    }
}

/// RFC 4865 5: a date-time of RFC 3339. Of one with a fraction the next second: nothing leaves before its time.
fn date_time(value: &[u8]) -> Result<i64, ParameterError> {
    let text = std::str::from_utf8(value).map_err(|_| ParameterError::Value)?;
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).map_err(|_| ParameterError::Value)?;
    Ok(time.unix_timestamp() + i64::from(time.nanosecond() > 0))
}

/// RFC 3461 4.2: `addr-type ";" xtext`; under SMTPUTF8 the address may be UTF-8 as it is (RFC 6533 3).
fn is_original_recipient(text: &[u8], smtputf8: bool) -> bool {
    let Some(at) = memchr::memchr(b';', text) else { return false };
    let (kind, address) = (&text[..at], &text[at + 1..]);
    let plain = is_xtext(address) || smtputf8 && is(kind, "utf-8") && is_utf8_address(address);
    !kind.is_empty()
        && kind.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && text.len() <= ORIGINAL_RECIPIENT_BYTES_MAX
        && !address.is_empty()
        && plain
}

/// RFC 6533 3 utf-8-addr-unitext and utf-8-addr-xtext, leniently: printable, no blanks, whole characters.
fn is_utf8_address(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'=' || byte >= 0x80) && std::str::from_utf8(text).is_ok()
}

fn is_xtext(text: &[u8]) -> bool {
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        rest = match (first, behind) {
            (b'+', [high, low, behind @ ..]) if hex_digit(*high).is_some() && hex_digit(*low).is_some() => behind,
            (b'+' | b'=', _) => return false,
            (b'!'..=b'~', _) => behind,
            _ => return false,
        };
    }
    true
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
