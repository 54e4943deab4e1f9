//! What operators find a message by beside its addresses: the tag of its listener and the value of a header field.
//!
//! In the record, and until the message is queued, tags are one run of bytes: for each a length and the tag.

use ringpost_queue::{TAG_BYTES_MAX, TAGS_MAX};
use ringpost_smtp::header::field_value;

/// Bytes of all tags of a message at most.
pub(crate) const TAGS_BYTES_MAX: usize = TAGS_MAX * (1 + TAG_BYTES_MAX);

/// Where tags come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct TagSources {
    /// Name of a header field.
    pub(crate) header: Option<String>,
    /// The tag of each listener, in the order of the config.
    pub(crate) listeners: Vec<Option<String>>,
}

impl TagSources {
    /// From the config.
    pub(crate) fn new(config: &ringpost_config::Config) -> Self {
        Self { header: config.queue.tag_header.clone(), listeners: config.listeners.iter().map(|listener| listener.tag.clone()).collect() }
    }

    /// The tags of a message whose content begins so; mostly none, which takes no memory.
    pub(crate) fn tags_of(&self, listener: usize, content: &[u8]) -> Vec<u8> {
        let mut tags = Vec::new();
        if let Some(Some(tag)) = self.listeners.get(listener) {
            push(&mut tags, tag.as_bytes());
        }
        if let Some(value) = self.header.as_ref().and_then(|name| field_value(content, name)) {
            push(&mut tags, value);
        }
        tags
    }
}

fn push(tags: &mut Vec<u8>, tag: &[u8]) {
    let tag = &tag[..tag.len().min(TAG_BYTES_MAX)];
    if !tag.is_empty() && !each(tags).any(|other| other == tag) {
        tags.push(tag.len() as u8);
        tags.extend_from_slice(tag);
    }
}

/// Each tag; what is damaged ends the list.
pub(crate) fn each(tags: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = tags;
    std::iter::from_fn(move || {
        let (&length, behind) = rest.split_first()?;
        let (tag, behind) = behind.split_at_checked(length.into())?;
        rest = behind;
        Some(tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_listener_and_header_are_read_back_each_once_and_bounded() {
        let sources = TagSources { header: Some("X-Campaign".into()), listeners: vec![None, Some("bulk".into())] };
        let tags = |listener, content: &str| -> Vec<String> {
            let tags = sources.tags_of(listener, content.as_bytes());
            assert!(tags.len() <= TAGS_BYTES_MAX);
            each(&tags).map(|tag| String::from_utf8_lossy(tag).into_owned()).collect()
        };
        assert_eq!(tags(1, "Subject: x\r\nx-campaign:  spring \r\n\r\nX-Campaign: no\r\n"), ["bulk", "spring"]);
        assert_eq!(tags(0, "Subject: x\r\n\r\nX-Campaign: no\r\n"), [""; 0]);
        assert_eq!(tags(1, "X-Campaign: bulk\r\n"), ["bulk"]);
        assert_eq!(tags(7, &format!("X-Campaign: {}\r\n\r\n", "y".repeat(500))), ["y".repeat(TAG_BYTES_MAX)]);
        assert_eq!(each(&[3, b'a']).count(), 0);
    }
}
