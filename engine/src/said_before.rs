//! What hosts said of attempts that are at a further one now, for `queue why`: until an attempt ends the queue knows nothing of it.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use ringpost_queue::{QueueId, REPLY_BYTES_MAX};
use slab::Slab;

use crate::control::SaidBefore;

/// Attempts of which that is kept at once; a further one says less. With [`HOSTS_MAX`] hosts of [`HOST_BYTES_MAX`] each they are a megabyte and
/// a half at most, with the numbers of their recipients. Each is a connection of its own, and few shards have so many that are put off.
const ATTEMPTS_MAX: usize = 1024;

/// Hosts of one attempt: as many as put it off. Of more, which do not offer what it needs, the last ones.
const HOSTS_MAX: usize = 3;

/// Bytes kept of a host's name; what it said has as many as the queue keeps.
const RELAY_BYTES_MAX: usize = 255;
const HOST_BYTES_MAX: usize = RELAY_BYTES_MAX + REPLY_BYTES_MAX;
const _: () = assert!(ATTEMPTS_MAX * HOSTS_MAX * HOST_BYTES_MAX <= 3 << 19, "a megabyte and a half");

/// Of all attempts of a shard.
#[derive(Default)]
pub(crate) struct SaidBeforeBook {
    attempts: RefCell<Slab<Entry>>,
}

struct Entry {
    message: QueueId,
    recipients: Vec<u16>,
    /// Hosts and their words, the last one last.
    said: VecDeque<(String, String)>,
    /// The host that is tried.
    trying: String,
}

/// Of one attempt, until this is dropped: it goes with what the attempt comes to if no further host takes it.
pub(crate) struct SaidBeforeNote {
    book: Rc<SaidBeforeBook>,
    /// None: there was no room.
    place: Option<usize>,
}

impl SaidBeforeBook {
    /// Begins a note about an attempt of this message.
    pub(crate) fn begin(self: &Rc<Self>, message: QueueId) -> SaidBeforeNote {
        let mut attempts = self.attempts.borrow_mut();
        let entry = Entry { message, recipients: Vec::new(), said: VecDeque::new(), trying: String::new() };
        let place = (attempts.len() < ATTEMPTS_MAX).then(|| attempts.insert(entry));
        SaidBeforeNote { book: self.clone(), place }
    }

    /// What is noted about attempts of this message.
    pub(crate) fn of(&self, message: QueueId) -> Vec<SaidBefore> {
        let attempts = self.attempts.borrow();
        let of_it = attempts.iter().map(|(_, entry)| entry).filter(|entry| entry.message == message);
        of_it.map(|entry| SaidBefore { recipients: entry.recipients.clone(), text: entry.text() }).collect()
    }
}

impl Entry {
    /// `mx1.y.test[192.0.2.7]:25 said "450 4.2.1 Busy"; now trying mx2.y.test[192.0.2.8]:25`.
    fn text(&self) -> String {
        let said: Vec<_> = self.said.iter().map(|(relay, reply)| format!("{relay} said {reply:?}")).collect();
        let trying = if self.trying.is_empty() { "another host" } else { &self.trying };
        format!("{}; now trying {trying}", said.join(" and "))
    }
}

impl SaidBeforeNote {
    /// This host put it off for these recipients, which are all that are left.
    pub(crate) fn said(&self, relay: &str, reply: &str, recipients: impl Iterator<Item = u16>) {
        self.change(|entry| {
            entry.recipients.clear();
            entry.recipients.extend(recipients);
            if entry.said.len() == HOSTS_MAX {
                entry.said.pop_front();
            }
            entry.said.push_back((cut(relay, RELAY_BYTES_MAX), cut(reply, REPLY_BYTES_MAX)));
            entry.trying.clear();
        });
    }

    /// These recipients are not among those that are left.
    pub(crate) fn left(&self, gone: &[u16]) {
        self.change(|entry| entry.recipients.retain(|recipient| !gone.contains(recipient)));
    }

    /// This host is tried.
    pub(crate) fn trying(&self, relay: &str) {
        self.change(|entry| entry.trying = cut(relay, RELAY_BYTES_MAX));
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(place) = self.place {
            change(&mut self.book.attempts.borrow_mut()[place]);
        }
    }
}

impl Drop for SaidBeforeNote {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.book.attempts.borrow_mut().remove(place);
        }
    }
}

fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 1 };

    #[test]
    fn what_hosts_said_is_kept_until_the_attempt_ends_and_never_more_than_so_much() {
        let book = Rc::new(SaidBeforeBook::default());
        let note = book.begin(ID);
        note.said("mx1.y.test[192.0.2.7]:25", "450 4.2.1 Busy", [0, 2].into_iter());
        let one = |text: &str| vec![SaidBefore { recipients: vec![0, 2], text: text.to_owned() }];
        assert_eq!(book.of(ID), one("mx1.y.test[192.0.2.7]:25 said \"450 4.2.1 Busy\"; now trying another host"));
        note.trying("mx2.y.test[192.0.2.8]:25");
        assert_eq!(book.of(ID), one("mx1.y.test[192.0.2.7]:25 said \"450 4.2.1 Busy\"; now trying mx2.y.test[192.0.2.8]:25"));
        assert!(book.of(QueueId { sequence: 2, ..ID }).is_empty());
        for number in 2..9 {
            note.said(&format!("{number}{}", "x".repeat(400)), &"\u{fc}".repeat(400), [2].into_iter());
        }
        let text = book.of(ID).remove(0).text;
        assert!(text.starts_with("6xxx") && text.matches(" said ").count() == HOSTS_MAX, "{text}");
        assert!(text.len() < HOSTS_MAX * (HOST_BYTES_MAX + 20) + 40, "{}", text.len());

        let more: Vec<_> = (1..=ATTEMPTS_MAX).map(|_| book.begin(ID)).collect();
        assert_eq!(book.of(ID).len(), ATTEMPTS_MAX);
        more.last().unwrap().said("mx", "450", [0].into_iter());
        drop((note, more));
        assert!(book.of(ID).is_empty());
    }
}
