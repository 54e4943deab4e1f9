//! A message on its way into its mailboxes: one pass over its content for all of them, each of which may end by itself. Blocking, as
//! [`crate::maildir`] is.

use std::{
    fs::File,
    io::{self, Write},
};

use memchr::memchr;

use crate::{
    deposit_progress::DepositProgress,
    maildir::{Deposited, Mailbox, abandon, open, settle},
};

enum Place {
    Open { file: File, bytes: u64, mailbox: Mailbox },
    Ended,
}

/// A message on its way into its mailboxes. When nobody waits for it any more it stops at the next mailbox, and leaves nothing in `tmp`.
pub struct Deposit {
    places: Vec<Place>,
    progress: DepositProgress,
    /// CRLF becomes LF.
    has_lines: bool,
    after_cr: bool,
    last: u8,
    converted: Vec<u8>,
}

impl Deposit {
    /// Opens a file in each `tmp`, with its head. What comes of each mailbox is in `progress`, which is of these mailboxes.
    pub fn begin(mailboxes: Vec<Mailbox>, has_lines: bool, progress: DepositProgress) -> Deposit {
        let mut head = Vec::new();
        let places = (0..).zip(mailboxes).map(|(position, mailbox)| {
            if !progress.turn_to(position) {
                return Place::Ended;
            }
            head.clear();
            if has_lines {
                without_cr(&mailbox.head, false, &mut head);
            } else {
                head.extend_from_slice(&mailbox.head);
            }
            match open(&mailbox, &head) {
                Ok(Some(file)) => return Place::Open { file, bytes: head.len() as u64, mailbox },
                Ok(None) => progress.ended(position, &mailbox, Deposited::Found),
                Err(error) => fail(&progress, position, &mailbox, error),
            }
            Place::Ended
        });
        let places = places.collect();
        Deposit { places, progress, has_lines, after_cr: false, last: b'\n', converted: Vec::new() }
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
        for (position, place) in self.places.iter_mut().enumerate() {
            let Place::Open { file, bytes, mailbox } = place else { continue };
            if !self.progress.turn_to(position) {
                return self.discard();
            }
            match file.write_all(piece) {
                Ok(()) => *bytes += piece.len() as u64,
                Err(error) => {
                    fail(&self.progress, position, mailbox, error);
                    *place = Place::Ended;
                }
            }
        }
    }

    /// Syncs and renames.
    pub fn finish(mut self) {
        if self.after_cr {
            self.append(b"\r");
        }
        if self.has_lines && self.last != b'\n' {
            self.append(b"\n");
        }
        for (position, place) in std::mem::take(&mut self.places).into_iter().enumerate() {
            let Place::Open { file, bytes, mailbox } = place else { continue };
            match settle(&file, bytes, &mailbox, || self.progress.turn_to(position), File::sync_all) {
                Ok(true) => self.progress.ended(position, &mailbox, Deposited::Written),
                Ok(false) => mailbox.remove_draft(),
                Err(error) => fail(&self.progress, position, &mailbox, error),
            }
        }
    }

    /// Leaves nothing behind, as an end before [`Deposit::finish`] does: content that cannot be read, or the end of the process.
    pub fn discard(&mut self) {
        for place in self.places.drain(..) {
            if let Place::Open { mailbox, .. } = place {
                mailbox.remove_draft();
            }
        }
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        self.discard();
    }
}

fn fail(progress: &DepositProgress, position: usize, mailbox: &Mailbox, error: io::Error) {
    abandon(mailbox, &error);
    progress.ended(position, mailbox, Deposited::Failed(error));
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
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

    use super::*;
    use crate::{
        deposit_progress::LateDeposits,
        maildir::tests::{deliver, deliver_to_all, mailbox, only_file},
    };

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

    fn begin(to: &Mailbox, late: &Arc<LateDeposits>) -> (Deposit, DepositProgress) {
        let progress = DepositProgress::new(std::slice::from_ref(to), late.clone());
        (Deposit::begin(vec![to.clone()], true, progress.clone()), progress)
    }

    /// Both wrote one file: what the later attempt had emptied the earlier one put into `new` as it was then.
    #[test]
    fn an_attempt_that_goes_on_late_neither_spoils_a_later_one_nor_delivers_beside_it() {
        for late_ends_first in [true, false] {
            let (folder, none) = (tempfile::tempdir().unwrap(), Arc::default());
            let to = mailbox(folder.path());
            // Of a process that is not this one, which nothing tells that it is late.
            let (mut late, late_progress) = begin(&to, &none);
            late.write(b"one\r\n");
            let (mut again, progress) = begin(&Mailbox { is_repeated: true, attempt: 2, ..to.clone() }, &none);
            late.write(b"two\r\n");
            if late_ends_first {
                late.finish();
                again.write(b"one\r\ntwo\r\n");
                again.finish();
            } else {
                again.write(b"one\r\ntwo\r\n");
                again.finish();
                late.finish();
            }
            let ends = [late_progress, progress].map(|progress| progress.give_up().0.remove(0));
            assert!(matches!(ends, [Some(Deposited::Failed(_)), Some(Deposited::Written)]), "{ends:?}");
            assert_eq!(only_file(&to.folder.join("new")).1, b"Return-Path: <a@x.test>\none\ntwo\n");
            assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_deposit_that_was_given_up_stops_and_leaves_nothing() {
        for written in 0..3 {
            let (folder, late) = (tempfile::tempdir().unwrap(), Arc::default());
            let to = mailbox(folder.path());
            let progress = DepositProgress::new(std::slice::from_ref(&to), Arc::clone(&late));
            let give_up = |at| {
                if at == written {
                    let (ends, at) = progress.give_up();
                    assert!(matches!(ends[..], [None]) && at == 0 && progress.folder() == to.folder);
                }
            };
            give_up(0);
            let mut deposit = Deposit::begin(vec![to.clone()], true, progress.clone());
            give_up(1);
            deposit.write(b"x\r\n");
            give_up(2);
            deposit.finish();
            for place in ["tmp", "new"] {
                assert_eq!(fs::read_dir(to.folder.join(place)).map_or(0, Iterator::count), 0, "{written}: {place}");
            }
            assert!(!late.has(&to.name));
        }
    }

    /// The thread was in the rename when its time was over.
    #[test]
    fn what_comes_into_a_mailbox_after_the_attempt_was_given_up_is_known_to_the_next() {
        let (folder, late) = (tempfile::tempdir().unwrap(), Arc::default());
        let to = mailbox(folder.path());
        let progress = DepositProgress::new(std::slice::from_ref(&to), Arc::clone(&late));
        assert!(progress.turn_to(0));
        progress.give_up();
        progress.ended(0, &to, Deposited::Failed(io::ErrorKind::TimedOut.into()));
        assert!(!late.has(&to.name), "tried again");
        progress.ended(0, &to, Deposited::Written);
        assert!(late.has(&to.name));
        late.forget(&to.name);
        assert!(!late.has(&to.name));
    }

    /// Sixteen mailboxes on a slow disk were opened in one step, which took longer than a step may, and so did each further attempt.
    #[test]
    fn a_deposit_that_turns_to_one_mailbox_after_the_other_moves() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        let (deposit, progress) = begin(&to, &Arc::default());
        assert_eq!([progress.has_moved(), progress.has_moved()], [true, false]);
        deposit.finish();
        assert_eq!([progress.has_moved(), progress.has_moved()], [true, false]);
    }

    /// Where the content could not be read to its end, a part of it stayed in each `tmp`.
    #[test]
    fn what_is_given_up_leaves_nothing_in_tmp() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        let (mut half, _progress) = begin(&to, &Arc::default());
        half.write(b"x\r\n");
        drop(half);
        assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn one_mailbox_that_cannot_be_written_does_not_stop_the_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let good = mailbox(folder.path());
        let bad = Mailbox { folder: folder.path().join("file/Maildir"), ..good.clone() };
        let ends = deliver_to_all(&[bad, good.clone()], &[b"x\r\n"], true);
        assert!(matches!(&ends[..], [Deposited::Failed(_), Deposited::Written]), "{ends:?}");
        only_file(&good.folder.join("new"));
    }

    /// With anything else in place of the sync all tests were green.
    #[test]
    fn a_file_that_cannot_be_synced_is_no_delivery_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        let (mut deposit, progress) = begin(&to, &Arc::default());
        // It takes what is written, and cannot be synced.
        let (socket, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
        let Place::Open { file, .. } = &mut deposit.places[0] else { panic!("it was opened") };
        *file = File::from(std::os::fd::OwnedFd::from(socket));
        deposit.write(b"x\r\n");
        deposit.finish();
        let end = progress.give_up().0.remove(0);
        assert!(matches!(&end, Some(Deposited::Failed(error)) if error.kind() == io::ErrorKind::InvalidInput), "{end:?}");
        for place in ["tmp", "new"] {
            assert_eq!(fs::read_dir(to.folder.join(place)).map_or(0, Iterator::count), 0, "{place}");
        }
    }
}
