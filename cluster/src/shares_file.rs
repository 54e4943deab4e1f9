//! How shared limits were divided last, on this node's disk: a start without Valkey goes on with this node's part.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{durable_file::replace, shares::Shares};

/// The file: one line, [`Shares`] as text.
#[derive(Clone, Debug)]
pub struct SharesFile {
    path: PathBuf,
    /// One at a time: the fresh file of two would be one.
    keeps: Arc<Mutex<()>>,
}

impl SharesFile {
    /// In `folder`, which exists.
    pub fn open(folder: &Path) -> SharesFile {
        SharesFile { path: folder.join("shares"), keeps: Arc::default() }
    }

    /// What was kept. Without a file, or with one that says nothing, the node takes itself for the only one, as at its first start.
    pub fn kept(&self) -> Shares {
        fs::read_to_string(&self.path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// What `shares` says when it is its turn. Durable when it returns.
    pub fn keep(&self, shares: impl FnOnce() -> Shares) -> io::Result<()> {
        let _one = self.keeps.lock().expect("no panic happens under this lock");
        replace(&self.path, format!("{}\n", shares()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At a first start the list of nodes grows while what was said of it before is being written: one of the two found its fresh file gone, and a
    /// warning said so.
    #[test]
    fn words_that_come_close_to_each_other_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = SharesFile::open(folder.path());
        std::thread::scope(|scope| {
            let keeping = |nodes: u32| {
                let file = file.clone();
                scope.spawn(move || (0..50).try_for_each(|_| file.keep(|| Shares::of(nodes, 0))))
            };
            let all: Vec<_> = (1..=4).map(keeping).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = SharesFile::open(folder.path());
        assert_eq!(file.kept(), Shares { nodes: 1, connected_permille: 1000 });
        file.keep(|| Shares::of(3, 1)).unwrap();
        assert_eq!(SharesFile::open(folder.path()).kept(), Shares { nodes: 3, connected_permille: 666 });
        fs::write(folder.path().join("shares"), "x").unwrap();
        assert_eq!(file.kept(), Shares::default());
    }
}
