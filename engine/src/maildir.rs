//! Messages become files of maildirs: written in `tmp`, synced, renamed into `new`, and the folder synced. Blocking: for threads of
//! [`crate::file_threads`].
//!
//! The name of a file is made of the queue id and the number of the recipient, so that a delivery whose outcome was lost in a crash is
//! found again: `<accepted, unix s>.Q<queue id>R<recipient>.<host>,S=<bytes>`, at most [`NAME_BYTES_MAX`]. Lines end with LF, as maildirs have them; content without
//! lines (BINARYMIME) is kept as it is. In `tmp` each attempt has a file of its own, `<name>,T=<16 random hex digits>`: the owner of a mailbox
//! cannot put anything in its place, and an attempt that goes on late cannot touch that of a later one, which has removed its file.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tracing::warn;

use crate::folder::{LinkToNothing, explained, has_anything_above, link_to_nothing, make_folder, open_folder, sync_folder};

/// Longest name of a file, in octets: Linux's `NAME_MAX`. Some file systems take less.
pub const NAME_BYTES_MAX: usize = 255;

/// What the size takes of that at most.
pub const SIZE_BYTES_MAX: usize = ",S=18446744073709551615".len();

/// What tells the attempt takes of it while a file is in `tmp`, in place of the size.
const ATTEMPT_BYTES: usize = ",T=0123456789abcdef".len();
const _: () = assert!(ATTEMPT_BYTES <= SIZE_BYTES_MAX, "a name with room for its size has room in tmp");

/// Mailboxes are their owner's.
const FILE_MODE: u32 = 0o600;

/// One mailbox that a message is for.
#[derive(Clone, Debug)]
pub struct Mailbox {
    /// The maildir.
    pub folder: PathBuf,
    /// The file's name without its size, which has room in [`NAME_BYTES_MAX`]; no `/` and no `:`.
    pub name: String,
    /// Tells the file of this attempt from those of others while it is in `tmp`; drawn at random.
    pub attempt: u64,
    /// Lines in front of the content, with CRLF.
    pub head: Vec<u8>,
    /// An earlier run may have delivered it: look before writing.
    pub is_repeated: bool,
    /// What becomes of the message if the maildir is not there.
    pub missing: Missing,
}

impl Mailbox {
    /// The file while it is written.
    fn draft(&self) -> PathBuf {
        self.folder.join("tmp").join(format!("{},T={:016x}", self.name, self.attempt))
    }

    /// Nothing stays in `tmp`: best effort. What is left is removed by the next attempt, or swept by a reader after 36 hours.
    pub(crate) fn remove_draft(&self) {
        let _ = fs::remove_file(self.draft());
    }

    /// Is a file of this name the message, as an attempt wrote it? Readers append what they want to know behind the name.
    fn is_named(&self, file: &OsStr) -> bool {
        let rest = file.to_str().and_then(|file| file.strip_prefix(&self.name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([',', ':']))
    }
}

/// What becomes of a message for a maildir that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It is made.
    Make,
    /// It may come.
    Wait,
    /// There is no such mailbox; unless a disk may not be mounted: the folder of all of them is not there either, the nearest folder that is
    /// there is empty, as the place of a mount is, or a link on the path leads to nothing.
    Refuse {
        /// That folder.
        base: PathBuf,
    },
}

/// A maildir is not there and is not to be made.
#[derive(Debug, thiserror::Error)]
#[error("there is no such mailbox")]
struct NoMailbox {
    is_final: bool,
}

/// A maildir is not there, and its file system has few inodes left: somebody who invents addresses could use up all that others need.
#[derive(Debug, thiserror::Error)]
#[error("too few inodes are left for a new mailbox")]
struct FewInodes;

/// The maildir is there, and its file system takes no name that is as long as that of the file: that is nothing of the recipient's.
#[derive(Debug, thiserror::Error)]
#[error("the file system takes no file names of {0} octets")]
struct FileNameTooLong(usize);

/// No mailbox is made while less than this part of a file system's inodes is free. One takes four.
const INODES_KEPT: u64 = 100;

/// What came of one mailbox.
#[derive(Debug)]
pub enum Deposited {
    /// It is in `new`, durable.
    Written,
    /// An earlier run did it.
    Found,
    /// Not, and why; whether to try again is [`refusal`]'s to say.
    Failed(io::Error),
}

/// A file in `tmp` that begins with `head`, or none if an earlier attempt did it all.
pub(crate) fn open(mailbox: &Mailbox, head: &[u8]) -> io::Result<Option<File>> {
    if mailbox.is_repeated {
        // In this order: an earlier attempt that still runs has renamed its file before, and is found, or finds nothing to rename.
        remove_earlier(mailbox)?;
        if is_there(mailbox)? {
            // It was renamed; whether that is on the disk is not known.
            sync_folder(&mailbox.folder.join("new"))?;
            return Ok(None);
        }
    }
    let path = mailbox.draft();
    // A new file and nothing else: the opening of a FIFO would wait for a reader, for ever.
    let create = || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
    let mut file = match create().map_err(|error| of_file_name(error, &path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !mailbox.folder.is_dir() {
                may_be_made(mailbox)?;
            }
            // `tmp` last: where it is, the others are.
            for folder in ["cur", "new", "tmp"] {
                make_folder(&mailbox.folder.join(folder))?;
            }
            create().map_err(|error| of_file_name(explained(error, &path), &path))?
        }
        opened => opened?,
    };
    file.write_all(head)?;
    Ok(Some(file))
}

/// Names that are too long are mostly the recipient's: not where the folder that the file at `path` is to be in is there.
fn of_file_name(error: io::Error, path: &Path) -> io::Error {
    match (error.raw_os_error(), path.file_name()) {
        (Some(libc::ENAMETOOLONG), Some(name)) if path.parent().is_some_and(Path::is_dir) => io::Error::other(FileNameTooLong(name.len())),
        _ => error,
    }
}

/// May a maildir that is not there be made?
fn may_be_made(mailbox: &Mailbox) -> io::Result<()> {
    if mailbox.missing != Missing::Make
        && let Some(link) = link_to_nothing(&mailbox.folder)
    {
        return Err(io::Error::new(io::ErrorKind::NotFound, LinkToNothing(link.to_owned())));
    }
    match &mailbox.missing {
        Missing::Make => {}
        Missing::Wait => return Err(io::Error::other(NoMailbox { is_final: false })),
        Missing::Refuse { base } => {
            // The working folder is there.
            let is_final = (base.as_os_str().is_empty() || base.is_dir()) && has_anything_above(&mailbox.folder)?;
            return Err(io::Error::other(NoMailbox { is_final }));
        }
    }
    // A file system that counts no inodes has enough.
    let stat = mailbox.folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    match stat {
        Some(stat) if has_few_inodes(stat.f_files, stat.f_favail) => Err(io::Error::other(FewInodes)),
        _ => Ok(()),
    }
}

fn has_few_inodes(all: u64, free: u64) -> bool {
    free < all / INODES_KEPT
}

/// Removes what earlier attempts have left in `tmp`.
fn remove_earlier(mailbox: &Mailbox) -> io::Result<()> {
    for draft in named(mailbox, "tmp")? {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // No attempt has made a folder.
            Err(_) if fs::symlink_metadata(&draft).is_ok_and(|metadata| metadata.is_dir()) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Is a file of this name in `new` or `cur`?
fn is_there(mailbox: &Mailbox) -> io::Result<bool> {
    Ok(!named(mailbox, "new")?.is_empty() || !named(mailbox, "cur")?.is_empty())
}

/// The files of this message in a folder of the maildir, which need not be there.
fn named(mailbox: &Mailbox, folder: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(mailbox.folder.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if mailbox.is_named(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Makes the file durable as one in `new`, or not one in `new` at all; `bytes` are its length. Before each step it asks whether to go on; false:
/// it was not to.
pub(crate) fn settle(
    file: &File,
    bytes: u64,
    mailbox: &Mailbox,
    goes_on: impl Fn() -> bool,
    sync: impl Fn(&File) -> io::Result<()>,
) -> io::Result<bool> {
    if !goes_on() {
        return Ok(false);
    }
    sync(file)?;
    let new = mailbox.folder.join("new");
    let (from, to) = (mailbox.draft(), new.join(format!("{},S={bytes}", mailbox.name)));
    let folder = match open_folder(&new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(&new)?;
            open_folder(&new).map_err(|error| explained(error, &new))?
        }
        opened => opened?,
    };
    if !goes_on() {
        return Ok(false);
    }
    fs::rename(&from, &to).map_err(|error| of_file_name(explained(error, &to), &to))?;
    match sync(&folder) {
        // The next attempt would find it there, sync once more, and be told of no error: it has been told. One that was given up meanwhile
        // leaves it: the next attempt may have found it.
        Err(error) if goes_on() => {
            let _ = fs::remove_file(&to);
            Err(error)
        }
        synced => synced.map(|()| true),
    }
}

/// Nothing stays in `tmp`. A sync that failed is not tried again: the next attempt writes a file of its own.
pub(crate) fn abandon(mailbox: &Mailbox, error: &io::Error) {
    mailbox.remove_draft();
    warn!(folder = %mailbox.folder.display(), %error, "a maildir cannot be written");
}

/// The reply that stands for an error of the file system. What an operator can mend is deferred; no path is shown.
pub fn refusal(error: &io::Error) -> String {
    if let Some(NoMailbox { is_final }) = error.get_ref().and_then(|cause| cause.downcast_ref()) {
        return if *is_final { "550 5.1.1 there is no such mailbox here" } else { "450 4.1.1 there is no such mailbox here yet" }
            .to_owned();
    }
    match error.raw_os_error() {
        Some(libc::ENOSPC) => "452 4.3.1 no space left for the mailbox".to_owned(),
        Some(libc::EDQUOT) => "452 4.2.2 the mailbox is over its quota".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "451 4.3.0 the mailbox may not be written".to_owned(),
        Some(libc::EROFS) => "451 4.3.0 the mailbox is on a read-only file system".to_owned(),
        Some(libc::ENAMETOOLONG) => "553 5.1.3 this recipient cannot have a mailbox by its name".to_owned(),
        None if error.get_ref().is_some_and(|cause| cause.is::<LinkToNothing>()) => {
            "451 4.3.0 writing the mailbox: a folder on its path is a symbolic link to nothing".to_owned()
        }
        None if error.get_ref().is_some_and(|cause| cause.is::<FileNameTooLong>()) => {
            "451 4.3.0 writing the mailbox: its file system takes no names as long as those of the files".to_owned()
        }
        None if error.get_ref().is_some_and(|cause| cause.is::<FewInodes>()) => "452 4.3.1 too little room for a new mailbox".to_owned(),
        _ => format!("451 4.3.0 writing the mailbox: {error}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{deposit::Deposit, deposit_progress::DepositProgress};

    pub(crate) fn mailbox(folder: &Path) -> Mailbox {
        Mailbox {
            folder: folder.join("y.test/b/Maildir"),
            name: "1790000000.Q1-2-3R0.mx.test".into(),
            attempt: 1,
            head: b"Return-Path: <a@x.test>\r\n".into(),
            is_repeated: false,
            missing: Missing::Make,
        }
    }

    /// A file whose name could not be synced stayed in `new` while its mail was told to be deferred; the next attempt found it, synced once more,
    /// and since a failure is told once, took it for durable.
    #[test]
    fn what_cannot_be_synced_is_in_new_for_nobody() {
        for fails_for_folder in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let to = mailbox(folder.path());
            let file = open(&to, b"head\n").unwrap().unwrap();
            let sync = |file: &File| match file.metadata()?.is_dir() == fails_for_folder {
                true => Err(io::Error::from_raw_os_error(libc::EIO)),
                false => file.sync_all(),
            };
            let error = settle(&file, 5, &to, || true, sync).unwrap_err();
            assert!(refusal(&error).starts_with("451 4.3.0 "));
            abandon(&to, &error);
            for place in ["new", "tmp", "cur"] {
                assert_eq!(fs::read_dir(to.folder.join(place)).unwrap().count(), 0, "{place}");
            }
            let repeated = Mailbox { is_repeated: true, ..to };
            assert!(matches!(deliver(&repeated, &[b"x\r\n"], true), Deposited::Written));
        }
    }

    /// Where a domain has no list of its recipients, whoever invented local parts made folders, until no inode was left for anybody.
    #[test]
    fn a_mailbox_that_is_not_there_is_made_waited_for_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("mail");
        let said = |missing: Missing| match deliver(&Mailbox { missing, ..mailbox(&base) }, &[b"x\r\n"], true) {
            Deposited::Failed(error) => refusal(&error)[..9].to_owned(),
            Deposited::Written => "written".to_owned(),
            Deposited::Found => "found".to_owned(),
        };
        let refuse = || Missing::Refuse { base: base.clone() };
        assert_eq!(
            (said(Missing::Wait), said(refuse())),
            ("450 4.1.1".into(), "450 4.1.1".into()),
            "the folder of all may be mounted later"
        );
        fs::create_dir_all(base.join("y.test/c")).unwrap();
        assert_eq!((said(Missing::Wait), said(refuse())), ("450 4.1.1".into(), "550 5.1.1".into()));
        assert!(!base.join("y.test/b").exists());
        // Somebody made it, as an empty folder or whole.
        fs::create_dir_all(base.join("y.test/b/Maildir")).unwrap();
        assert_eq!((said(Missing::Wait), said(refuse()), said(Missing::Make)), ("written".into(), "written".into(), "written".into()));
        assert!(has_few_inodes(65_536, 654) && !has_few_inodes(65_536, 655) && !has_few_inodes(0, 0));
        assert!(refusal(&io::Error::other(FewInodes)).starts_with("452 4.3.1 "));
    }

    /// With `unknown_mailbox = "refuse"` all mail for a disk that was not mounted failed for good, since that setting was there: the place of
    /// a mount is a folder, and of a link to nothing only the making of a folder knew.
    #[test]
    fn a_disk_that_is_not_mounted_refuses_nothing_for_good() {
        for (place, other) in [("mail", "mail/z.test"), ("mail/y.test", "mail/y.test/c"), ("mail/y.test/b", "mail/y.test/b/.bashrc")] {
            let folder = tempfile::tempdir().unwrap();
            let base = folder.path().join("mail");
            let to = Mailbox { missing: Missing::Refuse { base: base.clone() }, ..mailbox(&base) };
            let said = || match deliver(&to, &[b"x\r\n"], true) {
                Deposited::Failed(error) => refusal(&error),
                ended => panic!("{ended:?}"),
            };
            let place = folder.path().join(place);
            fs::create_dir_all(&place).unwrap();
            assert!(said().starts_with("450 4.1.1 "), "{}: {}", place.display(), said());
            fs::remove_dir(&place).unwrap();
            std::os::unix::fs::symlink(folder.path().join("not-mounted/store"), &place).unwrap();
            assert_eq!(said(), "451 4.3.0 writing the mailbox: a folder on its path is a symbolic link to nothing", "{}", place.display());
            fs::remove_file(&place).unwrap();
            fs::create_dir_all(folder.path().join(other)).unwrap();
            assert!(said().starts_with("550 5.1.1 "), "{}: {}", place.display(), said());
        }
    }

    pub(crate) fn deliver(mailbox: &Mailbox, pieces: &[&[u8]], has_lines: bool) -> Deposited {
        deliver_to_all(std::slice::from_ref(mailbox), pieces, has_lines).remove(0)
    }

    pub(crate) fn deliver_to_all(mailboxes: &[Mailbox], pieces: &[&[u8]], has_lines: bool) -> Vec<Deposited> {
        let progress = DepositProgress::new(mailboxes, Arc::default());
        let mut deposit = Deposit::begin(mailboxes.to_vec(), has_lines, progress.clone());
        pieces.iter().for_each(|piece| deposit.write(piece));
        deposit.finish();
        progress.give_up().0.into_iter().map(|end| end.expect("it has finished")).collect()
    }

    pub(crate) fn only_file(folder: &Path) -> (String, Vec<u8>) {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let path = files.remove(0);
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
    }

    #[test]
    fn what_an_earlier_run_delivered_is_found_wherever_it_was_moved() {
        for place in ["new", "cur"] {
            let folder = tempfile::tempdir().unwrap();
            let to = mailbox(folder.path());
            deliver(&to, &[b"x\r\n"], true);
            let (name, _) = only_file(&to.folder.join("new"));
            if place == "cur" {
                fs::rename(to.folder.join("new").join(&name), to.folder.join("cur").join(format!("{name}:2,RS"))).unwrap();
            }
            let repeated = Mailbox { is_repeated: true, ..to.clone() };
            assert!(matches!(deliver(&repeated, &[b"x\r\n"], true), Deposited::Found));
            only_file(&to.folder.join(place));
            // Another recipient of the same message is another file, also one whose number begins alike.
            let other = Mailbox { name: to.name.replace("R0.", "R01."), ..repeated };
            assert!(matches!(deliver(&other, &[b"x\r\n"], true), Deposited::Written));
        }
    }

    #[test]
    fn what_an_earlier_attempt_left_in_tmp_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        let progress = DepositProgress::new(std::slice::from_ref(&to), Arc::default());
        let mut half = Deposit::begin(vec![to.clone()], true, progress);
        half.write(b"much more than what comes later\r\n");
        drop(half);
        // Of an earlier version, and of nobody.
        fs::write(to.folder.join("tmp").join(&to.name), b"half").unwrap();
        fs::create_dir(to.folder.join("tmp").join(format!("{},", to.name))).unwrap();
        fs::write(to.folder.join("tmp").join(format!("{}.other", to.name)), b"another host's").unwrap();
        let again = Mailbox { is_repeated: true, attempt: 2, ..to.clone() };
        assert!(matches!(deliver(&again, &[b"x\r\n"], true), Deposited::Written));
        assert_eq!(only_file(&to.folder.join("new")).1, b"Return-Path: <a@x.test>\nx\n");
        assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 2);
    }

    /// The owner of a mailbox could know the name of the file in `tmp`, and put there what no writer comes back from opening: two such
    /// messages ended the delivery into all maildirs.
    #[test]
    fn a_fifo_in_the_place_of_the_file_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        fs::create_dir_all(to.folder.join("tmp")).unwrap();
        for name in [to.folder.join("tmp").join(&to.name), to.draft()] {
            rustix::fs::mkfifoat(rustix::fs::CWD, &name, rustix::fs::Mode::RWXU).unwrap();
            let (mailbox, (sender, ended)) = (to.clone(), std::sync::mpsc::channel());
            // Left behind where it does not come back.
            std::thread::spawn(move || sender.send(deliver(&mailbox, &[b"x\r\n"], true)));
            let ended = ended.recv_timeout(std::time::Duration::from_secs(10)).expect("it does not wait for a reader");
            // The second could only be guessed; what is there is removed.
            assert_eq!(matches!(ended, Deposited::Written), name != to.draft(), "{ended:?}");
            assert!(matches!(deliver(&to, &[b"x\r\n"], true), Deposited::Written));
        }
    }

    /// A kill between the making of `tmp` and that of `new` left a maildir into which nothing could be delivered any more.
    #[test]
    fn a_maildir_that_was_made_by_half_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        fs::create_dir_all(to.folder.join("tmp")).unwrap();
        assert!(matches!(deliver(&to, &[b"x\r\n"], true), Deposited::Written));
        only_file(&to.folder.join("new"));
    }

    /// A link to a disk that was not mounted overflowed the stack: making the folder below it failed for want of a folder above, which was
    /// there each time it was looked for. The path is walked up once and down once now.
    #[test]
    fn a_link_to_nothing_defers_wherever_it_is_and_does_not_stop_the_others() {
        for link in ["y.test", "y.test/b", "y.test/b/Maildir", "y.test/b/Maildir/tmp", "y.test/b/Maildir/new", "y.test/b/Maildir/cur"] {
            let folder = tempfile::tempdir().unwrap();
            let bad = mailbox(folder.path());
            let good = Mailbox { folder: folder.path().join("z.test/c"), ..bad.clone() };
            let link = folder.path().join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(folder.path().join("not-mounted/store"), &link).unwrap();
            let ends = deliver_to_all(&[bad.clone(), good.clone()], &[b"x\r\n"], true);
            only_file(&good.folder.join("new"));
            if link.ends_with("cur") {
                // Nothing is ever put there.
                assert!(matches!(&ends[..], [Deposited::Written, Deposited::Written]), "{ends:?}");
                continue;
            }
            let [Deposited::Failed(error), Deposited::Written] = &ends[..] else { panic!("{}: {ends:?}", link.display()) };
            assert_eq!(error.to_string(), format!("{} is a symbolic link to nothing", link.display()));
            assert_eq!(refusal(error), "451 4.3.0 writing the mailbox: a folder on its path is a symbolic link to nothing");
            fs::remove_file(&link).unwrap();
            assert!(matches!(deliver(&bad, &[b"x\r\n"], true), Deposited::Written), "once it is mended");
        }
    }

    #[test]
    fn a_file_system_that_makes_no_folders_defers() {
        let to = Mailbox { folder: "/proc/ringpost-test/b".into(), ..mailbox(Path::new("")) };
        let Deposited::Failed(error) = deliver(&to, &[b"x\r\n"], true) else { panic!("no file can be in /proc") };
        assert!(refusal(&error).starts_with("451 4.3.0"), "{error}");
    }

    /// It was the recipient's fault, for good, also where the name was ours.
    #[test]
    fn a_file_name_that_is_too_long_defers_and_a_folders_fails() {
        let folder = tempfile::tempdir().unwrap();
        let to = mailbox(folder.path());
        assert!(matches!(deliver(&to, &[b"x\r\n"], true), Deposited::Written));
        let said = |to: &Mailbox| match deliver(to, &[b"x\r\n"], true) {
            Deposited::Failed(error) => refusal(&error)[..9].to_owned(),
            other => panic!("{other:?}"),
        };
        // The second fits until its size is behind it.
        for bytes in [NAME_BYTES_MAX + 1, NAME_BYTES_MAX] {
            assert_eq!(said(&Mailbox { name: "n".repeat(bytes), ..to.clone() }), "451 4.3.0");
            assert_eq!(fs::read_dir(to.folder.join("tmp")).unwrap().count(), 0);
        }
        assert_eq!(said(&Mailbox { folder: folder.path().join("b".repeat(NAME_BYTES_MAX + 1)), ..to }), "553 5.1.3");
    }

    #[test]
    fn errors_that_can_be_mended_defer() {
        for (errno, expected) in [
            (libc::ENOSPC, "452 4.3.1"),
            (libc::EDQUOT, "452 4.2.2"),
            (libc::EACCES, "451 4.3.0"),
            (libc::EROFS, "451 4.3.0"),
            (libc::EIO, "451 4.3.0"),
            (libc::ENOTDIR, "451 4.3.0"),
            (libc::ENAMETOOLONG, "553 5.1.3"),
        ] {
            let line = refusal(&io::Error::from_raw_os_error(errno));
            assert!(line.starts_with(expected), "{line}");
        }
    }
}
