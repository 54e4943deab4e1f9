//! The fields of a delivery status. RFC 3464 2.2 and 2.3.

use std::net::IpAddr;

use super::{Report, meaning_of};
use crate::address::Path;
use crate::client::own_words;
use crate::header::DateText;
use crate::reply::EnhancedCode;
use crate::shown::is_steering;

/// How the queue begins the text of a recipient that expired; the last reply stands behind it.
const EXPIRED: &str = "5.4.7 expired";
const LAST: &str = "; last: ";

/// What became of a recipient. RFC 3464 2.3.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It will not be tried again.
    Failed,
    /// It is still tried.
    Delayed,
    /// It is in its mailbox.
    Delivered,
    /// A next hop has it that will not report.
    Relayed,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Delivered => "delivered",
            Self::Relayed => "relayed",
        }
    }
}

/// One recipient of a report.
#[derive(Debug, Clone, Copy)]
pub struct ReportedRecipient<'a> {
    /// Its forward-path.
    pub path: Path<'a>,
    /// ORCPT, `type;xtext`.
    pub original: Option<&'a str>,
    /// What became of it.
    pub action: Action,
    /// The last word about it, as the queue keeps it; may be empty.
    pub reply: &'a str,
    /// The next hop whose word that is: `mx1.example.org[192.0.2.7]:25`, `192.0.2.7:25`, `unix:/run/lmtp.sock`, or `?` for one whose name is
    /// not known any more. Whatever else stands here is no next hop, and the word is our own.
    pub relay: Option<&'a str>,
    /// When it was last tried.
    pub last_attempt: Option<DateText>,
    /// Until when it is tried; for [`Action::Delayed`].
    pub will_retry_until: Option<DateText>,
}

pub(super) fn write_message_fields(report: &Report<'_>, out: &mut Vec<u8>) {
    if let Some(id) = report.envelope_id {
        field("Original-Envelope-Id", &meaning_of(id), report.smtputf8, out);
    }
    field("Reporting-MTA", &format!("dns; {}", report.hostname), report.smtputf8, out);
    date_field("Arrival-Date", report.arrival, out);
}

pub(super) fn write_recipient_fields(recipient: &ReportedRecipient<'_>, utf8: bool, out: &mut Vec<u8>) {
    // RFC 3464 2.3.1: only what the sender itself gave.
    if let Some((kind, address)) = recipient.original.and_then(|original| original.split_once(';')) {
        let is_utf8 = kind.eq_ignore_ascii_case("utf-8");
        // RFC 6533 3: this type has an encoding of its own, which stays.
        let address = if is_utf8 { address.to_owned() } else { meaning_of(address) };
        field("Original-Recipient", &format!("{kind};{address}"), utf8, out);
    }
    let kind = if recipient.path.as_str().is_ascii() { "rfc822" } else { "utf-8" };
    field("Final-Recipient", &format!("{kind}; {}", recipient.path.as_str()), utf8, out);
    field("Action", recipient.action.as_str(), utf8, out);
    let remote = recipient.relay.and_then(name_of);
    let said = Said::of(recipient, remote.is_some());
    field("Status", &said.status.to_string(), utf8, out);
    if let Some(name) = remote.filter(|_| said.is_reply) {
        field("Remote-MTA", &format!("dns; {name}"), utf8, out);
    }
    if !said.text.is_empty() {
        field("Diagnostic-Code", &format!("{}; {}", if said.is_reply { "smtp" } else { "x-ringpost" }, said.text), utf8, out);
    }
    if let Some(at) = &recipient.last_attempt {
        date_field("Last-Attempt-Date", at, out);
    }
    if let Some(until) = &recipient.will_retry_until {
        date_field("Will-Retry-Until", until, out);
    }
}

/// What the last word about a recipient means.
struct Said<'a> {
    status: EnhancedCode,
    text: &'a str,
    /// It begins as a reply does.
    has_code: bool,
    /// It came from a next hop. RFC 3464 2.3.5, 2.3.6: our own words about one are of another type, and not said by it.
    is_reply: bool,
}

impl<'a> Said<'a> {
    fn of(recipient: &ReportedRecipient<'a>, is_remote: bool) -> Self {
        let (class, expired, text) = match recipient.action {
            // RFC 3464 2.3.6: what is said of a success is a next hop's word.
            Action::Delivered | Action::Relayed if is_remote => (2, false, recipient.reply),
            Action::Delivered | Action::Relayed => {
                return Self { status: EnhancedCode { class: 2, subject: 0, detail: 0 }, text: "", has_code: false, is_reply: false };
            }
            Action::Delayed => (4, false, recipient.reply),
            Action::Failed => match recipient.reply.strip_prefix(EXPIRED) {
                Some(rest) => (5, true, rest.strip_prefix(LAST).unwrap_or("")),
                None => (5, false, recipient.reply),
            },
        };
        let code = text.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()) && matches!(code.as_bytes()[0], b'2'..=b'5'));
        let has_code = code.is_some() && text.as_bytes().get(3).is_none_or(|&byte| byte == b' ');
        let is_reply = has_code && recipient.relay.is_some_and(is_next_hop) && !own_words::is_own(text);
        let enhanced = text.get(4..).filter(|_| has_code).and_then(|rest| enhanced_of(rest, class));
        let status = match enhanced {
            // RFC 3463 3.5: X.4.7, the delivery time expired.
            _ if expired => EnhancedCode { class, subject: 4, detail: 7 },
            Some(status) => status,
            // RFC 3463 3.5: X.4.1, no answer from the host.
            None if class != 2 && !has_code && !text.is_empty() => EnhancedCode { class, subject: 4, detail: 1 },
            None => EnhancedCode { class, subject: 0, detail: 0 },
        };
        Self { status, text, has_code, is_reply }
    }
}

/// What a next hop says, without its numbers, where those are of a refusal for good and the recipient is tried all the same, as after a 554 in
/// place of a greeting: to people they would say that it has failed. `Diagnostic-Code` has the reply as it came (RFC 3464 2.3.6).
pub(super) fn refused_for_now<'a>(recipient: &ReportedRecipient<'a>) -> Option<&'a str> {
    let said = Said::of(recipient, false);
    if recipient.action != Action::Delayed || !said.has_code || !said.text.starts_with('5') {
        return None;
    }
    let rest = said.text.get(4..).unwrap_or("");
    Some(match rest.split_once(' ') {
        _ if enhanced_of(rest, 5).is_none() => rest,
        Some((_, words)) => words,
        None => "",
    })
}

/// Whether a recipient has failed because its content must be converted (RFC 3463 3.7: X.6.3), by its last word as the queue keeps it: at once, or
/// after all of its time, in which not every host could be asked whether it takes what this one does not.
pub fn is_for_conversion(reply: &str) -> bool {
    let (word, class) = match reply.strip_prefix(EXPIRED).and_then(|rest| rest.strip_prefix(LAST)) {
        Some(word) => (word, 4),
        None => (reply, 5),
    };
    let status = word.split_once(' ').and_then(|(_, rest)| enhanced_of(rest, class));
    status.is_some_and(|status| (status.subject, status.detail) == (6, 3))
}

fn enhanced_of(text: &str, class: u8) -> Option<EnhancedCode> {
    let mut parts = text.split(' ').next()?.split('.');
    let mut number = || parts.next().filter(|digits| (1..=3).contains(&digits.len())).and_then(|digits| digits.parse::<u16>().ok());
    let (first, subject, detail) = (number()?, number()?, number()?);
    (first == u16::from(class) && parts.next().is_none()).then_some(EnhancedCode { class, subject, detail })
}

fn is_next_hop(relay: &str) -> bool {
    relay == "?" || relay.starts_with("unix:") || name_of(relay).is_some()
}

/// The name of a next hop, or its address as a literal (RFC 3464 2.3.5); `None` for what is no host, such as a socket in the file system.
fn name_of(relay: &str) -> Option<String> {
    match relay.split_once('[') {
        Some((name, _)) if !name.is_empty() => Some(name.to_owned()),
        Some((_, rest)) => Some(format!("[{}]", rest.split(']').next().unwrap_or_default())),
        None => {
            let (host, port) = relay.rsplit_once(':')?;
            port.parse::<u16>().ok()?;
            Some(if host.parse::<IpAddr>().is_ok() { format!("[{host}]") } else { host.to_owned() })
        }
    }
}

fn date_field(name: &str, date: &DateText, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(date.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn field(name: &str, value: &str, utf8: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    put_line(value, utf8, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends text that others may have written as part of one line: nothing in it ends the line or steers its reader.
pub(super) fn put_line(text: &str, utf8: bool, out: &mut Vec<u8>) {
    for character in text.chars() {
        match character {
            steering if is_steering(steering) => out.push(b' '),
            ascii if ascii.is_ascii() => out.push(ascii as u8),
            other if utf8 => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => out.push(b'?'),
        }
    }
}
