//! A file that says that mail of this spool may be in the cluster's queue: a run that does not share takes it back first.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use ringpost_cluster::floor_file::replace;

/// The file's place.
#[derive(Clone, Debug)]
pub struct OfferMark {
    path: PathBuf,
}

impl OfferMark {
    /// In the folder of what the node knows of the cluster.
    pub fn new(folder: PathBuf) -> OfferMark {
        OfferMark { path: folder.join("offers") }
    }

    /// Whether mail may be there. What cannot be looked at counts as yes.
    pub fn is_set(&self) -> bool {
        self.path.try_exists().unwrap_or(true)
    }

    /// Durable when it returns: before the first mail is offered.
    pub fn set(&self) -> io::Result<()> {
        if self.path.try_exists()? {
            return Ok(());
        }
        let folder = self.path.parent().expect("it is in a folder");
        fs::create_dir_all(folder)?;
        if let Some(spool) = folder.parent() {
            File::open(spool)?.sync_all()?;
        }
        replace(&self.path, b"mail of this spool may be in the cluster's queue\n")
    }

    /// Nothing is there any more. If that is not durable the next start looks once more.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("spool/cluster"));
        assert!(!mark.is_set());
        fs::create_dir(folder.path().join("spool")).unwrap();
        mark.set().unwrap();
        mark.set().unwrap();
        assert!(OfferMark::new(folder.path().join("spool/cluster")).is_set());
        mark.clear().unwrap();
        mark.clear().unwrap();
        assert!(!mark.is_set());
    }
}
