//! A message on its way into its mailboxes: one pass over its content for all of them, each of which may end by itself. Blocking, as
//! [`crate::maildir`] is.

use std::{
    fs::File,
    io::{self, Write},
};

use memchr::memchr;

use crate::maildir::{Mailbox, abandon, open, settle};

/// What came of one mailbox.
#[derive(Debug)]
pub enum Deposited {
    /// It is in `new`, durable.
    Written,
    /// An earlier run did it.
    Found,
    /// Not, and why; whether to try again is [`refusal`](crate::maildir::refusal)'s to say.
    Failed(io::Error),
}

enum Place {
    Open { file: File, bytes: u64, mailbox: Mailbox },
    Ended(Deposited),
}

/// A message on its way into its mailboxes.
pub struct Deposit {
    places: Vec<Place>,
    /// CRLF becomes LF.
    has_lines: bool,
    after_cr: bool,
    last: u8,
    converted: Vec<u8>,
}

impl Deposit {
    /// Opens a file in each `tmp`, with its head.
    pub fn begin(mailboxes: Vec<Mailbox>, has_lines: bool) -> Deposit {
        let mut head = Vec::new();
        let places = mailboxes.into_iter().map(|mailbox| {
            head.clear();
            if has_lines {
                without_cr(&mailbox.head, false, &mut head);
            } else {
                head.extend_from_slice(&mailbox.head);
            }
            match open(&mailbox, &head) {
                Ok(Some(file)) => Place::Open { file, bytes: head.len() as u64, mailbox },
                Ok(None) => Place::Ended(Deposited::Found),
                Err(error) => Place::Ended(failed(&mailbox, error)),
            }
        });
        Deposit { places: places.collect(), has_lines, after_cr: false, last: b'\n', converted: Vec::new() }
    }

    /// The next piece of content. A file that cannot be written ends by itself; the others go on.
    pub fn write(&mut self, piece: &[u8]) {
        let Some(&last) = piece.last() else { return };
        let mut converted = std::mem::take(&mut self.converted);
        converted.clear();
        let bytes = if self.has_lines {
            self.after_cr = without_cr(piece, self.after_cr, &mut converted);
            &converted[..]
        } else {
            piece
        };
        self.last = last;
        self.append(bytes);
        self.converted = converted;
    }

    fn append(&mut self, piece: &[u8]) {
        for place in &mut self.places {
            let Place::Open { file, bytes, mailbox } = place else { continue };
            match file.write_all(piece) {
                Ok(()) => *bytes += piece.len() as u64,
                Err(error) => *place = Place::Ended(failed(mailbox, error)),
            }
        }
    }

    /// Syncs and renames; what came of each mailbox, in their order.
    pub fn finish(mut self) -> Vec<Deposited> {
        if self.after_cr {
            self.append(b"\r");
        }
        if self.has_lines && self.last != b'\n' {
            self.append(b"\n");
        }
        let end = |place| match place {
            Place::Ended(deposited) => deposited,
            Place::Open { file, bytes, mailbox } => match settle(&file, bytes, &mailbox) {
                Ok(()) => Deposited::Written,
                Err(error) => failed(&mailbox, error),
            },
        };
        self.places.into_iter().map(end).collect()
    }
}

fn failed(mailbox: &Mailbox, error: io::Error) -> Deposited {
    abandon(mailbox, &error);
    Deposited::Failed(error)
}

/// Appends `piece` with each CRLF as LF. `after_cr` says that the byte before was a CR that is not appended yet; returns the same for the
/// next piece.
fn without_cr(piece: &[u8], after_cr: bool, out: &mut Vec<u8>) -> bool {
    let mut rest = piece;
    if after_cr && rest.first() != Some(&b'\n') {
        out.push(b'\r');
    }
    while let Some(at) = memchr(b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.first() {
            None => return true,
            Some(b'\n') => {}
            Some(_) => out.push(b'\r'),
        }
    }
    out.extend_from_slice(rest);
    false
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;
    use crate::maildir::tests::{deliver, mailbox, only_file};

    #[test]
    fn a_message_becomes_one_file_in_new_with_line_feeds_whatever_its_pieces() {
        let content = b"Subject: x\r\n\r\nbare \r cr\r\n.dot\r\nend\r";
        for cut in 0..=content.len() {
            let folder = tempfile::tempdir().unwrap();
            let to = mailbox(folder.path());
            assert!(matches!(deliver(&to, &[&content[..cut], b"", &content[cut..]], true), Deposited::Written));
            let (name, bytes) = only_file(&to.folder.join("new"));
            assert_eq!(
                bytes.escape_ascii().to_string(),
                b"Return-Path: <a@x.test>\nSubject: x\n\nbare \r cr\n.dot\nend\r\n".escape_ascii().to_string()
            );
            assert_eq!(name, format!("{},S={}", to.name, bytes.len()));
            assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 0);
            let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(to.folder.join("cur")), mode(to.folder.join("new").join(name))), (0o700, 0o600));
        }
    }

    #[test]
    fn content_without_lines_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        deliver(&to, &[b"\r\n\n\r\0"], false);
        assert_eq!(only_file(&to.folder.join("new")).1, b"Return-Path: <a@x.test>\r\n\r\n\n\r\0");
    }

    /// Both wrote one file: what the later attempt had emptied the earlier one put into `new` as it was then.
    #[test]
    fn an_attempt_that_goes_on_late_neither_spoils_a_later_one_nor_delivers_beside_it() {
        for late_ends_first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let to = mailbox(folder.path());
            let mut late = Deposit::begin(vec![to.clone()], true);
            late.write(b"one\r\n");
            let mut again = Deposit::begin(vec![Mailbox { is_repeated: true, attempt: 2, ..to.clone() }], true);
            late.write(b"two\r\n");
            let ends = if late_ends_first {
                let ended = late.finish();
                again.write(b"one\r\ntwo\r\n");
                [ended, again.finish()]
            } else {
                again.write(b"one\r\ntwo\r\n");
                let ended = again.finish();
                [late.finish(), ended]
            };
            assert!(matches!([&ends[0][..], &ends[1][..]], [[Deposited::Failed(_)], [Deposited::Written]]), "{ends:?}");
            assert_eq!(only_file(&to.folder.join("new")).1, b"Return-Path: <a@x.test>\none\ntwo\n");
            assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 0);
        }
    }

    #[test]
    fn one_mailbox_that_cannot_be_written_does_not_stop_the_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let good = mailbox(folder.path());
        let bad = Mailbox { folder: folder.path().join("file/Maildir"), ..good.clone() };
        let mut deposit = Deposit::begin(vec![bad, good.clone()], true);
        deposit.write(b"x\r\n");
        let ends = deposit.finish();
        assert!(matches!(&ends[..], [Deposited::Failed(_), Deposited::Written]), "{ends:?}");
        only_file(&good.folder.join("new"));
    }
}
