//! A line of the mail log, in either of its forms, as fields. The schema is in `docs/mail-log.md`.

use ringpost_smtp::shown::shown_json;
use serde_json::{Map, Value};

/// Fields that are numbers in the JSON form.
const NUMBERS: [&str; 7] = ["size", "recipients", "delay_ms", "lost", "attempt", "age_ms", "shard"];

/// One line's fields in their order; the first is `time`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MailLogEntry {
    fields: Vec<(String, String)>,
}

impl MailLogEntry {
    /// Reads a line of text or JSON, without its end. `None` for what is neither.
    pub fn parse(line: &str) -> Option<Self> {
        if line.starts_with('{') { Self::parse_json(line) } else { Self::parse_text(line) }
    }

    fn parse_json(line: &str) -> Option<Self> {
        let Value::Object(object) = serde_json::from_str(line).ok()? else { return None };
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Some(Self { fields: object.into_iter().map(|(name, value)| (name, text(value))).collect() })
    }

    fn parse_text(line: &str) -> Option<Self> {
        let (time, mut rest) = line.split_once(' ')?;
        let mut fields = vec![("time".to_owned(), time.to_owned())];
        while !rest.is_empty() {
            let (name, value) = rest.split_once('=')?;
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                return None;
            }
            let (value, behind) = match value.as_bytes().first() {
                Some(b'"') => {
                    let end = closing_quote(&value[1..])? + 1;
                    (&value[1..end], &value[end + 1..])
                }
                Some(b'<') => {
                    let end = value.find('>')?;
                    (&value[1..end], &value[end + 1..])
                }
                _ => value.split_at(value.find(' ').unwrap_or(value.len())),
            };
            fields.push((name.to_owned(), unescaped(value)));
            rest = if behind.is_empty() { behind } else { behind.strip_prefix(' ')? };
        }
        Some(Self { fields })
    }

    /// A field's value, without quotes or brackets.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Is it about this message, or this address, in any case?
    pub fn is_about(&self, word: &str) -> bool {
        ["queue_id", "to", "from", "report", "reports", "report_to"]
            .iter()
            .any(|name| self.get(name).is_some_and(|value| value.eq_ignore_ascii_case(word)))
    }

    /// The JSON form: one object, without a line end.
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        for (name, value) in &self.fields {
            let number = if NUMBERS.contains(&name.as_str()) { value.parse::<u64>().ok() } else { None };
            // The first of a name is ours: nothing that came from a peer stands before it.
            object.entry(name).or_insert_with(|| number.map_or_else(|| Value::String(value.clone()), Value::from));
        }
        shown_json(&Value::Object(object).to_string()).into_owned()
    }
}

/// Where a quoted value ends: at the first quote that is not escaped.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// `\"`, `\\` and `\x1b` as what they stand for; an octet that is no character becomes U+FFFD.
fn unescaped(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let octet = rest.strip_prefix('x').and_then(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok());
        if let Some(octet) = octet {
            bytes.push(octet);
            rest = &rest[3..];
        } else if let Some(character) = rest.chars().next() {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[character.len_utf8()..];
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use ringpost_engine::mail_log::EscapedWord;

    use super::*;

    const LINE: &str = "2026-11-24T02:19:43.279Z queue_id=1NG9X0G00003 event=attempt to=<\\\"b\\x20\\x3e\\x20c\\\"@y.test> relay=mx1.y.test[192.0.2.9]:25 \
                        delay_ms=18762 dsn=2.0.0 outcome=delivered reply=\"250 2.0.0 \\\"Ok\\\" \\x1b[m \\\\\"";

    #[test]
    fn a_line_becomes_fields_and_the_same_from_json() {
        let entry = MailLogEntry::parse(LINE).unwrap();
        assert_eq!(entry.get("time"), Some("2026-11-24T02:19:43.279Z"));
        assert_eq!(entry.get("to"), Some("\"b > c\"@y.test"));
        assert_eq!(entry.get("reply"), Some("250 2.0.0 \"Ok\" \u{1b}[m \\"));
        let json = entry.to_json();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["delay_ms"], 18_762);
        assert_eq!(value["dsn"], "2.0.0");
        let again = MailLogEntry::parse(&json).unwrap();
        for field in ["time", "queue_id", "event", "to", "relay", "delay_ms", "dsn", "outcome", "reply"] {
            assert_eq!(again.get(field), entry.get(field), "{field}");
        }
        assert!(again.is_about("1ng9x0g00003") && again.is_about("\"B > C\"@y.test") && !again.is_about("y.test"));
    }

    /// A local part with `> queue_id=... event=...` in it ended its own value: the fields behind it took the place of the real ones in
    /// the JSON form, so a sender could give another message an event and keep its own from being found.
    #[test]
    fn an_address_or_a_greeting_adds_no_field_and_replaces_none() {
        let forged = "\"x> queue_id=1NG9X0G00009 event=purged z=y\"@evil.test";
        let line = format!(
            "2026-11-24T02:19:43.279Z queue_id=1NG9X0G00003 event=accepted helo={} from=<{}> size=7",
            EscapedWord(b"<x"),
            EscapedWord(forged.as_bytes())
        );
        let entry = MailLogEntry::parse(&line).unwrap();
        let of = |name: &str| entry.get(name).unwrap();
        assert_eq!((of("queue_id"), of("event"), of("helo"), of("from"), of("size")), ("1NG9X0G00003", "accepted", "<x", forged, "7"));
        assert_eq!(entry.get("z"), None);
        let json: Value = serde_json::from_str(&entry.to_json()).unwrap();
        assert_eq!((&json["queue_id"], &json["event"], &json["from"]), (&"1NG9X0G00003".into(), &"accepted".into(), &forged.into()));
        assert_eq!(line.split(' ').count(), 6, "whoever splits a line at its blanks sees the same");
        // Whatever a line says twice, the first counts.
        let twice = MailLogEntry::parse("2026 queue_id=A1 event=attempt queue_id=B2").unwrap().to_json();
        assert_eq!(serde_json::from_str::<Value>(&twice).unwrap()["queue_id"], "A1");
        assert_eq!(MailLogEntry::parse("2026 from=<a@b.test>queue_id=B2"), None, "a field begins behind a blank");
    }

    #[test]
    fn nonsense_is_no_entry() {
        for line in ["", "x", "2026 nothing", "2026 =x", "2026 a=\"open", "2026 to=<open", "{\"a\":", "[1]"] {
            assert_eq!(MailLogEntry::parse(line), None, "{line}");
        }
        let null_sender = MailLogEntry::parse("2026 from=<> size=4").unwrap();
        assert_eq!((null_sender.get("from"), null_sender.get("size")), (Some(""), Some("4")));
    }
}
