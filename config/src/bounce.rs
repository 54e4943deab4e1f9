//! `[bounce]`: what senders are told of mail that failed, is delayed or was delivered.

use crate::ByteSize;
use crate::name::{parse_domain, parse_local_part};
use crate::section::Section;
use crate::setting::{Setting, text};
use toml::de::DeValue;

/// Texts of reports in octets at most.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// A line of such a text in octets at most: with what replaces its placeholders it stays a line of mail (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 400;
/// Reports a second, or a minute, at most.
const RATE_MAX: u32 = 100_000;

const FAILED_TEXT: &str = "\
This is the mail system at {hostname}.

Your message could not be delivered to these recipients, and is not tried
again:

{recipients}

It came here on {arrival} and is known as {id}.
";
const DELAYED_TEXT: &str = "\
This is the mail system at {hostname}.

Your message has not been delivered yet to these recipients. You need not send
it again: it is tried until {until}.

{recipients}

It came here on {arrival} and is known as {id}.
";
const HELD_TEXT: &str = "\
This is the mail system at {hostname}.

Your message has not been delivered yet to these recipients. You need not send
it again: it is held here, and is not tried until the operator of this system
lets it go.

{recipients}

It came here on {arrival} and is known as {id}.
";
const SUCCESS_TEXT: &str = "\
This is the mail system at {hostname}.

Your message was delivered to these recipients, or passed on to a system that
sends no report of its own:

{recipients}

It came here on {arrival} and is known as {id}.
";

/// `[bounce]`: reports to senders (RFC 3461, RFC 3464).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounce {
    /// Whether there are any; if not, what failed stays in the queue until a command takes it away.
    pub enabled: bool,
    /// Who is told when mail with the null reverse-path fails; None: it is dropped, with a line in the mail log.
    pub double_bounce_to: Option<String>,
    /// Content of a message that is returned whole, at most; of a larger one the header is, up to this.
    pub return_max: ByteSize,
    /// Reports a second, over all shards; None: as fast as they can be made.
    pub reports_per_second: Option<u32>,
    /// Reports a minute to one sender, over all shards.
    pub reports_per_minute_and_sender: Option<u32>,
    /// What is said of recipients that failed.
    pub failed_text: Template,
    /// Of such that are still tried after `queue.warn_after`.
    pub delayed_text: Template,
    /// Of such as are not tried meanwhile, because an operator holds them.
    pub held_text: Template,
    /// Of such that were delivered, where the sender asked for that.
    pub success_text: Template,
}

/// What stands in braces in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// Our name.
    Hostname,
    /// The message's queue id.
    Id,
    /// Its reverse-path.
    Sender,
    /// The recipients the report is about, each with the last reply.
    Recipients,
    /// When the message was accepted.
    Arrival,
    /// When its recipients fail at last.
    Until,
}

const PLACEHOLDERS: [(&str, Placeholder); 6] = [
    ("hostname", Placeholder::Hostname),
    ("id", Placeholder::Id),
    ("sender", Placeholder::Sender),
    ("recipients", Placeholder::Recipients),
    ("arrival", Placeholder::Arrival),
    ("until", Placeholder::Until),
];

/// A text with placeholders, checked when the file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
}

impl Template {
    fn new(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("is longer than {TEXT_BYTES_MAX} octets"));
        }
        if let Some(line) = text.lines().find(|line| line.len() > LINE_BYTES_MAX) {
            return Err(format!(
                "has a line longer than {LINE_BYTES_MAX} octets, which begins {:?}",
                line.chars().take(30).collect::<String>()
            ));
        }
        if text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\r' | '\t')) {
            return Err("has a control character".to_owned());
        }
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            if before.contains('}') {
                return Err("has a } without its {".to_owned());
            }
            let name = behind.split_once('}').ok_or("has a { without its }")?.0;
            if placeholder(name).is_none() {
                let known = PLACEHOLDERS.map(|(name, _)| format!("{{{name}}}")).join(", ");
                return Err(format!("has an unknown placeholder {{{name}}}; there are {known}"));
            }
            rest = &behind[name.len() + 1..];
        }
        if rest.contains('}') {
            return Err("has a } without its {".to_owned());
        }
        Ok(Self { text: text.to_owned() })
    }

    /// Does it stand somewhere in the text?
    pub(crate) fn names(&self, wanted: Placeholder) -> bool {
        let word = PLACEHOLDERS.iter().find(|(_, placeholder)| *placeholder == wanted).map(|(word, _)| format!("{{{word}}}"));
        word.is_some_and(|word| self.text.contains(&word))
    }

    /// The text with each placeholder replaced.
    pub fn render<'v>(&self, value: impl Fn(Placeholder) -> &'v str) -> String {
        let (mut out, mut rest) = (String::with_capacity(self.text.len()), self.text.as_str());
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, after) = behind.split_once('}').expect("checked when the file was read");
            out.push_str(before);
            out.push_str(value(placeholder(name).expect("checked when the file was read")));
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

fn placeholder(name: &str) -> Option<Placeholder> {
    PLACEHOLDERS.iter().find(|(known, _)| *known == name).map(|(_, placeholder)| *placeholder)
}

impl Setting for Template {
    fn read(value: &DeValue<'_>) -> Result<Template, String> {
        Template::new(text(value, "a text")?)
    }
}

impl Bounce {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Bounce {
        let default = Bounce::default();
        let double_bounce_to = section.optional::<String>("double_bounce_to").and_then(|address| {
            let is_address = address.rsplit_once('@').is_some_and(|(local, domain)| {
                parse_local_part(local).is_ok() && !local.contains([' ', '"', '\\']) && parse_domain(domain).is_ok()
            });
            if !is_address {
                section.refuse("double_bounce_to", "is not an address, for instance \"postmaster@example.org\"");
            }
            is_address.then_some(address)
        });
        let bounce = Bounce {
            enabled: section.read("enabled", default.enabled),
            double_bounce_to,
            return_max: section.within("return_max", default.return_max, ByteSize::kib(1)..=ByteSize::kib(64)),
            reports_per_second: section.word_or_within("reports_per_second", "off", default.reports_per_second, 1..=RATE_MAX),
            reports_per_minute_and_sender: section.word_or_within(
                "reports_per_minute_and_sender",
                "off",
                default.reports_per_minute_and_sender,
                1..=RATE_MAX,
            ),
            failed_text: section.read("failed_text", default.failed_text),
            delayed_text: section.read("delayed_text", default.delayed_text),
            held_text: section.read("held_text", default.held_text),
            success_text: section.read("success_text", default.success_text),
        };
        section.finish();
        bounce
    }
}

impl Default for Bounce {
    fn default() -> Bounce {
        let template = |text: &str| Template { text: text.to_owned() };
        Bounce {
            enabled: true,
            double_bounce_to: None,
            return_max: ByteSize::kib(50),
            reports_per_second: Some(100),
            reports_per_minute_and_sender: Some(60),
            failed_text: template(FAILED_TEXT),
            delayed_text: template(DELAYED_TEXT),
            held_text: template(HELD_TEXT),
            success_text: template(SUCCESS_TEXT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_and_unknown_ones_refused() {
        let template = Template::new("To {sender} of {id}:\n{recipients}{id}").unwrap();
        let text = template.render(|placeholder| match placeholder {
            Placeholder::Sender => "s@x.test",
            Placeholder::Id => "{hostname}",
            _ => "r",
        });
        assert_eq!(text, "To s@x.test of {hostname}:\nr{hostname}");
        for (text, message) in [
            ("a {b}", "has an unknown placeholder {b}; there are {hostname}, {id}, {sender}, {recipients}, {arrival}, {until}"),
            ("a {id", "has a { without its }"),
            ("a } {id}", "has a } without its {"),
            ("{id} }", "has a } without its {"),
            ("a\u{1b}[2J", "has a control character"),
        ] {
            assert_eq!(Template::new(text).unwrap_err(), message);
        }
        assert!(Template::new(&"x".repeat(LINE_BYTES_MAX + 1)).unwrap_err().contains("a line longer than"));
        assert!(Template::new(&"x\n".repeat(TEXT_BYTES_MAX)).unwrap_err().contains("is longer than"));
        for text in [FAILED_TEXT, DELAYED_TEXT, HELD_TEXT, SUCCESS_TEXT] {
            assert!(Template::new(text).is_ok());
        }
    }
}
