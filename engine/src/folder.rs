//! Folders that outlive a power cut, and what keeps one from being made.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// What is made for mailboxes is their owner's.
const FOLDER_MODE: u32 = 0o700;

/// Makes a folder with those above it, each durable: a name in a folder that is not itself on the disk would be lost with it.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    make_folders(path, File::sync_all)
}

/// `sync` makes what was made in a folder durable.
fn make_folders(path: &Path, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    // Up to the first that is there or can be made, then down again. Each is tried twice at most: where a link leads to nothing, or a file
    // system makes no folders, one below stays impossible whatever was made above it.
    let mut above = Vec::new();
    let mut next = Some(path);
    while let Some(folder) = next.filter(|folder| !folder.as_os_str().is_empty()) {
        match make_one(folder, &sync) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => above.push(folder),
            made => {
                made?;
                break;
            }
        }
        next = folder.parent();
    }
    above.into_iter().rev().try_for_each(|folder| make_one(folder, &sync).map_err(|error| explained(error, folder)))
}

fn make_one(path: &Path, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let above = path.parent().map(open_folder).transpose()?;
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // One that stayed would be taken for durable by the next attempt.
        made => made.and_then(|()| above.map_or(Ok(()), |above| sync(&above).inspect_err(|_| drop(fs::remove_dir(path))))),
    }
}

/// A part of a mailbox's path.
#[derive(Debug, thiserror::Error)]
#[error("{} is a symbolic link to nothing", .0.display())]
pub(crate) struct LinkToNothing(pub(crate) PathBuf);

/// "No such file or directory" of something that was just made is a link whose target is away: a disk that is not mounted.
pub(crate) fn explained(error: io::Error, path: &Path) -> io::Error {
    match link_to_nothing(path) {
        Some(link) if error.kind() == io::ErrorKind::NotFound => io::Error::new(error.kind(), LinkToNothing(link.to_owned())),
        _ => error,
    }
}

/// The part of a path that is a symbolic link whose target is away.
pub(crate) fn link_to_nothing(path: &Path) -> Option<&Path> {
    let leads_nowhere = |path: &&Path| path.is_symlink() && fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    path.ancestors().find(leads_nowhere)
}

/// Is something in the nearest folder that is there?
pub(crate) fn has_anything_above(path: &Path) -> io::Result<bool> {
    for folder in path.ancestors().skip(1) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match fs::read_dir(folder) {
            Ok(mut entries) => return Ok(entries.next().transpose()?.is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Makes creations, renames and removals in `folder` durable (S7), as far as they are not its caller's own: a change whose sync fails is to be
/// taken back, so its folder is opened before it.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    open_folder(folder)?.sync_all()
}

/// A folder whose changes are to be synced. Opened before they are made: what has failed by then is told to those alone that are open, and once.
pub(crate) fn open_folder(folder: &Path) -> io::Result<File> {
    // A relative path of one name lies in the working folder.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // Not a FIFO in its place, which would wait for a writer.
    File::options().read(true).custom_flags(libc::O_DIRECTORY).open(folder)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, os::unix::fs::MetadataExt};

    use super::*;

    /// It waited for a writer, for ever.
    #[test]
    fn a_fifo_in_the_place_of_a_folder_is_an_error() {
        let above = tempfile::tempdir().unwrap();
        let fifo = above.path().join("new");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        let (sender, synced) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(sync_folder(&fifo).map_err(|error| error.kind())));
        let synced = synced.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(synced, Ok(Err(io::ErrorKind::NotADirectory)));
        sync_folder(above.path()).unwrap();
    }

    /// Without the sync all tests were green.
    #[test]
    fn each_folder_that_is_made_is_synced_where_it_was_made_or_is_not_there() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b/c");
        let number = |file: &fs::Metadata| file.ino();
        let synced = RefCell::new(Vec::new());
        let note = |folder: &File| {
            synced.borrow_mut().push(number(&folder.metadata()?));
            Ok(())
        };
        make_folders(&path, note).unwrap();
        let expected = ["", "a", "a/b"].map(|folder| number(&fs::metadata(above.path().join(folder)).unwrap()));
        assert_eq!(synced.take(), expected);
        make_folders(&path, note).unwrap();
        assert_eq!(synced.take(), [0; 0], "they are there");
        // One whose name is not durable would be taken for a durable one by the next attempt.
        let other = above.path().join("x/y");
        assert_eq!(make_folders(&other, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!above.path().join("x").exists());
    }
}
