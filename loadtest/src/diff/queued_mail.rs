//! What an engine still has in its queue, by its own word: what did not come from there is not lost.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read},
};

use serde::Deserialize;

use crate::ledger::push_address;

/// The longest line that is read: ten thousand recipients with the longest addresses and replies are a part of it.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// States of a recipient for whom no delivery is to come any more (`ringpost queue ls --json`).
const ENDED: [&str; 3] = ["failed", "bounced", "purged"];

/// Deliveries that wait, by queue id and recipient, whose address is written as ledgers have it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct QueuedMail(HashMap<Box<str>, Vec<Box<str>>>);

#[derive(Deserialize)]
struct Message {
    id: Box<str>,
    recipients: Vec<Recipient>,
}

#[derive(Deserialize)]
struct Recipient {
    address: Box<str>,
    state: String,
}

impl QueuedMail {
    /// Reads the lines of `ringpost queue ls --json` to their end.
    ///
    /// # Errors
    /// What cannot be read, or a line that is none of them.
    pub fn read(mut lines: impl BufRead) -> io::Result<QueuedMail> {
        let (mut queued, mut line) = (HashMap::new(), Vec::new());
        while lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? > 0 {
            let message: Message = serde_json::from_slice(&line)?;
            let waiting = message.recipients.into_iter().filter(|recipient| !ENDED.contains(&recipient.state.as_str()));
            queued.insert(message.id, waiting.map(|recipient| as_in_ledgers(&recipient.address)).collect());
            line.clear();
        }
        Ok(QueuedMail(queued))
    }

    /// Does the message of this id wait for a delivery to this recipient?
    pub(super) fn has(&self, queue_id: &str, recipient: &str) -> bool {
        self.0.get(queue_id).is_some_and(|recipients| recipients.iter().any(|waiting| waiting.eq_ignore_ascii_case(recipient)))
    }
}

fn as_in_ledgers(address: &str) -> Box<str> {
    let mut written = Vec::new();
    push_address(address.as_bytes(), &mut written);
    String::from_utf8(written).expect("a ledger has printable ASCII").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_known_by_id_and_recipient_and_what_has_failed_waits_for_nothing() {
        let lines = r#"{"id":"Q1","sender":"s@x","recipients":[{"address":"a@x","state":"deferred"},{"address":"b@x","state":"failed"}]}
{"id":"Q2","recipients":[]}
"#;
        let queued = QueuedMail::read(lines.as_bytes()).unwrap();
        assert!(queued.has("Q1", "a@X") && !queued.has("Q1", "b@x") && !queued.has("Q2", "a@x") && !queued.has("Q3", "a@x"));
        assert!(QueuedMail::read(&b"no message\n"[..]).is_err());
        assert_eq!(QueuedMail::read(&b""[..]).unwrap(), QueuedMail::default());
    }
}
