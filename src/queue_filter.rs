//! What the ids and options that choose queued messages may say. A value that no message can have is refused as wrong usage, with what to write
//! instead: "0 messages purged" would read like an answer.

use ringpost_engine::control::{MessageFilter, REASON_BYTES_MAX};
use ringpost_queue::{QueueId, TAG_BYTES_MAX, canonical_domain};
use ringpost_smtp::{
    address::{PathKind, PathLimits, parse_path},
    shown::is_steering,
};

use crate::{cli::Matching, pauser::PAUSED_NAME_BYTES_MAX};

impl From<Matching> for MessageFilter {
    fn from(matching: Matching) -> Self {
        MessageFilter {
            state: matching.state.map(|state| format!("{state:?}").to_lowercase()),
            sender: matching.sender,
            sender_domain: matching.sender_domain,
            domain: matching.domain,
            destination: matching.destination,
            tag: matching.tag,
            // Upwards: what is younger than was asked for is not to be among them.
            older_than_s: matching.older_than.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0)),
        }
    }
}

/// Why no message can meet all of these, if none can.
pub fn contradiction(matching: &Matching) -> Option<String> {
    let (sender, domain) = (matching.sender.as_deref()?, matching.sender_domain.as_deref()?);
    let own = sender.rsplit_once('@').map_or("", |(_, domain)| domain);
    (canonical_domain(own.as_bytes()).to_ascii_lowercase() != canonical_domain(domain.as_bytes()).to_ascii_lowercase())
        .then(|| format!("no message is from --sender {sender:?} and from --sender-domain {domain:?}: leave one of them out"))
}

/// A queue id in the form in which it is shown everywhere.
pub fn queue_id(text: &str) -> Result<String, String> {
    let id: QueueId = text.parse().map_err(|_| {
        "is no queue id: write all of one, 12 to 24 letters and digits, for instance 1NG9X0G00003, as `queue ls` and the mail log have it".to_owned()
    })?;
    Ok(id.to_string())
}

/// A reverse-path as queued messages have it, from an address with or without its brackets; empty, or `<>`, is the null one.
pub fn sender(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    path(bare).ok_or_else(|| {
        "is no sender address: write \"news@example.org\", or \"\" for the null sender; domains go with --sender-domain".to_owned()
    })
}

/// The domain of a sender.
pub fn sender_domain(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("is empty: write a domain, for instance \"example.org\"; the null sender is --sender \"\"".to_owned());
    }
    domain(text)
}

/// The domain of a recipient: a name, with a final dot or without, or an address literal.
pub fn domain(text: &str) -> Result<String, String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let whole = path(&format!("x@{bare}")).filter(|_| !bare.contains('@'));
    match whole.as_deref().and_then(|path| path.strip_prefix("x@")) {
        Some(domain) => Ok(domain.to_owned()),
        None => Err("is no domain: write all of one, for instance \"example.org\" or \"[192.0.2.1]\", without @ and without *".to_owned()),
    }
}

/// A tag, as messages have it.
pub fn tag(text: &str) -> Result<String, String> {
    if text.len() > TAG_BYTES_MAX {
        return Err(format!("is {} bytes long: of a tag {TAG_BYTES_MAX} are kept: write the first {TAG_BYTES_MAX} of it", text.len()));
    }
    named(text)
}

/// What the senders of returned mail are told. It goes into a report and into the mail log, as part of one line.
pub fn reason(text: &str) -> Result<String, String> {
    if text.len() > REASON_BYTES_MAX {
        return Err(format!("is {} bytes long: at most {REASON_BYTES_MAX} fit into a report; say it shorter", text.len()));
    }
    if text.contains(is_steering) {
        return Err("has a line break or another control character: write one line of text".to_owned());
    }
    if text.trim().is_empty() {
        return Err("is empty: write what the senders are told, or leave the option out".to_owned());
    }
    Ok(text.to_owned())
}

/// A name that `queue pause` and `queue resume` take. With its final dot, `*.` would be the route `*`, which is all other mail.
pub fn destination(text: &str) -> Result<String, String> {
    if text.len() > PAUSED_NAME_BYTES_MAX {
        return Err(format!("is {} bytes long: a name has at most {PAUSED_NAME_BYTES_MAX}", text.len()));
    }
    let bare = text.trim_end_matches('.');
    if bare.is_empty() && !text.is_empty() || bare == "*" && text != "*" {
        return Err(
            "is no name: write \"*.example.org\" for all domains below that one, \"*\" for the route of that name, or --all".to_owned()
        );
    }
    named(text)
}

/// The name of a destination or of a route: whatever there is.
pub fn named(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("is empty: write the name, or leave the option out".to_owned()) } else { Ok(text.to_owned()) }
}

/// How many to show.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "is no number to show: write 1 or more, or leave the option out".to_owned())
}

fn path(bare: &str) -> Option<String> {
    let (written, mut read) = (format!("<{bare}>"), Vec::new());
    let parsed = parse_path(written.as_bytes(), PathKind::Reverse, PathLimits::default(), &mut read).ok()?;
    (parsed.consumed == written.len()).then(|| String::from_utf8(read).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_no_message_can_have_is_refused_and_the_rest_is_read_as_it_is_queued() {
        for (text, read) in [("a@x.test", "a@x.test"), ("<a@x.test>", "a@x.test"), ("", ""), ("<>", ""), ("\"a\"@x.test", "a@x.test")] {
            assert_eq!(sender(text).as_deref(), Ok(read), "{text:?}");
        }
        for text in ["x.test", "@x.test", "a@", "a b@x.test", "a@x.test, b@x.test", "*@x.test>", "a@*"] {
            assert!(sender(text).is_err(), "{text:?}");
        }
        for (text, read) in
            [("Y.test", "y.test"), ("y.test.", "y.test"), ("[192.0.2.1]", "[192.0.2.1]"), ("b\u{fc}cher.test", "b\u{fc}cher.test")]
        {
            assert_eq!(domain(text).as_deref(), Ok(read), "{text:?}");
        }
        for text in ["", ".", "@y.test", "b@y.test", "*.y.test", "*", "y test", "y..test", "<y.test>", "y.test>"] {
            assert!(domain(text).is_err(), "{text:?}");
        }
        assert_eq!(queue_id("lngq0e4oooll").as_deref(), Ok("1NGQ0E400011"));
        for text in ["", "1NGQ0E40001", "b@y.test", "2d", "1NGQ0E400011 ", "U00000000000"] {
            assert!(queue_id(text).is_err(), "{text:?}");
        }
        assert!(sender_domain("").unwrap_err().contains("--sender \"\""));
        assert!(named("").is_err() && named(" ").is_err() && count("0").is_err() && count("-1").is_err());
        assert_eq!((named("*").as_deref(), count("3")), (Ok("*"), Ok(3)));
    }

    /// A tag or a reason that is too long, or of several lines, was an answer ("0 messages") or a refusal of the engine; `*.` paused the route `*`.
    #[test]
    fn limits_are_named_and_what_is_no_name_is_none() {
        assert_eq!(tag(&"x".repeat(64)), Ok("x".repeat(64)));
        assert!(tag(&"x".repeat(65)).unwrap_err().contains("is 65 bytes long: of a tag 64 are kept"));
        assert_eq!(reason(&"x".repeat(190)), Ok("x".repeat(190)));
        assert!(reason(&"x".repeat(191)).unwrap_err().contains("is 191 bytes long: at most 190 fit"));
        for text in ["a\nb", "a\r\nb", "a\tb", "\u{1b}[31m", "a\u{85}b", "a\u{2028}b", "", " "] {
            let refused = reason(text).unwrap_err();
            assert_eq!(refused.contains("line break"), !text.trim().is_empty(), "{text:?}: {refused}");
        }
        for text in ["*.", ".", "..", "*..", "", &"x".repeat(256)] {
            assert!(destination(text).is_err(), "{text:?}");
        }
        for text in ["*", "y.test", "y.test.", "*.y.test", "*.y.test.", "* from @x.test", "unrouted"] {
            assert_eq!(destination(text).as_deref(), Ok(text));
        }
    }

    /// "0 messages purged" was the answer to what no message can meet.
    #[test]
    fn a_sender_of_another_domain_than_was_named_is_a_contradiction() {
        let both = |sender: &str, domain: &str| {
            contradiction(&Matching { sender: Some(sender.into()), sender_domain: Some(domain.into()), ..Matching::default() })
        };
        assert_eq!(both("a@x.test", "x.test"), None);
        assert_eq!(both("a@X.test", "x.test"), None);
        assert_eq!(both("a@b\u{fc}cher.test", "xn--bcher-kva.test"), None);
        for sender in ["a@y.test", "a@sub.x.test", ""] {
            assert!(both(sender, "x.test").unwrap().contains("--sender-domain \"x.test\""), "{sender}");
        }
        assert_eq!(contradiction(&Matching { sender: Some("a@x.test".into()), ..Matching::default() }), None);
    }

    /// Half a second was no time at all: `purge --older-than 500ms` meant every message.
    #[test]
    fn parts_of_a_second_count() {
        let older =
            |millis| MessageFilter::from(Matching { older_than: Some(Duration::from_millis(millis)), ..Matching::default() }).older_than_s;
        assert_eq!((older(500), older(1000), older(0)), (Some(1), Some(1), Some(0)));
    }
}
