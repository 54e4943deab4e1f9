//! How shared limits were divided last, on this node's disk: a start without Valkey goes on with this node's part.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{floor_file::replace, shares::Shares};

/// The file: one line, [`Shares`] as text.
#[derive(Clone, Debug)]
pub struct SharesFile(PathBuf);

impl SharesFile {
    /// In `folder`, which exists.
    pub fn open(folder: &Path) -> SharesFile {
        SharesFile(folder.join("shares"))
    }

    /// What was kept. Without a file, or with one that says nothing, the node takes itself for the only one, as at its first start.
    pub fn kept(&self) -> Shares {
        fs::read_to_string(&self.0).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Durable when it returns.
    pub fn keep(&self, shares: Shares) -> io::Result<()> {
        replace(&self.0, format!("{shares}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = SharesFile::open(folder.path());
        assert_eq!(file.kept(), Shares { nodes: 1, connected_permille: 1000 });
        file.keep(Shares::of(3, 1)).unwrap();
        assert_eq!(SharesFile::open(folder.path()).kept(), Shares { nodes: 3, connected_permille: 666 });
        fs::write(folder.path().join("shares"), "x").unwrap();
        assert_eq!(file.kept(), Shares::default());
    }
}
