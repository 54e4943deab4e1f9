//! What the ids and options that choose queued messages may say. A value that no message can have is refused as wrong usage, with what to write
//! instead: "0 messages purged" would read like an answer.

use ringpost_engine::control::MessageFilter;
use ringpost_queue::QueueId;
use ringpost_smtp::address::{PathKind, PathLimits, parse_path};

use crate::cli::Matching;

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

/// The name of a destination, of a tag or of a route, or a reason: whatever there is.
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

    /// Half a second was no time at all: `purge --older-than 500ms` meant every message.
    #[test]
    fn parts_of_a_second_count() {
        let older =
            |millis| MessageFilter::from(Matching { older_than: Some(Duration::from_millis(millis)), ..Matching::default() }).older_than_s;
        assert_eq!((older(500), older(1000), older(0)), (Some(1), Some(1), Some(0)));
    }
}
