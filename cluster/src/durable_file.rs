//! Small files that outlive a power cut: whole as they were before, or whole as they are now.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Replaces a file whole and durably: new file, sync, rename, sync of the folder.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_above(path)
}

/// Removes a file durably; one that is not there is removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    sync_above(path)
}

/// Makes a folder for such files, with those above it, and its name durable: with it a file in it would be lost. One that is there may have been made by a
/// process that came no further.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    sync_above(folder)
}

/// What is made, renamed or removed in the folder of `path` is durable.
fn sync_above(path: &Path) -> io::Result<()> {
    // A relative path of one name lies in the working folder.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_removed_in_a_folder_that_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, file) = (folder.path().join("spool"), folder.path().join("spool/cluster/file"));
        make_folder(&spool.join("cluster")).unwrap();
        make_folder(&spool.join("cluster")).unwrap();
        for content in ["one", "another"] {
            replace(&file, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
        remove(&file).unwrap();
        remove(&file).unwrap();
        assert!(!file.exists() && fs::read_dir(spool.join("cluster")).unwrap().next().is_none(), "nothing is left beside it");
        fs::write(&file, "").unwrap();
        assert!(make_folder(&file).is_err() && make_folder(&file.join("below")).is_err());
    }
}
